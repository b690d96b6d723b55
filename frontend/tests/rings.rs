//! The driver's rings against the simplest correct back-end: every combination of features, sizes and index bases.

mod common;

use std::time::{Duration, Instant};

use common::{Backend, Options};
use frontend::device::{TxLayout, VnetHeader};
use frontend::hash::Pattern;
use frontend::memory::Layout;
use frontend::ring::Indirect;
use frontend::session::{Session, SessionListener};
use frontend::{Config, Error, NetDevice, features as f};

const SECOND: Duration = Duration::from_secs(5);

/// Sends frames of many lengths in bursts and expects each of them back, in order and whole.
fn circulate(device: &mut NetDevice, frames: usize, longest: usize) {
    let mut pattern = Pattern::new(frames as u64);
    let mut got = Vec::new();
    let burst = usize::from(device.config().queue_size / 2).clamp(1, 24);
    let mut sent = std::collections::VecDeque::new();
    for i in 0..frames {
        let len = 14 + (i * 131) % (longest - 13);
        let mut frame = vec![0; len];
        pattern.fill(&mut frame);
        device.send(&frame).unwrap();
        sent.push_back(frame);
        while sent.len() >= burst || (i + 1 == frames && !sent.is_empty()) {
            let header = device.recv_into(&mut got, SECOND).unwrap();
            assert_eq!(VnetHeader { num_buffers: 0, ..header }, VnetHeader::PLAIN);
            assert!(got == sent.pop_front().unwrap(), "frame {i} came back otherwise");
        }
    }
}

#[test]
fn every_combination_of_features() {
    let options = [f::MRG_RXBUF, f::INDIRECT_DESC, f::EVENT_IDX, f::IN_ORDER, f::VERSION_1];
    for mask in 0..1u32 << options.len() {
        let features = (0..options.len()).filter(|i| mask >> i & 1 == 1).fold(0, |acc, i| acc | options[i]);
        for layout in [TxLayout::Inline, TxLayout::HeaderApart, TxLayout::Pieces(5)] {
            let backend =
                Backend::start(1, Options { reflect: true, batch: mask % 3 != 0, ..Options::default() });
            let config = Config { features, required: features, tx_layout: layout, ..Config::default() };
            let config = Config {
                queue_size: 16,
                rx_buffer_size: (features & f::MRG_RXBUF != 0).then_some(600),
                ..config
            };
            let mut device = NetDevice::connect(backend.path(0), config).unwrap();
            assert_eq!(device.features(), features);
            let header = if features & (f::VERSION_1 | f::MRG_RXBUF) != 0 { 12 } else { 10 };
            assert_eq!(device.header_len(), header);
            circulate(&mut device, 60, 1514);
        }
    }
}

#[test]
fn every_queue_size() {
    for size in (1..=10).map(|n| 1u16 << n) {
        for features in [f::VERSION_1, f::VERSION_1 | f::EVENT_IDX, f::VERSION_1 | f::EVENT_IDX | f::IN_ORDER]
        {
            let backend = Backend::start(1, Options { reflect: true, ..Options::default() });
            let config = Config { features, queue_size: size, ..Config::default() };
            let mut device = NetDevice::connect(backend.path(0), config).unwrap();
            circulate(&mut device, 3 * usize::from(size) + 5, 1514);
        }
    }
}

#[test]
fn indexes_wrap_around() {
    for (features, size) in [
        (f::VERSION_1, 8),
        (f::VERSION_1 | f::EVENT_IDX | f::MRG_RXBUF, 64),
        (f::VERSION_1 | f::EVENT_IDX | f::IN_ORDER | f::INDIRECT_DESC, 16),
    ] {
        let backend = Backend::start(1, Options { reflect: true, ..Options::default() });
        let config = Config { features, queue_size: size, ring_base: 65_530, ..Config::default() };
        let mut device = NetDevice::connect(backend.path(0), config).unwrap();
        circulate(&mut device, 200, 300);
        assert!(device.ring_access(1).unwrap().used_idx() < 1000, "the index did wrap");
    }
    // And the whole way round from zero, with frames of one buffer.
    let backend = Backend::start(1, Options { reflect: true, ..Options::default() });
    let mut device = NetDevice::connect(backend.path(0), Config::plain().with(f::EVENT_IDX)).unwrap();
    circulate(&mut device, 66_000, 60);
    assert_eq!(device.ring_access(1).unwrap().used_idx(), (66_000u32 % 65_536) as u16);
}

#[test]
fn super_frames_cross_whole_with_their_headers() {
    for features in [
        Config::default().features,
        Config::default().features & !f::MRG_RXBUF,
        (Config::default().features & !f::INDIRECT_DESC) | f::IN_ORDER,
    ] {
        for layout in [TxLayout::Inline, TxLayout::Pieces(17)] {
            let backend =
                Backend::start(2, Options { batch: features & f::MRG_RXBUF == 0, ..Options::default() });
            let config = Config { features, tx_layout: layout, queue_size: 64, ..Config::default() };
            let mut a = NetDevice::connect(backend.path(0), config.clone().mac_number(1)).unwrap();
            let mut b = NetDevice::connect(backend.path(1), config.mac_number(2)).unwrap();
            let mut frame = vec![0; 65_549];
            Pattern::new(3).fill(&mut frame);
            let header = VnetHeader {
                flags: 1,
                gso_type: 1,
                hdr_len: 54,
                gso_size: 1448,
                csum_start: 34,
                csum_offset: 16,
                num_buffers: 0,
            };
            for _ in 0..20 {
                a.send_with(&header, &[&frame[..100], &frame[100..]]).unwrap();
                let (got, bytes) = b.recv(SECOND).unwrap();
                assert_eq!(VnetHeader { num_buffers: 0, ..got }, header);
                assert_eq!(got.num_buffers > 1, b.has(f::MRG_RXBUF));
                assert!(bytes == frame);
            }
            assert!(matches!(a.send(&vec![0; 70_000]), Err(Error::Config(_))));
        }
    }
}

