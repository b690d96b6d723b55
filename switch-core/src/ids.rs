//! Names of things: ports, networks, VLANs and MAC addresses, as types that cannot be mixed up.
//!
//! [`PortId`] and [`NetworkId`] are minted only by their [`Registry`], so a number that names no port does not
//! exist. An identifier carries the generation of its slot: when a port goes and another takes its place, what
//! still names the old one (an FDB entry, a queued event) names nothing.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU16;
use std::str::FromStr;

/// Something that a [`Registry`] can mint: a slot and the generation of its use.
pub trait Id: Copy + Eq {
    /// Builds the identifier. Only a registry calls this.
    #[doc(hidden)]
    fn mint(index: u16, generation: u16, _proof: Minted) -> Self;
    /// The slot, below the registry's capacity.
    fn index(self) -> usize;
    /// How often the slot was used before.
    fn generation(self) -> u16;
}

/// Proof that a [`Registry`] is calling; nobody else can make one.
#[doc(hidden)]
#[derive(Debug)]
pub struct Minted(());

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            index: u16,
            generation: u16,
        }

        impl Id for $name {
            #[inline]
            fn mint(index: u16, generation: u16, _proof: Minted) -> Self {
                Self { index, generation }
            }

            #[inline]
            fn index(self) -> usize {
                usize::from(self.index)
            }

            #[inline]
            fn generation(self) -> u16 {
                self.generation
            }
        }
    };
}

id! {
    /// A port of the switch.
    PortId
}

id! {
    /// A network of the switch.
    NetworkId
}

/// Mints identifiers of one kind and takes them back.
#[derive(Debug)]
pub struct Registry<I> {
    /// The generation that each slot has, or will have when it is used next.
    generations: Vec<u16>,
    free: Vec<u16>,
    capacity: u16,
    _kind: PhantomData<I>,
}

impl<I: Id> Registry<I> {
    /// A registry of at most `capacity` identifiers at a time.
    pub fn new(capacity: u16) -> Self {
        Self { generations: Vec::new(), free: Vec::new(), capacity, _kind: PhantomData }
    }

    /// A new identifier, or `None` when all are in use.
    pub fn mint(&mut self) -> Option<I> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u16::try_from(self.generations.len()).ok().filter(|&i| i < self.capacity)?;
                self.generations.push(0);
                index
            }
        };
        let generation = *self.generations.get(usize::from(index))?;
        Some(I::mint(index, generation, Minted(())))
    }

    /// Takes an identifier back; from here on it names nothing. Returns false if it named nothing already.
    pub fn retire(&mut self, id: I) -> bool {
        match self.generations.get_mut(id.index()) {
            Some(generation) if *generation == id.generation() => {
                *generation = generation.wrapping_add(1);
                // The index came out of a registry, so it fits.
                self.free.push(id.index() as u16);
                true
            }
            _ => false,
        }
    }
}

/// An IEEE 802.1Q VLAN identifier, 1 to 4094. VID 0 (priority-tagged) is not a VLAN: it reads as untagged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vid(NonZeroU16);

impl Vid {
    /// The VID, if `vid` is 1 to 4094.
    #[inline]
    pub const fn new(vid: u16) -> Option<Self> {
        if vid > 4094 {
            return None;
        }
        match NonZeroU16::new(vid) {
            Some(v) => Some(Self(v)),
            None => None,
        }
    }

    /// 1 to 4094.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An EUI-48.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// FF:FF:FF:FF:FF:FF.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The first six bytes of `bytes`, if there are as many.
    #[inline]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(|b| Self(*b))
    }

    /// As a number: the first octet is the most significant of 48 bits.
    #[inline]
    pub const fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// True for group addresses (broadcast and multicast): the first octet's lowest bit.
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// True for 00:00:00:00:00:00.
    #[inline]
    pub const fn is_zero(self) -> bool {
        self.to_u64() == 0
    }

    /// True for addresses that a station may have: neither group nor zero.
    #[inline]
    pub const fn is_station(self) -> bool {
        !self.is_group() && !self.is_zero()
    }

    /// True for 01:80:C2:00:00:00 to 0F, which a bridge never forwards (IEEE 802.1Q, table 8-1).
    #[inline]
    pub const fn is_reserved(self) -> bool {
        self.to_u64() & !0xf == 0x0180_c200_0000
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not six octets of two hexadecimal digits, separated by colons or hyphens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a MAC address (six octets in hexadecimal, as 00:16:3e:01:02:03)")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(s: &str) -> Result<Self, ParseMacError> {
        let error = || ParseMacError(s.to_owned());
        let separator = if s.contains('-') { '-' } else { ':' };
        let mut parts = s.split(separator);
        let mut mac = [0; 6];
        for octet in &mut mac {
            let part = parts.next().ok_or_else(error)?;
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(mac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_identifier_names_nothing() {
        let mut registry = Registry::<PortId>::new(2);
        let a = registry.mint().unwrap();
        let b = registry.mint().unwrap();
        assert_ne!(a, b);
        assert_eq!(registry.mint(), None, "the registry holds two");
        assert!(registry.retire(a));
        assert!(!registry.retire(a), "retired already");
        let c = registry.mint().unwrap();
        assert_eq!(c.index(), a.index(), "the slot is used again");
        assert_ne!(c, a, "and is not taken for its former owner");
    }

    #[test]
    fn vids_are_1_to_4094() {
        assert_eq!(Vid::new(0), None);
        assert_eq!(Vid::new(4095), None);
        assert_eq!(Vid::new(1).map(Vid::get), Some(1));
        assert_eq!(Vid::new(4094).map(Vid::get), Some(4094));
    }

    #[test]
    fn mac_addresses_parse_and_print() {
        let mac: MacAddr = "00:16:3E:01:02:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "00:16:3e:01:02:0f");
        assert_eq!(mac.to_u64(), 0x0016_3e01_020f);
        assert_eq!("00-16-3e-1-2-f".parse::<MacAddr>().unwrap(), mac);
        for bad in [
            "",
            "00:16:3e:01:02",
            "00:16:3e:01:02:03:04",
            "00:16:3e:01:02:+3",
            "00:16:3e:01:02:g0",
            "001:6:3e:01:02:03",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reserved_addresses_are_the_sixteen() {
        assert!("01:80:c2:00:00:00".parse::<MacAddr>().unwrap().is_reserved());
        assert!("01:80:c2:00:00:0f".parse::<MacAddr>().unwrap().is_reserved());
        assert!(!"01:80:c2:00:00:10".parse::<MacAddr>().unwrap().is_reserved());
        assert!(!MacAddr::BROADCAST.is_reserved());
    }
}
