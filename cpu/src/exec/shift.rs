//! Shifts and rotates, BMI2's among them (SDM vol. 2: SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD, SARX/SHLX/SHRX, RORX).

use iced_x86::{Instruction, Mnemonic as M};

use crate::cpu::{Cpu, Exec};
use crate::exec::int_math::{self as math, Outcome};
use crate::exec::{Row, operand_size};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::new(match insn.mnemonic() {
        M::Shl | M::Sal => shl,
        M::Shr => shr,
        M::Sar => sar,
        M::Rol => rol,
        M::Ror => ror,
        M::Rcl => rcl,
        M::Rcr => rcr,
        M::Shld => shld,
        M::Shrd => shrd,
        M::Shlx => shlx,
        M::Shrx => shrx,
        M::Sarx => sarx,
        M::Rorx => rorx,
        _ => return None,
    }))
}

/// Common frame: a masked count of zero changes neither flags nor value (a 32-bit register still has its upper half
/// cleared; memory must be writable all the same).
fn shift(cpu: &mut Cpu, insn: &Instruction, f: impl Fn(u64, u32, u32, u64) -> Outcome) -> Exec {
    let bits = 8 * operand_size(insn, 0) as u32;
    let count = math::shift_count(cpu.operand(insn, insn.op_count() - 1)?, bits);
    let carry = cpu.carry();
    let (place, value) = cpu.modify(insn, 0)?;
    if count == 0 {
        return cpu.put(place, value);
    }
    let outcome = f(value, count, bits, carry);
    cpu.put(place, outcome.value)?;
    cpu.state.set_status(outcome.mask, outcome.flags);
    Ok(())
}

fn shl(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    shift(cpu, insn, |v, n, bits, _| math::shl(v, n, bits))
}
fn shr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    shift(cpu, insn, |v, n, bits, _| math::shr(v, n, bits))
}
fn sar(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    shift(cpu, insn, |v, n, bits, _| math::sar(v, n, bits))
}
fn rol(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    shift(cpu, insn, |v, n, bits, _| math::rol(v, n, bits))
}
fn ror(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    shift(cpu, insn, |v, n, bits, _| math::ror(v, n, bits))
}
fn rcl(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    shift(cpu, insn, math::rcl)
}
fn rcr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    shift(cpu, insn, math::rcr)
}
fn shld(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    double_shift(cpu, insn, math::shld)
}
fn shrd(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    double_shift(cpu, insn, math::shrd)
}

/// SHLD and SHRD. AF is undefined: AMD's processors set it, Intel's clear it.
fn double_shift(cpu: &mut Cpu, insn: &Instruction, f: fn(u64, u64, u64, u32, u32) -> Outcome) -> Exec {
    let amd = cpu.is_amd();
    let source = cpu.gpr(insn.op1_register());
    shift(cpu, insn, |v, n, bits, _| {
        let outcome = f(v, source, if amd { source } else { v }, n, bits);
        Outcome { flags: outcome.flags | if amd { math::AF } else { 0 }, ..outcome }
    })
}

/// BMI2 shifts: three operands, no flags.
fn flagless(cpu: &mut Cpu, insn: &Instruction, f: fn(u64, u32, u32) -> u64) -> Exec {
    let bits = 8 * operand_size(insn, 0) as u32;
    let value = cpu.operand(insn, 1)?;
    let count = math::shift_count(cpu.operand(insn, 2)?, bits);
    cpu.set_gpr(insn.op0_register(), f(value, count, bits));
    Ok(())
}

fn shlx(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    flagless(cpu, insn, |v, n, _| v << n)
}
fn shrx(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    flagless(cpu, insn, |v, n, _| v >> n)
}
fn sarx(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    flagless(cpu, insn, |v, n, bits| (math::sign_extend(v, bits) as i64 >> n) as u64)
}
fn rorx(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    flagless(cpu, insn, |v, n, bits| math::ror(v, n, bits).value)
}
