//! A port as an operator describes it.

use super::value::{MTU_MAX, MTU_MIN, parse_choice, parse_mac, parse_number, parse_switch, parse_vlan};
use super::words::Claim;
use super::{Mode, ModelError, NetworkSpec, Rate, check_interface, check_name, check_socket_path, shown};
use ipnetwork::IpNetwork;
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use switch_core::{MacAddr, Vid};

const QUEUES_MAX: u16 = 16;
const IPS_MAX: usize = 64;
const ROUTES_MAX: usize = 131_072;
/// The smallest MTU of an IPv6 link, in bytes (RFC 8200, 5).
const MTU6_MIN: u16 = 1280;

/// What is at the other end of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VM's virtio-net over the vhost-user protocol; the socket's absolute path.
    VhostUser(PathBuf),
    /// A tap whose fd the switch holds.
    Tap(String),
    /// An interface that exists.
    Netdev(String),
    /// A peer that sends each frame after its length, as QEMU's `-netdev stream` does; the socket's absolute path.
    Stream(PathBuf),
    /// A peer that sends frames as datagrams, as QEMU's `-netdev dgram` does; the absolute path of our own socket.
    Dgram(PathBuf),
}

impl Kind {
    /// `KIND[:ARG]`, for the port `port`: a tap or netdev without an argument has the port's name.
    ///
    /// # Errors
    /// There is no such kind, or its argument is not possible.
    pub fn parse(text: &str, port: &str) -> Result<Self, ModelError> {
        let (kind, arg) = match text.split_once(':') {
            Some((kind, arg)) => (kind, Some(arg)),
            None => (text, None),
        };
        let path = || {
            let arg = arg.ok_or_else(|| {
                ModelError::new(format!("kind {kind} needs a socket's path: {kind}:/run/weft/{port}.sock"))
            })?;
            check_socket_path(arg)?;
            Ok(PathBuf::from(arg))
        };
        let interface = || {
            let name = arg.unwrap_or(port);
            check_interface(name)?;
            Ok(name.to_owned())
        };
        let parsed = match kind {
            "vhost-user" => path().map(Self::VhostUser),
            "tap" => interface().map(Self::Tap),
            "netdev" => interface().map(Self::Netdev),
            "stream" => path().map(Self::Stream),
            "dgram" => path().map(Self::Dgram),
            _ => Err(ModelError::new(format!(
                "{} is no port kind: take vhost-user:PATH, tap:IFNAME, netdev:IFNAME, stream:PATH or dgram:PATH",
                shown(text)
            ))),
        }?;
        Ok(parsed)
    }

    /// The kind's word, without its argument.
    pub fn word(&self) -> &'static str {
        match self {
            Self::VhostUser(_) => "vhost-user",
            Self::Tap(_) => "tap",
            Self::Netdev(_) => "netdev",
            Self::Stream(_) => "stream",
            Self::Dgram(_) => "dgram",
        }
    }
}

impl fmt::Display for Kind {
    /// `KIND:ARG`, as it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VhostUser(path) | Self::Stream(path) | Self::Dgram(path) => {
                write!(f, "{}:{}", self.word(), path.display())
            }
            Self::Tap(name) | Self::Netdev(name) => write!(f, "{}:{name}", self.word()),
        }
    }
}

/// Who connects to whom on a port's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// The switch listens.
    #[default]
    Server,
    /// The switch connects, and connects again.
    Client,
}

impl Role {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// A port, complete and checked, with every default filled in. [`PortDraft`] builds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// The network that it belongs to.
    pub network: String,
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub name: String,
    /// What is at the other end.
    pub kind: Kind,
    /// `role=`; `Server` for kinds to whose socket nobody connects.
    pub role: Role,
    /// `remote=`: the absolute path of the peer's socket; of dgram ports, which all have it.
    pub remote: Option<PathBuf>,
    /// `queues=`, 1 to 16: for vhost-user, the most queue pairs that the guest may use; 1 for kinds that have no queues.
    pub queues: u16,
    /// `mac=`: the guest's address.
    pub mac: Option<MacAddr>,
    /// `ip=`: the guest's addresses.
    pub ip: Vec<IpAddr>,
    /// `routes=`: prefixes without host bits that are reached through the guest; of routed networks.
    pub routes: Vec<IpNetwork>,
    /// `mtu=`, 68 to 65535 bytes; `None` is the network's.
    pub mtu: Option<u16>,
    /// `vlan=`: the port is an access port of this VLAN.
    pub vlan: Option<Vid>,
    /// `isolated=`: it reaches no other isolated port.
    pub isolated: bool,
    /// `antispoof=`: it sends only as `mac` and `ip`, as far as they are given (at least one is). With `ip`, that
    /// holds for IPv4, IPv6 and the sender of ARP, and DHCP client traffic passes.
    pub antispoof: bool,
    /// `rate=`: a limit on what the guest sends.
    pub rate: Option<Rate>,
}

