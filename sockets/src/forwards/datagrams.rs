//! Datagrams of clients to guests, and the guests' answers, which leave by the socket that the client sent to.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use datapath::Segment;
use datapath::datagram::{self, Outgoing};
use rustix::io::Errno;
use switch_core::ip::{PROTO_UDP, Packet, Transport};
use switch_core::napt::Protocol;
use switch_core::{Head, MacAddr};

use super::clients::Client;
use super::neighbours::Waiting;
use super::{Forwards, kept, pick, replaced};
use crate::counters::Counter;
use crate::engine::Context;
use crate::faults::{self, About};
use crate::fill::Fill;
use crate::frame::{Way, addresses};
use crate::table::Key;
use crate::token::Token;
use crate::udp::{self, Arrived, Datagram, HOPS_TOLD, QUOTE, RECEIVED};

impl Forwards {
    /// Writes frames into a burst while it has room: of each socket that has something one in its turn.
    pub(crate) fn fill(&mut self, ctx: &mut Context<'_>, fill: &mut Fill<'_>) {
        for _ in 0..RECEIVED {
            if !fill.has_room() {
                break;
            }
            let Some(by) = self.sent_to.next() else { break };
            let Some(slot) = self.slots.get_mut(by.slot as usize) else { continue };
            let listener = slot.listener.as_mut().filter(|_| slot.generation == by.generation);
            let Some(listener) = listener else { continue };
            let (guest, source) = (listener.target, listener.source);
            let received = datagram::receive(listener.socket.as_fd(), fill.slot());
            self.sent_to.done(ctx.now, &mut listener.stands, by, received.as_ref().err().copied());
            let Ok((bytes, with)) = received else { continue };
            let client = Client { by, from: with.from, to: with.to };
            let secret = &self.secret;
            let limits = &ctx.settings.limits;
            let (seen, ended) = self.clients.arrives(ctx.now, client, guest, limits, |taken| {
                kept(ctx, source, with.from).filter(|&client| !taken(client)).or_else(|| {
                    let gateway = ctx.settings.gateway(guest.ip())?;
                    replaced(ctx, source);
                    pick(secret, gateway, with.from, taken)
                })
            });
            for _ in 0..ended {
                ctx.counters.add(Counter::Evicted);
            }
            let addresses = seen.and_then(|seen| addresses(seen.ip(), guest.ip()));
            let (Some(seen), Some(addresses)) = (seen, addresses) else {
                ctx.counters.add(Counter::NoGuest);
                continue;
            };
            let ports = [seen.port(), guest.port()];
            let mac = self.neighbours.find(ctx, guest.ip());
            let to = mac.unwrap_or(MacAddr::BROADCAST);
            let way = Way { to, from: ctx.settings.mac, addresses, protocol: PROTO_UDP };
            let arrived = Arrived::new(ctx.settings.mtu, way, ports, bytes.len(), with.segment);
            match (arrived, mac) {
                (Arrived::Frame { headers, len, vnet, payload }, Some(_)) => {
                    fill.push(headers.get(..len).unwrap_or_default(), vnet, payload);
                }
                (_, mac) => {
                    let frames =
                        udp::pieces_of(&way, ports, bytes, with.segment, ctx.settings.mtu, &mut self.next_id);
                    if mac.is_some() {
                        frames.into_iter().for_each(|frame| ctx.send(frame));
                        ctx.empty_into(fill);
                    } else if !self.neighbours.wait(ctx.now, guest.ip(), Waiting::Datagram(frames, by)) {
                        ctx.counters.add(Counter::NoGuest);
                    }
                }
            }
        }
    }

    /// Hears what was said of guests' answers to clients, and tells the guests.
    pub(super) fn hear_faults(&mut self, ctx: &mut Context<'_>, by: Token) {
        let mut room = [MaybeUninit::uninit(); QUOTE];
        while let Some(listener) = self.listener(by).filter(|listener| listener.protocol == Protocol::Udp) {
            let Ok((payload, fault)) = datagram::fault(listener.socket.as_fd(), &mut room) else { break };
            let Some(fault) = fault else { continue };
            let client = Client { by, from: fault.to, to: fault.from };
            let Some((guest, seen)) = self.clients.name(&client) else { continue };
            let Some(mac) = self.neighbours.find(ctx, guest.ip()) else { continue };
            let transport = udp::quoted([guest.port(), seen.port()], payload);
            let key = Key { owner: None, inside: guest };
            let about = About { key, mac, remote: seen.ip(), protocol: PROTO_UDP, transport: &transport };
            faults::tell(ctx, &fault, &about);
        }
    }

    /// Takes a frame that a guest sent, if it answers a client; false if it does not.
    pub(crate) fn answer(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &Packet,
        head: &Head,
        tail: &[Segment],
    ) -> bool {
        let to = packet.destination();
        // Whom a guest sees is the gateway, mostly: then others' datagrams are looked for nowhere.
        if self.clients.len() == 0 || (!self.clients.are_seen() && ctx.settings.gateway(to) != Some(to)) {
            return false;
        }
        let Transport::Udp { source, destination } = packet.transport() else { return false };
        let guest = SocketAddr::new(packet.source(), source);
        let seen = SocketAddr::new(to, destination);
        let Some(client) = self.clients.answers(ctx.now, (guest, seen)) else { return false };
        let Some(datagram) = Datagram::of(packet, head) else {
            ctx.counters.add(Counter::BadPacket);
            return true;
        };
        let Some(hops) = packet.hop_limit().checked_sub(1).filter(|hops| *hops > 0) else {
            ctx.counters.add(Counter::HopLimit);
            return true;
        };
        self.neighbours.confirm(ctx.now, guest.ip(), head.source());
        let with = Outgoing {
            to: client.from,
            segment: None,
            hop_limit: Some(hops).filter(|hops| *hops < HOPS_TOLD),
            from: client.to,
        };
        let slot = self.slots.get(client.by.slot as usize);
        let Some(listener) = slot.and_then(|slot| slot.listener.as_ref()) else { return true };
        let sent = udp::send(&mut self.room, listener.socket.as_fd(), head, tail, &datagram, &with);
        match sent {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::NOBUFS) => ctx.counters.add(Counter::SendFull),
            Err(error) => udp::refused(ctx, head, tail, error, Counter::SendFailed),
        }
        true
    }
}
