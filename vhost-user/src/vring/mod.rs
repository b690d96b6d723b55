//! Virtqueues: the rings through which driver and device hand buffers to each other (virtio 1.2, 2.6 to 2.8).
//!
//! - [`ring`]: what both directions ask of a virtqueue, whatever its layout.
//! - [`split`]: a split virtqueue.
//! - [`packed`]: a packed virtqueue.
//! - [`chain`]: chains of descriptors, and where their bytes are.
//! - [`rx`]: a guest's transmit queue, from which the switch receives.
//! - [`tx`]: a guest's receive queue, into which the switch transmits.
//! - [`notify`]: kick and call.
//!
//! A ring that is being set up is a [`RingSetup`]: numbers that a front-end sent. [`split::SplitRing::new`] and
//! [`packed::PackedRing::new`] are the only ways from there to a ring that runs, and check all of them. A ring that breaks the rules
//! is [`PortError::Protocol`]: its port is quarantined until the driver sets
//! the ring up anew.

mod chain;
pub(crate) mod copy;
pub(crate) mod notify;
pub(crate) mod packed;
mod ring;
pub(crate) mod rx;
pub(crate) mod split;
pub(crate) mod tx;

#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use datapath::{PortError, RxQueue};
use switch_core::offload::OffloadSet;
use switch_core::virtio_net;

use self::notify::{Call, Event};
use self::packed::PackedRing;
use self::rx::{OnBroken, RxRing};
use self::split::SplitRing;
use self::tx::{TxQueue, TxRing};
use crate::features;
use crate::memory::GuestMemory;

/// The largest split virtqueue (virtio 1.2, 2.7).
pub(crate) const SPLIT_SIZE_MAX: u32 = 32_768;
/// The largest packed virtqueue (virtio 1.2, 2.8).
pub(crate) const PACKED_SIZE_MAX: u32 = 32_768;

/// Where a ring's parts are, in the front-end's own addresses (`SET_VRING_ADDR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) descriptors: u64,
    /// The driver's area: the available ring, or the driver's event suppression structure.
    pub(crate) available: u64,
    /// The device's area: the used ring, or the device's event suppression structure.
    pub(crate) used: u64,
}

/// A ring that could be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingSetup {
    pub(crate) layout: Layout,
    /// Descriptors.
    pub(crate) size: u32,
    /// Where to begin, as the front-end or the last run of the ring left it, in the form of `SET_VRING_BASE`: the
    /// available index; in a packed ring the places of the next available and the next used descriptor, from bit 0
    /// and from bit 16.
    pub(crate) next: Option<u32>,
    /// Negotiated virtio features.
    pub(crate) features: u64,
}

/// Whose buffers they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads them: the guest's transmit queue.
    Readable,
    /// The device writes them: the guest's receive queue.
    Writable,
}

/// Why a ring cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("ring size {0} is not a power of two from 1 to {SPLIT_SIZE_MAX}")]
    Size(u32),
    #[error("packed ring size {0} is not from 1 to {PACKED_SIZE_MAX}")]
    PackedSize(u32),
    #[error("the {0} is not in the memory that the front-end shares")]
    Outside(&'static str),
    #[error("the {0} is not aligned")]
    Unaligned(&'static str),
    #[error("nobody knows where the packed ring stands")]
    Position,
}

impl SetupError {
    /// The size's fault, if it has one.
    pub(crate) fn of_size(size: u32, features: &RingFeatures) -> Option<Self> {
        match features.packed {
            true if size == 0 || size > PACKED_SIZE_MAX => Some(Self::PackedSize(size)),
            false if !size.is_power_of_two() || size > SPLIT_SIZE_MAX => Some(Self::Size(size)),
            _ => None,
        }
    }
}

/// What the negotiated features mean for a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingFeatures {
    pub(crate) indirect: bool,
    pub(crate) event_idx: bool,
    pub(crate) mergeable: bool,
    pub(crate) packed: bool,
    pub(crate) in_order: bool,
    /// Bytes of the virtio-net header.
    pub(crate) header_len: usize,
    /// What the driver may ask of the device.
    pub(crate) from_driver: OffloadSet,
    /// What the device may ask of the driver.
    pub(crate) to_driver: OffloadSet,
}

impl RingFeatures {
    pub(crate) fn new(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        let modern = has(features::VERSION_1) || has(features::MRG_RXBUF);
        Self {
            indirect: has(features::INDIRECT_DESC),
            event_idx: has(features::EVENT_IDX),
            mergeable: has(features::MRG_RXBUF),
            packed: has(features::RING_PACKED),
            in_order: has(features::IN_ORDER),
            header_len: if modern { virtio_net::HEADER_LEN } else { virtio_net::LEGACY_HEADER_LEN },
            from_driver: features::from_driver(features),
            to_driver: features::to_driver(features),
        }
    }
}

