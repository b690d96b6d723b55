//! What one port may have, whatever addresses its guest sends from.

use super::*;
use crate::ids::{PortId, Registry};

fn ports() -> [PortId; 2] {
    let mut registry = Registry::<PortId>::new(2);
    [registry.mint().unwrap(), registry.mint().unwrap()]
}

impl Rig {
    fn by(&mut self, secs: u64, port: PortId, local: End, remote: End) -> Answer {
        self.view.outbound_from(at(secs), Some(port), &Flow { protocol: Udp, local, remote, flags: NONE })
    }
}

#[test]
fn a_port_with_many_addresses_has_no_more_ports_than_one() {
    let mut rig = Rig::with(Settings { mappings_per_host: 10, ..Settings::new([1, 2]) }, &[1]);
    let [a, b] = ports();
    for n in 0..10 {
        rig.by(0, a, guest(n, 1), remote(1, 53)).unwrap();
    }
    assert_eq!(rig.by(0, a, guest(0, 2), remote(1, 53)), QUOTA, "ports");
    assert_eq!(rig.by(0, a, guest(10, 1), remote(1, 53)), QUOTA, "ports of another address");
    assert!(rig.by(0, b, guest(20, 1), remote(1, 53)).is_ok(), "another port's guest");
    // A guest that took an address that is another's is charged for it, and not the other one.
    assert!(rig.by(0, b, guest(0, 9), remote(1, 53)).is_ok());
    // Ports that rest count as well, and then all is as it was.
    rig.expire(310);
    assert_eq!(rig.by(310, a, guest(0, 1), remote(1, 53)), QUOTA);
    rig.expire(440);
    assert!(rig.by(440, a, guest(30, 1), remote(1, 53)).is_ok());
}

#[test]
fn a_port_with_many_addresses_has_no_more_sessions_than_one() {
    let mut rig = Rig::with(Settings { sessions_per_host: 100, ..Settings::new([1, 2]) }, &[1]);
    let [a, b] = ports();
    for n in 0..100 {
        rig.by(0, a, guest(n % 4, 1), remote(2, n.into())).unwrap();
    }
    assert_eq!(rig.by(0, a, guest(0, 1), remote(3, 1)), QUOTA);
    assert_eq!(rig.by(0, a, guest(5, 1), remote(3, 1)), QUOTA);
    assert!(rig.by(0, a, guest(0, 1), remote(2, 0)).is_ok(), "what is there goes on");
    assert!(rig.by(0, b, guest(6, 1), remote(3, 1)).is_ok());
    rig.expire(310);
    assert!(rig.by(310, a, guest(5, 1), remote(3, 1)).is_ok());
}

#[test]
fn a_port_has_so_many_addresses_until_they_are_forgotten() {
    let settings = Settings { addresses_per_port: 4, ..Settings::new([1, 2]) };
    let mut rig = Rig::with(settings, &[1]);
    let [a, b] = ports();
    for n in 0..4 {
        rig.by(0, a, guest(n, 1), remote(1, 53)).unwrap();
    }
    for n in 4..250 {
        assert_eq!(rig.by(0, a, guest(n, 1), remote(1, 53)), QUOTA, "address {n}");
    }
    assert_eq!(rig.napt.common.hosts.len(), 4, "nothing is remembered of the others");
    assert!(rig.by(0, a, guest(3, 2), remote(1, 53)).is_ok(), "the same address");
    assert!(rig.by(0, b, guest(9, 1), remote(1, 53)).is_ok(), "another port");
    // When nothing is left of an address, another one may take its place.
    for secs in [310, 440] {
        for _ in 0..20 {
            rig.expire(secs);
        }
    }
    assert!(rig.napt.is_idle());
    assert_eq!(rig.napt.common.hosts.len(), 0);
    for n in 100..104 {
        rig.by(440, a, guest(n, 1), remote(1, 53)).unwrap();
    }
}
