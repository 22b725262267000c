//! Data movement: MOV, MOVZX, MOVSX, LEA, CMOVcc, SETcc, XCHG, stack.

use std::marker::PhantomData;

use undervisor_core::regs::RSP;

use super::Hot;
use super::operand::{Int, Place, Source, condition, offset};
use crate::access::Way;
use crate::cpu::Cpu;
use crate::op::OpRef;

/// MOV.
pub struct Mov<T, D, S>(PhantomData<(T, D, S)>);

impl<T: Int, D: Place, S: Source> Hot for Mov<T, D, S> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = S::get::<T, W>(cpu, op)?;
        D::put::<T, W>(cpu, op, v)
    }
}

/// MOVZX, MOVSX, MOVSXD from `F` to `T`.
pub struct Extend<T, F, S, const SIGN: bool>(PhantomData<(T, F, S)>);

impl<T: Int, F: Int, S: Source, const SIGN: bool> Hot for Extend<T, F, S, SIGN> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = S::get::<F, W>(cpu, op)?;
        T::put(&mut cpu.state.regs[op.a as usize], if SIGN { F::sign_extend(v) } else { v });
        Ok(())
    }
}

/// MOVZX from AH, CH, DH or BH (the high byte of register `b`).
pub struct ExtendHigh;

impl Hot for ExtendHigh {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        cpu.state.regs[op.a as usize] = cpu.state.regs[op.b as usize] >> 8 & 0xff;
        Ok(())
    }
}

/// LEA.
pub struct Lea<T, const A: u8>(PhantomData<T>);

impl<T: Int, const A: u8> Hot for Lea<T, A> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = offset::<A>(cpu, op);
        T::put(&mut cpu.state.regs[op.a as usize], v);
        Ok(())
    }
}

/// CMOVcc: the source is always read, a 32-bit destination always zero-extended.
pub struct Cmov<T, S, const CC: u8>(PhantomData<(T, S)>);

impl<T: Int, S: Source, const CC: u8> Hot for Cmov<T, S, CC> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = S::get::<T, W>(cpu, op)?;
        let old = cpu.state.regs[op.a as usize];
        let v = if condition::<CC, W>(cpu)? { v } else { old };
        T::put(&mut cpu.state.regs[op.a as usize], v);
        Ok(())
    }
}

/// SETcc.
pub struct Set<P, const CC: u8>(PhantomData<P>);

impl<P: Place, const CC: u8> Hot for Set<P, CC> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = condition::<CC, W>(cpu)? as u64;
        P::put::<u8, W>(cpu, op, v)
    }
}

/// XCHG: place and register `d`.
pub struct Xchg<T, P>(PhantomData<(T, P)>);

impl<T: Int, P: Place> Hot for Xchg<T, P> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let old = P::get_to_modify::<T, W>(cpu, op)?;
        let new = cpu.state.regs[op.d as usize];
        P::put::<T, W>(cpu, op, new & T::MASK)?;
        T::put(&mut cpu.state.regs[op.d as usize], old);
        Ok(())
    }
}

/// PUSH (64-bit mode: `T` = u64; flat 32-bit: u32).
pub struct Push<T, S>(PhantomData<(T, S)>);

impl<T: Int, S: Source> Hot for Push<T, S> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let v = S::get::<T, W>(cpu, op)?;
        push::<T, W>(cpu, v)
    }
}

/// Push a value.
#[inline(always)]
pub fn push<T: Int, W: Way>(cpu: &mut Cpu, value: u64) -> Result<(), W::Miss> {
    let sp = cpu.state.regs[RSP as usize].wrapping_sub(T::SIZE as u64) & if T::SIZE == 8 { u64::MAX } else { 0xffff_ffff };
    W::write::<T>(cpu, sp, T::from_u64(value))?;
    cpu.state.regs[RSP as usize] = sp;
    Ok(())
}

/// The value at the top of the stack, and the stack pointer after its removal.
#[inline(always)]
pub fn pop<T: Int, W: Way>(cpu: &mut Cpu) -> Result<(u64, u64), W::Miss> {
    let mask = if T::SIZE == 8 { u64::MAX } else { 0xffff_ffff };
    let sp = cpu.state.regs[RSP as usize] & mask;
    let v = W::read::<T>(cpu, sp)?.to_u64();
    Ok((v, sp.wrapping_add(T::SIZE as u64) & mask))
}

/// POP to register `a`.
pub struct Pop<T>(PhantomData<T>);

impl<T: Int> Hot for Pop<T> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let (v, sp) = pop::<T, W>(cpu)?;
        cpu.state.regs[RSP as usize] = sp;
        T::put(&mut cpu.state.regs[op.a as usize], v);
        Ok(())
    }
}

/// LEAVE.
pub struct Leave<T>(PhantomData<T>);

impl<T: Int> Hot for Leave<T> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, _: OpRef) -> Result<(), W::Miss> {
        use undervisor_core::regs::RBP;
        let sp = cpu.state.regs[RBP as usize] & T::MASK;
        let v = W::read::<T>(cpu, sp)?.to_u64();
        cpu.state.regs[RSP as usize] = sp.wrapping_add(T::SIZE as u64) & T::MASK;
        T::put(&mut cpu.state.regs[RBP as usize], v);
        Ok(())
    }
}
