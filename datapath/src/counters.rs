//! Counters of ports: written by workers without atomic read-modify-write, read in place by anybody.
//!
//! Each worker has a cell of its own in each port's counters and is its only writer, so a count is a relaxed
//! load and a relaxed store of a line that no other core writes. Readers add the cells up; a reading taken
//! while frames move may be a burst apart between two counters, and is exact when the port is at rest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use switch_core::DropReason;

/// One worker's share of a port's counters. Two cache lines of its own before the drop reasons, which are cold.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Cell {
    rx_frames: AtomicU64,
    rx_bytes: AtomicU64,
    copies: AtomicU64,
    forwarded: AtomicU64,
    offered: AtomicU64,
    tx_frames: AtomicU64,
    tx_bytes: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

/// Adds to a counter that only the calling worker writes.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

impl Cell {
    /// Frames received from the port.
    #[inline]
    pub fn received(&self, frames: u64, bytes: u64) {
        add(&self.rx_frames, frames);
        add(&self.rx_bytes, bytes);
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
