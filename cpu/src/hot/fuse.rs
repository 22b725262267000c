//! Neighbours that run as one: the first op's handler does the work of those after it as well and goes on behind them. They stay in the
//! block as they are, so that an access that misses is left to the first op's (or a later one's) own slow way.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};
use undervisor_core::FlagKind;
use undervisor_core::regs::{RIP, RSP};

use super::alu::{Alu, AluOp};
use super::branch::{checked, taken};
use super::moves::{Mov, Pop, Push};
use super::operand::{Int, RegA, RegB, Source, keep_flags};
use super::translate::slot;
use super::{Hot, branch_indirect, hot_slow};
use crate::access::{Fast, Way};
use crate::cpu::Cpu;
use crate::decode::Builder;
use crate::dispatch::go;
use crate::op::{Flow, Handler, OpRef};

/// The last ops of a block being built, as far as the next one may join them.
#[derive(Clone, Copy)]
pub struct Lead {
    kind: Kind,
    /// Index of its first op, and how many ops it has.
    first: usize,
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// MOV to a register from another, of 4 or 8 bytes.
    Move {
        to: u8,
        size: usize,
    },
    Push,
    Pop,
}

/// Pushes or pops in one.
const MAX_RUN: usize = 6;

/// Handler of an op on registers and the one after it.
pub fn pair<A: Hot, B: Hot>(cpu: &mut Cpu, op: OpRef) -> Flow {
    // Register forms never miss.
    let _ = A::run::<Fast>(cpu, op);
    let second = op.following();
    match B::run::<Fast>(cpu, second) {
        Ok(()) => go(cpu, second.following()),
        Err(()) => hot_slow::<B>(cpu, second),
    }
}

/// A move of 64 bits, or of 32, from register `b` to register `a`.
pub type Move<T> = Mov<T, RegA, RegB>;

impl Lead {
    /// Where to, and how many bytes, the block's last op, if it is a move that may still be joined, moves.
    pub fn moved(b: &Builder) -> Option<(u8, usize)> {
        match b.lead {
            Some(Lead { kind: Kind::Move { to, size }, first, .. }) if first + 1 == b.ops.len() => Some((to, size)),
            _ => None,
        }
    }

    /// The op about to be appended is done by the handler of the block's last op, `handler`.
    pub fn join(b: &mut Builder, handler: Handler) {
        if let Some(last) = b.ops.last() {
            last.handler.set(handler);
        }
        b.lead = None;
    }

    /// `insn` was appended with a hot op of its own.
    pub fn note(b: &mut Builder, insn: &Instruction) {
        let at = b.ops.len() - 1;
        let register = insn.op_count() == 1 && insn.op0_kind() == OpKind::Register;
        // PUSH RSP and POP RSP depend on their neighbours.
        let plain = register && insn.op0_register().is_gpr64() && insn.op0_register() != Register::RSP;
        let kind = match insn.mnemonic() {
            Mnemonic::Push if plain => Kind::Push,
            Mnemonic::Pop if plain => Kind::Pop,
            Mnemonic::Mov if insn.op0_kind() == OpKind::Register && insn.op1_kind() == OpKind::Register => {
                b.lead = match (insn.op0_register().size(), slot(insn.op0_register())) {
                    (size @ (4 | 8), Some(to)) => Some(Lead { kind: Kind::Move { to, size }, first: at, count: 1 }),
                    _ => None,
                };
                return;
            }
            Mnemonic::Ret if insn.code() == Code::Retnq => {
                if let Some(lead) = Self::growing(b, Kind::Pop, at) {
                    b.ops[lead.first].handler.set(pops_and_return_of(lead.count));
                }
                b.lead = None;
                return;
            }
            _ => {
                b.lead = None;
                return;
            }
        };
        b.lead = match Self::growing(b, kind, at) {
            Some(lead) if lead.count < MAX_RUN => {
                let count = lead.count + 1;
                b.ops[lead.first].handler.set(if kind == Kind::Push { pushes_of(count) } else { pops_of(count) });
                Some(Lead { count, ..lead })
            }
            _ => Some(Lead { kind, first: at, count: 1 }),
        };
    }

    /// The lead, if it is of `kind` and the op at `at` comes right after it.
    fn growing(b: &Builder, kind: Kind, at: usize) -> Option<Lead> {
        b.lead.filter(|l| l.kind == kind && l.first + l.count == at)
    }
}

