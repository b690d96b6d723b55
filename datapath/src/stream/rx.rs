//! A stream port's receive queue: frames that the peer sends.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustix::io::Errno;
use switch_core::head::{FRAME_MAX, HEAD_LEN};
use switch_core::offload::OffloadSet;
use switch_core::verdict::BURST;
use switch_core::virtio_net::VnetHeader;

use super::connection::Connection;
use super::frames::{Cut, Cutter, LENGTH_MAX};
use crate::burst::Burst;
use crate::memory::Segment;
use crate::port::{Armed, PortError, RxDrops, RxQueue};
use crate::tap::armed;

/// What one connection brings. One `read(2)` takes as many frames as are there; the bursts that follow take them from
/// the buffer, and only their heads are copied.
///
/// Nothing that a peer does is an error of the port: what ends a connection is told to the port's thread, which takes
/// the queue back and waits for the next peer.
#[derive(Debug)]
pub struct StreamRx {
    connection: Arc<Connection>,
    cutter: Cutter,
}

impl StreamRx {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, cutter: Cutter::new() }
    }

    /// Receives what is there, when all that was received before is cut.
    fn receive(&mut self) {
        match rustix::io::read(self.connection.fd(), self.cutter.space()) {
            Ok(0) => self.connection.finish(None),
            Ok(n) => self.cutter.received(n),
            // A peer that goes without having read everything.
            Err(Errno::CONNRESET) => self.connection.finish(None),
            // Nothing there, or no memory for the moment: what is there stays there.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => {}
            Err(e) => self.connection.finish(Some(format!("receiving: {e}"))),
        }
    }
}

impl RxQueue for StreamRx {
    fn rx_burst(&mut self, burst: &mut Burst, drops: &mut RxDrops) -> Result<usize, PortError> {
        burst.accepted = OffloadSet::NONE;
        if self.connection.end().is_some() {
            return Ok(0);
        }
        if !self.cutter.has_next() {
            self.receive();
        }
        // A frame that is refused takes no room in the burst, so frames are counted apart.
        for _ in 0..BURST {
            if burst.room() == 0 {
                break;
            }
            let range = match self.cutter.next() {
                Cut::Frame(range) => range,
                Cut::Partial => break,
                Cut::Broken(len) => {
                    self.connection.finish(Some(format!(
                        "the peer announced a frame of {len} bytes, and {LENGTH_MAX} are the most"
                    )));
                    break;
                }
            };
            let frame_len = range.len();
            if frame_len > FRAME_MAX {
                drops.oversize += 1;
                drops.bytes += frame_len as u64;
                continue;
            }
            let Some(head) = burst.next_head() else { break };
            head.vnet = VnetHeader::default();
            let frame = self.cutter.bytes(range);
            let bytes = head.begin(frame_len as u32, HEAD_LEN);
            let (first, rest) = frame.split_at(bytes.len());
            bytes.copy_from_slice(first);
            let pushed = if rest.is_empty() {
                burst.push(&[])
            } else {
                // SAFETY: the bytes are in the cutter's buffer, which lives as long as the queue and is written to only
                // by the `receive` of an `rx_burst` that follows `release`.
                burst.push(&[unsafe { Segment::new(rest.as_ptr(), rest.len() as u32) }])
            };
            // `room` said that the frame fits, and its lengths add up.
            debug_assert!(pushed.is_ok());
            if pushed.is_err() {
                drops.oversize += 1;
                drops.bytes += frame_len as u64;
            }
        }
        Ok(burst.len())
    }

    fn release(&mut self) {
        // The buffer is the queue's own; what was cut is overwritten by what is received next.
    }

    fn wake_fd(&self) -> RawFd {
        self.connection.fd().as_raw_fd()
    }

    /// As for a tap: asking the level closes the gap that edges leave. A connection that is over has nothing to wake for,
    /// although its descriptor is readable for ever.
    fn arm(&mut self) -> Result<Armed, PortError> {
        if self.connection.end().is_some() {
            return Ok(Armed::Sleeping);
        }
        if self.cutter.has_next() {
            return Ok(Armed::Work);
        }
        armed(self.connection.fd())
    }

    fn disarm(&mut self) {
        // Readiness is the socket's own; there is nothing to drain.
    }
}
