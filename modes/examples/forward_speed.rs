//! What the forwarders that route cost: `cargo run --release -p modes --example forward_speed`.
//!
//! Heads in bursts of 64, as a worker gives them, with few flows and with 100,000, both versions of IP. What filling
//! and checking the heads costs is measured for itself and taken off. No ports, no copies of tails.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use etherparse::PacketBuilder;
use modes::gateway::Outbox;
use modes::router::{Link, Station};
use modes::{nat, routed};
use switch_core::head::Head;
use switch_core::ids::{MacAddr, PortId, Registry};
use switch_core::ip::arp::Arp;
use switch_core::ip::nd::Neighbor;
use switch_core::ip::{Packet, Transport};
use switch_core::mode::{Forwarder, Mode, PortFacts, Role};
use switch_core::napt;
use switch_core::offload::OffloadSet;
use switch_core::time::Instant;
use switch_core::verdict::{BURST, Verdict, Verdicts};

const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const NEXT: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);
const FLOWS: [u32; 2] = [BURST as u32, 100_000];
/// Frames of a measurement, about.
const FRAMES: u32 = 4_000_000;
const GUESTS: u32 = 64;

fn station(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr([2, 1, a, b, c, d])
}

/// The `n`th address of a subnet.
fn address(v6: bool, net: u32, n: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits(u128::from(0x2001_0db8_u32) << 96 | u128::from(net) << 64 | u128::from(n)).into()
    } else {
        Ipv4Addr::from_bits(net.wrapping_add(n)).into()
    }
}

fn udp(macs: (MacAddr, MacAddr), from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    let ip = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("of one family"),
    };
    let mut frame = Vec::new();
    ip.udp(from.1, to.1).write(&mut frame, &[0; 18]).expect("a frame");
    frame
}

/// A worker's heads and its clock.
struct Bench {
    heads: Vec<Head>,
    verdicts: Verdicts,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { heads: vec![Head::new(); BURST], verdicts: Verdicts::default(), now: Instant::from_secs(1) }
    }

    /// A worker's part of one burst, without the forwarder's.
    fn fill(&mut self, burst: &[Vec<u8>]) {
        self.now = self.now + Duration::from_micros(6);
        self.verdicts.begin(burst.len());
        for (head, frame) in self.heads.iter_mut().zip(burst) {
            head.begin(frame.len() as u32, frame.len()).copy_from_slice(frame);
            switch_core::check::frame(head, OffloadSet::NONE).expect("a sound frame");
        }
    }

    /// Nanoseconds for each frame of `frames`, which are sent again and again.
    fn run(
        &mut self,
        frames: &[Vec<u8>],
        mut decide: impl FnMut(Instant, &mut [Head], &mut Verdicts),
    ) -> f64 {
        let rounds = FRAMES / frames.len() as u32;
        let began = Clock::now();
        for _ in 0..rounds {
            for burst in frames.chunks(BURST) {
                self.fill(burst);
                decide(self.now, &mut self.heads[..burst.len()], &mut self.verdicts);
                black_box((&mut self.heads, &self.verdicts));
            }
        }
        began.elapsed().as_nanos() as f64 / f64::from(rounds) / frames.len() as f64
    }

    /// Measures what a forwarder makes of frames that one of `to` gets.
    fn report(
        &mut self,
        name: &str,
        forwarder: &mut dyn Forwarder,
        (from, to): (PortId, &[PortId]),
        frames: &[Vec<u8>],
    ) {
        let empty = self.run(frames, |_, _, _| {});
        // Once before, so that sessions and caches are there; and none is dropped.
        for burst in frames.chunks(BURST) {
            self.fill(burst);
            forwarder.decide(self.now, from, &mut self.heads[..burst.len()], &mut self.verdicts);
            let goes = |verdict: &Verdict| matches!(verdict, Verdict::Unicast(port) if to.contains(port));
            assert!(self.verdicts.as_slice().iter().all(goes), "{name}: {:?}", self.verdicts.as_slice());
        }
        let each = self.run(frames, |now, heads, out| forwarder.decide(now, from, heads, out)) - empty;
        println!(
            "{name:<26} {:>7} flows  {each:>6.1} ns a frame, {:>5.1} million/s  (filling: {empty:.1} ns)",
            frames.len(),
            1000.0 / each
        );
    }
}

fn ports(n: usize) -> Vec<PortId> {
    let mut registry = Registry::<PortId>::new(1024);
    (0..n).map(|_| registry.mint().expect("a port")).collect()
}

