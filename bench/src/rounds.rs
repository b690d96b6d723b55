//! What the scenarios have in common: rounds in which every switch has its turn, and a note of what was started.
#![allow(dead_code, reason = "for scenarios of which each uses a part")]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::generators::Measured;
use crate::guard::interrupt;
use crate::machine;
use crate::measures::Measure;
use crate::results::{Cell, Scenario};
use crate::table;

/// Of a list of commands, as many as are kept: a switch with a thousand ports is told a thousand times.
const LINES: usize = 24;

/// Of one command, as many characters are kept: a generator may have a thousand sockets.
const CHARACTERS: usize = 1000;

/// How to run a benchmark.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Rounds.
    pub(crate) pairs: usize,
    /// Seconds that are measured in each run.
    pub(crate) seconds: u64,
    /// The processor of the switch's forwarding thread.
    pub(crate) switch_cpu: usize,
    /// The processor of the generator, where it is one thread.
    pub(crate) generator_cpu: usize,
}

impl Plan {
    /// An empty scenario.
    pub(crate) fn scenario(&self, name: &'static str, about: String) -> Scenario {
        Scenario {
            name,
            about,
            pairs: self.pairs,
            seconds: self.seconds,
            commands: BTreeMap::new(),
            cells: Vec::new(),
            remarks: Vec::new(),
        }
    }
}

/// Whose turn it is.
pub(crate) struct Turn<'a> {
    pub(crate) peer: &'a str,
    /// Empty in a cell without variants.
    pub(crate) variant: &'a str,
    /// Which of the cell's phases, from 0.
    pub(crate) phase: usize,
    /// For this run's files; it goes afterwards.
    pub(crate) dir: &'a Path,
    cell: &'a Cell,
}

impl Turn<'_> {
    /// The lowest value of `measure` that any switch (not the ceiling) has so far in this round.
    pub(crate) fn lowest(&self, measure: &Measure) -> Option<f64> {
        self.cell.lowest(measure)
    }
}

/// One run: the peer's commands, and what was measured.
pub(crate) struct Run {
    /// How the switch was started.
    pub(crate) switch: Vec<String>,
    /// What the generator measured.
    pub(crate) measured: Measured,
}

/// Whose turn fails so often without having succeeded has no more: each failure may take as long as a switch may take to
/// start.
const ATTEMPTS: usize = 2;

