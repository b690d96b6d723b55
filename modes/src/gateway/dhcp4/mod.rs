//! A DHCPv4 server (RFC 2131, 2132, 3442, 4702, 6842) as a state machine: frames and time in, frames out.
//!
//! What a client says is read by `message`, what it is told is written by `reply`, in frames of `frame`. `pool` knows
//! who has which address, `reservations` for whom one is kept, and `serve` is the protocol. Leases go through a
//! [`LeaseStore`] before a client hears of them.
//!
//! Invariants:
//! - No address is given to two clients, none outside of the range unless it is reserved, and no reserved one to
//!   anybody but its owner.
//! - An answer leaves by the port that the question came from, and by no other.
//! - A lease is durable before its acknowledgement is sent. If it cannot be written, nothing is sent and nothing changes.
//! - An address is offered to a new client only after a probe by ARP that nobody answered, unless one was not answered a
//!   minute ago. Who answers probes for many addresses is not believed.
//! - Each port has a budget of messages and of writes, a bound of offered addresses and, if wanted, of leases; an
//!   offer at the port whose clients hold most gives way when there is no other address left.
//!
//! Decisions where the RFC leaves one:
//! - A client is its identifier *at its port* (see `pool`): what a guest can say about itself, another can say too.
//! - The server is the only one on its network. So it refuses what is wrong in REQUESTs to itself and on the
//!   wrong subnet, and is silent about clients that it does not know, as 4.3.2 asks.
//! - Relayed messages (giaddr is set) are dropped: a network is one link. The relay agent information of a message that was
//!   not relayed is sent back (RFC 3046, 2.2).
//! - A lease that was given less than a minute ago is acknowledged again for the time that is left, without a write.
//!
//! Owned by the thread that runs the network's services.

mod config;
mod frame;
mod message;
mod names;
mod pool;
mod reply;
mod reservations;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use switch_core::{Instant, MacAddr, PortId};

pub use config::{Config, ConfigError, Limits, RANGE_MAX};
pub use reservations::{Owner, RESERVATIONS_MAX, Reservation, ReserveError};

use crate::gateway::Outbox;
use crate::gateway::budget::Budget;
use crate::gateway::leases::{Change, LeaseStore, StoreError};
use pool::{Hold, Lease, Pool};

/// Events that wait to be read, at most.
const EVENTS_MAX: usize = 4096;
/// Ends that one [`Server::poll`] works on, at most; what is left is due at once.
const ENDS_PER_POLL: usize = 1024;

/// A lease that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// The address.
    pub ip: Ipv4Addr,
    /// Its client's Ethernet address.
    pub mac: MacAddr,
    /// The name that it holds.
    pub hostname: Option<String>,
    /// Seconds until it ends.
    pub expires_s: u64,
    /// Where the client is, if it was heard since the start.
    pub port: Option<PortId>,
}

/// A change that others act on: routes, neighbours, names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The address is at this port, with this Ethernet address. It is told again when the lease gets another name or
    /// loses it.
    Assigned {
        /// The port.
        port: PortId,
        /// The address.
        ip: Ipv4Addr,
        /// The client's Ethernet address.
        mac: MacAddr,
    },
    /// The address is nobody's any more, or its port is gone.
    Withdrawn {
        /// The port, if it was known.
        port: Option<PortId>,
        /// The address.
        ip: Ipv4Addr,
        /// The Ethernet address that the client had.
        mac: MacAddr,
    },
}

