//! SSE and AVX arithmetic on bit patterns, for [`F32`] and [`F64`].
//!
//! Use: `let mut env = cpu.sse_env(); let r = sse::add::<F32>(a, b, &mut env); …; cpu.sse_commit(&env)?;` and only then write
//! the destination. Operands are in instruction order (the first source's NaN wins).
//!
//! Where MXCSR rounds to nearest without DAZ and FTZ, the host's floats do the arithmetic if that decides the result and all
//! flags: operands and result normal (or an exact zero), and either PE already sticky or the operation provably exact.

use super::ops::{self, Relation};
use super::round::pack;
use super::unpacked::{Class, F16, F32, F64, Format};
use super::{Env, Rounding, flags};

/// Formats that the host computes in as well.
pub trait HostFormat: Format {
    type Host: Copy;
    /// The exponent field is neither zero nor all ones.
    fn normal(bits: Self::Bits) -> bool;
    /// Normal or a zero.
    fn normal_or_zero(bits: Self::Bits) -> bool;
    fn is_zero(bits: Self::Bits) -> bool;
    /// The smallest normal magnitude: a rounded result of this size may have been tiny, and underflowed, before.
    fn least_normal(bits: Self::Bits) -> bool;
    fn add(a: Self::Bits, b: Self::Bits) -> Self::Bits;
    fn sub(a: Self::Bits, b: Self::Bits) -> Self::Bits;
    fn mul(a: Self::Bits, b: Self::Bits) -> Self::Bits;
    fn div(a: Self::Bits, b: Self::Bits) -> Self::Bits;
    fn sqrt(a: Self::Bits) -> Self::Bits;
    fn less(a: Self::Bits, b: Self::Bits) -> bool;
    /// `r`, the rounded sum of `a` and `b` (all normal), is their exact sum.
    fn sum_exact(a: Self::Bits, b: Self::Bits, r: Self::Bits) -> bool;
    /// The product of `a` and `b` needs no rounding; may say no though it does not.
    fn product_exact(a: Self::Bits, b: Self::Bits) -> bool;
    fn negate(bits: Self::Bits) -> Self::Bits;
    fn from_i64(value: i64) -> Self::Bits;
}

macro_rules! host_format {
    ($format:ty, $bits:ty, $host:ty, $fraction:literal) => {
        impl HostFormat for $format {
            type Host = $host;
            #[inline(always)]
            fn normal(bits: $bits) -> bool {
                // One added to the exponent field: 0 and all ones become 1 and 0 (modulo the field's size).
                let one = 1 << $fraction;
                (bits.wrapping_add(one) & (<$bits>::MAX >> 1)) >= 2 * one
            }
            #[inline(always)]
            fn normal_or_zero(bits: $bits) -> bool {
                Self::normal(bits) || bits << 1 == 0
            }
            #[inline(always)]
            fn is_zero(bits: $bits) -> bool {
                bits << 1 == 0
            }
            #[inline(always)]
            fn least_normal(bits: $bits) -> bool {
                bits & (<$bits>::MAX >> 1) == 1 << $fraction
            }
            #[inline(always)]
            fn add(a: $bits, b: $bits) -> $bits {
                (<$host>::from_bits(a) + <$host>::from_bits(b)).to_bits()
            }
            #[inline(always)]
            fn sub(a: $bits, b: $bits) -> $bits {
                (<$host>::from_bits(a) - <$host>::from_bits(b)).to_bits()
            }
            #[inline(always)]
            fn mul(a: $bits, b: $bits) -> $bits {
                (<$host>::from_bits(a) * <$host>::from_bits(b)).to_bits()
            }
            #[inline(always)]
            fn div(a: $bits, b: $bits) -> $bits {
                (<$host>::from_bits(a) / <$host>::from_bits(b)).to_bits()
            }
            #[inline(always)]
            fn sqrt(a: $bits) -> $bits {
                <$host>::from_bits(a).sqrt().to_bits()
            }
            #[inline(always)]
            fn less(a: $bits, b: $bits) -> bool {
                <$host>::from_bits(a) < <$host>::from_bits(b)
            }
            #[inline(always)]
            fn sum_exact(a: $bits, b: $bits, r: $bits) -> bool {
                // Knuth's two-sum: the rounding error of a + b.
                let (a, b, r) = (<$host>::from_bits(a), <$host>::from_bits(b), <$host>::from_bits(r));
                let t = r - a;
                let error = (a - (r - t)) + (b - t);
                error == 0.0
            }
            #[inline(always)]
            fn product_exact(a: $bits, b: $bits) -> bool {
                let used = |x: $bits| $fraction + 1 - (x | 1 << $fraction).trailing_zeros();
                used(a) + used(b) <= $fraction + 1
            }
            #[inline(always)]
            fn negate(bits: $bits) -> $bits {
                bits ^ (1 << (<$bits>::BITS - 1))
            }
            #[inline(always)]
            fn from_i64(value: i64) -> $bits {
                (value as $host).to_bits()
            }
        }
    };
}
host_format!(F32, u32, f32, 23);
host_format!(F64, u64, f64, 52);

