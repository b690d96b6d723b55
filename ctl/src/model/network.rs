//! A network as an operator describes it.

use super::later::check_now;
use super::value::{MTU_MAX, MTU_MIN, parse_choice, parse_number, parse_switch, switch_word};
use super::words::Claim;
use super::{ModelError, check_interface, check_name, shown};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// How many addresses a network's FDB holds when `fdb-max=` does not say.
pub const FDB_MAX_DEFAULT: u32 = 8192;
const FDB_MAX_MAX: u32 = 1_000_000;
/// The ageing time when `ageing=` does not say, in seconds (IEEE 802.1Q, table 8-9).
const AGEING_S_DEFAULT: u32 = 300;
const AGEING_S_MIN: u32 = 15;
const AGEING_S_MAX: u32 = 3600;
const DOMAIN_MAX: usize = 253;

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
    /// They move to the network's host interface.
    Move,
}

/// The addresses that a network gives by DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dhcp {
    /// None.
    Off,
    /// From the first to the second, both included; the first is not above the second.
    Range(Ipv4Addr, Ipv4Addr),
}

/// How a `nat` network reaches the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Sockets of this process.
    User,
    /// The host's own masquerading.
    Host,
    /// Our own translation on this interface.
    Uplink(String),
}

/// A network, complete and checked, with every default filled in. [`NetworkDraft`] builds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`; at most 15 bytes with `host_if`, as it names an interface then.
    pub name: String,
    /// `mode=`.
    pub mode: Mode,
    /// `uplink=`: the interface that joins the network.
    pub uplink: Option<String>,
    /// `host-address=`.
    pub host_address: HostAddress,
    /// `host-if=`: the host has a tap of the network's name on it.
    pub host_if: bool,
    /// `mtu=`, 68 to 65535 bytes; `None` is the default of 1500.
    pub mtu: Option<u16>,
    /// `ageing=`, 15 to 3600 seconds.
    pub ageing_s: u32,
    /// `fdb-max=`, 1 to 1,000,000 addresses.
    pub fdb_max: u32,
    /// `subnet=`.
    pub subnet: Option<Ipv4Network>,
    /// `subnet6=`.
    pub subnet6: Option<Ipv6Network>,
    /// `gateway=`.
    pub gateway: Option<IpAddr>,
    /// `dhcp=`.
    pub dhcp: Option<Dhcp>,
    /// `dns=`.
    pub dns: Option<bool>,
    /// `domain=`.
    pub domain: Option<String>,
    /// `egress=`.
    pub egress: Option<Egress>,
    /// `address=`: the uplink's, for translation.
    pub address: Option<IpNetwork>,
    /// `next-hop=`.
    pub next_hop: Option<IpAddr>,
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

    /// The keys and values that describe this network, in the order of the manual, defaults left out except `mode`.
    pub fn words(&self) -> Vec<(&'static str, String)> {
        let mut words = vec![("mode", self.mode.as_str().to_owned())];
        let mut push = |key, value: Option<String>| words.extend(value.map(|v| (key, v)));
        push("uplink", self.uplink.clone());
        push("host-address", (self.host_address == HostAddress::Move).then(|| "move".to_owned()));
        push("host-if", self.host_if.then(|| "on".to_owned()));
        push("subnet", self.subnet.map(|v| v.to_string()));
        push("subnet6", self.subnet6.map(|v| v.to_string()));
        push("gateway", self.gateway.map(|v| v.to_string()));
        push(
            "dhcp",
            self.dhcp.map(|v| match v {
                Dhcp::Off => "off".to_owned(),
                Dhcp::Range(first, last) => format!("{first}-{last}"),
            }),
        );
        push("dns", self.dns.map(|v| switch_word(v).to_owned()));
        push("domain", self.domain.clone());
        push(
            "egress",
            self.egress.as_ref().map(|v| match v {
                Egress::User => "user".to_owned(),
                Egress::Host => "host".to_owned(),
                Egress::Uplink(interface) => format!("uplink:{interface}"),
            }),
        );
        push("address", self.address.map(|v| v.to_string()));
        push("next-hop", self.next_hop.map(|v| v.to_string()));
        push("mtu", self.mtu.map(|v| v.to_string()));
        push("ageing", (self.ageing_s != AGEING_S_DEFAULT).then(|| self.ageing_s.to_string()));
        push("fdb-max", (self.fdb_max != FDB_MAX_DEFAULT).then(|| self.fdb_max.to_string()));
        words
    }

    /// What this network takes of the host for itself; no other network or port may have it.
    pub fn claims(&self) -> Vec<Claim> {
        let host_if = self.host_if.then(|| Claim::Interface(self.name.clone()));
        let uplink = self.uplink.clone().map(Claim::Interface);
        host_if.into_iter().chain(uplink).collect()
    }
}

