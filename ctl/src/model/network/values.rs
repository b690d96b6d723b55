//! Values of a network's keys: subnets, ranges, addresses, names.

use super::{DHCP_MAX, Dhcp, Egress, StaticRoute};
use crate::model::{ModelError, check_interface, shown};
use ipnetwork::{Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The longest name of a domain, in bytes (RFC 1035, 2.3.4, as text).
const DOMAIN_MAX: usize = 253;
/// The longest label of a domain's name, in bytes (RFC 1035, 2.3.4).
const LABEL_MAX: usize = 63;
/// The longest boot file name, in bytes: the `file` field of RFC 2131 less its NUL.
const BOOT_FILE_MAX: usize = 127;
/// What fits into every message that tells guests of them.
const DNS_SERVERS_MAX: usize = 4;
const STATIC_ROUTES_MAX: usize = 16;

fn error(text: &str, why: impl AsRef<str>) -> ModelError {
    ModelError::new(format!("{} {}", shown(text), why.as_ref()))
}

pub(super) fn parse_as<T: FromStr>(value: &str, what: &str) -> Result<T, ModelError> {
    value.parse().map_err(|_| error(value, format!("is not {what}")))
}

/// An address and a prefix; the prefix is always there.
fn parse_cidr<T: FromStr>(value: &str, what: &str) -> Result<T, ModelError> {
    match value.contains('/') {
        true => parse_as(value, what),
        false => Err(error(value, format!("is not {what}"))),
    }
}

pub(super) fn parse_subnet(value: &str) -> Result<Ipv4Network, ModelError> {
    let subnet: Ipv4Network = parse_cidr(value, "an IPv4 subnet such as 192.168.122.0/24")?;
    check_no_host_bits(value, subnet.ip() == subnet.network(), &subnet.network(), subnet.prefix())?;
    if !(8..=30).contains(&subnet.prefix()) {
        return Err(error(value, "is not possible: a subnet has a prefix from /8 to /30"));
    }
    if !is_unicast4(subnet.network()) {
        return Err(error(value, "is not a subnet that hosts may have"));
    }
    Ok(subnet)
}

pub(super) fn parse_subnet6(value: &str) -> Result<Ipv6Network, ModelError> {
    let subnet: Ipv6Network = parse_cidr(value, "an IPv6 subnet such as fd00:1::/64")?;
    check_no_host_bits(value, subnet.ip() == subnet.network(), &subnet.network(), subnet.prefix())?;
    // Guests configure themselves in a /64 and in nothing else (RFC 4862, 5.5.3); longer prefixes are for guests that
    // are configured by hand, and a shorter one is not a link's.
    if !(64..=126).contains(&subnet.prefix()) {
        return Err(error(
            value,
            "is not possible: a subnet has /64, or up to /126 without autoconfiguration",
        ));
    }
    if !is_unicast6(subnet.network()) || subnet.network().is_unicast_link_local() {
        return Err(error(value, "is not a subnet that hosts may have"));
    }
    Ok(subnet)
}

fn check_no_host_bits(
    value: &str,
    none: bool,
    network: &impl std::fmt::Display,
    prefix: u8,
) -> Result<(), ModelError> {
    match none {
        true => Ok(()),
        false => Err(error(value, format!("is an address in a subnet: the subnet is {network}/{prefix}"))),
    }
}

/// An address of the switch's own on an uplink, with its subnet's prefix.
pub(super) fn parse_address(value: &str) -> Result<Ipv4Network, ModelError> {
    let address: Ipv4Network = parse_cidr(value, "an IPv4 address with its prefix such as 203.0.113.2/24")?;
    // All addresses of a /31 and a /32 are hosts' (RFC 3021).
    let host =
        address.prefix() >= 31 || address.ip() != address.network() && address.ip() != address.broadcast();
    if !host || !is_unicast4(address.ip()) || address.prefix() == 0 {
        return Err(error(value, "is not the address of a host"));
    }
    Ok(address)
}

pub(super) fn parse_address6(value: &str) -> Result<Ipv6Network, ModelError> {
    let address: Ipv6Network = parse_cidr(value, "an IPv6 address with its prefix such as 2001:db8::2/64")?;
    // The first address of a subnet is every router's (RFC 4291, 2.6.1), but for those of two (RFC 6164).
    let host = address.prefix() >= 127 || address.ip() != address.network();
    let global = is_unicast6(address.ip()) && !address.ip().is_unicast_link_local();
    if !host || !global || address.prefix() == 0 {
        return Err(error(value, "is not the address of a host"));
    }
    Ok(address)
}

pub(super) fn parse_host4(value: &str) -> Result<Ipv4Addr, ModelError> {
    let ip: Ipv4Addr = parse_as(value, "an IPv4 address")?;
    if is_unicast4(ip) { Ok(ip) } else { Err(error(value, "is not the address of a host")) }
}

pub(super) fn parse_host6(value: &str) -> Result<Ipv6Addr, ModelError> {
    let ip: Ipv6Addr = parse_as(value, "an IPv6 address")?;
    if is_unicast6(ip) { Ok(ip) } else { Err(error(value, "is not the address of a host")) }
}

pub(super) fn parse_gateway(value: &str) -> Result<Ipv4Addr, ModelError> {
    if value.parse::<Ipv6Addr>().is_ok() {
        return Err(error(
            value,
            "is not an IPv4 address: the IPv6 gateway is the first address of subnet6=",
        ));
    }
    parse_host4(value)
}

/// Neither zero's or loopback's network, nor multicast, nor reserved (RFC 6890).
fn is_unicast4(ip: Ipv4Addr) -> bool {
    !matches!(ip.octets()[0], 0 | 127 | 224..)
}

fn is_unicast6(ip: Ipv6Addr) -> bool {
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && ip.to_ipv4_mapped().is_none()
}

pub(super) fn parse_dhcp(value: &str) -> Result<Dhcp, ModelError> {
    if value == "off" {
        return Ok(Dhcp::Off);
    }
    let range = value.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match range {
        Some((first, last)) if first <= last => {
            if u32::from(last) - u32::from(first) >= DHCP_MAX {
                return Err(error(value, format!("has more than {DHCP_MAX} addresses, which is the most")));
            }
            Ok(Dhcp::Range(first, last))
        }
        Some(_) => Err(error(value, "ends before it starts")),
        None => Err(error(value, "is neither 'off' nor a range such as 192.168.122.100-192.168.122.254")),
    }
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The name of a domain in small letters: labels of letters, digits and hyphens, the last one no number (RFC 1123, 2.1).
pub(in crate::model) fn parse_domain(value: &str) -> Result<String, ModelError> {
    let number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let last = value.rsplit('.').next().unwrap_or_default();
    if value.len() <= DOMAIN_MAX && value.split('.').all(is_label) && !number(last) {
        return Ok(value.to_ascii_lowercase());
    }
    Err(error(value, "is not a domain name"))
}

/// A host's name without its domain, in small letters.
pub(in crate::model) fn parse_label(value: &str) -> Result<String, ModelError> {
    match is_label(value) {
        true => Ok(value.to_ascii_lowercase()),
        false => {
            Err(error(value, "is not a host's name: letters, digits and '-', at most 63, without a domain"))
        }
    }
}

pub(super) fn parse_egress(value: &str) -> Result<Egress, ModelError> {
    match value.split_once(':') {
        Some(("uplink", interface)) => {
            check_interface(interface)?;
            Ok(Egress::Uplink(interface.to_owned()))
        }
        None if value == "user" => Ok(Egress::User),
        None if value == "host" => Ok(Egress::Host),
        _ => Err(error(value, "is not one of user, host, uplink:IFNAME")),
    }
}

/// A list with commas, of at most `max`, without repetitions.
fn parse_list<T: PartialEq>(
    value: &str,
    max: usize,
    parse: impl Fn(&str) -> Result<T, ModelError>,
) -> Result<Vec<T>, ModelError> {
    let mut items = Vec::new();
    for text in value.split(',') {
        let item = parse(text)?;
        if items.contains(&item) {
            return Err(error(text, "is given twice"));
        }
        if items.len() == max {
            return Err(error(text, format!("is one too many: at most {max} are possible")));
        }
        items.push(item);
    }
    Ok(items)
}

pub(super) fn parse_dns_servers(value: &str) -> Result<Vec<IpAddr>, ModelError> {
    parse_list(value, DNS_SERVERS_MAX, |text| {
        let ip: IpAddr = parse_as(text, "an IP address")?;
        // A resolver on the host itself is as good as any: 127.0.0.53 is where systemd's listens.
        let host = match ip {
            IpAddr::V4(v4) => is_unicast4(v4) || v4.is_loopback(),
            IpAddr::V6(v6) => is_unicast6(v6) || v6.is_loopback(),
        };
        if host { Ok(ip) } else { Err(error(text, "is not the address of a host")) }
    })
}

pub(super) fn parse_static_routes(value: &str) -> Result<Vec<StaticRoute>, ModelError> {
    parse_list(value, STATIC_ROUTES_MAX, |text| {
        let form = || error(text, "is not a route such as 10.8.0.0/16@192.168.122.2");
        let (destination, router) = text.split_once('@').ok_or_else(form)?;
        let destination: Ipv4Network = parse_cidr(destination, "an IPv4 prefix").map_err(|_| form())?;
        let router = router.parse().map_err(|_| form())?;
        let network = destination.network();
        check_no_host_bits(text, destination.ip() == network, &network, destination.prefix())?;
        if !is_unicast4(network) && destination.prefix() != 0 {
            return Err(error(text, "leads to no hosts"));
        }
        Ok(StaticRoute { destination, router })
    })
}

pub(super) fn parse_boot_file(value: &str) -> Result<String, ModelError> {
    if value.is_empty() || value.len() > BOOT_FILE_MAX {
        return Err(error(value, format!("has {} bytes, 1 to {BOOT_FILE_MAX} are possible", value.len())));
    }
    if !value.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(error(value, "has a character in it that is not printable ASCII"));
    }
    Ok(value.to_owned())
}
