//! The virtio-net header as bytes (virtio 1.2, 5.1.6), little-endian. What it means is [`crate::offload`]'s.

/// Bytes of the header with `VIRTIO_F_VERSION_1` or `VIRTIO_NET_F_MRG_RXBUF`.
pub const HEADER_LEN: usize = 12;
/// Bytes of the header without either: no `num_buffers`.
pub const LEGACY_HEADER_LEN: usize = 10;

/// `flags`: the checksum from `csum_start` is to be completed.
pub const F_NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum was verified.
pub const F_DATA_VALID: u8 = 2;

/// `gso_type`: not a super-frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: UDP fragmentation, which nothing negotiates any more.
pub const GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP datagrams of one size (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type`, a flag: the first segment carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// The header's fields, unchecked. They stand in memory as on the wire, so that reading and writing it on a
/// little-endian machine is a copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `F_*`.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// The sender's hint of how long the headers are. Never trusted.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksummed part begins, from the frame's first byte.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers that the frame takes. Set by the back-end.
    pub num_buffers: u16,
}

impl VnetHeader {
    /// Reads a header of 12 bytes. Of a legacy header the last two are to be zero.
    #[inline]
    pub const fn from_bytes(b: [u8; HEADER_LEN]) -> Self {
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_le_bytes([b[2], b[3]]),
            gso_size: u16::from_le_bytes([b[4], b[5]]),
            csum_start: u16::from_le_bytes([b[6], b[7]]),
            csum_offset: u16::from_le_bytes([b[8], b[9]]),
            num_buffers: u16::from_le_bytes([b[10], b[11]]),
        }
    }

    /// The header's bytes.
    #[inline]
    pub const fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }

    /// True if the header asks for nothing: most frames.
    #[inline]
    pub const fn is_plain(&self) -> bool {
        self.flags & F_NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        let bytes = [1, 0x81, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        assert_eq!(VnetHeader::from_bytes(bytes).to_bytes(), bytes);
    }
}
