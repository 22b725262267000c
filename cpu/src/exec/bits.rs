//! Bit test, scan and count; BMI1 and the rest of BMI2 (SDM vol. 2).

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use crate::cpu::{Cpu, Exec};
use crate::exec::int_math::{self as math, AF, CF, OF, PF, SF, STATUS, ZF, ones, szp};
use crate::exec::{Row, operand_size};
use crate::operand::Place;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(Row::new(match insn.mnemonic() {
        M::Bt => bt,
        M::Bts => bts,
        M::Btr => btr,
        M::Btc => btc,
        M::Bsf => bsf,
        M::Bsr => bsr,
        M::Tzcnt => tzcnt,
        M::Lzcnt => lzcnt,
        M::Popcnt => popcnt,
        M::Andn => andn,
        M::Bextr if insn.op_kind(2) == OpKind::Register => bextr,
        M::Blsi => blsi,
        M::Blsmsk => blsmsk,
        M::Blsr => blsr,
        M::Bzhi => bzhi,
        M::Pdep => pdep,
        M::Pext => pext,
        _ => return None,
    }))
}

/// The operand word that holds the bit, and the bit's number in it. A register offset into memory reaches past the
/// operand: bit n lies in the word n / width away, n signed (SDM vol. 2, BT; Bit Strings).
fn locate(cpu: &mut Cpu, insn: &Instruction, write: bool) -> Exec<(Place, u64, u32)> {
    let size = operand_size(insn, 0);
    let bits = 8 * size as u32;
    let in_register = insn.op_kind(0) == OpKind::Register;
    if in_register || insn.op_kind(1) != OpKind::Register {
        let offset = cpu.operand(insn, 1)? as u32 & (bits - 1);
        let (place, value) = if write || in_register { cpu.modify(insn, 0)? } else { (Place::Nowhere, cpu.operand(insn, 0)?) };
        return Ok((place, value, offset));
    }
    let offset = math::sign_extend(cpu.gpr(insn.op1_register()), bits) as i64;
    let word = offset >> bits.trailing_zeros();
    let displaced = cpu.effective_offset(insn).wrapping_add((word as u64).wrapping_mul(size as u64));
    let displaced = displaced & crate::operand::address_mask(insn);
    let linear = cpu.linear(cpu.effective_segment(insn), displaced, size, write)?;
    let bit = offset as u32 & (bits - 1);
    if write {
        let value = cpu.read_locked(insn, linear, size)?;
        return Ok((Place::Memory { linear, size }, value, bit));
    }
    Ok((Place::Nowhere, cpu.read_sized(linear, size)?, bit))
}

/// Only CF is written: processors leave the flags that the manual calls undefined.
fn bit_test(cpu: &mut Cpu, insn: &Instruction, f: fn(u64, u64) -> u64) -> Exec {
    let (place, value, bit) = locate(cpu, insn, true)?;
    cpu.put(place, f(value, 1 << bit))?;
    cpu.state.set_status(CF, value >> bit & 1);
    Ok(())
}

fn bt(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let (_, value, bit) = locate(cpu, insn, false)?;
    cpu.state.set_status(CF, value >> bit & 1);
    Ok(())
}
fn bts(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    bit_test(cpu, insn, |v, bit| v | bit)
}
fn btr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    bit_test(cpu, insn, |v, bit| v & !bit)
}
fn btc(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    bit_test(cpu, insn, |v, bit| v ^ bit)
}

/// BSF and BSR. A zero source leaves the destination alone (all 64 bits of it) on every recent processor. Of the undefined
/// flags recent processors of both vendors clear all but PF, which is that of the result.
fn scan(cpu: &mut Cpu, insn: &Instruction, f: fn(u64) -> u64) -> Exec {
    let source = cpu.operand(insn, 1)?;
    let mut result = source;
    if source != 0 {
        result = f(source);
        cpu.set_gpr(insn.op0_register(), result);
    }
    let zero = if source == 0 { ZF } else { 0 };
    cpu.state.set_status(STATUS, zero | math::pf(result as u8) & PF);
    Ok(())
}

