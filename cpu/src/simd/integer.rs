//! Integer arithmetic.

use super::lanes::{build, build_blocks, instructions, view};

/// a + b or a − b over neighbours, the first source's in the low half of each block.
macro_rules! horizontal {
    ($x:expr, $t:ty, $f:expr) => {{
        let (a, b) = (view::<$t, N>(&$x.a), view::<$t, N>(&$x.b));
        let half = super::lanes::block::<N>() * 8 / size_of::<$t>() / 2;
        build_blocks(|base, i| {
            if i < half {
                $f(a[base + 2 * i], a[base + 2 * i + 1])
            } else {
                $f(b[base + 2 * (i - half)], b[base + 2 * (i - half) + 1])
            }
        })
    }};
}

instructions! {
    Paddb = |x| x.zip(u8::wrapping_add);
    Paddw = |x| x.zip(u16::wrapping_add);
    Paddd = |x| x.zip(u32::wrapping_add);
    Paddq = |x| x.zip(u64::wrapping_add);
    Psubb = |x| x.zip(u8::wrapping_sub);
    Psubw = |x| x.zip(u16::wrapping_sub);
    Psubd = |x| x.zip(u32::wrapping_sub);
    Psubq = |x| x.zip(u64::wrapping_sub);
    Paddsb = |x| x.zip(i8::saturating_add);
    Paddsw = |x| x.zip(i16::saturating_add);
    Paddusb = |x| x.zip(u8::saturating_add);
    Paddusw = |x| x.zip(u16::saturating_add);
    Psubsb = |x| x.zip(i8::saturating_sub);
    Psubsw = |x| x.zip(i16::saturating_sub);
    Psubusb = |x| x.zip(u8::saturating_sub);
    Psubusw = |x| x.zip(u16::saturating_sub);

    Pminub = |x| x.zip(|p: u8, q: u8| p.min(q));
    Pminuw = |x| x.zip(|p: u16, q: u16| p.min(q));
    Pminud = |x| x.zip(|p: u32, q: u32| p.min(q));
    Pminsb = |x| x.zip(|p: i8, q: i8| p.min(q));
    Pminsw = |x| x.zip(|p: i16, q: i16| p.min(q));
    Pminsd = |x| x.zip(|p: i32, q: i32| p.min(q));
    Pmaxub = |x| x.zip(|p: u8, q: u8| p.max(q));
    Pmaxuw = |x| x.zip(|p: u16, q: u16| p.max(q));
    Pmaxud = |x| x.zip(|p: u32, q: u32| p.max(q));
    Pmaxsb = |x| x.zip(|p: i8, q: i8| p.max(q));
    Pmaxsw = |x| x.zip(|p: i16, q: i16| p.max(q));
    Pmaxsd = |x| x.zip(|p: i32, q: i32| p.max(q));

    Pavgb = |x| x.zip(|p: u8, q: u8| ((p as u16 + q as u16 + 1) >> 1) as u8);
    Pavgw = |x| x.zip(|p: u16, q: u16| ((p as u32 + q as u32 + 1) >> 1) as u16);
    Pabsb = |x| x.map(i8::wrapping_abs);
    Pabsw = |x| x.map(i16::wrapping_abs);
    Pabsd = |x| x.map(i32::wrapping_abs);
    Psignb = |x| x.zip(|p: i8, q: i8| if q < 0 { p.wrapping_neg() } else if q == 0 { 0 } else { p });
    Psignw = |x| x.zip(|p: i16, q: i16| if q < 0 { p.wrapping_neg() } else if q == 0 { 0 } else { p });
    Psignd = |x| x.zip(|p: i32, q: i32| if q < 0 { p.wrapping_neg() } else if q == 0 { 0 } else { p });

    Pmullw = |x| x.zip(u16::wrapping_mul);
    Pmulld = |x| x.zip(u32::wrapping_mul);
    Pmulhw = |x| x.zip(|p: i16, q: i16| ((p as i32 * q as i32) >> 16) as i16);
    Pmulhuw = |x| x.zip(|p: u16, q: u16| ((p as u32 * q as u32) >> 16) as u16);
    Pmulhrsw = |x| x.zip(|p: i16, q: i16| ((((p as i32 * q as i32) >> 14) + 1) >> 1) as i16);
    Pmuludq = |x| x.zip(|p: u64, q: u64| (p as u32 as u64) * (q as u32 as u64));
    Pmuldq = |x| x.zip(|p: i64, q: i64| (p as i32 as i64) * (q as i32 as i64));
    /// Sums of two products; only 0x8000 four times overflows, and wraps.
    Pmaddwd = |x| {
        let (a, b) = (view::<i16, N>(&x.a), view::<i16, N>(&x.b));
        let product = |i: usize| a[i] as i32 * b[i] as i32;
        build(|i| product(2 * i).wrapping_add(product(2 * i + 1)))
    };
    /// Unsigned bytes of the first source times signed ones of the second, saturated sums of two.
    Pmaddubsw = |x| {
        let (a, b) = (view::<u8, N>(&x.a), view::<i8, N>(&x.b));
        let product = |i: usize| a[i] as i32 * b[i] as i32;
        build(|i| (product(2 * i) + product(2 * i + 1)).clamp(-0x8000, 0x7fff) as i16)
    };
    /// Sum of absolute differences of eight bytes.
    Psadbw = |x| {
        let (a, b) = (view::<u8, N>(&x.a), view::<u8, N>(&x.b));
        build(|i| {
            let mut sum = 0u64;
            for j in 8 * i..8 * i + 8 {
                sum += a[j].abs_diff(b[j]) as u64;
            }
            sum
        })
    };

    Phaddw = |x| horizontal!(x, u16, u16::wrapping_add);
    Phaddd = |x| horizontal!(x, u32, u32::wrapping_add);
    Phaddsw = |x| horizontal!(x, i16, i16::saturating_add);
    Phsubw = |x| horizontal!(x, u16, u16::wrapping_sub);
    Phsubd = |x| horizontal!(x, u32, u32::wrapping_sub);
    Phsubsw = |x| horizontal!(x, i16, i16::saturating_sub);

    /// Smallest of eight words and its place.
    Phminposuw = |x| {
        let b = view::<u16, N>(&x.b);
        let mut best = (b[0], 0);
        for (i, &w) in b.iter().enumerate().take(8) {
            if w < best.0 {
                best = (w, i);
            }
        }
        let mut r = [0; N];
        r[0] = best.0 as u64 | (best.1 as u64) << 16;
        r
    };
    /// Eight sums of four absolute differences; the high block of a YMM register has its own three bits of the immediate.
    Mpsadbw = |x| {
        let (a, b) = (view::<u8, N>(&x.a), view::<u8, N>(&x.b));
        build_blocks(|base, i| {
            let bytes = 2 * base;
            let imm = if base == 0 { x.imm } else { x.imm >> 3 } as usize;
            let (from_a, from_b) = (bytes + 4 * (imm >> 2 & 1) + i, bytes + 4 * (imm & 3));
            let mut sum = 0u16;
            for j in 0..4 {
                sum += at(a, from_a + j).abs_diff(at(b, from_b + j)) as u16;
            }
            sum
        })
    };
}

#[inline(always)]
fn at(v: &[u8], i: usize) -> u8 {
    v.get(i).copied().unwrap_or(0)
}
