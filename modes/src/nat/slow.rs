//! The slow path with `egress=uplink`: whole frames, one at a time, on the services thread.
//!
//! Here neighbours are asked for, inside and outside; here our outside addresses answer ARP, ND and echo requests;
//! here packets are fragmented and fragments translated; here ICMP errors are made, and those of others translated;
//! and here the DHCP client lives. What a worker could have done from the head is done here as well, because a frame
//! may have come for the sake of its neighbour only.
//!
//! Bounds: frames that wait for neighbours ([`Resolver`]), fragments that wait for their first one, connection
//! requests that wait for six seconds, what fragments became. Errors are limited in rate.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use switch_core::drop::DropReason;
use switch_core::ids::{MacAddr, PortId};
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::error::{is_group, is_host};
use switch_core::ip::nd::{ALL_NODES, Message, Neighbor, group_mac};
use switch_core::ip::{Cause, Packet, Transport, fragments, set_macs};
use switch_core::napt::fragments::{FragmentKey, Fragments};
use switch_core::time::Instant;

use super::dhcp::{self, Client};
use super::echo;
use super::forward::is_stranger;
use super::fragments::Early;
use super::translate::{Rewritten, Translator, is_echo_request, opens};
use super::{INSIDE, OUTSIDE, Shared, Snapshot, Status, Uplink};
use crate::gateway::{Handled, Outbox, SlowPath};
use crate::router::{Ask, Errors, Heard, Learned, Link, Resolver, Station, Waiting, link_local};

/// How long an unsolicited connection request is not answered (RFC 5382, REQ-4).
const SYN_HELD: Duration = Duration::from_secs(6);
/// Connection requests that wait, at most.
const SYNS_MAX: usize = 256;

/// The slow path. See the module's text.
#[derive(Debug)]
pub(super) struct Slow {
    shared: Arc<Shared>,
    uplink: Uplink,
    snapshot: Snapshot,
    translator: Translator,
    resolver: Resolver,
    /// Errors to guests.
    errors_in: Errors,
    /// Errors to the outside, from `errors_of`.
    errors_out: Errors,
    errors_of: Status,
    fragments: Fragments<IpAddr, PortId, Rewritten>,
    early: Early,
    syns: VecDeque<(Instant, PortId, Vec<u8>)>,
    dhcp: Option<Client>,
    dhcp_at: Option<Instant>,
    /// The port and the addresses that were announced to the uplink.
    announced: Option<(PortId, Status)>,
}

/// A frame on its way.
struct Frame {
    from: PortId,
    packet: Packet,
    bytes: Vec<u8>,
}

impl Frame {
    fn sender(&self) -> MacAddr {
        self.bytes.get(6..).and_then(MacAddr::from_slice).unwrap_or_default()
    }

    fn key(&self) -> FragmentKey<IpAddr> {
        FragmentKey {
            source: self.packet.source(),
            destination: self.packet.destination(),
            id: self.packet.fragment_id(),
            protocol: if self.packet.is_v6() { 0 } else { self.packet.protocol() },
        }
    }

    /// True if the packet is too long for a link and may not be cut.
    fn is_stuck(&self, mtu: usize) -> bool {
        self.packet.len() > mtu && self.packet.dont_fragment()
    }
}

