use std::collections::HashMap;
use std::str::FromStr;

use dhcproto::v6::{DhcpOptions, IAAddr, IANA, IAPD, IATA, ORO, StatusCode};
use dhcproto::{Decodable, Encodable};
use etherparse::PacketBuilder;
use hickory_proto::rr::Name;
use proptest::prelude::*;
use switch_core::MacAddr;
use switch_core::ids::Registry;

use super::*;

mod hostile;

const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
const SERVER_DUID: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 0xfe];
const MAC: MacAddr = MacAddr([0, 0x16, 0x3e, 1, 2, 3]);

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn at(s: u64) -> Instant {
    Instant::from_secs(s)
}

fn router() -> Ipv6Addr {
    ip("fe80::1")
}

fn own() -> Ipv6Addr {
    ip("fd00::203")
}

fn config() -> Dhcp6Config {
    let mut config = Dhcp6Config::new(ROUTER_MAC, router());
    config.others = vec![ip("fd00::1")];
    config.prefixes = vec!["fd00::/64".parse().unwrap()];
    config.dns = vec![router()];
    config.search = ["lab.example.", "sub.lab.example."].map(|n| Name::from_str(n).unwrap()).to_vec();
    config
}

fn ports() -> [PortId; 3] {
    let mut registry = Registry::new(3);
    std::array::from_fn(|_| registry.mint().unwrap())
}

/// A server with one reservation, for `MAC` at the first port.
fn server() -> Dhcp6Server {
    let mut server = Dhcp6Server::new(config()).unwrap();
    server.set_reservations(vec![reserved(Client::Mac(MAC), Some(ports()[0]), own())]).unwrap();
    server
}

fn reserved(client: Client, port: Option<PortId>, address: Ipv6Addr) -> Reservation {
    Reservation { client, port, address }
}

fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// A client's message and how it travels.
#[derive(Clone, Debug)]
struct Send {
    mac: MacAddr,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    message: Message,
    /// Bytes behind the message's own.
    more: Vec<u8>,
}

impl Send {
    fn new(kind: MessageType, options: impl IntoIterator<Item = DhcpOption>) -> Self {
        let mut message = Message::new_with_id(kind, [1, 2, 3]);
        message.set_opts(options.into_iter().collect());
        Self { mac: MAC, source: link_local(MAC), destination: ALL_SERVERS, message, more: Vec::new() }
    }

    fn from(mut self, mac: MacAddr) -> Self {
        (self.mac, self.source) = (mac, link_local(mac));
        self
    }

    fn to(mut self, destination: Ipv6Addr) -> Self {
        self.destination = destination;
        self
    }

    fn frame(&self) -> Vec<u8> {
        let payload = [self.message.to_vec().unwrap(), self.more.clone()].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.mac.0, [0x33, 0x33, 0, 1, 0, 2])
            .ipv6(self.source.octets(), self.destination.octets(), 1)
            .udp(546, 547)
            .write(&mut frame, &payload)
            .unwrap();
        frame
    }
}

fn llt(mac: MacAddr) -> DhcpOption {
    DhcpOption::ClientId([&[0, 1, 0, 1, 0x2c, 0xa9, 0x3f, 0x79], &mac.0[..]].concat())
}

fn uuid() -> DhcpOption {
    DhcpOption::ClientId([&[0, 4], &[7; 16][..]].concat())
}

fn this_server() -> DhcpOption {
    DhcpOption::ServerId(SERVER_DUID.to_vec())
}

fn na(id: u32, addresses: &[Ipv6Addr]) -> DhcpOption {
    let address = |&addr| {
        DhcpOption::IAAddr(IAAddr { addr, preferred_life: 0, valid_life: 0, opts: DhcpOptions::new() })
    };
    DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts: addresses.iter().map(address).collect() })
}

fn pd(id: u32) -> DhcpOption {
    DhcpOption::IAPD(IAPD { id, t1: 0, t2: 0, opts: DhcpOptions::new() })
}

fn ta(id: u32) -> DhcpOption {
    DhcpOption::IATA(IATA { id, opts: DhcpOptions::new() })
}

