//! Conformance: what the machine does, against what it should do.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod bench;
pub mod cpio;
pub mod fuzz;
pub mod images;
pub mod oracle;
pub mod programs;
pub mod random;
pub mod serial;
pub mod virtualization;
