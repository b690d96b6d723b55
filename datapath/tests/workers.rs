//! Real workers on real threads: queues attached, taken back and levelled under traffic, several workers that
//! transmit to one port, topologies swapped while frames move. Nothing is lost that is not counted.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant as Clock};

use datapath::counters::{PortCounters, Totals};
use datapath::inmem::{self, Peer};
use datapath::police::RateLimit;
use datapath::pool::{Datapath, Options, Pacing};
use datapath::port::{Armed, RxDrops, RxQueue};
use datapath::topology::{PortEntry, Topology};
use datapath::{Burst, PortError, QueueHost, QueueId, ticks};
use modes::bridge::Bridge;
use switch_core::ids::Registry;
use switch_core::mode::Mode;
use switch_core::offload::OffloadSet;
use switch_core::virtio_net::VnetHeader;
use switch_core::{DropReason, NetworkId, PortId};

struct Port {
    entry: PortEntry,
    peer: Peer,
    queue: QueueId,
}

struct Lab {
    datapath: Datapath,
    network: (NetworkId, Arc<dyn Mode>),
    ports: Vec<Port>,
    sent: AtomicU64,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Lab {
    fn new(workers: usize, ports: usize, pacing: Pacing) -> Self {
        // Workers are not bound: the machine that runs this may have a single CPU.
        let options = Options { cpus: Vec::new(), unbound: workers, pacing };
        let datapath = Datapath::start(&options, || {}).unwrap();
        assert_eq!(datapath.workers(), workers);
        let mut networks = Registry::<NetworkId>::new(1);
        let mode = Arc::new(Bridge::new(Duration::from_secs(300), 4096)) as Arc<dyn Mode>;
        let network = (networks.mint().unwrap(), mode);
        let mut ids = Registry::<PortId>::new(64);
        let mut made = Vec::new();
        for _ in 0..ports {
            let (peer, rx, tx) = inmem::port(OffloadSet::ALL, OffloadSet::ALL, usize::MAX).unwrap();
            let entry = PortEntry {
                id: ids.mint().unwrap(),
                network: network.0,
                tx: Arc::new(tx),
                counters: Arc::new(PortCounters::new(workers)),
                pvid: None,
                isolated: false,
                flooded: true,
                mtu: 1500,
                guard: None,
                rate: None,
            };
            let queue = datapath.attach(entry.id, Box::new(rx));
            made.push(Port { entry, peer, queue });
        }
        let lab = Self { datapath, network, ports: made, sent: AtomicU64::new(0) };
        lab.publish();
        lab
    }

    fn publish(&self) {
        let (id, mode) = &self.network;
        let ports = self.ports.iter().map(|p| p.entry.clone());
        self.datapath.set_topology(Topology::new([(*id, Arc::clone(mode))], ports));
    }

    fn send(&self, from: usize, frame: &[u8]) {
        self.sent.fetch_add(1, Relaxed);
        self.ports[from].peer.send(VnetHeader::default(), frame);
    }

    /// Waits until every frame that was sent is counted, and every counter balances: a frame that a worker has
    /// taken and not yet counted is still on its way.
    fn settle(&self) {
        let end = Clock::now() + PATIENCE;
        loop {
            let totals: Vec<_> = self.ports.iter().map(|p| p.entry.counters.read()).collect();
            let forwarded: u64 = totals.iter().map(|t| t.forwarded).sum();
            let offered: u64 = totals.iter().map(|t| t.offered).sum();
            let received: u64 = totals.iter().map(|t| t.rx_frames).sum();
            let sent = self.sent.load(Relaxed);
            if received == sent && forwarded == offered && totals.iter().all(|t| t.balances()) {
                return;
            }
            assert!(Clock::now() < end, "not at rest: {received} of {sent}, {totals:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn frame(from: usize, to: usize, number: u32) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, to as u8, 2, 0, 0, 0, 0, from as u8, 0x88, 0xb5];
    f.extend(number.to_be_bytes());
    f.resize(60, 0);
    f
}

fn learn(lab: &Lab) {
    for i in 0..lab.ports.len() {
        lab.send(i, &frame(i, 0xff, u32::MAX));
    }
    lab.settle();
    for p in &lab.ports {
        while p.peer.recv().is_some() {}
    }
}

#[test]
fn several_workers_transmit_to_one_port() {
    for pacing in [Pacing::Adaptive, Pacing::Busy] {
        let lab = Lab::new(3, 6, pacing);
        learn(&lab);
        let each = 4000u32;
        std::thread::scope(|scope| {
            for from in 1..6 {
                let lab = &lab;
                scope.spawn(move || {
                    for n in 0..each {
                        lab.send(from, &frame(from, 0, n));
                    }
                });
            }
        });
        lab.settle();
        let mut next = [0u32; 6];
        while let Some(d) = lab.ports[0].peer.recv() {
            let from = usize::from(d.frame[11]);
            let number = u32::from_be_bytes(d.frame[14..18].try_into().unwrap());
            assert_eq!(number, next[from], "frames of one sender stay in order");
            next[from] += 1;
        }
        assert_eq!(next[1..], [each; 5], "every frame arrived");
        let busy: HashSet<_> = lab
            .datapath
            .stats()
            .enumerate()
            .filter(|(_, (_, s))| s.frames.load(Relaxed) > 0)
            .map(|(i, _)| i)
            .collect();
        assert_eq!(busy.len(), 3, "every worker carried some");
    }
}

#[test]
fn work_is_counted_where_it_was_done() {
    let lab = Lab::new(1, 3, Pacing::Adaptive);
    learn(&lab);
    let before: Vec<_> = lab.ports.iter().map(|p| p.entry.counters.read()).collect();
    for n in 0..1000 {
        lab.send(1, &frame(1, 0, n));
    }
    lab.settle();
    // The ticks of a burst are counted after its frames.
    lab.publish();
    let after: Vec<_> = lab.ports.iter().map(|p| p.entry.counters.read()).collect();
    let bursts = after[1].rx_bursts - before[1].rx_bursts;
    assert!((1000 / 64 + 1..=1000).contains(&bursts), "{bursts} bursts of 1000 frames");
    assert!(after[1].cycles > before[1].cycles);
    for quiet in [0, 2] {
        assert_eq!(
            (after[quiet].rx_bursts, after[quiet].cycles),
            (before[quiet].rx_bursts, before[quiet].cycles),
            "who only receives is charged nothing"
        );
    }
    let (_, worker) = lab.datapath.stats().next().unwrap();
    let sum = |of: fn(&Totals) -> u64| after.iter().map(of).sum::<u64>();
    assert_eq!(sum(|t| t.rx_bursts), worker.bursts.load(Relaxed));
    assert_eq!(sum(|t| t.cycles), worker.cycles_busy.load(Relaxed));
    assert_eq!(sum(|t| t.wakeups), worker.wakeups.load(Relaxed));
    assert!(sum(|t| t.polls_idle) <= worker.polls_idle.load(Relaxed), "some were before the topology");
    let cycles = lab.datapath.clock().elapsed();
    let asleep = worker.cycles_asleep(ticks::now());
    assert!(worker.cycles_busy.load(Relaxed) <= cycles && asleep <= cycles + cycles / 10);
}

#[test]
fn the_share_of_busy_time_is_measured_on_demand_and_over_intervals() {
    let lab = Lab::new(1, 2, Pacing::Adaptive);
    learn(&lab);
    lab.datapath.measure();
    assert!(!lab.datapath.measure(), "nothing moved since");
    assert_eq!(lab.datapath.busy_permille(), [0]);
    for n in 0..2000 {
        lab.send(1, &frame(1, 0, n));
    }
    lab.settle();
    lab.publish();
    assert!(lab.datapath.measure(), "frames moved");
    let busy = lab.datapath.busy_permille();
    assert!((1..=1000).contains(&busy[0]), "{busy:?}");
}

#[test]
fn queues_come_and_go_under_traffic() {
    let mut lab = Lab::new(2, 4, Pacing::Adaptive);
    learn(&lab);
    let mut sent = 0;
    for round in 0..200 {
        for _ in 0..20 {
            lab.send(1, &frame(1, 0, sent));
            sent += 1;
        }
        // Another port's queue is taken back and handed over again: the pool levels around the busy one.
        let victim = 2 + round % 2;
        let queue = lab.datapath.detach(lab.ports[victim].queue).expect("it was attached");
        assert!(lab.datapath.detach(lab.ports[victim].queue).is_none(), "it is not attached twice");
        lab.ports[victim].queue = lab.datapath.attach(lab.ports[victim].entry.id, queue);
        if round % 10 == 0 {
            lab.publish();
        }
    }
    lab.settle();
    let mut next = 0;
    while let Some(d) = lab.ports[0].peer.recv() {
        assert_eq!(u32::from_be_bytes(d.frame[14..18].try_into().unwrap()), next);
        next += 1;
    }
    assert_eq!(next, sent);
    // A queue that was handed over is counted when its worker has taken it up.
    let queues = || lab.datapath.stats().map(|(_, s)| s.queues.load(Relaxed)).collect::<Vec<u64>>();
    let end = Clock::now() + PATIENCE;
    while queues() != [2, 2] {
        assert!(Clock::now() < end, "not levelled: {:?}", queues());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A queue that always has frames, which take their time.
struct Source {
    from: usize,
    next: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    takes: Duration,
    doorbell: OwnedFd,
}

impl Source {
    fn new(from: usize, takes: Duration) -> Self {
        let doorbell = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        Self { from, next: Arc::default(), ended: Arc::default(), takes, doorbell }
    }
}

impl RxQueue for Source {
    fn rx_burst(&mut self, burst: &mut Burst, _drops: &mut RxDrops) -> Result<usize, PortError> {
        if self.ended.load(Relaxed) {
            return Ok(0);
        }
        let end = Clock::now() + self.takes;
        while Clock::now() < end {}
        while burst.len() < 8 {
            let Some(head) = burst.next_head() else { break };
            let number = self.next.fetch_add(1, Relaxed);
            head.vnet = VnetHeader::default();
            head.begin(60, 60).copy_from_slice(&frame(self.from, 0, number as u32));
            burst.push(&[]).expect("a frame without a tail fits");
        }
        Ok(burst.len())
    }

    fn release(&mut self) {}

    fn wake_fd(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    fn arm(&mut self) -> Result<Armed, PortError> {
        Ok(if self.ended.load(Relaxed) { Armed::Sleeping } else { Armed::Work })
    }

    fn disarm(&mut self) {}
}

#[test]
fn load_is_shared_out_once_and_nothing_is_lost() {
    let mut lab = Lab::new(2, 4, Pacing::Adaptive);
    learn(&lab);
    for p in &lab.ports {
        assert!(lab.datapath.detach(p.queue).is_some());
    }
    let made = [1, 2].map(|from| Source::new(from, Duration::from_micros(50)));
    let sources: Vec<_> = made.iter().map(|s| (Arc::clone(&s.next), Arc::clone(&s.ended))).collect();
    let [first, second] = made;
    // By number, one of each worker, then the first again: it has all of the load.
    lab.ports[1].queue = lab.datapath.attach(lab.ports[1].entry.id, Box::new(first));
    let (_idle, rx, _tx) = inmem::port(OffloadSet::ALL, OffloadSet::ALL, usize::MAX).unwrap();
    lab.ports[3].queue = lab.datapath.attach(lab.ports[3].entry.id, Box::new(rx));
    lab.ports[2].queue = lab.datapath.attach(lab.ports[2].entry.id, Box::new(second));

    let end = Clock::now() + PATIENCE;
    let moved = loop {
        std::thread::sleep(Duration::from_millis(20));
        if let Some(moved) = lab.datapath.rebalance() {
            break moved;
        }
        assert!(Clock::now() < end, "one worker has all of the load, and keeps it");
    };
    assert_eq!((moved.from, moved.to), (0, 1));
    assert!([1, 2].map(|p: usize| lab.ports[p].entry.id).contains(&moved.port));
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(lab.datapath.rebalance(), None, "the load is shared out");
    }
    for (next, ended) in &sources {
        ended.store(true, Relaxed);
        // The worker is between two bursts: what was made is all there will be.
        lab.publish();
        lab.sent.fetch_add(next.load(Relaxed), Relaxed);
    }
    lab.settle();
    let mut next = [0u64; 3];
    while let Some(d) = lab.ports[0].peer.recv() {
        let from = usize::from(d.frame[11]);
        assert_eq!(u64::from(u32::from_be_bytes(d.frame[14..18].try_into().unwrap())), next[from]);
        next[from] += 1;
    }
    assert_eq!(next[1..], [0, 1].map(|i: usize| sources[i].0.load(Relaxed)), "all arrived, in order");
    // The identifiers are the queues' still.
    assert!(
        lab.datapath.detach(lab.ports[1].queue).is_some()
            && lab.datapath.detach(lab.ports[2].queue).is_some()
    );
}

#[test]
fn a_queue_that_is_dear_leaves_the_time_to_its_neighbour() {
    let mut lab = Lab::new(1, 3, Pacing::Adaptive);
    learn(&lab);
    // Frames are dropped where they go: that is no fault of their senders.
    lab.ports[0].peer.set_room(0);
    let made = [Duration::ZERO, Duration::from_micros(50)];
    let made = [1, 2].map(|from| Source::new(from, made[from - 1]));
    let ended: Vec<_> = made.iter().map(|s| Arc::clone(&s.ended)).collect();
    for (source, i) in made.into_iter().zip(1..) {
        assert!(lab.datapath.detach(lab.ports[i].queue).is_some());
        lab.ports[i].queue = lab.datapath.attach(lab.ports[i].entry.id, Box::new(source));
    }
    let spent = |i: usize| lab.ports[i].entry.counters.read();
    let end = Clock::now() + PATIENCE;
    while spent(2).rx_bursts < 30 {
        std::thread::sleep(Duration::from_millis(1));
        assert!(Clock::now() < end, "it has its turns, if few: {:?}", spent(2));
    }
    let (honest, dear) = (spent(1), spent(2));
    ended.iter().for_each(|ended| ended.store(true, Relaxed));
    // By turns it would have nearly all of the time.
    assert!(dear.cycles < honest.cycles / 4, "{} beside {}", dear.cycles, honest.cycles);
    assert!(dear.cycles > 0);
}

#[test]
fn a_detached_queue_is_not_polled_and_a_removed_port_gets_nothing() {
    let mut lab = Lab::new(1, 3, Pacing::Adaptive);
    learn(&lab);
    let gone = lab.ports.remove(2);
    // Its counters go with it.
    lab.sent.fetch_sub(gone.entry.counters.read().rx_frames, Relaxed);
    lab.datapath.detach(gone.queue).expect("it was attached");
    lab.publish();
    gone.peer.send(VnetHeader::default(), &frame(2, 0, 1));
    lab.send(1, &frame(1, 2, 7));
    lab.settle();
    assert_eq!(gone.peer.unsent(), 1, "nobody takes what it sends");
    assert!(gone.peer.recv().is_none(), "nobody sends to it");
    assert!(lab.ports[0].peer.recv().is_none());
    assert_eq!(
        lab.ports[1].entry.counters.read().dropped(DropReason::NoDestination),
        1,
        "the FDB still names it"
    );
    lab.network.1.port_removed(gone.entry.id);
    lab.send(1, &frame(1, 2, 8));
    lab.settle();
    assert!(lab.ports[0].peer.recv().is_some(), "forgotten, so it is flooded");
}

#[test]
fn an_idle_worker_sleeps_and_wakes() {
    let lab = Lab::new(1, 2, Pacing::Adaptive);
    learn(&lab);
    let sleeps = || lab.datapath.stats().map(|(_, s)| s.sleeps.load(Relaxed)).sum::<u64>();
    let polls = || lab.datapath.stats().map(|(_, s)| s.polls.load(Relaxed)).sum::<u64>();
    for n in 0..20 {
        let end = Clock::now() + PATIENCE;
        // At rest: it has gone to sleep, and polls nothing for a while.
        loop {
            let before = (sleeps(), polls());
            std::thread::sleep(Duration::from_millis(20));
            if before == (sleeps(), polls()) && before.0 > 0 {
                break;
            }
            assert!(Clock::now() < end, "the worker does not come to rest");
        }
        lab.send(1, &frame(1, 0, n));
        lab.settle();
        let d = lab.ports[0].peer.recv().expect("it woke up");
        assert_eq!(u32::from_be_bytes(d.frame[14..18].try_into().unwrap()), n);
    }
}

#[test]
fn a_rate_limited_port_waits_and_loses_nothing() {
    let mut lab = Lab::new(1, 2, Pacing::Adaptive);
    learn(&lab);
    // Ten frames a window.
    lab.ports[1].entry.rate = Some(Arc::new(RateLimit::new(600, Duration::from_millis(20))));
    lab.publish();
    let began = Clock::now();
    for n in 0..100 {
        lab.send(1, &frame(1, 0, n));
    }
    lab.settle();
    let mut got = 0;
    while lab.ports[0].peer.recv().is_some() {
        got += 1;
    }
    assert_eq!(got, 100);
    // Bursts are of 64: the limit may be overrun by one, and is paid back. A lower bound holds on any machine.
    assert!(began.elapsed() >= Duration::from_millis(60), "100 frames came in {:?}", began.elapsed());
    assert_eq!(lab.ports[1].entry.counters.read().drops().count(), 0);
}
