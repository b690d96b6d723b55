//! The range that an address is in, found by arithmetic on where the ranges begin.
//!
//! The first addresses of the ranges are in order, in one array. A *span* divides the part of the address space from
//! one of them to another into buckets of equal size, about one for every four of its ranges, so that an address's
//! bucket is a subtraction and a shift away. A bucket says which range begins first in it. Where fewer than
//! [`WINDOW`] begin in a bucket, counting those that are not above the address finds the range: always as many are
//! counted, because those behind the bucket are above the address anyway, and so no branch depends on the data. A
//! bucket in which more begin (prefixes come in clusters) has a span of its own, for what is in it.
//!
//! Every span at least halves what is left to divide, most leave a handful. Below [`DEPTH_MAX`] spans, which only
//! prefixes chosen for it reach, a binary search does the rest.

/// Ranges that are looked at in one bucket.
const WINDOW: usize = 8;
/// Ranges for each bucket, about.
const LOAD: usize = 4;
/// Spans that are followed.
const DEPTH_MAX: usize = 6;

/// A number that an address is.
pub(super) trait Key: Copy + Ord {
    /// The first address.
    const ZERO: Self;
    /// The last address.
    const MAX: Self;
    /// Length of an address.
    const BITS: u8;
    /// The next address, if there is one.
    fn next(self) -> Option<Self>;
    /// How far it is above another, if it is.
    fn above(self, other: Self) -> Option<Self>;
    /// Without its last bits, fewer than there are, as an index; the largest one if it is none.
    fn bucket(self, shift: u8) -> usize;
    /// Bits up to the first one.
    fn width(self) -> u8;
    /// The last address of the prefix of `len` bits that begins here.
    fn last_of(self, len: u8) -> Self;
}

macro_rules! key {
    ($type:ty) => {
        impl Key for $type {
            const ZERO: Self = 0;
            const MAX: Self = <$type>::MAX;
            const BITS: u8 = <$type>::BITS as u8;

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            #[inline]
            fn above(self, other: Self) -> Option<Self> {
                self.checked_sub(other)
            }

            #[inline]
            fn bucket(self, shift: u8) -> usize {
                usize::try_from(self.checked_shr(shift.into()).unwrap_or(0)).unwrap_or(usize::MAX)
            }

            fn width(self) -> u8 {
                (<$type>::BITS - self.leading_zeros()) as u8
            }

            fn last_of(self, len: u8) -> Self {
                self | <$type>::MAX.checked_shr(len.into()).unwrap_or(0)
            }
        }
    };
}

key!(u32);
key!(u128);

/// A part of the address space in buckets.
#[derive(Clone, Copy, Debug)]
struct Span<K> {
    /// Where it begins: with the first address of its first range.
    first: K,
    /// Bits of an address within a bucket.
    shift: u8,
    /// Its first bucket.
    bucket: u32,
    /// How many it has, less one.
    last: u32,
    /// Its ranges: the first of them, and behind the last.
    ranges: (u32, u32),
}

/// What begins in a bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// The first range that begins in it or behind it.
    range: u32,
    /// The span that divides it, or 0.
    span: u32,
}

/// The ranges of an address space, with an answer each.
#[derive(Clone, Debug)]
pub(super) struct Spans<K, T> {
    /// Where the ranges begin, from zero on; and [`WINDOW`] more, so that a window never ends too soon.
    keys: Vec<K>,
    values: Vec<Option<T>>,
    buckets: Vec<Bucket>,
    /// The first one holds all ranges but the one that begins at zero.
    spans: Vec<Span<K>>,
    ranges: usize,
}

