//! Other projects' DHCP clients: they get a lease, keep it, lose it and give it back, on each mode's network.

use anyhow::{Context, Result, ensure};
use harness::{DhcpProgram, Need, Suite, Told, eventually};

use crate::lan::{GATEWAY, LAN, LIMIT, Lan, Mode, Station, ensure_in_range};

const CLIENTS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Dhclient];

/// What each network of these tests has besides its mode.
const WORDS: &str = "dhcp=10.9.0.50-10.9.0.99 domain=lab.test lease-time=120 mtu=1400 dns=on";
/// As above, in a configuration file, with a port whose interface outlives the daemon.
const CONFIG: &str = "[network.lan0]\nmode = \"routed\"\nsubnet = \"10.9.0.0/24\"\ndhcp = \"10.9.0.50-10.9.0.99\"\n\
     lease-time = 120\n\n[port.v0]\nnetwork = \"lan0\"\nkind = \"netdev:v0\"\n";

pub(crate) fn register(suite: &mut Suite) {
    for (program, name) in [(DhcpProgram::Udhcpc, "udhcpc"), (DhcpProgram::Dhclient, "dhclient")] {
        for mode in Mode::ALL {
            let name = format!("{name}_gets_renews_and_releases_a_lease_on_a_{}_network", mode.name());
            suite.add(name, CLIENTS, move || whole_life(program, mode));
        }
        suite.add(format!("{name}_keeps_its_address_when_it_starts_again"), CLIENTS, move || again(program));
        for how in [End::Terminated, End::Killed] {
            let told = if how == End::Killed { "killed" } else { "terminated" };
            let name = format!("{name}_renews_its_lease_at_a_daemon_that_was_{told}_and_started_again");
            suite.add(name, CLIENTS, move || daemon_again(program, how));
        }
    }
    suite.add("dhclient_rebinds_when_its_server_cannot_be_asked_alone", CLIENTS, rebinds);
    suite.add("dhclient_moved_to_another_network_is_refused_its_old_address", CLIENTS, moved);
    suite.add("udhcpc_is_refused_an_address_that_is_kept_for_another", CLIENTS, taken_away);
}

/// A network of a mode, with what [`WORDS`] says.
fn lan(mode: Mode) -> Result<Lan> {
    let routes = if mode == Mode::Internal { "" } else { "static-routes=10.77.0.0/16@10.9.0.9" };
    Lan::new(&format!("{} {WORDS} {routes}", mode.words()))
}

/// What a client of such a network is told.
fn check_told(told: &Told, mode: Mode, hostname: &str) -> Result<()> {
    ensure_in_range(&told.address, 50, 99)?;
    let (router, routes) = match mode {
        // Guests among themselves have no way out.
        Mode::Internal => ("", ""),
        // The default route is repeated, because who takes classless routes ignores the router (RFC 3442).
        Mode::Routed | Mode::Nat => (GATEWAY, "10.77.0.0/16 10.9.0.9 0.0.0.0/0 10.9.0.1"),
    };
    let expected = Told {
        event: told.event.clone(),
        address: told.address.clone(),
        mask: "255.255.255.0".into(),
        router: router.into(),
        dns: GATEWAY.into(),
        domain: "lab.test".into(),
        mtu: "1400".into(),
        hostname: hostname.into(),
        routes: routes.into(),
        server: GATEWAY.into(),
        lease_s: told.lease_s,
    };
    ensure!(*told == expected, "the client was told {told:?}, expected {expected:?}");
    // A lease that was acknowledged already is told with the time that it has left.
    ensure!((1..=120).contains(&told.lease_s), "a lease of {} s", told.lease_s);
    Ok(())
}

