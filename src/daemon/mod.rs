//! The daemon: the one place that knows every crate of the switch, and puts them together.
//!
//! Threads: the workers (the datapath's), a session per vhost-user port (the port's), and this one, the
//! control thread: a current-thread runtime for the ctl socket, signals, timers, and what workers and the
//! kernel's link messages report. It never touches a frame.

mod backend;
mod compose;
mod gateways;
mod links;
mod lock;
mod networks;
mod pinned;
mod plumbing;
mod ports;
mod reload;
mod reports;
mod services;
mod switch;
mod upstream;

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ctl::cli::{DaemonOptions, Poll};
use ctl::config::Model;
use ctl::server::{ControlSocket, Limits};
use datapath::pool::{Datapath, Event, Options, Pacing};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use switch::Host;

/// How often it is measured what the workers are busy with, while frames move and while none do.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
const MEASURE_EVERY_IDLE: Duration = Duration::from_secs(5);

/// Runs the switch until it is told to end. Errors are those of starting: nothing is left behind then.
pub(crate) fn run(options: &DaemonOptions) -> anyhow::Result<()> {
    log_to_stderr();
    // Every limit on descriptors that a host sets is for interactive programs; a switch of a thousand ports
    // has several each. Raising the soft limit to the hard one needs no privilege.
    raise_descriptor_limit();
    let state_dir = options.state_dir.clone().unwrap_or_else(|| default_state_dir(&options.socket));
    let model = match &options.config {
        Some(file) => ctl::config::load(file).inspect_err(|_| put_back(&state_dir))?,
        None => Model::default(),
    };
    let _lock = lock::StateDir::take(&state_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the control thread's runtime")?;
    runtime.block_on(serve(options, &state_dir, model))
}

/// Puts back what an earlier daemon left of the host, where this one cannot start: the host may have its addresses on
/// an interface that went with that daemon.
fn put_back(state_dir: &Path) {
    // Whoever has the directory runs, and its changes are in use.
    if plumbing::left_something(state_dir)
        && let Ok(_lock) = lock::StateDir::take(state_dir)
        && let Err(error) = plumbing::Plumbing::start(state_dir, Arc::default())
    {
        error!(error = %format!("{error:#}"), "the host is not as it was before the last daemon");
    }
}

async fn serve(options: &DaemonOptions, state_dir: &Path, model: Model) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("asking for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("asking for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("asking for SIGHUP")?;

    let control = ControlSocket::bind(&options.socket)?;
    let reported = Arc::new(Notify::new());
    let told = Arc::clone(&reported);
    let cpus = options.cpus.iter().flatten().map(|&cpu| cpu as usize).collect();
    let pacing = match options.poll {
        Poll::Adaptive => Pacing::Adaptive,
        Poll::Busy => Pacing::Busy,
    };
    let datapath = Datapath::start(&Options { cpus, unbound: 1, pacing }, move || told.notify_one())
        .context("starting the workers")?;
    let datapath = Arc::new(datapath);
    let host = Rc::new(Host::new(Arc::clone(&datapath), state_dir)?);
    if let Err(refusal) = reload::apply_all(&host, &model) {
        host.shut_down();
        anyhow::bail!("{refusal}");
    }
    let mut model = model;

    let events = datapath.take_events().context("the workers' events were taken already")?;
    let mut lost = 0;
    let mut links = links::Watch::start();
    let switch: Rc<dyn ctl::server::Switch> = Rc::<Host>::clone(&host);
    let serving = ctl::server::serve(control, switch, Limits::default(), std::future::pending());
    tokio::pin!(serving);
    let measured = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(measured);

    info!(socket = %options.socket.display(), workers = datapath.workers(), version = env!("CARGO_PKG_VERSION"), "ready");
    notify(&[sd_notify::NotifyState::Ready]);
    let ended = loop {
        let due = async {
            match host.tick() {
                Some(at) => tokio::time::sleep(at.since(datapath.now()).max(Duration::from_millis(10))).await,
                // A frame may start a timer at any time, and workers do not say so: look now and then.
                None => tokio::time::sleep(Duration::from_secs(5)).await,
            }
        };
        tokio::select! {
            ended = &mut serving => break ended.context("the ctl socket failed"),
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => if let Some(file) = &options.config {
                let began = sd_notify::NotifyState::monotonic_usec_now();
                notify(&[Some(sd_notify::NotifyState::Reloading), began.ok()].into_iter().flatten().collect::<Vec<_>>());
                reload::reload(&host, file, &mut model);
                notify(&[sd_notify::NotifyState::Ready]);
            } else {
                warn!("SIGHUP: the daemon was started without --config: there is no file to read again");
            },
            () = reported.notified() => {
                while let Ok(Event::Broken { port, reason }) = events.try_recv() {
                    host.port_broken(port, &reason);
                }
                if datapath.events_lost() > lost {
                    lost = datapath.events_lost();
                    warn!(lost, "workers reported more broken ports than could be queued: see weft port list");
                }
            }
            () = links.changed() => host.peers_changed(),
            () = host.changed.notified() => host.peers_changed(),
            () = &mut measured => {
                let next = if datapath.measure() { MEASURE_EVERY } else { MEASURE_EVERY_IDLE };
                if let Some(moved) = datapath.rebalance() {
                    host.queue_moved(moved);
                }
                measured.as_mut().reset(tokio::time::Instant::now() + next);
            }
            () = due => {}
        }
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    info!("ending");
    host.shut_down();
    if let Err(e) = &ended {
        error!(error = %format!("{e:#}"), "ended");
    }
    ended
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    // Without a service manager there is nobody to tell, and a manager that is gone is no reason to stop.
    let _ = sd_notify::notify(states);
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A second subscriber in one process is a test's business.
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).try_init();
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// Where state is kept when nobody says: `/var/lib/weft` for the host's daemon, `$XDG_STATE_HOME/weft` (or
/// `$HOME/.local/state/weft`) for a user's, and beside its socket for a daemon with a socket of its own, so that two
/// daemons that share no socket share no state either.
fn default_state_dir(socket: &Path) -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if socket == Path::new("/run/weft/ctl.sock") {
        return PathBuf::from("/var/lib/weft");
    }
    let state_home = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|h| h.join(".local/state")));
    match (variable("XDG_RUNTIME_DIR"), state_home) {
        (Some(runtime), Some(state)) if socket == runtime.join("weft/ctl.sock") => state.join("weft"),
        _ => {
            let mut beside = socket.as_os_str().to_owned();
            beside.push(".state");
            PathBuf::from(beside)
        }
    }
}
