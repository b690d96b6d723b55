//! A guest with an IP stack: smoltcp over a virtio-net device.
//!
//! A [`Guest`] answers ARP, neighbour solicitations and pings whenever it runs, and offers whole exchanges: ping with
//! a histogram, bulk TCP whose receiver confirms length and hash, UDP datagrams. Each runs the stack until it is done
//! or its time is over. One thread owns a guest.

mod phy;
mod ping;
mod services;
mod tcp;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config as IfaceConfig, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::wire::{EthernetAddress, IpListenEndpoint};
/// The addresses' types.
pub use smoltcp::wire::{IpAddress, IpCidr, IpEndpoint};

use crate::device::NetDevice;
use crate::error::{Error, Result};
use crate::wire::{Ipv4, Mac, arp_request};
use phy::Phy;
pub use phy::PhyStats;
pub use ping::PingReport;
pub use services::Lease;
pub use tcp::BulkReport;

/// What a guest's stack is to be like.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// The guest's addresses with their prefixes.
    pub addresses: Vec<IpCidr>,
    /// Where other networks are reached.
    pub gateways: Vec<IpAddress>,
    /// Bytes of each TCP socket's two buffers, which bound the window.
    pub tcp_buffer: usize,
    /// How long the guest looks for frames before it sleeps. Zero leaves the processor to others.
    pub spin: Duration,
    /// Starts port numbers and sequence numbers.
    pub seed: u64,
}

impl Default for GuestConfig {
    fn default() -> Self {
        GuestConfig {
            addresses: Vec::new(),
            gateways: Vec::new(),
            tcp_buffer: 1 << 20,
            spin: Duration::ZERO,
            seed: 1,
        }
    }
}

impl GuestConfig {
    /// A guest with one address, such as `10.0.0.1/24`.
    ///
    /// # Errors
    /// [`Error::Config`] for what is no address with a prefix.
    pub fn address(cidr: &str) -> Result<Self> {
        GuestConfig::default().and_address(cidr)
    }

    /// The same with one more address.
    ///
    /// # Errors
    /// As for [`GuestConfig::address`].
    pub fn and_address(mut self, cidr: &str) -> Result<Self> {
        let parsed =
            cidr.parse().map_err(|()| Error::Config(format!("'{cidr}' is no address with a prefix")))?;
        self.addresses.push(parsed);
        Ok(self)
    }
}

/// A guest with an IP stack.
pub struct Guest {
    iface: Interface,
    phy: Phy,
    sockets: SocketSet<'static>,
    config: GuestConfig,
    epoch: Instant,
    next_port: u16,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("config", &self.config)
            .field("stats", &self.phy.stats)
            .finish_non_exhaustive()
    }
}

impl Guest {
    /// Puts a stack on a device that is set up.
    ///
    /// # Errors
    /// [`Error::Config`] for more addresses or gateways than the stack takes, or a group address as the device's.
    pub fn new(device: NetDevice, config: GuestConfig) -> Result<Self> {
        let mac = EthernetAddress(device.mac());
        if !mac.is_unicast() {
            return Err(Error::Config(format!("{mac} is not a station's address")));
        }
        let mut phy = Phy::new(device);
        let mut iface_config = IfaceConfig::new(mac.into());
        iface_config.random_seed = config.seed
            ^ u64::from_be_bytes([0, 0, mac.0[0], mac.0[1], mac.0[2], mac.0[3], mac.0[4], mac.0[5]]);
        let mut iface = Interface::new(iface_config, &mut phy, smoltcp::time::Instant::ZERO);
        let mut full = false;
        iface.update_ip_addrs(|list| full = config.addresses.iter().any(|a| list.push(*a).is_err()));
        for gateway in &config.gateways {
            full |= match gateway {
                IpAddress::Ipv4(a) => iface.routes_mut().add_default_ipv4_route(*a).is_err(),
                IpAddress::Ipv6(a) => iface.routes_mut().add_default_ipv6_route(*a).is_err(),
            };
        }
        if full {
            return Err(Error::Config("more addresses or gateways than the stack takes".into()));
        }
        let next_port = 49_152 + (config.seed % 8192) as u16;
        Ok(Guest {
            iface,
            phy,
            sockets: SocketSet::new(Vec::new()),
            config,
            epoch: Instant::now(),
            next_port,
        })
    }

