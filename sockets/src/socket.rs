//! Sockets of the host: opened without blocking, and what their errors mean to a guest.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};
use switch_core::ip::Cause;

/// A TCP socket, and whether it is connected already.
#[derive(Debug)]
pub(crate) struct Connecting {
    pub(crate) socket: OwnedFd,
    pub(crate) connected: bool,
}

/// Begins a connection to `to`.
///
/// # Errors
/// What the kernel says at once: [`Refusal::of`] knows what it means.
pub(crate) fn stream(to: SocketAddr) -> Result<Connecting, Errno> {
    let family = family(to.ip());
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    prepare_stream(&socket)?;
    let connected = match connect(&socket, &to) {
        Ok(()) => true,
        Err(Errno::INPROGRESS | Errno::INTR) => false,
        Err(error) => return Err(error),
    };
    Ok(Connecting { socket, connected })
}

/// Sets what every connection's socket needs: what the guest sends leaves at once, as it is the guest that gathers; urgent
/// bytes stay in the stream; and an outside that is gone is noticed some day.
pub(crate) fn prepare_stream(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_oobinline(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)
}

/// Ends a connection by a reset.
pub(crate) fn abort(socket: OwnedFd) {
    // Fails on no TCP socket; then it is closed in the ordinary way.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}

/// Why there is no connection, as a guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The outside refused or reset.
    Reset,
    /// The outside cannot be reached.
    Unreachable(Cause),
    /// Nobody answered: nor is the guest answered, which waits by a clock of its own.
    Silence,
    /// This host has no socket, descriptor or port left.
    Exhausted,
}

impl Refusal {
    /// What the kernel's error means.
    pub(crate) fn of(error: Errno) -> Self {
        match error {
            Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT | Errno::INVAL => {
                Self::Unreachable(Cause::NetUnreachable)
            }
            Errno::HOSTUNREACH | Errno::HOSTDOWN => Self::Unreachable(Cause::HostUnreachable),
            Errno::TIMEDOUT => Self::Silence,
            Errno::ACCESS | Errno::PERM => Self::Unreachable(Cause::Prohibited),
            Errno::NOPROTOOPT => Self::Unreachable(Cause::ProtocolUnreachable),
            Errno::MFILE
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NOMEM
            | Errno::ADDRNOTAVAIL
            | Errno::NOSPC => Self::Exhausted,
            _ => Self::Reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_told_as_what_it_is() {
        for (error, told) in [
            (Errno::CONNREFUSED, Refusal::Reset),
            (Errno::CONNRESET, Refusal::Reset),
            (Errno::TIMEDOUT, Refusal::Silence),
            (Errno::HOSTUNREACH, Refusal::Unreachable(Cause::HostUnreachable)),
            (Errno::NETUNREACH, Refusal::Unreachable(Cause::NetUnreachable)),
            (Errno::PERM, Refusal::Unreachable(Cause::Prohibited)),
            (Errno::MFILE, Refusal::Exhausted),
        ] {
            assert_eq!(Refusal::of(error), told, "{error}");
        }
    }
}
