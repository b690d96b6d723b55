//! `nat` and `routed`: many flows through a switch that translates or routes, against the kernel.

use anyhow::{Context, Result, bail};

use super::{Benchmark, Entry};
use crate::flags::{Choices, Flag};
use crate::generators::flows::{self, NEW};
use crate::machine::{self, Program};
use crate::measures::{LOSS, RATE};
use crate::peers::{RouterPeer, WEFT, Work};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

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
    about: "translation of up to a million sessions between two interfaces",
    peers: names,
    flags: &[SESSIONS],
    prepare: |choices| {
        let sizes = choices.numbers(&SESSIONS, 1..=1_000_000)?;
        Ok(Box::new(Routers { translates: true, peers: peers(choices), sizes }))
    },
};

pub(super) const ROUTED: Entry = Entry {
    name: "routed",
    about: "routes to up to 100,000 prefixes between two interfaces",
    peers: names,
    flags: &[PREFIXES],
    prepare: |choices| {
        let sizes = choices.numbers(&PREFIXES, 1..=100_000)?;
        Ok(Box::new(Routers { translates: false, peers: peers(choices), sizes }))
    },
};

fn names() -> Vec<&'static str> {
    RouterPeer::ALL.map(RouterPeer::name).into_iter().filter(|name| *name != WEFT).collect()
}

fn peers(choices: &Choices) -> Vec<RouterPeer> {
    choices.peers(&RouterPeer::ALL, RouterPeer::name)
}

struct Routers {
    translates: bool,
    peers: Vec<RouterPeer>,
    /// Sessions, or prefixes.
    sizes: Vec<u32>,
}

impl Routers {
    fn about(&self, plan: &Plan) -> String {
        let (what, how) = match self.translates {
            true => (
                "of as many UDP sessions as the row says, each in its turn, from 64 guests",
                "`weft`: a network of mode nat with `egress=uplink:`; `kernel`: forwarding with a masquerade rule of nftables\n\
                 and a table of connections that is large enough. \"New flows\" is measured while every frame is the first of\n\
                 its session.",
            ),
            false => (
                "to one address in each of as many prefixes as the row says, each in its turn",
                "`weft`: a network of mode routed with an uplink and one guest that the prefixes are behind; `kernel`: forwarding\n\
                 with as many routes.",
            ),
        };
        format!(
            "Frames of 64 bytes {what}, come in by a veth and go out by another; they are counted where they arrive, by the\n\
             interface's counter. All peers have the same interfaces and the same sender: one thread on CPU {}, with\n\
             `sendmmsg`. Forwarding is done on CPU {}: by Weft's thread through AF_PACKET sockets, by the kernel through\n\
             `rps_cpus` of the interface. {how}\n\n\
             Both directions of an AF_PACKET port cost more than what is done to the frame; what the translator and the router\n\
             take by themselves is printed by the examples `napt_speed`, `lpm_router` and `forward_speed`.",
            plan.generator_cpu, plan.switch_cpu
        )
    }
}

impl Benchmark for Routers {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        std::iter::once(&machine::IP).chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (self.sizes.len() * self.peers.len(), 10.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the switch and the sender both poll: they need two processors");
        }
        flows::prepare()?;
        let name = if self.translates { NAT.name } else { ROUTED.name };
        let mut scenario = plan.scenario(name, self.about(plan));
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        for &size in &self.sizes {
            let (cell, work) = match self.translates {
                true => (Cell::new(format!("{size} sessions"), &[RATE, LOSS, NEW]), Work::Translate),
                false => (Cell::new(format!("{size} prefixes"), &[RATE, LOSS]), Work::Route(size)),
            };
            rounds(&mut scenario, cell.peers(&names), "flows", |turn| {
                let peer =
                    self.peers.iter().find(|known| known.name() == turn.peer).context("no such peer")?;
                let switch = peer.start(turn.dir, plan.switch_cpu, work)?;
                let measured =
                    flows::measure(&switch, turn.dir, plan.generator_cpu, work, size, plan.seconds)?;
                let measured =
                    measured.only(if self.translates { &[RATE, LOSS, NEW] } else { &[RATE, LOSS] });
                Ok(Some(Run { switch: switch.commands.clone(), measured }))
            })?;
        }
        Ok(scenario)
    }
}
