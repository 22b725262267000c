//! Data transfer: FLD, FST, integers, packed BCD, FXCH, constants.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};
use undervisor_core::{F80, Vendor};

use super::{INDEFINITE, ONE, status};
use crate::cpu::{Cpu, Exec};
use crate::float::ops;
use crate::float::round::pack;
use crate::float::wide::{LN2, LOG2_10, LOG2_E, LOG10_2, PI};
use crate::float::{F32, F64, F80Format, Format, Rounding, Unpacked, flags};

impl Cpu {
    /// Memory operand of arithmetic: m32fp, m64fp, m16int, m32int.
    pub(super) fn x87_source(&mut self, insn: &Instruction) -> Exec<Unpacked> {
        let size = insn.memory_size().size();
        let linear = self.effective_linear(insn, size, false)?;
        let bits = self.read_sized(linear, size)?;
        Ok(match insn.memory_size() {
            MemorySize::Float32 => F32::unpack(bits as u32),
            MemorySize::Float64 => F64::unpack(bits),
            MemorySize::Int16 => Unpacked::from_i64(bits as i16 as i64),
            MemorySize::Int32 => Unpacked::from_i64(bits as i32 as i64),
            _ => Unpacked::from_i64(bits as i64),
        })
    }

    /// Ten bytes at the memory operand.
    fn read_ten(&mut self, insn: &Instruction) -> Exec<F80> {
        let linear = self.effective_linear(insn, 10, false)?;
        let mut b = [0u8; 16];
        self.read_bytes(linear, &mut b[..10])?;
        let wide = u128::from_le_bytes(b);
        Ok(F80 { mantissa: wide as u64, sign_exponent: (wide >> 64) as u16 })
    }

    fn write_ten(&mut self, linear: u64, value: F80) -> Exec {
        let wide = value.mantissa as u128 | (value.sign_exponent as u128) << 64;
        self.write_bytes(linear, &wide.to_le_bytes()[..10])
    }

    /// Push, or answer the stack overflow.
    fn st_load(&mut self, value: F80) {
        if !self.st_empty(7) {
            if self.stack_fault(true) {
                self.st_push(INDEFINITE);
            }
            return;
        }
        self.set_condition(status::C1, 0);
        self.st_push(value);
    }
}

pub fn fld(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let last = insn.op_count() - 1;
    if insn.op_kind(last) != OpKind::Memory {
        cpu.x87_note(insn);
        let from = Cpu::st_number(insn, last);
        if cpu.st_empty(from) {
            if cpu.stack_fault(false) {
                cpu.st_push(INDEFINITE);
            }
        } else {
            let v = cpu.st(from);
            cpu.st_load(v);
        }
        return Ok(());
    }
    if insn.memory_size() == MemorySize::Float80 {
        let v = cpu.read_ten(insn)?;
        cpu.x87_note(insn);
        cpu.st_load(v);
        return Ok(());
    }
    let source = cpu.x87_source(insn)?;
    cpu.x87_note(insn);
    if !cpu.st_empty(7) {
        cpu.st_load(INDEFINITE);
        return Ok(());
    }
    let mut env = cpu.x87_env_full();
    let raw = ops::convert(source, &mut env);
    let v = pack::<F80Format>(raw, &mut env);
    // AMD processors load a denormal even if that exception is unmasked.
    let loads = cpu.x87_finish(&env) || (cpu.model().vendor == Vendor::Amd && env.flags == flags::DE);
    if loads {
        cpu.st_push(v);
    }
    Ok(())
}

pub fn fild(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let source = cpu.x87_source(insn)?;
    cpu.x87_note(insn);
    let mut env = cpu.x87_env_full();
    let v = pack::<F80Format>(source.into(), &mut env);
    cpu.st_load(v);
    Ok(())
}

pub fn fbld(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let packed = cpu.read_ten(insn)?;
    cpu.x87_note(insn);
    let digits = packed.mantissa as u128 | (packed.sign_exponent as u128 & 0xff) << 64;
    let value = (0..18).rev().fold(0u64, |v, i| v.wrapping_mul(10).wrapping_add((digits >> (4 * i)) as u64 & 15));
    let u = Unpacked { sign: packed.sign_exponent >> 15 != 0, ..Unpacked::from_u64(value) };
    let mut env = cpu.x87_env_full();
    let v = pack::<F80Format>(u.into(), &mut env);
    cpu.st_load(v);
    Ok(())
}

