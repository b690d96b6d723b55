//! Scenarios of the frame path of which `cargo xtask guard` counts the instructions.
//!
//! `guard` prints the scenarios' names; `guard NAME` runs one and prints how many frames were counted. A scenario does a
//! fixed amount of work in this process, through the code that workers run: no daemon, no clock, no other traffic.
//! Only what happens in [`counted_by_callgrind`] is counted, so that setting up, and the guests' part, is not.

mod forwarders;
mod path;
mod rings;

use std::hint::black_box;
use std::process::ExitCode;

use anyhow::Result;

/// A scenario: returns the frames that were counted.
type Scenario = fn() -> Result<u64>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("ring-split-64", || rings::port_to_port(rings::Ring::Split, 64)),
    ("ring-split-1514", || rings::port_to_port(rings::Ring::Split, 1514)),
    ("ring-split-64k", || rings::port_to_port(rings::Ring::Split, 65_000)),
    ("ring-packed-64", || rings::port_to_port(rings::Ring::Packed, 64)),
    ("ring-packed-1514", || rings::port_to_port(rings::Ring::Packed, 1514)),
    ("ring-packed-in-order-64", || rings::port_to_port(rings::Ring::PackedInOrder, 64)),
    ("ring-packed-64k", || rings::port_to_port(rings::Ring::Packed, 65_000)),
    ("ring-switched-64", rings::switched),
    ("path-bridge", path::bridge),
    ("bridge-1", || forwarders::bridge_known(1)),
    ("bridge-64k", || forwarders::bridge_known(65_536)),
    ("bridge-learn", forwarders::bridge_learn),
    ("nat-hot", || forwarders::nat_hot(1_024)),
    ("routed-4k", || forwarders::routed(4_096)),
];

/// Does the work. This function's name is what callgrind is told to collect in.
#[inline(never)]
fn counted_by_callgrind(work: &mut dyn FnMut()) {
    work();
    // A call in the last place would be a jump, and the function left before its work begins.
    black_box(());
}

fn main() -> ExitCode {
    let Some(wanted) = std::env::args().nth(1) else {
        for (name, _) in SCENARIOS {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    };
    let Some((_, run)) = SCENARIOS.iter().find(|(name, _)| *name == wanted) else {
        eprintln!("guard: there is no scenario '{wanted}'");
        return ExitCode::FAILURE;
    };
    match run() {
        Ok(frames) => {
            println!("{frames}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("guard: {wanted}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
