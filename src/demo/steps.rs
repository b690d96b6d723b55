//! What the demo shows, step by step.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::Report;
use super::guest::{Answer, Order, Setup};
use super::process::{Daemon, Process};

/// The demo's network, whose host interface is the kernel's end.
pub(super) const NETWORK: &str = "demo0";
const KERNEL: &str = "10.77.0.254";

/// What is about to be shown.
pub(super) const TOPOLOGY: &str = "
  guest 1  10.77.0.1  vif1.0 ──┐
  guest 2  10.77.0.2  vif2.0 ──┤                    vif4.0 ──┐
  guest 3  10.77.0.3  vif3.0 ──┼── demo0 (bridge)            ├── bench0 (bridge)
           (no offloads)       │                    vif5.0 ──┘
  kernel   10.77.0.254 demo0 ──┘                  (traffic generator)

  and two guests each on: lab0 (internal), rt0 (routed), nat0 (nat, behind an uplink)

  Guests are processes: shared memory, virtio rings, an IP stack. The switch is `weft daemon`.
";

pub(super) const TCP_BYTES: u64 = 256 << 20;
const BULK_BYTES: u64 = 1 << 30;
const PLAIN_BULK_BYTES: u64 = 256 << 20;
const BLAST_MS: u64 = 2000;

pub(super) type Outcome = anyhow::Result<(String, Value)>;

/// Runs all steps. An error is one of setting up; failures of steps are in the report.
pub(super) fn run(daemon: &Daemon, report: &mut Report, no_namespace: Option<&str>) -> anyhow::Result<()> {
    let host_if = if no_namespace.is_none() { "host-if=on" } else { "host-if=off" };
    daemon.weft(&["net", "add", NETWORK, "mode=bridge", host_if])?;
    daemon.weft(&["net", "add", "bench0", "mode=bridge"])?;
    let socket = |n: u32| daemon.path(&format!("vif{n}.0.sock"));
    for n in 1..=5 {
        let network = if n <= 3 { NETWORK } else { "bench0" };
        daemon.weft(&["port", "add", network, &format!("vif{n}.0"), &format!("vhost-user:{}", socket(n))])?;
    }
    let guest = |n: u32, offloads| {
        daemon.guest(&Setup {
            sockets: vec![socket(n)],
            number: n,
            address: format!("10.77.0.{n}/24"),
            offloads,
        })
    };
    let mut one = guest(1, true)?;
    let mut two = guest(2, true)?;
    let mut three = guest(3, false)?;
    let sockets = vec![socket(4), socket(5)];
    let mut generator =
        daemon.guest(&Setup { sockets, number: 4, address: String::new(), offloads: false })?;

    report.step("five devices attach", attach(daemon, [&mut one, &mut two, &mut three, &mut generator]));
    let address = |n| Ipv4Addr::new(10, 77, 0, n);
    report.step("ARP finds guest 2", arp(&mut one, address(2)));
    report.step("ping guest 1 to guest 2", ping(&mut one, address(2), 1000));
    report.step("TCP guest 1 to guest 2", tcp(&mut one, &mut two, address(2)));
    report.step("TCP guest 2 to guest 1", tcp(&mut two, &mut one, address(1)));
    report.step("64 KB segments, guest 1 to 2", bulk(&mut one, &mut two, BULK_BYTES, true));
    report.step("64 KB segments to a plain guest", bulk(&mut one, &mut three, PLAIN_BULK_BYTES, false));
    report.step("64-byte frames, one worker", blast(&mut generator));
    match no_namespace {
        Some(why) => report.left_out("a kernel's stack on a tap", why),
        None => report.step("a kernel's stack on a tap", kernel(daemon, &mut one)),
    }
    drop(generator);
    super::networks::run(daemon, report, no_namespace)?;
    report.step("every frame is accounted for", accounts(daemon));
    report.show(daemon, &["port", "list"]);
    report.show(daemon, &["fdb", "show", NETWORK]);
    report.show(daemon, &["port", "stats"]);
    Ok(())
}

