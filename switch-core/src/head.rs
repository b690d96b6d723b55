//! A frame's first bytes, in memory that only this process writes, and what travels with them.
//!
//! Invariants, kept by the private fields:
//! - the bytes in use, `start .. start + len`, are within the buffer; `len <= frame_len`;
//! - there are at least [`VNET_ROOM`] bytes before `start`, where a port puts the virtio-net header so that
//!   header and head go out in one copy;
//! - the rest of the frame (`frame_len - len` bytes, the *tail*) is somewhere else, and nothing here can read it.
//!
//! Layout: what the datapath and the modes read of each frame is in the first cache line, the frame's bytes
//! begin [`HEADROOM`] bytes into the buffer that follows, so that a frame of 64 bytes touches three lines.

use crate::ids::{MacAddr, Vid};
use crate::offload::Offload;
use crate::virtio_net::{self, VnetHeader};

/// Bytes before the frame: room for a virtio-net header and for a VLAN tag or two.
pub const HEADROOM: usize = 32;
/// Bytes of a frame that a port copies into the head. A frame no longer than this has no tail.
pub const HEAD_LEN: usize = 128;
/// Bytes of a frame that a head can hold, not counting tags that are inserted later. A port copies up to this
/// many when the virtio-net header asks for an offload, because headers with options can be longer than
/// [`HEAD_LEN`].
pub const HEAD_MAX: usize = BUFFER - HEADROOM;
/// Bytes that are always free before the frame.
pub const VNET_ROOM: usize = virtio_net::HEADER_LEN;
/// Bytes of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of an 802.1Q tag.
pub const TAG_LEN: usize = 4;
/// TPID of a customer VLAN tag.
pub const TPID_CVLAN: u16 = 0x8100;
/// Bytes of the longest frame: 64 KB of IP behind a tagged Ethernet header.
pub const FRAME_MAX: usize = 65_535 + ETHERNET_LEN + TAG_LEN;

const BUFFER: usize = 256;

/// The VLAN tag of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// The VLAN, or `None` on a priority-tagged frame (VID 0), which is an untagged one.
    pub vid: Option<Vid>,
    /// Priority code point (3 bits) and drop eligible indicator (1 bit), as in the TCI's upper four bits.
    pub pcp_dei: u8,
}

/// A frame's head. See the module's text.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Head {
    frame_len: u32,
    start: u16,
    len: u16,
    /// What the sender wrote, unchecked. [`crate::check`] turns it into `offload`.
    pub vnet: VnetHeader,
    /// What the frame asks of its receiver. Meaningful once the frame was checked.
    pub offload: Offload,
    /// The outermost VLAN tag. Meaningful once the frame was checked.
    tag: Option<Tag>,
    /// The VLAN that the frame belongs to: its tag's, else its port's; `None` is the untagged VLAN.
    pub vlan: Option<Vid>,
    /// The EtherType behind the first tag. Meaningful once the frame was checked.
    ethertype: u16,
    buffer: Aligned,
}

#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Aligned([u8; BUFFER]);

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}

impl Head {
    /// An empty head.
    pub fn new() -> Self {
        Self {
            frame_len: 0,
            start: HEADROOM as u16,
            len: 0,
            vnet: VnetHeader::default(),
            offload: Offload::NONE,
            tag: None,
            vlan: None,
            ethertype: 0,
            buffer: Aligned([0; BUFFER]),
        }
    }

    /// Begins a new frame of `frame_len` bytes, of which the caller writes the first `len` into the slice
    /// returned. `len` is cut to `frame_len` and to [`HEAD_MAX`]; the slice tells.
    #[inline]
    pub fn begin(&mut self, frame_len: u32, len: usize) -> &mut [u8] {
        let len = len.min(HEAD_MAX).min(frame_len as usize);
        self.frame_len = frame_len;
        self.start = HEADROOM as u16;
        self.len = len as u16;
        self.offload = Offload::NONE;
        self.tag = None;
        self.vlan = None;
        &mut self.buffer.0[HEADROOM..HEADROOM + len]
    }

    /// Begins a frame whose head is made of a part of `from`'s, and goes where that is: with a tag that was
    /// inserted, a head can be longer than [`HEAD_MAX`], and begin earlier. `len` is cut to the length of
    /// `from`'s head. For [`crate::segment`].
    pub(crate) fn begin_like(&mut self, from: &Self, frame_len: u32, len: usize) -> &mut [u8] {
        let len = len.min(usize::from(from.len)).min(frame_len as usize);
        self.begin(frame_len, 0);
        self.start = from.start;
        self.len = len as u16;
        self.bytes_mut()
    }

    /// Where [`Head::begin`] lets the frame's bytes be written: all [`HEAD_MAX`] of them, for ports that copy
    /// in fixed sizes. Bytes past the length given to `begin` are never read.
    #[inline]
    pub fn space(&mut self) -> &mut [u8; HEAD_MAX] {
        let space: &mut [u8] = &mut self.buffer.0[HEADROOM..];
        // The buffer is HEADROOM + HEAD_MAX long, so this cannot fail.
        space.try_into().unwrap_or_else(|_| unreachable!("HEADROOM + HEAD_MAX is the buffer"))
    }

    /// A frame made by the switch itself, whole in its head; cut to [`HEAD_MAX`] bytes.
    pub fn from_frame(frame: &[u8]) -> Self {
        let mut head = Self::new();
        let frame = &frame[..frame.len().min(HEAD_MAX)];
        head.begin(frame.len() as u32, frame.len()).copy_from_slice(frame);
        head
    }

