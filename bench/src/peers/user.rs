//! Switches that lead a network namespace outside by the host's own sockets. The host is a namespace too, with a loopback
//! interface that guests reach at their gateway's address.

use std::path::Path;

use anyhow::Result;

use super::{LIMIT, WEFT, launch, tell, weft};
use crate::guard::{Job, Line, Netns, run};
use crate::machine::{self, Program};

/// The guest's interface.
pub(super) const INTERFACE: &str = "tap0";
/// The guest's address.
const GUEST: &str = "10.0.0.2";

/// A switch that is a guest's way outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserPeer {
    /// Ours: a network of mode nat with `egress=user`, and a tap port.
    Weft,
    /// pasta with the MTU that it chooses, 65,520 bytes.
    Pasta,
    /// pasta with Ethernet's MTU, which is Weft's too.
    PastaEthernet,
}

/// A running one.
#[derive(Debug)]
pub(crate) struct UserSwitch {
    /// How it was started.
    pub(crate) commands: Vec<String>,
    /// Dropped before the namespaces.
    job: Job,
    /// iperf3's window in pasta's own tests with this interface: more than a tap's queue takes is lost.
    pub(crate) window: &'static str,
    /// Where clients run.
    pub(crate) guest: Netns,
    /// Where the switch and the servers run.
    pub(crate) host: Netns,
}

impl UserSwitch {
    /// The host's loopback, as the guest names it: its gateway.
    pub(crate) const SERVER: &'static str = "10.0.0.1";

    /// The switch's process.
    pub(crate) fn pid(&self) -> u32 {
        self.job.pid()
    }
}

impl UserPeer {
    /// All, in the order in which they run in a round.
    pub(crate) const ALL: [UserPeer; 3] = [UserPeer::Weft, UserPeer::Pasta, UserPeer::PastaEthernet];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            UserPeer::Weft => WEFT,
            UserPeer::Pasta => "pasta",
            UserPeer::PastaEthernet => "pasta-1500",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            UserPeer::Weft => &[],
            UserPeer::Pasta | UserPeer::PastaEthernet => &[machine::PASTA],
        }
    }

    /// Starts it with its files in `dir`, forwarding on `cpu`.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(self, dir: &Path, cpu: usize) -> Result<UserSwitch> {
        let (guest, host) = (Netns::new("guest")?, Netns::new("host")?);
        let mut commands = Vec::new();
        // pasta starts only on a host with an interface that leads somewhere; no packet goes there.
        let ip = |words: &str| Line::new("ip").arg("-n").arg(host.name()).words(words);
        for words in [
            "link add out type veth peer name far",
            "address add 192.0.2.1/24 dev out",
            "link set far up",
            "link set out up",
            "route add default via 192.0.2.2",
        ] {
            tell(&ip(words), &mut commands)?;
        }
        let (job, mut started) = match self {
            UserPeer::Weft => weft::user(dir, cpu, &host)?,
            UserPeer::Pasta => pasta(dir, cpu, &host, &guest, "")?,
            UserPeer::PastaEthernet => pasta(dir, cpu, &host, &guest, "--mtu 1500")?,
        };
        if self == UserPeer::Weft {
            guest.adopt(&host, INTERFACE, &format!("{GUEST}/24"))?;
        }
        commands.append(&mut started);
        let window = if self == UserPeer::PastaEthernet { "512K" } else { "4M" };
        Ok(UserSwitch { commands, job, window, guest, host })
    }
}

/// pasta between two namespaces that exist. It forwards nothing to the guest: looking for ports to forward would cost time.
fn pasta(dir: &Path, cpu: usize, host: &Netns, guest: &Netns, more: &str) -> Result<(Job, Vec<String>)> {
    let line = Line::new("pasta").words("--foreground --runas 0 --config-net --ipv4-only");
    let line = line.words(&format!("--address {GUEST} --netmask 255.255.255.0"));
    let line = line.words(&format!("--gateway {} --ns-ifname {INTERFACE}", UserSwitch::SERVER));
    let line = line.words("-t none -u none -T none -U none").words(more);
    let line = line.arg("--netns").arg(guest.name()).cpu(cpu).netns(host);
    let mut commands = Vec::new();
    let mut job = launch(&line, &dir.join("pasta.log"), &mut commands)?;
    let look = Line::new("ip").arg("-n").arg(guest.name()).words("address show dev").arg(INTERFACE);
    let ready = |_: &str| run(&look, LIMIT).is_ok_and(|shown| shown.contains(GUEST)).then_some(());
    job.expect("address of the guest's", LIMIT, ready)?;
    Ok((job, commands))
}

/// The configuration of ours.
pub(super) fn config() -> String {
    format!(
        "[network.n]\nmode = \"nat\"\negress = \"user\"\nsubnet = \"10.0.0.0/24\"\nhost-loopback = \"on\"\n\n\
         [port.{INTERFACE}]\nnetwork = \"n\"\nkind = \"tap:{INTERFACE}\"\n"
    )
}