/// A network while it is being described: each key is checked when it is set, their agreement by [`Self::build`].
#[derive(Clone, Debug)]
pub struct NetworkDraft {
    spec: NetworkSpec,
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
            next_hop: None,
        };
        Ok(Self { spec })
    }

    /// Sets one key from its word.
    ///
    /// # Errors
    /// There is no such key, its value is not possible, or this version does not do it.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ModelError> {
        self.assign(key, value).map_err(|e| e.of(format_args!("{key}=")))?;
        check_now("key", key)?;
        check_now(key, value)
    }

    /// Sets one key back to its default.
    pub(super) fn clear(&mut self, key: &str) -> Result<(), ModelError> {
        let spec = &mut self.spec;
        match key {
            "uplink" => spec.uplink = None,
            "host-if" => spec.host_if = false,
            "mtu" => spec.mtu = None,
            "ageing" => spec.ageing_s = AGEING_S_DEFAULT,
            "fdb-max" => spec.fdb_max = FDB_MAX_DEFAULT,
            _ => return Err(ModelError::new(format!("{key}= has no default to go back to"))),
        }
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
            "host-address" => {
                spec.host_address =
                    parse_choice(value, &[("keep", HostAddress::Keep), ("move", HostAddress::Move)])?;
            }
            "host-if" => spec.host_if = parse_switch(value)?,
            "mtu" => spec.mtu = Some(parse_number(value, MTU_MIN..=MTU_MAX)?),
            "ageing" => spec.ageing_s = parse_number(value, AGEING_S_MIN..=AGEING_S_MAX)?,
            "fdb-max" => spec.fdb_max = parse_number(value, 1..=FDB_MAX_MAX)?,
            "subnet" => spec.subnet = Some(parse_as(value, "an IPv4 subnet such as 192.168.122.0/24")?),
            "subnet6" => spec.subnet6 = Some(parse_as(value, "an IPv6 subnet such as fd00:1::/64")?),
            "gateway" => spec.gateway = Some(parse_as(value, "an IP address")?),
            "dhcp" => spec.dhcp = Some(parse_dhcp(value)?),
            "dns" => spec.dns = Some(parse_switch(value)?),
            "domain" => spec.domain = Some(parse_domain(value)?),
            "egress" => spec.egress = Some(parse_egress(value)?),
            "address" => {
                spec.address = Some(parse_as(value, "an address with its prefix such as 203.0.113.2/24")?)
            }
            "next-hop" => spec.next_hop = Some(parse_as(value, "an IP address")?),
            _ => return Err(ModelError::new("a network has no such key; see weft help net add")),
        }
        Ok(())
    }

    /// The network, if its keys agree.
    ///
    /// # Errors
    /// Two keys contradict each other, with the network's name in front.
    pub fn build(self) -> Result<NetworkSpec, ModelError> {
        let spec = self.spec;
        if spec.host_if {
            check_interface(&spec.name).map_err(|e| {
                e.of(format_args!("network {}: host-if=on names an interface after the network", spec.name))
            })?;
        }
        if spec.uplink.as_deref() == Some(&*spec.name) && spec.host_if {
            return Err(ModelError::new(format!(
                "network {}: host-if=on makes an interface of this name, so uplink={} cannot be it: \
                 name the network otherwise",
                spec.name, spec.name
            )));
        }
        Ok(spec)
    }
}

impl From<NetworkSpec> for NetworkDraft {
    fn from(spec: NetworkSpec) -> Self {
        Self { spec }
    }
}

fn parse_as<T: FromStr>(value: &str, what: &str) -> Result<T, ModelError> {
    value.parse().map_err(|_| ModelError::new(format!("{} is not {what}", shown(value))))
}

fn parse_dhcp(value: &str) -> Result<Dhcp, ModelError> {
    if value == "off" {
        return Ok(Dhcp::Off);
    }
    let range = value.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match range {
        Some((first, last)) if first <= last => Ok(Dhcp::Range(first, last)),
        Some(_) => Err(ModelError::new(format!("{} ends before it starts", shown(value)))),
        None => Err(ModelError::new(format!(
            "{} is neither 'off' nor a range such as 192.168.122.100-192.168.122.254",
            shown(value)
        ))),
    }
}

fn parse_domain(value: &str) -> Result<String, ModelError> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if value.len() <= DOMAIN_MAX && value.split('.').all(label) {
        return Ok(value.to_owned());
    }
    Err(ModelError::new(format!("{} is not a domain name", shown(value))))
}

