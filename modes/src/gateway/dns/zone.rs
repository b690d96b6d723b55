//! Names that are answered here: the network's own, and those that never leave a host.
//!
//! - The gateway is `gateway`; hosts are what the operator configured; leases are what guests call themselves. Each is
//!   known with and without the network's domain.
//! - A guest cannot take a name that is not its own: the gateway's and configured names stand before leases, the first
//!   station that leases with a name keeps it, and names by which whole networks are led (`wpad`, `isatap`) are nobody's.
//! - Names below the domain, single labels (RFC 1123 hosts without a domain), `localhost` (RFC 6761), `invalid`, `onion`
//!   (RFC 7686), `resolver.arpa` (RFC 9462) and the reverse zones of private addresses (RFC 6303, RFC 7793) and of the
//!   network's own subnets never leave.
//! - What is not there says so with an SOA, so that clients can remember it (RFC 2308).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnetwork::IpNetwork;
use switch_core::MacAddr;

/// The name of the gateway itself.
pub const GATEWAY: &str = "gateway";
/// TTL of local data, in seconds: leases come and go.
pub(super) const LOCAL_TTL: u32 = 30;
/// TTL of what private address space does not have (RFC 6303, section 3).
const EMPTY_TTL: u32 = 10_800;

/// A name that cannot be a host's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a host name: labels of letters, digits, '-' and '_', at most 63 octets each")]
pub struct BadName(pub String);

/// A guest's own name for an address that it leased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Who leased it. One station may have several addresses under one name.
    pub owner: MacAddr,
    /// As the guest gave it: one label, or one label and the network's domain. Others are not known to the zone.
    pub hostname: String,
    /// The leased address.
    pub address: IpAddr,
}

/// The names of one network.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    /// Labels of the network's domain; empty if it has none.
    domain: Vec<String>,
    gateway: Vec<IpAddr>,
    subnets: Vec<IpNetwork>,
    /// Configured names, relative to the domain or whole.
    hosts: HashMap<String, Vec<IpAddr>>,
    /// Configured names, whole, by address: the first one that has it.
    host_names: HashMap<IpAddr, String>,
    /// Names that are not hosts', but have hosts below them.
    inner: HashSet<String>,
    /// Who leases under a name, in the order in which they came. The first one's addresses are the name's.
    claims: HashMap<String, Vec<(MacAddr, IpAddr)>>,
    leases: HashMap<IpAddr, (MacAddr, String)>,
}

/// What the zone says to a question.
#[derive(Debug)]
pub(super) enum Found {
    /// It is not for this zone to say.
    Elsewhere,
    /// Records of the name that was asked for.
    Records(Vec<RData>),
    /// Nothing: the name has other types (`exists`), or there is no such name.
    Nothing {
        /// Says so.
        soa: Box<Record>,
        /// There is such a name.
        exists: bool,
    },
}

impl Zone {
    /// The zone of a network whose guests' addresses are in `subnets`, without hosts and leases.
    pub fn new(domain: Option<&str>, gateway: Vec<IpAddr>, subnets: Vec<IpNetwork>) -> Result<Self, BadName> {
        let domain = match domain {
            Some(domain) => {
                let text = host_name(domain).ok_or_else(|| BadName(domain.into()))?;
                text.split('.').map(String::from).collect()
            }
            None => Vec::new(),
        };
        Ok(Self { domain, gateway, subnets, ..Self::default() })
    }

    /// Adds addresses to a configured name: one label or several, with or without the network's domain.
    pub fn add_host(&mut self, name: &str, addresses: &[IpAddr]) -> Result<(), BadName> {
        let relative =
            host_name(name).and_then(|name| self.relative(name)).ok_or_else(|| BadName(name.into()))?;
        let mut parent = relative.as_str();
        while let Some((_, rest)) = parent.split_once('.') {
            self.inner.insert(rest.into());
            parent = rest;
        }
        let given = host_name(name).ok_or_else(|| BadName(name.into()))?;
        // Several labels that are not in the domain are a name of their own.
        let whole = if given == relative && relative.contains('.') { given } else { self.whole(&relative) };
        let known = self.hosts.entry(relative).or_default();
        for address in addresses {
            self.host_names.entry(*address).or_insert_with(|| whole.clone());
            if !known.contains(address) {
                known.push(*address);
            }
        }
        Ok(())
    }

