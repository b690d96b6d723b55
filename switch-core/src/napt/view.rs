//! A worker's view of a translator: the questions of the frame path.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::access::Protocol;
use super::ahead::{Hint, Way, key};
use super::common::{FRESH, Filtering};
use super::flow::{Address, Endpoint, Flow, Key, TcpFlags, hash_inside};
use super::hosts::Payer;
use super::index::Seen;
use super::ports::{External, MAPPINGS_MAX, MappingRef};
use super::shard::{Mapping, Shard};
use super::tcp::Direction;
use super::time::{Tick, ticks};
use super::{Napt, Outside, shard_of};
use crate::drop::DropReason;
use crate::ids::PortId;
use crate::time::Instant;

/// One worker's view of a translator. See the module's text.
#[derive(Debug)]
pub struct View<A: Address> {
    pub(super) napt: Arc<Napt<A>>,
    pub(super) outside: Arc<Outside<A>>,
    epoch: u32,
    /// Of each shard, what this worker finds sessions by.
    pub(super) indexes: Box<[Seen]>,
    /// Ticks that what happened to a session may be told late.
    pub(super) fresh: u32,
}

/// Why a shard could not answer.
enum Refused {
    /// For good.
    Drop(DropReason),
    /// What is outside changed meanwhile.
    Stale,
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl<A: Address> View<A> {
    /// One more view.
    pub fn new(napt: Arc<Napt<A>>) -> Self {
        let epoch = napt.epoch.load(Ordering::Acquire);
        let outside = napt.outside();
        // Not rounded up, as an end is: what happened is never told later than that.
        let fresh = ticks(FRESH).saturating_sub(1);
        let indexes = napt.indexes.iter().map(|index| index.look()).collect();
        Self { napt, outside, epoch, indexes, fresh }
    }

    /// True if `address` is one of the translator's outside addresses.
    #[inline]
    pub fn is_external(&mut self, address: A) -> bool {
        self.refresh();
        self.outside.external(address).is_some()
    }

    /// The first outside address: where the translator itself is reached.
    pub fn first_external(&mut self) -> Option<A> {
        self.refresh();
        self.outside.externals.first().map(|external| external.address)
    }

    /// What stands for the inside endpoint of an outbound packet, which makes a session if there is none. A TCP
    /// segment must ask for a connection for that. What is made is charged to the inside address only; see
    /// [`View::outbound_from`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn outbound(&mut self, now: Instant, flow: &Flow<A>) -> Result<Endpoint<A>, DropReason> {
        self.outbound_from(now, None, flow)
    }

    /// As [`View::outbound`], of a packet that came by a port, which is charged for what is made, too.
    ///
    /// # Errors
    /// [`DropReason::NatNoMapping`]: a TCP segment of no session. [`DropReason::NatQuota`]: the address or
    /// the port has all it may have. [`DropReason::NatExhausted`]: there is no port, or no outside address, or no room.
    #[inline]
    pub fn outbound_from(
        &mut self,
        now: Instant,
        port: Option<PortId>,
        flow: &Flow<A>,
    ) -> Result<Endpoint<A>, DropReason> {
        let hint = self.seek(Way::Out, flow);
        self.outbound_ahead(now, port, flow, hint)
    }

