//! What a router says of itself and its network, and the bounds that the standards set to that.

use std::net::Ipv6Addr;
use std::time::Duration;

use hickory_proto::rr::Name;
use ipnetwork::Ipv6Network;
use switch_core::MacAddr;

use super::super::packet6;

/// Prefixes of a network, at most. With these bounds, an advertisement that also withdraws as many things as it
/// announces fits into the smallest MTU that IPv6 allows.
pub const PREFIXES_MAX: usize = 4;
/// Name servers of a network, at most.
pub const SERVERS_MAX: usize = 4;
/// Bytes of all search domains together, at most.
pub const SEARCH_LEN_MAX: usize = 200;

/// Bounds of `MaxRtrAdvInterval`, in seconds (RFC 4861, 6.2.1).
const INTERVAL_MAX_S: (u64, u64) = (4, 1800);
/// The least `MinRtrAdvInterval`, in seconds. It is `MIN_DELAY_BETWEEN_RAS` too, so that unsolicited advertisements
/// keep that distance by themselves.
const INTERVAL_MIN_S: u64 = 3;
/// The longest router lifetime that the field holds, in seconds (RFC 8319, 4).
const ROUTER_LIFETIME_MAX_S: u64 = 65535;
/// The least MTU of a link with IPv6 (RFC 8200, 5).
const MTU_MIN: u16 = 1280;

/// A prefix of the network (RFC 4861, 4.6.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaPrefix {
    /// The prefix; bits behind its length do not count.
    pub network: Ipv6Network,
    /// Hosts reach other addresses of the prefix directly. Off where each guest is on a link of its own.
    pub on_link: bool,
    /// Hosts may make addresses of their own in it (RFC 4862). Such a prefix has 64 bits.
    pub autonomous: bool,
    /// For how long addresses in it are valid.
    pub valid: Duration,
    /// For how long new connections may use them; at most `valid`.
    pub preferred: Duration,
}

impl RaPrefix {
    /// A prefix whose hosts are neighbours, with addresses of their own making if its length allows that: valid for a
    /// day, preferred for four hours after each advertisement.
    pub fn new(network: Ipv6Network) -> Self {
        Self {
            network,
            on_link: true,
            autonomous: network.prefix() == 64,
            valid: Duration::from_secs(86_400),
            preferred: Duration::from_secs(14_400),
        }
    }
}

/// What a router advertises (RFC 4861, 6.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaConfig {
    /// The router's MAC address.
    pub mac: MacAddr,
    /// The router's link-local address: the source of every advertisement.
    pub address: Ipv6Addr,
    /// `MinRtrAdvInterval`: 3 s to three quarters of `interval_max`.
    pub interval_min: Duration,
    /// `MaxRtrAdvInterval`: 4 s to 30 min.
    pub interval_max: Duration,
    /// For how long hosts use the router as their default: zero on a network without a way out, else at least
    /// `interval_max` and at most 65535 s.
    pub router_lifetime: Duration,
    /// The hop limit that hosts use; zero leaves that to them.
    pub hop_limit: u8,
    /// The M flag: addresses are to be had by DHCPv6.
    pub managed: bool,
    /// The O flag: other information is to be had by DHCPv6.
    pub other: bool,
    /// The link's MTU, at least 1280; `None` says nothing of it.
    pub mtu: Option<u16>,
    /// The network's prefixes, at most [`PREFIXES_MAX`].
    pub prefixes: Vec<RaPrefix>,
    /// Name servers (RFC 8106, 5.1), at most [`SERVERS_MAX`]. They are valid for three times `interval_max`.
    pub dns: Vec<Ipv6Addr>,
    /// Domains in which hosts look for short names (RFC 8106, 5.2), at most [`SEARCH_LEN_MAX`] bytes, valid likewise.
    pub search: Vec<Name>,
}

