//! `v2t`: a vhost-user port and a tap, frames each way.

use anyhow::{Result, bail};

use super::{Benchmark, Entry};
use crate::flags::{Choices, Flag};
use crate::generators::frames::Stream;
use crate::guard::Hugepages;
use crate::machine::{self, Program};
use crate::measures::{LOSS, RATE};
use crate::peers::{MixedPeer, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB: 512 MiB for DPDK, and the generator's guest.
const PAGES: u64 = 256 + 32;

const SIZES: Flag = Flag {
    name: "sizes",
    value: "BYTES,…",
    about: "lengths of frames, 60 to 1514, without check sequence",
    default: "64,1514",
};

pub(super) const ENTRY: Entry = Entry {
    name: "v2t",
    about: "a vhost-user port and a tap, frames each way",
    peers: || MixedPeer::ALL.map(MixedPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[SIZES],
    prepare,
};

struct V2t {
    peers: Vec<MixedPeer>,
    /// Lengths of frames.
    sizes: Vec<u16>,
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(V2t {
        peers: choices.peers(&MixedPeer::ALL, MixedPeer::name),
        sizes: choices.numbers(&SIZES, 60..=1514)?,
    }))
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToTap,
    ToGuest,
}

impl Benchmark for V2t {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        std::iter::once(&machine::IP).chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (2 * self.sizes.len() * self.peers.len(), 5.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        let _pages = Hugepages::reserve(PAGES)?;
        let about = format!(
            "A vhost-user port and a tap whose interface is in a network namespace; frames one way at a time. The generator is\n\
             one thread on CPU {}: it is the guest, and it sends at the tap's interface through a packet socket. To the tap it\n\
             fills its ring as fast as the switch empties it, and the interface counts; to the guest it sends more than any\n\
             switch takes, and counts what comes to its ring. The switch's forwarding thread is on CPU {}. `weft`: a network of\n\
             mode bridge; `ovs`: Open vSwitch with DPDK, whose polling thread is on that processor and whose main thread, which\n\
             reads the tap, beside the generator, as these are all the processors; `ovs-tso`: with `userspace-tso-enable`.",
            plan.generator_cpu, plan.switch_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        for (way, told) in [(Way::ToTap, "to the tap"), (Way::ToGuest, "to the guest")] {
            for &size in &self.sizes {
                let cell = Cell::new(format!("{size} B, {told}"), &[RATE, LOSS]).peers(&names);
                rounds(&mut scenario, cell, &format!("frames, {told}"), |turn| {
                    let Some(peer) = self.peers.iter().find(|known| known.name() == turn.peer) else {
                        bail!("no such peer");
                    };
                    let switch = peer.start(turn.dir, plan.switch_cpu)?;
                    let stream =
                        Stream { dir: turn.dir, cpu: plan.generator_cpu, size, seconds: plan.seconds };
                    let measured = match way {
                        Way::ToTap => stream.guest_to_tap(&switch.socket, switch.tap())?,
                        Way::ToGuest => stream.tap_to_guest(switch.tap(), &switch.socket)?,
                    };
                    Ok(Some(Run { switch: switch.commands.clone(), measured }))
                })?;
            }
        }
        Ok(scenario)
    }
}
