//! Translation of a packet, on a head or on a whole frame: what the engine says of its flow is written into it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use switch_core::checksum::Sum;
use switch_core::drop::DropReason;
use switch_core::ids::PortId;
use switch_core::ip::{Addresses, FrameMut, PROTO_ICMPV6, Packet, Transport};
use switch_core::napt::{Address, Endpoint, Flow, Hint, Protocol, TcpFlags, View, Way};
use switch_core::time::Instant;

use super::Shared;

/// What became of a packet's addresses: what its later fragments get, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) source: Option<IpAddr>,
    pub(super) destination: Option<IpAddr>,
}

impl Rewritten {
    /// Does the same to a fragment without ports.
    pub(super) fn apply(&self, packet: &mut Packet, frame: &mut [u8]) -> bool {
        self.source.is_none_or(|source| packet.set_source(frame, source, None))
            && self.destination.is_none_or(|destination| packet.set_destination(frame, destination, None))
    }
}

/// The views of both versions of IP.
#[derive(Debug)]
pub(super) struct Translator {
    v4: View<Ipv4Addr>,
    v6: View<Ipv6Addr>,
    ahead4: Ahead<Ipv4Addr>,
    ahead6: Ahead<Ipv6Addr>,
}

/// The packets of a burst that are about to be translated, of one version of IP; kept for its memory.
#[derive(Debug)]
struct Ahead<A> {
    flows: Vec<Flow<A>>,
    hints: Vec<Hint>,
}

impl<A> Default for Ahead<A> {
    fn default() -> Self {
        Self { flows: Vec::new(), hints: Vec::new() }
    }
}

impl<A: Address> Ahead<A> {
    fn clear(&mut self) {
        self.flows.clear();
        self.hints.clear();
    }

    fn push(&mut self, flow: Flow<A>) -> Asked {
        self.flows.push(flow);
        Asked(self.flows.len() - 1)
    }

    fn hint(&self, asked: Asked) -> Hint {
        self.hints.get(asked.0).copied().unwrap_or_default()
    }
}

/// Which of a burst's packets one is, of those of its version of IP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked(usize);

impl Asked {
    /// None that was asked about.
    pub(super) const NOT: Self = Self(usize::MAX);
}

/// A packet's protocol, the ports of source and destination, and the flags.
type Ports = (Protocol, u16, u16, TcpFlags);

/// The ports of a packet that can be translated. `asks`: of ICMP, queries count, else replies.
fn ports(packet: &Packet, asks: bool) -> Result<Ports, DropReason> {
    match packet.transport() {
        Transport::Tcp { source, destination, flags } => {
            Ok((Protocol::Tcp, source, destination, TcpFlags(flags.0)))
        }
        Transport::Udp { source, destination } => Ok((Protocol::Udp, source, destination, TcpFlags::NONE)),
        Transport::Icmp { kind, .. } => {
            let id = packet.icmp_id().filter(|_| is_query(packet.is_v6(), kind) == asks);
            // The identifier is the guest's port, whichever way it goes.
            let id = id.ok_or(DropReason::NatUnsupported)?;
            Ok(if asks {
                (Protocol::Icmp, id, 0, TcpFlags::NONE)
            } else {
                (Protocol::Icmp, 0, id, TcpFlags::NONE)
            })
        }
        Transport::Other | Transport::Beyond => Err(DropReason::NatUnsupported),
    }
}

/// Whether an ICMP message with an identifier asks or answers.
fn is_query(v6: bool, kind: u8) -> bool {
    if v6 { matches!(kind, 128 | 160) } else { matches!(kind, 8 | 13 | 15 | 17 | 42) }
}

/// True for an echo request.
pub(super) fn is_echo_request(packet: &Packet) -> bool {
    let request = if packet.is_v6() { 128 } else { 8 };
    matches!(packet.transport(), Transport::Icmp { kind, code: 0, .. } if kind == request)
}

