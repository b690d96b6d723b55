//! Real Linux guests, with each option of the virtio-net device that changes what crosses the rings.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, GuestOptions, Need, Netns, Role, Suite, conservation, counters, eventually};

use crate::machine::{GuestMachine, Machine, Peer, exchange, fetch, payload_of, ping};

const GUESTS: &[Need] = &[Need::Guests];
const KERNEL: &[Need] = &[Need::Guests, Need::Namespaces, Need::Ping, Need::Iperf3, Need::Ethtool];

/// Every checksum and segmentation offload off, in both directions.
const NO_OFFLOADS: &str = "csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
     host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off";

/// A pair of guests that differ in nothing but what the row says.
struct Row {
    name: &'static str,
    devices: [&'static str; 2],
    queues: u8,
    role: Role,
    /// Whether a 64 KB segment of the first guest can reach the second as one frame.
    super_frames: bool,
}

const fn row(name: &'static str, devices: [&'static str; 2], super_frames: bool) -> Row {
    Row { name, devices, queues: 1, role: Role::Client, super_frames }
}

const ROWS: [Row; 11] = [
    row("guests_with_default_devices_exchange_whole_payloads", ["", ""], true),
    row("guests_without_mergeable_buffers_exchange_whole_payloads", ["mrg_rxbuf=off"; 2], true),
    row("guests_without_offloads_exchange_whole_payloads", [NO_OFFLOADS; 2], false),
    row("guests_without_indirect_descriptors_exchange_whole_payloads", ["indirect_desc=off"; 2], true),
    row("guests_without_event_index_exchange_whole_payloads", ["event_idx=off"; 2], true),
    Row {
        name: "guests_with_two_queue_pairs_exchange_whole_payloads",
        devices: [""; 2],
        queues: 2,
        role: Role::Client,
        super_frames: true,
    },
    Row {
        name: "guests_whose_qemu_listens_exchange_whole_payloads",
        devices: [""; 2],
        queues: 1,
        role: Role::Server,
        super_frames: true,
    },
    row("guest_with_offloads_reaches_guest_without", ["", NO_OFFLOADS], true),
    row("guest_with_packed_rings_reaches_guest_with_split_rings", ["packed=on", ""], true),
    row(
        "guests_with_packed_rings_and_without_their_extras_exchange_whole_payloads",
        ["packed=on,event_idx=off", "packed=on,indirect_desc=off,mrg_rxbuf=off"],
        true,
    ),
    row(
        "guest_without_mergeable_buffers_or_offloads_reaches_default",
        ["", "mrg_rxbuf=off,csum=off,guest_csum=off"],
        true,
    ),
];

pub(crate) fn register(suite: &mut Suite) {
    for row in ROWS {
        let name = row.name;
        suite.add(name, GUESTS, move || pair(&row));
    }
    suite.add("guest_changes_its_queue_pairs_under_traffic", KERNEL, || queue_pairs(""));
    suite.add("guest_changes_its_queue_pairs_of_packed_rings_under_traffic", KERNEL, || {
        queue_pairs("packed=on")
    });
    suite
        .add("guest_and_tap_carry_whole_payloads_with_tso_on_and_off", KERNEL, || with_kernel("", Kind::Tap));
    suite.add("guest_and_netdev_carry_whole_payloads_with_tso_on_and_off", KERNEL, || {
        with_kernel("", Kind::Netdev)
    });
    suite.add("guest_without_offloads_and_tap_carry_whole_payloads", KERNEL, || {
        with_kernel(NO_OFFLOADS, Kind::Tap)
    });
    suite.add("guest_without_offloads_and_netdev_carry_whole_payloads", KERNEL, || {
        with_kernel(NO_OFFLOADS, Kind::Netdev)
    });
}

fn pair(row: &Row) -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let mut guests = Vec::new();
    for (index, device) in row.devices.iter().enumerate() {
        let name = format!("vif{index}");
        let socket = daemon.path(&name);
        let role = if row.role == Role::Server { "client" } else { "server" };
        daemon.ok(&format!(
            "port add n {name} vhost-user:{} role={role} queues={}",
            socket.display(),
            row.queues
        ))?;
        let options = GuestOptions { role: row.role, device: (*device).to_string(), queues: row.queues };
        let mac = format!("52:54:00:00:00:1{index}");
        guests.push(GuestMachine::boot(&socket, &mac, &format!("10.9.0.{}", index + 1), &options)?);
    }
    let mut guests = guests.into_iter();
    let (mut a, mut b) = (guests.next().context("no guest")?, guests.next().context("no guest")?);
    a.configure()?;
    b.configure()?;
    daemon.await_port("vif0", "up")?;
    daemon.await_port("vif1", "up")?;

    let (sum, _) = exchange(&mut a, &mut b)?;

    let before = counters(&daemon, "vif0")?;
    fetch(&mut b, "10.9.0.1", &sum)?;
    let after = counters(&daemon, "vif0")?;
    let mean = (after.rx_bytes - before.rx_bytes) / (after.rx_frames - before.rx_frames).max(1);
    if row.super_frames {
        ensure!(mean > 4_000, "the mean frame of a sender with TSO has {mean} bytes");
    } else {
        ensure!(mean <= 1_514, "the mean frame of a sender without TSO has {mean} bytes");
    }
    if row.queues > 1 {
        let channels = a.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")?;
        ensure!(channels.trim() == row.queues.to_string(), "the guest uses {channels} queue pairs");
    }
    conservation(&daemon)?;
    Ok(())
}

