//! Leases over time: T1, T2, ends, restarts, and the probes before an offer.

use super::*;

#[test]
fn a_lease_ends_when_nobody_renews_it() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    assert_eq!(rig.server.poll_at(), Some(rig.now + secs(3600)));
    rig.events();
    rig.pass(secs(3599));
    assert_eq!(rig.server.leases(rig.now).len(), 1);
    rig.pass(secs(1));
    assert!(rig.server.leases(rig.now).is_empty());
    let port = Some(rig.ports[0]);
    assert_eq!(rig.events(), [LeaseEvent::Withdrawn { port, ip: host(10), mac: mac(1) }]);
    assert_eq!((rig.server.counters().expired, rig.server.poll_at()), (1, None));
    // Its client slept, and goes on where it was.
    assert_eq!(rig.ask(0, &Ask::renew(1, host(10))).kind(), MessageType::Ack);
}

/// A client renews at T1 of each lease for a week, and once at T2.
#[test]
fn a_week_of_renewals() {
    let mut rig = Rig::prompt(20);
    let ip = rig.acquire(0, 1);
    let mut ack = rig.ask(0, &Ask::renew(1, ip));
    for n in 0..300 {
        let late = n == 100;
        let code = if late { OptionCode::Rebinding } else { OptionCode::Renewal };
        rig.pass(secs(u64::from(ack.secs(code).unwrap())));
        ack = rig.ask(0, &if late { Ask::rebind(1, ip) } else { Ask::renew(1, ip) });
        assert_eq!((ack.kind(), ack.ip()), (MessageType::Ack, ip));
    }
    assert_eq!(rig.events().len(), 1, "it was assigned once");
    assert_eq!(rig.server.leases(rig.now)[0].expires_s, 3600);
}

#[test]
fn a_young_lease_is_not_written_again() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.pass(secs(30));
    let ack = rig.ask(0, &Ask::select(1, host(10)));
    assert_eq!(ack.secs(OptionCode::AddressLeaseTime), Some(3570), "what is durable, and no more");
    assert_eq!((ack.secs(OptionCode::Renewal), rig.store.writes()), (Some(1785), 1));
    // Something is new, or it is not so young.
    rig.ask(0, &Ask::select(1, host(10)).hostname("alpha"));
    assert_eq!(rig.store.writes(), 2);
    rig.pass(secs(60));
    assert_eq!(rig.ask(0, &Ask::renew(1, host(10))).secs(OptionCode::AddressLeaseTime), Some(3600));
    assert_eq!(rig.store.writes(), 3);
}

#[test]
fn leases_survive_a_restart() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    assert_eq!(rig.acquire(1, 2), host(11));
    assert_eq!(rig.acquire(2, 3), host(12));
    rig.is_silent(2, &Ask::release(3, host(12)));
    rig.ask(3, &Ask::discover(4));
    rig.restart(secs(600));
    let left: Vec<_> = rig.server.leases(rig.now).into_iter().map(|l| (l.ip, l.mac, l.expires_s)).collect();
    assert_eq!(left, [(host(10), mac(1), 3000), (host(11), mac(2), 3000)]);
    assert_eq!(rig.acquire(4, 5), host(13), "no address of another, nor one that somebody had");
    assert_eq!(rig.acquire(2, 3), host(12), "the one that it had");
    assert_eq!(rig.ask(0, &Ask::renew(1, host(10))).kind(), MessageType::Ack);
    assert_eq!(rig.ask(1, &Ask::reboot(2, host(11))).kind(), MessageType::Ack);
    // All ends while the server is away; the clients come back to what they had.
    rig.restart(secs(100_000));
    assert!(rig.server.leases(rig.now).is_empty());
    assert_eq!(rig.ask(1, &Ask::reboot(2, host(11))).kind(), MessageType::Ack);
}

#[test]
fn a_client_that_is_heard_after_a_restart_is_where_it_is_heard() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.restart(secs(60));
    while rig.server.next_event().is_some() {}
    let (here, elsewhere) = (rig.ports[2], rig.ports[3]);
    rig.server.heard(elsewhere, host(10), mac(7));
    assert_eq!(rig.server.next_event(), None, "another station");
    rig.server.heard(here, host(10), mac(1));
    let assigned = LeaseEvent::Assigned { port: here, ip: host(10), mac: mac(1) };
    assert_eq!(rig.server.next_event(), Some(assigned));
    rig.server.heard(elsewhere, host(10), mac(1));
    assert_eq!(rig.server.next_event(), None, "it does not move by a word");
}

#[test]
fn a_clock_that_was_set_back_makes_no_lease_longer() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.unix = 1000;
    rig.restart(secs(0));
    assert_eq!(rig.server.leases(rig.now)[0].expires_s, 3600);
    rig.unix = u64::MAX;
    assert_eq!(rig.ask(0, &Ask::renew(1, host(10))).kind(), MessageType::Ack, "nor is its end too far");
    rig.restart(secs(0));
}

