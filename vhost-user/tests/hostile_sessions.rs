//! Front-ends that send what they should not, or go away when they should not: the session ends with a reason,
//! descriptors and mappings return to where they were, and the next front-end is served.
//!
//! Tests here count the process's descriptors and mappings, so they run one after the other.

mod common;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{PATIENCE, Rig, TestPort, frame, open_files, shared_maps, until};
use frontend::features as f;
use frontend::memory::{GuestMemory, Layout};
use frontend::raw::{FrontendReq as R, Message, NO_FD, RawSession};
use frontend::ring::{Segment, Setup, SplitQueue};
use frontend::session::Session;
use frontend::{Config, NetDevice};
use rustix::fs::MemfdFlags;
use vhost_user::PortState;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Fails if the process has more descriptors or mappings at the end than at the beginning.
struct Census {
    files: usize,
    maps: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Census {
    fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Self { files: open_files(), maps: shared_maps(), _turn: turn }
    }

    /// The counts go back to where they were.
    fn check(&self, files: usize, maps: usize, when: &str) {
        until(&format!("{files} descriptors {when}, not {}", open_files()), || open_files() == files);
        until(&format!("{maps} mappings {when}, not {}", shared_maps()), || shared_maps() == maps);
    }

    fn end(self) {
        self.check(self.files, self.maps, "at the end");
    }
}

const PATIENT: Duration = PATIENCE;

fn connect(port: &TestPort) -> RawSession {
    RawSession::connect(&port.path, PATIENT).unwrap()
}

/// A session that has agreed on everything that is offered but packed rings, whose rules are others.
fn negotiated(port: &TestPort) -> RawSession {
    let raw = connect(port);
    let features = raw.request(&Message::new(R::GET_FEATURES)).unwrap().u64().unwrap();
    let protocol = raw.request(&Message::new(R::GET_PROTOCOL_FEATURES)).unwrap().u64().unwrap();
    raw.send(&Message::u64(R::SET_PROTOCOL_FEATURES, protocol)).unwrap();
    raw.send(&Message::new(R::SET_OWNER)).unwrap();
    raw.send(&Message::u64(R::SET_FEATURES, features & !(1 << 34))).unwrap();
    raw
}

fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

/// Sends messages that must end the session with a reason that holds `reason`.
fn refused(port: &TestPort, reason: &str, messages: &[Message<'_>]) {
    let raw = negotiated(port);
    for m in messages {
        // The session may be gone before the last one.
        let _ = raw.send(m);
    }
    assert!(raw.closes_within(PATIENT), "{reason}: the session goes on");
    port.wait_error(reason);
}

/// A good front-end is served.
fn serves(port: &TestPort) {
    let device = NetDevice::connect(&port.path, Config::default()).unwrap();
    port.wait_state(&PortState::Up);
    drop(device);
    port.wait_state(&PortState::Waiting);
}

/// A guest of one queue pair whose every message is made here.
struct RawGuest {
    raw: RawSession,
    memory: GuestMemory,
    queues: [SplitQueue; 2],
    kick: OwnedFd,
    buffer: u64,
}

impl RawGuest {
    fn new(port: &TestPort) -> Self {
        let raw = negotiated(port);
        let mut memory = GuestMemory::new(&Layout::single(1 << 20)).unwrap();
        let queues = [0, 1].map(|_| SplitQueue::new(&mut memory, Setup::new(256)).unwrap());
        let buffer = memory.alloc(4096, 64).unwrap();
        let kick = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        raw.send(&Message::u64(R::SET_FEATURES, f::VERSION_1 | f::PROTOCOL_FEATURES)).unwrap();
        raw.send(&Message::mem_table(memory.regions())).unwrap();
        let guest = Self { raw, memory, queues, kick, buffer };
        for index in 0..2u32 {
            guest.raw.send(&Message::vring_state(R::SET_VRING_NUM, index, 256)).unwrap();
            guest.raw.send(&guest.addresses(index)).unwrap();
            guest.raw.send(&Message::u64(R::SET_VRING_KICK, index.into()).fd(guest.kick.as_fd())).unwrap();
            guest.raw.send(&Message::vring_state(R::SET_VRING_ENABLE, index, 1)).unwrap();
        }
        port.wait_state(&PortState::Up);
        guest
    }

    /// `SET_VRING_ADDR` with the ring's own addresses.
    fn addresses(&self, index: u32) -> Message<'static> {
        let a = self.queues[index as usize].addresses();
        let user = |gpa| self.memory.user_addr(gpa).unwrap();
        Message::vring_addr(index, 0, user(a.desc), user(a.used), user(a.avail), 0)
    }

    fn send(&mut self, frame: &[u8]) {
        self.memory.write(self.buffer, &[0; 12]).unwrap();
        self.memory.write(self.buffer + 12, frame).unwrap();
        self.queues[1].add(&[Segment::readable(self.buffer, 12 + frame.len() as u32)]).unwrap();
        self.queues[1].publish();
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
        until("the frame is taken", || self.queues[1].pop_used().unwrap().is_some());
    }
}