/// The lease list has exactly this client's lease.
fn check_listed(lan: &Lan, station: &Station, address: &str, hostname: &str) -> Result<()> {
    let leases = lan.leases()?;
    let [lease] = leases.as_slice() else { anyhow::bail!("expected one lease: {leases:?}") };
    ensure!(lease.network == LAN && lease.ip == address && lease.hostname == hostname, "{lease:?}");
    ensure!(lease.mac == station.mac()? && lease.bound, "{lease:?}");
    ensure!((1..=120).contains(&lease.expires_s), "{lease:?}");
    Ok(())
}

fn whole_life(program: DhcpProgram, mode: Mode) -> Result<()> {
    let lan = lan(mode)?;
    let station = lan.station("t0", "")?;
    let mut client = station.client(program, "alpha")?;
    let bound = client.obtain(&station.namespace)?;
    check_told(&bound, mode, "alpha")?;
    check_listed(&lan, &station, &bound.address, "alpha")?;
    station.await_reach(GATEWAY)?;

    let renewed = client.renew()?;
    check_told(&renewed, mode, "alpha")?;
    ensure!(renewed.address == bound.address, "renewed to {}", renewed.address);
    check_listed(&lan, &station, &bound.address, "alpha")?;
    station.await_reach(GATEWAY)?;

    client.release(&station.namespace)?;
    eventually("the lease gone", LIMIT, || {
        let leases = lan.leases()?;
        Ok(if leases.is_empty() { Ok(()) } else { Err(format!("{leases:?}")) })
    })?;
    // Who comes back gets what it had, and nobody was given that meanwhile.
    client.kill();
    let other = lan.station("t1", "")?;
    let mut second = other.client(program, "beta")?;
    let second = second.obtain(&other.namespace)?;
    ensure!(second.address != bound.address, "the released address was given at once");
    client.skip_events()?;
    let back = client.obtain(&station.namespace)?;
    ensure!(back.address == bound.address, "{} came back to {}", bound.address, back.address);
    Ok(())
}

/// The client ends without a word and starts again: dhclient remembers its lease and asks for it (INIT-REBOOT),
/// udhcpc is told which address to ask for.
fn again(program: DhcpProgram) -> Result<()> {
    let lan = lan(Mode::Routed)?;
    let first = lan.station("t0", "")?;
    // The first address is taken, so that the client's own is not simply the next one.
    first.client(program, "first")?.obtain(&first.namespace)?;
    let station = lan.station("t1", "")?;
    let mut client = station.client(program, "alpha")?;
    let bound = client.obtain(&station.namespace)?;
    client.kill();
    client.skip_events()?;
    client.start(&station.namespace, Some(&bound.address))?;
    let again = client.await_event(&["bound", "reboot"])?;
    check_told(&again, Mode::Routed, "alpha")?;
    ensure!(again.address == bound.address, "{} came back as {}", bound.address, again.address);
    if program == DhcpProgram::Dhclient {
        ensure!(again.event == "reboot" && !client.log().contains("DHCPDISCOVER"), "{}", client.log());
    }
    ensure!(lan.leases()?.len() == 2, "{:?}", lan.leases()?);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Terminated,
    Killed,
}

fn daemon_again(program: DhcpProgram, how: End) -> Result<()> {
    let mut station = None;
    let mut lan = Lan::configured(CONFIG, |host| {
        station = Some(Station::veth(host, "v0")?);
        Ok(())
    })?;
    let station = station.context("no station")?;
    lan.daemon.await_port("v0", "up")?;
    let mut client = station.client(program, "alpha")?;
    let bound = client.obtain(&station.namespace)?;
    let mac = station.mac()?;
    match how {
        End::Terminated => ensure!(lan.daemon.terminate()? == 0, "the daemon's end is not clean"),
        End::Killed => lan.daemon.kill(),
    }
    lan.daemon.restart()?;
    lan.daemon.await_port("v0", "up")?;
    let lease = lan.lease_of(&mac)?.context("the lease is not there any more")?;
    ensure!(lease.ip == bound.address && lease.hostname == "alpha", "{lease:?}");

    // Nobody else gets the address, although its client was not heard yet.
    let other = lan.station("t1", "")?;
    let given = other.client(program, "beta")?.obtain(&other.namespace)?;
    ensure!(given.address != bound.address, "{} was given twice", given.address);
    let renewed = client.renew()?;
    ensure!(renewed.address == bound.address, "renewed to {}", renewed.address);
    let events = client.events()?;
    let lost = |told: &&Told| ["nak", "expire", "fail"].contains(&told.event.as_str());
    ensure!(events.iter().find(lost).is_none(), "the client lost its address: {events:?}");
    station.await_reach(GATEWAY)
}

