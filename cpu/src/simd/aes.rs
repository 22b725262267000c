//! AES rounds. State byte i is row i mod 4, column i div 4 (FIPS 197).

use super::lanes::{In, instructions};

const fn double(x: u8) -> u8 {
    x << 1 ^ if x & 0x80 != 0 { 0x1b } else { 0 }
}

const fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut r = 0;
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    r
}

const SBOX: [u8; 256] = {
    let mut table = [0; 256];
    // p runs through the field's nonzero elements as powers of 3, q through their inverses.
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p ^= double(p);
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        if q & 0x80 != 0 {
            q ^= 0x09;
        }
        table[p as usize] = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        if p == 1 {
            break;
        }
    }
    table[0] = 0x63;
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// A column that holds `box[x]` in row 0, multiplied by MixColumns' matrix.
const fn mixed(sbox: &[u8; 256], m: [u8; 4]) -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let s = sbox[i];
        table[i] = u32::from_le_bytes([multiply(s, m[0]), multiply(s, m[1]), multiply(s, m[2]), multiply(s, m[3])]);
        i += 1;
    }
    table
}

const IDENTITY: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = i as u8;
        i += 1;
    }
    table
};

static ENCRYPT: [u32; 256] = mixed(&SBOX, [2, 1, 1, 3]);
static DECRYPT: [u32; 256] = mixed(&INVERSE_SBOX, [14, 9, 13, 11]);
static INVERSE_MIX: [u32; 256] = mixed(&IDENTITY, [14, 9, 13, 11]);
static ENCRYPT_LAST: [u8; 256] = SBOX;
static DECRYPT_LAST: [u8; 256] = INVERSE_SBOX;

#[inline(always)]
fn byte(s: [u64; 2], column: usize, row: usize) -> usize {
    let i = 4 * (column & 3) + row;
    (s[i >> 3] >> (8 * (i & 7)) & 0xff) as usize
}

/// `step` is how far row r shifts: column c takes its row r from column c + step r.
#[inline(always)]
fn round(s: [u64; 2], key: [u64; 2], table: &[u32; 256], step: usize) -> [u64; 2] {
    let column = |c: usize| {
        (table[byte(s, c, 0)]
            ^ table[byte(s, c + step, 1)].rotate_left(8)
            ^ table[byte(s, c + 2 * step, 2)].rotate_left(16)
            ^ table[byte(s, c + 3 * step, 3)].rotate_left(24)) as u64
    };
    [(column(0) | column(1) << 32) ^ key[0], (column(2) | column(3) << 32) ^ key[1]]
}

#[inline(always)]
fn last(s: [u64; 2], key: [u64; 2], table: &[u8; 256], step: usize) -> [u64; 2] {
    let column = |c: usize| {
        let row = |r: usize| (table[byte(s, c + r * step, r)] as u64) << (8 * r);
        row(0) | row(1) | row(2) | row(3)
    };
    [(column(0) | column(1) << 32) ^ key[0], (column(2) | column(3) << 32) ^ key[1]]
}

fn sub_word(w: u32) -> u32 {
    u32::from_le_bytes(w.to_le_bytes().map(|b| SBOX[b as usize]))
}

instructions! {
    Aesenc = |x| x.blocks(|s, key| round(s, key, &ENCRYPT, 1));
    Aesenclast = |x| x.blocks(|s, key| last(s, key, &ENCRYPT_LAST, 1));
    Aesdec = |x| x.blocks(|s, key| round(s, key, &DECRYPT, 3));
    Aesdeclast = |x| x.blocks(|s, key| last(s, key, &DECRYPT_LAST, 3));
    Aesimc = |x| x.blocks(|_, s| round(s, [0; 2], &INVERSE_MIX, 0));
    Aeskeygenassist = |x| keygen(x);
}

fn keygen<const N: usize>(x: &In<N>) -> [u64; N] {
    let rcon = (x.imm & 0xff) as u32;
    x.blocks(|_, s| {
        s.map(|w| {
            let s = sub_word((w >> 32) as u32);
            s as u64 | ((s.rotate_right(8) ^ rcon) as u64) << 32
        })
    })
}
