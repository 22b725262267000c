//! Conformance: what the machine does, against what it should do.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod bench;
pub mod oracle;
