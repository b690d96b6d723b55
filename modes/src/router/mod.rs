//! To be filled by its builder.
