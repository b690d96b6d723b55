//! Guests that break the rules of the ring: their port is quarantined with the reason, others notice nothing,
//! and the port comes back when its driver sets the ring up anew.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Counters, PATIENCE, Rig, TestPort, frame, until};
use frontend::features as f;
use frontend::memory::Layout;
use frontend::raw::RingAccess;
use frontend::raw::{Desc, table_bytes};
use frontend::ring::Indirect;
use frontend::{Config, NetDevice};
use vhost_user::PortState;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A guest to misbehave, joined to a well-behaved one, and two others that must not notice.
struct Scene {
    _rig: Rig,
    bad: TestPort,
    good: TestPort,
    others: (TestPort, TestPort),
    bad_device: NetDevice,
    good_device: NetDevice,
    other_devices: (NetDevice, NetDevice),
}

impl Scene {
    fn new(config: Config) -> Self {
        let rig = Rig::new();
        let (bad, good) = rig.pair();
        let others = (rig.port("c.sock"), rig.port("d.sock"));
        rig.join(&others.0, &others.1);
        let connect = |port: &TestPort, config| NetDevice::connect(&port.path, config).unwrap();
        let bad_device = connect(&bad, config);
        let good_device = connect(&good, Config::default());
        let other_devices = (connect(&others.0, Config::default()), connect(&others.1, Config::default()));
        bad.wait_state(&PortState::Up);
        Self { _rig: rig, bad, good, others, bad_device, good_device, other_devices }
    }

    fn ring(&self, index: u16) -> RingAccess {
        self.bad_device.ring_access(index).unwrap()
    }

    /// Guest memory for a buffer or a table.
    fn alloc(&mut self, len: u64) -> u64 {
        self.bad_device.memory_mut().alloc(len, 16).unwrap()
    }

    fn others_are_fine(&mut self) {
        let (c, d) = &mut self.other_devices;
        for n in 0..10 {
            c.send(&frame(n, 200)).unwrap();
            assert_eq!(d.recv(PATIENCE).unwrap().1, frame(n, 200));
        }
        assert_eq!(self.others.0.port.state(), PortState::Up);
        assert_eq!(self.others.1.port.state(), PortState::Up);
        assert_eq!(self.good.port.state(), PortState::Up);
    }

    /// The driver sets its rings up anew, and traffic crosses again.
    fn recover(&mut self) {
        self.bad_device.stop().unwrap();
        // What it sent before is there now, and no more comes.
        while let Ok(Some(_)) = self.good_device.try_recv(&mut Vec::new()) {}
        self.bad_device.reset_rings(0).unwrap();
        self.bad_device.resume().unwrap();
        self.bad.wait_state(&PortState::Up);
        self.bad_device.send(&frame(7, 300)).unwrap();
        assert_eq!(self.good_device.recv(PATIENCE).unwrap().1, frame(7, 300));
        self.good_device.send(&frame(8, 300)).unwrap();
        assert_eq!(self.bad_device.recv(PATIENCE).unwrap().1, frame(8, 300));
    }

    /// Misbehaves in the transmit ring.
    fn breaks(&mut self, what: &str, reason: &str, misbehave: impl FnOnce(&mut Self, &RingAccess)) {
        let ring = self.ring(1);
        misbehave(self, &ring);
        ring.kick();
        self.bad.wait_error(reason);
        let (mask, next) = (ring.size() - 1, ring.avail_idx());
        assert_ne!(ring.used_idx() & mask, next & mask, "{what}: a bad chain was given back");
        self.others_are_fine();
        self.recover();
    }
}

/// Offers one chain that begins at descriptor 0.
/// Writes something into a ring that breaks its rules; the number is where guest memory is free.
type Corruption = fn(&RingAccess, u64);

fn offer(ring: &RingAccess, descriptors: &[Desc]) {
    for (i, d) in descriptors.iter().enumerate() {
        ring.set_desc(i as u16, *d);
    }
    ring.offer(0);
}

#[test]
fn a_descriptor_outside_the_memory_quarantines_its_port() {
    let mut s = Scene::new(Config::default());
    let end = {
        let r = &s.bad_device.memory().regions()[0];
        r.gpa() + r.len()
    };
    let reason = "outside the memory";
    s.breaks("past the end", reason, |_, r| offer(r, &[Desc::new(end, 64, 0, 0)]));
    s.breaks("across the end", reason, |_, r| offer(r, &[Desc::new(end - 32, 64, 0, 0)]));
    s.breaks("wrapping", reason, |_, r| offer(r, &[Desc::new(u64::MAX - 31, 64, 0, 0)]));
    s.breaks("4 GB", reason, |_, r| offer(r, &[Desc::new(end - 4096, u32::MAX, 0, 0)]));
    s.breaks("empty, at a bad address", reason, |_, r| offer(r, &[Desc::new(1 << 60, 0, 0, 0)]));
    s.breaks("empty, behind a good one", reason, |s, r| {
        let at = s.alloc(64);
        offer(r, &[Desc::new(at, 64, NEXT, 1), Desc::new(u64::MAX, 0, 0, 0)]);
    });
}

