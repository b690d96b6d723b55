//! How a connection begins. The outside is asked first: a guest's SYN starts a connection that does not block, and is
//! answered when somebody has accepted; it is refused as the outside refuses, and cannot be kept waiting by less.

use std::hash::BuildHasher;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::sockopt;
use switch_core::ip::{Addresses, Cause};
use switch_core::{Head, MacAddr};

use super::flow::Flow;
use super::machine::{Config, Machine};
use super::segment::{Segment, reset_for};
use super::seq::Seq;
use super::table::Key;
use super::{Tcp, way_to, whole};
use crate::counters::Counter;
use crate::engine::Context;
use crate::frame::addresses;
use crate::policy::Protocol;
use crate::socket::{self, Connecting, Refusal};
use crate::token::{Kind, Token};

impl Tcp {
    /// A guest asks for a connection.
    pub(super) fn open(&mut self, ctx: &mut Context<'_>, syn: &Segment, key: Key, head: &Head) {
        let destination = SocketAddr::new(key.outside(), key.ports.1);
        let way = way_to(ctx, key, head.source());
        let reset = |ctx: &mut Context<'_>| {
            if let Some(reset) = reset_for(syn) {
                ctx.send(whole(&way, (key.ports.1, key.ports.0), &reset));
            }
        };
        // Every system takes a reset at once; an ICMP error is limited in rate, and some do not look at it.
        let Some(outside) = self.permitted(ctx, destination) else {
            ctx.counters.add(Counter::Denied);
            return reset(ctx);
        };
        if let Err(used_up) = self.table.admits(&key, ctx.from, &ctx.settings.limits) {
            ctx.counters.add(used_up);
            // A SYN that is left alone comes again; a connection that cannot be had is refused.
            if used_up != Counter::TcpOpening {
                reset(ctx);
            }
            return;
        }
        let iss = self.initial(ctx, &key);
        let machine = Machine::asked(ctx.now, syn, iss, config(ctx, &key));
        let Connecting { socket, connected } = match socket::stream(outside) {
            Ok(connecting) => connecting,
            Err(error) => return refuse(ctx, error, |ctx, cause| ctx.tell(head.bytes(), cause), reset),
        };
        let (slot, generation) = self.table.next();
        if ctx.watch(&socket, Token::new(Kind::Tcp, slot, generation)).is_err() {
            ctx.counters.add(Counter::TcpExhausted);
            return reset(ctx);
        }
        let slot = self.table.insert(Flow::new(key, way, ctx.from, machine, socket, generation));
        if connected {
            self.connected(ctx, slot);
        } else {
            self.attend(ctx, slot);
        }
    }

    /// Where a socket connects to, if the guest may reach it.
    fn permitted(&self, ctx: &Context<'_>, destination: SocketAddr) -> Option<SocketAddr> {
        let ip = ctx.settings.outside(destination.ip()).ok()?;
        let open = ctx.settings.outbound.permits(Protocol::Tcp, destination);
        open.then(|| SocketAddr::new(ip, destination.port()))
    }

    /// Somebody outside has accepted.
    pub(super) fn connected(&mut self, ctx: &mut Context<'_>, slot: u32) {
        self.table.opened(slot);
        let Some(flow) = self.table.get(slot) else { return };
        flow.machine.connected(ctx.now);
        flow.measure();
        ctx.counters.add(Counter::TcpOpened);
        self.attend(ctx, slot);
    }

    /// Nobody outside has accepted.
    pub(super) fn refused(&mut self, ctx: &mut Context<'_>, flow: &Flow, error: Errno) {
        refuse(
            ctx,
            error,
            |ctx, cause| flow.tell(ctx, cause),
            |ctx| ctx.send(whole(&flow.way, flow.ports(), &flow.machine.reset())),
        );
    }

    /// An initial sequence number (RFC 6528): the clock, in steps of 4 µs, and what only this process knows of the
    /// connection.
    fn initial(&self, ctx: &Context<'_>, key: &Key) -> Seq {
        let clock = (ctx.now.as_nanos() / 4096) as u32;
        Seq(clock.wrapping_add(self.secret.hash_one(key) as u32))
    }
}

