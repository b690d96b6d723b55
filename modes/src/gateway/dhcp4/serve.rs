//! The protocol: what becomes of each message (RFC 2131, 4.3), and of each end that is due.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::MessageType;
use switch_core::{Instant, MacAddr, PortId};

use super::config::Config;
use super::frame::{self, Datagram, Received};
use super::message::{Kind, Request, Unread};
use super::pool::{Asker, Hold, Lease, Offer, Pending, Pick};
use super::reply::{self, Answer};
use super::reservations::Reservation;
use super::{LeaseEvent, Server};
use crate::gateway::leases::{Change, Record};
use crate::gateway::{Handled, Outbox};

/// How long an offer is held: clients compare offers for some seconds and repeat a REQUEST for about a minute.
const OFFER_HELD: Duration = Duration::from_secs(60);
/// How long a probe that nobody answered holds good.
const CLEAR_FOR: Duration = Duration::from_secs(60);
/// How long after its end a lease's client gets the address without a probe, in seconds.
const RECENT_SECS: u64 = 60;
/// Addresses that are probed for one DISCOVER, at most. Its client repeats it.
const TRIES_MAX: u8 = 8;
/// The shortest lease that a client gets because it asks for it, in seconds: each renewal is a write.
const ASKED_SECS_MIN: u32 = 120;
/// A lease this young is acknowledged again as it is.
const YOUNG: Duration = Duration::from_secs(60);

/// A message and where it came from.
struct Asked<'a> {
    now: Instant,
    from: PortId,
    request: &'a Request,
    /// The Ethernet address that the frame came from.
    source: MacAddr,
    reservation: Option<Reservation>,
}

impl Asked<'_> {
    fn asker(&self) -> Asker<'_> {
        Asker {
            client: &self.request.client,
            port: self.from,
            mac: self.request.mac,
            reservation: self.reservation.as_ref(),
        }
    }
}

/// What becomes of a REQUEST for an address that the client says it has.
enum Verdict {
    Grant,
    Refuse(&'static str),
    Silence,
}

impl Server {
    /// Takes a whole frame that `from` received, without a VLAN tag. `unix_s` is the wall clock at `now`, in seconds
    /// since the Unix epoch. It is handled if it is for a DHCP server on this network, whatever becomes of it.
    pub fn receive(
        &mut self,
        now: Instant,
        unix_s: u64,
        from: PortId,
        frame: &[u8],
        out: &mut Outbox,
    ) -> Handled {
        let datagram = match frame::read(frame) {
            Received::Other => return Handled::No,
            Received::Bad => {
                self.counters.malformed += 1;
                return Handled::Yes;
            }
            Received::Datagram(datagram) => datagram,
        };
        let ours = [self.config.server, Ipv4Addr::BROADCAST, self.config.subnet.broadcast()];
        if !ours.contains(&datagram.destination) {
            return Handled::No;
        }
        self.clock = (now, unix_s);
        self.poll(now, out);
        if self.messages.take(now, from) {
            self.take(now, from, &datagram, out);
        } else {
            self.counters.limited += 1;
        }
        Handled::Yes
    }

    fn take(&mut self, now: Instant, from: PortId, datagram: &Datagram<'_>, out: &mut Outbox) {
        let request = match Request::read(datagram.payload) {
            Ok(request) => request,
            Err(Unread::Malformed) => return self.counters.malformed += 1,
            Err(Unread::Relayed) => return self.counters.relayed += 1,
            Err(Unread::NotForServers) => return self.counters.silent += 1,
        };
        let reservation = self.pool.reserved.find(from, request.mac, datagram.mac).cloned();
        let asked = Asked { now, from, request: &request, source: datagram.mac, reservation };
        match request.kind {
            Kind::Discover => {
                self.counters.discover += 1;
                self.discover(&asked, 0, out);
            }
            Kind::Request => {
                self.counters.request += 1;
                self.request(&asked, datagram.destination == self.config.server, out);
            }
            Kind::Decline => {
                self.counters.decline += 1;
                self.decline(&asked);
            }
            Kind::Release => {
                self.counters.release += 1;
                self.release(&asked);
            }
            Kind::Inform => {
                self.counters.inform += 1;
                self.inform(&asked, datagram.source, out);
            }
        }
    }

