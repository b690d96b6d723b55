//! What neighbours say in, questions and frames out, with a virtual clock.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use switch_core::ids::{MacAddr, PortId, Registry};
use switch_core::ip::arp::{Arp, Operation};
use switch_core::ip::nd::{self, Message, Neighbor};
use switch_core::ip::{Cause, Packet, Transport};
use switch_core::time::Instant;

use super::neighbors::UNUSED;
use super::*;
use crate::gateway::Outbox;

const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, n])
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

fn ports() -> Vec<PortId> {
    let mut registry = Registry::<PortId>::new(512);
    (0..512).map(|_| registry.mint().expect("512 ports")).collect()
}

fn at(ms: u64) -> Instant {
    Instant::from_secs(100) + Duration::from_millis(ms)
}

/// A resolver on one shared link, with the clock.
struct Rig {
    resolver: Resolver,
    neighbors: Arc<Neighbors>,
    ports: Vec<PortId>,
    out: Outbox,
    failed: Vec<Waiting>,
}

const LINK: Link = Link::Shared(0);

impl Rig {
    fn new(limits: Limits) -> Self {
        let neighbors = Arc::new(Neighbors::new(limits));
        let resolver = Resolver::new(Arc::clone(&neighbors));
        Self { resolver, neighbors, ports: ports(), out: Outbox::default(), failed: Vec::new() }
    }

    fn ask(&self, address: &str) -> Ask {
        let source = if address.contains(':') { "fe80::1" } else { "10.0.0.1" };
        let ports = vec![self.ports[1], self.ports[2]];
        Ask { link: LINK, address: ip(address), ports, mac: ROUTER, source: Some(ip(source)) }
    }

    fn send(&mut self, now: Instant, address: &str, from: usize, tag: u8) -> Sent {
        let mut frame = vec![0; 60];
        frame[59] = tag;
        let waiting = Waiting { frame, from: self.ports[from], sender: mac(9) };
        self.resolver.send(now, &self.ask(address), waiting, &mut self.out)
    }

    fn observe(&mut self, now: Instant, from: usize, heard: Heard) -> Option<Learned> {
        self.resolver.observe(now, LINK, self.ports[from], &heard, |_| true, &mut self.out)
    }

    fn poll(&mut self, now: Instant) {
        let asker = |_: Link, address: IpAddr| {
            (ROUTER, Some(ip(if address.is_ipv6() { "fe80::1" } else { "10.0.0.1" })))
        };
        self.resolver.poll(now, &asker, &mut self.out, &mut self.failed);
    }

    /// What was sent, by the number of the port.
    fn sent(&mut self) -> Vec<(usize, Vec<u8>)> {
        std::iter::from_fn(|| self.out.pop())
            .map(|o| (self.ports.iter().position(|p| Some(*p) == o.to).expect("a port"), o.frame))
            .collect()
    }

    fn where_is(&self, address: &str) -> Option<(MacAddr, usize)> {
        let station = self.neighbors.peek(LINK, ip(address))?;
        Some((station.mac, self.ports.iter().position(|p| *p == station.port)?))
    }
}

/// `sender` at `mac(n)` asks for or answers to the router.
fn arp(operation: Operation, n: u8, sender: &str) -> Heard {
    let IpAddr::V4(sender) = ip(sender) else { panic!("IPv4") };
    let target = "10.0.0.1".parse().expect("an address");
    Heard::Arp(Arp { operation, sender_mac: mac(n), sender, target_mac: ROUTER, target })
}

fn advertisement(n: u8, target: &str, solicited: bool, overrides: bool) -> Heard {
    Heard::Nd(Neighbor {
        source: v6(target),
        destination: v6("fe80::1"),
        target: v6(target),
        link: Some(mac(n)),
        message: Message::Advertisement { router: false, solicited, overrides },
    })
}

