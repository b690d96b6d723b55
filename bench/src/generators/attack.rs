//! A hostile guest and its accomplice, as a process of its own: what they cost the switch, and the guests beside them
//! nothing.
//!
//! The attacker's ring is written once: every entry of the available ring names the same chain. To offer a ring full of it
//! again, the available index moves on, once in [`STEP`]: the process takes next to no time of its processor, which the
//! generator has. So what the pair beside loses is the switch's doing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use frontend::memory::Layout;
use frontend::raw::{Desc, RingAccess};
use frontend::wire::{self, Flow};
use frontend::{Config, NetDevice, VnetHeader, device, features as f};

use crate::guard::{Job, Line};

/// The verb by which this program starts itself so.
pub(crate) const VERB: &str = "attack";

/// How often the attacker moves its ring on.
const STEP: Duration = Duration::from_micros(500);
/// Chains that it offers at once: some 8 million a second.
const RING: u16 = 4096;
/// For connecting.
const LIMIT: Duration = Duration::from_secs(20);
/// What it says when it has begun.
const BEGUN: &str = "attacking";

/// What the two do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Attack {
    /// Nothing: they are there.
    None,
    /// The accomplice has no receive buffers; it is sent 10,000 frames a second.
    Stalled,
    /// Frames shorter than their headers.
    Runts,
    /// Chains of 1,000 descriptors of one byte.
    Chains,
    /// Segments of 50 KB that are to be cut into some 500, for an accomplice that takes none.
    Segments,
    /// The accomplice's receive buffers have one byte.
    Bytes,
}

impl Attack {
    /// All, with the peaceful one first.
    pub(crate) const ALL: [Attack; 6] =
        [Attack::None, Attack::Stalled, Attack::Runts, Attack::Chains, Attack::Segments, Attack::Bytes];

    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Attack::None => "none",
            Attack::Stalled => "stalled",
            Attack::Runts => "runts",
            Attack::Chains => "chains",
            Attack::Segments => "segments",
            Attack::Bytes => "bytes",
        }
    }
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The process's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The attacker's socket and the accomplice's.
    #[arg(required = true, num_args = 2)]
    sockets: Vec<PathBuf>,
    /// What they do.
    #[arg(long, value_enum)]
    attack: Attack,
}

/// Begins an attack, which goes on until the job is dropped.
///
/// # Errors
/// The process does not start, or the guests do not connect.
pub(crate) fn begin(dir: &Path, cpu: usize, sockets: &[PathBuf], attack: Attack) -> Result<(Job, Line)> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut line = Line::new(own.display().to_string()).arg(VERB).cpu(cpu);
    line = line.words(&format!("--attack {attack}"));
    for socket in sockets {
        line = line.arg(socket.display().to_string());
    }
    let mut job = Job::start(&line, &dir.join("attack.log"))?;
    job.expect(BEGUN, LIMIT, |log| log.contains(BEGUN).then_some(()))?;
    Ok((job, line))
}

