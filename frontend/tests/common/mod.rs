//! The simplest correct back-end: a hub of vhost-user ports, one frame at a time, that drives the rings the way the
//! specification tells it, with notifications in both directions and no timer: a lost notification stalls it.
#![allow(dead_code)]

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use frontend::eventfd::Event;
use frontend::features as f;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Everything that a driver of this crate may negotiate.
pub(crate) const ALL: u64 = f::VERSION_1
    | f::ANY_LAYOUT
    | f::MRG_RXBUF
    | f::CSUM
    | f::GUEST_CSUM
    | f::ALL_TSO
    | f::INDIRECT_DESC
    | f::EVENT_IDX
    | f::IN_ORDER
    | f::MQ
    | f::PROTOCOL_FEATURES;

#[derive(Clone)]
pub(crate) struct Options {
    /// Features to offer.
    pub offer: u64,
    /// A frame goes back to its own port too.
    pub reflect: bool,
    /// With IN_ORDER: one used element for all buffers that are used together.
    pub batch: bool,
    /// The back-end connects (role client).
    pub client: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { offer: ALL, reflect: false, batch: true, client: false }
    }
}

#[derive(Default)]
struct Ring {
    size: u16,
    user: [u64; 3],
    placed: bool,
    next: u16,
    used: u16,
    signalled: u16,
    kick: Option<File>,
    call: Option<File>,
    enabled: bool,
}

struct MemRegion {
    gpa: u64,
    len: u64,
    user: u64,
    map: Arc<GuestRegionMmap>,
}

#[derive(Default)]
struct Port {
    features: u64,
    regions: Vec<MemRegion>,
    memory: Option<GuestMemoryMmap>,
    rings: HashMap<u32, Ring>,
    backlog: VecDeque<Vec<u8>>,
    spread: usize,
    gone: bool,
}

struct Hub {
    ports: Vec<Port>,
    options: Options,
    wake: Arc<Event>,
}

/// The running hub.
pub(crate) struct Backend {
    hub: Arc<Mutex<Hub>>,
    wake: Arc<Event>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
    paths: Vec<PathBuf>,
    _dir: tempfile::TempDir,
}

