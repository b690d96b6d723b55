//! The learning bridge (IEEE 802.1Q, clause 8): a frame goes to the port where its destination was last seen.
//!
//! What becomes of a frame, in this order:
//! 1. to a reserved address (01:80:C2:00:00:00 to 0F): dropped, a bridge never forwards these (8.6.3);
//! 2. from a group address or from zero: dropped, no station has such an address;
//! 3. its source is learned on its VLAN at the ingress port (8.7). A station that was elsewhere moved here at
//!    once, unless its entry is configured: that cannot be taken over. The frame is still forwarded, as Linux
//!    and Open vSwitch do; who may *send* with an address is not the table's affair;
//! 4. to a group address: flooded;
//! 5. to a station on the ingress port: dropped, it has it already; to one elsewhere: there; to one that is
//!    not known: flooded.
//!
//! The frames of a burst see what those before them taught.
//!
//! # Threads
//! All workers share one [`Table`] behind a mutex, and each has a [`Forwarder`] of its own with a cache of
//! answers, so that in steady traffic the mutex is not touched: a station is learned anew at most once a
//! second, and while it is only that, a worker that finds the mutex taken leaves it for a later burst. A burst
//! takes the mutex at most once. The control plane holds it for a few hundred entries at a time.
//!
//! An answer in a cache is good for as long as its *epoch* is current (see `epochs`) and its entry has not aged
//! out. A completed change to the table holds for the next burst.

mod cache;
mod epochs;
mod forward;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use switch_core::fdb::{FdbAccess, FdbEntry, FdbError, Key, Table};
use switch_core::ids::{MacAddr, PortId, Vid};
use switch_core::mode::{Forwarder, Mode};
use switch_core::time::Instant;

use epochs::Epochs;
pub(crate) use forward::BridgeForwarder;

/// Entries that the control plane works on before it lets the workers have the table again: some tens of
/// microseconds.
const CHUNK: usize = 256;
/// Chunks that one [`Mode::tick`] works on at most; what is left is due at once.
const CHUNKS_PER_TICK: usize = 64;
/// Entries that age out are gathered for this long: they are absent from every answer at once, so nothing
/// waits for their removal.
const TICK_EVERY: Duration = Duration::from_secs(1);

/// The shared state of a learning bridge. See the module's text.
#[derive(Debug)]
pub struct Bridge {
    table: Mutex<Table<Arc<Epochs>>>,
    epochs: Arc<Epochs>,
    /// Nanoseconds of the instant before which there is no tick.
    no_tick_before: AtomicU64,
}

impl Bridge {
    /// A bridge that knows no station yet. `ageing` and `limit` are those of [`Table`].
    pub fn new(ageing: Duration, limit: usize) -> Self {
        let epochs = Arc::new(Epochs::new());
        Self {
            table: Mutex::new(Table::new(ageing, limit, Arc::clone(&epochs))),
            epochs,
            no_tick_before: AtomicU64::new(0),
        }
    }

    /// The table. It holds its invariants between any two operations, so a thread that panicked while it had
    /// the table leaves nothing worse than the entry it was at.
    fn table(&self) -> MutexGuard<'_, Table<Arc<Epochs>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mode for Bridge {
    fn forwarder(self: Arc<Self>) -> Box<dyn Forwarder> {
        Box::new(BridgeForwarder::new(self))
    }

    fn poll_at(&self) -> Option<Instant> {
        let due = self.table().poll_at()?;
        Some(due.max(Instant::from_nanos(self.no_tick_before.load(Ordering::Relaxed))))
    }

    fn tick(&self, now: Instant) {
        let done = (0..CHUNKS_PER_TICK).any(|_| self.table().tick(now, CHUNK) < CHUNK);
        let next = if done { now + TICK_EVERY } else { now };
        self.no_tick_before.store(next.as_nanos(), Ordering::Relaxed);
    }

    fn port_removed(&self, port: PortId) {
        while self.table().remove_port(port, CHUNK) == CHUNK {}
    }

    fn fdb(&self) -> Option<&dyn FdbAccess> {
        Some(self)
    }
}

impl FdbAccess for Bridge {
    /// The table is read in chunks. An entry that stays is listed once; one that moves within the table in the
    /// meantime is listed as it was last found.
    fn entries(&self, now: Instant) -> Vec<FdbEntry> {
        let mut entries = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.table().entries_from(now, from, CHUNK, &mut entries);
        }
        // A station that was removed and learned again while its place was passed is there twice.
        entries.sort_unstable_by_key(|e| (e.vlan, e.mac, e.age));
        entries.dedup_by_key(|e| (e.vlan, e.mac));
        entries
    }

    fn usage(&self) -> (usize, usize) {
        let table = self.table();
        (table.len(), table.limit())
    }

    fn add_static(&self, mac: MacAddr, vlan: Option<Vid>, port: PortId) -> Result<(), FdbError> {
        self.table().add_static(mac, vlan, port)
    }

    fn remove(&self, mac: MacAddr, vlan: Option<Vid>) -> bool {
        self.table().remove(Key::new(mac, vlan))
    }

    fn flush(&self) -> usize {
        self.table().flush(None)
    }

    fn configure(&self, ageing: Duration, limit: usize) {
        self.table().configure(ageing, limit);
        while self.table().shrink(CHUNK) == CHUNK {}
    }
}
