//! `weft`: the switch's daemon, its demo, and the command line that controls it.
//!
//! The composition root: only this package knows every crate. The command line itself is in `ctl`.
#![forbid(unsafe_code)]

mod daemon;

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

    fn demo(&self, _: DemoOptions) -> ExitCode {
        eprintln!("weft: cannot run the demo: this build has none");
        ExitCode::FAILURE
    }
}

fn main() -> ExitCode {
    ctl::cli::run(std::env::args_os(), &Verbs)
}
