//! What well-behaved front-ends do in the course of a guest's life.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Counters, PATIENCE, Rig, frame, path, until};
use frontend::device::VnetHeader;
use frontend::features as f;
use frontend::memory::RegionSpec;
use frontend::raw::{FrontendReq as R, Message};
use frontend::session::{Session, SessionListener};
use frontend::{Config, NetDevice};
use vhost_user::{PortConfig, PortSetupError, PortState, Role, VhostUserPort};

fn crosses(from: &mut NetDevice, to: &mut NetDevice, number: u32) {
    let sent = frame(number, 200);
    from.send(&sent).unwrap();
    let got = to.recv(PATIENCE).unwrap_or_else(|e| panic!("frame {number}: {e}")).1;
    assert!(got == sent, "frame {number} is another");
}

fn both_ways(a: &mut NetDevice, b: &mut NetDevice) {
    for n in 0..5 {
        crosses(a, b, 2 * n);
        crosses(b, a, 2 * n + 1);
    }
}

#[test]
fn firmware_then_the_operating_system_use_the_device_without_reconnecting() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    // iPXE: version 1 only, a small ring; then Linux, with all features; then a reboot into firmware.
    let firmware = || Config { memory: None, ..Config::plain().queue_size(16) };
    let memory = frontend::memory::Layout::single(128 << 20);
    let mut a = NetDevice::connect(&pa.path, Config { memory: Some(memory), ..firmware() }).unwrap();
    both_ways(&mut a, &mut b);
    for _ in 0..3 {
        a.reinit(Config::default()).unwrap();
        both_ways(&mut a, &mut b);
        assert!(pa.port.info().features.contains(&"mrg_rxbuf"));
        a.reinit(firmware()).unwrap();
        both_ways(&mut a, &mut b);
        assert!(!pa.port.info().features.contains(&"mrg_rxbuf"));
    }
    a.session_mut().reset_device().unwrap();
    pa.wait_state(&PortState::Waiting);
    assert_eq!(rig.host.errors(), Vec::<String>::new());
    assert!(!pa.states.lock().unwrap().iter().any(|s| matches!(s, PortState::Error(_))));
}

#[test]
fn rings_stop_and_go_on_where_they_stood() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = NetDevice::connect(&pa.path, Config::default()).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    for round in 0..50u32 {
        crosses(&mut a, &mut b, round);
        crosses(&mut b, &mut a, round);
        assert_eq!(a.stop().unwrap(), [round + 1; 2]);
        pa.wait_state(&PortState::Waiting);
        // What comes meanwhile finds nobody; what was queued meanwhile is sent later.
        b.send(&frame(1, 64)).unwrap();
        until("nobody is there", || Counters::get(&pb.counters.down) == u64::from(round) + 1);
        a.resume().unwrap();
        pa.wait_state(&PortState::Up);
    }
}

#[test]
fn a_front_end_that_reconnects_goes_on_from_the_used_index() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = NetDevice::connect(&pa.path, Config { ring_base: 65_530, ..Config::default() }).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    for _ in 0..20 {
        both_ways(&mut a, &mut b);
        a.session().raw().stream().shutdown(std::net::Shutdown::Both).unwrap();
        a.reattach(Session::connect(&pa.path, PATIENCE).unwrap()).unwrap();
        both_ways(&mut a, &mut b);
    }
    assert_eq!(rig.host.errors(), Vec::<String>::new());
}

#[test]
fn a_client_connects_again_and_offers_the_same() {
    let rig = Rig::new();
    let at = path(&rig, "vm.sock");
    let pa = rig.port_with("vm.sock", |c| c.role = Role::Client);
    let pb = rig.port("b.sock");
    rig.join(&pa, &pb);
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    let listener = SessionListener::bind(&at).unwrap();
    let mut a = NetDevice::with_session(listener.accept(PATIENCE).unwrap(), Config::default()).unwrap();
    both_ways(&mut a, &mut b);
    let offered = a.session().offered();
    for _ in 0..3 {
        // The new session is accepted while the old one's socket is gone.
        a.session().raw().stream().shutdown(std::net::Shutdown::Both).unwrap();
        let session = listener.accept(PATIENCE).unwrap();
        a.reattach(session).unwrap();
        assert_eq!(a.session().offered(), offered);
        both_ways(&mut a, &mut b);
    }
    drop(a);
    pa.wait_state(&PortState::Waiting);
    assert!(at.exists(), "a client leaves the socket alone");
}

