//! The generator of `frontend` as a process of its own, pinned: one thread drives all devices, and sequence numbers are
//! counted where they arrive. What the switch drops is loss.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use frontend::memory::Layout;
use frontend::traffic::{Sizes, TrafficConfig};
use frontend::{Config, NetDevice, features as f};

use super::{Frames, Load, Measured, Pattern, RING_SIZE, Rate, Rings, Stations};
use crate::guard::{Job, Line, own_wait};
use crate::measures::{LONGEST, LOSS, P50, P99, RATE, THROUGHPUT};
use crate::peers::VhostSwitch;

/// The verb by which this program starts itself as the generator.
pub(crate) const VERB: &str = "generate";

/// Not measured, first: the switch learns, caches fill.
const WARM_UP: Duration = Duration::from_secs(1);
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
}

pub(super) fn measure(switch: &VhostSwitch, load: &Load<'_>) -> Result<Measured> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut line = Line::new(own.display().to_string()).arg(VERB).cpu(load.cpu);
    line = line.words(&format!("--rings {} --frames {}", load.rings, load.frames));
    line = line.words(&format!("--rate {} --stations {}", load.rate, load.stations));
    line = line.words(&format!("--pattern {} --resting {}", load.pattern, load.resting));
    line = line.words(&format!("--seconds {}", load.seconds));
    for socket in &switch.sockets {
        line = line.arg(socket.display().to_string());
    }
    let mut job = Job::start(&line, &load.dir.join("traffic.log"))?;
    job.finish(WARM_UP + Duration::from_secs(load.seconds) + SLACK)?;
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
    let [first, second] = options.sockets.as_slice() else { bail!("two sockets are needed") };
    let rings = rings(options.rings);
    let config = Config {
        features: f::VERSION_1 | rings,
        required: f::VERSION_1 | rings,
        queue_size: RING_SIZE,
        rx_buffer_size: Some(2048),
        memory: Some(Layout::single(16 << 20).with_hugetlb()),
        timeout: Duration::from_secs(10),
        ..Config::default()
    };
    let a = NetDevice::connect(first, config.clone().mac_number(1))?;
    let b = NetDevice::connect(second, config.mac_number(2))?;
    let (sizes, rate) = match (options.frames, options.rate) {
        (Frames::Fixed(length), rate) => (Sizes::Fixed(length.into()), rate),
        (Frames::Mix, rate) => (Sizes::imix(), rate),
        (Frames::Segments, _) => bail!("frames longer than the MTU are not made yet"),
    };
    let rate = match rate {
        Rate::Full => None,
        Rate::PerSecond(rate) => Some(rate / 2.0),
        Rate::Lossless { .. } => bail!("rates are not searched for yet"),
    };
    if options.stations != Stations::ONE || options.pattern != Pattern::Pairs || options.resting != 0 {
        bail!("there are two ports with one address each");
    }
    let traffic = TrafficConfig { sizes, rate, ..TrafficConfig::default() };
    let mut generator = frontend::traffic::Generator::new(a, b, traffic)?;
    generator.run(WARM_UP)?;
    let report = generator.run(Duration::from_secs(options.seconds))?;
    for (way, direction) in [("forward", &report.forward), ("backward", &report.backward)] {
        ensure!(direction.received > 0, "no frame came through {way}");
        ensure!(direction.unrecognised == 0, "{} frames came damaged {way}", direction.unrecognised);
    }
    let mut latency = report.forward.latency.clone();
    latency.merge(&report.backward.latency);
    let ns = |percent| latency.percentile(percent).as_secs_f64() * 1e9;
    let measured = Measured::new()
        .with(&RATE, report.frames_per_second())
        .with(&THROUGHPUT, report.bits_per_second())
        .with(&LOSS, report.loss())
        .with(&P50, ns(50.0))
        .with(&P99, ns(99.0))
        .with(&LONGEST, ns(100.0));
    let measured = Measured { disturbed: own_wait(), ..measured };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
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
