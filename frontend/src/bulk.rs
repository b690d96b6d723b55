//! TCP-shaped super-frames: a stream in segments of up to 64 KB, to show segmentation offload from end to end.
//!
//! The sender makes Ethernet/IPv4/TCP frames with partial checksums and, where `HOST_TSO4` is in force, segments far
//! larger than the MTU. The receiver sees super-frames where it negotiated `GUEST_TSO4`, else the segments that the
//! switch cut, whose checksums must then be right. It checks sequence numbers, lengths and a hash over all payload, and
//! acknowledges, so that the sender keeps a window and nothing is lost to full rings. Nothing is retransmitted: a loss
//! is what these transfers are to find.

use std::time::{Duration, Instant};

use crate::device::{F_DATA_VALID, GSO_ECN, GSO_TCPV4, NetDevice, VnetHeader};
use crate::error::{Error, Result};
use crate::features;
use crate::hash::{Pattern, StreamHash};
use crate::wire::{self, ETH_LEN, Flow, Transport};

const HEADERS: usize = ETH_LEN + 20 + 20;

/// What is transferred, and how. Both ends are given the same.
#[derive(Clone, Debug)]
pub struct BulkConfig {
    /// Sender to receiver.
    pub flow: Flow,
    /// Bytes of payload in all.
    pub bytes: u64,
    /// Payload of a segment on the wire: `gso_size` of super-frames.
    pub mss: u16,
    /// Most payload of a frame as it is sent: up to 65,495 bytes; without `HOST_TSO4` it is `mss`.
    pub segment: u16,
    /// Bytes that may be unacknowledged.
    pub window: u32,
    /// Whether the frame says so when it carries ECN's CWR flag (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Seed of the payload's stream.
    pub seed: u64,
}

impl BulkConfig {
    /// `bytes` from one MAC address to another, in segments of 45 × 1448 bytes.
    #[must_use]
    pub fn new(flow: Flow, bytes: u64) -> Self {
        BulkConfig { flow, bytes, mss: 1448, segment: 45 * 1448, window: 512 << 10, ecn: false, seed: 1 }
    }
}

/// What the sender did.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendReport {
    /// Frames handed to the device.
    pub frames: u64,
    /// Super-frames among them.
    pub super_frames: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Their hash.
    pub hash: u64,
    /// From the first frame to the last acknowledgement.
    pub elapsed: Duration,
}

/// What the receiver saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReceiveReport {
    /// Frames of the flow.
    pub frames: u64,
    /// Super-frames among them.
    pub super_frames: u64,
    /// Payload bytes in sequence.
    pub bytes: u64,
    /// Their hash.
    pub hash: u64,
    /// Payload of the largest frame.
    pub largest: usize,
    /// Frames with a wrong checksum (IPv4, TCP, or the partial sum), or a wrong length.
    pub bad: u64,
    /// Frames whose sequence number was not the expected one.
    pub out_of_sequence: u64,
    /// Frames that used an offload which was not negotiated.
    pub violations: u64,
    /// Frames that came with a full, verified checksum.
    pub full_checksums: u64,
    /// From the first frame to the last.
    pub elapsed: Duration,
}

impl ReceiveReport {
    /// Whether exactly the sender's bytes arrived, without any fault.
    #[must_use]
    pub fn is_whole(&self, sent: &SendReport) -> bool {
        self.bytes == sent.bytes
            && self.hash == sent.hash
            && self.bad == 0
            && self.out_of_sequence == 0
            && self.violations == 0
    }
}

/// The sending end, step by step.
#[derive(Debug)]
pub struct BulkSender {
    config: BulkConfig,
    pattern: Pattern,
    hash: StreamHash,
    frame: Vec<u8>,
    received: Vec<u8>,
    acked: u64,
    ip_id: u16,
    started: Option<Instant>,
    report: SendReport,
}

impl BulkSender {
    /// A sender that has sent nothing yet.
    #[must_use]
    pub fn new(config: BulkConfig) -> Self {
        BulkSender {
            pattern: Pattern::new(config.seed),
            hash: StreamHash::new(),
            frame: wire::tcp(&config.flow, 0, 1, &[]),
            received: Vec::new(),
            acked: 0,
            ip_id: 1,
            started: None,
            report: SendReport::default(),
            config,
        }
    }

    /// Sends what the window allows, and takes acknowledgements. Gives whether everything is acknowledged.
    ///
    /// # Errors
    /// What broke the device.
    pub fn step(&mut self, device: &mut NetDevice) -> Result<bool> {
        self.started.get_or_insert_with(Instant::now);
        while let Some(_header) = device.try_recv(&mut self.received)? {
            self.take_ack();
        }
        let tso = device.has(features::CSUM | features::HOST_TSO4);
        let most = u64::from(if tso { self.config.segment.min(65_495) } else { self.config.mss });
        while self.report.bytes < self.config.bytes {
            let n = most.min(self.config.bytes - self.report.bytes);
            if self.report.bytes + n > self.acked + u64::from(self.config.window).max(most) {
                break;
            }
            if !self.send_segment(device, n as usize)? {
                break;
            }
        }
        device.pairs_mut()[0].tx.flush();
        if self.acked < self.config.bytes {
            return Ok(false);
        }
        self.report.hash = self.hash.finish();
        self.report.elapsed = self.started.map_or(Duration::ZERO, |s| s.elapsed());
        Ok(true)
    }

