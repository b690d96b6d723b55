//! Packed rings as messages set them up, stop them and go on with them. The guest here writes its ring by hand.

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::{PATIENCE, Rig, TestPort, frame, until};
use frontend::features as f;
use frontend::memory::{GuestMemory, Layout};
use frontend::raw::{FrontendReq as R, Message, RawSession};
use vhost_user::PortState;

const RING_PACKED: u64 = 1 << 34;
const SIZE: u16 = 3;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A guest with one packed ring, from which it sends.
struct Guest {
    raw: RawSession,
    memory: GuestMemory,
    kick: OwnedFd,
    /// Descriptors that it has made available, from the beginning.
    sent: u64,
}

/// The wrap counter at a descriptor's number: 1 in the first lap.
fn counter(n: u64) -> bool {
    (n / u64::from(SIZE)).is_multiple_of(2)
}

/// Where things are in the guest's memory.
const RING: u64 = 0;
const DRIVER_EVENT: u64 = 0x1000;
const DEVICE_EVENT: u64 = 0x1004;
const BUFFER: u64 = 0x2000;

impl Guest {
    /// A session that has agreed on packed rings and has shared its memory.
    fn connect(port: &TestPort) -> Self {
        let raw = RawSession::connect(&port.path, PATIENCE).unwrap();
        let offered = raw.request(&Message::new(R::GET_FEATURES)).unwrap().u64().unwrap();
        assert_ne!(offered & RING_PACKED, 0, "packed rings are offered");
        raw.send(&Message::new(R::SET_OWNER)).unwrap();
        let agreed = f::VERSION_1 | f::PROTOCOL_FEATURES | RING_PACKED;
        raw.send(&Message::u64(R::SET_FEATURES, agreed)).unwrap();
        let memory = GuestMemory::new(&Layout::single(1 << 20)).unwrap();
        raw.send(&Message::mem_table(memory.regions())).unwrap();
        let kick = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        Self { raw, memory, kick, sent: 0 }
    }

    /// Starts ring 1, and tells this base, if any.
    fn start(&self, base: Option<u32>) {
        let user = |gpa| self.memory.user_addr(gpa).unwrap();
        let send = |message: &Message<'_>| self.raw.send(message).unwrap();
        send(&Message::vring_state(R::SET_VRING_NUM, 1, u32::from(SIZE)));
        if let Some(base) = base {
            send(&Message::vring_state(R::SET_VRING_BASE, 1, base));
        }
        send(&Message::vring_addr(1, 0, user(RING), user(DEVICE_EVENT), user(DRIVER_EVENT), 0));
        send(&Message::u64(R::SET_VRING_KICK, 1).fd(self.kick.as_fd()));
        send(&Message::vring_state(R::SET_VRING_ENABLE, 1, 1));
        // Answered when the others are done.
        self.raw.request(&Message::new(R::GET_FEATURES)).unwrap();
    }

    fn flags_at(&self, n: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(RING + 16 * (n % u64::from(SIZE)) + 14, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Sends a frame, and waits until its buffer is used.
    fn send(&mut self) {
        let bytes = frame(1, 100);
        self.memory.write(BUFFER, &[0; 12]).unwrap();
        self.memory.write(BUFFER + 12, &bytes).unwrap();
        let n = self.sent;
        let (available, used) = if counter(n) { (AVAIL, AVAIL | USED) } else { (USED, 0) };
        let mut d = [0; 16];
        d[..8].copy_from_slice(&BUFFER.to_le_bytes());
        d[8..12].copy_from_slice(&(12 + bytes.len() as u32).to_le_bytes());
        d[14..].copy_from_slice(&available.to_le_bytes());
        self.memory.write(RING + 16 * (n % u64::from(SIZE)), &d).unwrap();
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
        until("the frame is taken", || self.flags_at(n) == used);
        self.sent += 1;
    }

    /// Slot and wrap counter, in both halves.
    fn base(&self) -> u32 {
        let size = u64::from(SIZE);
        let here = (self.sent % size) as u32 | if counter(self.sent) { 0x8000 } else { 0 };
        here | here << 16
    }

    fn stop(&self) -> u32 {
        self.raw.request(&Message::vring_state(R::GET_VRING_BASE, 1, 0)).unwrap().vring_state().unwrap().1
    }

    /// The offset in the device's event suppression structure.
    fn kept(&self) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(DEVICE_EVENT, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }
}

#[test]
fn a_packed_ring_of_any_size_is_set_up() {
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let guest = Guest::connect(&port);
    for size in [1, 3, 255, 256, 32_767, 32_768] {
        guest.raw.send(&Message::vring_state(R::SET_VRING_NUM, 0, size)).unwrap();
    }
    assert!(guest.raw.is_alive());
    assert_eq!(guest.stop(), 0x8000_8000, "a ring that never ran begins with its wrap counters at 1");
    drop(guest);
    for size in [0, 32_769, u32::MAX] {
        let guest = Guest::connect(&port);
        guest.raw.send(&Message::vring_state(R::SET_VRING_NUM, 0, size)).unwrap();
        assert!(guest.raw.closes_within(PATIENCE), "size {size}");
        port.wait_error(&format!("packed ring size {size} is not"));
    }
}

#[test]
fn a_packed_ring_stops_and_goes_on_where_it_stood() {
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let mut guest = Guest::connect(&port);
    guest.start(Some(0x8000_8000));
    for round in 0..20u32 {
        for _ in 0..=round % 5 {
            guest.send();
        }
        let base = guest.stop();
        assert_eq!(base, guest.base(), "both places, with their wrap counters");
        assert_eq!(guest.kept(), 0, "nothing is kept once the front-end knows");
        // Both halves, one, or neither, as the session knows what it answered.
        let told = [Some(base), Some(base & 0xffff), None];
        guest.start(told[round as usize % 3]);
    }
    // A front-end that comes back and knows nothing: the ring says where the last session left it.
    for told in [Some(0x8000_8000), Some(0x8000), None] {
        let Guest { raw, memory, sent, .. } = guest;
        drop(raw);
        port.wait_state(&PortState::Waiting);
        guest = Guest { sent, ..Guest::connect(&port) };
        guest.raw.send(&Message::mem_table(memory.regions())).unwrap();
        guest.memory = memory;
        guest.start(told);
        for _ in 0..4 {
            guest.send();
        }
    }
}

#[test]
fn a_packed_ring_of_which_nobody_knows_where_it_stands_waits_for_its_driver() {
    let rig = Rig::new();
    let port = rig.port("a.sock");
    let mut guest = Guest::connect(&port);
    guest.start(Some(0x8000_8000));
    guest.send();
    guest.stop();
    // The front-end says the beginning, which was used already, and nothing else is kept.
    guest.start(Some(0x8000_8000));
    port.wait_error("nobody knows where this packed ring stands");
    assert!(guest.raw.is_alive(), "the session goes on");
    // The driver resets its device.
    guest.stop();
    guest.memory.write(RING, &[0; 16 * SIZE as usize]).unwrap();
    guest.sent = 0;
    guest.start(Some(0x8000_8000));
    port.wait_state(&PortState::Up);
    guest.send();
}
