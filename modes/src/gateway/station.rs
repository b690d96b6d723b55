//! The gateway itself: it gives each frame to whom it is for, and sends what they have to say.
//!
//! In this order: the mode's slow path, which knows what its forwarder left undecided; then, of frames that are for
//! the gateway's address or for a group, the service that they are for; then the IP stack. A frame that is nobody's
//! is dropped here, as a host drops it.
//!
//! Owned by one thread at a time (the daemon keeps it behind a lock).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use switch_core::ip::arp::Arp;
use switch_core::{Instant, MacAddr, PortId};

use super::datagram::{self, Datagram};
use super::dhcp4::{self, LeaseEvent};
use super::dhcp6::Dhcp6Server;
use super::dns::{self, Action, Client, Dns, QueryId, Transport, Unanswered};
use super::outbox::{Handled, Outbox, Outgoing, SlowPath};
use super::ra::Advertiser;
use super::search::Search;
use super::stack::Stack;
use crate::router::link_local;

const DNS_PORT: u16 = 53;
/// Clients of one port whose MAC address is remembered until their answer goes.
const CLIENTS_PER_PORT: usize = 1024;

/// What time it is, twice: for timers, and for what outlives the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// On the daemon's monotonic clock.
    pub now: Instant,
    /// Seconds since the Unix epoch.
    pub unix_s: u64,
}

/// What a gateway is.
#[derive(Debug)]
pub struct Settings {
    /// Its MAC address: the router's, to guests.
    pub mac: MacAddr,
    /// Its IPv4 address.
    pub address4: Option<Ipv4Addr>,
    /// Its IPv6 address; with it, it also has the link-local one of its MAC address.
    pub address6: Option<Ipv6Addr>,
    /// Bytes of the longest IP packet on the network.
    pub mtu: u16,
    /// Whether it answers ARP, ND and ICMP echo for its addresses. It does not where the host's stack holds them.
    pub answers: bool,
    /// How the guests are linked.
    pub links: Links,
    /// Makes sequence numbers hard to guess.
    pub seed: u64,
}

/// How the guests of a network are linked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// All are on one link: what the gateway says to a group goes through the network's forwarding.
    #[default]
    Shared,
    /// Each port is a link of its own: what the gateway says to a group is said on each.
    EachPort,
}

/// The services of a gateway. What is `None` is not served.
#[derive(Default)]
pub struct Services {
    /// IPv4 addresses.
    pub dhcp4: Option<dhcp4::Server>,
    /// IPv6 addresses that are reserved, and what router advertisements do not say.
    pub dhcp6: Option<Dhcp6Server>,
    /// Names, over UDP and TCP, at the gateway's addresses.
    pub dns: Option<Dns>,
    /// Router advertisements.
    pub ra: Option<Advertiser>,
    /// Who is told of addresses that come and go.
    pub leases: Option<Box<dyn LeaseWatch>>,
    /// Who is told of answers to questions for names.
    pub names: Option<Box<dyn NameWatch>>,
}

/// Whoever goes by what guests were told of names.
pub trait NameWatch: Send {
    /// A guest is sent this answer, a whole DNS message; one over UDP may be cut short.
    fn answered(&mut self, message: &[u8]);
}

/// Whoever forwards by leases.
pub trait LeaseWatch: Send {
    /// The address is at this port, with this MAC address.
    fn assigned(&mut self, now: Instant, port: PortId, ip: IpAddr, mac: MacAddr);

    /// The address is nobody's any more.
    fn withdrawn(&mut self, now: Instant, ip: IpAddr);
}

/// A question to the outside's name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// For [`Gateway::answered`].
    pub id: QueryId,
    /// The query, with id 0.
    pub message: Vec<u8>,
}

