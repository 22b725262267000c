//! Operands of hot ops: registers, immediates, and memory in three address forms.

use undervisor_core::FlagKind;
use undervisor_mmu::Word;

use crate::access::Way;
use crate::cpu::Cpu;
use crate::op::OpRef;

/// An operand size, with the architecture's rule for writing part of a register.
pub trait Int: Word {
    const BITS: u32;
    const LOG2: u8;
    const MASK: u64;
    /// Write to a register: 32-bit results clear the high half, 8- and 16-bit results keep the rest.
    fn put(register: &mut u64, value: u64);
    /// Sign-extend to 64 bits.
    fn sign_extend(value: u64) -> u64;
    /// Rotate within the operand's width.
    fn rotate_left(value: u64, count: u32) -> u64;
    fn rotate_right(value: u64, count: u32) -> u64;
}

macro_rules! int {
    ($t:ty, $s:ty, $log2:expr, |$r:ident, $v:ident| $put:expr) => {
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const LOG2: u8 = $log2;
            const MASK: u64 = <$t>::MAX as u64;
            #[inline(always)]
            fn put($r: &mut u64, $v: u64) {
                *$r = $put;
            }
            #[inline(always)]
            fn sign_extend(value: u64) -> u64 {
                value as $s as i64 as u64
            }
            #[inline(always)]
            fn rotate_left(value: u64, count: u32) -> u64 {
                (value as $t).rotate_left(count) as u64
            }
            #[inline(always)]
            fn rotate_right(value: u64, count: u32) -> u64 {
                (value as $t).rotate_right(count) as u64
            }
        }
    };
}
int!(u8, i8, 0, |r, v| *r & !0xff | v & 0xff);
int!(u16, i16, 1, |r, v| *r & !0xffff | v & 0xffff);
int!(u32, i32, 2, |r, v| v & 0xffff_ffff);
int!(u64, i64, 3, |r, v| v);

/// Address forms of memory operands.
pub mod form {
    /// Base + displacement, 64-bit, segment base 0.
    pub const BASE: u8 = 0;
    /// Base + index × scale + displacement, 64-bit, segment base 0.
    pub const INDEX: u8 = 1;
    /// As INDEX, plus a segment base.
    pub const FULL: u8 = 2;
    /// As FULL with a 32-bit offset (address-size prefix, or flat 32-bit code).
    pub const OFFSET32: u8 = 3;
}

/// Linear address of the memory operand of `op` in form `A`.
#[inline(always)]
pub fn address<const A: u8>(cpu: &Cpu, op: OpRef) -> u64 {
    match A {
        form::BASE | form::INDEX => offset::<A>(cpu, op),
        _ => offset::<A>(cpu, op).wrapping_add(cpu.state.regs[op.seg as usize]),
    }
}

/// Offset of the memory operand, without the segment base (LEA).
#[inline(always)]
pub fn offset<const A: u8>(cpu: &Cpu, op: OpRef) -> u64 {
    let r = &cpu.state.regs;
    let disp = op.disp as i64 as u64;
    match A {
        form::BASE => r[op.b as usize].wrapping_add(disp),
        form::INDEX | form::FULL => {
            r[op.b as usize].wrapping_add(r[op.c as usize].wrapping_shl(op.scale as u32)).wrapping_add(disp)
        }
        _ => offset32(cpu, op),
    }
}

#[inline(always)]
fn offset32(cpu: &Cpu, op: OpRef) -> u64 {
    let r = &cpu.state.regs;
    r[op.b as usize].wrapping_add(r[op.c as usize].wrapping_shl(op.scale as u32)).wrapping_add(op.disp as i64 as u64)
        & 0xffff_ffff
}

/// Where a value comes from.
pub trait Source {
    fn get<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss>;
}

/// Where a value goes.
pub trait Place: Source {
    /// Whether the place is memory: its flags are then always kept, since the store may end the chain.
    const MEMORY: bool;
    /// Read before a write.
    fn get_to_modify<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss>;
    fn put<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef, value: u64) -> Result<(), W::Miss>;
}

/// Register `op.a`.
pub struct RegA;
/// Register `op.b`.
pub struct RegB;
/// A register known when the handler was compiled: for the hottest forms.
pub struct Reg<const R: u8>;
/// Bits 15:8 of register `op.a`: AH, CH, DH, BH.
pub struct HighA;
/// `op.imm`.
pub struct Imm;
/// The memory operand.
pub struct Mem<const A: u8>;

