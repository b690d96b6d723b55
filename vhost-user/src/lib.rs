//! The vhost-user back-end of virtio-net: sessions, guest memory, vrings, the port.
//!
//! - `port`: what the rest of the house sees: [`VhostUserPort`].
//! - `transmit`: the guest's receive rings together, and which of them a frame goes to.
//! - `session`: the conversation with a front-end: messages, rings set up, started and stopped.
//! - `memory`: the guest's memory, mapped and checked; what happens when it goes away.
//! - `vring`: the rings: the fast path of both directions.
//! - `features`: feature bits and what they mean.
//!
//! Specifications: virtio 1.2 (clauses 2 and 5.1), and QEMU's vhost-user protocol. `unsafe` is in `memory`
//! and `vring` only. Nothing here knows what becomes of a frame.

#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod features;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[allow(unsafe_code, reason = "mappings, and what happens when they go away")]
mod memory;
mod port;
mod session;
mod transmit;
#[allow(unsafe_code, reason = "memory that the guest writes at the same time")]
mod vring;

pub use datapath::peer::{OnChange, PortState, Role};
pub use datapath::unix::ListenError;
pub use memory::{MemoryError, RegionSpec, SLOTS_MAX};
pub use port::{PortConfig, PortInfo, PortSetupError, QUEUE_PAIRS_MAX, RegionInfo, RingInfo, VhostUserPort};
