//! Everything that there is behind the port's lock: the protocols' tables, what waits to go into the network, and the
//! descriptor that the kernel's events come by. Time is an argument.
//!
//! Each protocol is asked for the same things, in its turn: to take a frame that a guest sent (`frame`), to hear what the
//! kernel says of a socket (`event`), to write frames into a burst (`fill`), and to do what is due (`next_timeout`,
//! `timeout`).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use datapath::egress::to_vec;
use datapath::socket::GatherRoom;
use datapath::{Bucket, Segment};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use switch_core::head::Head;
use switch_core::ip::{
    Cause, ETHERTYPE_ARP, ErrorLimit, Origin, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet,
    Transport, error_frame,
};
use switch_core::napt::{Forward, NatSession};
use switch_core::{Instant, PortId};

use crate::counters::{Counter, Counters};
use crate::echo::Echo;
use crate::fill::Fill;
use crate::forwards::{Forwards, ListenError, Listener};
use crate::fragments::{Fragments, Whole};
use crate::outbox::Outbox;
use crate::settings::Settings;
use crate::tcp::{Inbound, NotBegun, Run, Tcp};
use crate::token::{Kind, Token};
use crate::udp::Udp;

/// Events that are taken from the kernel at once.
const EVENTS: usize = 64;

/// What sockets are watched for: edges of all kinds.
const WATCHED: epoll::EventFlags = epoll::EventFlags::IN
    .union(epoll::EventFlags::OUT)
    .union(epoll::EventFlags::RDHUP)
    .union(epoll::EventFlags::ET);

const DOORBELL: Token = Token::new(Kind::Engine, 0, 0);
const TIMER: Token = Token::new(Kind::Engine, 1, 0);

/// What every protocol needs for what it does.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) settings: &'a Settings,
    pub(crate) counters: &'a Counters,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) errors: &'a mut ErrorLimit,
    pub(crate) epoll: &'a OwnedFd,
    /// The port that the frame at hand came from.
    pub(crate) from: Option<PortId>,
}

