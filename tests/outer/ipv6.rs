//! IPv6 as the Linux kernel and other projects' programs see it: router advertisements, addresses that stations make
//! for themselves, and DHCPv6.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, Need, Netns, Program, Suite, eventually, process};
use tempfile::TempDir;

use crate::lan::{LAN, LIMIT, Lan, Mode, Station};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Rdisc6];
const DHCP: &[Need] = &[Need::Namespaces, Need::Ping, Need::Rdisc6, Need::Dhclient];
const NAMES: &[Need] = &[Need::Namespaces, Need::Ping, Need::Dig];

const PREFIX: &str = "fd00:9::";
const GATEWAY: &str = "fd00:9::1";
const WORDS: &str = "subnet6=fd00:9::/64 dns=on domain=lab.test mtu=1400";
const MAC: &str = "52:54:00:00:00:11";

pub(crate) fn register(suite: &mut Suite) {
    for mode in [Mode::Nat, Mode::Internal] {
        let name = format!("linux_configures_itself_by_advertisements_of_a_{}_network", mode.name());
        suite.add(name, NEEDS, move || configures_itself(mode));
    }
    suite.add("linux_on_a_routed_network_makes_no_address_that_nobody_routes", NEEDS, routed);
    suite.add("dhclient_asks_for_the_rest_by_stateless_dhcpv6", DHCP, stateless);
    for mode in [Mode::Routed, Mode::Nat] {
        let name = format!("dhclient_gets_the_ipv6_address_kept_for_it_on_a_{}_network", mode.name());
        suite.add(name, DHCP, move || stateful(mode));
    }
    suite.add("the_name_service_answers_over_ipv6", NAMES, names);
    suite.add("a_network_that_ends_is_no_default_router_any_more", NEEDS, farewell);
}

fn lan(mode: Mode) -> Result<Lan> {
    let host = Netns::new("host")?;
    // For the host's own interface on the network.
    host.enable_ipv6()?;
    let daemon = Daemon::start_in(&host)?;
    daemon.ok(&format!("net add {LAN} {} {WORDS}", mode.words()))?;
    Ok(Lan { host, daemon })
}

impl Lan {
    /// As [`Lan::station`], with IPv6.
    fn station6(&self, port: &str, keys: &str, mac: Option<&str>) -> Result<Station> {
        let station = Station { namespace: Netns::new(port)?, interface: port.to_string() };
        station.namespace.enable_ipv6()?;
        self.daemon.ok(&format!("port add {LAN} {port} tap:{port} {keys}"))?;
        // What the daemon gave the tap is not what tells its guest of the network's MTU here.
        self.host.run(&format!("ip link set {port} mtu 1500"))?;
        station.take(&self.host, mac)?;
        self.daemon.await_port(port, "up")?;
        Ok(station)
    }
}

impl Station {
    /// Waits for an address that the station made of the network's prefix.
    fn own_address(&self) -> Result<String> {
        let interface = &self.interface;
        eventually("an address by advertisement", LIMIT, || {
            let told = self.run(&format!("ip -6 -oneline address show dev {interface} scope global"))?;
            let words: Vec<&str> = told.split_whitespace().collect();
            let address = words.iter().find_map(|word| word.strip_suffix("/64"));
            Ok(address.filter(|a| a.starts_with(PREFIX)).map(str::to_string).ok_or(told.clone()))
        })
    }

    fn await_reach6(&self, address: &str) -> Result<()> {
        eventually(&format!("{}'s ping of {address}", self.namespace.name()), LIMIT, || {
            let output = self.namespace.try_run(&format!("ping -6 -c 1 -W 1 {address}"))?;
            Ok(if output.code == 0 { Ok(()) } else { Err(output.stdout) })
        })
    }

    /// What rdisc6 shows of one advertisement, by label.
    fn advertised(&self) -> Result<Advertised> {
        let told = self.run(&format!("rdisc6 -1 -r 5 {}", self.interface))?;
        Ok(Advertised(told))
    }
}

struct Advertised(String);

impl Advertised {
    /// The value of every line with this label.
    fn all(&self, label: &str) -> Vec<String> {
        let lines = self.0.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(name, _)| name.trim() == label).map(|(_, value)| value.trim().to_string()).collect()
    }

    fn expect(&self, label: &str, value: &str) -> Result<()> {
        let found = self.all(label);
        ensure!(
            found.iter().any(|v| v.starts_with(value)),
            "'{label}' is {found:?}, not {value}: {}",
            self.0
        );
        Ok(())
    }
}

