//! Translation by the host, as libvirt has it: what is changed of the host, what it does, and that it is put back.

use anyhow::{Context, Result, ensure};
use harness::{DaemonOptions, Need, Netns, Program, Suite, conservation, eventually};

use super::rig::{
    FAR, FAR6, GATEWAY, GATEWAY6, LIMIT, OUTSIDE, OUTSIDE6, ROUTER, ROUTER6, World, at, iperf, iperf_server,
};
use super::talk::{Connection, Server, ask_tcp, ask_udp, refused_at};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Program("nft")];
const TRAFFIC: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Iperf3, Need::Program("nft")];
const NAMES: &[Need] =
    &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Dnsmasq, Need::Dig, Need::Program("nft")];

const HOST: &str = "mode=nat subnet=192.168.77.0/24 subnet6=fd77::/64 egress=host dns-servers=203.0.113.254";
const TABLE: &str = "weft_n";

/// Rules of somebody else, which let everything pass.
const OTHERS: &str = "table inet other {
  chain forward { type filter hook forward priority 10; policy accept; ip saddr 10.1.2.3 drop; }
}
table ip nat {
  chain prerouting { type nat hook prerouting priority -100; policy accept; tcp dport 9999 redirect to :9998; }
}
";

pub(crate) fn register(suite: &mut Suite) {
    suite.add("nat_by_the_host_reaches_the_host_and_the_outside", TRAFFIC, reach);
    suite.add("nat_by_the_host_serves_names_at_the_gateway", NAMES, names);
    suite.add("nat_by_the_host_forwards_come_and_go", NEEDS, forwards);
    suite.add("nat_by_the_host_rejects_what_nobody_asked_for", NEEDS, rejects);
    suite.add("nat_by_the_host_puts_its_table_back_when_it_is_flushed", NEEDS, flushed);
    suite.add("nat_by_the_host_leaves_the_host_as_it_was", NEEDS, put_back);
    suite.add("nat_by_the_host_doubles_nothing_after_a_kill", NEEDS, killed);
}

/// Gives the host its own way to the outside.
fn join(host: &Netns) -> Result<()> {
    host.run(&format!(
        "ip address add {OUTSIDE}/24 dev eth9
         ip address add {OUTSIDE6}/64 dev eth9
         ip route add default via {ROUTER}
         ip -6 route add default via {ROUTER6}"
    ))?;
    Ok(())
}

fn world(keys: &str) -> Result<World> {
    let world = World::start(DaemonOptions::default(), join)?;
    world.daemon.ok(&format!("net add n {keys}"))?;
    Ok(world)
}

fn sysctl(host: &Netns, path: &str) -> Result<String> {
    Ok(host.run(&format!("cat /proc/sys/net/{path}"))?.trim().to_string())
}

fn tables(host: &Netns) -> Result<String> {
    host.run("nft list tables")
}

/// The network's table, without the kernel's numbers.
fn table(host: &Netns) -> Result<String> {
    host.run(&format!("nft list table inet {TABLE}"))
}

