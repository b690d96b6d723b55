//! The scenarios: each in a file (or folder) of its own, and the table of them, which is all that the rest knows.

mod flood;
mod hostile;
mod idle;
mod netdev;
mod ports;
mod routers;
mod scale_macs;
mod tap;
mod user;
mod v2t;
mod v2v;
mod v2v_chain;
mod v2v_rings;
mod vm;

use anyhow::Result;

use crate::flags::{Choices, Flag};
use crate::machine::Program;
use crate::peers::{VhostPeer, WEFT};
use crate::results::Scenario;
use crate::rounds::Plan;

/// What the table says of a scenario.
pub(crate) struct Entry {
    /// Its name on the command line and of its report.
    pub(crate) name: &'static str,
    /// One line for the listing.
    pub(crate) about: &'static str,
    /// The peers beside ours.
    pub(crate) peers: fn() -> Vec<&'static str>,
    /// The flags that are its own.
    pub(crate) flags: &'static [Flag],
    /// Parses its flags.
    pub(crate) prepare: fn(&Choices) -> Result<Box<dyn Benchmark>>,
}

/// A scenario with its options.
pub(crate) trait Benchmark {
    /// What has to be installed.
    fn programs(&self) -> Vec<Program>;

    /// How many runs a round has, all cells together, and how many seconds a run takes beside those that are measured:
    /// for the listing's estimate.
    fn runs(&self, plan: &Plan) -> (usize, f64);

    /// Runs it.
    ///
    /// # Errors
    /// It cannot begin, or was interrupted; a run that fails is told, and the others go on.
    fn run(&self, plan: &Plan) -> Result<Scenario>;
}

/// All, in the order in which `all` runs them.
pub(crate) const ALL: &[Entry] = &[
    v2v::ENTRY,
    v2v_rings::ENTRY,
    v2v_chain::ENTRY,
    tap::ENTRY,
    v2t::ENTRY,
    netdev::ENTRY,
    vm::ENTRY,
    flood::ENTRY,
    ports::ENTRY,
    scale_macs::ENTRY,
    idle::ENTRY,
    hostile::ENTRY,
    routers::NAT,
    routers::ROUTED,
    user::ENTRY,
];

/// The names of peers beside ours.
fn peer_names(all: &[VhostPeer]) -> Vec<&'static str> {
    all.iter().map(|peer| peer.name()).filter(|name| *name != WEFT).collect()
}