pub(super) fn bsf(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    scan(cpu, insn, |v| v.trailing_zeros() as u64)
}
pub(super) fn bsr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    scan(cpu, insn, |v| 63 - v.leading_zeros() as u64)
}

fn count(cpu: &mut Cpu, insn: &Instruction, f: fn(u64, u32) -> u64) -> Exec {
    let bits = 8 * operand_size(insn, 0) as u32;
    let source = cpu.operand(insn, 1)?;
    let result = f(source, bits);
    cpu.set_gpr(insn.op0_register(), result);
    let carry = if source == 0 { CF } else { 0 };
    let zero = if result == 0 { ZF } else { 0 };
    cpu.state.set_status(CF | ZF, carry | zero);
    Ok(())
}

fn tzcnt(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    count(cpu, insn, math::trailing)
}
fn lzcnt(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    count(cpu, insn, math::leading)
}

fn popcnt(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let source = cpu.operand(insn, 1)?;
    cpu.set_gpr(insn.op0_register(), source.count_ones() as u64);
    cpu.state.set_status(STATUS, if source == 0 { ZF } else { 0 });
    Ok(())
}

/// Store a BMI result and its flags. AF and PF are undefined; processors clear AF and work out PF.
fn finish(cpu: &mut Cpu, insn: &Instruction, result: u64, carry: bool, mask: u64) {
    let bits = 8 * operand_size(insn, 0) as u32;
    cpu.set_gpr(insn.op0_register(), result);
    let flags = szp(result & ones(bits), bits) | u64::from(carry);
    cpu.state.set_status(mask | AF | PF, flags);
}

const BMI: u64 = CF | OF | SF | ZF;

fn andn(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let b = cpu.operand(insn, 2)?;
    let a = cpu.gpr(insn.op1_register());
    let bits = 8 * operand_size(insn, 0) as u32;
    finish(cpu, insn, !a & b & ones(bits), false, BMI);
    Ok(())
}

fn bextr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let source = cpu.operand(insn, 1)?;
    let control = cpu.gpr(insn.op2_register());
    let (start, length) = (control as u32 & 0xff, control as u32 >> 8 & 0xff);
    let shifted = source.checked_shr(start).unwrap_or(0);
    let result = if length >= 64 { shifted } else { shifted & ((1 << length) - 1) };
    // SF is undefined; processors clear it.
    cpu.set_gpr(insn.op0_register(), result);
    cpu.state.set_status(BMI, if result == 0 { ZF } else { 0 });
    Ok(())
}

fn blsi(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let v = cpu.operand(insn, 1)?;
    finish(cpu, insn, v & v.wrapping_neg(), v != 0, BMI);
    Ok(())
}
fn blsmsk(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let v = cpu.operand(insn, 1)?;
    let bits = 8 * operand_size(insn, 0) as u32;
    finish(cpu, insn, (v ^ v.wrapping_sub(1)) & ones(bits), v == 0, BMI);
    Ok(())
}
fn blsr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let v = cpu.operand(insn, 1)?;
    finish(cpu, insn, v & v.wrapping_sub(1), v == 0, BMI);
    Ok(())
}

fn bzhi(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let v = cpu.operand(insn, 1)?;
    let bits = 8 * operand_size(insn, 0) as u32;
    let from = cpu.gpr(insn.op2_register()) as u32 & 0xff;
    let result = if from < bits { v & ((1 << from) - 1) } else { v };
    finish(cpu, insn, result, from >= bits, BMI);
    Ok(())
}

fn pdep(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let mask = cpu.operand(insn, 2)?;
    let result = math::pdep(cpu.gpr(insn.op1_register()), mask);
    cpu.set_gpr(insn.op0_register(), result);
    Ok(())
}
fn pext(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let mask = cpu.operand(insn, 2)?;
    let result = math::pext(cpu.gpr(insn.op1_register()), mask);
    cpu.set_gpr(insn.op0_register(), result);
    Ok(())
}
