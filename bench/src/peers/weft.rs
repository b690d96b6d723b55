//! Weft itself, the release build, with its defaults: one worker, adaptive polling.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    ADDRESSES, INTERFACES, MixedSwitch, Setup, TapSwitch, VhostSwitch, await_file, hand_over, launch,
    namespaces, tell, text, veths,
};
use crate::guard::{Job, Line, Netns};
use crate::machine::built;

/// Stations that a network's table takes unless it is told.
const STATIONS_DEFAULT: u32 = 8192;

struct Daemon {
    job: Job,
    binary: PathBuf,
    socket: String,
    commands: Vec<String>,
}

impl Daemon {
    fn start(dir: &Path, cpus: &[usize], netns: Option<&Netns>) -> Result<Self> {
        let binary = built("weft", "cargo build --release -p weft")?;
        let socket = dir.join("ctl.sock");
        let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
        let mut line = Line::new(text(&binary)).words("daemon --socket").arg(text(&socket));
        line = line.arg("--state-dir").arg(text(&dir.join("state"))).arg("--cpus").arg(cpus.join(","));
        if let Some(netns) = netns {
            line = line.netns(netns);
        }
        let mut commands = Vec::new();
        let mut job = launch(&line, &dir.join("weft.log"), &mut commands)?;
        await_file(&mut job, &socket)?;
        let mut daemon = Daemon { job, binary, socket: text(&socket), commands };
        daemon.verb("net add br0 mode=bridge")?;
        Ok(daemon)
    }

    fn verb(&mut self, words: &str) -> Result<()> {
        let line = Line::new(text(&self.binary)).arg("--socket").arg(&self.socket).words(words);
        tell(&line, &mut self.commands)
    }
}

/// vhost-user ports on a bridge.
pub(super) fn vhost(setup: &Setup<'_>) -> Result<VhostSwitch> {
    let mut daemon = Daemon::start(setup.dir, &setup.cpus, None)?;
    if setup.stations > STATIONS_DEFAULT {
        daemon.verb(&format!("net set br0 fdb-max={}", setup.stations))?;
    }
    let sockets = setup.sockets();
    for (number, socket) in sockets.iter().enumerate() {
        daemon.verb(&format!("port add br0 vhu{number} vhost-user:{}", socket.display()))?;
    }
    Ok(VhostSwitch {
        sockets,
        connects: false,
        commands: daemon.commands,
        jobs: vec![daemon.job],
        _netns: None,
    })
}

/// Two taps on a bridge.
pub(super) fn taps(dir: &Path, cpu: usize) -> Result<TapSwitch> {
    let (ends, middle) = namespaces()?;
    let mut daemon = Daemon::start(dir, &[cpu], Some(&middle))?;
    for name in ["tap0", "tap1"] {
        daemon.verb(&format!("port add br0 {name} tap:{name}"))?;
    }
    hand_over(&ends, &middle, ["tap0", "tap1"])?;
    Ok(TapSwitch { commands: daemon.commands, _jobs: vec![daemon.job], ends, _middle: middle })
}

/// Two interfaces that exist on a bridge.
pub(super) fn netdevs(dir: &Path, cpu: usize) -> Result<TapSwitch> {
    let (ends, middle) = namespaces()?;
    let mut commands = Vec::new();
    let interfaces = veths(&ends, &middle, &mut commands)?;
    let mut daemon = Daemon::start(dir, &[cpu], Some(&middle))?;
    for name in interfaces {
        daemon.verb(&format!("port add br0 {name} netdev:{name}"))?;
    }
    commands.append(&mut daemon.commands);
    Ok(TapSwitch { commands, _jobs: vec![daemon.job], ends, _middle: middle })
}

/// A vhost-user port and a tap on a bridge.
pub(super) fn mixed(dir: &Path, cpu: usize) -> Result<MixedSwitch> {
    let (end, middle) = (Netns::new("b")?, Netns::new("switch")?);
    let mut daemon = Daemon::start(dir, &[cpu], Some(&middle))?;
    let (socket, tap) = (dir.join("vhu0"), INTERFACES[1]);
    daemon.verb(&format!("port add br0 vhu0 vhost-user:{}", socket.display()))?;
    daemon.verb(&format!("port add br0 {tap} tap:{tap}"))?;
    end.adopt(&middle, tap, ADDRESSES[1])?;
    Ok(MixedSwitch { socket, commands: daemon.commands, _jobs: vec![daemon.job], end, _middle: middle })
}
