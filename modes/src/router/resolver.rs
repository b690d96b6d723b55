//! How neighbours are asked for (RFC 826, RFC 1122 2.3.2, RFC 4861 7.2 and 7.3), and what is believed of them.
//!
//! Asking: a frame for a neighbour that is not known waits, at most [`FRAMES_EACH`] of them for each neighbour (the
//! newest stay), while the address is asked for [`TRIES`] times, once a second. Without an answer the frames come
//! back to the mode, which tells their senders. A stale neighbour that is in use is asked directly, as often, while
//! frames still go to it; without an answer it is forgotten.
//!
//! Believing:
//! - only what is said where the address belongs: the mode's `lives` says so, and without it nothing is learned;
//! - a configured entry is never changed;
//! - what is said unasked (replies, advertisements, announcements) only changes what is known or asked for; a
//!   question to us creates an entry, because we are about to answer (RFC 826; RFC 4861, 7.2.3);
//! - an advertisement without the override flag does not move an address (RFC 4861, 7.2.5);
//! - an address whose station was heard lately moves to another one only when the first does not answer for it any
//!   more: that one is asked, and whoever says too early that the address is its own is not believed. A station that
//!   is at another port with the same MAC address has moved, and is believed.
//!
//! Bounds: addresses that are asked for, in all and for each port whose frames wait. One thread, the slow path's,
//! owns it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use switch_core::ids::{MacAddr, PortId};
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::nd::{self, Message, Neighbor};
use switch_core::time::Instant;

use super::neighbors::{Key, Learned, Neighbors};
use super::{Heard, Link, Station, link_local};
use crate::gateway::Outbox;

/// Frames that wait for one neighbour.
pub const FRAMES_EACH: usize = 3;
/// How often a neighbour is asked for before it is given up.
pub const TRIES: u32 = 3;
/// Between two questions.
const RETRY: Duration = Duration::from_secs(1);
/// Addresses that are asked for at a time, in all.
const PENDING_MAX: usize = 4096;
/// Of those, for the frames of one port.
const PENDING_EACH: usize = 128;
/// Neighbours that are asked again at a time: stale ones, and those whose address another station wants.
const PROBES_MAX: usize = 4096;
/// How often stale entries are looked for: the delay before a first probe (RFC 4861, 10).
const SCAN: Duration = Duration::from_secs(5);

/// How to ask for a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The link that it is on.
    pub link: Link,
    /// Its address.
    pub address: IpAddr,
    /// The ports to ask by; without one, the question goes by the network's forwarding, to all.
    pub ports: Vec<PortId>,
    /// Who asks.
    pub mac: MacAddr,
    /// With which address. Without one of the neighbour's family, IPv6 asks with the MAC's link-local address,
    /// IPv4 with none.
    pub source: Option<IpAddr>,
}

/// A frame that waits for its next hop's MAC address; all else in it is as it is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The frame, to be sent with another destination MAC address.
    pub frame: Vec<u8>,
    /// The port that received it.
    pub from: PortId,
    /// The station that sent it.
    pub sender: MacAddr,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It went to its neighbour.
    Now,
    /// It waits.
    Later,
    /// Too many neighbours are asked for already.
    No,
}

#[derive(Debug)]
struct Pending {
    ask: Ask,
    frames: VecDeque<Waiting>,
    /// Who it counts against.
    owner: PortId,
    tries: u32,
    due: Instant,
}

/// A neighbour that is asked whether it is still there.
#[derive(Debug)]
struct Probe {
    station: Station,
    tries: u32,
    began: Instant,
    due: Instant,
}

/// With what a mode asks by a link: its MAC and IP address there.
pub type Asker<'a> = dyn Fn(Link, IpAddr) -> (MacAddr, Option<IpAddr>) + 'a;

/// Asks for neighbours and believes some of what they say. See the module's text.
#[derive(Debug)]
pub struct Resolver {
    neighbors: Arc<Neighbors>,
    pending: HashMap<Key, Pending>,
    probes: HashMap<Key, Probe>,
    due: BTreeSet<(Instant, Key)>,
    /// How many of `pending` count against a port.
    owners: HashMap<PortId, usize>,
    scanned: Instant,
}

impl Resolver {
    /// A resolver that fills `neighbors`.
    pub fn new(neighbors: Arc<Neighbors>) -> Self {
        Self {
            neighbors,
            pending: HashMap::new(),
            probes: HashMap::new(),
            due: BTreeSet::new(),
            owners: HashMap::new(),
            scanned: Instant::ORIGIN,
        }
    }

    /// The table that it fills.
    pub fn neighbors(&self) -> &Arc<Neighbors> {
        &self.neighbors
    }

