//! vhost-user messages as bytes and file descriptors.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::FrontendReq;

use crate::error::{Error, Result};
use crate::memory::Region;

/// Header flag: protocol version 1.
pub const VERSION: u32 = 1;
/// Header flag: this is a reply.
pub const REPLY: u32 = 4;
/// Header flag: the sender wants an acknowledgement.
pub const NEED_REPLY: u32 = 8;
/// Bit of a kick, call or error message's payload: no file descriptor comes with it.
pub const NO_FD: u64 = 1 << 8;
const HEADER: usize = 12;
/// The kernel's own bound on descriptors of one message (`SCM_MAX_FD`).
const FDS_MAX: usize = 253;

/// A message, well-formed or not.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// The request code: a [`FrontendReq`], or any number.
    pub request: u32,
    /// The header's flags; version 1 unless changed.
    pub flags: u32,
    /// The size that the header claims; `None` for the body's.
    pub size: Option<u32>,
    /// The payload.
    pub body: Vec<u8>,
    /// The descriptors that go along (at most 253).
    pub fds: Vec<BorrowedFd<'a>>,
}

impl<'a> Message<'a> {
    /// A message without payload.
    #[must_use]
    pub fn new(request: FrontendReq) -> Self {
        Message::with_code(request.into())
    }

    /// A message of any code.
    #[must_use]
    pub fn with_code(request: u32) -> Self {
        Message { request, flags: VERSION, size: None, body: Vec::new(), fds: Vec::new() }
    }

    /// A message whose payload is one 64-bit number.
    #[must_use]
    pub fn u64(request: FrontendReq, value: u64) -> Self {
        Message::new(request).body(&value.to_le_bytes())
    }

    /// A message whose payload is a ring's index and a number (`NUM`, `BASE`, `ENABLE`).
    #[must_use]
    pub fn vring_state(request: FrontendReq, index: u32, num: u32) -> Self {
        Message::new(request).body(&index.to_le_bytes()).body(&num.to_le_bytes())
    }

    /// `SET_VRING_ADDR` with user addresses.
    #[must_use]
    pub fn vring_addr(index: u32, flags: u32, desc: u64, used: u64, avail: u64, log: u64) -> Self {
        let mut m =
            Message::new(FrontendReq::SET_VRING_ADDR).body(&index.to_le_bytes()).body(&flags.to_le_bytes());
        for address in [desc, used, avail, log] {
            m = m.body(&address.to_le_bytes());
        }
        m
    }

    /// `SET_MEM_TABLE` of these regions, with their descriptors.
    #[must_use]
    pub fn mem_table(regions: &'a [Region]) -> Self {
        let tuples: Vec<_> = regions.iter().map(|r| (r.gpa(), r.len(), r.user_addr(), 0)).collect();
        let mut m = Message::mem_table_of(&tuples);
        m.fds = regions.iter().map(Region::fd).collect();
        m
    }

    /// `SET_MEM_TABLE` of any (guest address, size, user address, offset in the file), without descriptors.
    #[must_use]
    pub fn mem_table_of(regions: &[(u64, u64, u64, u64)]) -> Self {
        let mut m = Message::u64(FrontendReq::SET_MEM_TABLE, regions.len() as u64);
        for (gpa, size, user, offset) in regions {
            for word in [gpa, size, user, offset] {
                m = m.body(&word.to_le_bytes());
            }
        }
        m
    }

    /// `ADD_MEM_REG` or `REM_MEM_REG` of any (guest address, size, user address, offset in the file).
    #[must_use]
    pub fn mem_reg(request: FrontendReq, region: (u64, u64, u64, u64)) -> Self {
        let mut m = Message::u64(request, 0);
        for word in [region.0, region.1, region.2, region.3] {
            m = m.body(&word.to_le_bytes());
        }
        m
    }

    /// Appends to the payload.
    #[must_use]
    pub fn body(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self
    }

    /// Adds a descriptor.
    #[must_use]
    pub fn fd(mut self, fd: BorrowedFd<'a>) -> Self {
        self.fds.push(fd);
        self
    }

    /// Asks for an acknowledgement.
    #[must_use]
    pub fn need_reply(mut self) -> Self {
        self.flags |= NEED_REPLY;
        self
    }

    /// Sets the header's flags as they are.
    #[must_use]
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    /// Has the header claim another size than the payload's.
    #[must_use]
    pub fn claim_size(mut self, size: u32) -> Self {
        self.size = Some(size);
        self
    }

    /// The message's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let size = self.size.unwrap_or(self.body.len() as u32);
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        for word in [self.request, self.flags, size] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// What the back-end answered.
#[derive(Debug)]
pub struct Reply {
    /// The request it answers.
    pub request: u32,
    /// The header's flags.
    pub flags: u32,
    /// The payload.
    pub body: Vec<u8>,
    /// The descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    /// The payload as one 64-bit number.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is not one.
    pub fn u64(&self) -> Result<u64> {
        let bytes = self.body.as_slice().try_into();
        let bytes = bytes.map_err(|_| {
            Error::Protocol(format!("reply to {} of {} bytes", self.request, self.body.len()))
        })?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The payload as a ring's index and a number.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is not that.
    pub fn vring_state(&self) -> Result<(u32, u32)> {
        let v = self.u64()?;
        Ok((v as u32, (v >> 32) as u32))
    }
}

/// A vhost-user socket without a protocol on top.
#[derive(Debug)]
pub struct RawSession {
    stream: UnixStream,
}

impl RawSession {
    /// Connects to a back-end that listens on `path`, waiting for the socket to appear until `timeout`; the same
    /// bound holds for each later read and write.
    ///
    /// # Errors
    /// [`Error::Io`] when nobody listens in time.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self> {
        Self::from_stream(connect_stream(path.as_ref(), timeout)?, timeout)
    }

