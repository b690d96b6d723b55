//! The kernel's interfaces, addresses, routes and neighbours, by rtnetlink(7): the messages here, what they mean in
//! the modules below. Every request has a time limit.

use std::io;
use std::time::Duration;

use futures_util::StreamExt as _;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(super) mod address;
pub(super) mod link;
pub(super) mod neighbour;
pub(super) mod route;
pub(super) mod rule;

/// How long the kernel may take for one request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How often a listing is begun again because something changed in the middle of it.
const DUMP_TRIES: usize = 8;

/// A socket of the family, in the network namespace of the thread that opened it.
pub(super) struct Netlink {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Opens one. Must be called on a tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Asks for a list.
    async fn dump(&self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES {
            let mut message = NetlinkMessage::from(request.clone());
            message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut handle = self.handle.clone();
            let answers = handle.request(message).map_err(io::Error::other)?;
            let answers: Vec<_> = timeout(REQUEST_TIME, answers.collect()).await.map_err(late)?;
            let mut list = Vec::new();
            let mut torn = false;
            for answer in answers {
                let (header, payload) = answer.into_parts();
                torn |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload {
                    NetlinkPayload::InnerMessage(inner) => list.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
            if !torn {
                return Ok(list);
            }
        }
        Err(io::Error::other("the kernel's tables change faster than they can be read"))
    }

    /// Asks for a change.
    async fn change(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let answers = handle.request(message).map_err(io::Error::other)?;
        let answers: Vec<_> = timeout(REQUEST_TIME, answers.collect()).await.map_err(late)?;
        for answer in answers {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer")
}

/// Whether an error is one of these.
pub(super) fn is(error: &io::Error, codes: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|raw| codes.iter().any(|code| code.raw_os_error() == raw))
}

/// An addition that may have been made already.
pub(super) fn may_exist(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is(&error, &[Errno::EXIST]) => Ok(()),
        other => other,
    }
}

/// A removal of what may be gone already.
pub(super) fn may_be_gone(result: io::Result<()>) -> io::Result<()> {
    const GONE: [Errno; 4] = [Errno::ADDRNOTAVAIL, Errno::SRCH, Errno::NOENT, Errno::NODEV];
    match result {
        Err(error) if is(&error, &GONE) => Ok(()),
        other => other,
    }
}
