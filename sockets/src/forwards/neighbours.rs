//! Where guests are: the MAC addresses of those that forwards lead to, by ARP and neighbour discovery.
//!
//! Only addresses that a forward leads to are asked for and kept, so their number is an operator's. What is for an address
//! that is not known yet waits for the answer, [`PATIENCE`] at most: so many connections and datagrams, and no more.
//! There are at most [`QUESTIONS`] questions a second, and one for an address.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use switch_core::head::Head;
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::nd::{Message, Neighbor, group_mac, solicited_node};
use switch_core::ip::{ETHERTYPE_ARP, set_macs};
use switch_core::{Instant, MacAddr};

use super::listen::Source;
use crate::engine::Context;
use crate::settings::Settings;
use crate::token::Token;

/// How long something waits for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions for one address.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Questions in a second, for all addresses.
const QUESTIONS: u32 = 64;
/// For how long an answer is not doubted.
const FRESH: Duration = Duration::from_secs(30);
/// For how long it holds if nobody gives another.
const HOLDS: Duration = Duration::from_secs(60);
/// Connections that wait, for one address and in all.
const CONNECTIONS: (usize, usize) = (64, 512);
/// Datagrams that wait, each of 64 KB at most, for one address and in all.
const DATAGRAMS: (usize, usize) = (8, 64);

/// A connection that somebody outside has made. It is reset when it is dropped.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) socket: OwnedFd,
    pub(super) client: SocketAddr,
    /// The listener that it came by.
    pub(super) by: Token,
    pub(super) guest: SocketAddr,
    /// As whom the guest is to see the client.
    pub(super) source: Source,
}

/// What waits for an answer.
#[derive(Debug)]
pub(super) enum Waiting {
    Connection(Call),
    /// The frames of a datagram, but for the guest's MAC address, and the listener that it came by.
    Datagram(Vec<Vec<u8>>, Token),
}

impl Waiting {
    fn by(&self) -> Token {
        match self {
            Self::Connection(call) => call.by,
            Self::Datagram(_, by) => *by,
        }
    }

    fn is_connection(&self) -> bool {
        matches!(self, Self::Connection(_))
    }
}

#[derive(Debug, Default)]
struct Neighbour {
    /// How many listeners lead to it.
    listeners: u32,
    at: Option<(MacAddr, Instant)>,
    asked: Option<Instant>,
    /// The longest wait first.
    waiting: VecDeque<(Instant, Waiting)>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: HashMap<IpAddr, Neighbour>,
    connections: usize,
    datagrams: usize,
    /// The second that questions are counted in.
    second: Option<Instant>,
    questions: u32,
    /// [`Neighbours::timeout`] has nothing to do before.
    due: Option<Instant>,
}

impl Neighbours {
    /// A listener leads there.
    pub(super) fn add(&mut self, ip: IpAddr) {
        self.known.entry(ip).or_default().listeners += 1;
    }

    /// A listener leads there no longer: what came by it and waits is dropped.
    pub(super) fn remove(&mut self, ip: IpAddr, by: Token) {
        let Some(neighbour) = self.known.get_mut(&ip) else { return };
        let mut kept = VecDeque::new();
        for (since, waiting) in neighbour.waiting.drain(..) {
            if waiting.by() != by {
                kept.push_back((since, waiting));
            } else if waiting.is_connection() {
                self.connections = self.connections.saturating_sub(1);
            } else {
                self.datagrams = self.datagrams.saturating_sub(1);
            }
        }
        neighbour.waiting = kept;
        neighbour.listeners = neighbour.listeners.saturating_sub(1);
        if neighbour.listeners == 0 {
            self.known.remove(&ip);
        }
    }

    /// Where an address is, if that is known. If it is not, or was heard long ago, somebody is asked.
    pub(super) fn find(&mut self, ctx: &mut Context<'_>, ip: IpAddr) -> Option<MacAddr> {
        let now = ctx.now;
        let neighbour = self.known.get_mut(&ip)?;
        if let Some((mac, heard)) = neighbour.at
            && now.since(heard) < FRESH
        {
            return Some(mac);
        }
        if neighbour.asked.is_none_or(|asked| now.since(asked) >= ASK_EVERY) {
            if self.second.is_none_or(|second| now.since(second) >= Duration::from_secs(1)) {
                (self.second, self.questions) = (Some(now), 0);
            }
            // Who finds no place asks in the next second.
            neighbour.asked = Some(now);
            if self.questions < QUESTIONS {
                self.questions += 1;
                if let Some(question) = question(ctx.settings, ip) {
                    ctx.send(question);
                }
            }
        }
        neighbour.at.filter(|(_, heard)| now.since(*heard) < HOLDS).map(|(mac, _)| mac)
    }

