//! Pure integer algorithms: shifts, rotates, bit manipulation, BCD, CRC. No processor in sight.
//!
//! Where the manuals leave a flag undefined, these functions do what processors do (shifts by more than one set OF as the
//! last step would; see the functions).

use undervisor_core::Rflags;
use undervisor_core::flags::parity;

pub const CF: u64 = Rflags::CF.bits();
pub const PF: u64 = Rflags::PF.bits();
pub const AF: u64 = Rflags::AF.bits();
pub const ZF: u64 = Rflags::ZF.bits();
pub const SF: u64 = Rflags::SF.bits();
pub const OF: u64 = Rflags::OF.bits();
pub const STATUS: u64 = Rflags::STATUS.bits();

/// A result with the status flags it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub value: u64,
    /// Flags that are written.
    pub mask: u64,
    /// Their values.
    pub flags: u64,
}

/// All ones in the low `bits` (8–64).
#[inline]
pub const fn ones(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// Sign bit of a `bits`-wide value, as 0 or 1.
#[inline]
pub const fn msb(value: u64, bits: u32) -> u64 {
    value >> (bits - 1) & 1
}

/// Sign-extend from `bits`.
#[inline]
pub const fn sign_extend(value: u64, bits: u32) -> u64 {
    ((value << (64 - bits)) as i64 >> (64 - bits)) as u64
}

/// SF, ZF and PF of a result (which must be zero above `bits`).
pub const fn szp(value: u64, bits: u32) -> u64 {
    let low = value as u8;
    let mut f = ((!low.count_ones() & 1) << 2) as u64;
    if value == 0 {
        f |= ZF;
    }
    if msb(value, bits) != 0 {
        f |= SF;
    }
    f
}

const fn flag(on: u64, bit: u64) -> u64 {
    if on & 1 != 0 { bit } else { 0 }
}

/// The count that a shift or rotate uses: five bits, six for 64-bit operands.
pub const fn shift_count(count: u64, bits: u32) -> u32 {
    (count & if bits == 64 { 63 } else { 31 }) as u32
}

/// SHL of a `bits`-wide value by a masked, non-zero count. OF is CF xor the result's sign for every count.
pub fn shl(value: u64, count: u32, bits: u32) -> Outcome {
    // The last bit out of the operand; 0 once the count exceeds the width (8- and 16-bit operands).
    let wide = (value as u128) << count;
    let result = wide as u64 & ones(bits);
    let carry = (wide >> bits) as u64 & 1;
    let flags = szp(result, bits) | carry | flag(carry ^ msb(result, bits), OF);
    Outcome { value: result, mask: STATUS, flags }
}

/// SHR. OF is the top bit before the last step: the operand's sign for count 1, else 0.
pub fn shr(value: u64, count: u32, bits: u32) -> Outcome {
    let result = (value as u128 >> count) as u64;
    let carry = (value as u128 >> (count - 1)) as u64 & 1;
    let before = (value as u128 >> (count - 1)) as u64;
    let flags = szp(result, bits) | carry | flag(msb(before, bits), OF);
    Outcome { value: result, mask: STATUS, flags }
}

/// SAR. OF is 0.
pub fn sar(value: u64, count: u32, bits: u32) -> Outcome {
    let wide = sign_extend(value, bits) as i64;
    let result = (wide >> count) as u64 & ones(bits);
    let carry = (wide >> (count - 1)) as u64 & 1;
    Outcome { value: result, mask: STATUS, flags: szp(result, bits) | carry }
}

/// ROL by a masked, non-zero count (which may exceed the width). Only CF and OF are written.
pub fn rol(value: u64, count: u32, bits: u32) -> Outcome {
    let n = count % bits;
    let result = if n == 0 { value } else { (value << n | value >> (bits - n)) & ones(bits) };
    let carry = result & 1;
    Outcome { value: result, mask: CF | OF, flags: carry | flag(carry ^ msb(result, bits), OF) }
}

/// ROR. OF is the exclusive-or of the result's two top bits.
pub fn ror(value: u64, count: u32, bits: u32) -> Outcome {
    let n = count % bits;
    let result = if n == 0 { value } else { (value >> n | value << (bits - n)) & ones(bits) };
    let carry = msb(result, bits);
    Outcome { value: result, mask: CF | OF, flags: carry | flag(carry ^ result >> (bits - 2), OF) }
}

/// RCL through a carry of `carry` (0 or 1); the count is taken modulo width + 1. OF is CF xor the result's sign.
pub fn rcl(value: u64, count: u32, bits: u32, carry: u64) -> Outcome {
    let n = count % (bits + 1);
    let wide = value as u128 | (carry as u128) << bits;
    let turned = wide << n | wide >> (bits + 1 - n);
    let result = turned as u64 & ones(bits);
    let out = (turned >> bits) as u64 & 1;
    Outcome { value: result, mask: CF | OF, flags: out | flag(out ^ msb(result, bits), OF) }
}

/// RCR; OF is the exclusive-or of the result's two top bits.
pub fn rcr(value: u64, count: u32, bits: u32, carry: u64) -> Outcome {
    let n = count % (bits + 1);
    let wide = value as u128 | (carry as u128) << bits;
    let turned = wide >> n | wide << (bits + 1 - n);
    let result = turned as u64 & ones(bits);
    let out = (turned >> bits) as u64 & 1;
    Outcome { value: result, mask: CF | OF, flags: out | flag(msb(result, bits) ^ result >> (bits - 2), OF) }
}

/// SHLD by a masked, non-zero count. Past 16, a 16-bit shift goes on with `third`: Intel takes the destination, AMD the source.
pub fn shld(dest: u64, src: u64, third: u64, count: u32, bits: u32) -> Outcome {
    let (result, carry) = if bits == 16 {
        let wide = dest << 32 | src << 16 | third;
        let turned = (wide << (count - 1)) >> 32;
        ((wide << count) >> 32 & 0xffff, turned >> 15 & 1)
    } else {
        (((dest << count) | (src >> (bits - count))) & ones(bits), dest >> (bits - count) & 1)
    };
    let flags = szp(result, bits) | carry | flag(carry ^ msb(result, bits), OF);
    Outcome { value: result, mask: STATUS, flags }
}

/// SHRD; see [`shld`]. OF is the exclusive-or of the result's two top bits.
pub fn shrd(dest: u64, src: u64, third: u64, count: u32, bits: u32) -> Outcome {
    let (result, carry) = if bits == 16 {
        let wide = third << 32 | src << 16 | dest;
        (wide >> count & 0xffff, wide >> (count - 1) & 1)
    } else {
        (((dest >> count) | (src << (bits - count))) & ones(bits), dest >> (count - 1) & 1)
    };
    let flags = szp(result, bits) | carry | flag(msb(result, bits) ^ result >> (bits - 2), OF);
    Outcome { value: result, mask: STATUS, flags }
}

/// Unsigned product of two `bits`-wide values as (low, high).
pub fn mul(a: u64, b: u64, bits: u32) -> (u64, u64) {
    let p = a as u128 * b as u128;
    (p as u64 & ones(bits), (p >> bits) as u64 & ones(bits))
}

/// Signed product as (low, high); the last: whether the product does not fit in the low half.
pub fn imul(a: u64, b: u64, bits: u32) -> (u64, u64, bool) {
    let p = sign_extend(a, bits) as i64 as i128 * sign_extend(b, bits) as i64 as i128;
    let low = p as u64 & ones(bits);
    let fits = sign_extend(low, bits) as i64 as i128 == p;
    (low, (p >> bits) as u64 & ones(bits), !fits)
}

/// Unsigned division of high:low; `None`: #DE.
pub fn div(high: u64, low: u64, divisor: u64, bits: u32) -> Option<(u64, u64)> {
    let dividend = (high as u128) << bits | low as u128;
    let quotient = dividend.checked_div(divisor as u128)?;
    let remainder = dividend % divisor as u128;
    (quotient <= ones(bits) as u128).then_some((quotient as u64, remainder as u64))
}

/// Signed division; `None`: #DE.
pub fn idiv(high: u64, low: u64, divisor: u64, bits: u32) -> Option<(u64, u64)> {
    let unsigned = (high as u128) << bits | low as u128;
    let shift = 128 - 2 * bits;
    let dividend = (unsigned << shift) as i128 >> shift;
    let divisor = sign_extend(divisor, bits) as i64 as i128;
    let quotient = dividend.checked_div(divisor)?;
    let remainder = dividend.checked_rem(divisor)?;
    let fits = sign_extend(quotient as u64 & ones(bits), bits) as i64 as i128 == quotient;
    fits.then_some((quotient as u64 & ones(bits), remainder as u64 & ones(bits)))
}

/// PDEP: scatter the low bits of `source` to the set bits of `mask`.
pub fn pdep(mut source: u64, mut mask: u64) -> u64 {
    let mut result = 0;
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        if source & 1 != 0 {
            result |= bit;
        }
        source >>= 1;
        mask ^= bit;
    }
    result
}

