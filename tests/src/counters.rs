//! The daemon's counters, and the law they keep: what came in went out or was dropped for a reason.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Daemon, eventually};

/// Reasons that a frame is dropped for at its egress port; all others are of its ingress port.
const EGRESS: [&str; 6] =
    ["tx_ring_full", "tx_buffer_small", "egress_mtu", "egress_down", "egress_error", "egress_segment"];

/// One port's counters. `rx` is what the switch took from the peer, `tx` what it gave to the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortCounters {
    /// The port's name.
    pub name: String,
    /// Frames taken from the peer.
    pub rx_frames: u64,
    /// Bytes of those frames.
    pub rx_bytes: u64,
    /// Frames given to the peer.
    pub tx_frames: u64,
    /// Bytes of those frames.
    pub tx_bytes: u64,
    /// Frames added by flooding: of each flooded frame, the deliveries tried beyond the first.
    pub copies: u64,
    /// Deliveries tried for frames of this ingress port.
    pub forwarded: u64,
    /// Deliveries tried at this egress port.
    pub offered: u64,
    /// Bursts in which its frames were taken.
    pub rx_bursts: u64,
    /// What those took.
    pub cycles: u64,
    /// Dropped frames by reason.
    pub drops: Vec<(String, u64)>,
}

impl PortCounters {
    fn parse(value: &Value) -> Result<Self> {
        let number = |key: &str| {
            value.get(key).and_then(Value::as_u64).with_context(|| format!("no number '{key}' in {value}"))
        };
        let drops = value.get("drops").and_then(Value::as_object);
        let drops = drops.with_context(|| format!("no object 'drops' in {value}"))?;
        let drops = drops.iter().map(|(reason, count)| {
            let count = count.as_u64().with_context(|| format!("'{reason}' is no number in {value}"))?;
            Ok((reason.clone(), count))
        });
        Ok(PortCounters {
            name: value.get("name").and_then(Value::as_str).context("no 'name'")?.to_string(),
            rx_frames: number("rx_frames")?,
            rx_bytes: number("rx_bytes")?,
            tx_frames: number("tx_frames")?,
            tx_bytes: number("tx_bytes")?,
            copies: number("copies")?,
            forwarded: number("forwarded")?,
            offered: number("offered")?,
            rx_bursts: number("rx_bursts")?,
            cycles: number("cycles")?,
            drops: drops.collect::<Result<_>>()?,
        })
    }

    /// Frames dropped for `reason`.
    pub fn dropped(&self, reason: &str) -> u64 {
        self.drops.iter().filter(|(name, _)| name == reason).map(|(_, count)| count).sum()
    }

    /// Frames dropped on the way in, or on the way out.
    fn drops_at(&self, egress: bool) -> u64 {
        self.drops.iter().filter(|(name, _)| EGRESS.contains(&name.as_str()) == egress).map(|(_, n)| n).sum()
    }
}

/// The counters of one port.
///
/// # Errors
/// There is no such port, or a key of the contract is missing.
pub fn counters(daemon: &Daemon, port: &str) -> Result<PortCounters> {
    PortCounters::parse(&daemon.json(&format!("port stats {port}"))?)
}

fn all(daemon: &Daemon) -> Result<Vec<PortCounters>> {
    let value = daemon.json("port stats")?;
    value.as_array().context("port stats is no array")?.iter().map(PortCounters::parse).collect()
}

/// Waits until traffic rests, then checks the law of conservation, for every port and in total:
/// frames received, and copied by flooding, are frames delivered and drops by reason.
///
/// # Errors
/// The law does not hold, or traffic does not rest within 10 s.
pub fn conservation(daemon: &Daemon) -> Result<Vec<PortCounters>> {
    let mut last = all(daemon)?;
    let ports = eventually("traffic at rest", Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(200));
        let now = all(daemon)?;
        let rests = now == last;
        last.clone_from(&now);
        Ok(if rests { Ok(now) } else { Err("the counters still move".into()) })
    })?;
    for port in &ports {
        let (ingress, egress) = (port.drops_at(false), port.drops_at(true));
        ensure!(
            port.rx_frames + port.copies == port.forwarded + ingress,
            "conservation at ingress: rx_frames + copies = forwarded + drops does not hold: {port:?}"
        );
        ensure!(
            port.offered == port.tx_frames + egress,
            "conservation at egress: offered = tx_frames + drops does not hold: {port:?}"
        );
    }
    for PortCounters { name, rx_frames, rx_bursts, cycles, .. } in &ports {
        ensure!(
            rx_bursts <= rx_frames
                && (*rx_bursts > 0) == (*rx_frames > 0)
                && (*rx_bursts > 0) == (*cycles > 0),
            "{name}: {rx_frames} frames in {rx_bursts} bursts, which took {cycles} cycles"
        );
    }
    let sum = |what: fn(&PortCounters) -> u64| ports.iter().map(what).sum::<u64>();
    let (into, out) =
        (sum(|p| p.rx_frames + p.copies), sum(|p| p.tx_frames + p.drops_at(false) + p.drops_at(true)));
    ensure!(into == out, "conservation in total: {into} came in, {out} are accounted for: {ports:?}");
    Ok(ports)
}
