//! What a port may send: its sources, and how much.
//!
//! The guard follows Xen's `vif` rules for `ip=`: only those sources, in IP and in ARP, and the traffic of a
//! DHCP client. The rate is xl's: so many bytes in each window, and a guest that has used them up waits: its
//! ring is left alone until the window turns, so nothing is dropped for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::time::Duration;

use switch_core::{Head, Instant, MacAddr};

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

/// A limit on the bytes that a port sends.
#[derive(Debug)]
pub struct RateLimit {
    /// Bytes in each window.
    bytes: u64,
    window: Duration,
    state: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    ends: Instant,
    used: u64,
}

impl RateLimit {
    /// At most `bytes` bytes in each `window`. A frame that begins within the limit may end beyond it; the
    /// excess counts for the next window.
    pub fn new(bytes: u64, window: Duration) -> Self {
        let window = window.max(Duration::from_micros(100));
        Self { bytes: bytes.max(1), window, state: Mutex::new(Window { ends: Instant::ORIGIN, used: 0 }) }
    }

    /// `None` if the port may send now, else when it may.
    pub fn wait_until(&self, now: Instant) -> Option<Instant> {
        let mut w = self.state.lock().unwrap_or_else(|e| e.into_inner());
        while now >= w.ends && w.used > 0 {
            let idle = now.since(w.ends) > self.window.saturating_mul(64);
            w.used = if idle { 0 } else { w.used.saturating_sub(self.bytes) };
            w.ends = w.ends + self.window;
        }
        if w.used == 0 && now >= w.ends {
            w.ends = now + self.window;
        }
        (w.used >= self.bytes).then_some(w.ends)
    }

    /// The port sent `bytes`.
    pub fn spend(&self, bytes: u64) {
        let mut w = self.state.lock().unwrap_or_else(|e| e.into_inner());
        w.used = w.used.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switch_core::offload::OffloadSet;

    #[test]
    fn a_rate_is_so_many_bytes_a_window() {
        let rate = RateLimit::new(20_000, Duration::from_millis(20));
        let mut now = Instant::from_secs(1);
        let mut sent = 0u64;
        for _ in 0..100_000 {
            match rate.wait_until(now) {
                None => {
                    rate.spend(1514);
                    sent += 1514;
                }
                Some(t) => {
                    assert!(t > now);
                    now = t;
                }
            }
        }
        let seconds = now.since(Instant::from_secs(1)).as_secs_f64();
        let per_second = sent as f64 / seconds;
        assert!((per_second / 1_000_000.0 - 1.0).abs() < 0.01, "{per_second} B/s of 1,000,000");
    }

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
            switch_core::check::frame(&mut head, OffloadSet::NONE).unwrap();
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
