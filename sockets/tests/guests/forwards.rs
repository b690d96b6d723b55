//! Port forwards: who connects or sends to this host's loopback reaches a guest, which is asked where it is first.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::{tcp::State, udp};
use smoltcp::wire::{IpAddress, IpEndpoint};
use sockets::{Counter, Limits, ListenError, Settings, Source};
use switch_core::napt::{Forward, Protocol};
use switch_core::offload::OffloadSet;

use crate::rig::{GATEWAY, GATEWAY_V6, GUEST, GUEST_V6, Guest, settings};

const FAMILIES: [(IpAddr, IpAddr, IpAddr); 2] = [
    (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(GUEST), IpAddr::V4(GATEWAY)),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(GUEST_V6), IpAddr::V6(GATEWAY_V6)),
];

/// A forward of ports that nobody listens on now.
fn forward(protocol: Protocol, at: IpAddr, count: u16, target: IpAddr) -> Forward {
    let taken = |port: u16| TcpListener::bind((at, port)).is_err() || UdpSocket::bind((at, port)).is_err();
    let free = || {
        let port = UdpSocket::bind((at, 0)).unwrap().local_addr().unwrap().port();
        (port < 60_000 && (port..port + count).all(|port| !taken(port))).then_some(port)
    };
    let port = (0..1000).find_map(|_| free()).unwrap();
    Forward { protocol, address: Some(at), port, count, target: SocketAddr::new(target, 8080) }
}

fn client(forward: &Forward) -> TcpStream {
    let client = TcpStream::connect((forward.address.unwrap(), forward.port)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client
}

fn was_reset(mut client: &TcpStream) -> bool {
    client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// Sends a connection's client something and has the guest send it back.
fn echo(guest: &mut Guest, handle: SocketHandle, mut client: &TcpStream, len: usize) {
    client.write_all(&vec![b'x'; len]).unwrap();
    let mut echoed = 0;
    guest.until("an echo", |guest| {
        let socket = guest.socket(handle);
        while socket.can_recv() && socket.can_send() {
            let bytes = socket.recv(|bytes| (bytes.len().min(512), bytes[..bytes.len().min(512)].to_vec()));
            let bytes = bytes.unwrap();
            echoed += socket.send_slice(&bytes).unwrap();
        }
        echoed == len
    });
    let mut got = vec![0; len];
    // Frames are under way until they are looked at.
    client.set_nonblocking(true).unwrap();
    let mut at = 0;
    guest.until("the bytes", |_| {
        at += client.read(&mut got[at..]).unwrap_or(0);
        at == len
    });
    client.set_nonblocking(false).unwrap();
    assert!(got.iter().all(|byte| *byte == b'x'));
}

#[test]
fn who_connects_reaches_the_guest_and_is_reset_when_the_forward_goes() {
    for (at, inside, gateway) in FAMILIES {
        let guest = &mut Guest::new();
        let forward = forward(Protocol::Tcp, at, 1, inside);
        guest.lan.control.add_forward(&forward, Source::Gateway).unwrap();
        let handle = guest.listen(8080, 4096);
        let client = client(&forward);
        guest.until("the call", |guest| guest.socket(handle).may_send());
        let own = client.local_addr().unwrap();
        let remote = guest.socket(handle).remote_endpoint().unwrap();
        assert_eq!((remote.addr, remote.port), (IpAddress::from(gateway), own.port()));
        echo(guest, handle, &client, 2000);
        let (sessions, _) = guest.lan.control.sessions(10);
        assert_eq!((sessions[0].remote, sessions[0].inside), (own, forward.target));
        assert_eq!(sessions[0].outside, SocketAddr::new(at, forward.port));

        assert!(guest.lan.control.remove_forward(&forward));
        assert!(was_reset(&client));
        guest.until("the guest's end", |guest| guest.state(handle) == State::Closed);
        let refused = TcpStream::connect((at, forward.port)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(!guest.lan.control.remove_forward(&forward));
        // There again at once.
        guest.lan.control.add_forward(&forward, Source::Gateway).unwrap();
    }
}

#[test]
fn two_clients_with_one_port_are_told_apart_and_a_refusal_is_a_reset() {
    let guest = &mut Guest::new();
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let forward = Forward { address: None, ..forward(Protocol::Tcp, any, 1, GUEST.into()) };
    guest.lan.control.add_forward(&forward, Source::Gateway).unwrap();
    let handles = [guest.listen(8080, 4096), guest.listen(8080, 4096)];
    let from = |last: u8, port: u16| {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let socket = socket.unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, last], port))).unwrap();
        rustix::net::connect(&socket, &SocketAddr::from(([127, 0, 0, last], forward.port))).unwrap();
        TcpStream::from(socket)
    };
    let first = from(1, 0);
    let port = first.local_addr().unwrap().port();
    let second = from(2, port);
    guest.until("both calls", |guest| handles.iter().all(|&handle| guest.socket(handle).may_send()));
    let ports = handles.map(|handle| guest.socket(handle).remote_endpoint().unwrap().port);
    assert_ne!(ports[0], ports[1]);
    assert!(ports.contains(&port));
    for handle in handles {
        let mine = guest.socket(handle).remote_endpoint().unwrap().port == port;
        echo(guest, handle, if mine { &first } else { &second }, 100);
    }
    // Nobody listens in the guest any more.
    let third = from(3, 0);
    guest.until("the refusal", |guest| guest.count(Counter::TcpResetInside) == 1);
    assert!(was_reset(&third));
}

