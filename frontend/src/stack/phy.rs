//! A virtio-net device as smoltcp's network device, with the device's checksum and segmentation offloads.
//!
//! What the device offers is asked of it: smoltcp computes no transport checksum where `CSUM` is in force, and makes
//! TCPv4 segments of up to 64 KB where `HOST_TSO4` is. Received checksums are verified here, unless the device vouches
//! for them; frames that use an offload which was not negotiated are dropped and counted as violations.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};

use crate::device::{F_DATA_VALID, GSO_TCPV4, GSO_TCPV6, NetDevice, VnetHeader};
use crate::error::Error;
use crate::features;
use crate::wire::{self, Transport};

/// Frames that gather before the device is told of them.
const TX_BATCH: usize = 16;
/// How long a full transmit queue is waited for before smoltcp is told that the device is exhausted.
const ROOM_WAIT: Duration = Duration::from_millis(2);

/// What a guest's device saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhyStats {
    /// Frames received (a super-frame is one).
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Super-frames among them.
    pub rx_super_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Super-frames among them.
    pub tx_super_frames: u64,
    /// Received frames with a wrong checksum; they are dropped.
    pub bad_checksums: u64,
    /// Received frames that used an offload which was not negotiated; they are dropped.
    pub violations: u64,
}

/// The device below the stack.
#[derive(Debug)]
pub(super) struct Phy {
    pub(super) device: NetDevice,
    rx: Vec<u8>,
    tx: Transmitter,
    pub(super) stats: PhyStats,
    /// Who answered which address, as seen in ARP replies.
    pub(super) arp_seen: HashMap<wire::Ipv4, wire::Mac>,
    /// The first failure of the device; nothing moves after it.
    pub(super) error: Option<Error>,
}

#[derive(Debug, Default)]
struct Transmitter {
    buffer: Vec<u8>,
    unflushed: usize,
}

impl Phy {
    pub(super) fn new(device: NetDevice) -> Self {
        Phy {
            device,
            rx: Vec::new(),
            tx: Transmitter::default(),
            stats: PhyStats::default(),
            arp_seen: HashMap::new(),
            error: None,
        }
    }

    /// Tells the device of the frames that gathered.
    pub(super) fn flush(&mut self) {
        if std::mem::take(&mut self.tx.unflushed) > 0 {
            self.device.pairs_mut().iter_mut().for_each(|p| p.tx.flush());
        }
    }

    fn has_room(&mut self) -> bool {
        let pairs = self.device.pairs_mut();
        for pair in pairs.iter_mut().filter(|p| p.tx.room() == 0) {
            pair.tx.flush();
            let deadline = Instant::now() + ROOM_WAIT;
            loop {
                match pair.tx.reclaim() {
                    Ok(0) => {}
                    Ok(_) => break,
                    Err(e) => {
                        self.error.get_or_insert(e);
                        return false;
                    }
                }
                if !pair.tx.vq.wait_used(deadline).unwrap_or(false) {
                    return false;
                }
            }
        }
        true
    }

    /// Takes the next frame that the stack may see into `rx`.
    fn next_frame(&mut self) -> bool {
        loop {
            match self.device.try_recv(&mut self.rx) {
                Ok(Some(header)) => {
                    if self.accept(&header) {
                        return true;
                    }
                }
                Ok(None) => return false,
                Err(e) => {
                    self.error.get_or_insert(e);
                    return false;
                }
            }
        }
    }

    fn accept(&mut self, header: &VnetHeader) -> bool {
        self.stats.rx_frames += 1;
        self.stats.rx_bytes += self.rx.len() as u64;
        let vouched = header.flags & F_DATA_VALID != 0 || header.needs_csum();
        if vouched && !self.device.has(features::GUEST_CSUM) {
            self.stats.violations += 1;
            return false;
        }
        if header.is_gso() {
            let wanted = match header.gso_type & !crate::device::GSO_ECN {
                GSO_TCPV4 => features::GUEST_TSO4,
                GSO_TCPV6 => features::GUEST_TSO6,
                _ => 0,
            };
            if wanted == 0 || !self.device.has(wanted) {
                self.stats.violations += 1;
                return false;
            }
            self.stats.rx_super_frames += 1;
        }
        if !vouched && !wire::checksums_ok(&self.rx) {
            self.stats.bad_checksums += 1;
            return false;
        }
        if let Some((2, mac, ip, _, _)) = wire::parse_arp(&self.rx) {
            self.arp_seen.insert(ip, mac);
        }
        true
    }
}