/// See the module's text.
pub struct Gateway {
    settings: Settings,
    slow: Option<Box<dyn SlowPath>>,
    services: Services,
    stack: Stack,
    /// Where clients that wait for an answer over UDP are, and whom they asked.
    clients: HashMap<PortId, HashMap<SocketAddr, (MacAddr, SocketAddr)>>,
    questions: VecDeque<Question>,
    /// Who has taken which address by DHCPv6, as was told at that revision.
    bound6: (u64, BTreeMap<Ipv6Addr, (PortId, MacAddr)>),
    /// The guests' ports.
    guests: BTreeSet<PortId>,
    search: Search,
    out: Outbox,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway on a network without guests.
    pub fn new(
        clock: Clock,
        settings: Settings,
        services: Services,
        slow: Option<Box<dyn SlowPath>>,
    ) -> Self {
        let mut addresses: Vec<IpAddr> = settings.address4.map(IpAddr::from).into_iter().collect();
        if let Some(address) = settings.address6 {
            addresses.extend([IpAddr::V6(address), IpAddr::V6(link_local(settings.mac))]);
        }
        let dns = services.dns.is_some();
        let stack = Stack::new(clock.now, settings.mac, &addresses, settings.mtu, dns, settings.seed);
        let mut gateway = Self {
            settings,
            slow,
            services,
            stack,
            clients: HashMap::new(),
            questions: VecDeque::new(),
            bound6: Default::default(),
            guests: BTreeSet::new(),
            search: Search::default(),
            out: Outbox::default(),
        };
        gateway.name_all_leases(clock.now);
        gateway
    }

    /// What keeps it from serving as it should, in one line, if anything does.
    pub fn problem(&self) -> Option<String> {
        let dhcp = self.services.dhcp4.as_ref()?;
        dhcp.store_error().map(|e| format!("leases cannot be written, so none are given: {e}"))
    }

    /// Its services, to be asked and changed by an operator's word.
    pub fn services(&mut self) -> &mut Services {
        &mut self.services
    }

    /// Gives its name service another zone, without leases; they are put in.
    pub fn set_zone(&mut self, clock: Clock, zone: dns::Zone) {
        if let Some(dns) = &mut self.services.dns {
            *dns.zone_mut() = zone;
        }
        self.name_all_leases(clock.now);
    }

    /// The next frame to go. To be asked after each call, until there is none.
    pub fn next_frame(&mut self) -> Option<Outgoing> {
        loop {
            let outgoing = self.out.pop()?;
            let group = MacAddr::from_slice(&outgoing.frame).is_some_and(MacAddr::is_group);
            if outgoing.to.is_some() || !group || self.settings.links == Links::Shared {
                return Some(outgoing);
            }
            for &port in &self.guests {
                self.out.send_to(port, outgoing.frame.clone());
            }
        }
    }

    /// A guest's port joined the network.
    pub fn guest_added(&mut self, port: PortId) {
        self.guests.insert(port);
        if self.settings.links == Links::EachPort {
            self.search.begin();
        }
    }

