//! `egress=user`: port forwards, whom guests see by them and whom clients hear, and datagrams longer than the MTU.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use frontend::stack::Guest;
use harness::{Daemon, DaemonOptions, Need, Netns, Suite, conservation, eventually};

use crate::dns_outside::Outside;
use crate::lan::{LIMIT, Lan};
use crate::user::{EchoServer, Rig, asks, endpoint, joined, upload};

const NEEDS: &[Need] = &[Need::Namespaces];
const PINGS: &[Need] = &[Need::Namespaces, Need::Ping];

pub(crate) fn register(suite: &mut Suite) {
    suite.add_ordinary("by_sockets_a_guest_sees_its_clients_where_their_addresses_are_kept", NEEDS, kept);
    suite.add_ordinary(
        "by_sockets_forwards_of_a_file_answer_from_the_address_that_was_asked",
        NEEDS,
        configured,
    );
    suite.add("by_sockets_long_datagrams_and_pings_pass_in_fragments", PINGS, long);
}

fn counter(daemon: &Daemon, network: &str, name: &str) -> Result<u64> {
    let show = daemon.json(&format!("net show {network}"))?;
    show["resolved"]["counters"][name].as_u64().with_context(|| format!("no {name} in {show}"))
}

/// Where a guest is, by its one lease.
fn address(daemon: &Daemon) -> Result<String> {
    Ok(daemon.json("lease list n")?[0]["ip"].as_str().context("a lease")?.to_owned())
}

fn kept() -> Result<()> {
    // The guest may send nowhere: what answers a client is no flow of its own.
    let rig = Rig::new("outbound=deny:*")?;
    let mut guest = rig.guest(1)?;
    let (daemon, outside) = (&rig.daemon, &rig.outside.namespace);
    let own = address(daemon)?;
    daemon.ok(&format!("forward add n tcp 8080 {own}:80 source=keep"))?;
    daemon.ok(&format!("forward add n udp 5001 {own}:5001 source=keep"))?;
    daemon.ok(&format!("forward add n udp 5002 {own}:5002"))?;
    let list = daemon.json("forward list n")?;
    let sources: Vec<_> = list.as_array().into_iter().flatten().map(|f| f["source"].clone()).collect();
    ensure!(sources == ["keep", "keep", "gateway"], "{list}");

    let client = upload(outside, "10.99.0.1:8080", 1 << 20)?;
    let report = guest.tcp_receive(80, LIMIT)?;
    let client = joined(client)?;
    ensure!(report.bytes == 1 << 20 && report.peer == Some(client.into()), "{report:?} of {client}");

    let port = guest.udp_open(5001)?;
    let client = asks(outside, "10.99.0.1:5001")?;
    let senders = guest.udp_echo(&port, 1, LIMIT)?;
    ensure!(senders == [joined(client)?.into()], "{senders:?}");
    guest.udp_close(port);
    ensure!(counter(daemon, "n", "source_replaced")? == 0, "nobody was replaced");

    // Who cannot be answered by its address is the gateway, and the operator is told.
    let port = guest.udp_open(5001)?;
    let client = asks(&rig.host, "127.0.0.1:5001")?;
    let senders = guest.udp_echo(&port, 1, LIMIT)?;
    let client = joined(client)?;
    ensure!(senders == [endpoint(&format!("10.9.0.1:{}", client.port()))?], "{senders:?} of {client}");
    ensure!(counter(daemon, "n", "source_replaced")? == 1, "not counted");

    // It is deleted by the words without it, and its flows end with it.
    daemon.ok(&format!("forward del n tcp 8080 {own}:80"))?;
    daemon.ok(&format!("forward del n udp 5001 {own}:5001"))?;
    daemon.refused(1, &["forward", "add", "n", "tcp", "8080", &format!("{own}:80"), "source=drop"])?;
    let denied = counter(daemon, "n", "denied")?;
    guest.udp_send(&port, endpoint("10.99.0.2:4007")?, b"late", LIMIT)?;
    eventually("what is denied now", LIMIT, || {
        guest.poll()?;
        let now = counter(daemon, "n", "denied")?;
        Ok(if now > denied { Ok(()) } else { Err(format!("{now} denied")) })
    })?;
    conservation(daemon)?;
    Ok(())
}

