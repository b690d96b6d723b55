//! A network behind address translation, with two guests and an outside that send whatever they like: a worker's view and
//! the slow path joined as the daemon joins them, and a virtual clock.
//!
//! Input: a sequence of operations, each a byte whose value modulo 8 tells what it is, and its operands:
//! - 0 to 3: a packet, see `packet`. 4: the same, cut into fragments, of which a byte tells the order and one that is lost.
//! - 5: a frame as it is: a byte for its port, one for its length, its bytes.
//! - 6: time passes: two bytes, in tenths of a second.
//! - 7: two bytes, for what else can happen (see `happening`).
//!
//! What holds, whatever comes: nothing panics; nothing leaves the uplink with an address of the inside, in its own header
//! or in one that it quotes; what leaves is well-formed; a guest hears from outside only of those whom it sent to, and at
//! ports that are forwarded; sessions and memory have their bounds.
#![no_main]

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use libfuzzer_sys::fuzz_target;
use modes::gateway::{Outbox, SlowPath};
use modes::nat::{self, Egress, Nat, Uplink};
use switch_core::head::HEAD_LEN;
use switch_core::ids::Registry;
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::nd::{Message, Neighbor};
use switch_core::ip::{Cause, Origin, Packet, Transport, error_frame, fragments};
use switch_core::mode::{Forwarder, Mode, PortFacts, Role};
use switch_core::napt::{self, Forward, NatAccess, Protocol};
use switch_core::offload::OffloadSet;
use switch_core::{Head, Instant, MacAddr, PortId, Verdict, Verdicts, check};

const GATEWAY: usize = 0;
const UPLINK: usize = 1;
const A: usize = 2;
const B: usize = 3;

const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const NEXT: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);
const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 1, 0xa]);
const MAC_B: MacAddr = MacAddr([2, 0, 0, 0, 1, 0xb]);

const SESSIONS_MAX: u32 = 48;
const MEMORY_MAX: usize = 8 << 20;
/// Frames that one frame, or one moment, may cause.
const EFFECTS_MAX: usize = 10_000;

/// Addresses that packets have: guests first, then the outside's, then ours, then those of nobody.
const V4: [&str; 16] = [
    "10.0.0.10",
    "10.0.0.11",
    "10.0.0.12",
    "203.0.113.9",
    "203.0.113.10",
    "198.51.100.1",
    "192.0.2.254",
    "192.0.2.77",
    "192.0.2.2",
    "10.0.0.1",
    "10.0.0.255",
    "255.255.255.255",
    "224.0.0.251",
    "0.0.0.0",
    "127.0.0.1",
    "240.0.0.1",
];
const V6: [&str; 16] = [
    "fd00::a",
    "fd00::b",
    "fd00::c",
    "2001:db8:9::9",
    "2001:db8:9::10",
    "2001:db8:7::7",
    "2001:db8::fe",
    "2001:db8::77",
    "2001:db8::2",
    "fd00::1",
    "fe80::1",
    "ff02::1",
    "ff05::2",
    "::",
    "::1",
    "fe80::fe",
];

fn address(v6: bool, n: u8) -> IpAddr {
    let table = if v6 { V6 } else { V4 };
    table[usize::from(n & 15)].parse().expect("an address")
}

fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.octets()[..3] == [10, 0, 0],
        IpAddr::V6(a) => a.segments()[..4] == [0xfd00, 0, 0, 0],
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (&first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(first)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(bytes)
    }
}

/// The protocol and the ports of a packet, the identifier of a query for both.
fn ports(packet: &Packet) -> Option<(u8, u16, u16)> {
    match packet.transport() {
        Transport::Udp { source, destination } => Some((17, source, destination)),
        Transport::Tcp { source, destination, .. } => Some((6, source, destination)),
        Transport::Icmp { .. } => packet.icmp_id().map(|id| (1, id, id)),
        Transport::Other | Transport::Beyond => None,
    }
}

