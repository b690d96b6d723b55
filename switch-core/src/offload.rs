//! What a frame asks of its receiver, once [`crate::check`] has found the request sound.
//!
//! Offloads travel with the frame: a sender's request for a checksum or for segmentation is handed to the
//! receiver when it negotiated the feature. Where it did not, [`crate::checksum`] and [`crate::segment`] do
//! the work before the frame is transmitted.

use std::num::NonZeroU16;

use crate::virtio_net::{self as wire, VnetHeader};

/// The state of a frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Complete, or none; nobody vouches for it.
    #[default]
    Unknown,
    /// Complete, and verified by the sender (virtio's `DATA_VALID`).
    Valid,
    /// To be completed: the ones' complement sum of the frame from `start` to its end goes to `start + offset`.
    /// Checked: `start + offset + 2` is within the head.
    Partial {
        /// From the frame's first byte.
        start: u16,
        /// From `start`.
        offset: u16,
    },
}

/// Protocols that can be segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of one size, over IPv4 or IPv6.
    UdpL4,
}

/// A super-frame: one set of headers and the payload of many segments.
///
/// Checked: the headers are those of `kind`, lie in the head, and are `header_len` bytes long; the frame is
/// longer than that; a [`Checksum::Partial`] goes with it and points at the transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// What the headers are.
    pub kind: GsoKind,
    /// TCP's CWR belongs to the first segment only.
    pub ecn: bool,
    /// Payload bytes of each segment but the last.
    pub size: NonZeroU16,
    /// Bytes of the link, network and transport headers, from the frame's first byte.
    pub header_len: u16,
}

/// What a frame asks of its receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport checksum's state.
    pub checksum: Checksum,
    /// Present on super-frames.
    pub gso: Option<Gso>,
}

impl Offload {
    /// Nothing is asked, nothing is promised.
    pub const NONE: Self = Self { checksum: Checksum::Unknown, gso: None };

    /// True for [`Offload::NONE`].
    #[inline]
    pub fn is_none(&self) -> bool {
        matches!(self.checksum, Checksum::Unknown) & self.gso.is_none()
    }

    /// True if any receiver can take the frame as it is.
    #[inline]
    pub fn needs_nothing(&self) -> bool {
        !matches!(self.checksum, Checksum::Partial { .. }) & self.gso.is_none()
    }

    /// The features that a receiver needs to take the frame as it is.
    #[inline]
    pub fn needs(&self) -> OffloadSet {
        if self.needs_nothing() {
            return OffloadSet::NONE;
        }
        let mut set = OffloadSet::NONE;
        if let Checksum::Partial { .. } = self.checksum {
            set = set.with(OffloadSet::CHECKSUM);
        }
        if let Some(gso) = self.gso {
            set = set.with(match gso.kind {
                GsoKind::TcpV4 => OffloadSet::TCPV4,
                GsoKind::TcpV6 => OffloadSet::TCPV6,
                GsoKind::UdpL4 => OffloadSet::UDP_L4,
            });
            if gso.ecn {
                set = set.with(OffloadSet::ECN);
            }
        }
        set
    }

    /// The virtio-net header that says this to a receiver. `num_buffers` is left at 1.
    #[inline]
    pub fn to_vnet(&self) -> VnetHeader {
        let mut h = VnetHeader { num_buffers: 1, ..VnetHeader::default() };
        match self.checksum {
            Checksum::Unknown => {}
            Checksum::Valid => h.flags = wire::F_DATA_VALID,
            Checksum::Partial { start, offset } => {
                h.flags = wire::F_NEEDS_CSUM;
                h.csum_start = start;
                h.csum_offset = offset;
            }
        }
        if let Some(gso) = self.gso {
            h.gso_type = match gso.kind {
                GsoKind::TcpV4 => wire::GSO_TCPV4,
                GsoKind::TcpV6 => wire::GSO_TCPV6,
                GsoKind::UdpL4 => wire::GSO_UDP_L4,
            } | if gso.ecn { wire::GSO_ECN } else { 0 };
            h.gso_size = gso.size.get();
            h.hdr_len = gso.header_len;
        }
        h
    }
}

/// A set of offload features, of one direction of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffloadSet(u8);

impl OffloadSet {
    /// No feature.
    pub const NONE: Self = Self(0);
    /// Partial checksums.
    pub const CHECKSUM: Self = Self(1);
    /// TCP over IPv4 super-frames.
    pub const TCPV4: Self = Self(2);
    /// TCP over IPv6 super-frames.
    pub const TCPV6: Self = Self(4);
    /// Super-frames with CWR.
    pub const ECN: Self = Self(8);
    /// UDP super-frames.
    pub const UDP_L4: Self = Self(16);
    /// Every feature.
    pub const ALL: Self = Self(31);

    /// Both sets together.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True if every feature of `other` is in this set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// As bits, to be kept in an atomic.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From bits; unknown ones are dropped.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }
}
