//! Sysctls, in a directory that stands for `/proc/sys/net`.

use std::path::Path;

use super::*;

struct World {
    dir: tempfile::TempDir,
    journal: Journal,
    sysctls: Sysctls,
}

fn world(files: &[(&str, &str)]) -> World {
    let dir = tempfile::tempdir().unwrap();
    for (path, value) in files {
        let path = dir.path().join("net").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }
    let (journal, _) = Journal::open(dir.path(), "b1").unwrap();
    let sysctls = Sysctls::at(dir.path().join("net"));
    World { dir, journal, sysctls }
}

fn read(world: &World, path: &str) -> String {
    let root: &Path = world.dir.path();
    fs::read_to_string(root.join("net").join(path)).unwrap().trim().to_owned()
}

#[test]
fn the_last_to_go_restores() {
    let mut w = world(&[("ipv4/ip_forward", "0")]);
    for (owner, notes) in [("a", 1), ("b", 0)] {
        let report = w.sysctls.hold(&mut w.journal, owner, &[Sysctl::forward4()]).unwrap();
        assert_eq!(report.notes.len(), notes, "the change is told once: {report}");
    }
    assert_eq!(read(&w, "ipv4/ip_forward"), "1");
    w.sysctls.release(&mut w.journal, "a");
    assert_eq!(read(&w, "ipv4/ip_forward"), "1");
    w.sysctls.release(&mut w.journal, "b");
    assert_eq!(read(&w, "ipv4/ip_forward"), "0");
    assert!(w.journal.pending().is_empty());
}

#[test]
fn two_that_want_different_values_are_refused() {
    let mut w = world(&[("ipv6/conf/eth0/accept_ra", "1")]);
    w.sysctls.hold(&mut w.journal, "a", &[Sysctl::accept_ra("eth0", 2)]).unwrap();
    let error = w.sysctls.hold(&mut w.journal, "b", &[Sysctl::accept_ra("eth0", 0)]).unwrap_err();
    assert!(error.to_string().contains("a needs 2"), "{error}");
    assert_eq!(read(&w, "ipv6/conf/eth0/accept_ra"), "2");
    // Its own it may change; what is restored is what was there first.
    w.sysctls.hold(&mut w.journal, "a", &[Sysctl::accept_ra("eth0", 0)]).unwrap();
    w.sysctls.release(&mut w.journal, "a");
    assert_eq!(read(&w, "ipv6/conf/eth0/accept_ra"), "1");
}

#[test]
fn a_refusal_takes_nothing() {
    let mut w = world(&[("ipv4/ip_forward", "0")]);
    let wanted = [Sysctl::forward4(), Sysctl::forward4_of("eth9")];
    assert!(matches!(w.sysctls.hold(&mut w.journal, "a", &wanted), Err(HostError::Refused(_))));
    assert_eq!(read(&w, "ipv4/ip_forward"), "0");
    assert!(w.journal.pending().is_empty());
    assert!(!w.sysctls.holds("ipv4/ip_forward"));
}

#[test]
fn somebody_elses_value_stays() {
    let mut w = world(&[("ipv6/conf/eth0/accept_ra", "1")]);
    w.sysctls.hold(&mut w.journal, "a", &[Sysctl::accept_ra("eth0", 2)]).unwrap();
    fs::write(w.dir.path().join("net/ipv6/conf/eth0/accept_ra"), "0\n").unwrap();
    let report = w.sysctls.release(&mut w.journal, "a");
    assert!(report.is_clean() && report.notes.len() == 1, "{report}");
    assert_eq!(read(&w, "ipv6/conf/eth0/accept_ra"), "0");
    assert!(w.journal.pending().is_empty());
}

#[test]
fn what_was_on_by_itself_is_on_again() {
    let mut w = world(&[
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/all/forwarding", "0"),
        ("ipv4/conf/eth0/forwarding", "0"),
        ("ipv4/conf/eth1/forwarding", "1"),
    ]);
    w.sysctls.hold(&mut w.journal, "a", &[Sysctl::forward4()]).unwrap();
    // What the kernel does when forwarding is turned off for all.
    fs::write(w.dir.path().join("net/ipv4/conf/eth1/forwarding"), "0").unwrap();
    fs::write(w.dir.path().join("net/ipv4/conf/all/accept_redirects"), "1").unwrap();
    w.sysctls.release(&mut w.journal, "a");
    assert_eq!(read(&w, "ipv4/conf/eth1/forwarding"), "1");
    assert_eq!(read(&w, "ipv4/conf/all/accept_redirects"), "0");
    assert_eq!(read(&w, "ipv4/conf/eth0/forwarding"), "0");
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    let w = world(&[]);
    for name in ["..", ".", "", "a/../../b"] {
        let sysctl = Sysctl::forward4_of(name);
        assert!(w.sysctls.files.read(&sysctl.path).is_err(), "{name}");
    }
}
