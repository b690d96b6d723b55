//! Leases in a file: a journal of lines that is appended to, and replaced as a whole when it has grown.
//!
//! One file for each network, `NAME.leases` in a directory that the daemon owns. Its first line names the format; each
//! further line is a change (see `line`). The last change of an address counts.
//!
//! - *Append*: the line is written and synchronised before the change counts as written.
//! - *Compaction*: when most lines are stale, the records are written to `NAME.leases.new`, synchronised, renamed over the
//!   journal, and the directory is synchronised. At every moment one of the two whole journals has the name.
//! - *After a failure* (a full disk, an I/O error) what is in the file's end is not known, and after a failed
//!   synchronisation not even what is in the middle, because Linux forgets pages that it could not write. So the
//!   next change does not append: it replaces the journal.
//! - *At start*, lines that are not whole (a tail torn by a crash, a byte that rotted) are left out and counted, and
//!   the journal is replaced before anything is appended to it.
//!
//! All I/O goes through `Disk`, so that tests let every operation and every byte fail.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::line::{self, Line};
use super::{Change, LeaseStore, Record, StoreError, apply};

/// The first line: the format and its version.
const HEADER: &[u8] = b"weft-leases 1\n";
/// Stale lines that are kept at least, so that a small network is not compacted all the time.
const STALE_MIN: usize = 1024;
/// Records in a file, at most.
const RECORDS_MAX: usize = 1 << 17;
/// Bytes of a file that are read, at most: as many records with the longest lines, and as many stale ones.
const FILE_MAX: u64 = 256 << 20;

/// A file that is being written.
pub(super) trait DiskFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory, as far as a journal needs it.
pub(super) trait Disk: Send {
    type File: DiskFile;
    /// The whole content; `None` if there is no such file.
    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Opens an existing file to append to it.
    fn open(&mut self, name: &str) -> io::Result<Self::File>;
    /// Makes an empty file, in the place of one that is there.
    fn create(&mut self, name: &str) -> io::Result<Self::File>;
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Makes what was created and renamed durable.
    fn sync_dir(&mut self) -> io::Result<()>;
}

/// Leases of one network in a directory of the file system.
#[derive(Debug)]
pub struct FileStore {
    journal: Journal<Directory>,
}

impl FileStore {
    /// The store of the network `name` in `dir`, which is made if it is not there. Nothing is read yet.
    pub fn new(dir: &Path, name: &str) -> Result<Self, StoreError> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) || name.len() > 200 {
            return Err(StoreError::Name(name.to_owned()));
        }
        let io = |action, source| StoreError::Io { action, path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(|e| io("make the directory", e))?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent).and_then(|p| p.sync_all()).map_err(|e| io("synchronise the parent of", e))?;
        }
        let handle = File::open(dir).map_err(|e| io("open the directory", e))?;
        let disk = Directory { path: dir.to_owned(), handle };
        Ok(Self { journal: Journal::new(disk, dir.to_owned(), format!("{name}.leases")) })
    }

    /// Lines that were not whole when the file was read.
    pub fn damaged(&self) -> usize {
        self.journal.damaged
    }
}

impl LeaseStore for FileStore {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        self.journal.load()
    }

    fn write(&mut self, change: Change<'_>) -> Result<(), StoreError> {
        self.journal.write(change)
    }
}

/// The journal itself, on any disk.
#[derive(Debug)]
pub(super) struct Journal<D> {
    disk: D,
    dir: PathBuf,
    name: String,
    temporary: String,
    /// What every durable change so far adds up to.
    records: BTreeMap<Ipv4Addr, Record>,
    /// Lines in the file, the first not counted.
    lines: usize,
    /// What the file holds is known, so that it can be appended to.
    sound: bool,
    /// The file was read: before that, its records are not known and nothing may replace it.
    loaded: bool,
    pub(super) damaged: usize,
}

impl<D: Disk> Journal<D> {
    pub(super) fn new(disk: D, dir: PathBuf, name: String) -> Self {
        let temporary = format!("{name}.new");
        Self {
            disk,
            dir,
            name,
            temporary,
            records: BTreeMap::new(),
            lines: 0,
            sound: false,
            loaded: false,
            damaged: 0,
        }
    }

