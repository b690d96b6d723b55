//! The station against a guest whose stack is smoltcp's as well, but on the other side: what the one sends, the other
//! must take.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpCidr,
};
use switch_core::ids::Registry;

use super::dns::{self, Dns};
use super::*;
use crate::gateway::dns::{Limits, Zone};
use switch_core::{Instant, MacAddr, PortId};

const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

#[derive(Default)]
struct Wire {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let done = f(&mut frame);
        self.0.push_back(frame);
        done
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;
    fn receive(&mut self, _: SmolInstant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Rx(frame), Tx(&mut self.tx)))
    }
    fn transmit(&mut self, _: SmolInstant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = 1514;
        c
    }
}

/// A gateway and one guest on a wire, under one clock.
struct Rig {
    gateway: Gateway,
    port: PortId,
    wire: Wire,
    guest: Interface,
    sockets: SocketSet<'static>,
    now: Instant,
    /// Frames of the gateway that did not go to the guest's port.
    elsewhere: usize,
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros((now.as_nanos() / 1000) as i64)
}

impl Rig {
    fn new(answers: bool, dns: bool) -> Self {
        let clock = Clock::default();
        let settings = Settings {
            mac: ROUTER,
            address4: Some([10, 0, 0, 1].into()),
            address6: Some("fd00::1".parse().unwrap()),
            mtu: 1500,
            answers,
            links: Links::Shared,
            seed: 7,
        };
        let dns = dns.then(|| {
            let subnets = vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
            let own = vec!["10.0.0.1".parse().unwrap()];
            let mut zone = Zone::new(Some("lan"), own, subnets.clone()).unwrap();
            zone.add_host("printer", &["10.0.0.5".parse().unwrap()]).unwrap();
            Dns::new(dns::Settings { forwarding: true, clients: subnets, limits: Limits::default() }, zone)
        });
        let gateway = Gateway::new(clock, settings, Services { dns, ..Services::default() }, None);
        let mut wire = Wire::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST.0)));
        let mut guest = Interface::new(config, &mut wire, smol(clock.now));
        guest.update_ip_addrs(|list| {
            list.push(IpCidr::new("10.0.0.2".parse::<IpAddr>().unwrap().into(), 24)).unwrap();
            list.push(IpCidr::new("fd00::2".parse::<IpAddr>().unwrap().into(), 64)).unwrap();
            list.push(IpCidr::new("fe80::ff:fe00:2".parse::<IpAddr>().unwrap().into(), 64)).unwrap();
        });
        let port = Registry::<PortId>::new(4).mint().unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self { gateway, port, wire, guest, sockets, now: clock.now, elsewhere: 0 }
    }

    fn clock(&self) -> Clock {
        Clock { now: self.now, unix_s: 1_000_000 }
    }

    /// Lets both sides work for that long.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(1);
            self.guest.poll(smol(self.now), &mut self.wire, &mut self.sockets);
            let clock = self.clock();
            while let Some(frame) = self.wire.tx.pop_front() {
                self.gateway.receive(clock, self.port, &frame);
            }
            self.gateway.poll(clock);
            while let Some(outgoing) = self.gateway.next_frame() {
                match outgoing.to {
                    Some(port) if port == self.port => self.wire.rx.push_back(outgoing.frame),
                    Some(_) => self.elsewhere += 1,
                    None => self.wire.rx.push_back(outgoing.frame),
                }
            }
        }
    }

    fn ping(&mut self, to: IpAddr) -> bool {
        let mut socket = icmp::Socket::new(
            icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 256]),
            icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 256]),
        );
        socket.bind(icmp::Endpoint::Ident(9)).unwrap();
        match to {
            IpAddr::V4(_) => {
                let echo = Icmpv4Repr::EchoRequest { ident: 9, seq_no: 1, data: b"are you there" };
                let payload = socket.send(echo.buffer_len(), to.into()).unwrap();
                echo.emit(&mut Icmpv4Packet::new_unchecked(payload), &ChecksumCapabilities::default());
            }
            IpAddr::V6(six) => {
                let echo = Icmpv6Repr::EchoRequest { ident: 9, seq_no: 1, data: b"are you there" };
                let payload = socket.send(echo.buffer_len(), to.into()).unwrap();
                let link_local = six.segments()[0] == 0xfe80;
                let from = if link_local { "fe80::ff:fe00:2" } else { "fd00::2" }.parse().unwrap();
                let mut packet = Icmpv6Packet::new_unchecked(payload);
                echo.emit(&from, &six, &mut packet, &ChecksumCapabilities::default());
            }
        }
        let handle = self.sockets.add(socket);
        self.run(Duration::from_millis(2500));
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let answered = socket.can_recv() && socket.recv().unwrap().1 == to.into();
        self.sockets.remove(handle);
        answered
    }

    fn connect(&mut self, from: u16) -> smoltcp::iface::SocketHandle {
        let mut socket =
            tcp::Socket::new(tcp::SocketBuffer::new(vec![0; 8192]), tcp::SocketBuffer::new(vec![0; 8192]));
        let to: SocketAddr = "10.0.0.1:53".parse().unwrap();
        socket.connect(self.guest.context(), to, from).unwrap();
        self.sockets.add(socket)
    }

    fn tcp(&mut self, handle: smoltcp::iface::SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

/// A query for an A record.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = vec![(id >> 8) as u8, id as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

#[test]
fn echo_is_answered_at_every_address() {
    let mut rig = Rig::new(true, false);
    for to in ["10.0.0.1", "fd00::1", "fe80::ff:fe00:1"] {
        assert!(rig.ping(to.parse().unwrap()), "{to}");
    }
    assert!(!rig.ping("10.0.0.9".parse().unwrap()), "nobody is there");
    assert_eq!(rig.elsewhere, 0);
}

/// An echo request, and where it is answered.
fn echo(from: MacAddr, source: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.0, ROUTER.0)
        .ipv4(source, [10, 0, 0, 1], 64)
        .icmpv4_echo_request(9, 1)
        .write(&mut frame, b"are you there")
        .unwrap();
    frame
}

