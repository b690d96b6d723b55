//! A static search tree of ranges, in nodes of one size, without pointers.
//!
//! Node `n` has `N` keys in order and the children `n * (N + 1) + 1 ..= n * (N + 1) + N + 1`; all keys of the child
//! before a key are below it, all of the child behind it above. Places that are left over are at the end of the order
//! and hold the largest key there is, with the last range's answer. The answers are in an array of their own, so that
//! the keys of a lookup are close together.

/// The keys of a node, on a line of the processor's cache of their own.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Node<K, const N: usize>([K; N]);

/// A tree of the ranges of an address space.
#[derive(Clone, Debug)]
pub(super) struct Tree<K, T, const N: usize> {
    nodes: Vec<Node<K, N>>,
    /// The answer of each key, in the same order.
    values: Vec<[Option<T>; N]>,
}

impl<K: Copy + Ord, T: Copy, const N: usize> Tree<K, T, N> {
    /// Builds a tree of ranges that are in order. Addresses below the first have no answer.
    pub(super) fn build(ranges: &[(K, Option<T>)], largest: K) -> Self {
        let count = ranges.len().div_ceil(N);
        let padding = (largest, ranges.last().and_then(|(_, value)| *value));
        let mut tree = Self { nodes: vec![Node([largest; N]); count], values: vec![[padding.1; N]; count] };
        let mut in_order = ranges.iter().copied().chain(std::iter::repeat(padding));
        tree.fill(0, &mut in_order);
        tree
    }

    /// Fills a node and what is below it, in order. As deep as the tree: a logarithm.
    fn fill(&mut self, node: usize, in_order: &mut impl Iterator<Item = (K, Option<T>)>) {
        if node >= self.nodes.len() {
            return;
        }
        for i in 0..N {
            self.fill(node * (N + 1) + 1 + i, in_order);
            let Some((key, value)) = in_order.next() else { return };
            if let (Some(keys), Some(values)) = (self.nodes.get_mut(node), self.values.get_mut(node)) {
                (keys.0[i], values[i]) = (key, value);
            }
        }
        self.fill(node * (N + 1) + 1 + N, in_order);
    }

    /// The answer of the range that an address is in.
    #[inline]
    pub(super) fn get(&self, address: K) -> Option<T> {
        let (mut node, mut found) = (0, None);
        while let Some(keys) = self.nodes.get(node) {
            let below: usize = keys.0.iter().map(|key| usize::from(*key <= address)).sum();
            if below > 0 {
                found = Some((node, below - 1));
            }
            node = node * (N + 1) + 1 + below;
        }
        let (node, i) = found?;
        *self.values.get(node)?.get(i)?
    }

    /// Bytes that the tree holds.
    pub(super) fn memory(&self) -> usize {
        self.nodes.capacity() * size_of::<Node<K, N>>() + self.values.capacity() * size_of::<[Option<T>; N]>()
    }
}
