//! Port forwards of networks that the switch translates: made, used and taken back while traffic flows.

use anyhow::{Context, Result, ensure};
use harness::{Need, Netns, Suite, conservation, counters};

use super::rig::{OUTSIDE, OUTSIDE6, UPLINK, World, at, iperf, iperf_server};
use super::talk::{Connection, Server, ask_tcp, ask_udp, nobody_at};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc];
const TRAFFIC: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Iperf3];

pub(crate) fn register(suite: &mut Suite) {
    suite.add("nat_forwards_of_ports_ranges_and_lists_come_and_go", NEEDS, come_and_go);
    suite.add("nat_forwards_of_ipv6_come_and_go", NEEDS, of_ipv6);
    suite.add("nat_forwards_that_contradict_are_refused", NEEDS, contradictions);
    suite.add("nat_hairpin_by_the_outside_address_in_super_frames", TRAFFIC, hairpin);
}

/// Both protocols at an outside port lead to where `told` begins, from a client that keeps its address.
fn leads(from: &Netns, client: &str, to: &str, told: &str) -> Result<()> {
    for answer in [ask_tcp(from, to)?, ask_udp(from, to, 0)?] {
        ensure!(answer.starts_with(&format!("{told} from {client}")), "at {to}: {answer}, not {told}");
    }
    Ok(())
}

/// LISTEN, TARGET, and for each outside port who answers there.
type Case<'a> = (&'a str, String, &'a [(u16, &'a str)]);

fn come_and_go() -> Result<()> {
    let world = World::with(UPLINK)?;
    let (a, b) = (world.guest("t0")?, world.guest("t1")?);
    let _a = Server::start(&a.namespace, "a", &[80, 443, 5000, 5001, 5002])?;
    let _b = Server::start(&b.namespace, "b", &[80, 6000, 6001])?;
    let (far, client) = (&world.outside.far, super::rig::FAR);
    let outside = |port: u16| at(OUTSIDE, port);
    nobody_at(far, &outside(8080))?;

    let cases: [Case<'_>; 4] = [
        ("8080", format!("{}:80", a.address), &[(8080, "a 80")]),
        ("5000-5002", a.address.clone(), &[(5000, "a 5000"), (5001, "a 5001"), (5002, "a 5002")]),
        ("7000-7001", format!("{}:6000-6001", b.address), &[(7000, "b 6000"), (7001, "b 6001")]),
        ("80,443", a.address.clone(), &[(80, "a 80"), (443, "a 443")]),
    ];
    let each = |verb: &str| -> Result<()> {
        for (listen, target, _) in &cases {
            for proto in ["tcp", "udp"] {
                world.daemon.ok(&format!("forward {verb} n {proto} {listen} {target}"))?;
            }
        }
        Ok(())
    };
    each("add")?;
    for (port, told) in cases.iter().flat_map(|(.., answers)| answers.iter()) {
        leads(far, client, &outside(*port), told)?;
    }
    nobody_at(far, &outside(5003))?;
    nobody_at(far, &outside(444))?;
    let listed = world.daemon.json("forward list n")?;
    ensure!(listed.as_array().is_some_and(|list| list.len() == 8), "forward list: {listed}");

    // What runs by a forward ends with it; what runs by another goes on.
    let mut by_first = Connection::open(far, &outside(8080))?;
    let mut by_range = Connection::open(far, &outside(5001))?;
    let mut out_of_it = Connection::open(far, &outside(7001))?;
    world.daemon.ok(&format!("forward del n tcp 8080 {}:80", a.address))?;
    world.daemon.ok(&format!("forward del n tcp 5000-5002 {}", a.address))?;
    by_first.is_dead().context("after its forward was deleted")?;
    by_range.is_dead().context("after its range was deleted")?;
    out_of_it.works().context("of another forward")?;
    // UDP's 8080 is there still, TCP's is not.
    ask_udp(far, &outside(8080), 0)?;
    ensure!(ask_tcp(far, &outside(8080)).is_err(), "a deleted forward still leads somewhere");
    world.daemon.ok(&format!("forward del n udp 8080 {}:80", a.address))?;
    nobody_at(far, &outside(8080))?;

    // Made again, to another guest, at once.
    for proto in ["tcp", "udp"] {
        world.daemon.ok(&format!("forward add n {proto} 8080 {}:80", b.address))?;
    }
    leads(far, client, &outside(8080), "b 80")?;
    by_first.is_dead().context("of a forward that leads elsewhere now")?;
    conservation(&world.daemon)?;
    Ok(())
}

