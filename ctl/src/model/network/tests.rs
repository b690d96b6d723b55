//! Words of networks, and what is made or said of them.

use super::*;
use crate::model::words::Claim;
use crate::model::{MTU_DEFAULT, NetworkChanges};
use proptest::prelude::*;

/// A network of words with spaces between them.
fn parse(name: &str, words: &str) -> Result<NetworkSpec, String> {
    let words = words.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    NetworkSpec::from_words(name, words).map_err(|e| e.to_string())
}

#[track_caller]
fn net(words: &str) -> NetworkSpec {
    parse("lan", words).unwrap()
}

/// The words of a network as one text.
fn text(spec: &NetworkSpec) -> String {
    spec.words().iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
}

const NAT: &str = "mode=nat subnet=192.168.122.0/24 egress=host";
const NAT_USER: &str = "mode=nat subnet=192.168.122.0/24";
const NAT_UPLINK: &str = "mode=nat subnet=192.168.122.0/24 egress=uplink:eth0";

#[test]
fn defaults_are_those_of_the_manual() {
    let spec = net("");
    assert_eq!(spec.mode, Mode::Bridge);
    assert_eq!(spec.host_address, HostAddress::Keep);
    assert_eq!((spec.uplink.as_deref(), spec.host_if, spec.mtu), (None, false, None));
    assert_eq!((spec.ageing_s, spec.fdb_max), (300, 8192));
    assert_eq!(text(&spec), "mode=bridge");
    assert_eq!(spec, net("ageing=300 fdb-max=8192 host-if=off"));
    assert_eq!(spec.mtu_in_force(), MTU_DEFAULT);
    assert!(!spec.has_gateway() && !spec.address_by_dhcp() && !spec.may_forward());
}

/// Every mode with every key that it takes, as it is printed again.
const WHOLE: &[&str] = &[
    "mode=bridge uplink=eth0 host-if=on mtu=9000 ageing=15 fdb-max=1000000",
    "mode=bridge uplink=eth0 host-address=move",
    "mode=internal subnet=10.0.0.0/8 subnet6=fd00:1::/64 gateway=10.0.0.9 dhcp=10.0.1.0-10.0.2.255 dns=on \
     domain=vm.example lease-time=120 mtu=1280 ageing=60 fdb-max=64",
    "mode=nat subnet=192.168.122.0/24 subnet6=fd00:1::/64 gateway=192.168.122.254 \
     dhcp=192.168.122.100-192.168.122.200 dns=off domain=vm.example egress=uplink:eth0 address=203.0.113.2/24 \
     next-hop=203.0.113.1 address6=2001:db8::2/64 next-hop6=fe80::1 lease-time=2592000 \
     dns-servers=192.0.2.53,2001:db8::53 static-routes=10.8.0.0/16@192.168.122.2,0.0.0.0/0@192.168.122.3 \
     boot-file=pxelinux.0 boot-server=192.168.122.4 filtering=address-and-port-dependent quota=16 mtu=1400 \
     ageing=3600 fdb-max=1",
    "mode=nat subnet=192.168.122.0/24 egress=host ip-forward=off",
    "mode=nat subnet=192.168.122.0/24 dhcp=off egress=host",
    "mode=routed uplink=eth0 host-if=on subnet=192.0.2.0/28 subnet6=2001:db8:1::/64 gateway=192.0.2.14 \
     dhcp=192.0.2.1-192.0.2.13 dns=on domain=vm.example address=203.0.113.2/30 next-hop=203.0.113.1 \
     address6=2001:db8::2/127 next-hop6=2001:db8::3 ip-forward=on lease-time=300 dns-servers=9.9.9.9 \
     static-routes=10.0.0.0/8@192.0.2.3 boot-file=http://192.0.2.9/boot.ipxe mtu=1500",
    "mode=nat subnet=192.168.122.0/24 outbound=deny:10.0.0.0/8,allow:*.example.org:443,deny:* host-loopback=on \
     filtering=endpoint-independent quota=100",
    "mode=routed host-if=off",
    "mode=routed gateway=169.254.0.1",
];

#[test]
fn every_key_of_every_mode_is_taken_and_told_again() {
    for words in WHOLE {
        let spec = net(words);
        let words: Vec<_> = words.split_ascii_whitespace().collect();
        assert_eq!(text(&spec), words.join(" "));
        assert_eq!(net(&text(&spec)), spec);
        // The order of keys means nothing: on the wire they come by the alphabet.
        let backwards: Vec<_> = words.into_iter().rev().collect();
        assert_eq!(net(&backwards.join(" ")), spec);
        // A draft of what is there makes what is there.
        assert_eq!(NetworkDraft::from(spec.clone()).build().unwrap(), spec);
    }
}

