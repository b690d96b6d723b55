//! Frames for tests: built whole, with correct lengths and checksums, or checked for them.
//!
//! Addresses are bare byte arrays, so that tests stay short.

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};

/// A MAC address.
pub type Mac = [u8; 6];
/// An IPv4 address.
pub type Ipv4 = [u8; 4];
/// An IPv6 address.
pub type Ipv6 = [u8; 16];

/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];
/// Length of an Ethernet header without tags.
pub const ETH_LEN: usize = 14;
/// The shortest Ethernet frame without its check sequence.
pub const FRAME_MIN: usize = 60;

/// An Ethernet frame of any type.
#[must_use]
pub fn ethernet(src: Mac, dst: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETH_LEN + payload.len());
    frame.extend_from_slice(&dst);
    frame.extend_from_slice(&src);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The frame with zeros up to the shortest Ethernet frame's length.
#[must_use]
pub fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(FRAME_MIN), 0);
    frame
}

/// The frame with an 802.1Q tag behind its addresses (`pcp` 0–7, `vid` 0–4095).
#[must_use]
pub fn tagged(frame: &[u8], vid: u16, pcp: u8) -> Vec<u8> {
    tagged_with(frame, 0x8100, vid, pcp)
}

/// As [`tagged`], with any tag protocol (0x88a8 for a service tag).
#[must_use]
pub fn tagged_with(frame: &[u8], tpid: u16, vid: u16, pcp: u8) -> Vec<u8> {
    let at = frame.len().min(12);
    let tci = (u16::from(pcp) << 13) | (vid & 0xfff);
    let mut out = frame[..at].to_vec();
    out.extend_from_slice(&tpid.to_be_bytes());
    out.extend_from_slice(&tci.to_be_bytes());
    out.extend_from_slice(&frame[at..]);
    out
}

/// The outer 802.1Q tag of a frame, as (VID, PCP).
#[must_use]
pub fn vlan_of(frame: &[u8]) -> Option<(u16, u8)> {
    let tpid = be16(frame, 12)?;
    let tci = be16(frame, 14)?;
    (tpid == 0x8100 || tpid == 0x88a8).then_some((tci & 0xfff, (tci >> 13) as u8))
}

/// The destination address of a frame.
#[must_use]
pub fn dst_of(frame: &[u8]) -> Option<Mac> {
    frame.get(..6)?.try_into().ok()
}

/// The source address of a frame.
#[must_use]
pub fn src_of(frame: &[u8]) -> Option<Mac> {
    frame.get(6..12)?.try_into().ok()
}

fn be16(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

fn arp(op: ArpOperation, src: Mac, dst: Mac, sender_ip: Ipv4, target: Mac, target_ip: Ipv4) -> Vec<u8> {
    let packet =
        ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, op, &src, &sender_ip, &target, &target_ip);
    let packet = packet.expect("addresses of fixed length always fit");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src, dst)
        .arp(packet)
        .write_to_vec(&mut frame)
        .expect("writing to memory does not fail");
    padded(frame)
}

/// Who has `target_ip`? Tell `sender_ip`. Sent to everybody.
#[must_use]
pub fn arp_request(src: Mac, sender_ip: Ipv4, target_ip: Ipv4) -> Vec<u8> {
    arp(ArpOperation::REQUEST, src, BROADCAST, sender_ip, [0; 6], target_ip)
}

/// `sender_ip` is at `src`, told to `dst`.
#[must_use]
pub fn arp_reply(src: Mac, sender_ip: Ipv4, dst: Mac, target_ip: Ipv4) -> Vec<u8> {
    arp(ArpOperation::REPLY, src, dst, sender_ip, dst, target_ip)
}

/// An ARP packet's meaning: (operation, sender MAC, sender IP, target MAC, target IP).
#[must_use]
pub fn parse_arp(frame: &[u8]) -> Option<(u16, Mac, Ipv4, Mac, Ipv4)> {
    if be16(frame, 12)? != 0x0806 || frame.get(14..20)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let mac = |at: usize| frame.get(at..at + 6)?.try_into().ok();
    let ip = |at: usize| frame.get(at..at + 4)?.try_into().ok();
    Some((be16(frame, 20)?, mac(22)?, ip(28)?, mac(32)?, ip(38)?))
}

/// The two ends of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Source MAC address.
    pub src_mac: Mac,
    /// Destination MAC address.
    pub dst_mac: Mac,
    /// Source address.
    pub src: Ipv4,
    /// Destination address.
    pub dst: Ipv4,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

impl Flow {
    /// A flow between two guests of which only the MAC addresses matter: 10.0.0.1 port 1000 to 10.0.0.2 port 2000.
    #[must_use]
    pub fn between(src_mac: Mac, dst_mac: Mac) -> Self {
        Flow { src_mac, dst_mac, src: [10, 0, 0, 1], dst: [10, 0, 0, 2], src_port: 1000, dst_port: 2000 }
    }

