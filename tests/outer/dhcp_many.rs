//! Many DHCP clients at once, clients that take too much, and stations that are where they should not be.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{DhcpProgram, Need, Program, Suite, conservation, eventually, process, workspace};

use crate::lan::{GATEWAY, LIMIT, Lan, Mode, Station, ensure_in_range, last_octet};

const MANY: &[Need] = &[Need::Namespaces, Need::Ping, Need::Scapy, Need::Udhcpc];
const CONFLICT: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc];
const DECLINE: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Program("nft")];

/// Ports that the many clients are behind.
const PORTS: u32 = 5;
/// The clients, and as many addresses.
const CLIENTS: u32 = 250;

pub(crate) fn register(suite: &mut Suite) {
    for mode in [Mode::Routed, Mode::Nat] {
        let name = format!("250_clients_on_a_{}_network_each_get_an_address_at_once", mode.name());
        suite.add(name, MANY, move || many(mode));
        let name = format!("a_flood_of_discovers_on_a_{}_network_keeps_nobody_else_waiting", mode.name());
        suite.add(name, MANY, move || flood(mode));
    }
    // On a routed network an address that was not given is of no use to who takes it, and nobody looks for it.
    for mode in [Mode::Nat, Mode::Internal] {
        let name = format!("an_address_that_a_station_uses_is_not_given_on_a_{}_network", mode.name());
        suite.add(name, CONFLICT, move || in_use(mode));
    }
    suite.add("an_address_that_a_client_declines_is_not_given_again", DECLINE, declined);
}

fn rig() -> String {
    workspace().join("tests/rigs/dhcp-stations").display().to_string()
}

/// Has clients `first`… get leases; the address of each that got one.
fn lease(
    station: &Station,
    first: u32,
    count: u32,
    limit: u32,
    interfaces: &[String],
) -> Result<Vec<Option<String>>> {
    let mut command = station.namespace.command(rig());
    command.arg("lease").args([first, count, limit].map(|n| n.to_string())).args(interfaces);
    let told = process::run(&mut command, Duration::from_secs(u64::from(limit) + 30))?.ok()?;
    let address = |line: &str| {
        let (_, address) = line.split_once(' ').with_context(|| line.to_string())?;
        Ok(Some(address).filter(|address| *address != "-").map(str::to_string))
    };
    told.lines().map(address).collect()
}

fn many(mode: Mode) -> Result<()> {
    let lan = Lan::new(&format!("{} dhcp=10.9.0.2-10.9.0.251", mode.words()))?;
    // One namespace with an interface for each port: the clients are frames, and need no stack.
    let station = lan.station("p0", "")?;
    let mut interfaces = vec![station.interface.clone()];
    for number in 1..PORTS {
        let port = format!("p{number}");
        lan.daemon.ok(&format!("port add lan0 {port} tap:{port}"))?;
        lan.host.run(&format!("ip link set {port} netns {}", station.namespace.name()))?;
        station.run(&format!("ip link set {port} up"))?;
        lan.daemon.await_port(&port, "up")?;
        interfaces.push(port);
    }
    let given = lease(&station, 0, CLIENTS, 90, &interfaces)?;
    let lost = given.iter().filter(|address| address.is_none()).count();
    ensure!(given.len() == CLIENTS as usize && lost == 0, "{lost} of {CLIENTS} clients have no address");
    let addresses: BTreeSet<&String> = given.iter().flatten().collect();
    ensure!(addresses.len() == CLIENTS as usize, "only {} addresses for {CLIENTS} clients", addresses.len());
    for address in addresses {
        ensure_in_range(address, 2, 251)?;
    }
    let leases = lan.leases()?;
    ensure!(leases.len() == CLIENTS as usize, "{} leases are listed", leases.len());
    // Each client is listed with the address that it was told.
    for (number, address) in given.iter().enumerate() {
        let mac = format!("52:54:01:00:00:{number:02x}");
        let listed = leases.iter().find(|lease| lease.mac == mac).with_context(|| mac.clone())?;
        ensure!(
            Some(&listed.ip) == address.as_ref() && listed.hostname == format!("s{number}"),
            "{listed:?}"
        );
    }
    let too_many = lease(&station, 1000, 1, 8, &interfaces)?;
    ensure!(too_many == [None], "the client that is one too many has {too_many:?}");
    // One that has an address asks anew and gets the same.
    let again = lease(&station, 7, 1, 30, &interfaces[2..3])?;
    ensure!(again.as_slice() == &given[7..8], "{again:?} instead of {:?}", &given[7..8]);
    ensure!(lan.leases()?.len() == CLIENTS as usize, "{} leases are listed", lan.leases()?.len());
    conservation(&lan.daemon)?;
    Ok(())
}

