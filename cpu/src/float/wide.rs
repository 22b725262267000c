//! Binary floating point with a 128-bit significand, truncating: room enough to get the x87 functions right to well within
//! one unit in the last of 64 places.

use super::round::Raw;
use super::unpacked::{Class, Unpacked};

/// (−1)^sign × significand / 2^127 × 2^exponent; bit 127 of the significand is set, or it is 0 and the value is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wide {
    pub sign: bool,
    pub exponent: i32,
    pub significand: u128,
}

const fn constant(exponent: i32, significand: u128) -> Wide {
    Wide { sign: false, exponent, significand }
}

/// π.
pub const PI: Wide = constant(1, 0xc90fdaa2_2168c234_c4c6628b_80dc1cd1);
/// π/2.
pub const HALF_PI: Wide = constant(0, PI.significand);
/// ln 2.
pub const LN2: Wide = constant(-1, 0xb17217f7_d1cf79ab_c9e3b398_03f2f6af);
/// log2 e.
pub const LOG2_E: Wide = constant(0, 0xb8aa3b29_5c17f0bb_be87fed0_691d3e88);
/// log2 10.
pub const LOG2_10: Wide = constant(1, 0xd49a784b_cd1b8afe_492bf6ff_4dafdb4c);
/// log10 2.
pub const LOG10_2: Wide = constant(-2, 0x9a209a84_fbcff798_8f8959ac_0b7c9178);

impl Wide {
    pub const ZERO: Wide = constant(0, 0);
    pub const ONE: Wide = constant(0, 1 << 127);

    /// A small integer.
    pub fn integer(value: i32) -> Wide {
        Wide::from_parts(value < 0, 127, value.unsigned_abs() as u128)
    }

    /// Normalise; `exponent` is that of bit 127.
    pub fn from_parts(sign: bool, exponent: i32, significand: u128) -> Wide {
        if significand == 0 {
            return Wide { sign, ..Wide::ZERO };
        }
        let lead = significand.leading_zeros();
        Wide { sign, exponent: exponent - lead as i32, significand: significand << lead }
    }

    pub fn is_zero(self) -> bool {
        self.significand == 0
    }
    pub fn abs(self) -> Wide {
        Wide { sign: false, ..self }
    }
    /// × 2^n.
    pub fn scale(self, n: i32) -> Wide {
        if self.is_zero() { self } else { Wide { exponent: self.exponent + n, ..self } }
    }

    /// |self| < |other|.
    pub fn smaller(self, other: Wide) -> bool {
        match (self.is_zero(), other.is_zero()) {
            (_, true) => false,
            (true, false) => true,
            _ => (self.exponent, self.significand) < (other.exponent, other.significand),
        }
    }

    /// ÷ by a small positive integer.
    pub fn div_small(self, n: u32) -> Wide {
        if self.is_zero() || n == 0 {
            return self;
        }
        // Keep 32 more bits through the division so that nothing is lost in normalising.
        let n = n as u128;
        let high = self.significand / n;
        let rest = self.significand % n;
        let lead = high.leading_zeros();
        let low = if lead == 0 { 0 } else { (rest << lead) / n };
        Wide { exponent: self.exponent - lead as i32, significand: high << lead | low, ..self }
    }

    /// For rounding: never exact, so that the last bit sticks.
    pub fn to_raw(self) -> Raw {
        if self.is_zero() {
            return Unpacked::zero(self.sign).into();
        }
        Raw { class: Class::Finite, sign: self.sign, exponent: self.exponent, significand: self.significand | 1 }
    }
}

impl From<Unpacked> for Wide {
    /// Finite values and zeros.
    fn from(u: Unpacked) -> Wide {
        if u.class != Class::Finite {
            return Wide { sign: u.sign, ..Wide::ZERO };
        }
        Wide { sign: u.sign, exponent: u.exponent, significand: (u.significand as u128) << 64 }
    }
}

impl std::ops::Neg for Wide {
    type Output = Wide;
    fn neg(self) -> Wide {
        Wide { sign: !self.sign, ..self }
    }
}

impl std::ops::Add for Wide {
    type Output = Wide;
    fn add(self, other: Wide) -> Wide {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let (big, small) = if self.smaller(other) { (other, self) } else { (self, other) };
        let distance = big.exponent as i64 - small.exponent as i64;
        let shifted = if distance > 127 { 0 } else { small.significand >> distance };
        if big.sign == small.sign {
            let (sum, carry) = big.significand.overflowing_add(shifted);
            if carry {
                return Wide { sign: big.sign, exponent: big.exponent + 1, significand: sum >> 1 | 1 << 127 };
            }
            return Wide { significand: sum, ..big };
        }
        Wide::from_parts(big.sign, big.exponent, big.significand - shifted)
    }
}

impl std::ops::Sub for Wide {
    type Output = Wide;
    fn sub(self, other: Wide) -> Wide {
        self + -other
    }
}

/// The high and low halves of a product.
pub fn multiply(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let low = a0 * b0;
    let mid = a1 * b0 + (low >> 64);
    let (mid, carry) = mid.overflowing_add(a0 * b1);
    let high = a1 * b1 + (mid >> 64) + ((carry as u128) << 64);
    (high, mid << 64 | low & LOW)
}

impl std::ops::Mul for Wide {
    type Output = Wide;
    fn mul(self, other: Wide) -> Wide {
        let sign = self.sign != other.sign;
        if self.is_zero() || other.is_zero() {
            return Wide { sign, ..Wide::ZERO };
        }
        let (high, low) = multiply(self.significand, other.significand);
        let exponent = self.exponent + other.exponent + 1;
        if high >> 127 != 0 {
            Wide { sign, exponent, significand: high }
        } else {
            Wide { sign, exponent: exponent - 1, significand: high << 1 | low >> 127 }
        }
    }
}

impl std::ops::Div for Wide {
    type Output = Wide;
    /// Division by zero gives zero; callers rule it out.
    fn div(self, other: Wide) -> Wide {
        let sign = self.sign != other.sign;
        if self.is_zero() || other.is_zero() {
            return Wide { sign, ..Wide::ZERO };
        }
        let d = other.significand;
        // Long division, bit by bit: quotient of the significands with 128 bits.
        let mut rest = self.significand;
        let mut exponent = self.exponent - other.exponent;
        let mut quotient = 0u128;
        let mut overflow = false;
        if rest < d {
            exponent -= 1;
            overflow = rest >> 127 != 0;
            rest <<= 1;
        }
        for _ in 0..128 {
            quotient <<= 1;
            if overflow || rest >= d {
                rest = rest.wrapping_sub(d);
                quotient |= 1;
            }
            overflow = rest >> 127 != 0;
            rest <<= 1;
        }
        Wide { sign, exponent, significand: quotient }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic() {
        let third = Wide::ONE / Wide::integer(3);
        assert_eq!(third.significand, 0xaaaa_aaaa_aaaa_aaaa_aaaa_aaaa_aaaa_aaaa);
        assert_eq!(third.exponent, -2);
        let one = third * Wide::integer(3);
        let error = Wide::ONE - one;
        assert!(error.is_zero() || error.exponent <= -126);
        assert_eq!(Wide::ONE.div_small(3), Wide { significand: third.significand, ..third });
        assert!((Wide::integer(-7) + Wide::integer(7)).is_zero());
        assert_eq!(multiply(u128::MAX, u128::MAX), (u128::MAX - 1, 1));
        let e = PI - HALF_PI - HALF_PI;
        assert!(e.is_zero() || e.exponent <= -125);
    }
}
