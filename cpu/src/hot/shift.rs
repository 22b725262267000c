//! Shifts and rotates, double shifts, and BMI2's flagless ones.

use std::marker::PhantomData;

use undervisor_core::flags::parity;
use undervisor_core::{FlagKind, Rflags};

use super::Hot;
use super::operand::{Int, Place, Source};
use crate::access::Way;
use crate::cpu::Cpu;
use crate::op::OpRef;

const CF: u64 = Rflags::CF.bits();
const OF: u64 = Rflags::OF.bits();

/// Which shift.
pub mod kind {
    pub const ROL: u8 = 0;
    pub const ROR: u8 = 1;
    pub const SHL: u8 = 4;
    pub const SHR: u8 = 5;
    pub const SAR: u8 = 7;
}

/// Shift `D` by the count in `C` (an immediate, or CL). `F`: keep flags.
pub struct Shift<T, D, C, const K: u8, const F: bool>(PhantomData<(T, D, C)>);

impl<T: Int, D: Place, C: Source, const K: u8, const F: bool> Hot for Shift<T, D, C, K, F> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let n = (C::get::<u8, W>(cpu, op)? & if T::BITS == 64 { 63 } else { 31 }) as u32;
        let a = D::get_to_modify::<T, W>(cpu, op)?;
        let r = apply::<T, K>(a, n);
        D::put::<T, W>(cpu, op, r)?;
        if F && n != 0 {
            shift_flags::<T, K>(cpu, a, r, n);
        }
        Ok(())
    }
}

#[inline(always)]
pub fn apply<T: Int, const K: u8>(a: u64, n: u32) -> u64 {
    let wide = |x: u64| if n > 63 { 0 } else { x };
    match K {
        kind::SHL => wide(a.wrapping_shl(n)) & T::MASK,
        kind::SHR => wide(a.wrapping_shr(n)),
        kind::SAR => ((T::sign_extend(a) as i64) >> n.min(63)) as u64 & T::MASK,
        kind::ROL => T::rotate_left(a, n),
        _ => T::rotate_right(a, n),
    }
}

/// Flags of a shift by `n` ≥ 1. OF, defined for a count of 1 only, gets for other counts what current processors give it: the
/// same formula on the result.
#[inline(always)]
fn shift_flags<T: Int, const K: u8>(cpu: &mut Cpu, a: u64, r: u64, n: u32) {
    let bits = T::BITS;
    let top = |x: u64| x >> (bits - 1) & 1;
    let (cf, of) = match K {
        kind::SHL => {
            let cf = if n <= bits { a >> (bits - n) & 1 } else { 0 };
            (cf, cf ^ top(r))
        }
        kind::SHR => {
            (if n <= bits { a >> (n - 1) & 1 } else { 0 }, if n == 1 { top(a) } else { top(r) ^ (r >> (bits - 2) & 1) })
        }
        kind::SAR => ((T::sign_extend(a) as i64 >> (n - 1).min(63)) as u64 & 1, 0),
        kind::ROL => (r & 1, (r & 1) ^ top(r)),
        _ => (top(r), top(r) ^ (r >> (bits - 2) & 1)),
    };
    if matches!(K, kind::ROL | kind::ROR) {
        cpu.state.set_status(CF | OF, cf | of << 11);
    } else {
        let lazy = &mut cpu.state.lazy;
        lazy.res = r;
        lazy.kind = FlagKind::SHIFT | T::LOG2;
        lazy.carry = cf as u8;
        lazy.overflow = of as u8;
    }
}

/// SHLX, SHRX, SARX: register or memory source, count in register `d`.
pub struct ShiftX<T, S, const K: u8>(PhantomData<(T, S)>);

impl<T: Int, S: Source, const K: u8> Hot for ShiftX<T, S, K> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = S::get::<T, W>(cpu, op)?;
        let n = cpu.state.regs[op.d as usize] as u32 & (T::BITS - 1);
        T::put(&mut cpu.state.regs[op.a as usize], apply::<T, K>(v, n));
        Ok(())
    }
}

/// RORX: register or memory source, count in `extra`.
pub struct RorX<T, S>(PhantomData<(T, S)>);

impl<T: Int, S: Source> Hot for RorX<T, S> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = S::get::<T, W>(cpu, op)?;
        let r = apply::<T, { kind::ROR }>(v, op.extra as u32 & (T::BITS - 1));
        T::put(&mut cpu.state.regs[op.a as usize], r);
        Ok(())
    }
}

/// SHLD (`RIGHT` false) or SHRD of register `a` by register `b`, count in `C`, for 32 and 64 bits. `extra`: AF, which is undefined and
/// differs between the vendors.
pub struct DoubleShift<T, C, const RIGHT: bool>(PhantomData<(T, C)>);

impl<T: Int, C: Source, const RIGHT: bool> Hot for DoubleShift<T, C, RIGHT> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let n = (C::get::<u8, W>(cpu, op)?) as u32 & (T::BITS - 1);
        if n == 0 {
            // A 32-bit write still clears the high half.
            let a = cpu.state.regs[op.a as usize];
            T::put(&mut cpu.state.regs[op.a as usize], a);
            return Ok(());
        }
        let a = cpu.state.regs[op.a as usize] & T::MASK;
        let b = cpu.state.regs[op.b as usize] & T::MASK;
        let bits = T::BITS;
        let top = |x: u64| x >> (bits - 1) & 1;
        // OF is undefined beyond a shift by one; both vendors go on as for one.
        let (r, cf, of) = if RIGHT {
            let r = (a >> n | b << (bits - n)) & T::MASK;
            (r, a >> (n - 1) & 1, top(r) ^ top(r << 1))
        } else {
            let r = (a << n | b >> (bits - n)) & T::MASK;
            let cf = a >> (bits - n) & 1;
            (r, cf, cf ^ top(r))
        };
        T::put(&mut cpu.state.regs[op.a as usize], r);
        let zf = u64::from(r == 0) << 6;
        cpu.state.set_all_status(cf | of << 11 | top(r) << 7 | zf | op.extra as u64 | parity(r as u8));
        Ok(())
    }
}

/// The count in CL.
pub struct Cl;

impl Source for Cl {
    #[inline(always)]
    fn get<T: Int, W: Way>(cpu: &mut Cpu, _: OpRef) -> Result<u64, W::Miss> {
        Ok(cpu.state.regs[undervisor_core::regs::RCX as usize] & T::MASK)
    }
}