    /// The device below.
    #[must_use]
    pub fn device(&self) -> &NetDevice {
        &self.phy.device
    }

    /// The device below, to send or receive past the stack.
    #[must_use]
    pub fn device_mut(&mut self) -> &mut NetDevice {
        &mut self.phy.device
    }

    /// The device alone, without the stack.
    #[must_use]
    pub fn into_device(self) -> NetDevice {
        self.phy.device
    }

    /// What the device saw under the stack.
    #[must_use]
    pub fn stats(&self) -> PhyStats {
        self.phy.stats
    }

    /// smoltcp's interface and sockets, for what is not offered here.
    #[must_use]
    pub fn smoltcp(&mut self) -> (&mut Interface, &mut SocketSet<'static>) {
        (&mut self.iface, &mut self.sockets)
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(
            i64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(i64::MAX),
        )
    }

    /// Runs the stack on what is there. Gives whether anything moved.
    ///
    /// # Errors
    /// What broke the device.
    pub fn poll(&mut self) -> Result<bool> {
        let before = self.phy.stats.rx_frames;
        let now = self.now();
        let result = self.iface.poll(now, &mut self.phy, &mut self.sockets);
        self.phy.flush();
        match self.phy.error.take() {
            Some(e) => Err(e),
            None => Ok(result == PollResult::SocketStateChanged || self.phy.stats.rx_frames != before),
        }
    }

    /// Sleeps until a frame comes, the stack has something to do, or `deadline`.
    fn sleep(&mut self, deadline: Instant) -> Result<()> {
        let now = self.now();
        let mut until = deadline;
        if let Some(delay) = self.iface.poll_delay(now, &self.sockets) {
            until = until.min(Instant::now() + Duration::from(delay));
        }
        let spin_end = until.min(Instant::now() + self.config.spin);
        while Instant::now() < spin_end {
            if self.phy.device.pairs().iter().any(|p| p.rx.vq.ring.has_used()) {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        self.phy.device.wait(until).map(|_| ())
    }

    /// Runs the stack until `done` gives a value, and gives it.
    ///
    /// # Errors
    /// [`Error::Timeout`] naming `what`; else what `done` or the device gives.
    pub fn run_until<T>(
        &mut self,
        what: &'static str,
        timeout: Duration,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let moved = self.poll()?;
            if let Some(value) = done(self)? {
                // What `done` put into sockets goes out before the caller goes on to other things.
                self.poll()?;
                return Ok(value);
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout { what, after: timeout });
            }
            if !moved {
                self.sleep(deadline)?;
            }
        }
    }

    /// Answers others until `stop` says so, which is asked at least every 50 ms, or `timeout` is over.
    ///
    /// # Errors
    /// What broke the device.
    pub fn serve(&mut self, timeout: Duration, mut stop: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !stop() && Instant::now() < deadline {
            if !self.poll()? {
                self.sleep(deadline.min(Instant::now() + Duration::from_millis(50)))?;
            }
        }
        Ok(())
    }

    /// Waits until the device has taken every frame that was sent, so that the guest may be dropped and its last words
    /// are still heard.
    ///
    /// # Errors
    /// [`Error::Timeout`], or what broke the device.
    pub fn drain(&mut self, timeout: Duration) -> Result<()> {
        self.phy.flush();
        self.phy.device.pairs_mut().iter_mut().try_for_each(|p| p.tx.drain(timeout))
    }

