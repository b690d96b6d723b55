//! Bulk TCP whose receiver confirms what arrived.
//!
//! The sender writes a reproducible stream and closes; the receiver answers with the length and the hash of what it
//! got, sixteen bytes, and closes too. Against a peer that does not answer so, the report lacks the confirmation.

use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::IpEndpoint;

use super::Guest;
use crate::error::{Error, Result};
use crate::hash::{Pattern, StreamHash};

/// What a bulk transfer did.
#[derive(Clone, Copy, Debug)]
pub struct BulkReport {
    /// Bytes of payload.
    pub bytes: u64,
    /// The payload's hash.
    pub hash: u64,
    /// From the first byte to the last, as the reporting side saw it.
    pub elapsed: Duration,
    /// Of a sender: the length and the hash that the receiver confirmed, if it did.
    pub confirmed: Option<(u64, u64)>,
    /// Of a receiver: the sender's address and port.
    pub peer: Option<IpEndpoint>,
}

impl BulkReport {
    /// Whether the receiver confirmed exactly what was sent.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.confirmed == Some((self.bytes, self.hash))
    }

    /// Payload per time, bits per second.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl Guest {
    fn tcp_socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; self.config.tcp_buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    /// Connects to `to` and sends `bytes` of the stream of `seed`. A refused connection is tried again until
    /// `timeout`, because the peer may be about to listen.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it takes longer; [`Error::Device`] when the peer refuses for all that time, or resets
    /// the connection.
    pub fn tcp_send(
        &mut self,
        to: IpEndpoint,
        bytes: u64,
        seed: u64,
        timeout: Duration,
    ) -> Result<BulkReport> {
        let deadline = Instant::now() + timeout;
        loop {
            let port = self.local_port();
            let handle = self.tcp_socket();
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            let connected = socket.connect(self.iface.context(), to, port);
            let left = deadline.saturating_duration_since(Instant::now());
            let result = match connected {
                Ok(()) => self.tcp_send_on(handle, bytes, seed, left),
                Err(e) => Err(Error::Config(format!("connecting to {to}: {e}"))),
            };
            self.sockets.remove(handle);
            match result {
                Ok(None) if Instant::now() >= deadline => {
                    return Err(Error::Device(format!("{to} refused the TCP connection")));
                }
                Ok(None) => self.serve(Duration::from_millis(10), || false)?,
                Ok(Some(report)) => return Ok(report),
                Err(Error::Timeout { what, .. }) => return Err(Error::Timeout { what, after: timeout }),
                Err(e) => return Err(e),
            }
        }
    }

    /// `None` when the connection was refused.
    fn tcp_send_on(
        &mut self,
        handle: SocketHandle,
        bytes: u64,
        seed: u64,
        timeout: Duration,
    ) -> Result<Option<BulkReport>> {
        let mut pattern = Pattern::new(seed);
        let mut hash = StreamHash::new();
        let mut answer = Vec::new();
        let mut started = None;
        let mut ended = None;
        let accepted = self.run_until("end of a TCP transfer", timeout, |guest| {
            let s = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if s.state() == tcp::State::Closed {
                return match started {
                    None => Ok(Some(false)),
                    Some(_) => Err(Error::Device("the peer reset the TCP connection".into())),
                };
            }
            while s.can_send() && hash.len() < bytes {
                started.get_or_insert_with(Instant::now);
                let left = bytes - hash.len();
                let sent = s.send(|buf| {
                    let n = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    pattern.fill(&mut buf[..n]);
                    hash.update(&buf[..n]);
                    (n, n)
                });
                if !matches!(sent, Ok(1..)) {
                    break;
                }
            }
            if hash.len() == bytes && s.may_send() && s.state() == tcp::State::Established {
                s.close();
            }
            while let Ok(1..) = s.recv(|buf| {
                answer.extend_from_slice(buf);
                (buf.len(), buf.len())
            }) {}
            if hash.len() == bytes && s.send_queue() == 0 {
                // The FIN counts to the queue's end: what is acknowledged here is the payload.
                ended.get_or_insert_with(Instant::now);
            }
            let over = matches!(s.state(), tcp::State::TimeWait | tcp::State::Closing | tcp::State::LastAck);
            Ok((over && ended.is_some()).then_some(true))
        })?;
        if !accepted {
            return Ok(None);
        }
        // The acknowledgement of the peer's end must be out before the caller may drop the guest.
        self.drain(timeout)?;
        let confirmed = answer.as_slice().try_into().ok().map(|b: [u8; 16]| {
            let v = u128::from_le_bytes(b);
            (v as u64, (v >> 64) as u64)
        });
        let elapsed =
            ended.zip(started).map_or(Duration::ZERO, |(end, start): (Instant, Instant)| end - start);
        Ok(Some(BulkReport { bytes: hash.len(), hash: hash.finish(), elapsed, confirmed, peer: None }))
    }

    /// Listens on `port`, takes one connection until the peer closes, and confirms what it got.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it takes longer; [`Error::Device`] when the peer resets the connection.
    pub fn tcp_receive(&mut self, port: u16, timeout: Duration) -> Result<BulkReport> {
        let handle = self.tcp_socket();
        let listening = self.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(port);
        let result = match listening {
            Ok(()) => self.tcp_receive_on(handle, timeout),
            Err(e) => Err(Error::Config(format!("listening on port {port}: {e}"))),
        };
        self.sockets.remove(handle);
        result
    }

    fn tcp_receive_on(&mut self, handle: SocketHandle, timeout: Duration) -> Result<BulkReport> {
        let mut hash = StreamHash::new();
        let mut started = None;
        let mut ended = None;
        let mut peer = None;
        self.run_until("end of a TCP transfer", timeout, |guest| {
            let s = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
            peer = s.remote_endpoint().or(peer);
            while let Ok(1..) = s.recv(|buf| {
                hash.update(buf);
                (buf.len(), buf.len())
            }) {
                started.get_or_insert_with(Instant::now);
                ended = None;
            }
            match s.state() {
                tcp::State::CloseWait if !s.can_recv() => {
                    ended.get_or_insert_with(Instant::now);
                    let answer = (u128::from(hash.finish()) << 64) | u128::from(hash.len());
                    if s.send_slice(&answer.to_le_bytes()).is_ok() {
                        s.close();
                    }
                    Ok(None)
                }
                tcp::State::Closed if ended.is_some() => Ok(Some(())),
                tcp::State::Closed => Err(Error::Device("the TCP connection was reset".into())),
                _ => Ok(None),
            }
        })?;
        let elapsed =
            ended.zip(started).map_or(Duration::ZERO, |(end, start): (Instant, Instant)| end - start);
        Ok(BulkReport { bytes: hash.len(), hash: hash.finish(), elapsed, confirmed: None, peer })
    }
}
