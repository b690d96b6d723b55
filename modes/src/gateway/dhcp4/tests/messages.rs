//! Each message in each state: what is answered, where to, and what is not answered.

use super::*;

#[test]
fn discover_offer_request_ack() {
    let mut rig = Rig::prompt(20);
    let offer = rig.ask(3, &Ask::discover(1));
    assert_eq!((offer.kind(), offer.ip()), (MessageType::Offer, host(10)));
    assert_eq!(offer.port, rig.ports[3], "it goes to where the question came from");
    assert_eq!((offer.destination_mac, offer.destination), (mac(1), host(10)));
    assert_eq!(offer.message.xid(), 0x1234_5678);
    assert_eq!(offer.message.chaddr(), mac(1).0);
    assert_eq!(offer.option(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(SERVER)));
    assert_eq!(offer.secs(OptionCode::AddressLeaseTime), Some(3600));
    assert_eq!(rig.store.writes(), 0, "an offer is not written");
    let ack = rig.ask(3, &Ask::select(1, host(10)));
    assert_eq!((ack.kind(), ack.ip()), (MessageType::Ack, host(10)));
    assert_eq!(ack.secs(OptionCode::Renewal), Some(1800));
    assert_eq!(ack.secs(OptionCode::Rebinding), Some(3150));
    let record = rig.store.record(host(10)).expect("an acknowledged lease is written");
    assert_eq!((record.mac, record.expires_unix), (mac(1), UNIX + 3600));
    let port = rig.ports[3];
    assert_eq!(rig.events(), [LeaseEvent::Assigned { port, ip: host(10), mac: mac(1) }]);
    let info = LeaseInfo { ip: host(10), mac: mac(1), hostname: None, expires_s: 3600, port: Some(port) };
    assert_eq!(rig.server.leases(rig.now), [info]);
}

/// RFC 2131, 4.1.
#[test]
fn answers_go_where_the_client_hears_them() {
    let mut rig = Rig::prompt(20);
    let everybody = (MacAddr::BROADCAST, Ipv4Addr::BROADCAST);
    let to = |reply: &Reply| (reply.destination_mac, reply.destination);
    let offer = rig.ask(0, &Ask { broadcast: true, ..Ask::discover(1) });
    assert_eq!(to(&offer), everybody);
    assert!(offer.message.flags().broadcast(), "the flag is the client's");
    let ack = rig.ask(0, &Ask { broadcast: true, ..Ask::select(1, offer.ip()) });
    assert_eq!(to(&ack), everybody);
    let ack = rig.ask(0, &Ask::select(1, offer.ip()));
    assert_eq!(to(&ack), (mac(1), host(10)));
    let ack = rig.ask(0, &Ask { broadcast: true, ..Ask::renew(1, host(10)) });
    assert_eq!(to(&ack), (mac(1), host(10)), "to the address that the client has");
    assert_eq!(ack.message.ciaddr(), host(10));
    let nak = rig.ask(0, &Ask::renew(2, host(10)));
    assert_eq!((nak.kind(), to(&nak)), (MessageType::Nak, everybody));
    assert_eq!((nak.ip(), nak.message.ciaddr()), (NONE, NONE));
    let ack = rig.ask(0, &Ask::inform(3, host(200)));
    assert_eq!(to(&ack), (mac(3), host(200)));
}

#[test]
fn selecting() {
    let mut rig = Rig::prompt(11);
    rig.ask(0, &Ask::discover(1));
    // Another server was chosen: the address is free again.
    let other = Ask::reboot(1, host(99)).with(DhcpOption::ServerIdentifier(host(2)));
    rig.is_silent(0, &other);
    assert_eq!(rig.ask(1, &Ask::discover(2)).ip(), host(10));
    // Not what was offered, not offered at all, somebody else's, out of the range.
    for ip in [host(11), host(10), host(200), Ipv4Addr::new(10, 0, 0, 1), SERVER] {
        assert_eq!(rig.ask(0, &Ask::select(3, ip)).kind(), MessageType::Nak, "{ip}");
    }
    assert_eq!(rig.ask(1, &Ask::select(2, host(10))).kind(), MessageType::Ack);
    // An offer that was not taken in a minute ends.
    assert_eq!(rig.ask(0, &Ask::discover(4)).ip(), host(11));
    rig.pass(secs(61));
    assert_eq!(rig.ask(0, &Ask::select(4, host(11))).kind(), MessageType::Nak);
    // Without an address there is nothing to select.
    let nothing = Ask::new(MessageType::Request, mac(4)).with(DhcpOption::ServerIdentifier(SERVER));
    rig.is_silent(0, &nothing);
    assert_eq!(rig.server.counters().malformed, 1);
    // No address was left to anybody but the two.
    assert_eq!(rig.server.usage().leased, 1);
}

