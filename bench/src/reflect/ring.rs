//! The reflector's rings: the least that takes a frame out of one and puts it into another.
//!
//! Addresses are translated for each burst and each descriptor, through `vm-memory`'s checked slices; that costs little
//! beside the copy, and keeps this file without `unsafe`. The device's side of virtio 1.3, 2.7 and 2.8, without indirect
//! tables and without notifications: both sides poll.

use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use vm_memory::Bytes;
use vm_memory::volatile_memory::VolatileSlice;

const DESC_NEXT: u16 = 1;
/// Where the wrap counter is in a place of a packed ring.
const WRAP: u16 = 1 << 15;
/// Flags of a packed descriptor.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A piece of a buffer: guest address and length.
pub(super) type Piece = (u64, usize);

/// A ring's areas for the time of a burst. A place is what SET_VRING_BASE says: the free-running index of a split ring,
/// the position and the wrap counter of a packed one.
pub(super) trait Queue {
    /// Whether a buffer is available at `place`.
    fn ready(&mut self, place: u16) -> Result<bool>;

    /// Adds the pieces of the buffer at `place`; its identity, and the place of the next.
    fn gather(&self, place: u16, pieces: &mut Vec<Piece>) -> Result<(u16, u16)>;

    /// Gives the buffer that was at `place` back with `len` bytes written.
    fn give_back(&self, place: u16, id: u16, len: usize) -> Result<()>;

    /// The driver sees what was given back before `place`.
    fn publish(&self, place: u16) -> Result<()>;
}

/// A split ring.
pub(super) struct Split<'a> {
    mask: u16,
    /// The driver's index when it was last looked at.
    seen: Option<u16>,
    desc: VolatileSlice<'a>,
    avail: VolatileSlice<'a>,
    used: VolatileSlice<'a>,
}

impl<'a> Split<'a> {
    pub(super) fn new(size: u16, [desc, avail, used]: [VolatileSlice<'a>; 3]) -> Self {
        Split { mask: size - 1, seen: None, desc, avail, used }
    }

    /// Descriptor `index`: its piece, its flags, and the next.
    #[inline]
    fn desc(&self, index: u16) -> Result<(Piece, u16, u16)> {
        let at = 16 * usize::from(index & self.mask);
        let rest: u64 = self.desc.load(at + 8, Ordering::Relaxed)?;
        let piece = (self.desc.load(at, Ordering::Relaxed)?, rest as u32 as usize);
        Ok((piece, (rest >> 32) as u16, (rest >> 48) as u16))
    }
}

impl Queue for Split<'_> {
    #[inline]
    fn ready(&mut self, place: u16) -> Result<bool> {
        if self.seen.is_none_or(|seen| seen == place) {
            self.seen = Some(self.avail.load(2, Ordering::Acquire)?);
        }
        Ok(self.seen != Some(place))
    }

    #[inline]
    fn gather(&self, place: u16, pieces: &mut Vec<Piece>) -> Result<(u16, u16)> {
        let head: u16 = self.avail.load(4 + 2 * usize::from(place & self.mask), Ordering::Relaxed)?;
        let mut index = head;
        for _ in 0..=self.mask {
            let (piece, flags, next) = self.desc(index)?;
            pieces.push(piece);
            if flags & DESC_NEXT == 0 {
                return Ok((head, place.wrapping_add(1)));
            }
            index = next;
        }
        anyhow::bail!("descriptors in a circle")
    }

    #[inline]
    fn give_back(&self, place: u16, id: u16, len: usize) -> Result<()> {
        let at = 4 + 8 * usize::from(place & self.mask);
        self.used.store(u32::from(id), at, Ordering::Relaxed)?;
        self.used.store(len as u32, at + 4, Ordering::Relaxed)?;
        Ok(())
    }

    #[inline]
    fn publish(&self, place: u16) -> Result<()> {
        self.used.store(place, 2, Ordering::Release)?;
        Ok(())
    }
}

/// A packed ring.
pub(super) struct Packed<'a> {
    size: u16,
    ring: VolatileSlice<'a>,
}

impl<'a> Packed<'a> {
    pub(super) fn new(size: u16, ring: VolatileSlice<'a>) -> Self {
        Packed { size, ring }
    }

    #[inline]
    fn at(place: u16) -> usize {
        16 * usize::from(place & !WRAP)
    }

    #[inline]
    fn after(&self, place: u16) -> u16 {
        let next = place + 1;
        if next & !WRAP == self.size { (place & WRAP) ^ WRAP } else { next }
    }
}

impl Queue for Packed<'_> {
    #[inline]
    fn ready(&mut self, place: u16) -> Result<bool> {
        let flags: u16 = self.ring.load(Self::at(place) + 14, Ordering::Acquire)?;
        let wrap = place & WRAP != 0;
        Ok((flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap)
    }

    #[inline]
    fn gather(&self, place: u16, pieces: &mut Vec<Piece>) -> Result<(u16, u16)> {
        let mut place = place;
        for _ in 0..self.size {
            let at = Self::at(place);
            let rest: u64 = self.ring.load(at + 8, Ordering::Relaxed)?;
            pieces.push((self.ring.load(at, Ordering::Relaxed)?, rest as u32 as usize));
            place = self.after(place);
            if (rest >> 48) as u16 & DESC_NEXT == 0 {
                return Ok(((rest >> 32) as u16, place));
            }
        }
        anyhow::bail!("a chain longer than its ring")
    }

    #[inline]
    fn give_back(&self, place: u16, id: u16, len: usize) -> Result<()> {
        let at = Self::at(place);
        self.ring.store(len as u32, at + 8, Ordering::Relaxed)?;
        self.ring.store(id, at + 12, Ordering::Relaxed)?;
        let flags = if place & WRAP != 0 { AVAILABLE | USED } else { 0 };
        self.ring.store(flags, at + 14, Ordering::Release)?;
        Ok(())
    }

    #[inline]
    fn publish(&self, _: u16) -> Result<()> {
        Ok(())
    }
}

/// # Errors
/// A size that no ring has.
pub(super) fn check(size: u16, packed: bool) -> Result<()> {
    let right = if packed { (1..=WRAP).contains(&size) } else { size.is_power_of_two() };
    ensure!(right, "a ring of {size} descriptors");
    Ok(())
}
