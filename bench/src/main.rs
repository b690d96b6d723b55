//! Benchmarks beside peers: each switch in turn, on the same machine, under the same load, and the ratios.
//!
//! `cargo xtask bench` builds the product and runs this. More verbs (`generate`, `rest`, `attack`, `calls`, `reflect`) are the
//! processes that this program starts of itself.
#![forbid(unsafe_code)]

mod cli;
mod flags;
mod generators;
mod guard;
mod machine;
mod measures;
mod peers;
mod reflect;
mod report;
mod results;
mod rounds;
mod scenarios;
mod statistics;
mod table;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use cli::{Asked, Invocation};
use results::Record;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let done = match args.get(1).map(String::as_str) {
        Some(generators::traffic::VERB) => {
            generators::traffic::run(&generators::traffic::Options::parse_from(&args[1..])).map(|()| true)
        }
        Some(generators::attack::VERB) => {
            generators::attack::run(&generators::attack::Options::parse_from(&args[1..])).map(|()| true)
        }
        Some(generators::wake::VERB) => {
            generators::wake::run(&generators::wake::Options::parse_from(&args[1..])).map(|()| true)
        }
        Some(generators::bare_wake::VERB) => {
            generators::bare_wake::run(&generators::bare_wake::Options::parse_from(&args[1..])).map(|()| true)
        }
        Some(generators::frames::VERB) => {
            generators::frames::process(&generators::frames::Options::parse_from(&args[1..])).map(|()| true)
        }
        Some(generators::flows::VERB) => {
            generators::flows::run(&generators::flows::Options::parse_from(&args[1..])).map(|()| true)
        }
        Some(generators::calls::VERB) => {
            generators::calls::process(&generators::calls::Options::parse_from(&args[1..])).map(|()| true)
        }
        Some(reflect::VERB) => reflect::run(&reflect::Options::parse_from(&args[1..])).map(|()| true),
        _ => compare(&args),
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

/// Runs what was asked for; whether all of it was measured.
fn compare(args: &[String]) -> Result<bool> {
    let asked = match cli::parse(args)? {
        Invocation::List(text) => {
            println!("{text}");
            return Ok(true);
        }
        Invocation::Run(asked) => asked,
    };
    if cfg!(debug_assertions) {
        bail!(
            "this is a debug build, which measures nothing: cargo xtask bench makes and runs a release build"
        );
    }
    machine::root("it makes network namespaces and reserves huge pages")?;
    guard::interrupt::watch()?;
    let mut records = Vec::new();
    let mut failed = Vec::new();
    for number in 0..asked.scenarios.len() {
        let name = asked.scenarios[number].0.name;
        // What is written is safe, whatever becomes of the scenarios that follow.
        let record = run(&asked, number).and_then(|record| {
            if let Some(dir) = &asked.report {
                report::write(dir, &record)?;
            }
            Ok(record)
        });
        guard::interrupt::check()?;
        match record {
            Ok(record) => {
                if !record.scenario.cells.iter().all(results::Cell::complete) {
                    failed.push(name);
                }
                records.push(record);
            }
            Err(error) => {
                eprintln!("bench: {name} FAILED: {error:#}");
                failed.push(name);
            }
        }
    }
    records.iter().for_each(|record| print!("{}", table::commands(&record.scenario)));
    if let Some(path) = &asked.json {
        let text = serde_json::to_string_pretty(&records)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !failed.is_empty() {
        eprintln!("bench: not measured, or not all of it: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

/// Runs one scenario.
fn run(asked: &Asked, number: usize) -> Result<Record> {
    let (entry, benchmark) = &asked.scenarios[number];
    let mut programs = benchmark.programs();
    programs.sort_by_key(machine::Program::name);
    programs.dedup_by_key(|program| program.name());
    machine::require(&programs)?;
    let machine = machine::Machine::look(&programs)?;
    println!("\n{}: {}\n{}", entry.name, entry.about, table::machine(&machine).trim_end());
    let scenario = benchmark.run(&asked.plan)?;
    Ok(Record { machine, command: asked.command.clone(), scenario })
}
