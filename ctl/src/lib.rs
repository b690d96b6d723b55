//! Networks and ports as an operator sees them: model, protocol, server, client, command line.
//!
//! * [`model`]: what an operator may say of a network or a port, checked; no I/O.
//! * [`config`]: the same words from a file, and what changes between two files.
//! * [`protocol`]: the Varlink interface `io.weft.Switch` and the shapes of its replies.
//! * [`server`]: the ctl socket; it calls a [`server::Switch`], which the daemon implements.
//! * [`client`]: one call over the ctl socket.
//! * [`cli`]: the command line, which is the client's first user and has no private door.
//!
//! Everything here belongs to the control thread, or to the process of a command; nothing touches a frame.
#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod config;
pub mod model;
pub mod protocol;
pub mod server;
