//! Which flow a frame is of, as a number to choose one of several queues by.
//!
//! A flow is what must stay in order: of TCP and UDP the addresses and ports of both ends and the protocol; of other IP
//! packets, and of fragments, which do not all have the ports, the addresses and the protocol; of anything else the MAC
//! addresses and the EtherType. A direction is a flow of its own.
//!
//! The hash is keyed, so that who sends cannot know which flows meet in one queue.

use crate::fdb::fold;
use crate::head::{ETHERNET_LEN, Head};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A keyed hash of flows.
#[derive(Clone, Debug)]
pub struct FlowHash {
    xor: [u64; 4],
    multiply: [u64; 4],
}

impl FlowHash {
    /// The hash with a key of the caller's: eight random numbers, or any for one that can be foretold.
    pub fn new(key: [u64; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = key;
        Self { xor: [a, b, c, d], multiply: [e | 1, f | 1, g | 1, h | 1] }
    }

    /// The hash of the flow of a frame that was checked. All bits are of use. A frame whose headers are not whole in the
    /// head, or are malformed, is of the flow that the headers before those name.
    #[inline]
    pub fn of(&self, head: &Head) -> u32 {
        let bytes = head.bytes();
        let packet = bytes.get(head.link_len()..).unwrap_or_default();
        let found = match head.ethertype() {
            IPV4 => self.v4(packet),
            IPV6 => self.v6(packet),
            _ => None,
        };
        found.unwrap_or_else(|| self.link(bytes, head.ethertype()))
    }

    #[inline]
    fn v4(&self, packet: &[u8]) -> Option<u32> {
        let header = packet.first_chunk::<20>()?;
        let addresses = word(header, 12);
        let protocol = header[9];
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        let at = usize::from(header[0] & 0xf) * 4;
        let ports = if fragment || at < 20 { 0 } else { ports(protocol, packet, at) };
        Some(self.finish(0, addresses, u64::from(protocol) << 32 | u64::from(ports)))
    }

    #[inline]
    fn v6(&self, packet: &[u8]) -> Option<u32> {
        let header = packet.first_chunk::<40>()?;
        // Behind an extension header the ports are not looked for.
        let protocol = header[6];
        let ports = ports(protocol, packet, 40);
        let a = self.mix(0, word(header, 8), word(header, 16));
        let b = self.mix(1, word(header, 24), word(header, 32));
        Some(self.finish(a, b, u64::from(protocol) << 32 | u64::from(ports)))
    }

    #[inline]
    fn link(&self, bytes: &[u8], ethertype: u16) -> u32 {
        let Some(link) = bytes.first_chunk::<ETHERNET_LEN>() else { return 0 };
        let macs = word(link, 0);
        let rest = u64::from(u32::from_be_bytes([link[8], link[9], link[10], link[11]]));
        self.finish(0, macs, rest | u64::from(ethertype) << 32)
    }

    #[inline]
    fn mix(&self, key: usize, a: u64, b: u64) -> u64 {
        fold(fold(a ^ self.xor[key], self.multiply[key]) ^ b, self.multiply[key ^ 1])
    }

    #[inline]
    fn finish(&self, before: u64, a: u64, b: u64) -> u32 {
        let first = fold(a ^ before ^ self.xor[2], self.multiply[2]);
        let all = fold(first ^ b ^ self.xor[3], self.multiply[3]);
        (all ^ all >> 32) as u32
    }
}

/// The ports of TCP and UDP; zero of others, and if they are not in the head.
#[inline]
fn ports(protocol: u8, packet: &[u8], at: usize) -> u32 {
    match packet.get(at..).and_then(|transport| transport.first_chunk()) {
        Some(&ports) if protocol == TCP || protocol == UDP => u32::from_be_bytes(ports),
        _ => 0,
    }
}

/// Eight bytes of a header that is long enough.
#[inline]
fn word<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&header[at..at + 8]);
    u64::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::check;
    use crate::ids::Vid;
    use crate::offload::OffloadSet;

    fn hash() -> FlowHash {
        FlowHash::new([
            1,
            2,
            3,
            4,
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
            7 << 40,
        ])
    }

    fn head(frame: &[u8]) -> Head {
        let mut head = Head::new();
        let n = frame.len().min(crate::head::HEAD_LEN);
        head.begin(frame.len() as u32, n).copy_from_slice(&frame[..n]);
        check::frame(&mut head, OffloadSet::NONE).unwrap();
        head
    }

    fn v4(tcp: bool, to: u8, port: u16, payload: &[u8]) -> Vec<u8> {
        let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(
            [10, 0, 0, 1],
            [10, 0, 0, to],
            64,
        );
        let mut frame = Vec::new();
        match tcp {
            true => ip.tcp(port, 80, payload.len() as u32, 1000).write(&mut frame, payload).unwrap(),
            false => ip.udp(port, 80).write(&mut frame, payload).unwrap(),
        }
        frame
    }

    fn v6(to: u8, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut destination = [0; 16];
        destination[15] = to;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv6([0xfd; 16], destination, 64)
            .udp(port, 80)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    #[test]
    fn a_flow_is_its_addresses_and_ports_whatever_else_a_frame_has() {
        let hash = hash();
        for frame in
            [|p: &[u8]| v4(true, 2, 1000, p), |p: &[u8]| v4(false, 2, 1000, p), |p: &[u8]| v6(2, 1000, p)]
        {
            let first = hash.of(&head(&frame(b"")));
            assert_eq!(hash.of(&head(&frame(&[7; 1000]))), first);
            let mut tagged = head(&frame(b"x"));
            assert!(tagged.push_tag(Vid::new(7).unwrap(), 0));
            assert_eq!(hash.of(&tagged), first, "a tag that was put on changes nothing");
            assert!(tagged.pop_tag());
            assert_eq!(hash.of(&tagged), first);
        }
        let all = [
            v4(true, 2, 1000, b""),
            v4(true, 3, 1000, b""),
            v4(true, 2, 1001, b""),
            v4(false, 2, 1000, b""),
            v6(2, 1000, b""),
            v6(3, 1000, b""),
            v6(2, 1001, b""),
        ];
        let mut hashes: Vec<u32> = all.iter().map(|frame| hash.of(&head(frame))).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), all.len());
    }

    #[test]
    fn the_fragments_of_a_packet_are_of_one_flow() {
        let hash = hash();
        let mut first = v4(false, 2, 1000, &[1; 64]);
        first[20] |= 0x20;
        let mut last = v4(false, 2, 9999, &[2; 64]);
        last[21] = 8;
        assert_eq!(hash.of(&head(&first)), hash.of(&head(&last)));
    }

    #[test]
    fn frames_that_are_no_ip_packets_go_by_their_stations() {
        let hash = hash();
        let frame = |to: u8, ethertype: [u8; 2], rest: u8| {
            let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, 9, ethertype[0], ethertype[1]];
            frame.resize(60, rest);
            hash.of(&head(&frame))
        };
        assert_eq!(frame(1, [8, 6], 1), frame(1, [8, 6], 2));
        assert_ne!(frame(1, [8, 6], 1), frame(2, [8, 6], 1));
        assert_ne!(frame(1, [8, 6], 1), frame(1, [0x88, 0xb5], 1));
        for len in [14, 15, 20, 33, 34, 36, 40] {
            for ethertype in [[8, 0], [0x86, 0xdd]] {
                let mut short = vec![0xff; len];
                short[12..14].copy_from_slice(&ethertype);
                hash.of(&head(&short));
            }
        }
    }

    #[test]
    fn flows_spread_over_any_number_of_queues() {
        let hash = hash();
        for queues in [2, 3, 4, 8] {
            let mut counts = vec![0; queues];
            for i in 0..4096_u16 {
                let frame = if i % 2 == 0 {
                    v4(true, 2, 10_000 + i, b"")
                } else {
                    v6((i >> 8) as u8, 10_000 + i, b"")
                };
                counts[((u64::from(hash.of(&head(&frame))) * queues as u64) >> 32) as usize] += 1;
            }
            let fair = 4096 / queues;
            assert!(counts.iter().all(|&n| n > fair * 8 / 10 && n < fair * 12 / 10), "{queues}: {counts:?}");
        }
    }
}
