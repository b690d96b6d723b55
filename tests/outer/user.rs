//! `egress=user`: a network whose outside is the host's own sockets, of a daemon that is an ordinary user.
//!
//! The daemon runs as `nobody`, without a capability, in a namespace that has a way to the outside; guests are our own
//! front-ends on vhost-user sockets, so that nothing of the switch needs a privilege.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::device::{Config, NetDevice};
use frontend::hash::StreamHash;
use frontend::stack::{Guest, GuestConfig, IpAddress, IpEndpoint};
use harness::{Daemon, DaemonOptions, Need, Netns, Suite, conservation, eventually, process};

use crate::dns_outside::{Outside, SERVERS};
use crate::lan::LIMIT;

const NEEDS: &[Need] = &[Need::Namespaces];
const NAMED: &[Need] = &[Need::Namespaces, Need::Dnsmasq];

pub(crate) const NET: &str = "net add n mode=nat subnet=10.9.0.0/24";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

pub(crate) fn register(suite: &mut Suite) {
    suite.add_ordinary("by_sockets_an_ordinary_users_guests_have_names_pings_and_datagrams", NAMED, everyday);
    suite.add_ordinary(
        "by_sockets_pings_that_the_host_forbids_are_not_answered_and_it_is_said",
        NEEDS,
        forbidden,
    );
    suite.add_ordinary("by_sockets_a_users_daemon_has_its_state_where_users_have_it", NEEDS, places);
    suite.add_ordinary("by_sockets_what_needs_a_privilege_says_so_to_an_ordinary_user", NEEDS, privileges);
    suite.add_ordinary("by_sockets_a_forward_leads_to_a_guest_until_it_is_deleted", NEEDS, forwards);
    suite.add_ordinary("by_sockets_guests_reach_what_the_operator_lets_them", NAMED, policy);
    suite.add_ordinary("by_sockets_the_hosts_resolv_conf_is_followed_when_it_changes", NAMED, followed);
    suite.add_ordinary("by_sockets_the_demo_runs_for_an_ordinary_user", NEEDS, demo);
    suite.add_ordinary("by_sockets_the_hosts_loopback_is_closed_unless_it_is_opened", NEEDS, loopback);
}

/// A daemon of an ordinary user's, and what is outside of it.
pub(crate) struct Rig {
    pub(crate) daemon: Daemon,
    pub(crate) outside: Outside,
    pub(crate) host: Netns,
}

impl Rig {
    /// With network `n` of these further keys.
    pub(crate) fn new(keys: &str) -> Result<Self> {
        let host = Netns::new("host")?;
        // The ordinary user's group: the only one that there is in its namespace.
        host.run("echo $(id -g) $(id -g) >/proc/sys/net/ipv4/ping_group_range")?;
        Self::on(host, keys)
    }

    /// The same on a host that is there.
    pub(crate) fn on(host: Netns, keys: &str) -> Result<Self> {
        Self::with(host, keys, DaemonOptions::default())
    }

    /// The same with a daemon of these further options.
    pub(crate) fn with(host: Netns, keys: &str, options: DaemonOptions) -> Result<Self> {
        let outside = Outside::beside(&host)?;
        let daemon = options.netns(&host).unprivileged().start()?;
        has_no_privilege(&daemon)?;
        daemon.ok(&format!("{NET} {keys}"))?;
        Ok(Self { daemon, outside, host })
    }

    /// A guest that has an address by DHCP.
    pub(crate) fn guest(&self, number: u32) -> Result<Guest> {
        let socket = self.daemon.path(&format!("p{number}"));
        self.daemon.ok(&format!("port add n p{number} vhost-user:{}", socket.display()))?;
        let device = NetDevice::connect(&socket, Config::default().mac_number(number))?;
        let mut guest = Guest::new(device, GuestConfig { seed: number.into(), ..GuestConfig::default() })?;
        let lease = guest.lease(LIMIT)?;
        ensure!(lease.router == Some(GATEWAY) && lease.name_servers == [GATEWAY], "{lease:?}");
        Ok(guest)
    }
}

