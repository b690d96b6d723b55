//! `egress=user` under a guest that takes what it can get, of a daemon that may have few descriptors: what that costs is
//! bounded, told by counters and given back, and others go on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use frontend::device::{Config, NetDevice};
use frontend::stack::{Guest, GuestConfig};
use frontend::wire::{self, Flow, Mac};
use harness::{DaemonOptions, Need, Netns, Suite, conservation, eventually};

use crate::lan::LIMIT;
use crate::outside::EchoTcp;
use crate::user::{Rig, memory};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("nft")];

/// Descriptors that the daemon may have.
const FILES: usize = 4096;
/// Connections that a guest asks for.
const MANY: u32 = 100_000;
/// Between two looks at how others are.
const ROUND: u32 = 10_000;
/// Frames that are sent before those that came are looked at.
const BURST: u32 = 32;
/// Kibibytes that the daemon may have more at any time: what its table of connections may grow to, and some.
const GROWTH_KIB: u64 = 32 * 1024;
const SERVER: [u8; 4] = [10, 99, 0, 2];
const ECHO: u16 = 4007;
/// SYNs to it are dropped.
const SILENT: u16 = 4008;

pub(crate) fn register(suite: &mut Suite) {
    suite.add_ordinary(
        "by_sockets_a_guest_that_takes_all_it_can_get_takes_nothing_from_others",
        NEEDS,
        greedy,
    );
}

/// A guest that makes its segments itself.
struct Station {
    device: NetDevice,
    address: [u8; 4],
    router: Mac,
    came: Vec<u8>,
}

/// One of its connections.
struct Connection {
    flow: Flow,
    seq: u32,
    ack: u32,
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A TCP segment that came.
struct Segment<'a> {
    /// The source's first.
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    payload: &'a [u8],
}

fn read(frame: &[u8]) -> Option<Segment<'_>> {
    if frame.get(12..14)? != [8, 0] || *frame.get(23)? != 6 {
        return None;
    }
    let half = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    let payload = 34 + usize::from(frame.get(46)? >> 4) * 4;
    let end = 14 + usize::from(half(16)?);
    Some(Segment {
        ports: (half(34)?, half(36)?),
        seq: word(38)?,
        ack: word(42)?,
        flags: *frame.get(47)?,
        payload: frame.get(payload..end)?,
    })
}

impl Station {
    fn new(rig: &Rig, number: u32) -> Result<Self> {
        let socket = rig.daemon.path(&format!("p{number}"));
        rig.daemon.ok(&format!("port add n p{number} vhost-user:{}", socket.display()))?;
        let device = NetDevice::connect(&socket, Config::default().mac_number(number))?;
        let mut guest = Guest::new(device, GuestConfig { seed: number.into(), ..GuestConfig::default() })?;
        let lease = guest.lease(LIMIT)?;
        let router = guest.arp(lease.router.context("no router")?.octets(), LIMIT)?;
        Ok(Self { device: guest.into_device(), address: lease.address.octets(), router, came: Vec::new() })
    }

    fn flow(&self, ports: (u16, u16)) -> Flow {
        let (src_mac, dst_mac) = (self.device.mac(), self.router);
        Flow { src_mac, dst_mac, src: self.address, dst: SERVER, src_port: ports.0, dst_port: ports.1 }
    }

    /// A segment that came, if one did.
    fn next(&mut self) -> Result<Option<&[u8]>> {
        let found = self.device.try_recv(&mut self.came)?;
        Ok(found.map(|_| self.came.as_slice()))
    }

    /// The answer to a segment of the connection: waits for one with a flag of these, or payload.
    fn answer(&mut self, of: &Flow, flags: u8) -> Result<(u32, u32, Vec<u8>)> {
        let ports = (of.dst_port, of.src_port);
        eventually("a segment of a connection", LIMIT, || {
            while let Some(frame) = self.next()? {
                if let Some(came) = read(frame).filter(|came| came.ports == ports) {
                    ensure!(came.flags & RST == 0, "it is reset");
                    if came.flags & flags != 0 || (flags == 0 && !came.payload.is_empty()) {
                        return Ok(Ok((came.seq, came.ack, came.payload.to_vec())));
                    }
                }
            }
            Ok(Err("none came".to_string()))
        })
    }

    fn connect(&mut self, ports: (u16, u16)) -> Result<Connection> {
        let flow = self.flow(ports);
        self.device.send(&wire::tcp_flags(&flow, 100, 0, SYN, &[]))?;
        let (seq, ack, _) = self.answer(&flow, SYN)?;
        ensure!(ack == 101, "the SYN was 100, and {ack} is acknowledged");
        self.device.send(&wire::tcp(&flow, 101, seq + 1, &[]))?;
        Ok(Connection { flow, seq: 101, ack: seq.wrapping_add(1) })
    }