    /// Tells that a station at `from` said by ARP that it has an address. If that was being probed, somebody uses it.
    pub fn arp_seen(&mut self, now: Instant, from: PortId, ip: Ipv4Addr, mac: MacAddr, out: &mut Outbox) {
        let Some(slot) = self.pool.slot(ip) else { return };
        let Hold::Offered(Offer { port, pending: Some(pending), .. }) = &slot.hold else { return };
        if mac == pending.request.mac || mac == self.config.router_mac {
            return;
        }
        let (port, pending) = (*port, pending.clone());
        if !self.pool.believes(from) {
            self.counters.disbelieved += 1;
            return;
        }
        self.counters.conflict += 1;
        let until = now + self.config.aside;
        self.pool.update(ip, |slot| slot.hold = Hold::Aside { until, port: from });
        let request = &pending.request;
        let reservation = self.pool.reserved.find(port, request.mac, pending.source).cloned();
        let asked = Asked { now, from: port, request, source: pending.source, reservation };
        self.discover(&asked, pending.tries, out);
    }

    /// Offers an address, or probes the one that it will offer; `tries` were probed for this message before.
    fn discover(&mut self, asked: &Asked<'_>, tries: u8, out: &mut Outbox) {
        let (now, request) = (asked.now, asked.request);
        let asker = asked.asker();
        let ip = match self.pool.pick(&asker, request.requested, &self.config) {
            Pick::Address(ip) => ip,
            Pick::Exhausted => return self.counters.pool_exhausted += 1,
            Pick::Limited => return self.counters.port_limit += 1,
        };
        let unix = self.unix(now);
        let slot = self.pool.slot(ip).cloned().unwrap_or_default();
        // What this client has been offered besides is free.
        let others = self.pool.known(&asker).filter(|(other, slot)| {
            *other != ip && matches!(&slot.hold, Hold::Offered(o) if o.client == request.client && o.port == asked.from)
        });
        for other in others.map(|(other, _)| other).collect::<Vec<_>>() {
            self.pool.update(other, |slot| slot.hold = Hold::Free);
        }
        let mut until = now + OFFER_HELD;
        let mut pending = None;
        match slot.hold {
            Hold::Leased(_) => return self.answer(asked, MessageType::Offer, ip, out),
            Hold::Offered(offer) if offer.client == request.client && offer.port == asked.from => {
                // It repeats itself; a probe goes on as it is, and the newest message is answered.
                if let Some(probing) = offer.pending {
                    until = offer.until;
                    pending = Some(probing.tries);
                }
            }
            hold => {
                let before = slot.last.is_some_and(|(client, ended)| {
                    client == request.client && unix.saturating_sub(ended) < RECENT_SECS
                });
                let clear = slot.clear_until.is_some_and(|until| until > now);
                if let Some(wait) = self.config.probe.filter(|_| !before && !clear) {
                    if tries >= TRIES_MAX {
                        return;
                    }
                    if let Some(frame) = frame::probe(self.config.router_mac, ip) {
                        out.send(frame);
                    }
                    until = now + wait;
                    pending = Some(tries + 1);
                }
                self.counters.preempted += u64::from(matches!(hold, Hold::Offered(_)));
            }
        }
        let pending =
            pending.map(|tries| Box::new(Pending { request: request.clone(), source: asked.source, tries }));
        let probed = pending.is_some();
        let offer = Offer { client: request.client.clone(), port: asked.from, until, pending };
        self.pool.update(ip, |slot| slot.hold = Hold::Offered(offer));
        if !probed {
            self.answer(asked, MessageType::Offer, ip, out);
        }
    }