#[test]
fn who_connects_to_a_guest_that_is_not_there_is_reset_and_few_wait() {
    let guest = &mut Guest::new();
    let forward = forward(Protocol::Tcp, FAMILIES[0].0, 1, Ipv4Addr::new(10, 0, 0, 9).into());
    guest.lan.control.add_forward(&forward, Source::Gateway).unwrap();
    let clients: Vec<_> = (0..70).map(|_| client(&forward)).collect();
    guest.until("those that are too many", |guest| guest.count(Counter::NoGuest) == 6);
    guest.until("the others", |guest| guest.count(Counter::NoGuest) == 70);
    assert!(clients.iter().all(was_reset));
    let asked = guest.nic.seen.borrow().iter().filter(|frame| frame[12..14] == [8, 6]).count();
    assert!((2..=4).contains(&asked), "asked {asked} times");
    // Those that wait when it goes are reset as well.
    let last = client(&forward);
    guest.run_for(Duration::from_millis(50));
    guest.lan.control.remove_forward(&forward);
    assert!(was_reset(&last));
}

fn bound(guest: &mut Guest, port: u16) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 16_384]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    guest.sockets.add(socket)
}

/// Sends back what comes, and notes from whom it came.
fn answer(guest: &mut Guest, handle: SocketHandle, senders: &mut Vec<IpEndpoint>) {
    let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
    while let Ok((bytes, meta)) = socket.recv() {
        let bytes = bytes.to_vec();
        socket.send_slice(&bytes, meta.endpoint).unwrap();
        senders.push(meta.endpoint);
    }
}

fn recv(
    guest: &mut Guest,
    handle: SocketHandle,
    client: &UdpSocket,
    senders: &mut Vec<IpEndpoint>,
) -> Vec<u8> {
    client.set_nonblocking(true).unwrap();
    let (mut room, mut len) = ([0; 4096], None);
    guest.until("an answer", |guest| {
        answer(guest, handle, senders);
        len = client.recv(&mut room).ok();
        len.is_some()
    });
    room[..len.unwrap()].to_vec()
}

#[test]
fn datagrams_come_to_the_guest_and_its_answers_to_each_client() {
    for (at, inside, gateway) in FAMILIES {
        let guest = &mut Guest::new();
        let forward = forward(Protocol::Udp, at, 1, inside);
        guest.lan.control.add_forward(&forward, Source::Gateway).unwrap();
        let handle = bound(guest, 8080);
        let clients = [(); 2].map(|()| UdpSocket::bind((at, 0)).unwrap());
        let mut senders = Vec::new();
        for round in 0..2 {
            for (i, client) in clients.iter().enumerate() {
                client.connect((at, forward.port)).unwrap();
                let words = format!("{i} {round}");
                client.send(words.as_bytes()).unwrap();
                assert_eq!(recv(guest, handle, client, &mut senders), words.as_bytes());
            }
        }
        let own = clients.each_ref().map(|client| client.local_addr().unwrap());
        let seen = own.map(|own| IpEndpoint { addr: IpAddress::from(gateway), port: own.port() });
        assert_eq!(senders, [seen, seen].concat());
        let (sessions, all) = guest.lan.control.sessions(10);
        assert_eq!(all, 2);
        assert!(sessions.iter().all(|s| own.contains(&s.remote) && s.inside == forward.target));

        assert!(guest.lan.control.remove_forward(&forward));
        assert_eq!(guest.lan.control.sessions(10).1, 0);
        assert!(clients[0].send(b"late").is_err() || clients[0].send(b"late").is_err(), "nobody listens");
    }
}