/// How many addresses there are, and what they are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses that are given to whoever asks.
    pub range: usize,
    /// Of these, the ones that a new client could get; with none, the pool is exhausted.
    pub free: usize,
    /// Addresses that are leased, reserved ones included.
    pub leased: usize,
    /// Addresses that are offered, or probed to be.
    pub offered: usize,
    /// Addresses that are not offered because somebody uses them.
    pub aside: usize,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened, in numbers since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// The counters by their names.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// DISCOVER messages.
    discover,
    /// REQUEST messages.
    request,
    /// DECLINE messages.
    decline,
    /// RELEASE messages.
    release,
    /// INFORM messages.
    inform,
    /// OFFER messages that were sent.
    offer,
    /// ACK messages that were sent.
    ack,
    /// NAK messages that were sent.
    nak,
    /// Frames to a server's port that are no message of RFC 2131.
    malformed,
    /// Messages that a relay agent sent.
    relayed,
    /// Messages beyond what their port may send, or that would write more leases than that.
    limited,
    /// Messages that RFC 2131 says not to answer, or to another server.
    silent,
    /// Clients that got no offer because there was no address.
    pool_exhausted,
    /// Clients that got no offer because their port has as many addresses as it may.
    port_limit,
    /// Offers that gave way to another port's client.
    preempted,
    /// Probes that somebody answered.
    conflict,
    /// Addresses that were said to be in use by a port that said so too often.
    disbelieved,
    /// Leases that could not be written, so that their clients heard nothing.
    not_durable,
    /// Leases that ended.
    expired,
    /// Events that were lost because nobody read them: who acts on events lists the leases anew.
    events_lost,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is none.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its leases cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The DHCPv4 server of one network. See the module's text.
pub struct Server {
    config: Config,
    pool: Pool,
    store: Box<dyn LeaseStore>,
    messages: Budget,
    writes: Budget,
    events: VecDeque<LeaseEvent>,
    /// An instant and the wall clock's seconds at that time, as last told.
    clock: (Instant, u64),
    counters: Counters,
    store_error: Option<String>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("config", &self.config)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

fn budgets(config: &Config) -> (Budget, Budget) {
    let budget = |(burst, per_second): (u32, u32)| {
        Budget::new(burst, Duration::from_secs(1).checked_div(per_second).unwrap_or(Duration::from_secs(1)))
    };
    (budget(config.limits.messages), budget(config.limits.writes))
}

impl Server {
    /// A server with the leases of its store. `unix_s` is the wall clock at `now`, in seconds since the Unix epoch.
    pub fn new(
        config: Config,
        mut store: Box<dyn LeaseStore>,
        now: Instant,
        unix_s: u64,
    ) -> Result<Self, StartError> {
        config.check()?;
        let records = store.load()?;
        let (messages, writes) = budgets(&config);
        let mut server = Self {
            pool: Pool::new(&config),
            config,
            store,
            messages,
            writes,
            events: VecDeque::new(),
            clock: (now, unix_s),
            counters: Counters::default(),
            store_error: None,
        };
        for record in records.into_iter().filter(|r| server.config.is_client(r.ip)) {
            let left = record.expires_unix.saturating_sub(unix_s).min(u64::from(record.lease_secs));
            let hostname = record.hostname.filter(|name| server.name_is_free(name, record.ip));
            server.pool.update(record.ip, |slot| {
                if left == 0 {
                    slot.last = Some((record.client, record.expires_unix));
                } else {
                    slot.hold = Hold::Leased(Lease {
                        client: record.client,
                        mac: record.mac,
                        port: None,
                        hostname,
                        granted: now,
                        until: now + Duration::from_secs(left),
                        expires_unix: unix_s.saturating_add(left),
                    });
                }
            });
        }
        Ok(server)
    }

    /// What it was configured with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes another configuration. Leases of addresses that clients cannot have any more end; their clients are
    /// refused when they renew them. If the configuration is refused, nothing changes.
    pub fn reconfigure(&mut self, config: Config) -> Result<(), ConfigError> {
        config.check()?;
        if config.limits != self.config.limits {
            (self.messages, self.writes) = budgets(&config);
        }
        self.config = config;
        let gone: Vec<_> =
            self.pool.reserved.all().filter(|r| !self.config.is_client(r.ip)).cloned().collect();
        for reservation in gone {
            self.unreserve(reservation.owner);
        }
        self.pool.set_range(&self.config);
        let reserved = |ip| self.pool.reserved.of(ip).is_some();
        let gone =
            self.pool.slots().map(|(ip, _)| ip).filter(|&ip| !self.config.is_dynamic(ip) && !reserved(ip));
        for ip in gone.collect::<Vec<_>>() {
            self.withdrawn(ip);
            self.pool.update(ip, |slot| *slot = pool::Slot::default());
        }
        Ok(())
    }

