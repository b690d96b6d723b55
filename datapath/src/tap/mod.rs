//! The tap port: the other end is the IP stack of the host or of a namespace, or whatever is attached there.
//!
//! A [`Tap`] is one interface and its queues' descriptors, created, joined by name (a persistent tap that
//! `ip tuntap add` made) or adopted from descriptors that somebody handed over. Every frame travels with a
//! virtio-net header of 12 bytes (`IFF_VNET_HDR`, `TUNSETVNETHDRSZ`), so that checksums and super-frames pass
//! as requests and a 64 KB TCP segment is one system call. The module speaks to `/dev/net/tun` itself;
//! docs/adr/0001-tap-module.md says why.
//!
//! The control thread owns the `Tap`; its [`TapRx`]s go to workers, one each, and its [`TapTx`] is shared by
//! all of them. `write(2)` on a tap is a transaction of its own, so transmitters take no lock. The interface
//! lives until the last of the three is dropped, unless it is persistent.
//!
//! Kernel interface: Documentation/networking/tuntap.rst, `drivers/net/tun.c`.

mod rx;
mod tx;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use switch_core::MacAddr;
use switch_core::offload::OffloadSet;
use switch_core::virtio_net::HEADER_LEN;

pub use crate::netdev::link::NameError;
use crate::netdev::link::{Links, Request, check_name};
pub use rx::TapRx;
pub(crate) use rx::armed;
pub use tx::TapTx;

/// Queues that one tap can have (the kernel's `MAX_TAP_QUEUES`).
pub const QUEUES_MAX: usize = 256;

const DEVICE: &str = "/dev/net/tun";
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a tap could not be had or set.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name cannot be an interface's.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No queues, or more than [`QUEUES_MAX`].
    #[error("a tap has 1 to {QUEUES_MAX} queues, not {0}")]
    Queues(usize),
    /// There is no tun driver.
    #[error(
        "opening {DEVICE} for tap '{name}': {source}; load the driver (modprobe tun), or give the container the device"
    )]
    NoDriver {
        /// The tap.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not allowed.
    #[error(
        "{what} tap '{name}': not permitted; it needs CAP_NET_ADMIN, or a tap made for this user beforehand \
         (ip tuntap add {name} mode tap user NAME)"
    )]
    Permission {
        /// What was tried.
        what: &'static str,
        /// The tap.
        name: String,
    },
    /// Somebody else has the tap's only queue.
    #[error(
        "joining tap '{0}': another process holds it; stop that process, or attach the interface as a netdev port \
         if a virtual machine monitor is what holds it"
    )]
    Busy(String),
    /// The interface exists with one queue, and more were asked for.
    #[error(
        "joining tap '{0}' with several queues: it was made with one; ask for one queue, or make it again \
         (ip tuntap add {0} mode tap multi_queue)"
    )]
    SingleQueue(String),
    /// The interface exists and is something else.
    #[error(
        "joining tap '{0}': an interface of this name exists, and it is no tap; use another name or a netdev port"
    )]
    NotATap(String),
    /// The descriptor is no tap's, or the tap was opened in a way that cannot be changed any more.
    #[error("adopting a tap's descriptor: {0}; open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Adopt(&'static str),
    /// Anything else.
    #[error("{what} tap '{name}': {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The tap.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A tap interface and its queues. See the module's text.
#[derive(Debug)]
pub struct Tap {
    index: u32,
    joined: bool,
    links: Links,
    queues: Vec<Arc<OwnedFd>>,
    /// What the kernel may ask of us in the frames that we read.
    accepted: OffloadSet,
    /// What we may ask of the kernel in the frames that we write.
    offered: OffloadSet,
}

