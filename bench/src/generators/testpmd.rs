//! DPDK's testpmd with two virtio-user ports in one process. `start tx_first` sends 1,024 frames from each port; from then
//! on what arrives at a port is sent back by the other with addresses exchanged, so frames go round through the switch.
//! A frame that the switch drops is gone for good. Rates are testpmd's own count of received frames.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Frames, Load, Measured, Pattern, RING_SIZE, Rate, Stations};
use crate::guard::interrupt::pause;
use crate::guard::{Job, Line};
use crate::measures::RATE;
use crate::peers::VhostSwitch;

const MACS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];
/// How long it may take to start: it waits for the switch in the set-up of its ports.
const START_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Frames circulate this long before the count begins: the switch has learned, caches are filled.
const WARM_UP: Duration = Duration::from_secs(2);

pub(super) fn measure(switch: &VhostSwitch, load: &Load<'_>) -> Result<Measured> {
    let (Frames::Fixed(length), [_, _]) = (load.frames, switch.sockets.as_slice()) else {
        bail!("testpmd has two ports and sends frames of one length");
    };
    if switch.connects {
        bail!("testpmd is not asked to listen here");
    }
    let bit = u8::from;
    let rings = load.rings;
    let options = format!(
        "packed_vq={},mrg_rxbuf={},in_order={}",
        bit(rings.packed),
        bit(rings.mergeable),
        bit(rings.in_order)
    );
    let cpu = load.cpu;
    let mut line = Line::new("dpdk-testpmd").unbuffered().arg(format!("--lcores=0@{cpu},1@{cpu}"));
    line = line.words("--no-pci --in-memory --single-file-segments --socket-mem 512");
    for (number, (socket, mac)) in switch.sockets.iter().zip(MACS).enumerate() {
        let path = socket.display();
        line = line.arg(format!(
            "--vdev=net_virtio_user{number},path={path},mac={mac},queues=1,queue_size={RING_SIZE},{options}"
        ));
    }
    line = line.words("-- -i --nb-cores=1 --forward-mode=mac --total-num-mbufs=32768");
    line = line.arg(format!("--txd={RING_SIZE}")).arg(format!("--rxd={RING_SIZE}"));
    line = line.arg(format!("--eth-peer=0,{}", MACS[1])).arg(format!("--eth-peer=1,{}", MACS[0]));

    let mut job = Job::start(&line, &load.dir.join("testpmd.log"))?;
    job.expect("prompt", START_LIMIT, |log| log.contains("testpmd>").then_some(()))?;
    job.type_line(&format!("set txpkts {}", length))?;
    job.type_line("start tx_first 32")?;
    pause(WARM_UP)?;
    // Each answer holds the rates since the answer before, by testpmd's own clock.
    received(&mut job)?;
    pause(Duration::from_secs(load.seconds))?;
    let rate = received(&mut job)?;
    let waited = job.waited();
    job.type_line("stop")?;
    job.type_line("quit")?;
    if rate == 0.0 {
        bail!("nothing came through: {}", job.log());
    }
    Ok(Measured { disturbed: waited, ..Measured::new().with(&RATE, rate).by(&line) })
}

/// Its virtio-user ports know no event index, and have indirect tables only where a frame is in several buffers.
pub(super) fn makes(load: &Load<'_>) -> bool {
    matches!(load.frames, Frames::Fixed(_))
        && !load.rings.indirect
        && !load.rings.event_index
        && load.rate == Rate::Full
        && load.stations == Stations::ONE
        && load.pattern == Pattern::Pairs
        && load.resting == 0
}

/// Frames received per second, both ports together, since the last call.
fn received(job: &mut Job) -> Result<f64> {
    job.type_line("show port stats all")?;
    job.expect("port statistics", ANSWER_LIMIT, rates)
}

/// The sum of the two ports' receive rates; `None` while a part of the answer is missing.
fn rates(log: &str) -> Option<f64> {
    // Each port's block ends, after the line of what it sent, in a bar.
    let sent = log.rmatch_indices("Tx-pps:").map(|(at, _)| at).collect::<Vec<_>>();
    if sent.len() < 2 || !log[sent[0]..].contains("####") {
        return None;
    }
    let received = log.lines().filter(|line| line.contains("Rx-pps:"));
    let numbers: Vec<f64> =
        received.filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
    (numbers.len() == 2).then(|| numbers.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::rates;

    const ANSWER: &str = "\
  ######################## NIC statistics for port 0  ########################
  RX-packets: 91       RX-missed: 0          RX-bytes:  5824

  Throughput (since last show)
  Rx-pps:      4100000          Rx-bps:   2099200000
  Tx-pps:      4099999          Tx-bps:   2099199488
  ############################################################################

  ######################## NIC statistics for port 1  ########################
  RX-packets: 92       RX-missed: 0          RX-bytes:  5888

  Throughput (since last show)
  Rx-pps:      4200000          Rx-bps:   2150400000
  Tx-pps:      4099999          Tx-bps:   2099199488
  ############################################################################
";

    #[test]
    fn the_rate_is_what_both_ports_received() {
        assert_eq!(rates(ANSWER), Some(8_300_000.0));
    }

    #[test]
    fn half_an_answer_is_none() {
        for end in ["port 1", "4200", "Tx-pps:      4099999          Tx-bps:   2099199488\n  ####"] {
            let cut = ANSWER.find(end).expect("in the answer") + end.len();
            assert_eq!(rates(&ANSWER[..cut]), None, "cut after {end:?}");
        }
    }
}
