//! What the outside answered, for as long as it may be repeated (RFC 1035 TTLs; RFC 2308 for what does not exist;
//! RFC 9520 for failures).
//!
//! Invariants:
//! - An answer is given out with every TTL lessened by the seconds that it lay here, and never after the least of
//!   them has run out.
//! - There are never more entries or octets than the limits say. Each entry belongs to the port that asked first; when
//!   there is no room, the oldest entry of the port that holds most octets goes, so that a guest that asks for a
//!   million names pushes out its own.
//! - A whole answer is kept under its question. Records are never taken out of one answer for another question, so
//!   what an answer says beside its question is believed by nobody else.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use switch_core::{Instant, PortId};

use super::limits::Limits;

/// The longest that an answer without data is remembered (RFC 2308, section 5).
const NEGATIVE_MAX: u32 = 3600;
/// How long a failure is remembered (RFC 9520, section 3.2).
const FAILURE: u32 = 1;
/// Larger answers are not remembered.
const ENTRY_MAX: usize = 16 << 10;
/// What an entry takes beside its message and name, roughly.
const OVERHEAD: usize = 192;

/// What was asked, as far as it changes the answer. Names are equal whatever the case of their letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) name: Name,
    pub(super) kind: RecordType,
    pub(super) dnssec_ok: bool,
    pub(super) checking_disabled: bool,
}

impl Key {
    /// The key of what holds for every type of the name.
    fn every_type(&self) -> Self {
        Self { kind: RecordType::ZERO, ..self.clone() }
    }
}

#[derive(Debug)]
struct Entry {
    message: Vec<u8>,
    stored: Instant,
    expires: Instant,
    owner: PortId,
    /// Tells this entry from one that stood under its key before.
    serial: u64,
    cost: usize,
}

/// What one port holds.
#[derive(Debug, Default)]
struct Holding {
    cost: usize,
    /// Oldest first. Entries that were replaced or ran out are skipped by their serial.
    order: VecDeque<(Key, u64)>,
    entries: usize,
}

/// Answers, by question.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    holdings: HashMap<PortId, Holding>,
    cost: usize,
    serial: u64,
}

impl Cache {
    /// The answer to a question, its TTLs lessened by its age.
    pub(super) fn get(&mut self, now: Instant, key: &Key) -> Option<Message> {
        self.get_exact(now, key).or_else(|| self.get_exact(now, &key.every_type()))
    }

    fn get_exact(&mut self, now: Instant, key: &Key) -> Option<Message> {
        let entry = self.entries.get(key)?;
        if entry.expires <= now {
            self.remove(key);
            return None;
        }
        let age = u32::try_from(now.since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        let mut message = Message::from_vec(&entry.message).ok()?;
        for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
            for record in section {
                record.ttl = record.ttl.saturating_sub(age);
            }
        }
        Some(message)
    }

    /// Remembers an answer for as long as it says, if it does. `owner` is who asked.
    pub(super) fn put(&mut self, now: Instant, key: &Key, answer: &Message, owner: PortId, limits: &Limits) {
        let ttl = lifetime(answer, key.kind);
        // A name that does not exist has no type (RFC 2308, section 5). Behind an alias it is another name.
        let nowhere = answer.metadata.response_code == ResponseCode::NXDomain && answer.answers.is_empty();
        let key = if nowhere { key.every_type() } else { key.clone() };
        if ttl == 0 {
            return;
        }
        let Ok(message) = answer.to_vec() else {
            return;
        };
        let cost = message.len() + key.name.len() * 2 + OVERHEAD;
        if message.len() > ENTRY_MAX || cost > limits.cache_bytes || limits.cache_entries == 0 {
            return;
        }
        self.remove(&key);
        while self.entries.len() >= limits.cache_entries || self.cost + cost > limits.cache_bytes {
            if !self.evict() {
                return;
            }
        }
        self.serial += 1;
        let holding = self.holdings.entry(owner).or_default();
        holding.order.push_back((key.clone(), self.serial));
        holding.entries += 1;
        holding.cost += cost;
        self.cost += cost;
        let expires = now + Duration::from_secs(u64::from(ttl));
        self.entries.insert(key, Entry { message, stored: now, expires, owner, serial: self.serial, cost });
    }

    /// Drops the oldest entry of who holds most. False if there was none.
    fn evict(&mut self) -> bool {
        let Some((_, holding)) = self.holdings.iter_mut().max_by_key(|(_, holding)| holding.cost) else {
            return false;
        };
        while let Some((key, serial)) = holding.order.pop_front() {
            if self.entries.get(&key).is_some_and(|entry| entry.serial == serial) {
                self.remove(&key);
                return true;
            }
        }
        false
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        self.cost -= entry.cost;
        let Some(holding) = self.holdings.get_mut(&entry.owner) else {
            return;
        };
        holding.cost -= entry.cost;
        holding.entries -= 1;
        if holding.entries == 0 {
            self.holdings.remove(&entry.owner);
        } else if holding.order.len() > 2 * holding.entries + 16 {
            // Names of entries that are gone must not outgrow those that are there.
            let entries = &self.entries;
            holding.order.retain(|(key, serial)| entries.get(key).is_some_and(|e| e.serial == *serial));
        }
    }

    /// Entries, and octets that they are charged with.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        assert_eq!(self.cost, self.entries.values().map(|e| e.cost).sum::<usize>());
        assert_eq!(self.cost, self.holdings.values().map(|h| h.cost).sum::<usize>());
        assert_eq!(self.entries.len(), self.holdings.values().map(|h| h.entries).sum::<usize>());
        (self.entries.len(), self.cost)
    }
}

/// For how many seconds an answer to a question of type `kind` holds; zero if it must not be remembered.
fn lifetime(answer: &Message, kind: RecordType) -> u32 {
    if answer.metadata.truncation {
        return 0;
    }
    let least = answer.answers.iter().map(|record| record.ttl).min();
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        ResponseCode::ServFail | ResponseCode::Refused => return FAILURE,
        _ => return 0,
    }
    let has_data = answer.metadata.response_code == ResponseCode::NoError
        && answer.answers.iter().any(|r| kind == RecordType::ANY || r.record_type() == kind);
    if has_data {
        return least.unwrap_or(0);
    }
    // Without an SOA nobody said for how long there is nothing (RFC 2308, section 5).
    let negative = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    negative.map_or(0, |ttl| ttl.min(NEGATIVE_MAX).min(least.unwrap_or(u32::MAX)))
}
