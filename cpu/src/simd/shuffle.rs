//! Shuffles, permutations, broadcasts, insertions.

use super::lanes::{In, build, build_blocks, instructions, view, view_mut, word};

instructions! {
    Pshufb = |x| {
        let size = 8 * super::lanes::block::<N>();
        let (a, b) = (view::<u8, N>(&x.a), view::<u8, N>(&x.b));
        let mut r = [0; N];
        // Words are put together in registers: byte stores would stall the reader of the whole.
        for (w, r) in r.iter_mut().enumerate() {
            let base = 8 * w & !(size - 1);
            for j in 0..8 {
                let m = b[8 * w + j];
                let v = a[base + (m as usize & (size - 1))] & !((m as i8 >> 7) as u8);
                *r |= (v as u64) << (8 * j);
            }
        }
        r
    };
    Pshufd = |x| {
        let b = view::<u32, N>(&x.b);
        let pick = |base: usize, i: u32| b[base + (x.imm >> (2 * i) & 3) as usize] as u64;
        pairs(|base| [pick(base, 0) | pick(base, 1) << 32, pick(base, 2) | pick(base, 3) << 32])
    };
    /// The first source's lanes in the low half of each block, the second's in the high half.
    Shufps = |x| {
        let (a, b) = (view::<u32, N>(&x.a), view::<u32, N>(&x.b));
        let pick = |v: &[u32], base: usize, i: u32| v[base + (x.imm >> (2 * i) & 3) as usize] as u64;
        pairs(|base| [pick(a, base, 0) | pick(a, base, 1) << 32, pick(b, base, 2) | pick(b, base, 3) << 32])
    };
    Shufpd = |x| build(|i| {
        let v = if i & 1 == 0 { &x.a } else { &x.b };
        v[(i & !1) + (x.imm as usize >> i & 1)]
    });
    Pshuflw = |x| {
        let mut r = x.b;
        for i in (0..N).step_by(2) {
            r[i] = shuffle_words(x.b[i], x.imm);
        }
        r
    };
    Pshufhw = |x| {
        let mut r = x.b;
        for i in (1..N).step_by(2) {
            r[i] = shuffle_words(x.b[i], x.imm);
        }
        r
    };
    Pshufw = |x| {
        let mut r = x.b;
        r[0] = shuffle_words(x.b[0], x.imm);
        r
    };

    Movsldup = |x| x.map(|v: u64| v & 0xffff_ffff | v << 32);
    Movshdup = |x| x.map(|v: u64| v >> 32 | v & !0xffff_ffff);
    Movddup = |x| build(|i| x.b[i & !1]);
    /// Low quadword of the second source over the first.
    MoveLow = |x| {
        let mut r = x.a;
        r[0] = x.b[0];
        r
    };
    /// MOVHPS, MOVLHPS: low quadword of the second source over the high one.
    MoveHigh = |x| {
        let mut r = x.a;
        if N > 1 {
            r[1] = x.b[0];
        }
        r
    };
    Movhlps = |x| {
        let mut r = x.a;
        r[0] = word(&x.b, 1);
        r
    };
    /// MOVSS between registers.
    MoveSingle = |x| {
        let mut r = x.a;
        r[0] = r[0] & !0xffff_ffff | x.b[0] & 0xffff_ffff;
        r
    };
    /// MOVQ between registers: the rest is zero.
    Quad = |x| {
        let mut r = [0; N];
        r[0] = x.b[0];
        r
    };
    /// The high quadword, for MOVHPS to memory.
    High = |x| {
        let mut r = [0; N];
        r[0] = word(&x.b, 1);
        r
    };

    Vpermilps = |x| {
        let (a, b) = (view::<u32, N>(&x.a), view::<u32, N>(&x.b));
        build_blocks(|base, i| a[base + (b[base + i] & 3) as usize])
    };
    Vpermilpd = |x| build(|i| x.a[(i & !1) + (x.b[i] as usize >> 1 & 1)]);
    VpermilpdImm = |x| build(|i| x.b[(i & !1) + (x.imm as usize >> i & 1)]);
    /// VPERMD, VPERMPS: indices in the first source.
    Vpermd = |x| {
        let (a, b) = (view::<u32, N>(&x.a), view::<u32, N>(&x.b));
        build(|i| b[a[i] as usize & (2 * N - 1)])
    };
    Vpermq = |x| build(|i| x.b[x.imm as usize >> (2 * i) & (N - 1)]);
    Vperm2f128 = |x| {
        let mut r = [0; N];
        for half in 0..N / 2 {
            let control = x.imm as usize >> (4 * half);
            let from = if control & 2 == 0 { &x.a } else { &x.b };
            if control & 8 == 0 {
                r[2 * half] = word(from, 2 * (control & 1));
                r[2 * half + 1] = word(from, 2 * (control & 1) + 1);
            }
        }
        r
    };
    Broadcast8 = |x| [(x.b[0] & 0xff) * 0x0101_0101_0101_0101; N];
    Broadcast16 = |x| [(x.b[0] & 0xffff) * 0x0001_0001_0001_0001; N];
    Broadcast32 = |x| [(x.b[0] & 0xffff_ffff) * 0x0000_0001_0000_0001; N];
    Broadcast64 = |x| [x.b[0]; N];
    Broadcast128 = |x| build(|i| word(&x.b, i & 1));
    Vinsertf128 = |x| {
        let at = 2 * (x.imm as usize & 1);
        build(|i| if i & 2 == at { word(&x.b, i & 1) } else { x.a[i] })
    };
    Vextractf128 = |x| {
        let at = 2 * (x.imm as usize & 1);
        build(|i| if i < 2 { word(&x.b, at + i) } else { 0 })
    };

    Insertps = |x| insertps(x, x.imm as usize >> 6 & 3);
    /// From memory there is but one single.
    InsertpsMemory = |x| insertps(x, 0);
    Pinsrb = |x| {
        let mut r = x.a;
        view_mut::<u8, N>(&mut r)[x.imm as usize & (8 * N - 1)] = x.b[0] as u8;
        r
    };
    Pinsrw = |x| {
        let mut r = x.a;
        view_mut::<u16, N>(&mut r)[x.imm as usize & (4 * N - 1)] = x.b[0] as u16;
        r
    };
    Pinsrd = |x| {
        let mut r = x.a;
        view_mut::<u32, N>(&mut r)[x.imm as usize & (2 * N - 1)] = x.b[0] as u32;
        r
    };
    Pinsrq = |x| {
        let mut r = x.a;
        r[x.imm as usize & (N - 1)] = x.b[0];
        r
    };
    /// To the low lane, zero-extended.
    Pextrb = |x| lone(view::<u8, N>(&x.b)[x.imm as usize & (8 * N - 1)] as u64);
    Pextrw = |x| lone(view::<u16, N>(&x.b)[x.imm as usize & (4 * N - 1)] as u64);
    Pextrd = |x| lone(view::<u32, N>(&x.b)[x.imm as usize & (2 * N - 1)] as u64);
    Pextrq = |x| lone(x.b[x.imm as usize & (N - 1)]);
}

