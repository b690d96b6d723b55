//! Port forwards: sockets of the host that listen for guests.
//!
//! - `listen`: the sockets. `neighbours`: where the guests are that they lead to. `clients`: who sends datagrams.
//! - Here: who connects is accepted, and offered to the guest by [`Tcp::accept`]; what the guest refuses is reset, and so is
//!   what waits in vain for the guest to say where it is. `datagrams`: those of UDP, and their answers.
//!
//! A guest sees the gateway's address, with the client's port if that is free and not one of the ports below
//! [`PORTS`], which the gateway may serve itself; else with another. With [`Source::Client`] it sees the client's own
//! address and port, if its answers to that come to the router (not to a neighbour, nor to itself) and it has no other
//! connection with the same: what it answers belongs to the flow then, and the outbound filter is not asked. Nothing
//! is translated: the addresses of frames to a guest are whatever its flow's table says.
//!
//! A forward is there with all of its ports or not at all. When it goes, what came by it ends.

mod clients;
mod datagrams;
mod listen;
mod neighbours;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use datapath::socket::GatherRoom;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, sockopt};
use switch_core::napt::{Forward, NatSession, Protocol};
use switch_core::{Head, Instant, MacAddr};

use self::clients::Clients;
use self::neighbours::{Call, Neighbours, Waiting};
use crate::counters::Counter;
use crate::engine::Context;
use crate::tcp::{Caller, Inbound, Tcp};
use crate::token::{Kind, Token};
use crate::turns::Turns;

pub use self::listen::{ListenError, Source};
pub(crate) use self::listen::{Listener, open};

/// Ports of the gateway that guests see clients at.
const PORTS: RangeInclusive<u16> = 1024..=u16::MAX;
/// Tries to find one that is free.
const TRIES: u32 = 64;
/// Connections that one look accepts at most.
const ACCEPTED: usize = 64;
/// Until the kernel is asked again that had no descriptor to give.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Slot {
    generation: u16,
    listener: Option<Listener>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Forwards {
    slots: Vec<Slot>,
    free: Vec<u32>,
    forwards: Vec<(Forward, Vec<Token>)>,
    neighbours: Neighbours,
    clients: Clients,
    /// Listeners for TCP to which somebody may have connected.
    called: VecDeque<Token>,
    /// Listeners for UDP that may have a datagram.
    sent_to: Turns,
    /// Listeners whose next connection cannot be had now, and until when they wait.
    stuck: Vec<Token>,
    retry: Option<Instant>,
    room: GatherRoom,
    next_id: u32,
    /// What ports are picked by.
    secret: RandomState,
}

impl Forwards {
    /// How many sockets there are.
    pub(crate) fn listeners(&self) -> u64 {
        (self.slots.len() - self.free.len()) as u64
    }

    /// Takes a forward with its sockets.
    ///
    /// # Errors
    /// It cannot be here; nothing has changed.
    pub(crate) fn add(
        &mut self,
        ctx: &Context<'_>,
        forward: Forward,
        listeners: Vec<Listener>,
    ) -> Result<(), ListenError> {
        let (wanted, most) = (self.listeners() + listeners.len() as u64, ctx.settings.limits.listeners);
        if wanted > u64::from(most) {
            return Err(ListenError::TooMany { wanted, most });
        }
        if ctx.settings.gateway(forward.target.ip()).is_none() {
            return Err(ListenError::NoGateway(forward.target.ip()));
        }
        let mut tokens = Vec::new();
        for listener in listeners {
            let at = listener.at;
            let token = self.put(listener);
            tokens.push(token);
            let watched = self.listener(token).map_or(Ok(()), |listener| ctx.watch(&listener.socket, token));
            if let Err(error) = watched {
                for token in tokens {
                    self.take(token);
                }
                return Err(ListenError::Socket { at, source: error.into() });
            }
        }
        self.forwards.push((forward, tokens));
        Ok(())
    }

