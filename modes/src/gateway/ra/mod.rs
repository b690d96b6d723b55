//! Router advertisements (RFC 4861, 6.2; RFC 4862; name servers and search domains by RFC 8106).
//!
//! The advertiser says at random intervals what hosts need to know of the network, and answers solicitations. It
//! keeps to this:
//! - Multicast advertisements are at least `MIN_DELAY_BETWEEN_RAS` apart, whatever is asked, and at most
//!   `interval_max`. The first few come quicker (RFC 4861, 6.2.4), also after a change.
//! - A solicitation that is not sound is not answered (6.1.1), and counted. One from an address is answered to that
//!   address, out of the port that it came by; one from `::` is answered to all. Each answer waits for a random time
//!   of half a second at most (6.2.6).
//! - A port that solicits more than its budget is answered by the multicast that is due next: nobody goes without, and
//!   no flood of solicitations makes more than one frame in three seconds. What waits is bounded.
//! - What was advertised and is no more is withdrawn: for the first advertisements after a change, and with the
//!   router itself in the farewell.
//!
//! Owned by the gateway's thread; without I/O and clock. Randomness comes from a seed.

mod config;
mod message;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use smoltcp::wire::{Icmpv6Message, Icmpv6Packet, NdiscOption, NdiscOptionType};
use switch_core::{Instant, MacAddr, PortId};

use super::budget::Budget;
use super::packet6::Received;
use super::{Handled, Outbox};
use message::{ALL_NODES, Withdrawn};

pub use config::{PREFIXES_MAX, RaConfig, RaConfigError, RaPrefix, SEARCH_LEN_MAX, SERVERS_MAX};

/// `MIN_DELAY_BETWEEN_RAS` (RFC 4861, 10).
pub const MIN_DELAY_BETWEEN_RAS: Duration = Duration::from_secs(3);
/// `MAX_RA_DELAY_TIME`: how long an answer waits, at most.
pub const MAX_RA_DELAY_TIME: Duration = Duration::from_millis(500);
/// `MAX_INITIAL_RTR_ADVERTISEMENTS`.
const INITIAL_ADVERTISEMENTS: u8 = 3;
/// Between the first of them. `MAX_INITIAL_RTR_ADVERT_INTERVAL` allows 16 s, but hosts that heard the farewell of a
/// router that begins again have no way out until the first one that they hear, and ports come up after the gateway.
const INITIAL_INTERVAL: Duration = MIN_DELAY_BETWEEN_RAS;

/// ff02::2, where solicitations go.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Unicast answers that wait, at most.
const WAITING_MAX: usize = 1024;
/// Unicast answers to one port at once, after a time of none.
const ANSWERS_BURST: u32 = 8;
/// The time in which a port is given one more.
const ANSWERS_INTERVAL: Duration = Duration::from_secs(1);

/// What an advertiser has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaCounters {
    /// Sound solicitations.
    pub solicitations: u64,
    /// Solicitations that were not sound.
    pub discarded: u64,
    /// Advertisements to one host.
    pub unicast: u64,
    /// Advertisements to all.
    pub multicast: u64,
}

/// The advertising side of a router on one network. See the module's text.
#[derive(Debug)]
pub struct Advertiser {
    config: RaConfig,
    withdrawn: Withdrawn,
    random: SplitMix64,
    /// When the next multicast goes; `None` after the farewell.
    next: Option<Instant>,
    /// When the last one went.
    last: Option<Instant>,
    /// Advertisements to all that come in quick succession.
    initial_left: u8,
    /// Answers that wait: their receiver's MAC address, and when they go.
    waiting: BTreeMap<(PortId, Ipv6Addr), (MacAddr, Instant)>,
    budget: Budget,
    counters: RaCounters,
}

impl Advertiser {
    /// An advertiser whose first advertisement is due at once.
    ///
    /// # Errors
    /// The configuration cannot be advertised ([`RaConfig::check`]).
    pub fn new(now: Instant, config: RaConfig, seed: u64) -> Result<Self, RaConfigError> {
        config.check()?;
        Ok(Self {
            config,
            withdrawn: Withdrawn::default(),
            random: SplitMix64(seed),
            next: Some(now),
            last: None,
            initial_left: INITIAL_ADVERTISEMENTS,
            waiting: BTreeMap::new(),
            budget: Budget::new(ANSWERS_BURST, ANSWERS_INTERVAL),
            counters: RaCounters::default(),
        })
    }

    /// Takes over another configuration and tells the hosts soon, also of what is no more.
    ///
    /// # Errors
    /// The configuration cannot be advertised; the former one stays.
    pub fn configure(&mut self, now: Instant, config: RaConfig) -> Result<(), RaConfigError> {
        config.check()?;
        if config == self.config {
            return Ok(());
        }
        self.withdrawn.follow(&self.config, &config);
        self.config = config;
        self.initial_left = INITIAL_ADVERTISEMENTS;
        if self.next.is_some() {
            self.next = Some(self.earliest(now));
        }
        Ok(())
    }

    /// What it has done so far.
    pub fn counters(&self) -> RaCounters {
        self.counters
    }

