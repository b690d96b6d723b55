//! `host-address=move`: the host's addresses, routes and neighbours go to the bridge's host interface and come back,
//! whatever happens in between, and the host stays in reach.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Daemon, DaemonOptions, Need, Netns, Program, Suite, conservation, eventually};
use rustix::process::Signal;

use crate::machine::{Machine, Peer, await_reach, ping};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping];
const FILTERED: &[Need] = &[Need::Namespaces, Need::Ping, Need::Program("nft")];

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);
const MOVE: &str = "net add xenbr0 mode=bridge uplink=eth0 host-address=move";
/// The host, and its router.
const HOST4: &str = "203.0.113.10";
const HOST6: &str = "2001:db8:1::10";
const ROUTER4: &str = "203.0.113.1";
const ROUTER6: &str = "2001:db8:1::1";
/// Behind the router.
const WORLD4: &str = "198.51.100.7";
const WORLD6: &str = "2001:db8:f::7";
/// Pings ten times a second.
const LOST_MAX: u32 = 10;

pub(crate) fn register(suite: &mut Suite) {
    suite.add("relocate_the_host_is_in_reach_on_its_bridge_and_back_again", NEEDS, there_and_back);
    suite.add("relocate_the_daemons_end_puts_everything_back", NEEDS, daemons_end);
    suite.add("relocate_a_kill_before_any_step_is_undone_by_the_next_daemon", NEEDS, || killed(""));
    suite.add("relocate_a_kill_after_any_step_is_undone_by_the_next_daemon", NEEDS, || killed("+"));
    suite.add("relocate_a_kill_long_after_the_move_is_undone_by_the_next_daemon", NEEDS, killed_later);
    suite.add("relocate_is_done_by_a_configuration_file_after_a_crash", NEEDS, configured);
    suite.add("relocate_is_undone_when_the_gateway_does_not_answer_any_more", FILTERED, watchdog);
    suite.add("relocate_refuses_what_it_cannot_move", NEEDS, refusals);
}

/// A host with a NIC that has all that can be moved, and its segment.
struct World {
    host: Netns,
    lan: Netns,
}

