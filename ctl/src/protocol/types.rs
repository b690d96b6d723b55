//! The types of the interface `io.weft.Switch`; see the parent module.

use crate::model::one_line;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zlink::introspect::{self, CustomType, Type};

/// What a worker has done since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct Worker {
    /// The CPU that it runs on; absent when it is bound to none.
    pub cpu: Option<u64>,
    /// Receive queues that it serves.
    pub queues: u64,
    /// Looks at its queues.
    pub polls: u64,
    /// Looks that found nothing.
    pub polls_idle: u64,
    /// Frames received.
    pub frames: u64,
    /// Bursts received.
    pub bursts: u64,
    /// Times that it slept.
    pub sleeps: u64,
    /// Times that a queue which had been left alone said that it has work.
    pub wakeups: u64,
    /// Cycles that it was busy with bursts, from the look at a queue to the last delivery.
    pub cycles_busy: u64,
    /// Cycles that it slept. The rest of the daemon's cycles it polled in vain, or did what it was told.
    pub cycles_asleep: u64,
    /// The share of its time that it was busy with bursts lately, in thousandths: in the last second or two of
    /// traffic.
    pub busy_permille: u64,
}

/// The daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u64,
    /// Since it started, in seconds.
    pub uptime_s: u64,
    /// How many networks there are.
    pub networks: u64,
    /// How many ports there are.
    pub ports: u64,
    /// Cycles since its workers were started: of the processor's time-stamp counter, or nanoseconds where there is none.
    pub cycles: u64,
    /// How many of them there are in a second.
    pub cycles_per_s: u64,
    /// Its workers.
    pub workers: Vec<Worker>,
}

/// A network in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// bridge, routed, nat or internal.
    pub mode: String,
    /// How many ports it has, without uplink and host interface.
    pub ports: u64,
    /// up, or error with a reason.
    pub state: String,
    /// Why, with state error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The MTU in force, in bytes.
    pub mtu: u64,
    /// The interface that is its uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// The host has an interface of the network's name on it.
    pub host_if: bool,
}

/// One network: all of its list entry, and more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct NetworkDetail {
    /// Its name.
    pub name: String,
    /// bridge, routed, nat or internal.
    pub mode: String,
    /// How many ports it has, without uplink and host interface.
    pub ports: u64,
    /// up, or error with a reason.
    pub state: String,
    /// Why, with state error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The MTU in force, in bytes.
    pub mtu: u64,
    /// The interface that is its uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// The host has an interface of the network's name on it.
    pub host_if: bool,
    /// keep or move.
    pub host_address: String,
    /// The names of its ports.
    pub members: Vec<String>,
    /// What was said of it: the keys and values that make an equal network.
    pub keys: BTreeMap<String, String>,
    /// Of a network that is routed, nat or internal: what holds for it, said or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// Of a bridge: the ageing time, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ageing_s: Option<u64>,
    /// Of a bridge: how many addresses its FDB may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fdb_max: Option<u64>,
    /// Of a bridge: how many addresses its FDB holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fdb_entries: Option<u64>,
}

/// What holds for a network's gateway and its way out, whoever said it: an operator, a default, or the outside. What
/// does not apply to a network, or is not known yet, is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct Resolved {
    /// The IPv4 address of the switch's own station.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Its IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<String>,
    /// Its link address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_mac: Option<String>,
    /// The addresses that are given by DHCP, START-END.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<String>,
    /// How long a lease lasts, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_time_s: Option<u64>,
    /// Addresses that somebody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases_used: Option<u64>,
    /// Addresses that nobody has, and that are kept for nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leases_free: Option<u64>,
    /// The gateway answers DNS.
    pub dns: bool,
    /// The name servers that it asks, or that guests are told to ask when it does not answer.
    pub dns_servers: Vec<String>,
    /// user, host or uplink:IFNAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<String>,
    /// Our own address on the uplink, with its prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Our own IPv6 address on the uplink, with its prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<String>,
    /// The router behind the uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<String>,
    /// The IPv6 router behind the uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop6: Option<String>,
    /// The interface that the host has on the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_interface: Option<String>,
    /// Whether the host forwards IPv4 packets, of networks whose way out is the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<bool>,
    /// Translations that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    /// Translations that one guest may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
    /// Whether guests' pings to the outside are answered, where the outside is the host's sockets: the host may forbid it
    /// (`net.ipv4.ping_group_range`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pings: Option<bool>,
    /// What became of flows to the host's sockets, and of packets that they did not pass on, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<BTreeMap<String, u64>>,
    /// How many port forwards there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwards: Option<u64>,
}

