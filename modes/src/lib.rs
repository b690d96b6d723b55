//! Forwarding modes of a network.
