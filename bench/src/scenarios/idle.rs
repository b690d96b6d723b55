//! `idle`: many guests and no traffic, and how fast the switch is there when a frame comes.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Benchmark, Entry};
use crate::flags::{Choices, Flag};
use crate::generators::{Load, bare_wake, wake};
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{CPU, LONGEST, LOSS, P50, P99, WAKE_UPS};
use crate::peers::{self, Setup, VhostPeer, VhostSwitch, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB for a DPDK switch. The guests' memory is ordinary.
const PAGES: u64 = 256;
/// The longest sleep that Open vSwitch's forwarding thread is allowed, in µs: its documentation's example.
const SLEEP_US: u32 = 500;

const PORTS: Flag = Flag { name: "ports", value: "N,…", about: "guests that rest", default: "100" };

pub(super) const ENTRY: Entry = Entry {
    name: "idle",
    about: "guests that rest: processor time, wake-ups, and the first frame's latency",
    peers: || Peer::ALL.map(Peer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[PORTS],
    prepare,
};

/// A switch, and how it spends its time without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Weft,
    /// As it comes: its thread polls for ever.
    Ovs,
    /// With `pmd-maxsleep`.
    OvsSleep,
    /// No switch: a thread that sleeps, and an event.
    BareWake,
}

impl Peer {
    const ALL: [Peer; 4] = [Peer::Weft, Peer::Ovs, Peer::OvsSleep, Peer::BareWake];

    fn name(self) -> &'static str {
        match self {
            Peer::Weft => WEFT,
            Peer::Ovs => "ovs",
            Peer::OvsSleep => "ovs-maxsleep",
            Peer::BareWake => "bare-wake",
        }
    }

    fn is_ovs(self) -> bool {
        matches!(self, Peer::Ovs | Peer::OvsSleep)
    }

    /// Its process, if it is a switch.
    fn start(self, setup: &Setup<'_>) -> Result<Option<VhostSwitch>> {
        let switch = match self {
            Peer::Weft => VhostPeer::Weft.start(setup),
            Peer::Ovs => VhostPeer::Ovs.start(setup),
            Peer::OvsSleep => peers::ovs_that_sleeps(setup, SLEEP_US),
            Peer::BareWake => return Ok(None),
        };
        switch.map(Some)
    }
}

struct Idle {
    peers: Vec<Peer>,
    ports: Vec<usize>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(Idle {
        peers: choices.peers(&Peer::ALL, Peer::name),
        ports: choices.numbers(&PORTS, 2..=1000)?,
    }))
}

impl Benchmark for Idle {
    fn programs(&self) -> Vec<Program> {
        let ovs = self.peers.iter().any(|peer| peer.is_ovs());
        std::iter::once(machine::IP).chain(ovs.then_some(machine::OVS)).collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (self.peers.len() * self.ports.len(), 16.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if plan.switch_cpu == plan.generator_cpu {
            bail!("the frame's receiver is polled: the switch needs another processor");
        }
        let _pages = Hugepages::reserve(if self.peers.iter().any(|peer| peer.is_ovs()) { PAGES } else { 0 })?;
        let about = format!(
            "Guests on vhost-user ports whose drivers are ready and that send nothing; one forwarding thread on CPU {}. Of\n\
             that thread: its processor time, and how often it was given the processor. Then 1,000 frames from one guest to\n\
             another, each after a pause of 5 to 6 ms: the time from before the sender writes its ring and notifies the switch\n\
             until the receiver, which polls on CPU {}, has the frame. `weft`: a network of mode bridge, adaptive polling, its\n\
             defaults; `ovs`: Open vSwitch with DPDK as it comes, whose thread polls for ever; `ovs-maxsleep`: the same with\n\
             `pmd-maxsleep={SLEEP_US}`. `bare-wake` is no switch: a thread that sleeps on CPU {}, the event that wakes it, and the\n\
             time until it runs, which is what this machine takes of every switch that sleeps.",
            plan.switch_cpu, plan.generator_cpu, plan.switch_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        let base = Load::new(Path::new(""), plan.generator_cpu, plan.seconds);
        for &ports in &self.ports {
            let measures = [P99, P50, LONGEST, CPU, WAKE_UPS, LOSS];
            let cell = Cell::new(format!("{ports} ports"), &measures).peers(&names);
            rounds(&mut scenario, cell, "rest", |turn| {
                let Some(peer) = self.peers.iter().find(|known| known.name() == turn.peer) else {
                    bail!("no such peer");
                };
                let switch = peer.start(&Setup { ports, ..Setup::pair(turn.dir, plan.switch_cpu) })?;
                let load = Load { dir: turn.dir, ..base };
                let Some(switch) = switch else {
                    let measured = bare_wake::measure(plan.switch_cpu, &load)?;
                    return Ok(Some(Run { switch: Vec::new(), measured }));
                };
                let measured = wake::measure(&switch, &load)?;
                Ok(Some(Run { switch: switch.commands, measured }))
            })?;
        }
        Ok(scenario)
    }
}
