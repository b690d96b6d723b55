//! The hostile side: messages and rings without any rule.
//!
//! [`RawSession`] sends any bytes with any file descriptors in any order, and reads what comes back with a bound in
//! time. [`RingAccess`] writes any word of a ring. A scenario usually starts from a
//! [`NetDevice`](crate::NetDevice) that is set up properly, takes [`NetDevice::raw`](crate::NetDevice::raw) and
//! [`NetDevice::ring_access`](crate::NetDevice::ring_access) of it, and breaks what it wants to see broken.

mod message;
mod ring;

pub(crate) use message::connect_stream;
pub use message::{Message, NEED_REPLY, NO_FD, REPLY, RawSession, Reply, VERSION};
pub use ring::{Desc, RingAccess, table_bytes};
/// The requests' codes.
pub use vhost::vhost_user::message::FrontendReq;
