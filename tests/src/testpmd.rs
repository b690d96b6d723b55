//! DPDK's testpmd with two virtio-user ports: another project's front-end, at full speed.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{eventually, logs, process};

/// MAC addresses of the two ports.
const MACS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];

const START_LIMIT: Duration = Duration::from_secs(30);

/// The layout of the rings that testpmd sets up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingLayout {
    /// Split rings.
    Split,
    /// Split rings with `VIRTIO_F_IN_ORDER`, without mergeable buffers.
    SplitInOrder,
    /// Packed rings with mergeable buffers.
    Packed,
    /// Packed rings without mergeable buffers.
    PackedPlain,
    /// Packed rings with mergeable buffers and `VIRTIO_F_IN_ORDER`.
    PackedInOrder,
    /// Packed rings with `VIRTIO_F_IN_ORDER`, without mergeable buffers.
    PackedInOrderPlain,
}

/// A running testpmd. Dropped, it is killed.
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    dir: TempDir,
}

/// What testpmd counted at one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestpmdCounters {
    /// Frames that testpmd received.
    pub rx: u64,
    /// Frames that testpmd sent.
    pub tx: u64,
}

impl Testpmd {
    /// Starts testpmd on two vhost-user sockets, with `queues` queue pairs at each; with `server` it listens on them and the
    /// switch connects.
    ///
    /// Its memory is a memfd of small pages, so that no hugepages have to be reserved.
    ///
    /// # Errors
    /// It is not installed, or not ready within 30 s (as a server it waits for the switch to connect).
    pub fn start(sockets: [&Path; 2], layout: RingLayout, queues: u8, server: bool) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("weft-testpmd-").tempdir()?;
        let mut options = String::from(match layout {
            RingLayout::Split => "",
            RingLayout::SplitInOrder => ",in_order=1,mrg_rxbuf=0",
            RingLayout::Packed => ",packed_vq=1,in_order=0",
            RingLayout::PackedPlain => ",packed_vq=1,in_order=0,mrg_rxbuf=0",
            RingLayout::PackedInOrder => ",packed_vq=1,in_order=1",
            RingLayout::PackedInOrderPlain => ",packed_vq=1,in_order=1,mrg_rxbuf=0",
        });
        if server {
            options.push_str(",server=1");
        }
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd", "--lcores=0@0,1@0", "--no-pci", "--no-huge", "-m", "256"]);
        command.arg(format!("--file-prefix={}", prefix()));
        for (index, socket) in sockets.iter().enumerate() {
            command.arg(format!(
                "--vdev=net_virtio_user{index},path={},mac={},queues={queues},queue_size=1024{options}",
                socket.display(),
                MACS[index]
            ));
        }
        command.args(["--", "-i", "--nb-cores=1", "--forward-mode=mac", "--txd=1024", "--rxd=1024"]);
        command.arg(format!("--rxq={queues}")).arg(format!("--txq={queues}"));
        command.args(["--total-num-mbufs=16384"]);
        command.arg(format!("--eth-peer=0,{}", MACS[1])).arg(format!("--eth-peer=1,{}", MACS[0]));
        let log = File::create(dir.path().join("log"))?;
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().context("cannot start testpmd")?;
        let mut testpmd = Testpmd { child, dir };
        testpmd.await_line("its prompt", 0, START_LIMIT, |line| line.contains("testpmd>"))?;
        Ok(testpmd)
    }

    fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for a line that `wanted` accepts, after the first `from` bytes of the log; the log after them.
    fn await_line(
        &mut self,
        what: &str,
        from: usize,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        eventually(&format!("testpmd: {what}"), limit, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("testpmd ended ({status})");
            }
            let log = self.log();
            let new = log.get(from..).unwrap_or_default();
            Ok(if new.lines().any(&wanted) { Ok(new.to_string()) } else { Err("not seen".into()) })
        })
    }

    fn type_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("testpmd has no standard input")?;
        stdin.write_all(format!("{line}\n").as_bytes()).context("cannot write to testpmd")
    }

    /// Starts frames of `size` bytes circulating between its two ports through the switch.
    ///
    /// # Errors
    /// testpmd has ended.
    pub fn circulate(&mut self, size: u16) -> Result<()> {
        for line in ["stop", "set fwd mac", &format!("set txpkts {size}"), "start tx_first 32"] {
            self.type_line(line)?;
        }
        Ok(())
    }

    /// Stops sending, and takes what is still on its way, so that the counters can be compared.
    ///
    /// # Errors
    /// testpmd has ended.
    pub fn drain(&mut self) -> Result<()> {
        for line in ["stop", "set fwd rxonly", "start"] {
            self.type_line(line)?;
        }
        Ok(())
    }

    /// What it has counted at its two ports since its start.
    ///
    /// # Errors
    /// testpmd has ended, or does not answer.
    pub fn counters(&mut self) -> Result<[TestpmdCounters; 2]> {
        let from = self.log().len();
        self.type_line("show port stats all")?;
        let limit = Duration::from_secs(10);
        // What earlier commands print may come first. Each port's block ends in a line of its throughput.
        let mut answer = String::new();
        eventually("testpmd: its counters", limit, || {
            let log = self.log();
            let blocks = log.get(from..).unwrap_or_default().split_once("NIC statistics for port 0");
            answer = blocks.map(|(_, blocks)| blocks.to_string()).unwrap_or_default();
            let blocks = answer.matches("Tx-pps:").count();
            Ok(if blocks >= 2 { Ok(()) } else { Err(format!("{blocks} ports")) })
        })?;
        let numbers = |label: &str| -> Result<Vec<u64>> {
            let words: Vec<&str> = answer.split_whitespace().collect();
            let found = words.windows(2).filter(|pair| pair[0] == label);
            found.map(|pair| pair[1].parse().with_context(|| format!("{label} {}", pair[1]))).collect()
        };
        let (rx, tx) = (numbers("RX-packets:")?, numbers("TX-packets:")?);
        match (rx.as_slice(), tx.as_slice()) {
            ([rx0, rx1], [tx0, tx1]) => {
                Ok([TestpmdCounters { rx: *rx0, tx: *tx0 }, TestpmdCounters { rx: *rx1, tx: *tx1 }])
            }
            _ => bail!("testpmd's counters cannot be read: {answer}"),
        }
    }
}

/// The name of what testpmd puts into DPDK's run directory.
fn prefix() -> String {
    format!("weft-test-{}", std::process::id())
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        process::kill(&mut self.child);
        // A killed testpmd leaves it behind; there is none where it never started.
        let _ = std::fs::remove_dir_all(Path::new("/var/run/dpdk").join(prefix()));
        logs::keep("testpmd", &self.dir.path().join("log"));
    }
}
