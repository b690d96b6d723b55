//! A network with a gateway, of a daemon in a namespace of its own, and stations on it: namespaces with an interface
//! that has no address yet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, DaemonOptions, DhcpClient, DhcpProgram, Netns, eventually};
use serde_json::Value;

/// The network's name, and that of the host's interface on it.
pub(crate) const LAN: &str = "lan0";
/// How long anything may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);
/// The network's IPv4 subnet begins with this.
pub(crate) const SUBNET: &str = "10.9.0";
/// The gateway.
pub(crate) const GATEWAY: &str = "10.9.0.1";

/// A mode whose networks have a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Routed,
    Nat,
    Internal,
}

impl Mode {
    pub(crate) const ALL: [Mode; 3] = [Mode::Routed, Mode::Nat, Mode::Internal];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Routed => "routed",
            Mode::Nat => "nat",
            Mode::Internal => "internal",
        }
    }

    /// The keys of such a network.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Mode::Routed => "mode=routed subnet=10.9.0.0/24",
            Mode::Nat => "mode=nat egress=host subnet=10.9.0.0/24",
            Mode::Internal => "mode=internal subnet=10.9.0.0/24",
        }
    }
}

pub(crate) struct Lan {
    pub(crate) host: Netns,
    pub(crate) daemon: Daemon,
}

impl Lan {
    /// With network [`LAN`] of these keys.
    pub(crate) fn new(words: &str) -> Result<Self> {
        let host = Netns::new("host")?;
        let daemon = Daemon::start_in(&host)?;
        daemon.ok(&format!("net add {LAN} {words}"))?;
        Ok(Lan { host, daemon })
    }

    /// With what a configuration file says. Interfaces that it names come from `prepare`.
    pub(crate) fn configured(config: &str, prepare: impl FnOnce(&Netns) -> Result<()>) -> Result<Self> {
        let host = Netns::new("host")?;
        prepare(&host)?;
        let daemon = DaemonOptions::default().netns(&host).config(config).start()?;
        Ok(Lan { host, daemon })
    }

    /// A station on [`LAN`] whose interface is a tap of the daemon's. Port and interface have the name `port`.
    pub(crate) fn station(&self, port: &str, keys: &str) -> Result<Station> {
        let station = Station { namespace: Netns::new(port)?, interface: port.to_string() };
        self.daemon.ok(&format!("port add {LAN} {port} tap:{port} {keys}"))?;
        station.take(&self.host, None)?;
        self.daemon.await_port(port, "up")?;
        Ok(station)
    }

    /// As [`Lan::station`], with an Ethernet address of the test's choice.
    pub(crate) fn station_with_mac(&self, port: &str, keys: &str, mac: &str) -> Result<Station> {
        let station = Station { namespace: Netns::new(port)?, interface: port.to_string() };
        self.daemon.ok(&format!("port add {LAN} {port} tap:{port} {keys}"))?;
        station.take(&self.host, Some(mac))?;
        self.daemon.await_port(port, "up")?;
        Ok(station)
    }

    /// What `lease list --json` says.
    pub(crate) fn leases(&self) -> Result<Vec<Lease>> {
        let list = self.daemon.json("lease list")?;
        list.as_array().context("lease list is no array")?.iter().map(Lease::parse).collect()
    }

    /// The lease of an Ethernet address, if it has one that runs.
    pub(crate) fn lease_of(&self, mac: &str) -> Result<Option<Lease>> {
        Ok(self.leases()?.into_iter().find(|lease| lease.mac == mac && lease.bound))
    }
}

/// A row of `lease list --json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) network: String,
    pub(crate) mac: String,
    pub(crate) ip: String,
    pub(crate) hostname: String,
    pub(crate) expires_s: u64,
    pub(crate) bound: bool,
}

impl Lease {
    fn parse(value: &Value) -> Result<Self> {
        let text = |key: &str| -> Result<String> {
            let text = value.get(key).and_then(Value::as_str);
            Ok(text.with_context(|| format!("no text '{key}' in {value}"))?.to_string())
        };
        let expires_s = value.get("expires_s").and_then(Value::as_u64);
        Ok(Lease {
            network: text("network")?,
            mac: text("mac")?,
            ip: text("ip")?,
            hostname: text("hostname")?,
            expires_s: expires_s.with_context(|| format!("no number 'expires_s' in {value}"))?,
            bound: text("state")? == "bound",
        })
    }
}

/// A namespace on the network.
pub(crate) struct Station {
    pub(crate) namespace: Netns,
    pub(crate) interface: String,
}

impl Station {
    /// A station with one end of a veth pair, which outlives the daemon. The other end, `interface`, is in `host`.
    pub(crate) fn veth(host: &Netns, interface: &str) -> Result<Self> {
        let station = Station { namespace: Netns::new(interface)?, interface: "eth0".to_string() };
        // The host sees the frames of a netdev port's interface, too. Without ARP it does not answer for its addresses there.
        host.run(&format!(
            "ip link add {interface} type veth peer name eth0 netns {}; ip link set {interface} up arp off",
            station.namespace.name()
        ))?;
        station.run("ip link set eth0 up")?;
        Ok(station)
    }

    /// Takes its tap out of the daemon's namespace.
    pub(crate) fn take(&self, host: &Netns, mac: Option<&str>) -> Result<()> {
        let interface = &self.interface;
        host.run(&format!("ip link set {interface} netns {}", self.namespace.name()))?;
        if let Some(mac) = mac {
            self.run(&format!("ip link set {interface} address {mac}"))?;
        }
        self.run(&format!("ip link set {interface} up"))?;
        Ok(())
    }

    pub(crate) fn run(&self, script: &str) -> Result<String> {
        self.namespace.run(script)
    }

    /// Its interface's Ethernet address.
    pub(crate) fn mac(&self) -> Result<String> {
        Ok(self.run(&format!("cat /sys/class/net/{}/address", self.interface))?.trim().to_string())
    }

    /// A DHCP client that has not run yet.
    pub(crate) fn client(&self, program: DhcpProgram, hostname: &str) -> Result<DhcpClient> {
        DhcpClient::new(program, &self.namespace, &self.interface, hostname)
    }

    /// Waits until it reaches `address`.
    pub(crate) fn await_reach(&self, address: &str) -> Result<()> {
        eventually(&format!("{}'s ping of {address}", self.namespace.name()), LIMIT, || {
            let output = self.namespace.try_run(&format!("ping -c 1 -W 1 {address}"))?;
            Ok(if output.code == 0 { Ok(()) } else { Err(output.stdout) })
        })
    }
}

/// The last number of an address of the network's subnet.
pub(crate) fn last_octet(address: &str) -> Result<u8> {
    let rest = address.strip_prefix(SUBNET).and_then(|rest| rest.strip_prefix('.'));
    let last = rest.with_context(|| format!("'{address}' is not of {SUBNET}.0/24"))?;
    last.parse().with_context(|| format!("'{address}' is no address"))
}

/// An address of the subnet from `first` to `last`.
pub(crate) fn ensure_in_range(address: &str, first: u8, last: u8) -> Result<()> {
    let octet = last_octet(address)?;
    ensure!((first..=last).contains(&octet), "{address} is not in {SUBNET}.{first}-{SUBNET}.{last}");
    Ok(())
}
