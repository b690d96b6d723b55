//! A flow that notices every lost frame: numbered UDP datagrams between two namespaces.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Netns;

const PORT: u16 = 7007;
/// Between two datagrams.
const INTERVAL: Duration = Duration::from_millis(2);
/// After the last datagram: how long the receiver still listens.
const GRACE: Duration = Duration::from_millis(500);

/// A running flow.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Vec<u64>>>,
}

impl Flow {
    /// Starts the flow from a socket in `from` to `address`, an address of `to`, and returns when datagrams arrive.
    ///
    /// # Errors
    /// A namespace cannot be entered, or nothing arrives.
    pub fn start(from: &Netns, to: &Netns, address: &str) -> Result<Self> {
        // ARP and learning are done before the first datagram that counts.
        from.run(&format!("ping -c 1 -w 5 {address}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let receiver = to.spawn(move || receive(&stopped))?;
        // The receiver's socket exists when its port shows in its namespace.
        to.run(&format!(
            "for i in $(seq 100); do ss -Hlun | grep -q ':{PORT} ' && exit 0; sleep 0.02; done; exit 1"
        ))?;
        let stopped = Arc::clone(&stop);
        let target = format!("{address}:{PORT}");
        let sender = from.spawn(move || send(&target, &stopped))?;
        Ok(Flow { stop, sender, receiver })
    }

    /// Ends the flow; how many datagrams were sent. Every one must have arrived, once.
    ///
    /// # Errors
    /// Some were lost or doubled.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Release);
        let sent = self.sender.join().ok().context("the flow's sender panicked")??;
        let mut seen = self.receiver.join().ok().context("the flow's receiver panicked")??;
        seen.sort_unstable();
        let lost: Vec<u64> = (0..sent).filter(|number| seen.binary_search(number).is_err()).collect();
        let shown = &lost[..lost.len().min(10)];
        ensure!(lost.is_empty(), "{} of {sent} datagrams were lost: {shown:?}…", lost.len());
        ensure!(seen.len() as u64 == sent, "{sent} datagrams were sent, {} arrived", seen.len());
        ensure!(sent > 0, "the flow sent nothing");
        Ok(sent)
    }
}

fn send(target: &str, stop: &AtomicBool) -> Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(target)?;
    let mut number = 0u64;
    while !stop.load(Ordering::Acquire) {
        socket.send(&number.to_be_bytes()).context("cannot send")?;
        number += 1;
        thread::sleep(INTERVAL);
    }
    Ok(number)
}

fn receive(stop: &AtomicBool) -> Result<Vec<u64>> {
    let socket = UdpSocket::bind(("0.0.0.0", PORT))?;
    socket.set_read_timeout(Some(GRACE))?;
    let mut seen = Vec::new();
    let mut datagram = [0u8; 8];
    loop {
        match socket.recv(&mut datagram) {
            Ok(8) => seen.push(u64::from_be_bytes(datagram)),
            Ok(_) => {}
            // Silence for the grace period after the sender was stopped: nothing more will come.
            Err(_) if stop.load(Ordering::Acquire) => return Ok(seen),
            Err(_) => {}
        }
    }
}