#[test]
fn a_buffer_of_the_wrong_direction_quarantines_its_port() {
    let mut s = Scene::new(Config::default());
    s.breaks("writable", "wrong direction", |s, r| {
        let at = s.alloc(64);
        offer(r, &[Desc::new(at, 64, WRITE, 0)]);
    });
    s.breaks("writable second", "wrong direction", |s, r| {
        let at = s.alloc(64);
        offer(r, &[Desc::new(at, 12, NEXT, 1), Desc::new(at, 52, WRITE, 0)]);
    });
}

#[test]
fn a_chain_that_never_ends_quarantines_its_port() {
    let mut s = Scene::new(Config::default().queue_size(64));
    s.breaks("itself", "longer than its table", |s, r| {
        let at = s.alloc(64);
        offer(r, &[Desc::new(at, 64, NEXT, 0)]);
    });
    s.breaks("two", "longer than its table", |s, r| {
        let at = s.alloc(64);
        offer(r, &[Desc::new(at, 12, NEXT, 1), Desc::new(at, 64, NEXT, 0)]);
    });
    s.breaks("outside", "outside the ring", |s, r| {
        let at = s.alloc(64);
        offer(r, &[Desc::new(at, 64, NEXT, 64)]);
    });
    s.breaks("far outside", "outside the ring", |s, r| {
        let at = s.alloc(64);
        offer(r, &[Desc::new(at, 64, NEXT, 65535)]);
    });
}

#[test]
fn a_chain_longer_than_is_followed_is_dropped_and_counted() {
    let mut s = Scene::new(Config::default().queue_size(1024));
    let at = s.alloc(64);
    let ring = s.ring(1);
    for i in 0..600 {
        ring.set_desc(i, Desc::new(at, 1, if i < 599 { NEXT } else { 0 }, i + 1));
    }
    ring.offer(0);
    assert!(ring.wait_used(1, PATIENCE), "the chain is given back");
    until("counted", || Counters::get(&s.bad.counters.too_many_segments) == 1);
    // A loop in a ring larger than a chain may be looks the same.
    ring.set_desc(0, Desc::new(at, 1, NEXT, 0));
    ring.offer(0);
    until("counted", || Counters::get(&s.bad.counters.too_many_segments) == 2);
    assert_eq!(s.bad.port.state(), PortState::Up);
    s.others_are_fine();
}

#[test]
fn available_entries_and_indices_are_checked() {
    let mut s = Scene::new(Config::default());
    s.breaks("head", "names no descriptor", |_, r| {
        r.set_avail_entry(r.avail_idx(), 256);
        r.set_avail_idx(r.avail_idx().wrapping_add(1));
    });
    s.breaks("head", "names no descriptor", |_, r| {
        r.set_avail_entry(r.avail_idx(), 65535);
        r.set_avail_idx(r.avail_idx().wrapping_add(1));
    });
    s.breaks("jump", "available index moved", |_, r| r.set_avail_idx(r.avail_idx().wrapping_add(257)));
    s.breaks("back", "available index moved", |_, r| r.set_avail_idx(r.avail_idx().wrapping_sub(1)));
}

