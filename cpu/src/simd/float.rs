//! Floating-point instructions on lanes, over `crate::float::sse`.
//!
//! [`Float::float`] is the whole truth. [`Float::quick`] is a way through host floats for the case that nothing can happen:
//! MXCSR as [`QUICK`] says (round to nearest, no DAZ or FTZ, all masked, PE already sticky), and every operand and result plain.

use std::marker::PhantomData;

use super::lanes::{In, Lane, block, build, build_blocks, lanes, view, view_mut};
use crate::float::sse::{self, HostFormat};
use crate::float::{Env, F32, F64, Relation};

/// `mxcsr & QUICK.0 == QUICK.1`: [`Float::quick`] may be tried.
pub const QUICK: (u32, u32) = (0xffe0, 0x1fa0);

/// A format with a lane type.
pub trait Format: HostFormat<Bits: Lane> {
    fn widen(bits: Self::Bits) -> u64;
    /// Put `value` in the low lane.
    fn set_low(word: &mut u64, value: Self::Bits);
    fn low(word: u64) -> Self::Bits;
    /// a × b + c with one rounding, by the host.
    fn host_fma(a: Self::Bits, b: Self::Bits, c: Self::Bits) -> Self::Bits;
    /// All bits set.
    fn ones() -> Self::Bits;
    /// Truncated to an integer, if that is plainly less than `limit` in magnitude.
    fn truncate(bits: Self::Bits, limit: i64) -> Option<i64>;
}
impl Format for F32 {
    #[inline(always)]
    fn widen(bits: u32) -> u64 {
        bits as u64
    }
    #[inline(always)]
    fn set_low(word: &mut u64, value: u32) {
        *word = *word & !0xffff_ffff | value as u64;
    }
    #[inline(always)]
    fn low(word: u64) -> u32 {
        word as u32
    }
    #[inline(always)]
    fn host_fma(a: u32, b: u32, c: u32) -> u32 {
        f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c)).to_bits()
    }
    #[inline(always)]
    fn ones() -> u32 {
        u32::MAX
    }
    #[inline(always)]
    fn truncate(bits: u32, limit: i64) -> Option<i64> {
        let v = f32::from_bits(bits);
        (Self::normal_or_zero(bits) & (v.abs() < limit as f32)).then_some(v as i64)
    }
}
impl Format for F64 {
    #[inline(always)]
    fn widen(bits: u64) -> u64 {
        bits
    }
    #[inline(always)]
    fn set_low(word: &mut u64, value: u64) {
        *word = value;
    }
    #[inline(always)]
    fn low(word: u64) -> u64 {
        word
    }
    #[inline(always)]
    fn host_fma(a: u64, b: u64, c: u64) -> u64 {
        f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
    }
    #[inline(always)]
    fn ones() -> u64 {
        u64::MAX
    }
    #[inline(always)]
    fn truncate(bits: u64, limit: i64) -> Option<i64> {
        let v = f64::from_bits(bits);
        (Self::normal_or_zero(bits) & (v.abs() < limit as f64)).then_some(v as i64)
    }
}

/// An instruction that may raise floating-point exceptions.
pub trait Float {
    fn float<const N: usize>(x: &In<N>, env: &mut Env) -> [u64; N];
    /// The result, if it is certain that no new flag is raised. Only with MXCSR as [`QUICK`].
    #[inline(always)]
    fn quick<const N: usize>(_: &In<N>) -> Option<[u64; N]> {
        None
    }
}

/// Two operands to a result of the same format.
pub trait Binary {
    fn soft<F: Format>(a: F::Bits, b: F::Bits, imm: u16, env: &mut Env) -> F::Bits;
    /// The host's result, and whether it is certain.
    #[inline(always)]
    fn host<F: Format>(_: F::Bits, b: F::Bits, _imm: u16) -> (F::Bits, bool) {
        (b, false)
    }
}

