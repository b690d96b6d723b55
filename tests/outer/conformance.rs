//! What a network behind address translation does on the wire, requirement by requirement: RFC 4787, 5382, 5508, 6888
//! and 7857, the rules of ICMP errors, DHCP and router advertisements. `docs/conformance.md` has the table, also of
//! what only a virtual clock can show.

mod filtering;
mod fragments;
mod hosts;
mod icmp;
mod mapping;
mod packets;
mod rig;
mod tcp;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use harness::{Need, Suite};
use rig::Rig;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Scapy];

/// A test, by its name.
type Test = (&'static str, fn(&mut Rig) -> Result<()>);

/// The tests of a module: functions, by their own names.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(super) const TESTS: &[super::Test] = &[$((stringify!($name), $name)),*];
    };
}
use tests;

pub(crate) fn register(suite: &mut Suite) {
    let rig = Arc::new(Mutex::new(None));
    let parts = [
        mapping::TESTS,
        filtering::TESTS,
        tcp::TESTS,
        icmp::TESTS,
        fragments::TESTS,
        packets::TESTS,
        hosts::TESTS,
    ];
    for &(name, test) in parts.iter().flat_map(|tests| tests.iter()) {
        let rig = Arc::clone(&rig);
        suite.add(format!("conformance::{name}"), NEEDS, move || run(&rig, test));
    }
}

/// Runs a test on the rig that all share; the last one's end is the rig's. A failed test takes the rig along, with its
/// logs, and the next one has another.
fn run(shared: &Mutex<Option<Rig>>, test: fn(&mut Rig) -> Result<()>) -> Result<()> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rig = match shared.take() {
        Some(rig) => rig,
        None => Rig::new()?,
    };
    test(&mut rig)?;
    *shared = Some(rig);
    Ok(())
}