impl Tap {
    /// Creates the tap, or joins it if there is a persistent one of this name that nobody holds. It belongs to
    /// the network namespace of the calling thread. A tap made here is down, and gone when the last descriptor
    /// is closed.
    ///
    /// A tap that was made with `multi_queue` can be joined with one queue; the other way is refused.
    pub fn open(name: &str, queues: usize) -> Result<Self, TapError> {
        check_name(name)?;
        if queues == 0 || queues > QUEUES_MAX {
            return Err(TapError::Queues(queues));
        }
        let links = Links::open().map_err(|e| io_error("looking for", name, e))?;
        let joined = links.index_of(name).map_err(|e| io_error("looking for", name, e))?.is_some();

        let mut multi_queue = queues > 1;
        let mut fds = Vec::with_capacity(queues);
        for _ in 0..queues {
            let fd = open_device(name)?;
            match attach(&fd, name, multi_queue) {
                Ok(()) => {}
                // The kernel's answer to a name that is taken by another kind of interface, and to a tap whose
                // flag for several queues differs. Which of the two it is shows when the flag is turned over.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && joined && fds.is_empty() => {
                    match attach(&fd, name, !multi_queue) {
                        Ok(()) if multi_queue => return Err(TapError::SingleQueue(name.to_owned())),
                        Err(e) if multi_queue && e.raw_os_error() == Some(libc::EBUSY) => {
                            return Err(TapError::SingleQueue(name.to_owned()));
                        }
                        Ok(()) => multi_queue = true,
                        Err(e) => return Err(attach_error(name, joined, e)),
                    }
                }
                Err(e) => return Err(attach_error(name, joined, e)),
            }
            fds.push(fd);
        }
        Self::finish(name, joined, links, fds)
    }

    /// Adopts a tap by the descriptors of its queues, as a launcher hands them over. They must have been
    /// opened with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`; the header's size, the offloads and `O_NONBLOCK`
    /// are set here.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        if fds.is_empty() || fds.len() > QUEUES_MAX {
            return Err(TapError::Queues(fds.len()));
        }
        let mut name: Option<String> = None;
        for fd in &fds {
            let mut request = Request::named("adopted").map_err(|e| io_error("adopting", "?", e))?;
            request.run(fd.as_raw_fd(), libc::TUNGETIFF).map_err(|e| match e.raw_os_error() {
                Some(libc::EBADFD) => TapError::Adopt("it is not attached to an interface"),
                _ => TapError::Adopt("it is not a tap's"),
            })?;
            // SAFETY: the kernel wrote the flags; any bits are a valid integer.
            let flags = i32::from(unsafe { request.0.ifr_ifru.ifru_flags } as u16);
            if flags & libc::IFF_TAP == 0 {
                return Err(TapError::Adopt("it is a tun's: IP packets without Ethernet"));
            }
            if flags & libc::IFF_NO_PI == 0 {
                return Err(TapError::Adopt("its frames begin with packet information"));
            }
            if flags & libc::IFF_VNET_HDR == 0 {
                return Err(TapError::Adopt("its frames have no virtio-net header"));
            }
            if name.get_or_insert_with(|| request.name()) != &request.name() {
                return Err(TapError::Adopt("the descriptors belong to different interfaces"));
            }
            let set =
                rustix::fs::fcntl_getfl(fd).and_then(|f| rustix::fs::fcntl_setfl(fd, f | OFlags::NONBLOCK));
            set.map_err(|e| io_error("adopting", &request.name(), e.into()))?;
        }
        let name = name.unwrap_or_default();
        let links = Links::open().map_err(|e| io_error("looking for", &name, e))?;
        Self::finish(&name, true, links, fds)
    }

    fn finish(name: &str, joined: bool, links: Links, fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        for fd in &fds {
            set_int(fd, libc::TUNSETVNETHDRSZ, HEADER_LEN as i32)
                .map_err(|e| io_error("setting the header size of", name, e))?;
            // What the header is anyhow on a little-endian host. A kernel without cross-endian support refuses
            // the request, and a big-endian host with such a kernel is out of luck.
            if let Err(e) = set_int(fd, libc::TUNSETVNETLE, 1)
                && cfg!(target_endian = "big")
            {
                return Err(io_error("setting the byte order of", name, e));
            }
        }
        let index = links.index_of(name).map_err(|e| io_error("looking for", name, e))?;
        let Some(index) = index else {
            return Err(io_error("looking for", name, io::Error::from_raw_os_error(libc::ENODEV)));
        };
        let queues = fds.into_iter().map(Arc::new).collect();
        let mut tap =
            Self { index, joined, links, queues, accepted: OffloadSet::NONE, offered: OffloadSet::NONE };
        // A kernel that knows UDP super-frames takes the request for them, and takes them in what we write.
        tap.offered = match tap.set_accepted(OffloadSet::ALL) {
            Err(TapError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                let without = OffloadSet::ALL.without(OffloadSet::UDP_L4);
                tap.set_accepted(without)?;
                without
            }
            done => done.map(|()| OffloadSet::ALL)?,
        };
        Ok(tap)
    }

    /// The name that the interface has now; it can be renamed under us.
    pub fn name(&self) -> Result<String, TapError> {
        match self.links.name_of(self.index) {
            Ok(Some(name)) => Ok(name),
            Ok(None) => Err(io_error("looking for", "?", io::Error::from_raw_os_error(libc::ENODEV))),
            Err(e) => Err(io_error("looking for", "?", e)),
        }
    }

    /// The interface's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How many queues it has here.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// True if the interface was there before.
    pub fn joined(&self) -> bool {
        self.joined
    }

    /// What the interface's stack may ask of us, now.
    pub fn accepted(&self) -> OffloadSet {
        self.accepted
    }

    /// Limits what the interface's stack may ask of us (`TUNSETOFFLOAD`). [`Tap::open`] sets all that the
    /// kernel has. Counts for the receive queues made afterwards. Without [`OffloadSet::CHECKSUM`] the kernel
    /// grants nothing else.
    pub fn set_accepted(&mut self, accepted: OffloadSet) -> Result<(), TapError> {
        let mut bits = 0;
        let mut granted = OffloadSet::NONE;
        if accepted.contains(OffloadSet::CHECKSUM) {
            let table = [
                (OffloadSet::CHECKSUM, libc::TUN_F_CSUM),
                (OffloadSet::TCPV4, libc::TUN_F_TSO4),
                (OffloadSet::TCPV6, libc::TUN_F_TSO6),
                (OffloadSet::ECN, libc::TUN_F_TSO_ECN),
                (OffloadSet::UDP_L4, libc::TUN_F_USO4 | libc::TUN_F_USO6),
            ];
            for (feature, bit) in table {
                // The kernel has ECN as a property of TCP super-frames.
                let tso = accepted.contains(OffloadSet::TCPV4) || accepted.contains(OffloadSet::TCPV6);
                if accepted.contains(feature) && (feature != OffloadSet::ECN || tso) {
                    bits |= bit;
                    granted = granted.with(feature);
                }
            }
        }
        let fd = self.queues[0].as_raw_fd();
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        if unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) } < 0 {
            let error = io::Error::last_os_error();
            return Err(io_error("setting the offloads of", &self.name().unwrap_or_default(), error));
        }
        self.accepted = granted;
        Ok(())
    }

    /// Sets the interface up or down.
    pub fn set_up(&self, up: bool) -> Result<(), TapError> {
        let name = self.name()?;
        self.links
            .set_up(&name, up)
            .map_err(|e| io_error(if up { "setting up" } else { "setting down" }, &name, e))
    }

    /// Sets the interface's MTU, in bytes without the link header.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), TapError> {
        let name = self.name()?;
        self.links.set_mtu(&name, mtu).map_err(|e| io_error("setting the MTU of", &name, e))
    }

    /// Sets the address that the interface's stack has, which is not the switch's but its neighbour's.
    pub fn set_mac(&self, mac: MacAddr) -> Result<(), TapError> {
        let name = self.name()?;
        self.links.set_mac(&name, mac).map_err(|e| io_error("setting the address of", &name, e))
    }

    /// Makes the interface outlive its descriptors, or not.
    pub fn set_persistent(&self, persistent: bool) -> Result<(), TapError> {
        // SAFETY: TUNSETPERSIST takes its argument by value.
        let done = unsafe {
            libc::ioctl(self.queues[0].as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent))
        };
        if done < 0 {
            let error = io::Error::last_os_error();
            return Err(io_error("making persistent or not", &self.name().unwrap_or_default(), error));
        }
        Ok(())
    }

    /// The receive queues, one for each of the tap's, each with its own pool of buffers. To be taken once: two
    /// readers of one queue would share its frames.
    pub fn rx_queues(&self) -> Vec<TapRx> {
        self.queues.iter().map(|fd| TapRx::new(Arc::clone(fd), self.accepted)).collect()
    }

    /// The transmit side.
    pub fn tx(&self) -> TapTx {
        TapTx::new(self.queues.iter().map(Arc::clone).collect(), self.offered)
    }
}

