//! What a station of the switch sends, and the contract of those who help it.

use std::collections::VecDeque;

use switch_core::{Instant, PortId};

/// Frames that wait to be sent, at most: a station that is asked more than it can answer forgets the rest.
const FRAMES_MAX: usize = 4096;

/// A frame of the switch's own: whole, at most the MTU behind its Ethernet header, every checksum complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The port that it leaves by; `None` leaves that to the network's forwarding.
    pub to: Option<PortId>,
    /// Its bytes, from the destination address on, without a VLAN tag.
    pub frame: Vec<u8>,
}

/// Frames on their way out of a station.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Outgoing>,
    /// Frames that were not taken because too many waited.
    pub lost: u64,
}

impl Outbox {
    /// Sends a frame by the network's forwarding: to where its destination is known to be, or to all.
    pub fn send(&mut self, frame: Vec<u8>) {
        self.push(Outgoing { to: None, frame });
    }

    /// Sends a frame out of one port.
    pub fn send_to(&mut self, port: PortId, frame: Vec<u8>) {
        self.push(Outgoing { to: Some(port), frame });
    }

    /// Takes in a frame that was addressed already.
    pub fn push(&mut self, outgoing: Outgoing) {
        if self.frames.len() < FRAMES_MAX {
            self.frames.push_back(outgoing);
        } else {
            self.lost += 1;
        }
    }

    /// The next frame to go.
    pub fn pop(&mut self) -> Option<Outgoing> {
        self.frames.pop_front()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// Whether a frame was somebody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It was, and nobody else is asked.
    Yes,
    /// The next one is asked.
    No,
}

/// What a mode does with the frames that its forwarder sent to the gateway's port because it could not decide them
/// from their heads: unknown neighbours, expired hop limits, packets too big, fragments. It is asked before the
/// gateway's own services.
pub trait SlowPath: Send {
    /// Takes a whole frame, at most the longest MTU of a port long, checksums complete, that `from` received.
    fn receive(&mut self, now: Instant, from: PortId, frame: &[u8], out: &mut Outbox) -> Handled;

    /// Does what is due.
    fn poll(&mut self, now: Instant, out: &mut Outbox);

    /// A port left the network: forgets what it asked, and what is asked for it.
    fn port_removed(&mut self, port: PortId);

    /// When [`SlowPath::poll`] next has something to do.
    fn poll_at(&self) -> Option<Instant>;
}