/// All lanes.
pub struct Packed<F, O>(PhantomData<(F, O)>);
/// The low lane; the others come from the first source.
pub struct Scalar<F, O>(PhantomData<(F, O)>);

impl<F: Format, O: Binary> Float for Packed<F, O> {
    #[inline(always)]
    fn float<const N: usize>(x: &In<N>, env: &mut Env) -> [u64; N] {
        let mut r = [0; N];
        let (a, b, z) = (view::<F::Bits, N>(&x.a), view::<F::Bits, N>(&x.b), view_mut::<F::Bits, N>(&mut r));
        for i in 0..lanes::<F::Bits, N>() {
            z[i] = O::soft::<F>(a[i], b[i], x.imm, env);
        }
        r
    }
    #[inline(always)]
    fn quick<const N: usize>(x: &In<N>) -> Option<[u64; N]> {
        let mut r = [0; N];
        let (a, b, z) = (view::<F::Bits, N>(&x.a), view::<F::Bits, N>(&x.b), view_mut::<F::Bits, N>(&mut r));
        let mut all = true;
        for i in 0..lanes::<F::Bits, N>() {
            let (v, certain) = O::host::<F>(a[i], b[i], x.imm);
            z[i] = v;
            all &= certain;
        }
        all.then_some(r)
    }
}
impl<F: Format, O: Binary> Float for Scalar<F, O> {
    #[inline(always)]
    fn float<const N: usize>(x: &In<N>, env: &mut Env) -> [u64; N] {
        let mut r = x.a;
        F::set_low(&mut r[0], O::soft::<F>(F::low(x.a[0]), F::low(x.b[0]), x.imm, env));
        r
    }
    #[inline(always)]
    fn quick<const N: usize>(x: &In<N>) -> Option<[u64; N]> {
        let (v, certain) = O::host::<F>(F::low(x.a[0]), F::low(x.b[0]), x.imm);
        let mut r = x.a;
        F::set_low(&mut r[0], v);
        certain.then_some(r)
    }
}

#[inline(always)]
fn plain<F: Format>(a: F::Bits, b: F::Bits) -> bool {
    F::normal_or_zero(a) & F::normal_or_zero(b)
}

/// A result that cannot have underflowed.
#[inline(always)]
fn certain<F: Format>(r: F::Bits) -> bool {
    F::normal(r) & !F::least_normal(r)
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident<$f:ident>($a:ident, $b:ident, $imm:ident, $env:ident) = $soft:expr, $host:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn soft<$f: Format>($a: $f::Bits, $b: $f::Bits, $imm: u16, $env: &mut Env) -> $f::Bits {
                let _ = ($a, $imm);
                $soft
            }
            #[inline(always)]
            fn host<$f: Format>($a: $f::Bits, $b: $f::Bits, $imm: u16) -> ($f::Bits, bool) {
                let _ = ($a, $imm);
                $host
            }
        }
    )*};
}
binary! {
    Add<F>(a, b, imm, env) = sse::add::<F>(a, b, env), {
        let r = F::add(a, b);
        (r, plain::<F>(a, b) & F::normal_or_zero(r))
    };
    Sub<F>(a, b, imm, env) = sse::sub::<F>(a, b, env), {
        let r = F::sub(a, b);
        (r, plain::<F>(a, b) & F::normal_or_zero(r))
    };
    Mul<F>(a, b, imm, env) = sse::mul::<F>(a, b, env), {
        let r = F::mul(a, b);
        (r, plain::<F>(a, b) & (certain::<F>(r) | F::is_zero(a) | F::is_zero(b)))
    };
    Div<F>(a, b, imm, env) = sse::div::<F>(a, b, env), {
        let r = F::div(a, b);
        (r, F::normal_or_zero(a) & F::normal(b) & (certain::<F>(r) | F::is_zero(a)))
    };
    Min<F>(a, b, imm, env) = sse::min::<F>(a, b, env), (if F::less(a, b) { a } else { b }, plain::<F>(a, b));
    Max<F>(a, b, imm, env) = sse::max::<F>(a, b, env), (if F::less(b, a) { a } else { b }, plain::<F>(a, b));
    /// Of the second source.
    Sqrt<F>(a, b, imm, env) = sse::sqrt::<F>(b, env), {
        let r = F::sqrt(b);
        (r, F::normal(b) & F::normal(r))
    };
    /// With the predicate in the immediate; legacy encodings have eight.
    Compare<F>(a, b, imm, env) = mask::<F>(sse::predicate::<F>(a, b, imm as u8 & 31, env)), {
        let (less, greater) = (F::less(a, b), F::less(b, a));
        // For numbers, bit 2 of the predicate negates, bit 3 exchanges "unordered" for its opposite, which changes only 8 to 15.
        let yes = match imm & 15 {
            0 | 8 => !less & !greater,
            1 | 9 => less,
            2 | 10 => !greater,
            4 | 12 => less | greater,
            5 | 13 => !less,
            6 | 14 => greater,
            3 | 11 => false,
            _ => true,
        };
        (mask::<F>(yes), plain::<F>(a, b))
    };
    /// ROUNDPS and kin, of the second source.
    Round<F>(a, b, imm, env) = sse::round_imm::<F>(b, imm as u8, env), (b, false);
}

