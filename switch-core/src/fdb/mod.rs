//! The forwarding database of a learning bridge: which port a station is behind.
//!
//! [`Table`] is the database, with neither lock nor clock; [`FdbAccess`] is what the control plane may do with
//! a network's. Learning follows IEEE 802.1Q, 8.7 and 8.8, with the eviction rule of Open vSwitch.

mod key;
mod list;
mod ranks;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use key::fold;
pub use key::{Key, KeyHash};
pub use table::{AGEING_DEFAULT, Found, LIMIT_DEFAULT, LIMIT_MAX, Learned, Table, Watch};

use crate::ids::{MacAddr, PortId, Vid};
use crate::time::Instant;

/// One entry, as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The station.
    pub mac: MacAddr,
    /// Its VLAN; `None` is the untagged one.
    pub vlan: Option<Vid>,
    /// The port that it is behind.
    pub port: PortId,
    /// Time since a frame from it was last seen; zero for static entries.
    pub age: Duration,
    /// Configured, not learned: never ages, never moves, never evicted.
    pub is_static: bool,
}

/// Why a change to the table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdbError {
    /// Only stations have entries.
    #[error("{0} is a group or zero address: only a station's address can be in the forwarding database")]
    NotAStation(MacAddr),
    /// Static entries fill the table.
    #[error("the forwarding database is full of static entries ({0}): delete one or raise fdb-max")]
    Full(usize),
}

/// What the control plane does with a network's forwarding database. Safe from any thread; a completed change
/// holds for every frame that a worker takes up afterwards.
pub trait FdbAccess: Send + Sync {
    /// All entries, in no order.
    fn entries(&self, now: Instant) -> Vec<FdbEntry>;
    /// Entries now, and how many there may be.
    fn usage(&self) -> (usize, usize);
    /// Adds or replaces a static entry.
    fn add_static(&self, mac: MacAddr, vlan: Option<Vid>, port: PortId) -> Result<(), FdbError>;
    /// Removes an entry, static or learned. False if there was none.
    fn remove(&self, mac: MacAddr, vlan: Option<Vid>) -> bool;
    /// Removes all learned entries; how many.
    fn flush(&self) -> usize;
    /// Changes the ageing time and the limit (evicting fairly down to it). The limit is cut to 1 to
    /// [`LIMIT_MAX`].
    fn configure(&self, ageing: Duration, limit: usize);
}
