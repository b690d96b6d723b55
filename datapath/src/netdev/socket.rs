//! The packet sockets of a netdev port, and their options.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use switch_core::head::{ETHERNET_LEN, TAG_LEN};
use switch_core::offload::OffloadSet;

use super::ring::{Ring, Shape};

/// Bytes of super-frames that may wait in the receiver's queue. The kernel doubles it, for its overhead.
const RECEIVE_QUEUE: i32 = 8 << 20;
/// Bytes that transmitters may have in the interface's queue and the device. What is beyond is dropped.
const SEND_QUEUE: i32 = 4 << 20;

/// A socket that only transmits: bound to the interface, but to no protocol.
/// Also what its frames may ask for: what the device cannot do, the kernel does before it hands them over.
pub(super) fn sender(index: u32) -> io::Result<(OwnedFd, OffloadSet)> {
    let fd = with_header()?;
    buffer(&fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_QUEUE)?;
    bind(&fd, index, 0)?;
    // UDP super-frames in virtio-net headers came to the kernel (6.2) before this option did (6.5).
    let mut size = 0_i32;
    let udp = get(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR_SZ, &mut size).is_ok();
    Ok((fd, if udp { OffloadSet::ALL } else { OffloadSet::ALL.without(OffloadSet::UDP_L4) }))
}

/// A socket that receives all that comes in, through a ring whose slots fit the MTU.
pub(super) fn receiver(index: u32, mtu: u32) -> io::Result<(OwnedFd, Ring)> {
    let socket = with_header()?;
    let fd = &socket;
    buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_QUEUE)?;
    set(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
    set(fd, libc::SOL_PACKET, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as i32))?;
    // Any value but zero: a copy of what is too long for a slot goes to the socket's queue.
    set(fd, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &1_i32)?;
    let frame = mtu as usize + ETHERNET_LEN + 2 * TAG_LEN;
    let shape = Shape::new(frame);
    set(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &shape.request())?;
    let ring = Ring::map(fd, shape)?;
    // Only now do frames come, and each finds the ring.
    bind(fd, index, libc::ETH_P_ALL as u16)?;
    let promiscuous = libc::packet_mreq {
        mr_ifindex: index as i32,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
    Ok((socket, ring))
}

/// Frames that the kernel dropped since it was asked last.
pub(super) fn dropped(fd: &OwnedFd) -> io::Result<u64> {
    // SAFETY: all-zero bytes are a valid value of a struct of two integers.
    let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
    get(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats)?;
    Ok(u64::from(stats.tp_drops))
}

/// The error that waits at the socket, or 0; it is taken away.
pub(super) fn pending_error(fd: &OwnedFd) -> io::Result<i32> {
    let mut error = 0_i32;
    get(fd, libc::SOL_SOCKET, libc::SO_ERROR, &mut error)?;
    Ok(error)
}

/// A packet socket whose frames have a virtio-net header, of 10 bytes. With the longer one, which
/// `PACKET_VNET_HDR_SZ` gives, the kernel still writes 10 bytes before a frame in the ring, not 12.
fn with_header() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed. Protocol 0: it receives nothing until it is bound to one.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just made, which nobody else has.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32)?;
    Ok(fd)
}

fn bind(fd: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and length are those of a whole sockaddr_ll, which the kernel reads.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets a queue's size past the system's limit if that is allowed, else as far as the limit goes.
fn buffer(fd: &OwnedFd, force: i32, plain: i32, bytes: i32) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, force, &bytes).or_else(|_| set(fd, libc::SOL_SOCKET, plain, &bytes))
}

fn set<T: Copy>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads at most `len` bytes of a plain value.
    if unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The type is one of integers only, as any bits may be written to it.
fn get<T: Copy>(fd: &OwnedFd, level: i32, option: i32, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to a plain value of integers.
    if unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, option, std::ptr::from_mut(value).cast(), &raw mut len)
    } < 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