#[inline(always)]
fn mask<F: Format>(yes: bool) -> F::Bits {
    if yes { F::ones() } else { F::Bits::default() }
}

/// A function of the lanes for each of the two formats.
macro_rules! float {
    ($($(#[$doc:meta])* $name:ident = |$x:pat_param, $env:pat_param| $e:expr $(, |$y:pat_param| $q:expr)?;)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Float for $name {
            #[inline(always)]
            fn float<const N: usize>($x: &In<N>, $env: &mut Env) -> [u64; N] {
                $e
            }
            $(
                #[inline(always)]
                fn quick<const N: usize>($y: &In<N>) -> Option<[u64; N]> {
                    $q
                }
            )?
        }
    )*};
}

/// A double to a single by the host, and whether that is certain.
#[inline(always)]
fn narrow(b: u64) -> (u32, bool) {
    let v = (f64::from_bits(b) as f32).to_bits();
    (v, F64::is_zero(b) | (F64::normal(b) & certain::<F32>(v)))
}

/// `out` lane i = f(i, env).
#[inline(always)]
fn each<T: Lane, const N: usize>(env: &mut Env, count: usize, f: impl Fn(usize, &mut Env) -> T) -> [u64; N] {
    let mut r = [0; N];
    let z = view_mut::<T, N>(&mut r);
    for (i, z) in z.iter_mut().enumerate().take(count) {
        *z = f(i, env);
    }
    r
}

