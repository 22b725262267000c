//! Formats, and the unpacked form of a number.

use undervisor_core::F80;

use super::{Env, flags};

/// What kind of datum a bit pattern is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Zero,
    /// Non-zero and finite; `significand` is normalised even if the encoding was denormal.
    Finite,
    Infinity,
    Quiet,
    Signaling,
    /// f80 only: pseudo-NaN, pseudo-infinity, unnormal.
    Unsupported,
}

/// A number taken apart: (−1)^sign × significand / 2^63 × 2^exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    pub class: Class,
    pub sign: bool,
    pub exponent: i32,
    /// Bit 63 is set in finite values. Of a NaN: its payload, left-justified, with the quiet bit in bit 62, bit 63 set.
    pub significand: u64,
    /// The encoding was a denormal (or f80 pseudo-denormal).
    pub denormal: bool,
}

impl Unpacked {
    pub const fn zero(sign: bool) -> Unpacked {
        Unpacked { class: Class::Zero, sign, exponent: 0, significand: 0, denormal: false }
    }
    pub const fn infinity(sign: bool) -> Unpacked {
        Unpacked { class: Class::Infinity, sign, exponent: 0, significand: 1 << 63, denormal: false }
    }
    /// The QNaN floating-point indefinite: what an invalid operation gives.
    pub const INDEFINITE: Unpacked =
        Unpacked { class: Class::Quiet, sign: true, exponent: 0, significand: 3 << 62, denormal: false };

    pub const fn finite(sign: bool, exponent: i32, significand: u64) -> Unpacked {
        Unpacked { class: Class::Finite, sign, exponent, significand, denormal: false }
    }

    #[inline]
    pub fn is_nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling)
    }
    #[inline]
    pub fn is_zero(&self) -> bool {
        self.class == Class::Zero
    }
    #[inline]
    pub fn is_infinite(&self) -> bool {
        self.class == Class::Infinity
    }
    /// The NaN with its quiet bit set.
    pub fn quieted(self) -> Unpacked {
        Unpacked { class: Class::Quiet, significand: self.significand | 1 << 62, ..self }
    }
    pub fn negated(self) -> Unpacked {
        Unpacked { sign: !self.sign, ..self }
    }

    /// From a signed integer.
    pub fn from_i64(value: i64) -> Unpacked {
        Unpacked { sign: value < 0, ..Unpacked::from_u64(value.unsigned_abs()) }
    }
    /// From an unsigned integer.
    pub fn from_u64(value: u64) -> Unpacked {
        if value == 0 {
            return Unpacked::zero(false);
        }
        let lead = value.leading_zeros();
        Unpacked::finite(false, 63 - lead as i32, value << lead)
    }

    /// Denormals become zeros if the environment says so.
    #[inline]
    pub fn flushed(self, env: &Env) -> Unpacked {
        if env.daz && self.denormal { Unpacked::zero(self.sign) } else { self }
    }
}

/// A binary interchange format or the x87 extended format.
pub trait Format: 'static {
    type Bits: Copy + PartialEq + std::fmt::Debug;
    /// Bits of significand, the integer bit included.
    const PRECISION: u32;
    /// Exponent bias, which is also the largest exponent.
    const BIAS: i32;
    fn unpack(bits: Self::Bits) -> Unpacked;
    /// From sign, biased exponent and significand left-justified in 64 bits with its integer bit in bit 63 (which only f80 keeps).
    fn assemble(sign: bool, biased: u32, significand: u64) -> Self::Bits;

    /// All-ones exponent field.
    const MAX_BIASED: u32 = 2 * Self::BIAS as u32 + 1;

    fn infinity(sign: bool) -> Self::Bits {
        Self::assemble(sign, Self::MAX_BIASED, 1 << 63)
    }
    fn zero(sign: bool) -> Self::Bits {
        Self::assemble(sign, 0, 0)
    }
    /// The largest finite number of `precision` bits.
    fn largest(sign: bool, precision: u32) -> Self::Bits {
        Self::assemble(sign, Self::MAX_BIASED - 1, u64::MAX << (64 - precision))
    }
}

macro_rules! interchange {
    ($name:ident, $bits:ty, $width:literal, $precision:literal, $bias:literal) => {
        /// The format of this width.
        #[derive(Clone, Copy, Debug)]
        pub struct $name;
        impl Format for $name {
            type Bits = $bits;
            const PRECISION: u32 = $precision;
            const BIAS: i32 = $bias;
            #[inline]
            fn unpack(bits: $bits) -> Unpacked {
                let sign = bits >> ($width - 1) != 0;
                let biased = (bits >> ($precision - 1)) as u32 & Self::MAX_BIASED;
                // Fraction left-justified below bit 63.
                let fraction = ((bits as u64) << (64 - $precision)) & (u64::MAX >> 1);
                if biased == 0 {
                    if fraction == 0 {
                        return Unpacked::zero(sign);
                    }
                    let lead = fraction.leading_zeros();
                    return Unpacked { denormal: true, ..Unpacked::finite(sign, 1 - $bias - lead as i32, fraction << lead) };
                }
                if biased == Self::MAX_BIASED {
                    if fraction == 0 {
                        return Unpacked::infinity(sign);
                    }
                    let class = if fraction >> 62 != 0 { Class::Quiet } else { Class::Signaling };
                    return Unpacked { class, sign, exponent: 0, significand: fraction | 1 << 63, denormal: false };
                }
                Unpacked::finite(sign, biased as i32 - $bias, fraction | 1 << 63)
            }
            #[inline]
            fn assemble(sign: bool, biased: u32, significand: u64) -> $bits {
                let fraction = (significand << 1 >> 1) >> (64 - $precision);
                (sign as $bits) << ($width - 1) | (biased as $bits) << ($precision - 1) | fraction as $bits
            }
        }
    };
}
interchange!(F16, u16, 16, 11, 15);
interchange!(F32, u32, 32, 24, 127);
interchange!(F64, u64, 64, 53, 1023);

/// Double extended precision.
#[derive(Clone, Copy, Debug)]
pub struct F80Format;

impl Format for F80Format {
    type Bits = F80;
    const PRECISION: u32 = 64;
    const BIAS: i32 = 16383;
    fn unpack(bits: F80) -> Unpacked {
        let sign = bits.sign_exponent >> 15 != 0;
        let biased = bits.sign_exponent as u32 & 0x7fff;
        let m = bits.mantissa;
        if biased == 0 {
            if m == 0 {
                return Unpacked::zero(sign);
            }
            let lead = m.leading_zeros();
            return Unpacked { denormal: true, ..Unpacked::finite(sign, -16382 - lead as i32, m << lead) };
        }
        if m >> 63 == 0 {
            return Unpacked { class: Class::Unsupported, sign, exponent: 0, significand: m, denormal: false };
        }
        if biased == 0x7fff {
            let class = match m << 1 {
                0 => return Unpacked::infinity(sign),
                f if f >> 63 != 0 => Class::Quiet,
                _ => Class::Signaling,
            };
            return Unpacked { class, sign, exponent: 0, significand: m, denormal: false };
        }
        Unpacked::finite(sign, biased as i32 - 16383, m)
    }
    fn assemble(sign: bool, biased: u32, significand: u64) -> F80 {
        F80 { mantissa: significand, sign_exponent: (sign as u16) << 15 | biased as u16 }
    }
}

/// Raise DE if any operand was a denormal.
#[inline]
pub fn note_denormals(env: &mut Env, operands: &[&Unpacked]) {
    if operands.iter().any(|o| o.denormal) {
        env.raise(flags::DE);
    }
}
