//! What a destination cannot take as it is: checksums completed, super-frames segmented, VLAN tags put on and
//! taken off, on copies of the heads. The tails stay where they are.
//!
//! Frames come here one destination at a time and leave in their order. The copies live in a burst of the
//! worker's own, the *scratch*; when it is full it is transmitted and filled again.

use switch_core::checksum::{self, Sum};
use switch_core::offload::{Checksum, OffloadSet};
use switch_core::segment::Segmenter;
use switch_core::verdict::BURST;
use switch_core::{DropReason, Head};

use crate::burst::{Burst, FRAME_SEGMENTS};
use crate::memory::{Segment, read_tail};
use crate::port::{PortError, TxReport};
use crate::topology::PortEntry;

/// What a frame must undergo before a destination can take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// A tag, a checksum, or segmentation.
    Rewrite,
    /// The destination never takes it.
    Drop(DropReason),
}

/// What must be done with `head` so that `port`, whose receiver has `offloads`, can take it.
#[inline]
pub(crate) fn change(head: &Head, port: &PortEntry, offloads: OffloadSet) -> Change {
    let link = head.link_len();
    let longest = match head.offload.gso {
        None => head.frame_len() - link.min(head.frame_len()),
        Some(gso) => usize::from(gso.header_len).saturating_sub(link) + usize::from(gso.size.get()),
    };
    if longest > usize::from(port.mtu) {
        return Change::Drop(DropReason::EgressMtu);
    }
    let as_it_is = match (port.pvid, head.tag()) {
        (None, None) => head.vlan.is_none(),
        (None, Some(_)) => true,
        (Some(_), tag) => tag.is_none(),
    };
    if as_it_is && offloads.contains(head.offload.needs()) { Change::None } else { Change::Rewrite }
}

/// Puts the tag on or takes it off, as the port has it.
fn retag(head: &mut Head, port: &PortEntry) {
    match (port.pvid, head.tag(), head.vlan) {
        (None, None, Some(vid)) => {
            head.push_tag(vid, 0);
        }
        (Some(_), Some(_), _) => {
            head.pop_tag();
        }
        _ => {}
    }
}

/// Completes a partial checksum over the head and `tail`.
fn complete(head: &mut Head, tail: &[Segment]) {
    checksum::complete(head, |sum| add_tail(sum, tail));
}

/// Adds the bytes of a tail to a sum.
pub fn add_tail(sum: &mut Sum, tail: &[Segment]) {
    let mut chunk = [0; 2048];
    for segment in tail {
        let mut offset = 0;
        while offset < segment.len() {
            let n = segment.part(offset, chunk.len()).read(&mut chunk);
            sum.add(&chunk[..n]);
            offset += n;
        }
    }
}

