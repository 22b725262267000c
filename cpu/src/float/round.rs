//! Rounding and packing (SDM vol. 1, Overview of Floating-Point Exceptions; Numeric Overflow, Numeric Underflow, Inexact-Result).

use super::unpacked::{Class, Format, Unpacked};
use super::{Env, Rounding, flags};

/// An exact result, or one exact enough: (−1)^sign × significand / 2^127 × 2^exponent, with anything below bit 0 ORed into it.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    pub class: Class,
    pub sign: bool,
    pub exponent: i32,
    /// Bit 127 is set in finite values; NaN payloads are as in [`Unpacked`], 64 bits higher.
    pub significand: u128,
}

impl From<Unpacked> for Raw {
    #[inline]
    fn from(u: Unpacked) -> Raw {
        Raw { class: u.class, sign: u.sign, exponent: u.exponent, significand: (u.significand as u128) << 64 }
    }
}

impl Raw {
    /// A finite value from any significand: normalises; `exponent` is that of bit 127. Zero is `+0`.
    #[inline]
    pub fn normalised(sign: bool, exponent: i32, significand: u128) -> Raw {
        if significand == 0 {
            return Unpacked::zero(sign).into();
        }
        let lead = significand.leading_zeros();
        Raw { class: Class::Finite, sign, exponent: exponent - lead as i32, significand: significand << lead }
    }
}

/// Shift right; ones that fall out stick to bit 0.
#[inline]
pub fn shift_right_jam(value: u128, count: u32) -> u128 {
    match count {
        0 => value,
        1..=127 => value >> count | u128::from(value << (128 - count) != 0),
        _ => u128::from(value != 0),
    }
}

/// Whether a value with these bits below its last kept one is rounded up in magnitude.
#[inline]
pub fn rounds_up(rounding: Rounding, sign: bool, odd: bool, rest: u128, half: u128) -> bool {
    match rounding {
        Rounding::Nearest => rest > half || (rest == half && odd),
        Rounding::Down => sign && rest != 0,
        Rounding::Up => !sign && rest != 0,
        Rounding::Zero => false,
    }
}

struct Rounded {
    /// `precision` bits, left-justified in 64.
    significand: u64,
    /// It overflowed to 1.0 (bit 63 alone); the exponent is one more.
    carry: bool,
    inexact: bool,
    up: bool,
}

#[inline]
fn round_at(significand: u128, precision: u32, sign: bool, rounding: Rounding) -> Rounded {
    let drop = 128 - precision;
    let rest = significand & ((1u128 << drop) - 1);
    let mut kept = (significand >> 64) as u64 & (u64::MAX << (64 - precision));
    let unit = 1u64 << (64 - precision);
    let up = rounds_up(rounding, sign, kept & unit != 0, rest, 1u128 << (drop - 1));
    let mut carry = false;
    if up {
        (kept, carry) = kept.overflowing_add(unit);
        if carry {
            kept = 1 << 63;
        }
    }
    Rounded { significand: kept, carry, inexact: rest != 0, up }
}

/// Round a result to format `F` and raise overflow, underflow and inexact as due. Tininess is detected after rounding.
///
/// With x87 rules and an f80 destination an unmasked overflow or underflow gives the result with its exponent moved by 24,576;
/// elsewhere the value returned with an unmasked exception is of no use.
#[inline]
pub fn pack<F: Format>(raw: Raw, env: &mut Env) -> F::Bits {
    env.rounded_up = false;
    match raw.class {
        Class::Zero => return F::zero(raw.sign),
        Class::Infinity => return F::infinity(raw.sign),
        Class::Finite => {}
        Class::Quiet | Class::Signaling | Class::Unsupported => {
            let payload = (raw.significand >> 64) as u64 & (u64::MAX << (64 - F::PRECISION));
            return F::assemble(raw.sign, F::MAX_BIASED, payload | 3 << 62);
        }
    }
    let extended = F::PRECISION == 64;
    let precision = if extended { env.precision } else { F::PRECISION };
    let r = round_at(raw.significand, precision, raw.sign, env.rounding);
    let exponent = raw.exponent + r.carry as i32;
    if exponent > F::BIAS {
        env.raise(flags::OE);
        if env.masked(flags::OE) {
            env.raise(flags::PE);
            let away = match env.rounding {
                Rounding::Nearest => true,
                Rounding::Down => raw.sign,
                Rounding::Up => !raw.sign,
                Rounding::Zero => false,
            };
            env.rounded_up = away;
            return if away { F::infinity(raw.sign) } else { F::largest(raw.sign, precision) };
        }
        return rebiased::<F>(raw.sign, exponent - 24576, &r, env);
    }
    if exponent < 1 - F::BIAS {
        if !env.masked(flags::UE) {
            env.raise(flags::UE);
            return rebiased::<F>(raw.sign, exponent + 24576, &r, env);
        }
        if env.ftz {
            env.raise(flags::UE | flags::PE);
            return F::zero(raw.sign);
        }
        let shift = (1 - F::BIAS) - raw.exponent;
        let r = round_at(shift_right_jam(raw.significand, shift as u32), precision, raw.sign, env.rounding);
        if r.inexact {
            env.raise(flags::UE | flags::PE);
            env.rounded_up = r.up;
        }
        // Rounding may have carried into the smallest normal number.
        let biased = (r.significand >> 63) as u32;
        return F::assemble(raw.sign, biased, r.significand);
    }
    if r.inexact {
        env.raise(flags::PE);
        env.rounded_up = r.up;
    }
    F::assemble(raw.sign, (exponent + F::BIAS) as u32, r.significand)
}

#[cold]
fn rebiased<F: Format>(sign: bool, exponent: i32, r: &Rounded, env: &mut Env) -> F::Bits {
    if r.inexact {
        env.raise(flags::PE);
        env.rounded_up = r.up;
    }
    if F::PRECISION != 64 {
        return F::zero(sign);
    }
    match exponent + F::BIAS {
        // FSCALE can go so far beyond that rebiasing does not bring the result back (SDM vol. 1, Numeric Overflow Exception).
        ..=0 => {
            env.raise(flags::PE);
            F::zero(sign)
        }
        biased if biased >= F::MAX_BIASED as i32 => {
            env.raise(flags::PE);
            env.rounded_up = true;
            F::infinity(sign)
        }
        biased => F::assemble(sign, biased as u32, r.significand),
    }
}
