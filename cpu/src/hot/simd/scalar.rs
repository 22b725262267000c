//! Handlers with a general register, an MMX register or the flags on one side.

use undervisor_core::Rflags;
use undervisor_core::regs::{RAX, RCX, RDX};

use super::forms::{Form, SCRATCH, general, input, mm, pending, set_legacy, set_mm, set_vex, vector};
use crate::cpu::{Cpu, Exec};
use crate::dispatch::next;
use crate::float::sse;
use crate::hot::abandon;
use crate::op::{Flow, Handler, OpRef};
use crate::simd::compare::{Mask, test};
use crate::simd::float::{Format, QUICK, relation_flags, to_integer};
use crate::simd::{Lanes, text};

const STATUS: u64 = Rflags::STATUS.bits();

// ---- moves ------------------------------------------------------------------------------------------------------------------

/// MOVD, MOVQ from general register `b`.
fn from_gpr<const WIDE: bool, const VEX: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.state.regs[op.b as usize];
    let v = [if WIDE { v } else { v & 0xffff_ffff }, 0];
    if VEX {
        set_vex(cpu, op.a, v)
    } else {
        set_legacy(cpu, op.a, v)
    }
    next(cpu, op)
}

/// MOVD, MOVQ to general register `a`.
fn to_gpr<const WIDE: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let [v] = vector::<1>(cpu, op.b);
    cpu.state.regs[op.a as usize] = if WIDE { v } else { v & 0xffff_ffff };
    next(cpu, op)
}

/// General register `b` to MMX register `a`.
fn gpr_to_mm<const WIDE: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if pending(cpu, &op) {
        return general(cpu, op);
    }
    let v = cpu.state.regs[op.b as usize];
    cpu.mmx_touch();
    set_mm(cpu, op.a, if WIDE { v } else { v & 0xffff_ffff });
    next(cpu, op)
}

/// MMX register `b` to general register `a`.
fn mm_to_gpr<const WIDE: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if pending(cpu, &op) {
        return general(cpu, op);
    }
    let v = mm(cpu, op.b);
    cpu.mmx_touch();
    cpu.state.regs[op.a as usize] = if WIDE { v } else { v & 0xffff_ffff };
    next(cpu, op)
}

pub fn move_from_gpr(form: Form, wide: bool) -> Handler {
    match (form, wide) {
        (Form::Mmx, false) => gpr_to_mm::<false>,
        (Form::Mmx, true) => gpr_to_mm::<true>,
        (Form::Sse, false) => from_gpr::<false, false>,
        (Form::Sse, true) => from_gpr::<true, false>,
        (_, false) => from_gpr::<false, true>,
        (_, true) => from_gpr::<true, true>,
    }
}
pub fn move_to_gpr(form: Form, wide: bool) -> Handler {
    match (form, wide) {
        (Form::Mmx, false) => mm_to_gpr::<false>,
        (Form::Mmx, true) => mm_to_gpr::<true>,
        (_, false) => to_gpr::<false>,
        (_, true) => to_gpr::<true>,
    }
}

/// General register `b` to the scratch register, for PINSRB and kin.
pub fn stage_gpr(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = cpu.state.regs[op.b as usize];
    set_legacy(cpu, SCRATCH, [v, 0]);
    next(cpu, op)
}

/// PEXTRB and kin to general register `a`.
fn pextr<O: Lanes>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let r = O::lanes(&input::<2>(cpu, &op));
    cpu.state.regs[op.a as usize] = r[0];
    next(cpu, op)
}
/// PEXTRW from an MMX register.
pub fn pextrw_mm(cpu: &mut Cpu, op: OpRef) -> Flow {
    if pending(cpu, &op) {
        return general(cpu, op);
    }
    let v = mm(cpu, op.b) >> (16 * (op.extra as u32 & 3)) & 0xffff;
    cpu.mmx_touch();
    cpu.state.regs[op.a as usize] = v;
    next(cpu, op)
}
pub fn extract_to_gpr<O: Lanes>() -> Handler {
    pextr::<O>
}

fn movmsk<M: Mask, const N: usize>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = vector::<N>(cpu, op.b);
    cpu.state.regs[op.a as usize] = M::mask(&v);
    next(cpu, op)
}
fn movmsk_mm<M: Mask>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if pending(cpu, &op) {
        return general(cpu, op);
    }
    let v = mm(cpu, op.b);
    cpu.mmx_touch();
    cpu.state.regs[op.a as usize] = M::mask(&[v]);
    next(cpu, op)
}
/// PMOVMSKB, MOVMSKPS, MOVMSKPD.
pub fn mask<M: Mask>(form: Form) -> Handler {
    match form {
        Form::Mmx => movmsk_mm::<M>,
        Form::Sse | Form::Vex128 => movmsk::<M, 2>,
        Form::Vex256 => movmsk::<M, 4>,
    }
}

