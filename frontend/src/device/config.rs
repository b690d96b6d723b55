//! What a device is to be like.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::features;
use crate::memory::Layout;
use crate::ring::Indirect;

/// How a transmitted frame is cut into descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxLayout {
    /// Header and frame in one piece; the header apart where the legacy interface without `ANY_LAYOUT` wants that.
    #[default]
    Inline,
    /// The header in a piece of its own.
    HeaderApart,
    /// Header and frame together cut into this many pieces of about equal length (also within the header).
    Pieces(u16),
}

/// What a device is to be like.
///
/// [`Config::default`] is a modern Linux guest: version 1, merged receive buffers, every checksum and TCP
/// segmentation offload, indirect descriptors, event index, one queue pair of 256 descriptors.
#[derive(Clone, Debug)]
pub struct Config {
    /// Features to accept when offered. The bit of the protocol features does not count here.
    pub features: u64,
    /// Features without which the device is refused.
    pub required: u64,
    /// Protocol features to accept when offered; `None` leads the session without them, and rings start enabled.
    pub protocol: Option<u64>,
    /// Whether memory is told region by region where `CONFIGURE_MEM_SLOTS` is in force.
    pub mem_slots: bool,
    /// Queue pairs, of which each has a receive and a transmit queue.
    pub queue_pairs: u16,
    /// Descriptors of each queue: a power of two from 2 to 32,768.
    pub queue_size: u16,
    /// Where the rings' indexes start.
    pub ring_base: u16,
    /// The guest's MTU (without Ethernet header), told to the back-end where its `MTU` is in force and this is not 1500.
    pub mtu: u16,
    /// Length of a receive buffer; `None` for 4096 with merged buffers, else what the largest frame needs.
    pub rx_buffer_size: Option<u32>,
    /// Descriptors over which each receive buffer is spread.
    pub rx_pieces: u16,
    /// Length of a transmit buffer; `None` for what the largest frame needs.
    pub tx_buffer_size: Option<u32>,
    /// How frames are cut into descriptors.
    pub tx_layout: TxLayout,
    /// When indirect tables are used, if negotiated.
    pub indirect: Indirect,
    /// How many transmit buffers there are at most, a power of two; `None` for as many as the queue takes.
    pub tx_buffers: Option<u16>,
    /// Whether frames begin at a cache line and their headers before it, as DPDK lays buffers out; else the headers do.
    pub align_frames: bool,
    /// Guest memory; `None` for one region of the length that queues and buffers need.
    pub memory: Option<Layout>,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The bound of the connection, of each message's exchange, and of a wait for room in a transmit queue.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        use features as f;
        Config {
            features: f::VERSION_1
                | f::MRG_RXBUF
                | f::CSUM
                | f::GUEST_CSUM
                | f::ALL_TSO
                | f::INDIRECT_DESC
                | f::EVENT_IDX
                | f::MTU
                | f::MQ,
            required: 0,
            protocol: Some(
                f::protocol::MQ
                    | f::protocol::RARP
                    | f::protocol::REPLY_ACK
                    | f::protocol::MTU
                    | f::protocol::RESET_DEVICE
                    | f::protocol::CONFIGURE_MEM_SLOTS
                    | f::protocol::STATUS,
            ),
            mem_slots: true,
            queue_pairs: 1,
            queue_size: 256,
            ring_base: 0,
            mtu: 1500,
            rx_buffer_size: None,
            rx_pieces: 1,
            tx_buffer_size: None,
            tx_layout: TxLayout::Inline,
            indirect: Indirect::Chains,
            tx_buffers: None,
            align_frames: false,
            memory: None,
            mac: [0x52, 0x54, 0, 0, 0, 1],
            timeout: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// A guest as plain as can be: version 1 and nothing else.
    #[must_use]
    pub fn plain() -> Self {
        Config { features: features::VERSION_1, ..Config::default() }
    }

    /// A guest of the legacy interface, with a header of 10 bytes and nothing else.
    #[must_use]
    pub fn legacy() -> Self {
        Config { features: 0, ..Config::default() }
    }

    /// The same with more features accepted.
    #[must_use]
    pub fn with(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }

    /// The same with fewer features accepted.
    #[must_use]
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }

    /// The same, refusing a back-end that does not offer `features`.
    #[must_use]
    pub fn require(mut self, features: u64) -> Self {
        self.features |= features;
        self.required |= features;
        self
    }

    /// The same with this MAC address.
    #[must_use]
    pub fn mac(mut self, mac: [u8; 6]) -> Self {
        self.mac = mac;
        self
    }

    /// The same with a MAC address of a number: 52:54:00, then the number's low three bytes.
    #[must_use]
    pub fn mac_number(self, n: u32) -> Self {
        let [_, a, b, c] = n.to_be_bytes();
        self.mac([0x52, 0x54, 0, a, b, c])
    }

    /// The same with this queue size.
    #[must_use]
    pub fn queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }

    /// The same with this many queue pairs.
    #[must_use]
    pub fn queue_pairs(mut self, pairs: u16) -> Self {
        self.queue_pairs = pairs;
        self
    }

    /// The same with this MTU.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// The same with this bound on waits.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// What follows from a configuration and the negotiated features.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) features: u64,
    pub(super) header_len: usize,
    pub(super) rx_buffer: u32,
    pub(super) rx_pieces: u16,
    pub(super) tx_buffer: u32,
    pub(super) tx_layout: TxLayout,
    pub(super) indirect: Indirect,
    pub(super) queue_size: u16,
    tx_buffers: u16,
    /// How many bytes are before each buffer in the first cache line that it touches.
    pub(super) lead: u32,
}

