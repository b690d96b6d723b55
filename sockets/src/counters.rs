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
    /// A fragment, which sockets do not have.
    Fragment = "fragment";
    /// A protocol that sockets of an ordinary user do not speak.
    Protocol = "protocol";
    /// The outbound filter does not let the flow begin.
    Denied = "denied";
    /// No more frames may wait to go into the network.
    OutboxFull = "outbox_full";
}

/// The counters of one port.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Counter::ALL.len()]);

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
