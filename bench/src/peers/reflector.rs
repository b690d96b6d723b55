//! The bare reflector ([`crate::reflect`]) as a process of its own.

use std::path::Path;

use anyhow::{Context, Result};

use super::{LIMIT, VhostSwitch, launch, text};
use crate::guard::Line;

pub(super) fn start(dir: &Path, cpu: usize) -> Result<VhostSwitch> {
    let sockets = [dir.join("vhu0"), dir.join("vhu1")];
    let own = std::env::current_exe().context("this program's path")?;
    let mut line = Line::new(text(&own)).arg(crate::reflect::VERB).cpu(cpu);
    for socket in &sockets {
        line = line.arg(text(socket));
    }
    let mut commands = Vec::new();
    let mut job = launch(&line, &dir.join("reflector.log"), &mut commands)?;
    job.expect("sockets", LIMIT, |log| log.contains("ready").then_some(()))?;
    Ok(VhostSwitch { sockets, commands, jobs: vec![job], _netns: None })
}
