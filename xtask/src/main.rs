//! `cargo xtask`: what a contributor and the CI machine run.
//!
//! This is a plain program beside the product: it starts cargo and a few system tools, and never links a crate of the
//! switch, so that it builds in seconds and can test a tree whose product code does not compile.

mod ci;
mod deny;
mod fuzz;
mod guard;
mod packages;
mod run;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tasks of the Weft project.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the tests: unit and simulation tests of every crate, then the end-to-end tests
    ///
    /// As root on Debian, what the end-to-end tests need and the machine lacks is installed first. A test whose needs
    /// are not met is reported as ignored, with the reason.
    Test(test::Options),
    /// Run what CI runs: formatting, lints, documentation, dependencies, fuzz targets, the guard of the hot path, tests
    Ci(ci::Options),
    /// Check licences, sources and bans of the dependencies against deny.toml
    Deny,
    /// Run the fuzz targets (all of them, or one) for some seconds each
    Fuzz(fuzz::Options),
    /// Count the instructions that the hot path takes for a frame, against those that guard/counts.json keeps
    Guard(guard::Options),
    /// Run benchmarks beside their peers, in a release build
    Bench {
        /// Benchmark names and options, passed on to the `bench` package (none: lists them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build the guest image of the end-to-end tests (a Linux kernel and an initrd)
    GuestImage {
        /// Directory that receives `vmlinuz` and `initrd.gz`
        #[arg(default_value = "target/guest-image")]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `Ok(false)` is a task that ran and found a fault, which it has already told.
fn dispatch(task: Task) -> Result<bool> {
    match task {
        Task::Test(options) => test::run(&options),
        Task::Ci(options) => ci::run(&options),
        Task::Deny => deny::check(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Guard(options) => guard::run(&options),
        Task::Bench { args } => {
            packages::install(packages::BENCH)?.tell();
            run::cargo(["build", "--release", "--package", "weft"]).succeed()?;
            run::cargo(["run", "--release", "--quiet", "--package", "bench", "--"]).args(args).passes()
        }
        Task::GuestImage { dir } => {
            run::program(run::root().join("tests/rigs/guest-image").display().to_string()).arg(dir).passes()
        }
    }
}
