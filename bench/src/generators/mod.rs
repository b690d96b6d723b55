//! What drives the switches, and counts at the receiver.

pub(crate) mod attack;
pub(crate) mod bare_wake;
pub(crate) mod calls;
mod datagrams;
pub(crate) mod flows;
pub(crate) mod frames;
pub(crate) mod iperf;
pub(crate) mod load;
pub(crate) mod outward;
mod testpmd;
pub(crate) mod traffic;
pub(crate) mod wake;

use std::collections::BTreeMap;
use std::fmt::Display;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub(crate) use load::{Frames, Load, Pattern, Rate, Rings, Stations};

use crate::machine::{self, Program};
use crate::measures::Measure;
use crate::peers::VhostSwitch;

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
    pub(crate) const ALL: [Generator; 2] = [Generator::Traffic, Generator::Testpmd];

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

    /// Whether it makes such a load.
    pub(crate) fn makes(self, load: &Load<'_>) -> bool {
        match self {
            Generator::Testpmd => testpmd::makes(load),
            Generator::Traffic => true,
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

/// What one run measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// By the name of a [`Measure`], in its unit; counted at the receivers.
    pub(crate) values: BTreeMap<String, f64>,
    /// What others took of the processors. Where switch and generator are threads that poll, each on a processor of its
    /// own: the part of the time in which another thread had it, the larger of the two; else the part of all processors
    /// that was in use just before.
    pub(crate) disturbed: Option<f64>,
    /// Of a search for the highest rate without loss: whether the generator could not offer more than it found.
    pub(crate) generator_limit: Option<bool>,
    /// The generator's command lines.
    pub(crate) commands: Vec<String>,
}

impl Measured {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Measured::default()
    }

    /// With a value of `measure`.
    pub(crate) fn with(mut self, measure: &Measure, value: f64) -> Self {
        self.values.insert(measure.name.into(), value);
        self
    }

    /// The value of `measure`, if it has one.
    pub(crate) fn get(&self, measure: &Measure) -> Option<f64> {
        self.values.get(measure.name).copied()
    }

    /// Without the values that are not of `measures`.
    pub(crate) fn only(mut self, measures: &[Measure]) -> Self {
        self.values.retain(|name, _| measures.iter().any(|measure| measure.name == name));
        self
    }

    /// With the command line by which it was made.
    pub(crate) fn by(mut self, command: impl Display) -> Self {
        self.commands.push(command.to_string());
        self
    }

    /// Those of `measures` that it has, as people read them.
    pub(crate) fn show(&self, measures: &[Measure]) -> String {
        let shown = measures.iter().filter_map(|measure| {
            let value = measure.unit.show(self.get(measure)?);
            Some(format!("{} {value} {}", measure.name, measure.unit.shown))
        });
        shown.collect::<Vec<_>>().join(", ")
    }
}