#[inline]
fn unpack<F: Format>(bits: F::Bits, env: &Env) -> super::Unpacked {
    F::unpack(bits).flushed(env)
}

/// ADDSS and kin.
#[inline(always)]
pub fn add<F: HostFormat>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    if env.host && F::normal_or_zero(a) && F::normal_or_zero(b) {
        let r = F::add(a, b);
        if F::is_zero(r) || (F::normal(r) && (env.inexact_known || F::sum_exact(a, b, r))) {
            return r;
        }
    }
    soft_add::<F>(a, b, env)
}

#[inline(never)]
fn soft_add<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    let raw = ops::add(unpack::<F>(a, env), unpack::<F>(b, env), env);
    pack::<F>(raw, env)
}

/// SUBSS and kin.
#[inline(always)]
pub fn sub<F: HostFormat>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    if env.host && F::normal_or_zero(a) && F::normal_or_zero(b) {
        let r = F::sub(a, b);
        if F::is_zero(r) || (F::normal(r) && (env.inexact_known || F::sum_exact(a, F::negate(b), r))) {
            return r;
        }
    }
    soft_sub::<F>(a, b, env)
}

#[inline(never)]
fn soft_sub<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    let raw = ops::sub(unpack::<F>(a, env), unpack::<F>(b, env), env);
    pack::<F>(raw, env)
}

/// MULSS and kin.
#[inline(always)]
pub fn mul<F: HostFormat>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    if env.host && F::normal_or_zero(a) && F::normal_or_zero(b) {
        let r = F::mul(a, b);
        if (F::normal(r) && ((env.inexact_known && !F::least_normal(r)) || F::product_exact(a, b)))
            || F::is_zero(a)
            || F::is_zero(b)
        {
            return r;
        }
    }
    soft_mul::<F>(a, b, env)
}

#[inline(never)]
fn soft_mul<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    let raw = ops::mul(unpack::<F>(a, env), unpack::<F>(b, env), env);
    pack::<F>(raw, env)
}

/// DIVSS and kin.
#[inline(always)]
pub fn div<F: HostFormat>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    if env.host && env.inexact_known && F::normal(a) && F::normal(b) {
        let r = F::div(a, b);
        if F::normal(r) && !F::least_normal(r) {
            return r;
        }
    }
    soft_div::<F>(a, b, env)
}

#[inline(never)]
fn soft_div<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    let raw = ops::div(unpack::<F>(a, env), unpack::<F>(b, env), env);
    pack::<F>(raw, env)
}

/// SQRTSS and kin.
#[inline(always)]
pub fn sqrt<F: HostFormat>(a: F::Bits, env: &mut Env) -> F::Bits {
    if env.host && env.inexact_known && F::normal(a) {
        let r = F::sqrt(a);
        if F::normal(r) {
            return r;
        }
    }
    soft_sqrt::<F>(a, env)
}

#[inline(never)]
fn soft_sqrt<F: Format>(a: F::Bits, env: &mut Env) -> F::Bits {
    let raw = ops::sqrt(unpack::<F>(a, env), env);
    pack::<F>(raw, env)
}

