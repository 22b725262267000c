//! Handlers that give a lane function its operands, one for each encoding: MMX, legacy SSE (the destination's upper half stays),
//! VEX.128 (it becomes zero) and VEX.256. Sources are registers always: a memory operand was loaded into [`SCRATCH`] by an op
//! before this one.

use undervisor_core::Vendor;

use crate::access::{Slow, Way};
use crate::cpu::{Cpu, Exec};
use crate::dispatch::next;
use crate::hot::abandon;
use crate::op::{Flow, Handler, Op, OpRef};
use crate::simd::float::{Float, QUICK};
use crate::simd::{In, Lanes};

/// Vector register, beyond those that guests have, that holds a memory operand between the two ops of an instruction.
pub const SCRATCH: u8 = 31;
/// In a field that may name an MMX register, everything from here on is a vector register.
const MMX_REGISTERS: u8 = 8;

/// Status word: an unmasked x87 exception is pending.
const ES: u16 = 1 << 7;

/// Encodings of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Mmx,
    Sse,
    Vex128,
    Vex256,
}

/// The low N words of a vector register.
#[inline(always)]
pub fn vector<const N: usize>(cpu: &Cpu, slot: u8) -> [u64; N] {
    let v = &cpu.state.vec[slot as usize & 31];
    std::array::from_fn(|i| v[i])
}

/// Set the low 128 bits, keeping the rest.
#[inline(always)]
pub fn set_legacy(cpu: &mut Cpu, slot: u8, value: [u64; 2]) {
    let v = &mut cpu.state.vec[slot as usize & 31];
    [v[0], v[1]] = value;
}

/// Set 128 or 256 bits, clearing the rest.
#[inline(always)]
pub fn set_vex<const N: usize>(cpu: &mut Cpu, slot: u8, value: [u64; N]) {
    let v = &mut cpu.state.vec[slot as usize & 31];
    for i in 0..4 {
        v[i] = if i < N { value[i] } else { 0 };
    }
}

/// An MMX register, or the low quadword of the scratch register.
#[inline(always)]
pub fn mm(cpu: &Cpu, slot: u8) -> u64 {
    if slot < MMX_REGISTERS { cpu.state.x87.st[slot as usize & 7].mantissa } else { cpu.state.vec[slot as usize & 31][0] }
}

/// Set an MMX register (all ones in sign and exponent), or the scratch register's low quadword.
#[inline(always)]
pub fn set_mm(cpu: &mut Cpu, slot: u8, value: u64) {
    if slot < MMX_REGISTERS {
        let st = &mut cpu.state.x87.st[slot as usize & 7];
        st.mantissa = value;
        st.sign_exponent = 0xffff;
    } else {
        cpu.state.vec[slot as usize & 31][0] = value;
    }
}

/// Whether an x87 exception is to be reported first; the general form has seen to that (`scale` is [`CHECKED`]).
#[inline(always)]
pub fn pending(cpu: &Cpu, op: &Op) -> bool {
    cpu.state.x87.status & ES != 0 && op.scale != CHECKED
}

/// In `Op::scale` of a step that the general form takes.
pub const CHECKED: u8 = 1;

/// Do the instruction again in its general form.
#[cold]
#[inline(never)]
pub fn general(cpu: &mut Cpu, op: OpRef) -> Flow {
    let stop = Slow::general(cpu);
    abandon(cpu, op, stop)
}

#[inline(always)]
pub fn input<const N: usize>(cpu: &Cpu, op: &Op) -> In<N> {
    In { old: vector(cpu, op.a), a: vector(cpu, op.d), b: vector(cpu, op.b), c: vector(cpu, op.c), imm: op.extra }
}

fn mmx<O: Lanes>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if pending(cpu, &op) {
        return general(cpu, op);
    }
    let x = In { old: [mm(cpu, op.a)], a: [mm(cpu, op.d)], b: [mm(cpu, op.b)], c: [0], imm: op.extra };
    let [r] = O::lanes(&x);
    cpu.mmx_touch();
    set_mm(cpu, op.a, r);
    next(cpu, op)
}

