//! Translation by the switch itself: guests reach the outside.

use anyhow::{Context, Result, ensure};
use harness::{
    Daemon, DaemonOptions, Guest, GuestOptions, Need, Netns, PortCounters, Program, Suite, conservation,
    counters, eventually,
};

use super::rig::{
    FAR, FAR6, GATEWAY, GATEWAY6, Inside, LIMIT, OUTSIDE, OUTSIDE6, ROUTER, ROUTER6, UPLINK, World, at,
    iperf, iperf_server, namespace,
};
use super::talk::{Connection, Server, ask_tcp, ask_udp};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc];
const TRACE: &[Need] = &[
    Need::Namespaces,
    Need::Ping,
    Need::Udhcpc,
    Need::Program("traceroute"),
    Need::Program("mtr"),
    Need::Program("tracepath"),
];
const TRAFFIC: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Iperf3];
const GUEST: &[Need] = &[Need::Namespaces, Need::Ping, Need::Guests, Need::Iperf3];

pub(crate) fn register(suite: &mut Suite) {
    suite.add("nat_guests_reach_the_outside_and_are_seen_as_one_address", NEEDS, reach);
    suite.add("nat_traces_show_the_gateway_first_and_the_path_mtu", TRACE, traces);
    suite.add("nat_carries_tcp_and_udp_of_both_families_in_super_frames", TRAFFIC, traffic);
    suite.add("nat_takes_a_narrow_path_behind_it", TRAFFIC, narrow_path);
    suite.add("nat_serves_a_vhost_user_guest", GUEST, vhost_user_guest);
    suite.add("nat_guests_go_on_after_the_daemon_was_killed", NEEDS, daemon_killed);
}

fn reach() -> Result<()> {
    let world = World::with(UPLINK)?;
    let (a, b) = (world.guest("t0")?, world.guest("t1")?);
    ensure!(a.address != b.address, "two guests have {}", a.address);
    let _far = Server::start(&world.outside.far, "far", &[80, 53])?;
    for guest in [&a, &b] {
        guest.address6()?;
        for to in [GATEWAY, ROUTER, FAR, GATEWAY6, ROUTER6, FAR6] {
            guest.reaches(to).with_context(|| to.to_string())?;
        }
        // Three fragments out, three back.
        for to in [FAR, FAR6] {
            guest.run(&format!("ping -n -c 2 -i 0.2 -W 5 -s 4000 {to}"))?;
        }
        for (far, outside) in [(FAR.to_string(), OUTSIDE), (format!("[{FAR6}]"), OUTSIDE6)] {
            let told = ask_tcp(&guest.namespace, &format!("{far}:80"))?;
            ensure!(told.contains(outside), "seen from the outside: {told}");
            let told = ask_udp(&guest.namespace, &format!("{far}:53"), 0)?;
            ensure!(told.contains(outside), "seen from the outside: {told}");
        }
    }
    // Guests of one subnet reach each other as on any link.
    a.reaches(&b.address)?;
    // One inside endpoint has one outside endpoint, whomever it speaks with.
    let first = ask_udp(&a.namespace, &format!("{FAR}:53"), 4000)?;
    let second = ask_udp(&a.namespace, &format!("{FAR}:80"), 4000)?;
    let end = |told: &str| told.rsplit(' ').next().map(str::to_string);
    ensure!(end(&first) == end(&second), "{first}, and {second}");
    let sessions = world.daemon.json("nat sessions n")?;
    let sessions = sessions.as_array().context("nat sessions is no array")?;
    let inside = format!("{}:4000", a.address);
    let of_it: Vec<_> = sessions.iter().filter(|session| session["inside"] == inside.as_str()).collect();
    ensure!(of_it.len() == 2, "sessions of {inside}: {of_it:?}");
    ensure!(of_it.iter().all(|s| s["outside"].as_str() == end(&first).as_deref()), "{of_it:?}");
    // Nobody outside has heard of a guest's own address.
    let neighbours = world.outside.router.run("ip neigh show dev wan0")?;
    ensure!(!neighbours.contains("192.168.77.") && !neighbours.contains("fd77:"), "{neighbours}");
    conservation(&world.daemon)?;
    Ok(())
}

fn traces() -> Result<()> {
    let world = World::with(UPLINK)?;
    world.outside.narrow(1400)?;
    let guest = world.guest("t0")?;
    guest.address6()?;
    guest.reaches(FAR)?;
    guest.reaches(FAR6)?;
    for (family, gateway, router, far) in [("-4", GATEWAY, ROUTER, FAR), ("-6", GATEWAY6, ROUTER6, FAR6)] {
        // One probe at a time: errors are limited in rate.
        for how in ["", "-I", "-T"] {
            let told = guest.run(&format!("traceroute {family} {how} -n -q 1 -N 1 -w 5 {far}"))?;
            let hops: Vec<&str> =
                told.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            ensure!(hops == [gateway, router, far], "traceroute {how}: {told}");
        }
        let told = guest.run(&format!("mtr {family} -n --report -c 2 -G 3 {far}"))?;
        let hops: Vec<&str> = told
            .lines()
            .filter(|line| line.contains(".|--"))
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        ensure!(hops == [gateway, router, far], "mtr: {told}");
        let told = guest.run(&format!("tracepath {family} -n {far}"))?;
        let hop = |number: &str, who: &str| {
            told.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(number) && words.next() == Some(who)
            })
        };
        ensure!(hop("1:", gateway) && hop("2:", router) && hop("3:", far), "tracepath: {told}");
        ensure!(told.contains("Resume: pmtu 1400"), "tracepath: {told}");
    }
    conservation(&world.daemon)?;
    Ok(())
}