/// MINSS and kin: the second operand if either is a NaN or both are zeros.
#[inline(always)]
pub fn min<F: HostFormat>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    if env.host && F::normal_or_zero(a) && F::normal_or_zero(b) {
        return if F::less(a, b) { a } else { b };
    }
    select::<F>(a, b, Relation::Less, env)
}

/// MAXSS and kin: the second operand if either is a NaN or both are zeros.
#[inline(always)]
pub fn max<F: HostFormat>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    if env.host && F::normal_or_zero(a) && F::normal_or_zero(b) {
        return if F::less(b, a) { a } else { b };
    }
    select::<F>(a, b, Relation::Greater, env)
}

#[inline(never)]
fn select<F: Format>(a: F::Bits, b: F::Bits, first_if: Relation, env: &mut Env) -> F::Bits {
    let (x, y) = (unpack::<F>(a, env), unpack::<F>(b, env));
    let relation = ops::compare(x, y, true, env);
    let (bits, chosen) = if relation == first_if { (a, x) } else { (b, y) };
    // A denormal that counts as zero is returned as zero.
    if chosen.class == Class::Zero { F::zero(chosen.sign) } else { bits }
}

/// a × b + c with one rounding. A NaN is taken from a, b, c in this order; negate by flags, not by flipping signs of NaNs:
/// `negate_product`, `negate_c` apply to numbers only.
#[inline(never)]
pub fn fma<F: HostFormat>(a: F::Bits, b: F::Bits, c: F::Bits, negate_product: bool, negate_c: bool, env: &mut Env) -> F::Bits {
    let (mut x, y, mut z) = (unpack::<F>(a, env), unpack::<F>(b, env), unpack::<F>(c, env));
    if negate_product && !x.is_nan() {
        x.sign = !x.sign;
    }
    if negate_c && !z.is_nan() {
        z.sign = !z.sign;
    }
    let raw = ops::fma(x, y, z, env);
    pack::<F>(raw, env)
}

/// COMISS (`signaling`), UCOMISS.
#[inline(always)]
pub fn compare<F: HostFormat>(a: F::Bits, b: F::Bits, signaling: bool, env: &mut Env) -> Relation {
    if F::normal_or_zero(a) && F::normal_or_zero(b) {
        return if F::less(a, b) {
            Relation::Less
        } else if F::less(b, a) {
            Relation::Greater
        } else {
            Relation::Equal
        };
    }
    soft_compare::<F>(a, b, signaling, env)
}

#[inline(never)]
fn soft_compare<F: Format>(a: F::Bits, b: F::Bits, signaling: bool, env: &mut Env) -> Relation {
    ops::compare(unpack::<F>(a, env), unpack::<F>(b, env), signaling, env)
}

/// CMPPS and kin: predicate 0–31 (SDM vol. 2, CMPPD: Comparison Predicate for CMPPD and CMPPS Instructions).
#[inline]
pub fn predicate<F: HostFormat>(a: F::Bits, b: F::Bits, predicate: u8, env: &mut Env) -> bool {
    // Of predicates 0–15, those that signal for quiet NaNs; with bit 4 set it is the other way round.
    const SIGNALING: u16 = 0b0110_0110_0110_0110;
    let signaling = (SIGNALING >> (predicate & 15) & 1 != 0) != (predicate & 16 != 0);
    let relation = compare::<F>(a, b, signaling, env);
    use Relation::*;
    match predicate & 15 {
        0 => relation == Equal,
        1 => relation == Less,
        2 => matches!(relation, Less | Equal),
        3 => relation == Unordered,
        4 => relation != Equal,
        5 => relation != Less,
        6 => !matches!(relation, Less | Equal),
        7 => relation != Unordered,
        8 => matches!(relation, Equal | Unordered),
        9 => !matches!(relation, Greater | Equal),
        10 => relation != Greater,
        11 => false,
        12 => matches!(relation, Less | Greater),
        13 => matches!(relation, Greater | Equal),
        14 => relation == Greater,
        _ => true,
    }
}

