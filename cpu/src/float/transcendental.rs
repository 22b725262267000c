//! The x87 functions (SDM vol. 1, Transcendental Instruction Accuracy), by series in 128-bit arithmetic on reduced arguments.
//! Results are right to about 2^−120 before the final rounding. Arguments are finite and not zero unless said otherwise.

use std::sync::OnceLock;

use super::unpacked::Unpacked;
use super::wide::{HALF_PI, LN2, LOG2_E, PI, Wide};

/// Σ of `term(k)` from k = 0 until terms no longer matter.
fn series(mut term: Wide, mut following: impl FnMut(Wide, u32) -> Wide) -> Wide {
    let mut sum = term;
    for k in 1..100 {
        term = following(term, k);
        if term.is_zero() || term.exponent < sum.exponent - 130 {
            break;
        }
        sum = sum + term;
    }
    sum
}

/// 2/π, 256 bits after the point, most significant word first.
const TWO_OVER_PI: [u64; 4] = [0xa2f9_836e_4e44_1529, 0xfc27_57d1_f534_ddc0, 0xdb62_9599_3c43_9041, 0xfe51_63ab_debb_c561];

/// |x| as k·π/2 + r, |r| ≤ π/4: (k mod 4, r). |x| < 2^63.
fn reduce(x: Unpacked) -> (u32, Wide) {
    let magnitude = Wide::from(x).abs();
    if x.exponent < -1 {
        return (0, magnitude);
    }
    // x = m / 2^s with s = 63 − exponent, 0 < s ≤ 64 (|x| < 2^63); m × TWO_OVER_PI is 320 bits, of which 256 + s lie after the point.
    let mut product = [0u64; 5];
    let mut carry = 0u128;
    for i in (0..4).rev() {
        let p = x.significand as u128 * TWO_OVER_PI[i] as u128 + carry;
        product[i + 1] = p as u64;
        carry = p >> 64;
    }
    product[0] = carry as u64;
    // The uppermost 64 − s bits are whole; shift them out.
    let whole_bits = (64 - (63 - x.exponent) as u32).min(63);
    let mut k = 0;
    if whole_bits > 0 {
        k = product[0] >> (64 - whole_bits);
        for i in 0..5 {
            let next = if i < 4 { product[i + 1] } else { 0 };
            product[i] = product[i] << whole_bits | next >> (64 - whole_bits);
        }
    }
    let mut fraction = [product[0], product[1], product[2], product[3]];
    let mut negative = false;
    if fraction[0] >> 63 != 0 {
        k = k.wrapping_add(1);
        negative = true;
        let mut borrow = false;
        for w in fraction.iter_mut().rev() {
            let (v, b1) = 0u64.overflowing_sub(*w);
            let (v, b2) = v.overflowing_sub(borrow as u64);
            *w = v;
            borrow = b1 || b2;
        }
    }
    let high = (fraction[0] as u128) << 64 | fraction[1] as u128;
    let low = (fraction[2] as u128) << 64 | fraction[3] as u128;
    let part = Wide::from_parts(negative, -1, high) + Wide::from_parts(negative, -129, low);
    ((k & 3) as u32, part * HALF_PI)
}

/// The next value towards zero.
fn below(w: Wide) -> Wide {
    if w.significand == 1 << 127 {
        return Wide { exponent: w.exponent - 1, significand: u128::MAX, ..w };
    }
    Wide { significand: w.significand.saturating_sub(1), ..w }
}

/// Below this exponent a function's second term is beyond the last place kept; only its sign matters, for directed rounding.
const TINY: i32 = -64;

fn sin_series(r: Wide) -> Wide {
    if r.exponent < TINY && !r.is_zero() {
        return below(r);
    }
    let square = -(r * r);
    series(r, |t, k| (t * square).div_small(2 * k * (2 * k + 1)))
}

fn cos_series(r: Wide) -> Wide {
    if r.exponent < TINY && !r.is_zero() {
        return below(Wide::ONE);
    }
    let square = -(r * r);
    series(Wide::ONE, |t, k| (t * square).div_small(2 * k * (2 * k - 1)))
}

/// sin x and cos x, |x| < 2^63.
pub fn sin_cos(x: Unpacked) -> (Wide, Wide) {
    let (k, r) = reduce(x);
    let (s, c) = (sin_series(r), cos_series(r));
    let (s, c) = match k {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    };
    (if x.sign { -s } else { s }, c)
}

/// tan x, |x| < 2^63.
pub fn tan(x: Unpacked) -> Wide {
    let (s, c) = sin_cos(x);
    s / c
}

/// arctan t for |t| ≤ 1/8.
fn atan_series(t: Wide) -> Wide {
    if t.exponent < TINY && !t.is_zero() {
        return below(t);
    }
    let square = -(t * t);
    let mut power = t;
    series(t, |_, k| {
        power = power * square;
        power.div_small(2 * k + 1)
    })
}

/// arctan(i/8), i = 0 … 8.
fn atan_table() -> &'static [Wide; 9] {
    static TABLE: OnceLock<[Wide; 9]> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = [Wide::ZERO; 9];
        for i in 1..9i32 {
            // arctan(i/8) − arctan((i−1)/8) = arctan(8 / (64 + i(i−1)))
            let step = Wide::integer(8) / Wide::integer(64 + i * (i - 1));
            table[i as usize] = table[i as usize - 1] + atan_series(step);
        }
        table
    })
}

