//! Random clients against a naive model, and random bytes.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Send { port: usize, client: u32, kind: u8, ip: u8, id: bool },
    Arp { port: usize, ip: u8, client: u32 },
    Reserve { client: u32, port: Option<usize>, ip: u8 },
    Unreserve { client: u32 },
    Pass { millis: u64 },
    Restart { secs: u64 },
    PortGone { port: usize },
    Disk { fails: bool },
    Delete { ip: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let (port, client, ip) = (0..4_usize, 0..8_u32, 8..20_u8);
    let send = (port.clone(), client.clone(), 0..8_u8, ip.clone(), any::<bool>());
    prop_oneof![
        20 => send.prop_map(|(port, client, kind, ip, id)| Step::Send { port, client, kind, ip, id }),
        2 => (port.clone(), ip.clone(), client.clone()).prop_map(|(port, ip, client)| Step::Arp { port, ip, client }),
        1 => (client.clone(), proptest::option::of(port.clone()), ip.clone())
            .prop_map(|(client, port, ip)| Step::Reserve { client, port, ip }),
        1 => client.prop_map(|client| Step::Unreserve { client }),
        6 => prop_oneof![0..700_u64, 0..4_000_000_u64].prop_map(|millis| Step::Pass { millis }),
        1 => (0..5000_u64).prop_map(|secs| Step::Restart { secs }),
        1 => port.prop_map(|port| Step::PortGone { port }),
        1 => any::<bool>().prop_map(|fails| Step::Disk { fails }),
        1 => ip.prop_map(|ip| Step::Delete { ip }),
    ]
}

/// What the clients were told: who has each address, at which port, and until when, on the wall clock.
#[derive(Default)]
struct Model {
    held: BTreeMap<Ipv4Addr, (ClientKey, Option<usize>, u64)>,
    reserved: BTreeMap<Ipv4Addr, Owner>,
}

