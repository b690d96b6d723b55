//! What is not sound, not for this server, or too much.

use super::*;

#[test]
fn messages_are_discarded_as_section_16_says() {
    use MessageType as T;
    let another = || DhcpOption::ServerId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 0xaa]);
    let with = |kind, options: &[DhcpOption]| Send::new(kind, options.to_vec());
    let ia = na(1, &[own()]);
    let mut cases = vec![
        ("a solicit without client", with(T::Solicit, std::slice::from_ref(&ia))),
        ("a solicit to a server", with(T::Solicit, &[llt(MAC), this_server(), ia.clone()])),
        ("a confirm without client", with(T::Confirm, std::slice::from_ref(&ia))),
        ("a confirm to a server", with(T::Confirm, &[llt(MAC), this_server(), ia.clone()])),
        ("a rebind without client", with(T::Rebind, std::slice::from_ref(&ia))),
        ("a rebind to a server", with(T::Rebind, &[llt(MAC), this_server(), ia.clone()])),
        ("an information-request to another", with(T::InformationRequest, &[another()])),
        ("an information-request for an address", with(T::InformationRequest, &[llt(MAC), ia.clone()])),
        ("a client identifier too short", with(T::Solicit, &[DhcpOption::ClientId(vec![0, 4]), ia.clone()])),
        ("a client identifier too long", with(T::Solicit, &[DhcpOption::ClientId(vec![4; 131]), ia.clone()])),
        ("a solicit to the router", with(T::Solicit, &[llt(MAC), ia.clone()]).to(router())),
        ("a confirm to the router", with(T::Confirm, &[llt(MAC), ia.clone()]).to(router())),
        ("a rebind to the router", with(T::Rebind, &[llt(MAC), ia.clone()]).to(router())),
        ("an information-request to the router", with(T::InformationRequest, &[]).to(router())),
        ("a global source to all", Send { source: own(), ..with(T::Solicit, &[llt(MAC), ia.clone()]) }),
        ("no source", Send { source: Ipv6Addr::UNSPECIFIED, ..with(T::Solicit, &[llt(MAC), ia.clone()]) }),
        ("a group as the frame's source", Send { mac: MacAddr::BROADCAST, ..with(T::Solicit, &[llt(MAC)]) }),
        ("an option cut short", Send { more: vec![0, 8, 0, 2, 0], ..with(T::Solicit, &[llt(MAC)]) }),
        ("half an option", Send { more: vec![0, 8], ..with(T::Solicit, &[llt(MAC)]) }),
        ("an association cut short", Send { more: vec![0, 3, 0, 2, 0, 0], ..with(T::Solicit, &[llt(MAC)]) }),
        (
            "an address cut short",
            Send { more: vec![0, 4, 0, 9, 0, 0, 0, 1, 0, 5, 0, 1, 9], ..with(T::Solicit, &[llt(MAC)]) },
        ),
        ("a request list of odd length", Send { more: vec![0, 6, 0, 1, 0], ..with(T::Solicit, &[llt(MAC)]) }),
        (
            "too long a message",
            Send {
                more: [&[0, 99, 5, 0x78][..], &[0; 1400]].concat(),
                ..with(
                    T::Solicit,
                    &[
                        llt(MAC),
                        DhcpOption::UserClass(dhcproto::v6::UserClass { data: vec![] }),
                        DhcpOption::InterfaceId(vec![0; 90]),
                    ],
                )
            },
        ),
    ];
    for kind in [T::Request, T::Renew, T::Release, T::Decline] {
        cases.push(("without client", with(kind, &[this_server(), ia.clone()])));
        cases.push(("without server", with(kind, &[llt(MAC), ia.clone()])));
        cases.push(("to another server", with(kind, &[llt(MAC), another(), ia.clone()])));
    }
    let not_for_servers =
        [T::Advertise, T::Reply, T::Reconfigure, T::RelayRepl, T::LeaseQuery, T::Unknown(99)];
    for kind in not_for_servers {
        cases.push(("not for a server", with(kind, &[llt(MAC), this_server(), ia.clone()])));
    }
    // A relay's message has another shape; there are no relays on the link.
    cases.push(("a relayed message", with(T::RelayForw, &[llt(MAC)])));
    let count = cases.len() as u64;
    let mut server = server();
    for (what, send) in cases {
        let answer = ask(&mut server, 1, ports()[0], &send);
        assert!(answer.is_none(), "{what}, {:?}: {answer:?}", send.message.msg_type());
        server.budget.forget(ports()[0]);
    }
    assert_eq!((server.counters().discarded, server.counters().answered), (count, 0));
}

#[test]
fn a_bad_or_missing_checksum_is_discarded() {
    let mut server = server();
    for value in [[0, 0], [0x12, 0x34]] {
        let mut frame = Send::new(MessageType::InformationRequest, []).frame();
        frame[14 + 40 + 6..14 + 40 + 8].copy_from_slice(&value);
        let mut out = Outbox::default();
        assert_eq!(server.receive(at(1), ports()[0], &frame, &mut out), Handled::Yes);
        assert!(out.is_empty());
    }
    assert_eq!(server.counters().discarded, 2);
}

