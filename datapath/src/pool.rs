//! The workers as one: who polls what, and how the control side reaches them.
//!
//! Everything here is called off the workers. A queue goes to the worker that has least to do, then to the one with
//! the fewest; [`Datapath::rebalance`] moves queues when loads have become uneven. A change of topology returns when
//! every worker has taken it over, so that it holds for the next frame.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use mio::{Poll, Waker};
use rustix::thread::{CpuSet, sched_setaffinity};
use switch_core::{Instant, PortId};

use crate::balance::{Balancer, Move, QueueLoad};
use crate::counters::QueueStats;
use crate::host::{QueueHost, QueueId};
use crate::load::Shares;
use crate::port::RxQueue;
use crate::ticks::{self, Clock};
use crate::topology::Topology;
use crate::worker::{Command, WAKER, Worker};

pub use crate::counters::WorkerStats;

/// Frames in a burst, on average, from which on more were waiting: bursts hold 64.
const BACKLOG: u64 = 48;
/// Events that wait for the control side, at most; further ones are counted and lost.
const EVENTS: usize = 1024;

/// How a worker spends its time when there is no work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pacing {
    /// Polls under load, sleeps when idle.
    #[default]
    Adaptive,
    /// Never sleeps.
    Busy,
}

/// What workers tell the control side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A port's queue or transmit side failed. The queue is left alone until it is taken back.
    Broken {
        /// The port.
        port: PortId,
        /// Why, for a person to read.
        reason: String,
    },
}

/// The workers' end of the events. Never blocks.
#[derive(Clone)]
pub(crate) struct EventSink {
    to: SyncSender<Event>,
    lost: Arc<AtomicU64>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl EventSink {
    pub(crate) fn send(&self, event: Event) {
        if self.to.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        (self.wake)();
    }
}

/// How the datapath is to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// One worker on each of these CPUs, bound to it.
    pub cpus: Vec<usize>,
    /// Workers that are not bound, when `cpus` is empty; at least one is started.
    pub unbound: usize,
    /// What workers do when there is no work.
    pub pacing: Pacing,
}

struct Handle {
    cpu: Option<usize>,
    commands: Sender<Command>,
    pending: Arc<AtomicBool>,
    waker: Waker,
    stats: Arc<WorkerStats>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Busy ticks and bursts until now.
    fn work(&self) -> (u64, u64) {
        (self.stats.cycles_busy.load(Ordering::Relaxed), self.stats.bursts.load(Ordering::Relaxed))
    }

    fn tell(&self, command: Command) {
        // A worker ends only when the datapath is dropped, so the queue has a reader.
        if self.commands.send(command).is_ok() {
            self.pending.store(true, Ordering::Release);
            let _ = self.waker.wake();
        }
    }
}

/// A queue that a worker polls.
struct Attached {
    worker: usize,
    port: PortId,
    stats: Arc<QueueStats>,
    /// What its counters were at the last measurement.
    frames: u64,
    bursts: u64,
    cycles: u64,
    /// Ticks that its bursts took between the last two.
    load: u64,
}

#[derive(Default)]
struct Assigned {
    next: u64,
    queues: BTreeMap<QueueId, Attached>,
    balancer: Balancer,
    /// When the queues were measured last, in ticks.
    at: u64,
    /// How long before that they were measured.
    interval: u64,
}

impl Assigned {
    /// For each worker its load in eighths of its time, and how many queues it has: who has least gets the next one.
    fn weights(&self, workers: usize) -> Vec<(u64, usize)> {
        let mut weights = vec![(0, 0); workers];
        for q in self.queues.values() {
            weights[q.worker].0 += q.load;
            weights[q.worker].1 += 1;
        }
        let eighth = (self.interval / 8).max(1);
        weights.into_iter().map(|(load, queues)| (load / eighth, queues)).collect()
    }

    /// Measures the queues at `ticks`.
    fn measure(&mut self, ticks: u64) -> Vec<QueueLoad> {
        self.interval = ticks.saturating_sub(self.at);
        self.at = ticks;
        let loads = self.queues.iter_mut().map(|(&id, q)| {
            let [frames, bursts, cycles] =
                [&q.stats.frames, &q.stats.bursts, &q.stats.cycles].map(|n| n.load(Ordering::Relaxed));
            let (new_frames, new_bursts) = (frames - q.frames, bursts - q.bursts);
            q.load = cycles - q.cycles;
            (q.frames, q.bursts, q.cycles) = (frames, bursts, cycles);
            let backlog = new_bursts > 0 && new_frames >= new_bursts * BACKLOG;
            QueueLoad { id, worker: q.worker, ticks: q.load, backlog }
        });
        loads.collect()
    }
}