    /// The report; final once [`BulkSender::step`] gave `true`.
    #[must_use]
    pub fn report(&self) -> SendReport {
        self.report
    }

    fn send_segment(&mut self, device: &mut NetDevice, n: usize) -> Result<bool> {
        let tx = &mut device.pairs_mut()[0].tx;
        if tx.room() == 0 && tx.reclaim()? == 0 {
            return Ok(false);
        }
        let has = |bits| device.has(bits);
        let f = &mut self.frame;
        f.resize(HEADERS + n, 0);
        self.pattern.fill(&mut f[HEADERS..]);
        self.hash.update(&f[HEADERS..]);
        let ip = ETH_LEN;
        let tcp = ip + 20;
        f[ip + 2..ip + 4].copy_from_slice(&((40 + n) as u16).to_be_bytes());
        f[ip + 4..ip + 6].copy_from_slice(&self.ip_id.to_be_bytes());
        f[ip + 10..ip + 12].fill(0);
        let sum = wire::checksum(&f[ip..tcp]);
        f[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        f[tcp + 4..tcp + 8].copy_from_slice(&(self.report.bytes as u32).to_be_bytes());
        // ACK, and CWR with ECN.
        f[tcp + 13] = if self.config.ecn { 0x90 } else { 0x10 };
        f[tcp + 16..tcp + 18].fill(0);
        let gso = n > usize::from(self.config.mss);
        let mut header = VnetHeader::PLAIN;
        if has(features::CSUM) {
            let (start, offset) = wire::prepare_partial(f).expect("the frame is TCP over IPv4");
            header = VnetHeader::partial_csum(start, offset);
        } else {
            let t = Transport::of(f).expect("the frame is TCP over IPv4");
            let sum = !wire::fold(wire::sum_words(t.pseudo_sum(f), &f[tcp..]));
            f[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        }
        if gso {
            header.gso_type = GSO_TCPV4 | if self.config.ecn { GSO_ECN } else { 0 };
            header.gso_size = self.config.mss;
            header.hdr_len = HEADERS as u16;
        }
        self.ip_id = self.ip_id.wrapping_add(n.div_ceil(usize::from(self.config.mss)) as u16);
        let tx = &mut device.pairs_mut()[0].tx;
        if !tx.push(&header, &[&self.frame])? {
            return Err(Error::Device("no descriptors for a frame although a buffer was free".into()));
        }
        self.report.frames += 1;
        self.report.super_frames += u64::from(gso);
        self.report.bytes += n as u64;
        Ok(true)
    }

    fn take_ack(&mut self) {
        let f = &self.received;
        let back = self.config.flow.reversed();
        let Some(t) = Transport::of(f).filter(|t| is_flow(f, t, &back) && wire::checksums_ok(f)) else {
            return;
        };
        let Some(ack) =
            f.get(t.start + 8..t.start + 12).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes)
        else {
            return;
        };
        // The sequence space is 32 bits wide; windows are far smaller.
        let ahead = ack.wrapping_sub(self.acked as u32);
        if u64::from(ahead) <= self.report.bytes - self.acked {
            self.acked += u64::from(ahead);
        }
    }
}

fn is_flow(f: &[u8], t: &Transport, flow: &Flow) -> bool {
    t.version == 4
        && t.protocol == 6
        && f.get(t.ip + 12..t.ip + 16) == Some(&flow.src)
        && f.get(t.ip + 16..t.ip + 20) == Some(&flow.dst)
        && f.get(t.start..t.start + 2) == Some(&flow.src_port.to_be_bytes())
        && f.get(t.start + 2..t.start + 4) == Some(&flow.dst_port.to_be_bytes())
}

/// The receiving end, step by step.
#[derive(Debug)]
pub struct BulkReceiver {
    config: BulkConfig,
    hash: StreamHash,
    frame: Vec<u8>,
    started: Option<Instant>,
    report: ReceiveReport,
    unacked: bool,
}

impl BulkReceiver {
    /// A receiver that has seen nothing yet.
    #[must_use]
    pub fn new(config: BulkConfig) -> Self {
        BulkReceiver {
            config,
            hash: StreamHash::new(),
            frame: Vec::new(),
            started: None,
            report: ReceiveReport::default(),
            unacked: false,
        }
    }