/// arctan t for 0 ≤ t ≤ 1.
fn atan_unit(t: Wide) -> Wide {
    if t.is_zero() || t.exponent < -4 {
        return atan_series(t);
    }
    // i/8 is the nearest eighth; t's exponent is −4 to 0.
    let sixteenths = (t.significand >> (123 - t.exponent).clamp(123, 127)) as i32;
    let i = ((sixteenths + 1) / 2).min(8);
    let c = Wide::integer(i).scale(-3);
    let u = (t - c) / (Wide::ONE + t * c);
    atan_table()[i as usize] + atan_series(u)
}

/// The angle of the point (x, y), as FPATAN gives it; y and x finite and not zero.
pub fn atan2(y: Unpacked, x: Unpacked) -> Wide {
    let (wy, wx) = (Wide::from(y).abs(), Wide::from(x).abs());
    let mut angle = if wx.smaller(wy) { HALF_PI - atan_unit(wx / wy) } else { atan_unit(wy / wx) };
    if x.sign {
        angle = PI - angle;
    }
    Wide { sign: y.sign, ..angle }
}

/// 2^x − 1 for |x| ≤ 1.
pub fn exp2_minus_1(x: Unpacked) -> Wide {
    let y = Wide::from(x) * LN2;
    series(y, |t, k| (t * y).div_small(k + 1))
}

/// ln((1 + s) / (1 − s)) / ln 2, |s| ≤ 0.172.
fn log2_ratio(s: Wide) -> Wide {
    let square = s * s;
    let mut power = s;
    let sum = series(s, |_, k| {
        power = power * square;
        power.div_small(2 * k + 1)
    });
    sum.scale(1) * LOG2_E
}

fn log2_wide(x: Wide) -> Wide {
    // m in [√½, √2).
    const SQRT2: u128 = 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
    let (m, e) = if x.significand >= SQRT2 {
        (Wide { exponent: -1, ..x }, x.exponent + 1)
    } else {
        (Wide { exponent: 0, ..x }, x.exponent)
    };
    let s = (m - Wide::ONE) / (m + Wide::ONE);
    Wide::integer(e) + if s.is_zero() { Wide::ZERO } else { log2_ratio(s) }
}

/// log2 x for x > 0.
pub fn log2(x: Unpacked) -> Wide {
    log2_wide(Wide::from(x))
}

/// log2(1 + x) for x > −1.
pub fn log2_plus_1(x: Unpacked) -> Wide {
    let w = Wide::from(x);
    if w.exponent < -2 {
        // 1 + x = (1 + s) / (1 − s) with s = x / (2 + x).
        return log2_ratio(w / (Wide::integer(2) + w));
    }
    log2_wide(Wide::ONE + w)
}

#[cfg(test)]
mod tests {
    use super::super::round::pack;
    use super::super::{Env, F64, Format};
    use super::*;

    fn close(w: Wide, expect: f64) {
        let got = f64::from_bits(pack::<F64>(w.to_raw(), &mut Env::sse(0x1f80)));
        assert!((got - expect).abs() <= expect.abs() * 4e-16, "{got:e} instead of {expect:e}");
    }
    fn u(x: f64) -> Unpacked {
        F64::unpack(x.to_bits())
    }

    #[test]
    fn against_host_mathematics() {
        for x in [1e-5, 0.1, 0.3, 0.5, 0.7, 0.78, 0.79, 1.0, 1.5, 2.0, 3.0, 3.2, 4.5, 6.0, 7.0, 100.0, 12345.678, 1e15, 4e18] {
            for x in [x, -x] {
                let (s, c) = sin_cos(u(x));
                close(s, x.sin());
                close(c, x.cos());
                for y in [1e-9f64, 0.2, 0.9, 1.0, 1.1, 77.0] {
                    close(atan2(u(y), u(x)), y.atan2(x));
                    close(atan2(u(-y), u(x)), (-y).atan2(x));
                }
                if x.abs() <= 1.0 {
                    close(exp2_minus_1(u(x)), (x * std::f64::consts::LN_2).exp_m1());
                }
                if x > -0.3 && x < 0.5 {
                    close(log2_plus_1(u(x)), x.ln_1p() / std::f64::consts::LN_2);
                }
                if x > 0.0 {
                    close(log2(u(x)), x.log2());
                }
            }
        }
    }

    #[test]
    fn identities_at_full_width() {
        // sin² + cos² = 1 to 2^−120, also far out.
        for x in [0.4, 1.0, 2.5, 1e10, 9e18] {
            let (s, c) = sin_cos(u(x));
            let e = s * s + c * c - Wide::ONE;
            assert!(e.is_zero() || e.exponent < -120, "{x} {e:?}");
        }
        let quarter = atan2(u(1.0), u(1.0)) - PI.scale(-2);
        assert!(quarter.is_zero() || quarter.exponent < -122);
        // 2^(log2 1.5) = 1.5: through log2 and exp at 64 bits of argument is not possible; log2 8 is exact.
        assert_eq!(log2(u(8.0)), Wide::integer(3));
    }
}
