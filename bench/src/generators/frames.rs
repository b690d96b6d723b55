//! Frames into an interface of a network namespace, out of one, or both, as a process of its own: one thread.
//!
//! To an interface it sends by a packet socket, 64 frames in a system call, as the stack of a namespace hands frames to its
//! driver and cheaper than the stack makes them. To and from a vhost-user device it has a ring, as a guest. What arrives at
//! a device is counted here; what arrives at an interface is counted by the interface ([`received`]), because a socket
//! there would take time of the switch's processor, on which the kernel takes the frames in.
//!
//! The EtherType is one for experiments (IEEE 802, 88B5): a stack that gets such a frame drops it at once.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use frontend::memory::Layout;
use frontend::{Config, NetDevice, VnetHeader, features as f, wire};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, bind, socket};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, send, sendmmsg};
use serde::{Deserialize, Serialize};

use super::{Measured, RING_SIZE};
use crate::guard::interrupt::pause;
use crate::guard::{Job, Line, Netns, own_wait, run};
use crate::measures::{LOSS, RATE};

/// The verb by which this program starts itself as the generator.
pub(crate) const VERB: &str = "frames";

/// Not measured, first: the switch learns, caches fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// Sent on after the measured time, so that whoever counts elsewhere ends first.
const AFTER: Duration = Duration::from_millis(500);
/// For connecting, and for the end.
const SLACK: Duration = Duration::from_secs(20);
/// Frames in a system call, or in a ring's burst.
pub(super) const BURST: usize = 64;
/// The device's address.
const DEVICE: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE: u16 = 0x88b5;
/// What it prints when it begins.
const BEGINS: &str = "begins";

/// Where frames are sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum From {
    /// The interface, by a packet socket.
    Interface,
    /// The vhost-user device.
    Device,
}

/// The generator's own command line.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// An interface of this namespace.
    #[arg(long)]
    interface: String,
    /// A switch's vhost-user socket.
    #[arg(long)]
    device: Option<PathBuf>,
    /// Who sends.
    #[arg(long)]
    from: From,
    /// The destination's address [default: the other one of interface and device].
    #[arg(long, value_parser = parse_mac)]
    to: Option<[u8; 6]>,
    /// Length of the frames, bytes without check sequence.
    #[arg(long)]
    size: u16,
    /// How long is measured.
    #[arg(long)]
    seconds: u64,
}

/// What the process tells.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    /// Frames that were sent in a second: that the interface's driver was given, or that went into the ring.
    sent: f64,
    /// Frames that the device received in a second.
    received: f64,
    /// As [`Measured::disturbed`].
    disturbed: Option<f64>,
}

pub(super) fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| format!("'{text}' is no address"))
}

/// Where the generator runs, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream<'a> {
    /// For logs.
    pub(crate) dir: &'a Path,
    /// The generator's processor.
    pub(crate) cpu: usize,
    /// Length of the frames, bytes without check sequence.
    pub(crate) size: u16,
    /// How long is measured.
    pub(crate) seconds: u64,
}

