//! Reservations, and what has become of each.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use switch_core::{Instant, MacAddr, PortId};

use super::config::{ADDRESSES_MAX, Dhcp6ConfigError, RESERVATIONS_MAX};
use super::message::DUID_LEN;

/// For how long an address is not handed out after its client found it in use.
const DECLINED_FOR: Duration = Duration::from_secs(600);

/// By what a reservation knows its client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// The MAC address of its interface.
    Mac(MacAddr),
    /// The identifier that it names itself by (RFC 8415, 11): 3 to 130 bytes.
    Duid(Vec<u8>),
}

/// An address that is kept for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The client.
    pub client: Client,
    /// The port that the client is behind; from any other, nobody is this client. `None` believes what a client says
    /// of itself, wherever it is.
    pub port: Option<PortId>,
    /// The address.
    pub address: Ipv6Addr,
}

/// An address that a client has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The client's MAC address.
    pub mac: MacAddr,
    /// Its address.
    pub ip: Ipv6Addr,
    /// Where it was heard, if that port is there.
    pub port: Option<PortId>,
    /// When its lifetime ends, unless it is renewed.
    pub expires: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Taken {
        mac: MacAddr,
        /// Where the client was; `None` if that port is gone.
        port: Option<PortId>,
        until: Instant,
    },
    Declined {
        until: Instant,
    },
}

#[derive(Debug)]
struct Entry {
    reservation: Reservation,
    state: State,
}

/// How a client can be known.
#[derive(Clone, Debug)]
pub(super) struct Asker<'a> {
    pub(super) port: PortId,
    /// The source of its frame: what antispoofing holds on to, and what a relay would tell (RFC 6939).
    pub(super) mac: MacAddr,
    /// The address that its link-local address is made of, if it is made of one.
    pub(super) from_address: Option<MacAddr>,
    pub(super) duid: &'a [u8],
}

/// All reservations of a network.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
    by_client: HashMap<Client, Vec<usize>>,
    by_address: HashMap<Ipv6Addr, usize>,
    /// Another one after each change of who has taken what.
    pub(super) revision: u64,
}

impl Table {
    /// A table of `reservations`, where what was taken from `before` stays taken.
    pub(super) fn new(reservations: Vec<Reservation>, before: &Self) -> Result<Self, Dhcp6ConfigError> {
        use Dhcp6ConfigError as E;
        let mut table = Self { revision: before.revision.wrapping_add(1), ..Self::default() };
        for reservation in reservations {
            let address = reservation.address;
            let group = address.is_multicast() || address.is_unspecified() || address.is_loopback();
            if group || address.is_unicast_link_local() {
                return Err(E::Reserved(address));
            }
            if let Client::Duid(duid) = &reservation.client
                && !DUID_LEN.contains(&duid.len())
            {
                return Err(E::Duid(duid.len()));
            }
            if let Some(same) = table.by_address.get(&address).and_then(|&at| table.entries.get_mut(at)) {
                // The same said twice, perhaps once of the port and once of the client.
                let both = (same.reservation.port, reservation.port);
                let elsewhere = matches!(both, (Some(a), Some(b)) if a != b);
                if same.reservation.client != reservation.client || elsewhere {
                    return Err(E::Twice(address));
                }
                same.reservation.port = both.0.or(both.1);
                continue;
            }
            let at = table.entries.len();
            let of_client = table.by_client.entry(reservation.client.clone()).or_default();
            if of_client.len() >= ADDRESSES_MAX {
                return Err(E::TooMany("addresses for one client", ADDRESSES_MAX));
            }
            if at >= RESERVATIONS_MAX {
                return Err(E::TooMany("reservations", RESERVATIONS_MAX));
            }
            of_client.push(at);
            table.by_address.insert(address, at);
            table.entries.push(Entry { reservation, state: State::Free });
        }
        for entry in &mut table.entries {
            let old =
                before.by_address.get(&entry.reservation.address).and_then(|&at| before.entries.get(at));
            if let Some(old) = old.filter(|old| old.reservation.client == entry.reservation.client) {
                entry.state = old.state;
            }
        }
        Ok(table)
    }

