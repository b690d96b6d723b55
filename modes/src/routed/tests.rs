//! Frames in, frames out, with a virtual clock: the mode and its slow path together.

mod forwarding;
mod life;
mod neighbours;
mod properties;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use ipnetwork::IpNetwork;
use switch_core::check;
use switch_core::drop::DropReason;
use switch_core::head::Head;
use switch_core::ids::{MacAddr, PortId, Registry};
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::nd::{self, Message, Neighbor};
use switch_core::ip::{Packet, Transport, set_macs};
use switch_core::mode::{Forwarder, Mode, PortFacts, Role};
use switch_core::offload::OffloadSet;
use switch_core::time::Instant;
use switch_core::verdict::{Verdict, Verdicts};

use super::*;
use crate::gateway::{Handled, Outbox};
use crate::router::link_local;

const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
/// The ports of the rig.
const GATEWAY: usize = 0;
const A: usize = 1;
const B: usize = 2;
/// A guest whose MAC address nobody said.
const C: usize = 3;
const HOST: usize = 4;
const UPLINK: usize = 5;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("an IPv4 address")
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

/// The station at a port.
fn mac(port: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, port as u8])
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Routed by the forwarder: the port and the frame.
    Fast(usize, Vec<u8>),
    Dropped(DropReason),
    /// The slow path took it; what it sent.
    Slow(Vec<(usize, Vec<u8>)>),
    /// Left to the gateway's services.
    Services,
}

struct Rig {
    routed: Arc<Routed>,
    slow: Box<dyn SlowPath>,
    forwarder: Box<dyn Forwarder>,
    ports: Vec<PortId>,
    now: Instant,
}

fn facts(role: Role, mac: Option<MacAddr>, addresses: &[&str], routes: &[&str]) -> PortFacts {
    PortFacts {
        role,
        mac,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        routes: routes.iter().map(|r| net(r)).collect(),
        mtu: 1500,
    }
}

fn settings() -> Settings {
    Settings {
        mac: ROUTER,
        addresses: vec![ip("10.0.0.1"), ip("fd00::1")],
        subnets: vec![net("10.0.0.0/24"), net("fd00::/64")],
        uplink_addresses: vec![net("192.0.2.10/24"), net("2001:db8::10/64")],
        next_hops: vec![ip("192.0.2.1"), ip("fe80::99")],
        neighbors: Limits::default(),
    }
}

impl Rig {
    /// Guests, a host interface and an uplink.
    fn new() -> Self {
        let mut rig = Self::with(settings());
        rig.set(UPLINK, facts(Role::Uplink, None, &[], &[]));
        rig.drain();
        rig
    }

    /// Guests and a host interface.
    fn with(settings: Settings) -> Self {
        let (routed, slow) = super::new(settings);
        let mut registry = Registry::<PortId>::new(16);
        let ports = (0..16).map(|_| registry.mint().expect("16 ports")).collect();
        let forwarder = Arc::clone(&routed).forwarder();
        let rig = Self { routed, slow, forwarder, ports, now: Instant::from_secs(100) };
        rig.set(GATEWAY, facts(Role::Gateway, Some(ROUTER), &[], &[]));
        rig.set(A, facts(Role::Guest, Some(mac(A)), &["10.0.0.5", "fd00::5"], &["172.16.0.0/16"]));
        rig.set(B, facts(Role::Guest, Some(mac(B)), &["10.0.0.6", "fd00::6"], &[]));
        rig.set(C, facts(Role::Guest, None, &["10.0.0.7", "fd00::7"], &["172.17.0.0/16", "fd17::/48"]));
        rig.set(HOST, facts(Role::HostInterface, Some(mac(HOST)), &["10.0.0.2"], &[]));
        rig
    }

    fn set(&self, port: usize, facts: PortFacts) {
        self.routed.port_changed(self.ports[port], &facts);
    }

    /// Gives guest B so many prefixes that routes are looked up together.
    fn with_many_routes(self) -> Self {
        let mut facts = facts(Role::Guest, Some(mac(B)), &["10.0.0.6", "fd00::6"], &[]);
        facts.routes = (0..5000_u32)
            .map(|n| IpNetwork::new(Ipv4Addr::from(0x6440_0000 + n * 4).into(), 30).expect("at most 32"))
            .collect();
        self.set(B, facts);
        self
    }

    fn number(&self, port: PortId) -> usize {
        self.ports.iter().position(|p| *p == port).expect("a port")
    }

    fn decide(&mut self, port: usize, head: &mut Head) -> Verdict {
        let mut out = Verdicts::default();
        out.begin(1);
        self.forwarder.decide(self.now, self.ports[port], std::slice::from_mut(head), &mut out);
        out.as_slice()[0]
    }

