//! ICMP echo, by ping sockets (`net.ipv4.ping_group_range`): one for each identifier of a guest's.
//!
//! The kernel gives a ping socket an identifier of its own, and answers for it alone; replies get the guest's again. Other
//! messages of ICMP are not an ordinary user's to send. Where the host lets this process have no ping sockets, nothing is
//! answered, and it is counted.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use datapath::Segment;
use datapath::datagram::{self, Outgoing};
use datapath::egress::to_vec;
use datapath::socket::{Gather, GatherRoom};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use switch_core::checksum::Sum;
use switch_core::ip::{Cause, PROTO_ICMP, PROTO_ICMPV6, Packet, Transport};
use switch_core::napt::{self, NatSession};
use switch_core::{Head, Instant, MacAddr};

use crate::counters::Counter;
use crate::engine::Context;
use crate::faults::{self, About};
use crate::fill::Fill;
use crate::frame::{Way, addresses, turned};
use crate::pieces;
use crate::policy::Protocol;
use crate::table::{Key, Table};
use crate::token::{Kind, Token};
use crate::udp::{HOPS_TOLD, once_more, refused};

/// How long an identifier is kept after its last request. RFC 5508 has this as the least (REQ-2).
const TIMEOUT: Duration = Duration::from_secs(60);
/// Replies that one burst receives at most.
const RECEIVED: usize = 64;
/// Of a fault, what is told of the request that it is about.
const QUOTE: usize = 2048;
/// Types of ICMP and ICMPv6.
const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];
/// Bytes of an echo message without its data.
const HEADER: usize = 8;

