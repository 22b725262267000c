//! Status flags kept as the operands of the last flag-writing operation and worked out when someone looks.

use crate::bits::Rflags;

/// Which operation left the flags. The low two bits are log2 of the operand size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlagKind(pub u8);

impl FlagKind {
    /// All six status flags stand in `CpuState::rflags`.
    pub const EXPLICIT: u8 = 0;
    /// `res = a + b`; b is recovered as `res - a`.
    pub const ADD: u8 = 4;
    /// `res = a - b`; b is recovered as `a - res`. CMP and NEG too.
    pub const SUB: u8 = 8;
    /// AND, OR, XOR, TEST: CF = OF = AF = 0.
    pub const LOGIC: u8 = 12;
    /// INC: as ADD 1, with CF in `carry`.
    pub const INC: u8 = 16;
    /// DEC: as SUB 1, with CF in `carry`.
    pub const DEC: u8 = 20;
    /// `res = a + b + carry`.
    pub const ADC: u8 = 24;
    /// `res = a - b - carry`.
    pub const SBB: u8 = 28;
    /// A shift: CF is `carry`, OF is `overflow`, AF is clear.
    pub const SHIFT: u8 = 32;
}

/// Lazily kept status flags. Invariants: `res` is the result, zero-extended from the operand size, for every kind but
/// EXPLICIT; `a` is the first operand, zero-extended.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LazyFlags {
    pub res: u64,
    pub a: u64,
    /// Operation | log2(size); see [`FlagKind`].
    pub kind: u8,
    /// Carry in (ADC, SBB), kept (INC, DEC) or out (SHIFT); 0 or 1.
    pub carry: u8,
    /// CF after ADC or SBB, for whoever wants that alone.
    pub carry_out: u8,
    /// OF after a SHIFT.
    pub overflow: u8,
}

impl LazyFlags {
    /// The six status flags, or `None` if they stand in RFLAGS.
    #[inline]
    pub fn compute(&self) -> Option<u64> {
        let op = self.kind & !3;
        if op == FlagKind::EXPLICIT {
            return None;
        }
        let bits = 8u32 << (self.kind & 3);
        let shift = 64 - bits;
        let (a, r) = (self.a << shift, self.res << shift);
        let c = self.carry as u64;
        let mut f = parity(self.res as u8);
        if r == 0 {
            f |= Rflags::ZF.bits();
        }
        if (r as i64) < 0 {
            f |= Rflags::SF.bits();
        }
        if op == FlagKind::SHIFT {
            return Some(f | c | (self.overflow as u64) << 11);
        }
        // Carry-out vectors: bit i is the carry (borrow) out of bit i.
        let (carries, keep_cf) = match op {
            FlagKind::ADD | FlagKind::INC => (add_carries(a, r.wrapping_sub(a), r), op == FlagKind::INC),
            FlagKind::SUB | FlagKind::DEC => (sub_borrows(a, a.wrapping_sub(r), r), op == FlagKind::DEC),
            FlagKind::ADC => (add_carries(a, r.wrapping_sub(a).wrapping_sub(c << shift), r), false),
            FlagKind::SBB => (sub_borrows(a, a.wrapping_sub(r).wrapping_sub(c << shift), r), false),
            _ => (0, false),
        };
        let out = carries >> 63;
        f |= if keep_cf { c } else { out };
        f |= (out ^ (carries >> 62 & 1)) << 11;
        f |= (carries >> (shift + 3) & 1) << 4;
        Some(f)
    }
}

#[inline(always)]
fn add_carries(a: u64, b: u64, r: u64) -> u64 {
    (a & b) | ((a | b) & !r)
}

#[inline(always)]
fn sub_borrows(a: u64, b: u64, r: u64) -> u64 {
    (!a & b) | ((!a | b) & r)
}

/// PF for a result byte, in RFLAGS position.
#[inline(always)]
pub fn parity(byte: u8) -> u64 {
    // Bit n of the constant: whether n has an even number of ones.
    (0x9669u32 >> ((byte ^ byte >> 4) & 15) & 1) as u64 * Rflags::PF.bits()
}