    /// Takes a frame that `from` received. It is this service's if it is a router solicitation to this router or to
    /// all routers.
    pub fn receive(&mut self, now: Instant, from: PortId, frame: &[u8], out: &mut Outbox) -> Handled {
        let Some(packet) = Received::read(frame) else { return Handled::No };
        let solicits =
            packet.icmpv6().and_then(|m| m.first()) == Some(&u8::from(Icmpv6Message::RouterSolicit));
        let ours = packet.destination == ALL_ROUTERS || packet.destination == self.config.address;
        if !solicits || !ours || self.next.is_none() {
            return Handled::No;
        }
        match self.solicitor(&packet) {
            Some(solicitor) => {
                self.counters.solicitations += 1;
                self.answer(now, from, solicitor);
                self.poll(now, out);
            }
            None => self.counters.discarded += 1,
        }
        Handled::Yes
    }

    /// Sends what is due.
    pub fn poll(&mut self, now: Instant, out: &mut Outbox) {
        if self.next.is_some_and(|next| next <= now) {
            self.advertise(now, out);
        }
        if self.waiting.values().any(|(_, due)| *due <= now) {
            let waiting = std::mem::take(&mut self.waiting);
            for ((port, address), (mac, due)) in waiting {
                if due > now {
                    self.waiting.insert((port, address), (mac, due));
                    continue;
                }
                if let Some(frame) = message::advertisement(&self.config, &self.withdrawn, (mac, address)) {
                    self.counters.unicast += 1;
                    out.send_to(port, frame);
                }
            }
        }
    }

    /// When [`Advertiser::poll`] next has something to do.
    pub fn poll_at(&self) -> Option<Instant> {
        let waiting = self.waiting.values().map(|(_, due)| *due).min();
        [self.next, waiting].into_iter().flatten().min()
    }

    /// The router ends: its last advertisement, with a lifetime of zero. Nothing is sent after it.
    pub fn farewell(&mut self, out: &mut Outbox) {
        if self.next.take().is_some()
            && let Some(frame) = message::farewell(&self.config)
        {
            self.counters.multicast += 1;
            out.send(frame);
        }
        self.waiting.clear();
    }

    /// Forgets a port that is gone.
    pub fn port_removed(&mut self, port: PortId) {
        self.budget.forget(port);
        self.waiting.retain(|(to, _), _| *to != port);
    }

    /// Who sent a solicitation; `None` if it is not sound (RFC 4861, 6.1.1).
    fn solicitor(&self, packet: &Received<'_>) -> Option<(MacAddr, Ipv6Addr)> {
        if packet.hop_limit != 255 {
            return None;
        }
        let message = packet.checked_icmpv6()?;
        if message.msg_code() != 0 {
            return None;
        }
        let link_layer = options(&message)?;
        if packet.source.is_unspecified() {
            // Who has no address has no use for an answer by neighbour cache.
            return link_layer.is_none().then_some(ALL_NODES);
        }
        let source = packet.source;
        if source.is_multicast() || source.is_loopback() || source == self.config.address {
            return None;
        }
        let mac = link_layer.filter(|mac| mac.is_station()).unwrap_or(packet.mac);
        mac.is_station().then_some((mac, source))
    }

    fn answer(&mut self, now: Instant, from: PortId, (mac, address): (MacAddr, Ipv6Addr)) {
        let alone = !address.is_multicast();
        if alone && self.waiting.contains_key(&(from, address)) {
            return;
        }
        if alone && self.waiting.len() < WAITING_MAX && self.budget.take(now, from) {
            let due = now + self.random.below(MAX_RA_DELAY_TIME);
            self.waiting.insert((from, address), (mac, due));
        } else {
            let earliest = self.earliest(now);
            self.next = self.next.map(|next| next.min(earliest));
        }
    }

    /// When a multicast may go that something asks for at `now` (RFC 4861, 6.2.6).
    fn earliest(&mut self, now: Instant) -> Instant {
        let free = self.last.map_or(now, |last| now.max(last + MIN_DELAY_BETWEEN_RAS));
        free + self.random.below(MAX_RA_DELAY_TIME)
    }

    fn advertise(&mut self, now: Instant, out: &mut Outbox) {
        if let Some(frame) = message::advertisement(&self.config, &self.withdrawn, ALL_NODES) {
            self.counters.multicast += 1;
            out.send(frame);
        }
        let (min, max) = (self.config.interval_min, self.config.interval_max);
        let mut interval = min + self.random.below(max.saturating_sub(min));
        self.initial_left = self.initial_left.saturating_sub(1);
        if self.initial_left > 0 {
            interval = interval.min(INITIAL_INTERVAL);
        } else {
            self.withdrawn = Withdrawn::default();
        }
        self.last = Some(now);
        self.next = Some(now + interval);
    }
}

/// Walks a solicitation's options. `None` if one has no length or runs past the end; else the source link-layer
/// address, if there is one.
fn options(message: &Icmpv6Packet<&[u8]>) -> Option<Option<MacAddr>> {
    let (mut link_layer, mut rest) = (None, message.payload());
    while !rest.is_empty() {
        let length = usize::from(*rest.get(1)?) * 8;
        let (this, next) = rest.split_at_checked(length).filter(|_| length > 0)?;
        // What the codec does not take is an option of another kind, or one to be ignored.
        if let Ok(option) = NdiscOption::new_checked(this)
            && option.option_type() == NdiscOptionType::SourceLinkLayerAddr
        {
            link_layer = link_layer.or(MacAddr::from_slice(option.data()));
        }
        rest = next;
    }
    Some(link_layer)
}

/// Random numbers for spreading out what would come at once: nobody needs to be unable to guess them.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From zero to `bound`.
    fn below(&mut self, bound: Duration) -> Duration {
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.next() % nanos.saturating_add(1).max(1))
    }
}