#[test]
fn a_client_that_may_not_connect_says_why() {
    let rig = Rig::new();
    let directory = path(&rig, "vm");
    // A file where a directory is meant stands for all that waiting does not mend.
    std::fs::write(&directory, "").unwrap();
    let port = rig.port_with("vm/net.sock", |c| c.role = Role::Client);
    port.wait_error("cannot connect");
    std::fs::remove_file(&directory).unwrap();
    port.wait_state(&PortState::Waiting);
    std::fs::create_dir(&directory).unwrap();
    let listener = SessionListener::bind(path(&rig, "vm/net.sock")).unwrap();
    let session = listener.accept(PATIENCE).unwrap();
    let _device = NetDevice::with_session(session, Config::default()).unwrap();
    port.wait_state(&PortState::Up);
}

#[test]
fn queue_pairs_come_and_go_under_traffic() {
    let rig = Rig::new();
    let (pa, pb) = (rig.port_with("a.sock", |c| c.queue_pairs = 4), rig.port("b.sock"));
    rig.join(&pa, &pb);
    let mut a = NetDevice::connect(&pa.path, Config::default().queue_pairs(4)).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    pa.wait_state(&PortState::Up);
    until("all four pairs run", || pa.port.info().rings.iter().filter(|r| r.running).count() == 8);
    assert!(pa.port.info().features.contains(&"mq"));
    for pair in 0..4 {
        let sent = frame(pair as u32, 300);
        a.pairs_mut()[pair].tx.send(&VnetHeader::PLAIN, &[&sent]).unwrap();
        assert_eq!(b.recv(PATIENCE).unwrap().1, sent);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                b.send(&frame(n, 100)).unwrap();
                n += 1;
                if n % 16 == 0 {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            b
        })
    };
    for round in 0..100u16 {
        let pair = 1 + round % 3;
        a.enable_pair(pair, false).unwrap();
        while a.try_recv(&mut Vec::new()).unwrap().is_some() {}
        a.enable_pair(pair, true).unwrap();
    }
    // The first pair goes: the others take over.
    a.enable_pair(0, false).unwrap();
    until("frames arrive by another pair", || {
        while a.try_recv(&mut Vec::new()).unwrap().is_some() {}
        a.pairs()[1].rx.received() + a.pairs()[2].rx.received() + a.pairs()[3].rx.received() > 0
    });
    stop.store(true, Ordering::Relaxed);
    let mut b = traffic.join().unwrap();
    a.enable_pair(0, true).unwrap();
    let _ = a.recv_all(Duration::from_millis(50)).unwrap();
    both_ways(&mut a, &mut b);
    assert_eq!(rig.host.errors(), Vec::<String>::new());
}

#[test]
fn memory_is_added_and_removed_under_traffic() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = NetDevice::connect(&pa.path, Config::default()).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    assert_eq!(a.session_mut().max_mem_slots().unwrap(), 32);
    for round in 0..10u64 {
        let (session, memory) = a.session_and_memory();
        let spec = RegionSpec { gpa: (1 << 40) + (round << 30), len: 2 << 20 };
        let index = memory.add_region(spec).unwrap();
        let region = &memory.regions()[index];
        session.add_region(region).unwrap();
        both_ways(&mut a, &mut b);
        assert_eq!(pa.port.info().regions.len(), 2);
        let (session, memory) = a.session_and_memory();
        session.remove_region(&memory.regions()[index]).unwrap();
        both_ways(&mut a, &mut b);
    }
    // The table anew, while the rings run, as QEMU does.
    let (session, memory) = a.session_and_memory();
    let m = Message::mem_table(&memory.regions()[..1]).need_reply();
    assert_eq!(session.raw().request(&m).unwrap().u64().unwrap(), 0);
    both_ways(&mut a, &mut b);
    pa.wait_state(&PortState::Up);
}

