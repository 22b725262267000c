//! One decoded instruction (or part of one), 32 bytes.

use std::cell::Cell;
use std::ops::Deref;
use std::ptr::NonNull;

use crate::cpu::Cpu;

/// What a handler returns. In the tail back end a handler calls the next one and hands its result through; `None` ends the
/// chain. In the loop back end `Some` is the next op.
pub type Flow = Option<OpRef>;
pub type Handler = fn(&mut Cpu, OpRef) -> Flow;

/// A decoded op. Register fields are slots of `CpuState::regs`; unused ones hold `regs::ZERO`.
#[repr(C)]
pub struct Op {
    /// Replaced in place when the op's block is invalidated or the processor must stop before it.
    pub handler: Cell<Handler>,
    /// First register operand (destination where there is one).
    pub a: u8,
    /// Base register of the memory operand, or second register.
    pub b: u8,
    /// Index register of the memory operand, or third register.
    pub c: u8,
    /// A further register: VEX.vvvv and the like.
    pub d: u8,
    /// Shift of the index register, 0–3.
    pub scale: u8,
    /// Slot of the segment base (`regs::ZERO` where it is known to be 0).
    pub seg: u8,
    /// Instructions of the block that come before this one.
    pub index: u8,
    /// Bytes.
    pub length: u8,
    /// From the block's first byte to this instruction.
    pub offset: u16,
    /// Small extra operand: 8-bit immediate, condition, index of the full `Instruction` …
    pub extra: u16,
    /// Displacement of the memory operand; of a direct branch: target minus the block's first byte.
    pub disp: i32,
    /// Immediate, sign-extended to the operand's size; of a direct branch: link to the target's op (0 = none yet).
    pub imm: Cell<u64>,
}

const _: () = assert!(size_of::<Op>() == 32);

/// Pointer to an op inside its block's array.
///
/// Invariant: blocks are freed only between chains (`CodeCache::collect`), so an `OpRef` is valid while a chain runs; and
/// every block's last op never moves on to the op after it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct OpRef(pub NonNull<Op>);

#[allow(unsafe_code)]
impl Deref for OpRef {
    type Target = Op;
    #[inline(always)]
    fn deref(&self) -> &Op {
        // SAFETY: the invariant of `OpRef`.
        unsafe { self.0.as_ref() }
    }
}

#[allow(unsafe_code)]
impl OpRef {
    /// The op after this one in its block.
    #[inline(always)]
    pub fn following(self) -> OpRef {
        // SAFETY: only called on ops that are not the last of their block (invariant of `OpRef`).
        OpRef(unsafe { self.0.add(1) })
    }

    pub fn to_bits(self) -> u64 {
        self.0.as_ptr() as usize as u64
    }

    /// The op that `bits` (from [`OpRef::to_bits`], kept in `Op::imm`) stands for.
    #[inline(always)]
    pub fn from_link(bits: u64) -> Option<OpRef> {
        NonNull::new(bits as usize as *mut Op).map(OpRef)
    }
}
