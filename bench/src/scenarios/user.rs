//! `user`: a network namespace whose way outside is the host's own sockets, against pasta: TCP and UDP each way, and short
//! connections.

use anyhow::{Context, Result};

use super::{Benchmark, Entry};
use crate::flags::Choices;
use crate::generators::outward::{Buffers, Carrier, Way};
use crate::generators::{Measured, calls, outward};
use crate::machine::{self, Program};
use crate::measures::{CONNECTIONS, CPU_OF_BYTES, FAILED, LOSS, THROUGHPUT};
use crate::peers::{UserPeer, UserSwitch, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, Turn, rounds};

pub(super) const ENTRY: Entry = Entry {
    name: "user",
    about: "NAT by the host's own sockets: TCP and UDP each way, connections",
    peers: || UserPeer::ALL.map(UserPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[],
    prepare,
};

/// What a cell puts on a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Bytes(Carrier, Way),
    /// Short connections by so many callers at once.
    Calls(u16),
}

const LOADS: [Load; 8] = [
    Load::Bytes(Carrier::Tcp(1), Way::Up),
    Load::Bytes(Carrier::Tcp(1), Way::Down),
    Load::Bytes(Carrier::Tcp(8), Way::Up),
    Load::Bytes(Carrier::Tcp(8), Way::Down),
    Load::Bytes(Carrier::Udp, Way::Up),
    Load::Bytes(Carrier::Udp, Way::Down),
    Load::Calls(1),
    Load::Calls(16),
];

/// The socket buffers of TCP's ends, as tables call them.
const BUFFERS: [(Buffers, &str); 2] =
    [(Buffers::Kernels, "the kernel's"), (Buffers::PastasTests, "pasta's tests'")];

impl Load {
    fn name(self) -> String {
        let way = |way| match way {
            Way::Up => "up",
            Way::Down => "down",
        };
        match self {
            Load::Bytes(Carrier::Tcp(1), to) => format!("TCP {}, one connection", way(to)),
            Load::Bytes(Carrier::Tcp(streams), to) => format!("TCP {}, {streams} connections", way(to)),
            Load::Bytes(Carrier::Udp, to) => format!("UDP {}, datagrams of 1400 B", way(to)),
            Load::Calls(1) => "connections, one after the other".to_string(),
            Load::Calls(callers) => format!("connections, {callers} at once"),
        }
    }

    fn cell(self, peers: &[&str]) -> Cell {
        let measures = match self {
            Load::Bytes(Carrier::Tcp(_), _) => &[THROUGHPUT, CPU_OF_BYTES],
            Load::Bytes(Carrier::Udp, _) => &[THROUGHPUT, LOSS],
            Load::Calls(_) => &[CONNECTIONS, FAILED],
        };
        let cell = Cell::new(self.name(), measures);
        match self {
            Load::Bytes(Carrier::Tcp(_), _) => {
                let variants = BUFFERS.map(|(_, name)| (name.to_string(), None));
                cell.variants("socket buffers", &variants, peers)
            }
            _ => cell.peers(peers),
        }
    }

    fn put(self, switch: &UserSwitch, turn: &Turn<'_>, seconds: u64) -> Result<Measured> {
        match self {
            Load::Bytes(carrier, way) => {
                let found = BUFFERS.iter().find(|(_, name)| *name == turn.variant);
                let buffers = found.map_or(Buffers::Kernels, |(buffers, _)| *buffers);
                outward::measure(switch, turn.dir, carrier, way, buffers, seconds)
            }
            Load::Calls(callers) => calls::measure(switch, turn.dir, callers, seconds),
        }
    }
}

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(User { peers: choices.peers(&UserPeer::ALL, UserPeer::name) }))
}

struct User {
    peers: Vec<UserPeer>,
}

impl Benchmark for User {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        [machine::IPERF3, machine::IP].iter().chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        let runs = LOADS.iter().map(|load| match load {
            Load::Bytes(Carrier::Tcp(_), _) => BUFFERS.len(),
            _ => 1,
        });
        (runs.sum::<usize>() * self.peers.len(), 3.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        let about = format!(
            "A guest, which is a network namespace with an interface of the switch's, and a host, which is another, with the\n\
             switch and the servers: all that leaves the guest goes through sockets of the switch's to the host's loopback, at\n\
             the gateway's address. The switch forwards on CPU {}; clients and servers run where the scheduler puts them, so on\n\
             a machine with two CPUs one of them shares that one, for every switch alike, and iperf3 may be the limit. TCP and\n\
             UDP by iperf3, counted by the receiver; `up` is from the guest. TCP runs with\n\
             socket buffers as the kernel has them, and as pasta's own tests of its throughput have them: larger by `sysctl` in\n\
             the guest, no timestamps, a window of 4 MB, or of 512 KB for `pasta-1500`, as more than a tap's queue takes is lost,\n\
             and pasta knows no selective acknowledgment (its tests have 8 MB with its own MTU, which needs more than the\n\
             kernel's `net.core.wmem_max`). Processor time is that of the switch's process,\n\
             all threads, in user and kernel mode, over the whole run, divided by the payload of the whole run in units of 10^9\n\
             bytes; what the kernel does for loopback it does in the time of who sends. A short connection is opened, sends 64\n\
             bytes, gets 64 and is closed by the client; servers listen at 64 ports in turn, each with 28,000 numbers for the\n\
             client's port, so that numbers that rest after use are no limit. `weft`: a network of mode nat with\n\
             `egress=user`, `host-loopback=on` and a tap port, MTU 1500, segments of up to 64 KB; `pasta`: with the MTU that it\n\
             chooses, 65,520; `pasta-1500`: with MTU 1500.",
            plan.switch_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        for load in LOADS {
            rounds(&mut scenario, load.cell(&names), &load.name(), |turn| {
                let peer = self.peers.iter().find(|known| known.name() == turn.peer);
                let switch = peer.context("no such peer")?.start(turn.dir, plan.switch_cpu)?;
                let measured = load.put(&switch, turn, plan.seconds)?;
                let mut commands = switch.commands.clone();
                if !turn.variant.is_empty() {
                    // Generators are listed by load, and this is of the variant.
                    commands.extend(measured.commands.iter().cloned());
                }
                Ok(Some(Run { switch: commands, measured }))
            })?;
        }
        Ok(scenario)
    }
}
