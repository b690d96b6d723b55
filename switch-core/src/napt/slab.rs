//! A list that grows and never moves: what is in it can be read while it grows, without a lock.
//!
//! It grows by a quarter at a time, because the tables are large. Items are given out in runs of [`RUN`], so that
//! each shard takes some and needs nobody for the next ones; none is ever given back.

use std::ops::Index;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Items that are given out at once.
pub(super) const RUN: u32 = 1 << RUN_BITS;
const RUN_BITS: u32 = 6;
/// Chunks of equal size, before they are twice as large.
const EQUALS: u32 = 1 << EQUALS_BITS;
const EQUALS_BITS: u32 = 2;
/// As many as numbers of 32 bits need, less the last ones: a number is below `u32::MAX`.
const CHUNKS: usize = ((u32::BITS - RUN_BITS - EQUALS_BITS) << EQUALS_BITS) as usize;
/// Items that can be given out.
const ITEMS_MAX: u32 = u32::MAX - RUN * EQUALS - RUN + 1;

/// The list.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Box<[OnceLock<Box<[T]>>]>,
    given: AtomicU32,
}

/// The chunk of an item, how long the chunk is, and where in it the item is.
#[inline]
fn place(item: u32) -> (usize, u32, u32) {
    // The first chunks are as long as a run: with as many before the first one, the length is a part of the number.
    let number = item.saturating_add(RUN * EQUALS);
    let bits = number.ilog2() - EQUALS_BITS;
    let chunk = ((bits - RUN_BITS) << EQUALS_BITS) + ((number >> bits) & (EQUALS - 1));
    (chunk as usize, 1 << bits, number & ((1 << bits) - 1))
}

impl<T: Default> Slab<T> {
    pub(super) fn new() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(), given: AtomicU32::new(0) }
    }

    /// The first of [`RUN`] items that are nobody's yet; `None` if there are no more numbers.
    pub(super) fn claim(&self) -> Option<u32> {
        let next = |given: u32| given.checked_add(RUN).filter(|next| *next <= ITEMS_MAX);
        let first = self.given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        // A chunk is a whole number of runs.
        let (chunk, len, _) = place(first);
        self.chunks.get(chunk)?.get_or_init(|| (0..len).map(|_| T::default()).collect());
        Some(first)
    }

    /// An item that was given out; `None` also of others.
    #[inline]
    pub(super) fn get(&self, item: u32) -> Option<&T> {
        let (chunk, _, at) = place(item);
        self.chunks.get(chunk)?.get()?.get(at as usize)
    }

    /// All items for which there is memory, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().filter_map(OnceLock::get).flatten()
    }

    /// Bytes in use.
    pub(super) fn memory(&self) -> usize {
        let chunks = self.chunks.iter().filter_map(OnceLock::get);
        chunks.map(|chunk| chunk.len() * size_of::<T>()).sum::<usize>() + size_of_val(&*self.chunks)
    }
}

/// As of a list: items that were given out are there.
impl<T: Default> Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, item: u32) -> &T {
        let (chunk, _, at) = place(item);
        &self.chunks[chunk].get().map_or(&[][..], |chunk| chunk)[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_has_a_place_of_its_own() {
        let (mut chunk, mut next) = (0, 0);
        for item in 0..200_000 {
            let (at, len, offset) = place(item);
            if at != chunk {
                assert_eq!((at, offset), (chunk + 1, 0), "{item}");
                (chunk, next) = (at, 0);
            }
            assert_eq!(offset, next, "{item}");
            assert!(offset < len && len % RUN == 0);
            next += 1;
        }
        assert!(place(ITEMS_MAX).0 < CHUNKS);
        assert!(place(u32::MAX).0 <= CHUNKS, "and no number is beyond reckoning");
    }

    #[test]
    fn what_was_given_is_there_and_nothing_else() {
        let slab = Slab::<u64>::new();
        assert_eq!(slab.get(0), None);
        for run in 0..100 {
            assert_eq!(slab.claim(), Some(run * RUN));
            assert_eq!(slab.get(run * RUN + RUN - 1), Some(&0));
        }
        assert_eq!(slab.get(1 << 20), None);
        assert_eq!(slab.get(u32::MAX), None);
        slab.given.store(ITEMS_MAX - RUN, Ordering::Relaxed);
        assert!(slab.given.fetch_add(RUN, Ordering::Relaxed) < ITEMS_MAX && slab.claim().is_none());
    }
}
