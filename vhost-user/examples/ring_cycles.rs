//! Cycles that one frame takes from one guest's ring to another's, without a switch between them.
//!
//! `cargo run --release -p vhost-user --example ring_cycles [frame bytes] [frames in a burst] [packed] [alone]`
//!
//! Two front-ends of this process are attached to two ports; this thread is their worker and measures its own
//! time only: receive, transmit, release. In the first run it drives the guests too, between the measured
//! parts, so that everything is in its own cache; in the second a thread on another core does, and
//! each line that a guest wrote comes from there, as with real guests. With `alone` there is no second run, so that
//! a profiler that counts instructions counts the same ones each time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use datapath::port::RxDrops;
use datapath::{Burst, QueueHost, QueueId, RxQueue, TxPort};
use frontend::device::VnetHeader;
use frontend::{Config, NetDevice, features};
use switch_core::PortId;
use switch_core::ids::Registry;
use vhost_user::{PortConfig, Role, VhostUserPort};

#[derive(Default)]
struct Host(Mutex<HashMap<PortId, Box<dyn RxQueue>>>);

impl QueueHost for Host {
    fn attach(&self, port: PortId, queue: Box<dyn RxQueue>) -> QueueId {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).insert(port, queue);
        QueueId::from_raw(0)
    }

    fn detach(&self, _id: QueueId) -> Option<Box<dyn RxQueue>> {
        None
    }
}

fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: rdtsc is there on every x86-64 processor.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    return std::time::Instant::now().elapsed().as_nanos() as u64;
}

/// One measured pass; frames and cycles.
fn pass(burst: &mut Burst, queue: &mut dyn RxQueue, to: &dyn TxPort, members: &[u8]) -> (u64, u64) {
    let mut drops = RxDrops::default();
    burst.clear();
    let began = cycles();
    let n = queue.rx_burst(burst, &mut drops).expect("the ring is sound");
    if n == 0 {
        return (0, 0);
    }
    let report = to.tx_burst(0, &mut burst.bucket(&members[..n])).expect("the ring is sound");
    queue.release();
    let took = cycles() - began;
    (n as u64 - u64::from(report.dropped().count_ones()), took)
}

/// The tenth, the median and the ninetieth of a hundred bursts, in cycles a frame: a mean would count the times when
/// somebody else had the processor.
fn spread(mut all: Vec<f64>) -> String {
    all.sort_by(f64::total_cmp);
    let at = |percent: usize| all.get(all.len() * percent / 100).copied().unwrap_or(0.0);
    format!("{:.0} / {:.0} / {:.0} cycles a frame (p10 / p50 / p90)", at(10), at(50), at(90))
}

/// Keeps the calling thread on one processor, if there is such a one: else the two could take turns on one.
fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

fn feed(device: &mut NetDevice, frame: &[u8], n: usize) -> usize {
    let tx = &mut device.pairs_mut()[0].tx;
    let mut pushed = 0;
    while pushed < n && tx.push(&VnetHeader::PLAIN, &[frame]).expect("the ring is sound") {
        pushed += 1;
    }
    tx.flush();
    pushed
}

fn drink(device: &mut NetDevice, frame: &mut Vec<u8>) -> usize {
    let mut taken = 0;
    while device.try_recv(frame).expect("the ring is sound").is_some() {
        taken += 1;
    }
    taken
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let len: usize = args.next().map_or(Ok(64), |a| a.parse())?;
    let size: usize = args.next().map_or(Ok(32), |a| a.parse())?;
    let size = size.clamp(1, 64);
    let words: Vec<String> = args.collect();
    let has = |word: &str| words.iter().any(|w| w == word);
    let alone = has("alone");
    let packed = if has("packed") { features::RING_PACKED } else { 0 };
    let dir = std::env::temp_dir();
    let mut ids = Registry::<PortId>::new(2);
    let host = Arc::new(Host::default());
    let mut ports = Vec::new();
    let mut devices = Vec::new();
    let mut port_ids = Vec::new();
    for name in ["a", "b"] {
        let id = ids.mint().ok_or("no port")?;
        let path = dir.join(format!("ring-cycles-{}-{name}.sock", std::process::id()));
        let config = PortConfig { id, path: path.clone(), role: Role::Server, queue_pairs: 1, mtu: None };
        ports.push(VhostUserPort::new(config, Arc::clone(&host) as Arc<dyn QueueHost>, |_| {})?);
        devices.push(NetDevice::connect(&path, Config::default().queue_size(1024).require(packed))?);
        port_ids.push(id);
    }
    let mut queue =
        host.0.lock().unwrap_or_else(|e| e.into_inner()).remove(&port_ids[0]).ok_or("no queue")?;
    queue.disarm();
    let to = ports[1].tx();
    let members: Vec<u8> = (0..64).collect();
    let mut burst = Burst::new();
    let frame = vec![0x5a; len];
    let mut b = devices.pop().ok_or("no device")?;
    let mut a = devices.pop().ok_or("no device")?;

    for _ in 0..3 {
        let (mut frames, mut all) = (0, Vec::new());
        let mut got = Vec::new();
        while frames < 1_000_000 {
            feed(&mut a, &frame, size);
            let (n, t) = pass(&mut burst, &mut *queue, &*to, &members);
            frames += n;
            all.push(t as f64 / n.max(1) as f64);
            drink(&mut b, &mut got);
        }
        println!("one core:  {len} B, bursts of {size}: {}", spread(all));
    }

    if alone {
        drop(queue);
        return Ok(());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let guest = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            pin(0);
            let mut got = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                feed(&mut a, &frame, size);
                drink(&mut b, &mut got);
            }
        })
    };
    pin(1);
    for _ in 0..3 {
        let (mut frames, mut all) = (0, Vec::new());
        while frames < 1_000_000 {
            let (n, t) = pass(&mut burst, &mut *queue, &*to, &members);
            frames += n;
            if n > 0 {
                all.push(t as f64 / n as f64);
            }
        }
        println!("two cores: {len} B, bursts of {:.1}: {}", frames as f64 / all.len() as f64, spread(all));
    }
    stop.store(true, Ordering::Relaxed);
    guest.join().map_err(|_| "the guests' thread panicked")?;
    drop(queue);
    Ok(())
}