fn open_device(name: &str) -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
            TapError::Permission { what: "opening /dev/net/tun for", name: name.to_owned() }
        }
        rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::NXIO => {
            TapError::NoDriver { name: name.to_owned(), source: e.into() }
        }
        e => io_error("opening /dev/net/tun for", name, e.into()),
    })
}

fn attach(fd: &OwnedFd, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut request = Request::named(name)?;
    let flags = FLAGS | if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    // The kernel's field is 16 bits wide; the flags fit.
    request.0.ifr_ifru.ifru_flags = flags as libc::c_short;
    request.run(fd.as_raw_fd(), libc::TUNSETIFF)
}

fn attach_error(name: &str, joined: bool, error: io::Error) -> TapError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            TapError::Permission { what: if joined { "joining" } else { "creating" }, name: name.to_owned() }
        }
        Some(libc::EBUSY) => TapError::Busy(name.to_owned()),
        Some(libc::EINVAL) if joined => TapError::NotATap(name.to_owned()),
        _ => io_error(if joined { "joining" } else { "creating" }, name, error),
    }
}

fn io_error(what: &'static str, name: &str, source: io::Error) -> TapError {
    if source.raw_os_error() == Some(libc::EPERM) {
        return TapError::Permission { what, name: name.to_owned() };
    }
    TapError::Io { what, name: name.to_owned(), source }
}

fn set_int(fd: &OwnedFd, what: libc::Ioctl, mut value: i32) -> io::Result<()> {
    // SAFETY: the requests passed here read one int at the pointer.
    if unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut value) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