/// PEXT: gather the bits of `source` under `mask` into the low end.
pub fn pext(source: u64, mut mask: u64) -> u64 {
    let (mut result, mut at) = (0, 0);
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        if source & bit != 0 {
            result |= 1 << at;
        }
        at += 1;
        mask ^= bit;
    }
    result
}

/// CRC32 (Castagnoli, reflected) of `size` bytes of `data` on top of `crc`.
pub fn crc32c(crc: u32, data: u64, size: usize) -> u32 {
    let mut crc = crc;
    for &byte in &data.to_le_bytes()[..size] {
        crc ^= byte as u32;
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    crc
}

/// DAA of AL with the flags before; OF is left as a logic operation leaves it.
pub fn daa(al: u8, flags: u64) -> (u8, u64) {
    let (mut result, mut f) = (al, 0);
    if al & 0xf > 9 || flags & AF != 0 {
        result = result.wrapping_add(6);
        f |= AF;
    }
    if al > 0x99 || flags & CF != 0 {
        result = result.wrapping_add(0x60);
        f |= CF;
    }
    (result, f | szp(result as u64, 8))
}

/// DAS.
pub fn das(al: u8, flags: u64) -> (u8, u64) {
    let (mut result, mut f) = (al, 0);
    if al & 0xf > 9 || flags & AF != 0 {
        // The borrow of this step stays in CF even when the second is not taken.
        f |= AF | u64::from(al < 6) | flags & CF;
        result = result.wrapping_sub(6);
    }
    if al > 0x99 || flags & CF != 0 {
        result = result.wrapping_sub(0x60);
        f |= CF;
    }
    (result, f | szp(result as u64, 8))
}

/// AAA (`add`) or AAS of AX.
pub fn ascii_adjust(ax: u16, flags: u64, add: bool) -> (u16, u64) {
    let (mut result, mut f) = (ax, 0);
    if ax & 0xf > 9 || flags & AF != 0 {
        result = if add { ax.wrapping_add(0x106) } else { ax.wrapping_sub(6).wrapping_sub(0x100) };
        f = AF | CF;
    }
    result &= 0xff0f;
    (result, f | szp(result as u64 & 0xff, 8))
}

/// TZCNT and BSF: lowest set bit; `bits` if none.
pub fn trailing(value: u64, bits: u32) -> u64 {
    value.trailing_zeros().min(bits) as u64
}

/// LZCNT: zero bits above the highest set bit.
pub fn leading(value: u64, bits: u32) -> u64 {
    (value.leading_zeros() - (64 - bits)) as u64
}

/// Parity flag of a byte; re-exported for the groups.
pub fn pf(byte: u8) -> u64 {
    parity(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_match_bit_at_a_time() {
        for bits in [8, 16, 32, 64u32] {
            for value in [0, 1, 0x80, 0x5a, 0x8001, 0xdead_beef_8000_0001, u64::MAX] {
                let value = value & ones(bits);
                for count in 1..if bits == 64 { 64 } else { 32 } {
                    let (mut l, mut r, mut a) = (value, value, value);
                    let (mut lc, mut rc, mut ac) = (0, 0, 0);
                    let (mut ro, mut rr) = (value, value);
                    let (mut cl, mut clc, mut cr, mut crc) = (value, 1, value, 1);
                    for _ in 0..count {
                        lc = msb(l, bits);
                        l = l << 1 & ones(bits);
                        rc = r & 1;
                        r >>= 1;
                        ac = a & 1;
                        a = (sign_extend(a, bits) as i64 >> 1) as u64 & ones(bits);
                        ro = (ro << 1 | msb(ro, bits)) & ones(bits);
                        rr = rr >> 1 | (rr & 1) << (bits - 1);
                        let out = msb(cl, bits);
                        cl = (cl << 1 | clc) & ones(bits);
                        clc = out;
                        let out = cr & 1;
                        cr = cr >> 1 | crc << (bits - 1);
                        crc = out;
                    }
                    let got = shl(value, count, bits);
                    assert_eq!((got.value, got.flags & CF), (l, lc), "shl {value:x} {count} {bits}");
                    let got = shr(value, count, bits);
                    assert_eq!((got.value, got.flags & CF), (r, rc), "shr {value:x} {count} {bits}");
                    let got = sar(value, count, bits);
                    assert_eq!((got.value, got.flags & CF), (a, ac), "sar {value:x} {count} {bits}");
                    assert_eq!(rol(value, count, bits).value, ro);
                    assert_eq!(rol(value, count, bits).flags & CF, ro & 1);
                    assert_eq!(ror(value, count, bits).value, rr);
                    assert_eq!(ror(value, count, bits).flags & CF, msb(rr, bits));
                    let got = rcl(value, count, bits, 1);
                    assert_eq!((got.value, got.flags & CF), (cl, clc), "rcl {value:x} {count} {bits}");
                    let got = rcr(value, count, bits, 1);
                    assert_eq!((got.value, got.flags & CF), (cr, crc), "rcr {value:x} {count} {bits}");
                }
            }
        }
    }

    #[test]
    fn double_shifts() {
        assert_eq!(shld(0x8000_0001, 0xf000_0000, 0x8000_0001, 4, 32).value, 0x0000_001f);
        assert_eq!(shld(0x8000_0001, 0xf000_0000, 0x8000_0001, 1, 32).flags & (CF | OF), CF | OF);
        assert_eq!(shrd(0x1234, 0xabcd, 0x1234, 4, 16).value, 0xd123);
        assert_eq!(shld(0x1234, 0xabcd, 0x1234, 4, 16).value, 0x234a);
        assert_eq!(shrd(1, 1, 1, 63, 64).value, 2);
        assert_eq!(shld(0x1234, 0xabcd, 0x1234, 20, 16).value, 0xbcd1);
        assert_eq!(shrd(0x1234, 0xabcd, 0x1234, 20, 16).value, 0x4abc);
    }

    /// Seen on an AMD processor.
    #[test]
    fn undefined_cases() {
        assert_eq!(shld(0x6752, 0xf71c, 0xf71c, 31, 16).value, 0x7b8e);
        assert_eq!(shrd(0xc43e, 0xc836, 0xc836, 24, 16).value, 0x36c8);
        // A rotation through carry all the way round leaves value and CF, but OF follows its rule.
        assert_eq!(rcl(0xa22c, 17, 16, 0).flags, OF);
        assert_eq!(rcr(0x1f, 27, 8, 1).flags, CF);
    }

    #[test]
    fn division() {
        assert_eq!(div(0, 7, 2, 8), Some((3, 1)));
        assert_eq!(div(2, 0, 2, 8), None);
        assert_eq!(div(0, 7, 0, 64), None);
        assert_eq!(div(1, 0, 2, 64), Some((1 << 63, 0)));
        // −128 / −1 does not fit; −128 / 1 does.
        assert_eq!(idiv(0xff, 0x80, 0xff, 8), None);
        assert_eq!(idiv(0xff, 0x80, 1, 8), Some((0x80, 0)));
        assert_eq!(idiv(u64::MAX, (-7i64) as u64, 2, 64), Some(((-3i64) as u64, (-1i64) as u64)));
        assert_eq!(idiv(1 << 63, 0, u64::MAX, 64), None);
    }

    #[test]
    fn multiplication() {
        assert_eq!(mul(u64::MAX, u64::MAX, 64), (1, u64::MAX - 1));
        assert_eq!(imul(0x80, 0xff, 8), (0x80, 0, true));
        assert_eq!(imul(0xff, 0xff, 8), (1, 0, false));
        assert_eq!(imul(u64::MAX, 5, 64), ((-5i64) as u64, u64::MAX, false));
    }

    #[test]
    fn scatter_gather() {
        assert_eq!(pdep(0b1011, 0xf0f0), 0xb0);
        assert_eq!(pext(0xb0, 0xf0f0), 0xb);
        for mask in [0x8421_1248_ffff_0101u64, u64::MAX, 0] {
            let v = 0x1234_5678_9abc_def0;
            assert_eq!(pext(pdep(v, mask), mask), v & (1u64.checked_shl(mask.count_ones()).unwrap_or(0).wrapping_sub(1)));
        }
    }

    #[test]
    fn crc_check_value() {
        let mut crc = u32::MAX;
        for b in *b"123456789" {
            crc = crc32c(crc, b as u64, 1);
        }
        assert_eq!(!crc, 0xe306_9283);
        assert_eq!(crc32c(7, 0x1122_3344, 4), crc32c(crc32c(7, 0x3344, 2), 0x1122, 2));
    }

    #[test]
    fn bcd() {
        // SDM vol. 2, DAA and DAS examples.
        assert_eq!(daa(0xae, 0), (0x14, AF | CF | PF));
        assert_eq!(daa(0x2e, CF | AF), (0x94, AF | CF | SF));
        assert_eq!(das(0xee, CF | AF).0, 0x88);
        assert_eq!(das(0x02, AF).1 & CF, CF);
        assert_eq!(ascii_adjust(0x000b, 0, true).0, 0x0101);
        assert_eq!(ascii_adjust(0x0305, AF, false).0, 0x010f);
    }
}
