//! A port in memory, for simulations and tests: what goes in comes out, and nothing is lost on the way.
//!
//! Frames are queued by [`Peer::send`], received by the switch, and what the switch transmits is taken out by
//! [`Peer::recv`]. The peer decides which offloads it takes and how many frames it has room for.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use switch_core::head::{HEAD_LEN, HEAD_MAX};
use switch_core::offload::{Offload, OffloadSet};
use switch_core::verdict::BURST;
use switch_core::virtio_net::VnetHeader;

use crate::burst::{Bucket, Burst, PushError};
use crate::egress::to_vec;
use crate::memory::Segment;
use crate::port::{Armed, PortError, RxDrops, RxQueue, TxPort, TxReport};

/// A frame that the switch transmitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// What it asks of its receiver.
    pub offload: Offload,
    /// Its bytes.
    pub frame: Vec<u8>,
}

#[derive(Debug)]
struct Wire {
    to_switch: VecDeque<(VnetHeader, Vec<u8>)>,
    to_peer: VecDeque<Delivered>,
    room: usize,
    accepts: OffloadSet,
    offers: OffloadSet,
    down: bool,
    doorbell: OwnedFd,
}

/// The far end of an in-memory port.
#[derive(Clone, Debug)]
pub struct Peer {
    wire: Arc<Mutex<Wire>>,
}

/// The switch's receive queue of an in-memory port.
#[derive(Debug)]
pub struct InMemoryRx {
    wire: Arc<Mutex<Wire>>,
    fd: RawFd,
    /// The burst's frames, kept until it is released: the tails point into them.
    held: Vec<Vec<u8>>,
}

/// The switch's transmit side of an in-memory port.
#[derive(Debug)]
pub struct InMemoryTx {
    wire: Arc<Mutex<Wire>>,
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(|e| e.into_inner())
}

/// A port whose peer takes frames with the offloads `accepts`, sends frames with those of `offers`, and has
/// room for `room` frames. Errors: no eventfd to be had.
pub fn port(
    accepts: OffloadSet,
    offers: OffloadSet,
    room: usize,
) -> std::io::Result<(Peer, InMemoryRx, InMemoryTx)> {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    let doorbell = rustix::event::eventfd(0, flags)?;
    let fd = doorbell.as_raw_fd();
    let wire = Wire {
        to_switch: VecDeque::new(),
        to_peer: VecDeque::new(),
        room,
        accepts,
        offers,
        down: false,
        doorbell,
    };
    let wire = Arc::new(Mutex::new(wire));
    Ok((
        Peer { wire: Arc::clone(&wire) },
        InMemoryRx { wire: Arc::clone(&wire), fd, held: Vec::new() },
        InMemoryTx { wire },
    ))
}

impl Peer {
    /// Sends a frame to the switch.
    pub fn send(&self, vnet: VnetHeader, frame: &[u8]) {
        let mut wire = lock(&self.wire);
        wire.to_switch.push_back((vnet, frame.to_vec()));
        let _ = rustix::io::write(&wire.doorbell, &1u64.to_ne_bytes());
    }

    /// The next frame from the switch.
    pub fn recv(&self) -> Option<Delivered> {
        lock(&self.wire).to_peer.pop_front()
    }

    /// Frames that the switch has not taken yet.
    pub fn unsent(&self) -> usize {
        lock(&self.wire).to_switch.len()
    }

    /// Takes the peer away, or brings it back.
    pub fn set_down(&self, down: bool) {
        lock(&self.wire).down = down;
    }

    /// Changes how many frames the peer has room for.
    pub fn set_room(&self, room: usize) {
        lock(&self.wire).room = room;
    }
}

impl RxQueue for InMemoryRx {
    fn rx_burst(&mut self, burst: &mut Burst, _drops: &mut RxDrops) -> Result<usize, PortError> {
        let mut wire = lock(&self.wire);
        burst.accepted = wire.offers;
        while burst.room() > 0 && self.held.len() < BURST {
            let Some((vnet, frame)) = wire.to_switch.pop_front() else { break };
            let Some(head) = burst.next_head() else { break };
            let wanted = if vnet.is_plain() { HEAD_LEN } else { HEAD_MAX };
            let bytes = head.begin(frame.len() as u32, wanted);
            let n = bytes.len();
            bytes.copy_from_slice(&frame[..n]);
            head.vnet = vnet;
            let rest = &frame[n..];
            // SAFETY: the bytes belong to a Vec that `held` keeps, untouched, until `release`.
            let tail = unsafe { Segment::new(rest.as_ptr(), rest.len() as u32) };
            let tail: &[Segment] = if rest.is_empty() { &[] } else { &[tail] };
            match burst.push(tail) {
                Ok(()) => self.held.push(frame),
                Err(PushError::Full | PushError::Malformed) => {
                    wire.to_switch.push_front((vnet, frame));
                    break;
                }
            }
        }
        Ok(burst.len())
    }

    fn release(&mut self) {
        self.held.clear();
    }

    fn wake_fd(&self) -> RawFd {
        self.fd
    }

    fn arm(&mut self) -> Result<Armed, PortError> {
        Ok(if lock(&self.wire).to_switch.is_empty() { Armed::Sleeping } else { Armed::Work })
    }

    fn disarm(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&lock(&self.wire).doorbell, &mut count);
    }
}

impl TxPort for InMemoryTx {
    fn offloads(&self) -> OffloadSet {
        lock(&self.wire).accepts
    }

    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let mut wire = lock(&self.wire);
        if wire.down {
            return Ok(TxReport::all_down(frames.len()));
        }
        let mut report = TxReport::default();
        for i in 0..frames.len() {
            if wire.to_peer.len() >= wire.room {
                report.full |= 1 << i;
                continue;
            }
            let f = frames.frame(i);
            let delivered = Delivered { offload: f.head.offload, frame: to_vec(f.head, f.tail) };
            wire.to_peer.push_back(delivered);
        }
        Ok(report)
    }
}