impl Model {
    fn acked(&mut self, rig: &Rig, reply: &Reply, client: &ClientKey, mac: MacAddr, port: usize) {
        let ip = reply.ip();
        let until = rig.unix + u64::from(reply.secs(OptionCode::AddressLeaseTime).unwrap());
        if let Some((holder, at, end)) = self.held.get(&ip) {
            let own = holder == client && at.is_none_or(|at| at == port);
            let owner = self.reserved.contains_key(&ip) && at.is_none_or(|at| at == port);
            assert!(own || *end <= rig.unix || owner, "{ip} is {holder:?}'s at {at:?} until {end}");
        }
        match self.reserved.get(&ip) {
            Some(Owner::Mac(m)) => assert_eq!(*m, mac, "{ip} is reserved"),
            Some(Owner::PortMac(p, m)) => assert_eq!((*p, *m), (rig.ports[port], mac), "{ip} is reserved"),
            Some(Owner::Port(p)) => assert_eq!(*p, rig.ports[port], "{ip} is reserved"),
            None => assert!((10..=16).contains(&ip.octets()[3]), "{ip} is out of the range"),
        }
        let record = rig.store.record(ip).expect("an acknowledged lease is durable");
        assert_eq!((&record.client, record.mac), (client, mac));
        // A second that began counts as one.
        assert!(record.expires_unix + 1 >= until, "the record ends before what the client was told");
        self.held.insert(ip, (client.clone(), Some(port), until));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_two_clients(steps in proptest::collection::vec(step(), 1..120)) {
        let mut rig = Rig::new(config(16));
        let mut model = Model::default();
        let mut fails = false;
        for step in steps {
            let mut sent = None;
            let replies = match step {
                Step::Send { port, client, kind, ip, id } => {
                    let ip = host(ip);
                    let ask = match kind {
                        0 => Ask::discover(client),
                        1 => Ask::discover(client).with(DhcpOption::RequestedIpAddress(ip)),
                        2 => Ask::select(client, ip),
                        3 => Ask::reboot(client, ip),
                        4 => Ask::renew(client, ip),
                        5 => Ask::rebind(client, ip),
                        6 => Ask::release(client, ip),
                        _ => Ask::decline(client, ip),
                    };
                    let ask = if id { ask.id(b"shared by all") } else { ask.hostname("the same") };
                    let key = if id { ClientKey::identifier(b"shared by all") } else { None };
                    let key = key.unwrap_or(ClientKey::ethernet(mac(client)));
                    let leases = rig.server.leases(rig.now);
                    let replies = rig.send(port, &ask);
                    if kind >= 6 && !fails && rig.server.leases(rig.now).len() < leases.len() {
                        model.held.remove(&ip);
                    }
                    sent = Some((port, key, mac(client)));
                    replies
                }
                Step::Arp { port, ip, client } => {
                    let (now, from) = (rig.now, rig.ports[port]);
                    rig.server.arp_seen(now, from, host(ip), mac(client), &mut rig.out);
                    rig.replies()
                }
                Step::Reserve { client, port, ip } => {
                    let owner = match port {
                        Some(port) => Owner::PortMac(rig.ports[port], mac(client)),
                        None => Owner::Mac(mac(client)),
                    };
                    let taken = model.reserved.get(&host(ip)).is_some_and(|o| *o != owner);
                    let result = rig.server.reserve(Reservation { owner, ip: host(ip), hostname: None });
                    prop_assert_eq!(result.is_ok(), !taken);
                    if result.is_ok() {
                        model.reserved.retain(|_, o| *o != owner);
                        model.reserved.insert(host(ip), owner);
                    }
                    rig.replies()
                }
                Step::Unreserve { client } => {
                    let owner = Owner::Mac(mac(client));
                    let had = model.reserved.values().any(|o| *o == owner);
                    prop_assert_eq!(rig.server.unreserve(owner), had);
                    model.reserved.retain(|_, o| *o != owner);
                    rig.replies()
                }
                Step::Pass { millis } => {
                    rig.unix += millis % 1000 / 999;
                    rig.pass(Duration::from_millis(millis))
                }
                Step::Restart { secs } => {
                    rig.restart(Duration::from_secs(secs));
                    model.reserved.clear();
                    model.held.values_mut().for_each(|(_, at, _)| *at = None);
                    rig.replies()
                }
                Step::PortGone { port } => {
                    let id = rig.ports[port];
                    rig.server.port_removed(id);
                    model.reserved.retain(|_, o| !matches!(o, Owner::PortMac(p, _) if *p == id));
                    model.held.values_mut().filter(|h| h.1 == Some(port)).for_each(|h| h.1 = None);
                    rig.replies()
                }
                Step::Disk { fails: f } => {
                    fails = f;
                    rig.store.fail(f);
                    rig.replies()
                }
                Step::Delete { ip } => {
                    if let Ok(true) = rig.server.del(host(ip)) {
                        model.held.remove(&host(ip));
                    }
                    rig.replies()
                }
            };
            for reply in replies {
                match reply.kind() {
                    MessageType::Ack => {
                        let (port, client, mac) = sent.clone().expect("an ACK answers a message");
                        prop_assert_eq!(reply.port, rig.ports[port]);
                        prop_assert!(!fails || rig.store.record(reply.ip()).is_some());
                        model.acked(&rig, &reply, &client, mac, port);
                    }
                    MessageType::Offer => {
                        let last = reply.ip().octets()[3];
                        prop_assert!((10..=16).contains(&last) || model.reserved.contains_key(&reply.ip()));
                    }
                    MessageType::Nak => prop_assert_eq!(reply.ip(), NONE),
                    other => panic!("{other:?} is not a server's"),
                }
            }
        }
    }

    #[test]
    fn random_bytes_do_nothing_bad(
        payload in proptest::collection::vec(any::<u8>(), 0..600),
        options in proptest::collection::vec(any::<u8>(), 0..400),
        raw in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut rig = Rig::new(config(16));
        let from = rig.ports[0];
        rig.server.receive(rig.now, rig.unix, from, &raw, &mut rig.out);
        rig.send_frame(0, &frame(&Ask::discover(1), &payload));
        // A sound header with any options, and with options behind a sound type.
        let header = Message::new_with_id(1, NONE, NONE, NONE, NONE, &mac(1).0).to_vec().unwrap();
        for kind in [&[][..], &[53, 1, 1], &[53, 1, 3], &[53, 1, 4], &[53, 1, 7], &[53, 1, 8]] {
            let message = [&header, kind, &options].concat();
            rig.send_frame(0, &frame(&Ask::discover(1), &message));
        }
        rig.pass(Duration::from_secs(100));
    }
}
