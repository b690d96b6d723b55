//! Who reaches whom, and what it changes of the host: routes and forwarding, while they are needed and no longer.

use anyhow::{Result, ensure};
use harness::{DaemonOptions, Need, Sniffer, Suite, conservation, counters, eventually};

use super::{
    FAR4, FAR6, Guest, HOST4, HOST6, Host, LIMIT, NET, ROUTER4, ROUTER6, Rig, SUBNETS, address4, address6,
    reach, unreachable,
};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping];
const SEEN: &[Need] = &[Need::Namespaces, Need::Ping, Need::Program("tcpdump")];

pub(super) fn register(suite: &mut Suite) {
    suite.add("routed_guests_the_host_and_what_is_behind_it_reach_each_other", NEEDS, everybody_reaches);
    suite.add("routed_ip_forward_on_is_told_set_and_restored", NEEDS, forwarding_on);
    suite.add("routed_ip_forward_off_leaves_the_host_alone_and_says_so", NEEDS, forwarding_off);
    suite.add("routed_forwarding_is_restored_after_a_crash", NEEDS, forwarding_after_a_crash);
    suite.add("routed_host_routes_come_and_go_with_ports", NEEDS, host_routes);
    suite.add("routed_a_route_of_somebody_elses_is_left_alone_and_told", NEEDS, foreign_route);
    suite.add("routed_prefixes_behind_a_guest_are_reached_through_it", NEEDS, behind_a_guest);
    suite.add("routed_sources_that_are_not_the_ports_are_dropped_as_rpf", SEEN, foreign_sources);
}

/// Forwarding of both families, as the host has it.
fn forwarding(host: &harness::Netns) -> Result<String> {
    let read = host.run("cd /proc/sys/net; cat ipv4/ip_forward ipv6/conf/all/forwarding")?;
    Ok(read.split_whitespace().collect())
}

fn everybody_reaches() -> Result<()> {
    let rig = Rig::new("ip-forward=on")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    for to in [&b.v4(), &b.v6(), ROUTER4, ROUTER6, HOST4, HOST6, FAR4, FAR6] {
        reach(&a.namespace, to)?;
    }
    for from in [&rig.host, &rig.far, &b.namespace] {
        for to in [a.v4(), a.v6()] {
            reach(from, &to)?;
        }
    }
    for to in [ROUTER4, ROUTER6] {
        reach(&rig.host, to)?;
        reach(&rig.far, to)?;
    }
    // What the router tells guests by advertisements is not for the host.
    let default = rig.host.run("ip -6 route show default")?;
    ensure!(default.is_empty(), "the host took a default route from the switch: {default}");
    conservation(&rig.daemon)?;
    Ok(())
}

fn forwarding_on() -> Result<()> {
    let mut rig = Rig::new("ip-forward=on")?;
    ensure!(forwarding(&rig.host)? == "11", "{}", forwarding(&rig.host)?);
    ensure!(rig.shown("forwarding")? == "true", "net show: {}", rig.shown("forwarding")?);
    let log = rig.daemon.log();
    for path in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        let told = |line: &str| {
            let line = line.replace('/', ".");
            line.contains(path) || line.contains(path.trim_start_matches("net."))
        };
        ensure!(log.lines().any(told), "the log does not tell of {path}: {log}");
    }
    let guest = rig.guest(10, "")?;
    reach(&guest.namespace, FAR4)?;
    ensure!(rig.daemon.terminate()? == 0, "the daemon did not end well");
    ensure!(forwarding(&rig.host)? == "00", "not restored: {}", forwarding(&rig.host)?);

    // The network's end is enough, and what somebody else switched on stays on.
    rig.daemon.restart()?;
    rig.daemon.ok(&format!("net add {NET} mode=routed {SUBNETS} ip-forward=on"))?;
    ensure!(forwarding(&rig.host)? == "11");
    rig.daemon.ok(&format!("net del {NET}"))?;
    ensure!(forwarding(&rig.host)? == "00", "not restored by net del: {}", forwarding(&rig.host)?);
    rig.host.run("echo 1 >/proc/sys/net/ipv4/ip_forward")?;
    rig.daemon.ok(&format!("net add {NET} mode=routed {SUBNETS} ip-forward=on"))?;
    rig.daemon.ok(&format!("net del {NET}"))?;
    ensure!(forwarding(&rig.host)? == "10", "somebody else's was changed: {}", forwarding(&rig.host)?);
    Ok(())
}

