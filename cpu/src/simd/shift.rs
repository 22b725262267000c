//! Shifts: by a count in an immediate or in the low quadword of a register, and lane by lane.

use super::lanes::{In, build_blocks, instructions, map, view};

macro_rules! shift {
    // Logical: counts from the lane's width up give zero.
    ($v:expr, $count:expr, $t:ty, $op:tt) => {{
        let count: u64 = $count;
        if count >= <$t>::BITS as u64 { [0; N] } else { map($v, |p: $t| p $op count as u32) }
    }};
    // Arithmetic: they give the sign.
    ($v:expr, $count:expr, signed $t:ty) => {{
        let count = ($count as u64).min(<$t>::BITS as u64 - 1) as u32;
        map($v, |p: $t| p >> count)
    }};
}

#[inline(always)]
fn imm<const N: usize>(x: &In<N>) -> u64 {
    x.imm as u64 & 0xff
}

instructions! {
    Psllw = |x| shift!(&x.a, x.b[0], u16, <<);
    Pslld = |x| shift!(&x.a, x.b[0], u32, <<);
    Psllq = |x| shift!(&x.a, x.b[0], u64, <<);
    Psrlw = |x| shift!(&x.a, x.b[0], u16, >>);
    Psrld = |x| shift!(&x.a, x.b[0], u32, >>);
    Psrlq = |x| shift!(&x.a, x.b[0], u64, >>);
    Psraw = |x| shift!(&x.a, x.b[0], signed i16);
    Psrad = |x| shift!(&x.a, x.b[0], signed i32);

    PsllwImm = |x| shift!(&x.b, imm(x), u16, <<);
    PslldImm = |x| shift!(&x.b, imm(x), u32, <<);
    PsllqImm = |x| shift!(&x.b, imm(x), u64, <<);
    PsrlwImm = |x| shift!(&x.b, imm(x), u16, >>);
    PsrldImm = |x| shift!(&x.b, imm(x), u32, >>);
    PsrlqImm = |x| shift!(&x.b, imm(x), u64, >>);
    PsrawImm = |x| shift!(&x.b, imm(x), signed i16);
    PsradImm = |x| shift!(&x.b, imm(x), signed i32);
    /// By bytes, within 128-bit blocks.
    Pslldq = |x| {
        let n = imm(x).min(16) as u32 * 8;
        x.blocks(|_, b| split(if n > 127 { 0 } else { join(b) << n }))
    };
    Psrldq = |x| {
        let n = imm(x).min(16) as u32 * 8;
        x.blocks(|_, b| split(if n > 127 { 0 } else { join(b) >> n }))
    };

    Vpsllvd = |x| x.zip(|p: u32, n: u32| p.checked_shl(n).unwrap_or(0));
    Vpsllvq = |x| x.zip(|p: u64, n: u64| if n < 64 { p << n } else { 0 });
    Vpsrlvd = |x| x.zip(|p: u32, n: u32| p.checked_shr(n).unwrap_or(0));
    Vpsrlvq = |x| x.zip(|p: u64, n: u64| if n < 64 { p >> n } else { 0 });
    Vpsravd = |x| x.zip(|p: i32, n: i32| p >> (n as u32).min(31));

    /// The bytes of first : second source, shifted right by the immediate, within blocks.
    Palignr = |x| {
        let n = imm(x) as usize;
        let size = 8 * super::lanes::block::<N>();
        if N == 1 {
            let v = (x.a[0] as u128) << 64 | x.b[0] as u128;
            return [if n < 16 { (v >> (8 * n)) as u64 } else { 0 }; N];
        }
        let (a, b) = (view::<u8, N>(&x.a), view::<u8, N>(&x.b));
        build_blocks(|base, i| {
            let from = i + n;
            if from < size {
                b[base + from]
            } else if from < 2 * size {
                a[base + from - size]
            } else {
                0
            }
        })
    };

    /// EXTRQ with register operand: length and index in bits 5:0 and 13:8 of the second source.
    Extrq = |x| extract(x.a, x.b[0] as u32, (x.b[0] >> 8) as u32);
    /// With immediates: length, then index.
    ExtrqImm = |x| extract(x.b, x.imm as u32, (x.imm >> 8) as u32);
    /// INSERTQ: length and index in the second source's high quadword.
    Insertq = |x| insert(x, super::lanes::word(&x.b, 1) as u32, (super::lanes::word(&x.b, 1) >> 8) as u32);
    InsertqImm = |x| insert(x, x.imm as u32, (x.imm >> 8) as u32);
}

#[inline(always)]
pub fn join(v: [u64; 2]) -> u128 {
    v[0] as u128 | (v[1] as u128) << 64
}
#[inline(always)]
pub fn split(v: u128) -> [u64; 2] {
    [v as u64, (v >> 64) as u64]
}

/// A field of `length` bits (0 means 64); what lies beyond bit 63 reads as zero.
fn field(length: u32) -> u64 {
    let length = length & 63;
    if length == 0 { u64::MAX } else { (1 << length) - 1 }
}

fn extract<const N: usize>(v: [u64; N], length: u32, index: u32) -> [u64; N] {
    // The high quadword is undefined by the manual; processors clear it.
    let mut r = [0; N];
    r[0] = v[0] >> (index & 63) & field(length);
    r
}

fn insert<const N: usize>(x: &In<N>, length: u32, index: u32) -> [u64; N] {
    let mut r = [0; N];
    let mask = field(length) << (index & 63);
    r[0] = x.a[0] & !mask | (x.b[0] & field(length)) << (index & 63);
    r
}
