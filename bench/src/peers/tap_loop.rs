//! The bare loop between two taps (`datapath`'s example `tap_loop`): virtio headers and segmentation offload, no decision.

use std::path::Path;

use anyhow::Result;

use super::{LIMIT, TapSwitch, hand_over, launch, namespaces, text};
use crate::guard::Line;
use crate::machine::built;

pub(super) fn start(dir: &Path, cpu: usize) -> Result<TapSwitch> {
    let binary = built("examples/tap_loop", "cargo build --release -p datapath --example tap_loop")?;
    let (ends, middle) = namespaces()?;
    let line = Line::new(text(&binary)).words("tap0 tap1").cpu(cpu).netns(&middle);
    let mut commands = Vec::new();
    let mut job = launch(&line, &dir.join("loop.log"), &mut commands)?;
    job.expect("taps", LIMIT, |log| log.contains("ready").then_some(()))?;
    hand_over(&ends, &middle, ["tap0", "tap1"])?;
    Ok(TapSwitch { commands, _jobs: vec![job], ends, _middle: middle })
}
