//! What a client is told, names, and reservations.

use dhcproto::v4::fqdn::{ClientFQDN, FqdnFlags};
use dhcproto::v4::relay::{RelayAgentInformation, RelayInfo};
use hickory_proto::rr::Name;

use super::*;

fn rich() -> Config {
    Config {
        probe: None,
        dns: vec![SERVER, host(2)],
        domain: Some("guests.example".to_owned()),
        mtu: 1400,
        routes: vec![
            ("10.17.0.0/16".parse().unwrap(), host(3)),
            ("10.18.19.128/25".parse().unwrap(), host(4)),
        ],
        boot_file: Some("boot/loader.efi".to_owned()),
        next_server: Some(host(5)),
        ..config(20)
    }
}

#[test]
fn clients_are_told_what_they_ask_for() {
    let mut rig = Rig::new(rich());
    let wanted = [121, 3, 26, 6, 1, 15, 28, 66, 67, 249, 12, 43, 6];
    let offer = rig.ask(0, &Ask::discover(1).wants(&wanted).hostname("alpha"));
    let routes = [
        &[16, 10, 17, 192, 0, 2, 3][..],
        &[25, 10, 18, 19, 128, 192, 0, 2, 4],
        // Who takes these does not look at option 3 (RFC 3442).
        &[0, 192, 0, 2, 1],
    ];
    let microsoft = DhcpOption::Unknown(UnknownOption::new(249.into(), routes.concat()));
    let parsed = vec![
        ("10.17.0.0/16".parse().unwrap(), host(3)),
        ("10.18.19.128/25".parse().unwrap(), host(4)),
        ("0.0.0.0/0".parse().unwrap(), SERVER),
    ];
    for (code, option) in [
        (OptionCode::SubnetMask, DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0))),
        (OptionCode::Router, DhcpOption::Router(vec![SERVER])),
        (OptionCode::DomainNameServer, DhcpOption::DomainNameServer(vec![SERVER, host(2)])),
        (OptionCode::DomainName, DhcpOption::DomainName("guests.example".to_owned())),
        (OptionCode::InterfaceMtu, DhcpOption::InterfaceMtu(1400)),
        (OptionCode::BroadcastAddr, DhcpOption::BroadcastAddr(host(255))),
        (OptionCode::Hostname, DhcpOption::Hostname("alpha".to_owned())),
        (OptionCode::TFTPServerName, DhcpOption::TFTPServerName(b"192.0.2.5".to_vec())),
        (OptionCode::BootfileName, DhcpOption::BootfileName(b"boot/loader.efi".to_vec())),
        (OptionCode::ClasslessStaticRoute, DhcpOption::ClasslessStaticRoute(parsed)),
        (249.into(), microsoft),
    ] {
        assert_eq!(offer.option(code), Some(&option), "{code:?}");
    }
    assert_eq!(offer.message.siaddr(), host(5));
    assert_eq!(offer.message.fname(), Some(&b"boot/loader.efi\0"[..]));
    // Who asks for nothing gets what everybody needs; who asks for little, little.
    let plain = rig.ask(0, &Ask::discover(1));
    assert!(plain.option(OptionCode::Router).is_some() && plain.option(OptionCode::InterfaceMtu).is_none());
    let little = rig.ask(0, &Ask::discover(1).wants(&[6]));
    assert!(
        little.option(OptionCode::Router).is_none() && little.option(OptionCode::DomainNameServer).is_some()
    );
}

#[test]
fn a_network_without_router_has_none() {
    let mut rig = Rig::new(Config { router: None, routes: vec![], ..rich() });
    let offer = rig.ask(0, &Ask::discover(1).wants(&[3, 121, 249]));
    for code in [3, 121, 249] {
        assert_eq!(offer.option(code.into()), None);
    }
}

/// Option 57 is the longest IP packet; none is longer than the MTU, and 576 bytes are what everybody takes.
#[test]
fn messages_are_no_longer_than_the_client_takes() {
    let dns = (1..=32).map(host).collect();
    let routes = (0..32).map(|n| (format!("10.{n}.0.0/16").parse().unwrap(), host(3))).collect();
    let mut rig = Rig::new(Config { dns, routes, ..rich() });
    let wanted = Ask::discover(1).wants(&[121, 249, 6, 3, 15, 1]).id(&[9; 200]);
    for (size, max) in
        [(None, 576), (Some(10), 576), (Some(700), 700), (Some(1200), 1200), (Some(9000), 1400)]
    {
        let ask = match size {
            Some(size) => wanted.clone().with(DhcpOption::MaxMessageSize(size)),
            None => wanted.clone(),
        };
        let offer = rig.ask(0, &ask);
        assert!(offer.packet_len <= max, "{size:?}: {}", offer.packet_len);
        assert!(offer.secs(OptionCode::AddressLeaseTime).is_some(), "{size:?}: what matters most is there");
        let whole = offer.option(OptionCode::Router).is_some() && offer.option(249.into()).is_some();
        assert_eq!(whole, max >= 1200, "{size:?}");
    }
}

