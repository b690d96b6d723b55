//! The addresses of a network: who holds each, who held it, and which one comes next.
//!
//! An address has one [`Slot`]; one that nobody ever had has none. Everything else here is an index over the slots, and
//! [`Pool::update`] is the only place where a slot changes, so that the indexes cannot differ from what they index
//! ([`Pool::assert_consistent`] builds them anew and compares).
//!
//! Invariants:
//! - An address is held by one client at most: offered to it, leased by it, or set aside.
//! - A reserved address is found in no list of free ones: [`Pool::pick`] gives it to its owner alone.
//! - A lease that a port's client has cannot be had by another port's, whatever identifier it shows, as long as the
//!   port is there and the lease runs. Two clients that show the same identifier at two ports (copies of one image)
//!   are two clients.
//! - Slots are bounded by the range, the reservations and the records of the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use switch_core::{Instant, MacAddr, PortId};

use super::config::Config;
use super::message::Request;
use super::reservations::{Reservation, Reservations};
use crate::gateway::leases::ClientKey;

/// An address.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) hold: Hold,
    /// Who had it last, and when that ended (seconds since the Unix epoch).
    pub(super) last: Option<(ClientKey, u64)>,
    /// A probe found nobody; until then none is needed.
    pub(super) clear_until: Option<Instant>,
}

/// Who holds an address now.
#[derive(Clone, Debug, Default)]
pub(super) enum Hold {
    #[default]
    Free,
    Offered(Offer),
    Leased(Lease),
    /// Somebody uses it whom we did not give it to, as a station at `port` said.
    Aside {
        until: Instant,
        port: PortId,
    },
}

/// An address that a client may ask for.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) client: ClientKey,
    pub(super) port: PortId,
    /// When it ends; while it is probed, when the probe ends.
    pub(super) until: Instant,
    /// The message that is answered when nobody answers the probe.
    pub(super) pending: Option<Box<Pending>>,
}

#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) request: Request,
    /// The Ethernet address that it came from.
    pub(super) source: MacAddr,
    /// Addresses that were probed for it.
    pub(super) tries: u8,
}

/// An address that a client has.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) client: ClientKey,
    pub(super) mac: MacAddr,
    /// Where it is; unknown after a start, or when its port went.
    pub(super) port: Option<PortId>,
    pub(super) hostname: Option<String>,
    pub(super) granted: Instant,
    pub(super) until: Instant,
    pub(super) expires_unix: u64,
}

impl Lease {
    /// True if it is this client's, at this port.
    pub(super) fn is_of(&self, client: &ClientKey, port: PortId) -> bool {
        self.client == *client && self.port.is_none_or(|p| p == port)
    }
}

/// What the clients of a port hold.
#[derive(Debug, Default, PartialEq, Eq)]
struct PortUse {
    offers: BTreeSet<(Instant, Ipv4Addr)>,
    asides: usize,
    leases: usize,
}

impl PortUse {
    fn held(&self) -> usize {
        self.offers.len() + self.leases
    }
}

/// The next address for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    Address(Ipv4Addr),
    /// There is none left.
    Exhausted,
    /// Its port has as many as it may.
    Limited,
}

/// Who asks for an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) client: &'a ClientKey,
    pub(super) port: PortId,
    pub(super) mac: MacAddr,
    pub(super) reservation: Option<&'a Reservation>,
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    slots: BTreeMap<Ipv4Addr, Slot>,
    /// Addresses that clients without a reservation may have.
    dynamic: BTreeSet<Ipv4Addr>,
    pub(super) reserved: Reservations,
    /// What has an end.
    timers: BTreeSet<(Instant, Ipv4Addr)>,
    /// Free dynamic addresses that nobody had, and those that somebody had, by when that ended.
    fresh: BTreeSet<Ipv4Addr>,
    ended: BTreeSet<(u64, Ipv4Addr)>,
    /// The addresses that a client holds or had last.
    clients: HashMap<ClientKey, BTreeSet<Ipv4Addr>>,
    ports: BTreeMap<PortId, PortUse>,
    /// Names that leases hold.
    names: HashMap<String, Ipv4Addr>,
    asides: usize,
}

