//! Near branches, and compare-and-branch fused into one op.

use std::marker::PhantomData;

use undervisor_core::FlagKind;
use undervisor_core::regs::{RCX, RIP, RSP};

use super::alu::Alu;
use super::moves::{pop, push};
use super::operand::{Int, Source, general_condition, keep_flags, quick_condition};
use super::{Hot, abandon, branch, branch_indirect};
use crate::access::{Fast, Slow, Way};
use crate::cpu::Cpu;
use crate::dispatch::{go, next};
use crate::op::{Flow, OpRef};

/// Jcc. Not taken, the block goes on. `L`: 64-bit mode.
pub fn jcc<const CC: u8, const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match quick_condition::<CC>(cpu) {
        Some(true) => branch::<L>(cpu, op),
        Some(false) => next(cpu, op),
        None => jcc_general::<CC, L>(cpu, op),
    }
}

#[cold]
#[inline(never)]
fn jcc_general<const CC: u8, const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if general_condition(cpu, CC) != (CC & 1 != 0) { branch::<L>(cpu, op) } else { next(cpu, op) }
}

/// JMP rel.
pub fn jmp<const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    branch::<L>(cpu, op)
}

/// JRCXZ and JECXZ.
pub fn jcxz<T: Int, const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.state.regs[RCX as usize] & T::MASK == 0 { branch::<L>(cpu, op) } else { next(cpu, op) }
}

/// CALL rel. `T`: size of the return address.
pub fn call<T: Int, const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let back = return_address::<L>(cpu, op);
    match push::<T, Fast>(cpu, back) {
        Ok(()) => branch::<L>(cpu, op),
        Err(()) => call_slow::<T, L>(cpu, op),
    }
}

#[cold]
#[inline(never)]
fn call_slow<T: Int, const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.begin(op);
    let back = return_address::<L>(cpu, op);
    match push::<T, Slow>(cpu, back) {
        Ok(()) => {
            cpu.current = std::ptr::null();
            branch::<L>(cpu, op)
        }
        Err(stop) => abandon(cpu, op, stop),
    }
}

#[inline(always)]
fn return_address<const L: bool>(cpu: &Cpu, op: OpRef) -> u64 {
    let next = cpu.state.regs[RIP as usize].wrapping_add(op.offset as u64 + op.length as u64);
    if L { next } else { next & 0xffff_ffff }
}

/// Where an indirect branch goes, and what it does to the stack.
pub trait Indirect {
    fn target<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss>;
}

/// Handler of an indirect branch.
pub fn indirect<I: Indirect>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match I::target::<Fast>(cpu, op) {
        Ok(target) => {
            cpu.state.regs[RIP as usize] = target;
            branch_indirect(cpu, op)
        }
        Err(()) => indirect_slow::<I>(cpu, op),
    }
}

#[cold]
#[inline(never)]
fn indirect_slow<I: Indirect>(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.begin(op);
    match I::target::<Slow>(cpu, op) {
        Ok(target) => {
            cpu.current = std::ptr::null();
            cpu.state.regs[RIP as usize] = target;
            branch_indirect(cpu, op)
        }
        Err(stop) => abandon(cpu, op, stop),
    }
}

/// A target must be canonical; the general form raises the fault. 48-bit canonical is enough for the fast way.
#[inline(always)]
pub fn checked<W: Way>(cpu: &mut Cpu, target: u64) -> Result<u64, W::Miss> {
    if (target as i64) << 16 >> 16 == target as i64 { Ok(target) } else { Err(W::general(cpu)) }
}

/// RET and RET imm16 (in `imm`). `T`: u64 in 64-bit mode, u32 in flat 32-bit code.
pub struct Ret<T>(PhantomData<T>);

impl<T: Int> Indirect for Ret<T> {
    #[inline(always)]
    fn target<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        let (target, sp) = pop::<T, W>(cpu)?;
        let target = checked::<W>(cpu, target)?;
        let sp = sp.wrapping_add(op.imm.get());
        cpu.state.regs[RSP as usize] = if T::SIZE == 8 { sp } else { sp & 0xffff_ffff };
        Ok(target)
    }
}

/// JMP r/m.
pub struct JmpIndirect<T, S>(PhantomData<(T, S)>);

impl<T: Int, S: Source> Indirect for JmpIndirect<T, S> {
    #[inline(always)]
    fn target<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        let target = S::get::<T, W>(cpu, op)?;
        checked::<W>(cpu, target)
    }
}