/// What the kernel says of the daemon: it is not root, has no capability and can get none.
fn has_no_privilege(daemon: &Daemon) -> Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let values = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map(|line| line.split_whitespace().collect::<Vec<_>>()).with_context(|| format!("no {key}"))
    };
    for key in ["Uid", "Gid"] {
        ensure!(values(key)?.iter().all(|id| *id != "0"), "root: {status}");
    }
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(values(key)? == ["0000000000000000"], "a capability: {status}");
    }
    ensure!(values("NoNewPrivs")? == ["1"], "it may get privileges: {status}");
    Ok(())
}

/// Kibibytes of the daemon's own memory: what it shares with guests is not counted.
pub(crate) fn memory(rig: &Rig) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Answers datagrams with themselves, until it is dropped.
pub(crate) struct EchoServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<SocketAddr>>>>,
}

impl EchoServer {
    pub(crate) fn start(namespace: &Netns, address: &str) -> Result<Self> {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), address.to_owned());
        let until = Arc::clone(&stop);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = namespace.spawn(move || {
            let socket = UdpSocket::bind(&address).with_context(|| address.clone())?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let _ = ready.send(());
            let (mut room, mut from) = (vec![0; 65_536], Vec::new());
            while !until.load(Ordering::Acquire) {
                if let Ok((n, sender)) = socket.recv_from(&mut room) {
                    socket.send_to(&room[..n], sender)?;
                    from.push(sender);
                }
            }
            Ok(from)
        })?;
        is_ready.recv_timeout(LIMIT).context("an echo server")?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; who sent to it.
    pub(crate) fn end(mut self) -> Result<Vec<SocketAddr>> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("ended twice")?;
        thread.join().ok().context("the server panicked")?
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Takes one TCP connection and says in the end what came of it, as guests expect; who connected.
pub(crate) fn confirming(namespace: &Netns, address: &str) -> Result<JoinHandle<Result<SocketAddr>>> {
    let (address, (ready, is_ready)) = (address.to_owned(), std::sync::mpsc::channel());
    let thread = namespace.spawn(move || {
        let listener = TcpListener::bind(&address).with_context(|| address.clone())?;
        let _ = ready.send(());
        let (mut stream, peer) = listener.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        let (mut hash, mut room) = (StreamHash::new(), vec![0; 1 << 16]);
        loop {
            match stream.read(&mut room)? {
                0 => break,
                n => hash.update(&room[..n]),
            }
        }
        let confirmed = (u128::from(hash.finish()) << 64) | u128::from(hash.len());
        stream.write_all(&confirmed.to_le_bytes())?;
        Ok(peer)
    })?;
    is_ready.recv_timeout(LIMIT).context("a server")?;
    Ok(thread)
}

pub(crate) fn endpoint(text: &str) -> Result<IpEndpoint> {
    let address: SocketAddr = text.parse().with_context(|| text.to_owned())?;
    Ok(address.into())
}

/// Sends a datagram and expects it back.
pub(crate) fn echoed(guest: &mut Guest, to: &str, payload: &[u8]) -> Result<()> {
    let port = guest.udp_open(0)?;
    guest.udp_send(&port, endpoint(to)?, payload, LIMIT)?;
    let (got, from) = guest.udp_recv(&port, LIMIT).with_context(|| format!("the answer of {to}"))?;
    guest.udp_close(port);
    ensure!(from == endpoint(to)? && got == payload, "{to}: {} bytes from {from}", got.len());
    Ok(())
}

/// Sends a datagram that must not be answered, though a later one to elsewhere is.
fn closed(guest: &mut Guest, to: &str, open: &str) -> Result<()> {
    let port = guest.udp_open(0)?;
    guest.udp_send(&port, endpoint(to)?, b"closed", LIMIT)?;
    guest.udp_send(&port, endpoint(open)?, b"open", LIMIT)?;
    let (got, from) = guest.udp_recv(&port, LIMIT)?;
    guest.udp_close(port);
    ensure!(got == b"open", "an answer from {from}: {got:?}");
    Ok(())
}

