//! A port whose other end is a station in this process: whole frames by queues, off the workers.
//!
//! What the switch transmits is copied into a frame of its own and queued with the port that it came from; what the
//! station sends goes through the network's forwarding, or straight to the port that it names.
//!
//! Invariants:
//! - both directions are bounded, in frames; what does not fit is dropped and counted like at any full port;
//! - of what waits for the station each source port has its own queue, and they are served in turn: one that sends
//!   without end takes neither the room nor the turn of another;
//! - the station is woken once for each time that its queue stops being empty, the worker likewise.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use switch_core::PortId;
use switch_core::head::HEAD_LEN;
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::virtio_net::VnetHeader;

use crate::burst::{Bucket, Burst, PushError};
use crate::egress::to_vec;
use crate::memory::Segment;
use crate::port::{Armed, PortError, RxDrops, RxQueue, TxPort, TxReport};

/// Frames of one source port that wait for the station, at most.
const PER_SOURCE: usize = 256;
/// Frames of all sources that wait for the station, at most.
const ALL_SOURCES: usize = 8192;
/// Frames of the station that wait for a worker, at most.
const TO_SWITCH: usize = 4096;

/// A frame that the switch transmitted to the station.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The port that the switch received it from.
    pub from: PortId,
    /// Its bytes: whole, no offload left to do.
    pub frame: Vec<u8>,
}

/// Frames that wait for the station: a queue for each source, served in turn. No queue in `sources` is empty.
#[derive(Debug, Default)]
struct Waiting {
    sources: HashMap<PortId, VecDeque<Vec<u8>>>,
    turn: VecDeque<PortId>,
    frames: usize,
}

impl Waiting {
    fn push(&mut self, from: PortId, frame: impl FnOnce() -> Vec<u8>) -> bool {
        if self.frames >= ALL_SOURCES {
            return false;
        }
        let queue = self.sources.entry(from).or_default();
        if queue.len() >= PER_SOURCE {
            return false;
        }
        if queue.is_empty() {
            self.turn.push_back(from);
        }
        queue.push_back(frame());
        self.frames += 1;
        true
    }

    fn pop(&mut self) -> Option<Received> {
        let from = self.turn.pop_front()?;
        let queue = self.sources.get_mut(&from)?;
        let frame = queue.pop_front()?;
        self.frames -= 1;
        if queue.is_empty() {
            self.sources.remove(&from);
        } else {
            self.turn.push_back(from);
        }
        Some(Received { from, frame })
    }
}

#[derive(Debug, Default)]
struct Queues {
    to_station: Waiting,
    to_switch: VecDeque<(Option<PortId>, Vec<u8>)>,
}

struct Wire {
    queues: Mutex<Queues>,
    doorbell: OwnedFd,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

/// The station's end.
#[derive(Clone, Debug)]
pub struct Station {
    wire: Arc<Wire>,
}

/// The switch's receive queue of a local port.
#[derive(Debug)]
pub struct LocalRx {
    wire: Arc<Wire>,
    /// The burst's frames, kept until it is released: the tails point into them.
    held: Vec<Vec<u8>>,
}

/// The switch's transmit side of a local port.
#[derive(Clone, Debug)]
pub struct LocalTx {
    wire: Arc<Wire>,
}

/// A local port. `wake` is called, from any thread, when frames wait for a station that had none; it must not block.
///
/// # Errors
/// No eventfd to be had.
pub fn port(wake: impl Fn() + Send + Sync + 'static) -> std::io::Result<(Station, LocalRx, LocalTx)> {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    let doorbell = rustix::event::eventfd(0, flags)?;
    let wire = Arc::new(Wire { queues: Mutex::default(), doorbell, wake: Box::new(wake) });
    let rx = LocalRx { wire: Arc::clone(&wire), held: Vec::with_capacity(BURST) };
    Ok((Station { wire: Arc::clone(&wire) }, rx, LocalTx { wire }))
}

impl Station {
    /// The next frame from the switch, each source in its turn.
    pub fn recv(&self) -> Option<Received> {
        self.wire.lock().to_station.pop()
    }

    /// Frames that were sent, and that no worker has taken yet.
    pub fn unsent(&self) -> usize {
        self.wire.lock().to_switch.len()
    }

    /// Sends a whole Ethernet frame, untagged and with its checksums complete: straight out of port `to`, or, without
    /// one, through the network's forwarding. False, and it is not sent, if too many wait already.
    pub fn send(&self, to: Option<PortId>, frame: Vec<u8>) -> bool {
        let mut queues = self.wire.lock();
        if queues.to_switch.len() >= TO_SWITCH {
            return false;
        }
        let first = queues.to_switch.is_empty();
        queues.to_switch.push_back((to, frame));
        drop(queues);
        if first {
            // Fails only when the counter is full, and then the worker is being woken already.
            let _ = rustix::io::write(&self.wire.doorbell, &1u64.to_ne_bytes());
        }
        true
    }
}

impl RxQueue for LocalRx {
    /// A burst holds frames for one destination only, because that is the burst's.
    fn rx_burst(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<usize, PortError> {
        let mut queues = self.wire.lock();
        let direct = queues.to_switch.front().and_then(|(to, _)| *to);
        burst.accepted = OffloadSet::NONE;
        burst.direct = direct;
        while burst.room() > 0 && self.held.len() < BURST {
            if queues.to_switch.front().is_none_or(|(to, _)| *to != direct) {
                break;
            }
            let Some((to, frame)) = queues.to_switch.pop_front() else { break };
            let Some(head) = burst.next_head() else { break };
            let bytes = head.begin(frame.len() as u32, HEAD_LEN);
            let n = bytes.len();
            bytes.copy_from_slice(&frame[..n]);
            head.vnet = VnetHeader::default();
            let rest = &frame[n..];
            // SAFETY: the bytes belong to a Vec that `held` keeps, untouched, until `release`.
            let tail = unsafe { Segment::new(rest.as_ptr(), rest.len() as u32) };
            let tail: &[Segment] = if rest.is_empty() { &[] } else { &[tail] };
            match burst.push(tail) {
                Ok(()) => self.held.push(frame),
                Err(PushError::Full) => {
                    queues.to_switch.push_front((to, frame));
                    break;
                }
                Err(PushError::Malformed) => {
                    drops.oversize += 1;
                    drops.bytes += frame.len() as u64;
                }
            }
        }
        Ok(burst.len())
    }

    fn release(&mut self) {
        self.held.clear();
    }

    fn wake_fd(&self) -> RawFd {
        self.wire.doorbell.as_raw_fd()
    }

    fn arm(&mut self) -> Result<Armed, PortError> {
        // The station writes to the doorbell when it ends the emptiness that is seen here.
        Ok(if self.wire.lock().to_switch.is_empty() { Armed::Sleeping } else { Armed::Work })
    }

    fn disarm(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wire.doorbell, &mut count);
    }
}

impl TxPort for LocalTx {
    fn offloads(&self) -> OffloadSet {
        OffloadSet::NONE
    }

    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let Some(from) = frames.from() else { return Ok(TxReport::all_down(frames.len())) };
        let mut report = TxReport::default();
        let mut queues = self.wire.lock();
        let idle = queues.to_station.frames == 0;
        for i in 0..frames.len() {
            let frame = frames.frame(i);
            if !queues.to_station.push(from, || to_vec(frame.head, frame.tail)) {
                report.full |= 1 << i;
            }
        }
        let wake = idle && queues.to_station.frames != 0;
        drop(queues);
        if wake {
            (self.wire.wake)();
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests;
