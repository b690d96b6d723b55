//! Headers built and read by etherparse and smoltcp, as oracles; tables of frames.

mod neighbours;
mod properties;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::err::packet::SliceError;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use super::arp::Arp;
use super::error::is_host;
use super::limit::Rate;
use super::*;
use crate::checksum::Sum;
use crate::head::Head;
use crate::ids::{MacAddr, PortId, Registry};
use crate::offload::OffloadSet;
use crate::testing::noise;
use crate::time::Instant;

const HERE: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const THERE: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("an IPv4 address")
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// What is in a packet to be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Echo,
}

/// A whole frame with complete checksums.
fn frame(source: IpAddr, destination: IpAddr, hop_limit: u8, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(HERE.0, THERE.0);
    let mut out = Vec::new();
    let six = source.is_ipv6();
    let packet = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ethernet.ipv4(s.octets(), d.octets(), hop_limit),
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), hop_limit),
        _ => panic!("two families"),
    };
    match kind {
        Kind::Tcp => packet.tcp(1000, 80, 7, 100).syn().write(&mut out, payload),
        Kind::Udp => packet.udp(1000, 53).write(&mut out, payload),
        Kind::Echo if six => packet.icmpv6_echo_request(77, 1).write(&mut out, payload),
        Kind::Echo => packet.icmpv4_echo_request(77, 1).write(&mut out, payload),
    }
    .expect("a frame");
    if !six {
        // etherparse sets DF.
        out[20] = 0;
        mend(&mut out);
    }
    out
}

/// Makes the IPv4 header checksum of an untagged frame right.
fn mend(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let mut sum = Sum::new();
    sum.add(&frame[14..end]);
    let right = sum.checksum();
    frame[24..26].copy_from_slice(&right.to_be_bytes());
}

fn head_of(frame: &[u8]) -> Head {
    let mut head = Head::new();
    head.begin(frame.len() as u32, 128).copy_from_slice(&frame[..frame.len().min(128)]);
    crate::check::frame(&mut head, OffloadSet::NONE).expect("a sound frame");
    head
}

/// Whether etherparse finds every checksum of a whole frame right. `Err` if it cannot read it.
fn checksums_hold(frame: &[u8]) -> Result<bool, SliceError> {
    let sliced = SlicedPacket::from_ethernet(frame)?;
    let (mut right, mut transport_sum) = (true, Sum::new());
    let length = match &sliced.net {
        Some(etherparse::NetSlice::Ipv4(packet)) => {
            let header = packet.header().to_header();
            right &= header.header_checksum == header.calc_header_checksum();
            let length = packet.payload().payload.len();
            transport_sum =
                Sum::pseudo_v4(header.source, header.destination, header.protocol.0, length as u16);
            length
        }
        Some(etherparse::NetSlice::Ipv6(packet)) => {
            let header = packet.header().to_header();
            let payload = packet.payload();
            let length = payload.payload.len();
            let number = payload.ip_number.0;
            transport_sum = Sum::pseudo_v6(header.source, header.destination, number, length as u32);
            length
        }
        _ => 0,
    };
    let bytes = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.slice().to_vec(),
        Some(TransportSlice::Udp(udp)) if udp.checksum() == 0 => return Ok(right),
        Some(TransportSlice::Udp(udp)) => udp.slice().to_vec(),
        Some(TransportSlice::Icmpv4(icmp)) => {
            transport_sum = Sum::new();
            icmp.slice().to_vec()
        }
        Some(TransportSlice::Icmpv6(icmp)) => icmp.slice().to_vec(),
        Some(TransportSlice::Igmp(_)) | None => return Ok(right),
    };
    assert_eq!(bytes.len(), length, "the transport is what IP carries");
    transport_sum.add(&bytes);
    Ok(right && transport_sum.fold() == 0xffff)
}

fn assert_sound(frame: &[u8]) {
    assert!(checksums_hold(frame).expect("a readable frame"), "{frame:02x?}");
}

