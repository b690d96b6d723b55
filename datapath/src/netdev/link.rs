//! Interfaces by name and number: what the ports set and ask of them.
//!
//! Plain `ioctl(2)`s (netdevice(7)) on a socket that remembers the network namespace it was opened in, so that
//! a [`Links`] made there works from any thread. For the few settings that a port needs while it is made;
//! addresses, routes and the watching of links are the control plane's (the `rtnetlink` crate).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use switch_core::MacAddr;

/// Bytes of the longest interface name.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// The name cannot be an interface's. Nothing was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than [`NAME_MAX`].
    #[error("'{0}' is too long for an interface name: {len} bytes, and the kernel takes {NAME_MAX}", len = .0.len())]
    TooLong(String),
    /// Empty, `.`, `..`, or with a slash, colon, white space, control character or `%`.
    #[error(
        "'{0}' cannot be an interface name (no '/', ':', '%', white space or control characters, not '.' or '..')"
    )]
    Malformed(String),
}

/// Checks a name as the kernel does (`dev_valid_name`), and refuses `%` too, which the kernel replaces by a
/// number of its choice.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong(name.to_owned()));
    }
    let bad = |b: u8| {
        b == b'/' || b == b':' || b == b'%' || b.is_ascii_whitespace() || b.is_ascii_control() || b == 0x0b
    };
    if name.is_empty() || name == "." || name == ".." || name.bytes().any(bad) {
        return Err(NameError::Malformed(name.to_owned()));
    }
    Ok(())
}

/// What an interface is and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Its address.
    pub mac: MacAddr,
    /// Bytes of the longest packet, without the link header.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and with a carrier.
    pub running: bool,
    /// A link with Ethernet headers. Others cannot be ports.
    pub ethernet: bool,
}

/// A door to the interfaces of one network namespace: the one that the opening thread is in.
#[derive(Debug)]
pub struct Links {
    socket: OwnedFd,
}

