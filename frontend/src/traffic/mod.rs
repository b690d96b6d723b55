//! The benchmark's generator: one thread drives two devices or more, as fast as the peer takes frames or at a rate.
//!
//! Each transmit buffer is a frame written once; sending it again changes its sequence number, its time stamp and their
//! check word, sixteen bytes in one cache line. What can be written once in a ring is. Received frames are fetched
//! toward the processor together, recognised by the check word and the frame's last bytes, counted, put in order, and
//! their buffers go back in batches; of every 64th the whole payload is compared. Nothing is allocated while it runs.
//!
//! The payload stands behind an Ethernet/IPv4/UDP header (TCP for segmentation offload), so that a switch that looks
//! into frames finds sound ones:
//!
//! | offset in the payload | field |
//! |---|---|
//! | 0 | sequence number, 48 bits, and the sender's number |
//! | 8 | time stamp, nanoseconds modulo 2^32 |
//! | 12 | check word over those, the receiver's number and the frame's length |
//! | 16 | a fixed pattern |
//!
//! `frame` is that layout, `end` a device with what it sends and receives, `stations` the addresses, `search` the
//! search for the highest rate without loss.

mod end;
mod frame;
mod report;
mod search;
mod stations;

use std::time::{Duration, Instant};

use crate::device::NetDevice;
use crate::error::{Error, Result};
use crate::histogram::Histogram;
use end::End;
use frame::{TCP_HEADERS, WORDS};
pub use report::{PortReport, Report};
pub use search::Found;
pub use stations::Stations;

/// The frames' lengths, bytes without check sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All of one length, 60 to 65,549.
    Fixed(usize),
    /// These in turn.
    Mix(Vec<usize>),
}

impl Sizes {
    /// The "Internet mix": seven of 64 bytes, four of 594, one of 1518, each less the check sequence's four.
    #[must_use]
    pub fn imix() -> Self {
        Sizes::Mix(vec![60, 590, 60, 590, 60, 1514, 60, 590, 60, 590, 60, 60])
    }

    fn of(&self, slot: usize) -> usize {
        match self {
            Sizes::Fixed(n) => *n,
            Sizes::Mix(list) => list.get(slot % list.len().max(1)).copied().unwrap_or(60),
        }
    }

    fn shortest(&self) -> usize {
        match self {
            Sizes::Fixed(n) => *n,
            Sizes::Mix(list) => list.iter().copied().min().unwrap_or(0),
        }
    }

    fn longest(&self) -> usize {
        match self {
            Sizes::Fixed(n) => *n,
            Sizes::Mix(list) => list.iter().copied().max().unwrap_or(0),
        }
    }
}

/// Which device sends to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The first and the second to each other, the third and the fourth, and so on.
    Pairs,
    /// The first to the second, the third to the fourth, and so on.
    OneWay,
    /// Each to the next and to the one before, by turns.
    Chain,
    /// The first to all others, by broadcast.
    Broadcast,
}

impl Pattern {
    /// To whom `port` of `count` has frames, by turns.
    fn destinations(self, port: usize, count: usize) -> Vec<usize> {
        match self {
            Pattern::Pairs | Pattern::OneWay => vec![port ^ 1],
            Pattern::Chain => {
                let before = port.checked_sub(1);
                let after = Some(port + 1).filter(|&next| next < count);
                before.into_iter().chain(after).collect()
            }
            Pattern::Broadcast if port == 0 => vec![end::EVERYBODY],
            Pattern::Broadcast => Vec::new(),
        }
    }

    fn sends(self, port: usize) -> bool {
        match self {
            Pattern::Pairs | Pattern::Chain => true,
            Pattern::OneWay => port.is_multiple_of(2),
            Pattern::Broadcast => port == 0,
        }
    }
}

