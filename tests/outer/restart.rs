//! Peers that die and come back, on either side of the socket, twenty times.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{
    Daemon, DaemonOptions, Flow, GuestOptions, Need, Netns, Role, Suite, conservation, counters, eventually,
};

use crate::machine::{GuestMachine, Machine, Peer, await_reach, payload_of};

const NEEDS: &[Need] = &[Need::Guests, Need::Namespaces, Need::Ping, Need::Iperf3];
const TIMES: usize = 20;
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn register(suite: &mut Suite) {
    suite.add("guest_killed_under_traffic_20_times_harms_nobody", NEEDS, guest_killed);
    suite.add("daemon_killed_under_a_guest_20_times_resumes_by_itself", NEEDS, || {
        daemon_killed(Role::Reconnecting, "", TIMES)
    });
    suite.add("daemon_killed_under_a_listening_qemu_resumes_by_itself", NEEDS, || {
        daemon_killed(Role::Server, "", TIMES / 4)
    });
    suite.add("daemon_killed_under_a_guest_with_packed_rings_resumes_by_itself", NEEDS, || {
        daemon_killed(Role::Reconnecting, "packed=on", TIMES / 2)
    });
}

/// The shell command that fetches payloads without end, in the background.
fn load(server: &str) -> String {
    format!("(while true; do {}; done) >/dev/null 2>&1 & echo $! >/run/load", payload_of(server))
}

fn guest_killed() -> Result<()> {
    let host = Netns::new("host")?;
    let daemon = Daemon::start_in(&host)?;
    daemon.ok("net add n mode=bridge")?;
    let socket = daemon.path("vif0");
    daemon.ok(&format!("port add n vif0 vhost-user:{}", socket.display()))?;
    let mut peers = Vec::new();
    for (name, address) in [("t0", "10.9.0.2"), ("t1", "10.9.0.3"), ("t2", "10.9.0.4")] {
        let peer = Peer::new(name, address)?;
        daemon.ok(&format!("port add n {name} tap:{name}"))?;
        peer.adopt(&host, name)?;
        daemon.await_port(name, "up")?;
        peers.push(peer);
    }
    peers[0].serve()?;
    let bystanders = Flow::start(&peers[1].namespace, &peers[2].namespace, "10.9.0.4")?;
    let before = daemon.holdings()?;

    for time in 0..TIMES {
        let told = || format!("time {} of {TIMES}", time + 1);
        let mut guest =
            GuestMachine::boot(&socket, "52:54:00:00:00:10", "10.9.0.1", &GuestOptions::default())?;
        guest.configure().with_context(told)?;
        daemon.await_port("vif0", "up").with_context(told)?;
        let given = counters(&daemon, "vif0")?.tx_frames;
        guest.run(&load("10.9.0.2"))?;
        eventually("traffic", LIMIT, || {
            let now = counters(&daemon, "vif0")?.tx_frames;
            Ok(if now > given + 500 { Ok(()) } else { Err(format!("{} frames", now - given)) })
        })
        .with_context(told)?;
        guest.guest.kill();
        daemon.await_port("vif0", "waiting").with_context(told)?;
    }

    let sent = bystanders.finish().context("the flow between other ports")?;
    ensure!(sent > 1_000, "the flow between other ports was only {sent} datagrams long");
    let after = daemon.holdings()?;
    ensure!(after == before, "the daemon held {before:?}, and holds {after:?}");
    conservation(&daemon)?;
    Ok(())
}

fn daemon_killed(role: Role, device: &str, times: usize) -> Result<()> {
    let host = Netns::new("host")?;
    let mut peer = Peer::new("peer", "10.9.0.2")?;
    peer.veth(&host, "v0")?;
    let sockets = tempfile::tempdir()?;
    let socket = sockets.path().join("vif0");
    let ours = if role == Role::Server { "client" } else { "server" };
    let config = format!(
        "[network.n]\nmode = \"bridge\"\n
         [port.vif0]\nnetwork = \"n\"\nkind = \"vhost-user:{}\"\nrole = \"{ours}\"\n
         [port.v0]\nnetwork = \"n\"\nkind = \"netdev:v0\"\n",
        socket.display()
    );
    let mut daemon = DaemonOptions::default().netns(&host).config(config).start()?;
    let options = GuestOptions { role, device: device.to_string(), ..GuestOptions::default() };
    let mut guest = GuestMachine::boot(&socket, "52:54:00:00:00:10", "10.9.0.1", &options)?;
    guest.configure()?;
    daemon.await_port("vif0", "up")?;
    await_reach(&mut guest, "10.9.0.2", LIMIT)?;
    peer.serve()?;
    // Frames are in the rings whenever the daemon dies.
    guest.run(&load("10.9.0.2"))?;
    let before = daemon.holdings()?;

    for time in 0..times {
        let told = || format!("time {} of {times}", time + 1);
        daemon.kill();
        daemon.restart().with_context(told)?;
        daemon.await_port("vif0", "up").with_context(told)?;
        await_reach(&mut guest, "10.9.0.2", LIMIT).with_context(told)?;
    }
    let after = daemon.holdings()?;
    ensure!(after == before, "the daemon held {before:?}, and holds {after:?}");
    guest.run("kill $(cat /run/load)")?;
    conservation(&daemon)?;
    Ok(())
}