/// A reply, checked as a receiver does: it goes to who asked, and names server and transaction.
fn read(frame: &[u8], sent: &Send) -> Message {
    let packet = Received::read(frame).unwrap();
    assert!(frame.len() <= 14 + 1280);
    assert_eq!(frame[..6], sent.mac.0);
    assert_eq!((packet.mac, packet.source, packet.destination), (ROUTER_MAC, router(), sent.source));
    assert_eq!(packet.udp_port(), Some(546));
    let message = Message::from_bytes(packet.checked_udp().unwrap()).unwrap();
    assert_eq!(message.xid(), sent.message.xid());
    assert_eq!(message::server_id(&message), Some(&SERVER_DUID[..]));
    assert_eq!(message::client_id(&message), message::client_id(&sent.message));
    message
}

/// What the server answers, out of the port that asked.
fn ask(server: &mut Dhcp6Server, now: u64, port: PortId, send: &Send) -> Option<Message> {
    let mut out = Outbox::default();
    assert_eq!(server.receive(at(now), port, &send.frame(), &mut out), Handled::Yes);
    let answer = out.pop()?;
    assert_eq!(answer.to, Some(port));
    assert!(out.is_empty());
    Some(read(&answer.frame, send))
}

/// Of an association: its id, its addresses with preferred and valid lifetimes, its status.
type Told = (u32, Vec<(Ipv6Addr, u32, u32)>, Option<Status>);

fn status_of(opts: &DhcpOptions) -> Option<Status> {
    match opts.get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(StatusCode { status, .. })) => Some(*status),
        _ => None,
    }
}

fn told(message: &Message) -> Vec<Told> {
    let one = |id: u32, opts: &DhcpOptions| {
        let addresses = opts.iter().filter_map(|o| match o {
            DhcpOption::IAAddr(a) => Some((a.addr, a.preferred_life, a.valid_life)),
            _ => None,
        });
        (id, addresses.collect(), status_of(opts))
    };
    let associations = message.opts().iter().filter_map(|option| match option {
        DhcpOption::IANA(ia) => Some(one(ia.id, &ia.opts)),
        DhcpOption::IATA(ia) => Some(one(ia.id, &ia.opts)),
        DhcpOption::IAPD(ia) => Some(one(ia.id, &ia.opts)),
        _ => None,
    });
    associations.collect()
}

fn given(id: u32) -> Told {
    (id, vec![(own(), 3600, 7200)], None)
}

fn not(id: u32, status: Status) -> Told {
    (id, vec![], Some(status))
}

#[test]
fn a_reserved_client_gets_its_address_in_four_messages() {
    let (mut server, port) = (server(), ports()[0]);
    let advertise =
        ask(&mut server, 1, port, &Send::new(MessageType::Solicit, [llt(MAC), na(5, &[])])).unwrap();
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    assert_eq!(told(&advertise), [given(5)]);
    assert_eq!(advertise.opts().get(OptionCode::Preference), Some(&DhcpOption::Preference(255)));
    assert!(server.bindings(at(1)).is_empty(), "an offer is no lease");

    let request = Send::new(MessageType::Request, [llt(MAC), this_server(), na(5, &[own()])]);
    let reply = ask(&mut server, 2, port, &request).unwrap();
    assert_eq!((reply.msg_type(), told(&reply)), (MessageType::Reply, vec![given(5)]));
    let Some(DhcpOption::IANA(ia)) = reply.opts().get(OptionCode::IANA) else { panic!("{reply}") };
    assert_eq!((ia.t1, ia.t2), (1800, 2880));
    let binding = Binding { mac: MAC, ip: own(), port: Some(port), expires: at(7202) };
    assert_eq!(server.bindings(at(3)), [binding]);

    let renew = Send::new(MessageType::Renew, [llt(MAC), this_server(), na(5, &[own()])]);
    assert_eq!(told(&ask(&mut server, 1802, port, &renew).unwrap()), [given(5)]);
    let rebind = Send::new(MessageType::Rebind, [llt(MAC), na(5, &[own()])]);
    assert_eq!(told(&ask(&mut server, 2882, port, &rebind).unwrap()), [given(5)]);
    assert_eq!(server.bindings(at(3000))[0].expires, at(2882 + 7200));
    assert!(server.bindings(at(2882 + 7200)).is_empty(), "it expires");

    let release = Send::new(MessageType::Release, [llt(MAC), this_server(), na(5, &[own()])]);
    let reply = ask(&mut server, 3001, port, &release).unwrap();
    assert_eq!((status_of(reply.opts()), told(&reply)), (Some(Status::Success), vec![]));
    assert!(server.bindings(at(3001)).is_empty());
}

