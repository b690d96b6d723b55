//! A server with clients at its ports, a virtual clock, and a store that fails when it is told to.

mod fair;
mod limits;
mod messages;
mod model;
mod options;
mod time;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dhcproto::v4::{
    Decodable, Decoder, DhcpOption, Encodable, Flags, Message, MessageType, OptionCode, UnknownOption,
};
use etherparse::PacketBuilder;
use switch_core::ids::Registry;
use switch_core::{Instant, MacAddr, PortId};

use super::*;
use crate::gateway::leases::{ClientKey, Record};
use crate::gateway::{Handled, Outgoing};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER_MAC: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 1]);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// The wall clock when the rig starts.
const UNIX: u64 = 1_800_000_000;

/// A host of the network.
fn host(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

/// The Ethernet address of client `n`.
fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr([2, 0, a, b, c, d])
}

/// 192.0.2.10 to `last`, leases of an hour.
fn config(last: u8) -> Config {
    Config::new(SERVER, ROUTER_MAC, "192.0.2.0/24".parse().unwrap(), host(10)..=host(last))
}

/// Leases that survive a restart of the rig.
#[derive(Clone, Debug, Default)]
struct TestStore(Arc<Mutex<TestStoreState>>);

#[derive(Debug, Default)]
struct TestStoreState {
    records: BTreeMap<Ipv4Addr, Record>,
    writes: usize,
    fails: bool,
}

impl TestStore {
    fn writes(&self) -> usize {
        self.0.lock().unwrap().writes
    }

    fn fail(&self, fails: bool) {
        self.0.lock().unwrap().fails = fails;
    }

    fn record(&self, ip: Ipv4Addr) -> Option<Record> {
        self.0.lock().unwrap().records.get(&ip).cloned()
    }
}

impl LeaseStore for TestStore {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        Ok(self.0.lock().unwrap().records.values().cloned().collect())
    }

    fn write(&mut self, change: Change<'_>) -> Result<(), StoreError> {
        let mut state = self.0.lock().unwrap();
        if state.fails {
            return Err(StoreError::Record("the disk is full"));
        }
        state.writes += 1;
        match change {
            Change::Set(record) => state.records.insert(record.ip, record.clone()),
            Change::Remove(ip) => state.records.remove(&ip),
        };
        Ok(())
    }
}

/// What a client got.
#[derive(Clone, Debug)]
struct Reply {
    port: PortId,
    destination_mac: MacAddr,
    destination: Ipv4Addr,
    packet_len: usize,
    message: Message,
}

impl Reply {
    fn kind(&self) -> MessageType {
        self.message.opts().msg_type().expect("a message of DHCP")
    }

    fn ip(&self) -> Ipv4Addr {
        self.message.yiaddr()
    }

    fn option(&self, code: OptionCode) -> Option<&DhcpOption> {
        self.message.opts().get(code)
    }

    fn secs(&self, code: OptionCode) -> Option<u32> {
        match self.option(code)? {
            DhcpOption::AddressLeaseTime(s) | DhcpOption::Renewal(s) | DhcpOption::Rebinding(s) => Some(*s),
            other => panic!("{other:?} is no time"),
        }
    }
}

/// What a client sends, besides what its kind needs.
#[derive(Clone, Debug)]
struct Ask {
    kind: MessageType,
    mac: MacAddr,
    source_mac: MacAddr,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ciaddr: Ipv4Addr,
    giaddr: Ipv4Addr,
    broadcast: bool,
    options: Vec<DhcpOption>,
}

impl Ask {
    fn new(kind: MessageType, mac: MacAddr) -> Self {
        Self {
            kind,
            mac,
            source_mac: mac,
            source: NONE,
            destination: Ipv4Addr::BROADCAST,
            ciaddr: NONE,
            giaddr: NONE,
            broadcast: false,
            options: Vec::new(),
        }
    }

    fn discover(n: u32) -> Self {
        Self::new(MessageType::Discover, mac(n))
    }

    /// A client that selects the address that this server offered.
    fn select(n: u32, ip: Ipv4Addr) -> Self {
        let ask = Self::new(MessageType::Request, mac(n));
        ask.with(DhcpOption::RequestedIpAddress(ip)).with(DhcpOption::ServerIdentifier(SERVER))
    }

