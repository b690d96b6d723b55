//! Router advertisements as bytes (RFC 4861, 4.2; RFC 8106, 5).

use std::net::Ipv6Addr;
use std::time::Duration;

use etherparse::Icmpv6Type;
use etherparse::icmpv6::{
    NdpOptionType, PrefixInformation, RouterAdvertisementHeader, RouterAdvertisementPayload,
};
use hickory_proto::rr::Name;
use switch_core::MacAddr;

use super::super::packet6::{self, Envelope};
use super::config::{PREFIXES_MAX, RaConfig, RaPrefix, SEARCH_LEN_MAX, SERVERS_MAX};

/// ff02::1, and the MAC address that goes with it.
pub(super) const ALL_NODES: (MacAddr, Ipv6Addr) =
    (MacAddr([0x33, 0x33, 0, 0, 0, 1]), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));

/// The option with name servers.
const RDNSS: u8 = 25;
/// The option with search domains.
const DNSSL: u8 = 31;

/// What the router no longer stands for, but has advertised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Withdrawn {
    prefixes: Vec<RaPrefix>,
    dns: Vec<Ipv6Addr>,
    search: Vec<Name>,
}

impl Withdrawn {
    /// What was advertised by `before`, or was being withdrawn then, and is not in `after`. It has the bounds of a
    /// configuration.
    pub(super) fn follow(&mut self, before: &RaConfig, after: &RaConfig) {
        let gone = |old: &RaPrefix| !after.prefixes.iter().any(|new| new.network == old.network);
        self.prefixes.splice(..0, before.prefixes.iter().cloned());
        self.prefixes.retain(gone);
        self.prefixes.truncate(PREFIXES_MAX);
        self.dns.splice(..0, before.dns.iter().copied());
        self.dns.retain(|old| !after.dns.contains(old));
        self.dns.truncate(SERVERS_MAX);
        self.search.splice(..0, before.search.iter().cloned());
        let mut len = 0;
        self.search.retain(|old| {
            len += packet6::domain(old).len();
            len <= SEARCH_LEN_MAX && !after.search.contains(old)
        });
    }
}

/// A frame with what `config` says, to `to`.
pub(super) fn advertisement(
    config: &RaConfig,
    withdrawn: &Withdrawn,
    to: (MacAddr, Ipv6Addr),
) -> Option<Vec<u8>> {
    let header = RouterAdvertisementHeader {
        cur_hop_limit: config.hop_limit,
        managed_address_config: config.managed,
        other_config: config.other,
        router_lifetime: u16::try_from(config.router_lifetime.as_secs()).unwrap_or(u16::MAX),
    };
    // Times of neighbour discovery are left to the hosts.
    let mut rest = RouterAdvertisementPayload { reachable_time: 0, retrans_timer: 0 }.to_bytes().to_vec();
    option(&mut rest, NdpOptionType::SOURCE_LINK_LAYER_ADDRESS.0, &config.mac.0);
    if let Some(mtu) = config.mtu {
        let mut value = vec![0; 2];
        value.extend(u32::from(mtu).to_be_bytes());
        option(&mut rest, NdpOptionType::MTU.0, &value);
    }
    for prefix in &config.prefixes {
        rest.extend(information(prefix).to_bytes());
    }
    for prefix in &withdrawn.prefixes {
        rest.extend(information(&deprecated(prefix)).to_bytes());
    }
    servers(&mut rest, config.dns_lifetime(), &config.dns);
    servers(&mut rest, Duration::ZERO, &withdrawn.dns);
    domains(&mut rest, config.dns_lifetime(), &config.search);
    domains(&mut rest, Duration::ZERO, &withdrawn.search);
    let envelope = Envelope { from: (config.mac, config.address), to };
    envelope.icmpv6(Icmpv6Type::RouterAdvertisement(header), &rest)
}

/// The last advertisement of a router that ends (RFC 4861, 6.2.5): it is no default router any more, no name server,
/// and its prefixes are not for new connections. Connections among neighbours stay as they are.
pub(super) fn farewell(config: &RaConfig) -> Option<Vec<u8>> {
    let mut last = config.clone();
    last.router_lifetime = Duration::ZERO;
    for prefix in &mut last.prefixes {
        prefix.preferred = Duration::ZERO;
    }
    let withdrawn =
        Withdrawn { dns: last.dns.split_off(0), search: last.search.split_off(0), ..Withdrawn::default() };
    advertisement(&last, &withdrawn, ALL_NODES)
}

/// A prefix that goes. Its addresses stay valid for two hours in any case (RFC 4862, 5.5.3), and are not to be used
/// for new connections.
fn deprecated(prefix: &RaPrefix) -> RaPrefix {
    RaPrefix { valid: Duration::ZERO, preferred: Duration::ZERO, ..prefix.clone() }
}

fn information(prefix: &RaPrefix) -> PrefixInformation {
    PrefixInformation {
        prefix_length: prefix.network.prefix(),
        on_link: prefix.on_link,
        autonomous_address_configuration: prefix.autonomous,
        valid_lifetime: seconds(prefix.valid),
        preferred_lifetime: seconds(prefix.preferred),
        prefix: prefix.network.network().octets(),
    }
}

fn servers(rest: &mut Vec<u8>, lifetime: Duration, servers: &[Ipv6Addr]) {
    let addresses: Vec<u8> = servers.iter().flat_map(Ipv6Addr::octets).collect();
    lasting(rest, RDNSS, lifetime, &addresses);
}

fn domains(rest: &mut Vec<u8>, lifetime: Duration, names: &[Name]) {
    let names: Vec<u8> = names.iter().flat_map(packet6::domain).collect();
    lasting(rest, DNSSL, lifetime, &names);
}

/// Both options of RFC 8106: two bytes reserved, a lifetime, a list that is not empty.
fn lasting(rest: &mut Vec<u8>, kind: u8, lifetime: Duration, list: &[u8]) {
    if !list.is_empty() {
        let mut value = vec![0; 2];
        value.extend(seconds(lifetime).to_be_bytes());
        value.extend(list);
        option(rest, kind, &value);
    }
}

/// An option, padded with zeros to the units of eight bytes that its length counts.
fn option(rest: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let units = (value.len() + 2).div_ceil(8);
    let end = rest.len() + units * 8;
    rest.extend([kind, units as u8]);
    rest.extend(value);
    rest.resize(end, 0);
}

/// Whole seconds; what does not fit means "for ever" (RFC 4861, 4.6.2).
fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}
