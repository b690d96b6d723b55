//! A scenario for each mode beside the bridge: internal, routed, nat. Guests get their addresses from the gateway, ask it
//! for names, and move data by the way that the mode is for.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use super::Report;
use super::guest::{Answer, Order, Setup};
use super::kernel::LOOPBACK;
use super::process::{Daemon, Process};
use super::steps::{Outcome, TCP_BYTES, ping, tcp, tcp_outcome, unexpected};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const ROUTED: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 2, 1), Ipv4Addr::new(10, 77, 3, 1)];

/// Runs all of them. An error is one of setting up; failures of steps are in the report.
pub(super) fn run(daemon: &Daemon, report: &mut Report, no_namespace: Option<&str>) -> anyhow::Result<()> {
    internal(daemon, report)?;
    routed(daemon, report)?;
    by_sockets(daemon, report)?;
    match no_namespace {
        Some(why) => report.left_out("nat: a guest reaches the outside", why),
        None => nat(daemon, report)?,
    }
    Ok(())
}

/// A guest on a port of its own; without `address` it will ask for one.
fn guest(
    daemon: &Daemon,
    network: &str,
    number: u32,
    address: &str,
    keys: &[&str],
) -> anyhow::Result<Process> {
    let name = format!("vif{number}.0");
    let socket = daemon.path(&format!("{name}.sock"));
    let kind = format!("vhost-user:{socket}");
    daemon.weft(&[&["port", "add", network, &name, &kind], keys].concat())?;
    let setup = Setup { sockets: vec![socket], number, address: address.to_owned(), offloads: true };
    let mut guest = daemon.guest(&setup)?;
    guest.ask(&Order::Hello)?;
    Ok(guest)
}

fn internal(daemon: &Daemon, report: &mut Report) -> anyhow::Result<()> {
    daemon.weft(&[
        "net",
        "add",
        "lab0",
        "mode=internal",
        "subnet=10.77.1.0/24",
        "dhcp=10.77.1.10-10.77.1.99",
        "dns=on",
        "domain=demo",
    ])?;
    let mut one = guest(daemon, "lab0", 6, "", &[])?;
    let mut two = guest(daemon, "lab0", 7, "", &[])?;
    report.step("internal: addresses and names", names(daemon, &mut one, &mut two));
    Ok(())
}

/// Both guests get addresses, one of them a reserved one with a name, by which the other reaches it.
fn names(daemon: &Daemon, one: &mut Process, two: &mut Process) -> Outcome {
    let Answer::Hello { mac } = two.ask(&Order::Hello)? else { bail!("an answer out of turn") };
    let mac = mac.map(|b| format!("{b:02x}")).join(":");
    daemon.weft(&["lease", "add", "lab0", &mac, "10.77.1.50", "web"])?;
    let (first, server) = lease(one)?;
    let (second, _) = lease(two)?;
    ensure!(
        second == Ipv4Addr::new(10, 77, 1, 50),
        "{second} was leased in the place of the reserved address"
    );
    let server = server.context("no name server was told")?;
    let name = "web.demo".to_owned();
    let found = match one.ask(&Order::Resolve { server, name })? {
        Answer::Resolved { addresses } => addresses,
        other => return unexpected(&other),
    };
    ensure!(found == [second], "web.demo is {found:?}");
    // A guest's stack lets a packet go that meets an unknown neighbour.
    one.ask(&Order::Arp(second))?;
    let (pinged, values) = ping(one, second, 100)?;
    Ok((
        format!("{first} and {second} by DHCP; web.demo is {second}; {pinged}"),
        json!({ "leases": [first, second], "ping": values }),
    ))
}

fn lease(guest: &mut Process) -> anyhow::Result<(Ipv4Addr, Option<Ipv4Addr>)> {
    match guest.ask(&Order::Lease)? {
        Answer::Lease { address, name_server, .. } => Ok((address, name_server)),
        other => bail!("an answer out of turn: {other:?}"),
    }
}

