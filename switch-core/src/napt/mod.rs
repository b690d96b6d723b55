//! Network address and port translation, as RFC 4787, 5382, 5508, 6888 and 7857 want it.
//!
//! - [`access`]: what an operator sees and changes.

pub mod access;

pub use access::{Forward, ForwardError, NatAccess, NatSession, Protocol};
