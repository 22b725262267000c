use super::aes::*;
use super::carryless::multiply;
use super::integer::*;
use super::lanes::{view, word};
use super::pack::*;
use super::reciprocal::{reciprocal, reciprocal_root};
use super::shift::{join, split};
use super::shuffle::*;
use super::text::{compare, explicit_length};
use super::{In, Lanes};

fn input<const N: usize>(a: [u64; N], b: [u64; N], imm: u16) -> In<N> {
    In { old: [0; N], a, b, c: [0; N], imm }
}

/// FIPS 197, appendix B: the first round, and its inverse.
#[test]
fn aes_round_of_the_standard() {
    let state = split(u128::from_be_bytes(0x193de3bea0f4e22b9ac68d2ae9f84808u128.to_be_bytes()).swap_bytes());
    let key = split(0xa0fafe1788542cb123a339392a6c7605u128.swap_bytes());
    let r = Aesenc::lanes(&input(state, key, 0));
    assert_eq!(join(r), 0xa49c7ff2689f352b6b5bea43026a5049u128.swap_bytes());
    // AESENCLAST, then AESDECLAST with the same key xored away, is the identity.
    let last = Aesenclast::lanes(&input(state, [0; 2], 0));
    assert_eq!(Aesdeclast::lanes(&input(last, [0; 2], 0)), state);
    // The equivalent inverse cipher: AESDEC undoes a round whose MixColumns was undone first.
    let full = Aesenc::lanes(&input(state, [0; 2], 0));
    let unmixed = Aesimc::lanes(&input([0; 2], full, 0));
    assert_eq!(Aesdeclast::lanes(&input(unmixed, [0; 2], 0)), state);
    let again = Aesdec::lanes(&input(last, [0; 2], 0));
    assert_eq!(again, Aesimc::lanes(&input([0; 2], state, 0)));
    // FIPS 197, appendix A.1: w3 of the key schedule.
    let r = Aeskeygenassist::lanes(&input([0; 2], [0, 0x3c4f_cf09_0000_0000], 1));
    assert_eq!(word(&r, 1) >> 32, 0x01eb_848b);
}

/// AES' substitution is an inverse and an affine map: the two families know the same box.
#[test]
fn affine_inverse_is_the_substitution_of_aes() {
    use super::carryless::{Gf2p8affineinvqb, Gf2p8mulb};
    let matrix = 0xf1e3_c78f_1f3e_7cf8;
    for i in 0..=255u64 {
        let v = [i * 0x0101_0101_0101_0101; 2];
        let boxed = Aesenclast::lanes(&input(v, [0; 2], 0));
        assert_eq!(Gf2p8affineinvqb::lanes(&input(v, [matrix; 2], 0x63)), boxed);
    }
    // FIPS 197, section 4.2: {57} x {83} = {c1}.
    assert_eq!(Gf2p8mulb::lanes(&input([0x57], [0x83], 0)), [0xc1]);
}

#[test]
fn carryless_product_of_the_manual() {
    assert_eq!(
        multiply(0x7b5b_5465_7374_5665, 0x4869_2853_6861_7929),
        slow_product(0x7b5b_5465_7374_5665, 0x4869_2853_6861_7929)
    );
    assert_eq!(multiply(u64::MAX, u64::MAX), 0x5555_5555_5555_5555_5555_5555_5555_5555);
}

fn slow_product(a: u64, b: u64) -> u128 {
    (0..64).filter(|i| b >> i & 1 != 0).fold(0, |r, i| r ^ (a as u128) << i)
}

