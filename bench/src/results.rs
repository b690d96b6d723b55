//! What was measured: for each cell (one load) the runs of each peer, round by round. Serialized as it is for `--json`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::generators::Measured;
use crate::machine::Machine;
use crate::peers::WEFT;
use crate::statistics::{Summary, ratios};

/// A peer at or above this part of the highest rate that a generator showed may be held up by the generator.
pub(crate) const LIMITED: f64 = 0.9;
/// Where other programs took more than this part of the processors, a rate says little.
pub(crate) const DISTURBED: f64 = 0.05;

/// One peer's runs in a cell.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Runs {
    /// The peer's name.
    pub(crate) peer: String,
    /// The rate of each round; `null` for one that failed.
    pub(crate) rates: Vec<Option<f64>>,
    /// Of the rates.
    pub(crate) rate: Option<Summary>,
    /// Of the loss, where the generator offers more than the switch takes.
    pub(crate) loss: Option<Summary>,
    /// Weft's rate over this peer's, of each round in which both succeeded.
    pub(crate) ratios: Vec<f64>,
    /// Of them.
    pub(crate) ratio: Option<Summary>,
    /// Of what other programs took of the processors, as in [`Measured::disturbed`]: a good measurement has none of it.
    pub(crate) disturbed: Option<Summary>,
    #[serde(skip)]
    losses: Vec<f64>,
    #[serde(skip)]
    waits: Vec<f64>,
}

/// One load, put on every peer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    /// What distinguishes it, in words.
    pub(crate) name: String,
    /// What a rate is: `frames/s` or `bits/s`, at the receiver.
    pub(crate) unit: &'static str,
    /// In the order in which they ran.
    pub(crate) peers: Vec<Runs>,
}

impl Cell {
    /// An empty one.
    pub(crate) fn new(name: String, unit: &'static str, peers: &[&str]) -> Self {
        let runs = |peer: &&str| Runs { peer: peer.to_string(), ..Runs::default() };
        Cell { name, unit, peers: peers.iter().map(runs).collect() }
    }

    /// Notes one run of a peer.
    pub(crate) fn note(&mut self, peer: &str, measured: Option<&Measured>) {
        if let Some(runs) = self.peers.iter_mut().find(|runs| runs.peer == peer) {
            runs.rates.push(measured.map(|measured| measured.rate));
            runs.losses.extend(measured.and_then(|measured| measured.loss));
            runs.waits.extend(measured.and_then(|measured| measured.disturbed));
        }
    }

    /// Computes summaries and ratios of what was noted.
    pub(crate) fn sum_up(&mut self) {
        let ours = self.peers.iter().find(|runs| runs.peer == WEFT).map(|runs| runs.rates.clone());
        for runs in &mut self.peers {
            let rates: Vec<f64> = runs.rates.iter().flatten().copied().collect();
            runs.rate = Summary::of(&rates);
            runs.loss = Summary::of(&runs.losses);
            runs.disturbed = Summary::of(&runs.waits);
            if runs.peer != WEFT {
                runs.ratios = ratios(ours.as_deref().unwrap_or_default(), &runs.rates);
                runs.ratio = Summary::of(&runs.ratios);
            }
        }
    }

    /// The highest median rate in the cell, and whose it is: what the generator is known to be able to do.
    pub(crate) fn ceiling(&self) -> Option<(&str, f64)> {
        let medians =
            self.peers.iter().filter_map(|runs| Some((runs.peer.as_str(), runs.rate.as_ref()?.median)));
        medians.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Whether every peer had at least one run that succeeded.
    pub(crate) fn complete(&self) -> bool {
        self.peers.iter().all(|runs| runs.rate.is_some())
    }
}

/// One benchmark's results.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Scenario {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it does and what the switches are, in a paragraph.
    pub(crate) about: String,
    /// Rounds.
    pub(crate) pairs: usize,
    /// How long each run was measured.
    pub(crate) seconds: u64,
    /// By peer or generator: how it was started, with the directory of its files as `DIR`.
    pub(crate) commands: BTreeMap<String, Vec<String>>,
    /// What was measured.
    pub(crate) cells: Vec<Cell>,
}

/// A whole run of the benchmarks.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    /// Where and with what.
    pub(crate) machine: Machine,
    /// The command line.
    pub(crate) command: String,
    /// In the order in which they ran.
    pub(crate) scenarios: Vec<Scenario>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rate: f64) -> Measured {
        Measured { rate, loss: Some(0.25), ..Measured::default() }
    }

    #[test]
    fn a_cell_sums_up_what_its_rounds_noted() {
        let mut cell = Cell::new("cell".into(), "frames/s", &[WEFT, "peer", "broken"]);
        for (ours, theirs) in [(12.0, 10.0), (24.0, 20.0), (9.0, 10.0)] {
            cell.note(WEFT, Some(&measured(ours)));
            cell.note("peer", Some(&measured(theirs)));
            cell.note("broken", None);
        }
        cell.sum_up();
        assert_eq!(cell.peers[0].rate.expect("runs").median, 12.0);
        assert_eq!(cell.peers[0].loss.expect("runs").median, 0.25);
        assert_eq!(cell.peers[0].ratio, None, "nobody is compared with itself");
        assert_eq!(cell.peers[1].ratio.expect("ratios").median, 1.2);
        assert_eq!((cell.peers[2].rate, cell.peers[2].ratio), (None, None));
        assert!(!cell.complete());
        assert_eq!(cell.ceiling(), Some((WEFT, 12.0)));
    }
}
