//! Many flows through a switch that routes, by a process of its own: one thread, which is a guest at a vhost-user socket,
//! or sends at an interface by a packet socket, 64 frames in a system call.
//!
//! What arrives at a guest's socket is counted by that thread; what arrives at an interface is counted by the interface,
//! where it is dropped at once: a socket there would take time of the switch's processor.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use frontend::memory::Layout;
use frontend::{Config, NetDevice, VnetHeader, features as f};
use serde::{Deserialize, Serialize};

use super::datagrams::{Datagrams, FLOWS_MAX, Kind, LEN, is_one};
use super::frames::{BURST, Interface, parse_mac};
use super::{Measured, RING_SIZE};
use crate::guard::{Job, Line, interrupt, own_wait};
use crate::measures::{Better, LOSS, Measure, RATE, Unit};
use crate::peers::{RouterEnd, RouterSwitch, Work};

/// The verb by which this program starts itself as the generator.
pub(crate) const VERB: &str = "flows";

/// First frames of flows that arrive, while every frame is the first of its flow.
pub(crate) const NEW: Measure = Measure {
    name: "new flows",
    unit: Unit { name: "flows/s", shown: "Mflows/s", scale: 1e6, digits: 2 },
    better: Better::More,
};

/// Fewer flows than that are new for too short a time to say how many could be in a second.
const NEW_MIN: u32 = 65_536;
/// A pass over all flows may take as long.
const PASS: Duration = Duration::from_secs(60);
/// The sender rests for that long after its first pass.
const REST: Duration = Duration::from_secs(1);
/// What is on its way arrives in this time.
const SETTLE: Duration = Duration::from_millis(500);
/// Not measured: at least that long, and one pass if it ends before the longest. Flows that were lost are made.
const WARM_UP: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// Sent on after the measured time, so that whoever counts elsewhere ends first.
const AFTER: Duration = Duration::from_millis(500);
/// For connecting, and for the end.
const SLACK: Duration = Duration::from_secs(20);
/// What it prints before the time of the first pass, in nanoseconds, and when what is measured begins.
const FIRST: &str = "first ";
const BEGINS: &str = "begins";

/// The generator's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The interface of this namespace at which it sends.
    #[arg(long, required_unless_present = "device", conflicts_with = "device")]
    interface: Option<String>,
    /// The switch's vhost-user socket at which it is a guest and sends.
    #[arg(long)]
    device: Option<PathBuf>,
    /// The vhost-user socket at which it is another guest, to which all comes.
    #[arg(long)]
    receiver: Option<PathBuf>,
    /// Where frames are sent to: the router.
    #[arg(long, value_parser = parse_mac)]
    to: [u8; 6],
    /// How many flows there are.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(FLOWS_MAX)))]
    flows: u32,
    /// What flows.
    #[arg(long)]
    kind: Kind,
    /// How long is measured.
    #[arg(long)]
    seconds: u64,
}

/// What the process tells.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    /// Frames that were sent in a second: that the interface's driver was given, or that went into the ring.
    sent: f64,
    /// Frames that came to the receiver in a second; nothing without one.
    received: Option<f64>,
    /// As [`Measured::disturbed`].
    disturbed: Option<f64>,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flows<'a> {
    /// For logs.
    pub(crate) dir: &'a Path,
    /// The generator's processor.
    pub(crate) cpu: usize,
    /// What the switch does.
    pub(crate) work: Work,
    /// How many flows.
    pub(crate) count: u32,
    /// How long is measured.
    pub(crate) seconds: u64,
}

impl Flows<'_> {
    /// Sends them through `switch`.
    ///
    /// # Errors
    /// The generator fails, or nothing arrives.
    pub(crate) fn measure(&self, switch: &RouterSwitch) -> Result<Measured> {
        let line = self.line(switch)?;
        let before = switch.received()?;
        let mut job = Job::start(&line, &self.dir.join("flows.log"))?;
        let first: f64 = job.expect("end of the first pass", PASS + SLACK, |log| {
            log.lines().find_map(|line| line.strip_prefix(FIRST)?.parse().ok())
        })?;
        interrupt::pause(SETTLE)?;
        let first = switch.received()?.saturating_sub(before) as f64 / (first / 1e9);
        job.expect("first measured frame", WARM_UP[1] + SLACK, |log| log.contains(BEGINS).then_some(()))?;
        let (frames, began) = (switch.received()?, Instant::now());
        interrupt::pause(Duration::from_secs(self.seconds))?;
        let (frames, elapsed) = (switch.received()?.saturating_sub(frames) as f64, began.elapsed());
        job.finish(Duration::from_secs(self.seconds) + AFTER + SLACK)?;
        let log = job.log();
        let told: Told = serde_json::from_str(log.lines().last().unwrap_or_default())
            .with_context(|| format!("the generator printed {log}"))?;
        let rate = told.received.unwrap_or(frames / elapsed.as_secs_f64());
        ensure!(rate > 0.0, "no frame arrived");
        let loss = (1.0 - rate / told.sent.max(1.0)).max(0.0);
        let mut measured = Measured::new().with(&RATE, rate).with(&LOSS, loss);
        if told.received.is_none() && self.count >= NEW_MIN {
            measured = measured.with(&NEW, first);
        }
        measured.disturbed = told.disturbed.into_iter().chain(switch.waited()).reduce(f64::max);
        Ok(measured.by(line))
    }

    fn line(&self, switch: &RouterSwitch) -> Result<Line> {
        let own = std::env::current_exe().context("this program's path")?;
        let kind = if self.work == Work::Translate { "guests" } else { "prefixes" };
        let mut line = Line::new(own.display().to_string()).arg(VERB).cpu(self.cpu);
        line = line.words(&format!("--to {} --flows {} --kind {kind}", switch.mac, self.count));
        line = line.words(&format!("--seconds {}", self.seconds));
        line = match &switch.from {
            RouterEnd::Interface(name) => line.arg("--interface").arg(*name).netns(&switch.sender),
            RouterEnd::Guest(socket) => line.arg("--device").arg(socket.display().to_string()),
        };
        Ok(match &switch.to {
            RouterEnd::Interface(_) => line,
            RouterEnd::Guest(socket) => line.arg("--receiver").arg(socket.display().to_string()),
        })
    }
}

