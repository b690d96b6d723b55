//! Turns of sockets that have something to receive: each that is ready stands in a queue once, and gets one call in its
//! turn, until it says that there is nothing more.
//!
//! A socket whose calls fail is asked again, as the network's word about one datagram is an error of the call after it and
//! others may be behind it. Who fails [`FAILURES`] times in a row is left alone for [`RETRY`]: an error that stays costs a
//! few calls, and does not keep a worker awake.

use std::collections::VecDeque;
use std::time::Duration;

use rustix::io::Errno;
use switch_core::Instant;

use crate::token::Token;

/// Calls of one socket that may fail in a row.
const FAILURES: u8 = 8;
/// Until a socket is asked again that failed so often.
const RETRY: Duration = Duration::from_millis(100);

/// Where a socket stands: kept beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stands {
    /// It is in the queue, or waits to be.
    queued: bool,
    /// Calls that failed since one did not.
    failures: u8,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    ready: VecDeque<Token>,
    /// Those that wait for `retry`.
    stuck: Vec<Token>,
    retry: Option<Instant>,
}

impl Turns {
    /// A socket has something, perhaps.
    pub(crate) fn call(&mut self, stands: &mut Stands, token: Token) {
        if !stands.queued {
            stands.queued = true;
            self.ready.push_back(token);
        }
    }

    /// Whose turn it is. A socket that is there still is [`Turns::done`] next.
    pub(crate) fn next(&mut self) -> Option<Token> {
        self.ready.pop_front()
    }

    /// A socket had its turn.
    pub(crate) fn done(&mut self, now: Instant, stands: &mut Stands, token: Token, failed: Option<Errno>) {
        stands.failures = match failed {
            None => 0,
            Some(Errno::AGAIN) => {
                *stands = Stands::default();
                return;
            }
            Some(_) => stands.failures + 1,
        };
        if stands.failures < FAILURES {
            self.ready.push_back(token);
        } else {
            stands.failures = 0;
            self.stuck.push(token);
            self.retry = self.retry.or(Some(now + RETRY));
        }
    }

    /// True if it is somebody's turn.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When [`Turns::timeout`] is to be called next.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.retry
    }

    /// Gives those a turn that have waited.
    pub(crate) fn timeout(&mut self, now: Instant) {
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.ready.extend(self.stuck.drain(..));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Kind;

    const NOW: Instant = Instant::ORIGIN;

    fn token(slot: u32) -> Token {
        Token::new(Kind::Udp, slot, 0)
    }

    #[test]
    fn a_socket_stands_once_and_leaves_when_there_is_nothing() {
        let (mut turns, mut first, mut second) = (Turns::default(), Stands::default(), Stands::default());
        for _ in 0..3 {
            turns.call(&mut first, token(1));
            turns.call(&mut second, token(2));
        }
        assert_eq!(turns.next(), Some(token(1)));
        // Called in its turn: it is not there twice.
        turns.call(&mut first, token(1));
        turns.done(NOW, &mut first, token(1), None);
        assert_eq!(turns.next(), Some(token(2)));
        turns.done(NOW, &mut second, token(2), Some(Errno::AGAIN));
        assert_eq!(turns.next(), Some(token(1)));
        turns.done(NOW, &mut first, token(1), Some(Errno::AGAIN));
        assert!(!turns.has_work() && turns.next().is_none() && turns.due().is_none());
        turns.call(&mut second, token(2));
        assert!(turns.has_work());
    }

    #[test]
    fn an_error_that_stays_does_not_keep_anybody_awake() {
        let (mut turns, mut stands) = (Turns::default(), Stands::default());
        turns.call(&mut stands, token(1));
        let mut now = NOW;
        for _ in 0..3 {
            let mut calls = 0;
            while let Some(whose) = turns.next() {
                calls += 1;
                turns.done(now, &mut stands, whose, Some(Errno::NOMEM));
                assert!(calls <= FAILURES);
            }
            assert_eq!((calls, turns.has_work(), turns.due()), (FAILURES, false, Some(now + RETRY)));
            // Events do not shorten it.
            turns.call(&mut stands, token(1));
            turns.timeout(now);
            assert!(!turns.has_work());
            now = now + RETRY;
            turns.timeout(now);
            assert!(turns.has_work());
        }
        // What succeeds in between begins the count anew.
        for n in 0..100 {
            let whose = turns.next().unwrap();
            turns.done(now, &mut stands, whose, (n % 4 > 0).then_some(Errno::CONNREFUSED));
        }
        assert!(turns.has_work());
    }
}