/// A port in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its network.
    pub network: String,
    /// KIND:ARG, as it was added.
    pub kind: String,
    /// The guest's address; absent when nobody has said it.
    pub mac: Option<String>,
    /// The guest's addresses, as far as they were said.
    pub ip: Vec<String>,
    /// up (a peer is there), waiting, error or down.
    pub state: String,
    /// Why, with state error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The MTU in force, in bytes.
    pub mtu: u64,
    /// Queue pairs.
    pub queues: u64,
}

/// A ring of a vhost-user port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct Ring {
    /// Its index, as the protocol counts: even ones receive for the guest.
    pub index: u64,
    /// How many descriptors it has.
    pub size: u64,
    /// enabled, disabled or stopped.
    pub state: String,
}

/// One port: all of its list entry, and more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct PortDetail {
    /// Its name.
    pub name: String,
    /// Its network.
    pub network: String,
    /// KIND:ARG, as it was added.
    pub kind: String,
    /// The guest's address; absent when nobody has said it.
    pub mac: Option<String>,
    /// The guest's addresses, as far as they were said.
    pub ip: Vec<String>,
    /// up (a peer is there), waiting, error or down.
    pub state: String,
    /// Why, with state error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The MTU in force, in bytes.
    pub mtu: u64,
    /// Queue pairs.
    pub queues: u64,
    /// server or client, for kinds that have a socket which somebody connects to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The peer's socket, for kinds that have one of their own and one of the peer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// The VLAN that it is an access port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u64>,
    /// It reaches no other isolated port.
    pub isolated: bool,
    /// It sends only as its own addresses.
    pub antispoof: bool,
    /// Prefixes that are reached through the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// The limit on what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Names of the virtio features that were negotiated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// Its rings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rings: Option<Vec<Ring>>,
    /// Since its peer came, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<u64>,
}

/// What a port has counted. Directions are the switch's: rx comes from the guest.
///
/// Of the frames received here, `rx_frames + copies = forwarded + (their part of drops)`: see `offered`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct PortCounters {
    /// Its name.
    pub name: String,
    /// Frames received; a segment that crosses whole is one.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames delivered to it.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Copies beyond the first that flooding made of frames received here.
    pub copies: u64,
    /// Frames and copies received here that other ports took.
    pub forwarded: u64,
    /// Frames and copies of others that were offered to this port.
    pub offered: u64,
    /// Bursts that its frames were received in.
    pub rx_bursts: u64,
    /// Cycles that those bursts took, with all that was done for their frames.
    pub cycles: u64,
    /// Looks at its queues that found nothing.
    pub polls_idle: u64,
    /// Times that it woke a worker that had left it alone.
    pub wakeups: u64,
}

/// An address that a network has learned or was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct FdbEntry {
    /// The address.
    pub mac: String,
    /// Its VLAN, 0 for untagged frames.
    pub vlan: u64,
    /// The port behind which it is.
    pub port: String,
    /// Since it was last seen, in seconds.
    pub age_s: u64,
    /// It was told, and does not age or move.
    pub r#static: bool,
}

/// An address that a network has given by DHCP, or keeps for a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct Lease {
    /// The network.
    pub network: String,
    /// Who has it.
    pub mac: String,
    /// The address.
    pub ip: String,
    /// The name that the guest gave itself, or was given; may be empty.
    pub hostname: String,
    /// Until it ends, in seconds; 0 when nobody has it.
    pub expires_s: u64,
    /// bound (a guest has it) or reserved (it is kept for one that does not have it now).
    pub state: String,
    /// It is kept for this guest.
    pub r#static: bool,
}

/// A translation that a network holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct NatSession {
    /// tcp, udp or icmp.
    pub proto: String,
    /// The guest's end.
    pub inside: String,
    /// What it is translated to.
    pub outside: String,
    /// The other end.
    pub remote: String,
    /// The session's state.
    pub state: String,
    /// Since the last frame, in seconds.
    pub idle_s: u64,
}