fn configures_itself(mode: Mode) -> Result<()> {
    let lan = lan(mode)?;
    let (a, b) = (lan.station6("t0", "", None)?, lan.station6("t1", "", None)?);
    let own = a.own_address()?;
    let mtu = a.run("cat /proc/sys/net/ipv6/conf/t0/mtu")?;
    ensure!(mtu.trim() == "1400", "the advertised MTU is 1400, and the kernel has {mtu}");
    let routes = a.run("ip -6 route show default")?;
    if mode == Mode::Internal {
        ensure!(routes.trim().is_empty(), "a way out of an internal network: {routes}");
    } else {
        ensure!(routes.contains("via fe80::") && routes.contains("proto ra"), "{routes}");
        let expires = routes.split("expires ").nth(1).and_then(|rest| rest.split("sec").next());
        let expires: u32 = expires.with_context(|| routes.clone())?.parse()?;
        ensure!((1..=9000).contains(&expires), "{routes}");
    }
    let told = a.advertised()?;
    told.expect("Hop limit", "64")?;
    told.expect("MTU", "1400 bytes")?;
    told.expect("Prefix", &format!("{PREFIX}/64"))?;
    told.expect("Autonomous address conf.", "Yes")?;
    told.expect("On-link", "Yes")?;
    told.expect("Recursive DNS server", GATEWAY)?;
    told.expect("DNS search list", "lab.test")?;
    // Nobody has an address kept for it, so nobody needs to ask for one.
    told.expect("Stateful address conf.", "No")?;
    told.expect("Stateful other conf.", "Yes")?;
    let lifetime = told.all("Router lifetime").first().cloned().unwrap_or_default();
    ensure!(lifetime.starts_with("0 ") == (mode == Mode::Internal), "{}", told.0);

    a.await_reach6(GATEWAY)?;
    let other = b.own_address()?;
    ensure!(own != other, "both have {own}");
    b.await_reach6(GATEWAY)?;
    a.await_reach6(&other)?;
    b.await_reach6(&own)?;
    // Packets as large as the MTU, and larger ones in pieces.
    a.run(&format!("ping -6 -c 2 -i 0.2 -W 5 -s 1352 {other}; ping -6 -c 2 -i 0.2 -W 5 -s 3000 {other}"))?;
    Ok(())
}

/// Only addresses that are told are routed: the guest learns its router, and that it is to ask for an address.
fn routed() -> Result<()> {
    let lan = lan(Mode::Routed)?;
    let station = lan.station6("t0", "ip=fd00:9::77", None)?;
    let told = station.advertised()?;
    told.expect("Prefix", &format!("{PREFIX}/64"))?;
    told.expect("On-link", "No")?;
    told.expect("Autonomous address conf.", "No")?;
    told.expect("Stateful address conf.", "Yes")?;
    told.expect("MTU", "1400 bytes")?;
    told.expect("Recursive DNS server", GATEWAY)?;
    eventually("a default router", LIMIT, || {
        let routes = station.run("ip -6 route show default")?;
        Ok(if routes.contains("proto ra") { Ok(()) } else { Err(routes) })
    })?;
    let made = station.run("ip -6 -oneline address show dev t0 scope global")?;
    ensure!(made.trim().is_empty(), "it made an address: {made}");
    station.run("ip -6 address add fd00:9::77/128 dev t0")?;
    station.await_reach6(GATEWAY)
}

/// ISC's DHCPv6 client in a station, and what its script was told.
struct Dhclient6 {
    dir: TempDir,
}

