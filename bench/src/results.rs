//! What was measured: for each cell (one load) the runs of each peer, round by round. Serialized as it is for reports.
#![allow(dead_code, reason = "for scenarios of which each uses a part")]

use std::collections::BTreeMap;

use serde::Serialize;

use crate::generators::Measured;
use crate::machine::Machine;
use crate::measures::{Better, Measure};
use crate::peers::WEFT;
use crate::statistics::{Summary, ratios};

/// A peer at or above this part of what the generator showed to be able to do may be held up by the generator.
pub(crate) const LIMITED: f64 = 0.9;
/// Where other programs took more than this part of the processors, a rate says little.
pub(crate) const DISTURBED: f64 = 0.05;

/// One measure of one peer's runs.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Values {
    /// Of each round; `null` for one that failed, or in which this was not measured.
    pub(crate) rounds: Vec<Option<f64>>,
    /// Of them.
    pub(crate) summary: Option<Summary>,
    /// Weft's value beside this peer's, of each round in which both have one: above 1 weft is the better. Where more is
    /// better that is weft ÷ peer, else peer ÷ weft.
    pub(crate) ratios: Vec<f64>,
    /// Of them.
    pub(crate) ratio: Option<Summary>,
    /// This variant ÷ the peer's own first variant, of each round in which both have a value.
    pub(crate) of_base: Vec<f64>,
    /// Of them.
    pub(crate) of_base_summary: Option<Summary>,
}

/// The runs of one peer, or of one variant of a peer, in a cell.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Runs {
    /// The peer's name.
    pub(crate) peer: String,
    /// Which of the cell's variants; empty in a cell without.
    pub(crate) variant: String,
    /// The variant as a number, for a plot.
    pub(crate) at: Option<f64>,
    /// By the names of the cell's measures.
    pub(crate) values: BTreeMap<&'static str, Values>,
    /// Runs that failed, of all rounds.
    pub(crate) failed: usize,
    /// The part of the generator's ceiling that it reaches, of the cell's first measure.
    pub(crate) of_ceiling: Option<Summary>,
    /// Of what other programs took of the processors, as in [`Measured::disturbed`]: a good measurement has none of it.
    pub(crate) disturbed: Option<Summary>,
    /// Of the searches for the highest rate without loss: in how many the generator could not offer more than was found,
    /// so that the switch may do better. `null` where nothing was searched.
    pub(crate) generator_limit: Option<usize>,
    #[serde(skip)]
    waits: Vec<f64>,
}

/// One load, put on every peer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    /// What distinguishes it, in words.
    pub(crate) name: String,
    /// What is measured. Of the first, ratios are told.
    pub(crate) measures: Vec<Measure>,
    /// What the variants vary, as an axis of a plot is labelled; empty without variants.
    pub(crate) parameter: &'static str,
    /// What has a run of its own in each round, every peer's first before the second begins.
    pub(crate) phases: Vec<&'static str>,
    /// The peer that does the least that can be done, if one does: it shows how far the generator gets.
    pub(crate) ceiling: Option<&'static str>,
    /// In the order in which they ran.
    pub(crate) runs: Vec<Runs>,
    /// What a reader should know.
    pub(crate) remarks: Vec<String>,
}