#[test]
fn a_shorter_lease_can_be_asked_for() {
    let mut rig = Rig::prompt(20);
    for (asked, given) in [(600, 600), (1, 120), (0, 120), (7200, 3600), (u32::MAX, 3600)] {
        let offer = rig.ask(0, &Ask::discover(1).with(DhcpOption::AddressLeaseTime(asked)));
        assert_eq!(offer.secs(OptionCode::AddressLeaseTime), Some(given), "{asked}");
    }
}

/// RFC 3046, 2.2.
#[test]
fn relay_agent_information_is_sent_back() {
    let mut rig = Rig::prompt(20);
    let mut info = RelayAgentInformation::default();
    info.insert(RelayInfo::AgentCircuitId(b"abc".to_vec()));
    info.insert(RelayInfo::SubscriberId(Vec::new()));
    let ask = Ask::discover(1).with(DhcpOption::RelayAgentInformation(info));
    let from = rig.ports[0];
    rig.server.receive(rig.now, rig.unix, from, &ask.frame(), &mut rig.out);
    let frame = rig.out.pop().unwrap().frame;
    let end =
        frame.windows(9).position(|w| w == [82, 7, 1, 3, b'a', b'b', b'c', 6, 0]).expect("as it came") + 9;
    assert_eq!(frame[end], 255, "behind everything else");
}

#[test]
fn names_are_labels_and_the_first_keeps_them() {
    for (said, name) in [
        (&b"alpha"[..], Some("alpha")),
        (b"My Laptop_1", Some("my-laptop-1")),
        (b"-a-.example.org", Some("a")),
        (b"..", None),
        (b"---", None),
        (b"\xff\xfe\x00", None),
        (b"a\nb$(c)", Some("abc")),
        (b"WPAD", None),
        (b"LocalHost.localdomain", None),
        (b"", None),
        (&[b'x'; 255], Some(&"x".repeat(63))),
    ] {
        assert_eq!(names::label(said).as_deref(), name, "{said:?}");
    }
    let mut rig = Rig::new(Config {
        names_kept: vec!["Gateway".to_owned()],
        ..Rig::prompt(20).server.config().clone()
    });
    for (port, n, name) in [(0, 1, "alpha"), (1, 2, "ALPHA"), (2, 3, "gateway")] {
        let ip = rig.ask(port, &Ask::discover(n).hostname(name)).ip();
        assert_eq!(rig.ask(port, &Ask::select(n, ip).hostname(name)).kind(), MessageType::Ack);
    }
    assert_eq!(rig.names(), [Some("alpha".to_owned()), None, None]);
    let now = rig.now;
    assert_eq!(rig.server.address_of(now, "Alpha"), Some(host(10)));
    assert_eq!(rig.server.name_of(now, host(10)), Some("alpha"));
    assert_eq!((rig.server.address_of(now, "gateway"), rig.server.name_of(now, host(12))), (None, None));
    // A name that is free again is the next one's who says it; one that is not said again stays.
    rig.is_silent(0, &Ask::release(1, host(10)));
    assert_eq!(rig.server.address_of(now, "alpha"), None);
    rig.pass(secs(1800));
    rig.events();
    rig.ask(1, &Ask::renew(2, host(11)).hostname("alpha"));
    assert_eq!(rig.server.address_of(rig.now, "alpha"), Some(host(11)));
    let port = rig.ports[1];
    assert_eq!(
        rig.events(),
        [LeaseEvent::Assigned { port, ip: host(11), mac: mac(2) }],
        "who serves names is told"
    );
    rig.pass(secs(1800));
    rig.ask(1, &Ask::renew(2, host(11)));
    assert_eq!(rig.server.address_of(rig.now, "alpha"), Some(host(11)));
    rig.restart(secs(10));
    assert_eq!(rig.server.address_of(rig.now, "alpha"), Some(host(11)), "names survive");
    rig.pass(secs(3600));
    assert_eq!(rig.server.address_of(rig.now, "alpha"), None, "and end with the lease");
}

#[test]
fn a_name_that_is_not_utf8_spoils_nothing() {
    let mut rig = Rig::prompt(20);
    let ask =
        Ask::discover(1).with(DhcpOption::Unknown(UnknownOption::new(12.into(), b"\xc3\x28ok".to_vec())));
    assert_eq!(rig.ask(0, &ask).option(OptionCode::Hostname), Some(&DhcpOption::Hostname("ok".to_owned())));
}

