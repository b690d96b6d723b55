//! Chains of descriptors, whatever ring they are in: a descriptor's copy, and where the bytes are that it names.
//!
//! A descriptor has the same sixteen bytes' worth of meaning in both rings (virtio 1.2, 2.7.5 and 2.8.13); its
//! last two fields are in another order, and each ring reads its own. What
//! they point at is [`Buffers`]'s: every address that a guest names is checked there, against the memory table that the ring was started with.

use std::sync::Arc;

use datapath::PortError;
use datapath::burst::FRAME_SEGMENTS;

use crate::memory::{GuestMemory, Window, sigbus};

/// Descriptors of one chain that are followed. A longer chain is no error of the driver's if the ring is large
/// enough, but its frame is dropped.
pub(super) const CHAIN_MAX: usize = FRAME_SEGMENTS + 2;
/// Pieces that a chain's bytes can be in: some descriptors may cross from region to region.
pub(super) const PIECES_MAX: usize = CHAIN_MAX + 6;

pub(super) const F_NEXT: u16 = 1;
pub(super) const F_WRITE: u16 = 2;
pub(super) const F_INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: usize = 16;

/// A descriptor, copied out of the ring.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// Where the ring finds the one that follows.
    pub(super) next: u16,
}

impl Descriptor {
    /// True if the descriptor is a chain of its own, of a buffer that the device reads.
    #[inline(always)]
    pub(super) fn is_single_readable(&self) -> bool {
        self.flags & (F_NEXT | F_WRITE | F_INDIRECT) == 0
    }

    /// True if the descriptor is a chain of its own, of a buffer that the device writes.
    #[inline(always)]
    pub(super) fn is_single_writable(&self) -> bool {
        self.flags & (F_NEXT | F_WRITE | F_INDIRECT) == F_WRITE
    }

    /// True if a readable buffer follows this readable one in the ring's own table.
    #[inline(always)]
    pub(super) fn is_first_readable(&self) -> bool {
        self.flags & (F_NEXT | F_WRITE | F_INDIRECT) == F_NEXT
    }
}

/// A part of a chain that is contiguous in this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(super) ptr: *mut u8,
    pub(super) len: u32,
}

/// How following a chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// All of it is in the pieces.
    Whole,
    /// It has more than [`CHAIN_MAX`] descriptors or [`PIECES_MAX`] pieces.
    TooLong,
}

/// A number that is not where its type would have it.
#[repr(C, packed)]
pub(super) struct Unaligned<T>(pub(super) T);

/// The two halves of a descriptor, each read once, whatever the driver does meanwhile.
///
/// # Safety
/// 16 bytes from `at` must be readable guest memory.
#[inline(always)]
pub(super) unsafe fn read_halves(at: *const u8) -> (u64, u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let Unaligned(addr) = at.cast::<Unaligned<u64>>().read_volatile();
        let Unaligned(rest) = at.add(8).cast::<Unaligned<u64>>().read_volatile();
        (u64::from_le(addr), u64::from_le(rest))
    }
}

/// The memory behind a ring's descriptors.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// The range that was used last: most are in it.
    window: Window,
    faults_seen: u64,
    memory: Arc<GuestMemory>,
}

impl Buffers {
    pub(super) fn new(memory: Arc<GuestMemory>) -> Self {
        Self { window: Window::NONE, faults_seen: sigbus::faults(), memory }
    }

    /// Where a buffer is, if it is contiguous in this process.
    #[inline(always)]
    pub(super) fn contiguous(&mut self, addr: u64, len: u32) -> Option<*mut u8> {
        match self.window.get(addr, len) {
            Some(ptr) => Some(ptr),
            None => self.other_window(addr, len),
        }
    }

    #[cold]
    fn other_window(&mut self, addr: u64, len: u32) -> Option<*mut u8> {
        let window = self.memory.window(addr)?;
        self.window = window;
        window.get(addr, len)
    }

    /// Appends where a buffer is, in as many pieces as it crosses regions. False if there is no room for them.
    pub(super) fn translate(
        &mut self,
        mut addr: u64,
        mut len: u32,
        pieces: &mut Vec<Piece>,
    ) -> Result<bool, PortError> {
        if let Some(ptr) = self.contiguous(addr, len) {
            pieces.push(Piece { ptr, len });
            return Ok(pieces.len() < PIECES_MAX);
        }
        loop {
            let outside = "a descriptor points outside the memory that the front-end shares";
            let Some(window) = self.memory.window(addr) else { return Err(self.protocol(outside)) };
            let here = u32::try_from(window.rest(addr)).unwrap_or(u32::MAX).min(len);
            let Some(ptr) = window.get(addr, here) else { return Err(self.protocol(outside)) };
            pieces.push(Piece { ptr, len: here });
            if pieces.len() >= PIECES_MAX {
                return Ok(false);
            }
            len -= here;
            if len == 0 {
                return Ok(true);
            }
            let Some(next) = addr.checked_add(u64::from(here)) else { return Err(self.protocol(outside)) };
            addr = next;
        }
    }

    /// Fails once the memory behind the ring was lost. One load of a number that hardly ever changes.
    #[inline(always)]
    pub(super) fn check(&mut self) -> Result<(), PortError> {
        let faults = sigbus::faults();
        if faults != self.faults_seen { self.look_at_memory(faults) } else { Ok(()) }
    }

    #[cold]
    fn look_at_memory(&mut self, faults: u64) -> Result<(), PortError> {
        if self.memory.poisoned() {
            return Err(lost());
        }
        self.faults_seen = faults;
        Ok(())
    }

    /// The driver broke the rules; or its memory is gone, and what was read were the zeros in its place.
    #[cold]
    pub(super) fn protocol(&self, why: &'static str) -> PortError {
        if self.memory.poisoned() { lost() } else { PortError::Protocol(why) }
    }
}

#[cold]
fn lost() -> PortError {
    PortError::Memory("its file was truncated, or has no page to give")
}