impl Dhclient6 {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-dhcp6-").tempdir()?;
        let client = Dhclient6 { dir };
        let path = client.dir.path().display();
        let script = format!(
            "#!/bin/sh\n\
             env >{path}/now; mv {path}/now {path}/$reason\n\
             case $reason in\n\
               BOUND6) ip -6 address add $new_ip6_address/128 dev $interface;;\n\
               RELEASE6|EXPIRE6) ip -6 address del $old_ip6_address/128 dev $interface;;\n\
             esac\n"
        );
        std::fs::write(client.dir.path().join("script"), script)?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(client.dir.path().join("script"), mode)?;
        std::fs::write(client.dir.path().join("conf"), "")?;
        std::fs::write(client.dir.path().join("leases"), "")?;
        Ok(client)
    }

    fn args(&self, station: &Station, more: &[&str]) -> Vec<String> {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let mut args = vec!["-6".to_string(), "-v".into()];
        args.extend(more.iter().map(ToString::to_string));
        for (option, name) in [("-cf", "conf"), ("-lf", "leases"), ("-pf", "pid"), ("-sf", "script")] {
            args.extend([option.to_string(), file(name)]);
        }
        args.push(station.interface.clone());
        args
    }

    fn start(&self, station: &Station, more: &[&str]) -> Result<Program> {
        let args = self.args(station, more);
        Program::start(&station.namespace, "dhclient", &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Waits for what the script was told with `reason`; the value of `name`.
    fn await_told(&self, program: &Program, reason: &str, name: &str) -> Result<String> {
        let text = eventually(&format!("dhclient told {reason}"), LIMIT, || {
            let text = std::fs::read_to_string(self.dir.path().join(reason));
            Ok(text.map_err(|_| program.log()))
        })?;
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        Ok(value.with_context(|| format!("no {name} with {reason}: {text}"))?.trim().to_string())
    }
}

fn stateless() -> Result<()> {
    let lan = lan(Mode::Nat)?;
    let station = lan.station6("t0", "", None)?;
    station.own_address()?;
    let client = Dhclient6::new()?;
    let program = client.start(&station, &["-S", "-d"])?;
    ensure!(client.await_told(&program, "RENEW6", "new_dhcp6_name_servers")? == GATEWAY, "{}", program.log());
    let search = client.await_told(&program, "RENEW6", "new_dhcp6_domain_search")?;
    ensure!(search.trim_end_matches('.') == "lab.test", "{search}");
    Ok(())
}

fn stateful(mode: Mode) -> Result<()> {
    let lan = lan(mode)?;
    let station = lan.station6("t0", &format!("mac={MAC} ip=fd00:9::77"), Some(MAC))?;
    let other = lan.station6("t1", "", None)?;
    let other_mac = other.mac()?;
    lan.daemon.ok(&format!("lease add {LAN} {other_mac} fd00:9::88"))?;
    station.advertised()?.expect("Stateful address conf.", "Yes")?;
    for (station, mac, address) in [(&station, MAC, "fd00:9::77"), (&other, other_mac.as_str(), "fd00:9::88")]
    {
        let client = Dhclient6::new()?;
        let program = client.start(station, &["-d"])?;
        let told = client.await_told(&program, "BOUND6", "new_ip6_address")?;
        ensure!(told == address, "{mac} was given {told}, not {address}");
        ensure!(
            client.await_told(&program, "BOUND6", "new_dhcp6_name_servers")? == GATEWAY,
            "{}",
            program.log()
        );
        let lease = lan.lease_of(mac)?.with_context(|| format!("no lease of {mac}: {:?}", lan.leases()))?;
        ensure!(lease.ip == address && lease.expires_s > 0 && lease.network == LAN, "{lease:?}");
        station.run(&format!("ping -6 -c 2 -i 0.2 -W 5 -I {address} {GATEWAY}"))?;
        drop(program);
        let release = client.args(station, &["-r"]);
        process::run(station.namespace.command("dhclient").args(&release), LIMIT)?.ok()?;
        eventually("the lease gone", LIMIT, || {
            let lease = lan.lease_of(mac)?;
            Ok(if lease.is_none() { Ok(()) } else { Err(format!("{lease:?}")) })
        })?;
    }
    // Who has none kept is told so, and gets none.
    let stranger = lan.station6("t2", "", None)?;
    let client = Dhclient6::new()?;
    let mut program = client.start(&stranger, &["-d"])?;
    program.await_log("Status code of no addrs", LIMIT)?;
    ensure!(!client.dir.path().join("BOUND6").exists(), "{}", program.log());
    Ok(())
}

fn names() -> Result<()> {
    let lan = lan(Mode::Nat)?;
    let station = lan.station6("t0", "", None)?;
    station.own_address()?;
    station.await_reach6(GATEWAY)?;
    for over in ["", "+tcp"] {
        station.resolves(&format!("{over} @{GATEWAY} gateway.lab.test AAAA"), &[GATEWAY])?;
        station.resolves(&format!("{over} @{GATEWAY} -x {GATEWAY}"), &["gateway.lab.test."])?;
    }
    Ok(())
}

/// With an interface that outlives the daemon.
fn farewell() -> Result<()> {
    let mut lan = lan(Mode::Routed)?;
    let station = Station { namespace: Netns::new("v0")?, interface: "eth0".to_string() };
    station.namespace.enable_ipv6()?;
    let name = station.namespace.name();
    lan.host.run(&format!("ip link add v0 type veth peer name eth0 netns {name}; ip link set v0 up"))?;
    station.run("ip link set eth0 up")?;
    lan.daemon.ok(&format!("port add {LAN} v0 netdev:v0"))?;
    lan.daemon.await_port("v0", "up")?;
    let routes = |station: &Station| station.run("ip -6 route show default");
    eventually("a default router", LIMIT, || {
        let routes = routes(&station)?;
        Ok(if routes.contains("proto ra") { Ok(()) } else { Err(routes) })
    })?;
    ensure!(lan.daemon.terminate()? == 0, "the daemon's end is not clean");
    eventually("the default router gone", LIMIT, || {
        let routes = routes(&station)?;
        Ok(if routes.trim().is_empty() { Ok(()) } else { Err(routes) })
    })
}