fn attach(daemon: &Daemon, guests: [&mut Process; 4]) -> Outcome {
    let started = Instant::now();
    for guest in guests {
        guest.ask(&Order::Hello)?;
    }
    loop {
        let ports = daemon.json(&["port", "list"])?;
        let ports = ports
            .as_array()
            .into_iter()
            .flatten()
            .filter(|p| p["name"].as_str().is_some_and(|n| n.starts_with("vif")));
        let waiting: Vec<_> = ports.filter(|p| p["state"] != "up").map(|p| p["name"].to_string()).collect();
        if waiting.is_empty() {
            return Ok(("all ports are up".to_owned(), Value::Null));
        }
        ensure!(started.elapsed() < Duration::from_secs(10), "not up after 10 s: {}", waiting.join(", "));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

fn arp(from: &mut Process, to: Ipv4Addr) -> Outcome {
    match from.ask(&Order::Arp(to))? {
        Answer::Arp { mac } => Ok((format!("{to} is at {}", mac_text(mac)), json!({ "mac": mac_text(mac) }))),
        other => unexpected(&other),
    }
}

pub(super) fn ping(from: &mut Process, to: Ipv4Addr, count: u16) -> Outcome {
    match from.ask(&Order::Ping { to, count })? {
        Answer::Ping { sent, received, corrupt, p50_us, p99_us, max_us } => {
            ensure!(
                received == sent && corrupt == 0,
                "{received} of {sent} pings were answered, {corrupt} of them corrupt"
            );
            Ok((
                format!(
                    "{received} of {sent}, round trip {p50_us:.0} µs (p50), {p99_us:.0} µs (p99), {max_us:.0} µs at most"
                ),
                json!({ "sent": sent, "received": received, "rtt_p50_us": p50_us, "rtt_p99_us": p99_us, "rtt_max_us": max_us }),
            ))
        }
        other => unexpected(&other),
    }
}

fn gigabits(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 * 8.0 / seconds.max(1e-9) / 1e9
}

pub(super) fn tcp(from: &mut Process, to: &mut Process, address: Ipv4Addr) -> Outcome {
    let port = 5001;
    to.order(&Order::TcpReceive { port })?;
    let sent = from.ask(&Order::TcpSend { to: address, port, bytes: TCP_BYTES })?;
    let received = to.answer()?;
    tcp_outcome(&sent, &received)
}

pub(super) fn tcp_outcome(sent: &Answer, received: &Answer) -> Outcome {
    let (Answer::Sent { hash, whole, .. }, Answer::Received { bytes, hash: got, seconds, .. }) =
        (sent, received)
    else {
        bail!("an answer out of turn: {sent:?}, {received:?}");
    };
    ensure!(
        *whole && hash == got && *bytes == TCP_BYTES,
        "{bytes} of {TCP_BYTES} bytes arrived, hash {got:x} for {hash:x}"
    );
    let rate = gigabits(*bytes, *seconds);
    Ok((format!("{rate:.2} Gb/s, {} MB whole", bytes >> 20), json!({ "gbit_s": rate, "bytes": bytes })))
}

fn bulk(from: &mut Process, to: &mut Process, bytes: u64, super_frames_expected: bool) -> Outcome {
    let Answer::Hello { mac: from_mac } = from.ask(&Order::Hello)? else { bail!("an answer out of turn") };
    let Answer::Hello { mac: to_mac } = to.ask(&Order::Hello)? else { bail!("an answer out of turn") };
    to.order(&Order::BulkReceive { from_mac, bytes })?;
    let sent = from.ask(&Order::BulkSend { to_mac, bytes })?;
    let received = to.answer()?;
    let (
        Answer::Sent { hash, super_frames, .. },
        Answer::Received {
            bytes: got_bytes,
            hash: got,
            seconds,
            frames,
            super_frames: got_super,
            largest,
            faults,
            full_checksums,
        },
    ) = (&sent, &received)
    else {
        bail!("an answer out of turn: {sent:?}, {received:?}");
    };
    ensure!(
        got == hash && *got_bytes == bytes && *faults == 0,
        "{got_bytes} of {bytes} bytes arrived, {faults} frames at fault"
    );
    ensure!(*super_frames > 0, "the sender made no super-frames");
    let (rate, per_second) = (gigabits(bytes, *seconds), *frames as f64 / seconds.max(1e-9));
    if super_frames_expected {
        ensure!(
            *got_super > 0 && *largest > 60_000,
            "no super-frame arrived whole; the largest carried {largest} bytes"
        );
    } else {
        ensure!(*got_super == 0, "a guest that takes no super-frames got {got_super}");
        ensure!(full_checksums == frames, "{full_checksums} of {frames} frames had a whole checksum");
    }
    let text = format!(
        "{rate:.2} Gb/s, {per_second:.0} frames/s of up to {largest} bytes, {} MB whole",
        bytes >> 20
    );
    Ok((text, json!({ "gbit_s": rate, "frames_s": per_second, "largest": largest, "bytes": bytes })))
}

fn blast(generator: &mut Process) -> Outcome {
    match generator.ask(&Order::Blast { millis: BLAST_MS })? {
        Answer::Blast { sent, received, unrecognised, seconds } => {
            ensure!(
                received > 0 && unrecognised == 0,
                "{received} of {sent} frames arrived, {unrecognised} of them changed"
            );
            let rate = received as f64 / seconds.max(1e-9);
            let lost = sent - received.min(sent);
            Ok((
                format!("{:.2} M frames/s received, {lost} of {sent} lost", rate / 1e6),
                json!({ "frames_s": rate, "sent": sent, "received": received }),
            ))
        }
        other => unexpected(&other),
    }
}

fn kernel(daemon: &Daemon, guest: &mut Process) -> Outcome {
    let port = 5002;
    let mut kernel = daemon.kernel(NETWORK, KERNEL, 24, port)?;
    kernel.answer()?;
    let address: Ipv4Addr = KERNEL.parse()?;
    let (pinged, mut values) = ping(guest, address, 100)?;
    let sent = guest.ask(&Order::TcpSend { to: address, port, bytes: TCP_BYTES })?;
    let received = kernel.answer()?;
    let (moved, tcp) = tcp_outcome(&sent, &received)?;
    values["tcp"] = tcp;
    Ok((format!("TCP {moved}; ping {pinged}"), values))
}

/// Conservation: what was received was delivered or dropped for a reason, copies of floods counted each.
fn accounts(daemon: &Daemon) -> Outcome {
    let total = |stats: &Value, key: &str| -> u64 {
        stats.as_array().into_iter().flatten().filter_map(|p| p[key].as_u64()).sum()
    };
    let drops = |stats: &Value| -> u64 {
        stats
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| p["drops"].as_object())
            .flat_map(|d| d.values())
            .filter_map(Value::as_u64)
            .sum()
    };
    let mut last = Value::Null;
    // Guests that still answer each other may be caught between two counters: look until it is quiet.
    for _ in 0..50 {
        last = daemon.json(&["port", "stats"])?;
        let (rx, copies, tx, drops) =
            (total(&last, "rx_frames"), total(&last, "copies"), total(&last, "tx_frames"), drops(&last));
        if rx > 0 && rx + copies == tx + drops {
            let text = format!("{rx} received + {copies} copies = {tx} delivered + {drops} dropped");
            return Ok((
                text,
                json!({ "received": rx, "copies": copies, "delivered": tx, "dropped": drops }),
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("the counters do not balance: {last}")
}

pub(super) fn unexpected(answer: &Answer) -> Outcome {
    bail!("an answer out of turn: {answer:?}")
}
