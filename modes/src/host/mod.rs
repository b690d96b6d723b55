//! What a network changes of the host: the addresses of its host interface, routes to guests, forwarding,
//! masquerading, and where the host's own addresses are.
//!
//! [`Plumber`] is the one door. It is a handle on a thread of its own with a runtime of its own; calls are
//! synchronous, one at a time, and bounded in time; what happens without a call is told by [`Event`]s. It works in
//! the network namespace that the thread which starts it is in.
//!
//! Invariants:
//! - *Nothing is left behind.* What outlives an interface of ours is in the journal before it is done, and is put
//!   back by [`Plumber::shutdown`], when the handle is dropped, and at the next start after a crash.
//! - *Nobody else's is touched.* Routes are ours by their protocol number, addresses because they were added here,
//!   tables by their name; a sysctl that somebody else has changed since is left alone.
//! - *Refused before it is begun*: what cannot work is told before anything is changed. What fails half way is
//!   put back at once.
//! - Putting back goes on past what fails, and reports all of it.
//!
//! Inside: `interface` (addresses of a host interface), `routes` (to guests), `sysctl` (forwarding), `nft`
//! (masquerading), `relocate` (`host-address=move`), `journal` (what is to be put back), `netlink` (the kernel).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

mod error;
mod interface;
mod journal;
mod netlink;
mod nft;
mod relocate;
mod routes;
mod sysctl;
mod worker;

pub use error::{Event, HostError, Report};
pub use interface::InterfaceSetup;
pub use journal::FILE_NAME as JOURNAL_NAME;
pub use nft::{ForwardProto, HostForward, Masquerade, table_name};
pub use relocate::{FailAt, Failure, Moved};
pub use routes::{HostRoute, PROTOCOL as ROUTE_PROTOCOL};
pub use sysctl::Sysctl;

use worker::{Request, Worker};

/// How long a call waits for its answer. The thread itself has shorter limits for each thing that it waits for.
const CALL_TIME: Duration = Duration::from_secs(30);
/// How long the end may take.
const END_TIME: Duration = Duration::from_secs(60);

/// How a [`Plumber`] works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the journal is. It must exist, and belong to this process alone.
    pub state_dir: PathBuf,
    /// How long the host may be unreachable after a move before it is undone.
    pub watch_for: Duration,
    /// For tests: where a move ends.
    pub fail_at: Option<FailAt>,
}

impl Options {
    /// The usual ones: ten seconds, as Xen's scripts wait for a link.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self { state_dir: state_dir.into(), watch_for: Duration::from_secs(10), fail_at: FailAt::from_env() }
    }
}

/// The handle on the thread that changes the host. When it is dropped, everything is put back, and the thread ends.
pub struct Plumber {
    requests: Option<UnboundedSender<Request>>,
    thread: Option<JoinHandle<()>>,
    recovered: Report,
}

impl fmt::Debug for Plumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plumber").finish_non_exhaustive()
    }
}

