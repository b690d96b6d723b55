//! The generator of `frontend` as a process of its own, pinned: one thread drives both devices, each sends as fast as its
//! ring takes frames, and sequence numbers are counted where they arrive. What the switch drops is loss.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use frontend::memory::Layout;
use frontend::traffic::{Sizes, TrafficConfig};
use frontend::{Config, NetDevice, features as f};

use super::{Load, Measured, RING_SIZE, Rings};
use crate::guard::{Job, Line, own_wait};
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
    #[arg(num_args = 2)]
    sockets: Vec<PathBuf>,
    /// Length of the frames.
    #[arg(long)]
    size: u16,
    /// How long is measured.
    #[arg(long)]
    seconds: u64,
    /// Whether the rings are in order, without mergeable buffers.
    #[arg(long)]
    in_order: bool,
}

pub(super) fn measure(switch: &VhostSwitch, load: &Load<'_>) -> Result<Measured> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut line = Line::new(own.display().to_string()).arg(VERB).cpu(load.cpu);
    line = line.words(&format!("--size {} --seconds {}", load.size, load.seconds));
    if load.rings == Rings::SplitInOrder {
        line = line.arg("--in-order");
    }
    for socket in &switch.sockets {
        line = line.arg(socket.display().to_string());
    }
    let mut job = Job::start(&line, &load.dir.join("traffic.log"))?;
    job.finish(WARM_UP + Duration::from_secs(load.seconds) + SLACK)?;
    let log = job.log();
    let mut measured: Measured = serde_json::from_str(log.lines().last().unwrap_or_default())
        .with_context(|| format!("the generator printed {log}"))?;
    measured.command = line.to_string();
    Ok(measured)
}

/// The generator's process: prints one line of JSON.
///
/// # Errors
/// A device cannot be set up or breaks, or nothing arrives.
pub(crate) fn run(options: &Options) -> Result<()> {
    let [first, second] = options.sockets.as_slice() else { bail!("two sockets are needed") };
    let rings = if options.in_order { f::IN_ORDER } else { f::MRG_RXBUF };
    let config = Config {
        features: f::VERSION_1 | f::EVENT_IDX | rings,
        required: f::VERSION_1 | rings,
        queue_size: RING_SIZE,
        rx_buffer_size: Some(2048),
        memory: Some(Layout::single(16 << 20).with_hugetlb()),
        timeout: Duration::from_secs(10),
        ..Config::default()
    };
    let a = NetDevice::connect(first, config.clone().mac_number(1))?;
    let b = NetDevice::connect(second, config.mac_number(2))?;
    let traffic = TrafficConfig { sizes: Sizes::Fixed(options.size.into()), ..TrafficConfig::default() };
    let mut generator = frontend::traffic::Generator::new(a, b, traffic)?;
    generator.run(WARM_UP)?;
    let report = generator.run(Duration::from_secs(options.seconds))?;
    for (way, direction) in [("forward", &report.forward), ("backward", &report.backward)] {
        ensure!(direction.received > 0, "no frame came through {way}");
        ensure!(direction.unrecognised == 0, "{} frames came damaged {way}", direction.unrecognised);
    }
    let measured = Measured {
        rate: report.frames_per_second(),
        loss: Some(report.loss()),
        disturbed: own_wait(),
        command: String::new(),
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}