float! {
    Cvtps2pd = |x, env| {
        let b = view::<u32, N>(&x.b);
        each(env, N, |i, env| sse::convert::<F32, F64>(b[i], env))
    }, |x| {
        let b = view::<u32, N>(&x.b);
        let all = b[..N].iter().all(|&b| F32::normal_or_zero(b));
        all.then(|| build(|i| (f32::from_bits(b[i]) as f64).to_bits()))
    };
    Cvtpd2ps = |x, env| each(env, N, |i, env| sse::convert::<F64, F32>(x.b[i], env)), |x| {
        let mut r = [0; N];
        let mut all = true;
        for (z, &b) in view_mut::<u32, N>(&mut r).iter_mut().zip(&x.b) {
            let (v, certain) = narrow(b);
            *z = v;
            all &= certain;
        }
        all.then_some(r)
    };
    Cvtdq2ps = |x, env| {
        let b = view::<i32, N>(&x.b);
        each(env, 2 * N, |i, env| sse::from_i64::<F32>(b[i] as i64, env))
    }, |x| Some(x.map(|v: i32| (v as f32).to_bits()));
    Cvtps2dq = |x, env| {
        let b = view::<u32, N>(&x.b);
        each(env, 2 * N, |i, env| sse::to_i32::<F32>(b[i], false, env))
    };
    Cvttps2dq = |x, env| {
        let b = view::<u32, N>(&x.b);
        each(env, 2 * N, |i, env| sse::to_i32::<F32>(b[i], true, env))
    };
    Cvtpd2dq = |x, env| each(env, N, |i, env| sse::to_i32::<F64>(x.b[i], false, env));
    Cvttpd2dq = |x, env| each(env, N, |i, env| sse::to_i32::<F64>(x.b[i], true, env));
    Cvtph2ps = |x, env| {
        let b = view::<u16, N>(&x.b);
        each(env, 2 * N, |i, env| sse::half_to_single(b[i], env))
    };
    Cvtps2ph = |x, env| {
        let b = view::<u32, N>(&x.b);
        each(env, 2 * N, |i, env| sse::single_to_half(b[i], x.imm as u8, env))
    };
    Cvtss2sd = |x, env| {
        let mut r = x.a;
        r[0] = sse::convert::<F32, F64>(x.b[0] as u32, env);
        r
    }, |x| {
        let mut r = x.a;
        let b = x.b[0] as u32;
        r[0] = (f32::from_bits(b) as f64).to_bits();
        F32::normal_or_zero(b).then_some(r)
    };
    Cvtsd2ss = |x, env| {
        let mut r = x.a;
        F32::set_low(&mut r[0], sse::convert::<F64, F32>(x.b[0], env));
        r
    }, |x| {
        let mut r = x.a;
        let (v, certain) = narrow(x.b[0]);
        F32::set_low(&mut r[0], v);
        certain.then_some(r)
    };
    /// Two dwords of an MMX register or memory to the low quadword.
    Cvtpi2ps = |x, env| {
        let low: [u64; 1] = each(env, 2, |i, env| sse::from_i64::<F32>((x.b[0] >> (32 * i)) as i32 as i64, env));
        let mut r = x.a;
        r[0] = low[0];
        r
    };
    /// The two low singles.
    Cvtps2pi = |x, env| each(env, 2, |i, env| sse::to_i32::<F32>((x.b[0] >> (32 * i)) as u32, false, env));
    Cvttps2pi = |x, env| each(env, 2, |i, env| sse::to_i32::<F32>((x.b[0] >> (32 * i)) as u32, true, env));

    Addsubps = |x, env| alternate::<F32, N>(x, env);
    Addsubpd = |x, env| alternate::<F64, N>(x, env);
    Dpps = |x, env| {
        // Products, sums of two and sums of four each have their exceptions; one that is unmasked ends the instruction.
        let (a, b) = (view::<u32, N>(&x.a), view::<u32, N>(&x.b));
        let mut p = [0; 8];
        for (i, p) in p.iter_mut().enumerate().take(2 * N) {
            if x.imm >> (4 + (i & 3)) & 1 != 0 {
                *p = sse::mul::<F32>(a[i], b[i], env);
            }
        }
        if !env.next_stage() {
            return x.a;
        }
        let mut pairs = [0; 4];
        for (i, sum) in pairs.iter_mut().enumerate().take(N) {
            *sum = sse::add::<F32>(p[2 * i], p[2 * i + 1], env);
        }
        if !env.next_stage() {
            return x.a;
        }
        let mut sums = [0; 2];
        for (i, sum) in sums.iter_mut().enumerate().take(N.div_ceil(2)) {
            *sum = sse::add::<F32>(pairs[2 * i], pairs[2 * i + 1], env);
        }
        build(|i| if x.imm >> (i & 3) & 1 != 0 { sums[i / 4 & 1] } else { 0 })
    };
    Dppd = |x, env| {
        let mut p = [0; 2];
        for (i, p) in p.iter_mut().enumerate().take(N) {
            if x.imm >> (4 + i) & 1 != 0 {
                *p = sse::mul::<F64>(x.a[i], x.b[i], env);
            }
        }
        if !env.next_stage() {
            return x.a;
        }
        let sum = sse::add::<F64>(p[0], p[1], env);
        build(|i| if x.imm >> (i & 1) & 1 != 0 { sum } else { 0 })
    };
}