#[test]
fn packs_and_unpacks_stay_in_their_blocks() {
    let bytes = |from: u8| -> [u64; 4] {
        std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| from + (8 * i + j) as u8)))
    };
    let r = Punpcklbw::lanes(&input(bytes(0), bytes(100), 0));
    assert_eq!(view::<u8, 4>(&r)[..4], [0, 100, 1, 101]);
    assert_eq!(view::<u8, 4>(&r)[16..20], [16, 116, 17, 117]);
    let r = Punpckhbw::lanes(&input(bytes(0), bytes(100), 0));
    assert_eq!(view::<u8, 4>(&r)[16..20], [24, 124, 25, 125]);
    let r = Packuswb::lanes(&input([0x7fff_8000_00ff_0001; 2], [0; 2], 0));
    assert_eq!(r, [0xff00_ff01_ff00_ff01, 0]);
    let r = Palignr_(bytes(0), bytes(100), 4);
    assert_eq!(view::<u8, 4>(&r)[10..14], [114, 115, 0, 1]);
}

#[allow(non_snake_case)]
fn Palignr_(a: [u64; 4], b: [u64; 4], n: u16) -> [u64; 4] {
    super::shift::Palignr::lanes(&input(a, b, n))
}

#[test]
fn shuffles_and_sums() {
    let r = Pshufb::lanes(&input([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908], [0x8001_0f00_7f80_1011, u64::MAX], 0));
    assert_eq!(r, [0x0001_0f00_0f00_0001, 0]);
    let r = Psadbw::lanes(&input([0x00ff_0000_0000_0001], [0x0000_0000_0000_0003], 0));
    assert_eq!(r, [0x101]);
    let r = Pmaddwd::lanes(&input([0x8000_8000_0002_0003], [0x8000_8000_0005_0007], 0));
    assert_eq!(r, [0x8000_0000_0000_001f]);
}

#[test]
fn approximations_are_within_their_bound() {
    for i in 0..4000u32 {
        let bits = 0x0080_0000 + i * 0x7_bfff;
        let x = f32::from_bits(bits) as f64;
        let r = f32::from_bits(reciprocal(bits)) as f64;
        if x < 8e37 {
            assert!((r * x - 1.0).abs() <= 1.5 / 4096.0, "1 / {x}");
        }
        let r = f32::from_bits(reciprocal_root(bits)) as f64;
        assert!((r * x.sqrt() - 1.0).abs() <= 1.5 / 4096.0, "1 / sqrt {x}");
    }
    assert_eq!(reciprocal(0x8000_0001), 0xff80_0000);
    assert_eq!(reciprocal_root(0xbf80_0000), 0xffc0_0000);
}

#[test]
fn strings() {
    let text = |s: &[u8]| -> [u64; 2] {
        let mut b = [0; 16];
        b[..s.len()].copy_from_slice(s);
        split(u128::from_le_bytes(b))
    };
    // strchr-like, implicit lengths: where is one of "xyz"?
    let f = compare(text(b"xyz"), text(b"hello yonder"), None, 0x00);
    assert_eq!((f.index(0), f.flags()), (6, 1 | 1 << 6 | 1 << 7));
    // Equal ordered: a needle found at 6, and one that runs past the end of the haystack's register.
    assert_eq!(compare(text(b"yon"), text(b"hello yonder"), None, 0x0c).index(0x0c), 6);
    assert_eq!(compare(text(b"st"), text(b"0123456789abcdes"), None, 0x0c).index(0x0c), 15);
    // Ranges, negated with the masked polarity: the first non-digit.
    let f = compare(text(b"09"), text(b"1234x6"), None, 0x34);
    assert_eq!(f.index(0x34), 4);
    // Equal each, negative: equal strings give nothing. Masked, what lies beyond their ends is not negated.
    assert_eq!(compare(text(b"same"), text(b"same"), None, 0x18).bits, 0);
    assert_eq!(compare(text(b"same"), text(b"same"), None, 0x38).bits, 0xfff0);
    // Explicit lengths are absolute values.
    assert_eq!(explicit_length(-3i64 as u64, false), 3);
    let f = compare(text(b"a"), text(b"bbba"), Some((1, 3)), 0x40);
    assert_eq!((f.bits, f.index(0x40)), (0, 16));
}
