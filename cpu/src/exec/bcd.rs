//! Decimal adjustment (SDM vol. 1, Decimal Arithmetic Instructions). Not in 64-bit mode, where iced calls them invalid.

use iced_x86::{Instruction, Mnemonic as M, Register};
use undervisor_core::{Exception, Vector};

use crate::cpu::{Cpu, Exec};
use crate::exec::Row;
use crate::exec::int_math::{self as math, STATUS, szp};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::new(match insn.mnemonic() {
        M::Daa => daa,
        M::Das => das,
        M::Aaa => aaa,
        M::Aas => aas,
        M::Aam => aam,
        M::Aad => aad,
        _ => return None,
    }))
}

fn decimal(cpu: &mut Cpu, f: fn(u8, u64) -> (u8, u64)) -> Exec {
    let (al, flags) = f(cpu.gpr(Register::AL) as u8, cpu.state.rflags());
    cpu.set_gpr(Register::AL, al as u64);
    cpu.state.set_status(STATUS, flags);
    Ok(())
}

fn daa(cpu: &mut Cpu, _: &Instruction) -> Exec {
    decimal(cpu, math::daa)
}
fn das(cpu: &mut Cpu, _: &Instruction) -> Exec {
    decimal(cpu, math::das)
}

fn ascii(cpu: &mut Cpu, add: bool) -> Exec {
    let (ax, flags) = math::ascii_adjust(cpu.gpr(Register::AX) as u16, cpu.state.rflags(), add);
    cpu.set_gpr(Register::AX, ax as u64);
    cpu.state.set_status(STATUS, flags);
    Ok(())
}

fn aaa(cpu: &mut Cpu, _: &Instruction) -> Exec {
    ascii(cpu, true)
}
fn aas(cpu: &mut Cpu, _: &Instruction) -> Exec {
    ascii(cpu, false)
}

fn aam(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let base = insn.immediate8();
    let al = cpu.gpr(Register::AL) as u8;
    let (Some(tens), Some(ones)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(cpu.raise(Exception::new(Vector::DE)));
    };
    cpu.set_gpr(Register::AX, (tens as u64) << 8 | ones as u64);
    cpu.state.set_status(STATUS, szp(ones as u64, 8));
    Ok(())
}

fn aad(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let tens = cpu.gpr(Register::AH) as u8;
    let al = (cpu.gpr(Register::AL) as u8).wrapping_add(tens.wrapping_mul(insn.immediate8()));
    cpu.set_gpr(Register::AX, al as u64);
    cpu.state.set_status(STATUS, szp(al as u64, 8));
    Ok(())
}
