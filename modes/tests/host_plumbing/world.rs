//! Network namespaces for threads, the tools that furnish them, and plumbers to try.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use modes::host::{Event, Options, Plumber};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use tempfile::TempDir;

/// What these tests need and do not have.
pub(crate) fn unmet_need() -> Option<String> {
    for (program, argument) in [("ip", "-V"), ("nft", "--version"), ("ping", "-V")] {
        if Command::new(program).arg(argument).output().is_err() {
            return Some(format!("needs {program}"));
        }
    }
    let entered = thread::spawn(|| enter_new().map_err(|e| e.to_string())).join();
    match entered {
        Ok(Ok(())) => None,
        _ => Some("needs root: a network namespace of its own".into()),
    }
}

/// Moves the calling thread into a network namespace of its own, which ends with the thread and what it opened.
fn enter_new() -> rustix::io::Result<()> {
    // SAFETY: a network namespace has nothing to do with memory; only the thread's view of the network changes.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Runs a test in a fresh namespace, on a thread of its own.
pub(crate) fn isolated(body: fn()) -> Result<(), Failed> {
    let done = thread::spawn(move || {
        enter_new().expect("a network namespace");
        sh("ip link set lo up");
        body();
    });
    done.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default().into()
    })
}

/// A namespace that threads can enter.
pub(crate) struct Namespace(File);

impl Namespace {
    /// A fresh one.
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            enter_new().expect("a network namespace");
            sh("ip link set lo up");
            File::open("/proc/thread-self/ns/net").expect("the namespace's file")
        });
        Self(made.join().expect("a namespace"))
    }

    /// A pair of interfaces: `inside` in here, `outside` in the calling thread's namespace.
    pub(crate) fn veth(&self, inside: &str, outside: &str) {
        let here = rustix::thread::gettid().as_raw_nonzero();
        self.sh(&format!("ip link add {inside} type veth peer name {outside} netns {here}"));
    }

    /// Runs `f` inside, on a thread of its own, and waits for it.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("the namespace");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a shell script inside.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.run(|| sh(script))
    }
}

/// Runs a shell script; its standard output. Panics with what it said if it fails.
pub(crate) fn sh(script: &str) -> String {
    let out = try_sh(script);
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a shell script, however it ends.
pub(crate) fn try_sh(script: &str) -> Output {
    let limited = format!("exec timeout 60 sh -ec '{}'", script.replace('\'', r"'\''"));
    Command::new("sh").args(["-c", &limited]).output().expect("a shell")
}

/// A plumber with a state directory of its own.
pub(crate) struct Try {
    pub(crate) plumber: Plumber,
    pub(crate) events: Receiver<Event>,
}

/// Starts one.
pub(crate) fn plumber(state: &TempDir, change: impl FnOnce(&mut Options)) -> Try {
    let mut options = Options::new(state.path());
    options.fail_at = None;
    change(&mut options);
    let (sender, events) = channel();
    let plumber = Plumber::start(options, move |event| drop(sender.send(event))).expect("a plumber");
    Try { plumber, events }
}

impl Try {
    /// The next event.
    pub(crate) fn event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(15)).expect("an event")
    }
}

/// An empty directory.
pub(crate) fn state_dir() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// True if nothing is left in the journal.
pub(crate) fn is_clean(state: &TempDir) -> bool {
    std::fs::read(state.path().join(modes::host::JOURNAL_NAME)).map_or(true, |bytes| bytes.is_empty())
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A sysctl, as the calling thread's namespace has it.
pub(crate) fn sysctl(path: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/sys/net/{path}")).expect("a sysctl");
    text.trim().to_owned()
}

/// Sets one.
pub(crate) fn set_sysctl(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).expect("a sysctl");
}
