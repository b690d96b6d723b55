//! netdev
pub(crate) mod buffers;
pub mod link;