#[test]
fn what_says_the_default_says_nothing() {
    for (words, same) in [
        (
            "mode=nat subnet=10.0.0.0/24 egress=host gateway=10.0.0.1 dhcp=10.0.0.2-10.0.0.254 dns=on ip-forward=on",
            "",
        ),
        ("mode=nat subnet=10.0.0.0/24 egress=host lease-time=3600", ""),
        (
            "mode=nat subnet=10.0.0.0/24 egress=uplink:e quota=16384 filtering=address-dependent",
            " egress=uplink:e",
        ),
        ("mode=nat subnet=10.0.0.0/24 egress=user", " "),
        ("mode=internal dhcp=off dns=off", "mode=internal"),
        (
            "mode=internal subnet=10.0.0.0/24 dns=on gateway=10.0.0.1",
            "mode=internal subnet=10.0.0.0/24 dns=on",
        ),
        ("mode=routed host-if=on ip-forward=off dhcp=off dns=off", "mode=routed"),
        ("mode=routed uplink=eth0 host-if=off", "mode=routed uplink=eth0"),
    ] {
        let base = "mode=nat subnet=10.0.0.0/24";
        let same = match same {
            "" => format!("{base} egress=host"),
            _ if same.starts_with(' ') => format!("{base}{}", same.trim_end()),
            _ => same.to_owned(),
        };
        assert_eq!(text(&net(words)), same, "{words}");
    }
    // An internal network has a gateway only when something asks for one.
    assert_eq!(
        net("mode=internal subnet=10.0.0.0/24 gateway=10.0.0.1").gateway4(),
        Some([10, 0, 0, 1].into())
    );
    assert_eq!(net("mode=internal subnet=10.0.0.0/24").gateway4(), None);
}

#[test]
fn what_holds_where_nothing_was_said() {
    let range = |spec: &NetworkSpec| spec.dhcp_range().map(|(a, b)| format!("{a}-{b}"));
    let nat = net(NAT);
    assert_eq!(nat.gateway4(), Some([192, 168, 122, 1].into()));
    assert_eq!(range(&nat).as_deref(), Some("192.168.122.2-192.168.122.254"));
    assert_eq!((nat.dns_on(), nat.dns_forwards(), nat.may_forward(), nat.host_if), (true, true, true, true));
    assert_eq!((nat.host_interface(), nat.uplink_interface(), nat.translates()), (Some("lan"), None, false));
    assert_eq!(nat.dns_of_guests(), [IpAddr::from([192, 168, 122, 1])]);
    assert_eq!((nat.lease_time_s, nat.quota, nat.filtering), (3600, 16_384, Filtering::AddressDependent));
    let user = net(NAT_USER);
    assert_eq!(
        (user.by_sockets(), user.translates(), user.host_if, user.may_forward()),
        (true, false, false, false)
    );
    assert_eq!((user.dns_on(), user.claims()), (true, vec![]));
    let last = net(&format!("{NAT} gateway=192.168.122.254"));
    assert_eq!(range(&last).as_deref(), Some("192.168.122.1-192.168.122.253"));
    let within = net(&format!("{NAT} gateway=192.168.122.7"));
    assert_eq!(range(&within).as_deref(), Some("192.168.122.1-192.168.122.254"));
    let large = net("mode=nat subnet=10.0.0.0/8 egress=host");
    assert_eq!(range(&large).as_deref(), Some("10.0.0.2-10.1.0.1"));
    let small = net("mode=nat subnet=10.0.0.4/30 egress=host");
    assert_eq!(range(&small).as_deref(), Some("10.0.0.6-10.0.0.6"));

    let own = net(&format!("{NAT_UPLINK} subnet6=fd00::/64"));
    assert_eq!((own.host_if, own.uplink_interface(), own.uplink.as_deref()), (false, Some("eth0"), None));
    assert!(own.translates() && own.address_by_dhcp() && !own.may_forward() && !own.uses_host_routes());
    assert_eq!((own.gateway6(), own.slaac()), (Some("fd00::1".parse().unwrap()), true));
    assert_eq!(own.dns_of_guests().len(), 2);
    assert!(!net(&format!("{NAT_UPLINK} address=203.0.113.2/24")).address_by_dhcp());
    let told = net(&format!("{NAT} dns=off dns-servers=9.9.9.9"));
    assert_eq!(told.dns_of_guests(), [IpAddr::from([9, 9, 9, 9])]);

    let routed = net("mode=routed");
    assert_eq!((routed.host_if, routed.may_forward(), routed.dns_on()), (true, false, false));
    assert_eq!((range(&routed), routed.gateway4(), routed.has_gateway()), (None, None, true));
    assert!(routed.uses_host_routes());
    let uplinked = net("mode=routed uplink=eth0");
    assert_eq!(
        (uplinked.host_if, uplinked.uses_host_routes(), uplinked.address_by_dhcp()),
        (false, false, false)
    );

    let internal = net("mode=internal subnet=10.0.0.0/24 dns=on");
    assert_eq!((range(&internal), internal.gateway4()), (None, Some([10, 0, 0, 1].into())));
    assert!(internal.has_gateway() && internal.dns_on() && !internal.dns_forwards() && !internal.host_if);
    assert!(!net("mode=internal").has_gateway());
    let v6 = net("mode=internal subnet6=fd00::/112");
    assert_eq!((v6.gateway6(), v6.slaac()), (Some("fd00::1".parse().unwrap()), false));
    let moved = net("uplink=eth0 host-address=move");
    assert_eq!((moved.host_if, moved.host_interface()), (true, Some("lan")));
}