#[test]
fn indirect_tables_are_checked() {
    let mut s = Scene::new(Config { indirect: Indirect::Never, ..Config::default() });
    let table = s.alloc(16 * 64);
    let data = s.alloc(64);
    let put = |s: &Scene, descriptors: &[Desc]| {
        s.bad_device.memory().write(table, &table_bytes(descriptors)).unwrap()
    };
    s.breaks("no multiple of 16", "no multiple of 16", |_, r| offer(r, &[Desc::new(table, 24, INDIRECT, 0)]));
    s.breaks("empty", "no multiple of 16", |_, r| offer(r, &[Desc::new(table, 0, INDIRECT, 0)]));
    s.breaks("table outside", "indirect table outside", |_, r| {
        offer(r, &[Desc::new(1 << 50, 32, INDIRECT, 0)])
    });
    s.breaks("table wraps", "indirect table outside", |_, r| {
        offer(r, &[Desc::new(u64::MAX - 15, 32, INDIRECT, 0)])
    });
    s.breaks("nested", "none may be", |s, r| {
        put(s, &[Desc::new(table, 32, INDIRECT, 0)]);
        offer(r, &[Desc::new(table, 16, INDIRECT, 0)]);
    });
    s.breaks("with next", "none may be", |_, r| offer(r, &[Desc::new(table, 16, INDIRECT | NEXT, 1)]));
    s.breaks("next outside the table", "outside its table", |s, r| {
        put(s, &[Desc::new(data, 12, NEXT, 1), Desc::new(data, 52, NEXT, 3), Desc::new(data, 1, 0, 0)]);
        offer(r, &[Desc::new(table, 48, INDIRECT, 0)]);
    });
    s.breaks("loop in the table", "longer than its table", |s, r| {
        put(s, &[Desc::new(data, 12, NEXT, 1), Desc::new(data, 52, NEXT, 0)]);
        offer(r, &[Desc::new(table, 32, INDIRECT, 0)]);
    });
    s.breaks("address in the table", "outside the memory", |s, r| {
        put(s, &[Desc::new(data, 12, NEXT, 1), Desc::new(1 << 45, 52, 0, 0)]);
        offer(r, &[Desc::new(table, 32, INDIRECT, 0)]);
    });
    // A sound one, behind a direct descriptor (2.7.5.3.2), and with the write flag set, which is to be ignored.
    let sent = frame(3, 80);
    s.bad_device.memory().write(data, &[0; 12]).unwrap();
    let body = s.alloc(80);
    s.bad_device.memory().write(body, &sent).unwrap();
    put(&s, &[Desc::new(body, 40, NEXT, 2), Desc::default(), Desc::new(body + 40, 40, 0, 0)]);
    let ring = s.ring(1);
    offer(&ring, &[Desc::new(data, 12, NEXT, 1), Desc::new(table, 48, INDIRECT | WRITE, 0)]);
    assert_eq!(s.good_device.recv(PATIENCE).unwrap().1, sent);

    let mut s = Scene::new(Config::default().without(f::INDIRECT_DESC));
    s.breaks("not negotiated", "none may be", |s, r| {
        let at = s.alloc(64);
        offer(r, &[Desc::new(at, 32, INDIRECT, 0)]);
    });
}

#[test]
fn a_buffer_that_straddles_regions_is_read_and_written_whole() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    // Eight regions of one page, each right behind the other: the frame lies across three of them.
    let layout = Layout::several(2, 1 << 20, 0);
    let a = NetDevice::connect(
        &pa.path,
        Config { memory: Some(layout), ..Config::plain().queue_size(16).mtu(600) },
    )
    .unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    let (first, second) = {
        let r = a.memory().regions();
        (r[0].gpa() + r[0].len(), r[1].gpa())
    };
    assert_eq!(first, second, "the regions are to touch");
    let sent = frame(1, 600);
    for before in [1, 5, 12, 13, 60, 76, 140, 141, 500] {
        let at = first - before;
        a.memory().write(at, &[0; 12]).unwrap();
        for (i, byte) in sent.iter().enumerate() {
            a.memory().write(at + 12 + i as u64, &[*byte]).unwrap();
        }
        let ring = a.ring_access(1).unwrap();
        ring.set_desc(0, Desc::new(at, 612, 0, 0));
        ring.offer(0);
        let got = b
            .recv(PATIENCE)
            .unwrap_or_else(|e| panic!("{before} bytes before the border: {e}; {:?}", pa.port.state()))
            .1;
        assert!(got == sent, "{before} bytes before the border");
        // And the other way.
        let rx = a.ring_access(0).unwrap();
        let slot = rx.used_idx();
        // The next buffer in turn is made this one.
        let head = next_head(&rx, slot);
        rx.set_desc(head, Desc::new(at, 700, WRITE, 0));
        a.memory().write(at, &[0]).unwrap();
        b.send(&sent).unwrap();
        assert!(rx.wait_used(slot.wrapping_add(1), PATIENCE));
        let mut got = vec![0; 600];
        for (i, byte) in got.iter_mut().enumerate() {
            let mut one = [0];
            a.memory().read(at + 12 + i as u64, &mut one).unwrap();
            *byte = one[0];
        }
        assert!(got == sent, "written {before} bytes before the border");
    }
    assert_eq!(rig.host.errors(), Vec::<String>::new());
}

/// The head of the available entry at `slot`: buffers were posted in the order of their descriptors.
fn next_head(ring: &RingAccess, slot: u16) -> u16 {
    slot % ring.size()
}

