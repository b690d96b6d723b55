//! A quick hash and a reproducible byte stream, to show that what arrives is what was sent.
//!
//! Neither is cryptographic: they find loss, duplication, reordering and corruption, not malice.

const K: u64 = 0x9e37_79b9_7f4a_7c15;

/// A 64-bit hash of a byte stream: independent of how the stream is cut into updates.
#[derive(Clone, Debug, Default)]
pub struct StreamHash {
    state: u64,
    pending: u64,
    len: u64,
}

impl StreamHash {
    /// The hash of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::new();
        hash.update(bytes);
        hash.finish()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !self.len.is_multiple_of(8) {
            let Some((&first, rest)) = bytes.split_first() else { return };
            self.byte(first);
            bytes = rest;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.state = mix(self.state, u64::from_le_bytes(*word));
        }
        self.len += 8 * words.len() as u64;
        for &b in rest {
            self.byte(b);
        }
    }

    fn byte(&mut self, b: u8) {
        self.pending |= u64::from(b) << (8 * (self.len % 8));
        self.len += 1;
        if self.len.is_multiple_of(8) {
            self.state = mix(self.state, std::mem::take(&mut self.pending));
        }
    }

    /// How many bytes were taken.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The hash of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> u64 {
        let h = mix(mix(self.state, self.pending), self.len);
        h ^ (h >> 32)
    }
}

#[inline]
fn mix(state: u64, word: u64) -> u64 {
    (state.rotate_left(23) ^ word).wrapping_mul(K)
}

/// An endless reproducible byte stream. Its period is odd, so that no power of two shifts it onto itself.
#[derive(Clone, Debug)]
pub struct Pattern {
    block: Vec<u8>,
    at: usize,
}

impl Pattern {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        const LEN: usize = (1 << 18) - 5;
        let mut state = seed;
        let mut block = Vec::with_capacity(LEN + 8);
        while block.len() < LEN {
            block.extend_from_slice(&splitmix(&mut state).to_le_bytes());
        }
        block.truncate(LEN);
        Pattern { block, at: 0 }
    }

    /// The stream's next bytes, at most `max` and at least one (unless `max` is 0).
    pub fn next(&mut self, max: usize) -> &[u8] {
        let start = self.at;
        let n = max.min(self.block.len() - start);
        self.at = (start + n) % self.block.len();
        &self.block[start..start + n]
    }

    /// Fills `out` with the stream's next bytes.
    pub fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            let bytes = self.next(out.len());
            let (head, tail) = out.split_at_mut(bytes.len());
            head.copy_from_slice(bytes);
            out = tail;
        }
    }
}

/// The next number of a seeded sequence (splitmix64).
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(K);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_does_not_depend_on_cuts_but_on_every_byte() {
        let mut bytes = vec![0; 10_007];
        Pattern::new(7).fill(&mut bytes);
        let whole = StreamHash::of(&bytes);
        for cut in [1, 3, 7, 8, 9, 64, 1448] {
            let mut h = StreamHash::new();
            bytes.chunks(cut).for_each(|c| h.update(c));
            assert_eq!(h.finish(), whole, "cut every {cut}");
        }
        for i in [0, 1, 5000, 10_006] {
            let mut other = bytes.clone();
            other[i] ^= 1;
            assert_ne!(StreamHash::of(&other), whole, "byte {i}");
        }
        assert_ne!(StreamHash::of(&bytes[..10_006]), whole);
        let mut swapped = bytes.clone();
        swapped[..2896].rotate_left(1448);
        assert_ne!(StreamHash::of(&swapped), whole);
    }
}
