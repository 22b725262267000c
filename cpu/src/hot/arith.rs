//! Multiplication, division, bit tests, counts and the BMI group; sign extension of the accumulator; CMPXCHG and XADD.

use std::marker::PhantomData;

use undervisor_core::flags::parity;
use undervisor_core::regs::{RAX, RDX};
use undervisor_core::{FlagKind, Rflags};

use super::Hot;
use super::operand::{Int, Place, Source, address, keep_flags};
use crate::access::Way;
use crate::cpu::Cpu;
use crate::op::OpRef;

const CF: u64 = Rflags::CF.bits();
const OF: u64 = Rflags::OF.bits();
const ZF: u64 = Rflags::ZF.bits();
const STATUS: u64 = Rflags::STATUS.bits();

#[inline(always)]
fn widening<T: Int>(a: u64, b: u64, signed: bool) -> (u64, u64) {
    if signed {
        let p = (T::sign_extend(a) as i64 as i128) * (T::sign_extend(b) as i64 as i128);
        (p as u64 & T::MASK, (p >> T::BITS) as u64 & T::MASK)
    } else {
        let p = (a as u128) * (b as u128);
        (p as u64 & T::MASK, (p >> T::BITS) as u64 & T::MASK)
    }
}

/// CF = OF = whether the product overflowed; SF, ZF, PF as the low half gives them, AF clear.
#[inline(always)]
fn multiply_flags<T: Int>(cpu: &mut Cpu, low: u64, overflow: bool) {
    let sf = (low >> (T::BITS - 1) & 1) << 7;
    let both = if overflow { CF | OF } else { 0 };
    cpu.state.set_all_status(both | sf | parity(low as u8));
}

/// Two- and three-operand IMUL: `a` = `X` × `Y`. `F`: keep flags.
pub struct Imul<T, X, Y, const F: bool>(PhantomData<(T, X, Y)>);

impl<T: Int, X: Source, Y: Source, const F: bool> Hot for Imul<T, X, Y, F> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let x = X::get::<T, W>(cpu, op)?;
        let y = Y::get::<T, W>(cpu, op)?;
        if F {
            let (low, high) = widening::<T>(x, y, true);
            T::put(&mut cpu.state.regs[op.a as usize], low);
            let sign = if low >> (T::BITS - 1) & 1 != 0 { T::MASK } else { 0 };
            multiply_flags::<T>(cpu, low, high != sign);
        } else {
            T::put(&mut cpu.state.regs[op.a as usize], x.wrapping_mul(y) & T::MASK);
        }
        Ok(())
    }
}

/// One-operand MUL and IMUL of 32 and 64 bits.
pub struct Mul<T, S, const SIGNED: bool>(PhantomData<(T, S)>);

impl<T: Int, S: Source, const SIGNED: bool> Hot for Mul<T, S, SIGNED> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let b = S::get::<T, W>(cpu, op)?;
        let a = cpu.state.regs[RAX as usize] & T::MASK;
        let (low, high) = widening::<T>(a, b, SIGNED);
        T::put(&mut cpu.state.regs[RAX as usize], low);
        T::put(&mut cpu.state.regs[RDX as usize], high);
        let sign = if SIGNED && low >> (T::BITS - 1) & 1 != 0 { T::MASK } else { 0 };
        multiply_flags::<T>(cpu, low, high != sign);
        Ok(())
    }
}

/// MULX: `a` high, `d` low, of RDX and the source.
pub struct Mulx<T, S>(PhantomData<(T, S)>);

impl<T: Int, S: Source> Hot for Mulx<T, S> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let b = S::get::<T, W>(cpu, op)?;
        let (low, high) = widening::<T>(cpu.state.regs[RDX as usize] & T::MASK, b, false);
        T::put(&mut cpu.state.regs[op.d as usize], low);
        T::put(&mut cpu.state.regs[op.a as usize], high);
        Ok(())
    }
}

/// DIV and IDIV of 32 and 64 bits; the general form raises #DE. Flags, which are undefined, stay.
pub struct Div<T, S, const SIGNED: bool>(PhantomData<(T, S)>);

impl<T: Int, S: Source, const SIGNED: bool> Hot for Div<T, S, SIGNED> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let d = S::get::<T, W>(cpu, op)?;
        let low = cpu.state.regs[RAX as usize] & T::MASK;
        let high = cpu.state.regs[RDX as usize] & T::MASK;
        let result = if SIGNED { signed::<T>(low, high, d) } else { unsigned::<T>(low, high, d) };
        let Some((q, r)) = result else { return Err(W::general(cpu)) };
        T::put(&mut cpu.state.regs[RAX as usize], q);
        T::put(&mut cpu.state.regs[RDX as usize], r);
        Ok(())
    }
}

