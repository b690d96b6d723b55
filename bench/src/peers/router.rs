//! Switches that route or translate, from a guest at a vhost-user socket or from the interface `in` to another guest or to
//! the interface `out`. `in` and `out` are of veth pairs, whose other ends, `gen` and `far`, are a sender's and a
//! receiver's. All peers are sent the same frames.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{LIMIT, Setup, VhostPeer, WEFT, await_file, launch, ovs, tell, text};
use crate::guard::{Job, Line, Netns, run};
use crate::machine::{self, Program, built};

/// The MAC addresses of `in` and of the sending guest, of `out`, and of `far` and the receiving guest.
const MAC_IN: &str = "02:00:00:00:01:01";
const MAC_GUEST: &str = "02:00:00:00:01:02";
const MAC_OUT: &str = "02:00:00:00:02:01";
const MAC_FAR: &str = "02:00:00:00:02:02";
/// The address to which all is translated.
const OUTSIDE: &str = "203.0.113.1";
/// Sessions that the kernel's connection tracking may have, and its buckets: as many as fit.
const CONNTRACK: [(&str, u64); 2] = [
    ("/proc/sys/net/netfilter/nf_conntrack_max", 1 << 21),
    ("/sys/module/nf_conntrack/parameters/hashsize", 1 << 20),
];

/// Our daemon's socket for commands.
const SOCKET: &str = "ctl.sock";
/// Drops IPv4 where `far` receives it.
const DROP: &str = "table netdev bench {\n chain counted {\n  type filter hook ingress device \"far\" priority 0;\n\
                    \x20 meta protocol ip drop\n }\n}\n";

/// What it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Translate all that comes from 10.77.0.0/16 to one address.
    Translate,
    /// Route to so many prefixes of 64 addresses, from 10.128.0.0 on.
    Route(u32),
}

/// A switch that routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouterPeer {
    /// Ours: a network of mode nat or routed, from a vhost-user port to an interface or to another such port.
    Weft,
    /// The same from an interface to an interface, as the kernel has it.
    WeftNetdev,
    /// Ours as a bridge, from a vhost-user port to an interface: what all costs but the translation.
    WeftBridge,
    /// Open vSwitch's userspace datapath with its own connection tracking, from a vhost-user port to an interface.
    Ovs,
    /// The kernel's forwarding between two interfaces, with masquerading by nftables.
    Kernel,
    /// Two vhost-user sockets with the least that moves a frame between them: the generator's ceiling.
    Reflector,
}

/// Where frames come from, or go to.
#[derive(Clone, Debug)]
pub(crate) enum RouterEnd {
    /// An interface, in the sender's or in the receiver's namespace.
    Interface(&'static str),
    /// A guest at the vhost-user socket.
    Guest(PathBuf),
}

/// A running one.
#[derive(Debug)]
pub(crate) struct RouterSwitch {
    /// How it was started.
    pub(crate) commands: Vec<String>,
    /// The one that forwards comes first. Dropped before the namespaces.
    jobs: Vec<Job>,
    _settings: Option<Restored>,
    /// Where frames come from.
    pub(crate) from: RouterEnd,
    /// Where they go to.
    pub(crate) to: RouterEnd,
    /// With the interface `gen`.
    pub(crate) sender: Netns,
    receiver: Netns,
    middle: Netns,
    /// Where frames are to be sent to.
    pub(crate) mac: String,
    /// How long it took to take all routes over.
    pub(crate) loaded: Option<Duration>,
}

impl RouterPeer {
    /// Those that translate, in the order in which they run in a round.
    pub(crate) const TRANSLATE: [RouterPeer; 5] = [
        RouterPeer::Weft,
        RouterPeer::Ovs,
        RouterPeer::Kernel,
        RouterPeer::WeftNetdev,
        RouterPeer::WeftBridge,
    ];
    /// Those that route.
    pub(crate) const ROUTE: [RouterPeer; 3] = [RouterPeer::Weft, RouterPeer::Reflector, RouterPeer::Kernel];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            RouterPeer::Weft => WEFT,
            RouterPeer::WeftNetdev => "weft-netdev",
            RouterPeer::WeftBridge => "weft-bridge",
            RouterPeer::Ovs => "ovs",
            RouterPeer::Kernel => "kernel",
            RouterPeer::Reflector => "reflector",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            RouterPeer::Ovs => &[machine::OVS],
            _ => &[],
        }
    }

    /// Starts it with its files in `dir`, forwarding on `cpu`.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(self, dir: &Path, cpu: usize, work: Work) -> Result<RouterSwitch> {
        let guest = |name: &str| RouterEnd::Guest(dir.join(name));
        let (from, to) = match (self, work) {
            (RouterPeer::WeftNetdev | RouterPeer::Kernel, _) => {
                (RouterEnd::Interface("gen"), RouterEnd::Interface("far"))
            }
            (_, Work::Translate) => (guest("vhu0"), RouterEnd::Interface("far")),
            (_, Work::Route(_)) => (guest("vhu0"), guest("vhu1")),
        };
        let mut switch = RouterSwitch {
            commands: Vec::new(),
            jobs: Vec::new(),
            _settings: None,
            from,
            to,
            sender: Netns::new("sender")?,
            receiver: Netns::new("receiver")?,
            middle: Netns::new("switch")?,
            mac: MAC_IN.into(),
            loaded: None,
        };
        if self != RouterPeer::Reflector {
            switch.cables(dir)?;
        }
        match self {
            RouterPeer::Weft | RouterPeer::WeftNetdev | RouterPeer::WeftBridge => {
                let bridge = self == RouterPeer::WeftBridge;
                let file = config(&switch, work, bridge);
                weft(&mut switch, dir, cpu, &file)?;
                if bridge {
                    switch.mac = MAC_FAR.into();
                } else {
                    switch.find_gateway(dir)?;
                }
            }
            RouterPeer::Ovs => {
                let macs = [MAC_OUT, MAC_FAR];
                let running = ovs::translator(dir, cpu, &switch.middle, "out", macs, OUTSIDE)?;
                switch.commands.extend(running.commands);
                switch.jobs = running.jobs;
            }
            RouterPeer::Kernel => kernel(&mut switch, dir, cpu, work)?,
            RouterPeer::Reflector => {
                let running = VhostPeer::Reflector.start(&Setup::pair(dir, cpu))?;
                (switch.commands, switch.jobs) = (running.commands, running.jobs);
            }
        }
        Ok(switch)
    }
}

