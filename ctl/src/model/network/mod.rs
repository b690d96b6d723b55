//! A network as an operator describes it.
//!
//! * `keys`: which keys there are, which modes take them, which change while a network forwards; the draft.
//! * `values`: the values of those keys; `outbound`: those of `outbound=`.
//! * `checks`: whether the keys agree with each other.
//! * `resolve`: what holds where nothing was said, and what networks must not share.
//! * `words`: the keys and values that describe a network.

mod checks;
mod keys;
mod outbound;
mod resolve;
#[cfg(test)]
mod tests;
mod values;
mod words;

pub use keys::NetworkDraft;
pub(super) use keys::{FIXED, is_live, live_keys, takes};
pub use outbound::{OutboundRule, OutboundTarget};
pub(super) use values::{parse_domain, parse_label};

use super::ModelError;
use ipnetwork::{Ipv4Network, Ipv6Network};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many addresses a network's FDB holds when `fdb-max=` does not say.
pub const FDB_MAX_DEFAULT: u32 = 8192;
/// The ageing time when `ageing=` does not say, in seconds (IEEE 802.1Q, table 8-9).
const AGEING_S_DEFAULT: u32 = 300;
/// How long a lease lasts when `lease-time=` does not say, in seconds.
pub const LEASE_TIME_S_DEFAULT: u32 = 3600;
/// How many sessions a guest may have when `quota=` does not say: a quarter of the 64,512 ports that one external
/// address has for each protocol, so that no guest, nor three together, can take all of them (RFC 6888, REQ-4).
pub const QUOTA_DEFAULT: u32 = 16_384;

/// The most addresses that a network gives by DHCP.
pub const DHCP_MAX: u32 = 65_536;

/// A network's forwarding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A learning switch.
    #[default]
    Bridge,
    /// Each port is a subnet of its own.
    Routed,
    /// A private subnet behind address translation.
    Nat,
    /// A private subnet without a way out.
    Internal,
}

impl Mode {
    const WORDS: &[(&'static str, Self)] = &[
        ("bridge", Self::Bridge),
        ("routed", Self::Routed),
        ("nat", Self::Nat),
        ("internal", Self::Internal),
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Routed => "routed",
            Self::Nat => "nat",
            Self::Internal => "internal",
        }
    }
}

/// What happens to the addresses of the host on an interface that becomes an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostAddress {
    /// They stay where they are.
    #[default]
    Keep,
    /// They move to the network's host interface, and back when the network goes.
    Move,
}

impl HostAddress {
    const WORDS: &[(&'static str, Self)] = &[("keep", Self::Keep), ("move", Self::Move)];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Move => "move",
        }
    }
}

/// The addresses that a network gives by DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dhcp {
    /// None.
    Off,
    /// From the first to the second, both included, at most [`DHCP_MAX`]; the first is not above the second.
    Range(Ipv4Addr, Ipv4Addr),
}

impl fmt::Display for Dhcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// How a `nat` network reaches the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// The host's own sockets, without privileges.
    User,
    /// The host's own masquerading.
    Host,
    /// Our own translation on this interface.
    Uplink(String),
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Host => f.write_str("host"),
            Self::Uplink(interface) => write!(f, "uplink:{interface}"),
        }
    }
}

/// Which packets of the outside a mapping lets in (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Those of every endpoint.
    EndpointIndependent,
    /// Those of addresses that the guest has sent to.
    #[default]
    AddressDependent,
    /// Those of endpoints that the guest has sent to.
    AddressAndPortDependent,
}

impl Filtering {
    const WORDS: &[(&'static str, Self)] = &[
        ("endpoint-independent", Self::EndpointIndependent),
        ("address-dependent", Self::AddressDependent),
        ("address-and-port-dependent", Self::AddressAndPortDependent),
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

/// A route that guests are told by DHCP (RFC 3442).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    /// Where to.
    pub destination: Ipv4Network,
    /// By which station of the subnet.
    pub router: Ipv4Addr,
}

impl fmt::Display for StaticRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.destination, self.router)
    }
}

