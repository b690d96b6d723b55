//! What all shards of a translator share: its settings, its hash, its sessions, counts.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::access::Protocol;
use super::flow::Address;
use super::hosts::{Hosts, take};
use super::random::{KeyedHash, Secret};
use super::session::Session;
use super::slab::Slab;
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
        // A packet that finds its session without the lock tells late by this that it was there.
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

/// How often it is noted that a session is in use. Each worker that did so would take the session's line from others.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// What shards share. Nothing here takes a shard's lock.
#[derive(Debug)]
pub(super) struct Common<A: Address> {
    pub(super) settings: Settings,
    pub(super) times: Times,
    pub(super) hash: KeyedHash,
    pub(super) secret: Secret,
    pub(super) hosts: Hosts<A>,
    /// The sessions of all shards, and places for more.
    pub(super) places: Slab<Session<A>>,
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
            hosts: Hosts::new(secret.derive(3)),
            places: Slab::new(),
            sessions: AtomicU32::new(0),
        }
    }

    /// A session, by its place.
    #[inline]
    pub(super) fn session(&self, place: u32) -> &Session<A> {
        &self.places[place]
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