impl Context<'_> {
    /// Sends a small frame into the network, whole and with its checksums complete.
    pub(crate) fn send(&mut self, frame: Vec<u8>) {
        if !self.outbox.push(frame) {
            self.counters.add(Counter::OutboxFull);
        }
    }

    /// Writes what waits into a burst while it has room: what is left has found none.
    pub(crate) fn empty_into(&mut self, fill: &mut Fill<'_>) {
        while fill.has_room() {
            let Some(frame) = self.outbox.pop() else { break };
            fill.push_whole(&frame);
        }
    }

    /// Tells a guest by ICMP what is wrong with the packet that begins the frame `quote`, if such errors are allowed and
    /// there are not too many.
    pub(crate) fn tell(&mut self, quote: &[u8], cause: Cause) {
        let Ok(packet) = Packet::of_frame(quote) else { return };
        let Some(address) = self.settings.gateway(packet.source()) else { return };
        if self.from.is_some_and(|port| !self.errors.allow(self.now, port)) {
            return;
        }
        if let Some(frame) = error_frame(quote, cause, Origin { mac: self.settings.mac, address }) {
            self.send(frame);
        }
    }

    /// Tells the guest at hand by ICMP what is wrong with a frame of its, if such errors are allowed and there are not too
    /// many.
    pub(crate) fn tell_about(&mut self, head: &Head, tail: &[Segment], cause: Cause) {
        if self.from.is_none_or(|port| self.errors.allow(self.now, port)) {
            let frame = to_vec(head, tail);
            let gateway =
                Packet::of_frame(&frame).ok().and_then(|packet| self.settings.gateway(packet.source()));
            let origin = gateway.map(|address| Origin { mac: self.settings.mac, address });
            if let Some(error) = origin.and_then(|origin| error_frame(&frame, cause, origin)) {
                self.send(error);
            }
        }
    }

    /// Asks for events of a socket, edges of all kinds.
    ///
    /// # Errors
    /// The kernel has no more room for it.
    pub(crate) fn watch(&self, socket: impl AsFd, token: Token) -> Result<(), Errno> {
        epoll::add(self.epoll, socket, epoll::EventData::new_u64(token.to_u64()), WATCHED)
    }

    /// Asks anew for the events of a socket that is watched: what it is ready for now is told once more, and what it is not
    /// ready for when it is.
    ///
    /// # Errors
    /// The socket is not watched.
    pub(crate) fn watch_again(&self, socket: impl AsFd, token: Token) -> Result<(), Errno> {
        epoll::modify(self.epoll, socket, epoll::EventData::new_u64(token.to_u64()), WATCHED)
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Engine {
    settings: Settings,
    counters: Arc<Counters>,
    outbox: Outbox,
    errors: ErrorLimit,
    tcp: Tcp,
    udp: Udp,
    echo: Echo,
    forwards: Forwards,
    fragments: Fragments,
    gather: GatherRoom,
    epoll: OwnedFd,
    timer: OwnedFd,
    doorbell: OwnedFd,
    /// What the timer is set to.
    timer_at: Option<Instant>,
    /// Whether the queue's worker sleeps, or may: then who makes work rings.
    armed: bool,
}

impl Engine {
    pub(crate) fn new(settings: Settings, counters: Arc<Counters>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let doorbell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        for (fd, token) in [(&timer, TIMER), (&doorbell, DOORBELL)] {
            let data = epoll::EventData::new_u64(token.to_u64());
            // Edges: both are rung anew for each time that they matter, and never read.
            epoll::add(&epoll, fd, data, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        }
        Ok(Self {
            settings,
            counters,
            outbox: Outbox::default(),
            errors: ErrorLimit::default(),
            tcp: Tcp::default(),
            udp: Udp::default(),
            echo: Echo::default(),
            forwards: Forwards::default(),
            fragments: Fragments::default(),
            gather: GatherRoom::default(),
            epoll,
            timer,
            doorbell,
            timer_at: None,
            armed: false,
        })
    }

    /// What the port was told.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the port was told, to be changed: it holds for flows that begin from now on.
    pub(crate) fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Flows, at most `limit`, in no order, and how many there are in all.
    pub(crate) fn sessions(&self, now: Instant, limit: usize) -> (Vec<NatSession>, usize) {
        let flows = self.tcp.sessions(now).chain(self.udp.sessions(now)).chain(self.echo.sessions(now));
        let flows = flows.chain(self.forwards.sessions(now));
        let count = self.tcp.count() + self.udp.count() + self.echo.count() + self.forwards.count();
        (flows.take(limit).collect(), count)
    }

    /// The descriptor that becomes readable when there is work.
    pub(crate) fn wake_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Takes the frames of a bucket that the network sends to the outside.
    pub(crate) fn frames(&mut self, now: Instant, bucket: &Bucket<'_>) {
        let from = bucket.from();
        self.settings.outbound.tell(now);
        let Self { settings, counters, outbox, errors, tcp, udp, echo, forwards, fragments, .. } = self;
        let ctx = &mut Context { now, settings, counters, outbox, errors, epoll: &self.epoll, from };
        let protocols = &mut Protocols { tcp, udp, echo, forwards };
        let mut run = Run::begin(&mut self.gather);
        for i in 0..bucket.len() {
            let (head, tail) = bucket.parts(i);
            let Some(packet) = sound(ctx, head) else {
                if head.ethertype() == ETHERTYPE_ARP {
                    protocols.forwards.hear(ctx, protocols.tcp, head);
                }
                continue;
            };
            if !packet.is_fragment() {
                protocols.frame(ctx, &mut run, &packet, head, tail);
            } else if let Some(whole) = fragments.frame(ctx, &packet, head, tail) {
                protocols.reassembled(ctx, &whole);
            }
        }
        protocols.tcp.flush(ctx, &mut run);
        run.end(&mut self.gather);
        self.ring();
    }

    /// Offers a guest a connection that somebody outside has made.
    pub(crate) fn accept(&mut self, now: Instant, socket: OwnedFd, inbound: Inbound) -> Result<(), NotBegun> {
        let Self { settings, counters, outbox, errors, tcp, epoll, .. } = self;
        let ctx = &mut Context { now, settings, counters, outbox, errors, epoll, from: None };
        let done = tcp.accept(ctx, socket, inbound, None);
        self.ring();
        done
    }

    /// Takes a forward with its sockets. Nothing has changed if it is refused.
    pub(crate) fn add_forward(
        &mut self,
        now: Instant,
        forward: Forward,
        listeners: Vec<Listener>,
    ) -> Result<(), ListenError> {
        let Self { settings, counters, outbox, errors, forwards, epoll, .. } = self;
        let ctx = &Context { now, settings, counters, outbox, errors, epoll, from: None };
        forwards.add(ctx, forward, listeners)
    }

    /// Takes a forward away, and ends what came by it; false if it was not there.
    pub(crate) fn remove_forward(&mut self, now: Instant, forward: &Forward) -> bool {
        let Self { settings, counters, outbox, errors, tcp, forwards, epoll, .. } = self;
        let ctx = &mut Context { now, settings, counters, outbox, errors, epoll, from: None };
        let done = forwards.remove(ctx, tcp, forward);
        self.ring();
        done
    }

    /// Does what is due, hears what the kernel has to say, and writes frames into a burst.
    pub(crate) fn burst(&mut self, now: Instant, fill: &mut Fill<'_>) -> Result<(), Errno> {
        self.look(now)?;
        let Self { settings, counters, outbox, errors, tcp, udp, echo, forwards, epoll, .. } = self;
        let ctx = &mut Context { now, settings, counters, outbox, errors, epoll, from: None };
        ctx.empty_into(fill);
        echo.fill(ctx, fill);
        forwards.fill(ctx, fill);
        udp.fill(ctx, fill);
        tcp.fill(ctx, fill);
        Ok(())
    }

    /// Does what is due and hears the kernel; true if it may have more to say.
    fn look(&mut self, now: Instant) -> Result<bool, Errno> {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (events, _) = match epoll::wait(&self.epoll, &mut events[..], Some(&zero)) {
            Ok(found) => found,
            Err(Errno::INTR) => (&mut [][..], &mut [][..]),
            Err(error) => return Err(error),
        };
        let more = events.len() == EVENTS;
        let due = self.next_timeout().is_some_and(|at| at <= now);
        let Self { settings, counters, outbox, errors, tcp, udp, echo, forwards, fragments, epoll, .. } =
            self;
        let ctx = &mut Context { now, settings, counters, outbox, errors, epoll, from: None };
        for event in events {
            let token = Token::from_u64(event.data.u64());
            match token.kind {
                Kind::Engine => {}
                Kind::Tcp => tcp.event(ctx, token, event.flags),
                Kind::Udp => udp.event(ctx, token, event.flags),
                Kind::Echo => echo.event(ctx, token, event.flags),
                Kind::Listener => forwards.event(ctx, token, event.flags),
            }
        }
        forwards.accept(ctx, tcp);
        if due {
            tcp.timeout(ctx);
            udp.timeout(ctx);
            echo.timeout(ctx);
            forwards.timeout(ctx);
            fragments.timeout(ctx);
        }
        Ok(more)
    }

    fn next_timeout(&self) -> Option<Instant> {
        let flows = [self.tcp.next_timeout(), self.udp.next_timeout(), self.echo.next_timeout()];
        flows.into_iter().chain([self.forwards.next_timeout(), self.fragments.next_timeout()]).flatten().min()
    }

    /// True if the next burst would not be empty, as far as is known without asking the kernel.
    fn has_work(&self) -> bool {
        !self.outbox.is_empty()
            || self.tcp.has_work()
            || self.udp.has_work()
            || self.echo.has_work()
            || self.forwards.has_work()
    }

    /// Wakes the queue's worker if it sleeps and there is work for it.
    fn ring(&mut self) {
        if self.armed && self.has_work() {
            self.armed = false;
            // Fails only when the counter is full, and then it has been rung before.
            let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
        }
    }

    /// Asks to be woken; false if there is work already.
    pub(crate) fn arm(&mut self, now: Instant) -> Result<bool, Errno> {
        // What the kernel has not said yet, it says to nobody who sleeps: it rings once for all of it.
        if self.look(now)? || self.has_work() {
            return Ok(false);
        }
        let at = self.next_timeout();
        if at.is_some_and(|at| at <= now) {
            return Ok(false);
        }
        if at != self.timer_at {
            self.timer_at = at;
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            // A value of zero stops the timer.
            let it_value = at.map_or(zero, |at| {
                let wait = at.since(now);
                Timespec {
                    tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(wait.subsec_nanos()),
                }
            });
            let value = Itimerspec { it_interval: zero, it_value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        }
        self.armed = true;
        Ok(true)
    }

    /// The worker is awake.
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
        // It may have gone off, and does so once.
        self.timer_at = None;
    }
}

/// Who takes a guest's packets.
struct Protocols<'e> {
    tcp: &'e mut Tcp,
    udp: &'e mut Udp,
    echo: &'e mut Echo,
    forwards: &'e mut Forwards,
}

impl Protocols<'_> {
    /// Takes a packet that is whole.
    #[inline]
    fn frame<'a>(
        &mut self,
        ctx: &mut Context<'_>,
        run: &mut Run<'a>,
        packet: &Packet,
        head: &'a Head,
        tail: &'a [Segment],
    ) {
        match packet.protocol() {
            PROTO_TCP => self.tcp.frame(ctx, run, packet, head, tail),
            PROTO_UDP if self.forwards.answer(ctx, packet, head, tail) => {}
            PROTO_UDP => self.udp.frame(ctx, packet, head, tail, !packet.dont_fragment()),
            PROTO_ICMP if !packet.is_v6() => self.echo.frame(ctx, packet, head, tail),
            PROTO_ICMPV6 if is_advertisement(packet) => self.forwards.hear(ctx, self.tcp, head),
            PROTO_ICMPV6 if packet.is_v6() => self.echo.frame(ctx, packet, head, tail),
            _ => {
                ctx.counters.add(Counter::Protocol);
                ctx.tell(head.bytes(), Cause::ProtocolUnreachable);
            }
        }
    }

    /// Takes a packet that came in fragments.
    fn reassembled(&mut self, ctx: &mut Context<'_>, whole: &Whole) {
        let Whole { packet, head, tail } = whole;
        match packet.protocol() {
            // Its sender may cut it, so may the host.
            PROTO_UDP if !self.forwards.answer(ctx, packet, head, tail) => {
                self.udp.frame(ctx, packet, head, tail, true);
            }
            PROTO_UDP => {}
            PROTO_ICMP | PROTO_ICMPV6 if self.echo.is_answered(ctx, packet, head, tail) => {}
            // RFC 6980: neighbours send none in fragments.
            PROTO_ICMPV6 if is_advertisement(packet) => ctx.counters.add(Counter::Protocol),
            _ => {
                let mut room = GatherRoom::default();
                let mut run = Run::begin(&mut room);
                self.frame(ctx, &mut run, packet, head, tail);
                self.tcp.flush(ctx, &mut run);
                run.end(&mut room);
            }
        }
    }
}

/// ICMPv6's neighbour advertisement (RFC 4861, 4.4).
fn is_advertisement(packet: &Packet) -> bool {
    packet.is_v6() && matches!(packet.transport(), Transport::Icmp { kind: 136, .. })
}

/// The packet in a frame, if it is one that sockets can take.
#[inline]
fn sound(ctx: &Context<'_>, head: &Head) -> Option<Packet> {
    let Ok(packet) = Packet::of_head(head) else {
        if head.ethertype() != ETHERTYPE_ARP {
            ctx.counters.add(Counter::BadPacket);
        }
        return None;
    };
    Some(packet)
}
