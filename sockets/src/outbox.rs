//! Small frames that wait to go into the network, whole and with their checksums complete: ICMP errors, resets, answers.

use std::collections::VecDeque;

/// Frames that may wait. They are what guests themselves caused, and are taken out at the next look of the port's queue.
const MOST: usize = 1024;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    frames: VecDeque<Vec<u8>>,
}

impl Outbox {
    /// Puts a frame in, at most 64 KB of IP; false if too many wait.
    pub(crate) fn push(&mut self, frame: Vec<u8>) -> bool {
        let room = self.frames.len() < MOST;
        if room {
            self.frames.push_back(frame);
        }
        room
    }

    /// The frame that waits longest.
    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