impl Stream<'_> {
    /// From an interface of one namespace to an interface of another. The switch must know where the receiver is.
    ///
    /// # Errors
    /// The generator fails, or nothing arrives.
    pub(crate) fn between(&self, from: (&Netns, &str), to: (&Netns, &str)) -> Result<Measured> {
        let mac = address(to.0, to.1)?;
        let line = self.line(from, From::Interface).arg("--to").arg(mac);
        self.measure(line, Some(to))
    }

    /// From a vhost-user device to an interface.
    ///
    /// # Errors
    /// As for [`Stream::between`].
    pub(crate) fn guest_to_tap(&self, device: &Path, to: (&Netns, &str)) -> Result<Measured> {
        let line = self.line(to, From::Device).arg("--device").arg(device.display().to_string());
        self.measure(line, Some(to))
    }

    /// From an interface to a vhost-user device.
    ///
    /// # Errors
    /// As for [`Stream::between`].
    pub(crate) fn tap_to_guest(&self, from: (&Netns, &str), device: &Path) -> Result<Measured> {
        let line = self.line(from, From::Interface).arg("--device").arg(device.display().to_string());
        self.measure(line, None)
    }

    fn line(&self, (netns, interface): (&Netns, &str), from: From) -> Line {
        let own = std::env::current_exe().map_or_else(|_| "bench".into(), |path| path.display().to_string());
        let from = match from {
            From::Interface => "interface",
            From::Device => "device",
        };
        let words = format!(
            "{VERB} --interface {interface} --from {from} --size {} --seconds {}",
            self.size, self.seconds
        );
        Line::new(own).words(&words).cpu(self.cpu).netns(netns)
    }

    /// Runs the process; the frames are counted at the interface `to`, else by the process.
    fn measure(&self, line: Line, to: Option<(&Netns, &str)>) -> Result<Measured> {
        let mut job = Job::start(&line, &self.dir.join("frames.log"))?;
        job.expect("first frame", SLACK, |log| log.contains(BEGINS).then_some(()))?;
        let counted = match to {
            Some(end) => {
                pause(WARM_UP)?;
                let (first, began) = (received(end)?, Instant::now());
                pause(Duration::from_secs(self.seconds))?;
                let (last, ended) = (received(end)?, Instant::now());
                Some(last.saturating_sub(first) as f64 / (ended - began).as_secs_f64())
            }
            None => None,
        };
        job.finish(WARM_UP + Duration::from_secs(self.seconds) + AFTER + SLACK)?;
        let log = job.log();
        let told: Told = serde_json::from_str(log.lines().last().unwrap_or_default())
            .with_context(|| format!("the generator printed {log}"))?;
        let rate = counted.unwrap_or(told.received);
        ensure!(rate > 0.0, "no frame came through");
        let loss = (1.0 - rate / told.sent.max(1.0)).max(0.0);
        let mut measured = Measured::new().with(&RATE, rate).with(&LOSS, loss).by(line);
        measured.disturbed = told.disturbed;
        Ok(measured)
    }
}

/// Frames that an interface has received so far.
fn received((netns, interface): (&Netns, &str)) -> Result<u64> {
    let link = link(netns, interface)?;
    link.pointer("/stats64/rx/packets").and_then(serde_json::Value::as_u64).context("no count of frames")
}

/// An interface's address.
fn address(netns: &Netns, interface: &str) -> Result<String> {
    let link = link(netns, interface)?;
    Ok(link.get("address").and_then(serde_json::Value::as_str).context("no address")?.to_string())
}

fn link(netns: &Netns, interface: &str) -> Result<serde_json::Value> {
    let line = Line::new("ip").arg("-n").arg(netns.name()).words("-s -j link show dev").arg(interface);
    let text = run(&line, SLACK)?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text).context("what ip printed")?;
    links.into_iter().next().context("no such interface")
}

