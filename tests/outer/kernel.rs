//! Ports whose peer is the kernel: taps and interfaces, with the offloads of each side on and off.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, Need, Netns, Suite, conservation, counters, eventually};

use crate::machine::{Machine, Peer, await_reach, exchange, fetch, iperf, ping, ping_full_mtu};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping];
const TRAFFIC: &[Need] = &[Need::Namespaces, Need::Ping, Need::Iperf3, Need::Ethtool];

pub(crate) fn register(suite: &mut Suite) {
    suite.add("tap_and_netdev_carry_whole_payloads_with_tso_on_and_off", TRAFFIC, tap_and_netdev_offloads);
    suite.add("tap_to_tap_super_frames_cross_as_one_frame", TRAFFIC, super_frames_cross_as_one);
    suite.add("bridge_uplink_veth_reaches_the_outside", NEEDS, uplink_veth);
    suite.add("bridge_host_interface_answers_pings", NEEDS, host_interface);
    suite.add("netdev_comes_back_when_its_interface_does", NEEDS, netdev_comes_back);
    suite.add("netdev_ignores_its_own_transmissions", NEEDS, netdev_ignores_its_own);
    suite.add("networks_are_apart_from_each_other", NEEDS, networks_are_apart);
    suite.add("frames_above_the_egress_mtu_are_dropped_whole", NEEDS, egress_mtu);
    suite.add("deleting_a_port_stops_its_next_frame", NEEDS, deleting_a_port);
}

/// A daemon in a namespace of its own, with network `n`.
fn switch() -> Result<(Netns, Daemon)> {
    let host = Netns::new("host")?;
    let daemon = Daemon::start_in(&host)?;
    daemon.ok("net add n mode=bridge")?;
    Ok((host, daemon))
}

fn tap_peer(host: &Netns, daemon: &Daemon, name: &str, address: &str) -> Result<Peer> {
    let peer = Peer::new(name, address)?;
    daemon.ok(&format!("port add n {name} tap:{name}"))?;
    peer.adopt(host, name)?;
    daemon.await_port(name, "up")?;
    Ok(peer)
}

fn veth_peer(host: &Netns, daemon: &Daemon, name: &str, address: &str) -> Result<Peer> {
    let peer = Peer::new(name, address)?;
    peer.veth(host, name)?;
    daemon.ok(&format!("port add n {name} netdev:{name}"))?;
    daemon.await_port(name, "up")?;
    Ok(peer)
}

fn tap_and_netdev_offloads() -> Result<()> {
    let (host, daemon) = switch()?;
    let mut tap = tap_peer(&host, &daemon, "t0", "10.9.0.1")?;
    let mut veth = veth_peer(&host, &daemon, "v0", "10.9.0.2")?;
    let (tap_sum, veth_sum) =
        exchange(&mut tap, &mut veth).context("with the offloads of the kernel's choice")?;
    for (tap_tso, veth_tso) in [("on", "on"), ("on", "off"), ("off", "on"), ("off", "off")] {
        let told = format!("TSO {tap_tso} on the tap, {veth_tso} on the veth");
        tap.run(&format!("ethtool -K t0 tso {tap_tso} gso {tap_tso} gro {tap_tso}"))?;
        veth.run(&format!("ethtool -K eth0 tso {veth_tso} gso {veth_tso} gro {veth_tso}"))?;
        ping(&mut tap, "10.9.0.2").with_context(|| told.clone())?;
        iperf(&mut tap, "10.9.0.2", false).with_context(|| told.clone())?;
        iperf(&mut tap, "10.9.0.2", true).with_context(|| told.clone())?;
        fetch(&mut tap, "10.9.0.2", &veth_sum).with_context(|| told.clone())?;
        fetch(&mut veth, "10.9.0.1", &tap_sum).with_context(|| told.clone())?;
    }
    conservation(&daemon)?;
    Ok(())
}