/// Why a router cannot advertise a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RaConfigError {
    /// The source of advertisements is link-local (RFC 4861, 6.1.2).
    #[error("{0} is no link-local address: router advertisements come from one")]
    Address(Ipv6Addr),
    /// An interval out of bounds.
    #[error(
        "advertisement intervals of {0:?} to {1:?}: the longer one is 4 s to 30 min, the shorter one 3 s to three quarters of it"
    )]
    Intervals(Duration, Duration),
    /// A router lifetime out of bounds.
    #[error(
        "a router lifetime of {0:?}: it is zero, or between the longest advertisement interval and 65535 s"
    )]
    RouterLifetime(Duration),
    /// An MTU that IPv6 cannot use.
    #[error("an MTU of {0}: IPv6 needs 1280")]
    Mtu(u16),
    /// A prefix that cannot be advertised.
    #[error("prefix {0}: {1}")]
    Prefix(Ipv6Network, &'static str),
    /// A name server that is none.
    #[error("{0} cannot be a name server")]
    Server(Ipv6Addr),
    /// Something is too much for one advertisement.
    #[error("too many {0} for a router advertisement: the most is {1}")]
    TooMany(&'static str, usize),
    /// The root is not a search domain.
    #[error("'.' is no search domain")]
    Search,
}

impl RaConfig {
    /// A router without prefixes, in the defaults of RFC 4861 (6.2.1).
    pub fn new(mac: MacAddr, address: Ipv6Addr) -> Self {
        Self {
            mac,
            address,
            interval_min: Duration::from_secs(200),
            interval_max: Duration::from_secs(600),
            router_lifetime: Duration::from_secs(1800),
            hop_limit: 64,
            managed: false,
            other: false,
            mtu: None,
            prefixes: Vec::new(),
            dns: Vec::new(),
            search: Vec::new(),
        }
    }

    /// Whether it can be advertised.
    ///
    /// # Errors
    /// The first bound that it does not keep.
    pub fn check(&self) -> Result<(), RaConfigError> {
        use RaConfigError as E;
        if !self.address.is_unicast_link_local() {
            return Err(E::Address(self.address));
        }
        let (min, max) = (self.interval_min, self.interval_max);
        let (least, most) = INTERVAL_MAX_S;
        let longer = Duration::from_secs(least)..=Duration::from_secs(most);
        if !longer.contains(&max) || min < Duration::from_secs(INTERVAL_MIN_S) || min > max.mul_f64(0.75) {
            return Err(E::Intervals(min, max));
        }
        let lifetime = self.router_lifetime;
        let lasting = lifetime >= max && lifetime <= Duration::from_secs(ROUTER_LIFETIME_MAX_S);
        if !lifetime.is_zero() && !lasting {
            return Err(E::RouterLifetime(lifetime));
        }
        if let Some(mtu) = self.mtu.filter(|&mtu| mtu < MTU_MIN) {
            return Err(E::Mtu(mtu));
        }
        if self.prefixes.len() > PREFIXES_MAX {
            return Err(E::TooMany("prefixes", PREFIXES_MAX));
        }
        if self.dns.len() > SERVERS_MAX {
            return Err(E::TooMany("name servers", SERVERS_MAX));
        }
        self.prefixes.iter().try_for_each(RaPrefix::check)?;
        if let Some(&server) = self.dns.iter().find(|a| a.is_multicast() || a.is_unspecified()) {
            return Err(E::Server(server));
        }
        if self.search.iter().any(Name::is_root) {
            return Err(E::Search);
        }
        if self.search.iter().map(|name| packet6::domain(name).len()).sum::<usize>() > SEARCH_LEN_MAX {
            return Err(E::TooMany("bytes of search domains", SEARCH_LEN_MAX));
        }
        Ok(())
    }

    /// For how long name servers and search domains are valid: three intervals, so that two advertisements may be
    /// lost (RFC 8106, 5.1).
    pub(super) fn dns_lifetime(&self) -> Duration {
        self.interval_max * 3
    }
}

impl RaPrefix {
    fn check(&self) -> Result<(), RaConfigError> {
        let error = |why| Err(RaConfigError::Prefix(self.network, why));
        let address = self.network.ip();
        if address.is_unicast_link_local() || address.is_multicast() {
            return error("link-local and multicast prefixes are not advertised");
        }
        if self.autonomous && self.network.prefix() != 64 {
            return error("hosts make addresses of their own only in prefixes of 64 bits");
        }
        if self.preferred > self.valid {
            return error("it is preferred for longer than it is valid");
        }
        Ok(())
    }
}