    /// A REQUEST in one of its four states (RFC 2131, 4.3.2).
    fn request(&mut self, asked: &Asked<'_>, to_server: bool, out: &mut Outbox) {
        let request = asked.request;
        // Some clients name the server when they renew, too, which they must not; but then they ask for no address.
        let renews = request.requested.is_none() && !request.ciaddr.is_unspecified();
        if let Some(server) = request.server_id.filter(|_| !renews) {
            // Selecting. The address is the one that was offered.
            let Some(ip) = request.requested else { return self.counters.malformed += 1 };
            if server != self.config.server {
                self.drop_offers(asked);
                return self.counters.silent += 1;
            }
            let asker = asked.asker();
            if self.pool.may_have(ip, asker.reservation) && self.pool.is_its_own(ip, &asker) {
                self.grant(asked, ip, out);
            } else {
                self.refuse(asked, "the address was not offered, or is not free any more", out);
            }
            return;
        }
        let (ip, verdict) = match (request.requested, request.ciaddr.is_unspecified()) {
            (Some(ip), true) => (ip, self.reboot(asked, ip)),
            (None, false) => (request.ciaddr, self.renew(asked, request.ciaddr, to_server)),
            // Neither init-reboot nor renewing nor rebinding.
            _ => return self.counters.malformed += 1,
        };
        match verdict {
            Verdict::Grant => self.grant(asked, ip, out),
            Verdict::Refuse(reason) => self.refuse(asked, reason, out),
            Verdict::Silence => self.counters.silent += 1,
        }
    }

    /// Init-reboot: the client remembers an address.
    fn reboot(&self, asked: &Asked<'_>, ip: Ipv4Addr) -> Verdict {
        if !self.config.subnet.contains(ip) {
            return Verdict::Refuse("the address is not of this network");
        }
        let asker = asked.asker();
        let known = asker.reservation.is_some() || self.pool.known(&asker).next().is_some();
        match self.own(asked, ip) {
            Verdict::Silence if known => Verdict::Refuse("the address is not the client's"),
            verdict => verdict,
        }
    }

    /// Renewing, to the server's own address, or rebinding, to all.
    fn renew(&self, asked: &Asked<'_>, ip: Ipv4Addr, to_server: bool) -> Verdict {
        if !self.config.subnet.contains(ip) {
            return Verdict::Refuse("the address is not of this network");
        }
        let leased = self.pool.lease(ip).is_some_and(|l| !l.is_of(&asked.request.client, asked.from));
        // Nor is one that is kept for somebody else, who may not have asked for it yet.
        let another = leased || self.pool.reserved.of(ip).is_some();
        match self.own(asked, ip) {
            // In renewing, it names us as the server that gave it the address; in rebinding, another may have.
            Verdict::Silence if to_server || another || asked.reservation.is_some() => {
                Verdict::Refuse("the address is not the client's")
            }
            verdict => verdict,
        }
    }

    /// What the record says of a client and an address: silence if it does not say that the address is the client's.
    fn own(&self, asked: &Asked<'_>, ip: Ipv4Addr) -> Verdict {
        let asker = asked.asker();
        if let Some(reservation) = asker.reservation.filter(|r| r.ip != ip)
            && self.pool.is_open_to_owner(reservation.ip, &asker)
        {
            return Verdict::Refuse("another address is reserved for the client");
        }
        if !self.pool.is_its_own(ip, &asker) {
            return Verdict::Silence;
        }
        if self.pool.may_have(ip, asker.reservation) {
            Verdict::Grant
        } else {
            Verdict::Refuse("the address is not to be had any more")
        }
    }

