//! What is left of a translator when it ends.

use super::*;

#[test]
fn a_translator_that_ends_while_ports_rest_leaves_nothing() {
    let mut rig = Rig::new();
    rig.out(0, Udp, guest(1, 1), remote(1, 53), NONE).unwrap();
    rig.expire(400);
    assert_eq!(rig.napt.session_count(), 0);
    assert!(!rig.napt.is_idle(), "a port rests");
    let external = Arc::downgrade(&rig.napt.outside().externals[0]);
    drop(rig);
    assert!(external.upgrade().is_none(), "a host and its outside address keep each other");
}

#[test]
fn outside_addresses_that_went_are_forgotten_with_what_rested_on_them() {
    let mut rig = Rig::new();
    let first = Arc::downgrade(&rig.napt.outside().externals[0]);
    rig.out(0, Udp, guest(1, 1), remote(1, 53), NONE).unwrap();
    for last in 2..40 {
        rig.napt.set_externals(at(1), &[external(last)]);
        rig.out(1, Udp, guest(last, 1), remote(1, 53), NONE).unwrap();
    }
    // The worker's copy is of before the last change at most.
    assert!(first.upgrade().is_none());
}
