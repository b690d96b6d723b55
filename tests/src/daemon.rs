//! The daemon under test, with a socket, a state directory and a log of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

pub use crate::process::Output;
use crate::{Netns, build_dir, eventually, logs, ordinary, process};

/// How long a verb, the start or the end of the daemon may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// How to start the daemon.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    args: Vec<String>,
    namespace: Option<String>,
    config: Option<String>,
    env: Vec<(String, String)>,
    unprivileged: bool,
    in_home: bool,
    files: Option<usize>,
}

/// Whom an unprivileged daemon runs as: `nobody`.
const NOBODY: u32 = 65_534;

impl DaemonOptions {
    /// In a network namespace.
    pub fn netns(mut self, namespace: &Netns) -> Self {
        self.namespace = Some(namespace.name().to_string());
        self
    }

    /// With more arguments to `weft daemon`.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// As an ordinary user, without a capability.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// With so many file descriptors at the most.
    pub fn files(mut self, most: usize) -> Self {
        self.files = Some(most);
        self
    }

    /// With its socket and its state where an ordinary user has them, by `XDG_RUNTIME_DIR` and `XDG_STATE_HOME`: nothing is
    /// said of either on the command line.
    pub fn in_home(mut self) -> Self {
        self.in_home = true;
        self
    }

    /// With a variable in its environment.
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_string(), value.into()));
        self
    }

    /// With this configuration file.
    pub fn config(mut self, text: impl Into<String>) -> Self {
        self.config = Some(text.into());
        self
    }

    /// Starts the daemon, and returns when it answers.
    ///
    /// # Errors
    /// It does not answer within 20 s.
    pub fn start(self) -> Result<Daemon> {
        let dir = tempfile::Builder::new().prefix("weft-").tempdir()?;
        let options = self;
        if let Some(text) = &options.config {
            std::fs::write(dir.path().join("weft.toml"), text)?;
        }
        if options.unprivileged {
            // The program, too: where it was built may be nobody else's to read.
            std::fs::copy(binary()?, dir.path().join("weft"))?;
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
            for path in [
                dir.path().to_owned(),
                dir.path().join("weft"),
                dir.path().join("run"),
                dir.path().join("state"),
            ] {
                if !path.exists() {
                    std::fs::create_dir(&path)?;
                }
                if !ordinary::inside() {
                    std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY))?;
                }
            }
        }
        let child = spawn(dir.path(), &options)?;
        let mut daemon = Daemon { child, dir, options };
        daemon.await_answer()?;
        Ok(daemon)
    }
}

/// A running daemon. Dropped, it is killed, and its log is kept for the test's report.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: TempDir,
    options: DaemonOptions,
}

/// The program under test.
///
/// # Errors
/// It was not built.
pub fn binary() -> Result<PathBuf> {
    let path = build_dir()?.join("weft");
    ensure!(path.is_file(), "{} is not there: cargo build --workspace --bins makes it", path.display());
    Ok(path)
}

