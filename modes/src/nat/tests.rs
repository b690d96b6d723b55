//! Frames in, frames out, with a virtual clock: forwarder and slow path joined as the daemon joins them.
//!
//! [`Net`] has two guests, a gateway's port and an uplink with a router on it. Stations answer ARP and ND questions
//! for their addresses by themselves. Every frame that is delivered has right checksums, or the test fails.

mod address;
mod bursts;
mod errors;
mod fragments;
mod host;
mod hostile;
mod traffic;
mod user;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use smoltcp::wire;
use switch_core::check;
use switch_core::drop::DropReason;
use switch_core::head::{HEAD_LEN, Head};
use switch_core::ids::{MacAddr, PortId, Registry};
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::nd::{Message, Neighbor};
use switch_core::ip::{Packet, Transport};
use switch_core::mode::{Forwarder, Mode, PortFacts, Role};
use switch_core::napt::{Forward, NatAccess, Protocol};
use switch_core::offload::OffloadSet;
use switch_core::time::Instant;
use switch_core::verdict::{Verdict, Verdicts};

use super::*;
use crate::gateway::{Handled, Outbox};

const GATEWAY: usize = 0;
const UPLINK: usize = 1;
const A: usize = 2;
const B: usize = 3;

const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const ISP: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);
const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 1, 0xa]);
const MAC_B: MacAddr = MacAddr([2, 0, 0, 0, 1, 0xb]);

const IP_A: &str = "10.0.0.10";
const IP_B: &str = "10.0.0.11";
const EXTERNAL: &str = "192.0.2.2";
const REMOTE: &str = "203.0.113.9";
const IP6_A: &str = "fd00::a";
const EXTERNAL6: &str = "2001:db8::2";
const REMOTE6: &str = "2001:db8:9::9";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn settings() -> Settings {
    Settings {
        subnets: vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        gateway: vec![ip("10.0.0.1"), ip("fd00::1")],
        mac: ROUTER,
        egress: Egress::Uplink(uplink()),
        napt: napt::Settings::new([7, 8]),
        ageing: Duration::from_secs(300),
        fdb_max: 1000,
    }
}

fn uplink() -> Uplink {
    Uplink {
        mac: OURS,
        addresses: vec!["192.0.2.2/24".parse().unwrap(), "2001:db8::2/64".parse().unwrap()],
        next_hop4: Some(ip("192.0.2.254")),
        next_hop6: Some(ip("fe80::fe")),
        answer_echo: true,
        answer_unsolicited: true,
    }
}

/// A network.
struct Net {
    mode: Arc<Nat>,
    forwarder: Box<dyn Forwarder>,
    slow: Option<Box<dyn SlowPath>>,
    ports: Vec<PortId>,
    now: Instant,
    /// Who answers for which address, and where.
    stations: Vec<(usize, MacAddr, IpAddr)>,
    /// Frames that stations got, but for questions about neighbours.
    got: Vec<(usize, Vec<u8>)>,
    drops: Vec<DropReason>,
    /// Frames that the gateway's port got.
    punted: usize,
    /// Check what is delivered.
    verify: bool,
    /// Frames that the slow path left to the gateway.
    left: Vec<Vec<u8>>,
}

impl Net {
    fn new() -> Self {
        Self::with(settings(), 1500)
    }

    fn with(settings: Settings, uplink_mtu: u16) -> Self {
        let (mode, slow) = super::new(settings);
        let mut registry = Registry::<PortId>::new(16);
        let ports: Vec<PortId> = (0..5).map(|_| registry.mint().unwrap()).collect();
        let roles = [Role::Gateway, Role::Uplink, Role::Guest, Role::Guest];
        for (i, role) in roles.into_iter().enumerate() {
            let mtu = if role == Role::Uplink { uplink_mtu } else { 1500 };
            mode.port_changed(ports[i], &PortFacts { role, mtu, ..PortFacts::default() });
        }
        let forwarder = Arc::clone(&mode).forwarder();
        let stations = vec![
            (UPLINK, ISP, ip("192.0.2.254")),
            (UPLINK, ISP, ip("fe80::fe")),
            (A, MAC_A, ip(IP_A)),
            (B, MAC_B, ip(IP_B)),
            (A, MAC_A, ip(IP6_A)),
        ];
        let mut net = Self {
            mode,
            forwarder,
            slow,
            ports,
            now: Instant::from_secs(1),
            stations,
            got: Vec::new(),
            drops: Vec::new(),
            punted: 0,
            verify: true,
            left: Vec::new(),
        };
        net.poll();
        net.got.clear();
        net
    }

    fn index(&self, port: PortId) -> usize {
        self.ports.iter().position(|p| *p == port).expect("a port of the network")
    }

    /// A frame is received from a port, and all that follows of it happens.
    fn send(&mut self, port: usize, frame: Vec<u8>) {
        let mut queue = VecDeque::from([(port, frame)]);
        while let Some((port, frame)) = queue.pop_front() {
            self.forward(port, frame, &mut queue);
        }
    }

