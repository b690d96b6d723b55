//! The rig of the conformance tests: a daemon with a network behind address translation, and one process that speaks
//! for two guests and for all of the outside, by scapy on raw sockets (`stations.py`).
//!
//! ```text
//!   world                              host
//!   a0, a guest's interface  <- tap a: network n :netdev -> up0 <- veth -> u0   world
//!   b0, another one's        <- tap b:
//! ```
//! The interfaces in `world` have no addresses: no IP stack answers there but what a test's script says. Daemon, process
//! and namespaces are shared by all tests; each makes the network anew, with the keys that it is about.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::{Daemon, Netns, logs, process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Debian's, which has scapy; there may be another one in PATH.
const PYTHON: &str = "/usr/bin/python3";
const STATIONS: &str = include_str!("stations.py");

/// How long a script may take: its own patience ends before.
const LIMIT: Duration = Duration::from_secs(60);

/// What the network is but for what a test is about.
const KEYS: &str = "mode=nat subnet=10.0.0.0/24 subnet6=fd00::/64 dhcp=10.0.0.100-10.0.0.110 dns=off \
    egress=uplink:up0 address=192.0.2.2/24 next-hop=192.0.2.254 address6=2001:db8::2/64 next-hop6=2001:db8::fe";

/// The process that speaks for the stations.
struct Stations {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
    dir: TempDir,
}

impl Stations {
    fn start(world: &Netns) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-stations-").tempdir()?;
        let mut command = world.command(PYTHON);
        command.args(["-u", "-c", STATIONS]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(dir.path().join("log"))?).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {PYTHON}"))?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, answers) = mpsc::channel();
        // It ends with the process, whose end closes the pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Stations { child, stdin, answers, dir })
    }

    fn tell(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.stdin, "{command}").context("the stations' process has ended")?;
        let answer = self.answers.recv_timeout(LIMIT).context("the stations do not answer")?;
        let answer: Value = serde_json::from_str(&answer).context("the stations answer in riddles")?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => bail!("{error}"),
            None => Ok(answer.get("value").cloned().unwrap_or_default()),
        }
    }
}

impl Drop for Stations {
    fn drop(&mut self) {
        process::kill(&mut self.child);
        logs::keep("the stations", &self.dir.path().join("log"));
    }
}

/// The rig. See the module's text.
pub(crate) struct Rig {
    stations: Stations,
    pub(super) daemon: Daemon,
    pub(super) host: Netns,
    world: Netns,
    is_built: bool,
}

impl Rig {
    pub(super) fn new() -> Result<Self> {
        let (host, world) = (Netns::new("host")?, Netns::new("world")?);
        host.run(&format!(
            "ip link add up0 type veth peer name u0 netns {}; ip link set up0 up",
            world.name()
        ))?;
        world.run("ip link set u0 up")?;
        let daemon = Daemon::start_in(&host)?;
        Ok(Rig { stations: Stations::start(&world)?, daemon, host, world, is_built: false })
    }

    /// Makes the network anew, with more keys, its ports `a` and `b`, and silent stations on them.
    pub(super) fn network(&mut self, keys: &str) -> Result<()> {
        self.network_with(keys, "", "")
    }

    /// The same with keys of ports `a` and `b`.
    pub(super) fn network_with(&mut self, keys: &str, a: &str, b: &str) -> Result<()> {
        if self.is_built {
            for line in ["port del --if-exists a", "port del --if-exists b", "net del --if-exists n"] {
                self.daemon.ok(line)?;
            }
        }
        self.is_built = true;
        self.daemon.ok(&format!("net add n {KEYS} {keys}"))?;
        for (port, keys) in [("a", a), ("b", b)] {
            self.daemon.ok(&format!("port add n {port} tap:{port}0 {keys}"))?;
            self.host.run(&format!("ip link set {port}0 netns {}", self.world.name()))?;
        }
        self.world.run("ip link set a0 up; ip link set b0 up; ip link set u0 up")?;
        for port in ["a", "b"] {
            self.daemon.await_port(port, "up")?;
        }
        self.open()
    }

    /// Has the stations take up the interfaces, and ask who the routers are.
    pub(super) fn open(&mut self) -> Result<()> {
        let command = json!({
            "open": {
                "a": {
                    "interface": "a0",
                    "mac": "52:54:00:00:00:0a",
                    "addresses": ["10.0.0.10", "fd00::a", "fe80::5054:ff:fe00:a"],
                },
                "b": {
                    "interface": "b0",
                    "mac": "52:54:00:00:00:0b",
                    "addresses": ["10.0.0.11", "fd00::b", "fe80::5054:ff:fe00:b"],
                },
                "u": {
                    "interface": "u0",
                    "mac": "52:54:00:00:00:fe",
                    "addresses": ["192.0.2.254", "2001:db8::fe", "fe80::5054:ff:fe00:fe"],
                },
            },
            "names": {
                "INSIDE": ["10.0.0.0/24", "fd00::/64"],
                // Guests, their gateway, the outside address.
                "A": "10.0.0.10", "B": "10.0.0.11", "G": "10.0.0.1", "X": "192.0.2.2",
                "A6": "fd00::a", "B6": "fd00::b", "G6": "fd00::1", "X6": "2001:db8::2",
                // The next hop, a router further away, and remote hosts behind it.
                "NH": "192.0.2.254", "HOP": "198.51.100.1", "R": "203.0.113.9", "S": "203.0.113.10",
                "NH6": "2001:db8::fe", "HOP6": "2001:db8:7::7", "R6": "2001:db8:9::9", "S6": "2001:db8:9::10",
            },
        });
        self.stations.tell(&command).context("the stations cannot begin")?;
        Ok(())
    }

    /// Plays a script (`stations.py` says what is in it); the value that it sets.
    pub(super) fn play(&mut self, script: &str) -> Result<Value> {
        // Scripts stand indented in their tests.
        let margin = |line: &str| line.len() - line.trim_start().len();
        let least = script.lines().filter(|l| !l.trim().is_empty()).map(margin).min().unwrap_or(0);
        let lines: Vec<&str> = script.lines().map(|line| line.get(least..).unwrap_or_default()).collect();
        self.stations.tell(&json!({ "play": lines.join("\n") }))
    }

    /// The sessions of the network, of a protocol.
    pub(super) fn sessions(&self, protocol: &str) -> Result<Vec<Value>> {
        let list = self.daemon.json("nat sessions n")?;
        let list = list.as_array().context("nat sessions is no array")?;
        Ok(list.iter().filter(|session| session["proto"] == protocol).cloned().collect())
    }

    /// How many frames that came in by a port were dropped for a reason.
    pub(super) fn dropped(&self, port: &str, reason: &str) -> Result<u64> {
        Ok(harness::counters(&self.daemon, port)?.dropped(reason))
    }
}
