//! What the network said about a datagram, as its guest is told it: the same ICMP error from the same sender, about the
//! packet as the guest sent it.

use std::net::{IpAddr, SocketAddr};

use datapath::datagram::Fault;
use rustix::io::Errno;
use switch_core::MacAddr;
use switch_core::ip::{Cause, Origin, error_frame};

use crate::engine::Context;
use crate::frame::{NETWORK_MAX, Way, addresses};
use crate::table::Key;

/// The packet that a fault is about, as its guest knows it.
#[derive(Debug)]
pub(crate) struct About<'a> {
    /// Whose it was.
    pub(crate) key: Key,
    /// The guest's MAC address.
    pub(crate) mac: MacAddr,
    /// Where it went, as the guest named it.
    pub(crate) remote: IpAddr,
    /// The IP protocol.
    pub(crate) protocol: u8,
    /// The transport header as the guest sent it, and what is known of the payload.
    pub(crate) transport: &'a [u8],
}

/// What is wrong, in the words of ICMP; `None` if a guest is not to be told.
pub(crate) fn cause(fault: &Fault) -> Option<Cause> {
    let too_big = || Cause::TooBig { mtu: u16::try_from(fault.mtu).unwrap_or(u16::MAX) };
    match (fault.to, fault.icmp) {
        (SocketAddr::V4(_), Some((3, code))) => match code {
            0 | 5 | 6 | 8 | 11 => Some(Cause::NetUnreachable),
            1 | 7 | 12 => Some(Cause::HostUnreachable),
            2 => Some(Cause::ProtocolUnreachable),
            3 => Some(Cause::PortUnreachable),
            4 => Some(too_big()),
            9 | 10 | 13 | 14 | 15 => Some(Cause::Prohibited),
            _ => None,
        },
        (SocketAddr::V4(_), Some((11, 0))) => Some(Cause::TimeExceeded),
        (SocketAddr::V6(_), Some((1, code))) => match code {
            0 => Some(Cause::NetUnreachable),
            1 | 5 | 6 => Some(Cause::Prohibited),
            3 | 2 => Some(Cause::HostUnreachable),
            4 => Some(Cause::PortUnreachable),
            _ => None,
        },
        (SocketAddr::V6(_), Some((2, _))) => Some(too_big()),
        (SocketAddr::V6(_), Some((3, 0))) => Some(Cause::TimeExceeded),
        (_, Some(_)) => None,
        (_, None) if fault.errno == Errno::MSGSIZE => Some(too_big()),
        (_, None) => of_errno(fault.errno),
    }
}

/// What is wrong with a packet that this host would not send; `None` if its guest is not to be told.
pub(crate) fn of_errno(error: Errno) -> Option<Cause> {
    match error {
        Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => {
            Some(Cause::NetUnreachable)
        }
        Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Cause::HostUnreachable),
        Errno::ACCESS | Errno::PERM => Some(Cause::Prohibited),
        _ => None,
    }
}

/// Tells a guest.
pub(crate) fn tell(ctx: &mut Context<'_>, fault: &Fault, about: &About<'_>) {
    let Some(cause) = cause(fault) else { return };
    let Some(gateway) = ctx.settings.gateway(about.remote) else { return };
    if about.key.owner.is_some_and(|port| !ctx.errors.allow(ctx.now, port)) {
        return;
    }
    let Some(addresses) = addresses(about.key.inside.ip(), about.remote) else { return };
    let way = Way { to: ctx.settings.mac, from: about.mac, addresses, protocol: about.protocol };
    let mut headers = [0; NETWORK_MAX];
    let n = way.write(&mut headers, about.transport.len());
    let mut frame = headers[..n].to_vec();
    frame.extend_from_slice(about.transport);
    // The host's own loopback is the gateway to a guest, and so is the host. A client that is the gateway to a guest says
    // so by its own address all the same, as every router on its way would.
    let said_by = fault.offender.filter(|ip| !ip.is_loopback() && ip.is_ipv4() == gateway.is_ipv4());
    let origin = Origin { mac: ctx.settings.mac, address: said_by.unwrap_or(gateway) };
    if let Some(error) = error_frame(&frame, cause, origin) {
        ctx.send(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_as_what_they_are() {
        let fault = |to: &str, icmp, errno| Fault {
            to: to.parse().unwrap(),
            errno,
            icmp,
            mtu: 1400,
            offender: None,
            from: None,
        };
        let v4 = |icmp| cause(&fault("192.0.2.1:1", Some(icmp), Errno::IO));
        let v6 = |icmp| cause(&fault("[2001:db8::1]:1", Some(icmp), Errno::IO));
        assert_eq!(v4((3, 0)), Some(Cause::NetUnreachable));
        assert_eq!(v4((3, 1)), Some(Cause::HostUnreachable));
        assert_eq!(v4((3, 3)), Some(Cause::PortUnreachable));
        assert_eq!(v4((3, 4)), Some(Cause::TooBig { mtu: 1400 }));
        assert_eq!(v4((3, 13)), Some(Cause::Prohibited));
        assert_eq!(v4((11, 0)), Some(Cause::TimeExceeded));
        assert_eq!((v4((11, 1)), v4((5, 0))), (None, None));
        assert_eq!(v6((1, 4)), Some(Cause::PortUnreachable));
        assert_eq!(v6((1, 1)), Some(Cause::Prohibited));
        assert_eq!(v6((2, 0)), Some(Cause::TooBig { mtu: 1400 }));
        assert_eq!(v6((3, 0)), Some(Cause::TimeExceeded));
        let own = |errno| cause(&fault("192.0.2.1:1", None, errno));
        assert_eq!(own(Errno::MSGSIZE), Some(Cause::TooBig { mtu: 1400 }));
        assert_eq!(own(Errno::NETUNREACH), Some(Cause::NetUnreachable));
        assert_eq!(own(Errno::INVAL), None);
    }
}