struct Rig {
    mode: Arc<Nat>,
    forwarder: Box<dyn Forwarder>,
    slow: Box<dyn SlowPath>,
    ports: Vec<PortId>,
    now: Instant,
    queue: VecDeque<(usize, Vec<u8>)>,
    effects: usize,
    /// Stations that answer no questions, by their ports.
    silent: [bool; 4],
    /// A port that was seen outside lately, so that answers find it.
    outside: u16,
    /// A frame that a guest got lately, for errors about it.
    heard: Vec<u8>,
    /// What guests sent: the guest, its protocol and port, and to whom.
    sent: HashSet<(IpAddr, u8, u16, IpAddr)>,
    /// The guest, and to whom.
    pairs: HashSet<(IpAddr, IpAddr)>,
    /// Who sent ICMP errors from outside: their later fragments follow the first.
    tellers: HashSet<IpAddr>,
    /// Forwards that were ever there.
    forwards: HashSet<(IpAddr, u8, u16)>,
}

fn settings(filtering: napt::Filtering) -> nat::Settings {
    nat::Settings {
        subnets: vec!["10.0.0.0/24".parse().expect("a subnet"), "fd00::/64".parse().expect("a subnet")],
        gateway: vec![address(false, 9), address(true, 9)],
        mac: ROUTER,
        egress: Egress::Uplink(Uplink {
            mac: OURS,
            addresses: vec!["192.0.2.2/24".parse().expect("ours"), "2001:db8::2/64".parse().expect("ours")],
            next_hop4: Some(address(false, 6)),
            next_hop6: Some(address(true, 6)),
            answer_echo: true,
            answer_unsolicited: true,
        }),
        napt: napt::Settings {
            filtering,
            sessions_per_host: 24,
            mappings_per_host: 16,
            sessions_max: SESSIONS_MAX,
            ..napt::Settings::new([7, 8])
        },
        ageing: Duration::from_secs(300),
        fdb_max: 64,
    }
}

impl Rig {
    fn new(filtering: napt::Filtering) -> Self {
        let (mode, slow) = nat::new(settings(filtering));
        let mut registry = Registry::<PortId>::new(8);
        let ports: Vec<PortId> = (0..4).map(|_| registry.mint().expect("four ports")).collect();
        let forwarder = Arc::clone(&mode).forwarder();
        let mut rig = Self {
            mode,
            forwarder,
            slow: slow.expect("a slow path"),
            ports,
            now: Instant::from_secs(1),
            queue: VecDeque::new(),
            effects: 0,
            silent: [false; 4],
            outside: 0,
            heard: Vec::new(),
            sent: HashSet::new(),
            pairs: HashSet::new(),
            tellers: HashSet::new(),
            forwards: HashSet::new(),
        };
        for port in [GATEWAY, UPLINK, A, B] {
            rig.port(port, 1500);
        }
        rig.poll();
        rig
    }

    /// Tells the mode of a port.
    fn port(&self, port: usize, mtu: u16) {
        let role = [Role::Gateway, Role::Uplink, Role::Guest, Role::Guest][port];
        self.mode.port_changed(self.ports[port], &PortFacts { role, mtu, ..PortFacts::default() });
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.byte()? % 8 {
            0..=3 => {
                let (port, frame) = self.packet(input, 1)?;
                self.send(port, frame);
            }
            4 => {
                let [order, lost] = input.array()?;
                let (port, mut frame) = self.packet(input, 11)?;
                if let Some(flags) = frame.get_mut(20).filter(|_| order & 2 != 0) {
                    *flags &= !0x40;
                    sum_up(&mut frame);
                }
                let mut pieces = fragments(&frame, 576).unwrap_or_default();
                if order & 1 != 0 {
                    pieces.reverse();
                }
                for (index, piece) in pieces.into_iter().enumerate() {
                    if index != usize::from(lost) {
                        self.send(port, piece);
                    }
                }
            }
            5 => {
                let port = [A, B, UPLINK][usize::from(input.byte()? % 3)];
                let frame = input.bytes()?.to_vec();
                self.send(port, frame);
            }
            6 => {
                let tenths = u16::from_le_bytes(input.array()?);
                self.now = self.now + Duration::from_millis(u64::from(tenths) * 100);
                self.poll();
            }
            _ => {
                let [what, operand] = input.array()?;
                self.happening(what, operand);
            }
        }
        let (_, sessions) = self.mode.sessions(self.now, 4);
        // Each version of IP has its own.
        assert!(sessions <= 2 * SESSIONS_MAX as usize, "{sessions} sessions");
        assert!(self.mode.memory() <= MEMORY_MAX, "{} bytes", self.mode.memory());
        Some(())
    }

