//! A vhost-user session, as a well-behaved front-end leads it.
//!
//! The messages are those of the `vhost` crate's [`Frontend`], an implementation independent of the back-end under
//! test; the few that it lacks go as [`raw`](crate::raw) messages over the same socket. Each exchange is bounded by the
//! session's timeout, after which the session is over.
//!
//! The order of messages is QEMU's: features, protocol features, owner; then features, memory, rings, enable, status.

mod watchdog;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::error::{Error, Result};
use crate::eventfd::{Event, wait_readable};
use crate::features;
use crate::memory::{GuestMemory, Region};
use crate::raw::{Message, RawSession};
use crate::ring::RingAddresses;

/// Device status bits (virtio 1.3, 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are negotiated.
    pub const FEATURES_OK: u8 = 8;
    /// The device wants a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

/// The most rings that a session addresses.
const RINGS_MAX: u64 = 512;

/// One ring, as the back-end is told it.
#[derive(Clone, Copy, Debug)]
pub struct RingInfo<'a> {
    /// The ring's index (2N receives, 2N + 1 transmits).
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Where the back-end goes on: the available index, or of a packed ring both places with their wrap counters.
    pub base: u32,
    /// Where the areas are (guest-physical).
    pub addresses: RingAddresses,
    /// Guest to device.
    pub kick: &'a Event,
    /// Device to guest.
    pub call: &'a Event,
}

