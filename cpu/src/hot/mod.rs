//! Fast handlers: the glue of blocks (this file) and twins of the commonest instructions, specialised by operand shape and size.
//!
//! A handler must leave architectural state untouched until nothing in it can miss or fault any more. What is too rare to be worth a fast
//! form, faults above all, it leaves to the general form (`Way::general`).

pub mod alu;
pub mod arith;
pub mod branch;
pub mod fuse;
pub mod moves;
pub mod operand;
pub mod pinned;
pub mod shift;
pub mod simd;
pub mod string;
pub mod system;
pub mod translate;

pub use translate::translate;

use crate::access::{Fast, Slow, Way};
use crate::cache;
use crate::cpu::{Cpu, Exec, Stop};
use crate::decode::Mode;
use crate::dispatch::{go, next};
use crate::op::{Flow, OpRef};
use undervisor_core::regs::RIP;

/// Semantics of a hot op, written once for both ways to memory. It must not change state before its last access.
pub trait Hot {
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss>;
}

/// Handler of a hot op that goes on to the next.
pub fn hot<H: Hot>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match H::run::<Fast>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(()) => hot_slow::<H>(cpu, op),
    }
}

#[cold]
#[inline(never)]
fn hot_slow<H: Hot>(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.begin(op);
    match H::run::<Slow>(cpu, op) {
        Ok(()) => {
            cpu.current = std::ptr::null();
            next(cpu, op)
        }
        Err(stop) => abandon(cpu, op, stop),
    }
}

/// The instruction of `op` did not complete: leave the chain as if it had not begun.
#[cold]
#[inline(never)]
pub fn abandon(cpu: &mut Cpu, op: OpRef, stop: Stop) -> Flow {
    cpu.performance.pending = None;
    retire_before(cpu, op);
    if stop == Stop::Exit {
        return exited(cpu);
    }
    cpu.outcome = Err(stop);
    cpu.state.regs[RIP as usize] = along(cpu.mode, cpu.state.rip().wrapping_add(op.offset as u64));
    None
}

/// The instruction in flight has ended in a VM exit, and counts as not retired: straight on to the hypervisor's block, if it is known and
/// nothing asks for attention. What the run loop does between chains can wait as it does between the blocks of a chain; it is never
/// late, for a guest's next deadline comes no later than its host's, and if it does, `attend` has left no budget.
#[inline(always)]
fn exited(cpu: &mut Cpu) -> Flow {
    if cpu.attention == 0
        && cpu.budget > 0
        && cpu.patched.is_none()
        && let Some(target) = cpu.jumps.find(cpu.state.rip(), cpu.fetch_tag)
    {
        return go(cpu, target);
    }
    cpu.outcome = Err(Stop::Exit);
    None
}

/// Count the instructions before `op`; `now` is exact afterwards.
#[inline(always)]
fn retire_before(cpu: &mut Cpu, op: OpRef) {
    cpu.budget -= op.index as i64;
    cpu.current = std::ptr::null();
}

/// An offset in CS, truncated to the code size.
#[inline(always)]
pub fn wrap(mode: Mode, rip: u64) -> u64 {
    match mode.bits() {
        16 => rip & 0xffff,
        32 => rip & 0xffff_ffff,
        _ => rip,
    }
}

/// An offset in CS that straight-line code has reached. Only branches cut it to 16 bits: running past 0xffff is a matter of the
/// segment limit, and an unrestricted guest may have 16-bit code beyond it.
#[inline(always)]
pub fn along(mode: Mode, rip: u64) -> u64 {
    if mode.is64() { rip } else { rip & 0xffff_ffff }
}

/// Leave the chain before `op`, which is to be looked up (or decoded) again.
pub(crate) fn leave(cpu: &mut Cpu, op: OpRef) -> Flow {
    retire_before(cpu, op);
    cpu.state.regs[RIP as usize] = along(cpu.mode, cpu.state.rip().wrapping_add(op.offset as u64));
    None
}

/// Handler of every op of an invalidated block.
pub fn stale(cpu: &mut Cpu, op: OpRef) -> Flow {
    leave(cpu, op)
}

/// Handler that `Cpu::stop_before` puts in place. Must not be the same code as [`stale`]: the linker may merge the two.
pub fn stop_here(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.counters.early_stops += 1;
    cpu.debug_stopped_here();
    leave(cpu, op)
}

/// Before an instruction at which an outside debugger may want to stop. Stands for no instruction itself.
pub fn break_here(cpu: &mut Cpu, op: OpRef) -> Flow {
    if !cpu.debug_break(op) {
        return next(cpu, op);
    }
    let end = leave(cpu, op);
    cpu.attend(crate::cpu::attention::DEBUGGER);
    end
}

/// Take the direct branch of `op`: `disp` is the target's distance from the block's start, `imm` the link, `index` counts the
/// instructions before the branch. `L`: 64-bit mode.
#[inline(always)]
pub fn branch<const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    go_on::<L>(cpu, op, op.index as i64 + 1)
}

/// End of a block that did not end in a branch: go on at the next byte. The op stands for no instruction: `index` counts them all, so
/// that leaving before it (the last instruction stored to its own block, say) counts them all too.
pub fn fall_through<const L: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    go_on::<L>(cpu, op, op.index as i64)
}