fn forwarding_off() -> Result<()> {
    let mut rig = Rig::new("")?;
    let guest = rig.guest(10, "")?;
    ensure!(forwarding(&rig.host)? == "00", "{}", forwarding(&rig.host)?);
    ensure!(rig.shown("forwarding")? == "false", "net show: {}", rig.shown("forwarding")?);
    ensure!(rig.daemon.log().contains("does not forward IPv4"), "not in the log: {}", rig.daemon.log());
    reach(&guest.namespace, HOST4)?;
    reach(&guest.namespace, HOST6)?;
    unreachable(&guest.namespace, FAR4)?;
    unreachable(&guest.namespace, FAR6)?;
    // It tells what is, not what was asked for.
    rig.host.run("echo 1 >/proc/sys/net/ipv4/ip_forward")?;
    ensure!(rig.shown("forwarding")? == "true", "net show: {}", rig.shown("forwarding")?);
    reach(&guest.namespace, FAR4)?;
    ensure!(rig.daemon.terminate()? == 0);
    ensure!(forwarding(&rig.host)? == "10", "the daemon's end changed it: {}", forwarding(&rig.host)?);
    Ok(())
}

fn forwarding_after_a_crash() -> Result<()> {
    let mut rig = Rig::new("ip-forward=on")?;
    ensure!(forwarding(&rig.host)? == "11");
    rig.daemon.kill();
    ensure!(forwarding(&rig.host)? == "11", "who restored it?");
    rig.daemon.restart()?;
    ensure!(forwarding(&rig.host)? == "00", "the next daemon did not restore it");
    ensure!(rig.daemon.json("net list")? == serde_json::json!([]), "a network came back");
    Ok(())
}

fn host_routes() -> Result<()> {
    let Host { namespace: host, far } = Host::new()?;
    // Somebody else's, one of them with the switch's own number, but by another interface.
    host.run(&format!(
        "ip route add 203.0.113.0/24 via {FAR4}; ip route add 192.0.2.0/28 dev far0 metric 77
         ip route add 192.0.2.64/28 via {FAR4} proto 87; ip -6 route add 2001:db8:ff::/48 via {FAR6}"
    ))?;
    let daemon = DaemonOptions::default().netns(&host).start()?;
    let mut rig = Rig { daemon, host, far };
    let before = rig.routes()?;
    rig.daemon.ok(&format!("net add {NET} mode=routed {SUBNETS}"))?;
    let empty = rig.routes()?;
    let add = |number: u8| {
        let (v4, v6) = (address4(number), address6(number));
        rig.daemon.ok(&format!("port add {NET} t{number} tap:t{number} ip={v4},{v6}"))
    };
    add(10)?;
    add(20)?;
    let ours = |number: u8| {
        Ok::<_, anyhow::Error>([address4(number), address6(number)].map(|ip| rig.routes_to(&ip)))
    };
    for number in [10, 20] {
        for count in ours(number)? {
            ensure!(count? == 1, "guest {number} has not one route of each family: {:?}", rig.routes()?);
        }
    }
    rig.daemon.ok("port set t10 ip=10.7.0.11")?;
    ensure!(rig.routes_to("10.7.0.11")? == 1, "{:?}", rig.routes()?);
    ensure!(rig.routes_to("10.7.0.10")? == 0 && rig.routes_to("fd00:7::10")? == 0, "{:?}", rig.routes()?);
    rig.daemon.ok("port del t10")?;
    ensure!(rig.routes_to("10.7.0.11")? == 0 && rig.routes_to("10.7.0.20")? == 1, "{:?}", rig.routes()?);
    rig.daemon.ok("port del t20")?;
    ensure!(rig.routes()? == empty, "a port left something: {:?}, and it was {empty:?}", rig.routes()?);
    rig.daemon.ok(&format!("net del {NET}"))?;
    ensure!(
        rig.routes()? == before,
        "the network left something: {:?}, and it was {before:?}",
        rig.routes()?
    );

    rig.daemon.ok(&format!("net add {NET} mode=routed {SUBNETS}"))?;
    rig.daemon.ok(&format!("port add {NET} t10 tap:t10 ip=10.7.0.10"))?;
    ensure!(rig.daemon.terminate()? == 0);
    ensure!(rig.routes()? == before, "the daemon left something: {:?}, and it was {before:?}", rig.routes()?);
    Ok(())
}

