//! Many clients, and some that want everything.

use super::*;

/// A range of 250 addresses, 250 clients at once: one each, and none for the one too many.
#[test]
fn a_full_network() {
    let all =
        Config { probe: None, server: host(251), router: None, range: host(1)..=host(250), ..config(20) };
    let mut rig = Rig::new(all);
    // Some addresses of the rig's constants differ here: the server is .251.
    let select = |n, ip| Ask::reboot(n, ip).with(DhcpOption::ServerIdentifier(host(251)));
    let server_frames = |rig: &mut Rig, port: usize, a: &Ask| {
        let from = rig.ports[port];
        rig.server.receive(rig.now, rig.unix, from, &a.frame(), &mut rig.out);
        let sent = rig.out.pop()?;
        assert_eq!(sent.to, Some(from));
        let message = Message::decode(&mut Decoder::new(&sent.frame[42..])).unwrap();
        Some((message.opts().msg_type().unwrap(), message.yiaddr()))
    };
    let mut given = std::collections::BTreeSet::new();
    let offers: Vec<_> =
        (0..250).map(|n| server_frames(&mut rig, n as usize, &Ask::discover(n)).unwrap()).collect();
    for (n, (kind, ip)) in (0..250).zip(offers) {
        assert_eq!(kind, MessageType::Offer);
        assert_eq!(server_frames(&mut rig, n as usize, &select(n, ip)), Some((MessageType::Ack, ip)));
        assert!(given.insert(ip), "{ip} is given twice");
    }
    assert_eq!(rig.server.usage(), Usage { range: 250, free: 0, leased: 250, offered: 0, aside: 0 });
    assert_eq!(server_frames(&mut rig, 250, &Ask::discover(250)), None);
    assert_eq!(rig.server.counters().pool_exhausted, 1);
    assert_eq!(server_frames(&mut rig, 250, &select(250, host(7))), Some((MessageType::Nak, NONE)));
    rig.server.assert_consistent();
}

/// 250 clients behind one port, with probes.
#[test]
fn a_full_port() {
    let mut rig = Rig::new(config(254));
    let mut acked = std::collections::BTreeSet::new();
    for n in 0..245 {
        rig.is_silent(0, &Ask::discover(n));
    }
    let offers = rig.pass(Duration::from_millis(500));
    assert_eq!(offers.len(), 245);
    for offer in offers {
        let n = u32::from_be_bytes(offer.message.chaddr()[2..].try_into().unwrap());
        acked.insert(rig.ask(0, &Ask::select(n, offer.ip())).ip());
    }
    assert_eq!(acked.len(), 245);
    rig.is_silent(0, &Ask::discover(999));
}

/// One guest sends 1,000 DISCOVERs a second with an address of its own in each, and answers its offers when it can.
/// Others come one after the other and get theirs as if it were not there.
#[test]
fn a_flood_starves_nobody() {
    for accepts in [false, true] {
        let limits = Limits { leases: Some(8), ..Limits::default() };
        let mut rig = Rig::new(Config { limits, ..config(73) });
        let mut flood = 1_000_000;
        let mut served = std::collections::BTreeSet::new();
        for turn in 0..70_u32 {
            // Every half second it is somebody's turn, and in the end those who got nothing try again.
            let n = if turn < 60 { turn } else { (0..60).find(|n| !served.contains(n)).unwrap_or(0) };
            let mut offers = rig.send(1 + n as usize, &Ask::discover(n));
            for _ in 0..50 {
                for _ in 0..10 {
                    flood += 1;
                    rig.send(0, &Ask::discover(flood));
                }
                offers.extend(rig.pass(Duration::from_millis(10)));
                for offer in offers.drain(..) {
                    let n = u32::from_be_bytes(offer.message.chaddr()[2..].try_into().unwrap());
                    if n < 1_000_000 {
                        let replies = rig.send(1 + n as usize, &Ask::select(n, offer.ip()));
                        assert_eq!(replies[0].kind(), MessageType::Ack);
                        served.insert(n);
                    } else if accepts {
                        rig.send(0, &Ask::select(n, offer.ip()));
                    }
                }
            }
        }
        rig.pass(secs(1));
        // 64 addresses for 60 clients, 8 of them at most for the flood.
        assert!(served.len() >= if accepts { 56 } else { 60 }, "{} were served", served.len());
        let used = rig.server.leases(rig.now).into_iter().filter(|l| l.port == Some(rig.ports[0])).count();
        assert!(used <= 8, "the flood has {used} leases");
        let counters = rig.server.counters();
        assert!(counters.limited > 20_000, "{counters:?}");
        assert!(counters.preempted > 0, "{counters:?}");
    }
}