#[test]
fn a_frame_waits_for_the_answer() {
    let mut rig = Rig::new(Limits::default());
    for tag in 0..5 {
        assert_eq!(rig.send(at(0), "10.0.0.5", 3, tag), Sent::Later);
    }
    let asked = rig.sent();
    assert_eq!(
        asked.iter().map(|(port, _)| *port).collect::<Vec<_>>(),
        [1, 2],
        "one question, by both ports"
    );
    let question = Arp::of_frame(&asked[0].1).expect("ARP");
    assert_eq!((question.operation, IpAddr::V4(question.target)), (Operation::Request, ip("10.0.0.5")));
    assert_eq!((question.sender_mac, IpAddr::V4(question.sender)), (ROUTER, ip("10.0.0.1")));
    assert_eq!(asked[0].1[..6], MacAddr::BROADCAST.0);

    assert_eq!(rig.observe(at(10), 2, arp(Operation::Reply, 5, "10.0.0.5")), Some(Learned::New));
    let sent = rig.sent();
    assert_eq!(sent.iter().map(|(port, f)| (*port, f[59])).collect::<Vec<_>>(), [(2, 2), (2, 3), (2, 4)]);
    assert!(sent.iter().all(|(_, f)| f[..6] == mac(5).0));
    assert_eq!(rig.send(at(20), "10.0.0.5", 3, 9), Sent::Now);
    assert_eq!(rig.sent().len(), 1);
    assert_eq!(rig.resolver.pending(), 0);

    // The same for IPv6.
    assert_eq!(rig.send(at(0), "2001:db8::5", 3, 7), Sent::Later);
    let asked = rig.sent();
    let question = Neighbor::of_frame(&asked[0].1).expect("ND");
    assert_eq!((question.target, question.link), (v6("2001:db8::5"), Some(ROUTER)));
    assert_eq!(asked[0].1[..6], nd::group_mac(nd::solicited_node(v6("2001:db8::5"))).0);
    assert_eq!(rig.observe(at(10), 1, advertisement(6, "2001:db8::5", true, false)), Some(Learned::New));
    assert_eq!(rig.sent().len(), 1);
}

#[test]
fn three_questions_without_an_answer_give_the_frames_back() {
    let mut rig = Rig::new(Limits::default());
    rig.send(at(0), "10.0.0.5", 3, 1);
    rig.send(at(500), "10.0.0.5", 4, 2);
    let mut asked = vec![rig.sent().len()];
    while let Some(due) = rig.resolver.poll_at() {
        rig.poll(due);
        asked.push(rig.sent().len());
        assert!(asked.len() < 10);
    }
    assert_eq!(asked, [2, 2, 2, 0], "by both ports, three times");
    assert_eq!(
        rig.failed.iter().map(|w| (w.from, w.frame[59])).collect::<Vec<_>>(),
        [(rig.ports[3], 1), (rig.ports[4], 2)]
    );
    assert_eq!((rig.resolver.pending(), rig.where_is("10.0.0.5")), (0, None));
    assert_eq!(rig.send(at(9000), "10.0.0.5", 3, 1), Sent::Later, "asked for afresh");
}

#[test]
fn one_port_cannot_use_up_the_questions() {
    let mut rig = Rig::new(Limits::default());
    let mut refused = 0;
    for i in 0..1000_u16 {
        let [a, b] = i.to_be_bytes();
        if rig.send(at(0), &format!("10.1.{a}.{b}"), 3, 0) == Sent::No {
            refused += 1;
        }
        rig.sent();
    }
    assert_eq!(refused, 1000 - 128);
    assert_eq!(rig.send(at(0), "10.0.0.5", 4, 0), Sent::Later, "another port can");
    rig.resolver.port_removed(rig.ports[3]);
    assert_eq!(rig.resolver.pending(), 1);
    rig.poll(at(5000));
    rig.poll(at(10_000));
    rig.poll(at(15_000));
    assert_eq!((rig.resolver.pending(), rig.failed.len()), (0, 1));
    assert_eq!(rig.send(at(20_000), "10.0.0.6", 3, 0), Sent::Later, "nothing counts any more");
}

