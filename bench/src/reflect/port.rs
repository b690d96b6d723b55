//! The reflector's ports, and how frames go from one to others: one copy for each receiver.

use std::fs::File;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};
use frontend::features;
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;
use vm_memory::volatile_memory::VolatileSlice;

use super::ring::{Area, Packed, Piece, Queue, Split};

/// Frames that one direction moves before the others have their turn.
const BURST: usize = 32;
/// Where the header says over how many buffers a frame is spread.
const NUM_BUFFERS: usize = 10;

/// The queue that the guest receives by, and the one that it sends by.
const RX: usize = 0;
const TX: usize = 1;

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
    /// Descriptors, driver's and device's area, in the front-end's addresses.
    pub(super) areas: Option<[u64; 3]>,
    /// As SET_VRING_BASE says it.
    pub(super) place: u16,
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

/// What is used again and again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    source: Vec<Piece>,
    target: Vec<Piece>,
    /// Receive buffers of one frame: place, identity, bytes written.
    buffers: Vec<(u16, u16, usize)>,
}

impl Port {
    fn packed(&self) -> bool {
        self.features & features::RING_PACKED != 0
    }

    /// Whether both rings are set up and enabled.
    pub(super) fn runs(&self) -> bool {
        let always = self.features & features::PROTOCOL_FEATURES == 0;
        let ready = |ring: &Ring| ring.areas.is_some() && ring.kick.is_some() && (ring.enabled || always);
        !self.regions.is_empty() && self.rings.iter().all(ready)
    }

    #[inline]
    fn guest(&self, addr: u64, len: usize) -> Result<VolatileSlice<'_>> {
        // Nearly always the only one, and a frame does not cross from one to the next.
        let Some(region) = self.regions.iter().find(|r| addr.wrapping_sub(r.gpa) < r.len) else {
            bail!("no memory at guest address {addr:#x}");
        };
        Ok(region.map.get_slice((addr - region.gpa + region.offset) as usize, len)?)
    }

    fn area(&self, addr: u64) -> Result<Area<'_>> {
        let region = self.regions.iter().find(|r| addr.wrapping_sub(r.user) < r.len);
        let region = region.with_context(|| format!("no memory at user address {addr:#x}"))?;
        Ok((&region.map, (addr - region.user + region.offset) as usize))
    }

    fn split(&self, index: usize) -> Result<Split<'_>> {
        let ring = &self.rings[index];
        let [desc, avail, used] = ring.areas.context("a ring without addresses")?;
        Split::new(ring.size, [self.area(desc)?, self.area(avail)?, self.area(used)?])
    }

    fn packed_ring(&self, index: usize) -> Result<Packed<'_>> {
        let ring = &self.rings[index];
        let [desc, _, _] = ring.areas.context("a ring without addresses")?;
        Packed::new(ring.size, self.area(desc)?)
    }

    /// Tells the driver of ring `index` that nobody waits for its kicks.
    pub(super) fn silence(&self, index: usize) -> Result<()> {
        let [_, _, device] = self.rings[index].areas.context("a ring without addresses")?;
        // A split ring's used flags; the flags of a packed ring's event suppression.
        let at = if self.packed() { 2 } else { 0 };
        let (map, offset) = self.area(device)?;
        map.get_atomic_ref::<AtomicU16>(offset + at)?.store(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Moves one burst from what `from` sends to what each of `to` receives by. With one receiver, as much as it has room
/// for; with several, what one has no room for is lost for it.
pub(super) fn carry(ports: &mut [Port], from: usize, to: &[usize], scratch: &mut Scratch) -> Result<()> {
    let sender = &ports[from];
    let mut rx: Vec<u16> = to.iter().map(|&port| ports[port].rings[RX].place).collect();
    let tx = if sender.packed() {
        let targets = to.iter().map(|&port| ports[port].packed_ring(RX)).collect::<Result<Vec<_>>>()?;
        burst(ports, from, sender.packed_ring(TX)?, to, targets, &mut rx, scratch)?
    } else {
        let targets = to.iter().map(|&port| ports[port].split(RX)).collect::<Result<Vec<_>>>()?;
        burst(ports, from, sender.split(TX)?, to, targets, &mut rx, scratch)?
    };
    ports[from].rings[TX].place = tx;
    for (port, place) in to.iter().zip(rx) {
        ports[*port].rings[RX].place = place;
    }
    Ok(())
}

/// The burst; the place in the sender's ring after it.
fn burst<Q: Queue>(
    ports: &[Port],
    from: usize,
    mut source: Q,
    to: &[usize],
    mut targets: Vec<Q>,
    places: &mut [u16],
    scratch: &mut Scratch,
) -> Result<u16> {
    let mut place = ports[from].rings[TX].place;
    let started = place;
    for _ in 0..BURST {
        if !source.ready(place) {
            break;
        }
        scratch.source.clear();
        let (id, len, after) = source.gather(place, &mut scratch.source)?;
        let mut taken = to.len() > 1;
        for number in 0..to.len() {
            let (target, place) = (&mut targets[number], &mut places[number]);
            taken |= put(&ports[from], len, &ports[to[number]], target, place, scratch)?;
        }
        if !taken {
            break;
        }
        source.give_back(place, id, 0);
        place = after;
    }
    if place != started {
        for (target, place) in targets.iter().zip(places.iter()) {
            target.publish(*place);
        }
        source.publish(place);
    }
    Ok(place)
}

/// Copies the frame of `len` bytes that is gathered into as many of the receiver's buffers as it takes; whether there
/// was room.
#[inline]
fn put<Q: Queue>(
    sender: &Port,
    len: usize,
    receiver: &Port,
    target: &mut Q,
    place: &mut u16,
    scratch: &mut Scratch,
) -> Result<bool> {
    let Scratch { source, target: pieces, buffers } = scratch;
    pieces.clear();
    buffers.clear();
    let (mut room, mut next) = (0, *place);
    while room < len {
        if !target.ready(next) {
            return Ok(false);
        }
        let (id, size, after) = target.gather(next, pieces)?;
        buffers.push((next, id, size.min(len - room)));
        room += size;
        next = after;
    }
    if let ([(from, _)], [(to, size)]) = (source.as_slice(), pieces.as_slice()) {
        let buffer = receiver.guest(*to, *size)?;
        sender.guest(*from, len)?.copy_to_volatile_slice(buffer);
        buffer.get_ref(NUM_BUFFERS)?.store(1u16);
    } else if let Some(first) = pieces.first() {
        copy(sender, source, receiver, pieces)?;
        receiver.guest(first.0, first.1)?.get_ref(NUM_BUFFERS)?.store(buffers.len() as u16);
    }
    for &(place, id, written) in buffers.iter() {
        target.give_back(place, id, written);
    }
    *place = next;
    Ok(true)
}

/// Copies the bytes of `source` into `target`, which has room for them.
fn copy(sender: &Port, source: &[Piece], receiver: &Port, target: &[Piece]) -> Result<()> {
    let mut target = target.iter();
    let (mut to, mut room) = (0, 0);
    for &(from, len) in source {
        let mut done = 0;
        while done < len {
            if room == 0 {
                (to, room) = *target.next().context("no room for a frame")?;
            }
            let n = room.min(len - done);
            sender.guest(from + done as u64, n)?.copy_to_volatile_slice(receiver.guest(to, n)?);
            (to, room, done) = (to + n as u64, room - n, done + n);
        }
    }
    Ok(())
}
