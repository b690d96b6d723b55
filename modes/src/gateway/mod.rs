//! The switch's own station on a network: ARP, ND, ICMP echo, DHCP, DNS, router advertisements.
//!
//! Everything here is without I/O: frames come in with the port that they came from, frames and questions to the
//! outside's name servers go out by an [`Outbox`], and time is an argument. It runs on a thread of its own, never on
//! a worker: the gateway is a port of its network like any other, and what a mode's forwarder cannot decide from a
//! head it sends there.

mod budget;
mod datagram;
pub mod dhcp4;
pub mod dhcp6;
pub mod dns;
pub mod leases;
pub mod outbox;
mod packet6;
pub mod ra;
mod search;
mod senders;
mod stack;
pub mod station;

pub use crate::router::link_local;
pub use outbox::{Handled, Outbox, Outgoing, SlowPath};
pub use station::{Clock, Gateway, LeaseWatch, Links, NameWatch, Question, Services, Settings};

#[cfg(test)]
mod tests;
