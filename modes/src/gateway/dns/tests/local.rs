//! What is answered here: names, reverse names, and what is no query.

use super::*;

/// What an answer says, for tables.
fn said(answer: &Message) -> String {
    let code = match answer.metadata.response_code {
        ResponseCode::NoError if answer.answers.is_empty() => "nodata".into(),
        ResponseCode::NoError => {
            answer.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" ")
        }
        ResponseCode::NXDomain => "nxdomain".into(),
        other => format!("{other:?}"),
    };
    match answer.authorities.first() {
        Some(soa) => format!("{code} @{}", soa.name),
        None => code,
    }
}

#[test]
fn names_that_never_leave() {
    use RecordType::{A, AAAA, ANY, HTTPS, MX, NS, PTR, SRV, TXT};
    let table = [
        ("gateway.", A, "192.168.122.1"),
        ("gateway.lan.example.", AAAA, "2001:41d0:1:2::1"),
        ("GaTeWaY.LAN.exAMPLE.", A, "192.168.122.1"),
        ("nas.", A, "192.168.122.10"),
        ("nas.lan.example.", ANY, "192.168.122.10 2001:41d0:1:2::10"),
        ("nas.lan.example.", MX, "nodata @lan.example."),
        ("nas.", HTTPS, "nodata @nas."),
        ("out.lan.example.", AAAA, "nodata @lan.example."),
        ("web.lan.example.", A, "192.168.122.100"),
        ("web.", AAAA, "2001:41d0:1:2::100"),
        ("git.example.org.", A, "192.168.122.11"),
        ("git.example.org.lan.example.", A, "192.168.122.11"),
        ("db.prod.lan.example.", A, "192.168.122.12"),
        ("db.prod.", A, "192.168.122.12"),
        ("prod.lan.example.", A, "nodata @lan.example."),
        ("other.prod.lan.example.", A, "nxdomain @lan.example."),
        ("nobody.lan.example.", A, "nxdomain @lan.example."),
        ("_ldap._tcp.lan.example.", SRV, "nxdomain @lan.example."),
        ("lan.example.", A, "nodata @lan.example."),
        ("lan.example.", NS, "lan.example."),
        ("nobody.", A, "nxdomain @."),
        ("nobody.", AAAA, "nxdomain @."),
        ("localhost.", A, "127.0.0.1"),
        ("a.b.LocalHost.", AAAA, "::1"),
        ("localhost.", TXT, "nodata @localhost."),
        ("x.invalid.", A, "nxdomain @invalid."),
        ("abcdef.onion.", A, "nxdomain @onion."),
        ("_dns.resolver.arpa.", RecordType::SVCB, "nodata @resolver.arpa."),
        // Who has an address.
        ("1.122.168.192.in-addr.arpa.", PTR, "gateway.lan.example."),
        ("10.122.168.192.in-addr.arpa.", PTR, "nas.lan.example."),
        ("11.122.168.192.in-addr.arpa.", PTR, "git.example.org."),
        ("12.122.168.192.in-addr.arpa.", PTR, "db.prod.lan.example."),
        ("100.122.168.192.IN-ADDR.arpa.", PTR, "web.lan.example."),
        ("9.9.9.9.in-addr.arpa.", PTR, "out.lan.example."),
        ("9.9.9.9.in-addr.arpa.", TXT, "nodata @9.9.9.9.in-addr.arpa."),
        (
            "0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.1.0.0.0.0.d.1.4.1.0.0.2.ip6.arpa.",
            PTR,
            "web.lan.example.",
        ),
        ("1.0.0.127.in-addr.arpa.", PTR, "localhost."),
        // Nobody has these, and nobody outside is told that they were asked for.
        ("77.122.168.192.in-addr.arpa.", PTR, "nxdomain @122.168.192.in-addr.arpa."),
        ("77.99.51.198.in-addr.arpa.", PTR, "nodata @77.99.51.198.in-addr.arpa."),
        ("122.168.192.in-addr.arpa.", NS, "122.168.192.in-addr.arpa."),
        ("b._dns-sd._udp.0.122.168.192.in-addr.arpa.", PTR, "nxdomain @122.168.192.in-addr.arpa."),
        ("168.192.in-addr.arpa.", PTR, "nodata @168.192.in-addr.arpa."),
        ("1.1.168.192.in-addr.arpa.", PTR, "nxdomain @168.192.in-addr.arpa."),
        ("1.2.3.10.in-addr.arpa.", PTR, "nxdomain @10.in-addr.arpa."),
        ("3.10.in-addr.arpa.", PTR, "nodata @10.in-addr.arpa."),
        ("1.0.31.172.in-addr.arpa.", PTR, "nxdomain @31.172.in-addr.arpa."),
        ("1.0.64.100.in-addr.arpa.", PTR, "nxdomain @64.100.in-addr.arpa."),
        ("1.254.169.in-addr.arpa.", PTR, "nodata @254.169.in-addr.arpa."),
        ("b.e.f.ip6.arpa.", PTR, "nodata @b.e.f.ip6.arpa."),
        ("1.0.d.f.ip6.arpa.", PTR, "nodata @d.f.ip6.arpa."),
        ("255.255.255.255.in-addr.arpa.", PTR, "nodata @255.255.255.255.in-addr.arpa."),
    ];
    let mut dns = dns();
    for (text, kind, expected) in table {
        // Spread, so that the rate limit has no part in it.
        let answer = ask(&mut dns, Instant::ORIGIN, text, kind);
        assert_eq!(said(&answer), expected, "{text} {kind}");
        assert_eq!(answer.metadata.id, 7);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        let question = &answer.queries[0];
        assert!(question.name().eq_case(&name(text)) && question.query_type() == kind);
        assert!(answer.answers.iter().all(|r| r.ttl > 0 && r.name.eq_case(&name(text))));
    }
    assert_eq!(dns.counters().local, table.len() as u64);
    assert_eq!(dns.counters().asked, 0);
}