#[test]
fn malformed_messages_end_the_session_with_a_reason() {
    let census = Census::new();
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let (files, maps) = (open_files(), shared_maps());
    let fd = memfd(4096);
    let state = |request, index, num| Message::vring_state(request, index, num);
    let cases: Vec<(&str, Vec<Message<'_>>)> = vec![
        ("unknown", vec![Message::with_code(0)]),
        ("unknown", vec![Message::with_code(41)]),
        ("unknown", vec![Message::with_code(u32::MAX)]),
        ("version", vec![Message::new(R::GET_FEATURES).flags(0)]),
        ("version", vec![Message::new(R::GET_FEATURES).flags(2)]),
        ("reply", vec![Message::new(R::GET_FEATURES).flags(5)]),
        ("malformed", vec![Message::new(R::GET_FEATURES).flags(0x8000_0001)]),
        ("body of 4097", vec![Message::new(R::GET_FEATURES).claim_size(4097)]),
        ("body of 4294967295", vec![Message::u64(R::SET_FEATURES, 0).claim_size(u32::MAX)]),
        ("GET_FEATURES: malformed", vec![Message::u64(R::GET_FEATURES, 1)]),
        ("SET_FEATURES: malformed", vec![Message::new(R::SET_FEATURES)]),
        ("SET_VRING_NUM: malformed", vec![Message::u64(R::SET_VRING_NUM, 0).body(&[0; 8])]),
        ("SET_FEATURES: malformed", vec![Message::u64(R::SET_FEATURES, 0).fd(fd.as_fd())]),
        ("NET_SET_MTU has a body of 0 bytes", vec![Message::new(R::NET_SET_MTU)]),
        ("GET_STATUS has a body of 8 bytes", vec![Message::u64(R::GET_STATUS, 0)]),
        ("features 0x", vec![Message::u64(R::SET_FEATURES, u64::MAX)]),
        ("protocol features 0x", vec![Message::u64(R::SET_PROTOCOL_FEATURES, u64::MAX)]),
        ("size 0 is not", vec![state(R::SET_VRING_NUM, 0, 0)]),
        ("size 3 is not", vec![state(R::SET_VRING_NUM, 0, 3)]),
        ("size 65535 is not", vec![state(R::SET_VRING_NUM, 1, 65535)]),
        ("size 65536 is not", vec![state(R::SET_VRING_NUM, 1, 65536)]),
        ("size 4294967295 is not", vec![state(R::SET_VRING_NUM, 1, u32::MAX)]),
        (
            "ring 2 does not exist; there are 2, as the port has queues=1",
            vec![state(R::SET_VRING_NUM, 2, 256)],
        ),
        ("ring 4294967295 does not exist", vec![state(R::SET_VRING_BASE, u32::MAX, 0)]),
        ("ring 255 does not exist", vec![Message::u64(R::SET_VRING_KICK, 255 | NO_FD)]),
        ("ring 7 does not exist", vec![state(R::GET_VRING_BASE, 7, 0)]),
        ("ring 9 does not exist", vec![state(R::SET_VRING_ENABLE, 9, 1)]),
        ("index 65536 is past", vec![state(R::SET_VRING_BASE, 0, 65536)]),
        ("neither on nor off", vec![state(R::SET_VRING_ENABLE, 0, 2)]),
        ("SET_VRING_ADDR: malformed", vec![Message::vring_addr(0, 0, 8, 0, 0, 0)]),
        ("SET_VRING_ADDR: malformed", vec![Message::vring_addr(0, 0xff, 0, 0, 0, 0)]),
        ("SET_LOG_BASE", vec![Message::u64(R::SET_LOG_BASE, 4096).body(&[0; 8]).fd(fd.as_fd())]),
        ("SET_LOG_FD", vec![Message::new(R::SET_LOG_FD).fd(fd.as_fd())]),
        ("GET_CONFIG", vec![Message::new(R::GET_CONFIG).body(&[0; 24])]),
        ("SET_BACKEND_REQ_FD", vec![Message::new(R::SET_BACKEND_REQ_FD).fd(fd.as_fd())]),
        ("GET_INFLIGHT_FD", vec![Message::new(R::GET_INFLIGHT_FD).body(&[0; 20])]),
    ];
    for (reason, messages) in &cases {
        refused(&port, reason, messages);
        census.check(files + 1, maps, reason);
    }
    serves(&port);
    drop(cases);
    drop((fd, port, rig));
    census.end();
}