fn everyday() -> Result<()> {
    let rig = Rig::new("domain=lab.test dns-servers=10.99.0.2")?;
    let _names = rig.outside.serve(SERVERS[0], &[])?;
    let echo = EchoServer::start(&rig.outside.namespace, "10.99.0.2:4007")?;
    let mut guest = rig.guest(1)?;
    ensure!(guest.resolve(GATEWAY, "gateway.lab.test", LIMIT)? == [GATEWAY], "a name of the network's");
    let www = guest.resolve(GATEWAY, "www.example.net", LIMIT)?;
    ensure!(www == [Ipv4Addr::new(192, 0, 2, 80)], "{www:?}");
    for to in [GATEWAY, Ipv4Addr::new(10, 99, 0, 2), HOST] {
        let report = guest.ping(IpAddress::Ipv4(to), 5, 1000, Duration::ZERO, LIMIT)?;
        ensure!((report.received, report.corrupt) == (5, 0), "{to}: {report:?}");
    }
    for len in [0, 1, 1472] {
        echoed(&mut guest, "10.99.0.2:4007", &vec![b'x'; len])?;
    }
    let show = rig.daemon.json("net show n")?;
    ensure!(show["resolved"]["egress"] == "user" && show["resolved"]["pings"] == true, "{show}");
    let to = endpoint("10.99.0.2:4008")?;
    let server = confirming(&rig.outside.namespace, "10.99.0.2:4008")?;
    let report = guest.tcp_send(to, 4 << 20, 7, LIMIT)?;
    ensure!(report.is_whole(), "{report:?}");
    let peer = server.join().ok().context("the server panicked")??;
    ensure!(peer.ip() == HOST, "the outside saw {peer}");
    let sessions = rig.daemon.json("nat sessions n")?;
    let list = sessions.as_array().context("an array")?;
    for proto in ["udp", "icmp", "tcp"] {
        let found = list.iter().filter(|s| {
            s["proto"] == proto && s["inside"].as_str().is_some_and(|i| i.starts_with("10.9.0."))
        });
        ensure!(found.count() > 0, "no {proto} in {sessions}");
    }
    let senders = echo.end()?;
    ensure!(senders.iter().all(|s| s.ip() == HOST), "the outside saw {senders:?}");
    conservation(&rig.daemon)?;
    Ok(())
}

fn forbidden() -> Result<()> {
    // A namespace that was just made lets nobody have ping sockets.
    let rig = Rig::on(Netns::new("host")?, "")?;
    // It is said once for each network.
    rig.daemon.ok("net add other mode=nat subnet=10.10.0.0/24")?;
    let told = rig.daemon.log().matches("ping_group_range").count();
    ensure!(told == 2, "said {told} times: {}", rig.daemon.log());
    let show = rig.daemon.json("net show n")?;
    ensure!(show["resolved"]["pings"] == false, "{show}");
    let mut guest = rig.guest(1)?;
    let report = guest.ping(IpAddress::Ipv4(HOST), 1, 10, Duration::ZERO, Duration::from_millis(200))?;
    ensure!(report.received == 0, "{report:?}");
    let show = rig.daemon.json("net show n")?;
    ensure!(show["resolved"]["counters"]["ping_forbidden"] == 1, "{show}");
    // The gateway's own answers need no socket.
    let report = guest.ping(IpAddress::Ipv4(GATEWAY), 1, 10, Duration::ZERO, LIMIT)?;
    ensure!(report.received == 1, "{report:?}");
    Ok(())
}

fn places() -> Result<()> {
    let host = Netns::new("host")?;
    let daemon = DaemonOptions::default().netns(&host).unprivileged().in_home().start()?;
    let home = daemon.home();
    for path in ["run/weft/ctl.sock", "state/weft/lock"] {
        ensure!(
            home.join(path).exists(),
            "no {path}: {}",
            process::sh(&format!("ls -lR {}", home.display()))?
        );
    }
    daemon.ok(NET)?;
    ensure!(home.join("state/weft/leases").is_dir(), "no leases are kept");
    // The command line finds it by the same variable.
    let found =
        Command::new(harness::binary()?).arg("status").env("XDG_RUNTIME_DIR", home.join("run")).output()?;
    ensure!(found.status.success(), "{found:?}");
    Ok(())
}

