//! TCP: a guest's connections, each spliced to a socket.
//!
//! - `machine`: the guest's side of a connection, without I/O. `segment`, `seq`: what it speaks.
//! - `flow`: a machine and its socket. `table`: which flows there are, and whose. `timers`: when they are looked at.
//! - `open`: how a connection begins. Here: what happens to it then.
//!
//! **From the guest** (`frame`): payload is gathered while segments of one connection follow each other, and sent in one
//! call from where it is. What the socket does not take is not acknowledged.
//!
//! **To the guest** (`fill`): what the socket has is *peeked* into the burst's buffers, a super-frame at a time, and taken out
//! only when the guest has acknowledged it (`MSG_TRUNC`, which copies nothing). So a slow guest's bytes wait in the kernel,
//! whose window to the outside closes.
//!
//! A connection that has something to do stands in a queue, once, and gets one frame in its turn.

mod flow;
mod machine;
mod open;
mod segment;
mod seq;
mod table;
mod timers;

use std::collections::VecDeque;
use std::hash::RandomState;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use datapath::Segment as Piece;
use datapath::egress::add_tail;
use datapath::socket::{Gather, GatherRoom};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::getsockname;
use rustix::net::sockopt::socket_error;
use switch_core::ip::{PROTO_TCP, Packet};
use switch_core::napt::{NatSession, Protocol};
use switch_core::offload::Checksum;
use switch_core::{Head, Instant, MacAddr};

use self::flow::{Flow, Given};
use self::machine::{End, Phase};
use self::segment::{CHECKSUM_AT, HEADER_MAX, Read, Segment, reset_for};
use self::table::{Key, Table};
use self::timers::Timers;
use crate::counters::Counter;
use crate::engine::Context;
use crate::fill::Fill;
use crate::frame::{NETWORK_MAX, Way, addresses, pseudo, turned};
use crate::socket::abort;
use crate::token::{Kind, Token};

#[cfg(feature = "fuzzing")]
pub use self::machine::fuzzing;
pub(crate) use self::open::Caller;
pub use self::open::{Inbound, NotBegun};

/// Closed connections that are remembered, at most.
const LINGERING: usize = 4096;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Tcp {
    table: Table,
    timers: Timers,
    /// Slots of the connections that have something to do.
    ready: VecDeque<u32>,
    /// Closed connections, the oldest first: slot and generation.
    lingering: VecDeque<(u32, u16)>,
    /// What initial sequence numbers are made with (RFC 6528).
    secret: RandomState,
}

/// Payload of one connection that has been looked at and not been sent yet.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    gather: Gather<'a>,
    /// The connection of the last segment, also if it had no payload.
    flow: Option<(Key, u32)>,
    /// The guest's stream ends with it.
    fin: bool,
}

impl Run<'_> {
    pub(crate) fn begin(room: &mut GatherRoom) -> Self {
        Self { gather: Gather::begin(room), flow: None, fin: false }
    }

    fn is_waiting(&self) -> bool {
        !self.gather.is_empty() || self.fin
    }

    fn clear(&mut self) {
        self.gather.clear();
        self.flow = None;
        self.fin = false;
    }

    pub(crate) fn end(self, room: &mut GatherRoom) {
        self.gather.end(room);
    }
}

