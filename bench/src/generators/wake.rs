//! Guests that rest, as a process of its own: what a switch does while none of many moves a frame, and how long the first
//! frame after a pause takes.
//!
//! Each guest's driver has its rings set up and enabled. One thread, pinned, sleeps while nothing is to move; the receiver
//! of a frame is polled, so that the time from the sender's notification to the frame's arrival is the switch's alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use frontend::histogram::Histogram;
use frontend::wire::{self, Flow};
use frontend::{Config, NetDevice};

use super::{Load, Measured};
use crate::guard::{Job, Line};
use crate::measures::{CPU, LONGEST, LOSS, P50, P99, WAKE_UPS};
use crate::peers::VhostSwitch;

/// The verb by which this program starts itself so.
pub(crate) const VERB: &str = "rest";

/// Before anything is measured: the switch learns, and comes to rest.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two frames: longer than any switch waits before it sleeps.
const PAUSE: Duration = Duration::from_millis(5);
/// A frame that has not arrived by then is lost.
const LOST: Duration = Duration::from_millis(200);
/// For connecting a guest.
const CONNECT: Duration = Duration::from_secs(10);
/// What it says when all guests are there, if nothing is measured.
const READY: &str = "resting";
/// Frames whose way is measured.
pub(super) const FRAMES: u32 = 1000;

/// The process's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The switch's sockets; two at least, if something is measured.
    #[arg(required = true)]
    sockets: Vec<PathBuf>,
    /// The switch's process. Without it nothing is measured: the guests are there until the process is ended.
    #[arg(long)]
    switch: Option<u32>,
    /// How long rest is measured.
    #[arg(long, default_value_t = 1)]
    seconds: u64,
}

/// Has guests rest until the job is dropped; nothing if there are no sockets.
///
/// # Errors
/// They do not connect.
pub(crate) fn hold(dir: &Path, cpu: usize, sockets: &[PathBuf]) -> Result<Option<(Job, Line)>> {
    if sockets.is_empty() {
        return Ok(None);
    }
    let own = std::env::current_exe().context("this program's path")?;
    let mut line = Line::new(own.display().to_string()).arg(VERB).cpu(cpu);
    for socket in sockets {
        line = line.arg(socket.display().to_string());
    }
    let mut job = Job::start(&line, &dir.join("rest.log"))?;
    job.expect(READY, limit(sockets.len()), |log| log.contains(READY).then_some(()))?;
    Ok(Some((job, line)))
}

/// The pause before a frame: not in step with any clock tick of the switch's.
pub(super) fn pause(number: u32) -> Duration {
    PAUSE + Duration::from_micros(u64::from(number % 97) * 10)
}

/// How long guests may take to connect.
fn limit(guests: usize) -> Duration {
    CONNECT + Duration::from_millis(100) * u32::try_from(guests).unwrap_or(u32::MAX)
}

/// Has every port's guest rest, then wakes the switch again and again.
///
/// # Errors
/// The process fails or hangs.
pub(crate) fn measure(switch: &VhostSwitch, load: &Load<'_>) -> Result<Measured> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut line = Line::new(own.display().to_string()).arg(VERB).cpu(load.cpu);
    let pid = switch.pid().context("the switch is no process")?;
    line = line.words(&format!("--seconds {} --switch {pid}", load.seconds));
    for socket in &switch.sockets {
        line = line.arg(socket.display().to_string());
    }
    let frames = (PAUSE + Duration::from_millis(1)) * FRAMES;
    let mut job = Job::start(&line, &load.dir.join("rest.log"))?;
    job.finish(limit(switch.sockets.len()) + SETTLE + Duration::from_secs(load.seconds) + 4 * frames)?;
    let log = job.log();
    let measured: Measured = serde_json::from_str(log.lines().last().unwrap_or_default())
        .with_context(|| format!("the guests' process printed {log}"))?;
    Ok(measured.by(line))
}

/// Small guests, one for each socket.
///
/// # Errors
/// One does not connect.
pub(crate) fn connect(sockets: &[PathBuf], queue_size: u16) -> Result<Vec<NetDevice>> {
    let guest = |(number, socket): (usize, &PathBuf)| {
        let config = Config { queue_size, rx_buffer_size: Some(2048), timeout: CONNECT, ..Config::default() };
        let config = Config { tx_buffer_size: Some(2048), ..config }.mac_number(number as u32 + 1);
        NetDevice::connect(socket, config).with_context(|| format!("guest {number}"))
    };
    sockets.iter().enumerate().map(guest).collect()
}

