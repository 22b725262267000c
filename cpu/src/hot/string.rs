//! STOS and MOVS in 64-bit mode: single ones, and repetitions that stay within pages the TLB knows, as compilers write them for small
//! structures.

use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic, OpKind};
use undervisor_core::regs::{RAX, RCX, RDI, RIP, RSI};
use undervisor_core::{Rflags, SegReg};

use super::operand::Int;
use super::translate::by_size;
use super::{Hot, branch_indirect, hot, slow_end};
use crate::access::Way;
use crate::cpu::Cpu;
use crate::decode::Mode;
use crate::op::{Flow, Handler, OpRef};
use crate::operand::segment_of;

/// Which of the two.
const STOS: bool = false;
const MOVS: bool = true;

/// Whether `insn` is MOVS (or STOS), with 64-bit addresses and no segment base; and its element's bytes.
fn shape(insn: &Instruction, mode: Mode) -> Option<(bool, usize)> {
    let copies = match insn.mnemonic() {
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => STOS,
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq if insn.is_string_instruction() => MOVS,
        _ => return None,
    };
    let plain = !matches!(segment_of(insn.memory_segment())?, SegReg::Fs | SegReg::Gs);
    let wide = insn.op0_kind() == OpKind::MemoryESRDI && (!copies || insn.op1_kind() == OpKind::MemorySegRSI && plain);
    (mode.is64() && wide).then(|| (copies, insn.memory_size().size()))
}

fn repeats(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// The handler of a single STOS or MOVS.
pub fn single(insn: &Instruction, mode: Mode) -> Option<Handler> {
    if repeats(insn) || insn.has_lock_prefix() {
        return None;
    }
    let (copies, size) = shape(insn, mode)?;
    Some(by_size!(size, T => if copies { hot::<Single<T, MOVS>> } else { hot::<Single<T, STOS>> }))
}

/// The handler that stands before the general form of REP STOS and REP MOVS.
pub fn repeated(insn: &Instruction, mode: Mode) -> Option<Handler> {
    if !repeats(insn) || insn.has_lock_prefix() {
        return None;
    }
    let (copies, size) = shape(insn, mode)?;
    Some(by_size!(size, T => if copies { repeat::<T, MOVS> } else { repeat::<T, STOS> }))
}

/// One element.
struct Single<T, const COPIES: bool>(PhantomData<T>);

impl<T: Int, const COPIES: bool> Hot for Single<T, COPIES> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, _: OpRef) -> Result<(), W::Miss> {
        let (si, di) = (cpu.state.regs[RSI as usize], cpu.state.regs[RDI as usize]);
        let value = if COPIES { W::read::<T>(cpu, si)? } else { T::from_u64(cpu.state.regs[RAX as usize] & T::MASK) };
        W::write::<T>(cpu, di, value)?;
        let step = if cpu.state.flag(Rflags::DF) { (T::SIZE as u64).wrapping_neg() } else { T::SIZE as u64 };
        cpu.state.regs[RDI as usize] = di.wrapping_add(step);
        if COPIES {
            cpu.state.regs[RSI as usize] = si.wrapping_add(step);
        }
        Ok(())
    }
}

/// A whole repetition at once: upwards, within the time that is left, in RAM that the TLB lets through. Anything else is left to the
/// general form behind it, which does the same.
fn repeat<T: Int, const COPIES: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let count = cpu.state.regs[RCX as usize];
    if !whole::<T, COPIES>(cpu, count) {
        return slow_end(cpu, op);
    }
    // The branch counts the instruction itself.
    cpu.budget -= count as i64 - 1;
    cpu.counters.repeated += count - 1;
    cpu.state.regs[RIP as usize] = cpu.state.regs[RIP as usize].wrapping_add(op.offset as u64 + op.length as u64);
    branch_indirect(cpu, op)
}

#[inline(never)]
fn whole<T: Int, const COPIES: bool>(cpu: &mut Cpu, count: u64) -> bool {
    if count == 0 || count > 4096 / T::SIZE as u64 || cpu.state.flag(Rflags::DF) || cpu.budget < count as i64 {
        return false;
    }
    let bytes = count as usize * T::SIZE;
    let (si, di) = (cpu.state.regs[RSI as usize], cpu.state.regs[RDI as usize]);
    if cpu.hot_write(di, bytes).is_none() || COPIES && cpu.hot_read(si, bytes).is_none() {
        return false;
    }
    let done = if COPIES {
        cpu.bulk_copy(si, di, T::SIZE, count as usize)
    } else {
        cpu.bulk_fill(di, T::SIZE, count as usize, cpu.state.regs[RAX as usize])
    };
    if done != Ok(true) {
        return false;
    }
    cpu.state.regs[RDI as usize] = di.wrapping_add(bytes as u64);
    if COPIES {
        cpu.state.regs[RSI as usize] = si.wrapping_add(bytes as u64);
    }
    cpu.state.regs[RCX as usize] = 0;
    true
}
