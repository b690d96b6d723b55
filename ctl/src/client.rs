//! A client of the ctl socket: one call after the other, blocking, each with a deadline.

use crate::model::one_line;
use crate::protocol::INTERFACE;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest reply that is read, in bytes: a full FDB of the largest size, and then some.
const REPLY_MAX: usize = 512 << 20;
const READ_CHUNK: usize = 64 << 10;

/// Why a call has no reply; each one line for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("{0}")]
    NoDaemon(String),
    /// The daemon knows no such network or port.
    #[error("{0}")]
    NotFound(String),
    /// The daemon refused, or could not.
    #[error("{0}")]
    Refused(String),
    /// The call did not get through.
    #[error("{0}")]
    Failed(String),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    timeout: Duration,
    /// What was read beyond the last reply.
    buffer: Vec<u8>,
}

#[derive(Serialize)]
struct Call<'a, P> {
    method: String,
    parameters: &'a P,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    parameters: Option<Box<serde_json::value::RawValue>>,
}

/// The parameters of those errors that we know: ours have a message, Varlink's own name something.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorParameters {
    message: Option<String>,
    method: Option<String>,
    parameter: Option<String>,
}

impl Client {
    /// Connects to the first of `paths` where a daemon listens. Each call, and connecting, takes at most `timeout`.
    ///
    /// # Errors
    /// Nobody listens on any of them, or one is there and cannot be used.
    pub fn connect(paths: &[PathBuf], timeout: Duration) -> Result<Self, ClientError> {
        // A socket waits forever for a timeout of zero.
        let timeout = timeout.max(Duration::from_millis(1));
        for path in paths {
            match connect(path, timeout) {
                Ok(stream) => return Ok(Self { stream, path: path.clone(), timeout, buffer: Vec::new() }),
                Err(e) if is_absent(&e) => {}
                Err(e) if timed_out(&e) => return Err(failed(path, "the daemon does not answer in time")),
                Err(e) => return Err(failed(path, &format!("cannot connect: {e}"))),
            }
        }
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        Err(ClientError::NoDaemon(one_line(&format!(
            "no daemon at {}: start one with weft daemon, or name its socket with --socket",
            paths.join(" or ")
        ))))
    }

    /// Calls `method` of the interface and waits for its reply.
    ///
    /// # Errors
    /// The daemon says no, or does not answer in time.
    pub fn call<R: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<R, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let call = Call { method: format!("{INTERFACE}.{method}"), parameters };
        let mut message = serde_json::to_vec(&call).map_err(|e| self.failed(&e.to_string()))?;
        message.push(0);
        self.stream.set_write_timeout(Some(self.timeout)).map_err(|e| self.broken(&e))?;
        self.stream.write_all(&message).map_err(|e| self.broken(&e))?;
        let reply = self.read_message(deadline)?;
        self.understand(method, &reply)
    }

    fn read_message(&mut self, deadline: Instant) -> Result<Vec<u8>, ClientError> {
        let mut scanned = 0;
        loop {
            let fresh = self.buffer.get(scanned..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|b| *b == 0) {
                let rest = self.buffer.split_off(scanned + end + 1);
                let mut message = std::mem::replace(&mut self.buffer, rest);
                message.pop();
                return Ok(message);
            }
            scanned = self.buffer.len();
            if scanned > REPLY_MAX {
                return Err(self.failed("the reply is too long"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.broken(&ErrorKind::TimedOut.into()));
            }
            self.stream.set_read_timeout(Some(left)).map_err(|e| self.broken(&e))?;
            match read_chunk(&mut self.stream, &mut self.buffer) {
                Ok(0) => return Err(self.failed("the daemon closed the connection")),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.broken(&e)),
            }
        }
    }

    fn understand<R: DeserializeOwned>(&self, method: &str, reply: &[u8]) -> Result<R, ClientError> {
        let strange =
            |e: serde_json::Error| self.failed(&format!("cannot understand the reply to {method}: {e}"));
        let reply: Envelope = serde_json::from_slice(reply).map_err(strange)?;
        let parameters = reply.parameters.as_ref().map_or("{}", |raw| raw.get());
        let Some(error) = reply.error else { return serde_json::from_str(parameters).map_err(strange) };
        let details: ErrorParameters = serde_json::from_str(parameters).unwrap_or_default();
        let message = details.message.map(|message| one_line(&message));
        Err(match (error.strip_prefix(INTERFACE), message) {
            (Some(".NotFound"), Some(message)) => ClientError::NotFound(message),
            (Some(".Refused"), Some(message)) => ClientError::Refused(message),
            _ => {
                let about =
                    details.method.or(details.parameter).map(|what| format!(" ({what})")).unwrap_or_default();
                self.failed(&format!(
                    "the daemon answers {method} with {error}{about}: is it of another version?"
                ))
            }
        })
    }

    fn failed(&self, why: &str) -> ClientError {
        failed(&self.path, why)
    }

    fn broken(&self, error: &io::Error) -> ClientError {
        if timed_out(error) {
            return self.failed("the daemon does not answer in time: wait longer with --timeout");
        }
        self.failed(&format!("the connection broke: {error}"))
    }
}

/// One read onto the end of `buffer`.
fn read_chunk(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let start = buffer.len();
    buffer.resize(start + READ_CHUNK, 0);
    let read = stream.read(buffer.get_mut(start..).unwrap_or_default());
    buffer.truncate(start + read.as_ref().copied().unwrap_or(0));
    read
}

fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // connect(2) waits while the listener's queue is full; this bounds it.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory)
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn failed(path: &Path, why: &str) -> ClientError {
    ClientError::Failed(one_line(&format!("ctl socket {}: {why}", path.display())))
}
