//! What tools that look at a path see of the router: its hop and its errors, by both families.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use harness::{Need, Netns, Suite, conservation, eventually};

use super::{FAR4, FAR6, HOST4, HOST6, LIMIT, ROUTER4, ROUTER6, Rig, reach};

const HOPS: &[Need] = &[
    Need::Namespaces,
    Need::Ping,
    Need::Program("traceroute"),
    Need::Program("mtr"),
    Need::Program("tracepath"),
];
const MTU: &[Need] = &[Need::Namespaces, Need::Ping, Need::Program("tracepath"), Need::Iperf3];

pub(super) fn register(suite: &mut Suite) {
    suite.add("routed_traceroute_sees_the_router_by_udp_and_icmp", HOPS, traceroute);
    suite.add("routed_mtr_and_tracepath_see_the_router", HOPS, mtr_and_tracepath);
    suite.add("routed_a_host_that_filters_reverse_paths_sees_the_routers_errors", HOPS, reverse_path_filter);
    suite.add("routed_too_large_packets_are_answered_with_the_ports_mtu", MTU, path_mtu);
}

/// The hops that a program's lines tell of: a number, and some words later the address.
fn hops(output: &str) -> Vec<String> {
    fn hop(line: &str) -> Option<&str> {
        let mut words = line.split_whitespace();
        let number = words.next()?.trim_end_matches(|c: char| !c.is_ascii_digit());
        number.parse::<u8>().ok()?;
        words.find(|word| *word == "*" || word.parse::<IpAddr>().is_ok())
    }
    output.lines().filter_map(hop).map(str::to_string).collect()
}

/// Waits until a program sees these hops. Errors are limited in their number, and a busy machine is late.
fn await_hops(from: &Netns, script: &str, expected: &[&str]) -> Result<()> {
    eventually(&format!("{script} in {}", from.name()), LIMIT, || {
        let output = from.run(script)?;
        let seen = hops(&output);
        Ok(if seen == expected { Ok(()) } else { Err(format!("{seen:?}, not {expected:?}: {output}")) })
    })
}

fn traceroute() -> Result<()> {
    let rig = Rig::new("ip-forward=on")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    let (b4, b6) = (b.v4(), b.v6());
    let ways: [(&Netns, &str, &[&str]); 8] = [
        (&a.namespace, &b4, &[ROUTER4, &b4]),
        (&a.namespace, &b6, &[ROUTER6, &b6]),
        (&a.namespace, HOST4, &[ROUTER4, HOST4]),
        (&a.namespace, FAR4, &[ROUTER4, HOST4, FAR4]),
        (&a.namespace, FAR6, &[ROUTER6, HOST6, FAR6]),
        (&rig.host, &b4, &[ROUTER4, &b4]),
        (&rig.far, &b4, &[HOST4, ROUTER4, &b4]),
        (&rig.far, &b6, &[HOST6, ROUTER6, &b6]),
    ];
    for (from, to, expected) in ways {
        reach(from, to)?;
        for probes in ["", "-I"] {
            await_hops(from, &format!("traceroute -n -q 1 -N 1 -w 2 -m 6 {probes} {to}"), expected)?;
        }
    }
    conservation(&rig.daemon)?;
    Ok(())
}

fn mtr_and_tracepath() -> Result<()> {
    let rig = Rig::new("ip-forward=on")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    for (to, expected) in [
        (b.v4(), vec![ROUTER4.to_string(), b.v4()]),
        (b.v6(), vec![ROUTER6.to_string(), b.v6()]),
        (FAR4.to_string(), [ROUTER4, HOST4, FAR4].map(str::to_string).to_vec()),
        (FAR6.to_string(), [ROUTER6, HOST6, FAR6].map(str::to_string).to_vec()),
    ] {
        reach(&a.namespace, &to)?;
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        // The lines are ` 1.|-- 10.7.0.1  0.0% …`.
        await_hops(&a.namespace, &format!("mtr --report -n -c 2 -i 0.3 {to} | sed 's/|--//'"), &expected)?;
        let told = a.run(&format!("tracepath -n -m 6 {to}"))?;
        ensure!(told.contains("reached"), "{told}");
        ensure!(told.contains(&format!("Resume: pmtu 1500 hops {n} back {n}", n = expected.len())), "{told}");
        ensure!(hops(&told).contains(&expected[0].to_string()), "no hop {}: {told}", expected[0]);
    }
    Ok(())
}