#[test]
fn short_chains_are_dropped_and_counted() {
    let mut s = Scene::new(Config::default());
    let at = s.alloc(64);
    let ring = s.ring(1);
    for (n, descriptors) in [
        vec![Desc::new(at, 0, 0, 0)],
        vec![Desc::new(at, 11, 0, 0)],
        vec![Desc::new(at, 12, 0, 0)],
        vec![Desc::new(at, 6, NEXT, 1), Desc::new(at, 6, 0, 0)],
        vec![Desc::new(at, 12, NEXT, 1), Desc::new(at, 0, 0, 0)],
    ]
    .iter()
    .enumerate()
    {
        offer(&ring, descriptors);
        until("counted", || Counters::get(&s.bad.counters.short_header) == n as u64 + 1);
    }
    // One byte of a frame is a frame: the check of heads refuses it.
    offer(&ring, &[Desc::new(at, 13, 0, 0)]);
    until("counted", || Counters::get(&s.bad.counters.dropped_by_check) == 1);
    assert_eq!(s.bad.port.state(), PortState::Up);
    s.others_are_fine();
}

#[test]
fn a_frame_longer_than_64_kb_is_dropped_and_counted() {
    let mut s = Scene::new(Config { memory: Some(Layout::single(32 << 20)), ..Config::default() });
    let at = s.alloc(1 << 20);
    let ring = s.ring(1);
    offer(&ring, &[Desc::new(at, 1 << 20, 0, 0)]);
    until("counted", || Counters::get(&s.bad.counters.oversize) == 1);
    let pieces: Vec<_> =
        (0..16).map(|i| Desc::new(at, 60_000, if i < 15 { NEXT } else { 0 }, i + 1)).collect();
    offer(&ring, &pieces);
    until("counted", || Counters::get(&s.bad.counters.oversize) == 2);
    s.others_are_fine();
}

#[test]
fn headers_that_ask_for_nonsense_never_reach_the_other_guest() {
    let mut s = Scene::new(Config::default());
    let len = 100usize;
    let at = s.alloc(12 + len as u64);
    let ring = s.ring(1);
    let mut n = 0;
    for gso_type in [0u8, 1, 3, 4, 5, 0x80, 0x81, 0x7f, 0xff] {
        for (gso_size, csum_start, csum_offset) in [
            (0u16, 0u16, 0u16),
            (1, 65535, 65535),
            (65535, 99, 0),
            (1460, 34, 16),
            (0, 98, 65535),
            (1, 14, 86),
        ] {
            let mut bytes = vec![1u8, gso_type, 0xff, 0xff];
            for field in [gso_size, csum_start, csum_offset, 0xffff] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes.extend_from_slice(&frame(n, len));
            s.bad_device.memory().write(at, &bytes).unwrap();
            offer(&ring, &[Desc::new(at, bytes.len() as u32, 0, 0)]);
            n += 1;
        }
    }
    assert!(ring.wait_used(n as u16, PATIENCE));
    for (header, got) in s.good_device.recv_all(Duration::from_millis(50)).unwrap() {
        // What is let through is sound: no segments of nothing, a checksum inside the frame.
        assert!(header.gso_type == 0, "a super-frame of a frame without IP: {header:?}");
        let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
        assert!(header.flags & 1 == 0 || end <= got.len(), "{header:?}");
        assert_eq!(header.num_buffers, 1);
    }
    assert_eq!(s.bad.port.state(), PortState::Up);
    s.others_are_fine();
}

