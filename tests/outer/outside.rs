//! Servers of the outside, in a namespace: what they take, and what they give.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::hash::{Pattern, StreamHash};
use harness::Netns;

use crate::lan::LIMIT;
use crate::user::joined;

/// Connections of one server that are talked to at a time.
const TALKS: usize = 16;
/// Enough for a talk, and little for a thousand of them.
const STACK: usize = 64 * 1024;

/// Runs `serve` with what listens at `address`, which it does when this returns.
fn listening<T: Send + 'static>(
    namespace: &Netns,
    address: &str,
    serve: impl FnOnce(TcpListener) -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let (address, (ready, is_ready)) = (address.to_owned(), std::sync::mpsc::channel());
    let thread = namespace.spawn(move || {
        let listener = TcpListener::bind(&address).with_context(|| address.clone())?;
        let _ = ready.send(());
        serve(listener)
    })?;
    is_ready.recv_timeout(LIMIT).context("a server")?;
    Ok(thread)
}

/// The hash of the stream of `seed` up to `bytes`.
fn hash_of(seed: u64, bytes: u64) -> StreamHash {
    let (mut pattern, mut hash) = (Pattern::new(seed), StreamHash::new());
    while hash.len() < bytes {
        let left = usize::try_from(bytes - hash.len()).unwrap_or(usize::MAX);
        hash.update(pattern.next(left));
    }
    hash
}

/// What `load send` prints of a stream that arrived whole.
pub(crate) fn sent_whole(seed: u64, bytes: u64) -> String {
    let hash = hash_of(seed, bytes);
    let confirmed = (u128::from(hash.finish()) << 64) | u128::from(hash.len());
    confirmed.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `load take` prints of a stream that arrived whole.
pub(crate) fn taken_whole(seed: u64, bytes: u64) -> String {
    format!("{bytes} {:016x}", hash_of(seed, bytes).finish())
}

/// Gives one connection the stream of `seed` up to `bytes`.
pub(crate) fn giving(
    namespace: &Netns,
    address: &str,
    seed: u64,
    bytes: u64,
) -> Result<JoinHandle<Result<()>>> {
    listening(namespace, address, move |listener| {
        let (mut stream, _) = listener.accept()?;
        let (mut pattern, mut left) = (Pattern::new(seed), bytes);
        while left > 0 {
            let part = pattern.next(usize::try_from(left).unwrap_or(usize::MAX));
            stream.write_all(part)?;
            left -= part.len() as u64;
        }
        Ok(())
    })
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut number = [0; 4];
    stream.set_read_timeout(Some(LIMIT))?;
    stream.read_exact(&mut number)?;
    Ok(stream.write_all(&number)?)
}

/// Takes `count` connections, and answers none before it has them all.
pub(crate) fn gathering(namespace: &Netns, address: &str, count: usize) -> Result<JoinHandle<Result<()>>> {
    listening(namespace, address, move |listener| {
        let all = (0..count).map(|_| Ok(listener.accept()?.0)).collect::<Result<Vec<_>>>()?;
        // All stay open until the last is answered.
        all.iter().try_for_each(|stream| answer(stream.try_clone()?))
    })
}

/// Answers `count` connections, each with its own words, and closes each.
pub(crate) fn answering(namespace: &Netns, address: &str, count: usize) -> Result<JoinHandle<Result<()>>> {
    ensure!(count.is_multiple_of(TALKS), "{count} connections are not {TALKS} equal shares");
    listening(namespace, address, move |listener| {
        let shares = (0..TALKS).map(|_| {
            let listener = listener.try_clone()?;
            let share = move || (0..count / TALKS).try_for_each(|_| answer(listener.accept()?.0));
            Ok(std::thread::Builder::new().stack_size(STACK).spawn(share)?)
        });
        shares.collect::<Result<Vec<_>>>()?.into_iter().try_for_each(joined)
    })
}

/// Gives every connection back what it sends, until it is dropped.
pub(crate) struct EchoTcp(Arc<AtomicBool>);

impl EchoTcp {
    pub(crate) fn start(namespace: &Netns, address: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        listening(namespace, address, move |listener| {
            listener.set_nonblocking(true)?;
            while !until.load(Ordering::Acquire) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                // It ends with its connection, and that with the daemon.
                std::thread::Builder::new().stack_size(STACK).spawn(move || echo(stream))?;
            }
            Ok(())
        })?;
        Ok(Self(stop))
    }
}

impl Drop for EchoTcp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut room = [0; 4096];
    stream.set_nonblocking(false)?;
    loop {
        match stream.read(&mut room)? {
            0 => return Ok(()),
            n => stream.write_all(&room[..n])?,
        }
    }
}