    fn forward(&mut self, port: usize, frame: Vec<u8>, queue: &mut VecDeque<(usize, Vec<u8>)>) {
        let mut head = Head::new();
        let space = head.begin(frame.len() as u32, HEAD_LEN);
        let len = space.len();
        space.copy_from_slice(&frame[..len]);
        if check::frame(&mut head, OffloadSet::NONE).is_err() {
            return;
        }
        let mut out = Verdicts::default();
        out.begin(1);
        self.forwarder.decide(self.now, self.ports[port], std::slice::from_mut(&mut head), &mut out);
        let frame = [head.bytes(), &frame[len..]].concat();
        match out.as_slice()[0] {
            Verdict::Drop(reason) => self.drops.push(reason),
            Verdict::Unicast(to) => self.deliver(port, self.index(to), frame, queue),
            Verdict::Flood => {
                for to in [GATEWAY, A, B].into_iter().filter(|to| *to != port) {
                    self.deliver(port, to, frame.clone(), queue);
                }
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, frame: Vec<u8>, queue: &mut VecDeque<(usize, Vec<u8>)>) {
        assert_ne!(from, to, "reflected");
        if to == GATEWAY {
            self.punted += 1;
            let mut outbox = Outbox::default();
            if let Some(slow) = &mut self.slow
                && slow.receive(self.now, self.ports[from], &frame, &mut outbox) == Handled::No
            {
                self.left.push(frame);
            }
            self.empty(outbox, queue);
            return;
        }
        if self.verify {
            sound(&frame);
        }
        let arp =
            Arp::of_frame(&frame).is_some_and(|a| a.operation == Operation::Request && !a.is_announcement());
        let nd = Neighbor::of_frame(&frame).is_some_and(|n| n.message == Message::Solicitation);
        if arp || nd {
            queue.extend(self.answer(to, &frame).map(|answer| (to, answer)));
        } else {
            self.got.push((to, frame));
        }
    }

    fn empty(&mut self, mut outbox: Outbox, queue: &mut VecDeque<(usize, Vec<u8>)>) {
        while let Some(outgoing) = outbox.pop() {
            match outgoing.to {
                Some(port) => self.deliver(GATEWAY, self.index(port), outgoing.frame, queue),
                None => self.forward(GATEWAY, outgoing.frame, queue),
            }
        }
    }

    /// What a station answers to a question about itself.
    fn answer(&self, at: usize, frame: &[u8]) -> Option<Vec<u8>> {
        let asked = |target: IpAddr| self.stations.iter().find(|(port, _, ip)| *port == at && *ip == target);
        if let Some(arp) = Arp::of_frame(frame).filter(|arp| arp.operation == Operation::Request) {
            let (_, mac, _) = asked(arp.target.into())?;
            return Some(arp.reply(*mac).to_frame(arp.sender_mac));
        }
        let question = Neighbor::of_frame(frame).filter(|n| n.message == Message::Solicitation)?;
        let (_, mac, _) = asked(question.target.into())?;
        Some(question.reply(*mac, true).to_frame(question.link?, *mac))
    }

    fn poll(&mut self) {
        self.mode.tick(self.now);
        let mut outbox = Outbox::default();
        if let Some(slow) = &mut self.slow {
            slow.poll(self.now, &mut outbox);
        }
        let mut queue = VecDeque::new();
        self.empty(outbox, &mut queue);
        while let Some((port, frame)) = queue.pop_front() {
            self.forward(port, frame, &mut queue);
        }
    }

    /// Time passes, in steps of the slow path's and the mode's timers.
    fn wait(&mut self, secs: u64) {
        let end = self.now + Duration::from_secs(secs);
        while self.now < end {
            let slow = self.slow.as_ref().and_then(|slow| slow.poll_at());
            let due = slow.into_iter().chain(self.mode.poll_at()).min().unwrap_or(end);
            let least = self.now + Duration::from_millis(10);
            self.now = due.clamp(least, end.max(least));
            self.poll();
        }
    }

    /// What a port got since the last question.
    fn got(&mut self, port: usize) -> Vec<Vec<u8>> {
        let (mine, others) = std::mem::take(&mut self.got).into_iter().partition(|(to, _)| *to == port);
        self.got = others;
        let mine: Vec<(usize, Vec<u8>)> = mine;
        mine.into_iter().map(|(_, frame)| frame).collect()
    }

    /// The one frame that a port got; nobody else got any.
    fn only(&mut self, port: usize) -> Vec<u8> {
        let mut got = self.got(port);
        assert_eq!((got.len(), self.got.len()), (1, 0), "drops: {:?}", self.drops);
        got.remove(0)
    }

    /// Nobody got anything.
    fn nothing(&mut self) {
        assert!(self.got.is_empty(), "{:?}", self.got);
    }

    /// The only frame that was dropped lately.
    fn dropped(&mut self) -> DropReason {
        self.nothing();
        let drops = std::mem::take(&mut self.drops);
        assert_eq!(drops.len(), 1, "{drops:?}");
        drops[0]
    }

    fn forwards(&self, protocol: Protocol, port: u16, target: &str) {
        let target = target.parse().expect("a socket address");
        let forward = Forward { protocol, address: None, port, count: 1, target };
        self.mode.add_forward(&forward).expect("a sound forward");
    }
}

/// What a packet is, for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    macs: (MacAddr, MacAddr),
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    ttl: u8,
    payload: Vec<u8>,
}

/// Reads a UDP or TCP packet, or an ICMP query.
fn seen(frame: &[u8]) -> Seen {
    let packet = Packet::of_frame(frame).expect("an IP packet");
    let (from, to, header) = match packet.transport() {
        Transport::Udp { source, destination } => (source, destination, 8),
        Transport::Tcp { source, destination, .. } => (source, destination, 20),
        Transport::Icmp { id, .. } => (id, id, 8),
        other => panic!("{other:?}"),
    };
    Seen {
        macs: (MacAddr::from_slice(&frame[6..]).unwrap(), MacAddr::from_slice(frame).unwrap()),
        source: (packet.source(), from),
        destination: (packet.destination(), to),
        ttl: packet.hop_limit(),
        payload: frame[packet.transport_at() + header..packet.end()].to_vec(),
    }
}

/// Checks every checksum of a frame that is not a fragment.
fn sound(frame: &[u8]) {
    let Ok(packet) = Packet::of_frame(frame) else {
        assert!(!frame.starts_with(&[0; 6]), "no destination");
        return;
    };
    assert_ne!(frame[..6], [0; 6], "no destination");
    if packet.is_fragment() {
        return;
    }
    let (source, destination) = (packet.source(), packet.destination());
    let body = &frame[packet.transport_at()..packet.end()];
    let right = match (packet.transport(), source, destination) {
        (Transport::Tcp { .. }, _, _) => {
            wire::TcpPacket::new_checked(body).unwrap().verify_checksum(&source.into(), &destination.into())
        }
        (Transport::Udp { .. }, _, _) => {
            wire::UdpPacket::new_checked(body).unwrap().verify_checksum(&source.into(), &destination.into())
        }
        (Transport::Icmp { .. }, IpAddr::V4(_), _) => {
            wire::Icmpv4Packet::new_checked(body).unwrap().verify_checksum()
        }
        (Transport::Icmp { .. }, IpAddr::V6(from), IpAddr::V6(to)) => {
            wire::Icmpv6Packet::new_checked(body).unwrap().verify_checksum(&from, &to)
        }
        _ => true,
    };
    assert!(right, "a wrong checksum: {:?}", packet);
}

/// The addresses of a frame to build: link and network.
#[derive(Clone, Copy, Debug)]
struct Way<'a> {
    macs: (MacAddr, MacAddr),
    from: &'a str,
    to: &'a str,
    ttl: u8,
}

