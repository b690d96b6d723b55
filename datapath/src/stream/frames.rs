//! The stream as frames: before each, its length in 4 bytes, big-endian, as QEMU's `-netdev stream` has it.
//!
//! Bytes are received behind each other into one buffer and cut where they are. What is left of a frame that has
//! not ended moves to the buffer's beginning before more is received: each byte at most once, and of a stream
//! that is read in large pieces one byte in hundreds.

use std::ops::Range;

/// Bytes of the length before each frame.
pub(crate) const PREFIX: usize = 4;
/// The longest length that is one of a frame that is too long, and not of a stream whose ends have lost each other:
/// what QEMU has room for (`NET_BUFSIZE`).
pub(crate) const LENGTH_MAX: usize = 4096 + 65_536;
/// Bytes of the buffer: what one receive takes at most. More than the longest frame has, so that there is always room.
const SIZE: usize = 128 * 1024;

const _: () = assert!(SIZE > PREFIX + LENGTH_MAX);

/// Bytes that were received, and are cut into frames.
#[derive(Debug)]
pub(crate) struct Cutter {
    buffer: Box<[u8]>,
    /// What is not cut yet: `start..end`.
    start: usize,
    end: usize,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A frame, at this place; it may be empty, and may be longer than frames can be.
    Frame(Range<usize>),
    /// A frame that has not ended.
    Partial,
    /// No frame has this length, so nobody knows where the next one begins.
    Broken(u32),
}

impl Cutter {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; SIZE].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where more may be received: never empty once all frames were cut. Frames that were cut are gone by then.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// The first `n` bytes of [`Cutter::space`] were received.
    pub(crate) fn received(&mut self, n: usize) {
        self.end = self.buffer.len().min(self.end + n);
    }

    /// Cuts what comes next.
    #[inline]
    pub(crate) fn next(&mut self) -> Cut {
        let cut = self.look();
        if let Cut::Frame(range) = &cut {
            self.start = range.end;
        }
        cut
    }

    /// True unless what comes next is [`Cut::Partial`].
    #[inline]
    pub(crate) fn has_next(&self) -> bool {
        self.look() != Cut::Partial
    }

    #[inline]
    fn look(&self) -> Cut {
        let Some(prefix) = self.buffer[self.start..self.end].first_chunk::<PREFIX>() else {
            return Cut::Partial;
        };
        let told = u32::from_be_bytes(*prefix);
        let Some(len) = usize::try_from(told).ok().filter(|&len| len <= LENGTH_MAX) else {
            return Cut::Broken(told);
        };
        let at = self.start + PREFIX;
        if self.end - at < len { Cut::Partial } else { Cut::Frame(at..at + len) }
    }

    /// The bytes of a frame that was cut since the last [`Cutter::space`].
    #[inline]
    pub(crate) fn bytes(&self, frame: Range<usize>) -> &[u8] {
        &self.buffer[frame]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(cutter: &mut Cutter, bytes: &[u8]) {
        let space = cutter.space();
        space[..bytes.len()].copy_from_slice(bytes);
        cutter.received(bytes.len());
    }

    fn next(cutter: &mut Cutter) -> Option<Vec<u8>> {
        match cutter.next() {
            Cut::Frame(range) => Some(cutter.bytes(range).to_vec()),
            Cut::Partial => None,
            Cut::Broken(len) => panic!("{len}"),
        }
    }

    #[test]
    fn a_frame_in_single_bytes_is_one_frame() {
        let mut cutter = Cutter::new();
        for byte in [0, 0, 0, 3, b'a', b'b'] {
            feed(&mut cutter, &[byte]);
            assert!(!cutter.has_next());
            assert_eq!(next(&mut cutter), None);
        }
        feed(&mut cutter, b"c");
        assert!(cutter.has_next());
        assert_eq!(next(&mut cutter), Some(b"abc".to_vec()));
        assert_eq!(next(&mut cutter), None);
    }

    #[test]
    fn lengths_at_the_bounds() {
        let mut cutter = Cutter::new();
        feed(&mut cutter, &[0, 0, 0, 0, 0, 0, 0, 1, 7]);
        assert_eq!((next(&mut cutter), next(&mut cutter)), (Some(vec![]), Some(vec![7])));
        // The longest, behind something that was cut already.
        feed(&mut cutter, &(LENGTH_MAX as u32).to_be_bytes());
        let mut left = LENGTH_MAX;
        while left > 0 {
            assert_eq!(cutter.next(), Cut::Partial);
            let n = cutter.space().len().min(left).min(1000);
            assert!(n > 0, "there is room for the longest frame");
            cutter.received(n);
            left -= n;
        }
        assert_eq!(cutter.next(), Cut::Frame(PREFIX..PREFIX + LENGTH_MAX));
        for len in [LENGTH_MAX as u32 + 1, u32::MAX] {
            let mut cutter = Cutter::new();
            feed(&mut cutter, &len.to_be_bytes());
            assert!(cutter.has_next());
            assert_eq!(cutter.next(), Cut::Broken(len));
            assert_eq!(cutter.next(), Cut::Broken(len), "it stays broken");
        }
    }
}
