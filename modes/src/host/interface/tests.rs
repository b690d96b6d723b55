//! What is added and removed.

use super::*;

fn address(text: &str) -> Address {
    Address::new(text.parse().unwrap())
}

#[test]
fn the_difference_adds_what_is_missing_and_removes_only_ours() {
    let (a, b, c) = (address("10.0.0.1/24"), address("10.0.1.1/24"), address("fd00::1/64"));
    let foreign = address("10.9.9.9/24");
    let there = [a.clone(), foreign.clone()];
    let (add, remove) = difference(&[b.clone(), c.clone(), b.clone()], &there, std::slice::from_ref(&a));
    assert_eq!((add, remove), (vec![b.clone(), c.clone()], vec![a.clone()]));
    // What is there and wanted is left, whosever it is.
    let (add, remove) = difference(std::slice::from_ref(&foreign), &there, &[]);
    assert_eq!((add, remove), (vec![], vec![]));
    // Ours that somebody removed is not removed again.
    let (add, remove) = difference(&[], std::slice::from_ref(&foreign), &[a]);
    assert_eq!((add, remove), (vec![], vec![]));
}

#[test]
fn another_prefix_length_is_another_address() {
    let (a, b) = (address("10.0.0.1/24"), address("10.0.0.1/16"));
    let (add, remove) =
        difference(std::slice::from_ref(&b), std::slice::from_ref(&a), std::slice::from_ref(&a));
    assert_eq!((add, remove), (vec![b], vec![a]));
}

#[test]
fn broadcast_is_of_networks_that_have_room_for_it() {
    assert_eq!(address("10.0.0.1/24").broadcast, Some([10, 0, 0, 255].into()));
    assert_eq!(address("10.0.0.1/31").broadcast, None);
    assert_eq!(address("10.0.0.1/32").broadcast, None);
    assert_eq!(address("fd00::1/64").broadcast, None);
}
