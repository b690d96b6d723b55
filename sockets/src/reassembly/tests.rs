use std::collections::HashMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use switch_core::MacAddr;
use switch_core::ids::Registry;

use super::*;
use crate::frame::{NETWORK_MAX, Way};
use crate::pieces;

const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
pub(crate) const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const UDP: u8 = 17;

fn at(seconds: u64) -> Instant {
    Instant::from_secs(seconds)
}

fn addresses(v6: bool) -> Addresses {
    match v6 {
        false => {
            let (source, destination) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(192, 0, 2, 1));
            Addresses::V4 { source, destination }
        }
        true => {
            Addresses::V6 { source: "fd00::2".parse().unwrap(), destination: "2001:db8::1".parse().unwrap() }
        }
    }
}

/// A fragment: what it says of itself, and its bytes.
pub(crate) fn fragment(v6: bool, id: u32, offset: u16, more: bool, bytes: &[u8]) -> Vec<u8> {
    let protocol = if v6 { 44 } else { UDP };
    let way = Way { to: ROUTER, from: GUEST, addresses: addresses(v6), protocol };
    let mut headers = [0; NETWORK_MAX];
    let len = bytes.len() + if v6 { 8 } else { 0 };
    let n = way.write_with(&mut headers, len, 63, true);
    let mut frame = headers[..n].to_vec();
    if v6 {
        frame.extend([UDP, 0]);
        frame.extend((offset | u16::from(more)).to_be_bytes());
        frame.extend(id.to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&(id as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
        frame[24..26].fill(0);
        let mut sum = switch_core::checksum::Sum::new();
        sum.add(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
    }
    frame.extend(bytes);
    frame
}

#[derive(Default)]
struct Rig {
    reassembly: Reassembly,
    counters: Counters,
}

impl Rig {
    fn add(&mut self, now: Instant, owner: Option<PortId>, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = Packet::of_frame(frame).expect("a sound packet");
        assert!(packet.is_fragment());
        let whole = self.reassembly.add(now, owner, &packet, frame.to_vec(), &self.counters);
        self.is_in_order();
        whole
    }

    /// What its accounts say is so.
    fn is_in_order(&self) {
        let r = &self.reassembly;
        let charged = |owner| {
            let mine = r.packets.iter().filter(|(key, _)| key.owner == owner);
            mine.map(|(_, p)| (1, p.charged)).fold((0, 0), |(n, sum), (one, bytes)| (n + one, sum + bytes))
        };
        let mut total = (0, 0);
        for (&owner, share) in &r.owners {
            assert_eq!((share.ages.len(), share.bytes), charged(owner));
            assert!(share.ages.len() <= PACKETS.0 && share.bytes <= BYTES.0 && !share.ages.is_empty());
            total = (total.0 + share.ages.len(), total.1 + share.bytes);
        }
        assert_eq!(total, (r.packets.len(), r.bytes));
        assert_eq!(r.deadlines.len(), r.packets.len());
        assert!(r.packets.len() <= PACKETS.1 && r.bytes <= BYTES.1);
        for partial in r.packets.values() {
            let real: usize = partial.pieces.values().map(|p| OVERHEAD + p.frame_len()).sum();
            assert_eq!(partial.charged, OVERHEAD + real);
            assert!(partial.pieces.len() <= PIECES);
        }
    }

    fn count(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }
}

/// The bytes behind a frame's IP header.
fn body(frame: &[u8]) -> &[u8] {
    let packet = Packet::of_frame(frame).expect("a sound packet");
    assert!(!packet.is_fragment());
    assert_eq!((packet.protocol(), packet.hop_limit(), packet.end()), (UDP, 63, frame.len()));
    assert!(packet.is_v6() || !packet.dont_fragment());
    assert_eq!((&frame[..6], &frame[6..12]), (&ROUTER.0[..], &GUEST.0[..]));
    &frame[packet.transport_at()..]
}

#[test]
fn fragments_are_put_together_in_any_order() {
    for v6 in [false, true] {
        for len in [9, 1481, 4000, 60_000, 65_495 - 20] {
            let way = Way { to: ROUTER, from: GUEST, addresses: addresses(v6), protocol: UDP };
            let transport: Vec<u8> = (0..len as u32).map(|n| (n / 7) as u8).collect();
            let mut frames = pieces::frames(&way, &transport, 1500, 77);
            if frames.len() == 1 {
                let (first, last) = transport.split_at(8);
                frames = vec![fragment(v6, 77, 0, true, first), fragment(v6, 77, 8, false, last)];
            }
            let middle = frames.len() / 2;
            for turn in [0, 1, middle, frames.len() - 1] {
                let mut rig = Rig::default();
                frames.rotate_left(turn);
                for frame in &frames[1..] {
                    assert_eq!(rig.add(at(0), None, frame), None);
                }
                let whole = rig.add(at(29), None, &frames[0]).expect("the last one");
                let packet = Packet::of_frame(&whole).expect("a sound packet");
                assert!(whole[packet.transport_at()..] == transport);
                assert_eq!((rig.reassembly.packets.len(), rig.reassembly.due()), (0, None));
                assert_eq!(rig.count(Counter::Reassembled), 1);
            }
        }
    }
}

#[test]
fn packets_are_told_apart() {
    let mut ids = Registry::new(4);
    let ports: [Option<PortId>; 2] = [(); 2].map(|()| ids.mint());
    for v6 in [false, true] {
        let mut rig = Rig::default();
        for (owner, id, byte) in [(ports[0], 1, 1), (ports[0], 2, 2), (ports[1], 1, 3)] {
            assert_eq!(rig.add(at(0), owner, &fragment(v6, id, 0, true, &[byte; 16])), None);
        }
        for (owner, id, byte) in [(ports[1], 1, 3), (ports[0], 2, 2), (ports[0], 1, 1)] {
            let whole = rig.add(at(1), owner, &fragment(v6, id, 16, false, &[byte])).unwrap();
            assert_eq!(body(&whole), [byte; 17]);
        }
    }
    // In IPv4 protocols have identifications of their own.
    let mut rig = Rig::default();
    rig.add(at(0), None, &fragment(false, 1, 0, true, &[1; 16]));
    let mut other = fragment(false, 1, 16, false, &[2; 1]);
    other[23] = 6;
    let [a, b] = u16::from_be_bytes([other[24], other[25]]).wrapping_add(11).to_be_bytes();
    (other[24], other[25]) = (a, b);
    assert_eq!(rig.add(at(0), None, &other), None);
    assert_eq!(rig.reassembly.packets.len(), 2);
}

#[test]
fn a_packet_whose_fragments_overlap_is_dropped_with_what_comes_later_of_it() {
    let first = (0, true, [1; 24]);
    for v6 in [false, true] {
        // Over the end of one that is there, within it, over all of it, the same with other bytes.
        for (offset, more, bytes) in
            [(16, true, vec![2; 16]), (8, true, vec![1; 8]), (0, true, vec![1; 40]), (0, true, vec![2; 24])]
        {
            let mut rig = Rig::default();
            rig.add(at(0), None, &fragment(v6, 5, first.0, first.1, &first.2));
            assert_eq!(rig.add(at(1), None, &fragment(v6, 5, offset, more, &bytes)), None);
            assert_eq!(rig.count(Counter::FragmentOverlap), 1);
            for frame in [fragment(v6, 5, 0, true, &first.2), fragment(v6, 5, 24, false, &[3; 5])] {
                assert_eq!(rig.add(at(2), None, &frame), None);
            }
            assert_eq!((rig.count(Counter::FragmentOverlap), rig.reassembly.bytes), (1, OVERHEAD));
            // After its time it may come again, and nobody is told.
            assert!(rig.reassembly.expire(at(60)).is_none());
            assert_eq!(rig.reassembly.packets.len(), 0);
            rig.add(at(61), None, &fragment(v6, 5, 0, true, &first.2));
            assert!(rig.add(at(61), None, &fragment(v6, 5, 24, false, &[3; 5])).is_some());
        }
    }
}

#[test]
fn the_end_of_a_packet_is_one() {
    for v6 in [false, true] {
        let cases: [&[(u16, bool, usize)]; 4] = [
            // Another end, earlier and later.
            &[(16, false, 8), (8, false, 8)],
            &[(16, false, 8), (32, false, 8)],
            // Something behind it, before and after it is known.
            &[(16, false, 8), (24, true, 8)],
            &[(24, true, 8), (8, false, 8)],
        ];
        for case in cases {
            let mut rig = Rig::default();
            for &(offset, more, len) in case {
                assert_eq!(rig.add(at(0), None, &fragment(v6, 5, offset, more, &vec![1; len])), None);
            }
            assert_eq!(rig.count(Counter::FragmentOverlap), 1, "{case:?}");
        }
    }
}

#[test]
fn the_very_same_fragment_is_ignored() {
    for v6 in [false, true] {
        let mut rig = Rig::default();
        for _ in 0..3 {
            rig.add(at(0), None, &fragment(v6, 5, 8, false, b"last"));
        }
        let whole = rig.add(at(0), None, &fragment(v6, 5, 0, true, b"a header")).unwrap();
        assert_eq!((body(&whole), rig.count(Counter::FragmentOverlap)), (&b"a headerlast"[..], 0));
    }
}

#[test]
fn what_can_be_no_part_of_a_packet_is_refused() {
    for v6 in [false, true] {
        let most = if v6 { 65_495 } else { 65_515 };
        for (offset, more, len, counter) in [
            (0, true, 12, Counter::FragmentBad),
            (8, true, 1, Counter::FragmentBad),
            (8, false, 0, Counter::FragmentBad),
            (65_528, false, 8, Counter::FragmentOversize),
            (65_488, false, most - 65_488 + 1, Counter::FragmentOversize),
            (65_488, true, 48, Counter::FragmentOversize),
        ] {
            let mut rig = Rig::default();
            assert_eq!(rig.add(at(0), None, &fragment(v6, 5, offset, more, &vec![1; len])), None);
            assert_eq!((rig.count(counter), rig.reassembly.packets.len()), (1, 0), "{offset} {len}");
        }
        let mut rig = Rig::default();
        assert_eq!(rig.add(at(0), None, &fragment(v6, 5, 65_488, false, &vec![1; most - 65_488])), None);
        assert_eq!((rig.count(Counter::FragmentOversize), rig.reassembly.packets.len()), (0, 1));
        // A first fragment that hides a part of TCP's header.
        let mut tcp = fragment(v6, 5, 0, true, &[1; 16]);
        if v6 {
            tcp[54] = 6;
        } else {
            tcp[23] = 6;
            let [a, b] = u16::from_be_bytes([tcp[24], tcp[25]]).wrapping_add(11).to_be_bytes();
            (tcp[24], tcp[25]) = (a, b);
        }
        assert_eq!(rig.add(at(0), None, &tcp), None);
        assert_eq!(rig.count(Counter::FragmentTiny), 1);
        // Too many of them.
        let mut rig = Rig::default();
        for n in 0..=PIECES as u16 {
            rig.add(at(0), None, &fragment(v6, 5, 8 * n, true, &[1; 8]));
        }
        assert_eq!((rig.count(Counter::FragmentTiny), rig.reassembly.bytes), (1, OVERHEAD));
    }
}

#[test]
fn what_does_not_come_in_time_is_forgotten_and_told_of_if_its_beginning_came() {
    for (v6, seconds) in [(false, 30), (true, 60)] {
        let mut rig = Rig::default();
        let first = fragment(v6, 1, 0, true, &[1; 16]);
        rig.add(at(0), None, &fragment(v6, 1, 32, true, &[1; 16]));
        rig.add(at(20), None, &first);
        rig.add(at(1), None, &fragment(v6, 2, 16, true, &[1; 16]));
        assert_eq!(rig.reassembly.due(), Some(at(seconds)));
        // Its time begins with whichever came first.
        assert!(rig.reassembly.expire(at(seconds - 1)).is_none());
        assert_eq!(rig.reassembly.expire(at(seconds)).unwrap().first, Some(first));
        assert!(rig.reassembly.expire(at(seconds)).is_none());
        assert!(rig.reassembly.expire(at(seconds + 1)).unwrap().first.is_none());
        assert_eq!((rig.reassembly.due(), rig.reassembly.bytes), (None, 0));
        rig.is_in_order();
    }
}

#[test]
fn a_guest_that_sends_beginnings_without_end_takes_nothing_from_others() {
    let mut ids = Registry::new(16);
    let ports: Vec<Option<PortId>> = (0..6).map(|_| ids.mint()).collect();
    // Many small ones, and few large ones.
    for (len, more) in [(8, 2000), (60_000, 100)] {
        let mut rig = Rig::default();
        rig.add(at(0), ports[0], &fragment(false, 1, 0, true, &[7; 16]));
        for &port in &ports[1..] {
            for id in 0..more {
                rig.add(at(1), port, &fragment(false, id, 8, true, &vec![1; len]));
            }
        }
        assert!(rig.count(Counter::FragmentEvicted) > 0);
        assert!(rig.reassembly.bytes > BYTES.1 / 2 || rig.reassembly.packets.len() == PACKETS.1);
        assert!(rig.add(at(2), ports[0], &fragment(false, 1, 16, false, b"end")).is_some(), "{len}");
    }
    // One packet alone is not more than a share.
    let mut rig = Rig::default();
    let frames = pieces::frames(
        &Way { to: ROUTER, from: GUEST, addresses: addresses(false), protocol: UDP },
        &[1; 65_515],
        576,
        1,
    );
    assert!(frames.len() <= PIECES);
    let whole: Vec<_> = frames.iter().filter_map(|frame| rig.add(at(0), ports[1], frame)).collect();
    assert_eq!(whole.len(), 1);
}

#[test]
fn extension_headers_before_and_behind_the_fragment_header() {
    let way = Way { to: ROUTER, from: GUEST, addresses: addresses(true), protocol: 60 };
    let make = |offset: u16, more: bool, bytes: &[u8]| {
        let mut headers = [0; NETWORK_MAX];
        let n = way.write_with(&mut headers, 8 + 8 + bytes.len(), 63, true);
        let mut frame = headers[..n].to_vec();
        frame.extend([44, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend([60, 0]);
        frame.extend((offset | u16::from(more)).to_be_bytes());
        frame.extend([0, 0, 0, 9]);
        frame.extend(bytes);
        frame
    };
    let mut rig = Rig::default();
    // Destination options behind the fragment header are a part of the packet.
    let first = [&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &[0, 1, 0, 2, 0, 12, 0, 0]].concat();
    assert_eq!(rig.add(at(0), None, &make(0, true, &first)), None);
    let whole = rig.add(at(0), None, &make(16, false, b"word")).unwrap();
    assert_eq!(body(&whole), [&first[8..], b"word"].concat());
}

/// What came of one packet, byte by byte.
#[derive(Default)]
struct Naive {
    bytes: HashMap<usize, u8>,
    seen: Vec<(u16, bool, Vec<u8>)>,
    end: Option<usize>,
    is_refused: bool,
}

impl Naive {
    /// The packet, if it is there.
    fn add(&mut self, offset: u16, more: bool, bytes: &[u8]) -> Option<Vec<u8>> {
        let (start, end) = (usize::from(offset), usize::from(offset) + bytes.len());
        if self.is_refused || self.seen.contains(&(offset, more, bytes.to_vec())) {
            return None;
        }
        self.seen.push((offset, more, bytes.to_vec()));
        let overlaps = (start..end).any(|i| self.bytes.contains_key(&i));
        let ends = !more && self.end.is_some();
        let known = if more { self.end } else { Some(end) };
        let beyond = known.is_some_and(|known| end > known || self.bytes.keys().any(|&i| i >= known));
        if overlaps || ends || beyond {
            self.is_refused = true;
            return None;
        }
        self.bytes.extend((start..end).zip(bytes.iter().copied()));
        self.end = known;
        let end = self.end.filter(|&end| self.bytes.len() == end)?;
        Some((0..end).map(|i| self.bytes[&i]).collect())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Fragments of a few packets, most of them as a sender cuts them, some made up, in any order, now and again twice.
    #[test]
    fn made_up_fragments_come_to_what_a_naive_receiver_makes_of_them(
        v6: bool,
        steps in prop::collection::vec((0_u32..3, 0_u16..6, 0_u16..3, any::<bool>(), 0_u8..40), 1..60),
    ) {
        let mut rig = Rig::default();
        let mut naive: HashMap<u32, Naive> = HashMap::new();
        for (id, place, len, more, odd) in steps {
            // Mostly six parts of sixteen bytes.
            let (offset, len, more, byte) = match odd {
                0 => (place * 8, 8 * (usize::from(len) + 1), more, place as u8),
                1 => (place * 16, 16, place < 5, 0xff),
                2 => (place * 16, 16, more, place as u8),
                3 => (place * 16, 8 + usize::from(len), false, place as u8),
                _ => (place * 16, 16, place < 5, place as u8),
            };
            // Else it would be no fragment.
            let more = more || offset == 0;
            let len = if more { len.next_multiple_of(8) } else { len };
            let bytes = vec![byte; len];
            let got = rig.add(at(0), None, &fragment(v6, id, offset, more, &bytes));
            let want = naive.entry(id).or_default().add(offset, more, &bytes);
            prop_assert_eq!(got.as_deref().map(body), want.as_deref());
            if want.is_some() {
                // What comes then is another packet's.
                naive.remove(&id);
            }
        }
    }

    /// Any bytes behind an IP header that says that they are a fragment.
    #[test]
    fn any_fragments_keep_the_accounts_in_order(
        frames in prop::collection::vec(
            (any::<bool>(), 0_u32..4, any::<u16>(), prop::collection::vec(any::<u8>(), 0..80)), 1..60
        ),
        seconds in prop::collection::vec(0_u64..20, 60),
    ) {
        let mut rig = Rig::default();
        let mut now = at(0);
        for ((v6, id, place, bytes), seconds) in frames.into_iter().zip(seconds) {
            now = now + Duration::from_secs(seconds);
            while rig.reassembly.expire(now).is_some() {}
            let frame = fragment(v6, id, place & !7, place & 1 != 0, &bytes);
            if Packet::of_frame(&frame).is_ok_and(|packet| packet.is_fragment())
                && let Some(whole) = rig.add(now, None, &frame)
            {
                prop_assert!(Packet::of_frame(&whole).is_ok_and(|packet| !packet.is_fragment()));
            }
        }
    }
}