#[test]
fn a_guest_that_rewrites_while_we_read_hurts_only_itself() {
    let mut s = Scene::new(Config::default());
    let at = s.alloc(4096);
    let table = s.alloc(256);
    let stop = Arc::new(AtomicBool::new(false));
    let end = {
        let r = &s.bad_device.memory().regions()[0];
        r.gpa() + r.len()
    };
    let writer = {
        let (ring, window) = (s.ring(1), s.bad_device.memory().window(at, 4096).unwrap());
        let tables = s.bad_device.memory().window(table, 256).unwrap();
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut n = 0u32;
            while !stop.load(Ordering::Relaxed) {
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let bits = n >> 16;
                // Sometimes sound, sometimes not, always changing: lengths, places, flags, headers.
                let len = [76, 12, 600, 2000][bits as usize % 4];
                let place = if bits.is_multiple_of(1024) { end - 8 } else { at };
                let d = match bits % 5 {
                    0 => Desc::new(table, 32, INDIRECT, 0),
                    1 => Desc::new(place, 12, NEXT, 1),
                    _ => Desc::new(place, len, 0, 0),
                };
                ring.set_desc(0, d);
                ring.set_desc(1, Desc::new(at + 12, len, 0, 0));
                tables.write(
                    0,
                    &table_bytes(&[
                        Desc::new(at, 12, NEXT, 1),
                        Desc::new(at + 12, len, (bits >> 8) as u16 & 1, 1),
                    ]),
                );
                window.write(
                    0,
                    &[bits as u8 & 1, (bits >> 3) as u8 & 5, 54, 0, bits as u8, 5, 34, 0, 16, 0, 0, 0],
                );
            }
        })
    };
    let began = Instant::now();
    let mut restarts = 0;
    while began.elapsed() < Duration::from_secs(2) {
        let ring = s.ring(1);
        // At most as many as the ring has.
        if ring.avail_idx().wrapping_sub(ring.used_idx()) < 200 {
            ring.offer(0);
        }
        if s.bad.port.state() != PortState::Up {
            restarts += 1;
            s.bad_device.stop().unwrap();
            s.bad_device.reset_rings(0).unwrap();
            s.bad_device.resume().unwrap();
        }
        while let Ok(Some(_)) = s.good_device.try_recv(&mut Vec::new()) {}
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(Counters::get(&s.bad.counters.received) > 100, "frames were received meanwhile");
    println!("{restarts} quarantines, {} frames", Counters::get(&s.bad.counters.received));
    s.others_are_fine();
    s.recover();
}

#[test]
fn a_receive_ring_is_checked_like_a_transmit_ring() {
    let bad: [(&str, &str, Corruption); 5] = [
        ("readable buffer", "wrong direction", |r, at| r.set_desc(0, Desc::new(at, 2000, 0, 0))),
        ("outside", "outside the memory", |r, _| r.set_desc(0, Desc::new(1 << 44, 2000, WRITE, 0))),
        ("loop", "longer than its table", |r, at| r.set_desc(0, Desc::new(at, 1, WRITE | NEXT, 0))),
        ("head", "names no descriptor", |r, _| r.set_avail_entry(0, 999)),
        ("jump", "available index moved", |r, _| r.set_avail_idx(1000)),
    ];
    let mut s = Scene::new(Config::default().queue_size(64));
    for (what, reason, misbehave) in bad {
        // A ring whose first buffer is not used yet.
        s.bad_device.stop().unwrap();
        s.bad_device.reset_rings(0).unwrap();
        let at = s.alloc(64);
        misbehave(&s.ring(0), at);
        s.bad_device.resume().unwrap();
        s.bad.wait_state(&PortState::Up);
        s.good_device.send(&frame(1, 100)).unwrap();
        s.bad.wait_error(reason);
        assert_eq!(s.ring(0).used_idx(), 0, "{what}: nothing was published");
        s.others_are_fine();
        s.recover();
    }
}

#[test]
fn receive_buffers_of_any_size_cost_their_owner_only() {
    for (size, mergeable) in [(1, true), (1, false), (12, true), (12, false), (13, true), (64, false)] {
        let config = Config { rx_buffer_size: Some(size), ..Config::default() };
        let config = if mergeable { config } else { config.without(f::MRG_RXBUF | f::ALL_TSO) };
        let mut s = Scene::new(config);
        for n in 0..500 {
            s.good_device.send(&frame(n, 1000)).unwrap();
        }
        until("all are accounted for", || {
            let c = &s.good.counters;
            Counters::get(&c.sent) + Counters::get(&c.full) + Counters::get(&c.too_small) == 500
        });
        let c = &s.good.counters;
        assert_eq!(Counters::get(&c.sent), 0, "{size}");
        assert_eq!(s.bad.port.state(), PortState::Up);
        assert_eq!(s.ring(0).used_idx(), 0, "no buffer was used for a frame that did not fit");
        s.others_are_fine();
    }
}

#[test]
fn no_receive_buffers_drop_frames_and_nothing_else() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = NetDevice::connect_without_buffers(&pa.path, Config::default()).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    pa.wait_state(&PortState::Up);
    for n in 0..1000 {
        b.send(&frame(n, 64)).unwrap();
    }
    until("dropped", || Counters::get(&pb.counters.full) == 1000);
    // Five buffers take five frames.
    a.pairs_mut()[0].rx.post(5).unwrap();
    for n in 0..10 {
        b.send(&frame(n, 64)).unwrap();
    }
    let got = a.recv_all(Duration::from_millis(100)).unwrap();
    assert!(got.len() >= 5, "{} frames", got.len());
    assert_eq!(got[0].1, frame(0, 64));
}