macro_rules! by_count {
    ($count:expr, $f:ident, $($n:literal)*) => {
        match $count {
            $($n => $f::<$n>,)*
            _ => $f::<{ MAX_RUN }>,
        }
    };
}
fn pushes_of(count: usize) -> Handler {
    by_count!(count, pushes, 2 3 4 5)
}
fn pops_of(count: usize) -> Handler {
    by_count!(count, pops, 2 3 4 5)
}
/// `count` pops, and RET.
fn pops_and_return_of(count: usize) -> Handler {
    match count {
        6 => pops_and_return::<7>,
        _ => by_count!(count + 1, pops_and_return, 2 3 4 5),
    }
}

/// `N` pushes of 64-bit registers: one look-up, if all lie in one page.
fn pushes<const N: usize>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sp = cpu.state.regs[RSP as usize].wrapping_sub(8 * N as u64);
    let mut words = [0; N];
    let mut at = op;
    for i in (0..N).rev() {
        words[i] = cpu.state.regs[at.a as usize];
        at = at.following();
    }
    if Fast::write_words(cpu, sp, words).is_err() {
        return hot_slow::<Push<u64, RegA>>(cpu, op);
    }
    cpu.state.regs[RSP as usize] = sp;
    go(cpu, at)
}

/// `N` pops to 64-bit registers.
fn pops<const N: usize>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sp = cpu.state.regs[RSP as usize];
    let Ok(words) = Fast::read_words::<N>(cpu, sp) else {
        return hot_slow::<Pop<u64>>(cpu, op);
    };
    let mut at = op;
    for word in words {
        cpu.state.regs[at.a as usize] = word;
        at = at.following();
    }
    cpu.state.regs[RSP as usize] = sp.wrapping_add(8 * N as u64);
    go(cpu, at)
}

/// Pops to 64-bit registers and RET, `N` words in all.
fn pops_and_return<const N: usize>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let sp = cpu.state.regs[RSP as usize];
    let Ok(words) = Fast::read_words::<N>(cpu, sp) else {
        return hot_slow::<Pop<u64>>(cpu, op);
    };
    let Ok(target) = checked::<Fast>(cpu, words[N - 1]) else {
        return hot_slow::<Pop<u64>>(cpu, op);
    };
    let mut at = op;
    for word in &words[..N - 1] {
        cpu.state.regs[at.a as usize] = *word;
        at = at.following();
    }
    cpu.state.regs[RSP as usize] = sp.wrapping_add(8 * N as u64);
    cpu.state.regs[RIP as usize] = target;
    branch_indirect(cpu, at)
}

/// What a compare is for, if not for a branch: SETcc to the low byte of a register, or CMOVcc between registers, in the op after it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Set,
    Move32,
    Move64,
}

/// What follows a compare, and its condition, if the two can be one.
pub fn user(next: Option<&Instruction>) -> Option<(Use, u8)> {
    let next = next?;
    if next.condition_code() == ConditionCode::None || next.has_lock_prefix() || next.op0_kind() != OpKind::Register {
        return None;
    }
    slot(next.op0_register())?;
    let purpose = match (next.op_count(), next.op0_register().size()) {
        (1, 1) => Use::Set,
        (2, 4) if next.op1_kind() == OpKind::Register => Use::Move32,
        (2, 8) if next.op1_kind() == OpKind::Register => Use::Move64,
        _ => return None,
    };
    Some((purpose, next.condition_code() as u8 - 1))
}

/// CMP or TEST of registers or an immediate and its user in the op after it, by `U` a value of [`Use`]. The flags are kept as well.
pub fn compare_and_use<O: Alu, T: Int, Y: Source, const U: u8, const CC: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    let (Ok(a), Ok(b)) = (RegA::get::<T, Fast>(cpu, op), Y::get::<T, Fast>(cpu, op)) else {
        // Register forms never miss.
        return hot_slow::<AluOp<O, T, RegA, Y, true>>(cpu, op);
    };
    let r = O::apply(a, b, 0) & T::MASK;
    keep_flags::<T>(cpu, O::KIND, a, r);
    let condition = taken::<T, CC>(O::KIND == FlagKind::SUB, a, b, r);
    let second = op.following();
    let (to, from) = (second.a as usize, second.b as usize);
    if U == Use::Set as u8 {
        u8::put(&mut cpu.state.regs[to], condition as u64);
    } else {
        let v = if condition { cpu.state.regs[from] } else { cpu.state.regs[to] };
        if U == Use::Move64 as u8 { u64::put(&mut cpu.state.regs[to], v) } else { u32::put(&mut cpu.state.regs[to], v) }
    }
    go(cpu, second.following())
}