fn reverse_path_filter() -> Result<()> {
    let rig = Rig::new("ip-forward=on")?;
    rig.host.run("cd /proc/sys/net/ipv4/conf; for f in */rp_filter; do echo 1 >$f; done")?;
    let guest = rig.guest(10, "mtu=1300")?;
    let to = guest.v4();
    reach(&rig.far, &to)?;
    await_hops(&rig.far, &format!("traceroute -n -q 1 -N 1 -w 2 -m 6 {to}"), &[HOST4, ROUTER4, &to])?;
    for from in [&rig.host, &rig.far] {
        await_too_big(from, &to, ROUTER4, 1300)?;
    }
    Ok(())
}

/// A kernel forgets the MTU of paths.
const FORGET: &str = "ip route flush cache; ip -6 route flush cache";

/// Waits until a packet of 1428 bytes that may not be fragmented is answered by `router` with `mtu`.
fn await_too_big(from: &Netns, to: &str, router: &str, mtu: u16) -> Result<()> {
    // The second packet is refused by the sender itself, which has learned.
    let expected = match to.contains(':') {
        true => [format!("From {router} icmp_seq=1 Packet too big: mtu={mtu}"), format!("mtu {mtu}")],
        false => {
            [format!("From {router} icmp_seq=1 Frag needed and DF set (mtu = {mtu})"), format!("mtu {mtu}")]
        }
    };
    eventually(&format!("too big from {} to {to}", from.name()), LIMIT, || {
        from.run(FORGET)?;
        let told = from.try_run(&format!("ping -c 2 -i 0.3 -W 2 -M do -s 1400 {to}"))?;
        let route = from.run(&format!("ip route get {to}"))?;
        ensure!(told.code != 0, "it got through: {}", told.stdout);
        let seen = told.stdout.contains(&expected[0]) && route.contains(&expected[1]);
        Ok(if seen { Ok(()) } else { Err(format!("no {expected:?}: {} {route}", told.stdout)) })
    })
}

fn path_mtu() -> Result<()> {
    let rig = Rig::new("ip-forward=on")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    let small = rig.guest(30, "mtu=1300")?;
    let mtu = small.run("cat /sys/class/net/t30/mtu")?;
    ensure!(mtu.trim() == "1300", "the tap has MTU {mtu}");
    // Whole frames pass between others.
    for to in [b.v4(), b.v6()] {
        let size = if to.contains(':') { 1452 } else { 1472 };
        a.run(&format!("ping -c 2 -i 0.2 -W 5 -M do -s {size} {to}"))?;
    }
    for from in [&a.namespace, &rig.far, &rig.host] {
        for (to, router) in [(small.v4(), ROUTER4), (small.v6(), ROUTER6)] {
            reach(from, &to)?;
            await_too_big(from, &to, router, 1300)?;
        }
    }
    let told = a.run(&format!("tracepath -n -m 6 {}; tracepath -n -m 6 {}", small.v4(), small.v6()))?;
    ensure!(told.matches("Resume: pmtu 1300 hops 2 back 2").count() == 2, "{told}");
    // What may be fragmented is, and what is larger than the tap's own MTU gets back as well.
    b.run(FORGET)?;
    b.run(&format!("ping -c 2 -i 0.2 -W 5 -M dont -s 2000 {}", small.v4())).context("fragments")?;
    // A stream finds its way by itself, whatever its segments were at first.
    let mut server = harness::Program::start(&small.namespace, "iperf3", &["-s", "-1", "--forceflush"])?;
    server.await_log("Server listening", LIMIT)?;
    b.run(&format!("iperf3 -c {} -t 1 --connect-timeout 5000", small.v4()))?;
    conservation(&rig.daemon)?;
    Ok(())
}
