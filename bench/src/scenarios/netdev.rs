//! `netdev`: TCP and small frames between two network namespaces on veth pairs, whose other ends are the switch's ports.

use anyhow::{Context, Result};

use super::tap::Load;
use super::{Benchmark, Entry};
use crate::flags::Choices;
use crate::machine::{self, Program};
use crate::peers::{NetdevPeer, WEFT};
use crate::results::Scenario;
use crate::rounds::Plan;

pub(super) const ENTRY: Entry = Entry {
    name: "netdev",
    about: "two veth pairs whose other ends are ports: TCP, 64 B frames",
    peers: || NetdevPeer::ALL.map(NetdevPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[],
    prepare,
};

const LOADS: [Load; 2] = [Load::Tcp, Load::Frames];

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(Netdev { peers: choices.peers(&NetdevPeer::ALL, NetdevPeer::name) }))
}

struct Netdev {
    peers: Vec<NetdevPeer>,
}

impl Benchmark for Netdev {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        [machine::IPERF3, machine::IP, machine::PING].iter().chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (LOADS.len() * self.peers.len(), 3.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        let about = format!(
            "Two network namespaces, each with one end of a veth pair, MTU 1500; the other ends are the switch's ports. A switch\n\
             that is a process forwards on CPU {}; the kernel's bridge forwards where the sender runs, and moves no bytes: it is\n\
             a reference, not a peer. iperf3 runs where the scheduler puts it; frames of 64 bytes are sent by one thread on CPU\n\
             {} and counted by the receiving interface, as in `tap`. `weft`: a network of mode bridge with two netdev ports\n\
             (`AF_PACKET` with virtio headers); `ovs`: Open vSwitch's userspace datapath, `AF_PACKET` too; `ovs-tso`: with\n\
             `userspace-tso-enable`; `ovs-afxdp`: by `AF_XDP`, with a thread that polls. For `ovs` and `ovs-afxdp` the ends fill\n\
             checksums in themselves (`ethtool -K … tx off`), as TCP does not pass otherwise.",
            plan.switch_cpu, plan.generator_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        for load in LOADS {
            load.measure(&mut scenario, &names, plan, |turn| {
                let peer = self.peers.iter().find(|known| known.name() == turn.peer);
                peer.context("no such peer")?.start(turn.dir, plan.switch_cpu)
            })?;
        }
        Ok(scenario)
    }
}
