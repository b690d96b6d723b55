//! `cargo xtask guard`: instructions that the hot path takes for a frame, against those that the tree keeps.
//!
//! Seconds depend on the machine and on what else it does; the number of instructions hardly does. The package `guard`
//! runs fixed scenarios, callgrind counts in them, and `guard/counts.json` says what they took when somebody last looked.
//! A count depends on the compiler and the C library too, so these are kept beside it; with others than those the
//! tolerance is wider, which is said. Hashes are keyed at random, so two runs differ by some tenths of a per cent.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{packages, run};

/// More than this above the kept count is a fault, below it a count to be kept anew.
const TOLERANCE_PERCENT: f64 = 3.0;
/// The same with another compiler or C library than that of the kept counts.
const TOLERANCE_ELSEWHERE_PERCENT: f64 = 15.0;
/// The function that callgrind collects in.
const COUNTED: &str = "*counted_by_callgrind*";
const COUNTS: &str = "guard/counts.json";
/// How the C library copies depends on the size of the processor's caches, and on what it can do: never by a string
/// instruction, which counts as one for each byte, and never past the caches.
const TUNABLES: &str = "glibc.cpu.x86_rep_movsb_threshold=0x7fffffff:glibc.cpu.x86_rep_stosb_threshold=0x7fffffff:\
                        glibc.cpu.x86_non_temporal_threshold=0x7fffffff";

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Keep what is counted now
    #[arg(long)]
    pub(crate) update: bool,
    /// Only scenarios whose name contains this
    pub(crate) filter: Option<String>,
}

/// What the tree keeps.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Kept {
    #[serde(flatten)]
    made: Made,
    /// Instructions for a frame.
    scenarios: BTreeMap<String, f64>,
}

/// What counts depend on beside the code.
#[derive(Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
struct Made {
    machine: String,
    rustc: String,
    libc: String,
}

impl Made {
    fn here() -> Result<Self> {
        let word = |text: String| text.lines().next().unwrap_or_default().trim().to_string();
        Ok(Self {
            machine: std::env::consts::ARCH.to_string(),
            rustc: word(run::program("rustc").arg("--version").output()?),
            libc: word(run::program("getconf").arg("GNU_LIBC_VERSION").output()?),
        })
    }
}

/// Whether callgrind is there; it is installed where that is permitted.
pub(crate) fn is_possible() -> Result<bool> {
    packages::install(packages::GUARD)?.tell();
    Ok(run::program("valgrind").arg("--version").quiet_output().is_some())
}

