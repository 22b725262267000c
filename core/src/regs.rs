//! Slots of the register file. The file is `[u64; 256]` indexed by `u8`, so that an index taken from a decoded
//! op needs no bounds check. Slots above the sixteen general registers hold what address arithmetic needs.

pub const RAX: u8 = 0;
pub const RCX: u8 = 1;
pub const RDX: u8 = 2;
pub const RBX: u8 = 3;
pub const RSP: u8 = 4;
pub const RBP: u8 = 5;
pub const RSI: u8 = 6;
pub const RDI: u8 = 7;
pub const R8: u8 = 8;
pub const R9: u8 = 9;
pub const R10: u8 = 10;
pub const R11: u8 = 11;
pub const R12: u8 = 12;
pub const R13: u8 = 13;
pub const R14: u8 = 14;
pub const R15: u8 = 15;

/// Offset in CS. While a block runs: the offset of the block's first instruction; exact between blocks and
/// whenever a fault, trap or exit is being handled.
pub const RIP: u8 = 16;
/// Always zero: the "no base", "no index", "no segment base" slot. Nothing may write it.
pub const ZERO: u8 = 17;
/// Scratch for handlers that need a register-shaped temporary.
pub const SCRATCH: u8 = 18;

/// Mirrors of the segment bases, in `SegReg` order from here (ES, CS, SS, DS, FS, GS). The truth is
/// `CpuState::seg[..].base`; `CpuState::set_segment` keeps both, `CpuState::mirror_bases` copies all six after a
/// wholesale change such as a VM entry.
pub const SEG_BASE: u8 = 24;
