//! What stands before `vhost`'s request handler: it looks at each message without taking it from the socket,
//! and lets through what is whole and well formed.
//!
//! Peeking keeps the handler from ever waiting in the middle of a message of a slow front-end, and shows the
//! messages that this back-end answers itself ([`Request::is_ours`]). How many
//! descriptors come with a message is the handler's to check, because the kernel shows those of a later message
//! too to who peeks. But it must never meet more than fit its buffer: it then loses the header it has read, and takes
//! the body for the next one. So no message may have more, this one or the later one.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};

/// Bytes of a message's header: request, flags, size.
pub(super) const HEADER: usize = 12;
/// Bytes of a message's body, at most: the handler's own limit.
const BODY_MAX: u32 = 0x1000;
/// Descriptors that come with a message, at most: the handler's own limit.
const DESCRIPTORS_MAX: usize = 32;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// A message's kind, in the specification's numbers ("Front-end message types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request(pub(super) u32);

impl Request {
    pub(super) const SET_VRING_ENABLE: Self = Self(18);
    pub(super) const SEND_RARP: Self = Self(19);
    pub(super) const NET_SET_MTU: Self = Self(20);
    pub(super) const SET_STATUS: Self = Self(39);
    pub(super) const GET_STATUS: Self = Self(40);

    const NAMES: [&'static str; 41] = [
        "NONE",
        "GET_FEATURES",
        "SET_FEATURES",
        "SET_OWNER",
        "RESET_OWNER",
        "SET_MEM_TABLE",
        "SET_LOG_BASE",
        "SET_LOG_FD",
        "SET_VRING_NUM",
        "SET_VRING_ADDR",
        "SET_VRING_BASE",
        "GET_VRING_BASE",
        "SET_VRING_KICK",
        "SET_VRING_CALL",
        "SET_VRING_ERR",
        "GET_PROTOCOL_FEATURES",
        "SET_PROTOCOL_FEATURES",
        "GET_QUEUE_NUM",
        "SET_VRING_ENABLE",
        "SEND_RARP",
        "NET_SET_MTU",
        "SET_BACKEND_REQ_FD",
        "IOTLB_MSG",
        "SET_VRING_ENDIAN",
        "GET_CONFIG",
        "SET_CONFIG",
        "CREATE_CRYPTO_SESSION",
        "CLOSE_CRYPTO_SESSION",
        "POSTCOPY_ADVISE",
        "POSTCOPY_LISTEN",
        "POSTCOPY_END",
        "GET_INFLIGHT_FD",
        "SET_INFLIGHT_FD",
        "GPU_SET_SOCKET",
        "RESET_DEVICE",
        "VRING_KICK",
        "GET_MAX_MEM_SLOTS",
        "ADD_MEM_REG",
        "REM_MEM_REG",
        "SET_STATUS",
        "GET_STATUS",
    ];

    pub(super) fn name(self) -> &'static str {
        Self::NAMES.get(self.0 as usize).copied().unwrap_or("unknown")
    }

    /// True for the messages that we answer: four that `vhost`'s handler does not know, and one that it refuses
    /// before `SET_FEATURES`, when QEMU sends it first.
    pub(super) fn is_ours(self) -> bool {
        let ours =
            [Self::SET_VRING_ENABLE, Self::SEND_RARP, Self::NET_SET_MTU, Self::SET_STATUS, Self::GET_STATUS];
        ours.contains(&self)
    }
}

/// A message's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) request: Request,
    flags: u32,
    size: u32,
}

impl Header {
    fn parse(bytes: [u8; HEADER]) -> Self {
        let word = |i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Self { request: Request(word(0)), flags: word(4), size: word(8) }
    }

    pub(super) fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// What is at the front of the socket.
#[derive(Debug)]
pub(super) enum Peeked {
    /// The front-end closed.
    Closed,
    /// Nothing, or not all of a message yet.
    Partial,
    /// A whole message.
    Whole(Header),
}

/// Why a message is not let through.
#[derive(Debug, thiserror::Error)]
pub(super) enum GateError {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("a message of version {0}, not {VERSION}")]
    Version(u32),
    #[error("a message with more than {DESCRIPTORS_MAX} file descriptors, or than this process may open")]
    Descriptors,
    #[error("a reply where a request was expected")]
    Reply,
    #[error("message {name} ({number}) has a body of {size} bytes; {BODY_MAX} are allowed", number = .request.0, name = .request.name())]
    TooLong { request: Request, size: u32 },
    #[error("message {name} has a body of {size} bytes", name = .request.name())]
    Size { request: Request, size: u32 },
}