#[inline(always)]
fn unsigned<T: Int>(low: u64, high: u64, d: u64) -> Option<(u64, u64)> {
    if high >= d {
        return None;
    }
    if T::BITS < 64 {
        let n = high << (T::BITS & 63) | low;
        return Some((n / d, n % d));
    }
    if high == 0 {
        return Some((low / d, low % d));
    }
    let n = (high as u128) << 64 | low as u128;
    Some(((n / d as u128) as u64, (n % d as u128) as u64))
}

#[inline(always)]
fn signed<T: Int>(low: u64, high: u64, d: u64) -> Option<(u64, u64)> {
    let d = T::sign_extend(d) as i64;
    if T::BITS < 64 {
        let n = (high << (T::BITS & 63) | low) as i64;
        let (q, r) = (n.checked_div(d)?, n.checked_rem(d)?);
        return (q as i32 as i64 == q).then_some((q as u64 & T::MASK, r as u64 & T::MASK));
    }
    if high == (low as i64 >> 63) as u64 {
        let n = low as i64;
        return Some((n.checked_div(d)? as u64, n.checked_rem(d)? as u64));
    }
    let n = ((high as u128) << 64 | low as u128) as i128;
    let d = d as i128;
    let (q, r) = (n.checked_div(d)?, n.checked_rem(d)?);
    (q as i64 as i128 == q).then_some((q as u64, r as u64))
}

/// BSWAP of 32 and 64 bits.
pub struct Bswap<T>(PhantomData<T>);

impl<T: Int> Hot for Bswap<T> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = cpu.state.regs[op.a as usize] & T::MASK;
        T::put(&mut cpu.state.regs[op.a as usize], v.swap_bytes() >> (64 - T::BITS));
        Ok(())
    }
}

/// What BT and its kin do to the bit.
pub mod bit {
    pub const TEST: u8 = 0;
    pub const SET: u8 = 1;
    pub const RESET: u8 = 2;
    pub const COMPLEMENT: u8 = 3;
}

/// BT, BTS, BTR, BTC on `P`, bit number in `S` (a register or an immediate).
pub struct Bit<T, P, S, const K: u8>(PhantomData<(T, P, S)>);

impl<T: Int, P: Place, S: Source, const K: u8> Hot for Bit<T, P, S, K> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let n = S::get::<T, W>(cpu, op)? & (T::BITS as u64 - 1);
        let a = if K == bit::TEST { P::get::<T, W>(cpu, op)? } else { P::get_to_modify::<T, W>(cpu, op)? };
        if K != bit::TEST {
            P::put::<T, W>(cpu, op, changed::<K>(a, 1 << n))?;
        }
        cpu.state.set_carry(a >> n & 1);
        Ok(())
    }
}

#[inline(always)]
fn changed<const K: u8>(a: u64, bit: u64) -> u64 {
    match K {
        bit::SET => a | bit,
        bit::RESET => a & !bit,
        _ => a ^ bit,
    }
}

/// The same on a string of bits in memory: the bit number in register `d`, signed, reaches past the operand (SDM vol. 2, BT; Bit
/// Strings).
pub struct BitString<T, const A: u8, const K: u8>(PhantomData<T>);

impl<T: Int, const A: u8, const K: u8> Hot for BitString<T, A, K> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let n = T::sign_extend(cpu.state.regs[op.d as usize]) as i64;
        let words = n >> T::BITS.trailing_zeros();
        let linear = address::<A>(cpu, op).wrapping_add((words as u64).wrapping_mul(T::SIZE as u64));
        let n = n as u64 & (T::BITS as u64 - 1);
        let a = if K == bit::TEST { W::read::<T>(cpu, linear)? } else { W::read_to_modify::<T>(cpu, linear)? }.to_u64();
        if K != bit::TEST {
            W::write::<T>(cpu, linear, T::from_u64(changed::<K>(a, 1 << n)))?;
        }
        cpu.state.set_carry(a >> n & 1);
        Ok(())
    }
}

/// Which count.
pub mod count {
    pub const BSF: u8 = 0;
    pub const BSR: u8 = 1;
    pub const TZCNT: u8 = 2;
    pub const LZCNT: u8 = 3;
    pub const POPCNT: u8 = 4;
}

/// BSF, BSR, TZCNT, LZCNT, POPCNT to register `a`.
pub struct Count<T, S, const K: u8>(PhantomData<(T, S)>);

