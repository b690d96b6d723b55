//! What is remembered of leases, and the contract of those who keep it when the daemon does not run.
//!
//! A DHCP server is a state machine and does no I/O; it hands every change of a lease to a [`LeaseStore`] *before* it
//! tells a client of it. So an acknowledged lease survives a crash, and what could not be written was never promised.
//! [`mod@file`] keeps the records in a directory, [`MemoryStore`] only as long as the process lives.
//!
//! Invariants that every store keeps:
//! - `Ok` from [`LeaseStore::write`] means that the change survives a crash from then on.
//! - After `Err` the change may be there after a crash or not, but it never undoes one that was `Ok`, and a later
//!   change of the same address that is `Ok` wins over it.
//! - [`LeaseStore::load`] gives one record for an address at most: the last.
//!
//! Owned by the thread that runs the network's services.

pub mod file;
mod line;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use switch_core::MacAddr;

/// Who a lease is for (RFC 2131, 4.2): the client identifier (option 61), or the hardware type and address where
/// there is none. An identifier that is type 1 and the address is therefore the same client as one without.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(Box<[u8]>);

impl ClientKey {
    /// Bytes of a client identifier, at most.
    pub const LEN_MAX: usize = 255;

    /// A client identifier: 2 to 255 bytes (RFC 2132, 9.14).
    pub fn identifier(bytes: &[u8]) -> Option<Self> {
        (2..=Self::LEN_MAX).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// A client that has only its Ethernet address.
    pub fn ethernet(mac: MacAddr) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        Self(Box::new([1, a, b, c, d, e, f]))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What is remembered of an address: who has it or had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The address.
    pub ip: Ipv4Addr,
    /// The client's Ethernet address.
    pub mac: MacAddr,
    /// The client.
    pub client: ClientKey,
    /// The name that it holds: one label of letters, digits and hyphens.
    pub hostname: Option<String>,
    /// When the lease ends or ended, in seconds since the Unix epoch.
    pub expires_unix: u64,
    /// For how long it was given, in seconds: no clock that was set back makes it longer than that.
    pub lease_secs: u32,
}

/// A change of what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// The record replaces the one of its address.
    Set(&'a Record),
    /// Nothing is remembered of the address any more.
    Remove(Ipv4Addr),
}

/// Why leases could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is none of ours, or of a later version.
    #[error("{} is not a file of leases that this version reads: move it away to start without leases", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The name cannot be that of a file.
    #[error("'{0}' cannot name a file of leases")]
    Name(String),
    /// It is none that a line of the file can hold, or there are too many.
    #[error("the store does not take this record: {0}")]
    Record(&'static str),
}

/// Keeps leases for the next start.
pub trait LeaseStore: Send {
    /// What was written, one record for an address.
    fn load(&mut self) -> Result<Vec<Record>, StoreError>;

    /// Makes a change durable. It returns when the change would survive a crash, or has failed.
    fn write(&mut self, change: Change<'_>) -> Result<(), StoreError>;
}

/// Leases of a network that forgets them with the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    records: BTreeMap<Ipv4Addr, Record>,
}

impl LeaseStore for MemoryStore {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        Ok(self.records.values().cloned().collect())
    }

    fn write(&mut self, change: Change<'_>) -> Result<(), StoreError> {
        apply(&mut self.records, change);
        Ok(())
    }
}

/// Does a change to a table of records.
fn apply(records: &mut BTreeMap<Ipv4Addr, Record>, change: Change<'_>) {
    match change {
        Change::Set(record) => records.insert(record.ip, record.clone()),
        Change::Remove(ip) => records.remove(&ip),
    };
}
