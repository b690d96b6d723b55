//! What our outside addresses answer to ICMP echo requests (RFC 792, RFC 4443 4.2).

use switch_core::checksum::Sum;
use switch_core::ids::MacAddr;
use switch_core::ip::{Addresses, PROTO_ICMPV6, Packet, set_macs};

/// The answer to an echo request in a whole frame, from `mac`. `None` if it is a fragment.
pub(super) fn reply(mut packet: Packet, request: &[u8], mac: MacAddr) -> Option<Vec<u8>> {
    let mut frame = request.get(..packet.end())?.to_vec();
    let sender = frame.get(6..).and_then(MacAddr::from_slice)?;
    let (source, destination) = (packet.source(), packet.destination());
    if packet.is_fragment() || !packet.set_source(&mut frame, destination, None) {
        return None;
    }
    packet.set_destination(&mut frame, source, None);
    set_macs(&mut frame, sender, mac);
    let (ip, icmp) = frame.split_at_mut_checked(packet.transport_at())?;
    let mut sum = match packet.addresses() {
        Addresses::V4 { .. } => {
            let header = ip.get_mut(packet.network_at()..)?;
            *header.get_mut(8)? = 64;
            header.get_mut(10..12)?.fill(0);
            let mut sum = Sum::new();
            sum.add(header);
            header.get_mut(10..12)?.copy_from_slice(&sum.checksum().to_be_bytes());
            *icmp.first_mut()? = 0;
            Sum::new()
        }
        Addresses::V6 { source, destination } => {
            *ip.get_mut(packet.network_at() + 7)? = 64;
            *icmp.first_mut()? = 129;
            let length = u32::try_from(icmp.len()).ok()?;
            Sum::pseudo_v6(source.octets(), destination.octets(), PROTO_ICMPV6, length)
        }
    };
    icmp.get_mut(2..4)?.fill(0);
    sum.add(icmp);
    icmp.get_mut(2..4)?.copy_from_slice(&sum.checksum().to_be_bytes());
    Some(frame)
}
