//! A connection: its guest's side, which is a [`Machine`], and its socket.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use datapath::socket::{Gather, discard, peek_behind, send_space, set_peek_offset};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use switch_core::ip::{Addresses, Cause};
use switch_core::virtio_net::{self as wire, VnetHeader};
use switch_core::{Instant, PortId};

use super::Caller;
use super::machine::Machine;
use super::segment::{CHECKSUM_AT, HEADER_MAX, Segment};
use super::table::Key;
use super::whole;
use crate::counters::Counter;
use crate::engine::Context;
use crate::fill::Fill;
use crate::frame::{NETWORK_MAX, Way};

/// What one `sendmsg(2)` may cost a socket's buffer beyond its bytes: a packet buffer's own size.
const SEND_COST: u32 = 2304;
/// Below this many bytes of free space in a socket's buffer, the kernel is asked how many there are.
const ASK_BELOW: u32 = 1 << 20;
/// Bytes that may be under way where each peek copies them again.
const UNDER_WAY_MAX: u32 = 256 * 1024;
/// Where those are copied to, over and over.
const SCRATCH: usize = 16 * 1024;
/// Segments of one super-frame, at most. The frame path has its own bound (`switch_core::check::SEGMENTS_MAX`).
const SEGMENTS_MAX: usize = switch_core::check::SEGMENTS_MAX;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) key: Key,
    /// To the guest.
    pub(super) way: Way,
    /// The port of the switch that the guest's first segment came by.
    pub(super) port: Option<PortId>,
    /// Who has called, if it was not the guest.
    pub(super) caller: Option<Caller>,
    pub(super) machine: Machine,
    /// `None` when both streams have ended.
    pub(super) socket: Option<OwnedFd>,
    pub(super) generation: u16,
    /// Whether the tables of who has how many count it, and as opening.
    pub(super) charged: bool,
    pub(super) charged_opening: bool,

    /// There may be something to read, or the end.
    pub(super) readable: bool,
    /// The socket's stream has ended, however much there is still to read.
    pub(super) hung_up: bool,
    /// Bytes that the guest has, and that are still in the socket.
    pub(super) consume: u32,
    /// The kernel keeps the place where a peek goes on (Linux 6.9). Where it does not, what is under way is copied again
    /// with each peek, and there is less of it.
    keeps_place: bool,
    /// Bytes that the socket takes, at least, as far as is known.
    space: u32,
    /// The kernel tells when there is more.
    pub(super) awaits_space: bool,

    /// It is in the queue of those that have something to send.
    pub(super) queued: bool,
    /// Its earliest entry among the timers.
    pub(super) timer: Option<Instant>,
}

/// What became of what was given to a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    /// The socket took all of it.
    pub(super) all: bool,
    /// The kernel is to be asked to tell when there is room.
    pub(super) asks: bool,
}

/// What a look at a socket's stream found.
enum Peeked {
    /// This many bytes, fewer than asked for if there are no more.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The end.
    End,
}

impl Flow {
    pub(super) fn new(
        key: Key,
        way: Way,
        port: Option<PortId>,
        machine: Machine,
        socket: OwnedFd,
        generation: u16,
    ) -> Self {
        let keeps_place = set_peek_offset(socket.as_fd(), 0).is_ok();
        Self::on(key, way, port, machine, socket, generation, keeps_place)
    }

    fn on(
        key: Key,
        way: Way,
        port: Option<PortId>,
        mut machine: Machine,
        socket: OwnedFd,
        generation: u16,
        keeps_place: bool,
    ) -> Self {
        if !keeps_place {
            machine.limit_flight(UNDER_WAY_MAX);
        }
        Self {
            key,
            way,
            port,
            caller: None,
            machine,
            socket: Some(socket),
            generation,
            charged: true,
            charged_opening: true,
            readable: false,
            hung_up: false,
            consume: 0,
            keeps_place,
            space: 0,
            awaits_space: false,
            queued: false,
            timer: None,
        }
    }

