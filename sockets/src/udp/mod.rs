//! UDP: a socket for each mapping.
//!
//! A guest's address and port are mapped to one unconnected socket, whatever they send to (endpoint-independent mapping,
//! RFC 4787, REQ-1); who may answer is [`Settings::filtering`](crate::Settings)'s to say. A mapping ends
//! [`TIMEOUT`] after its guest sent last (REQ-5, REQ-6).
//!
//! Segments of one size pass as one frame and one call, in both directions. What the network says of a datagram is told
//! to its guest about the packet as the guest sent it. What comes from outside and is longer than the network's MTU goes
//! in fragments; those that guests send are put together before they come here.

mod remotes;

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use datapath::Segment;
use datapath::datagram::{self, Incoming, Outgoing};
use datapath::socket::{Gather, GatherRoom};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use switch_core::checksum::Sum;
use switch_core::ip::{Cause, PROTO_UDP, Packet, Transport};
use switch_core::napt::{self, NatSession};
use switch_core::virtio_net::{F_NEEDS_CSUM, GSO_NONE, GSO_UDP_L4, VnetHeader};
use switch_core::{Head, Instant, MacAddr};

use crate::counters::Counter;
use crate::engine::Context;
use crate::faults::{self, About};
use crate::fill::Fill;
use crate::frame::{NETWORK_MAX, Way, addresses};
use crate::pieces;
use crate::policy::Protocol;
use crate::table::{Key, Table};
use crate::token::{Kind, Token};
use remotes::Remotes;

/// How long a mapping lasts after its guest sent last. RFC 4787 has 120 s as the least (REQ-5), and recommends this.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(300);
/// Datagrams that one burst receives at most, let in or not.
pub(crate) const RECEIVED: usize = 256;
/// Segments that one call sends: what every kernel takes (`UDP_MAX_SEGMENTS`).
const SEGMENTS: usize = 64;
/// Bytes of a UDP header.
const HEADER: usize = 8;
/// Of a fault, what is told of the datagram that it is about.
pub(crate) const QUOTE: usize = 2048;
/// A hop limit that is passed on: higher ones are hosts' own defaults, which the host's sockets have, too.
pub(crate) const HOPS_TOLD: u8 = 32;

/// A guest's endpoint and its socket.
#[derive(Debug)]
struct Mapping {
    mac: MacAddr,
    socket: OwnedFd,
    outside: SocketAddr,
    may_fragment: bool,
    remotes: Remotes,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Udp {
    table: Table<Mapping>,
    room: GatherRoom,
    /// The identification of the next packet that goes in fragments.
    next_id: u32,
}

impl Default for Udp {
    fn default() -> Self {
        let table = Table::new(Kind::Udp, TIMEOUT);
        Self { table, room: GatherRoom::default(), next_id: 0 }
    }
}

/// A datagram, or several of one size, in a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    inside: SocketAddr,
    remote: SocketAddr,
    /// Where the payload begins, from the frame's first byte.
    at: usize,
    len: usize,
    segment: Option<u16>,
}

impl Datagram {
    pub(crate) fn of(packet: &Packet, head: &Head) -> Option<Self> {
        let Transport::Udp { source, destination } = packet.transport() else { return None };
        let at = packet.transport_at() + HEADER;
        let rest = packet.end().checked_sub(at)?;
        let (len, segment) = match head.offload.gso {
            Some(gso) => (rest, Some(gso.size.get())),
            None => {
                let field: &[u8; 2] = head.bytes().get(at - 4..)?.first_chunk()?;
                let len = usize::from(u16::from_be_bytes(*field)).checked_sub(HEADER)?;
                (len, None)
            }
        };
        let inside = SocketAddr::new(packet.source(), source);
        let remote = SocketAddr::new(packet.destination(), destination);
        let sound = len <= rest && source != 0 && destination != 0;
        sound.then_some(Self { inside, remote, at, len, segment })
    }
}