    fn sent(&self, mut out: Outbox) -> Vec<(usize, Vec<u8>)> {
        std::iter::from_fn(|| out.pop()).map(|o| (self.number(o.to.expect("a port")), o.frame)).collect()
    }

    fn inject(&mut self, port: usize, frame: &[u8]) -> Fate {
        let mut head = Head::new();
        head.begin(frame.len() as u32, 128).copy_from_slice(&frame[..frame.len().min(128)]);
        check::frame(&mut head, OffloadSet::NONE).expect("a sound frame");
        match self.decide(port, &mut head) {
            Verdict::Drop(reason) => Fate::Dropped(reason),
            Verdict::Flood => panic!("a router floods nothing"),
            Verdict::Unicast(to) if to == self.ports[GATEWAY] => {
                let mut out = Outbox::default();
                match self.slow.receive(self.now, self.ports[port], frame, &mut out) {
                    Handled::Yes => Fate::Slow(self.sent(out)),
                    Handled::No => Fate::Services,
                }
            }
            Verdict::Unicast(to) => {
                let mut whole = head.bytes().to_vec();
                whole.extend_from_slice(&frame[frame.len().min(128)..]);
                Fate::Fast(self.number(to), whole)
            }
        }
    }

    /// Lets time pass, with all that is due in between.
    fn wait(&mut self, ms: u64) -> Vec<(usize, Vec<u8>)> {
        let end = self.now + Duration::from_millis(ms);
        let mut out = Outbox::default();
        for _ in 0..10_000 {
            match self.slow.poll_at() {
                Some(due) if due <= end => {
                    self.now = self.now.max(due);
                    self.slow.poll(self.now, &mut out);
                }
                _ => break,
            }
        }
        self.now = end;
        self.sent(out)
    }

    /// Drops what is to be announced.
    fn drain(&mut self) {
        self.wait(0);
    }
}

/// A UDP packet to the router's MAC address.
fn udp(from: usize, source: &str, destination: &str) -> Vec<u8> {
    packet(from, source, destination, 64, 20)
}

fn packet(from: usize, source: &str, destination: &str, hop_limit: u8, payload: usize) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(mac(from).0, ROUTER.0);
    let mut frame = Vec::new();
    let ip = match (ip(source), ip(destination)) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ethernet.ipv4(s.octets(), d.octets(), hop_limit),
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), hop_limit),
        _ => panic!("two families"),
    };
    ip.udp(1000, 53).write(&mut frame, &vec![7; payload]).expect("a frame");
    frame
}

/// The frame as it should leave: one hop less, new MAC addresses.
fn forwarded(frame: &[u8], to: MacAddr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let mut packet = Packet::of_frame(&frame).expect("sound");
    packet.decrement_hop_limit(&mut frame);
    set_macs(&mut frame, to, ROUTER);
    frame
}

fn arp_request(from: usize, sender: &str, target: &str) -> Vec<u8> {
    Arp::request(mac(from), v4(sender), v4(target)).to_frame(MacAddr::BROADCAST)
}

fn solicitation(from: usize, source: &str, target: &str) -> Vec<u8> {
    let ask = Neighbor::solicitation(mac(from), v6(source), v6(target));
    ask.to_frame(nd::group_mac(ask.destination), mac(from))
}

/// The ICMP type and code of the only frame that was sent, which must go to `port`.
fn error_to(port: usize, fate: Fate) -> Option<(u8, u8)> {
    let Fate::Slow(sent) = fate else { panic!("{fate:?}") };
    error_of(port, &sent)
}

fn error_of(port: usize, sent: &[(usize, Vec<u8>)]) -> Option<(u8, u8)> {
    let [(to, frame)] = sent else {
        assert!(sent.is_empty(), "{sent:02x?}");
        return None;
    };
    assert_eq!((*to, &frame[..6], &frame[6..12]), (port, &mac(port).0[..], &ROUTER.0[..]));
    match Packet::of_frame(frame).expect("sound").transport() {
        Transport::Icmp { kind, code, .. } => Some((kind, code)),
        other => panic!("{other:?}"),
    }
}

/// Who answers an ARP request, and to whom.
fn answers(fate: Fate) -> bool {
    match fate {
        Fate::Dropped(DropReason::NotRouted) => false,
        Fate::Slow(sent) if sent.is_empty() => false,
        Fate::Slow(sent) => {
            assert_eq!(sent.len(), 1);
            if let Some(arp) = Arp::of_frame(&sent[0].1) {
                assert_eq!((arp.operation, arp.sender_mac), (Operation::Reply, ROUTER));
            } else {
                let answer = Neighbor::of_frame(&sent[0].1).expect("an advertisement");
                assert_eq!(answer.link, Some(ROUTER));
                assert!(matches!(answer.message, Message::Advertisement { router: true, .. }));
            }
            true
        }
        other => panic!("{other:?}"),
    }
}
