//! Numbers that a guest cannot predict: SipHash-2-4 (Aumasson and Bernstein, 2012) of a counter, under a secret that
//! the caller gives, and the keyed hash that places keys in tables.

use std::fmt;

/// The key of a translator's random choices. Who knows it knows the ports to come.
#[derive(Clone, Copy)]
pub(super) struct Secret([u64; 2]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// From 16 random bytes.
    pub(super) const fn new(seed: [u64; 2]) -> Self {
        Self(seed)
    }

    /// SipHash-2-4 of the eight bytes of `message`.
    pub(super) fn hash(self, message: u64) -> u64 {
        let Self([k0, k1]) = self;
        let mut v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        for block in [message, 8 << 56] {
            v[3] ^= block;
            round(&mut v);
            round(&mut v);
            v[0] ^= block;
        }
        v[2] ^= 0xff;
        for _ in 0..4 {
            round(&mut v);
        }
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }

    /// A secret for one of several purposes.
    pub(super) fn derive(self, purpose: u64) -> Self {
        Self([self.hash(purpose << 1), self.hash(purpose << 1 | 1)])
    }
}

fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

/// A sequence of random numbers.
#[derive(Debug)]
pub(super) struct Random {
    secret: Secret,
    drawn: u64,
}

impl Random {
    pub(super) fn new(secret: Secret) -> Self {
        Self { secret, drawn: 0 }
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        self.secret.hash(self.drawn)
    }
}

/// A keyed hash: 64 by 64 bit multiplications whose halves are folded.
#[derive(Clone)]
#[doc(hidden)]
pub struct KeyedHash {
    xor: [u64; 3],
    multiply: u64,
}

impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyedHash")
    }
}

impl KeyedHash {
    pub(super) fn new(secret: Secret) -> Self {
        let mut random = Random::new(secret);
        Self { xor: [random.draw(), random.draw(), random.draw()], multiply: random.draw() | 1 }
    }

    /// Of two words: all 64 bits of use.
    #[inline]
    pub(super) fn pair(&self, a: u64, b: u64) -> u64 {
        let [x, y, z] = self.xor;
        fold(fold(a ^ x, b ^ y) ^ z, self.multiply)
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_is_the_published_one() {
        // The reference's vector for eight bytes 00 to 07 under the key 00 to 0F.
        let secret = Secret::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        assert_eq!(secret.hash(0x0706_0504_0302_0100), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn neighbours_spread_over_any_bits() {
        let hash = KeyedHash::new(Secret::new([1, 2]));
        for shift in [0, 24, 56] {
            let mut places = [0; 256];
            for i in 0..1024 {
                places[(hash.pair(0x0a00_0001_c000_0201, i) >> shift) as usize & 255] += 1;
            }
            assert!(places.iter().filter(|&&n| n == 0).count() < 40, "{places:?}");
        }
    }
}
