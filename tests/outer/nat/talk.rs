//! Servers and clients of one line, which tell who they talk with.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Netns, eventually};

use super::rig::LIMIT;

/// How long an answer may take; one that must not come is waited for less.
const ANSWER: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(2);

/// Answers on some ports, TCP and UDP, until it is dropped: `NAME PORT from ADDRESS`, and what a client says.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// In a namespace, at each of its addresses.
    pub(super) fn start(namespace: &Netns, name: &str, ports: &[u16]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut server = Server { stop, threads: Vec::new() };
        let everywhere = |port: u16| SocketAddr::from(([0u16; 8], port));
        for &port in ports {
            let at = everywhere(port);
            let listener = namespace.spawn(move || Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?)))?;
            let (tcp, udp) = listener.join().ok().context("a thread panicked")??;
            let (name, stop) = (format!("{name} {port}"), Arc::clone(&server.stop));
            server.threads.push(thread::spawn({
                let (name, stop) = (name.clone(), Arc::clone(&stop));
                move || serve_tcp(&tcp, &name, &stop)
            }));
            server.threads.push(thread::spawn(move || serve_udp(&udp, &name, &stop)));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // What a server could not say, its client missed.
            let _ = thread.join();
        }
    }
}

fn text_of(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) -> Result<()> {
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, from)) => {
                let (greeting, stop) = (format!("{name} from {}\n", text_of(from)), Arc::clone(stop));
                thread::spawn(move || echo(stream, &greeting, &stop));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn echo(stream: TcpStream, greeting: &str, stop: &AtomicBool) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut out = stream.try_clone()?;
    out.write_all(greeting.as_bytes())?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::Acquire) {
        match lines.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) if line.ends_with('\n') => {
                out.write_all(line.as_bytes())?;
                line.clear();
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut datagram = [0u8; 2048];
    while !stop.load(Ordering::Acquire) {
        if let Ok((_, from)) = socket.recv_from(&mut datagram) {
            // The client asks again if this is lost.
            let _ = socket.send_to(format!("{name} from {}", text_of(from)).as_bytes(), from);
        }
    }
    Ok(())
}

/// A connection that stays.
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
    /// What the server said first.
    pub(super) greeting: String,
}

impl Connection {
    /// Connects from a namespace.
    ///
    /// # Errors
    /// Refused, or no answer.
    pub(super) fn open(namespace: &Netns, to: &str) -> Result<Self> {
        let address: SocketAddr = to.parse().with_context(|| to.to_string())?;
        let stream = namespace.spawn(move || Ok(TcpStream::connect_timeout(&address, ANSWER)?))?;
        let stream = stream.join().ok().context("a thread panicked")?;
        let stream = stream.with_context(|| format!("connecting to {to}"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut stream = BufReader::new(stream);
        let mut greeting = String::new();
        stream.read_line(&mut greeting).with_context(|| format!("the greeting of {to}"))?;
        ensure!(!greeting.is_empty(), "{to} hung up");
        Ok(Connection { stream, greeting: greeting.trim().to_string() })
    }

    /// Says something, and hears it again.
    pub(super) fn works(&mut self) -> Result<()> {
        self.said(ANSWER)
    }

    /// Nothing that is said is heard again.
    pub(super) fn is_dead(&mut self) -> Result<()> {
        ensure!(self.said(SILENCE).is_err(), "the connection still works");
        Ok(())
    }

    fn said(&mut self, limit: Duration) -> Result<()> {
        self.stream.get_ref().set_read_timeout(Some(limit))?;
        self.stream.get_mut().write_all(b"still there?\n")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(line == "still there?\n", "heard '{line}'");
        Ok(())
    }
}

/// What a TCP server at `to` says first; it must be there soon.
pub(super) fn ask_tcp(from: &Netns, to: &str) -> Result<String> {
    Ok(Connection::open(from, to)?.greeting)
}

/// What a UDP server at `to` says to a client of port `port`, if it says anything within `limit`.
fn ask_once(from: &Netns, to: &str, port: u16, limit: Duration) -> Result<Option<String>> {
    let address: SocketAddr = to.parse().with_context(|| to.to_string())?;
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from(([0u8; 4], port)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], port)),
    };
    let answer = from.spawn(move || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(limit))?;
        socket.send(b"?")?;
        let mut datagram = [0u8; 2048];
        Ok(match socket.recv(&mut datagram) {
            Ok(length) => Some(String::from_utf8_lossy(&datagram[..length]).into_owned()),
            Err(_) => None,
        })
    })?;
    answer.join().ok().context("a thread panicked")?
}

/// What a UDP server at `to` says; it must be there soon.
pub(super) fn ask_udp(from: &Netns, to: &str, port: u16) -> Result<String> {
    eventually(&format!("an answer of {to} by UDP"), LIMIT, || {
        Ok(ask_once(from, to, port, SILENCE)?.ok_or_else(|| "none".to_string()))
    })
}

/// Nobody answers at `to`, neither by TCP nor by UDP.
pub(super) fn nobody_at(from: &Netns, to: &str) -> Result<()> {
    let address: SocketAddr = to.parse().with_context(|| to.to_string())?;
    let tcp = from.spawn(move || Ok(TcpStream::connect_timeout(&address, SILENCE).is_ok()))?;
    if tcp.join().ok().context("a thread panicked")?? {
        bail!("somebody listens at {to}");
    }
    if let Some(answer) = ask_once(from, to, 0, SILENCE)? {
        bail!("{to} answers by UDP: {answer}");
    }
    Ok(())
}

/// A TCP connection and a UDP datagram to `to` are refused at once, as ICMP port unreachable has it.
pub(super) fn refused_at(from: &Netns, to: &str) -> Result<()> {
    let address: SocketAddr = to.parse().with_context(|| to.to_string())?;
    let heard = from.spawn(move || {
        let tcp = TcpStream::connect_timeout(&address, ANSWER).err().map(|error| error.kind());
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let udp = UdpSocket::bind(any)?;
        udp.connect(address)?;
        udp.set_read_timeout(Some(ANSWER))?;
        udp.send(b"?")?;
        Ok((tcp, udp.recv(&mut [0; 16]).err().map(|error| error.kind())))
    })?;
    let heard = heard.join().ok().context("a thread panicked")??;
    let refused = Some(ErrorKind::ConnectionRefused);
    ensure!(heard == (refused, refused), "TCP and UDP to {to} end with {heard:?}");
    Ok(())
}