    /// Takes a lease in, in place of what was known of its address. True if its name can be asked for: it is one, and
    /// nobody else's.
    pub fn add_lease(&mut self, lease: &Lease) -> bool {
        self.remove_lease(lease.address);
        let name = host_name(&lease.hostname).and_then(|name| self.relative(name));
        let Some(name) = name.filter(|name| !name.contains('.') && !is_reserved(name)) else {
            return false;
        };
        self.claims.entry(name.clone()).or_default().push((lease.owner, lease.address));
        let known = self.holder(&name) == Some(lease.owner) && !self.hosts.contains_key(&name);
        self.leases.insert(lease.address, (lease.owner, name));
        known
    }

    /// Forgets the lease of an address. Who waits for its name gets it.
    pub fn remove_lease(&mut self, address: IpAddr) {
        let Some((_, name)) = self.leases.remove(&address) else {
            return;
        };
        if let Some(claims) = self.claims.get_mut(&name) {
            claims.retain(|(_, claimed)| *claimed != address);
            if claims.is_empty() {
                self.claims.remove(&name);
            }
        }
    }

    /// Forgets all leases.
    pub fn clear_leases(&mut self) {
        self.claims.clear();
        self.leases.clear();
    }

    /// Answers a question of class IN.
    pub(super) fn find(&self, name: &Name, kind: RecordType) -> Found {
        let labels = name.iter().map(<[u8]>::to_ascii_lowercase).collect::<Vec<_>>();
        let labels = labels.iter().map(Vec::as_slice).collect::<Vec<_>>();
        match labels.as_slice() {
            [.., b"localhost"] => {
                let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                return records(kind, &addresses, &name.trim_to(1));
            }
            [.., b"invalid"] | [.., b"onion"] => return nothing(name.trim_to(1), EMPTY_TTL, false),
            [.., b"resolver", b"arpa"] => return nothing(name.trim_to(2), EMPTY_TTL, true),
            _ => {}
        }
        if let Some(place) = Place::read(&labels)
            && let Some(found) = self.find_reverse(name, &place, kind)
        {
            return found;
        }
        if let Some(below) = self.below_domain(&labels) {
            return self.find_below(name, below, kind);
        }
        if let Some(addresses) = text(&labels).and_then(|name| self.addresses(&name)) {
            return records(kind, &addresses, name);
        }
        match kind {
            // An address of a name without dots is a host's here, if any. What else a single label may have is a top
            // level domain's.
            RecordType::A | RecordType::AAAA if labels.len() == 1 => nothing(Name::root(), LOCAL_TTL, false),
            _ => Found::Elsewhere,
        }
    }

