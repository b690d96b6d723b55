//! What forwarders do with heads, in bursts as a worker gives them. Filling and checking the heads is not counted.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use ipnetwork::IpNetwork;
use modes::bridge::Bridge;
use modes::gateway::Outbox;
use modes::router::{Link, Station};
use modes::{nat, routed};
use switch_core::head::Head;
use switch_core::ids::{MacAddr, PortId, Registry};
use switch_core::ip::arp::Arp;
use switch_core::mode::{Forwarder, Mode, PortFacts, Role};
use switch_core::napt;
use switch_core::offload::OffloadSet;
use switch_core::time::Instant;
use switch_core::verdict::{BURST, Verdict, Verdicts};

use crate::counted_by_callgrind;
use crate::path::ethernet;

const FRAMES: usize = 32_000;
const AGEING: Duration = Duration::from_secs(36_000);
const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const NEXT: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);
const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 4]);
const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 5]);

/// A worker's heads and its clock.
struct Worker {
    heads: Vec<Head>,
    verdicts: Verdicts,
    now: Instant,
}

impl Worker {
    fn new() -> Self {
        Self { heads: vec![Head::new(); BURST], verdicts: Verdicts::default(), now: Instant::from_secs(1) }
    }

    fn fill(&mut self, burst: &[Vec<u8>]) -> Result<()> {
        self.now = self.now + Duration::from_micros(6);
        self.verdicts.begin(burst.len());
        for (head, frame) in self.heads.iter_mut().zip(burst) {
            head.begin(frame.len() as u32, frame.len()).copy_from_slice(frame);
            switch_core::check::frame(head, OffloadSet::NONE)
                .map_err(|why| anyhow::anyhow!("an unsound frame: {why:?}"))?;
        }
        Ok(())
    }

    /// Gives the forwarder `frames`, from `from`, uncounted; all must have a verdict that is `expected`.
    fn pass(
        &mut self,
        forwarder: &mut dyn Forwarder,
        from: PortId,
        frames: &[Vec<u8>],
        counted: bool,
        expected: impl Fn(&Verdict) -> bool,
    ) -> Result<u64> {
        for burst in frames.chunks(BURST) {
            self.fill(burst)?;
            let (now, heads, out) = (self.now, &mut self.heads[..burst.len()], &mut self.verdicts);
            let mut work = || forwarder.decide(now, from, heads, out);
            if counted {
                counted_by_callgrind(&mut work)
            } else {
                work()
            }
            ensure!(
                self.verdicts.as_slice().iter().all(&expected),
                "other verdicts: {:?}",
                self.verdicts.as_slice()
            );
        }
        Ok(frames.len() as u64)
    }
}

fn ports<const N: usize>() -> Result<[PortId; N]> {
    let mut registry = Registry::<PortId>::new(8);
    let ports: Option<Vec<PortId>> = (0..N).map(|_| registry.mint()).collect();
    ports.and_then(|ports| ports.try_into().ok()).context("no ports")
}

/// The `n`th of `count` in an order that is not that of memory.
fn shuffled(n: usize, count: usize) -> u32 {
    (n as u32).wrapping_mul(0x85eb_ca6b) % count as u32
}

fn between(to: u32, from: u32) -> Vec<u8> {
    let mut frame = ethernet(0, 0, 64);
    frame[2..6].copy_from_slice(&to.to_be_bytes());
    frame[8..12].copy_from_slice(&from.to_be_bytes());
    frame
}

/// Frames to `stations` stations, which the bridge knows.
pub(crate) fn bridge_known(stations: usize) -> Result<u64> {
    const BASE: u32 = 0x0100_0000;
    let [a, b] = ports()?;
    let bridge = Arc::new(Bridge::new(AGEING, 100_000));
    let mut forwarder = Arc::clone(&bridge).forwarder();
    let mut worker = Worker::new();
    let learn: Vec<_> = (0..stations as u32).map(|n| between(1, BASE + n)).collect();
    worker.pass(&mut *forwarder, b, &learn, false, |_| true)?;
    let frames: Vec<_> = (0..FRAMES).map(|n| between(BASE + shuffled(n, stations), 1)).collect();
    let there = |verdict: &Verdict| *verdict == Verdict::Unicast(b);
    worker.pass(&mut *forwarder, a, &frames[..FRAMES.min(2 * BURST)], false, there)?;
    worker.pass(&mut *forwarder, a, &frames, true, there)
}