// ---- flags ------------------------------------------------------------------------------------------------------------------

fn ptest<const BITS: u64, const N: usize>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (zf, cf) = test::<BITS, N>(&input::<N>(cpu, &op));
    cpu.state.set_status(STATUS, u64::from(cf) | u64::from(zf) << 6);
    next(cpu, op)
}
/// PTEST, VTESTPS, VTESTPD.
pub fn tests<const BITS: u64>(form: Form) -> Handler {
    if form == Form::Vex256 { ptest::<BITS, 4> } else { ptest::<BITS, 2> }
}

/// COMISS, UCOMISD and kin on `a` and `b`.
fn comi<F: Format, const SIGNALING: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (a, b) = (F::low(vector::<1>(cpu, op.a)[0]), F::low(vector::<1>(cpu, op.b)[0]));
    if F::normal_or_zero(a) & F::normal_or_zero(b) {
        let (less, greater) = (F::less(a, b), F::less(b, a));
        cpu.state.set_status(STATUS, u64::from(less) | u64::from(!less & !greater) << 6);
        return next(cpu, op);
    }
    comi_finish::<F, SIGNALING>(cpu, op)
}
#[inline(never)]
fn comi_finish<F: Format, const SIGNALING: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match comi_full::<F, SIGNALING>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(stop) => abandon(cpu, op, stop),
    }
}
#[inline(never)]
fn comi_full<F: Format, const SIGNALING: bool>(cpu: &mut Cpu, op: OpRef) -> Exec {
    let (a, b) = (F::low(vector::<1>(cpu, op.a)[0]), F::low(vector::<1>(cpu, op.b)[0]));
    let mut env = cpu.sse_env();
    let relation = sse::compare::<F>(a, b, SIGNALING, &mut env);
    cpu.sse_commit(&env)?;
    cpu.state.set_status(STATUS, relation_flags(relation));
    Ok(())
}
pub fn compare<F: Format>(signaling: bool) -> Handler {
    if signaling { comi::<F, true> } else { comi::<F, false> }
}

// ---- conversions ------------------------------------------------------------------------------------------------------------

/// CVTSI2SS and kin: from general register or scratch register `b`.
fn from_integer<F: Format, const WIDE: bool, const VEX: bool, const GPR: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = integer_source::<WIDE, GPR>(cpu, op);
    let exact = size_of::<F::Bits>() == 8 && !WIDE;
    if exact || cpu.state.mxcsr & QUICK.0 == QUICK.1 {
        let mut r = vector::<2>(cpu, op.d);
        F::set_low(&mut r[0], F::from_i64(v));
        if VEX {
            set_vex(cpu, op.a, r)
        } else {
            set_legacy(cpu, op.a, r)
        }
        return next(cpu, op);
    }
    from_integer_finish::<F, WIDE, VEX, GPR>(cpu, op)
}
#[inline(never)]
fn from_integer_finish<F: Format, const WIDE: bool, const VEX: bool, const GPR: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let v = integer_source::<WIDE, GPR>(cpu, op);
    match from_integer_full::<F, VEX>(cpu, op, v) {
        Ok(()) => next(cpu, op),
        Err(stop) => abandon(cpu, op, stop),
    }
}
#[inline(always)]
fn integer_source<const WIDE: bool, const GPR: bool>(cpu: &Cpu, op: OpRef) -> i64 {
    let v = if GPR { cpu.state.regs[op.b as usize] } else { vector::<1>(cpu, op.b)[0] };
    if WIDE { v as i64 } else { v as i32 as i64 }
}
#[inline(never)]
fn from_integer_full<F: Format, const VEX: bool>(cpu: &mut Cpu, op: OpRef, v: i64) -> Exec {
    let mut env = cpu.sse_env();
    let mut r = vector::<2>(cpu, op.d);
    F::set_low(&mut r[0], sse::from_i64::<F>(v, &mut env));
    cpu.sse_commit(&env)?;
    if VEX {
        set_vex(cpu, op.a, r);
    } else {
        set_legacy(cpu, op.a, r);
    }
    Ok(())
}
pub fn integer_to_float<F: Format>(wide: bool, vex: bool, gpr: bool) -> Handler {
    match (wide, vex, gpr) {
        (false, false, false) => from_integer::<F, false, false, false>,
        (false, false, true) => from_integer::<F, false, false, true>,
        (false, true, false) => from_integer::<F, false, true, false>,
        (false, true, true) => from_integer::<F, false, true, true>,
        (true, false, false) => from_integer::<F, true, false, false>,
        (true, false, true) => from_integer::<F, true, false, true>,
        (true, true, false) => from_integer::<F, true, true, false>,
        (true, true, true) => from_integer::<F, true, true, true>,
    }
}

