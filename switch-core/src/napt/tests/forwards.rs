//! Port forwards at runtime.

use super::*;

#[test]
fn forwards_are_open_to_all_and_replies_leave_by_them() {
    for protocol in [Tcp, Udp] {
        let mut rig = Rig::filtering(Filtering::AddressAndPortDependent);
        rig.forward(&forward(protocol, 8000, 100, guest(5, 9000)));
        let outside = |port| Endpoint::new(external(1), port);
        assert_eq!(rig.inward(0, protocol, outside(8042), remote(1, 1), SYN), Ok(guest(5, 9042)));
        assert_eq!(rig.out(0, protocol, guest(5, 9042), remote(1, 1), SYN_ACK), Ok(outside(8042)));
        assert_eq!(rig.inward(0, protocol, outside(8042), remote(2, 2), SYN), Ok(guest(5, 9042)));
        assert_eq!(rig.inward(0, protocol, outside(8100), remote(1, 1), SYN), NO_MAPPING);
        // What the target itself opens goes out by the forward, too.
        assert_eq!(rig.out(0, protocol, guest(5, 9007), remote(9, 9), SYN), Ok(outside(8007)));
        assert_ne!(rig.out(0, protocol, guest(5, 9100), remote(9, 9), SYN).unwrap().port, 8100);
        assert!(rig.napt.sessions(at(0), 99).iter().all(|s| s.protocol == protocol));
    }
}

#[test]
fn a_forward_of_one_address_holds_there_alone() {
    let mut rig = Rig::with(Settings::new([1, 2]), &[1, 2]);
    let one = Forward { address: Some(external(2).into()), ..forward(Tcp, 80, 1, guest(5, 80)) };
    rig.forward(&one);
    assert_eq!(rig.inward(0, Tcp, Endpoint::new(external(1), 80), remote(1, 1), SYN), NO_MAPPING);
    assert_eq!(rig.inward(0, Tcp, Endpoint::new(external(2), 80), remote(1, 1), SYN), Ok(guest(5, 80)));
    assert_eq!(
        rig.out(0, Tcp, guest(5, 80), remote(1, 1), SYN_ACK),
        Ok(Endpoint::new(external(2), 80)),
        "wherever the guest is paired"
    );
}

#[test]
fn adding_a_forward_takes_the_port_and_removing_it_ends_its_sessions() {
    let mut rig = Rig::new();
    let taken = rig.out(0, Tcp, guest(1, 1), remote(1, 80), SYN).unwrap();
    let other = rig.out(0, Tcp, guest(1, 2), remote(1, 80), SYN).unwrap();
    let forward = forward(Tcp, taken.port, 1, guest(5, 22));
    rig.forward(&forward);
    assert!(matches!(rig.napt.add_forward(at(0), &forward), Err(ForwardError::Taken(p)) if p == taken.port));
    assert_eq!(rig.inward(0, Tcp, taken, remote(1, 80), SYN), Ok(guest(5, 22)), "for the next packet");
    assert_eq!(rig.out(0, Tcp, guest(1, 1), remote(1, 80), ACK), NO_MAPPING);
    assert_ne!(rig.out(0, Tcp, guest(1, 1), remote(1, 80), SYN).unwrap(), taken);
    rig.out(0, Tcp, guest(5, 22), remote(1, 80), SYN_ACK).unwrap();
    assert_eq!(rig.inward(0, Tcp, taken, remote(1, 80), ACK), Ok(guest(5, 22)));
    assert_eq!(rig.inward(0, Tcp, taken, remote(1, 80), ACK), Ok(guest(5, 22)), "from the cache");

    assert!(rig.napt.remove_forward(at(1), &forward));
    assert!(!rig.napt.remove_forward(at(1), &forward));
    assert_eq!(rig.inward(1, Tcp, taken, remote(1, 80), ACK), NO_MAPPING, "not even from the cache");
    assert_eq!(rig.out(1, Tcp, guest(5, 22), remote(1, 80), ACK), NO_MAPPING);
    assert!(rig.view.has_session(at(1), Tcp, other, remote(1, 80)), "others stay");
}

#[test]
fn strangers_cannot_use_up_what_a_guest_may_have() {
    let settings = Settings { sessions_per_host: 100, ..Settings::new([1, 2]) };
    let mut rig = Rig::with(settings, &[1]);
    rig.forward(&forward(Tcp, 80, 1, guest(5, 80)));
    rig.forward(&forward(Udp, 53, 1, guest(5, 53)));
    let outside = |port| Endpoint::new(external(1), port);
    for port in 0..50 {
        assert!(rig.inward(0, Tcp, outside(80), remote(1, port), SYN).is_ok());
    }
    assert_eq!(rig.inward(0, Tcp, outside(80), remote(1, 50), SYN), QUOTA, "half is the guest's own");
    assert_eq!(rig.inward(0, Udp, outside(53), remote(1, 50), NONE), Ok(guest(5, 53)), "needs no session");
    for port in 0..50 {
        assert!(rig.out(0, Tcp, guest(5, 1000), remote(2, port), SYN).is_ok());
    }
    assert_eq!(rig.out(0, Tcp, guest(5, 1000), remote(2, 50), SYN), QUOTA);
}
