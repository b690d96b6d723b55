//! From a network's description to what forwards for it: the one place that names each mode.
//!
//! A network is made of its mode, a gateway on most modes, and the ports that it has by itself. Nothing here has an
//! effect outside of memory, but for the files of leases, which are opened.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ctl::model::{
    Egress, Filtering, HostRecord, Mode as ModeWord, NetworkSpec, OutboundRule, OutboundTarget,
};
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use modes::gateway::dhcp4::{self, Config as Dhcp4Config};
use modes::gateway::dhcp6::{Dhcp6Config, Dhcp6Server};
use modes::gateway::dns::{self, Dns, Limits, Zone};
use modes::gateway::leases::file::FileStore;
use modes::gateway::ra::{Advertiser, RaConfig, RaPrefix};
use modes::gateway::{
    Clock, Gateway, LeaseWatch, Links, NameWatch, Services, Settings, SlowPath, link_local,
};
use modes::nat::{self, Nat};
use modes::routed::Routed;
use switch_core::mode::{Mode, Role};
use switch_core::napt;
use switch_core::{Instant, MacAddr, PortId};
use tokio::sync::Notify;

use super::upstream::Upstream;

const DNS_PORT: u16 = 53;

/// A network, ready to get ports.
pub(super) struct Composed {
    pub(super) mode: Arc<dyn Mode>,
    /// The mode once more, if it translates.
    pub(super) nat: Option<Arc<Nat>>,
    /// Where the port of the host's sockets is to be put when it is there, if they are the network's outside.
    pub(super) sockets: SocketsCell,
    pub(super) gateway: Option<Gateway>,
    /// Whom the gateway asks for names of the outside.
    pub(super) upstream: Upstream,
}

/// The port of the host's sockets, for whoever is made before it.
pub(super) type SocketsCell = Arc<OnceLock<sockets::Control>>;

/// What a network is made in.
pub(super) struct Surroundings<'a> {
    /// Where leases are kept.
    pub(super) state_dir: &'a Path,
    /// What time it is.
    pub(super) clock: Clock,
    /// Told when the host's side of a network must be looked at again.
    pub(super) changed: &'a Arc<Notify>,
}

/// A locally administered address of a network's own, the same after every restart of this host and, as far as a hash
/// can tell, nobody else's. `role` tells the network's stations apart.
pub(super) fn station_mac(network: &str, role: &str) -> MacAddr {
    let host = std::fs::read("/etc/machine-id")
        .unwrap_or_else(|_| rustix::system::uname().nodename().to_bytes().to_vec());
    // FNV-1a: any hash would do that is the same in every version.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in host.iter().chain(network.as_bytes()).chain(b"/").chain(role.as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [a, b, c, d, e, f, ..] = (hash ^ (hash >> 32)).to_be_bytes();
    MacAddr([(a & 0xfc) | 0x02, b, c, d, e, f])
}

/// The address of the router that a network's guests see.
pub(super) fn router_mac(spec: &NetworkSpec) -> MacAddr {
    station_mac(&spec.name, "router")
}

/// The address of the host on a network. Where the host's stack is the guests' router, it is the router's.
pub(super) fn host_mac(spec: &NetworkSpec) -> MacAddr {
    match spec.mode {
        ModeWord::Nat => router_mac(spec),
        _ => station_mac(&spec.name, "host"),
    }
}

