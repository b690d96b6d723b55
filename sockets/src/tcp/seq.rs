//! Sequence numbers: a circle of 2^32, on which "before" means less than half of it away (RFC 9293, 3.4).

use std::ops::{Add, AddAssign, Sub, SubAssign};

/// A sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    /// Bytes from `earlier` to this; negative if it is the later one.
    #[inline]
    pub(crate) const fn from(self, earlier: Self) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }

    /// True if this is before `other`.
    #[inline]
    pub(crate) const fn before(self, other: Self) -> bool {
        self.from(other) < 0
    }

    /// True if this is after `other`.
    #[inline]
    pub(crate) const fn after(self, other: Self) -> bool {
        self.from(other) > 0
    }

    /// The later of both.
    #[inline]
    pub(crate) const fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    #[inline]
    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl AddAssign<u32> for Seq {
    #[inline]
    fn add_assign(&mut self, n: u32) {
        *self = *self + n;
    }
}

impl Sub<u32> for Seq {
    type Output = Self;

    #[inline]
    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}

impl SubAssign<u32> for Seq {
    #[inline]
    fn sub_assign(&mut self, n: u32) {
        *self = *self - n;
    }
}

impl Sub for Seq {
    type Output = u32;

    /// Bytes from `earlier` to this; zero if it is the later one.
    #[inline]
    fn sub(self, earlier: Self) -> u32 {
        self.from(earlier).max(0) as u32
    }
}
