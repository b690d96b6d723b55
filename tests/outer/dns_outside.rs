//! Names of the outside, asked of a name server that the test runs, and what of it guests may and may not have.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{DaemonOptions, Need, Netns, Program, Suite, conservation, eventually};

use crate::dns::Answer;
use crate::lan::{GATEWAY, LAN, LIMIT, Lan, Mode};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ping, Need::Udhcpc, Need::Dig, Need::Dnsmasq];

/// What networks of these tests have besides their mode.
const WORDS: &str = "dhcp=10.9.0.50-10.9.0.99 dns=on domain=lab.test";
pub(crate) const SERVERS: [&str; 2] = ["10.99.0.2", "10.99.0.3"];

pub(crate) fn register(suite: &mut Suite) {
    for mode in [Mode::Routed, Mode::Nat] {
        let name = format!("names_of_the_outside_are_forwarded_on_a_{}_network", mode.name());
        suite.add(name, NEEDS, move || forwarded(mode));
    }
    suite.add("a_large_answer_is_cut_and_then_fetched_by_tcp", NEEDS, large);
    suite.add("what_was_asked_before_is_answered_without_the_outside", NEEDS, cached);
    suite.add("the_hosts_resolv_conf_is_followed_when_it_changes", NEEDS, followed);
    suite.add("a_guest_that_floods_the_name_service_keeps_nobody_else_from_it", NEEDS, flooded);
    suite.add("an_internal_network_does_not_ask_the_outside", NEEDS, internal);
}

/// The outside: a namespace beside the daemon's, with both servers' addresses.
pub(crate) struct Outside {
    pub(crate) namespace: Netns,
}

impl Outside {
    pub(crate) fn beside(host: &Netns) -> Result<Self> {
        let namespace = Netns::new("outside")?;
        host.veth("up0", &namespace, "eth0", "10.99.0.2/24")?;
        host.run("ip address add 10.99.0.1/24 dev up0")?;
        namespace.run("ip address add 10.99.0.3/24 dev eth0")?;
        Ok(Outside { namespace })
    }

    /// Starts a server that knows `example.net` and nothing else.
    pub(crate) fn serve(&self, address: &str, more: &[&str]) -> Result<Program> {
        let listen = format!("--listen-address={address}");
        let mut args = vec!["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"];
        args.extend(["--user=root", "--pid-file=", "--log-queries", "--log-facility=-", "--bind-interfaces"]);
        args.extend(["--local-ttl=300", "--neg-ttl=300", "--local=/example.net/", &listen]);
        args.push("--host-record=www.example.net,192.0.2.80,2001:db8::80");
        args.extend(more);
        let mut server = Program::start(&self.namespace, "dnsmasq", &args)?;
        // It listens before it says so.
        server.await_log("started", LIMIT)?;
        Ok(server)
    }
}

fn lan(mode: Mode) -> Result<(Lan, Outside)> {
    let lan = Lan::new(&format!("{} {WORDS} dns-servers={}", mode.words(), SERVERS[0]))?;
    let outside = Outside::beside(&lan.host)?;
    Ok((lan, outside))
}

fn forwarded(mode: Mode) -> Result<()> {
    let (lan, outside) = lan(mode)?;
    let server = outside.serve(SERVERS[0], &[])?;
    let a = lan.station("t0", "")?;
    a.join("alpha")?;
    for over in ["", "+tcp"] {
        a.resolves(&format!("{over} www.example.net A"), &["192.0.2.80"])?;
        a.resolves(&format!("{over} www.example.net AAAA"), &["2001:db8::80"])?;
        a.resolves(&format!("{over} www.example.net MX"), &[])?;
        let nobody = a.dig(&format!("{over} nobody.example.net A"))?;
        ensure!(nobody == Answer::status("NXDOMAIN"), "{nobody:?}");
    }
    let told = a.run("getent ahostsv4 www.example.net")?;
    ensure!(told.starts_with("192.0.2.80"), "{told}");
    // Names of the network and of its private addresses are nobody else's business.
    ensure!(a.dig("nobody.lab.test A")?.status == "NXDOMAIN", "{:?}", a.dig("nobody.lab.test A")?);
    ensure!(a.dig("-x 10.9.0.97")?.status == "NXDOMAIN", "{:?}", a.dig("-x 10.9.0.97")?);
    let log = server.log();
    ensure!(log.contains("www.example.net") && !log.contains("lab.test") && !log.contains("10.9.0"), "{log}");
    conservation(&lan.daemon)?;
    Ok(())
}

