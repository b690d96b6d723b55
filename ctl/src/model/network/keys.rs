//! The keys of networks: which there are, which modes take them, and which change while the network forwards.

use super::outbound::parse_outbound;
use super::values::{
    parse_address, parse_address6, parse_boot_file, parse_dhcp, parse_dns_servers, parse_domain,
    parse_egress, parse_gateway, parse_host4, parse_host6, parse_static_routes, parse_subnet, parse_subnet6,
};
use super::{
    AGEING_S_DEFAULT, Egress, FDB_MAX_DEFAULT, Filtering, HostAddress, LEASE_TIME_S_DEFAULT, Mode,
    NetworkSpec, QUOTA_DEFAULT, checks,
};
use crate::model::value::{MTU_MAX, MTU_MIN, parse_choice, parse_number, parse_switch};
use crate::model::{ModelError, check_interface, check_name};
use Mode::{Bridge, Internal, Nat, Routed};
use std::ops::RangeInclusive;

const FDB_MAX_RANGE: RangeInclusive<u32> = 1..=1_000_000;
const AGEING_S_RANGE: RangeInclusive<u32> = 15..=3600;
const LEASE_TIME_S_RANGE: RangeInclusive<u32> = 120..=2_592_000;
const QUOTA_RANGE: RangeInclusive<u32> = 16..=1_000_000;

const SERVED: &[Mode] = &[Routed, Nat, Internal];
const OUTWARD: &[Mode] = &[Routed, Nat];
const SWITCHED: &[Mode] = &[Bridge, Nat, Internal];

/// A key, the modes that take it, and those in which it changes while the network forwards.
struct Key {
    key: &'static str,
    modes: &'static [Mode],
    live: &'static [Mode],
}

const fn fixed(key: &'static str, modes: &'static [Mode]) -> Key {
    Key { key, modes, live: &[] }
}

const fn live(key: &'static str, modes: &'static [Mode]) -> Key {
    Key { key, modes, live: modes }
}

const EVERY: &[Mode] = &[Bridge, Routed, Nat, Internal];

/// Every key, in the order of the manual.
const KEYS: &[Key] = &[
    fixed("mode", EVERY),
    Key { key: "uplink", modes: &[Bridge, Routed], live: &[Bridge] },
    fixed("host-address", &[Bridge]),
    Key { key: "host-if", modes: &[Bridge, Routed], live: &[Bridge] },
    fixed("subnet", SERVED),
    fixed("subnet6", SERVED),
    fixed("gateway", SERVED),
    fixed("dhcp", SERVED),
    fixed("dns", SERVED),
    live("domain", SERVED),
    fixed("egress", &[Nat]),
    fixed("address", OUTWARD),
    fixed("next-hop", OUTWARD),
    fixed("address6", OUTWARD),
    fixed("next-hop6", OUTWARD),
    fixed("ip-forward", OUTWARD),
    live("lease-time", SERVED),
    live("dns-servers", OUTWARD),
    live("static-routes", OUTWARD),
    live("boot-file", OUTWARD),
    live("boot-server", OUTWARD),
    live("outbound", &[Nat]),
    live("host-loopback", &[Nat]),
    fixed("filtering", &[Nat]),
    fixed("quota", &[Nat]),
    live("mtu", EVERY),
    live("ageing", SWITCHED),
    live("fdb-max", SWITCHED),
];

/// Keys, and what is not a key but may be taken for one, that never change while the network exists.
pub(in crate::model) const FIXED: &[&str] = &[
    "mode",
    "host-address",
    "subnet",
    "subnet6",
    "gateway",
    "dhcp",
    "dns",
    "egress",
    "address",
    "next-hop",
    "address6",
    "next-hop6",
    "ip-forward",
    "filtering",
    "quota",
    "name",
];

/// The keys that change while a network forwards, in some mode.
pub(in crate::model) fn live_keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(|k| !k.live.is_empty()).map(|k| k.key)
}

/// Whether `key` changes while a network of that mode forwards.
pub(in crate::model) fn is_live(key: &str, mode: Mode) -> bool {
    KEYS.iter().any(|k| k.key == key && k.live.contains(&mode))
}

/// The modes that take `key`.
pub(in crate::model) fn takes(key: &str) -> &'static [Mode] {
    KEYS.iter().find(|k| k.key == key).map_or(&[], |k| k.modes)
}

/// A network while it is being described: each key is checked when it is set, their agreement by [`Self::build`].
#[derive(Clone, Debug)]
pub struct NetworkDraft {
    pub(super) spec: NetworkSpec,
    /// `host-if=`, if it was said; the specification's follows from the other keys otherwise.
    pub(super) host_if: Option<bool>,
    /// The keys that were said, even with their defaults.
    pub(super) given: Vec<&'static str>,
}

impl NetworkDraft {
    /// A bridge of that name with the defaults of every key.
    ///
    /// # Errors
    /// The name is not possible.
    pub fn new(name: &str) -> Result<Self, ModelError> {
        check_name("network", name)?;
        let spec = NetworkSpec {
            name: name.to_owned(),
            mode: Mode::default(),
            uplink: None,
            host_address: HostAddress::default(),
            host_if: false,
            mtu: None,
            ageing_s: AGEING_S_DEFAULT,
            fdb_max: FDB_MAX_DEFAULT,
            subnet: None,
            subnet6: None,
            gateway: None,
            dhcp: None,
            dns: None,
            domain: None,
            egress: None,
            address: None,
            address6: None,
            next_hop: None,
            next_hop6: None,
            ip_forward: None,
            lease_time_s: LEASE_TIME_S_DEFAULT,
            dns_servers: Vec::new(),
            static_routes: Vec::new(),
            boot_file: None,
            boot_server: None,
            outbound: Vec::new(),
            host_loopback: false,
            filtering: Filtering::default(),
            quota: QUOTA_DEFAULT,
        };
        Ok(Self { spec, host_if: None, given: Vec::new() })
    }