    fn reboot(n: u32, ip: Ipv4Addr) -> Self {
        Self::new(MessageType::Request, mac(n)).with(DhcpOption::RequestedIpAddress(ip))
    }

    fn renew(n: u32, ip: Ipv4Addr) -> Self {
        let ask = Self::new(MessageType::Request, mac(n));
        Self { ciaddr: ip, source: ip, destination: SERVER, ..ask }
    }

    fn rebind(n: u32, ip: Ipv4Addr) -> Self {
        Self { destination: Ipv4Addr::BROADCAST, ..Self::renew(n, ip) }
    }

    fn release(n: u32, ip: Ipv4Addr) -> Self {
        let ask = Self { ciaddr: ip, destination: SERVER, ..Self::new(MessageType::Release, mac(n)) };
        ask.with(DhcpOption::ServerIdentifier(SERVER))
    }

    fn decline(n: u32, ip: Ipv4Addr) -> Self {
        let ask = Self::new(MessageType::Decline, mac(n));
        ask.with(DhcpOption::RequestedIpAddress(ip)).with(DhcpOption::ServerIdentifier(SERVER))
    }

    fn inform(n: u32, ip: Ipv4Addr) -> Self {
        Self { ciaddr: ip, source: ip, ..Self::new(MessageType::Inform, mac(n)) }
    }

    fn with(mut self, option: DhcpOption) -> Self {
        self.options.push(option);
        self
    }

    fn id(self, id: &[u8]) -> Self {
        self.with(DhcpOption::ClientIdentifier(id.to_vec()))
    }

    fn hostname(self, name: &str) -> Self {
        self.with(DhcpOption::Hostname(name.to_owned()))
    }

    fn wants(self, codes: &[u8]) -> Self {
        self.with(DhcpOption::ParameterRequestList(codes.iter().map(|&c| c.into()).collect()))
    }

    fn frame(&self) -> Vec<u8> {
        let mut message =
            Message::new_with_id(0x1234_5678, self.ciaddr, NONE, NONE, self.giaddr, &self.mac.0);
        if self.broadcast {
            message.set_flags(Flags::default().set_broadcast());
        }
        message.opts_mut().insert(DhcpOption::MessageType(self.kind));
        for option in &self.options {
            message.opts_mut().insert(option.clone());
        }
        frame(self, &message.to_vec().unwrap())
    }
}