/// CALL r/m.
pub struct CallIndirect<T, S>(PhantomData<(T, S)>);

impl<T: Int, S: Source> Indirect for CallIndirect<T, S> {
    #[inline(always)]
    fn target<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<u64, W::Miss> {
        let target = S::get::<T, W>(cpu, op)?;
        let target = checked::<W>(cpu, target)?;
        let back = cpu.state.regs[RIP as usize].wrapping_add(op.offset as u64 + op.length as u64);
        push::<T, W>(cpu, back & T::MASK)?;
        Ok(target)
    }
}

// ---- fusion -----------------------------------------------------------------------------------------------------------

/// CMP or TEST fused with the Jcc in the op after it. The flags are kept as well: either path may look at them.
pub struct CompareBranch<O, T, X, Y>(PhantomData<(O, T, X, Y)>);

impl<O: Alu, T: Int, X: Source, Y: Source> CompareBranch<O, T, X, Y> {
    /// The fused handler; `CC` is the condition, `L`: 64-bit mode.
    pub fn run<const CC: u8, const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
        match Self::compare::<Fast>(cpu, op) {
            Ok((a, b)) => Self::finish::<CC, L>(cpu, op, a, b),
            Err(()) => Self::slow::<CC, L>(cpu, op),
        }
    }

    #[cold]
    #[inline(never)]
    fn slow<const CC: u8, const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
        cpu.begin(op);
        match Self::compare::<Slow>(cpu, op) {
            Ok((a, b)) => {
                cpu.current = std::ptr::null();
                // The access may have asked to stop before the branch: let its own op decide.
                keep_flags::<T>(cpu, O::KIND, a, O::apply(a, b, 0) & T::MASK);
                next(cpu, op)
            }
            Err(stop) => abandon(cpu, op, stop),
        }
    }

    #[inline(always)]
    fn compare<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(u64, u64), W::Miss> {
        let b = Y::get::<T, W>(cpu, op)?;
        let a = X::get::<T, W>(cpu, op)?;
        Ok((a, b))
    }

    #[inline(always)]
    fn finish<const CC: u8, const L: bool>(cpu: &mut Cpu, op: OpRef, a: u64, b: u64) -> Flow {
        let r = O::apply(a, b, 0) & T::MASK;
        keep_flags::<T>(cpu, O::KIND, a, r);
        let jump = op.following();
        if taken::<T, CC>(O::KIND == FlagKind::SUB, a, b, r) { branch::<L>(cpu, jump) } else { go(cpu, jump.following()) }
    }
}

/// Condition `CC` after `a - b = r` (`sub`), or after a logical operation with result `r`.
#[inline(always)]
pub fn taken<T: Int, const CC: u8>(sub: bool, a: u64, b: u64, r: u64) -> bool {
    let (sa, sb, sr) = (T::sign_extend(a) as i64, T::sign_extend(b) as i64, T::sign_extend(r) as i64);
    let positive = match CC >> 1 {
        0 => sub && ((sa ^ sb) & (sa ^ sr)) < 0,
        1 => sub && a < b,
        2 => r == 0,
        3 => {
            if sub {
                a <= b
            } else {
                r == 0
            }
        }
        4 => sr < 0,
        5 => undervisor_core::flags::parity(r as u8) != 0,
        6 => {
            if sub {
                sa < sb
            } else {
                sr < 0
            }
        }
        _ => {
            if sub {
                sa <= sb
            } else {
                sr <= 0
            }
        }
    };
    positive != (CC & 1 != 0)
}

/// An operation on register `a` that leaves ZF and SF by its result (ADD, SUB, AND, DEC, …), fused with JZ/JNZ/JS/JNS.
pub struct ComputeBranch<H, T>(PhantomData<(H, T)>);

impl<H: Hot, T: Int> ComputeBranch<H, T> {
    /// The fused handler; `H` must keep its flags and not touch memory.
    pub fn run<const CC: u8, const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
        // Register forms never miss.
        let _ = H::run::<Fast>(cpu, op);
        let r = cpu.state.lazy.res;
        let jump = op.following();
        let positive = if CC >> 1 == 2 { r == 0 } else { (T::sign_extend(r) as i64) < 0 };
        if positive != (CC & 1 != 0) { branch::<L>(cpu, jump) } else { go(cpu, jump.following()) }
    }
}
