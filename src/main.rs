//! Placeholder main, replaced by the crate's first feature.
fn main() {}