/// Leave the block of `op` for `op.disp`, after `retired` of its instructions.
#[inline(always)]
fn go_on<const L: bool>(cpu: &mut Cpu, op: OpRef, retired: i64) -> Flow {
    let rip = cpu.state.rip().wrapping_add(op.disp as i64 as u64);
    cpu.state.regs[RIP as usize] = if L { rip } else { wrap(cpu.mode, rip) };
    cpu.budget -= retired;
    if cpu.budget < 0 {
        return None;
    }
    if let Some(target) = OpRef::from_link(op.imm.get()) {
        return go(cpu, target);
    }
    link(cpu, op)
}

/// A direct branch without a link: find the target, and link to it if it lies in the same page. (A branch to another page comes
/// here each time.)
#[inline(never)]
fn link(cpu: &mut Cpu, op: OpRef) -> Flow {
    let rip = cpu.state.rip();
    match cpu.jumps.find(rip, cpu.fetch_tag) {
        Some(target) => {
            let start = rip.wrapping_sub(op.disp as i64 as u64);
            if start >> 12 == rip >> 12 && !cpu.is_stale(op) && !cpu.is_stale(target) {
                op.imm.set(target.to_bits());
            }
            go(cpu, target)
        }
        None => missed(cpu),
    }
}

/// The block at RIP is not in its place in the jump cache: look in its second one, then in the op cache, as long as that needs no more than
/// look-ups. The run loop finds (or decodes) the rest.
#[cold]
#[inline(never)]
fn missed(cpu: &mut Cpu) -> Flow {
    if let Some(target) = cpu.jumps.find_aside(cpu.state.rip(), cpu.fetch_tag) {
        return go(cpu, target);
    }
    match cpu.find_next() {
        Some(target) => go(cpu, target),
        None => None,
    }
}

/// Go to the block at RIP, which was just set by an indirect branch; `op` is the branch.
#[inline(always)]
pub fn branch_indirect(cpu: &mut Cpu, op: OpRef) -> Flow {
    cpu.budget -= op.index as i64 + 1;
    if cpu.budget < 0 {
        return None;
    }
    match cpu.jumps.find(cpu.state.rip(), cpu.fetch_tag) {
        Some(target) => go(cpu, target),
        None => missed(cpu),
    }
}

impl Cpu {
    /// The slow way of a hot op begins: whatever its accesses lead to (a fault, a VM exit) must find the instruction. (An op without
    /// a length is a step of a general-form instruction, which has said so already.)
    #[inline]
    pub(crate) fn begin(&mut self, op: OpRef) {
        if op.length == 0 {
            return;
        }
        self.current = &*op;
        self.current_slow = std::ptr::null();
        self.instruction_rip = along(self.mode, self.state.rip().wrapping_add(op.offset as u64));
    }

    /// The instruction in flight, if it runs in its general form.
    #[allow(unsafe_code)]
    pub fn current_instruction(&self) -> Option<iced_x86::Instruction> {
        if self.current.is_null() || self.current_slow.is_null() {
            return None;
        }
        // SAFETY: both are set together, while the op's block is alive (invariant of `OpRef`).
        Some(unsafe { (*self.current_slow).instruction })
    }

    /// Whether `op` belongs to an invalidated block.
    pub fn is_stale(&self, op: OpRef) -> bool {
        op.handler.get() as usize == stale as *const () as usize
    }
}

/// The row behind a slow op.
#[allow(unsafe_code)]
#[inline(always)]
fn row<'a>(op: OpRef) -> &'a cache::Slow {
    // SAFETY: `imm` of an op with handler `slow` or `slow_end` points into its block's `slow` array (`Cpu::decode`), which
    // lives as long as the op.
    unsafe { &*(op.imm.get() as usize as *const cache::Slow) }
}

/// General-form instruction in the middle of a block.
#[inline(never)]
pub fn slow(cpu: &mut Cpu, op: OpRef) -> Flow {
    match run_slow(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(stop) => abandon(cpu, op, stop),
    }
}

#[inline(never)]
fn run_slow(cpu: &mut Cpu, op: OpRef) -> Exec {
    let row = row(op);
    cpu.current = &*op;
    cpu.current_slow = row;
    cpu.instruction_rip = along(cpu.mode, cpu.state.rip().wrapping_add(op.offset as u64));
    let result = (row.function)(cpu, &row.instruction);
    cpu.current = std::ptr::null();
    result
}

/// General-form instruction that ends its block; goes on to the next if nothing asks for attention.
pub fn slow_end(cpu: &mut Cpu, op: OpRef) -> Flow {
    let row = row(op);
    cpu.current = &*op;
    cpu.current_slow = row;
    let rip = along(cpu.mode, cpu.state.rip().wrapping_add(op.offset as u64));
    cpu.instruction_rip = rip;
    cpu.state.regs[RIP as usize] = along(cpu.mode, rip.wrapping_add(op.length as u64));
    let result = (row.function)(cpu, &row.instruction);
    if result.is_ok() && cpu.attention == 0 {
        cpu.current = std::ptr::null();
        return branch_indirect(cpu, op);
    }
    retire_before(cpu, op);
    match result {
        Ok(()) => cpu.budget -= 1,
        Err(Stop::Exit) => {
            cpu.performance.pending = None;
            return exited(cpu);
        }
        Err(stop) => {
            cpu.outcome = Err(stop);
            cpu.performance.pending = None;
            cpu.state.regs[RIP as usize] = rip;
        }
    }
    None
}
