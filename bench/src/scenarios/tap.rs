//! `tap`: TCP between two network namespaces, against the kernel's bridge, Open vSwitch and a bare loop.

use anyhow::{Result, bail};

use super::{Benchmark, Entry};
use crate::flags::Choices;
use crate::generators::iperf;
use crate::machine::{self, Program};
use crate::measures::THROUGHPUT;
use crate::peers::{TapPeer, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

pub(super) const ENTRY: Entry = Entry {
    name: "tap",
    about: "TCP between two network namespaces on taps",
    peers: || TapPeer::ALL.map(TapPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[],
    prepare,
};

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(Tap { peers: choices.peers(&TapPeer::ALL, TapPeer::name) }))
}

struct Tap {
    peers: Vec<TapPeer>,
}

impl Benchmark for Tap {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        [machine::IPERF3, machine::IP].iter().chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (self.peers.len(), 3.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if self.peers.contains(&TapPeer::Loop) {
            machine::build_example("datapath", "tap_loop")?;
        }
        let about = format!(
            "One TCP connection (iperf3) between two network namespaces, MTU 1500, segments of up to 64 KB where the switch\n\
             carries them. A switch that is a process forwards on CPU {}; the kernel's bridge forwards where the sender runs;\n\
             iperf3 runs where the scheduler puts it. `weft`: a network of mode bridge with two tap ports; `loop`: a loop that\n\
             reads from one tap and writes to the other, with virtio headers, and decides nothing; `bridge`: the kernel's, with\n\
             veth pairs; `ovs`: Open vSwitch's userspace datapath with two tap ports; `ovs-tso`: the same with\n\
             `userspace-tso-enable`, which its documentation calls experimental.",
            plan.switch_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        let cell = Cell::new("TCP, one connection", &[THROUGHPUT]).peers(&names);
        rounds(&mut scenario, cell, "iperf3", |turn| {
            let Some(peer) = self.peers.iter().find(|known| known.name() == turn.peer) else {
                bail!("no such peer");
            };
            let switch = peer.start(turn.dir, plan.switch_cpu)?;
            let measured = iperf::measure(&switch, turn.dir, plan.seconds)?;
            Ok(Some(Run { switch: switch.commands.clone(), measured }))
        })?;
        Ok(scenario)
    }
}