    /// The flow in the other direction.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Flow {
            src_mac: self.dst_mac,
            dst_mac: self.src_mac,
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
        }
    }
}

/// A UDP datagram over IPv4.
#[must_use]
pub fn udp(flow: &Flow, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(flow.src_mac, flow.dst_mac)
        .ipv4(flow.src, flow.dst, 64)
        .udp(flow.src_port, flow.dst_port)
        .write_to_vec(&mut frame, payload)
        .expect("a datagram fits into a packet");
    frame
}

/// A TCP segment over IPv4 with the ACK flag.
#[must_use]
pub fn tcp(flow: &Flow, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(flow.src_mac, flow.dst_mac)
        .ipv4(flow.src, flow.dst, 64)
        .tcp(flow.src_port, flow.dst_port, seq, 65_535)
        .ack(ack)
        .write_to_vec(&mut frame, payload)
        .expect("a segment fits into a packet");
    frame
}

/// A TCP segment over IPv4 with flags of the header's own order: FIN 1, SYN 2, RST 4, PSH 8, ACK 16; others are left out.
#[must_use]
pub fn tcp_flags(flow: &Flow, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = PacketBuilder::ethernet2(flow.src_mac, flow.dst_mac).ipv4(flow.src, flow.dst, 64).tcp(
        flow.src_port,
        flow.dst_port,
        seq,
        65_535,
    );
    let has = |flag: u8| flags & flag != 0;
    if has(1) {
        segment = segment.fin();
    }
    if has(2) {
        segment = segment.syn();
    }
    if has(4) {
        segment = segment.rst();
    }
    if has(8) {
        segment = segment.psh();
    }
    if has(16) {
        segment = segment.ack(ack);
    }
    let mut frame = Vec::new();
    segment.write_to_vec(&mut frame, payload).expect("a segment fits into a packet");
    frame
}

/// An ICMP echo request over IPv4.
#[must_use]
pub fn icmp_echo_request(flow: &Flow, id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(flow.src_mac, flow.dst_mac)
        .ipv4(flow.src, flow.dst, 64)
        .icmpv4_echo_request(id, seq)
        .write_to_vec(&mut frame, payload)
        .expect("an echo request fits into a packet");
    frame
}

/// An ICMP echo reply over IPv4.
#[must_use]
pub fn icmp_echo_reply(flow: &Flow, id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(flow.src_mac, flow.dst_mac)
        .ipv4(flow.src, flow.dst, 64)
        .icmpv4_echo_reply(id, seq)
        .write_to_vec(&mut frame, payload)
        .expect("an echo reply fits into a packet");
    frame
}

/// A UDP datagram over IPv6.
#[must_use]
pub fn udp6(src_mac: Mac, dst_mac: Mac, src: Ipv6, dst: Ipv6, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac, dst_mac)
        .ipv6(src, dst, 64)
        .udp(ports.0, ports.1)
        .write_to_vec(&mut frame, payload)
        .expect("a datagram fits into a packet");
    frame
}

/// A TCP segment over IPv6 with the ACK flag.
#[must_use]
pub fn tcp6(
    src_mac: Mac,
    dst_mac: Mac,
    src: Ipv6,
    dst: Ipv6,
    ports: (u16, u16),
    (seq, ack): (u32, u32),
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac, dst_mac)
        .ipv6(src, dst, 64)
        .tcp(ports.0, ports.1, seq, 65_535)
        .ack(ack)
        .write_to_vec(&mut frame, payload)
        .expect("a segment fits into a packet");
    frame
}

/// Adds big-endian 16-bit words to a ones' complement sum (RFC 1071); an odd last byte counts as a word's high byte.
#[must_use]
pub fn sum_words(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    // Four bytes at a time: carries gather in the upper half, and folding is the same in the end.
    let sum = words.iter().fold(sum, |s, w| s + u64::from(u32::from_be_bytes(*w)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum to 16 bits, without the complement.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The Internet checksum of bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum_words(0, bytes))
}

/// Where a frame's transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Offset of the IP header in the frame.
    pub ip: usize,
    /// IP version, 4 or 6.
    pub version: u8,
    /// IP protocol: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6.
    pub protocol: u8,
    /// Offset of the transport header.
    pub start: usize,
    /// Offset of the end of the IP packet, which may come before the frame's end.
    pub end: usize,
}

