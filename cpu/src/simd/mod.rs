//! Vector instructions as pure functions of lanes, one file a family. How their operands come from registers and memory, and
//! what may fault, is not known here; see `crate::hot::simd`.

pub mod aes;
pub mod carryless;
pub mod compare;
pub mod float;
pub mod integer;
pub mod lanes;
pub mod logic;
pub mod pack;
pub mod reciprocal;
pub mod sha;
pub mod shift;
pub mod shuffle;
#[cfg(test)]
mod tests;
pub mod text;

pub use lanes::{In, Lanes};
