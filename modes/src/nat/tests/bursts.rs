//! A burst that is decided at once becomes what its frames become one by one.

use proptest::prelude::*;

use super::*;

/// A packet to send, in numbers that choose from small sets: frames of a burst are to have to do with one another.
#[derive(Clone, Copy, Debug)]
struct Spec {
    v6: bool,
    /// UDP, TCP with some flags, an echo request, or no IP at all.
    kind: u8,
    inside: u8,
    port: u8,
    remote: u8,
    hops: u8,
}

#[derive(Clone, Debug)]
struct Burst {
    port: usize,
    specs: Vec<Spec>,
    wait: u64,
}

fn specs() -> impl Strategy<Value = Spec> {
    let hops = prop_oneof![20 => Just(64_u8), 1 => 0..3_u8];
    let parts = (any::<bool>(), 0..14_u8, 0..4_u8, 0..6_u8, 0..5_u8, hops);
    parts.prop_map(|(v6, kind, inside, port, remote, hops)| Spec { v6, kind, inside, port, remote, hops })
}

fn bursts() -> impl Strategy<Value = Burst> {
    let port = prop::sample::select(vec![A, A, B, UPLINK, UPLINK]);
    let wait = prop_oneof![8 => 0..2_u64, 1 => 100..400_u64];
    (port, prop::collection::vec(specs(), 1..65), wait).prop_map(|(port, specs, wait)| Burst {
        port,
        specs,
        wait,
    })
}

fn frame(spec: Spec, macs: (MacAddr, MacAddr), from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    let ip = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), spec.hops),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), spec.hops),
        _ => unreachable!("of one family"),
    };
    let mut frame = Vec::new();
    let done = match spec.kind {
        0..6 => ip.udp(from.1, to.1).write(&mut frame, &[7; 4]),
        6..12 => {
            let tcp = ip.tcp(from.1, to.1, 1, 1000);
            match spec.kind {
                6 | 7 => tcp.syn(),
                8 => tcp.syn().ack(1),
                9 => tcp.ack(1),
                10 => tcp.fin().ack(1),
                _ => tcp.rst(),
            }
            .write(&mut frame, &[])
        }
        12 if spec.v6 => ip.icmpv6_echo_request(from.1, 1).write(&mut frame, &[7; 4]),
        12 => ip.icmpv4_echo_request(from.1, 1).write(&mut frame, &[7; 4]),
        _ => ip.udp(from.1, to.1).write(&mut frame, &[7; 4]),
    };
    done.expect("a frame");
    if spec.kind == 13 {
        // Neither version 4 nor 6.
        frame[14] = 0x20;
    }
    frame
}

/// Where packets from the outside may go: the outside endpoint and the remote one.
type Flow = ((IpAddr, u16), (IpAddr, u16));

fn from_guest(spec: Spec, port: usize) -> Vec<u8> {
    let address = |v4: String, v6: String| ip(if spec.v6 { &v6 } else { &v4 });
    // One address is nobody's who may send.
    let inside = match spec.inside {
        3 => address("172.16.0.9".into(), "fd01::9".into()),
        n => address(format!("10.0.0.{}", 10 + n), format!("fd00::{:x}", 10 + n)),
    };
    let remote = match spec.remote {
        4 => address(EXTERNAL.into(), EXTERNAL6.into()),
        n => address(format!("203.0.113.{n}"), format!("2001:db8:9::{}", n + 1)),
    };
    let mac = if port == A { MAC_A } else { MAC_B };
    frame(spec, (mac, ROUTER), (inside, 4000 + u16::from(spec.port)), (remote, 80))
}

