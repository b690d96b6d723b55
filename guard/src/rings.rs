//! From one guest's ring to another's. The guests are front-ends of this process, driven between the counted parts by
//! the thread that is their worker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use datapath::port::RxDrops;
use datapath::{Burst, QueueHost, QueueId, RxQueue, TxPort};
use frontend::device::VnetHeader;
use frontend::{Config, NetDevice, features};
use switch_core::ids::Registry;
use switch_core::{Instant, PortId};
use vhost_user::{PortConfig, Role, VhostUserPort};

use crate::counted_by_callgrind;
use crate::path::{Switch, ethernet};

/// A layout of rings.
#[derive(Clone, Copy)]
pub(crate) enum Ring {
    /// Descriptor table, available and used ring.
    Split,
    /// One ring of descriptors.
    Packed,
    /// The same, and what was sent is given back a burst at a time.
    PackedInOrder,
}

impl Ring {
    fn config(self) -> Config {
        let config = Config::default().queue_size(1024);
        match self {
            Self::Split => config,
            Self::Packed => config.require(features::RING_PACKED),
            Self::PackedInOrder => config.require(features::RING_PACKED | features::IN_ORDER),
        }
    }
}

/// Keeps the queues that the sessions attach.
#[derive(Default)]
struct Host(Mutex<HashMap<PortId, Box<dyn RxQueue>>>);

impl QueueHost for Host {
    fn attach(&self, port: PortId, queue: Box<dyn RxQueue>) -> QueueId {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(port, queue);
        QueueId::from_raw(0)
    }

    fn detach(&self, _id: QueueId) -> Option<Box<dyn RxQueue>> {
        None
    }
}

/// Two guests, and the first one's queue.
struct Pair {
    from: PortId,
    to: PortId,
    queue: Box<dyn RxQueue>,
    from_tx: Arc<dyn TxPort>,
    to_tx: Arc<dyn TxPort>,
    sender: NetDevice,
    receiver: NetDevice,
    // After the devices: a port's end waits for its session's.
    _ports: Vec<VhostUserPort>,
}

impl Pair {
    fn new(ring: Ring) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let host = Arc::new(Host::default());
        let mut ids = Registry::<PortId>::new(2);
        let mut make = |name: &str| -> Result<(PortId, VhostUserPort, NetDevice)> {
            let id = ids.mint().context("no port")?;
            let path = dir.path().join(name);
            let config = PortConfig { id, path: path.clone(), role: Role::Server, queue_pairs: 1, mtu: None };
            let port = VhostUserPort::new(config, Arc::clone(&host) as Arc<dyn QueueHost>, |_| {})?;
            Ok((id, port, NetDevice::connect(&path, ring.config())?))
        };
        let (from, from_port, sender) = make("from")?;
        let (to, to_port, receiver) = make("to")?;
        let mut queues = host.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queue = queues.remove(&from).context("the sender has no queue")?;
        queue.disarm();
        let (from_tx, to_tx) = (from_port.tx(), to_port.tx());
        Ok(Self { from, to, queue, from_tx, to_tx, sender, receiver, _ports: vec![from_port, to_port] })
    }

    fn send(&mut self, frame: &[u8], n: usize) -> Result<()> {
        let tx = &mut self.sender.pairs_mut()[0].tx;
        for _ in 0..n {
            ensure!(tx.push(&VnetHeader::PLAIN, &[frame])?, "the sender's ring is full");
        }
        tx.flush();
        Ok(())
    }

    /// Takes the frames out that arrived; how many, all of them `frame`.
    fn receive(&mut self, frame: &[u8], got: &mut Vec<u8>) -> Result<usize> {
        let mut n = 0;
        while self.receiver.try_recv(got)?.is_some() {
            ensure!(got == frame, "a frame of {} bytes arrived as another one", frame.len());
            n += 1;
        }
        Ok(n)
    }
}

/// Receive, transmit and release without a switch between them.
pub(crate) fn port_to_port(ring: Ring, len: usize) -> Result<u64> {
    let mut pair = Pair::new(ring)?;
    let size = if len > 2000 { 8 } else { 32 };
    let frame: Vec<u8> = (0..len).map(|i| i as u8).collect();
    let members: Vec<u8> = (0..size as u8).collect();
    let mut burst = Burst::new();
    let mut got = Vec::new();
    let rounds = if len > 2000 { 100 } else { 500 };
    // Once around the rings before, so that no page is touched for the first time.
    for round in 0..rounds + 1024 / size {
        pair.send(&frame, size)?;
        let (queue, tx) = (&mut pair.queue, &pair.to_tx);
        let mut done = Ok(0);
        let mut work = || {
            burst.clear();
            done = queue.rx_burst(&mut burst, &mut RxDrops::default()).and_then(|n| {
                let report = tx.tx_burst(0, &mut burst.bucket(&members[..n]))?;
                queue.release();
                Ok(n - report.dropped().count_ones() as usize)
            });
        };
        if round < 1024 / size {
            work()
        } else {
            counted_by_callgrind(&mut work)
        }
        ensure!(done? == size, "some frames were not taken");
        ensure!(pair.receive(&frame, &mut got)? == size, "some frames did not arrive");
    }
    Ok((rounds * size) as u64)
}

/// The same with the whole frame path of a learning bridge between them.
pub(crate) fn switched() -> Result<u64> {
    const SIZE: usize = 32;
    const ROUNDS: usize = 500;
    let mut pair = Pair::new(Ring::Split)?;
    let mut switch =
        Switch::new([(pair.from, Arc::clone(&pair.from_tx)), (pair.to, Arc::clone(&pair.to_tx))])?;
    let frame = ethernet(2, 1, 64);
    let mut got = Vec::new();
    for round in 0..ROUNDS + 32 {
        pair.send(&frame, SIZE)?;
        let (queue, from) = (&mut pair.queue, pair.from);
        let now = Instant::from_nanos(1_000_000_000 + round as u64 * 3_000);
        let mut work = || switch.carry(now, from, &mut **queue);
        if round < 32 {
            work()
        } else {
            counted_by_callgrind(&mut work)
        }
        ensure!(pair.receive(&frame, &mut got)? == SIZE, "some frames did not arrive");
    }
    Ok((ROUNDS * SIZE) as u64)
}