impl Backend {
    pub(crate) fn start(ports: usize, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wake = Arc::new(Event::new().unwrap());
        let hub = Arc::new(Mutex::new(Hub {
            ports: Vec::new(),
            options: options.clone(),
            wake: Arc::clone(&wake),
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let mut paths = Vec::new();
        for i in 0..ports {
            let path = dir.path().join(format!("port{i}.sock"));
            let (hub, stop, path_too) = (Arc::clone(&hub), Arc::clone(&stop), path.clone());
            if options.client {
                std::thread::spawn(move || connect_loop(&path_too, &hub, &stop));
            } else {
                let listener = UnixListener::bind(&path).unwrap();
                std::thread::spawn(move || {
                    for stream in listener.incoming() {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        serve(stream.unwrap(), Arc::clone(&hub));
                    }
                });
            }
            paths.push(path);
        }
        let worker = {
            let (hub, wake, stop) = (Arc::clone(&hub), Arc::clone(&wake), Arc::clone(&stop));
            std::thread::spawn(move || work(&hub, &wake, &stop))
        };
        Backend { hub, wake, stop, worker: Some(worker), paths, _dir: dir }
    }

    pub(crate) fn path(&self, port: usize) -> &Path {
        &self.paths[port]
    }

    /// How many sessions are open.
    pub(crate) fn sessions(&self) -> usize {
        self.hub.lock().unwrap().ports.iter().filter(|p| !p.gone).count()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.signal();
        for path in &self.paths {
            let _ = UnixStream::connect(path);
        }
        let result = self.worker.take().unwrap().join();
        if !std::thread::panicking() {
            result.expect("the back-end's worker panicked");
        }
    }
}

fn connect_loop(path: &Path, hub: &Arc<Mutex<Hub>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match UnixStream::connect(path) {
            Ok(stream) => serve(stream, Arc::clone(hub)),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

fn serve(stream: UnixStream, hub: Arc<Mutex<Hub>>) {
    let index = {
        let mut hub = hub.lock().unwrap();
        hub.ports.push(Port::default());
        hub.ports.len() - 1
    };
    let session = Arc::new(Mutex::new(Handler { hub: Arc::clone(&hub), index }));
    let mut handler = BackendReqHandler::from_stream(stream, session);
    while handler.handle_request().is_ok() {}
    let mut hub = hub.lock().unwrap();
    hub.ports[index] = Port { gone: true, ..Port::default() };
}

struct Handler {
    hub: Arc<Mutex<Hub>>,
    index: usize,
}

impl Handler {
    fn with<T>(&self, f: impl FnOnce(&mut Port) -> T) -> Result<T> {
        let mut hub = self.hub.lock().unwrap();
        let result = f(&mut hub.ports[self.index]);
        hub.wake.signal();
        Ok(result)
    }

    fn ring(&self, index: u32, f: impl FnOnce(&mut Ring)) -> Result<()> {
        self.with(|p| f(p.rings.entry(index).or_default()))
    }
}

impl Port {
    fn add(&mut self, gpa: u64, len: u64, user: u64, offset: u64, file: File) {
        let map = MmapRegion::from_file(FileOffset::new(file, offset), len as usize).unwrap();
        let map = Arc::new(GuestRegionMmap::new(map, GuestAddress(gpa)).unwrap());
        self.regions.push(MemRegion { gpa, len, user, map });
        self.remap();
    }

    fn remap(&mut self) {
        self.regions.sort_by_key(|r| r.gpa);
        let maps = self.regions.iter().map(|r| Arc::clone(&r.map)).collect();
        self.memory = GuestMemoryMmap::from_arc_regions(maps).ok();
    }

    fn gpa(&self, user: u64) -> u64 {
        let region =
            self.regions.iter().find(|r| user >= r.user && user - r.user < r.len).expect("ring in memory");
        region.gpa + (user - region.user)
    }

    fn header_len(&self) -> usize {
        if self.features & (f::VERSION_1 | f::MRG_RXBUF) != 0 { 12 } else { 10 }
    }

    fn running(&self, index: u32) -> bool {
        let always = self.features & f::PROTOCOL_FEATURES == 0;
        self.memory.is_some()
            && self.rings.get(&index).is_some_and(|r| r.kick.is_some() && r.placed && (r.enabled || always))
    }
}

const UNUSED: Result<()> = Err(Error::InvalidOperation("not part of these tests"));

fn unused<T>() -> Result<T> {
    Err(Error::InvalidOperation("not part of these tests"))
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }
    fn reset_owner(&mut self) -> Result<()> {
        UNUSED
    }
    fn reset_device(&mut self) -> Result<()> {
        self.with(|p| p.rings.values_mut().for_each(|r| r.enabled = false))
    }
    fn get_features(&mut self) -> Result<u64> {
        Ok(self.hub.lock().unwrap().options.offer)
    }
    fn set_features(&mut self, features: u64) -> Result<()> {
        self.with(|p| p.features = features)
    }
    fn set_mem_table(
        &mut self,
        ctx: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.with(|p| {
            p.regions.clear();
            for (r, file) in ctx.iter().zip(files) {
                p.add(r.guest_phys_addr, r.memory_size, r.user_addr, r.mmap_offset, file);
            }
            None
        })
    }
    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.ring(index, |r| r.size = num as u16)
    }
    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        self.with(|p| {
            let user = [descriptor, available, used].map(|a| p.gpa(a));
            let at = p.gpa(used) + 2;
            let idx: u16 = p.memory.as_ref().unwrap().read_obj(GuestAddress(at)).unwrap();
            let ring = p.rings.entry(index).or_default();
            ring.user = user;
            ring.placed = true;
            ring.used = idx;
            ring.signalled = idx;
        })
    }
    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index, |r| r.next = base as u16)
    }
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let mut base = 0;
        self.ring(index, |r| {
            base = r.next;
            r.kick = None;
            r.call = None;
        })?;
        Ok(VhostUserVringState::new(index, base.into()))
    }
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into(), |r| r.kick = fd)
    }
    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into(), |r| r.call = fd)
    }
    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }
    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        use VhostUserProtocolFeatures as P;
        Ok(P::MQ | P::REPLY_ACK | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE)
    }
    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(8)
    }
    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index, |r| r.enabled = enable)
    }
    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        unused()
    }
    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        UNUSED
    }
    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        UNUSED
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unused()
    }
    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unused()
    }
    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        UNUSED
    }
    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(32)
    }
    fn add_mem_region(
        &mut self,
        r: &VhostUserSingleMemoryRegion,
        fd: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        let r = **r;
        self.with(|p| p.add(r.guest_phys_addr, r.memory_size, r.user_addr, r.mmap_offset, fd)).map(|()| None)
    }
    fn remove_mem_region(&mut self, r: &VhostUserSingleMemoryRegion) -> Result<()> {
        let gpa = r.guest_phys_addr;
        self.with(|p| {
            p.regions.retain(|r| r.gpa != gpa);
            p.remap();
        })
    }
    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unused()
    }
    fn check_device_state(&mut self) -> Result<()> {
        UNUSED
    }
    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unused()
    }
    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        UNUSED
    }
}

