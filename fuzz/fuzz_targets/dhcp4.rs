//! A DHCPv4 server with guests at four ports that send whatever they like, an operator who reserves and deletes, a disk
//! that fails and a daemon that restarts.
//!
//! Input: a sequence of operations, each a byte whose value modulo 8 tells what it is, and its operands:
//! - 0 to 3: a message from a port: a byte for the port and the client, one for what is in it (see `message`), two for
//!   the last bytes of ciaddr and option 50, one for how many bytes of raw options follow, and these.
//! - 4: a payload for the server's UDP port: a byte for the port, one for the length, the bytes. 5: a frame, likewise.
//! - 6: time passes: two bytes, in units of 100 ms (little-endian).
//! - 7: two bytes, for what else can happen (see `happening`).
#![no_main]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dhcproto::v4::{Decodable, Decoder, DhcpOption, Message, MessageType, OptionCode};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;
use modes::gateway::Outbox;
use modes::gateway::dhcp4::{Config, LeaseEvent, Owner, Reservation, Server};
use modes::gateway::leases::{Change, LeaseStore, Record, StoreError};
use switch_core::ids::Registry;
use switch_core::{Instant, MacAddr, PortId};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 1]);
/// A few addresses, so that they run out.
const RANGE: std::ops::RangeInclusive<u8> = 10..=17;
const MTU: u16 = 1400;

#[derive(Default)]
struct Disk {
    records: BTreeMap<Ipv4Addr, Record>,
    fails: bool,
}

#[derive(Clone, Default)]
struct Store(Arc<Mutex<Disk>>);

impl LeaseStore for Store {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        Ok(self.0.lock().expect("one thread").records.values().cloned().collect())
    }

    fn write(&mut self, change: Change<'_>) -> Result<(), StoreError> {
        let mut disk = self.0.lock().expect("one thread");
        if disk.fails {
            return Err(StoreError::Record("the disk is full"));
        }
        match change {
            Change::Set(record) => disk.records.insert(record.ip, record.clone()),
            Change::Remove(ip) => disk.records.remove(&ip),
        };
        Ok(())
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(bytes)
    }
}