/// The mean frame's bytes between two readings of a port: what it took, and what it gave.
fn means(before: &PortCounters, after: &PortCounters) -> (u64, u64) {
    let mean = |bytes: u64, frames: u64| bytes / frames.max(1);
    (
        mean(after.rx_bytes - before.rx_bytes, after.rx_frames - before.rx_frames),
        mean(after.tx_bytes - before.tx_bytes, after.tx_frames - before.tx_frames),
    )
}

/// What `task` changes the mean frames of a port by.
fn means_of(daemon: &Daemon, port: &str, task: impl FnOnce() -> Result<()>) -> Result<(u64, u64)> {
    let before = counters(daemon, port)?;
    task()?;
    Ok(means(&before, &counters(daemon, port)?))
}

fn traffic() -> Result<()> {
    let world = World::with(UPLINK)?;
    let guest = world.guest("t0")?;
    guest.address6()?;
    guest.reaches(FAR)?;
    guest.reaches(FAR6)?;
    let _server = iperf_server(&world.outside.far)?;
    for far in [FAR, FAR6] {
        let inside = &guest.namespace;
        let run = |args: &str| iperf(inside, &format!("-c {far} {args}")).map(|_| ());
        let (rx, _) = means_of(&world.daemon, "t0", || run(""))?;
        let (_, tx) = means_of(&world.daemon, "eth9", || run(""))?;
        ensure!(rx > 5_000 && tx > 5_000, "to {far}: the mean frame had {rx} bytes at t0, {tx} at eth9");
        let (rx, _) = means_of(&world.daemon, "eth9", || run("-R"))?;
        let (_, tx) = means_of(&world.daemon, "t0", || run("-R"))?;
        ensure!(rx > 5_000 && tx > 5_000, "from {far}: the mean frame had {rx} bytes at eth9, {tx} at t0");
        for args in ["-u -b 20M -l 1200", "-u -b 20M -l 1200 -R", "-P 4"] {
            run(args)?;
        }
        // Datagrams in fragments, more than are remembered at once.
        run("-u -b 20M -l 4000")?;
        run("-u -b 20M -l 4000 -R")?;
        conservation(&world.daemon).with_context(|| format!("after {far}"))?;
    }
    Ok(())
}

fn narrow_path() -> Result<()> {
    let world = World::with(UPLINK)?;
    let guest = world.guest("t0")?;
    guest.address6()?;
    guest.reaches(FAR)?;
    guest.reaches(FAR6)?;
    let _server = iperf_server(&world.outside.far)?;
    world.outside.narrow(1280)?;
    for far in [FAR, FAR6] {
        // Both ends learn it by ICMP errors only, which come back through the translation.
        let output = guest.namespace.try_run(&format!("ping -n -c 1 -W 5 -M do -s 1400 {far}"))?;
        ensure!(output.code != 0, "a packet too big for the path was answered");
        eventually(&format!("the path's MTU to {far}"), LIMIT, || {
            guest.namespace.try_run(&format!("ping -n -c 1 -W 1 -M do -s 1400 {far}"))?;
            let route = guest.run(&format!("ip route get {far}"))?;
            Ok(if route.contains("mtu 1280") { Ok(()) } else { Err(route) })
        })?;
        iperf(&guest.namespace, &format!("-c {far}"))?;
        iperf(&guest.namespace, &format!("-c {far} -R"))?;
    }
    conservation(&world.daemon)?;
    Ok(())
}