/// A port forward.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType)]
pub struct Forward {
    /// The network of the target.
    pub network: String,
    /// tcp or udp.
    pub proto: String,
    /// `[ADDR:]PORT`, or with a range or a list of ports.
    pub listen: String,
    /// `ADDR:PORT`, or with as many ports.
    pub target: String,
    /// Whom the guest sees: `keep`, the client's own address where that can be, or `gateway`.
    pub source: String,
}

/// Why a call was not done, in the interface's own errors. Each `message` is one line for a person.
#[derive(Clone, Debug, PartialEq, Eq, zlink::ReplyError, introspect::ReplyError)]
#[zlink(interface = "io.weft.Switch")]
pub enum Error {
    /// There is no such network, port or address.
    NotFound {
        /// Which, and what to do.
        message: String,
    },
    /// It was refused, or it failed.
    Refused {
        /// What was tried, on what, why not, and what to do.
        message: String,
    },
}

/// What kind of answer a [`Refusal`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// There is no such network, port or address: exit status 4.
    NotFound,
    /// Refused or failed: exit status 1.
    Refused,
}

/// Why a [`Switch`](crate::server::Switch) did not do what it was asked: one line for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    kind: RefusalKind,
    message: String,
}

impl Refusal {
    /// There is none of what the call names.
    pub fn not_found(message: impl AsRef<str>) -> Self {
        Self { kind: RefusalKind::NotFound, message: one_line(message.as_ref()) }
    }

    /// There is no network of that name.
    pub fn no_network(name: &str) -> Self {
        Self::not_found(format!("there is no network {}: see weft net list", crate::model::shown(name)))
    }

    /// There is no port of that name.
    pub fn no_port(name: &str) -> Self {
        Self::not_found(format!("there is no port {}: see weft port list", crate::model::shown(name)))
    }

    /// Refused or failed.
    pub fn refused(message: impl AsRef<str>) -> Self {
        Self { kind: RefusalKind::Refused, message: one_line(message.as_ref()) }
    }

    /// Which of the two it is.
    pub fn kind(&self) -> RefusalKind {
        self.kind
    }

    /// The line.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Refusal {
    /// The network is not of a kind, or not set up, to have `what`.
    pub fn has_no(network: &crate::model::NetworkSpec, what: &str) -> Self {
        Self::refused(format!("{}: it has no {what}", network.described()))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl From<crate::model::ModelError> for Refusal {
    fn from(error: crate::model::ModelError) -> Self {
        Self::refused(error.to_string())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind {
            RefusalKind::NotFound => Self::NotFound { message: refusal.message },
            RefusalKind::Refused => Self::Refused { message: refusal.message },
        }
    }
}

macro_rules! replies {
    ($($(#[$doc:meta])* $name:ident { $field:ident: $type:ty })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
        // A comment on the field would only clutter the interface's description.
        #[allow(missing_docs)]
        pub struct $name {
            pub $field: $type,
        }
    )*};
}

replies! {
    /// Reply of `NetList`.
    Networks { networks: Vec<Network> }
    /// Reply of `NetShow`.
    OneNetwork { network: NetworkDetail }
    /// Reply of `PortList`.
    Ports { ports: Vec<Port> }
    /// Reply of `PortShow`.
    OnePort { port: PortDetail }
    /// Reply of `PortStats` and `Monitor`.
    Counters { counters: Vec<PortCounters> }
    /// Reply of `FdbShow`.
    FdbEntries { entries: Vec<FdbEntry> }
    /// Reply of `LeaseList`.
    Leases { leases: Vec<Lease> }
    /// Reply of `ForwardList`.
    Forwards { forwards: Vec<Forward> }
}

/// Reply of `NatSessions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct NatSessionList {
    /// At most as many as were asked for.
    pub sessions: Vec<NatSession>,
    /// How many there are.
    pub total: u64,
}

/// How many sessions `NatSessions` tells when no limit is given.
pub const SESSIONS_DEFAULT: u64 = 65_536;
/// The most sessions that one reply tells: some 200 MB, which a client still takes.
pub const SESSIONS_MAX: u64 = 1_000_000;
