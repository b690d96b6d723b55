//! The frame path: bursts from receive queues, one decision, one copy into the destination.
//!
//! - [`burst`]: a worker's frames: heads of its own, tails where the sender has them.
//! - [`port`]: the contract of a port: receive queues that one worker polls, a transmit side that all share.
//! - [`memory`]: the only place that touches bytes which somebody else may change meanwhile.
//! - [`tap`], [`netdev`], [`inmem`]: ports.
//!
//! The crate names no forwarding mode: decisions come through [`switch_core::mode`].

pub mod burst;
pub mod host;
pub mod memory;
pub mod port;

pub use burst::{Bucket, Burst, Frame, Segment};
pub use host::{QueueHost, QueueId};
pub use port::{Armed, PortError, RxQueue, TxPort, TxReport};
