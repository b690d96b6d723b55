use std::collections::VecDeque;

use super::super::Indirect;
use super::*;
use crate::hash::splitmix;
use crate::memory::Layout;

/// The device's side, as the specification tells it and as far as these tests need it: one that reads descriptors as
/// they come and uses buffers in any order.
struct Device {
    ring: Window,
    size: u16,
    avail: (u16, bool),
    used: (u16, bool),
    /// What was made available and is not used: id, descriptors, and the pieces.
    taken: VecDeque<(u16, u16, Vec<Segment>)>,
    memory: GuestMemory,
}

impl Device {
    fn new(memory: GuestMemory, queue: &PackedQueue) -> Self {
        let base = queue.base();
        let place = (base as u16 & 0x7fff, base >> 15 & 1 == 1);
        assert_eq!(base >> 16, base & 0xffff);
        let ring = queue.windows().0;
        Device { ring, size: queue.size(), avail: place, used: place, taken: VecDeque::new(), memory }
    }

    fn read(window: &Window, index: u16) -> (Segment, u16, u16) {
        let at = 16 * usize::from(index);
        let flags = window.load_u16(at + 14, Ordering::Acquire);
        let len = window.load_u32(at + 8, Ordering::Relaxed);
        let gpa = window.load_u64(at, Ordering::Relaxed);
        (Segment { gpa, len, writable: flags & 2 != 0 }, window.load_u16(at + 12, Ordering::Relaxed), flags)
    }

    fn advance(place: &mut (u16, bool), by: u16, size: u16) {
        place.0 += by;
        if place.0 >= size {
            place.0 -= size;
            place.1 = !place.1;
        }
    }

    /// Takes one buffer that is available.
    fn take(&mut self) -> bool {
        let (_, _, flags) = Self::read(&self.ring, self.avail.0);
        if (flags & DESC_F_AVAIL != 0) != self.avail.1 || (flags & DESC_F_USED != 0) == self.avail.1 {
            return false;
        }
        let (mut pieces, mut descs) = (Vec::new(), 0);
        loop {
            let (piece, id, flags) = Self::read(&self.ring, self.avail.0);
            assert_eq!((flags & DESC_F_AVAIL != 0, flags & DESC_F_USED != 0), (self.avail.1, !self.avail.1));
            Self::advance(&mut self.avail, 1, self.size);
            descs += 1;
            if flags & DESC_F_INDIRECT != 0 {
                assert_eq!((descs, flags & 3, piece.len % 16), (1, 0, 0));
                let table = self.memory.window(piece.gpa, piece.len.into()).unwrap();
                pieces = (0..piece.len as u16 / 16).map(|i| Self::read(&table, i).0).collect();
            } else {
                pieces.push(piece);
            }
            if flags & DESC_F_NEXT == 0 {
                self.taken.push_back((id, descs, pieces));
                return true;
            }
        }
    }

    /// Writes a used descriptor, and skips `descs`.
    fn put(&mut self, id: u16, len: Option<u32>, descs: u16) {
        let at = 16 * usize::from(self.used.0);
        self.ring.store_u16(at + 12, id, Ordering::Relaxed);
        self.ring.store_u32(at + 8, len.unwrap_or(0xdead), Ordering::Relaxed);
        let write = if len.is_some() { DESC_F_WRITE } else { 0 };
        let lap = if self.used.1 { DESC_F_AVAIL | DESC_F_USED } else { 0 };
        self.ring.store_u16(at + 14, lap | write, Ordering::Release);
        Self::advance(&mut self.used, descs, self.size);
    }
}

fn queue(setup: Setup) -> (PackedQueue, Device) {
    let mut memory = GuestMemory::new(&Layout::single(4 << 20)).unwrap();
    let queue = PackedQueue::new(&mut memory, setup).unwrap();
    let device = Device::new(memory, &queue);
    (queue, device)
}

fn pieces(random: &mut u64) -> Vec<Segment> {
    let n = 1 + splitmix(random) % 4;
    let writable = splitmix(random) & 1 == 1;
    (0..n)
        .map(|_| Segment { gpa: splitmix(random) % 999, len: splitmix(random) as u32 % 999, writable })
        .collect()
}

