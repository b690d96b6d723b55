//! Feature bits: what is offered, what was agreed, and their names.

use switch_core::offload::OffloadSet;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::{virtio_config, virtio_net, virtio_ring};

pub(crate) const VERSION_1: u32 = virtio_config::VIRTIO_F_VERSION_1;
pub(crate) const MRG_RXBUF: u32 = virtio_net::VIRTIO_NET_F_MRG_RXBUF;
pub(crate) const INDIRECT_DESC: u32 = virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
pub(crate) const EVENT_IDX: u32 = virtio_ring::VIRTIO_RING_F_EVENT_IDX;
pub(crate) const MQ: u32 = virtio_net::VIRTIO_NET_F_MQ;
pub(crate) const RING_PACKED: u32 = virtio_config::VIRTIO_F_RING_PACKED;
pub(crate) const IN_ORDER: u32 = virtio_config::VIRTIO_F_IN_ORDER;
/// Not virtio's: the front-end and back-end talk about protocol features, and rings start disabled.
pub(crate) const PROTOCOL_FEATURES: u32 = 30;

/// Each feature that this back-end knows, with the name that operators read (QEMU's, where it has one).
const NAMES: [(u32, &str); 23] = [
    (virtio_net::VIRTIO_NET_F_CSUM, "csum"),
    (virtio_net::VIRTIO_NET_F_GUEST_CSUM, "guest_csum"),
    (virtio_net::VIRTIO_NET_F_MTU, "mtu"),
    (virtio_net::VIRTIO_NET_F_GUEST_TSO4, "guest_tso4"),
    (virtio_net::VIRTIO_NET_F_GUEST_TSO6, "guest_tso6"),
    (virtio_net::VIRTIO_NET_F_GUEST_ECN, "guest_ecn"),
    (virtio_net::VIRTIO_NET_F_HOST_TSO4, "host_tso4"),
    (virtio_net::VIRTIO_NET_F_HOST_TSO6, "host_tso6"),
    (virtio_net::VIRTIO_NET_F_HOST_ECN, "host_ecn"),
    (MRG_RXBUF, "mrg_rxbuf"),
    (virtio_net::VIRTIO_NET_F_STATUS, "status"),
    (virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE, "guest_announce"),
    (MQ, "mq"),
    (virtio_config::VIRTIO_F_ANY_LAYOUT, "any_layout"),
    (INDIRECT_DESC, "indirect_desc"),
    (EVENT_IDX, "event_idx"),
    (PROTOCOL_FEATURES, "protocol_features"),
    (VERSION_1, "version_1"),
    (RING_PACKED, "packed"),
    (IN_ORDER, "in_order"),
    (virtio_net::VIRTIO_NET_F_GUEST_USO4, "guest_uso4"),
    (virtio_net::VIRTIO_NET_F_GUEST_USO6, "guest_uso6"),
    (virtio_net::VIRTIO_NET_F_HOST_USO, "host_uso"),
];

/// What a port of `queue_pairs` offers. Buffers are always used in the order they were made available, whatever
/// was negotiated, so IN_ORDER costs nothing.
pub(crate) fn offered(queue_pairs: u16) -> u64 {
    let all = NAMES.iter().fold(0u64, |all, (bit, _)| all | 1 << bit);
    let mq = if queue_pairs > 1 { 0 } else { 1 << MQ };
    all & !mq
}

/// The protocol features that every port offers.
pub(crate) fn protocol_offered() -> Protocol {
    Protocol::MQ
        | Protocol::RARP
        | Protocol::REPLY_ACK
        | Protocol::MTU
        | Protocol::RESET_DEVICE
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::STATUS
}

/// The names of the features in a set.
pub(crate) fn names(features: u64) -> Vec<&'static str> {
    NAMES.iter().filter(|(bit, _)| features & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

/// The names of the protocol features in a set.
pub(crate) fn protocol_names(features: u64) -> Vec<&'static str> {
    [
        (Protocol::MQ, "mq"),
        (Protocol::RARP, "rarp"),
        (Protocol::REPLY_ACK, "reply_ack"),
        (Protocol::MTU, "mtu"),
        (Protocol::RESET_DEVICE, "reset_device"),
        (Protocol::CONFIGURE_MEM_SLOTS, "configure_mem_slots"),
        (Protocol::STATUS, "status"),
    ]
    .into_iter()
    .filter(|(bit, _)| features & bit.bits() != 0)
    .map(|(_, name)| name)
    .collect()
}

/// What the driver may ask of the device. Segmentation without checksums (virtio 1.2, 5.1.3.1) does not exist.
pub(crate) fn from_driver(features: u64) -> OffloadSet {
    offloads(
        features,
        virtio_net::VIRTIO_NET_F_CSUM,
        [
            virtio_net::VIRTIO_NET_F_HOST_TSO4,
            virtio_net::VIRTIO_NET_F_HOST_TSO6,
            virtio_net::VIRTIO_NET_F_HOST_ECN,
        ],
        [virtio_net::VIRTIO_NET_F_HOST_USO; 2],
    )
}

/// What the device may ask of the driver.
pub(crate) fn to_driver(features: u64) -> OffloadSet {
    offloads(
        features,
        virtio_net::VIRTIO_NET_F_GUEST_CSUM,
        [
            virtio_net::VIRTIO_NET_F_GUEST_TSO4,
            virtio_net::VIRTIO_NET_F_GUEST_TSO6,
            virtio_net::VIRTIO_NET_F_GUEST_ECN,
        ],
        [virtio_net::VIRTIO_NET_F_GUEST_USO4, virtio_net::VIRTIO_NET_F_GUEST_USO6],
    )
}

fn offloads(features: u64, csum: u32, tso: [u32; 3], uso: [u32; 2]) -> OffloadSet {
    let has = |bit: u32| features & (1 << bit) != 0;
    if !has(csum) {
        return OffloadSet::NONE;
    }
    let kinds = [OffloadSet::TCPV4, OffloadSet::TCPV6, OffloadSet::ECN];
    let mut set = OffloadSet::CHECKSUM;
    for (bit, kind) in tso.into_iter().zip(kinds) {
        if has(bit) {
            set = set.with(kind);
        }
    }
    // UDP_L4 is both families' in one.
    if uso.into_iter().all(has) {
        set = set.with(OffloadSet::UDP_L4);
    }
    set
}