    /// The client chose another server.
    fn drop_offers(&mut self, asked: &Asked<'_>) {
        let is_its = |hold: &Hold| matches!(hold, Hold::Offered(o) if o.client == asked.request.client && o.port == asked.from);
        let asker = asked.asker();
        let offers: Vec<_> =
            self.pool.known(&asker).filter(|(_, slot)| is_its(&slot.hold)).map(|(ip, _)| ip).collect();
        for ip in offers {
            self.pool.update(ip, |slot| slot.hold = Hold::Free);
        }
    }

    /// Gives an address, or gives it for longer: first to the store, then to the client.
    fn grant(&mut self, asked: &Asked<'_>, ip: Ipv4Addr, out: &mut Outbox) {
        let (now, request) = (asked.now, asked.request);
        let asker = asked.asker();
        if self.pool.is_over(ip, &asker, &self.config) {
            self.counters.port_limit += 1;
            return self.refuse(asked, "the port has as many leases as it may", out);
        }
        let old = self.pool.lease(ip).cloned();
        let own = old.as_ref().filter(|lease| lease.is_of(&request.client, asked.from));
        let hostname = self.hostname_for(asked, ip, own);
        let asked_secs = request.lease_secs.map_or(u32::MAX, |secs| secs.max(ASKED_SECS_MIN));
        let secs = asked_secs.min(self.config.lease_secs);
        if let Some(lease) = own {
            let left = lease.until.since(now).as_secs();
            let as_it_was =
                lease.mac == request.mac && lease.port == Some(asked.from) && lease.hostname == hostname;
            let young = now.since(lease.granted) < YOUNG.min(Duration::from_secs(u64::from(secs / 8)));
            if as_it_was && young && left <= u64::from(secs) {
                return self.answer(asked, MessageType::Ack, ip, out);
            }
        }
        if !self.writes.take(now, asked.from) {
            return self.counters.limited += 1;
        }
        let expires_unix = self.unix(now).saturating_add(u64::from(secs));
        let record = Record {
            ip,
            mac: request.mac,
            client: request.client.clone(),
            hostname: hostname.clone(),
            expires_unix,
            lease_secs: secs,
        };
        if !self.is_written(Change::Set(&record)) {
            return;
        }
        let place = (Some(asked.from), request.mac);
        let moved = old.as_ref().is_none_or(|old| (old.port, old.mac) != place);
        let renamed = old.as_ref().is_none_or(|old| old.hostname != hostname);
        if moved && old.is_some_and(|old| old.port.is_some()) {
            self.withdrawn(ip);
        }
        if moved || renamed {
            self.push_event(LeaseEvent::Assigned { port: asked.from, ip, mac: request.mac });
        }
        let until = now + Duration::from_secs(u64::from(secs));
        let lease = Lease {
            client: record.client,
            mac: record.mac,
            port: Some(asked.from),
            hostname,
            granted: now,
            until,
            expires_unix,
        };
        self.pool.update(ip, |slot| {
            slot.hold = Hold::Leased(lease);
            (slot.last, slot.clear_until) = (None, None);
        });
        self.leave_others(asked, ip);
        self.answer(asked, MessageType::Ack, ip, out);
    }

    /// A client that has another address now does not use those that it had.
    fn leave_others(&mut self, asked: &Asked<'_>, ip: Ipv4Addr) {
        self.drop_offers(asked);
        let asker = asked.asker();
        let others = self.pool.known(&asker).filter(|(other, slot)| {
            *other != ip && matches!(&slot.hold, Hold::Leased(l) if l.is_of(asker.client, asker.port))
        });
        for other in others.map(|(other, _)| other).collect::<Vec<_>>() {
            self.give_back(asked.now, other, true);
        }
    }

    /// The name that a lease holds: the reserved one is not the lease's, so that there is none then.
    fn hostname_for(&self, asked: &Asked<'_>, ip: Ipv4Addr, own: Option<&Lease>) -> Option<String> {
        if self.pool.reserved.name_of(ip).is_some() {
            return None;
        }
        let said = asked.request.hostname.clone().filter(|name| self.name_is_free(name, ip));
        said.or_else(|| own.and_then(|lease| lease.hostname.clone()))
    }