/// A guest's identifier and its socket.
#[derive(Debug)]
struct Mapping {
    mac: MacAddr,
    socket: OwnedFd,
    /// Whom it asked last, as the guest names it.
    remote: SocketAddr,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Echo {
    table: Table<Mapping>,
    room: GatherRoom,
    next_id: u32,
}

impl Default for Echo {
    fn default() -> Self {
        let table = Table::new(Kind::Echo, TIMEOUT);
        Self { table, room: GatherRoom::default(), next_id: 0 }
    }
}

fn protocol(v6: bool) -> u8 {
    if v6 { PROTO_ICMPV6 } else { PROTO_ICMP }
}

fn ping_socket(v6: bool) -> Result<OwnedFd, Errno> {
    let (family, protocol) = match v6 {
        false => (AddressFamily::INET, ipproto::ICMP),
        true => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    socket_with(family, SocketType::DGRAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, Some(protocol))
}

/// Whether the host lets this process have ping sockets.
pub(crate) fn is_allowed() -> bool {
    !matches!(ping_socket(false), Err(Errno::ACCESS | Errno::PERM))
}

impl Echo {
    /// Takes a frame that a guest sent.
    pub(crate) fn frame(&mut self, ctx: &mut Context<'_>, packet: &Packet, head: &Head, tail: &[Segment]) {
        let v6 = packet.is_v6();
        let Transport::Icmp { kind, code: 0, id } = packet.transport() else {
            return ctx.counters.add(Counter::Protocol);
        };
        if kind != REQUEST[usize::from(v6)] {
            return ctx.counters.add(Counter::Protocol);
        }
        let Some(hops) = packet.hop_limit().checked_sub(1).filter(|hops| *hops > 0) else {
            ctx.counters.add(Counter::HopLimit);
            return ctx.tell_about(head, tail, Cause::TimeExceeded);
        };
        let remote = SocketAddr::new(packet.destination(), 0);
        let (Ok(outside), true) =
            (ctx.settings.outside(remote.ip()), ctx.settings.outbound.permits(Protocol::Echo, remote))
        else {
            ctx.counters.add(Counter::Denied);
            return ctx.tell_about(head, tail, Cause::Prohibited);
        };
        let key = Key { owner: ctx.from, inside: SocketAddr::new(packet.source(), id) };
        let slot = match self.table.find(&key) {
            Some(slot) => Ok(slot),
            None => self.open(ctx, key, head.source(), remote),
        };
        let slot = match slot {
            Ok(slot) => slot,
            // Nobody would know what is wrong from an error; the operator is told.
            Err(Errno::ACCESS | Errno::PERM) => return ctx.counters.add(Counter::PingForbidden),
            Err(error) => return refused(ctx, head, tail, error, Counter::NoSocket),
        };
        self.table.touch(ctx.now, slot);
        let Some((_, mapping)) = self.table.get_mut(slot) else { return };
        (mapping.mac, mapping.remote) = (head.source(), remote);
        let with = Outgoing {
            to: SocketAddr::new(outside, 0),
            segment: None,
            hop_limit: Some(hops).filter(|hops| *hops < HOPS_TOLD),
            from: None,
        };
        let mut gather = Gather::begin(&mut self.room);
        gather.add(head, tail, packet.transport_at(), packet.end() - packet.transport_at());
        let sent = once_more(|| datagram::send(mapping.socket.as_fd(), &gather, &with));
        gather.end(&mut self.room);
        match sent {
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::NOBUFS) => ctx.counters.add(Counter::SendFull),
            Err(Errno::MSGSIZE) => hear(ctx, &key, mapping),
            Err(error) => refused(ctx, head, tail, error, Counter::SendFailed),
        }
    }

    fn open(
        &mut self,
        ctx: &mut Context<'_>,
        key: Key,
        mac: MacAddr,
        remote: SocketAddr,
    ) -> Result<u32, Errno> {
        let limits = &ctx.settings.limits;
        for _ in 0..self.table.make_room(key.owner, limits.echo_each, limits.echo) {
            ctx.counters.add(Counter::Evicted);
        }
        self.table.insert(ctx.now, key, |token| {
            let v6 = key.inside.is_ipv6();
            let socket = ping_socket(v6)?;
            datagram::follow_errors(socket.as_fd(), v6)?;
            ctx.watch(&socket, token)?;
            Ok(Mapping { mac, socket, remote })
        })
    }

    /// Answers a request to the gateway itself, which came in fragments: others never come here. False if it is none.
    pub(crate) fn is_answered(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &Packet,
        head: &Head,
        tail: &[Segment],
    ) -> bool {
        let (v6, to) = (packet.is_v6(), packet.destination());
        let Transport::Icmp { kind, code: 0, id } = packet.transport() else { return false };
        if kind != REQUEST[usize::from(v6)] || ctx.settings.gateway(to) != Some(to) {
            return false;
        }
        let mut frame = to_vec(head, tail);
        let Some(message) = frame.get_mut(packet.transport_at()..packet.end()) else { return false };
        let addresses = turned(packet.addresses());
        let way = Way { to: head.source(), from: ctx.settings.mac, addresses, protocol: protocol(v6) };
        if let Some(kind) = message.first_mut() {
            *kind = REPLY[usize::from(v6)];
        }
        as_guests(&way, id, message);
        self.next_id = self.next_id.wrapping_add(1);
        for frame in pieces::frames(&way, message, ctx.settings.mtu, self.next_id) {
            ctx.send(frame);
        }
        true
    }

    /// Hears what the kernel says of a socket.
    pub(crate) fn event(&mut self, ctx: &mut Context<'_>, token: Token, flags: EventFlags) {
        if let Some((key, mapping)) = self.table.event(token, flags) {
            hear(ctx, key, mapping);
        }
    }

    /// Writes frames into a burst while it has room.
    pub(crate) fn fill(&mut self, ctx: &mut Context<'_>, fill: &mut Fill<'_>) {
        for _ in 0..RECEIVED {
            if !fill.has_room() {
                break;
            }
            let Some((token, key, mapping)) = self.table.next_ready() else { break };
            let mut whole = Vec::new();
            let failed = match datagram::receive(mapping.socket.as_fd(), fill.slot()) {
                Ok((message, with)) => {
                    let from = ctx.settings.inside(with.from.ip());
                    let v6 = key.inside.is_ipv6();
                    if let Some(addresses) = addresses(from, key.inside.ip())
                        && message.len() >= HEADER
                        && message.first() == Some(&REPLY[usize::from(v6)])
                    {
                        let way = Way {
                            to: mapping.mac,
                            from: ctx.settings.mac,
                            addresses,
                            protocol: protocol(v6),
                        };
                        as_guests(&way, key.inside.port(), message);
                        self.next_id = self.next_id.wrapping_add(1);
                        whole = pieces::frames(&way, message, ctx.settings.mtu, self.next_id);
                    }
                    None
                }
                Err(error) => Some(error),
            };
            self.table.received(ctx.now, token, failed);
            for frame in whole {
                ctx.send(frame);
            }
            ctx.empty_into(fill);
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

    /// How many identifiers there are.
    pub(crate) fn count(&self) -> usize {
        self.table.len()
    }

    /// Every identifier, as an operator sees it.
    pub(crate) fn sessions(&self, now: Instant) -> impl Iterator<Item = NatSession> {
        self.table.iter().map(move |(key, used, mapping)| NatSession {
            protocol: napt::Protocol::Icmp,
            inside: key.inside,
            // The kernel's own choice of address and identifier.
            outside: SocketAddr::new(mapping.unspecified(), 0),
            remote: mapping.remote,
            state: "open",
            idle: now.since(used),
        })
    }
}

impl Mapping {
    fn unspecified(&self) -> std::net::IpAddr {
        match self.remote {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Gives an echo message the guest's identifier and a checksum.
fn as_guests(way: &Way, id: u16, message: &mut [u8]) {
    let Some(header) = message.first_chunk_mut::<HEADER>() else { return };
    [header[4], header[5]] = id.to_be_bytes();
    [header[2], header[3]] = [0, 0];
    let mut sum = if way.protocol == PROTO_ICMPV6 { way.pseudo(message.len()) } else { Sum::new() };
    sum.add(message);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.checksum().to_be_bytes());
    }
}

/// Hears what was said of an identifier's requests, and tells its guest.
fn hear(ctx: &mut Context<'_>, key: &Key, mapping: &Mapping) {
    let v6 = key.inside.is_ipv6();
    let mut room = [MaybeUninit::uninit(); QUOTE];
    while let Ok((message, fault)) = datagram::fault(mapping.socket.as_fd(), &mut room) {
        let Some(fault) = fault.filter(|_| message.len() >= HEADER) else { continue };
        let remote = ctx.settings.inside(fault.to.ip());
        let Some(addresses) = addresses(key.inside.ip(), remote) else { continue };
        let way = Way { to: ctx.settings.mac, from: mapping.mac, addresses, protocol: protocol(v6) };
        as_guests(&way, key.inside.port(), message);
        let about = About { key: *key, mac: mapping.mac, remote, protocol: protocol(v6), transport: message };
        faults::tell(ctx, &fault, &about);
    }
}
