//! Feature bits, in the specifications' names.
//!
//! Virtio 1.3, 5.1.3 (network device) and 6 (reserved); vhost-user's own bits from its "Communication" section.

use virtio_bindings::{virtio_config, virtio_net, virtio_ring};

/// The driver understands checksum requests of the device's side: the guest may send partial checksums.
pub const CSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_CSUM;
/// The guest accepts frames with partial checksums.
pub const GUEST_CSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
/// The device tells its MTU.
pub const MTU: u64 = 1 << virtio_net::VIRTIO_NET_F_MTU;
/// The device has a MAC address in its configuration space.
pub const MAC: u64 = 1 << virtio_net::VIRTIO_NET_F_MAC;
/// The guest accepts TCPv4 segments larger than the MTU.
pub const GUEST_TSO4: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4;
/// The guest accepts TCPv6 segments larger than the MTU.
pub const GUEST_TSO6: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO6;
/// The guest accepts TSO with ECN.
pub const GUEST_ECN: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_ECN;
/// The guest accepts UDP fragmentation offload.
pub const GUEST_UFO: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_UFO;
/// The device segments TCPv4.
pub const HOST_TSO4: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4;
/// The device segments TCPv6.
pub const HOST_TSO6: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6;
/// The device accepts TSO with ECN.
pub const HOST_ECN: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_ECN;
/// The device fragments UDP.
pub const HOST_UFO: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_UFO;
/// The driver merges receive buffers.
pub const MRG_RXBUF: u64 = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;
/// The configuration space has a link status.
pub const STATUS: u64 = 1 << virtio_net::VIRTIO_NET_F_STATUS;
/// The driver announces itself on request.
pub const GUEST_ANNOUNCE: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;
/// Several queue pairs.
pub const MQ: u64 = 1 << virtio_net::VIRTIO_NET_F_MQ;
/// The guest accepts UDP segmentation offload over IPv4.
pub const GUEST_USO4: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO4;
/// The guest accepts UDP segmentation offload over IPv6.
pub const GUEST_USO6: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO6;
/// The device segments UDP.
pub const HOST_USO: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_USO;

/// A frame's layout over descriptors is free, also without [`VERSION_1`].
pub const ANY_LAYOUT: u64 = 1 << virtio_config::VIRTIO_F_ANY_LAYOUT;
/// Descriptor tables of their own in memory.
pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// Notifications are suppressed by index.
pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// The modern interface: little-endian, header of 12 bytes.
pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// The packed ring.
pub const RING_PACKED: u64 = 1 << virtio_config::VIRTIO_F_RING_PACKED;
/// Buffers are used in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << virtio_config::VIRTIO_F_IN_ORDER;

/// Dirty pages are logged (vhost).
pub const LOG_ALL: u64 = 1 << 26;
/// Protocol features are negotiated, and rings start disabled (vhost-user).
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Every segmentation feature, both directions.
pub const ALL_TSO: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
/// Every UDP segmentation feature, both directions.
pub const ALL_USO: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;
/// Every checksum and segmentation feature.
pub const ALL_OFFLOADS: u64 = CSUM | GUEST_CSUM | ALL_TSO | ALL_USO;

/// Protocol features (vhost-user), as bits of their mask.
pub mod protocol {
    use vhost::vhost_user::VhostUserProtocolFeatures as P;

    /// Several queue pairs; `GET_QUEUE_NUM`.
    pub const MQ: u64 = P::MQ.bits();
    /// The dirty log is a shared file.
    pub const LOG_SHMFD: u64 = P::LOG_SHMFD.bits();
    /// `SEND_RARP`.
    pub const RARP: u64 = P::RARP.bits();
    /// A message may ask for an acknowledgement.
    pub const REPLY_ACK: u64 = P::REPLY_ACK.bits();
    /// `NET_SET_MTU`.
    pub const MTU: u64 = P::MTU.bits();
    /// `RESET_DEVICE`.
    pub const RESET_DEVICE: u64 = P::RESET_DEVICE.bits();
    /// `ADD_MEM_REG`, `REM_MEM_REG`, `GET_MAX_MEM_SLOTS`.
    pub const CONFIGURE_MEM_SLOTS: u64 = P::CONFIGURE_MEM_SLOTS.bits();
    /// `SET_STATUS`, `GET_STATUS`.
    pub const STATUS: u64 = P::STATUS.bits();
}