#[test]
fn names_that_are_the_outsides() {
    use RecordType::{A, DS, NS, PTR, SOA};
    let table = [
        ("example.com.", A),
        ("example.org.", A),
        ("lan.example.com.", A),
        ("xlan.example.", A),
        ("com.", NS),
        ("com.", DS),
        (".", SOA),
        ("notlocalhost.example.com.", A),
        ("1.2.3.4.in-addr.arpa.", PTR),
        ("1.0.32.172.in-addr.arpa.", PTR),
        ("1.0.128.100.in-addr.arpa.", PTR),
        ("1.99.51.198.in-addr.arpa.", PTR),
        ("99.51.198.in-addr.arpa.", PTR),
        ("01.10.in-addr.arpa.x.org.", PTR),
        ("8.9.9.9.in-addr.arpa.", PTR),
        ("c.e.f.ip6.arpa.", PTR),
        ("in-addr.arpa.", NS),
    ];
    for (text, kind) in table {
        let mut dns = dns();
        dns.receive(Instant::ORIGIN, client(ports(1)[0], 50), &bytes(&query(7, text, kind)));
        let (_, question) = asked(&mut dns);
        assert_eq!(question.queries, query(0, text, kind).queries, "{text}");
    }
}

#[test]
fn without_forwarding_only_local_names_are_answered() {
    let mut dns = Dns::new(Settings { forwarding: false, ..settings() }, zone());
    assert_eq!(said(&ask(&mut dns, secs(0), "web.", RecordType::A)), "192.168.122.100");
    assert_eq!(said(&ask(&mut dns, secs(0), "example.com.", RecordType::A)), "Refused");
    assert_eq!(dns.counters().refused, 1);
}

#[test]
fn without_a_domain_names_are_single_labels() {
    let mut zone = Zone::new(None, vec![ip("10.0.0.1")], Vec::new()).expect("a zone");
    assert!(zone.add_lease(&lease(1, "Web", "10.0.0.5")));
    let mut dns = Dns::new(settings(), zone);
    assert_eq!(said(&ask(&mut dns, secs(0), "web.", RecordType::A)), "10.0.0.5");
    assert_eq!(said(&ask(&mut dns, secs(0), "5.0.0.10.in-addr.arpa.", RecordType::PTR)), "web.");
    assert_eq!(said(&ask(&mut dns, secs(0), "1.0.0.10.in-addr.arpa.", RecordType::PTR)), "gateway.");
    assert_eq!(said(&ask(&mut dns, secs(0), "nobody.", RecordType::A)), "nxdomain @.");
}

#[test]
fn a_lease_takes_no_name_that_is_anothers() {
    let mut dns = dns();
    let zone = dns.zone_mut();
    for reserved in
        ["gateway", "localhost", "wpad", "WPAD", "isatap", "a.b", "lan.example", "-x", "x y", "", "é"]
    {
        assert!(!zone.add_lease(&lease(9, reserved, "192.168.122.200")), "{reserved:?}");
    }
    // A configured name stands, and so does who came first.
    assert!(!zone.add_lease(&lease(9, "nas", "192.168.122.201")));
    assert!(!zone.add_lease(&lease(9, "web", "192.168.122.202")));
    assert!(zone.add_lease(&lease(9, "mail.lan.example", "192.168.122.203")));
    let mut ask = |text: &str, kind| said(&super::ask(&mut dns, secs(0), text, kind));
    assert_eq!(ask("gateway.", RecordType::A), "192.168.122.1");
    assert_eq!(ask("nas.", RecordType::A), "192.168.122.10");
    assert_eq!(ask("web.", RecordType::A), "192.168.122.100");
    assert_eq!(ask("mail.", RecordType::A), "192.168.122.203");
    for host in [200, 201, 202] {
        let reverse = format!("{host}.122.168.192.in-addr.arpa.");
        assert_eq!(ask(&reverse, RecordType::PTR), "nxdomain @122.168.192.in-addr.arpa.");
    }
    // The name is free when the last of its owner's addresses is.
    dns.zone_mut().remove_lease(ip("192.168.122.100"));
    assert_eq!(said(&super::ask(&mut dns, secs(0), "web.", RecordType::A)), "nodata @web.");
    dns.zone_mut().remove_lease(ip("2001:41d0:1:2::100"));
    assert_eq!(said(&super::ask(&mut dns, secs(0), "web.", RecordType::A)), "192.168.122.202");
    dns.zone_mut().clear_leases();
    assert_eq!(said(&super::ask(&mut dns, secs(0), "web.", RecordType::A)), "nxdomain @.");
}