fn super_frames_cross_as_one() -> Result<()> {
    let (host, daemon) = switch()?;
    let mut a = tap_peer(&host, &daemon, "t0", "10.9.0.1")?;
    let mut b = tap_peer(&host, &daemon, "t1", "10.9.0.2")?;
    exchange(&mut a, &mut b)?;
    let before = counters(&daemon, "t0")?;
    iperf(&mut a, "10.9.0.2", false)?;
    let after = counters(&daemon, "t0")?;
    let mean = (after.rx_bytes - before.rx_bytes) / (after.rx_frames - before.rx_frames).max(1);
    ensure!(mean > 10_000, "the mean frame from a tap with TSO has {mean} bytes");
    conservation(&daemon)?;
    Ok(())
}

fn uplink_veth() -> Result<()> {
    let host = Netns::new("host")?;
    let daemon = Daemon::start_in(&host)?;
    let outside = Peer::new("outside", "10.9.0.254")?;
    outside.veth(&host, "eth9")?;
    daemon.ok("net add n mode=bridge uplink=eth9")?;
    let mut inside = tap_peer(&host, &daemon, "t0", "10.9.0.1")?;
    await_reach(&mut inside, "10.9.0.254", Duration::from_secs(10))?;
    ping_full_mtu(&mut inside, "10.9.0.254", 1500)?;
    conservation(&daemon)?;
    // What the switch did to the interface, promiscuous mode above all, ends with the network.
    daemon.ok("port del t0")?;
    daemon.ok("net del n")?;
    let link = host.run("ip -d link show dev eth9")?;
    ensure!(link.contains("promiscuity 0"), "eth9 is left promiscuous: {link}");
    Ok(())
}

fn host_interface() -> Result<()> {
    let host = Netns::new("host")?;
    let daemon = Daemon::start_in(&host)?;
    daemon.ok("net add lan0 mode=bridge host-if=on")?;
    ensure!(host.interfaces()?.contains(&"lan0".to_string()), "no interface of the network's name");
    host.run("ip address add 10.9.0.254/24 dev lan0; ip link set lan0 up")?;
    let mut peer = Peer::new("t0", "10.9.0.1")?;
    daemon.ok("port add lan0 t0 tap:t0")?;
    peer.adopt(&host, "t0")?;
    daemon.await_port("t0", "up")?;
    ping(&mut peer, "10.9.0.254")?;
    host.run("ping -c 2 -i 0.2 -W 3 10.9.0.1")?;
    conservation(&daemon)?;
    daemon.ok("net set lan0 host-if=off")?;
    ensure!(!host.interfaces()?.contains(&"lan0".to_string()), "host-if=off leaves the interface");
    Ok(())
}

fn netdev_comes_back() -> Result<()> {
    let (host, daemon) = switch()?;
    let mut tap = tap_peer(&host, &daemon, "t0", "10.9.0.1")?;
    let veth = veth_peer(&host, &daemon, "v0", "10.9.0.2")?;
    ping(&mut tap, "10.9.0.2")?;
    let holdings = daemon.holdings()?;

    host.run("ip link set v0 down")?;
    daemon.await_port("v0", "down")?;
    host.run("ip link set v0 up")?;
    daemon.await_port("v0", "up")?;
    await_reach(&mut tap, "10.9.0.2", Duration::from_secs(10)).context("after down and up")?;

    host.run("ip link del v0")?;
    eventually("the port noticing", Duration::from_secs(10), || {
        let port = daemon.port("v0")?;
        Ok(if port["state"] == "up" { Err(port.to_string()) } else { Ok(()) })
    })?;
    veth.veth(&host, "v0")?;
    daemon.await_port("v0", "up")?;
    // The interface that returned has another MAC address.
    tap.run("ip neighbour flush dev t0")?;
    await_reach(&mut tap, "10.9.0.2", Duration::from_secs(10)).context("after removal and return")?;
    let now = daemon.holdings()?;
    ensure!(now == holdings, "the daemon held {holdings:?}, and holds {now:?}");
    conservation(&daemon)?;
    Ok(())
}