super::lanes::instructions! {
    /// Exact.
    Cvtdq2pd = |x| {
        let b = view::<i32, N>(&x.b);
        build(|i| (b[i] as f64).to_bits())
    };
    /// Exact; from an MMX register or memory.
    Cvtpi2pd = |x| build(|i| ((x.b[0] >> (32 * (i & 1))) as i32 as f64).to_bits());
}

/// ADDSUBPS, ADDSUBPD: even lanes subtract.
#[inline(always)]
fn alternate<F: Format, const N: usize>(x: &In<N>, env: &mut Env) -> [u64; N] {
    let (a, b) = (view::<F::Bits, N>(&x.a), view::<F::Bits, N>(&x.b));
    each(
        env,
        lanes::<F::Bits, N>(),
        |i, env| {
            if i & 1 == 0 { sse::sub::<F>(a[i], b[i], env) } else { sse::add::<F>(a[i], b[i], env) }
        },
    )
}

/// HADDPS, HSUBPD and kin.
pub struct Horizontal<F, O>(PhantomData<(F, O)>);

#[inline(always)]
fn neighbours<F: Format, const N: usize>(x: &In<N>, odd: usize) -> [u64; N] {
    let (a, b) = (view::<F::Bits, N>(&x.a), view::<F::Bits, N>(&x.b));
    let half = block::<N>() * 8 / size_of::<F::Bits>() / 2;
    build_blocks(|base, i| if i < half { a[base + 2 * i + odd] } else { b[base + 2 * (i - half) + odd] })
}

impl<F: Format, O: Binary> Float for Horizontal<F, O> {
    #[inline(always)]
    fn float<const N: usize>(x: &In<N>, env: &mut Env) -> [u64; N] {
        let inner = In { a: neighbours::<F, N>(x, 0), b: neighbours::<F, N>(x, 1), ..*x };
        Packed::<F, O>::float(&inner, env)
    }
    #[inline(always)]
    fn quick<const N: usize>(x: &In<N>) -> Option<[u64; N]> {
        let inner = In { a: neighbours::<F, N>(x, 0), b: neighbours::<F, N>(x, 1), ..*x };
        Packed::<F, O>::quick(&inner)
    }
}

/// Which operand plays which part in a fused multiply-add: the digits of the mnemonic.
pub mod order {
    pub const O132: u8 = 0;
    pub const O213: u8 = 1;
    pub const O231: u8 = 2;
}
/// What is negated: bit 0 the product, bit 1 the addend of even lanes, bit 2 the addend of odd lanes.
pub mod sign {
    pub const FMADD: u8 = 0;
    pub const FNMADD: u8 = 1;
    pub const FMSUB: u8 = 6;
    pub const FNMSUB: u8 = 7;
    /// Even lanes subtract.
    pub const FMADDSUB: u8 = 2;
    pub const FMSUBADD: u8 = 4;
}

/// VFMADD132PS and kin.
pub struct Fma<F, const ORDER: u8, const SIGN: u8>(PhantomData<F>);
/// VFMADD132SS and kin.
pub struct FmaScalar<F, const ORDER: u8, const SIGN: u8>(PhantomData<F>);

#[inline(always)]
fn parts<T: Copy, const ORDER: u8>(one: T, two: T, three: T) -> (T, T, T) {
    match ORDER {
        order::O132 => (one, three, two),
        order::O213 => (two, one, three),
        _ => (two, three, one),
    }
}