/// Looks at the next message. Nothing is taken from the socket; descriptors stay queued, and the duplicates that
/// looking makes are closed.
pub(super) fn peek(socket: impl AsFd) -> Result<Peeked, GateError> {
    let mut bytes = [0u8; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let peeked = rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
    // Counting drops them, which closes them.
    let descriptors: usize = control
        .drain()
        .map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.count(),
            _ => 0,
        })
        .sum();
    let got = match peeked {
        // The buffer's alignment leaves room for one or two more than asked for.
        Ok(got) if got.flags.contains(ReturnFlags::CTRUNC) || descriptors > DESCRIPTORS_MAX => {
            return Err(GateError::Descriptors);
        }
        Ok(got) => got.bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Peeked::Partial),
        Err(rustix::io::Errno::CONNRESET) => return Ok(Peeked::Closed),
        Err(e) => return Err(GateError::Socket(e.into())),
    };
    if got == 0 {
        return Ok(Peeked::Closed);
    }
    if got < HEADER {
        return Ok(Peeked::Partial);
    }
    let header = Header::parse(bytes);
    let (request, size) = (header.request, header.size);
    if header.flags & VERSION_MASK != VERSION {
        return Err(GateError::Version(header.flags & VERSION_MASK));
    }
    if header.flags & REPLY != 0 {
        return Err(GateError::Reply);
    }
    if size > BODY_MAX {
        return Err(GateError::TooLong { request, size });
    }
    let queued = rustix::io::ioctl_fionread(&socket).map_err(io::Error::from)?;
    if queued < (HEADER as u64) + u64::from(size) {
        return Ok(Peeked::Partial);
    }
    Ok(Peeked::Whole(header))
}

/// As [`peek`], for a message that was partial: closed, if nothing can come any more.
pub(super) fn peek_partial(socket: impl AsFd) -> Result<Peeked, GateError> {
    let mut poll = [PollFd::new(&socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut poll, Some(&now));
    let ended = !poll[0].revents().is_empty();
    // In this order: what was sent before the end is there once the end is seen.
    match peek(&socket)? {
        Peeked::Partial if ended => Ok(Peeked::Closed),
        other => Ok(other),
    }
}

/// Takes a message of ours from the socket: no body, or one number.
pub(super) fn take(socket: impl AsFd, header: &Header) -> Result<Option<u64>, GateError> {
    let (request, size) = (header.request, header.size);
    if size != if request == Request::GET_STATUS { 0 } else { 8 } {
        return Err(GateError::Size { request, size });
    }
    let mut bytes = [0u8; HEADER + 8];
    let whole = HEADER + size as usize;
    let (got, _) =
        rustix::net::recv(&socket, &mut bytes[..whole], RecvFlags::WAITALL).map_err(io::Error::from)?;
    if got != whole {
        return Err(GateError::Size { request, size: got.saturating_sub(HEADER) as u32 });
    }
    Ok(bytes[HEADER..whole].first_chunk().map(|b| u64::from_ne_bytes(*b)))
}

/// Answers a message of ours with one number. False if nobody is there to hear it.
pub(super) fn reply(socket: impl AsFd, request: Request, value: u64) -> io::Result<bool> {
    let mut bytes = [0u8; HEADER + 8];
    bytes[..4].copy_from_slice(&request.0.to_ne_bytes());
    bytes[4..8].copy_from_slice(&(VERSION | REPLY).to_ne_bytes());
    bytes[8..12].copy_from_slice(&8u32.to_ne_bytes());
    bytes[12..].copy_from_slice(&value.to_ne_bytes());
    let mut sent = 0;
    while sent < bytes.len() {
        match rustix::net::send(&socket, &bytes[sent..], SendFlags::NOSIGNAL) {
            Ok(n) => sent += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}