    /// Keeps an address for somebody. An owner has one: the new reservation replaces its old one. Somebody else's
    /// lease of the address is not renewed any more.
    pub fn reserve(&mut self, reservation: Reservation) -> Result<(), ReserveError> {
        let ip = reservation.ip;
        if !self.config.is_client(ip) {
            return Err(ReserveError::NotAClient(ip));
        }
        self.pool.reserved.check(&reservation)?;
        if let Some(name) = &reservation.hostname
            && let Some(holder) = self.pool.named(name)
        {
            self.unname(holder);
        }
        let owner = reservation.owner;
        let touched: Vec<_> =
            self.pool.reserved.get(owner).map(|old| old.ip).into_iter().chain([ip]).collect();
        let touched = if touched.first() == touched.get(1) { vec![ip] } else { touched };
        self.pool.change_reservations(&touched, |reserved| reserved.insert(reservation));
        self.find_port(owner, ip);
        Ok(())
    }

    /// A lease's name is somebody else's now: its guest has none until it finds another.
    fn unname(&mut self, ip: Ipv4Addr) {
        self.pool.update(ip, |slot| {
            if let Hold::Leased(lease) = &mut slot.hold {
                lease.hostname = None;
            }
        });
        if let Some(&Lease { port: Some(port), mac, .. }) = self.pool.lease(ip) {
            self.push_event(LeaseEvent::Assigned { port, ip, mac });
        }
    }

    /// A station at `from` said by ARP that it has an address. A lease that was given before the last start, and whose
    /// port is not known since, is there from now on.
    pub fn heard(&mut self, from: PortId, ip: Ipv4Addr, mac: MacAddr) {
        if !self.pool.lease(ip).is_some_and(|lease| lease.port.is_none() && lease.mac == mac) {
            return;
        }
        self.pool.update(ip, |slot| {
            if let Hold::Leased(lease) = &mut slot.hold {
                lease.port = Some(from);
            }
        });
        self.push_event(LeaseEvent::Assigned { port: from, ip, mac });
    }

    /// A lease that was loaded is where its owner is said to be.
    fn find_port(&mut self, owner: Owner, ip: Ipv4Addr) {
        let Some(lease) = self.pool.lease(ip).filter(|lease| lease.port.is_none()) else { return };
        let mac = lease.mac;
        let port = match owner {
            Owner::Port(port) => port,
            Owner::PortMac(port, at_port) if at_port == mac => port,
            Owner::Mac(_) | Owner::PortMac(..) => return,
        };
        self.pool.update(ip, |slot| {
            if let Hold::Leased(lease) = &mut slot.hold {
                lease.port = Some(port);
            }
        });
        self.push_event(LeaseEvent::Assigned { port, ip, mac });
    }

    /// Keeps nothing for this owner any more. A lease that it has runs on. False if nothing was kept.
    pub fn unreserve(&mut self, owner: Owner) -> bool {
        let Some(ip) = self.pool.reserved.get(owner).map(|r| r.ip) else { return false };
        self.pool.change_reservations(&[ip], |reserved| reserved.remove(owner)).is_some()
    }

    /// The reservations, by their addresses.
    pub fn reservations(&self) -> Vec<Reservation> {
        let mut all: Vec<_> = self.pool.reserved.all().cloned().collect();
        all.sort_unstable_by_key(|r| r.ip);
        all
    }

    /// The leases that run, by their addresses.
    pub fn leases(&self, now: Instant) -> Vec<LeaseInfo> {
        let leases = self.pool.slots().filter_map(|(ip, slot)| match &slot.hold {
            Hold::Leased(lease) if lease.until > now => Some(LeaseInfo {
                ip,
                mac: lease.mac,
                hostname: self.name_at(ip, lease),
                expires_s: lease.until.since(now).as_secs(),
                port: lease.port,
            }),
            _ => None,
        });
        leases.collect()
    }

