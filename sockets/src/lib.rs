//! The port whose other end is the host's own sockets: what guests send to the outside becomes connections, datagrams
//! and pings of this process, and what comes back becomes frames. It needs no right that an ordinary user does not have.
//!
//! - [`port`]: the port's two sides, as workers see them: frames out of the network come to the transmit side, frames
//!   into it leave by the receive queue. No thread is added, and payload is copied by the kernel alone: from a guest's
//!   memory to the socket, and from the socket to the burst's buffers.
//! - [`settings`], [`limits`], [`policy`]: what the port is told: addresses, bounds, and which destinations are open.
//! - [`counters`]: what became of flows, by name.
//! - `engine`: everything that there is behind the port's lock: one call for each frame, event and burst.
//! - `tcp`, `udp`, `echo`: the protocols. Each has a state machine without I/O, in which time is an argument, and a part
//!   that drives it with sockets.
//! - `forwards`: sockets that listen for guests, and where the guests are.
//! - `frame`, `fill`, `outbox`: frames into the network: their headers, and where they are written.
//! - `table`: mappings of protocols without connections. `faults`: what their guests are told of errors.
//! - `reassembly`, `fragments`: packets that guests send in fragments. `pieces`: packets that go to them in fragments.
//! - `token`: what the kernel's events carry. `turns`: whose turn it is to receive.
//!
//! A guest is whoever sends to the router's MAC address: its words are checked, and bounded, for each inside address.
//! Nothing here knows a mode of forwarding.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod counters;
mod echo;
mod engine;
mod faults;
mod fill;
mod forwards;
mod fragments;
mod frame;
pub mod limits;
mod outbox;
mod pieces;
pub mod policy;
pub mod port;
mod reassembly;
pub mod settings;
mod socket;
mod table;
mod tcp;
mod token;
mod turns;
mod udp;

pub use counters::{Counter, Counters};
pub use forwards::{ListenError, Source};
pub use limits::Limits;
pub use policy::{Policy, Protocol, Rule, Target};
pub use port::{Control, SocketsRx, SocketsTx, open};
pub use settings::Settings;
#[cfg(feature = "fuzzing")]
pub use tcp::fuzzing;
pub use tcp::{Inbound, NotBegun};
