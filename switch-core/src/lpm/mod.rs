//! The longest-prefix match: which of many prefixes is the most specific that an address is in.
//!
//! [`Lpm`] is built once from all prefixes and never changes: whoever owns the routes builds a new one and hands it
//! to the workers whole. A lookup touches a handful of cache lines, however many prefixes there are and however
//! long they are, and nothing that an attacker sends makes it longer.
//!
//! # How
//! Prefixes nest or are apart, so they cut the address space into at most `2n + 1` ranges within which the answer is
//! the same. The first addresses of these ranges are the keys of a search tree without pointers: each node is one or
//! two cache lines of keys (16 of IPv4, 8 of IPv6), and a node's children are found by arithmetic. A lookup counts in
//! each node the keys that are not above the address, which compilers make vector instructions of and no branch
//! depends on; 100,000 prefixes are five nodes deep.
//!
//! Memory: at most `2n + 1` keys and answers, so about 16 bytes for a prefix of IPv4 and 40 of IPv6, and one node for a
//! handful of routes. Building sorts the prefixes once and sweeps over them.
//!
//! # Why not another's
//! - `prefix-trie`, `ip_network_table`/treebitmap, `iptrie`: maps that change in place, with a node or a few bits of
//!   the prefix for each step. They serve a control plane well; a lookup of a long prefix among many is a chain of
//!   ten to thirty dependent loads.
//! - `poptrie` comes nearest, and its lookups of IPv4 are as good; but it takes six bits a step, so a host route of
//!   IPv6 is up to twenty steps deep, and host routes are what guests have. It is young (0.2).
//! - DIR-24-8 (as in DPDK) is one load faster, for 64 MB for each table.
//!
//! Whole tables of this size are rebuilt in some tens of milliseconds, off the workers.

#[cfg(test)]
mod tests;
mod tree;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use tree::Tree;

/// Keys of a node of IPv4: one line of the processor's cache.
const V4_KEYS: usize = 16;
/// Keys of a node of IPv6: two lines.
const V6_KEYS: usize = 8;

/// A table of prefixes of both families, each with a value. See the module's text.
#[derive(Clone, Debug)]
pub struct Lpm<T> {
    v4: Tree<u32, T, V4_KEYS>,
    v6: Tree<u128, T, V6_KEYS>,
    prefixes: usize,
}

impl<T: Copy + PartialEq> Default for Lpm<T> {
    fn default() -> Self {
        Self::build([])
    }
}

impl<T: Copy + PartialEq> Lpm<T> {
    /// Builds the table. Bits of a network beyond its prefix are ignored. Of two equal prefixes, the later counts.
    pub fn build(prefixes: impl IntoIterator<Item = (IpNetwork, T)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (network, value) in prefixes {
            match network {
                IpNetwork::V4(n) => v4.push((n.network().to_bits(), n.prefix(), value)),
                IpNetwork::V6(n) => v6.push((n.network().to_bits(), n.prefix(), value)),
            }
        }
        let (v4, of_v4) =
            ranges(v4, u32::BITS as u8, |first, len| first | u32::MAX.checked_shr(len.into()).unwrap_or(0));
        let (v6, of_v6) =
            ranges(v6, u128::BITS as u8, |first, len| first | u128::MAX.checked_shr(len.into()).unwrap_or(0));
        Self { v4: Tree::build(&v4, u32::MAX), v6: Tree::build(&v6, u128::MAX), prefixes: of_v4 + of_v6 }
    }

    /// The value of the longest prefix that an address is in.
    #[inline]
    pub fn get(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.get_v4(address),
            IpAddr::V6(address) => self.get_v6(address),
        }
    }

    /// The value of the longest prefix that an IPv4 address is in.
    #[inline]
    pub fn get_v4(&self, address: Ipv4Addr) -> Option<T> {
        self.v4.get(address.to_bits())
    }

    /// The value of the longest prefix that an IPv6 address is in.
    #[inline]
    pub fn get_v6(&self, address: Ipv6Addr) -> Option<T> {
        self.v6.get(address.to_bits())
    }

    /// Different prefixes.
    pub fn len(&self) -> usize {
        self.prefixes
    }

    /// Whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.prefixes == 0
    }

    /// Bytes that the table holds.
    pub fn memory(&self) -> usize {
        self.v4.memory() + self.v6.memory()
    }
}

/// A number that an address is.
trait Key: Copy + Ord {
    const ZERO: Self;
    fn next(self) -> Option<Self>;
}

impl Key for u32 {
    const ZERO: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Key for u128 {
    const ZERO: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// Ranges by their first addresses, ascending, beginning with zero; and how many prefixes are different.
type Ranges<K, T> = (Vec<(K, Option<T>)>, usize);

/// A sweep over the address space.
struct Sweep<K, T> {
    out: Vec<(K, Option<T>)>,
    /// The last addresses and the values of the prefixes that the sweep is in: at most one of each length.
    open: Vec<(K, T)>,
}

impl<K: Key, T: Copy + PartialEq> Sweep<K, T> {
    /// The answer from `at` on, in place of what was said for `at` before. Ranges with the same answer are one.
    fn begin(&mut self, at: K, value: Option<T>) {
        self.out.pop_if(|(first, _)| *first == at);
        if self.out.last().is_none_or(|(_, before)| *before != value) {
            self.out.push((at, value));
        }
    }

    /// Leaves the prefixes that end before `until`.
    fn close(&mut self, until: Option<K>) {
        while let Some((end, _)) = self.open.pop_if(|(end, _)| until.is_none_or(|until| *end < until)) {
            if let Some(at) = end.next() {
                self.begin(at, self.open.last().map(|(_, value)| *value));
            }
        }
    }
}

/// Cuts the address space. `last` is the last address of a prefix by its first and its length, at most `bits`.
fn ranges<K: Key, T: Copy + PartialEq>(
    mut prefixes: Vec<(K, u8, T)>,
    bits: u8,
    last: impl Fn(K, u8) -> K,
) -> Ranges<K, T> {
    // Stable, so that equal prefixes keep their order; quick on what is sorted already.
    prefixes.sort_by_key(|&(first, len, _)| (first, len));
    let mut sweep = Sweep { out: vec![(K::ZERO, None)], open: Vec::with_capacity(usize::from(bits) + 1) };
    let (mut different, mut before) = (0, None);
    for (first, len, value) in prefixes {
        let len = len.min(bits);
        sweep.close(Some(first));
        if before == Some((first, len)) {
            sweep.open.pop();
        } else {
            different += 1;
        }
        before = Some((first, len));
        sweep.begin(first, Some(value));
        sweep.open.push((last(first, len), value));
    }
    sweep.close(None);
    (sweep.out, different)
}
