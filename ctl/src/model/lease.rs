//! What an operator tells a network's gateway of single guests: addresses reserved for them, and names in its DNS.

use super::network::{parse_domain, parse_label};
use super::{ModelError, NetworkSpec, check_name, parse_mac, shown};
use std::fmt;
use std::net::IpAddr;
use switch_core::MacAddr;

/// An address that is kept for one guest: `MAC IP [HOSTNAME]`. A guest may have one of each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSpec {
    /// The network.
    pub network: String,
    /// Whom it is kept for.
    pub mac: MacAddr,
    /// The address, given by DHCP or DHCPv6.
    pub ip: IpAddr,
    /// The name that the guest is told, and that the gateway's DNS answers for it; in small letters.
    pub hostname: Option<String>,
}

impl LeaseSpec {
    /// A reservation from its words.
    ///
    /// # Errors
    /// A word is not possible.
    pub fn from_words(
        network: &str,
        mac: &str,
        ip: &str,
        hostname: Option<&str>,
    ) -> Result<Self, ModelError> {
        check_name("network", network)?;
        let of = |e: ModelError| e.of(format_args!("lease on {network}"));
        let mac = parse_mac(mac).map_err(of)?;
        let ip =
            ip.parse().map_err(|_| of(ModelError::new(format!("{} is not an IP address", shown(ip)))))?;
        let hostname = hostname.map(parse_label).transpose().map_err(of)?;
        Ok(Self { network: network.to_owned(), mac, ip, hostname })
    }

    /// A reservation from one text of the same words, with spaces between them.
    ///
    /// # Errors
    /// There are too few or too many words, or one is not possible.
    pub fn from_text(network: &str, text: &str) -> Result<Self, ModelError> {
        match *text.split_ascii_whitespace().collect::<Vec<_>>() {
            [mac, ip] => Self::from_words(network, mac, ip, None),
            [mac, ip, hostname] => Self::from_words(network, mac, ip, Some(hostname)),
            _ => {
                Err(ModelError::new(format!("lease on {network}: {} is not MAC IP [HOSTNAME]", shown(text))))
            }
        }
    }

    /// Checks it with its network.
    ///
    /// # Errors
    /// The network gives no addresses of this family, or this one is not among those that its guests can have.
    pub fn fits(&self, network: &NetworkSpec) -> Result<(), ModelError> {
        let of = |e: ModelError| e.of(format_args!("lease of {}", self.mac));
        match self.ip {
            IpAddr::V4(_) if network.dhcp_range().is_none() => {
                Err(ModelError::new(format!("{}: it gives no leases", network.described())))
            }
            IpAddr::V4(ip) => network.check_guest4(ip),
            IpAddr::V6(_) if network.subnet6.is_none() => {
                Err(ModelError::new(format!("{}: it gives no IPv6 leases", network.described())))
            }
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                Err(ModelError::new(format!("{ip} is link-local: guests make such addresses themselves")))
            }
            IpAddr::V6(ip) => network.check_guest6(ip),
        }
        .map_err(of)
    }

    /// Why both cannot be on one network, if they cannot: a guest has one address of a family, an address and a name have
    /// one guest.
    pub fn conflicts(&self, other: &Self) -> Option<String> {
        let theirs = format!("of {} on network {}", other.mac, other.network);
        let same_guest = self.mac == other.mac;
        let same_name = self.hostname.is_some() && self.hostname == other.hostname;
        match () {
            () if self.network != other.network => None,
            () if same_guest && self.ip.is_ipv4() == other.ip.is_ipv4() => {
                Some(format!("{} is kept for {} already", other.ip, other.mac))
            }
            () if self.ip == other.ip => Some(format!("{} is the address {theirs} already", self.ip)),
            () if same_name && !same_guest => {
                Some(format!("{} is the name {theirs} already", self.hostname.as_deref()?))
            }
            () => None,
        }
    }
}

impl fmt::Display for LeaseSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.mac, self.ip)?;
        self.hostname.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

