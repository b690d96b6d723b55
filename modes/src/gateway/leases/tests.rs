//! The journal on a disk that fails at every byte and operation, crashes, and is cut at every length.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use switch_core::MacAddr;

use super::file::{Disk, DiskFile, FileStore, Journal};
use super::*;

fn record(ip: u8, expires_unix: u64) -> Record {
    Record {
        ip: Ipv4Addr::new(192, 0, 2, ip),
        mac: MacAddr([2, 0, 0, 0, 0, ip]),
        client: ClientKey::ethernet(MacAddr([2, 0, 0, 0, 0, ip])),
        hostname: ip.is_multiple_of(2).then(|| format!("guest{ip}")),
        expires_unix,
        lease_secs: 3600,
    }
}

/// A disk in memory: what was written, what of it would survive a crash, and how much more it does before it fails.
#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    /// The directory, and what of it would survive.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Bytes and operations that still succeed; none are counted without it.
    budget: Option<usize>,
    used: usize,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
}

impl State {
    /// One operation, or one byte.
    fn spend(&mut self) -> io::Result<()> {
        self.used += 1;
        match &mut self.budget {
            Some(0) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct MemDisk(Arc<Mutex<State>>);

struct MemFile(Arc<Mutex<State>>, usize);

impl DiskFile for MemFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        for &byte in bytes {
            state.spend()?;
            state.inodes[self.1].content.push(byte);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        let inode = &mut state.inodes[self.1];
        inode.durable = inode.content.clone();
        Ok(())
    }
}

impl Disk for MemDisk {
    type File = MemFile;

    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        Ok(state.names.get(name).map(|&i| state.inodes[i].content.clone()))
    }

    fn open(&mut self, name: &str) -> io::Result<MemFile> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(MemFile(Arc::clone(&self.0), inode))
    }

    fn create(&mut self, name: &str) -> io::Result<MemFile> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.names.insert(name.to_owned(), inode);
        Ok(MemFile(Arc::clone(&self.0), inode))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.spend()?;
        state.durable_names = state.names.clone();
        Ok(())
    }
}

impl MemDisk {
    fn set_budget(&self, budget: Option<usize>) {
        let mut state = self.0.lock().unwrap();
        (state.budget, state.used) = (budget, 0);
    }

    /// What a crash at this moment can leave: the directory as it was synchronised or as it is, and of each file what
    /// was synchronised and any part of what was appended since.
    fn crashes(&self) -> Vec<MemDisk> {
        let state = self.0.lock().unwrap();
        let mut images = Vec::new();
        for names in [&state.durable_names, &state.names] {
            let Some(&journal) = names.get(NAME) else {
                images.push(MemDisk::default());
                continue;
            };
            let Inode { content, durable } = &state.inodes[journal];
            for cut in durable.len()..=content.len() {
                let kept = content[..cut].to_vec();
                let inode = Inode { content: kept.clone(), durable: kept };
                let names = BTreeMap::from([(NAME.to_owned(), 0)]);
                let image = State {
                    inodes: vec![inode],
                    names: names.clone(),
                    durable_names: names,
                    ..State::default()
                };
                images.push(MemDisk(Arc::new(Mutex::new(image))));
            }
        }
        images
    }
}

const NAME: &str = "net.leases";

fn journal(disk: &MemDisk) -> Journal<MemDisk> {
    Journal::new(disk.clone(), PathBuf::from("/leases"), NAME.to_owned())
}

fn table(records: Vec<Record>) -> BTreeMap<Ipv4Addr, Record> {
    records.into_iter().map(|r| (r.ip, r)).collect()
}

/// A week of a small network in twelve changes.
fn changes() -> Vec<(Option<Record>, Ipv4Addr)> {
    let mut changes = Vec::new();
    for (ip, expires) in
        [(10, 100), (11, 110), (12, 120), (10, 200), (13, 210), (11, 0), (12, 300), (14, 310)]
    {
        let r = record(ip, expires);
        changes.push((Some(r.clone()), r.ip));
        if ip == 13 {
            changes.push((None, Ipv4Addr::new(192, 0, 2, 10)));
        }
    }
    changes
}

fn write(journal: &mut Journal<MemDisk>, change: &(Option<Record>, Ipv4Addr)) -> bool {
    let change = match change {
        (Some(record), _) => Change::Set(record),
        (None, ip) => Change::Remove(*ip),
    };
    journal.write(change).is_ok()
}