impl World {
    fn new() -> Result<Self> {
        let (host, lan) = (Netns::new("dom0")?, Netns::new("lan")?);
        host.enable_ipv6()?;
        lan.enable_ipv6()?;
        host.veth("eth0", &lan, "lan0", &format!("{ROUTER4}/24"))?;
        lan.run(&format!(
            "ip address add {ROUTER6}/64 dev lan0; ip address add {WORLD4}/32 dev lo
             ip address add {WORLD6}/128 dev lo"
        ))?;
        host.run(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra
             ip address add {HOST4}/24 dev eth0; ip address add 203.0.113.11/24 dev eth0
             ip address add 192.168.77.1/28 dev eth0; ip address add {HOST6}/64 dev eth0
             ip route add default via {ROUTER4} metric 100; ip -6 route add default via {ROUTER6} metric 200
             ip route add 198.51.100.0/24 via {ROUTER4} metric 50 src 203.0.113.11
             ip route add 192.0.2.0/24 dev eth0 metric 77; ip route add 192.0.2.128/25 via {ROUTER4} metric 5
             ip -6 route add 2001:db8:ff::/48 via {ROUTER6} metric 30
             ip neighbour add 203.0.113.77 lladdr 02:00:00:00:00:77 nud permanent dev eth0
             ip -6 neighbour add 2001:db8:1::77 lladdr 02:00:00:00:00:78 nud permanent dev eth0"
        ))?;
        // Link-local addresses are there, and nothing else will come by itself.
        eventually("link-local addresses", LIMIT, || {
            let shown = host.run("ip -6 address show dev eth0")?;
            let there = shown.contains("fe80::") && !shown.contains("tentative");
            Ok(if there { Ok(()) } else { Err(shown) })
        })?;
        for to in [ROUTER4, ROUTER6, WORLD4] {
            reach(&host, to)?;
        }
        Ok(World { host, lan })
    }

    /// The NIC and what leads by it, as it is shown: flags, addresses, routes, neighbours that stay, sysctls.
    fn shown(&self) -> Result<String> {
        self.host.run(
            "ip -d -o link show dev eth0; ip address show dev eth0
             ip -4 route show table all; ip -6 route show table all
             ip neighbour show nud permanent; ip rule
             cd /proc/sys/net; grep . ipv4/conf/eth0/* ipv6/conf/eth0/* 2>/dev/null | grep -v stable_secret
             ls ipv4/conf",
        )
    }

    /// Everything is as it was, once the kernel has taken the link-local address in use again.
    fn await_same(&self, before: &str) -> Result<()> {
        eventually("everything as it was", LIMIT, || {
            Ok(same(before, &self.shown()?).map_err(|error| format!("{error:#}")))
        })
    }

    fn start(&self) -> Result<Daemon> {
        Daemon::start_in(&self.host)
    }
}

fn reach(from: &Netns, to: &str) -> Result<()> {
    eventually(&format!("{}'s ping of {to}", from.name()), LIMIT, || {
        let output = from.try_run(&format!("ping -c 1 -W 1 {to}"))?;
        Ok(if output.code == 0 { Ok(()) } else { Err(output.stdout) })
    })
}

/// Compared as text.
fn same(before: &str, after: &str) -> Result<()> {
    let lost: Vec<&str> = before.lines().filter(|line| !after.lines().any(|other| other == *line)).collect();
    let new: Vec<&str> = after.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
    ensure!(before == after, "it is not as it was: {lost:#?} became {new:#?}");
    Ok(())
}

/// Pings ten times a second until it is asked how many were lost.
struct Pinger(Program);

impl Pinger {
    fn start(from: &Netns, to: &str) -> Result<Self> {
        let mut program = Program::start(from, "ping", &["-i", "0.1", to])?;
        program.await_log("icmp_seq=3", LIMIT)?;
        Ok(Pinger(program))
    }

    /// How many got no answer, of how many.
    fn finish(mut self) -> Result<(u32, u32)> {
        // What is on its way arrives.
        std::thread::sleep(Duration::from_millis(500));
        self.0.signal(Signal::INT)?;
        self.0.wait(LIMIT)?;
        let log = self.0.log();
        let line = log.lines().find(|line| line.contains("packets transmitted")).context("no statistics")?;
        let number =
            |word: usize| line.split_whitespace().nth(word).and_then(|word| word.parse::<u32>().ok());
        match (number(0), number(3)) {
            (Some(sent), Some(received)) => Ok((sent.saturating_sub(received), sent)),
            _ => bail!("ping's statistics cannot be read: {line}"),
        }
    }
}

/// The host has on `xenbr0` what it had on `eth0`, by `before`.
fn check_moved(world: &World, before: &str) -> Result<()> {
    let addresses = world.host.run("ip -o address show dev xenbr0")?;
    for address in ["203.0.113.10/24", "203.0.113.11/24", "192.168.77.1/28", "2001:db8:1::10/64"] {
        ensure!(addresses.contains(&format!(" {address} ")), "no {address} on xenbr0: {addresses}");
    }
    let left = world.host.run("ip -o address show dev eth0")?;
    ensure!(left.trim().is_empty(), "eth0 still has {left}");
    let routes = world.host.run("ip route; ip -6 route")?;
    let mut made = 0;
    for line in before.lines().map(str::trim).filter(|line| {
        let by_hand =
            line.contains(" metric ") && !line.contains("proto kernel") && !line.contains("table local");
        by_hand && line.contains(" dev eth0")
    }) {
        let wanted = line.replace("dev eth0", "dev xenbr0");
        ensure!(routes.lines().any(|route| route.trim() == wanted), "no route {wanted}: {routes}");
        made += 1;
    }
    ensure!(made == 6, "{made} routes were looked for");
    ensure!(!routes.contains("dev eth0"), "a route by eth0: {routes}");
    let mac = |name: &str| world.host.run(&format!("cat /sys/class/net/{name}/address"));
    ensure!(mac("eth0")? == mac("xenbr0")?, "the MAC address did not come along");
    let neighbours = world.host.run("ip neighbour show nud permanent")?;
    for known in ["203.0.113.77 dev xenbr0", "2001:db8:1::77 dev xenbr0"] {
        ensure!(neighbours.contains(known), "{known} did not come along: {neighbours}");
    }
    Ok(())
}

/// Adds a guest to the bridge, which reaches the host and beyond.
fn check_guest(world: &World, daemon: &Daemon) -> Result<Peer> {
    let mut guest = Peer::new("guest", "203.0.113.20")?;
    daemon.ok("port add xenbr0 vif1.0 tap:vif1.0")?;
    guest.adopt(&world.host, "vif1.0")?;
    daemon.await_port("vif1.0", "up")?;
    for to in [ROUTER4, HOST4] {
        await_reach(&mut guest, to, LIMIT)?;
        ping(&mut guest, to)?;
    }
    guest.run(&format!("ip route add default via {ROUTER4}; ping -c 1 -W 10 {WORLD4}"))?;
    Ok(guest)
}

fn there_and_back() -> Result<()> {
    let world = World::new()?;
    let before = world.shown()?;
    let daemon = world.start()?;
    let pinger = Pinger::start(&world.lan, HOST4)?;
    daemon.ok(MOVE)?;
    check_moved(&world, &before)?;
    for to in [ROUTER4, ROUTER6, WORLD4, WORLD6] {
        reach(&world.host, to)?;
    }
    for to in [HOST4, "203.0.113.11", HOST6] {
        reach(&world.lan, to)?;
    }
    eventually("the move confirmed", LIMIT, || {
        let log = daemon.log();
        Ok(if log.contains("the move stays") { Ok(()) } else { Err(log) })
    })?;
    let (lost, sent) = pinger.finish()?;
    ensure!(lost <= LOST_MAX, "of {sent} pings of the host during the move {lost} were lost");
    let _guest = check_guest(&world, &daemon)?;
    let network = daemon.json("net show xenbr0")?;
    ensure!(network["state"] == "up" && network["host_address"] == "move", "{network}");
    // Nobody was answered twice.
    let told = world.lan.run(&format!("ping -c 3 -i 0.2 -W 5 {HOST4}"))?;
    ensure!(!told.contains("DUP"), "{told}");
    conservation(&daemon)?;

    let pinger = Pinger::start(&world.lan, HOST4)?;
    daemon.ok("port del vif1.0")?;
    daemon.ok("net del xenbr0")?;
    world.await_same(&before)?;
    reach(&world.lan, HOST4)?;
    reach(&world.lan, HOST6)?;
    let (lost, sent) = pinger.finish()?;
    ensure!(lost <= LOST_MAX, "of {sent} pings of the host during the move back {lost} were lost");
    world.await_same(&before)
}

fn daemons_end() -> Result<()> {
    let world = World::new()?;
    let before = world.shown()?;
    let mut daemon = world.start()?;
    daemon.ok(MOVE)?;
    check_moved(&world, &before)?;
    let pinger = Pinger::start(&world.lan, HOST4)?;
    ensure!(daemon.terminate()? == 0, "the daemon did not end well: {}", daemon.log());
    world.await_same(&before)?;
    reach(&world.lan, HOST6)?;
    let (lost, sent) = pinger.finish()?;
    ensure!(lost <= LOST_MAX, "of {sent} pings of the host during the daemon's end {lost} were lost");
    Ok(())
}

/// How many steps the move of `world` has.
fn steps(world: &World) -> Result<usize> {
    let mut daemon = world.start()?;
    daemon.ok(MOVE)?;
    let log = daemon.log();
    ensure!(daemon.terminate()? == 0);
    let told = log.split_once("steps: ").map(|(_, rest)| rest).with_context(|| log.clone())?;
    let digits: String = told.chars().take_while(char::is_ascii_digit).collect();
    let steps = digits.parse().with_context(|| log.clone())?;
    ensure!(steps > 20, "a move of {steps} steps leaves most of this out");
    Ok(steps)
}

/// `suffix` is empty for a kill before the step is done, `+` for one after it.
fn killed(suffix: &str) -> Result<()> {
    let world = World::new()?;
    let before = world.shown()?;
    let steps = steps(&world)?;
    for step in 0..steps {
        let at = format!("{step}{suffix}");
        once_killed(&world, &before, &at).with_context(|| format!("killed at step {at} of {steps}"))?;
    }
    Ok(())
}

fn once_killed(world: &World, before: &str, at: &str) -> Result<()> {
    let options = DaemonOptions::default().netns(&world.host).env("WEFT_TEST_KILL_AT_STEP", at);
    let mut daemon = options.start()?;
    let words: Vec<&str> = MOVE.split_whitespace().collect();
    let output = daemon.weft(&words)?;
    ensure!(output.code != 0, "the move was done: {output:?}");
    eventually("the daemon's end", LIMIT, || {
        Ok(if daemon.runs()? { Err("it runs".to_string()) } else { Ok(()) })
    })?;
    daemon.restart()?;
    world.await_same(before)?;
    for (from, to) in [(&world.lan, HOST4), (&world.lan, HOST6), (&world.host, WORLD4)] {
        reach(from, to)?;
    }
    ensure!(daemon.terminate()? == 0);
    world.await_same(before)
}

fn killed_later() -> Result<()> {
    let world = World::new()?;
    let before = world.shown()?;
    let mut daemon = world.start()?;
    daemon.ok(MOVE)?;
    check_moved(&world, &before)?;
    daemon.kill();
    ensure!(world.shown()? != before, "who put it back?");
    daemon.restart()?;
    world.await_same(&before)?;
    reach(&world.lan, HOST4)?;
    daemon.ok(MOVE)?;
    check_moved(&world, &before)?;
    reach(&world.lan, HOST6)
}

fn configured() -> Result<()> {
    let world = World::new()?;
    let before = world.shown()?;
    let config = "[network.xenbr0]\nmode = \"bridge\"\nuplink = \"eth0\"\nhost-address = \"move\"\n";
    let mut daemon = DaemonOptions::default().netns(&world.host).config(config).start()?;
    check_moved(&world, &before)?;
    for _ in 0..2 {
        daemon.kill();
        daemon.restart()?;
        check_moved(&world, &before)?;
        reach(&world.lan, HOST4)?;
    }
    ensure!(daemon.terminate()? == 0);
    world.await_same(&before)
}

fn watchdog() -> Result<()> {
    let world = World::new()?;
    let daemon = world.start()?;
    // The router is known and in reach, and answers no questions from now on.
    reach(&world.host, ROUTER4)?;
    let before = world.host.run("ip address show dev eth0; ip route; ip -6 route")?;
    world.lan.run(
        "nft add table arp quiet
         nft add chain arp quiet input '{ type filter hook input priority 0; policy drop; }'",
    )?;
    daemon.ok(MOVE)?;
    let told = eventually("net show telling why", LIMIT, || {
        let told = daemon.ok("net show xenbr0")?;
        Ok(if told.contains("again") { Ok(told) } else { Err(told) })
    })?;
    for word in ["host-address=move", ROUTER4, "did not answer", "eth0"] {
        ensure!(told.contains(word), "it does not name '{word}': {told}");
    }
    ensure!(daemon.log().contains("undone"), "{}", daemon.log());
    eventually("the NIC as it was", LIMIT, || {
        let after = world.host.run("ip address show dev eth0; ip route; ip -6 route")?;
        // The host interface is there, with nothing but its own link-local address.
        let after: Vec<&str> = after.lines().filter(|line| !line.contains("xenbr0")).collect();
        Ok(same(before.trim_end(), &after.join("\n")).map_err(|error| format!("{error:#}")))
    })?;
    world.lan.run("nft delete table arp quiet")?;
    reach(&world.lan, HOST4)?;
    reach(&world.host, WORLD4)
}

fn refusals() -> Result<()> {
    let world = World::new()?;
    world.host.run(
        "ip link add br9 type bridge; ip link add eth7 type veth peer name peer7; ip link set eth7 master br9 up
         ip link add eth8 type veth peer name peer8; ip link add eth6 type veth peer name peer6
         ip link set eth6 up; ip link set peer6 up; ip rule add iif eth6 table 77 priority 1234",
    )?;
    let daemon = world.start()?;
    let before =
        (world.shown()?, world.host.run("ip -o link | sed 's/ state [A-Z]*//'; ip route show table all")?);
    for (uplink, names) in [
        ("ghost0", &["ghost0"][..]),
        ("lo", &["lo"]),
        ("eth7", &["eth7", "br9"]),
        ("eth8", &["eth8", "down"]),
        ("eth6", &["eth6", "1234"]),
        ("xenbr0", &["xenbr0"]),
    ] {
        let line = daemon.refused(
            1,
            &["net", "add", "xenbr0", "mode=bridge", &format!("uplink={uplink}"), "host-address=move"],
        )?;
        for name in names {
            ensure!(line.contains(name), "uplink={uplink}: it does not name '{name}': {line}");
        }
        let links = world.host.run("ip -o link | sed 's/ state [A-Z]*//'; ip route show table all")?;
        same(&before.1, &links).with_context(|| format!("uplink={uplink}"))?;
        same(&before.0, &world.shown()?).with_context(|| format!("uplink={uplink}"))?;
        ensure!(daemon.json("net list")? == serde_json::json!([]), "uplink={uplink}: a network is there");
    }
    // What is in the way may go, and the same call is right.
    daemon.ok(MOVE)?;
    let line =
        daemon.refused(1, &["net", "add", "xenbr1", "mode=bridge", "uplink=xenbr0", "host-address=move"])?;
    ensure!(line.contains("xenbr0"), "{line}");
    reach(&world.lan, HOST4)
}
