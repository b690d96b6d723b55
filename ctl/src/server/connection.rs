//! One client's connection: messages in, replies out, within limits.
//!
//! A Varlink message is a JSON object and a NUL. A connection holds at most one message that is not complete, and one
//! reply that is not written; what a client sends beyond that stays in its socket. Only while a message is half there,
//! or a reply half read, does the clock run: an idle client may stay.

use super::service::Service;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};
use zlink::connection::socket;
use zlink::service::MethodReply;
use zlink::varlink_service::Error as VarlinkError;
use zlink::{Call, Reply};

const READ_CHUNK: usize = 16 << 10;

/// What clients may take of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest message, in bytes.
    pub message_max: usize,
    /// The most connections at a time; one more closes the quietest of the process that has the most.
    pub connections_max: usize,
    /// From the first byte of a message to its last.
    pub message_time: Duration,
    /// For a client to read a reply.
    pub reply_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_max: 1 << 20,
            connections_max: 64,
            message_time: Duration::from_secs(10),
            reply_time: Duration::from_secs(30),
        }
    }
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client closed it.
    Closed,
    /// It cannot go on; the reason is for the log.
    Broken(&'static str),
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Broken("the socket failed")
    }
}

/// A connection, its buffers and its clock.
pub(super) struct Connection {
    stream: UnixStream,
    limits: Limits,
    last_activity: Rc<Cell<Instant>>,
    /// `buffer[start..]` was read and not yet answered; `buffer[start..scanned]` has no NUL in it.
    buffer: Vec<u8>,
    start: usize,
    scanned: usize,
    /// When the message that is half there must be whole.
    deadline: Option<Instant>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, limits: Limits, last_activity: Rc<Cell<Instant>>) -> Self {
        Self { stream, limits, last_activity, buffer: Vec::new(), start: 0, scanned: 0, deadline: None }
    }

    /// Answers messages until the client goes, or breaks a limit.
    pub(super) async fn run(mut self, mut service: Service) {
        if let Err(End::Broken(reason)) = self.answer_all(&mut service).await {
            tracing::debug!(reason, "ctl socket: closed a connection");
        }
    }

    async fn answer_all(&mut self, service: &mut Service) -> Result<(), End> {
        let mut peer = Peer::new();
        loop {
            let end = loop {
                if let Some(end) = self.message_end() {
                    break end;
                }
                self.fill().await?;
            };
            let message = self.buffer.get(self.start..end).unwrap_or_default();
            let answer = answer(service, &mut peer, message).await;
            self.start = end + 1;
            self.scanned = self.start;
            self.last_activity.set(Instant::now());
            match answer {
                Answer::None => {}
                Answer::One(reply) => self.send(&reply).await?,
                Answer::Last(reply) => {
                    self.send(&reply).await?;
                    return Err(End::Broken("a message was not a call"));
                }
                Answer::Stream(stream) => self.send_all(stream).await?,
            }
            // A client with a thousand calls in one read takes its turns like any other.
            tokio::task::yield_now().await;
        }
    }

    /// Where the first unanswered message ends, if it is whole.
    fn message_end(&mut self) -> Option<usize> {
        let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
        let found = fresh.iter().position(|b| *b == 0).map(|at| self.scanned + at);
        if found.is_none() {
            self.scanned = self.buffer.len();
        }
        found
    }

    /// Reads some more of a message that is not whole.
    async fn fill(&mut self) -> Result<(), End> {
        self.compact();
        if self.buffer.len() > self.limits.message_max {
            let reply = refused(&format!("the message is longer than {} bytes", self.limits.message_max));
            self.send(&reply).await?;
            return Err(End::Broken("a message was too long"));
        }
        // Running for as long as the start of a message waits for its end, whatever trickles in meanwhile.
        self.deadline = match self.buffer.is_empty() {
            true => None,
            false => self.deadline.or_else(|| Some(Instant::now() + self.limits.message_time)),
        };
        let deadline = self.deadline;
        let read = read_some(&mut self.stream, &mut self.buffer);
        let n = match deadline {
            Some(deadline) => {
                timeout_at(deadline, read).await.map_err(|_| End::Broken("a message took too long"))??
            }
            None => read.await?,
        };
        if n == 0 {
            return Err(End::Closed);
        }
        self.last_activity.set(Instant::now());
        Ok(())
    }

    /// Moves what is not answered to the front, and gives memory back after a large message.
    fn compact(&mut self) {
        if self.start > 0 {
            // The message that waited has been answered: the clock of the next one starts anew.
            self.deadline = None;
        }
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        if self.buffer.is_empty() {
            self.buffer.shrink_to(2 * READ_CHUNK);
        }
    }

    async fn send(&mut self, reply: &[u8]) -> Result<(), End> {
        let write = self.stream.write_all(reply);
        timeout(self.limits.reply_time, write).await.map_err(|_| End::Broken("a reply was not read"))??;
        self.last_activity.set(Instant::now());
        Ok(())
    }

    /// Sends replies until their end; the client may go meanwhile, or send the next messages.
    async fn send_all(&mut self, mut stream: ReplyStream) -> Result<(), End> {
        self.compact();
        loop {
            let room = self.buffer.len() <= self.limits.message_max;
            let item = tokio::select! {
                item = stream.next() => item,
                n = async {
                    match room {
                        true => read_some(&mut self.stream, &mut self.buffer).await,
                        false => pending().await,
                    }
                } => {
                    if n? == 0 {
                        return Err(End::Closed);
                    }
                    continue;
                }
            };
            match item {
                None => return Ok(()),
                Some((Ok(reply), _)) => self.send(&encode(&reply)).await?,
                Some((Err(error), _)) => return self.send(&encode(&error)).await,
            }
        }
    }
}