fn reach() -> Result<()> {
    let world = world(HOST)?;
    let guest = world.guest("t0")?;
    guest.address6()?;
    let addresses = world.host.run("ip -o address show dev n")?;
    for wanted in [format!("{GATEWAY}/24"), format!("{GATEWAY6}/64")] {
        ensure!(addresses.contains(&wanted), "the host interface has {addresses}");
    }
    // The gateway's advertisements are for guests.
    ensure!(!addresses.contains("dynamic"), "the host interface has {addresses}");
    let _host = Server::start(&world.host, "host", &[80])?;
    let _far = Server::start(&world.outside.far, "far", &[80])?;
    // The host answers for the gateway, at each of its addresses.
    for to in [GATEWAY, OUTSIDE, ROUTER, FAR, GATEWAY6, OUTSIDE6, ROUTER6, FAR6] {
        guest.reaches(to).with_context(|| to.to_string())?;
    }
    for (to, from) in [
        (at(GATEWAY, 80), guest.address.clone()),
        (at(FAR, 80), OUTSIDE.to_string()),
        (at(FAR6, 80), format!("[{OUTSIDE6}]")),
    ] {
        for answer in [ask_tcp(&guest.namespace, &to)?, ask_udp(&guest.namespace, &to, 0)?] {
            ensure!(answer.contains(&format!("from {from}:")), "at {to}: {answer}");
        }
    }
    let told = ask_tcp(&guest.namespace, &at(OUTSIDE, 80))?;
    ensure!(told.starts_with(&format!("host 80 from {}:", guest.address)), "at the host's address: {told}");
    // The host sees its guests.
    world.host.run(&format!("ping -n -c 2 -i 0.2 -W 5 {}", guest.address))?;
    let _server = iperf_server(&world.outside.far)?;
    for far in [FAR, FAR6] {
        for args in ["", "-R", "-u -b 20M -l 1200"] {
            iperf(&guest.namespace, &format!("-c {far} {args}"))?;
        }
    }
    conservation(&world.daemon)?;
    Ok(())
}

fn names() -> Result<()> {
    let world = World::start(DaemonOptions::default(), join)?;
    let mut server = Program::start(
        &world.outside.router,
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--log-facility=-",
            "--log-queries",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--listen-address=203.0.113.254",
            "--bind-interfaces",
            "--host-record=outside.example,198.51.100.2",
        ],
    )?;
    server.await_log("started", LIMIT)?;
    world.daemon.ok(&format!("net add n {HOST} domain=lan"))?;
    let guest = world.guest("t0")?;
    guest.address6()?;
    for gateway in [GATEWAY, GATEWAY6] {
        for transport in ["", "+tcp"] {
            let ask = format!("dig {transport} +time=3 +tries=5 +short @{gateway} outside.example");
            let told = guest.run(&ask)?;
            ensure!(told.trim() == FAR, "{ask}: {told}\n{}", server.log());
        }
    }
    conservation(&world.daemon)?;
    Ok(())
}

fn forwards() -> Result<()> {
    let world = world(HOST)?;
    let (a, b) = (world.guest("t0")?, world.guest("t1")?);
    let a6 = a.address6()?;
    let _a = Server::start(&a.namespace, "a", &[80, 443, 5000, 5001])?;
    let _b = Server::start(&b.namespace, "b", &[80])?;
    let far = &world.outside.far;
    refused_at(far, &at(OUTSIDE, 8080)).context("the host's own port, without a forward")?;
    for proto in ["tcp", "udp"] {
        for (listen, target) in [
            ("8080", format!("{}:80", a.address)),
            ("5000-5001", a.address.clone()),
            ("80,443", a.address.clone()),
            ("8080", format!("[{a6}]:80")),
        ] {
            world.daemon.ok(&format!("forward add n {proto} {listen} {target}"))?;
        }
    }
    let leads = |from: &Netns, to: String, told: &str| -> Result<()> {
        for answer in [ask_tcp(from, &to)?, ask_udp(from, &to, 0)?] {
            ensure!(answer.starts_with(told), "at {to}: {answer}, not {told}");
        }
        Ok(())
    };
    for (port, told) in [(8080, "a 80"), (5000, "a 5000"), (5001, "a 5001"), (80, "a 80"), (443, "a 443")] {
        leads(far, at(OUTSIDE, port), &format!("{told} from {FAR}"))?;
    }
    leads(far, at(OUTSIDE6, 8080), &format!("a 80 from [{FAR6}]"))?;
    // Hairpin: from another guest, from itself, and from the host.
    leads(&b.namespace, at(OUTSIDE, 8080), "a 80 from")?;
    leads(&a.namespace, at(OUTSIDE, 8080), "a 80 from")?;
    leads(&world.host, at(OUTSIDE, 8080), "a 80 from")?;

    // At run time, to another guest; what is there already keeps its way.
    for proto in ["tcp", "udp"] {
        world.daemon.ok(&format!("forward del n {proto} 8080 {}:80", a.address))?;
        world.daemon.ok(&format!("forward add n {proto} 8080 {}:80", b.address))?;
    }
    leads(far, at(OUTSIDE, 8080), "b 80")?;
    leads(far, at(OUTSIDE, 5000), "a 5000")?;
    for proto in ["tcp", "udp"] {
        world.daemon.ok(&format!("forward del n {proto} 8080 {}:80", b.address))?;
    }
    refused_at(far, &at(OUTSIDE, 8080)).context("after its forward was deleted")?;
    conservation(&world.daemon)?;
    Ok(())
}

