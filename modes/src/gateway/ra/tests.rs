use std::str::FromStr;

use etherparse::{Icmpv6Type, PacketBuilder};
use hickory_proto::rr::Name;
use proptest::prelude::*;
use smoltcp::wire::{EthernetFrame, Icmpv6Packet, Ipv6Packet, NdiscOptionRepr, NdiscPrefixInfoFlags};
use switch_core::ids::Registry;

use super::*;

const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
const GUEST_MAC: MacAddr = MacAddr([0, 0x16, 0x3e, 1, 2, 3]);

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn router() -> Ipv6Addr {
    ip("fe80::1")
}

fn guest() -> Ipv6Addr {
    ip("fe80::216:3eff:fe01:203")
}

fn config() -> RaConfig {
    let mut config = RaConfig::new(ROUTER_MAC, router());
    config.mtu = Some(1500);
    config.other = true;
    config.prefixes = vec![RaPrefix::new("fd00:1:2:3::/64".parse().unwrap())];
    config.dns = vec![router(), ip("fd00:1:2:3::1")];
    config.search = vec![Name::from_str("lab.example.").unwrap()];
    config
}

fn ports() -> [PortId; 2] {
    let mut registry = Registry::new(2);
    [registry.mint().unwrap(), registry.mint().unwrap()]
}

fn ms(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

/// A solicitation as a guest sends it, or not quite.
#[derive(Clone, Debug)]
struct Solicit {
    mac: MacAddr,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    kind: u8,
    code: u8,
    options: Vec<u8>,
    spoil: bool,
}

impl Solicit {
    fn sound() -> Self {
        let mut options = vec![1, 1];
        options.extend(GUEST_MAC.0);
        Self {
            mac: GUEST_MAC,
            source: guest(),
            destination: ALL_ROUTERS,
            hop_limit: 255,
            kind: 133,
            code: 0,
            options,
            spoil: false,
        }
    }

    fn unspecified() -> Self {
        Self { source: Ipv6Addr::UNSPECIFIED, options: Vec::new(), ..Self::sound() }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.mac.0, [0x33, 0x33, 0, 0, 0, 2])
            .ipv6(self.source.octets(), self.destination.octets(), self.hop_limit)
            .icmpv6(Icmpv6Type::Unknown { type_u8: self.kind, code_u8: self.code, bytes5to8: [0; 4] })
            .write(&mut frame, &self.options)
            .unwrap();
        if self.spoil {
            frame[14 + 40 + 2] ^= 0x40;
        }
        frame
    }
}

/// What a host reads in an advertisement.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    to: (MacAddr, Ipv6Addr),
    hop_limit: u8,
    flags: u8,
    lifetime: u16,
    link_layer: Option<MacAddr>,
    mtu: Option<u32>,
    /// Prefix, flags, seconds valid and preferred.
    prefixes: Vec<(String, u8, u64, u64)>,
    /// Seconds and addresses.
    dns: Vec<(u32, Vec<Ipv6Addr>)>,
    /// Seconds and bytes.
    search: Vec<(u32, Vec<u8>)>,
}

