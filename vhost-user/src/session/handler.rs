//! What each message of a front-end does. One value per connection, used by the session's thread alone.
//!
//! An `Err` ends the session. Where the reason is known better here than by the request handler that passes
//! it on, it is left in [`Session::fault`].

use std::fs::File;
use std::sync::Arc;

use switch_core::MacAddr;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::gate::{Header, Request};
use super::rings::{self, Kick, Rings};
use crate::features;
use crate::memory::{GuestMemory, RegionSpec, SLOTS_MAX};
use crate::vring::notify::Event;
use crate::vring::{Layout, RingFeatures, SetupError, packed};

/// The smallest MTU of IPv4 (RFC 791), as virtio has it (1.2, 5.1.4.1).
const MTU_MIN: u64 = 68;
/// Virtio's device status (1.2, 2.1): the driver accepts the features.
const STATUS_FEATURES_OK: u8 = 8;

/// A connection's state.
pub(super) struct Session {
    pub(super) rings: Rings,
    queue_pairs: u16,
    /// The port's own MTU, if it was given one.
    mtu_max: Option<u16>,
    pub(super) protocol_features: u64,
    /// The MTU that the front-end wants (`NET_SET_MTU`).
    pub(super) mtu: Option<u16>,
    /// Virtio device status, as the front-end tells it.
    pub(super) status: u8,
    /// Why the last message failed, in words.
    pub(super) fault: Option<String>,
    features_read: bool,
}

impl Session {
    pub(super) fn new(rings: Rings, queue_pairs: u16, mtu_max: Option<u16>) -> Self {
        Self {
            rings,
            queue_pairs,
            mtu_max,
            protocol_features: 0,
            mtu: None,
            status: 0,
            fault: None,
            features_read: false,
        }
    }

    fn refuse<T>(&mut self, why: impl ToString) -> Result<T> {
        self.fault = Some(why.to_string());
        Err(Error::InvalidParam)
    }

    fn unsupported<T>(&mut self, what: &'static str) -> Result<T> {
        self.refuse(format!("{what} was not offered"))
    }

    fn ring(&mut self, index: u32) -> Result<usize> {
        let count = self.rings.list().len();
        match usize::try_from(index) {
            Ok(i) if i < count => Ok(i),
            _ => self.refuse(format!(
                "ring {index} does not exist; there are {count}, as the port has queues={}",
                self.queue_pairs
            )),
        }
    }

    fn event(&mut self, what: &str, index: usize, file: Option<File>) -> Result<Option<Event>> {
        match file.map(Event::from_peer).transpose() {
            Ok(event) => Ok(event),
            Err(e) => self.refuse(format!("ring {index}: {what}: {e}")),
        }
    }

    /// Answers the messages that are not the request handler's. The number is the reply's; an error ends the
    /// session, as it does there.
    pub(super) fn ours(&mut self, header: &Header, value: Option<u64>) -> Result<u64> {
        let Some(value) = value else { return Ok(u64::from(self.status)) };
        let done = match header.request {
            Request::SET_VRING_ENABLE => {
                let (index, enable) = (value as u32, (value >> 32) as u32);
                match enable {
                    0 | 1 => self.set_vring_enable(index, enable == 1)?,
                    other => return self.refuse(format!("ring {index}: {other} is neither on nor off")),
                }
                true
            }
            Request::SEND_RARP => {
                let [a, b, c, d, e, f, _, _] = value.to_ne_bytes();
                let mac = MacAddr([a, b, c, d, e, f]);
                mac.is_station() && self.rings.inject(&announcement(mac))
            }
            Request::NET_SET_MTU => match u16::try_from(value) {
                Ok(mtu) if value >= MTU_MIN && self.mtu_max.is_none_or(|max| mtu <= max) => {
                    self.mtu = Some(mtu);
                    true
                }
                _ => false,
            },
            Request::SET_STATUS => match u8::try_from(value) {
                Ok(status) => {
                    self.status = status;
                    true
                }
                Err(_) => false,
            },
            _ => false,
        };
        Ok(u64::from(!done))
    }

