//! Addresses that are kept for guests: by a port's keys, by an operator's word, by the configuration file.

use anyhow::{Context, Result, ensure};
use harness::{DhcpProgram, Need, Suite};

use crate::lan::{LAN, Lan, Mode, Station, ensure_in_range};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc];

const MAC: &str = "52:54:00:00:00:11";
const OTHER: &str = "52:54:00:00:00:12";
const RANGE: &str = "dhcp=10.9.0.50-10.9.0.99 lease-time=120";

pub(crate) fn register(suite: &mut Suite) {
    for mode in Mode::ALL {
        let name = format!("a_guest_gets_its_ports_address_on_a_{}_network", mode.name());
        suite.add(name, NEEDS, move || of_port(mode));
    }
    suite.add("a_guest_gets_the_address_that_lease_add_keeps_for_it", NEEDS, by_verb);
    suite.add("a_guest_gets_the_address_of_the_configuration_file", NEEDS, by_file);
    suite.add("reservations_that_conflict_are_refused_in_one_line", &[Need::Namespaces], conflicts);
    suite.add("lease_del_ends_leases_and_reservations", NEEDS, deleted);
}

/// The address and name that a station is given, and that the list shows for it.
fn obtain(lan: &Lan, station: &Station) -> Result<(String, String)> {
    let told = station.client(DhcpProgram::Udhcpc, "self")?.obtain(&station.namespace)?;
    let lease = lan.lease_of(&station.mac()?)?.context("no lease is listed")?;
    ensure!(lease.ip == told.address && lease.network == LAN, "{lease:?}, and the client has {told:?}");
    Ok((told.address, told.hostname))
}

fn of_port(mode: Mode) -> Result<()> {
    let lan = Lan::new(&format!("{} {RANGE}", mode.words()))?;
    let told = lan.station_with_mac("t0", &format!("mac={MAC} ip=10.9.0.10"), MAC)?;
    // Known before its guest asks.
    let kept = lan.leases()?;
    ensure!(kept.len() == 1 && kept[0].ip == "10.9.0.10" && kept[0].mac == MAC && !kept[0].bound, "{kept:?}");
    ensure!(obtain(&lan, &told)?.0 == "10.9.0.10", "{:?}", lan.leases()?);
    // Without mac=, whoever is at the port. An address of the range is as good.
    let any = lan.station("t1", "ip=10.9.0.50")?;
    ensure!(obtain(&lan, &any)?.0 == "10.9.0.50", "{:?}", lan.leases()?);
    let plain = lan.station("t2", "")?;
    ensure_in_range(&obtain(&lan, &plain)?.0, 51, 99)?;
    for station in [&told, &any, &plain] {
        station.await_reach("10.9.0.1")?;
    }
    // The address is its port's, and goes with it.
    lan.daemon.ok("port del t0")?;
    ensure!(lan.leases()?.iter().all(|lease| lease.bound || lease.ip != "10.9.0.10"), "{:?}", lan.leases()?);
    Ok(())
}

fn by_verb() -> Result<()> {
    let lan = Lan::new(&format!("{} {RANGE}", Mode::Nat.words()))?;
    let station = lan.station("t0", "")?;
    let mac = station.mac()?;
    lan.daemon.ok(&format!("lease add {LAN} {mac} 10.9.0.20 web"))?;
    lan.daemon.ok(&format!("lease add --may-exist {LAN} {mac} 10.9.0.20 web"))?;
    lan.daemon.refused(1, &["lease", "add", LAN, &mac, "10.9.0.20", "web"])?;
    let (address, hostname) = obtain(&lan, &station)?;
    ensure!(address == "10.9.0.20" && hostname == "web", "{address} {hostname}");
    let lease = lan.lease_of(&mac)?.context("no lease")?;
    ensure!(lease.hostname == "web", "{lease:?}");
    // Another network keeps its own.
    lan.daemon.refused(4, &["lease", "add", "nowhere", MAC, "10.9.0.21"])?;
    lan.daemon.refused(4, &["lease", "list", "nowhere"])?;
    Ok(())
}

