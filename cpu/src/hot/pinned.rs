//! Moves, arithmetic and shifts of registers, each compiled for the registers it names: their slots are constants, so that one
//! instruction's result goes to the next one's operand by a store and a load at fixed places. Only forms whose flags no one looks at,
//! which the long computations are made of. (Loads and stores gain nothing: they wait for the TLB's look-up.)

use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::alu::{Add, Alu, AluOp, And, Or, Sub, Xor};
use super::fuse::{Move, pair};
use super::moves::Mov;
use super::operand::{Imm, Int, Place, Reg, Source};
use super::shift::{self, Shift, kind};
use super::translate::slot;
use super::{Hot, hot};
use crate::access::Fast;
use crate::cpu::Cpu;
use crate::dispatch::go;
use crate::op::{Flow, Handler, Op, OpRef};

macro_rules! by_register {
    ($n:expr, $r:ident => $e:expr) => {
        by_register!(@ $n, $r, $e, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $n:expr, $r:ident, $e:expr, $($k:literal)*) => {
        match $n {
            $($k => {
                type $r = Reg<$k>;
                Some($e)
            })*
            _ => None,
        }
    };
}
macro_rules! by_two {
    ($a:expr, $b:expr, $x:ident, $y:ident => $e:expr) => {
        match $a {
            0 => by_two!(@ 0, $b, $x, $y, $e),
            1 => by_two!(@ 1, $b, $x, $y, $e),
            2 => by_two!(@ 2, $b, $x, $y, $e),
            3 => by_two!(@ 3, $b, $x, $y, $e),
            4 => by_two!(@ 4, $b, $x, $y, $e),
            5 => by_two!(@ 5, $b, $x, $y, $e),
            6 => by_two!(@ 6, $b, $x, $y, $e),
            7 => by_two!(@ 7, $b, $x, $y, $e),
            8 => by_two!(@ 8, $b, $x, $y, $e),
            9 => by_two!(@ 9, $b, $x, $y, $e),
            10 => by_two!(@ 10, $b, $x, $y, $e),
            11 => by_two!(@ 11, $b, $x, $y, $e),
            12 => by_two!(@ 12, $b, $x, $y, $e),
            13 => by_two!(@ 13, $b, $x, $y, $e),
            14 => by_two!(@ 14, $b, $x, $y, $e),
            15 => by_two!(@ 15, $b, $x, $y, $e),
            _ => None,
        }
    };
    (@ $k:literal, $b:expr, $x:ident, $y:ident, $e:expr) => {{
        type $x = Reg<$k>;
        by_register!($b, $y => $e)
    }};
}
/// By size: 32 or 64 bits.
macro_rules! sized {
    ($size:expr, $t:ident => $e:expr) => {
        if $size == 8 {
            type $t = u64;
            $e
        } else {
            type $t = u32;
            $e
        }
    };
}

/// Handlers of an instruction: by itself, and together with a move of registers in the op before it, if that suits.
pub struct Pinned {
    pub alone: Handler,
    pub after_move: Option<Handler>,
}

/// A move before the instruction, of so many bytes to that register.
type Moved = Option<(u8, usize)>;

/// `H` alone and behind a move.
fn both<H: Hot>(moved: Moved) -> Pinned {
    let after_move: Option<Handler> = match moved {
        Some((_, 4)) => Some(pair::<Move<u32>, H>),
        Some(_) => Some(pair::<Move<u64>, H>),
        None => None,
    };
    Pinned { alone: hot::<H>, after_move }
}

/// An operation of two operands, as [`onto`] wants it.
trait Operation {
    fn of<T: Int>(a: u64, b: u64) -> u64;
}
/// `O` without flags.
struct Plain<O>(PhantomData<O>);
impl<O: Alu> Operation for Plain<O> {
    #[inline(always)]
    fn of<T: Int>(a: u64, b: u64) -> u64 {
        O::apply(a, b, 0)
    }
}
/// A shift by an immediate.
struct By<const K: u8>;
impl<const K: u8> Operation for By<K> {
    #[inline(always)]
    fn of<T: Int>(a: u64, b: u64) -> u64 {
        shift::apply::<T, K>(a, b as u32 & (T::BITS - 1))
    }
}

/// MOV of `M` from register `b` to `A`, and `O` on `A` and `S` in the op after it: an operation of three operands. `S` is not `A`.
fn onto<O: Operation, M: Int, T: Int, A: Place, S: Source>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let second = op.following();
    let copy = cpu.state.regs[op.b as usize] & M::MASK & T::MASK;
    // Register forms never miss.
    if let Ok(right) = S::get::<T, Fast>(cpu, second) {
        let _ = A::put::<T, Fast>(cpu, second, O::of::<T>(copy, right) & T::MASK);
    }
    go(cpu, second.following())
}