/// ROUNDSS and kin with the instruction's immediate (bits 1:0 RC, bit 2 use MXCSR.RC, bit 3 suppress PE).
#[inline]
pub fn round_imm<F: HostFormat>(a: F::Bits, imm: u8, env: &mut Env) -> F::Bits {
    let rounding = if imm & 4 != 0 { env.rounding } else { Rounding::from_bits(imm as u32) };
    let mut inner = Env { rounding, flags: 0, ..*env };
    let raw = ops::round_integral(unpack::<F>(a, env), &mut inner);
    let r = pack::<F>(raw, &mut inner);
    env.raise(inner.flags & if imm & 8 != 0 { !flags::PE } else { flags::ALL });
    r
}

/// CVTSS2SD, CVTSD2SS and kin.
#[inline]
pub fn convert<F: Format, T: Format>(a: F::Bits, env: &mut Env) -> T::Bits {
    let raw = ops::convert(unpack::<F>(a, env), env);
    pack::<T>(raw, env)
}

/// VCVTPH2PS of one element: neither DAZ nor DE apply.
#[inline]
pub fn half_to_single(a: u16, env: &mut Env) -> u32 {
    let mut u = F16::unpack(a);
    u.denormal = false;
    let raw = ops::convert(u, env);
    pack::<F32>(raw, env)
}

/// VCVTPS2PH of one element with the instruction's immediate (bits 1:0 RC, bit 2 use MXCSR.RC). FTZ does not apply.
#[inline]
pub fn single_to_half(a: u32, imm: u8, env: &mut Env) -> u16 {
    let rounding = if imm & 4 != 0 { env.rounding } else { Rounding::from_bits(imm as u32) };
    let mut inner = Env { rounding, ftz: false, ..*env };
    let r = convert::<F32, F16>(a, &mut inner);
    env.flags = inner.flags;
    r
}

/// CVTSS2SI (`truncate`: CVTTSS2SI) and kin to 32 bits; the integer indefinite is 0x8000_0000.
#[inline]
pub fn to_i32<F: HostFormat>(a: F::Bits, truncate: bool, env: &mut Env) -> i32 {
    to_signed::<F>(a, 32, truncate, env) as i32
}

/// To 64 bits.
#[inline]
pub fn to_i64<F: HostFormat>(a: F::Bits, truncate: bool, env: &mut Env) -> i64 {
    to_signed::<F>(a, 64, truncate, env)
}

#[inline]
fn to_signed<F: Format>(a: F::Bits, bits: u32, truncate: bool, env: &mut Env) -> i64 {
    let rounding = env.rounding;
    if truncate {
        env.rounding = Rounding::Zero;
    }
    let r = ops::to_signed(unpack::<F>(a, env), bits, env);
    env.rounding = rounding;
    r
}