    /// Sends something on a connection and expects it back.
    fn talk(&mut self, connection: &mut Connection, words: &[u8]) -> Result<()> {
        let Connection { flow, seq, ack } = connection;
        self.device.send(&wire::tcp(flow, *seq, *ack, words))?;
        *seq += words.len() as u32;
        let (at, _, got) = self.answer(flow, 0)?;
        ensure!(at == *ack && got == words, "{got:?} at {at}, and not {words:?} at {ack}");
        *ack = ack.wrapping_add(words.len() as u32);
        Ok(self.device.send(&wire::tcp(flow, *seq, *ack, &[]))?)
    }

    /// Answers what came: a connection that somebody accepted is open after that, and counted.
    fn attend(&mut self, open: &mut Vec<Connection>) -> Result<()> {
        let mut answers = Vec::new();
        while let Some(frame) = self.next()? {
            if let Some(came) = read(frame).filter(|came| came.flags & (SYN | ACK) == SYN | ACK) {
                answers.push((came.ports, came.seq, came.ack));
            }
        }
        for ((remote, own), seq, ack) in answers {
            let connection =
                Connection { flow: self.flow((own, remote)), seq: ack, ack: seq.wrapping_add(1) };
            self.device.send(&wire::tcp(&connection.flow, ack, connection.ack, &[]))?;
            open.push(connection);
        }
        Ok(())
    }
}

fn counted(rig: &Rig, name: &str) -> Result<u64> {
    let show = rig.daemon.json("net show n")?;
    Ok(show["resolved"]["counters"][name].as_u64().unwrap_or_default())
}

fn greedy() -> Result<()> {
    let host = Netns::new("host")?;
    // It gives up soon what nobody answers.
    host.run("echo 1 >/proc/sys/net/ipv4/tcp_syn_retries")?;
    let rig = Rig::with(host, "", DaemonOptions::default().files(FILES))?;
    let outside = &rig.outside.namespace;
    let _echo = EchoTcp::start(outside, &format!("0.0.0.0:{ECHO}"))?;
    outside.run(&format!(
        "nft add table inet t; nft add chain inet t input '{{ type filter hook input priority 0; }}'
         nft add rule inet t input tcp dport {SILENT} drop"
    ))?;
    let (mut quiet, mut greedy) = (Station::new(&rig, 1)?, Station::new(&rig, 2)?);
    let mut talk = quiet.connect((2000, ECHO))?;
    quiet.talk(&mut talk, b"before")?;
    let (before, holdings) = (memory(&rig)?, rig.daemon.holdings()?);

    // First connections that somebody accepts and that stay; then such as nobody answers.
    for (to, reason) in [(ECHO, "tcp_quota"), (SILENT, "tcp_opening")] {
        let mut open: Vec<Connection> = Vec::new();
        for number in 0..MANY {
            let syn = (1024 + (number % 64_000) as u16, to);
            // A port that is used again comes with another number.
            let flow = greedy.flow(syn);
            greedy.device.send(&wire::tcp_flags(&flow, number.wrapping_mul(99_991), 0, SYN, &[]))?;
            if number % BURST == 0 {
                greedy.attend(&mut open)?;
            }
            if number % ROUND == 0 {
                let told = || format!("{number} of {MANY} to {to}");
                quiet.talk(&mut talk, b"still").with_context(told)?;
                let (now, held) = (memory(&rig)?, rig.daemon.holdings()?.fds);
                ensure!(held <= FILES && now < before + GROWTH_KIB, "{}: {held}, {now} KiB", told());
            }
        }
        let told = || format!("with {} connections to {to}", open.len());
        eventually("its refusals counted", LIMIT, || {
            let n = counted(&rig, reason)?;
            Ok(if n > u64::from(MANY) / 2 { Ok(()) } else { Err(format!("{n} of {reason}")) })
        })?;
        let held = rig.daemon.holdings()?.fds;
        ensure!(held > holdings.fds + 100, "{}: {held} descriptors, it took none", told());
        // Somebody who has nothing yet gets some: by connections and by datagrams.
        let mut late = quiet.connect((3000 + to, ECHO)).with_context(told)?;
        quiet.talk(&mut late, b"late")?;
        quiet.device.send(&wire::tcp_flags(&late.flow, late.seq, late.ack, RST | ACK, &[]))?;
        // It gives back what it has, and what it did not know of: answers that it had no buffers for come again.
        let told = told();
        eventually("its descriptors given back", Duration::from_secs(30), || {
            greedy.attend(&mut open)?;
            for Connection { flow, seq, ack } in open.drain(..) {
                greedy.device.send(&wire::tcp_flags(&flow, seq, ack, RST | ACK, &[]))?;
            }
            let now = rig.daemon.holdings()?.fds;
            let extra = now.saturating_sub(holdings.fds);
            Ok(if extra <= 2 { Ok(()) } else { Err(format!("{extra} more than {}", holdings.fds)) })
        })
        .context(told)?;
        quiet.talk(&mut talk, b"after")?;
    }
    conservation(&rig.daemon)?;
    Ok(())
}