    /// Has something wait for an answer; false if too many wait, and it was dropped.
    pub(super) fn wait(&mut self, now: Instant, ip: IpAddr, waiting: Waiting) -> bool {
        let Some(neighbour) = self.known.get_mut(&ip) else { return false };
        let is_connection = waiting.is_connection();
        let (all, (each, most)) = match is_connection {
            true => (&mut self.connections, CONNECTIONS),
            false => (&mut self.datagrams, DATAGRAMS),
        };
        let here = neighbour.waiting.iter().filter(|(_, w)| w.is_connection() == is_connection).count();
        if *all >= most || here >= each {
            return false;
        }
        *all += 1;
        neighbour.waiting.push_back((now, waiting));
        let at = now + ASK_EVERY;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
        true
    }

    /// Hears of a neighbour in a frame that is for the router: whose address it is, if it is one that a forward leads to,
    /// where it is, and what waited for that.
    pub(super) fn hear(&mut self, now: Instant, head: &Head) -> Option<(MacAddr, Vec<Waiting>)> {
        let frame = head.bytes();
        let (ip, mac) = if head.ethertype() == ETHERTYPE_ARP {
            let arp = Arp::of_frame(frame).filter(|arp| arp.operation == Operation::Reply)?;
            (IpAddr::V4(arp.sender), arp.sender_mac)
        } else {
            let told = Neighbor::of_frame(frame)?;
            if told.message == Message::Solicitation {
                return None;
            }
            (IpAddr::V6(told.target), told.link.unwrap_or_else(|| head.source()))
        };
        let neighbour = self.known.get_mut(&ip).filter(|_| mac.is_station())?;
        neighbour.at = Some((mac, now));
        let waited: Vec<Waiting> = neighbour.waiting.drain(..).map(|(_, waiting)| waiting).collect();
        self.gone(&waited);
        Some((mac, waited))
    }

    /// A guest has answered by itself: it is there.
    pub(super) fn confirm(&mut self, now: Instant, ip: IpAddr, mac: MacAddr) {
        if let Some(neighbour) = self.known.get_mut(&ip).filter(|_| mac.is_station()) {
            neighbour.at = Some((mac, now));
        }
    }

    /// When [`Neighbours::timeout`] is to be called next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Asks again, and gives back what has waited too long.
    pub(super) fn timeout(&mut self, ctx: &mut Context<'_>) -> Vec<Waiting> {
        let now = ctx.now;
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let (mut overdue, mut awaited) = (Vec::new(), Vec::new());
        for (&ip, neighbour) in &mut self.known {
            let late = neighbour.waiting.partition_point(|(since, _)| now.since(*since) >= PATIENCE);
            overdue.extend(neighbour.waiting.drain(..late).map(|(_, waiting)| waiting));
            if !neighbour.waiting.is_empty() {
                awaited.push(ip);
            }
        }
        self.gone(&overdue);
        for &ip in &awaited {
            self.find(ctx, ip);
        }
        // Both times are multiples of this.
        self.due = (!awaited.is_empty()).then(|| now + ASK_EVERY / 2);
        overdue
    }

    fn gone(&mut self, waiting: &[Waiting]) {
        let connections = waiting.iter().filter(|w| w.is_connection()).count();
        self.connections = self.connections.saturating_sub(connections);
        self.datagrams = self.datagrams.saturating_sub(waiting.len() - connections);
    }
}

/// Frames as they go to a guest, and from the router.
pub(super) fn address(settings: &Settings, mac: MacAddr, mut frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for frame in &mut frames {
        set_macs(frame, mac, settings.mac);
    }
    frames
}

fn question(settings: &Settings, ip: IpAddr) -> Option<Vec<u8>> {
    match ip {
        IpAddr::V4(ip) => {
            let arp = Arp::request(settings.mac, settings.gateway_v4?, ip);
            Some(arp.to_frame(MacAddr::BROADCAST))
        }
        IpAddr::V6(ip) => {
            let asks = Neighbor::solicitation(settings.mac, settings.gateway_v6?, ip);
            Some(asks.to_frame(group_mac(solicited_node(ip)), settings.mac))
        }
    }
}
