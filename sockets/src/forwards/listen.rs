//! Listening sockets of the host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use datapath::datagram;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use switch_core::napt::{Forward, Protocol};

use crate::turns::Stands;

/// Connections that wait for one socket to accept them.
const BACKLOG: i32 = 1024;

/// Why a forward is not there. Nothing listens then.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("something on this host listens on {0} already")]
    InUse(SocketAddr),
    /// The port is one of the host's privileged ones.
    #[error(
        "listening on {at} needs a right that an ordinary user does not have for ports below {first}: take a higher one, \
         set net.ipv4.ip_unprivileged_port_start={} (sysctl), or give weft CAP_NET_BIND_SERVICE", at.port()
    )]
    Privileged {
        /// Where it was to listen.
        at: SocketAddr,
        /// The first port that needs no right.
        first: u16,
    },
    /// The address is not this host's.
    #[error("no interface of this host has the address of {0}")]
    NoAddress(SocketAddr),
    /// There is no room for as many.
    #[error("{wanted} listening ports are more than the {most} that a network may have")]
    TooMany {
        /// As many as there would be.
        wanted: u64,
        /// As many as there may be: fewer, if the process may have few descriptors.
        most: u32,
    },
    /// The network has no gateway of the target's family, whose address guests would see.
    #[error("the network has no gateway of the family of {0}")]
    NoGateway(IpAddr),
    /// Whatever else the kernel says.
    #[error("listening on {at}: {source}")]
    Socket {
        /// Where it was to listen.
        at: SocketAddr,
        /// What it said.
        source: io::Error,
    },
}

/// Whom a guest sees as the client of a forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// The gateway, with a port that tells clients apart.
    #[default]
    Gateway,
    /// The client itself, where the guest's answers to it come to the router; else the gateway, which is counted
    /// ([`Counter::SourceReplaced`](crate::Counter)).
    Client,
}

/// A socket that listens, or takes datagrams.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(super) protocol: Protocol,
    pub(super) socket: OwnedFd,
    /// Where it listens.
    pub(super) at: SocketAddr,
    /// Where what comes goes to.
    pub(super) target: SocketAddr,
    /// As whom it comes.
    pub(super) source: Source,
    /// For TCP: it is in the queue of those that somebody may have connected to.
    pub(super) called: bool,
    /// For UDP: where it stands among those that may have a datagram.
    pub(super) stands: Stands,
}

/// Opens the sockets of a forward, one for each port.
///
/// # Errors
/// Why one of them is not to be had; then all are closed.
pub(crate) fn open(forward: &Forward, source: Source) -> Result<Vec<Listener>, ListenError> {
    (0..forward.count)
        .map(|i| {
            let any = match forward.target {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let at = SocketAddr::new(forward.address.unwrap_or(any), forward.port.saturating_add(i));
            let target = SocketAddr::new(forward.target.ip(), forward.target.port().saturating_add(i));
            let socket = open_one(forward.protocol, at).map_err(|error| refusal(at, error))?;
            let (protocol, stands) = (forward.protocol, Stands::default());
            Ok(Listener { protocol, socket, at, target, source, called: false, stands })
        })
        .collect()
}

fn open_one(protocol: Protocol, at: SocketAddr) -> Result<OwnedFd, Errno> {
    let v6 = at.is_ipv6();
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let is_tcp = protocol == Protocol::Tcp;
    let kind = if is_tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let socket = socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    if v6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if is_tcp {
        // What is left of connections of a forward that was deleted is in nobody's way.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &at)?;
        listen(&socket, BACKLOG)?;
    } else {
        datagram::follow_address(socket.as_fd(), v6)?;
        datagram::follow_errors(socket.as_fd(), v6)?;
        datagram::may_fragment(socket.as_fd(), v6, true)?;
        // Without it datagrams come one by one.
        let _ = datagram::coalesce(socket.as_fd());
        bind(&socket, &at)?;
    }
    Ok(socket)
}

fn refusal(at: SocketAddr, error: Errno) -> ListenError {
    match error {
        Errno::ADDRINUSE => ListenError::InUse(at),
        Errno::ADDRNOTAVAIL => ListenError::NoAddress(at),
        Errno::ACCESS if at.port() < unprivileged() => ListenError::Privileged { at, first: unprivileged() },
        error => ListenError::Socket { at, source: error.into() },
    }
}

/// The first port that everybody may listen on.
fn unprivileged() -> u16 {
    let told = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    told.and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_needs_a_right_is_refused_with_what_to_do() {
        let told = |port, error| refusal(SocketAddr::from(([0, 0, 0, 0], port)), error).to_string();
        let first = unprivileged();
        if let Some(below) = first.checked_sub(1) {
            let why = told(below, Errno::ACCESS);
            for word in ["0.0.0.0", "ip_unprivileged_port_start=", "CAP_NET_BIND_SERVICE"] {
                assert!(why.contains(word) && why.lines().count() == 1, "{why}");
            }
        }
        assert!(!told(first.max(1), Errno::ACCESS).contains("CAP_NET_BIND_SERVICE"));
        assert!(told(80, Errno::ADDRINUSE).contains("listens on 0.0.0.0:80 already"));
    }
}
