//! A command line run in this process, and what it did.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use crate::common::Daemon;
use ctl::cli::{DaemonOptions, DemoOptions, Environment, Handlers, run_with};
use serde_json::Value;
use std::cell::RefCell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Keeps what it is asked for.
#[derive(Default)]
pub struct Asked {
    pub daemon: RefCell<Option<DaemonOptions>>,
    pub demo: RefCell<Option<DemoOptions>>,
}

impl Handlers for Asked {
    fn daemon(&self, options: DaemonOptions) -> ExitCode {
        *self.daemon.borrow_mut() = Some(options);
        ExitCode::from(77)
    }

    fn demo(&self, options: DemoOptions) -> ExitCode {
        *self.demo.borrow_mut() = Some(options);
        ExitCode::from(78)
    }
}

pub struct Ran {
    pub code: ExitCode,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!((self.code, &*self.err), (ExitCode::SUCCESS, ""));
        assert!(self.out.ends_with('\n') && self.out.lines().count() == 1, "{}", self.out);
        serde_json::from_str(&self.out).unwrap()
    }

    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!((self.code, &*self.err), (ExitCode::SUCCESS, ""));
        &self.out
    }

    /// Failed with that status and one line that has these words in it.
    #[track_caller]
    pub fn failed(&self, status: u8, words: &str) {
        assert_eq!(self.code, ExitCode::from(status), "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        assert!(self.err.contains(words), "{}", self.err);
        if status != 2 {
            assert!(self.err.starts_with("weft: ") && self.err.lines().count() == 1, "{}", self.err);
        }
    }
}

pub fn environment() -> Environment {
    Environment {
        system_socket: "/the/run/ctl.sock".into(),
        socket: None,
        runtime_dir: None,
        cwd: PathBuf::from("/the/cwd"),
        root: false,
    }
}

pub fn run_in(environment: &Environment, handlers: &Asked, words: &[&str]) -> Ran {
    let args = std::iter::once("weft").chain(words.iter().copied()).map(OsString::from);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run_with(args, handlers, environment, &mut out, &mut err);
    Ran { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

/// A shell at which `weft` talks to a fake daemon.
pub struct Shell {
    pub daemon: Daemon,
}

impl Shell {
    pub fn new() -> Self {
        Self { daemon: Daemon::start() }
    }

    /// Runs a command line of words without spaces in them.
    pub fn weft(&self, line: &str) -> Ran {
        self.words(&line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>())
    }

    /// Runs a command line.
    pub fn words(&self, words: &[&str]) -> Ran {
        let socket = Some(self.daemon.path.clone().into());
        run_in(&Environment { socket, ..environment() }, &Asked::default(), words)
    }
}
