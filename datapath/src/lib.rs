//! The frame path: bursts from receive queues, one decision, one copy into the destination.
//!
//! - [`burst`]: a worker's frames: heads of its own, tails where the sender has them.
//! - [`port`]: the contract of a port: receive queues that one worker polls, a transmit side that all share.
//! - [`buffers`], [`socket`], [`datagram`]: where the kernel copies what is received, and what sockets need beyond safe
//!   wrappers.
//! - [`memory`]: the only place that touches bytes which somebody else may change meanwhile.
//! - [`path`]: one burst's way from its receive queue to its destinations.
//! - [`topology`], [`counters`], [`police`]: what holds for ports, and what is known of them. [`ticks`]: what work took.
//! - [`pool`], [`host`]: the threads that poll, and how queues come to them and go. Which queue goes to which worker is
//!   `balance`'s to say, how a worker's queues take turns `turns`'.
//! - [`tap`], [`netdev`]: ports to the host. [`stream`], [`dgram`]: to a process, by a Unix socket. [`local`]: to a station
//!   in this process. [`inmem`]: for simulations.
//! - [`unix`], [`peer`], [`event`]: what ports at a Unix socket share.
//!
//! The crate names no forwarding mode: decisions come through [`switch_core::mode`].

mod balance;
pub mod buffers;
pub mod burst;
pub mod counters;
mod crowd;
pub mod datagram;
pub mod dgram;
mod dispatch;
pub mod egress;
pub mod event;
pub mod host;
pub mod inmem;
mod load;
pub mod local;
pub mod memory;
mod messages;
pub mod netdev;
pub mod path;
pub mod peer;
pub mod police;
pub mod pool;
pub mod port;
pub mod socket;
mod spin;
pub mod stream;
pub mod tap;
#[cfg(test)]
mod testing;
pub mod ticks;
pub mod topology;
mod turns;
pub mod unix;
mod waited;
mod worker;

pub use burst::{Bucket, Burst, Frame, Segment};
pub use host::{QueueHost, QueueId};
pub use port::{Armed, PortError, RxQueue, TxPort, TxReport};
