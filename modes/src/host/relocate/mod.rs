//! `host-address=move`: the host's addresses go from a NIC to the network's host interface, as in Xen's
//! `network-bridge`, so that the NIC can be a port of the switch like any other.
//!
//! The host must not be lost by it. So: what cannot be moved is refused before anything is touched ([`survey`]); the
//! whole plan is in the journal before its first step, and each step's number before the step ([`plan`]); any
//! failure, the daemon's end, and the next start after a crash undo what was begun ([`execute`]); and when the host
//! does not reach its gateway by the new way in time, a watchdog undoes it, too ([`watchdog`]).

use std::time::Duration;

use super::error::{Event, HostError, Report};
use super::journal::{Journal, OpenMove, Record};
use super::netlink::Netlink;
use super::sysctl::Files;
use execute::{Site, boot_seconds};
use survey::Survey;
use watchdog::Watched;

pub(super) mod execute;
pub(super) mod plan;
mod survey;
mod watchdog;

#[cfg(test)]
mod tests;

/// Where a test has a move end: the way to try every place that a crash can happen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailAt {
    /// The step's number, from 0.
    pub step: usize,
    /// Whether the step is done before the end; it is in the journal in either case.
    pub after: bool,
    /// How it ends.
    pub how: Failure,
}

/// How a move ends that a test lets fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The process kills itself (SIGKILL): nothing of it runs any more.
    Kill,
    /// The step fails, and the move is undone at once.
    Error,
}

impl FailAt {
    /// The variable that [`FailAt::from_env`] reads.
    pub const VARIABLE: &'static str = "WEFT_TEST_KILL_AT_STEP";

    /// Out of the environment, for tests of a whole daemon: `N` kills the process before step N is done, `N+`
    /// after it. Only a build with debug assertions heeds it: what an environment happens to hold must not be able
    /// to end a daemon that is in use.
    pub fn from_env() -> Option<Self> {
        if !cfg!(debug_assertions) {
            return None;
        }
        Self::parse(&std::env::var(Self::VARIABLE).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, after) = text.strip_suffix('+').map_or((text, false), |number| (number, true));
        Some(Self { step: number.parse().ok()?, after, how: Failure::Kill })
    }

    fn fail(self) -> Result<(), HostError> {
        if self.how == Failure::Kill {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // A signal to oneself arrives before the call returns, or a moment later.
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Err(HostError::Refused(format!("step {} was made to fail", self.step)))
    }
}

/// A move that was done. It holds from now on, unless the watchdog finds the host unreachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// How many steps it took.
    pub steps: usize,
    /// What a person should know of it.
    pub notes: Vec<String>,
}

/// The moves that were done, and the watch over them.
#[derive(Default)]
pub(super) struct Moves {
    watched: Vec<Watched>,
}

impl Moves {
    /// Moves what `nic` has to `host_if`.
    pub(super) async fn begin(
        &mut self,
        net: &Netlink,
        journal: &mut Journal,
        (nic, host_if): (&str, &str),
        watch_for: Duration,
        fail_at: Option<FailAt>,
    ) -> Result<Moved, HostError> {
        for (name, open) in &journal.pending().moves {
            let taken = [name, &open.plan.host_if.name];
            if let Some(name) = taken.into_iter().find(|name| *name == nic || *name == host_if) {
                return Err(HostError::Refused(format!(
                    "{name} takes part in a move already, from {} to {}",
                    open.plan.nic.name, open.plan.host_if.name
                )));
            }
        }
        let files = Files::default();
        let survey = Survey::take(net, &files, nic, host_if).await?;
        if let Some(reason) = survey.refusal() {
            return Err(HostError::Refused(format!("the host's addresses stay on {nic}: {reason}")));
        }
        let plan = plan::plan(&survey.nic_side, &survey.host_if_side, boot_seconds());
        let mut notes = survey.managers;
        notes.extend(plan.leased().iter().map(|address| {
            format!("{address} is a lease: have it renewed on {host_if} instead of {nic}, or it ends")
        }));
        let watched = Watched::prepare(net, &plan, &mut notes, watch_for).await;
        journal.write(Record::Move { plan: Box::new(plan.clone()) })?;
        let site = Site { net, files: &files };
        for (number, step) in plan.steps.iter().enumerate() {
            let failing = |after| fail_at.filter(|at| at.step == number && at.after == after);
            let done = async {
                journal.write(Record::Step { nic: nic.to_owned(), step: number })?;
                failing(false).map_or(Ok(()), FailAt::fail)?;
                site.perform(&plan, step).await?;
                failing(true).map_or(Ok(()), FailAt::fail)
            };
            if let Err(error) = done.await {
                let report = self.undo(net, journal, nic).await;
                return Err(HostError::PutBack { reason: error.to_string(), report });
            }
        }
        self.watched.push(watched.begin());
        Ok(Moved { steps: plan.steps.len(), notes })
    }

    /// Undoes a move, as far as it was begun.
    pub(super) async fn undo(&mut self, net: &Netlink, journal: &mut Journal, nic: &str) -> Report {
        self.watched.retain(|watched| watched.nic() != nic);
        let mut report = Report::default();
        let Some(OpenMove { plan, begun }) = journal.pending().moves.get(nic).cloned() else { return report };
        let files = Files::default();
        report.append(Site { net, files: &files }.undo(&plan, begun).await);
        if report.is_clean()
            && let Err(error) = journal.write(Record::MoveDone { nic: nic.to_owned() })
        {
            report.fail(error.to_string());
        }
        report
    }

    /// Returns when [`Moves::watch`] has something to do.
    pub(super) async fn due(&self) {
        match self.watched.iter().map(Watched::due).min() {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Looks at the moves that were done a moment ago.
    pub(super) async fn watch(&mut self, net: &Netlink, journal: &mut Journal) -> Vec<Event> {
        let mut events = Vec::new();
        let mut verdicts = Vec::new();
        for watched in &mut self.watched {
            if let Some(verdict) = watched.look(net).await {
                verdicts.push((watched.nic().to_owned(), watched.host_if().to_owned(), verdict));
            }
        }
        for (nic, host_if, verdict) in verdicts {
            events.push(match verdict {
                Ok(()) => {
                    self.watched.retain(|watched| watched.nic() != nic);
                    Event::MoveConfirmed { nic, host_if }
                }
                Err(reason) => {
                    let report = self.undo(net, journal, &nic).await;
                    Event::MoveUndone { nic, host_if, reason, report }
                }
            });
        }
        events
    }
}