    /// True if a message that asks for it is acknowledged.
    pub(super) fn acknowledges(&self) -> bool {
        self.features_read && self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    fn swap_memory(
        &mut self,
        memory: std::result::Result<GuestMemory, crate::memory::MemoryError>,
    ) -> Result<()> {
        match memory {
            Ok(memory) => match self.rings.set_memory(memory) {
                Ok(()) => Ok(()),
                Err(e) => self.refuse(e),
            },
            Err(e) => self.refuse(e),
        }
    }

    fn start(&mut self, index: usize) -> Result<()> {
        match self.rings.start(index) {
            Ok(()) => Ok(()),
            Err(e) => self.refuse(e),
        }
    }
}

/// A reverse ARP request (RFC 903) of a guest that has moved here: bridges on the way relearn its address.
fn announcement(mac: MacAddr) -> [u8; 60] {
    const ETHERTYPE_RARP: u16 = 0x8035;
    const REQUEST_REVERSE: u16 = 3;
    let mut frame = [0u8; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_RARP.to_be_bytes());
    // Ethernet and IPv4, with addresses of 6 and 4 bytes.
    frame[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame[20..22].copy_from_slice(&REQUEST_REVERSE.to_be_bytes());
    frame[22..28].copy_from_slice(&mac.0);
    frame[32..38].copy_from_slice(&mac.0);
    frame
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        size: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.rings.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.rings.reset();
        self.status = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        self.features_read = true;
        Ok(features::offered(self.queue_pairs))
    }

    fn set_features(&mut self, agreed: u64) -> Result<()> {
        let unknown = agreed & !features::offered(self.queue_pairs);
        if unknown != 0 {
            self.status &= !STATUS_FEATURES_OK;
            return self.refuse(format!("features {unknown:#x} were not offered"));
        }
        match self.rings.set_features(agreed) {
            Ok(()) => Ok(()),
            Err(e) => self.refuse(e),
        }
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        if regions.len() != files.len() {
            return self.refuse(format!("{} memory regions came with {} files", regions.len(), files.len()));
        }
        let memory = GuestMemory::new(regions.iter().map(spec).zip(files));
        self.swap_memory(memory).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let index = self.ring(index)?;
        if let Some(e) = SetupError::of_size(num, &RingFeatures::new(self.rings.features())) {
            return self.refuse(format!("ring {index}: {e}"));
        }
        self.rings.renew(index);
        if let Some(ring) = self.rings.get(index) {
            if ring.size != Some(num) {
                // Addresses belong to a size: what is there was another ring.
                ring.layout = None;
            }
            ring.size = Some(num);
        }
        self.start(index)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let index = self.ring(index)?;
        match self.rings.set_layout(index, Layout { descriptors, available, used }) {
            Ok(()) => Ok(()),
            Err(e) => self.refuse(e),
        }
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let index = self.ring(index)?;
        if base > u32::from(u16::MAX) && !RingFeatures::new(self.rings.features()).packed {
            return self.refuse(format!("ring {index}: index {base} is past 65535"));
        }
        self.rings.renew(index);
        if let Some(ring) = self.rings.get(index) {
            ring.next = Some(base);
        }
        self.start(index)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        self.rings.hand_over(ring);
        let start = if RingFeatures::new(self.rings.features()).packed { packed::START } else { 0 };
        let mut next = rings::base(start, self.rings.features());
        if let Some(ring) = self.rings.get(ring) {
            // A new kick descriptor starts the ring again.
            ring.kick = Kick::Unset;
            next = ring.next.unwrap_or(next);
        }
        Ok(VhostUserVringState::new(index, next))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.ring(u32::from(index))?;
        let event = self.event("kick", index, fd)?;
        self.rings.renew(index);
        if let Some(ring) = self.rings.get(index) {
            ring.kick = event.map_or(Kick::Polled, |event| Kick::Event(Arc::new(event)));
        }
        self.start(index)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.ring(u32::from(index))?;
        let event = self.event("call", index, fd)?;
        if let Some(ring) = self.rings.get(index) {
            ring.shared.call.set(event);
            if ring.is_running() {
                // What was announced to the old descriptor may not have been heard.
                ring.shared.call.signal();
            }
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.ring(u32::from(index))?;
        let event = self.event("err", index, fd)?;
        if let Some(ring) = self.rings.get(index) {
            ring.error_event = event;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::protocol_offered())
    }

    fn set_protocol_features(&mut self, agreed: u64) -> Result<()> {
        let unknown = agreed & !features::protocol_offered().bits();
        if unknown != 0 {
            return self.refuse(format!("protocol features {unknown:#x} were not offered"));
        }
        self.protocol_features = agreed;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        // Front-ends differ in whether they compare this with their rings or with their pairs; this is the
        // number of rings, as the specification has it. A ring that does not exist is refused by its index.
        Ok(2 * u64::from(self.queue_pairs))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.ring(index)?;
        if let Some(ring) = self.rings.get(index) {
            ring.enabled = enable;
        }
        if enable {
            self.start(index)
        } else {
            self.rings.stop(index);
            Ok(())
        }
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let memory = match self.rings.memory() {
            Some(memory) => memory.with(spec(region), &file),
            None => GuestMemory::default().with(spec(region), &file),
        };
        self.swap_memory(memory).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = match self.rings.memory() {
            Some(memory) => memory.without(spec(region)),
            None => GuestMemory::default().without(spec(region)),
        };
        self.swap_memory(memory)
    }

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.unsupported("GET_CONFIG")
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.unsupported("SET_CONFIG")
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        self.unsupported("GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        self.unsupported("GET_SHARED_OBJECT")
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.unsupported("GET_INFLIGHT_FD")
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        self.unsupported("SET_INFLIGHT_FD")
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        self.unsupported("SET_DEVICE_STATE_FD")
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.unsupported("CHECK_DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.unsupported("GET_SHMEM_CONFIG")
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        self.unsupported("SET_LOG_BASE")
    }
}

/// The error that the request handler passed on, in words, if it has none of ours.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::InvalidMessage => "malformed, or unknown to this back-end".to_owned(),
        Error::InactiveFeature(_) | Error::InactiveOperation(_) => {
            format!("its feature was not agreed on ({error})")
        }
        Error::ReqHandlerError(e) => e.to_string(),
        other => other.to_string(),
    }
}
