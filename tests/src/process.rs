//! Processes: running one to its end within a limit, and what `/proc` tells of one that runs.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// How a program ended, and what it printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit status; 128 + the signal's number for a program that a signal ended.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a program that exited with 0.
    ///
    /// # Errors
    /// The program exited with something else.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("exit status {}: {}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// Runs a program to its end, without standard input.
///
/// # Errors
/// It cannot be started, or has not ended within `limit` (it is killed then).
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let name = format!("{command:?}");
    let out = tempfile::NamedTempFile::new()?;
    let err = tempfile::NamedTempFile::new()?;
    command.stdin(Stdio::null()).stdout(out.reopen()?).stderr(err.reopen()?).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let status = wait(&mut child, limit).with_context(|| format!("{name}: {}", slurp(err.reopen())))?;
    Ok(Output { code: code(status), stdout: slurp(out.reopen()), stderr: slurp(err.reopen()) })
}

/// Runs a shell script to its end; its standard output.
///
/// # Errors
/// It fails, or has not ended within 30 s.
pub fn sh(script: &str) -> Result<String> {
    let output = run(Command::new("sh").args(["-ec", script]), Duration::from_secs(30))?;
    output.ok().with_context(|| script.to_string())
}

/// Waits for a child to end; kills its process group at `limit`.
///
/// # Errors
/// The limit has passed.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            kill(child);
            bail!("has not ended within {limit:?}, and was killed");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a child that was started as its own process group, with all that it started, and reaps it.
pub fn kill(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
            // A group of one that just ended is no error.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Sends a signal to a child.
///
/// # Errors
/// The process does not exist.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(child.id().cast_signed()).context("a process id of zero")?;
    rustix::process::kill_process(pid, signal).context("cannot send a signal")
}

/// The exit status as a shell counts it.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The path of a program, found by PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// What a process holds: what may not grow while peers come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Open file descriptors.
    pub fds: usize,
    /// Mappings of files that have no name any more or are shared memory: guests' memory.
    pub shared_maps: usize,
    /// Threads.
    pub threads: usize,
}

/// What process `pid` holds now.
///
/// # Errors
/// The process does not exist.
pub fn holdings(pid: u32) -> Result<Holdings> {
    let entries = |dir: &str| -> Result<usize> {
        let path = format!("/proc/{pid}/{dir}");
        Ok(fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?.count())
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("cannot read maps")?;
    // address perms offset dev inode path: perms end in `s` for a shared mapping.
    let shared = |line: &&str| line.split_whitespace().nth(1).is_some_and(|perms| perms.ends_with('s'));
    Ok(Holdings {
        fds: entries("fd")?,
        shared_maps: maps.lines().filter(shared).count(),
        threads: entries("task")?,
    })
}

/// CPU time that process `pid` has used so far, user and system.
///
/// # Errors
/// The process does not exist.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("cannot read stat")?;
    // The name, in parentheses, may hold anything: the fields after it start with the state, field 3.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).context("no name in stat")?;
    let field = |number: usize| -> Result<u64> {
        let text = fields.split_whitespace().nth(number - 3).context("stat is short")?;
        Ok(text.parse()?)
    };
    let ticks = field(14)? + field(15)?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

fn slurp(file: std::io::Result<File>) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = file {
        // A half-read log is still worth printing.
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
