//! `outbound=`: which destinations guests of a network may reach by the host's sockets.
//!
//! A list of rules, of which the first that matches holds: `allow:TARGET[:PORTS]` or `deny:TARGET[:PORTS]`. TARGET is `*`,
//! an address, a prefix, a DNS name or `*.NAME` for all names below one; IPv6 before a port stands in brackets. PORTS is a
//! port or a range.

use super::parse_domain;
use crate::model::{ModelError, shown};
use ipnetwork::IpNetwork;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The most rules of a network.
const RULES_MAX: usize = 64;

/// What a rule of `outbound=` is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundTarget {
    /// `*`.
    Any,
    /// An address or a prefix, without host bits.
    Prefix(IpNetwork),
    /// A DNS name, in small letters.
    Name(String),
    /// All names below one.
    Below(String),
}

/// A rule of `outbound=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundRule {
    /// `allow`, or `deny`.
    pub allow: bool,
    /// What it is about.
    pub target: OutboundTarget,
    /// The ports, if it is not about all; none is zero.
    pub ports: Option<RangeInclusive<u16>>,
}

impl fmt::Display for OutboundRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allow { "allow:" } else { "deny:" })?;
        match &self.target {
            OutboundTarget::Any => f.write_str("*")?,
            OutboundTarget::Prefix(net) => {
                let text = match (net, net.prefix()) {
                    (IpNetwork::V4(net), 32) => net.ip().to_string(),
                    (IpNetwork::V6(net), 128) => net.ip().to_string(),
                    _ => net.to_string(),
                };
                match net.is_ipv6() && self.ports.is_some() {
                    true => write!(f, "[{text}]")?,
                    false => f.write_str(&text)?,
                }
            }
            OutboundTarget::Name(name) => f.write_str(name)?,
            OutboundTarget::Below(name) => write!(f, "*.{name}")?,
        }
        match &self.ports {
            None => Ok(()),
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
        }
    }
}

fn error(text: &str, why: &str) -> ModelError {
    ModelError::new(format!("{} {why}", shown(text)))
}

/// The rules of a list.
pub(super) fn parse_outbound(value: &str) -> Result<Vec<OutboundRule>, ModelError> {
    let rules: Vec<_> = value.split(',').map(parse_rule).collect::<Result<_, _>>()?;
    match rules.len() > RULES_MAX {
        true => Err(ModelError::new(format!("has more than {RULES_MAX} rules, which is the most"))),
        false => Ok(rules),
    }
}

fn parse_rule(text: &str) -> Result<OutboundRule, ModelError> {
    let form =
        || error(text, "is not a rule such as allow:10.1.2.3:443, deny:10.0.0.0/8 or allow:*.example.org");
    let (action, rest) = text.split_once(':').ok_or_else(form)?;
    let allow = match action {
        "allow" => true,
        "deny" => false,
        _ => return Err(form()),
    };
    let (target, ports) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (target, rest) = rest.split_once(']').ok_or_else(form)?;
            let ports = match rest {
                "" => None,
                _ => Some(rest.strip_prefix(':').ok_or_else(form)?),
            };
            (target, ports)
        }
        // An IPv6 address is all colons.
        None if parse_prefix(rest).is_some() => (rest, None),
        None => rest.rsplit_once(':').map_or((rest, None), |(target, ports)| (target, Some(ports))),
    };
    let ports = ports
        .map(|ports| parse_ports(ports).ok_or_else(|| error(text, "has no port or range of ports")))
        .transpose()?;
    Ok(OutboundRule { allow, target: parse_target(text, target)?, ports })
}

fn parse_target(text: &str, target: &str) -> Result<OutboundTarget, ModelError> {
    if target == "*" {
        return Ok(OutboundTarget::Any);
    }
    if let Some(net) = parse_prefix(target) {
        return match net.ip() == net.network() {
            true => Ok(OutboundTarget::Prefix(net)),
            false => Err(error(
                text,
                &format!("has an address in a prefix: the prefix is {}/{}", net.network(), net.prefix()),
            )),
        };
    }
    let name =
        |name: &str| parse_domain(name).map_err(|_| error(text, "is about no address, prefix or name"));
    match target.strip_prefix("*.") {
        Some(domain) => Ok(OutboundTarget::Below(name(domain)?)),
        None => Ok(OutboundTarget::Name(name(target)?)),
    }
}

fn parse_prefix(text: &str) -> Option<IpNetwork> {
    match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse::<IpAddr>().ok().map(IpNetwork::from),
    }
}

fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number =
        |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0 && text.bytes().all(|b| b.is_ascii_digit()));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_as_they_were_said() {
        for text in [
            "allow:*",
            "deny:*:25",
            "deny:10.0.0.0/8",
            "allow:10.1.2.3:443",
            "allow:10.1.2.0/24:8000-8010",
            "deny:2001:db8::/32",
            "deny:2001:db8::1",
            "allow:[2001:db8::1]:443",
            "allow:[2001:db8::/64]:1-65535",
            "allow:www.example.org",
            "allow:*.example.org:443",
            "deny:10.0.0.0/8,allow:10.1.2.3:443,allow:*.example.org,deny:*",
        ] {
            let rules = parse_outbound(text).unwrap();
            let told: Vec<String> = rules.iter().map(ToString::to_string).collect();
            assert_eq!(told.join(","), text);
        }
        assert_eq!(
            parse_outbound("allow:WWW.Example.org").unwrap(),
            parse_outbound("allow:www.example.org").unwrap()
        );
        assert_eq!(parse_outbound("allow:10.0.0.1/32").unwrap(), parse_outbound("allow:10.0.0.1").unwrap());
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for (text, why) in [
            ("", "is not a rule"),
            ("allow", "is not a rule"),
            ("permit:*", "is not a rule"),
            ("allow:*,", "is not a rule"),
            ("allow:", "no address, prefix or name"),
            ("allow:10.0.0.1/8", "the prefix is 10.0.0.0/8"),
            ("allow:10.0.0.0/33", "no address, prefix or name"),
            ("allow:10.0.0.1:0", "no port or range"),
            ("allow:10.0.0.1:65536", "no port or range"),
            ("allow:10.0.0.1:9-8", "no port or range"),
            ("allow:10.0.0.1:", "no port or range"),
            ("allow:10.0.0.1:+1", "no port or range"),
            ("allow:[2001:db8::1", "is not a rule"),
            ("allow:[2001:db8::1]443", "is not a rule"),
            ("allow:*example.org", "no address, prefix or name"),
            ("allow:*.*.org", "no address, prefix or name"),
            ("allow:a_b.example", "no address, prefix or name"),
        ] {
            let message = parse_outbound(text).unwrap_err().to_string();
            assert!(message.contains(why) && !message.contains('\n'), "{text:?}: {message}");
        }
        let many = vec!["deny:*"; 65].join(",");
        assert!(parse_outbound(&many).unwrap_err().to_string().contains("more than 64 rules"));
    }
}
