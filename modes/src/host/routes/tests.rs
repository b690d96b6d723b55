//! What is added and removed, against a naive model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const OURS: u32 = 7;
const OTHER: u32 = 8;

fn route(n: u8, protocol: u8) -> Route {
    Route::on_link(IpNetwork::from(IpAddr::from([10, 0, 0, n])), None, protocol)
}

fn listed(route: Route, interface: u32) -> Listed {
    Listed { text: route.to_string(), route: Ok(route), interfaces: vec![interface], dead: false }
}

#[test]
fn a_foreign_route_is_told_with_where_it_leads() {
    // By another interface, ours by another interface, and one by our interface that we did not make.
    for (there, by) in [
        (listed(route(1, 4), OTHER), OTHER),
        (listed(route(1, PROTOCOL), OTHER), OTHER),
        (listed(route(1, 4), OURS), OURS),
    ] {
        let change = difference(&[route(1, PROTOCOL), route(2, PROTOCOL)], &[there], OURS);
        let [(destination, interfaces)] = change.foreign.as_slice() else { panic!("{change:?}") };
        assert_eq!((destination.to_string().as_str(), interfaces), ("10.0.0.1/32", &vec![by]));
        assert_eq!(change.add, [route(2, PROTOCOL)], "the others are made");
        assert!(change.remove.is_empty());
    }
}

#[test]
fn host_bits_are_ignored_and_families_do_not_mix() {
    let of = |destination: &str, source: Option<&str>| HostRoute {
        destination: destination.parse().unwrap(),
        source: source.map(|source| source.parse().unwrap()),
    };
    assert_eq!(of("10.1.2.3/16", None).route().unwrap().destination.to_string(), "10.1.0.0/16");
    assert!(of("10.1.2.3/16", Some("fd00::1")).route().is_err());
    assert_eq!(HostRoute::to("fd00::5".parse().unwrap()).route().unwrap().to_string(), "fd00::5/128");
}

proptest! {
    /// Done as told, ours are what is wanted, and nobody else's have changed.
    #[test]
    fn the_difference_leads_to_what_is_wanted(
        wanted in proptest::collection::vec(0_u8..20, 0..20),
        ours in proptest::collection::btree_set(0_u8..20, 0..20),
        foreign in proptest::collection::btree_set(20_u8..40, 0..20),
    ) {
        let mut table: Vec<Listed> = ours.iter().map(|n| listed(route(*n, PROTOCOL), OURS)).collect();
        table.extend(foreign.iter().map(|n| listed(route(*n, 3), OTHER)));
        let want: Vec<Route> = wanted.iter().map(|n| route(*n, PROTOCOL)).collect();
        let Difference { add, remove, foreign } = difference(&want, &table, OURS);
        prop_assert!(foreign.is_empty());
        let mut now = ours.clone();
        for route in &remove {
            prop_assert_eq!(route.protocol, PROTOCOL);
            prop_assert!(now.remove(&last(route)), "it was there");
        }
        for route in &add {
            prop_assert!(now.insert(last(route)), "it was not there");
        }
        prop_assert_eq!(now, wanted.into_iter().collect::<BTreeSet<u8>>());
    }
}

fn last(route: &Route) -> u8 {
    match route.destination.ip() {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => unreachable!("only IPv4 here"),
    }
}
