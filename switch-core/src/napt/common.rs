//! What all shards of a translator share: its settings, its hash, epochs, counts.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::access::Protocol;
use super::flow::Address;
use super::hosts::{Hosts, take};
use super::random::{KeyedHash, Secret};
use super::tcp::State;
use super::time::ticks;

/// Who may send to a mapping from the outside (RFC 4787, 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Anybody.
    EndpointIndependent,
    /// An address that the inside endpoint has sent to.
    #[default]
    AddressDependent,
    /// An address and port that the inside endpoint has sent to.
    AddressAndPortDependent,
}

/// Settings of a translator.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Who may send to a mapping.
    pub filtering: Filtering,
    /// Sessions of one inside address, at most, and of what one port's packets made. Of those of an address, half can
    /// be opened from the outside.
    pub sessions_per_host: u32,
    /// Ports that one inside address holds at most, for each protocol, resting ones among them; and those that
    /// one port's packets made.
    pub mappings_per_host: u32,
    /// Inside addresses that one port's packets make known, at most, until nothing is left of them.
    pub addresses_per_port: u32,
    /// Sessions in all.
    pub sessions_max: u32,
    /// UDP, since the last outbound packet. At least 2 minutes (RFC 4787, REQ-5).
    pub udp_timeout: Duration,
    /// TCP, since the last packet. At least 2 hours and 4 minutes (RFC 5382, REQ-5).
    pub tcp_established_timeout: Duration,
    /// TCP that is opening, closing or was reset. At least 4 minutes (RFC 5382, REQ-5; RFC 7857, 2).
    pub tcp_transitory_timeout: Duration,
    /// ICMP queries, since the last one. At least a minute (RFC 5508, REQ-2).
    pub icmp_timeout: Duration,
    /// How long a freed port rests. RFC 6888, REQ-8 says 2 minutes.
    pub port_rest: Duration,
    /// What ports are chosen by: 16 random bytes that nobody else knows.
    pub seed: [u64; 2],
}

impl Settings {
    /// The settings that RFC 4787, 5382, 5508 and 6888 recommend.
    pub const fn new(seed: [u64; 2]) -> Self {
        Self {
            filtering: Filtering::AddressDependent,
            sessions_per_host: 1 << 18,
            // A quarter of the ports of an outside address.
            mappings_per_host: 16128,
            addresses_per_port: 64,
            sessions_max: 1 << 21,
            udp_timeout: Duration::from_secs(300),
            tcp_established_timeout: Duration::from_secs(7440),
            tcp_transitory_timeout: Duration::from_secs(240),
            icmp_timeout: Duration::from_secs(60),
            port_rest: Duration::from_secs(120),
            seed,
        }
    }
}

/// Timeouts, in ticks.
#[derive(Debug)]
pub(super) struct Times {
    udp: u32,
    established: u32,
    transitory: u32,
    icmp: u32,
}

impl Times {
    fn new(settings: &Settings) -> Self {
        // A packet that a worker's cache decides is not told to the tables: what it begins is told late by this.
        let at_least = |timeout: Duration, least: u64| {
            ticks(timeout.max(Duration::from_secs(least)).saturating_add(FRESH))
        };
        Self {
            udp: at_least(settings.udp_timeout, 120),
            established: at_least(settings.tcp_established_timeout, 7440),
            transitory: at_least(settings.tcp_transitory_timeout, 240),
            icmp: at_least(settings.icmp_timeout, 60),
        }
    }

    /// How long a session lives without a packet.
    #[inline]
    pub(super) fn of(&self, protocol: Protocol, state: State) -> u32 {
        match (protocol, state) {
            (Protocol::Udp, _) => self.udp,
            (Protocol::Icmp, _) => self.icmp,
            (Protocol::Tcp, state) if state.is_established() => self.established,
            (Protocol::Tcp, _) => self.transitory,
        }
    }
}

/// How long a worker's cache answers before it asks, and so tells, the tables again.
pub(super) const FRESH: Duration = Duration::from_secs(1);

const EPOCH_BITS: u32 = 12;

/// Tells workers' caches which answers may be no longer true: each flow has one of 4,096 epochs, by its hash.
#[derive(Debug)]
pub(super) struct Epochs(Box<[AtomicU32; 1 << EPOCH_BITS]>);

impl Epochs {
    /// The epoch of the flows with this hash.
    #[inline]
    pub(super) fn current(&self, hash: u64) -> u32 {
        // Acquire pairs with the Release of `advance`: who sees the epoch of a change sees the change.
        self.0[(hash >> (64 - EPOCH_BITS)) as usize].load(Ordering::Acquire)
    }

    /// A session was changed or removed. Its shard is locked.
    pub(super) fn advance(&self, hash: u64) {
        self.0[(hash >> (64 - EPOCH_BITS)) as usize].fetch_add(1, Ordering::Release);
    }
}

/// What shards share. Nothing here takes a shard's lock.
#[derive(Debug)]
pub(super) struct Common<A> {
    pub(super) settings: Settings,
    pub(super) times: Times,
    pub(super) hash: KeyedHash,
    pub(super) secret: Secret,
    pub(super) epochs: Epochs,
    pub(super) hosts: Hosts<A>,
    /// Sessions in the tables: those that ended are there until they are taken off the wheel.
    pub(super) sessions: AtomicU32,
}

impl<A: Address> Common<A> {
    pub(super) fn new(settings: Settings) -> Self {
        let secret = Secret::new(settings.seed);
        Self {
            settings,
            times: Times::new(&settings),
            hash: KeyedHash::new(secret.derive(1)),
            secret: secret.derive(2),
            epochs: Epochs(Box::new([const { AtomicU32::new(0) }; 1 << EPOCH_BITS])),
            hosts: Hosts::new(secret.derive(3)),
            sessions: AtomicU32::new(0),
        }
    }

    /// Counts one more session, unless there are as many as may be.
    pub(super) fn take_session(&self) -> bool {
        take(&self.sessions, self.settings.sessions_max)
    }

    /// True if filtering asks which addresses a mapping has sent to. A reply to an ICMP query comes from where the
    /// query went, or not at all.
    #[inline]
    pub(super) fn counts_peers(&self, protocol: Protocol) -> bool {
        self.settings.filtering == Filtering::AddressDependent && protocol != Protocol::Icmp
    }
}
