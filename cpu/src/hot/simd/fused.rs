//! The commonest instructions with a memory source in one op instead of two. The address is in form FULL always (BASE and INDEX
//! are cases of it).

use std::marker::PhantomData;

use iced_x86::Mnemonic;

use super::forms::{Form, general, set_legacy, set_vex, vector};
use crate::access::{Fast, Slow, Way};
use crate::cpu::{Cpu, Exec};
use crate::dispatch::next;
use crate::float::{F32, F64};
use crate::hot::operand::{address, form};
use crate::hot::{Hot, abandon, hot};
use crate::op::{Flow, Handler, OpRef};
use crate::simd::aes::*;
use crate::simd::compare::*;
use crate::simd::float::*;
use crate::simd::integer::*;
use crate::simd::logic::*;
use crate::simd::shuffle::*;
use crate::simd::{In, Lanes};

/// A lane function whose second source is memory of full width.
struct FromMemory<O, const N: usize, const VEX: bool>(PhantomData<O>);

impl<O: Lanes, const N: usize, const VEX: bool> Hot for FromMemory<O, N, VEX> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let linear = address::<{ form::FULL }>(cpu, op);
        if !VEX && linear & 15 != 0 {
            return Err(W::general(cpu));
        }
        let b = W::read_words::<N>(cpu, linear)?;
        let r = O::lanes(&operands(cpu, op, b));
        put::<N, VEX>(cpu, op, r);
        Ok(())
    }
}

#[inline(always)]
fn operands<const N: usize>(cpu: &Cpu, op: OpRef, b: [u64; N]) -> In<N> {
    In { old: vector(cpu, op.a), a: vector(cpu, op.d), b, c: vector(cpu, 0), imm: op.extra }
}

#[inline(always)]
fn put<const N: usize, const VEX: bool>(cpu: &mut Cpu, op: OpRef, r: [u64; N]) {
    if VEX { set_vex(cpu, op.a, r) } else { set_legacy(cpu, op.a, [r[0], r[1 % N]]) }
}

#[inline(always)]
fn read<W: Way, const BYTES: usize, const N: usize>(cpu: &mut Cpu, linear: u64) -> Result<[u64; N], W::Miss> {
    let mut b = [0; N];
    match BYTES {
        4 => b[0] = W::read::<u32>(cpu, linear)? as u64,
        8 => b[0] = W::read::<u64>(cpu, linear)?,
        _ => b = W::read_words::<N>(cpu, linear)?,
    }
    Ok(b)
}

fn float<O: Float, const BYTES: usize, const N: usize, const VEX: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let linear = address::<{ form::FULL }>(cpu, op);
    if !VEX && BYTES == 16 && linear & 15 != 0 {
        return general(cpu, op);
    }
    if cpu.state.mxcsr & QUICK.0 == QUICK.1
        && let Ok(b) = read::<Fast, BYTES, N>(cpu, linear)
        && let Some(r) = O::quick(&operands(cpu, op, b))
    {
        put::<N, VEX>(cpu, op, r);
        return next(cpu, op);
    }
    finish::<O, BYTES, N, VEX>(cpu, op)
}

#[inline(never)]
fn finish<O: Float, const BYTES: usize, const N: usize, const VEX: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match full::<O, BYTES, N, VEX>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(stop) => abandon(cpu, op, stop),
    }
}

#[inline(never)]
fn full<O: Float, const BYTES: usize, const N: usize, const VEX: bool>(cpu: &mut Cpu, op: OpRef) -> Exec {
    let linear = address::<{ form::FULL }>(cpu, op);
    let b = match read::<Fast, BYTES, N>(cpu, linear) {
        Ok(b) => b,
        Err(()) => {
            cpu.begin(op);
            let b = read::<Slow, BYTES, N>(cpu, linear);
            cpu.current = std::ptr::null();
            b?
        }
    };
    let mut env = cpu.sse_env();
    let r = O::float(&operands(cpu, op, b), &mut env);
    cpu.sse_commit(&env)?;
    put::<N, VEX>(cpu, op, r);
    Ok(())
}

