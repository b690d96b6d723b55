//! Frames for tests, built with etherparse.

use etherparse::{Ethernet2Header, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader};
use proptest::prelude::*;

use crate::head::Head;
use crate::offload::OffloadSet;
use crate::virtio_net::{self as wire, VnetHeader};

/// A frame to build: TCP or UDP, with what may surround it.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    /// The TCI of a tag.
    pub(crate) tci: Option<u16>,
    /// Words of IPv4 options, or IPv6 extension headers of that many bytes times eight.
    pub(crate) ip_options: usize,
    /// Words of TCP options.
    pub(crate) tcp_options: usize,
    /// TCP flags.
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) identification: u16,
    pub(crate) payload: usize,
    pub(crate) size: u16,
    /// Bytes that the port copies into the head, beyond the headers.
    pub(crate) head_extra: usize,
}

impl Spec {
    /// TCP over IPv4 without anything else: 3,000 bytes in segments of 1,000.
    pub(crate) fn tcp() -> Self {
        Self {
            v6: false,
            udp: false,
            tci: None,
            ip_options: 0,
            tcp_options: 0,
            flags: 0x18,
            sequence: 1,
            identification: 7,
            payload: 3000,
            size: 1000,
            head_extra: 0,
        }
    }
}

/// A frame that a port received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    pub(crate) vnet: VnetHeader,
    /// Where the network header begins, the transport header, the payload.
    pub(crate) at: [usize; 3],
    pub(crate) head_len: usize,
}

impl Received {
    /// The head, unchecked.
    pub(crate) fn head(&self) -> Head {
        let mut head = Head::new();
        let space = head.begin(self.bytes.len() as u32, self.head_len);
        let len = space.len();
        space.copy_from_slice(&self.bytes[..len]);
        head.vnet = self.vnet;
        head
    }

    /// The head, checked.
    pub(crate) fn checked(&self) -> Head {
        let mut head = self.head();
        crate::check::frame(&mut head, OffloadSet::ALL).expect("a sound frame");
        head
    }

    /// What is not in the head.
    pub(crate) fn tail(&self) -> &[u8] {
        &self.bytes[self.head().bytes().len()..]
    }
}

/// Bytes without a pattern that a swap or shift would keep.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The sum of a pseudo-header, computed as slowly as it is defined.
fn pseudo(source: &[u8], destination: &[u8], protocol: u8, length: usize) -> u16 {
    let words = |b: &[u8]| b.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let mut sum = words(source) + words(destination) + u32::from(protocol) + length as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Builds a super-frame, as a guest's driver hands it over.
pub(crate) fn build(spec: &Spec) -> Received {
    let protocol = if spec.udp { IpNumber::UDP } else { IpNumber::TCP };
    let mut transport = if spec.udp {
        let mut udp = vec![0x30, 0x39, 0x00, 0x35];
        udp.extend(((8 + spec.payload) as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp
    } else {
        let mut tcp = TcpHeader::new(12345, 80, spec.sequence, 1000);
        tcp.set_options_raw(&vec![1; spec.tcp_options * 4]).expect("at most ten words");
        let mut bytes = tcp.to_bytes().to_vec();
        bytes[13] = spec.flags;
        bytes
    };
    let payload_and_transport = transport.len() + spec.payload;
    let mut ip = Vec::new();
    let (source, destination);
    if spec.v6 {
        (source, destination) = (noise(32)[..16].to_vec(), noise(32)[16..].to_vec());
        let extensions = if spec.ip_options > 0 { spec.ip_options * 8 } else { 0 };
        let header = Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: (extensions + payload_and_transport) as u16,
            // Destination options, or the transport at once.
            next_header: if extensions > 0 { IpNumber(60) } else { protocol },
            hop_limit: 64,
            source: source.clone().try_into().expect("16 bytes"),
            destination: destination.clone().try_into().expect("16 bytes"),
        };
        ip.extend(header.to_bytes());
        if extensions > 0 {
            // One option, PadN, that fills the header.
            ip.extend([protocol.0, (spec.ip_options - 1) as u8, 1, (extensions - 4) as u8]);
            ip.resize(40 + extensions, 0);
        }
    } else {
        (source, destination) = (vec![192, 0, 2, 1], vec![198, 51, 100, 7]);
        let mut header = Ipv4Header::new(0, 64, protocol, [192, 0, 2, 1], [198, 51, 100, 7]).expect("short");
        header.options = vec![1; spec.ip_options * 4].as_slice().try_into().expect("at most ten words");
        header.identification = spec.identification;
        header.dont_fragment = false;
        header.set_payload_len(payload_and_transport).expect("64 KB at most");
        header.header_checksum = header.calc_header_checksum();
        ip.extend(header.to_bytes());
    }
    let offset = if spec.udp { 6 } else { 16 };
    let sum = pseudo(&source, &destination, protocol.0, payload_and_transport);
    transport[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());

    let ethertype = if spec.v6 { etherparse::EtherType::IPV6 } else { etherparse::EtherType::IPV4 };
    let ethernet = Ethernet2Header {
        source: [2, 0, 0, 0, 0, 1],
        destination: [2, 0, 0, 0, 0, 2],
        ether_type: ethertype,
    };
    let mut bytes = ethernet.to_bytes().to_vec();
    if let Some(tci) = spec.tci {
        let [a, b] = tci.to_be_bytes();
        bytes.splice(12..12, [0x81, 0x00, a, b]);
    }
    let network_at = bytes.len();
    bytes.extend(ip);
    let transport_at = bytes.len();
    bytes.extend(transport);
    let payload_at = bytes.len();
    bytes.extend(noise(spec.payload));
    let gso_type = match (spec.udp, spec.v6) {
        (true, _) => wire::GSO_UDP_L4,
        (false, true) => wire::GSO_TCPV6,
        (false, false) => wire::GSO_TCPV4,
    };
    let vnet = VnetHeader {
        flags: wire::F_NEEDS_CSUM,
        gso_type,
        hdr_len: 0,
        gso_size: spec.size,
        csum_start: transport_at as u16,
        csum_offset: offset as u16,
        num_buffers: 0,
    };
    Received {
        bytes,
        vnet,
        at: [network_at, transport_at, payload_at],
        head_len: payload_at + spec.head_extra,
    }
}

/// All kinds of super-frames.
pub(crate) fn specs() -> impl Strategy<Value = Spec> {
    let shape =
        (any::<bool>(), any::<bool>(), proptest::option::of(0..0xffe_u16), 0..=10_usize, 0..=10_usize);
    let values = (any::<u8>(), any::<u32>(), any::<u16>());
    let sizes = (1..6000_usize, 16..3000_u16, 0..100_usize);
    (shape, values, sizes).prop_map(|(shape, values, sizes)| {
        let (v6, udp, tci, ip_options, tcp_options) = shape;
        let (flags, sequence, identification) = values;
        let (payload, size, head_extra) = sizes;
        Spec {
            v6,
            udp,
            tci,
            ip_options,
            tcp_options,
            flags,
            sequence,
            identification,
            payload,
            size,
            head_extra,
        }
    })
}
