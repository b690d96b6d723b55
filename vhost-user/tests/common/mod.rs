//! A datapath for tests: one thread that polls the queues it was given, checks their frames as the real one
//! does, and hands all of them to one other port. It arms its queues and sleeps when there is nothing to do.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use datapath::port::RxDrops;
use datapath::{Armed, Burst, QueueHost, QueueId, RxQueue, TxPort};
use rustix::event::{PollFd, PollFlags, Timespec};
use switch_core::PortId;
use switch_core::ids::Registry;
use vhost_user::{PortConfig, PortState, Role, VhostUserPort};

/// How long anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What happened to a port's frames.
#[derive(Default)]
pub struct Counters {
    pub received: AtomicU64,
    pub dropped_by_check: AtomicU64,
    pub short_header: AtomicU64,
    pub oversize: AtomicU64,
    pub too_many_segments: AtomicU64,
    pub sent: AtomicU64,
    pub full: AtomicU64,
    pub too_small: AtomicU64,
    pub down: AtomicU64,
    pub error: AtomicU64,
}

impl Counters {
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

struct Attached {
    port: PortId,
    queue: Box<dyn RxQueue>,
    broken: bool,
}

#[derive(Default)]
struct Inner {
    queues: Mutex<HashMap<QueueId, Attached>>,
    routes: Mutex<HashMap<PortId, Arc<dyn TxPort>>>,
    counters: Mutex<HashMap<PortId, Arc<Counters>>>,
    errors: Mutex<Vec<String>>,
    next: AtomicU64,
    stop: AtomicBool,
    sleeps: AtomicU64,
}

pub struct Host {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

struct Handle(Arc<Inner>);

impl QueueHost for Handle {
    fn attach(&self, port: PortId, queue: Box<dyn RxQueue>) -> QueueId {
        let id = QueueId::from_raw(self.0.next.fetch_add(1, Ordering::Relaxed));
        self.0.queues.lock().unwrap().insert(id, Attached { port, queue, broken: false });
        id
    }

    fn detach(&self, id: QueueId) -> Option<Box<dyn RxQueue>> {
        self.0.queues.lock().unwrap().remove(&id).map(|a| a.queue)
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    pub fn new() -> Self {
        let inner = Arc::new(Inner::default());
        let thread = {
            let inner = Arc::clone(&inner);
            std::thread::spawn(move || work(&inner))
        };
        Self { inner, thread: Some(thread) }
    }

    pub fn handle(&self) -> Arc<dyn QueueHost> {
        Arc::new(Handle(Arc::clone(&self.inner)))
    }

    /// Everything received from `from` goes to `to`.
    pub fn route(&self, from: PortId, to: Arc<dyn TxPort>) {
        self.inner.routes.lock().unwrap().insert(from, to);
    }

    pub fn counters(&self, port: PortId) -> Arc<Counters> {
        Arc::clone(self.inner.counters.lock().unwrap().entry(port).or_default())
    }

    pub fn errors(&self) -> Vec<String> {
        self.inner.errors.lock().unwrap().clone()
    }

    pub fn queues(&self) -> usize {
        self.inner.queues.lock().unwrap().len()
    }

    pub fn sleeps(&self) -> u64 {
        self.inner.sleeps.load(Ordering::Relaxed)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            if !std::thread::panicking() {
                joined.expect("the worker of the test panicked");
            }
        }
    }
}

fn work(inner: &Inner) {
    let mut burst = Burst::new();
    let mut idle = 0;
    while !inner.stop.load(Ordering::Relaxed) {
        let mut fds = Vec::new();
        {
            let mut queues = inner.queues.lock().unwrap();
            let mut found = 0;
            for attached in queues.values_mut().filter(|a| !a.broken) {
                found += pass(inner, attached, &mut burst);
            }
            idle = if found > 0 { 0 } else { idle + 1 };
            if idle > 50 {
                let mut work = false;
                for attached in queues.values_mut().filter(|a| !a.broken) {
                    match attached.queue.arm() {
                        Ok(Armed::Sleeping) => fds.push(attached.queue.wake_fd()),
                        Ok(Armed::Work) => work = true,
                        Err(e) => {
                            attached.broken = true;
                            inner.errors.lock().unwrap().push(e.to_string());
                        }
                    }
                }
                if work {
                    queues.values_mut().for_each(|a| a.queue.disarm());
                    continue;
                }
            }
        }
        if idle > 50 {
            inner.sleeps.fetch_add(1, Ordering::Relaxed);
            // SAFETY: a descriptor that was closed meanwhile makes poll return at once, which is harmless here.
            let mut polled: Vec<PollFd<'_>> = fds
                .iter()
                .map(|&fd| PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(fd) }, PollFlags::IN))
                .collect();
            let time = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            let _ = rustix::event::poll(&mut polled, Some(&time));
            inner.queues.lock().unwrap().values_mut().for_each(|a| a.queue.disarm());
            idle = 0;
        } else if idle > 10 {
            std::thread::yield_now();
        }
    }
}

