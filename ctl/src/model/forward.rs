//! A port forward as an operator describes it: `PROTO LISTEN TARGET`.
//!
//! LISTEN is `[ADDR:]PORTS` and TARGET is `ADDR[:PORTS]`; PORTS is a port, a range `8000-8010`, or a list of both with
//! commas. The ports of the target stand in the order of those that are listened on, and may be left out when more than
//! one is listened on: then they are the same. `source=keep` may follow.

use super::value::parse_number;
use super::{Mode, ModelError, NetworkSpec, check_name, shown};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use switch_core::napt;

/// The most ports and ranges in one list.
const RUNS_MAX: usize = 64;

/// The protocol of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Ports that follow one another, forwarded to as many that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRun {
    /// The first port to listen on, not zero.
    pub listen: u16,
    /// The port of the target that it becomes, not zero.
    pub target: u16,
    /// How many, at least 1; both last ports are at most 65535.
    pub count: u16,
}

/// What arrives for `address` at the listening ports goes to `target`, a guest of the network.
///
/// The runs are in the order of the listening ports, none of which is there twice, and no two of them could be one: equal
/// forwards are equal, however they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardSpec {
    /// The network of the target.
    pub network: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The address to listen on, of the target's family; `None` is every address of the outside.
    pub address: Option<IpAddr>,
    /// The guest that they go to.
    pub target: IpAddr,
    /// The ports; at least one run.
    pub runs: Vec<PortRun>,
    /// `source=keep`: the guest is to see its clients' own addresses. Without it, it sees the gateway where the host's
    /// sockets listen (`egress=user`), and its clients' addresses elsewhere.
    pub keeps_source: bool,
}

/// A first port and how many.
type Run = (u16, u16);

impl ForwardSpec {
    /// A forward from its words.
    ///
    /// # Errors
    /// A word is not possible, or there are not as many ports to go to as to listen on.
    pub fn from_words(network: &str, protocol: &str, listen: &str, target: &str) -> Result<Self, ModelError> {
        check_name("network", network)?;
        let error = |why: String| ModelError::new(format!("forward on {network}: {why}"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(error(format!("{} is neither tcp nor udp", shown(protocol)))),
        };
        let (address, ports) = split_listen(listen).ok_or_else(|| {
            error(format!("{} is not [ADDR:]PORT, nor a range or list of ports", shown(listen)))
        })?;
        let from = parse_ports(ports).map_err(|why| error(format!("{} {why}", shown(listen))))?;
        let many = from.len() > 1 || from.iter().any(|(_, count)| *count > 1);
        let wrong =
            || error(format!("{} is not ADDR:PORT, nor with a range or list of ports", shown(target)));
        let (guest, ports) =
            split_target(target).filter(|(_, ports)| many || ports.is_some()).ok_or_else(wrong)?;
        let to = match ports {
            Some(ports) => parse_ports(ports).map_err(|why| error(format!("{} {why}", shown(target))))?,
            None => from.clone(),
        };
        if !is_guest(guest) {
            return Err(wrong());
        }
        if address.is_some_and(|address| address.is_ipv4() != guest.is_ipv4()) {
            return Err(error(format!("{listen} and {target} are not of the same family")));
        }
        let (listening, going) = (total(&from), total(&to));
        if listening != going {
            return Err(error(format!("{listening} ports of {listen} cannot go to {going} of {target}")));
        }
        let (network, runs) = (network.to_owned(), pair(&from, &to));
        Ok(Self { network, protocol, address, target: guest, runs, keeps_source: false })
    }

    /// The same with what its key `source=` says, if it is there.
    ///
    /// # Errors
    /// It says something else than `keep`.
    pub fn with_source(mut self, source: Option<&str>) -> Result<Self, ModelError> {
        self.keeps_source = match source {
            None => false,
            Some("keep") => true,
            Some(other) => {
                let why = format!("forward on {}: source={} is not source=keep", self.network, shown(other));
                return Err(ModelError::new(why));
            }
        };
        Ok(self)
    }

    /// A forward from one text of the same words, with spaces between them, and `source=keep` behind them perhaps.
    ///
    /// # Errors
    /// There are not three words, or one is not possible.
    pub fn from_text(network: &str, text: &str) -> Result<Self, ModelError> {
        match *text.split_ascii_whitespace().collect::<Vec<_>>() {
            [protocol, listen, target] => Self::from_words(network, protocol, listen, target),
            [protocol, listen, target, key] if key.starts_with("source=") => {
                Self::from_words(network, protocol, listen, target)?.with_source(key.strip_prefix("source="))
            }
            _ => {
                let why = format!(
                    "forward on {network}: {} is not PROTO LISTEN TARGET, nor that with source=keep",
                    shown(text)
                );
                Err(ModelError::new(why))
            }
        }
    }

    /// Whether both lead the same ports to the same place, whatever the guest is to see.
    pub fn is_same_way(&self, other: &Self) -> bool {
        *self == Self { keeps_source: self.keeps_source, ..other.clone() }
    }

    /// The listening end as it is written.
    pub fn listen(&self) -> String {
        let ports = join(self.runs.iter().map(|run| (run.listen, run.count)));
        self.address.map_or(ports.clone(), |address| with_ports(address, &ports))
    }

    /// The end that it goes to as it is written.
    pub fn target(&self) -> String {
        with_ports(self.target, &join(self.runs.iter().map(|run| (run.target, run.count))))
    }

    /// The same for a translator, one for each run of ports.
    pub fn parts(&self) -> impl Iterator<Item = napt::Forward> {
        self.runs.iter().map(|run| napt::Forward {
            protocol: match self.protocol {
                Protocol::Tcp => napt::Protocol::Tcp,
                Protocol::Udp => napt::Protocol::Udp,
            },
            address: self.address,
            port: run.listen,
            count: run.count,
            target: SocketAddr::new(self.target, run.target),
        })
    }

    /// Checks it with its network.
    ///
    /// # Errors
    /// The network translates nothing, or none of its guests can have the address.
    pub fn fits(&self, network: &NetworkSpec) -> Result<(), ModelError> {
        let of = |e: ModelError| e.of(format_args!("forward {} {}", self.protocol.as_str(), self.listen()));
        if network.mode != Mode::Nat {
            return Err(of(ModelError::new(format!("{}: it has no port forwards", network.described()))));
        }
        match self.target {
            IpAddr::V4(ip) => network.check_guest4(ip),
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                Err(ModelError::new(format!("{ip} is link-local: the outside does not reach it")))
            }
            IpAddr::V6(ip) => network.check_guest6(ip),
        }
        .map_err(of)
    }

