//! A worker: one thread that polls receive queues and carries their frames to where they go.
//!
//! Pacing has three stages. While any queue has work the worker polls all that are *active*, and for some time after
//! that, which follows how long it slept before ([`Spin`]), and is nothing while other threads wait for a processor
//! ([`Crowd`]). Then it *arms* the queues (asks their senders for
//! notifications), looks once more, and sleeps in epoll. It never yields: a thread that yields its CPU to one that always has work is behind it in the scheduler's order, and
//! no notification brings it forward, as it does not sleep. A queue that finds nothing while others are busy is
//! armed by itself and leaves the round, so that a thousand idle ports cost a busy pair nothing; a busy worker
//! looks at epoll every [`EVENTS_EVERY`]. With [`Pacing::Busy`] nothing is ever armed.
//!
//! What the control side wants (queues to attach or give back, another topology) comes by a queue of commands
//! and is done between two bursts, when no frame borrows anything.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use switch_core::{Instant, PortId};

use crate::counters::{QueueStats, WorkerStats};
use crate::crowd::Crowd;
use crate::host::QueueId;
use crate::path::{Carried, Found, FramePath};
use crate::pool::{Event, EventSink, Pacing};
use crate::port::{Armed, PortError, RxQueue};
use crate::spin::Spin;
use crate::ticks;
use crate::topology::Topology;
use crate::turns::{Account, Others, Turn};
use crate::waited::Waited;

/// How long a single queue may find nothing, while others are busy, before it is armed by itself.
const QUEUE_IDLE: Duration = Duration::from_micros(200);
/// How often a busy worker looks for notifications of armed queues.
const EVENTS_EVERY: Duration = Duration::from_micros(50);

/// The waker's token; queues have the ones after it.
pub(crate) const WAKER: Token = Token(0);

/// What the control side asks of a worker.
pub(crate) enum Command {
    /// Poll this queue from now on.
    Attach { id: QueueId, port: PortId, queue: Box<dyn RxQueue>, stats: Arc<QueueStats> },
    /// Give this queue back.
    Detach { id: QueueId, reply: SyncSender<Option<Box<dyn RxQueue>>> },
    /// Use this topology from the next burst on.
    Topology { topology: Arc<Topology>, reply: SyncSender<()> },
    /// End.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Polled in every round; found work last at this time.
    Active(Instant),
    /// Notifications are on.
    Armed,
    /// Has sent what its rate allows; polled again at this time.
    Throttled(Instant),
    /// Broken; kept until it is taken back.
    Failed,
}

struct Queue {
    port: PortId,
    queue: Box<dyn RxQueue>,
    state: State,
    fd: RawFd,
    stats: Arc<QueueStats>,
    account: Account,
}

pub(crate) struct Worker {
    poll: Poll,
    commands: Receiver<Command>,
    /// Set after a command was sent, so that a round costs one relaxed load when there is none.
    pending: Arc<AtomicBool>,
    pacing: Pacing,
    origin: std::time::Instant,
    stats: Arc<WorkerStats>,
    sink: EventSink,

    path: FramePath,
    /// By token less one; tokens are reused.
    queues: Vec<Option<Queue>>,
    tokens: HashMap<QueueId, usize>,
    /// Slots of `queues` that are polled in every round.
    active: Vec<usize>,
    /// Slots that wait for their rate.
    throttled: Vec<usize>,
    /// Who had work lately.
    others: Others,
    /// For how long it could not run.
    waited: Waited,
    /// Whether the last round found work: only then are idle queues armed by themselves.
    busy: bool,
}