/// True for the segment that asks for a TCP connection.
pub(super) fn opens(packet: &Packet) -> bool {
    matches!(packet.transport(), Transport::Tcp { flags, .. } if TcpFlags(flags.0).opens())
}

/// The flow of a packet from a guest.
#[inline]
fn flow_out<A: Address>((source, destination): (A, A), (protocol, from, to, flags): Ports) -> Flow<A> {
    Flow { protocol, local: Endpoint::new(source, from), remote: Endpoint::new(destination, to), flags }
}

/// The flow of a packet from the outside.
#[inline]
fn flow_in<A: Address>((source, destination): (A, A), (protocol, from, to, flags): Ports) -> Flow<A> {
    Flow { protocol, local: Endpoint::new(destination, to), remote: Endpoint::new(source, from), flags }
}

/// What one version of IP does; the frame is changed by the caller.
fn out<A: Address>(
    view: &mut View<A>,
    now: Instant,
    port: PortId,
    (source, destination): (A, A),
    ports: Ports,
    hint: Option<Hint>,
) -> Result<(Endpoint<A>, Option<Endpoint<A>>), DropReason> {
    let flow = flow_out((source, destination), ports);
    let Flow { protocol, remote, flags, .. } = flow;
    let outside = match hint {
        Some(hint) => view.outbound_ahead(now, Some(port), &flow, hint)?,
        None => view.outbound_from(now, Some(port), &flow)?,
    };
    if !view.is_external(destination) {
        return Ok((outside, None));
    }
    // Hairpin: to another guest, from the sender's outside endpoint (RFC 4787, REQ-9).
    let flow = Flow { protocol, local: remote, remote: outside, flags };
    Ok((outside, Some(view.inbound(now, &flow)?)))
}

