//! From one op to the next. Two back ends, one handler source: `go` either calls the next handler in tail position (which
//! LLVM emits as a jump in optimised builds), or returns the op to the loop in [`enter`].
//!
//! What keeps the call a jump: a handler holds no value with drop glue and no local whose address escapes across it.

use crate::cpu::Cpu;
use crate::op::{Flow, OpRef};

/// Whether handlers chain by tail calls.
pub const TAIL: bool = cfg!(all(not(debug_assertions), not(feature = "portable-dispatch"), not(miri)));

/// Run `op` (in the loop back end: hand it to the loop).
#[inline(always)]
pub fn go(cpu: &mut Cpu, op: OpRef) -> Flow {
    if TAIL { (op.handler.get())(cpu, op) } else { Some(op) }
}

/// Go on with the op after `op`.
#[inline(always)]
pub fn next(cpu: &mut Cpu, op: OpRef) -> Flow {
    go(cpu, op.following())
}

/// Run a chain from `op` until it ends.
#[inline(never)]
pub fn enter(cpu: &mut Cpu, op: OpRef) {
    let mut flow = Some(op);
    while let Some(op) = flow {
        flow = (op.handler.get())(cpu, op);
    }
}