/// Values that are wrong by themselves, on a network that takes the key.
#[test]
fn values_that_are_refused_and_how() {
    for (words, why) in [
        ("mode=switch", "'switch' is not one of bridge, routed, nat, internal"),
        ("host-address=maybe", "'maybe' is not one of keep, move"),
        ("uplink=an-interface-too-long", "21 bytes"),
        ("uplink=a/b", "not possible in it"),
        ("host-if=yes", "neither 'on' nor 'off'"),
        ("mtu=67", "from 68 to 65535"),
        ("mtu=65536", "from 68 to 65535"),
        ("ageing=14", "from 15 to 3600"),
        ("ageing=3601", "from 15 to 3600"),
        ("fdb-max=0", "from 1 to 1000000"),
        ("fdb-max=1000001", "from 1 to 1000000"),
        ("colour=red", "no such key"),
        ("mtu=", "'' is not a number"),
        ("subnet=192.168.122.0/33", "is not an IPv4 subnet such as"),
        ("subnet=192.168.122.0", "is not an IPv4 subnet such as"),
        ("subnet=fd00::/64", "is not an IPv4 subnet such as"),
        ("subnet=192.168.122.5/24", "the subnet is 192.168.122.0/24"),
        ("subnet=10.0.0.0/31", "from /8 to /30"),
        ("subnet=10.0.0.0/7", "from /8 to /30"),
        ("subnet=127.0.0.0/8", "not a subnet that hosts may have"),
        ("subnet=0.0.0.0/8", "not a subnet that hosts may have"),
        ("subnet=224.0.0.0/24", "not a subnet that hosts may have"),
        ("subnet6=10.0.0.0/8", "is not an IPv6 subnet such as"),
        ("subnet6=fd00::1/64", "the subnet is fd00::/64"),
        ("subnet6=fd00::/63", "a subnet has /64"),
        ("subnet6=fd00::/127", "a subnet has /64"),
        ("subnet6=fe80::/64", "not a subnet that hosts may have"),
        ("subnet6=ff05::/64", "not a subnet that hosts may have"),
        ("subnet6=::/64", "not a subnet that hosts may have"),
        ("gateway=10.0.0", "not an IPv4 address"),
        ("gateway=fd00::1", "the IPv6 gateway is the first address of subnet6="),
        ("gateway=224.0.0.1", "not the address of a host"),
        ("dhcp=10.0.0.9-10.0.0.2", "ends before it starts"),
        ("dhcp=10.0.0.0-10.1.0.0", "has more than 65536 addresses"),
        ("dhcp=on", "neither 'off' nor a range"),
        ("dhcp=10.0.0.1", "neither 'off' nor a range"),
        ("dns=maybe", "neither 'on' nor 'off'"),
        ("domain=-x", "not a domain name"),
        ("domain=a..b", "not a domain name"),
        ("domain=vm.example.", "not a domain name"),
        ("domain=", "not a domain name"),
        ("domain=10.0.0.1", "not a domain name"),
        ("domain=a_b", "not a domain name"),
        ("egress=uplink:", "is empty"),
        ("egress=uplink", "not one of user, host, uplink:IFNAME"),
        ("egress=magic", "not one of user, host, uplink:IFNAME"),
        ("address=203.0.113.2", "an IPv4 address with its prefix"),
        ("address=2001:db8::2/64", "an IPv4 address with its prefix"),
        ("address=203.0.113.0/24", "not the address of a host"),
        ("address=203.0.113.255/24", "not the address of a host"),
        ("address=224.0.0.5/24", "not the address of a host"),
        ("address=127.0.0.1/8", "not the address of a host"),
        ("address=10.0.0.1/0", "not the address of a host"),
        ("address6=2001:db8::/64", "not the address of a host"),
        ("address6=fe80::1/64", "not the address of a host"),
        ("address6=203.0.113.2/24", "an IPv6 address with its prefix"),
        ("next-hop=router", "not an IPv4 address"),
        ("next-hop=0.0.0.0", "not the address of a host"),
        ("next-hop6=ff02::2", "not the address of a host"),
        ("ip-forward=1", "neither 'on' nor 'off'"),
        ("lease-time=119", "from 120 to 2592000"),
        ("lease-time=2592001", "from 120 to 2592000"),
        ("dns-servers=dns.example", "not an IP address"),
        ("dns-servers=9.9.9.9,", "'' is not an IP address"),
        ("dns-servers=9.9.9.9,9.9.9.9", "given twice"),
        ("dns-servers=0.0.0.0", "not the address of a host"),
        ("dns-servers=1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4,1.1.1.5", "at most 4"),
        ("static-routes=10.8.0.0/16", "not a route such as"),
        ("static-routes=10.8.0.0@10.0.0.2", "not a route such as"),
        ("static-routes=10.8.0.0/16@fd00::1", "not a route such as"),
        ("static-routes=10.8.0.1/16@10.0.0.2", "10.8.0.0/16"),
        ("static-routes=224.0.0.0/4@10.0.0.2", "leads to no hosts"),
        ("boot-file=", "has 0 bytes"),
        ("boot-file=a\u{e9}", "not printable ASCII"),
        ("boot-server=tftp.example", "not an IPv4 address"),
        ("outbound=deny", "is not a rule such as"),
        ("outbound=", "is not a rule such as"),
        ("host-loopback=1", "neither 'on' nor 'off'"),
        ("filtering=none", "not one of endpoint-independent, address-dependent"),
        ("quota=15", "from 16 to 1000000"),
        ("quota=1000001", "from 16 to 1000000"),
    ] {
        let message = parse("lan", words).unwrap_err();
        assert!(message.contains(why), "{words:?}: {message}");
        assert!(message.starts_with("network lan: ") && !message.contains('\n'), "{message}");
    }
    let message = parse("lan", &format!("boot-file={}", "x".repeat(128))).unwrap_err();
    assert!(message.contains("has 128 bytes, 1 to 127"), "{message}");
}

