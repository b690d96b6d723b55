//! What the tests of ports share: bursts to transmit, and a host of queues without workers.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use switch_core::head::HEAD_LEN;
use switch_core::ids::Registry;
use switch_core::verdict::BURST;
use switch_core::{PortId, check};

use crate::burst::{Bucket, Burst};
use crate::egress::to_vec;
use crate::host::{QueueHost, QueueId};
use crate::memory::Segment;
use crate::port::{RxDrops, RxQueue};

/// How long something that must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A frame of `len` bytes that tells from others by `tag`.
pub(crate) fn frame(tag: u32, len: usize) -> Vec<u8> {
    (0..len).map(|i| (tag as usize).wrapping_mul(31).wrapping_add(i * 7 + i / 251) as u8).collect()
}

/// A port's name.
pub(crate) fn port_id() -> PortId {
    Registry::new(1).mint().unwrap()
}

/// Waits until `holds`.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Frames to transmit: heads of at most [`HEAD_LEN`] bytes, and tails in `pieces` segments.
pub(crate) struct Outgoing<'a> {
    burst: Burst,
    members: Vec<u8>,
    _frames: &'a [Vec<u8>],
}

impl<'a> Outgoing<'a> {
    /// At most [`BURST`] frames.
    pub(crate) fn new(frames: &'a [Vec<u8>], pieces: usize) -> Self {
        assert!(frames.len() <= BURST);
        let mut burst = Burst::new();
        for frame in frames {
            let bytes = burst.next_head().unwrap().begin(frame.len() as u32, HEAD_LEN);
            let (first, rest) = frame.split_at(bytes.len());
            bytes.copy_from_slice(first);
            let piece = rest.len().div_ceil(pieces).max(1);
            // SAFETY: the frames outlive the burst, by the lifetime that this type has.
            let tail = rest.chunks(piece).map(|c| unsafe { Segment::new(c.as_ptr(), c.len() as u32) });
            burst.push(&tail.collect::<Vec<_>>()).unwrap();
        }
        for head in burst.heads_mut() {
            // Frames that are too short are a port's to carry all the same.
            let _ = check::frame(head, Default::default());
        }
        let members = (0..burst.len() as u8).collect();
        Self { burst, members, _frames: frames }
    }

    /// All of them.
    pub(crate) fn bucket(&mut self) -> Bucket<'_> {
        self.burst.bucket(&self.members)
    }

    pub(crate) fn burst(&mut self) -> &mut Burst {
        &mut self.burst
    }
}

/// Everything that a queue gives now.
pub(crate) fn receive(queue: &mut dyn RxQueue, drops: &mut RxDrops) -> Vec<Vec<u8>> {
    let mut burst = Burst::new();
    let mut frames = Vec::new();
    loop {
        burst.clear();
        let before = *drops;
        let n = queue.rx_burst(&mut burst, drops).unwrap();
        assert_eq!(n, burst.len());
        frames.extend((0..n).map(|i| to_vec(&burst.heads()[i], burst.tail(i))));
        queue.release();
        if n == 0 && *drops == before {
            return frames;
        }
    }
}

/// Queues that are polled by whoever asks.
#[derive(Default)]
pub(crate) struct Host {
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    next: u64,
    attached: HashMap<QueueId, Box<dyn RxQueue>>,
}

impl Host {
    /// What all queues give now.
    pub(crate) fn poll(&self) -> Vec<Vec<u8>> {
        let mut queues = self.queues.lock().unwrap();
        queues.attached.values_mut().flat_map(|q| receive(&mut **q, &mut RxDrops::default())).collect()
    }

    /// Queues that are attached.
    pub(crate) fn len(&self) -> usize {
        self.queues.lock().unwrap().attached.len()
    }
}

impl QueueHost for Host {
    fn attach(&self, _port: PortId, queue: Box<dyn RxQueue>) -> QueueId {
        let mut queues = self.queues.lock().unwrap();
        let id = QueueId::from_raw(queues.next);
        queues.next += 1;
        queues.attached.insert(id, queue);
        id
    }

    fn detach(&self, id: QueueId) -> Option<Box<dyn RxQueue>> {
        self.queues.lock().unwrap().attached.remove(&id)
    }
}
