//! Linux guests behind `egress=user`: what they have of the outside by the sockets of an ordinary user's daemon, over
//! vhost-user and over QEMU's `-netdev stream`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Guest, GuestOptions, Need, Program, Suite, conservation, eventually, process};

use crate::dhcp_guests::{SCRIPT, UDHCPC, await_told};
use crate::dns_outside::SERVERS;
use crate::lan::LIMIT;
use crate::stream::stream;
use crate::user::Rig;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Dnsmasq, Need::Udhcpc, Need::Guests];

/// What a transfer may take on a machine that does other things too: under emulation a guest hashes some 50 MB a second.
const TRANSFER: Duration = Duration::from_secs(240);
/// Bytes that the daemon may have more after a gigabyte than before: it stores none of it.
const GROWTH_KIB: u64 = 16 * 1024;

pub(crate) fn register(suite: &mut Suite) {
    suite.add_ordinary("by_sockets_linux_guests_on_vhost_user_and_stream_have_the_outside", NEEDS, outside);
    suite.add_ordinary("by_sockets_a_linux_guest_moves_a_gigabyte_whole", NEEDS, gigabyte);
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
    let rig = Rig::new("domain=lab.test dns-servers=10.99.0.2")?;
    let namespace = &rig.outside.namespace;
    let _names = rig.outside.serve(SERVERS[0], &[])?;
    let nc = |port: &str, what: &[&str]| {
        let args = [&["nc", "-ll", "-p", port, "-e"], what].concat();
        Program::start(namespace, "busybox", &args)
    };
    let _words = nc("4008", &["echo", "from the outside"])?;
    let _count = nc("4009", &["wc", "-c"])?;
    listening(&rig, 3)?;
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
    }
    told(&mut b, "nslookup alpha.lab.test", "10.9.0.")?;
    conservation(&rig.daemon)?;
    Ok(())
}

/// Kibibytes of the daemon's own memory: what it shares with guests is not counted.
fn memory(rig: &Rig) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

fn gigabyte() -> Result<()> {
    let rig = Rig::new("")?;
    let namespace = &rig.outside.namespace;
    let dir = tempfile::tempdir()?;
    let blob = dir.path().join("blob").display().to_string();
    let sum = process::sh(&format!("head -c 1G /dev/urandom >{blob}; md5sum <{blob}"))?;
    let serve = |port, what: &[&str]| {
        Program::start(namespace, "busybox", &[&["nc", "-ll", "-p", port, "-e"], what].concat())
    };
    let (_down, _up) = (serve("8000", &["cat", &blob])?, serve("8001", &["md5sum"])?);
    listening(&rig, 2)?;
    let mut guest = vhost_user(&rig, 1)?;
    join(&mut guest, "alpha")?;
    let before = memory(&rig)?;
    // Both ways at once, and a reader that begins late: what it does not take waits in the kernel. The answer to what the
    // guest sends comes after the end of that.
    guest.run(
        "dd if=/dev/urandom of=/tmp/blob bs=1M count=16 2>/dev/null
         content() { for i in $(seq 8); do echo $i; cat /tmp/blob; done; }
         (nc -w 30 10.99.0.2 8000 </dev/null | (sleep 3; md5sum) >/tmp/down.part
          mv /tmp/down.part /tmp/down) >/dev/null 2>&1 &
         (content | nc -w 30 10.99.0.2 8001 >/tmp/up.part; mv /tmp/up.part /tmp/up) >/dev/null 2>&1 &
         (content | md5sum >/tmp/sent.part; mv /tmp/sent.part /tmp/sent) >/dev/null 2>&1 &",
    )?;
    let [got, taken, sent] = ["/tmp/down", "/tmp/up", "/tmp/sent"].map(|file| await_within(&mut guest, file));
    let (got, taken, sent) = (got?, taken?, sent?);
    ensure!(got.trim() == sum.trim(), "a gigabyte hashes to {got}, and {sum} was sent");
    ensure!(taken.trim() == sent.trim(), "what the guest sent hashes to {taken}, and {sent} was sent");
    let after = memory(&rig)?;
    ensure!(after < before + GROWTH_KIB, "the daemon had {before} KiB, and has {after} KiB");
    conservation(&rig.daemon)?;
    Ok(())
}

/// What a file in the guest says, once it is there.
fn await_within(guest: &mut Guest, file: &str) -> Result<String> {
    eventually(&format!("{file} in the guest"), TRANSFER, || {
        let told = guest.try_run(&format!("sleep 0.5; cat {file}"))?;
        Ok(if told.code == 0 { Ok(told.stdout) } else { Err(told.stdout) })
    })
}