/// One chain, gathered: readable bytes, and writable ranges.
struct Chain {
    head: u16,
    bytes: Vec<u8>,
    writable: Vec<(u64, usize)>,
}

impl Ring {
    fn word(&self, m: &GuestMemoryMmap, area: usize, at: u64) -> u16 {
        m.load(GuestAddress(self.user[area] + at), Ordering::Acquire).unwrap()
    }

    fn avail_idx(&self, m: &GuestMemoryMmap) -> u16 {
        self.word(m, 1, 2)
    }

    fn chain(&self, m: &GuestMemoryMmap, features: u64, idx: u16) -> Chain {
        let head = self.word(m, 1, 4 + 2 * u64::from(idx % self.size));
        let mut chain = Chain { head, bytes: Vec::new(), writable: Vec::new() };
        let (mut table, mut at, mut left) = (self.user[0], head, u32::from(self.size));
        assert!(at < self.size, "head {at} of a ring of {}", self.size);
        loop {
            let raw: [u8; 16] = m.read_obj(GuestAddress(table + 16 * u64::from(at))).unwrap();
            let addr = u64::from_le_bytes(raw[..8].try_into().unwrap());
            let len = u32::from_le_bytes(raw[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes(raw[12..14].try_into().unwrap());
            let next = u16::from_le_bytes(raw[14..].try_into().unwrap());
            if flags & 4 != 0 {
                assert!(
                    features & f::INDIRECT_DESC != 0 && flags == 4 && table == self.user[0] && len % 16 == 0
                );
                (table, at, left) = (addr, 0, len / 16);
                continue;
            }
            if flags & 2 != 0 {
                chain.writable.push((addr, len as usize));
            } else {
                assert!(chain.writable.is_empty(), "readable after writable");
                let start = chain.bytes.len();
                chain.bytes.resize(start + len as usize, 0);
                m.read_slice(&mut chain.bytes[start..], GuestAddress(addr)).unwrap();
            }
            if flags & 1 == 0 {
                return chain;
            }
            left -= 1;
            assert!(left > 0, "a chain longer than its table");
            if features & f::IN_ORDER != 0 && table == self.user[0] {
                assert_eq!(next, (at + 1) % self.size, "in order, descriptors are consecutive");
            }
            at = next;
        }
    }

    fn put_used(&mut self, m: &GuestMemoryMmap, id: u16, len: u32, count: u16) {
        let at = self.user[2] + 4 + 8 * u64::from(self.used % self.size);
        m.write_obj(u32::from(id), GuestAddress(at)).unwrap();
        m.write_obj(len, GuestAddress(at + 4)).unwrap();
        self.used = self.used.wrapping_add(count);
    }

    fn publish(&mut self, m: &GuestMemoryMmap, features: u64) {
        m.store(self.used, GuestAddress(self.user[2] + 2), Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
        let wanted = if features & f::EVENT_IDX != 0 {
            let event = self.word(m, 1, 4 + 2 * u64::from(self.size));
            self.used.wrapping_sub(event).wrapping_sub(1) < self.used.wrapping_sub(self.signalled)
        } else {
            self.used != self.signalled && self.word(m, 1, 0) & 1 == 0
        };
        self.signalled = self.used;
        if let (true, Some(call)) = (wanted, &mut self.call) {
            call.write_all(&1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Asks for kicks; gives whether something is there already.
    fn arm(&self, m: &GuestMemoryMmap, features: u64) -> bool {
        let (at, value) =
            if features & f::EVENT_IDX != 0 { (4 + 8 * u64::from(self.size), self.next) } else { (0, 0) };
        m.store(value, GuestAddress(self.user[2] + at), Ordering::Relaxed).unwrap();
        fence(Ordering::SeqCst);
        self.avail_idx(m) != self.next
    }

    fn disarm(&self, m: &GuestMemoryMmap, features: u64) {
        if features & f::EVENT_IDX == 0 {
            m.store(1u16, GuestAddress(self.user[2]), Ordering::Relaxed).unwrap();
        }
    }
}

fn work(hub: &Mutex<Hub>, wake: &Event, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut kicks = Vec::new();
        {
            let mut hub = hub.lock().unwrap();
            while hub.round() {}
            for port in &hub.ports {
                for (i, ring) in port.rings.iter().filter(|(i, _)| port.running(**i)) {
                    let waits = i % 2 == 1 || !port.backlog.is_empty();
                    if waits && ring.arm(port.memory.as_ref().unwrap(), port.features) {
                        // Something came between the round and the arming.
                        wake.signal();
                    }
                    kicks.push(ring.kick.as_ref().unwrap().try_clone().unwrap());
                }
            }
        }
        let mut fds: Vec<_> = kicks.iter().map(|k| k.as_fd()).collect();
        fds.push(wake.as_fd());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        frontend::eventfd::wait_readable(&fds, deadline).unwrap();
        wake.drain();
        for kick in &mut kicks {
            if frontend::eventfd::wait_readable(&[kick.as_fd()], std::time::Instant::now()).unwrap() {
                let _ = kick.read(&mut [0; 8]);
            }
        }
    }
}

impl Hub {
    /// Moves what there is. Gives whether anything moved.
    fn round(&mut self) -> bool {
        let mut moved = false;
        for from in 0..self.ports.len() {
            let rings: Vec<u32> = self.ports[from].rings.keys().copied().filter(|i| i % 2 == 1).collect();
            for index in rings {
                for frame in self.ports[from].take(index, self.options.batch) {
                    moved = true;
                    for to in 0..self.ports.len() {
                        if to != from || self.options.reflect {
                            self.ports[to].backlog.push_back(frame.clone());
                        }
                    }
                }
            }
        }
        for port in &mut self.ports {
            moved |= port.deliver();
        }
        moved
    }
}

impl Port {
    /// Takes what the guest sends by a ring; headers become twelve bytes long.
    fn take(&mut self, index: u32, batch: bool) -> Vec<Vec<u8>> {
        if !self.running(index) {
            return Vec::new();
        }
        let (features, header_len) = (self.features, self.header_len());
        let (Some(m), Some(ring)) = (&self.memory, self.rings.get_mut(&index)) else { return Vec::new() };
        ring.disarm(m, features);
        let avail = ring.avail_idx(m);
        let mut frames = Vec::new();
        let mut heads = Vec::new();
        while ring.next != avail {
            let chain = ring.chain(m, features, ring.next);
            assert!(chain.writable.is_empty() && chain.bytes.len() >= header_len);
            let mut frame = chain.bytes[..header_len].to_vec();
            frame.resize(12, 0);
            frame.extend_from_slice(&chain.bytes[header_len..]);
            frames.push(frame);
            heads.push(chain.head);
            ring.next = ring.next.wrapping_add(1);
        }
        if features & f::IN_ORDER != 0 && batch {
            if let Some(last) = heads.last() {
                ring.put_used(m, *last, 0, heads.len() as u16);
            }
        } else {
            // Not in order where that is allowed: the last first.
            if features & f::IN_ORDER == 0 {
                heads.reverse();
            }
            heads.iter().for_each(|h| ring.put_used(m, *h, 0, 1));
        }
        ring.publish(m, features);
        frames
    }

    /// Delivers the backlog, ring after ring, as far as there are buffers.
    fn deliver(&mut self) -> bool {
        let pairs: Vec<u32> = (0..16).map(|p| 2 * p).filter(|&i| self.running(i)).collect();
        if pairs.is_empty() {
            if self.gone {
                self.backlog.clear();
            }
            return false;
        }
        let header_len = self.header_len();
        let mut moved = false;
        while let Some(frame) = self.backlog.pop_front() {
            self.spread += 1;
            let index = pairs[self.spread % pairs.len()];
            let ring = self.rings.get_mut(&index).unwrap();
            let m = self.memory.as_ref().unwrap();
            let mut bytes = frame[..header_len].to_vec();
            bytes.extend_from_slice(&frame[12..]);
            let mergeable = self.features & f::MRG_RXBUF != 0;
            let avail = ring.avail_idx(m);
            let mut next = ring.next;
            let mut chains = Vec::new();
            let mut room = 0;
            while room < bytes.len() && next != avail && (mergeable || chains.is_empty()) {
                let chain = ring.chain(m, self.features, next);
                room += chain.writable.iter().map(|(_, len)| len).sum::<usize>();
                chains.push(chain);
                next = next.wrapping_add(1);
            }
            if room < bytes.len() {
                assert!(next == avail, "a frame of {} bytes does not fit into {room}", bytes.len());
                self.backlog.push_front(frame);
                break;
            }
            if header_len == 12 {
                bytes[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
            }
            let mut rest = &bytes[..];
            for chain in &chains {
                let before = rest.len();
                for &(addr, len) in &chain.writable {
                    let (now, later) = rest.split_at(len.min(rest.len()));
                    m.write_slice(now, GuestAddress(addr)).unwrap();
                    rest = later;
                }
                ring.put_used(m, chain.head, (before - rest.len()) as u32, 1);
            }
            ring.next = next;
            ring.publish(m, self.features);
            moved = true;
        }
        moved
    }
}