#[test]
fn what_is_said_is_believed_by_the_rules() {
    use Operation::{Reply, Request};
    let mut rig = Rig::new(Limits::default());
    assert_eq!(rig.observe(at(0), 1, arp(Reply, 5, "10.0.0.5")), None, "nobody asked");
    assert_eq!(rig.observe(at(0), 1, advertisement(5, "2001:db8::5", true, true)), None, "nobody asked");
    let announcement = Heard::Arp(Arp::announcement(mac(5), "10.0.0.5".parse().expect("an address")));
    assert_eq!(rig.observe(at(0), 1, announcement), None, "nobody asked");
    let probe = Heard::Arp(Arp::request(
        mac(5),
        "0.0.0.0".parse().expect("zero"),
        "10.0.0.5".parse().expect("an address"),
    ));
    assert_eq!(rig.observe(at(0), 1, probe), None, "a probe says nothing about its sender");
    let detection = Heard::Nd(Neighbor::solicitation(mac(5), Ipv6Addr::UNSPECIFIED, v6("2001:db8::5")));
    assert_eq!(rig.observe(at(0), 1, detection), None);
    assert!(rig.neighbors.is_empty());

    assert_eq!(rig.observe(at(0), 1, arp(Request, 5, "10.0.0.5")), Some(Learned::New), "who asks is known");
    assert_eq!(rig.observe(at(0), 1, arp(Request, 5, "10.0.0.5")), Some(Learned::Confirmed));
    let (later, at_last) = (at(30_000), at(60_000));
    assert_eq!(rig.observe(later, 2, arp(Reply, 6, "10.0.0.5")), Some(Learned::Moved));
    assert_eq!(rig.where_is("10.0.0.5"), Some((mac(6), 2)));
    assert_eq!(rig.observe(at_last, 1, announcement), Some(Learned::Moved));
    let elsewhere = arp(Request, 7, "10.0.0.7");
    let learned = rig.resolver.observe(at(0), LINK, rig.ports[1], &elsewhere, |_| false, &mut rig.out);
    assert_eq!((learned, rig.where_is("10.0.0.7")), (None, None), "the address does not live there");

    let ask = Heard::Nd(Neighbor::solicitation(mac(5), v6("2001:db8::5"), v6("fe80::1")));
    assert_eq!(rig.observe(at(0), 1, ask), Some(Learned::New));
    assert_eq!(rig.observe(at(0), 1, advertisement(6, "2001:db8::5", false, false)), None, "no override");
    assert_eq!(rig.where_is("2001:db8::5"), Some((mac(5), 1)));
    assert_eq!(rig.observe(at(0), 1, advertisement(6, "2001:db8::5", false, true)), Some(Learned::Moved));

    let station = Station { mac: mac(1), port: rig.ports[1] };
    rig.neighbors.configure(LINK, ip("10.0.0.5"), station);
    assert_eq!(rig.observe(at(0), 2, arp(Reply, 6, "10.0.0.5")), Some(Learned::Refused));
    assert_eq!(rig.observe(at(0), 2, arp(Request, 6, "10.0.0.5")), Some(Learned::Refused));
    assert_eq!(rig.where_is("10.0.0.5"), Some((mac(1), 1)));
    assert!(rig.neighbors.forget(LINK, ip("10.0.0.5")) && !rig.neighbors.forget(LINK, ip("10.0.0.5")));
}

/// What one station says of another's address is not believed while that one is there.
#[test]
fn who_has_an_address_is_asked_before_it_moves() {
    use Operation::{Reply, Request};
    let mut rig = Rig::new(Limits::default());
    assert_eq!(rig.observe(at(0), 1, arp(Request, 5, "10.0.0.5")), Some(Learned::New));
    rig.sent();
    for said in [arp(Reply, 6, "10.0.0.5"), arp(Request, 6, "10.0.0.5")] {
        assert_eq!(rig.observe(at(100), 2, said), Some(Learned::Contested));
    }
    assert!(rig.resolver.poll_at().is_some_and(|due| due <= at(100)));
    rig.poll(at(100));
    let asked = rig.sent();
    assert_eq!(asked.len(), 1, "once, however often it is said");
    assert_eq!((asked[0].0, &asked[0].1[..6]), (1, &mac(5).0[..]), "who has it, directly");
    // It is there: all stays.
    rig.observe(at(200), 1, arp(Reply, 5, "10.0.0.5"));
    for secs in 1..=4 {
        rig.poll(at(100 + secs * 1000));
    }
    assert_eq!((rig.sent(), rig.where_is("10.0.0.5")), (Vec::new(), Some((mac(5), 1))));
    // It is there no more: the next one that says so has it.
    assert_eq!(rig.observe(at(5000), 2, arp(Reply, 6, "10.0.0.5")), Some(Learned::Contested));
    for secs in 0..=3 {
        rig.poll(at(5000 + secs * 1000));
    }
    assert_eq!((rig.sent().len(), rig.where_is("10.0.0.5")), (3, None));
    assert_eq!(rig.observe(at(8000), 2, arp(Request, 6, "10.0.0.5")), Some(Learned::New));
    // A station that is elsewhere itself has moved.
    assert_eq!(rig.observe(at(8100), 3, arp(Request, 6, "10.0.0.5")), Some(Learned::Moved));
    assert_eq!(rig.where_is("10.0.0.5"), Some((mac(6), 3)));
}