impl Tcp {
    /// Takes a frame that a guest sent.
    #[inline]
    pub(crate) fn frame<'a>(
        &mut self,
        ctx: &mut Context<'_>,
        run: &mut Run<'a>,
        packet: &Packet,
        head: &'a Head,
        tail: &'a [Piece],
    ) {
        let Some(read) = Read::of(packet, head.bytes()) else {
            ctx.counters.add(Counter::BadPacket);
            return;
        };
        if head.offload.checksum == Checksum::Unknown && !sums_up(packet, head, tail) {
            ctx.counters.add(Counter::BadChecksum);
            return;
        }
        let key = Key { addresses: packet.addresses(), ports: read.ports };
        let segment = &read.segment;
        let slot = match run.flow {
            Some((known, slot)) if known == key && run.gather.fits(tail) => slot,
            _ => {
                self.flush(ctx, run);
                match self.table.find(&key) {
                    Some(slot) => slot,
                    None => return self.stray(ctx, segment, key, head),
                }
            }
        };
        let Some(flow) = self.table.get(slot) else { return };
        if flow.machine.gives_way(segment) {
            run.flow = None;
            self.forget(slot);
            return self.stray(ctx, segment, key, head);
        }
        let out = flow.machine.segment(ctx.now, segment);
        flow.way.to = head.source();
        if let Some(answer) = out.answer {
            ctx.send(whole(&flow.way, flow.ports(), &answer));
        }
        flow.consume += out.acked;
        if let Some(end) = out.end {
            run.clear();
            return self.end(ctx, slot, end);
        }
        run.flow = Some((key, slot));
        if out.take > 0 {
            run.gather.add(head, tail, read.payload_at + out.skip as usize, out.take as usize);
        }
        run.fin |= out.fin;
        if !run.is_waiting() {
            self.attend(ctx, slot);
        }
    }

    /// Sends what was gathered.
    #[inline]
    pub(crate) fn flush(&mut self, ctx: &mut Context<'_>, run: &mut Run<'_>) {
        let waiting = run.is_waiting();
        let Some((_, slot)) = run.flow.take() else { return };
        if waiting && let Some(flow) = self.table.get(slot) {
            match flow.give(ctx.now, &run.gather, run.fin) {
                Ok(Given { all, asks }) => {
                    if !all {
                        ctx.counters.add(Counter::TcpNotTaken);
                    }
                    if asks {
                        self.await_space(ctx, slot);
                    }
                    self.attend(ctx, slot);
                }
                Err(error) => self.broken(ctx, slot, error),
            }
        }
        run.clear();
    }

    /// A segment of no connection: it begins one, or is reset.
    fn stray(&mut self, ctx: &mut Context<'_>, segment: &Segment, key: Key, head: &Head) {
        let flags = segment.flags;
        if flags.syn() && !flags.ack() && !flags.rst() {
            return self.open(ctx, segment, key, head);
        }
        if let Some(reset) = reset_for(segment) {
            ctx.counters.add(Counter::TcpStray);
            let way = way_to(ctx, key, head.source());
            ctx.send(whole(&way, (key.ports.1, key.ports.0), &reset));
        }
    }

    /// Hears what the kernel says of a socket.
    pub(crate) fn event(&mut self, ctx: &mut Context<'_>, token: Token, flags: EventFlags) {
        let Some(flow) = self.table.get_if(token.slot, token.generation) else { return };
        let Some(socket) = &flow.socket else { return };
        let opening = flow.machine.phase() == Phase::Opening;
        if opening || flags.contains(EventFlags::ERR) {
            match socket_error(socket) {
                Ok(Ok(())) => {}
                Ok(Err(error)) | Err(error) => return self.broken(ctx, token.slot, error),
            }
        }
        if opening {
            if !flags.contains(EventFlags::OUT) {
                return;
            }
            // The same event may say that there is something to read, and says it once.
            self.connected(ctx, token.slot);
        }
        let Some(flow) = self.table.get(token.slot) else { return };
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
            flow.hung_up = true;
        }
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
            flow.readable = !flow.machine.is_finished() || flow.readable;
        }
        if flags.contains(EventFlags::OUT) && flow.awaits_space {
            flow.awaits_space = false;
            if flow.measure() {
                self.await_space(ctx, token.slot);
            }
        }
        self.attend(ctx, token.slot);
    }

    /// Asks the kernel to tell when a socket's buffer has room: it does so only for whom it has told that there is none.
    fn await_space(&mut self, ctx: &mut Context<'_>, slot: u32) {
        let Some(flow) = self.table.get(slot) else { return };
        let Some(socket) = flow.socket.as_ref().filter(|_| !flow.awaits_space) else { return };
        let token = Token::new(Kind::Tcp, slot, flow.generation);
        if ctx.watch_again(socket, token).is_ok() {
            flow.awaits_space = true;
        }
    }

    /// Puts a connection into the queue if it has something to do, sees to its time, and to its end.
    #[inline]
    fn attend(&mut self, ctx: &mut Context<'_>, slot: u32) {
        let Some(flow) = self.table.get(slot) else { return };
        if flow.machine.phase() == Phase::Closed && flow.socket.is_some() {
            return self.closed(ctx, slot);
        }
        // What is sent again is there, whatever was found behind it.
        flow.readable |= flow.machine.is_rewound();
        let called = flow.charged_opening && flow.machine.phase() == Phase::Open;
        if !flow.queued && flow.has_work() {
            flow.queued = true;
            self.ready.push_back(slot);
        }
        if flow.readable && flow.machine.sendable() == 0 {
            flow.machine.set_pending(ctx.now, true);
        }
        if let Some(at) = flow.machine.deadline() {
            self.timers.want(at, &mut flow.timer, slot, flow.generation);
        }
        if called {
            self.table.opened(slot);
            ctx.counters.add(Counter::TcpAccepted);
        }
    }

    /// Writes frames into a burst while it has room.
    pub(crate) fn fill(&mut self, ctx: &mut Context<'_>, fill: &mut Fill<'_>) {
        while fill.has_room() {
            let Some(slot) = self.ready.pop_front() else { break };
            let Some(flow) = self.table.get(slot) else { continue };
            if !flow.queued {
                // Its slot's former owner's entry.
                continue;
            }
            flow.queued = false;
            match flow.serve(ctx, fill) {
                Ok(()) => self.attend(ctx, slot),
                Err(error) => self.broken(ctx, slot, error),
            }
        }
    }

    /// True if `fill` would write something, as far as is known without asking the kernel.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a guest has a connection with an endpoint of the outside already.
    pub(crate) fn has(&self, guest: SocketAddr, remote: SocketAddr) -> bool {
        let addresses = addresses(guest.ip(), remote.ip());
        addresses.is_some_and(|addresses| {
            self.table.find(&Key { addresses, ports: (guest.port(), remote.port()) }).is_some()
        })
    }

    /// The same, but a connection that is over is forgotten for a new one: true if there is none then.
    pub(crate) fn frees(&mut self, guest: SocketAddr, remote: SocketAddr) -> bool {
        let Some(addresses) = addresses(guest.ip(), remote.ip()) else { return false };
        let Some(slot) = self.table.find(&Key { addresses, ports: (guest.port(), remote.port()) }) else {
            return true;
        };
        let is_over = self.table.get(slot).is_some_and(|flow| flow.socket.is_none());
        if is_over {
            self.forget(slot);
        }
        is_over
    }

    /// Resets the connections that came by listeners which are gone.
    pub(crate) fn hang_up(&mut self, ctx: &mut Context<'_>, is_gone: impl Fn(Token) -> bool) {
        for slot in self
            .table
            .find_all(|flow| flow.socket.is_some() && flow.caller.is_some_and(|caller| is_gone(caller.by)))
        {
            self.broken(ctx, slot, Errno::CONNRESET);
        }
    }

    /// How many connections there are.
    pub(crate) fn count(&self) -> usize {
        self.table.len()
    }

    /// Every connection, as an operator sees it.
    pub(crate) fn sessions(&self, now: Instant) -> impl Iterator<Item = NatSession> {
        self.table.iter().map(move |flow| {
            let inside = flow.key.inside();
            let remote = SocketAddr::new(flow.key.outside(), flow.key.ports.1);
            let any: IpAddr = match inside {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            // Without a socket, when both streams have ended.
            let own =
                flow.socket.as_ref().and_then(|socket| SocketAddr::try_from(getsockname(socket).ok()?).ok());
            NatSession {
                protocol: Protocol::Tcp,
                inside: SocketAddr::new(inside, flow.key.ports.0),
                outside: own.unwrap_or(SocketAddr::new(any, 0)),
                remote: flow.caller.map_or(remote, |caller| caller.client),
                state: match flow.machine.phase() {
                    Phase::Open => "established",
                    Phase::Opening | Phase::Calling | Phase::Answered | Phase::Closed => "transitory",
                },
                idle: now.since(flow.machine.heard()),
            }
        })
    }

    /// When `timeout` is to be called next.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Does what is due.
    pub(crate) fn timeout(&mut self, ctx: &mut Context<'_>) {
        while let Some((slot, generation)) = self.timers.pop(ctx.now) {
            let Some(flow) = self.table.get_if(slot, generation) else { continue };
            flow.timer = None;
            if flow.machine.is_over(ctx.now) {
                self.forget(slot);
                continue;
            }
            match flow.machine.timeout(ctx.now) {
                Some(end) => self.end(ctx, slot, end),
                None => self.attend(ctx, slot),
            }
        }
    }

    /// Both streams have ended: the socket is given back, the connection remembered for a while.
    fn closed(&mut self, ctx: &mut Context<'_>, slot: u32) {
        let Some(flow) = self.table.get(slot) else { return };
        // What is left in a socket when it is closed resets the connection.
        let _ = flow.consume();
        flow.socket = None;
        ctx.counters.add(Counter::TcpClosed);
        self.lingering.push_back((slot, flow.generation));
        self.table.released(slot);
        if self.lingering.len() > LINGERING
            && let Some((slot, generation)) = self.lingering.pop_front()
            && self.table.get_if(slot, generation).is_some()
        {
            self.forget(slot);
        }
        self.attend(ctx, slot);
    }

    /// A guest ends a connection.
    fn end(&mut self, ctx: &mut Context<'_>, slot: u32, end: End) {
        let Some(mut flow) = self.take(slot) else { return };
        match end {
            End::Reset => ctx.counters.add(Counter::TcpResetInside),
            // The guest's next SYN asks again; it gives up when it wants to.
            End::Unanswered => ctx.counters.add(Counter::TcpTimedOut),
            End::Gone => {
                ctx.counters.add(Counter::TcpGuestGone);
                ctx.send(whole(&flow.way, flow.ports(), &flow.machine.reset()));
            }
        }
        if let Some(socket) = flow.socket.take() {
            abort(socket);
        }
    }

    /// A socket failed.
    fn broken(&mut self, ctx: &mut Context<'_>, slot: u32, error: Errno) {
        let Some(mut flow) = self.take(slot) else { return };
        if flow.machine.phase() == Phase::Opening {
            self.refused(ctx, &flow, error);
        } else {
            ctx.counters.add(Counter::TcpResetOutside);
            ctx.send(whole(&flow.way, flow.ports(), &flow.machine.reset()));
        }
        if let Some(socket) = flow.socket.take() {
            abort(socket);
        }
    }

    /// Takes a connection out, and its entry among the timers.
    fn take(&mut self, slot: u32) -> Option<Box<Flow>> {
        let mut flow = self.table.remove(slot)?;
        self.timers.forget(&mut flow.timer, slot, flow.generation);
        Some(flow)
    }

    /// Forgets a connection that is over.
    fn forget(&mut self, slot: u32) {
        self.take(slot);
        while let Some(&(slot, generation)) = self.lingering.front()
            && self.table.get_if(slot, generation).is_none()
        {
            self.lingering.pop_front();
        }
    }
}

