//! TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use sockets::{Counter, Inbound, Limits, Settings};
use switch_core::offload::OffloadSet;

use crate::rig::{GATEWAY, GATEWAY_V6, GUEST, GUEST_MAC, Guest, settings};

const GW: IpAddr = IpAddr::V4(GATEWAY);
const GW6: IpAddr = IpAddr::V6(GATEWAY_V6);
const MB: usize = 1 << 20;

/// The bytes of a stream: each eight of them are a function of their place.
fn pattern(seed: u64, at: usize, to: &mut [u8]) {
    let word = |i: usize| {
        let x = (i as u64 ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (x ^ (x >> 32)).to_le_bytes()
    };
    let mut place = at;
    let mut rest = to;
    while !rest.is_empty() {
        let from = &word(place / 8)[place % 8..];
        let n = from.len().min(rest.len());
        rest[..n].copy_from_slice(&from[..n]);
        place += n;
        rest = &mut rest[n..];
    }
}

fn verify(seed: u64, at: usize, got: &[u8]) {
    let mut expected = vec![0; got.len()];
    pattern(seed, at, &mut expected);
    assert!(got == expected, "the bytes from {at} on are not the stream's");
}

/// A server that takes one connection.
fn server<T: Send + 'static>(
    to: IpAddr,
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind(SocketAddr::new(to, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, spawn(move || serve(listener.accept().unwrap().0)))
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn write_stream(stream: &mut TcpStream, seed: u64, len: usize) {
    let mut chunk = vec![0; 128 * 1024];
    let mut at = 0;
    while at < len {
        let n = chunk.len().min(len - at);
        pattern(seed, at, &mut chunk[..n]);
        stream.write_all(&chunk[..n]).unwrap();
        at += n;
    }
}

/// Reads to the end; how much it was.
fn read_stream(stream: &mut TcpStream, seed: u64) -> usize {
    let mut chunk = vec![0; 128 * 1024];
    let mut at = 0;
    loop {
        match stream.read(&mut chunk).unwrap() {
            0 => return at,
            n => {
                verify(seed, at, &chunk[..n]);
                at += n;
            }
        }
    }
}

/// What a guest has sent and received.
#[derive(Default)]
struct Progress {
    sent: usize,
    received: usize,
}

/// Sends and receives what is possible now.
fn pump(guest: &mut Guest, handle: SocketHandle, up: (u64, usize), down: u64, progress: &mut Progress) {
    let socket = guest.socket(handle);
    while progress.sent < up.1 && socket.can_send() {
        let left = up.1 - progress.sent;
        let sent = socket
            .send(|room| {
                let n = room.len().min(left);
                pattern(up.0, progress.sent, &mut room[..n]);
                (n, n)
            })
            .unwrap();
        progress.sent += sent;
        if progress.sent == up.1 {
            socket.close();
        }
    }
    while socket.can_recv() {
        let n = socket
            .recv(|bytes| {
                verify(down, progress.received, bytes);
                (bytes.len(), bytes.len())
            })
            .unwrap();
        progress.received += n;
    }
}

/// A guest sends `up` bytes and receives `down` at the same time.
fn exchange(guest: &mut Guest, gateway: IpAddr, up: usize, down: usize, buffer: usize) {
    let loopback = if gateway == GW { V4 } else { V6 };
    let (port, server) = server(loopback, move |stream| {
        let mut writer = stream.try_clone().unwrap();
        let writes = spawn(move || {
            write_stream(&mut writer, 2, down);
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut reader = stream;
        let at = read_stream(&mut reader, 1);
        writes.join().unwrap();
        at
    });
    let handle = guest.connected(gateway, port, buffer);
    let mut progress = Progress::default();
    if up == 0 {
        guest.socket(handle).close();
    }
    guest.until("both streams", |guest| {
        pump(guest, handle, (1, up), 2, &mut progress);
        progress.sent == up && progress.received == down && !guest.socket(handle).may_recv()
    });
    assert_eq!(progress.received, down);
    guest.until("the server's end", |_| server.is_finished());
    assert_eq!(server.join().unwrap(), up);
    guest.until("the connection's end", |guest| guest.count(Counter::TcpClosed) == 1);
}

#[test]
fn a_guest_downloads_a_stream_whole() {
    exchange(&mut Guest::new(), GW, 0, 100 * MB, MB);
}

#[test]
fn a_guest_uploads_a_stream_whole() {
    let guest = &mut Guest::new();
    exchange(guest, GW, 100 * MB, 0, MB);
    assert!(guest.count(Counter::TcpNotTaken) <= 8, "the window follows the socket");
}

#[test]
fn both_directions_at_once_over_ipv6() {
    exchange(&mut Guest::new(), GW6, 50 * MB, 50 * MB, MB);
}

#[test]
fn super_frames_go_whole_both_ways() {
    let settings = Settings { mtu: 65_535, ..settings() };
    let guest = &mut Guest::with(settings, OffloadSet::ALL);
    exchange(guest, GW, 100 * MB, 100 * MB, MB);
    let longest = guest.nic.seen.borrow().iter().map(Vec::len).max().unwrap();
    assert!(longest > 60_000, "the longest frame had {longest} bytes");
}

#[test]
fn what_the_link_loses_is_sent_again() {
    let guest = &mut Guest::new();
    let mut state = 7_u32;
    *guest.nic.lose.borrow_mut() = Box::new(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16 & 127 == 0
    });
    exchange(guest, GW, MB, 2 * MB, 32 * 1024);
    assert!(guest.count(Counter::TcpResent) > 0);
}

#[test]
fn a_slow_guests_bytes_wait_in_the_kernel() {
    let (port, server) = server(V4, |mut stream| {
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut chunk = vec![0; 64 * 1024];
        let mut at = 0;
        let stuck = loop {
            pattern(2, at, &mut chunk);
            match stream.write(&chunk) {
                Ok(n) => at += n,
                Err(error) => break error.kind(),
            }
            assert!(at < 64 * MB, "the server could send without end");
        };
        stream.shutdown(Shutdown::Write).unwrap();
        (stuck, at)
    });
    let guest = &mut Guest::new();
    let handle = guest.connected(GW, port, 100_000);
    guest.socket(handle).close();
    guest.until("the server to be stuck", |_| server.is_finished());
    let (stuck, sent) = server.join().unwrap();
    assert_eq!(stuck, ErrorKind::WouldBlock);
    let queued = guest.socket(handle).recv_queue();
    assert!(queued <= 100_000, "the guest's window holds: {queued}");
    let mut progress = Progress::default();
    guest.until("the stream's end", |guest| {
        pump(guest, handle, (1, 0), 2, &mut progress);
        !guest.socket(handle).may_recv()
    });
    assert_eq!(progress.received, sent);
}

#[test]
fn a_slow_outside_stops_the_guest() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (port, server) = server(V4, move |mut stream| {
        wait.recv().unwrap();
        read_stream(&mut stream, 1)
    });
    let guest = &mut Guest::new();
    let handle = guest.connected(GW, port, MB);
    let (mut progress, all) = (Progress::default(), 40 * MB);
    let mut last = (0, std::time::Instant::now());
    guest.until("the guest to be stopped", |guest| {
        pump(guest, handle, (1, all), 2, &mut progress);
        let at = progress.sent - guest.socket(handle).send_queue();
        if at != last.0 {
            last = (at, std::time::Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(300)
    });
    assert!(last.0 > 0 && last.0 < 20 * MB, "stopped after {}", last.0);
    go.send(()).unwrap();
    guest.until("the server to have it all", |guest| {
        pump(guest, handle, (1, all), 2, &mut progress);
        server.is_finished()
    });
    assert_eq!(server.join().unwrap(), all);
}

#[test]
fn a_guest_that_has_closed_still_receives() {
    let (port, server) = server(V4, |mut stream| {
        assert_eq!(read_stream(&mut stream, 1), 1000);
        write_stream(&mut stream, 2, 3 * MB);
    });
    let guest = &mut Guest::new();
    let handle = guest.connected(GW, port, MB);
    let mut progress = Progress::default();
    guest.until("the answer", |guest| {
        pump(guest, handle, (1, 1000), 2, &mut progress);
        !guest.socket(handle).may_recv()
    });
    assert_eq!(progress.received, 3 * MB);
    server.join().unwrap();
}

#[test]
fn an_outside_that_has_closed_still_receives() {
    let (port, server) = server(V4, |mut stream| {
        write_stream(&mut stream, 2, 1000);
        stream.shutdown(Shutdown::Write).unwrap();
        read_stream(&mut stream, 1)
    });
    let guest = &mut Guest::new();
    let handle = guest.connected(GW, port, MB);
    let mut progress = Progress::default();
    guest.until("the server's end", |guest| {
        pump(guest, handle, (1, 0), 2, &mut progress);
        guest.state(handle) == State::CloseWait && !guest.socket(handle).can_recv()
    });
    assert_eq!(progress.received, 1000);
    guest.until("all of it", |guest| {
        pump(guest, handle, (1, 3 * MB), 2, &mut progress);
        server.is_finished()
    });
    assert_eq!(server.join().unwrap(), 3 * MB);
}

#[test]
fn a_guests_reset_resets_the_outside() {
    let (port, server) = server(V4, |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.read(&mut byte).map_err(|error| error.kind())
    });
    let guest = &mut Guest::new();
    let handle = guest.connected(GW, port, MB);
    guest.socket(handle).send_slice(&[1]).unwrap();
    guest.run_for(Duration::from_millis(20));
    guest.socket(handle).abort();
    guest.until("the server's end", |_| server.is_finished());
    assert_eq!(server.join().unwrap(), Err(ErrorKind::ConnectionReset));
    assert_eq!(guest.count(Counter::TcpResetInside), 1);
}

#[test]
fn an_outsides_reset_resets_the_guest() {
    let (port, server) = server(V4, |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    });
    let guest = &mut Guest::new();
    let handle = guest.connected(GW, port, MB);
    guest.socket(handle).send_slice(&[1]).unwrap();
    guest.until("the reset", |guest| guest.count(Counter::TcpResetOutside) == 1);
    guest.until("the guest to know", |guest| guest.state(handle) == State::Closed);
    server.join().unwrap();
}

#[test]
fn what_the_outside_refuses_is_refused() {
    let listener = TcpListener::bind(SocketAddr::new(V4, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let guest = &mut Guest::new();
    for gateway in [GW, GW6] {
        let handle = guest.connect(gateway, port, MB);
        guest.until("the refusal", |guest| guest.state(handle) == State::Closed);
    }
    assert_eq!((guest.count(Counter::TcpRefused), guest.count(Counter::TcpOpened)), (2, 0));
}

#[test]
fn the_hosts_loopback_and_what_else_is_closed_are_refused() {
    let listener = TcpListener::bind(SocketAddr::new(V4, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let guest = &mut Guest::with(Settings { host_loopback: false, ..settings() }, OffloadSet::NONE);
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    let handles = [GW, IpAddr::V4(metadata)].map(|to| guest.connect(to, port, MB));
    guest.until("both to be reset", |guest| handles.iter().all(|&h| guest.state(h) == State::Closed));
    assert_eq!((guest.count(Counter::Denied), guest.count(Counter::TcpRefused)), (2, 0));
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody came");
}

#[test]
fn a_guest_has_as_many_connections_as_it_may_and_others_go_on() {
    let limits = Limits { tcp_each: 20, ..Limits::default() };
    let listener = TcpListener::bind(SocketAddr::new(V4, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let guest = &mut Guest::with(Settings { limits, ..settings() }, OffloadSet::NONE);
    let handles: Vec<_> = (0..25).map(|_| guest.connect(GW, port, 4096)).collect();
    guest.until("all to be decided", |guest| {
        handles.iter().all(|&handle| matches!(guest.state(handle), State::Established | State::Closed))
    });
    let open = handles.iter().filter(|&&handle| guest.state(handle) == State::Established).count();
    assert_eq!((open, guest.count(Counter::TcpQuota)), (20, 5));
    // One that ends makes room.
    let first = *handles.iter().find(|&&handle| guest.state(handle) == State::Established).unwrap();
    guest.socket(first).abort();
    guest.run_for(Duration::from_millis(5));
    guest.connected(GW, port, 4096);
}

#[test]
fn a_thousand_connections_at_once() {
    const MANY: usize = 1000;
    let listener = TcpListener::bind(SocketAddr::new(V4, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = spawn(move || {
        let mut streams: Vec<TcpStream> = (0..MANY).map(|_| listener.accept().unwrap().0).collect();
        for stream in &mut streams {
            let mut bytes = [0; 500];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    let guest = &mut Guest::new();
    let mut handles = Vec::new();
    for i in 0..MANY {
        handles.push(guest.connect(GW, port, 2048));
        // The listener's backlog is not what is tested.
        if i % 50 == 49 {
            let handles = handles.clone();
            guest.until("fifty more", |guest| handles.iter().all(|&h| guest.socket(h).may_send()));
        }
    }
    for (i, &handle) in handles.iter().enumerate() {
        let mut bytes = [0; 500];
        pattern(i as u64, 0, &mut bytes);
        assert_eq!(guest.socket(handle).send_slice(&bytes), Ok(500));
    }
    guest.until("all answers", |guest| handles.iter().all(|&h| guest.socket(h).recv_queue() == 500));
    for (i, &handle) in handles.iter().enumerate() {
        guest
            .socket(handle)
            .recv(|bytes| {
                verify(i as u64, 0, bytes);
                (500, ())
            })
            .unwrap();
        guest.socket(handle).close();
    }
    server.join().unwrap();
    guest.until("all ends", |guest| guest.count(Counter::TcpClosed) == MANY as u64);
}

/// A client outside and a guest that listens; what the client's end is offered to the guest as.
fn call(guest: &mut Guest, port: u16) -> TcpStream {
    let listener = TcpListener::bind(SocketAddr::new(V4, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let inbound = Inbound {
        guest: SocketAddr::new(GUEST.into(), port),
        mac: GUEST_MAC,
        source: SocketAddr::from(([192, 0, 2, 7], 3333)),
    };
    guest.lan.control.accept(accepted.into(), inbound).unwrap();
    client
}

#[test]
fn a_guest_serves_who_comes_from_outside_under_the_address_that_it_is_told() {
    let guest = &mut Guest::new();
    let handle = guest.listen(8080, MB);
    let mut client = call(guest, 8080);
    let client = spawn(move || {
        let mut writer = client.try_clone().unwrap();
        let writes = spawn(move || {
            write_stream(&mut writer, 2, 5 * MB);
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let got = read_stream(&mut client, 1);
        writes.join().unwrap();
        got
    });
    guest.until("the call", |guest| guest.socket(handle).may_send());
    let remote = guest.socket(handle).remote_endpoint().unwrap();
    assert_eq!((remote.addr.to_string().as_str(), remote.port), ("192.0.2.7", 3333));
    let mut progress = Progress::default();
    guest.until("both streams", |guest| {
        pump(guest, handle, (1, 5 * MB), 2, &mut progress);
        client.is_finished() && progress.received == 5 * MB
    });
    assert_eq!((client.join().unwrap(), progress.received), (5 * MB, 5 * MB));
    assert_eq!(guest.count(Counter::TcpAccepted), 1);
    guest.until("the end", |guest| guest.count(Counter::TcpClosed) == 1);
}

#[test]
fn who_comes_from_outside_is_reset_if_the_guest_refuses() {
    let guest = &mut Guest::new();
    let mut client = call(guest, 8080);
    guest.until("the refusal", |guest| guest.count(Counter::TcpResetInside) == 1);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}
