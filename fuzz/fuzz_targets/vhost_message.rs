//! A front-end's messages, with descriptors, in any order and form, through a whole session.
//!
//! Input: messages, one after the other: one byte for the request, one for the header's flags, one for the descriptors
//! (how many of which kind), one for the body's length, and the body. Lengths that the header claims are the
//! body's, unless the flags byte has its highest bit set: then the next two bytes are claimed instead.
#![no_main]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// So many that their replies, which nobody reads, fit the socket.
const MESSAGES_MAX: usize = 128;

/// What goes along with messages: guest memory, a smaller piece of it, an eventfd, and something else.
struct Descriptors([OwnedFd; 4]);

static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(|| {
    let memory = |len| {
        let fd = rustix::fs::memfd_create("fuzzed guest", MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&fd, len).expect("its size");
        fd
    };
    let event =
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
    let other = std::fs::File::open("/dev/null").expect("/dev/null").into();
    Descriptors([memory(1 << 20), memory(4096), event, other])
});

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count())
}

fuzz_target!(|data: &[u8]| {
    let descriptors = &DESCRIPTORS.0;
    let before = open_files();
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    ours.set_nonblocking(true).expect("a socket that does not block");
    let mut rest = data;
    for _ in 0..MESSAGES_MAX {
        let [request, flags, fds, len, tail @ ..] = rest else { break };
        let mut tail = tail;
        let mut claimed = u32::from(*len);
        if flags & 0x80 != 0
            && let [a, b, more @ ..] = tail
        {
            claimed = u32::from(u16::from_le_bytes([*a, *b]));
            tail = more;
        }
        let (body, more) = tail.split_at(usize::from(*len).min(tail.len()));
        if flags & 0x80 == 0 {
            claimed = body.len() as u32;
        }
        rest = more;
        let mut message = Vec::new();
        for word in [u32::from(*request), u32::from(flags & 0x3f) ^ 1, claimed] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);
        let fds: Vec<BorrowedFd<'_>> = (0..fds >> 2)
            .map(|i| descriptors[usize::from((fds & 3).wrapping_add(i / 60)) % 4].as_fd())
            .collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let sent = rustix::net::sendmsg(&ours, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL);
        if sent.is_err() {
            break;
        }
    }
    // The session ends at the end of what was sent.
    let _ = ours.shutdown(std::net::Shutdown::Write);
    vhost_user::fuzzing::session(theirs).expect("an eventfd");
    drop(ours);
    assert_eq!(open_files(), before, "descriptors were left behind");
});
