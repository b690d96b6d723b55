//! An uplink whose address comes from a DHCP server of the outside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Need, Netns, Program, Suite, conservation, eventually};
use serde_json::Value;
use tempfile::TempDir;

use super::rig::{FAR, Inside, LIMIT, ROUTER, World, at};
use super::talk::{Connection, Server, ask_tcp};

const DNSMASQ: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Dnsmasq];
const UDHCPD: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Udhcpd];

/// Waits for this many of the short leases.
const LONG: Duration = Duration::from_secs(60);

const BY_DHCP: &str = "mode=nat subnet=192.168.77.0/24 egress=uplink:eth9";

pub(crate) fn register(suite: &mut Suite) {
    suite.add("nat_uplink_gets_its_address_and_router_by_dhcp", DNSMASQ, gets_an_address);
    suite.add("nat_uplink_follows_its_lease_renewed_changed_and_lost", UDHCPD, follows_its_lease);
}

/// The address that the network's translation has.
fn address(world: &World) -> Result<Value> {
    world.resolved("address")
}

fn await_address(world: &World, wanted: Option<&str>, limit: Duration) -> Result<()> {
    eventually(&format!("the uplink's address {wanted:?}"), limit, || {
        let address = address(world)?;
        Ok(if address.as_str() == wanted { Ok(()) } else { Err(address.to_string()) })
    })
}

fn gets_an_address() -> Result<()> {
    let world = World::with(BY_DHCP)?;
    let guest = world.guest("t0")?;
    // Before there is an address there is no way out, and the guest is told so.
    ensure!(address(&world)?.is_null(), "an address of nobody: {}", address(&world)?);
    let told = guest.namespace.try_run(&format!("ping -n -c 1 -W 2 {FAR}"))?;
    ensure!(told.code != 0 && told.stdout.contains("Unreachable"), "without an address: {}", told.stdout);
    let _far = Server::start(&world.outside.far, "far", &[80])?;
    let _server = Program::start(
        &world.outside.router,
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--port=0",
            "--interface=wan0",
            "--bind-interfaces",
            "--dhcp-authoritative",
            "--dhcp-range=203.0.113.50,203.0.113.50,255.255.255.0,2m",
            &format!("--dhcp-option=option:router,{ROUTER}"),
            &format!("--dhcp-leasefile={}", world.daemon.path("leases").display()),
            "--log-dhcp",
        ],
    )?;
    await_address(&world, Some("203.0.113.50/24"), LONG)?;
    ensure!(world.resolved("next_hop")? == ROUTER, "next hop: {}", world.resolved("next_hop")?);
    let shown = world.daemon.ok("net show n")?;
    ensure!(shown.contains("203.0.113.50/24") && shown.contains(ROUTER), "net show: {shown}");
    guest.reaches(FAR)?;
    let told = ask_tcp(&guest.namespace, &at(FAR, 80))?;
    ensure!(told.contains("203.0.113.50:"), "seen from the outside: {told}");
    // The address is answered for on the uplink.
    world.outside.router.run("ping -n -c 1 -W 5 203.0.113.50")?;
    conservation(&world.daemon)?;
    Ok(())
}

/// busybox's server: its leases may be short.
struct Udhcpd {
    dir: TempDir,
    server: Option<Program>,
}

impl Udhcpd {
    /// Serves one address for ten seconds.
    fn serve(&mut self, router: &Netns, address: &str) -> Result<()> {
        self.server = None;
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let config = format!(
            "start {address}\nend {address}\ninterface wan0\nmin_lease 5\nlease_file {}\npidfile {}\n\
             option subnet 255.255.255.0\noption router {ROUTER}\noption lease 10\n",
            path("leases"),
            path("pid"),
        );
        std::fs::write(path("conf"), config)?;
        std::fs::write(path("leases"), "")?;
        self.server = Some(Program::start(router, "busybox", &["udhcpd", "-f", &path("conf")])?);
        Ok(())
    }

    fn log(&self) -> String {
        self.server.as_ref().map(Program::log).unwrap_or_default()
    }
}

fn follows_its_lease() -> Result<()> {
    let world = World::with(BY_DHCP)?;
    let guest: Inside = world.guest("t0")?;
    let _far = Server::start(&world.outside.far, "far", &[80])?;
    let _inside = Server::start(&guest.namespace, "inside", &[80])?;
    world.daemon.ok(&format!("forward add n tcp 8080 {}:80", guest.address))?;
    let mut server = Udhcpd { dir: tempfile::tempdir()?, server: None };
    server.serve(&world.outside.router, "203.0.113.60")?;
    await_address(&world, Some("203.0.113.60/24"), LONG)?;
    guest.reaches(FAR)?;
    let mut outbound = Connection::open(&guest.namespace, &at(FAR, 80))?;
    let mut inbound = Connection::open(&world.outside.far, &at("203.0.113.60", 8080))?;

    // Renewed three times, it is more than a lease older, and nothing has ended.
    let renewed = |server: &Udhcpd| server.log().matches("sending ACK").count();
    eventually("renewals", LONG, || {
        let count = renewed(&server);
        Ok(if count >= 4 { Ok(()) } else { Err(format!("{count} ACKs: {}", server.log())) })
    })?;
    await_address(&world, Some("203.0.113.60/24"), LIMIT)?;
    outbound.works().context("after renewals")?;
    inbound.works().context("after renewals")?;

    // Another address: what ran by the old one ends, what begins has the new one, and so have forwards.
    server.serve(&world.outside.router, "203.0.113.61")?;
    await_address(&world, Some("203.0.113.61/24"), LONG)?;
    guest.reaches(FAR)?;
    outbound.is_dead().context("out by the old address")?;
    inbound.is_dead().context("in by the old address")?;
    let told = ask_tcp(&guest.namespace, &at(FAR, 80))?;
    ensure!(told.contains("203.0.113.61:"), "seen from the outside: {told}");
    let told = ask_tcp(&world.outside.far, &at("203.0.113.61", 8080))?;
    ensure!(told.starts_with("inside 80"), "{told}");
    let sessions = world.daemon.json("nat sessions n")?;
    ensure!(!sessions.to_string().contains("203.0.113.60:"), "sessions of the old address: {sessions}");
    let old = world.outside.router.try_run("ping -n -c 1 -W 2 203.0.113.60")?;
    ensure!(old.code != 0, "the old address still answers");

    // No server any more: the lease runs out, and that is told.
    server.server = None;
    await_address(&world, None, LONG)?;
    let shown = world.daemon.ok("net show n")?;
    ensure!(!shown.contains("203.0.113.61"), "net show: {shown}");
    ensure!(guest.namespace.try_run(&format!("ping -n -c 1 -W 2 {FAR}"))?.code != 0, "there is a way out");
    guest.reaches("192.168.77.1")?;

    // It comes back.
    server.serve(&world.outside.router, "203.0.113.62")?;
    await_address(&world, Some("203.0.113.62/24"), LONG)?;
    guest.reaches(FAR)?;
    conservation(&world.daemon)?;
    Ok(())
}