    pub(super) fn is_reserved(&self, address: Ipv6Addr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// Addresses that are the client's now, at most [`ADDRESSES_MAX`].
    pub(super) fn addresses(&self, now: Instant, asker: &Asker<'_>) -> Vec<Ipv6Addr> {
        let declined = |e: &&Entry| matches!(e.state, State::Declined { until } if until > now);
        let of_asker = self.of(now, asker);
        of_asker.filter(|entry| !declined(entry)).map(|entry| entry.reservation.address).collect()
    }

    /// The client takes an address of its own.
    pub(super) fn take(&mut self, asker: &Asker<'_>, address: Ipv6Addr, until: Instant) {
        self.revision = self.revision.wrapping_add(1);
        if let Some(entry) = self.entry(address) {
            entry.state = State::Taken { mac: asker.mac, port: Some(asker.port), until };
        }
    }

    /// The client gives an address back. False if it does not have it.
    pub(super) fn release(&mut self, now: Instant, asker: &Asker<'_>, address: Ipv6Addr) -> bool {
        self.end(now, asker, address, State::Free)
    }

    /// The client found an address in use by somebody else. False if it does not have it.
    pub(super) fn decline(&mut self, now: Instant, asker: &Asker<'_>, address: Ipv6Addr) -> bool {
        self.end(now, asker, address, State::Declined { until: now + DECLINED_FOR })
    }

    pub(super) fn port_removed(&mut self, gone: PortId) {
        self.revision = self.revision.wrapping_add(1);
        for entry in &mut self.entries {
            if let State::Taken { port, .. } = &mut entry.state
                && *port == Some(gone)
            {
                *port = None;
            }
        }
    }

    pub(super) fn bindings(&self, now: Instant) -> Vec<Binding> {
        let taken = self.entries.iter().filter_map(|entry| match entry.state {
            State::Taken { mac, port, until } if until > now => {
                Some(Binding { mac, ip: entry.reservation.address, port, expires: until })
            }
            _ => None,
        });
        taken.collect()
    }

    /// Only what is not in the hands of a client at another port: who merely claims to be that client cannot take
    /// its address away.
    fn end(&mut self, now: Instant, asker: &Asker<'_>, address: Ipv6Addr, state: State) -> bool {
        if !self.addresses(now, asker).contains(&address) {
            return false;
        }
        self.revision = self.revision.wrapping_add(1);
        match self.entry(address) {
            Some(Entry { state: State::Taken { port: Some(port), until, .. }, .. })
                if *until > now && *port != asker.port =>
            {
                false
            }
            Some(entry) => {
                entry.state = state;
                true
            }
            None => false,
        }
    }

    fn entry(&mut self, address: Ipv6Addr) -> Option<&mut Entry> {
        self.by_address.get(&address).and_then(|&at| self.entries.get_mut(at))
    }

    /// The client's reservations. It is known by its identifier; else by the MAC address of its frame; else by the
    /// one in its link-local address; else by the one in its identifier, which a machine uses on all its interfaces:
    /// there, what another interface has taken is not given to this one too.
    fn of(&self, now: Instant, asker: &Asker<'_>) -> impl Iterator<Item = &Entry> {
        let known = |client: &Client, alone: bool| -> Vec<&Entry> {
            let places = self.by_client.get(client).map(Vec::as_slice).unwrap_or_default();
            let entries = places.iter().filter_map(|&at| self.entries.get(at));
            let here = entries.filter(|e| e.reservation.port.is_none_or(|port| port == asker.port));
            let another = |e: &&Entry| matches!(e.state, State::Taken { mac, until, .. } if until > now && mac != asker.mac);
            here.filter(|entry| !alone || !another(entry)).collect()
        };
        let mut entries = known(&Client::Duid(asker.duid.to_vec()), false);
        let macs = [
            (Some(asker.mac), false),
            (asker.from_address, false),
            (super::message::mac_of_duid(asker.duid), true),
        ];
        for (mac, alone) in macs {
            if entries.is_empty()
                && let Some(mac) = mac
            {
                entries = known(&Client::Mac(mac), alone);
            }
        }
        entries.into_iter()
    }
}