fn rejects() -> Result<()> {
    let world = world(HOST)?;
    let guest = world.guest("t0")?;
    let address6 = guest.address6()?;
    let _inside = Server::start(&guest.namespace, "inside", &[80])?;
    // Somebody outside who knows the way in.
    world.outside.router.run(&format!(
        "ip route add 192.168.77.0/24 via {OUTSIDE}; ip -6 route add fd77::/64 via {OUTSIDE6}"
    ))?;
    guest.reaches(FAR)?;
    for to in [at(&guest.address, 80), at(&address6, 80)] {
        refused_at(&world.outside.router, &to).with_context(|| to.clone())?;
    }
    let told = world.outside.router.try_run(&format!("ping -n -c 1 -W 5 {}", guest.address))?;
    ensure!(told.code != 0 && told.stdout.contains("Destination Port Unreachable"), "{}", told.stdout);
    // Who is answered is let in.
    let _far = Server::start(&world.outside.far, "far", &[80])?;
    let mut connection = Connection::open(&guest.namespace, &at(FAR, 80))?;
    connection.works()?;
    conservation(&world.daemon)?;
    Ok(())
}

fn flushed() -> Result<()> {
    let world = world(HOST)?;
    let guest = world.guest("t0")?;
    let _inside = Server::start(&guest.namespace, "inside", &[80])?;
    world.daemon.ok(&format!("forward add n tcp 8080 {}:80", guest.address))?;
    guest.reaches(FAR)?;
    let before = table(&world.host)?;
    for what in
        ["nft flush ruleset", "nft delete table inet weft_n", "nft flush chain inet weft_n postrouting"]
    {
        world.host.run(what)?;
        eventually(&format!("the table, after {what}"), LIMIT, || {
            let now = world.host.try_run(&format!("nft list table inet {TABLE}"))?;
            Ok(if now.stdout == before { Ok(()) } else { Err(format!("{}{}", now.stdout, now.stderr)) })
        })?;
        guest.reaches(FAR)?;
        let told = ask_tcp(&world.outside.far, &at(OUTSIDE, 8080))?;
        ensure!(told.starts_with("inside 80"), "{told}");
    }
    let log = world.daemon.log();
    ensure!(log.contains("the masquerade table") && log.contains(TABLE), "nothing is said of it: {log}");
    Ok(())
}

/// What of the host a network with `egress=host` may change.
fn host_state(host: &Netns) -> Result<Vec<(&'static str, String)>> {
    let mut state = vec![
        ("tables", tables(host)?),
        ("rules, with the kernel's numbers", host.run("nft -a list ruleset")?),
        ("interfaces", host.interfaces()?.join(" ")),
        ("addresses", host.run("ip -o address show | sed 's/ valid_lft.*//'")?),
        ("routes", host.run("ip route show table all; ip -6 route show table all | grep -v '^multicast'")?),
    ];
    for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/eth9/accept_ra"] {
        state.push((path, sysctl(host, path)?));
    }
    Ok(state)
}

fn same(now: &[(&str, String)], before: &[(&str, String)]) -> Result<()> {
    for ((what, now), (_, before)) in now.iter().zip(before) {
        ensure!(now == before, "{what} were\n{before}\nand are\n{now}");
    }
    Ok(())
}

