//! Whether threads wait for processors that a worker could leave to them.
//!
//! A worker that polls in vain costs nobody anything as long as there is a processor for every thread that can run. Where
//! there is not, it keeps one from those whose frames it waits for: two processes that send TCP to each other by taps
//! of one network, on a machine with two processors, had half the rate that they have with a worker that sleeps at once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use switch_core::Instant;

/// How often the kernel is asked; that takes it some two microseconds.
const EVERY: Duration = Duration::from_millis(1);
/// Of the last answers, a newer one counting for more than an older one, the part that says whether threads wait: one that
/// wakes now and then, as the kernel's own do, is no crowd.
const PART: u32 = ONE / 4;
const ONE: u32 = 1 << 10;
/// The newest answer's weight is one in so many.
const WEIGHT: u32 = 8;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// Where the kernel tells it; without the file nobody waits.
    load: Option<File>,
    processors: usize,
    asked: Instant,
    /// Of [`ONE`].
    waited: u32,
}

impl Crowd {
    pub(crate) fn new() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let processors = processors(&stat);
        let load = File::open("/proc/loadavg").ok().filter(|_| processors > 0);
        Self { load, processors, asked: Instant::ORIGIN, waited: 0 }
    }

    /// Whether more threads could run than there are processors, again and again in the last milliseconds.
    pub(crate) fn waits(&mut self, now: Instant) -> bool {
        if now.since(self.asked) >= EVERY {
            self.asked = now;
            let mut text = [0; 64];
            let read = self.load.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
            let wait = runnable(text.get(..read).unwrap_or_default()) > self.processors;
            self.waited = self.waited - self.waited / WEIGHT + if wait { ONE / WEIGHT } else { 0 };
        }
        self.waited >= PART
    }
}

/// Processors that are online, as /proc/stat has a line `cpuN` for each.
fn processors(stat: &str) -> usize {
    let one = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(one).count()
}

/// Threads that run or could, as /proc/loadavg has them before its slash; 0 if it has none.
fn runnable(loadavg: &[u8]) -> usize {
    let text = std::str::from_utf8(loadavg).unwrap_or_default();
    let threads = text.split_whitespace().nth(3).and_then(|field| field.split('/').next());
    threads.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_prints_is_read() {
        assert_eq!(runnable(b"0.20 0.18 0.12 3/80 11206\n"), 3);
        assert_eq!(runnable(b"0.20 0.18"), 0);
        assert_eq!(runnable(b"0.20 0.18 0.12 x/y 1"), 0);
        assert_eq!(runnable(&[0xff; 9]), 0);
        assert_eq!(processors("cpu  1 2\ncpu0 1 2\ncpu1 1 2\nctxt 5\ncpufreq 1\n"), 2);
        assert_eq!(processors(""), 0);
    }

    #[test]
    fn one_that_wakes_now_and_then_is_no_crowd() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let mut crowd =
            Crowd { load: File::open(path).ok(), processors: 2, asked: Instant::ORIGIN, waited: 0 };
        let mut ms = 0;
        let mut after = |crowd: &mut Crowd, threads: usize| {
            std::fs::write(path, format!("0 0 0 {threads}/80 1\n")).unwrap();
            ms += 1;
            // It is asked once in a millisecond.
            crowd.waits(Instant::from_nanos(ms * 1_000_000 - 1));
            let waited = crowd.waited;
            crowd.waits(Instant::from_nanos(ms * 1_000_000));
            (waited, crowd.waits(Instant::from_nanos(ms * 1_000_000 + 1)))
        };
        for round in 0..100 {
            assert!(!after(&mut crowd, if round % 10 == 0 { 3 } else { 2 }).1, "{round}");
        }
        let (before, _) = after(&mut crowd, 3);
        assert!(before < PART);
        assert!((0..8).map(|_| after(&mut crowd, 3).1).last().unwrap());
        // Every second time.
        assert!((0..100).all(|round| after(&mut crowd, 2 + round % 2).1));
        assert!((0..20).any(|_| !after(&mut crowd, 2).1));
    }

    #[test]
    fn this_machine_tells() {
        let crowd = Crowd::new();
        assert!(crowd.load.is_some() && crowd.processors >= 1, "{crowd:?}");
    }
}