    /// Sends a frame to a neighbour, now or when it is known where that is.
    pub fn send(&mut self, now: Instant, ask: &Ask, frame: Waiting, out: &mut Outbox) -> Sent {
        if let Some(station) = self.neighbors.get(now, ask.link, ask.address) {
            deliver(frame, station, out);
            return Sent::Now;
        }
        let key = (ask.link, ask.address);
        if let Some(pending) = self.pending.get_mut(&key) {
            if pending.frames.len() >= FRAMES_EACH {
                pending.frames.pop_front();
            }
            pending.frames.push_back(frame);
            return Sent::Later;
        }
        let asked = self.owners.entry(frame.from).or_default();
        if *asked >= PENDING_EACH || self.pending.len() >= PENDING_MAX {
            if *asked == 0 {
                self.owners.remove(&frame.from);
            }
            return Sent::No;
        }
        *asked += 1;
        let due = now + RETRY;
        question(ask, out);
        self.due.insert((due, key));
        let owner = frame.from;
        let pending = Pending { ask: ask.clone(), frames: VecDeque::from([frame]), owner, tries: 1, due };
        self.pending.insert(key, pending);
        Sent::Later
    }

    /// Learns from what a station on `link` said by the port `from`, and sends what waited for it. `lives` says
    /// whether an address belongs there. What was learned, if anything was to be.
    pub fn observe(
        &mut self,
        now: Instant,
        link: Link,
        from: PortId,
        heard: &Heard,
        lives: impl FnOnce(IpAddr) -> bool,
        out: &mut Outbox,
    ) -> Option<Learned> {
        let (address, mac, creates, fresh, moves) = match heard {
            Heard::Arp(arp) if arp.is_probe() => return None,
            Heard::Arp(arp) => {
                let asks = arp.operation == Operation::Request && !arp.is_announcement();
                (IpAddr::V4(arp.sender), arp.sender_mac, asks, true, true)
            }
            Heard::Nd(Neighbor { message: Message::Solicitation, source, link: Some(mac), .. }) => {
                (IpAddr::V6(*source), *mac, true, false, true)
            }
            Heard::Nd(Neighbor {
                message: Message::Advertisement { solicited, overrides, .. },
                target,
                link: Some(mac),
                ..
            }) => (IpAddr::V6(*target), *mac, false, *solicited, *overrides),
            // Whoever was asked directly may leave out where it is, as everybody knows (RFC 4861, 7.2.5).
            Heard::Nd(Neighbor {
                message: Message::Advertisement { solicited: true, .. },
                target,
                link: None,
                ..
            }) => {
                let address = IpAddr::V6(*target);
                let station = self.neighbors.peek(link, address).filter(|known| known.port == from)?;
                self.neighbors.confirm(now, link, address, station);
                return Some(Learned::Confirmed);
            }
            Heard::Nd(_) => return None,
        };
        let key = (link, address);
        let station = Station { mac, port: from };
        let known = self.neighbors.peek(link, address);
        let asked = self.pending.contains_key(&key);
        let stays = known.is_none_or(|known| known == station);
        if !(creates || asked || known.is_some()) || !(moves || stays) || !lives(address) {
            return None;
        }
        let learned = self.claim(now, link, address, station, fresh || asked);
        if !matches!(learned, Learned::Refused | Learned::Contested) {
            self.answered(&key, station, out);
        }
        Some(learned)
    }

    /// A station says, or shows by using it, that it has an address: it is believed, or who had it is asked.
    pub fn claim(
        &mut self,
        now: Instant,
        link: Link,
        address: IpAddr,
        station: Station,
        fresh: bool,
    ) -> Learned {
        let key = (link, address);
        let known = self.neighbors.peek(link, address).filter(|known| known.mac != station.mac);
        let Some(known) = known.filter(|_| self.neighbors.is_reachable(now, &key)) else {
            return self.neighbors.learn(now, link, address, station, fresh);
        };
        if self.probes.len() < PROBES_MAX && !self.probes.contains_key(&key) {
            self.due.insert((now, key));
            self.probes.insert(key, Probe { station: known, tries: 0, began: now, due: now });
        }
        Learned::Contested
    }

    /// The neighbour is known: what waited goes.
    fn answered(&mut self, key: &Key, station: Station, out: &mut Outbox) {
        for waiting in self.take(key) {
            deliver(waiting, station, out);
        }
    }

    /// Ends the asking for an address; the frames that waited.
    fn take(&mut self, key: &Key) -> VecDeque<Waiting> {
        let Some(pending) = self.pending.remove(key) else { return VecDeque::new() };
        self.due.remove(&(pending.due, *key));
        if let Some(asked) = self.owners.get_mut(&pending.owner) {
            *asked -= 1;
            if *asked == 0 {
                self.owners.remove(&pending.owner);
            }
        }
        pending.frames
    }