/// A number that nobody can guess.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Makes a network, or says in one line why it cannot be.
pub(super) fn compose(spec: &NetworkSpec, around: &Surroundings<'_>) -> Result<Composed, String> {
    let ageing = Duration::from_secs(spec.ageing_s.into());
    let limit = spec.fdb_max as usize;
    let mac = router_mac(spec);
    let (mut answers, mut nat) = (true, None);
    let sockets = SocketsCell::default();
    let (mode, slow, leases): Made = match spec.mode {
        ModeWord::Bridge => (Arc::new(modes::bridge::Bridge::new(ageing, limit)), None, None),
        ModeWord::Internal => (Arc::new(modes::internal::Internal::new(mac, ageing, limit)), None, None),
        ModeWord::Routed => {
            let (routed, slow) = modes::routed::new(routed_settings(spec, mac));
            let watch = Watch { routed: Arc::clone(&routed), changed: Arc::clone(around.changed) };
            (routed, Some(slow), Some(Box::new(watch)))
        }
        ModeWord::Nat => {
            // Where the host translates, its stack answers for the gateway's addresses.
            answers = spec.egress != Some(Egress::Host);
            let (made, slow) = modes::nat::new(nat_settings(spec, mac));
            nat = spec.translates().then(|| Arc::clone(&made));
            (made, slow, None)
        }
    };
    let gateway = if spec.has_gateway() || slow.is_some() {
        let services = Services {
            dhcp4: dhcp4_server(spec, around)?,
            dhcp6: dhcp6_server(spec)?,
            dns: name_service(spec)?,
            ra: advertiser(spec, around.clock.now)?,
            leases,
            names: made_names(spec, &sockets),
        };
        let settings = Settings {
            mac,
            address4: spec.gateway4(),
            address6: spec.gateway6(),
            mtu: spec.mtu_in_force(),
            answers,
            links: match spec.mode {
                ModeWord::Routed => Links::EachPort,
                _ => Links::Shared,
            },
            seed: seed(),
        };
        Some(Gateway::new(around.clock, settings, services, slow))
    } else {
        None
    };
    Ok(Composed { mode, nat, sockets, gateway, upstream: upstream(spec) })
}

type Made = (Arc<dyn Mode>, Option<Box<dyn SlowPath>>, Option<Box<dyn LeaseWatch>>);

/// Tells a routed network which guest has which address.
struct Watch {
    routed: Arc<Routed>,
    changed: Arc<Notify>,
}

impl LeaseWatch for Watch {
    fn assigned(&mut self, _now: Instant, port: PortId, ip: IpAddr, mac: MacAddr) {
        // Refused where a port was told to have the address: then that holds, and the lease is the port's own.
        if self.routed.assign(port, ip, mac).is_ok() {
            self.changed.notify_one();
        }
    }

    fn withdrawn(&mut self, _now: Instant, ip: IpAddr) {
        if self.routed.withdraw(ip) {
            self.changed.notify_one();
        }
    }
}

/// Tells the outbound filter of the host's sockets which names have which addresses.
struct Names(SocketsCell);

impl NameWatch for Names {
    fn answered(&mut self, message: &[u8]) {
        let Some(sockets) = self.0.get().filter(|sockets| sockets.follows_names()) else { return };
        let Ok(message) = Message::from_vec(message) else { return };
        let Some(name) = message.queries.first().map(|query| query.name().to_ascii()) else { return };
        for record in &message.answers {
            let ip = match &record.data {
                RData::A(a) => IpAddr::V4(a.0),
                RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
                _ => continue,
            };
            // By the name that was asked for, whatever other names the answer goes by.
            sockets.learn(&name, ip, Duration::from_secs(record.ttl.into()));
        }
    }
}

fn made_names(spec: &NetworkSpec, sockets: &SocketsCell) -> Option<Box<dyn NameWatch>> {
    spec.by_sockets().then(|| Box::new(Names(Arc::clone(sockets))) as Box<dyn NameWatch>)
}

fn routed_settings(spec: &NetworkSpec, mac: MacAddr) -> modes::routed::Settings {
    let (v4, v6) = (spec.gateway4().map(IpAddr::V4), spec.gateway6().map(IpAddr::V6));
    modes::routed::Settings {
        mac,
        addresses: v4.into_iter().chain(v6).collect(),
        subnets: spec.subnets().collect(),
        uplink_addresses: spec
            .address
            .map(Into::into)
            .into_iter()
            .chain(spec.address6.map(Into::into))
            .collect(),
        next_hops: spec.next_hop.map(IpAddr::V4).into_iter().chain(spec.next_hop6.map(IpAddr::V6)).collect(),
        ..modes::routed::Settings::default()
    }
}