#[test]
fn init_reboot() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    assert_eq!(rig.ask(0, &Ask::reboot(1, host(10))).kind(), MessageType::Ack);
    assert_eq!(rig.ask(0, &Ask::reboot(1, host(11))).kind(), MessageType::Nak, "it has another");
    // No record of this client: silence. The wrong network: refused, whoever it is.
    rig.is_silent(0, &Ask::reboot(2, host(12)));
    rig.is_silent(0, &Ask::reboot(2, host(10)));
    assert_eq!(rig.ask(0, &Ask::reboot(2, Ipv4Addr::new(10, 1, 1, 1))).kind(), MessageType::Nak);
    // An ended lease is taken up again.
    rig.pass(secs(4000));
    assert!(rig.server.leases(rig.now).is_empty());
    assert_eq!(rig.ask(0, &Ask::reboot(1, host(10))).kind(), MessageType::Ack);
}

#[test]
fn renewing_and_rebinding() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.pass(secs(1800));
    let ack = rig.ask(0, &Ask::renew(1, host(10)));
    assert_eq!((ack.kind(), ack.secs(OptionCode::AddressLeaseTime)), (MessageType::Ack, Some(3600)));
    rig.pass(secs(3150));
    let ack = rig.ask(0, &Ask::rebind(1, host(10)));
    assert_eq!((ack.kind(), ack.secs(OptionCode::AddressLeaseTime)), (MessageType::Ack, Some(3600)));
    // Renewing names us by its destination; rebinding may mean another server.
    assert_eq!(rig.ask(0, &Ask::renew(2, host(12))).kind(), MessageType::Nak);
    rig.is_silent(0, &Ask::rebind(2, host(12)));
    assert_eq!(rig.ask(0, &Ask::rebind(2, host(10))).kind(), MessageType::Nak, "somebody else's");
    assert_eq!(rig.ask(0, &Ask::rebind(2, Ipv4Addr::new(10, 1, 1, 1))).kind(), MessageType::Nak);
    // Kept for somebody who never asked for it.
    let kept = Reservation { owner: Owner::Mac(mac(7)), ip: host(13), hostname: None };
    rig.server.reserve(kept).unwrap();
    assert_eq!(rig.ask(0, &Ask::rebind(2, host(13))).kind(), MessageType::Nak, "kept for another");
    // A server identifier does not belong into it, but is seen.
    let named = Ask::renew(1, host(10)).with(DhcpOption::ServerIdentifier(SERVER));
    assert_eq!(rig.ask(0, &named).kind(), MessageType::Ack);
    // Neither of the four states.
    rig.is_silent(0, &Ask::renew(1, host(10)).with(DhcpOption::RequestedIpAddress(host(10))));
    rig.is_silent(0, &Ask::new(MessageType::Request, mac(1)));
}

#[test]
fn release_frees_and_is_remembered() {
    let mut rig = Rig::prompt(11);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.events();
    rig.is_silent(0, &Ask::release(2, host(10)));
    rig.is_silent(1, &Ask::release(1, host(10)));
    let other = Ask { options: vec![DhcpOption::ServerIdentifier(host(9))], ..Ask::release(1, host(10)) };
    rig.is_silent(0, &other);
    assert_eq!(rig.server.usage().leased, 1, "nobody else gives it back, and not from elsewhere");
    rig.is_silent(0, &Ask::release(1, host(10)));
    assert_eq!(rig.server.usage().leased, 0);
    let port = Some(rig.ports[0]);
    assert_eq!(rig.events(), [LeaseEvent::Withdrawn { port, ip: host(10), mac: mac(1) }]);
    assert_eq!(rig.store.record(host(10)).map(|r| r.expires_unix), Some(UNIX));
    assert_eq!(rig.acquire(1, 2), host(11), "one that nobody had comes first");
    assert_eq!(rig.acquire(0, 1), host(10), "the client gets what it had");
}

