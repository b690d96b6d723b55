//! ICMP errors, by the rules of [`switch_core::ip::error`] and no more than [`ErrorLimit`] allows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use switch_core::ids::{MacAddr, PortId};
use switch_core::ip::{Cause, ErrorLimit, Origin, error_frame};
use switch_core::time::Instant;

use super::link_local;
use crate::gateway::Outbox;

/// The source of errors of a router that has no IPv4 address (RFC 7600, 4.8).
pub const DUMMY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// The ICMP errors of a router.
#[derive(Debug)]
pub struct Errors {
    mac: MacAddr,
    /// The router's address of each family.
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    limit: ErrorLimit,
    /// Errors that were sent.
    pub sent: u64,
}

impl Errors {
    /// Errors of a router with a MAC address and, it may be, addresses: the first of each family is theirs.
    pub fn new(mac: MacAddr, addresses: &[IpAddr]) -> Self {
        let v4 = addresses.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
        let v6 = addresses.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
        Self {
            mac,
            v4: v4.unwrap_or(DUMMY_V4),
            v6: v6.unwrap_or_else(|| link_local(mac)),
            limit: ErrorLimit::default(),
            sent: 0,
        }
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limit(self, limit: ErrorLimit) -> Self {
        Self { limit, ..self }
    }

    /// Answers a whole frame that `from` received with an error, if there may be one. The frame is as it came, or
    /// with its hop limit decremented.
    pub fn send(&mut self, now: Instant, from: PortId, frame: &[u8], cause: Cause, out: &mut Outbox) -> bool {
        self.send_as(now, from, frame, cause, None, out)
    }

    /// The same from `address`, if that is of the frame's family, else from the router's first.
    pub fn send_as(
        &mut self,
        now: Instant,
        from: PortId,
        frame: &[u8],
        cause: Cause,
        address: Option<IpAddr>,
        out: &mut Outbox,
    ) -> bool {
        let v6 = frame.get(12..14) == Some(&switch_core::ip::ETHERTYPE_IPV6.to_be_bytes());
        let first = if v6 { self.v6.into() } else { self.v4.into() };
        let address = address.filter(|address| address.is_ipv6() == v6).unwrap_or(first);
        let Some(error) = error_frame(frame, cause, Origin { mac: self.mac, address }) else { return false };
        if !self.limit.allow(now, from) {
            return false;
        }
        self.sent += 1;
        out.send_to(from, error);
        true
    }

    /// Errors that were not sent because there were too many.
    pub fn suppressed(&self) -> u64 {
        self.limit.suppressed
    }
}
