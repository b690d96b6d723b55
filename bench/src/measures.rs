//! What a run measures: names, units, and whether more or less is better. Pure.
//!
//! A scenario takes from here what it measures, or has constants of its own made the same way.
#![allow(dead_code, reason = "for scenarios of which each uses a part")]

use serde::Serialize;

/// What a value counts, and how people are shown it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(into = "&'static str")]
pub(crate) struct Unit {
    /// As values are kept and as JSON has them.
    pub(crate) name: &'static str,
    /// As tables and plots have them.
    pub(crate) shown: &'static str,
    /// What a value is divided by to be shown.
    pub(crate) scale: f64,
    /// Digits after the point.
    pub(crate) digits: usize,
}

impl From<Unit> for &'static str {
    fn from(unit: Unit) -> Self {
        unit.name
    }
}

impl Unit {
    /// A value as people are shown it, without the unit.
    pub(crate) fn show(&self, value: f64) -> String {
        format!("{:.*}", self.digits, value / self.scale)
    }
}

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// The higher.
    More,
    /// The lower.
    Less,
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Measure {
    /// Its name, which is the key of a run's values.
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) better: Better,
}

pub(crate) const FRAMES: Unit = Unit { name: "frames/s", shown: "Mframes/s", scale: 1e6, digits: 2 };
pub(crate) const BITS: Unit = Unit { name: "bits/s", shown: "Gb/s", scale: 1e9, digits: 2 };
pub(crate) const NANOSECONDS: Unit = Unit { name: "ns", shown: "µs", scale: 1e3, digits: 1 };
/// A part of 1, shown per cent: a loss, or one processor's time.
pub(crate) const PART: Unit = Unit { name: "1", shown: "%", scale: 0.01, digits: 1 };
pub(crate) const SECONDS_PER_BYTE: Unit = Unit { name: "s/byte", shown: "s/GB", scale: 1e-9, digits: 3 };
pub(crate) const PER_SECOND: Unit = Unit { name: "1/s", shown: "1/s", scale: 1.0, digits: 1 };

/// The highest rate, at the receivers, all of them together.
pub(crate) const RATE: Measure = Measure { name: "rate", unit: FRAMES, better: Better::More };
/// The same in bits of frames.
pub(crate) const THROUGHPUT: Measure = Measure { name: "throughput", unit: BITS, better: Better::More };
/// The part of the sent frames that did not arrive.
pub(crate) const LOSS: Measure = Measure { name: "loss", unit: PART, better: Better::Less };
/// The highest rate at which nothing is lost.
pub(crate) const LOSS_FREE: Measure =
    Measure { name: "rate without loss", unit: FRAMES, better: Better::More };
/// The same in bits of frames.
pub(crate) const LOSS_FREE_THROUGHPUT: Measure =
    Measure { name: "throughput without loss", unit: BITS, better: Better::More };
/// One-way latency: half of the frames are faster.
pub(crate) const P50: Measure = Measure { name: "latency p50", unit: NANOSECONDS, better: Better::Less };
/// One-way latency: 99 of 100 frames are faster.
pub(crate) const P99: Measure = Measure { name: "latency p99", unit: NANOSECONDS, better: Better::Less };
/// One-way latency: none took longer.
pub(crate) const LONGEST: Measure = Measure { name: "latency max", unit: NANOSECONDS, better: Better::Less };
/// Processor time that the switch takes, of one processor.
pub(crate) const CPU: Measure = Measure { name: "CPU use", unit: PART, better: Better::Less };
/// How often a thread of the switch is woken.
pub(crate) const WAKE_UPS: Measure = Measure { name: "wake-ups", unit: PER_SECOND, better: Better::Less };
/// Questions that were answered, one after the other.
pub(crate) const ROUND_TRIPS: Measure =
    Measure { name: "round trips", unit: PER_SECOND, better: Better::More };
/// Processor time that the switch takes for what it carries, all its threads, in user and kernel mode.
pub(crate) const CPU_OF_BYTES: Measure =
    Measure { name: "CPU time", unit: SECONDS_PER_BYTE, better: Better::Less };
/// Connections that were opened, asked one question, answered and closed.
pub(crate) const CONNECTIONS: Measure =
    Measure { name: "connections", unit: PER_SECOND, better: Better::More };
/// The part of the connections that were not.
pub(crate) const FAILED: Measure = Measure { name: "failed", unit: PART, better: Better::Less };