impl Translator {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            v4: View::new(shared.v4.clone()),
            v6: View::new(shared.v6.clone()),
            ahead4: Ahead::default(),
            ahead6: Ahead::default(),
        }
    }

    /// Begins a burst: no packet was asked about.
    pub(super) fn begin(&mut self) {
        self.ahead4.clear();
        self.ahead6.clear();
    }

    /// Says that a packet of the burst is to be translated, for [`Translator::look_ahead`].
    #[inline]
    pub(super) fn ask(&mut self, way: Way, packet: &Packet) -> Asked {
        let Ok(ports) = ports(packet, way == Way::Out) else { return Asked::NOT };
        match (packet.addresses(), way) {
            (Addresses::V4 { source, destination }, Way::Out) => {
                self.ahead4.push(flow_out((source, destination), ports))
            }
            (Addresses::V4 { source, destination }, Way::In) => {
                self.ahead4.push(flow_in((source, destination), ports))
            }
            (Addresses::V6 { source, destination }, Way::Out) => {
                self.ahead6.push(flow_out((source, destination), ports))
            }
            (Addresses::V6 { source, destination }, Way::In) => {
                self.ahead6.push(flow_in((source, destination), ports))
            }
        }
    }

    /// Looks for the sessions of all packets that were asked about together. It only makes their translation quick.
    pub(super) fn look_ahead(&mut self, way: Way) {
        self.v4.look_ahead(way, &self.ahead4.flows, &mut self.ahead4.hints);
        self.v6.look_ahead(way, &self.ahead6.flows, &mut self.ahead6.hints);
    }

    /// True if the address is one of ours outside.
    #[inline]
    pub(super) fn is_external(&mut self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.is_external(address),
            IpAddr::V6(address) => self.v6.is_external(address),
        }
    }

    /// Translates a packet from a guest behind `port`, that has its transport header; it may be for another guest
    /// then.
    ///
    /// # Errors
    /// The engine's, and the packet is as it was.
    #[inline]
    pub(super) fn outbound<F: FrameMut + ?Sized>(
        &mut self,
        now: Instant,
        port: PortId,
        packet: &mut Packet,
        frame: &mut F,
    ) -> Result<Rewritten, DropReason> {
        self.outbound_asked(now, port, packet, frame, None)
    }

    /// The same of a packet that was asked about, or was to be.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub(super) fn outbound_asked<F: FrameMut + ?Sized>(
        &mut self,
        now: Instant,
        port: PortId,
        packet: &mut Packet,
        frame: &mut F,
        asked: Option<Asked>,
    ) -> Result<Rewritten, DropReason> {
        let ports = ports(packet, true)?;
        let icmp = ports.0 == Protocol::Icmp;
        let (source, destination) = match packet.addresses() {
            Addresses::V4 { source, destination } => {
                let (from, to) = {
                    let hint = asked.map(|asked| self.ahead4.hint(asked));
                    out(&mut self.v4, now, port, (source, destination), ports, hint)?
                };
                (end(from), to.map(end))
            }
            Addresses::V6 { source, destination } => {
                let (from, to) = {
                    let hint = asked.map(|asked| self.ahead6.hint(asked));
                    out(&mut self.v6, now, port, (source, destination), ports, hint)?
                };
                (end(from), to.map(end))
            }
        };
        let done = packet.set_source(frame, source.0, Some(source.1))
            && destination.is_none_or(|(address, port)| {
                packet.set_destination(frame, address, Some(if icmp { source.1 } else { port }))
            });
        let rewritten = Rewritten { source: Some(source.0), destination: destination.map(|(a, _)| a) };
        if done { Ok(rewritten) } else { Err(DropReason::BadIp) }
    }

    /// Translates a packet from the outside, that has its transport header.
    ///
    /// # Errors
    /// The engine's, and the packet is as it was.
    #[inline]
    pub(super) fn inbound<F: FrameMut + ?Sized>(
        &mut self,
        now: Instant,
        packet: &mut Packet,
        frame: &mut F,
    ) -> Result<Rewritten, DropReason> {
        self.inbound_asked(now, packet, frame, None)
    }

    /// The same of a packet that was asked about, or was to be.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub(super) fn inbound_asked<F: FrameMut + ?Sized>(
        &mut self,
        now: Instant,
        packet: &mut Packet,
        frame: &mut F,
        asked: Option<Asked>,
    ) -> Result<Rewritten, DropReason> {
        let ports = ports(packet, false)?;
        let (address, port) = match packet.addresses() {
            Addresses::V4 { source, destination } => {
                let flow = flow_in((source, destination), ports);
                end(match asked {
                    Some(asked) => self.v4.inbound_ahead(now, &flow, self.ahead4.hint(asked))?,
                    None => self.v4.inbound(now, &flow)?,
                })
            }
            Addresses::V6 { source, destination } => {
                let flow = flow_in((source, destination), ports);
                end(match asked {
                    Some(asked) => self.v6.inbound_ahead(now, &flow, self.ahead6.hint(asked))?,
                    None => self.v6.inbound(now, &flow)?,
                })
            }
        };
        match packet.set_destination(frame, address, Some(port)) {
            true => Ok(Rewritten { source: None, destination: Some(address) }),
            false => Err(DropReason::BadIp),
        }
    }

    /// Translates an ICMP error from a guest, and the packet that it quotes.
    pub(super) fn outbound_error(
        &mut self,
        now: Instant,
        packet: &mut Packet,
        frame: &mut [u8],
    ) -> Result<Rewritten, DropReason> {
        let quote = sound_quote(packet, frame)?;
        let (protocol, from, to) = quoted_ports(&quote, false)?;
        let (address, port) = match quote.addresses() {
            Addresses::V4 { source, destination } => {
                let (inside, remote) = (Endpoint::new(destination, to), Endpoint::new(source, from));
                end(self.v4.embedded_outbound(now, protocol, inside, remote)?)
            }
            Addresses::V6 { source, destination } => {
                let (inside, remote) = (Endpoint::new(destination, to), Endpoint::new(source, from));
                end(self.v6.embedded_outbound(now, protocol, inside, remote)?)
            }
        };
        let done = packet.edit_quote(frame, |quote, bytes| quote.set_destination(bytes, address, Some(port)))
            && packet.set_source(frame, address, None);
        let rewritten = Rewritten { source: Some(address), destination: None };
        if done { Ok(rewritten) } else { Err(DropReason::BadIp) }
    }

    /// Translates an ICMP error from the outside, and the packet that it quotes.
    pub(super) fn inbound_error(
        &mut self,
        now: Instant,
        packet: &mut Packet,
        frame: &mut [u8],
    ) -> Result<Rewritten, DropReason> {
        let quote = sound_quote(packet, frame)?;
        let (protocol, from, to) = quoted_ports(&quote, true)?;
        let (address, port) = match quote.addresses() {
            Addresses::V4 { source, destination } => {
                let (outside, remote) = (Endpoint::new(source, from), Endpoint::new(destination, to));
                end(self.v4.embedded_inbound(now, protocol, outside, remote)?)
            }
            Addresses::V6 { source, destination } => {
                let (outside, remote) = (Endpoint::new(source, from), Endpoint::new(destination, to));
                end(self.v6.embedded_inbound(now, protocol, outside, remote)?)
            }
        };
        let done = packet.edit_quote(frame, |quote, bytes| quote.set_source(bytes, address, Some(port)))
            && packet.set_destination(frame, address, None);
        let rewritten = Rewritten { source: None, destination: Some(address) };
        if done { Ok(rewritten) } else { Err(DropReason::BadIp) }
    }

    /// True if the connection that a SYN from the outside asked for is there.
    pub(super) fn has_session(&mut self, now: Instant, packet: &Packet) -> bool {
        let Ok((protocol, from, to, _)) = ports(packet, false) else { return false };
        match packet.addresses() {
            Addresses::V4 { source, destination } => {
                let (local, remote) = (Endpoint::new(destination, to), Endpoint::new(source, from));
                self.v4.has_session(now, protocol, local, remote)
            }
            Addresses::V6 { source, destination } => {
                let (local, remote) = (Endpoint::new(destination, to), Endpoint::new(source, from));
                self.v6.has_session(now, protocol, local, remote)
            }
        }
    }
}

