//! The longest-prefix match.
