//! A program that runs in a namespace while a test goes on: a server, or a client that keeps what it got.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{Netns, eventually, logs, process};

/// A running program. Dropped, it is killed, and its log is kept for the test's report.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    dir: TempDir,
}

impl Program {
    /// Starts a program in a namespace.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(namespace: &Netns, program: &str, args: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-program-").tempdir()?;
        let log = File::create(dir.path().join("log"))?;
        let mut command = namespace.command(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        Ok(Program { name: format!("{program} in {}", namespace.name()), child, dir })
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// It ended, or has not within the limit.
    pub fn await_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        eventually(&format!("'{text}' by {}", self.name), limit, || {
            if self.log().contains(text) {
                return Ok(Ok(()));
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.name, self.log());
            }
            Ok(Err(self.log()))
        })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(&self.child, signal)
    }

    /// Waits until it ends by itself; its exit status.
    ///
    /// # Errors
    /// It has not within the limit, and was killed.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        Ok(process::code(process::wait(&mut self.child, limit).with_context(|| self.name.clone())?))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        process::kill(&mut self.child);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        logs::keep(&self.name, &self.log_path());
    }
}