impl RouterSwitch {
    /// Of the forwarding thread's life, the part in which another thread had its processor; nothing of the kernel's.
    pub(crate) fn waited(&self) -> Option<f64> {
        self.jobs.first().and_then(Job::waited)
    }

    fn ip(&mut self, words: &str) -> Result<()> {
        tell(&Line::new("ip").arg("-n").arg(self.middle.name()).words(words), &mut self.commands)
    }

    /// Asks our daemon for the MAC address of the network's router.
    fn find_gateway(&mut self, dir: &Path) -> Result<()> {
        let binary = text(&built("weft", "cargo build --release -p weft")?);
        let show = Line::new(binary).arg("--socket").arg(text(&dir.join(SOCKET))).words("--json net show n");
        let shown: Value = serde_json::from_str(&run(&show, LIMIT)?)?;
        let mac = shown["resolved"]["gateway_mac"].as_str();
        self.mac = mac.context("the network has no gateway's MAC address")?.to_string();
        Ok(())
    }

    fn cables(&mut self, dir: &Path) -> Result<()> {
        let (sender, receiver) = (self.sender.name().to_string(), self.receiver.name().to_string());
        self.ip(&format!("link add in address {MAC_IN} type veth peer name gen netns {sender}"))?;
        self.ip(&format!(
            "link add out address {MAC_OUT} type veth peer name far address {MAC_FAR} netns {receiver}"
        ))?;
        for interface in ["in", "out"] {
            self.ip(&format!("link set {interface} up"))?;
        }
        self.sender.ip("link set gen up")?;
        self.receiver.ip("link set far up")?;
        self.receiver.ip("address add 203.0.113.254/24 dev far")?;
        // What arrives is counted, and gone before it costs anything; only ARP is answered.
        let rules = dir.join("drop");
        std::fs::write(&rules, DROP)?;
        let nft = Line::new("nft").arg("-f").arg(text(&rules)).netns(&self.receiver);
        tell(&nft, &mut self.commands)
    }

    /// Frames that `far` has received; none where it is not there.
    ///
    /// # Errors
    /// `ip` fails or tells something else.
    pub(crate) fn received(&self) -> Result<u64> {
        match self.to {
            RouterEnd::Interface(name) => packets(&self.receiver, name),
            RouterEnd::Guest(_) => Ok(0),
        }
    }
}

fn packets(netns: &Netns, interface: &str) -> Result<u64> {
    let line = Line::new("ip").arg("-n").arg(netns.name()).words("-json -statistics link show dev");
    let links: Value = serde_json::from_str(&run(&line.arg(interface), LIMIT)?)?;
    links[0]["stats64"]["rx"]["packets"].as_u64().with_context(|| format!("no counters of {interface}"))
}

/// The prefixes of [`Work::Route`].
fn prefixes(count: u32) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("{}/26", std::net::Ipv4Addr::from_bits(0x0a80_0000 + (n << 6))))
}

