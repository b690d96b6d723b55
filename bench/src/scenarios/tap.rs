//! `tap`: TCP and small frames between two network namespaces on taps, against the kernel's bridge, Open vSwitch, VDE and a
//! bare loop.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Benchmark, Entry};
use crate::flags::Choices;
use crate::generators::Measured;
use crate::generators::frames::Stream;
use crate::generators::iperf;
use crate::guard::{Line, interrupt, run};
use crate::machine::{self, Program};
use crate::measures::{LOSS, RATE, THROUGHPUT};
use crate::peers::{ADDRESSES, INTERFACES, TapPeer, TapSwitch, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, Turn, rounds};

pub(super) const ENTRY: Entry = Entry {
    name: "tap",
    about: "two network namespaces on taps: TCP with and without segmentation offload, 64 B frames",
    peers: || TapPeer::ALL.map(TapPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[],
    prepare,
};

const LIMIT: Duration = Duration::from_secs(20);
/// How often a path is tried before it is given up.
const ATTEMPTS: u32 = 10;

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(Tap { peers: choices.peers(&TapPeer::ALL, TapPeer::name) }))
}

struct Tap {
    peers: Vec<TapPeer>,
}

/// What a cell puts on a pair of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// One TCP connection, in segments of up to 64 KB as far as the interfaces take them.
    Tcp,
    /// One TCP connection whose segments the ends cut to the MTU.
    TcpCut,
    /// Frames of 64 bytes, as many as one thread can send, one way.
    Frames,
}

impl Load {
    pub(super) const ALL: [Load; 3] = [Load::Tcp, Load::TcpCut, Load::Frames];

    fn cell(self, peers: &[&str]) -> Cell {
        let (name, measures) = match self {
            Load::Tcp => ("TCP, one connection", &[THROUGHPUT][..]),
            Load::TcpCut => ("TCP without segmentation offload", &[THROUGHPUT][..]),
            Load::Frames => ("64 B frames, one way", &[RATE, LOSS][..]),
        };
        Cell::new(name, measures).peers(peers)
    }

    /// What drives it, where command lines are listed.
    fn generator(self) -> &'static str {
        match self {
            Load::Tcp => "iperf3",
            Load::TcpCut => "iperf3, segments cut",
            Load::Frames => "frames",
        }
    }

    /// Measures it in rounds, on the switches that `start` starts.
    ///
    /// # Errors
    /// It was interrupted.
    pub(super) fn measure(
        self,
        scenario: &mut Scenario,
        peers: &[&str],
        plan: &Plan,
        start: impl Fn(&Turn<'_>) -> Result<TapSwitch>,
    ) -> Result<()> {
        rounds(scenario, self.cell(peers), self.generator(), |turn| {
            let switch = start(turn)?;
            let measured = self.put(&switch, turn, plan)?;
            Ok(Some(Run { switch: switch.commands.clone(), measured }))
        })
    }

    /// Puts it on a switch.
    ///
    /// # Errors
    /// The generator fails, or nothing comes through.
    fn put(self, switch: &TapSwitch, turn: &Turn<'_>, plan: &Plan) -> Result<Measured> {
        let mut commands = Vec::new();
        if self == Load::TcpCut {
            for (end, interface) in switch.ends.iter().zip(INTERFACES) {
                let line = Line::new("ethtool").arg("-K").arg(interface).words("tso off gso off").netns(end);
                commands.push(line.to_string());
                run(&line, LIMIT)?;
            }
        }
        let mut measured = match self {
            Load::Tcp | Load::TcpCut => iperf::measure(switch, turn.dir, plan.seconds)?,
            Load::Frames => {
                meet(switch)?;
                let stream =
                    Stream { dir: turn.dir, cpu: plan.generator_cpu, size: 64, seconds: plan.seconds };
                let [from, to] = [0, 1].map(|end| (&switch.ends[end], INTERFACES[end]));
                stream.between(from, to)?
            }
        };
        commands.append(&mut measured.commands);
        measured.commands = commands;
        Ok(measured)
    }
}

/// Lets the two ends speak to each other, so that the switch knows where they are.
fn meet(switch: &TapSwitch) -> Result<()> {
    let address = ADDRESSES[0].split('/').next().unwrap_or_default();
    let line = Line::new("ping").words("-c 1 -W 1").arg(address).netns(&switch.ends[1]);
    let mut attempt = 1;
    while let Err(error) = run(&line, LIMIT) {
        if attempt == ATTEMPTS {
            return Err(error);
        }
        attempt += 1;
        interrupt::pause(Duration::from_millis(200))?;
    }
    Ok(())
}

impl Benchmark for Tap {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        [machine::IPERF3, machine::IP, machine::ETHTOOL, machine::PING].iter().chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (Load::ALL.len() * self.peers.len(), 3.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        if self.peers.contains(&TapPeer::Loop) {
            machine::build_example("datapath", "tap_loop")?;
        }
        let about = format!(
            "Two network namespaces, MTU 1500. A switch that is a process forwards on CPU {}; the kernel's bridge forwards\n\
             where the sender runs; iperf3 runs where the scheduler puts it, with segments of up to 64 KB where the switch\n\
             carries them, and once more with segments that the ends cut (`ethtool -K … tso off gso off`). The frames of 64\n\
             bytes are sent by one thread on CPU {}, through a packet socket in one namespace, more than any switch takes\n\
             (what is lost is told), and counted by the other namespace's interface. `weft`: a network of mode bridge with two\n\
             tap ports; `loop`: a loop that reads from one tap and writes to the other, with virtio headers, and decides\n\
             nothing; `bridge`: the kernel's, with veth pairs; `ovs`: Open vSwitch's userspace datapath with two tap ports;\n\
             `ovs-tso`: the same with `userspace-tso-enable`, which its documentation calls experimental; `vde`: VDE's\n\
             `vde_switch` with two taps.",
            plan.switch_cpu, plan.generator_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        for load in Load::ALL {
            load.measure(&mut scenario, &names, plan, |turn| {
                let peer = self.peers.iter().find(|known| known.name() == turn.peer);
                peer.context("no such peer")?.start(turn.dir, plan.switch_cpu)
            })?;
        }
        Ok(scenario)
    }
}
