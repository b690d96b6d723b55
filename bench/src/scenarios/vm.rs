//! `vm`: two real Linux guests of QEMU's, TCP and questions between them.

use anyhow::{Context, Result, bail};
use harness::{Guest, GuestOptions};

use super::{Benchmark, Entry};
use crate::flags::Choices;
use crate::generators::{Measured, iperf};
use crate::guard::{Hugepages, interrupt};
use crate::machine::{self, Program};
use crate::measures::{ROUND_TRIPS, THROUGHPUT};
use crate::peers::{ADDRESSES, GuestPeer, GuestSwitch, INTERFACES, WEFT};
use crate::results::{Cell, Scenario};
use crate::rounds::{Plan, Run, rounds};

/// Huge pages of 2 MiB, for DPDK.
const PAGES: u64 = 256;
/// Seconds that a run measures at most: everything here is emulated, and more says no more.
const SECONDS_MAX: u64 = 3;
const MACS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];
/// How often the path is tried before it is given up.
const ATTEMPTS: u32 = 5;

pub(super) const ENTRY: Entry = Entry {
    name: "vm",
    about: "two Linux guests under QEMU's emulation: TCP, questions and answers",
    peers: || GuestPeer::ALL.map(GuestPeer::name).into_iter().filter(|name| *name != WEFT).collect(),
    flags: &[],
    prepare,
};

fn prepare(choices: &Choices) -> Result<Box<dyn Benchmark>> {
    Ok(Box::new(Vm { peers: choices.peers(&GuestPeer::ALL, GuestPeer::name) }))
}

struct Vm {
    peers: Vec<GuestPeer>,
}

/// What the guests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Tcp,
    Questions,
}

impl Benchmark for Vm {
    fn programs(&self) -> Vec<Program> {
        let peers = self.peers.iter().flat_map(|peer| peer.programs());
        [machine::IP, machine::QEMU, machine::IPERF3].iter().chain(peers).copied().collect()
    }

    fn runs(&self, _: &Plan) -> (usize, f64) {
        (2 * self.peers.len(), 9.0)
    }

    fn run(&self, plan: &Plan) -> Result<Scenario> {
        let _pages = Hugepages::reserve(PAGES)?;
        let about = format!(
            "Two Linux guests under QEMU's software emulation (TCG), one CPU and 256 MB each, as `cargo xtask guest-image` makes\n\
             them. They run where the scheduler puts them, with the switch on the same processors: what is measured is as much\n\
             what a switch leaves to the guests as what it carries. TCP is iperf3 from one guest to the other; a question is an\n\
             ICMP echo (busybox `ping -A`: the next one as soon as the last is answered). `weft`: two vhost-user ports, the\n\
             worker on CPU {cpu}; `weft-busy`: the same with a worker that never sleeps (`--poll busy`); `ovs`: Open vSwitch with DPDK, two vhost-user ports, its polling thread on CPU {cpu},\n\
             without its segmentation offload, with which it drops these guests' TCP;\n\
             `qemu-bridge`: QEMU itself moves frames between the guest and a tap (`vhost=off`), the kernel's bridge between taps.",
            cpu = plan.switch_cpu
        );
        let mut scenario = plan.scenario(ENTRY.name, about);
        let seconds = plan.seconds.min(SECONDS_MAX);
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name()).collect();
        let loads = [
            (Load::Tcp, "TCP, one connection", THROUGHPUT),
            (Load::Questions, "one question at a time", ROUND_TRIPS),
        ];
        for (load, name, measure) in loads {
            rounds(&mut scenario, Cell::new(name, &[measure]).peers(&names), name, |turn| {
                let Some(peer) = self.peers.iter().find(|known| known.name() == turn.peer) else {
                    bail!("no such peer");
                };
                let mut switch = peer.start(turn.dir, plan.switch_cpu)?;
                let mut guests = plug(&mut switch)?;
                let measured = match load {
                    Load::Tcp => tcp(&mut guests, seconds)?,
                    Load::Questions => questions(&mut guests, seconds)?,
                };
                // Guests first: a front-end that is gone is no error of the switch's.
                drop(guests);
                Ok(Some(Run { switch: switch.commands(), measured }))
            })?;
        }
        Ok(scenario)
    }
}

/// Boots two guests on the switch, gives them addresses, and waits until they reach each other.
fn plug(switch: &mut GuestSwitch) -> Result<[Guest; 2]> {
    let options = GuestOptions::default();
    let boot = |number: usize| match &*switch {
        GuestSwitch::Sockets(switch) => Guest::boot(&switch.sockets[number], MACS[number], &options),
        GuestSwitch::Bridge { netns, .. } => {
            Guest::boot_on_tap(netns.name(), INTERFACES[number], MACS[number], &options)
        }
    };
    let mut guests = [boot(0)?, boot(1)?];
    for ((guest, interface), address) in guests.iter_mut().zip(INTERFACES).zip(ADDRESSES) {
        interrupt::check()?;
        guest.ready()?;
        switch.join(interface)?;
        guest.run(&format!("ip address add {address} dev eth0"))?;
    }
    let reach = format!("ping -q -c 1 -W 2 {}", plain(ADDRESSES[1]));
    for attempt in 1.. {
        interrupt::check()?;
        match guests[0].run(&reach) {
            Ok(_) => break,
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => {}
        }
    }
    Ok(guests)
}

fn plain(address: &str) -> &str {
    address.split('/').next().unwrap_or_default()
}

fn tcp(guests: &mut [Guest; 2], seconds: u64) -> Result<Measured> {
    guests[1].run("iperf3 --server --daemon && sleep 0.2")?;
    let line = format!("iperf3 --client {} --time {seconds} --omit 1 --json", plain(ADDRESSES[1]));
    let text = guests[0].run(&line)?;
    Ok(Measured::new().with(&THROUGHPUT, iperf::received(&text)?).by(line))
}

fn questions(guests: &mut [Guest; 2], seconds: u64) -> Result<Measured> {
    let line = format!("ping -A -q -w {seconds} {}", plain(ADDRESSES[1]));
    let text = guests[0].run(&line)?;
    let answers = answered(&text).with_context(|| format!("ping printed {text}"))?;
    Ok(Measured::new().with(&ROUND_TRIPS, answers as f64 / seconds as f64).by(line))
}

/// How many answers busybox's `ping` says it got.
fn answered(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("packets transmitted"))?;
    let part = line.split(',').find(|part| part.contains("packets received"))?;
    part.split_whitespace().next()?.parse().ok().filter(|answers| *answers > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_and_none_is_a_failure() {
        let text = "--- 10.99.0.2 ping statistics ---\n4210 packets transmitted, 4209 packets received, 0% packet loss\n";
        assert_eq!(answered(text), Some(4209));
        assert_eq!(answered("3 packets transmitted, 0 packets received, 100% packet loss"), None);
        assert_eq!(answered("ping: bad address"), None);
    }
}
