//! Drives two vhost-user sockets with the generator and prints what it measured.
//!
//! `traffic PATH PATH [frame-bytes] [seconds] [in-order]`

use std::time::Duration;

use frontend::memory::Layout;
use frontend::traffic::{Generator, Sizes, TrafficConfig};
use frontend::{Config, NetDevice, features as f};

fn main() -> frontend::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [first, second, rest @ ..] = args.as_slice() else {
        eprintln!("usage: traffic PATH PATH [frame-bytes] [seconds] [in-order]");
        std::process::exit(2);
    };
    let number = |i: usize, default: u64| rest.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let size = number(0, 64) as usize;
    let seconds = number(1, 3);
    let order = if rest.get(2).is_some_and(|a| a == "in-order") { f::IN_ORDER } else { 0 };
    let config = Config {
        features: f::VERSION_1 | f::MRG_RXBUF | f::EVENT_IDX | order,
        rx_buffer_size: Some(2048),
        memory: Some(Layout::single(16 << 20).with_hugetlb()),
        mtu: (size.max(1514) - 14) as u16,
        ..Config::default()
    };
    let a = NetDevice::connect(first, config.clone().mac_number(1))?;
    let b = NetDevice::connect(second, config.mac_number(2))?;
    let traffic = TrafficConfig { sizes: Sizes::Fixed(size), ..TrafficConfig::default() };
    let mut generator = Generator::new(vec![a, b], traffic)?;
    for _ in 0..seconds {
        let report = generator.run(Duration::from_secs(1))?;
        println!(
            "{:.2} M frames/s, {:.2} Gb/s, loss {:.3} %, unrecognised {}, latency p50 {:?} p99 {:?}",
            report.frames_per_second() / 1e6,
            report.bits_per_second() / 1e9,
            report.loss() * 100.0,
            report.unrecognised(),
            report.latency().percentile(50.0),
            report.latency().percentile(99.0),
        );
    }
    let idle = generator.one_by_one(10_000)?;
    println!("one by one: p50 {:?} p99 {:?}", idle.percentile(50.0), idle.percentile(99.0));
    Ok(())
}
