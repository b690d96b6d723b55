//! `weft demo`: the switch on real traffic, in one command, without root.
//!
//! The real daemon runs on a socket in a directory of its own. Guests are processes with shared memory and rings
//! of their own, the driver's side of virtio-net, and an IP stack. They find each other, ping, and move bulk data
//! through the daemon, on a network of each mode; each step is measured and passes or fails. Where this user may have a network namespace, a
//! kernel's IP stack joins on a tap. Everything shown of the switch comes from the real command line.

pub(crate) mod guest;
pub(crate) mod kernel;
mod networks;
mod process;
mod steps;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use ctl::cli::DemoOptions;
use serde_json::{Value, json};

use process::{Daemon, Namespace};

/// What the demo says of each step, and in the end.
struct Report {
    json: bool,
    steps: Vec<Value>,
    failed: usize,
}

impl Report {
    fn line(&self, text: &str) {
        if !self.json {
            print(text);
        }
    }

    /// A step is over.
    fn step(&mut self, name: &str, result: anyhow::Result<(String, Value)>) {
        let (pass, text, values) = match result {
            Ok((text, values)) => (true, text, values),
            Err(e) => (false, format!("{e:#}"), json!({ "error": format!("{e:#}") })),
        };
        self.failed += usize::from(!pass);
        self.line(&format!("{}  {name:<34} {text}", if pass { "PASS" } else { "FAIL" }));
        self.steps.push(json!({ "name": name, "pass": pass, "text": text, "values": values }));
    }

    /// A step that this user or host does not allow.
    fn left_out(&mut self, name: &str, why: &str) {
        self.line(&format!("----  {name:<34} left out: {why}"));
        self.steps.push(json!({ "name": name, "left_out": why }));
    }

    /// What the command line says, as it says it.
    fn show(&self, daemon: &Daemon, args: &[&str]) {
        if let Ok(text) = daemon.weft(args) {
            self.line(&format!("\n$ weft {}\n{}", args.join(" "), text.trim_end()));
        }
    }
}

/// Prints a line. A reader that closed the pipe has seen what it wanted; the demo still ends by itself.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Runs the demo. Zero only if every step passed.
pub(crate) fn run(options: DemoOptions) -> ExitCode {
    match try_run(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft: the demo could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: DemoOptions) -> anyhow::Result<bool> {
    let directory =
        tempfile::Builder::new().prefix("weft-demo-").tempdir().context("making a directory for the demo")?;
    let namespace = Namespace::find();
    let why_not = namespace.as_ref().err().cloned();
    let daemon = Daemon::start(directory.path(), namespace.ok(), options.keep)?;
    let mut report = Report { json: options.json, steps: Vec::new(), failed: 0 };
    report.line(steps::TOPOLOGY);
    let run = steps::run(&daemon, &mut report, why_not.as_deref());
    if let Err(error) = run {
        report.step("the demo's own set-up", Err(error));
    }
    let passed = report.failed == 0;
    if options.keep {
        keep(&daemon, &report, directory)?;
    }
    if options.json {
        print(&json!({ "pass": passed, "steps": report.steps }).to_string());
    } else {
        let total = report.steps.iter().filter(|s| s.get("pass").is_some()).count();
        print(&format!("\n{} of {total} steps passed", total - report.failed));
    }
    Ok(passed)
}

/// Leaves the daemon running with two ports for virtual machines, and says how to use and end it.
fn keep(daemon: &Daemon, report: &Report, directory: tempfile::TempDir) -> anyhow::Result<()> {
    let directory = directory.keep();
    for vm in ["vm1", "vm2"] {
        daemon.weft(&[
            "port",
            "add",
            steps::NETWORK,
            vm,
            &format!("vhost-user:{}", daemon.path(&format!("{vm}.sock"))),
        ])?;
    }
    let socket = daemon.path("vm1.sock");
    report.line(&format!(
        "
The switch goes on running: process {pid}, ctl socket {ctl}
  weft --socket {ctl} port list          kill {pid} ends it; then remove {dir}

QEMU:
  qemu-system-x86_64 … -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\
    -chardev socket,id=c0,path={socket} -netdev vhost-user,id=n0,chardev=c0 \\
    -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:51

libvirt (in the domain's description):
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <interface type='vhostuser'>
    <source type='unix' path='{socket}' mode='client'/>
    <model type='virtio'/>
  </interface>

cloud-hypervisor:
  cloud-hypervisor … --memory size=1G,shared=on --net vhost_user=on,socket={socket},mac=52:54:00:00:00:51",
        pid = daemon.pid(),
        ctl = daemon.path("ctl.sock"),
        dir = directory.display(),
    ));
    Ok(())
}
