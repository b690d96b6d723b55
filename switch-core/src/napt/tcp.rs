//! What a translator follows of a TCP connection (RFC 5382, REQ-2 and 5; RFC 6146, 3.5.2; RFC 7857, 2).
//!
//! | state | it is | ends after |
//! |---|---|---|
//! | `SynOut`, `SynIn` | one side asked | transitory time |
//! | `Established` | both sides sent SYN, in any order (simultaneous open is no special case) | established time |
//! | `FinOut`, `FinIn` | one side has sent all it had | established time |
//! | `Closing` | both have | transitory time, whatever comes |
//! | `Reset` | a RST was seen | transitory time; any other segment makes it established again |
//!
//! A RST does not end a session: an attacker who only guesses addresses and ports must not be able to (RFC 7857,
//! 2.2). A connection request on a session that is closing or reset begins a new connection on it.

use super::flow::TcpFlags;

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// UDP, or an ICMP query: no states.
    Active,
    SynOut,
    SynIn,
    Established,
    FinOut,
    FinIn,
    Closing,
    Reset,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Out,
    In,
}

impl State {
    /// The state whose number the last three bits are.
    #[inline]
    pub(super) fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Active,
            1 => Self::SynOut,
            2 => Self::SynIn,
            3 => Self::Established,
            4 => Self::FinOut,
            5 => Self::FinIn,
            6 => Self::Closing,
            _ => Self::Reset,
        }
    }

    /// The state of a connection that a SYN opens.
    pub(super) fn opened(direction: Direction) -> Self {
        match direction {
            Direction::Out => Self::SynOut,
            Direction::In => Self::SynIn,
        }
    }

    /// The state after a segment.
    #[inline]
    pub(super) fn after(self, direction: Direction, flags: TcpFlags) -> Self {
        use Direction::{In, Out};
        if flags.any(TcpFlags::RST) {
            return match self {
                Self::Established | Self::FinOut | Self::FinIn => Self::Reset,
                state => state,
            };
        }
        if flags.any(TcpFlags::SYN) {
            return match (self, direction) {
                (Self::SynOut, In) | (Self::SynIn, Out) => Self::Established,
                (Self::Closing | Self::Reset, _) if flags.opens() => Self::opened(direction),
                (Self::Reset, _) => Self::Established,
                (state, _) => state,
            };
        }
        let state = if self == Self::Reset { Self::Established } else { self };
        if flags.any(TcpFlags::FIN) {
            return match (state, direction) {
                (Self::Established, Out) => Self::FinOut,
                (Self::Established, In) => Self::FinIn,
                (Self::FinOut, In) | (Self::FinIn, Out) => Self::Closing,
                (state, _) => state,
            };
        }
        state
    }

    /// True if the established time holds.
    #[inline]
    pub(super) fn is_established(self) -> bool {
        matches!(self, Self::Established | Self::FinOut | Self::FinIn)
    }

    /// The word that reports carry.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Established | Self::FinOut | Self::FinIn => "established",
            Self::SynOut | Self::SynIn | Self::Closing | Self::Reset => "transitory",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{In, Out};
    use super::*;

    type Step = (Direction, TcpFlags, State);

    const SYN: TcpFlags = TcpFlags::SYN;
    const ACK: TcpFlags = TcpFlags::ACK;
    const RST: TcpFlags = TcpFlags::RST;
    const FIN: TcpFlags = TcpFlags(0x11);
    const SYN_ACK: TcpFlags = TcpFlags(0x12);

    #[test]
    fn a_state_is_its_number() {
        for bits in 0..8 {
            assert_eq!(State::from_bits(bits) as u8, bits);
        }
    }

    #[test]
    fn connections_go_through_their_states() {
        use State::*;
        let table: &[(&str, State, &[Step])] = &[
            (
                "from inside, closed from inside",
                SynOut,
                &[
                    (Out, SYN, SynOut),
                    (In, SYN_ACK, Established),
                    (Out, ACK, Established),
                    (Out, FIN, FinOut),
                    (In, ACK, FinOut),
                    (In, FIN, Closing),
                    (Out, ACK, Closing),
                ],
            ),
            (
                "from outside, closed from outside",
                SynIn,
                &[(In, SYN, SynIn), (Out, SYN_ACK, Established), (In, FIN, FinIn), (Out, FIN, Closing)],
            ),
            ("simultaneous open", SynOut, &[(In, SYN, Established), (Out, SYN_ACK, Established)]),
            (
                "a reset and more data",
                Established,
                &[(In, RST, Reset), (Out, RST, Reset), (Out, ACK, Established)],
            ),
            ("refused", SynOut, &[(In, RST.with(ACK), SynOut)]),
            ("the ports are used again", Closing, &[(Out, SYN_ACK, Closing), (Out, SYN, SynOut)]),
            ("and by the other side", Reset, &[(In, SYN, SynIn)]),
            ("a FIN before it is open", SynOut, &[(Out, FIN, SynOut)]),
            ("a FIN after a reset", Reset, &[(Out, FIN, FinOut)]),
        ];
        for (name, start, steps) in table {
            let mut state = *start;
            for &(direction, flags, want) in *steps {
                let next = state.after(direction, flags);
                assert_eq!(next, want, "{name}: {state:?} {direction:?} {flags:?}");
                state = next;
            }
        }
    }
}