/// The process: prints one line of JSON.
///
/// # Errors
/// A guest cannot be set up or breaks, the switch's process is not there, or no frame arrives.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut guests = connect(&options.sockets, 64)?;
    for guest in &mut guests {
        let mac = guest.mac();
        guest.send(&wire::arp_request(mac, [10, 0, 0, 1], [10, 0, 0, 1]))?;
    }
    let Some(switch) = options.switch else {
        println!("{READY}");
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    };
    std::thread::sleep(SETTLE);
    for guest in &mut guests {
        guest.recv_all(Duration::ZERO)?;
    }
    // The last receive buffers that were given back are announced; after that nothing moves.
    std::thread::sleep(PAUSE);
    let (before, began) = (Forwarding::of(switch)?, Instant::now());
    std::thread::sleep(Duration::from_secs(options.seconds));
    let (after, rested) = (Forwarding::of(switch)?, began.elapsed());

    let mut latency = Histogram::new();
    let mut lost = 0u32;
    let (first, others) = guests.split_first_mut().context("no guest")?;
    let second = others.first_mut().context("no second guest")?;
    let flow = Flow::between(first.mac(), second.mac());
    let mut arrived = Vec::new();
    for number in 0..FRAMES {
        std::thread::sleep(pause(number));
        let mark = number.to_be_bytes();
        let frame = wire::udp(&flow, &mark);
        let sent = Instant::now();
        first.send(&frame)?;
        loop {
            match second.try_recv(&mut arrived)? {
                Some(_) if arrived.ends_with(&mark) => {
                    latency.record(sent.elapsed());
                    break;
                }
                // One that was given up comes late.
                Some(_) => {}
                None if sent.elapsed() > LOST => {
                    lost += 1;
                    break;
                }
                None => std::hint::spin_loop(),
            }
        }
    }
    ensure!(latency.count() > 0, "none of {FRAMES} frames arrived");
    let ns = |percent| latency.percentile(percent).as_secs_f64() * 1e9;
    let seconds = rested.as_secs_f64();
    let measured = Measured::new()
        .with(&CPU, (after.ran - before.ran) as f64 / 1e9 / seconds)
        .with(&WAKE_UPS, (after.switches - before.switches) as f64 / seconds)
        .with(&P50, ns(50.0))
        .with(&P99, ns(99.0))
        .with(&LONGEST, ns(100.0))
        .with(&LOSS, f64::from(lost) / f64::from(FRAMES));
    // The first processor is idle most of the time: waiting for it says nothing of the measurement.
    let measured = Measured { disturbed: Some(0.0), ..measured };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// What the forwarding threads of a switch did until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Forwarding {
    /// Nanoseconds on a processor.
    ran: u64,
    /// Times that a thread was given a processor: after it had waited for something, or for the processor.
    switches: u64,
}

/// What names of forwarding threads begin with: ours, and Open vSwitch's.
const THREADS: [&str; 2] = ["weft-worker", "pmd-"];

impl Forwarding {
    fn of(pid: u32) -> Result<Self> {
        let mut sum = Forwarding::default();
        let mut threads = 0;
        let tasks = format!("/proc/{pid}/task");
        for task in std::fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
            let task = task?.path();
            let read = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
            if !THREADS.iter().any(|name| read("comm").starts_with(name)) {
                continue;
            }
            threads += 1;
            let mut fields = read("schedstat");
            fields.truncate(fields.trim_end().len());
            // Nanoseconds on a processor, waiting for one, and how often it was given one.
            let mut fields = fields.split(' ').map(str::parse::<u64>);
            sum.ran += fields.next().context("no schedstat")??;
            sum.switches += fields.nth(1).context("a short schedstat")??;
        }
        ensure!(threads > 0, "process {pid} has no thread whose name begins with {}", THREADS.join(" or "));
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_found_by_their_names_and_what_they_did_is_read() {
        let pid = std::process::id();
        assert!(Forwarding::of(pid).is_err(), "no thread here forwards");
        let (started, start) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let worker = std::thread::Builder::new().name("weft-worker-0".into()).spawn(move || {
            started.send(()).expect("the test waits");
            let _ = ended.recv();
        });
        start.recv().expect("a thread");
        let seen = Forwarding::of(pid).expect("a thread of that name");
        assert!(seen.ran > 0 && seen.switches > 0, "{seen:?}");
        drop(end);
        worker.expect("a thread").join().expect("it ends");
    }
}
