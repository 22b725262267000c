//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST; INC, DEC, NEG, NOT.

use std::marker::PhantomData;

use undervisor_core::FlagKind;

use super::Hot;
use super::operand::{Int, Place, Source, carry, keep_flags};
use crate::access::Way;
use crate::cpu::Cpu;
use crate::op::OpRef;

/// A two-operand operation.
pub trait Alu {
    const KIND: u8;
    /// Whether the result is stored (CMP and TEST only set flags).
    const STORES: bool = true;
    const WITH_CARRY: bool = false;
    fn apply(a: u64, b: u64, carry: u64) -> u64;
}

macro_rules! alu {
    ($($name:ident $kind:ident $stores:expr, $carry:expr, |$a:ident, $b:ident, $c:ident| $e:expr;)*) => {$(
        pub struct $name;
        impl Alu for $name {
            const KIND: u8 = FlagKind::$kind;
            const STORES: bool = $stores;
            const WITH_CARRY: bool = $carry;
            #[inline(always)]
            fn apply($a: u64, $b: u64, $c: u64) -> u64 { let _ = $c; $e }
        }
    )*};
}
alu! {
    Add ADD true, false, |a, b, c| a.wrapping_add(b);
    Or LOGIC true, false, |a, b, c| a | b;
    Adc ADC true, true, |a, b, c| a.wrapping_add(b).wrapping_add(c);
    Sbb SBB true, true, |a, b, c| a.wrapping_sub(b).wrapping_sub(c);
    And LOGIC true, false, |a, b, c| a & b;
    Sub SUB true, false, |a, b, c| a.wrapping_sub(b);
    Xor LOGIC true, false, |a, b, c| a ^ b;
    Cmp SUB false, false, |a, b, c| a.wrapping_sub(b);
    Test LOGIC false, false, |a, b, c| a & b;
}

/// `O` on destination `D` and source `S`; `F`: keep flags.
pub struct AluOp<O, T, D, S, const F: bool>(PhantomData<(O, T, D, S)>);

impl<O: Alu, T: Int, D: Place, S: Source, const F: bool> Hot for AluOp<O, T, D, S, F> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let b = S::get::<T, W>(cpu, op)?;
        let a = if O::STORES { D::get_to_modify::<T, W>(cpu, op)? } else { D::get::<T, W>(cpu, op)? };
        let c = if O::WITH_CARRY { carry(cpu) } else { 0 };
        let r = O::apply(a, b, c) & T::MASK;
        if O::STORES {
            D::put::<T, W>(cpu, op, r)?;
        }
        if F {
            keep_flags::<T>(cpu, O::KIND, a, r);
            if O::WITH_CARRY {
                let lazy = &mut cpu.state.lazy;
                lazy.carry = c as u8;
                lazy.carry_out =
                    if O::KIND == FlagKind::ADC { r < a || (c != 0 && r == a) } else { a < b || (c != 0 && a == b) } as u8;
            }
        }
        Ok(())
    }
}

/// How INC and DEC treat the flags.
pub mod keep {
    /// No one looks.
    pub const NONE: u8 = 0;
    /// CF is dead, the others live.
    pub const ALL_BUT_CARRY: u8 = 1;
    /// CF stays as it was.
    pub const ALL: u8 = 2;
}

/// INC, or DEC; `K` is of [`keep`].
pub struct IncDec<T, P, const DEC: bool, const K: u8>(PhantomData<(T, P)>);

impl<T: Int, P: Place, const DEC: bool, const K: u8> Hot for IncDec<T, P, DEC, K> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let a = P::get_to_modify::<T, W>(cpu, op)?;
        let r = if DEC { a.wrapping_sub(1) } else { a.wrapping_add(1) } & T::MASK;
        P::put::<T, W>(cpu, op, r)?;
        if K == keep::ALL {
            let c = carry(cpu);
            keep_flags::<T>(cpu, if DEC { FlagKind::DEC } else { FlagKind::INC }, a, r);
            cpu.state.lazy.carry = c as u8;
        } else if K == keep::ALL_BUT_CARRY {
            keep_flags::<T>(cpu, if DEC { FlagKind::SUB } else { FlagKind::ADD }, a, r);
        }
        Ok(())
    }
}

/// NEG.
pub struct Neg<T, P>(PhantomData<(T, P)>);

impl<T: Int, P: Place> Hot for Neg<T, P> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let b = P::get_to_modify::<T, W>(cpu, op)?;
        let r = b.wrapping_neg() & T::MASK;
        P::put::<T, W>(cpu, op, r)?;
        keep_flags::<T>(cpu, FlagKind::SUB, 0, r);
        Ok(())
    }
}

/// NOT: no flags.
pub struct Not<T, P>(PhantomData<(T, P)>);

impl<T: Int, P: Place> Hot for Not<T, P> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let a = P::get_to_modify::<T, W>(cpu, op)?;
        P::put::<T, W>(cpu, op, !a & T::MASK)
    }
}