#[test]
fn a_rapid_solicit_is_a_lease_at_once() {
    let (mut server, port) = (server(), ports()[0]);
    let solicit = Send::new(MessageType::Solicit, [llt(MAC), na(5, &[]), DhcpOption::RapidCommit]);
    let reply = ask(&mut server, 1, port, &solicit).unwrap();
    assert_eq!((reply.msg_type(), told(&reply)), (MessageType::Reply, vec![given(5)]));
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(server.bindings(at(1)).len(), 1);

    let stranger = solicit.from(MacAddr([2, 1, 1, 1, 1, 1]));
    let stranger = Send {
        message: Send::new(MessageType::Solicit, [uuid(), na(5, &[]), DhcpOption::RapidCommit]).message,
        ..stranger
    };
    let reply = ask(&mut server, 1, port, &stranger).unwrap();
    assert_eq!(reply.msg_type(), MessageType::Advertise, "there is nothing to commit to");
    assert_eq!(told(&reply), [not(5, Status::NoAddrsAvail)]);
    assert!(reply.opts().get(OptionCode::RapidCommit).is_none());
}

#[test]
fn an_address_is_given_to_whom_it_is_reserved_for() {
    let other = MacAddr([2, 1, 1, 1, 1, 1]);
    let [port, elsewhere, _] = ports();
    let solicit = |duid: DhcpOption| Send::new(MessageType::Solicit, [duid, na(5, &[])]);
    let privacy = Send { source: ip("fe80::a:b:c:d"), ..solicit(uuid()) };
    let DhcpOption::ClientId(uuid_bytes) = uuid() else { unreachable!() };
    let by_mac = |port| reserved(Client::Mac(MAC), port, own());
    let by_duid = |port| reserved(Client::Duid(uuid_bytes.clone()), port, own());
    // The reservation, who asks, whether the address is theirs.
    let cases = [
        ("by the frame's source", by_mac(Some(port)), privacy.clone(), port, true),
        ("by the link-local address", by_mac(None), Send { mac: other, ..solicit(uuid()) }, port, true),
        ("by DUID-LLT", by_mac(None), solicit(llt(MAC)).from(other), port, true),
        (
            "by DUID-LL",
            by_mac(None),
            solicit(DhcpOption::ClientId([&[0, 3, 0, 1], &MAC.0[..]].concat())).from(other),
            port,
            true,
        ),
        ("by an identifier", by_duid(None), solicit(uuid()).from(other), port, true),
        ("another identifier", by_duid(None), solicit(llt(MAC)), port, false),
        ("another MAC address", by_mac(None), solicit(llt(other)).from(other), port, false),
        ("at another port", by_mac(Some(port)), solicit(llt(MAC)), elsewhere, false),
        ("an identifier at another port", by_duid(Some(port)), solicit(uuid()), elsewhere, false),
        ("anywhere", by_mac(None), solicit(llt(MAC)), elsewhere, true),
    ];
    for (what, reservation, send, from, theirs) in cases {
        let mut server = Dhcp6Server::new(config()).unwrap();
        server.set_reservations(vec![reservation]).unwrap();
        let answer = ask(&mut server, 1, from, &send).unwrap();
        let expected = if theirs { given(5) } else { not(5, Status::NoAddrsAvail) };
        assert_eq!(told(&answer), [expected], "{what}");
        assert_eq!(answer.opts().get(OptionCode::Preference).is_some(), theirs, "{what}");
    }
}

#[test]
fn a_second_interface_does_not_get_the_firsts_address_by_their_common_identifier() {
    let (mut server, port) = (Dhcp6Server::new(config()).unwrap(), ports()[1]);
    server.set_reservations(vec![reserved(Client::Mac(MAC), None, own())]).unwrap();
    let request = Send::new(MessageType::Request, [llt(MAC), this_server(), na(5, &[])]);
    let second = request.clone().from(MacAddr([2, 1, 1, 1, 1, 1]));
    assert_eq!(told(&ask(&mut server, 1, port, &request).unwrap()), [given(5)]);
    assert_eq!(told(&ask(&mut server, 2, port, &second).unwrap()), [not(5, Status::NoAddrsAvail)]);
    assert_eq!(told(&ask(&mut server, 8000, port, &second).unwrap()), [given(5)], "the first is gone");
}

