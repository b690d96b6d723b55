//! DPDK's testpmd as a switch: two vhost ports, each one's frames forwarded to the other as they are. It decides nothing,
//! so it shows what DPDK's vhost library alone costs.

use anyhow::{Result, bail};

use super::{LIMIT, Setup, VhostSwitch, beside, launch, text};
use crate::guard::Line;

pub(super) fn start(setup: &Setup<'_>) -> Result<VhostSwitch> {
    let (&[cpu], sockets, dir) = (setup.cpus.as_slice(), setup.sockets(), setup.dir) else {
        bail!("testpmd io has one forwarding thread here");
    };
    let mut line = Line::new("dpdk-testpmd").unbuffered();
    line = line
        .arg(format!("--lcores=0@{},1@{cpu}", beside(&setup.cpus)))
        .words("--no-pci --in-memory --socket-mem 512");
    // Offloads are a property of the device; frames of many buffers one of the transmit queue.
    let (tso, offloads) = if setup.segments { (",tso=1", " --tx-offloads=0x8000") } else { ("", "") };
    for (number, socket) in sockets.iter().enumerate() {
        line = line.arg(format!("--vdev=net_vhost{number},iface={},queues=1{tso}", text(socket)));
    }
    line = line.words("-- -i --nb-cores=1 --forward-mode=io --txd=1024 --rxd=1024 --total-num-mbufs=65536");
    line = line.words(offloads);
    let mut commands = Vec::new();
    let mut job = launch(&line, &dir.join("testpmd-io.log"), &mut commands)?;
    job.expect("prompt", LIMIT, |log| log.contains("testpmd>").then_some(()))?;
    job.type_line("start")?;
    job.expect("forwarding", LIMIT, |log| log.contains("io packet forwarding").then_some(()))?;
    Ok(VhostSwitch { sockets, connects: false, commands, jobs: vec![job], _netns: None })
}