impl Worker {
    #[expect(clippy::too_many_arguments, reason = "called once, by the pool, which has them all at hand")]
    pub(crate) fn new(
        index: usize,
        poll: Poll,
        commands: Receiver<Command>,
        pending: Arc<AtomicBool>,
        pacing: Pacing,
        origin: std::time::Instant,
        stats: Arc<WorkerStats>,
        sink: EventSink,
    ) -> Self {
        Self {
            poll,
            commands,
            pending,
            pacing,
            origin,
            stats,
            sink,
            path: FramePath::new(index),
            queues: Vec::new(),
            tokens: HashMap::new(),
            active: Vec::new(),
            throttled: Vec::new(),
            others: Others::default(),
            waited: Waited::new(),
            busy: false,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        // Of this thread, not of the one that made the worker.
        self.waited = Waited::new();
        let mut events = Events::with_capacity(256);
        let mut looked = Instant::ORIGIN;
        let mut worked = self.now();
        let (mut spin, mut crowd) = (Spin::new(), Crowd::new());
        loop {
            if self.pending.load(Ordering::Relaxed) && !self.obey() {
                return;
            }
            let now = self.now();
            if self.round(now) {
                worked = now;
                if now.since(looked) >= EVENTS_EVERY {
                    looked = now;
                    self.waited.refresh(now);
                    if self.pacing == Pacing::Adaptive {
                        self.wait(&mut events, Some(Duration::ZERO));
                    }
                }
                continue;
            }
            if self.pacing == Pacing::Busy {
                std::hint::spin_loop();
                continue;
            }
            let crowded = crowd.waits(now);
            if !crowded && now.since(worked) < spin.time() && !self.active.is_empty() {
                std::hint::spin_loop();
            } else if self.arm_all() {
                let slept = self.now();
                let timeout = self.throttled_until().map(|t| t.since(slept) + Duration::from_micros(50));
                self.stats.sleeps_from(ticks::now());
                self.wait(&mut events, timeout);
                self.stats.awake_from(ticks::now());
                worked = self.now();
                if !crowded {
                    spin.slept(worked.since(slept));
                }
            }
        }
    }

    /// Does what was asked; false to end.
    fn obey(&mut self) -> bool {
        // Cleared before the queue is drained: a command sent meanwhile sets it again.
        self.pending.swap(false, Ordering::AcqRel);
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Attach { id, port, queue, stats } => self.attach(id, port, queue, stats),
                Command::Detach { id, reply } => {
                    let queue = self.detach(id);
                    // Who asked may have given up waiting; the queue is then dropped here.
                    let _ = reply.send(queue);
                }
                Command::Topology { topology, reply } => {
                    self.path.adopt(topology);
                    let _ = reply.send(());
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn attach(&mut self, id: QueueId, port: PortId, queue: Box<dyn RxQueue>, stats: Arc<QueueStats>) {
        let fd = queue.wake_fd();
        let slot = self.queues.iter().position(Option::is_none).unwrap_or(self.queues.len());
        if slot == self.queues.len() {
            self.queues.push(None);
        }
        let mut state = State::Active(self.now());
        if let Err(error) =
            self.poll.registry().register(&mut SourceFd(&fd), Token(slot + 1), Interest::READABLE)
        {
            let error = PortError::Io { what: "asking to be woken by the queue", source: error };
            self.sink.send(Event::Broken { port, reason: error.to_string() });
            state = State::Failed;
        } else {
            self.active.push(slot);
        }
        self.tokens.insert(id, slot);
        let account = Account::new(ticks::now());
        self.queues[slot] = Some(Queue { port, queue, state, fd, stats, account });
        self.stats.queues.store(self.tokens.len() as u64, Ordering::Relaxed);
    }

    fn detach(&mut self, id: QueueId) -> Option<Box<dyn RxQueue>> {
        let slot = self.tokens.remove(&id)?;
        let queue = self.queues.get_mut(slot)?.take()?;
        self.active.retain(|&s| s != slot);
        self.throttled.retain(|&s| s != slot);
        if queue.state != State::Failed {
            // Fails only if the descriptor is gone already, and then it is not watched any more.
            let _ = self.poll.registry().deregister(&mut SourceFd(&queue.fd));
        }
        self.stats.queues.store(self.tokens.len() as u64, Ordering::Relaxed);
        Some(queue.queue)
    }

    /// Looks once at every active queue; true if any had work.
    fn round(&mut self, now: Instant) -> bool {
        if !self.throttled.is_empty() {
            self.release_throttled(now);
        }
        let (mut polls, mut idle, mut bursts, mut frames, mut cycles) = (0, 0, 0, 0, 0);
        let mut i = 0;
        let mut since = ticks::now();
        while i < self.active.len() {
            let slot = self.active[i];
            let mut stays = true;
            let Some(found) = self.look(slot, now, since) else {
                i += 1;
                continue;
            };
            polls += 1;
            // One reading ends this look and begins the next.
            let until = ticks::now();
            let took = until.saturating_sub(since);
            since = until;
            match found {
                Found::Frames(carried) => {
                    bursts += 1;
                    frames += carried.frames;
                    cycles += took;
                    self.worked(slot, now, until, took, carried);
                }
                Found::Nothing => {
                    idle += 1;
                    stays = !(self.busy && self.pacing == Pacing::Adaptive && self.arm_idle(slot, now));
                }
                Found::Throttled(until) => {
                    self.set_state(slot, State::Throttled(until));
                    self.throttled.push(slot);
                    stays = false;
                }
                Found::Broken(error) => {
                    self.fail(slot, &error);
                    stays = false;
                }
            }
            if stays {
                i += 1;
            } else {
                self.active.swap_remove(i);
            }
        }
        self.busy = bursts > 0 || self.forgive();
        WorkerStats::add(&self.stats.polls, polls);
        WorkerStats::add(&self.stats.polls_idle, idle);
        if bursts > 0 {
            WorkerStats::add(&self.stats.bursts, bursts);
            WorkerStats::add(&self.stats.frames, frames);
            WorkerStats::add(&self.stats.cycles_busy, cycles);
        }
        self.busy
    }

    /// A queue had work, which took so many ticks until `ticks`.
    #[inline]
    fn worked(&mut self, slot: usize, now: Instant, ticks: u64, took: u64, carried: Carried) {
        let Some(Some(q)) = self.queues.get_mut(slot) else { return };
        q.state = State::Active(now);
        q.stats.burst(carried.frames, took);
        self.path.charge(q.port, took);
        if q.account.charge(ticks, Turn { took, carried }, || self.waited.ticks()) {
            self.others.worked(slot, ticks);
        }
    }

    /// Looks at a queue, `None` if it is not its turn.
    #[inline]
    fn look(&mut self, slot: usize, now: Instant, ticks: u64) -> Option<Found> {
        let Some(Some(q)) = self.queues.get_mut(slot) else { return Some(Found::Nothing) };
        let others = self.others.than(slot, ticks);
        if others && !q.account.has_turn(ticks) {
            return None;
        }
        let most = q.account.frames();
        let found = self.path.carry_at_most(most, now, q.port, &mut *q.queue);
        for (port, error) in self.path.broken() {
            self.sink.send(Event::Broken { port, reason: error.to_string() });
        }
        Some(found)
    }

    /// Has those sit out no longer for whom nobody had work; true if there are any.
    fn forgive(&mut self) -> bool {
        let queues = &mut self.queues;
        let one = |sat_out, slot: &usize| match queues.get_mut(*slot) {
            Some(Some(q)) => q.account.forgive() | sat_out,
            _ => sat_out,
        };
        self.active.iter().fold(false, one)
    }

    fn set_state(&mut self, slot: usize, state: State) {
        if let Some(Some(q)) = self.queues.get_mut(slot) {
            q.state = state;
        }
    }

    /// Arms one queue that has been idle while others were busy; true if it left the round.
    fn arm_idle(&mut self, slot: usize, now: Instant) -> bool {
        let Some(Some(q)) = self.queues.get_mut(slot) else { return false };
        let State::Active(last) = q.state else { return false };
        if now.since(last) < QUEUE_IDLE {
            return false;
        }
        match q.queue.arm() {
            Ok(Armed::Sleeping) => {
                q.state = State::Armed;
                true
            }
            Ok(Armed::Work) => false,
            Err(error) => {
                self.fail(slot, &error);
                true
            }
        }
    }

    /// Arms every active queue; true if all of them sleep. One that has work stays active.
    fn arm_all(&mut self) -> bool {
        let mut i = 0;
        while i < self.active.len() {
            let slot = self.active[i];
            let Some(Some(q)) = self.queues.get_mut(slot) else {
                self.active.swap_remove(i);
                continue;
            };
            match q.queue.arm() {
                Ok(Armed::Sleeping) => {
                    q.state = State::Armed;
                    self.active.swap_remove(i);
                }
                Ok(Armed::Work) => i += 1,
                Err(error) => {
                    self.fail(slot, &error);
                    self.active.swap_remove(i);
                }
            }
        }
        self.active.is_empty()
    }

    fn fail(&mut self, slot: usize, error: &PortError) {
        if let Some(Some(q)) = self.queues.get_mut(slot) {
            q.state = State::Failed;
            let _ = self.poll.registry().deregister(&mut SourceFd(&q.fd));
            self.sink.send(Event::Broken { port: q.port, reason: error.to_string() });
        }
    }

    fn throttled_until(&self) -> Option<Instant> {
        let until = |&slot: &usize| match self.queues.get(slot)?.as_ref()?.state {
            State::Throttled(t) => Some(t),
            _ => None,
        };
        self.throttled.iter().filter_map(until).min()
    }

    fn release_throttled(&mut self, now: Instant) {
        let mut i = 0;
        while i < self.throttled.len() {
            let slot = self.throttled[i];
            match self.queues.get_mut(slot) {
                Some(Some(q)) if matches!(q.state, State::Throttled(t) if t > now) => i += 1,
                Some(Some(q)) => {
                    q.state = State::Active(now);
                    self.active.push(slot);
                    self.throttled.swap_remove(i);
                }
                _ => {
                    self.throttled.swap_remove(i);
                }
            }
        }
    }

    /// Waits for notifications and puts the queues that they are for back into the round.
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) {
        // An interrupted wait is a wait that found nothing.
        if self.poll.poll(events, timeout).is_err() {
            return;
        }
        let now = self.now();
        for event in events.iter() {
            let Some(slot) = event.token().0.checked_sub(1) else { continue };
            if let Some(Some(q)) = self.queues.get_mut(slot)
                && q.state == State::Armed
            {
                q.queue.disarm();
                q.state = State::Active(now);
                self.active.push(slot);
                self.path.woken(q.port);
                WorkerStats::add(&self.stats.wakeups, 1);
            }
        }
    }
}
