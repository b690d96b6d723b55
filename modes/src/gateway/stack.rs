//! The gateway as an IP host, by smoltcp: ARP and ND for its addresses, ICMP echo, and DNS over TCP.
//!
//! What is answered where: whole frames are put into [`Stack::receive`] with the port that they came from, and what
//! the stack says comes out with the port that its receiver was last heard on, by its IP address: where every port is
//! a link of its own, guests' MAC addresses may be the same. A sender's address is taken as a neighbour from any frame
//! of its own that is for the gateway, so that answering needs no question first.
//!
//! Bounds: as many TCP connections as there are slots, no more than [`PER_PORT`] of one port, each with fixed buffers;
//! a connection that says nothing for [`IDLE`] ends; so many senders of each port. Owned by the gateway's thread.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    HardwareAddress, Icmpv6Packet, Icmpv6Repr, IpCidr, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
    RawHardwareAddress,
};
use switch_core::ip::nd::{Message, Neighbor};
use switch_core::{Instant, MacAddr, PortId};

use super::outbox::{Outbox, Outgoing};
use super::senders::Senders;
use crate::wire::{Wire, clock, instant};

/// TCP connections at once.
const SLOTS: usize = 32;
/// TCP connections of one port.
const PER_PORT: usize = 4;
/// A connection that says nothing ends after this (RFC 7766, 6.2.3, leaves the time to the server).
const IDLE: Duration = Duration::from_secs(10);
/// Bytes of a DNS question over TCP: longer ones end their connection.
const QUESTION_MAX: usize = 4096;
/// Questions of one connection that wait for their answers (RFC 7766, 6.2.1.1).
const PIPELINED: usize = 16;
/// Bytes of answers that wait for a slow receiver, per connection.
const BACKLOG: usize = 128 * 1024;
/// smoltcp never has more than this on the way for us.
const BURST: usize = 64;
const DNS_PORT: u16 = 53;

/// A question that came over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TcpQuestion {
    /// The connection, for [`Stack::answer`]. Numbers are not used again.
    pub(super) connection: u64,
    /// The port that it came from.
    pub(super) from: PortId,
    /// Who asks.
    pub(super) client: SocketAddr,
    /// The message, without its length.
    pub(super) message: Vec<u8>,
}

/// One TCP socket and the connection on it.
#[derive(Debug)]
struct Slot {
    handle: SocketHandle,
    /// Who is at the other end, and the connection's number.
    peer: Option<Peer>,
    question: Vec<u8>,
    waiting: usize,
    answers: VecDeque<u8>,
    heard: Instant,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer {
    port: PortId,
    client: SocketAddr,
    number: u64,
}

/// See the module's text.
pub(super) struct Stack {
    mac: MacAddr,
    addresses: Vec<IpAddr>,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    slots: Vec<Slot>,
    stations: Senders<MacAddr>,
    neighbours: Senders<IpAddr>,
    /// What is to be sent, and where its receiver was when it was said.
    said: VecDeque<Outgoing>,
    /// The number of the next connection.
    next: u64,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("mac", &self.mac)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// The IP address that a frame is for.
fn receiver(frame: &[u8]) -> Option<IpAddr> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            Some(smoltcp::wire::Ipv4Packet::new_checked(ethernet.payload()).ok()?.dst_addr().into())
        }
        EthernetProtocol::Ipv6 => Some(Ipv6Packet::new_checked(ethernet.payload()).ok()?.dst_addr().into()),
        _ => None,
    }
}

/// smoltcp is a host, and its advertisements say so: whoever hears that takes away its default route by us (RFC 4861,
/// 7.2.5).
fn as_router(frame: Vec<u8>) -> Vec<u8> {
    let Some(mut told) = Neighbor::of_frame(&frame) else { return frame };
    let (to, from) = (MacAddr::from_slice(&frame), frame.get(6..).and_then(MacAddr::from_slice));
    match (&mut told.message, to, from) {
        (Message::Advertisement { router, .. }, Some(to), Some(from)) => {
            *router = true;
            told.to_frame(to, from)
        }
        _ => frame,
    }
}