/// The scratch burst and what its frames were made of.
#[derive(Debug)]
pub(crate) struct Scratch {
    burst: Burst,
    /// For each frame of the scratch, which frame of the bucket it is of.
    origin: [u8; BURST],
    all: [u8; BURST],
    tail: Vec<Segment>,
    /// Frames of the bucket of which something was not taken, by reason.
    report: TxReport,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let mut all = [0; BURST];
        for (i, a) in all.iter_mut().enumerate() {
            *a = i as u8;
        }
        Self {
            burst: Burst::new(),
            origin: [0; BURST],
            all,
            tail: Vec::with_capacity(FRAME_SEGMENTS),
            report: TxReport::default(),
        }
    }

    /// Transmits the frames `members` of `burst` to `port`, changed as it needs. Bit `i` of the report is
    /// member `i`; of a frame sent in segments the bit is set when any segment was not taken. The second mask
    /// are frames that could not be segmented.
    pub(crate) fn transmit(
        &mut self,
        worker: usize,
        port: &PortEntry,
        offloads: OffloadSet,
        burst: &Burst,
        members: &[u8],
    ) -> Result<(TxReport, u64), PortError> {
        self.report = TxReport::default();
        self.burst.clear();
        self.burst.from = burst.from;
        let mut unsegmented = 0;
        for (i, &member) in members.iter().enumerate() {
            let member = usize::from(member);
            let (head, tail) = (&burst.heads()[member], burst.tail(member));
            let missing = !offloads.contains(head.offload.needs());
            let done = if missing && head.offload.gso.is_some() {
                self.segments(worker, port, offloads, head, tail, i)?
            } else {
                self.whole(worker, port, offloads, head, tail, i)?
            };
            if !done {
                unsegmented |= 1 << i;
            }
        }
        self.flush(worker, port)?;
        Ok((self.report, unsegmented))
    }

    /// Takes a frame in as one, with its tag and checksum as the port has them.
    fn whole(
        &mut self,
        worker: usize,
        port: &PortEntry,
        offloads: OffloadSet,
        head: &Head,
        tail: &[Segment],
        origin: usize,
    ) -> Result<bool, PortError> {
        self.make_room(worker, port)?;
        let Some(out) = self.burst.next_head() else { return Ok(false) };
        out.clone_from(head);
        retag(out, port);
        if matches!(out.offload.checksum, Checksum::Partial { .. })
            && !offloads.contains(OffloadSet::CHECKSUM)
        {
            complete(out, tail);
        }
        self.origin[self.burst.len()] = origin as u8;
        Ok(self.burst.push(tail).is_ok())
    }

    /// Takes a super-frame in as its segments.
    fn segments(
        &mut self,
        worker: usize,
        port: &PortEntry,
        offloads: OffloadSet,
        head: &Head,
        tail: &[Segment],
        origin: usize,
    ) -> Result<bool, PortError> {
        let Some(segmenter) = Segmenter::new(head) else { return Ok(false) };
        for i in 0..segmenter.count() {
            self.make_room(worker, port)?;
            let Some(out) = self.burst.next_head() else { return Ok(false) };
            let range = segmenter.segment(i, head, out);
            self.tail.clear();
            if !cut(tail, range.start, range.len(), &mut self.tail) {
                return Ok(false);
            }
            retag(out, port);
            if !offloads.contains(OffloadSet::CHECKSUM) {
                complete(out, &self.tail);
            }
            self.origin[self.burst.len()] = origin as u8;
            if self.burst.push(&self.tail).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    #[inline]
    fn make_room(&mut self, worker: usize, port: &PortEntry) -> Result<(), PortError> {
        if self.burst.room() == 0 { self.flush(worker, port) } else { Ok(()) }
    }

    fn flush(&mut self, worker: usize, port: &PortEntry) -> Result<(), PortError> {
        let n = self.burst.len();
        if n != 0 {
            let report = port.tx.tx_burst(worker, &mut self.burst.bucket(&self.all[..n]))?;
            let origins = &self.origin[..n];
            let spread = |mask: u64| {
                origins
                    .iter()
                    .enumerate()
                    .fold(0, |to, (i, &o)| if mask & (1 << i) != 0 { to | 1u64 << o } else { to })
            };
            if report.dropped() != 0 {
                self.report.full |= spread(report.full);
                self.report.too_small |= spread(report.too_small);
                self.report.down |= spread(report.down);
                self.report.error |= spread(report.error);
            }
            self.burst.clear();
        }
        Ok(())
    }
}

/// Appends to `out` the `len` bytes of `tail` from `offset` on; false if there are not as many.
fn cut(tail: &[Segment], mut offset: usize, mut len: usize, out: &mut Vec<Segment>) -> bool {
    for segment in tail {
        if len == 0 {
            break;
        }
        if offset >= segment.len() {
            offset -= segment.len();
            continue;
        }
        let part = segment.part(offset, len);
        offset = 0;
        len -= part.len();
        out.push(part);
    }
    len == 0
}

/// The whole frame, for ports and tests that need it in one piece.
pub fn to_vec(head: &Head, tail: &[Segment]) -> Vec<u8> {
    let mut frame = head.bytes().to_vec();
    let at = frame.len();
    frame.resize(at + head.tail_len(), 0);
    read_tail(tail, 0, &mut frame[at..]);
    frame
}
