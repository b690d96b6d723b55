//! Child processes that cannot outlive the benchmark.
//!
//! A [`Job`] is a process group of its own. Dropped, it gets SIGTERM, and SIGKILL when it has not ended after a grace
//! time: programs that poll a peer may wait for ever for one that is gone. When the benchmark itself is killed, the
//! kernel kills its children (`setpriv --pdeathsig`). Every wait is bounded, and ends when the benchmark is interrupted.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use super::Netns;
use super::interrupt::{check, pause};

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(20);

/// A command line, and where it runs.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    words: Vec<String>,
    cpu: Option<usize>,
    netns: Option<String>,
    /// Environment; not shown, because it only says where a program finds its files.
    env: Vec<(String, String)>,
    unbuffered: bool,
}

impl Line {
    /// The program.
    pub(crate) fn new(program: impl Into<String>) -> Self {
        Line { words: vec![program.into()], cpu: None, netns: None, env: Vec::new(), unbuffered: false }
    }

    /// Words that hold no blanks, in one string.
    pub(crate) fn words(mut self, words: &str) -> Self {
        self.words.extend(words.split_whitespace().map(str::to_string));
        self
    }

    /// One argument.
    pub(crate) fn arg(mut self, arg: impl Into<String>) -> Self {
        self.words.push(arg.into());
        self
    }

    /// Pinned to a CPU, with everything that it starts.
    pub(crate) fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// In a network namespace.
    pub(crate) fn netns(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.name().to_string());
        self
    }

    /// With a variable in its environment.
    pub(crate) fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_string(), value.into()));
        self
    }

    /// With its standard output written line by line, so that its log can be followed.
    pub(crate) fn unbuffered(mut self) -> Self {
        self.unbuffered = true;
        self
    }

    /// The command line as it is started, without what only guards it.
    fn shown(&self) -> Vec<String> {
        let mut shown = Vec::new();
        if let Some(cpu) = self.cpu {
            shown.extend(["taskset".into(), "-c".into(), cpu.to_string()]);
        }
        if let Some(netns) = &self.netns {
            shown.extend(["ip".into(), "netns".into(), "exec".into(), netns.clone()]);
        }
        shown.extend(self.words.iter().cloned());
        shown
    }

    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if self.unbuffered {
            command.args(["stdbuf", "-oL"]);
        }
        command.args(self.shown());
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.process_group(0);
        command
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown().join(" "))
    }
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Job {
    name: String,
    child: Child,
    log: PathBuf,
    seen: usize,
}

impl Job {
    /// Starts `line`; what it prints goes to the file `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(line: &Line, log: &Path) -> Result<Self> {
        check()?;
        let file = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = line.command();
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {line}"))?;
        Ok(Job { name: line.words[0].clone(), child, log: log.to_path_buf(), seen: 0 })
    }

    /// All that it printed.
    pub(crate) fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Of its busiest thread's life, the part in which it could have run and another had its processor.
    pub(crate) fn waited(&self) -> Option<f64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        let texts =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
        let stats = texts.filter_map(|text| times(&text));
        stats.max_by_key(|(ran, _)| *ran).map(|(ran, waited)| waited as f64 / (ran + waited).max(1) as f64)
    }

    /// Its process: what guards and places it has been replaced by the program itself.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n    ")
    }

    /// Types a line. What it prints from then on is what [`Job::expect`] looks at.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn type_line(&mut self, line: &str) -> Result<()> {
        self.seen = self.log().len();
        let stdin = self.child.stdin.as_mut().context("no standard input")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} has ended: {}", self.name(), self.tail()))
    }

    /// Waits until `find` finds something in what it printed since the last typed line.
    ///
    /// # Errors
    /// It ends first, or `limit` passes.
    pub(crate) fn expect<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait()?;
            if let Some(found) = find(self.log().get(self.seen..).unwrap_or_default()) {
                return Ok(found);
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) before {what}:\n    {}", self.name(), self.tail());
            }
            if Instant::now() >= deadline {
                bail!("{}: no {what} after {limit:?}:\n    {}", self.name(), self.tail());
            }
            pause(STEP)?;
        }
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// `limit` passes, or it does not exit with 0.
    pub(crate) fn finish(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return match status.success() {
                    true => Ok(()),
                    false => bail!("{} failed ({status}):\n    {}", self.name(), self.tail()),
                };
            }
            if Instant::now() >= deadline {
                bail!("{} has not ended after {limit:?}:\n    {}", self.name(), self.tail());
            }
            pause(STEP)?;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            // A group that has just ended is no error.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Waits without regard to interruptions: this is the way out.
    fn ends_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(STEP);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.ends_within(Duration::ZERO).is_some() {
            return;
        }
        self.signal(Signal::TERM);
        if self.ends_within(GRACE).is_none() {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Of this thread's life, the part in which it could have run and another had its processor.
pub(crate) fn own_wait() -> Option<f64> {
    let (ran, waited) = times(&std::fs::read_to_string("/proc/thread-self/schedstat").ok()?)?;
    Some(waited as f64 / (ran + waited).max(1) as f64)
}

/// Of a thread's `schedstat`, the nanoseconds that it ran and waited to run.
fn times(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_whitespace().map(|field| field.parse().ok());
    Some((fields.next()??, fields.next()??))
}

/// Runs a command to its end; its standard output.
///
/// # Errors
/// It fails, or takes longer than `limit`.
pub(crate) fn run(line: &Line, limit: Duration) -> Result<String> {
    check()?;
    let mut out = tempfile::NamedTempFile::new()?;
    let err = tempfile::NamedTempFile::new()?;
    let mut command = line.command();
    command.stdin(Stdio::null()).stdout(out.reopen()?).stderr(err.reopen()?);
    let child = command.spawn().with_context(|| format!("cannot start {line}"))?;
    let mut job = Job { name: line.words[0].clone(), child, log: err.path().to_path_buf(), seen: 0 };
    let result = job.finish(limit);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut out, &mut text)?;
    result.with_context(|| format!("{line}{}{text}", if text.is_empty() { "" } else { "\n    " }))?;
    Ok(text)
}
