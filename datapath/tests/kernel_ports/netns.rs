//! Network namespaces for threads, and the tools that furnish them.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use datapath::netdev::link::Links;
use libtest_mimic::Failed;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// What these tests need and do not have.
pub(crate) fn unmet_need() -> Option<String> {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("needs /dev/net/tun".into());
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("needs iproute2".into());
    }
    if Command::new("ethtool").arg("--version").output().is_err() {
        return Some("needs ethtool".into());
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
        ip("link set lo up");
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
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("the namespace's file")
        });
        Self(made.join().expect("a namespace"))
    }

    /// A pair of interfaces: `inside` in here, `outside` in the calling thread's namespace.
    pub(crate) fn veth(&self, inside: &str, outside: &str) {
        let here = rustix::thread::gettid().as_raw_nonzero();
        self.run(|| {
            ip(&format!("link add {inside} type veth peer name {outside} netns {here}"));
            hush(inside);
        });
        hush(outside);
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
}

/// Sets an interface up, and waits until it carries frames. Before the kernel has worked off the change of
/// the carrier, the interface drops what it is given.
pub(crate) fn up(interface: &str) {
    ip(&format!("link set {interface} up"));
    let links = Links::open().expect("a socket");
    let running = || links.get(interface).is_ok_and(|link| link.is_some_and(|link| link.running));
    let end = Instant::now() + Duration::from_secs(5);
    while !running() {
        assert!(Instant::now() < end, "{interface} has no carrier");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The flag shows in the middle of that work; this waits for the lock that covers it.
    ip(&format!("link set {interface} up"));
}

/// Runs `ip`; panics with what it said if it fails.
pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs `ethtool`; panics with what it said if it fails.
pub(crate) fn ethtool(arguments: &str) {
    run("ethtool", arguments);
}

fn run(program: &str, arguments: &str) {
    let out = Command::new(program).args(arguments.split_whitespace()).output().expect("the program runs");
    assert!(out.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Keeps the kernel from speaking on its own (router solicitations, multicast reports).
pub(crate) fn hush(interface: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    // A thread's own view of /proc/sys is that of its namespace.
    std::fs::write(path, "1").expect("IPv6 off");
}
