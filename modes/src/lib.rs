//! Forwarding modes of a network: what becomes of a frame, and what a network remembers for that.
//!
//! A mode implements [`switch_core::mode::Mode`]. It sees heads of frames and identifiers of ports, and never
//! what kind a port is; whoever composes a network makes its mode with the constructor here and hands it to
//! the datapath as that contract.
//!
//! - [`bridge`]: a learning switch. [`internal`]: one without host and outside. [`routed`]: a subnet for each
//!   guest. [`nat`]: a private subnet behind address translation.
//! - [`gateway`]: the switch's own station on a network: ARP, ND, ICMP echo, DHCP, DNS, router advertisements.
//! - [`router`]: what `routed` and `nat` share: neighbours, the slow path, ICMP errors.
//! - [`host`]: what a network changes of the host: addresses, routes, forwarding, masquerading.
#![forbid(unsafe_code)]

pub mod bridge;
pub mod gateway;
pub mod host;
pub mod internal;
pub mod nat;
pub mod routed;
pub mod router;
mod wire;

pub use bridge::Bridge;