    /// As [`View::outbound_from`], of a packet that [`View::look_ahead`] was asked about. The answer does not depend
    /// on what that found.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn outbound_ahead(
        &mut self,
        now: Instant,
        port: Option<PortId>,
        flow: &Flow<A>,
        hint: Hint,
    ) -> Result<Endpoint<A>, DropReason> {
        let now = Tick::of(now);
        if flow.flags.is_plain()
            && let Some(outside) = self.pass_out(now, flow, hint)
        {
            return Ok(outside);
        }
        if hint.is_nowhere() && (flow.protocol != Protocol::Tcp || flow.flags.opens()) {
            let (key, hash) = (key(flow), &self.napt.common.hash);
            let hashes = (key.hash(hash), hash_inside(hash, flow.protocol, flow.local));
            return self.open_outbound(now, port, &key, hashes, flow.flags);
        }
        self.outbound_locked(now, port, flow)
    }

    /// What a packet of a flow may need the lock for, or that is not known.
    #[inline(never)]
    fn outbound_locked(
        &mut self,
        now: Tick,
        port: Option<PortId>,
        flow: &Flow<A>,
    ) -> Result<Endpoint<A>, DropReason> {
        let common = &self.napt.common;
        let key = key(flow);
        let hash = key.hash(&common.hash);
        let inside_hash = hash_inside(&common.hash, flow.protocol, flow.local);
        let mut shard = self.napt.shard(shard_of(inside_hash));
        if let Some(slot) = shard.find(common, hash, &key)
            && common.session(slot).is_alive(now)
        {
            shard.follow(common, now, slot, Direction::Out, flow.flags);
            return Ok(common.session(slot).outside());
        }
        drop(shard);
        self.open_outbound(now, port, &key, (hash, inside_hash), flow.flags)
    }

    /// The inside endpoint that a packet to an outside endpoint is for. Only a connection request makes a session,
    /// and what comes by a forward.
    ///
    /// # Errors
    /// [`DropReason::NatNoMapping`]: nobody has the endpoint, or the TCP segment is of no session.
    /// [`DropReason::NatFiltered`]: the remote end may not send to it. [`DropReason::NatQuota`] and
    /// [`DropReason::NatExhausted`]: a session would be too many.
    #[inline]
    pub fn inbound(&mut self, now: Instant, flow: &Flow<A>) -> Result<Endpoint<A>, DropReason> {
        let hint = self.seek(Way::In, flow);
        self.inbound_ahead(now, flow, hint)
    }

    /// As [`View::inbound`], of a packet that [`View::look_ahead`] was asked about. The answer does not depend on
    /// what that found.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn inbound_ahead(
        &mut self,
        now: Instant,
        flow: &Flow<A>,
        hint: Hint,
    ) -> Result<Endpoint<A>, DropReason> {
        let now = Tick::of(now);
        if flow.flags.is_plain()
            && let Some(inside) = self.pass_in(now, flow, hint)
        {
            return Ok(inside);
        }
        self.inbound_locked(now, flow)
    }

    #[inline(never)]
    fn inbound_locked(&mut self, now: Tick, flow: &Flow<A>) -> Result<Endpoint<A>, DropReason> {
        loop {
            self.refresh();
            match self.try_inbound(now, &key(flow), flow.flags) {
                Ok(inside) => return Ok(inside),
                Err(Refused::Drop(reason)) => return Err(reason),
                Err(Refused::Stale) => {}
            }
        }
    }

    /// The inside endpoint of the packet within an ICMP error from the outside, whose source is `outside` (RFC
    /// 5508, REQ-4). Nothing is refreshed.
    ///
    /// # Errors
    /// [`DropReason::NatNoMapping`]: the packet was not of a session.
    pub fn embedded_inbound(
        &mut self,
        now: Instant,
        protocol: Protocol,
        outside: Endpoint<A>,
        remote: Endpoint<A>,
    ) -> Result<Endpoint<A>, DropReason> {
        self.refresh();
        let now = Tick::of(now);
        const NONE: DropReason = DropReason::NatNoMapping;
        let external = self.outside.external(outside.address).ok_or(NONE)?;
        let (inside, forwarded) = match external.holder(protocol, outside.port) {
            Some((place, _)) => {
                let shard = self.napt.shard(place.shard);
                let mapping = shard.mapping(place.slot).filter(|m| m.is(protocol, outside));
                (mapping.ok_or(NONE)?.inside, false)
            }
            None => (self.outside.forwards.inside(protocol, outside).ok_or(NONE)?.1, true),
        };
        match self.session_outside(now, &Key { protocol, local: inside, remote }) {
            Some(at) if at == outside => Ok(inside),
            // What comes by a forward may have no session.
            None if forwarded && protocol == Protocol::Udp => Ok(inside),
            _ => Err(NONE),
        }
    }

    /// The outside endpoint of the packet within an ICMP error from a guest, whose destination is `inside` (RFC
    /// 5508, REQ-5). Nothing is refreshed.
    ///
    /// # Errors
    /// [`DropReason::NatNoMapping`]: the packet was not of a session.
    pub fn embedded_outbound(
        &mut self,
        now: Instant,
        protocol: Protocol,
        inside: Endpoint<A>,
        remote: Endpoint<A>,
    ) -> Result<Endpoint<A>, DropReason> {
        self.refresh();
        let now = Tick::of(now);
        if let Some(outside) = self.session_outside(now, &Key { protocol, local: inside, remote }) {
            return Ok(outside);
        }
        // A datagram that the filter let in without a session.
        let hash = hash_inside(&self.napt.common.hash, protocol, inside);
        let shard = self.napt.shard(shard_of(hash));
        let slot = shard.find_mapping(hash, protocol, inside, |_| protocol == Protocol::Udp);
        slot.and_then(|slot| shard.mapping(slot))
            .map(|mapping| mapping.outside)
            .ok_or(DropReason::NatNoMapping)
    }

    /// True if there is a session between an outside endpoint and a remote one: whether a connection request that
    /// came without one was answered by the guest's own meanwhile (RFC 5382, REQ-4).
    pub fn has_session(
        &mut self,
        now: Instant,
        protocol: Protocol,
        outside: Endpoint<A>,
        remote: Endpoint<A>,
    ) -> bool {
        self.embedded_inbound(now, protocol, outside, remote).is_ok()
    }

    /// Takes up what changed outside.
    #[inline]
    pub(super) fn refresh(&mut self) {
        let epoch = self.napt.epoch.load(Ordering::Acquire);
        if epoch != self.epoch {
            // In this order: a change between the two is taken up twice, not never.
            self.epoch = epoch;
            self.outside = self.napt.outside();
        }
    }

    /// True if what is outside changed since [`View::refresh`]. To be asked while a shard is locked: a change
    /// removes what it contradicts from the shard after that.
    fn is_stale(&self) -> bool {
        self.napt.epoch.load(Ordering::Acquire) != self.epoch
    }

    /// The outside endpoint of a session that is alive.
    fn session_outside(&self, now: Tick, key: &Key<A>) -> Option<Endpoint<A>> {
        let common = &self.napt.common;
        let shard = self.napt.shard(shard_of(hash_inside(&common.hash, key.protocol, key.local)));
        let session = common.session(shard.find(common, key.hash(&common.hash), key)?);
        session.is_alive(now).then(|| session.outside())
    }

    /// Makes the session of an outbound packet.
    #[cold]
    #[inline(never)]
    fn open_outbound(
        &mut self,
        now: Tick,
        port: Option<PortId>,
        key: &Key<A>,
        hashes: (u64, u64),
        flags: TcpFlags,
    ) -> Result<Endpoint<A>, DropReason> {
        if key.protocol == Protocol::Tcp && !flags.opens() {
            return Err(DropReason::NatNoMapping);
        }
        loop {
            self.refresh();
            match self.try_open_outbound(now, port, key, hashes, flags) {
                Ok(outside) => return Ok(outside),
                Err(Refused::Drop(reason)) => return Err(reason),
                Err(Refused::Stale) => {}
            }
        }
    }

    fn try_open_outbound(
        &self,
        now: Tick,
        port: Option<PortId>,
        key: &Key<A>,
        (hash, inside_hash): (u64, u64),
        flags: TcpFlags,
    ) -> Result<Endpoint<A>, Refused> {
        let common = &self.napt.common;
        let shard_index = shard_of(inside_hash);
        let mut shard = self.napt.shard(shard_index);
        if self.is_stale() {
            return Err(Refused::Stale);
        }
        if let Some(slot) = shard.find(common, hash, key) {
            // Another worker's, made meanwhile, or one that ended and is not gone yet: it lives on.
            if common.session(slot).is_alive(now) {
                shard.follow(common, now, slot, Direction::Out, flags);
            } else {
                shard.renew(common, now, slot, Direction::Out);
            }
            return Ok(common.session(slot).outside());
        }
        let is_ours = |address| self.outside.external(address).is_some();
        let forward = self.outside.forwards.outside(key.protocol, key.local, is_ours);
        let forward_id = forward.map_or(0, |(id, ..)| id);
        // An endpoint that a forward leads to goes out by the forward, unless it has a mapping of its own already.
        let mapping =
            shard.find_mapping(inside_hash, key.protocol, key.local, |mapping| mapping.forward == 0).or_else(
                || shard.find_mapping(inside_hash, key.protocol, key.local, |m| m.forward == forward_id),
            );
        let payer = match mapping.and_then(|slot| shard.payer(slot)) {
            Some(payer) => payer.clone(),
            None => {
                let account = port.map(|port| common.hosts.account(port));
                let limit = common.settings.addresses_per_port;
                let host = common.hosts.get(key.local.address, account.as_ref(), limit);
                Payer { host: host.ok_or(DropReason::NatQuota)?, account }
            }
        };
        if let Err(reason) = self.take_session(&mut shard, &payer, false) {
            // What goes out by a forward needs no session: datagrams pass at the quota, too.
            let outside = mapping.and_then(|slot| shard.mapping(slot)).filter(|mapping| mapping.forward != 0);
            return match outside {
                Some(mapping) if key.protocol == Protocol::Udp => Ok(mapping.outside),
                _ => Err(reason.into()),
            };
        }
        let mapping = match mapping {
            Some(slot) => Ok(slot),
            None => self.map_outbound(&mut shard, shard_index, now, key, &payer, forward),
        };
        let slot = mapping.inspect_err(|_| self.release_session(&payer, false))?;
        let outside = shard.mapping(slot).map(|mapping| mapping.outside).ok_or(DropReason::NatNoMapping)?;
        shard.add_session(common, now, hash, slot, key.remote, Direction::Out);
        Ok(outside)
    }

    /// Makes the mapping of an inside endpoint.
    fn map_outbound(
        &self,
        shard: &mut Shard<A>,
        shard_index: usize,
        now: Tick,
        key: &Key<A>,
        payer: &Payer<A>,
        forward: Option<(u32, Option<A>, u16)>,
    ) -> Result<u32, DropReason> {
        let common = &self.napt.common;
        let (protocol, inside) = (key.protocol, key.local);
        let external = match forward {
            Some((_, Some(address), _)) => self.outside.external(address).cloned(),
            _ => payer.host.external(
                |paired| self.outside.external(paired.address).is_some_and(|own| Arc::ptr_eq(own, paired)),
                || self.outside.externals.iter().min_by_key(|e| e.hosts.load(Ordering::Relaxed)).cloned(),
            ),
        };
        let external = external.ok_or(DropReason::NatExhausted)?;
        if let Some((id, _, port)) = forward {
            let outside = Endpoint::new(external.address, port);
            let mapping = Mapping::new(protocol, inside, outside, id, payer.clone(), external);
            return Ok(shard.add_mapping(common, mapping));
        }
        if shard.mapping_slots().1 >= MAPPINGS_MAX {
            return Err(DropReason::NatExhausted);
        }
        if !payer.take_mapping(protocol, common.settings.mappings_per_host) {
            return Err(DropReason::NatQuota);
        }
        let Some(port) = external.take(now, protocol, inside.port) else {
            payer.release_mapping(protocol);
            return Err(DropReason::NatExhausted);
        };
        let outside = Endpoint::new(external.address, port);
        let mapping = Mapping::new(protocol, inside, outside, 0, payer.clone(), Arc::clone(&external));
        let slot = shard.add_mapping(common, mapping);
        external.hold(protocol, port, MappingRef { shard: shard_index, slot }, inside);
        Ok(slot)
    }

    fn take_session(
        &self,
        shard: &mut Shard<A>,
        payer: &Payer<A>,
        from_outside: bool,
    ) -> Result<(), DropReason> {
        let common = &self.napt.common;
        if !shard.has_place(common) {
            return Err(DropReason::NatExhausted);
        }
        if !payer.take_session(from_outside, common.settings.sessions_per_host) {
            return Err(DropReason::NatQuota);
        }
        if !common.take_session() {
            payer.release_session(from_outside);
            return Err(DropReason::NatExhausted);
        }
        Ok(())
    }

    fn release_session(&self, payer: &Payer<A>, from_outside: bool) {
        payer.release_session(from_outside);
        self.napt.common.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    fn try_inbound(&self, now: Tick, key: &Key<A>, flags: TcpFlags) -> Result<Endpoint<A>, Refused> {
        let external = self.outside.external(key.local.address).ok_or(DropReason::NatNoMapping)?;
        match external.holder(key.protocol, key.local.port) {
            Some((place, _)) => self.inbound_to_mapping(now, key, flags, place),
            None => self.inbound_by_forward(now, key, flags, external),
        }
    }

    /// A packet to a port that was given out.
    fn inbound_to_mapping(
        &self,
        now: Tick,
        key: &Key<A>,
        flags: TcpFlags,
        place: MappingRef,
    ) -> Result<Endpoint<A>, Refused> {
        let common = &self.napt.common;
        let mut shard = self.napt.shard(place.shard);
        let mapping = shard.mapping(place.slot).filter(|mapping| mapping.is(key.protocol, key.local));
        let inside = mapping.ok_or(DropReason::NatNoMapping)?.inside;
        let session = Key { local: inside, ..*key };
        let session_hash = session.hash(&common.hash);
        let slot = shard.find(common, session_hash, &session);
        let alive = slot.filter(|&slot| common.session(slot).is_alive(now));
        if let Some(slot) = alive
            && common.session(slot).outside() == key.local
        {
            shard.follow(common, now, slot, Direction::In, flags);
            return Ok(inside);
        }
        if alive.is_some() {
            return Err(DropReason::NatFiltered.into());
        }
        let open = match (key.protocol, common.settings.filtering) {
            (Protocol::Icmp, _) | (_, Filtering::AddressAndPortDependent) => false,
            (_, Filtering::EndpointIndependent) => true,
            (_, Filtering::AddressDependent) => {
                shard.has_peer(common, place.slot, key.remote.address, slot.is_some())
            }
        };
        if !open {
            return Err(DropReason::NatFiltered.into());
        }
        if key.protocol == Protocol::Udp {
            return Ok(inside);
        }
        self.open_inbound(&mut shard, now, (&session, session_hash), flags, place.slot, slot)?;
        Ok(inside)
    }

    /// A packet to a port that nobody was given: perhaps it is forwarded.
    fn inbound_by_forward(
        &self,
        now: Tick,
        key: &Key<A>,
        flags: TcpFlags,
        external: &Arc<External<A>>,
    ) -> Result<Endpoint<A>, Refused> {
        let common = &self.napt.common;
        let (id, inside) =
            self.outside.forwards.inside(key.protocol, key.local).ok_or(DropReason::NatNoMapping)?;
        let session = Key { local: inside, ..*key };
        let session_hash = session.hash(&common.hash);
        let inside_hash = hash_inside(&common.hash, key.protocol, inside);
        let mut shard = self.napt.shard(shard_of(inside_hash));
        if self.is_stale() {
            return Err(Refused::Stale);
        }
        let slot = shard.find(common, session_hash, &session);
        if let Some(slot) = slot {
            let alive = common.session(slot).is_alive(now);
            if common.session(slot).outside() != key.local {
                // The guest has the same remote end by another outside endpoint: it could not tell them apart.
                return Err(DropReason::NatFiltered.into());
            }
            if alive {
                shard.follow(common, now, slot, Direction::In, flags);
                return Ok(inside);
            }
        }
        let by_this = |mapping: &Mapping<A>| mapping.forward == id && mapping.outside == key.local;
        if key.protocol == Protocol::Tcp && !flags.opens() {
            return Err(DropReason::NatNoMapping.into());
        }
        let mapping = match shard.find_mapping(inside_hash, key.protocol, inside, by_this) {
            Some(mapping) => mapping,
            None => {
                // An operator's word: no account is charged.
                let host = common.hosts.get(inside.address, None, 0).ok_or(DropReason::NatQuota)?;
                let payer = Payer { host, account: None };
                if let Err(reason) = self.take_session(&mut shard, &payer, true) {
                    return self.without_session(key.protocol, inside, reason);
                }
                let external = Arc::clone(external);
                let mapping = Mapping::new(key.protocol, inside, key.local, id, payer, external);
                let mapping = shard.add_mapping(common, mapping);
                shard.add_session(common, now, session_hash, mapping, key.remote, Direction::In);
                return Ok(inside);
            }
        };
        match self.open_inbound(&mut shard, now, (&session, session_hash), flags, mapping, slot) {
            Ok(()) => Ok(inside),
            Err(reason) => self.without_session(key.protocol, inside, reason),
        }
    }

    /// What comes by a forward needs no session: datagrams pass at the quota, too.
    fn without_session(
        &self,
        protocol: Protocol,
        inside: Endpoint<A>,
        reason: DropReason,
    ) -> Result<Endpoint<A>, Refused> {
        if protocol == Protocol::Udp { Ok(inside) } else { Err(reason.into()) }
    }

    /// Makes a session of a packet from the outside, on a mapping that is there, or begins an ended one anew.
    fn open_inbound(
        &self,
        shard: &mut Shard<A>,
        now: Tick,
        (session, hash): (&Key<A>, u64),
        flags: TcpFlags,
        mapping: u32,
        ended: Option<u32>,
    ) -> Result<(), DropReason> {
        let common = &self.napt.common;
        if session.protocol == Protocol::Tcp && !flags.opens() {
            return Err(DropReason::NatNoMapping);
        }
        if let Some(slot) = ended {
            shard.renew(common, now, slot, Direction::In);
            return Ok(());
        }
        let payer = shard.payer(mapping).cloned().ok_or(DropReason::NatNoMapping)?;
        self.take_session(shard, &payer, true)?;
        shard.add_session(common, now, hash, mapping, session.remote, Direction::In);
        Ok(())
    }
}