#[test]
fn a_guest_that_invents_addresses_does_not_make_workers_forget() {
    let mut rig = Rig::new(Limits { total: 40, each: 20 });
    for n in 1..=20 {
        rig.observe(at(0), 2, arp(Operation::Request, n, &format!("10.0.2.{n}")));
    }
    let epoch = rig.neighbors.epoch();
    for n in 21..=255 {
        rig.observe(at(u64::from(n)), 2, arp(Operation::Request, n, &format!("10.0.2.{n}")));
    }
    assert_eq!((rig.neighbors.len(), rig.neighbors.epoch()), (20, epoch));
}

#[test]
fn traffic_shows_whether_an_address_is_behind_its_port() {
    let mut rig = Rig::new(Limits::default());
    let mut cache = Cache::new(Arc::clone(&rig.neighbors));
    let address = ip("10.0.0.5");
    let station = |rig: &Rig, n: u8, port: usize| Station { mac: mac(n), port: rig.ports[port] };
    cache.begin(at(0));
    assert!(cache.confirm(LINK, address, station(&rig, 6, 2)), "nobody is known to have it");
    rig.observe(at(0), 1, arp(Operation::Request, 5, "10.0.0.5"));
    for _ in 0..2 {
        assert!(cache.confirm(LINK, address, station(&rig, 5, 1)));
        assert!(cache.confirm(LINK, address, station(&rig, 7, 1)), "its port's own affair");
        assert!(!cache.confirm(LINK, address, station(&rig, 5, 2)));
    }
}

#[test]
fn stale_neighbours_in_use_are_asked_and_then_forgotten() {
    let mut rig = Rig::new(Limits::default());
    rig.observe(at(0), 1, arp(Operation::Request, 5, "10.0.0.5"));
    rig.observe(at(0), 1, arp(Operation::Request, 6, "10.0.0.6"));
    rig.observe(at(0), 1, arp(Operation::Request, 7, "10.0.0.7"));
    let mut questions = Vec::new();
    // Both .5 and .6 are in use, .6 sends too, .7 is not used; only .5 is ever asked.
    for ms in (0..60_000).step_by(500) {
        let now = at(ms);
        rig.neighbors.get(now, LINK, ip("10.0.0.5"));
        rig.neighbors.get(now, LINK, ip("10.0.0.6"));
        rig.neighbors.confirm(now, LINK, ip("10.0.0.6"), Station { mac: mac(6), port: rig.ports[1] });
        if rig.resolver.poll_at().is_some_and(|due| due <= now) {
            rig.poll(now);
        }
        for (port, frame) in rig.sent() {
            let arp = Arp::of_frame(&frame).expect("ARP");
            assert_eq!((port, &frame[..6]), (1, &mac(5).0[..]), "asked directly");
            questions.push((ms, IpAddr::V4(arp.target)));
        }
    }
    assert_eq!(questions.len(), 3);
    assert!(questions.iter().all(|(ms, target)| *target == ip("10.0.0.5") && (30_000..40_000).contains(ms)));
    assert_eq!(rig.where_is("10.0.0.5"), None, "no answer");
    assert!(rig.where_is("10.0.0.6").is_some() && rig.where_is("10.0.0.7").is_some());
    // An answer keeps the entry; it never stopped being used.
    rig.observe(at(60_000), 1, arp(Operation::Request, 5, "10.0.0.5"));
    let mut answered = 0;
    for ms in (60_000..120_000).step_by(500) {
        assert!(rig.neighbors.get(at(ms), LINK, ip("10.0.0.5")).is_some());
        rig.poll(at(ms));
        if rig.sent().iter().any(|(_, f)| f[..6] == mac(5).0) {
            answered += 1;
            rig.observe(at(ms), 1, arp(Operation::Reply, 5, "10.0.0.5"));
        }
    }
    assert_eq!(answered, 1);
    // Unused entries go in the end.
    let end = at(120_000) + UNUSED;
    rig.poll(end);
    assert!(rig.neighbors.is_empty());
    assert_eq!(rig.resolver.poll_at(), None, "nothing is due");
}

