//! A guest of the demo: a process of its own, with memory of its own, rings of its own and an IP stack on them.
//!
//! It is started by the demo under the name [`ARG0`], reads one order a line from its standard input, and
//! answers each with one line on its standard output. While it has no order it answers ARP and pings, as a guest
//! does.

use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use anyhow::{Context as _, bail};
use frontend::bulk::{self, BulkConfig};
use frontend::stack::{Guest, GuestConfig};
use frontend::traffic::{Generator, TrafficConfig};
use frontend::wire::Flow;
use frontend::{Config, NetDevice, features};
use serde::{Deserialize, Serialize};

/// The program name that makes this process a guest.
pub(crate) const ARG0: &str = "weft-demo-guest";

const PATIENCE: Duration = Duration::from_secs(20);

/// What a guest is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// The vhost-user socket, or two for a traffic generator.
    pub(super) sockets: Vec<String>,
    /// The number of its MAC address.
    pub(super) number: u32,
    /// Its address, with prefix; empty for a guest that asks for one.
    pub(super) address: String,
    /// Whether it takes checksums and segments undone.
    pub(super) offloads: bool,
}

/// What the demo asks of a guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Whether it is there.
    Hello,
    /// The MAC address of a neighbour.
    Arp(Ipv4Addr),
    /// An address by DHCP.
    Lease,
    /// The address of a name.
    Resolve { server: Ipv4Addr, name: String },
    /// Pings.
    Ping { to: Ipv4Addr, count: u16 },
    /// A TCP transfer to a guest that listens.
    TcpSend { to: Ipv4Addr, port: u16, bytes: u64 },
    /// The other end of it.
    TcpReceive { port: u16 },
    /// Super-frames to another guest.
    BulkSend { to_mac: [u8; 6], bytes: u64 },
    /// The other end of it.
    BulkReceive { from_mac: [u8; 6], bytes: u64 },
    /// As many small frames as go, for so many milliseconds. For generators.
    Blast { millis: u64 },
}

/// What a guest answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Hello {
        mac: [u8; 6],
    },
    Arp {
        mac: [u8; 6],
    },
    Lease {
        address: Ipv4Addr,
        prefix: u8,
        router: Option<Ipv4Addr>,
        name_server: Option<Ipv4Addr>,
    },
    Resolved {
        addresses: Vec<Ipv4Addr>,
    },
    Ping {
        sent: u64,
        received: u64,
        corrupt: u64,
        p50_us: f64,
        p99_us: f64,
        max_us: f64,
    },
    Sent {
        bytes: u64,
        hash: u64,
        seconds: f64,
        frames: u64,
        super_frames: u64,
        whole: bool,
    },
    Received {
        bytes: u64,
        hash: u64,
        seconds: f64,
        frames: u64,
        super_frames: u64,
        largest: u64,
        faults: u64,
        full_checksums: u64,
    },
    Blast {
        sent: u64,
        received: u64,
        unrecognised: u64,
        seconds: f64,
    },
    Failed {
        why: String,
    },
}

/// Runs a guest until its standard input ends.
pub(crate) fn run(setup: &str) -> anyhow::Result<()> {
    let setup: Setup = serde_json::from_str(setup).context("the guest's description")?;
    let (to, orders) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if to.send(line).is_err() {
                return;
            }
        }
    });
    // A receive ring that holds more than a TCP window: the guests' stack is slow to recover from a loss, and
    // a virtual switch does not queue.
    let mut config = Config::default().mac_number(setup.number).queue_size(1024);
    if !setup.offloads {
        config = config.without(features::ALL_TSO | features::CSUM | features::GUEST_CSUM);
    }
    match &setup.sockets[..] {
        [socket] => {
            let device = NetDevice::connect(socket, config)?;
            let guest = Guest::new(
                device,
                GuestConfig { spin: Duration::from_micros(50), ..addressed(&setup.address)? },
            )?;
            serve_guest(guest, &orders)
        }
        [a, b] => {
            let a = NetDevice::connect(a, config.clone())?;
            let b = NetDevice::connect(b, config.mac_number(setup.number + 1))?;
            let mut generator = Generator::new(vec![a, b], TrafficConfig::default())?;
            for order in &orders {
                answer(&blast(&mut generator, &order))?;
            }
            Ok(())
        }
        _ => bail!("a guest has one or two sockets"),
    }
}

fn addressed(address: &str) -> anyhow::Result<GuestConfig> {
    Ok(match address {
        "" => GuestConfig::default(),
        address => GuestConfig::address(address)?,
    })
}