impl<T: Int, S: Source, const K: u8> Hot for Count<T, S, K> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = S::get::<T, W>(cpu, op)?;
        let bits = T::BITS as u64;
        let tz = if v == 0 { bits } else { v.trailing_zeros() as u64 };
        let lz = v.leading_zeros() as u64 - (64 - bits);
        let (r, mask, flags) = match K {
            // With a zero source the destination stays as it is, as on every processor that matters.
            count::BSF | count::BSR if v == 0 => (None, STATUS, ZF | Rflags::PF.bits()),
            count::BSF => (Some(tz), STATUS, parity(tz as u8)),
            count::BSR => (Some(bits - 1 - lz), STATUS, parity((bits - 1 - lz) as u8)),
            count::TZCNT => (Some(tz), CF | ZF, u64::from(v == 0) | u64::from(tz == 0) << 6),
            count::LZCNT => (Some(lz), CF | ZF, u64::from(v == 0) | u64::from(lz == 0) << 6),
            _ => (Some(v.count_ones() as u64), STATUS, u64::from(v == 0) << 6),
        };
        if let Some(r) = r {
            T::put(&mut cpu.state.regs[op.a as usize], r);
        }
        if mask == STATUS {
            cpu.state.set_all_status(flags);
        } else {
            cpu.state.set_status(mask, flags);
        }
        Ok(())
    }
}

/// Which BMI1/BMI2 operation.
pub mod bmi {
    pub const ANDN: u8 = 0;
    pub const BLSR: u8 = 1;
    pub const BLSI: u8 = 2;
    pub const BLSMSK: u8 = 3;
    pub const BZHI: u8 = 4;
}

/// ANDN (`d` is the first source), BLSR, BLSI, BLSMSK, BZHI (`d` is the index) to register `a`.
pub struct Bmi<T, S, const K: u8>(PhantomData<(T, S)>);

impl<T: Int, S: Source, const K: u8> Hot for Bmi<T, S, K> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = S::get::<T, W>(cpu, op)?;
        let d = cpu.state.regs[op.d as usize] & T::MASK;
        let (r, cf) = match K {
            bmi::ANDN => (!d & v, 0),
            bmi::BLSR => (v & v.wrapping_sub(1), u64::from(v == 0)),
            bmi::BLSI => (v & v.wrapping_neg(), u64::from(v != 0)),
            bmi::BLSMSK => ((v ^ v.wrapping_sub(1)) & T::MASK, u64::from(v == 0)),
            _ => {
                let n = (d & 0xff) as u32;
                if n < T::BITS { (v & !(u64::MAX << n), 0) } else { (v, 1) }
            }
        };
        T::put(&mut cpu.state.regs[op.a as usize], r);
        let sf = (r >> (T::BITS - 1) & 1) << 7;
        cpu.state.set_status(CF | OF | ZF | Rflags::SF.bits(), cf | sf | u64::from(r == 0) << 6);
        Ok(())
    }
}

/// CBW/CWDE/CDQE: accumulator from `F` to `T`.
pub struct ExtendAccumulator<F, T>(PhantomData<(F, T)>);

impl<F: Int, T: Int> Hot for ExtendAccumulator<F, T> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, _: OpRef) -> Result<(), W::Miss> {
        let v = F::sign_extend(cpu.state.regs[RAX as usize]);
        T::put(&mut cpu.state.regs[RAX as usize], v & T::MASK);
        Ok(())
    }
}

/// CWD/CDQ/CQO.
pub struct SignToRdx<T>(PhantomData<T>);

impl<T: Int> Hot for SignToRdx<T> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, _: OpRef) -> Result<(), W::Miss> {
        let v = T::sign_extend(cpu.state.regs[RAX as usize]) as i64 >> 63;
        T::put(&mut cpu.state.regs[RDX as usize], v as u64 & T::MASK);
        Ok(())
    }
}

/// CMPXCHG: place, register `d`, accumulator. The place is always written.
pub struct Cmpxchg<T, P>(PhantomData<(T, P)>);

impl<T: Int, P: Place> Hot for Cmpxchg<T, P> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let old = P::get_to_modify::<T, W>(cpu, op)?;
        let a = cpu.state.regs[RAX as usize] & T::MASK;
        if old == a {
            let new = cpu.state.regs[op.d as usize] & T::MASK;
            P::put::<T, W>(cpu, op, new)?;
        } else {
            if P::MEMORY {
                P::put::<T, W>(cpu, op, old)?;
            }
            T::put(&mut cpu.state.regs[RAX as usize], old);
        }
        keep_flags::<T>(cpu, FlagKind::SUB, a, a.wrapping_sub(old) & T::MASK);
        Ok(())
    }
}

/// XADD: place and register `d`.
pub struct Xadd<T, P>(PhantomData<(T, P)>);

impl<T: Int, P: Place> Hot for Xadd<T, P> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let old = P::get_to_modify::<T, W>(cpu, op)?;
        let r = old.wrapping_add(cpu.state.regs[op.d as usize]) & T::MASK;
        if P::MEMORY {
            P::put::<T, W>(cpu, op, r)?;
            T::put(&mut cpu.state.regs[op.d as usize], old);
        } else {
            T::put(&mut cpu.state.regs[op.d as usize], old);
            P::put::<T, W>(cpu, op, r)?;
        }
        keep_flags::<T>(cpu, FlagKind::ADD, old, r);
        Ok(())
    }
}