/// Counts and compares; false if a scenario takes more than it may.
pub(crate) fn run(options: &Options) -> Result<bool> {
    ensure!(is_possible()?, "valgrind is needed, and not installed");
    run::cargo(["build", "--profile", "guard", "--package", "guard"]).succeed()?;
    let program = program()?;
    let here = Made::here()?;
    let path = run::root().join(COUNTS);
    let mut kept: Kept = match fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).with_context(|| format!("{COUNTS} is not what was kept"))?
        }
        Err(_) if options.update => Kept::default(),
        Err(error) => bail!("cannot read {COUNTS}: {error}; 'cargo xtask guard --update' makes it"),
    };
    if options.update && kept.made != here && options.filter.is_some() {
        bail!(
            "counts of another compiler or C library are kept: all of them are to be counted anew, not some"
        );
    }
    ensure!(
        options.update || kept.made.machine == here.machine,
        "the counts are of {}, not of {}: they cannot be compared",
        kept.made.machine,
        here.machine
    );
    let mut tolerance = TOLERANCE_PERCENT;
    if !options.update && kept.made != here {
        tolerance = TOLERANCE_ELSEWHERE_PERCENT;
        eprintln!(
            "xtask: the counts are of {} with {}, and here is {} with {}: compared with a tolerance of {tolerance} %",
            kept.made.rustc, kept.made.libc, here.rustc, here.libc
        );
    }

    let names = run::program(&program).output()?;
    let names: Vec<&str> = names.lines().collect();
    let wanted = |name: &&str| options.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let mut passed = true;
    println!("{:<20} {:>10} {:>10} {:>9}", "instructions a frame", "now", "kept", "change");
    let mut counts = BTreeMap::new();
    for &name in names.iter().filter(|name| wanted(name)) {
        let now = count(&program, name)?;
        counts.insert(name.to_string(), now);
        let (before, change, verdict) = match kept.scenarios.get(name) {
            None => ("-".to_string(), "-".to_string(), if options.update { "" } else { "NOT KEPT" }),
            Some(&before) => {
                let change = (now / before - 1.0) * 100.0;
                let verdict = judge(change, tolerance);
                (format!("{before:.1}"), format!("{change:+.1} %"), if options.update { "" } else { verdict })
            }
        };
        passed &= !matches!(verdict, MORE | "NOT KEPT");
        println!("{name:<20} {now:>10.1} {before:>10} {change:>9}  {verdict}");
    }
    ensure!(!counts.is_empty(), "no scenario has such a name");
    if options.update {
        if options.filter.is_none() {
            kept.scenarios.clear();
        }
        kept.made = here;
        kept.scenarios.extend(counts.into_iter().map(|(name, count)| (name, (count * 10.0).round() / 10.0)));
        fs::write(&path, serde_json::to_string_pretty(&kept)? + "\n")?;
        println!("{COUNTS} is written");
        return Ok(true);
    }
    for gone in kept.scenarios.keys().filter(|name| !names.contains(&name.as_str())) {
        println!("{gone:<20} is kept, but there is no such scenario: 'cargo xtask guard --update'");
        passed = false;
    }
    if !passed {
        println!(
            "The tolerance is {tolerance} %. If the change is worth it: 'cargo xtask guard --update', and say why."
        );
    }
    Ok(passed)
}

const MORE: &str = "MORE";

fn judge(change_percent: f64, tolerance: f64) -> &'static str {
    if change_percent > tolerance {
        MORE
    } else if change_percent < -tolerance {
        "less: keep it by 'cargo xtask guard --update'"
    } else {
        ""
    }
}

/// Where cargo put the program.
fn program() -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let metadata = run::cargo(["metadata", "--format-version=1", "--no-deps"]).output()?;
    let metadata: Metadata = serde_json::from_str(&metadata)?;
    Ok(metadata.target_directory.join("guard/guard"))
}

/// Instructions for a frame of a scenario.
fn count(program: &PathBuf, name: &str) -> Result<f64> {
    let out = program.with_file_name(format!("{name}.callgrind"));
    let frames = run::program("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(name)
        .env("GLIBC_TUNABLES", TUNABLES)
        .output()?;
    let frames: u64 = frames.trim().parse().with_context(|| format!("{name} told no number of frames"))?;
    let text = fs::read_to_string(&out).with_context(|| format!("callgrind left no {}", out.display()))?;
    let instructions = instructions(&text).with_context(|| format!("no total in {}", out.display()))?;
    ensure!(frames > 0 && instructions > 0, "{name}: {instructions} instructions of {frames} frames");
    Ok(instructions as f64 / frames as f64)
}

/// The total of callgrind's output: that of one thread, or of all.
fn instructions(text: &str) -> Option<u64> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals: "))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_from_callgrinds_output() {
        assert_eq!(instructions("events: Ir\nsummary: 7\nfn=(1)\n0 7\ntotals: 7\n"), Some(7));
        assert_eq!(instructions("events: Ir\n"), None);
    }

    #[test]
    fn more_is_a_fault_and_less_is_to_be_kept() {
        assert_eq!(judge(2.9, TOLERANCE_PERCENT), "");
        assert_eq!(judge(3.1, TOLERANCE_PERCENT), MORE);
        assert_eq!(judge(-2.9, TOLERANCE_PERCENT), "");
        assert!(judge(-3.1, TOLERANCE_PERCENT).contains("--update"));
    }
}
