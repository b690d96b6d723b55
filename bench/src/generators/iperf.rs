//! iperf3: one TCP connection between two network namespaces, counted by the receiver. Client and server run where the
//! scheduler puts them, for every switch alike.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Measured;
use crate::guard::interrupt::pause;
use crate::guard::{Job, Line, Netns, run};
use crate::measures::THROUGHPUT;
use crate::peers::{ADDRESSES, TapSwitch};

/// Not measured, first: TCP's window grows, the switch learns.
const WARM_UP: u64 = 1;
/// For starting and ending.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// An interface that has just come up may take a moment to carry frames.
const ATTEMPTS: u32 = 5;

/// Runs one connection through `switch`.
///
/// # Errors
/// iperf3 fails or hangs.
pub(crate) fn measure(switch: &TapSwitch, dir: &Path, seconds: u64) -> Result<Measured> {
    let [client_end, server_end] = &switch.ends;
    let (_server, server_line) = serve(server_end, dir)?;
    let address = ADDRESSES[1].split('/').next().unwrap_or_default();
    let client = client(client_end, address, seconds);
    let rate = patiently(|| run(&client, limit(seconds)).and_then(|text| received(&text)))?;
    Ok(Measured::new().with(&THROUGHPUT, rate).by(server_line).by(client))
}

/// Starts a server, which is there until the job is dropped.
///
/// # Errors
/// It does not listen.
pub(crate) fn serve(netns: &Netns, dir: &Path) -> Result<(Job, Line)> {
    let line = Line::new("iperf3").words("--server --forceflush").netns(netns);
    let mut server = Job::start(&line, &dir.join("iperf-server.log"))?;
    server.expect("listening server", LIMIT, |log| log.contains("listening").then_some(()))?;
    Ok((server, line))
}

/// A client that sends over one connection and prints a report.
pub(crate) fn client(netns: &Netns, address: &str, seconds: u64) -> Line {
    let line = Line::new("iperf3").arg("--client").arg(address).netns(netns);
    line.words(&format!("--time {seconds} --omit {WARM_UP} --connect-timeout 2000 --json"))
}

/// How long such a client may take.
pub(crate) fn limit(seconds: u64) -> Duration {
    Duration::from_secs(seconds + WARM_UP) + LIMIT
}

/// Tries until it succeeds, a few times.
///
/// # Errors
/// The last one's.
pub(crate) fn patiently<T>(mut once: impl FnMut() -> Result<T>) -> Result<T> {
    let mut attempt = 1;
    loop {
        match once() {
            Ok(done) => return Ok(done),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => attempt += 1,
        }
        pause(Duration::from_millis(500))?;
    }
}

/// The receiver's rate in the client's report, which also a failed client prints.
///
/// # Errors
/// It failed, or received nothing.
pub(crate) fn received(text: &str) -> Result<f64> {
    rate(&report(text)?)
}

/// The client's report.
///
/// # Errors
/// It failed.
pub(crate) fn report(text: &str) -> Result<Value> {
    let report: Value = serde_json::from_str(text).with_context(|| format!("iperf3 printed {text}"))?;
    if let Some(error) = report.get("error").and_then(Value::as_str) {
        bail!("iperf3: {error}");
    }
    Ok(report)
}

/// The receiver's rate in a report.
///
/// # Errors
/// It received nothing.
pub(crate) fn rate(report: &Value) -> Result<f64> {
    let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    rate.filter(|rate| *rate > 0.0).context("iperf3 received nothing")
}

#[cfg(test)]
mod tests {
    use super::received;

    #[test]
    fn the_rate_is_the_receivers() {
        let text = r#"{"end":{"sum_sent":{"bits_per_second":9.0},"sum_received":{"bits_per_second":7.5}}}"#;
        assert_eq!(received(text).expect("a rate"), 7.5);
    }

    #[test]
    fn a_failed_connection_is_an_error() {
        for text in [r#"{"end":{},"error":"unable to connect"}"#, r#"{"end":{}}"#, "nothing"] {
            assert!(received(text).is_err(), "{text}");
        }
    }
}
