//! Operand values that find bugs.

use undervisor_core::F80;

use crate::random::Random;

impl Random {
    /// A 64-bit integer: often at an edge of some width.
    pub fn integer(&mut self) -> u64 {
        let shift = self.below(64) as u32;
        match self.below(8) {
            0 => self.pick(&[0, 1, u64::MAX, 1 << 63, i64::MAX as u64, 0x8000_0000, 0x7fff_ffff, 0x8000, 0x80, 0x7f, 0xff]),
            1 => 1 << shift,
            2 => (1u64 << shift).wrapping_sub(1),
            3 => !(1u64 << shift),
            4 => self.word() >> shift,
            5 => (self.word() as i64 >> shift) as u64,
            6 => self.word() & 0x0101_0101_0101_0101u64.wrapping_mul(self.word() & 0xff),
            _ => self.word(),
        }
    }

    /// Bits of an f64.
    pub fn double(&mut self) -> u64 {
        let sign = self.word() & 1 << 63;
        sign | match self.below(12) {
            0 => self.pick(&[
                0,
                1.0f64.to_bits(),
                1.5f64.to_bits(),
                2.0f64.to_bits(),
                f64::INFINITY.to_bits(),
                0x7ff8_0000_0000_0000,
                0x7ff0_0000_0000_0001,
                0x7ff8_0000_0000_1234,
                1,
                0x000f_ffff_ffff_ffff,
                0x0010_0000_0000_0000,
                0x7fef_ffff_ffff_ffff,
                0x41df_ffff_ffc0_0000,
                0x41e0_0000_0000_0000,
                0x43e0_0000_0000_0000,
                0x3fe0_0000_0000_0000,
            ]),
            1 => self.word() >> 1,
            2 => self.word() >> 13,
            3 => (self.below(2000) as f64 / 8.0).to_bits(),
            // Exponents that single precision and half precision overflow and underflow at.
            4 => self.word() >> 12 | (1023 - 150 + self.below(280) as u64) << 52,
            5 => (self.word() >> 12) & !0x1fff_ffff | (1023 - 30 + self.below(60) as u64) << 52,
            6 => self.word() >> 12 | (1 + self.below(60) as u64) << 52,
            7 => self.word() >> 12 | (2046 - self.below(60) as u64) << 52,
            _ => self.word() >> 12 | (1023 - 4 + self.below(9) as u64) << 52,
        }
    }

    /// Bits of an f32.
    pub fn single(&mut self) -> u32 {
        let r = self.word() as u32;
        let sign = r & 1 << 31;
        sign | match self.below(10) {
            0 => self.pick(&[
                0,
                1.0f32.to_bits(),
                1.5f32.to_bits(),
                f32::INFINITY.to_bits(),
                0x7fc0_0000,
                0x7f80_0001,
                0x7fc0_1234,
                1,
                0x007f_ffff,
                0x0080_0000,
                0x7f7f_ffff,
                0x4f00_0000,
                0x5f00_0000,
                0x3f00_0000,
            ]),
            1 => r >> 1,
            2 => r >> 10,
            3 => (self.below(2000) as f32 / 8.0).to_bits(),
            4 => r >> 9 | (1 + self.below(40) as u32) << 23,
            5 => r >> 9 | (254 - self.below(40) as u32) << 23,
            6 => r >> 9 & !0xfff | (127 - 30 + self.below(60) as u32) << 23,
            _ => r >> 9 | (127 - 4 + self.below(9) as u32) << 23,
        }
    }

    /// An f80, sometimes one that no operation gives.
    pub fn extended(&mut self) -> F80 {
        let sign = (self.word() & 0x8000) as u16;
        let m = self.word() | 1 << 63;
        let (exponent, mantissa) = match self.below(14) {
            0 => (0, 0),
            1 => (0x3fff + self.below(3) as u16, 1 << 63),
            2 => (0x7fff, 1 << 63),
            3 => (0x7fff, self.pick(&[3 << 62, 3 << 62 | 5, 1 << 63 | 1, m])),
            4 => (0, self.word() >> self.below(64)),
            5 => (self.word() as u16 & 0x7fff, self.word()),
            6 => (1 + self.below(80) as u16, m),
            7 => (0x7ffe - self.below(80) as u16, m),
            8 => (0x3fff + self.below(64) as u16, m & u64::MAX << self.below(64)),
            9 => (0x3fff - 1030 + self.below(2060) as u16, m & !0x7ff),
            10 => (0x3fff - 150 + self.below(300) as u16, m & !0xff_ffff_ffff),
            11 => (self.below(0x7ffe) as u16, m),
            _ => (0x3fff - 4 + self.below(9) as u16, m),
        };
        F80 { mantissa, sign_exponent: sign | exponent.min(0x7fff) }
    }

    /// Sixteen bytes for a vector register or memory: integers, or floats of one size.
    pub fn vector(&mut self) -> [u64; 2] {
        match self.below(8) {
            0..3 => [self.double(), self.double()],
            3..6 => [0; 2].map(|_: u64| self.single() as u64 | (self.single() as u64) << 32),
            6 => [self.integer(), self.integer()],
            _ => [self.word(), self.word()],
        }
    }
}