    /// Bytes of the whole frame, head and tail, without the virtio-net header.
    #[inline]
    pub fn frame_len(&self) -> usize {
        self.frame_len as usize
    }

    /// Bytes of the tail.
    #[inline]
    pub fn tail_len(&self) -> usize {
        (self.frame_len - u32::from(self.len)) as usize
    }

    /// The frame's first bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer.0[usize::from(self.start)..][..usize::from(self.len)]
    }

    /// The frame's first bytes, to be rewritten in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.0[usize::from(self.start)..][..usize::from(self.len)]
    }

    /// The virtio-net header's `header_len` bytes (10 or 12) and the head right behind them, in one slice, as
    /// a ring takes them. The header says what [`Head::offload`] says, with `num_buffers` 1.
    #[inline]
    pub fn with_vnet(&mut self, header: [u8; VNET_ROOM], header_len: usize) -> &[u8] {
        const LEGACY: usize = virtio_net::LEGACY_HEADER_LEN;
        let start = usize::from(self.start);
        let end = start + usize::from(self.len);
        // Two copies of a known length are cheaper than one of any.
        let from = if header_len < VNET_ROOM {
            let from = start - LEGACY;
            self.buffer.0[from..from + LEGACY].copy_from_slice(&header[..LEGACY]);
            from
        } else {
            let from = start - VNET_ROOM;
            self.buffer.0[from..from + VNET_ROOM].copy_from_slice(&header);
            from
        };
        &self.buffer.0[from..end]
    }

    /// `prefix`, at most [`VNET_ROOM`] bytes, and the head right behind it, in one slice.
    #[inline]
    pub fn with_prefix<const N: usize>(&mut self, prefix: [u8; N]) -> &[u8] {
        const { assert!(N <= VNET_ROOM) };
        let start = usize::from(self.start);
        self.buffer.0[start - N..start].copy_from_slice(&prefix);
        &self.buffer.0[start - N..start + usize::from(self.len)]
    }

    /// The destination address; zero on a head too short to have one.
    #[inline]
    pub fn destination(&self) -> MacAddr {
        MacAddr::from_slice(self.bytes()).unwrap_or_default()
    }

    /// The source address; zero on a head too short to have one.
    #[inline]
    pub fn source(&self) -> MacAddr {
        self.bytes().get(6..).and_then(MacAddr::from_slice).unwrap_or_default()
    }

    /// The outermost VLAN tag.
    #[inline]
    pub fn tag(&self) -> Option<Tag> {
        self.tag
    }

    /// The EtherType, behind the first tag if there is one.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        self.ethertype
    }

    /// True if the frame is untagged, on the untagged VLAN, and needs nothing of its receiver: most frames.
    #[inline]
    pub fn is_bare(&self) -> bool {
        self.tag.is_none() & self.vlan.is_none() & self.offload.needs_nothing()
    }

    /// Bytes of the Ethernet header with its first tag: where the network header begins.
    #[inline]
    pub fn link_len(&self) -> usize {
        ETHERNET_LEN + if self.tag.is_some() { TAG_LEN } else { 0 }
    }

    /// Records what the link header was found to be. For [`crate::check`].
    #[inline]
    pub(crate) fn set_link(&mut self, tag: Option<Tag>, ethertype: u16) {
        self.tag = tag;
        self.ethertype = ethertype;
    }

    /// Inserts a VLAN tag. Offload positions move with the headers. False, and nothing done, if the head
    /// has no Ethernet header or no room.
    pub fn push_tag(&mut self, vid: Vid, pcp_dei: u8) -> bool {
        if usize::from(self.len) < ETHERNET_LEN || usize::from(self.start) < VNET_ROOM + TAG_LEN {
            return false;
        }
        let (old, new) = (usize::from(self.start), usize::from(self.start) - TAG_LEN);
        self.buffer.0.copy_within(old..old + 12, new);
        let tci = (u16::from(pcp_dei & 0xf) << 12) | vid.get();
        self.buffer.0[new + 12..new + 14].copy_from_slice(&TPID_CVLAN.to_be_bytes());
        self.buffer.0[new + 14..new + 16].copy_from_slice(&tci.to_be_bytes());
        self.start = new as u16;
        self.len += TAG_LEN as u16;
        self.frame_len += TAG_LEN as u32;
        if self.tag.is_some() {
            // The tag that was there is what is behind the first one now.
            self.ethertype = TPID_CVLAN;
        }
        self.tag = Some(Tag { vid: Some(vid), pcp_dei });
        self.shift_offload(TAG_LEN as i16);
        true
    }

    /// Removes the outermost VLAN tag, if there is one.
    pub fn pop_tag(&mut self) -> bool {
        if self.tag.is_none() || usize::from(self.len) < ETHERNET_LEN + TAG_LEN {
            return false;
        }
        let (old, new) = (usize::from(self.start), usize::from(self.start) + TAG_LEN);
        self.buffer.0.copy_within(old..old + 12, new);
        self.start = new as u16;
        self.len -= TAG_LEN as u16;
        self.frame_len -= TAG_LEN as u32;
        self.tag = None;
        self.shift_offload(-(TAG_LEN as i16));
        true
    }

    fn shift_offload(&mut self, by: i16) {
        if let crate::offload::Checksum::Partial { start, .. } = &mut self.offload.checksum {
            *start = start.saturating_add_signed(by);
        }
        if let Some(gso) = &mut self.offload.gso {
            gso.header_len = gso.header_len.saturating_add_signed(by);
        }
    }
}