impl Plumber {
    /// Puts back what an earlier process left in the journal (see [`Plumber::recovered`]), and starts. `events` is
    /// called on the thread; it must return at once.
    ///
    /// # Errors
    /// The journal cannot be read or written, or there is no rtnetlink.
    pub fn start(options: Options, events: impl FnMut(Event) + Send + 'static) -> Result<Self, HostError> {
        let (requests, receiver) = unbounded_channel();
        let (started, start) = sync_channel(1);
        let events = Box::new(events);
        let body = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(source) => {
                    let what = "starting the thread that changes the host".into();
                    let _ = started.send(Err(HostError::Kernel { what, source }));
                    return;
                }
            };
            runtime.block_on(async {
                let Options { state_dir, watch_for, fail_at } = options;
                match Worker::start(&state_dir, watch_for, fail_at, events).await {
                    Ok((worker, report)) => {
                        let _ = started.send(Ok(report));
                        worker.run(receiver).await;
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
        };
        let thread = std::thread::Builder::new()
            .name("weft-host".into())
            .spawn(body)
            .map_err(HostError::kernel("starting the thread that changes the host"))?;
        let recovered = receive(&start, "starting", CALL_TIME)?;
        Ok(Self { requests: Some(requests), thread: Some(thread), recovered })
    }

    /// Puts back what an earlier process left, and does nothing else: for a start without networks, or for a
    /// service manager to call after a crash.
    ///
    /// # Errors
    /// As [`Plumber::start`]. What could not be put back is in the report.
    pub fn recover(state_dir: &Path) -> Result<Report, HostError> {
        let options = Options { fail_at: None, ..Options::new(state_dir) };
        let mut plumber = Self::start(options, drop)?;
        Ok(std::mem::take(&mut plumber.recovered))
    }

    /// What was put back at the start.
    pub fn recovered(&self) -> &Report {
        &self.recovered
    }

    /// Gives a host interface its MAC address and addresses, and sets it up. Called again, it makes the difference:
    /// addresses that were set from here and are not among these any more are removed; others are left.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub fn set_interface(&self, setup: InterfaceSetup) -> Result<(), HostError> {
        self.call("setting up the host interface", |reply| Request::SetInterface(setup, reply))
    }

    /// Removes the addresses that were set from here. The interface itself stays.
    ///
    /// # Errors
    /// The thread has ended or is late.
    pub fn clear_interface(&self, name: &str) -> Result<Report, HostError> {
        let name = name.to_owned();
        self.call("clearing the host interface", |reply| Request::ClearInterface(name, reply))
    }

    /// Makes `routes` all of a network's routes to guests; to be called with the whole set whenever a guest comes
    /// or goes. All lead by `interface`, which is this network's alone.
    ///
    /// # Errors
    /// The host has a route to one of them that is not ours (the others are made all the same), there is no such
    /// interface, or the kernel refuses.
    pub fn set_routes(
        &self,
        network: &str,
        interface: &str,
        routes: Vec<HostRoute>,
    ) -> Result<(), HostError> {
        let (network, interface) = (network.to_owned(), interface.to_owned());
        self.call("setting routes", |reply| Request::SetRoutes { network, interface, routes, reply })
    }

    /// Removes a network's routes.
    ///
    /// # Errors
    /// The thread has ended or is late.
    pub fn clear_routes(&self, network: &str) -> Result<Report, HostError> {
        let network = network.to_owned();
        self.call("removing routes", |reply| Request::ClearRoutes(network, reply))
    }

    /// Makes `sysctls` all that `network` holds. One that several networks hold is put back when the last of them
    /// has given it up.
    ///
    /// # Errors
    /// Another network holds one with another value, there is no such sysctl, or it cannot be written.
    pub fn hold_sysctls(&self, network: &str, sysctls: Vec<Sysctl>) -> Result<Report, HostError> {
        let owner = network.to_owned();
        self.call("setting sysctls", |reply| Request::HoldSysctls { owner, sysctls, reply })
    }

    /// Gives up all that a network holds.
    ///
    /// # Errors
    /// The thread has ended or is late.
    pub fn release_sysctls(&self, network: &str) -> Result<Report, HostError> {
        let owner = network.to_owned();
        self.call("restoring sysctls", |reply| Request::ReleaseSysctls(owner, reply))
    }

    /// Has the host masquerade for a network, with these port forwards. Called again, it changes them at once.
    ///
    /// # Errors
    /// The forwards make no sense, there is no `nft`, or it refuses. What was in place before is still in place.
    pub fn set_masquerade(&self, wanted: Masquerade) -> Result<(), HostError> {
        self.call("masquerading", |reply| Request::SetMasquerade(wanted, reply))
    }

    /// Removes a network's table.
    ///
    /// # Errors
    /// The thread has ended or is late.
    pub fn clear_masquerade(&self, network: &str) -> Result<Report, HostError> {
        let network = network.to_owned();
        self.call("removing a table", |reply| Request::ClearMasquerade(network, reply))
    }

    /// Moves the host's addresses, routes and neighbours from `nic` to `host_if`, which must exist and reach the
    /// NIC's link by the switch already: from the first step on, frames of the host go that way. Returns when the
    /// move is done; whether the host is reachable is told by [`Event::MoveConfirmed`] or [`Event::MoveUndone`].
    ///
    /// # Errors
    /// The move is refused, with the reason, and nothing was touched; or a step failed, and all were undone.
    pub fn move_addresses(&self, nic: &str, host_if: &str) -> Result<Moved, HostError> {
        let (nic, host_if) = (nic.to_owned(), host_if.to_owned());
        self.call("moving addresses", |reply| Request::Move { nic, host_if, reply })
    }

    /// Undoes a move. Where there was none, does nothing.
    ///
    /// # Errors
    /// The thread has ended or is late. What could not be put back is in the report.
    pub fn move_back(&self, nic: &str) -> Result<Report, HostError> {
        let nic = nic.to_owned();
        self.call("moving addresses back", |reply| Request::MoveBack { nic, reply })
    }

    /// Puts everything back and ends the thread; the report says what could not be.
    ///
    /// # Errors
    /// The thread has ended already or is late.
    pub fn shutdown(mut self) -> Result<Report, HostError> {
        let report = self.call_for("putting the host back", END_TIME, Request::Shutdown);
        self.end();
        report
    }

    fn call<T>(
        &self,
        what: &'static str,
        request: impl FnOnce(SyncSender<Result<T, HostError>>) -> Request,
    ) -> Result<T, HostError> {
        self.call_for(what, CALL_TIME, request)
    }

    fn call_for<T>(
        &self,
        what: &'static str,
        time: Duration,
        request: impl FnOnce(SyncSender<Result<T, HostError>>) -> Request,
    ) -> Result<T, HostError> {
        let (reply, answer) = sync_channel(1);
        let requests = self.requests.as_ref().ok_or(HostError::Ended)?;
        requests.send(request(reply)).map_err(|_| HostError::Ended)?;
        receive(&answer, what, time)
    }

    fn end(&mut self) {
        // Without anybody to ask, the thread puts everything back and ends.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Plumber {
    fn drop(&mut self) {
        self.end();
    }
}

fn receive<T>(
    answer: &std::sync::mpsc::Receiver<Result<T, HostError>>,
    what: &'static str,
    time: Duration,
) -> Result<T, HostError> {
    match answer.recv_timeout(time) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => Err(HostError::Late { what, seconds: time.as_secs() }),
        Err(RecvTimeoutError::Disconnected) => Err(HostError::Ended),
    }
}
