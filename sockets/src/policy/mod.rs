//! Which destinations guests may reach: a look-up, asked once for each flow.
//!
//! In this order: what is closed always (loopback, what is no single host's, the guests' own subnets), what is open by
//! name of the gateway (`host_loopback`), the operator's rules, the first that matches; and what no rule is about is open,
//! but for the address of clouds' metadata services, which only a rule of that very address opens.
//!
//! A rule may name a destination by its DNS name. Its addresses are those that the network's own gateway told guests
//! ([`Control::learn`](crate::Control::learn)): so a name is what it was to the guest that asked.

mod names;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnetwork::IpNetwork;
use switch_core::Instant;
use switch_core::ip::error::is_host;

use names::Names;

/// What a flow speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo, of either family. The port is zero.
    Echo,
}

/// Which destinations a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All.
    Any,
    /// Those of a prefix.
    Prefix(IpNetwork),
    /// Those of a name, in small letters and without a dot at its end.
    Name(String),
    /// Those of all names below one.
    Below(String),
}

/// A rule of the outbound filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether what it is about may be reached.
    pub allow: bool,
    /// Which destinations it is about.
    pub target: Target,
    /// Which ports; without them all, and echo, which has none.
    pub ports: Option<RangeInclusive<u16>>,
}

/// The outbound filter. See the module's text.
#[derive(Debug, Default)]
pub struct Policy {
    closed: Vec<IpNetwork>,
    open: Vec<IpAddr>,
    rules: Vec<Rule>,
    names: Mutex<Names>,
    /// The latest instant that it was told of, in nanoseconds.
    latest: AtomicU64,
}

/// The address of clouds' metadata services.
const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

impl Policy {
    /// A filter. `closed` are prefixes that nothing goes to: the guests' own subnets, as the host's addresses of the same
    /// numbers are others. `open` are addresses in them that do mean something outside: the gateway's.
    pub fn new(closed: Vec<IpNetwork>, open: Vec<IpAddr>, rules: Vec<Rule>) -> Self {
        Self { closed, open, rules, ..Self::default() }
    }

    /// Takes up what another filter knows of names, as far as this one has rules about them.
    pub fn adopt(&self, other: &Self) {
        self.tell(Instant::from_nanos(other.latest.load(Ordering::Relaxed)));
        let theirs = other.lock();
        for (name, ip, until) in theirs.iter() {
            if self.is_named(name) {
                self.lock().insert(self.now(), name, ip, until);
            }
        }
    }

    /// Tells what time it is.
    #[inline]
    pub(crate) fn tell(&self, now: Instant) {
        self.latest.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.latest.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any rule is about names.
    pub fn follows_names(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.target, Target::Name(_) | Target::Below(_)))
    }

    /// Whether any rule is about a name.
    fn is_named(&self, name: &str) -> bool {
        self.rules.iter().any(|rule| names_it(&rule.target, name))
    }

    /// Takes note that the gateway told a guest that `name` has the address `ip`, for `ttl` from now on. A name that no
    /// rule is about is not kept.
    pub(crate) fn learn(&self, name: &str, ip: IpAddr, ttl: Duration) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if self.is_named(&name) {
            let now = self.now();
            self.lock().insert(now, &name, ip, now + ttl.clamp(names::TTL_MIN, names::TTL_MAX));
        }
    }

    /// Whether guests' packets to an address come to the router: it is a single host's, of no subnet of theirs, and not of
    /// one link alone.
    pub(crate) fn is_beyond(&self, ip: IpAddr) -> bool {
        let of_a_link = matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
        is_host(ip) && is_outside(ip) && !of_a_link && !self.closed.iter().any(|net| net.contains(ip))
    }

    /// Whether a flow to `destination`, as the guest names it, may begin.
    pub fn permits(&self, protocol: Protocol, destination: SocketAddr) -> bool {
        let ip = destination.ip();
        let to_gateway = self.open.contains(&ip);
        if !to_gateway && (!is_outside(ip) || self.closed.iter().any(|net| net.contains(ip))) {
            return false;
        }
        let metadata = ip == METADATA_V4 || ip == METADATA_V6;
        let matches = |rule: &&Rule| {
            let port = match &rule.ports {
                None => true,
                Some(ports) => protocol != Protocol::Echo && ports.contains(&destination.port()),
            };
            port && match &rule.target {
                Target::Any => !(metadata && rule.allow),
                Target::Prefix(net) if metadata && rule.allow => net.ip() == ip && is_one(*net),
                Target::Prefix(net) => net.contains(ip),
                target => {
                    !(metadata && rule.allow)
                        && self.lock().has(self.now(), ip, |name| names_it(target, name))
                }
            }
        };
        self.rules.iter().find(matches).map_or(!metadata, |rule| rule.allow)
    }
}