    /// A packet: a byte for its port (bits 0 to 1), version of IP (2), the router's MAC address or another's (3), and a hop
    /// limit of one (4); for what is in it; for its addresses (half a byte each); for its ports; for its length, in units;
    /// and changes of single bytes, as many as the first byte's two highest bits say.
    fn packet(&self, input: &mut Input<'_>, unit: usize) -> Option<(usize, Vec<u8>)> {
        let [way, kind, addresses, numbers, len] = input.array()?;
        let port = [A, B, UPLINK, UPLINK][usize::from(way & 3)];
        let v6 = way & 4 != 0;
        let (from, to) = (address(v6, addresses), address(v6, addresses >> 4));
        let own = [OURS, NEXT, MAC_A, MAC_B][port];
        let router = if port == UPLINK { OURS } else { ROUTER };
        let mac = if way & 8 == 0 {
            router
        } else {
            [MAC_A, MAC_B, MacAddr::BROADCAST, ROUTER][usize::from(kind >> 6)]
        };
        let hops = if way & 16 != 0 { 1 } else { 64 };
        // Zero is the port that was seen outside.
        let number = |n: u8| if n & 15 == 0 { self.outside } else { 4000 + u16::from(n & 15) };
        let (source, destination) = (number(numbers), number(numbers >> 4));
        let payload = vec![kind; usize::from(len) * unit % 1440];
        let link = PacketBuilder::ethernet2(own.0, mac.0);
        let ip = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), hops),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), hops),
            _ => return None,
        };
        let mut frame = Vec::new();
        let made = match kind % 10 {
            0..=2 => ip.udp(source, destination).write(&mut frame, &payload),
            3 => ip.tcp(source, destination, 1, 9).syn().write(&mut frame, &payload),
            4 => ip.tcp(source, destination, 1, 9).ack(1).write(&mut frame, &payload),
            5 => ip.tcp(source, destination, 1, 9).rst().write(&mut frame, &payload),
            6 => ip.tcp(source, destination, 1, 9).fin().ack(1).write(&mut frame, &payload),
            7 if v6 => ip.icmpv6_echo_request(source, 1).write(&mut frame, &payload),
            8 if v6 => ip.icmpv6_echo_reply(source, 1).write(&mut frame, &payload),
            7 => ip.icmpv4_echo_request(source, 1).write(&mut frame, &payload),
            8 => ip.icmpv4_echo_reply(source, 1).write(&mut frame, &payload),
            _ => {
                // An error about what was heard last, from whoever.
                let causes = [Cause::TimeExceeded, Cause::PortUnreachable, Cause::TooBig { mtu: 1300 }];
                let origin = Origin { mac: own, address: from };
                frame = error_frame(&self.heard, causes[usize::from(numbers) % 3], origin)?;
                frame.get_mut(..6)?.copy_from_slice(&mac.0);
                frame.get_mut(6..12)?.copy_from_slice(&own.0);
                Ok(())
            }
        };
        made.ok()?;
        for _ in 0..way >> 6 {
            let [at, value] = input.array()?;
            let at = 14 + usize::from(at) % frame.len().saturating_sub(14).max(1);
            if let Some(byte) = frame.get_mut(at) {
                *byte ^= value;
            }
        }
        // Else hardly any would get past the header's checksum.
        if way >> 6 == 1 {
            sum_up(&mut frame);
        }
        Some((port, frame))
    }

    fn happening(&mut self, what: u8, operand: u8) {
        let port = [UPLINK, A, B, GATEWAY][usize::from(operand & 3)];
        let forward = Forward {
            protocol: if operand & 4 == 0 { Protocol::Udp } else { Protocol::Tcp },
            address: None,
            port: if operand & 8 == 0 { 80 } else { 4001 },
            count: 1,
            target: (address(operand & 16 != 0, operand >> 5 & 1), 4002).into(),
        };
        match what % 6 {
            0 => {
                if self.mode.add_forward(&forward).is_ok() {
                    let protocol = if forward.protocol == Protocol::Udp { 17 } else { 6 };
                    self.forwards.insert((forward.target.ip(), protocol, forward.target.port()));
                }
            }
            1 => drop(self.mode.remove_forward(&forward)),
            2 => self.silent[port] = !self.silent[port],
            3 => self.port(port, if port == GATEWAY { 1500 } else { 1280 + u16::from(operand >> 2) * 4 }),
            4 => {
                self.mode.port_removed(self.ports[port]);
                self.port(port, 1500);
            }
            _ => self.poll(),
        }
    }

    /// A frame is received from a port, and all that follows of it happens.
    fn send(&mut self, port: usize, frame: Vec<u8>) {
        if let Ok(packet) = Packet::of_frame(&frame) {
            if port == UPLINK {
                if packet.is_icmp_error() {
                    self.tellers.insert(packet.source());
                }
            } else {
                self.pairs.insert((packet.source(), packet.destination()));
                if let Some((protocol, source, _)) = ports(&packet) {
                    self.sent.insert((packet.source(), protocol, source, packet.destination()));
                }
                if packet.is_icmp_error() {
                    // By hairpin it reaches another guest.
                    self.tellers.insert(packet.destination());
                }
            }
        }
        self.effects = 0;
        self.queue.push_back((port, frame));
        self.settle();
    }

    fn settle(&mut self) {
        while let Some((port, frame)) = self.queue.pop_front() {
            self.forward(port, frame);
        }
    }

    fn poll(&mut self) {
        self.effects = 0;
        self.mode.tick(self.now);
        let mut out = Outbox::default();
        self.slow.poll(self.now, &mut out);
        self.empty(out);
        self.settle();
    }

    fn forward(&mut self, port: usize, frame: Vec<u8>) {
        let mut head = Head::new();
        let Ok(len) = u32::try_from(frame.len()) else { return };
        let space = head.begin(len, HEAD_LEN);
        let taken = space.len().min(frame.len());
        space[..taken].copy_from_slice(&frame[..taken]);
        if check::frame(&mut head, OffloadSet::NONE).is_err() {
            return;
        }
        let mut out = Verdicts::default();
        out.begin(1);
        self.forwarder.decide(self.now, self.ports[port], std::slice::from_mut(&mut head), &mut out);
        let after = [head.bytes(), &frame[taken..]].concat();
        match out.as_slice()[0] {
            Verdict::Drop(_) => {}
            Verdict::Unicast(to) => {
                let to = self.ports.iter().position(|p| *p == to).expect("a port of the network");
                let bridged = after == frame;
                self.deliver(port, to, after, bridged);
            }
            Verdict::Flood => {
                assert_ne!(port, UPLINK, "the outside is not flooded to guests");
                for to in [GATEWAY, A, B].into_iter().filter(|to| *to != port) {
                    self.deliver(port, to, after.clone(), true);
                }
            }
        }
    }

    fn empty(&mut self, mut out: Outbox) {
        assert_eq!(out.lost, 0);
        while let Some(outgoing) = out.pop() {
            match outgoing.to {
                Some(port) => {
                    let to = self.ports.iter().position(|p| *p == port).expect("a port of the network");
                    self.deliver(GATEWAY, to, outgoing.frame, false);
                }
                None => self.forward(GATEWAY, outgoing.frame),
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, frame: Vec<u8>, bridged: bool) {
        assert_ne!(from, to, "reflected");
        self.effects += 1;
        assert!(self.effects < EFFECTS_MAX, "one frame caused too many");
        match to {
            GATEWAY => {
                // No longer than the port's MTU: the datapath sees to it.
                if frame.len() <= 1514 {
                    let mut out = Outbox::default();
                    let _ = self.slow.receive(self.now, self.ports[from], &frame, &mut out);
                    self.empty(out);
                }
            }
            UPLINK => self.leaves(&frame),
            _ if bridged && from != GATEWAY => assert_ne!(from, UPLINK, "bridged from outside"),
            _ => self.enters(to, &frame),
        }
        if to != GATEWAY && !self.silent[to] {
            self.answer(to, &frame);
        }
    }

    /// A frame went out of the uplink.
    fn leaves(&mut self, frame: &[u8]) {
        assert_eq!(frame.get(6..12), Some(&OURS.0[..]));
        if let Some(arp) = Arp::of_frame(frame) {
            assert!(!is_inside(arp.sender.into()), "{arp:?}");
            return;
        }
        let packet = Packet::of_frame(frame).expect("what leaves is well-formed");
        assert!(!is_inside(packet.source()), "{} left", packet.source());
        assert!(!is_inside(packet.destination()), "{} was sought outside", packet.destination());
        if let Some(quote) = packet.quoted(frame) {
            assert!(!is_inside(quote.source()) && !is_inside(quote.destination()), "quoted: {quote:?}");
        }
        if let Some((_, source, _)) = ports(&packet) {
            self.outside = source;
        }
        self.heard = frame.to_vec();
    }

    /// A guest got a frame that was not bridged.
    fn enters(&mut self, to: usize, frame: &[u8]) {
        assert_eq!(frame.get(6..12), Some(&ROUTER.0[..]), "from the router");
        let Ok(packet) = Packet::of_frame(frame) else {
            assert!(Arp::of_frame(frame).is_some(), "what enters is well-formed");
            return;
        };
        let (guest, remote) = (packet.destination(), packet.source());
        if [address(false, 9), address(true, 9)].contains(&remote) || Neighbor::of_frame(frame).is_some() {
            return;
        }
        assert!(is_inside(guest), "{guest} is not inside");
        let asked = self.pairs.contains(&(guest, remote));
        let told = self.tellers.contains(&remote);
        let forwarded = |protocol, port| self.forwards.contains(&(guest, protocol, port));
        let allowed = if is_inside(remote) {
            // From another guest, over the router.
            self.pairs.contains(&(remote, guest))
        } else if packet.is_later_fragment() {
            asked || told || self.forwards.iter().any(|forward| forward.0 == guest)
        } else if packet.is_icmp_error() {
            let quote = packet.quoted(frame).expect("an error that is translated quotes");
            let of = ports(&quote).expect("ports of its own");
            quote.source() == guest
                && (self.pairs.contains(&(guest, quote.destination())) || forwarded(of.0, of.1))
        } else {
            let (protocol, _, port) = ports(&packet).expect("ports of its own");
            self.sent.contains(&(guest, protocol, port, remote)) || forwarded(protocol, port)
        };
        assert!(allowed, "port {to}: from {remote} to {guest}, who did not ask: {packet:?}");
        self.heard = frame.to_vec();
    }

    /// What a station answers to a question about itself.
    fn answer(&mut self, at: usize, frame: &[u8]) {
        let (mac, own): (MacAddr, &[u8]) = match at {
            UPLINK => (NEXT, &[6, 7, 15]),
            A => (MAC_A, &[0]),
            _ => (MAC_B, &[1]),
        };
        let is_own = |v6: bool, target: IpAddr| own.iter().any(|n| address(v6, *n) == target);
        if let Some(arp) = Arp::of_frame(frame) {
            if arp.operation == Operation::Request && is_own(false, arp.target.into()) {
                self.queue.push_back((at, arp.reply(mac).to_frame(arp.sender_mac)));
            }
        } else if let Some(question) = Neighbor::of_frame(frame)
            && question.message == Message::Solicitation
            && is_own(true, question.target.into())
            && let Some(link) = question.link
        {
            self.queue.push_back((at, question.reply(mac, true).to_frame(link, mac)));
        }
    }
}

/// Makes an IPv4 header's checksum right.
fn sum_up(frame: &mut [u8]) {
    if frame.get(12..14) != Some(&[8, 0]) {
        return;
    }
    let len = frame.get(14).map_or(0, |first| usize::from(first & 15) * 4);
    if let Some(header) = frame.get_mut(14..14 + len).filter(|header| header.len() >= 20) {
        header[10..12].fill(0);
        let mut sum = switch_core::checksum::Sum::new();
        sum.add(header);
        header[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let Some(first) = input.byte() else { return };
    // By nothing, there is nothing that filtering forbids.
    let filtering = match first & 1 {
        0 => napt::Filtering::AddressDependent,
        _ => napt::Filtering::AddressAndPortDependent,
    };
    let mut rig = Rig::new(filtering);
    for _ in 0..150 {
        if rig.step(&mut input).is_none() {
            break;
        }
    }
});
