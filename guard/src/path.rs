//! The frame path between two ports of memory: check, decide, dispatch and the counters, without a ring.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use datapath::counters::PortCounters;
use datapath::path::FramePath;
use datapath::port::RxDrops;
use datapath::topology::{PortEntry, Topology};
use datapath::{Armed, Bucket, Burst, PortError, RxQueue, TxPort, TxReport};
use modes::bridge::Bridge;
use switch_core::ids::Registry;
use switch_core::mode::Mode;
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::{Instant, NetworkId, PortId};

use crate::counted_by_callgrind;

/// A frame of `len` bytes between two stations, of which each has its number.
pub(crate) fn ethernet(to: u8, from: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
    frame.resize(len, 0x5a);
    frame
}

/// A worker's path through one network, a learning bridge.
pub(crate) struct Switch {
    path: FramePath,
}

impl Switch {
    pub(crate) fn new(ports: impl IntoIterator<Item = (PortId, Arc<dyn TxPort>)>) -> Result<Self> {
        let network = Registry::<NetworkId>::new(1).mint().context("no network")?;
        let mode: Arc<dyn Mode> = Arc::new(Bridge::new(Duration::from_secs(300), 8192));
        let entry = |(id, tx)| PortEntry {
            id,
            network,
            tx,
            counters: Arc::new(PortCounters::new(1)),
            pvid: None,
            isolated: false,
            flooded: true,
            mtu: 1500,
            guard: None,
            rate: None,
        };
        let mut path = FramePath::new(0);
        path.adopt(Arc::new(Topology::new([(network, mode)], ports.into_iter().map(entry))));
        Ok(Self { path })
    }

    pub(crate) fn carry(&mut self, now: Instant, from: PortId, queue: &mut dyn RxQueue) {
        self.path.carry(now, from, queue);
    }
}

/// A queue that has the same burst each time.
struct Same(Vec<u8>);

impl RxQueue for Same {
    fn rx_burst(&mut self, burst: &mut Burst, _: &mut RxDrops) -> Result<usize, PortError> {
        for _ in 0..BURST {
            let Some(head) = burst.next_head() else { break };
            head.begin(self.0.len() as u32, self.0.len()).copy_from_slice(&self.0);
            burst.push(&[]).map_err(|_| PortError::Protocol("the burst is full"))?;
        }
        Ok(burst.len())
    }

    fn release(&mut self) {}

    fn wake_fd(&self) -> RawFd {
        -1
    }

    fn arm(&mut self) -> Result<Armed, PortError> {
        Ok(Armed::Work)
    }

    fn disarm(&mut self) {}
}

/// Takes everything, and counts it.
#[derive(Default)]
struct Sink(AtomicU64);

impl TxPort for Sink {
    fn offloads(&self) -> OffloadSet {
        OffloadSet::ALL
    }

    fn tx_burst(&self, _: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        self.0.fetch_add(frames.len() as u64, Ordering::Relaxed);
        Ok(TxReport::default())
    }
}

pub(crate) fn bridge() -> Result<u64> {
    const ROUNDS: u64 = 500;
    let mut ids = Registry::<PortId>::new(2);
    let (a, b) = (ids.mint().context("no port")?, ids.mint().context("no port")?);
    let sink = Arc::new(Sink::default());
    let mut switch = Switch::new([
        (a, Arc::new(Sink::default()) as Arc<dyn TxPort>),
        (b, Arc::clone(&sink) as Arc<dyn TxPort>),
    ])?;
    let (mut there, mut back) = (Same(ethernet(2, 1, 64)), Same(ethernet(1, 2, 64)));
    let mut now = Instant::from_secs(1);
    for _ in 0..4 {
        switch.carry(now, a, &mut there);
        switch.carry(now, b, &mut back);
    }
    let before = sink.0.load(Ordering::Relaxed);
    counted_by_callgrind(&mut || {
        for _ in 0..ROUNDS {
            now = now + Duration::from_micros(3);
            switch.carry(now, a, &mut there);
        }
    });
    let arrived = sink.0.load(Ordering::Relaxed) - before;
    ensure!(arrived == ROUNDS * BURST as u64, "{arrived} frames arrived");
    Ok(arrived)
}
