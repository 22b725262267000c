//! SHA-1 and SHA-256 rounds and message schedules (SDM vol. 2, SHA1RNDS4 to SHA256MSG2). Lanes are named from the most significant
//! one down, as in the manual.

use super::lanes::instructions;

/// 32-bit lanes, most significant first.
#[inline(always)]
fn lanes(v: [u64; 2]) -> [u32; 4] {
    [(v[1] >> 32) as u32, v[1] as u32, (v[0] >> 32) as u32, v[0] as u32]
}
#[inline(always)]
fn vector(v: [u32; 4]) -> [u64; 2] {
    [v[3] as u64 | (v[2] as u64) << 32, v[1] as u64 | (v[0] as u64) << 32]
}

#[inline(always)]
fn small_sigma0(w: u32) -> u32 {
    w.rotate_right(7) ^ w.rotate_right(18) ^ w >> 3
}
#[inline(always)]
fn small_sigma1(w: u32) -> u32 {
    w.rotate_right(17) ^ w.rotate_right(19) ^ w >> 10
}
#[inline(always)]
fn choose(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ !x & z
}
#[inline(always)]
fn majority(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ x & z ^ y & z
}

instructions! {
    Sha1rnds4 = |x| x.blocks(|s, w| vector(sha1_rounds(lanes(s), lanes(w), x.imm & 3)));
    Sha1nexte = |x| x.blocks(|s, w| {
        let mut r = lanes(w);
        r[0] = r[0].wrapping_add(lanes(s)[0].rotate_left(30));
        vector(r)
    });
    Sha1msg1 = |x| x.blocks(|a, b| {
        let ([w0, w1, w2, w3], [w4, w5, ..]) = (lanes(a), lanes(b));
        vector([w2 ^ w0, w3 ^ w1, w4 ^ w2, w5 ^ w3])
    });
    Sha1msg2 = |x| x.blocks(|a, b| {
        let (a, [_, w13, w14, w15]) = (lanes(a), lanes(b));
        let w16 = (a[0] ^ w13).rotate_left(1);
        vector([w16, (a[1] ^ w14).rotate_left(1), (a[2] ^ w15).rotate_left(1), (a[3] ^ w16).rotate_left(1)])
    });
    Sha256rnds2 = |x| {
        let wk = [x.c[0] as u32, (x.c[0] >> 32) as u32];
        x.blocks(|s, t| vector(sha256_rounds(lanes(s), lanes(t), wk)))
    };
    Sha256msg1 = |x| x.blocks(|a, b| {
        let ([w3, w2, w1, w0], [.., w4]) = (lanes(a), lanes(b));
        let next = |w: u32, after: u32| w.wrapping_add(small_sigma0(after));
        vector([next(w3, w4), next(w2, w3), next(w1, w2), next(w0, w1)])
    });
    Sha256msg2 = |x| x.blocks(|a, b| {
        let (a, [w15, w14, ..]) = (lanes(a), lanes(b));
        let w16 = a[3].wrapping_add(small_sigma1(w14));
        let w17 = a[2].wrapping_add(small_sigma1(w15));
        let w18 = a[1].wrapping_add(small_sigma1(w16));
        let w19 = a[0].wrapping_add(small_sigma1(w17));
        vector([w19, w18, w17, w16])
    });
}

#[inline(always)]
fn sha1_rounds(s: [u32; 4], w: [u32; 4], function: u16) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = s;
    // The first word has E added in already.
    let mut e = 0u32;
    let k = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6u32][function as usize & 3];
    for w in w {
        let f = match function {
            0 => choose(b, c, d),
            2 => majority(b, c, d),
            _ => b ^ c ^ d,
        };
        let next = f.wrapping_add(a.rotate_left(5)).wrapping_add(w).wrapping_add(e).wrapping_add(k);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    [a, b, c, d]
}

/// `s`: C, D, G, H; `t`: A, B, E, F.
#[inline(always)]
fn sha256_rounds(s: [u32; 4], t: [u32; 4], wk: [u32; 2]) -> [u32; 4] {
    let ([mut c, mut d, mut g, mut h], [mut a, mut b, mut e, mut f]) = (s, t);
    for wk in wk {
        let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t1 = choose(e, f, g).wrapping_add(sum1).wrapping_add(wk).wrapping_add(h);
        let t2 = majority(a, b, c).wrapping_add(sum0);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    let _ = (c, d, g, h);
    [a, b, e, f]
}
