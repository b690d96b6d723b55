//! Ones' complement checksums, and their completion in software.