impl Pool {
    pub(super) fn new(config: &Config) -> Self {
        let mut pool = Self::default();
        pool.set_range(config);
        pool
    }

    /// Takes the range of another configuration. The slots stay as they are.
    pub(super) fn set_range(&mut self, config: &Config) {
        let (first, last) = (u32::from(*config.range.start()), u32::from(*config.range.end()));
        let dynamic = (first..=last).map(Ipv4Addr::from).filter(|&ip| config.is_dynamic(ip));
        self.dynamic = dynamic.take(super::config::RANGE_MAX as usize).collect();
        self.rebuild();
    }

    fn rebuild(&mut self) {
        self.timers.clear();
        self.fresh.clear();
        self.ended.clear();
        self.clients.clear();
        self.ports.clear();
        self.names.clear();
        self.asides = 0;
        let slots = std::mem::take(&mut self.slots);
        for ip in self.dynamic.clone() {
            if !slots.contains_key(&ip) {
                self.index(ip, &Slot::default(), true);
            }
        }
        slots.iter().for_each(|(&ip, slot)| self.index(ip, slot, true));
        self.slots = slots;
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = (Ipv4Addr, &Slot)> {
        self.slots.iter().map(|(&ip, slot)| (ip, slot))
    }

    pub(super) fn slot(&self, ip: Ipv4Addr) -> Option<&Slot> {
        self.slots.get(&ip)
    }

    pub(super) fn lease(&self, ip: Ipv4Addr) -> Option<&Lease> {
        match &self.slot(ip)?.hold {
            Hold::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    pub(super) fn named(&self, name: &str) -> Option<Ipv4Addr> {
        self.names.get(name).copied()
    }

    /// Changes an address and what is known by it.
    pub(super) fn update(&mut self, ip: Ipv4Addr, change: impl FnOnce(&mut Slot)) {
        let mut slot = self.slots.remove(&ip).unwrap_or_default();
        self.index(ip, &slot, false);
        change(&mut slot);
        self.index(ip, &slot, true);
        if !matches!(slot, Slot { hold: Hold::Free, last: None, clear_until: None }) {
            self.slots.insert(ip, slot);
        }
    }

    /// Puts an address into the indexes, or takes it out.
    fn index(&mut self, ip: Ipv4Addr, slot: &Slot, put: bool) {
        let mut client_is = |client: &ClientKey| {
            if put {
                self.clients.entry(client.clone()).or_default().insert(ip);
            } else if let Some(addresses) = self.clients.get_mut(client) {
                addresses.remove(&ip);
                if addresses.is_empty() {
                    self.clients.remove(client);
                }
            }
        };
        slot.last.iter().for_each(|(client, _)| client_is(client));
        let step = |count: &mut usize| *count = if put { *count + 1 } else { count.saturating_sub(1) };
        let (until, port) = match &slot.hold {
            Hold::Free => {
                if self.dynamic.contains(&ip) && self.reserved.of(ip).is_none() {
                    match &slot.last {
                        None => set(&mut self.fresh, ip, put),
                        Some((_, ended)) => set(&mut self.ended, (*ended, ip), put),
                    }
                }
                return;
            }
            Hold::Offered(offer) => {
                client_is(&offer.client);
                set(&mut self.ports.entry(offer.port).or_default().offers, (offer.until, ip), put);
                (offer.until, Some(offer.port))
            }
            Hold::Leased(lease) => {
                client_is(&lease.client);
                match (&lease.hostname, put) {
                    (Some(name), true) => drop(self.names.insert(name.clone(), ip)),
                    (Some(name), false) => drop(self.names.remove(name)),
                    (None, _) => {}
                }
                if let Some(port) = lease.port {
                    step(&mut self.ports.entry(port).or_default().leases);
                }
                (lease.until, lease.port)
            }
            Hold::Aside { until, port } => {
                step(&mut self.ports.entry(*port).or_default().asides);
                step(&mut self.asides);
                (*until, Some(*port))
            }
        };
        set(&mut self.timers, (until, ip), put);
        if let Some(port) = port
            && self.ports.get(&port).is_some_and(|used| *used == PortUse::default())
        {
            self.ports.remove(&port);
        }
    }

    /// The first end that is due.
    pub(super) fn due(&self, now: Instant) -> Option<Ipv4Addr> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|&(_, ip)| ip)
    }

    pub(super) fn due_at(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// True if the address is this client's to have: reserved for it, or for nobody and in the range.
    pub(super) fn may_have(&self, ip: Ipv4Addr, reservation: Option<&Reservation>) -> bool {
        match self.reserved.of(ip) {
            Some(owner) => reservation.is_some_and(|r| r.owner == owner),
            None => self.dynamic.contains(&ip),
        }
    }

    /// The addresses that a client holds, offered or leased, or had last, those that it may still have.
    pub(super) fn known(&self, asker: &Asker<'_>) -> impl Iterator<Item = (Ipv4Addr, &Slot)> {
        let addresses = self.clients.get(asker.client).into_iter().flatten();
        addresses.filter_map(|&ip| self.slot(ip).map(|slot| (ip, slot)))
    }

    /// True if the client can have this address at once, because it has it or had it last and nobody else took it.
    pub(super) fn is_its_own(&self, ip: Ipv4Addr, asker: &Asker<'_>) -> bool {
        let Some(slot) = self.slot(ip) else { return false };
        match &slot.hold {
            Hold::Free => slot.last.as_ref().is_some_and(|(client, _)| client == asker.client),
            Hold::Offered(offer) => {
                offer.client == *asker.client && offer.port == asker.port && offer.pending.is_none()
            }
            Hold::Leased(lease) => lease.is_of(asker.client, asker.port) || displaces(lease, asker, ip),
            Hold::Aside { .. } => false,
        }
    }

    /// True if the reserved address can be given to its owner.
    pub(super) fn is_open_to_owner(&self, ip: Ipv4Addr, asker: &Asker<'_>) -> bool {
        match self.slot(ip).map(|s| &s.hold) {
            None | Some(Hold::Free | Hold::Offered(_)) => true,
            Some(Hold::Leased(lease)) => lease.is_of(asker.client, asker.port) || displaces(lease, asker, ip),
            Some(Hold::Aside { .. }) => false,
        }
    }

    /// True if the client of this address would be one more lease than its port may have.
    pub(super) fn is_over(&self, ip: Ipv4Addr, asker: &Asker<'_>, config: &Config) -> bool {
        let has_it = self.lease(ip).is_some_and(|l| l.port == Some(asker.port));
        let used = self.ports.get(&asker.port).map_or(0, |used| used.leases);
        let reserved = self.reserved.of(ip).is_some();
        !has_it && !reserved && config.limits.leases.is_some_and(|max| used >= max)
    }

    /// The next address for a client: the reserved one, the one that it has or had, the one that it asked for, one that
    /// nobody had, the one whose lease ended first; when there is none, one that was offered at the port
    /// whose clients hold the most.
    pub(super) fn pick(&self, asker: &Asker<'_>, requested: Option<Ipv4Addr>, config: &Config) -> Pick {
        if let Some(reservation) = asker.reservation
            && self.is_open_to_owner(reservation.ip, asker)
        {
            return Pick::Address(reservation.ip);
        }
        let mut had = None;
        for (ip, slot) in self.known(asker).filter(|&(ip, _)| self.may_have(ip, asker.reservation)) {
            match &slot.hold {
                Hold::Leased(lease) if lease.is_of(asker.client, asker.port) => return Pick::Address(ip),
                Hold::Offered(offer) if offer.client == *asker.client && offer.port == asker.port => {
                    return Pick::Address(ip);
                }
                Hold::Free => had = had.or(Some(ip)),
                _ => {}
            }
        }
        let used = self.ports.get(&asker.port);
        let offers = used.map_or(0, |used| used.offers.len());
        let leases = used.map_or(0, |used| used.leases);
        if offers >= config.limits.offers || config.limits.leases.is_some_and(|max| leases >= max) {
            return Pick::Limited;
        }
        let is_free = |ip: &Ipv4Addr| {
            let free = self.slot(*ip).is_none_or(|slot| matches!(slot.hold, Hold::Free));
            free && self.dynamic.contains(ip) && self.reserved.of(*ip).is_none()
        };
        let next = had.or(requested.filter(is_free));
        let next = next.or_else(|| self.fresh.first().copied());
        let next = next.or_else(|| self.ended.first().map(|&(_, ip)| ip));
        match next.or_else(|| self.preempted(offers + leases)) {
            Some(ip) => Pick::Address(ip),
            None => Pick::Exhausted,
        }
    }

    /// The oldest offer at the port whose clients hold the most, if that is more than the asker's would have then.
    fn preempted(&self, held: usize) -> Option<Ipv4Addr> {
        let offering = self.ports.values().filter(|used| !used.offers.is_empty());
        let most = offering.max_by_key(|used| used.held())?;
        if most.held() <= held + 1 {
            return None;
        }
        most.offers.iter().map(|&(_, ip)| ip).find(|&ip| self.may_have(ip, None))
    }

    /// True if a station at this port is believed that an address is in use: a port that says so of an eighth of the
    /// range, or all of half of it, is more likely to want it empty.
    pub(super) fn believes(&self, port: PortId) -> bool {
        let range = self.dynamic.len();
        let by_port = self.ports.get(&port).map_or(0, |used| used.asides);
        by_port < (range / 8).max(2) && self.asides < (range / 2).max(2)
    }

    /// What the clients of a port hold.
    pub(super) fn held_at(&self, port: PortId) -> Vec<Ipv4Addr> {
        let is_at = |slot: &Slot| match &slot.hold {
            Hold::Offered(offer) => offer.port == port,
            Hold::Leased(lease) => lease.port == Some(port),
            Hold::Aside { port: at, .. } => *at == port,
            Hold::Free => false,
        };
        self.slots().filter(|(_, slot)| is_at(slot)).map(|(ip, _)| ip).collect()
    }

    /// Reserves an address, or takes a reservation back, with the lists of free addresses as they are then.
    pub(super) fn change_reservations<T>(
        &mut self,
        touched: &[Ipv4Addr],
        change: impl FnOnce(&mut Reservations) -> T,
    ) -> T {
        let slot = |pool: &Self, ip: Ipv4Addr| pool.slots.get(&ip).cloned().unwrap_or_default();
        for &ip in touched {
            self.index(ip, &slot(self, ip), false);
        }
        let result = change(&mut self.reserved);
        for &ip in touched {
            self.index(ip, &slot(self, ip), true);
        }
        result
    }

    /// Dynamic addresses in all, and those of them that are free and not reserved.
    pub(super) fn room(&self) -> (usize, usize) {
        (self.dynamic.len(), self.fresh.len() + self.ended.len())
    }

    /// Panics if an index says anything that the slots do not.
    pub(super) fn assert_consistent(&self) {
        let mut anew = Self {
            slots: self.slots.clone(),
            dynamic: self.dynamic.clone(),
            reserved: self.reserved.clone(),
            ..Self::default()
        };
        anew.rebuild();
        assert_eq!(self.timers, anew.timers);
        assert_eq!(self.fresh, anew.fresh);
        assert_eq!(self.ended, anew.ended);
        assert_eq!(self.clients, anew.clients);
        assert_eq!(self.ports, anew.ports);
        assert_eq!(self.names, anew.names);
        assert_eq!(self.asides, anew.asides);
        let names =
            self.slots.values().filter(|s| matches!(&s.hold, Hold::Leased(l) if l.hostname.is_some()));
        assert_eq!(self.names.len(), names.count(), "a name is one lease's");
    }
}

/// True if the owner of a reserved address takes it over from the lease that is on it: what booted before at its
/// port, or with its Ethernet address, under another identifier.
fn displaces(lease: &Lease, asker: &Asker<'_>, ip: Ipv4Addr) -> bool {
    let Some(reservation) = asker.reservation.filter(|r| r.ip == ip) else { return false };
    match lease.port {
        Some(port) => port == asker.port,
        None => reservation.owner.has_port() || lease.mac == asker.mac,
    }
}

fn set<T: Ord>(set: &mut BTreeSet<T>, value: T, put: bool) {
    if put {
        set.insert(value);
    } else {
        set.remove(&value);
    }
}