fn flood(mode: Mode) -> Result<()> {
    let lan = Lan::new(&format!("{} dhcp=10.9.0.50-10.9.0.149 dns=on domain=lab.test", mode.words()))?;
    let noisy = lan.station("t0", "")?;
    let (a, b) = (lan.station("t1", "")?, lan.station("t2", "")?);
    let mut of_a = a.client(DhcpProgram::Udhcpc, "alpha")?;
    let first = of_a.obtain(&a.namespace)?;
    let mut program = Program::start(&noisy.namespace, &rig(), &["flood", "1000", "5", "t0"])?;
    program.await_log("ready", LIMIT)?;

    // A newcomer gets a lease although every free address is offered to the flood, who has one renews, and pings go on.
    let mut of_b = b.client(DhcpProgram::Udhcpc, "beta")?;
    let second = of_b.obtain(&b.namespace)?;
    ensure!(second.address != first.address, "{} was given twice", second.address);
    b.await_reach(GATEWAY)?;
    let renewed = of_a.renew()?;
    ensure!(renewed.address == first.address, "{renewed:?}");
    let pings = a.run(&format!("ping -c 10 -i 0.2 -W 5 {}", second.address))?;
    ensure!(pings.contains("10 received"), "{pings}");
    let during = program.log();

    ensure!(program.wait(LIMIT)? == 0, "{}", program.log());
    let sent = program.log().lines().last().and_then(|line| line.parse::<u32>().ok());
    ensure!(sent.is_some_and(|sent| sent >= 4_000), "the flood sent {sent:?}");
    ensure!(during.lines().count() == 1, "the flood had ended before the others were served: {during}");
    let leases = lan.leases()?;
    ensure!(leases.len() == 2, "{leases:?}");
    conservation(&lan.daemon)?;
    Ok(())
}

/// Somebody has configured an address of the range by hand. Who asks does not get that one.
fn in_use(mode: Mode) -> Result<()> {
    let lan = Lan::new(&format!("{} dhcp=10.9.0.50-10.9.0.60", mode.words()))?;
    // The addresses that come first, so that the clients would get them.
    let squatter = lan.station("t0", "")?;
    squatter.run("ip address add 10.9.0.50/24 dev t0; ip address add 10.9.0.51/24 dev t0")?;
    let mut given = BTreeSet::new();
    for number in 1..=3 {
        let station = lan.station(&format!("t{number}"), "")?;
        let told = station.client(DhcpProgram::Udhcpc, "alpha")?.obtain(&station.namespace)?;
        ensure_in_range(&told.address, 52, 60)?;
        station.await_reach(GATEWAY)?;
        given.insert(last_octet(&told.address)?);
    }
    ensure!(given.len() == 3, "{given:?}");
    Ok(())
}

/// The server's probe is not answered, the client's is: it declines, and gets another address.
fn declined() -> Result<()> {
    let lan = Lan::new(&format!("{} dhcp=10.9.0.50-10.9.0.60", Mode::Internal.words()))?;
    let squatter = lan.station("t0", "")?;
    let shown = lan.daemon.json("net show lan0")?;
    let router = shown["resolved"]["gateway_mac"].as_str().or(shown["gateway_mac"].as_str());
    let router = router.with_context(|| format!("no gateway_mac in {shown}"))?;
    squatter.run(&format!(
        "nft add table arp deaf
         nft 'add chain arp deaf in {{ type filter hook input priority 0; }}'
         nft add rule arp deaf in arp saddr ether {router} drop
         ip address add 10.9.0.50/24 dev t0"
    ))?;
    let station = lan.station("t1", "")?;
    let mut program = Program::start(
        &station.namespace,
        "busybox",
        &["udhcpc", "-f", "-i", "t1", "-a", "-s", "/bin/true", "-A", "1"],
    )?;
    program.await_log("declining", LIMIT)?;
    // busybox calls its lease obtained before it looks whether it can be had.
    let log = eventually("another address", LIMIT, || {
        let log = program.log();
        let after = log.split_once("declining").map(|(_, after)| after.to_string()).unwrap_or_default();
        Ok(if after.contains("obtained") { Ok(after) } else { Err(log) })
    })?;
    let obtained = log.lines().find(|line| line.contains("obtained")).context("no lease")?;
    ensure!(!obtained.contains("10.9.0.50 "), "{log}");
    // Nobody else is offered it either.
    let other = lan.station("t2", "")?;
    let told = other.client(DhcpProgram::Udhcpc, "beta")?.obtain(&other.namespace)?;
    ensure_in_range(&told.address, 51, 60)?;
    let leases = lan.leases()?;
    ensure!(leases.len() == 2 && leases.iter().all(|lease| lease.ip != "10.9.0.50"), "{leases:?}");
    Ok(())
}