impl Udp {
    /// Takes a frame that a guest sent, whose packet `may_fragment` on its way.
    pub(crate) fn frame(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &Packet,
        head: &Head,
        tail: &[Segment],
        may_fragment: bool,
    ) {
        let Some(datagram) = Datagram::of(packet, head) else { return ctx.counters.add(Counter::BadPacket) };
        let Datagram { inside, remote, .. } = datagram;
        let Some(hops) = packet.hop_limit().checked_sub(1).filter(|hops| *hops > 0) else {
            ctx.counters.add(Counter::HopLimit);
            return ctx.tell_about(head, tail, Cause::TimeExceeded);
        };
        let key = Key { owner: ctx.from, inside };
        let found = self.table.find(&key);
        let known =
            found.and_then(|slot| self.table.get_mut(slot)).is_some_and(|(_, m)| m.remotes.knows(&remote));
        let outside = ctx.settings.outside(remote.ip());
        let open = known || ctx.settings.outbound.permits(Protocol::Udp, remote);
        let (Ok(outside), true) = (outside, open) else {
            ctx.counters.add(Counter::Denied);
            return ctx.tell_about(head, tail, Cause::Prohibited);
        };
        let slot = match found {
            Some(slot) => Ok(slot),
            None => self.open(ctx, key, head.source(), may_fragment),
        };
        let slot = match slot {
            Ok(slot) => slot,
            Err(error) => return refused(ctx, head, tail, error, Counter::NoSocket),
        };
        self.table.touch(ctx.now, slot);
        let Some((_, mapping)) = self.table.get_mut(slot) else { return };
        mapping.mac = head.source();
        mapping.remotes.note(ctx.now, remote);
        if mapping.may_fragment != may_fragment {
            mapping.may_fragment = may_fragment;
            // Fails on no socket of the family; then the kernel does as it did.
            let _ = datagram::may_fragment(mapping.socket.as_fd(), inside.is_ipv6(), may_fragment);
        }
        let with = Outgoing {
            to: SocketAddr::new(outside, remote.port()),
            segment: None,
            hop_limit: Some(hops).filter(|hops| *hops < HOPS_TOLD),
            from: None,
        };
        if let Err(error) = send(&mut self.room, mapping.socket.as_fd(), head, tail, &datagram, &with) {
            match error {
                Errno::AGAIN | Errno::NOBUFS => ctx.counters.add(Counter::SendFull),
                // The kernel tells the MTU where it tells the network's errors.
                Errno::MSGSIZE => hear(ctx, &key, mapping),
                error => refused(ctx, head, tail, error, Counter::SendFailed),
            }
        }
    }

    /// Makes a mapping.
    fn open(
        &mut self,
        ctx: &mut Context<'_>,
        key: Key,
        mac: MacAddr,
        may_fragment: bool,
    ) -> Result<u32, Errno> {
        let limits = &ctx.settings.limits;
        for _ in 0..self.table.make_room(key.owner, limits.udp_each, limits.udp) {
            ctx.counters.add(Counter::Evicted);
        }
        self.table.insert(ctx.now, key, |token| {
            let v6 = key.inside.is_ipv6();
            let (family, any): (_, IpAddr) = match v6 {
                false => (AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()),
                true => (AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()),
            };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
            if v6 {
                sockopt::set_ipv6_v6only(&socket, true)?;
            }
            datagram::follow_errors(socket.as_fd(), v6)?;
            datagram::may_fragment(socket.as_fd(), v6, may_fragment)?;
            // Without it datagrams come one by one.
            let _ = datagram::coalesce(socket.as_fd());
            bind(&socket, &SocketAddr::new(any, 0))?;
            let outside = SocketAddr::try_from(getsockname(&socket)?)?;
            ctx.watch(&socket, token)?;
            let remotes = Remotes::default();
            Ok(Mapping { mac, socket, outside, may_fragment, remotes })
        })
    }

    /// Hears what the kernel says of a socket.
    pub(crate) fn event(&mut self, ctx: &mut Context<'_>, token: Token, flags: EventFlags) {
        if let Some((key, mapping)) = self.table.event(token, flags) {
            hear(ctx, key, mapping);
        }
    }

    /// Writes frames into a burst while it has room: of each socket that has something one in its turn.
    pub(crate) fn fill(&mut self, ctx: &mut Context<'_>, fill: &mut Fill<'_>) {
        for _ in 0..RECEIVED {
            if !fill.has_room() {
                break;
            }
            let Some((token, key, mapping)) = self.table.next_ready() else { break };
            let failed = match datagram::receive(mapping.socket.as_fd(), fill.slot()) {
                Ok((bytes, with)) => {
                    match let_in(ctx, key, mapping, bytes, &with) {
                        Ok((_, Arrived::Frame { headers, len, vnet, payload })) => {
                            fill.push(headers.get(..len).unwrap_or_default(), vnet, payload);
                        }
                        Ok((way, Arrived::Pieces)) => {
                            let ports = [with.from.port(), key.inside.port()];
                            let mtu = ctx.settings.mtu;
                            for frame in pieces_of(&way, ports, bytes, with.segment, mtu, &mut self.next_id) {
                                ctx.send(frame);
                            }
                            // Before the next datagram is received: many of them are more than may wait.
                            ctx.empty_into(fill);
                        }
                        Err(counter) => ctx.counters.add(counter),
                    }
                    None
                }
                // What the network said is heard where it is told whole.
                Err(error) => Some(error),
            };
            self.table.received(ctx.now, token, failed);
        }
    }