impl Rig {
    /// Where, and to whom, the gateway sends IP packets now.
    fn answers(&mut self) -> Vec<(Option<PortId>, [u8; 4])> {
        self.gateway.poll(self.clock());
        std::iter::from_fn(|| self.gateway.next_frame())
            .filter(|outgoing| outgoing.frame[12..14] == [8, 0])
            .map(|outgoing| (outgoing.to, *outgoing.frame[30..].first_chunk().unwrap()))
            .collect()
    }
}

#[test]
fn guests_with_one_mac_address_on_two_links_get_their_own_answers() {
    let mut rig = Rig::new(true, false);
    let mut registry = Registry::<PortId>::new(4);
    let (a, b) = (registry.mint().unwrap(), registry.mint().unwrap());
    rig.gateway.receive(rig.clock(), a, &echo(GUEST, [10, 0, 0, 2]));
    rig.gateway.receive(rig.clock(), b, &echo(GUEST, [10, 0, 0, 3]));
    assert_eq!(rig.answers(), [(Some(a), [10, 0, 0, 2]), (Some(b), [10, 0, 0, 3])]);
    // Nor is what was said to one that is heard elsewhere a moment later sent there.
    rig.gateway.receive(rig.clock(), a, &echo(GUEST, [10, 0, 0, 2]));
    rig.gateway.receive(rig.clock(), b, &echo(GUEST, [10, 0, 0, 2]));
    assert_eq!(rig.answers(), [(Some(a), [10, 0, 0, 2]), (Some(b), [10, 0, 0, 2])]);
}

