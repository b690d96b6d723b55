//! Whom a mapping has sent to: that is who may answer (RFC 4787, section 5), and what an operator sees as sessions.
//!
//! Bounded: of more than [`REMOTES_MAX`] endpoints the half that was sent to least lately is forgotten, all at once, so
//! that a guest which sends to ever new ones pays for it by its own answers, and little of anybody's time.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use switch_core::Instant;
use switch_core::napt::Filtering;

/// Endpoints of one mapping.
pub(crate) const REMOTES_MAX: usize = 512;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Remotes {
    sent: HashMap<SocketAddr, Instant>,
    /// How many of them are of an address.
    addresses: HashMap<IpAddr, u32>,
}

impl Remotes {
    /// True if something was sent there.
    #[inline]
    pub(crate) fn knows(&self, remote: &SocketAddr) -> bool {
        self.sent.contains_key(remote)
    }

    /// Notes that something is sent there.
    pub(crate) fn note(&mut self, now: Instant, remote: SocketAddr) {
        if let Some(at) = self.sent.get_mut(&remote) {
            *at = now;
            return;
        }
        if self.sent.len() >= REMOTES_MAX {
            self.forget_half();
        }
        self.sent.insert(remote, now);
        *self.addresses.entry(remote.ip()).or_default() += 1;
    }

    /// Whether what comes from there is let in.
    #[inline]
    pub(crate) fn lets_in(&self, filtering: Filtering, remote: &SocketAddr) -> bool {
        match filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.addresses.contains_key(&remote.ip()),
            Filtering::AddressAndPortDependent => self.sent.contains_key(remote),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.sent.len()
    }

    /// All, with when they were last sent to.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SocketAddr, Instant)> {
        self.sent.iter().map(|(&remote, &at)| (remote, at))
    }

    fn forget_half(&mut self) {
        let mut times: Vec<Instant> = self.sent.values().copied().collect();
        let middle = times.len() / 2;
        let (_, &mut limit, _) = times.select_nth_unstable(middle);
        // Those of the same instant go in any order, but never more than half of all.
        let mut spare = middle;
        self.sent.retain(|_, at| {
            let goes = *at <= limit && spare > 0;
            spare -= usize::from(goes);
            !goes
        });
        self.addresses.clear();
        for remote in self.sent.keys() {
            *self.addresses.entry(remote.ip()).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn remote(n: u16, port: u16) -> SocketAddr {
        let [high, low] = n.to_be_bytes();
        SocketAddr::from(([192, 0, high, low], port))
    }

    #[test]
    fn who_may_answer() {
        let mut remotes = Remotes::default();
        remotes.note(Instant::ORIGIN, remote(1, 53));
        use Filtering::*;
        for (filtering, same, port, other) in [
            (EndpointIndependent, true, true, true),
            (AddressDependent, true, true, false),
            (AddressAndPortDependent, true, false, false),
        ] {
            let lets_in = |n, port| remotes.lets_in(filtering, &remote(n, port));
            assert_eq!(
                (lets_in(1, 53), lets_in(1, 54), lets_in(2, 53)),
                (same, port, other),
                "{filtering:?}"
            );
        }
    }

    #[test]
    fn of_too_many_the_older_half_is_forgotten() {
        let mut remotes = Remotes::default();
        let at = |n: u16| Instant::ORIGIN + Duration::from_millis(n.into());
        for n in 0..REMOTES_MAX as u16 {
            remotes.note(at(n), remote(n, 1));
        }
        // The first is the youngest now.
        remotes.note(at(5000), remote(0, 1));
        remotes.note(at(5001), remote(9999, 1));
        assert_eq!(remotes.iter().count(), REMOTES_MAX / 2 + 1);
        let lets_in = |n| remotes.lets_in(Filtering::AddressDependent, &remote(n, 7));
        assert_eq!((lets_in(0), lets_in(1), lets_in(9999)), (true, false, true));
        for n in 0..20_000 {
            remotes.note(at(6000), remote(n, 2));
            assert!(remotes.iter().count() <= REMOTES_MAX);
        }
    }
}
