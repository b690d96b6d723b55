//! The virtio-net header (virtio 1.3, 5.1.6).

/// Header flag: the checksum from `csum_start` on is to be completed at `csum_offset`.
pub const F_NEEDS_CSUM: u8 = 1;
/// Header flag: the checksum was verified.
pub const F_DATA_VALID: u8 = 2;
/// Not a super-frame.
pub const GSO_NONE: u8 = 0;
/// A TCPv4 super-frame.
pub const GSO_TCPV4: u8 = 1;
/// A UDP datagram to fragment.
pub const GSO_UDP: u8 = 3;
/// A TCPv6 super-frame.
pub const GSO_TCPV6: u8 = 4;
/// A UDP super-frame.
pub const GSO_UDP_L4: u8 = 5;
/// With a TCP super-frame: the segments carry ECN.
pub const GSO_ECN: u8 = 0x80;

/// The header before each frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`F_NEEDS_CSUM`], [`F_DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`] and its siblings.
    pub gso_type: u8,
    /// Length of the headers that each segment repeats, bytes; a hint.
    pub hdr_len: u16,
    /// Payload of each segment, bytes.
    pub gso_size: u16,
    /// Where the checksum starts, bytes from the frame's start.
    pub csum_start: u16,
    /// Where the checksum is stored, bytes from `csum_start`.
    pub csum_offset: u16,
    /// Of a received frame: how many buffers it was merged from. The driver sends 0.
    pub num_buffers: u16,
}

impl VnetHeader {
    /// A header that asks for nothing.
    pub const PLAIN: VnetHeader = VnetHeader {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        num_buffers: 0,
    };

    /// A header that asks for the checksum from `start` on, stored `offset` bytes later.
    #[must_use]
    pub fn partial_csum(start: u16, offset: u16) -> Self {
        VnetHeader { flags: F_NEEDS_CSUM, csum_start: start, csum_offset: offset, ..Self::PLAIN }
    }

    /// The header's twelve bytes; a legacy header is the first ten.
    #[must_use]
    pub fn bytes(&self) -> [u8; 12] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }

    /// The header in twelve bytes. Of a legacy one, the last two are to be zero.
    #[must_use]
    pub fn parse(bytes: &[u8; 12]) -> Self {
        let word = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        VnetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }

    /// Whether the frame is a super-frame.
    #[must_use]
    pub fn is_gso(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE
    }

    /// Whether the frame's transport checksum is still to be completed.
    #[must_use]
    pub fn needs_csum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }
}
