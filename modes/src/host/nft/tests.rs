//! Tables as they are handed to `nft`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::watch::tells_of_change;
use super::*;

fn wanted() -> Masquerade {
    Masquerade {
        network: "n".into(),
        host_if: "virbr0".into(),
        subnet: "192.168.122.0/24".parse().unwrap(),
        subnet6: None,
        masquerade6: false,
        forwards: vec![],
    }
}

fn forward(ports: RangeInclusive<u16>, to_port: u16) -> HostForward {
    let to = "192.168.122.5".parse().unwrap();
    HostForward { proto: ForwardProto::Tcp, listen: None, ports, to, to_port }
}

fn rules(wanted: &Masquerade, chain: &str) -> Vec<String> {
    let value = serde_json::to_value(wanted.ruleset()).unwrap();
    let commands = value["nftables"].as_array().unwrap();
    let rules = commands.iter().filter_map(|command| command["add"].get("rule"));
    rules.filter(|rule| rule["chain"] == chain).map(|rule| rule["expr"].to_string()).collect()
}

#[test]
fn a_table_replaces_itself_and_names_no_other() {
    let value = serde_json::to_value(wanted().ruleset()).unwrap();
    let commands = value["nftables"].as_array().unwrap();
    let verbs: Vec<&str> =
        commands.iter().take(3).map(|c| c.as_object().unwrap().keys().next().unwrap().as_str()).collect();
    assert_eq!(verbs, ["add", "delete", "add"]);
    for command in commands {
        let object = command.as_object().unwrap().values().next().unwrap().as_object().unwrap();
        let (kind, what) = object.iter().next().unwrap();
        let name = if kind == "table" { &what["name"] } else { &what["table"] };
        assert_eq!((name, &what["family"]), (&Value::from("weft_n"), &Value::from("inet")));
    }
}

#[test]
fn own_subnet_and_groups_are_left_alone_before_anything_is_translated() {
    let rules = rules(&wanted(), "postrouting");
    let translated =
        rules.iter().position(|rule| rule.contains("masquerade") && rule.contains("!=")).unwrap();
    let own =
        rules.iter().position(|rule| rule.contains("\"daddr\"") && rule.contains("192.168.122.0")).unwrap();
    let groups = rules.iter().position(|r| r.contains("224.0.0.0") && r.contains("255.255.255.255")).unwrap();
    assert!(own < translated && groups < translated, "{rules:#?}");
    assert!(rules.iter().all(|rule| rule.contains("192.168.122.0")), "only the subnet's: {rules:#?}");
}

#[test]
fn ipv6_is_translated_only_when_asked() {
    let mut wanted = wanted();
    wanted.subnet6 = Some("fd00::/64".parse().unwrap());
    let translates = |wanted: &Masquerade| {
        rules(wanted, "postrouting").iter().any(|r| r.contains("fd00::") && r.contains("1024"))
    };
    assert!(!translates(&wanted));
    assert!(rules(&wanted, "forward").iter().any(|rule| rule.contains("fd00::")), "but filtered");
    wanted.masquerade6 = true;
    assert!(translates(&wanted));
}

#[test]
fn what_is_not_known_is_rejected_last() {
    let rules = rules(&wanted(), "forward");
    let rejects = rules.iter().filter(|rule| rule.contains("port-unreachable"));
    assert_eq!(rejects.count(), 2);
    assert!(rules.iter().rev().take(2).all(|rule| rule.contains("reject")), "{rules:#?}");
    assert!(rules.iter().all(|rule| rule.contains("virbr0")), "nobody else's traffic: {rules:#?}");
}

#[test]
fn ranges_that_keep_their_ports_are_one_rule_and_others_one_each() {
    let count = |forward: HostForward| {
        let wanted = Masquerade { forwards: vec![forward], ..wanted() };
        wanted.check().unwrap();
        rules(&wanted, "prerouting").len()
    };
    assert_eq!(count(forward(80..=80, 8080)), 1);
    assert_eq!(count(forward(1..=65_535, 1)), 1);
    assert_eq!(count(forward(7000..=7009, 6000)), 10);
    let parts = forward(7000..=7002, 6000).parts();
    assert_eq!(parts[2], (7002..=7002, Some(6002)));
    assert_eq!(forward(65_535..=65_535, 1).parts(), [(65_535..=65_535, Some(1))]);
}

#[test]
fn forwards_that_cannot_be_are_refused() {
    let check = |forward| Masquerade { forwards: vec![forward], ..wanted() }.check();
    #[allow(clippy::reversed_empty_ranges, reason = "what is refused")]
    let backwards = forward(9..=8, 9);
    let elsewhere = HostForward { to: "10.0.0.1".parse().unwrap(), ..forward(1..=1, 1) };
    let six = HostForward { to: "fd00::1".parse().unwrap(), ..forward(1..=1, 1) };
    for bad in [forward(0..=5, 5), forward(5..=5, 0), backwards, elsewhere, six, forward(1..=10, 65_530)] {
        assert!(check(bad.clone()).is_err(), "{bad:?}");
    }
    assert!(check(forward(1..=6, 65_530)).is_ok());
    assert!(check(forward(1..=1024, 2)).is_ok());
    assert!(check(forward(1..=1025, 2)).is_err());
}

#[test]
fn table_names_are_plain_and_each_networks_own() {
    assert_eq!(table_name("virbr0"), "weft_virbr0");
    let networks = ["a-b", "a_b", "a.b", "ab", "a-b_c", "a_b-c", "a_2d_b", "a__2d__b", "a--b", "ä"];
    let names: BTreeSet<String> = networks.iter().map(|network| table_name(network)).collect();
    assert_eq!(names.len(), networks.len());
    assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')), "{names:?}");
}

#[test]
fn messages_of_the_kernel_are_told_apart() {
    let message = |subsystem: u8, kind: u8, len: u32| {
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend([kind, subsystem]);
        bytes.resize(usize::try_from(len).unwrap().next_multiple_of(4).max(16), 0);
        bytes
    };
    assert!(tells_of_change(&message(10, 2, 20)));
    assert!(!tells_of_change(&message(10, 12, 20)), "a set's element");
    assert!(!tells_of_change(&message(1, 2, 20)), "not of nftables");
    assert!(tells_of_change(&[message(10, 12, 21), message(10, 8, 16)].concat()));
    for broken in [vec![], vec![0; 15], vec![0; 16], vec![0xff; 16], vec![0xff; 40]] {
        assert!(!tells_of_change(&broken));
    }
}
