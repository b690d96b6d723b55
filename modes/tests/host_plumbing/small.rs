//! Addresses, routes, sysctls.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use modes::host::{HostError, HostRoute, InterfaceSetup, Plumber, Sysctl};
use switch_core::MacAddr;

use crate::Body;
use crate::world::{is_clean, plumber, set_sysctl, sh, state_dir, sysctl};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("interface_is_set_up_changed_and_cleared", interface_is_set_up),
    ("interface_that_is_not_there_is_refused", missing_interface),
    ("routes_come_and_go", routes_come_and_go),
    ("routes_of_others_are_refused_and_stay", foreign_routes),
    ("routes_of_a_crash_are_removed", leftover_routes),
    ("sysctls_are_counted_and_restored", sysctls_are_counted),
    ("sysctls_changed_by_others_stay", sysctls_changed_by_others),
    ("sysctls_of_interfaces_survive_forwarding", sysctls_beside),
    ("sysctls_of_a_crash_are_restored", sysctls_of_a_crash),
    ("forwarding_keeps_advertised_routes", forwarding_keeps_advertised_routes),
];

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a prefix")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn host_if() {
    sh("ip link add virbr9 type veth peer name far9; ip link set far9 up");
}

fn interface_is_set_up() {
    host_if();
    let state = state_dir();
    let t = plumber(&state, |_| {});
    sh("ip addr add 10.9.9.9/24 dev virbr9");
    let mac = MacAddr([2, 0, 0, 0, 9, 9]);
    let mut setup = InterfaceSetup {
        name: "virbr9".into(),
        mac: Some(mac),
        addresses: vec![net("192.168.122.1/24"), net("fd00:122::1/64")],
        up: true,
    };
    for _ in 0..2 {
        t.plumber.set_interface(setup.clone()).unwrap();
    }
    let text = sh("ip addr show dev virbr9");
    assert!(text.contains("inet 192.168.122.1/24 brd 192.168.122.255 scope global"), "{text}");
    assert!(text.contains("inet6 fd00:122::1/64 scope global"), "{text}");
    assert!(!text.contains("fd00:122::1/64 scope global tentative"), "{text}");
    assert!(!text.contains("nodad"), "{text}");
    assert!(text.contains("02:00:00:00:09:09") && text.contains("UP"), "{text}");

    setup.addresses = vec![net("192.168.123.1/24")];
    t.plumber.set_interface(setup).unwrap();
    let text = sh("ip addr show dev virbr9");
    assert!(text.contains("192.168.123.1/24") && !text.contains("122.1"), "{text}");
    assert!(!text.contains("fd00:122::1"), "{text}");
    assert!(text.contains("10.9.9.9/24"), "somebody else's address stays: {text}");

    assert!(t.plumber.clear_interface("virbr9").unwrap().is_clean());
    assert!(t.plumber.clear_interface("virbr9").unwrap().is_clean());
    let text = sh("ip addr show dev virbr9");
    assert!(!text.contains("192.168.") && text.contains("10.9.9.9/24"), "{text}");
}

fn missing_interface() {
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let setup = InterfaceSetup { name: "virbr9".into(), ..InterfaceSetup::default() };
    let error = t.plumber.set_interface(setup).unwrap_err();
    assert!(matches!(&error, HostError::Refused(text) if text.contains("virbr9")), "{error}");
}

fn routes_come_and_go() {
    host_if();
    sh("ip link set virbr9 up; ip addr add 192.0.2.1/32 dev virbr9");
    sh("ip route add 10.1.0.0/16 dev virbr9");
    let before = sh("ip route show table main; ip -6 route show table main");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let a = HostRoute { destination: net("10.0.0.5/32"), source: Some(ip("192.0.2.1")) };
    let b = HostRoute::to(ip("fd00:5::5"));
    let c = HostRoute { destination: net("10.2.3.4/24"), source: None };
    t.plumber.set_routes("r1", "virbr9", vec![a, b]).unwrap();
    let text = sh("ip -d route show table main; ip -6 -d route show table main");
    assert!(text.contains("10.0.0.5 dev virbr9 proto 87 scope link src 192.0.2.1"), "{text}");
    assert!(text.contains("fd00:5::5 dev virbr9 proto 87"), "{text}");
    t.plumber.set_routes("r1", "virbr9", vec![c, b]).unwrap();
    t.plumber.set_routes("r1", "virbr9", vec![b, c, c]).unwrap();
    let text = sh("ip route show table main; ip -6 route show table main");
    assert!(text.contains("10.2.3.0/24 dev virbr9") && !text.contains("10.0.0.5"), "{text}");
    // Another source address is another route.
    let b2 = HostRoute { source: Some(ip("192.0.2.1")), ..c };
    t.plumber.set_routes("r1", "virbr9", vec![b2]).unwrap();
    assert!(sh("ip route").contains("10.2.3.0/24 dev virbr9 proto 87 scope link src 192.0.2.1"));
    assert!(t.plumber.shutdown().unwrap().is_clean());
    assert_eq!(sh("ip route show table main; ip -6 route show table main"), before);
    assert!(is_clean(&state));
}

