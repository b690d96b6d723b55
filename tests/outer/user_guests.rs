//! Linux guests behind `egress=user`: what they have of the outside by the sockets of an ordinary user's daemon, over
//! vhost-user and over QEMU's `-netdev stream`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Guest, GuestOptions, Need, Program, Suite, conservation, eventually};

use crate::dhcp_guests::{SCRIPT, UDHCPC, await_told};
use crate::dns_outside::SERVERS;
use crate::lan::LIMIT;
use crate::outside::{answering, gathering, giving, sent_whole, taken_whole};
use crate::stream::stream;
use crate::user::{Rig, confirming, joined, memory};
use crate::user_families::{self, HOST, OUTSIDE, WORDS};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Dnsmasq, Need::Udhcpc, Need::Guests, Need::Program("nft")];

/// What a transfer may take on a machine that does other things too: under emulation a guest hashes some 50 MB a second.
const TRANSFER: Duration = Duration::from_secs(240);
const GIGABYTE: u64 = 1 << 30;
/// Connections that are open all at once, and one after the other.
const AT_ONCE: usize = 1000;
const SHORT: usize = 10_000;
/// Bytes that the daemon may have more after a gigabyte than before: it stores none of it.
const GROWTH_KIB: u64 = 16 * 1024;

pub(crate) fn register(suite: &mut Suite) {
    suite.add_ordinary("by_sockets_linux_guests_on_vhost_user_and_stream_have_the_outside", NEEDS, outside);
    suite.add_ordinary(
        "by_sockets_a_linux_guest_moves_gigabytes_and_thousands_of_connections",
        NEEDS,
        gigabyte,
    );
}

/// Boots a guest on a port that there is.
fn join(guest: &mut Guest, name: &str) -> Result<()> {
    guest.run(&format!("{SCRIPT}\nNAME={name}\n{UDHCPC}")).context("asking for a lease")?;
    await_told(guest, "bound")?;
    guest.run("echo nameserver 10.9.0.1 >/etc/resolv.conf").map(drop)
}

fn vhost_user(rig: &Rig, number: u32) -> Result<Guest> {
    let socket = rig.daemon.path(&format!("v{number}"));
    rig.daemon.ok(&format!("port add n v{number} vhost-user:{}", socket.display()))?;
    Guest::boot(&socket, &format!("52:54:00:00:01:{number:02x}"), &GuestOptions::default())
}

/// Waits until so many servers listen outside.
fn listening(rig: &Rig, count: usize) -> Result<()> {
    eventually("the servers outside", LIMIT, || {
        let told = rig.outside.namespace.run("ss -Hltn")?;
        Ok(if told.lines().count() >= count { Ok(()) } else { Err(told) })
    })
}

/// What a script in the guest says of how a connection ended.
fn told(guest: &mut Guest, script: &str, wanted: &str) -> Result<()> {
    let got = guest.try_run(&format!("{script} 2>&1"))?.stdout;
    ensure!(got.contains(wanted), "{script}: {got:?}, and not {wanted:?}");
    Ok(())
}

fn outside() -> Result<()> {
    let rig = Rig::new(&format!("domain=lab.test dns-servers=10.99.0.2 {WORDS}"))?;
    user_families::enable(&rig)?;
    let namespace = &rig.outside.namespace;
    let _names = rig.outside.serve(SERVERS[0], &[&format!("--listen-address={OUTSIDE}")])?;
    let nc = |port: &str, what: &[&str]| {
        let args = [&["nc", "-ll", "-p", port, "-e"], what].concat();
        Program::start(namespace, "busybox", &args)
    };
    let _words = nc("4008", &["echo", "from the outside"])?;
    let _count = nc("4009", &["wc", "-c"])?;
    // Two of them are of the name server.
    listening(&rig, 4)?;
    let socket = rig.daemon.path("s1");
    rig.daemon.ok(&format!("port add n s1 stream:{}", socket.display()))?;
    let mut a = vhost_user(&rig, 1)?;
    let mut b = Guest::boot_on(&stream(&socket, false), "52:54:00:00:01:02", &GuestOptions::default())?;
    for (guest, name) in [(&mut a, "alpha"), (&mut b, "beta")] {
        join(guest, name).with_context(|| name.to_owned())?;
        told(guest, "nslookup www.example.net", "192.0.2.80")?;
        guest.run("ping -c 3 -i 0.2 -W 5 10.99.0.2 && ping -c 1 -s 1472 -W 5 10.99.0.2")?;
        told(guest, "nslookup www.example.net 10.99.0.2", "192.0.2.80").context("datagrams")?;
        told(guest, "nc -w 10 10.99.0.2 4008 </dev/null", "from the outside")?;
        // The guest's end of the stream comes first, and the answer still arrives.
        told(guest, "head -c 1000000 /dev/zero | nc -w 10 10.99.0.2 4009", "1000000")?;
        told(guest, "nc -w 20 10.99.0.2 4999 </dev/null", "refused")?;
        // A neighbour of the host's that does not exist: the kernel says so in some 3 s.
        told(guest, "nc -w 20 10.99.0.77 4008 </dev/null", "No route to host")?;
        by_ipv6(guest).with_context(|| format!("{name}, by IPv6"))?;
    }
    told(&mut b, "nslookup alpha.lab.test", "10.9.0.")?;
    conservation(&rig.daemon)?;
    Ok(())
}

