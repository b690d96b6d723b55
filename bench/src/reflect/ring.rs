//! The reflector's rings: the least that takes a frame out of one and puts it into another.
//!
//! The device's side of virtio 1.3, 2.7 and 2.8, without indirect tables and without notifications: both sides poll. Areas
//! are `vm-memory`'s arrays, which keep this file without `unsafe`; they are found anew for each burst.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use anyhow::{Result, bail, ensure};
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;
use vm_memory::volatile_memory::VolatileArrayRef;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
/// Where the wrap counter is in a place of a packed ring.
const WRAP: u16 = 1 << 15;
/// Flags of a packed descriptor.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A piece of a buffer: guest address and length.
pub(super) type Piece = (u64, usize);

/// Where an area of a ring begins.
pub(super) type Area<'a> = (&'a MmapRegion, usize);

/// A buffer that was gathered: its identity, its length, and the place of the next.
pub(super) type Gathered = (u16, usize, u16);

/// A ring for the time of a burst. A place is what SET_VRING_BASE says: the free-running index of a split ring, the
/// position and the wrap counter of a packed one.
pub(super) trait Queue {
    /// Whether a buffer is available at `place`.
    fn ready(&mut self, place: u16) -> bool;

    /// Adds the pieces of the buffer at `place`.
    ///
    /// # Errors
    /// A chain without end.
    fn gather(&self, place: u16, pieces: &mut Vec<Piece>) -> Result<Gathered>;

    /// Gives the buffer that was at `place` back with `len` bytes written.
    fn give_back(&self, place: u16, id: u16, len: usize);

    /// The driver sees what was given back before `place`.
    fn publish(&self, place: u16);
}

/// # Errors
/// A size that no ring has.
fn check(size: u16, packed: bool) -> Result<()> {
    let right = if packed { (1..=WRAP).contains(&size) } else { size.is_power_of_two() };
    ensure!(right, "a ring of {size} descriptors");
    Ok(())
}

/// A descriptor's second word in three parts: length, and the two halves of what is above it.
#[inline]
fn parts(word: u64) -> (usize, u16, u16) {
    (word as u32 as usize, (word >> 32) as u16, (word >> 48) as u16)
}

/// A split ring.
pub(super) struct Split<'a> {
    mask: u16,
    /// The driver's index when it was last looked at.
    seen: u16,
    /// Two words each: address; length, flags and next.
    desc: VolatileArrayRef<'a, u64>,
    avail_index: &'a AtomicU16,
    avail: VolatileArrayRef<'a, u16>,
    used_index: &'a AtomicU16,
    /// Identity and length.
    used: VolatileArrayRef<'a, u64>,
}

impl<'a> Split<'a> {
    pub(super) fn new(size: u16, [desc, avail, used]: [Area<'a>; 3]) -> Result<Self> {
        check(size, false)?;
        let n = usize::from(size);
        let avail_index: &AtomicU16 = avail.0.get_atomic_ref(avail.1 + 2)?;
        Ok(Split {
            mask: size - 1,
            seen: avail_index.load(Ordering::Acquire),
            desc: desc.0.get_array_ref(desc.1, 2 * n)?,
            avail_index,
            avail: avail.0.get_array_ref(avail.1 + 4, n)?,
            used_index: used.0.get_atomic_ref(used.1 + 2)?,
            used: used.0.get_array_ref(used.1 + 4, n)?,
        })
    }
}

impl Queue for Split<'_> {
    #[inline]
    fn ready(&mut self, place: u16) -> bool {
        if self.seen == place {
            self.seen = self.avail_index.load(Ordering::Acquire);
        }
        self.seen != place
    }

    #[inline]
    fn gather(&self, place: u16, pieces: &mut Vec<Piece>) -> Result<Gathered> {
        let head = self.avail.load(usize::from(place & self.mask));
        let (mut index, mut total) = (head, 0);
        for _ in 0..=self.mask {
            let at = 2 * usize::from(index & self.mask);
            let (len, flags, next) = parts(self.desc.load(at + 1));
            pieces.push((self.desc.load(at), len));
            total += len;
            if flags & DESC_NEXT == 0 {
                return Ok((head, total, place.wrapping_add(1)));
            }
            index = next;
        }
        bail!("descriptors in a circle")
    }

