//! Short TCP connections: opened, one request, its answer, closed. Callers and answerers are processes of this program, one
//! in each network namespace.
//!
//! Servers listen at many ports, so that the numbers of callers' ports, which rest after use, do not end: there are 28,000
//! for each of the servers' ports. A caller has ports of its own, so that no caller waits for another's server thread.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use super::Measured;
use crate::guard::{Job, Line};
use crate::measures::{CONNECTIONS, FAILED};
use crate::peers::UserSwitch;

/// The verb by which this program starts itself so.
pub(crate) const VERB: &str = "calls";

/// Servers' ports: the first, and how many.
const FIRST: u16 = 7000;
const PORTS: u16 = 64;
/// Bytes of a request and of an answer.
const LEN: usize = 64;
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// Not measured, first.
const WARM_UP: Duration = Duration::from_secs(1);
/// For starting and ending.
const LIMIT: Duration = Duration::from_secs(20);
const READY: &str = "listening";

/// The process's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Answer, until the process is ended.
    Answer,
    /// Call, and print what came of it.
    Call {
        /// Where servers are.
        address: Ipv4Addr,
        /// Callers at once: a part of the servers' ports.
        #[arg(long)]
        callers: u16,
        /// How long is measured.
        #[arg(long)]
        seconds: u64,
    },
}

/// Calls through `switch`, `callers` at once.
///
/// # Errors
/// A process fails or hangs, or no call was answered.
pub(crate) fn measure(switch: &UserSwitch, dir: &Path, callers: u16, seconds: u64) -> Result<Measured> {
    let own = std::env::current_exe().context("this program's path")?.display().to_string();
    let server_line = Line::new(&own).arg(VERB).arg("answer").netns(&switch.host);
    let mut server = Job::start(&server_line, &dir.join("answer.log"))?;
    server.expect("listening server", LIMIT, |log| log.contains(READY).then_some(()))?;
    let client = Line::new(&own).arg(VERB).arg("call").arg(UserSwitch::SERVER);
    let client = client.words(&format!("--callers {callers} --seconds {seconds}")).netns(&switch.guest);
    let mut job = Job::start(&client, &dir.join("call.log"))?;
    job.finish(Duration::from_secs(seconds) + WARM_UP + PATIENCE + LIMIT)?;
    let log = job.log();
    let measured: Measured = serde_json::from_str(log.lines().last().unwrap_or_default())
        .with_context(|| format!("the callers' process printed {log}"))?;
    Ok(measured.by(server_line).by(client))
}

/// The process.
///
/// # Errors
/// It cannot listen, its ports' numbers are used up, or nothing was answered.
pub(crate) fn process(options: &Options) -> Result<()> {
    match options.part {
        Part::Answer => {
            let ports = FIRST..FIRST + PORTS;
            let listen = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listening");
            let listeners = ports.map(listen).collect::<Result<Vec<_>>>()?;
            let serve = |listener| std::thread::spawn(move || answer(&listener));
            let threads: Vec<_> = listeners.into_iter().map(serve).collect();
            println!("{READY}");
            threads.into_iter().for_each(|thread| drop(thread.join()));
            bail!("nobody listens any more")
        }
        Part::Call { address, callers, seconds } => {
            let measured = call(address, FIRST, callers, WARM_UP, Duration::from_secs(seconds))?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
    }
}

/// Answers one connection after the other. A caller's failure is the caller's to tell.
fn answer(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let _ = answer_one(&mut stream);
    }
}

fn answer_one(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = [0; LEN];
    stream.read_exact(&mut bytes)?;
    stream.write_all(&bytes)?;
    // The caller closes first.
    stream.read(&mut bytes).map(drop)
}

/// What callers have counted.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
}

/// Has `callers` call for a time; what came of it after the warm-up.
fn call(address: Ipv4Addr, first: u16, callers: u16, warm_up: Duration, time: Duration) -> Result<Measured> {
    ensure!(callers > 0 && PORTS.is_multiple_of(callers), "{callers} callers cannot share {PORTS} ports");
    let counts = Counts::default();
    let until = Instant::now() + warm_up + time;
    std::thread::scope(|scope| {
        let caller = |caller| {
            let ports = (caller..PORTS).step_by(usize::from(callers)).cycle();
            let servers = ports.map(move |port| SocketAddrV4::new(address, first + port).into());
            let counts = &counts;
            scope.spawn(move || keep_calling(servers, until, counts))
        };
        let threads: Vec<_> = (0..callers).map(caller).collect();
        let now = || [&counts.answered, &counts.failed].map(|count| count.load(Ordering::Relaxed));
        std::thread::sleep(warm_up);
        let (before, began) = (now(), Instant::now());
        std::thread::sleep(until.saturating_duration_since(began));
        let (after, took) = (now(), began.elapsed());
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        let [answered, failed] = [0, 1].map(|at| (after[at] - before[at]) as f64);
        ensure!(answered > 0.0, "no call was answered, and {failed} failed");
        Ok(Measured::new()
            .with(&CONNECTIONS, answered / took.as_secs_f64())
            .with(&FAILED, failed / (answered + failed)))
    })
}

/// Calls one server after the other.
fn keep_calling(servers: impl Iterator<Item = SocketAddr>, until: Instant, counts: &Counts) -> Result<()> {
    for server in servers {
        if Instant::now() >= until {
            break;
        }
        match call_one(&server) {
            Ok(()) => counts.answered.fetch_add(1, Ordering::Relaxed),
            // That is this program's limit, not the switch's.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                return Err(error)
                    .context("there are no more ports to call from: measure for a shorter time");
            }
            Err(_) => counts.failed.fetch_add(1, Ordering::Relaxed),
        };
    }
    Ok(())
}

fn call_one(server: &SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[1; LEN])?;
    stream.read_exact(&mut [0; LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_are_answered_and_calls_that_are_refused_are_counted() {
        // Of as many ports in a row as are asked for, somewhere.
        let listen = |first: u16| -> std::io::Result<Vec<TcpListener>> {
            (first..first + PORTS).map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).collect()
        };
        let found = (20_000..30_000).step_by(64).find_map(|first| Some((first, listen(first).ok()?)));
        let (first, mut listeners) = found.expect("free ports");
        let refusing = listeners.split_off(usize::from(PORTS / 2));
        drop(refusing);
        for listener in listeners {
            std::thread::spawn(move || answer(&listener));
        }
        let time = Duration::from_millis(200);
        let measured = call(Ipv4Addr::LOCALHOST, first, 2, Duration::ZERO, time).expect("calls");
        assert!(measured.get(&CONNECTIONS).expect("a rate") > 0.0);
        let failed = measured.get(&FAILED).expect("a part");
        assert!(failed > 0.3 && failed < 0.7, "{failed}");
        assert!(call(Ipv4Addr::LOCALHOST, first, 5, Duration::ZERO, time).is_err(), "5 do not share");
    }
}
