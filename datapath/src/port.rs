//! The contract of a port, as workers see it. Directions are the switch's: receiving takes frames from the
//! guest or host at the other end.
//!
//! A port is two things with different owners. Its *receive queues* are polled by one worker each, which owns
//! them while they are attached (`&mut self`). Its *transmit side* is shared by all workers (`&self`) and
//! serialises them per ring, for the length of one bucket, by a lock that only transmitters of that ring and
//! whoever stops it take.
//!
//! `Err` means that the *port* is broken: the worker stops polling the queue and reports it; whoever owns the
//! port quarantines it with the reason. A bad frame is never an `Err`: it is a counter.

use std::os::fd::RawFd;

use switch_core::DropReason;
use switch_core::offload::OffloadSet;

use crate::burst::{Bucket, Burst};

/// What [`RxQueue::arm`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// Notifications are on: the queue's descriptor becomes readable when there is work.
    Sleeping,
    /// There is work already; notifications are off again.
    Work,
}

/// What a receive queue dropped by itself, before a frame could become a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxDrops {
    /// [`DropReason::ShortHeader`].
    pub short_header: u32,
    /// [`DropReason::Oversize`].
    pub oversize: u32,
    /// [`DropReason::TooManySegments`].
    pub too_many_segments: u32,
    /// Bytes of all of them, without virtio-net headers, as far as they are known.
    pub bytes: u64,
}

impl RxDrops {
    /// True if nothing was dropped.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.short_header | self.oversize | self.too_many_segments == 0
    }

    /// The reasons and their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        [
            (DropReason::ShortHeader, self.short_header),
            (DropReason::Oversize, self.oversize),
            (DropReason::TooManySegments, self.too_many_segments),
        ]
        .into_iter()
        .map(|(r, n)| (r, u64::from(n)))
    }
}

/// A receive queue. One worker owns it while it is attached.
pub trait RxQueue: Send {
    /// Fills the empty burst with what is there, never blocking, and sets `burst.accepted`. The frames borrow
    /// the queue's buffers until [`RxQueue::release`], which the worker always calls before the next
    /// `rx_burst`. Frames that cannot become heads are counted in `drops` and given back.
    fn rx_burst(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<usize, PortError>;

    /// Gives the last burst's buffers back to the sender: publishes once, notifies at most once.
    fn release(&mut self);

    /// The descriptor that becomes readable when an armed queue has work. Stays the same while attached.
    fn wake_fd(&self) -> RawFd;

    /// Asks to be woken, then looks once more, so that nothing can fall between.
    fn arm(&mut self) -> Result<Armed, PortError>;

    /// Ends the request to be woken, and drains the descriptor.
    fn disarm(&mut self);
}

/// What became of a bucket: bit `i` is frame `i`. A frame in none of the masks was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxReport {
    /// No free buffer ([`DropReason::TxRingFull`]).
    pub full: u64,
    /// Buffers too small ([`DropReason::TxBufferSmall`]).
    pub too_small: u64,
    /// Nobody there ([`DropReason::EgressDown`]).
    pub down: u64,
    /// Refused by the other end ([`DropReason::EgressError`]).
    pub error: u64,
}

impl TxReport {
    /// The frames that were not taken.
    #[inline]
    pub const fn dropped(&self) -> u64 {
        self.full | self.too_small | self.down | self.error
    }

    /// All of the first `n` frames of a bucket.
    #[inline]
    pub const fn all(n: usize) -> u64 {
        if n >= 64 { u64::MAX } else { (1 << n) - 1 }
    }

    /// The report of a bucket of which this is the report of a [part](Bucket::part): bit `i` becomes the `i`th bit that
    /// is set in `mask`.
    #[must_use]
    pub fn of_part(self, mask: u64) -> Self {
        if self.dropped() == 0 {
            return self;
        }
        let spread = |part: u64| {
            let (mut left, mut whole) = (mask, 0);
            for i in 0..mask.count_ones() {
                let bit = left & left.wrapping_neg();
                left ^= bit;
                if part & (1 << i) != 0 {
                    whole |= bit;
                }
            }
            whole
        };
        Self {
            full: spread(self.full),
            too_small: spread(self.too_small),
            down: spread(self.down),
            error: spread(self.error),
        }
    }

    /// Both reports, of different frames of one bucket.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            full: self.full | other.full,
            too_small: self.too_small | other.too_small,
            down: self.down | other.down,
            error: self.error | other.error,
        }
    }

    /// A report of `n` frames that found nobody.
    pub const fn all_down(n: usize) -> Self {
        Self { full: 0, too_small: 0, down: Self::all(n), error: 0 }
    }
}

/// The transmit side of a port. Shared by all workers.
pub trait TxPort: Send + Sync {
    /// Offloads that the receiver negotiated. Frames that need more are completed or segmented before they
    /// come to `tx_burst`. May change at any time; a frame that comes with an offload that has just gone is
    /// dropped ([`TxReport::error`]).
    fn offloads(&self) -> OffloadSet;

    /// Transmits what fits and never blocks: writes each head and copies its tail. Frames of one flow leave in
    /// their order. `worker` is the caller's number, for ports that spread workers over queues. At most one
    /// notification for each queue.
    fn tx_burst(&self, worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError>;
}

/// Why a port is broken.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The peer broke the rules of the ring.
    #[error("{0}")]
    Protocol(&'static str),
    /// The guest's memory went away under us.
    #[error("the memory behind the port went away ({0})")]
    Memory(&'static str),
    /// The kernel failed us.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The interface or peer is gone; it may come back.
    #[error("{0}")]
    Gone(&'static str),
}

/// The transmit side of a port whose other end is not there: every frame finds nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Absent;

impl TxPort for Absent {
    fn offloads(&self) -> OffloadSet {
        // Nothing is worth completing for nobody.
        OffloadSet::ALL
    }

    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        Ok(TxReport::all_down(frames.len()))
    }
}
