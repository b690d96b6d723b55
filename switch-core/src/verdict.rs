//! What a network decides of each frame of a burst.

use crate::drop::DropReason;
use crate::ids::PortId;

/// Frames in a burst, at most. The datapath marks frames in masks of 64 bits.
pub const BURST: usize = 64;

/// What becomes of one frame. Split horizon, isolation and VLAN membership are the dispatcher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To one port.
    Unicast(PortId),
    /// To every other port of the network that is on the frame's VLAN.
    Flood,
    /// To nobody.
    Drop(DropReason),
}

/// The verdicts of a burst, in the order of its frames.
#[derive(Debug)]
pub struct Verdicts {
    list: [Verdict; BURST],
    len: usize,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self { list: [Verdict::Drop(DropReason::Unhandled); BURST], len: 0 }
    }
}

impl Verdicts {
    /// Begins a burst of `frames` frames: until decided otherwise, each is dropped as unhandled.
    #[inline]
    pub fn begin(&mut self, frames: usize) {
        self.len = frames.min(BURST);
        for v in &mut self.list[..self.len] {
            *v = Verdict::Drop(DropReason::Unhandled);
        }
    }

    /// Decides frame `i`; out of range is ignored.
    #[inline]
    pub fn set(&mut self, i: usize, verdict: Verdict) {
        if let Some(v) = self.list[..self.len].get_mut(i) {
            *v = verdict;
        }
    }

    /// The verdicts, one for each frame.
    #[inline]
    pub fn as_slice(&self) -> &[Verdict] {
        &self.list[..self.len]
    }

    /// The verdicts, to be set in a loop beside the frames.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [Verdict] {
        &mut self.list[..self.len]
    }
}