    /// Takes a forward away, and ends what came by it; false if it was not there.
    pub(crate) fn remove(&mut self, ctx: &mut Context<'_>, tcp: &mut Tcp, forward: &Forward) -> bool {
        let Some(place) = self.forwards.iter().position(|(other, _)| other == forward) else { return false };
        let (_, tokens) = self.forwards.swap_remove(place);
        for &token in &tokens {
            self.take(token);
            if forward.protocol == Protocol::Udp {
                self.clients.forget(token);
            }
        }
        if forward.protocol == Protocol::Tcp {
            tcp.hang_up(ctx, |by| tokens.contains(&by));
        }
        true
    }

    fn put(&mut self, listener: Listener) -> Token {
        self.neighbours.add(listener.target.ip());
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let Some(place) = self.slots.get_mut(slot as usize) else {
            return Token::new(Kind::Listener, slot, 0);
        };
        place.listener = Some(listener);
        Token::new(Kind::Listener, slot, place.generation)
    }

    fn take(&mut self, token: Token) {
        let Some(place) = self.slots.get_mut(token.slot as usize) else { return };
        let Some(listener) = place.listener.take() else { return };
        place.generation = place.generation.wrapping_add(1);
        self.free.push(token.slot);
        self.neighbours.remove(listener.target.ip(), token);
    }

    fn listener(&mut self, token: Token) -> Option<&mut Listener> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        if slot.generation == token.generation { slot.listener.as_mut() } else { None }
    }

    /// Hears what the kernel says of a socket.
    pub(crate) fn event(&mut self, ctx: &mut Context<'_>, token: Token, flags: EventFlags) {
        if flags.contains(EventFlags::ERR) {
            self.hear_faults(ctx, token);
        }
        // As `listener`, but of one field, for the queues to be others.
        let Some(slot) = self.slots.get_mut(token.slot as usize) else { return };
        let Some(listener) = slot.listener.as_mut().filter(|_| slot.generation == token.generation) else {
            return;
        };
        if !flags.intersects(EventFlags::IN | EventFlags::ERR) {
            return;
        }
        match listener.protocol {
            Protocol::Tcp if listener.called => {}
            Protocol::Tcp => {
                listener.called = true;
                self.called.push_back(token);
            }
            _ => self.sent_to.call(&mut listener.stands, token),
        }
    }

    /// Accepts who has connected.
    pub(crate) fn accept(&mut self, ctx: &mut Context<'_>, tcp: &mut Tcp) {
        for _ in 0..ACCEPTED {
            let Some(token) = self.called.pop_front() else { break };
            let Some(listener) = self.listener(token) else { continue };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match acceptfrom_with(&listener.socket, flags) {
                Ok((socket, from)) => {
                    let (guest, source) = (listener.target, listener.source);
                    self.called.push_back(token);
                    let Some(client) = from.and_then(|from| SocketAddr::try_from(from).ok()) else {
                        continue;
                    };
                    // Whatever becomes of it, but for its guest's taking it: a reset.
                    if sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).is_ok() {
                        self.call(ctx, tcp, Call { socket, client, by: token, guest, source });
                    }
                }
                Err(Errno::AGAIN) => listener.called = false,
                Err(Errno::CONNABORTED | Errno::INTR) => self.called.push_back(token),
                Err(_) => {
                    ctx.counters.add(Counter::TcpExhausted);
                    self.stuck.push(token);
                    self.retry = Some(ctx.now + RETRY);
                }
            }
        }
    }

    fn call(&mut self, ctx: &mut Context<'_>, tcp: &mut Tcp, call: Call) {
        let ip = call.guest.ip();
        if let Some(mac) = self.neighbours.find(ctx, ip) {
            return self.offer(ctx, tcp, call, mac);
        }
        if !self.neighbours.wait(ctx.now, ip, Waiting::Connection(call)) {
            ctx.counters.add(Counter::NoGuest);
        }
    }

    /// Offers a connection to its guest.
    fn offer(&self, ctx: &mut Context<'_>, tcp: &mut Tcp, call: Call, mac: MacAddr) {
        let Call { socket, client, by, guest, source } = call;
        let kept = kept(ctx, source, client).filter(|&client| tcp.frees(guest, client));
        let source = kept.or_else(|| {
            let gateway = ctx.settings.gateway(guest.ip())?;
            replaced(ctx, source);
            pick(&self.secret, gateway, client, |source| tcp.has(guest, source))
        });
        let Some(source) = source else { return ctx.counters.add(Counter::TcpFull) };
        let inbound = Inbound { guest, mac, source };
        // What is used up is counted; the connection is reset.
        let _ = tcp.accept(ctx, socket, inbound, Some(Caller { by, client }));
    }

    /// Hears of a neighbour in a frame that is for the router.
    pub(crate) fn hear(&mut self, ctx: &mut Context<'_>, tcp: &mut Tcp, head: &Head) {
        let Some((mac, waited)) = self.neighbours.hear(ctx.now, head) else { return };
        for waiting in waited {
            match waiting {
                Waiting::Connection(call) => self.offer(ctx, tcp, call, mac),
                Waiting::Datagram(frames, _) => {
                    for frame in neighbours::address(ctx.settings, mac, frames) {
                        ctx.send(frame);
                    }
                }
            }
        }
    }

    /// True if there is something to do, as far as is known without asking the kernel.
    pub(crate) fn has_work(&self) -> bool {
        !self.called.is_empty() || self.sent_to.has_work()
    }

    /// When `timeout` is to be called next.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        [self.neighbours.due(), self.clients.due(), self.sent_to.due(), self.retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due.
    pub(crate) fn timeout(&mut self, ctx: &mut Context<'_>) {
        for _ in self.neighbours.timeout(ctx) {
            ctx.counters.add(Counter::NoGuest);
        }
        self.clients.expire(ctx.now);
        self.sent_to.timeout(ctx.now);
        if self.retry.is_some_and(|at| at <= ctx.now) {
            self.retry = None;
            self.called.extend(self.stuck.drain(..));
        }
    }

    /// How many flows of UDP there are.
    pub(crate) fn count(&self) -> usize {
        self.clients.len()
    }

    /// Every flow of UDP, as an operator sees it.
    pub(crate) fn sessions(&self, now: Instant) -> impl Iterator<Item = NatSession> {
        self.clients.iter().filter_map(move |((inside, _), client, used)| {
            let at = self.slots.get(client.by.slot as usize)?.listener.as_ref()?.at;
            Some(NatSession {
                protocol: Protocol::Udp,
                inside,
                outside: SocketAddr::new(client.to.unwrap_or(at.ip()), at.port()),
                remote: client.from,
                state: "open",
                idle: now.since(used),
            })
        })
    }
}

