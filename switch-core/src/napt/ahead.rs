//! The look-up that takes no lock, and a burst's all together.
//!
//! Where nothing is in the processor's cache, a look-up is two waits for memory, one after the other: for the index,
//! then for the session. A burst's are independent of one another, so the processor waits for all of them at once,
//! if nothing is in between that it has to finish first: a lock, or all that is done to a frame.

use super::flow::{Address, Endpoint, Flow, Key, hash_inside};
use super::session::{NONE, Session, Word};
use super::tcp::State;
use super::time::Tick;
use super::{View, shard_of};
use crate::verdict::BURST;

/// Where the session of a packet seems to be: what [`View::look_ahead`] found.
#[derive(Clone, Copy, Debug)]
pub struct Hint(u32);

impl Default for Hint {
    /// Nowhere.
    fn default() -> Self {
        Self(NONE)
    }
}

/// Which way a packet goes, and so what its flow's local end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From a guest; the local end is its own.
    Out,
    /// From the outside; the local end is what stands for the guest's.
    In,
}

impl Hint {
    /// True if no session was found. There may be one all the same.
    #[inline]
    pub(super) fn is_nowhere(self) -> bool {
        self.0 == NONE
    }
}

impl<A: Address> View<A> {
    /// Looks for the sessions of a burst's packets, one hint for each. In large tables, a search waits for memory
    /// again and again; here those of a burst wait together, step by step. Nothing is changed, and no lock is taken.
    pub fn look_ahead(&mut self, way: Way, flows: &[Flow<A>], hints: &mut Vec<Hint>) {
        self.refresh();
        let mut tags = [(0_u32, 0_u8); BURST];
        for flows in flows.chunks(BURST) {
            for (flow, tag) in flows.iter().zip(&mut tags) {
                *tag = self.tag(way, flow).unwrap_or_default();
            }
            // What is read for its being near then. Nothing waits for it here.
            let mut near = 0;
            for (_, (tag, shard)) in flows.iter().zip(&tags) {
                near ^= self.indexes.get(usize::from(*shard)).map_or(0, |seen| seen.touch(*tag));
            }
            for (_, (tag, shard)) in flows.iter().zip(&tags) {
                let found = self.indexes.get(usize::from(*shard)).and_then(|seen| seen.find(*tag));
                let place = found.unwrap_or(NONE);
                near ^= self.napt.common.places.get(place).map_or(0, Session::touch);
                hints.push(Hint(place));
            }
            std::hint::black_box(near);
        }
    }

    /// Looks for the session of one packet.
    #[inline]
    pub(super) fn seek(&mut self, way: Way, flow: &Flow<A>) -> Hint {
        self.refresh();
        let Some((tag, shard)) = self.tag(way, flow) else { return Hint::default() };
        let found = self.indexes.get(usize::from(shard)).and_then(|seen| seen.find(tag));
        Hint(found.unwrap_or(NONE))
    }

    /// What a packet's session is found by, and in which shard.
    #[inline]
    fn tag(&mut self, way: Way, flow: &Flow<A>) -> Option<(u32, u8)> {
        let local = match way {
            Way::Out => flow.local,
            Way::In => {
                let external = self.outside.external(flow.local.address)?;
                match external.holder(flow.protocol, flow.local.port) {
                    Some((_, inside)) => inside,
                    None => self.outside.forwards.inside(flow.protocol, flow.local)?.1,
                }
            }
        };
        let hash = &self.napt.common.hash;
        let shard = shard_of(hash_inside(hash, flow.protocol, local));
        if let (Some(seen), Some(index)) = (self.indexes.get_mut(shard), self.napt.indexes.get(shard)) {
            seen.refresh(index);
        }
        Some((Key { local, ..key(flow) }.hash(hash) as u32, shard as u8))
    }

    /// What stands for a guest's endpoint, if the packet is of the session that the hint leads to and changes nothing
    /// but its times.
    #[inline]
    pub(super) fn pass_out(&self, now: Tick, flow: &Flow<A>, hint: Hint) -> Option<Endpoint<A>> {
        let session = self.napt.common.places.get(hint.0)?;
        let word = session.is(&key(flow)).filter(|word| word.is_settled())?;
        let (outside, deadline) = session.read(word).filter(|(_, deadline)| now < *deadline)?;
        session.note(now, self.fresh, Some((deadline, self.end(now, word))));
        Some(outside)
    }

    /// The other way round.
    #[inline]
    pub(super) fn pass_in(&self, now: Tick, flow: &Flow<A>, hint: Hint) -> Option<Endpoint<A>> {
        let session = self.napt.common.places.get(hint.0)?;
        let (word, inside) = session.is_outside(&key(flow)).filter(|(word, _)| word.is_settled())?;
        let (_, deadline) = session.read(word).filter(|(_, deadline)| now < *deadline)?;
        // RFC 4787, REQ-6: only what comes from the inside keeps a mapping.
        let kept = word.state() != State::Active;
        session.note(now, self.fresh, kept.then(|| (deadline, self.end(now, word))));
        Some(inside)
    }

    /// When a session ends that has a packet now.
    #[inline]
    fn end(&self, now: Tick, word: Word) -> Tick {
        now.after(self.napt.common.times.of(word.protocol(), word.state()))
    }
}

/// What a packet's session would be found by if its local end were the guest's.
#[inline]
pub(super) fn key<A: Address>(flow: &Flow<A>) -> Key<A> {
    Key { protocol: flow.protocol, local: flow.local, remote: flow.remote }
}