/// CVTSI2SS and kin (32-bit sources sign-extended).
#[inline]
pub fn from_i64<F: HostFormat>(value: i64, env: &mut Env) -> F::Bits {
    if value.unsigned_abs() < 1 << 24 || (env.host && env.inexact_known) {
        return F::from_i64(value);
    }
    pack::<F>(super::Unpacked::from_i64(value).into(), env)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(x: f64) -> u64 {
        x.to_bits()
    }

    /// Soft and host arithmetic agree over a spread of operands.
    #[test]
    fn soft_equals_host() {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            seed ^ seed >> 29
        };
        let mut soft = Env::sse(0x1fa0);
        for _ in 0..20_000 {
            let near = |r: u64| r & 0x800f_ffff_ffff_ffff | (1000 + (r >> 52 & 63)) << 52;
            let (a, b) = (near(random()), near(random()));
            let (x, y) = (f64::from_bits(a), f64::from_bits(b));
            assert_eq!(soft_add::<F64>(a, b, &mut soft), f(x + y), "{x:e} + {y:e}");
            assert_eq!(soft_sub::<F64>(a, b, &mut soft), f(x - y));
            assert_eq!(soft_mul::<F64>(a, b, &mut soft), f(x * y));
            assert_eq!(soft_div::<F64>(a, b, &mut soft), f(x / y));
            assert_eq!(soft_sqrt::<F64>(a & u64::MAX >> 1, &mut soft), f(x.abs().sqrt()));
            assert_eq!(
                fma::<F64>(a, b, a ^ b >> 1 & 0xff, false, true, &mut soft),
                f(x.mul_add(y, -f64::from_bits(a ^ b >> 1 & 0xff)))
            );
            assert_eq!(convert::<F64, F32>(a, &mut soft), (x as f32).to_bits());
            assert_eq!(to_i64::<F64>(a, true, &mut soft), x as i64);
        }
    }

    #[test]
    fn flags_of_exact_and_inexact() {
        let mut e = Env::sse(0x1f80);
        assert_eq!(add::<F64>(f(1.0), f(2.0), &mut e), f(3.0));
        assert_eq!(e.flags, 0);
        add::<F64>(f(1.0), f(1e-30), &mut e);
        assert_eq!(e.flags, flags::PE);
        let mut e = Env::sse(0x1f80);
        assert_eq!(mul::<F64>(f(3.0), f(5.0), &mut e), f(15.0));
        assert_eq!(e.flags, 0);
        mul::<F64>(f(0.1), f(0.1), &mut e);
        assert_eq!(e.flags, flags::PE);
    }

    /// Rounds to the smallest normal: tiny before rounding, not after.
    #[test]
    fn tininess_after_rounding() {
        let mut e = Env::sse(0x1f80);
        let r = convert::<F64, F32>(f(f32::MIN_POSITIVE as f64 * (1.0 - 2f64.powi(-30))), &mut e);
        assert_eq!((r, e.flags), (f32::MIN_POSITIVE.to_bits(), flags::PE));
        let mut e = Env::sse(0x1f80);
        let r = convert::<F64, F32>(f(f32::MIN_POSITIVE as f64 * (1.0 - 2f64.powi(-24))), &mut e);
        assert_eq!((r, e.flags), (f32::MIN_POSITIVE.to_bits(), flags::PE | flags::UE));
    }

    #[test]
    fn denormal_controls() {
        let tiny = 1u64;
        let mut e = Env::sse(0x1f80);
        assert_eq!(add::<F64>(tiny, tiny, &mut e), 2);
        assert_eq!(e.flags, flags::DE);
        let mut e = Env::sse(0x1fc0);
        assert_eq!(add::<F64>(tiny, tiny, &mut e), 0);
        assert_eq!(e.flags, 0);
        let mut e = Env::sse(0x9f80);
        assert_eq!(mul::<F64>(f(1e-300), f(-1e-10), &mut e), 1 << 63);
        assert_eq!(e.flags, flags::UE | flags::PE);
    }

    #[test]
    fn nans_and_invalid() {
        let mut e = Env::sse(0x1f80);
        let (q1, q2, s) = (0x7ff8_0000_0000_0001u64, 0xfff8_0000_0000_0002u64, 0x7ff0_0000_0000_0003u64);
        assert_eq!(add::<F64>(q1, q2, &mut e), q1);
        assert_eq!(e.flags, 0);
        assert_eq!(add::<F64>(f(1.0), s, &mut e), s | 1 << 51);
        assert_eq!(e.flags, flags::IE);
        assert_eq!(mul::<F64>(f(0.0), f(f64::INFINITY), &mut e), 0xfff8_0000_0000_0000);
        assert_eq!(to_i32::<F64>(f(3e9), true, &mut e), i32::MIN);
        assert_eq!(to_i32::<F64>(f(-2147483648.0), true, &mut e), i32::MIN);
    }

    #[test]
    fn rounding_directions() {
        for (rc, expect) in [(0, 2.0), (1, 2.0), (2, 3.0), (3, 2.0)] {
            let mut e = Env::sse(0x1f80 | rc << 13);
            assert_eq!(round_imm::<F64>(f(2.5), 4, &mut e), f(expect));
            assert_eq!(e.flags, flags::PE);
        }
        let mut e = Env::sse(0x1f80);
        assert_eq!(round_imm::<F64>(f(-0.3), 8, &mut e), f(-0.0));
        assert_eq!(e.flags, 0);
    }
}