#[test]
fn options_that_trouble_the_codec_are_passed_over() {
    let mut server = server();
    // A status without its code, vendor options and a vendor class without their number, a rapid commit in them.
    for more in
        [&[0, 13, 0, 1, 0][..], &[0, 16, 0, 1, 0], &[0, 17, 0, 0], &[0, 11, 0, 3, 1, 2, 3], &[0, 7, 0, 0]]
    {
        let solicit = Send::new(MessageType::Solicit, [llt(MAC), na(5, &[])]);
        let answer = ask(&mut server, 1, ports()[0], &Send { more: more.to_vec(), ..solicit });
        assert_eq!(told(&answer.unwrap()), [given(5)], "{more:?}");
    }
    // Options within options within options: a message full of them.
    let mut nested = Vec::new();
    while nested.len() < 1300 {
        let len = (nested.len() + 12) as u16;
        nested = [&[0, 3][..], &len.to_be_bytes(), &[0; 12], &nested].concat();
    }
    let solicit = Send { more: nested, ..Send::new(MessageType::Solicit, [llt(MAC)]) };
    assert_eq!(told(&ask(&mut server, 1, ports()[0], &solicit).unwrap()), [given(0)]);
}

#[test]
fn clients_that_send_to_the_router_are_told_to_use_multicast() {
    use MessageType as T;
    let mut server = server();
    for kind in [T::Request, T::Renew, T::Release, T::Decline] {
        for (to, source) in [(router(), link_local(MAC)), (ip("fd00::1"), own())] {
            let send = Send::new(kind, [llt(MAC), this_server(), na(1, &[own()])]).to(to);
            let reply = ask(&mut server, 1, ports()[0], &Send { source, ..send }).unwrap();
            assert_eq!(status_of(reply.opts()), Some(Status::UseMulticast));
            assert_eq!(reply.opts().iter().count(), 3, "the identifiers and the status");
        }
    }
    assert!(server.bindings(at(1)).is_empty());
}

#[test]
fn what_is_for_others_is_left_to_them() {
    let mut server = server();
    let sound = Send::new(MessageType::InformationRequest, []);
    let mut other_port = sound.frame();
    other_port[14 + 40 + 3] ^= 1;
    let mut ipv4 = sound.frame();
    ipv4[12..14].copy_from_slice(&[8, 0]);
    for frame in [sound.clone().to(ip("fe80::99")).frame(), sound.to(ip("ff02::1")).frame(), other_port, ipv4]
    {
        let mut out = Outbox::default();
        assert_eq!(server.receive(at(1), ports()[0], &frame, &mut out), Handled::No);
        assert!(out.is_empty());
    }
    assert_eq!(server.counters(), Dhcp6Counters::default());
}

#[test]
fn a_port_is_answered_as_often_as_its_budget_allows() {
    let [a, b, _] = ports();
    let mut server = server();
    let send = Send::new(MessageType::InformationRequest, []);
    let answered = (0..100).filter(|_| ask(&mut server, 1, a, &send).is_some()).count();
    assert_eq!((answered as u32, server.counters().limited), (REPLIES_BURST, 80));
    assert!(ask(&mut server, 1, b, &send).is_some());
    assert!(ask(&mut server, 2, a, &send).is_some());
}

proptest! {
    /// No frame, however wrong, makes a panic; and what is answered is a sound reply to who asked.
    #[test]
    fn any_frame_is_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        changes in prop::collection::vec((0..200_usize, any::<u8>()), 0..4),
        cut in 0..200_usize,
    ) {
        let port = ports()[0];
        let mut server = server();
        let mut out = Outbox::default();
        server.receive(at(1), port, &bytes, &mut out);
        prop_assert!(out.is_empty());
        // Behind sound headers: anything, and a request with some bytes changed.
        let send = Send::new(MessageType::Request, [llt(MAC), this_server(), na(1, &[own()])]);
        let mut request = send.message.to_vec().unwrap();
        for (at, byte) in changes {
            if let Some(b) = request.get_mut(at) {
                *b = byte;
            }
        }
        request.truncate(cut.max(20));
        for payload in [&bytes[..], &request] {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(MAC.0, [0x33, 0x33, 0, 1, 0, 2])
                .ipv6(send.source.octets(), ALL_SERVERS.octets(), 1)
                .udp(546, 547)
                .write(&mut frame, payload)
                .unwrap();
            prop_assert_eq!(server.receive(at(1), port, &frame, &mut out), Handled::Yes);
        }
        while let Some(answer) = out.pop() {
            prop_assert_eq!(answer.to, Some(port));
            let packet = Received::read(&answer.frame).expect("a packet");
            prop_assert_eq!(packet.destination, send.source);
            let reply = Message::from_bytes(packet.checked_udp().expect("a datagram")).expect("a message");
            prop_assert_eq!(message::server_id(&reply), Some(&SERVER_DUID[..]));
        }
    }
}
