//! What crosses an interface, as tcpdump sees it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::{Netns, Program};

/// How long tcpdump may take for anything, on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);

/// A running tcpdump. One line for each packet, with its link header.
#[derive(Debug)]
pub struct Sniffer {
    program: Program,
}

impl Sniffer {
    /// Starts tcpdump on `interface`, or on all with `any`, and returns when it sees what comes.
    ///
    /// # Errors
    /// There is no such interface, or the filter is wrong.
    pub fn start(namespace: &Netns, interface: &str, filter: &str) -> Result<Self> {
        let mut args = vec!["-n", "-e", "-l", "-K", "--immediate-mode", "-i", interface];
        args.extend(filter.split_whitespace());
        let mut program = Program::start(namespace, "tcpdump", &args)?;
        program.await_log("listening on", LIMIT)?;
        Ok(Sniffer { program })
    }

    /// The packets that it has printed so far.
    pub fn packets(&self) -> Vec<String> {
        // Each begins with the time of day; what tcpdump says of itself does not.
        let packet =
            |line: &&str| line.as_bytes().first().is_some_and(u8::is_ascii_digit) && line.contains('>');
        self.program.log().lines().filter(packet).map(str::to_string).collect()
    }

    /// Waits for a packet whose line contains `text`.
    ///
    /// # Errors
    /// There is none within 40 s.
    pub fn await_packet(&mut self, text: &str) -> Result<()> {
        self.program.await_log(text, LIMIT)
    }

    /// Ends it; all packets, none of which the kernel may have kept from it.
    ///
    /// # Errors
    /// It does not end well, or lost some.
    pub fn finish(mut self) -> Result<Vec<String>> {
        self.program.signal(Signal::INT)?;
        let status = self.program.wait(LIMIT)?;
        let log = self.program.log();
        ensure!(status == 0, "tcpdump ended with {status}: {log}");
        let lost = log.lines().find(|line| line.contains("dropped by kernel"));
        let lost = lost.with_context(|| format!("tcpdump does not tell what it lost: {log}"))?;
        ensure!(lost.starts_with("0 "), "tcpdump lost packets: {lost}");
        Ok(self.packets())
    }
}
