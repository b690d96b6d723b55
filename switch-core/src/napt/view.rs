//! A worker's view of a translator: the questions of the frame path.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::access::Protocol;
use super::cache::{Answer, Cache};
use super::common::{FRESH, Filtering};
use super::flow::{Address, Endpoint, Flow, Key, TcpFlags, hash_inside};
use super::hosts::Payer;
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
pub struct View<A> {
    napt: Arc<Napt<A>>,
    outside: Arc<Outside<A>>,
    epoch: u32,
    out: Cache<A>,
    inward: Cache<A>,
    fresh: u32,
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
        // Not rounded up, as an end is: an answer is never fresh for longer than that.
        let fresh = ticks(FRESH).saturating_sub(1);
        Self { napt, outside, epoch, out: Cache::new(), inward: Cache::new(), fresh }
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
        let now = Tick::of(now);
        let common = &self.napt.common;
        let key = Key { protocol: flow.protocol, local: flow.local, remote: flow.remote };
        let hash = key.hash(&common.hash);
        if flow.flags.is_plain()
            && let Some(outside) = self.out.get(hash, &key, now, &common.epochs)
        {
            return Ok(outside);
        }
        let inside_hash = hash_inside(&common.hash, flow.protocol, flow.local);
        let mut shard = self.napt.shard(shard_of(inside_hash));
        if let Some(slot) = shard.find(hash, &key)
            && shard.session(slot).is_alive(now)
        {
            shard.follow(common, now, (slot, hash), Direction::Out, flow.flags);
            let session = shard.session(slot);
            let outside = session.outside();
            if session.is_settled() {
                let until = now.after(self.fresh).min(session.deadline);
                let epoch = common.epochs.current(hash);
                self.out.put(hash, Answer::new(key, outside, hash, epoch, until));
            }
            return Ok(outside);
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
        let now = Tick::of(now);
        let common = &self.napt.common;
        let key = Key { protocol: flow.protocol, local: flow.local, remote: flow.remote };
        let hash = key.hash(&common.hash);
        if flow.flags.is_plain()
            && let Some(inside) = self.inward.get(hash, &key, now, &common.epochs)
        {
            return Ok(inside);
        }
        loop {
            self.refresh();
            match self.try_inbound(now, &key, flow.flags) {
                Ok((inside, answer)) => {
                    if let Some(answer) = answer {
                        self.inward.put(hash, answer);
                    }
                    return Ok(inside);
                }
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
            Some(place) => {
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
    fn refresh(&mut self) {
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
        let session = shard.session(shard.find(key.hash(&common.hash), key)?);
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
            match self.try_open_outbound(now, port, key, hashes) {
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
    ) -> Result<Endpoint<A>, Refused> {
        let common = &self.napt.common;
        let shard_index = shard_of(inside_hash);
        let mut shard = self.napt.shard(shard_index);
        if self.is_stale() {
            return Err(Refused::Stale);
        }
        if let Some(slot) = shard.find(hash, key) {
            // Another worker's, made meanwhile, or one that ended and is not gone yet: it lives on.
            if shard.session(slot).is_alive(now) {
                shard.follow(common, now, (slot, hash), Direction::Out, TcpFlags::SYN);
            } else {
                shard.renew(common, now, (slot, hash), Direction::Out);
            }
            return Ok(shard.session(slot).outside());
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
        if let Err(reason) = self.take_session(&payer, false) {
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
        let session = shard.add_session(common, now, hash, slot, key.remote, Direction::Out);
        Ok(shard.session(session).outside())
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
        external.hold(protocol, port, MappingRef { shard: shard_index, slot });
        Ok(slot)
    }

    fn take_session(&self, payer: &Payer<A>, from_outside: bool) -> Result<(), DropReason> {
        let common = &self.napt.common;
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

    fn try_inbound(
        &self,
        now: Tick,
        key: &Key<A>,
        flags: TcpFlags,
    ) -> Result<(Endpoint<A>, Option<Answer<A>>), Refused> {
        let external = self.outside.external(key.local.address).ok_or(DropReason::NatNoMapping)?;
        match external.holder(key.protocol, key.local.port) {
            Some(place) => self.inbound_to_mapping(now, key, flags, place),
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
    ) -> Result<(Endpoint<A>, Option<Answer<A>>), Refused> {
        let common = &self.napt.common;
        let mut shard = self.napt.shard(place.shard);
        // The reference is a hint, but a session that has this outside endpoint is the one that is meant.
        let inside = shard.inside(place.slot).ok_or(DropReason::NatNoMapping)?;
        let session = Key { local: inside, ..*key };
        let session_hash = session.hash(&common.hash);
        let slot = shard.find(session_hash, &session);
        let alive = slot.filter(|&slot| shard.session(slot).is_alive(now));
        if let Some(slot) = alive
            && shard.session(slot).outside() == key.local
        {
            shard.follow(common, now, (slot, session_hash), Direction::In, flags);
            let answer = self.answer(&shard, slot, now, key, inside, session_hash);
            return Ok((inside, answer));
        }
        if !shard.mapping(place.slot).is_some_and(|mapping| mapping.is(key.protocol, key.local)) {
            return Err(DropReason::NatNoMapping.into());
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
            return Ok((inside, None));
        }
        self.open_inbound(&mut shard, now, (&session, session_hash), flags, place.slot, slot)?;
        Ok((inside, None))
    }

    /// A packet to a port that nobody was given: perhaps it is forwarded.
    fn inbound_by_forward(
        &self,
        now: Tick,
        key: &Key<A>,
        flags: TcpFlags,
        external: &Arc<External<A>>,
    ) -> Result<(Endpoint<A>, Option<Answer<A>>), Refused> {
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
        let slot = shard.find(session_hash, &session);
        if let Some(slot) = slot {
            let alive = shard.session(slot).is_alive(now);
            if shard.session(slot).outside() != key.local {
                // The guest has the same remote end by another outside endpoint: it could not tell them apart.
                return Err(DropReason::NatFiltered.into());
            }
            if alive {
                shard.follow(common, now, (slot, session_hash), Direction::In, flags);
                let answer = self.answer(&shard, slot, now, key, inside, session_hash);
                return Ok((inside, answer));
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
                if let Err(reason) = self.take_session(&payer, true) {
                    return self.without_session(key.protocol, inside, reason);
                }
                let external = Arc::clone(external);
                let mapping = Mapping::new(key.protocol, inside, key.local, id, payer, external);
                let mapping = shard.add_mapping(common, mapping);
                shard.add_session(common, now, session_hash, mapping, key.remote, Direction::In);
                return Ok((inside, None));
            }
        };
        match self.open_inbound(&mut shard, now, (&session, session_hash), flags, mapping, slot) {
            Ok(()) => Ok((inside, None)),
            Err(reason) => self.without_session(key.protocol, inside, reason),
        }
    }

    /// What comes by a forward needs no session: datagrams pass at the quota, too.
    fn without_session(
        &self,
        protocol: Protocol,
        inside: Endpoint<A>,
        reason: DropReason,
    ) -> Result<(Endpoint<A>, Option<Answer<A>>), Refused> {
        if protocol == Protocol::Udp { Ok((inside, None)) } else { Err(reason.into()) }
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
            shard.renew(common, now, (slot, hash), Direction::In);
            return Ok(());
        }
        let payer = shard.payer(mapping).cloned().ok_or(DropReason::NatNoMapping)?;
        self.take_session(&payer, true)?;
        shard.add_session(common, now, hash, mapping, session.remote, Direction::In);
        Ok(())
    }

    /// What a worker may remember of an inbound packet of a session.
    fn answer(
        &self,
        shard: &Shard<A>,
        slot: u32,
        now: Tick,
        key: &Key<A>,
        inside: Endpoint<A>,
        session_hash: u64,
    ) -> Option<Answer<A>> {
        let session = shard.session(slot);
        let until = now.after(self.fresh).min(session.deadline);
        let epoch = self.napt.common.epochs.current(session_hash);
        session.is_settled().then(|| Answer::new(*key, inside, session_hash, epoch, until))
    }
}