/// A vhost-user session, front-end's side.
pub struct Session {
    frontend: Frontend,
    raw: RawSession,
    stream: Arc<UnixStream>,
    timeout: Duration,
    offered: u64,
    acked: u64,
    protocol_offered: Option<u64>,
    protocol: Option<u64>,
    queue_num: Option<u64>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("offered", &format_args!("{:#x}", self.offered))
            .field("acked", &format_args!("{:#x}", self.acked))
            .field("protocol", &self.protocol)
            .field("queue_num", &self.queue_num)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Connects to a back-end that listens on `path` (its role is server), waiting for the socket to appear until
    /// `timeout`, which also bounds each later exchange.
    ///
    /// # Errors
    /// [`Error::Io`] when nobody listens in time.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self> {
        Self::from_stream(crate::raw::connect_stream(path.as_ref(), timeout)?, timeout)
    }

    /// Takes a connected socket; `timeout` bounds each exchange.
    ///
    /// # Errors
    /// The system call's.
    pub fn from_stream(stream: UnixStream, timeout: Duration) -> Result<Self> {
        let clone = || stream.try_clone().map_err(|e| Error::io("duplicating a socket", e));
        let raw = RawSession::from_stream(clone()?, timeout)?;
        let frontend = Frontend::from_stream(clone()?, RINGS_MAX);
        Ok(Session {
            frontend,
            raw,
            stream: Arc::new(stream),
            timeout,
            offered: 0,
            acked: 0,
            protocol_offered: None,
            protocol: None,
            queue_num: None,
        })
    }

    /// Opens the conversation: reads the features, negotiates those of the protocol (`wanted` and offered; `None`
    /// leaves out the protocol features altogether, as old front-ends do), and takes the device.
    ///
    /// # Errors
    /// The exchange's.
    pub fn open(&mut self, wanted: Option<u64>) -> Result<()> {
        self.offered = self.call("GET_FEATURES", |f| f.get_features())?;
        if let Some(wanted) = wanted.filter(|_| self.offered & features::PROTOCOL_FEATURES != 0) {
            let offered = self.call("GET_PROTOCOL_FEATURES", |f| f.get_protocol_features())?.bits();
            let acked = VhostUserProtocolFeatures::from_bits_retain(wanted & offered);
            self.protocol_offered = Some(offered);
            self.call("SET_PROTOCOL_FEATURES", |f| f.set_protocol_features(acked))?;
            self.protocol = Some(acked.bits());
            if self.has_protocol(features::protocol::MQ) {
                // Not by the front-end's own method: it takes the answer for a number of rings, QEMU and DPDK for a
                // number of queue pairs.
                self.queue_num = Some(self.raw.request(&Message::new(FrontendReq::GET_QUEUE_NUM))?.u64()?);
            }
        }
        self.call("SET_OWNER", |f| f.set_owner())
    }

    /// The features that the back-end offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The features that were accepted by [`Session::set_features`].
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The protocol features that the back-end offers; `None` when they were not asked for.
    #[must_use]
    pub fn protocol_offered(&self) -> Option<u64> {
        self.protocol_offered
    }

    /// The protocol features in force; `None` for a session without them, whose rings start enabled.
    #[must_use]
    pub fn protocol(&self) -> Option<u64> {
        self.protocol
    }

    /// Whether a protocol feature is in force.
    #[must_use]
    pub fn has_protocol(&self, feature: u64) -> bool {
        self.protocol.is_some_and(|p| p & feature != 0)
    }

    /// The back-end's answer to `GET_QUEUE_NUM`, when `MQ` is in force.
    #[must_use]
    pub fn queue_num(&self) -> Option<u64> {
        self.queue_num
    }

    /// The bound of each exchange.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The socket without rules.
    #[must_use]
    pub fn raw(&self) -> &RawSession {
        &self.raw
    }

    /// Accepts `acked` of the offered features. The bit of the protocol features is added where they are in force.
    ///
    /// # Errors
    /// The exchange's.
    pub fn set_features(&mut self, acked: u64) -> Result<()> {
        let own = if self.protocol.is_some() { features::PROTOCOL_FEATURES } else { 0 };
        let all = (acked & !features::PROTOCOL_FEATURES) | own;
        self.call("SET_FEATURES", |f| f.set_features(all))?;
        self.acked = all;
        Ok(())
    }

    /// Tells the back-end the whole memory: region by region where `slots` and `CONFIGURE_MEM_SLOTS` allow it, else
    /// as one table.
    ///
    /// # Errors
    /// The exchange's.
    pub fn set_memory(&mut self, memory: &GuestMemory, slots: bool) -> Result<()> {
        if slots && self.has_protocol(features::protocol::CONFIGURE_MEM_SLOTS) {
            return memory.regions().iter().try_for_each(|region| self.add_region(region));
        }
        let regions: Vec<_> = memory.regions().iter().map(region_info).collect();
        self.call("SET_MEM_TABLE", |f| f.set_mem_table(&regions)).map(|_| ())
    }

    /// Tells the back-end of one more region.
    ///
    /// # Errors
    /// The exchange's; `CONFIGURE_MEM_SLOTS` must be in force.
    pub fn add_region(&mut self, region: &Region) -> Result<()> {
        self.call("ADD_MEM_REG", |f| f.add_mem_region(&region_info(region))).map(|_| ())
    }

    /// Takes a region from the back-end.
    ///
    /// # Errors
    /// The exchange's; `CONFIGURE_MEM_SLOTS` must be in force.
    pub fn remove_region(&mut self, region: &Region) -> Result<()> {
        self.call("REM_MEM_REG", |f| f.remove_mem_region(&region_info(region)))
    }

    /// How many regions the back-end takes.
    ///
    /// # Errors
    /// The exchange's; `CONFIGURE_MEM_SLOTS` must be in force.
    pub fn max_mem_slots(&mut self) -> Result<u64> {
        self.call("GET_MAX_MEM_SLOTS", |f| f.get_max_mem_slots())
    }

    /// Sets a ring up: size, base, addresses, call and kick. It runs once it is enabled too
    /// (without protocol features at once).
    ///
    /// # Errors
    /// The exchange's; [`Error::Memory`] for areas outside of memory.
    pub fn set_ring(&mut self, memory: &GuestMemory, ring: &RingInfo<'_>) -> Result<()> {
        let index = usize::from(ring.index);
        let config = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: memory.user_addr(ring.addresses.desc)?,
            used_ring_addr: memory.user_addr(ring.addresses.used)?,
            avail_ring_addr: memory.user_addr(ring.addresses.avail)?,
            log_addr: None,
        };
        self.call("SET_VRING_NUM", |f| f.set_vring_num(index, ring.size))?;
        // Not by the front-end's own method, which knows the split ring's indexes only.
        self.acked_raw(Message::vring_state(FrontendReq::SET_VRING_BASE, ring.index.into(), ring.base))?;
        self.call("SET_VRING_ADDR", |f| f.set_vring_addr(index, &config))?;
        self.call("SET_VRING_CALL", |f| f.set_vring_call(index, ring.call.inner()))?;
        self.call("SET_VRING_KICK", |f| f.set_vring_kick(index, ring.kick.inner()))
    }

    /// Enables or disables a ring. Without protocol features there is no such message, and nothing is sent.
    ///
    /// # Errors
    /// The exchange's.
    pub fn enable_ring(&mut self, index: u16, enable: bool) -> Result<()> {
        if self.protocol.is_none() {
            return Ok(());
        }
        self.call("SET_VRING_ENABLE", |f| f.set_vring_enable(usize::from(index), enable))
    }

    /// Stops a ring, and gives the place at which the back-end stood, as [`RingInfo::base`] tells it.
    ///
    /// # Errors
    /// The exchange's; of a split ring, an index of more than 16 bits.
    pub fn stop_ring(&mut self, index: u16) -> Result<u32> {
        let base = self.call("GET_VRING_BASE", |f| f.get_vring_base(usize::from(index)))?;
        if self.acked & features::RING_PACKED == 0 && base > u32::from(u16::MAX) {
            return Err(Error::Protocol(format!("ring {index} stopped at index {base}")));
        }
        Ok(base)
    }

    /// Tells the device status, where `STATUS` is in force; else nothing is sent.
    ///
    /// # Errors
    /// The exchange's.
    pub fn set_status(&mut self, status: u8) -> Result<()> {
        if !self.has_protocol(features::protocol::STATUS) {
            return Ok(());
        }
        self.acked_raw(Message::u64(FrontendReq::SET_STATUS, status.into()))
    }

    /// Asks for the device status.
    ///
    /// # Errors
    /// The exchange's; `STATUS` must be in force.
    pub fn status(&mut self) -> Result<u8> {
        let status = self.raw.request(&Message::new(FrontendReq::GET_STATUS))?.u64()?;
        u8::try_from(status).map_err(|_| Error::Protocol(format!("device status {status:#x}")))
    }

    /// Resets the device; all its rings are disabled.
    ///
    /// # Errors
    /// The exchange's; `RESET_DEVICE` must be in force.
    pub fn reset_device(&mut self) -> Result<()> {
        self.call("RESET_DEVICE", |f| f.reset_device())
    }

    /// Tells the MTU that the guest has.
    ///
    /// # Errors
    /// The exchange's, also when the back-end refuses the MTU; `MTU` must be in force.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<()> {
        self.acked_raw(Message::u64(FrontendReq::NET_SET_MTU, mtu.into()))
    }

    /// Asks the back-end to announce this MAC address after a migration.
    ///
    /// # Errors
    /// The exchange's; `RARP` must be in force.
    pub fn send_rarp(&mut self, mac: [u8; 6]) -> Result<()> {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&mac);
        self.acked_raw(Message::u64(FrontendReq::SEND_RARP, u64::from_le_bytes(bytes)))
    }

    /// Sends a message that the front-end's own implementation lacks, and waits for its acknowledgement where
    /// `REPLY_ACK` is in force.
    ///
    /// # Errors
    /// The exchange's; [`Error::Protocol`] when the back-end refuses.
    pub fn acked_raw(&mut self, message: Message<'_>) -> Result<()> {
        if !self.has_protocol(features::protocol::REPLY_ACK) {
            return self.raw.send(&message);
        }
        let request = message.request;
        match self.raw.request(&message.need_reply())?.u64()? {
            0 => Ok(()),
            code => Err(Error::Protocol(format!("the back-end refused request {request} with {code:#x}"))),
        }
    }

    /// One exchange of the front-end, bounded in time, acknowledged where that is in force.
    fn call<T>(
        &mut self,
        message: &'static str,
        f: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T> {
        // A message with a reply of its own needs no second one.
        let ack = self.has_protocol(features::protocol::REPLY_ACK) && !message.starts_with("GET_");
        self.frontend.set_hdr_flags(if ack {
            VhostUserHeaderFlag::NEED_REPLY
        } else {
            VhostUserHeaderFlag::empty()
        });
        let guard = watchdog::watch(&self.stream, self.timeout);
        let result = f(&mut self.frontend);
        let fired = guard.fired();
        result.map_err(|source| match source {
            _ if fired => Error::Timeout { what: message, after: self.timeout },
            vhost::Error::VhostUserProtocol(vhost::vhost_user::Error::Disconnected) => Error::Closed,
            source => Error::Message { message, source },
        })
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn region_info(region: &Region) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.gpa(),
        memory_size: region.len(),
        userspace_addr: region.user_addr(),
        mmap_offset: 0,
        mmap_handle: region.fd().as_raw_fd(),
    }
}