/// As Linux answers a question that was sent to it alone.
#[test]
fn a_direct_answer_without_a_mac_address_keeps_a_neighbour() {
    let mut rig = Rig::new(Limits::default());
    let bare = |target: &str, solicited: bool| {
        let Heard::Nd(said) = advertisement(5, target, solicited, true) else { panic!("ND") };
        Heard::Nd(Neighbor { link: None, ..said })
    };
    assert_eq!(rig.observe(at(0), 1, bare("fd00::5", true)), None, "nobody knows where it is");
    rig.observe(at(0), 1, advertisement(5, "fd00::5", true, true));
    rig.send(at(0), "fd00::5", 3, 0);
    rig.observe(at(0), 1, advertisement(5, "fd00::5", true, true));
    rig.sent();
    let mut questions = 0;
    for ms in (500..60_000).step_by(500) {
        assert!(rig.neighbors.get(at(ms), LINK, ip("fd00::5")).is_some(), "forgotten after {ms} ms");
        rig.poll(at(ms));
        for _ in rig.sent() {
            questions += 1;
            assert_eq!(rig.observe(at(ms), 1, bare("fd00::5", false)), None, "nobody asked for this");
            assert_eq!(rig.observe(at(ms), 2, bare("fd00::5", true)), None, "it is not there");
            assert_eq!(rig.observe(at(ms), 1, bare("fd00::5", true)), Some(Learned::Confirmed));
        }
    }
    assert_eq!(questions, 1, "an answer is enough");
    assert_eq!(rig.where_is("fd00::5"), Some((mac(5), 1)));
}

#[test]
fn a_port_that_invents_addresses_loses_its_own() {
    let mut rig = Rig::new(Limits { total: 40, each: 20 });
    for n in 1..=10 {
        rig.observe(at(0), 1, arp(Operation::Request, n, &format!("10.0.1.{n}")));
    }
    for n in 1..=255 {
        rig.observe(at(u64::from(n)), 2, arp(Operation::Request, n, &format!("10.0.2.{n}")));
    }
    assert_eq!(rig.neighbors.len(), 30);
    assert!((1..=10).all(|n| rig.where_is(&format!("10.0.1.{n}")).is_some()), "the neighbour's entries stay");
    assert_eq!(rig.where_is("10.0.2.235"), None, "the oldest go");
    assert!(rig.where_is("10.0.2.236").is_some());
    // Two more ports fill the table: the largest gives.
    for (port, net) in [(3, 3), (4, 4)] {
        for n in 1..=15 {
            rig.observe(at(300), port, arp(Operation::Request, n, &format!("10.0.{net}.{n}")));
        }
    }
    assert_eq!(rig.neighbors.len(), 40);
    assert!((1..=10).all(|n| rig.where_is(&format!("10.0.1.{n}")).is_some()));
    rig.resolver.port_removed(rig.ports[1]);
    assert_eq!((rig.neighbors.len(), rig.where_is("10.0.1.1")), (30, None));
}

#[test]
fn a_cache_sees_every_completed_change_by_its_next_burst() {
    let rig = Rig::new(Limits::default());
    let mut cache = Cache::new(Arc::clone(&rig.neighbors));
    let (one, two) =
        (Station { mac: mac(1), port: rig.ports[1] }, Station { mac: mac(2), port: rig.ports[2] });
    let address = ip("10.0.0.5");
    cache.begin(at(0));
    assert_eq!(cache.get(LINK, address), None);
    rig.neighbors.learn(at(0), LINK, address, one, true);
    assert_eq!(cache.get(LINK, address), Some(one), "an unknown neighbour is not cached");
    assert_eq!(cache.get(Link::Shared(1), address), None, "another link");
    rig.neighbors.learn(at(1), LINK, address, two, true);
    cache.begin(at(1));
    assert_eq!(cache.get(LINK, address), Some(two));
    rig.neighbors.forget(LINK, address);
    cache.begin(at(2));
    assert_eq!(cache.get(LINK, address), None);
    // Use is noted once a second, traffic too.
    rig.neighbors.learn(at(0), LINK, address, one, true);
    for ms in (0..40_000).step_by(100) {
        cache.begin(at(ms));
        cache.get(LINK, address);
    }
    assert_eq!(rig.neighbors.stale(at(40_000)).len(), 1, "stale, and in use");
    cache.begin(at(41_000));
    cache.confirm(LINK, address, two);
    assert_eq!(rig.neighbors.stale(at(41_000)).len(), 1, "another station's traffic");
    cache.confirm(LINK, address, one);
    assert_eq!(rig.neighbors.stale(at(41_000)).len(), 0);
}