/// What traffic to make.
#[derive(Clone, Debug)]
pub struct TrafficConfig {
    /// The frames' lengths.
    pub sizes: Sizes,
    /// Frames put into a ring at once: 1 to 64.
    pub burst: usize,
    /// Who sends to whom.
    pub pattern: Pattern,
    /// Addresses at each device.
    pub stations: Stations,
    /// How many of the last devices neither send nor are sent to. The pattern is that of the others.
    pub resting: usize,
    /// Frames per second of all senders together; `None` for as many as go.
    pub rate: Option<f64>,
    /// Whether every received byte is compared.
    pub verify: bool,
    /// Makes the frames TCP (of 70 bytes at least) with partial checksums, and those with more payload than this
    /// super-frames to be cut so. The devices must have `CSUM`, `GUEST_CSUM`, `HOST_TSO4` and `GUEST_TSO4`: the
    /// generator recognises whole frames only.
    pub gso_size: Option<u16>,
    /// How long missing frames are waited for, counted from the last that came.
    pub quiet: Duration,
}

impl Default for TrafficConfig {
    fn default() -> Self {
        TrafficConfig {
            sizes: Sizes::Fixed(64),
            burst: 32,
            pattern: Pattern::Pairs,
            stations: Stations::ONE,
            resting: 0,
            rate: None,
            verify: false,
            gso_size: None,
            quiet: Duration::from_millis(100),
        }
    }
}

/// The generator: devices, of each the first queue pair.
#[derive(Debug)]
pub struct Generator {
    ends: Vec<End>,
    resting: Vec<NetDevice>,
    config: TrafficConfig,
    epoch: Instant,
}

impl Generator {
    /// Takes the devices, which serve nothing else from then on, and writes the frames.
    ///
    /// # Errors
    /// [`Error::Config`] for lengths that do not fit the devices' buffers, too few devices for the pattern, or devices
    /// that are in use; [`Error::Ring`].
    pub fn new(mut devices: Vec<NetDevice>, config: TrafficConfig) -> Result<Self> {
        let shortest = if config.gso_size.is_some() { TCP_HEADERS + WORDS } else { 60 };
        if config.sizes.longest() > 65_549 || config.sizes.shortest() < shortest {
            return Err(Error::Config(format!("frames are {shortest} to 65549 bytes long")));
        }
        if config.burst == 0 || config.burst > end::BURST_MAX {
            return Err(Error::Config(format!("a burst has 1 to {} frames", end::BURST_MAX)));
        }
        let active = devices.len().saturating_sub(config.resting);
        let pairs = matches!(config.pattern, Pattern::Pairs | Pattern::OneWay);
        if !(2..=60_000).contains(&active) || (pairs && !active.is_multiple_of(2)) {
            return Err(Error::Config(format!(
                "{active} devices cannot send to each other as {:?}",
                config.pattern
            )));
        }
        config.stations.check()?;
        let resting = devices.split_off(active);
        let macs: Vec<[u8; 6]> = devices.iter().map(NetDevice::mac).collect();
        let ends = devices.into_iter().enumerate();
        let ends =
            ends.map(|(port, device)| End::new(device, port, &macs, &config)).collect::<Result<_>>()?;
        Ok(Generator { ends, resting, config, epoch: Instant::now() })
    }