fn end<A: Address>(endpoint: Endpoint<A>) -> (IpAddr, u16) {
    (endpoint.address.to_ip(), endpoint.port)
}

/// The packet that an ICMP error quotes. Neither the message's checksum nor that of the quoted header may be wrong
/// (RFC 5508, REQ-3). The rest of the quote may be cut: nobody looks at its checksum.
fn sound_quote(packet: &Packet, frame: &[u8]) -> Result<Packet, DropReason> {
    let quote = packet.quoted(frame).ok_or(DropReason::NatUnsupported)?;
    let message = frame.get(packet.transport_at()..packet.end()).ok_or(DropReason::BadIp)?;
    let mut sum = match packet.addresses() {
        Addresses::V4 { .. } => Sum::new(),
        Addresses::V6 { source, destination } => {
            let length = u32::try_from(message.len()).map_err(|_| DropReason::BadIp)?;
            Sum::pseudo_v6(source.octets(), destination.octets(), PROTO_ICMPV6, length)
        }
    };
    sum.add(message);
    // The first of several fragments has not all that its checksum is of.
    let is_message_sound = packet.is_fragment() || sum.fold() == u16::MAX;
    let is_header_sound = quote.is_v6() || {
        let mut sum = Sum::new();
        sum.add(frame.get(quote.network_at()..quote.transport_at()).ok_or(DropReason::BadIp)?);
        sum.fold() == u16::MAX
    };
    if is_message_sound && is_header_sound { Ok(quote) } else { Err(DropReason::BadIp) }
}

/// The ports of a quoted packet. `ours`: it was sent from inside to outside.
fn quoted_ports(quote: &Packet, ours: bool) -> Result<(Protocol, u16, u16), DropReason> {
    ports(quote, ours).map(|(protocol, from, to, _)| (protocol, from, to))
}
