//! Datagrams of the host's sockets: what goes with one besides its bytes, which safe wrappers do not know.
//!
//! Segments of one size in one call (`UDP_SEGMENT`, `UDP_GRO`: udp(7)), hop limits, the address of this host that a
//! datagram came for or leaves from (`IP_PKTINFO`), and the errors that the network sent about datagrams
//! (`IP_RECVERR`: ip(7), ipv6(7)). No call here blocks, whatever the socket's own mode.

use std::mem::{self, MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Errno;

use crate::socket::{Gather, PIECES_MAX, retried, set_int};

/// Room for control messages: more than all that is asked for, aligned as they are.
type Control = [u64; 32];

/// What goes with a datagram that is sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Where it goes.
    pub to: SocketAddr,
    /// Bytes of each datagram but the last, if it is several in one call.
    pub segment: Option<u16>,
    /// Its hop limit, if it is not the socket's.
    pub hop_limit: Option<u8>,
    /// The address of this host that it leaves from, if the kernel is not to choose.
    pub from: Option<IpAddr>,
}

/// What came with a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// Where it came from.
    pub from: SocketAddr,
    /// Bytes of each datagram but the last, if they are several.
    pub segment: Option<u16>,
    /// The address of this host that it came for, if [`follow_address`] asked for it.
    pub to: Option<IpAddr>,
    /// It was longer than the room for it.
    pub cut: bool,
}

/// What the network or this host said about a datagram that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where the datagram went.
    pub to: SocketAddr,
    /// What is wrong.
    pub errno: Errno,
    /// The ICMP message's type and code, if the network said it; else this host did.
    pub icmp: Option<(u8, u8)>,
    /// The MTU, of a datagram that was too long.
    pub mtu: u32,
    /// Who said it, if the network did.
    pub offender: Option<IpAddr>,
    /// The address of this host that the datagram left from, if the network said it and [`follow_address`] asked for it.
    pub from: Option<IpAddr>,
}