    /// The first port that both listen on, if there is one: they cannot be together on one outside.
    pub fn conflicts(&self, other: &Self) -> Option<u16> {
        let same_address = match (self.address, other.address) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.target.is_ipv4() == other.target.is_ipv4(),
        };
        if !same_address || self.protocol != other.protocol {
            return None;
        }
        let last = |run: &PortRun| run.listen.saturating_add(run.count - 1);
        let shared = |ours: &PortRun| {
            let theirs = other.runs.iter().find(|t| t.listen <= last(ours) && ours.listen <= last(t))?;
            Some(ours.listen.max(theirs.listen))
        };
        self.runs.iter().find_map(shared)
    }
}

impl fmt::Display for ForwardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} to {} on {}", self.protocol.as_str(), self.listen(), self.target(), self.network)?;
        if self.keeps_source { f.write_str(" with source=keep") } else { Ok(()) }
    }
}

/// `PORTS`, `:PORTS`, `ADDR:PORTS` or `[ADDR]:PORTS`.
fn split_listen(text: &str) -> Option<(Option<IpAddr>, &str)> {
    match split_address(text) {
        Some((address, Some(ports))) => Some((Some(address), ports)),
        Some((_, None)) => None,
        None => {
            let ports = text.strip_prefix(':').unwrap_or(text);
            ports
                .starts_with(|c: char| c.is_ascii_digit())
                .then_some((None, ports))
                .filter(|_| !ports.contains(':'))
        }
    }
}

fn split_target(text: &str) -> Option<(IpAddr, Option<&str>)> {
    split_address(text)
}

/// An address, in brackets if it has colons in it, and what follows its colon.
fn split_address(text: &str) -> Option<(IpAddr, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address = IpAddr::V6(address.parse::<Ipv6Addr>().ok()?);
        return match rest {
            "" => Some((address, None)),
            _ => Some((address, Some(rest.strip_prefix(':')?))),
        };
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, None));
    }
    let (address, ports) = text.split_once(':')?;
    Some((IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), Some(ports)))
}