impl Slow {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let settings = &shared.settings;
        let none = || Uplink {
            mac: MacAddr::default(),
            addresses: Vec::new(),
            next_hop4: None,
            next_hop6: None,
            answer_echo: false,
            answer_unsolicited: false,
        };
        let uplink = settings.uplink().cloned().unwrap_or_else(none);
        Self {
            snapshot: Snapshot::new(&shared),
            translator: Translator::new(&shared),
            resolver: Resolver::new(Arc::clone(&shared.neighbors)),
            errors_in: Errors::new(settings.mac, &settings.gateway),
            errors_out: Errors::new(uplink.mac, &[]),
            errors_of: Status::default(),
            fragments: Fragments::new(),
            early: Early::default(),
            syns: VecDeque::new(),
            dhcp: None,
            dhcp_at: None,
            announced: None,
            uplink,
            shared,
        }
    }

    fn refresh(&mut self, now: Instant) {
        self.shared.tell(now);
        self.snapshot.refresh(&self.shared);
        if self.errors_of != self.snapshot.known.status {
            self.errors_of = self.snapshot.known.status.clone();
            let addresses = [self.errors_of.v4, self.errors_of.v6].into_iter().flatten();
            let addresses: Vec<IpAddr> = addresses.map(|path| path.address).collect();
            self.errors_out = Errors::new(self.uplink.mac, &addresses);
        }
    }

    /// A frame from a guest or the host interface. `No`: it is the gateway's.
    fn take_segment(&mut self, now: Instant, from: PortId, bytes: &[u8], out: &mut Outbox) -> Handled {
        let inside = &self.shared.inside;
        if let Some(heard) = Heard::of_frame(bytes) {
            self.resolver.observe(now, INSIDE, from, &heard, |address| inside.is_guest(address), out);
            return Handled::No;
        }
        let Ok(packet) = Packet::of_frame(bytes) else { return Handled::No };
        // What is another guest's address is not sent from here, to nobody.
        if inside.is_guest(packet.source()) && !self.has_source(now, from, bytes, packet.source()) {
            return Handled::Yes;
        }
        let inside = &self.shared.inside;
        if MacAddr::from_slice(bytes) != Some(self.shared.settings.mac) {
            return Handled::No;
        }
        let destination = packet.destination();
        let link_local = matches!(destination, IpAddr::V6(address) if address.is_unicast_link_local());
        if inside.is_gateway(destination) || is_group(destination) || link_local {
            return Handled::No;
        }
        if inside.is_guest(packet.source()) && is_host(destination) {
            self.outbound(now, Frame { from, packet, bytes: bytes.to_vec() }, out);
        }
        Handled::Yes
    }

    /// Whether a guest behind a port may send from an address: from one that nobody is known to have, from its own,
    /// or from one that it takes over because who had it is there no more.
    fn has_source(&mut self, now: Instant, from: PortId, bytes: &[u8], source: IpAddr) -> bool {
        let elsewhere = self.shared.neighbors.peek(INSIDE, source).is_some_and(|known| known.port != from);
        let Some(mac) = bytes.get(6..).and_then(MacAddr::from_slice) else { return false };
        let station = Station { mac, port: from };
        !elsewhere
            || matches!(
                self.resolver.claim(now, INSIDE, source, station, true),
                Learned::New | Learned::Confirmed | Learned::Moved
            )
    }

    /// A packet from a guest that leaves its subnet, or goes to one of our outside addresses.
    fn outbound(&mut self, now: Instant, mut frame: Frame, out: &mut Outbox) {
        let (from, destination) = (frame.from, frame.packet.destination());
        let is_inside = self.shared.inside.contains(destination);
        if is_inside && !self.shared.inside.is_guest(destination) {
            // The subnet's broadcast: it is not forwarded, and no error is about it.
            return;
        }
        if frame.packet.hop_limit() <= 1 {
            self.errors_in.send(now, from, &frame.bytes, Cause::TimeExceeded, out);
            return;
        }
        if is_inside {
            frame.packet.decrement_hop_limit(&mut frame.bytes);
            self.deliver_inside(now, frame, out);
            return;
        }
        let hairpin = self.translator.is_external(destination);
        if !hairpin {
            let (Some(uplink), Some(_)) =
                (self.snapshot.known.uplink, self.snapshot.known.next_hop(destination))
            else {
                self.errors_in.send(now, from, &frame.bytes, Cause::NetUnreachable, out);
                return;
            };
            let mtu = self.snapshot.known.mtu(uplink);
            if frame.is_stuck(mtu) {
                self.too_big(now, &frame, mtu, out);
                return;
            }
        } else if is_echo_request(&frame.packet) {
            if self.uplink.answer_echo {
                out_some(out, from, echo::reply(frame.packet, &frame.bytes, self.shared.settings.mac));
            }
            return;
        }
        let original = hairpin.then(|| frame.bytes.clone());
        let (key, first) = (frame.key(), is_first(&frame.packet));
        let Some(rewritten) = self.rewrite(now, &mut frame, true) else { return };
        if first {
            self.fragments.first(now, key, from, rewritten);
        }
        if let Some(original) = original {
            let mtu = self.guest_mtu(frame.packet.destination());
            if frame.is_stuck(mtu) {
                let original = Frame { bytes: original, ..frame };
                self.too_big(now, &original, mtu, out);
                return;
            }
        }
        frame.packet.decrement_hop_limit(&mut frame.bytes);
        match hairpin {
            true => self.deliver_inside(now, frame, out),
            false => self.deliver_outside(now, frame, out),
        }
        if first {
            self.release(now, &key, out);
        }
    }

    /// Translates a frame, by its own headers or by what its packet's first fragment became. `None` if it is not to
    /// go on, now or at all.
    fn rewrite(&mut self, now: Instant, frame: &mut Frame, outbound: bool) -> Option<Rewritten> {
        let Frame { from, packet, bytes } = frame;
        // A guest tells of what came to itself: it is no router, and does not speak for another guest.
        if outbound && packet.quoted(bytes).is_some_and(|quote| quote.destination() != packet.source()) {
            return None;
        }
        if packet.is_later_fragment() {
            let key = frame.key();
            let Some(rewritten) = self.fragments.later(now, &key) else {
                self.early.hold(now, key, frame.from, std::mem::take(&mut frame.bytes));
                return None;
            };
            return rewritten.apply(&mut frame.packet, &mut frame.bytes).then_some(rewritten);
        }
        let answer = match (outbound, packet.is_icmp_error()) {
            (true, false) => self.translator.outbound(now, *from, packet, bytes),
            (false, false) => self.translator.inbound(now, packet, bytes),
            (true, true) => match self.translator.outbound_error(now, packet, bytes) {
                // About a packet that came by hairpin: to its sender.
                Ok(rewritten) if self.translator.is_external(packet.destination()) => {
                    let back = self.translator.inbound_error(now, packet, bytes);
                    back.map(|back| Rewritten { destination: back.destination, ..rewritten })
                }
                answer => answer,
            },
            (false, true) => self.translator.inbound_error(now, packet, bytes),
        };
        match answer {
            Ok(rewritten) => Some(rewritten),
            Err(DropReason::NatNoMapping | DropReason::NatFiltered) if !outbound && opens(packet) => {
                self.hold_syn(now, frame);
                None
            }
            Err(_) => None,
        }
    }

    /// The fragments that waited for their first one.
    fn release(&mut self, now: Instant, key: &FragmentKey<IpAddr>, out: &mut Outbox) {
        for (from, bytes) in self.early.take(key) {
            let Ok(packet) = Packet::of_frame(&bytes) else { continue };
            let frame = Frame { from, packet, bytes };
            // A later fragment is never the first: this ends here.
            match self.snapshot.known.uplink == Some(from) {
                true => self.inbound(now, frame, out),
                false => self.outbound(now, frame, out),
            }
        }
    }

    fn take_uplink(&mut self, now: Instant, from: PortId, bytes: &[u8], out: &mut Outbox) {
        if let Some(heard) = Heard::of_frame(bytes) {
            self.hear_outside(now, from, &heard, bytes, out);
            return;
        }
        let Ok(packet) = Packet::of_frame(bytes) else { return };
        if let Transport::Udp { source: 67, destination: 68 } = packet.transport() {
            if let Some(client) = &mut self.dhcp {
                client.receive(bytes);
                self.poll_dhcp(now, out);
            }
            return;
        }
        let ours = MacAddr::from_slice(bytes) == Some(self.uplink.mac);
        let (source, destination) = (packet.source(), packet.destination());
        let strange = is_stranger(source, &self.shared, &mut self.translator);
        if ours && !strange && self.translator.is_external(destination) {
            self.inbound(now, Frame { from, packet, bytes: bytes.to_vec() }, out);
        }
    }

    /// A packet from the outside to one of our addresses there.
    fn inbound(&mut self, now: Instant, mut frame: Frame, out: &mut Outbox) {
        if is_echo_request(&frame.packet) && !frame.packet.is_fragment() {
            if self.uplink.answer_echo {
                out_some(out, frame.from, echo::reply(frame.packet, &frame.bytes, self.uplink.mac));
            }
            return;
        }
        if frame.packet.hop_limit() <= 1 {
            self.errors_out.send(now, frame.from, &frame.bytes, Cause::TimeExceeded, out);
            return;
        }
        let original = frame.packet.dont_fragment().then(|| frame.bytes.clone());
        let (key, first) = (frame.key(), is_first(&frame.packet));
        let Some(rewritten) = self.rewrite(now, &mut frame, false) else { return };
        if first {
            let guest = self.shared.neighbors.peek(INSIDE, frame.packet.destination());
            let guest = guest.map_or(frame.from, |station| station.port);
            self.fragments.first(now, key, guest, rewritten);
        }
        let mtu = self.guest_mtu(frame.packet.destination());
        if let Some(original) = original.filter(|_| frame.is_stuck(mtu)) {
            let cause = Cause::TooBig { mtu: u16::try_from(mtu).unwrap_or(u16::MAX) };
            self.errors_out.send(now, frame.from, &original, cause, out);
            return;
        }
        frame.packet.decrement_hop_limit(&mut frame.bytes);
        self.deliver_inside(now, frame, out);
        if first {
            self.release(now, &key, out);
        }
    }

    fn too_big(&mut self, now: Instant, frame: &Frame, mtu: usize, out: &mut Outbox) {
        let cause = Cause::TooBig { mtu: u16::try_from(mtu).unwrap_or(u16::MAX) };
        self.errors_in.send(now, frame.from, &frame.bytes, cause, out);
    }

    /// What may go to a guest: if it is not known where that is, what may go to any.
    fn guest_mtu(&self, guest: IpAddr) -> usize {
        let known = &self.snapshot.known;
        match self.shared.neighbors.peek(INSIDE, guest) {
            Some(station) => known.mtu(station.port),
            None => known.segment.iter().map(|port| known.mtu(*port)).min().unwrap_or(usize::from(u16::MAX)),
        }
    }

    fn deliver_inside(&mut self, now: Instant, frame: Frame, out: &mut Outbox) {
        let ask = self.ask(INSIDE, frame.packet.destination());
        let mtu = self.guest_mtu(ask.address);
        self.deliver(now, frame, &ask, mtu, out);
    }

    fn deliver_outside(&mut self, now: Instant, frame: Frame, out: &mut Outbox) {
        let known = &self.snapshot.known;
        let (Some(uplink), Some(next)) = (known.uplink, known.next_hop(frame.packet.destination())) else {
            return;
        };
        let mtu = known.mtu(uplink);
        let ask = self.ask(OUTSIDE, next);
        self.deliver(now, frame, &ask, mtu, out);
    }

    /// How to ask for a neighbour.
    fn ask(&self, link: Link, address: IpAddr) -> Ask {
        let known = &self.snapshot.known;
        // The segment is a bridge: one question reaches all of it.
        let ports = if link == INSIDE { Vec::new() } else { known.uplink.into_iter().collect() };
        let (mac, source) = self.asker(link, address);
        Ask { link, address, ports, mac, source }
    }

    fn asker(&self, link: Link, address: IpAddr) -> (MacAddr, Option<IpAddr>) {
        let v6 = address.is_ipv6();
        match link == INSIDE {
            true => (self.shared.settings.mac, self.shared.settings.gateway_of(v6)),
            false => (self.uplink.mac, self.snapshot.known.uplink_address(v6).map(|path| path.address)),
        }
    }

    /// Sends a packet to a neighbour, in pieces if it must be.
    fn deliver(&mut self, now: Instant, frame: Frame, ask: &Ask, mtu: usize, out: &mut Outbox) {
        let (from, sender) = (frame.from, frame.sender());
        let pieces = match frame.packet.len() > mtu {
            true => fragments(&frame.bytes, mtu).unwrap_or_default(),
            false => vec![frame.bytes],
        };
        for mut piece in pieces {
            set_macs(&mut piece, MacAddr::default(), ask.mac);
            self.resolver.send(now, ask, Waiting { frame: piece, from, sender }, out);
        }
    }

    /// What a station on the uplink says of itself, or asks of us.
    fn hear_outside(&mut self, now: Instant, from: PortId, heard: &Heard, bytes: &[u8], out: &mut Outbox) {
        let known = &self.snapshot.known;
        let lives = |address: IpAddr| {
            let path = known.uplink_address(address.is_ipv6());
            let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
            link_local || path.is_some_and(|path| path.is_on_link(address) || path.next_hop == Some(address))
        };
        self.resolver.observe(now, OUTSIDE, from, heard, lives, out);
        let mac = self.uplink.mac;
        let target = heard.target();
        let ours = self.translator.is_external(target) || target == IpAddr::V6(link_local(mac));
        match heard {
            Heard::Arp(arp) if arp.operation == Operation::Request && ours && !arp.is_announcement() => {
                out.send_to(from, arp.reply(mac).to_frame(arp.sender_mac));
            }
            Heard::Nd(neighbor) if neighbor.message == Message::Solicitation && ours => {
                let to = match neighbor.link {
                    _ if neighbor.is_duplicate_detection() => group_mac(ALL_NODES),
                    Some(link) => link,
                    None => bytes.get(6..).and_then(MacAddr::from_slice).unwrap_or_default(),
                };
                out.send_to(from, neighbor.reply(mac, true).to_frame(to, mac));
            }
            Heard::Arp(arp) if arp.operation == Operation::Reply => {
                if let Some(client) = &mut self.dhcp {
                    client.receive(bytes);
                    self.poll_dhcp(now, out);
                }
            }
            Heard::Arp(_) | Heard::Nd(_) => {}
        }
    }

    /// An unsolicited connection request: perhaps the guest asks for the same meanwhile.
    fn hold_syn(&mut self, now: Instant, frame: &Frame) {
        if self.uplink.answer_unsolicited && self.syns.len() < SYNS_MAX {
            self.syns.push_back((now + SYN_HELD, frame.from, frame.bytes.clone()));
        }
    }

    fn answer_syns(&mut self, now: Instant, out: &mut Outbox) {
        while self.syns.front().is_some_and(|(due, ..)| *due <= now) {
            let Some((_, from, bytes)) = self.syns.pop_front() else { return };
            let Ok(packet) = Packet::of_frame(&bytes) else { continue };
            if !self.translator.has_session(now, &packet) {
                self.errors_out.send(now, from, &bytes, Cause::PortUnreachable, out);
            }
        }
    }

    /// Tells the sender of a frame whose neighbour does not answer. The frame is translated: so is the error, back.
    fn unreachable(&mut self, now: Instant, mut waiting: Waiting, out: &mut Outbox) {
        let (from, inbound) = (waiting.from, self.snapshot.known.uplink == Some(waiting.from));
        let mac = if inbound { self.uplink.mac } else { self.shared.settings.mac };
        set_macs(&mut waiting.frame, mac, waiting.sender);
        let mut made = Outbox::default();
        let errors = if inbound { &mut self.errors_out } else { &mut self.errors_in };
        errors.send(now, from, &waiting.frame, Cause::HostUnreachable, &mut made);
        let Some(mut error) = made.pop() else { return };
        let Ok(mut packet) = Packet::of_frame(&error.frame) else { return };
        let translated = match inbound {
            true => self.translator.outbound_error(now, &mut packet, &mut error.frame).is_ok(),
            // What was for a guest of the same subnet was not translated.
            false if !self.translator.is_external(packet.destination()) => true,
            false => self.translator.inbound_error(now, &mut packet, &mut error.frame).is_ok(),
        };
        if translated {
            out.push(error);
        }
    }

    fn poll_dhcp(&mut self, now: Instant, out: &mut Outbox) {
        let (Some(uplink), true) = (self.snapshot.known.uplink, self.snapshot.known.status.by_dhcp) else {
            return;
        };
        let (mac, seed) = (self.uplink.mac, self.shared.settings.napt.seed[1]);
        let client = self.dhcp.get_or_insert_with(|| Client::new(now, mac, seed.rotate_left(32)));
        let event = client.poll(now, |frame| out.send_to(uplink, frame));
        self.dhcp_at = client.poll_at(now);
        let v4 = match event {
            Some(dhcp::Event::Bound(path)) => Some(path),
            Some(dhcp::Event::Lost) => None,
            None => return,
        };
        let status = Status { v4, ..self.snapshot.known.status.clone() };
        self.shared.set_status(now, status);
        self.refresh(now);
    }

    /// Tells the uplink's link where our addresses are now (RFC 5227, 2.3; RFC 4861, 7.2.6).
    fn announce(&mut self, out: &mut Outbox) {
        let known = &self.snapshot.known;
        let Some(uplink) = known.uplink else { return };
        let now_announced = Some((uplink, known.status.clone()));
        if self.announced == now_announced {
            return;
        }
        let mac = self.uplink.mac;
        for path in [known.status.v4, known.status.v6].into_iter().flatten() {
            out.send_to(
                uplink,
                match path.address {
                    IpAddr::V4(address) => Arp::announcement(mac, address).to_frame(MacAddr::BROADCAST),
                    IpAddr::V6(address) => {
                        Neighbor::announcement(mac, address).to_frame(group_mac(ALL_NODES), mac)
                    }
                },
            );
        }
        self.announced = now_announced;
    }

    /// True if an address of the uplink was not announced yet.
    fn has_news(&self) -> bool {
        let known = self.shared.lock();
        known.uplink.is_some_and(|uplink| {
            self.announced.as_ref().is_none_or(|(port, status)| *port != uplink || *status != known.status)
        })
    }
}