#[test]
fn keys_that_a_mode_does_not_take_are_refused_by_name() {
    let no_way_out = "internal networks have no way out";
    for (words, why) in [
        (
            "subnet=10.0.0.0/24",
            "subnet= does not go with mode=bridge: only modes routed, nat, internal take it",
        ),
        ("dhcp=off", "dhcp= does not go with mode=bridge"),
        ("dns=off", "dns= does not go with mode=bridge"),
        ("egress=host", "egress= does not go with mode=bridge: only mode nat takes it"),
        ("address=203.0.113.2/24", "address= does not go with mode=bridge: only modes routed, nat take it"),
        ("quota=100", "quota= does not go with mode=bridge"),
        ("lease-time=3600", "lease-time= does not go with mode=bridge"),
        ("mode=internal uplink=eth0", no_way_out),
        ("mode=internal host-if=off", no_way_out),
        ("mode=internal host-if=on", "host-if= does not go with mode=internal"),
        ("mode=internal egress=host", no_way_out),
        ("mode=internal address=203.0.113.2/24", no_way_out),
        ("mode=internal address6=2001:db8::2/64", no_way_out),
        ("mode=internal next-hop=203.0.113.1", no_way_out),
        ("mode=internal next-hop6=2001:db8::1", no_way_out),
        ("mode=internal host-address=keep", no_way_out),
        ("mode=internal ip-forward=on", no_way_out),
        (
            "mode=internal dns-servers=9.9.9.9",
            "dns-servers= does not go with mode=internal: only modes routed, nat",
        ),
        ("mode=internal filtering=address-dependent", "filtering= does not go with mode=internal"),
        (&*format!("{NAT} uplink=eth0"), "uplink= does not go with mode=nat: say egress=uplink:IFNAME"),
        (&*format!("{NAT} host-if=on"), "host-if= does not go with mode=nat: with egress=host"),
        (
            &*format!("{NAT} host-address=keep"),
            "host-address= does not go with mode=nat: only mode bridge takes it",
        ),
        ("mode=routed egress=host", "egress= does not go with mode=routed: only mode nat takes it"),
        (
            "mode=routed ageing=300",
            "ageing= does not go with mode=routed: only modes bridge, nat, internal take it",
        ),
        ("mode=routed fdb-max=8192", "fdb-max= does not go with mode=routed"),
        ("mode=routed quota=16384", "quota= does not go with mode=routed"),
        ("mode=routed host-address=move", "host-address= does not go with mode=routed"),
    ] {
        let message = parse("lan", words).unwrap_err();
        assert!(message.contains(why), "{words}: {message}");
        assert!(message.starts_with("network lan: ") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let nat_host = "mode=nat egress=host";
    let own = "mode=nat subnet=192.168.122.0/24 egress=uplink:eth0 address=203.0.113.2/24";
    let own6 = "mode=nat subnet=192.168.122.0/24 egress=uplink:eth0 address6=2001:db8::2/64";
    let internal = "mode=internal subnet=10.0.0.0/24";
    let routed = "mode=routed subnet=10.0.0.0/24";
    for (words, more, why) in [
        // The way out.
        ("mode=nat", "", "mode=nat needs the subnet of its guests: give subnet="),
        (nat_host, "subnet6=fd00::/64", "mode=nat needs the subnet of its guests"),
        (NAT, "address=203.0.113.2/24", "address= is for the switch's own translation"),
        (NAT, "address6=2001:db8::2/64", "address6= is for the switch's own translation"),
        (NAT, "next-hop=203.0.113.1", "next-hop= is for the switch's own translation"),
        (NAT, "next-hop6=2001:db8::1", "next-hop6= is for the switch's own translation"),
        (NAT, "filtering=address-dependent", "filtering= is for the switch's own translation"),
        (NAT, "quota=100", "quota= is for the switch's own translation"),
        (NAT_UPLINK, "ip-forward=on", "it goes with egress=host only"),
        (NAT, "outbound=deny:*", "outbound= is about the host's sockets: it goes with egress=user only"),
        (NAT_UPLINK, "host-loopback=on", "host-loopback= is about the host's sockets"),
        (NAT_USER, "ip-forward=on", "it goes with egress=host only"),
        (
            NAT_USER,
            "address=203.0.113.2/24",
            "address= is our own on an uplink: it does not go with egress=user",
        ),
        (NAT_USER, "address6=2001:db8::2/64", "address6= is our own on an uplink"),
        (NAT_USER, "next-hop=203.0.113.1", "next-hop= is our own on an uplink"),
        (NAT_USER, "next-hop6=2001:db8::1", "next-hop6= is our own on an uplink"),
        ("mode=routed", "uplink=eth0 ip-forward=on", "it needs host-if=on"),
        ("mode=routed", "host-if=off ip-forward=off", "it needs host-if=on"),
        ("mode=routed", "address=203.0.113.2/24", "our own on an uplink: give uplink= too"),
        ("mode=routed", "address6=2001:db8::2/64", "our own on an uplink: give uplink= too"),
        (NAT_UPLINK, "next-hop=203.0.113.1", "give address= too"),
        (NAT_UPLINK, "next-hop6=2001:db8::1", "give address6= too"),
        (own, "next-hop=203.0.114.1", "next-hop=203.0.114.1 is not in the subnet of address=203.0.113.2/24"),
        (own, "next-hop=203.0.113.2", "is address= itself"),
        (own, "next-hop=203.0.113.0", "is no host of the subnet of address="),
        (own, "next-hop=203.0.113.255", "is no host of the subnet of address="),
        (own6, "next-hop6=2001:db8:1::1", "next-hop6=2001:db8:1::1 is not in the subnet of address6="),
        (own6, "next-hop6=2001:db8::2", "is address6= itself"),
        (NAT_UPLINK, "address=192.168.122.9/24", "overlaps 192.168.122.0/24, the guests' subnet"),
        (NAT_UPLINK, "address=192.168.1.9/16", "overlaps 192.168.122.0/24, the guests' subnet"),
        (NAT_UPLINK, "address=192.168.122.9/32", "overlaps 192.168.122.0/24, the guests' subnet"),
        (NAT_UPLINK, "subnet6=fd00::/64 address6=fd00::2/48", "overlaps fd00::/64, the guests' subnet"),
        ("mode=routed uplink=eth0 subnet=10.0.0.0/24", "address=10.0.0.2/24", "overlaps 10.0.0.0/24"),
        // The host.
        ("", "host-address=move", "moves the addresses of an uplink: give uplink= too"),
        ("uplink=eth0", "host-address=move host-if=off", "leave host-if=off out"),
        // The gateway.
        (
            NAT,
            "gateway=192.168.123.1",
            "gateway=192.168.123.1 is not in subnet=192.168.122.0/24: take one from 192.168.122.1 to 192.168.122.254",
        ),
        (NAT, "gateway=192.168.122.0", "is the network address of subnet=192.168.122.0/24"),
        (NAT, "gateway=192.168.122.255", "is the broadcast address of subnet=192.168.122.0/24"),
        ("mode=internal", "gateway=10.0.0.1", "gateway=10.0.0.1 needs the subnet that it is in"),
        // DHCP.
        ("mode=internal", "dhcp=10.0.0.2-10.0.0.9", "needs the subnet that it is in: give subnet= too"),
        ("mode=routed", "dhcp=10.0.0.2-10.0.0.9", "needs the subnet that it is in: give subnet= too"),
        (
            internal,
            "dhcp=10.0.1.2-10.0.1.9",
            "is not within the hosts of subnet=10.0.0.0/24, which are 10.0.0.1 to 10.0.0.254",
        ),
        (internal, "dhcp=10.0.0.2-10.0.1.9", "is not within the hosts of subnet=10.0.0.0/24"),
        (internal, "dhcp=10.0.0.0-10.0.0.9", "is not within the hosts of subnet=10.0.0.0/24"),
        (internal, "dhcp=10.0.0.9-10.0.0.255", "is not within the hosts of subnet=10.0.0.0/24"),
        (internal, "dhcp=10.0.0.1-10.0.0.1", "has no address but the gateway's"),
        (internal, "dhcp=10.0.0.9-10.0.0.9 gateway=10.0.0.9", "has no address but the gateway's"),
        (internal, "lease-time=300", "lease-time= is told by DHCP, which is off: give dhcp=START-END too"),
        (routed, "static-routes=10.8.0.0/16@10.0.0.2", "static-routes= is told by DHCP, which is off"),
        (routed, "boot-file=a", "boot-file= is told by DHCP, which is off"),
        (NAT, "dhcp=off lease-time=300", "lease-time= is told by DHCP, which is off"),
        (NAT, "boot-server=192.168.122.4", "give boot-file= too"),
        (NAT, "static-routes=10.8.0.0/16@192.168.123.2", "guests do not reach 192.168.123.2"),
        (NAT, "static-routes=10.8.0.0/16@192.168.122.255", "guests do not reach 192.168.122.255"),
        // DNS.
        ("mode=internal", "dns=on", "dns=on needs an address to answer at"),
        ("mode=routed", "dns=on", "dns=on needs an address to answer at"),
        (routed, "dns-servers=9.9.9.9", "dns-servers= has nobody to tell them to"),
        (NAT, "dns=off dns-servers=127.0.0.53", "do not reach 127.0.0.53"),
        (NAT, "dns-servers=192.168.122.1", "is the gateway itself"),
        // The MTU.
        (NAT, "subnet6=fd00::/64 mtu=1279", "mtu=1279 is too small for subnet6=fd00::/64: IPv6 needs 1280"),
        ("mode=internal", "subnet6=fd00::/64 mtu=68", "IPv6 needs 1280 bytes or more"),
    ] {
        let message = parse("lan", &format!("{words} {more}")).expect_err(&format!("{words} {more}"));
        assert!(message.contains(why), "{words} {more}: {message}");
        assert!(message.starts_with("network lan: ") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_host_interface_bounds_the_networks_name() {
    let long = "sixteen-bytes-ab";
    assert!(
        parse(long, "").is_ok() && parse(long, NAT_UPLINK).is_ok() && parse(long, "mode=internal").is_ok()
    );
    for (words, why) in [
        ("host-if=on", "host-if=on names an interface after the network"),
        ("uplink=eth0 host-address=move", "host-address=move names an interface after the network"),
        (NAT, "egress=host names an interface after the network"),
        ("mode=routed", "mode=routed without uplink= names an interface after the network"),
    ] {
        let message = parse(long, words).unwrap_err();
        assert!(message.contains(why) && message.contains("16 bytes"), "{message}");
    }
    for words in
        ["host-if=on uplink=eth0", "host-address=move uplink=eth0", "mode=routed host-if=on uplink=eth0"]
    {
        let message = parse("eth0", words).unwrap_err();
        assert!(message.contains("name the network otherwise"), "{message}");
    }
}

#[test]
fn what_networks_take_of_the_host() {
    let claims = |words: &str| -> Vec<String> { net(words).claims().iter().map(Claim::to_string).collect() };
    for (words, claimed) in [
        ("", &[][..]),
        ("host-if=on uplink=eth0", &["interface lan", "interface eth0"]),
        ("host-address=move uplink=eth0", &["interface lan", "interface eth0"]),
        (NAT, &["interface lan"]),
        (NAT_UPLINK, &["interface eth0"]),
        ("mode=routed", &["interface lan"]),
        ("mode=routed uplink=eth0", &["interface eth0"]),
        ("mode=internal", &[]),
    ] {
        assert_eq!(claims(words), claimed, "{words}");
    }
}

#[test]
fn networks_that_cannot_be_on_one_host() {
    for (a, b, why) in [
        ("uplink=eth0", "uplink=eth0", Some("interface eth0 is network b's already")),
        ("uplink=eth0", NAT_UPLINK, Some("interface eth0 is network b's already")),
        ("mode=routed uplink=eth0", NAT_UPLINK, Some("interface eth0 is network b's already")),
        (NAT, NAT, Some("its subnet 192.168.122.0/24 overlaps 192.168.122.0/24 of network b")),
        (NAT, "mode=routed subnet=192.168.0.0/16", Some("overlaps 192.168.0.0/16 of network b")),
        ("mode=routed subnet=192.168.122.64/26", NAT, Some("overlaps 192.168.122.0/24 of network b")),
        (
            "mode=routed subnet6=fd00::/64",
            "mode=nat subnet=10.0.0.0/24 egress=host subnet6=fd00::/64",
            Some("overlaps fd00::/64"),
        ),
        (
            "mode=routed uplink=e0 subnet=10.0.0.0/24 host-if=on",
            "mode=routed subnet=10.0.0.0/8",
            Some("overlaps"),
        ),
        ("mode=routed uplink=e0 subnet=10.0.0.0/24", "mode=routed subnet=10.0.0.0/8", None),
        (NAT, NAT_UPLINK, None),
        (NAT_UPLINK, "mode=nat subnet=192.168.122.0/24 egress=uplink:eth1", None),
        (NAT, "mode=internal subnet=192.168.122.0/24 dns=on", None),
        (NAT, "mode=nat subnet=192.168.123.0/24 egress=host", None),
        (NAT, "mode=routed", None),
        ("host-if=on", "host-if=on", None),
    ] {
        let (first, second) = (parse("a", a).unwrap(), parse("b", b).unwrap());
        match why {
            None => assert_eq!(first.conflicts(&second), None, "{a} and {b}"),
            Some(why) => {
                let conflict = first.conflicts(&second).unwrap_or_default();
                assert!(conflict.contains(why), "{a} and {b}: {conflict}");
            }
        }
        assert_eq!(second.conflicts(&first).is_some(), why.is_some(), "{b} and {a}");
    }
}

#[test]
fn keys_that_change_while_a_network_forwards() {
    let change = |spec: &NetworkSpec, key: &str, value: &str| {
        let changes = NetworkChanges::from_words("lan", &[(key, value)]).map_err(|e| e.to_string())?;
        changes.apply(spec).map_err(|e| e.to_string())
    };
    let uplink = net(NAT_UPLINK);
    for (key, value) in [
        ("mtu", "1400"),
        ("ageing", "60"),
        ("fdb-max", "100"),
        ("domain", "vm.example"),
        ("lease-time", "300"),
        ("dns-servers", "9.9.9.9"),
        ("static-routes", "10.8.0.0/16@192.168.122.2"),
        ("boot-file", "pxelinux.0"),
    ] {
        let changed = change(&uplink, key, value).unwrap();
        assert_eq!(
            text(&changed).split(' ').find(|w| w.starts_with(&format!("{key}="))),
            Some(&*format!("{key}={value}"))
        );
        assert_eq!(change(&changed, key, "").unwrap(), uplink, "{key}");
        assert_eq!(NetworkChanges::between(&uplink, &changed).unwrap().apply(&uplink).unwrap(), changed);
        assert_eq!(NetworkChanges::between(&changed, &uplink).unwrap().apply(&changed).unwrap(), uplink);
    }
    let again = "delete the network and add it again";
    for (spec, key, value, why) in [
        (&uplink, "subnet", "10.0.0.0/24", again),
        (&uplink, "egress", "host", again),
        (&uplink, "gateway", "192.168.122.2", again),
        (&uplink, "dhcp", "off", again),
        (&uplink, "filtering", "address-dependent", again),
        (&uplink, "address", "203.0.113.2/24", again),
        (&uplink, "ip-forward", "on", again),
        (&uplink, "quota", "100", again),
        (
            &net("mode=routed"),
            "uplink",
            "eth0",
            "uplink= of a routed network cannot change while it exists: delete",
        ),
        (&net("mode=routed"), "host-if", "off", again),
        (&net("mode=routed"), "quota", "100", again),
        (&net(""), "dns-servers", "9.9.9.9", "dns-servers= does not go with mode=bridge"),
        (&net("mode=internal"), "uplink", "eth0", "internal networks have no way out"),
        (&net(NAT), "mtu", "1", "from 68 to 65535"),
        (&net(NAT), "boot-server", "192.168.122.4", "give boot-file= too"),
        (&net(NAT), "colour", "red", "cannot be set; keys that can: uplink, host-if, domain, lease-time"),
        (&net("uplink=eth0 host-address=move"), "uplink", "", "give uplink= too"),
        (&net("uplink=eth0 host-address=move"), "host-if", "off", "leave host-if=off out"),
    ] {
        let message = change(spec, key, value).unwrap_err();
        assert!(message.contains(why) && !message.contains('\n'), "{key}={value}: {message}");
    }
    // What a file says of a fixed key is done by deleting and adding.
    assert_eq!(NetworkChanges::between(&net("mode=routed"), &net("mode=routed uplink=eth0")), None);
    assert_eq!(NetworkChanges::between(&net(""), &net("mode=internal")), None);
    assert!(NetworkChanges::between(&net(""), &net("uplink=eth0 host-if=on")).is_some());
}

/// Keys with values of which most go together with some mode.
const SOME: &[(&str, &[&str])] = &[
    ("mode", &["bridge", "routed", "nat", "internal"]),
    ("uplink", &["eth0"]),
    ("host-address", &["keep", "move"]),
    ("host-if", &["on", "off"]),
    ("subnet", &["10.0.0.0/24", "10.0.0.0/30"]),
    ("subnet6", &["fd00::/64", "fd00::/126"]),
    ("gateway", &["10.0.0.1", "10.0.0.2", "10.0.0.77"]),
    ("dhcp", &["off", "10.0.0.1-10.0.0.2", "10.0.0.2-10.0.0.2", "10.0.0.2-10.0.0.254"]),
    ("dns", &["on", "off"]),
    ("domain", &["vm.example"]),
    ("egress", &["user", "host", "uplink:eth0"]),
    ("address", &["203.0.113.2/24"]),
    ("next-hop", &["203.0.113.1"]),
    ("address6", &["2001:db8::2/64"]),
    ("ip-forward", &["on", "off"]),
    ("lease-time", &["3600", "300"]),
    ("dns-servers", &["9.9.9.9,fd01::1"]),
    ("static-routes", &["10.8.0.0/16@10.0.0.2"]),
    ("boot-file", &["pxelinux.0"]),
    ("outbound", &["deny:*", "allow:10.1.2.3:443,deny:10.0.0.0/8"]),
    ("host-loopback", &["on", "off"]),
    ("quota", &["16384", "100"]),
    ("mtu", &["1500", "1280"]),
    ("ageing", &["300", "15"]),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn what_is_a_network_says_so_in_words_and_has_sound_defaults(
        mode in 0_usize..4,
        picks in prop::collection::vec((prop::bool::weighted(0.3), any::<prop::sample::Index>()), SOME.len()),
    ) {
        let words: Vec<_> = SOME.iter().zip(&picks).enumerate().filter_map(|(n, ((key, values), (given, which)))| {
            let value = if n == 0 { values[mode] } else { which.get(values) };
            (*given || n == 0 || (mode == 2 && *key == "subnet")).then(|| format!("{key}={value}"))
        }).collect();
        let Ok(spec) = parse("lan", &words.join(" ")) else { return Ok(()) };
        prop_assert_eq!(&net(&text(&spec)), &spec);
        prop_assert_eq!(&NetworkDraft::from(spec.clone()).build().unwrap(), &spec);
        if let (Some(subnet), Some(gateway)) = (spec.subnet, spec.gateway4()) {
            prop_assert!(subnet.contains(gateway) && gateway != subnet.network() && gateway != subnet.broadcast());
        }
        if let Some((first, last)) = spec.dhcp_range() {
            let subnet = spec.subnet.unwrap();
            prop_assert!(subnet.network() < first && first <= last && last < subnet.broadcast());
            prop_assert!(first != last || spec.gateway4() != Some(first));
        }
        prop_assert!(!spec.dns_on() || !spec.dns_of_guests().is_empty());
        prop_assert!(spec.host_interface().is_none() || !spec.translates());
    }

    #[test]
    fn no_words_panic(key in prop::sample::select(SOME.iter().map(|(key, _)| *key).collect::<Vec<_>>()), value in "\\PC{0,20}|[0-9./:@,\\-]{0,30}") {
        let _ = NetworkSpec::from_words("lan", [("mode", "nat"), ("subnet", "10.0.0.0/24"), (key, value.as_str())]);
    }
}