fn nat_settings(spec: &NetworkSpec, mac: MacAddr) -> modes::nat::Settings {
    let (v4, v6) = (spec.gateway4().map(IpAddr::V4), spec.gateway6().map(IpAddr::V6));
    let egress = match &spec.egress {
        Some(Egress::Host) => nat::Egress::Host,
        Some(Egress::User) | None => nat::Egress::User,
        Some(Egress::Uplink(_)) => nat::Egress::Uplink(nat::Uplink {
            mac: station_mac(&spec.name, "outside"),
            addresses: spec
                .address
                .map(Into::into)
                .into_iter()
                .chain(spec.address6.map(Into::into))
                .collect(),
            next_hop4: spec.next_hop.map(Into::into),
            next_hop6: spec.next_hop6.map(Into::into),
            answer_echo: true,
            answer_unsolicited: true,
        }),
    };
    let mut napt = napt::Settings::new([seed(), seed()]);
    napt.filtering = filtering(spec);
    napt.sessions_per_host = spec.quota;
    napt.mappings_per_host = napt.mappings_per_host.min(spec.quota);
    modes::nat::Settings {
        subnets: spec.subnets().collect(),
        gateway: v4.into_iter().chain(v6).collect(),
        mac,
        egress,
        napt,
        ageing: Duration::from_secs(spec.ageing_s.into()),
        fdb_max: spec.fdb_max as usize,
    }
}

fn filtering(spec: &NetworkSpec) -> napt::Filtering {
    match spec.filtering {
        Filtering::EndpointIndependent => napt::Filtering::EndpointIndependent,
        Filtering::AddressDependent => napt::Filtering::AddressDependent,
        Filtering::AddressAndPortDependent => napt::Filtering::AddressAndPortDependent,
    }
}

/// Which destinations a network's guests reach by the host's sockets.
pub(super) fn outbound(spec: &NetworkSpec) -> sockets::Policy {
    let gateway = spec.gateway4().map(IpAddr::V4).into_iter().chain(spec.gateway6().map(IpAddr::V6));
    let open = gateway.filter(|_| spec.host_loopback).collect();
    let rule = |rule: &OutboundRule| sockets::Rule {
        allow: rule.allow,
        target: match &rule.target {
            OutboundTarget::Any => sockets::Target::Any,
            OutboundTarget::Prefix(net) => sockets::Target::Prefix(*net),
            OutboundTarget::Name(name) => sockets::Target::Name(name.clone()),
            OutboundTarget::Below(name) => sockets::Target::Below(name.clone()),
        },
        ports: rule.ports.clone(),
    };
    sockets::Policy::new(spec.subnets().collect(), open, spec.outbound.iter().map(rule).collect())
}

/// What the port of the host's sockets on a network is told. Other networks' ports have `taken` descriptors; this one
/// gets half of what is left at most, and leaves the other half to what comes.
pub(super) fn sockets_settings(spec: &NetworkSpec, taken: u64) -> sockets::Settings {
    let mut limits = sockets::Limits::default();
    for each in [&mut limits.tcp_each, &mut limits.udp_each, &mut limits.echo_each] {
        *each = (*each).min(spec.quota);
    }
    sockets::Settings {
        mac: router_mac(spec),
        gateway_v4: spec.gateway4(),
        gateway_v6: spec.gateway6(),
        mtu: spec.mtu_in_force(),
        host_loopback: spec.host_loopback,
        filtering: filtering(spec),
        outbound: Arc::new(outbound(spec)),
        limits: limits.within(sockets::limits::files().saturating_sub(taken) / 2),
    }
}