#[test]
fn declined_addresses_are_set_aside() {
    let mut rig = Rig::prompt(30);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.events();
    rig.is_silent(0, &Ask::decline(2, host(10)));
    assert_eq!(rig.server.usage().aside, 0, "it is not client 2's");
    rig.is_silent(0, &Ask::decline(1, host(10)));
    assert_eq!(rig.server.usage().aside, 1);
    assert_eq!(rig.store.record(host(10)), None);
    assert!(matches!(rig.events()[..], [LeaseEvent::Withdrawn { .. }]));
    assert_eq!(rig.server.counters().decline, 2);
    let offer = rig.ask(0, &Ask::discover(1).with(DhcpOption::RequestedIpAddress(host(10))));
    assert_eq!(offer.ip(), host(11));
    rig.is_silent(0, &Ask::decline(1, host(11)));
    assert_eq!(rig.server.usage().aside, 2, "an offer can be declined, too");
    // For a time.
    rig.pass(secs(601));
    assert_eq!(rig.server.usage().aside, 0);
    assert_eq!(rig.ask(0, &Ask::discover(1)).ip(), host(10));
}

#[test]
fn inform_gets_options_and_no_lease() {
    let mut rig = Rig::prompt(20);
    let ack = rig.ask(0, &Ask::inform(1, host(200)).wants(&[1, 3, 51]));
    assert_eq!((ack.kind(), ack.ip()), (MessageType::Ack, NONE));
    for code in [OptionCode::AddressLeaseTime, OptionCode::Renewal, OptionCode::Rebinding] {
        assert_eq!(ack.option(code), None);
    }
    assert_eq!(ack.option(OptionCode::Router), Some(&DhcpOption::Router(vec![SERVER])));
    // Without ciaddr, the packet's source tells.
    let ack = rig.ask(0, &Ask { ciaddr: NONE, ..Ask::inform(1, host(200)) });
    assert_eq!(ack.destination, host(200));
    rig.is_silent(0, &Ask { ciaddr: NONE, source: NONE, ..Ask::inform(1, host(200)) });
    rig.is_silent(0, &Ask::inform(1, Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!(rig.server.usage().leased, 0);
}

#[test]
fn relayed_and_foreign_messages_are_not_answered() {
    let mut rig = Rig::prompt(20);
    rig.is_silent(0, &Ask { giaddr: host(2), ..Ask::discover(1) });
    assert_eq!(rig.server.counters().relayed, 1);
    rig.is_silent(0, &Ask::new(MessageType::Offer, mac(1)));
    rig.is_silent(0, &Ask::new(MessageType::LeaseQuery, mac(1)));
    for bad in [MacAddr::BROADCAST, MacAddr([0; 6]), MacAddr([1, 0, 0x5e, 0, 0, 1])] {
        rig.is_silent(0, &Ask { source_mac: mac(1), ..Ask::new(MessageType::Discover, bad) });
    }
    assert_eq!(rig.server.counters().malformed, 3);
    // Not for this server: somebody else may want it.
    for frame in [
        Ask { destination: host(77), ..Ask::discover(1) }.frame(),
        vec![],
        vec![0; 13],
        [&[2; 12][..], &[8, 6], &[0; 40]].concat(),
    ] {
        let from = rig.ports[0];
        assert_eq!(rig.server.receive(rig.now, rig.unix, from, &frame, &mut rig.out), Handled::No);
    }
    assert!(rig.out.is_empty());
    assert_eq!(rig.server.usage().offered, 0);
}

#[test]
fn a_frame_with_one_wrong_byte_takes_nothing() {
    let good = Ask::discover(1).frame();
    for at in 14..good.len() {
        let mut rig = Rig::prompt(20);
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let from = rig.ports[0];
        rig.server.receive(rig.now, rig.unix, from, &bad, &mut rig.out);
        assert!(rig.out.is_empty(), "byte {at}: the checksums tell");
    }
}

#[test]
fn a_message_cut_anywhere_takes_nothing_until_its_type() {
    let ask = Ask::discover(1).hostname("guest");
    let whole = ask.frame()[42..].to_vec();
    for cut in 0..whole.len() {
        let mut rig = Rig::prompt(20);
        let frame = frame(&ask, &whole[..cut]);
        let answered = !rig.send_frame(0, &frame).is_empty();
        // The type is the first option of those that the test writes after the name (12 before 53).
        assert_eq!(answered, cut >= whole.len() - 1, "cut at {cut}");
    }
}

#[test]
fn the_identifier_is_the_client() {
    let mut rig = Rig::prompt(20);
    let offer = rig.ask(0, &Ask::discover(1).id(b"\0guest-a"));
    let ack = rig.ask(0, &Ask::select(1, offer.ip()).id(b"\0guest-a"));
    assert_eq!(ack.kind(), MessageType::Ack);
    // RFC 6842: it is sent back.
    let id = DhcpOption::ClientIdentifier(b"\0guest-a".to_vec());
    for reply in [&offer, &ack, &rig.ask(0, &Ask::renew(5, host(99)).id(b"\0guest-a"))] {
        assert_eq!(reply.option(OptionCode::ClientIdentifier), Some(&id));
    }
    // The same guest with another network card has the same address; the same card without the identifier is another.
    assert_eq!(rig.ask(0, &Ask::discover(2).id(b"\0guest-a")).ip(), host(10));
    assert_eq!(rig.ask(0, &Ask::discover(1)).ip(), host(11));
    assert_eq!(rig.ask(0, &Ask::discover(1)).option(OptionCode::ClientIdentifier), None);
    // Type 1 and the address is what a client without an identifier is.
    assert_eq!(rig.ask(0, &Ask::discover(9).id(&[1, 2, 0, 0, 0, 0, 1])).ip(), host(11));
    // One that is too short to be one does not count.
    assert_eq!(rig.ask(0, &Ask::discover(1).id(&[7])).ip(), host(11));
}

#[test]
fn the_same_identifier_at_two_ports_is_two_clients() {
    let mut rig = Rig::prompt(20);
    let offer = rig.ask(0, &Ask::discover(1).id(b"image"));
    rig.ask(0, &Ask::select(1, offer.ip()).id(b"image"));
    assert_eq!(offer.ip(), host(10));
    let copy = rig.ask(1, &Ask::discover(2).id(b"image"));
    assert_eq!(copy.ip(), host(11));
    assert_eq!(rig.ask(1, &Ask::select(2, host(10)).id(b"image")).kind(), MessageType::Nak);
    assert_eq!(rig.ask(1, &Ask::renew(1, host(10)).id(b"image")).kind(), MessageType::Nak);
    rig.is_silent(1, &Ask::release(1, host(10)).id(b"image"));
    rig.is_silent(1, &Ask::decline(1, host(10)).id(b"image"));
    assert_eq!(rig.server.leases(rig.now).len(), 1, "the first is untouched");
    // The first one's port goes: whoever has the identifier takes the lease along to another.
    let port = rig.ports[0];
    rig.events();
    rig.server.port_removed(port);
    assert_eq!(rig.events(), [LeaseEvent::Withdrawn { port: Some(port), ip: host(10), mac: mac(1) }]);
    assert_eq!(rig.ask(2, &Ask::renew(1, host(10)).id(b"image")).kind(), MessageType::Ack);
    let port = rig.ports[2];
    assert_eq!(rig.events(), [LeaseEvent::Assigned { port, ip: host(10), mac: mac(1) }]);
}

#[test]
fn what_cannot_be_written_is_not_acknowledged() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.pass(secs(1800));
    rig.events();
    let before = rig.server.leases(rig.now);
    rig.store.fail(true);
    rig.is_silent(0, &Ask::renew(1, host(10)));
    rig.is_silent(0, &Ask::release(1, host(10)));
    rig.is_silent(0, &Ask::decline(1, host(10)));
    assert!(rig.server.del(host(10)).is_err());
    assert_eq!(rig.server.leases(rig.now), before);
    let offer = rig.ask(1, &Ask::discover(2));
    rig.is_silent(1, &Ask::select(2, offer.ip()));
    assert_eq!((rig.server.counters().not_durable, rig.events()), (4, vec![]));
    assert!(rig.server.store_error().is_some_and(|e| e.contains("full")));
    // The disk has room again: the client repeats itself and has the address.
    rig.store.fail(false);
    assert_eq!(rig.ask(1, &Ask::select(2, offer.ip())).kind(), MessageType::Ack);
    assert_eq!(rig.server.store_error(), None);
}

#[test]
fn the_operator_ends_a_lease() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.events();
    assert!(!rig.server.del(host(11)).unwrap());
    assert!(rig.server.del(host(10)).unwrap());
    assert!(matches!(rig.events()[..], [LeaseEvent::Withdrawn { .. }]));
    assert_eq!(rig.store.record(host(10)), None);
    assert_eq!(rig.ask(0, &Ask::renew(1, host(10))).kind(), MessageType::Nak);
}
