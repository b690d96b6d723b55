//! Masquerading: a guest's namespace behind the host's, and the outside's before it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use modes::host::{Event, ForwardProto, HostError, HostForward, Masquerade, Plumber, Sysctl, table_name};

use crate::Body;
use crate::relocate::{kill_process, without_nft};
use crate::world::{Namespace, Try, is_clean, plumber, sh, state_dir, try_sh, until};

pub(crate) const TESTS: &[(&str, Body)] = &[
    ("masquerade_outwards_and_rejects_inwards", outwards_and_inwards),
    ("masquerade_forwards_ports", forwards_ports),
    ("masquerade_flushed_is_restored", flushed_is_restored),
    ("masquerade_touches_no_other_table", touches_no_other_table),
    ("masquerade_of_a_crash_is_removed", leftovers),
    ("masquerade_without_nft_says_so", nft_is_missing),
    ("masquerade_refusals", refusals),
];

/// The guest is 192.168.122.5 behind `virbr9`, the outside 198.51.100.9 before `eth9`; the host is .1 on both.
struct World {
    guest: Namespace,
    outside: Namespace,
}

fn world(t: &Try) -> World {
    let (guest, outside) = (Namespace::new(), Namespace::new());
    guest.veth("g0", "virbr9");
    outside.veth("o0", "eth9");
    sh("ip addr add 192.168.122.1/24 dev virbr9; ip link set virbr9 up
        ip addr add fd00:122::1/64 dev virbr9 nodad
        ip addr add 198.51.100.1/24 dev eth9; ip link set eth9 up
        ip addr add fd00:51::1/64 dev eth9 nodad");
    guest.sh("ip addr add 192.168.122.5/24 dev g0; ip link set g0 up
        ip addr add fd00:122::5/64 dev g0 nodad
        ip addr add 192.168.122.6/24 dev g0
        ip route add default via 192.168.122.1; ip -6 route add default via fd00:122::1");
    outside.sh("ip addr add 198.51.100.9/24 dev o0; ip link set o0 up
        ip addr add fd00:51::9/64 dev o0 nodad
        ip route add 192.168.122.0/24 via 198.51.100.1");
    t.plumber.hold_sysctls("nat9", vec![Sysctl::forward4(), Sysctl::forward6()]).expect("forwarding");
    World { guest, outside }
}

pub(crate) fn wanted(forwards: Vec<HostForward>) -> Masquerade {
    Masquerade {
        network: "nat9".into(),
        host_if: "virbr9".into(),
        subnet: "192.168.122.0/24".parse().expect("a subnet"),
        subnet6: Some("fd00:122::/64".parse().expect("a subnet")),
        masquerade6: true,
        forwards,
    }
}

fn forward(proto: ForwardProto, ports: std::ops::RangeInclusive<u16>, to: &str, to_port: u16) -> HostForward {
    HostForward { proto, listen: None, ports, to: to.parse().expect("an address"), to_port }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// Answers each of `count` connections with the address that it came from.
fn listen(at: &str, count: usize) -> std::thread::JoinHandle<()> {
    let listener = TcpListener::bind(socket(at)).expect("a listener");
    std::thread::spawn(move || {
        for _ in 0..count {
            let (mut stream, from) = listener.accept().expect("a connection");
            let _ = stream.write_all(from.ip().to_string().as_bytes());
        }
    })
}

/// Connects; whom the other end takes us for.
fn connect(to: &str) -> Result<IpAddr, std::io::ErrorKind> {
    let mut stream =
        TcpStream::connect_timeout(&socket(to), Duration::from_secs(3)).map_err(|error| error.kind())?;
    let _ = stream.set_read_timeout(Some(Duration::from_secs(3)));
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.kind())?;
    Ok(text.parse().expect("an address"))
}

fn outwards_and_inwards() {
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let w = world(&t);
    t.plumber.set_masquerade(wanted(vec![])).unwrap();
    for (at, host) in [("198.51.100.9:80", "198.51.100.1"), ("[fd00:51::9]:80", "fd00:51::1")] {
        let server = w.outside.run(|| listen(at, 1));
        assert_eq!(
            w.guest.run(|| connect(at)),
            Ok(host.parse().unwrap()),
            "translated to the host's address"
        );
        server.join().unwrap();
    }
    // The host itself is not translated towards the subnet, and is let in.
    let server = w.guest.run(|| listen("192.168.122.5:80", 1));
    assert_eq!(connect("192.168.122.5:80"), Ok("192.168.122.1".parse().unwrap()));
    server.join().unwrap();
    // From outside: refused at once, with an ICMP error (a connection then fails as refused).
    let begun = std::time::Instant::now();
    assert_eq!(w.outside.run(|| connect("192.168.122.5:80")), Err(std::io::ErrorKind::ConnectionRefused));
    assert!(begun.elapsed() < Duration::from_secs(2), "it was told, not dropped");
    let report = t.plumber.shutdown().unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(sh("nft list tables"), "");
    assert!(is_clean(&state));
}

fn forwards_ports() {
    let state = state_dir();
    let t = plumber(&state, |_| {});
    let w = world(&t);
    let guest = "192.168.122.5";
    t.plumber
        .set_masquerade(wanted(vec![
            forward(ForwardProto::Tcp, 8080..=8080, guest, 80),
            forward(ForwardProto::Tcp, 9000..=9003, guest, 9000),
            forward(ForwardProto::Tcp, 7000..=7002, guest, 6000),
            forward(ForwardProto::Udp, 53..=53, guest, 5353),
            forward(ForwardProto::Tcp, 8081..=8081, "fd00:122::5", 80),
        ]))
        .unwrap();
    let outside: IpAddr = "198.51.100.9".parse().unwrap();
    for (at, to) in [
        ("192.168.122.5:80", "198.51.100.1:8080"),
        ("192.168.122.5:9002", "198.51.100.1:9002"),
        ("192.168.122.5:6002", "198.51.100.1:7002"),
    ] {
        let server = w.guest.run(|| listen(at, 1));
        assert_eq!(w.outside.run(|| connect(to)), Ok(outside), "{to}: the guest sees who it is");
        server.join().unwrap();
    }
    let server = w.guest.run(|| listen("[fd00:122::5]:80", 1));
    assert_eq!(w.outside.run(|| connect("[fd00:51::1]:8081")), Ok("fd00:51::9".parse().unwrap()));
    server.join().unwrap();
    // UDP.
    let server = w.guest.run(|| UdpSocket::bind("192.168.122.5:5353").unwrap());
    w.outside.run(|| {
        let client = UdpSocket::bind("198.51.100.9:0").unwrap();
        client.send_to(b"hello", "198.51.100.1:53").unwrap();
    });
    server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(server.recv(&mut buffer).unwrap(), 5);
    // Hairpin: a guest by the host's outer address; the answer comes back by the host.
    let server = w.guest.run(|| listen("192.168.122.5:80", 2));
    assert_eq!(w.guest.run(|| connect("198.51.100.1:8080")), Ok("192.168.122.1".parse().unwrap()));
    // The host itself, by its own address.
    assert!(connect("198.51.100.1:8080").is_ok());
    server.join().unwrap();
    // A guest's connection to the same port elsewhere is not taken for one to the host.
    let server = w.outside.run(|| listen("198.51.100.9:8080", 1));
    assert!(w.guest.run(|| connect("198.51.100.9:8080")).is_ok());
    server.join().unwrap();
    // Changed at runtime; what is open stays open.
    let listener = w.guest.run(|| TcpListener::bind("192.168.122.5:80").unwrap());
    let mut open = w.outside.run(|| TcpStream::connect("198.51.100.1:8080").unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    let elsewhere = vec![HostForward {
        listen: Some("198.51.100.1".parse().unwrap()),
        ..forward(ForwardProto::Tcp, 8888..=8888, guest, 80)
    }];
    t.plumber.set_masquerade(wanted(elsewhere)).unwrap();
    assert!(w.outside.run(|| connect("198.51.100.1:8080")).is_err());
    let _ = w.outside.run(|| TcpStream::connect("198.51.100.1:8888").unwrap());
    accepted.write_all(b"still here").unwrap();
    let mut buffer = [0; 10];
    open.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    open.read_exact(&mut buffer).unwrap();
}

fn flushed_is_restored() {
    let state = state_dir();
    let t = plumber(&state, |_| {});
    t.plumber.set_masquerade(wanted(vec![])).unwrap();
    let before = sh("nft list table inet weft_nat9");
    let restored = Event::TableRestored { network: "nat9".into(), table: "weft_nat9".into() };
    for how in [
        "nft flush ruleset",
        "nft delete table inet weft_nat9",
        "nft flush chain inet weft_nat9 forward",
        "nft add rule inet weft_nat9 forward accept",
    ] {
        sh(how);
        assert_eq!(t.event(), restored, "{how}");
        assert_eq!(sh("nft list table inet weft_nat9"), before, "{how}");
    }
    // What concerns other tables is not our business.
    sh("nft add table ip other; nft delete table ip other");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(t.events.try_recv().is_err());
}

fn touches_no_other_table() {
    sh("nft add table ip other
        nft add chain ip other input \"{ type filter hook input priority 0; }\"
        nft add rule ip other input tcp dport 22 counter accept
        nft add table inet weft_other; nft add chain inet weft_other c");
    let others = || sh("nft list table ip other; nft list table inet weft_other");
    let before = others();
    let state = state_dir();
    let t = plumber(&state, |_| {});
    t.plumber.set_masquerade(wanted(vec![])).unwrap();
    t.plumber.set_masquerade(wanted(vec![forward(ForwardProto::Tcp, 1..=2, "192.168.122.5", 1)])).unwrap();
    assert_eq!(others(), before);
    let odd = Masquerade { network: "a-b c".into(), ..wanted(vec![]) };
    t.plumber.set_masquerade(odd).unwrap();
    assert!(sh("nft list tables").contains(&table_name("a-b c")));
    assert!(t.plumber.clear_masquerade("nat9").unwrap().is_clean());
    assert!(t.plumber.clear_masquerade("nat9").unwrap().is_clean());
    assert!(!sh("nft list tables").contains("weft_nat9"));
    t.plumber.shutdown().unwrap();
    assert_eq!(others(), before);
    assert_eq!(sh("nft list tables").lines().count(), 2);
}

fn leftovers() {
    let state = state_dir();
    assert!(!kill_process(&state, None));
    assert!(sh("nft list tables").contains("weft_nat9"));
    // Even one that the journal does not tell of is replaced whole.
    sh("nft add table inet weft_b; nft add chain inet weft_b c; nft add rule inet weft_b c drop");
    let report = Plumber::recover(state.path()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(!sh("nft list tables").contains("weft_nat9"));
    let t = plumber(&state, |_| {});
    t.plumber.set_masquerade(Masquerade { network: "b".into(), ..wanted(vec![]) }).unwrap();
    assert!(!sh("nft list table inet weft_b").contains("drop"));
    drop(t);
    until("the table is gone", || sh("nft list tables").is_empty());
    assert!(!try_sh("nft list table inet weft_b").status.success());
}

fn nft_is_missing() {
    let state = state_dir();
    let told = without_nft(&state);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("nft") && told.contains("install nftables"), "{told}");
    assert!(is_clean(&state));
}

fn refusals() {
    let state = state_dir();
    let t = plumber(&state, |_| {});
    for bad in [
        forward(ForwardProto::Tcp, 1..=1, "192.168.99.5", 1),
        forward(ForwardProto::Tcp, 0..=1, "192.168.122.5", 1),
        forward(ForwardProto::Tcp, 1000..=9000, "192.168.122.5", 2000),
        forward(ForwardProto::Tcp, 1000..=1010, "192.168.122.5", 65_530),
        HostForward {
            listen: Some("::1".parse().unwrap()),
            ..forward(ForwardProto::Tcp, 1..=1, "192.168.122.5", 1)
        },
    ] {
        let error = t.plumber.set_masquerade(wanted(vec![bad])).unwrap_err();
        assert!(matches!(error, HostError::Refused(_)), "{error}");
    }
    assert_eq!(sh("nft list tables"), "");
    assert!(is_clean(&state));
}