#[test]
fn wrong_numbers_and_kinds_of_descriptors_end_the_session_and_are_closed() {
    let census = Census::new();
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let fd = memfd(8192);
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (pipe, other) = std::io::pipe().unwrap();
    let (files, maps) = (open_files(), shared_maps());
    let table = Message::mem_table_of(&[(0, 4096, 0, 0)]);
    let two = Message::mem_table_of(&[(0, 4096, 0, 0), (4096, 4096, 4096, 0)]);
    let kick = Message::u64(R::SET_VRING_KICK, 0);
    let region = Message::mem_reg(R::ADD_MEM_REG, (0, 4096, 0, 0));
    let cases: Vec<(&str, Vec<u8>, Vec<_>)> = vec![
        ("SET_MEM_TABLE", table.bytes(), vec![]),
        ("SET_MEM_TABLE", table.bytes(), vec![fd.as_fd(); 2]),
        ("SET_MEM_TABLE", two.bytes(), vec![fd.as_fd()]),
        ("more than 32", table.bytes(), vec![fd.as_fd(); 33]),
        ("more than 32", table.bytes(), vec![fd.as_fd(); 253]),
        ("SET_VRING_KICK", kick.bytes(), vec![]),
        ("SET_VRING_KICK", kick.bytes(), vec![event.as_fd(); 2]),
        ("more than 32", kick.bytes(), vec![event.as_fd(); 33]),
        ("more than 32", kick.bytes(), vec![event.as_fd(); 40]),
        ("SET_VRING_KICK", Message::u64(R::SET_VRING_KICK, NO_FD).bytes(), vec![event.as_fd()]),
        ("SET_VRING_CALL", Message::u64(R::SET_VRING_CALL, 0).bytes(), vec![]),
        ("SET_VRING_ERR", Message::u64(R::SET_VRING_ERR, 0).bytes(), vec![event.as_fd(); 3]),
        ("not an eventfd", kick.bytes(), vec![pipe.as_fd()]),
        ("not an eventfd", kick.bytes(), vec![fd.as_fd()]),
        ("not an eventfd", Message::u64(R::SET_VRING_CALL, 1).bytes(), vec![other.as_fd()]),
        ("ADD_MEM_REG", region.bytes(), vec![]),
        ("ADD_MEM_REG", region.bytes(), vec![fd.as_fd(); 2]),
        ("is not memory", region.bytes(), vec![pipe.as_fd()]),
        ("is not memory", region.bytes(), vec![event.as_fd()]),
        ("GET_FEATURES", Message::new(R::GET_FEATURES).bytes(), vec![fd.as_fd(); 8]),
    ];
    for (reason, bytes, fds) in cases {
        let raw = negotiated(&port);
        let _ = raw.send_bytes(&bytes, &fds);
        assert!(raw.closes_within(PATIENT), "{reason}: the session goes on");
        drop(raw);
        port.wait_error(reason);
        census.check(files, maps, reason);
    }
    serves(&port);
    drop((fd, event, pipe, other, port, rig));
    census.end();
}