fn spawn(dir: &Path, options: &DaemonOptions) -> Result<Child> {
    let weft = if options.unprivileged { dir.join("weft") } else { binary()? };
    let mut words: Vec<OsString> = Vec::new();
    if let Some(name) = &options.namespace {
        words.extend(["ip", "netns", "exec", name].map(Into::into));
    }
    if options.unprivileged && !ordinary::inside() {
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        words.push("setpriv".into());
        words.extend(user.map(Into::into));
        words.extend(
            ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"].map(Into::into),
        );
    }
    words.extend(ordinary::words());
    if let Some(most) = options.files {
        words.extend(["prlimit".to_string(), format!("--nofile={most}:{most}")].map(Into::into));
    }
    words.push(weft.into());
    let (program, args) = words.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(args).arg("daemon");
    if options.in_home {
        command.env("XDG_RUNTIME_DIR", dir.join("run")).env("XDG_STATE_HOME", dir.join("state"));
        command.env_remove("WEFT_SOCKET");
    } else {
        command.arg("--socket").arg(dir.join("ctl.sock"));
        command.arg("--state-dir").arg(dir.join("state"));
    }
    if options.config.is_some() {
        command.arg("--config").arg(dir.join("weft.toml"));
    }
    command.args(&options.args);
    command.envs(options.env.iter().map(|(key, value)| (key, value)));
    let log = File::options().create(true).append(true).open(dir.join("daemon.log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn().with_context(|| format!("cannot start {command:?}"))
}

impl Daemon {
    /// Starts the daemon with default options.
    ///
    /// # Errors
    /// It does not answer within 20 s.
    pub fn start() -> Result<Self> {
        DaemonOptions::default().start()
    }

    /// Starts the daemon in a network namespace.
    ///
    /// # Errors
    /// It does not answer within 20 s.
    pub fn start_in(namespace: &Netns) -> Result<Self> {
        DaemonOptions::default().netns(namespace).start()
    }

    fn await_answer(&mut self) -> Result<()> {
        eventually("the daemon's answer", LIMIT, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended at once ({status})");
            }
            let output = self.weft(&["status"])?;
            Ok(if output.code == 0 { Ok(()) } else { Err(output.stderr) })
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its ctl socket.
    pub fn socket(&self) -> PathBuf {
        let home = if self.options.in_home { "run/weft/ctl.sock" } else { "ctl.sock" };
        self.dir.path().join(home)
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A path in the directory that goes with the daemon: for sockets and files of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory that goes with the daemon.
    pub fn home(&self) -> &Path {
        self.dir.path()
    }

    /// The path of its configuration file, given with [`DaemonOptions::config`].
    pub fn config_path(&self) -> PathBuf {
        self.path("weft.toml")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// Runs `weft --socket … ARGS`, however it ends.
    ///
    /// # Errors
    /// It cannot be started, or has not ended within 20 s.
    pub fn weft<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        process::run(Command::new(binary()?).arg("--socket").arg(self.socket()).args(args), LIMIT)
    }

    /// Runs a verb given as one line of words; what it printed.
    ///
    /// # Errors
    /// It exits with anything but 0.
    pub fn ok(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.weft(&words)?.ok().with_context(|| format!("weft {line}"))
    }

    /// Runs a verb given as one line of words, with `--json`; the value it printed.
    ///
    /// # Errors
    /// It exits with anything but 0, or prints something that is not one JSON value.
    pub fn json(&self, line: &str) -> Result<Value> {
        let text = self.ok(&format!("--json {line}"))?;
        serde_json::from_str(&text).with_context(|| format!("weft --json {line} printed {text}"))
    }

    /// Runs a verb that must be refused with exit status `code`; the one line it says about it.
    ///
    /// # Errors
    /// It exits with another status, prints on standard output, or does not say why in one line.
    pub fn refused(&self, code: i32, args: &[&str]) -> Result<String> {
        let output = self.weft(args)?;
        let told = || format!("weft {}: {output:?}", args.join(" "));
        ensure!(output.code == code, "{}: expected exit status {code}", told());
        ensure!(output.stdout.is_empty(), "{}: standard output is not empty", told());
        if code != 2 {
            ensure!(output.stderr.trim_end().lines().count() == 1, "{}: expected one line", told());
        }
        Ok(output.stderr.trim_end().to_string())
    }

    /// One port of `port list`.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn port(&self, name: &str) -> Result<Value> {
        let list = self.json("port list")?;
        let ports = list.as_array().context("port list is no array")?;
        let port = ports.iter().find(|port| port.get("name").and_then(Value::as_str) == Some(name));
        port.cloned().with_context(|| format!("no port {name} in {list}"))
    }

    /// Waits until port `name` is in state `state`.
    ///
    /// # Errors
    /// It is in another after 20 s.
    pub fn await_port(&self, name: &str, state: &str) -> Result<()> {
        eventually(&format!("port {name} {state}"), LIMIT, || {
            let port = self.port(name)?;
            Ok(if port.get("state").and_then(Value::as_str) == Some(state) {
                Ok(())
            } else {
                Err(port.to_string())
            })
        })
    }

    /// What the daemon's process holds.
    ///
    /// # Errors
    /// It has ended.
    pub fn holdings(&self) -> Result<process::Holdings> {
        process::holdings(self.pid())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(&self.child, signal)
    }

    /// SIGTERM; its exit status.
    ///
    /// # Errors
    /// It has not ended within 20 s.
    pub fn terminate(&mut self) -> Result<i32> {
        self.signal(Signal::TERM)?;
        Ok(process::code(process::wait(&mut self.child, LIMIT).context("the daemon, after SIGTERM")?))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        process::kill(&mut self.child);
    }

    /// Starts it again, after [`Daemon::kill`] or [`Daemon::terminate`], on the same socket, state and configuration.
    ///
    /// # Errors
    /// It does not answer within 20 s.
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(self.dir.path(), &self.options)?;
        self.await_answer()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            // The tests' own SIGKILL (137) and a clean end are no faults; anything else is.
            let code = process::code(status);
            if code != 0 && code != 137 {
                logs::fault(format!("the daemon had ended by itself, with status {code}"));
            }
        }
        process::kill(&mut self.child);
        if let Some(line) = self.log().lines().find(|line| line.contains("panicked at")) {
            logs::fault(format!("the daemon panicked: {line}"));
        }
        logs::keep("the daemon", &self.path("daemon.log"));
    }
}
