//! Addresses that are kept for somebody.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use switch_core::{MacAddr, PortId};

/// Reservations of a network, at most.
pub const RESERVATIONS_MAX: usize = 1 << 16;

/// Whom an address is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The station with this Ethernet address, at whatever port. It counts as that only if its frames come from
    /// the address, not if only its messages say so: what frames come from is what a port's source guard looks at.
    Mac(MacAddr),
    /// Whoever is at this port.
    Port(PortId),
    /// The station with this Ethernet address at this port.
    PortMac(PortId, MacAddr),
}

impl Owner {
    /// True if it is one at a certain port.
    pub(super) fn has_port(self) -> bool {
        !matches!(self, Self::Mac(_))
    }
}

/// An address that is kept for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// For whom.
    pub owner: Owner,
    /// The address. It may be outside of the range, but is in the subnet.
    pub ip: Ipv4Addr,
    /// The name that the owner has, whatever it calls itself.
    pub hostname: Option<String>,
}

/// Why an address was not reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// It is not one that a client of this network may have.
    #[error("{0} is not an address that a client of this network may have")]
    NotAClient(Ipv4Addr),
    /// It is somebody else's.
    #[error("{0} is reserved already")]
    Taken(Ipv4Addr),
    /// The name is another address's, or none.
    #[error("'{0}' is no name of letters, digits and hyphens, or another address has it")]
    Name(String),
    /// There are as many as there may be.
    #[error("there are {RESERVATIONS_MAX} reservations already")]
    Full,
}

/// The reservations, by owner and by address. Each has one address, and each address one owner.
#[derive(Clone, Debug, Default)]
pub(super) struct Reservations {
    by_owner: HashMap<Owner, Reservation>,
    by_ip: HashMap<Ipv4Addr, Owner>,
    by_name: HashMap<String, Ipv4Addr>,
}

impl Reservations {
    pub(super) fn of(&self, ip: Ipv4Addr) -> Option<Owner> {
        self.by_ip.get(&ip).copied()
    }

    pub(super) fn get(&self, owner: Owner) -> Option<&Reservation> {
        self.by_owner.get(&owner)
    }

    pub(super) fn name_of(&self, ip: Ipv4Addr) -> Option<&str> {
        self.by_owner.get(self.by_ip.get(&ip)?)?.hostname.as_deref()
    }

    pub(super) fn named(&self, name: &str) -> Option<Ipv4Addr> {
        self.by_name.get(name).copied()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Reservation> {
        self.by_owner.values()
    }

    /// What is kept for a client: the closer description of it first. `source` is where its frame came from.
    pub(super) fn find(&self, port: PortId, mac: MacAddr, source: MacAddr) -> Option<&Reservation> {
        let at_port = self.get(Owner::PortMac(port, mac)).or_else(|| self.get(Owner::Port(port)));
        at_port.or_else(|| self.get(Owner::Mac(mac)).filter(|_| mac == source))
    }

    /// Says why it cannot be.
    pub(super) fn check(&self, new: &Reservation) -> Result<(), ReserveError> {
        if self.of(new.ip).is_some_and(|owner| owner != new.owner) {
            return Err(ReserveError::Taken(new.ip));
        }
        if let Some(name) = &new.hostname
            && (super::names::label(name.as_bytes()).as_ref() != Some(name)
                || self.named(name).is_some_and(|ip| self.of(ip) != Some(new.owner)))
        {
            return Err(ReserveError::Name(name.clone()));
        }
        if self.by_owner.len() >= RESERVATIONS_MAX && !self.by_owner.contains_key(&new.owner) {
            return Err(ReserveError::Full);
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, new: Reservation) {
        self.remove(new.owner);
        self.by_ip.insert(new.ip, new.owner);
        if let Some(name) = &new.hostname {
            self.by_name.insert(name.clone(), new.ip);
        }
        self.by_owner.insert(new.owner, new);
    }

    pub(super) fn remove(&mut self, owner: Owner) -> Option<Reservation> {
        let old = self.by_owner.remove(&owner)?;
        self.by_ip.remove(&old.ip);
        if let Some(name) = &old.hostname {
            self.by_name.remove(name);
        }
        Some(old)
    }
}