impl Transport {
    /// Finds the transport header of an unfragmented IPv4 packet, or of an IPv6 packet without extension headers,
    /// behind any number of VLAN tags.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let mut at = 12;
        while matches!(be16(frame, at)?, 0x8100 | 0x88a8) {
            at += 4;
        }
        let ip = at + 2;
        match be16(frame, at)? {
            0x0800 => {
                let ihl = usize::from(frame.get(ip)? & 0xf) * 4;
                let end = ip + usize::from(be16(frame, ip + 2)?);
                let fragment = be16(frame, ip + 6)? & 0x3fff;
                let ok = ihl >= 20 && fragment == 0 && end <= frame.len() && ip + ihl <= end;
                ok.then_some(Transport { ip, version: 4, protocol: frame[ip + 9], start: ip + ihl, end })
            }
            0x86dd => {
                let end = ip + 40 + usize::from(be16(frame, ip + 4)?);
                (end <= frame.len()).then(|| Transport {
                    ip,
                    version: 6,
                    protocol: frame[ip + 6],
                    start: ip + 40,
                    end,
                })
            }
            _ => None,
        }
    }

    /// The ones' complement sum of the pseudo-header.
    #[must_use]
    pub fn pseudo_sum(&self, frame: &[u8]) -> u64 {
        let addresses = if self.version == 4 {
            &frame[self.ip + 12..self.ip + 20]
        } else {
            &frame[self.ip + 8..self.ip + 40]
        };
        sum_words(u64::from(self.protocol) + (self.end - self.start) as u64, addresses)
    }

    /// Where the transport's checksum is, bytes from its header; `None` for protocols without one.
    #[must_use]
    pub fn checksum_offset(&self) -> Option<usize> {
        match self.protocol {
            6 => Some(16),
            17 => Some(6),
            1 | 58 => Some(2),
            _ => None,
        }
    }
}

/// Whether the IPv4 header's and the transport's checksums of a frame are right. UDP over IPv4 may have none.
/// Frames without such checksums (ARP, other protocols, fragments) count as right.
#[must_use]
pub fn checksums_ok(frame: &[u8]) -> bool {
    let Some(t) = Transport::of(frame) else { return true };
    if t.version == 4 && checksum(&frame[t.ip..t.start]) != 0 {
        return false;
    }
    let Some(field) = t.checksum_offset() else { return true };
    let segment = &frame[t.start..t.end];
    if segment.len() < field + 2 {
        return false;
    }
    if t.protocol == 17 && t.version == 4 && segment[6..8] == [0, 0] {
        return true;
    }
    let pseudo = if t.protocol == 1 { 0 } else { t.pseudo_sum(frame) };
    fold(sum_words(pseudo, segment)) == 0xffff
}

/// Writes the pseudo-header's sum where the transport's checksum goes, as a guest that asks for its completion does,
/// and gives (start, offset) for the header. `None` for what has no such checksum; then nothing is changed.
pub fn prepare_partial(frame: &mut [u8]) -> Option<(u16, u16)> {
    let t = Transport::of(frame).filter(|t| matches!(t.protocol, 6 | 17))?;
    let field = t.checksum_offset()?;
    if t.end - t.start < field + 2 {
        return None;
    }
    let sum = fold(t.pseudo_sum(frame));
    frame[t.start + field..t.start + field + 2].copy_from_slice(&sum.to_be_bytes());
    Some((t.start as u16, field as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn built_frames_have_right_checksums_and_broken_ones_are_found() {
        let flow = Flow::between(A, B);
        let payload: Vec<u8> = (0..=254).collect();
        let (a6, b6) = ([0xfd; 16], [0xfe; 16]);
        for frame in [
            udp(&flow, &payload),
            tcp(&flow, 1, 2, &payload),
            icmp_echo_request(&flow, 1, 2, &payload),
            icmp_echo_reply(&flow, 1, 2, b""),
            udp6(A, B, a6, b6, (1, 2), &payload),
            tcp6(A, B, a6, b6, (1, 2), (3, 4), &payload),
        ] {
            assert!(checksums_ok(&frame));
            assert!(checksums_ok(&tagged(&frame, 5, 1)));
            let mut broken = frame.clone();
            *broken.last_mut().unwrap() ^= 0x10;
            assert!(!checksums_ok(&broken), "{frame:02x?}");
        }
    }

    #[test]
    fn a_partial_checksum_completes_to_the_right_one() {
        let whole = tcp(&Flow::between(A, B), 7, 8, b"some payload, odd");
        let mut frame = whole.clone();
        let (start, offset) = prepare_partial(&mut frame).unwrap();
        let at = usize::from(start + offset);
        let sum = checksum(&frame[usize::from(start)..]);
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(frame, whole);
    }

    #[test]
    fn arp_and_tags_are_read_back() {
        let frame = arp_reply(A, [10, 0, 0, 1], B, [10, 0, 0, 2]);
        assert_eq!(parse_arp(&frame), Some((2, A, [10, 0, 0, 1], B, [10, 0, 0, 2])));
        assert_eq!(frame.len(), FRAME_MIN);
        let frame = tagged(&arp_request(A, [10, 0, 0, 1], [10, 0, 0, 2]), 100, 3);
        assert_eq!(vlan_of(&frame), Some((100, 3)));
        assert_eq!((dst_of(&frame), src_of(&frame)), (Some(BROADCAST), Some(A)));
        assert_eq!(parse_arp(&frame), None);
    }
}