/// Reads an advertisement with the checks that hosts make (RFC 4861, 6.1.2).
fn read(frame: &[u8]) -> Read {
    assert!(frame.len() <= 14 + 1280, "{} bytes", frame.len());
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(ethernet.src_addr().0, ROUTER_MAC.0);
    let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
    assert_eq!((ip.version(), ip.hop_limit(), ip.src_addr()), (6, 255, router()));
    assert_eq!(ip.total_len() + 14, frame.len());
    let message = Icmpv6Packet::new_checked(ip.payload()).unwrap();
    assert!(message.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
    assert_eq!((message.msg_type(), message.msg_code()), (Icmpv6Message::RouterAdvert, 0));
    assert_eq!(message.reachable_time().total_millis() + message.retrans_time().total_millis(), 0);
    let mut read = Read {
        to: (MacAddr(ethernet.dst_addr().0), ip.dst_addr()),
        hop_limit: message.current_hop_limit(),
        flags: message.router_flags().bits(),
        lifetime: message.router_lifetime().secs() as u16,
        link_layer: None,
        mtu: None,
        prefixes: Vec::new(),
        dns: Vec::new(),
        search: Vec::new(),
    };
    let mut rest = message.payload();
    while !rest.is_empty() {
        let option = NdiscOption::new_checked(rest).unwrap();
        match NdiscOptionRepr::parse(&option).unwrap() {
            NdiscOptionRepr::SourceLinkLayerAddr(mac) => {
                read.link_layer = MacAddr::from_slice(mac.as_bytes())
            }
            NdiscOptionRepr::Mtu(mtu) => read.mtu = Some(mtu),
            NdiscOptionRepr::PrefixInformation(p) => read.prefixes.push((
                format!("{}/{}", p.prefix, p.prefix_len),
                p.flags.bits(),
                p.valid_lifetime.secs(),
                p.preferred_lifetime.secs(),
            )),
            NdiscOptionRepr::Unknown { type_: kind @ (25 | 31), data, .. } => {
                let lifetime = u32::from_be_bytes(data[2..6].try_into().unwrap());
                if kind == 25 {
                    let addresses = data[6..].as_chunks::<16>();
                    assert!(addresses.1.is_empty());
                    read.dns.push((lifetime, addresses.0.iter().map(|a| Ipv6Addr::from(*a)).collect()));
                } else {
                    read.search.push((lifetime, data[6..].to_vec()));
                }
            }
            other => panic!("{other:?}"),
        }
        rest = &rest[usize::from(option.data_len()) * 8..];
    }
    read
}

/// All that waits in the outbox: port and advertisement.
fn sent(out: &mut Outbox) -> Vec<(Option<PortId>, Read)> {
    std::iter::from_fn(|| out.pop()).map(|o| (o.to, read(&o.frame))).collect()
}

/// Goes to each instant at which something is due, up to `end`, and returns what was sent when.
fn run(advertiser: &mut Advertiser, end: Instant) -> Vec<(Instant, Option<PortId>, Read)> {
    let (mut all, mut out) = (Vec::new(), Outbox::default());
    while let Some(at) = advertiser.poll_at().filter(|&at| at <= end) {
        advertiser.poll(at, &mut out);
        all.extend(sent(&mut out).into_iter().map(|(port, read)| (at, port, read)));
    }
    all
}

#[test]
fn an_advertisement_says_what_is_configured() {
    let mut advertiser = Advertiser::new(ms(0), config(), 1).unwrap();
    let mut out = Outbox::default();
    advertiser.poll(ms(0), &mut out);
    let mut name = b"\x03lab\x07example\x00".to_vec();
    name.resize(18 - 2, 0);
    let expected = Read {
        to: (MacAddr([0x33, 0x33, 0, 0, 0, 1]), ip("ff02::1")),
        hop_limit: 64,
        flags: 0x40,
        lifetime: 1800,
        link_layer: Some(ROUTER_MAC),
        mtu: Some(1500),
        prefixes: vec![("fd00:1:2:3::/64".into(), 0xc0, 86_400, 14_400)],
        dns: vec![(1800, config().dns)],
        search: vec![(1800, name)],
    };
    assert_eq!(sent(&mut out), [(None, expected)]);
}

#[test]
fn a_network_without_a_way_out_is_advertised_without_a_router() {
    let mut config = config();
    config.router_lifetime = Duration::ZERO;
    config.managed = true;
    config.mtu = None;
    config.prefixes[0].on_link = false;
    config.prefixes.push(RaPrefix::new("2001:db8::ff/48".parse().unwrap()));
    config.dns.clear();
    config.search.clear();
    let mut out = Outbox::default();
    Advertiser::new(ms(0), config, 1).unwrap().poll(ms(0), &mut out);
    let (_, read) = sent(&mut out).remove(0);
    assert_eq!((read.lifetime, read.flags, read.mtu), (0, 0xc0, None));
    let on_link = NdiscPrefixInfoFlags::ON_LINK.bits();
    let autonomous = NdiscPrefixInfoFlags::ADDRCONF.bits();
    let prefixes: Vec<_> = read.prefixes.iter().map(|p| (p.0.as_str(), p.1)).collect();
    assert_eq!(prefixes, [("fd00:1:2:3::/64", autonomous), ("2001:db8::/48", on_link)]);
    assert_eq!((read.dns, read.search), (vec![], vec![]));
}

#[test]
fn sound_solicitations_are_answered_and_others_are_not() {
    let sound = Solicit::sound();
    let with = |change: &dyn Fn(&mut Solicit)| {
        let mut solicit = sound.clone();
        change(&mut solicit);
        solicit
    };
    let unspecified = Solicit::unspecified();
    // What, whether it is the service's, whether it is sound.
    let cases = [
        ("sound", sound.clone(), Handled::Yes, true),
        ("sound, from ::", unspecified.clone(), Handled::Yes, true),
        ("without options", with(&|s| s.options.clear()), Handled::Yes, true),
        ("to the router itself", with(&|s| s.destination = router()), Handled::Yes, true),
        ("from a global address", with(&|s| s.source = ip("fd00:1:2:3::5")), Handled::Yes, true),
        ("an unknown option", with(&|s| s.options = vec![14, 1, 0, 0, 0, 0, 0, 0]), Handled::Yes, true),
        (
            "a malformed option of another kind",
            with(&|s| s.options = vec![3, 1, 0, 0, 0, 0, 0, 0]),
            Handled::Yes,
            true,
        ),
        ("hop limit 254", with(&|s| s.hop_limit = 254), Handled::Yes, false),
        ("code 1", with(&|s| s.code = 1), Handled::Yes, false),
        ("a bad checksum", with(&|s| s.spoil = true), Handled::Yes, false),
        (
            "an option without length",
            with(&|s| s.options = vec![1, 0, 0, 0, 0, 0, 0, 0]),
            Handled::Yes,
            false,
        ),
        (
            "an option that runs past the end",
            with(&|s| s.options = vec![14, 2, 0, 0, 0, 0, 0, 0]),
            Handled::Yes,
            false,
        ),
        ("half an option", with(&|s| s.options = vec![14]), Handled::Yes, false),
        (
            "a link-layer address from ::",
            Solicit { options: sound.options.clone(), ..unspecified },
            Handled::Yes,
            false,
        ),
        ("from a multicast address", with(&|s| s.source = ip("ff02::1")), Handled::Yes, false),
        ("from the router's own address", with(&|s| s.source = router()), Handled::Yes, false),
        ("an advertisement", with(&|s| s.kind = 134), Handled::No, false),
        ("to another router", with(&|s| s.destination = ip("fe80::99")), Handled::No, false),
    ];
    let [port, _] = ports();
    for (what, solicit, handled, answered) in cases {
        let mut out = Outbox::default();
        let mut advertiser = Advertiser::new(ms(0), config(), 7).unwrap();
        // The first ones are over.
        run(&mut advertiser, ms(10_000));
        assert_eq!(advertiser.receive(ms(10_000), port, &solicit.frame(), &mut out), handled, "{what}");
        let answers = run(&mut advertiser, ms(10_500));
        assert_eq!(answers.len(), usize::from(answered), "{what}: {answers:?}");
        let counters = advertiser.counters();
        let counted = (counters.solicitations, counters.discarded);
        let ours = handled == Handled::Yes;
        assert_eq!(counted, (u64::from(answered), u64::from(ours && !answered)), "{what}");
        if let Some((at, to, read)) = answers.first() {
            assert!(*at >= ms(10_000) && *at <= ms(10_500));
            let alone = !solicit.source.is_unspecified();
            assert_eq!(*to, alone.then_some(port), "{what}");
            let receiver = if alone { (GUEST_MAC, solicit.source) } else { ALL_NODES };
            assert_eq!(read.to, receiver, "{what}");
        }
    }
}

#[test]
fn an_answer_goes_to_the_link_layer_address_that_the_option_names() {
    let mut solicit = Solicit::sound();
    solicit.options[2..].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    let [port, _] = ports();
    let answer_to = |solicit: &Solicit| {
        let mut out = Outbox::default();
        let mut advertiser = Advertiser::new(ms(0), config(), 7).unwrap();
        advertiser.receive(ms(5000), port, &solicit.frame(), &mut out);
        sent(&mut out);
        run(&mut advertiser, ms(5500)).remove(0).2.to.0
    };
    assert_eq!(answer_to(&solicit), MacAddr([2, 9, 9, 9, 9, 9]));
    solicit.options[2] = 3;
    assert_eq!(answer_to(&solicit), GUEST_MAC, "a group address is nobody's");
}

#[test]
fn the_first_advertisements_come_quickly() {
    let mut advertiser = Advertiser::new(ms(1000), config(), 3).unwrap();
    let times: Vec<Instant> = run(&mut advertiser, ms(3_000_000)).into_iter().map(|(at, ..)| at).collect();
    assert_eq!(times[0], ms(1000), "at once");
    let gaps: Vec<u64> = times.windows(2).map(|w| (w[1] - w[0]).as_secs()).collect();
    assert_eq!(gaps[..2], [3, 3]);
    assert!(gaps[2..].iter().all(|gap| (200..=600).contains(gap)), "{gaps:?}");
    assert!(gaps.len() > 5 && gaps[2] != gaps[3], "the intervals are random: {gaps:?}");
}

#[test]
fn a_flood_of_solicitations_makes_one_multicast_in_three_seconds_and_a_bounded_number_of_answers() {
    let [port, other] = ports();
    let mut advertiser = Advertiser::new(ms(0), config(), 11).unwrap();
    let mut out = Outbox::default();
    let mut all = Vec::new();
    for ms_ in 0..30_000 {
        let mut solicit = if ms_ % 3 == 0 { Solicit::unspecified() } else { Solicit::sound() };
        if ms_ % 3 == 2 {
            solicit.source = Ipv6Addr::from(guest().to_bits() + ms_ as u128);
        }
        advertiser.receive(ms(ms_), port, &solicit.frame(), &mut out);
        advertiser.poll(ms(ms_), &mut out);
        all.extend(sent(&mut out).into_iter().map(|(to, _)| (ms_, to)));
    }
    let multicasts: Vec<u64> = all.iter().filter(|(_, to)| to.is_none()).map(|(at, _)| *at).collect();
    assert!(multicasts.windows(2).all(|w| w[1] - w[0] >= 3000), "{multicasts:?}");
    assert!(multicasts.windows(2).all(|w| w[1] - w[0] <= 3501), "each is asked for: {multicasts:?}");
    let unicasts = all.len() - multicasts.len();
    assert!((30..=38).contains(&unicasts), "{unicasts} answers of a budget of 8 and one a second");
    // Another port has its own budget, and is answered.
    advertiser.receive(ms(30_000), other, &Solicit::sound().frame(), &mut out);
    let answers = run(&mut advertiser, ms(30_500));
    assert!(answers.iter().any(|(_, to, _)| *to == Some(other)));
}

#[test]
fn a_port_that_went_away_is_not_answered() {
    let [port, _] = ports();
    let mut advertiser = Advertiser::new(ms(0), config(), 11).unwrap();
    let mut out = Outbox::default();
    advertiser.poll(ms(0), &mut out);
    advertiser.receive(ms(5000), port, &Solicit::sound().frame(), &mut out);
    assert_eq!(advertiser.waiting.len(), 1);
    advertiser.port_removed(port);
    assert!(run(&mut advertiser, ms(5500)).is_empty());
}

#[test]
fn the_farewell_ends_router_and_name_servers() {
    let [port, _] = ports();
    let mut advertiser = Advertiser::new(ms(0), config(), 1).unwrap();
    let mut out = Outbox::default();
    advertiser.poll(ms(0), &mut out);
    advertiser.receive(ms(5000), port, &Solicit::sound().frame(), &mut out);
    sent(&mut out);
    advertiser.farewell(&mut out);
    let last = sent(&mut out);
    let [(None, read)] = last.as_slice() else { panic!("{last:?}") };
    assert_eq!((read.to, read.lifetime), (ALL_NODES, 0));
    assert_eq!(read.prefixes, [("fd00:1:2:3::/64".into(), 0xc0, 86_400, 0)]);
    assert_eq!(read.dns, [(0, config().dns)]);
    assert_eq!(read.search[0].0, 0);
    assert_eq!(advertiser.poll_at(), None, "nothing comes after it");
    assert_eq!(advertiser.receive(ms(6000), port, &Solicit::sound().frame(), &mut out), Handled::No);
    advertiser.farewell(&mut out);
    advertiser.configure(ms(7000), RaConfig::new(ROUTER_MAC, router())).unwrap();
    advertiser.poll(ms(100_000), &mut out);
    assert!(out.is_empty() && advertiser.poll_at().is_none());
}

#[test]
fn what_is_no_more_is_withdrawn_for_three_advertisements() {
    let mut advertiser = Advertiser::new(ms(0), config(), 1).unwrap();
    run(&mut advertiser, ms(100_000));
    let mut changed = config();
    changed.prefixes = vec![RaPrefix::new("fd00:9::/64".parse().unwrap())];
    changed.dns = vec![router()];
    changed.search = Vec::new();
    advertiser.configure(ms(100_000), changed.clone()).unwrap();
    assert!(advertiser.poll_at().unwrap() <= ms(100_500), "the change is told soon");
    advertiser.configure(ms(100_001), changed).unwrap();
    let told = run(&mut advertiser, ms(2_000_000));
    let old_prefix = ("fd00:1:2:3::/64".to_string(), 0xc0, 0, 0);
    for (at, (_, _, read)) in told.iter().enumerate() {
        assert_eq!(read.prefixes[0], ("fd00:9::/64".into(), 0xc0, 86_400, 14_400));
        assert_eq!(read.dns[0], (1800, vec![router()]));
        let withdrawn =
            (read.prefixes.get(1), read.dns.get(1).map(|d| d.0), read.search.first().map(|s| s.0));
        let expected = if at < 3 { (Some(&old_prefix), Some(0), Some(0)) } else { (None, None, None) };
        assert_eq!(withdrawn, expected, "advertisement {at}");
    }
    assert!(told.len() > 4);
}

#[test]
fn the_largest_configuration_fits_with_all_of_another_withdrawn() {
    let label = "x".repeat(48);
    let largest = |n: u16| {
        let mut config = config();
        let prefix = |p| RaPrefix::new(format!("fd00:{n:x}:{p}::/64").parse().unwrap());
        config.prefixes = (0..PREFIXES_MAX).map(prefix).collect();
        config.dns = (0..SERVERS_MAX).map(|s| ip(&format!("fd00:{n:x}::{s}"))).collect();
        config.search =
            (0..4).map(|s| Name::from_str(&format!("{}{n:x}{s}", &label[2..])).unwrap()).collect();
        config
    };
    let mut advertiser = Advertiser::new(ms(0), largest(1), 1).unwrap();
    for n in 2..5 {
        advertiser.configure(ms(0), largest(n)).unwrap();
    }
    let (_, _, read) = run(&mut advertiser, ms(1000)).remove(0);
    assert_eq!((read.prefixes.len(), read.dns.len(), read.search.len()), (2 * PREFIXES_MAX, 2, 2));
}

#[test]
fn configurations_out_of_bounds_are_refused() {
    let refused = |change: &dyn Fn(&mut RaConfig)| {
        let mut config = config();
        change(&mut config);
        Advertiser::new(ms(0), config, 1).map(|_| ()).unwrap_err()
    };
    use RaConfigError as E;
    let s = Duration::from_secs;
    assert_eq!(refused(&|c| c.address = ip("fd00::1")), E::Address(ip("fd00::1")));
    assert_eq!(refused(&|c| c.interval_max = s(1801)), E::Intervals(s(200), s(1801)));
    assert_eq!(refused(&|c| c.interval_min = s(2)), E::Intervals(s(2), s(600)));
    assert_eq!(refused(&|c| c.interval_min = s(451)), E::Intervals(s(451), s(600)));
    assert_eq!(refused(&|c| c.router_lifetime = s(599)), E::RouterLifetime(s(599)));
    assert_eq!(refused(&|c| c.router_lifetime = s(65_536)), E::RouterLifetime(s(65_536)));
    assert_eq!(refused(&|c| c.mtu = Some(1279)), E::Mtu(1279));
    assert_eq!(refused(&|c| c.dns = vec![ip("ff02::1")]), E::Server(ip("ff02::1")));
    assert_eq!(refused(&|c| c.dns = vec![router(); 5]), E::TooMany("name servers", 4));
    assert_eq!(refused(&|c| c.search = vec![Name::root()]), E::Search);
    let prefix = |text: &str| RaPrefix::new(text.parse().unwrap());
    assert!(matches!(refused(&|c| c.prefixes = vec![prefix("fe80::/64")]), E::Prefix(..)));
    assert!(matches!(
        refused(&|c| c.prefixes = vec![RaPrefix { autonomous: true, ..prefix("fd00::/60") }]),
        E::Prefix(..)
    ));
    assert!(matches!(
        refused(&|c| c.prefixes = vec![RaPrefix { preferred: s(86_401), ..prefix("fd00::/64") }]),
        E::Prefix(..)
    ));
    assert!(config().check().is_ok() && RaConfig::new(ROUTER_MAC, router()).check().is_ok());
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    ByAddress(u8, u8),
    ByNobody(u8),
}

proptest! {
    /// Whatever is asked when: multicasts keep their distance and are never late, and everyone who asks soundly is
    /// answered in time, alone or with all.
    #[test]
    fn everyone_is_answered_in_time(
        seed: u64,
        asked in prop::collection::vec(
            (0..4000_u64, prop_oneof![
                (0..2_u8, any::<u8>()).prop_map(|(p, h)| Asked::ByAddress(p, h)),
                (0..2_u8).prop_map(Asked::ByNobody),
            ]),
            0..120,
        ),
    ) {
        let ports = ports();
        let mut config = config();
        (config.interval_min, config.interval_max) = (Duration::from_secs(3), Duration::from_secs(9));
        let mut advertiser = Advertiser::new(ms(0), config, seed).unwrap();
        let mut out = Outbox::default();
        let (mut now, mut told, mut open) = (0, Vec::new(), Vec::new());
        for (gap, asked) in asked {
            told.extend(run(&mut advertiser, ms(now + gap)));
            now += gap;
            let (port, solicit) = match asked {
                Asked::ByAddress(port, host) => {
                    let source = Ipv6Addr::from((0xfe80 << 112) + 0x100 + u128::from(host));
                    (ports[usize::from(port)], Solicit { source, ..Solicit::sound() })
                }
                Asked::ByNobody(port) => (ports[usize::from(port)], Solicit::unspecified()),
            };
            prop_assert_eq!(advertiser.receive(ms(now), port, &solicit.frame(), &mut out), Handled::Yes);
            told.extend(sent(&mut out).into_iter().map(|(to, read)| (ms(now), to, read)));
            open.push((ms(now), port, solicit.source));
        }
        told.extend(run(&mut advertiser, ms(now + 20_000)));
        let multicasts: Vec<Instant> = told.iter().filter(|t| t.1.is_none()).map(|t| t.0).collect();
        prop_assert_eq!(multicasts[0], ms(0));
        for pair in multicasts.windows(2) {
            let gap = pair[1] - pair[0];
            prop_assert!(gap >= MIN_DELAY_BETWEEN_RAS && gap <= Duration::from_secs(9), "{gap:?}");
        }
        for (at, port, source) in open {
            let alone = |t: &&(Instant, Option<PortId>, Read)| {
                t.1 == Some(port) && t.2.to.1 == source && t.0 >= at && t.0 <= at + MAX_RA_DELAY_TIME
            };
            let with_all = |&&t: &&Instant| t >= at && t <= at + MIN_DELAY_BETWEEN_RAS + MAX_RA_DELAY_TIME;
            let answered = told.iter().any(|t| alone(&t)) || multicasts.iter().any(|t| with_all(&t));
            prop_assert!(answered, "{source} asked at {at:?}");
        }
    }

    /// No frame, however wrong, makes a panic or an answer to somebody who is not there.
    #[test]
    fn any_frame_is_survived(
        frame in prop::collection::vec(any::<u8>(), 0..200),
        cut in 0..90_usize,
        at in 0..90_usize,
        byte: u8,
    ) {
        let [port, _] = ports();
        let mut advertiser = Advertiser::new(ms(0), config(), 1).unwrap();
        let mut out = Outbox::default();
        advertiser.receive(ms(1), port, &frame, &mut out);
        let mut solicit = Solicit::sound().frame();
        advertiser.receive(ms(1), port, &solicit[..cut.min(solicit.len())], &mut out);
        if let Some(b) = solicit.get_mut(at) {
            *b = byte;
        }
        advertiser.receive(ms(1), port, &solicit, &mut out);
        for (_, to, read) in run(&mut advertiser, ms(600)) {
            prop_assert!(to.is_none() || !read.to.0.is_group());
        }
    }
}
