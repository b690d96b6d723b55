//! A million translations at once, and one guest that wants too many.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::device::{Config, NetDevice, VnetHeader};
use frontend::wire::{self, Flow};
use harness::{Need, Suite, conservation, counters, eventually};
use serde_json::Value;

use super::rig::{FAR, LIMIT, OUTSIDE, World, at};
use super::talk::{Server, ask_tcp, ask_udp};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc];

/// Guests, ports of each, and remotes of each of those ports: a million sessions by five thousand mappings. All guests
/// are behind one port of the switch, so they are no more than that may have.
const GUESTS: u16 = 50;
const PORTS: u16 = 100;
const REMOTES: u16 = 200;
const SESSIONS: u64 = GUESTS as u64 * PORTS as u64 * REMOTES as u64;

/// Bytes of the daemon's memory that a session may take, with its share of mappings, hosts and room in the tables.
const SESSION_BYTES_MAX: u64 = 256;

pub(crate) fn register(suite: &mut Suite) {
    suite.add("nat_holds_a_million_sessions_within_bounded_memory", NEEDS, million);
    suite.add("nat_quota_of_one_guest_leaves_the_others_alone", NEEDS, quota);
}

/// A port that sends datagrams of whatever guest the test wants.
struct Generator {
    device: NetDevice,
    frame: Vec<u8>,
}

impl Generator {
    /// On a new vhost-user port of network `n`.
    fn new(world: &World) -> Result<Self> {
        let socket = world.daemon.path("generator");
        world.daemon.ok(&format!("port add n generator vhost-user:{}", socket.display()))?;
        let config = Config::default().mac_number(77);
        let src_mac = config.mac;
        let device = NetDevice::connect(&socket, config)?;
        world.daemon.await_port("generator", "up")?;
        let gateway = world.resolved("gateway_mac")?;
        let octets = gateway.as_str().context("no MAC address of the gateway")?.split(':');
        let octets: Vec<u8> = octets.map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<_, _>>()?;
        let dst_mac = octets.try_into().ok().context("a MAC address of six octets")?;
        let flow = Flow { src_mac, dst_mac, src: [0; 4], dst: [0; 4], src_port: 0, dst_port: 9 };
        Ok(Generator { device, frame: wire::udp(&flow, b"a datagram that nobody answers") })
    }

    /// Sends a datagram from a guest's port to a remote; frames are told of in batches, by [`Generator::flush`] at last.
    fn send(&mut self, source: [u8; 4], port: u16, remote: [u8; 4]) -> Result<()> {
        let frame = &mut self.frame;
        frame[26..30].copy_from_slice(&source);
        frame[30..34].copy_from_slice(&remote);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        // The header's checksum; the datagram has none (RFC 768).
        frame[24..26].fill(0);
        frame[40..42].fill(0);
        let sum = wire::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let tx = &mut self.device.pairs_mut()[0].tx;
        if !tx.push(&VnetHeader::PLAIN, &[frame])? {
            tx.send(&VnetHeader::PLAIN, &[frame])?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.device.pairs_mut()[0].tx.drain(LIMIT)?)
    }
}

fn sessions(world: &World) -> Result<u64> {
    world.resolved("sessions")?.as_u64().context("no number of sessions")
}

/// Bytes of memory that the daemon has now.
fn resident(world: &World) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kib * 1024)
}

/// A network of many guests, and remotes that swallow what they are sent.
fn crowd(keys: &str) -> Result<World> {
    let world = World::with(&format!(
        "mode=nat subnet=10.77.0.0/16 dhcp=10.77.0.2-10.77.0.200 egress=uplink:eth9 address={OUTSIDE}/24 \
         next-hop=203.0.113.254 {keys}"
    ))?;
    world.outside.router.run("ip route add blackhole 198.18.0.0/15")?;
    Ok(world)
}

fn remote(n: u16) -> [u8; 4] {
    let [high, low] = n.to_be_bytes();
    [198, 18, high, low]
}