    /// The next question to the outside, to be asked after each call until there is none.
    pub fn question(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    /// Takes a whole frame that `from` received.
    pub fn receive(&mut self, clock: Clock, from: PortId, frame: &[u8]) {
        if let Some(dhcp) = &mut self.services.dhcp4
            && let Some((ip, mac)) = arp_sender(frame)
        {
            dhcp.arp_seen(clock.now, from, ip, mac, &mut self.out);
            if ethernet_source(frame) == Some(mac) {
                // Known before the slow path is asked, which answers those whom it knows.
                dhcp.heard(from, ip, mac);
                self.tell_leases(clock.now);
            }
        }
        if let Some(slow) = &mut self.slow
            && slow.receive(clock.now, from, frame, &mut self.out) == Handled::Yes
        {
            return;
        }
        let Some(destination) = MacAddr::from_slice(frame) else { return };
        if destination != self.settings.mac && !destination.is_group() {
            return;
        }
        if self.serve(clock, from, frame) == Handled::Yes {
            return;
        }
        if let Some(dns) = &mut self.services.dns
            && let Some(query) = Datagram::read(frame)
            && query.destination.port() == DNS_PORT
            && self.stack.addresses().contains(&query.destination.ip())
        {
            let clients = self.clients.entry(from).or_default();
            if clients.len() >= CLIENTS_PER_PORT {
                // So many are never in flight: most of them were not answered, and will not be.
                clients.clear();
            }
            clients.insert(query.source, (query.mac, query.destination));
            let client = Client { port: from, address: query.source, transport: Transport::Udp };
            dns.receive(clock.now, client, query.payload);
            return;
        }
        if self.settings.answers || is_tcp(frame) {
            self.stack.receive(clock.now, from, frame);
        }
    }

    /// Asks the services that have frames of their own kind.
    fn serve(&mut self, clock: Clock, from: PortId, frame: &[u8]) -> Handled {
        let (services, out) = (&mut self.services, &mut self.out);
        if let Some(dhcp) = &mut services.dhcp4
            && dhcp.receive(clock.now, clock.unix_s, from, frame, out) == Handled::Yes
        {
            self.tell_leases(clock.now);
            return Handled::Yes;
        }
        if let Some(dhcp) = &mut services.dhcp6
            && dhcp.receive(clock.now, from, frame, out) == Handled::Yes
        {
            return Handled::Yes;
        }
        match &mut services.ra {
            Some(ra) => ra.receive(clock.now, from, frame, out),
            None => Handled::No,
        }
    }

    /// Tells whoever acts on leases what became of them. To be called after each call that may change one.
    fn tell_leases(&mut self, now: Instant) {
        let Some(dhcp) = &mut self.services.dhcp4 else { return };
        while let Some(event) = dhcp.next_event() {
            match event {
                LeaseEvent::Assigned { port, ip, mac } => {
                    if let Some(dns) = &mut self.services.dns {
                        dns.zone_mut().remove_lease(ip.into());
                        if let Some(name) = dhcp.name_of(now, ip) {
                            name_lease(dns, ip, mac, name);
                        }
                    }
                    if let Some(watch) = &mut self.services.leases {
                        watch.assigned(now, port, ip.into(), mac);
                    }
                }
                LeaseEvent::Withdrawn { ip, .. } => {
                    if let Some(dns) = &mut self.services.dns {
                        dns.zone_mut().remove_lease(ip.into());
                    }
                    if let Some(watch) = &mut self.services.leases {
                        watch.withdrawn(now, ip.into());
                    }
                }
            }
        }
    }

    /// Tells whoever acts on leases who has taken an address by DHCPv6, and who has not any more.
    fn tell_bindings(&mut self, now: Instant) {
        let (Some(dhcp), Some(watch)) = (&self.services.dhcp6, &mut self.services.leases) else { return };
        if dhcp.revision() == self.bound6.0 {
            return;
        }
        let bound = dhcp.bindings(now).into_iter().filter_map(|b| Some((b.ip, (b.port?, b.mac))));
        let bound: BTreeMap<_, _> = bound.collect();
        for (&ip, place) in &self.bound6.1 {
            if bound.get(&ip) != Some(place) {
                watch.withdrawn(now, ip.into());
            }
        }
        for (&ip, &(port, mac)) in &bound {
            if self.bound6.1.get(&ip) != Some(&(port, mac)) {
                watch.assigned(now, port, ip.into(), mac);
            }
        }
        self.bound6 = (dhcp.revision(), bound);
    }

    /// Gives the leases of the store their names.
    fn name_all_leases(&mut self, now: Instant) {
        let (Some(dhcp), Some(dns)) = (&self.services.dhcp4, &mut self.services.dns) else { return };
        dns.zone_mut().clear_leases();
        for lease in dhcp.leases(now) {
            if let Some(name) = &lease.hostname {
                name_lease(dns, lease.ip, lease.mac, name);
            }
        }
    }

    /// Takes the outside's answer to a question; `None` if there was none.
    pub fn answered(&mut self, clock: Clock, id: QueryId, answer: Option<Vec<u8>>) {
        if let Some(dns) = &mut self.services.dns {
            dns.answered(clock.now, id, answer.ok_or(Unanswered));
        }
    }

    /// Does what is due, and what came in asks for.
    pub fn poll(&mut self, clock: Clock) {
        if let Some(slow) = &mut self.slow {
            slow.poll(clock.now, &mut self.out);
        }
        if let Some(ra) = &mut self.services.ra {
            ra.poll(clock.now, &mut self.out);
        }
        if let Some(dhcp) = &mut self.services.dhcp4 {
            dhcp.poll(clock.now, &mut self.out);
            if let (Some(address), Some(_)) = (self.settings.address4, self.search.at()) {
                let lost = dhcp.leases(clock.now).into_iter().filter(|l| l.port.is_none());
                let (own, ports) = ((self.settings.mac, address), self.guests.iter().copied());
                self.search.poll(clock.now, own, lost.map(|l| (l.ip, l.mac)), ports, &mut self.out);
            }
        }
        self.tell_leases(clock.now);
        self.tell_bindings(clock.now);
        let dns = &mut self.services.dns;
        self.stack.poll(clock.now, &mut self.out, |question| {
            if let Some(dns) = dns {
                let client = Client {
                    port: question.from,
                    address: question.client,
                    transport: Transport::Tcp(question.connection),
                };
                dns.receive(clock.now, client, &question.message);
            }
        });
        self.serve_names(clock);
    }

    fn serve_names(&mut self, clock: Clock) {
        let Some(dns) = &mut self.services.dns else { return };
        dns.poll(clock.now);
        let mut over_tcp = false;
        while let Some(action) = dns.pop() {
            match action {
                Action::Ask { id, message } => self.questions.push_back(Question { id, message }),
                Action::Answer { to: client, message } => {
                    if let Some(names) = &mut self.services.names {
                        names.answered(&message);
                    }
                    match client.transport {
                        Transport::Tcp(connection) => {
                            self.stack.answer(clock.now, connection, &message);
                            over_tcp = true;
                        }
                        Transport::Udp => {
                            let clients = self.clients.get_mut(&client.port);
                            let asked = clients.and_then(|c| c.remove(&client.address));
                            let Some((mac, asked)) = asked else { continue };
                            let macs = (self.settings.mac, mac);
                            if let Some(frame) = datagram::build(macs, asked, client.address, &message) {
                                self.out.send_to(client.port, frame);
                            }
                        }
                    }
                }
            }
        }
        if over_tcp {
            self.stack.poll(clock.now, &mut self.out, |_| {});
        }
    }

    /// When [`Gateway::poll`] next has something to do.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let services = &self.services;
        [
            self.slow.as_ref().and_then(|s| s.poll_at()),
            services.ra.as_ref().and_then(Advertiser::poll_at),
            services.dhcp4.as_ref().and_then(dhcp4::Server::poll_at),
            services.dns.as_ref().and_then(Dns::poll_at),
            self.stack.poll_at(now),
            self.services.dhcp4.as_ref().and_then(|_| self.search.at()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A port left the network: forgets what points to it.
    pub fn port_removed(&mut self, port: PortId) {
        if let Some(slow) = &mut self.slow {
            slow.port_removed(port);
        }
        self.stack.port_removed(port);
        self.clients.remove(&port);
        self.guests.remove(&port);
        if let Some(ra) = &mut self.services.ra {
            ra.port_removed(port);
        }
        if let Some(dns) = &mut self.services.dns {
            dns.forget(port);
        }
        if let Some(dhcp) = &mut self.services.dhcp4 {
            dhcp.port_removed(port);
        }
        if let Some(dhcp) = &mut self.services.dhcp6 {
            dhcp.port_removed(port);
        }
    }

    /// Says good-bye to the guests: the network ends.
    pub fn farewell(&mut self, _clock: Clock) {
        if let Some(ra) = &mut self.services.ra {
            ra.farewell(&mut self.out);
        }
    }
}

/// Whether a frame holds TCP: without options or extensions, which clients of a name service have no use for.
fn is_tcp(frame: &[u8]) -> bool {
    const TCP: Option<&u8> = Some(&6);
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == TCP,
        Some([0x86, 0xdd]) => frame.get(20) == TCP,
        _ => false,
    }
}

fn name_lease(dns: &mut Dns, ip: Ipv4Addr, mac: MacAddr, name: &str) {
    let lease = dns::Lease { owner: mac, hostname: name.to_owned(), address: ip.into() };
    // A name that the zone does not take is not known, and that is all.
    let _ = dns.zone_mut().add_lease(&lease);
}

fn ethernet_source(frame: &[u8]) -> Option<MacAddr> {
    frame.get(6..).and_then(MacAddr::from_slice)
}

/// Who says in an ARP packet that an address is its own.
fn arp_sender(frame: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    Arp::of_frame(frame).map(|arp| (arp.sender, arp.sender_mac))
}