#[test]
fn addresses_come_in_their_order() {
    let mut rig = Rig::prompt(12);
    for n in 1..=3 {
        assert_eq!(rig.acquire(n as usize, n), host(9 + n as u8));
        rig.pass(secs(10));
    }
    // The second, then the first, then the third are given back.
    for n in [2, 1, 3] {
        rig.is_silent(n as usize, &Ask::release(n, host(9 + n as u8)));
        rig.pass(secs(100));
    }
    assert_eq!(rig.ask(5, &Ask::discover(5)).ip(), host(11), "the one that ended first");
    let requested = Ask::discover(6).with(DhcpOption::RequestedIpAddress(host(12)));
    assert_eq!(rig.ask(6, &requested).ip(), host(12), "the one that was asked for");
    assert_eq!(rig.ask(1, &Ask::discover(1)).ip(), host(10), "the one that it had");
}

#[test]
fn an_address_is_probed_before_a_stranger_gets_it() {
    let mut rig = Rig::new(config(20));
    rig.is_silent(0, &Ask::discover(1));
    assert_eq!(rig.probes, [host(10)]);
    // It repeats itself: one probe, one answer, to the newest message.
    rig.pass(Duration::from_millis(300));
    rig.is_silent(0, &Ask { broadcast: true, ..Ask::discover(1) });
    assert!(rig.pass(Duration::from_millis(199)).is_empty());
    let offers = rig.pass(Duration::from_millis(1));
    assert_eq!((offers.len(), rig.probes.len()), (1, 1));
    assert_eq!((offers[0].ip(), offers[0].destination), (host(10), Ipv4Addr::BROADCAST));
    assert_eq!(offers[0].port, rig.ports[0]);
    assert_eq!(rig.ask(0, &Ask::select(1, host(10))).kind(), MessageType::Ack);
    // Its own lease, or what it gave back just now, is not probed again.
    assert_eq!(rig.ask(0, &Ask::discover(1)).ip(), host(10));
    rig.is_silent(0, &Ask::release(1, host(10)));
    assert_eq!(rig.ask(0, &Ask::discover(1)).ip(), host(10));
    assert_eq!(rig.probes.len(), 1);
    rig.pass(secs(200));
    rig.is_silent(0, &Ask::discover(1));
    assert_eq!(rig.probes.len(), 2, "after a while it is");
}

#[test]
fn an_address_that_somebody_uses_is_not_offered() {
    let mut rig = Rig::new(config(200));
    rig.squatters = BTreeMap::from([(host(10), (9, mac(90))), (host(11), (9, mac(91)))]);
    rig.is_silent(0, &Ask::discover(1));
    assert_eq!(rig.probes, [host(10), host(11), host(12)], "the next is tried at once");
    let offers = rig.pass(Duration::from_millis(500));
    assert_eq!((offers.len(), offers[0].ip()), (1, host(12)));
    assert_eq!((rig.server.usage().aside, rig.server.counters().conflict), (2, 2));
    // The client's own answers are no conflict, and nor is what is said of addresses that are not probed.
    rig.squatters = BTreeMap::from([(host(13), (1, mac(2)))]);
    rig.is_silent(1, &Ask::discover(2));
    assert_eq!(rig.pass(Duration::from_millis(500))[0].ip(), host(13));
    let (now, from) = (rig.now, rig.ports[9]);
    for ip in [host(12), host(13), host(50), host(250), NONE] {
        rig.server.arp_seen(now, from, ip, mac(90), &mut rig.out);
    }
    assert_eq!(rig.server.usage().aside, 2);
    rig.pass(secs(700));
    assert_eq!(rig.server.usage().aside, 0);
}

/// A guest that answers every probe cannot keep the others from their addresses.
#[test]
fn who_claims_every_address_is_not_believed() {
    let mut rig = Rig::new(config(89));
    rig.squatters = (10..=89).map(|n| (host(n), (9, mac(90)))).collect();
    // Eight addresses are tried for one message.
    rig.is_silent(0, &Ask::discover(1));
    assert!(rig.pass(secs(4)).is_empty());
    rig.is_silent(0, &Ask::discover(1));
    let offers = rig.pass(secs(4));
    assert_eq!(offers[0].ip(), host(20), "an eighth of the range is lost, and no more");
    assert_eq!(rig.server.usage().aside, 10);
    assert!(rig.server.counters().disbelieved > 0);
}

#[test]
fn a_reserved_address_that_is_used_is_replaced() {
    let mut rig = Rig::new(config(20));
    rig.server.reserve(Reservation { owner: Owner::Mac(mac(1)), ip: host(50), hostname: None }).unwrap();
    rig.squatters = BTreeMap::from([(host(50), (9, mac(90)))]);
    rig.is_silent(0, &Ask::discover(1));
    assert_eq!(rig.probes, [host(50), host(10)]);
    // It is reserved for somebody else before the probe ends: no offer.
    rig.server.reserve(Reservation { owner: Owner::Mac(mac(2)), ip: host(10), hostname: None }).unwrap();
    assert!(rig.pass(secs(1)).is_empty());
}

#[test]
fn a_port_that_goes_takes_its_offers_along() {
    let mut rig = Rig::new(config(20));
    rig.is_silent(0, &Ask::discover(1));
    rig.server.port_removed(rig.ports[0]);
    assert_eq!(rig.server.usage().offered, 0);
    assert!(rig.pass(secs(5)).is_empty(), "nothing is sent to it");
}