#[test]
fn descriptors_behind_the_header_end_the_session_and_are_closed() {
    let census = Census::new();
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let fd = memfd(8192);
    let (files, maps) = (open_files(), shared_maps());
    for cut in [1, 4, 11, 12, 13, 20] {
        let raw = negotiated(&port);
        let bytes = Message::mem_reg(R::ADD_MEM_REG, (0, 4096, 0, 0)).bytes();
        raw.send_bytes(&bytes[..cut], &[]).unwrap();
        // The descriptor comes with the rest, which may be the header's or the body's.
        let _ = raw.send_bytes(&bytes[cut..], &[fd.as_fd()]);
        let closed = raw.closes_within(Duration::from_millis(300));
        drop(raw);
        if !closed {
            port.wait_state(&PortState::Waiting);
        }
        census.check(files, maps, "after a late descriptor");
    }
    serves(&port);
    drop((fd, port, rig));
    census.end();
}

#[test]
fn memory_tables_are_checked() {
    let census = Census::new();
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let fd = memfd(1 << 20);
    let read_only = {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        std::fs::File::open(path).unwrap()
    };
    let huge = memfd((1 << 63) - 4096);
    let (files, maps) = (open_files(), shared_maps());
    let page = 4096;
    type Regions = Vec<(u64, u64, u64, u64)>;
    let cases: Vec<(&str, Regions, Vec<_>)> = vec![
        ("malformed", vec![(0, 0, 0, 0)], vec![fd.as_fd()]),
        (
            "needs 1052672 bytes of its file, which has 1048576",
            vec![(0, (1 << 20) + page, 0, 0)],
            vec![fd.as_fd()],
        ),
        ("bytes of its file", vec![(0, 1 << 20, 0, page)], vec![fd.as_fd()]),
        ("bytes of its file", vec![(0, 1 << 63, 0, 0)], vec![fd.as_fd()]),
        ("SET_MEM_TABLE", vec![(0, 1 << 63, 0, 1 << 63)], vec![fd.as_fd()]),
        ("SET_MEM_TABLE", vec![(u64::MAX - 10, page, 0, 0)], vec![fd.as_fd()]),
        ("SET_MEM_TABLE", vec![(0, page, u64::MAX - 10, 0)], vec![fd.as_fd()]),
        ("annot allocate memory", vec![(0, (1 << 63) - 8192, 0, 0)], vec![huge.as_fd()]),
        ("overlap", vec![(0, page, 0, 0), (page - 1, page, page, 0)], vec![fd.as_fd(); 2]),
        ("overlap", vec![(0, page, 0, 0), (page, page, page - 1, 0)], vec![fd.as_fd(); 2]),
        ("overlap", vec![(0, 8 * page, 0, 0), (page, page, 9 * page, 0)], vec![fd.as_fd(); 2]),
        ("ermission denied", vec![(0, page, 0, 0)], vec![read_only.as_fd()]),
    ];
    for (reason, regions, fds) in cases {
        let raw = negotiated(&port);
        let _ = raw.send_bytes(&Message::mem_table_of(&regions).bytes(), &fds);
        assert!(raw.closes_within(PATIENT), "{reason}: the session goes on");
        drop(raw);
        port.wait_error(reason);
        census.check(files, maps, reason);
    }
    // More slots than there are, by one at a time; and the removal of what is not there.
    let raw = negotiated(&port);
    let slots = raw.request(&Message::new(R::GET_MAX_MEM_SLOTS)).unwrap().u64().unwrap();
    assert_eq!(slots, vhost_user::SLOTS_MAX as u64);
    let region = |i: u64| {
        Message::mem_reg(R::ADD_MEM_REG, (i * page, page, i * page, i * page)).fd(fd.as_fd()).need_reply()
    };
    for i in 0..slots {
        assert_eq!(raw.request(&region(i)).unwrap().u64().unwrap(), 0, "slot {i}");
    }
    until("all slots are shown", || port.port.info().regions.len() as u64 == slots);
    assert_eq!(raw.request(&region(slots)).unwrap().u64().unwrap(), 1);
    assert!(raw.closes_within(PATIENT));
    drop(raw);
    port.wait_error("more than 32 memory regions");
    refused(&port, "no memory region", &[Message::mem_reg(R::REM_MEM_REG, (0, page, 0, 0))]);
    census.check(files, maps, "after slots");
    serves(&port);
    drop((fd, huge, read_only, port, rig));
    census.end();
}