impl SlowPath for Slow {
    fn receive(&mut self, now: Instant, from: PortId, frame: &[u8], out: &mut Outbox) -> Handled {
        self.refresh(now);
        if self.snapshot.known.uplink == Some(from) {
            self.take_uplink(now, from, frame, out);
            return Handled::Yes;
        }
        self.take_segment(now, from, frame, out)
    }

    fn poll(&mut self, now: Instant, out: &mut Outbox) {
        self.refresh(now);
        self.poll_dhcp(now, out);
        self.announce(out);
        let mut failed = Vec::new();
        let (settings, uplink, known) = (&self.shared.settings, &self.uplink, &self.snapshot.known);
        let asker = |link: Link, address: IpAddr| match link == INSIDE {
            true => (settings.mac, settings.gateway_of(address.is_ipv6())),
            false => (uplink.mac, known.uplink_address(address.is_ipv6()).map(|path| path.address)),
        };
        self.resolver.poll(now, &asker, out, &mut failed);
        for waiting in failed {
            self.unreachable(now, waiting, out);
        }
        self.answer_syns(now, out);
        self.early.expire(now);
        self.fragments.expire(now);
    }

    fn port_removed(&mut self, port: PortId) {
        self.resolver.port_removed(port);
    }

    fn poll_at(&self) -> Option<Instant> {
        let syns = self.syns.front().map(|(due, ..)| *due);
        let news = self.has_news().then_some(Instant::ORIGIN);
        let all = [
            self.resolver.poll_at(),
            syns,
            self.early.poll_at(),
            self.fragments.poll_at(),
            self.dhcp_at,
            news,
        ];
        all.into_iter().flatten().min()
    }
}

/// True for the first of several fragments.
fn is_first(packet: &Packet) -> bool {
    packet.is_fragment() && !packet.is_later_fragment()
}

fn out_some(out: &mut Outbox, port: PortId, frame: Option<Vec<u8>>) {
    if let Some(frame) = frame {
        out.send_to(port, frame);
    }
}
