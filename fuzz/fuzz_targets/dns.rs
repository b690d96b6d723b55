//! The gateway's name service: messages of guests, and what the outside's name servers answer.
//!
//! Input: steps, each of one byte of kind, two of length (little-endian) and as many bytes as are left of that. The
//! lowest two bits of the kind: 0 a datagram and 1 a message on a connection, from the port that the next two bits
//! name; 2 the outside's answer to the oldest question that it was asked; 3 time passes, a quarter of a second for
//! each of the length. With bit 7, an answer's bytes stand behind the question as a true answer would repeat it: the
//! second half of the flags, the counts, the records.
#![no_main]

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use modes::gateway::dns::{
    Action, Client, Dns, Lease, Limits, QueryId, Settings, TCP_MAX, Transport, UDP_MAX, Unanswered, Zone,
};
use switch_core::ids::{PortId, Registry};
use switch_core::{Instant, MacAddr};

const HEADER_LEN: usize = 12;

fn service() -> Dns {
    let net = "192.168.122.0/24".parse().expect("a network");
    let gateway = "192.168.122.1".parse().expect("an address");
    let mut zone = Zone::new(Some("lan"), vec![gateway], vec![net]).expect("a domain");
    zone.add_host("nas", &["192.168.122.2".parse().expect("an address")]).expect("a name");
    let address = "192.168.122.3".parse().expect("an address");
    assert!(zone.add_lease(&Lease { owner: MacAddr([2; 6]), hostname: "web".into(), address }));
    let limits = Limits { in_flight: 4, waiting: 8, asked: 2, cache_entries: 4, ..Limits::default() };
    Dns::new(Settings { forwarding: true, clients: Vec::new(), limits }, zone)
}

/// What is owed to guests, and what the outside is asked.
#[derive(Default)]
struct Books {
    /// How many queries of that client with that id were not answered yet.
    open: HashMap<(Client, [u8; 2]), usize>,
    asked: VecDeque<(QueryId, Vec<u8>)>,
}

impl Books {
    fn settle(&mut self, dns: &mut Dns) {
        while let Some(action) = dns.pop() {
            match action {
                Action::Ask { id, message } => {
                    assert!(message.len() > HEADER_LEN && message[2] == 0x01 && message[4..6] == [0, 1]);
                    self.asked.push_back((id, message));
                }
                Action::Answer { to, message } => {
                    assert!(message.len() >= HEADER_LEN && message[2] & 0x80 != 0);
                    let most = if to.transport == Transport::Udp { UDP_MAX } else { TCP_MAX };
                    assert!(message.len() <= most);
                    let open = self.open.get_mut(&(to, [message[0], message[1]])).expect("somebody asked");
                    *open = open.checked_sub(1).expect("one answer for one query");
                }
            }
        }
    }
}

/// An answer to a question: its id, flags, counts of records and the rest from the input.
fn dress(question: &[u8], bytes: &[u8]) -> Vec<u8> {
    let Some((&[flags, answers, authorities, additionals], records)) = bytes.split_first_chunk() else {
        return bytes.to_vec();
    };
    // The question ends before the OPT record of eleven bytes.
    let question = &question[..question.len() - 11];
    let mut message = question.to_vec();
    message[2] = 0x81;
    message[3] = flags;
    message[7] = answers;
    message[9] = authorities;
    message[11] = additionals;
    message.extend_from_slice(records);
    message
}

fuzz_target!(|data: &[u8]| {
    let mut registry = Registry::new(4);
    let ports: [PortId; 4] = std::array::from_fn(|_| registry.mint().expect("four ports"));
    let mut dns = service();
    let mut books = Books::default();
    let mut now = Instant::from_secs(1);
    let mut rest = data;
    while let Some((&[kind, low, high], left)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([low, high]));
        let (bytes, left) = left.split_at(len.min(left.len()));
        rest = left;
        match kind & 3 {
            transport @ (0 | 1) => {
                let port = usize::from(kind >> 2 & 3);
                let address = SocketAddr::from(([192, 168, 122, 10 + port as u8], 4000));
                let transport = if transport == 0 { Transport::Udp } else { Transport::Tcp(1) };
                let client = Client { port: ports[port], address, transport };
                if let Some(&id) = bytes.first_chunk() {
                    *books.open.entry((client, id)).or_default() += 1;
                }
                dns.receive(now, client, bytes);
            }
            2 => match books.asked.pop_front() {
                Some((id, _)) if bytes.is_empty() => dns.answered(now, id, Err(Unanswered)),
                Some((id, question)) if kind & 0x80 != 0 => {
                    dns.answered(now, id, Ok(dress(&question, bytes)))
                }
                Some((id, _)) => dns.answered(now, id, Ok(bytes.to_vec())),
                None => {}
            },
            _ => {
                now = now + Duration::from_millis(250) * len as u32;
                dns.poll(now);
            }
        }
        books.settle(&mut dns);
    }
    dns.poll(now + Duration::from_secs(3600));
    books.settle(&mut dns);
    dns.poll(now + Duration::from_secs(7200));
    books.settle(&mut dns);
    assert_eq!(dns.poll_at(), None);
});