/// A ring that runs, of either layout; on its way into one of the two kinds of queue, where it is known which.
pub(crate) enum AnyRing {
    Split(SplitRing),
    Packed(PackedRing),
}

impl AnyRing {
    /// Checks a set-up and makes a ring of it, of the layout that was negotiated.
    pub(crate) fn new(
        setup: &RingSetup,
        direction: Direction,
        memory: Arc<GuestMemory>,
        shared: Arc<RingShared>,
    ) -> Result<Self, SetupError> {
        if RingFeatures::new(setup.features).packed {
            PackedRing::new(setup, direction, memory, shared).map(Self::Packed)
        } else {
            SplitRing::new(setup, memory, shared).map(Self::Split)
        }
    }

    /// A queue from which the switch receives; see [`RxRing::new`].
    pub(crate) fn into_rx(
        self,
        features: &RingFeatures,
        kick: Option<Arc<Event>>,
        on_broken: OnBroken,
    ) -> io::Result<Box<dyn RxQueue>> {
        Ok(match self {
            Self::Split(ring) => Box::new(RxRing::new(ring, features, kick, on_broken)?),
            Self::Packed(ring) => Box::new(RxRing::new(ring, features, kick, on_broken)?),
        })
    }

    /// A queue into which the switch transmits.
    pub(crate) fn into_tx(self, features: &RingFeatures) -> TxRing {
        match self {
            Self::Split(ring) => TxRing::Split(TxQueue::new(ring, features)),
            Self::Packed(ring) => TxRing::Packed(TxQueue::new(ring, features)),
        }
    }
}

/// What a running ring and its session share. Outlives the runs of a ring.
#[derive(Debug, Default)]
pub(crate) struct RingShared {
    /// Where the ring goes on: the available index after the last buffer that was given back; in a packed ring the
    /// place, with its wrap counter in bit 15.
    next: AtomicU16,
    /// The front-end is being told where the ring stands: it need not be kept anywhere else.
    handed_over: AtomicBool,
    pub(crate) call: Call,
    /// Set once the ring is quarantined; cleared when it is set up anew.
    broken: AtomicBool,
    reason: Mutex<Option<String>>,
    /// Frames that enter the switch as if they came from the guest.
    injected: AtomicBool,
    inject: Mutex<Vec<Box<[u8]>>>,
}

/// Frames that wait to be injected, at most: one for each announcement that a migration makes.
const INJECT_MAX: usize = 16;

impl RingShared {
    pub(crate) fn next(&self) -> u16 {
        self.next.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn set_next(&self, next: u16) {
        self.next.store(next, Ordering::Release);
    }

    /// Says whether the front-end is told where the ring stands when it stops.
    pub(crate) fn set_handed_over(&self, handed_over: bool) {
        self.handed_over.store(handed_over, Ordering::Release);
    }

    pub(crate) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Quarantines the ring. The first reason stays. True if it was the first.
    pub(crate) fn set_broken(&self, why: &PortError) -> bool {
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !self.broken.swap(true, Ordering::AcqRel);
        if first {
            *reason = Some(why.to_string());
        }
        first
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Why the ring is in quarantine, if it is.
    pub(crate) fn reason(&self) -> Option<String> {
        self.is_broken().then(|| self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()).flatten()
    }

    /// Ends the quarantine: the driver sets the ring up anew.
    pub(crate) fn mend(&self) {
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        *reason = None;
        self.broken.store(false, Ordering::Release);
    }

    /// Lets a frame enter the switch from this ring with the next burst. False if too many wait already.
    pub(crate) fn inject(&self, frame: Box<[u8]>, kick: Option<&Event>) -> bool {
        {
            let mut waiting = self.inject.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= INJECT_MAX {
                return false;
            }
            waiting.push(frame);
            self.injected.store(true, Ordering::Release);
        }
        if let Some(kick) = kick {
            kick.signal();
        }
        true
    }

    /// True if frames wait to be injected.
    #[inline]
    pub(crate) fn has_injected(&self) -> bool {
        self.injected.load(Ordering::Acquire)
    }

    /// Takes the frames that wait, at most so many of them.
    #[cold]
    pub(crate) fn take_injected(&self, most: usize) -> Vec<Box<[u8]>> {
        let mut waiting = self.inject.lock().unwrap_or_else(PoisonError::into_inner);
        let most = most.min(waiting.len());
        let taken = waiting.drain(..most).collect();
        self.injected.store(!waiting.is_empty(), Ordering::Relaxed);
        taken
    }
}