fn sse<O: Lanes>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let r = O::lanes(&input::<2>(cpu, &op));
    set_legacy(cpu, op.a, r);
    next(cpu, op)
}

fn vex<O: Lanes, const N: usize>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let r = O::lanes(&input::<N>(cpu, &op));
    set_vex(cpu, op.a, r);
    next(cpu, op)
}

/// The handler for any encoding.
pub fn any<O: Lanes>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Mmx => mmx::<O>,
        Form::Sse => sse::<O>,
        Form::Vex128 => vex::<O, 2>,
        Form::Vex256 => vex::<O, 4>,
    })
}
/// No MMX form.
pub fn xmm<O: Lanes>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Mmx => return None,
        Form::Sse => sse::<O>,
        Form::Vex128 => vex::<O, 2>,
        Form::Vex256 => vex::<O, 4>,
    })
}
/// As [`xmm`], with the work in a function of its own: for what keeps so much on the stack that the last call would be no jump.
pub fn xmm_apart<O: Lanes>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Mmx => return None,
        Form::Sse => apart::<O, 2, false>,
        Form::Vex128 => apart::<O, 2, true>,
        Form::Vex256 => apart::<O, 4, true>,
    })
}
fn apart<O: Lanes, const N: usize, const VEX: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    work::<O, N, VEX>(cpu, op);
    next(cpu, op)
}
#[inline(never)]
fn work<O: Lanes, const N: usize, const VEX: bool>(cpu: &mut Cpu, op: OpRef) {
    let r = O::lanes(&input::<N>(cpu, &op));
    if VEX {
        set_vex(cpu, op.a, r);
    } else {
        set_legacy(cpu, op.a, [r[0], r[1 % N]]);
    }
}
/// 128 bits only.
pub fn narrow<O: Lanes>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Sse => sse::<O>,
        Form::Vex128 => vex::<O, 2>,
        _ => return None,
    })
}
/// Legacy only.
pub fn legacy<O: Lanes>(form: Form) -> Option<Handler> {
    (form == Form::Sse).then_some(sse::<O>)
}
/// VEX only.
pub fn avx<O: Lanes>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Vex128 => vex::<O, 2>,
        Form::Vex256 => vex::<O, 4>,
        _ => return None,
    })
}
/// 256 bits only.
pub fn wide<O: Lanes>(form: Form) -> Option<Handler> {
    (form == Form::Vex256).then_some(vex::<O, 4>)
}
/// MMX only.
pub fn mmx_only<O: Lanes>(form: Form) -> Option<Handler> {
    (form == Form::Mmx).then_some(mmx::<O>)
}

// ---- floating point ---------------------------------------------------------------------------------------------------------

fn sse_float<O: Float>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.state.mxcsr & QUICK.0 == QUICK.1
        && let Some(r) = O::quick(&input::<2>(cpu, &op))
    {
        set_legacy(cpu, op.a, r);
        return next(cpu, op);
    }
    finish::<O, 2, false>(cpu, op)
}

fn vex_float<O: Float, const N: usize>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.state.mxcsr & QUICK.0 == QUICK.1
        && let Some(r) = O::quick(&input::<N>(cpu, &op))
    {
        set_vex(cpu, op.a, r);
        return next(cpu, op);
    }
    finish::<O, N, true>(cpu, op)
}

/// The way through exceptions; apart, so that the other one needs no stack frame.
#[inline(never)]
fn finish<O: Float, const N: usize, const VEX: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match full::<O, N, VEX>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(stop) => abandon(cpu, op, stop),
    }
}

/// Apart from the handler, so that the address of its environment does not keep the handler's last call from being a jump.
#[inline(never)]
fn full<O: Float, const N: usize, const VEX: bool>(cpu: &mut Cpu, op: OpRef) -> Exec {
    let mut env = cpu.sse_env();
    let r = O::float(&input::<N>(cpu, &op), &mut env);
    cpu.sse_commit(&env)?;
    if VEX {
        set_vex(cpu, op.a, r);
    } else {
        set_legacy(cpu, op.a, [r[0], r[1 % N]]);
    }
    Ok(())
}

