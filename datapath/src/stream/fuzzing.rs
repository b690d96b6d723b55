//! A stream port's receive queue as the fuzz target drives it: in one thread, on a socket pair.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::connection::Connection;
use super::rx::StreamRx;
use crate::burst::Burst;
use crate::egress::to_vec;
use crate::event::Event;
use crate::port::{Armed, RxDrops, RxQueue};

/// What came of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The frames, in their order.
    pub frames: Vec<Vec<u8>>,
    /// Frames that were longer than frames can be.
    pub oversize: u32,
    /// The peer broke the protocol.
    pub broken: bool,
}

/// Receives what a peer writes in the pieces `writes`, of at most 100,000 bytes each, each received before the next.
///
/// # Errors
/// No descriptor to be had.
///
/// # Panics
/// The queue does what no queue may: it fails, or would sleep with frames in it.
pub fn receive<'a>(writes: impl IntoIterator<Item = &'a [u8]>) -> io::Result<Received> {
    let (mut theirs, ours) = UnixStream::pair()?;
    let connection = Arc::new(Connection::new(ours, Arc::new(Event::new()?))?);
    let mut queue = StreamRx::new(Arc::clone(&connection));
    let (mut burst, mut drops) = (Burst::new(), RxDrops::default());
    let mut received = Received::default();
    for bytes in writes {
        theirs.write_all(bytes)?;
        loop {
            burst.clear();
            let before = drops;
            let n = queue.rx_burst(&mut burst, &mut drops).expect("a peer breaks no port");
            received.frames.extend((0..n).map(|i| to_vec(&burst.heads()[i], burst.tail(i))));
            queue.release();
            if n == 0 && drops == before && queue.arm().expect("it can be asked") == Armed::Sleeping {
                break;
            }
        }
        // Nobody reads what comes after, and it would have to wait.
        if connection.end().is_some() {
            break;
        }
    }
    received.oversize = drops.oversize;
    received.broken = connection.end().is_some();
    Ok(received)
}
