//! What a run of the generator did.

use std::time::Duration;

use crate::histogram::Histogram;

/// What one device did.
#[derive(Clone, Debug, Default)]
pub struct PortReport {
    /// Frames sent.
    pub sent: u64,
    /// Frames that a rate asked for and the transmit ring had no room for.
    pub refused: u64,
    /// Frames that a rate asked for while the generator was not running: it was late, and does not catch up.
    pub skipped: u64,
    /// Frames received.
    pub received: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Frames that came after one of the same sender with a higher number.
    pub reordered: u64,
    /// Frames that are not the generator's, or not for this device, or whose bytes changed.
    pub unrecognised: u64,
    /// One-way latencies, of every eighth frame received.
    pub latency: Histogram,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Device by device.
    pub ports: Vec<PortReport>,
    /// How often each frame should be received.
    pub copies: u64,
    /// How long frames were sent.
    pub elapsed: Duration,
}

impl Report {
    pub(super) fn new(ports: usize, copies: u64) -> Self {
        Report { ports: vec![PortReport::default(); ports], copies, elapsed: Duration::ZERO }
    }

    fn sum(&self, of: impl Fn(&PortReport) -> u64) -> u64 {
        self.ports.iter().map(of).sum()
    }

    /// Frames sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sum(|port| port.sent)
    }

    /// Frames received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.sum(|port| port.received)
    }

    /// Frames sent that did not arrive, each counted for each receiver.
    #[must_use]
    pub fn lost(&self) -> u64 {
        (self.sent() * self.copies).saturating_sub(self.received())
    }

    /// Frames that came after one of the same sender with a higher number.
    #[must_use]
    pub fn reordered(&self) -> u64 {
        self.sum(|port| port.reordered)
    }

    /// Frames that are not the generator's, or not for the device that has them, or whose bytes changed.
    #[must_use]
    pub fn unrecognised(&self) -> u64 {
        self.sum(|port| port.unrecognised)
    }

    /// One-way latencies, of every eighth frame received.
    #[must_use]
    pub fn latency(&self) -> Histogram {
        let mut all = Histogram::new();
        self.ports.iter().for_each(|port| all.merge(&port.latency));
        all
    }

    fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Frames offered per second, whether the rings took them or not.
    #[must_use]
    pub fn offered_per_second(&self) -> f64 {
        self.per_second(self.sum(|port| port.sent + port.refused))
    }

    /// Frames received per second, all devices together.
    #[must_use]
    pub fn frames_per_second(&self) -> f64 {
        self.per_second(self.received())
    }

    /// Bits of frames received per second, all devices together.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        self.per_second(self.sum(|port| port.bytes) * 8)
    }

    /// The part of the frames that was lost, 0 to 1, those among them that a rate asked for and no ring took.
    #[must_use]
    pub fn loss(&self) -> f64 {
        let refused = self.sum(|port| port.refused) * self.copies;
        (self.lost() + refused) as f64 / (self.sent() * self.copies + refused).max(1) as f64
    }
}