/// RFC 4702.
#[test]
fn qualified_names() {
    let mut rig = Rig::new(rich());
    let fqdn = |flags, name| {
        DhcpOption::ClientFQDN(ClientFQDN::new(FqdnFlags::new(flags), Name::from_ascii(name).unwrap()))
    };
    // E and S: in wire format, and the server makes the entry.
    let ask = Ask::discover(1).hostname("other").with(fqdn(0x05, "beta.elsewhere.example."));
    assert_eq!(rig.ask(0, &ask).option(OptionCode::ClientFQDN), Some(&fqdn(0x05, "beta.guests.example.")));
    // Not S: the server makes it all the same, and says so.
    let ask = Ask::discover(1).with(fqdn(0x04, "beta."));
    assert_eq!(rig.ask(0, &ask).option(OptionCode::ClientFQDN), Some(&fqdn(0x07, "beta.guests.example.")));
    // N: no entry.
    let ask = Ask::select(1, host(10)).with(fqdn(0x0c, "beta."));
    assert_eq!(rig.ask(0, &ask).kind(), MessageType::Ack);
    assert_eq!(rig.names(), [None]);
}

#[test]
fn reserved_addresses_are_their_owners() {
    let mut rig = Rig::prompt(12);
    let port = rig.ports[5];
    let reserve = |rig: &mut Rig, owner, ip, name: Option<&str>| {
        rig.server.reserve(Reservation { owner, ip, hostname: name.map(str::to_owned) })
    };
    // In the range and out of it, by address, by port, by both.
    reserve(&mut rig, Owner::Mac(mac(1)), host(10), Some("alpha")).unwrap();
    reserve(&mut rig, Owner::Port(port), host(100), None).unwrap();
    let other = rig.ports[6];
    reserve(&mut rig, Owner::PortMac(other, mac(2)), host(101), None).unwrap();
    assert_eq!(rig.acquire(0, 9), host(11), "10 is kept");
    assert_eq!(rig.acquire(3, 1), host(10));
    assert_eq!(rig.acquire(5, 77), host(100));
    assert_eq!(rig.acquire(6, 2), host(101));
    assert_eq!(rig.acquire(6, 3), host(12), "another guest behind the port");
    // Who only says in its message that it is the owner is not.
    let liar = Ask { source_mac: mac(8), ..Ask::discover(1) };
    rig.is_silent(1, &liar);
    assert_eq!(rig.server.counters().pool_exhausted, 1);
    assert_eq!(rig.ask(1, &Ask::select(8, host(10))).kind(), MessageType::Nak);
    assert_eq!(rig.server.address_of(rig.now, "alpha"), Some(host(10)));
    assert_eq!(rig.names()[0].as_deref(), Some("alpha"));
    // Another system boots at the port, with another identifier: the address is still the port's.
    let offer = rig.ask(5, &Ask::discover(78).id(b"second stage"));
    assert_eq!(offer.ip(), host(100));
    assert_eq!(rig.ask(5, &Ask::select(78, host(100)).id(b"second stage")).kind(), MessageType::Ack);
    // What cannot be reserved.
    let owner = Owner::Mac(mac(50));
    for ip in [SERVER, host(0), host(255), Ipv4Addr::new(10, 0, 0, 1)] {
        assert_eq!(reserve(&mut rig, owner, ip, None), Err(ReserveError::NotAClient(ip)));
    }
    assert_eq!(reserve(&mut rig, owner, host(10), None), Err(ReserveError::Taken(host(10))));
    for name in ["alpha", "no good", "", "-"] {
        let refused = reserve(&mut rig, owner, host(50), Some(name));
        assert_eq!(refused, Err(ReserveError::Name(name.to_owned())));
    }
    // Gone with their port.
    rig.server.port_removed(port);
    assert_eq!(rig.server.reservations().len(), 2);
    rig.server.assert_consistent();
}

#[test]
fn a_reservation_moves_a_client_when_it_renews() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    assert_eq!(rig.acquire(1, 2), host(11));
    let named = |name: &str, owner, ip| Reservation { owner, ip, hostname: Some(name.to_owned()) };
    rig.server.reserve(named("one", Owner::Mac(mac(1)), host(15))).unwrap();
    assert_eq!(rig.ask(0, &Ask::renew(1, host(10))).kind(), MessageType::Nak);
    assert_eq!(rig.acquire(0, 1), host(15));
    assert_eq!(rig.server.leases(rig.now).len(), 2, "the old address is given back");
    // Somebody else has the reserved address: it is not renewed, and until it ends the owner has another.
    rig.server.reserve(named("three", Owner::Mac(mac(3)), host(11))).unwrap();
    assert_eq!(rig.ask(2, &Ask::discover(3)).ip(), host(12));
    assert_eq!(rig.ask(1, &Ask::renew(2, host(11))).kind(), MessageType::Nak);
    rig.pass(secs(3601));
    assert_eq!(rig.acquire(2, 3), host(11));
    // The reservation is replaced, then taken back: the addresses are everybody's again.
    rig.server.reserve(named("one", Owner::Mac(mac(1)), host(16))).unwrap();
    assert!(rig.server.unreserve(Owner::Mac(mac(1))));
    assert!(!rig.server.unreserve(Owner::Mac(mac(1))));
    rig.server.assert_consistent();
    assert_eq!(rig.server.usage(), Usage { range: 11, free: 10, leased: 1, offered: 0, aside: 0 });
}