/// The generator's process: prints one line of JSON at the end.
///
/// # Errors
/// Interface or device cannot be opened, or break.
pub(crate) fn process(options: &Options) -> Result<()> {
    let wire = Interface::open(&options.interface)?;
    let mut device = options.device.as_ref().map(|path| NetDevice::connect(path, config())).transpose()?;
    // Both tell the switch where they are; a bridge would flood what is for nobody that it knows.
    wire.announce()?;
    if let Some(device) = &mut device {
        device.send(&frame(BROADCAST, DEVICE, options.size))?;
    }
    let (from, to) = match options.from {
        From::Interface => (wire.mac, options.to.unwrap_or(DEVICE)),
        From::Device => (DEVICE, options.to.unwrap_or(wire.mac)),
    };
    let frame = frame(to, from, options.size);
    println!("{BEGINS}");
    flow(&wire, device.as_mut(), options.from, &frame, WARM_UP)?;
    let measured = Duration::from_secs(options.seconds);
    let mut told = flow(&wire, device.as_mut(), options.from, &frame, measured)?;
    if options.from == From::Device || device.is_none() {
        flow(&wire, device.as_mut(), options.from, &frame, AFTER)?;
    }
    told.disturbed = own_wait();
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

fn config() -> Config {
    Config {
        features: f::VERSION_1 | f::EVENT_IDX | f::MRG_RXBUF,
        required: f::VERSION_1,
        queue_size: RING_SIZE,
        rx_buffer_size: Some(2048),
        tx_buffer_size: Some(2048),
        memory: Some(Layout::single(16 << 20).with_hugetlb()),
        timeout: Duration::from_secs(10),
        ..Config::default()
    }
    .mac(DEVICE)
}

fn frame(to: [u8; 6], from: [u8; 6], size: u16) -> Vec<u8> {
    let payload = usize::from(size).saturating_sub(wire::ETH_LEN);
    wire::ethernet(from, to, ETHERTYPE, &vec![0x5a; payload])
}

/// Sends for a while, and takes what comes to the device.
fn flow(
    wire: &Interface,
    mut device: Option<&mut NetDevice>,
    from: From,
    frame: &[u8],
    time: Duration,
) -> Result<Told> {
    let (mut sent, mut received) = (0u64, 0u64);
    let mut taken = Vec::new();
    let began = Instant::now();
    let mut now = began;
    while now - began < time {
        match (from, device.as_deref_mut()) {
            (From::Interface, _) => sent += wire.burst(frame)?,
            (From::Device, Some(device)) => sent += push(device, frame)?,
            (From::Device, None) => bail!("no device to send from"),
        }
        if let Some(device) = device.as_deref_mut() {
            while device.try_recv(&mut taken)?.is_some() {
                received += u64::from(taken.len() == frame.len() && taken[12..14] == frame[12..14]);
            }
        }
        now = Instant::now();
    }
    let seconds = (now - began).as_secs_f64();
    Ok(Told { sent: sent as f64 / seconds, received: received as f64 / seconds, disturbed: None })
}

/// Puts a burst into the device's ring, as far as there is room.
fn push(device: &mut NetDevice, frame: &[u8]) -> Result<u64> {
    let queue = &mut device.pairs_mut()[0].tx;
    let mut sent = 0;
    while sent < BURST as u64 && queue.push(&VnetHeader::PLAIN, &[frame])? {
        sent += 1;
    }
    queue.flush();
    if sent == 0 {
        std::hint::spin_loop();
    }
    Ok(sent)
}

/// A packet socket that sends at one interface.
pub(super) struct Interface {
    fd: OwnedFd,
    mac: [u8; 6],
}

impl Interface {
    pub(super) fn open(name: &str) -> Result<Self> {
        let addresses = getifaddrs().context("looking for interfaces")?;
        let found = addresses
            .filter(|entry| entry.interface_name == name)
            .find_map(|entry| entry.address?.as_link_addr().copied());
        let Some(link) = found else { bail!("there is no interface {name} here") };
        // Of no protocol: it receives nothing.
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .context("opening a packet socket")?;
        bind(fd.as_raw_fd(), &link).with_context(|| format!("binding to {name}"))?;
        let mac = link.addr().with_context(|| format!("{name} has no address"))?;
        Ok(Interface { fd, mac })
    }

    fn announce(&self) -> Result<()> {
        let frame = frame(BROADCAST, self.mac, 60);
        send(&self.fd, &frame, SendFlags::empty()).context("sending")?;
        Ok(())
    }

    /// The interface's address.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Sends a burst of copies; how many it offered to the interface, which may have dropped them.
    fn burst(&self, frame: &[u8]) -> Result<u64> {
        self.offer(&[frame; BURST])?;
        Ok(BURST as u64)
    }

    /// Offers frames to the interface, which may drop them, 64 in a system call unless it refuses one.
    pub(super) fn offer(&self, frames: &[&[u8]]) -> Result<()> {
        for frames in frames.chunks(BURST) {
            let mut at = 0;
            while let Some(left) = frames.get(at..).filter(|left| !left.is_empty()) {
                at += self.offer_once(left)?;
            }
        }
        Ok(())
    }

    /// One system call; how many of at most 64 frames were offered, at least one.
    fn offer_once(&self, frames: &[&[u8]]) -> Result<usize> {
        let pieces: Vec<[IoSlice<'_>; 1]> =
            frames.iter().take(BURST).map(|frame| [IoSlice::new(frame)]).collect();
        let mut none: [SendAncillaryBuffer<'_, '_, '_>; BURST] = std::array::from_fn(|_| Default::default());
        let mut messages: Vec<_> =
            pieces.iter().zip(&mut none).map(|(pieces, none)| MMsgHdr::new(pieces, none)).collect();
        match sendmmsg(&self.fd, &mut messages, SendFlags::empty()) {
            Ok(sent) => Ok(sent.max(1)),
            // The interface's queue refused one: it was offered.
            Err(Errno::NOBUFS) => Ok(1),
            Err(error) => Err(error).context("sending to the interface"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_length_that_was_asked_for() {
        let frame = frame(BROADCAST, DEVICE, 64);
        assert_eq!(frame.len(), 64);
        assert_eq!(frame[12..14], ETHERTYPE.to_be_bytes());
    }

    #[test]
    fn addresses_are_parsed_whole_or_not_at_all() {
        assert_eq!(parse_mac("52:54:00:00:00:01"), Ok(DEVICE));
        for wrong in ["", "52:54:00:00:00", "52:54:00:00:00:01:02", "52:54:00:00:00:zz"] {
            assert!(parse_mac(wrong).is_err(), "{wrong}");
        }
    }
}
