//! The thread on which the networks' gateways run: between them and the workers are only queues.
//!
//! Each gateway is a task on one current-thread runtime. Workers wake it when frames wait for it, its own timers do,
//! and answers of the outside's name servers do. Frames are taken in small portions, so that a busy gateway leaves
//! turns to the others. The control thread reaches a gateway through its lock, which is held for one portion at most.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use datapath::local::Station;
use datapath::pool::Datapath;
use modes::gateway::{Clock, Gateway};
use switch_core::Instant;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinSet, LocalSet};
use tracing::{error, warn};

use super::upstream::Upstream;

/// Frames that a gateway takes before the others have their turn.
const PORTION: usize = 64;
/// A timer that is due sooner than this waits for it: services count in tenths of seconds.
const TIMER_MIN: Duration = Duration::from_millis(1);

/// How long what a gateway says last may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// How long a gateway that failed rests.
const REST: Duration = Duration::from_secs(1);

/// A gateway, as the control thread and its own task share it.
#[derive(Clone)]
pub(super) struct Shared {
    gateway: Arc<Mutex<Gateway>>,
    bell: Arc<Notify>,
    station: Station,
}

impl Shared {
    /// A gateway behind the port whose far end is `station`, woken by `bell`.
    pub(super) fn new(gateway: Gateway, station: Station, bell: Arc<Notify>) -> Self {
        Self { gateway: Arc::new(Mutex::new(gateway)), bell, station }
    }

    /// The gateway. What is changed may give it something to do, so it is woken.
    pub(super) fn lock(&self) -> MutexGuard<'_, Gateway> {
        self.bell.notify_one();
        self.gateway.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has the gateway look whether it has something to do.
    pub(super) fn wake(&self) {
        self.bell.notify_one();
    }

    /// Sends what the gateway has to say; what does not fit is lost, as on any wire.
    fn flush(&self, gateway: &mut Gateway) {
        while let Some(outgoing) = gateway.next_frame() {
            self.station.send(outgoing.to, outgoing.frame);
        }
    }
}

enum Command {
    Add(u64, Shared, Upstream),
    Ask(u64, Upstream),
    Remove(u64, std::sync::mpsc::Sender<()>),
}

/// The thread's handle. Dropping it ends the thread.
pub(super) struct Services {
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
    next: Cell<u64>,
    datapath: Arc<Datapath>,
}

/// A gateway that runs. It is to be given back to [`Services::remove`].
#[derive(Debug)]
pub(super) struct Running(u64);

/// The time that gateways work with.
pub(super) fn clock(datapath: &Datapath) -> Clock {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clock { now: datapath.now(), unix_s: unix.as_secs() }
}

impl Services {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or runtime to be had.
    pub(super) fn start(datapath: Arc<Datapath>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let of_thread = Arc::clone(&datapath);
        let thread = std::thread::Builder::new()
            .name("weft-services".to_owned())
            .spawn(move || LocalSet::new().block_on(&runtime, run(of_thread, inbox)))?;
        Ok(Self { commands: Some(commands), thread: Some(thread), next: 0.into(), datapath })
    }

    /// Lets a gateway run.
    pub(super) fn add(&self, shared: Shared, upstream: Upstream) -> Running {
        let id = self.next.get();
        self.next.set(id + 1);
        if let Some(commands) = &self.commands {
            // Fails only if the thread is gone, which takes the process with it.
            let _ = commands.send(Command::Add(id, shared, upstream));
        }
        Running(id)
    }

    /// Has a gateway ask other name servers from now on.
    pub(super) fn ask(&self, running: &Running, upstream: Upstream) {
        if let Some(commands) = &self.commands {
            // As in `add`.
            let _ = commands.send(Command::Ask(running.0, upstream));
        }
    }

