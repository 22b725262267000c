//! Integer comparisons, and what is learnt from signs and bits.

use super::lanes::{In, instructions};

instructions! {
    Pcmpeqb = |x| x.zip(|p: u8, q: u8| if p == q { u8::MAX } else { 0 });
    Pcmpeqw = |x| x.zip(|p: u16, q: u16| if p == q { u16::MAX } else { 0 });
    Pcmpeqd = |x| x.zip(|p: u32, q: u32| if p == q { u32::MAX } else { 0 });
    Pcmpeqq = |x| x.zip(|p: u64, q: u64| if p == q { u64::MAX } else { 0 });
    Pcmpgtb = |x| x.zip(|p: i8, q: i8| if p > q { u8::MAX } else { 0 });
    Pcmpgtw = |x| x.zip(|p: i16, q: i16| if p > q { u16::MAX } else { 0 });
    Pcmpgtd = |x| x.zip(|p: i32, q: i32| if p > q { u32::MAX } else { 0 });
    Pcmpgtq = |x| x.zip(|p: i64, q: i64| if p > q { u64::MAX } else { 0 });
}

/// An instruction whose result is a number: masks for a general register.
pub trait Mask {
    fn mask<const N: usize>(v: &[u64; N]) -> u64;
}

/// PMOVMSKB.
pub struct SignsOfBytes;
/// MOVMSKPS.
pub struct SignsOfSingles;
/// MOVMSKPD.
pub struct SignsOfDoubles;

impl Mask for SignsOfBytes {
    #[inline(always)]
    fn mask<const N: usize>(v: &[u64; N]) -> u64 {
        let mut mask = 0;
        for (i, w) in v.iter().enumerate() {
            // The product brings bit 8 k to bit 56 + k.
            mask |= ((w >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
        }
        mask
    }
}
impl Mask for SignsOfSingles {
    #[inline(always)]
    fn mask<const N: usize>(v: &[u64; N]) -> u64 {
        let mut mask = 0;
        for (i, w) in v.iter().enumerate() {
            mask |= (w >> 31 & 1 | w >> 62 & 2) << (2 * i);
        }
        mask
    }
}
impl Mask for SignsOfDoubles {
    #[inline(always)]
    fn mask<const N: usize>(v: &[u64; N]) -> u64 {
        let mut mask = 0;
        for (i, w) in v.iter().enumerate() {
            mask |= (w >> 63) << i;
        }
        mask
    }
}

/// PTEST (`BITS` = all ones) and VTESTPS, VTESTPD (sign bits): ZF and CF. `a` is the first operand.
#[inline(always)]
pub fn test<const BITS: u64, const N: usize>(x: &In<N>) -> (bool, bool) {
    let (mut and, mut andn) = (0, 0);
    for i in 0..N {
        and |= x.a[i] & x.b[i];
        andn |= !x.a[i] & x.b[i];
    }
    (and & BITS == 0, andn & BITS == 0)
}