#[test]
fn messages_in_any_order_do_no_harm() {
    let census = Census::new();
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let (files, maps) = (open_files(), shared_maps());
    let memory = GuestMemory::new(&Layout::single(1 << 20)).unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let region = &memory.regions()[0];
    let user = region.user_addr();
    let mut seed = 42u64;
    for round in 0..300 {
        let raw = connect(&port);
        let _ = raw.send(&Message::new(R::GET_FEATURES));
        if round % 2 == 0 {
            let _ = raw.send(&Message::new(R::GET_PROTOCOL_FEATURES));
            let _ = raw.send(&Message::u64(
                R::SET_PROTOCOL_FEATURES,
                (1 << 0) | (1 << 3) | (1 << 13) | (1 << 15) | (1 << 16),
            ));
        }
        for _ in 0..40 {
            let n = frontend::hash::splitmix(&mut seed);
            let index = (n >> 8) as u32 % 2;
            let m = match n % 16 {
                0 => Message::u64(R::SET_FEATURES, f::PROTOCOL_FEATURES | f::VERSION_1),
                1 => Message::u64(R::SET_FEATURES, f::VERSION_1 | f::MRG_RXBUF | f::EVENT_IDX),
                2 | 3 => Message::mem_table(memory.regions()),
                4 | 5 => Message::vring_state(R::SET_VRING_NUM, index, 256),
                6 => Message::vring_state(R::SET_VRING_BASE, index, (n >> 16) as u32 & 0xffff),
                7 | 8 => Message::vring_addr(index, 0, user, user + 8192, user + 4096, 0),
                9 | 10 => Message::u64(R::SET_VRING_KICK, index.into()).fd(event.as_fd()),
                11 => Message::u64(R::SET_VRING_CALL, index.into()).fd(event.as_fd()),
                12 => Message::vring_state(R::SET_VRING_ENABLE, index, (n >> 20) as u32 & 1),
                13 => Message::vring_state(R::GET_VRING_BASE, index, 0),
                14 => Message::new(R::RESET_OWNER),
                _ => Message::vring_state(R::SET_VRING_ENABLE, index, 1),
            };
            if raw.send(&m).is_err() {
                break;
            }
        }
        drop(raw);
    }
    until("nobody is connected", || !port.port.info().connected && port.port.state() != PortState::Up);
    census.check(files + 2, maps + 1, "after any order");
    assert_eq!(rig.host.queues(), 0);
    serves(&port);
    drop((memory, event, port, rig));
    census.end();
}

#[test]
fn addresses_may_change_on_a_running_ring() {
    let census = Census::new();
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = RawGuest::new(&pa);
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    for n in 0..200 {
        let m = a.addresses(1).need_reply();
        assert_eq!(a.raw.request(&m).unwrap().u64().unwrap(), 0);
        a.send(&frame(n, 100));
        assert_eq!(b.recv(PATIENCE).unwrap().1, frame(n, 100));
    }
    // And to what is no ring.
    let bad = Message::vring_addr(1, 0, 1 << 40, (1 << 40) + 8192, (1 << 40) + 4096, 0).need_reply();
    assert_eq!(a.raw.request(&bad).unwrap().u64().unwrap(), 1);
    pa.wait_error("descriptor table is not in the memory");
    drop((a, b, pa, pb, rig));
    census.end();
}