/// The client's own address, if it is to be kept and a guest's answers to it come to the router.
fn kept(ctx: &Context<'_>, source: Source, client: SocketAddr) -> Option<SocketAddr> {
    let kept = source == Source::Client && ctx.settings.outbound.is_beyond(client.ip());
    // Without what a socket knows of its link and flow besides.
    kept.then(|| SocketAddr::new(client.ip(), client.port()))
}

/// Counts that the gateway stands for a client that was to be seen.
fn replaced(ctx: &Context<'_>, source: Source) {
    if source == Source::Client {
        ctx.counters.add(Counter::SourceReplaced);
    }
}

/// The gateway's port that a guest sees a client at: the client's own, or one that only this process can guess.
fn pick(
    secret: &RandomState,
    gateway: IpAddr,
    client: SocketAddr,
    taken: impl Fn(SocketAddr) -> bool,
) -> Option<SocketAddr> {
    let span = u64::from(PORTS.end() - PORTS.start()) + 1;
    let others = (0..TRIES).map(|i| (secret.hash_one((client, i)) % span) as u16 + PORTS.start());
    std::iter::once(client.port())
        .filter(|port| PORTS.contains(port))
        .chain(others)
        .map(|port| SocketAddr::new(gateway, port))
        .find(|&source| !taken(source))
}