fn netdev_ignores_its_own() -> Result<()> {
    let (host, daemon) = switch()?;
    let mut tap = tap_peer(&host, &daemon, "t0", "10.9.0.1")?;
    let _veth = veth_peer(&host, &daemon, "v0", "10.9.0.2")?;
    ping(&mut tap, "10.9.0.2")?;
    let ports = conservation(&daemon)?;
    // Three echoes, their replies and ARP: a handful each way. A port that heard itself would count them twice.
    let v0 = ports.iter().find(|port| port.name == "v0").context("no port v0")?;
    ensure!(v0.rx_frames <= v0.tx_frames + 2, "more came from the interface than can have: {v0:?}");
    let table = daemon.json("fdb show n")?;
    let t0_mac = tap.run("cat /sys/class/net/t0/address")?;
    let entries = table.as_array().context("fdb show")?;
    let entry = entries.iter().find(|entry| entry["mac"] == t0_mac.trim()).context("t0 is not learned")?;
    ensure!(entry["port"] == "t0", "t0's address was learned elsewhere: {entry}");
    Ok(())
}

fn networks_are_apart() -> Result<()> {
    let (host, daemon) = switch()?;
    let mut a = tap_peer(&host, &daemon, "t0", "10.9.0.1")?;
    daemon.ok("net add m mode=bridge")?;
    let b = Peer::new("other", "10.9.0.2")?;
    daemon.ok("port add m t1 tap:t1")?;
    b.adopt(&host, "t1")?;
    daemon.await_port("t1", "up")?;
    let output = a.namespace.try_run("ping -c 2 -i 0.2 -W 1 10.9.0.2")?;
    ensure!(output.code != 0, "a ping crossed from one network to another");
    ensure!(counters(&daemon, "t1")?.tx_frames == 0, "frames crossed: {:?}", counters(&daemon, "t1")?);
    conservation(&daemon)?;
    let c = tap_peer(&host, &daemon, "t2", "10.9.0.3")?;
    ping(&mut a, c.address())
}

fn egress_mtu() -> Result<()> {
    let (host, daemon) = switch()?;
    let mut big = Peer::new("big", "10.9.0.1")?;
    daemon.ok("port add n t0 tap:t0 mtu=9000")?;
    big.adopt(&host, "t0")?;
    big.run("ip link set t0 mtu 9000")?;
    let _small = tap_peer(&host, &daemon, "t1", "10.9.0.2")?;
    ping(&mut big, "10.9.0.2")?;
    ping_full_mtu(&mut big, "10.9.0.2", 1500)?;
    let output = big.namespace.try_run("ping -c 2 -i 0.2 -W 1 -M do -s 1473 10.9.0.2")?;
    ensure!(output.code != 0, "a frame above the egress' MTU was answered");
    let ports = conservation(&daemon)?;
    let t1 = ports.iter().find(|port| port.name == "t1").context("no port t1")?;
    ensure!(t1.dropped("egress_mtu") == 2, "{t1:?}");
    Ok(())
}

fn deleting_a_port() -> Result<()> {
    let (host, daemon) = switch()?;
    let mut a = tap_peer(&host, &daemon, "t0", "10.9.0.1")?;
    let _b = tap_peer(&host, &daemon, "t1", "10.9.0.2")?;
    ping(&mut a, "10.9.0.2")?;
    daemon.ok("port del t1")?;
    let table = daemon.json("fdb show n")?;
    let stale = table.as_array().context("fdb show")?.iter().find(|entry| entry["port"] == "t1");
    ensure!(stale.is_none(), "an entry outlived its port: {stale:?}");
    ensure!(a.namespace.try_run("ping -c 1 -W 1 10.9.0.2")?.code != 0, "a deleted port answers");
    daemon.refused(4, &["port", "show", "t1"])?;
    Ok(())
}
