//! Bitwise logic, and blends by bits of a mask.

use super::lanes::{build, instructions, lanes, view, zip};

instructions! {
    Pand = |x| x.zip(|p: u64, q: u64| p & q);
    Pandn = |x| x.zip(|p: u64, q: u64| !p & q);
    Por = |x| x.zip(|p: u64, q: u64| p | q);
    Pxor = |x| x.zip(|p: u64, q: u64| p ^ q);
    /// The source as it is: register moves.
    Copy = |x| x.b;
    /// BLENDPS, VPBLENDD: bit i of the immediate chooses lane i of the second source.
    Blendps = |x| {
        let (a, b) = (view::<u32, N>(&x.a), view::<u32, N>(&x.b));
        build(|i| if x.imm >> i & 1 != 0 { b[i] } else { a[i] })
    };
    Blendpd = |x| build(|i| if x.imm >> i & 1 != 0 { x.b[i] } else { x.a[i] });
    /// The eight bits serve each 128-bit block.
    Pblendw = |x| {
        let (a, b) = (view::<u16, N>(&x.a), view::<u16, N>(&x.b));
        build(|i| if x.imm >> (i & 7) & 1 != 0 { b[i] } else { a[i] })
    };
    /// The sign of each lane of the mask chooses.
    Blendvps = |x| select::<i32, N>(&x.c, &x.a, &x.b, |m| m >> 31);
    Blendvpd = |x| select::<i64, N>(&x.c, &x.a, &x.b, |m| m >> 63);
    Pblendvb = |x| select::<i8, N>(&x.c, &x.a, &x.b, |m| m >> 7);
}

#[inline(always)]
fn select<T: super::lanes::Lane, const N: usize>(
    mask: &[u64; N],
    a: &[u64; N],
    b: &[u64; N],
    spread: impl Fn(T) -> T,
) -> [u64; N] {
    let m: [u64; N] = super::lanes::map(mask, spread);
    let picked: [u64; N] = zip(&m, b, |m: u64, b: u64| m & b);
    let kept: [u64; N] = zip(&m, a, |m: u64, a: u64| !m & a);
    debug_assert!(lanes::<T, N>() > 0);
    zip(&picked, &kept, |p: u64, k: u64| p | k)
}
