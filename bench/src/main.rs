//! Benchmarks beside peers: each switch in turn, on the same machine, under the same load, and the ratios.
//!
//! `cargo xtask bench` builds the product and runs this. Two more verbs, `generate` and `reflect`, are the processes that
//! this program starts of itself.
#![forbid(unsafe_code)]

mod generators;
mod guard;
mod machine;
mod peers;
mod reflect;
mod results;
mod scenario;
mod statistics;
mod table;
mod tap;
mod v2v;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use generators::{Frames, Generator, Rate, Rings};
use peers::{TapPeer, VhostPeer, WEFT};
use results::Results;
use scenario::Plan;

/// Benchmarks of Weft beside other switches. Without a name, lists them.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench", after_help = LIST)]
struct Options {
    /// What to run: v2v, tap
    names: Vec<String>,
    /// Rounds in which every switch has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Seconds that are measured in each run, after a warm-up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Peers to run beside weft [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    peers: Vec<String>,
    /// v2v: generators [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    generators: Vec<String>,
    /// v2v: ring layouts
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "split,split-inorder")]
    rings: Vec<Rings>,
    /// v2v: lengths of frames, bytes without check sequence; `mix`; `segments` of 64 KB
    #[arg(long, value_delimiter = ',', value_name = "BYTES,…", default_value = "64,1500")]
    sizes: Vec<Frames>,
    /// v2v: `full`; frames per second; `lossless`, the highest without loss; `half` of that
    #[arg(long, value_delimiter = ',', value_name = "RATE,…", default_value = "full")]
    rates: Vec<Rate>,
    /// The CPU of the switch's forwarding thread
    #[arg(long, default_value_t = 1, value_name = "CPU", value_parser = parse_cpu)]
    switch_cpu: usize,
    /// v2v: the CPU of the generator
    #[arg(long, default_value_t = 0, value_name = "CPU", value_parser = parse_cpu)]
    generator_cpu: usize,
    /// Write the results here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as a page of the documentation
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "docs/performance.md")]
    report: Option<PathBuf>,
}

const LIST: &str = "\
Benchmarks:
  v2v   two vhost-user ports, frames per second on one core
        peers: ovs (Open vSwitch with DPDK), testpmd-io (forwards without deciding), reflector (the generator's ceiling)
        generators: testpmd, traffic
        rings: split or packed, then what is on of -mergeable -inorder -indirect -event, or -plain; alone: mergeable
  tap   TCP between two network namespaces
        peers: loop (between two taps), bridge (the kernel's), ovs, ovs-tso (with its segmentation offload)
All need root: for huge pages and network namespaces.";

fn parse_cpu(text: &str) -> Result<usize, String> {
    let cpu: usize = text.parse().map_err(|_| "not a number".to_string())?;
    let there = std::thread::available_parallelism().map_or(1, usize::from);
    if cpu < there.min(64) { Ok(cpu) } else { Err(format!("this machine has CPUs 0 to {}", there - 1)) }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let done = match args.get(1).map(String::as_str) {
        Some(generators::traffic::VERB) => {
            generators::traffic::run(&generators::traffic::Options::parse_from(&args[1..])).map(|()| true)
        }
        Some(reflect::VERB) => reflect::run(&reflect::Options::parse_from(&args[1..])).map(|()| true),
        _ => compare(&Options::parse(), &args[1..]),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            if guard::interrupt::requested() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

/// Those of `all` whose names are in `wanted`, in the order of `all`; all of them when nothing is wanted.
fn choose<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str, wanted: &[String]) -> Vec<T> {
    let chosen = |item: &T| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name(*item));
    all.iter().copied().filter(chosen).collect()
}

/// # Errors
/// A name is nobody's.
fn check_names<'a>(what: &str, wanted: &[String], known: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let known: Vec<&str> = known.into_iter().collect();
    match wanted.iter().find(|wanted| !known.contains(&wanted.as_str())) {
        Some(unknown) => bail!("no {what} '{unknown}': there are {}", known.join(", ")),
        None => Ok(()),
    }
}

/// Runs what was asked for; whether all of it was measured.
fn compare(options: &Options, args: &[String]) -> Result<bool> {
    if options.names.is_empty() {
        println!("{LIST}");
        return Ok(true);
    }
    if cfg!(debug_assertions) {
        bail!(
            "this is a debug build, which measures nothing: cargo xtask bench makes and runs a release build"
        );
    }
    let with = |name: &str| options.names.iter().any(|wanted| wanted == name);
    check_names("benchmark", &options.names, ["v2v", "tap"])?;
    check_names("generator", &options.generators, Generator::ALL.map(Generator::name))?;
    let vhost_names = VhostPeer::ALL.map(VhostPeer::name).into_iter().filter(|_| with("v2v"));
    let tap_names = TapPeer::ALL.map(TapPeer::name).into_iter().filter(|_| with("tap"));
    check_names("peer", &options.peers, vhost_names.chain(tap_names))?;
    // Ours is always there: ratios are to it.
    let mut wanted = options.peers.clone();
    if !wanted.is_empty() {
        wanted.push(WEFT.to_string());
    }
    let v2v = v2v::Options {
        peers: choose(&VhostPeer::ALL, VhostPeer::name, &wanted),
        generators: choose(&Generator::ALL, Generator::name, &options.generators),
        rings: options.rings.clone(),
        sizes: options.sizes.clone(),
        rates: options.rates.clone(),
    };
    let taps = choose(&TapPeer::ALL, TapPeer::name, &wanted);

    let mut programs = Vec::new();
    if with("v2v") {
        programs.extend(v2v::programs(&v2v));
    }
    if with("tap") {
        programs.extend(tap::programs(&taps));
    }
    programs.sort_by_key(machine::Program::name);
    programs.dedup_by_key(|program| program.name());
    machine::require(&programs, "it makes network namespaces and reserves huge pages")?;
    guard::interrupt::watch()?;

    let plan = Plan {
        pairs: options.pairs.into(),
        seconds: options.seconds,
        switch_cpu: options.switch_cpu,
        generator_cpu: options.generator_cpu,
    };
    let command = format!("cargo xtask bench {}", args.join(" "));
    let mut results = Results { machine: machine::Machine::look(&programs)?, command, scenarios: Vec::new() };
    print!("{}", table::machine(&results));
    if with("tap") && taps.contains(&TapPeer::Loop) {
        build_tap_loop()?;
    }
    if with("v2v") {
        results.scenarios.push(v2v::run(&plan, &v2v)?);
    }
    if with("tap") {
        results.scenarios.push(tap::run(&plan, &taps)?);
    }
    results.scenarios.iter().for_each(|scenario| print!("{}", table::commands(scenario)));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&results)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.report {
        std::fs::write(path, table::page(&results))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(results.scenarios.iter().flat_map(|scenario| &scenario.cells).all(results::Cell::complete))
}

/// Builds the example that is one of the peers, where a cargo runs us; else it has to be there.
fn build_tap_loop() -> Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let mut build = std::process::Command::new(cargo);
    build.args(["build", "--release", "--quiet", "--package", "datapath", "--example", "tap_loop"]);
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cannot build the peer tap_loop");
    }
    Ok(())
}
