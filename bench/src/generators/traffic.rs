//! The generator of `frontend` as a process of its own, pinned: one thread drives all devices, and sequence numbers are
//! counted where they arrive. What the switch drops is loss.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use frontend::device::TxLayout;
use frontend::memory::Layout;
use frontend::traffic::{self, Sizes, TrafficConfig};
use frontend::{Config, NetDevice, features as f};

use super::{Frames, Load, Measured, Pattern, RING_SIZE, Rate, Rings, Stations};
use crate::guard::{Job, Line, own_wait};
use crate::measures::{LONGEST, LOSS, Measure, P50, P99, RATE, THROUGHPUT};
use crate::peers::VhostSwitch;
use crate::statistics::Summary;

/// The verb by which this program starts itself as the generator.
pub(crate) const VERB: &str = "generate";

/// Not measured, first: the switch learns, caches fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// A step of a search.
const STEP: Duration = Duration::from_millis(200);
/// The longest that a search takes.
const SEARCH: Duration = Duration::from_secs(15);
/// Parts of the time for which a given rate is measured. Of each latency the median of the parts is told: a part in which
/// the machine took a thread off its processor does not decide it, one part in two does.
const PARTS: u32 = 5;
/// Descriptors of a ring that rests.
const RESTING_RING: u16 = 256;
/// A TCP segment of 64 KB as Linux makes them, with its Ethernet header, and what is cut from it at an MTU of 1500.
const SEGMENT: usize = 65_226;
const MSS: u16 = 1448;
/// For connecting, and for what is still under way at the end.
const SLACK: Duration = Duration::from_secs(20);

/// The generator's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The switch's sockets.
    #[arg(required = true)]
    sockets: Vec<PathBuf>,
    /// The rings' layout.
    #[arg(long, default_value_t = Rings::SPLIT)]
    rings: Rings,
    /// The frames' lengths.
    #[arg(long)]
    frames: Frames,
    /// How many frames are offered.
    #[arg(long, default_value_t = Rate::Full)]
    rate: Rate,
    /// Addresses at each port.
    #[arg(long, default_value_t = Stations::ONE)]
    stations: Stations,
    /// Which port sends to which.
    #[arg(long, default_value_t = Pattern::Pairs)]
    pattern: Pattern,
    /// How many of the last sockets are only connected to.
    #[arg(long, default_value_t = 0)]
    resting: usize,
    /// How long is measured.
    #[arg(long)]
    seconds: u64,
    /// The switch connects to the sockets.
    #[arg(long)]
    listen: bool,
}

pub(super) fn measure(switch: &VhostSwitch, load: &Load<'_>) -> Result<Measured> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut line = Line::new(own.display().to_string()).arg(VERB).cpu(load.cpu);
    line = line.words(&format!("--rings {} --frames {}", load.rings, load.frames));
    line = line.words(&format!("--rate {} --stations {}", load.rate, load.stations));
    line = line.words(&format!("--pattern {} --resting {}", load.pattern, load.resting));
    line = line.words(&format!("--seconds {}", load.seconds));
    if switch.connects {
        line = line.arg("--listen");
    }
    for socket in &switch.sockets {
        line = line.arg(socket.display().to_string());
    }
    let mut job = Job::start(&line, &load.dir.join("traffic.log"))?;
    let search = if matches!(load.rate, Rate::Lossless { .. }) { SEARCH } else { Duration::ZERO };
    let learn = Duration::from_millis(u64::from(load.stations.count) / 50 * switch.sockets.len() as u64);
    job.finish(WARM_UP + Duration::from_secs(load.seconds) + search + learn + SLACK)?;
    let log = job.log();
    let measured: Measured = serde_json::from_str(log.lines().last().unwrap_or_default())
        .with_context(|| format!("the generator printed {log}"))?;
    Ok(measured.by(line))
}