    pub(super) fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        let path = self.dir.join(&self.name);
        let content = self.disk.read(&self.name).map_err(|source| StoreError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let content = content.unwrap_or_default();
        self.records.clear();
        (self.lines, self.damaged, self.sound) = (0, 0, false);
        let Some(body) = content.strip_prefix(HEADER) else {
            // A journal is given its name when it is whole, but somebody else may have cut it.
            if !HEADER.starts_with(&content) {
                return Err(StoreError::Format { path });
            }
            self.loaded = true;
            return Ok(Vec::new());
        };
        for line in body.split_inclusive(|&b| b == b'\n') {
            self.lines += 1;
            match line.strip_suffix(b"\n").and_then(line::parse) {
                Some(Line::Set(record)) if self.records.len() < RECORDS_MAX => {
                    apply(&mut self.records, Change::Set(&record));
                }
                Some(Line::Remove(ip)) => apply(&mut self.records, Change::Remove(ip)),
                Some(Line::Set(_)) | None => self.damaged += 1,
            }
        }
        self.sound = self.damaged == 0;
        self.loaded = true;
        Ok(self.records.values().cloned().collect())
    }

    pub(super) fn write(&mut self, change: Change<'_>) -> Result<(), StoreError> {
        if !self.loaded {
            self.load()?;
        }
        let text = match change {
            Change::Set(record) => {
                if self.records.len() >= RECORDS_MAX && !self.records.contains_key(&record.ip) {
                    return Err(StoreError::Record("there are too many"));
                }
                if record
                    .hostname
                    .as_deref()
                    .is_some_and(|n| n.is_empty() || n == "-" || n.contains([' ', '\n']))
                {
                    return Err(StoreError::Record("its name is none"));
                }
                line::set(record)
            }
            Change::Remove(ip) => line::remove(ip),
        };
        let grown = self.lines > self.records.len() * 2 + STALE_MIN;
        let result = if self.sound && !grown { self.append(&text) } else { self.replace(change) };
        match result {
            Ok(()) => {
                apply(&mut self.records, change);
                self.sound = true;
                Ok(())
            }
            Err((action, source)) => {
                self.sound = false;
                Err(StoreError::Io { action, path: self.dir.join(&self.name), source })
            }
        }
    }

    fn append(&mut self, text: &str) -> Result<(), (&'static str, io::Error)> {
        let mut file = self.disk.open(&self.name).map_err(|e| ("open", e))?;
        file.append(text.as_bytes()).map_err(|e| ("append to", e))?;
        file.sync().map_err(|e| ("synchronise", e))?;
        self.lines += 1;
        Ok(())
    }

    /// Writes a journal of what there is after `change`, and gives it the name.
    fn replace(&mut self, change: Change<'_>) -> Result<(), (&'static str, io::Error)> {
        let changed = match change {
            Change::Set(record) => record.ip,
            Change::Remove(ip) => ip,
        };
        let others = self.records.values().filter(|r| r.ip != changed);
        let new = if let Change::Set(record) = change { Some(record) } else { None };
        let mut content = HEADER.to_vec();
        let mut lines = 0;
        for record in others.chain(new) {
            content.extend_from_slice(line::set(record).as_bytes());
            lines += 1;
        }
        let mut file = self.disk.create(&self.temporary).map_err(|e| ("make a new version of", e))?;
        file.append(&content).map_err(|e| ("write a new version of", e))?;
        file.sync().map_err(|e| ("synchronise a new version of", e))?;
        self.disk.rename(&self.temporary, &self.name).map_err(|e| ("replace", e))?;
        self.disk.sync_dir().map_err(|e| ("synchronise the directory of", e))?;
        self.lines = lines;
        Ok(())
    }
}

/// A directory of the file system.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
}

impl DiskFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Disk for Directory {
    type File = File;

    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path.join(name)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut content = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut content)?;
        if content.len() as u64 > FILE_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than leases can be"));
        }
        Ok(Some(content))
    }

    fn open(&mut self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).open(self.path.join(name))
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(self.path.join(name))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.handle.sync_all()
    }
}
