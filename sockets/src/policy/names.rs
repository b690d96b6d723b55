//! Addresses of names, as the gateway told guests.
//!
//! Bounded: of more than [`ADDRESSES_MAX`] addresses what has expired is forgotten, then what will expire first. Only names
//! that rules are about come here, so a guest fills it with answers of domains that an operator named, at most.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use switch_core::Instant;

/// How long a name has an address at least: a guest connects a moment after it asked, and asks again less often than it
/// connects.
pub(super) const TTL_MIN: Duration = Duration::from_secs(60);
/// And at most.
pub(super) const TTL_MAX: Duration = Duration::from_secs(86_400);
/// Addresses that have a name, at most.
const ADDRESSES_MAX: usize = 8192;
/// Names of one address, at most.
const NAMES_MAX: usize = 16;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Names {
    addresses: HashMap<IpAddr, Vec<(String, Instant)>>,
}

impl Names {
    /// A name has an address until then.
    pub(super) fn insert(&mut self, now: Instant, name: &str, ip: IpAddr, until: Instant) {
        if !self.addresses.contains_key(&ip) && self.addresses.len() >= ADDRESSES_MAX {
            self.forget(now);
        }
        let names = self.addresses.entry(ip).or_default();
        names.retain(|(_, end)| *end > now);
        let full = names.len() >= NAMES_MAX;
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, end)) => *end = until.max(*end),
            None if full => {
                if let Some(first) = names.iter_mut().min_by_key(|(_, end)| *end) {
                    *first = (name.to_owned(), until);
                }
            }
            None => names.push((name.to_owned(), until)),
        }
    }

    /// Whether an address has a name that `is_meant`.
    pub(super) fn has(&self, now: Instant, ip: IpAddr, is_meant: impl Fn(&str) -> bool) -> bool {
        let names = self.addresses.get(&ip).map(Vec::as_slice).unwrap_or_default();
        names.iter().any(|(name, until)| *until > now && is_meant(name))
    }

    /// All, with when each ends.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, IpAddr, Instant)> {
        self.addresses
            .iter()
            .flat_map(|(&ip, names)| names.iter().map(move |(name, end)| (&**name, ip, *end)))
    }

    /// Forgets what has expired, and a tenth of all if that is nothing.
    fn forget(&mut self, now: Instant) {
        let last = |names: &[(String, Instant)]| names.iter().map(|(_, end)| *end).max();
        self.addresses.retain(|_, names| last(names).is_some_and(|end| end > now));
        if self.addresses.len() < ADDRESSES_MAX {
            return;
        }
        let mut ends: Vec<Instant> = self.addresses.values().filter_map(|names| last(names)).collect();
        let (_, &mut limit, _) = ends.select_nth_unstable(ADDRESSES_MAX / 10);
        let mut spare = ADDRESSES_MAX / 10 + 1;
        self.addresses.retain(|_, names| {
            let goes = spare > 0 && last(names).is_none_or(|end| end <= limit);
            spare -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_than_there_may_be() {
        let mut names = Names::default();
        let at = |n: u64| Instant::ORIGIN + Duration::from_secs(n);
        for n in 0..3 * ADDRESSES_MAX as u32 {
            let ip = IpAddr::from(n.to_be_bytes());
            names.insert(at(0), "a.example.org", ip, at(100 + u64::from(n)));
            assert!(names.addresses.len() <= ADDRESSES_MAX && names.has(at(0), ip, |_| true));
        }
        // Those that end first went.
        assert!(!names.has(at(0), IpAddr::from(0_u32.to_be_bytes()), |_| true));
        let ip = IpAddr::from([192, 0, 2, 1]);
        for n in 0..100 {
            names.insert(at(0), &format!("n{n}.example.org"), ip, at(1000 + n));
        }
        assert_eq!(names.addresses.get(&ip).map(Vec::len), Some(NAMES_MAX));
        assert!(names.has(at(0), ip, |name| name == "n99.example.org"));
    }
}