#[test]
fn a_message_in_small_pieces_is_understood_and_delays_nobody() {
    let census = Census::new();
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let slow = rig.port("slow.sock");
    let mut a = NetDevice::connect(&pa.path, Config::default()).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    let raw = connect(&slow);
    for byte in Message::new(R::GET_FEATURES).bytes() {
        raw.send_bytes(&[byte], &[]).unwrap();
        a.send(&frame(1, 100)).unwrap();
        b.recv(PATIENCE).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(raw.recv().unwrap().u64().unwrap() & f::VERSION_1 != 0);
    // One that its sender does not live to end is noticed as soon as the end is.
    let raw = {
        raw.send_bytes(&Message::u64(R::SET_FEATURES, 0).bytes()[..15], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        drop(raw);
        let began = Instant::now();
        let next = connect(&slow);
        assert!(next.is_alive());
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        next
    };
    // One that never ends does not keep the port from going away.
    raw.send_bytes(&[1, 0, 0], &[]).unwrap();
    let began = Instant::now();
    drop(slow);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(raw.closes_within(PATIENT));
    drop((raw, a, b, pa, pb, rig));
    census.end();
}

#[test]
fn a_front_end_that_reads_no_replies_does_not_keep_the_port_from_going() {
    let census = Census::new();
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let stream = UnixStream::connect(&port.path).unwrap();
    stream.set_nonblocking(true).unwrap();
    let bytes = Message::new(R::GET_FEATURES).bytes();
    let began = Instant::now();
    // Until neither side takes any more.
    let mut stuck = 0;
    while stuck < 50 && began.elapsed() < PATIENCE {
        match (&stream).write_all(&bytes) {
            Ok(_) => stuck = 0,
            Err(_) => {
                stuck += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    let began = Instant::now();
    drop(port);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop((stream, rig));
    census.end();
}

#[test]
fn a_file_that_is_truncated_under_traffic_quarantines_its_port_only() {
    let census = Census::new();
    let rig = Rig::new();
    let (bad, good) = rig.pair();
    let (pc, pd) = (rig.port("c.sock"), rig.port("d.sock"));
    rig.join(&pc, &pd);
    let mut c = NetDevice::connect(&pc.path, Config::default()).unwrap();
    let mut d = NetDevice::connect(&pd.path, Config::default()).unwrap();
    for round in 0..5 {
        let mut a = NetDevice::connect(&bad.path, Config::default()).unwrap();
        let mut b = NetDevice::connect(&good.path, Config::default()).unwrap();
        bad.wait_state(&PortState::Up);
        for n in 0..20 {
            a.send(&frame(n, 1400)).unwrap();
            b.recv(PATIENCE).unwrap();
        }
        let ring = a.ring_access(1).unwrap();
        // From here on nothing of `a` may be touched: its own accesses would fault just as well.
        a.memory().regions()[0].truncate(0).unwrap();
        ring.kick();
        // Frames for it meet the truncated ring too.
        for n in 0..50 {
            b.send(&frame(n, 100)).unwrap();
            c.send(&frame(n, 100)).unwrap();
            assert_eq!(d.recv(PATIENCE).unwrap().1, frame(n, 100), "round {round}");
        }
        bad.wait_error("memory went away");
        assert_eq!(pc.port.state(), PortState::Up);
        // The file grows back, so that our own front-end can be taken down.
        a.memory().regions()[0].truncate(64 << 20).unwrap();
        drop((a, b));
        good.wait_state(&PortState::Waiting);
    }
    serves(&bad);
    drop((c, d, bad, good, pc, pd, rig));
    census.end();
}

#[test]
fn a_front_end_that_dies_at_any_moment_leaves_nothing_behind() {
    let census = Census::new();
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    pb.wait_state(&PortState::Up);
    let (files, maps) = (open_files(), shared_maps());
    let small = || Config::default().queue_size(16).mtu(1400);
    for round in 0..1000u32 {
        if round % 3 == 0 {
            // In the middle of the conversation.
            let mut session = Session::connect(&pa.path, PATIENT).unwrap();
            let _ = session.open(small().protocol);
            if round % 2 == 0 {
                let memory = GuestMemory::new(&Layout::single(1 << 16)).unwrap();
                let _ = session.set_memory(&memory, true);
            }
        } else {
            // In the middle of a ring: buffers are out, frames are in.
            let mut a = NetDevice::connect(&pa.path, small()).unwrap();
            for n in 0..round % 16 {
                a.send(&frame(n, 100)).unwrap();
            }
            let _ = b.send(&frame(round, 100));
            while b.try_recv(&mut Vec::new()).unwrap().is_some() {}
        }
    }
    until("nobody is connected", || pa.port.state() == PortState::Waiting && !pa.port.info().connected);
    census.check(files, maps, "after 1,000 front-ends");
    assert_eq!(pb.port.state(), PortState::Up, "the other port noticed nothing");
    serves(&pa);
    drop((b, pa, pb, rig));
    census.end();
}