async fn read_some(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    buffer.reserve(READ_CHUNK);
    stream.take(READ_CHUNK as u64).read_buf(buffer).await
}

type ReplyStream = <Service as zlink::Service<NoSocket>>::ReplyStream;

/// What a message is answered with; encoded replies end with their NUL.
enum Answer {
    /// Nothing: the client asked for no reply.
    None,
    /// One reply.
    One(Vec<u8>),
    /// One reply, and the connection ends.
    Last(Vec<u8>),
    /// Replies for as long as they come.
    Stream(ReplyStream),
}

/// What every call has, whatever its method.
#[derive(Deserialize)]
struct Envelope<'m> {
    #[serde(borrow)]
    method: Cow<'m, str>,
    #[serde(default)]
    oneway: bool,
}

/// Answers one message, without its NUL.
async fn answer(service: &mut Service, peer: &mut Peer, message: &[u8]) -> Answer {
    let call = match serde_json::from_slice::<Call<<Service as zlink::Service<NoSocket>>::MethodCall<'_>>>(
        message,
    ) {
        Ok(call) => call,
        Err(_) => {
            return match serde_json::from_slice::<Envelope<'_>>(message) {
                Ok(Envelope { oneway: true, .. }) => Answer::None,
                // A call that we could not read for its parameters only.
                Ok(Envelope { method, .. }) => {
                    tracing::debug!(%method, "ctl socket: a call's parameters have the wrong shape");
                    Answer::One(encode(&VarlinkError::InvalidParameter { parameter: "parameters".into() }))
                }
                Err(_) => Answer::Last(refused("the message is not a Varlink call")),
            };
        }
    };
    let oneway = call.oneway();
    let (reply, _) = zlink::Service::<NoSocket>::handle(service, &call, &mut peer.0, Vec::new()).await;
    match reply {
        MethodReply::Multi(_) | MethodReply::Single(_) | MethodReply::Error(_) if oneway => Answer::None,
        MethodReply::Single(parameters) => Answer::One(encode(&Reply::new(parameters))),
        MethodReply::Error(error) => Answer::One(encode(&error)),
        MethodReply::Multi(stream) => Answer::Stream(stream),
        // No method of ours asks for another protocol.
        _ => Answer::Last(refused("the connection cannot be upgraded")),
    }
}

/// One message through a service of its own, and the first of its replies.
pub(super) async fn answer_once(mut service: Service, message: &[u8]) -> Option<Vec<u8>> {
    match answer(&mut service, &mut Peer::new(), message).await {
        Answer::One(reply) => Some(reply),
        Answer::None => Some(Vec::new()),
        Answer::Stream(mut stream) => match stream.next().await? {
            (Ok(reply), _) => Some(encode(&reply)),
            (Err(error), _) => Some(encode(&error)),
        },
        Answer::Last(_) => None,
    }
}

fn encode(reply: &impl Serialize) -> Vec<u8> {
    // Our replies are structs with string keys, which always serialize.
    let mut out = serde_json::to_vec(reply).unwrap_or_else(|_| b"{}".to_vec());
    out.push(0);
    out
}

fn refused(message: &str) -> Vec<u8> {
    encode(&crate::protocol::Error::Refused { message: message.to_owned() })
}

/// zlink's dispatch wants the connection of a call; ours has its own, so it gets one that leads nowhere.
struct Peer(zlink::Connection<NoSocket>);

impl Peer {
    fn new() -> Self {
        Self(zlink::Connection::new(NoSocket))
    }
}

/// A socket that leads nowhere.
#[derive(Debug)]
struct NoSocket;

impl socket::Socket for NoSocket {
    type ReadHalf = Self;
    type WriteHalf = Self;

    fn split(self) -> (Self, Self) {
        (Self, Self)
    }
}

impl socket::ReadHalf for NoSocket {
    async fn read(&mut self, _: &mut [u8]) -> zlink::Result<socket::ReadResult> {
        Err(zlink::Error::UnexpectedEof)
    }
}

impl socket::WriteHalf for NoSocket {
    async fn write(
        &mut self,
        _: &[u8],
        _: &[impl std::os::fd::AsFd],
        _: Option<&zlink::connection::PassedCredentials>,
    ) -> zlink::Result<()> {
        Err(zlink::Error::UnexpectedEof)
    }
}