#[test]
fn a_reserved_name_is_taken_from_the_guest_that_has_it() {
    let mut rig = Rig::prompt(20);
    let ip = rig.ask(0, &Ask::discover(1).hostname("db")).ip();
    rig.ask(0, &Ask::select(1, ip).hostname("db"));
    let name = Some("db".to_owned());
    rig.server.reserve(Reservation { owner: Owner::Mac(mac(2)), ip: host(50), hostname: name }).unwrap();
    assert_eq!(rig.server.address_of(rig.now, "db"), Some(host(50)));
    assert_eq!(rig.names(), [None]);
    assert_eq!(rig.events().len(), 2, "assigned, and assigned without a name");
    rig.server.assert_consistent();
}

#[test]
fn a_loaded_lease_is_at_its_owners_port() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    rig.restart(secs(5));
    assert_eq!(rig.server.leases(rig.now)[0].port, None);
    let port = rig.ports[0];
    rig.server
        .reserve(Reservation { owner: Owner::PortMac(port, mac(1)), ip: host(10), hostname: None })
        .unwrap();
    assert_eq!(rig.events(), [LeaseEvent::Assigned { port, ip: host(10), mac: mac(1) }]);
    assert_eq!(rig.server.leases(rig.now)[0].port, Some(port));
}

#[test]
fn another_configuration() {
    let mut rig = Rig::prompt(20);
    assert_eq!(rig.acquire(0, 1), host(10));
    assert_eq!(rig.acquire(1, 2), host(11));
    rig.events();
    let new = Config { range: host(11)..=host(30), lease_secs: 600, ..rig.server.config().clone() };
    rig.server.reconfigure(new.clone()).unwrap();
    rig.server.assert_consistent();
    assert!(matches!(rig.events()[..], [LeaseEvent::Withdrawn { .. }]), "10 is outside now");
    assert_eq!(rig.ask(0, &Ask::renew(1, host(10))).kind(), MessageType::Nak);
    assert_eq!(rig.ask(1, &Ask::renew(2, host(11))).secs(OptionCode::AddressLeaseTime), Some(600));
    assert!(rig.server.reconfigure(Config { range: host(30)..=host(11), ..new }).is_err());
    assert_eq!(*rig.server.config().range.end(), host(30), "nothing changed");
    // The server moves to an address that was leased.
    let new = Config { server: host(11), router: None, ..rig.server.config().clone() };
    rig.server.reconfigure(new).unwrap();
    assert_eq!(rig.server.usage().leased, 0);
}

#[test]
fn configurations_that_are_none() {
    let base = || config(20);
    let wide = "10.0.0.0/8".parse().unwrap();
    let (a, b) = (Ipv4Addr::new(10, 0, 1, 0), Ipv4Addr::new(10, 2, 0, 0));
    let far = Ipv4Addr::new(10, 0, 0, 1);
    for (bad, why) in [
        (Config { range: host(20)..=host(10), ..base() }, "in the wrong order"),
        (Config { range: host(0)..=host(10), ..base() }, "the network's address"),
        (Config { range: host(10)..=host(255), ..base() }, "the broadcast address"),
        (Config { server: far, ..base() }, "the server is elsewhere"),
        (Config { router: Some(far), ..base() }, "the router is elsewhere"),
        (Config { server: far, router: None, subnet: wide, range: a..=b, ..base() }, "too many addresses"),
        (Config { lease_secs: 0, ..base() }, "no time"),
        (Config { lease_secs: u32::MAX, ..base() }, "for ever"),
        (Config { mtu: 500, ..base() }, "a small MTU"),
        (Config { router_mac: MacAddr::BROADCAST, ..base() }, "a group"),
        (Config { dns: vec![SERVER; 33], ..base() }, "many name servers"),
        (Config { boot_file: Some("x".repeat(128)), ..base() }, "a long name"),
        (Config { domain: Some("a..b".to_owned()), ..base() }, "an empty label"),
    ] {
        assert!(bad.check().is_err(), "{why}");
    }
    assert_eq!(rich().check(), Ok(()));
}
