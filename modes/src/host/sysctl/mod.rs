//! The sysctls that networks need: changed on request, put back when the last network that asked has gone.
//!
//! Invariants: the value before the first change is in the journal before the change; a sysctl that said what was
//! asked already is not ours and is never written; one that somebody else changed meanwhile is left as it is.
//! Turning on forwarding for all interfaces makes the kernel change each interface's own switch with it: those that
//! were on before are put back on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use super::error::{HostError, Report};
use super::journal::{Journal, Record, SysctlChange};

/// One file under `/proc/sys/net` and the value it shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    path: String,
    value: String,
}

impl Sysctl {
    /// IPv4 forwarding between all interfaces (`net.ipv4.ip_forward`).
    pub fn forward4() -> Self {
        Self::new("ipv4/ip_forward", "1")
    }

    /// IPv6 forwarding between all interfaces (`net.ipv6.conf.all.forwarding`). A host that forwards ignores router
    /// advertisements, and forgets the default routes that it learned from them, unless `accept_ra` of the interface
    /// is 2: it is set, as part of this, on interfaces that have such a route.
    pub fn forward6() -> Self {
        Self::new("ipv6/conf/all/forwarding", "1")
    }

    /// Forwarding of IPv4 from one interface.
    pub fn forward4_of(interface: &str) -> Self {
        Self::new(format!("ipv4/conf/{interface}/forwarding"), "1")
    }

    /// Forwarding of IPv6 from one interface.
    pub fn forward6_of(interface: &str) -> Self {
        Self::new(format!("ipv6/conf/{interface}/forwarding"), "1")
    }

    /// Whether router advertisements are heeded: 0 no, 1 unless forwarding, 2 always.
    pub fn accept_ra(interface: &str, value: u8) -> Self {
        Self::new(format!("ipv6/conf/{interface}/accept_ra"), value.to_string())
    }

    /// True if it makes the kernel treat router advertisements as a router does.
    pub(super) fn is_forward6(&self) -> bool {
        self.value == "1" && self.path.starts_with("ipv6/conf/") && self.path.ends_with("/forwarding")
    }

    fn new(path: impl Into<String>, value: impl Into<String>) -> Self {
        Self { path: path.into(), value: value.into() }
    }
}

/// Reads and writes below `/proc/sys/net`, as the calling thread's network namespace has it.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self { root: PathBuf::from("/proc/sys/net") }
    }
}

impl Files {
    #[cfg(test)]
    pub(super) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The value; `None` if there is no such sysctl.
    pub(super) fn read(&self, path: &str) -> Result<Option<String>, HostError> {
        match fs::read_to_string(self.file(path)?) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HostError::kernel(format!("reading /proc/sys/net/{path}"))(error)),
        }
    }

    /// Writes a value.
    pub(super) fn write(&self, path: &str, value: &str) -> Result<(), HostError> {
        fs::write(self.file(path)?, value)
            .map_err(HostError::kernel(format!("writing {value} to /proc/sys/net/{path}")))
    }

    fn file(&self, path: &str) -> Result<PathBuf, HostError> {
        if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(HostError::Refused(format!("'{path}' is not the name of a sysctl")));
        }
        Ok(self.root.join(path))
    }

    /// The names in a directory.
    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// What is held, by whom.
#[derive(Debug, Default)]
pub(super) struct Sysctls {
    files: Files,
    held: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    value: String,
    owners: BTreeSet<String>,
}

impl Sysctls {
    #[cfg(test)]
    pub(super) fn at(root: impl Into<PathBuf>) -> Self {
        Self { files: Files::at(root), held: BTreeMap::new() }
    }

    /// Makes `wanted` what `owner` holds: takes what is new, gives up what is not among it any more.
    ///
    /// # Errors
    /// Somebody else holds one with another value, or the kernel does not take one. Then `owner` holds what it held
    /// before, as far as the report in the text does not say otherwise.
    pub(super) fn hold(
        &mut self,
        journal: &mut Journal,
        owner: &str,
        wanted: &[Sysctl],
    ) -> Result<Report, HostError> {
        for sysctl in wanted {
            if let Some(held) = self.held.get(&sysctl.path)
                && held.value != sysctl.value
                && held.owners.iter().any(|other| other != owner)
            {
                let others: Vec<&str> = held.owners.iter().map(String::as_str).collect();
                return Err(HostError::Refused(format!(
                    "{} needs {} in /proc/sys/net/{}, but {} needs {}",
                    owner,
                    sysctl.value,
                    sysctl.path,
                    others.join(", "),
                    held.value
                )));
            }
        }
        let mut report = Report::default();
        let mut taken = Vec::new();
        for sysctl in wanted {
            match self.take(journal, owner, sysctl, &mut report) {
                Ok(true) => taken.push(sysctl.path.clone()),
                Ok(false) => {}
                Err(error) => {
                    for path in taken {
                        self.give_up(journal, owner, &path, &mut report);
                    }
                    if report.is_clean() {
                        return Err(error);
                    }
                    return Err(HostError::PutBack { reason: error.to_string(), report });
                }
            }
        }
        let wanted: BTreeSet<&str> = wanted.iter().map(|sysctl| sysctl.path.as_str()).collect();
        let left = self
            .held
            .iter()
            .filter(|(path, held)| held.owners.contains(owner) && !wanted.contains(path.as_str()));
        let left: Vec<String> = left.map(|(path, _)| path.clone()).collect();
        for path in left {
            self.give_up(journal, owner, &path, &mut report);
        }
        Ok(report)
    }