fn pass(inner: &Inner, attached: &mut Attached, burst: &mut Burst) -> usize {
    let counters = Arc::clone(inner.counters.lock().unwrap().entry(attached.port).or_default());
    let add = |counter: &AtomicU64, n: u64| {
        counter.fetch_add(n, Ordering::Relaxed);
    };
    burst.clear();
    let mut drops = RxDrops::default();
    let found = match attached.queue.rx_burst(burst, &mut drops) {
        Ok(n) => n,
        Err(e) => {
            attached.broken = true;
            inner.errors.lock().unwrap().push(e.to_string());
            return 0;
        }
    };
    add(&counters.short_header, drops.short_header.into());
    add(&counters.oversize, drops.oversize.into());
    add(&counters.too_many_segments, drops.too_many_segments.into());
    add(&counters.received, found as u64);
    let accepted = burst.accepted;
    let mut members = Vec::with_capacity(64);
    for (i, head) in burst.heads_mut().iter_mut().enumerate() {
        match switch_core::check::frame(head, accepted) {
            Ok(()) => members.push(i as u8),
            Err(_) => add(&counters.dropped_by_check, 1),
        }
    }
    let to = inner.routes.lock().unwrap().get(&attached.port).cloned();
    if let Some(to) = to
        && !members.is_empty()
    {
        let mut bucket = burst.bucket(&members);
        match to.tx_burst(0, &mut bucket) {
            Ok(report) => {
                add(&counters.full, report.full.count_ones().into());
                add(&counters.too_small, report.too_small.count_ones().into());
                add(&counters.down, report.down.count_ones().into());
                add(&counters.error, report.error.count_ones().into());
                add(&counters.sent, members.len() as u64 - u64::from(report.dropped().count_ones()));
            }
            Err(e) => {
                inner.errors.lock().unwrap().push(e.to_string());
                add(&counters.error, members.len() as u64);
            }
        }
    }
    attached.queue.release();
    found + (drops.short_header + drops.oversize + drops.too_many_segments) as usize
}

/// Ports on one test datapath, in a directory of their own.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub host: Host,
    ids: Mutex<Registry<PortId>>,
}

pub struct TestPort {
    pub id: PortId,
    pub path: PathBuf,
    pub states: Arc<Mutex<Vec<PortState>>>,
    pub counters: Arc<Counters>,
    pub port: VhostUserPort,
}

impl Default for Rig {
    fn default() -> Self {
        Self::new()
    }
}

impl Rig {
    pub fn new() -> Self {
        let ids = Mutex::new(Registry::new(64));
        Self { dir: tempfile::tempdir().unwrap(), host: Host::new(), ids }
    }

    pub fn port(&self, name: &str) -> TestPort {
        self.port_with(name, |_| {})
    }

    pub fn port_with(&self, name: &str, change: impl FnOnce(&mut PortConfig)) -> TestPort {
        let id = self.ids.lock().unwrap().mint().unwrap();
        let path = self.dir.path().join(name);
        let mut config = PortConfig { id, path: path.clone(), role: Role::Server, queue_pairs: 1, mtu: None };
        change(&mut config);
        let states = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&states);
        let port =
            VhostUserPort::new(config, self.host.handle(), move |state| seen.lock().unwrap().push(state))
                .unwrap();
        TestPort { id, path, states, counters: self.host.counters(id), port }
    }

    /// Two ports, joined both ways.
    pub fn pair(&self) -> (TestPort, TestPort) {
        let (a, b) = (self.port("a.sock"), self.port("b.sock"));
        self.join(&a, &b);
        (a, b)
    }

    pub fn join(&self, a: &TestPort, b: &TestPort) {
        self.host.route(a.id, b.port.tx());
        self.host.route(b.id, a.port.tx());
    }
}

impl TestPort {
    /// Waits for the state; what it is instead is in the panic.
    pub fn wait_state(&self, wanted: &PortState) {
        until(&format!("{wanted:?}, not {:?}", self.port.state()), || self.port.state() == *wanted);
    }

    /// Waits for an error whose reason holds `what`.
    pub fn wait_error(&self, what: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.port.state() {
                PortState::Error(reason) if reason.contains(what) => return,
                state if Instant::now() > end => {
                    panic!("expected an error with '{what}', the state is {state:?}")
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "did not come: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An Ethernet frame of `len` bytes (at least 18) between two stations, with a number to know it by.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut f = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5];
    f.extend_from_slice(&number.to_be_bytes());
    let mut x = number.wrapping_mul(2_654_435_761) | 1;
    while f.len() < len {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        f.push(x as u8);
    }
    f
}

/// Descriptors that this process has open.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Mappings of shared memory files in this process.
pub fn shared_maps() -> usize {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .filter(|l| l.contains("memfd:") || l.contains("/dev/zero"))
        .count()
}

/// A path in the rig's directory.
pub fn path(rig: &Rig, name: &str) -> PathBuf {
    Path::new(rig.dir.path()).join(name)
}
