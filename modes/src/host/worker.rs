//! The thread that changes the host: requests one after the other, and between them what has to be watched.

use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::error::{Event, HostError, Report};
use super::interface::{InterfaceSetup, Interfaces};
use super::journal::Journal;
use super::netlink::Netlink;
use super::netlink::route::BY_ADVERTISEMENT;
use super::nft::Masquerade;
use super::nft::tables::{self, Tables};
use super::relocate::{FailAt, Moved, Moves};
use super::routes::{self, HostRoute, Routes};
use super::sysctl::{Files, Sysctl, Sysctls};

/// Who is told of what happens without a request.
pub(super) type Events = Box<dyn FnMut(Event) + Send>;

/// How a request is answered. Nobody may be waiting any more.
type Reply<T> = SyncSender<Result<T, HostError>>;

/// What may be asked for.
pub(super) enum Request {
    SetInterface(InterfaceSetup, Reply<()>),
    ClearInterface(String, Reply<Report>),
    SetRoutes { network: String, interface: String, routes: Vec<HostRoute>, reply: Reply<()> },
    ClearRoutes(String, Reply<Report>),
    HoldSysctls { owner: String, sysctls: Vec<Sysctl>, reply: Reply<Report> },
    ReleaseSysctls(String, Reply<Report>),
    SetMasquerade(Masquerade, Reply<()>),
    ClearMasquerade(String, Reply<Report>),
    Move { nic: String, host_if: String, reply: Reply<Moved> },
    MoveBack { nic: String, reply: Reply<Report> },
    Shutdown(Reply<Report>),
}

/// All that is known of what was changed.
pub(super) struct Worker {
    net: Netlink,
    journal: Journal,
    interfaces: Interfaces,
    routes: Routes,
    sysctls: Sysctls,
    tables: Tables,
    moves: Moves,
    events: Events,
    watch_for: Duration,
    fail_at: Option<FailAt>,
}

impl Worker {
    /// Opens what is needed and puts back what an earlier process left.
    pub(super) async fn start(
        state_dir: &Path,
        watch_for: Duration,
        fail_at: Option<FailAt>,
        events: Events,
    ) -> Result<(Self, Report), HostError> {
        let net = Netlink::open().map_err(HostError::kernel("opening an rtnetlink socket"))?;
        let (journal, damaged) = Journal::open(state_dir, &boot_id())?;
        let mut worker = Self {
            net,
            journal,
            interfaces: Interfaces::default(),
            routes: Routes::default(),
            sysctls: Sysctls::default(),
            tables: Tables::default(),
            moves: Moves::default(),
            events,
            watch_for,
            fail_at,
        };
        let mut report = Report::default();
        if damaged > 0 {
            report.note(format!("{damaged} lines of the journal are damaged and were left out"));
        }
        worker.recover(&mut report).await?;
        Ok((worker, report))
    }

    /// Puts back everything that the journal tells of.
    async fn recover(&mut self, report: &mut Report) -> Result<(), HostError> {
        if self.journal.is_of_another_boot() {
            report
                .note("the host was restarted since: what the journal tells of is gone, and it is discarded");
            return self.journal.discard();
        }
        let pending = self.journal.pending().clone();
        for nic in pending.moves.keys() {
            report.append(self.moves.undo(&self.net, &mut self.journal, nic).await);
        }
        for table in &pending.tables {
            report.append(tables::remove(&mut self.journal, table).await);
        }
        for interface in &pending.routes {
            report.append(routes::clear_interface(&self.net, &mut self.journal, interface).await);
        }
        for path in pending.sysctls.keys() {
            self.sysctls.put_back(&mut self.journal, path, report);
        }
        Ok(())
    }

