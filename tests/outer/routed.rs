//! Routed networks: guests in namespaces, each with an address of its own and whatever gateway it likes, the host, a
//! machine behind the host, and, with an uplink, the hosts of its segment.

mod neighbours;
mod paths;
mod reach;
mod traffic;
mod uplink;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, Netns, Suite, eventually};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(40);
/// The network, and its host interface.
const NET: &str = "r0";
/// The network's subnets, and the router's addresses in them.
const SUBNETS: &str = "subnet=10.7.0.0/24 subnet6=fd00:7::/64";
const ROUTER4: &str = "10.7.0.1";
const ROUTER6: &str = "fd00:7::1";
/// The host's addresses, and those of the machine behind it.
const HOST4: &str = "198.51.100.1";
const HOST6: &str = "2001:db8:f::1";
const FAR4: &str = "198.51.100.2";
const FAR6: &str = "2001:db8:f::2";

pub(crate) fn register(suite: &mut Suite) {
    reach::register(suite);
    paths::register(suite);
    neighbours::register(suite);
    traffic::register(suite);
    uplink::register(suite);
}

/// A host that does not forward, whose link `far0` leads to a machine that knows it as its router.
struct Host {
    namespace: Netns,
    far: Netns,
}

impl Host {
    fn new() -> Result<Self> {
        let (namespace, far) = (Netns::new("host")?, Netns::new("far")?);
        namespace.enable_ipv6()?;
        far.enable_ipv6()?;
        // A namespace begins with what the machine's own has.
        namespace.run("cd /proc/sys/net; echo 0 >ipv4/ip_forward; echo 0 >ipv6/conf/all/forwarding")?;
        namespace.veth("far0", &far, "eth0", &format!("{FAR4}/24"))?;
        namespace
            .run(&format!("ip address add {HOST4}/24 dev far0; ip address add {HOST6}/64 dev far0 nodad"))?;
        far.run(&format!(
            "ip address add {FAR6}/64 dev eth0 nodad
             ip route add default via {HOST4}; ip -6 route add default via {HOST6}"
        ))?;
        Ok(Host { namespace, far })
    }
}

/// A daemon on such a host, with a routed network.
struct Rig {
    daemon: Daemon,
    host: Netns,
    far: Netns,
}

impl Rig {
    /// `keys` are more of the network's.
    fn new(keys: &str) -> Result<Self> {
        let Host { namespace, far } = Host::new()?;
        let daemon = Daemon::start_in(&namespace)?;
        daemon.ok(&format!("net add {NET} mode=routed {SUBNETS} {keys}"))?;
        Ok(Rig { daemon, host: namespace, far })
    }

    /// A guest with the addresses that end in `number`.
    fn guest(&self, number: u8, keys: &str) -> Result<Guest> {
        Guest::new(&self.daemon, &self.host, number, keys)
    }

    /// What `net show` says for a key of what follows from the others.
    fn shown(&self, key: &str) -> Result<String> {
        shown(&self.daemon, key)
    }

    /// The host's routes but for those of its own links.
    fn routes(&self) -> Result<Vec<String>> {
        let table = self.host.run("ip route show table main; ip -6 route show table main")?;
        let routes = table.lines().map(str::trim).filter(|line| !line.contains("proto kernel"));
        Ok(routes.map(str::to_string).collect())
    }

    /// How many of the host's routes lead to `destination`, and are the switch's.
    fn routes_to(&self, destination: &str) -> Result<usize> {
        let ours = |line: &&String| {
            line.split_whitespace().next() == Some(destination)
                && line.contains(&format!("dev {NET} proto 87"))
        };
        Ok(self.routes()?.iter().filter(ours).count())
    }
}

/// What `net show` says for a key of what follows from the others.
fn shown(daemon: &Daemon, key: &str) -> Result<String> {
    let network = daemon.json(&format!("net show {NET}"))?;
    let value = network["resolved"].get(key);
    let value = value.with_context(|| format!("net show has no '{key}': {network}"))?;
    Ok(value.as_str().map_or_else(|| value.to_string(), str::to_string))
}

/// A guest: a namespace with a tap of the switch's, which has the name of its port.
struct Guest {
    namespace: Netns,
    number: u8,
}

impl Guest {
    fn new(daemon: &Daemon, host: &Netns, number: u8, keys: &str) -> Result<Self> {
        let interface = format!("t{number}");
        let (v4, v6) = (address4(number), address6(number));
        daemon.ok(&format!("port add {NET} {interface} tap:{interface} ip={v4},{v6} {keys}"))?;
        let guest = Self::without_addresses(host, number)?;
        // No other guest is on this link, and any address will do for a gateway: the router answers for all.
        guest.run(&format!(
            "ip address add {v4}/32 dev {interface}; ip address add {v6}/128 dev {interface}
             ip route add 192.0.2.{number} dev {interface}; ip route add default via 192.0.2.{number}
             ip -6 route add fd00:99::{number} dev {interface}; ip -6 route add default via fd00:99::{number}"
        ))?;
        Ok(guest)
    }

    /// Takes the tap of a port that was added.
    fn without_addresses(host: &Netns, number: u8) -> Result<Self> {
        let interface = format!("t{number}");
        let namespace = Netns::new(&interface)?;
        namespace.enable_ipv6()?;
        namespace.run("echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra")?;
        host.run(&format!("ip link set {interface} netns {}", namespace.name()))?;
        namespace.run(&format!("ip link set {interface} up"))?;
        Ok(Guest { namespace, number })
    }

    fn run(&self, script: &str) -> Result<String> {
        self.namespace.run(script)
    }

    fn v4(&self) -> String {
        address4(self.number)
    }

    fn v6(&self) -> String {
        address6(self.number)
    }
}

/// A guest's addresses: the number is read as decimal digits in both.
fn address4(number: u8) -> String {
    format!("10.7.0.{number}")
}

fn address6(number: u8) -> String {
    format!("fd00:7::{number}")
}

/// A machine reaches an address of either family.
fn reach(from: &Netns, to: &str) -> Result<()> {
    eventually(&format!("{}'s ping of {to}", from.name()), LIMIT, || {
        let output = from.try_run(&format!("ping -c 2 -i 0.2 -W 2 {to}"))?;
        Ok(if output.code == 0 { Ok(()) } else { Err(format!("{}{}", output.stdout, output.stderr)) })
    })
}

/// A machine does not get an answer from an address.
fn unreachable(from: &Netns, to: &str) -> Result<()> {
    let output = from.try_run(&format!("ping -c 2 -i 0.2 -W 1 {to}"))?;
    ensure!(output.code != 0, "{} is answered by {to}: {}", from.name(), output.stdout);
    Ok(())
}