fn host(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

/// Who was told that it has an address: the client by its identifier, and the port, and until when.
type Holder = (Vec<u8>, Option<PortId>, u64);

struct Rig {
    server: Server,
    store: Store,
    ports: [PortId; 4],
    now: Instant,
    unix: u64,
    held: BTreeMap<Ipv4Addr, Holder>,
    reserved: BTreeMap<Ipv4Addr, Owner>,
}

fn config() -> Config {
    let subnet = "192.0.2.0/24".parse().expect("a subnet");
    Config {
        mtu: MTU,
        lease_secs: 600,
        dns: vec![SERVER],
        domain: Some("example".to_owned()),
        routes: vec![("10.0.0.0/8".parse().expect("a network"), host(2))],
        boot_file: Some("boot".to_owned()),
        next_server: Some(host(3)),
        ..Config::new(SERVER, ROUTER, subnet, host(*RANGE.start())..=host(*RANGE.end()))
    }
}

impl Rig {
    fn new() -> Self {
        let mut registry = Registry::new(4);
        let ports = [(); 4].map(|()| registry.mint().expect("four ports"));
        let (store, now, unix) = (Store::default(), Instant::from_secs(5), 1_800_000_000);
        let server = Server::new(config(), Box::new(store.clone()), now, unix).expect("a server");
        Self { server, store, ports, now, unix, held: BTreeMap::new(), reserved: BTreeMap::new() }
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        let mut out = Outbox::default();
        let mut from = None;
        match input.byte()? % 8 {
            0..=3 => {
                let who = input.byte()?;
                let frame = message(who, input)?;
                from = Some(self.send(who, &frame, &mut out));
            }
            4 => {
                let who = input.byte()?;
                let frame = around(mac(who >> 2), Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, input.bytes()?);
                from = Some(self.send(who, &frame, &mut out));
            }
            5 => {
                let who = input.byte()?;
                from = Some(self.send(who, input.bytes()?, &mut out));
            }
            6 => {
                let time = u64::from(u16::from_le_bytes([input.byte()?, input.byte()?])) * 100;
                let before = self.now.as_nanos() / 1_000_000_000;
                self.now = self.now + Duration::from_millis(time);
                self.unix += self.now.as_nanos() / 1_000_000_000 - before;
                self.server.poll(self.now, &mut out);
                assert!(self.server.poll_at().is_none_or(|at| at > self.now), "all that was due is done");
            }
            _ => self.happening(input.byte()?, input.byte()?, &mut out),
        }
        self.server.assert_consistent();
        assert_eq!(out.lost, 0);
        while let Some(sent) = out.pop() {
            self.check(from, sent.to, &sent.frame);
        }
        // What was given back is nobody's: then the store says that it ended.
        let disk = self.store.0.lock().expect("one thread");
        let unix = self.unix;
        self.held.retain(|ip, _| disk.records.get(ip).is_some_and(|r| r.expires_unix > unix));
        while let Some(event) = self.server.next_event() {
            if let LeaseEvent::Assigned { ip, .. } = event {
                assert!(disk.records.contains_key(&ip), "what is told is durable");
            }
        }
        Some(())
    }

    fn send(&mut self, who: u8, frame: &[u8], out: &mut Outbox) -> PortId {
        let port = self.ports[usize::from(who & 3)];
        self.server.receive(self.now, self.unix, port, frame, out);
        port
    }

    fn happening(&mut self, what: u8, operand: u8, out: &mut Outbox) {
        let port = self.ports[usize::from(operand & 3)];
        let ip = host(operand % 24);
        let client = mac(operand >> 2);
        match what % 8 {
            0 => self.server.arp_seen(self.now, port, ip, client, out),
            1 | 2 => {
                let owner = match what >> 3 & 3 {
                    0 => Owner::Port(port),
                    1 => Owner::PortMac(port, client),
                    _ => Owner::Mac(client),
                };
                let hostname = (what & 0x80 != 0).then(|| format!("host{}", what & 0x70));
                if self.server.reserve(Reservation { owner, ip, hostname }).is_ok() {
                    self.reserved.retain(|_, o| *o != owner);
                    self.reserved.insert(ip, owner);
                }
            }
            3 => {
                if let Some(owner) = self.reserved.remove(&ip) {
                    assert!(self.server.unreserve(owner));
                }
            }
            4 => {
                self.server.port_removed(port);
                self.reserved
                    .retain(|_, o| !matches!(o, Owner::Port(p) | Owner::PortMac(p, _) if *p == port));
                self.held.values_mut().filter(|h| h.1 == Some(port)).for_each(|h| h.1 = None);
            }
            5 => drop(self.server.del(ip)),
            6 => self.store.0.lock().expect("one thread").fails = operand & 1 == 1,
            _ => {
                self.unix += u64::from(operand);
                self.now = Instant::from_secs(1);
                self.server = Server::new(config(), Box::new(self.store.clone()), self.now, self.unix)
                    .expect("what was written is read");
                self.reserved.clear();
                self.held.values_mut().for_each(|h| h.1 = None);
            }
        }
    }

    /// A frame that the server sent, while a message from `from` was handled or time passed.
    fn check(&mut self, from: Option<PortId>, to: Option<PortId>, frame: &[u8]) {
        assert!(frame.len() <= 14 + usize::from(MTU));
        let packet = SlicedPacket::from_ethernet(frame).expect("a frame");
        let Some(NetSlice::Ipv4(ip)) = packet.net else {
            assert_eq!((to, &frame[12..14]), (None, &[8, 6][..]), "a probe");
            return;
        };
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
        let checksum = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
        assert_eq!(checksum.ok(), Some(udp.checksum()));
        let message = Message::decode(&mut Decoder::new(udp.payload())).expect("a message");
        let port = to.expect("an answer goes to one port");
        let address = message.yiaddr();
        let kind = message.opts().msg_type();
        if kind != Some(MessageType::Offer) {
            assert_eq!(from, to, "an answer goes to the port that asked");
        }
        if matches!(kind, Some(MessageType::Nak)) || address.is_unspecified() {
            return;
        }
        let owner = self.reserved.get(&address);
        match owner {
            Some(Owner::Port(p) | Owner::PortMac(p, _)) => assert_eq!(*p, port, "{address} is reserved"),
            Some(Owner::Mac(m)) => assert_eq!(m.0, message.chaddr(), "{address} is reserved"),
            None => assert!(RANGE.contains(&address.octets()[3]), "{address} is out of the range"),
        }
        let Some(DhcpOption::AddressLeaseTime(secs)) = message.opts().get(OptionCode::AddressLeaseTime)
        else {
            panic!("an address without a time");
        };
        if kind != Some(MessageType::Ack) {
            return;
        }
        let client = match message.opts().get(OptionCode::ClientIdentifier) {
            Some(DhcpOption::ClientIdentifier(id)) if id.len() >= 2 => id.clone(),
            _ => [&[1], message.chaddr()].concat(),
        };
        if let Some((holder, at, until)) = self.held.get(&address) {
            let here = at.is_none_or(|at| at == port);
            assert!(
                (*holder == client || owner.is_some()) && here || *until <= self.unix,
                "{address} is given twice"
            );
        }
        let until = self.unix + u64::from(*secs);
        let disk = self.store.0.lock().expect("one thread");
        let record = disk.records.get(&address).expect("an acknowledged lease is durable");
        assert_eq!(record.client.as_bytes(), client);
        assert!(record.expires_unix + 1 >= until);
        self.held.insert(address, (client, Some(port), until));
    }
}

/// A message. The port is in the lowest bits of `who`, the client above. The first byte of the input: bits 0 to 2 are its
/// type, the next say that it has a ciaddr, option 50, option 54, the broadcast flag, and that it goes to the server's
/// address.
fn message(who: u8, input: &mut Input<'_>) -> Option<Vec<u8>> {
    let what = input.byte()?;
    let (ciaddr, requested) = (host(input.byte()?), host(input.byte()?));
    let options = input.bytes()?;
    let has = |bit: u8| what >> bit & 1 == 1;
    let mut bytes = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, if has(6) { 0x80 } else { 0 }, 0];
    let ciaddr = if has(3) { ciaddr } else { Ipv4Addr::UNSPECIFIED };
    bytes.extend(ciaddr.octets());
    bytes.resize(28, 0);
    let client = mac(who >> 2);
    bytes.extend(client.0);
    bytes.resize(236, 0);
    bytes.extend([99, 130, 83, 99, 53, 1, what & 7]);
    if has(4) {
        bytes.extend([50, 4]);
        bytes.extend(requested.octets());
    }
    if has(5) {
        bytes.extend([54, 4]);
        bytes.extend(SERVER.octets());
    }
    bytes.extend(options);
    bytes.push(255);
    let destination = if has(7) { SERVER } else { Ipv4Addr::BROADCAST };
    Some(around(client, ciaddr, destination, &bytes))
}

fn around(from: MacAddr, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.0, MacAddr::BROADCAST.0)
        .ipv4(source.octets(), destination.octets(), 64)
        .udp(68, 67);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a short payload");
    frame
}

fuzz_target!(|data: &[u8]| {
    let mut rig = Rig::new();
    let mut input = Input(data);
    for _ in 0..200 {
        if rig.step(&mut input).is_none() {
            break;
        }
    }
});
