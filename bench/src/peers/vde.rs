//! VDE: `vde_switch`, a process that forwards between two taps. It knows no virtio headers.

use std::path::Path;

use anyhow::Result;

use super::{LIMIT, TapSwitch, hand_over, launch, namespaces, text};
use crate::guard::{Line, run};

pub(super) fn start(dir: &Path, cpu: usize) -> Result<TapSwitch> {
    let (ends, middle) = namespaces()?;
    let line =
        Line::new("vde_switch").arg("--sock").arg(text(&dir.join("vde"))).words("--tap tap0 --tap tap1");
    let mut commands = Vec::new();
    let mut job = launch(&line.cpu(cpu).netns(&middle), &dir.join("vde.log"), &mut commands)?;
    let last = Line::new("ip").arg("-n").arg(middle.name()).words("link show dev tap1");
    job.expect("taps", LIMIT, |_| run(&last, LIMIT).is_ok().then_some(()))?;
    hand_over(&ends, &middle, ["tap0", "tap1"])?;
    Ok(TapSwitch { commands, _jobs: vec![job], ends, _middle: middle })
}