/// The generator's process: prints one line of JSON at the end.
///
/// # Errors
/// Interface or device cannot be opened, or break.
pub(crate) fn run(options: &Options) -> Result<()> {
    let connect = |path: &PathBuf, mac| NetDevice::connect(path, config().mac(mac));
    let out = match (&options.interface, &options.device) {
        (Some(name), _) => Out::Interface(Interface::open(name)?),
        (None, device) => Out::Guest(Box::new(connect(device.as_ref().context("no device")?, SENDER)?)),
    };
    let from = match &out {
        Out::Interface(interface) => interface.mac(),
        Out::Guest(_) => SENDER,
    };
    let receiver = options.receiver.as_ref().map(|path| connect(path, RECEIVER)).transpose()?;
    let datagrams = Datagrams::new(options.to, from, options.kind, options.flows);
    let mut sender = Sender { out, receiver, datagrams, sent: 0, received: 0, taken: Vec::new() };
    let began = Instant::now();
    sender.pass(PASS)?;
    println!("{FIRST}{}", began.elapsed().as_nanos());
    sleep(REST);
    sender.pass(WARM_UP[1])?;
    sender.run(WARM_UP[0])?;
    println!("{BEGINS}");
    (sender.sent, sender.received) = (0, 0);
    let began = Instant::now();
    sender.run(Duration::from_secs(options.seconds))?;
    let seconds = began.elapsed().as_secs_f64();
    let received = sender.receiver.is_some().then_some(sender.received as f64 / seconds);
    let told = Told { sent: sender.sent as f64 / seconds, received, disturbed: own_wait() };
    sender.run(AFTER)?;
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

/// The guests' addresses: of the one that sends, and of the one to which all comes.
pub(crate) const SENDER: [u8; 6] = [2, 0, 0, 0, 1, 2];
const RECEIVER: [u8; 6] = [2, 0, 0, 0, 2, 2];

fn config() -> Config {
    Config {
        features: f::VERSION_1 | f::MRG_RXBUF,
        required: f::VERSION_1,
        queue_size: RING_SIZE,
        rx_buffer_size: Some(2048),
        tx_buffer_size: Some(1536),
        align_frames: true,
        memory: Some(Layout::single(6 << 20).with_hugetlb()),
        timeout: Duration::from_secs(10),
        ..Config::default()
    }
}

enum Out {
    Interface(Interface),
    Guest(Box<NetDevice>),
}

struct Sender {
    out: Out,
    receiver: Option<NetDevice>,
    datagrams: Datagrams,
    sent: u64,
    received: u64,
    taken: Vec<u8>,
}

impl Sender {
    /// Each flow once, if there is time.
    fn pass(&mut self, longest: Duration) -> Result<()> {
        let began = Instant::now();
        let mut left = self.datagrams.flows() as usize;
        while left > 0 && began.elapsed() < longest {
            left -= self.burst(left.min(BURST))?;
        }
        Ok(())
    }

    fn run(&mut self, time: Duration) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < time {
            self.burst(BURST)?;
        }
        Ok(())
    }

    /// Sends at most `most` frames, as many as there is room for, and takes what has come.
    fn burst(&mut self, most: usize) -> Result<usize> {
        let datagrams = &mut self.datagrams;
        let sent = match &mut self.out {
            Out::Interface(interface) => {
                let frames: [[u8; LEN]; BURST] = std::array::from_fn(|n| match n < most {
                    true => datagrams.next(),
                    false => [0; LEN],
                });
                interface.offer(&frames.each_ref().map(|frame| frame.as_slice())[..most])?;
                most
            }
            Out::Guest(device) => {
                let queue = &mut device.pairs_mut()[0].tx;
                if queue.room() < most {
                    queue.reclaim()?;
                }
                let room = queue.room().min(most);
                for _ in 0..room {
                    ensure!(
                        queue.push(&VnetHeader::PLAIN, &[&datagrams.next()])?,
                        "the ring has less room than it said"
                    );
                }
                queue.flush();
                room
            }
        };
        self.sent += sent as u64;
        if let Some(receiver) = &mut self.receiver {
            for _ in 0..2 * BURST {
                if receiver.try_recv(&mut self.taken)?.is_none() {
                    break;
                }
                self.received += u64::from(is_one(&self.taken));
            }
        }
        if sent == 0 {
            std::hint::spin_loop();
        }
        Ok(sent)
    }
}
