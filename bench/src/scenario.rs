//! What the benchmarks have in common: rounds in which every switch has its turn, and a note of what was started.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::generators::Measured;
use crate::guard::interrupt;
use crate::machine;
use crate::results::{Cell, Scenario};
use crate::table;

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

/// One run: the peer's commands, and what was measured.
pub(crate) struct Run {
    /// How the switch was started.
    pub(crate) switch: Vec<String>,
    /// What the generator measured.
    pub(crate) measured: Measured,
}

/// Runs the rounds of one cell and prints it. A run that fails is told and left out; the others go on.
///
/// # Errors
/// The benchmark was interrupted.
pub(crate) fn rounds(
    scenario: &mut Scenario,
    mut cell: Cell,
    generator: &str,
    mut once: impl FnMut(&str, &Path) -> Result<Run>,
) -> Result<()> {
    let names: Vec<String> = cell.peers.iter().map(|runs| runs.peer.clone()).collect();
    for round in 1..=scenario.pairs {
        for name in &names {
            interrupt::check()?;
            let dir = tempfile::Builder::new().prefix("weft-bench-").tempdir()?;
            let busy = machine::busy()?;
            let run = once(name, dir.path());
            interrupt::check()?;
            match run {
                Ok(mut run) => {
                    // Generator and switch have processors of their own, or share with others as they fall.
                    run.measured.disturbed = run.measured.disturbed.or(Some(busy));
                    let rate = run.measured.rate;
                    eprintln!(
                        "{} {}, round {round}, {name}: {rate:.0} {}",
                        scenario.name, cell.name, cell.unit
                    );
                    cell.note(name, Some(&run.measured));
                    note(&mut scenario.commands, &format!("switch {name}"), run.switch, dir.path());
                    let key = format!("generator {generator}");
                    note(&mut scenario.commands, &key, vec![run.measured.command], dir.path());
                }
                Err(error) => {
                    eprintln!("{} {}, round {round}, {name}: FAILED: {error:#}", scenario.name, cell.name);
                    cell.note(name, None);
                }
            }
        }
    }
    cell.sum_up();
    print!("{}", table::cell(scenario, &cell));
    scenario.cells.push(cell);
    Ok(())
}

/// Keeps the commands of the first run of each kind, with the names that change from run to run replaced.
fn note(commands: &mut BTreeMap<String, Vec<String>>, key: &str, lines: Vec<String>, dir: &Path) {
    commands.entry(key.to_string()).or_insert_with(|| {
        let lines = lines.iter().map(|line| line.replace(&dir.display().to_string(), "DIR"));
        lines.map(|line| plain(&line)).collect()
    });
}

/// A command line with this workspace's paths as in a work tree, and namespaces without their numbers.
fn plain(line: &str) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|path| format!("{}/", path.display()));
    let words = line.split(' ').map(|word| {
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
    use super::*;

    #[test]
    fn commands_are_shown_without_what_changes_from_run_to_run() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").display().to_string();
        let mut commands = BTreeMap::new();
        let line =
            format!("ip netns exec weft-bench-12-3-switch {root}/target/release/weft --socket /tmp/x/ctl");
        note(&mut commands, "weft", vec![line], Path::new("/tmp/x"));
        note(&mut commands, "weft", vec!["another run's".into()], Path::new("/tmp/y"));
        assert_eq!(commands["weft"], ["ip netns exec switch target/release/weft --socket DIR/ctl"]);
    }
}