impl Links {
    /// Opens the door.
    pub fn open() -> io::Result<Self> {
        // Any socket does; this family is never missing.
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// The number of the interface called `name`; `None` if there is none.
    pub fn index_of(&self, name: &str) -> io::Result<Option<u32>> {
        let Ok(mut request) = Request::named(name) else { return Ok(None) };
        match request.run(self.socket.as_raw_fd(), libc::SIOCGIFINDEX) {
            Ok(()) => Ok(u32::try_from(request.int()).ok()),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The name that interface `index` has now; `None` if it is gone.
    pub fn name_of(&self, index: u32) -> io::Result<Option<String>> {
        name_of(self.socket.as_raw_fd(), index)
    }

    /// All about the interface called `name`.
    pub fn get(&self, name: &str) -> io::Result<Option<Link>> {
        let Some(index) = self.index_of(name)? else { return Ok(None) };
        let read = || -> io::Result<Link> {
            let mut mtu = Request::named(name)?;
            mtu.run(self.socket.as_raw_fd(), libc::SIOCGIFMTU)?;
            let mut address = Request::named(name)?;
            address.run(self.socket.as_raw_fd(), libc::SIOCGIFHWADDR)?;
            let (kind, mac) = address.address();
            let flags = self.flags(name)?;
            Ok(Link {
                name: name.to_owned(),
                index,
                mac,
                mtu: u32::try_from(mtu.int()).unwrap_or(0),
                up: flags & libc::IFF_UP != 0,
                running: flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0,
                ethernet: kind == libc::ARPHRD_ETHER,
            })
        };
        match read() {
            Ok(link) => Ok(Some(link)),
            // It went away between two questions.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sets the interface up or down.
    pub fn set_up(&self, name: &str, up: bool) -> io::Result<()> {
        let old = self.flags(name)?;
        let new = if up { old | libc::IFF_UP } else { old & !libc::IFF_UP };
        if new == old {
            return Ok(());
        }
        let mut request = Request::named(name)?;
        // The kernel's field is 16 bits wide, and IFF_UP is its lowest.
        request.0.ifr_ifru.ifru_flags = new as libc::c_short;
        request.run(self.socket.as_raw_fd(), libc::SIOCSIFFLAGS)
    }

    /// Sets the MTU, in bytes without the link header.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mut request = Request::named(name)?;
        request.0.ifr_ifru.ifru_mtu =
            i32::try_from(mtu).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        request.run(self.socket.as_raw_fd(), libc::SIOCSIFMTU)
    }

    /// Sets the address. Some drivers allow it only while the interface is down (`EBUSY`).
    pub fn set_mac(&self, name: &str, mac: MacAddr) -> io::Result<()> {
        let mut request = Request::named(name)?;
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
            *to = from as libc::c_char;
        }
        request.0.ifr_ifru.ifru_hwaddr = address;
        request.run(self.socket.as_raw_fd(), libc::SIOCSIFHWADDR)
    }

    fn flags(&self, name: &str) -> io::Result<i32> {
        let mut request = Request::named(name)?;
        request.run(self.socket.as_raw_fd(), libc::SIOCGIFFLAGS)?;
        // SAFETY: the kernel wrote the flags; any bits are a valid integer.
        Ok(i32::from(unsafe { request.0.ifr_ifru.ifru_flags } as u16))
    }
}

/// The name that interface `index` has now, in the namespace of `socket`; `None` if it is gone.
pub(crate) fn name_of(socket: RawFd, index: u32) -> io::Result<Option<String>> {
    let mut request = Request::empty();
    request.0.ifr_ifru.ifru_ifindex =
        i32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    match request.run(socket, libc::SIOCGIFNAME) {
        Ok(()) => Ok(Some(request.name())),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A `struct ifreq`: one question about one interface.
pub(crate) struct Request(pub(crate) libc::ifreq);

impl Request {
    fn empty() -> Self {
        // SAFETY: all-zero bytes are a valid ifreq: arrays of integers and a union of such.
        Self(unsafe { mem::zeroed() })
    }

    /// About the interface called `name`. `ENODEV` for what cannot be a name.
    pub(crate) fn named(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let mut request = Self::empty();
        for (to, from) in request.0.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(request)
    }

    /// The name that the kernel wrote.
    pub(crate) fn name(&self) -> String {
        let bytes: Vec<u8> = self.0.ifr_name.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks it.
    pub(crate) fn run(&mut self, fd: RawFd, what: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every request that this crate passes takes a pointer to an ifreq, which the kernel reads and
        // writes within its size.
        if unsafe { libc::ioctl(fd, what, &raw mut self.0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn int(&self) -> i32 {
        // SAFETY: index, metric and MTU are the same integer in the same place; any bits are valid.
        unsafe { self.0.ifr_ifru.ifru_ifindex }
    }

    fn address(&self) -> (u16, MacAddr) {
        // SAFETY: the kernel wrote an address; any bits are a valid sockaddr.
        let address = unsafe { self.0.ifr_ifru.ifru_hwaddr };
        let mut mac = MacAddr::default();
        for (to, from) in mac.0.iter_mut().zip(address.sa_data) {
            *to = from as u8;
        }
        (address.sa_family, mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_is_made() {
        assert_eq!(check_name("tap0"), Ok(()));
        assert_eq!(check_name("fifteen-bytes-x"), Ok(()));
        assert!(matches!(check_name("sixteen-bytes-xx"), Err(NameError::TooLong(_))));
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "tap%d", "a\tb", "a\0"] {
            assert!(matches!(check_name(bad), Err(NameError::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn the_loopback_interface_is_known_and_is_told_from_ethernet() {
        let links = Links::open().unwrap();
        let lo = links.get("lo").unwrap().expect("every namespace has one");
        assert_eq!(links.name_of(lo.index).unwrap().as_deref(), Some("lo"));
        assert!(!lo.ethernet);
        assert_eq!(links.get("no-such-link").unwrap(), None);
        assert_eq!(links.name_of(u32::MAX >> 1).unwrap(), None);
    }
}
