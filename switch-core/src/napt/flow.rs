//! What the translator is asked about: endpoints, flows, TCP's flags. One code for both versions of IP.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::access::Protocol;
use super::random::KeyedHash;

/// An address of one version of IP.
pub trait Address: Copy + Debug + Eq + Hash + Ord + Send + Sync + 'static {
    /// Zero.
    const UNSPECIFIED: Self;

    /// The address, if `address` is of this version.
    fn from_ip(address: IpAddr) -> Option<Self>;

    /// The address of any version.
    fn to_ip(self) -> IpAddr;

    /// A place for an address that is read while somebody writes it, in parts.
    #[doc(hidden)]
    type Cell: Debug + Default + Send + Sync;

    /// What is in a place.
    #[doc(hidden)]
    fn load(cell: &Self::Cell) -> Self;

    /// Writes to a place.
    #[doc(hidden)]
    fn store(cell: &Self::Cell, address: Self);

    /// Mixes two addresses.
    #[doc(hidden)]
    fn mix(hash: &KeyedHash, a: Self, b: Self) -> u64;
}

impl Address for Ipv4Addr {
    const UNSPECIFIED: Self = Self::UNSPECIFIED;

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }

    type Cell = AtomicU32;

    #[inline]
    fn load(cell: &AtomicU32) -> Self {
        Self::from_bits(cell.load(Ordering::Relaxed))
    }

    #[inline]
    fn store(cell: &AtomicU32, address: Self) {
        cell.store(address.to_bits(), Ordering::Relaxed);
    }

    #[inline]
    fn mix(_: &KeyedHash, a: Self, b: Self) -> u64 {
        u64::from(a.to_bits()) << 32 | u64::from(b.to_bits())
    }
}

impl Address for Ipv6Addr {
    const UNSPECIFIED: Self = Self::UNSPECIFIED;

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }

    type Cell = [AtomicU64; 2];

    #[inline]
    fn load([high, low]: &[AtomicU64; 2]) -> Self {
        let (high, low) = (high.load(Ordering::Relaxed), low.load(Ordering::Relaxed));
        Self::from_bits(u128::from(high) << 64 | u128::from(low))
    }

    #[inline]
    fn store([high, low]: &[AtomicU64; 2], address: Self) {
        let bits = address.to_bits();
        high.store((bits >> 64) as u64, Ordering::Relaxed);
        low.store(bits as u64, Ordering::Relaxed);
    }

    #[inline]
    fn mix(hash: &KeyedHash, a: Self, b: Self) -> u64 {
        let half = |address: Self| {
            let bits = address.to_bits();
            ((bits >> 64) as u64, bits as u64)
        };
        let ((a, b), (c, d)) = (half(a), half(b));
        hash.pair(hash.pair(a, b), hash.pair(c, d))
    }
}

/// An address and a port, or the identifier of an ICMP query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint<A> {
    /// The address.
    pub address: A,
    /// The port or identifier.
    pub port: u16,
}

impl<A: Address> Endpoint<A> {
    /// An endpoint.
    #[inline]
    pub const fn new(address: A, port: u16) -> Self {
        Self { address, port }
    }

    /// As the standard library has it.
    pub fn to_socket(self) -> SocketAddr {
        SocketAddr::new(self.address.to_ip(), self.port)
    }
}

/// The flags of a TCP segment; nothing for other protocols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x10);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if any flag of `other` is set.
    #[inline]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// True if the segment cannot change the state of an established connection.
    #[inline]
    pub(super) const fn is_plain(self) -> bool {
        self.0 & (Self::FIN.0 | Self::SYN.0 | Self::RST.0) == 0
    }

    /// True for the segment that asks for a connection, which alone makes a session (RFC 6146, 3.5.2.2).
    #[inline]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::RST.0 | Self::ACK.0) == Self::SYN.0
    }
}

/// A packet, seen from this side: `local` is the guest's end, or what stands for it outside; `remote` is the other.
///
/// The identifier of an ICMP query is `local`'s port; `remote`'s is zero then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// The protocol.
    pub protocol: Protocol,
    /// The inside endpoint of an outbound packet, the outside endpoint of an inbound one.
    pub local: Endpoint<A>,
    /// The other end.
    pub remote: Endpoint<A>,
    /// Of a TCP segment.
    pub flags: TcpFlags,
}

/// What a session is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key<A> {
    pub(super) protocol: Protocol,
    pub(super) local: Endpoint<A>,
    pub(super) remote: Endpoint<A>,
}

impl<A: Address> Key<A> {
    #[inline]
    pub(super) fn hash(&self, hash: &KeyedHash) -> u64 {
        let ports = u64::from(self.protocol as u8) << 32
            | u64::from(self.local.port) << 16
            | u64::from(self.remote.port);
        hash.pair(A::mix(hash, self.local.address, self.remote.address), ports)
    }
}

/// The hash of an inside endpoint: it decides the shard of a mapping and of all its sessions.
#[inline]
pub(super) fn hash_inside<A: Address>(hash: &KeyedHash, protocol: Protocol, inside: Endpoint<A>) -> u64 {
    let port = 1 << 40 | u64::from(protocol as u8) << 32 | u64::from(inside.port);
    hash.pair(A::mix(hash, inside.address, A::UNSPECIFIED), port)
}