/// A socket on which a back-end of role client finds us. Its file is removed with it.
#[derive(Debug)]
pub struct SessionListener {
    listener: UnixListener,
    path: PathBuf,
}

impl SessionListener {
    /// Listens on `path`; a socket that is there already is replaced.
    ///
    /// # Errors
    /// The system call's.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        let path = path.as_ref().to_owned();
        if std::fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_socket()) {
            let _ = std::fs::remove_file(&path);
        }
        let what = || format!("listening on {}", path.display());
        let listener = UnixListener::bind(&path).map_err(|e| Error::io(what(), e))?;
        listener.set_nonblocking(true).map_err(|e| Error::io(what(), e))?;
        Ok(SessionListener { listener, path })
    }

    /// Waits for a back-end; `timeout` also bounds each exchange of the session.
    ///
    /// # Errors
    /// [`Error::Timeout`] when none comes.
    pub fn accept(&self, timeout: Duration) -> Result<Session> {
        Session::from_stream(self.accept_stream(timeout)?, timeout)
    }

    /// Waits for a back-end, and gives the bare socket.
    ///
    /// # Errors
    /// [`Error::Timeout`] when none comes.
    pub fn accept_stream(&self, timeout: Duration) -> Result<UnixStream> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(|e| Error::io("accepting a back-end", e))?;
                    return Ok(stream);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    if !wait_readable(&[self.listener.as_fd()], deadline)? {
                        return Err(Error::Timeout { what: "connection of the back-end", after: timeout });
                    }
                }
                Err(e) => return Err(Error::io("accepting a back-end", e)),
            }
        }
    }
}

impl Drop for SessionListener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