fn configured() -> Result<()> {
    let host = Netns::new("host")?;
    let outside = Outside::beside(&host)?;
    host.run("ip address add 10.99.0.5/24 dev up0; ip address add 10.98.0.1/32 dev up0")?;
    outside.namespace.run("ip route add 10.98.0.1 via 10.99.0.1")?;
    let config = "[network.n]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\nlease = [\"52:54:00:00:00:01 10.9.0.77\"]\n\
                  forward = [\"udp 5001 10.9.0.77:5001\", \"udp 5002 10.9.0.77:5001 source=keep\", \"tcp 8080 10.9.0.77:80\"]\n";
    let daemon = DaemonOptions::default().netns(&host).unprivileged().config(config).start()?;
    let rig = Rig { daemon, outside, host };
    let mut guest = rig.guest(1)?;
    ensure!(address(&rig.daemon)? == "10.9.0.77", "{}", rig.daemon.json("lease list n")?);
    let outside = &rig.outside.namespace;
    // A client hears only whom it has asked: each of the host's addresses answers for itself.
    for port in [5001, 5002] {
        for to in ["10.99.0.1", "10.99.0.5", "10.98.0.1"] {
            answered(&mut guest, outside, &format!("{to}:{port}")).with_context(|| format!("{to}:{port}"))?;
        }
    }
    let client = upload(outside, "10.98.0.1:8080", 1 << 20)?;
    ensure!(guest.tcp_receive(80, LIMIT)?.bytes == 1 << 20, "not whole");
    joined(client)?;
    Ok(())
}

/// A client's datagram to the host, which the guest sends back.
fn answered(guest: &mut Guest, outside: &Netns, to: &str) -> Result<()> {
    let port = guest.udp_open(5001)?;
    let client = asks(outside, to)?;
    guest.udp_echo(&port, 1, LIMIT)?;
    guest.udp_close(port);
    joined(client)?;
    Ok(())
}

fn long() -> Result<()> {
    // A guest that is a Linux host: its kernel cuts and puts together.
    let lan = Lan::new("mode=nat subnet=10.9.0.0/24 subnet6=fd09::/64 domain=lab.test")?;
    let outside = Outside::beside(&lan.host)?;
    lan.host.run("echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range")?;
    lan.host.run(
        "echo 0 >/proc/sys/net/ipv6/conf/up0/disable_ipv6; ip -6 address add 2001:db8:99::1/64 dev up0 nodad",
    )?;
    outside.namespace.run("echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip -6 address add 2001:db8:99::2/64 dev eth0 nodad")?;
    let station = lan.station("t0", "")?;
    station.run("ip address add 10.9.0.9/24 dev t0; ip route add default via 10.9.0.1")?;
    station.run("echo 0 >/proc/sys/net/ipv6/conf/t0/disable_ipv6; ip -6 address add fd09::9/64 dev t0 nodad; ip -6 route replace default via fd09::1")?;
    station.await_reach("10.9.0.1")?;
    for to in ["10.99.0.2", "10.9.0.1", "2001:db8:99::2", "fd09::1"] {
        let told = station.run(&format!("ping -c 3 -i 0.2 -W 10 -s 4000 {to}"));
        told.with_context(|| format!("pings of {to}"))?;
    }
    for (any, to) in [("0.0.0.0:0", "10.99.0.2:4007"), ("[::]:0", "[2001:db8:99::2]:4007")] {
        let _echo = EchoServer::start(&outside.namespace, to)?;
        let exchange = station.namespace.spawn(move || {
            let client = UdpSocket::bind(any)?;
            client.set_read_timeout(Some(LIMIT))?;
            client.connect(to)?;
            let mut room = vec![0; 70_000];
            for len in [1473, 8000, 40_000] {
                let sent: Vec<u8> = (0..len).map(|n| (n / 3) as u8).collect();
                client.send(&sent)?;
                let n = client.recv(&mut room).with_context(|| format!("{len} bytes of {to}"))?;
                ensure!(room[..n] == sent, "{n} of {len} bytes");
            }
            Ok(())
        })?;
        joined(exchange)?;
    }
    // Three long datagrams of each family, and twelve long pings.
    let whole = counter(&lan.daemon, "lan0", "reassembled")?;
    ensure!(whole >= 18, "{whole} were put together");
    conservation(&lan.daemon)?;
    Ok(())
}
