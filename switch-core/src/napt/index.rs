//! Finds sessions by the hash of their flow: open addressing, one place after the other, in words that hold 32 bits of
//! the hash and the number of the session.
//!
//! One shard's lock is held by whoever changes an index. Workers read it without: a word is read whole, and what it
//! leads to is compared with what is sought. Somebody who reads while entries move may miss one, so "not there" is
//! only true under the lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The words, a power of two of them; zero where there is no entry.
pub(super) type Words = Arc<[AtomicU64]>;

/// Words that a reader without the lock looks at.
const READ_MAX: usize = 32;
const FIRST_LEN: usize = 16;

/// An index, as workers share it.
#[derive(Debug)]
pub(super) struct Index {
    /// Replaced when it grows, under the shard's lock.
    words: Mutex<Words>,
    /// Raised after that.
    generation: AtomicU32,
}

/// What a worker knows of an index.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    words: Words,
    generation: u32,
}

#[inline]
fn word(tag: u32, session: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(session.wrapping_add(1))
}

/// The session of a word with this tag.
#[inline]
fn session(word: u64, tag: u32) -> Option<u32> {
    if (word >> 32) as u32 == tag { (word as u32).checked_sub(1) } else { None }
}

/// Where the search for a tag begins.
#[inline]
fn home(words: &[AtomicU64], word: u64) -> usize {
    (word >> 32) as usize & words.len().wrapping_sub(1)
}

fn empty(len: usize) -> Words {
    (0..len).map(|_| AtomicU64::new(0)).collect()
}

impl Index {
    pub(super) fn new() -> Self {
        Self { words: Mutex::new(empty(FIRST_LEN)), generation: AtomicU32::new(0) }
    }

    /// What it is now.
    pub(super) fn look(&self) -> Seen {
        // In this order: words that are newer than their number are fetched twice, not never.
        let generation = self.generation.load(Ordering::Acquire);
        let words = Arc::clone(&self.words.lock().unwrap_or_else(PoisonError::into_inner));
        Seen { words, generation }
    }

    fn replace(&self, words: Words) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = words;
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Seen {
    /// Takes up a larger one.
    #[inline]
    pub(super) fn refresh(&mut self, index: &Index) {
        if index.generation.load(Ordering::Acquire) != self.generation {
            *self = index.look();
        }
    }

    /// The word that a search for a tag begins with: to have it in the processor's cache.
    #[inline]
    pub(super) fn touch(&self, tag: u32) -> u64 {
        let at = home(&self.words, word(tag, 0));
        self.words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The first session with this tag, most likely the one that is sought.
    #[inline]
    pub(super) fn find(&self, tag: u32) -> Option<u32> {
        let mask = self.words.len().wrapping_sub(1);
        let mut at = home(&self.words, word(tag, 0));
        for _ in 0..READ_MAX {
            // Acquire pairs with the Release that put the entry here: its session is seen as it was then, or later.
            let word = self.words.get(at)?.load(Ordering::Acquire);
            if let Some(found) = session(word, tag) {
                return Some(found);
            }
            if word == 0 {
                return None;
            }
            at = (at + 1) & mask;
        }
        None
    }
}

/// An index, as the shard's lock allows to change it.
#[derive(Debug)]
pub(super) struct Writer {
    index: Arc<Index>,
    words: Words,
    len: usize,
}

impl Writer {
    pub(super) fn new() -> Self {
        let index = Arc::new(Index::new());
        let words = index.look().words;
        Self { index, words, len: 0 }
    }

    /// What workers share.
    pub(super) fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index)
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = u32> {
        self.words.iter().filter_map(|word| (word.load(Ordering::Relaxed) as u32).checked_sub(1))
    }

    /// The session with this tag that `is` the one sought.
    #[inline]
    pub(super) fn find(&self, tag: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.words.len().wrapping_sub(1);
        let mut at = home(&self.words, word(tag, 0));
        // A quarter of the words are zero: the search ends.
        loop {
            let word = self.words.get(at)?.load(Ordering::Relaxed);
            if word == 0 {
                return None;
            }
            if let Some(found) = session(word, tag).filter(|session| is(*session)) {
                return Some(found);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a session, which is written already.
    pub(super) fn insert(&mut self, tag: u32, session: u32) {
        if (self.len + 1) * 4 > self.words.len() * 3 {
            let larger = empty(self.words.len() * 2);
            for old in self.words.iter().map(|word| word.load(Ordering::Relaxed)).filter(|word| *word != 0) {
                put(&larger, old);
            }
            self.words = Arc::clone(&larger);
            self.index.replace(larger);
        }
        put(&self.words, word(tag, session));
        self.len += 1;
    }

    /// Takes a session away, if it is there.
    pub(super) fn remove(&mut self, tag: u32, session: u32) {
        let mask = self.words.len().wrapping_sub(1);
        let load = |at: usize| self.words.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let store = |at: usize, word: u64| {
            if let Some(place) = self.words.get(at) {
                place.store(word, Ordering::Release);
            }
        };
        let sought = word(tag, session);
        let mut gap = home(&self.words, sought);
        loop {
            match load(gap) {
                0 => return,
                word if word == sought => break,
                _ => gap = (gap + 1) & mask,
            }
        }
        self.len -= 1;
        // Those behind move up, where they are still found: without a gap between their home and them.
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let word = load(at);
            if word == 0 {
                break;
            }
            let from_home = at.wrapping_sub(home(&self.words, word)) & mask;
            if from_home >= (at.wrapping_sub(gap) & mask) {
                store(gap, word);
                gap = at;
            }
        }
        store(gap, 0);
    }

    /// Bytes in use.
    pub(super) fn memory(&self) -> usize {
        self.words.len() * size_of::<AtomicU64>()
    }
}

fn put(words: &[AtomicU64], word: u64) {
    let mask = words.len().wrapping_sub(1);
    let mut at = home(words, word);
    while let Some(place) = words.get(at) {
        if place.load(Ordering::Relaxed) == 0 {
            place.store(word, Ordering::Release);
            return;
        }
        at = (at + 1) & mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Few tags, which collide, and searches that go around the end.
        #[test]
        fn it_finds_what_a_map_finds(steps in prop::collection::vec((any::<bool>(), 0..64_u32, 0..64_u32), 1..300)) {
            let mut writer = Writer::new();
            let mut seen = writer.index().look();
            let mut model = BTreeMap::new();
            for (add, session, tag) in steps {
                let tag = tag.wrapping_mul(0x0fff_ffff);
                if add && !model.contains_key(&session) {
                    writer.insert(tag, session);
                    model.insert(session, tag);
                } else if let Some(tag) = model.remove(&session) {
                    writer.remove(tag, session);
                }
                prop_assert_eq!(writer.len(), model.len());
                seen.refresh(&writer.index);
                for session in 0..64 {
                    let tag = model.get(&session).copied();
                    for sought in [tag.unwrap_or(7), 3] {
                        let there = (tag == Some(sought)).then_some(session);
                        prop_assert_eq!(writer.find(sought, |found| found == session), there);
                        let hint = seen.find(sought);
                        prop_assert_eq!(hint.is_some(), model.values().any(|tag| *tag == sought));
                        prop_assert!(hint.is_none_or(|hint| model.get(&hint) == Some(&sought)));
                    }
                }
            }
        }
    }
}