/// Length of a cache line, bytes.
const LINE: u32 = 64;

/// The largest frame of an offload: an IP packet of 65,535 bytes with Ethernet header and two VLAN tags.
const SUPER_FRAME: u32 = 65_535 + 14 + 8;

impl Shape {
    pub(super) fn new(config: &Config, negotiated: u64) -> Result<Self> {
        if !config.queue_size.is_power_of_two() || config.queue_size > 32768 || config.queue_size < 2 {
            return Err(Error::Config(format!(
                "queue size {} is not a power of two of 2 to 32768",
                config.queue_size
            )));
        }
        if config.queue_pairs == 0 || config.queue_pairs > 128 {
            return Err(Error::Config(format!("{} queue pairs; 1 to 128 are possible", config.queue_pairs)));
        }
        let has = |bits: u64| negotiated & bits != 0;
        let modern = has(crate::features::VERSION_1);
        let header_len = if modern || has(crate::features::MRG_RXBUF) { 12 } else { 10 };
        let frame = u32::from(config.mtu) + 14 + 8;
        let guest_gso = crate::features::GUEST_TSO4
            | crate::features::GUEST_TSO6
            | crate::features::GUEST_UFO
            | crate::features::GUEST_USO4
            | crate::features::GUEST_USO6;
        let host_gso = crate::features::HOST_TSO4
            | crate::features::HOST_TSO6
            | crate::features::HOST_UFO
            | crate::features::HOST_USO;
        let rx_frame = if has(guest_gso) { frame.max(SUPER_FRAME) } else { frame };
        let tx_frame = if has(host_gso) { frame.max(SUPER_FRAME) } else { frame };
        let whole = |frame: u32| (frame + header_len as u32).next_multiple_of(64);
        let rx_default = if has(crate::features::MRG_RXBUF) { 4096 } else { whole(rx_frame) };
        if config.tx_buffers.is_some_and(|n| !n.is_power_of_two()) {
            return Err(Error::Config("the number of transmit buffers is not a power of two".into()));
        }
        let tx_layout = match config.tx_layout {
            TxLayout::Inline if !modern && !has(crate::features::ANY_LAYOUT) => TxLayout::HeaderApart,
            other => other,
        };
        let indirect = if has(crate::features::INDIRECT_DESC) { config.indirect } else { Indirect::Never };
        let pieces = match tx_layout {
            TxLayout::Inline => 1,
            TxLayout::HeaderApart => 2,
            TxLayout::Pieces(n) => n.max(1),
        };
        if indirect == Indirect::Never && pieces.max(config.rx_pieces) > config.queue_size {
            return Err(Error::Config(format!(
                "frames in more pieces than the queue's {}",
                config.queue_size
            )));
        }
        Ok(Shape {
            features: negotiated,
            header_len,
            rx_buffer: config.rx_buffer_size.unwrap_or(rx_default).max(1),
            rx_pieces: config.rx_pieces.max(1),
            tx_buffer: config.tx_buffer_size.unwrap_or_else(|| whole(tx_frame)).max(header_len as u32),
            tx_layout,
            indirect,
            queue_size: config.queue_size,
            tx_buffers: config.tx_buffers.unwrap_or(u16::MAX),
            lead: if config.align_frames { LINE - header_len as u32 } else { 0 },
        })
    }

    /// From one buffer of `len` bytes to the next: an odd number of cache lines, so that the first lines of all buffers
    /// are spread over all sets of a cache.
    pub(super) fn stride(&self, len: u32) -> u32 {
        (self.lead + len).next_multiple_of(LINE) | LINE
    }

    /// How many buffers a transmit queue has.
    pub(super) fn tx_slots(&self) -> u16 {
        self.slots(self.tx_pieces()).min(self.tx_buffers)
    }

    pub(super) fn tx_pieces(&self) -> u16 {
        match self.tx_layout {
            TxLayout::Inline => 1,
            TxLayout::HeaderApart => 2,
            TxLayout::Pieces(n) => n.max(1),
        }
    }

    /// How many buffers of `pieces` a queue holds at once.
    pub(super) fn slots(&self, pieces: u16) -> u16 {
        let indirect = match self.indirect {
            Indirect::Never => false,
            Indirect::Chains => pieces > 1,
            Indirect::Always => true,
        };
        if indirect { self.queue_size } else { (self.queue_size / pieces).max(1) }
    }

    /// How much memory a queue pair takes, with room for alignment.
    pub(super) fn pair_memory(&self) -> u64 {
        let n = u64::from(self.queue_size);
        let rings = 2 * (16 * n + 2 * n + 8 * n + 12 + 4 * 4096);
        let tables = match self.indirect {
            Indirect::Never => 0,
            _ => n * 16 * u64::from(self.tx_pieces() + self.rx_pieces) + 64,
        };
        let rx = u64::from(self.slots(self.rx_pieces)) * u64::from(self.stride(self.rx_buffer));
        let tx = u64::from(self.tx_slots()) * u64::from(self.stride(self.tx_buffer));
        rings + tables + rx + tx + 4 * 4096
    }
}
