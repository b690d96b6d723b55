//! The bare reflector ([`crate::reflect`]) as a process of its own.

use anyhow::{Context, Result, bail};

use super::{LIMIT, Setup, VhostSwitch, launch, text};
use crate::guard::Line;

pub(super) fn start(setup: &Setup<'_>) -> Result<VhostSwitch> {
    let sockets = setup.sockets();
    let &[cpu] = setup.cpus.as_slice() else { bail!("the reflector has one thread") };
    let own = std::env::current_exe().context("this program's path")?;
    let mut line = Line::new(text(&own)).arg(crate::reflect::VERB).cpu(cpu);
    if setup.broadcast {
        line = line.arg("--broadcast");
    }
    for socket in &sockets {
        line = line.arg(text(socket));
    }
    let mut commands = Vec::new();
    let mut job = launch(&line, &setup.dir.join("reflector.log"), &mut commands)?;
    job.expect("sockets", LIMIT, |log| log.contains("ready").then_some(()))?;
    Ok(VhostSwitch { sockets, connects: false, commands, jobs: vec![job], _netns: None })
}