    /// True if `owner` did not hold it before. What is changed is noted.
    fn take(
        &mut self,
        journal: &mut Journal,
        owner: &str,
        sysctl: &Sysctl,
        report: &mut Report,
    ) -> Result<bool, HostError> {
        if let Some(held) = self.held.get_mut(&sysctl.path)
            && held.value == sysctl.value
        {
            return Ok(held.owners.insert(owner.to_owned()));
        }
        let Some(old) = self.files.read(&sysctl.path)? else {
            return Err(HostError::Refused(format!("this host has no /proc/sys/net/{}", sysctl.path)));
        };
        if old != sysctl.value {
            let told = format!("/proc/sys/net/{} is {} now, and was {old}", sysctl.path, sysctl.value);
            let beside = self.beside(&sysctl.path, &old)?;
            let change = SysctlChange { old, new: sysctl.value.clone(), beside };
            journal.write(Record::Sysctl { path: sysctl.path.clone(), change })?;
            self.files.write(&sysctl.path, &sysctl.value)?;
            report.note(told);
        }
        let known = self.held.contains_key(&sysctl.path);
        let held = Held { value: sysctl.value.clone(), owners: BTreeSet::from([owner.to_owned()]) };
        self.held.insert(sysctl.path.clone(), held);
        Ok(!known)
    }

    /// What the kernel changes along with a switch for all interfaces, and would not put back right.
    fn beside(&self, path: &str, old: &str) -> Result<Vec<(String, String)>, HostError> {
        let (family, also) = match path {
            "ipv4/ip_forward" => ("ipv4", Some("ipv4/conf/all/accept_redirects")),
            "ipv6/conf/all/forwarding" => ("ipv6", None),
            _ => return Ok(Vec::new()),
        };
        let mut beside = Vec::new();
        if let Some(also) = also
            && let Some(value) = self.files.read(also)?
        {
            beside.push((also.to_owned(), value));
        }
        for interface in self.files.list(&format!("{family}/conf")) {
            let path = format!("{family}/conf/{interface}/forwarding");
            if interface != "all"
                && let Some(value) = self.files.read(&path)?
                && value != old
            {
                beside.push((path, value));
            }
        }
        Ok(beside)
    }

    /// True if somebody holds it.
    pub(super) fn holds(&self, path: &str) -> bool {
        self.held.contains_key(path)
    }

    /// Gives up everything that `owner` holds.
    pub(super) fn release(&mut self, journal: &mut Journal, owner: &str) -> Report {
        let mut report = Report::default();
        let paths: Vec<String> = self.held.keys().cloned().collect();
        for path in paths {
            self.give_up(journal, owner, &path, &mut report);
        }
        report
    }

    fn give_up(&mut self, journal: &mut Journal, owner: &str, path: &str, report: &mut Report) {
        let Some(held) = self.held.get_mut(path) else { return };
        if held.owners.remove(owner) && held.owners.is_empty() {
            self.held.remove(path);
            self.put_back(journal, path, report);
        }
    }

    /// Puts back one that the journal tells of.
    pub(super) fn put_back(&self, journal: &mut Journal, path: &str, report: &mut Report) {
        let Some(change) = journal.pending().sysctls.get(path).cloned() else { return };
        if let Err(error) = self.write_old(path, &change, report) {
            report.fail(error.to_string());
            return;
        }
        if let Err(error) = journal.write(Record::SysctlDone { path: path.to_owned() }) {
            report.fail(error.to_string());
        }
    }

    fn write_old(&self, path: &str, change: &SysctlChange, report: &mut Report) -> Result<(), HostError> {
        match self.files.read(path)? {
            None => report.note(format!("/proc/sys/net/{path} is gone")),
            Some(now) if now == change.old => {}
            Some(now) if now != change.new => {
                report.note(format!("/proc/sys/net/{path} is {now} by somebody else's hand and stays so"));
            }
            Some(_) => {
                self.files.write(path, &change.old)?;
                for (path, value) in &change.beside {
                    if self.files.read(path)?.is_some() {
                        self.files.write(path, value)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
