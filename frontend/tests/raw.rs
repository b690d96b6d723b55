//! The hostile side's tools do what they say: messages arrive as they were written, rings as they were spoilt.

mod common;

use std::os::fd::AsFd;
use std::time::Duration;

use common::{Backend, Options};
use frontend::device::VnetHeader;
use frontend::eventfd::Event;
use frontend::memory::{GuestMemory, Layout, RegionSpec};
use frontend::raw::{Desc, FrontendReq, Message, RawSession, RingAccess, VERSION, table_bytes};
use frontend::ring::{RingAddresses, RingError};
use frontend::{Config, Error, NetDevice, features as f};

const SHORT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(5);

/// A session that was opened by raw messages alone, with every protocol feature but acknowledgements.
fn open(backend: &Backend, port: usize) -> RawSession {
    let raw = RawSession::connect(backend.path(port), LONG).unwrap();
    let offered = raw.request(&Message::new(FrontendReq::GET_FEATURES)).unwrap().u64().unwrap();
    assert_eq!(offered, common::ALL);
    raw.send(&Message::new(FrontendReq::SET_OWNER)).unwrap();
    raw.send(&Message::u64(FrontendReq::SET_FEATURES, f::VERSION_1)).unwrap();
    raw
}

#[test]
fn a_ring_made_by_hand_carries_a_frame() {
    let backend = Backend::start(2, Options::default());
    let raw = open(&backend, 0);
    let mut receiver = NetDevice::connect(backend.path(1), Config::default().mac_number(2)).unwrap();
    let mut memory = GuestMemory::new(&Layout::several(2, 1 << 16, 0)).unwrap();
    let mut take = |len| memory.alloc_in(0, len, 64).unwrap();
    let addresses = RingAddresses { desc: take(16 * 8), avail: take(6 + 16), used: take(6 + 64) };
    let (kick, call) = (Event::new().unwrap(), Event::new().unwrap());
    raw.send(&Message::mem_table(memory.regions())).unwrap();
    raw.send(&Message::vring_state(FrontendReq::SET_VRING_NUM, 1, 8)).unwrap();
    raw.send(&Message::vring_state(FrontendReq::SET_VRING_BASE, 1, 0)).unwrap();
    let user = |gpa| memory.user_addr(gpa).unwrap();
    let (desc, avail, used) = (user(addresses.desc), user(addresses.avail), user(addresses.used));
    raw.send(&Message::vring_addr(1, 0, desc, used, avail, 0)).unwrap();
    raw.send(&Message::u64(FrontendReq::SET_VRING_CALL, 1).fd(call.as_fd())).unwrap();
    raw.send(&Message::u64(FrontendReq::SET_VRING_KICK, 1).fd(kick.as_fd())).unwrap();
    assert!(raw.is_alive());

    // A frame that straddles the two regions, behind an indirect table.
    let ring = RingAccess::new(&memory, addresses, 8).unwrap();
    let frame: Vec<u8> = (0..200).collect();
    let at = (1 << 16) - 100;
    memory.write(at, &[&[0; 12][..], &frame].concat()).unwrap();
    ring.set_desc(3, Desc::new(at, 212, 0, 0));
    assert_eq!(ring.desc(3), Desc::new(at, 212, 0, 0));
    ring.offer(3);
    kick.signal();
    assert!(ring.wait_used(1, LONG));
    assert_eq!(ring.used_entry(0), (3, 0));
    let (header, got) = receiver.recv(LONG).unwrap();
    assert_eq!((header.num_buffers, got), (1, frame));
    assert!(call.drain() > 0, "the device interrupts for what it used");
    let reply = raw.request(&Message::vring_state(FrontendReq::GET_VRING_BASE, 1, 0)).unwrap();
    assert_eq!(reply.vring_state().unwrap(), (1, 1));
}