/// The generator's process: prints one line of JSON.
///
/// # Errors
/// A device cannot be set up or breaks, or nothing arrives.
pub(crate) fn run(options: &Options) -> Result<()> {
    let count = options.sockets.len();
    let connect = |(number, socket): (usize, &PathBuf)| {
        let rests = number >= count.saturating_sub(options.resting);
        let config = config(options, rests).mac_number(number as u32 + 1);
        if options.listen { NetDevice::listen(socket, config) } else { NetDevice::connect(socket, config) }
    };
    let devices = options.sockets.iter().enumerate().map(connect).collect::<frontend::Result<Vec<_>>>()?;
    let mut generator = traffic::Generator::new(devices, traffic(options))?;
    generator.learn()?;
    generator.run(WARM_UP)?;
    let mut generator_limit = None;
    if let Rate::Lossless { part, tolerance } = options.rate {
        let found = generator.find_lossless(tolerance, STEP)?;
        ensure!(found.rate > 0.0, "there is no rate without loss");
        generator_limit = Some(found.generator_limit);
        generator.set_rate(Some(found.rate * part));
    }
    let parts = if matches!(options.rate, Rate::PerSecond(_)) { PARTS } else { 1 };
    let mut measured = Vec::new();
    for _ in 0..parts {
        measured.push(part(&generator.run(Duration::from_secs(options.seconds) / parts)?)?);
    }
    let measured = Measured { disturbed: own_wait(), generator_limit, ..together(&measured) };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// What a report says.
///
/// # Errors
/// Nothing arrived, or what arrived is damaged.
fn part(report: &traffic::Report) -> Result<Measured> {
    ensure!(report.received() > 0, "nothing arrived");
    for (number, port) in report.ports.iter().enumerate() {
        // Before a switch has learned where a station is, every port gets its frames; after that, none does.
        ensure!(port.unrecognised == 0, "{} frames came damaged to port {number}", port.unrecognised);
    }
    let latency = report.latency();
    let ns = |percent| latency.percentile(percent).as_secs_f64() * 1e9;
    Ok(Measured::new()
        .with(&RATE, report.frames_per_second())
        .with(&THROUGHPUT, report.bits_per_second())
        .with(&LOSS, report.loss())
        .with(&P50, ns(50.0))
        .with(&P99, ns(99.0))
        .with(&LONGEST, ns(100.0)))
}

/// Parts of the same length as one: the medians of latencies and the longest of all, the means of what else there is.
fn together(parts: &[Measured]) -> Measured {
    let all = |measure: &Measure| parts.iter().filter_map(|part| part.get(measure)).collect::<Vec<f64>>();
    let median = |measure| Summary::of(&all(measure)).map_or(f64::NAN, |summary| summary.median);
    let mean = |measure| all(measure).iter().sum::<f64>() / parts.len() as f64;
    Measured::new()
        .with(&RATE, mean(&RATE))
        .with(&THROUGHPUT, mean(&THROUGHPUT))
        .with(&LOSS, mean(&LOSS))
        .with(&P50, median(&P50))
        .with(&P99, median(&P99))
        .with(&LONGEST, all(&LONGEST).into_iter().fold(0.0, f64::max))
}

/// A device for these options; one that rests takes little memory.
fn config(options: &Options, rests: bool) -> Config {
    let segments = options.frames == Frames::Segments;
    let features = f::VERSION_1
        | rings(options.rings)
        | if segments { f::CSUM | f::GUEST_CSUM | f::HOST_TSO4 | f::GUEST_TSO4 } else { 0 };
    Config {
        features,
        required: features,
        queue_size: if rests { RESTING_RING } else { RING_SIZE },
        // Linux has receive buffers of a page for streams of segments. Without merging one buffer has a whole frame.
        rx_buffer_size: match (segments, options.rings.mergeable) {
            (false, _) => Some(2048),
            (true, true) => Some(4096),
            (true, false) => None,
        },
        tx_buffer_size: if segments { None } else { Some(1536) },
        // As many as are on their way in a busy guest: more would be read from memory, not from a cache.
        tx_buffers: segments.then_some(64),
        tx_layout: if options.rings.indirect { TxLayout::HeaderApart } else { TxLayout::Inline },
        align_frames: true,
        memory: Some(Layout::single(memory(options, rests)).with_hugetlb()),
        timeout: Duration::from_secs(10),
        ..Config::default()
    }
}

/// How much memory a guest has, bytes.
fn memory(options: &Options, rests: bool) -> u64 {
    const MIB: u64 = 1 << 20;
    match (options.frames, options.rings.mergeable) {
        _ if rests => 2 * MIB,
        (Frames::Segments, false) => 80 * MIB,
        (Frames::Segments, true) => 12 * MIB,
        _ => 6 * MIB,
    }
}

fn traffic(options: &Options) -> TrafficConfig {
    let sizes = match options.frames {
        Frames::Fixed(length) => Sizes::Fixed(length.into()),
        Frames::Mix => Sizes::imix(),
        Frames::Segments => Sizes::Fixed(SEGMENT),
    };
    TrafficConfig {
        sizes,
        gso_size: (options.frames == Frames::Segments).then_some(MSS),
        pattern: match options.pattern {
            Pattern::Pairs => traffic::Pattern::Pairs,
            Pattern::Chain => traffic::Pattern::Chain,
            Pattern::Broadcast => traffic::Pattern::Broadcast,
        },
        stations: traffic::Stations { count: options.stations.count, zipf: options.stations.zipf },
        resting: options.resting,
        rate: match options.rate {
            Rate::PerSecond(rate) => Some(rate),
            Rate::Full | Rate::Lossless { .. } => None,
        },
        ..TrafficConfig::default()
    }
}

/// The features of a layout.
fn rings(rings: Rings) -> u64 {
    let switches = [
        (rings.packed, f::RING_PACKED),
        (rings.mergeable, f::MRG_RXBUF),
        (rings.in_order, f::IN_ORDER),
        (rings.indirect, f::INDIRECT_DESC),
        (rings.event_index, f::EVENT_IDX),
    ];
    switches.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_that_was_disturbed_does_not_decide_a_latency() {
        let part = |rate, p99, longest| {
            Measured::new().with(&RATE, rate).with(&P99, p99).with(&LONGEST, longest).with(&LOSS, 0.0)
        };
        let parts = [part(4.0, 9.0, 10.0), part(1.0, 900.0, 950.0), part(4.0, 11.0, 12.0)];
        let whole = together(&parts);
        assert_eq!((whole.get(&RATE), whole.get(&P99)), (Some(3.0), Some(11.0)));
        assert_eq!((whole.get(&LONGEST), whole.get(&LOSS)), (Some(950.0), Some(0.0)));
    }
}