fn privileges() -> Result<()> {
    let rig = Rig::new("")?;
    rig.host.run("ip link add v0 type veth peer name v1")?;
    for (line, told) in [
        ("port add n t0 tap:t0", "CAP_NET_ADMIN"),
        ("port add n v0 netdev:v0", "CAP_NET_RAW"),
        ("net add b mode=bridge uplink=v0", "CAP_NET_RAW"),
        ("net add b mode=bridge host-if=on", "CAP_NET_ADMIN"),
        ("net add b mode=nat subnet=10.10.0.0/24 egress=host", "CAP_NET_ADMIN"),
        ("net add b mode=nat subnet=10.10.0.0/24 egress=uplink:v0", "CAP_NET_RAW"),
        ("net add b mode=routed", "CAP_NET_ADMIN"),
        ("forward add n tcp 80 10.9.0.2:80", "CAP_NET_BIND_SERVICE"),
        ("forward add n udp 8053,53 10.9.0.2:53,54", "ip_unprivileged_port_start=53"),
        ("forward add n tcp 10.99.0.77:8080 10.9.0.2:80", "no interface of this host has the address"),
    ] {
        let refusal = rig.daemon.refused(1, &line.split(' ').collect::<Vec<_>>())?;
        ensure!(refusal.contains(told), "{line}: {refusal}");
    }
    let forwards = rig.daemon.json("forward list n")?;
    ensure!(forwards.as_array().is_some_and(Vec::is_empty), "{forwards}");
    // Nothing is left of what was refused, and all else is as it was.
    let networks = rig.daemon.json("net list")?;
    ensure!(networks.as_array().is_some_and(|list| list.len() == 1), "{networks}");
    rig.guest(1)?;
    Ok(())
}

fn loopback() -> Result<()> {
    let rig = Rig::new("")?;
    let _local = EchoServer::start(&rig.host, "127.0.0.1:4007")?;
    let _any = EchoServer::start(&rig.outside.namespace, "10.99.0.2:4008")?;
    let mut guest = rig.guest(1)?;
    for to in ["127.0.0.1:4007", "10.9.0.1:4007", "169.254.169.254:80"] {
        closed(&mut guest, to, "10.99.0.2:4008").with_context(|| to.to_owned())?;
    }
    denied(&rig, 3)?;
    // Opened while it runs: the gateway is the host's loopback, and nothing else is.
    rig.daemon.ok("net set n host-loopback=on")?;
    echoed(&mut guest, "10.9.0.1:4007", b"opened")?;
    closed(&mut guest, "127.0.0.1:4007", "10.99.0.2:4008")?;
    denied(&rig, 4)?;
    rig.daemon.ok("net set n host-loopback=")?;
    closed(&mut guest, "10.9.0.1:4007", "10.99.0.2:4008")?;
    denied(&rig, 5)
}

fn followed() -> Result<()> {
    let host = Netns::new("host")?;
    let named = |server| format!("nameserver {server}\n");
    host.set_resolver(&named(SERVERS[0]))?;
    let rig = Rig::on(host, "")?;
    let serve = |server: &str, answer| {
        rig.outside.serve(server, &[&format!("--address=/where.example.net/{answer}")])
    };
    let _servers = [serve(SERVERS[0], "192.0.2.1")?, serve(SERVERS[1], "192.0.2.2")?];
    let mut guest = rig.guest(1)?;
    // A new name each time: what was said once is remembered.
    let mut asked = 0;
    let mut answered = |by: [u8; 4]| {
        eventually("an answer of the server that the host has", LIMIT, || {
            asked += 1;
            let found = guest.resolve(GATEWAY, &format!("n{asked}.where.example.net"), LIMIT)?;
            Ok(if found == [Ipv4Addr::from(by)] { Ok(()) } else { Err(format!("{found:?}")) })
        })
    };
    answered([192, 0, 2, 1])?;
    rig.host.set_resolver(&named(SERVERS[1]))?;
    answered([192, 0, 2, 2])?;
    rig.host.set_resolver(&named(SERVERS[0]))?;
    answered([192, 0, 2, 1])
}

