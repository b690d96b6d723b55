//! Doubly linked lists through the slots of a slab: constant time to append and to unlink, nothing allocated.
//!
//! A list knows its ends; the links are in the elements, which say by [`Linked`] where. An element is on a list
//! at most once for each of its links.

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// A pair of links in an element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) prev: u32,
    pub(super) next: u32,
}

impl Link {
    pub(super) const UNLINKED: Self = Self { prev: NONE, next: NONE };
}

/// An element with links, of which `WHICH` names one pair.
pub(super) trait Linked<const WHICH: usize> {
    fn link(&mut self) -> &mut Link;
}

/// The ends of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<const WHICH: usize> {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl<const WHICH: usize> List<WHICH> {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };

    pub(super) fn is_empty(&self) -> bool {
        self.first == NONE
    }

    /// Appends an element that is on no list of this link.
    pub(super) fn push<T: Linked<WHICH>>(&mut self, slab: &mut [T], i: u32) {
        *slab[i as usize].link() = Link { prev: self.last, next: NONE };
        match self.last {
            NONE => self.first = i,
            last => slab[last as usize].link().next = i,
        }
        self.last = i;
    }

    /// Takes an element off this list.
    pub(super) fn unlink<T: Linked<WHICH>>(&mut self, slab: &mut [T], i: u32) {
        let Link { prev, next } = std::mem::replace(slab[i as usize].link(), Link::UNLINKED);
        match prev {
            NONE => self.first = next,
            prev => slab[prev as usize].link().next = next,
        }
        match next {
            NONE => self.last = prev,
            next => slab[next as usize].link().prev = prev,
        }
    }
}
