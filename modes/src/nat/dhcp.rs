//! A DHCP client on the uplink (RFC 2131), by smoltcp: it has an IP stack of its own there, which hears nothing but
//! the server's answers and answers to its own ARP questions.

use std::net::IpAddr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use switch_core::ids::MacAddr;
use switch_core::time::Instant;

use super::UplinkAddress;
use crate::wire::{Wire, clock, instant};

/// Frames that wait for the client, or of it, at most.
const QUEUE_MAX: usize = 32;
const MTU: usize = 1500;

/// What became of our address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// We have one, or another one.
    Bound(UplinkAddress),
    /// We have none any more.
    Lost,
}

/// The client.
pub(super) struct Client {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    wire: Wire,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client that begins to ask. `seed` makes its transactions hard to guess.
    pub(super) fn new(now: Instant, mac: MacAddr, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = seed;
        let mut wire = Wire::new(MTU, QUEUE_MAX);
        let interface = Interface::new(config, &mut wire, clock(now));
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(dhcpv4::Socket::new());
        Self { interface, sockets, socket, wire }
    }

    /// Takes a frame of a DHCP server, or an ARP reply.
    pub(super) fn receive(&mut self, frame: &[u8]) {
        if self.wire.rx.len() < QUEUE_MAX {
            self.wire.rx.push_back(frame.to_vec());
        }
    }

    /// Does what is due; frames to send are given to `send`.
    pub(super) fn poll(&mut self, now: Instant, mut send: impl FnMut(Vec<u8>)) -> Option<Event> {
        self.interface.poll(clock(now), &mut self.wire, &mut self.sockets);
        let socket = self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.socket);
        let event = socket.poll().map(|event| match event {
            dhcpv4::Event::Deconfigured => None,
            dhcpv4::Event::Configured(config) => Some((config.address, config.router)),
        });
        let event = event.map(|lease| {
            self.interface.update_ip_addrs(|addresses| {
                addresses.clear();
                if let Some((address, _)) = lease {
                    // There is room for one, always.
                    let _ = addresses.push(IpCidr::Ipv4(address));
                }
            });
            self.interface.routes_mut().remove_default_ipv4_route();
            if let Some((_, Some(router))) = lease {
                let _ = self.interface.routes_mut().add_default_ipv4_route(router);
            }
            match lease {
                Some((address, router)) => Event::Bound(UplinkAddress {
                    address: IpAddr::V4(address.address()),
                    prefix: address.prefix_len(),
                    next_hop: router.map(IpAddr::V4),
                }),
                None => Event::Lost,
            }
        });
        while let Some(frame) = self.wire.tx.pop_front() {
            send(frame);
        }
        event
    }

    /// When [`Client::poll`] next has something to do.
    pub(super) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(clock(now), &self.sockets)?;
        Some(instant(at))
    }
}