#[test]
fn a_guest_that_invents_senders_keeps_nobody_else_from_answers() {
    let mut rig = Rig::new(true, true);
    let other = Registry::<PortId>::new(4).mint().unwrap();
    for n in 0..6000_u16 {
        let [x, y] = n.to_be_bytes();
        rig.gateway.receive(rig.clock(), other, &echo(MacAddr([2, 9, 9, 9, x, y]), [10, 0, 100 + x, y]));
        if n % 16 == 0 {
            assert!(!rig.answers().is_empty());
        }
    }
    let tcp = rig.connect(4000);
    rig.run(Duration::from_millis(300));
    assert!(rig.tcp(tcp).may_send(), "a connection to the name service");
    assert!(rig.ping("10.0.0.1".parse().unwrap()));
}

#[test]
fn who_asks_where_the_gateway_is_hears_that_it_is_a_router() {
    use switch_core::ip::nd::{Message, Neighbor};

    let mut rig = Rig::new(true, false);
    let guest = "fe80::ff:fe00:2".parse().unwrap();
    for target in [link_local(ROUTER), "fd00::1".parse().unwrap()] {
        let question = Neighbor::solicitation(GUEST, guest, target);
        rig.gateway.receive(rig.clock(), rig.port, &question.to_frame(ROUTER, GUEST));
        rig.gateway.poll(rig.clock());
        let answer = std::iter::from_fn(|| rig.gateway.next_frame())
            .find_map(|outgoing| Neighbor::of_frame(&outgoing.frame))
            .unwrap();
        assert_eq!((answer.target, answer.destination, answer.link), (target, guest, Some(ROUTER)));
        assert!(matches!(answer.message, Message::Advertisement { router: true, solicited: true, .. }));
    }
}

#[test]
fn where_the_host_answers_the_gateway_does_not() {
    let mut rig = Rig::new(false, true);
    assert!(!rig.ping("10.0.0.1".parse().unwrap()));
}

#[test]
fn a_name_is_answered_in_a_datagram_to_the_port_that_asked() {
    let mut rig = Rig::new(true, true);
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 2048]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(4000).unwrap();
    socket.send_slice(&query(7, "printer.lan"), "10.0.0.1:53".parse::<SocketAddr>().unwrap()).unwrap();
    let handle = rig.sockets.add(socket);
    rig.run(Duration::from_millis(50));
    let (answer, from) = rig.sockets.get_mut::<udp::Socket<'_>>(handle).recv().expect("an answer");
    assert_eq!(from.endpoint, "10.0.0.1:53".parse::<SocketAddr>().unwrap().into());
    assert_eq!(answer[..2], [0, 7]);
    assert_eq!(answer[answer.len() - 4..], [10, 0, 0, 5]);
}

