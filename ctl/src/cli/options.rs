//! What the verbs that the binary provides are asked for, and where a ctl socket is.

use crate::model::shown;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The highest CPU number that a list may name.
const CPU_MAX: u32 = 4095;

/// Where the daemon of a host listens.
const SYSTEM_SOCKET: &str = "/run/weft/ctl.sock";

/// CPUs, ascending, each once.
pub(super) type Cpus = std::sync::Arc<[u32]>;

/// How workers wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// They sleep when there is nothing to do.
    #[default]
    Adaptive,
    /// They never sleep.
    Busy,
}

/// What `weft daemon` is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonOptions {
    /// The configuration file, absolute.
    pub config: Option<PathBuf>,
    /// The ctl socket, absolute.
    pub socket: PathBuf,
    /// The directory of what survives a restart, absolute.
    pub state_dir: Option<PathBuf>,
    /// The CPUs of the workers, ascending, each once, at least one; `None` leaves it to the daemon.
    pub cpus: Option<Vec<u32>>,
    /// How workers wait.
    pub poll: Poll,
}

/// What `weft demo` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemoOptions {
    /// Print one JSON value.
    pub json: bool,
    /// Leave it running.
    pub keep: bool,
}

/// What the command line takes from the process that it runs in.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Where the daemon of the host listens.
    pub system_socket: PathBuf,
    /// `$WEFT_SOCKET`.
    pub socket: Option<OsString>,
    /// `$XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<OsString>,
    /// The working directory, for relative paths.
    pub cwd: PathBuf,
    /// The process is root.
    pub root: bool,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        Self {
            system_socket: PathBuf::from(SYSTEM_SOCKET),
            socket: std::env::var_os("WEFT_SOCKET").filter(|v| !v.is_empty()),
            runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty()),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// `path`, absolute.
    pub(super) fn absolute(&self, path: &Path) -> PathBuf {
        self.cwd.join(path)
    }

    /// Where a client looks for the daemon, in this order.
    pub(super) fn sockets(&self, given: Option<&Path>) -> Vec<PathBuf> {
        match given.or(self.socket.as_deref().map(Path::new)) {
            Some(path) => vec![self.absolute(path)],
            None => std::iter::once(self.system_socket.clone()).chain(self.user_socket()).collect(),
        }
    }

    /// Where a daemon makes its socket; `None` without root and without a runtime directory.
    pub(super) fn daemon_socket(&self, given: Option<&Path>) -> Option<PathBuf> {
        match given.or(self.socket.as_deref().map(Path::new)) {
            Some(path) => Some(self.absolute(path)),
            None if self.root => Some(self.system_socket.clone()),
            None => self.user_socket(),
        }
    }

    fn user_socket(&self) -> Option<PathBuf> {
        self.runtime_dir.as_ref().map(|dir| Path::new(dir).join("weft/ctl.sock"))
    }
}

/// `0,2-3`: numbers and ranges.
pub(super) fn parse_cpus(text: &str) -> Result<Cpus, String> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u32>().ok()).flatten().filter(|n| *n <= CPU_MAX)
        };
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
            _ => return Err(format!("{} is not a CPU number or range, such as 0,2-3", shown(part))),
        }
        if cpus.len() > CPU_MAX as usize + 1 {
            return Err("a CPU is named twice".to_owned());
        }
    }
    cpus.sort_unstable();
    if cpus.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
        return Err("a CPU is named twice".to_owned());
    }
    Ok(cpus.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(&*parse_cpus("0,2-3").unwrap(), [0, 2, 3]);
        assert_eq!(&*parse_cpus("7").unwrap(), [7]);
        assert_eq!(&*parse_cpus("3,1").unwrap(), [1, 3]);
        for bad in
            ["", ",", "1,", "a", "-1", "1-", "3-1", "1,1", "0-2,1", "4096", "0-4095,0-4095", "+1", "1--2"]
        {
            assert!(parse_cpus(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sockets_are_found_in_the_documented_order() {
        let mut env = Environment {
            system_socket: SYSTEM_SOCKET.into(),
            socket: None,
            runtime_dir: None,
            cwd: "/home".into(),
            root: false,
        };
        assert_eq!(env.sockets(None), [Path::new("/run/weft/ctl.sock")]);
        assert_eq!(env.daemon_socket(None), None);
        env.runtime_dir = Some("/run/user/1000".into());
        let user = Path::new("/run/user/1000/weft/ctl.sock");
        assert_eq!(env.sockets(None), [Path::new("/run/weft/ctl.sock"), user]);
        assert_eq!(env.daemon_socket(None).as_deref(), Some(user));
        env.root = true;
        assert_eq!(env.daemon_socket(None).as_deref(), Some(Path::new("/run/weft/ctl.sock")));
        env.socket = Some("a.sock".into());
        assert_eq!(env.sockets(None), [Path::new("/home/a.sock")]);
        assert_eq!(env.sockets(Some(Path::new("/b.sock"))), [Path::new("/b.sock")]);
        assert_eq!(env.daemon_socket(Some(Path::new("b.sock"))).as_deref(), Some(Path::new("/home/b.sock")));
    }
}