/// Whatever is added arrives at the device as it was, and what the device uses, in any order, comes back once.
#[test]
fn buffers_go_there_and_back_over_many_laps() {
    for (size, base, in_order, indirect) in [
        (8, 0, false, Indirect::Never),
        (8, 13, true, Indirect::Never),
        (16, 65_530, false, Indirect::Chains),
        (4, 32_767, true, Indirect::Chains),
        (64, 5, true, Indirect::Always),
        (32768, 32_760, false, Indirect::Chains),
    ] {
        let setup = Setup { in_order, indirect, indirect_max: 4, base, ..Setup::new(size) };
        let (mut q, mut device) = queue(setup);
        let mut random = u64::from(base) + 1;
        let mut flying: Vec<(u16, Vec<Segment>)> = Vec::new();
        let mut back = VecDeque::new();
        for _ in 0..3000 {
            for _ in 0..splitmix(&mut random) % 6 {
                let pieces = pieces(&mut random);
                match q.add(&pieces) {
                    Ok(id) => {
                        assert!(flying.iter().all(|(other, _)| *other != id), "id {id} twice");
                        flying.push((id, pieces));
                    }
                    Err(e) => assert_eq!(e, RingError::Full(pieces.len())),
                }
            }
            assert!(!device.take(), "nothing is seen before it is published");
            q.publish();
            while device.take() {}
            let n = if device.taken.is_empty() {
                0
            } else {
                splitmix(&mut random) as usize % (device.taken.len() + 1)
            };
            let mut batch = 0;
            for i in 0..n {
                let which = if in_order { 0 } else { splitmix(&mut random) as usize % device.taken.len() };
                let (id, descs, seen) = device.taken.remove(which).unwrap();
                let at = flying.iter().position(|(other, _)| *other == id).unwrap();
                let (_, sent) = flying.remove(at);
                assert_eq!(seen, sent, "size {size}");
                let room: u32 = super::super::writable(&sent);
                let len = (room > 0).then(|| splitmix(&mut random) as u32 % (room + 1));
                batch += descs;
                if in_order && i + 1 < n && splitmix(&mut random) & 1 == 1 {
                    // This one is told by the one after it.
                    back.push_back(Used { id, len: room });
                    continue;
                }
                device.put(id, len, std::mem::take(&mut batch));
                back.push_back(Used { id, len: len.unwrap_or(0) });
            }
            while !splitmix(&mut random).is_multiple_of(8) {
                let got = q.pop_used().unwrap();
                assert_eq!(got, back.pop_front(), "size {size}, in order {in_order}");
                if got.is_none() {
                    break;
                }
            }
            let place = u32::from(device.used.0) | u32::from(device.used.1) << 15;
            assert!(!in_order || q.base() == place * 0x1_0001, "{:#x} is not {place:#x}", q.base());
        }
    }
}

#[test]
fn what_the_device_may_not_do_is_an_error() {
    let fresh = || {
        let (mut q, mut device) = queue(Setup::new(4));
        let first = q.add(&[Segment::writable(0, 100)]).unwrap();
        let second = q.add(&[Segment::readable(0, 100), Segment::readable(0, 100)]).unwrap();
        q.publish();
        assert!(device.take() && device.take() && !device.take());
        (q, device, first, second)
    };
    let (mut q, mut device, _, _) = fresh();
    device.put(3, None, 1);
    assert_eq!(q.pop_used(), Err(RingError::UsedId(3)), "an id that is not in flight");
    let (mut q, mut device, _, _) = fresh();
    device.put(4, None, 1);
    assert_eq!(q.pop_used(), Err(RingError::UsedId(4)), "an id that does not exist");
    let (mut q, mut device, id, _) = fresh();
    device.put(id, Some(101), 1);
    assert_eq!(q.pop_used(), Err(RingError::UsedLen { id, len: 101, capacity: 100 }));
    let (mut q, mut device, _, id) = fresh();
    device.put(id, Some(1), 2);
    assert_eq!(q.pop_used(), Err(RingError::UsedLen { id, len: 1, capacity: 0 }), "nothing was writable");
    let (mut q, mut device, id, _) = fresh();
    device.put(id, Some(1), 1);
    assert_eq!(q.pop_used(), Ok(Some(Used { id, len: 1 })));
    device.put(id, Some(1), 1);
    assert_eq!(q.pop_used(), Err(RingError::UsedId(id.into())), "the same again");
    let (mut q, device, _, _) = fresh();
    device.ring.store_u16(14, DESC_F_USED, Ordering::Relaxed);
    assert_eq!(q.pop_used(), Err(RingError::Flags { index: 0, flags: DESC_F_USED }), "another lap's");
    let (mut q, device, _, _) = fresh();
    device.ring.store_u16(14, 0, Ordering::Relaxed);
    assert_eq!(q.pop_used(), Err(RingError::Flags { index: 0, flags: 0 }), "used on the wrong lap");
}