/// Our file for that work.
fn config(switch: &RouterSwitch, work: Work, bridge: bool) -> String {
    let kind = |end: &RouterEnd, interface: &str| match end {
        RouterEnd::Interface(_) => format!("netdev:{interface}"),
        RouterEnd::Guest(socket) => format!("vhost-user:{}", socket.display()),
    };
    let (from, to) = (kind(&switch.from, "in"), kind(&switch.to, "out"));
    let port = |name: &str, kind: &str| format!("[port.{name}]\nnetwork = \"n\"\nkind = \"{kind}\"\n");
    match work {
        Work::Translate if bridge => {
            format!("[network.n]\nmode = \"bridge\"\n{}{}", port("from", &from), port("to", &to))
        }
        Work::Translate => {
            format!(
                "[network.n]\nmode = \"nat\"\nsubnet = \"10.77.0.0/16\"\negress = \"uplink:out\"\n\
                 address = \"{OUTSIDE}/24\"\nnext-hop = \"203.0.113.254\"\nquota = 1000000\n{}",
                port("from", &from)
            )
        }
        Work::Route(count) => {
            let list: Vec<String> = prefixes(count).collect();
            let behind = format!(
                "{}ip = \"203.0.113.254\"\nmac = \"{MAC_FAR}\"\nroutes = \"{}\"\n",
                port("to", &to),
                list.join(",")
            );
            // With an uplink there is no interface of the host's, whose routes are not what is measured.
            let network = |uplink: &str, subnet: &str, address: &str, next: &str| {
                format!(
                    "[network.n]\nmode = \"routed\"\nuplink = \"{uplink}\"\nsubnet = \"{subnet}\"\n\
                     address = \"{address}\"\nnext-hop = \"{next}\"\n"
                )
            };
            match switch.from {
                RouterEnd::Interface(_) => {
                    network("in", "203.0.113.0/24", "10.77.0.1/16", "10.77.1.1") + &behind
                }
                RouterEnd::Guest(_) => {
                    let sender =
                        port("from", &from) + &format!("ip = \"10.77.1.1\"\nmac = \"{MAC_GUEST}\"\n");
                    network("in", "203.0.113.0/24", "10.76.0.1/16", "10.76.1.1") + &sender + &behind
                }
            }
        }
    }
}

fn weft(switch: &mut RouterSwitch, dir: &Path, cpu: usize, config: &str) -> Result<()> {
    let file = dir.join("weft.toml");
    std::fs::write(&file, config)?;
    let binary = text(&built("weft", "cargo build --release -p weft")?);
    let socket = dir.join(SOCKET);
    let line = Line::new(&binary).words("daemon --socket").arg(text(&socket)).arg("--state-dir");
    let line = line.arg(text(&dir.join("state"))).arg("--cpus").arg(cpu.to_string());
    let line = line.arg("--config").arg(text(&file)).netns(&switch.middle);
    let began = Instant::now();
    let mut job = launch(&line, &dir.join("weft.log"), &mut switch.commands)?;
    await_file(&mut job, &socket)?;
    // It answers when everything in the file is there.
    run(&Line::new(binary).arg("--socket").arg(text(&socket)).arg("status"), LIMIT)?;
    switch.loaded = Some(began.elapsed());
    switch.jobs.push(job);
    Ok(())
}

fn kernel(switch: &mut RouterSwitch, dir: &Path, cpu: usize, work: Work) -> Result<()> {
    switch.ip("address add 10.77.0.1/16 dev in")?;
    switch.ip("address add 203.0.113.1/24 dev out")?;
    let netns = switch.middle.name().to_string();
    let exec = |words: &str| Line::new("ip").words("netns exec").arg(&netns).words(words);
    tell(&exec("sysctl -qw net.ipv4.ip_forward=1"), &mut switch.commands)?;
    // What comes in is worked on where the others have their forwarding thread, not where the sender runs.
    let queue = dir.join("rps");
    std::fs::write(&queue, format!("echo {:x} >/sys/class/net/in/queues/rx-0/rps_cpus\n", 1_u64 << cpu))?;
    tell(&exec("sh").arg(text(&queue)), &mut switch.commands)?;
    let rules = dir.join("rules");
    let mut text_of = String::new();
    match work {
        Work::Translate => {
            switch.ip("route add default via 203.0.113.254")?;
            text_of.push_str(
                "table ip nat {\n chain post {\n  type nat hook postrouting priority srcnat;\n\
                 \x20 oifname \"out\" masquerade\n }\n}\n",
            );
            std::fs::write(&rules, text_of)?;
            tell(&exec("nft -f").arg(text(&rules)), &mut switch.commands)?;
            switch._settings = Some(Restored::set(&CONNTRACK)?);
        }
        Work::Route(count) => {
            for prefix in prefixes(count) {
                writeln!(text_of, "route add {prefix} via 203.0.113.254")?;
            }
            std::fs::write(&rules, text_of)?;
            let began = Instant::now();
            switch.ip(&format!("-batch {}", rules.display()))?;
            switch.loaded = Some(began.elapsed());
        }
    }
    Ok(())
}

/// Settings of the kernel, which are as they were when this is dropped.
#[derive(Debug)]
struct Restored(Vec<(&'static str, String)>);

impl Restored {
    fn set(settings: &[(&'static str, u64)]) -> Result<Self> {
        let mut restored = Self(Vec::new());
        for (path, value) in settings {
            let old = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            restored.0.push((path, old));
            std::fs::write(path, value.to_string()).with_context(|| format!("cannot set {path}"))?;
        }
        Ok(restored)
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        for (path, old) in &self.0 {
            if std::fs::write(path, old.trim()).is_err() {
                eprintln!("bench: cannot set {path} back to {}", old.trim());
            }
        }
    }
}
