//! Many flows through a switch that routes, counted by the interface where they arrive. The sender is
//! `datapath`'s example `flows`: it is the same for every peer.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Measured;
use crate::guard::{Job, Line, interrupt};
use crate::machine::built;
use crate::measures::{Better, LOSS, Measure, RATE, Unit};
use crate::peers::{RouterSwitch, Work};

/// First frames of flows that arrive, while every frame is the first of its flow.
pub(crate) const NEW: Measure = Measure {
    name: "new flows",
    unit: Unit { name: "flows/s", shown: "Mflows/s", scale: 1e6, digits: 2 },
    better: Better::More,
};

/// A pass over all flows may take as long.
const PASS: Duration = Duration::from_secs(60);
/// What is on its way arrives in this time. The sender rests for longer than that after its first pass.
const SETTLE: Duration = Duration::from_millis(500);
/// Not measured: flows that were lost in the first pass are made.
const WARM_UP: Duration = Duration::from_secs(4);

/// Sends `flows` flows through `switch` from `cpu`.
///
/// # Errors
/// The sender fails, or nothing arrives.
pub(crate) fn measure(
    switch: &RouterSwitch,
    dir: &Path,
    cpu: usize,
    work: Work,
    flows: u32,
    seconds: u64,
) -> Result<Measured> {
    let kind = if work == Work::Translate { "guests" } else { "prefixes" };
    let sender = built("examples/flows", "cargo build --release -p datapath --example flows")?;
    let line = Line::new(sender.display().to_string()).arg("gen").arg(&switch.mac).arg(flows.to_string());
    let line = line.arg(kind).cpu(cpu).netns(&switch.sender);
    let before = switch.received()?;
    let mut job = Job::start(&line, &dir.join("flows.log"))?;
    let nanoseconds: f64 = job.expect("end of the first pass", PASS, |log| {
        log.lines().find_map(|line| line.strip_prefix("first ")?.parse().ok())
    })?;
    interrupt::pause(SETTLE)?;
    let first = switch.received()?.saturating_sub(before) as f64;
    interrupt::pause(WARM_UP)?;
    let (sent, received, began) = (switch.sent()?, switch.received()?, Instant::now());
    interrupt::pause(Duration::from_secs(seconds))?;
    let (sent_then, received_then, elapsed) = (switch.sent()?, switch.received()?, began.elapsed());
    let (sent, received) =
        (sent_then.saturating_sub(sent) as f64, received_then.saturating_sub(received) as f64);
    ensure!(received > 0.0, "no frame arrived");
    let disturbed = job.waited().into_iter().chain(switch.waited()).reduce(f64::max);
    let measured = Measured::new()
        .with(&RATE, received / elapsed.as_secs_f64())
        .with(&LOSS, 1.0 - (received / sent).min(1.0))
        .with(&NEW, first / (nanoseconds / 1e9));
    Ok(Measured { disturbed, ..measured }.by(line))
}

/// Builds the sender.
///
/// # Errors
/// It does not build.
pub(crate) fn prepare() -> Result<()> {
    crate::machine::build_example("datapath", "flows").context("the sender")
}
