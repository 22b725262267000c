//! Arithmetic: FADD, FSUB, FMUL, FDIV and kin, FSQRT, FRNDINT, FSCALE, FXTRACT, FPREM, FCHS, FABS.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{INDEFINITE, status};
use crate::cpu::{Cpu, Exec};
use crate::float::ops::{self, special, special1};
use crate::float::round::{Raw, pack};
use crate::float::unpacked::note_denormals;
use crate::float::{Class, Env, F80Format, Unpacked, flags};

/// OP: 0 add, 1 multiply, 4 subtract, 5 reversed, 6 divide, 7 reversed (as in the opcode's reg field).
pub fn arithmetic<const OP: u8>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let memory = insn.op_kind(0) == OpKind::Memory;
    let source = if memory { Some(cpu.x87_source(insn)?) } else { None };
    cpu.x87_note(insn);
    let to = if memory { 0 } else { Cpu::st_number(insn, 0) };
    let from = if memory { 0 } else { Cpu::st_number(insn, 1) };
    let pops = matches!(
        insn.mnemonic(),
        Mnemonic::Faddp | Mnemonic::Fmulp | Mnemonic::Fsubp | Mnemonic::Fsubrp | Mnemonic::Fdivp | Mnemonic::Fdivrp
    );
    if cpu.st_empty(to) || (!memory && cpu.st_empty(from)) {
        if cpu.stack_fault(false) {
            cpu.set_st(to, INDEFINITE);
            if pops {
                cpu.st_pop();
            }
        }
        return Ok(());
    }
    let a = cpu.st_unpacked(to);
    let b = source.unwrap_or_else(|| cpu.st_unpacked(from));
    let mut env = cpu.x87_env();
    let raw = match OP {
        0 => ops::add(a, b, &mut env),
        1 => ops::mul(a, b, &mut env),
        4 => ops::sub(a, b, &mut env),
        5 => ops::sub(b, a, &mut env),
        6 => ops::div(a, b, &mut env),
        _ => ops::div(b, a, &mut env),
    };
    let result = pack::<F80Format>(raw, &mut env);
    if cpu.x87_finish(&env) {
        cpu.set_st(to, result);
        if pops {
            cpu.st_pop();
        }
    }
    Ok(())
}

/// An operation on ST(0) alone.
fn unary(cpu: &mut Cpu, insn: &Instruction, mut env: Env, f: impl FnOnce(Unpacked, &mut Env) -> Raw) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    if cpu.st_empty(0) {
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let raw = f(cpu.st_unpacked(0), &mut env);
    let rounded = env.rounded_up;
    let result = pack::<F80Format>(raw, &mut env);
    env.rounded_up |= rounded;
    if cpu.x87_finish(&env) {
        cpu.set_st(0, result);
    }
    Ok(())
}

pub fn fsqrt(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let env = cpu.x87_env();
    unary(cpu, insn, env, ops::sqrt)
}

pub fn frndint(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let env = cpu.x87_env_full();
    unary(cpu, insn, env, |a, env| {
        note_denormals(env, &[&a]);
        ops::round_integral(a, env)
    })
}

/// ST(0) × 2^trunc(ST(1)).
fn scale(a: Unpacked, b: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special(&a, &b, env) {
        return r;
    }
    if b.is_infinite() {
        if (a.is_zero() && !b.sign) || (a.is_infinite() && b.sign) {
            return ops::invalid(env);
        }
        note_denormals(env, &[&a]);
        return if b.sign { Unpacked::zero(a.sign).into() } else { Unpacked::infinity(a.sign).into() };
    }
    note_denormals(env, &[&a, &b]);
    if a.class != Class::Finite || b.is_zero() {
        return a.into();
    }
    let n = match b.exponent {
        ..=-1 => 0,
        0..=16 => (b.significand >> (63 - b.exponent)) as i32,
        _ => 0x2_0000,
    };
    Raw { exponent: a.exponent + if b.sign { -n } else { n }, ..a.into() }
}

