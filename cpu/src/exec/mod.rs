//! Semantics of every instruction in general form: `fn(&mut Cpu, &Instruction) -> Exec`. One file a group; each has a
//! `lookup` with a row per mnemonic. These are the reference: `crate::hot` holds faster twins of the commonest.
//!
//! Conventions for a general-form function:
//! - On entry `cpu.instruction_rip` is the instruction's offset in CS; `insn.ip()` is its distance from the block's start.
//!   If the row `ends` its block, `state.rip()` is already the next instruction's offset and may be replaced; otherwise it must be
//!   left alone.
//! - `Err(Stop::Exception)` means "no effect": RIP goes back to the instruction. Work out and check everything first.
//! - A row must end its block if it can change RIP, CPL, a segment register, a control register, paging, interruptibility, RFLAGS
//!   bits other than the status flags, DF and AC, or the time at which the processor must next look at its surroundings.

pub mod arith;
pub mod bcd;
pub mod bits;
pub mod branch;
pub mod control;
pub mod far;
pub mod flags;
pub mod int_math;
pub mod misc;
pub mod port;
pub mod segment;
pub mod shift;
pub mod simd;
pub mod stack;
pub mod string;
pub mod system;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod wait;
pub mod x87;
pub mod xsave;

use iced_x86::{Instruction, OpKind};

use crate::cache::SlowFn;
use crate::cpu::{Cpu, Exec};

/// A row of the instruction table.
#[derive(Clone, Copy)]
pub struct Row {
    pub function: SlowFn,
    /// Ends its block; see the module's conventions. (Branches always do.)
    pub ends: bool,
}

impl Row {
    pub const fn new(function: SlowFn) -> Row {
        Row { function, ends: false }
    }
    pub const fn ends(function: SlowFn) -> Row {
        Row { function, ends: true }
    }
}

/// The row of an instruction, or `None`: #UD.
pub fn lookup(insn: &Instruction) -> Option<Row> {
    const GROUPS: &[fn(&Instruction) -> Option<Row>] = &[
        transfer::lookup,
        arith::lookup,
        branch::lookup,
        stack::lookup,
        shift::lookup,
        bits::lookup,
        string::lookup,
        port::lookup,
        flags::lookup,
        misc::lookup,
        system::lookup,
        wait::lookup,
        segment::lookup,
        far::lookup,
        control::lookup,
        bcd::lookup,
        x87::lookup,
        crate::virt::vmx::instructions::lookup,
        xsave::lookup,
        crate::virt::svm::instructions::lookup,
        simd::lookup,
    ];
    GROUPS.iter().find_map(|group| group(insn))
}

/// Bytes of operand `n`, a register or memory.
pub fn operand_size(insn: &Instruction, n: u32) -> usize {
    match insn.op_kind(n) {
        OpKind::Register => insn.op_register(n).size(),
        _ => insn.memory_size().size(),
    }
}

/// #UD.
pub fn undefined(cpu: &mut Cpu, _: &Instruction) -> Exec {
    Err(cpu.ud())
}

/// #GP(0): an instruction of more than 15 bytes.
pub fn too_long(cpu: &mut Cpu, _: &Instruction) -> Exec {
    Err(cpu.gp(0))
}