/// The demo is the user's own, too: it shows NAT by sockets, and a kernel's stack in a namespace that the user makes.
fn demo() -> Result<()> {
    let mut command = Command::new(harness::binary()?);
    let output = process::run(command.args(["demo", "--json"]), Duration::from_secs(120))?;
    let told: serde_json::Value =
        serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    ensure!(output.code == 0 && told["pass"] == true, "{told:#}");
    let steps = told["steps"].as_array().context("no steps")?;
    let left_out: Vec<_> = steps.iter().filter(|step| step.get("left_out").is_some()).collect();
    ensure!(steps.len() > 5 && left_out.is_empty(), "{left_out:?} of {} steps", steps.len());
    Ok(())
}

fn denied(rig: &Rig, count: u64) -> Result<()> {
    eventually("what is closed counted", LIMIT, || {
        let show = rig.daemon.json("net show n")?;
        Ok(if show["resolved"]["counters"]["denied"] == count { Ok(()) } else { Err(show.to_string()) })
    })
}

fn policy() -> Result<()> {
    let rules = "outbound=deny:10.99.0.2:4007,allow:10.99.0.2,allow:*.example.net:4008,deny:*";
    let rig = Rig::new(&format!("dns-servers=10.99.0.2 {rules}"))?;
    let _names = rig.outside.serve(SERVERS[0], &["--host-record=echo.example.net,10.99.0.3"])?;
    let outside = &rig.outside.namespace;
    let servers = ["10.99.0.2:4007", "10.99.0.2:4008", "10.99.0.3:4007", "10.99.0.3:4008"];
    let _servers = servers.iter().map(|at| EchoServer::start(outside, at)).collect::<Result<Vec<_>>>()?;
    let mut guest = rig.guest(1)?;
    let open = servers[1];
    echoed(&mut guest, open, b"by its address")?;
    // Closed by its port; and nobody has asked for the other's name yet.
    closed(&mut guest, servers[0], open)?;
    closed(&mut guest, servers[3], open)?;
    denied(&rig, 2)?;
    guest.resolve(GATEWAY, "echo.example.net", LIMIT)?;
    echoed(&mut guest, servers[3], b"by its name")?;
    closed(&mut guest, servers[2], open)?;
    denied(&rig, 3)?;
    // Other rules hold for what begins from now on, with what is known of names.
    rig.daemon.ok("net set n outbound=deny:*.example.net,allow:*")?;
    closed(&mut guest, servers[3], open)?;
    echoed(&mut guest, servers[0], b"open now")?;
    let told = rig.daemon.json("net show n")?;
    ensure!(told["keys"]["outbound"] == "deny:*.example.net,allow:*", "{told}");
    Ok(())
}

/// Sends a stream to a port of the host's, and is told by the guest that it is whole.
pub(crate) fn upload(namespace: &Netns, to: &str, len: u64) -> Result<JoinHandle<Result<SocketAddr>>> {
    let to = to.to_owned();
    namespace.spawn(move || {
        let mut stream = TcpStream::connect(&to).with_context(|| to.clone())?;
        stream.set_read_timeout(Some(LIMIT))?;
        let (mut hash, chunk) = (StreamHash::new(), vec![b'w'; 1 << 16]);
        for _ in 0..len >> 16 {
            stream.write_all(&chunk)?;
            hash.update(&chunk);
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut confirmed = Vec::new();
        stream.read_to_end(&mut confirmed)?;
        let whole = (u128::from(hash.finish()) << 64) | u128::from(hash.len());
        ensure!(confirmed == whole.to_le_bytes(), "{confirmed:?}");
        Ok(stream.local_addr()?)
    })
}

/// Sends a datagram to a port of the host's and expects it back; the client's own address.
pub(crate) fn asks(namespace: &Netns, to: &str) -> Result<JoinHandle<Result<SocketAddr>>> {
    let to = to.to_owned();
    namespace.spawn(move || {
        let client = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
        client.set_read_timeout(Some(LIMIT))?;
        client.connect(&to)?;
        client.send(b"by a forward")?;
        let mut room = [0; 100];
        let n = client.recv(&mut room).with_context(|| format!("the answer of {to}"))?;
        ensure!(&room[..n] == b"by a forward", "{:?}", &room[..n]);
        Ok(client.local_addr()?)
    })
}

pub(crate) fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().ok().context("a client panicked")?
}

