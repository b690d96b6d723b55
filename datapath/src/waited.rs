//! How long a worker's thread could run and had to wait for its processor.
//!
//! Ticks go on meanwhile, and what a burst took is more than what it cost: on a machine where guests have as many threads as
//! there are processors, a worker is interrupted thousands of times a second. The kernel counts that time for each
//! thread.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use switch_core::Instant;

use crate::ticks::Clock;

/// How often the count is read at least, while there is work: so old may be what one burst is excused by.
const EVERY: Duration = Duration::from_millis(1);

/// See the module's text. For the thread that made it.
#[derive(Debug)]
pub(crate) struct Waited {
    /// Without the file the thread never waits.
    count: Option<File>,
    clock: Clock,
    /// Nanoseconds, as counted when it was read last.
    seen: u64,
    read: Instant,
}

impl Waited {
    /// Of the calling thread.
    pub(crate) fn new() -> Self {
        let count = File::open("/proc/thread-self/schedstat").ok();
        let mut new = Self { count, clock: Clock::start(), seen: 0, read: Instant::ORIGIN };
        new.ticks();
        new
    }

    /// Ticks that the thread has waited since the count was read last.
    pub(crate) fn ticks(&mut self) -> u64 {
        let mut text = [0; 64];
        let read = self.count.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        let Some(now) = text.get(..read).and_then(waiting) else { return 0 };
        let waited = now.saturating_sub(self.seen);
        self.seen = now;
        let ticks = u128::from(waited) * u128::from(self.clock.per_second()) / 1_000_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Reads the count if that is some time ago.
    pub(crate) fn refresh(&mut self, now: Instant) {
        if now.since(self.read) >= EVERY {
            self.read = now;
            self.ticks();
        }
    }
}

/// The second number of schedstat: nanoseconds.
fn waiting(schedstat: &[u8]) -> Option<u64> {
    std::str::from_utf8(schedstat).ok()?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_prints_is_read() {
        assert_eq!(waiting(b"99660 1592686 2\n"), Some(1_592_686));
        for nothing in [&b""[..], b"12", b"1 x 2", b"\xff \xff"] {
            assert_eq!(waiting(nothing), None);
        }
    }

    #[test]
    fn waiting_for_a_processor_counts_and_sleeping_does_not() {
        let waited = Waited::new();
        assert!(waited.count.is_some(), "{waited:?}");
        // More threads than processors, for so long that none goes without waiting.
        let threads = 4 * std::thread::available_parallelism().map_or(1, usize::from);
        let (waits, slept) = std::thread::scope(|scope| {
            let spin = || {
                let mut waited = Waited::new();
                let began = std::time::Instant::now();
                while began.elapsed() < Duration::from_millis(200) {
                    std::hint::spin_loop();
                }
                waited.ticks()
            };
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(spin)).collect();
            let waits = all.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>();
            let sleeper = scope.spawn(|| {
                let mut waited = Waited::new();
                let clock = Clock::start();
                std::thread::sleep(Duration::from_millis(200));
                (waited.ticks(), clock.elapsed())
            });
            (waits, sleeper.join().unwrap())
        });
        assert!(waits > 0);
        assert!(slept.0 < slept.1, "{slept:?}");
    }
}
