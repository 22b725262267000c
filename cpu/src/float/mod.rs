//! Floating-point arithmetic of the architecture: exact results and exact IEEE flags, the same on every host.
//!
//! - [`unpacked`]: formats (f16, f32, f64, f80) and the unpacked form that all algorithms work on.
//! - [`round`]: rounding and packing, where overflow, underflow, inexactness and flush-to-zero are decided.
//! - [`ops`]: add, multiply, divide, square root, fused multiply-add, compare, and conversions, on unpacked values.
//! - [`sse`]: SSE/AVX operations on bit patterns, with a fast way through host floats where the result is certain.
//! - [`wide`], [`transcendental`]: 128-bit-significand arithmetic and the x87 functions made of it.
//!
//! The caller makes an [`Env`] from MXCSR or the x87 control word, runs any number of operations, and then looks at `flags`.

mod env;
pub mod ops;
pub mod round;
pub mod sse;
pub mod transcendental;
pub mod unpacked;
pub mod wide;

pub use ops::Relation;
pub use unpacked::{Class, F16, F32, F64, F80Format, Format, Unpacked};

/// Exception flags, as at the bottom of MXCSR and of the x87 status word.
pub mod flags {
    /// Invalid operation.
    pub const IE: u8 = 1 << 0;
    /// Denormal operand.
    pub const DE: u8 = 1 << 1;
    /// Divide by zero.
    pub const ZE: u8 = 1 << 2;
    /// Overflow.
    pub const OE: u8 = 1 << 3;
    /// Underflow.
    pub const UE: u8 = 1 << 4;
    /// Precision (inexact result).
    pub const PE: u8 = 1 << 5;
    /// Those detected before the computation.
    pub const BEFORE: u8 = IE | DE | ZE;
    pub const ALL: u8 = 0x3f;
}

/// Rounding direction, encoded as in MXCSR.RC and the x87 control word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Rounding {
    /// To nearest, ties to even.
    #[default]
    Nearest = 0,
    Down = 1,
    Up = 2,
    Zero = 3,
}

impl Rounding {
    /// From a two-bit RC field; higher bits are ignored.
    pub const fn from_bits(rc: u32) -> Rounding {
        match rc & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Zero,
        }
    }
}

/// How an operation is to be done, and the flags it raised.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    pub rounding: Rounding,
    /// Denormal operands are taken as zeros (MXCSR.DAZ).
    pub daz: bool,
    /// Tiny results become zero while underflow is masked (MXCSR.FTZ).
    pub ftz: bool,
    /// Masked exceptions, bits as in [`flags`].
    pub masks: u8,
    /// Exceptions raised so far.
    pub flags: u8,
    /// Of those, the ones raised in stages of the instruction that are over; see [`Env::next_stage`].
    pub earlier: u8,
    /// x87 rules: NaN with the larger significand wins; results that overflow or underflow unmasked are rebiased.
    pub x87: bool,
    /// x87 precision control: 24, 53 or 64 bits.
    pub precision: u32,
    /// The last result was rounded away from zero (C1 of the x87).
    pub rounded_up: bool,
    /// Host floats may be used: round to nearest, no DAZ or FTZ, underflow, overflow and precision masked.
    host: bool,
    /// PE is already set in MXCSR, so nothing is lost in not knowing whether a result was inexact.
    inexact_known: bool,
}

impl Env {
    /// For SSE and AVX instructions.
    #[inline(always)]
    pub fn sse(mxcsr: u32) -> Env {
        let daz = mxcsr & 0x40 != 0;
        let ftz = mxcsr & 0x8000 != 0;
        Env {
            rounding: Rounding::from_bits(mxcsr >> 13),
            daz,
            ftz,
            masks: (mxcsr >> 7) as u8 & flags::ALL,
            flags: 0,
            earlier: 0,
            x87: false,
            precision: 64,
            rounded_up: false,
            host: mxcsr & 0xffc0 == 0x1f80,
            inexact_known: mxcsr & flags::PE as u32 != 0,
        }
    }

    /// For x87 instructions.
    pub fn x87(control: u16) -> Env {
        Env {
            rounding: Rounding::from_bits(control as u32 >> 10),
            daz: false,
            ftz: false,
            masks: control as u8 & flags::ALL,
            flags: 0,
            earlier: 0,
            x87: true,
            precision: match control >> 8 & 3 {
                0 => 24,
                2 => 53,
                _ => 64,
            },
            rounded_up: false,
            host: false,
            inexact_known: false,
        }
    }

    /// The same with another rounding direction (ROUNDPS, CVTT.., VCVTPS2PH).
    #[inline]
    pub fn with_rounding(self, rounding: Rounding) -> Env {
        Env { rounding, host: self.host && rounding == Rounding::Nearest, ..self }
    }

    /// The same with another x87 precision.
    pub fn with_precision(self, precision: u32) -> Env {
        Env { precision, ..self }
    }

    /// Raise exceptions.
    #[inline]
    pub fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    #[inline]
    pub fn masked(&self, flag: u8) -> bool {
        self.masks & flag != 0
    }

    /// Between the stages of an instruction that rounds more than once (DPPS): whether to go on. Not after an unmasked exception.
    #[inline]
    pub fn next_stage(&mut self) -> bool {
        let go = self.unmasked() == 0;
        if go {
            self.earlier = self.flags;
        }
        go
    }

    /// Exceptions raised and not masked.
    #[inline]
    pub fn unmasked(&self) -> u8 {
        self.flags & !self.masks
    }
}