    /// Takes a connected socket, with `timeout` for each read and write (at least 1 ms).
    ///
    /// # Errors
    /// The system call's.
    pub fn from_stream(stream: UnixStream, timeout: Duration) -> Result<Self> {
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        stream.set_nonblocking(false).map_err(|e| Error::io("making a socket blocking", e))?;
        stream.set_read_timeout(timeout).map_err(|e| Error::io("bounding a socket's reads", e))?;
        stream.set_write_timeout(timeout).map_err(|e| Error::io("bounding a socket's writes", e))?;
        Ok(RawSession { stream })
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message.
    ///
    /// # Errors
    /// As for [`RawSession::send_bytes`].
    pub fn send(&self, message: &Message<'_>) -> Result<()> {
        self.send_bytes(&message.bytes(), &message.fds)
    }

    /// Sends any bytes; the descriptors go with the first one.
    ///
    /// # Errors
    /// [`Error::Closed`] when the back-end is gone, else the system call's.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::Config(format!("{} descriptors in one message", fds.len())));
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
            .map_err(|e| broken("sending a vhost-user message", e.into()))?;
        (&self.stream).write_all(&bytes[sent..]).map_err(|e| broken("sending a vhost-user message", e))
    }

    /// Sends a message and reads its reply.
    ///
    /// # Errors
    /// As for [`RawSession::send`] and [`RawSession::recv`]; [`Error::Protocol`] when the reply answers another request.
    pub fn request(&self, message: &Message<'_>) -> Result<Reply> {
        self.send(message)?;
        let reply = self.recv()?;
        if reply.request != message.request || reply.flags & REPLY == 0 {
            return Err(Error::Protocol(format!(
                "request {} was answered by message {} with flags {:#x}",
                message.request, reply.request, reply.flags
            )));
        }
        Ok(reply)
    }

    /// Reads one message.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Closed`], or the system call's.
    pub fn recv(&self) -> Result<Reply> {
        let mut header = [0; HEADER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got =
            recvmsg(&self.stream, &mut [IoSliceMut::new(&mut header)], &mut control, RecvFlags::CMSG_CLOEXEC)
                .map_err(|e| broken("reading a vhost-user reply", e.into()))?;
        if got.bytes == 0 {
            return Err(Error::Closed);
        }
        let fds = control
            .drain()
            .filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None })
            .flatten()
            .collect();
        let mut stream = &self.stream;
        stream.read_exact(&mut header[got.bytes..]).map_err(|e| broken("reading a vhost-user reply", e))?;
        let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let size = word(8);
        if size > 1 << 16 {
            return Err(Error::Protocol(format!("reply of {size} bytes")));
        }
        let mut body = vec![0; size as usize];
        stream.read_exact(&mut body).map_err(|e| broken("reading a vhost-user reply", e))?;
        Ok(Reply { request: word(0), flags: word(4), body, fds })
    }

    /// Whether the back-end closes the connection within `timeout`. Messages that come first are thrown away.
    #[must_use]
    pub fn closes_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut stream = &self.stream;
        let mut buf = [0; 256];
        while crate::eventfd::wait_readable(&[self.stream.as_fd()], deadline).unwrap_or(false) {
            match stream.read(&mut buf) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => return true,
            }
        }
        false
    }

    /// Whether the back-end answers `GET_FEATURES`: what a session that survived something still does.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.request(&Message::new(FrontendReq::GET_FEATURES)).is_ok_and(|r| r.u64().is_ok())
    }
}

fn broken(what: &str, e: std::io::Error) -> Error {
    use std::io::ErrorKind as K;
    match e.kind() {
        K::BrokenPipe | K::ConnectionReset | K::UnexpectedEof | K::NotConnected => Error::Closed,
        K::WouldBlock | K::TimedOut => {
            Error::Timeout { what: "answer of the back-end", after: Duration::ZERO }
        }
        _ => Error::io(what, e),
    }
}

/// Connects to a Unix socket that may not be there yet, in bounded time also when its backlog is full.
pub(crate) fn connect_stream(path: &Path, timeout: Duration) -> Result<UnixStream> {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

    let deadline = Instant::now() + timeout;
    let what = || format!("connecting to {}", path.display());
    let address = SocketAddrUnix::new(path).map_err(|e| Error::io(what(), e))?;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|e| Error::io(what(), e))?;
        match connect(&fd, &address) {
            Ok(()) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false).map_err(|e| Error::io(what(), e))?;
                return Ok(stream);
            }
            Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(Error::io(what(), e)),
        }
    }
}
