//! Comparisons: FCOM, FUCOM, FCOMI, FTST, FXAM; FCMOVcc.

use iced_x86::{Instruction, Mnemonic, OpKind};
use undervisor_core::{Rflags, Vendor};

use super::{INDEFINITE, status};
use crate::cpu::{Cpu, Exec};
use crate::float::{Class, Relation, Unpacked, ops};

fn condition(relation: Relation) -> u16 {
    match relation {
        Relation::Greater => 0,
        Relation::Less => status::C0,
        Relation::Equal => status::C3,
        Relation::Unordered => status::C0 | status::C2 | status::C3,
    }
}

const CODES: u16 = status::C0 | status::C2 | status::C3;

/// Compare ST(0) with a register or memory; `POPS` times pop. `SIGNALING`: quiet NaNs are invalid.
pub fn fcom<const POPS: u8, const SIGNALING: bool>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let memory = insn.op_count() > 0 && insn.op_kind(0) == OpKind::Memory;
    let source = if memory { Some(cpu.x87_source(insn)?) } else { None };
    cpu.x87_note(insn);
    let other = match insn.op_count() {
        _ if memory => 0,
        0 => 1,
        n => Cpu::st_number(insn, n - 1),
    };
    if cpu.st_empty(0) || (!memory && cpu.st_empty(other)) {
        let masked = cpu.stack_fault(false);
        cpu.set_condition(CODES, CODES);
        if masked {
            (0..POPS).for_each(|_| cpu.st_pop());
        }
        return Ok(());
    }
    let mut env = cpu.x87_env();
    let b = source.unwrap_or_else(|| cpu.st_unpacked(other));
    let relation = ops::compare(cpu.st_unpacked(0), b, SIGNALING, &mut env);
    let go = cpu.x87_finish(&env);
    cpu.set_condition(CODES, condition(relation));
    if go {
        (0..POPS).for_each(|_| cpu.st_pop());
    }
    Ok(())
}

/// Compare into ZF, PF, CF.
pub fn fcomi<const POP: bool, const SIGNALING: bool>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    let other = Cpu::st_number(insn, insn.op_count().max(1) - 1);
    let (relation, go) = if cpu.st_empty(0) || cpu.st_empty(other) {
        (Relation::Unordered, cpu.stack_fault(false))
    } else {
        let mut env = cpu.x87_env();
        let relation = ops::compare(cpu.st_unpacked(0), cpu.st_unpacked(other), SIGNALING, &mut env);
        let c1 = cpu.state.x87.status & status::C1;
        let go = cpu.x87_finish(&env);
        if cpu.model().vendor == Vendor::Amd {
            // AMD processors leave C1 alone.
            cpu.set_condition(status::C1, c1);
        }
        (relation, go)
    };
    let set = match relation {
        Relation::Greater => Rflags::empty(),
        Relation::Less => Rflags::CF,
        Relation::Equal => Rflags::ZF,
        Relation::Unordered => Rflags::ZF | Rflags::PF | Rflags::CF,
    };
    cpu.state.set_status(Rflags::STATUS.bits(), set.bits());
    if go && POP {
        cpu.st_pop();
    }
    Ok(())
}

pub fn ftst(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    if cpu.st_empty(0) {
        cpu.stack_fault(false);
        cpu.set_condition(CODES, CODES);
        return Ok(());
    }
    let mut env = cpu.x87_env();
    let relation = ops::compare(cpu.st_unpacked(0), Unpacked::zero(false), true, &mut env);
    cpu.x87_finish(&env);
    cpu.set_condition(CODES, condition(relation));
    Ok(())
}

pub fn fxam(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    let v = cpu.st(0);
    let u = cpu.st_unpacked(0);
    let class = if cpu.st_empty(0) {
        status::C3 | status::C0
    } else {
        match u.class {
            Class::Unsupported => 0,
            Class::Quiet | Class::Signaling => status::C0,
            Class::Finite if u.denormal => status::C3 | status::C2,
            Class::Finite => status::C2,
            Class::Infinity => status::C2 | status::C0,
            Class::Zero => status::C3,
        }
    };
    let sign = if v.sign_exponent >> 15 != 0 { status::C1 } else { 0 };
    cpu.set_condition(status::CONDITION, class | sign);
    Ok(())
}

pub fn fcmov(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    let from = Cpu::st_number(insn, 1);
    if cpu.st_empty(0) || cpu.st_empty(from) {
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    use Mnemonic as M;
    let any = |f: Rflags| cpu.state.rflags() & f.bits() != 0;
    let moves = match insn.mnemonic() {
        M::Fcmovb => any(Rflags::CF),
        M::Fcmove => any(Rflags::ZF),
        M::Fcmovbe => any(Rflags::CF | Rflags::ZF),
        M::Fcmovu => any(Rflags::PF),
        M::Fcmovnb => !any(Rflags::CF),
        M::Fcmovne => !any(Rflags::ZF),
        M::Fcmovnbe => !any(Rflags::CF | Rflags::ZF),
        _ => !any(Rflags::PF),
    };
    if moves {
        let v = cpu.st(from);
        cpu.set_st(0, v);
    }
    Ok(())
}