fn is_guest(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback()
}

/// Ports and ranges with commas, in the order in which they are written.
fn parse_ports(text: &str) -> Result<Vec<Run>, String> {
    let mut runs: Vec<Run> = Vec::new();
    for part in text.split(',') {
        let number = |text: &str| parse_number::<u16>(text, 1..=u16::MAX).ok();
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!("is not [ADDR:]PORT: {} is no port or range of ports", shown(part)));
        };
        let Some(count) = last.checked_sub(first).map(|more| more.saturating_add(1)) else {
            return Err(format!("has a range that ends before it starts: {}", shown(part)));
        };
        let end = |run: &Run| run.0.saturating_add(run.1 - 1);
        if let Some(twice) = runs.iter().find(|run| run.0 <= last && first <= end(run)) {
            return Err(format!("has port {} twice", twice.0.max(first)));
        }
        if runs.len() == RUNS_MAX {
            return Err(format!("has more than {RUNS_MAX} ports and ranges"));
        }
        runs.push((first, count));
    }
    Ok(runs)
}

fn total(runs: &[Run]) -> u32 {
    runs.iter().map(|(_, count)| u32::from(*count)).sum()
}

/// The runs of both, cut where one of them is cut, in the order of the listening ports, and joined where they can be.
fn pair(from: &[Run], to: &[Run]) -> Vec<PortRun> {
    let mut cut = Vec::new();
    let mut to = to.iter().copied();
    let mut left: Run = (0, 0);
    for &(mut listen, mut count) in from {
        while count > 0 {
            if left.1 == 0 {
                // As many as `from` has in total, so there is one.
                let Some(next) = to.next() else { break };
                left = next;
            }
            let n = count.min(left.1);
            cut.push(PortRun { listen, target: left.0, count: n });
            // At the end of all ports there is nothing behind, and nothing left to need it.
            listen = listen.saturating_add(n);
            left = (left.0.saturating_add(n), left.1 - n);
            count -= n;
        }
    }
    cut.sort_unstable_by_key(|run| run.listen);
    let mut runs: Vec<PortRun> = Vec::new();
    for run in cut {
        match runs.last_mut() {
            Some(last) if follows(last, &run) => last.count += run.count,
            _ => runs.push(run),
        }
    }
    runs
}

fn follows(last: &PortRun, run: &PortRun) -> bool {
    let after = |port: u16| port.checked_add(last.count);
    after(last.listen) == Some(run.listen) && after(last.target) == Some(run.target)
}