impl<K: Key, T: Copy> Spans<K, T> {
    /// Takes ranges in order, of which the first begins at zero.
    pub(super) fn build(ranges: &[(K, Option<T>)]) -> Self {
        let last = ranges.last().and_then(|(_, value)| *value);
        let mut spans = Self {
            keys: ranges.iter().map(|(key, _)| *key).chain([K::MAX; WINDOW]).collect(),
            values: ranges.iter().map(|(_, value)| *value).chain([last; WINDOW]).collect(),
            buckets: Vec::new(),
            spans: Vec::new(),
            ranges: ranges.len(),
        };
        spans.divide(1, ranges.len().max(1), 0);
        spans.buckets.shrink_to_fit();
        spans.spans.shrink_to_fit();
        spans
    }

    /// Makes the span of some ranges and what is below it. Its number.
    fn divide(&mut self, from: usize, to: usize, depth: usize) -> u32 {
        let first = self.keys.get(from).copied().unwrap_or(K::MAX);
        let last = self.keys.get(to.saturating_sub(1)).copied().unwrap_or(first);
        let wanted = (to.saturating_sub(from) / LOAD).next_power_of_two();
        let width = last.above(first).map_or(0, K::width);
        let shift = width.saturating_sub(wanted.trailing_zeros() as u8);
        let count = last.above(first).map_or(0, |distance| distance.bucket(shift)) + 1;
        let number = self.spans.len();
        let bucket = self.buckets.len();
        self.spans.push(Span {
            first,
            shift,
            bucket: bucket as u32,
            last: (count - 1) as u32,
            ranges: (from as u32, to as u32),
        });
        self.buckets.resize(bucket + count, Bucket { range: 0, span: 0 });
        let mut at = from;
        for i in 0..count {
            let begin = at;
            while at < to
                && self.keys.get(at).and_then(|k| k.above(first)).is_some_and(|d| d.bucket(shift) == i)
            {
                at += 1;
            }
            let span =
                if at - begin >= WINDOW && depth < DEPTH_MAX { self.divide(begin, at, depth + 1) } else { 0 };
            if let Some(bucket) = self.buckets.get_mut(bucket + i) {
                *bucket = Bucket { range: begin as u32, span };
            }
        }
        number as u32
    }

    /// The answer of the range that an address is in.
    #[inline]
    pub(super) fn get(&self, address: K) -> Option<T> {
        self.value(self.behind(address, self.bucket(address)))
    }

    /// The first range that begins in an address's bucket or behind it; none before it begins above the address.
    #[inline]
    pub(super) fn bucket(&self, address: K) -> usize {
        let Some(mut span) = self.spans.first() else { return 0 };
        loop {
            let Some(offset) = address.above(span.first) else { return span.ranges.0 as usize };
            let i = offset.bucket(span.shift).min(span.last as usize);
            let Some(bucket) = self.buckets.get(span.bucket as usize + i) else { return 0 };
            match self.spans.get(bucket.span as usize) {
                Some(below) if bucket.span != 0 => span = below,
                _ => return bucket.range as usize,
            }
        }
    }

    /// The first range that begins above an address, by what [`Spans::bucket`] says of it.
    #[inline]
    pub(super) fn behind(&self, address: K, bucket: usize) -> usize {
        let Some(window) = self.keys.get(bucket..).and_then(|keys| keys.first_chunk::<WINDOW>()) else {
            return 0;
        };
        let begun: usize = window.iter().map(|key| usize::from(*key <= address)).sum();
        if begun == WINDOW { self.search(address, bucket) } else { bucket + begun }
    }

    /// The answer of the range before another.
    #[inline]
    pub(super) fn value(&self, behind: usize) -> Option<T> {
        *self.values.get(behind.wrapping_sub(1))?
    }

    /// The same where more ranges may have begun than a window has.
    #[cold]
    fn search(&self, address: K, from: usize) -> usize {
        from + self.keys.get(from..self.ranges).unwrap_or_default().partition_point(|key| *key <= address)
    }

    /// Bytes that the ranges take.
    pub(super) fn memory(&self) -> usize {
        self.keys.capacity() * size_of::<K>()
            + self.values.capacity() * size_of::<Option<T>>()
            + self.buckets.capacity() * size_of::<Bucket>()
            + self.spans.capacity() * size_of::<Span<K>>()
    }
}
