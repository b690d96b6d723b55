//! A netdev port's transmit side: frames that go out at the interface.

use std::os::fd::OwnedFd;

use switch_core::offload::OffloadSet;
use switch_core::virtio_net::LEGACY_HEADER_LEN;

use crate::burst::Bucket;
use crate::messages::{Batch, Refused};
use crate::port::{PortError, TxPort, TxReport};

/// The transmit side of a netdev port. The kernel needs no lock to send on one socket from several threads.
#[derive(Debug)]
pub struct NetdevTx {
    fd: OwnedFd,
    offloads: OffloadSet,
}

impl NetdevTx {
    pub(super) fn new(fd: OwnedFd, offloads: OffloadSet) -> Self {
        Self { fd, offloads }
    }
}

impl TxPort for NetdevTx {
    fn offloads(&self) -> OffloadSet {
        self.offloads
    }

    /// One `sendmmsg(2)` for the bucket, or more when it has very many pieces. An interface that is down or was
    /// removed takes nothing ([`TxReport::down`]); its receive queue is what reports the removal.
    fn tx_burst(&self, _worker: usize, frames: &mut Bucket<'_>) -> Result<TxReport, PortError> {
        let mut report = TxReport::default();
        let mut batch = Batch::new();
        for i in 0..frames.len() {
            let frame = frames.frame(i);
            if !self.offloads.contains(frame.head.offload.needs()) {
                report.error |= 1 << i;
                continue;
            }
            if !batch.fits(frame.tail) {
                send(&mut batch, &self.fd, &mut report);
                batch = Batch::new();
            }
            // The checked request, never what a guest wrote.
            let header = frame.head.offload.to_vnet().to_bytes();
            batch.add(i, frame.head.with_vnet(header, LEGACY_HEADER_LEN), frame.tail);
        }
        send(&mut batch, &self.fd, &mut report);
        Ok(report)
    }
}

/// Sends what was added, and reports what was not taken. To be called while the bucket is borrowed.
#[inline]
fn send(batch: &mut Batch, fd: &OwnedFd, report: &mut TxReport) {
    // SAFETY: what was added are heads of the bucket that is being transmitted, each of them once.
    unsafe {
        batch.send(fd, |error, bit, rest| {
            match error {
                // The interface's queue refused this one.
                libc::ENOBUFS | libc::ENOMEM => report.full |= bit,
                // The socket's queue is full, for the rest as well.
                libc::EAGAIN => {
                    report.full |= rest;
                    return Refused::Stop;
                }
                libc::ENETDOWN | libc::ENXIO | libc::ENODEV => {
                    report.down |= rest;
                    return Refused::Stop;
                }
                libc::EMSGSIZE => report.too_small |= bit,
                // EINVAL: the kernel found the frame or its offload request unfit. EFAULT: the memory that the
                // tail lies in went away.
                _ => report.error |= bit,
            }
            Refused::Next
        });
    }
}