fn parse_egress(value: &str) -> Result<Egress, ModelError> {
    match value.split_once(':') {
        Some(("uplink", interface)) => {
            check_interface(interface)?;
            Ok(Egress::Uplink(interface.to_owned()))
        }
        None if value == "user" => Ok(Egress::User),
        None if value == "host" => Ok(Egress::Host),
        _ => Err(ModelError::new(format!("{} is not one of user, host, uplink:IFNAME", shown(value)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, words: &[(&str, &str)]) -> Result<NetworkSpec, String> {
        NetworkSpec::from_words(name, words.iter().copied()).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let spec = parse("lan", &[]).unwrap();
        assert_eq!(spec.mode, Mode::Bridge);
        assert_eq!(spec.host_address, HostAddress::Keep);
        assert_eq!((spec.uplink.as_deref(), spec.host_if, spec.mtu), (None, false, None));
        assert_eq!((spec.ageing_s, spec.fdb_max), (300, 8192));
        assert_eq!(spec.words(), [("mode", "bridge".to_owned())]);
        assert_eq!(
            spec,
            parse("lan", &[("ageing", "300"), ("fdb-max", "8192"), ("host-if", "off")]).unwrap()
        );
    }

    #[test]
    fn every_key_of_this_version() {
        let words = [
            ("mode", "bridge"),
            ("uplink", "eth0"),
            ("host-address", "keep"),
            ("host-if", "on"),
            ("mtu", "9000"),
            ("ageing", "15"),
            ("fdb-max", "1000000"),
        ];
        let spec = parse("xenbr0", &words).unwrap();
        assert_eq!(spec.uplink.as_deref(), Some("eth0"));
        assert!(spec.host_if);
        assert_eq!((spec.mtu, spec.ageing_s, spec.fdb_max), (Some(9000), 15, 1_000_000));
        assert_eq!(
            spec.claims(),
            [Claim::Interface("xenbr0".to_owned()), Claim::Interface("eth0".to_owned())]
        );
        let again: Vec<_> = spec.words();
        assert_eq!(NetworkSpec::from_words("xenbr0", again.iter().map(|(k, v)| (*k, &**v))).unwrap(), spec);
    }

    #[test]
    fn what_is_refused_and_how() {
        for (words, why) in [
            (&[("mode", "switch")][..], "'switch' is not one of bridge, routed, nat, internal"),
            (&[("mode", "nat")], "mode nat is not in this version"),
            (&[("mode", "routed")], "mode routed is not in this version"),
            (&[("mode", "internal")], "mode internal is not in this version"),
            (&[("host-address", "move")], "host-address=move is not in this version"),
            (&[("host-address", "maybe")], "'maybe' is not one of keep, move"),
            (&[("subnet", "192.168.122.0/24")], "subnet= is not in this version"),
            (&[("subnet", "192.168.122.0/33")], "not an IPv4 subnet"),
            (&[("subnet6", "fd00::/64")], "subnet6= is not in this version"),
            (&[("subnet6", "10.0.0.0/8")], "not an IPv6 subnet"),
            (&[("gateway", "10.0.0.1")], "gateway= is not in this version"),
            (&[("gateway", "10.0.0")], "not an IP address"),
            (&[("dhcp", "off")], "dhcp= is not in this version"),
            (&[("dhcp", "10.0.0.9-10.0.0.2")], "ends before it starts"),
            (&[("dhcp", "on")], "neither 'off' nor a range"),
            (&[("dns", "on")], "dns= is not in this version"),
            (&[("domain", "vm.example")], "domain= is not in this version"),
            (&[("domain", "-x")], "not a domain name"),
            (&[("egress", "user")], "egress= is not in this version"),
            (&[("egress", "uplink:eth0")], "egress= is not in this version"),
            (&[("egress", "uplink:")], "is empty"),
            (&[("egress", "magic")], "not one of user, host"),
            (&[("address", "203.0.113.2/24")], "address= is not in this version"),
            (&[("next-hop", "203.0.113.1")], "next-hop= is not in this version"),
            (&[("uplink", "an-interface-too-long")], "21 bytes"),
            (&[("uplink", "a/b")], "not possible in it"),
            (&[("host-if", "yes")], "neither 'on' nor 'off'"),
            (&[("mtu", "67")], "from 68 to 65535"),
            (&[("mtu", "65536")], "from 68 to 65535"),
            (&[("ageing", "14")], "from 15 to 3600"),
            (&[("ageing", "3601")], "from 15 to 3600"),
            (&[("fdb-max", "0")], "from 1 to 1000000"),
            (&[("fdb-max", "1000001")], "from 1 to 1000000"),
            (&[("colour", "red")], "no such key"),
            (&[("mtu", "")], "'' is not a number"),
        ] {
            let message = parse("lan", words).unwrap_err();
            assert!(message.contains(why), "{words:?}: {message}");
            assert!(message.starts_with("network lan: ") && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_host_interface_bounds_the_networks_name() {
        assert!(parse("sixteen-bytes-ab", &[]).is_ok());
        let message = parse("sixteen-bytes-ab", &[("host-if", "on")]).unwrap_err();
        assert!(message.contains("host-if=on") && message.contains("16 bytes"), "{message}");
        let message = parse("eth0", &[("host-if", "on"), ("uplink", "eth0")]).unwrap_err();
        assert!(message.contains("name the network otherwise"), "{message}");
    }
}