#[test]
fn headers_are_read() {
    for kind in [Kind::Tcp, Kind::Udp, Kind::Echo] {
        for (source, destination) in [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8:1::2")] {
            let (source, destination) = (ip(source), ip(destination));
            let mut bytes = frame(source, destination, 9, kind, &noise(300));
            let len = bytes.len() - 14;
            bytes.resize(bytes.len() + 5, 0xaa);
            let packet = Packet::of_head(&head_of(&bytes)).expect("sound, and padded");
            assert_eq!(Packet::of_frame(&bytes), Ok(packet), "the same from the whole frame");
            assert_eq!((packet.source(), packet.destination()), (source, destination));
            assert_eq!((packet.hop_limit(), packet.len()), (9, len));
            assert_eq!(packet.transport_at(), 14 + if source.is_ipv6() { 40 } else { 20 });
            assert!(!packet.is_fragment() && !packet.has_options());
            match packet.transport() {
                Transport::Tcp { source: 1000, destination: 80, flags } => {
                    assert!(kind == Kind::Tcp && flags.syn() && !flags.ack());
                }
                Transport::Udp { source: 1000, destination: 53 } => assert_eq!(kind, Kind::Udp),
                Transport::Icmp { code: 0, id: 77, .. } => {
                    assert_eq!((kind, packet.icmp_id()), (Kind::Echo, Some(77)));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn malformed_headers_are_told() {
    let sound = frame(ip("192.0.2.1"), ip("198.51.100.7"), 64, Kind::Udp, &[1, 2, 3]);
    type Spoil = fn(&mut Vec<u8>);
    let table: [(&str, Spoil); 7] = [
        ("version", |f| f[14] = 0x65),
        ("header length", |f| f[14] = 0x44),
        ("a header longer than the packet", |f| f[14] = 0x4f),
        ("checksum", |f| f[24] ^= 1),
        ("a field without its checksum", |f| f[22] ^= 1),
        ("longer than the frame", |f| f[17] += 1),
        ("cut short", |f| f.truncate(30)),
    ];
    for (what, spoil) in table {
        let mut bytes = sound.clone();
        spoil(&mut bytes);
        assert_eq!(Packet::of_frame(&bytes), Err(NotParsed::Malformed), "{what}");
    }
    let sound = frame(ip("2001:db8::1"), ip("2001:db8::2"), 64, Kind::Udp, &[1, 2, 3]);
    let table: [(&str, Spoil); 3] = [
        ("version", |f| f[14] = 0x45),
        ("longer than the frame", |f| f[19] += 1),
        ("cut short", |f| f.truncate(50)),
    ];
    for (what, spoil) in table {
        let mut bytes = sound.clone();
        spoil(&mut bytes);
        assert_eq!(Packet::of_frame(&bytes), Err(NotParsed::Malformed), "{what}");
    }
    assert_eq!(
        Packet::of_frame(&Arp::announcement(HERE, v4("192.0.2.1")).to_frame(THERE)),
        Err(NotParsed::NotIp)
    );
}

/// An IPv6 frame whose extension headers are given, each with a next-header field of zero to be filled.
fn with_extensions(chain: &[(u8, Vec<u8>)], last: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (i, (_, bytes)) in chain.iter().enumerate() {
        let next = chain.get(i + 1).map_or(last, |(kind, _)| *kind);
        body.push(next);
        body.extend_from_slice(&bytes[1..]);
    }
    body.extend_from_slice(payload);
    let mut f = ethernet(THERE, HERE, ETHERTYPE_IPV6).to_vec();
    let [l0, l1] = (body.len() as u16).to_be_bytes();
    f.extend([0x60, 0, 0, 0, l0, l1, chain.first().map_or(last, |(kind, _)| *kind), 64]);
    f.extend(v6("2001:db8::1").octets());
    f.extend(v6("2001:db8::2").octets());
    f.extend(body);
    f
}

#[test]
fn extension_headers_are_followed_as_far_as_they_go() {
    let udp = [3, 232, 0, 53, 0, 8, 0, 0];
    let options = vec![0, 0, 1, 4, 0, 0, 0, 0];
    let long = vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let fragment = |word: u16| [&[0, 0][..], &word.to_be_bytes(), &[1, 2, 3, 4]].concat();
    let authentication = vec![0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9];
    let found = Transport::Udp { source: 1000, destination: 53 };
    let parse =
        |chain: &[(u8, Vec<u8>)]| Packet::of_frame(&with_extensions(chain, PROTO_UDP, &udp)).expect("sound");
    let p = parse(&[(0, options.clone()), (60, long), (51, authentication)]);
    assert_eq!((p.transport(), p.transport_at(), p.protocol()), (found, 54 + 8 + 16 + 16, PROTO_UDP));
    let p = parse(&[(44, fragment(1))]);
    assert_eq!((p.transport(), p.fragment_id(), p.is_fragment()), (found, 0x0102_0304, true));
    assert!(!p.is_later_fragment() && p.more_fragments());
    let p = parse(&[(44, fragment(16))]);
    assert_eq!((p.transport(), p.fragment_offset(), p.is_later_fragment()), (Transport::Other, 16, true));
    let p = parse(&[(44, fragment(0))]);
    assert_eq!((p.transport(), p.is_fragment()), (found, false), "an atomic fragment");
    let endless: Vec<_> = (0..packet::EXTENSIONS_MAX + 1).map(|_| (60, options.clone())).collect();
    assert_eq!(parse(&endless).transport(), Transport::Beyond);
    assert_eq!(parse(&endless[1..]).transport(), found);
    let beyond = vec![(60, vec![0, 200, 0, 0, 0, 0, 0, 0])];
    assert_eq!(parse(&beyond).transport(), Transport::Beyond, "its length goes beyond the packet");
    // The same in a head: what is in the tail is beyond.
    let mut padded = options.clone();
    padded[1] = 12;
    padded.resize(13 * 8, 0);
    let whole = with_extensions(&[(60, padded)], PROTO_UDP, &udp);
    assert_eq!(Packet::of_frame(&whole).map(|p| p.transport()), Ok(found));
    assert_eq!(Packet::of_head(&head_of(&whole)).map(|p| p.transport()), Ok(Transport::Beyond));
}

#[test]
fn what_cannot_be_changed_rightly_is_not_changed() {
    let bytes = frame(ip("192.0.2.1"), ip("198.51.100.7"), 64, Kind::Udp, &noise(40));
    let mut packet = Packet::of_frame(&bytes).expect("sound");
    let mut changed = bytes.clone();
    assert!(!packet.set_source(&mut changed, ip("2001:db8::1"), None), "another family");
    assert!(
        !packet.set_source(&mut changed[..37], ip("192.0.2.2"), Some(1)),
        "bytes that end before the checksum"
    );
    assert_eq!(changed, bytes);
    let echo = frame(ip("192.0.2.1"), ip("198.51.100.7"), 64, Kind::Echo, &[]);
    let about = error_frame(&echo, Cause::HostUnreachable, Origin { mac: THERE, address: ip("10.0.0.1") });
    let mut about = about.expect("an error");
    let mut packet = Packet::of_frame(&about).expect("sound");
    assert!(!packet.set_source(&mut about, ip("10.0.0.2"), Some(9)), "an ICMP error has no identifier");
    assert!(packet.set_source(&mut about, ip("10.0.0.2"), None));
    assert_sound(&about);
    // UDP without a checksum stays so; its zero hop limit cannot be less.
    let mut bytes = frame(ip("192.0.2.1"), ip("198.51.100.7"), 0, Kind::Udp, &noise(40));
    bytes[40..42].fill(0);
    let mut packet = Packet::of_frame(&bytes).expect("sound");
    assert!(packet.set_destination(&mut bytes, ip("10.0.0.2"), Some(9)));
    assert_eq!(bytes[40..42], [0, 0]);
    assert!(!packet.decrement_hop_limit(&mut bytes));
    assert_sound(&bytes);
}

#[test]
fn a_later_fragment_has_its_addresses_changed_and_nothing_else() {
    let whole = frame(ip("192.0.2.1"), ip("198.51.100.7"), 64, Kind::Udp, &noise(3000));
    let pieces = fragments(&whole, 1000).expect("fragments");
    let mut changed = Vec::new();
    for mut piece in pieces.clone() {
        let mut packet = Packet::of_frame(&piece).expect("sound");
        assert!(packet.set_source(&mut piece, ip("203.0.113.9"), Some(4242)));
        assert!(packet.decrement_hop_limit(&mut piece));
        changed.push(piece);
    }
    for (before, after) in pieces.iter().zip(&changed).skip(1) {
        assert_eq!(before[34..], after[34..], "the payload is as it was");
    }
    // Put together again, all checksums are right: the first fragment's update is the whole packet's.
    let mut whole = whole;
    let mut packet = Packet::of_frame(&whole).expect("sound");
    assert!(packet.set_source(&mut whole, ip("203.0.113.9"), Some(4242)));
    let payload: Vec<u8> = changed.iter().flat_map(|piece| piece[34..].to_vec()).collect();
    assert_eq!(payload, whole[34..]);
}

#[test]
fn quotes_are_changed_with_their_errors() {
    let origin = |address: &str| Origin { mac: THERE, address: ip(address) };
    for (kind, six) in
        [(Kind::Tcp, false), (Kind::Udp, false), (Kind::Echo, false), (Kind::Udp, true), (Kind::Echo, true)]
    {
        let (inside, outside, remote, router) = if six {
            ("fd00::5", "2001:db8::9", "2001:db8:1::2", "2001:db8::fe")
        } else {
            ("10.0.0.5", "203.0.113.9", "198.51.100.7", "198.51.100.1")
        };
        // What the outside saw, and the error about it.
        let sent = frame(ip(outside), ip(remote), 64, kind, &noise(200));
        let mut error = error_frame(&sent, Cause::HostUnreachable, origin(router)).expect("an error");
        let packet = Packet::of_frame(&error).expect("sound");
        let quote = packet.quoted(&error).expect("a quote");
        assert_eq!((quote.source(), quote.destination()), (ip(outside), ip(remote)));
        assert!(packet.edit_quote(&mut error, |quote, bytes| quote.set_source(bytes, ip(inside), Some(555))));
        assert_sound(&error);
        // What is quoted is now what the inside sent, checksum and all.
        let mut original = sent.clone();
        let mut p = Packet::of_frame(&original).expect("sound");
        assert!(p.set_source(&mut original, ip(inside), Some(555)));
        let at = packet.transport_at() + 8;
        assert_eq!(error[at..], original[14..][..error.len() - at]);
        // An error that quotes the least that it may.
        let mut short = error_frame(&sent, Cause::HostUnreachable, origin(router)).expect("an error");
        let ip_header = if six { 40 } else { 20 };
        short.truncate(at + ip_header + 8);
        let total = (short.len() - if six { 54 } else { 14 }) as u16;
        short[if six { 18 } else { 16 }..][..2].copy_from_slice(&total.to_be_bytes());
        if !six {
            mend(&mut short);
        }
        let packet = Packet::of_frame(&short).expect("sound");
        assert!(packet.edit_quote(&mut short, |quote, bytes| quote.set_source(bytes, ip(inside), Some(555))));
        assert_eq!(packet.quoted(&short).map(|q| q.source()), Some(ip(inside)));
    }
    let mut echo = frame(ip("192.0.2.1"), ip("198.51.100.7"), 64, Kind::Echo, &noise(60));
    let packet = Packet::of_frame(&echo).expect("sound");
    assert!(!packet.edit_quote(&mut echo, |_, _| true), "no error, no quote");
}

#[test]
fn errors_say_what_they_should() {
    let origin = |six: bool| Origin { mac: THERE, address: ip(if six { "fd00::1" } else { "10.0.0.1" }) };
    use Cause as C;
    // (cause, ICMP type and code, ICMPv6 type and code)
    let table = [
        (C::TimeExceeded, (11, 0), (3, 0)),
        (C::NetUnreachable, (3, 0), (1, 0)),
        (C::HostUnreachable, (3, 1), (1, 3)),
        (C::ProtocolUnreachable, (3, 2), (4, 1)),
        (C::PortUnreachable, (3, 3), (1, 4)),
        (C::Prohibited, (3, 13), (1, 1)),
        (C::TooBig { mtu: 1400 }, (3, 4), (2, 0)),
    ];
    for (cause, four, six) in table {
        for len in [0, 100, 1400] {
            let sent = frame(ip("10.0.0.5"), ip("198.51.100.7"), 1, Kind::Udp, &noise(len));
            let error = error_frame(&sent, cause, origin(false)).expect("an error");
            assert_sound(&error);
            assert_eq!((error[34], error[35]), four);
            assert_eq!(error[42..], sent[14..sent.len().min(14 + 548)]);
            assert_eq!((&error[..6], &error[6..12]), (&HERE.0[..], &THERE.0[..]));
            let sent = frame(ip("fd00::5"), ip("2001:db8::7"), 1, Kind::Udp, &noise(len));
            let error = error_frame(&sent, cause, origin(true)).expect("an error");
            assert_sound(&error);
            assert_eq!((error[54], error[55]), six);
            assert_eq!(error[62..], sent[14..sent.len().min(14 + 1232)]);
            match cause {
                C::TooBig { mtu } => assert_eq!(error[58..62], u32::from(mtu).to_be_bytes()),
                C::ProtocolUnreachable => assert_eq!(error[58..62], [0, 0, 0, 6]),
                _ => assert_eq!(error[58..62], [0; 4]),
            }
        }
    }
    let chained = with_extensions(&[(0, vec![0; 8]), (60, vec![0; 8])], 99, &[1; 8]);
    let error = error_frame(&chained, C::ProtocolUnreachable, origin(true)).expect("an error");
    assert_eq!(error[58..62], [0, 0, 0, 48], "the second header names the protocol");
}

#[test]
fn some_frames_get_no_error() {
    let four = Origin { mac: THERE, address: ip("10.0.0.1") };
    let six = Origin { mac: THERE, address: ip("fd00::1") };
    let ask = |f: &[u8], o: Origin| error_frame(f, Cause::TimeExceeded, o);
    let udp = |s: &str, d: &str| frame(ip(s), ip(d), 1, Kind::Udp, &[1; 8]);
    assert!(ask(&udp("10.0.0.5", "192.0.2.1"), four).is_some());
    for source in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"] {
        assert_eq!(ask(&udp(source, "192.0.2.1"), four), None, "from {source}");
        assert!(!is_host(ip(source)));
    }
    for destination in ["224.0.0.1", "239.1.2.3", "255.255.255.255"] {
        assert_eq!(ask(&udp("10.0.0.5", destination), four), None, "to {destination}");
    }
    for (source, destination) in
        [("::", "2001:db8::1"), ("::1", "2001:db8::1"), ("ff02::1", "2001:db8::1"), ("fd00::5", "ff02::1")]
    {
        assert_eq!(ask(&udp(source, destination), six), None, "{source} to {destination}");
    }
    let to_group = udp("fd00::5", "ff0e::1");
    assert!(error_frame(&to_group, Cause::TooBig { mtu: 1280 }, six).is_some(), "RFC 4443, 2.4 (e.3)");
    assert_eq!(ask(&udp("10.0.0.5", "192.0.2.1"), six), None, "an origin of the other family");
    let mut group = udp("10.0.0.5", "192.0.2.1");
    group[..6].fill(0xff);
    assert_eq!(ask(&group, four), None, "a broadcast of the link");
    let mut nobody = udp("10.0.0.5", "192.0.2.1");
    nobody[6] |= 1;
    assert_eq!(ask(&nobody, four), None, "from a group address of the link");
    for (f, origin) in [(udp("10.0.0.5", "192.0.2.1"), four), (udp("fd00::5", "2001:db8::1"), six)] {
        let mut error = ask(&f, origin).expect("an error");
        assert_eq!(ask(&error, origin), None, "about an error");
        let kind = if origin == four { 34 } else { 54 };
        error[kind] = if origin == four { 5 } else { 137 };
        assert_eq!(ask(&error, origin), None, "about a redirect");
        error[kind] = if origin == four { 99 } else { 100 };
        assert_eq!(ask(&error, origin), None, "about what is not known");
    }
    for kind in [Kind::Echo, Kind::Tcp] {
        assert!(ask(&frame(ip("10.0.0.5"), ip("192.0.2.1"), 1, kind, &[]), four).is_some());
        assert!(ask(&frame(ip("fd00::5"), ip("2001:db8::1"), 1, kind, &[]), six).is_some());
    }
    let pieces =
        fragments(&frame(ip("10.0.0.5"), ip("192.0.2.1"), 1, Kind::Udp, &noise(600)), 200).expect("pieces");
    assert!(ask(&pieces[0], four).is_some());
    assert!(pieces[1..].iter().all(|piece| ask(piece, four).is_none()), "later fragments");
    assert_eq!(ask(&[], four), None);
}

#[test]
fn errors_are_limited_in_all_and_for_each_port() {
    let mut registry = Registry::<PortId>::new(64);
    let ports: Vec<PortId> = (0..64).map(|_| registry.mint().expect("64 ports")).collect();
    let mut limit = ErrorLimit::new(Rate::new(100, 20), Rate::new(10, 5));
    let t = Instant::from_secs(5);
    let allowed = |limit: &mut ErrorLimit, at: Instant, port: PortId| {
        (0..1000).filter(|_| limit.allow(at, port)).count()
    };
    assert_eq!(allowed(&mut limit, t, ports[0]), 5, "a burst of one port");
    assert_eq!(allowed(&mut limit, t, ports[1]), 5, "another has its own");
    let rest: usize = ports[2..].iter().map(|&port| allowed(&mut limit, t, port)).sum();
    assert_eq!(rest, 10, "and all together have theirs");
    assert_eq!(limit.suppressed, 64_000 - 20);
    assert_eq!(allowed(&mut limit, t + Duration::from_millis(100), ports[0]), 1, "10 a second");
    let mut sent = 0;
    for ms in 0..2000 {
        sent += allowed(&mut limit, t + Duration::from_millis(1000 + ms), ports[3]);
    }
    assert_eq!(sent, 5 + 19, "a burst, and what two seconds bring");
    registry.retire(ports[3]);
    let reused = registry.mint().expect("a slot");
    assert_eq!(allowed(&mut limit, t + Duration::from_millis(3000), reused), 5, "a new port starts afresh");
}

#[test]
fn options_are_copied_into_fragments_as_they_say() {
    let mut whole = frame(ip("10.0.0.5"), ip("192.0.2.1"), 9, Kind::Udp, &noise(400));
    // No operation, record route (not copied), router alert (copied), end.
    let options = [1, 7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0, 0, 0, 0];
    whole.splice(34..34, options);
    whole[14] = 0x49;
    let total = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&total.to_be_bytes());
    whole[20..22].copy_from_slice(&[0, 0]);
    mend(&mut whole);
    let pieces = fragments(&whole, 200).expect("pieces");
    assert_eq!(pieces[0][14..16], [0x49, 0]);
    assert_eq!(pieces[0][34..50], options);
    for piece in &pieces[1..] {
        assert_eq!((piece[14], &piece[34..38]), (0x46, &options[8..12]));
        assert_sound(piece);
    }
    whole[20] = 0x40;
    mend(&mut whole);
    assert_eq!(fragments(&whole, 200), None, "DF");
    assert_eq!(fragments(&whole, 1500), Some(vec![whole]), "it fits");
}