/// An address as the kernel has it.
fn to_raw(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all bytes of an address may be zero.
    let mut raw: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let place = &raw mut raw;
    let len = match address {
        SocketAddr::V4(v4) => {
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a storage is as large and as aligned as every kind of address.
            unsafe { place.cast::<libc::sockaddr_in>().write(value) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(value) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (raw, len as libc::socklen_t)
}

/// The address in the kernel's words; `None` if it is of neither family, or cut short.
fn from_raw(bytes: &[u8]) -> Option<SocketAddr> {
    let family = libc::sa_family_t::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(SocketAddrV4::new(ip.into(), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(ip.into(), port, 0, scope).into())
        }
        _ => None,
    }
}

/// The bytes of an address that the kernel wrote.
fn name_of(storage: &libc::sockaddr_storage) -> &[u8] {
    // SAFETY: a storage is plain bytes, all of them initialised: it was zeroed, and the kernel wrote to it.
    unsafe { std::slice::from_raw_parts(ptr::from_ref(storage).cast(), size_of::<libc::sockaddr_storage>()) }
}

/// Control messages as they are written, one behind the other.
struct Writer {
    room: Control,
    used: usize,
}

impl Writer {
    fn new() -> Self {
        Self { room: [0; 32], used: 0 }
    }

    /// Adds a message; what does not fit is left out, which no caller's messages do.
    fn add(&mut self, level: i32, kind: i32, data: &[u8]) {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        let len = HEADER + data.len();
        let space = len.next_multiple_of(size_of::<usize>());
        let header = libc::cmsghdr { cmsg_len: len as _, cmsg_level: level, cmsg_type: kind };
        if self.used + space > size_of::<Control>() {
            return;
        }
        // SAFETY: `used + space` bytes are in the room, whose start and `used` are aligned as headers are; the
        // header's bytes and the data's follow one another (CMSG_DATA).
        unsafe {
            let at = self.room.as_mut_ptr().cast::<u8>().add(self.used);
            at.cast::<libc::cmsghdr>().write(header);
            ptr::copy_nonoverlapping(data.as_ptr(), at.add(HEADER), data.len());
        }
        self.used += space;
    }
}

/// The control messages in a buffer that the kernel filled: level, type and data of each.
fn messages(room: &Control, len: usize) -> impl Iterator<Item = (i32, i32, &[u8])> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    // SAFETY: the room is plain bytes, all of them initialised.
    let bytes: &[u8] = unsafe { std::slice::from_raw_parts(room.as_ptr().cast(), size_of::<Control>()) };
    let mut rest = bytes.get(..len).unwrap_or_default();
    std::iter::from_fn(move || {
        let header = rest.get(..HEADER)?;
        // SAFETY: as many bytes as a header has, which is plain integers; read from wherever they are.
        let header: libc::cmsghdr = unsafe { header.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        let len = header.cmsg_len as usize;
        let data = rest.get(HEADER..len)?;
        rest = rest.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        Some((header.cmsg_level, header.cmsg_type, data))
    })
}

fn int(data: &[u8]) -> Option<i32> {
    data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

/// Sends what is gathered as one datagram, or as several of one size.
///
/// # Errors
/// What `sendmsg(2)` says: an error that the network sent about an earlier datagram may be told here, and then nothing was
/// sent.
pub fn send(fd: BorrowedFd<'_>, payload: &Gather<'_>, with: &Outgoing) -> Result<usize, Errno> {
    let mut iov = [const { MaybeUninit::<libc::iovec>::uninit() }; PIECES_MAX];
    let n = payload.vectors(&mut iov);
    let (mut name, name_len) = to_raw(with.to);
    let mut control = Writer::new();
    if let Some(segment) = with.segment {
        control.add(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    if let Some(hops) = with.hop_limit {
        let value = i32::from(hops).to_ne_bytes();
        match with.to {
            SocketAddr::V4(_) => control.add(libc::IPPROTO_IP, libc::IP_TTL, &value),
            SocketAddr::V6(_) => control.add(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &value),
        }
    }
    match with.from {
        // in_pktinfo: an interface, the address to leave from, and one that is of no use here.
        Some(IpAddr::V4(ip)) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&ip.octets());
            control.add(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        // in6_pktinfo: the address, and an interface.
        Some(IpAddr::V6(ip)) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            control.add(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    // SAFETY: all fields of a msghdr may be zero.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_len;
    message.msg_iov = iov.as_mut_ptr().cast();
    message.msg_iovlen = n as _;
    if control.used > 0 {
        message.msg_control = control.room.as_mut_ptr().cast();
        message.msg_controllen = control.used as _;
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: name, vectors and control are alive and as long as is said; for what the vectors name see `Gather::send`.
    retried(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// A received message: its bytes, its flags, and how long its control messages are.
struct Message<'a> {
    bytes: &'a mut [u8],
    flags: i32,
    control: usize,
}

fn receive_into<'a>(
    fd: BorrowedFd<'_>,
    room: &'a mut [MaybeUninit<u8>],
    name: &mut libc::sockaddr_storage,
    control: &mut Control,
    flags: i32,
) -> Result<Message<'a>, Errno> {
    let mut iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: all fields of a msghdr may be zero.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = ptr::from_mut(name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: everything that the message names is alive, ours alone and as long as is said.
    let len = retried(|| unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    let len = len.min(room.len());
    // SAFETY: the kernel wrote the first `len` bytes of the room.
    let bytes = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u8>(), len) };
    Ok(Message { bytes, flags: message.msg_flags, control: message.msg_controllen as usize })
}

/// Takes a datagram, or several of one size from one sender if [`coalesce`] asked for that.
///
/// # Errors
/// What `recvmsg(2)` says: `EAGAIN` if there is none; an error that the network sent about a datagram may be told here, too.
pub fn receive<'a>(
    fd: BorrowedFd<'_>,
    room: &'a mut [MaybeUninit<u8>],
) -> Result<(&'a mut [u8], Incoming), Errno> {
    // SAFETY: all bytes of an address may be zero.
    let mut name: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut control: Control = [0; 32];
    let message = receive_into(fd, room, &mut name, &mut control, 0)?;
    let mut with = Incoming {
        from: from_raw(name_of(&name)).ok_or(Errno::AFNOSUPPORT)?,
        segment: None,
        to: None,
        cut: message.flags & libc::MSG_TRUNC != 0,
    };
    for (level, kind, data) in messages(&control, message.control) {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                with.segment = int(data).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
            }
            _ => with.to = address_of(level, kind, data).or(with.to),
        }
    }
    Ok((message.bytes, with))
}

/// The address of this host that a control message tells, if it is about that.
fn address_of(level: i32, kind: i32, data: &[u8]) -> Option<IpAddr> {
    match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            let ip: &[u8; 4] = data.get(8..)?.first_chunk()?;
            Some(Ipv4Addr::from(*ip).into())
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => Some(Ipv6Addr::from(*data.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// Takes what was said about a datagram that was sent, if [`follow_errors`] asked for it, and as much of that datagram's
/// payload as was told.
///
/// # Errors
/// What `recvmsg(2)` says: `EAGAIN` if there is nothing.
pub fn fault<'a>(
    fd: BorrowedFd<'_>,
    room: &'a mut [MaybeUninit<u8>],
) -> Result<(&'a mut [u8], Option<Fault>), Errno> {
    // SAFETY: all bytes of an address may be zero.
    let mut name: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut control: Control = [0; 32];
    let message = receive_into(fd, room, &mut name, &mut control, libc::MSG_ERRQUEUE)?;
    let to = from_raw(name_of(&name));
    // An error comes for the address that its datagram left from.
    let own =
        messages(&control, message.control).find_map(|(level, kind, data)| address_of(level, kind, data));
    let found = messages(&control, message.control).find_map(|(level, kind, data)| {
        let of_errors = (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR)
            || (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        // sock_extended_err: errno, origin, type, code, padding, info, data; then the offender's address.
        let (error, offender) = data.split_at_checked(16).filter(|_| of_errors)?;
        let word = |at: usize| error.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b));
        let by_network = matches!(error.get(4), Some(&2 | &3));
        Some(Fault {
            to: to?,
            errno: Errno::from_raw_os_error(i32::try_from(word(0)?).ok()?),
            icmp: Some((*error.get(5)?, *error.get(6)?)).filter(|_| by_network),
            mtu: word(8)?,
            offender: from_raw(offender).map(|address| address.ip()).filter(|_| by_network),
            from: own.filter(|_| by_network),
        })
    });
    Ok((message.bytes, found))
}

/// Has the socket keep what is said about its datagrams, for [`fault`].
///
/// # Errors
/// None on a socket of the family.
pub fn follow_errors(fd: BorrowedFd<'_>, v6: bool) -> Result<(), Errno> {
    match v6 {
        false => set_int(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        true => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
    }
}

/// Has the socket tell the address that each datagram came for.
///
/// # Errors
/// None on a socket of the family.
pub fn follow_address(fd: BorrowedFd<'_>, v6: bool) -> Result<(), Errno> {
    match v6 {
        false => set_int(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
        true => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
    }
}

/// Has a UDP socket give several datagrams of one size at once.
///
/// # Errors
/// The kernel does not know it (before Linux 5.0).
pub fn coalesce(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    set_int(fd, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel may cut what is longer than the path's MTU. If not, IPv4's DF is set and what is too long is an error.
///
/// # Errors
/// None on a socket of the family.
pub fn may_fragment(fd: BorrowedFd<'_>, v6: bool, may: bool) -> Result<(), Errno> {
    match v6 {
        false => {
            let value = if may { libc::IP_PMTUDISC_DONT } else { libc::IP_PMTUDISC_DO };
            set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
        }
        true => {
            let value = if may { libc::IPV6_PMTUDISC_DONT } else { libc::IPV6_PMTUDISC_DO };
            set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use switch_core::Head;

    use super::*;
    use crate::socket::GatherRoom;

    fn socket(address: &str) -> UdpSocket {
        UdpSocket::bind(address).unwrap()
    }

    fn head(bytes: &[u8]) -> Head {
        let mut head = Head::new();
        head.begin(bytes.len() as u32, bytes.len()).copy_from_slice(bytes);
        head
    }

    fn plain(to: SocketAddr) -> Outgoing {
        Outgoing { to, segment: None, hop_limit: None, from: None }
    }

    #[test]
    fn addresses_are_the_kernels_and_back() {
        for text in ["192.0.2.1:53", "[2001:db8::1]:65535", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let (raw, _) = to_raw(address);
            assert_eq!(from_raw(name_of(&raw)), Some(address));
        }
        assert_eq!(from_raw(&[0; 28]), None);
        assert_eq!(from_raw(&[2, 0, 1]), None);
    }

    #[test]
    fn one_call_is_many_datagrams_and_they_come_at_once() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (ours, theirs) = (socket(any), socket(any));
            coalesce(theirs.as_fd()).unwrap();
            follow_address(theirs.as_fd(), any.starts_with('[')).unwrap();
            let head = head(&[b'x'; 100]);
            let tail = [b'y'; 900];
            // SAFETY: the array outlives the gather.
            let tail = [unsafe { crate::memory::Segment::new(tail.as_ptr(), 900) }];
            let mut head_of_more = head.clone();
            head_of_more.begin(1000, 100).fill(b'x');
            let mut room = GatherRoom::default();
            let mut gather = Gather::begin(&mut room);
            gather.add(&head_of_more, &tail, 10, 990);
            let with = Outgoing { segment: Some(200), ..plain(theirs.local_addr().unwrap()) };
            assert_eq!(send(ours.as_fd(), &gather, &with), Ok(990));
            let (mut got, mut buffer) = (Vec::new(), vec![MaybeUninit::uninit(); 70_000]);
            while got.len() < 990 {
                let (bytes, with) = receive(theirs.as_fd(), &mut buffer).unwrap();
                assert_eq!(with.from, ours.local_addr().unwrap());
                assert_eq!(with.to, Some(theirs.local_addr().unwrap().ip()));
                assert!(!with.cut && with.segment.is_none_or(|n| n == 200));
                got.extend_from_slice(bytes);
            }
            assert_eq!(got, [&[b'x'; 90][..], &[b'y'; 900]].concat());
            assert_eq!(receive(theirs.as_fd(), &mut buffer).err(), Some(Errno::AGAIN));
        }
    }

    #[test]
    fn what_is_said_about_a_datagram_comes_with_it() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let ours = socket(any);
            let nobody = socket(any).local_addr().unwrap();
            follow_errors(ours.as_fd(), nobody.is_ipv6()).unwrap();
            follow_address(ours.as_fd(), nobody.is_ipv6()).unwrap();
            let head = head(b"is anybody there");
            let mut room = GatherRoom::default();
            let mut gather = Gather::begin(&mut room);
            gather.add(&head, &[], 0, 16);
            assert_eq!(send(ours.as_fd(), &gather, &plain(nobody)), Ok(16));
            let mut buffer = vec![MaybeUninit::uninit(); 2000];
            let (bytes, fault) = fault(ours.as_fd(), &mut buffer).unwrap();
            assert_eq!(bytes, b"is anybody there");
            let unreachable = if nobody.is_ipv6() { (1, 4) } else { (3, 3) };
            assert_eq!(
                fault.unwrap(),
                Fault {
                    to: nobody,
                    errno: Errno::CONNREFUSED,
                    icmp: Some(unreachable),
                    mtu: 0,
                    offender: Some(nobody.ip()),
                    from: Some(ours.local_addr().unwrap().ip())
                }
            );
            assert_eq!(super::fault(ours.as_fd(), &mut buffer).err(), Some(Errno::AGAIN));
        }
    }
}
