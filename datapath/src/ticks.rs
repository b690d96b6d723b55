//! The clock that work is measured by: the processor's time-stamp counter where there is one that a program may
//! read, the monotonic clock in nanoseconds elsewhere.
//!
//! Ticks are good for differences on one thread. They go on while a thread waits for a CPU, so what is measured
//! on a machine with more runnable threads than CPUs includes that. How long a tick is, [`Clock`] knows.

/// The counter now. It counts at a constant rate, and may differ by a little from CPU to CPU: a difference that
/// would be negative is to be taken as zero.
#[inline(always)]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it unless they asked
        // to be stopped for it (PR_SET_TSC), which nobody in this process does.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        (t.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(t.tv_nsec as u64)
    }
}

/// Both clocks at one moment, from which the length of a tick is measured: the longer ago, the better.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
    ticks: u64,
}

impl Clock {
    /// From now on.
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now(), ticks: now() }
    }

    /// Ticks since the start.
    pub fn elapsed(&self) -> u64 {
        now().saturating_sub(self.ticks)
    }

    /// Ticks in a second, as measured since the start; 0 if no time has passed.
    pub fn per_second(&self) -> u64 {
        let (ticks, nanos) = (u128::from(self.elapsed()), self.origin.elapsed().as_nanos());
        (ticks * 1_000_000_000).checked_div(nanos).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_pass() {
        let clock = Clock::start();
        let before = now();
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(now() > before);
        assert!(clock.elapsed() > 0);
        // Whatever the clock is, it is one of at least a microsecond and at most a tenth of a nanosecond.
        let rate = clock.per_second();
        assert!((1_000_000..10_000_000_000).contains(&rate), "{rate} a second");
    }
}