/// A connection that somebody outside has made to this host, for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The guest's address and port.
    pub guest: SocketAddr,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// Who the guest sees: the client itself, or an address of the gateway with a port that tells clients apart. Of the
    /// guest's family.
    pub source: SocketAddr,
}

/// How a connection from outside came: for operators, and for its end with the forward that it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The listener that it came by.
    pub(crate) by: Token,
    pub(crate) client: SocketAddr,
}

/// Why a connection to a guest was not begun.
#[derive(Debug, thiserror::Error)]
pub enum NotBegun {
    /// The source is of another family than the guest.
    #[error("the guest's and the source's addresses are of different families")]
    Families,
    /// The guest has a connection from this source already.
    #[error("the guest has a connection from {0} already")]
    Taken(SocketAddr),
    /// The guest, or all guests, have as many as they may have.
    #[error("too many connections ({})", .0.name())]
    TooMany(Counter),
    /// The socket is none of a connection, or the kernel has no room to watch it.
    #[error("{0}")]
    Socket(io::Error),
}

impl Tcp {
    /// Offers a guest a connection that somebody outside has made: a SYN goes to the guest, and what it answers decides.
    pub(crate) fn accept(
        &mut self,
        ctx: &mut Context<'_>,
        socket: OwnedFd,
        inbound: Inbound,
        caller: Option<Caller>,
    ) -> Result<(), NotBegun> {
        let Inbound { guest, mac, source } = inbound;
        let addresses = addresses(guest.ip(), source.ip()).ok_or(NotBegun::Families)?;
        let key = Key { addresses, ports: (guest.port(), source.port()) };
        if self.table.find(&key).is_some() {
            return Err(NotBegun::Taken(source));
        }
        self.table.admits(&key, None, &ctx.settings.limits).map_err(|used_up| {
            ctx.counters.add(used_up);
            NotBegun::TooMany(used_up)
        })?;
        let failed = |error: Errno| NotBegun::Socket(error.into());
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
        socket::prepare_stream(&socket).map_err(failed)?;
        // From here on it ends as its guest's does.
        sockopt::set_socket_linger(&socket, None).map_err(failed)?;
        let machine = Machine::calling(ctx.now, self.initial(ctx, &key), config(ctx, &key));
        let (slot, generation) = self.table.next();
        ctx.watch(&socket, Token::new(Kind::Tcp, slot, generation)).map_err(failed)?;
        let way = way_to(ctx, key, mac);
        let mut flow = Flow::new(key, way, None, machine, socket, generation);
        flow.caller = caller;
        let slot = self.table.insert(flow);
        if let Some(flow) = self.table.get(slot) {
            flow.measure();
        }
        self.attend(ctx, slot);
        Ok(())
    }
}

/// Tells a guest why there is no connection, and counts it.
fn refuse(
    ctx: &mut Context<'_>,
    error: Errno,
    tell: impl FnOnce(&mut Context<'_>, Cause),
    reset: impl FnOnce(&mut Context<'_>),
) {
    match Refusal::of(error) {
        Refusal::Reset => {
            ctx.counters.add(Counter::TcpRefused);
            reset(ctx);
        }
        Refusal::Exhausted => {
            ctx.counters.add(Counter::TcpExhausted);
            reset(ctx);
        }
        Refusal::Unreachable(cause) => {
            ctx.counters.add(Counter::TcpUnreachable);
            tell(ctx, cause);
        }
        Refusal::Silence => ctx.counters.add(Counter::TcpTimedOut),
    }
}

/// What guests of the key's family are told.
fn config(ctx: &Context<'_>, key: &Key) -> Config {
    let mtu = ctx.settings.mtu;
    match key.addresses {
        Addresses::V4 { .. } => Config { mss: mtu.saturating_sub(40).max(536), mss_default: 536 },
        Addresses::V6 { .. } => Config { mss: mtu.saturating_sub(60).max(1220), mss_default: 1220 },
    }
}