fn large() -> Result<()> {
    let (lan, outside) = lan(Mode::Nat)?;
    let text = "x".repeat(200);
    let record = format!("--txt-record=big.example.net{}", format!(",{text}").repeat(12));
    let _server = outside.serve(SERVERS[0], &[&record])?;
    let a = lan.station("t0", "")?;
    a.join("alpha")?;
    let whole = vec![format!("\"{text}\""); 12].join(" ");
    for over in ["+noedns", "+bufsize=1232"] {
        let cut = a.dig(&format!("{over} +ignore big.example.net TXT"))?;
        ensure!(cut.truncated && cut.status == "NOERROR", "{over}: {cut:?}");
        let answer = a.dig(&format!("{over} big.example.net TXT"))?;
        ensure!(!answer.truncated && answer.data == [whole.clone()], "{over}: {answer:?}");
    }
    let answer = a.dig("+tcp big.example.net TXT")?;
    ensure!(answer.data == [whole.clone()], "{answer:?}");
    Ok(())
}

fn cached() -> Result<()> {
    let (lan, outside) = lan(Mode::Routed)?;
    let mut server = outside.serve(SERVERS[0], &[])?;
    let (a, b) = (lan.station("t0", "")?, lan.station("t1", "")?);
    a.join("alpha")?;
    b.join("beta")?;
    a.resolves("www.example.net A", &["192.0.2.80"])?;
    ensure!(a.dig("nobody.example.net A")? == Answer::status("NXDOMAIN"), "nobody");
    b.resolves("www.example.net A", &["192.0.2.80"])?;
    let asked = server.log().matches("query[A] www.example.net").count();
    ensure!(asked == 1, "the outside was asked {asked} times: {}", server.log());
    server.kill();
    for station in [&a, &b] {
        station.resolves("www.example.net A", &["192.0.2.80"])?;
        station.resolves("+tcp WWW.example.net A", &["192.0.2.80"])?;
        // That there is nothing was an answer, too, if it came with the record that says for how long.
    }
    // What nobody asked before has no answer now, and says so.
    let lost = a.dig("other.example.net A")?;
    ensure!(lost == Answer::status("SERVFAIL"), "{lost:?}");
    let _server = outside.serve(SERVERS[0], &["--host-record=other.example.net,192.0.2.81"])?;
    eventually("an answer when the outside is back", LIMIT, || {
        let answer = a.dig("other.example.net A")?;
        Ok(if answer.data == ["192.0.2.81"] { Ok(()) } else { Err(format!("{answer:?}")) })
    })
}

fn followed() -> Result<()> {
    let host = Netns::new("host")?;
    host.set_resolver(&format!("nameserver {}\n", SERVERS[0]))?;
    let outside = Outside::beside(&host)?;
    let daemon = DaemonOptions::default().netns(&host).start()?;
    daemon.ok(&format!("net add {LAN} {} {WORDS}", Mode::Nat.words()))?;
    let lan = Lan { host, daemon };
    let first = outside.serve(SERVERS[0], &["--host-record=first.example.net,192.0.2.1"])?;
    let second = outside.serve(SERVERS[1], &["--host-record=second.example.net,192.0.2.2"])?;
    let a = lan.station("t0", "")?;
    a.join("alpha")?;
    a.resolves("first.example.net A", &["192.0.2.1"])?;
    ensure!(!second.log().contains("query["), "the second server was asked: {}", second.log());
    lan.host.set_resolver(&format!("nameserver {}\n", SERVERS[1]))?;
    eventually("the other server asked", LIMIT, || {
        // A new name each time: what the first server said is remembered.
        a.dig(&format!("n{}.example.net A", second.log().len()))?;
        Ok(if second.log().contains("query[") { Ok(()) } else { Err(first.log()) })
    })?;
    a.resolves("second.example.net A", &["192.0.2.2"])
}