/// Runs the rounds of one cell and prints it. `once` is one peer's turn, or `None` where that phase asks nothing of that
/// peer. A run that fails is told and left out; the others go on. `generator` is what the generator is called where its
/// command lines are listed.
///
/// # Errors
/// The benchmark was interrupted.
pub(crate) fn rounds(
    scenario: &mut Scenario,
    mut cell: Cell,
    generator: &str,
    mut once: impl FnMut(&Turn<'_>) -> Result<Option<Run>>,
) -> Result<()> {
    let measures = cell.measures.clone();
    // Of each phase and each peer: failures before the first success, which is `None`.
    let mut failures = vec![vec![Some(0); cell.runs.len()]; cell.phases.len()];
    for round in 1..=scenario.pairs {
        cell.begin_round();
        for (phase, failures) in failures.iter_mut().enumerate() {
            for (index, failures) in failures.iter_mut().enumerate() {
                interrupt::check()?;
                if *failures == Some(ATTEMPTS) {
                    continue;
                }
                let dir = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
                let busy = machine::busy()?;
                let (peer, variant) = (cell.runs[index].peer.clone(), cell.runs[index].variant.clone());
                let phase_name = cell.phases[phase];
                let turn = Turn { peer: &peer, variant: &variant, phase, dir: dir.path(), cell: &cell };
                let run = once(&turn);
                interrupt::check()?;
                let who = words(&[&peer, &variant, phase_name]);
                let told = format!("{} {}, round {round}, {who}", scenario.name, cell.name);
                match run {
                    Ok(None) => {}
                    Ok(Some(mut run)) => {
                        *failures = None;
                        // Generator and switch have processors of their own, or share with others as they fall.
                        run.measured.disturbed = run.measured.disturbed.or(Some(busy));
                        eprintln!("{told}: {}", run.measured.show(&measures));
                        cell.note(index, Some(&run.measured));
                        let key = format!("switch {}", words(&[&peer, &variant]));
                        note(&mut scenario.commands, &key, run.switch, dir.path());
                        let key = format!("generator {}", words(&[generator, phase_name]));
                        note(&mut scenario.commands, &key, run.measured.commands, dir.path());
                    }
                    Err(error) => {
                        eprintln!("{told}: FAILED: {error:#}");
                        cell.note(index, None);
                        if *failures == Some(0) {
                            cell.remarks
                                .push(format!("{who}, round {round}: {}", reason(&error, dir.path())));
                        }
                        *failures = failures.map(|number| number + 1);
                    }
                }
            }
        }
    }
    cell.sum_up();
    print!("{}", table::cell(scenario, &cell));
    scenario.cells.push(cell);
    Ok(())
}

/// Why a run failed, for a report: the last line of what was said, which is the program's own where one ended.
fn reason(error: &anyhow::Error, dir: &Path) -> String {
    let text = format!("{error:#}").replace(&dir.display().to_string(), "DIR");
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().trim_end_matches(':');
    let last = lines.next_back().map(|last| format!(": {last}")).unwrap_or_default();
    cut(&plain(&format!("{first}{last}")))
}

/// Those that are not empty, with commas.
fn words(words: &[&str]) -> String {
    words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(", ")
}

/// Keeps the commands of the first run of each kind, with the names that change from run to run replaced.
fn note(commands: &mut BTreeMap<String, Vec<String>>, key: &str, lines: Vec<String>, dir: &Path) {
    commands.entry(key.to_string()).or_insert_with(|| {
        let all = lines.len();
        let lines = lines.iter().take(LINES).map(|line| line.replace(&dir.display().to_string(), "DIR"));
        let mut lines: Vec<String> = lines.map(|line| cut(&plain(&line))).collect();
        if all > LINES {
            lines.push(format!("# … and so on: {all} lines"));
        }
        lines
    });
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(CHARACTERS) {
        Some((at, _)) => format!("{} …", &line[..at]),
        None => line.to_string(),
    }
}

/// A command line with this workspace's paths as in a work tree (wherever cargo builds), and namespaces without their
/// numbers.
fn plain(line: &str) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|path| format!("{}/", path.display()));
    let own = std::env::current_exe().ok();
    let built = own.as_deref().and_then(Path::parent).map(|path| format!("{}/", path.display()));
    let words = line.split(' ').map(|word| {
        if let Some(name) = built.as_ref().and_then(|built| word.strip_prefix(built.as_str())) {
            return format!("target/release/{name}");
        }
        let word = workspace.as_ref().map_or(word, |root| word.strip_prefix(root.as_str()).unwrap_or(word));
        match word.strip_prefix("weft-bench-") {
            Some(rest) => rest.rsplit('-').next().unwrap_or(rest).to_string(),
            None => word.to_string(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::measures::RATE;

    #[test]
    fn commands_are_shown_without_what_changes_from_run_to_run() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").display().to_string();
        let mut commands = BTreeMap::new();
        let line =
            format!("ip netns exec weft-bench-12-3-switch {root}/target/release/weft --socket /tmp/x/ctl");
        note(&mut commands, "weft", vec![line], Path::new("/tmp/x"));
        note(&mut commands, "weft", vec!["another run's".into()], Path::new("/tmp/y"));
        let own = std::env::current_exe().expect("this program's path");
        assert_eq!(
            plain(&format!("{} generate", own.with_file_name("bench").display())),
            "target/release/bench generate"
        );
        assert_eq!(commands["weft"], ["ip netns exec switch target/release/weft --socket DIR/ctl"]);
    }

    fn run(rate: f64) -> Result<Option<Run>> {
        let measured = Measured { disturbed: Some(0.0), ..Measured::new().with(&RATE, rate) };
        Ok(Some(Run { switch: Vec::new(), measured }))
    }

    fn plan(pairs: usize) -> Scenario {
        Plan { pairs, seconds: 1, switch_cpu: 1, generator_cpu: 0 }.scenario("test", String::new())
    }

    #[test]
    fn every_peer_has_its_turn_in_each_phase_of_each_round() {
        let mut turns = Vec::new();
        let mut scenario = plan(2);
        let cell = Cell::new("cell", &[RATE]).peers(&["weft", "peer"]).phases(&["a", "b"]);
        rounds(&mut scenario, cell, "", |turn| {
            turns.push(format!("{}{}", turn.peer, turn.phase));
            if turn.phase == 1 {
                assert_eq!(turn.lowest(&RATE), Some(3.0));
                return Ok(None);
            }
            run(if turn.peer == "weft" { 4.0 } else { 3.0 })
        })
        .expect("rounds");
        let round = ["weft0", "peer0", "weft1", "peer1"];
        assert_eq!(turns, [round, round].concat());
        assert_eq!(scenario.cells[0].runs[1].values["rate"].rounds, [Some(3.0), Some(3.0)]);
    }

    #[test]
    fn a_peer_that_fails_is_left_out_and_given_up_if_it_never_succeeded() {
        let mut turns = std::collections::BTreeMap::<String, usize>::new();
        let mut scenario = plan(5);
        let cell = Cell::new("cell", &[RATE]).peers(&["weft", "broken", "shaky"]);
        rounds(&mut scenario, cell, "", |turn| {
            let number = turns.entry(turn.peer.to_string()).or_default();
            *number += 1;
            match (turn.peer, *number) {
                ("broken", _) | ("shaky", 2..=4) => {
                    bail!("it ended:\n    one\n    out of {}/x", turn.dir.display())
                }
                _ => run(1.0),
            }
        })
        .expect("rounds");
        assert_eq!((turns["weft"], turns["broken"], turns["shaky"]), (5, 2, 5));
        let cell = &scenario.cells[0];
        assert_eq!(cell.runs.iter().map(|runs| runs.failed).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(cell.runs[2].values["rate"].rounds, [Some(1.0), None, None, None, Some(1.0)]);
        assert_eq!(cell.remarks, ["broken, round 1: it ended: out of DIR/x"]);
    }

    #[test]
    fn a_thousand_commands_are_told_in_a_few() {
        let mut commands = BTreeMap::new();
        note(&mut commands, "weft", vec!["port add".to_string(); 1000], Path::new("/tmp/x"));
        assert_eq!(commands["weft"].len(), LINES + 1);
        assert_eq!(commands["weft"][LINES], "# … and so on: 1000 lines");
    }
}
