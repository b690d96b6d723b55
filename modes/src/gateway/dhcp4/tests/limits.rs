//! Bounds of one port, and of everything.

use super::*;

#[test]
fn a_ports_offers_are_bounded() {
    let limits = Limits { offers: 3, ..Limits::default() };
    let mut rig = Rig::new(Config { probe: None, limits, ..config(100) });
    let offered = (0..10).filter(|&n| !rig.send(0, &Ask::discover(n)).is_empty()).count();
    assert_eq!((offered, rig.server.usage().offered, rig.server.counters().port_limit), (3, 3, 7));
    // What is accepted is not only offered any more; what is not ends.
    assert_eq!(rig.ask(0, &Ask::select(0, host(10))).kind(), MessageType::Ack);
    assert_eq!(rig.ask(0, &Ask::discover(5)).ip(), host(13));
    rig.pass(secs(61));
    assert_eq!(rig.server.usage().offered, 0);
    assert_eq!(rig.ask(0, &Ask::discover(6)).kind(), MessageType::Offer);
}

#[test]
fn a_ports_leases_can_be_bounded() {
    let limits = Limits { leases: Some(2), ..Limits::default() };
    let mut rig = Rig::new(Config { probe: None, limits, ..config(100) });
    // Offers that were made before do not help.
    let offers: Vec<_> = (0..3).map(|n| rig.ask(0, &Ask::discover(n)).ip()).collect();
    assert_eq!(rig.ask(0, &Ask::select(0, offers[0])).kind(), MessageType::Ack);
    assert_eq!(rig.ask(0, &Ask::select(1, offers[1])).kind(), MessageType::Ack);
    assert_eq!(rig.ask(0, &Ask::select(2, offers[2])).kind(), MessageType::Nak);
    rig.is_silent(0, &Ask::discover(7));
    rig.pass(secs(1000));
    assert_eq!(rig.ask(0, &Ask::renew(1, offers[1])).kind(), MessageType::Ack, "its own go on");
    // A reserved address is had besides; at another port there is room.
    rig.server.reserve(Reservation { owner: Owner::Mac(mac(7)), ip: host(200), hostname: None }).unwrap();
    assert_eq!(rig.acquire(0, 7), host(200));
    rig.acquire(1, 8);
}

#[test]
fn messages_and_writes_have_a_budget() {
    let limits = Limits { messages: (50, 10), writes: (5, 1), ..Limits::default() };
    let mut rig = Rig::new(Config { probe: None, limits, ..config(200) });
    let acked = (0..10).filter(|&n| {
        let ip = rig.ask(0, &Ask::discover(n)).ip();
        !rig.send(0, &Ask::select(n, ip)).is_empty()
    });
    assert_eq!(acked.count(), 5);
    rig.pass(secs(1));
    assert_eq!(rig.ask(0, &Ask::select(9, host(19))).kind(), MessageType::Ack, "one a second");
    let heard = (100..200).filter(|&n| !rig.send(0, &Ask::discover(n)).is_empty()).count();
    assert!((20..=50).contains(&heard), "{heard}");
    assert_eq!(rig.ask(1, &Ask::discover(300)).kind(), MessageType::Offer, "another port has its own");
}

#[test]
fn an_offer_gives_way_when_nothing_else_is_left() {
    let mut rig = Rig::prompt(13);
    for n in 0..4 {
        assert_eq!(rig.ask(0, &Ask::discover(n)).kind(), MessageType::Offer);
        rig.pass(secs(1));
    }
    rig.is_silent(0, &Ask::discover(10));
    assert_eq!(rig.ask(1, &Ask::discover(11)).ip(), host(10), "the oldest of the port that has four");
    assert_eq!(rig.ask(0, &Ask::select(0, host(10))).kind(), MessageType::Nak);
    assert_eq!(rig.ask(2, &Ask::discover(12)).ip(), host(11));
    // Two, one and one: nobody has more than its share.
    rig.is_silent(1, &Ask::discover(13));
    assert_eq!(rig.ask(3, &Ask::discover(14)).ip(), host(12));
    rig.is_silent(4, &Ask::discover(15));
    assert_eq!((rig.server.counters().preempted, rig.server.counters().pool_exhausted), (3, 3));
    // A lease never gives way.
    for (port, n, ip) in [(0, 3, 13), (1, 11, 10), (2, 12, 11), (3, 14, 12)] {
        assert_eq!(rig.ask(port, &Ask::select(n, host(ip))).kind(), MessageType::Ack);
    }
    rig.is_silent(4, &Ask::discover(15));
}

#[test]
fn events_that_nobody_reads_are_bounded() {
    let mut rig = Rig::prompt(20);
    let mut ip = rig.acquire(0, 1);
    for _ in 0..EVENTS_MAX {
        rig.is_silent(0, &Ask::release(1, ip));
        rig.pass(secs(1));
        ip = rig.acquire(0, 1);
    }
    assert!(rig.server.counters().events_lost > 0);
    assert_eq!(rig.events().len(), EVENTS_MAX);
}

/// Every counter is raised somewhere in these tests' scenarios: one that nothing raises says nothing.
#[test]
fn counters_have_names() {
    let counters = Counters { discover: 7, events_lost: 3, ..Counters::default() };
    let named: BTreeMap<_, _> = counters.named().into_iter().collect();
    assert_eq!((named["discover"], named["events_lost"], named["ack"]), (7, 3, 0));
    assert_eq!(named.len(), counters.named().len());
}