    /// True if a lease of this address may hold the name.
    pub(super) fn name_is_free(&self, name: &str, ip: Ipv4Addr) -> bool {
        self.pool.named(name).is_none_or(|holder| holder == ip)
            && self.pool.reserved.named(name).is_none()
            && !self.config.names_kept.iter().any(|kept| kept.eq_ignore_ascii_case(name))
            && super::names::label(name.as_bytes()).is_some_and(|label| label == name)
    }

    /// A client found that somebody else uses its address.
    fn decline(&mut self, asked: &Asked<'_>) {
        let asker = asked.asker();
        let to_us = asked.request.server_id == Some(self.config.server);
        let Some(ip) = asked.request.requested.filter(|&ip| to_us && self.is_held(ip, &asker)) else {
            return self.counters.silent += 1;
        };
        if self.pool.lease(ip).is_some() && !self.give_back(asked.now, ip, false) {
            return;
        }
        if self.pool.believes(asked.from) {
            let (until, port) = (asked.now + self.config.aside, asked.from);
            self.pool.update(ip, |slot| slot.hold = Hold::Aside { until, port });
        } else {
            self.counters.disbelieved += 1;
            self.pool.update(ip, |slot| slot.hold = Hold::Free);
        }
    }

    /// True if the client was offered the address or has it, at its port.
    fn is_held(&self, ip: Ipv4Addr, asker: &Asker<'_>) -> bool {
        match self.pool.slot(ip).map(|slot| &slot.hold) {
            Some(Hold::Offered(_)) => self.pool.is_its_own(ip, asker),
            Some(Hold::Leased(lease)) => lease.is_of(asker.client, asker.port) && lease.mac == asker.mac,
            _ => false,
        }
    }

    fn release(&mut self, asked: &Asked<'_>) {
        let (ip, asker) = (asked.request.ciaddr, asked.asker());
        let to_us = asked.request.server_id == Some(self.config.server);
        if !to_us || self.pool.lease(ip).is_none() || !self.is_held(ip, &asker) {
            return self.counters.silent += 1;
        }
        if !self.writes.take(asked.now, asked.from) {
            return self.counters.limited += 1;
        }
        self.give_back(asked.now, ip, true);
    }

    /// Ends a lease before its time, if that can be written. The client gets the address again when it comes back,
    /// unless it is not `remembered`.
    fn give_back(&mut self, now: Instant, ip: Ipv4Addr, remembered: bool) -> bool {
        let Some(lease) = self.pool.lease(ip).cloned() else { return false };
        let expires_unix = self.unix(now);
        let Lease { client, mac, hostname, .. } = lease;
        let record = Record { ip, mac, client: client.clone(), hostname, expires_unix, lease_secs: 0 };
        let change = if remembered { Change::Set(&record) } else { Change::Remove(ip) };
        if !self.is_written(change) {
            return false;
        }
        self.withdrawn(ip);
        self.pool.update(ip, |slot| {
            slot.hold = Hold::Free;
            slot.last = remembered.then_some((client, expires_unix));
        });
        true
    }

    /// The client has an address by other means and asks for the rest.
    fn inform(&mut self, asked: &Asked<'_>, source: Ipv4Addr, out: &mut Outbox) {
        let mut request = asked.request.clone();
        if request.ciaddr.is_unspecified() {
            request.ciaddr = source;
        }
        if !self.config.is_client(request.ciaddr) {
            return self.counters.silent += 1;
        }
        let hostname = self.pool.reserved.name_of(request.ciaddr);
        let kind = MessageType::Ack;
        let none = Ipv4Addr::UNSPECIFIED;
        let answer = Answer { kind, address: none, secs: None, hostname, reason: None };
        if let Some(frame) = reply::frame(&self.config, &request, &answer) {
            self.counters.ack += 1;
            out.send_to(asked.from, frame);
        }
    }

