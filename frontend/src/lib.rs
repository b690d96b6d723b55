//! A vhost-user front-end and virtio-net driver, for demonstrations, tests and benchmarks.
//!
//! This crate plays the guest: what QEMU and the Linux `virtio_net` driver do toward a vhost-user back-end, in one
//! process and without a virtual machine. From the bottom up:
//!
//! | module | what it is |
//! |---|---|
//! | [`memory`] | guest memory on memfds, shared with the back-end |
//! | [`raw`] | vhost-user messages as bytes and descriptors, and rings as anybody may write them: the hostile side |
//! | [`session`] | a well-behaved session over the `vhost` crate's front-end |
//! | [`ring`] | the driver's side of virtqueues |
//! | [`device`] | [`device::NetDevice`]: a virtio-net device with queue pairs, `send` and `recv` |
//! | [`wire`] | frames for tests |
//! | [`stack`] | a guest with an IP stack (smoltcp): ping, TCP, UDP |
//! | [`bulk`] | TCP-shaped super-frames that show segmentation offload from end to end |
//! | [`traffic`] | the benchmark's generator |
//!
//! Nothing here waits without a bound: every call that may block takes, or is configured with, a timeout.
//!
//! ```no_run
//! use std::time::Duration;
//! use frontend::{Config, NetDevice};
//!
//! # fn main() -> frontend::Result<()> {
//! let mut device = NetDevice::connect("/run/weft/vif1.0.sock", Config::default())?;
//! let frame = frontend::wire::arp_request(device.mac(), [10, 0, 0, 1], [10, 0, 0, 2]);
//! device.send(&frame)?;
//! let (header, reply) = device.recv(Duration::from_secs(1))?;
//! # let _ = (header, reply);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod bulk;
pub mod device;
mod error;
pub mod eventfd;
pub mod features;
pub mod hash;
pub mod histogram;
pub mod memory;
pub mod raw;
pub mod ring;
pub mod session;
pub mod stack;
pub mod traffic;
pub mod wire;

pub use device::{Config, NetDevice, VnetHeader};
pub use error::{Error, Result};