fn foreign_route() -> Result<()> {
    let rig = Rig::new("")?;
    rig.host.run(&format!("ip route add 10.7.0.30 via {FAR4}"))?;
    let a = rig.guest(10, "")?;
    let taken = Guest::new(&rig.daemon, &rig.host, 30, "")?;
    let told = eventually("net show telling of it", LIMIT, || {
        let told = rig.daemon.ok(&format!("net show {NET}"))?;
        Ok(if told.contains("10.7.0.30") && told.contains("not ours") { Ok(told) } else { Err(told) })
    })?;
    ensure!(told.contains("far0"), "it does not name the interface: {told}");
    let foreign = rig.host.run("ip route show 10.7.0.30")?;
    ensure!(foreign.trim() == format!("10.7.0.30 via {FAR4} dev far0"), "{foreign}");
    // Others have theirs, also those that come afterwards; guests reach each other in any case.
    let b = rig.guest(20, "")?;
    reach(&rig.host, &a.v4())?;
    reach(&rig.host, &b.v4())?;
    reach(&a.namespace, &taken.v4())?;
    rig.daemon.ok("port del t30")?;
    ensure!(rig.host.run("ip route show 10.7.0.30")? == foreign, "somebody else's route went");
    let shown = rig.daemon.ok(&format!("net show {NET}"))?;
    ensure!(!shown.contains("not ours"), "it is still told: {shown}");
    Ok(())
}

fn behind_a_guest() -> Result<()> {
    let rig = Rig::new("")?;
    let router = rig.guest(10, "routes=192.168.50.0/24,fd00:50::/64")?;
    let other = rig.guest(20, "")?;
    router.run("ip address add 192.168.50.7/32 dev lo; ip address add fd00:50::7/128 dev lo")?;
    for to in ["192.168.50.7", "fd00:50::7"] {
        reach(&other.namespace, to)?;
        reach(&rig.host, to)?;
    }
    // From there, too: such a source is the port's.
    router.run(&format!("ping -c 2 -i 0.2 -W 5 -I 192.168.50.7 {}", other.v4()))?;
    router.run(&format!("ping -c 2 -i 0.2 -W 5 -I fd00:50::7 {}", other.v6()))?;
    for prefix in ["192.168.50.0/24", "fd00:50::/64"] {
        ensure!(rig.routes_to(prefix)? == 1, "{prefix}: {:?}", rig.routes()?);
    }
    ensure!(counters(&rig.daemon, "t10")?.dropped("rpf") == 0);
    rig.daemon.ok("port set t10 routes=")?;
    ensure!(rig.routes_to("192.168.50.0/24")? == 0, "{:?}", rig.routes()?);
    unreachable(&other.namespace, "192.168.50.7")?;
    conservation(&rig.daemon)?;
    Ok(())
}

fn foreign_sources() -> Result<()> {
    let rig = Rig::new("")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    reach(&a.namespace, &b.v4())?;
    reach(&a.namespace, &b.v6())?;
    // Nobody's, another guest's, the host's, the router's, and one of elsewhere.
    let sources = [
        ("10.7.0.99", b.v4()),
        (HOST4, b.v4()),
        (ROUTER4, b.v4()),
        ("10.7.0.30", b.v4()),
        ("203.0.113.5", HOST4.to_string()),
        ("fd00:7::99", b.v6()),
        (HOST6, b.v6()),
        (ROUTER6, b.v6()),
        ("2001:db8:5::5", HOST6.to_string()),
    ];
    let _third = rig.guest(30, "")?;
    for (source, to) in sources {
        let at_host = to == HOST4 || to == HOST6;
        let (watched, interface) = if at_host { (&rig.host, NET) } else { (&b.namespace, "t20") };
        let mut sniffer = Sniffer::start(watched, interface, "icmp or icmp6")?;
        a.run(&format!("ip address add {source} dev t10"))?;
        // Answers would go elsewhere: what counts is that nothing was let through.
        let before = counters(&rig.daemon, "t10")?.dropped("rpf");
        let output = a.namespace.try_run(&format!("ping -c 2 -i 0.2 -W 1 -I {source} {to}"))?;
        ensure!(output.code != 0, "{source} is answered by {to}: {}", output.stdout);
        let got = counters(&rig.daemon, "t10")?.dropped("rpf") - before;
        ensure!(got >= 2, "of 2 from {source} to {to}, {got} were counted as rpf");
        // What comes with its own source is seen, and nothing but that.
        let own = if to.contains(':') { a.v6() } else { a.v4() };
        a.run(&format!("ping -c 1 -W 5 -I {own} {to}"))?;
        sniffer.await_packet(&format!("{own} > {to}: ICMP"))?;
        let seen = sniffer.packets().into_iter().find(|line| line.contains(&format!("{source} > ")));
        ensure!(seen.is_none(), "{source}: {to} got {seen:?}");
        a.run(&format!("ip address del {source} dev t10"))?;
    }
    reach(&a.namespace, &b.v4())?;
    conservation(&rig.daemon)?;
    Ok(())
}