/// CVTSS2SI, CVTTSD2SI and kin to general register `a`.
fn float_to_gpr<F: Format, const WIDE: bool, const TRUNC: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let a = F::low(vector::<1>(cpu, op.b)[0]);
    if TRUNC && cpu.state.mxcsr & QUICK.0 == QUICK.1 {
        let limit = if WIDE { 1i64 << 62 } else { 1i64 << 30 };
        if let Some(v) = F::truncate(a, limit) {
            cpu.state.regs[op.a as usize] = if WIDE { v as u64 } else { v as u32 as u64 };
            return next(cpu, op);
        }
    }
    float_to_gpr_finish::<F, WIDE, TRUNC>(cpu, op)
}
#[inline(never)]
fn float_to_gpr_finish<F: Format, const WIDE: bool, const TRUNC: bool>(cpu: &mut Cpu, op: OpRef) -> Flow {
    match float_to_gpr_full::<F, WIDE, TRUNC>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(stop) => abandon(cpu, op, stop),
    }
}
#[inline(never)]
fn float_to_gpr_full<F: Format, const WIDE: bool, const TRUNC: bool>(cpu: &mut Cpu, op: OpRef) -> Exec {
    let a = F::low(vector::<1>(cpu, op.b)[0]);
    let mut env = cpu.sse_env();
    let v = to_integer::<F, WIDE, TRUNC>(a, &mut env);
    cpu.sse_commit(&env)?;
    cpu.state.regs[op.a as usize] = v;
    Ok(())
}
pub fn float_to_integer<F: Format>(wide: bool, truncate: bool) -> Handler {
    match (wide, truncate) {
        (false, false) => float_to_gpr::<F, false, false>,
        (false, true) => float_to_gpr::<F, false, true>,
        (true, false) => float_to_gpr::<F, true, false>,
        (true, true) => float_to_gpr::<F, true, true>,
    }
}

// ---- string comparisons -----------------------------------------------------------------------------------------------------

/// PCMPESTRI and kin. EXPLICIT: lengths in RAX and RDX, of 64 bits if `c` is 1. MASK: the result goes to XMM0.
struct Text<const EXPLICIT: bool, const MASK: bool, const VEX: bool>;

impl<const EXPLICIT: bool, const MASK: bool, const VEX: bool> Text<EXPLICIT, MASK, VEX> {
    #[inline(never)]
    fn work(cpu: &mut Cpu, op: OpRef) {
        let (a, b) = (vector::<2>(cpu, op.a), vector::<2>(cpu, op.b));
        let control = op.extra as u8;
        let lengths = EXPLICIT.then(|| {
            let length = |slot: u8| text::explicit_length(cpu.state.regs[slot as usize], op.c == 1);
            (length(RAX), length(RDX))
        });
        let found = text::compare(a, b, lengths, control);
        if !MASK {
            cpu.state.regs[RCX as usize] = found.index(control);
        } else if VEX {
            set_vex(cpu, 0, found.mask(control));
        } else {
            set_legacy(cpu, 0, found.mask(control));
        }
        cpu.state.set_status(STATUS, found.flags());
    }
    fn run(cpu: &mut Cpu, op: OpRef) -> Flow {
        Self::work(cpu, op);
        next(cpu, op)
    }
}

pub fn text_handler(explicit: bool, mask: bool, vex: bool) -> Handler {
    match (explicit, mask, vex) {
        (false, false, _) => Text::<false, false, false>::run,
        (false, true, false) => Text::<false, true, false>::run,
        (false, true, true) => Text::<false, true, true>::run,
        (true, false, _) => Text::<true, false, false>::run,
        (true, true, false) => Text::<true, true, false>::run,
        (true, true, true) => Text::<true, true, true>::run,
    }
}

// ---- whole-file state -------------------------------------------------------------------------------------------------------

/// EMMS, FEMMS.
pub fn emms(cpu: &mut Cpu, op: OpRef) -> Flow {
    if pending(cpu, &op) {
        return general(cpu, op);
    }
    cpu.mmx_touch();
    cpu.state.x87.tags = 0;
    next(cpu, op)
}

/// VZEROUPPER, VZEROALL: registers 8 to 15 are touched in 64-bit mode only.
fn zero<const FROM: usize>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let count = if cpu.mode.is64() { 16 } else { 8 };
    for v in cpu.state.vec.iter_mut().take(count) {
        v[FROM..].fill(0);
    }
    next(cpu, op)
}
pub fn zero_registers(all: bool) -> Handler {
    if all { zero::<0> } else { zero::<2> }
}
