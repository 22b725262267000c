//! RCPPS and RSQRTPS: approximations with a relative error of at most 1.5 × 2^−12 (SDM vol. 2, RCPPS, RSQRTPS).
//!
//! Real processors use tables that differ from model to model. Here it is the exact value rounded to 12 fraction bits (relative
//! error at most 2^−13), the same on every host: powers of two (for RSQRTPS: of four) come out exact.

/// Keep 12 fraction bits of a normal single, rounding to nearest.
fn shorten(bits: u32) -> u32 {
    (bits + 0x400) & !0x7ff
}

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0x7f80_0000;

/// RCPSS of one element. Denormals count as zeros, tiny results become zeros; no exceptions.
pub fn reciprocal(a: u32) -> u32 {
    let magnitude = a & !SIGN;
    if magnitude > INFINITY {
        return a | 0x40_0000;
    }
    if magnitude == INFINITY {
        return a & SIGN;
    }
    if magnitude < 0x80_0000 {
        return a & SIGN | INFINITY;
    }
    let r = (1.0 / f32::from_bits(magnitude) as f64) as f32;
    if r < f32::MIN_POSITIVE { a & SIGN } else { a & SIGN | shorten(r.to_bits()) }
}

/// RSQRTSS of one element.
pub fn reciprocal_root(a: u32) -> u32 {
    let magnitude = a & !SIGN;
    if magnitude > INFINITY {
        return a | 0x40_0000;
    }
    if magnitude < 0x80_0000 {
        return a & SIGN | INFINITY;
    }
    if a & SIGN != 0 {
        return 0xffc0_0000;
    }
    if magnitude == INFINITY {
        return 0;
    }
    shorten(((1.0 / (f32::from_bits(a) as f64).sqrt()) as f32).to_bits())
}

super::lanes::instructions! {
    Rcpps = |x| x.map(reciprocal);
    Rcpss = |x| scalar(x, reciprocal);
    Rsqrtps = |x| x.map(reciprocal_root);
    Rsqrtss = |x| scalar(x, reciprocal_root);
}

fn scalar<const N: usize>(x: &super::In<N>, f: fn(u32) -> u32) -> [u64; N] {
    let mut r = x.a;
    r[0] = r[0] & !0xffff_ffff | f(x.b[0] as u32) as u64;
    r
}