impl Cell {
    /// A cell without peers. `measures` begins with the one that ratios are told of.
    pub(crate) fn new(name: impl Into<String>, measures: &[Measure]) -> Self {
        Cell {
            name: name.into(),
            measures: measures.to_vec(),
            parameter: "",
            phases: vec![""],
            ceiling: None,
            runs: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Each of these once in a round.
    pub(crate) fn peers(mut self, peers: &[&str]) -> Self {
        for peer in peers {
            self = self.variant(peer, "", None);
        }
        self
    }

    /// Each of `peers` in each of `variants` once in a round; the first variant is what the others are compared with.
    /// A variant is a name and, for a plot over `parameter`, its number.
    pub(crate) fn variants(
        mut self,
        parameter: &'static str,
        variants: &[(String, Option<f64>)],
        peers: &[&str],
    ) -> Self {
        self.parameter = parameter;
        for (variant, at) in variants {
            for peer in peers {
                self = self.variant(peer, variant, *at);
            }
        }
        self
    }

    /// One peer in one variant: for cells in which not every peer has every variant.
    pub(crate) fn variant(mut self, peer: &str, variant: &str, at: Option<f64>) -> Self {
        self.runs.push(Runs { peer: peer.into(), variant: variant.into(), at, ..Runs::default() });
        self
    }

    /// Several runs in each round, which may look at what the ones before measured.
    pub(crate) fn phases(mut self, phases: &[&'static str]) -> Self {
        self.phases = phases.to_vec();
        self
    }

    /// Which peer shows how far the generator gets, if it is there.
    pub(crate) fn ceiling(mut self, peer: &'static str) -> Self {
        self.ceiling = Some(peer);
        self
    }

    /// The measure that ratios are told of.
    pub(crate) fn first(&self) -> Option<&Measure> {
        self.measures.first()
    }

    /// Begins a round: nobody has a value in it.
    pub(crate) fn begin_round(&mut self) {
        for runs in &mut self.runs {
            for measure in &self.measures {
                runs.values.entry(measure.name).or_default().rounds.push(None);
            }
        }
    }

    /// Notes what run number `index` of this round measured; what the cell has no measure for is left out.
    pub(crate) fn note(&mut self, index: usize, measured: Option<&Measured>) {
        let Some(runs) = self.runs.get_mut(index) else { return };
        let Some(measured) = measured else {
            runs.failed += 1;
            return;
        };
        for (name, values) in &mut runs.values {
            if let (Some(value), Some(last)) = (measured.values.get(*name), values.rounds.last_mut()) {
                *last = Some(*value);
            }
        }
        runs.waits.extend(measured.disturbed);
        if let Some(limit) = measured.generator_limit {
            *runs.generator_limit.get_or_insert(0) += usize::from(limit);
        }
    }

    /// The lowest value that any peer but the ceiling has of `measure` in this round.
    pub(crate) fn lowest(&self, measure: &Measure) -> Option<f64> {
        let peers = self.runs.iter().filter(|runs| Some(runs.peer.as_str()) != self.ceiling);
        peers.filter_map(|runs| *runs.values.get(measure.name)?.rounds.last()?).reduce(f64::min)
    }

    fn rounds_of(&self, peer: &str, variant: &str, measure: &Measure) -> Vec<Option<f64>> {
        let mut runs = self.runs.iter().filter(|runs| runs.peer == peer && runs.variant == variant);
        runs.next()
            .and_then(|runs| runs.values.get(measure.name))
            .map(|v| v.rounds.clone())
            .unwrap_or_default()
    }

    /// Computes summaries and ratios of what was noted.
    pub(crate) fn sum_up(&mut self) {
        let whole = self.clone();
        for runs in &mut self.runs {
            let base = whole.runs.iter().find(|other| other.peer == runs.peer);
            let base = base.filter(|base| base.variant != runs.variant);
            for measure in &whole.measures {
                let Some(values) = runs.values.get_mut(measure.name) else { continue };
                let present: Vec<f64> = values.rounds.iter().flatten().copied().collect();
                values.summary = Summary::of(&present);
                if runs.peer != WEFT {
                    let ours = whole.rounds_of(WEFT, &runs.variant, measure);
                    values.ratios = match measure.better {
                        Better::More => ratios(&ours, &values.rounds),
                        Better::Less => ratios(&values.rounds, &ours),
                    };
                    values.ratio = Summary::of(&values.ratios);
                }
                if let Some(base) = base {
                    values.of_base =
                        ratios(&values.rounds, &whole.rounds_of(&base.peer, &base.variant, measure));
                    values.of_base_summary = Summary::of(&values.of_base);
                }
            }
            runs.disturbed = Summary::of(&runs.waits);
            if let (Some(ceiling), Some(measure)) = (whole.ceiling, whole.measures.first())
                && runs.peer != ceiling
                && let Some(values) = runs.values.get(measure.name)
            {
                let ceiling = whole.rounds_of(ceiling, &runs.variant, measure);
                runs.of_ceiling = Summary::of(&ratios(&values.rounds, &ceiling));
            }
        }
    }

    /// Whether every peer had at least one run that measured what the cell is about.
    pub(crate) fn complete(&self) -> bool {
        let Some(first) = self.first() else { return false };
        let measured =
            |runs: &Runs| runs.values.get(first.name).is_some_and(|values| values.summary.is_some());
        self.runs.iter().all(measured)
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
    /// What a reader should know.
    pub(crate) remarks: Vec<String>,
}

/// A scenario's results with what they were measured on: what a report is made of.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    /// Where and with what.
    pub(crate) machine: Machine,
    /// The command line.
    pub(crate) command: String,
    /// What was measured.
    #[serde(flatten)]
    pub(crate) scenario: Scenario,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::{LOSS, P99, RATE};

    fn measured(rate: f64) -> Measured {
        Measured::new().with(&RATE, rate).with(&LOSS, 0.25)
    }

    fn median(values: &Values) -> f64 {
        values.summary.expect("values").median
    }

    #[test]
    fn a_cell_sums_up_what_its_rounds_noted() {
        let mut cell = Cell::new("cell", &[RATE, LOSS]).peers(&[WEFT, "peer", "broken"]).ceiling("peer");
        for (ours, theirs) in [(12.0, 10.0), (24.0, 20.0), (9.0, 10.0)] {
            cell.begin_round();
            cell.note(0, Some(&measured(ours)));
            cell.note(1, Some(&measured(theirs)));
            cell.note(2, None);
        }
        cell.sum_up();
        let [ours, theirs, broken] = cell.runs.as_slice() else { panic!("three peers") };
        assert_eq!((median(&ours.values["rate"]), median(&ours.values["loss"])), (12.0, 0.25));
        assert_eq!(ours.values["rate"].ratio, None, "nobody is compared with itself");
        assert_eq!(theirs.values["rate"].ratio.expect("ratios").median, 1.2);
        assert_eq!(ours.of_ceiling.expect("a ceiling").median, 1.2);
        assert_eq!(theirs.of_ceiling, None, "the ceiling is not held up by itself");
        assert_eq!((broken.values["rate"].summary, broken.failed), (None, 3));
        assert!(!cell.complete());
    }

    #[test]
    fn a_round_that_failed_is_left_out_and_shifts_no_other() {
        let mut cell = Cell::new("cell", &[RATE]).peers(&[WEFT, "peer"]);
        for (ours, theirs) in [(Some(2.0), Some(1.0)), (None, Some(9.0)), (Some(8.0), Some(2.0))] {
            cell.begin_round();
            cell.note(0, ours.map(measured).as_ref());
            cell.note(1, theirs.map(measured).as_ref());
        }
        cell.sum_up();
        assert_eq!(cell.runs[1].values["rate"].ratios, [2.0, 4.0]);
        assert_eq!(cell.runs[0].values["rate"].rounds, [Some(2.0), None, Some(8.0)]);
        assert!(cell.complete());
    }

    #[test]
    fn where_less_is_better_the_ratio_is_the_other_way_round() {
        let mut cell = Cell::new("cell", &[P99]).peers(&[WEFT, "peer"]);
        cell.begin_round();
        cell.note(0, Some(&Measured::new().with(&P99, 10.0)));
        cell.note(1, Some(&Measured::new().with(&P99, 30.0)));
        cell.sum_up();
        assert_eq!(cell.runs[1].values["latency p99"].ratios, [3.0]);
    }

    #[test]
    fn variants_are_compared_with_the_first_of_the_same_peer_and_peers_in_the_same_variant() {
        let variants = [("2".to_string(), Some(2.0)), ("1000".to_string(), Some(1000.0))];
        let mut cell = Cell::new("cell", &[RATE]).variants("ports", &variants, &[WEFT, "peer"]);
        cell = cell.variant(WEFT, "2000", Some(2000.0));
        for round in [1.0, 2.0] {
            cell.begin_round();
            for (index, rate) in [20.0, 10.0, 18.0, 4.0, 15.0].iter().enumerate() {
                cell.note(index, Some(&measured(rate * round)));
            }
        }
        cell.sum_up();
        let of_base: Vec<Option<f64>> =
            cell.runs.iter().map(|runs| runs.values["rate"].of_base_summary.map(|s| s.median)).collect();
        assert_eq!(of_base, [None, None, Some(0.9), Some(0.4), Some(0.75)]);
        let ratio: Vec<Option<f64>> =
            cell.runs.iter().map(|runs| runs.values["rate"].ratio.map(|s| s.median)).collect();
        assert_eq!(ratio, [None, Some(2.0), None, Some(4.5), None]);
    }

    #[test]
    fn a_later_phase_sees_and_adds_to_what_its_round_has() {
        let mut cell = Cell::new("cell", &[RATE, P99]).peers(&[WEFT, "peer", "bare"]).ceiling("bare");
        cell.begin_round();
        for (index, rate) in [9.0, 7.0, 5.0].iter().enumerate() {
            cell.note(index, Some(&Measured::new().with(&RATE, *rate)));
        }
        assert_eq!(cell.lowest(&RATE), Some(7.0), "the ceiling is no switch");
        for limit in [true, false, true] {
            cell.note(1, Some(&Measured { generator_limit: Some(limit), ..Measured::new() }));
        }
        assert_eq!((cell.runs[0].generator_limit, cell.runs[1].generator_limit), (None, Some(2)));
        cell.note(0, Some(&Measured::new().with(&P99, 3.0)));
        cell.sum_up();
        assert_eq!(median(&cell.runs[0].values["rate"]), 9.0);
        assert_eq!(median(&cell.runs[0].values["latency p99"]), 3.0);
        cell.begin_round();
        assert_eq!(cell.lowest(&RATE), None, "a new round has no value yet");
    }
}