pub fn fst<const POP: bool>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    if insn.op_kind(0) != OpKind::Memory {
        cpu.x87_note(insn);
        let to = Cpu::st_number(insn, 0);
        if cpu.st_empty(0) {
            if !cpu.stack_fault(false) {
                return Ok(());
            }
            cpu.set_st(to, INDEFINITE);
        } else {
            cpu.set_condition(status::C1, 0);
            let v = cpu.st(0);
            cpu.set_st(to, v);
        }
        if POP {
            cpu.st_pop();
        }
        return Ok(());
    }
    let size = insn.memory_size().size();
    let linear = cpu.effective_linear(insn, size, true)?;
    cpu.probe_write(linear, size)?;
    let empty = cpu.st_empty(0);
    let mut env = cpu.x87_env();
    // Stores do not report denormal operands.
    let source = if empty { Unpacked::INDEFINITE } else { Unpacked { denormal: false, ..cpu.st_unpacked(0) } };
    if empty {
        env.raise(flags::IE);
    }
    let write = |env: &crate::float::Env| env.unmasked() & !flags::PE == 0;
    match insn.memory_size() {
        MemorySize::Float80 => {
            if write(&env) {
                let v = if empty { INDEFINITE } else { cpu.st(0) };
                cpu.write_ten(linear, v)?;
            }
        }
        MemorySize::Float32 => {
            let raw = ops::convert(source, &mut env);
            let v = pack::<F32>(raw, &mut env);
            if write(&env) {
                cpu.write_linear(linear, v)?;
            }
        }
        _ => {
            let raw = ops::convert(source, &mut env);
            let v = pack::<F64>(raw, &mut env);
            if write(&env) {
                cpu.write_linear(linear, v)?;
            }
        }
    }
    cpu.x87_note(insn);
    finish_store(cpu, empty, &env, POP);
    Ok(())
}

/// After a store to memory: exceptions, then the pop.
fn finish_store(cpu: &mut Cpu, empty: bool, env: &crate::float::Env, pop: bool) {
    if empty {
        cpu.stack_fault(false);
    } else {
        cpu.x87_finish_store(env);
    }
    if pop && env.unmasked() & !flags::PE == 0 {
        cpu.st_pop();
    }
}

/// FSTP without a stack-underflow exception (undocumented D9 D8+i).
pub fn fstpnce(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    let to = Cpu::st_number(insn, 0);
    let v = cpu.st(0);
    if !cpu.st_empty(0) {
        cpu.set_st(to, v);
    }
    cpu.set_condition(status::C1, 0);
    cpu.st_pop();
    Ok(())
}

pub fn fist<const POP: bool, const TRUNCATE: bool>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let size = insn.memory_size().size();
    let linear = cpu.effective_linear(insn, size, true)?;
    cpu.probe_write(linear, size)?;
    let empty = cpu.st_empty(0);
    let mut env = cpu.x87_env();
    if TRUNCATE {
        env = env.with_rounding(Rounding::Zero);
    }
    let source = if empty { Unpacked::INDEFINITE } else { cpu.st_unpacked(0) };
    let v = ops::to_signed(source, 8 * size as u32, &mut env);
    if env.unmasked() & !flags::PE == 0 {
        cpu.write_sized(linear, size, v as u64)?;
    }
    cpu.x87_note(insn);
    finish_store(cpu, empty, &env, POP);
    Ok(())
}

pub fn fbstp(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    const LIMIT: u64 = 1_000_000_000_000_000_000;
    const BCD_INDEFINITE: F80 = F80 { mantissa: 0xc000_0000_0000_0000, sign_exponent: 0xffff };
    cpu.x87_enter()?;
    let linear = cpu.effective_linear(insn, 10, true)?;
    cpu.probe_write(linear, 10)?;
    let empty = cpu.st_empty(0);
    let mut env = cpu.x87_env();
    let source = if empty { Unpacked::INDEFINITE } else { cpu.st_unpacked(0) };
    let value = ops::to_signed(source, 64, &mut env);
    let packed = if env.flags & flags::IE != 0 || value.unsigned_abs() >= LIMIT {
        env.flags = flags::IE;
        BCD_INDEFINITE
    } else {
        let mut rest = value.unsigned_abs();
        let mut digits = 0u128;
        for i in 0..18 {
            digits |= ((rest % 10) as u128) << (4 * i);
            rest /= 10;
        }
        let sign = if source.sign { 0x8000 } else { 0 };
        F80 { mantissa: digits as u64, sign_exponent: (digits >> 64) as u16 | sign }
    };
    if env.unmasked() & !flags::PE == 0 {
        cpu.write_ten(linear, packed)?;
    }
    cpu.x87_note(insn);
    finish_store(cpu, empty, &env, true);
    Ok(())
}

pub fn fxch(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    let other = Cpu::st_number(insn, insn.op_count().max(1) - 1);
    let (mut a, mut b) = (cpu.st(0), cpu.st(other));
    let (ea, eb) = (cpu.st_empty(0), cpu.st_empty(other));
    if ea || eb {
        if !cpu.stack_fault(false) {
            return Ok(());
        }
        if ea {
            a = INDEFINITE;
        }
        if eb {
            b = INDEFINITE;
        }
    } else {
        cpu.set_condition(status::C1, 0);
    }
    cpu.set_st(0, b);
    cpu.set_st(other, a);
    Ok(())
}

/// FLD1, FLDPI and the others: the constant rounded as RC says.
pub fn constant(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    let wide = match insn.mnemonic() {
        Mnemonic::Fldl2t => LOG2_10,
        Mnemonic::Fldl2e => LOG2_E,
        Mnemonic::Fldpi => PI,
        Mnemonic::Fldlg2 => LOG10_2,
        Mnemonic::Fldln2 => LN2,
        Mnemonic::Fld1 => {
            cpu.st_load(ONE);
            return Ok(());
        }
        _ => {
            cpu.st_load(F80::default());
            return Ok(());
        }
    };
    let v = pack::<F80Format>(wide.to_raw(), &mut cpu.x87_env_full());
    cpu.st_load(v);
    Ok(())
}