#[test]
fn questions_over_tcp_are_answered_one_connection_for_several() {
    let mut rig = Rig::new(true, true);
    let handle = rig.connect(5000);
    rig.run(Duration::from_millis(20));
    // The first in two parts, the second and third at once.
    let first = framed(&query(1, "printer.lan"));
    rig.tcp(handle).send_slice(&first[..5]).unwrap();
    rig.run(Duration::from_millis(20));
    rig.tcp(handle).send_slice(&first[5..]).unwrap();
    let rest = [framed(&query(2, "printer")), framed(&query(3, "nobody.lan"))].concat();
    rig.tcp(handle).send_slice(&rest).unwrap();
    rig.run(Duration::from_millis(50));
    let mut got = vec![0; 4096];
    let n = rig.tcp(handle).recv_slice(&mut got).unwrap();
    let mut answers = Vec::new();
    let mut rest = &got[..n];
    while let [high, low, after @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        answers.push(after[..len].to_vec());
        rest = &after[len..];
    }
    assert_eq!(answers.iter().map(|a| a[1]).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(answers[0].ends_with(&[10, 0, 0, 5]) && answers[1].ends_with(&[10, 0, 0, 5]));
    assert_eq!(answers[2][3] & 0xf, 3, "NXDOMAIN");
    // The guest closes; the slot is there for the next.
    rig.tcp(handle).close();
    rig.run(Duration::from_millis(100));
    let again = rig.connect(5001);
    rig.run(Duration::from_millis(20));
    assert!(rig.tcp(again).may_send());
}

#[test]
fn the_outside_is_asked_and_its_answer_goes_back() {
    let mut rig = Rig::new(true, true);
    let handle = rig.connect(5000);
    rig.run(Duration::from_millis(20));
    rig.tcp(handle).send_slice(&framed(&query(9, "example.org"))).unwrap();
    rig.run(Duration::from_millis(20));
    let question = rig.gateway.question().expect("the outside is asked");
    assert!(rig.gateway.question().is_none());
    let clock = rig.clock();
    rig.gateway.answered(clock, question.id, None);
    rig.run(Duration::from_millis(20));
    let mut got = vec![0; 512];
    let n = rig.tcp(handle).recv_slice(&mut got).unwrap();
    assert_eq!((got[3], got[5] & 0xf), (9, 2), "SERVFAIL, {n} bytes");
}

#[test]
fn a_port_has_its_share_of_connections_and_silent_ones_end() {
    let mut rig = Rig::new(true, true);
    let handles: Vec<_> = (0..8).map(|i| rig.connect(6000 + i)).collect();
    rig.run(Duration::from_millis(200));
    let open =
        |rig: &mut Rig| handles.iter().filter(|&&h| rig.tcp(h).state() == tcp::State::Established).count();
    assert_eq!(open(&mut rig), 4);
    rig.run(Duration::from_secs(11));
    assert_eq!(open(&mut rig), 0, "nobody said anything for ten seconds");
}

#[test]
fn a_question_without_end_costs_its_connection_only() {
    let mut rig = Rig::new(true, true);
    let handle = rig.connect(5000);
    rig.run(Duration::from_millis(20));
    rig.tcp(handle).send_slice(&[0xff; 100]).unwrap();
    rig.run(Duration::from_millis(100));
    assert_ne!(rig.tcp(handle).state(), tcp::State::Established);
}

#[test]
fn frames_for_others_and_noise_are_nobodys() {
    let mut rig = Rig::new(true, true);
    let clock = rig.clock();
    let mut seed = 1u64;
    for len in 0..300usize {
        let noise: Vec<u8> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        rig.gateway.receive(clock, rig.port, &noise);
    }
    rig.gateway.poll(clock);
    assert_eq!(rig.gateway.next_frame(), None);
    assert!(rig.ping("10.0.0.1".parse().unwrap()), "it still answers");
}

#[test]
fn a_group_on_links_of_their_own_is_told_on_each() {
    let mut ports = Registry::<PortId>::new(4);
    let guests = [ports.mint().unwrap(), ports.mint().unwrap(), ports.mint().unwrap()];
    for links in [Links::Shared, Links::EachPort] {
        let settings = Settings {
            mac: ROUTER,
            address4: None,
            address6: Some("fd00::1".parse().unwrap()),
            mtu: 1500,
            answers: true,
            links,
            seed: 7,
        };
        let config = ra::RaConfig::new(ROUTER, link_local(ROUTER));
        let ra = ra::Advertiser::new(Instant::ORIGIN, config, 3).unwrap();
        let services = Services { ra: Some(ra), ..Services::default() };
        let mut gateway = Gateway::new(Clock::default(), settings, services, None);
        guests.iter().for_each(|&port| gateway.guest_added(port));
        gateway.port_removed(guests[1]);
        gateway.poll(Clock { now: Instant::from_secs(20), unix_s: 0 });
        let advertised: Vec<Option<PortId>> = std::iter::from_fn(|| gateway.next_frame())
            .filter(|outgoing| outgoing.frame.get(..2) == Some(&[0x33, 0x33]))
            .filter(|outgoing| outgoing.frame.get(54) == Some(&134))
            .map(|outgoing| outgoing.to)
            .collect();
        match links {
            Links::Shared => assert_eq!(advertised, [None]),
            Links::EachPort => assert_eq!(advertised, [Some(guests[0]), Some(guests[2])]),
        }
    }
}

#[test]
fn guests_whose_leases_are_older_than_the_gateway_are_asked_for_on_each_link() {
    use crate::gateway::leases::{Change, ClientKey, LeaseStore, MemoryStore, Record};
    let mut ports = Registry::<PortId>::new(4);
    let guests = [ports.mint().unwrap(), ports.mint().unwrap()];
    let (server, lost) = (std::net::Ipv4Addr::new(10, 0, 0, 1), std::net::Ipv4Addr::new(10, 0, 0, 20));
    let mut store = MemoryStore::default();
    let record = Record {
        ip: lost,
        mac: GUEST,
        client: ClientKey::ethernet(GUEST),
        hostname: None,
        expires_unix: 5000,
        lease_secs: 3600,
    };
    store.write(Change::Set(&record)).unwrap();
    let range = std::net::Ipv4Addr::new(10, 0, 0, 10)..=std::net::Ipv4Addr::new(10, 0, 0, 99);
    let config = dhcp4::Config::new(server, ROUTER, "10.0.0.0/24".parse().unwrap(), range);
    let dhcp4 = dhcp4::Server::new(config, Box::new(store), Instant::ORIGIN, 4000).unwrap();
    let settings = Settings {
        mac: ROUTER,
        address4: Some(server),
        address6: None,
        mtu: 1500,
        answers: true,
        links: Links::EachPort,
        seed: 7,
    };
    let services = Services { dhcp4: Some(dhcp4), ..Services::default() };
    let mut gateway = Gateway::new(Clock::default(), settings, services, None);
    guests.iter().for_each(|&port| gateway.guest_added(port));
    let asked = |gateway: &mut Gateway, ms: u64| -> Vec<Option<PortId>> {
        gateway.poll(Clock { now: Instant::from_nanos(ms * 1_000_000), unix_s: 4000 });
        std::iter::from_fn(|| gateway.next_frame())
            .filter(|o| o.frame.get(12..14) == Some(&[8, 6]) && o.frame.get(20..22) == Some(&[0, 1]))
            .map(|o| o.to)
            .collect()
    };
    assert_eq!(asked(&mut gateway, 1), guests.map(Some));
    assert!(asked(&mut gateway, 100).is_empty(), "not before the next round");
    assert_eq!(asked(&mut gateway, 300), guests.map(Some));
    // It answers, behind the second port.
    let answer = switch_core::ip::arp::Arp::request(GUEST, lost, server).to_frame(ROUTER);
    gateway.receive(Clock { now: Instant::from_nanos(400_000_000), unix_s: 4000 }, guests[1], &answer);
    while gateway.next_frame().is_some() {}
    assert!(asked(&mut gateway, 900).is_empty());
    assert!(asked(&mut gateway, 2000).is_empty());
}

#[test]
fn the_slow_path_hears_of_a_port_that_is_gone() {
    use std::sync::{Arc, Mutex};
    struct Told(Arc<Mutex<Vec<PortId>>>);
    impl SlowPath for Told {
        fn receive(&mut self, _: Instant, _: PortId, _: &[u8], _: &mut Outbox) -> Handled {
            Handled::No
        }
        fn poll(&mut self, _: Instant, _: &mut Outbox) {}
        fn poll_at(&self) -> Option<Instant> {
            None
        }
        fn port_removed(&mut self, port: PortId) {
            self.0.lock().unwrap().push(port);
        }
    }
    let port = Registry::<PortId>::new(1).mint().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let settings = Settings {
        mac: ROUTER,
        address4: None,
        address6: None,
        mtu: 1500,
        answers: true,
        links: Links::EachPort,
        seed: 7,
    };
    let slow = Box::new(Told(Arc::clone(&told)));
    let mut gateway = Gateway::new(Clock::default(), settings, Services::default(), Some(slow));
    gateway.port_removed(port);
    assert_eq!(*told.lock().unwrap(), [port]);
}
