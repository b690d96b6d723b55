//! What a virtual switch decides, and nothing that it does: frame heads, tables and verdicts.
//!
//! This crate has no I/O, no clock (time is an argument), no threads and no `unsafe`. The datapath hands it
//! the *heads* of frames, copies in memory of its own that no guest can change, and gets verdicts back. What
//! a guest writes into its memory after that cannot change a decision, because nothing here can read it.
//!
//! - [`ids`], [`time`]: the vocabulary: ports, networks, VLANs, MAC addresses, instants.
//! - [`head`]: a frame's first bytes and what travels with them.
//! - [`virtio_net`], [`offload`]: the virtio-net header as bytes, and what it means once checked.
//! - [`check`]: the one place where a frame becomes trusted, or a [`drop::DropReason`].
//! - [`guard`]: the sources that a port may use.
//! - [`verdict`], [`mode`]: what a network decides of a frame, and the contract of those who decide.
//! - [`fdb`]: the forwarding database of a learning bridge.
//! - [`flow`]: which flow a frame is of, to choose a queue by.
//! - [`ip`]: IP packets on heads and whole frames: reading, rewriting, errors. [`lpm`]: the longest-prefix match.
//! - [`napt`]: network address and port translation.
//! - [`checksum`], [`segment`]: software stand-ins for offloads that a receiver did not negotiate.
#![forbid(unsafe_code)]

pub mod check;
pub mod checksum;
pub mod drop;
pub mod fdb;
pub mod flow;
pub mod guard;
pub mod head;
mod headers;
pub mod ids;
pub mod ip;
pub mod lpm;
pub mod mode;
pub mod napt;
pub mod offload;
pub mod segment;
#[cfg(test)]
mod testing;
pub mod time;
pub mod verdict;
pub mod virtio_net;

pub use drop::DropReason;
pub use head::Head;
pub use ids::{MacAddr, NetworkId, PortId, Vid};
pub use time::Instant;
pub use verdict::{Verdict, Verdicts};
