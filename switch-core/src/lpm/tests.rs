//! Tables, and a naive model.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::Lpm;

/// Every prefix is tried.
fn naive(prefixes: &[(IpNetwork, u32)], address: IpAddr) -> Option<u32> {
    let fits = prefixes.iter().enumerate().filter(|(_, (network, _))| network.contains(address));
    fits.max_by_key(|(i, (network, _))| (network.prefix(), *i)).map(|(_, (_, value))| *value)
}

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn the_longest_prefix_counts() {
    let table = [
        ("0.0.0.0/0", 1),
        ("10.0.0.0/8", 2),
        ("10.1.0.0/16", 3),
        ("10.1.2.3/32", 4),
        ("255.255.255.255/32", 5),
        ("2001:db8::/32", 6),
        ("2001:db8::1/128", 7),
        ("2001:db8:0:1::/64", 8),
    ];
    let lpm = Lpm::build(table.map(|(text, value)| (net(text), value)));
    assert_eq!(lpm.len(), 8);
    let answers = [
        ("0.0.0.0", Some(1)),
        ("9.255.255.255", Some(1)),
        ("10.0.0.0", Some(2)),
        ("10.0.255.255", Some(2)),
        ("10.1.0.0", Some(3)),
        ("10.1.2.2", Some(3)),
        ("10.1.2.3", Some(4)),
        ("10.1.2.4", Some(3)),
        ("10.2.0.0", Some(2)),
        ("11.0.0.0", Some(1)),
        ("255.255.255.254", Some(1)),
        ("255.255.255.255", Some(5)),
        ("2001:db7:ffff::", None),
        ("2001:db8::", Some(6)),
        ("2001:db8::1", Some(7)),
        ("2001:db8::2", Some(6)),
        ("2001:db8:0:1::ffff", Some(8)),
        ("2001:db8:0:2::", Some(6)),
        ("2001:db9::", None),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
    ];
    for (address, value) in answers {
        assert_eq!(lpm.get(ip(address)), value, "{address}");
    }
}

#[test]
fn an_empty_table_knows_nothing() {
    let lpm = Lpm::<u32>::default();
    assert!(lpm.is_empty());
    assert!(lpm.memory() < 1024, "{} bytes", lpm.memory());
    for address in ["0.0.0.0", "255.255.255.255", "::", "ffff::"] {
        assert_eq!(lpm.get(ip(address)), None);
    }
    let all = Lpm::build([(net("0.0.0.0/0"), 1), (net("::/0"), 2)]);
    for address in ["0.0.0.0", "255.255.255.255"] {
        assert_eq!(all.get(ip(address)), Some(1));
    }
    assert_eq!(all.get(ip("ffff::")), Some(2));
}

#[test]
fn of_equal_prefixes_the_later_counts() {
    let lpm = Lpm::build([(net("10.0.0.0/8"), 1), (net("10.9.9.9/8"), 2), (net("10.0.0.0/9"), 3)]);
    assert_eq!((lpm.get(ip("10.200.0.1")), lpm.get(ip("10.0.0.1")), lpm.len()), (Some(2), Some(3), 2));
}

#[test]
fn many_prefixes_stay_within_their_memory() {
    let prefixes = (0..100_000_u32).map(|i| (IpNetwork::from(IpAddr::V4((i * 40_000).into())), i));
    let lpm = Lpm::build(prefixes);
    assert_eq!(lpm.len(), 100_000);
    assert!(lpm.memory() < 3 << 20, "{} bytes", lpm.memory());
    for i in (0..100_000_u32).step_by(77) {
        let address = std::net::Ipv4Addr::from(i * 40_000);
        assert_eq!(lpm.get_v4(address), Some(i));
        assert_eq!(lpm.get_v4(std::net::Ipv4Addr::from(i * 40_000 + 1)), None);
    }
}

/// Prefixes that nest and touch: few different bits.
fn networks() -> impl Strategy<Value = IpNetwork> {
    let v4 = (any::<u32>(), 0..=32_u8, any::<bool>()).prop_map(|(bits, len, dense)| {
        let bits = if dense { 0x0a00_0000 | bits & 0x7 } else { bits & 0xc000_0003 };
        IpNetwork::new(std::net::Ipv4Addr::from(bits).into(), len).expect("at most 32")
    });
    let v6 = (any::<u128>(), 0..=128_u8).prop_map(|(bits, len)| {
        let bits = bits & 0xc000_0000_0000_0003_8000_0000_0000_0003;
        IpNetwork::new(std::net::Ipv6Addr::from(bits).into(), len).expect("at most 128")
    });
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn it_is_what_a_naive_search_finds(
        networks in proptest::collection::vec((networks(), 0..6_u32), 0..80),
        random in proptest::collection::vec(any::<[u8; 16]>(), 20),
    ) {
        let lpm = Lpm::build(networks.iter().copied());
        let mut addresses: Vec<IpAddr> = random.iter().map(|octets| IpAddr::from(*octets)).collect();
        addresses.extend(random.iter().map(|o| IpAddr::from([o[0], o[1], o[2], o[3]])));
        // Around every border.
        for (network, _) in &networks {
            match network {
                IpNetwork::V4(n) => {
                    let (first, last) = (n.network().to_bits(), n.broadcast().to_bits());
                    let around = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
                    addresses.extend(around.map(|bits| IpAddr::V4(bits.into())));
                }
                IpNetwork::V6(n) => {
                    let (first, last) = (n.network().to_bits(), n.broadcast().to_bits());
                    let around = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
                    addresses.extend(around.map(|bits| IpAddr::V6(bits.into())));
                }
            }
        }
        let mut all = Vec::new();
        lpm.get_all(&addresses, &mut all);
        prop_assert_eq!(all.len(), addresses.len());
        for (address, together) in addresses.into_iter().zip(all) {
            let want = naive(&networks, address);
            prop_assert_eq!((lpm.get(address), together), (want, want), "{}", address);
        }
    }
}

/// Prefixes that are closer together the further one looks: every division leaves nearly all in one bucket.
#[test]
fn prefixes_in_ever_closer_clusters_are_found() {
    let mut networks = Vec::new();
    for level in 0..32_u32 {
        for i in 0..40_u128 {
            let bits = (1_u128 << 127) >> (level * 3) | i << 2 | u128::from(level) << 20;
            let network = IpNetwork::new(std::net::Ipv6Addr::from(bits).into(), 128).expect("at most 128");
            networks.push((network, level * 64 + i as u32));
        }
    }
    let lpm = Lpm::build(networks.iter().copied());
    for (network, value) in &networks {
        assert_eq!(lpm.get(network.ip()), Some(*value));
        let IpAddr::V6(address) = network.ip() else { panic!("IPv6") };
        assert_eq!(lpm.get_v6((address.to_bits() + 1).into()), None);
    }
    // All powers of two, each with its neighbours: the search takes over where division gives up.
    let powers: Vec<_> = (0..128_u32)
        .flat_map(|n| (0..12_u128).map(move |i| ((1_u128 << n) + i, n)))
        .map(|(bits, n)| {
            (IpNetwork::new(std::net::Ipv6Addr::from(bits).into(), 128).expect("at most 128"), n)
        })
        .collect();
    let lpm = Lpm::build(powers.iter().copied());
    for (network, _) in &powers {
        assert_eq!(lpm.get(network.ip()), naive(&powers, network.ip()));
    }
}
