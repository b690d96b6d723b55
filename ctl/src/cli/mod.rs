//! The command line: words to calls, replies to tables or JSON, and exit statuses.
//!
//! 0 done; 1 refused or failed, with one line on standard error that says what and why; 2 usage; 3 no daemon at the
//! socket; 4 no such network or port.

mod args;
mod help;
mod options;
mod render;
mod table;
mod verbs;
mod vif;

pub use options::{DaemonOptions, DemoOptions, Environment, Poll};

use crate::client::ClientError;
use crate::model::{ModelError, one_line};
use args::{Cli, Verb};
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// The verbs that the binary provides.
pub trait Handlers {
    /// Runs the switch until it is told to end.
    fn daemon(&self, options: DaemonOptions) -> ExitCode;
    /// Runs the demo.
    fn demo(&self, options: DemoOptions) -> ExitCode;
}

/// Why a command was not done.
#[derive(Debug)]
enum Failure {
    /// Exit status 1.
    Refused(String),
    /// Exit status 2.
    Usage(String),
    /// Exit status 3.
    NoDaemon(String),
    /// Exit status 4.
    NotFound(String),
}

impl Failure {
    fn parts(&self) -> (u8, &str) {
        match self {
            Self::Refused(why) => (1, why),
            Self::Usage(why) => (2, why),
            Self::NoDaemon(why) => (3, why),
            Self::NotFound(why) => (4, why),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NoDaemon(why) => Self::NoDaemon(why),
            ClientError::NotFound(why) => Self::NotFound(why),
            ClientError::Refused(why) | ClientError::Failed(why) => Self::Refused(why),
        }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Does what `args` (the first is the program's name) say, on the process's standard streams and environment.
pub fn run(args: impl IntoIterator<Item = OsString>, handlers: &dyn Handlers) -> ExitCode {
    let environment = Environment::of_process();
    // Not locked: the daemon's other threads write to standard error as long as this call lasts.
    run_with(args, handlers, &environment, &mut std::io::stdout(), &mut std::io::stderr())
}

/// Does what `args` say, on the streams and in the environment given.
pub fn run_with(
    args: impl IntoIterator<Item = OsString>,
    handlers: &dyn Handlers,
    environment: &Environment,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help that was asked for is output; a reader that is gone is no failure.
            let status = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = match status {
                0 => write!(out, "{}", error.render()),
                _ => write!(err, "{}", error.render()),
            };
            return ExitCode::from(status);
        }
    };
    match dispatch(cli, handlers, environment) {
        Ok(Done::Output(Output { text, notes })) => {
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // A reader that closed the pipe has seen what it wanted.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    let _ = writeln!(err, "weft: cannot write the output: {error}");
                    ExitCode::FAILURE
                }
                _ => {
                    for note in notes {
                        let _ = writeln!(err, "weft: {}", one_line(&note));
                    }
                    ExitCode::SUCCESS
                }
            }
        }
        Ok(Done::Status(code)) => code,
        Err(failure) => {
            let (status, why) = failure.parts();
            let _ = writeln!(err, "weft: {}", one_line(why));
            ExitCode::from(status)
        }
    }
}

/// What a command prints when it was done.
#[derive(Debug, Default)]
struct Output {
    /// On standard output.
    text: String,
    /// On standard error: what a person may want to know besides, a line each.
    notes: Vec<String>,
}

impl From<String> for Output {
    fn from(text: String) -> Self {
        Self { text, notes: Vec::new() }
    }
}

enum Done {
    Output(Output),
    Status(ExitCode),
}

fn dispatch(cli: Cli, handlers: &dyn Handlers, environment: &Environment) -> Result<Done, Failure> {
    match cli.verb {
        Verb::Daemon(args) => {
            let given = args.socket.or(cli.socket);
            let socket = environment.daemon_socket(given.as_deref()).ok_or_else(|| {
                Failure::Refused(
                    "no place for the ctl socket: $XDG_RUNTIME_DIR is not set, so name one with --socket PATH"
                        .to_owned(),
                )
            })?;
            Ok(Done::Status(handlers.daemon(DaemonOptions {
                config: args.config.map(|path| environment.absolute(&path)),
                socket,
                state_dir: args.state_dir.map(|path| environment.absolute(&path)),
                cpus: args.cpus.map(|cpus| cpus.to_vec()),
                poll: match args.poll {
                    args::PollArg::Adaptive => Poll::Adaptive,
                    args::PollArg::Busy => Poll::Busy,
                },
            })))
        }
        Verb::Demo(args) => {
            Ok(Done::Status(handlers.demo(DemoOptions { json: cli.json || args.json, keep: args.keep })))
        }
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut text);
            Ok(Done::Output(String::from_utf8_lossy(&text).into_owned().into()))
        }
        verb => {
            let caller = verbs::Caller {
                environment,
                socket: cli.socket.as_deref(),
                timeout: std::time::Duration::from_secs_f64(cli.timeout),
                json: cli.json,
            };
            caller.call(verb).map(Done::Output)
        }
    }
}
