//! The small internet that the tests of translation run in, and who is in it.
//!
//! ```text
//! guests ── weft (namespace host) ── eth9 ~ wan0 ── router ── lan0 ~ eth0 ── far
//! 192.168.77.0/24           203.0.113.2   203.0.113.254  198.51.100.254  198.51.100.2
//! fd77::/64            2001:db8:1::2   2001:db8:1::fe    2001:db8:2::fe  2001:db8:2::2
//! ```
//! The outside has no route to the guests.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, DaemonOptions, Netns, Program, eventually};
use serde_json::Value;
use tempfile::TempDir;

pub(super) const GATEWAY: &str = "192.168.77.1";
pub(super) const GATEWAY6: &str = "fd77::1";
pub(super) const OUTSIDE: &str = "203.0.113.2";
pub(super) const OUTSIDE6: &str = "2001:db8:1::2";
pub(super) const ROUTER: &str = "203.0.113.254";
pub(super) const ROUTER6: &str = "2001:db8:1::fe";
pub(super) const FAR: &str = "198.51.100.2";
pub(super) const FAR6: &str = "2001:db8:2::2";

/// A network that translates on `eth9`, in both versions of IP.
pub(super) const UPLINK: &str = "mode=nat subnet=192.168.77.0/24 subnet6=fd77::/64 egress=uplink:eth9 \
    address=203.0.113.2/24 next-hop=203.0.113.254 address6=2001:db8:1::2/64 next-hop6=2001:db8:1::fe";

/// How long a busy machine may take for what is waited for.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// A namespace that has IPv6.
pub(super) fn namespace(role: &str) -> Result<Netns> {
    let namespace = Netns::new(role)?;
    namespace.enable_ipv6()?;
    Ok(namespace)
}

/// The outside: a router, and what is behind it.
pub(super) struct Outside {
    pub(super) router: Netns,
    pub(super) far: Netns,
}

impl Outside {
    /// Joined to interface `eth` of `host`.
    pub(super) fn new(host: &Netns, eth: &str) -> Result<Self> {
        let (router, far) = (namespace("router")?, namespace("far")?);
        host.veth(eth, &router, "wan0", &format!("{ROUTER}/24"))?;
        router.run(&format!("ip address add {ROUTER6}/64 dev wan0"))?;
        router.veth("lan0", &far, "eth0", &format!("{FAR}/24"))?;
        router.run(
            "ip address add 198.51.100.254/24 dev lan0
             ip address add 2001:db8:2::fe/64 dev lan0
             echo 1 >/proc/sys/net/ipv4/ip_forward
             echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
        )?;
        far.run(&format!(
            "ip address add {FAR6}/64 dev eth0
             ip route add default via 198.51.100.254
             ip -6 route add default via 2001:db8:2::fe"
        ))?;
        Ok(Outside { router, far })
    }

    /// The link behind the router carries packets of at most `mtu` bytes from now on.
    pub(super) fn narrow(&self, mtu: u16) -> Result<()> {
        self.router.run(&format!("ip link set lan0 mtu {mtu}"))?;
        self.far.run(&format!("ip link set eth0 mtu {mtu}"))?;
        Ok(())
    }
}

/// The daemon, in a namespace that is joined to an outside.
pub(super) struct World {
    pub(super) daemon: Daemon,
    pub(super) host: Netns,
    pub(super) outside: Outside,
}

impl World {
    /// With a daemon that has no network yet.
    pub(super) fn new() -> Result<Self> {
        Self::start(DaemonOptions::default(), |_| Ok(()))
    }

    /// With a network `n` of these keys.
    pub(super) fn with(keys: &str) -> Result<Self> {
        let world = Self::new()?;
        world.daemon.ok(&format!("net add n {keys}"))?;
        Ok(world)
    }

    /// With a daemon started so, after `prepare` has made the host's namespace ready.
    pub(super) fn start(options: DaemonOptions, prepare: impl FnOnce(&Netns) -> Result<()>) -> Result<Self> {
        let host = namespace("host")?;
        let outside = Outside::new(&host, "eth9")?;
        prepare(&host)?;
        let daemon = options.netns(&host).start()?;
        Ok(World { daemon, host, outside })
    }

    /// A guest on a tap port of network `n`, with the address that DHCP gave it.
    pub(super) fn guest(&self, name: &str) -> Result<Inside> {
        Inside::on_tap(&self.daemon, &self.host, "n", name)
    }

    /// What `net show` tells of network `n` beside its keys.
    pub(super) fn resolved(&self, key: &str) -> Result<Value> {
        Ok(self.daemon.json("net show n")?["resolved"][key].clone())
    }
}

