//! The command line: what is common to all scenarios, and what each of them declares.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Arg, ArgAction, Args, FromArgMatches};

use crate::flags::{self, Choices};
use crate::peers::WEFT;
use crate::rounds::Plan;
use crate::scenarios::{self, Benchmark, Entry};

/// The name that stands for all scenarios.
const EVERY: &str = "all";

/// What is common to all scenarios.
#[derive(Debug, Args)]
struct Common {
    /// What to run, or `all` (none: lists them)
    names: Vec<String>,
    /// Rounds in which every switch has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Seconds that are measured in each run, after a warm-up
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// One round of one second: shows that everything runs, and measures nothing
    #[arg(long, conflicts_with_all = ["pairs", "seconds"])]
    quick: bool,
    /// Peers to run beside weft [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    peers: Vec<String>,
    /// The CPU of the switch's forwarding thread
    #[arg(long, default_value_t = 1, value_name = "CPU", value_parser = parse_cpu)]
    switch_cpu: usize,
    /// The CPU of the generator, where it is one thread
    #[arg(long, default_value_t = 0, value_name = "CPU", value_parser = parse_cpu)]
    generator_cpu: usize,
    /// Write the results of all scenarios here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report of each scenario: NAME.json, NAME.md and NAME.svg
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "docs/perf")]
    report: Option<PathBuf>,
}

fn parse_cpu(text: &str) -> Result<usize, String> {
    let cpu: usize = text.parse().map_err(|_| "not a number".to_string())?;
    let there = std::thread::available_parallelism().map_or(1, usize::from);
    if cpu < there.min(64) { Ok(cpu) } else { Err(format!("this machine has CPUs 0 to {}", there - 1)) }
}

/// What is to be done.
pub(crate) enum Invocation {
    /// Print this.
    List(String),
    /// Measure.
    Run(Asked),
}