    /// Sends a frame from each station of each device, so that a switch knows where all are, and waits for them as far as
    /// they come.
    ///
    /// # Errors
    /// What broke a device.
    pub fn learn(&mut self) -> Result<()> {
        let mut report = Report::new(self.ends.len(), self.copies());
        for at in 0..self.ends.len() {
            let mut station = 0;
            while station < self.config.stations.count && self.ends[at].can_send() {
                let n = (self.config.stations.count - station).min(self.config.burst as u32);
                self.ends[at].name_stations(station);
                let sent = self.ends[at].send(n as usize, 0, &mut report.ports[at])?;
                station += sent as u32;
                let mut last = Instant::now();
                while last.elapsed() < LEARN_WAIT && (report.lost() > 0 || sent == 0) {
                    if self.receive(0, &mut report)? > 0 {
                        last = Instant::now();
                    } else if sent == 0 {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
            self.ends[at].draw_stations();
        }
        Ok(())
    }

    fn copies(&self) -> u64 {
        if self.config.pattern == Pattern::Broadcast { self.ends.len() as u64 - 1 } else { 1 }
    }

    #[inline]
    fn receive(&mut self, stamp: u32, report: &mut Report) -> Result<usize> {
        let mut moved = 0;
        for (end, report) in self.ends.iter_mut().zip(&mut report.ports) {
            moved += end.receive(self.config.burst, stamp, report)?;
        }
        Ok(moved)
    }

    /// Offers so many frames per second from now on, all senders together; `None` for as many as go.
    pub fn set_rate(&mut self, rate: Option<f64>) {
        self.config.rate = rate;
    }

    /// Sends and receives for `duration`, then waits for what is under way. May be called again.
    ///
    /// # Errors
    /// What broke a device.
    pub fn run(&mut self, duration: Duration) -> Result<Report> {
        let mut report = Report::new(self.ends.len(), self.copies());
        let pattern = self.config.pattern;
        let firsts: Vec<u64> = self.ends.iter().map(End::next_seq).collect();
        self.ends.iter_mut().for_each(|end| end.begin(&firsts));
        let senders = (0..self.ends.len()).filter(|&port| pattern.sends(port)).count();
        let each = self.config.rate.map(|rate| rate / senders as f64);
        let started = Instant::now();
        let mut now = started;
        while now - started < duration {
            // One look at the clock for a round of bursts: a stamp is a burst's age wrong at most.
            let stamp = (now - self.epoch).as_nanos() as u32;
            let mut moved = self.receive(stamp, &mut report)?;
            let due = each.map(|rate| (rate * (now - started).as_secs_f64()) as u64);
            for (port, (end, report)) in self.ends.iter_mut().zip(&mut report.ports).enumerate() {
                if pattern.sends(port) {
                    moved += match due {
                        None => end.send(self.config.burst, stamp, report)?,
                        Some(due) => end.send_due(due, self.config.burst, stamp, report)?,
                    };
                }
            }
            if moved == 0 {
                std::hint::spin_loop();
            }
            now = Instant::now();
        }
        report.elapsed = now - started;
        let mut last = now;
        while last.elapsed() < self.config.quiet && report.lost() > 0 {
            let stamp = self.epoch.elapsed().as_nanos() as u32;
            if self.receive(stamp, &mut report)? > 0 {
                last = Instant::now();
            } else {
                std::thread::yield_now();
            }
        }
        Ok(report)
    }

    /// One frame at a time from the first device, each after the one before arrived at its destination, `count` times:
    /// the latency of an idle switch.
    ///
    /// # Errors
    /// [`Error::Timeout`] when a frame does not arrive within the device's timeout; else what broke a device.
    pub fn one_by_one(&mut self, count: u64) -> Result<Histogram> {
        let mut histogram = Histogram::new();
        let timeout = self.ends[0].timeout();
        for _ in 0..count {
            let mut report = Report::new(self.ends.len(), self.copies());
            let sent = Instant::now();
            while self.ends[0].send(1, 0, &mut report.ports[0])? == 0 {
                if sent.elapsed() > timeout {
                    return Err(Error::Timeout { what: "room in the transmit queue", after: timeout });
                }
            }
            while report.received() == 0 {
                self.receive(0, &mut report)?;
                if sent.elapsed() > timeout {
                    return Err(Error::Timeout { what: "frame of the generator", after: timeout });
                }
                std::hint::spin_loop();
            }
            histogram.record(sent.elapsed());
        }
        Ok(histogram)
    }

    /// The devices, to look at their counters.
    pub fn devices(&self) -> impl Iterator<Item = &NetDevice> {
        self.ends.iter().map(End::device).chain(&self.resting)
    }
}

/// How long a frame that is to be learned from is waited for.
const LEARN_WAIT: Duration = Duration::from_millis(20);
