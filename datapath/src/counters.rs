//! Counters of ports and workers: written by workers without atomic read-modify-write, read in place by anybody.
//!
//! Each worker has a cell of its own in each port's counters and is its only writer, so a count is a relaxed
//! load and a relaxed store of a line that no other core writes. Readers add the cells up; a reading taken
//! while frames move may be a burst apart between two counters, and is exact when the port is at rest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use switch_core::DropReason;

/// One worker's share of a port's counters. What each burst writes is one cache line; the rest is cold.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Cell {
    rx_frames: AtomicU64,
    rx_bytes: AtomicU64,
    rx_bursts: AtomicU64,
    cycles: AtomicU64,
    forwarded: AtomicU64,
    offered: AtomicU64,
    tx_frames: AtomicU64,
    tx_bytes: AtomicU64,
    copies: AtomicU64,
    polls_idle: AtomicU64,
    wakeups: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

/// Adds to a counter that only the calling worker writes.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

impl Cell {
    /// A burst of frames received from the port.
    #[inline]
    pub fn received(&self, frames: u64, bytes: u64) {
        add(&self.rx_frames, frames);
        add(&self.rx_bytes, bytes);
        add(&self.rx_bursts, 1);
    }

    /// What the last burst took, in [ticks](crate::ticks): all of its way, from the look at the queue to its release.
    #[inline]
    pub fn took(&self, cycles: u64) {
        add(&self.cycles, cycles);
    }

    /// A look at a queue of the port that found nothing.
    #[inline]
    pub fn looked_in_vain(&self) {
        add(&self.polls_idle, 1);
    }

    /// The port woke a worker that had armed it.
    #[inline]
    pub fn woke(&self) {
        add(&self.wakeups, 1);
    }

    /// Frames received here that were handed on, as `copies` deliveries more than frames.
    #[inline]
    pub fn forwarded(&self, deliveries: u64, copies: u64) {
        add(&self.forwarded, deliveries);
        if copies != 0 {
            add(&self.copies, copies);
        }
    }

    /// Frames that were meant for the port, of which `frames` with `bytes` were taken.
    #[inline]
    pub fn transmitted(&self, offered: u64, frames: u64, bytes: u64) {
        add(&self.offered, offered);
        add(&self.tx_frames, frames);
        add(&self.tx_bytes, bytes);
    }

    /// Frames dropped.
    #[inline]
    pub fn dropped(&self, reason: DropReason, frames: u64) {
        if frames != 0 {
            add(&self.drops[reason.index()], frames);
        }
    }
}

/// A port's counters.
#[derive(Debug)]
pub struct PortCounters {
    cells: Box<[Cell]>,
}

impl PortCounters {
    /// Counters at zero, for `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self { cells: (0..workers.max(1)).map(|_| Cell::default()).collect() }
    }

    /// The cell of worker `worker`, which must be below the number given to [`PortCounters::new`]; others
    /// share the last cell, and with it its lack of atomicity.
    #[inline]
    pub fn cell(&self, worker: usize) -> &Cell {
        &self.cells[worker.min(self.cells.len() - 1)]
    }

    /// All cells added up.
    pub fn read(&self) -> Totals {
        let mut t = Totals::default();
        for cell in &self.cells {
            t.rx_frames += cell.rx_frames.load(Relaxed);
            t.rx_bytes += cell.rx_bytes.load(Relaxed);
            t.copies += cell.copies.load(Relaxed);
            t.forwarded += cell.forwarded.load(Relaxed);
            t.offered += cell.offered.load(Relaxed);
            t.tx_frames += cell.tx_frames.load(Relaxed);
            t.tx_bytes += cell.tx_bytes.load(Relaxed);
            t.rx_bursts += cell.rx_bursts.load(Relaxed);
            t.cycles += cell.cycles.load(Relaxed);
            t.polls_idle += cell.polls_idle.load(Relaxed);
            t.wakeups += cell.wakeups.load(Relaxed);
            for (total, drops) in t.drops.iter_mut().zip(&cell.drops) {
                *total += drops.load(Relaxed);
            }
        }
        t
    }
}

