//! What became of flows and of frames that the port did not pass on, by name. Written under the port's lock, read at any
//! time.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name: stable, lower case, words joined by underscores.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// A frame that is no IP packet, or a malformed one.
    BadPacket = "bad_packet";
    /// A packet of a guest's whose fragments were put together.
    Reassembled = "reassembled";
    /// One of whose fragments some did not come in time.
    FragmentTimeout = "fragment_timeout";
    /// One with fragments that overlap, or that say different things of its end.
    FragmentOverlap = "fragment_overlap";
    /// One that was given up for a newer one's fragments.
    FragmentEvicted = "fragment_evicted";
    /// A first fragment without all of the transport header, or a packet of too many fragments.
    FragmentTiny = "fragment_tiny";
    /// A fragment of a packet that would be longer than packets may be.
    FragmentOversize = "fragment_oversize";
    /// A malformed fragment: of no bytes, of a length that nothing can follow, or with an offload.
    FragmentBad = "fragment_bad";
    /// A protocol that sockets of an ordinary user do not speak.
    Protocol = "protocol";
    /// The outbound filter does not let the flow begin.
    Denied = "denied";
    /// The hop limit of a packet was used up.
    HopLimit = "hop_limit";
    /// The host had no socket to give.
    NoSocket = "no_socket";
    /// The host lets this process have no ping sockets (`net.ipv4.ping_group_range`).
    PingForbidden = "ping_forbidden";
    /// A mapping that ended before its time, for a newer one.
    Evicted = "evicted";
    /// A datagram that the socket had no room for.
    SendFull = "send_full";
    /// A datagram that the host did not send: no route, say.
    SendFailed = "send_failed";
    /// A connection or datagram for a guest that did not say where it is, or for which too many waited.
    NoGuest = "no_guest";
    /// A client of a forward that keeps clients' addresses, which its guest sees as the gateway all the same.
    SourceReplaced = "source_replaced";
    /// A datagram from somebody to whom the guest has not sent.
    Filtered = "filtered";
    /// No more frames may wait to go into the network.
    OutboxFull = "outbox_full";
    /// A transport checksum that is wrong.
    BadChecksum = "bad_checksum";
    /// A guest's TCP connection that somebody outside accepted.
    TcpOpened = "tcp_opened";
    /// A connection from outside that its guest accepted.
    TcpAccepted = "tcp_accepted";
    /// A guest's connection that was refused or reset before it was open.
    TcpRefused = "tcp_refused";
    /// One whose destination could not be reached.
    TcpUnreachable = "tcp_unreachable";
    /// One that nobody answered for too long: nor was its guest.
    TcpTimedOut = "tcp_timed_out";
    /// A connection that ended with both its streams.
    TcpClosed = "tcp_closed";
    /// One that its guest reset.
    TcpResetInside = "tcp_reset_inside";
    /// One that the outside reset, or that broke there.
    TcpResetOutside = "tcp_reset_outside";
    /// One whose guest did not answer any more.
    TcpGuestGone = "tcp_guest_gone";
    /// A segment of no connection, which was answered by a reset.
    TcpStray = "tcp_stray";
    /// A connection that was not begun: the guest has as many as it may have.
    TcpQuota = "tcp_quota";
    /// The same: there are as many as there may be in all.
    TcpFull = "tcp_full";
    /// A SYN that was left unanswered, for the guest to send again: too many wait for somebody outside to accept.
    TcpOpening = "tcp_opening";
    /// A connection that was not begun: the host has no socket, descriptor or port left.
    TcpExhausted = "tcp_exhausted";
    /// Payload that the socket did not take although the guest's window had room for it: it is sent again.
    TcpNotTaken = "tcp_not_taken";
    /// Data for a guest that was sent again.
    TcpResent = "tcp_resent";
}

/// The counters of one port.
#[derive(Debug)]
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Counter::ALL.len()])
    }
}

impl Counters {
    /// Counts one.
    #[inline]
    pub(crate) fn add(&self, counter: Counter) {
        // All writers hold the port's lock.
        if let Some(cell) = self.0.get(counter as usize) {
            cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// How many there were.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// All, with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter.name(), self.get(counter)))
    }
}