#[test]
fn what_was_written_is_loaded() {
    let disk = MemDisk::default();
    let mut store = journal(&disk);
    assert_eq!(store.load().unwrap(), []);
    let mut expected = BTreeMap::new();
    for change in changes() {
        assert!(write(&mut store, &change));
        match change {
            (Some(record), ip) => expected.insert(ip, record),
            (None, ip) => expected.remove(&ip),
        };
        assert_eq!(table(journal(&disk).load().unwrap()), expected);
    }
}

#[test]
fn a_store_that_was_not_loaded_forgets_nothing() {
    let disk = MemDisk::default();
    assert!(write(&mut journal(&disk), &changes()[0]));
    assert!(write(&mut journal(&disk), &changes()[1]));
    assert_eq!(journal(&disk).load().unwrap().len(), 2);
}

/// The disk fails after any number of bytes and operations, for good or once; then the machine crashes or not. What was
/// `Ok` is there, and what is there besides is the one change that failed last.
#[test]
fn no_failure_loses_what_was_written() {
    let total = {
        let disk = MemDisk::default();
        let mut store = journal(&disk);
        store.load().unwrap();
        disk.set_budget(None);
        assert!(changes().iter().all(|c| write(&mut store, c)));
        disk.0.lock().unwrap().used
    };
    assert!(total > 500, "the failures are of bytes, not of changes: {total}");
    for (budget, heals) in (0..total).flat_map(|b| [(b, false), (b, true)]) {
        let disk = MemDisk::default();
        let mut store = journal(&disk);
        store.load().unwrap();
        disk.set_budget(Some(budget));
        let mut expected = BTreeMap::new();
        // Changes that failed and that no later one of their address replaced: they may be there or not.
        let mut open: BTreeMap<Ipv4Addr, Vec<Option<Record>>> = BTreeMap::new();
        let mut failures = 0;
        for change in changes() {
            if write(&mut store, &change) {
                open.remove(&change.1);
                match change {
                    (Some(record), ip) => expected.insert(ip, record),
                    (None, ip) => expected.remove(&ip),
                };
            } else {
                failures += 1;
                open.entry(change.1).or_default().push(change.0);
                if heals {
                    disk.set_budget(None);
                }
            }
            for image in disk.crashes() {
                let loaded =
                    table(journal(&image).load().expect("a crash leaves a journal that can be read"));
                for ip in (0..=255).map(|n| Ipv4Addr::new(192, 0, 2, n)) {
                    let (is, should) = (loaded.get(&ip), expected.get(&ip));
                    let may = open.get(&ip).is_some_and(|failed| failed.iter().any(|f| f.as_ref() == is));
                    assert!(is == should || may, "budget {budget}: {ip} is {is:?}, not {should:?}");
                }
            }
        }
        assert!(failures > 0, "the budget of {budget} does not do for all");
        assert!(!heals || failures == 1, "a disk that works again is used again");
    }
}

/// However much of the file is left, what is left loads, and it can be written to.
#[test]
fn a_file_cut_at_any_length_loads() {
    let disk = MemDisk::default();
    let mut store = journal(&disk);
    let mut tables = vec![BTreeMap::new()];
    let mut lengths = Vec::new();
    for change in changes() {
        assert!(write(&mut store, &change));
        tables.push(table(journal(&disk).load().unwrap()));
        let state = disk.0.lock().unwrap();
        lengths.push(state.inodes[state.names[NAME]].content.len());
    }
    let content = {
        let state = disk.0.lock().unwrap();
        state.inodes[state.names[NAME]].content.clone()
    };
    for cut in 0..=content.len() {
        let whole = lengths.iter().filter(|&&l| l <= cut).count();
        let mut cut_disk = MemDisk::default();
        cut_disk.create(NAME).unwrap_file(&content[..cut]);
        let mut store = journal(&cut_disk);
        assert_eq!(table(store.load().unwrap()), tables[whole], "cut at {cut}");
        assert!(write(&mut store, &(Some(record(99, 9)), record(99, 9).ip)));
        let mut expected = tables[whole].clone();
        expected.insert(record(99, 9).ip, record(99, 9));
        let mut again = journal(&cut_disk);
        assert_eq!(table(again.load().unwrap()), expected, "cut at {cut}, then written");
        assert_eq!(again.damaged, 0, "the torn line is gone");
    }
}