/// Which lease or reservation is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseKey {
    /// That of a guest.
    Mac(MacAddr),
    /// That of an address, of either family.
    Ip(IpAddr),
}

impl LeaseKey {
    /// `MAC` or `IP`.
    ///
    /// # Errors
    /// The text is neither.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        match text.parse::<MacAddr>() {
            Ok(_) => parse_mac(text).map(Self::Mac),
            Err(_) => Err(ModelError::new(format!("{} is neither a MAC nor an IP address", shown(text)))),
        }
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// A name that a network's DNS answers for: `NAME ADDR`. A name may have several addresses, each with a record of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRecord {
    /// The network.
    pub network: String,
    /// A label, which is a name in the network's domain, or a whole name; in small letters.
    pub name: String,
    /// The address.
    pub ip: IpAddr,
}

impl HostRecord {
    /// A record from one text of its words, with spaces between them.
    ///
    /// # Errors
    /// There are too few or too many words, or one is not possible.
    pub fn from_text(network: &str, text: &str) -> Result<Self, ModelError> {
        check_name("network", network)?;
        let error = |why: String| ModelError::new(format!("host on {network}: {why}"));
        let [name, ip] = *text.split_ascii_whitespace().collect::<Vec<_>>() else {
            return Err(error(format!("{} is not NAME ADDR", shown(text))));
        };
        let name = parse_domain(name).map_err(|e| error(e.to_string()))?;
        let ip: IpAddr = ip.parse().map_err(|_| error(format!("{} is not an IP address", shown(ip))))?;
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(error(format!("{ip} is not the address of a host")));
        }
        Ok(Self { network: network.to_owned(), name, ip })
    }

    /// Checks it with its network.
    ///
    /// # Errors
    /// The network's gateway answers no DNS.
    pub fn fits(&self, network: &NetworkSpec) -> Result<(), ModelError> {
        match network.dns_on() {
            true => Ok(()),
            false => Err(ModelError::new(format!(
                "host {}: {}: it answers no DNS",
                self.name,
                network.described()
            ))),
        }
    }
}