impl PortSpec {
    /// A port from its network, name, kind and `key=value` words, already split.
    ///
    /// # Errors
    /// The first thing that is wrong, with the port's name in front.
    pub fn from_words<'a>(
        network: &str,
        name: &str,
        kind: &str,
        words: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ModelError> {
        let mut draft = PortDraft::new(network, name, kind)?;
        for (key, value) in words {
            draft.set(key, value).map_err(|e| e.of(format_args!("port {name}")))?;
        }
        draft.build()
    }

    /// The keys and values that describe this port, in the order of the manual, defaults left out.
    pub fn words(&self) -> Vec<(&'static str, String)> {
        let mut words = Vec::new();
        let mut push = |key, value: Option<String>| words.extend(value.map(|v| (key, v)));
        push("role", (self.role != Role::default()).then(|| self.role.as_str().to_owned()));
        push("remote", self.remote.as_ref().map(|path| path.display().to_string()));
        push("queues", (self.queues != 1).then(|| self.queues.to_string()));
        push("mac", self.mac.map(|v| v.to_string()));
        push("ip", (!self.ip.is_empty()).then(|| join(&self.ip)));
        push("routes", (!self.routes.is_empty()).then(|| join(&self.routes)));
        push("mtu", self.mtu.map(|v| v.to_string()));
        push("vlan", self.vlan.map(|v| v.to_string()));
        push("isolated", self.isolated.then(|| "on".to_owned()));
        push("antispoof", self.antispoof.then(|| "on".to_owned()));
        push("rate", self.rate.map(|v| v.to_string()));
        words
    }

    /// Checks it with its network.
    ///
    /// # Errors
    /// A key does not go with the network's mode, or an address is none that a guest of this network can have; with the
    /// port's name in front.
    pub fn fits(&self, network: &NetworkSpec) -> Result<(), ModelError> {
        self.check_in(network).map_err(|e| e.of(format_args!("port {}", self.name)))
    }

    fn check_in(&self, network: &NetworkSpec) -> Result<(), ModelError> {
        let error = |why: String| Err(ModelError::new(why));
        if let (Some(vlan), Mode::Routed | Mode::Nat) = (self.vlan, network.mode) {
            return error(format!("vlan={vlan}: {}: it has no VLANs", network.described()));
        }
        if let (Some(route), Mode::Bridge | Mode::Nat | Mode::Internal) = (self.routes.first(), network.mode)
        {
            return error(format!("routes={route}: {}: only a routed one has them", network.described()));
        }
        if let (Some(mtu), Some(subnet)) = (self.mtu, network.subnet6)
            && mtu < MTU6_MIN
        {
            return error(format!(
                "mtu={mtu} is too small for {subnet}, the subnet6 of network {}: IPv6 needs {MTU6_MIN} bytes or more",
                network.name
            ));
        }
        for ip in &self.ip {
            let gateway = match ip {
                IpAddr::V4(ip) => network.gateway4() == Some(*ip),
                IpAddr::V6(ip) => network.gateway6() == Some(*ip),
            };
            match (ip, network.mode) {
                _ if gateway => error(format!("{ip} is the gateway of network {}", network.name)),
                // Guests of a routed network may have any address: each is a subnet of its own.
                (_, Mode::Bridge | Mode::Routed) => Ok(()),
                (IpAddr::V4(ip), Mode::Nat | Mode::Internal) => network.check_guest4(*ip),
                (IpAddr::V6(ip), Mode::Nat | Mode::Internal) => network.check_guest6(*ip),
            }
            .map_err(|e| e.of("ip="))?;
        }
        Ok(())
    }

