//! Rings and sessions as the fuzz targets drive them: in one thread, on memory and messages of their making.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use datapath::peer::{Peers, Role};
use datapath::port::RxDrops;
use datapath::unix::Link;
use datapath::{Burst, QueueHost, QueueId, RxQueue, TxPort};
use rustix::fs::MemfdFlags;
use switch_core::ids::Registry;
use switch_core::verdict::BURST;
use switch_core::{Head, PortId};

use crate::memory::{GuestMemory, RegionSpec};
use crate::port::{PortConfig, Shared};
use crate::session::Runner;
use crate::vring::copy::segment_of;
use crate::vring::notify::Event;
use crate::vring::rx::OnBroken;
use crate::vring::{AnyRing, Direction, Layout, RingFeatures, RingSetup};

/// Bytes of a fuzzed guest's memory: two regions of half as many each, which touch.
pub const MEMORY: usize = 1 << 16;

/// What transmitted frames are made of.
static BYTES: [u8; 1 << 16] = [0xa5; 1 << 16];

/// Guest memory with anything in it. The ring's parts lie at its beginning, one behind the other.
#[derive(Debug)]
pub struct Guest {
    file: File,
    memory: Arc<GuestMemory>,
}

impl Guest {
    /// Empty memory.
    ///
    /// # Errors
    /// No memory to be had.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("fuzzed guest", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, MEMORY as u64)?;
        let file = File::from(fd);
        let half = MEMORY as u64 / 2;
        let mut memory = GuestMemory::default();
        // The higher half of the file is the lower half of the guest, so that a buffer across the
        // border is in two places.
        for (guest, offset) in [(0, half), (half, 0)] {
            let spec = RegionSpec { guest, size: half, user: guest, offset };
            memory = memory.with(spec, &file).map_err(io::Error::other)?;
        }
        Ok(Self { file, memory: Arc::new(memory) })
    }

    /// Fills the memory: with `image` from address 0 on, with zeros behind it.
    ///
    /// # Errors
    /// The write's.
    pub fn fill(&self, image: &[u8]) -> io::Result<()> {
        let mut all = vec![0; MEMORY];
        let n = image.len().min(MEMORY);
        all[..n].copy_from_slice(&image[..n]);
        let half = MEMORY / 2;
        self.file.write_all_at(&all[half..], 0)?;
        self.file.write_all_at(&all[..half], half as u64)
    }

    fn setup(size: u32, features: u64) -> RingSetup {
        let n = u64::from(size);
        let layout = if RingFeatures::new(features).packed {
            Layout { descriptors: 0, available: 16 * n, used: 16 * n + 4 }
        } else {
            Layout { descriptors: 0, available: 16 * n, used: (18 * n + 6).next_multiple_of(4) }
        };
        RingSetup { layout, size, next: None, features }
    }

    fn ring(&self, size: u32, features: u64, direction: Direction) -> Option<AnyRing> {
        let setup = Self::setup(size, features);
        AnyRing::new(&setup, direction, Arc::clone(&self.memory), Arc::default()).ok()
    }

    /// Receives from the ring that the memory holds until it is empty, broken, or `bursts` were taken. Gives the
    /// frames, and panics if one is not what its head says.
    pub fn receive(&self, size: u32, features: u64, bursts: usize) -> Vec<Vec<u8>> {
        let quarantine: OnBroken = Arc::new(|ring, why| {
            ring.set_broken(why);
        });
        let Ok(kick) = Event::new() else { return Vec::new() };
        let queue = self.ring(size, features, Direction::Readable).and_then(|ring| {
            ring.into_rx(&RingFeatures::new(features), Some(Arc::new(kick)), quarantine).ok()
        });
        queue.map(|mut queue| drain(&mut *queue, bursts)).unwrap_or_default()
    }

    /// Transmits frames of these lengths into the ring that the memory holds; how many it took.
    pub fn transmit(&self, size: u32, features: u64, lens: &[usize]) -> usize {
        let Some(ring) = self.ring(size, features, Direction::Writable) else { return 0 };
        let mut ring = ring.into_tx(&RingFeatures::new(features));
        let mut burst = Burst::new();
        let mut taken = 0;
        for lens in lens.chunks(BURST) {
            burst.clear();
            for &len in lens {
                let len = len.clamp(1, BYTES.len());
                let head = len.min(switch_core::head::HEAD_LEN);
                let Some(next) = burst.next_head() else { break };
                next.begin(len as u32, head).copy_from_slice(&BYTES[..head]);
                let tail = segment_of(&BYTES[head..len]);
                let pushed = if len > head { burst.push(&[tail]) } else { burst.push(&[]) };
                if pushed.is_err() {
                    break;
                }
            }
            let members: Vec<u8> = (0..burst.len() as u8).collect();
            match ring.transmit(&mut burst.bucket(&members)) {
                Ok(report) => taken += members.len() - report.dropped().count_ones() as usize,
                Err(_) => break,
            }
        }
        taken
    }
}

