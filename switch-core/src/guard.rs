//! Which sources a port may use, by Xen's `vif` rules for `ip=`: only those, in IP and in ARP, and the traffic of a
//! DHCP client. A guest cannot pass for another station, nor for the gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::head::Head;
use crate::ids::MacAddr;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The sources that a port may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceGuard {
    /// The only source MAC, if set.
    pub mac: Option<MacAddr>,
    /// The only source addresses, if any.
    pub addresses: Vec<IpAddr>,
}

impl SourceGuard {
    /// Whether a checked frame uses only what the port may use.
    pub fn allows(&self, head: &Head) -> bool {
        if self.mac.is_some_and(|mac| mac != head.source()) {
            return false;
        }
        if self.addresses.is_empty() {
            return true;
        }
        let Some(packet) = head.bytes().get(head.link_len()..) else { return false };
        match head.ethertype() {
            ETHERTYPE_IPV4 => self.allows_ipv4(packet),
            ETHERTYPE_ARP => self.allows_arp(packet),
            ETHERTYPE_IPV6 => self.allows_ipv6(packet),
            _ => false,
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    fn allows_ipv4(&self, packet: &[u8]) -> bool {
        let Some(source) = packet.get(12..16).and_then(|b| b.first_chunk::<4>()) else { return false };
        let source = Ipv4Addr::from(*source);
        self.has(source.into()) || (source.is_unspecified() && is_dhcp_client(packet))
    }

    fn allows_arp(&self, packet: &[u8]) -> bool {
        // RFC 826, for Ethernet and IPv4: sender hardware address at 8, sender protocol address at 14.
        let Some(sender) = packet.get(14..18).and_then(|b| b.first_chunk::<4>()) else { return false };
        let hardware = packet.get(8..).and_then(MacAddr::from_slice);
        let sender = Ipv4Addr::from(*sender);
        packet.get(..6) == Some(&[0, 1, 8, 0, 6, 4])
            && (self.has(sender.into()) || sender.is_unspecified())
            && self.mac.is_none_or(|mac| hardware == Some(mac))
    }

    fn allows_ipv6(&self, packet: &[u8]) -> bool {
        let Some(source) = packet.get(8..24).and_then(|b| b.first_chunk::<16>()) else { return false };
        let source = Ipv6Addr::from(*source);
        // A station without an address asks for one from `::` (RFC 4862), and neighbour discovery uses the
        // link-local address; neither lets it pass for somebody else's global address.
        self.has(source.into()) || source.is_unspecified() || source.is_unicast_link_local()
    }
}

/// An IPv4 packet from a DHCP client: UDP, port 68 to 67, not a fragment.
fn is_dhcp_client(packet: &[u8]) -> bool {
    let header = usize::from(packet.first().map_or(0, |b| b & 0xf)) * 4;
    packet.get(9) == Some(&17)
        && packet.get(6..8).is_some_and(|f| f[0] & 0x3f == 0 && f[1] == 0)
        && packet.get(header..header + 4) == Some(&[0, 68, 0, 67])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::OffloadSet;

    #[test]
    fn a_guard_allows_its_sources_and_a_dhcp_client() {
        let mac: MacAddr = "00:16:3e:00:00:01".parse().unwrap();
        let guard = SourceGuard {
            mac: Some(mac),
            addresses: vec!["10.0.0.5".parse().unwrap(), "2001:db8::5".parse().unwrap()],
        };
        let frame = |source: MacAddr, ethertype: u16, payload: &[u8]| {
            let mut f = vec![0xff; 6];
            f.extend(source.0);
            f.extend(ethertype.to_be_bytes());
            f.extend(payload);
            let mut head = Head::from_frame(&f);
            crate::check::frame(&mut head, OffloadSet::NONE).unwrap();
            head
        };
        let ipv4 = |source: [u8; 4], ports: [u8; 4]| {
            let mut p = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
            p.extend(source);
            p.extend([255; 4]);
            p.extend(ports);
            p.extend([0, 8, 0, 0]);
            p
        };
        assert!(guard.allows(&frame(mac, 0x0800, &ipv4([10, 0, 0, 5], [1, 2, 3, 4]))));
        assert!(!guard.allows(&frame(mac, 0x0800, &ipv4([10, 0, 0, 6], [1, 2, 3, 4]))), "another's address");
        assert!(guard.allows(&frame(mac, 0x0800, &ipv4([0; 4], [0, 68, 0, 67]))), "a DHCP client");
        assert!(!guard.allows(&frame(mac, 0x0800, &ipv4([0; 4], [0, 68, 0, 53]))));
        assert!(
            !guard.allows(&frame(MacAddr([2, 0, 0, 0, 0, 9]), 0x0800, &ipv4([10, 0, 0, 5], [0; 4]))),
            "another's MAC"
        );
        let arp = |sender: [u8; 4], hardware: MacAddr| {
            let mut p = vec![0, 1, 8, 0, 6, 4, 0, 1];
            p.extend(hardware.0);
            p.extend(sender);
            p.extend([0; 10]);
            p
        };
        assert!(guard.allows(&frame(mac, 0x0806, &arp([10, 0, 0, 5], mac))));
        assert!(!guard.allows(&frame(mac, 0x0806, &arp([10, 0, 0, 1], mac))), "ARP for the gateway");
        assert!(!guard.allows(&frame(mac, 0x0806, &arp([10, 0, 0, 5], MacAddr([2, 0, 0, 0, 0, 9])))));
        assert!(!guard.allows(&frame(mac, 0x0800, &[])), "an empty packet");
        assert!(!guard.allows(&frame(mac, 0x88cc, &[0; 40])), "what is not IP or ARP");
    }
}
