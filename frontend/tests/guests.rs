//! Guests with an IP stack, super-frames and the generator, over the simplest correct back-end.

mod common;

use std::time::Duration;

use common::{Backend, Options};
use frontend::bulk::{self, BulkConfig};
use frontend::stack::{Guest, GuestConfig};
use frontend::traffic::{Generator, Pattern, Sizes, TrafficConfig};
use frontend::wire::Flow;
use frontend::{Config, Error, NetDevice, features as f};

const LONG: Duration = Duration::from_secs(20);

fn devices(backend: &Backend, config: &Config) -> [NetDevice; 2] {
    [0, 1].map(|i| NetDevice::connect(backend.path(i), config.clone().mac_number(i as u32 + 1)).unwrap())
}

fn guests(backend: &Backend, config: &Config) -> [Guest; 2] {
    let [a, b] = devices(backend, config);
    let of = |device, n: u8| {
        let config = GuestConfig::address(&format!("10.0.0.{n}/24")).unwrap();
        let config = config.and_address(&format!("fd00::{n}/64")).unwrap();
        Guest::new(device, GuestConfig { seed: n.into(), ..config }).unwrap()
    };
    [of(a, 1), of(b, 2)]
}

/// The feature sets that differ in what the stack or the header does.
fn guest_features() -> Vec<u64> {
    let all = Config::default().features;
    vec![
        all,
        all & !f::MRG_RXBUF,
        all & !f::ALL_TSO,
        all & !f::ALL_OFFLOADS,
        all & !(f::ALL_OFFLOADS | f::MRG_RXBUF | f::VERSION_1),
        all | f::IN_ORDER,
    ]
}

#[test]
fn arp_ping_tcp_and_udp_between_two_guests() {
    for features in guest_features() {
        let backend = Backend::start(2, Options::default());
        let [mut a, mut b] = guests(&backend, &Config { features, ..Config::default() });
        let server = std::thread::spawn(move || {
            let port = b.udp_open(7).unwrap();
            let got = b.tcp_receive(5001, LONG).unwrap();
            let again = b.tcp_receive(5001, LONG).unwrap();
            b.udp_echo(&port, 3, LONG).unwrap();
            b.serve(Duration::from_millis(100), || false).unwrap();
            (got, again, b.stats())
        });
        assert_eq!(a.arp([10, 0, 0, 2], LONG).unwrap(), [0x52, 0x54, 0, 0, 0, 2]);
        for to in ["10.0.0.2", "fd00::2"] {
            let report = a.ping(to.parse().unwrap(), 20, 1000, Duration::ZERO, LONG).unwrap();
            assert_eq!((report.sent, report.received, report.corrupt), (20, 20, 0), "{to}");
            assert_eq!(report.rtt.count(), 20);
        }
        for to in ["10.0.0.2", "fd00::2"] {
            let to = (to.parse::<frontend::stack::IpAddress>().unwrap(), 5001).into();
            let sent = a.tcp_send(to, 20_000_003, 9, LONG).unwrap();
            assert!(sent.is_whole(), "{features:#x}: {sent:?}");
        }
        let port = a.udp_open(0).unwrap();
        let to = ("10.0.0.2".parse::<frontend::stack::IpAddress>().unwrap(), 7).into();
        for n in 0..3u8 {
            a.udp_send(&port, to, &[n; 700], LONG).unwrap();
            assert_eq!(a.udp_recv(&port, LONG).unwrap(), (vec![n; 700], to));
        }
        let (got, again, stats) = server.join().unwrap();
        assert_eq!((got.bytes, again.bytes, got.hash), (20_000_003, 20_000_003, again.hash));
        assert_eq!((stats.bad_checksums, stats.violations), (0, 0));
        assert_eq!(stats.rx_super_frames > 0, features & f::GUEST_TSO4 != 0, "{features:#x}");
    }
}

#[test]
fn a_silent_peer_ends_every_exchange() {
    let backend = Backend::start(2, Options::default());
    let [mut a, _b] = guests(&backend, &Config::default());
    let short = Duration::from_millis(150);
    let to = "10.0.0.9".parse().unwrap();
    assert!(a.arp([10, 0, 0, 9], short).is_err_and(|e| e.is_timeout()));
    let report = a.ping(to, 2, 10, Duration::ZERO, short).unwrap();
    assert_eq!((report.sent, report.received), (2, 0));
    assert!(a.tcp_send((to, 1).into(), 10, 1, short).is_err_and(|e| e.is_timeout()));
    assert!(a.tcp_receive(1, short).is_err_and(|e| e.is_timeout()));
    let port = a.udp_open(9).unwrap();
    assert!(a.udp_recv(&port, short).is_err_and(|e| e.is_timeout()));
    assert!(a.udp_send(&port, (to, 1).into(), &[1], short).is_err_and(|e| e.is_timeout()));
}

