//! Hears when somebody removes something from nftables, by the kernel's own messages (nfnetlink, group
//! `NFNLGRP_NFTABLES`).

use std::future::pending;
use std::io;

use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// `NETLINK_NETFILTER` of `linux/netlink.h`.
const NETLINK_NETFILTER: isize = 12;
/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWRULE`, `DELTABLE`, `DELCHAIN` and `DELRULE`, the lower byte: what can make a table another one. Sets
/// that grow with the traffic are not among them.
const CHANGES: [u8; 4] = [6, 2, 5, 8];
/// Bytes of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// The socket.
pub(super) struct Watch {
    socket: TokioSocket,
}

impl Watch {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self { socket })
    }

    /// Returns when a table may have changed.
    pub(super) async fn changed(&self) {
        loop {
            match self.socket.recv_from_full().await {
                Ok((bytes, _)) if !tells_of_change(&bytes) => {}
                // What was lost because too much happened at once may have been one.
                Ok(_) => return,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    return;
                }
                // A socket that fails for good tells nothing any more.
                Err(_) => pending().await,
            }
        }
    }
}

/// Whether one of the messages of a datagram is of a kind that matters.
pub(super) fn tells_of_change(mut bytes: &[u8]) -> bool {
    while let Some(header) = bytes.first_chunk::<HEADER_LEN>() {
        let [a, b, c, d, kind, subsystem, ..] = *header;
        if subsystem == SUBSYSTEM && CHANGES.contains(&kind) {
            return true;
        }
        let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if len < HEADER_LEN {
            return false;
        }
        let Some(rest) = bytes.get(len.next_multiple_of(4)..) else { return false };
        bytes = rest;
    }
    false
}