/// A queue that was moved to another worker, because of its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The port whose queue it is.
    pub port: PortId,
    /// The number of the worker that had it.
    pub from: usize,
    /// The number of the worker that has it.
    pub to: usize,
}

/// The workers. See the module's text.
pub struct Datapath {
    workers: Vec<Handle>,
    assigned: Mutex<Assigned>,
    /// The topology that all workers have. Locked while another is handed out, so that all end with the same one; kept
    /// so that it is taken apart here, and not by the worker that lets go of it last.
    published: Mutex<Arc<Topology>>,
    events: Mutex<Option<Receiver<Event>>>,
    events_lost: Arc<AtomicU64>,
    origin: std::time::Instant,
    clock: Clock,
    shares: Mutex<Shares>,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these; if it did, the data is still whole.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Datapath {
    /// Starts the workers. `on_event` is called, on a worker's thread, when an event was queued: it must not
    /// block. Errors: no epoll or eventfd to be had, a CPU that does not exist, no thread.
    pub fn start(options: &Options, on_event: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let (to, events) = sync_channel(EVENTS);
        let events_lost = Arc::new(AtomicU64::new(0));
        let sink = EventSink { to, lost: Arc::clone(&events_lost), wake: Arc::new(on_event) };
        let origin = std::time::Instant::now();
        let cpus: Vec<Option<usize>> = if options.cpus.is_empty() {
            vec![None; options.unbound.max(1)]
        } else {
            options.cpus.iter().copied().map(Some).collect()
        };
        let mut this = Self {
            workers: Vec::new(),
            assigned: Mutex::default(),
            published: Mutex::default(),
            events: Mutex::new(Some(events)),
            events_lost,
            origin,
            clock: Clock::start(),
            shares: Mutex::default(),
        };
        for (index, cpu) in cpus.into_iter().enumerate() {
            let worker = Self::start_worker(index, cpu, options.pacing, origin, sink.clone())?;
            this.workers.push(worker);
        }
        Ok(this)
    }

    fn start_worker(
        index: usize,
        cpu: Option<usize>,
        pacing: Pacing,
        origin: std::time::Instant,
        sink: EventSink,
    ) -> io::Result<Handle> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (commands, receiver) = channel();
        let pending = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(WorkerStats::default());
        let (ready, started) = sync_channel(1);
        let worker_pending = Arc::clone(&pending);
        let worker_stats = Arc::clone(&stats);
        let thread = std::thread::Builder::new().name(format!("weft-worker-{index}")).spawn(move || {
            let bound = match cpu {
                None => Ok(()),
                Some(cpu) if cpu >= CpuSet::MAX_CPU => Err(io::Error::from(io::ErrorKind::InvalidInput)),
                Some(cpu) => {
                    let mut set = CpuSet::new();
                    set.set(cpu);
                    sched_setaffinity(None, &set).map_err(io::Error::from)
                }
            };
            let failed = bound.is_err();
            let _ = ready.send(bound);
            if !failed {
                let worker =
                    Worker::new(index, poll, receiver, worker_pending, pacing, origin, worker_stats, sink);
                if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                    // A defect. Going on without this worker would leave its ports dead while the daemon looks
                    // alive; a service manager starts a daemon that ended again, and guests reconnect.
                    std::process::abort();
                }
            }
        })?;
        let bound = started.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        bound.map_err(|e| {
            io::Error::new(e.kind(), format!("binding a worker to CPU {}: {e}", cpu.unwrap_or_default()))
        })?;
        Ok(Handle { cpu, commands, pending, waker, stats, thread: Some(thread) })
    }

    /// Workers, at least one.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// What each worker did, and the CPU that it is bound to.
    pub fn stats(&self) -> impl Iterator<Item = (Option<usize>, &WorkerStats)> {
        self.workers.iter().map(|w| (w.cpu, &*w.stats))
    }

    /// The clock that the workers' cycles are counted by, running since they were started.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Measures what the workers did since the last call; true if a frame moved. To be called about once a second
    /// while frames move, and may be called less often while none do.
    pub fn measure(&self) -> bool {
        let now = ticks::now();
        let read = |w: &Handle| {
            (w.stats.cycles_busy.load(Ordering::Relaxed), w.stats.bursts.load(Ordering::Relaxed))
        };
        lock(&self.shares).measure(now, self.workers.iter().map(read))
    }

    /// The share of its time that each worker was busy with frames lately, in thousandths: between the last two
    /// calls of [`Datapath::measure`], or until now if the last is a second ago.
    pub fn busy_permille(&self) -> Vec<u16> {
        let mut shares = lock(&self.shares);
        if shares.age(ticks::now()) >= self.clock.per_second() {
            shares.measure(ticks::now(), self.workers.iter().map(Handle::work));
        }
        shares.permille().collect()
    }

    /// Now, on the clock that workers give to modes.
    pub fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The receiving end of the workers' events; `None` after the first call.
    pub fn take_events(&self) -> Option<Receiver<Event>> {
        lock(&self.events).take()
    }

    /// Events that found the queue full.
    pub fn events_lost(&self) -> u64 {
        self.events_lost.load(Ordering::Relaxed)
    }

    /// Swaps in another topology; returns when every worker uses it.
    pub fn set_topology(&self, topology: Topology) {
        let topology = Arc::new(topology);
        let mut published = lock(&self.published);
        let waits: Vec<Receiver<()>> = self
            .workers
            .iter()
            .map(|w| {
                let (reply, wait) = sync_channel(1);
                w.tell(Command::Topology { topology: Arc::clone(&topology), reply });
                wait
            })
            .collect();
        for wait in waits {
            // An error is a worker that has ended: it uses no topology.
            let _ = wait.recv();
        }
        *published = topology;
    }

    fn take_back(&self, worker: usize, id: QueueId) -> Option<Box<dyn RxQueue>> {
        let (reply, wait) = sync_channel(1);
        self.workers.get(worker)?.tell(Command::Detach { id, reply });
        wait.recv().ok().flatten()
    }

    /// Moves the queue that makes the workers' loads more even, if there is one that is worth it. To be called at
    /// regular intervals, of about a second: a load is what was measured in one of them, and a move must have been worth
    /// it in two. The queue's frames stay in their order, and none is lost.
    pub fn rebalance(&self) -> Option<Moved> {
        let mut assigned = lock(&self.assigned);
        let first = assigned.at == 0;
        let loads = assigned.measure(ticks::now());
        if first || self.workers.len() < 2 {
            return None;
        }
        let interval = assigned.interval;
        let Move { id, from, to } = assigned.balancer.decide(self.workers.len(), interval, &loads)?;
        let port = self.hand_over(&mut assigned, id, to)?;
        Some(Moved { port, from, to })
    }

    /// Moves a queue to another worker; its port. `None` if the queue is not attached.
    fn hand_over(&self, assigned: &mut Assigned, id: QueueId, to: usize) -> Option<PortId> {
        let attached = assigned.queues.get_mut(&id)?;
        let queue = self.take_back(attached.worker, id)?;
        attached.worker = to;
        let (port, stats) = (attached.port, Arc::clone(&attached.stats));
        self.workers[to].tell(Command::Attach { id, port, queue, stats });
        Some(port)
    }

    /// Moves idle queues from the worker with the most to the one with the fewest until they differ by one, where
    /// that has no more to do. Queues with a load are [`Datapath::rebalance`]'s.
    fn level(&self, assigned: &mut Assigned) {
        loop {
            let weights = assigned.weights(self.workers.len());
            let by_number = |&w: &usize| (weights[w].1, w);
            let workers = 0..self.workers.len();
            let (Some(from), Some(to)) =
                (workers.clone().max_by_key(by_number), workers.min_by_key(by_number))
            else {
                return;
            };
            if weights[from].1 <= weights[to].1 + 1 || weights[from].0 < weights[to].0 {
                return;
            }
            let Some((&id, _)) = assigned.queues.iter().find(|(_, q)| q.worker == from && q.load == 0) else {
                return;
            };
            if self.hand_over(assigned, id, to).is_none() {
                return;
            }
        }
    }
}

impl QueueHost for Datapath {
    fn attach(&self, port: PortId, queue: Box<dyn RxQueue>) -> QueueId {
        let mut assigned = lock(&self.assigned);
        let id = QueueId(assigned.next);
        assigned.next += 1;
        let weights = assigned.weights(self.workers.len());
        let worker = (0..self.workers.len()).min_by_key(|&w| (weights[w], w)).unwrap_or(0);
        let stats = Arc::<QueueStats>::default();
        let attached =
            Attached { worker, port, stats: Arc::clone(&stats), frames: 0, bursts: 0, cycles: 0, load: 0 };
        assigned.queues.insert(id, attached);
        self.workers[worker].tell(Command::Attach { id, port, queue, stats });
        id
    }

    fn detach(&self, id: QueueId) -> Option<Box<dyn RxQueue>> {
        let mut assigned = lock(&self.assigned);
        let attached = assigned.queues.remove(&id)?;
        let queue = self.take_back(attached.worker, id);
        self.level(&mut assigned);
        queue
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        for w in &self.workers {
            w.tell(Command::Stop);
        }
        for w in &mut self.workers {
            if let Some(thread) = w.thread.take() {
                let _ = thread.join();
            }
        }
    }
}
