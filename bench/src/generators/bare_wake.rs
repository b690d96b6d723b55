//! What waking a thread costs by itself: two threads, each pinned, and one event between them. No switch that sleeps is there
//! sooner, on this machine, at this time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use frontend::histogram::Histogram;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::wake::{FRAMES, pause};
use super::{Load, Measured};
use crate::guard::{Job, Line};
use crate::measures::{LONGEST, P50, P99};

/// The verb by which this program starts itself so.
pub(crate) const VERB: &str = "bare-wake";

/// Beyond what the pauses take.
const LIMIT: Duration = Duration::from_secs(30);

/// The process's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The processor of the thread that is woken.
    #[arg(long)]
    sleeper: usize,
}

/// Wakes a thread on processor `sleeper` again and again.
///
/// # Errors
/// The process fails or hangs.
pub(crate) fn measure(sleeper: usize, load: &Load<'_>) -> Result<Measured> {
    let own = std::env::current_exe().context("this program's path")?;
    let line = Line::new(own.display().to_string()).arg(VERB).cpu(load.cpu);
    let line = line.words(&format!("--sleeper {sleeper}"));
    let mut job = Job::start(&line, &load.dir.join("bare-wake.log"))?;
    job.finish(LIMIT)?;
    let log = job.log();
    let measured: Measured = serde_json::from_str(log.lines().last().unwrap_or_default())
        .with_context(|| format!("the process printed {log}"))?;
    Ok(measured.by(line))
}

/// The process: prints one line of JSON.
///
/// # Errors
/// There is no such processor, or no descriptor.
pub(crate) fn run(options: &Options) -> Result<()> {
    let event = Arc::new(eventfd(0, EventfdFlags::empty()).context("an eventfd")?);
    let seen = Arc::new(AtomicU32::new(0));
    let (asleep, told) = (Arc::clone(&event), Arc::clone(&seen));
    let mut cpus = CpuSet::new();
    cpus.set(options.sleeper);
    let woken = std::thread::spawn(move || -> Result<()> {
        sched_setaffinity(None, &cpus).context("pinning the thread that is woken")?;
        let mut count = [0; 8];
        for number in 1..=FRAMES {
            rustix::io::read(&*asleep, &mut count)?;
            told.store(number, Ordering::Release);
        }
        Ok(())
    });
    let mut latency = Histogram::new();
    for number in 1..=FRAMES {
        std::thread::sleep(pause(number));
        let sent = Instant::now();
        rustix::io::write(&*event, &1u64.to_ne_bytes())?;
        while seen.load(Ordering::Acquire) < number && !woken.is_finished() {
            std::hint::spin_loop();
        }
        latency.record(sent.elapsed());
    }
    woken.join().map_err(|_| anyhow::anyhow!("the thread that is woken ended"))??;
    let ns = |percent| latency.percentile(percent).as_secs_f64() * 1e9;
    let measured = Measured::new().with(&P50, ns(50.0)).with(&P99, ns(99.0)).with(&LONGEST, ns(100.0));
    println!("{}", serde_json::to_string(&Measured { disturbed: Some(0.0), ..measured })?);
    Ok(())
}
