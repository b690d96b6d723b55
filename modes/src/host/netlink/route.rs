//! Routes.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Nla};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RoutePreference,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Netlink, is, may_exist};

/// The table that ordinary routes are in.
pub(in crate::host) const MAIN: u32 = 254;
/// The table of the host's own addresses: the kernel keeps it.
pub(in crate::host) const LOCAL: u32 = 255;
/// The protocol of routes that the kernel makes itself (rtnetlink(7)).
pub(in crate::host) const BY_KERNEL: u8 = 2;
/// The protocol of routes from router advertisements.
pub(in crate::host) const BY_ADVERTISEMENT: u8 = 9;
/// Clock ticks of a second, as the kernel counts them towards programs.
const TICKS: u32 = 100;

/// A unicast route by one interface, with all that has to be the same when it is put on another and back. It does
/// not say by which interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct Route {
    #[serde(with = "text")]
    pub(in crate::host) destination: IpNetwork,
    /// Routes by source (IPv6): whose packets it is for.
    #[serde(with = "text::option")]
    pub(in crate::host) from: Option<IpNetwork>,
    pub(in crate::host) table: u32,
    pub(in crate::host) tos: u8,
    pub(in crate::host) protocol: u8,
    pub(in crate::host) scope: u8,
    pub(in crate::host) metric: Option<u32>,
    pub(in crate::host) gateway: Option<IpAddr>,
    /// The source address that the host prefers on it.
    pub(in crate::host) source: Option<IpAddr>,
    pub(in crate::host) onlink: bool,
    /// Path metrics (MTU, window, …) in the kernel's numbers and bytes.
    pub(in crate::host) metrics: Vec<(u16, Vec<u8>)>,
    /// Router preference (RFC 4191), as the kernel numbers it.
    pub(in crate::host) preference: Option<u8>,
    /// Seconds that it is good for.
    pub(in crate::host) expires: Option<u32>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_default() {
            f.write_str("default")?;
        } else {
            write!(f, "{}", self.destination)?;
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if self.table != MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

/// Prefixes in the journal: as people write them.
mod text {
    use ipnetwork::IpNetwork;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(network: &IpNetwork, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(network)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<IpNetwork, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }

    pub(super) mod option {
        use super::{Deserialize, Deserializer, Error, IpNetwork, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            network: &Option<IpNetwork>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match network {
                Some(network) => to.collect_str(network),
                None => to.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<IpNetwork>, D::Error> {
            let text = Option::<String>::deserialize(from)?;
            text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
        }
    }
}

/// A route of the kernel's, and by which interfaces it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::host) struct Listed {
    /// What can be put elsewhere; `Err` says what about it cannot.
    pub(in crate::host) route: Result<Route, &'static str>,
    /// Its destination, as text.
    pub(in crate::host) text: String,
    pub(in crate::host) interfaces: Vec<u32>,
    /// The kernel says that it cannot be used: the link is down.
    pub(in crate::host) dead: bool,
}

impl Route {
    /// To a prefix on the interface itself.
    pub(in crate::host) fn on_link(destination: IpNetwork, source: Option<IpAddr>, protocol: u8) -> Self {
        Self {
            destination,
            from: None,
            table: MAIN,
            tos: 0,
            protocol,
            scope: if destination.is_ipv4() { RouteScope::Link.into() } else { RouteScope::Universe.into() },
            metric: None,
            gateway: None,
            source,
            onlink: false,
            metrics: Vec::new(),
            preference: None,
            expires: None,
        }
    }

    /// True for the routes to everywhere.
    pub(in crate::host) fn is_default(&self) -> bool {
        self.destination.prefix() == 0
    }

    /// True if the kernel would take one for the other: same table, destination, metric and next hop.
    pub(in crate::host) fn same(&self, other: &Self) -> bool {
        let key = |r: &Self| (r.destination, r.from, r.table, r.tos, r.effective_metric(), r.gateway);
        key(self) == key(other)
    }

    /// The metric, or what the kernel takes for none.
    pub(in crate::host) fn effective_metric(&self) -> u32 {
        match (self.metric, self.destination.is_ipv4()) {
            (Some(metric), true) => metric,
            (None, true) => 0,
            (Some(metric), false) if metric != 0 => metric,
            (_, false) => 1024,
        }
    }

    fn message(&self, interface: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = AddressFamily::from(self.destination.ip());
        header.destination_prefix_length = self.destination.prefix();
        header.tos = self.tos;
        header.protocol = RouteProtocol::from(self.protocol);
        header.scope = RouteScope::from(self.scope);
        header.kind = RouteType::Unicast;
        header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        if self.onlink {
            header.flags |= RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        if header.table == RouteHeader::RT_TABLE_UNSPEC {
            attributes.push(RouteAttribute::Table(self.table));
        }
        if !self.is_default() {
            attributes.push(RouteAttribute::Destination(self.destination.network().into()));
        }
        if let Some(from) = self.from {
            header.source_prefix_length = from.prefix();
            attributes.push(RouteAttribute::Source(from.network().into()));
        }
        attributes.push(RouteAttribute::Oif(interface));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        attributes.extend(self.gateway.map(|gateway| match (gateway, self.destination) {
            (IpAddr::V6(gateway), IpNetwork::V4(_)) => RouteAttribute::Via(RouteVia::Inet6(gateway)),
            _ => RouteAttribute::Gateway(gateway.into()),
        }));
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        if !self.metrics.is_empty() {
            let metrics = self.metrics.iter();
            let metrics = metrics.map(|(kind, b)| RouteMetric::Other(DefaultNla::new(*kind, b.clone())));
            attributes.push(RouteAttribute::Metrics(metrics.collect()));
        }
        if let Some(preference) = self.preference {
            attributes.push(RouteAttribute::Preference(RoutePreference::from(preference)));
        }
        attributes.extend(self.expires.map(RouteAttribute::Expires));
        message
    }
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

impl Listed {
    /// `None` for what is no route of a host: the kernel's own table of addresses, cached ones, other families.
    pub(in crate::host) fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let nowhere = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut destination = nowhere;
        let mut source_prefix = None;
        let mut interfaces = Vec::new();
        let mut unfit = None;
        let mut route = Route {
            destination: IpNetwork::from(nowhere),
            from: None,
            table: u32::from(header.table),
            tos: header.tos,
            protocol: header.protocol.into(),
            scope: header.scope.into(),
            metric: None,
            gateway: None,
            source: None,
            onlink: header.flags.contains(RouteFlags::Onlink),
            metrics: Vec::new(),
            preference: None,
            expires: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(a) => destination = address(a)?,
                RouteAttribute::Source(a) => source_prefix = address(a),
                RouteAttribute::Oif(index) => interfaces.push(*index),
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = Some(*metric),
                RouteAttribute::Gateway(a) => route.gateway = address(a),
                RouteAttribute::Via(RouteVia::Inet6(a)) => route.gateway = Some(IpAddr::V6(*a)),
                RouteAttribute::Via(_) => unfit = Some("its next hop is of another family"),
                RouteAttribute::PrefSource(a) => route.source = address(a),
                RouteAttribute::Metrics(metrics) => {
                    route.metrics = metrics.iter().map(metric).collect();
                }
                RouteAttribute::Preference(preference) => route.preference = Some((*preference).into()),
                RouteAttribute::CacheInfo(info) if info.expires != 0 => {
                    route.expires = Some((info.expires / TICKS).max(1));
                }
                RouteAttribute::MultiPath(hops) => {
                    interfaces.extend(hops.iter().map(|hop| hop.interface_index));
                    unfit = Some("it has several next hops");
                }
                RouteAttribute::NhId(_) => unfit = Some("it uses a next hop object (ip nexthop)"),
                RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => {
                    unfit = Some("it encapsulates what it carries");
                }
                RouteAttribute::Realm(_) => unfit = Some("it has a realm"),
                _ => {}
            }
        }
        if header.flags.contains(RouteFlags::Cloned) || route.table == LOCAL {
            return None;
        }
        if !matches!(header.kind, RouteType::Unicast) {
            unfit = Some("it is not a unicast route");
        }
        route.destination = IpNetwork::new(destination, header.destination_prefix_length).ok()?;
        route.from = source_prefix.and_then(|a| IpNetwork::new(a, header.source_prefix_length).ok());
        let dead = header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
        let text = route.to_string();
        Some(Self { route: unfit.map_or(Ok(route), Err), text, interfaces, dead })
    }

    /// True if it leads by the interface.
    pub(in crate::host) fn is_by(&self, index: u32) -> bool {
        self.interfaces.contains(&index)
    }
}

fn metric(metric: &RouteMetric) -> (u16, Vec<u8>) {
    let mut bytes = vec![0; metric.value_len()];
    metric.emit_value(&mut bytes);
    (metric.kind(), bytes)
}

impl Netlink {
    /// All routes of one table (`None`: of all of them), of both families.
    pub(in crate::host) async fn routes(&self, table: Option<u32>) -> io::Result<Vec<Listed>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.attributes.extend(table.map(RouteAttribute::Table));
            let list = match self.dump(RouteNetlinkMessage::GetRoute(request)).await {
                Ok(list) => list,
                // A table that nobody has put anything in does not exist; nor does IPv6 on some hosts.
                Err(error) if is(&error, &[Errno::NOENT, Errno::OPNOTSUPP, Errno::AFNOSUPPORT]) => continue,
                Err(error) => return Err(error),
            };
            routes.extend(list.iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => Listed::parse(route),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// Adds a route where there is none to its destination with its metric.
    pub(in crate::host) async fn add_route(&self, interface: u32, route: &Route) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route.message(interface));
        self.change(message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Adds a route beside those that are there, or finds it there.
    pub(in crate::host) async fn append_route(&self, interface: u32, route: &Route) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route.message(interface));
        may_exist(self.change(message, NLM_F_CREATE | NLM_F_APPEND).await)
    }

    /// Removes the route by this interface, and by no other.
    pub(in crate::host) async fn delete_route(&self, interface: u32, route: &Route) -> io::Result<()> {
        let mut message = route.message(interface);
        message.attributes.retain(|attribute| {
            !matches!(
                attribute,
                RouteAttribute::Metrics(_) | RouteAttribute::Preference(_) | RouteAttribute::Expires(_)
            )
        });
        self.change(RouteNetlinkMessage::DelRoute(message), 0).await
    }
}
