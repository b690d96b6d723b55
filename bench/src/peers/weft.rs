//! Weft itself, the release build, with its defaults: one worker, adaptive polling where nothing else is said.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    ADDRESSES, FEW, INTERFACES, MixedSwitch, Setup, TapSwitch, VhostSwitch, await_file, hand_over, launch,
    namespaces, tell, text, user, veths,
};
use crate::guard::{Job, Line, Netns};
use crate::machine::built;

/// Stations that a network's table takes unless it is told.
const STATIONS_DEFAULT: u32 = 8192;

/// Whether forwarding threads sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Poll {
    /// When there is nothing to do: its default.
    Adaptive,
    /// Never.
    Busy,
}

struct Daemon {
    job: Job,
    binary: PathBuf,
    socket: String,
    commands: Vec<String>,
}

impl Daemon {
    /// With a network `br0`, or with what `config` says.
    fn start(dir: &Path, cpus: &[usize], netns: Option<&Netns>, config: Option<&Path>) -> Result<Self> {
        Self::polls(Poll::Adaptive, dir, cpus, netns, config)
    }

    fn polls(
        poll: Poll,
        dir: &Path,
        cpus: &[usize],
        netns: Option<&Netns>,
        config: Option<&Path>,
    ) -> Result<Self> {
        let binary = built("weft", "cargo build --release -p weft")?;
        let socket = dir.join("ctl.sock");
        let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
        let mut line = Line::new(text(&binary)).words("daemon --socket").arg(text(&socket));
        line = line.arg("--state-dir").arg(text(&dir.join("state"))).arg("--cpus").arg(cpus.join(","));
        if poll == Poll::Busy {
            line = line.words("--poll busy");
        }
        if let Some(config) = config {
            line = line.arg("--config").arg(text(config));
        }
        if let Some(netns) = netns {
            line = line.netns(netns);
        }
        let mut commands = Vec::new();
        let mut job = launch(&line, &dir.join("weft.log"), &mut commands)?;
        await_file(&mut job, &socket)?;
        let mut daemon = Daemon { job, binary, socket: text(&socket), commands };
        // With a file, it answers when everything in it is there.
        daemon.verb(if config.is_some() { "status" } else { "net add br0 mode=bridge" })?;
        Ok(daemon)
    }

    fn verb(&mut self, words: &str) -> Result<()> {
        let line = Line::new(text(&self.binary)).arg("--socket").arg(&self.socket).words(words);
        tell(&line, &mut self.commands)
    }
}

/// vhost-user ports on a bridge.
pub(super) fn vhost(setup: &Setup<'_>, poll: Poll) -> Result<VhostSwitch> {
    let sockets = setup.sockets();
    // Many ports come from a file: a command for each takes longer than what is measured.
    let file = (sockets.len() > FEW).then(|| setup.dir.join("weft.toml"));
    if let Some(file) = &file {
        let mut config = "[network.br0]\nmode = \"bridge\"\n".to_string();
        for (number, socket) in sockets.iter().enumerate() {
            let kind = format!("vhost-user:{}", socket.display());
            config += &format!("[port.vhu{number}]\nnetwork = \"br0\"\nkind = \"{kind}\"\n");
        }
        std::fs::write(file, config)?;
    }
    let mut daemon = Daemon::polls(poll, setup.dir, &setup.cpus, None, file.as_deref())?;
    if setup.stations > STATIONS_DEFAULT {
        daemon.verb(&format!("net set br0 fdb-max={}", setup.stations))?;
    }
    if file.is_none() {
        for (number, socket) in sockets.iter().enumerate() {
            daemon.verb(&format!("port add br0 vhu{number} vhost-user:{}", socket.display()))?;
        }
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
    let mut daemon = Daemon::start(dir, &[cpu], Some(&middle), None)?;
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
    let mut daemon = Daemon::start(dir, &[cpu], Some(&middle), None)?;
    for name in interfaces {
        daemon.verb(&format!("port add br0 {name} netdev:{name}"))?;
    }
    commands.append(&mut daemon.commands);
    Ok(TapSwitch { commands, _jobs: vec![daemon.job], ends, _middle: middle })
}

/// A vhost-user port and a tap on a bridge.
pub(super) fn mixed(dir: &Path, cpu: usize) -> Result<MixedSwitch> {
    let (end, middle) = (Netns::new("b")?, Netns::new("switch")?);
    let mut daemon = Daemon::start(dir, &[cpu], Some(&middle), None)?;
    let (socket, tap) = (dir.join("vhu0"), INTERFACES[1]);
    daemon.verb(&format!("port add br0 vhu0 vhost-user:{}", socket.display()))?;
    daemon.verb(&format!("port add br0 {tap} tap:{tap}"))?;
    end.adopt(&middle, tap, ADDRESSES[1])?;
    Ok(MixedSwitch { socket, commands: daemon.commands, _jobs: vec![daemon.job], end, _middle: middle })
}

/// A tap in `host` on a network whose outside is the sockets of that namespace.
pub(super) fn user(dir: &Path, cpu: usize, host: &Netns) -> Result<(Job, Vec<String>)> {
    let file = dir.join("weft.toml");
    std::fs::write(&file, user::config())?;
    let daemon = Daemon::start(dir, &[cpu], Some(host), Some(&file))?;
    let mut commands = vec![format!("# weft.toml: {}", user::config().replace('\n', "; "))];
    commands.extend(daemon.commands);
    Ok((daemon.job, commands))
}