/// Guests' flows to the outside and their answers.
fn translated(v6: bool) {
    const INSIDE: u32 = 0x0a00_0000;
    const OUTSIDE: u32 = 0xc000_0200;
    let (inside, external) = (address(v6, INSIDE, 0), address(v6, OUTSIDE, 2));
    let net = |address: IpAddr, bits: (u8, u8)| {
        ipnetwork::IpNetwork::new(address, if v6 { bits.1 } else { bits.0 }).expect("a prefix")
    };
    let (mode, _slow) = nat::new(nat::Settings {
        subnets: vec![net(inside, (16, 64))],
        gateway: vec![address(v6, INSIDE, 1)],
        mac: ROUTER,
        egress: nat::Egress::Uplink(nat::Uplink {
            mac: OURS,
            addresses: vec![net(external, (24, 64))],
            next_hop4: (!v6).then(|| address(v6, OUTSIDE, 1)),
            next_hop6: v6.then(|| address(v6, OUTSIDE, 1)),
            answer_echo: false,
            answer_unsolicited: false,
        }),
        napt: napt::Settings { udp_timeout: Duration::from_secs(36_000), ..napt::Settings::new([1, 2]) },
        ageing: Duration::from_secs(36_000),
        fdb_max: 8192,
    });
    let ports = ports(2 + GUESTS as usize);
    for (i, &port) in ports.iter().enumerate() {
        let role = [Role::Gateway, Role::Uplink].get(i).copied().unwrap_or(Role::Guest);
        mode.port_changed(port, &PortFacts { role, mtu: 1500, ..PortFacts::default() });
    }
    let (uplink, guests) = (ports[1], &ports[2..]);
    let next = Station { mac: NEXT, port: uplink };
    mode.neighbors().configure(Link::Shared(1), address(v6, OUTSIDE, 1), next);
    for (i, &port) in guests.iter().enumerate() {
        let guest = Station { mac: station(i as u32), port };
        mode.neighbors().configure(Link::Shared(0), address(v6, INSIDE, 10 + i as u32), guest);
    }
    for flows in FLOWS {
        let mut bench = Bench::new();
        let mut forwarder = Arc::clone(&mode).forwarder();
        // Of one port a burst is; the flows of a guest are as many as the others'.
        let each = flows / GUESTS;
        let frame = |guest: u32, flow: u32| {
            let from = (address(v6, INSIDE, 10 + guest), 10_000 + (flow % 700) as u16);
            let to = (address(v6, 0x0808_0000, flow / 700), 53);
            udp((station(guest), ROUTER), from, to)
        };
        // Make the sessions, and learn where the answers are from.
        let mut answers = Vec::new();
        for guest in 0..GUESTS {
            for flow in 0..each {
                let frame = frame(guest, flow);
                bench.fill(std::slice::from_ref(&frame));
                bench.verdicts.begin(1);
                let from = guests[guest as usize];
                forwarder.decide(bench.now, from, &mut bench.heads[..1], &mut bench.verdicts);
                assert_eq!(bench.verdicts.as_slice(), [Verdict::Unicast(uplink)]);
                let sent = Packet::of_head(&bench.heads[0]).expect("a packet");
                let Transport::Udp { source, destination } = sent.transport() else { unreachable!("UDP") };
                let to = (sent.source(), source);
                answers.push(udp((NEXT, OURS), (sent.destination(), destination), to));
            }
        }
        let version = if v6 { "v6" } else { "v4" };
        let out: Vec<Vec<u8>> = (0..flows).map(|flow| frame(0, flow)).collect();
        bench.report(&format!("nat {version} out"), &mut *forwarder, (guests[0], &[uplink]), &out);
        bench.report(&format!("nat {version} in"), &mut *forwarder, (uplink, guests), &answers);
    }
}

/// Flows between guests with an address each, and to the outside.
fn routes(v6: bool) {
    const GUEST: u32 = 0x0a00_0000;
    const OUTSIDE: u32 = 0xc000_0200;
    let next_hop = address(v6, OUTSIDE, 1);
    for flows in FLOWS {
        let (mode, mut slow) = routed::new(routed::Settings {
            mac: ROUTER,
            next_hops: vec![next_hop],
            ..routed::Settings::default()
        });
        let ports = ports(4);
        let addresses = (0..flows).map(|n| address(v6, GUEST, n)).collect();
        let facts = [
            PortFacts { role: Role::Gateway, mtu: 1500, ..PortFacts::default() },
            PortFacts { role: Role::Uplink, mtu: 1500, ..PortFacts::default() },
            PortFacts {
                role: Role::Guest,
                mtu: 1500,
                mac: Some(station(0)),
                addresses: vec![address(v6, 0xac10_0000, 1)],
                ..PortFacts::default()
            },
            PortFacts {
                role: Role::Guest,
                mtu: 1500,
                mac: Some(station(1)),
                addresses,
                ..PortFacts::default()
            },
        ];
        for (&port, facts) in ports.iter().zip(&facts) {
            mode.port_changed(port, facts);
        }
        // The next hop is known from its own question.
        let question = match next_hop {
            IpAddr::V4(next_hop) => Arp::request(NEXT, next_hop, Ipv4Addr::UNSPECIFIED).to_frame(ROUTER),
            IpAddr::V6(next_hop) => Neighbor::solicitation(NEXT, next_hop, modes::router::link_local(ROUTER))
                .to_frame(ROUTER, NEXT),
        };
        slow.receive(Instant::from_secs(1), ports[1], &question, &mut Outbox::default());
        let mut bench = Bench::new();
        let mut forwarder = Arc::clone(&mode).forwarder();
        let version = if v6 { "v6" } else { "v4" };
        let source = (facts[2].addresses[0], 10_000);
        let macs = (station(0), ROUTER);
        let spread = |n: u32| n.wrapping_mul(0x85eb_ca6b) % flows;
        let inside: Vec<Vec<u8>> =
            (0..flows).map(|n| udp(macs, source, (address(v6, GUEST, spread(n)), 53))).collect();
        bench.report(
            &format!("routed {version} to guests"),
            &mut *forwarder,
            (ports[2], &ports[3..]),
            &inside,
        );
        let outside: Vec<Vec<u8>> =
            (0..flows).map(|n| udp(macs, source, (address(v6, 0x0808_0000, spread(n)), 53))).collect();
        bench.report(&format!("routed {version} out"), &mut *forwarder, (ports[2], &ports[1..2]), &outside);
        let back: Vec<Vec<u8>> = (0..flows)
            .map(|n| {
                udp((NEXT, ROUTER), (address(v6, 0x0808_0000, n), 53), (address(v6, GUEST, spread(n)), 9))
            })
            .collect();
        bench.report(&format!("routed {version} in"), &mut *forwarder, (ports[1], &ports[3..]), &back);
    }
}

fn main() {
    for v6 in [false, true] {
        translated(v6);
        routes(v6);
    }
}