fn forwards() -> Result<()> {
    let rig = Rig::new("")?;
    let outside = &rig.outside.namespace;
    let mut guest = rig.guest(1)?;
    let own = rig.daemon.json("lease list n")?[0]["ip"].as_str().context("a lease")?.to_owned();
    let forwards = [
        format!("n tcp 8080 {own}:80"),
        format!("n udp 5000-5001 {own}"),
        format!("n tcp 127.0.0.1:8081 {own}:80"),
    ];
    for forward in &forwards {
        rig.daemon.ok(&format!("forward add {forward}"))?;
    }
    // Of another network, and of somebody else on the host.
    rig.daemon.ok("net add other mode=nat subnet=10.10.0.0/24")?;
    let taken = rig.daemon.refused(1, &["forward", "add", "other", "tcp", "8080", "10.10.0.2:80"])?;
    ensure!(taken.contains("port 8080 is listened on") && taken.contains("on n"), "{taken}");
    let _somebody = EchoServer::start(&rig.host, "0.0.0.0:5002")?;
    let taken = rig.daemon.refused(1, &["forward", "add", "other", "udp", "5003,5002", "10.10.0.2"])?;
    ensure!(taken.contains("listens on 0.0.0.0:5002 already"), "{taken}");

    for to in ["10.99.0.1:8080", "127.0.0.1:8081"] {
        let client = upload(if to.starts_with("127") { &rig.host } else { outside }, to, 4 << 20)?;
        let report = guest.tcp_receive(80, LIMIT)?;
        let client = joined(client)?;
        ensure!(report.bytes == 4 << 20, "{to}: {report:?}");
        let sessions = rig.daemon.json("nat sessions n")?;
        let told = sessions.as_array().into_iter().flatten().any(|s| s["remote"] == client.to_string());
        ensure!(told, "no {client} in {sessions}");
    }
    let port = guest.udp_open(5001)?;
    let client = asks(outside, "10.99.0.1:5001")?;
    let senders = guest.udp_echo(&port, 1, LIMIT)?;
    let client = joined(client)?;
    ensure!(senders == [endpoint(&format!("{GATEWAY}:{}", client.port()))?], "{senders:?} of {client}");

    // Nobody is asked before the connection is there; what the guest refuses is reset.
    let connect = |to: &'static str| {
        joined(outside.spawn(move || {
            let mut stream = TcpStream::connect(to)?;
            stream.set_read_timeout(Some(LIMIT))?;
            Ok(stream.read(&mut [0]).map_err(|error| error.kind()))
        })?)
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::scope(|scope| {
        let served = scope.spawn(move || guest.serve(LIMIT, || stopped.load(Ordering::Acquire)));
        let reset = connect("10.99.0.1:8080");
        stop.store(true, Ordering::Release);
        served.join().ok().context("the guest panicked")??;
        ensure!(reset? == Err(std::io::ErrorKind::ConnectionReset), "not reset");
        anyhow::Ok(())
    })?;
    for forward in &forwards {
        rig.daemon.ok(&format!("forward del {forward}"))?;
    }
    let refused = connect("10.99.0.1:8080").err().context("a deleted forward is there still")?;
    ensure!(refused.to_string().contains("refused"), "{refused}");
    rig.daemon.ok("forward add other tcp 8080 10.10.0.2:80")?;
    rig.daemon.ok("net del other")?;
    rig.daemon.ok(&format!("forward add n tcp 8080 {own}:80"))?;
    conservation(&rig.daemon)?;
    Ok(())
}
