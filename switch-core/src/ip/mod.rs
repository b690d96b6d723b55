//! IP packets on heads and whole frames.