#[test]
fn malformed_messages_end_the_session_and_no_other() {
    let backend = Backend::start(2, Options::default());
    let bystander = open(&backend, 1);
    let event = Event::new().unwrap();
    let bad: [Message<'_>; 5] = [
        Message::with_code(9999),
        Message::new(FrontendReq::SET_OWNER).flags(0),
        Message::u64(FrontendReq::SET_FEATURES, 1).claim_size(7),
        Message::vring_state(FrontendReq::SET_VRING_NUM, 0, 8).fd(event.as_fd()),
        Message::mem_table_of(&[(0, 1 << 63, 0, 0)]),
    ];
    for message in bad {
        let raw = open(&backend, 0);
        raw.send(&message).unwrap();
        assert!(raw.closes_within(LONG), "{message:?}");
        assert!(!raw.is_alive());
    }
    let raw = open(&backend, 0);
    assert!(!raw.closes_within(Duration::from_millis(100)), "a sound session stays");
    raw.send_bytes(&Message::new(FrontendReq::GET_FEATURES).bytes()[..7], &[]).unwrap();
    drop(raw);
    assert!(bystander.is_alive());
    let started = std::time::Instant::now();
    let silent = RawSession::connect(backend.path(1), SHORT).unwrap();
    assert!(silent.recv().is_err_and(|e| e.is_timeout()), "a read ends");
    assert!(started.elapsed() < LONG);
    assert_eq!(Message::new(FrontendReq::SET_OWNER).flags, VERSION);
}

#[test]
fn a_device_that_lies_is_found_out() {
    let backend = Backend::start(1, Options::default());
    let mut device = NetDevice::connect(backend.path(0), Config::plain()).unwrap();
    device.stop().unwrap();
    let rx = device.ring_access(0).unwrap();
    rx.set_used_idx(rx.used_idx().wrapping_add(1000));
    let error = device.recv(SHORT).unwrap_err();
    assert!(matches!(error, Error::Ring { queue: 0, source: RingError::UsedIndex { .. } }), "{error}");
    device.reset_rings(0).unwrap();
    device.resume().unwrap();
    device.send_with(&VnetHeader::PLAIN, &[&[1; 60]]).unwrap();
    device.pairs_mut()[0].tx.drain(LONG).unwrap();
}

#[test]
fn memory_may_grow_and_shrink_under_a_session() {
    let backend = Backend::start(1, Options { reflect: true, ..Options::default() });
    let config = Config { memory: Some(Layout::single(8 << 20)), ..Config::plain() };
    let mut device = NetDevice::connect(backend.path(0), config).unwrap();
    let (session, memory) = device.session_and_memory();
    let spec = RegionSpec { gpa: 1 << 40, len: 1 << 20 };
    let index = memory.add_region(spec).unwrap();
    session.add_region(&memory.regions()[index]).unwrap();
    assert!(session.max_mem_slots().unwrap() >= 2);
    // A frame of the new region, by hand in the device's own ring.
    let at = memory.alloc_in(index, 72, 64).unwrap();
    memory.write(at, &[7; 72]).unwrap();
    memory.write(at, &[0; 12]).unwrap();
    let table = memory.alloc_in(index, 64, 16).unwrap();
    memory.write(table, &table_bytes(&[Desc::new(at, 12, 1, 1), Desc::new(at + 12, 60, 0, 0)])).unwrap();
    let tx = device.ring_access(1).unwrap();
    tx.set_desc(0, Desc::new(at, 72, 0, 0));
    tx.offer(0);
    assert!(tx.wait_used(1, LONG));
    assert_eq!(device.recv(LONG).unwrap().1, vec![7; 60]);
    let (session, memory) = device.session_and_memory();
    session.remove_region(&memory.regions()[index]).unwrap();
    assert!(device.raw().is_alive());
    device.memory().regions()[index].truncate(0).unwrap();
}

#[test]
fn receive_buffers_may_be_withheld() {
    let backend = Backend::start(2, Options::default());
    let mut a = NetDevice::connect(backend.path(0), Config::plain()).unwrap();
    let mut b = NetDevice::connect_without_buffers(backend.path(1), Config::plain().mac_number(2)).unwrap();
    for n in 0..3 {
        a.send(&[n; 60]).unwrap();
    }
    assert!(b.recv(Duration::from_millis(100)).is_err_and(|e| e.is_timeout()));
    assert_eq!(b.pairs_mut()[0].rx.post(2).unwrap(), 2);
    assert_eq!(b.recv(LONG).unwrap().1, vec![0; 60]);
    assert_eq!(b.recv(LONG).unwrap().1, vec![1; 60]);
    assert_eq!(b.recv(LONG).unwrap().1, vec![2; 60], "buffers go back by themselves once there are some");
}
