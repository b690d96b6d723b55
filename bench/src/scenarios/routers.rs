//! `nat` and `routed`: many flows through a switch that translates or routes, against Open vSwitch and the kernel.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry};
use crate::flags::Flag;
use crate::generators::RING_SIZE;
use crate::generators::flows::{Flows, NEW};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{Better, LOSS, Measure, RATE, Unit};
use crate::peers::{RouterPeer, WEFT, Work};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB for a DPDK switch; the generator's guests.
const PAGES: u64 = 256 + 32;

/// From the start until all routes are there.
const LOAD: Measure = Measure {
    name: "load time",
    unit: Unit { name: "s", shown: "s", scale: 1.0, digits: 2 },
    better: Better::Less,
};

const SESSIONS: Flag = Flag {
    name: "sessions",
    value: "N,…",
    about: "sessions that frames are of, 1 to 1000000",
    default: "1,65536,262144,1000000",
};
const PREFIXES: Flag = Flag {
    name: "prefixes",
    value: "N,…",
    about: "prefixes that are routed, 1 to 100000",
    default: "1,1000,100000",
};

pub(super) const NAT: Entry = Entry {
    name: "nat",
    about: "translation of up to a million sessions from a guest to an interface",
    peers: || names(&RouterPeer::TRANSLATE),
    flags: &[SESSIONS],
    prepare: |choices| {
        let sizes = choices.numbers(&SESSIONS, 1..=1_000_000)?;
        let peers = choices.peers(&RouterPeer::TRANSLATE, RouterPeer::name);
        Ok(Box::new(Routers { translates: true, peers, sizes }))
    },
};

pub(super) const ROUTED: Entry = Entry {
    name: "routed",
    about: "routes to up to 100,000 prefixes between two guests",
    peers: || names(&RouterPeer::ROUTE),
    flags: &[PREFIXES],
    prepare: |choices| {
        let sizes = choices.numbers(&PREFIXES, 1..=100_000)?;
        let peers = choices.peers(&RouterPeer::ROUTE, RouterPeer::name);
        Ok(Box::new(Routers { translates: false, peers, sizes }))
    },
};

fn names(all: &[RouterPeer]) -> Vec<&'static str> {
    all.iter().map(|peer| peer.name()).filter(|name| *name != WEFT).collect()
}

struct Routers {
    translates: bool,
    peers: Vec<RouterPeer>,
    /// Sessions, or prefixes.
    sizes: Vec<u32>,
}

const ABOUT_NAT: &str = "\
UDP sessions of 64 guests with 250 ports each, as many as the row says, each in its turn, to an interface (a veth). `weft`: from a vhost-user
port through a network of mode nat with `egress=uplink:`; `ovs`: the same way, from a vhost-user port with DPDK, by
`ct(commit,nat(src=…))` of the userspace datapath, to the same interface by AF_PACKET, as Weft has it. `kernel`: from one veth
to another by forwarding with a masquerade rule of nftables and a table of connections that is large enough; its frames
come from a packet socket, 64 in a system call: the kernel takes none from a vhost-user port. `weft-netdev` is Weft on the
kernel's way, with the kernel's sender; `weft-bridge` is Weft on its own way without translation: what is between it and
`weft` is what the translation costs, and what it has is what the interface takes from a packet socket.

\"New flows\": the rate at which frames arrive while every one is the first of its session, from the first frame until each
session has had one. Frames are counted by the interface's counter, and dropped there before they reach a stack.";

const ABOUT_ROUTED: &str = "\
UDP to one address in each of as many prefixes as the row says, each in its turn. Between guests: from one vhost-user port of
a network of mode routed to another, which has `routes=` of all prefixes; the generator is both guests and counts what
arrives. `reflector`: the same guests with the least that moves a frame between them, to show how far the generator gets.
Between interfaces: from one veth to another, whose frames come from a packet socket, 64 in a system call, and are counted
by the interface where they arrive, and dropped there; `weft`: the same network by two AF_PACKET sockets; `kernel`:
forwarding with as many routes.

Load time: of Weft from the start of its process with a file that has all routes until it answers, of the kernel one
`ip -batch`.";

impl Routers {
    fn about(&self, plan: &Plan) -> String {
        format!(
            "Frames of 64 bytes. {}\n\nForwarding is done on CPU {}: by the switch's thread, by the kernel through `rps_cpus` of the\n\
             interface. The sender is one thread on CPU {}. Rings of {RING_SIZE} descriptors.",
            if self.translates { ABOUT_NAT } else { ABOUT_ROUTED },
            plan.switch_cpu,
            plan.generator_cpu
        )
    }

    fn measures(&self) -> [Measure; 3] {
        if self.translates { [RATE, LOSS, NEW] } else { [RATE, LOSS, LOAD] }
    }

    /// The cells: what each is called, and its peers.
    fn cells(&self) -> Vec<(&'static str, Vec<RouterPeer>)> {
        if self.translates {
            return vec![("64 B", self.peers.clone())];
        }
        let (kernel, guests): (Vec<_>, Vec<_>) =
            self.peers.iter().partition(|peer| **peer == RouterPeer::Kernel);
        let mut cells = vec![("64 B between guests", guests)];
        if !kernel.is_empty() {
            cells.push(("64 B between interfaces", vec![RouterPeer::WeftNetdev, RouterPeer::Kernel]));
        }
        cells
    }

    /// What a peer is called. A cell of routes has one of ours.
    fn called(&self, peer: RouterPeer) -> &'static str {
        if !self.translates && peer == RouterPeer::WeftNetdev { WEFT } else { peer.name() }
    }

    fn once(&self, plan: &Plan, size: u32, peer: RouterPeer, dir: &Path) -> Result<Run> {
        let work = if self.translates { Work::Translate } else { Work::Route(size) };
        let switch = peer.start(dir, plan.switch_cpu, work)?;
        let flows = Flows { dir, cpu: plan.generator_cpu, work, count: size, seconds: plan.seconds };
        let mut measured = flows.measure(&switch)?;
        if let Some(loaded) = switch.loaded {
            measured = measured.with(&LOAD, loaded.as_secs_f64());
        }
        Ok(Run { switch: switch.commands.clone(), measured: measured.only(&self.measures()) })
    }
}

impl Benchmark for Routers {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        [&machine::IP, &machine::NFT].into_iter().chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        let peers: usize = self.cells().iter().map(|(_, peers)| peers.len()).sum();
        (self.sizes.len() * peers, 6.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the sender both poll: they need two processors");
        }
        let _pages = Hugepages::reserve(PAGES)?;
        let (name, of) = if self.translates { (NAT.name, "sessions") } else { (ROUTED.name, "prefixes") };
        let mut scenario = plan.scenario(name, self.about(plan));
        let variant = |size: &u32| (size.to_string(), Some(f64::from(*size)));
        let variants: Vec<_> = self.sizes.iter().map(variant).collect();
        for (name, peers) in self.cells() {
            let names: Vec<&str> = peers.iter().map(|peer| self.called(*peer)).collect();
            let mut cell = Cell::new(name, &self.measures()).variants(of, &variants, &names);
            if peers.contains(&RouterPeer::Reflector) {
                cell = cell.ceiling(RouterPeer::Reflector.name());
            }
            rounds(&mut scenario, cell, "flows", |turn| {
                let peer = peers.iter().find(|peer| self.called(**peer) == turn.peer);
                let size = turn.variant.parse().context("a variant is a number")?;
                self.once(plan, size, *peer.context("no such peer")?, turn.dir).map(Some)
            })?;
        }
        Ok(scenario)
    }
}