/// XMM source, MMX destination: CVTPS2PI and kin.
fn to_mmx<O: Float>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if pending(cpu, &op) {
        return general(cpu, op);
    }
    match full_to_mmx::<O>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(stop) => abandon(cpu, op, stop),
    }
}

#[inline(never)]
fn full_to_mmx<O: Float>(cpu: &mut Cpu, op: OpRef) -> Exec {
    let mut env = cpu.sse_env();
    let r = O::float(&input::<2>(cpu, &op), &mut env);
    // The transition to MMX state is not undone by #XM.
    cpu.mmx_touch();
    cpu.sse_commit(&env)?;
    set_mm(cpu, op.a, r[0]);
    Ok(())
}

/// MMX source, XMM destination: CVTPI2PS.
fn from_mmx<O: Float>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if enters_mmx(cpu, op) && pending(cpu, &op) {
        return general(cpu, op);
    }
    match full_from_mmx::<O>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(stop) => abandon(cpu, op, stop),
    }
}

/// Whether CVTPI2PS enters MMX state: not from memory on AMD processors.
fn enters_mmx(cpu: &Cpu, op: OpRef) -> bool {
    op.b < MMX_REGISTERS || cpu.model().vendor == Vendor::Intel
}

#[inline(never)]
fn full_from_mmx<O: Float>(cpu: &mut Cpu, op: OpRef) -> Exec {
    let mut env = cpu.sse_env();
    let x = In { b: [mm(cpu, op.b), 0], ..input::<2>(cpu, &op) };
    let r = O::float(&x, &mut env);
    if enters_mmx(cpu, op) {
        cpu.mmx_touch();
    }
    cpu.sse_commit(&env)?;
    set_legacy(cpu, op.a, r);
    Ok(())
}

/// MMX source, XMM destination, no exceptions: CVTPI2PD, MOVQ2DQ. From memory it leaves the x87 alone.
fn from_mmx_exact<O: Lanes>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let register = op.b < MMX_REGISTERS;
    if register && pending(cpu, &op) {
        return general(cpu, op);
    }
    let x = In { b: [mm(cpu, op.b), 0], ..input::<2>(cpu, &op) };
    let r = O::lanes(&x);
    if register {
        cpu.mmx_touch();
    }
    set_legacy(cpu, op.a, r);
    next(cpu, op)
}

/// XMM source, MMX destination, no exceptions: MOVDQ2Q.
pub fn movdq2q(cpu: &mut Cpu, op: OpRef) -> Flow {
    if pending(cpu, &op) {
        return general(cpu, op);
    }
    let [r] = vector::<1>(cpu, op.b);
    cpu.mmx_touch();
    set_mm(cpu, op.a, r);
    next(cpu, op)
}

pub fn to_mm<O: Float>() -> Option<Handler> {
    Some(to_mmx::<O>)
}
pub fn from_mm<O: Float>() -> Option<Handler> {
    Some(from_mmx::<O>)
}
pub fn from_mm_exact<O: Lanes>() -> Option<Handler> {
    Some(from_mmx_exact::<O>)
}

/// Floating-point instruction of legacy and VEX encodings.
pub fn float<O: Float>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Mmx => return None,
        Form::Sse => sse_float::<O>,
        Form::Vex128 => vex_float::<O, 2>,
        Form::Vex256 => vex_float::<O, 4>,
    })
}
/// 128 bits only: scalars.
pub fn scalar<O: Float>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Sse => sse_float::<O>,
        Form::Vex128 => vex_float::<O, 2>,
        _ => return None,
    })
}
/// VEX only.
pub fn avx_float<O: Float>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Vex128 => vex_float::<O, 2>,
        Form::Vex256 => vex_float::<O, 4>,
        _ => return None,
    })
}
/// VEX.128 only.
pub fn avx_scalar<O: Float>(form: Form) -> Option<Handler> {
    (form == Form::Vex128).then_some(vex_float::<O, 2>)
}