#[test]
fn several_queue_pairs() {
    let backend = Backend::start(2, Options::default());
    let mut a = NetDevice::connect(backend.path(0), Config::default().queue_pairs(4)).unwrap();
    let mut b = NetDevice::connect(backend.path(1), Config::default().queue_pairs(3)).unwrap();
    for pair in a.pairs_mut() {
        for n in 0..30u8 {
            pair.tx.send(&VnetHeader::PLAIN, &[&[n; 60]]).unwrap();
        }
    }
    let frames = b.recv_all(Duration::from_millis(200)).unwrap();
    assert_eq!(frames.len(), 120);
    assert!(b.pairs().iter().all(|p| p.rx.received() == 40), "all pairs were used");
    drop(a);
    let too_many = NetDevice::connect(backend.path(0), Config::default().queue_pairs(9));
    assert!(matches!(too_many, Err(Error::Config(_))));
}

#[test]
fn memory_in_several_regions() {
    for (gap, slots) in [(0, true), (1 << 20, true), (4096, false)] {
        let backend = Backend::start(1, Options { reflect: true, ..Options::default() });
        let memory = Some(Layout::several(6, 1 << 20, gap));
        let config =
            Config { memory, mem_slots: slots, features: f::VERSION_1, queue_size: 256, ..Config::default() };
        let mut device = NetDevice::connect(backend.path(0), config).unwrap();
        assert_eq!(device.memory().regions().len(), 6);
        circulate(&mut device, 600, 1514);
    }
}

#[test]
fn buffers_in_pieces_and_tables_always() {
    for indirect in [Indirect::Always, Indirect::Chains, Indirect::Never] {
        let backend = Backend::start(1, Options { reflect: true, ..Options::default() });
        let config = Config { indirect, rx_pieces: 3, tx_layout: TxLayout::Pieces(3), ..Config::default() };
        let config =
            Config { features: f::VERSION_1 | f::INDIRECT_DESC | f::EVENT_IDX, queue_size: 32, ..config };
        let mut device = NetDevice::connect(backend.path(0), config).unwrap();
        circulate(&mut device, 200, 1514);
    }
}

#[test]
fn without_protocol_features_rings_start_enabled() {
    for offer in [common::ALL, common::ALL & !f::PROTOCOL_FEATURES] {
        let backend = Backend::start(1, Options { reflect: true, offer, ..Options::default() });
        let config = Config { protocol: None, ..Config::default() };
        let mut device = NetDevice::connect(backend.path(0), config).unwrap();
        assert_eq!(device.session().protocol(), None);
        circulate(&mut device, 50, 1514);
    }
}

#[test]
fn the_back_end_may_connect() {
    let backend = Backend::start(1, Options { reflect: true, client: true, ..Options::default() });
    let mut device = NetDevice::listen(backend.path(0), Config::default()).unwrap();
    circulate(&mut device, 50, 1514);
}

#[test]
fn reinitialisation_stop_resume_and_reconnection() {
    let backend = Backend::start(1, Options { reflect: true, client: true, ..Options::default() });
    let listener = SessionListener::bind(backend.path(0)).unwrap();
    let config = Config { memory: Some(Layout::single(64 << 20)), ..Config::plain() };
    let mut device = NetDevice::with_session(listener.accept(SECOND).unwrap(), config).unwrap();
    circulate(&mut device, 50, 1514);
    device.reinit(Config::default().queue_size(64)).unwrap();
    assert!(device.has(f::MRG_RXBUF | f::EVENT_IDX));
    circulate(&mut device, 50, 1514);
    for round in 0..5 {
        let bases = device.stop().unwrap();
        assert_eq!(bases.len(), 2);
        assert_eq!(bases[1], u32::from(device.ring_access(1).unwrap().used_idx()));
        if round % 2 == 0 {
            device.reset_rings(65_535 - round).unwrap();
        }
        device.resume().unwrap();
        circulate(&mut device, 30, 1514);
    }
    for _ in 0..3 {
        device.session().raw().stream().shutdown(std::net::Shutdown::Both).unwrap();
        device.reattach(listener.accept(SECOND).unwrap()).unwrap();
        circulate(&mut device, 30, 1514);
    }
}

#[test]
fn every_wait_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("silent.sock");
    let short = Duration::from_millis(200);
    let started = Instant::now();
    assert!(matches!(Session::connect(&path, short), Err(Error::Io { .. })), "nobody listens");
    assert!(matches!(SessionListener::bind(&path).unwrap().accept(short), Err(Error::Timeout { .. })));
    // A back-end that accepts and says nothing.
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let result = NetDevice::connect(&path, Config::default().timeout(short));
    assert!(result.is_err_and(|e| e.is_timeout()));
    // One that runs, but never delivers, and never takes.
    let backend = Backend::start(1, Options::default());
    let config = Config { queue_size: 4, ..Config::default().timeout(short) };
    let mut device = NetDevice::connect(backend.path(0), config).unwrap();
    assert!(device.recv(short).is_err_and(|e| e.is_timeout()));
    device.stop().unwrap();
    let result = (0..5).try_for_each(|_| device.send(&[0; 60]));
    assert!(result.is_err_and(|e| e.is_timeout()), "a stopped ring fills");
    assert!(started.elapsed() < Duration::from_secs(3));
}