/// What is to be measured.
pub(crate) struct Asked {
    pub(crate) plan: Plan,
    pub(crate) scenarios: Vec<(&'static Entry, Box<dyn Benchmark>)>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) report: Option<PathBuf>,
    /// As it was typed.
    pub(crate) command: String,
}

fn command() -> clap::Command {
    let mut command = Common::augment_args(clap::Command::new("bench").bin_name("cargo xtask bench"))
        .about("Benchmarks of Weft beside other switches. Without a name, lists them.")
        .after_help(
            "The benchmarks, their peers and how long each takes: `cargo xtask bench` without a name.",
        );
    let mut seen: Vec<&str> = Vec::new();
    for flag in scenarios::ALL.iter().flat_map(|entry| entry.flags) {
        if seen.contains(&flag.name) {
            continue;
        }
        seen.push(flag.name);
        let arg = Arg::new(flag.name).long(flag.name).action(ArgAction::Append).value_delimiter(',');
        command = command.arg(arg.value_name(flag.value).help(help(flag.name)));
    }
    command
}

/// What a flag means to each of the scenarios that have it.
fn help(name: &str) -> String {
    let mut meanings: Vec<(String, Vec<&str>)> = Vec::new();
    for entry in scenarios::ALL {
        let Some(flag) = entry.flags.iter().find(|flag| flag.name == name) else { continue };
        let default = if flag.default.is_empty() { "all" } else { flag.default };
        let meaning = format!("{} [default: {default}]", flag.about);
        match meanings.iter_mut().find(|(known, _)| *known == meaning) {
            Some((_, names)) => names.push(entry.name),
            None => meanings.push((meaning, vec![entry.name])),
        }
    }
    let one = |(meaning, names): &(String, Vec<&str>)| format!("{}: {meaning}", names.join(", "));
    meanings.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Reads the command line, of which the first word is the program.
///
/// # Errors
/// A name or a value is unknown, or a flag is none of a chosen scenario's. Help and misuse end the program.
pub(crate) fn parse(args: &[String]) -> Result<Invocation> {
    let matches = command().get_matches_from(args);
    let common = Common::from_arg_matches(&matches)?;
    let (pairs, seconds) = if common.quick { (1, 1) } else { (common.pairs, common.seconds) };
    let plan = Plan {
        pairs: pairs.into(),
        seconds,
        switch_cpu: common.switch_cpu,
        generator_cpu: common.generator_cpu,
    };
    let mut choices = Choices { peers: common.peers, ..Choices::default() };
    for flag in scenarios::ALL.iter().flat_map(|entry| entry.flags) {
        if let Some(values) = matches.get_many::<String>(flag.name) {
            choices.given.insert(flag.name, values.cloned().collect());
        }
    }
    if common.names.is_empty() {
        return Ok(Invocation::List(list(&plan)?));
    }
    let chosen = chosen(&common.names)?;
    check(&chosen, &choices)?;
    let prepare = |entry: &'static Entry| Ok((entry, (entry.prepare)(&choices)?));
    Ok(Invocation::Run(Asked {
        plan,
        scenarios: chosen.into_iter().map(prepare).collect::<Result<_>>()?,
        json: common.json,
        report: common.report,
        command: typed(args.get(1..).unwrap_or_default()),
    }))
}

/// The command line for a report, in which this machine's paths mean nothing.
fn typed(args: &[String]) -> String {
    let word = |arg: &String| match arg.split_once('/') {
        Some((before, _)) if before.is_empty() || before.ends_with('=') => format!("{before}PATH"),
        _ => arg.clone(),
    };
    let words = ["cargo xtask bench".to_string()].into_iter().chain(args.iter().map(word));
    words.collect::<Vec<_>>().join(" ")
}

/// The scenarios of those names, in the table's order.
fn chosen(names: &[String]) -> Result<Vec<&'static Entry>> {
    let known: Vec<&str> = scenarios::ALL.iter().map(|entry| entry.name).chain([EVERY]).collect();
    flags::known("benchmarks", names, &known)?;
    let wanted = |entry: &&Entry| names.iter().any(|name| name == entry.name || name == EVERY);
    Ok(scenarios::ALL.iter().filter(wanted).collect())
}

/// # Errors
/// A flag that not all of the scenarios know, or a peer that none of them knows.
fn check(chosen: &[&Entry], choices: &Choices) -> Result<()> {
    for name in choices.given.keys() {
        if let Some(entry) = chosen.iter().find(|entry| !entry.flags.iter().any(|flag| flag.name == *name)) {
            bail!("{} has no --{name}", entry.name);
        }
    }
    let mut peers: Vec<&str> = chosen.iter().flat_map(|entry| (entry.peers)()).chain([WEFT]).collect();
    peers.sort_unstable();
    peers.dedup();
    flags::known("peers", &choices.peers, &peers)
}

/// The table of scenarios for a terminal.
fn list(plan: &Plan) -> Result<String> {
    let mut text = String::from("Benchmarks (cargo xtask bench NAME…, or all; --help for the options):\n");
    let mut all = 0.0;
    for entry in scenarios::ALL {
        let (runs, beside) = (entry.prepare)(&Choices::default())?.runs(plan);
        let minutes = (runs * plan.pairs) as f64 * (plan.seconds as f64 + beside) / 60.0;
        all += minutes;
        text += &format!("  {:<12} {}; about {minutes:.0} min\n", entry.name, entry.about);
        text += &format!("  {:<12} beside {}\n", "", (entry.peers)().join(", "));
        if !entry.flags.is_empty() {
            let flags: Vec<String> = entry.flags.iter().map(|flag| format!("--{}", flag.name)).collect();
            text += &format!("  {:<12} {}\n", "", flags.join(" "));
        }
    }
    text += &format!("About {all:.0} minutes for all, with {} rounds of {} s", plan.pairs, plan.seconds);
    Ok(text + ". All need root: for huge pages and network namespaces.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked> {
        let args: Vec<String> = line.split(' ').map(str::to_string).collect();
        match parse(&args)? {
            Invocation::Run(asked) => Ok(asked),
            Invocation::List(text) => bail!("{text}"),
        }
    }

    fn refusal(line: &str) -> String {
        asked(line).err().expect("refused").to_string()
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn scenarios_run_in_the_tables_order_and_once() {
        let names = |line: &str| -> Vec<&str> {
            asked(line).expect("asked").scenarios.iter().map(|(entry, _)| entry.name).collect()
        };
        assert_eq!(names("bench tap v2v tap"), ["v2v", "tap"]);
        let all: Vec<&str> = scenarios::ALL.iter().map(|entry| entry.name).collect();
        assert_eq!(names("bench all"), all);
    }

    #[test]
    fn names_and_flags_that_nobody_knows_are_refused() {
        assert!(refusal("bench v3v").starts_with("no 'v3v' among the benchmarks: there are "));
        assert_eq!(refusal("bench v2v tap --sizes 64"), "tap has no --sizes");
        assert!(refusal("bench tap --peers testpmd-io").starts_with("no 'testpmd-io' among the peers"));
        assert!(refusal("bench v2v --generators round").starts_with("no 'round' among the generators"));
        assert!(refusal("bench v2v --sizes 12").contains("--sizes"));
    }

    #[test]
    fn a_peer_may_be_that_of_one_of_the_scenarios() {
        let asked = asked("bench v2v tap --peers loop --pairs 7 --seconds 2").expect("asked");
        assert_eq!((asked.plan.pairs, asked.plan.seconds), (7, 2));
        assert_eq!(asked.command, "cargo xtask bench v2v tap --peers loop --pairs 7 --seconds 2");
    }

    #[test]
    fn a_report_says_what_was_typed_without_paths_of_this_machine() {
        let asked = asked("bench v2v --report /tmp/x --json=/tmp/y --sizes 64").expect("asked");
        assert_eq!(asked.command, "cargo xtask bench v2v --report PATH --json=PATH --sizes 64");
        assert_eq!(asked.report.expect("a directory"), std::path::Path::new("/tmp/x"));
    }

    #[test]
    fn quick_is_one_round_of_one_second() {
        let plan = asked("bench v2v --quick").expect("asked").plan;
        assert_eq!((plan.pairs, plan.seconds), (1, 1));
    }

    #[test]
    fn a_flag_of_several_scenarios_is_explained_for_each() {
        assert!(help("sizes").starts_with("v2v: lengths of frames"));
    }

    #[test]
    fn every_name_is_there_once() {
        let mut names: Vec<&str> = scenarios::ALL.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), scenarios::ALL.len());
        assert!(!names.contains(&EVERY));
    }

    #[test]
    fn the_list_names_every_scenario_with_its_peers() {
        let Ok(Invocation::List(text)) = parse(&["bench".to_string()]) else { panic!("a list") };
        for entry in scenarios::ALL {
            assert!(text.contains(entry.name) && text.contains(entry.about), "{}", entry.name);
        }
    }
}