/// A reading of a port's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames received from the port, whatever became of them. A super-frame is one.
    pub rx_frames: u64,
    /// Their bytes, without virtio-net headers.
    pub rx_bytes: u64,
    /// Deliveries beyond the first that flooding made of frames received here.
    pub copies: u64,
    /// Deliveries handed on, to whichever ports.
    pub forwarded: u64,
    /// Deliveries meant for this port.
    pub offered: u64,
    /// Deliveries that the port took.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Bursts that its frames were received in: looks at its queues that found something.
    pub rx_bursts: u64,
    /// What those bursts took, in [ticks](crate::ticks), with all that was done for their frames.
    pub cycles: u64,
    /// Looks at its queues that found nothing.
    pub polls_idle: u64,
    /// Times that a worker had armed one of its queues and was woken by it.
    pub wakeups: u64,
    drops: [u64; DropReason::COUNT],
}

impl Totals {
    /// Frames dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason.index()]
    }

    /// The reasons that occurred, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&r| (r, self.dropped(r))).filter(|&(_, n)| n != 0)
    }

    /// Whether every frame is accounted for at this port: see [`switch_core::drop`].
    pub fn balances(&self) -> bool {
        use switch_core::drop::Side;
        let side = |side| self.drops().filter(|(r, _)| r.side() == side).map(|(_, n)| n).sum::<u64>();
        self.rx_frames + self.copies == self.forwarded + side(Side::Ingress)
            && self.offered == self.tx_frames + side(Side::Egress)
    }
}

/// What was done for one queue, since it was attached. The worker that polls it is the only writer.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct QueueStats {
    pub(crate) frames: AtomicU64,
    pub(crate) bursts: AtomicU64,
    /// What they took, in [ticks](crate::ticks).
    pub(crate) cycles: AtomicU64,
}

impl QueueStats {
    #[inline]
    pub(crate) fn burst(&self, frames: u64, cycles: u64) {
        add(&self.frames, frames);
        add(&self.bursts, 1);
        add(&self.cycles, cycles);
    }
}

/// What a worker did, read in place by anybody. The worker is the only writer.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerStats {
    /// Queues attached.
    pub queues: AtomicU64,
    /// Queues looked at.
    pub polls: AtomicU64,
    /// Of those, without finding a frame.
    pub polls_idle: AtomicU64,
    /// Bursts that held at least one frame.
    pub bursts: AtomicU64,
    /// Frames received.
    pub frames: AtomicU64,
    /// Times that the worker went to sleep.
    pub sleeps: AtomicU64,
    /// Armed queues that were put back among the polled ones by a notification.
    pub wakeups: AtomicU64,
    /// What bursts took, in [ticks](crate::ticks).
    pub cycles_busy: AtomicU64,
    /// What past sleeps took, in [ticks](crate::ticks).
    asleep: AtomicU64,
    /// When the sleep that it is in began; 0 if it is awake.
    asleep_since: AtomicU64,
}

impl WorkerStats {
    /// Adds to one of the counters. For the worker alone.
    #[inline]
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        add(counter, n);
    }

    /// The worker goes to sleep.
    pub(crate) fn sleeps_from(&self, ticks: u64) {
        add(&self.sleeps, 1);
        self.asleep_since.store(ticks.max(1), Relaxed);
    }

    /// The worker is awake again.
    pub(crate) fn awake_from(&self, ticks: u64) {
        add(&self.asleep, ticks.saturating_sub(self.asleep_since.load(Relaxed)));
        self.asleep_since.store(0, Relaxed);
    }

    /// What all sleeps took until `ticks`, which is now, in [ticks](crate::ticks). A reading at the moment when a sleep
    /// ends may be short of that sleep, or have it twice.
    pub fn cycles_asleep(&self, ticks: u64) -> u64 {
        let since = self.asleep_since.load(Relaxed);
        let this = if since == 0 { 0 } else { ticks.saturating_sub(since) };
        self.asleep.load(Relaxed).wrapping_add(this)
    }
}
