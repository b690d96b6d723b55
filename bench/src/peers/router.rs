//! Switches that route or translate between two interfaces, `in` and `out`: veth pairs whose other ends, `gen` and `far`,
//! are a sender's and a receiver's. All peers have the same interfaces, and are sent the same frames.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{LIMIT, WEFT, await_file, launch, tell, text};
use crate::guard::{Job, Line, Netns, run};
use crate::machine::{self, Program, built};

/// The MAC addresses of `in` and `far`.
const MAC_IN: &str = "02:00:00:00:01:01";
const MAC_FAR: &str = "02:00:00:00:02:02";
/// Sessions that the kernel's connection tracking may have, and its buckets: as many as fit.
const CONNTRACK: [(&str, u64); 2] = [
    ("/proc/sys/net/netfilter/nf_conntrack_max", 1 << 21),
    ("/sys/module/nf_conntrack/parameters/hashsize", 1 << 20),
];

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
    /// Ours: a network of mode nat or routed, with two netdev ports.
    Weft,
    /// The kernel's forwarding, with masquerading by nftables.
    Kernel,
}

/// A running one.
#[derive(Debug)]
pub(crate) struct RouterSwitch {
    /// How it was started.
    pub(crate) commands: Vec<String>,
    /// Dropped before the namespaces.
    jobs: Vec<Job>,
    _settings: Option<Restored>,
    /// With the interface `gen`.
    pub(crate) sender: Netns,
    /// With the interface `far`.
    pub(crate) receiver: Netns,
    middle: Netns,
    /// Where frames are to be sent to.
    pub(crate) mac: String,
}

impl RouterPeer {
    /// All, in the order in which they run in a round.
    pub(crate) const ALL: [RouterPeer; 2] = [RouterPeer::Weft, RouterPeer::Kernel];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            RouterPeer::Weft => WEFT,
            RouterPeer::Kernel => "kernel",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            RouterPeer::Weft => &[],
            RouterPeer::Kernel => &[machine::NFT],
        }
    }

    /// Starts it with its files in `dir`, forwarding on `cpu`.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(self, dir: &Path, cpu: usize, work: Work) -> Result<RouterSwitch> {
        let mut switch = RouterSwitch {
            commands: Vec::new(),
            jobs: Vec::new(),
            _settings: None,
            sender: Netns::new("sender")?,
            receiver: Netns::new("receiver")?,
            middle: Netns::new("switch")?,
            mac: MAC_IN.into(),
        };
        switch.cables()?;
        match self {
            RouterPeer::Weft => weft(&mut switch, dir, cpu, work)?,
            RouterPeer::Kernel => kernel(&mut switch, dir, cpu, work)?,
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

    fn cables(&mut self) -> Result<()> {
        let (sender, receiver) = (self.sender.name().to_string(), self.receiver.name().to_string());
        self.ip(&format!("link add in address {MAC_IN} type veth peer name gen netns {sender}"))?;
        self.ip(&format!("link add out type veth peer name far address {MAC_FAR} netns {receiver}"))?;
        for interface in ["in", "out"] {
            self.ip(&format!("link set {interface} up"))?;
        }
        self.sender.ip("link set gen up")?;
        self.receiver.ip("link set far up")?;
        self.receiver.ip("address add 203.0.113.254/24 dev far")?;
        // The receiver's kernel answers nothing: what arrives is counted, and gone.
        for prefix in ["198.18.0.0/15", "10.128.0.0/9"] {
            self.receiver.ip(&format!("route add blackhole {prefix}"))?;
        }
        Ok(())
    }

    /// Frames that `far` has received.
    ///
    /// # Errors
    /// `ip` fails or tells something else.
    pub(crate) fn received(&self) -> Result<u64> {
        packets(&self.receiver, "far", "rx")
    }

    /// Frames that `gen` has sent.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn sent(&self) -> Result<u64> {
        packets(&self.sender, "gen", "tx")
    }
}

fn packets(netns: &Netns, interface: &str, way: &str) -> Result<u64> {
    let line = Line::new("ip").arg("-n").arg(netns.name()).words("-json -statistics link show dev");
    let links: Value = serde_json::from_str(&run(&line.arg(interface), LIMIT)?)?;
    links[0]["stats64"][way]["packets"].as_u64().with_context(|| format!("no counters of {interface}"))
}

/// The prefixes of [`Work::Route`].
fn prefixes(count: u32) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("{}/26", std::net::Ipv4Addr::from_bits(0x0a80_0000 + (n << 6))))
}

fn weft(switch: &mut RouterSwitch, dir: &Path, cpu: usize, work: Work) -> Result<()> {
    let config = dir.join("weft.toml");
    let file = match work {
        Work::Translate => {
            "[network.n]\nmode = \"nat\"\nsubnet = \"10.77.0.0/16\"\negress = \"uplink:out\"\n\
             address = \"203.0.113.1/24\"\nnext-hop = \"203.0.113.254\"\nquota = 1000000\n\n\
             [port.in]\nnetwork = \"n\"\nkind = \"netdev:in\"\n"
                .to_string()
        }
        Work::Route(count) => {
            let list: Vec<String> = prefixes(count).collect();
            format!(
                "[network.n]\nmode = \"routed\"\nuplink = \"in\"\nsubnet = \"203.0.113.0/24\"\n\
                 address = \"10.77.0.1/16\"\nnext-hop = \"10.77.1.1\"\n\n[port.out]\nnetwork = \"n\"\n\
                 kind = \"netdev:out\"\nip = \"203.0.113.254\"\nmac = \"{MAC_FAR}\"\nroutes = \"{}\"\n",
                list.join(",")
            )
        }
    };
    std::fs::write(&config, file)?;
    let binary = text(&built("weft", "cargo build --release -p weft")?);
    let socket = dir.join("ctl.sock");
    let line = Line::new(&binary).words("daemon --socket").arg(text(&socket)).arg("--state-dir");
    let line = line.arg(text(&dir.join("state"))).arg("--cpus").arg(cpu.to_string());
    let line = line.arg("--config").arg(text(&config)).netns(&switch.middle);
    let mut job = launch(&line, &dir.join("weft.log"), &mut switch.commands)?;
    await_file(&mut job, &socket)?;
    switch.jobs.push(job);
    let show = Line::new(&binary).arg("--socket").arg(text(&socket)).words("--json net show n");
    let shown: Value = serde_json::from_str(&run(&show, LIMIT)?)?;
    let mac =
        shown["resolved"]["gateway_mac"].as_str().context("the network has no gateway's MAC address")?;
    switch.mac = mac.to_string();
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
            switch.ip(&format!("-batch {}", rules.display()))?;
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
