//! Peers that die and come back, on either side of the socket, twenty times.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::features::{IN_ORDER, RING_PACKED};
use frontend::session::Session;
use frontend::{Config, NetDevice};
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
    suite.add(
        "daemon_killed_between_packed_rings_loses_nothing_and_repeats_nothing",
        &[],
        between_packed_rings,
    );
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

/// Packed rings at both ends, one of them used in order. Frames wait in the rings while there is no daemon, and its
/// successor goes on where it stood: every frame arrives once, in its order.
fn between_packed_rings() -> Result<()> {
    let sockets = tempfile::tempdir()?;
    let paths = ["a", "b"].map(|name| sockets.path().join(name));
    let port = |name: &str| {
        let path = sockets.path().join(name);
        format!("[port.{name}]\nnetwork = \"n\"\nkind = \"vhost-user:{}\"\n", path.display())
    };
    let config = format!("[network.n]\nmode = \"bridge\"\n{}{}", port("a"), port("b"));
    let mut daemon = DaemonOptions::default().config(config).start()?;
    let features = [RING_PACKED, RING_PACKED | IN_ORDER];
    let mut ends = Vec::new();
    for (path, wanted) in paths.iter().zip(features) {
        ends.push(NetDevice::connect(path, Config::default().with(wanted).require(wanted).queue_size(64))?);
    }
    // How many frames each end has sent, and how many of those waited for the daemon.
    let (mut sent, mut waited) = ([0u32; 2], [0u32; 2]);
    for time in 0..TIMES {
        let told = || format!("time {} of {TIMES}", time + 1);
        for name in ["a", "b"] {
            daemon.await_port(name, "up").with_context(told)?;
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let first = sent[from] - std::mem::take(&mut waited[from]);
            for _ in 0..7 {
                ends[from].send(&numbered(from, sent[from]))?;
                sent[from] += 1;
            }
            for number in first..sent[from] {
                let (_, frame) = ends[to].recv(LIMIT).with_context(told)?;
                ensure!(frame == numbered(from, number), "{}: not frame {number}: {frame:?}", told());
            }
        }
        // What a daemon had carried and not given back when it died, its successor carries again.
        for end in &mut ends {
            end.pairs_mut()[0].tx.drain(LIMIT)?;
        }
        daemon.kill();
        // Who comes back last finds the other there. 23 is no divisor of the ring's size.
        let (first, last) = (time % 2, 1 - time % 2);
        for _ in 0..23 {
            ends[last].send(&numbered(last, sent[last]))?;
            sent[last] += 1;
        }
        waited[last] = 23;
        daemon.restart().with_context(told)?;
        for end in [first, last] {
            ends[end].reattach(Session::connect(&paths[end], LIMIT)?).with_context(told)?;
            daemon.await_port(["a", "b"][end], "up").with_context(told)?;
        }
    }
    conservation(&daemon)?;
    Ok(())
}

/// A frame of station `from` to the other, with its number.
fn numbered(from: usize, number: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 1, 1 - from as u8, 2, 0, 0, 0, 1, from as u8, 0x88, 0xb5];
    frame.extend(number.to_be_bytes());
    frame.resize(60 + (number as usize * 37) % 200, 0);
    frame
}