fn foreign_routes() {
    host_if();
    sh("ip link add other9 type veth peer name other8; ip link set other9 up; ip link set other8 up");
    sh("ip link set virbr9 up; ip route add 10.0.0.5/32 dev other9 metric 50");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let routes = vec![HostRoute::to(ip("10.0.0.4")), HostRoute::to(ip("10.0.0.5"))];
    let error = t.plumber.set_routes("r1", "virbr9", routes).unwrap_err().to_string();
    assert!(error.contains("10.0.0.5/32") && error.contains("other9"), "{error}");
    let text = sh("ip route");
    assert!(text.contains("10.0.0.4 dev virbr9"), "the other is there: {text}");
    assert!(!text.contains("10.0.0.5 dev virbr9"), "{text}");
    assert!(text.contains("10.0.0.5 dev other9"), "{text}");
    let mixed = HostRoute { destination: net("10.0.0.6/32"), source: Some(ip("fd00::1")) };
    assert!(matches!(t.plumber.set_routes("r1", "virbr9", vec![mixed]), Err(HostError::Refused(_))));
}

fn leftover_routes() {
    host_if();
    sh("ip link set virbr9 up");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    t.plumber.set_routes("r1", "virbr9", vec![HostRoute::to(ip("10.0.0.5"))]).unwrap();
    // As after a crash: the thread never ends.
    std::mem::forget(t);
    sh("ip route add 10.0.0.6/32 dev virbr9 proto 88");
    assert!(Plumber::recover(state.path()).unwrap().is_clean());
    let text = sh("ip route");
    assert!(!text.contains("10.0.0.5") && text.contains("10.0.0.6"), "{text}");
    assert!(is_clean(&state));
}

fn sysctls_are_counted() {
    set_sysctl("ipv4/ip_forward", "0");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    t.plumber.hold_sysctls("a", vec![Sysctl::forward4(), Sysctl::forward6()]).unwrap();
    t.plumber.hold_sysctls("b", vec![Sysctl::forward4()]).unwrap();
    assert_eq!((sysctl("ipv4/ip_forward"), sysctl("ipv6/conf/all/forwarding")), ("1".into(), "1".into()));
    // What a does not name any more, it gives up; b holds the other.
    t.plumber.hold_sysctls("a", vec![Sysctl::forward4()]).unwrap();
    assert_eq!(sysctl("ipv6/conf/all/forwarding"), "0");
    t.plumber.release_sysctls("a").unwrap();
    assert_eq!(sysctl("ipv4/ip_forward"), "1");
    t.plumber.release_sysctls("b").unwrap();
    assert_eq!(sysctl("ipv4/ip_forward"), "0");
    assert!(is_clean(&state));
    let error = t.plumber.hold_sysctls("a", vec![Sysctl::forward4_of("no9")]).unwrap_err();
    assert!(matches!(error, HostError::Refused(_)), "{error}");
    // One that says so already is not ours.
    set_sysctl("ipv4/ip_forward", "1");
    t.plumber.hold_sysctls("a", vec![Sysctl::forward4()]).unwrap();
    t.plumber.release_sysctls("a").unwrap();
    assert_eq!(sysctl("ipv4/ip_forward"), "1");
}

fn sysctls_changed_by_others() {
    host_if();
    set_sysctl("ipv6/conf/virbr9/accept_ra", "1");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    t.plumber.hold_sysctls("a", vec![Sysctl::accept_ra("virbr9", 2)]).unwrap();
    set_sysctl("ipv6/conf/virbr9/accept_ra", "0");
    let report = t.plumber.shutdown().unwrap();
    assert!(report.is_clean() && report.notes.iter().any(|note| note.contains("accept_ra")), "{report}");
    assert_eq!(sysctl("ipv6/conf/virbr9/accept_ra"), "0");
    assert!(is_clean(&state));
}

fn sysctls_beside() {
    host_if();
    set_sysctl("ipv4/ip_forward", "0");
    set_sysctl("ipv4/conf/virbr9/forwarding", "1");
    set_sysctl("ipv4/conf/all/accept_redirects", "0");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    t.plumber.hold_sysctls("a", vec![Sysctl::forward4()]).unwrap();
    assert_eq!(sysctl("ipv4/conf/far9/forwarding"), "1");
    t.plumber.shutdown().unwrap();
    assert_eq!(sysctl("ipv4/ip_forward"), "0");
    assert_eq!(sysctl("ipv4/conf/far9/forwarding"), "0");
    assert_eq!(sysctl("ipv4/conf/virbr9/forwarding"), "1", "it was on by itself");
    assert_eq!(sysctl("ipv4/conf/all/accept_redirects"), "0");
}

fn sysctls_of_a_crash() {
    set_sysctl("ipv4/ip_forward", "0");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    t.plumber.hold_sysctls("a", vec![Sysctl::forward4()]).unwrap();
    std::mem::forget(t);
    assert_eq!(sysctl("ipv4/ip_forward"), "1");
    let t = plumber(&state, |_| {});
    assert!(t.plumber.recovered().is_clean());
    assert_eq!(sysctl("ipv4/ip_forward"), "0");
    assert!(is_clean(&state));
}

fn forwarding_keeps_advertised_routes() {
    host_if();
    set_sysctl("ipv6/conf/virbr9/accept_ra", "1");
    sh("ip link set virbr9 up; ip -6 route add default via fe80::1 dev virbr9 proto ra expires 600");
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let report = t.plumber.hold_sysctls("a", vec![Sysctl::forward6()]).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("virbr9")), "{report}");
    assert_eq!(sysctl("ipv6/conf/virbr9/accept_ra"), "2");
    // Called again, it is the same.
    t.plumber.hold_sysctls("a", vec![Sysctl::forward6()]).unwrap();
    assert_eq!(sysctl("ipv6/conf/virbr9/accept_ra"), "2");
    t.plumber.release_sysctls("a").unwrap();
    assert_eq!(sysctl("ipv6/conf/virbr9/accept_ra"), "1");
    assert_eq!(sysctl("ipv6/conf/all/forwarding"), "0");
}