    /// Sets one key from its word.
    ///
    /// # Errors
    /// There is no such key, or its value is not possible.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ModelError> {
        self.assign(key, value).map_err(|e| e.of(format_args!("{key}=")))?;
        if let Some(known) = KEYS.iter().map(|k| k.key).find(|k| *k == key)
            && !self.given.contains(&known)
        {
            self.given.push(known);
        }
        Ok(())
    }

    /// Sets one key that may change while a network forwards back to its default.
    pub(in crate::model) fn clear(&mut self, key: &str) -> Result<(), ModelError> {
        let spec = &mut self.spec;
        match key {
            "uplink" => spec.uplink = None,
            "host-if" => self.host_if = None,
            "mtu" => spec.mtu = None,
            "ageing" => spec.ageing_s = AGEING_S_DEFAULT,
            "fdb-max" => spec.fdb_max = FDB_MAX_DEFAULT,
            "domain" => spec.domain = None,
            "lease-time" => spec.lease_time_s = LEASE_TIME_S_DEFAULT,
            "dns-servers" => spec.dns_servers.clear(),
            "static-routes" => spec.static_routes.clear(),
            "boot-file" => spec.boot_file = None,
            "boot-server" => spec.boot_server = None,
            "outbound" => spec.outbound.clear(),
            "host-loopback" => spec.host_loopback = false,
            "quota" => spec.quota = QUOTA_DEFAULT,
            _ => return Err(ModelError::new(format!("{key}= has no default to go back to"))),
        }
        self.given.retain(|given| *given != key);
        Ok(())
    }

    fn assign(&mut self, key: &str, value: &str) -> Result<(), ModelError> {
        let spec = &mut self.spec;
        match key {
            "mode" => spec.mode = parse_choice(value, Mode::WORDS)?,
            "uplink" => {
                check_interface(value)?;
                spec.uplink = Some(value.to_owned());
            }
            "host-address" => spec.host_address = parse_choice(value, HostAddress::WORDS)?,
            "host-if" => self.host_if = Some(parse_switch(value)?),
            "subnet" => spec.subnet = Some(parse_subnet(value)?),
            "subnet6" => spec.subnet6 = Some(parse_subnet6(value)?),
            "gateway" => spec.gateway = Some(parse_gateway(value)?),
            "dhcp" => spec.dhcp = Some(parse_dhcp(value)?),
            "dns" => spec.dns = Some(parse_switch(value)?),
            "domain" => spec.domain = Some(parse_domain(value)?),
            "egress" => spec.egress = Some(parse_egress(value)?),
            "address" => spec.address = Some(parse_address(value)?),
            "next-hop" => spec.next_hop = Some(parse_host4(value)?),
            "address6" => spec.address6 = Some(parse_address6(value)?),
            "next-hop6" => spec.next_hop6 = Some(parse_host6(value)?),
            "ip-forward" => spec.ip_forward = Some(parse_switch(value)?),
            "lease-time" => spec.lease_time_s = parse_number(value, LEASE_TIME_S_RANGE)?,
            "dns-servers" => spec.dns_servers = parse_dns_servers(value)?,
            "static-routes" => spec.static_routes = parse_static_routes(value)?,
            "boot-file" => spec.boot_file = Some(parse_boot_file(value)?),
            "boot-server" => spec.boot_server = Some(parse_host4(value)?),
            "outbound" => spec.outbound = parse_outbound(value)?,
            "host-loopback" => spec.host_loopback = parse_switch(value)?,
            "filtering" => spec.filtering = parse_choice(value, Filtering::WORDS)?,
            "quota" => spec.quota = parse_number(value, QUOTA_RANGE)?,
            "mtu" => spec.mtu = Some(parse_number(value, MTU_MIN..=MTU_MAX)?),
            "ageing" => spec.ageing_s = parse_number(value, AGEING_S_RANGE)?,
            "fdb-max" => spec.fdb_max = parse_number(value, FDB_MAX_RANGE)?,
            _ => return Err(ModelError::new("a network has no such key; see weft help net add")),
        }
        Ok(())
    }

    /// The network, if its keys agree.
    ///
    /// # Errors
    /// A key does not go with the mode, or two keys contradict each other; with the network's name in front.
    pub fn build(mut self) -> Result<NetworkSpec, ModelError> {
        if self.spec.mode == Nat && self.spec.egress.is_none() {
            self.spec.egress = Some(Egress::User);
        }
        self.spec.host_if = self.host_if.unwrap_or_else(|| self.spec.host_if_default());
        checks::check(&self).map_err(|e| e.of(format_args!("network {}", self.spec.name)))?;
        self.spec.forget_defaults();
        Ok(self.spec)
    }
}

impl From<NetworkSpec> for NetworkDraft {
    fn from(spec: NetworkSpec) -> Self {
        let given: Vec<_> = spec.words().into_iter().map(|(key, _)| key).collect();
        let host_if = given.contains(&"host-if").then_some(spec.host_if);
        Self { spec, host_if, given }
    }
}
