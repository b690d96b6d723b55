//! The tables that are in place, and that they stay there.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::watch::Watch;
use super::{Masquerade, command, table_name};
use crate::host::error::{Event, HostError, Report};
use crate::host::journal::{Journal, Record};

/// Between hearing of a change and looking: changes come in flocks.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two times that tables are looked at, at least: somebody who removes them again and again does not keep
/// the host busy.
const REST: Duration = Duration::from_secs(1);
/// Where the kernel tells nothing: how often is looked.
const LOOK: Duration = Duration::from_secs(2);
struct InPlace {
    wanted: Masquerade,
    /// As the kernel listed it when it was put in place.
    listed: Value,
    /// It is not in place, and that was told.
    lost: bool,
}

/// When a table could not be put back: how long until the next try.
const AGAIN: Duration = Duration::from_secs(10);

/// The tables, by network.
#[derive(Default)]
pub(in crate::host) struct Tables {
    tables: BTreeMap<String, InPlace>,
    watch: Option<Watch>,
    /// When the tables are looked at next.
    look_at: Option<Instant>,
    looked_at: Option<Instant>,
}

impl Tables {
    /// Puts a network's table in place, or in the place of the one it has.
    pub(in crate::host) async fn set(
        &mut self,
        journal: &mut Journal,
        wanted: Masquerade,
    ) -> Result<(), HostError> {
        wanted.check()?;
        if self.watch.is_none() {
            // Before the table is there, so that nothing is missed.
            self.watch = Watch::open().ok();
        }
        let name = table_name(&wanted.network);
        if !journal.pending().tables.contains(&name) {
            journal.write(Record::Table { name: name.clone() })?;
        }
        match put_in_place(&wanted).await {
            Ok(listed) => {
                self.tables.insert(wanted.network.clone(), InPlace { wanted, listed, lost: false });
                Ok(())
            }
            Err(error) => {
                if !self.tables.contains_key(&wanted.network) {
                    // A transaction that fails leaves nothing.
                    let _ = journal.write(Record::TableDone { name });
                }
                Err(error)
            }
        }
    }

    /// Removes a network's table.
    pub(in crate::host) async fn clear(&mut self, journal: &mut Journal, network: &str) -> Report {
        match self.tables.remove(network) {
            Some(_) => remove(journal, &table_name(network)).await,
            None => Report::default(),
        }
    }

    pub(in crate::host) fn networks(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    /// Returns when [`Tables::look`] has something to do.
    pub(in crate::host) async fn changed(&mut self) {
        if self.tables.is_empty() {
            return pending().await;
        }
        let rested = self.looked_at.map(|at| at + REST);
        if self.look_at.is_none() {
            match &self.watch {
                Some(watch) => {
                    watch.changed().await;
                    self.look_at = Some(Instant::now() + SETTLE).max(rested);
                }
                None => self.look_at = Some(Instant::now() + LOOK),
            }
        }
        if let Some(at) = self.look_at {
            sleep_until(at).await;
        }
    }

    /// Looks at each table, and puts back those that are not as they were.
    pub(in crate::host) async fn look(&mut self) -> Vec<Event> {
        self.look_at = None;
        self.looked_at = Some(Instant::now());
        let mut events = Vec::new();
        for (network, in_place) in &mut self.tables {
            let (network, table) = (network.clone(), table_name(network));
            let now = command::list(&table).await;
            if matches!(&now, Ok(Some(now)) if *now == in_place.listed) {
                continue;
            }
            match put_in_place(&in_place.wanted).await {
                Ok(listed) => {
                    in_place.listed = listed;
                    in_place.lost = false;
                    events.push(Event::TableRestored { network, table });
                }
                Err(error) => {
                    if !in_place.lost {
                        events.push(Event::TableLost { network, table, reason: error.to_string() });
                    }
                    in_place.lost = true;
                    self.look_at = Some(Instant::now() + AGAIN);
                }
            }
        }
        events
    }
}

/// Has the transaction done; the table as the kernel has it afterwards.
async fn put_in_place(wanted: &Masquerade) -> Result<Value, HostError> {
    let table = table_name(&wanted.network);
    let what = format!("put table inet {table} in place");
    command::apply(&wanted.ruleset(), &what).await?;
    let listed = command::list(&table).await?;
    listed.ok_or_else(|| HostError::Nft { what, told: "it is not there afterwards".into() })
}

/// Removes a table that the journal tells of.
pub(in crate::host) async fn remove(journal: &mut Journal, table: &str) -> Report {
    let mut report = Report::default();
    let done = match command::delete(table).await {
        Ok(()) => journal.write(Record::TableDone { name: table.to_owned() }),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        report.fail(error.to_string());
    }
    report
}