fn from_outside(spec: Spec, flows: &[Flow]) -> Vec<u8> {
    let known = flows.iter().rev().filter(|(own, _)| own.0.is_ipv6() == spec.v6);
    let (own, mut remote) = known.cycle().nth(usize::from(spec.port * 5 + spec.inside)).copied().unwrap_or({
        let (own, remote) = if spec.v6 { (EXTERNAL6, REMOTE6) } else { (EXTERNAL, REMOTE) };
        ((ip(own), 5000), (ip(remote), 80))
    });
    if spec.remote == 4 {
        remote.1 = 81;
    }
    frame(spec, (ISP, OURS), remote, own)
}

fn net(filtering: napt::Filtering) -> Net {
    let napt = napt::Settings {
        filtering,
        sessions_per_host: 12,
        mappings_per_host: 5,
        sessions_max: 30,
        ..napt::Settings::new([7, 8])
    };
    let mut settings = settings();
    settings.napt = napt;
    let net = Net::with(settings, 1500);
    for last in 10..13_u32 {
        let (port, mac) = if last == 11 { (B, MAC_B) } else { (A, MAC_A) };
        for address in [format!("10.0.0.{last}"), format!("fd00::{last:x}")] {
            let station = Station { mac, port: net.ports[port] };
            net.mode.neighbors().configure(INSIDE, ip(&address), station);
        }
    }
    for address in ["192.0.2.254", "fe80::fe"] {
        let station = Station { mac: ISP, port: net.ports[UPLINK] };
        net.mode.neighbors().configure(OUTSIDE, ip(address), station);
    }
    net
}

impl Net {
    /// What the forwarder makes of frames that come together: verdicts, and the frames.
    fn decide(&mut self, port: usize, frames: &[Vec<u8>]) -> Vec<(Verdict, Vec<u8>)> {
        let mut heads: Vec<Head> = frames.iter().map(|frame| Head::from_frame(frame)).collect();
        for head in &mut heads {
            check::frame(head, OffloadSet::NONE).expect("a frame");
        }
        let mut out = Verdicts::default();
        out.begin(heads.len());
        self.forwarder.decide(self.now, self.ports[port], &mut heads, &mut out);
        out.as_slice().iter().copied().zip(heads.iter().map(|head| head.bytes().to_vec())).collect()
    }

    fn sessions(&self) -> Vec<String> {
        let mut sessions: Vec<_> =
            self.mode.sessions(self.now, 1000).0.iter().map(|session| format!("{session:?}")).collect();
        sessions.sort();
        sessions
    }
}

fn filterings() -> impl Strategy<Value = napt::Filtering> {
    prop::sample::select(vec![
        napt::Filtering::EndpointIndependent,
        napt::Filtering::AddressDependent,
        napt::Filtering::AddressAndPortDependent,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_burst_is_decided_as_its_frames_are(
        bursts in prop::collection::vec(bursts(), 1..12), filtering in filterings(),
    ) {
        let (mut together, mut alone) = (net(filtering), net(filtering));
        let mut flows: Vec<Flow> = Vec::new();
        for Burst { port, specs, wait } in bursts {
            let frames: Vec<_> = specs
                .into_iter()
                .map(|spec| if port == UPLINK { from_outside(spec, &flows) } else { from_guest(spec, port) })
                .collect();
            let all = together.decide(port, &frames);
            for (i, frame) in frames.iter().enumerate() {
                let one = alone.decide(port, std::slice::from_ref(frame));
                prop_assert_eq!(&all[i..=i], &one[..], "frame {} of {}", i, frames.len());
            }
            prop_assert_eq!(together.sessions(), alone.sessions());
            for (verdict, frame) in all {
                let Ok(packet) = Packet::of_frame(&frame) else { continue };
                if verdict != Verdict::Unicast(together.ports[UPLINK]) {
                    continue;
                }
                if let Transport::Udp { source, destination } | Transport::Tcp { source, destination, .. } =
                    packet.transport()
                {
                    flows.push(((packet.source(), source), (packet.destination(), destination)));
                }
            }
            for net in [&mut together, &mut alone] {
                net.now = net.now + Duration::from_secs(wait);
                net.mode.tick(net.now);
            }
        }
    }
}
