//! The demo's processes: the daemon, the guests, the command line. Each ends when its owner is dropped.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::guest::{self, Answer, Order, Setup};
use super::kernel;

/// How long anything may take that is not a measurement.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the daemon's own network namespace comes from, if it can have one.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    enter: Vec<String>,
    join: Vec<String>,
}

impl Namespace {
    /// Finds out whether this user may have a network namespace with a tap in it; if not, why.
    pub(super) fn find() -> Result<Self, String> {
        let root = rustix::process::geteuid().is_root();
        let words = |w: &[&str]| w.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let (enter, join) = if root {
            (words(&["unshare", "--net"]), words(&["nsenter", "--net"]))
        } else {
            (
                words(&["unshare", "--user", "--map-root-user", "--net"]),
                words(&["nsenter", "--user", "--net", "--preserve-credentials"]),
            )
        };
        std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(|e| format!("/dev/net/tun: {e}"))?;
        let tried = Command::new(&enter[0]).args(&enter[1..]).arg("true").stdin(Stdio::null()).output();
        match tried {
            Ok(out) if out.status.success() => Ok(Self { enter, join }),
            Ok(out) => Err(String::from_utf8_lossy(&out.stderr)
                .lines()
                .next()
                .unwrap_or("unshare failed")
                .to_owned()),
            Err(e) => Err(format!("{}: {e}", enter[0])),
        }
    }
}

/// The daemon of the demo, and its command line.
pub(super) struct Daemon {
    program: PathBuf,
    directory: PathBuf,
    child: Child,
    namespace: Option<Namespace>,
    keep: bool,
}

impl Daemon {
    /// Starts `weft daemon` in a directory of its own.
    pub(super) fn start(directory: &Path, namespace: Option<Namespace>, keep: bool) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = match &namespace {
            Some(n) => {
                let mut c = Command::new(&n.enter[0]);
                c.args(&n.enter[1..]).arg(&program);
                c
            }
            None => Command::new(&program),
        };
        let log = std::fs::File::create(directory.join("daemon.log")).context("making the daemon's log")?;
        command
            .arg("daemon")
            .arg("--socket")
            .arg(directory.join("ctl.sock"))
            .arg("--state-dir")
            .arg(directory.join("state"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if keep {
            // The terminal's signals are for the demo, and the daemon outlives it.
            command.process_group(0);
        }
        let child = command.spawn().context("starting the daemon")?;
        let mut this = Self { program, directory: directory.to_owned(), child, namespace, keep: false };
        let deadline = Instant::now() + PATIENCE;
        while this.weft(&["status"]).is_err() {
            if let Some(status) = this.child.try_wait()? {
                bail!("the daemon ended ({status}): {}", this.log_tail());
            }
            if Instant::now() > deadline {
                bail!("the daemon did not answer: {}", this.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        this.keep = keep;
        Ok(this)
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.directory.join("daemon.log")).unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").to_owned()
    }

    /// The daemon's process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in the demo's directory.
    pub(super) fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// Runs the real command line against the daemon; its standard output.
    pub(super) fn weft(&self, args: &[&str]) -> anyhow::Result<String> {
        let out = Command::new(&self.program)
            .arg("--socket")
            .arg(self.directory.join("ctl.sock"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("running the command line")?;
        if !out.status.success() {
            bail!("weft {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The same with `--json`.
    pub(super) fn json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let text = self.weft(&[&["--json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("weft --json {} printed no JSON", args.join(" ")))
    }

    /// Starts a guest.
    pub(super) fn guest(&self, setup: &Setup) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.program);
        command.arg0(guest::ARG0).arg(serde_json::to_string(setup)?);
        Process::start(command, format!("guest {}", setup.number))
    }

    /// Starts the kernel's end on an interface of the daemon's namespace, or on the loopback interface where the daemon
    /// has no namespace of its own.
    pub(super) fn kernel(
        &self,
        interface: &str,
        address: &str,
        prefix: u8,
        port: u16,
    ) -> anyhow::Result<Process> {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new(&namespace.join[0]);
                command.args(["--target", &self.pid().to_string()]).args(&namespace.join[1..]);
                command.arg("--").arg(&self.program);
                command
            }
            None if interface == kernel::LOOPBACK => Command::new(&self.program),
            None => bail!("the daemon has no namespace of its own"),
        };
        command.args([kernel::ARG0, interface, address, &prefix.to_string(), &port.to_string()]);
        Process::start(command, "the kernel's end".to_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that takes orders and gives answers, a line each.
pub(super) struct Process {
    name: String,
    child: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Process {
    fn start(mut command: Command, name: String) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let orders = child.stdin.take();
        let stdout = child.stdout.take().context("the process has no output")?;
        let (to, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name, child, orders, answers })
    }

    /// Gives an order without waiting for its answer.
    pub(super) fn order(&mut self, order: &Order) -> anyhow::Result<()> {
        let orders = self.orders.as_mut().context("the process takes no orders")?;
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        orders.write_all(line.as_bytes()).with_context(|| format!("{} is gone", self.name))
    }

    /// The next answer. A failure is an error.
    pub(super) fn answer(&mut self) -> anyhow::Result<Answer> {
        let line =
            self.answers.recv_timeout(PATIENCE).with_context(|| format!("{} did not answer", self.name))?;
        match serde_json::from_str(&line)? {
            Answer::Failed { why } => bail!("{}: {why}", self.name),
            answer => Ok(answer),
        }
    }

    /// Gives an order and waits for its answer.
    pub(super) fn ask(&mut self, order: &Order) -> anyhow::Result<Answer> {
        self.order(order)?;
        self.answer()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
