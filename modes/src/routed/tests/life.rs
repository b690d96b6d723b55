//! Ports and leases that come and go; what the gateway sends itself.

use super::*;

#[test]
fn leases_come_and_go() {
    let mut rig = Rig::new();
    rig.set(8, facts(Role::Guest, None, &[], &[]));
    let (port, other) = (rig.ports[8], rig.ports[C]);
    let (out, back) = (udp(8, "10.0.0.80", "10.0.0.6"), udp(B, "10.0.0.6", "10.0.0.80"));
    assert_eq!(rig.inject(8, &out), Fate::Dropped(DropReason::Rpf), "no address yet");
    assert!(!answers(rig.inject(8, &arp_request(8, "10.0.0.80", "10.0.0.1"))));
    assert!(rig.routed.assign(port, ip("10.0.0.80"), mac(8)).is_ok());
    assert_eq!(rig.inject(8, &out), Fate::Fast(B, forwarded(&out, mac(B))));
    assert_eq!(rig.inject(B, &back), Fate::Fast(8, forwarded(&back, mac(8))), "without a question");
    assert!(answers(rig.inject(8, &arp_request(8, "10.0.0.80", "10.0.0.1"))));
    for taken in ["10.0.0.1", "192.0.2.10", "10.0.0.5", "fd00::6", "10.0.0.2"] {
        assert_eq!(rig.routed.assign(port, ip(taken), mac(8)), Err(AddressTaken(ip(taken))));
    }
    assert!(
        rig.routed.assign(rig.ports[UPLINK], ip("10.0.0.81"), mac(8)).is_err(),
        "only guests have leases"
    );
    // The lease goes elsewhere, ends, and the port goes.
    assert!(rig.routed.assign(other, ip("10.0.0.80"), mac(C)).is_ok());
    assert_eq!(rig.inject(8, &out), Fate::Dropped(DropReason::Rpf));
    assert_eq!(rig.inject(B, &back), Fate::Fast(C, forwarded(&back, mac(C))));
    assert!(rig.routed.withdraw(ip("10.0.0.80")) && !rig.routed.withdraw(ip("10.0.0.80")));
    assert_eq!(error_to(B, rig.inject(B, &back)), Some((3, 1)));
    assert!(rig.routed.assign(port, ip("10.0.0.80"), mac(8)).is_ok());
    rig.routed.port_removed(port);
    assert_eq!(error_to(B, rig.inject(B, &back)), Some((3, 1)));
    // An operator's word is stronger than a lease.
    assert!(rig.routed.assign(other, ip("10.0.0.90"), mac(C)).is_ok());
    rig.set(B, facts(Role::Guest, Some(mac(B)), &["10.0.0.90"], &[]));
    let frame = udp(A, "10.0.0.5", "10.0.0.90");
    assert_eq!(rig.inject(A, &frame), Fate::Fast(B, forwarded(&frame, mac(B))));
}

#[test]
fn a_completed_change_holds_for_the_next_burst() {
    let mut rig = Rig::new();
    let frame = udp(A, "10.0.0.5", "10.0.0.6");
    assert!(matches!(rig.inject(A, &frame), Fate::Fast(B, _)));
    rig.routed.port_removed(rig.ports[B]);
    assert_eq!(error_to(A, rig.inject(A, &frame)), Some((3, 1)));
    rig.set(C, facts(Role::Guest, Some(mac(C)), &["10.0.0.6"], &[]));
    assert!(matches!(rig.inject(A, &frame), Fate::Fast(C, _)));
    rig.routed.port_removed(rig.ports[A]);
    assert_eq!(rig.inject(A, &frame), Fate::Dropped(DropReason::Unhandled));
}

#[test]
fn the_gateways_own_packets_are_routed_and_never_come_back_to_it() {
    let mut rig = Rig::new();
    let mut frame = udp(GATEWAY, "10.0.0.1", "10.0.0.5");
    set_macs(&mut frame, MacAddr([2, 9, 9, 9, 9, 9]), ROUTER);
    let mut want = frame.clone();
    set_macs(&mut want, mac(A), ROUTER);
    assert_eq!(rig.inject(GATEWAY, &frame), Fate::Fast(A, want), "its hops are not counted");
    let unknown = udp(GATEWAY, "10.0.0.1", "10.0.0.7");
    assert_eq!(rig.inject(GATEWAY, &unknown), Fate::Dropped(DropReason::NoDestination));
    let mut group = udp(GATEWAY, "10.0.0.1", "10.0.0.5");
    group[..6].fill(0xff);
    assert_eq!(rig.inject(GATEWAY, &group), Fate::Dropped(DropReason::NotRouted));
}