fn vhost_user_guest() -> Result<()> {
    let world = World::with(UPLINK)?;
    let socket = world.daemon.path("vif0");
    world.daemon.ok(&format!("port add n vif0 vhost-user:{}", socket.display()))?;
    let mut guest = Guest::boot(&socket, "52:54:00:00:00:10", &GuestOptions::default())?;
    let _server = iperf_server(&world.outside.far)?;
    let _names = Server::start(&world.outside.far, "far", &[80])?;
    guest.ready()?;
    let told = guest.run(
        "cat >/run/dhcp <<'EOS'
#!/bin/sh
[ \"$1\" = bound ] || exit 0
ip address add $ip/$mask dev $interface
ip route add default via $router
EOS
chmod +x /run/dhcp
udhcpc -i eth0 -n -q -f -t 10 -T 2 -s /run/dhcp
ip -4 address show dev eth0",
    )?;
    let address = told.split_whitespace().filter_map(|word| word.strip_suffix("/24")).next_back();
    let address = address.with_context(|| told.clone())?.to_string();
    guest.run(&format!("ping -c 3 -W 5 {FAR}"))?;
    let told = guest.run(&format!("nc -w 10 {FAR} 80 </dev/null"))?;
    ensure!(told.contains(&format!("from {OUTSIDE}:")), "seen from the outside: {told}");
    let before = (counters(&world.daemon, "vif0")?, counters(&world.daemon, "eth9")?);
    for direction in ["", "-R"] {
        guest.run(&format!("iperf3 -c {FAR} -t 2 --connect-timeout 10000 {direction}"))?;
        guest.run(&format!("iperf3 -c {FAR} -t 2 -u -b 5M -l 1200 {direction}"))?;
    }
    let after = (counters(&world.daemon, "vif0")?, counters(&world.daemon, "eth9")?);
    let ((rx, _), (_, tx)) = (means(&before.0, &after.0), means(&before.1, &after.1));
    ensure!(rx > 1_600 && tx > 1_600, "the mean frame had {rx} bytes at vif0, {tx} at eth9");
    // The outside comes in by a forward, and by nothing else.
    guest.run("nc -ll -p 7 -e cat >/dev/null 2>&1 & sleep 1")?;
    world.daemon.ok(&format!("forward add n tcp 7777 {address}:7"))?;
    let told = world.outside.far.run(&format!("echo hello | timeout 20 busybox nc -w 10 {OUTSIDE} 7777"))?;
    ensure!(told == "hello\n", "the guest's echo: {told}");
    conservation(&world.daemon)?;
    Ok(())
}

/// A guest whose interface stays when the daemon goes: one end of a veth pair.
fn veth_guest(host: &Netns, port: &str) -> Result<Inside> {
    let inside = namespace(port)?;
    host.run(&format!("ip link add {port} type veth peer name eth0 netns {}", inside.name()))?;
    host.run(&format!("ip link set {port} up"))?;
    Inside::of(inside, "eth0")
}

fn daemon_killed() -> Result<()> {
    let keys = UPLINK.split_whitespace().filter_map(|pair| pair.split_once('='));
    let mut config = String::from("[network.n]\nforward = [\"tcp 8080 192.168.77.2:80\"]\n");
    keys.for_each(|(key, value)| config.push_str(&format!("{key} = \"{value}\"\n")));
    config.push_str("[port.v0]\nnetwork = \"n\"\nkind = \"netdev:v0\"\n");
    let mut guest = None;
    let mut world = World::start(DaemonOptions::default().config(config), |host| {
        guest = Some(veth_guest(host, "v0")?);
        Ok(())
    })?;
    let mut guest = guest.context("no guest")?;
    world.daemon.await_port("v0", "up")?;
    guest.dhcp()?;
    guest.address6()?;
    ensure!(guest.address == "192.168.77.2", "the guest has {}", guest.address);
    let _far = Server::start(&world.outside.far, "far", &[80])?;
    let _inside = Server::start(&guest.namespace, "inside", &[80])?;
    let mut before = Connection::open(&guest.namespace, &format!("{FAR}:80"))?;
    before.works()?;
    // A program in the guest that never rests: it is lost for no longer than the daemon is away.
    let pinger = Program::start(&guest.namespace, "ping", &["-n", "-i", "0.2", "-W", "1", FAR])?;
    for way in ["killed", "ended"] {
        match way {
            "killed" => world.daemon.kill(),
            _ => ensure!(world.daemon.terminate()? == 0, "SIGTERM"),
        }
        world.daemon.restart()?;
        world.daemon.await_port("v0", "up")?;
        // Nothing is asked of the guest: its address, its neighbours and its routes are good.
        let answers = || pinger.log().lines().filter(|line| line.contains("time=")).count();
        let then = answers();
        eventually("the guest's pings are answered", LIMIT, || {
            Ok(if answers() > then + 3 { Ok(()) } else { Err(pinger.log()) })
        })
        .with_context(|| way.to_string())?;
        let told = ask_tcp(&guest.namespace, &at(FAR, 80))?;
        ensure!(told.contains(OUTSIDE), "seen from the outside: {told}");
        // A router that ends in order says so, and its guests wait for it to advertise itself again.
        guest.address6()?;
        let told = ask_tcp(&guest.namespace, &at(FAR6, 80))?;
        ensure!(told.contains(OUTSIDE6), "seen from the outside: {told}");
        let told = ask_tcp(&world.outside.far, &format!("{OUTSIDE}:8080"))?;
        ensure!(told.starts_with("inside 80"), "{told}");
        let leases = world.daemon.json("lease list n")?;
        let lease = leases.as_array().and_then(|list| list.iter().find(|l| l["ip"] == "192.168.77.2"));
        ensure!(lease.is_some(), "the lease is forgotten: {leases}");
    }
    // DHCP gives it what it had.
    guest.dhcp()?;
    ensure!(guest.address == "192.168.77.2", "the guest got {}", guest.address);
    drop(pinger);
    conservation(&world.daemon)?;
    Ok(())
}