    fn name_at(&self, ip: Ipv4Addr, lease: &Lease) -> Option<String> {
        self.pool.reserved.name_of(ip).map(str::to_owned).or_else(|| lease.hostname.clone())
    }

    /// The address of a name (one label, in any case): reserved with it, or leased by a client that holds it.
    pub fn address_of(&self, now: Instant, name: &str) -> Option<Ipv4Addr> {
        let name = name.to_ascii_lowercase();
        let leased =
            || self.pool.named(&name).filter(|&ip| self.pool.lease(ip).is_some_and(|l| l.until > now));
        self.pool.reserved.named(&name).or_else(leased)
    }

    /// The name of an address, if it is reserved with one or its lease runs and holds one.
    pub fn name_of(&self, now: Instant, ip: Ipv4Addr) -> Option<&str> {
        let leased = || self.pool.lease(ip).filter(|l| l.until > now)?.hostname.as_deref();
        self.pool.reserved.name_of(ip).or_else(leased)
    }

    /// Ends a lease at an operator's word, and forgets whose it was. False if there is none. Its client is refused
    /// when it renews; until then it may go on to use the address.
    pub fn del(&mut self, ip: Ipv4Addr) -> Result<bool, StoreError> {
        if self.pool.lease(ip).is_none() {
            return Ok(false);
        }
        self.store.write(Change::Remove(ip))?;
        self.withdrawn(ip);
        self.pool.update(ip, |slot| *slot = pool::Slot::default());
        Ok(true)
    }

    /// A port is gone: what was offered at it is free, what was leased at it is at no port until its client is
    /// heard again, and nothing is reserved for it.
    pub fn port_removed(&mut self, port: PortId) {
        for ip in self.pool.held_at(port) {
            self.withdrawn(ip);
            self.pool.update(ip, |slot| match &mut slot.hold {
                Hold::Leased(lease) => lease.port = None,
                hold => *hold = Hold::Free,
            });
        }
        let is_its = |r: &Reservation| matches!(r.owner, Owner::Port(p) | Owner::PortMac(p, _) if p == port);
        let owners: Vec<_> = self.pool.reserved.all().filter(|r| is_its(r)).map(|r| r.owner).collect();
        for owner in owners {
            self.unreserve(owner);
        }
        self.messages.forget(port);
        self.writes.forget(port);
    }

    /// How many addresses are used.
    pub fn usage(&self) -> Usage {
        let (range, free) = self.pool.room();
        let mut usage = Usage { range, free, ..Usage::default() };
        for (_, slot) in self.pool.slots() {
            match slot.hold {
                Hold::Free => {}
                Hold::Offered(_) => usage.offered += 1,
                Hold::Leased(_) => usage.leased += 1,
                Hold::Aside { .. } => usage.aside += 1,
            }
        }
        usage
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Why leases cannot be written, if the last one could not.
    pub fn store_error(&self) -> Option<&str> {
        self.store_error.as_deref()
    }

    /// The next change of a lease that others act on.
    pub fn next_event(&mut self) -> Option<LeaseEvent> {
        self.events.pop_front()
    }

    /// Does what is due: ends of leases and offers, offers whose probe nobody answered.
    pub fn poll(&mut self, now: Instant, out: &mut Outbox) {
        for _ in 0..ENDS_PER_POLL {
            let Some(ip) = self.pool.due(now) else { return };
            self.end(now, ip, out);
        }
    }

    /// When [`Server::poll`] next has something to do.
    pub fn poll_at(&self) -> Option<Instant> {
        self.pool.due_at()
    }

    /// Panics if the server contradicts itself. For tests.
    #[doc(hidden)]
    pub fn assert_consistent(&self) {
        self.pool.assert_consistent();
    }

    fn push_event(&mut self, event: LeaseEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
    }

    /// Tells that the lease of an address, if it is leased and its port known, is not there any more.
    fn withdrawn(&mut self, ip: Ipv4Addr) {
        if let Some(lease) = self.pool.lease(ip) {
            let event = LeaseEvent::Withdrawn { port: lease.port, ip, mac: lease.mac };
            self.push_event(event);
        }
    }
}
