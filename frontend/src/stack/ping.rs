//! ICMP echo with round-trip times.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress};

use super::Guest;
use crate::error::{Error, Result};
use crate::hash::Pattern;
use crate::histogram::Histogram;

/// What a series of pings saw.
#[derive(Clone, Debug, Default)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u64,
    /// Replies to them, each counted once.
    pub received: u64,
    /// Replies whose payload was not the request's.
    pub corrupt: u64,
    /// Round-trip times.
    pub rtt: Histogram,
}

impl Guest {
    /// Pings `to` with `count` requests of `payload` bytes, one every `interval` (zero: each as soon as the one before
    /// is answered). A request that is not answered within `timeout` counts as lost.
    ///
    /// # Errors
    /// What broke the device; [`Error::Config`] when the guest has no address of the target's kind. Lost requests are
    /// no error.
    pub fn ping(
        &mut self,
        to: IpAddress,
        count: u16,
        payload: usize,
        interval: Duration,
        timeout: Duration,
    ) -> Result<PingReport> {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 64], vec![0; 1 << 18]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        let ident = self.local_port();
        socket.bind(icmp::Endpoint::Ident(ident)).map_err(|e| Error::Config(format!("ping: {e}")))?;
        let handle = self.sockets.add(socket);
        let mut data = vec![0; payload];
        Pattern::new(u64::from(ident)).fill(&mut data);
        let mut series =
            Series { handle, to, ident, data, in_flight: HashMap::new(), report: PingReport::default() };
        let result = self.ping_series(&mut series, count, interval, timeout);
        self.sockets.remove(handle);
        result.map(|()| series.report)
    }

    fn ping_series(
        &mut self,
        s: &mut Series,
        count: u16,
        interval: Duration,
        timeout: Duration,
    ) -> Result<()> {
        let mut next = Instant::now();
        for seq in 0..count {
            s.in_flight.insert(seq, Instant::now());
            self.echo_request(s, seq)?;
            s.report.sent += 1;
            next += interval;
            let last = seq + 1 == count;
            let wait = if interval.is_zero() || last {
                timeout
            } else {
                next.saturating_duration_since(Instant::now())
            };
            let waited = self.run_until("echo reply", wait, |guest| {
                guest.echo_replies(s)?;
                s.in_flight.retain(|_, sent| sent.elapsed() < timeout);
                let answered = s.in_flight.is_empty();
                Ok(((interval.is_zero() || last) && answered).then_some(()))
            });
            match waited {
                Err(e) if !e.is_timeout() => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    fn echo_request(&mut self, s: &Series, seq: u16) -> Result<()> {
        let (ident, data) = (s.ident, s.data.as_slice());
        let caps = ChecksumCapabilities::default();
        let full = |e: icmp::SendError| Error::Config(format!("ping of {} bytes: {e}", data.len()));
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(s.handle);
        match s.to {
            IpAddress::Ipv4(_) => {
                let repr = Icmpv4Repr::EchoRequest { ident, seq_no: seq, data };
                let bytes = socket.send(repr.buffer_len(), s.to).map_err(full)?;
                repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &caps);
            }
            IpAddress::Ipv6(dst) => {
                let repr = Icmpv6Repr::EchoRequest { ident, seq_no: seq, data };
                let src = self.iface.get_source_address_ipv6(&dst);
                let bytes = socket.send(repr.buffer_len(), s.to).map_err(full)?;
                repr.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(bytes), &caps);
            }
        }
        Ok(())
    }

    fn echo_replies(&mut self, s: &mut Series) -> Result<()> {
        let own = self.iface.ipv6_addr();
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(s.handle);
        // Reception's checksums are verified already where the frames came in.
        let caps = ChecksumCapabilities::ignored();
        while let Ok((bytes, from)) = socket.recv() {
            let (seq, same) = match from {
                IpAddress::Ipv4(_) => {
                    let packet = Icmpv4Packet::new_checked(bytes).ok();
                    match packet.as_ref().and_then(|p| Icmpv4Repr::parse(p, &caps).ok()) {
                        Some(Icmpv4Repr::EchoReply { ident, seq_no, data }) if ident == s.ident => {
                            (seq_no, data == s.data)
                        }
                        _ => continue,
                    }
                }
                IpAddress::Ipv6(src) => {
                    let packet = Icmpv6Packet::new_checked(bytes).ok();
                    let dst = own.unwrap_or(src);
                    match packet.as_ref().and_then(|p| Icmpv6Repr::parse(&src, &dst, p, &caps).ok()) {
                        Some(Icmpv6Repr::EchoReply { ident, seq_no, data }) if ident == s.ident => {
                            (seq_no, data == s.data)
                        }
                        _ => continue,
                    }
                }
            };
            if let Some(sent) = s.in_flight.remove(&seq) {
                s.report.received += 1;
                s.report.corrupt += u64::from(!same);
                s.report.rtt.record(sent.elapsed());
            }
        }
        Ok(())
    }
}

struct Series {
    handle: smoltcp::iface::SocketHandle,
    to: IpAddress,
    ident: u16,
    data: Vec<u8>,
    in_flight: HashMap<u16, Instant>,
    report: PingReport,
}