/// The host with rules of others, and its state before any network.
fn furnished(options: DaemonOptions) -> Result<(World, Vec<(&'static str, String)>)> {
    let mut before = None;
    let world = World::start(options, |host| {
        join(host)?;
        let rules = tempfile::NamedTempFile::new()?;
        std::fs::write(rules.path(), OTHERS)?;
        host.run(&format!("nft -f {}", rules.path().display()))?;
        before = Some(host_state(host)?);
        Ok(())
    })?;
    Ok((world, before.context("the host was not looked at")?))
}

/// The rules of others, with the kernel's numbers: made anew, they would have others.
fn others(host: &Netns) -> Result<String> {
    host.run("nft -a list table inet other; nft -a list table ip nat")
}

fn put_back() -> Result<()> {
    let (mut world, before) = furnished(DaemonOptions::default())?;
    let rules = others(&world.host)?;
    for (path, value) in [("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")] {
        ensure!(sysctl(&world.host, path)? == value, "{path} is on already");
    }
    world.daemon.ok(&format!("net add n {HOST}"))?;
    let guest = world.guest("t0")?;
    guest.address6()?;
    guest.reaches(FAR)?;
    guest.reaches(FAR6)?;
    ensure!(tables(&world.host)?.contains("table inet weft_n\n"), "{}", tables(&world.host)?);
    ensure!(others(&world.host)? == rules, "others' rules were touched: {}", others(&world.host)?);
    for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        ensure!(sysctl(&world.host, path)? == "1", "{path} is off");
    }
    // By the network's end.
    world.daemon.ok("port del t0")?;
    world.daemon.ok("net del n")?;
    same(&host_state(&world.host)?, &before).context("after net del")?;
    // By the daemon's.
    drop(guest);
    world.daemon.ok(&format!("net add n {HOST}"))?;
    let guest = world.guest("t1")?;
    guest.reaches(FAR)?;
    ensure!(world.daemon.terminate()? == 0, "SIGTERM");
    same(&host_state(&world.host)?, &before).context("after SIGTERM")?;
    Ok(())
}

fn killed() -> Result<()> {
    let mut config = String::from("[network.n]\nforward = [\"tcp 8080 192.168.77.2:80\"]\n");
    for (key, value) in HOST.split_whitespace().filter_map(|pair| pair.split_once('=')) {
        config.push_str(&format!("{key} = \"{value}\"\n"));
    }
    let (mut world, before) = furnished(DaemonOptions::default().config(config))?;
    let rules = others(&world.host)?;
    let (running, listed) = (table(&world.host)?, tables(&world.host)?);
    let addresses = "ip -o address show dev n | sed 's/^[0-9]*//; s/ valid_lft.*//' | sort";
    let had = world.host.run(addresses)?;
    for _ in 0..3 {
        world.daemon.kill();
        world.daemon.restart()?;
        ensure!(table(&world.host)? == running, "the table was\n{running}\nis\n{}", table(&world.host)?);
        ensure!(tables(&world.host)? == listed, "tables: {}", tables(&world.host)?);
        eventually("the host interface's addresses", LIMIT, || {
            let has = world.host.run(addresses)?;
            Ok(if has == had { Ok(()) } else { Err(format!("{had}\nand\n{has}")) })
        })?;
        ensure!(others(&world.host)? == rules, "others' rules were touched");
    }
    let guest = world.guest("t0")?;
    guest.reaches(FAR)?;
    // The killed daemons' changes are known: what was before the first of them comes back.
    ensure!(world.daemon.terminate()? == 0, "SIGTERM");
    drop(guest);
    same(&host_state(&world.host)?, &before).context("after the last daemon")?;
    // Killed and never started with that network again: the next daemon cleans up.
    world.daemon.restart()?;
    world.daemon.kill();
    std::fs::write(world.daemon.config_path(), "")?;
    world.daemon.restart()?;
    same(&host_state(&world.host)?, &before).context("after a daemon without the network")?;
    Ok(())
}
