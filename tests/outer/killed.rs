//! The suite itself: what it leaves behind when somebody ends it is taken away.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Daemon, Need, Netns, Program, Suite, eventually, process};
use rustix::process::{Pid, Signal};

use crate::lan::LIMIT;

const NEEDS: &[Need] = &[Need::Namespaces];
/// Environment variable: the suite has one more test, which ends by being killed.
const VICTIM: &str = "WEFT_TEST_VICTIM";
const WAITS: &str = "waits_until_it_is_killed";

pub(crate) fn register(suite: &mut Suite) {
    suite.add("a_suite_that_is_killed_leaves_no_process_namespace_or_file", NEEDS, killed);
    if std::env::var_os(VICTIM).is_some() {
        suite.add(WAITS, NEEDS, waits);
    }
}

fn waits() -> Result<()> {
    // One that no namespace tells of.
    let _outside = Daemon::start()?;
    let namespace = Netns::new("victim")?;
    let _daemon = Daemon::start_in(&namespace)?;
    // One that its parent's end does not end: it is of another process group, and its parent is not the suite.
    let _server = Program::start(&namespace, "sh", &["-c", "setsid sleep 300 & wait"])?;
    std::thread::sleep(Duration::from_secs(300));
    Ok(())
}

fn killed() -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut suite = Command::new(std::env::current_exe()?);
        suite.args(["--exact", WAITS]).env(VICTIM, "1").stdin(Stdio::null()).stdout(Stdio::null());
        let mut suite = suite.spawn()?;
        let left = format!("weft-{}-", suite.id());
        let told = || {
            process::sh(&format!("for n in $(ls /run/netns | grep {left}); do ip netns pids $n || :; done"))
        };
        eventually("what it starts", LIMIT, || {
            let told = told()?;
            // The daemon, the shell and what that started.
            Ok(if told.lines().count() == 3 { Ok(()) } else { Err(told) })
        })?;
        let id = suite.id();
        let pids = told()? + &process::sh(&format!("cat /proc/{id}/task/{id}/children"))?;
        ensure!(pids.split_whitespace().count() >= 6, "the other daemon and the watcher, too: {pids}");
        let files = std::env::temp_dir().join(format!("weft-run-{}", suite.id()));
        ensure!(files.is_dir(), "no {}", files.display());
        let pid = Pid::from_raw(suite.id().cast_signed()).context("a process id of zero")?;
        rustix::process::kill_process(pid, signal)?;
        suite.wait()?;
        eventually("what it started is gone", LIMIT, || {
            let runs = pids.split_whitespace().filter(|pid| Path::new("/proc").join(pid).exists()).count();
            let namespaces = process::sh("ls /run/netns")?.matches(&left).count();
            let rest = format!("{runs} processes, {namespaces} namespaces, files: {}", files.exists());
            Ok(if runs + namespaces == 0 && !files.exists() { Ok(()) } else { Err(rest) })
        })?;
    }
    Ok(())
}
