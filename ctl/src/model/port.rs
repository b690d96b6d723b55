//! A port as an operator describes it.

use super::later::check_now;
use super::value::{MTU_MAX, MTU_MIN, parse_choice, parse_mac, parse_number, parse_switch, parse_vlan};
use super::words::Claim;
use super::{ModelError, Rate, check_interface, check_name, check_socket_path, shown};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use switch_core::{MacAddr, Vid};

const QUEUES_MAX: u16 = 16;
const IPS_MAX: usize = 64;

/// What is at the other end of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VM's virtio-net over the vhost-user protocol; the socket's absolute path.
    VhostUser(PathBuf),
    /// A tap whose fd the switch holds.
    Tap(String),
    /// An interface that exists.
    Netdev(String),
    /// QEMU's `-netdev stream`; the socket's absolute path.
    Stream(PathBuf),
}

impl Kind {
    /// `KIND[:ARG]`, for the port `port`: a tap or netdev without an argument has the port's name.
    ///
    /// # Errors
    /// There is no such kind, its argument is not possible, or this version does not do it.
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
            _ => Err(ModelError::new(format!(
                "{} is no port kind: take vhost-user:PATH, tap:IFNAME or netdev:IFNAME",
                shown(text)
            ))),
        }?;
        check_now("kind", kind)?;
        Ok(parsed)
    }

    /// The kind's word, without its argument.
    pub fn word(&self) -> &'static str {
        match self {
            Self::VhostUser(_) => "vhost-user",
            Self::Tap(_) => "tap",
            Self::Netdev(_) => "netdev",
            Self::Stream(_) => "stream",
        }
    }
}

impl fmt::Display for Kind {
    /// `KIND:ARG`, as it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VhostUser(path) | Self::Stream(path) => write!(f, "{}:{}", self.word(), path.display()),
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
    /// `role=`; `Server` for kinds that have no socket.
    pub role: Role,
    /// `queues=`, 1 to 16: for vhost-user, the most queue pairs that the guest may use; 1 for kinds that have no queues.
    pub queues: u16,
    /// `mac=`: the guest's address.
    pub mac: Option<MacAddr>,
    /// `ip=`: the guest's addresses.
    pub ip: Vec<IpAddr>,
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
        push("queues", (self.queues != 1).then(|| self.queues.to_string()));
        push("mac", self.mac.map(|v| v.to_string()));
        push("ip", (!self.ip.is_empty()).then(|| join(&self.ip)));
        push("mtu", self.mtu.map(|v| v.to_string()));
        push("vlan", self.vlan.map(|v| v.to_string()));
        push("isolated", self.isolated.then(|| "on".to_owned()));
        push("antispoof", self.antispoof.then(|| "on".to_owned()));
        push("rate", self.rate.map(|v| v.to_string()));
        words
    }

    /// What this port takes of the host for itself; no other network or port may have it.
    pub fn claims(&self) -> Vec<Claim> {
        vec![match &self.kind {
            Kind::VhostUser(path) | Kind::Stream(path) => Claim::Socket(path.clone()),
            Kind::Tap(name) | Kind::Netdev(name) => Claim::Interface(name.clone()),
        }]
    }
}

fn join(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// A port while it is being described: each key is checked when it is set, their agreement by [`Self::build`].
#[derive(Clone, Debug)]
pub struct PortDraft {
    spec: PortSpec,
    /// `role=` or `queues=` was given, even when it is the default.
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
            queues: 1,
            mac: None,
            ip: Vec::new(),
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
    /// There is no such key, its value is not possible, or this version does not do it.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ModelError> {
        self.assign(key, value).map_err(|e| e.of(format_args!("{key}=")))?;
        check_now("key", key)
    }

    /// Sets one key back to its default.
    pub(super) fn clear(&mut self, key: &str) -> Result<(), ModelError> {
        let spec = &mut self.spec;
        match key {
            "mac" => spec.mac = None,
            "ip" => spec.ip.clear(),
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
            "queues" => {
                spec.queues = parse_number(value, 1..=QUEUES_MAX)?;
                self.given.push("queues");
            }
            "mac" => spec.mac = Some(parse_mac(value)?),
            "ip" => spec.ip = parse_ips(value)?,
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
        let sockets = matches!(spec.kind, Kind::VhostUser(_));
        let queues = matches!(spec.kind, Kind::VhostUser(_) | Kind::Tap(_));
        for key in self.given {
            if key == "role" && !sockets || key == "queues" && !queues {
                return error(format!("{key}= does not go with kind {}: leave it out", spec.kind.word()));
            }
        }
        if spec.antispoof && spec.mac.is_none() && spec.ip.is_empty() {
            return error("antispoof=on has nothing to hold the guest to: give mac= or ip= too".to_owned());
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
    }

    #[test]
    fn every_key_of_this_version() {
        let words = [
            ("role", "client"),
            ("queues", "16"),
            ("mac", "00:16:3E:01:02:03"),
            ("ip", "10.0.0.2,fd00::2"),
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
            ("stream:/run/s.sock", &[], "port kind stream is not in this version"),
            ("stream:s.sock", &[], "not absolute"),
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
}