/// A frame around a payload, from where `ask` says to where it says.
fn frame(ask: &Ask, payload: &[u8]) -> Vec<u8> {
    let to = if ask.destination == SERVER { ROUTER_MAC } else { MacAddr::BROADCAST };
    let builder = PacketBuilder::ethernet2(ask.source_mac.0, to.0)
        .ipv4(ask.source.octets(), ask.destination.octets(), 64)
        .udp(68, 67);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

struct Rig {
    server: Server,
    store: TestStore,
    ports: Vec<PortId>,
    now: Instant,
    unix: u64,
    out: Outbox,
    /// Addresses that somebody answers probes for: the port and the Ethernet address that it is seen with.
    squatters: BTreeMap<Ipv4Addr, (usize, MacAddr)>,
    probes: Vec<Ipv4Addr>,
}

impl Rig {
    fn new(config: Config) -> Self {
        let mut registry = Registry::<PortId>::new(1000);
        let ports = (0..300).map(|_| registry.mint().unwrap()).collect();
        let (store, now) = (TestStore::default(), Instant::from_secs(10));
        let server = Server::new(config, Box::new(store.clone()), now, UNIX).unwrap();
        let (out, squatters, probes) = (Outbox::default(), BTreeMap::new(), Vec::new());
        Self { server, store, ports, now, unix: UNIX, out, squatters, probes }
    }

    /// A server that probes nothing, so that it answers at once.
    fn prompt(last: u8) -> Self {
        Self::new(Config { probe: None, ..config(last) })
    }

    /// Another server with the same store, `away` later.
    fn restart(&mut self, away: Duration) {
        let config = self.server.config().clone();
        self.now = Instant::from_secs(1);
        self.unix += away.as_secs();
        self.server = Server::new(config, Box::new(self.store.clone()), self.now, self.unix).unwrap();
    }

    fn send(&mut self, port: usize, ask: &Ask) -> Vec<Reply> {
        self.send_frame(port, &ask.frame())
    }

    fn send_frame(&mut self, port: usize, frame: &[u8]) -> Vec<Reply> {
        let handled = self.server.receive(self.now, self.unix, self.ports[port], frame, &mut self.out);
        assert_eq!(handled, Handled::Yes);
        self.replies()
    }

    /// The one answer.
    fn ask(&mut self, port: usize, ask: &Ask) -> Reply {
        let mut replies = self.send(port, ask);
        assert_eq!(replies.len(), 1, "{ask:?}: {replies:?}");
        replies.remove(0)
    }

    fn is_silent(&mut self, port: usize, ask: &Ask) {
        let replies = self.send(port, ask);
        assert!(replies.is_empty(), "{ask:?}: {replies:?}");
    }

    /// DISCOVER and REQUEST; the acknowledged address.
    fn acquire(&mut self, port: usize, n: u32) -> Ipv4Addr {
        let offer = self.ask(port, &Ask::discover(n));
        assert_eq!(offer.kind(), MessageType::Offer);
        let ack = self.ask(port, &Ask::select(n, offer.ip()));
        assert_eq!((ack.kind(), ack.ip()), (MessageType::Ack, offer.ip()));
        ack.ip()
    }

    /// What was sent. Probes are answered by those who squat.
    fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some(Outgoing { to, frame }) = self.out.pop() {
            let ethernet = etherparse::Ethernet2Slice::from_slice_without_fcs(&frame).unwrap();
            if ethernet.ether_type() == etherparse::EtherType::ARP {
                assert_eq!(to, None, "a probe goes to all");
                let ip = Ipv4Addr::from(<[u8; 4]>::try_from(&frame[38..42]).unwrap());
                assert_eq!(&frame[28..32], [0; 4], "a probe claims nothing");
                self.probes.push(ip);
                if let Some(&(port, mac)) = self.squatters.get(&ip) {
                    self.server.arp_seen(self.now, self.ports[port], ip, mac, &mut self.out);
                }
                continue;
            }
            let headers = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = headers.net else { panic!("IPv4") };
            let Some(etherparse::TransportSlice::Udp(udp)) = headers.transport else { panic!("UDP") };
            let expected =
                udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
            assert_eq!(udp.checksum(), expected);
            assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
            assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
            assert_eq!((ip.header().source_addr(), ethernet.source()), (SERVER, ROUTER_MAC.0));
            let message = Message::decode(&mut Decoder::new(udp.payload())).unwrap();
            assert!(udp.payload().len() >= 300, "no shorter than BOOTP");
            replies.push(Reply {
                port: to.expect("an answer goes to the port that asked"),
                destination_mac: MacAddr(ethernet.destination()),
                destination: ip.header().destination_addr(),
                packet_len: frame.len() - 14,
                message,
            });
        }
        self.server.assert_consistent();
        replies
    }

    /// Time passes; everything that is due on the way is done when it is.
    fn pass(&mut self, time: Duration) -> Vec<Reply> {
        let end = self.now + time;
        let start = self.now;
        let mut replies = Vec::new();
        for _ in 0..100_000 {
            match self.server.poll_at().filter(|&at| at <= end) {
                Some(at) => {
                    self.now = at.max(self.now);
                    self.server.poll(self.now, &mut self.out);
                    replies.extend(self.replies());
                }
                None => {
                    self.now = end;
                    self.unix += end.since(start).as_secs();
                    return replies;
                }
            }
        }
        panic!("the server never has enough of being polled");
    }

    fn events(&mut self) -> Vec<LeaseEvent> {
        std::iter::from_fn(|| self.server.next_event()).collect()
    }

    fn names(&self) -> Vec<Option<String>> {
        self.server.leases(self.now).into_iter().map(|l| l.hostname).collect()
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
