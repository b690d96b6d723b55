//! What can go wrong with the host, what was done about it, and what is told afterwards.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why the host was not changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The change would do harm, or cannot be right. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The kernel refused a step. What was done before it has been put back; the text says so where it could not.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried, on what.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no `nft`.
    #[error(
        "masquerading and port forwards on the host need the program nft, which is not installed: install nftables, or use egress=user"
    )]
    NftMissing,
    /// `nft` did not take a table.
    #[error("nft did not {what}: {told}")]
    Nft {
        /// What it was asked for.
        what: String,
        /// What it said.
        told: String,
    },
    /// The journal cannot be read or written. Nothing is changed of the host that is not in the journal first.
    #[error("the journal {}: {source}", path.display())]
    Journal {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A step did not go, and what was done before it was put back.
    #[error("{reason}; {report}")]
    PutBack {
        /// What did not go.
        reason: String,
        /// What putting back said.
        report: Report,
    },
    /// No answer within the time that a call has. What was asked for may still be done.
    #[error("{what} has not been done after {seconds} s; it may still be")]
    Late {
        /// What was asked for.
        what: &'static str,
        /// How long was waited, in seconds.
        seconds: u64,
    },
    /// The thread that changes the host has ended.
    #[error("the thread that changes the host has ended")]
    Ended,
}

impl HostError {
    pub(super) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Kernel { what, source }
    }
}

/// What putting back found: it goes on past what fails, and tells all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What a person may want to know: what was left alone and why.
    pub notes: Vec<String>,
    /// What could not be put back. It stays in the journal and is tried again at the next start.
    pub failures: Vec<String>,
}

impl Report {
    /// True if everything is as it was.
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty()
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub(super) fn fail(&mut self, text: impl Into<String>) {
        self.failures.push(text.into());
    }

    pub(super) fn append(&mut self, mut other: Report) {
        self.notes.append(&mut other.notes);
        self.failures.append(&mut other.failures);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.failures.is_empty() {
            f.write_str("everything was put back")?;
        } else {
            write!(f, "not everything could be put back: {}", self.failures.join("; "))?;
        }
        if !self.notes.is_empty() {
            write!(f, " ({})", self.notes.join("; "))?;
        }
        Ok(())
    }
}

/// What happened to the host without a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// After a move, the host interface carries the host's traffic: the move stays.
    MoveConfirmed {
        /// The interface whose addresses moved.
        nic: String,
        /// Where they are.
        host_if: String,
    },
    /// After a move, the host was not reachable in time: everything was put back.
    MoveUndone {
        /// The interface that has its addresses again.
        nic: String,
        /// Where they were.
        host_if: String,
        /// What was missing.
        reason: String,
        /// What putting back said.
        report: Report,
    },
    /// Somebody removed or changed a network's table; it is there again.
    TableRestored {
        /// Whose table.
        network: String,
        /// Its name, in family `inet`.
        table: String,
    },
    /// Somebody removed or changed a network's table, and it could not be made again. It is tried again every few
    /// seconds.
    TableLost {
        /// Whose table.
        network: String,
        /// Its name, in family `inet`.
        table: String,
        /// Why it is not there.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::MoveConfirmed { nic, host_if } => write!(f, "{host_if} carries what {nic} did"),
            Event::MoveUndone { nic, host_if, reason, report } => {
                write!(f, "the addresses of {nic} did not stay on {host_if}: {reason}; {report}")
            }
            Event::TableRestored { network, table } => {
                write!(
                    f,
                    "network {network}: table inet {table} was changed by somebody else and is restored"
                )
            }
            Event::TableLost { network, table, reason } => {
                write!(f, "network {network}: table inet {table} was changed by somebody else: {reason}")
            }
        }
    }
}