    #[inline]
    fn give_back(&self, place: u16, id: u16, len: usize) {
        self.used.store(usize::from(place & self.mask), u64::from(id) | (len as u64) << 32);
    }

    #[inline]
    fn publish(&self, place: u16) {
        self.used_index.store(place, Ordering::Release);
    }
}

/// A packed ring.
pub(super) struct Packed<'a> {
    size: u16,
    /// Two words each: address; length, identity and flags.
    ring: VolatileArrayRef<'a, u64>,
}

impl<'a> Packed<'a> {
    pub(super) fn new(size: u16, ring: Area<'a>) -> Result<Self> {
        check(size, true)?;
        Ok(Packed { size, ring: ring.0.get_array_ref(ring.1, 2 * usize::from(size))? })
    }

    #[inline]
    fn at(place: u16) -> usize {
        2 * usize::from(place & !WRAP)
    }

    #[inline]
    fn after(&self, place: u16) -> u16 {
        let next = place + 1;
        if next & !WRAP == self.size { (place & WRAP) ^ WRAP } else { next }
    }
}

impl Queue for Packed<'_> {
    #[inline]
    fn ready(&mut self, place: u16) -> bool {
        let (_, _, flags) = parts(self.ring.load(Self::at(place) + 1));
        let wrap = place & WRAP != 0;
        // What belongs to the descriptor is read after its flags.
        fence(Ordering::Acquire);
        (flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap
    }

    #[inline]
    fn gather(&self, place: u16, pieces: &mut Vec<Piece>) -> Result<Gathered> {
        let (mut place, mut total) = (place, 0);
        for _ in 0..self.size {
            let at = Self::at(place);
            let (len, id, flags) = parts(self.ring.load(at + 1));
            pieces.push((self.ring.load(at), len));
            total += len;
            place = self.after(place);
            if flags & DESC_NEXT == 0 {
                return Ok((id, total, place));
            }
        }
        bail!("a chain longer than its ring")
    }

    #[inline]
    fn give_back(&self, place: u16, id: u16, len: usize) {
        let lap = if place & WRAP != 0 { AVAILABLE | USED } else { 0 };
        // Without this the length means nothing (2.8.5).
        let flags = lap | if len > 0 { DESC_WRITE } else { 0 };
        // The buffer's bytes are written before its flags.
        fence(Ordering::Release);
        let word = len as u64 | u64::from(id) << 32 | u64::from(flags) << 48;
        self.ring.store(Self::at(place) + 1, word);
    }

    #[inline]
    fn publish(&self, _: u16) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_ring_changes_its_wrap_counter_where_it_begins_anew() {
        let map = MmapRegion::<()>::new(4096).expect("memory");
        let ring = Packed::new(3, (&map, 0)).expect("a ring");
        let mut place = WRAP;
        let places: Vec<u16> = std::iter::from_fn(|| {
            place = ring.after(place);
            Some(place)
        })
        .take(6)
        .collect();
        assert_eq!(places, [WRAP | 1, WRAP | 2, 0, 1, 2, WRAP]);
    }

    #[test]
    fn a_packed_descriptor_is_ready_when_its_flags_are_those_of_the_round() {
        let map = MmapRegion::<()>::new(4096).expect("memory");
        let mut ring = Packed::new(4, (&map, 0)).expect("a ring");
        for (flags, first, second) in [
            (0, false, false),
            (AVAILABLE, true, false),
            (USED, false, true),
            (AVAILABLE | USED, false, false),
        ] {
            ring.ring.store(1, u64::from(flags) << 48);
            assert_eq!((ring.ready(WRAP), ring.ready(0)), (first, second), "{flags:#x}");
        }
        ring.give_back(WRAP, 7, 100);
        assert_eq!(parts(ring.ring.load(1)), (100, 7, AVAILABLE | USED | DESC_WRITE));
        ring.give_back(0, 7, 0);
        assert_eq!(parts(ring.ring.load(1)), (0, 7, 0));
    }
}
