//! Segmentation of super-frames in software.
