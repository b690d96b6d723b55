//! Forwarding modes of a network: what becomes of a frame, and what a network remembers for that.
//!
//! A mode implements [`switch_core::mode::Mode`]. It sees heads of frames and identifiers of ports, and never
//! what kind a port is; whoever composes a network makes its mode with the constructor here and hands it to
//! the datapath as that contract.
//!
//! - [`bridge`]: a learning switch.
#![forbid(unsafe_code)]

pub mod bridge;

pub use bridge::Bridge;
