//! Two queues of frames as smoltcp's network device, for the stations that speak by it: the gateway's own stack, and the
//! DHCP client on an uplink. Whoever owns one bounds what it puts in.

use std::collections::VecDeque;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as SmolInstant;
use switch_core::Instant;

const ETHERNET_LEN: usize = 14;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Frames for the station.
    pub(crate) rx: VecDeque<Vec<u8>>,
    /// Frames of the station.
    pub(crate) tx: VecDeque<Vec<u8>>,
    /// Bytes of the longest IP packet.
    mtu: usize,
    /// Frames that may wait in `tx` before smoltcp is told that there is no room.
    room: usize,
}

impl Wire {
    pub(crate) fn new(mtu: usize, room: usize) -> Self {
        Self { mtu, room, ..Self::default() }
    }
}

/// A point in time as smoltcp has it, in microseconds.
pub(crate) fn clock(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

/// The opposite of [`clock`].
pub(crate) fn instant(at: SmolInstant) -> Instant {
    Instant::from_nanos(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000))
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Frame, Room<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Frame(frame), Room(&mut self.tx)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Room<'_>> {
        (self.tx.len() < self.room).then_some(Room(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_LEN;
        capabilities
    }
}

/// A frame for the station.
pub(crate) struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for a frame of the station.
pub(crate) struct Room<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let done = f(&mut frame);
        self.0.push_back(frame);
        done
    }
}
