//! Control: FNINIT, FNCLEX, FLDCW, FNSTCW, FNSTSW, WAIT, stack-pointer and tag instructions.

use iced_x86::{Instruction, OpKind};
use undervisor_core::{Cr0, Exception, F80, X87};

use super::status;
use crate::cpu::{Cpu, Exec};

/// Control-word bits that exist; bit 6 reads as one.
const CONTROL_DEFINED: u16 = 0x1f3f;

impl Cpu {
    /// Load the control word.
    pub(crate) fn set_x87_control(&mut self, value: u16) {
        self.state.x87.control = value & CONTROL_DEFINED | 0x40;
        self.x87_summary();
    }

    /// FNINIT without checks: the registers keep their contents, marked empty.
    pub(crate) fn x87_init(&mut self) {
        let st: [F80; 8] = self.state.x87.st;
        self.state.x87 = X87 { st, ..X87::default() };
    }
}

pub fn fninit(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.x87_available()?;
    cpu.x87_init();
    Ok(())
}

pub fn fnclex(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.x87_available()?;
    cpu.state.x87.status &= !(0x3f | status::SF | status::ES | status::B);
    Ok(())
}

pub fn fnop(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    Ok(())
}

/// FNENI, FNDISI, FNSETPM, FRSTPM of the 8087 and 80287: nothing happens.
pub fn obsolete(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.x87_available()
}

pub fn fincstp(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    cpu.set_condition(status::C1, 0);
    cpu.add_to_top(1);
    Ok(())
}

pub fn fdecstp(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    cpu.set_condition(status::C1, 0);
    cpu.add_to_top(7);
    Ok(())
}

pub fn ffree<const POP: bool>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    cpu.set_condition(status::C1, 0);
    cpu.st_free(Cpu::st_number(insn, 0));
    if POP {
        cpu.st_pop();
    }
    Ok(())
}

pub fn fldcw(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let linear = cpu.effective_linear(insn, 2, false)?;
    let v = cpu.read_linear::<u16>(linear)?;
    cpu.set_x87_control(v);
    Ok(())
}

pub fn fnstcw(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_available()?;
    let linear = cpu.effective_linear(insn, 2, true)?;
    cpu.write_linear(linear, cpu.state.x87.control)
}

pub fn fnstsw(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_available()?;
    let v = cpu.state.x87.status;
    if insn.op_kind(0) == OpKind::Register {
        cpu.set_gpr(insn.op_register(0), v as u64);
        return Ok(());
    }
    let linear = cpu.effective_linear(insn, 2, true)?;
    cpu.write_linear(linear, v)
}

/// WAIT: #NM only if both MP and TS are set.
pub fn wait(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.state.cr0.contains(Cr0::MP | Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    cpu.x87_pending()
}