    /// Takes what is there, and acknowledges it. Gives whether everything came.
    ///
    /// # Errors
    /// What broke the device.
    pub fn step(&mut self, device: &mut NetDevice) -> Result<bool> {
        for _ in 0..64 {
            let Some(header) = device.try_recv(&mut self.frame)? else { break };
            self.take(device, &header);
        }
        if std::mem::take(&mut self.unacked) {
            let ack = wire::tcp(&self.config.flow.reversed(), 1, self.report.bytes as u32, &[]);
            device.send(&ack)?;
        }
        self.report.hash = self.hash.finish();
        Ok(self.report.bytes >= self.config.bytes)
    }

    /// What was seen so far.
    #[must_use]
    pub fn report(&self) -> ReceiveReport {
        self.report
    }

    fn take(&mut self, device: &NetDevice, header: &VnetHeader) {
        let f = &self.frame;
        let r = &mut self.report;
        let Some(t) = Transport::of(f).filter(|t| is_flow(f, t, &self.config.flow)) else { return };
        let started = *self.started.get_or_insert_with(Instant::now);
        r.elapsed = started.elapsed();
        r.frames += 1;
        let gso = header.is_gso();
        r.super_frames += u64::from(gso);
        let vouched = header.needs_csum() || header.flags & F_DATA_VALID != 0;
        if (vouched && !device.has(features::GUEST_CSUM)) || (gso && !device.has(features::GUEST_TSO4)) {
            r.violations += 1;
        }
        let data = t.start + f.get(t.start + 12).map_or(0, |b| usize::from(b >> 4) * 4);
        if data < t.start + 20 || data > t.end {
            r.bad += 1;
            return;
        }
        let payload = &f[data..t.end];
        r.largest = r.largest.max(payload.len());
        let ip_ok = wire::checksum(&f[t.ip..t.start]) == 0;
        let tcp_ok = if header.needs_csum() {
            // A partial checksum is the pseudo-header's sum, at the place that the header names.
            let field = usize::from(header.csum_start) + usize::from(header.csum_offset);
            usize::from(header.csum_start) == t.start
                && field == t.start + 16
                && f[field..field + 2] == wire::fold(t.pseudo_sum(f)).to_be_bytes()
        } else if header.flags & F_DATA_VALID != 0 {
            true
        } else {
            let ok = wire::checksums_ok(f);
            r.full_checksums += u64::from(ok);
            ok
        };
        let length_ok =
            payload.len() <= usize::from(self.config.mss) || (gso && header.gso_size == self.config.mss);
        if !(ip_ok && tcp_ok && length_ok) {
            r.bad += 1;
            return;
        }
        let seq = u32::from_be_bytes([f[t.start + 4], f[t.start + 5], f[t.start + 6], f[t.start + 7]]);
        if seq != r.bytes as u32 {
            r.out_of_sequence += 1;
            return;
        }
        self.hash.update(payload);
        r.bytes += payload.len() as u64;
        self.unacked = true;
    }
}

/// Sends a whole transfer to a receiver elsewhere.
///
/// # Errors
/// [`Error::Timeout`] when it is not acknowledged in time, as after a loss; else what broke the device.
pub fn send(device: &mut NetDevice, config: &BulkConfig, timeout: Duration) -> Result<SendReport> {
    let deadline = Instant::now() + timeout;
    let mut sender = BulkSender::new(config.clone());
    while !sender.step(device)? {
        // Acknowledgements come when the receiver has taken something; room comes at the latest then.
        if !device.wait(deadline)? {
            return Err(Error::Timeout { what: "acknowledgement of super-frames", after: timeout });
        }
    }
    Ok(sender.report())
}

/// Receives a whole transfer from a sender elsewhere.
///
/// # Errors
/// [`Error::Timeout`] when it does not end in time; else what broke the device.
pub fn receive(device: &mut NetDevice, config: &BulkConfig, timeout: Duration) -> Result<ReceiveReport> {
    let deadline = Instant::now() + timeout;
    let mut receiver = BulkReceiver::new(config.clone());
    while !receiver.step(device)? {
        if !device.wait(deadline)? {
            return Err(Error::Timeout { what: "end of the super-frames", after: timeout });
        }
    }
    // The last acknowledgement must be out before the caller may drop the device.
    device.pairs_mut()[0].tx.drain(deadline.saturating_duration_since(Instant::now()))?;
    Ok(receiver.report())
}

/// Sends from `a` to `b` on one thread. Also gives reports when something was lost, after `timeout`.
///
/// # Errors
/// What broke a device.
pub fn exchange(
    a: &mut NetDevice,
    b: &mut NetDevice,
    config: &BulkConfig,
    timeout: Duration,
) -> Result<(SendReport, ReceiveReport)> {
    let deadline = Instant::now() + timeout;
    let mut sender = BulkSender::new(config.clone());
    let mut receiver = BulkReceiver::new(config.clone());
    loop {
        let sent = sender.step(a)?;
        let got = receiver.step(b)?;
        let now = Instant::now();
        if (sent && got) || now >= deadline {
            return Ok((sender.report(), receiver.report()));
        }
        if !got {
            b.wait(deadline.min(now + Duration::from_millis(1)))?;
        } else {
            a.wait(deadline.min(now + Duration::from_millis(1)))?;
        }
    }
}
