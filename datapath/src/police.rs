//! How much a port may send. The rate is xl's: so many bytes in each window, and a guest that has used them up
//! waits: its ring is left alone until the window turns, so nothing is dropped for it.

use std::sync::Mutex;
use std::time::Duration;

use switch_core::Instant;

/// A limit on the bytes that a port sends.
#[derive(Debug)]
pub struct RateLimit {
    /// Bytes in each window.
    bytes: u64,
    window: Duration,
    state: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    ends: Instant,
    used: u64,
}

impl RateLimit {
    /// At most `bytes` bytes in each `window`. A frame that begins within the limit may end beyond it; the
    /// excess counts for the next window.
    pub fn new(bytes: u64, window: Duration) -> Self {
        let window = window.max(Duration::from_micros(100));
        Self { bytes: bytes.max(1), window, state: Mutex::new(Window { ends: Instant::ORIGIN, used: 0 }) }
    }

    /// `None` if the port may send now, else when it may.
    pub fn wait_until(&self, now: Instant) -> Option<Instant> {
        let mut w = self.state.lock().unwrap_or_else(|e| e.into_inner());
        while now >= w.ends && w.used > 0 {
            let idle = now.since(w.ends) > self.window.saturating_mul(64);
            w.used = if idle { 0 } else { w.used.saturating_sub(self.bytes) };
            w.ends = w.ends + self.window;
        }
        if w.used == 0 && now >= w.ends {
            w.ends = now + self.window;
        }
        (w.used >= self.bytes).then_some(w.ends)
    }

    /// The port sent `bytes`.
    pub fn spend(&self, bytes: u64) {
        let mut w = self.state.lock().unwrap_or_else(|e| e.into_inner());
        w.used = w.used.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_so_many_bytes_a_window() {
        let rate = RateLimit::new(20_000, Duration::from_millis(20));
        let mut now = Instant::from_secs(1);
        let mut sent = 0u64;
        for _ in 0..100_000 {
            match rate.wait_until(now) {
                None => {
                    rate.spend(1514);
                    sent += 1514;
                }
                Some(t) => {
                    assert!(t > now);
                    now = t;
                }
            }
        }
        let seconds = now.since(Instant::from_secs(1)).as_secs_f64();
        let per_second = sent as f64 / seconds;
        assert!((per_second / 1_000_000.0 - 1.0).abs() < 0.01, "{per_second} B/s of 1,000,000");
    }
}
