//! iperf3 from a guest's network namespace to a server beside a switch that is the guest's way outside; and what processor
//! time the switch takes for it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Measured, iperf};
use crate::guard::{Line, run};
use crate::measures::{CPU_OF_BYTES, LOSS, THROUGHPUT};
use crate::peers::UserSwitch;

/// Payload of a datagram: with its headers it fits Ethernet's MTU.
const DATAGRAM: u32 = 1400;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the guest to the server.
    Up,
    /// From the server to the guest.
    Down,
}

/// The socket buffers of TCP's ends, and with them the most that can be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffers {
    /// As the kernel has them.
    Kernels,
    /// As pasta's own tests of its throughput have them (`test/perf/pasta_tcp`), as far as this kernel allows.
    PastasTests,
}

/// What those tests set in the guest's namespace.
const SYSCTLS: [&str; 3] = [
    "net.ipv4.tcp_rmem=131072 524288 134217728",
    "net.ipv4.tcp_wmem=131072 524288 134217728",
    "net.ipv4.tcp_timestamps=0",
];

/// What bytes are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// So many TCP connections at once.
    Tcp(u32),
    /// One socket's datagrams, as many as the sender can send.
    Udp,
}

/// Runs iperf3 through `switch`.
///
/// # Errors
/// iperf3 fails or hangs, or nothing arrives.
pub(crate) fn measure(
    switch: &UserSwitch,
    dir: &Path,
    carrier: Carrier,
    way: Way,
    buffers: Buffers,
    seconds: u64,
) -> Result<Measured> {
    let (_server, server_line) = iperf::serve(&switch.host, dir)?;
    let mut client = iperf::client(&switch.guest, UserSwitch::SERVER, seconds);
    client = match carrier {
        Carrier::Tcp(1) => client,
        Carrier::Tcp(streams) => client.words(&format!("--parallel {streams}")),
        Carrier::Udp => client.words(&format!("--udp --bitrate 0 --length {DATAGRAM}")),
    };
    if way == Way::Down {
        client = client.arg("--reverse");
    }
    let mut set = Vec::new();
    if buffers == Buffers::PastasTests {
        for sysctl in SYSCTLS {
            let line = Line::new("sysctl").arg("-qw").arg(sysctl).netns(&switch.guest);
            run(&line, iperf::LIMIT)?;
            set.push(line);
        }
        client = client.arg("--window").arg(switch.window);
    }
    let ticks = ticks_per_second()?;
    let measured = iperf::patiently(|| {
        let before = ticks_of(switch.pid())?;
        let report = iperf::report(&run(&client, iperf::limit(seconds))?)?;
        let took = ticks_of(switch.pid())?.saturating_sub(before) as f64 / ticks;
        let measured = Measured::new().with(&THROUGHPUT, iperf::rate(&report)?);
        Ok(match carrier {
            Carrier::Udp => measured.with(&LOSS, lost(&report)?),
            Carrier::Tcp(_) => measured.with(&CPU_OF_BYTES, took / carried(&report)?),
        })
    })?;
    let measured = set.into_iter().fold(measured, Measured::by);
    Ok(measured.by(server_line).by(client))
}

/// Payload bytes of a whole run, with those of the warm-up: the processor time is that of both.
fn carried(report: &Value) -> Result<f64> {
    let intervals = report["intervals"].as_array().context("iperf3's report has no intervals")?;
    let bytes: f64 = intervals.iter().filter_map(|interval| interval["sum"]["bytes"].as_f64()).sum();
    ensure!(bytes > 0.0, "iperf3 carried nothing");
    Ok(bytes)
}

/// The part of the datagrams that did not arrive. By bytes: iperf3 counts as lost what was lost in the warm-up too.
fn lost(report: &Value) -> Result<f64> {
    let bytes = |side: &str| {
        report["end"][side]["bytes"].as_f64().with_context(|| format!("iperf3 tells no bytes of {side}"))
    };
    Ok((1.0 - bytes("sum_received")? / bytes("sum_sent")?.max(1.0)).max(0.0))
}

/// Clock ticks that all threads of a process, those that have ended too, have run in user and kernel mode.
fn ticks_of(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    ticks_in(&text).with_context(|| format!("{path} says {text}"))
}

/// Of a line of `/proc/PID/stat`, fields 14 and 15. The name, field 2, is in brackets and may hold anything.
fn ticks_in(stat: &str) -> Option<u64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn ticks_per_second() -> Result<f64> {
    let text = run(&Line::new("getconf").arg("CLK_TCK"), iperf::LIMIT)?;
    text.trim().parse().with_context(|| format!("getconf said {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_those_of_user_and_kernel_mode() {
        let line = "77 (a) b (c)) S 1 2 3 4 -1 4194560 9 8 7 6 120 34 5 5 20 0 3 0 100\n";
        assert_eq!(ticks_in(line), Some(154));
        assert_eq!(ticks_in("77 (a) S 1"), None);
        assert!(ticks_of(std::process::id()).is_ok());
    }

    #[test]
    fn the_warm_up_is_carried_too_and_what_did_not_arrive_is_lost() {
        let report = serde_json::json!({
            "intervals": [{"sum": {"bytes": 5, "omitted": true}}, {"sum": {"bytes": 7, "omitted": false}}],
            "end": {"sum_sent": {"bytes": 4}, "sum_received": {"bytes": 3, "lost_packets": 9, "packets": 4}},
        });
        assert_eq!(carried(&report).expect("bytes"), 12.0);
        assert_eq!(lost(&report).expect("a part"), 0.25);
        assert!(carried(&serde_json::json!({"intervals": []})).is_err());
    }
}
