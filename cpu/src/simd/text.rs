//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM vol. 1, String and Text Processing Instructions).

use super::lanes::view;

/// What the comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// IntRes2: a bit for each element of the second operand.
    pub bits: u32,
    /// Elements in a register: 8 or 16.
    pub elements: u32,
    /// The first operand's string ends within its register.
    pub first_ends: bool,
    pub second_ends: bool,
}

/// Compare strings of given lengths (in elements; larger than the register's means all), or zero-terminated ones.
pub fn compare(a: [u64; 2], b: [u64; 2], lengths: Option<(u64, u64)>, control: u8) -> Found {
    let words = control & 1 != 0;
    let n = if words { 8 } else { 16 };
    let (x, y) = (elements(a, control), elements(b, control));
    let (la, lb) = match lengths {
        Some((la, lb)) => (la.min(n as u64) as usize, lb.min(n as u64) as usize),
        None => (length(&x[..n]), length(&y[..n])),
    };
    let mut r1 = 0u32;
    for j in 0..n {
        let yes = match control >> 2 & 3 {
            // Equal any.
            0 => j < lb && x[..la].contains(&y[j]),
            // Ranges.
            1 => j < lb && (0..n).step_by(2).any(|i| i + 1 < la && x[i] <= y[j] && y[j] <= x[i + 1]),
            // Equal each: ends match each other.
            2 => match (j < la, j < lb) {
                (true, true) => x[j] == y[j],
                (a, b) => a == b,
            },
            // Equal ordered: what lies beyond the first string matches anything, what lies beyond the register is not looked at.
            _ => (0..n - j).all(|i| i >= la || (i + j < lb && x[i] == y[i + j])),
        };
        r1 |= (yes as u32) << j;
    }
    let all = (1u32 << n) - 1;
    let valid = (1u32 << lb) - 1;
    let bits = match control >> 4 & 3 {
        1 => !r1 & all,
        3 => r1 ^ valid,
        _ => r1,
    };
    Found { bits, elements: n as u32, first_ends: la < n, second_ends: lb < n }
}

impl Found {
    /// The index in (R)CX: of the lowest (`control` bit 6 clear) or highest element found, or their number.
    pub fn index(self, control: u8) -> u64 {
        if self.bits == 0 {
            self.elements as u64
        } else if control & 0x40 == 0 {
            self.bits.trailing_zeros() as u64
        } else {
            31 - self.bits.leading_zeros() as u64
        }
    }

    /// The mask in XMM0: bits, or (`control` bit 6 set) elements of all ones.
    pub fn mask(self, control: u8) -> [u64; 2] {
        if control & 0x40 == 0 {
            return [self.bits as u64, 0];
        }
        if self.elements == 16 {
            super::lanes::build(|i| if self.bits >> i & 1 != 0 { u8::MAX } else { 0 })
        } else {
            super::lanes::build(|i| if self.bits >> i & 1 != 0 { u16::MAX } else { 0 })
        }
    }

    /// CF, ZF, SF, OF at their places in RFLAGS; AF and PF are clear.
    pub fn flags(self) -> u64 {
        u64::from(self.bits != 0)
            | u64::from(self.second_ends) << 6
            | u64::from(self.first_ends) << 7
            | u64::from(self.bits & 1 != 0) << 11
    }
}

fn elements(v: [u64; 2], control: u8) -> [i32; 16] {
    let mut r = [0; 16];
    match control & 3 {
        0 => r.iter_mut().zip(view::<u8, 2>(&v)).for_each(|(r, &e)| *r = e as i32),
        1 => r.iter_mut().zip(view::<u16, 2>(&v)).for_each(|(r, &e)| *r = e as i32),
        2 => r.iter_mut().zip(view::<i8, 2>(&v)).for_each(|(r, &e)| *r = e as i32),
        _ => r.iter_mut().zip(view::<i16, 2>(&v)).for_each(|(r, &e)| *r = e as i32),
    }
    r
}

fn length(v: &[i32]) -> usize {
    v.iter().position(|&e| e == 0).unwrap_or(v.len())
}

/// Length operand of the explicit forms: its absolute value.
pub fn explicit_length(register: u64, wide: bool) -> u64 {
    if wide { (register as i64).unsigned_abs() } else { (register as i32).unsigned_abs() as u64 }
}
