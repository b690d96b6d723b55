//! What was changed of the host and has to be put back, in a file that outlives the process.
//!
//! One file, `host.journal` in the state directory. Each line is a checksum (CRC-32, eight hexadecimal digits), a
//! space, and one [`Record`] in JSON. A line is on the disk (fdatasync) before what it tells is done, so after a
//! crash the file may tell of one step that was not done, and never misses one that was. Putting back is
//! idempotent, which makes that enough.
//!
//! - A last line that is not whole is a write that a crash cut off: what it told was not done.
//! - A line in the middle that is damaged is left out and counted; the steps behind it say enough.
//! - When nothing is left to put back, the file is removed. When it has grown, it is written anew with what is left.
//! - The first record names the boot. What another boot did is gone with it, and its records say nothing.
//!
//! Owned by the thread of [`crate::host::Plumber`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::HostError;
use super::relocate::plan::Plan;

#[cfg(test)]
mod tests;

/// The journal's name in the state directory.
pub const FILE_NAME: &str = "host.journal";

/// Lines after which the file is written anew.
const LINES_MAX: usize = 4096;

/// A sysctl that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SysctlChange {
    /// What it said before.
    pub(super) old: String,
    /// What was written.
    pub(super) new: String,
    /// Others, with their values before, that the kernel changes along with this one.
    pub(super) beside: Vec<(String, String)>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Record {
    /// The file begins: the boot that everything in it belongs to.
    Boot { id: String },
    /// A sysctl is about to be changed.
    Sysctl { path: String, change: SysctlChange },
    /// It was put back, or is somebody else's now.
    SysctlDone { path: String },
    /// A table of ours is about to be made.
    Table { name: String },
    /// It is gone.
    TableDone { name: String },
    /// Routes of ours are about to be made on an interface.
    Routes { interface: String },
    /// There are none any more.
    RoutesDone { interface: String },
    /// A move is about to begin: all its steps, and how each is put back.
    Move { plan: Box<Plan> },
    /// The step of that number is about to be done.
    Step { nic: String, step: usize },
    /// The move was put back whole.
    MoveDone { nic: String },
}

/// A move that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OpenMove {
    pub(super) plan: Plan,
    /// How many of its steps were begun.
    pub(super) begun: usize,
}

/// What is left to put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) boot: Option<String>,
    pub(super) sysctls: BTreeMap<String, SysctlChange>,
    pub(super) tables: BTreeSet<String>,
    pub(super) routes: BTreeSet<String>,
    pub(super) moves: BTreeMap<String, OpenMove>,
}

impl Pending {
    /// Takes in one record.
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Boot { id } => self.boot = Some(id),
            Record::Sysctl { path, change } => {
                // The value before the first change is the host's.
                self.sysctls
                    .entry(path)
                    .and_modify(|known| known.new.clone_from(&change.new))
                    .or_insert(change);
            }
            Record::SysctlDone { path } => drop(self.sysctls.remove(&path)),
            Record::Table { name } => drop(self.tables.insert(name)),
            Record::TableDone { name } => drop(self.tables.remove(&name)),
            Record::Routes { interface } => drop(self.routes.insert(interface)),
            Record::RoutesDone { interface } => drop(self.routes.remove(&interface)),
            Record::Move { plan } => {
                self.moves.insert(plan.nic.name.clone(), OpenMove { plan: *plan, begun: 0 });
            }
            Record::Step { nic, step } => {
                if let Some(open) = self.moves.get_mut(&nic) {
                    open.begun = open.begun.max(step.saturating_add(1)).min(open.plan.steps.len());
                }
            }
            Record::MoveDone { nic } => drop(self.moves.remove(&nic)),
        }
    }

    /// True if there is nothing to put back.
    pub(super) fn is_empty(&self) -> bool {
        self.sysctls.is_empty() && self.tables.is_empty() && self.routes.is_empty() && self.moves.is_empty()
    }

    /// The fewest records that say the same.
    fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        records.extend(self.boot.iter().map(|id| Record::Boot { id: id.clone() }));
        let sysctls = self.sysctls.iter();
        records.extend(sysctls.map(|(path, c)| Record::Sysctl { path: path.clone(), change: c.clone() }));
        records.extend(self.tables.iter().map(|name| Record::Table { name: name.clone() }));
        records.extend(self.routes.iter().map(|name| Record::Routes { interface: name.clone() }));
        for (nic, open) in &self.moves {
            records.push(Record::Move { plan: Box::new(open.plan.clone()) });
            if let Some(step) = open.begun.checked_sub(1) {
                records.push(Record::Step { nic: nic.clone(), step });
            }
        }
        records
    }
}

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    /// Made with the first record: a daemon that changes nothing of the host leaves nothing behind.
    file: Option<File>,
    lines: usize,
    boot: String,
    pending: Pending,
}

