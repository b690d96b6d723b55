//! A port and a guest behind it, without a switch: frames go in by the transmit side and come out of the receive queue.
//! The outside is this host's loopback, which the gateway's addresses mean here.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use datapath::egress::to_vec;
use datapath::port::RxDrops;
use datapath::{Burst, RxQueue as _, Segment, TxPort as _};
use etherparse::PacketBuilder;
use sockets::{Control, Limits, Policy, Settings, SocketsRx, SocketsTx};
use switch_core::checksum;
use switch_core::head::HEAD_LEN;
use switch_core::ip::{Packet, Transport};
use switch_core::offload::OffloadSet;
use switch_core::segment::Segmenter;
use switch_core::virtio_net::VnetHeader;
use switch_core::{Head, MacAddr, check};

pub(crate) const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
pub(crate) const GATEWAY4: &str = "10.0.0.1";
pub(crate) const GATEWAY6: &str = "fd00::1";
pub(crate) const IP4: &str = "10.0.0.2";
pub(crate) const IP6: &str = "fd00::2";
/// How long anything that must come is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn settings() -> Settings {
    Settings {
        mac: ROUTER,
        gateway_v4: Some(GATEWAY4.parse().expect("an address")),
        gateway_v6: Some(GATEWAY6.parse().expect("an address")),
        mtu: 1500,
        host_loopback: true,
        filtering: Default::default(),
        outbound: Policy::new(vec![], vec![ip(GATEWAY4), ip(GATEWAY6)], vec![]).into(),
        limits: Limits::default(),
    }
}

/// What a frame to the guest says, with its checksums verified and fragments and segments as they are.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) packet: Packet,
    pub(crate) frame: Vec<u8>,
}

impl Got {
    /// What is behind the transport header, or the ICMP header.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.frame[self.packet.transport_at() + 8..self.packet.end()]
    }

    pub(crate) fn ports(&self) -> (u16, u16) {
        match self.packet.transport() {
            Transport::Udp { source, destination } => (source, destination),
            other => panic!("no UDP: {other:?}"),
        }
    }

    /// Type and code of an ICMP message.
    pub(crate) fn icmp(&self) -> (u8, u8) {
        match self.packet.transport() {
            Transport::Icmp { kind, code, .. } => (kind, code),
            other => panic!("no ICMP: {other:?}"),
        }
    }
}

pub(crate) struct Rig {
    pub(crate) control: Control,
    rx: SocketsRx,
    tx: SocketsTx,
    burst: Burst,
    out: Burst,
    got: std::collections::VecDeque<Got>,
    /// Frames that came in, a super-frame counted once.
    pub(crate) frames: usize,
}

impl Rig {
    pub(crate) fn new(settings: Settings) -> Self {
        let (control, rx, tx) = sockets::open(settings).expect("a port");
        let (burst, out) = (Burst::new(), Burst::new());
        Self { control, rx, tx, burst, out, got: Default::default(), frames: 0 }
    }

    /// Sends a frame as a guest's, with an offload as virtio has it.
    pub(crate) fn send_with(&mut self, frame: &[u8], vnet: VnetHeader) {
        self.out.clear();
        let head = self.out.next_head().expect("room");
        let bytes = head.begin(frame.len() as u32, HEAD_LEN);
        let n = bytes.len();
        bytes.copy_from_slice(&frame[..n]);
        head.vnet = vnet;
        check::frame(head, OffloadSet::ALL).expect("a sound frame");
        // SAFETY: the frame outlives the call.
        let tail = [unsafe { Segment::new(frame[n..].as_ptr(), (frame.len() - n) as u32) }];
        self.out.push(if n == frame.len() { &[] } else { &tail }).expect("room");
        let report = self.tx.tx_burst(0, &mut self.out.bucket(&[0])).expect("a port in order");
        assert_eq!(report.dropped(), 0);
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.send_with(frame, VnetHeader::default());
    }

    /// Takes what is there.
    fn look(&mut self) {
        self.burst.clear();
        self.rx.rx_burst(&mut self.burst, &mut RxDrops::default()).expect("a port in order");
        let accepted = self.burst.accepted;
        for i in 0..self.burst.len() {
            self.frames += 1;
            let tail = self.burst.tail(i).to_vec();
            let head = &mut self.burst.heads_mut()[i];
            check::frame(head, accepted).expect("a sound frame");
            let mut segments = Vec::new();
            match Segmenter::new(head) {
                Some(segmenter) => {
                    for n in 0..segmenter.count() {
                        let mut piece = Head::new();
                        let range = segmenter.segment(n, head, &mut piece);
                        let all = to_vec(head, &tail);
                        let at = head.bytes().len() + range.start;
                        segments.push((piece, all[at..at + range.len()].to_vec()));
                    }
                }
                None => {
                    let rest = to_vec(head, &tail).split_off(head.bytes().len());
                    segments.push((head.clone(), rest));
                }
            }
            for (mut head, rest) in segments {
                checksum::complete(&mut head, |sum| sum.add(&rest));
                let frame = [head.bytes(), &rest].concat();
                let packet = Packet::of_frame(&frame).expect("a packet");
                assert_eq!((head.destination(), head.source()), (GUEST, ROUTER));
                assert!(packet.len() <= 1500, "longer than the MTU: {}", packet.len());
                if !packet.is_fragment() {
                    verify(&packet, &frame);
                }
                self.got.push_back(Got { packet, frame });
            }
        }
        self.rx.release();
    }