#[test]
fn bulk_transfers_are_whole_with_and_without_offloads() {
    for features in guest_features() {
        let backend = Backend::start(2, Options::default());
        let [mut a, mut b] = devices(&backend, &Config { features, ..Config::default() });
        let flow = Flow::between(a.mac(), b.mac());
        let config = BulkConfig { ecn: features & f::HOST_ECN != 0, ..BulkConfig::new(flow, 30_000_000) };
        let (sent, got) = bulk::exchange(&mut a, &mut b, &config, LONG).unwrap();
        assert!(got.is_whole(&sent), "{features:#x}: {sent:?} {got:?}");
        let tso = features & f::HOST_TSO4 != 0;
        assert_eq!(got.super_frames > 0, tso);
        assert_eq!(got.largest, if tso { 45 * 1448 } else { 1448 });
        assert_eq!(got.full_checksums, if features & f::CSUM == 0 { got.frames } else { 0 });
    }
}

#[test]
fn bulk_transfers_between_threads() {
    let backend = Backend::start(2, Options::default());
    let [mut a, mut b] = devices(&backend, &Config::default());
    let config = BulkConfig::new(Flow::between(a.mac(), b.mac()), 50_000_000);
    let theirs = config.clone();
    let receiver = std::thread::spawn(move || bulk::receive(&mut b, &theirs, LONG).unwrap());
    let sent = bulk::send(&mut a, &config, LONG).unwrap();
    assert!(receiver.join().unwrap().is_whole(&sent));
}

#[test]
fn a_receiver_without_offloads_sees_the_violation_of_a_hub_that_passes_them() {
    let backend = Backend::start(2, Options::default());
    let mut a = NetDevice::connect(backend.path(0), Config::default()).unwrap();
    let config = Config::plain().with(f::MRG_RXBUF).mac_number(2);
    let mut b = NetDevice::connect(backend.path(1), config).unwrap();
    let config = BulkConfig::new(Flow::between(a.mac(), b.mac()), 1_000_000);
    let (sent, got) = bulk::exchange(&mut a, &mut b, &config, Duration::from_secs(1)).unwrap();
    assert!(got.violations > 0 && !got.is_whole(&sent));
}

#[test]
fn the_generator_counts_every_frame() {
    let all = Config::default().features;
    for (features, sizes, gso_size) in [
        (f::VERSION_1, Sizes::Fixed(60), None),
        (all & !f::ALL_OFFLOADS, Sizes::imix(), None),
        (f::VERSION_1 | f::EVENT_IDX | f::IN_ORDER, Sizes::Fixed(1514), None),
        (all, Sizes::Mix(vec![70, 1514, 65_549]), Some(1448)),
    ] {
        let backend = Backend::start(2, Options::default());
        let [a, b] = devices(&backend, &Config { features, ..Config::default() });
        let config = TrafficConfig { sizes, gso_size, verify: true, quiet: LONG, ..TrafficConfig::default() };
        let mut generator = Generator::new(vec![a, b], config).unwrap();
        for _ in 0..2 {
            let report = generator.run(Duration::from_millis(200)).unwrap();
            assert_eq!((report.lost(), report.loss()), (0, 0.0), "{features:#x}");
            for d in &report.ports {
                assert!(d.sent > 100, "{features:#x}: {report:?}");
                assert_eq!((d.reordered, d.unrecognised), (0, 0), "{features:#x}");
                assert!(d.latency.count() > 0 && d.latency.percentile(99.0) > Duration::ZERO);
            }
        }
        assert_eq!(generator.one_by_one(50).unwrap().count(), 50);
    }
}

#[test]
fn the_generator_keeps_a_rate_and_finds_what_changed() {
    let backend = Backend::start(3, Options::default());
    let [a, b] = devices(&backend, &Config::plain());
    let mut stranger = NetDevice::connect(backend.path(2), Config::plain().mac_number(3)).unwrap();
    let config = TrafficConfig { rate: Some(5000.0), pattern: Pattern::OneWay, ..TrafficConfig::default() };
    let mut generator = Generator::new(vec![a, b], config).unwrap();
    for _ in 0..10 {
        stranger.send(&[0x55; 100]).unwrap();
    }
    // What is sent again came out of order, and what was changed on the way is not the generator's.
    let replay = std::thread::spawn(move || {
        for changed in [false, true].repeat(5) {
            let (_, mut frame) = stranger.recv(LONG).unwrap();
            let last = frame.len() - 1;
            frame[last] ^= u8::from(changed);
            stranger.send(&frame).unwrap();
        }
        stranger
    });
    let report = generator.run(Duration::from_millis(400)).unwrap();
    let _stranger = replay.join().unwrap();
    let [a, b] = &report.ports[..] else { panic!("two devices") };
    assert!((1000..=2000).contains(&(a.sent + a.skipped)), "{} and {}", a.sent, a.skipped);
    assert_eq!((b.sent, b.received, b.reordered), (0, a.sent + 5, 10));
    assert_eq!((a.unrecognised, b.unrecognised), (20, 15));
    assert_eq!(report.loss(), 0.0);
    drop(generator);
    let [c, d] = devices(&backend, &Config::plain());
    assert!(matches!(
        Generator::new(vec![c, d], TrafficConfig { sizes: Sizes::Fixed(59), ..TrafficConfig::default() }),
        Err(Error::Config(_))
    ));
}