    /// Serves until there is nobody left to ask, or somebody asks for the end; then puts everything back.
    pub(super) async fn run(mut self, mut requests: UnboundedReceiver<Request>) {
        loop {
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(Request::Shutdown(reply)) => {
                        let report = self.put_back_all().await;
                        let _ = reply.send(Ok(report));
                        return;
                    }
                    Some(request) => self.serve(request).await,
                    None => {
                        self.put_back_all().await;
                        return;
                    }
                },
                () = self.moves.due() => {
                    let events = self.moves.watch(&self.net, &mut self.journal).await;
                    events.into_iter().for_each(&mut self.events);
                }
                () = self.tables.changed() => {
                    self.tables.look().await.into_iter().for_each(&mut self.events);
                }
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        let (net, journal) = (&self.net, &mut self.journal);
        match request {
            Request::SetInterface(setup, reply) => {
                let _ = reply.send(self.interfaces.set(net, &setup).await);
            }
            Request::ClearInterface(name, reply) => {
                let _ = reply.send(Ok(self.interfaces.clear(net, &name).await));
            }
            Request::SetRoutes { network, interface, routes, reply } => {
                let _ = reply.send(self.routes.set(net, journal, &network, &interface, &routes).await);
            }
            Request::ClearRoutes(network, reply) => {
                let _ = reply.send(Ok(self.routes.clear(net, journal, &network).await));
            }
            Request::HoldSysctls { owner, sysctls, reply } => {
                let _ = reply.send(self.hold(&owner, sysctls).await);
            }
            Request::ReleaseSysctls(owner, reply) => {
                let _ = reply.send(Ok(self.sysctls.release(journal, &owner)));
            }
            Request::SetMasquerade(wanted, reply) => {
                let _ = reply.send(self.tables.set(journal, wanted).await);
            }
            Request::ClearMasquerade(network, reply) => {
                let _ = reply.send(Ok(self.tables.clear(journal, &network).await));
            }
            Request::Move { nic, host_if, reply } => {
                let (watch_for, fail_at) = (self.watch_for, self.fail_at);
                let moved = self.moves.begin(net, journal, (&nic, &host_if), watch_for, fail_at).await;
                let _ = reply.send(moved);
            }
            Request::MoveBack { nic, reply } => {
                let _ = reply.send(Ok(self.moves.undo(net, journal, &nic).await));
            }
            // Taken out by `run`.
            Request::Shutdown(reply) => drop(reply),
        }
    }

    /// Holds sysctls; with IPv6 forwarding also what keeps the host's own default routes.
    async fn hold(&mut self, owner: &str, mut sysctls: Vec<Sysctl>) -> Result<Report, HostError> {
        let mut notes = Vec::new();
        if sysctls.iter().any(Sysctl::is_forward6) {
            for interface in self.advertised().await? {
                let path = format!("ipv6/conf/{interface}/accept_ra");
                let already = self.sysctls.holds(&path);
                if already || Files::default().read(&path)?.as_deref() == Some("1") {
                    let heed = Sysctl::accept_ra(&interface, 2);
                    if !sysctls.contains(&heed) {
                        notes.push(format!(
                            "accept_ra of {interface} is 2, so that it keeps its default route"
                        ));
                        sysctls.push(heed);
                    }
                }
            }
        }
        let mut report = self.sysctls.hold(&mut self.journal, owner, &sysctls)?;
        report.notes.append(&mut notes);
        Ok(report)
    }

    /// Interfaces with a default route from a router advertisement.
    async fn advertised(&self) -> Result<Vec<String>, HostError> {
        let routes = self.net.routes(None).await.map_err(HostError::kernel("listing routes"))?;
        let links = self.net.links().await.map_err(HostError::kernel("listing interfaces"))?;
        let learned = |index: u32| {
            routes.iter().any(|listed| {
                let route = listed.route.as_ref();
                listed.is_by(index) && route.is_ok_and(|r| r.is_default() && r.protocol == BY_ADVERTISEMENT)
            })
        };
        Ok(links.into_iter().filter(|link| learned(link.index)).map(|link| link.name).collect())
    }

    /// Puts everything back: first what the host needs to be reached by.
    async fn put_back_all(&mut self) -> Report {
        let mut report = Report::default();
        let moves: Vec<String> = self.journal.pending().moves.keys().cloned().collect();
        for nic in moves {
            report.append(self.moves.undo(&self.net, &mut self.journal, &nic).await);
        }
        for network in self.tables.networks() {
            report.append(self.tables.clear(&mut self.journal, &network).await);
        }
        for network in self.routes.networks() {
            report.append(self.routes.clear(&self.net, &mut self.journal, &network).await);
        }
        for name in self.interfaces.names() {
            report.append(self.interfaces.clear(&self.net, &name).await);
        }
        let sysctls: Vec<String> = self.journal.pending().sysctls.keys().cloned().collect();
        for path in sysctls {
            self.sysctls.put_back(&mut self.journal, &path, &mut report);
        }
        report
    }
}

/// The kernel's name for the time since the host was started.
fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