/// Sends questions as fast as it can; all of names that nobody asked before.
fn flood(stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((GATEWAY, 53))?;
    socket.set_nonblocking(true)?;
    let mut number = 0u32;
    while !stop.load(Ordering::Acquire) {
        let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query[..2].copy_from_slice(&number.to_be_bytes()[2..]);
        for label in [format!("f{number}").as_str(), "flood", "example", "net"] {
            query.push(u8::try_from(label.len())?);
            query.extend(label.bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        // A full queue is what a flood makes.
        if socket.send(&query).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        while socket.recv(&mut [0; 512]).is_ok() {}
        number += 1;
        if number.is_multiple_of(32) {
            std::thread::sleep(Duration::from_millis(4));
        }
    }
    Ok(())
}

fn flooded() -> Result<()> {
    let (lan, outside) = lan(Mode::Routed)?;
    let _server = outside.serve(SERVERS[0], &["--address=/quiet.example.net/192.0.2.9"])?;
    let (noisy, quiet) = (lan.station("t0", "")?, lan.station("t1", "")?);
    noisy.join("noisy")?;
    quiet.join("quiet")?;
    noisy.await_reach(GATEWAY)?;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (until, count) = (Arc::clone(&stop), Arc::clone(&sent));
    let flood = noisy.namespace.spawn(move || flood(&until, &count))?;
    // What is in the flood's bucket at first is used up.
    eventually("a flood", LIMIT, || {
        let sent = sent.load(Ordering::Relaxed);
        Ok(if sent > 3_000 { Ok(()) } else { Err(format!("{sent} questions")) })
    })?;
    let asked = (0..20).try_for_each(|number| {
        quiet.resolves(&format!("+tries=1 w{number}.quiet.example.net A"), &["192.0.2.9"])?;
        quiet.resolves("+tries=1 gateway.lab.test A", &[GATEWAY])?;
        quiet.resolves(&format!("+tries=1 +tcp t{number}.quiet.example.net A"), &["192.0.2.9"])
    });
    let during = sent.load(Ordering::Relaxed);
    stop.store(true, Ordering::Release);
    flood.join().ok().context("the flood panicked")??;
    asked?;
    ensure!(during > 5_000, "the flood was of {during} questions only");
    // Who flooded is served again, when it stops.
    eventually("an answer for the one who flooded", LIMIT, || {
        Ok(noisy.resolves("www.example.net A", &["192.0.2.80"]).map_err(|error| format!("{error:#}")))
    })?;
    conservation(&lan.daemon)?;
    Ok(())
}

fn internal() -> Result<()> {
    let host = Netns::new("host")?;
    host.set_resolver(&format!("nameserver {}\n", SERVERS[0]))?;
    let outside = Outside::beside(&host)?;
    let server = outside.serve(SERVERS[0], &[])?;
    let daemon = DaemonOptions::default().netns(&host).start()?;
    daemon.ok(&format!("net add {LAN} {} {WORDS}", Mode::Internal.words()))?;
    let lan = Lan { host, daemon };
    let a = lan.station("t0", "")?;
    let alpha = a.join("alpha")?;
    for over in ["", "+tcp"] {
        let refused = a.dig(&format!("{over} www.example.net A"))?;
        ensure!(refused == Answer::status("REFUSED"), "{refused:?}");
        a.resolves(&format!("{over} alpha.lab.test A"), &[&alpha])?;
    }
    ensure!(!server.log().contains("query["), "the outside was asked: {}", server.log());
    Ok(())
}
