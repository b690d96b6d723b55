//! Bulk traffic of both families and protocols, and guests that get their addresses by DHCP.

use anyhow::{Context, Result, ensure};
use harness::{
    DhcpClient, DhcpProgram, Need, Netns, Program, Sniffer, Suite, conservation, counters, eventually,
};

use super::{Guest, HOST4, HOST6, LIMIT, NET, ROUTER4, Rig, reach, unreachable};

const TRAFFIC: &[Need] = &[Need::Namespaces, Need::Ping, Need::Iperf3, Need::Program("tcpdump")];
const DHCP: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc];

pub(super) fn register(suite: &mut Suite) {
    suite.add("routed_tcp_crosses_in_super_frames_between_guests_and_to_the_host", TRAFFIC, super_frames);
    suite.add("routed_udp_crosses_between_guests_and_to_the_host", TRAFFIC, datagrams);
    suite.add("routed_a_lease_makes_a_route_that_the_host_and_neighbours_use", DHCP, leases);
}

fn server(namespace: &Netns) -> Result<Program> {
    let mut server = Program::start(namespace, "iperf3", &["-s", "--forceflush"])?;
    server.await_log("Server listening", LIMIT)?;
    Ok(server)
}

/// What the receiver of an iperf3 run got, in bytes, and of how many datagrams how many were lost.
fn iperf(from: &Netns, to: &str, options: &str) -> Result<(u64, u64, u64)> {
    let told = from.run(&format!("iperf3 -J -c {to} --connect-timeout 10000 {options}"))?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    let end = &told["end"];
    let sums = ["sum_received", "sum"].map(|key| &end[key]);
    let sum = sums.into_iter().find(|sum| sum.is_object()).with_context(|| told.to_string())?;
    let number = |key: &str| sum[key].as_u64().unwrap_or(0);
    Ok((number("bytes"), number("packets"), number("lost_packets")))
}

fn super_frames() -> Result<()> {
    let rig = Rig::new("")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    let _servers = (server(&b.namespace)?, server(&rig.host)?);
    for (to, port) in [(b.v4(), "t20"), (b.v6(), "t20"), (HOST4.to_string(), NET), (HOST6.to_string(), NET)] {
        reach(&a.namespace, &to)?;
        let watched = if port == NET { &rig.host } else { &b.namespace };
        let sniffer = Sniffer::start(watched, port, "-c 5 tcp and greater 20000")?;
        let before = (counters(&rig.daemon, "t10")?, counters(&rig.daemon, port)?);
        let (bytes, _, _) = iperf(&a.namespace, &to, "-n 64M")?;
        // The receiver does not count what came in its last moments.
        ensure!(bytes >= 32 << 20, "{bytes} bytes came to {to}");
        let after = (counters(&rig.daemon, "t10")?, counters(&rig.daemon, port)?);
        let into = (after.0.rx_bytes - before.0.rx_bytes) / (after.0.rx_frames - before.0.rx_frames).max(1);
        let out = (after.1.tx_bytes - before.1.tx_bytes) / (after.1.tx_frames - before.1.tx_frames).max(1);
        ensure!(into > 10_000 && out > 10_000, "to {to}: mean frames of {into} bytes in, {out} out");
        // They are as large where they come out. tcpdump looks at the first few.
        eventually(&format!("super-frames to {to}, by tcpdump"), LIMIT, || {
            Ok(if sniffer.packets().is_empty() { Err("none".into()) } else { Ok(()) })
        })?;
        // Back, from the other side's segmentation.
        let before = counters(&rig.daemon, "t10")?;
        iperf(&a.namespace, &to, "-n 64M -R")?;
        let after = counters(&rig.daemon, "t10")?;
        let mean = (after.tx_bytes - before.tx_bytes) / (after.tx_frames - before.tx_frames).max(1);
        ensure!(mean > 10_000, "from {to}: mean frames of {mean} bytes");
    }
    conservation(&rig.daemon)?;
    Ok(())
}

fn datagrams() -> Result<()> {
    let rig = Rig::new("")?;
    let (a, b) = (rig.guest(10, "")?, rig.guest(20, "")?);
    let _servers = (server(&b.namespace)?, server(&rig.host)?);
    for to in [b.v4(), b.v6(), HOST4.to_string(), HOST6.to_string()] {
        reach(&a.namespace, &to)?;
        // Also as datagrams that are more than one frame each.
        for options in ["-l 1400", "-l 8000"] {
            let (bytes, sent, lost) = iperf(&a.namespace, &to, &format!("-u -b 20M -n 2M {options}"))?;
            ensure!(bytes > 0 && sent > 0, "{options} to {to}: nothing arrived");
            ensure!(lost * 10 < sent, "{options} to {to}: {lost} of {sent} datagrams were lost");
        }
    }
    conservation(&rig.daemon)?;
    Ok(())
}

fn leases() -> Result<()> {
    let rig = Rig::new("dhcp=10.7.0.100-10.7.0.110")?;
    let neighbour = rig.guest(10, "")?;
    rig.daemon.ok(&format!("port add {NET} t40 tap:t40"))?;
    let guest = Guest::without_addresses(&rig.host, 40)?;
    let mut client = DhcpClient::new(DhcpProgram::Udhcpc, &guest.namespace, "t40", "forty")?;
    let told = client.obtain(&guest.namespace)?;
    ensure!(told.router == ROUTER4, "{told:?}");
    let address = told.address.clone();
    eventually("the host's route to the lease", LIMIT, || {
        let routes = rig.routes()?;
        Ok(if rig.routes_to(&address)? == 1 { Ok(()) } else { Err(format!("{routes:?}")) })
    })?;
    reach(&rig.host, &address)?;
    reach(&neighbour.namespace, &address)?;
    reach(&guest.namespace, &neighbour.v4())?;
    reach(&guest.namespace, HOST4)?;
    // A guest that takes another address than its lease is not let through.
    let before = counters(&rig.daemon, "t40")?.dropped("rpf");
    guest.run("ip address add 10.7.0.99/32 dev t40")?;
    let output = guest.namespace.try_run(&format!("ping -c 1 -W 1 -I 10.7.0.99 {}", neighbour.v4()))?;
    ensure!(output.code != 0 && counters(&rig.daemon, "t40")?.dropped("rpf") > before);

    // With the lease, its route goes.
    client.release(&guest.namespace)?;
    eventually("the end of the host's route", LIMIT, || {
        let routes = rig.routes()?;
        Ok(if rig.routes_to(&address)? == 0 { Ok(()) } else { Err(format!("{routes:?}")) })
    })?;
    unreachable(&neighbour.namespace, &address)?;
    // With the port, too.
    let address = client.obtain(&guest.namespace)?.address;
    eventually("the route of another lease", LIMIT, || {
        Ok(if rig.routes_to(&address)? == 1 { Ok(()) } else { Err(format!("{:?}", rig.routes()?)) })
    })?;
    conservation(&rig.daemon)?;
    rig.daemon.ok("port del t40")?;
    eventually("the end of its route", LIMIT, || {
        Ok(if rig.routes_to(&address)? == 0 { Ok(()) } else { Err(format!("{:?}", rig.routes()?)) })
    })
}