fn lanes<O: Lanes>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Mmx => return None,
        Form::Sse => hot::<FromMemory<O, 2, false>>,
        Form::Vex128 => hot::<FromMemory<O, 2, true>>,
        Form::Vex256 => hot::<FromMemory<O, 4, true>>,
    })
}

fn packed<O: Float>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Mmx => return None,
        Form::Sse => float::<O, 16, 2, false>,
        Form::Vex128 => float::<O, 16, 2, true>,
        Form::Vex256 => float::<O, 32, 4, true>,
    })
}

fn scalar<O: Float, const BYTES: usize>(form: Form) -> Option<Handler> {
    Some(match form {
        Form::Sse => float::<O, BYTES, 2, false>,
        Form::Vex128 => float::<O, BYTES, 2, true>,
        _ => return None,
    })
}

/// The handler of an instruction with a memory source, if it has one of this kind.
pub fn handler(m: Mnemonic, f: Form) -> Option<Handler> {
    use Mnemonic as M;
    match m {
        M::Pand | M::Vpand | M::Andps | M::Vandps | M::Andpd | M::Vandpd => lanes::<Pand>(f),
        M::Pandn | M::Vpandn | M::Andnps | M::Vandnps | M::Andnpd | M::Vandnpd => lanes::<Pandn>(f),
        M::Por | M::Vpor | M::Orps | M::Vorps | M::Orpd | M::Vorpd => lanes::<Por>(f),
        M::Pxor | M::Vpxor | M::Xorps | M::Vxorps | M::Xorpd | M::Vxorpd => lanes::<Pxor>(f),
        M::Paddb | M::Vpaddb => lanes::<Paddb>(f),
        M::Paddd | M::Vpaddd => lanes::<Paddd>(f),
        M::Paddq | M::Vpaddq => lanes::<Paddq>(f),
        M::Psubb | M::Vpsubb => lanes::<Psubb>(f),
        M::Psubd | M::Vpsubd => lanes::<Psubd>(f),
        M::Pcmpeqb | M::Vpcmpeqb => lanes::<Pcmpeqb>(f),
        M::Pcmpeqd | M::Vpcmpeqd => lanes::<Pcmpeqd>(f),
        M::Pminub | M::Vpminub => lanes::<Pminub>(f),
        M::Pshufb | M::Vpshufb => lanes::<Pshufb>(f),
        M::Pshufd | M::Vpshufd => lanes::<Pshufd>(f),
        M::Aesenc | M::Vaesenc => lanes::<Aesenc>(f),
        M::Aesenclast | M::Vaesenclast => lanes::<Aesenclast>(f),
        M::Aesdec | M::Vaesdec => lanes::<Aesdec>(f),
        M::Aesdeclast | M::Vaesdeclast => lanes::<Aesdeclast>(f),
        M::Addps | M::Vaddps => packed::<Packed<F32, Add>>(f),
        M::Addpd | M::Vaddpd => packed::<Packed<F64, Add>>(f),
        M::Subpd | M::Vsubpd => packed::<Packed<F64, Sub>>(f),
        M::Mulps | M::Vmulps => packed::<Packed<F32, Mul>>(f),
        M::Mulpd | M::Vmulpd => packed::<Packed<F64, Mul>>(f),
        M::Addss | M::Vaddss => scalar::<Scalar<F32, Add>, 4>(f),
        M::Addsd | M::Vaddsd => scalar::<Scalar<F64, Add>, 8>(f),
        M::Subss | M::Vsubss => scalar::<Scalar<F32, Sub>, 4>(f),
        M::Subsd | M::Vsubsd => scalar::<Scalar<F64, Sub>, 8>(f),
        M::Mulss | M::Vmulss => scalar::<Scalar<F32, Mul>, 4>(f),
        M::Mulsd | M::Vmulsd => scalar::<Scalar<F64, Mul>, 8>(f),
        M::Divsd | M::Vdivsd => scalar::<Scalar<F64, Div>, 8>(f),
        M::Vfmadd231pd => packed::<Fma<F64, { order::O231 }, { sign::FMADD }>>(f),
        M::Vfmadd231sd => scalar::<FmaScalar<F64, { order::O231 }, { sign::FMADD }>, 8>(f),
        _ => None,
    }
}
