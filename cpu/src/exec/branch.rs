//! Near branches (SDM vol. 2: Jcc, JMP, CALL, RET, LOOP/LOOPcc; vol. 1, Control Transfer Instructions).

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic as M, OpKind, Register};

use crate::cpu::{Cpu, Exec};
use crate::exec::Row;
use crate::exec::int_math::{CF, OF, PF, SF, ZF, ones};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::ends(match insn.mnemonic() {
        M::Ja
        | M::Jae
        | M::Jb
        | M::Jbe
        | M::Je
        | M::Jg
        | M::Jge
        | M::Jl
        | M::Jle
        | M::Jne
        | M::Jno
        | M::Jnp
        | M::Jns
        | M::Jo
        | M::Jp
        | M::Js => jcc,
        M::Jmp if !far(insn) => jmp,
        M::Call if !far(insn) => call,
        M::Ret => ret,
        M::Loop | M::Loope | M::Loopne => loop_,
        M::Jcxz | M::Jecxz | M::Jrcxz => jcxz,
        _ => return None,
    }))
}

fn far(insn: &Instruction) -> bool {
    insn.is_jmp_far() || insn.is_call_far() || insn.is_jmp_far_indirect() || insn.is_call_far_indirect()
}

/// Whether a condition holds now.
pub fn holds(cpu: &Cpu, condition: ConditionCode) -> bool {
    let f = cpu.state.rflags();
    let less = (f & SF != 0) != (f & OF != 0);
    match condition {
        ConditionCode::o => f & OF != 0,
        ConditionCode::no => f & OF == 0,
        ConditionCode::b => f & CF != 0,
        ConditionCode::ae => f & CF == 0,
        ConditionCode::e => f & ZF != 0,
        ConditionCode::ne => f & ZF == 0,
        ConditionCode::be => f & (CF | ZF) != 0,
        ConditionCode::a => f & (CF | ZF) == 0,
        ConditionCode::s => f & SF != 0,
        ConditionCode::ns => f & SF == 0,
        ConditionCode::p => f & PF != 0,
        ConditionCode::np => f & PF == 0,
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || f & ZF != 0,
        ConditionCode::g => !less && f & ZF == 0,
        ConditionCode::None => true,
    }
}

impl Cpu {
    /// Check the target of a near branch: #GP(0) if it is not canonical or above the limit of CS.
    pub fn check_near_target(&mut self, target: u64) -> Exec {
        let fits = if self.mode.is64() { self.canonical(target) } else { self.code_room(target) != 0 };
        if fits { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Branch within CS. `target` is already truncated to the operand size.
    pub fn jump_near(&mut self, target: u64) -> Exec {
        self.check_near_target(target)?;
        self.state.set_rip(target);
        Ok(())
    }

    /// Target of a relative branch, truncated to its operand size.
    fn relative_target(&self, insn: &Instruction) -> u64 {
        let target = self.branch_target(insn);
        match insn.op0_kind() {
            OpKind::NearBranch16 => target & 0xffff,
            OpKind::NearBranch32 => target & 0xffff_ffff,
            _ => target,
        }
    }

    /// Target of a near JMP or CALL of any form.
    fn near_target(&mut self, insn: &Instruction) -> Exec<u64> {
        match insn.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => Ok(self.relative_target(insn)),
            _ => self.operand(insn, 0),
        }
    }
}

fn jcc(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if !holds(cpu, insn.condition_code()) {
        return Ok(());
    }
    let target = cpu.relative_target(insn);
    cpu.jump_near(target)
}

fn jmp(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let target = cpu.near_target(insn)?;
    cpu.jump_near(target)
}

fn call(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = insn.stack_pointer_increment().unsigned_abs() as usize;
    let target = cpu.near_target(insn)?;
    cpu.check_near_target(target)?;
    let back = cpu.state.rip();
    cpu.push(size, back)?;
    cpu.state.set_rip(target);
    Ok(())
}

fn ret(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = match insn.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let sp = cpu.stack_pointer();
    let target = cpu.read_stack(sp, size)?;
    cpu.check_near_target(target)?;
    let extra = if insn.op_count() == 1 { insn.immediate16() as u64 } else { 0 };
    cpu.set_stack_pointer(sp.wrapping_add(size as u64 + extra));
    cpu.state.set_rip(target);
    Ok(())
}

/// The count register of LOOP: its size is the address size.
fn count_register(insn: &Instruction) -> Register {
    match insn.code() {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => Register::CX,
        Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX
        | Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64 => Register::RCX,
        _ => Register::ECX,
    }
}

fn loop_(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let register = count_register(insn);
    let count = cpu.gpr(register).wrapping_sub(1) & ones(8 * register.size() as u32);
    let zero = cpu.state.rflags() & ZF != 0;
    let taken = count != 0
        && match insn.mnemonic() {
            M::Loope => zero,
            M::Loopne => !zero,
            _ => true,
        };
    if taken {
        let target = cpu.relative_target(insn);
        cpu.jump_near(target)?;
    }
    cpu.set_gpr(register, count);
    Ok(())
}

fn jcxz(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if cpu.gpr(count_register(insn)) != 0 {
        return Ok(());
    }
    let target = cpu.relative_target(insn);
    cpu.jump_near(target)
}
