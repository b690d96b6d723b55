//! A kernel's end of the demo's networks: an address on an interface, and a TCP server of the kernel's own stack behind
//! it, in the network namespace that the demo's daemon runs in. The interface is a network's host interface, or one
//! half of a veth pair whose other half is a network's uplink.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use frontend::hash::StreamHash;
use futures_util::TryStreamExt as _;
use rtnetlink::{LinkUnspec, LinkVeth};

use super::guest::Answer;

/// The program name that makes this process the kernel's end.
pub(crate) const ARG0: &str = "weft-demo-kernel";

/// The loopback interface. It has its address as soon as it is switched on, which it is but in a new namespace.
pub(super) const LOOPBACK: &str = "lo";

const PATIENCE: Duration = Duration::from_secs(20);

/// Gives `interface` the address (`OTHER+INTERFACE`: after making the pair), says so, takes one TCP connection on `port`, confirms what came, says so.
pub(crate) fn run(interface: &str, address: &str, prefix: u8, port: u16) -> anyhow::Result<()> {
    let address: Ipv4Addr = address.parse().context("the address")?;
    if interface != LOOPBACK || TcpListener::bind((address, 0)).is_err() {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(set_address(interface, address, prefix))?;
    }
    let listener = TcpListener::bind(SocketAddr::from((address, port))).context("listening")?;
    say(&Answer::Hello { mac: [0; 6] })?;
    let (mut stream, _) = listener.accept().context("waiting for the guest")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut hash = StreamHash::new();
    let mut buffer = vec![0; 1 << 20];
    let mut started = None;
    let mut ended = Instant::now();
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        started.get_or_insert_with(Instant::now);
        hash.update(&buffer[..n]);
        ended = Instant::now();
    }
    let confirmed = (u128::from(hash.finish()) << 64) | u128::from(hash.len());
    stream.write_all(&confirmed.to_le_bytes())?;
    let seconds = started.map_or(0.0, |s| (ended - s).as_secs_f64());
    say(&Answer::Received {
        bytes: hash.len(),
        hash: hash.finish(),
        seconds,
        frames: 0,
        super_frames: 0,
        largest: 0,
        faults: 0,
        full_checksums: 0,
    })
}

fn say(answer: &Answer) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

async fn set_address(interface: &str, address: Ipv4Addr, prefix: u8) -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().context("asking the kernel")?;
    tokio::spawn(connection);
    let interface = match interface.split_once('+') {
        Some((other, interface)) => {
            let pair = LinkVeth::new(other, interface).up().build();
            handle.link().add(pair).execute().await.context("making a veth pair")?;
            interface
        }
        None => interface,
    };
    let mut links = handle.link().get().match_name(interface.to_owned()).execute();
    let link = links.try_next().await?.with_context(|| format!("there is no interface {interface}"))?;
    let up = LinkUnspec::new_with_index(link.header.index).up().build();
    handle.link().set(up).execute().await.with_context(|| format!("switching {interface} on"))?;
    if interface == LOOPBACK {
        return Ok(());
    }
    handle
        .address()
        .add(link.header.index, address.into(), prefix)
        .execute()
        .await
        .with_context(|| format!("giving {interface} the address {address}/{prefix}"))
}
