//! UDP.

use datapath::Segment;
use rustix::event::epoll::EventFlags;
use switch_core::ip::{Cause, Packet};
use switch_core::{Head, Instant};

use crate::counters::Counter;
use crate::engine::Context;
use crate::fill::Fill;
use crate::token::Token;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Udp {}

impl Udp {
    /// Takes a frame that a guest sent.
    pub(crate) fn frame(&mut self, ctx: &mut Context<'_>, _packet: &Packet, head: &Head, _tail: &[Segment]) {
        ctx.counters.add(Counter::Protocol);
        ctx.tell(head.bytes(), Cause::Prohibited);
    }

    /// Hears what the kernel says of a socket.
    pub(crate) fn event(&mut self, _ctx: &mut Context<'_>, _token: Token, _flags: EventFlags) {}

    /// Writes frames into a burst while it has room.
    pub(crate) fn fill(&mut self, _ctx: &mut Context<'_>, _fill: &mut Fill<'_>) {}

    /// True if `fill` would write something, as far as is known without asking the kernel.
    pub(crate) fn has_work(&self) -> bool {
        false
    }

    /// When `timeout` is to be called next.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    pub(crate) fn timeout(&mut self, _ctx: &mut Context<'_>) {}
}
