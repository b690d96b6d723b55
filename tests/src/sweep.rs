//! What a suite leaves behind that is killed: its processes, namespaces and files.
//!
//! Every process of a run has the run's mark in its environment, and every file is in the run's own directory. A watcher,
//! which outlives the run by a moment, notices its end however it comes, and takes away what is left. What a watcher could
//! not take away (it was killed, too), the next run does.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

use crate::{netns, ordinary, process};

/// Environment variable: the process id of the suite that this process belongs to.
const OWNER: &str = "WEFT_TEST_OWNER";
/// Environment variable: this process is the watcher of that suite.
const WATCHED: &str = "WEFT_TEST_WATCHED";
/// What names of namespaces and of runs' directories begin with.
const NAMES: &str = "weft-";
const RUN: &str = "weft-run-";

/// Gives this run its mark, its directory and its watcher. Called first of all, and once.
///
/// # Errors
/// A directory or a process cannot be made.
pub(crate) fn own() -> Result<()> {
    if let Some(owner) = std::env::var(WATCHED).ok().and_then(|owner| owner.parse().ok()) {
        // Nothing is ever written: this ends with the owner.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        sweep(owner);
        std::process::exit(0);
    }
    if ordinary::inside() {
        // Part of a run that has a watcher.
        return Ok(());
    }
    let me = std::process::id();
    if std::env::var(OWNER).is_ok_and(|owner| owner == me.to_string()) {
        stale();
        let mut watcher = Command::new("/proc/self/exe");
        watcher.env_remove(OWNER).env(WATCHED, me.to_string()).stdin(Stdio::piped()).stdout(Stdio::null());
        let child = watcher.process_group(0).spawn().context("cannot start the watcher")?;
        // Its standard input is open as long as this process is there.
        std::mem::forget(child);
        return Ok(());
    }
    let dir = std::env::temp_dir().join(format!("{RUN}{me}"));
    // Of an earlier process with this number.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let mut again = Command::new("/proc/self/exe");
    again.args(std::env::args_os().skip(1)).env(OWNER, me.to_string()).env("TMPDIR", dir);
    Err(again.exec()).context("cannot start again")
}

/// The directory that runs have theirs in.
fn runs() -> PathBuf {
    let own = std::env::temp_dir();
    own.parent().unwrap_or(Path::new("/tmp")).to_path_buf()
}

fn lives(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The owner that a name tells: `weft-12-0-host`, `weft-run-12`.
fn owner_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(RUN).or_else(|| name.strip_prefix(NAMES))?;
    rest.split('-').next()?.parse().ok()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Processes that have a mark, with their owners.
fn marked() -> Vec<(u32, u32)> {
    let mark = |pid: u32| -> Option<u32> {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let words = environment.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
        words.filter_map(|word| word.strip_prefix(OWNER)?.strip_prefix('=')?.parse().ok()).next_back()
    };
    let pids = names_in(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    pids.filter_map(|pid| Some((pid, mark(pid)?))).collect()
}

/// Takes away what runs have left that are no more.
fn stale() {
    let mut owners: BTreeSet<u32> = marked().into_iter().map(|(_, owner)| owner).collect();
    for dir in [Path::new(netns::RUN), &runs()] {
        owners.extend(names_in(dir).iter().filter_map(|name| owner_of(name)));
    }
    owners.into_iter().filter(|owner| !lives(*owner)).for_each(sweep);
}

/// Takes away what is left of a run. What cannot be taken away stays: nobody waits for it here.
fn sweep(owner: u32) {
    // A process may start others while it is looked at.
    for _ in 0..20 {
        let all = marked().into_iter().filter(|(pid, of)| *of == owner && *pid != owner);
        let left: Vec<Pid> = all.filter_map(|(pid, _)| Pid::from_raw(pid.cast_signed())).collect();
        for pid in &left {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for name in names_in(Path::new(netns::RUN)).iter().filter(|name| owner_of(name) == Some(owner)) {
        let _ = process::sh(&format!("ip netns pids {name} | xargs -r kill -9; ip netns del {name}"));
        let _ = fs::remove_dir_all(Path::new(netns::ETC).join(name));
    }
    let _ = fs::remove_dir_all(runs().join(format!("{RUN}{owner}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_owner() {
        assert_eq!(owner_of("weft-12-0-host"), Some(12));
        assert_eq!(owner_of("weft-run-3456"), Some(3456));
        for other in ["weft-demo-1", "weft-x", "ovs-12-0", "weft-", "weft"] {
            assert_eq!(owner_of(other), None, "{other}");
        }
    }
}
