//! Peers at Unix sockets: QEMU's `-netdev stream` and `-netdev dgram`, and processes that speak the same, well or badly.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Daemon, DaemonOptions, GuestOptions, Need, Netns, Suite, conservation, counters, eventually};

use crate::machine::{GuestMachine, Machine, Peer, await_reach, exchange, fetch, iperf, ping};

const GUESTS: &[Need] = &[Need::Guests];
const KERNEL: &[Need] = &[Need::Guests, Need::Namespaces, Need::Ping];
const TIMES: usize = 3;
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn register(suite: &mut Suite) {
    suite.add_ordinary("guests_on_stream_dgram_and_vhost_user_exchange_whole_payloads", GUESTS, three_guests);
    suite.add("daemon_killed_under_a_guest_on_stream_connects_again", KERNEL, daemon_killed);
    suite.add_ordinary("guest_on_stream_and_on_dgram_comes_back", GUESTS, guest_comes_back);
    suite.add_ordinary("stream_peers_that_misbehave_harm_nobody", &[], misbehave);
    suite.add_ordinary("stream_and_dgram_sockets_are_made_and_removed_with_care", &[], sockets);
}

/// QEMU's words for a stream that it connects, or listens for.
pub(crate) fn stream(socket: &Path, listens: bool) -> String {
    let server = if listens { "on" } else { "off" };
    format!("stream,server={server},addr.type=unix,addr.path={}", socket.display())
}

/// QEMU's words for datagrams.
fn dgram(own: &Path, remote: &Path) -> String {
    format!(
        "dgram,local.type=unix,local.path={},remote.type=unix,remote.path={}",
        own.display(),
        remote.display()
    )
}

fn three_guests() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let [s, d, q, v] = ["s0", "d0", "q0", "v0"].map(|name| daemon.path(name));
    daemon.ok(&format!("port add n s0 stream:{}", s.display()))?;
    daemon.ok(&format!("port add n d0 dgram:{} remote={}", d.display(), q.display()))?;
    daemon.ok(&format!("port add n v0 vhost-user:{}", v.display()))?;
    let mut a = GuestMachine::boot_on(&stream(&s, false), "52:54:00:00:00:11", "10.9.0.1")?;
    let mut b = GuestMachine::boot_on(&dgram(&q, &d), "52:54:00:00:00:12", "10.9.0.2")?;
    let mut c = GuestMachine::boot(&v, "52:54:00:00:00:13", "10.9.0.3", &GuestOptions::default())?;
    for guest in [&mut a, &mut b, &mut c] {
        guest.configure()?;
    }
    for port in ["s0", "d0", "v0"] {
        daemon.await_port(port, "up")?;
    }
    let (a_sum, c_sum) = exchange(&mut a, &mut c).context("stream and vhost-user")?;
    let b_sum = b.serve()?;
    for (server, sum) in [("10.9.0.1", &a_sum), ("10.9.0.3", &c_sum)] {
        ping(&mut b, server)?;
        iperf(&mut b, server, false).with_context(|| format!("dgram to {server}"))?;
        iperf(&mut b, server, true).with_context(|| format!("{server} to dgram"))?;
        fetch(&mut b, server, sum)?;
    }
    fetch(&mut a, "10.9.0.2", &b_sum)?;
    fetch(&mut c, "10.9.0.2", &b_sum)?;
    // The guest on vhost-user sent segments of 64 KB, which nobody else here can take whole.
    let (sent, got) = (counters(&daemon, "v0")?, counters(&daemon, "s0")?);
    ensure!(sent.rx_bytes / sent.rx_frames > 2_000, "the vhost-user guest sent no super-frames: {sent:?}");
    ensure!(got.dropped("egress_mtu") + got.dropped("egress_error") == 0, "{got:?}");
    let shown = daemon.ok("port show d0")?;
    ensure!(shown.contains(&format!("remote:     {}", q.display())), "{shown}");
    conservation(&daemon)?;
    Ok(())
}