/// smoltcp's permission to read a frame.
#[derive(Debug)]
pub(super) struct RxToken<'a>(&'a [u8]);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// smoltcp's permission to send a frame.
#[derive(Debug)]
pub(super) struct TxToken<'a> {
    device: &'a mut NetDevice,
    tx: &'a mut Transmitter,
    stats: &'a mut PhyStats,
    error: &'a mut Option<Error>,
    meta: PacketMeta,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, f: F) -> R {
        // Stale bytes beyond the old length only: smoltcp writes the whole frame.
        self.tx.buffer.resize(len, 0);
        let result = f(&mut self.tx.buffer);
        let header = self.header();
        let frame = &self.tx.buffer;
        let pairs = self.device.pairs_mut();
        let pair = if pairs.len() == 1 { 0 } else { flow_hash(frame) % pairs.len() };
        match pairs[pair].tx.push(&header, &[frame]) {
            Ok(true) => {
                self.stats.tx_frames += 1;
                self.stats.tx_bytes += len as u64;
                self.stats.tx_super_frames += u64::from(header.is_gso());
            }
            // There was room when the token was given; what is lost here is retransmitted.
            Ok(false) => {}
            Err(e) => {
                self.error.get_or_insert(e);
            }
        }
        self.tx.unflushed += 1;
        if self.tx.unflushed >= TX_BATCH {
            self.tx.unflushed = 0;
            pairs.iter_mut().for_each(|p| p.tx.flush());
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}

impl TxToken<'_> {
    /// The header of the frame in the buffer; completes what the offloads want prepared in the frame.
    fn header(&mut self) -> VnetHeader {
        if !self.device.has(features::CSUM) {
            return VnetHeader::PLAIN;
        }
        let frame = &mut self.tx.buffer;
        let Some((start, offset)) = wire::prepare_partial(frame) else { return VnetHeader::PLAIN };
        let mut header = VnetHeader::partial_csum(start, offset);
        if let (Some(size), Some(t)) = (self.meta.segmentation_offload_size, Transport::of(frame)) {
            let tcp_len = frame.get(t.start + 12).map_or(0, |b| u16::from(b >> 4) * 4);
            header.gso_type = if t.version == 4 { GSO_TCPV4 } else { GSO_TCPV6 };
            header.gso_size = size.get();
            header.hdr_len = start + tcp_len;
        }
        header
    }
}

/// A number that is the same for all frames of a flow.
fn flow_hash(frame: &[u8]) -> usize {
    let ports = Transport::of(frame).and_then(|t| frame.get(t.start..t.start + 4)).unwrap_or(&[]);
    ports.iter().fold(0usize, |h, &b| h.wrapping_mul(31).wrapping_add(b.into()))
}

impl phy::Device for Phy {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if self.error.is_some() || !self.has_room() || !self.next_frame() {
            return None;
        }
        let Phy { device, rx, tx, stats, error, .. } = self;
        Some((RxToken(rx), TxToken { device, tx, stats, error, meta: PacketMeta::default() }))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<TxToken<'_>> {
        if self.error.is_some() || !self.has_room() {
            return None;
        }
        let Phy { device, tx, stats, error, .. } = self;
        Some(TxToken { device, tx, stats, error, meta: PacketMeta::default() })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = usize::from(self.device.config().mtu) + wire::ETH_LEN;
        caps.max_burst_size = None;
        let offload = self.device.has(features::CSUM);
        // Reception is verified by `accept`, which knows what the device vouches for.
        let transport = if offload { Checksum::None } else { Checksum::Tx };
        caps.checksum.tcp = transport;
        caps.checksum.udp = transport;
        // The frame with its Ethernet header; an IP packet of the greatest length.
        let segment = NonZeroUsize::new(usize::from(u16::MAX) + wire::ETH_LEN);
        if offload && self.device.has(features::HOST_TSO4) {
            caps.segmentation.tcpv4 = segment;
        }
        // No segments of TCPv6: smoltcp 0.14 drops every IPv6 packet above the MTU, also one that the device would cut.
        caps
    }
}