#[inline(always)]
fn lone<const N: usize>(value: u64) -> [u64; N] {
    let mut r = [0; N];
    r[0] = value;
    r
}

/// Per 128-bit block two words; `f` gets the block's first 32-bit lane.
#[inline(always)]
fn pairs<const N: usize>(f: impl Fn(usize) -> [u64; 2]) -> [u64; N] {
    let mut r = [0; N];
    for i in (0..N / 2 * 2).step_by(2) {
        [r[i], r[i + 1]] = f(2 * i);
    }
    r
}

#[inline(always)]
fn shuffle_words(v: u64, imm: u16) -> u64 {
    let pick = |i: u32| v >> (16 * (imm >> (2 * i) & 3)) & 0xffff;
    pick(0) | pick(1) << 16 | pick(2) << 32 | pick(3) << 48
}

#[inline(always)]
fn insertps<const N: usize>(x: &In<N>, from: usize) -> [u64; N] {
    let mut r = x.a;
    let v = view::<u32, N>(&x.b)[from & (2 * N - 1)];
    let lanes = view_mut::<u32, N>(&mut r);
    lanes[(x.imm as usize >> 4 & 3) & (2 * N - 1)] = v;
    for (i, lane) in lanes.iter_mut().enumerate() {
        if x.imm >> i & 1 != 0 {
            *lane = 0;
        }
    }
    r
}