    /// The next frame to the guest, which must come.
    pub(crate) fn next(&mut self) -> Got {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(got) = self.got.pop_front() {
                return got;
            }
            assert!(Instant::now() < until, "no frame came");
            self.look();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Nothing is there now: to be asked when something that came later has come.
    pub(crate) fn nothing(&mut self) {
        self.look();
        assert!(self.got.is_empty(), "unexpected: {:?}", self.got);
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.control.counters().iter().find(|(n, _)| *n == name).expect("a counter").1
    }
}

fn verify(packet: &Packet, frame: &[u8]) {
    let body = &frame[packet.transport_at()..packet.end()];
    let mut sum = match (packet.source(), packet.destination()) {
        (IpAddr::V4(_), IpAddr::V4(_)) if packet.protocol() == 1 => checksum::Sum::new(),
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            checksum::Sum::pseudo_v4(from.octets(), to.octets(), packet.protocol(), body.len() as u16)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            checksum::Sum::pseudo_v6(from.octets(), to.octets(), packet.protocol(), body.len() as u32)
        }
        _ => unreachable!("one family"),
    };
    sum.add(body);
    assert_eq!(sum.fold(), 0xffff, "a wrong checksum: {packet:?}");
}

/// A UDP frame of the guest's.
pub(crate) fn udp(from: u16, to: SocketAddr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(GUEST.0, ROUTER.0);
    let mut frame = Vec::new();
    let ip = match to.ip() {
        IpAddr::V4(to) => {
            link.ipv4(IP4.parse::<std::net::Ipv4Addr>().expect("an address").octets(), to.octets(), ttl)
        }
        IpAddr::V6(to) => {
            link.ipv6(IP6.parse::<std::net::Ipv6Addr>().expect("an address").octets(), to.octets(), ttl)
        }
    };
    ip.udp(from, to.port()).write(&mut frame, payload).expect("a vector takes it");
    frame
}

/// An echo request of the guest's.
pub(crate) fn ping(id: u16, to: IpAddr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(GUEST.0, ROUTER.0);
    let mut frame = Vec::new();
    match to {
        IpAddr::V4(to) => link
            .ipv4(IP4.parse::<std::net::Ipv4Addr>().expect("an address").octets(), to.octets(), ttl)
            .icmpv4_echo_request(id, 7)
            .write(&mut frame, payload),
        IpAddr::V6(to) => link
            .ipv6(IP6.parse::<std::net::Ipv6Addr>().expect("an address").octets(), to.octets(), ttl)
            .icmpv6_echo_request(id, 7)
            .write(&mut frame, payload),
    }
    .expect("a vector takes it");
    frame
}

/// A frame of the guest's in fragments, as it sends them over a link of 1,500 bytes.
pub(crate) fn in_fragments(frame: &[u8], id: u32) -> Vec<Vec<u8>> {
    let packet = Packet::of_frame(frame).expect("a packet");
    let at = packet.transport_at();
    let body = &frame[at..packet.end()];
    let last = body.len().div_ceil(1448) - 1;
    let cut = |(i, piece): (usize, &[u8])| {
        let (offset, more) = (i as u16 * 1448, i < last);
        let mut out = frame[..at].to_vec();
        if packet.is_v6() {
            out[18..20].copy_from_slice(&(piece.len() as u16 + 8).to_be_bytes());
            let protocol = std::mem::replace(&mut out[20], 44);
            out.extend([protocol, 0]);
            out.extend((offset | u16::from(more)).to_be_bytes());
            out.extend(id.to_be_bytes());
        } else {
            out[16..18].copy_from_slice(&(piece.len() as u16 + 20).to_be_bytes());
            out[18..20].copy_from_slice(&(id as u16).to_be_bytes());
            out[20..22].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
            out[24..26].fill(0);
            let mut sum = checksum::Sum::new();
            sum.add(&out[14..34]);
            out[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
        }
        out.extend_from_slice(piece);
        out
    };
    body.chunks(1448).enumerate().map(cut).collect()
}

impl Rig {
    /// The next packet to the guest, put together if it comes in fragments: whom it is from, and what is behind the IP
    /// headers.
    pub(crate) fn next_whole(&mut self) -> (Packet, Vec<u8>) {
        let first = self.next();
        let body = |got: &Got| got.frame[got.packet.transport_at()..got.packet.end()].to_vec();
        let (packet, mut bytes) = (first.packet, body(&first));
        let mut more = packet.more_fragments();
        while more {
            let next = self.next();
            assert_eq!(usize::from(next.packet.fragment_offset()), bytes.len());
            assert_eq!(next.packet.fragment_id(), packet.fragment_id());
            more = next.packet.more_fragments();
            bytes.extend(body(&next));
        }
        (packet, bytes)
    }
}