#[test]
fn names_that_no_host_has_are_refused() {
    for bad in ["", "a..b", "-a", "a-", "a b", "a/b", &"x".repeat(64), &["x"; 130].join(".")] {
        assert_eq!(Zone::new(Some(bad), Vec::new(), Vec::new()).err(), Some(BadName(bad.into())), "{bad:?}");
        assert_eq!(zone().add_host(bad, &[]), Err(BadName(bad.into())), "{bad:?}");
    }
    assert!(zone().add_host("lan.example", &[]).is_err(), "the domain itself");
}

#[test]
fn what_is_no_query_gets_an_error_or_nothing() {
    let good = bytes(&query(0x0102, "web.", RecordType::A));
    let change = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    let kind = |kind| bytes(&query(0x0102, "web.", kind));
    let mut chaos = query(0x0102, "version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut version = query(0x0102, "web.", RecordType::A);
    version.edns = Some(Edns::new());
    version.edns.as_mut().expect("EDNS").set_version(1);
    let long = [good.clone(), vec![0; QUERY_MAX]].concat();
    let table: [(&str, Vec<u8>, Option<ResponseCode>); 17] = [
        ("nothing", vec![], None),
        ("half a header", good[..11].to_vec(), None),
        ("a response", change(2, 0x81), None),
        ("a response with an error in it", change(2, 0x81)[..13].to_vec(), None),
        ("only a header", good[..12].to_vec(), Some(ResponseCode::FormErr)),
        ("half a question", good[..good.len() - 1].to_vec(), Some(ResponseCode::FormErr)),
        ("no question", change(5, 0), Some(ResponseCode::FormErr)),
        ("two questions", change(5, 2), Some(ResponseCode::FormErr)),
        ("65,535 questions", change(4, 255), Some(ResponseCode::FormErr)),
        ("an answer", change(7, 1), Some(ResponseCode::FormErr)),
        ("a pointer to itself", change(12, 0xc0), Some(ResponseCode::FormErr)),
        ("too long", long, Some(ResponseCode::FormErr)),
        ("an update", change(2, 0x28), Some(ResponseCode::NotImp)),
        ("a transfer", kind(RecordType::AXFR), Some(ResponseCode::Refused)),
        ("OPT asked for", kind(RecordType::OPT), Some(ResponseCode::FormErr)),
        ("another class", bytes(&chaos), Some(ResponseCode::Refused)),
        ("another EDNS", bytes(&version), Some(ResponseCode::BADVERS)),
    ];
    for (what, message, expected) in table {
        let mut dns = dns();
        dns.receive(secs(0), client(ports(1)[0], 50), &message);
        match expected {
            None => assert_eq!((actions(&mut dns), dns.counters().ignored), (vec![], 1), "{what}"),
            Some(code) => {
                let answer = answer(&mut dns);
                // 16 has two names.
                assert_eq!(u16::from(answer.metadata.response_code), u16::from(code), "{what}");
                assert_eq!((answer.metadata.id, dns.counters().malformed), (0x0102, 1), "{what}");
            }
        }
    }
}

#[test]
fn only_clients_are_answered() {
    let clients = vec!["192.168.122.0/24".parse().expect("a network")];
    let mut dns = Dns::new(Settings { clients, ..settings() }, zone());
    let table = [
        ("192.168.122.50:1", true),
        ("[fe80::1]:53", true),
        ("192.168.122.50:0", false),
        ("192.168.123.50:1", false),
        ("8.8.8.8:53", false),
        ("[2001:db8::1]:53", false),
        ("0.0.0.0:1", false),
        ("127.0.0.1:1", false),
        ("[::1]:1", false),
        ("224.0.0.1:1", false),
        ("255.255.255.255:1", false),
    ];
    for (address, answered) in table {
        let address = address.parse().expect("an address");
        let client = Client { address, ..client(ports(1)[0], 50) };
        dns.receive(secs(0), client, &bytes(&query(1, "web.", RecordType::A)));
        let actions = actions(&mut dns);
        assert_eq!(actions.len(), usize::from(answered), "{address}");
        assert!(actions.iter().all(|action| matches!(action, Action::Answer { to, .. } if *to == client)));
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let mut dns = dns();
    let mut message = query(1, "web.", RecordType::A);
    dns.receive(secs(0), client(ports(1)[0], 50), &bytes(&message));
    assert_eq!(answer(&mut dns).edns, None);
    let mut edns = Edns::new();
    edns.set_dnssec_ok(true).set_max_payload(4096);
    message.edns = Some(edns);
    dns.receive(secs(0), client(ports(1)[0], 50), &bytes(&message));
    let edns = answer(&mut dns).edns.expect("EDNS");
    assert!(edns.flags().dnssec_ok && usize::from(edns.max_payload()) == UDP_MAX);
}