fn million() -> Result<()> {
    let world = crowd("quota=1000000")?;
    let guest = world.guest("t0")?;
    guest.reaches(FAR)?;
    let _far = Server::start(&world.outside.far, "far", &[80])?;
    let mut generator = Generator::new(&world)?;
    let (before, others) = (resident(&world)?, sessions(&world)?);
    let mut slowest = Duration::ZERO;
    for host in 0..GUESTS {
        for n in 0..PORTS * REMOTES {
            // Neighbouring packets are of different mappings.
            let (port, to) = (n % PORTS, n / PORTS);
            generator.send([10, 77, 1, u8::try_from(host)?], 1024 + port, remote(to))?;
        }
        if host % 10 == 0 {
            // The control plane answers meanwhile.
            let asked = std::time::Instant::now();
            world.daemon.ok("net show n")?;
            slowest = slowest.max(asked.elapsed());
        }
    }
    generator.flush()?;
    let held = eventually("a million sessions", LIMIT, || {
        let held = sessions(&world)?;
        Ok(if held >= SESSIONS { Ok(held) } else { Err(format!("{held} sessions")) })
    })?;
    let after = resident(&world)?;
    let each = after.saturating_sub(before) / SESSIONS;
    println!(
        "{held} sessions: {each} bytes each ({} MiB before, {} MiB after); net show took at most {slowest:?}",
        before >> 20,
        after >> 20
    );
    ensure!(held <= SESSIONS + others + 10, "{held} sessions of {SESSIONS} flows");
    ensure!(each <= SESSION_BYTES_MAX, "a session takes {each} bytes");

    // They are what they have to be: an endpoint outside for each endpoint inside, and no two with the same.
    let list = world.daemon.json("nat sessions n limit=20000")?;
    let list = list.as_array().context("nat sessions is no array")?;
    ensure!(list.len() == 20_000, "{} sessions are listed", list.len());
    let (mut outside_of, mut inside_of) = (HashMap::new(), HashMap::new());
    for session in list {
        let text = |key: &str| session[key].as_str().map(str::to_string).context("not a text");
        if session["proto"] != "udp" {
            continue;
        }
        let (inside, outside) = (text("inside")?, text("outside")?);
        ensure!(outside.starts_with(&format!("{OUTSIDE}:")), "{session}");
        let known = outside_of.entry(inside.clone()).or_insert_with(|| outside.clone());
        ensure!(*known == outside, "{inside} has {known} and {outside}");
        let known = inside_of.entry(outside.clone()).or_insert_with(|| inside.clone());
        ensure!(*known == inside, "{outside} stands for {known} and {inside}");
    }
    // Others come and go as before.
    for _ in 0..3 {
        let told = ask_tcp(&guest.namespace, &at(FAR, 80))?;
        ensure!(told.contains(OUTSIDE), "{told}");
    }
    world.daemon.ok(&format!("forward add n tcp 8080 {}:80", guest.address))?;
    let _inside = Server::start(&guest.namespace, "inside", &[80])?;
    let told = ask_tcp(&world.outside.far, &at(OUTSIDE, 8080))?;
    ensure!(told.starts_with("inside 80"), "{told}");
    conservation(&world.daemon)?;
    Ok(())
}

fn quota() -> Result<()> {
    let world = crowd("quota=1000")?;
    let guest = world.guest("t0")?;
    guest.reaches(FAR)?;
    let _far = Server::start(&world.outside.far, "far", &[80, 53])?;
    let mut generator = Generator::new(&world)?;
    let greedy = [10, 77, 1, 1];
    // One session at first, so that the way out is known to all that follow.
    generator.send(greedy, 1024, remote(0))?;
    generator.flush()?;
    eventually("its first session", LIMIT, || {
        let list = world.daemon.json("nat sessions n")?;
        Ok(if list.to_string().contains("10.77.1.1:1024") { Ok(()) } else { Err(list.to_string()) })
    })?;
    let before = counters(&world.daemon, "generator")?;
    for n in 0..5_000 {
        generator.send(greedy, 1024, remote(n))?;
    }
    generator.flush()?;
    let of = |inside: &str| -> Result<usize> {
        let list = world.daemon.json("nat sessions n")?;
        let list = list.as_array().context("nat sessions is no array")?.clone();
        let starts = |s: &&Value| s["inside"].as_str().is_some_and(|i| i.starts_with(inside));
        Ok(list.iter().filter(starts).count())
    };
    let held = eventually("its quota of sessions", LIMIT, || {
        let held = of("10.77.1.1:")?;
        Ok(if held >= 1_000 { Ok(held) } else { Err(format!("{held} sessions")) })
    })?;
    ensure!(held == 1_000, "a guest with a quota of 1000 has {held} sessions");
    let ports = conservation(&world.daemon)?;
    let port = ports.iter().find(|port| port.name == "generator").context("no port generator")?;
    let refused = port.dropped("nat_quota") - before.dropped("nat_quota");
    ensure!(refused == 4_000, "{refused} frames were dropped for the quota: {port:?}");

    // Another guest opens flows of every kind, as many as it may, while the greedy one goes on.
    for round in 0..20 {
        for n in 5_000..5_100 {
            generator.send(greedy, 2000 + round, remote(n))?;
        }
        let told = ask_tcp(&guest.namespace, &at(FAR, 80))?;
        ensure!(told.contains(OUTSIDE), "{told}");
        let told = ask_udp(&guest.namespace, &at(FAR, 53), 0)?;
        ensure!(told.contains(OUTSIDE), "{told}");
    }
    guest.reaches(FAR)?;
    // Addresses that it invents are behind the same port, and gain it nothing.
    generator.flush()?;
    let before = counters(&world.daemon, "generator")?;
    for n in 0..500 {
        generator.send([10, 77, 1, 2], 1024, remote(n))?;
    }
    generator.flush()?;
    eventually("refusals of an invented guest", LIMIT, || {
        let refused =
            counters(&world.daemon, "generator")?.dropped("nat_quota") - before.dropped("nat_quota");
        Ok(if refused >= 500 { Ok(()) } else { Err(format!("{refused} frames")) })
    })?;
    ensure!(of("10.77.1.2:")? == 0, "an invented guest has {} sessions", of("10.77.1.2:")?);
    ensure!(of("10.77.1.1:")? == 1_000, "the greedy one has {} sessions", of("10.77.1.1:")?);
    conservation(&world.daemon)?;
    Ok(())
}
