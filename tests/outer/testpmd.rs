//! DPDK's virtio-user at full speed, in each ring layout and role: frames circulate, and every one is accounted for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, Need, RingLayout, Suite, Testpmd, conservation, eventually};

const NEEDS: &[Need] = &[Need::Testpmd];

pub(crate) fn register(suite: &mut Suite) {
    suite.add("testpmd_split_as_client_balances", NEEDS, || circulate(RingLayout::Split, 1, false));
    suite.add("testpmd_split_as_server_balances", NEEDS, || circulate(RingLayout::Split, 1, true));
    suite.add("testpmd_in_order_as_client_balances", NEEDS, || circulate(RingLayout::SplitInOrder, 1, false));
    suite.add("testpmd_in_order_as_server_balances", NEEDS, || circulate(RingLayout::SplitInOrder, 1, true));
    suite.add("testpmd_packed_as_client_balances", NEEDS, || circulate(RingLayout::Packed, 1, false));
    suite.add("testpmd_packed_as_server_balances", NEEDS, || circulate(RingLayout::Packed, 1, true));
    suite.add("testpmd_packed_plain_balances", NEEDS, || circulate(RingLayout::PackedPlain, 1, false));
    suite.add("testpmd_packed_in_order_balances", NEEDS, || circulate(RingLayout::PackedInOrder, 1, false));
    suite.add("testpmd_packed_in_order_plain_balances", NEEDS, || {
        circulate(RingLayout::PackedInOrderPlain, 1, false)
    });
    suite.add("testpmd_with_two_queue_pairs_balances", NEEDS, || circulate(RingLayout::Split, 2, false));
    suite.add("testpmd_with_two_queue_pairs_of_packed_rings_balances", NEEDS, || {
        circulate(RingLayout::Packed, 2, false)
    });
}

fn circulate(layout: RingLayout, queues: u8, server: bool) -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let sockets = [daemon.path("a"), daemon.path("b")];
    let role = if server { "client" } else { "server" };
    for (name, socket) in ["a", "b"].iter().zip(&sockets) {
        daemon
            .ok(&format!("port add n {name} vhost-user:{} role={role} queues={queues}", socket.display()))?;
    }
    let mut testpmd = Testpmd::start([&sockets[0], &sockets[1]], layout, queues, server)?;
    daemon.await_port("a", "up")?;
    daemon.await_port("b", "up")?;
    for port in ["a", "b"] {
        eventually("rings that run", Duration::from_secs(10), || {
            let shown = daemon.json(&format!("port show {port}"))?;
            let rings = shown["rings"].as_array().context("no rings")?;
            let running = rings.iter().filter(|ring| ring["state"] == "enabled").count();
            Ok(if running == 2 * usize::from(queues) { Ok(()) } else { Err(shown.to_string()) })
        })?;
    }
    for size in [64, 1500] {
        let before = testpmd.counters()?;
        testpmd.circulate(size)?;
        std::thread::sleep(Duration::from_secs(2));
        let after = testpmd.counters()?;
        for (port, (before, after)) in before.iter().zip(&after).enumerate() {
            let frames = after.rx - before.rx;
            ensure!(frames > 10_000, "{frames} frames of {size} bytes in 2 s at testpmd's port {port}");
        }
    }
    testpmd.drain()?;

    // What testpmd sent is what the switch received, and the other way round, to the frame.
    eventually("equal counters", Duration::from_secs(10), || {
        let theirs = testpmd.counters()?;
        let ours = conservation(&daemon)?;
        for (name, theirs) in ["a", "b"].iter().zip(theirs) {
            let ours = ours.iter().find(|port| port.name == *name).context("no such port")?;
            if (ours.rx_frames, ours.tx_frames) != (theirs.tx, theirs.rx) {
                return Ok(Err(format!("{ours:?}, testpmd {theirs:?}")));
            }
        }
        Ok(Ok(()))
    })
}
