//! The netdev port: an interface that exists: a NIC, a veth, a Xen vif, a tap whose descriptor a virtual
//! machine monitor holds. The switch stands on the wire's side of it, with an `AF_PACKET` socket.
//!
//! - *Receiving*: everything that comes in (promiscuous), nothing that goes out (`PACKET_IGNORE_OUTGOING`: not
//!   what the switch transmits, nor what the host does). Frames up to the MTU come through a ring shared with
//!   the kernel (`TPACKET_V2`) and cost no system call; their tails are read where the ring has them.
//!   Super-frames, which are larger than the ring's slots, wait in the socket's queue in the order that the
//!   ring tells (`PACKET_COPY_THRESH`), and are received one by one into a pool. Measured over a veth pair:
//!   a full frame costs 0.6 µs through the ring and 1.4 µs by `recvmsg(2)`; slots for 64 KB, of which the same
//!   memory holds dozens instead of a thousand, gain nothing for TCP in super-frames and lose three times as
//!   many small frames or more when a burst comes in. `TPACKET_V3`, which packs frames of any size into
//!   blocks, hands a block over only when it is full or a timer of milliseconds has run out.
//! - *Transmitting*: one `sendmmsg(2)` for a bucket, from where heads and tails are. A transmit ring would
//!   need a lock, and keeps the sender's frame until the device has sent it. Past the queueing discipline
//!   (`PACKET_QDISC_BYPASS`) nothing was gained, and `tcpdump` and `tc` on the interface would miss the frames.
//! - Why not AF_XDP: docs/adr/0015-netdev-ports-stay-with-af-packet.md.
//! - Each frame has a virtio-net header both ways (`PACKET_VNET_HDR`), so that what the kernel has merged (GRO)
//!   or not yet cut (TSO) passes as a super-frame that says so.
//! - The kernel takes VLAN tags off received frames; they are put back. To send, a packet socket allows a
//!   customer's tag (8100) beyond the MTU, and counts a service tag (88A8) against it.
//!
//! The interface stays the host's: its stack sees what we receive, too. Whoever makes an interface a port
//! takes the host's addresses off it first.
//!
//! The control thread owns the [`Netdev`], one worker its [`NetdevRx`], all workers share its [`NetdevTx`].
//! A port survives its interface's going down and up. When the interface is removed, the receive queue
//! reports [`PortError::Gone`](crate::PortError::Gone) as soon as it is polled; a queue that sleeps may not
//! be woken, because the kernel tells a socket only of the going down before the removal. So the control
//! plane watches links (`RTM_NEWLINK` and `RTM_DELLINK`, with the `rtnetlink` crate), detaches what
//! went, and opens the interface again when it returns.
//!
//! Kernel interface: packet(7), Documentation/networking/packet_mmap.rst, `net/packet/af_packet.c`.

pub mod link;
mod ring;
mod rx;
mod socket;
mod tx;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use link::{Link, Links, NameError, check_name};
pub use rx::NetdevRx;
pub use tx::NetdevTx;

/// Why an interface could not be made a port.
#[derive(Debug, thiserror::Error)]
pub enum NetdevError {
    /// The name cannot be an interface's.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no such interface.
    #[error("there is no interface '{0}' here; 'ip link' shows those of this network namespace")]
    NotFound(String),
    /// The interface's frames have no Ethernet header.
    #[error("interface '{0}' is not an Ethernet interface, so a switch cannot use it")]
    NotEthernet(String),
    /// Not allowed.
    #[error("opening interface '{0}': not permitted; a packet socket needs CAP_NET_RAW")]
    Permission(String),
    /// Anything else.
    #[error("{what} interface '{name}': {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An interface that is a port. See the module's text.
#[derive(Debug)]
pub struct Netdev {
    index: u32,
    links: Links,
    receiver: Arc<OwnedFd>,
    lost: Arc<AtomicU64>,
}

impl Netdev {
    /// Opens the interface, in the network namespace of the calling thread. It need not be up. Frames are
    /// received from here on, up to what the ring holds.
    pub fn open(name: &str) -> Result<(Self, NetdevRx, NetdevTx), NetdevError> {
        check_name(name)?;
        let failed = |what| {
            move |e: io::Error| match e.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => NetdevError::Permission(name.to_owned()),
                Some(libc::ENODEV) => NetdevError::NotFound(name.to_owned()),
                _ => NetdevError::Io { what, name: name.to_owned(), source: e },
            }
        };
        let links = Links::open().map_err(failed("looking for"))?;
        let link = links.get(name).map_err(failed("looking for"))?;
        let Some(link) = link else { return Err(NetdevError::NotFound(name.to_owned())) };
        if !link.ethernet {
            return Err(NetdevError::NotEthernet(name.to_owned()));
        }
        let (sender, offloads) = socket::sender(link.index).map_err(failed("opening for transmission"))?;
        let (receiver, ring) =
            socket::receiver(link.index, link.mtu).map_err(failed("opening for reception"))?;
        let receiver = Arc::new(receiver);
        let lost = Arc::new(AtomicU64::new(0));
        let rx = NetdevRx::new(Arc::clone(&receiver), ring, link.index, Arc::clone(&lost));
        let tx = NetdevTx::new(sender, offloads);
        Ok((Self { index: link.index, links, receiver, lost }, rx, tx))
    }

    /// The interface's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How the interface stands now; `None` if it was removed, or moved to another namespace.
    pub fn link(&self) -> io::Result<Option<Link>> {
        match self.links.name_of(self.index)? {
            Some(name) => self.links.get(&name),
            None => Ok(None),
        }
    }

    /// Frames that came to the interface and were lost before the switch could see them, since the port was
    /// opened: because the ring or the socket's queue was full, or because the kernel could not put what the
    /// frame asks for into a virtio-net header.
    pub fn lost(&self) -> u64 {
        // The kernel's count begins anew at each reading. Readers of the sum may race, and lose nothing.
        let dropped = socket::dropped(&self.receiver).unwrap_or(0);
        self.lost.fetch_add(dropped, Ordering::Relaxed) + dropped
    }
}

/// True if an interface of this name is there, in the network namespace of the calling thread.
pub fn is_present(name: &str) -> bool {
    Links::open().is_ok_and(|links| links.index_of(name).is_ok_and(|index| index.is_some()))
}