fn daemon_killed() -> Result<()> {
    let host = Netns::new("host")?;
    let mut peer = Peer::new("peer", "10.9.0.2")?;
    peer.veth(&host, "v0")?;
    let sockets = tempfile::tempdir()?;
    let socket = sockets.path().join("s0");
    let config = format!(
        "[network.n]\nmode = \"bridge\"\n
         [port.s0]\nnetwork = \"n\"\nkind = \"stream:{}\"\nrole = \"client\"\n
         [port.v0]\nnetwork = \"n\"\nkind = \"netdev:v0\"\n",
        socket.display()
    );
    let mut daemon = DaemonOptions::default().netns(&host).config(config).start()?;
    daemon.await_port("s0", "waiting")?;
    let mut guest = GuestMachine::boot_on(&stream(&socket, true), "52:54:00:00:00:10", "10.9.0.1")?;
    guest.configure()?;
    daemon.await_port("s0", "up")?;
    await_reach(&mut guest, "10.9.0.2", LIMIT)?;
    let sum = peer.serve()?;
    let before = daemon.holdings()?;
    for time in 0..TIMES {
        let told = || format!("time {} of {TIMES}", time + 1);
        daemon.kill();
        daemon.restart().with_context(told)?;
        daemon.await_port("s0", "up").with_context(told)?;
        await_reach(&mut guest, "10.9.0.2", LIMIT).with_context(told)?;
        fetch(&mut guest, "10.9.0.2", &sum).with_context(told)?;
    }
    let after = daemon.holdings()?;
    ensure!(after == before, "the daemon held {before:?}, and holds {after:?}");
    conservation(&daemon)?;
    Ok(())
}

fn guest_comes_back() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let [s, d, q] = ["s0", "d0", "q0"].map(|name| daemon.path(name));
    daemon.ok(&format!("port add n s0 stream:{}", s.display()))?;
    daemon.ok(&format!("port add n d0 dgram:{} remote={}", d.display(), q.display()))?;
    for time in 0..2 {
        let told = || format!("time {}", time + 1);
        daemon.await_port("s0", "waiting").with_context(told)?;
        daemon.await_port("d0", "waiting").with_context(told)?;
        let mut a = GuestMachine::boot_on(&stream(&s, false), "52:54:00:00:00:11", "10.9.0.1")?;
        let mut b = GuestMachine::boot_on(&dgram(&q, &d), "52:54:00:00:00:12", "10.9.0.2")?;
        a.configure()?;
        b.configure()?;
        ping(&mut a, "10.9.0.2").with_context(told)?;
        daemon.await_port("s0", "up").with_context(told)?;
        daemon.await_port("d0", "up").with_context(told)?;
        // Killed: nothing is closed in order, and QEMU's file of the datagram socket stays.
    }
    conservation(&daemon)?;
    Ok(())
}

/// A frame of `len` bytes from station `from` to station `to`.
fn frame(to: u8, from: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
    frame.resize(len, from);
    frame
}