/// From guest A, to the router.
const fn out<'a>(to: &'a str) -> Way<'a> {
    Way { macs: (MAC_A, ROUTER), from: IP_A, to, ttl: 64 }
}

/// From the uplink's router, to us.
const fn back<'a>(from: &'a str) -> Way<'a> {
    Way { macs: (ISP, OURS), from, to: EXTERNAL, ttl: 64 }
}

enum Kind {
    Udp(u16, u16),
    /// With SYN, or with ACK.
    Tcp(u16, u16, bool),
    /// A request, or a reply.
    Echo(u16, bool),
}

fn build(way: Way<'_>, kind: &Kind, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(way.macs.0.0, way.macs.1.0);
    let ip = match (ip(way.from), ip(way.to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), way.ttl),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), way.ttl),
        _ => panic!("two families"),
    };
    let v6 = way.from.contains(':');
    let mut frame = Vec::new();
    match *kind {
        Kind::Udp(from, to) => ip.udp(from, to).write(&mut frame, payload),
        Kind::Tcp(from, to, true) => ip.tcp(from, to, 1, 1000).syn().write(&mut frame, payload),
        Kind::Tcp(from, to, false) => ip.tcp(from, to, 1, 1000).ack(1).write(&mut frame, payload),
        Kind::Echo(id, true) if v6 => ip.icmpv6_echo_request(id, 1).write(&mut frame, payload),
        Kind::Echo(id, false) if v6 => ip.icmpv6_echo_reply(id, 1).write(&mut frame, payload),
        Kind::Echo(id, true) => ip.icmpv4_echo_request(id, 1).write(&mut frame, payload),
        Kind::Echo(id, false) => ip.icmpv4_echo_reply(id, 1).write(&mut frame, payload),
    }
    .expect("a vector takes it");
    frame
}

fn udp(way: Way<'_>, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    build(way, &Kind::Udp(from, to), payload)
}

fn syn(way: Way<'_>, from: u16, to: u16) -> Vec<u8> {
    build(way, &Kind::Tcp(from, to, true), &[])
}

/// Sets or clears DF.
fn dont_fragment(mut frame: Vec<u8>, on: bool) -> Vec<u8> {
    let mut packet = wire::Ipv4Packet::new_unchecked(&mut frame[14..]);
    packet.set_dont_frag(on);
    packet.fill_checksum();
    frame
}
