//! What a DHCPv6 server hands out.

use std::net::Ipv6Addr;
use std::time::Duration;

use hickory_proto::rr::Name;
use ipnetwork::Ipv6Network;
use switch_core::MacAddr;

use super::super::packet6;

/// Name servers of a network, at most.
pub const SERVERS_MAX: usize = 4;
/// Bytes of all search domains together, at most.
pub const SEARCH_LEN_MAX: usize = 200;
/// Reservations of a network, at most.
pub const RESERVATIONS_MAX: usize = 65_536;
/// Addresses that are reserved for one client, at most: they go into one reply.
pub const ADDRESSES_MAX: usize = 8;

/// What a server tells its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dhcp6Config {
    /// The router's MAC address. The server's identifier is made of it (DUID-LL, RFC 8415, 11.4), so that it is the
    /// same after a restart.
    pub mac: MacAddr,
    /// The router's link-local address: the source of every reply.
    pub address: Ipv6Addr,
    /// Other addresses of the router. A message to one of them, instead of to all servers, is told to use multicast.
    pub others: Vec<Ipv6Addr>,
    /// The link's prefixes. An address outside them that nobody has reserved is not appropriate for the link.
    pub prefixes: Vec<Ipv6Network>,
    /// Name servers (RFC 3646, 3), at most [`SERVERS_MAX`].
    pub dns: Vec<Ipv6Addr>,
    /// Domains in which clients look for short names (RFC 3646, 4), at most [`SEARCH_LEN_MAX`] bytes.
    pub search: Vec<Name>,
    /// For how long an address may be used for new connections, at most `valid`. Clients renew after half of it.
    pub preferred: Duration,
    /// For how long an address is valid.
    pub valid: Duration,
    /// When clients that have no address from here ask again for the rest (RFC 8415, 21.23): 10 min at least.
    pub refresh: Duration,
}

/// Why a server cannot serve a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dhcp6ConfigError {
    /// Replies come from a link-local address.
    #[error("{0} is no link-local address: a DHCPv6 server replies from one")]
    Address(Ipv6Addr),
    /// A lifetime out of bounds.
    #[error(
        "lifetimes of {0:?} preferred and {1:?} valid: the first is at least a minute and at most the second"
    )]
    Lifetimes(Duration, Duration),
    /// A refresh time that would have clients ask too often.
    #[error("a refresh time of {0:?}: the least is 10 min")]
    Refresh(Duration),
    /// Something is too much for one reply, or for the server.
    #[error("too many {0}: the most is {1}")]
    TooMany(&'static str, usize),
    /// The root is not a search domain.
    #[error("'.' is no search domain")]
    Search,
    /// An address that no client can have.
    #[error("{0} cannot be reserved: it is no unicast address")]
    Reserved(Ipv6Addr),
    /// An address for two clients.
    #[error("{0} is reserved for two clients")]
    Twice(Ipv6Addr),
    /// A DUID that no client can have.
    #[error("a client identifier (DUID) of {0} bytes: it has 3 to 130")]
    Duid(usize),
}

impl Dhcp6Config {
    /// A server that knows of no name servers, with addresses for an hour.
    pub fn new(mac: MacAddr, address: Ipv6Addr) -> Self {
        Self {
            mac,
            address,
            others: Vec::new(),
            prefixes: Vec::new(),
            dns: Vec::new(),
            search: Vec::new(),
            preferred: Duration::from_secs(3600),
            valid: Duration::from_secs(7200),
            refresh: Duration::from_secs(3600),
        }
    }

    /// Whether it can be served.
    ///
    /// # Errors
    /// The first bound that it does not keep.
    pub fn check(&self) -> Result<(), Dhcp6ConfigError> {
        use Dhcp6ConfigError as E;
        if !self.address.is_unicast_link_local() {
            return Err(E::Address(self.address));
        }
        if self.preferred < Duration::from_secs(60) || self.preferred > self.valid {
            return Err(E::Lifetimes(self.preferred, self.valid));
        }
        if self.refresh < Duration::from_secs(600) {
            return Err(E::Refresh(self.refresh));
        }
        if self.dns.len() > SERVERS_MAX {
            return Err(E::TooMany("name servers", SERVERS_MAX));
        }
        if self.search.iter().any(Name::is_root) {
            return Err(E::Search);
        }
        if self.search.iter().map(|name| packet6::domain(name).len()).sum::<usize>() > SEARCH_LEN_MAX {
            return Err(E::TooMany("bytes of search domains", SEARCH_LEN_MAX));
        }
        Ok(())
    }

    /// The server's identifier: DUID type 3, hardware type Ethernet, the address (RFC 8415, 11.4).
    pub(super) fn duid(&self) -> Vec<u8> {
        [&[0, 3, 0, 1][..], &self.mac.0].concat()
    }
}
