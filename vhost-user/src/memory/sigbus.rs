//! What happens when guest memory goes away under us.
//!
//! A front-end can truncate the file behind a region at any time; the next access to it raises SIGBUS in
//! whatever thread makes it. The handler here looks the address up in a table of watched mappings. If it is in
//! one, the whole mapping is replaced by zero pages, the mapping is marked as poisoned, and the thread goes on
//! as if it had read zeros: the rings look at [`faults`] after each burst and quarantine their port. A fault
//! anywhere else gets the action that was there before (by default: the process ends with a core).
//!
//! Invariants:
//! - the handler takes no lock, allocates nothing, and calls nothing but `mmap`, `sigaction` and `raise`;
//! - a slot of the table is written by one thread at a time (the free list's lock) and read by handlers on any
//!   thread; `seq` is odd while it changes, and a handler that sees it change takes the slot for another's;
//! - a mapping is watched before anybody reads it, and is unmapped only after its [`Watch`] is gone.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Mappings that can be watched at a time: 1,000 ports of 32 regions.
const SLOTS: usize = 32_768;

struct Slot {
    seq: AtomicU32,
    poisoned: AtomicBool,
    start: AtomicUsize,
    len: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        seq: AtomicU32::new(0),
        poisoned: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; SLOTS];
/// Slots below this were used at least once.
static USED: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// The action before ours. Written once, before ours is installed.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// How many mappings were lost since the process began. Cheap to read: it changes almost never, and a change
/// tells a ring to look at its own mappings.
#[inline]
pub(crate) fn faults() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// A mapping that is watched for as long as this lives.
#[derive(Debug)]
pub(crate) struct Watch(usize);

impl Watch {
    /// Watches `len` bytes from `start`.
    ///
    /// # Safety
    /// The range must be one whole mapping made by `mmap`, of this process's own, that stays until the watch is dropped
    /// and that may be replaced by anonymous memory: no reference may point into it.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        install()?;
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match free.pop() {
            Some(index) => index,
            None => {
                let index = USED.load(Ordering::Relaxed);
                if index >= SLOTS {
                    return Err(io::Error::other("too many guest memory regions in this process"));
                }
                USED.store(index + 1, Ordering::Release);
                index
            }
        };
        TABLE[index].set(start as usize, len);
        Ok(Self(index))
    }

    /// True once the mapping was lost.
    pub(crate) fn poisoned(&self) -> bool {
        TABLE[self.0].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.0].set(0, 0);
        free.push(self.0);
    }
}

impl Slot {
    /// Only with the free list's lock held.
    fn set(&self, start: usize, len: usize) {
        let seq = self.seq.load(Ordering::Relaxed);
        self.seq.store(seq.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.seq.store(seq.wrapping_add(2), Ordering::Release);
    }

    /// The mapping, if it holds `address`.
    fn holds(&self, address: usize) -> Option<(usize, usize)> {
        let seq = self.seq.load(Ordering::Acquire);
        let (start, len) = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::SeqCst);
        // A mapping that somebody is accessing has a live watch, so its slot is not changing.
        if seq & 1 != 0 || seq != self.seq.load(Ordering::Relaxed) {
            return None;
        }
        (address.wrapping_sub(start) < len).then_some((start, len))
    }
}

fn install() -> io::Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done {
        return Ok(());
    }
    // SAFETY: plain calls of sigaction with valid pointers; the handler is async-signal-safe (see the module's
    // text). SA_ONSTACK because the Rust runtime gives its threads an alternate stack.
    unsafe {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        BEFORE.get_or_init(|| before.assume_init());
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigemptyset(&mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    *done = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO handler; si_addr is meaningful for the codes
    // that the kernel itself raises (above zero), and only read for those. errno belongs to the interrupted
    // thread and is put back.
    unsafe {
        let errno = *libc::__errno_location();
        let from_kernel = (*info).si_code > 0;
        if !(from_kernel && replace((*info).si_addr() as usize)) {
            if let Some(before) = BEFORE.get() {
                libc::sigaction(libc::SIGBUS, before, ptr::null_mut());
            } else {
                libc::signal(libc::SIGBUS, libc::SIG_DFL);
            }
            // A fault happens again on return; a signal that somebody sent does not.
            if !from_kernel {
                libc::raise(signal);
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Puts zero pages where the mapping that holds `address` was. False if no watched mapping does.
fn replace(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire).min(SLOTS);
    for slot in &TABLE[..used] {
        let Some((start, len)) = slot.holds(address) else { continue };
        // SAFETY: the range is one whole mapping that `Watch::new`'s caller allowed to be replaced.
        let at = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return false;
        }
        slot.poisoned.store(true, Ordering::Release);
        FAULTS.fetch_add(1, Ordering::Release);
        return true;
    }
    false
}
