//! Guests with a TCP stack of their own, and servers on the host's loopback: whole streams, ends of all kinds, and bounds.

#![allow(unreachable_pub, missing_docs, reason = "a test")]

mod forwards;
mod hostile;
mod rig;
mod tcp;