#[test]
fn in_order_what_was_overtaken_does_not_come_later() {
    let (mut q, mut device) = queue(Setup { in_order: true, ..Setup::new(8) });
    let ids: Vec<u16> = (0..3).map(|_| q.add(&[Segment::writable(0, 9)]).unwrap()).collect();
    q.publish();
    while device.take() {}
    device.put(ids[1], Some(9), 1);
    device.put(ids[0], Some(9), 1);
    assert_eq!(q.pop_used(), Ok(Some(Used { id: ids[0], len: 9 })));
    assert_eq!(q.pop_used(), Ok(Some(Used { id: ids[1], len: 9 })));
    // The first counted for two, so the second is not where it has to be.
    assert_eq!(q.pop_used(), Ok(None));
    device.put(ids[0], Some(9), 1);
    assert_eq!(q.pop_used(), Err(RingError::UsedId(ids[0].into())));
}

#[test]
fn nothing_is_taken_that_was_not_published() {
    let (mut q, mut device) = queue(Setup::new(4));
    let id = q.add(&[Segment::writable(0, 9)]).unwrap();
    assert!(!device.take());
    assert_eq!(q.pop_used(), Ok(None));
    device.put(id, Some(9), 1);
    assert_eq!(q.pop_used(), Err(RingError::UsedId(id.into())));
}

#[test]
fn kicks_follow_the_device_s_wish() {
    let (mut q, _) = queue(Setup { event_idx: true, base: 6, ..Setup::new(8) });
    let (_, _, device) = q.windows();
    let wish = |flags: u16, index: u16, wrap: u16| {
        device.store_u32(0, u32::from(index | wrap << 15) | u32::from(flags) << 16, Ordering::Relaxed);
    };
    let mut add = |n| {
        for _ in 0..n {
            q.add(&[Segment::readable(0, 1)]).unwrap();
        }
        q.publish();
        let first = q.needs_kick();
        assert!(!q.needs_kick(), "asked once");
        first
    };
    wish(EVENT_ENABLE, 0, 0);
    assert!(add(1));
    wish(EVENT_DISABLE, 0, 0);
    assert!(!add(1));
    // The ring goes on at index 0 on its second lap.
    wish(EVENT_DESC, 1, 0);
    assert!(!add(1), "index 0 is before it");
    assert!(add(2), "1 is passed");
    assert!(!add(1), "it was passed already");
    wish(EVENT_DESC, 4, 1);
    assert!(!add(1), "index 4 of the lap after, not of this one");
}

#[test]
fn interrupts_are_wished_for_at_the_next_used_descriptor() {
    let (mut q, mut device) = queue(Setup { event_idx: true, base: 8 + 3, ..Setup::new(8) });
    let driver = q.windows().1;
    assert_eq!(driver.load_u32(0, Ordering::Relaxed) >> 16, 1, "none at first");
    assert!(!q.arm());
    assert_eq!(driver.load_u32(0, Ordering::Relaxed), 2 << 16 | 3, "index 3, wrap counter 0");
    let id = q.add(&[Segment::writable(0, 9)]).unwrap();
    q.publish();
    device.take();
    device.put(id, Some(9), 1);
    assert!(q.arm(), "one is there already");
    q.disarm();
    assert_eq!(driver.load_u32(0, Ordering::Relaxed) >> 16, 1);
}
