//! Bit tests, shifts and multiplication.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Context, Shape, shape, size, slot};
use crate::decode::Mode;
use crate::hot::arith::{Bit, BitString, Imul, Mul, bit};
use crate::hot::hot;
use crate::hot::operand::{Imm, Mem, RegA, RegB, form};
use crate::hot::shift::{Cl, Shift};
use crate::op::{Handler, Op};

/// BT, BTS, BTR, BTC.
pub fn bits(op: &mut Op, insn: &Instruction, mode: Mode) -> Option<Handler> {
    use Mnemonic as M;
    let m = insn.mnemonic();
    let s = size(insn, 0);
    macro_rules! pick {
        ($handler:ident<$($t:tt),*>) => {
            by_wide_size!(s, T => match m {
                M::Bt => hot::<$handler<T, $($t),*, { bit::TEST }>>,
                M::Bts => hot::<$handler<T, $($t),*, { bit::SET }>>,
                M::Btr => hot::<$handler<T, $($t),*, { bit::RESET }>>,
                _ => hot::<$handler<T, $($t),*, { bit::COMPLEMENT }>>,
            })
        };
    }
    let register = match shape(op, insn, 1, mode)? {
        Shape::Reg(r) => Some(r),
        Shape::Imm(v) => {
            op.imm.set(v);
            None
        }
        Shape::Mem(_) => return None,
    };
    Some(match (shape(op, insn, 0, mode)?, register) {
        (Shape::Reg(a), Some(b)) => {
            (op.a, op.b) = (a, b);
            pick!(Bit<RegA, RegB>)
        }
        (Shape::Reg(a), None) => {
            op.a = a;
            pick!(Bit<RegA, Imm>)
        }
        (Shape::Mem(f), None) => by_form!(f, P => pick!(Bit<P, Imm>)),
        (Shape::Mem(f), Some(d)) => {
            op.d = d;
            match f {
                form::BASE => pick!(BitString<{ form::BASE }>),
                form::INDEX | form::FULL => pick!(BitString<{ form::FULL }>),
                // The sum wraps at 32 bits.
                _ => return None,
            }
        }
        (Shape::Imm(_), _) => return None,
    })
}

/// SHL, SHR, SAR, ROL, ROR, by `K`.
pub fn shift<const K: u8>(op: &mut Op, insn: &Instruction, mode: Mode, cx: &Context) -> Option<Handler> {
    let s = size(insn, 0);
    let live = cx.live != 0;
    let by_register = insn.op1_kind() == OpKind::Register;
    if !by_register {
        op.imm.set(insn.immediate8() as u64);
    }
    Some(match shape(op, insn, 0, mode)? {
        Shape::Reg(a) => {
            op.a = a;
            if by_register {
                by_size!(s, T => by_flag!(live, F => hot::<Shift<T, RegA, Cl, K, F>>))
            } else {
                by_size!(s, T => by_flag!(live, F => hot::<Shift<T, RegA, Imm, K, F>>))
            }
        }
        Shape::Mem(f) if by_register => by_form!(f, P => by_size!(s, T => hot::<Shift<T, P, Cl, K, true>>)),
        Shape::Mem(f) => by_form!(f, P => by_size!(s, T => hot::<Shift<T, P, Imm, K, true>>)),
        Shape::Imm(_) => return None,
    })
}

/// IMUL.
pub fn imul(op: &mut Op, insn: &Instruction, mode: Mode, cx: &Context) -> Option<Handler> {
    let s = size(insn, 0);
    let live = cx.live != 0;
    match insn.op_count() {
        1 => source!(op, insn, 0, mode, S => by_wide_size!(s, T => hot::<Mul<T, S, true>>)),
        2 => {
            op.a = slot(insn.op0_register())?;
            source!(op, insn, 1, mode, S => by_wide_size!(s, T => by_flag!(live, F => hot::<Imul<T, RegA, S, F>>)))
        }
        _ => {
            op.a = slot(insn.op0_register())?;
            op.imm.set(insn.immediate(2));
            source!(op, insn, 1, mode, S => by_wide_size!(s, T => by_flag!(live, F => hot::<Imul<T, S, Imm, F>>)))
        }
    }
}