/// A network, complete and checked. [`NetworkDraft`] builds it.
///
/// What an operator said as the default of a key is as if it had not been said, so that two networks that behave the
/// same are equal. An optional key that is `None` has a default that depends on others: the methods
/// ([`Self::gateway4`], [`Self::dhcp_range`], [`Self::dns_on`] and so on) know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`; at most 15 bytes with `host_if`, as it names an interface then.
    pub name: String,
    /// `mode=`.
    pub mode: Mode,
    /// `uplink=` of a bridge or a routed network; see [`Self::uplink_interface`] for every mode.
    pub uplink: Option<String>,
    /// `host-address=`.
    pub host_address: HostAddress,
    /// The host has a tap of the network's name on it: `host-if=`, or what follows from other keys.
    pub host_if: bool,
    /// `mtu=`, 68 to 65535 bytes, at least 1280 with `subnet6=`; `None` is the default of 1500.
    pub mtu: Option<u16>,
    /// `ageing=`, 15 to 3600 seconds.
    pub ageing_s: u32,
    /// `fdb-max=`, 1 to 1,000,000 addresses.
    pub fdb_max: u32,
    /// `subnet=`, /8 to /30, without host bits.
    pub subnet: Option<Ipv4Network>,
    /// `subnet6=`, /64 to /126, without host bits.
    pub subnet6: Option<Ipv6Network>,
    /// `gateway=`, when it is not the default: see [`Self::gateway4`].
    pub gateway: Option<Ipv4Addr>,
    /// `dhcp=`, when it is not the mode's default: see [`Self::dhcp_range`].
    pub dhcp: Option<Dhcp>,
    /// `dns=`, when it is not the mode's default: see [`Self::dns_on`].
    pub dns: Option<bool>,
    /// `domain=`, in small letters.
    pub domain: Option<String>,
    /// `egress=` of a `nat` network, `User` if it was not said; else `None`.
    pub egress: Option<Egress>,
    /// `address=`: our own on the uplink.
    pub address: Option<Ipv4Network>,
    /// `address6=`: our own on the uplink.
    pub address6: Option<Ipv6Network>,
    /// `next-hop=`, in the subnet of `address`.
    pub next_hop: Option<Ipv4Addr>,
    /// `next-hop6=`, in the subnet of `address6` or link-local.
    pub next_hop6: Option<Ipv6Addr>,
    /// `ip-forward=`, when it is not the mode's default: see [`Self::may_forward`].
    pub ip_forward: Option<bool>,
    /// `lease-time=`, 120 to 2,592,000 seconds.
    pub lease_time_s: u32,
    /// `dns-servers=`, at most 4; empty are the host's.
    pub dns_servers: Vec<IpAddr>,
    /// `static-routes=`, at most 16.
    pub static_routes: Vec<StaticRoute>,
    /// `boot-file=`, 1 to 127 characters of ASCII without spaces.
    pub boot_file: Option<String>,
    /// `boot-server=`: where the boot file is.
    pub boot_server: Option<Ipv4Addr>,
    /// `filtering=`.
    pub filtering: Filtering,
    /// `outbound=`: the first rule that matches a destination says whether guests reach it; at most 64.
    pub outbound: Vec<OutboundRule>,
    /// `host-loopback=`: the gateway's addresses are the host's loopback.
    pub host_loopback: bool,
    /// `quota=`: sessions that a guest may have, 16 to 1,000,000.
    pub quota: u32,
}

impl NetworkSpec {
    /// A network from its name and `key=value` words, already split.
    ///
    /// # Errors
    /// The first thing that is wrong, with the network's name in front.
    pub fn from_words<'a>(
        name: &str,
        words: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ModelError> {
        let mut draft = NetworkDraft::new(name)?;
        for (key, value) in words {
            draft.set(key, value).map_err(|e| e.of(format_args!("network {name}")))?;
        }
        draft.build()
    }
}