/// Whether a network's floods go to a port of this role: the uplink of a network that routes is on another link.
pub(super) fn is_flooded(spec: &NetworkSpec, role: Role) -> bool {
    match role {
        Role::Uplink => spec.mode == ModeWord::Bridge,
        Role::HostInterface => spec.mode != ModeWord::Routed,
        Role::Guest | Role::Gateway => true,
    }
}

/// The longest packet that a port of this role is sent, where its network's or its own MTU is `mtu`. To the gateway goes
/// whatever any port took: it is the one who tells the sender of a packet that it is too long for another.
pub(super) fn longest(role: Role, mtu: u16) -> u16 {
    if role == Role::Gateway { u16::MAX } else { mtu }
}

/// What the DHCP server of a network tells, if the network has one.
pub(super) fn dhcp4_config(spec: &NetworkSpec) -> Option<Dhcp4Config> {
    let (first, last) = spec.dhcp_range()?;
    let (server, subnet) = (spec.gateway4()?, spec.subnet?);
    let mut config = Dhcp4Config::new(server, router_mac(spec), subnet, first..=last);
    // Without a way out there is no use in a default route.
    config.router = (spec.mode != ModeWord::Internal).then_some(server);
    config.dns = v4(spec.dns_of_guests());
    config.domain = spec.domain.clone();
    config.mtu = spec.mtu_in_force();
    config.lease_secs = spec.lease_time_s;
    config.routes = spec.static_routes.iter().map(|r| (r.destination, r.router)).collect();
    config.boot_file = spec.boot_file.clone();
    config.next_server = spec.boot_server;
    config.names_kept = vec!["gateway".to_owned()];
    // Each guest of a routed network is on a link of its own: there is nobody to ask.
    if spec.mode == ModeWord::Routed {
        config.probe = None;
    }
    Some(config)
}

fn v4(addresses: Vec<IpAddr>) -> Vec<Ipv4Addr> {
    let v4 = |ip| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    };
    addresses.into_iter().filter_map(v4).collect()
}

fn v6(addresses: Vec<IpAddr>) -> Vec<std::net::Ipv6Addr> {
    let v6 = |ip| match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    };
    addresses.into_iter().filter_map(v6).collect()
}

fn dhcp4_server(spec: &NetworkSpec, around: &Surroundings<'_>) -> Result<Option<dhcp4::Server>, String> {
    let Some(config) = dhcp4_config(spec) else { return Ok(None) };
    let store = FileStore::new(&around.state_dir.join("leases"), &spec.name)
        .map_err(|e| format!("the file of leases: {e}"))?;
    let Clock { now, unix_s } = around.clock;
    dhcp4::Server::new(config, Box::new(store), now, unix_s).map(Some).map_err(|e| format!("dhcp=: {e}"))
}

/// What the DHCPv6 server of a network tells, if the network has one.
pub(super) fn dhcp6_config(spec: &NetworkSpec) -> Result<Option<Dhcp6Config>, String> {
    let (Some(subnet), Some(gateway)) = (spec.subnet6, spec.gateway6()) else { return Ok(None) };
    let mac = router_mac(spec);
    let mut config = Dhcp6Config::new(mac, link_local(mac));
    config.others = vec![gateway];
    config.prefixes = vec![subnet];
    config.dns = v6(spec.dns_of_guests());
    config.search = search(spec)?;
    Ok(Some(config))
}

fn dhcp6_server(spec: &NetworkSpec) -> Result<Option<Dhcp6Server>, String> {
    dhcp6_config(spec)?.map(Dhcp6Server::new).transpose().map_err(|e| format!("subnet6=: {e}"))
}

fn search(spec: &NetworkSpec) -> Result<Vec<hickory_proto::rr::Name>, String> {
    let name = |domain: &String| {
        hickory_proto::rr::Name::from_ascii(domain).map_err(|e| format!("domain={domain}: {e}"))
    };
    spec.domain.iter().map(name).collect()
}