fn answer(answer: &Answer) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn failed(why: impl std::fmt::Display) -> Answer {
    Answer::Failed { why: format!("{why:#}") }
}

fn blast(generator: &mut Generator, order: &str) -> Answer {
    match serde_json::from_str(order) {
        Ok(Order::Hello) => {
            Answer::Hello { mac: generator.devices().next().map(NetDevice::mac).unwrap_or_default() }
        }
        Ok(Order::Blast { millis }) => match generator.run(Duration::from_millis(millis)) {
            Ok(r) => Answer::Blast {
                sent: r.sent(),
                received: r.received(),
                unrecognised: r.unrecognised(),
                seconds: r.elapsed.as_secs_f64(),
            },
            Err(e) => failed(e),
        },
        Ok(other) => failed(format_args!("a generator does not do {other:?}")),
        Err(e) => failed(e),
    }
}

fn serve_guest(mut guest: Guest, orders: &Receiver<String>) -> anyhow::Result<()> {
    loop {
        let mut next = orders.try_recv();
        if next == Err(TryRecvError::Empty) {
            guest.serve(Duration::from_secs(1), || {
                next = orders.try_recv();
                next != Err(TryRecvError::Empty)
            })?;
        }
        match next {
            Ok(line) => {
                let done = match serde_json::from_str(&line) {
                    Ok(order) => obey(&mut guest, order).unwrap_or_else(failed),
                    Err(e) => failed(e),
                };
                answer(&done)?;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

fn obey(guest: &mut Guest, order: Order) -> anyhow::Result<Answer> {
    let micros = |d: Duration| d.as_secs_f64() * 1e6;
    Ok(match order {
        Order::Hello => Answer::Hello { mac: guest.device().mac() },
        Order::Arp(to) => Answer::Arp { mac: guest.arp(to.octets(), PATIENCE)? },
        Order::Lease => {
            let r = guest.lease(PATIENCE)?;
            let name_server = r.name_servers.first().copied();
            Answer::Lease { address: r.address, prefix: r.prefix, router: r.router, name_server }
        }
        Order::Resolve { server, name } => {
            Answer::Resolved { addresses: guest.resolve(server, &name, PATIENCE)? }
        }
        Order::Ping { to, count } => {
            let r = guest.ping(to.into(), count, 56, Duration::ZERO, Duration::from_secs(1))?;
            Answer::Ping {
                sent: r.sent,
                received: r.received,
                corrupt: r.corrupt,
                p50_us: micros(r.rtt.percentile(50.0)),
                p99_us: micros(r.rtt.percentile(99.0)),
                max_us: micros(r.rtt.max()),
            }
        }
        Order::TcpSend { to, port, bytes } => {
            let r = guest.tcp_send((to, port).into(), bytes, 1, PATIENCE)?;
            let seconds = r.elapsed.as_secs_f64();
            Answer::Sent {
                bytes: r.bytes,
                hash: r.hash,
                seconds,
                frames: 0,
                super_frames: 0,
                whole: r.is_whole(),
            }
        }
        Order::TcpReceive { port } => {
            let r = guest.tcp_receive(port, PATIENCE)?;
            Answer::Received {
                bytes: r.bytes,
                hash: r.hash,
                seconds: r.elapsed.as_secs_f64(),
                frames: 0,
                super_frames: 0,
                largest: 0,
                faults: 0,
                full_checksums: 0,
            }
        }
        Order::BulkSend { to_mac, bytes } => {
            let flow = Flow::between(guest.device().mac(), to_mac);
            let r = bulk::send(guest.device_mut(), &BulkConfig::new(flow, bytes), PATIENCE)?;
            let seconds = r.elapsed.as_secs_f64();
            Answer::Sent {
                bytes: r.bytes,
                hash: r.hash,
                seconds,
                frames: r.frames,
                super_frames: r.super_frames,
                whole: true,
            }
        }
        Order::BulkReceive { from_mac, bytes } => {
            let flow = Flow::between(from_mac, guest.device().mac());
            let r = bulk::receive(guest.device_mut(), &BulkConfig::new(flow, bytes), PATIENCE)?;
            Answer::Received {
                bytes: r.bytes,
                hash: r.hash,
                seconds: r.elapsed.as_secs_f64(),
                frames: r.frames,
                super_frames: r.super_frames,
                largest: r.largest as u64,
                faults: r.bad + r.out_of_sequence + r.violations,
                full_checksums: r.full_checksums,
            }
        }
        Order::Blast { .. } => bail!("a guest with an IP stack makes no plain traffic"),
    })
}