#[inline(always)]
fn fused<F: Format, const ORDER: u8, const SIGN: u8>(
    one: F::Bits,
    two: F::Bits,
    three: F::Bits,
    odd: usize,
    env: &mut Env,
) -> F::Bits {
    let (a, b, c) = parts::<_, ORDER>(one, two, three);
    sse::fma::<F>(a, b, c, SIGN & 1 != 0, SIGN >> (1 + (odd & 1)) & 1 != 0, env)
}

#[inline(always)]
fn host_fused<F: Format, const ORDER: u8, const SIGN: u8>(
    one: F::Bits,
    two: F::Bits,
    three: F::Bits,
    odd: usize,
) -> (F::Bits, bool) {
    let (a, b, c) = parts::<_, ORDER>(one, two, three);
    let p = if SIGN & 1 != 0 { F::negate(a) } else { a };
    let q = if SIGN >> (1 + (odd & 1)) & 1 != 0 { F::negate(c) } else { c };
    if !(plain::<F>(a, b) & F::normal_or_zero(c)) {
        return (a, false);
    }
    let r = F::host_fma(p, b, q);
    (r, certain::<F>(r))
}

impl<F: Format, const ORDER: u8, const SIGN: u8> Float for Fma<F, ORDER, SIGN> {
    #[inline(always)]
    fn float<const N: usize>(x: &In<N>, env: &mut Env) -> [u64; N] {
        let (one, two, three) = (view::<F::Bits, N>(&x.old), view::<F::Bits, N>(&x.a), view::<F::Bits, N>(&x.b));
        each(env, lanes::<F::Bits, N>(), |i, env| fused::<F, ORDER, SIGN>(one[i], two[i], three[i], i, env))
    }
    #[inline(always)]
    fn quick<const N: usize>(x: &In<N>) -> Option<[u64; N]> {
        let (one, two, three) = (view::<F::Bits, N>(&x.old), view::<F::Bits, N>(&x.a), view::<F::Bits, N>(&x.b));
        let mut r = [0; N];
        let z = view_mut::<F::Bits, N>(&mut r);
        for i in 0..lanes::<F::Bits, N>() {
            let (v, certain) = host_fused::<F, ORDER, SIGN>(one[i], two[i], three[i], i);
            if !certain {
                return None;
            }
            z[i] = v;
        }
        Some(r)
    }
}
impl<F: Format, const ORDER: u8, const SIGN: u8> Float for FmaScalar<F, ORDER, SIGN> {
    #[inline(always)]
    fn float<const N: usize>(x: &In<N>, env: &mut Env) -> [u64; N] {
        let mut r = x.old;
        let v = fused::<F, ORDER, SIGN>(F::low(x.old[0]), F::low(x.a[0]), F::low(x.b[0]), 0, env);
        F::set_low(&mut r[0], v);
        r
    }
    #[inline(always)]
    fn quick<const N: usize>(x: &In<N>) -> Option<[u64; N]> {
        let mut r = x.old;
        let (v, certain) = host_fused::<F, ORDER, SIGN>(F::low(x.old[0]), F::low(x.a[0]), F::low(x.b[0]), 0);
        F::set_low(&mut r[0], v);
        certain.then_some(r)
    }
}

/// Source of CVTSS2SI, CVTTSD2SI and kin: to an integer of `BITS`, with TRUNC or MXCSR's rounding.
#[inline(always)]
pub fn to_integer<F: Format, const WIDE: bool, const TRUNC: bool>(a: F::Bits, env: &mut Env) -> u64 {
    if WIDE { sse::to_i64::<F>(a, TRUNC, env) as u64 } else { sse::to_i32::<F>(a, TRUNC, env) as u32 as u64 }
}

/// ZF, PF and CF of COMISS and kin.
#[inline(always)]
pub fn relation_flags(relation: Relation) -> u64 {
    match relation {
        Relation::Greater => 0,
        Relation::Less => 1,
        Relation::Equal => 1 << 6,
        Relation::Unordered => 1 | 1 << 2 | 1 << 6,
    }
}
