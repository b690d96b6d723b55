//! The reflector between front-ends of this workspace, which compare every byte.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use frontend::traffic::{Generator, Report, Sizes, TrafficConfig};
use frontend::{Config, NetDevice, features as f};
use tempfile::TempDir;

use super::{Options, run};

/// A reflector of so many ports in a thread; it has nothing to do once its front-ends are gone.
fn reflector(count: usize, words: &[&str]) -> (TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().expect("a directory");
    let sockets: Vec<PathBuf> = (0..count).map(|number| dir.path().join(format!("vhu{number}"))).collect();
    let paths = sockets.iter().map(|path| path.display().to_string());
    let args: Vec<String> =
        ["reflect"].iter().chain(words).map(|word| word.to_string()).chain(paths).collect();
    std::thread::spawn(move || run(&Options::parse_from(args)));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sockets.iter().all(|path| path.exists()) {
        assert!(Instant::now() < deadline, "the reflector makes its sockets");
        std::thread::sleep(Duration::from_millis(5));
    }
    (dir, sockets)
}

fn device(socket: &PathBuf, features: u64, number: u8) -> NetDevice {
    let features = f::VERSION_1 | features;
    let config = Config { features, required: features, queue_size: 256, ..Config::default() };
    NetDevice::connect(socket, config.mac_number(number.into())).expect("a device")
}

fn traffic(features: u64, sizes: Sizes, gso_size: Option<u16>) -> Report {
    let (_dir, sockets) = reflector(2, &[]);
    let [a, b] = [1, 2].map(|number| device(&sockets[usize::from(number) - 1], features, number));
    let config = TrafficConfig { sizes, gso_size, verify: true, ..TrafficConfig::default() };
    Generator::new(vec![a, b], config).expect("a generator").run(Duration::from_millis(50)).expect("a run")
}

fn whole(report: &Report) {
    assert_eq!(report.lost(), 0, "of {}", report.sent());
    for port in &report.ports {
        assert!(port.received > 0);
        assert_eq!((port.unrecognised, port.reordered), (0, 0));
    }
}

#[test]
fn every_frame_arrives_as_it_was() {
    for features in [
        f::MRG_RXBUF,
        f::IN_ORDER,
        f::RING_PACKED,
        f::RING_PACKED | f::MRG_RXBUF,
        f::RING_PACKED | f::IN_ORDER,
        f::RING_PACKED | f::IN_ORDER | f::MRG_RXBUF,
    ] {
        whole(&traffic(features, Sizes::imix(), None));
    }
}

#[test]
fn segments_arrive_in_as_many_buffers_as_they_take() {
    let features = f::MRG_RXBUF | f::CSUM | f::GUEST_CSUM | f::HOST_TSO4 | f::GUEST_TSO4;
    whole(&traffic(features, Sizes::Fixed(65_000), Some(1460)));
    whole(&traffic(features | f::RING_PACKED, Sizes::Fixed(65_000), Some(1460)));
}

#[test]
fn what_the_first_sends_goes_to_all_others_if_that_is_asked() {
    let (_dir, sockets) = reflector(4, &["--broadcast"]);
    let mut devices: Vec<NetDevice> =
        (0..4).map(|number| device(&sockets[usize::from(number)], f::MRG_RXBUF, number + 1)).collect();
    let frame = frontend::wire::arp_request(devices[0].mac(), [10, 0, 0, 1], [10, 0, 0, 2]);
    devices[0].send(&frame).expect("sent");
    for receiver in &mut devices[1..] {
        // The reflector notifies nobody: a wait would last as long as it may.
        let mut looks = (0..1000).map(|_| receiver.recv(Duration::from_millis(10)));
        let (_, received) = looks.find_map(Result::ok).expect("received");
        assert_eq!(received, frame);
    }
}
