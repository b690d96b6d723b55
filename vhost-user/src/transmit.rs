//! The guest's receive rings, as all workers share them.
//!
//! With one ring that runs, every frame goes there. With several, the hash of a frame's flow chooses ([`FlowHash`],
//! keyed for each port): a flow stays in one ring, and so in order, for as long as the same rings run; flows spread,
//! whatever worker brings them. A bucket is shared out first, so that each ring is locked once, for its part.
//!
//! A ring that was stopped after it was chosen takes nothing: its frames choose again among those that are left. What
//! is in a ring when it is stopped stays there, for the guest to take.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datapath::{Bucket, PortError, TxReport};
use switch_core::flow::FlowHash;
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;

use crate::vring::notify::Event;
use crate::vring::tx::TxRing;

/// How often frames choose anew before they find nobody: rings do not come and go as fast as that.
const CHOICES: usize = 4;

/// A ring's lock, on a line of its own.
#[repr(align(128))]
struct Slot(Mutex<Option<TxRing>>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<TxRing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's text. A ring is locked for the length of one bucket's part, by those who transmit to it and by the
/// session that stops it.
pub(crate) struct TxSide {
    /// Bit `i`: ring `i` is there.
    active: AtomicU64,
    offloads: AtomicU8,
    flows: FlowHash,
    rings: Box<[Slot]>,
    wake: Arc<Event>,
}

impl TxSide {
    pub(crate) fn new(queue_pairs: u16, wake: Arc<Event>) -> Self {
        let random = RandomState::new();
        Self {
            active: AtomicU64::new(0),
            offloads: AtomicU8::new(0),
            flows: FlowHash::new(std::array::from_fn(|i| random.hash_one(i))),
            rings: (0..queue_pairs).map(|_| Slot(Mutex::new(None))).collect(),
            wake,
        }
    }

    /// Puts a ring in.
    pub(crate) fn put(&self, pair: usize, ring: TxRing, offloads: OffloadSet) {
        let Some(slot) = self.rings.get(pair) else { return };
        self.offloads.store(offloads.bits(), Ordering::Relaxed);
        *slot.lock() = Some(ring);
        self.active.fetch_or(1 << pair, Ordering::Release);
    }

    /// Takes a ring out. When this returns nobody uses it.
    pub(crate) fn take(&self, pair: usize) {
        let Some(slot) = self.rings.get(pair) else { return };
        self.active.fetch_and(!(1 << pair), Ordering::Release);
        drop(slot.lock().take());
    }

    #[inline]
    pub(crate) fn offloads(&self) -> OffloadSet {
        OffloadSet::from_bits(self.offloads.load(Ordering::Relaxed))
    }

    /// Transmits a bucket.
    #[inline]
    pub(crate) fn transmit(&self, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let active = self.active.load(Ordering::Acquire);
        if active.count_ones() == 1
            && let Some(slot) = self.rings.get(active.trailing_zeros() as usize)
            && let Some(ring) = &mut *slot.lock()
        {
            return ring.transmit(frames).inspect_err(|e| self.broke(ring, e));
        }
        self.share_out(frames, active)
    }

    /// Transmits a bucket to several rings, or to those that are left.
    #[inline(never)]
    fn share_out(&self, frames: &mut Bucket<'_>, mut active: u64) -> Result<TxReport, PortError> {
        let mut left = TxReport::all(frames.len());
        let mut hashes = [0; BURST];
        if active.count_ones() > 1 {
            for (i, hash) in hashes.iter_mut().enumerate().take(frames.len()) {
                *hash = self.flows.of(frames.head(i));
            }
        }
        let mut report = TxReport::default();
        for _ in 0..CHOICES {
            if left == 0 || active == 0 {
                break;
            }
            let mut refused = 0;
            while left != 0 {
                let (pair, part) = choose(&hashes, left, active);
                left &= !part;
                match self.transmit_part(pair, frames, part) {
                    Some(done) => report = report.and(done?),
                    None => refused |= part,
                }
            }
            left = refused;
            // What took the ring away said so before it did.
            active = self.active.load(Ordering::Acquire);
        }
        report.down |= left;
        Ok(report)
    }

    /// Transmits the frames of `part` to one ring; `None` if it is not there any more. A ring that breaks is an error of
    /// these frames: the other rings' are on their way, and the session, which is woken, tells why.
    fn transmit_part(
        &self,
        pair: usize,
        frames: &mut Bucket<'_>,
        part: u64,
    ) -> Option<Result<TxReport, PortError>> {
        let mut slot = self.rings.get(pair)?.lock();
        let ring = slot.as_mut()?;
        let whole = part == TxReport::all(frames.len());
        let done = if whole {
            ring.transmit(frames)
        } else {
            ring.transmit(&mut frames.part(part, &mut [0; BURST])).map(|report| report.of_part(part))
        };
        Some(done.or_else(|error| {
            self.broke(ring, &error);
            if whole { Err(error) } else { Ok(TxReport { error: part, ..TxReport::default() }) }
        }))
    }

    fn broke(&self, ring: &TxRing, why: &PortError) {
        if ring.shared().set_broken(why) {
            self.wake.signal();
        }
    }
}

/// The ring, of those in `active`, that the first frame of `left` goes to, and all frames of `left` that go there.
#[inline]
fn choose(hashes: &[u32; BURST], left: u64, active: u64) -> (usize, u64) {
    let count = u64::from(active.count_ones());
    // The upper half of the product: below `count`, and each as likely.
    let place = |i: u32| (u64::from(hashes[i as usize & (BURST - 1)]) * count) >> 32;
    let first = place(left.trailing_zeros());
    let mut rings = active;
    for _ in 0..first {
        rings &= rings - 1;
    }
    let (mut rest, mut part) = (left, 0);
    while rest != 0 {
        let i = rest.trailing_zeros();
        rest &= rest - 1;
        part |= u64::from(place(i) == first) << i;
    }
    (rings.trailing_zeros() as usize, part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_frame_goes_to_one_ring_that_is_there(hashes: [u32; 32], active in 1u64.., n in 1..=BURST) {
            let hashes: [u32; BURST] = std::array::from_fn(|i| hashes[i % 32]);
            let all = TxReport::all(n);
            let (mut left, mut ring_of) = (all, [None; BURST]);
            while left != 0 {
                let (ring, part) = choose(&hashes, left, active);
                prop_assert!(active & 1 << ring != 0, "ring {} of {:b}", ring, active);
                prop_assert!(part & !left == 0 && part & 1 << left.trailing_zeros() != 0);
                left &= !part;
                (0..BURST).filter(|i| part & 1 << i != 0).for_each(|i| ring_of[i] = Some(ring));
            }
            for i in 0..n {
                prop_assert!(ring_of[i].is_some());
                // Frames with one hash are of one flow.
                prop_assert!((0..n).all(|j| hashes[i] != hashes[j] || ring_of[i] == ring_of[j]));
            }
        }
    }
}
