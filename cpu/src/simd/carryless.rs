//! Carry-less multiplication, and GF(2^8) arithmetic.

use super::lanes::instructions;
use super::shift::split;

/// Product of polynomials over GF(2).
pub fn multiply(a: u64, b: u64) -> u128 {
    // Multiples of a by all four-bit polynomials; then b four bits at a time.
    let mut table = [0u128; 16];
    for i in 1..16 {
        table[i] = if i & 1 != 0 { table[i - 1] ^ a as u128 } else { table[i / 2] << 1 };
    }
    let mut r = 0;
    for i in (0..16).rev() {
        r = r << 4 ^ table[(b >> (4 * i) & 15) as usize];
    }
    r
}

instructions! {
    Pclmulqdq = |x| x.blocks(|a, b| split(multiply(a[x.imm as usize & 1], b[x.imm as usize >> 4 & 1])));
    /// Modulo x^8 + x^4 + x^3 + x + 1.
    Gf2p8mulb = |x| x.zip(gf_multiply);
    Gf2p8affineqb = |x| {
        let (a, b) = (super::lanes::view::<u8, N>(&x.a), &x.b);
        super::lanes::build(|i| affine(a[i], b[i / 8], x.imm as u8))
    };
    Gf2p8affineinvqb = |x| {
        let (a, b) = (super::lanes::view::<u8, N>(&x.a), &x.b);
        super::lanes::build(|i| affine(gf_inverse(a[i]), b[i / 8], x.imm as u8))
    };
}

fn gf_multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut r) = (a, 0);
    for i in 0..8 {
        if b >> i & 1 != 0 {
            r ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
    }
    r
}

/// a^254: the inverse, and 0 for 0.
fn gf_inverse(a: u8) -> u8 {
    let (mut power, mut r) = (a, 1);
    for _ in 0..7 {
        power = gf_multiply(power, power);
        r = gf_multiply(r, power);
    }
    r
}

/// Bit i is the parity of matrix byte 7 − i and the vector, xor bit i of the constant.
fn affine(v: u8, matrix: u64, constant: u8) -> u8 {
    let mut r = 0;
    for i in 0..8 {
        let row = (matrix >> (8 * (7 - i))) as u8;
        r |= (((row & v).count_ones() as u8 ^ constant >> i) & 1) << i;
    }
    r
}