#[test]
fn workers_read_while_the_table_changes() {
    let rig = Rig::new(Limits { total: 64, each: 32 });
    let stations: Vec<Station> =
        (1..5).map(|n| Station { mac: mac(n), port: rig.ports[usize::from(n)] }).collect();
    let address = |n: u32| IpAddr::from([10, 0, 0, (n % 100) as u8]);
    std::thread::scope(|scope| {
        for worker in 0..3_u32 {
            let (neighbors, stations) = (Arc::clone(&rig.neighbors), &stations);
            scope.spawn(move || {
                let mut cache = Cache::new(neighbors);
                for n in 0..20_000 {
                    cache.begin(at(n.into()));
                    if let Some(found) = cache.get(LINK, address(n * (worker + 1))) {
                        assert!(stations.contains(&found));
                        cache.confirm(LINK, address(n), found);
                    }
                }
            });
        }
        for n in 0..20_000_u32 {
            let station = stations[(n / 3) as usize % 4];
            rig.neighbors.learn(at(n.into()), LINK, address(n), station, true);
            match n % 500 {
                0 => rig.neighbors.forget_port(station.port),
                1 => drop(rig.neighbors.stale(at(40_000 + u64::from(n)))),
                _ => {}
            }
        }
    });
    assert!(rig.neighbors.len() <= 64);
    let mut cache = Cache::new(Arc::clone(&rig.neighbors));
    cache.begin(at(0));
    for n in 0..100 {
        assert_eq!(cache.get(LINK, address(n)), rig.neighbors.peek(LINK, address(n)));
    }
    stations.iter().for_each(|station| rig.neighbors.forget_port(station.port));
    assert!(rig.neighbors.is_empty() && !rig.neighbors.ages());
}

#[test]
fn errors_are_sent_back_and_limited() {
    let ports = ports();
    let udp = |six: bool| {
        let mut frame = Vec::new();
        let packet = etherparse::PacketBuilder::ethernet2(mac(5).0, ROUTER.0);
        if six {
            packet.ipv6([0xfd; 16], [0x20; 16], 1).udp(1, 2).write(&mut frame, &[1; 30]).expect("a frame");
        } else {
            packet
                .ipv4([10, 0, 0, 5], [192, 0, 2, 1], 1)
                .udp(1, 2)
                .write(&mut frame, &[1; 30])
                .expect("a frame");
        }
        frame
    };
    // (own addresses, of IPv6, the error's source)
    let table = [
        (vec![], false, DUMMY_V4.into()),
        (vec![], true, IpAddr::V6(link_local(ROUTER))),
        (vec![ip("10.0.0.1"), ip("fd00::1"), ip("10.0.0.2")], false, ip("10.0.0.1")),
        (vec![ip("10.0.0.1"), ip("fd00::1")], true, ip("fd00::1")),
    ];
    for (own, six, source) in table {
        let (mut errors, mut out) = (Errors::new(ROUTER, &own), Outbox::default());
        assert!(errors.send(at(0), ports[7], &udp(six), Cause::TimeExceeded, &mut out));
        let sent = out.pop().expect("an error");
        assert_eq!((sent.to, &sent.frame[..6]), (Some(ports[7]), &mac(5).0[..]));
        let packet = Packet::of_frame(&sent.frame).expect("sound");
        assert_eq!(packet.source(), source);
        assert!(matches!(packet.transport(), Transport::Icmp { kind: 11 | 3, code: 0, .. }));
        assert!(!errors.send(at(0), ports[7], &sent.frame, Cause::TimeExceeded, &mut out), "about an error");
        let more = (0..100)
            .filter(|_| errors.send(at(0), ports[7], &udp(six), Cause::TimeExceeded, &mut out))
            .count();
        assert_eq!((more, errors.sent, errors.suppressed()), (9, 10, 91));
        assert!(errors.send(at(0), ports[8], &udp(six), Cause::TimeExceeded, &mut out), "another port");
    }
}

#[test]
fn a_mac_address_makes_a_link_local_one() {
    assert_eq!(link_local(MacAddr([0, 0x16, 0x3e, 1, 2, 3])), v6("fe80::216:3eff:fe01:203"));
}