fn join(runs: impl Iterator<Item = Run>) -> String {
    let run = |(first, count): Run| match count {
        1 => first.to_string(),
        _ => format!("{first}-{}", first.saturating_add(count - 1)),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

fn with_ports(address: IpAddr, ports: &str) -> String {
    match address {
        IpAddr::V4(ip) => format!("{ip}:{ports}"),
        IpAddr::V6(ip) => format!("[{ip}]:{ports}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(protocol: &str, listen: &str, target: &str) -> Result<ForwardSpec, String> {
        ForwardSpec::from_words("virbr0", protocol, listen, target).map_err(|e| e.to_string())
    }

    #[test]
    fn forwards() {
        let spec = parse("tcp", "8080", "192.168.122.10:80").unwrap();
        assert_eq!(
            (spec.address, &*spec.runs),
            (None, &[PortRun { listen: 8080, target: 80, count: 1 }][..])
        );
        assert_eq!(spec.to_string(), "tcp 8080 to 192.168.122.10:80 on virbr0");
        for (listen, target, listen_again, target_again) in [
            (":53", "10.0.0.1:53", "53", "10.0.0.1:53"),
            ("127.0.0.1:53", "10.0.0.1:53", "127.0.0.1:53", "10.0.0.1:53"),
            ("[::1]:53", "[fd00::1]:53", "[::1]:53", "[fd00::1]:53"),
            ("443,80", "10.0.0.1", "80,443", "10.0.0.1:80,443"),
            ("80,443", "10.0.0.1:8080,8443", "80,443", "10.0.0.1:8080,8443"),
            ("80,81", "10.0.0.1:8080-8081", "80-81", "10.0.0.1:8080-8081"),
            ("8000-8010", "10.0.0.1:9000-9010", "8000-8010", "10.0.0.1:9000-9010"),
            ("8000-8010", "10.0.0.1", "8000-8010", "10.0.0.1:8000-8010"),
            ("80,8000-8010", "fd00::1", "80,8000-8010", "[fd00::1]:80,8000-8010"),
            ("[::1]:80,443", "[fd00::1]", "[::1]:80,443", "[fd00::1]:80,443"),
            ("1-65535", "10.0.0.1", "1-65535", "10.0.0.1:1-65535"),
            ("65534-65535", "10.0.0.1:1,65535", "65534,65535", "10.0.0.1:1,65535"),
        ] {
            let spec = parse("udp", listen, target).unwrap();
            assert_eq!((&*spec.listen(), &*spec.target()), (listen_again, target_again), "{listen} {target}");
            assert_eq!(parse("udp", &spec.listen(), &spec.target()).unwrap(), spec);
        }
        let parts: Vec<_> = parse("tcp", "80,8000-8001", "10.0.0.1").unwrap().parts().collect();
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[1].port, parts[1].count, parts[1].target.port()), (8000, 2, 8000));
    }

    #[test]
    fn what_is_refused_and_how() {
        for (proto, listen, target, why) in [
            ("sctp", "1", "10.0.0.1:1", "neither tcp nor udp"),
            ("tcp", "0", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "host:1", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "10.0.0.1", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "1:2", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "::1:80", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "65536", "10.0.0.1:1", "not [ADDR:]PORT"),
            ("tcp", "80,", "10.0.0.1", "not [ADDR:]PORT"),
            ("tcp", "1-", "10.0.0.1", "not [ADDR:]PORT"),
            ("tcp", "9-8", "10.0.0.1", "ends before it starts"),
            ("tcp", "80,80", "10.0.0.1", "has port 80 twice"),
            ("tcp", "80-90,85", "10.0.0.1", "has port 85 twice"),
            ("tcp", "80,81", "10.0.0.1:90,90", "has port 90 twice"),
            ("tcp", "1", "10.0.0.1", "not ADDR:PORT"),
            ("tcp", "1", "fd00::1", "not ADDR:PORT"),
            ("tcp", "1", "10.0.0.1:0", "no port or range"),
            ("tcp", "1", "10.0.0.1:", "no port or range"),
            ("tcp", "1", "0.0.0.0:1", "not ADDR:PORT"),
            ("tcp", "1", "127.0.0.1:1", "not ADDR:PORT"),
            ("tcp", "1", "web:1", "not ADDR:PORT"),
            ("tcp", "80,443", "10.0.0.1:80", "2 ports of 80,443 cannot go to 1 of 10.0.0.1:80"),
            ("tcp", "80-89", "10.0.0.1:80-90", "10 ports of 80-89 cannot go to 11"),
            ("tcp", "[::1]:80", "10.0.0.1:80", "not of the same family"),
        ] {
            let message = parse(proto, listen, target).unwrap_err();
            assert!(message.contains(why), "{listen} {target}: {message}");
            assert!(message.starts_with("forward on virbr0: "), "{message}");
        }
        let many: Vec<_> = (1..=65).map(|n| (n * 2).to_string()).collect();
        assert!(parse("tcp", &many.join(","), "10.0.0.1").unwrap_err().contains("more than 64"));
        let message = ForwardSpec::from_text("virbr0", "tcp 80").unwrap_err().to_string();
        assert!(message.contains("'tcp 80' is not PROTO LISTEN TARGET"), "{message}");
        for (text, why) in [
            ("tcp 80 10.0.0.1:80 source=drop", "forward on virbr0: source='drop' is not source=keep"),
            ("tcp 80 10.0.0.1:80 source=", "is not source=keep"),
            ("tcp 80 10.0.0.1:80 keep", "is not PROTO LISTEN TARGET"),
            ("tcp 80 10.0.0.1:80 source=keep source=keep", "is not PROTO LISTEN TARGET"),
        ] {
            let message = ForwardSpec::from_text("virbr0", text).unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn the_clients_address_is_kept_where_it_is_asked_for() {
        let plain = ForwardSpec::from_text("n", "tcp 80 10.0.0.2:80").unwrap();
        let kept = ForwardSpec::from_text("n", "tcp  80 10.0.0.2:80 source=keep").unwrap();
        assert!(!plain.keeps_source && kept.keeps_source && plain != kept);
        assert_eq!(kept, plain.clone().with_source(Some("keep")).unwrap());
        assert_eq!(kept.to_string(), "tcp 80 to 10.0.0.2:80 on n with source=keep");
        assert!(kept.is_same_way(&plain) && plain.is_same_way(&kept));
        assert_eq!(plain.conflicts(&kept), Some(80));
        let other = ForwardSpec::from_text("n", "tcp 80 10.0.0.3:80").unwrap();
        assert!(!other.is_same_way(&plain));
    }

    #[test]
    fn forwards_and_their_networks() {
        let network = |words: &[(&str, &str)]| NetworkSpec::from_words("n", words.iter().copied()).unwrap();
        let nat = network(&[
            ("mode", "nat"),
            ("subnet", "10.0.0.0/24"),
            ("egress", "host"),
            ("subnet6", "fd00::/64"),
        ]);
        let routed = network(&[("mode", "routed"), ("subnet", "10.0.0.0/24")]);
        for (network, target, why) in [
            (&nat, "10.0.0.2:80", None),
            (&nat, "[fd00::2]:80", None),
            (&nat, "10.0.1.2:80", Some("is not in 10.0.0.0/24")),
            (&nat, "10.0.0.1:80", Some("is the gateway")),
            (&nat, "[fd01::2]:80", Some("is not in fd00::/64")),
            (&nat, "[fe80::2]:80", Some("is link-local")),
            (&routed, "10.0.0.2:80", Some("network n is a routed network: it has no port forwards")),
        ] {
            let fits = ForwardSpec::from_words("n", "tcp", "80", target).unwrap().fits(network);
            match why {
                None => assert_eq!(fits, Ok(()), "{target}"),
                Some(why) => assert!(fits.unwrap_err().to_string().contains(why), "{target}"),
            }
        }
    }

    #[test]
    fn forwards_that_exclude_each_other() {
        for (a, b, shared) in [
            ("tcp 80 10.0.0.1:1", "tcp 80 10.0.0.2:1", Some(80)),
            ("tcp 80 10.0.0.1:1", "udp 80 10.0.0.2:1", None),
            ("tcp 80 10.0.0.1:1", "tcp 1.2.3.4:80 10.0.0.2:1", Some(80)),
            ("tcp 1.2.3.5:80 10.0.0.1:1", "tcp 1.2.3.4:80 10.0.0.2:1", None),
            ("tcp 80 10.0.0.1:1", "tcp 80 [fd00::1]:1", None),
            ("tcp 70-90 10.0.0.1", "tcp 1,85-95 10.0.0.2", Some(85)),
            ("tcp 70-84 10.0.0.1", "tcp 1,85-95 10.0.0.2", None),
        ] {
            let forward = |text: &str| ForwardSpec::from_text("n", text).unwrap();
            assert_eq!(forward(a).conflicts(&forward(b)), shared, "{a} and {b}");
            assert_eq!(forward(b).conflicts(&forward(a)), shared, "{b} and {a}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(listen in "[0-9:,\\-\\[\\].]{0,20}", target in "(10.0.0.1|\\[::2\\]|\\PC{0,3}):?[0-9,\\-]{0,20}") {
            if let Ok(spec) = parse("tcp", &listen, &target) {
                prop_assert_eq!(parse("tcp", &spec.listen(), &spec.target()).unwrap(), spec);
            }
        }

        #[test]
        fn every_port_goes_where_a_list_of_single_ports_would_send_it(
            from in prop::sample::subsequence((1_u16..60).collect::<Vec<_>>(), 1..30).prop_shuffle(),
            shift in 0_u16..5000,
        ) {
            let text = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
            let to: Vec<_> = from.iter().map(|port| port + shift).collect();
            let spec = parse("tcp", &text(&from), &format!("10.0.0.1:{}", text(&to))).unwrap();
            let mut told: Vec<_> = from.iter().copied().zip(to).collect();
            told.sort_unstable();
            let done: Vec<_> = spec.runs.iter().flat_map(|r| (0..r.count).map(|n| (r.listen + n, r.target + n))).collect();
            prop_assert_eq!(done, told);
        }
    }
}