/// The process: attacks until it is ended.
///
/// # Errors
/// A guest cannot be set up.
pub(crate) fn run(options: &Options) -> Result<()> {
    let [attacker, accomplice] = options.sockets.as_slice() else { bail!("two sockets are needed") };
    let offloads = f::CSUM | f::HOST_TSO4;
    let config = Config {
        features: f::VERSION_1 | f::MRG_RXBUF | offloads,
        queue_size: RING,
        rx_buffer_size: Some(2048),
        tx_buffer_size: Some(2048),
        memory: Some(Layout::single(64 << 20)),
        timeout: LIMIT,
        ..Config::default()
    };
    let mut attacker = NetDevice::connect(attacker, config.mac_number(0xbad))?;
    let plain = Config {
        features: f::VERSION_1 | f::MRG_RXBUF,
        rx_buffer_size: Some(if options.attack == Attack::Bytes { 1 } else { 2048 }),
        timeout: LIMIT,
        ..Config::default()
    };
    let plain = plain.mac_number(0xbae);
    let mut accomplice = match options.attack {
        Attack::Stalled => NetDevice::connect_without_buffers(accomplice, plain)?,
        _ => NetDevice::connect(accomplice, plain)?,
    };
    for guest in [&mut attacker, &mut accomplice] {
        let mac = guest.mac();
        guest.send(&wire::arp_request(mac, [10, 0, 0, 3], [10, 0, 0, 3]))?;
        guest.pairs_mut()[0].tx.drain(LIMIT)?;
    }
    let ring = attacker.ring_access(1)?;
    let chain = chain(options.attack, &attacker, &accomplice);
    let at_once = match options.attack {
        Attack::None => 0,
        Attack::Stalled => 5,
        _ => ring.size(),
    };
    lay(&mut attacker, &ring, &chain)?;
    println!("{BEGUN}");
    let mut frame = Vec::new();
    loop {
        // Everything that was taken is offered again; the first time, everything.
        ring.set_avail_idx(ring.used_idx().wrapping_add(at_once));
        if at_once > 0 && ring.used_flags() & 1 == 0 {
            ring.kick();
        }
        // What arrives is taken, so that it is the switch which is measured, and no full ring.
        if options.attack != Attack::Stalled && options.attack != Attack::Bytes {
            while accomplice.try_recv(&mut frame)?.is_some() {}
        }
        while attacker.try_recv(&mut frame)?.is_some() {}
        std::thread::sleep(STEP);
    }
}

/// The attacker's frame with its header, and the length of the descriptors that it comes in.
fn chain(attack: Attack, attacker: &NetDevice, accomplice: &NetDevice) -> (Vec<u8>, usize) {
    let flow = Flow::between(attacker.mac(), accomplice.mac());
    let with = |header: VnetHeader, frame: &[u8]| [&header.bytes()[..attacker.header_len()], frame].concat();
    let small = with(VnetHeader::PLAIN, &wire::padded(wire::udp(&flow, b"hello")));
    match attack {
        Attack::None | Attack::Stalled | Attack::Bytes => (small.clone(), small.len()),
        Attack::Runts => (small[..attacker.header_len() + 10].to_vec(), 2048),
        Attack::Chains => {
            let long = with(VnetHeader::PLAIN, &wire::udp(&flow, &[0x55; 946]));
            (long, 1)
        }
        Attack::Segments => {
            let mut frame = wire::tcp(&flow, 1, 1, &[0x55; 50_000]);
            let (start, offset) = wire::prepare_partial(&mut frame).unwrap_or_default();
            let header = VnetHeader {
                gso_type: device::GSO_TCPV4,
                gso_size: 100,
                hdr_len: 54,
                ..VnetHeader::partial_csum(start, offset)
            };
            let whole = with(header, &frame);
            let len = whole.len();
            (whole, len)
        }
    }
}

/// Writes a chain of descriptors of `each` bytes for `bytes`, and has every entry of the available ring name it.
fn lay(attacker: &mut NetDevice, ring: &RingAccess, (bytes, each): &(Vec<u8>, usize)) -> Result<()> {
    let (gpa, window) = attacker.memory_mut().alloc_window(bytes.len() as u64, 64)?;
    window.write(0, bytes);
    let pieces: Vec<&[u8]> = bytes.chunks(*each).collect();
    let mut at = gpa;
    for (i, piece) in pieces.iter().enumerate() {
        let more = u16::from(i + 1 < pieces.len());
        let number = u16::try_from(i).context("a chain longer than the ring")?;
        ring.set_desc(number, Desc::new(at, piece.len() as u32, more, number + more));
        at += piece.len() as u64;
    }
    (0..ring.size()).for_each(|slot| ring.set_avail_entry(slot, 0));
    // Nobody is to say that a chain was used.
    ring.set_avail_flags(1);
    Ok(())
}