/// Whether a prefix is a single address.
fn is_one(net: IpNetwork) -> bool {
    net.prefix() == if net.is_ipv4() { 32 } else { 128 }
}

/// Whether a target is about a name.
fn names_it(target: &Target, name: &str) -> bool {
    match target {
        Target::Any | Target::Prefix(_) => false,
        Target::Name(wanted) => wanted == name,
        Target::Below(domain) => {
            name.strip_suffix(&**domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        }
    }
}

/// Whether an address is that of a single host which is not this one by its loopback.
fn is_outside(ip: IpAddr) -> bool {
    match ip {
        // "This network" is the host itself to Linux, as 0.0.0.0 is.
        IpAddr::V4(ip) => !matches!(ip.octets()[0], 0 | 127) && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => {
            // ::/96 and ::ffff:0:0/96 have IPv4 addresses in them, the host's own among them.
            let embedded = ip.to_ipv4().is_some();
            !embedded && !ip.is_multicast() && !ip.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, target: Target, ports: Option<RangeInclusive<u16>>) -> Rule {
        Rule { allow, target, ports }
    }

    fn prefix(text: &str) -> Target {
        Target::Prefix(text.parse().unwrap())
    }

    fn permits(policy: &Policy, to: &str) -> bool {
        let address = to.parse().unwrap();
        assert_eq!(policy.permits(Protocol::Tcp, address), policy.permits(Protocol::Udp, address), "{to}");
        policy.permits(Protocol::Udp, address)
    }

    #[test]
    fn what_is_no_host_of_the_outside_is_closed_whatever_the_rules() {
        let closed = vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let gateway: IpAddr = "10.0.0.1".parse().unwrap();
        let rules = vec![rule(true, Target::Any, None)];
        let policy = Policy::new(closed, vec![gateway], rules);
        for to in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "0.0.0.0:1",
            "0.1.2.3:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "10.0.0.2:1",
        ] {
            assert!(!permits(&policy, to), "{to}");
        }
        for to in [
            "[::1]:1",
            "[::]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
            "[::ffff:127.0.0.1]:1",
            "[::127.0.0.1]:1",
            "[fd00::2]:1",
        ] {
            assert!(!permits(&policy, to), "{to}");
        }
        for to in ["10.0.0.1:1", "10.0.1.1:1", "192.0.2.1:1", "[2001:db8::1]:1"] {
            assert!(permits(&policy, to), "{to}");
        }
    }

    #[test]
    fn who_is_beyond_the_router() {
        let closed = vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let policy = Policy::new(closed, vec!["10.0.0.1".parse().unwrap()], vec![]);
        for (ip, beyond) in [
            ("192.0.2.1", true),
            ("10.0.1.1", true),
            ("2001:db8::1", true),
            ("fd01::1", true),
            ("10.0.0.1", false),
            ("10.0.0.9", false),
            ("fd00::9", false),
            ("127.0.0.1", false),
            ("169.254.7.7", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::ffff:192.0.2.1", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(policy.is_beyond(ip.parse().unwrap()), beyond, "{ip}");
        }
    }

    #[test]
    fn metadata_is_opened_by_its_very_address_alone() {
        for target in [Target::Any, prefix("169.254.0.0/16"), prefix("0.0.0.0/0")] {
            let policy = Policy::new(vec![], vec![], vec![rule(true, target, None)]);
            assert!(!permits(&policy, "169.254.169.254:80") && permits(&policy, "169.254.1.1:80"));
        }
        let open = |text: &str| Policy::new(vec![], vec![], vec![rule(true, prefix(text), Some(80..=80))]);
        assert!(permits(&open("169.254.169.254/32"), "169.254.169.254:80"));
        assert!(!permits(&open("169.254.169.254/32"), "169.254.169.254:81"));
        assert!(permits(&open("fd00:ec2::254/128"), "[fd00:ec2::254]:80"));
        assert!(!permits(&open("fd00:ec2::/64"), "[fd00:ec2::254]:80"));
    }

    #[test]
    fn the_first_rule_that_matches_holds() {
        let policy = Policy::new(
            vec![],
            vec![],
            vec![
                rule(true, prefix("10.1.2.3/32"), Some(443..=443)),
                rule(false, prefix("10.0.0.0/8"), None),
                rule(false, Target::Any, Some(25..=26)),
            ],
        );
        for (to, open) in [
            ("10.1.2.3:443", true),
            ("10.1.2.3:80", false),
            ("10.2.0.1:443", false),
            ("192.0.2.1:24", true),
            ("192.0.2.1:25", false),
            ("192.0.2.1:26", false),
            ("[2001:db8::1]:25", false),
        ] {
            assert_eq!(permits(&policy, to), open, "{to}");
        }
        // Echo has no port.
        let ping = |to: &str| policy.permits(Protocol::Echo, SocketAddr::new(to.parse().unwrap(), 0));
        assert!(!ping("10.1.2.3") && ping("192.0.2.1"));
    }

    #[test]
    fn names_are_what_the_gateway_said_for_as_long_as_it_said() {
        let rules = vec![
            rule(false, Target::Name("bad.example.org".into()), None),
            rule(true, Target::Below("example.org".into()), Some(443..=443)),
            rule(false, Target::Any, None),
        ];
        let policy = Policy::new(vec![], vec![], rules.clone());
        let at = |seconds| Instant::ORIGIN + Duration::from_secs(seconds);
        policy.tell(at(1000));
        let learn =
            |name: &str, ip: &str, ttl| policy.learn(name, ip.parse().unwrap(), Duration::from_secs(ttl));
        learn("WWW.Example.ORG.", "192.0.2.1", 300);
        learn("www.example.org", "2001:db8::1", 1);
        learn("bad.example.org", "192.0.2.2", 300);
        learn("example.org", "192.0.2.3", 300);
        learn("www.badexample.org", "192.0.2.4", 300);
        learn("www.example.org", "127.0.0.1", 300);
        for (to, open) in [
            ("192.0.2.1:443", true),
            ("192.0.2.1:80", false),
            ("[2001:db8::1]:443", true),
            ("192.0.2.2:443", false),
            ("192.0.2.3:443", false),
            ("192.0.2.4:443", false),
            ("127.0.0.1:443", false),
        ] {
            assert_eq!(permits(&policy, to), open, "{to}");
        }
        // A short time to live has a floor; after all of it, a name is nobody's.
        policy.tell(at(1059));
        assert!(permits(&policy, "[2001:db8::1]:443"));
        policy.tell(at(1061));
        assert!(!permits(&policy, "[2001:db8::1]:443") && permits(&policy, "192.0.2.1:443"));
        // Another filter takes up what it has rules about.
        let next = Policy::new(vec![], vec![], rules);
        next.adopt(&policy);
        assert!(permits(&next, "192.0.2.1:443"));
        policy.tell(at(1301));
        assert!(!permits(&policy, "192.0.2.1:443"));
    }
}
