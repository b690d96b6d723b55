//! What an operator sees of a translator, and may change at runtime: sessions and port forwards.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::time::Instant;

/// A transport protocol that is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP (RFC 5382).
    Tcp,
    /// UDP (RFC 4787).
    Udp,
    /// Queries and replies of ICMP and ICMPv6 (RFC 5508). Their identifier stands for the port.
    Icmp,
}

impl Protocol {
    /// The word that reports carry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One session: an inside endpoint's mapping and one remote endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatSession {
    /// The protocol.
    pub protocol: Protocol,
    /// The guest's end.
    pub inside: SocketAddr,
    /// What it is translated to.
    pub outside: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The state's name, such as `established` or `transitory`.
    pub state: &'static str,
    /// Since the last packet.
    pub idle: Duration,
}

/// A port forward: what arrives for `count` ports from `port` on goes to as many ports of the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The outside address; `None` is each of the translator's own.
    pub address: Option<IpAddr>,
    /// The first outside port.
    pub port: u16,
    /// How many, at least 1; `port + count - 1` and the target's last port are at most 65535.
    pub count: u16,
    /// The inside address, and the port that `port` becomes.
    pub target: SocketAddr,
}

/// Why a forward was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// Another forward has one of the ports.
    #[error("port {0} is forwarded already")]
    Taken(u16),
    /// The protocol has no ports, or a range does not fit.
    #[error("{0}")]
    Impossible(&'static str),
}

/// A translator's sessions and forwards, for an operator. Called off the workers.
pub trait NatAccess: Send + Sync {
    /// Sessions, at most `limit`, in no order, and how many there are in all.
    fn sessions(&self, now: Instant, limit: usize) -> (Vec<NatSession>, usize);

    /// Bytes of memory that the translator's tables hold.
    fn memory(&self) -> usize;

    /// Forwards a port or a range. It holds for the next packet.
    ///
    /// # Errors
    /// It contradicts a forward that is there, or cannot be.
    fn add_forward(&self, forward: &Forward) -> Result<(), ForwardError>;

    /// Takes a forward back, with the sessions that came by it; false if it was not there.
    fn remove_forward(&self, forward: &Forward) -> bool;
}
