//! Vector instructions as ops.
//!
//! An instruction with a memory source becomes two ops: a load into a register that no guest has, and the step on registers.
//! One with a memory destination becomes step and store. Both carry the same place in the block, so whichever does not
//! complete, the instruction starts over.

pub mod forms;
mod fused;
mod memory;
pub mod plan;
mod scalar;
mod table;

use iced_x86::Instruction;

use super::translate::memory as address;
use super::{operand, stale};
use crate::decode::{Builder, Mode};
use crate::op::Op;
use forms::Form;
use plan::{Memory, Need, Plan, Step};

/// Append the ops of a vector instruction, if it is one that may run without further checks.
pub fn translate(b: &mut Builder, insn: &Instruction, index: usize) -> Option<bool> {
    let plan = plan::plan(insn)?;
    let ready = match plan.need {
        Need::Mmx => Mode::X87,
        Need::Sse | Need::SseMmx => Mode::SSE,
        Need::Avx => Mode::AVX,
    };
    if !b.mode.has(ready) || plan.probe || insn.has_lock_prefix() {
        return None;
    }
    if let (Some(step), Some(_), None) = (&plan.step, &plan.load, &plan.before)
        && let Some(op) = fused_op(insn, b.mode, step, plan.form)
    {
        b.push(op, insn, index);
        return Some(false);
    }
    let load = match &plan.load {
        Some(load) => Some(memory_op(insn, b.mode, load, false)?),
        None => None,
    };
    let store = match &plan.store {
        Some(store) => Some(memory_op(insn, b.mode, store, true)?),
        None => None,
    };
    let Plan { before, step, .. } = plan;
    let steps = [before, step].into_iter().flatten().map(|s| s.op());
    for op in load.into_iter().chain(steps).chain(store) {
        b.push(op, insn, index);
    }
    Some(false)
}

fn memory_op(insn: &Instruction, mode: Mode, m: &Memory, write: bool) -> Option<Op> {
    let mut op = Op::new(stale);
    let form = address(&mut op, insn, mode)?;
    op.a = m.register;
    op.handler.set(if write {
        memory::store(m.bytes, m.aligned, form)?
    } else {
        memory::load(m.bytes, m.vex, m.aligned, form)?
    });
    Some(op)
}

fn fused_op(insn: &Instruction, mode: Mode, step: &Step, form: Form) -> Option<Op> {
    let handler = fused::handler(insn.mnemonic(), form)?;
    let mut op = Op::new(stale);
    if address(&mut op, insn, mode)? == operand::form::OFFSET32 {
        return None;
    }
    (op.a, op.d, op.extra) = (step.a, step.d, step.imm);
    op.handler.set(handler);
    Some(op)
}