impl fmt::Display for HostRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: &str = "52:54:00:00:00:01";

    fn network(words: &[(&str, &str)]) -> NetworkSpec {
        NetworkSpec::from_words("n", words.iter().copied()).unwrap()
    }

    fn nat() -> NetworkSpec {
        network(&[("mode", "nat"), ("subnet", "192.168.122.0/24"), ("egress", "host")])
    }

    #[test]
    fn reservations() {
        let spec = LeaseSpec::from_text("n", "52:54:00:00:00:01  192.168.122.10 Web").unwrap();
        assert_eq!(spec.to_string(), "52:54:00:00:00:01 192.168.122.10 web");
        assert_eq!(spec.fits(&nat()), Ok(()));
        assert_eq!(LeaseSpec::from_text("n", &spec.to_string()).unwrap(), spec);
        for (text, why) in [
            ("", "not MAC IP [HOSTNAME]"),
            (MAC, "not MAC IP [HOSTNAME]"),
            ("52:54:00:00:00:01 10.0.0.1 a b", "not MAC IP [HOSTNAME]"),
            ("52:54:00:00:00 10.0.0.1", "not a MAC address"),
            ("ff:ff:ff:ff:ff:ff 10.0.0.1", "group address"),
            ("52:54:00:00:00:01 fd00::g", "not an IP address"),
            ("52:54:00:00:00:01 10.0.0.1 a.b", "not a host's name"),
            ("52:54:00:00:00:01 10.0.0.1 -a", "not a host's name"),
        ] {
            let message = LeaseSpec::from_text("n", text).unwrap_err().to_string();
            assert!(message.starts_with("lease on n: ") && message.contains(why), "{message}");
        }
    }

    #[test]
    fn what_a_network_cannot_lease() {
        let bridge = network(&[]);
        let internal = network(&[("mode", "internal"), ("subnet", "10.0.0.0/24")]);
        let v6 = network(&[("mode", "internal"), ("subnet6", "fd00::/64")]);
        assert_eq!(LeaseSpec::from_words("n", MAC, "fd00::2", None).unwrap().fits(&v6), Ok(()));
        for (network, ip, why) in [
            (&nat(), "192.168.123.10", "is not in 192.168.122.0/24, the subnet of network n"),
            (&nat(), "192.168.122.1", "is the gateway of network n"),
            (&nat(), "192.168.122.0", "which no host has"),
            (&nat(), "192.168.122.255", "which no host has"),
            (&nat(), "fd00::2", "network n is a nat network: it gives no IPv6 leases"),
            (&v6, "fd01::2", "is not in fd00::/64, the subnet6 of network n"),
            (&v6, "fd00::1", "is the gateway of network n"),
            (&v6, "fe80::1", "is link-local"),
            (&v6, "10.0.0.9", "network n is an internal network: it gives no leases"),
            (&bridge, "10.0.0.1", "network n is a bridge: it gives no leases"),
            (&internal, "10.0.0.7", "network n is an internal network: it gives no leases"),
        ] {
            let spec = LeaseSpec::from_words("n", MAC, ip, None).unwrap();
            let message = spec.fits(network).unwrap_err().to_string();
            assert!(
                message.starts_with("lease of 52:54:00:00:00:01: ") && message.contains(why),
                "{message}"
            );
        }
    }

    #[test]
    fn reservations_that_exclude_each_other() {
        let lease = |text: &str| LeaseSpec::from_text("n", text).unwrap();
        let spec = lease("52:54:00:00:00:01 10.0.0.1 web");
        for (other, why) in [
            ("52:54:00:00:00:01 10.0.0.2", Some("10.0.0.2 is kept for 52:54:00:00:00:01")),
            ("52:54:00:00:00:02 10.0.0.1", Some("10.0.0.1 is the address of 52:54:00:00:00:02")),
            ("52:54:00:00:00:02 10.0.0.2 web", Some("web is the name of 52:54:00:00:00:02")),
            ("52:54:00:00:00:02 10.0.0.2", None),
            ("52:54:00:00:00:01 fd00::1 web", None),
        ] {
            let conflict = spec.conflicts(&lease(other));
            match why {
                Some(why) => assert!(conflict.as_deref().is_some_and(|c| c.contains(why)), "{conflict:?}"),
                None => assert_eq!(conflict, None),
            }
        }
        assert_eq!(spec.conflicts(&LeaseSpec { network: "m".to_owned(), ..spec.clone() }), None);
    }

    #[test]
    fn which_lease() {
        assert_eq!(LeaseKey::parse(MAC).unwrap().to_string(), MAC);
        assert_eq!(LeaseKey::parse("fd00::1").unwrap(), LeaseKey::Ip("fd00::1".parse().unwrap()));
        for (bad, why) in [("web", "neither a MAC nor an IP"), ("00:00:00:00:00:00", "zero address")] {
            assert!(LeaseKey::parse(bad).unwrap_err().to_string().contains(why), "{bad}");
        }
    }

    #[test]
    fn names() {
        let record = HostRecord::from_text("n", "Printer.lan 192.168.122.5").unwrap();
        assert_eq!(record.to_string(), "printer.lan 192.168.122.5");
        assert_eq!(record.fits(&nat()), Ok(()));
        assert!(record.fits(&network(&[])).unwrap_err().to_string().contains("it answers no DNS"));
        for (text, why) in [
            ("printer", "not NAME ADDR"),
            ("printer 10.0.0.1 10.0.0.2", "not NAME ADDR"),
            ("10.0.0.1 printer", "not a domain name"),
            ("printer office", "not an IP address"),
            ("printer 0.0.0.0", "not the address of a host"),
        ] {
            let message = HostRecord::from_text("n", text).unwrap_err().to_string();
            assert!(message.starts_with("host on n: ") && message.contains(why), "{message}");
        }
    }
}
