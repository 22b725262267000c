//! Flag instructions that any privilege may use: CLC, STC, CMC, CLD, STD, LAHF, SAHF. (CLI and STI are system instructions.)

use iced_x86::{Instruction, Mnemonic as M, Register};
use undervisor_core::Rflags;

use crate::cpu::{Cpu, Exec};
use crate::exec::Row;
use crate::exec::int_math::{AF, CF, PF, SF, ZF};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::new(match insn.mnemonic() {
        M::Clc => clc,
        M::Stc => stc,
        M::Cmc => cmc,
        M::Cld => cld,
        M::Std => std,
        M::Lahf => lahf,
        M::Sahf => sahf,
        _ => return None,
    }))
}

fn clc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.state.set_status(CF, 0);
    Ok(())
}
fn stc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.state.set_status(CF, CF);
    Ok(())
}
fn cmc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let flipped = !cpu.state.rflags();
    cpu.state.set_status(CF, flipped);
    Ok(())
}
fn cld(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.state.set_flag(Rflags::DF, false);
    Ok(())
}
fn std(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.state.set_flag(Rflags::DF, true);
    Ok(())
}
fn lahf(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let flags = cpu.state.rflags() & 0xff;
    cpu.set_gpr(Register::AH, flags);
    Ok(())
}
fn sahf(cpu: &mut Cpu, _: &Instruction) -> Exec {
    let image = cpu.gpr(Register::AH);
    cpu.state.set_status(CF | PF | AF | ZF | SF, image);
    Ok(())
}