/// Queue pairs are switched off and on by the guest's own driver while it fetches without end; nothing that comes after is
/// lost, and everything is accounted for.
fn queue_pairs(device: &str) -> Result<()> {
    let host = Netns::new("host")?;
    let daemon = Daemon::start_in(&host)?;
    daemon.ok("net add n mode=bridge")?;
    let socket = daemon.path("vif0");
    daemon.ok(&format!("port add n vif0 vhost-user:{} queues=4", socket.display()))?;
    let options = GuestOptions { queues: 4, device: device.to_string(), ..GuestOptions::default() };
    let mut guest = GuestMachine::boot(&socket, "52:54:00:00:00:10", "10.9.0.1", &options)?;
    let mut peer = Peer::new("peer", "10.9.0.2")?;
    daemon.ok("port add n k0 tap:k0")?;
    peer.adopt(&host, "k0")?;
    guest.configure()?;
    daemon.await_port("vif0", "up")?;
    daemon.await_port("k0", "up")?;
    let sum = peer.serve()?;
    let fetch_without_end =
        format!("(while true; do {}; done) >/dev/null 2>&1 & echo $! >/run/load", payload_of("10.9.0.2"));
    guest.run(&fetch_without_end)?;
    for pairs in [1, 4, 2] {
        let told = || format!("with {pairs} queue pairs");
        guest.run(&format!("ethtool -L eth0 combined {pairs}")).with_context(told)?;
        eventually("rings that run", Duration::from_secs(20), || {
            let port = daemon.json("port show vif0")?;
            let rings = port["rings"].as_array().context("no rings")?;
            let running = rings.iter().filter(|ring| ring["state"] == "enabled").count();
            Ok(if running == 2 * pairs { Ok(()) } else { Err(format!("{running}: {port}")) })
        })
        .with_context(told)?;
        ping(&mut guest, "10.9.0.2").with_context(told)?;
        fetch(&mut guest, "10.9.0.2", &sum).with_context(told)?;
    }
    guest.run("kill $(cat /run/load)")?;
    conservation(&daemon)?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind {
    Tap,
    Netdev,
}

fn with_kernel(device: &str, kind: Kind) -> Result<()> {
    let host = Netns::new("host")?;
    let daemon = Daemon::start_in(&host)?;
    daemon.ok("net add n mode=bridge")?;
    let socket = daemon.path("vif0");
    daemon.ok(&format!("port add n vif0 vhost-user:{}", socket.display()))?;
    let options = GuestOptions { device: device.to_string(), ..GuestOptions::default() };
    let mut guest = GuestMachine::boot(&socket, "52:54:00:00:00:10", "10.9.0.1", &options)?;

    let mut peer = Peer::new("peer", "10.9.0.2")?;
    let interface = match kind {
        Kind::Tap => {
            daemon.ok("port add n k0 tap:k0")?;
            peer.adopt(&host, "k0")?;
            "k0"
        }
        Kind::Netdev => {
            peer.veth(&host, "k0")?;
            daemon.ok("port add n k0 netdev:k0")?;
            "eth0"
        }
    };
    guest.configure()?;
    daemon.await_port("vif0", "up")?;
    daemon.await_port("k0", "up")?;

    let (guest_sum, peer_sum) =
        exchange(&mut guest, &mut peer).context("with the offloads of the kernel's choice")?;
    for offloads in ["off", "on"] {
        peer.run(&format!("ethtool -K {interface} tso {offloads} gso {offloads} gro {offloads}"))?;
        fetch(&mut guest, "10.9.0.2", &peer_sum).with_context(|| format!("TSO {offloads}"))?;
        fetch(&mut peer, "10.9.0.1", &guest_sum).with_context(|| format!("TSO {offloads}"))?;
    }
    peer.run(&format!("ethtool -K {interface} tx off 2>/dev/null"))?;
    fetch(&mut guest, "10.9.0.2", &peer_sum).context("the kernel's checksum offload off")?;
    conservation(&daemon)?;
    Ok(())
}