fn of_ipv6() -> Result<()> {
    let world = World::with(UPLINK)?;
    let a = world.guest("t0")?;
    let address = a.address6()?;
    let _a = Server::start(&a.namespace, "a", &[80, 5000, 5001])?;
    let (far, client) = (&world.outside.far, format!("[{}]", super::rig::FAR6));
    let outside = |port: u16| at(OUTSIDE6, port);
    nobody_at(far, &outside(8080))?;
    for proto in ["tcp", "udp"] {
        world.daemon.ok(&format!("forward add n {proto} 8080 [{address}]:80"))?;
        world.daemon.ok(&format!("forward add n {proto} 5000-5001 {address}"))?;
    }
    for (port, told) in [(8080, "a 80"), (5000, "a 5000"), (5001, "a 5001")] {
        leads(far, &client, &outside(port), told)?;
    }
    let mut connection = Connection::open(far, &outside(8080))?;
    connection.works()?;
    for proto in ["tcp", "udp"] {
        world.daemon.ok(&format!("forward del n {proto} 8080 [{address}]:80"))?;
    }
    connection.is_dead()?;
    nobody_at(far, &outside(8080))?;
    leads(far, &client, &outside(5001), "a 5001")?;
    conservation(&world.daemon)?;
    Ok(())
}

fn contradictions() -> Result<()> {
    let world = World::with(UPLINK)?;
    let a = world.guest("t0")?;
    let (target, daemon) = (format!("{}:80", a.address), &world.daemon);
    daemon.ok(&format!("forward add n tcp 8080 {target}"))?;
    daemon.refused(1, &["forward", "add", "n", "tcp", "8080", "192.168.77.9:80"])?;
    daemon.refused(1, &["forward", "add", "n", "tcp", "8000-8100", "192.168.77.9"])?;
    // Not in the subnet: whoever it is, it is no guest.
    daemon.refused(1, &["forward", "add", "n", "tcp", "8081", "10.0.0.1:80"])?;
    daemon.refused(1, &["forward", "del", "n", "tcp", "8081", &target])?;
    daemon.ok(&format!("forward del --if-exists n tcp 8081 {target}"))?;
    daemon.ok(&format!("forward add --may-exist n tcp 8080 {target}"))?;
    let listed = daemon.json("forward list n")?;
    ensure!(listed.as_array().is_some_and(|list| list.len() == 1), "forward list: {listed}");
    let _a = Server::start(&a.namespace, "a", &[80])?;
    let told = ask_tcp(&world.outside.far, &at(OUTSIDE, 8080))?;
    ensure!(told.starts_with("a 80"), "{told}");
    Ok(())
}

fn hairpin() -> Result<()> {
    let world = World::with(UPLINK)?;
    let (a, b) = (world.guest("t0")?, world.guest("t1")?);
    let b6 = b.address6()?;
    a.address6()?;
    let _b = Server::start(&b.namespace, "b", &[80])?;
    let _a = Server::start(&a.namespace, "a", &[81])?;
    let _server = iperf_server(&b.namespace)?;
    for proto in ["tcp", "udp"] {
        for (port, target) in [(8080, 80), (5201, 5201)] {
            world.daemon.ok(&format!("forward add n {proto} {port} {}:{target}", b.address))?;
            world.daemon.ok(&format!("forward add n {proto} {port} {}", at(&b6, target)))?;
        }
        world.daemon.ok(&format!("forward add n {proto} 8081 {}:81", a.address))?;
    }
    for (outside, seen) in [(OUTSIDE, OUTSIDE.to_string()), (OUTSIDE6, format!("[{OUTSIDE6}]"))] {
        // RFC 4787, REQ-9: the server sees the outside address of its neighbour.
        leads(&a.namespace, &seen, &at(outside, 8080), "b 80")?;
        // From itself to itself.
        leads(&b.namespace, &seen, &at(outside, 8080), "b 80")?;
        let before = counters(&world.daemon, "t1")?;
        iperf(&a.namespace, &format!("-c {outside}"))?;
        let after = counters(&world.daemon, "t1")?;
        let mean = (after.tx_bytes - before.tx_bytes) / (after.tx_frames - before.tx_frames).max(1);
        ensure!(mean > 5_000, "by {outside}: the mean frame to t1 had {mean} bytes");
        iperf(&a.namespace, &format!("-c {outside} -R"))?;
        iperf(&a.namespace, &format!("-c {outside} -u -b 20M -l 1200"))?;
    }
    // A guest that is reached by one forward reaches another guest's, on the same ports.
    leads(&b.namespace, OUTSIDE, &at(OUTSIDE, 8081), "a 81")?;
    // Nothing of it went outside.
    let sent = world.outside.router.run("ip -s -j link show dev wan0")?;
    let sent: serde_json::Value = serde_json::from_str(&sent)?;
    let bytes = sent[0]["stats64"]["rx"]["bytes"].as_u64().context("no counter of wan0")?;
    ensure!(bytes < 100_000, "{bytes} bytes of a hairpin went outside");
    let mut connection = Connection::open(&a.namespace, &at(OUTSIDE, 8080))?;
    connection.works()?;
    world.daemon.ok(&format!("forward del n tcp 8080 {}:80", b.address))?;
    connection.is_dead()?;
    conservation(&world.daemon)?;
    Ok(())
}
