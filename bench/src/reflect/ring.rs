//! The reflector's split rings: one acquire load, one publication, one copy for each frame.
//!
//! Addresses are translated for each burst and each descriptor, through `vm-memory`'s checked slices; that costs little
//! beside the copy, and keeps this file without `unsafe`.

use std::fs::File;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use frontend::features;
use vm_memory::mmap::MmapRegion;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{Bytes, VolatileMemory};

/// Frames that one direction moves before the other has its turn.
const BURST: u16 = 32;
/// Where the header says over how many buffers a frame is spread.
const NUM_BUFFERS: usize = 10;
const DESC_NEXT: u16 = 1;

/// The queue that the guest receives by, and the one that it sends by.
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;

/// A region of guest memory, mapped from its file's start.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) gpa: u64,
    pub(super) user: u64,
    pub(super) len: u64,
    /// Where the region begins in the mapping.
    pub(super) offset: u64,
    pub(super) map: MmapRegion,
}

/// A ring as messages set it up.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) size: u16,
    /// Descriptors, available and used ring, in the front-end's addresses.
    pub(super) areas: Option<[u64; 3]>,
    pub(super) next: u16,
    /// Held, never read or signalled: both sides poll.
    pub(super) kick: Option<File>,
    pub(super) enabled: bool,
}

/// One port: memory and two rings.
#[derive(Debug, Default)]
pub(super) struct Port {
    pub(super) regions: Vec<Region>,
    pub(super) rings: [Ring; 2],
    pub(super) features: u64,
}

/// A ring's areas for the time of a burst.
struct Areas<'a> {
    mask: u16,
    desc: VolatileSlice<'a>,
    avail: VolatileSlice<'a>,
    used: VolatileSlice<'a>,
}

impl Port {
    /// Whether both rings are set up and enabled.
    pub(super) fn runs(&self) -> bool {
        let always = self.features & features::PROTOCOL_FEATURES == 0;
        let ready = |ring: &Ring| ring.areas.is_some() && ring.kick.is_some() && (ring.enabled || always);
        !self.regions.is_empty() && self.rings.iter().all(ready)
    }

    fn user(&self, addr: u64, len: usize) -> Result<VolatileSlice<'_>> {
        let region = self.regions.iter().find(|r| addr.wrapping_sub(r.user) < r.len);
        let region = region.with_context(|| format!("no memory at user address {addr:#x}"))?;
        Ok(region.map.get_slice((addr - region.user + region.offset) as usize, len)?)
    }

    #[inline]
    fn guest(&self, addr: u64, len: usize) -> Result<VolatileSlice<'_>> {
        let region = self.regions.iter().find(|r| addr.wrapping_sub(r.gpa) < r.len);
        let region = region.with_context(|| format!("no memory at guest address {addr:#x}"))?;
        Ok(region.map.get_slice((addr - region.gpa + region.offset) as usize, len)?)
    }

    fn areas(&self, index: usize) -> Result<Areas<'_>> {
        let ring = &self.rings[index];
        let [desc, avail, used] = ring.areas.context("a ring without addresses")?;
        ensure!(ring.size.is_power_of_two(), "a ring of {} descriptors", ring.size);
        let n = usize::from(ring.size);
        Ok(Areas {
            mask: ring.size - 1,
            desc: self.user(desc, 16 * n)?,
            avail: self.user(avail, 4 + 2 * n)?,
            used: self.user(used, 4 + 8 * n)?,
        })
    }

    /// Tells the driver of ring `index` that nobody waits for its kicks.
    pub(super) fn silence(&self, index: usize) -> Result<()> {
        self.areas(index)?.used.store(1u16, 0, Ordering::Relaxed)?;
        Ok(())
    }
}

/// A descriptor: address, length, flags and next.
type Desc = (u64, usize, u16, u16);

impl Areas<'_> {
    #[inline]
    fn pending(&self, next: u16) -> Result<u16> {
        Ok(self.avail.load::<u16>(2, Ordering::Acquire)?.wrapping_sub(next))
    }

    #[inline]
    fn head(&self, next: u16) -> Result<u16> {
        Ok(self.avail.load::<u16>(4 + 2 * usize::from(next & self.mask), Ordering::Relaxed)?)
    }

    #[inline]
    fn desc(&self, index: u16) -> Result<Desc> {
        let at = 16 * usize::from(index & self.mask);
        let rest: u64 = self.desc.load(at + 8, Ordering::Relaxed)?;
        Ok((
            self.desc.load(at, Ordering::Relaxed)?,
            rest as u32 as usize,
            (rest >> 32) as u16,
            (rest >> 48) as u16,
        ))
    }

    #[inline]
    fn use_up(&self, next: u16, id: u16, len: usize) -> Result<()> {
        let at = 4 + 8 * usize::from(next & self.mask);
        self.used.store(u32::from(id), at, Ordering::Relaxed)?;
        self.used.store(len as u32, at + 4, Ordering::Relaxed)?;
        Ok(())
    }

    #[inline]
    fn publish(&self, next: u16) -> Result<()> {
        self.used.store(next, 2, Ordering::Release)?;
        Ok(())
    }
}

/// Moves one burst from what `from` sends to what `to` receives by: as much as both have room for.
pub(super) fn carry(from: &mut Port, to: &mut Port) -> Result<()> {
    let (mut sent, mut received) = (from.rings[TX].next, to.rings[RX].next);
    {
        let (tx, rx) = (from.areas(TX)?, to.areas(RX)?);
        let n = tx.pending(sent)?.min(rx.pending(received)?).min(BURST);
        if n == 0 {
            return Ok(());
        }
        for _ in 0..n {
            let (source, target) = (tx.head(sent)?, rx.head(received)?);
            let (addr, room, _, _) = rx.desc(target)?;
            let buffer = to.guest(addr, room)?;
            let mut written = 0;
            let mut index = source;
            loop {
                let (addr, len, flags, next) = tx.desc(index)?;
                // Frames are shorter than receive buffers; a guard against anything else is `subslice`'s error.
                from.guest(addr, len)?.copy_to_volatile_slice(buffer.subslice(written, len)?);
                written += len;
                if flags & DESC_NEXT == 0 {
                    break;
                }
                index = next;
            }
            buffer.write_obj(1u16, NUM_BUFFERS)?;
            rx.use_up(received, target, written)?;
            tx.use_up(sent, source, 0)?;
            sent = sent.wrapping_add(1);
            received = received.wrapping_add(1);
        }
        rx.publish(received)?;
        tx.publish(sent)?;
    }
    (from.rings[TX].next, to.rings[RX].next) = (sent, received);
    Ok(())
}