/// What `udhcpc` calls with what it was told.
const DHCP_SCRIPT: &str = "#!/bin/sh
case $1 in
  deconfig) ip -4 address flush dev $interface; ip link set $interface up;;
  bound|renew)
    ip -4 address flush dev $interface
    ip address add $ip/$mask dev $interface
    for r in $router; do ip route replace default via $r; done
    echo \"told ip=$ip router=$router dns=$dns\";;
esac
";

/// A guest: a namespace whose one interface is on a network.
pub(super) struct Inside {
    pub(super) namespace: Netns,
    pub(super) interface: String,
    pub(super) address: String,
    dir: TempDir,
}

impl Inside {
    /// On a new port `name` of a network, a tap of the same name.
    pub(super) fn on_tap(daemon: &Daemon, host: &Netns, network: &str, name: &str) -> Result<Self> {
        daemon.ok(&format!("port add {network} {name} tap:{name}"))?;
        let namespace = namespace(name)?;
        host.run(&format!("ip link set {name} netns {}", namespace.name()))?;
        daemon.await_port(name, "up")?;
        let mut inside = Self::of(namespace, name)?;
        inside.dhcp()?;
        Ok(inside)
    }

    /// Whose interface is in its namespace already.
    pub(super) fn of(namespace: Netns, interface: &str) -> Result<Self> {
        namespace.run(&format!("ip link set {interface} up"))?;
        let dir = tempfile::tempdir()?;
        let script = dir.path().join("dhcp.sh");
        std::fs::write(&script, DHCP_SCRIPT)?;
        namespace.run(&format!("chmod +x {}", script.display()))?;
        let interface = interface.to_string();
        Ok(Inside { namespace, interface, address: String::new(), dir })
    }

    /// Asks for an address by DHCP.
    pub(super) fn dhcp(&mut self) -> Result<()> {
        let script = self.dir.path().join("dhcp.sh");
        let told = self.run(&format!(
            "busybox udhcpc -i {} -n -q -f -t 10 -T 2 -s {}",
            self.interface,
            script.display()
        ))?;
        let ip = told.split_whitespace().find_map(|word| word.strip_prefix("ip="));
        self.address = ip.with_context(|| format!("no address: {told}"))?.to_string();
        Ok(())
    }

    /// The IPv6 address that it made of the prefix that the gateway advertises.
    pub(super) fn address6(&self) -> Result<String> {
        eventually("an address of fd77::/64 and a default route", LIMIT, || {
            let list =
                self.run(&format!("ip -6 -o address show dev {} scope global -tentative", self.interface))?;
            let found = list.split_whitespace().find(|word| word.starts_with("fd77:"));
            let route = self.run("ip -6 route show default")?;
            Ok(match found {
                Some(address) if !route.trim().is_empty() => {
                    Ok(address.split('/').next().unwrap_or_default().to_string())
                }
                _ => Err(format!("{list}{route}")),
            })
        })
    }

    /// Runs a shell script in it; what it printed.
    pub(super) fn run(&self, script: &str) -> Result<String> {
        self.namespace.run(script)
    }

    /// It reaches `to` by ICMP echo, soon, and then twice in a row.
    pub(super) fn reaches(&self, to: &str) -> Result<()> {
        eventually(&format!("ping of {to}"), LIMIT, || {
            let output = self.namespace.try_run(&format!("ping -n -c 1 -W 2 {to}"))?;
            Ok(if output.code == 0 { Ok(()) } else { Err(output.stdout) })
        })?;
        self.run(&format!("ping -n -c 2 -i 0.2 -W 5 {to}"))?;
        Ok(())
    }
}

/// An iperf3 server in a namespace.
pub(super) fn iperf_server(namespace: &Netns) -> Result<Program> {
    let server = Program::start(namespace, "iperf3", &["-s"])?;
    eventually("iperf3's server", LIMIT, || {
        let listens = namespace.run("ss -Hltn 'sport = :5201'")?;
        Ok(if listens.trim().is_empty() { Err(server.log()) } else { Ok(()) })
    })?;
    Ok(server)
}

/// A second of iperf3 with these arguments; the bytes that the receiver got.
pub(super) fn iperf(client: &Netns, args: &str) -> Result<u64> {
    let told = client.run(&format!("iperf3 -J -t 1 --connect-timeout 10000 {args}"))?;
    let report: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
    let end = &report["end"];
    let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    let bytes = sum["bytes"].as_u64().with_context(|| format!("iperf3 {args}: {end}"))?;
    let lost = end["sum"]["lost_percent"].as_f64().unwrap_or(0.0);
    ensure!(bytes > 100_000 && lost < 50.0, "iperf3 {args}: {bytes} bytes arrived, {lost} % were lost");
    Ok(bytes)
}

/// `address` and `port`, as one word of the command line.
pub(super) fn at(address: &str, port: u16) -> String {
    match address.parse() {
        Ok(IpAddr::V6(_)) => format!("[{address}]:{port}"),
        _ => format!("{address}:{port}"),
    }
}
