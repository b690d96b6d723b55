//! A datagram port's transmit side: frames for whoever has the peer's path.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use switch_core::offload::OffloadSet;

use crate::burst::Bucket;
use crate::messages::{Batch, Refused};
use crate::peer::PortState;
use crate::port::{PortError, TxPort, TxReport};
use crate::ticks;
use crate::unix::datagram_sender;

/// Ticks between two attempts to reach a peer that is not there, while there are frames for it: some 10 ms.
const RETRY: u64 = 30_000_000;

/// See the module's text. Workers share it by a lock that each holds for one bucket.
pub struct DgramTx {
    remote: PathBuf,
    side: Mutex<Side>,
    on_change: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug)]
struct Side {
    fd: OwnedFd,
    state: PortState,
    /// When to try again to reach the peer, in ticks.
    again: u64,
}

impl fmt::Debug for DgramTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DgramTx").field("remote", &self.remote).field("side", &self.side).finish()
    }
}

impl DgramTx {
    pub(super) fn new(remote: PathBuf, on_change: Box<dyn Fn() + Send + Sync>) -> io::Result<Self> {
        let side = Side { fd: datagram_sender()?, state: PortState::Waiting, again: 0 };
        Ok(Self { remote, side: Mutex::new(side), on_change })
    }

    fn lock(&self) -> MutexGuard<'_, Side> {
        self.side.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the peer is there: looks now.
    pub fn state(&self) -> PortState {
        let mut side = self.lock();
        side.state = self.connect(&side.fd);
        side.state.clone()
    }

    /// Connects to whoever has the peer's path now.
    fn connect(&self, fd: &OwnedFd) -> PortState {
        let address = SocketAddrUnix::new(&self.remote);
        match address.and_then(|address| rustix::net::connect(fd, &address)) {
            Ok(()) => PortState::Up,
            Err(Errno::NOENT | Errno::CONNREFUSED) => PortState::Waiting,
            Err(Errno::PROTOTYPE) => {
                PortState::Error(format!("the socket at {} takes no datagrams", self.remote.display()))
            }
            Err(e) => {
                let e = io::Error::from(e);
                PortState::Error(format!("cannot send to {}: {e}", self.remote.display()))
            }
        }
    }

    /// The frames of the bucket, to a peer that is there.
    fn transmit(&self, side: &mut Side, frames: &mut Bucket<'_>) -> TxReport {
        let mut report = TxReport::default();
        let mut batch = Batch::new();
        for i in 0..frames.len() {
            let frame = frames.frame(i);
            if !frame.head.offload.needs_nothing() {
                report.error |= 1 << i;
                continue;
            }
            if !batch.fits(frame.tail) {
                self.send(&mut batch, side, &mut report);
                batch = Batch::new();
            }
            batch.add(i, frame.head.with_prefix([]), frame.tail);
        }
        self.send(&mut batch, side, &mut report);
        report
    }

    /// Sends what was added, and reports what was not taken. To be called while the bucket is borrowed.
    fn send(&self, batch: &mut Batch, side: &mut Side, report: &mut TxReport) {
        let Side { fd, state, .. } = side;
        let mut once_more = true;
        // SAFETY: what was added are heads of the bucket that is being transmitted, each of them once.
        unsafe {
            batch.send(fd, |error, bit, rest| {
                match error {
                    // The peer reads too slowly, for the rest as well.
                    libc::EAGAIN => {
                        report.full |= rest;
                        return Refused::Stop;
                    }
                    libc::ENOBUFS | libc::ENOMEM => report.full |= bit,
                    // Who had the peer's path is gone. Another may have it.
                    libc::ECONNREFUSED | libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN => {
                        *state = self.connect(fd);
                        if once_more && *state == PortState::Up {
                            once_more = false;
                            return Refused::Again;
                        }
                        report.down |= rest;
                        return Refused::Stop;
                    }
                    // Longer than all that may wait for the peer.
                    libc::EMSGSIZE => report.too_small |= bit,
                    // EPERM: the peer takes datagrams of somebody else only. EFAULT: the memory that the tail lies in
                    // went away.
                    _ => report.error |= bit,
                }
                Refused::Next
            });
        }
    }
}

impl TxPort for DgramTx {
    fn offloads(&self) -> OffloadSet {
        // There is no place for what a frame would ask of its receiver.
        OffloadSet::NONE
    }

    /// One `sendmmsg(2)` for the bucket, or more when it has very many pieces.
    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let mut side = self.lock();
        let before = side.state.clone();
        if before != PortState::Up {
            if ticks::now() < side.again {
                return Ok(TxReport::all_down(frames.len()));
            }
            side.state = self.connect(&side.fd);
        }
        let report = match side.state {
            PortState::Up => self.transmit(&mut side, frames),
            _ => TxReport::all_down(frames.len()),
        };
        if side.state != PortState::Up {
            side.again = ticks::now().saturating_add(RETRY);
        }
        let changed = before != side.state;
        drop(side);
        if changed {
            (self.on_change)();
        }
        Ok(report)
    }
}