fn routed(daemon: &Daemon, report: &mut Report) -> anyhow::Result<()> {
    daemon.weft(&["net", "add", "rt0", "mode=routed", "host-if=off"])?;
    let mut guests = Vec::new();
    for (number, address) in [8, 9].into_iter().zip(ROUTED) {
        // A link of its own: whatever is not the guest itself is behind the router.
        let cidr = format!("{address}/0");
        guests.push(guest(daemon, "rt0", number, &cidr, &[&format!("ip={address}")])?);
    }
    if let [one, two] = &mut guests[..] {
        report.step("routed: from subnet to subnet", tcp(one, two, ROUTED[1]));
    }
    Ok(())
}

/// A guest reaches a server of this host by the host's own sockets: no privilege, no namespace, no interface.
fn by_sockets(daemon: &Daemon, report: &mut Report) -> anyhow::Result<()> {
    let (port, gateway) = (5004, Ipv4Addr::new(10, 77, 4, 1));
    let mut server = daemon.kernel(LOOPBACK, &Ipv4Addr::LOCALHOST.to_string(), 8, port)?;
    server.answer()?;
    daemon.weft(&["net", "add", "user0", "mode=nat", "subnet=10.77.4.0/24", "host-loopback=on"])?;
    let mut one = guest(daemon, "user0", 11, "", &[])?;
    report.step("nat: by the host's own sockets", spliced(daemon, &mut one, &mut server, gateway, port));
    report.show(daemon, &["nat", "sessions", "user0"]);
    Ok(())
}

fn spliced(
    daemon: &Daemon,
    guest: &mut Process,
    server: &mut Process,
    gateway: Ipv4Addr,
    port: u16,
) -> Outcome {
    let (address, _) = lease(guest)?;
    let (pinged, _) = ping(guest, gateway, 100)?;
    let sent = guest.ask(&Order::TcpSend { to: gateway, port, bytes: TCP_BYTES })?;
    let (moved, values) = tcp_outcome(&sent, &server.answer()?)?;
    let show = daemon.json(&["net", "show", "user0"])?;
    ensure!(show["resolved"]["egress"] == "user", "{show}");
    Ok((format!("{address} to a server of this host: TCP {moved}; ping of the gateway {pinged}"), values))
}

fn nat(daemon: &Daemon, report: &mut Report) -> anyhow::Result<()> {
    let port = 5003;
    let mut outside = daemon.kernel("uplink0+outside0", &OUTSIDE.to_string(), 24, port)?;
    outside.answer()?;
    daemon.weft(&[
        "net",
        "add",
        "nat0",
        "mode=nat",
        "subnet=192.168.122.0/24",
        "egress=uplink:uplink0",
        "address=203.0.113.2/24",
        "next-hop=203.0.113.1",
    ])?;
    let mut one = guest(daemon, "nat0", 10, "", &[])?;
    report.step("nat: a guest reaches the outside", translated(daemon, &mut one, &mut outside, port));
    report.show(daemon, &["nat", "sessions", "nat0"]);
    Ok(())
}

fn translated(daemon: &Daemon, guest: &mut Process, outside: &mut Process, port: u16) -> Outcome {
    let (address, _) = lease(guest)?;
    let (pinged, _) = ping(guest, OUTSIDE, 100)?;
    let sent = guest.ask(&Order::TcpSend { to: OUTSIDE, port, bytes: TCP_BYTES })?;
    let (moved, mut values) = tcp_outcome(&sent, &outside.answer()?)?;
    let sessions = daemon.json(&["nat", "sessions", "nat0"])?;
    let sessions = sessions.as_array().map_or(0, Vec::len);
    ensure!(sessions > 0, "no session is told");
    values["sessions"] = sessions.into();
    Ok((format!("{address} as 203.0.113.2: TCP {moved}; ping {pinged}"), values))
}
