//! The longest-prefix match: which of many prefixes is the most specific that an address is in.
//!
//! [`Lpm`] is built once from all prefixes and never changes: whoever owns the routes builds a new one and hands it
//! to the workers whole. A lookup touches a few cache lines, however many prefixes there are and however long they
//! are.
//!
//! # How
//! Prefixes nest or are apart, so they cut the address space into at most `2n + 1` ranges within which the answer is
//! the same. Finding an address's range is then a search among sorted numbers, and because the table never changes it
//! can be divided evenly once (see `spans`): a lookup computes a bucket, reads which ranges begin there, and counts. In
//! most tables that is one or two steps; how long the prefixes are does not matter, so a host route of IPv6 costs
//! what a /64 costs.
//!
//! Memory: keys, answers and buckets for at most `2n + 1` ranges, with answers of four bytes about 24 bytes for a
//! prefix of IPv4 and 48 of IPv6; a handful of routes is a handful of lines. Building sorts the prefixes once and
//! sweeps over them.
//!
//! # Why not another's
//! - `prefix-trie`, `ip_network_table`/treebitmap, `iptrie`: maps that change in place, with a node or a few bits of
//!   the prefix for each step. They serve a control plane well; a lookup of a long prefix among many is a chain of
//!   ten to thirty dependent loads.
//! - `poptrie` comes nearest, but it takes six bits a step, so a host route of IPv6 is up to twenty steps deep, and
//!   host routes are what guests have. It is young (0.2).
//! - DIR-24-8 (as in DPDK) is one load faster, for 64 MB for each table.
//!
//! Whole tables of this size are rebuilt in some tens of milliseconds, off the workers.

mod spans;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use spans::{Key, Spans};

/// Lookups of a burst that wait together.
const TOGETHER: usize = crate::verdict::BURST;

/// A table of prefixes of both families, each with a value. See the module's text.
#[derive(Clone, Debug)]
pub struct Lpm<T> {
    v4: Spans<u32, T>,
    v6: Spans<u128, T>,
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
        let ((v4, of_v4), (v6, of_v6)) = (ranges(v4), ranges(v6));
        Self { v4: Spans::build(&v4), v6: Spans::build(&v6), prefixes: of_v4 + of_v6 }
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

    /// The values of the longest prefixes that addresses are in: those of a burst. In a large table, each step of a
    /// lookup waits for memory; here the lookups of a burst wait together, step by step.
    pub fn get_all(&self, addresses: &[IpAddr], out: &mut Vec<Option<T>>) {
        let mut places = [0_usize; TOGETHER];
        for addresses in addresses.chunks(TOGETHER) {
            for (address, place) in addresses.iter().zip(&mut places) {
                *place = match address {
                    IpAddr::V4(address) => self.v4.bucket(address.to_bits()),
                    IpAddr::V6(address) => self.v6.bucket(address.to_bits()),
                };
            }
            for (address, place) in addresses.iter().zip(&mut places) {
                *place = match address {
                    IpAddr::V4(address) => self.v4.behind(address.to_bits(), *place),
                    IpAddr::V6(address) => self.v6.behind(address.to_bits(), *place),
                };
            }
            out.extend(addresses.iter().zip(&places).map(|(address, place)| match address {
                IpAddr::V4(_) => self.v4.value(*place),
                IpAddr::V6(_) => self.v6.value(*place),
            }));
        }
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

/// Cuts the address space.
fn ranges<K: Key, T: Copy + PartialEq>(mut prefixes: Vec<(K, u8, T)>) -> Ranges<K, T> {
    // Stable, so that equal prefixes keep their order; quick on what is sorted already.
    prefixes.sort_by_key(|&(first, len, _)| (first, len));
    let mut sweep = Sweep { out: vec![(K::ZERO, None)], open: Vec::with_capacity(usize::from(K::BITS) + 1) };
    let (mut different, mut before) = (0, None);
    for (first, len, value) in prefixes {
        let len = len.min(K::BITS);
        sweep.close(Some(first));
        if before == Some((first, len)) {
            sweep.open.pop();
        } else {
            different += 1;
        }
        before = Some((first, len));
        sweep.begin(first, Some(value));
        sweep.open.push((first.last_of(len), value));
    }
    sweep.close(None);
    (sweep.out, different)
}