fn rebinds() -> Result<()> {
    let lan = lan(Mode::Internal)?;
    let station = lan.station("t0", "")?;
    let mut client = station.client(DhcpProgram::Dhclient, "alpha")?;
    let bound = client.obtain(&station.namespace)?;
    // What it sends to the server alone does not leave. A broadcast does: the client sends that below IP.
    station.run(&format!("ip route add blackhole {GATEWAY}"))?;
    client.skip_events()?;
    let told = client.await_event(&["renew", "rebind"])?;
    ensure!(told.address == bound.address, "rebound to {}", told.address);
    let log = client.log();
    let after = log.split_once("bound to").map(|(_, after)| after).context("never bound")?;
    let broadcast = format!("DHCPREQUEST for {} on t0 to 255.255.255.255", bound.address);
    let asked = after.find(&broadcast).with_context(|| format!("no '{broadcast}' in {after}"))?;
    ensure!(after[asked..].contains("DHCPACK"), "not acknowledged: {after}");
    ensure!(!log.contains("DHCPNAK"), "{log}");
    Ok(())
}

fn moved() -> Result<()> {
    let lan = lan(Mode::Routed)?;
    lan.daemon
        .ok("net add other mode=internal subnet=10.8.0.0/24 dhcp=10.8.0.50-10.8.0.99 lease-time=120")?;
    let station = lan.station("t0", "")?;
    let mac = station.mac()?;
    let mut client = station.client(DhcpProgram::Dhclient, "alpha")?;
    let bound = client.obtain(&station.namespace)?;
    client.kill();
    lan.daemon.ok("port del t0")?;
    lan.daemon.ok("port add other t0 tap:t0")?;
    station.take(&lan.host, Some(&mac))?;
    lan.daemon.await_port("t0", "up")?;

    client.skip_events()?;
    let there = client.obtain(&station.namespace)?;
    ensure!(there.address.starts_with("10.8.0."), "{there:?}");
    let log = client.log();
    let asked = format!("DHCPREQUEST for {} ", bound.address);
    let refused = log.find("DHCPNAK from 10.8.0.1").with_context(|| log.clone())?;
    ensure!(log.find(&asked).is_some_and(|at| at < refused), "{log}");
    Ok(())
}

fn taken_away() -> Result<()> {
    let lan = lan(Mode::Routed)?;
    let station = lan.station("t0", "")?;
    let mac = station.mac()?;
    let mut client = station.client(DhcpProgram::Udhcpc, "alpha")?;
    let bound = client.obtain(&station.namespace)?;
    let owner = "52:54:00:00:00:99";
    let why = lan.daemon.refused(1, &["lease", "add", LAN, owner, &bound.address])?;
    ensure!(why.contains(&mac), "the refusal does not say who has it: {why}");
    lan.daemon.ok(&format!("lease del {LAN} {mac}"))?;
    lan.daemon.ok(&format!("lease add {LAN} {owner} {}", bound.address))?;
    client.skip_events()?;
    // It asks to renew, hears that it may not, and starts anew.
    client.hurry()?;
    client.await_event(&["nak"])?;
    let other = client.await_event(&["bound"])?;
    check_told(&other, Mode::Routed, "alpha")?;
    ensure!(other.address != bound.address, "it still has {}", bound.address);
    let lease = lan.lease_of(&mac)?.context("no lease")?;
    ensure!(lease.ip == other.address, "{lease:?}");
    Ok(())
}
