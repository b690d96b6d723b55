//! Fragments that guests send: what they are together goes on as if it had come whole.

use datapath::Segment;
use datapath::buffers::Buffers;
use datapath::egress::to_vec;
use switch_core::checksum::Sum;
use switch_core::head::HEAD_LEN;
use switch_core::ip::{Cause, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet, Transport};
use switch_core::offload::{Checksum, OffloadSet};
use switch_core::{Head, Instant, check};

use crate::counters::Counter;
use crate::engine::Context;
use crate::frame::pseudo;
use crate::reassembly::Reassembly;

/// A packet that came in fragments, as ports have frames.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) packet: Packet,
    pub(crate) head: Head,
    pub(crate) tail: [Segment; 1],
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    reassembly: Reassembly,
    /// Where the packet at hand is: made when the first one is whole.
    room: Option<Buffers>,
}

impl Fragments {
    /// Takes a fragment that a guest sent; the packet that it completes, if its checksum is right. That is valid until the
    /// next call.
    pub(crate) fn frame(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &Packet,
        head: &Head,
        tail: &[Segment],
    ) -> Option<Whole> {
        if packet.hop_limit() <= 1 {
            ctx.counters.add(Counter::HopLimit);
            ctx.tell_about(head, tail, Cause::TimeExceeded);
            return None;
        }
        // Nobody knows the checksum of a part, nor how to cut it.
        if head.offload.gso.is_some() || matches!(head.offload.checksum, Checksum::Partial { .. }) {
            ctx.counters.add(Counter::FragmentBad);
            return None;
        }
        // Read once: what a guest writes to its memory later changes nothing.
        let frame = to_vec(head, tail);
        let frame = self.reassembly.add(ctx.now, ctx.from, packet, frame, ctx.counters)?;
        let whole = self.whole(&frame)?;
        let body = frame.get(whole.packet.transport_at()..).unwrap_or_default();
        if !sums_up(&whole.packet, body) {
            ctx.counters.add(Counter::BadChecksum);
            return None;
        }
        Some(whole)
    }

    fn whole(&mut self, frame: &[u8]) -> Option<Whole> {
        let mut head = Head::new();
        let bytes = head.begin(u32::try_from(frame.len()).ok()?, HEAD_LEN);
        let (first, rest) = frame.split_at_checked(bytes.len())?;
        bytes.copy_from_slice(first);
        check::frame(&mut head, OffloadSet::NONE).ok()?;
        let packet = Packet::of_head(&head).ok()?;
        let room = self.room.get_or_insert_default();
        room.reset();
        for (to, &byte) in room.slot().get_mut(..rest.len())?.iter_mut().zip(rest) {
            to.write(byte);
        }
        Some(Whole { packet, head, tail: [room.take(rest.len())] })
    }

    /// When `timeout` is to be called next.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.reassembly.due()
    }

    /// Forgets what did not come in time, and tells who sent its first part.
    pub(crate) fn timeout(&mut self, ctx: &mut Context<'_>) {
        while let Some(overdue) = self.reassembly.expire(ctx.now) {
            ctx.counters.add(Counter::FragmentTimeout);
            if let Some(first) = overdue.first {
                ctx.from = overdue.owner;
                ctx.tell(&first, Cause::ReassemblyTimeExceeded);
                ctx.from = None;
            }
        }
    }
}

/// Whether a transport checksum is right, if there is one. It is what tells that the parts are those of one packet: there
/// are few identifications.
fn sums_up(packet: &Packet, body: &[u8]) -> bool {
    let mut sum = match packet.protocol() {
        // RFC 768: all zeros is none, which IPv6 does not allow (RFC 8200, 8.1).
        PROTO_UDP if !packet.is_v6() && body.get(6..8) == Some(&[0, 0]) => return true,
        PROTO_UDP | PROTO_TCP | PROTO_ICMPV6 => pseudo(packet.addresses(), packet.protocol(), body.len()),
        PROTO_ICMP => Sum::new(),
        _ => return true,
    };
    sum.add(body);
    packet.transport() == Transport::Other || sum.fold() == 0xffff
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datapath::Burst;

    use super::*;
    use crate::counters::Counters;
    use crate::engine::Engine;
    use crate::fill::Fill;
    use crate::limits::Limits;
    use crate::reassembly::tests::{ROUTER, fragment};
    use crate::settings::Settings;

    #[test]
    fn who_sends_a_beginning_alone_is_told_when_its_time_is_over() {
        let settings = Settings {
            mac: ROUTER,
            gateway_v4: Some("10.0.0.1".parse().unwrap()),
            gateway_v6: Some("fd00::1".parse().unwrap()),
            mtu: 1500,
            host_loopback: false,
            filtering: Default::default(),
            outbound: Default::default(),
            limits: Limits::default(),
        };
        for (v6, seconds, kind) in [(false, 30, 11), (true, 60, 3)] {
            let counters = Arc::new(Counters::default());
            let mut engine = Engine::new(settings.clone(), Arc::clone(&counters)).unwrap();
            let mut out = Burst::new();
            // The beginning of one packet, and the end of another.
            for frame in [fragment(v6, 1, 0, true, &[7; 16]), fragment(v6, 2, 16, false, b"end")] {
                let head = out.next_head().unwrap();
                head.begin(frame.len() as u32, frame.len()).copy_from_slice(&frame);
                check::frame(head, OffloadSet::ALL).unwrap();
                out.push(&[]).unwrap();
            }
            engine.frames(Instant::ORIGIN, &out.bucket(&[0, 1]));
            let mut told = |second| {
                let (mut burst, mut pool) = (Burst::new(), Buffers::new());
                engine.burst(Instant::from_secs(second), &mut Fill::new(&mut burst, &mut pool)).unwrap();
                let heads = burst.heads_mut().iter();
                heads.map(|head| Packet::of_frame(head.bytes()).unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(told(seconds - 1), []);
            let errors = told(seconds);
            let said = errors.iter().map(|e| (e.source(), e.transport())).collect::<Vec<_>>();
            let gateway = if v6 { "fd00::1" } else { "10.0.0.1" }.parse().unwrap();
            assert_eq!(said, [(gateway, Transport::Icmp { kind, code: 1, id: 0 })]);
            assert_eq!(counters.get(Counter::FragmentTimeout), 2);
        }
    }
}