#[test]
fn associations_are_answered_one_by_one() {
    let (mut server, port) = (server(), ports()[0]);
    let foreign = ip("2001:db8::7");
    let sibling = ip("fd00::999");
    use MessageType as T;
    use Status as S;
    // What is asked, by whom, and what is told.
    let stranger = MacAddr([2, 1, 1, 1, 1, 1]);
    type Case = (&'static str, MessageType, Vec<DhcpOption>, MacAddr, Vec<Told>);
    let cases: [Case; 14] = [
        (
            "two associations",
            T::Solicit,
            vec![na(1, &[]), na(2, &[])],
            MAC,
            vec![given(1), not(2, S::NoAddrsAvail)],
        ),
        (
            "the one that has it",
            T::Solicit,
            vec![na(1, &[]), na(2, &[own()])],
            MAC,
            vec![not(1, S::NoAddrsAvail), given(2)],
        ),
        ("a hint", T::Solicit, vec![na(1, &[sibling])], MAC, vec![given(1)]),
        ("a hint from elsewhere", T::Solicit, vec![na(1, &[foreign])], MAC, vec![given(1)]),
        (
            "prefix and temporary",
            T::Solicit,
            vec![pd(1), ta(2)],
            MAC,
            vec![not(2, S::NoAddrsAvail), not(1, S::NoPrefixAvail)],
        ),
        (
            "prefix and temporary",
            T::Request,
            vec![pd(1), ta(2)],
            MAC,
            vec![not(2, S::NoAddrsAvail), not(1, S::NoPrefixAvail)],
        ),
        (
            "prefix and temporary",
            T::Renew,
            vec![pd(1), ta(2)],
            MAC,
            vec![not(2, S::NoBinding), not(1, S::NoBinding)],
        ),
        ("an address from elsewhere", T::Request, vec![na(1, &[foreign])], MAC, vec![not(1, S::NotOnLink)]),
        ("an address of the link", T::Request, vec![na(1, &[sibling])], MAC, vec![given(1)]),
        ("no reservation", T::Request, vec![na(1, &[sibling])], stranger, vec![not(1, S::NoAddrsAvail)]),
        ("no reservation", T::Renew, vec![na(1, &[sibling])], stranger, vec![not(1, S::NoBinding)]),
        (
            "no reservation",
            T::Rebind,
            vec![na(1, &[foreign])],
            stranger,
            vec![(1, vec![(foreign, 0, 0)], None)],
        ),
        (
            "one's own and another",
            T::Renew,
            vec![na(1, &[own(), foreign, sibling])],
            MAC,
            vec![(1, vec![(own(), 3600, 7200), (foreign, 0, 0), (sibling, 0, 0)], None)],
        ),
        (
            "a second association",
            T::Renew,
            vec![na(1, &[own()]), na(2, &[])],
            MAC,
            vec![given(1), not(2, S::NoAddrsAvail)],
        ),
    ];
    for (what, kind, associations, mac, expected) in cases {
        let server_id = matches!(kind, T::Request | T::Renew).then(this_server);
        let options = [llt(mac)].into_iter().chain(server_id).chain(associations);
        let send = Send::new(kind, options.collect::<Vec<_>>()).from(mac);
        let answer = ask(&mut server, 1000, port, &send).unwrap_or_else(|| panic!("{what}"));
        assert_eq!(told(&answer), expected, "{what}, {kind:?}");
        server.budget.forget(port);
    }
}

#[test]
fn a_client_gets_all_addresses_that_are_reserved_for_it() {
    let (mut server, port) = (Dhcp6Server::new(config()).unwrap(), ports()[0]);
    let addresses: Vec<Ipv6Addr> = (0..ADDRESSES_MAX).map(|n| ip(&format!("fd00::5:{n}"))).collect();
    let reservations = addresses.iter().map(|&a| reserved(Client::Mac(MAC), Some(port), a));
    server.set_reservations(reservations.collect()).unwrap();
    // With as much besides as a reply may have to carry.
    let over: Vec<Ipv6Addr> = (0..12).map(|n| ip(&format!("2001:db8::{n}"))).collect();
    let long = DhcpOption::ClientId(vec![4; 130]);
    let associations = (0..20).map(|id| if id == 0 { na(0, &over) } else { na(id, &[]) });
    let renew = Send::new(MessageType::Renew, [long, this_server()].into_iter().chain(associations));
    let answer = ask(&mut server, 1, port, &renew).unwrap();
    let told = told(&answer);
    assert_eq!(told.len(), 8, "what is above the bound is not answered");
    let got: Vec<Ipv6Addr> = told[0].1.iter().filter(|a| a.2 > 0).map(|a| a.0).collect();
    assert_eq!((got, told[0].1.len()), (addresses, ADDRESSES_MAX + OVER_MAX));
    assert_eq!(server.bindings(at(1)).len(), ADDRESSES_MAX);
}

#[test]
fn confirm_tells_whether_addresses_belong_here() {
    let (mut server, port) = (server(), ports()[0]);
    let mut confirm = |addresses: &[Ipv6Addr]| {
        let send = Send::new(MessageType::Confirm, [llt(MAC), na(1, addresses)]);
        let reply = ask(&mut server, 1, port, &send)?;
        assert!(told(&reply).is_empty());
        status_of(reply.opts())
    };
    assert_eq!(confirm(&[ip("fd00::77")]), Some(Status::Success));
    assert_eq!(confirm(&[ip("fd00::77"), ip("fd01::1")]), Some(Status::NotOnLink));
    assert_eq!(confirm(&[]), None, "there is nothing to say");
}

#[test]
fn a_declined_address_rests() {
    let (mut server, port) = (server(), ports()[0]);
    let request = Send::new(MessageType::Request, [llt(MAC), this_server(), na(5, &[own()])]);
    ask(&mut server, 1, port, &request).unwrap();
    let decline = Send::new(MessageType::Decline, [llt(MAC), this_server(), na(5, &[own()])]);
    let reply = ask(&mut server, 2, port, &decline).unwrap();
    assert_eq!((status_of(reply.opts()), told(&reply)), (Some(Status::Success), vec![]));
    assert_eq!(server.counters().declined, 1);
    assert!(server.bindings(at(2)).is_empty());
    assert_eq!(told(&ask(&mut server, 3, port, &request).unwrap()), [not(5, Status::NoAddrsAvail)]);
    // Saying the same things again changes nothing, and what is not there cannot be declined.
    assert_eq!(told(&ask(&mut server, 4, port, &decline).unwrap()), [not(5, Status::NoBinding)]);
    assert_eq!(told(&ask(&mut server, 603, port, &request).unwrap()), [given(5)]);
}

#[test]
fn nobody_gives_back_what_another_port_has_taken() {
    let [a, b, _] = ports();
    let mut server = Dhcp6Server::new(config()).unwrap();
    server.set_reservations(vec![reserved(Client::Mac(MAC), None, own())]).unwrap();
    let request = Send::new(MessageType::Request, [llt(MAC), this_server(), na(5, &[own()])]);
    ask(&mut server, 1, a, &request).unwrap();
    for kind in [MessageType::Release, MessageType::Decline] {
        let end = Send::new(kind, [llt(MAC), this_server(), na(5, &[own()])]);
        assert_eq!(told(&ask(&mut server, 2, b, &end).unwrap()), [not(5, Status::NoBinding)]);
        assert_eq!(server.bindings(at(2)).len(), 1);
    }
    server.port_removed(a);
    let release = Send::new(MessageType::Release, [llt(MAC), this_server(), na(5, &[own()])]);
    assert_eq!(told(&ask(&mut server, 3, b, &release).unwrap()), []);
    assert!(server.bindings(at(3)).is_empty());
}

#[test]
fn whoever_asks_is_told_of_name_servers() {
    let (mut server, port) = (server(), ports()[2]);
    let oro = |codes: &[OptionCode]| DhcpOption::ORO(ORO { opts: codes.to_vec() });
    let all =
        [OptionCode::DomainNameServers, OptionCode::DomainSearchList, OptionCode::InformationRefreshTime];
    let request = Send::new(MessageType::InformationRequest, [uuid(), oro(&all)]);
    let reply = ask(&mut server, 1, port, &request).unwrap();
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert_eq!(reply.opts().get(all[0]), Some(&DhcpOption::DomainNameServers(vec![router()])));
    let Some(DhcpOption::DomainSearchList(names)) = reply.opts().get(all[1]) else { panic!("{reply}") };
    assert_eq!(names.iter().map(Name::to_string).collect::<Vec<_>>(), ["lab.example.", "sub.lab.example."]);
    let refresh: u32 = 3600;
    let bytes = reply.to_vec().unwrap();
    let option = [&[0, 32, 0, 4][..], &refresh.to_be_bytes()].concat();
    assert!(bytes.windows(8).any(|w| w == option), "{reply}");

    let without_id = Send::new(MessageType::InformationRequest, [oro(&all[..1])]);
    let reply = ask(&mut server, 1, port, &without_id).unwrap();
    assert!(reply.opts().get(all[0]).is_some() && reply.opts().get(all[1]).is_none());
    assert_eq!(reply.opts().iter().count(), 2, "server and name servers: {reply}");

    // A client that gets no address still learns the rest.
    let solicit = Send::new(MessageType::Solicit, [uuid(), na(1, &[])]).from(MacAddr([2, 1, 1, 1, 1, 1]));
    let advertise = ask(&mut server, 1, port, &solicit).unwrap();
    assert!(advertise.opts().get(all[0]).is_some() && advertise.opts().get(all[1]).is_some());
}

#[test]
fn search_domains_are_not_compressed() {
    let (mut server, port) = (server(), ports()[2]);
    let mut out = Outbox::default();
    let send = Send::new(MessageType::InformationRequest, [uuid()]);
    server.receive(at(1), port, &send.frame(), &mut out);
    let frame = out.pop().unwrap().frame;
    let names = b"\x03lab\x07example\x00\x03sub\x03lab\x07example\x00";
    assert!(frame.windows(names.len()).any(|w| w == names));
}

#[test]
fn reservations_change_and_what_stays_is_remembered() {
    let [a, b, _] = ports();
    let mut server = server();
    let request = Send::new(MessageType::Request, [llt(MAC), this_server(), na(5, &[])]);
    ask(&mut server, 1, a, &request).unwrap();
    let second = MacAddr([2, 1, 1, 1, 1, 1]);
    let more = reserved(Client::Mac(second), None, ip("fd00::9"));
    server.set_reservations(vec![more.clone(), reserved(Client::Mac(MAC), None, own())]).unwrap();
    assert_eq!(server.bindings(at(2)).len(), 1);
    // An address that goes to another client is nobody's until that one takes it.
    server.set_reservations(vec![reserved(Client::Mac(second), None, own())]).unwrap();
    assert!(server.bindings(at(2)).is_empty());
    let renew = Send::new(MessageType::Renew, [llt(MAC), this_server(), na(5, &[own()])]);
    assert_eq!(told(&ask(&mut server, 3, a, &renew).unwrap()), [not(5, Status::NoBinding)]);

    use Dhcp6ConfigError as E;
    let mut refused = |reservations: Vec<Reservation>| server.set_reservations(reservations).unwrap_err();
    let mac = |address| reserved(Client::Mac(MAC), None, address);
    assert_eq!(refused(vec![more.clone(), mac(ip("fd00::9"))]), E::Twice(ip("fd00::9")));
    let at_port = |port| reserved(Client::Mac(MAC), Some(port), own());
    assert_eq!(refused(vec![at_port(a), at_port(b)]), E::Twice(own()));
    for address in ["ff02::1", "::", "::1", "fe80::5"] {
        assert_eq!(refused(vec![mac(ip(address))]), E::Reserved(ip(address)));
    }
    assert_eq!(refused(vec![reserved(Client::Duid(vec![1, 2]), None, own())]), E::Duid(2));
    let many = (0..=ADDRESSES_MAX).map(|n| mac(ip(&format!("fd00::{n:x}1")))).collect();
    assert_eq!(refused(many), E::TooMany("addresses for one client", ADDRESSES_MAX));
    // The port's word and the operator's are one reservation, at the port.
    server.set_reservations(vec![mac(own()), at_port(a)]).unwrap();
    assert_eq!(told(&ask(&mut server, 4, b, &request).unwrap()), [not(5, Status::NoAddrsAvail)]);
    assert_eq!(told(&ask(&mut server, 4, a, &request).unwrap()), [given(5)]);
}

#[test]
fn configurations_out_of_bounds_are_refused() {
    let refused = |change: &dyn Fn(&mut Dhcp6Config)| {
        let mut config = config();
        change(&mut config);
        Dhcp6Server::new(config).map(|_| ()).unwrap_err()
    };
    use Dhcp6ConfigError as E;
    let s = Duration::from_secs;
    assert_eq!(refused(&|c| c.address = own()), E::Address(own()));
    assert_eq!(refused(&|c| c.preferred = s(59)), E::Lifetimes(s(59), s(7200)));
    assert_eq!(refused(&|c| c.valid = s(3599)), E::Lifetimes(s(3600), s(3599)));
    assert_eq!(refused(&|c| c.refresh = s(599)), E::Refresh(s(599)));
    assert_eq!(refused(&|c| c.dns = vec![router(); 5]), E::TooMany("name servers", SERVERS_MAX));
    assert_eq!(refused(&|c| c.search = vec![Name::root()]), E::Search);
    let long = Name::from_str(&"long.".repeat(41)).unwrap();
    assert_eq!(
        refused(&|c| c.search = vec![long.clone()]),
        E::TooMany("bytes of search domains", SEARCH_LEN_MAX)
    );
}

#[derive(Clone, Debug)]
struct Step {
    gap: u64,
    port: usize,
    client: u8,
    kind: u8,
    address: u8,
}

proptest! {
    /// Against a plain model: a client holds what is reserved for it and nothing else, two never hold the same, and
    /// what is listed is what was given and neither returned nor over.
    #[test]
    fn addresses_are_held_as_a_plain_model_has_it(steps in prop::collection::vec(
        (0..4000_u64, 0..3_usize, 0..4_u8, 0..5_u8, 0..4_u8)
            .prop_map(|(gap, port, client, kind, address)| Step { gap, port, client, kind, address }),
        0..60,
    )) {
        let ports = ports();
        let mac = |client: u8| MacAddr([2, 0, 0, 0, 0, client]);
        let address = |n: u8| Ipv6Addr::from(own().to_bits() + u128::from(n));
        let mut server = Dhcp6Server::new(config()).unwrap();
        // Client 0 is bound to its port, 1 and 2 may be anywhere, 3 has nothing.
        let port_of = |client: u8| (client == 0).then_some(ports[0]);
        let all = (0..3).map(|c| reserved(Client::Mac(mac(c)), port_of(c), address(c)));
        server.set_reservations(all.collect()).unwrap();
        let mut held: HashMap<u8, (PortId, u64)> = HashMap::new();
        let mut declined: HashMap<u8, u64> = HashMap::new();
        let mut now = 10;
        for step in steps {
            now += step.gap;
            let port = ports[step.port];
            let named = [address(step.address)];
            let kind = [MessageType::Solicit, MessageType::Request, MessageType::Rebind, MessageType::Release, MessageType::Decline][usize::from(step.kind)];
            let id = (!matches!(kind, MessageType::Solicit | MessageType::Rebind)).then(this_server);
            let options = [llt(mac(step.client)), na(1, &named)].into_iter().chain(id);
            let send = Send::new(kind, options).from(mac(step.client));
            server.budget.forget(port);
            let answer = ask(&mut server, now, port, &send).expect("a sound message is answered");
            let got: Vec<Ipv6Addr> =
                told(&answer).iter().flat_map(|t| t.1.iter().filter(|a| a.2 > 0).map(|a| a.0)).collect();

            let is_known = step.client < 3 && port_of(step.client).is_none_or(|p| p == port);
            let rests = declined.get(&step.client).is_some_and(|&until| until > now);
            let is_own = is_known && !rests && step.address == step.client;
            match step.kind {
                0..=2 => {
                    let expected = if is_known && !rests { vec![address(step.client)] } else { vec![] };
                    prop_assert_eq!(got, expected);
                    if is_known && !rests && step.kind > 0 {
                        held.insert(step.client, (port, now + 7200));
                        declined.remove(&step.client);
                    }
                }
                _ => {
                    prop_assert!(got.is_empty());
                    let elsewhere = held.get(&step.client).is_some_and(|h| h.1 > now && h.0 != port);
                    prop_assert_eq!(told(&answer).is_empty(), is_own && !elsewhere);
                    if is_own && !elsewhere {
                        held.remove(&step.client);
                        if step.kind == 4 {
                            declined.insert(step.client, now + 600);
                        }
                    }
                }
            }
            let mut listed: Vec<_> =
                server.bindings(at(now)).into_iter().map(|b| (b.ip, b.mac, b.expires)).collect();
            listed.sort();
            let mut expected: Vec<_> = held
                .iter()
                .filter(|(_, h)| h.1 > now)
                .map(|(&client, h)| (address(client), mac(client), at(h.1)))
                .collect();
            expected.sort();
            prop_assert_eq!(listed, expected);
        }
    }
}
