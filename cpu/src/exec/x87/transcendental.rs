//! F2XM1, FYL2X, FYL2XP1, FSIN, FCOS, FSINCOS, FPTAN, FPATAN.

use iced_x86::Instruction;

use super::{INDEFINITE, ONE, status};
use crate::cpu::{Cpu, Exec};
use crate::float::ops::{self, special, special1};
use crate::float::round::{Raw, pack};
use crate::float::transcendental as math;
use crate::float::unpacked::note_denormals;
use crate::float::wide::{HALF_PI, PI, Wide};
use crate::float::{Class, Env, F80Format, Unpacked, flags};

/// 2^x − 1 of ST(0).
pub fn f2xm1(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    if cpu.st_empty(0) {
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let mut env = cpu.x87_env_full();
    let a = cpu.st_unpacked(0);
    let raw = exp2_minus_1(a, &mut env);
    let result = pack::<F80Format>(raw, &mut env);
    if cpu.x87_finish(&env) {
        cpu.set_st(0, result);
    }
    Ok(())
}

fn exp2_minus_1(a: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special1(&a, env) {
        return r;
    }
    match a.class {
        Class::Zero => a.into(),
        Class::Infinity => if a.sign { Unpacked::finite(true, 0, 1 << 63) } else { a }.into(),
        _ => {
            note_denormals(env, &[&a]);
            if a.exponent >= 0 {
                // The result is defined for −1 ≤ x ≤ 1; it is exact at the ends.
                return match (a.exponent == 0 && a.significand == 1 << 63, a.sign) {
                    (true, true) => Unpacked::finite(true, -1, 1 << 63).into(),
                    (true, false) => Unpacked::finite(false, 0, 1 << 63).into(),
                    _ => a.into(),
                };
            }
            math::exp2_minus_1(a).to_raw()
        }
    }
}

/// ST(1) becomes f(ST(0), ST(1)), and the stack is popped.
fn binary(cpu: &mut Cpu, insn: &Instruction, f: fn(Unpacked, Unpacked, &mut Env) -> Raw) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    if cpu.st_empty(0) || cpu.st_empty(1) {
        if cpu.stack_fault(false) {
            cpu.set_st(1, INDEFINITE);
            cpu.st_pop();
        }
        return Ok(());
    }
    let mut env = cpu.x87_env_full();
    let raw = f(cpu.st_unpacked(0), cpu.st_unpacked(1), &mut env);
    let result = pack::<F80Format>(raw, &mut env);
    if cpu.x87_finish(&env) {
        cpu.set_st(1, result);
        cpu.st_pop();
    }
    Ok(())
}

pub fn fyl2x(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, y_log2)
}
pub fn fyl2xp1(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, y_log2_plus_1)
}
pub fn fpatan(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    binary(cpu, insn, arctangent)
}

/// y × log, where the logarithm is a finite value.
fn times(y: Unpacked, log: Wide, exact_log: bool) -> Raw {
    if log.is_zero() || y.is_zero() {
        return Unpacked::zero(y.sign != log.sign).into();
    }
    let product = Wide::from(y) * log;
    let raw = product.to_raw();
    // Powers of two have integral logarithms; the product is then exact in 128 bits.
    if exact_log { Raw { significand: product.significand, ..raw } } else { raw }
}

/// y × log2 x.
fn y_log2(x: Unpacked, y: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special(&x, &y, env) {
        return r;
    }
    if x.sign && !x.is_zero() {
        return ops::invalid(env);
    }
    let one = x.class == Class::Finite && x.exponent == 0 && x.significand == 1 << 63;
    match (x.class, y.class) {
        (Class::Zero, Class::Zero) => ops::invalid(env),
        (Class::Zero, Class::Infinity) => Unpacked::infinity(!y.sign).into(),
        (Class::Zero, _) => {
            env.raise(flags::ZE);
            Unpacked::infinity(!y.sign).into()
        }
        (Class::Infinity, Class::Zero) => ops::invalid(env),
        (Class::Infinity, _) => {
            note_denormals(env, &[&y]);
            y_infinity(y)
        }
        (_, Class::Infinity) if one => ops::invalid(env),
        (_, Class::Infinity) => {
            note_denormals(env, &[&x]);
            Unpacked::infinity(y.sign != (x.exponent < 0)).into()
        }
        _ => {
            note_denormals(env, &[&x, &y]);
            if one {
                return Unpacked::zero(y.sign).into();
            }
            let log = math::log2(x);
            if y.is_zero() {
                return Unpacked::zero(y.sign != log.sign).into();
            }
            times(y, log, x.significand == 1 << 63)
        }
    }
}

fn y_infinity(y: Unpacked) -> Raw {
    Unpacked::infinity(y.sign).into()
}

/// y × log2(1 + x).
fn y_log2_plus_1(x: Unpacked, y: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special(&x, &y, env) {
        return r;
    }
    match (x.class, y.class) {
        (Class::Infinity, _) if x.sign => ops::invalid(env),
        (Class::Infinity, Class::Zero) => ops::invalid(env),
        (Class::Infinity, _) => {
            note_denormals(env, &[&y]);
            y_infinity(y)
        }
        (Class::Zero, Class::Infinity) => ops::invalid(env),
        (Class::Zero, _) => {
            note_denormals(env, &[&y]);
            Unpacked::zero(x.sign != y.sign).into()
        }
        (_, Class::Infinity) => {
            note_denormals(env, &[&x]);
            Unpacked::infinity(x.sign != y.sign).into()
        }
        _ => {
            note_denormals(env, &[&x, &y]);
            if y.is_zero() {
                return Unpacked::zero(x.sign != y.sign).into();
            }
            if x.sign && x.exponent >= 0 {
                // x ≤ −1 is outside the domain.
                return ops::invalid(env);
            }
            times(y, math::log2_plus_1(x), false)
        }
    }
}

