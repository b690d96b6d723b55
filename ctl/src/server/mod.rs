//! The ctl socket's server: it checks what clients say, and calls a [`Switch`].
//!
//! * [`ControlSocket`]: the socket in the file system, made safely and ours alone.
//! * [`serve`]: accepts, and runs each connection by itself within limits.
//! * `connection`: framing, deadlines; one message at a time.
//! * `service`: the interface's methods, and their descriptions, by zlink.
//!
//! Invariants: everything runs on the control thread (a current-thread runtime); no client can make it wait for another
//! client, nor make it hold more than [`Limits`] allows; a message is checked whole before the switch hears of it.
//! zlink's own `Server` is not used because one client that does not read stops it for all, and because its buffers
//! grow in steps of 256 bytes to 100 MB.

mod connection;
mod service;
mod socket;
mod switch;

pub use connection::Limits;
pub use socket::{ControlSocket, SocketError};
pub use switch::Switch;

use connection::Connection;
use service::Service;
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::Instant;

/// How long accepting rests after the kernel refused it (no file descriptors left, say).
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Answers clients on `socket` until `shutdown` is done, then closes all connections and removes the socket.
///
/// The returned future is not `Send`: it runs on the thread that polls it, as do all calls of `switch`.
///
/// # Errors
/// The runtime cannot watch the socket.
pub async fn serve(
    socket: ControlSocket,
    switch: Rc<dyn Switch>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = socket.listener()?;
    LocalSet::new()
        .run_until(async {
            tokio::select! {
                () = accept(&listener, Service::new(switch), limits) => {}
                () = shutdown => {}
            }
        })
        .await;
    drop(socket);
    Ok(())
}

/// A connection that runs.
struct Running {
    task: AbortHandle,
    /// The process at the other end, as far as the kernel tells.
    peer: Option<i32>,
    last_activity: Rc<Cell<Instant>>,
}

async fn accept(listener: &tokio::net::UnixListener, service: Service, limits: Limits) {
    let mut tasks = JoinSet::new();
    let mut running: Vec<Running> = Vec::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "ctl socket: cannot accept");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "ctl socket: a call panicked");
            }
        }
        running.retain(|connection| !connection.task.is_finished());
        if running.len() >= limits.connections_max
            && let Some(index) = least_missed(&running)
        {
            running.swap_remove(index).task.abort();
            tracing::debug!("ctl socket: too many connections, closed one");
        }
        let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let last_activity = Rc::new(Cell::new(Instant::now()));
        let connection = Connection::new(stream, limits, Rc::clone(&last_activity));
        let task = tasks.spawn_local(connection.run(service.clone()));
        running.push(Running { task, peer, last_activity });
        // Accepting goes on for as long as clients queue: let the connections have their turn.
        tokio::task::yield_now().await;
    }
}

/// Which connection gives way to a new one: of the process that has the most, the one that was quiet the longest. Who
/// floods us closes its own connections, and an operator always gets in.
fn least_missed(running: &[Running]) -> Option<usize> {
    let mut held: HashMap<Option<i32>, usize> = HashMap::new();
    running.iter().for_each(|connection| *held.entry(connection.peer).or_default() += 1);
    let held = |connection: &Running| held.get(&connection.peer).copied().unwrap_or(0);
    let order =
        |(_, connection): &(usize, &Running)| (Reverse(held(connection)), connection.last_activity.get());
    running.iter().enumerate().min_by_key(order).map(|(index, _)| index)
}

#[doc(hidden)]
pub mod fuzzing {
    //! A way in for the fuzzer: one message, no socket.

    /// Answers one message as a connection would; `None` is a message that ends the connection. Within a runtime that
    /// has timers.
    pub async fn answer(switch: std::rc::Rc<dyn super::Switch>, message: &[u8]) -> Option<Vec<u8>> {
        super::connection::answer_once(super::Service::new(switch), message).await
    }
}