/// [`onto`] for an instruction on register `a`, if the move before it was to that.
fn onto_moved<O: Operation, T: Int, A: Place, S: Source>(a: u8, moved: Moved) -> Option<Handler> {
    Some(match moved {
        Some((to, 4)) if to == a => onto::<O, u32, T, A, S>,
        Some((to, _)) if to == a => onto::<O, u64, T, A, S>,
        _ => return None,
    })
}

/// The pinned handlers of `insn`, if it has any. `live`: status flags that someone may look at after it.
pub fn pinned(op: &mut Op, insn: &Instruction, live: u64, moved: Moved) -> Option<Pinned> {
    if insn.op_count() != 2 || insn.op0_kind() != OpKind::Register || insn.has_lock_prefix() {
        return None;
    }
    let m = insn.mnemonic();
    let size = insn.op0_register().size();
    if !matches!(size, 4 | 8) || live != 0 && m != M::Mov {
        return None;
    }
    let a = slot(insn.op0_register())?;
    match insn.op1_kind() {
        OpKind::Register => {
            if insn.op1_register().size() != size {
                return None;
            }
            let b = slot(insn.op1_register())?;
            // Where the op before or after is done in one with this, slots are asked for.
            (op.a, op.b) = (a, b);
            match m {
                M::Mov => sized!(size, T => by_two!(a, b, A, B => both::<Mov<T, A, B>>(moved))),
                M::Add => registers::<Add>(size, a, b, moved),
                M::Sub => registers::<Sub>(size, a, b, moved),
                M::Xor => registers::<Xor>(size, a, b, moved),
                M::And => registers::<And>(size, a, b, moved),
                M::Or => registers::<Or>(size, a, b, moved),
                _ => None,
            }
        }
        OpKind::Immediate8
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => {
            op.imm.set(insn.immediate(1));
            match m {
                M::Mov => sized!(size, T => by_register!(a, A => both::<Mov<T, A, Imm>>(moved))),
                M::Add => immediate::<Add>(size, a, moved),
                M::Sub => immediate::<Sub>(size, a, moved),
                M::Xor => immediate::<Xor>(size, a, moved),
                M::And => immediate::<And>(size, a, moved),
                M::Or => immediate::<Or>(size, a, moved),
                M::Shl | M::Sal => by_immediate::<{ kind::SHL }>(size, a, moved),
                M::Shr => by_immediate::<{ kind::SHR }>(size, a, moved),
                M::Sar => by_immediate::<{ kind::SAR }>(size, a, moved),
                M::Rol => by_immediate::<{ kind::ROL }>(size, a, moved),
                M::Ror => by_immediate::<{ kind::ROR }>(size, a, moved),
                _ => None,
            }
        }
        _ => None,
    }
}

fn registers<O: Alu>(size: usize, a: u8, b: u8, moved: Moved) -> Option<Pinned> {
    let moved = moved.filter(|_| a != b);
    sized!(size, T => by_two!(a, b, A, B => Pinned {
        alone: hot::<AluOp<O, T, A, B, false>>,
        after_move: onto_moved::<Plain<O>, T, A, B>(a, moved),
    }))
}

fn immediate<O: Alu>(size: usize, a: u8, moved: Moved) -> Option<Pinned> {
    sized!(size, T => by_register!(a, A => Pinned {
        alone: hot::<AluOp<O, T, A, Imm, false>>,
        after_move: onto_moved::<Plain<O>, T, A, Imm>(a, moved),
    }))
}

fn by_immediate<const K: u8>(size: usize, a: u8, moved: Moved) -> Option<Pinned> {
    sized!(size, T => by_register!(a, A => Pinned {
        alone: hot::<Shift<T, A, Imm, K, false>>,
        after_move: onto_moved::<By<K>, T, A, Imm>(a, moved),
    }))
}