    /// Does what is due. `asker` gives the addresses to ask with; the frames whose neighbours did not answer are
    /// added to `failed`: their senders are to be told that the host is unreachable.
    pub fn poll(&mut self, now: Instant, asker: &Asker<'_>, out: &mut Outbox, failed: &mut Vec<Waiting>) {
        while let Some((_, key)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            self.due.pop_first();
            if self.pending.contains_key(&key) {
                self.retry(now, key, out, failed);
            } else {
                self.probe_again(now, key, asker, out);
            }
        }
        if now.since(self.scanned) >= SCAN {
            self.scanned = now;
            for (key, station) in self.neighbors.stale(now) {
                if self.probes.len() < PROBES_MAX
                    && !self.probes.contains_key(&key)
                    && !self.pending.contains_key(&key)
                {
                    let due = now + RETRY;
                    probe(key, station, asker, out);
                    self.due.insert((due, key));
                    self.probes.insert(key, Probe { station, tries: 1, began: now, due });
                }
            }
        }
    }

    /// Asks for an address again, or gives it up.
    fn retry(&mut self, now: Instant, key: Key, out: &mut Outbox, failed: &mut Vec<Waiting>) {
        // Somebody else may have told the table meanwhile.
        if let Some(station) = self.neighbors.get(now, key.0, key.1) {
            self.answered(&key, station, out);
            return;
        }
        let Some(pending) = self.pending.get_mut(&key) else { return };
        if pending.tries < TRIES {
            pending.tries += 1;
            pending.due = now + RETRY;
            question(&pending.ask, out);
            self.due.insert((pending.due, key));
        } else {
            failed.extend(self.take(&key));
        }
    }

    /// Asks a stale neighbour again, or forgets it.
    fn probe_again(&mut self, now: Instant, key: Key, asker: &Asker<'_>, out: &mut Outbox) {
        let Some(entry) = self.probes.get_mut(&key) else { return };
        let there = self.neighbors.peek(key.0, key.1) == Some(entry.station);
        if !there || self.neighbors.confirmed_since(&key, entry.began) {
            self.probes.remove(&key);
        } else if entry.tries < TRIES {
            entry.tries += 1;
            entry.due = now + RETRY;
            self.due.insert((entry.due, key));
            probe(key, entry.station, asker, out);
        } else {
            self.probes.remove(&key);
            self.neighbors.forget_dynamic(&key);
        }
    }

    /// When [`Resolver::poll`] next has something to do.
    pub fn poll_at(&self) -> Option<Instant> {
        let due = self.due.first().map(|(due, _)| *due);
        let scan = self.neighbors.ages().then(|| self.scanned + SCAN);
        due.into_iter().chain(scan).min()
    }

    /// A port is gone: what was asked by it or for it is forgotten, its neighbours too.
    pub fn port_removed(&mut self, port: PortId) {
        self.neighbors.forget_port(port);
        let concerns = |key: &Key, pending: &Pending| {
            key.0 == Link::Port(port) || pending.owner == port || *pending.ask.ports == [port]
        };
        let gone: Vec<Key> = self.pending.iter().filter(|(k, p)| concerns(k, p)).map(|(k, _)| *k).collect();
        for key in gone {
            self.take(&key);
        }
    }

    /// Addresses that are asked for.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

/// Sends a frame to a station.
fn deliver(mut waiting: Waiting, station: Station, out: &mut Outbox) {
    if let Some(destination) = waiting.frame.first_chunk_mut::<6>() {
        *destination = station.mac.0;
        out.send_to(station.port, waiting.frame);
    }
}

/// Asks all stations of a link for an address.
fn question(ask: &Ask, out: &mut Outbox) {
    let frame = match ask.address {
        IpAddr::V4(target) => {
            let sender =
                if let Some(IpAddr::V4(source)) = ask.source { source } else { Ipv4Addr::UNSPECIFIED };
            Arp::request(ask.mac, sender, target).to_frame(MacAddr::BROADCAST)
        }
        IpAddr::V6(target) => {
            let source = if let Some(IpAddr::V6(source)) = ask.source { source } else { link_local(ask.mac) };
            let solicitation = Neighbor::solicitation(ask.mac, source, target);
            solicitation.to_frame(nd::group_mac(solicitation.destination), ask.mac)
        }
    };
    if ask.ports.is_empty() {
        out.send(frame);
        return;
    }
    for &port in &ask.ports {
        out.send_to(port, frame.clone());
    }
}

/// Asks one station for its address.
fn probe((link, address): Key, station: Station, asker: &Asker<'_>, out: &mut Outbox) {
    let (mac, source) = asker(link, address);
    let frame = match address {
        IpAddr::V4(target) => {
            let sender = if let Some(IpAddr::V4(source)) = source { source } else { Ipv4Addr::UNSPECIFIED };
            Arp::request(mac, sender, target).to_frame(station.mac)
        }
        IpAddr::V6(target) => {
            let source = if let Some(IpAddr::V6(source)) = source { source } else { link_local(mac) };
            let ask = Neighbor { destination: target, ..Neighbor::solicitation(mac, source, target) };
            ask.to_frame(station.mac, mac)
        }
    };
    out.send_to(station.port, frame);
}
