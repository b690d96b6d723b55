//! The reflector's vhost-user sessions: what a well-behaved front-end says, put into [`Port`].

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use frontend::features as f;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use super::Shared;
use super::port::{Port, Region, Ring};

/// Segments pass through as they are, with the header that the sender wrote.
const SEGMENTS: u64 = f::CSUM | f::GUEST_CSUM | f::HOST_TSO4 | f::GUEST_TSO4;
const OFFERED: u64 =
    f::VERSION_1 | f::MRG_RXBUF | f::IN_ORDER | f::RING_PACKED | SEGMENTS | f::PROTOCOL_FEATURES;

/// Serves one front-end after the other.
pub(super) fn serve(listener: &UnixListener, shared: &Arc<Shared>, index: usize) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        let session = Arc::new(Mutex::new(Session { shared: Arc::clone(shared), port: index }));
        let mut handler = BackendReqHandler::from_stream(stream, session);
        let end = loop {
            if let Err(end) = handler.handle_request() {
                break end;
            }
        };
        eprintln!("session ended: {end}");
        shared.message(index, |port| *port = Port::default());
    }
}

struct Session {
    shared: Arc<Shared>,
    port: usize,
}

fn region(gpa: u64, user: u64, len: u64, offset: u64, file: File) -> Result<Region> {
    let map = MmapRegion::from_file(FileOffset::new(file, 0), (offset + len) as usize)
        .map_err(|error| Error::ReqHandlerError(std::io::Error::other(error)))?;
    Ok(Region { gpa, user, len, offset, map })
}

impl Session {
    fn message<T>(&self, change: impl FnOnce(&mut Port) -> T) -> T {
        self.shared.message(self.port, change)
    }

    fn ring<T>(&self, index: u32, change: impl FnOnce(&mut Ring) -> T) -> Result<T> {
        let unknown = Error::InvalidParam;
        self.message(|port| port.rings.get_mut(index as usize).map(change)).ok_or(unknown)
    }

    /// Once a ring is complete, its driver need not kick.
    fn silence(&self, index: u32) {
        self.message(|port| {
            if port.runs()
                && let Err(error) = [0, 1].iter().try_for_each(|&ring| port.silence(ring))
            {
                eprintln!("ring {index}: {error:#}");
            }
        });
    }
}

fn unused<T>() -> Result<T> {
    Err(Error::InvalidOperation("not served by the reflector"))
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }
    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }
    fn reset_device(&mut self) -> Result<()> {
        unused()
    }
    fn get_features(&mut self) -> Result<u64> {
        Ok(OFFERED)
    }
    fn set_features(&mut self, features: u64) -> Result<()> {
        self.message(|port| port.features = features);
        Ok(())
    }
    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = table.iter().zip(files);
        let regions = regions
            .map(|(r, file)| region(r.guest_phys_addr, r.user_addr, r.memory_size, r.mmap_offset, file))
            .collect::<Result<_>>()?;
        self.message(|port| port.regions = regions);
        Ok(None)
    }
    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.ring(index, |ring| ring.size = num as u16)
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
        self.ring(index, |ring| ring.areas = Some([descriptor, available, used]))
    }
    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index, |ring| ring.place = base as u16)
    }
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.ring(index, |ring| {
            ring.kick = None;
            ring.place
        })?;
        Ok(VhostUserVringState::new(index, base.into()))
    }
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into(), |ring| ring.kick = fd)?;
        self.silence(index.into());
        Ok(())
    }
    fn set_vring_call(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }
    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }
    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK)
    }
    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }
    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index, |ring| ring.enabled = enable)?;
        self.silence(index);
        Ok(())
    }
    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        unused()
    }
    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unused()
    }
    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unused()
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unused()
    }
    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unused()
    }
    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unused()
    }
    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unused()
    }
    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        unused()
    }
    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unused()
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
        unused()
    }
    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unused()
    }
    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unused()
    }
}
