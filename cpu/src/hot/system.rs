//! What kernels do on the way in and out: CLI, STI, SWAPGS, CLAC, STAC. Each stands in front of the general form, in the same op, and leaves
//! to it whatever is not the common case; after it the block goes on, where the general form ends it.

use iced_x86::{Instruction, Mnemonic, OpKind};
use undervisor_core::regs::SEG_BASE;
use undervisor_core::{Rflags, SegReg};

use super::slow_end;
use crate::cpu::Cpu;
use crate::decode::{Mode, is_silent};
use crate::dispatch::next;
use crate::op::{Flow, Handler, OpRef};

/// Whether a block may go on behind `insn`, though its general form would end it. (Behind STI only with an instruction that is
/// [`quiet`].)
pub fn goes_on(insn: &Instruction, mode: Mode) -> bool {
    use Mnemonic as M;
    mode.is64() && matches!(insn.mnemonic(), M::Cli | M::Sti | M::Swapgs | M::Clac | M::Stac)
}

/// Whether `insn` can neither fault nor exit, so that no one sees whether it runs in an interrupt shadow.
pub fn quiet(insn: &Instruction) -> bool {
    let plain = |n| insn.op_kind(n) != OpKind::Register || insn.op_register(n).is_gpr();
    is_silent(insn) && !insn.is_invalid() && !insn.has_lock_prefix() && (0..insn.op_count()).all(plain)
}

/// The handler to stand in front of the general form of `insn`. `next`: the instruction after it in its block.
pub fn form(insn: &Instruction, mode: Mode, next: Option<&Instruction>) -> Option<Handler> {
    use Mnemonic as M;
    if !goes_on(insn, mode) {
        return None;
    }
    Some(match insn.mnemonic() {
        M::Cli => cli,
        M::Sti if next.is_some_and(quiet) => sti,
        M::Sti => return None,
        M::Swapgs => swapgs,
        M::Clac => access_flag::<false>,
        _ => access_flag::<true>,
    })
}

/// RFLAGS.IF may be changed. (In virtual-8086 mode and with PVI there is more to it, but not in 64-bit mode at CPL 0.)
#[inline(always)]
fn may_change_if(cpu: &Cpu) -> bool {
    cpu.state.cpl == 0
}

fn cli(cpu: &mut Cpu, op: OpRef) -> Flow {
    if !may_change_if(cpu) {
        return slow_end(cpu, op);
    }
    cpu.state.set_flag(Rflags::IF, false);
    next(cpu, op)
}

/// STI before a quiet instruction: the shadow is over when that has run, and no one can look before. If anything waits, the general
/// form does it, with a shadow.
fn sti(cpu: &mut Cpu, op: OpRef) -> Flow {
    if !may_change_if(cpu) || cpu.attention != 0 || cpu.events_wait() {
        return slow_end(cpu, op);
    }
    cpu.state.set_flag(Rflags::IF, true);
    next(cpu, op)
}

fn swapgs(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.state.cpl != 0 {
        return slow_end(cpu, op);
    }
    let s = &mut cpu.state;
    let gs = &mut s.seg[SegReg::Gs as usize].base;
    std::mem::swap(gs, &mut s.msrs.kernel_gs_base);
    s.regs[SEG_BASE as usize + SegReg::Gs as usize] = *gs;
    next(cpu, op)
}

/// CLAC, STAC.
fn access_flag<const SET: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.state.cpl != 0 {
        return slow_end(cpu, op);
    }
    cpu.state.set_flag(Rflags::AC, SET);
    cpu.select_bank();
    next(cpu, op)
}