/// What a network's router advertises, if it has IPv6.
pub(super) fn ra_config(spec: &NetworkSpec) -> Result<Option<RaConfig>, String> {
    let Some(subnet) = spec.subnet6 else { return Ok(None) };
    let mac = router_mac(spec);
    let mut config = RaConfig::new(mac, link_local(mac));
    if spec.mode == ModeWord::Internal {
        config.router_lifetime = Duration::ZERO;
    }
    // Addresses by DHCPv6 are for whom one is reserved; all others make their own, if the prefix lets them.
    config.managed = true;
    config.other = true;
    config.mtu = Some(spec.mtu_in_force());
    let mut prefix = RaPrefix::new(subnet);
    // Guests of a routed network are not on one link, whatever their prefix is; and an address that a guest makes up
    // is routed to nobody there.
    let shared = spec.mode != ModeWord::Routed;
    prefix.autonomous = spec.slaac() && shared;
    prefix.on_link = shared;
    config.prefixes = vec![prefix];
    config.dns = v6(spec.dns_of_guests());
    config.search = search(spec)?;
    Ok(Some(config))
}

fn advertiser(spec: &NetworkSpec, now: Instant) -> Result<Option<Advertiser>, String> {
    let Some(config) = ra_config(spec)? else { return Ok(None) };
    Advertiser::new(now, config, seed()).map(Some).map_err(|e| format!("subnet6=: {e}"))
}

/// The names of a network, but for those of leases.
pub(super) fn zone(spec: &NetworkSpec, hosts: &[HostRecord]) -> Result<Zone, String> {
    let (v4, v6) = (spec.gateway4().map(IpAddr::V4), spec.gateway6().map(IpAddr::V6));
    let gateway = v4.into_iter().chain(v6).collect();
    let mut zone = Zone::new(spec.domain.as_deref(), gateway, spec.subnets().collect())
        .map_err(|e| format!("domain=: {e}"))?;
    for host in hosts {
        zone.add_host(&host.name, &[host.ip]).map_err(|e| format!("host {}: {e}", host.name))?;
    }
    Ok(zone)
}

fn name_service(spec: &NetworkSpec) -> Result<Option<Dns>, String> {
    if !spec.dns_on() {
        return Ok(None);
    }
    let zone = zone(spec, &[])?;
    // Guests of a routed network have addresses of any subnet.
    let clients = match spec.mode {
        ModeWord::Routed => Vec::new(),
        _ => spec.subnets().collect(),
    };
    let settings = dns::Settings { forwarding: spec.dns_forwards(), clients, limits: Limits::default() };
    Ok(Some(Dns::new(settings, zone)))
}

/// Whom a network's gateway asks for names of the outside.
pub(super) fn upstream(spec: &NetworkSpec) -> Upstream {
    let upstream = match &*spec.dns_servers {
        [] => Upstream::of_host(),
        given => Upstream::given(given.iter().map(|&ip| SocketAddr::new(ip, DNS_PORT)).collect()),
    };
    let (v4, v6) = (spec.gateway4().map(IpAddr::V4), spec.gateway6().map(IpAddr::V6));
    upstream.forbid(v4.into_iter().chain(v6).collect());
    upstream
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_gets_what_is_too_long_for_others() {
        assert_eq!(longest(Role::Gateway, 1500), u16::MAX);
        for role in [Role::Guest, Role::Uplink, Role::HostInterface] {
            assert_eq!(longest(role, 1500), 1500);
        }
    }

    #[test]
    fn stations_have_addresses_of_their_own_that_stay() {
        let one = station_mac("virbr0", "router");
        assert_eq!(one, station_mac("virbr0", "router"));
        let others = [station_mac("virbr0", "host"), station_mac("virbr1", "router")];
        assert!(!others.contains(&one));
        assert_eq!(one.0[0] & 3, 2, "locally administered, for one station");
    }
}