    /// Sends an OFFER or an ACK of an address.
    fn answer(&mut self, asked: &Asked<'_>, kind: MessageType, ip: Ipv4Addr, out: &mut Outbox) {
        let config: &Config = &self.config;
        let asked_secs = asked.request.lease_secs.map_or(u32::MAX, |secs| secs.max(ASKED_SECS_MIN));
        let lease = self.pool.lease(ip);
        let secs = match lease.filter(|_| kind == MessageType::Ack) {
            // Rounded down, so that no client has an address for longer than we say.
            Some(lease) => u32::try_from(lease.until.since(asked.now).as_secs()).unwrap_or(u32::MAX),
            None => asked_secs.min(config.lease_secs),
        };
        let held = lease.and_then(|lease| lease.hostname.as_deref());
        let said = asked.request.hostname.as_deref().filter(|name| self.name_is_free(name, ip));
        let hostname =
            self.pool.reserved.name_of(ip).or(held).or(said.filter(|_| kind == MessageType::Offer));
        let answer = Answer { kind, address: ip, secs: Some(secs), hostname, reason: None };
        if let Some(frame) = reply::frame(config, asked.request, &answer) {
            match kind {
                MessageType::Offer => self.counters.offer += 1,
                _ => self.counters.ack += 1,
            }
            out.send_to(asked.from, frame);
        }
    }

    fn refuse(&mut self, asked: &Asked<'_>, reason: &'static str, out: &mut Outbox) {
        let (kind, address) = (MessageType::Nak, Ipv4Addr::UNSPECIFIED);
        let answer = Answer { kind, address, secs: None, hostname: None, reason: Some(reason) };
        if let Some(frame) = reply::frame(&self.config, asked.request, &answer) {
            self.counters.nak += 1;
            out.send_to(asked.from, frame);
        }
    }

    /// What held an address until now does so no longer.
    pub(super) fn end(&mut self, now: Instant, ip: Ipv4Addr, out: &mut Outbox) {
        let Some(slot) = self.pool.slot(ip) else { return };
        match slot.hold.clone() {
            Hold::Offered(Offer { client, port, pending: Some(pending), .. }) => {
                let request = &pending.request;
                let reservation = self.pool.reserved.find(port, request.mac, pending.source).cloned();
                let asked = Asked { now, from: port, request, source: pending.source, reservation };
                // It may have been reserved for somebody else meanwhile.
                let may_have = self.pool.may_have(ip, asked.reservation.as_ref());
                let offer = Offer { client, port, until: now + OFFER_HELD, pending: None };
                self.pool.update(ip, |slot| {
                    slot.hold = if may_have { Hold::Offered(offer) } else { Hold::Free };
                    slot.clear_until = Some(now + CLEAR_FOR);
                });
                if may_have {
                    self.answer(&asked, MessageType::Offer, ip, out);
                }
            }
            Hold::Leased(lease) => {
                self.counters.expired += 1;
                self.withdrawn(ip);
                self.pool.update(ip, |slot| {
                    slot.hold = Hold::Free;
                    slot.last = Some((lease.client, lease.expires_unix));
                });
            }
            Hold::Free | Hold::Offered(_) | Hold::Aside { .. } => {
                self.pool.update(ip, |slot| slot.hold = Hold::Free);
            }
        }
    }

    /// True if the change is durable.
    fn is_written(&mut self, change: Change<'_>) -> bool {
        let result = self.store.write(change);
        self.store_error = result.as_ref().err().map(ToString::to_string);
        self.counters.not_durable += u64::from(result.is_err());
        result.is_ok()
    }

    /// The wall clock, in seconds since the Unix epoch.
    fn unix(&self, now: Instant) -> u64 {
        let (at, unix_s) = self.clock;
        unix_s.saturating_add(now.since(at).as_secs())
    }
}