    /// True if `fill` would write something, as far as is known without asking the kernel.
    pub(crate) fn has_work(&self) -> bool {
        self.table.has_work()
    }

    /// When `timeout` is to be called next.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.table.next_timeout()
    }

    /// Does what is due.
    pub(crate) fn timeout(&mut self, ctx: &mut Context<'_>) {
        self.table.timeout(ctx.now);
    }

    /// How many endpoints the mappings sent to.
    pub(crate) fn count(&self) -> usize {
        self.table.iter().map(|(.., mapping)| mapping.remotes.len()).sum()
    }

    /// Every endpoint that every mapping sent to, as an operator sees it.
    pub(crate) fn sessions(&self, now: Instant) -> impl Iterator<Item = NatSession> {
        self.table.iter().flat_map(move |(key, _, mapping)| {
            mapping.remotes.iter().map(move |(remote, at)| NatSession {
                protocol: napt::Protocol::Udp,
                inside: key.inside,
                outside: mapping.outside,
                remote,
                state: "open",
                idle: now.since(at),
            })
        })
    }
}

/// Sends a frame's payload from where it is: at once, or as many segments at once as the kernel takes.
pub(crate) fn send(
    room: &mut GatherRoom,
    socket: std::os::fd::BorrowedFd<'_>,
    head: &Head,
    tail: &[Segment],
    datagram: &Datagram,
    with: &Outgoing,
) -> Result<(), Errno> {
    let mut gather = Gather::begin(room);
    let mut unit = datagram.len.max(1);
    let mut together = unit;
    if let Some(size) = datagram.segment.map(usize::from).filter(|size| *size < datagram.len) {
        (unit, together) = (size, size * SEGMENTS);
    }
    let (mut sent, mut done) = (0, Ok(()));
    // Once for a datagram without payload, too.
    while done.is_ok() && (sent < datagram.len || sent == 0) {
        let len = together.min(datagram.len - sent);
        gather.clear();
        gather.add(head, tail, datagram.at + sent, len);
        let segment = (len > unit).then_some(unit as u16);
        let with = Outgoing { segment, ..*with };
        match once_more(|| datagram::send(socket, &gather, &with)) {
            Ok(_) => sent += len.max(1),
            // This kernel or device does not cut it, or a segment is longer than the path takes: one by one.
            Err(Errno::INVAL | Errno::IO | Errno::MSGSIZE) if segment.is_some() => together = unit,
            Err(error) => done = Err(error),
        }
    }
    gather.end(room);
    done
}

/// Calls again after an error: it may have been one that the network sent about an earlier datagram, which is told once.
pub(crate) fn once_more<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    match call() {
        Ok(done) => Ok(done),
        Err(error @ (Errno::AGAIN | Errno::NOBUFS | Errno::INVAL)) => Err(error),
        Err(_) => call(),
    }
}

/// Counts a packet that the host did not send, and tells its guest if that is of use.
pub(crate) fn refused(ctx: &mut Context<'_>, head: &Head, tail: &[Segment], error: Errno, counter: Counter) {
    ctx.counters.add(counter);
    if let Some(cause) = faults::of_errno(error) {
        ctx.tell_about(head, tail, cause);
    }
}

/// Hears what was said of a mapping's datagrams, and tells its guest.
fn hear(ctx: &mut Context<'_>, key: &Key, mapping: &Mapping) {
    let mut room = [MaybeUninit::uninit(); QUOTE];
    while let Ok((payload, fault)) = datagram::fault(mapping.socket.as_fd(), &mut room) {
        let Some(fault) = fault else { continue };
        let transport = quoted([key.inside.port(), fault.to.port()], payload);
        let remote = ctx.settings.inside(fault.to.ip());
        let about = About { key: *key, mac: mapping.mac, remote, protocol: PROTO_UDP, transport: &transport };
        faults::tell(ctx, &fault, &about);
    }
}

