//! Port forwards: ranges of outside ports that always lead to an inside host.
//!
//! Ranges of one protocol do not overlap where their outside addresses can be the same. Their targets may.

use std::collections::BTreeMap;

use super::access::{Forward, ForwardError, Protocol};
use super::flow::{Address, Endpoint};

/// Forwards, at most.
pub const FORWARDS_MAX: usize = 4096;

/// A forward among those of a translator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<A> {
    /// Never given again: sessions name the forward that they came by. Not zero.
    pub(super) id: u32,
    pub(super) protocol: Protocol,
    pub(super) address: Option<A>,
    pub(super) port: u16,
    count: u16,
    target: Endpoint<A>,
}

impl<A: Address> Entry<A> {
    /// The outside ports.
    pub(super) fn ports(&self) -> std::ops::RangeInclusive<u16> {
        self.port..=self.port.saturating_add(self.count - 1)
    }

    /// True if the forward holds for an outside address.
    pub(super) fn is_at(&self, address: A) -> bool {
        self.address.is_none_or(|own| own == address)
    }

    fn to_public(self) -> Forward {
        Forward {
            protocol: self.protocol,
            address: self.address.map(A::to_ip),
            port: self.port,
            count: self.count,
            target: self.target.to_socket(),
        }
    }
}

/// The forwards of a translator.
#[derive(Clone, Debug, Default)]
pub(super) struct Forwards<A> {
    by_listen: BTreeMap<(Protocol, Option<A>, u16), Entry<A>>,
    by_target: BTreeMap<(Protocol, Endpoint<A>, u32), Entry<A>>,
    /// No range has more ports.
    longest: u16,
    last_id: u32,
}

impl<A: Address> Forwards<A> {
    pub(super) fn new() -> Self {
        Self { by_listen: BTreeMap::new(), by_target: BTreeMap::new(), longest: 0, last_id: 0 }
    }

    pub(super) fn add(&mut self, forward: &Forward) -> Result<Entry<A>, ForwardError> {
        use ForwardError::Impossible;
        let family = "the addresses of a forward are of one version of IP";
        let target = A::from_ip(forward.target.ip()).ok_or(Impossible(family))?;
        let address = match forward.address.map(A::from_ip) {
            Some(None) => return Err(Impossible(family)),
            Some(address) => address,
            None => None,
        };
        let Some(more) = forward.count.checked_sub(1) else {
            return Err(Impossible("a forward has at least one port"));
        };
        if forward.protocol == Protocol::Icmp {
            return Err(Impossible("only tcp and udp have ports to forward"));
        }
        if forward.port == 0 || forward.target.port() == 0 {
            return Err(Impossible("port 0 cannot be forwarded"));
        }
        if forward.port.checked_add(more).is_none() || forward.target.port().checked_add(more).is_none() {
            return Err(Impossible("the range ends after port 65535"));
        }
        if self.by_listen.len() >= FORWARDS_MAX {
            return Err(Impossible("there are 4096 forwards already"));
        }
        let entry = Entry {
            id: self.last_id.wrapping_add(1).max(1),
            protocol: forward.protocol,
            address,
            port: forward.port,
            count: forward.count,
            target: Endpoint::new(target, forward.target.port()),
        };
        if let Some(taken) = self.by_listen.values().find_map(|other| other.overlap(&entry)) {
            return Err(ForwardError::Taken(taken));
        }
        self.last_id = entry.id;
        self.longest = self.longest.max(entry.count);
        self.by_listen.insert((entry.protocol, entry.address, entry.port), entry);
        self.by_target.insert((entry.protocol, entry.target, entry.id), entry);
        Ok(entry)
    }

