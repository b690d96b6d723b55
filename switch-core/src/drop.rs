//! Why a frame was not delivered. Each reason has a name that operators read in `weft port stats`.
//!
//! A reason belongs to one side. *Ingress* reasons count at the port that the frame came from, before any copy
//! of it was handed on; *egress* reasons count at the port that a copy was meant for. With that,
//! `rx + copies = forwarded + ingress drops` holds for each port, `offered = tx + egress drops` holds for each
//! port, and the sum of `forwarded` is the sum of `offered`.

/// Which port a drop counts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The port that the frame was received from.
    Ingress,
    /// The port that the frame was meant for.
    Egress,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $side:ident;)*) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// All reasons, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name that counters carry: stable, lower case, words joined by underscores.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Which port the drop counts at.
            pub const fn side(self) -> Side {
                match self { $(Self::$variant => Side::$side,)* }
            }

            /// The place in a table of [`DropReason::COUNT`] counters.
            #[inline]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

reasons! {
    /// A buffer too short for the virtio-net header.
    ShortHeader = "short_header", Ingress;
    /// Shorter than an Ethernet header, or than the headers that its offload request needs.
    Runt = "runt", Ingress;
    /// Longer than a frame can be (64 KB of IP and the link header).
    Oversize = "oversize", Ingress;
    /// A buffer scattered over more pieces than the switch follows.
    TooManySegments = "too_many_segments", Ingress;
    /// A checksum request that points outside the headers, or was not negotiated.
    BadChecksumOffload = "bad_checksum_offload", Ingress;
    /// A segmentation request whose type, size or headers do not fit together, or that was not negotiated.
    BadSegmentationOffload = "bad_segmentation_offload", Ingress;
    /// A malformed VLAN tag: cut short, or VID 4095.
    BadVlanTag = "bad_vlan_tag", Ingress;
    /// A tagged frame from an access port of another VLAN.
    VlanDenied = "vlan_denied", Ingress;
    /// A source address that no station has: group or zero.
    BadSource = "bad_source", Ingress;
    /// A source address that this port may not use.
    SourceDenied = "source_denied", Ingress;
    /// A destination that bridges do not forward (01:80:C2:00:00:00 to 0F).
    ReservedAddress = "reserved_address", Ingress;
    /// The destination is on the port that the frame came from.
    SamePort = "same_port", Ingress;
    /// Both ports are isolated.
    Isolated = "isolated", Ingress;
    /// No port to deliver to: nobody else is on the network or VLAN, or the port went away.
    NoDestination = "no_destination", Ingress;
    /// The network has no service for the frame.
    Unhandled = "unhandled", Ingress;
    /// An IP header that is malformed: its version, lengths or checksum.
    BadIp = "bad_ip", Ingress;
    /// A source address that is not the port's, where packets are routed (reverse path filter, RFC 3704).
    Rpf = "rpf", Ingress;
    /// A frame that a router does not forward: a broadcast, a multicast, or no IP.
    NotRouted = "not_routed", Ingress;
    /// A packet from the outside for which there is no translation.
    NatNoMapping = "nat_no_mapping", Ingress;
    /// A packet from the outside that the translation's filter does not let in.
    NatFiltered = "nat_filtered", Ingress;
    /// The guest has as many translations as it may have.
    NatQuota = "nat_quota", Ingress;
    /// No outside port or identifier is free for a new translation.
    NatExhausted = "nat_exhausted", Ingress;
    /// A protocol that cannot be translated.
    NatUnsupported = "nat_unsupported", Ingress;

    /// The receiver had no free buffer in its ring or queue.
    TxRingFull = "tx_ring_full", Egress;
    /// The receiver's buffers are too small for the frame.
    TxBufferSmall = "tx_buffer_small", Egress;
    /// Larger than the receiver's MTU.
    EgressMtu = "egress_mtu", Egress;
    /// Nobody is at the other end of the port.
    EgressDown = "egress_down", Egress;
    /// The port failed while transmitting.
    EgressError = "egress_error", Egress;
    /// The receiver needs the frame in segments, and it cannot be segmented.
    EgressSegment = "egress_segment", Egress;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_indexes_dense() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), i);
        }
    }
}
