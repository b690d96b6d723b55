//! `cargo xtask ci`: every check that a change must pass. A failing stage does not keep the later ones from running: one
//! run tells everything that is wrong.

use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::{deny, fuzz, guard, run, test};

#[derive(Args)]
pub(crate) struct Options {
    /// Only the checks that look at the code, not the tests
    #[arg(long)]
    no_tests: bool,
}

/// A stage's name, and what runs it: `Ok(false)` when the check failed.
type Stage<'a> = (&'a str, Box<dyn Fn() -> Result<bool>>);

/// Runs the stages; false if one failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut stages: Vec<Stage<'_>> = vec![
        ("fmt", Box::new(|| run::cargo(["fmt", "--all", "--check"]).passes())),
        (
            "clippy",
            Box::new(|| {
                run::cargo(["clippy", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"])
                    .passes()
            }),
        ),
        (
            "docs",
            Box::new(|| {
                run::cargo(["doc", "--workspace", "--no-deps", "--document-private-items", "--keep-going"])
                    .env("RUSTDOCFLAGS", "-D warnings")
                    .passes()
            }),
        ),
        ("deny", Box::new(deny::check)),
        ("fuzz targets", Box::new(fuzz::check)),
        ("guard", Box::new(|| guard::run(&guard::Options::default()))),
    ];
    if !options.no_tests {
        let all = test::Options { require_all: true, ring: None, filter: None };
        stages.push(("tests", Box::new(move || test::run(&all))));
    }

    let mut failed = Vec::new();
    for (name, stage) in stages {
        eprintln!("xtask: {name}");
        let started = Instant::now();
        let passed = stage().unwrap_or_else(|error| {
            eprintln!("xtask: {error:#}");
            false
        });
        eprintln!(
            "xtask: {name}: {} after {} s",
            if passed { "ok" } else { "FAILED" },
            started.elapsed().as_secs()
        );
        if !passed {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        eprintln!("xtask: failed: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}
