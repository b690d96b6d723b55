//! The Varlink interface `io.weft.Switch`: the shapes of its replies, and its errors.
//!
//! The keys are the contract of `--json`: scripts rely on them, so they are added to and never renamed. Words that
//! describe networks and ports travel as the command line has them, `key` to `value`; the server checks them again.
//! Integers are 64 bits on the wire.

mod types;

pub use types::*;

/// The interface's name.
pub const INTERFACE: &str = "io.weft.Switch";