trait Filled {
    fn unwrap_file(self, content: &[u8]);
}

impl Filled for io::Result<MemFile> {
    fn unwrap_file(self, content: &[u8]) {
        self.unwrap().append(content).unwrap();
    }
}

#[test]
fn a_byte_that_changed_costs_its_line_only() {
    let disk = MemDisk::default();
    let mut store = journal(&disk);
    for ip in 1..=3 {
        assert!(write(&mut store, &(Some(record(ip, 5)), record(ip, 5).ip)));
    }
    let content = {
        let state = disk.0.lock().unwrap();
        state.inodes[state.names[NAME]].content.clone()
    };
    let header = content.iter().position(|&b| b == b'\n').unwrap() + 1;
    for at in header..content.len() {
        let mut bad = content.clone();
        bad[at] ^= 0x04;
        let copy = MemDisk::default();
        copy.clone().create(NAME).unwrap_file(&bad);
        let mut store = journal(&copy);
        let loaded = store.load().unwrap();
        assert!(store.damaged >= 1, "at {at}");
        // A newline that is lost joins two lines.
        assert!(loaded.len() >= if content[at] == b'\n' { 1 } else { 2 }, "at {at}: {loaded:?}");
        assert!(loaded.iter().all(|r| *r == record(r.ip.octets()[3], 5)), "at {at}: {loaded:?}");
    }
}

#[test]
fn a_foreign_file_is_not_replaced() {
    let disk = MemDisk::default();
    disk.clone().create(NAME).unwrap_file(b"something else\n");
    let mut store = journal(&disk);
    assert!(matches!(store.load(), Err(StoreError::Format { .. })));
    assert!(!write(&mut store, &changes()[0]));
    let state = disk.0.lock().unwrap();
    assert_eq!(state.inodes[state.names[NAME]].content, b"something else\n");
}

#[test]
fn a_journal_that_grew_is_compacted() {
    let disk = MemDisk::default();
    let mut store = journal(&disk);
    for n in 0..5000 {
        let r = record(10 + (n % 3) as u8, n);
        assert!(write(&mut store, &(Some(r.clone()), r.ip)));
        let state = disk.0.lock().unwrap();
        let lines = state.inodes[state.names[NAME]].content.iter().filter(|&&b| b == b'\n').count();
        assert!(lines < 1100, "{lines} lines for three leases");
    }
    let loaded = table(journal(&disk).load().unwrap());
    assert_eq!(loaded.values().map(|r| r.expires_unix).collect::<Vec<_>>(), [4998, 4999, 4997]);
}

#[test]
fn leases_survive_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leases");
    let mut store = FileStore::new(&path, "virbr0").unwrap();
    assert_eq!(store.load().unwrap(), []);
    store.write(Change::Set(&record(10, 7))).unwrap();
    store.write(Change::Set(&record(11, 8))).unwrap();
    store.write(Change::Remove(record(10, 7).ip)).unwrap();
    let mut other = FileStore::new(&path, "virbr1").unwrap();
    assert_eq!(other.load().unwrap(), [], "each network has its own");
    let mut again = FileStore::new(&path, "virbr0").unwrap();
    assert_eq!(again.load().unwrap(), [record(11, 8)]);
    assert_eq!(again.damaged(), 0);
    for bad in ["", ".", "../x", "a/b"] {
        assert!(matches!(FileStore::new(&path, bad), Err(StoreError::Name(_))), "{bad:?}");
    }
    // The directory is gone: an error with the file's name, and no panic.
    std::fs::remove_dir_all(&path).unwrap();
    let error = again.write(Change::Set(&record(12, 9))).unwrap_err().to_string();
    assert!(error.contains("virbr0.leases"), "{error}");
}

#[test]
fn identifiers_are_2_to_255_bytes() {
    assert_eq!(ClientKey::identifier(&[1]), None);
    assert!(ClientKey::identifier(&[1; 255]).is_some());
    assert_eq!(ClientKey::identifier(&[1; 256]), None);
    let mac = MacAddr([2, 0, 0, 0, 0, 7]);
    assert_eq!(ClientKey::identifier(&[1, 2, 0, 0, 0, 0, 7]), Some(ClientKey::ethernet(mac)));
}