    pub(super) fn remove(&mut self, forward: &Forward) -> Option<Entry<A>> {
        let address = match forward.address {
            Some(address) => Some(A::from_ip(address)?),
            None => None,
        };
        let key = (forward.protocol, address, forward.port);
        let entry = *self.by_listen.get(&key).filter(|entry| entry.to_public() == *forward)?;
        self.by_listen.remove(&key);
        self.by_target.remove(&(entry.protocol, entry.target, entry.id));
        Some(entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<A>> {
        self.by_listen.values()
    }

    /// Where an outside endpoint leads.
    pub(super) fn inside(&self, protocol: Protocol, outside: Endpoint<A>) -> Option<(u32, Endpoint<A>)> {
        [Some(outside.address), None].into_iter().find_map(|address| {
            let range = (protocol, address, 0)..=(protocol, address, outside.port);
            let entry = self.by_listen.range(range).next_back()?.1;
            let i = outside.port.checked_sub(entry.port).filter(|&i| i < entry.count)?;
            Some((entry.id, Endpoint::new(entry.target.address, entry.target.port.checked_add(i)?)))
        })
    }

    /// The forward that leads to an inside endpoint, if there is one: its outside address, if it has one, and port.
    pub(super) fn outside(
        &self,
        protocol: Protocol,
        inside: Endpoint<A>,
        is_ours: impl Fn(A) -> bool,
    ) -> Option<(u32, Option<A>, u16)> {
        let first = Endpoint::new(inside.address, inside.port.saturating_sub(self.longest));
        let range = (protocol, first, 0)..=(protocol, inside, u32::MAX);
        self.by_target.range(range).rev().find_map(|(_, entry)| {
            let i = inside.port.checked_sub(entry.target.port).filter(|&i| i < entry.count)?;
            let usable = entry.address.is_none_or(&is_ours);
            usable.then_some((entry.id, entry.address, entry.port.checked_add(i)?))
        })
    }
}

impl<A: Address> Entry<A> {
    /// A port that both have.
    fn overlap(&self, other: &Self) -> Option<u16> {
        let meet = self.protocol == other.protocol
            && (self.address.is_none() || other.address.is_none() || self.address == other.address);
        let first = self.port.max(other.port);
        (meet && self.ports().contains(&first) && other.ports().contains(&first)).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn forward(address: Option<&str>, port: u16, count: u16, target: &str) -> Forward {
        Forward {
            protocol: Protocol::Tcp,
            address: address.map(|a| a.parse().unwrap()),
            port,
            count,
            target: target.parse().unwrap(),
        }
    }

    #[test]
    fn ranges_lead_both_ways_and_do_not_overlap() {
        let mut forwards = Forwards::<Ipv4Addr>::new();
        let range = forward(None, 8000, 100, "10.0.0.5:9000");
        let one = forward(Some("192.0.2.1"), 80, 1, "10.0.0.5:9050");
        forwards.add(&range).unwrap();
        forwards.add(&one).unwrap();
        let at = |last: u8, port| Endpoint::new(Ipv4Addr::new(192, 0, 2, last), port);
        let inside = |port| Endpoint::new(Ipv4Addr::new(10, 0, 0, 5), port);
        let tcp = Protocol::Tcp;
        let to = |outside| forwards.inside(tcp, outside).map(|(_, inside)| inside);
        assert_eq!(to(at(1, 8000)), Some(inside(9000)));
        assert_eq!(to(at(2, 8099)), Some(inside(9099)));
        assert_eq!(to(at(2, 8100)), None);
        assert_eq!(to(at(2, 7999)), None);
        assert_eq!(to(at(1, 80)), Some(inside(9050)));
        assert_eq!(to(at(2, 80)), None, "another address");
        assert_eq!(forwards.inside(Protocol::Udp, at(1, 8000)), None);

        let from = |port, ours| forwards.outside(tcp, inside(port), |_| ours).map(|(_, a, p)| (a, p));
        assert_eq!(from(9001, true), Some((None, 8001)));
        assert_eq!(from(9050, true), Some((Some(at(1, 0).address), 80)));
        assert_eq!(from(9050, false), Some((None, 8050)), "the other's address is not ours now");
        assert_eq!(from(9051, true), Some((None, 8051)), "behind a shorter range");
        assert_eq!(from(9100, true), None);

        for (clash, port) in [
            (forward(None, 7990, 11, "10.0.0.6:1"), 8000),
            (forward(Some("192.0.2.9"), 8050, 1, "10.0.0.6:1"), 8050),
            (forward(None, 80, 1, "10.0.0.6:1"), 80),
        ] {
            assert_eq!(forwards.add(&clash), Err(ForwardError::Taken(port)));
        }
        forwards.add(&forward(Some("192.0.2.2"), 80, 1, "10.0.0.6:1")).unwrap();
        assert!(forwards.remove(&range).is_some());
        assert!(forwards.remove(&range).is_none());
        assert_eq!(forwards.inside(tcp, at(1, 8000)), None);
        assert_eq!(forwards.iter().count(), 2);
    }

    #[test]
    fn impossible_forwards_are_refused() {
        let mut forwards = Forwards::<Ipv4Addr>::new();
        let icmp = Forward { protocol: Protocol::Icmp, ..forward(None, 80, 1, "10.0.0.5:80") };
        for bad in [
            forward(None, 0, 1, "10.0.0.5:80"),
            forward(None, 80, 1, "10.0.0.5:0"),
            forward(None, 80, 0, "10.0.0.5:80"),
            forward(None, 65535, 2, "10.0.0.5:80"),
            forward(None, 80, 2, "10.0.0.5:65535"),
            forward(None, 80, 1, "[2001:db8::5]:80"),
            forward(Some("2001:db8::1"), 80, 1, "10.0.0.5:80"),
            icmp,
        ] {
            assert!(matches!(forwards.add(&bad), Err(ForwardError::Impossible(_))), "{bad:?}");
        }
    }
}
