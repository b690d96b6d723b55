//! What drives the switches, and counts at the receiver.

pub(crate) mod iperf;
mod testpmd;
pub(crate) mod traffic;

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::machine::{self, Program};
use crate::peers::VhostSwitch;

/// The layout of the rings that a generator sets up. Every switch gets the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rings {
    /// Split rings with mergeable receive buffers.
    Split,
    /// Split rings with `VIRTIO_F_IN_ORDER`, without mergeable buffers.
    SplitInOrder,
}

impl Rings {
    /// All.
    pub(crate) const ALL: [Rings; 2] = [Rings::Split, Rings::SplitInOrder];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Rings::Split => "split",
            Rings::SplitInOrder => "split-inorder",
        }
    }
}

/// Descriptors of each ring.
pub(crate) const RING_SIZE: u16 = 1024;

/// What drives two vhost-user sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generator {
    /// DPDK's testpmd with two virtio-user ports: a fixed number of frames goes round and round.
    Testpmd,
    /// The generator of `frontend`: each port sends as fast as its ring takes frames.
    Traffic,
}

impl Generator {
    /// All.
    pub(crate) const ALL: [Generator; 2] = [Generator::Testpmd, Generator::Traffic];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Generator::Testpmd => "testpmd",
            Generator::Traffic => "traffic",
        }
    }

    /// What has to be installed for it.
    pub(crate) fn programs(self) -> &'static [Program] {
        match self {
            Generator::Testpmd => &[machine::TESTPMD],
            Generator::Traffic => &[],
        }
    }

    /// Drives `switch` for some seconds after a warm-up.
    ///
    /// # Errors
    /// The generator fails, hangs, or nothing arrives.
    pub(crate) fn measure(self, switch: &VhostSwitch, load: &Load<'_>) -> Result<Measured> {
        let mut measured = match self {
            Generator::Testpmd => testpmd::measure(switch, load)?,
            Generator::Traffic => traffic::measure(switch, load)?,
        };
        measured.disturbed = measured.disturbed.into_iter().chain(switch.waited()).reduce(f64::max);
        Ok(measured)
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    /// For logs.
    pub(crate) dir: &'a Path,
    /// The generator's processor.
    pub(crate) cpu: usize,
    /// The rings.
    pub(crate) rings: Rings,
    /// Length of the frames, bytes without check sequence.
    pub(crate) size: u16,
    /// How long is measured.
    pub(crate) seconds: u64,
}

/// What one run measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// At the receivers: frames per second of both ports together, or bits per second.
    pub(crate) rate: f64,
    /// The part of the sent frames that did not arrive, where the generator sends more than the switch takes.
    pub(crate) loss: Option<f64>,
    /// What others took of the processors. Where switch and generator are threads that poll, each on a processor of its
    /// own: the part of the time in which another thread had it, the larger of the two; else the part of all processors
    /// that was in use just before.
    pub(crate) disturbed: Option<f64>,
    /// The generator's command line.
    pub(crate) command: String,
}