    /// The labels before the network's domain, if the name is in it.
    fn below_domain<'a, 'b>(&self, labels: &'a [&'b [u8]]) -> Option<&'a [&'b [u8]]> {
        let (below, domain) = labels.split_at_checked(labels.len().checked_sub(self.domain.len())?)?;
        let same = domain.iter().zip(&self.domain).all(|(a, b)| *a == b.as_bytes());
        (same && !self.domain.is_empty()).then_some(below)
    }

    fn find_below(&self, name: &Name, below: &[&[u8]], kind: RecordType) -> Found {
        let apex = name.trim_to(self.domain.len());
        if below.is_empty() {
            return at_apex(apex, LOCAL_TTL, kind);
        }
        let Some(relative) = text(below) else {
            return nothing(apex, LOCAL_TTL, false);
        };
        match self.addresses(&relative) {
            Some(addresses) => records(kind, &addresses, &apex),
            None => nothing(apex, LOCAL_TTL, self.inner.contains(&relative)),
        }
    }

    /// Addresses of a name relative to the domain, if there is such a host.
    fn addresses(&self, relative: &str) -> Option<Vec<IpAddr>> {
        if relative == GATEWAY {
            return Some(self.gateway.clone());
        }
        if let Some(addresses) = self.hosts.get(relative) {
            return Some(addresses.clone());
        }
        let (holder, claims) = (self.holder(relative)?, self.claims.get(relative)?);
        Some(claims.iter().filter(|(owner, _)| *owner == holder).map(|(_, address)| *address).collect())
    }

    fn holder(&self, name: &str) -> Option<MacAddr> {
        self.claims.get(name)?.first().map(|(owner, _)| *owner)
    }

    /// The whole name of who has an address.
    fn name_of(&self, address: IpAddr) -> Option<Name> {
        let name = if self.gateway.contains(&address) {
            self.whole(GATEWAY)
        } else if let Some(name) = self.host_names.get(&address) {
            name.clone()
        } else {
            let (owner, name) = self.leases.get(&address)?;
            let shadowed = self.hosts.contains_key(name) || self.holder(name) != Some(*owner);
            (!shadowed).then(|| self.whole(name))?
        };
        let mut name = Name::from_labels(name.split('.').map(str::as_bytes)).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    /// A name with the network's domain behind it.
    fn whole(&self, relative: &str) -> String {
        let labels = std::iter::once(relative).chain(self.domain.iter().map(String::as_str));
        labels.collect::<Vec<_>>().join(".")
    }

    fn find_reverse(&self, name: &Name, place: &Place, kind: RecordType) -> Option<Found> {
        let whole = place.len == place.len_max() && !place.strange;
        let host = if !whole {
            None
        } else if place.address.is_loopback() {
            Name::from_ascii("localhost.").ok()
        } else {
            self.name_of(place.address)
        };
        let own = self.subnets.iter().find(|net| place.is_in(net)).map(|net| (net.prefix(), LOCAL_TTL));
        let private = || PRIVATE.iter().find(|net| place.is_in(net)).map(|net| (net.prefix(), EMPTY_TTL));
        // A host's address may be configured that is in no zone of ours; then its name is a zone of its own.
        let alone = || host.is_some().then_some((place.len_max(), LOCAL_TTL));
        let (prefix, ttl) = own.or_else(private).or_else(alone)?;
        // A zone is cut at a label: the subnet's, or where the subnet has none, at the next longer ones.
        let depth = usize::from(prefix.div_ceil(place.bits_per_label())) + 2;
        let apex = name.trim_to(depth);
        Some(match host {
            Some(host) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                Found::Records(vec![RData::PTR(PTR(host))])
            }
            Some(_) => nothing(apex, ttl, true),
            None if apex == *name => at_apex(apex, ttl, kind),
            // Every part of an address has something below it, at least in principle (RFC 8020).
            None => nothing(apex, ttl, !whole && !place.strange),
        })
    }

    /// A name without the network's domain behind it; `None` for the domain itself.
    fn relative(&self, name: String) -> Option<String> {
        let labels = name.split('.').map(str::as_bytes).collect::<Vec<_>>();
        match self.below_domain(&labels) {
            Some([]) => None,
            Some(below) => text(below),
            None => Some(name),
        }
    }
}

/// The address space whose reverse zones are answered everywhere: RFC 6303 section 4, RFC 7793.
static PRIVATE: LazyLock<Vec<IpNetwork>> = LazyLock::new(|| {
    let v4: [([u8; 4], u8); 11] = [
        ([10, 0, 0, 0], 8),
        ([172, 16, 0, 0], 12),
        ([192, 168, 0, 0], 16),
        ([0, 0, 0, 0], 8),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([192, 0, 2, 0], 24),
        ([198, 51, 100, 0], 24),
        ([203, 0, 113, 0], 24),
        ([255, 255, 255, 255], 32),
        ([100, 64, 0, 0], 10),
    ];
    let v6: [([u16; 8], u8); 5] = [
        ([0; 8], 128),
        ([0, 0, 0, 0, 0, 0, 0, 1], 128),
        ([0xfd00, 0, 0, 0, 0, 0, 0, 0], 8),
        ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
        ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    ];
    let v4 = v4.into_iter().map(|(address, prefix)| (IpAddr::from(address), prefix));
    let v6 = v6.into_iter().map(|(address, prefix)| (IpAddr::from(address), prefix));
    v4.chain(v6).filter_map(|(address, prefix)| IpNetwork::new(address, prefix).ok()).collect()
});

/// A name in the reverse tree: an address or the beginning of one.
#[derive(Debug)]
struct Place {
    /// What there is of the address; the rest is zero.
    address: IpAddr,
    /// How many bits of it there are.
    len: u8,
    /// Labels stand before it that are no part of an address (DNS-SD asks for such).
    strange: bool,
}