    /// Ends a gateway: it says good-bye to its guests, and when this returns it does nothing any more.
    pub(super) fn remove(&self, running: Running, shared: &Shared) {
        let (done, gone) = std::sync::mpsc::channel();
        if let Some(commands) = &self.commands
            && commands.send(Command::Remove(running.0, done)).is_ok()
        {
            // Ends at once also when the thread is gone: the other end of the channel is, then.
            let _ = gone.recv();
        }
        let mut gateway = shared.lock();
        gateway.farewell(clock(&self.datapath));
        shared.flush(&mut gateway);
        drop(gateway);
        // What it says last is on its way before its port goes.
        let patience = std::time::Instant::now() + LAST_WORDS;
        while shared.station.unsent() > 0 && std::time::Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the services' thread had ended by a panic");
        }
    }
}

async fn run(datapath: Arc<Datapath>, mut inbox: mpsc::UnboundedReceiver<Command>) {
    let mut tasks: HashMap<u64, (tokio::task::JoinHandle<()>, Asked)> = HashMap::new();
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Add(id, shared, upstream) => {
                let asked: Asked = Rc::new(RefCell::new(Rc::new(upstream)));
                let task = tokio::task::spawn_local(keep(Arc::clone(&datapath), shared, Rc::clone(&asked)));
                tasks.insert(id, (task, asked));
            }
            Command::Ask(id, upstream) => {
                if let Some((_, asked)) = tasks.get(&id) {
                    asked.replace(Rc::new(upstream));
                }
            }
            Command::Remove(id, done) => {
                if let Some((task, _)) = tasks.remove(&id) {
                    task.abort();
                    let _ = task.await;
                }
                let _ = done.send(());
            }
        }
    }
}

/// Whom a gateway asks now. A question that is on its way keeps those that it was asked of.
type Asked = Rc<RefCell<Rc<Upstream>>>;

/// Runs one gateway until it is aborted. One that panics (a defect) goes on after a rest, without the frame at which it
/// did: its guests, and the other networks, are better off than without it.
async fn keep(datapath: Arc<Datapath>, shared: Shared, asked: Asked) {
    loop {
        let mut serving = JoinSet::new();
        serving.spawn_local(serve(Arc::clone(&datapath), shared.clone(), Rc::clone(&asked)));
        // Aborting this task drops the set, and that aborts the other.
        if serving.join_next().await.is_some_and(|ended| ended.is_err_and(|e| e.is_panic())) {
            error!("a gateway failed at a frame or a timer, which is a defect of this program; it goes on");
        }
        tokio::time::sleep(REST).await;
    }
}

/// Serves one gateway for ever.
async fn serve(datapath: Arc<Datapath>, shared: Shared, asked: Asked) {
    let (answers, mut answered) = mpsc::unbounded_channel();
    loop {
        let due = shared.gateway.lock().unwrap_or_else(|e| e.into_inner()).poll_at(datapath.now());
        let wait = due.map(|at: Instant| at.since(datapath.now()).max(TIMER_MIN));
        let timer = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            () = shared.bell.notified() => None,
            answer = answered.recv() => answer,
            () = timer => None,
        };
        let mut more = true;
        let mut answer = answer;
        while more {
            let mut questions = Vec::new();
            {
                let gateway = &mut *shared.gateway.lock().unwrap_or_else(|e| e.into_inner());
                let clock = clock(&datapath);
                if let Some((id, result)) = answer.take() {
                    gateway.answered(clock, id, result);
                }
                more = false;
                for n in 0..PORTION {
                    let Some(received) = shared.station.recv() else { break };
                    gateway.receive(clock, received.from, &received.frame);
                    more = n + 1 == PORTION;
                }
                gateway.poll(clock);
                shared.flush(gateway);
                while let Some(question) = gateway.question() {
                    questions.push(question);
                }
            }
            for question in questions {
                let (upstream, answers) = (Rc::clone(&asked.borrow()), answers.clone());
                tokio::task::spawn_local(async move {
                    let result = upstream.resolve(question.message).await;
                    // Nobody waits for the answer when the gateway has ended.
                    let _ = answers.send((question.id, result.ok()));
                });
            }
            tokio::task::yield_now().await;
        }
    }
}
