//! The journal against crashes: files that end anywhere, or were damaged.

use proptest::prelude::*;

use super::*;
use crate::host::relocate::plan::{End, Flag, Identity, Step};

fn plan(nic: &str, steps: usize) -> Plan {
    let identity = |name: &str, index| Identity { name: name.into(), index, mac: [2, 0, 0, 0, 0, 1] };
    let step = Step::Flag { on: End::Nic, flag: Flag::Arp, to: false };
    Plan {
        nic: identity(nic, 2),
        host_if: identity("xenbr0", 3),
        made_s: 5,
        steps: std::iter::repeat_n(step, steps).collect(),
    }
}

fn change(old: &str, new: &str) -> SysctlChange {
    let beside = vec![("ipv4/conf/eth1/forwarding".to_owned(), "1".to_owned())];
    SysctlChange { old: old.into(), new: new.into(), beside }
}

fn records() -> Vec<Record> {
    vec![
        Record::Boot { id: "b1".into() },
        Record::Sysctl { path: "ipv4/ip_forward".into(), change: change("0", "1") },
        Record::Table { name: "weft_n".into() },
        Record::Routes { interface: "virbr0".into() },
        Record::Move { plan: Box::new(plan("eth0", 9)) },
        Record::Step { nic: "eth0".into(), step: 0 },
        Record::Step { nic: "eth0".into(), step: 1 },
    ]
}

fn text(records: &[Record]) -> Vec<u8> {
    records.iter().flat_map(|record| line(record).unwrap().into_bytes()).collect()
}

#[test]
fn crc_is_the_well_known_one() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, damaged) = Journal::open(dir.path(), "b1").unwrap();
    assert_eq!(damaged, 0);
    assert!(!dir.path().join(FILE_NAME).exists(), "nothing to tell, nothing there");
    for record in records().into_iter().skip(1) {
        journal.write(record).unwrap();
    }
    let pending = journal.pending().clone();
    assert_eq!(pending.moves["eth0"].begun, 2);
    assert_eq!(pending.boot.as_deref(), Some("b1"));
    let (again, _) = Journal::open(dir.path(), "b1").unwrap();
    assert_eq!(*again.pending(), pending);
    assert!(!again.is_of_another_boot());
    let (again, _) = Journal::open(dir.path(), "b2").unwrap();
    assert!(again.is_of_another_boot());
}

#[test]
fn when_nothing_is_left_the_file_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path(), "b1").unwrap();
    journal.write(Record::Table { name: "weft_n".into() }).unwrap();
    assert!(dir.path().join(FILE_NAME).exists());
    journal.write(Record::TableDone { name: "weft_n".into() }).unwrap();
    assert!(!dir.path().join(FILE_NAME).exists());
    // And it begins anew, with its boot.
    journal.write(Record::Table { name: "weft_m".into() }).unwrap();
    let (again, _) = Journal::open(dir.path(), "b1").unwrap();
    assert!(!again.is_of_another_boot());
    assert!(again.pending().tables.contains("weft_m"));
}

#[test]
fn a_journal_of_another_boot_is_discarded_whole() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE_NAME), text(&records())).unwrap();
    let (mut journal, _) = Journal::open(dir.path(), "b2").unwrap();
    assert!(journal.is_of_another_boot());
    journal.discard().unwrap();
    assert!(journal.pending().is_empty() && !journal.is_of_another_boot());
    assert!(!dir.path().join(FILE_NAME).exists());
}

#[test]
fn a_long_file_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(dir.path(), "b1").unwrap();
    journal.write(Record::Table { name: "weft_kept".into() }).unwrap();
    journal.lines = LINES_MAX - 2;
    for _ in 0..4 {
        journal.write(Record::Routes { interface: "virbr0".into() }).unwrap();
        journal.write(Record::RoutesDone { interface: "virbr0".into() }).unwrap();
    }
    assert!(journal.lines < 16, "{}", journal.lines);
    let (again, _) = Journal::open(dir.path(), "b1").unwrap();
    assert_eq!(again.pending(), journal.pending());
}

#[test]
fn the_first_value_of_a_sysctl_is_the_one_to_restore() {
    let mut pending = Pending::default();
    pending.apply(Record::Sysctl { path: "a/b".into(), change: change("0", "1") });
    pending.apply(Record::Sysctl { path: "a/b".into(), change: change("1", "2") });
    let known = &pending.sysctls["a/b"];
    assert_eq!((known.old.as_str(), known.new.as_str()), ("0", "2"));
}

#[test]
fn a_damaged_line_is_counted_and_the_rest_is_read() {
    let mut bytes = text(&records());
    let second = bytes.iter().position(|b| *b == b'\n').unwrap() + 12;
    bytes[second] ^= 1;
    let (read, damaged) = replay(&bytes);
    assert_eq!(damaged, 1);
    assert_eq!(read.len(), records().len() - 1);
}

proptest! {
    /// Wherever a crash cuts the file off, what is read is a beginning of what was written, and all of its whole lines.
    #[test]
    fn a_file_that_was_cut_off_reads_as_a_beginning(cut in 0_usize..2000) {
        let bytes = text(&records());
        let cut = cut % (bytes.len() + 1);
        let (read, damaged) = replay(&bytes[..cut]);
        let whole = bytes[..cut].iter().filter(|b| **b == b'\n').count();
        prop_assert_eq!(damaged, 0);
        prop_assert_eq!(&read[..], &records()[..whole]);
    }

    /// No bytes make it fail, and writing goes on behind them.
    #[test]
    fn any_file_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), &bytes).unwrap();
        let (mut journal, _) = Journal::open(dir.path(), "b1").unwrap();
        journal.write(Record::Table { name: "weft_n".into() }).unwrap();
        let (again, damaged) = Journal::open(dir.path(), "b1").unwrap();
        prop_assert_eq!(damaged, 0);
        prop_assert!(again.pending().tables.contains("weft_n"));
    }

    /// The fewest records say the same as all of them.
    #[test]
    fn what_is_written_anew_says_the_same(choice in proptest::collection::vec(0_usize..9, 0..40)) {
        let mut more = records();
        more.push(Record::MoveDone { nic: "eth0".into() });
        more.push(Record::SysctlDone { path: "ipv4/ip_forward".into() });
        let mut pending = Pending::default();
        for index in choice {
            pending.apply(more[index].clone());
        }
        let mut again = Pending::default();
        pending.records().into_iter().for_each(|record| again.apply(record));
        prop_assert_eq!(again, pending);
    }
}