    /// Why `self` and `other` cannot be on `network` together, if they cannot: where the switch itself forwards by
    /// address, an address or prefix leads to one guest.
    pub fn conflicts(&self, other: &Self, network: &NetworkSpec) -> Option<String> {
        if network.mode == Mode::Bridge || self.network != other.network {
            return None;
        }
        if let Some(ip) = self.ip.iter().find(|ip| other.ip.contains(ip)) {
            return Some(format!(
                "ip={ip} is port {}'s on network {}: give each its own",
                other.name, network.name
            ));
        }
        // There may be many of both.
        let others: HashSet<&IpNetwork> = other.routes.iter().collect();
        let route = self.routes.iter().find(|route| others.contains(route))?;
        Some(format!(
            "routes={route} is port {}'s on network {}: give each its own",
            other.name, network.name
        ))
    }

    /// What this port takes of the host for itself; no other network or port may have it.
    pub fn claims(&self) -> Vec<Claim> {
        vec![match &self.kind {
            Kind::VhostUser(path) | Kind::Stream(path) | Kind::Dgram(path) => Claim::Socket(path.clone()),
            Kind::Tap(name) | Kind::Netdev(name) => Claim::Interface(name.clone()),
        }]
    }
}

fn join(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A port while it is being described: each key is checked when it is set, their agreement by [`Self::build`].
#[derive(Clone, Debug)]
pub struct PortDraft {
    spec: PortSpec,
    /// `role=`, `remote=` or `queues=` was given, even when it is the default.
    given: Vec<&'static str>,
}

impl PortDraft {
    /// A port of that kind with the defaults of every key.
    ///
    /// # Errors
    /// A name is not possible, or the kind.
    pub fn new(network: &str, name: &str, kind: &str) -> Result<Self, ModelError> {
        check_name("network", network)?;
        check_name("port", name)?;
        let kind = Kind::parse(kind, name).map_err(|e| e.of(format_args!("port {name}")))?;
        let spec = PortSpec {
            network: network.to_owned(),
            name: name.to_owned(),
            kind,
            role: Role::default(),
            remote: None,
            queues: 1,
            mac: None,
            ip: Vec::new(),
            routes: Vec::new(),
            mtu: None,
            vlan: None,
            isolated: false,
            antispoof: false,
            rate: None,
        };
        Ok(Self { spec, given: Vec::new() })
    }

    /// Sets one key from its word.
    ///
    /// # Errors
    /// There is no such key, or its value is not possible.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ModelError> {
        self.assign(key, value).map_err(|e| e.of(format_args!("{key}=")))
    }

    /// Sets one key back to its default.
    pub(super) fn clear(&mut self, key: &str) -> Result<(), ModelError> {
        let spec = &mut self.spec;
        match key {
            "mac" => spec.mac = None,
            "ip" => spec.ip.clear(),
            "routes" => spec.routes.clear(),
            "mtu" => spec.mtu = None,
            "vlan" => spec.vlan = None,
            "isolated" => spec.isolated = false,
            "antispoof" => spec.antispoof = false,
            "rate" => spec.rate = None,
            _ => return Err(ModelError::new(format!("{key}= has no default to go back to"))),
        }
        Ok(())
    }

    fn assign(&mut self, key: &str, value: &str) -> Result<(), ModelError> {
        let spec = &mut self.spec;
        match key {
            "role" => {
                spec.role = parse_choice(value, &[("server", Role::Server), ("client", Role::Client)])?;
                self.given.push("role");
            }
            "remote" => {
                check_socket_path(value)?;
                spec.remote = Some(PathBuf::from(value));
                self.given.push("remote");
            }
            "queues" => {
                spec.queues = parse_number(value, 1..=QUEUES_MAX)?;
                self.given.push("queues");
            }
            "mac" => spec.mac = Some(parse_mac(value)?),
            "ip" => spec.ip = parse_ips(value)?,
            "routes" => spec.routes = parse_routes(value)?,
            "mtu" => spec.mtu = Some(parse_number(value, MTU_MIN..=MTU_MAX)?),
            "vlan" => spec.vlan = Some(parse_vlan(value)?),
            "isolated" => spec.isolated = parse_switch(value)?,
            "antispoof" => spec.antispoof = parse_switch(value)?,
            "rate" => spec.rate = Some(value.parse()?),
            _ => return Err(ModelError::new("a port has no such key; see weft help port add")),
        }
        Ok(())
    }

    /// The port, if its keys agree.
    ///
    /// # Errors
    /// A key does not go with the kind, or two keys contradict each other; with the port's name in front.
    pub fn build(self) -> Result<PortSpec, ModelError> {
        let spec = self.spec;
        let error = |why: String| Err(ModelError::new(format!("port {}: {why}", spec.name)));
        let goes = |key: &str| match key {
            "role" => matches!(spec.kind, Kind::VhostUser(_) | Kind::Stream(_)),
            "remote" => matches!(spec.kind, Kind::Dgram(_)),
            _ => matches!(spec.kind, Kind::VhostUser(_) | Kind::Tap(_)),
        };
        if let Some(key) = self.given.iter().find(|key| !goes(key)) {
            return error(format!("{key}= does not go with kind {}: leave it out", spec.kind.word()));
        }
        if let Kind::Dgram(path) = &spec.kind {
            match &spec.remote {
                None => {
                    return error(
                        "kind dgram needs the path of the peer's socket: give remote=PATH".to_owned(),
                    );
                }
                Some(remote) if remote == path => {
                    return error("remote= is the port's own socket: give the peer's".to_owned());
                }
                Some(_) => {}
            }
        }
        if spec.antispoof && spec.mac.is_none() && spec.ip.is_empty() {
            return error("antispoof=on has nothing to hold the guest to: give mac= or ip= too".to_owned());
        }
        let reached = |route: &&IpNetwork| {
            spec.mac.is_some() || spec.ip.iter().any(|ip| ip.is_ipv4() == route.is_ipv4())
        };
        if let Some(route) = spec.routes.iter().find(|route| !reached(route)) {
            return error(format!("routes={route}: it is not said by which address: give ip= or mac= too"));
        }
        Ok(spec)
    }
}

