//! A cable between two vhost-user sockets: what one guest sends the other gets, with no switch between.
//!
//! `cargo run --release -p vhost-user --example cable A.sock B.sock [client]`
//!
//! For trying front-ends, and as the most that a switch on these ports could do. One thread polls without ever
//! sleeping. Frames are checked as the datapath checks them; each second it prints the frames carried.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use datapath::port::RxDrops;
use datapath::{Burst, QueueHost, QueueId, RxQueue};
use switch_core::PortId;
use switch_core::ids::Registry;
use vhost_user::{PortConfig, Role, VhostUserPort};

#[derive(Default)]
struct Queues {
    next: u64,
    list: HashMap<QueueId, (PortId, Box<dyn RxQueue>)>,
}

/// The lock is the pause-and-acknowledge: the thread holds it for one round.
#[derive(Default)]
struct Host(Mutex<Queues>);

impl QueueHost for Host {
    fn attach(&self, port: PortId, mut queue: Box<dyn RxQueue>) -> QueueId {
        queue.disarm();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.next += 1;
        let id = QueueId::from_raw(queues.next);
        queues.list.insert(id, (port, queue));
        id
    }

    fn detach(&self, id: QueueId) -> Option<Box<dyn RxQueue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).list.remove(&id).map(|(_, queue)| queue)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [a, b, more @ ..] = args.as_slice() else { return Err("usage: cable A.sock B.sock [client]".into()) };
    let role = if more.iter().any(|m| m == "client") { Role::Client } else { Role::Server };
    let host = Arc::new(Host::default());
    let mut registry = Registry::<PortId>::new(2);
    let mut ports = Vec::new();
    for path in [a, b] {
        let id = registry.mint().ok_or("no port left")?;
        let name = path.clone();
        let config = PortConfig { id, path: path.into(), role, queue_pairs: 4, mtu: None };
        let port = VhostUserPort::new(config, Arc::clone(&host) as Arc<dyn QueueHost>, move |state| {
            println!("{name}: {state:?}");
        })?;
        ports.push((id, port));
    }
    let routes = HashMap::from([(ports[0].0, ports[1].1.tx()), (ports[1].0, ports[0].1.tx())]);

    let mut burst = Burst::new();
    let mut members = Vec::with_capacity(64);
    let (mut carried, mut dropped, mut since) = (0u64, 0u64, Instant::now());
    loop {
        {
            let mut queues = host.0.lock().unwrap_or_else(PoisonError::into_inner);
            if queues.list.is_empty() {
                drop(queues);
                std::thread::sleep(Duration::from_millis(1));
            } else {
                for (port, queue) in queues.list.values_mut() {
                    burst.clear();
                    let Ok(n) = queue.rx_burst(&mut burst, &mut RxDrops::default()) else { continue };
                    if n == 0 {
                        continue;
                    }
                    let accepted = burst.accepted;
                    members.clear();
                    for (i, head) in burst.heads_mut().iter_mut().enumerate() {
                        if switch_core::check::frame(head, accepted).is_ok() {
                            members.push(i as u8);
                        }
                    }
                    let mut lost = n - members.len();
                    if let Some(to) = routes.get(port) {
                        match to.tx_burst(0, &mut burst.bucket(&members)) {
                            Ok(report) => lost += report.dropped().count_ones() as usize,
                            Err(_) => lost = n,
                        }
                    }
                    queue.release();
                    carried += (n - lost) as u64;
                    dropped += lost as u64;
                }
            }
        }
        let now = since.elapsed();
        if now > Duration::from_secs(1) {
            if carried + dropped > 0 {
                println!("{:.3} M frames/s, {dropped} dropped", carried as f64 / now.as_secs_f64() / 1e6);
            }
            (carried, dropped, since) = (0, 0, Instant::now());
        }
    }
}
