//! The conversation with a front-end: one thread for each port, off the workers.
//!
//! - this file: sessions begin, one for each peer that [`Peers`] gives, and end; what wakes the thread.
//! - [`gate`]: which messages are let through to the handler.
//! - [`handler`]: what each message does.
//! - [`rings`]: rings that are set up, started and stopped.
//!
//! Invariant: when a session ends, for whatever reason, its rings are stopped, its memory is unmapped and its
//! descriptors are closed before the next one begins. A front-end that is slow, silent or hostile holds up this thread
//! and nobody else; [`crate::VhostUserPort`]'s drop ends it by shutting the socket down.

mod gate;
mod handler;
mod rings;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use datapath::QueueHost;
use datapath::peer::{Peers, PortState};
use rustix::event::PollFlags;
use vhost::vhost_user::{BackendReqHandler, Error};

use self::gate::{GateError, Peeked};
use self::handler::Session;
use self::rings::Rings;
use crate::port::{PortConfig, RegionInfo, RingInfo, SessionInfo, Shared};

/// How long a message may take to arrive once it has begun.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a message that has begun is looked at again, at first and at most.
const PARTIAL_MIN: Duration = Duration::from_millis(1);
const PARTIAL_MAX: Duration = Duration::from_millis(100);

/// The thread's work.
pub(crate) struct Runner {
    pub(crate) config: PortConfig,
    pub(crate) peers: Peers,
    pub(crate) shared: Arc<Shared>,
    pub(crate) host: Arc<dyn QueueHost>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{0}")]
    Gate(#[from] GateError),
    #[error("message {name}: {why}")]
    Message { name: &'static str, why: String },
    #[error("a message began and did not end within {} s", MESSAGE_TIMEOUT.as_secs())]
    Stalled,
    #[error("the front-end's memory went away: a file was truncated, or has no page to give")]
    MemoryLost,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("internal error in the session; this is a defect")]
    Panicked,
}

impl Runner {
    /// Runs until the port is dropped.
    pub(crate) fn run(mut self) {
        while !self.shared.life.is_stopping() {
            let Some(stream) = self.peers.next(&self.shared.life) else { continue };
            let began = Instant::now();
            self.session(stream);
            self.peers.ended(began, &self.shared.life);
        }
        self.shared.life.set_state(PortState::Down);
    }

    /// Waits for the front-end, for somebody to wake the thread, or for time. True if the front-end has something.
    fn wait(&self, stream: &UnixStream, time: Option<Duration>) -> io::Result<bool> {
        match time {
            // What is there makes the socket readable all the time.
            Some(_) => self.shared.life.wait([], time).map(|_| true),
            None => {
                let [found] = self.shared.life.wait([(stream.as_fd(), PollFlags::IN)], None)?;
                Ok(!found.is_empty())
            }
        }
    }

    /// One connection, from its beginning to the end of everything that it brought.
    pub(crate) fn session(&self, stream: UnixStream) {
        let stream = Arc::new(stream);
        self.shared.set_connection(Some(Arc::clone(&stream)));
        let count = usize::from(self.config.queue_pairs) * 2;
        let rings = Rings::new(count, self.config.id, Arc::clone(&self.host), Arc::clone(&self.shared));
        let session = Arc::new(Mutex::new(Session::new(rings, self.config.queue_pairs, self.config.mtu)));
        tracing::info!(path = %self.config.path.display(), "front-end connected");
        self.shared.life.set_state(PortState::Waiting);
        // A defect here must not take the daemon's other ports along.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.serve(&stream, &session)));
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        session.rings.tear_down();
        self.shared.set_connection(None);
        self.shared.set_session(SessionInfo::default());
        let end = outcome.unwrap_or(Err(SessionError::Panicked));
        match end {
            Ok(()) => {
                tracing::info!(path = %self.config.path.display(), "front-end disconnected");
                self.shared.life.set_state(PortState::Waiting);
            }
            Err(e) => {
                tracing::warn!(path = %self.config.path.display(), error = %e, "session closed");
                self.shared.life.set_state(PortState::Error(e.to_string()));
            }
        }
    }

    /// Handles messages until the front-end closes (`Ok`), the port is dropped (`Ok`), or something is wrong.
    fn serve(&self, stream: &UnixStream, session: &Arc<Mutex<Session>>) -> Result<(), SessionError> {
        let lock = || session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handler = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(session));
        let mut partial: Option<(Instant, Duration)> = None;
        loop {
            let ready = self.wait(stream, partial.map(|(_, step)| step))?;
            if self.shared.life.is_stopping() {
                return Ok(());
            }
            {
                let mut session = lock();
                session.rings.stop_broken();
                if session.rings.memory_lost() {
                    return Err(SessionError::MemoryLost);
                }
            }
            if ready {
                let peeked =
                    if partial.is_some() { gate::peek_partial(stream)? } else { gate::peek(stream)? };
                match peeked {
                    Peeked::Closed => return Ok(()),
                    Peeked::Partial => {
                        let (began, step) = partial.unwrap_or((Instant::now(), PARTIAL_MIN));
                        if began.elapsed() > MESSAGE_TIMEOUT {
                            return Err(SessionError::Stalled);
                        }
                        partial = Some((began, (step * 2).min(PARTIAL_MAX)));
                        continue;
                    }
                    Peeked::Whole(header) => {
                        partial = None;
                        let name = header.request.name();
                        tracing::trace!(message = name, "message");
                        let failed = |e: Error| {
                            let why = lock().fault.take().unwrap_or_else(|| handler::describe(&e));
                            SessionError::Message { name, why }
                        };
                        if header.request.is_ours() {
                            let value = gate::take(stream, &header)?;
                            let mut session = lock();
                            let answer = session.ours(&header, value);
                            let owed = header.request == gate::Request::GET_STATUS
                                || (header.needs_reply() && session.acknowledges());
                            drop(session);
                            if owed && !gate::reply(stream, header.request, *answer.as_ref().unwrap_or(&1))? {
                                return Ok(());
                            }
                            answer.map_err(failed)?;
                        } else if let Err(e) = handler.handle_request() {
                            match e {
                                Error::Disconnected | Error::SocketBroken(_) | Error::PartialMessage => {
                                    return Ok(());
                                }
                                e => return Err(failed(e)),
                            }
                        }
                    }
                }
            } else {
                partial = None;
            }
            let (info, state) = {
                let session = lock();
                (describe(&session), state(&session))
            };
            self.shared.set_session(info);
            self.shared.life.set_state(state);
        }
    }
}

/// What a connected port's state is: in error while a ring is quarantined, up while one runs.
fn state(session: &Session) -> PortState {
    match session.rings.fault() {
        Some(reason) => PortState::Error(reason),
        None if session.rings.list().iter().any(|r| r.is_running()) => PortState::Up,
        None => PortState::Waiting,
    }
}

fn describe(session: &Session) -> SessionInfo {
    let rings = session.rings.list();
    SessionInfo {
        connected: true,
        features: session.rings.features(),
        protocol_features: session.protocol_features,
        status: session.status,
        mtu: session.mtu,
        rings: rings
            .iter()
            .enumerate()
            .filter(|(_, r)| r.size.is_some())
            .map(|(index, r)| RingInfo {
                index,
                size: r.size.unwrap_or(0),
                enabled: r.enabled,
                running: r.is_running(),
                next: r.shared.next(),
                shared: Some(Arc::clone(&r.shared)),
            })
            .collect(),
        regions: session
            .rings
            .memory()
            .map(|m| m.specs().map(|s| RegionInfo { guest: s.guest, size: s.size, user: s.user }).collect())
            .unwrap_or_default(),
    }
}