pub fn fscale(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    if cpu.st_empty(0) || cpu.st_empty(1) {
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let mut env = cpu.x87_env_full();
    let raw = scale(cpu.st_unpacked(0), cpu.st_unpacked(1), &mut env);
    let result = pack::<F80Format>(raw, &mut env);
    if cpu.x87_finish(&env) {
        cpu.set_st(0, result);
    }
    Ok(())
}

pub fn fxtract(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    let (under, over) = (cpu.st_empty(0), !cpu.st_empty(7));
    if under || over {
        if cpu.stack_fault(!under) {
            cpu.set_st(0, INDEFINITE);
            cpu.st_push(INDEFINITE);
        }
        return Ok(());
    }
    let mut env = cpu.x87_env_full();
    let a = cpu.st_unpacked(0);
    let (exponent, significand): (Raw, Raw) = if let Some(r) = special1(&a, &mut env) {
        (r, r)
    } else {
        match a.class {
            Class::Zero => {
                env.raise(flags::ZE);
                (Unpacked::infinity(true).into(), a.into())
            }
            Class::Infinity => (Unpacked::infinity(false).into(), a.into()),
            _ => {
                note_denormals(&mut env, &[&a]);
                (Unpacked::from_i64(a.exponent as i64).into(), Unpacked { exponent: 0, ..a }.into())
            }
        }
    };
    let (exponent, significand) = (pack::<F80Format>(exponent, &mut env), pack::<F80Format>(significand, &mut env));
    if cpu.x87_finish(&env) {
        cpu.set_st(0, exponent);
        cpu.st_push(significand);
    }
    Ok(())
}

/// Remainder: the value, and the low bits of the quotient (`None`: the reduction is not complete). Where there is no quotient,
/// with NaNs and invalid operands, the outer `None`.
fn remainder(a: Unpacked, b: Unpacked, nearest: bool, env: &mut Env) -> (Raw, Option<Option<u64>>) {
    if let Some(r) = special(&a, &b, env) {
        return (r, None);
    }
    if a.is_infinite() || b.is_zero() {
        return (ops::invalid(env), None);
    }
    note_denormals(env, &[&a, &b]);
    if a.is_zero() || b.is_infinite() {
        return (a.into(), Some(Some(0)));
    }
    let distance = a.exponent - b.exponent;
    if distance < -1 || (distance < 0 && !nearest) {
        return (a.into(), Some(Some(0)));
    }
    let divisor = b.significand as u128;
    if distance >= 64 {
        // Partial: 32 to 63 bits of the quotient at a time.
        let n = distance & 0x1f | 0x20;
        let rest = ((a.significand as u128) << n) % divisor;
        return (Raw::normalised(a.sign, a.exponent - n + 64, rest), Some(None));
    }
    // In units of b's last place, or half of one if a is the smaller.
    let (numerator, divisor, unit) = if distance < 0 {
        (a.significand as u128, divisor << 1, a.exponent)
    } else {
        ((a.significand as u128) << distance, divisor, b.exponent)
    };
    let mut quotient = numerator / divisor;
    let mut rest = numerator % divisor;
    let mut sign = a.sign;
    if nearest && (rest * 2 > divisor || (rest * 2 == divisor && quotient & 1 != 0)) {
        quotient += 1;
        rest = divisor - rest;
        sign = !sign;
    }
    if rest == 0 {
        sign = a.sign;
    }
    (Raw::normalised(sign, unit + 64, rest), Some(Some(quotient as u64)))
}

pub fn fprem<const NEAREST: bool>(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    if cpu.st_empty(0) || cpu.st_empty(1) {
        cpu.set_condition(status::C2, 0);
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let mut env = cpu.x87_env_full();
    let (raw, quotient) = remainder(cpu.st_unpacked(0), cpu.st_unpacked(1), NEAREST, &mut env);
    let result = pack::<F80Format>(raw, &mut env);
    if !cpu.x87_finish(&env) {
        cpu.set_condition(status::C2, 0);
        return Ok(());
    }
    cpu.set_st(0, result);
    match quotient {
        Some(Some(q)) => {
            let bit = |n: u32, c: u16| if q >> n & 1 != 0 { c } else { 0 };
            let condition = bit(2, status::C0) | bit(1, status::C3) | bit(0, status::C1);
            cpu.set_condition(status::CONDITION, condition);
        }
        Some(None) => cpu.set_condition(status::CONDITION, status::C2),
        None => cpu.set_condition(status::C1 | status::C2, 0),
    }
    Ok(())
}

/// Change the sign of ST(0), whatever it holds.
fn sign(cpu: &mut Cpu, insn: &Instruction, f: fn(u16) -> u16) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    if cpu.st_empty(0) {
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    cpu.set_condition(status::C1, 0);
    let mut v = cpu.st(0);
    v.sign_exponent = f(v.sign_exponent);
    cpu.set_st(0, v);
    Ok(())
}

pub fn fchs(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    sign(cpu, insn, |s| s ^ 0x8000)
}
pub fn fabs(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    sign(cpu, insn, |s| s & 0x7fff)
}