fn on_wire(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

fn read_frame(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// Frames cross from the first to the second, and back, whatever others do.
fn both_ways(ends: &mut [UnixStream; 2], round: usize) -> Result<()> {
    for (from, to) in [(0, 1), (1, 0)] {
        let sent = frame(to as u8, from as u8, 60 + 97 * (round % 15));
        ends[from].write_all(&on_wire(&sent))?;
        let got = read_frame(&mut ends[to]).with_context(|| format!("round {round}, to {to}"))?;
        ensure!(got == sent, "round {round}: {} bytes came, {} were sent", got.len(), sent.len());
    }
    Ok(())
}

fn misbehave() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let connect = |name: &str| -> Result<UnixStream> {
        let stream = UnixStream::connect(daemon.path(name))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        daemon.await_port(name, "up")?;
        Ok(stream)
    };
    for name in ["s0", "s1", "bad"] {
        daemon.ok(&format!("port add n {name} stream:{}", daemon.path(name).display()))?;
    }
    let mut ends = [connect("s0")?, connect("s1")?];
    // Both stations are known from here on, and nothing is flooded.
    for (from, end) in ends.iter_mut().enumerate() {
        end.write_all(&on_wire(&frame(1 - from as u8, from as u8, 60)))?;
    }
    eventually("both stations are known", LIMIT, || {
        let known = daemon.json("fdb show n")?.as_array().map_or(0, Vec::len);
        Ok(if known == 2 { Ok(()) } else { Err(format!("{known} known")) })
    })?;
    for end in &mut ends {
        end.set_nonblocking(true)?;
        eventually("what was flooded arrives", LIMIT, || {
            let mut room = [0; 256];
            Ok(end.read(&mut room).map(|_| ()).map_err(|e| e.to_string()))
        })?;
        end.set_nonblocking(false)?;
    }
    both_ways(&mut ends, 0)?;

    // One that reads nothing, and is sent more than anybody keeps for it.
    let mut bad = connect("bad")?;
    bad.write_all(&on_wire(&frame(0, 9, 60)))?;
    ensure!(read_frame(&mut ends[0])? == frame(0, 9, 60), "not what the third sent");
    let much = on_wire(&frame(9, 0, 1500)).repeat(50);
    for round in 0..40 {
        ends[0].write_all(&much)?;
        both_ways(&mut ends, round)?;
    }
    let lost = counters(&daemon, "bad")?;
    ensure!(lost.dropped("tx_ring_full") > 500, "{lost:?}");
    // What it was given begins with whole frames, and the last is whole once it reads.
    for n in 0..lost.tx_frames {
        let got = read_frame(&mut bad).with_context(|| format!("frame {n} of {}", lost.tx_frames))?;
        ensure!(got == frame(9, 0, 1500) || got.len() == 60, "frame {n} has {} bytes", got.len());
    }

    // One that writes a byte at a time, and a second one meanwhile.
    let slow = on_wire(&frame(1, 9, 200));
    for (round, byte) in slow.iter().enumerate() {
        bad.write_all(&[*byte])?;
        if round + 1 == slow.len() {
            // It is whole, and comes between what others send.
            break;
        }
        both_ways(&mut ends, round)?;
        if round == 10 {
            let mut second = UnixStream::connect(daemon.path("bad"))?;
            second.set_read_timeout(Some(LIMIT))?;
            ensure!(second.read(&mut [0; 1])? == 0, "a second peer is not refused");
            ensure!(daemon.log().contains("a second peer was refused"), "and nobody is told");
        }
    }
    ensure!(read_frame(&mut ends[1])? == frame(1, 9, 200), "not what the slow one sent");

    // Lengths that are none.
    for (bytes, why) in [(&[0u8, 1, 16, 1][..], "69633 bytes"), (&[0xff; 4], "4294967295 bytes")] {
        bad.write_all(&on_wire(&[]))?;
        bad.write_all(&on_wire(&[7]))?;
        bad.write_all(bytes)?;
        daemon.await_port("bad", "error")?;
        let port = daemon.port("bad")?;
        ensure!(port["reason"].as_str().is_some_and(|told| told.contains(why)), "{port}");
        ensure!(bad.read(&mut [0; 1])? == 0, "its connection is still there");
        both_ways(&mut ends, 1)?;
        bad = connect("bad")?;
    }
    let runts = counters(&daemon, "bad")?;
    ensure!(runts.dropped("runt") == 4, "{runts:?}");
    conservation(&daemon)?;
    Ok(())
}

fn sockets() -> Result<()> {
    let mut daemon = Daemon::start()?;
    daemon.ok("net add n mode=bridge")?;
    let at = |name: &str| daemon.path(name).display().to_string();
    let (s, d, far) = (at("s"), at("d"), at("far"));
    // Files of sockets that nobody has any more are replaced, whatever they were.
    drop(UnixDatagram::bind(&s)?);
    drop(UnixDatagram::bind(&d)?);
    daemon.ok(&format!("port add n s stream:{s}"))?;
    daemon.ok(&format!("port add n d dgram:{d} remote={far}"))?;
    for (kind, key, why) in [
        (format!("stream:{s}"), None, "is port s's already"),
        (format!("dgram:{d}"), Some(format!("remote={far}")), "is port d's already"),
        (format!("stream:{}", at("live")), None, "another process does"),
        (format!("dgram:{}", at("file")), Some(format!("remote={far}")), "a file that is no socket"),
        (format!("dgram:{}", at("e")), None, "give remote=PATH"),
        (format!("stream:/{}", "x".repeat(107)), None, "108 bytes"),
    ] {
        let live = UnixDatagram::bind(at("live"))?;
        std::fs::write(at("file"), "")?;
        let mut words = vec!["port", "add", "n", "x", &kind];
        words.extend(key.as_deref());
        let told = daemon.refused(1, &words)?;
        ensure!(told.contains(why), "{kind}: {told}");
        drop(live);
        std::fs::remove_file(at("live"))?;
    }
    let told = daemon.refused(1, &["port", "set", "d", "remote=/elsewhere"])?;
    ensure!(told.contains("remote= cannot change while the port exists"), "{told}");
    ensure!(daemon.port("d")?["state"] == "waiting", "nobody is there");
    let peer = UnixDatagram::bind(&far)?;
    ensure!(daemon.port("d")?["state"] == "up", "somebody is there");
    peer.set_read_timeout(Some(LIMIT))?;
    UnixStream::connect(&s)?.write_all(&on_wire(&frame(3, 4, 700)))?;
    let mut room = [0; 2048];
    let n = peer.recv(&mut room)?;
    ensure!(room[..n] == frame(3, 4, 700), "{n} bytes came");
    daemon.ok("port del s")?;
    if Path::new(&s).exists() {
        bail!("the stream's file is still there");
    }
    ensure!(daemon.terminate()? == 0, "not a clean end");
    ensure!(!daemon.path("d").exists() && daemon.path("far").exists(), "ours goes, the peer's stays");
    Ok(())
}