impl Place {
    fn read(labels: &[&[u8]]) -> Option<Self> {
        let (digits, v4) = match labels {
            [digits @ .., b"in-addr", b"arpa"] => (digits, true),
            [digits @ .., b"ip6", b"arpa"] => (digits, false),
            _ => return None,
        };
        let mut bits = 0_u128;
        let mut count = 0_u8;
        let (count_max, label_bits) = if v4 { (4, 8) } else { (32, 4) };
        for label in digits.iter().rev().take(usize::from(count_max)) {
            let Some(value) = (if v4 { octet(label) } else { nibble(label) }) else {
                break;
            };
            bits = bits << label_bits | u128::from(value);
            count += 1;
        }
        let len = count * label_bits;
        let left = u32::from(count_max * label_bits - len);
        // All of it at most: a shift by the whole width would be no shift.
        let bits = bits.checked_shl(left).unwrap_or(0);
        let address =
            if v4 { IpAddr::from((bits as u32).to_be_bytes()) } else { IpAddr::from(bits.to_be_bytes()) };
        Some(Self { address, len, strange: usize::from(count) < digits.len() })
    }

    fn len_max(&self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    fn bits_per_label(&self) -> u8 {
        if self.address.is_ipv4() { 8 } else { 4 }
    }

    fn is_in(&self, net: &IpNetwork) -> bool {
        net.prefix() <= self.len && net.contains(self.address)
    }
}

/// A label of `in-addr.arpa`: a decimal number without leading zeros.
fn octet(label: &[u8]) -> Option<u8> {
    let canonical = label == b"0" || label.first().is_some_and(|&c| (b'1'..=b'9').contains(&c));
    canonical.then(|| std::str::from_utf8(label).ok()?.parse().ok())?
}

/// A label of `ip6.arpa`: a hexadecimal digit.
fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [c @ b'0'..=b'9'] => Some(c - b'0'),
        [c @ b'a'..=b'f'] => Some(c - b'a' + 10),
        _ => None,
    }
}

/// Records of a host's addresses; with none of that type, that there is none.
fn records(kind: RecordType, addresses: &[IpAddr], apex: &Name) -> Found {
    let wanted = |address: &&IpAddr| match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        kind => kind == RecordType::ANY,
    };
    let data = |address: &IpAddr| match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    };
    let found = addresses.iter().filter(wanted).map(data).collect::<Vec<_>>();
    if found.is_empty() { nothing(apex.clone(), LOCAL_TTL, true) } else { Found::Records(found) }
}

/// A zone has an SOA and a name server at its top (RFC 6303, section 3), and nothing else here.
fn at_apex(apex: Name, ttl: u32, kind: RecordType) -> Found {
    match kind {
        RecordType::SOA => Found::Records(vec![soa(&apex, ttl)]),
        RecordType::NS => Found::Records(vec![RData::NS(NS(apex))]),
        RecordType::ANY => Found::Records(vec![soa(&apex, ttl), RData::NS(NS(apex))]),
        _ => nothing(apex, ttl, true),
    }
}

fn nothing(apex: Name, ttl: u32, exists: bool) -> Found {
    let data = soa(&apex, ttl);
    Found::Nothing { soa: Box::new(Record::from_rdata(apex, ttl, data)), exists }
}

fn soa(apex: &Name, ttl: u32) -> RData {
    let nobody = Name::from_ascii("nobody.invalid.").unwrap_or_else(|_| Name::root());
    RData::SOA(SOA::new(apex.clone(), nobody, 1, 3600, 1200, 604_800, ttl))
}

/// Labels in lower case as text, if they are such as hosts have.
fn text(labels: &[&[u8]]) -> Option<String> {
    let name =
        labels.iter().map(|label| std::str::from_utf8(label)).collect::<Result<Vec<_>, _>>().ok()?.join(".");
    // A dot within a label would make two of it.
    (name.split('.').count() == labels.len()).then(|| host_name(&name))?
}

/// A name in lower case, without a dot at its end, if it is such as hosts have (RFC 1123, and '_').
fn host_name(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    (name.len() <= 253 && name.split('.').all(label)).then(|| name.to_ascii_lowercase())
}

/// Names that no guest is given: the gateway's, the host's own, and those that lead others.
fn is_reserved(name: &str) -> bool {
    matches!(name, GATEWAY | "localhost" | "wpad" | "isatap" | "invalid" | "onion")
}