/// Frames from stations that were never seen, of a guest that has filled the table: each evicts one of its own.
pub(crate) fn bridge_learn() -> Result<u64> {
    let [a, _] = ports()?;
    let bridge = Arc::new(Bridge::new(AGEING, 8_192));
    let mut forwarder = Arc::clone(&bridge).forwarder();
    let mut worker = Worker::new();
    let frame = |n: usize| between(u32::MAX, n as u32 + 1);
    let flooded = |verdict: &Verdict| *verdict == Verdict::Flood;
    let fill: Vec<_> = (0..10_000).map(frame).collect();
    worker.pass(&mut *forwarder, a, &fill, false, flooded)?;
    let storm: Vec<_> = (10_000..10_000 + FRAMES).map(frame).collect();
    worker.pass(&mut *forwarder, a, &storm, true, flooded)
}

fn udp(macs: (MacAddr, MacAddr), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(macs.0.0, macs.1.0)
        .ipv4(from.0.octets(), to.0.octets(), 64)
        .udp(from.1, to.1)
        .write(&mut frame, &[0; 18])?;
    Ok(frame)
}

fn inside(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + n)
}

fn outside(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc000_0200 + n)
}

fn facts(role: Role) -> PortFacts {
    PortFacts { role, mtu: 1500, ..PortFacts::default() }
}

/// A guest's frames to the outside, of `flows` flows with a session each.
pub(crate) fn nat_hot(flows: usize) -> Result<u64> {
    let net = |address: Ipv4Addr, bits| IpNetwork::new(IpAddr::V4(address), bits);
    let (mode, _slow) = nat::new(nat::Settings {
        subnets: vec![net(inside(0), 16)?],
        gateway: vec![inside(1).into()],
        mac: ROUTER,
        egress: nat::Egress::Uplink(nat::Uplink {
            mac: OURS,
            addresses: vec![net(outside(2), 24)?],
            next_hop4: Some(outside(1).into()),
            next_hop6: None,
            answer_echo: false,
            answer_unsolicited: false,
        }),
        napt: napt::Settings { udp_timeout: AGEING, ..napt::Settings::new([1, 2]) },
        ageing: AGEING,
        fdb_max: 8192,
    });
    let [gateway, uplink, guest] = ports()?;
    for (port, role) in [(gateway, Role::Gateway), (uplink, Role::Uplink), (guest, Role::Guest)] {
        mode.port_changed(port, &facts(role));
    }
    mode.neighbors().configure(Link::Shared(1), outside(1).into(), Station { mac: NEXT, port: uplink });
    mode.neighbors().configure(Link::Shared(0), inside(10).into(), Station { mac: GUEST, port: guest });
    let mut forwarder = Arc::clone(&mode).forwarder();
    let mut worker = Worker::new();
    let flow = |n: u32| {
        let to = Ipv4Addr::from_bits(0x0808_0000 + n / 700);
        udp((GUEST, ROUTER), (inside(10), 10_000 + (n % 700) as u16), (to, 53))
    };
    let out = |verdict: &Verdict| *verdict == Verdict::Unicast(uplink);
    let first = (0..flows as u32).map(flow).collect::<Result<Vec<_>>>()?;
    worker.pass(&mut *forwarder, guest, &first, false, out)?;
    let frames = (0..FRAMES).map(|n| flow(shuffled(n, flows))).collect::<Result<Vec<_>>>()?;
    worker.pass(&mut *forwarder, guest, &frames, true, out)
}

/// A guest's frames to `addresses` addresses of another one.
pub(crate) fn routed(addresses: usize) -> Result<u64> {
    let (mode, mut slow) = routed::new(routed::Settings {
        mac: ROUTER,
        next_hops: vec![outside(1).into()],
        ..routed::Settings::default()
    });
    let [gateway, uplink, a, b] = ports()?;
    let a_address = Ipv4Addr::new(172, 16, 0, 1);
    mode.port_changed(gateway, &facts(Role::Gateway));
    mode.port_changed(uplink, &facts(Role::Uplink));
    let guest = |mac, addresses| PortFacts { mac: Some(mac), addresses, ..facts(Role::Guest) };
    mode.port_changed(a, &guest(GUEST, vec![a_address.into()]));
    mode.port_changed(b, &guest(OTHER, (0..addresses as u32).map(|n| inside(n).into()).collect()));
    let question = Arp::request(NEXT, outside(1), Ipv4Addr::UNSPECIFIED).to_frame(ROUTER);
    slow.receive(Instant::from_secs(1), uplink, &question, &mut Outbox::default());
    let mut forwarder = Arc::clone(&mode).forwarder();
    let mut worker = Worker::new();
    let frame = |n: usize| udp((GUEST, ROUTER), (a_address, 10_000), (inside(shuffled(n, addresses)), 53));
    let frames = (0..FRAMES).map(frame).collect::<Result<Vec<_>>>()?;
    let there = |verdict: &Verdict| *verdict == Verdict::Unicast(b);
    worker.pass(&mut *forwarder, a, &frames, false, there)?;
    worker.pass(&mut *forwarder, a, &frames, true, there)
}