impl Journal {
    /// Reads what an earlier process left in `directory`, for the boot `boot`. Also tells how many lines were
    /// damaged.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(super) fn open(directory: &Path, boot: &str) -> Result<(Self, usize), HostError> {
        let path = directory.join(FILE_NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(HostError::Journal { path, source }),
        };
        let (records, damaged) = replay(&bytes);
        let mut pending = Pending::default();
        let lines = records.len();
        records.into_iter().for_each(|record| pending.apply(record));
        let mut journal =
            Self { directory: directory.to_owned(), file: None, lines, boot: boot.to_owned(), pending };
        // Writing goes on behind a whole line only.
        if lines > 0 || damaged > 0 || !bytes.is_empty() {
            journal.rewrite()?;
        }
        Ok((journal, damaged))
    }

    /// What is left to put back.
    pub(super) fn pending(&self) -> &Pending {
        &self.pending
    }

    /// True if what is pending was done in an earlier boot of the host.
    pub(super) fn is_of_another_boot(&self) -> bool {
        !self.pending.is_empty() && self.pending.boot.as_deref() != Some(self.boot.as_str())
    }

    /// Forgets everything.
    pub(super) fn discard(&mut self) -> Result<(), HostError> {
        self.pending = Pending::default();
        self.rewrite()
    }

    /// Puts a record on the disk. When this returns, what it tells may be done.
    ///
    /// # Errors
    /// It is not on the disk.
    pub(super) fn write(&mut self, record: Record) -> Result<(), HostError> {
        if let Err(source) = self.append(&record) {
            // Part of the line may be there: the next one must not stand behind it.
            let _ = self.try_rewrite();
            return Err(self.error(source));
        }
        self.pending.apply(record);
        if self.pending.is_empty() || self.lines >= LINES_MAX {
            self.rewrite()?;
        }
        Ok(())
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(open(&self.directory.join(FILE_NAME))?);
            File::open(&self.directory)?.sync_all()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = String::new();
        if self.pending.boot.as_deref() != Some(self.boot.as_str()) {
            let boot = Record::Boot { id: self.boot.clone() };
            text.push_str(&line(&boot)?);
            self.pending.apply(boot);
            self.lines += 1;
        }
        text.push_str(&line(record)?);
        file.write_all(text.as_bytes())?;
        self.lines += 1;
        file.sync_data()
    }

    /// Writes the file anew, with what is pending; in its place at once, or not at all.
    fn rewrite(&mut self) -> Result<(), HostError> {
        self.try_rewrite().map_err(|source| self.error(source))
    }

    fn try_rewrite(&mut self) -> io::Result<()> {
        let path = self.directory.join(FILE_NAME);
        if self.pending.is_empty() {
            self.pending.boot = None;
            self.lines = 0;
            self.file = None;
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => File::open(&self.directory)?.sync_all(),
            };
        }
        let records = self.pending.records();
        let mut text = String::new();
        for record in &records {
            text.push_str(&line(record)?);
        }
        let new = self.directory.join(format!("{FILE_NAME}.new"));
        let mut file = open(&new)?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.directory)?.sync_all()?;
        self.file = Some(file);
        self.lines = records.len();
        Ok(())
    }

    fn error(&self, source: io::Error) -> HostError {
        HostError::Journal { path: self.directory.join(FILE_NAME), source }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn line(record: &Record) -> io::Result<String> {
    let json = serde_json::to_string(record).map_err(io::Error::other)?;
    Ok(format!("{:08x} {json}\n", crc32(json.as_bytes())))
}

/// The records of a file, and how many lines were damaged. A last line without an end counts as not written.
pub(super) fn replay(bytes: &[u8]) -> (Vec<Record>, usize) {
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    let mut damaged = 0;
    let mut records = Vec::new();
    for text in bytes.get(..whole).unwrap_or_default().split(|b| *b == b'\n').filter(|text| !text.is_empty())
    {
        match parse(text) {
            Some(record) => records.push(record),
            None => damaged += 1,
        }
    }
    (records, damaged)
}

fn parse(text: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(text).ok()?;
    let (sum, json) = text.split_at_checked(8)?;
    let json = json.strip_prefix(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    if sum != crc32(json.as_bytes()) {
        return None;
    }
    serde_json::from_str(json).ok()
}

/// CRC-32 as in IEEE 802.3, reflected.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
