//! What an entry is found by: a station's address and its VLAN.
//!
//! Stations choose their addresses, so everything that is placed by a key is placed by a [`KeyHash`] with keys
//! of its own, which nobody outside the process can know.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::ids::{MacAddr, Vid};

/// A MAC address and a VLAN in 60 bits: the address in the lower 48, the VID (0 is untagged) above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    const MAC: u64 = (1 << 48) - 1;

    /// The key of a station on a VLAN.
    #[inline]
    pub fn new(mac: MacAddr, vlan: Option<Vid>) -> Self {
        Self::from_u64(mac.to_u64(), vlan)
    }

    /// The same from [`MacAddr::to_u64`]'s number; bits above the lower 48 are cut off.
    #[inline]
    pub fn from_u64(mac: u64, vlan: Option<Vid>) -> Self {
        Self(mac & Self::MAC | u64::from(vlan.map_or(0, Vid::get)) << 48)
    }

    /// The address.
    #[inline]
    pub fn mac(self) -> MacAddr {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        MacAddr([a, b, c, d, e, f])
    }

    /// The VLAN.
    #[inline]
    pub fn vlan(self) -> Option<Vid> {
        Vid::new((self.0 >> 48) as u16)
    }

    /// As a number below 2^60.
    #[inline]
    pub fn to_u64(self) -> u64 {
        self.0
    }
}

/// A keyed hash of [`Key`]s: two rounds of a 64 by 64 bit multiplication whose halves are folded. Its keys come
/// from the standard library's, which come from the system.
#[derive(Clone, Debug)]
pub struct KeyHash {
    xor: [u64; 2],
    multiply: [u64; 2],
}

impl Default for KeyHash {
    fn default() -> Self {
        Self::new()
    }
}

impl KeyHash {
    /// A hash that is like no other.
    pub fn new() -> Self {
        let state = RandomState::new();
        let random = |i: u64| {
            let mut hasher = state.build_hasher();
            hasher.write_u64(i);
            hasher.finish()
        };
        Self { xor: [random(0), random(1)], multiply: [random(2) | 1, random(3) | 1] }
    }

    /// The hash of a key: all 64 bits of use.
    #[inline]
    pub fn hash(&self, key: Key) -> u64 {
        let first = fold(key.0 ^ self.xor[0], self.multiply[0]);
        fold(first ^ self.xor[1], self.multiply[1])
    }
}

/// The 128 bits of a product, folded.
#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_holds_address_and_vlan() {
        let mac: MacAddr = "02:16:3e:01:02:ff".parse().unwrap();
        for vlan in [None, Vid::new(1), Vid::new(4094)] {
            let key = Key::new(mac, vlan);
            assert_eq!((key.mac(), key.vlan()), (mac, vlan));
        }
        assert_ne!(Key::new(mac, None), Key::new(mac, Vid::new(1)));
    }

    #[test]
    fn consecutive_addresses_spread_over_any_bits() {
        // Four addresses for each of 256 places: of a good hash about 1.8 % of the places stay empty.
        let hash = KeyHash::new();
        for shift in [0, 24, 56] {
            let mut places = [0; 256];
            for i in 0..1024 {
                places[(hash.hash(Key::from_u64(0x0200_0000_0000 + i, None)) >> shift) as usize & 255] += 1;
            }
            assert!(places.iter().filter(|&&n| n == 0).count() < 40, "{places:?}");
            assert!(places.iter().all(|&n| n < 24), "{places:?}");
        }
    }
}