/// The same with an address that the guest has made of what it was advertised.
fn by_ipv6(guest: &mut Guest) -> Result<()> {
    eventually("an address by advertisement", LIMIT, || {
        let told = guest.run("ip -6 address show dev eth0 scope global; ip -6 route")?;
        let has =
            told.contains("inet6 fd00:9::") && !told.contains("tentative") && told.contains("default via");
        Ok(if has { Ok(()) } else { Err(told) })
    })?;
    guest.run(&format!("ping -6 -c 3 -i 0.2 -W 5 {OUTSIDE} && ping -6 -c 1 -s 1452 -W 5 {OUTSIDE}"))?;
    for server in ["fd00:9::1", OUTSIDE] {
        told(guest, &format!("nslookup -type=aaaa www.example.net {server}"), "2001:db8::80")?;
    }
    told(guest, &format!("nc -w 10 {OUTSIDE} 4008 </dev/null"), "from the outside")?;
    told(guest, &format!("head -c 1000000 /dev/zero | nc -w 10 {OUTSIDE} 4009"), "1000000")?;
    told(guest, &format!("nc -w 20 {HOST} 4999 </dev/null"), "refused")?;
    told(guest, "nc -w 20 fd99::77 4008 </dev/null", "No route to host")
}

fn gigabyte() -> Result<()> {
    let rig = Rig::new("")?;
    let namespace = &rig.outside.namespace;
    let down = giving(namespace, "10.99.0.2:8000", 1, GIGABYTE)?;
    let up = confirming(namespace, "10.99.0.2:8001")?;
    let mut guest = vhost_user(&rig, 1)?;
    join(&mut guest, "alpha")?;
    let before = memory(&rig)?;
    // Both ways at once, and a reader that begins late: what it does not take waits in the kernel. The answer to what the
    // guest sends comes after the end of that.
    begin(&mut guest, "down", "load take 10.99.0.2 8000 2")?;
    begin(&mut guest, "up", &format!("load send 10.99.0.2 8001 {GIGABYTE} 2"))?;
    let [got, taken] = ["down", "up"].map(|name| end(&mut guest, name));
    let (got, taken) = (got?, taken?);
    ensure!(got == taken_whole(1, GIGABYTE), "the guest says of a gigabyte that it took: {got}");
    ensure!(taken == sent_whole(2, GIGABYTE), "the server says of a gigabyte that the guest sent: {taken}");
    joined(down)?;
    joined(up)?;
    let after = memory(&rig)?;
    ensure!(after < before + GROWTH_KIB, "the daemon had {before} KiB, and has {after} KiB");
    many(&rig, &mut guest)?;
    unanswered(&rig, &mut guest)?;
    conservation(&rig.daemon)?;
    Ok(())
}

/// Connections all at once, and one after the other.
fn many(rig: &Rig, guest: &mut Guest) -> Result<()> {
    let namespace = &rig.outside.namespace;
    let before = rig.daemon.holdings()?;
    let server = gathering(namespace, "10.99.0.2:8002", AT_ONCE)?;
    let told = guest.run(&format!("load hold 10.99.0.2 8002 {AT_ONCE}"))?;
    ensure!(told.starts_with(&format!("{AT_ONCE} answered")), "of {AT_ONCE} at once: {told}");
    joined(server)?;
    let server = answering(namespace, "10.99.0.2:8003", SHORT)?;
    begin(guest, "short", &format!("load short 10.99.0.2 8003 {SHORT} 32"))?;
    let told = end(guest, "short")?;
    ensure!(told.starts_with(&format!("{SHORT} answered")), "of {SHORT}, one after the other: {told}");
    joined(server)?;
    print!("{SHORT} connections, {told}; ");
    eventually("their descriptors given back", LIMIT, || {
        let holdings = rig.daemon.holdings()?;
        Ok(if holdings == before { Ok(()) } else { Err(format!("{before:?}, and now {holdings:?}")) })
    })
}

/// A server that leaves SYNs alone is one that does not answer: the guest's clock ends it, though this host's ended before.
fn unanswered(rig: &Rig, guest: &mut Guest) -> Result<()> {
    rig.outside.namespace.run(
        "nft add table inet t
         nft add chain inet t input '{ type filter hook input priority 0; }'
         nft add rule inet t input tcp dport 8004 drop
         nft add rule inet t input tcp dport 8005 reject with icmp type admin-prohibited",
    )?;
    rig.host.run("echo 1 >/proc/sys/net/ipv4/tcp_syn_retries")?;
    let told = guest.run("load connect 10.99.0.2 8004 2")?;
    ensure!(told.trim() == "ETIMEDOUT", "of one that does not answer: {told}");
    let told = guest.run("load connect 10.99.0.2 8005 2")?;
    ensure!(told.trim() == "EHOSTUNREACH", "of one that a firewall forbids: {told}");
    let show = rig.daemon.json("net show n")?;
    let counted = &show["resolved"]["counters"];
    ensure!(counted["tcp_timed_out"].as_u64() >= Some(1), "{counted}");
    Ok(())
}

/// Starts something in the guest that takes its time.
fn begin(guest: &mut Guest, name: &str, script: &str) -> Result<()> {
    let at = format!("/tmp/{name}");
    guest.run(&format!("({script} >{at}.part; mv {at}.part {at}) >/dev/null 2>&1 &")).map(drop)
}

/// What it says at its end.
fn end(guest: &mut Guest, name: &str) -> Result<String> {
    Ok(await_within(guest, &format!("/tmp/{name}"))?.trim().to_string())
}

/// What a file in the guest says, once it is there.
fn await_within(guest: &mut Guest, file: &str) -> Result<String> {
    eventually(&format!("{file} in the guest"), TRANSFER, || {
        let told = guest.try_run(&format!("sleep 0.5; cat {file}"))?;
        Ok(if told.code == 0 { Ok(told.stdout) } else { Err(told.stdout) })
    })
}