#[test]
fn removing_the_memory_of_a_ring_stops_it_until_it_has_new_addresses() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = NetDevice::connect(&pa.path, Config::default()).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    both_ways(&mut a, &mut b);
    let (session, memory) = a.session_and_memory();
    let region = &memory.regions()[0];
    session.remove_region(region).unwrap();
    pa.wait_state(&PortState::Waiting);
    session.add_region(region).unwrap();
    pa.wait_state(&PortState::Up);
    both_ways(&mut a, &mut b);
}

#[test]
fn the_mtu_the_status_and_the_announcement_are_answered() {
    let rig = Rig::new();
    let (pa, pb) = (rig.port_with("a.sock", |c| c.mtu = Some(9000)), rig.port("b.sock"));
    rig.join(&pa, &pb);
    let mut a = NetDevice::connect(&pa.path, Config::default().mtu(8000)).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    pa.wait_state(&PortState::Up);
    until("the MTU is shown", || pa.port.info().mtu == Some(8000));
    let mtu = |m: u64| Message::u64(R::NET_SET_MTU, m).need_reply();
    for (value, answer) in [(68, 0), (9000, 0), (9001, 1), (67, 1), (0, 1), (65_536, 1), (u64::MAX, 1)] {
        assert_eq!(a.raw().request(&mtu(value)).unwrap().u64().unwrap(), answer, "{value}");
    }
    assert_eq!(a.session_mut().status().unwrap(), 15);
    assert_eq!(pa.port.info().status, 15);
    a.session_mut().set_status(3).unwrap();
    assert_eq!(a.session_mut().status().unwrap(), 3);

    let mac = [0x52, 0x54, 0, 7, 8, 9];
    a.session_mut().send_rarp(mac).unwrap();
    let rarp = b.recv(PATIENCE).unwrap().1;
    assert_eq!(rarp.len(), 60);
    assert_eq!(rarp[..6], [0xff; 6]);
    assert_eq!(rarp[6..12], mac);
    assert_eq!(rarp[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    assert_eq!(rarp[22..28], mac);
    assert_eq!(rarp[32..38], mac);
    // Many at once: what does not fit is refused, nothing else.
    let mut refused = 0;
    for _ in 0..100 {
        refused += u32::from(a.session_mut().send_rarp(mac).is_err());
    }
    let got = b.recv_all(Duration::from_millis(50)).unwrap().len();
    assert_eq!(got as u32 + refused, 100);
    assert!(a.session_mut().send_rarp([0xff; 6]).is_err(), "a group address announces nobody");
    both_ways(&mut a, &mut b);
}

#[test]
fn an_idle_port_sleeps_and_is_woken() {
    for features in [f::EVENT_IDX, 0] {
        let rig = Rig::new();
        let (pa, pb) = rig.pair();
        let config = || Config::default().without(f::EVENT_IDX).with(features);
        let mut a = NetDevice::connect(&pa.path, config()).unwrap();
        let mut b = NetDevice::connect(&pb.path, config()).unwrap();
        for n in 0..50 {
            let sleeps = rig.host.sleeps();
            until("the worker sleeps", || rig.host.sleeps() > sleeps + 1);
            crosses(&mut a, &mut b, n);
            crosses(&mut b, &mut a, n);
        }
        // Polled hard, the guest is not told to kick.
        let kicks = a.pairs()[0].tx.kicks();
        assert!(kicks <= 120, "{kicks} kicks for 50 frames");
    }
}

#[test]
fn a_port_without_a_kick_descriptor_is_polled() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = NetDevice::connect(&pa.path, Config::default()).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    for index in 0..2u64 {
        let no_fd = Message::u64(R::SET_VRING_KICK, index | frontend::raw::NO_FD).need_reply();
        assert_eq!(a.raw().request(&no_fd).unwrap().u64().unwrap(), 0);
        let no_fd = Message::u64(R::SET_VRING_CALL, index | frontend::raw::NO_FD).need_reply();
        assert_eq!(a.raw().request(&no_fd).unwrap().u64().unwrap(), 0);
    }
    for n in 0..20 {
        crosses(&mut a, &mut b, n);
    }
    b.send(&frame(1, 100)).unwrap();
    let mut got = Vec::new();
    until("it came, without a call", || a.try_recv(&mut got).unwrap().is_some());
}

#[test]
fn offloads_pass_to_those_who_agreed_and_not_to_others() {
    use switch_core::offload::OffloadSet;
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let a = NetDevice::connect(&pa.path, Config::default()).unwrap();
    let b = NetDevice::connect(&pb.path, Config::plain()).unwrap();
    pa.wait_state(&PortState::Up);
    pb.wait_state(&PortState::Up);
    assert!(
        pa.port
            .tx()
            .offloads()
            .contains(OffloadSet::CHECKSUM.with(OffloadSet::TCPV4).with(OffloadSet::TCPV6))
    );
    assert_eq!(pb.port.tx().offloads(), OffloadSet::NONE);
    drop((a, b));
    // Segmentation without checksums is no agreement on anything.
    let a = NetDevice::connect(&pa.path, Config::default().without(f::GUEST_CSUM)).unwrap();
    pa.wait_state(&PortState::Up);
    assert_eq!(pa.port.tx().offloads(), OffloadSet::NONE);
    drop(a);
}

#[test]
fn the_socket_is_private_replaced_when_stale_and_removed_at_the_end() {
    let rig = Rig::new();
    let at = path(&rig, "a.sock");
    // Left by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&at).unwrap());
    assert!(at.exists());
    let port = rig.port("a.sock");
    assert_eq!(std::fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o660);
    let again = |path: std::path::PathBuf| {
        let config = PortConfig { id: port.id, path, role: Role::Server, queue_pairs: 1, mtu: None };
        VhostUserPort::new(config, rig.host.handle(), |_| {}).map(drop)
    };
    let text = |r: Result<(), PortSetupError>| r.unwrap_err().to_string();
    assert!(text(again(at.clone())).contains("another process does"));
    std::fs::write(path(&rig, "file"), "precious").unwrap();
    assert!(text(again(path(&rig, "file"))).contains("no socket"));
    assert!(text(again(path(&rig, "no/such/dir"))).contains("No such file"));
    assert!(text(again(path(&rig, &"x".repeat(120)))).contains("cannot listen"));
    drop(port);
    assert!(!at.exists());
    assert_eq!(std::fs::read(path(&rig, "file")).unwrap(), b"precious");
}

#[test]
fn one_front_end_at_a_time_is_served_and_the_next_waits() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    let mut first = NetDevice::connect(&pa.path, Config::default()).unwrap();
    both_ways(&mut first, &mut b);
    let next = {
        let at = pa.path.clone();
        std::thread::spawn(move || NetDevice::connect(&at, Config::default()))
    };
    std::thread::sleep(Duration::from_millis(50));
    both_ways(&mut first, &mut b);
    drop(first);
    let mut next = next.join().unwrap().unwrap();
    both_ways(&mut next, &mut b);
}

#[test]
fn rings_are_enabled_before_the_features_are_agreed_on_as_qemu_does() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    let mut session = Session::connect(&pa.path, PATIENCE).unwrap();
    let config = Config::default();
    session.open(config.protocol).unwrap();
    for index in 0..2 {
        let m = Message::vring_state(R::SET_VRING_ENABLE, index, 1).need_reply();
        assert_eq!(session.raw().request(&m).unwrap().u64().unwrap(), 0);
    }
    let mut a = NetDevice::with_session(session, Config { protocol: None, ..config }).unwrap();
    both_ways(&mut a, &mut b);
}

#[test]
fn features_change_between_runs_only_for_the_rings_of_their_port() {
    let rig = Rig::new();
    let (pa, pb) = rig.pair();
    let mut a = NetDevice::connect(&pa.path, Config::default()).unwrap();
    let mut b = NetDevice::connect(&pb.path, Config::default()).unwrap();
    both_ways(&mut a, &mut b);
    // The same features again, on running rings, change nothing.
    let same = a.session().acked();
    let m = Message::u64(R::SET_FEATURES, same).need_reply();
    assert_eq!(a.raw().request(&m).unwrap().u64().unwrap(), 0);
    both_ways(&mut a, &mut b);
}