/// The way to a guest.
fn way_to(ctx: &Context<'_>, key: Key, guest: MacAddr) -> Way {
    Way { to: guest, from: ctx.settings.mac, addresses: turned(key.addresses), protocol: PROTO_TCP }
}

/// Whether a segment's checksum is right (RFC 9293, 3.1).
#[inline]
fn sums_up(packet: &Packet, head: &Head, tail: &[Piece]) -> bool {
    let len = packet.end() - packet.transport_at();
    let mut sum = pseudo(packet.addresses(), PROTO_TCP, len);
    let end = packet.end().min(head.bytes().len());
    sum.add(head.bytes().get(packet.transport_at()..end).unwrap_or_default());
    let mut left = packet.end() - end;
    for piece in tail {
        let part = piece.part(0, left);
        left -= part.len();
        add_tail(&mut sum, &[part]);
    }
    // The sum of all that is there, the checksum with it, has only ones.
    sum.fold() == 0xffff
}

/// A whole frame of one segment without payload, its checksum complete.
fn whole(way: &Way, ports: (u16, u16), segment: &Segment) -> Vec<u8> {
    let mut network = [0; NETWORK_MAX];
    let mut transport = [0; HEADER_MAX];
    let len = segment.write(ports, &mut transport);
    let at = way.write(&mut network, len);
    let mut sum = way.pseudo(len);
    sum.add(&transport[..len]);
    transport[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.checksum().to_be_bytes());
    [&network[..at], &transport[..len]].concat()
}
