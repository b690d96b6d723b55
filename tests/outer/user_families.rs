//! `egress=user` over IPv6: what guests have by IPv4 they have by the other family, too.

use std::time::Duration;

use anyhow::{Result, ensure};
use frontend::device::{Config, NetDevice};
use frontend::stack::{Guest, GuestConfig, IpAddress};
use harness::{Need, Suite, conservation};

use crate::lan::LIMIT;
use crate::user::{EchoServer, Rig, asks, confirming, echoed, endpoint, joined, upload};

const NEEDS: &[Need] = &[Need::Namespaces];

/// What a network has for it, besides what it has.
pub(crate) const WORDS: &str = "subnet6=fd00:9::/64";
const GATEWAY: &str = "fd00:9::1";
const GUEST: &str = "fd00:9::50";
pub(crate) const HOST: &str = "fd99::1";
pub(crate) const OUTSIDE: &str = "fd99::2";

pub(crate) fn register(suite: &mut Suite) {
    suite.add_ordinary("by_sockets_a_guest_has_the_outside_by_ipv6_and_the_outside_has_it", NEEDS, both_ways);
}

/// Gives the host and its outside addresses.
pub(crate) fn enable(rig: &Rig) -> Result<()> {
    for (namespace, interface, address) in
        [(&rig.host, "up0", HOST), (&rig.outside.namespace, "eth0", OUTSIDE)]
    {
        namespace.run(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/{interface}/disable_ipv6
             ip address add {address}/64 dev {interface} nodad"
        ))?;
    }
    Ok(())
}

fn both_ways() -> Result<()> {
    let rig = Rig::new(WORDS)?;
    enable(&rig)?;
    let outside = &rig.outside.namespace;
    let socket = rig.daemon.path("p1");
    rig.daemon.ok(&format!("port add n p1 vhost-user:{}", socket.display()))?;
    let mut config = GuestConfig::address(&format!("{GUEST}/64"))?;
    config.gateways.push(GATEWAY.parse::<std::net::Ipv6Addr>()?.into());
    let mut guest = Guest::new(NetDevice::connect(&socket, Config::default().mac_number(1))?, config)?;

    for to in [GATEWAY, OUTSIDE, HOST] {
        let to = IpAddress::Ipv6(to.parse()?);
        let report = guest.ping(to, 5, 1000, Duration::ZERO, LIMIT)?;
        ensure!((report.received, report.corrupt) == (5, 0), "{to}: {report:?}");
    }
    let echo = EchoServer::start(outside, &format!("[{OUTSIDE}]:4007"))?;
    for len in [0, 1, 1452] {
        echoed(&mut guest, &format!("[{OUTSIDE}]:4007"), &vec![b'x'; len])?;
    }
    let server = format!("[{OUTSIDE}]:4008");
    let confirmed = confirming(outside, &server)?;
    let report = guest.tcp_send(endpoint(&server)?, 4 << 20, 7, LIMIT)?;
    ensure!(report.is_whole(), "{report:?}");
    let host: std::net::IpAddr = HOST.parse()?;
    let peer = joined(confirmed)?;
    ensure!(peer.ip() == host, "the outside saw {peer}");
    let senders = echo.end()?;
    ensure!(senders.iter().all(|sender| sender.ip() == host), "the outside saw {senders:?}");
    let sessions = rig.daemon.json("nat sessions n")?;
    for proto in ["udp", "icmp", "tcp"] {
        let list = sessions.as_array().into_iter().flatten();
        let mut inside = list.filter(|s| s["proto"] == proto).filter_map(|s| s["inside"].as_str());
        ensure!(inside.any(|inside| inside.starts_with(&format!("[{GUEST}]"))), "no {proto}: {sessions}");
    }
    // The cloud's metadata, and the host's own.
    for closed in ["[fd00:ec2::254]:80", "[::1]:4008", "[fd00:9::1]:4008"] {
        let port = guest.udp_open(0)?;
        guest.udp_send(&port, endpoint(closed)?, b"closed", LIMIT)?;
        guest.udp_close(port);
    }
    harness::eventually("what is closed counted", LIMIT, || {
        let show = rig.daemon.json("net show n")?;
        Ok(if show["resolved"]["counters"]["denied"] == 3 { Ok(()) } else { Err(show.to_string()) })
    })?;

    for forward in [format!("tcp [::]:8080 [{GUEST}]:80"), format!("udp [::]:5001 [{GUEST}]:5001")] {
        rig.daemon.ok(&format!("forward add n {forward}"))?;
    }
    let client = upload(outside, &format!("[{HOST}]:8080"), 4 << 20)?;
    let report = guest.tcp_receive(80, LIMIT)?;
    joined(client)?;
    ensure!(report.bytes == 4 << 20, "{report:?}");
    let port = guest.udp_open(5001)?;
    let client = asks(outside, &format!("[{HOST}]:5001"))?;
    let senders = guest.udp_echo(&port, 1, LIMIT)?;
    let client = joined(client)?;
    ensure!(senders == [endpoint(&format!("[{GATEWAY}]:{}", client.port()))?], "{senders:?} of {client}");
    conservation(&rig.daemon)?;
    Ok(())
}