    /// Asks who has `target`, and gives the MAC address of the answer.
    ///
    /// # Errors
    /// [`Error::Timeout`] when nobody answers; [`Error::Config`] for a guest without an IPv4 address.
    pub fn arp(&mut self, target: Ipv4, timeout: Duration) -> Result<Mac> {
        let own =
            self.iface.ipv4_addr().ok_or_else(|| Error::Config("the guest has no IPv4 address".into()))?;
        self.phy.arp_seen.remove(&target);
        let request = arp_request(self.phy.device.mac(), own.octets(), target);
        self.phy.device.send(&request)?;
        self.run_until("answer to ARP", timeout, |guest| Ok(guest.phy.arp_seen.get(&target).copied()))
    }

    fn local_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = if port == u16::MAX { 49_152 } else { port + 1 };
        port
    }

    /// Opens a UDP port (0 for one of the guest's choice).
    ///
    /// # Errors
    /// [`Error::Config`] when it cannot be bound.
    pub fn udp_open(&mut self, port: u16) -> Result<UdpPort> {
        let port = if port == 0 { self.local_port() } else { port };
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 256], vec![0; 1 << 18]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        let endpoint = IpListenEndpoint { addr: None, port };
        socket.bind(endpoint).map_err(|e| Error::Config(format!("UDP port {port}: {e}")))?;
        Ok(UdpPort { handle: self.sockets.add(socket), port })
    }

    /// Closes a UDP port.
    pub fn udp_close(&mut self, port: UdpPort) {
        self.sockets.remove(port.handle);
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not go out in time, for instance because nobody answers to the address.
    pub fn udp_send(
        &mut self,
        port: &UdpPort,
        to: IpEndpoint,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<()> {
        let handle = port.handle;
        let mut given = false;
        self.run_until("sending a datagram", timeout, |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            if !given {
                match socket.send_slice(payload, to) {
                    Ok(()) => given = true,
                    Err(udp::SendError::BufferFull) => return Ok(None),
                    Err(e) => return Err(Error::Config(format!("datagram to {to}: {e}"))),
                }
                return Ok(None);
            }
            Ok((socket.send_queue() == 0).then_some(()))
        })?;
        self.drain(timeout)
    }

    /// Waits for a datagram.
    ///
    /// # Errors
    /// [`Error::Timeout`] when none comes.
    pub fn udp_recv(&mut self, port: &UdpPort, timeout: Duration) -> Result<(Vec<u8>, IpEndpoint)> {
        let handle = port.handle;
        self.run_until("datagram", timeout, |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            Ok(socket.recv().ok().map(|(bytes, meta)| (bytes.to_vec(), meta.endpoint)))
        })
    }

    /// Answers each datagram with itself, for as many as `count`, and gives the senders.
    ///
    /// # Errors
    /// [`Error::Timeout`] when fewer come.
    pub fn udp_echo(&mut self, port: &UdpPort, count: usize, timeout: Duration) -> Result<Vec<IpEndpoint>> {
        let handle = port.handle;
        let mut senders = Vec::new();
        let mut waiting: VecDeque<(Vec<u8>, IpEndpoint)> = VecDeque::new();
        let senders = self.run_until("datagrams to echo", timeout, |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            while let Ok((bytes, meta)) = socket.recv() {
                waiting.push_back((bytes.to_vec(), meta.endpoint));
            }
            while let Some((bytes, to)) = waiting.pop_front() {
                if socket.send_slice(&bytes, to).is_err() {
                    waiting.push_front((bytes, to));
                    break;
                }
                senders.push(to);
            }
            let done = senders.len() >= count && socket.send_queue() == 0;
            Ok(done.then(|| std::mem::take(&mut senders)))
        })?;
        self.drain(timeout)?;
        Ok(senders)
    }
}

/// An open UDP port of a guest.
#[derive(Debug)]
pub struct UdpPort {
    handle: SocketHandle,
    port: u16,
}

impl UdpPort {
    /// The port's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.port
    }
}