fn by_file() -> Result<()> {
    let config = format!(
        "[network.lan0]\nmode = \"routed\"\nsubnet = \"10.9.0.0/24\"\ndhcp = \"10.9.0.50-10.9.0.99\"\n\
         lease = [\"{MAC} 10.9.0.30 web\"]\n\n\
         [port.v0]\nnetwork = \"lan0\"\nkind = \"netdev:v0\"\n\n\
         [port.v1]\nnetwork = \"lan0\"\nkind = \"netdev:v1\"\nmac = \"{OTHER}\"\nip = \"10.9.0.31\"\n"
    );
    let mut stations = Vec::new();
    let mut lan = Lan::configured(&config, |host| {
        for (name, mac) in [("v0", MAC), ("v1", OTHER)] {
            let station = Station::veth(host, name)?;
            station.run(&format!("ip link set eth0 address {mac}"))?;
            stations.push(station);
        }
        Ok(())
    })?;
    let check = |lan: &Lan| -> Result<()> {
        for (port, station, expected) in
            [("v0", &stations[0], ("10.9.0.30", "web")), ("v1", &stations[1], ("10.9.0.31", "self"))]
        {
            lan.daemon.await_port(port, "up")?;
            let (address, hostname) = obtain(lan, station)?;
            ensure!((address.as_str(), hostname.as_str()) == expected, "{port}: {address} {hostname}");
        }
        Ok(())
    };
    check(&lan)?;
    lan.daemon.kill();
    lan.daemon.restart()?;
    check(&lan)
}

fn conflicts() -> Result<()> {
    let lan = Lan::new(&format!("{} {RANGE}", Mode::Routed.words()))?;
    lan.daemon.ok(&format!("lease add {LAN} {MAC} 10.9.0.20 web"))?;
    lan.daemon.ok(&format!("port add {LAN} t0 tap:t0 mac={OTHER} ip=10.9.0.21"))?;
    lan.daemon.ok("net add plain mode=bridge")?;
    let third = "52:54:00:00:00:13";
    let add = |mac, ip| vec!["lease", "add", LAN, mac, ip];
    let table: Vec<(&str, Vec<&str>)> = vec![
        ("another's address", add(third, "10.9.0.20")),
        ("a second address", add(MAC, "10.9.0.22")),
        ("a port's address", add(third, "10.9.0.21")),
        ("the gateway's address", add(third, "10.9.0.1")),
        ("the subnet's own address", add(third, "10.9.0.0")),
        ("the subnet's broadcast address", add(third, "10.9.0.255")),
        ("an address of elsewhere", add(third, "10.8.0.5")),
        ("a name that is taken", vec!["lease", "add", LAN, third, "10.9.0.23", "web"]),
        ("a network without leases", vec!["lease", "add", "plain", third, "10.9.0.23"]),
        (
            "a port with a kept address",
            vec!["port", "add", LAN, "t1", "tap:t1", "mac=52:54:00:00:00:14", "ip=10.9.0.20"],
        ),
        ("a port with a port's address", vec!["port", "add", LAN, "t1", "tap:t1", "ip=10.9.0.21"]),
        ("a port with the gateway's address", vec!["port", "add", LAN, "t1", "tap:t1", "ip=10.9.0.1"]),
    ];
    let before = lan.leases()?;
    for (what, args) in table {
        lan.daemon.refused(1, &args).with_context(|| what.to_string())?;
    }
    ensure!(lan.leases()? == before, "a refused call changed something: {:?}", lan.leases()?);
    ensure!(lan.daemon.weft(&["port", "show", "t1"])?.code == 4, "a refused port is there");
    Ok(())
}

fn deleted() -> Result<()> {
    let lan = Lan::new(&format!("{} {RANGE}", Mode::Internal.words()))?;
    let station = lan.station("t0", "")?;
    let mac = station.mac()?;
    lan.daemon.ok(&format!("lease add {LAN} {mac} 10.9.0.20"))?;
    let mut client = station.client(DhcpProgram::Udhcpc, "self")?;
    let told = client.obtain(&station.namespace)?;
    ensure!(told.address == "10.9.0.20", "{told:?}");
    lan.daemon.ok(&format!("lease del {LAN} 10.9.0.20"))?;
    ensure!(lan.leases()?.is_empty(), "{:?}", lan.leases()?);
    lan.daemon.refused(1, &["lease", "del", LAN, "10.9.0.20"])?;
    lan.daemon.ok(&format!("lease del --if-exists {LAN} 10.9.0.20"))?;
    // The address is kept for nobody now, and is not of the range: its client is refused it and gets another.
    client.skip_events()?;
    client.hurry()?;
    client.await_event(&["nak"])?;
    let told = client.await_event(&["bound"])?;
    ensure_in_range(&told.address, 50, 99)?;
    lan.daemon.ok(&format!("lease del {LAN} {mac}"))?;
    ensure!(lan.leases()?.is_empty(), "{:?}", lan.leases()?);
    Ok(())
}