impl From<PortSpec> for PortDraft {
    fn from(spec: PortSpec) -> Self {
        Self { spec, given: Vec::new() }
    }
}

fn parse_ips(value: &str) -> Result<Vec<IpAddr>, ModelError> {
    let mut ips = Vec::new();
    for text in value.split(',') {
        let error = |why: &str| Err(ModelError::new(format!("{} {why}", shown(text))));
        let Ok(ip) = text.parse::<IpAddr>() else { return error("is not an IP address") };
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast {
            return error("is not an address that a guest may have");
        }
        if ips.contains(&ip) {
            return error("is given twice");
        }
        if ips.len() == IPS_MAX {
            return error(&format!("is one too many, a port has at most {IPS_MAX} addresses"));
        }
        ips.push(ip);
    }
    Ok(ips)
}

fn parse_routes(value: &str) -> Result<Vec<IpNetwork>, ModelError> {
    let (mut routes, mut given) = (Vec::new(), HashSet::new());
    for text in value.split(',') {
        let error = |why: &str| Err(ModelError::new(format!("{} {why}", shown(text))));
        let route = text.contains('/').then(|| text.parse::<IpNetwork>().ok()).flatten();
        let Some(route) = route else { return error("is not a prefix such as 10.8.0.0/16") };
        let (network, prefix) = (route.network(), route.prefix());
        if route.ip() != network {
            return error(&format!("is an address in a prefix: the prefix is {network}/{prefix}"));
        }
        let reserved = match network {
            IpAddr::V4(ip) => matches!(ip.octets(), [0 | 127 | 224.., ..]),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local(),
        };
        if prefix == 0 || reserved {
            return error("is not a prefix that can be behind a guest");
        }
        if !given.insert(route) {
            return error("is given twice");
        }
        if routes.len() == ROUTES_MAX {
            return error(&format!("is one too many, a port has at most {ROUTES_MAX} routes"));
        }
        routes.push(route);
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, words: &[(&str, &str)]) -> Result<PortSpec, String> {
        PortSpec::from_words("lan", "vif1.0", kind, words.iter().copied()).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let spec = parse("vhost-user:/run/weft/a.sock", &[]).unwrap();
        assert_eq!((spec.role, spec.queues, spec.mtu, spec.isolated), (Role::Server, 1, None, false));
        assert_eq!(spec.words(), []);
        assert_eq!(spec.kind.to_string(), "vhost-user:/run/weft/a.sock");
        assert_eq!(
            spec,
            parse("vhost-user:/run/weft/a.sock", &[("role", "server"), ("queues", "1")]).unwrap()
        );
        assert_eq!(parse("tap", &[]).unwrap().kind, Kind::Tap("vif1.0".to_owned()));
        let stream = parse("stream:/run/weft/a.sock", &[("role", "client")]).unwrap();
        assert_eq!(
            (stream.kind.to_string().as_str(), stream.role),
            ("stream:/run/weft/a.sock", Role::Client)
        );
        let dgram = parse("dgram:/run/weft/a.sock", &[("remote", "/run/vms/a.sock")]).unwrap();
        assert_eq!(dgram.words(), [("remote", "/run/vms/a.sock".to_owned())]);
        assert_eq!(dgram.claims(), [Claim::Socket("/run/weft/a.sock".into())]);
    }

    #[test]
    fn every_key_of_this_version() {
        let words = [
            ("role", "client"),
            ("queues", "16"),
            ("mac", "00:16:3E:01:02:03"),
            ("ip", "10.0.0.2,fd00::2"),
            ("routes", "10.8.0.0/16,fd08::/48"),
            ("mtu", "1400"),
            ("vlan", "100"),
            ("isolated", "on"),
            ("antispoof", "on"),
            ("rate", "10Mb/s"),
        ];
        let spec = parse("vhost-user:/a", &words).unwrap();
        assert_eq!((spec.role, spec.queues), (Role::Client, 16));
        assert_eq!(spec.mac.unwrap().to_string(), "00:16:3e:01:02:03");
        assert_eq!(spec.ip.len(), 2);
        assert_eq!((spec.mtu, spec.vlan.map(Vid::get)), (Some(1400), Some(100)));
        assert!(spec.isolated && spec.antispoof);
        assert_eq!(spec.rate.unwrap().bytes_per_s(), 1_250_000);
        let again = spec.words();
        let again =
            PortSpec::from_words("lan", "vif1.0", "vhost-user:/a", again.iter().map(|(k, v)| (*k, &**v)));
        assert_eq!(again.unwrap(), spec);
    }

    #[test]
    fn what_is_refused_and_how() {
        let tap = "tap:t0";
        let vhost = "vhost-user:/a";
        for (kind, words, why) in [
            ("vhost-user", &[][..], "needs a socket's path"),
            ("vhost-user:", &[], "is empty"),
            ("vhost-user:a.sock", &[], "not absolute"),
            (&*format!("vhost-user:/{}", "x".repeat(107)), &[], "108 bytes"),
            ("tap:", &[], "is empty"),
            ("tap:sixteen_bytes___", &[], "16 bytes"),
            ("netdev:a b", &[], "not possible in it"),
            ("stream", &[], "needs a socket's path: stream:/run/weft/vif1.0.sock"),
            ("stream:s.sock", &[], "not absolute"),
            ("stream:/s", &[("queues", "2")], "queues= does not go with kind stream"),
            ("stream:/s", &[("remote", "/t")], "remote= does not go with kind stream"),
            (tap, &[("remote", "/t")], "remote= does not go with kind tap"),
            ("dgram:/d", &[], "give remote=PATH"),
            ("dgram:/d", &[("remote", "/d")], "remote= is the port's own socket"),
            ("dgram:/d", &[("remote", "d")], "not absolute"),
            (&*format!("dgram:/{}", "x".repeat(107)), &[("remote", "/d")], "108 bytes"),
            ("dgram:/d", &[("remote", &*format!("/{}", "x".repeat(107)))], "108 bytes"),
            ("dgram:/d", &[("remote", "/e"), ("role", "client")], "role= does not go with kind dgram"),
            ("memif:/x", &[], "is no port kind"),
            ("", &[], "is no port kind"),
            (vhost, &[("role", "both")], "'both' is not one of server, client"),
            (tap, &[("role", "server")], "role= does not go with kind tap"),
            ("netdev:e0", &[("queues", "1")], "queues= does not go with kind netdev"),
            (vhost, &[("queues", "0")], "from 1 to 16"),
            (vhost, &[("queues", "17")], "from 1 to 16"),
            (tap, &[("mac", "01:00:00:00:00:00")], "group address"),
            (tap, &[("ip", "10.0.0.300")], "not an IP address"),
            (tap, &[("ip", "10.0.0.1,,")], "'' is not an IP address"),
            (tap, &[("ip", "10.0.0.1,10.0.0.1")], "given twice"),
            (tap, &[("ip", "224.0.0.1")], "not an address that a guest may have"),
            (tap, &[("ip", "255.255.255.255")], "not an address that a guest may have"),
            (tap, &[("ip", "::")], "not an address that a guest may have"),
            (tap, &[("mtu", "1")], "from 68 to 65535"),
            (tap, &[("vlan", "4095")], "from 1 to 4094"),
            (tap, &[("vlan", "0")], "from 1 to 4094"),
            (tap, &[("isolated", "1")], "neither 'on' nor 'off'"),
            (tap, &[("antispoof", "on")], "give mac= or ip= too"),
            (tap, &[("rate", "fast")], "write it as 10Mb/s"),
            (tap, &[("uplink", "eth0")], "no such key"),
            (tap, &[("routes", "10.8.0.0")], "not a prefix such as"),
            (tap, &[("routes", "10.8.0.0/33")], "not a prefix such as"),
            (tap, &[("routes", "10.8.0.1/16")], "the prefix is 10.8.0.0/16"),
            (tap, &[("routes", "0.0.0.0/0")], "not a prefix that can be behind a guest"),
            (tap, &[("routes", "ff00::/8")], "not a prefix that can be behind a guest"),
            (tap, &[("routes", "10.8.0.0/16,10.8.0.0/16")], "given twice"),
            (tap, &[("routes", "10.8.0.0/16")], "give ip= or mac= too"),
            (tap, &[("routes", "fd08::/48"), ("ip", "10.0.0.2")], "give ip= or mac= too"),
        ] {
            let message = parse(kind, words).unwrap_err();
            assert!(message.contains(why), "{kind} {words:?}: {message}");
            assert!(message.starts_with("port vif1.0: ") && !message.contains('\n'), "{message}");
        }
        assert!(
            PortSpec::from_words("no/net", "p", tap, []).unwrap_err().to_string().starts_with("network name")
        );
        assert!(PortSpec::from_words("net", "-p", tap, []).unwrap_err().to_string().starts_with("port name"));
        let many: Vec<_> = (0..65).map(|n| format!("10.0.1.{n}")).collect();
        assert!(parse(tap, &[("ip", &many.join(","))]).unwrap_err().contains("at most 64"));
    }

    #[test]
    fn a_port_has_so_many_routes_and_not_one_more() {
        let list = |count: u32| {
            let prefix = |n| format!("{}/32", std::net::Ipv4Addr::from_bits(0x0a00_0000 + n));
            (0..count).map(prefix).collect::<Vec<_>>().join(",")
        };
        let (most, more) = (list(131_072), list(131_073));
        let spec = parse("tap:t0", &[("ip", "192.0.2.2"), ("routes", &most)]).unwrap();
        assert_eq!(spec.routes.len(), 131_072);
        let why = "routes=: '10.2.0.0/32' is one too many, a port has at most 131072 routes";
        let refused = parse("tap:t0", &[("ip", "192.0.2.2"), ("routes", &more)]);
        assert_eq!(refused.unwrap_err(), format!("port vif1.0: {why}"));
        // What is refused leaves a port as it was, that one too which had none.
        let bare = parse("tap:t0", &[("ip", "192.0.2.2")]).unwrap();
        for spec in [spec, bare] {
            let mut draft = PortDraft::from(spec.clone());
            assert_eq!(draft.set("routes", &more).unwrap_err().to_string(), why);
            assert_eq!(draft.build().unwrap(), spec);
        }
    }

    #[test]
    fn ports_and_their_networks() {
        let network = |text: &str| {
            NetworkSpec::from_words("lan", text.split(' ').filter_map(|word| word.split_once('='))).unwrap()
        };
        let bridge = network("mode=bridge");
        let nat = network("mode=nat subnet=10.0.0.0/24 egress=host");
        let nat6 = network("mode=nat subnet=10.0.0.0/24 subnet6=fd00::/64 egress=host");
        let routed = network("mode=routed subnet=10.0.0.0/24 subnet6=fd00::/64");
        let bare = network("mode=routed");
        let internal = network("mode=internal subnet=10.0.0.0/24 dns=on");
        let isle = network("mode=internal");
        for (network, key, value, why) in [
            (&bridge, "vlan", "7", None),
            (&internal, "vlan", "7", None),
            (&nat, "vlan", "7", Some("vlan=7: network lan is a nat network: it has no VLANs")),
            (&routed, "vlan", "7", Some("vlan=7: network lan is a routed network: it has no VLANs")),
            (&routed, "routes", "10.8.0.0/16", None),
            (&bridge, "routes", "10.8.0.0/16", Some("network lan is a bridge: only a routed one has them")),
            (&nat, "routes", "10.8.0.0/16", Some("only a routed one has them")),
            (&isle, "routes", "10.8.0.0/16", Some("only a routed one has them")),
            (&bridge, "ip", "192.0.2.1", None),
            (&bare, "ip", "192.0.2.1", None),
            (&isle, "ip", "192.0.2.1,fd00::7", None),
            (&routed, "ip", "192.0.2.1,2001:db8::1", None),
            (&routed, "ip", "10.0.0.1", Some("10.0.0.1 is the gateway of network lan")),
            (&routed, "ip", "fd00::1", Some("fd00::1 is the gateway of network lan")),
            (&nat, "ip", "10.0.0.2", None),
            (&nat, "ip", "10.0.0.2,fe80::2", None),
            (&nat, "ip", "10.0.0.1", Some("10.0.0.1 is the gateway of network lan")),
            (&nat, "ip", "10.0.0.255", Some("which no host has")),
            (&nat, "ip", "10.0.1.2", Some("10.0.1.2 is not in 10.0.0.0/24, the subnet of network lan")),
            (&nat, "ip", "fd00::2", Some("needs a subnet6=, which network lan has not")),
            (&nat6, "ip", "10.0.0.2,fd00::2", None),
            (&nat6, "ip", "fd00:0:0:1::2", Some("is not in fd00::/64, the subnet6 of network lan")),
            (&nat6, "ip", "fd00::", Some("which is every router's")),
            (&nat6, "mtu", "1279", Some("IPv6 needs 1280 bytes or more")),
            (&nat6, "mtu", "1280", None),
            (&internal, "ip", "10.0.0.9", None),
            (&internal, "ip", "10.0.0.1", Some("is the gateway")),
            (&internal, "ip", "10.9.0.9", Some("is not in 10.0.0.0/24")),
        ] {
            let words = [(key, value), ("mac", "00:16:3e:00:00:01")];
            let fits = PortSpec::from_words("lan", "vif1.0", "tap", words).unwrap().fits(network);
            match why {
                None => assert_eq!(fits, Ok(()), "{key}={value} on {network:?}"),
                Some(why) => {
                    let message = fits.unwrap_err().to_string();
                    assert!(message.starts_with("port vif1.0: ") && message.contains(why), "{message}");
                }
            }
        }

        let port = |name: &str, words: [(&'static str, &'static str); 2]| {
            PortSpec::from_words("lan", name, "tap", words).unwrap()
        };
        let a = port("a", [("ip", "192.0.2.1"), ("routes", "10.8.0.0/16")]);
        let b = port("b", [("ip", "192.0.2.2,192.0.2.1"), ("vlan", "7")]);
        let c = port("c", [("mac", "00:16:3e:00:00:01"), ("routes", "10.8.0.0/16")]);
        assert!(a.conflicts(&b, &routed).unwrap().contains("ip=192.0.2.1 is port b's on network lan"));
        assert!(a.conflicts(&c, &routed).unwrap().contains("routes=10.8.0.0/16 is port c's on network lan"));
        assert_eq!((b.conflicts(&c, &routed), a.conflicts(&b, &bridge)), (None, None));
    }
}
