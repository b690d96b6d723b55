//! The service against tables of questions, a virtual clock, and a naive model.

mod forwarding;
mod local;
mod random;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use switch_core::ids::Registry;
use switch_core::{Instant, MacAddr, PortId};

use super::*;

/// Ports 0, 1, 2 …
fn ports(count: u16) -> Vec<PortId> {
    let mut registry = Registry::new(count);
    (0..count).map(|_| registry.mint().expect("a port")).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn secs(secs: u64) -> Instant {
    Instant::from_secs(secs)
}

/// A guest of 192.168.122.0/24 behind a port.
fn client(port: PortId, host: u8) -> Client {
    let address = SocketAddr::from(([192, 168, 122, host], 4000));
    Client { port, address, transport: Transport::Udp }
}

fn zone() -> Zone {
    let nets = ["192.168.122.0/24", "198.51.99.64/26", "2001:41d0:1:2::/64"];
    let nets = nets.map(|net| net.parse().expect("a network")).to_vec();
    let mut zone = Zone::new(Some("Lan.Example"), vec![ip("192.168.122.1"), ip("2001:41d0:1:2::1")], nets)
        .expect("a zone");
    zone.add_host("nas", &[ip("192.168.122.10"), ip("2001:41d0:1:2::10")]).expect("a name");
    zone.add_host("git.example.org", &[ip("192.168.122.11")]).expect("a name");
    zone.add_host("db.prod.lan.example.", &[ip("192.168.122.12")]).expect("a name");
    zone.add_host("out", &[ip("9.9.9.9")]).expect("a name");
    zone.add_lease(&lease(1, "web", "192.168.122.100"));
    zone.add_lease(&lease(1, "web", "2001:41d0:1:2::100"));
    zone
}

fn lease(owner: u8, hostname: &str, address: &str) -> Lease {
    Lease { owner: MacAddr([2, 0, 0, 0, 0, owner]), hostname: hostname.into(), address: ip(address) }
}

fn settings() -> Settings {
    Settings { forwarding: true, clients: Vec::new(), limits: Limits::default() }
}

fn dns() -> Dns {
    Dns::new(settings(), zone())
}

/// A query of RD set and no EDNS.
fn query(id: u16, text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message")
}

/// All that is to be done now.
fn actions(dns: &mut Dns) -> Vec<Action> {
    std::iter::from_fn(|| dns.pop()).collect()
}

/// The one answer that there is, read.
fn answer(dns: &mut Dns) -> Message {
    match actions(dns).as_slice() {
        [Action::Answer { message, .. }] => Message::from_vec(message).expect("an answer can be read"),
        other => panic!("one answer expected: {other:?}"),
    }
}

/// The one question that is asked outside.
fn asked(dns: &mut Dns) -> (QueryId, Message) {
    match actions(dns).as_slice() {
        [Action::Ask { id, message }] => (*id, Message::from_vec(message).expect("a question can be read")),
        other => panic!("one question expected: {other:?}"),
    }
}

/// Asks by port 0 and takes the answer.
fn ask(dns: &mut Dns, now: Instant, text: &str, kind: RecordType) -> Message {
    dns.receive(now, client(ports(1)[0], 50), &bytes(&query(7, text, kind)));
    answer(dns)
}

/// An answer of the outside to a question.
fn outside(
    question: &Message,
    code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
) -> Vec<u8> {
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.queries.clone_from(&question.queries);
    message.answers = answers;
    message.authorities = authorities;
    bytes(&message)
}

fn a(owner: &str, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(address.into())))
}

fn soa(owner: &str, ttl: u32, minimum: u32) -> Record {
    Record::from_rdata(
        name(owner),
        ttl,
        RData::SOA(SOA::new(name("ns."), name("root."), 1, 2, 3, 4, minimum)),
    )
}