    /// The ports of what goes to the guest.
    #[inline]
    pub(super) fn ports(&self) -> (u16, u16) {
        (self.key.ports.1, self.key.ports.0)
    }

    /// True if there is something for [`super::Tcp::fill`] to do.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.machine.has_control() || self.consume > 0 || (self.readable && self.machine.sendable() > 0)
    }

    /// Takes what the guest has out of the socket.
    pub(super) fn consume(&mut self) -> Result<(), Errno> {
        let Some(socket) = &self.socket else { return Ok(()) };
        while self.consume > 0 {
            // What was peeked at is there.
            match discard(socket.as_fd(), self.consume as usize) {
                Ok(0) | Err(Errno::AGAIN) => self.consume = 0,
                Ok(n) => self.consume = self.consume.saturating_sub(n as u32),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Bytes of the longest payload that one frame has.
    #[inline]
    fn payload_max(&self) -> usize {
        let mss = usize::from(self.machine.mss());
        // IPv6 counts what is behind its header, IPv4 all.
        let most = match self.way.addresses {
            Addresses::V4 { .. } => 65_535 - 40,
            Addresses::V6 { .. } => 65_535 - 20,
        };
        (most / mss).clamp(1, SEGMENTS_MAX) * mss
    }

    /// Looks at the next bytes that the guest may be sent.
    #[inline]
    fn peek(&mut self, to: &mut [MaybeUninit<u8>], again: &mut bool) -> Result<Peeked, Errno> {
        let Some(socket) = &self.socket else { return Ok(Peeked::Nothing) };
        if self.machine.take_rewind() {
            *again = true;
            if self.keeps_place {
                set_peek_offset(socket.as_fd(), 0)?;
            }
        }
        let mss = usize::from(self.machine.mss());
        let mut asked = (self.machine.sendable() as usize).min(self.payload_max()).min(to.len());
        if asked > mss {
            asked -= asked % mss;
        }
        let Some(to) = to.get_mut(..asked).filter(|to| !to.is_empty()) else { return Ok(Peeked::Nothing) };
        let found = if self.keeps_place {
            recv(socket, to, RecvFlags::PEEK | RecvFlags::DONTWAIT).map(|(_, n)| n)
        } else {
            let skip = self.machine.offset() as usize;
            match peek_behind(socket.as_fd(), skip, &mut [0; SCRATCH], to) {
                // Only the end that the kernel has told of tells the two apart.
                Ok(0) if skip > 0 && !self.hung_up => Err(Errno::AGAIN),
                found => found,
            }
        };
        match found {
            Ok(0) => {
                self.readable = false;
                Ok(Peeked::End)
            }
            Ok(n) => {
                self.readable = n == asked || self.hung_up;
                Ok(Peeked::Bytes(n))
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(Peeked::Nothing)
            }
            Err(Errno::INTR) => Ok(Peeked::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Writes a frame: a segment, and the first `payload` bytes of the slot behind it.
    #[inline]
    fn emit(&self, fill: &mut Fill<'_>, segment: &Segment, payload: usize) -> bool {
        let (headers, len) = self.headers(segment, payload);
        let network = self.way.network_len();
        let mut vnet = VnetHeader {
            flags: wire::F_NEEDS_CSUM,
            csum_start: network as u16,
            csum_offset: CHECKSUM_AT as u16,
            ..VnetHeader::default()
        };
        if payload > usize::from(self.machine.mss()) {
            vnet.gso_type = match self.way.addresses {
                Addresses::V4 { .. } => wire::GSO_TCPV4,
                Addresses::V6 { .. } => wire::GSO_TCPV6,
            };
            vnet.gso_size = self.machine.mss();
            vnet.hdr_len = len as u16;
        }
        fill.push(&headers[..len], vnet, payload)
    }

    /// All headers of a segment with `payload` bytes, with the pseudo-header's sum in the checksum field, and how long they
    /// are.
    #[inline]
    fn headers(&self, segment: &Segment, payload: usize) -> ([u8; NETWORK_MAX + HEADER_MAX], usize) {
        let mut headers = [0; NETWORK_MAX + HEADER_MAX];
        let mut network = [0; NETWORK_MAX];
        let mut transport = [0; HEADER_MAX];
        let transport_len = segment.write(self.ports(), &mut transport);
        let len = transport_len + payload;
        let at = self.way.write(&mut network, len);
        let sum = self.way.pseudo(len).fold();
        transport[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
        headers[..NETWORK_MAX].copy_from_slice(&network);
        headers[at..at + HEADER_MAX].copy_from_slice(&transport);
        (headers, at + transport_len)
    }

    /// Gives the socket what was gathered from the guest, and the end of its stream behind that.
    #[inline]
    pub(super) fn give(&mut self, now: Instant, gather: &Gather<'_>, fin: bool) -> Result<Given, Errno> {
        let Some(socket) = &self.socket else { return Ok(Given { all: true, asks: false }) };
        let taken = if gather.is_empty() {
            0
        } else {
            match gather.send(socket.as_fd(), false) {
                Ok(n) => n,
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::FAULT) => 0,
                Err(error) => return Err(error),
            }
        };
        let refused = gather.len() - taken;
        if refused > 0 {
            self.machine.refuse(refused as u32);
            self.space = 0;
        } else {
            if fin {
                shutdown(socket, Shutdown::Write)?;
            }
            self.spent(taken);
        }
        self.machine.settle(now);
        Ok(Given { all: refused == 0, asks: self.measure() || refused > 0 })
    }

    /// Sends the guest what is due: one frame of data, and what has none.
    #[inline]
    pub(super) fn serve(&mut self, ctx: &Context<'_>, fill: &mut Fill<'_>) -> Result<(), Errno> {
        let now = ctx.now;
        self.consume()?;
        if self.readable && self.machine.sendable() > 0 {
            let mut again = false;
            match self.peek(fill.slot(), &mut again)? {
                Peeked::Bytes(n) => {
                    let segment = self.machine.data(now, n as u32, !self.readable);
                    self.emit(fill, &segment, n);
                }
                Peeked::End => self.machine.finish(),
                Peeked::Nothing => {}
            }
            if again {
                ctx.counters.add(Counter::TcpResent);
            }
        }
        while fill.has_room()
            && let Some(segment) = self.machine.control(now)
        {
            self.emit(fill, &segment, 0);
        }
        if !self.readable {
            self.machine.set_pending(now, false);
        }
        Ok(())
    }

    /// The socket took `n` bytes in one call.
    #[inline]
    fn spent(&mut self, n: usize) {
        let n = n as u32;
        self.space = self.space.saturating_sub(n + n / 16 + SEND_COST);
    }

    /// Finds out how much the socket would take, and lets the guest send as much. True if the kernel is to be asked to tell
    /// when there is more.
    #[inline]
    pub(super) fn measure(&mut self) -> bool {
        let mut full = false;
        if self.space < ASK_BELOW
            && let Some(socket) = &self.socket
            && let Ok(space) = send_space(socket.as_fd())
        {
            self.space = space.free();
            // As the kernel has it (`sk_stream_is_writeable`): it tells when a third is free.
            full = space.free() < space.queued / 2;
        }
        // The kernel counts its own overhead.
        self.machine.set_space(self.space - self.space / 16);
        full
    }

    /// Tells the guest by ICMP what is wrong with the SYN that it sent.
    pub(super) fn tell(&self, ctx: &mut Context<'_>, cause: Cause) {
        let syn = self.machine.asked_by();
        let way = Way { to: self.way.from, from: self.way.to, addresses: self.key.addresses, ..self.way };
        ctx.from = self.port;
        ctx.tell(&whole(&way, self.key.ports, &syn), cause);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use datapath::buffers::Buffers;
    use switch_core::MacAddr;
    use switch_core::ip::{PROTO_TCP, TcpFlags};

    use super::super::machine::Config;
    use super::super::segment::{ACK, SYN};
    use super::super::seq::Seq;
    use super::*;

    /// An open connection with a window of 10,000 bytes, and the outside's end.
    fn open(keeps_place: bool) -> (Flow, TcpStream, Instant) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (outside, _) = listener.accept().unwrap();
        let now = Instant::from_secs(1);
        let syn = Segment { flags: TcpFlags(SYN), window: 10_000, mss: Some(1000), ..Segment::default() };
        let config = Config { mss: 1000, mss_default: 536 };
        let mut machine = Machine::asked(now, &syn, Seq(99), config);
        machine.connected(now);
        machine.control(now).unwrap();
        machine.segment(now, &acks(0));
        let (source, destination) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::LOCALHOST);
        let addresses = Addresses::V4 { source, destination };
        let key = Key { addresses, ports: (1, 2) };
        let way = Way { to: MacAddr([2; 6]), from: MacAddr([4; 6]), addresses, protocol: PROTO_TCP };
        let socket = OwnedFd::from(socket);
        let flow = if keeps_place {
            Flow::new(key, way, None, machine, socket, 0)
        } else {
            Flow::on(key, way, None, machine, socket, 0, false)
        };
        (flow, outside, now)
    }

    fn acks(n: u32) -> Segment {
        let flags = TcpFlags(ACK);
        Segment { seq: Seq(1), ack: Seq(100 + n), flags, window: 10_000, ..Segment::default() }
    }

    /// What the next peek finds, and what is sent of it.
    fn next(flow: &mut Flow, now: Instant) -> Option<Vec<u8>> {
        let mut pool = Buffers::new();
        match flow.peek(pool.slot(), &mut false).unwrap() {
            Peeked::Bytes(n) => {
                flow.machine.data(now, n as u32, true);
                let mut bytes = vec![0; n];
                assert_eq!(pool.take(n).read(&mut bytes), n);
                Some(bytes)
            }
            Peeked::Nothing => None,
            Peeked::End => Some(Vec::new()),
        }
    }

    #[test]
    fn peeks_go_on_where_they_ended_with_the_kernels_help_and_without() {
        for keeps_place in [true, false] {
            let (mut flow, mut outside, now) = open(keeps_place);
            let stream: Vec<u8> = (0..15_000_u32).map(|i| (i * 7 / 3) as u8).collect();
            outside.write_all(&stream).unwrap();
            drop(outside);
            while flow.machine.offset() < 10_000 {
                let at = flow.machine.offset() as usize;
                let got = next(&mut flow, now).unwrap();
                assert!(got == stream[at..at + got.len()], "{keeps_place}: from {at}");
            }
            assert_eq!(flow.machine.sendable(), 0);
            flow.consume += flow.machine.segment(now, &acks(6000)).acked;
            flow.consume().unwrap();
            // What was not acknowledged is lost.
            for _ in 0..3 {
                flow.machine.segment(now, &acks(6000));
            }
            let got = next(&mut flow, now).unwrap();
            assert!(got == stream[6000..6000 + got.len()], "{keeps_place}: again");
            flow.consume += flow.machine.segment(now, &acks(10_000)).acked;
            flow.consume().unwrap();
            flow.hung_up = true;
            let mut at = 10_000;
            while at < 15_000 {
                let got = next(&mut flow, now).unwrap();
                assert!(got == stream[at..at + got.len()], "{keeps_place}: from {at}");
                at += got.len();
                flow.consume += flow.machine.segment(now, &acks(at as u32)).acked;
                flow.consume().unwrap();
            }
            assert_eq!(next(&mut flow, now), Some(Vec::new()), "{keeps_place}: the end");
        }
    }
}
