//! What the kernel's events carry: whose socket it is. A slot may have had another owner meanwhile, so a generation goes
//! with it.

/// Which table a token's slot is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The engine's timer and doorbell.
    Engine,
    /// A TCP connection.
    Tcp,
    /// A UDP mapping.
    Udp,
    /// A ping socket.
    Echo,
    /// A socket that listens for guests.
    Listener,
}

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) slot: u32,
    pub(crate) generation: u16,
}

impl Token {
    pub(crate) const fn new(kind: Kind, slot: u32, generation: u16) -> Self {
        Self { kind, slot, generation }
    }

    /// As an event carries it.
    pub(crate) const fn to_u64(self) -> u64 {
        let kind = match self.kind {
            Kind::Engine => 0,
            Kind::Tcp => 1,
            Kind::Udp => 2,
            Kind::Echo => 3,
            Kind::Listener => 4,
        };
        kind << 48 | (self.generation as u64) << 32 | self.slot as u64
    }

    /// From an event.
    pub(crate) const fn from_u64(raw: u64) -> Self {
        let kind = match raw >> 48 {
            1 => Kind::Tcp,
            2 => Kind::Udp,
            3 => Kind::Echo,
            4 => Kind::Listener,
            _ => Kind::Engine,
        };
        Self { kind, slot: raw as u32, generation: (raw >> 32) as u16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_was() {
        for kind in [Kind::Engine, Kind::Tcp, Kind::Udp, Kind::Echo, Kind::Listener] {
            let token = Token::new(kind, 0xdead_beef, 0xffff);
            assert_eq!(Token::from_u64(token.to_u64()), token);
        }
    }
}