#[test]
fn a_client_whose_answers_would_not_come_back_is_the_gateway_where_it_was_to_be_kept() {
    for (at, inside, gateway) in FAMILIES {
        let guest = &mut Guest::new();
        let streams = forward(Protocol::Tcp, at, 1, inside);
        let datagrams = forward(Protocol::Udp, at, 1, inside);
        for forward in [&streams, &datagrams] {
            guest.lan.control.add_forward(forward, Source::Client).unwrap();
        }
        let (listening, handle) = (guest.listen(8080, 4096), bound(guest, 8080));
        let client = client(&streams);
        guest.until("the call", |guest| guest.socket(listening).may_send());
        assert_eq!(guest.socket(listening).remote_endpoint().unwrap().addr, IpAddress::from(gateway));
        let (sender, mut senders) = (UdpSocket::bind((at, 0)).unwrap(), Vec::new());
        sender.connect((at, datagrams.port)).unwrap();
        for _ in 0..3 {
            sender.send(b"?").unwrap();
            recv(guest, handle, &sender, &mut senders);
        }
        assert!(senders.iter().all(|seen| seen.addr == IpAddress::from(gateway)));
        // The connection, and the flow once.
        assert_eq!(guest.count(Counter::SourceReplaced), 2);
        drop(client);
    }
}

#[test]
fn a_guest_is_told_that_its_client_is_gone() {
    for (at, inside, _) in FAMILIES {
        let guest = &mut Guest::new();
        let forward = forward(Protocol::Udp, at, 1, inside);
        guest.lan.control.add_forward(&forward, Source::Gateway).unwrap();
        let handle = bound(guest, 8080);
        let client = UdpSocket::bind((at, 0)).unwrap();
        client.connect((at, forward.port)).unwrap();
        client.send(b"and gone").unwrap();
        drop(client);
        answer_once(guest, handle);
        let told = |frame: &Vec<u8>| match at {
            IpAddr::V4(_) => frame[12..14] == [8, 0] && frame[23] == 1 && frame[34..36] == [3, 3],
            IpAddr::V6(_) => frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54..56] == [1, 4],
        };
        guest.until("port unreachable", |guest| guest.nic.seen.borrow().iter().any(told));
        // It ends no flow, and others come as before.
        let other = UdpSocket::bind((at, 0)).unwrap();
        other.connect((at, forward.port)).unwrap();
        other.send(b"here").unwrap();
        assert_eq!(recv(guest, handle, &other, &mut Vec::new()), b"here");
    }
}

/// Waits for a datagram and sends it back.
fn answer_once(guest: &mut Guest, handle: SocketHandle) {
    let mut senders = Vec::new();
    guest.until("a datagram", |guest| {
        answer(guest, handle, &mut senders);
        !senders.is_empty()
    });
}

#[test]
fn datagrams_wait_for_a_guest_and_only_so_many() {
    let guest = &mut Guest::new();
    let forward = forward(Protocol::Udp, FAMILIES[0].0, 1, Ipv4Addr::new(10, 0, 0, 9).into());
    guest.lan.control.add_forward(&forward, Source::Gateway).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(("127.0.0.1", forward.port)).unwrap();
    for _ in 0..20 {
        client.send(b"?").unwrap();
    }
    guest.until("those that are too many", |guest| guest.count(Counter::NoGuest) == 12);
    guest.until("the others", |guest| guest.count(Counter::NoGuest) == 20);
}

#[test]
fn a_forward_is_there_with_all_its_ports_or_not_at_all() {
    let limits = Limits { listeners: 3, ..Limits::default() };
    let guest = &mut Guest::with(Settings { limits, ..settings() }, OffloadSet::NONE);
    let control = &guest.lan.control;
    let forward = forward(Protocol::Tcp, FAMILIES[0].0, 3, GUEST.into());
    let port = |i| (forward.address.unwrap(), forward.port + i);
    let other = TcpListener::bind(port(2)).unwrap();
    let refused = control.add_forward(&forward, Source::Gateway).unwrap_err();
    assert!(matches!(refused, ListenError::InUse(at) if at.port() == forward.port + 2), "{refused}");
    assert_eq!(TcpStream::connect(port(0)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(other);
    control.add_forward(&forward, Source::Gateway).unwrap();
    let more = Forward { count: 1, protocol: Protocol::Udp, ..forward.clone() };
    assert!(matches!(
        control.add_forward(&more, Source::Gateway),
        Err(ListenError::TooMany { wanted: 4, most: 3 })
    ));
    assert!(control.remove_forward(&forward));
    control.add_forward(&more, Source::Gateway).unwrap();
    let elsewhere = Forward { address: Some([192, 0, 2, 77].into()), ..more };
    assert!(matches!(control.add_forward(&elsewhere, Source::Gateway), Err(ListenError::NoAddress(_))));
}