/// Receives until the queue is empty, broken, or `bursts` were taken.
fn drain(queue: &mut dyn RxQueue, bursts: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut burst = Burst::new();
    for _ in 0..bursts {
        burst.clear();
        let mut drops = RxDrops::default();
        match queue.rx_burst(&mut burst, &mut drops) {
            Ok(0) if drops.is_empty() => break,
            Ok(n) => {
                assert_eq!(n, burst.len());
                for i in 0..n {
                    frames.push(whole(&mut burst, i));
                }
                queue.release();
            }
            Err(_) => break,
        }
        if queue.arm().is_err() {
            break;
        }
        queue.disarm();
    }
    frames
}

fn whole(burst: &mut Burst, i: usize) -> Vec<u8> {
    let frame = burst.frame(i);
    let head: &Head = frame.head;
    let mut bytes = head.bytes().to_vec();
    for segment in frame.tail {
        let at = bytes.len();
        bytes.resize(at + segment.len(), 0);
        assert_eq!(segment.read(&mut bytes[at..]), segment.len());
    }
    assert_eq!(bytes.len(), head.frame_len());
    bytes
}

/// Polls a queue a few times when it comes and before it goes.
#[derive(Default)]
struct Host {
    queues: Mutex<HashMap<QueueId, Box<dyn RxQueue>>>,
    tx: Mutex<Option<Arc<dyn TxPort>>>,
}

impl Host {
    fn pass(&self, queue: &mut dyn RxQueue) {
        let tx = self.tx.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut burst = Burst::new();
        for _ in 0..4 {
            burst.clear();
            let Ok(n) = queue.rx_burst(&mut burst, &mut RxDrops::default()) else { return };
            let members: Vec<u8> = (0..n as u8).collect();
            if let Some(tx) = &tx {
                let _ = tx.tx_burst(0, &mut burst.bucket(&members));
            }
            queue.release();
            if queue.arm().is_err() {
                return;
            }
            queue.disarm();
        }
    }
}

impl QueueHost for Host {
    fn attach(&self, _port: PortId, mut queue: Box<dyn RxQueue>) -> QueueId {
        self.pass(&mut *queue);
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let id = QueueId::from_raw(queues.len() as u64);
        queues.insert(id, queue);
        id
    }

    fn detach(&self, id: QueueId) -> Option<Box<dyn RxQueue>> {
        let mut queue = self.queues.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)?;
        self.pass(&mut *queue);
        Some(queue)
    }
}

/// Runs one session on a socket, in this thread, until its front-end closes or breaks the protocol. What the guest
/// sends goes back to it.
///
/// # Errors
/// No eventfd to be had.
pub fn session(stream: UnixStream) -> io::Result<()> {
    let mut registry = Registry::<PortId>::new(1);
    let id = registry.mint().ok_or_else(|| io::Error::other("a new registry has an identifier"))?;
    let config = PortConfig { id, path: PathBuf::new(), role: Role::Client, queue_pairs: 2, mtu: None };
    let host = Arc::new(Host::default());
    let shared = Arc::new(Shared::new(&config, Arc::new(Event::new()?), Arc::new(|_| {})));
    *host.tx.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&shared) as Arc<dyn TxPort>);
    let runner = Runner {
        config,
        peers: Peers::new(Link::Client(PathBuf::new())),
        shared,
        host: Arc::clone(&host) as Arc<dyn QueueHost>,
    };
    runner.session(stream);
    *host.tx.lock().unwrap_or_else(PoisonError::into_inner) = None;
    assert!(
        host.queues.lock().unwrap_or_else(PoisonError::into_inner).is_empty(),
        "a queue outlived its session"
    );
    Ok(())
}
