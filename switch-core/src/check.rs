//! Turns a received head into a trusted one, or says why not.