/// A datagram as an error quotes it, without a checksum, and what is known of its payload.
pub(crate) fn quoted([from, to]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let mut transport = Vec::with_capacity(HEADER + payload.len());
    for word in [from, to, (HEADER + payload.len()) as u16, 0] {
        transport.extend_from_slice(&word.to_be_bytes());
    }
    transport.extend_from_slice(payload);
    transport
}

/// A UDP header with its checksum, and a payload.
fn transport(way: &Way, [from, to]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let len = HEADER + payload.len();
    let mut transport = Vec::with_capacity(len);
    for word in [from, to, len as u16, 0] {
        transport.extend_from_slice(&word.to_be_bytes());
    }
    transport.extend_from_slice(payload);
    let mut sum: Sum = way.pseudo(len);
    sum.add(&transport);
    let checksum = match sum.checksum() {
        0 => 0xffff,
        checksum => checksum,
    };
    if let Some(field) = transport.get_mut(6..8) {
        field.copy_from_slice(&checksum.to_be_bytes());
    }
    transport
}

/// The frames of a datagram, or of several of one size, whole: packets in fragments where they are longer than the MTU.
/// `id` is the last packet's identification.
pub(crate) fn pieces_of(
    way: &Way,
    ports: [u16; 2],
    bytes: &[u8],
    segment: Option<u16>,
    mtu: u16,
    id: &mut u32,
) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    let unit = segment.map_or(bytes.len(), usize::from).max(1);
    // Once for a datagram without payload, too.
    loop {
        let (payload, behind) = rest.split_at(unit.min(rest.len()));
        *id = id.wrapping_add(1);
        frames.extend(pieces::frames(way, &transport(way, ports, payload), mtu, *id));
        rest = behind;
        if rest.is_empty() {
            return frames;
        }
    }
}

/// What becomes of a datagram that came in for a mapping, if it is let in, and its way.
fn let_in(
    ctx: &Context<'_>,
    key: &Key,
    mapping: &Mapping,
    payload: &[u8],
    with: &Incoming,
) -> Result<(Way, Arrived), Counter> {
    let remote = SocketAddr::new(ctx.settings.inside(with.from.ip()), with.from.port());
    if !mapping.remotes.lets_in(ctx.settings.filtering, &remote) {
        return Err(Counter::Filtered);
    }
    let addresses = addresses(remote.ip(), key.inside.ip()).ok_or(Counter::Filtered)?;
    let way = Way { to: mapping.mac, from: ctx.settings.mac, addresses, protocol: PROTO_UDP };
    let ports = [remote.port(), key.inside.port()];
    Ok((way, Arrived::new(ctx.settings.mtu, way, ports, payload.len(), with.segment)))
}

/// What becomes of a datagram that came in, or of several of one size.
pub(crate) enum Arrived {
    /// One frame, whose payload is where it was received.
    Frame { headers: [u8; NETWORK_MAX + HEADER], len: usize, vnet: VnetHeader, payload: usize },
    /// Packets of their own, and longer than the network's MTU perhaps.
    Pieces,
}

impl Arrived {
    /// Of `payload` bytes, in datagrams of `segment` if there are several.
    pub(crate) fn new(
        mtu: u16,
        way: Way,
        [from, to]: [u16; 2],
        payload: usize,
        segment: Option<u16>,
    ) -> Self {
        let segment = segment.filter(|size| usize::from(*size) < payload);
        let unit = segment.map_or(payload, usize::from);
        let len = HEADER + payload;
        let ip = way.network_len() - 14;
        if ip + HEADER + unit > mtu.into() || ip + len > usize::from(u16::MAX) {
            return Self::Pieces;
        }
        let mut network = [0; NETWORK_MAX];
        let at = way.write(&mut network, len);
        let mut headers = [0; NETWORK_MAX + HEADER];
        headers[..NETWORK_MAX].copy_from_slice(&network);
        let sum = way.pseudo(len).fold();
        for (i, word) in [from, to, len as u16, sum].into_iter().enumerate() {
            headers[at + 2 * i..][..2].copy_from_slice(&word.to_be_bytes());
        }
        let vnet = VnetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: if segment.is_some() { GSO_UDP_L4 } else { GSO_NONE },
            hdr_len: (at + HEADER) as u16,
            gso_size: segment.unwrap_or(0),
            csum_start: at as u16,
            csum_offset: 6,
            num_buffers: 0,
        };
        Self::Frame { headers, len: at + HEADER, vnet, payload }
    }
}