impl Stack {
    /// A host with these addresses, which answers DNS over TCP if `dns`. `seed` makes its sequence numbers hard to
    /// guess. smoltcp holds few addresses: those beyond are ignored.
    pub(super) fn new(
        now: Instant,
        mac: MacAddr,
        addresses: &[IpAddr],
        mtu: u16,
        dns: bool,
        seed: u64,
    ) -> Self {
        let mut wire = Wire::new(usize::from(mtu), BURST);
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, clock(now));
        let mut held = Vec::new();
        interface.update_ip_addrs(|list| {
            for &address in addresses {
                // Every guest is a neighbour here, whatever subnet it is in: prefixes are the network's business.
                if list.push(IpCidr::new(address.into(), 0)).is_ok() {
                    held.push(address);
                }
            }
        });
        let mut sockets = SocketSet::new(Vec::new());
        let mut slots = Vec::new();
        for _ in 0..if dns { SLOTS } else { 0 } {
            let mut socket = tcp::Socket::new(
                tcp::SocketBuffer::new(vec![0; 4096]),
                tcp::SocketBuffer::new(vec![0; 16 * 1024]),
            );
            // Cannot fail: the socket is new and the port is not zero.
            let _ = socket.listen(DNS_PORT);
            slots.push(Slot {
                handle: sockets.add(socket),
                peer: None,
                question: Vec::new(),
                waiting: 0,
                answers: VecDeque::new(),
                heard: now,
            });
        }
        Self {
            mac,
            addresses: held,
            wire,
            interface,
            sockets,
            slots,
            stations: Senders::default(),
            neighbours: Senders::default(),
            said: VecDeque::new(),
            next: 0,
        }
    }

    /// The addresses that are answered for.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Takes a whole frame that `from` received.
    pub(super) fn receive(&mut self, now: Instant, from: PortId, frame: &[u8]) {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return };
        let source = MacAddr(ethernet.src_addr().0);
        self.stations.heard(source, from, source);
        let sender = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => smoltcp::wire::Ipv4Packet::new_checked(ethernet.payload())
                .ok()
                .filter(|p| self.addresses.contains(&p.dst_addr().into()))
                .map(|p| IpAddr::from(p.src_addr())),
            EthernetProtocol::Ipv6 => Ipv6Packet::new_checked(ethernet.payload())
                .ok()
                .filter(|p| self.addresses.contains(&p.dst_addr().into()))
                .map(|p| IpAddr::from(p.src_addr())),
            _ => None,
        };
        if let Some(sender) = sender {
            if self.neighbours.get(&sender).is_some_and(|(port, _)| port != from) {
                // What was said to it is for where it was.
                self.interface.poll(clock(now), &mut self.wire, &mut self.sockets);
                self.address();
            }
            self.neighbours.heard(sender, from, source);
            self.know(sender, source);
        }
        if self.wire.rx.len() < BURST {
            self.wire.rx.push_back(frame.to_vec());
        }
    }

    /// Tells smoltcp where a sender is, in its own words: as if the sender had announced itself. Each time, because
    /// its list of neighbours is short, and anybody can be driven out of it.
    fn know(&mut self, address: IpAddr, mac: MacAddr) {
        let frame = match address {
            IpAddr::V4(address) => self.announcement4(address, mac),
            IpAddr::V6(address) => self.announcement6(address, mac),
        };
        self.wire.rx.extend(frame);
    }

    /// Says of all that was said where it goes.
    fn address(&mut self) {
        while let Some(frame) = self.wire.tx.pop_front() {
            let frame = as_router(frame);
            let mac = MacAddr::from_slice(&frame);
            let by_ip = receiver(&frame).and_then(|ip| self.neighbours.get(&ip)).filter(|s| Some(s.1) == mac);
            let station = by_ip.or_else(|| self.stations.get(&mac?));
            self.said.push_back(Outgoing { to: station.map(|(port, _)| port), frame });
        }
    }

    fn announcement4(&self, address: Ipv4Addr, mac: MacAddr) -> Option<Vec<u8>> {
        let own = self.addresses.iter().find_map(|a| match a {
            IpAddr::V4(a) => Some(*a),
            IpAddr::V6(_) => None,
        })?;
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(mac.0),
            source_protocol_addr: address,
            target_hardware_addr: EthernetAddress(self.mac.0),
            target_protocol_addr: own,
        };
        let mut frame = self.ethernet(mac, EthernetProtocol::Arp, arp.buffer_len());
        arp.emit(&mut ArpPacket::new_unchecked(frame.get_mut(14..)?));
        Some(frame)
    }

    fn announcement6(&self, address: Ipv6Addr, mac: MacAddr) -> Option<Vec<u8>> {
        let own = self.addresses.iter().find_map(|a| match a {
            IpAddr::V6(a) => Some(*a),
            IpAddr::V4(_) => None,
        })?;
        let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
            target_addr: address,
            lladdr: Some(RawHardwareAddress::from_bytes(&mac.0)),
        });
        let ip = Ipv6Repr {
            src_addr: address,
            dst_addr: own,
            next_header: smoltcp::wire::IpProtocol::Icmpv6,
            payload_len: advert.buffer_len(),
            hop_limit: 255,
        };
        let mut frame = self.ethernet(mac, EthernetProtocol::Ipv6, ip.buffer_len() + advert.buffer_len());
        let mut packet = Ipv6Packet::new_unchecked(frame.get_mut(14..)?);
        ip.emit(&mut packet);
        advert.emit(
            &address,
            &own,
            &mut Icmpv6Packet::new_unchecked(packet.payload_mut()),
            &smoltcp::phy::ChecksumCapabilities::default(),
        );
        Some(frame)
    }

    fn ethernet(&self, from: MacAddr, ethertype: EthernetProtocol, payload: usize) -> Vec<u8> {
        let mut frame = vec![0; 14 + payload];
        let repr = EthernetRepr {
            src_addr: EthernetAddress(from.0),
            dst_addr: EthernetAddress(self.mac.0),
            ethertype,
        };
        repr.emit(&mut EthernetFrame::new_unchecked(&mut frame));
        frame
    }

    /// Does what is due, and what came in asks for. Questions that came over TCP are handed to `ask`.
    pub(super) fn poll(&mut self, now: Instant, out: &mut Outbox, mut ask: impl FnMut(TcpQuestion)) {
        self.interface.poll(clock(now), &mut self.wire, &mut self.sockets);
        for i in 0..self.slots.len() {
            self.serve(now, i, &mut ask);
        }
        self.interface.poll(clock(now), &mut self.wire, &mut self.sockets);
        self.address();
        self.said.drain(..).for_each(|outgoing| out.push(outgoing));
    }

    /// When [`Stack::poll`] next has something to do.
    pub(super) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        if !self.wire.rx.is_empty() || !self.said.is_empty() {
            return Some(now);
        }
        let at = self.interface.poll_at(clock(now), &self.sockets)?;
        let stack = instant(at);
        let idle = self.slots.iter().filter(|s| s.peer.is_some()).map(|s| s.heard + IDLE).min();
        Some(idle.map_or(stack, |idle| idle.min(stack)).max(now))
    }

    /// Sends an answer on the connection that its question came by, if that is still there.
    pub(super) fn answer(&mut self, now: Instant, connection: u64, message: &[u8]) {
        let mut slots = self.slots.iter_mut();
        let Some(slot) = slots.find(|s| s.peer.is_some_and(|p| p.number == connection)) else { return };
        slot.waiting = slot.waiting.saturating_sub(1);
        let Ok(len) = u16::try_from(message.len()) else { return };
        if slot.answers.len() + message.len() + 2 <= BACKLOG {
            slot.answers.extend(len.to_be_bytes());
            slot.answers.extend(message);
            slot.heard = now;
        }
    }

    /// Forgets a port that is gone.
    pub(super) fn port_removed(&mut self, port: PortId) {
        self.stations.forget(port);
        self.neighbours.forget(port);
        for slot in &mut self.slots {
            if slot.peer.is_some_and(|p| p.port == port) {
                self.sockets.get_mut::<tcp::Socket<'_>>(slot.handle).abort();
            }
        }
    }

    /// Which port a new connection's other end is behind, if that port may have one more.
    fn admit(&self, client: IpAddr) -> Option<PortId> {
        let (port, _) = self.neighbours.get(&client)?;
        let of_port = self.slots.iter().filter(|s| s.peer.is_some_and(|p| p.port == port)).count();
        (of_port < PER_PORT).then_some(port)
    }

    /// Moves one connection on.
    fn serve(&mut self, now: Instant, index: usize, ask: &mut impl FnMut(TcpQuestion)) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(slot.handle);
        if socket.state() == tcp::State::Closed {
            // Not before the other end was told.
            if socket.remote_endpoint().is_none() {
                slot.clear();
                // Cannot fail: the socket is closed and the port is not zero.
                let _ = socket.listen(DNS_PORT);
            }
            return;
        }
        if slot.peer.is_none() && socket.state() != tcp::State::Listen {
            let Some(client) = socket.remote_endpoint() else { return };
            let client = SocketAddr::new(client.addr.into(), client.port);
            let handle = slot.handle;
            let Some(port) = self.admit(client.ip()) else {
                return self.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
            };
            self.next += 1;
            let number = self.next;
            if let Some(slot) = self.slots.get_mut(index) {
                slot.peer = Some(Peer { port, client, number });
                slot.heard = now;
            }
        }
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.carry(now, self.sockets.get_mut(slot.handle), ask);
    }
}