/// arctan(y / x) with the quadrant of the point (x, y) (SDM vol. 2, FPATAN Results).
fn arctangent(x: Unpacked, y: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special(&x, &y, env) {
        return r;
    }
    let signed = |w: Wide| Wide { sign: y.sign, ..w }.to_raw();
    let inexact = |env: &mut Env, w: Wide| {
        let _ = env;
        signed(w)
    };
    match (y.class, x.class) {
        (Class::Infinity, Class::Infinity) => {
            let angle = if x.sign { HALF_PI.scale(-1) + HALF_PI } else { HALF_PI.scale(-1) };
            inexact(env, angle)
        }
        (Class::Infinity, _) => {
            note_denormals(env, &[&x]);
            inexact(env, HALF_PI)
        }
        (_, Class::Infinity) => {
            note_denormals(env, &[&y]);
            if x.sign { inexact(env, PI) } else { Unpacked::zero(y.sign).into() }
        }
        (Class::Zero, _) => {
            note_denormals(env, &[&x]);
            if x.sign { inexact(env, PI) } else { Unpacked::zero(y.sign).into() }
        }
        (_, Class::Zero) => {
            note_denormals(env, &[&y]);
            inexact(env, HALF_PI)
        }
        _ => {
            note_denormals(env, &[&x, &y]);
            math::atan2(y, x).to_raw()
        }
    }
}

/// Whether ST(0) lies beyond ±2^63: C2 is set and nothing else happens.
fn out_of_range(a: &Unpacked) -> bool {
    a.class == Class::Finite && a.exponent >= 63
}

fn sine_or_cosine(cpu: &mut Cpu, insn: &Instruction, cosine: bool) -> Exec {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    cpu.set_condition(status::C2 | status::C1, 0);
    if cpu.st_empty(0) {
        if cpu.stack_fault(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let a = cpu.st_unpacked(0);
    if out_of_range(&a) {
        cpu.set_condition(status::C2, status::C2);
        return Ok(());
    }
    let mut env = cpu.x87_env_full();
    let (sin, cos) = both(a, &mut env);
    let result = pack::<F80Format>(if cosine { cos } else { sin }, &mut env);
    if cpu.x87_finish(&env) {
        cpu.set_st(0, result);
    }
    Ok(())
}

fn both(a: Unpacked, env: &mut Env) -> (Raw, Raw) {
    if let Some(r) = special1(&a, env) {
        return (r, r);
    }
    match a.class {
        Class::Zero => (a.into(), Unpacked::finite(false, 0, 1 << 63).into()),
        Class::Infinity => {
            let r = ops::invalid(env);
            (r, r)
        }
        _ => {
            note_denormals(env, &[&a]);
            let (s, c) = math::sin_cos(a);
            (s.to_raw(), c.to_raw())
        }
    }
}

pub fn fsin(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    sine_or_cosine(cpu, insn, false)
}
pub fn fcos(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    sine_or_cosine(cpu, insn, true)
}

/// Before an instruction that replaces ST(0) and pushes: `None` to go on with the value, else it is over.
fn before_push(cpu: &mut Cpu, insn: &Instruction) -> Exec<Option<Unpacked>> {
    cpu.x87_enter()?;
    cpu.x87_note(insn);
    cpu.set_condition(status::C2 | status::C1, 0);
    let (under, over) = (cpu.st_empty(0), !cpu.st_empty(7));
    if under || over {
        if cpu.stack_fault(!under) {
            cpu.set_st(0, INDEFINITE);
            cpu.st_push(INDEFINITE);
        }
        return Ok(None);
    }
    let a = cpu.st_unpacked(0);
    if out_of_range(&a) {
        cpu.set_condition(status::C2, status::C2);
        return Ok(None);
    }
    Ok(Some(a))
}

pub fn fsincos(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let Some(a) = before_push(cpu, insn)? else { return Ok(()) };
    let mut env = cpu.x87_env_full();
    let (sin, cos) = both(a, &mut env);
    let sin = pack::<F80Format>(sin, &mut env);
    let cos = pack::<F80Format>(cos, &mut env);
    if cpu.x87_finish(&env) {
        cpu.set_st(0, sin);
        cpu.st_push(cos);
    }
    Ok(())
}

pub fn fptan(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let Some(a) = before_push(cpu, insn)? else { return Ok(()) };
    let mut env = cpu.x87_env_full();
    let special = special1(&a, &mut env);
    let raw = match (special, a.class) {
        (Some(r), _) => r,
        (None, Class::Zero) => a.into(),
        (None, Class::Infinity) => ops::invalid(&mut env),
        _ => {
            note_denormals(&mut env, &[&a]);
            math::tan(a).to_raw()
        }
    };
    let nan = matches!(raw.class, Class::Quiet | Class::Signaling);
    let result = pack::<F80Format>(raw, &mut env);
    if cpu.x87_finish(&env) {
        cpu.set_st(0, result);
        cpu.st_push(if nan { result } else { ONE });
    }
    Ok(())
}