impl Source for RegA {
    #[inline(always)]
    fn get<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        Ok(cpu.state.regs[op.a as usize] & T::MASK)
    }
}
impl Source for RegB {
    #[inline(always)]
    fn get<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        Ok(cpu.state.regs[op.b as usize] & T::MASK)
    }
}
impl<const R: u8> Source for Reg<R> {
    #[inline(always)]
    fn get<T: Int, W: Way>(cpu: &mut Cpu, _: OpRef) -> Result<u64, W::Miss> {
        Ok(cpu.state.regs[R as usize] & T::MASK)
    }
}
impl<const R: u8> Place for Reg<R> {
    const MEMORY: bool = false;
    #[inline(always)]
    fn get_to_modify<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        Self::get::<T, W>(cpu, op)
    }
    #[inline(always)]
    fn put<T: Int, W: Way>(cpu: &mut Cpu, _: OpRef, value: u64) -> Result<(), W::Miss> {
        T::put(&mut cpu.state.regs[R as usize], value);
        Ok(())
    }
}
impl Source for HighA {
    #[inline(always)]
    fn get<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        Ok(cpu.state.regs[op.a as usize] >> 8 & 0xff)
    }
}
impl Source for Imm {
    #[inline(always)]
    fn get<T: Int, W: Way>(_: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        Ok(op.imm.get() & T::MASK)
    }
}
impl<const A: u8> Source for Mem<A> {
    #[inline(always)]
    fn get<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        let linear = address::<A>(cpu, op);
        Ok(W::read::<T>(cpu, linear)?.to_u64())
    }
}
impl Place for RegA {
    const MEMORY: bool = false;
    #[inline(always)]
    fn get_to_modify<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        Ok(cpu.state.regs[op.a as usize] & T::MASK)
    }
    #[inline(always)]
    fn put<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef, value: u64) -> Result<(), W::Miss> {
        T::put(&mut cpu.state.regs[op.a as usize], value);
        Ok(())
    }
}
impl Place for HighA {
    const MEMORY: bool = false;
    #[inline(always)]
    fn get_to_modify<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        Self::get::<T, W>(cpu, op)
    }
    #[inline(always)]
    fn put<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef, value: u64) -> Result<(), W::Miss> {
        let register = &mut cpu.state.regs[op.a as usize];
        *register = *register & !0xff00 | (value & 0xff) << 8;
        Ok(())
    }
}
impl<const A: u8> Place for Mem<A> {
    const MEMORY: bool = true;
    #[inline(always)]
    fn get_to_modify<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        let linear = address::<A>(cpu, op);
        Ok(W::read_to_modify::<T>(cpu, linear)?.to_u64())
    }
    #[inline(always)]
    fn put<T: Int, W: Way>(cpu: &mut Cpu, op: OpRef, value: u64) -> Result<(), W::Miss> {
        let linear = address::<A>(cpu, op);
        W::write::<T>(cpu, linear, T::from_u64(value))
    }
}

/// Leave `kind`'s operands for whoever wants the flags.
#[inline(always)]
pub fn keep_flags<T: Int>(cpu: &mut Cpu, kind: u8, a: u64, res: u64) {
    let lazy = &mut cpu.state.lazy;
    lazy.res = res;
    lazy.a = a;
    lazy.kind = kind | T::LOG2;
    debug_assert!(kind != FlagKind::EXPLICIT);
}

/// CF of the lazy flags.
#[inline(always)]
pub fn carry(cpu: &Cpu) -> u64 {
    let lazy = &cpu.state.lazy;
    match lazy.kind & !3 {
        FlagKind::SUB => {
            // a < b, where b = a - res in the operand's width.
            let shift = 64 - (8u32 << (lazy.kind & 3));
            u64::from(lazy.a << shift < lazy.a.wrapping_sub(lazy.res) << shift)
        }
        FlagKind::ADD => u64::from(lazy.res < lazy.a),
        FlagKind::LOGIC => 0,
        FlagKind::EXPLICIT => cpu.state.explicit_flags() & 1,
        FlagKind::INC | FlagKind::DEC | FlagKind::SHIFT => lazy.carry as u64,
        // ADC, SBB: worked out when they ran.
        _ => lazy.carry_out as u64,
    }
}

/// Condition `CC` (the low four bits of Jcc's opcode) on the lazy flags. The fast way leaves the rarer combinations to the slow one, so that
/// its handlers call nothing.
#[inline(always)]
pub fn condition<const CC: u8, W: Way>(cpu: &Cpu) -> Result<bool, W::Miss> {
    match quick_condition::<CC>(cpu) {
        Some(c) => Ok(c),
        None if W::FAST => Err(W::give_up()),
        None => Ok(general_condition(cpu, CC) != (CC & 1 != 0)),
    }
}

/// Condition `CC` where it can be had without working out all flags.
#[inline(always)]
pub fn quick_condition<const CC: u8>(cpu: &Cpu) -> Option<bool> {
    let lazy = &cpu.state.lazy;
    let kind = lazy.kind & !3;
    let positive = if kind == FlagKind::EXPLICIT {
        condition_in(cpu.state.explicit_flags(), CC)
    } else {
        let shift = 64 - (8u32 << (lazy.kind & 3));
        let signed = |x: u64| (x << shift) as i64;
        match CC >> 1 {
            1 => carry(cpu) != 0,
            2 => lazy.res == 0,
            3 => lazy.res == 0 || carry(cpu) != 0,
            4 => signed(lazy.res) < 0,
            5 => undervisor_core::flags::parity(lazy.res as u8) != 0,
            6 if kind == FlagKind::SUB => signed(lazy.a) < signed(lazy.a.wrapping_sub(lazy.res)),
            7 if kind == FlagKind::SUB => signed(lazy.a) <= signed(lazy.a.wrapping_sub(lazy.res)),
            6 if kind == FlagKind::LOGIC => signed(lazy.res) < 0,
            7 if kind == FlagKind::LOGIC => signed(lazy.res) <= 0,
            0 if kind == FlagKind::LOGIC => false,
            _ => return None,
        }
    };
    Some(positive != (CC & 1 != 0))
}

/// The positive sense of condition `cc` (its low bit ignored), from RFLAGS.
#[inline(never)]
pub fn general_condition(cpu: &Cpu, cc: u8) -> bool {
    condition_in(cpu.state.rflags(), cc)
}

/// The positive sense of condition `cc` (its low bit ignored) in a value of RFLAGS.
#[inline(always)]
fn condition_in(rflags: u64, cc: u8) -> bool {
    let bit = |n: u32| rflags >> n & 1 != 0;
    match cc >> 1 & 7 {
        0 => bit(11),
        1 => bit(0),
        2 => bit(6),
        3 => bit(0) || bit(6),
        4 => bit(7),
        5 => bit(2),
        6 => bit(7) != bit(11),
        _ => bit(6) || bit(7) != bit(11),
    }
}