impl Slot {
    /// Forgets the connection.
    fn clear(&mut self) {
        self.peer = None;
        self.question.clear();
        self.answers.clear();
        self.waiting = 0;
    }

    /// Takes questions out of a connection and puts answers into it.
    fn carry(&mut self, now: Instant, socket: &mut tcp::Socket<'_>, ask: &mut impl FnMut(TcpQuestion)) {
        let Some(peer) = self.peer else { return };
        if socket.can_recv() {
            let room = (QUESTION_MAX + 2).saturating_sub(self.question.len());
            let _ = socket.recv(|bytes| {
                let take = bytes.len().min(room);
                self.question.extend(bytes.iter().take(take));
                (take, ())
            });
            if room > 0 {
                self.heard = now;
            }
        }
        let mut too_long = false;
        while let Some(&[high, low]) = self.question.first_chunk() {
            let len = usize::from(u16::from_be_bytes([high, low]));
            too_long = len > QUESTION_MAX;
            if too_long || self.waiting >= PIPELINED {
                break;
            }
            let Some(message) = self.question.get(2..2 + len) else { break };
            let message = message.to_vec();
            self.question.drain(..2 + len);
            self.waiting += 1;
            ask(TcpQuestion { connection: peer.number, from: peer.port, client: peer.client, message });
        }
        while socket.can_send() && !self.answers.is_empty() {
            let sent = socket.send_slice(self.answers.as_slices().0).unwrap_or(0);
            if sent == 0 {
                break;
            }
            self.answers.drain(..sent);
            self.heard = now;
        }
        if too_long || now.since(self.heard) >= IDLE || socket.state() == tcp::State::TimeWait {
            socket.abort();
        } else if socket.state() == tcp::State::CloseWait && self.waiting == 0 && self.answers.is_empty() {
            socket.close();
        }
    }
}
