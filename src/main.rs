//! `weft`: the switch's daemon, its demo, and the command line that controls it.
//!
//! The composition root: only this package knows every crate. The command line itself is in `ctl`.
#![forbid(unsafe_code)]

mod daemon;
mod demo;

use std::process::ExitCode;

use ctl::cli::{DaemonOptions, DemoOptions, Handlers};

/// The verbs that need more than the ctl socket.
struct Verbs;

impl Handlers for Verbs {
    fn daemon(&self, options: DaemonOptions) -> ExitCode {
        match daemon::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("weft: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn demo(&self, options: DemoOptions) -> ExitCode {
        demo::run(options)
    }
}

/// The demo's own processes are this program under other names: they are no verbs of the command line.
fn as_part_of_the_demo(args: &[String]) -> Option<anyhow::Result<()>> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [demo::guest::ARG0, setup] => Some(demo::guest::run(setup)),
        [_, demo::kernel::ARG0, interface, address, prefix, port] => {
            let (prefix, port) = (prefix.parse().ok()?, port.parse().ok()?);
            Some(demo::kernel::run(interface, address, prefix, port))
        }
        _ => None,
    }
}

fn main() -> ExitCode {
    let words: Option<Vec<String>> = std::env::args_os().map(|a| a.into_string().ok()).collect();
    match words.as_deref().and_then(as_part_of_the_demo) {
        None => ctl::cli::run(std::env::args_os(), &Verbs),
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("weft demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
