//! From a decoded instruction to its hot op, if it has one.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use undervisor_core::regs;

use super::alu::{Adc, Add, Alu, AluOp, And, Cmp, IncDec, Neg, Not, Or, Sbb, Sub, Test, Xor, keep};
use super::arith::{Bmi, Bswap, Cmpxchg, Count, Div, ExtendAccumulator, Mul, Mulx, SignToRdx, Xadd, bmi, count};
use super::branch::{self, CallIndirect, CompareBranch, ComputeBranch, JmpIndirect, Ret, indirect};
use super::fuse::{self, Lead, Use};
use super::moves::{Cmov, Extend, ExtendHigh, Lea, Leave, Mov, Pop, Push, Set, Xchg};
use super::operand::{HighA, Imm, Mem, RegA, RegB, form};
use super::shift::{Cl, DoubleShift, RorX, ShiftX, kind};
use super::{hot, pinned, stale, string};
use crate::decode::{Builder, Mode};
use crate::op::{Handler, Op};
use crate::operand::{Gpr, segment_of};

/// What surrounds the instruction being translated.
pub struct Context<'a> {
    /// Status flags (RFLAGS bits) that someone may look at after the instruction.
    pub live: u64,
    /// The next instruction of the block.
    pub next: Option<&'a Instruction>,
    /// An AMD processor, where what manuals leave undefined differs.
    pub amd: bool,
}

macro_rules! by_size {
    ($size:expr, $t:ident => $e:expr) => {
        match $size {
            1 => {
                type $t = u8;
                $e
            }
            2 => {
                type $t = u16;
                $e
            }
            4 => {
                type $t = u32;
                $e
            }
            8 => {
                type $t = u64;
                $e
            }
            _ => return None,
        }
    };
}
pub(super) use by_size;
/// 32 and 64 bits only.
macro_rules! by_wide_size {
    ($size:expr, $t:ident => $e:expr) => {
        match $size {
            4 => {
                type $t = u32;
                $e
            }
            8 => {
                type $t = u64;
                $e
            }
            _ => return None,
        }
    };
}
macro_rules! by_form {
    ($form:expr, $m:ident => $e:expr) => {
        match $form {
            form::BASE => {
                type $m = Mem<{ form::BASE }>;
                $e
            }
            form::INDEX => {
                type $m = Mem<{ form::INDEX }>;
                $e
            }
            form::FULL => {
                type $m = Mem<{ form::FULL }>;
                $e
            }
            _ => {
                type $m = Mem<{ form::OFFSET32 }>;
                $e
            }
        }
    };
}
macro_rules! by_flag {
    ($flag:expr, $f:ident => $e:expr) => {
        if $flag {
            const $f: bool = true;
            $e
        } else {
            const $f: bool = false;
            $e
        }
    };
}
macro_rules! by_condition {
    ($cc:expr, $c:ident => $e:expr) => {
        by_condition!(@ $cc, $c, $e, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $cc:expr, $c:ident, $e:expr, $($n:literal)*) => {
        match $cc { $($n => { const $c: u8 = $n; $e })* _ => return None }
    };
}

/// Pick a handler over a source operand: register `b` or memory.
macro_rules! source {
    ($op:expr, $insn:expr, $n:expr, $mode:expr, $s:ident => $e:expr) => {
        match shape($op, $insn, $n, $mode)? {
            Shape::Reg(r) => {
                $op.b = r;
                type $s = RegB;
                Some($e)
            }
            Shape::Mem(f) => by_form!(f, $s => Some($e)),
            Shape::Imm(_) => None,
        }
    };
}
/// The commonest compares with memory, fused: 8, 32 and 64 bits, BASE and INDEX forms, six conditions. `None`: not one of them.
macro_rules! fused_memory {
    ($o:ty, Mem, $y:ty, $cc:expr, $size:expr, $form:expr) => {
        fused_memory!(@ $cc, $size, $form, T, CC, A => CompareBranch::<$o, T, Mem<A>, $y>::run::<CC, true>)
    };
    ($o:ty, $x:ty, Mem, $cc:expr, $size:expr, $form:expr) => {
        fused_memory!(@ $cc, $size, $form, T, CC, A => CompareBranch::<$o, T, $x, Mem<A>>::run::<CC, true>)
    };
    (@ $cc:expr, $size:expr, $form:expr, $t:ident, $c:ident, $a:ident => $e:expr) => {
        match ($size, $form) {
            (1, form::BASE) => fused_memory!(# $cc, $t = u8, $c, $a = { form::BASE } => $e),
            (4, form::BASE) => fused_memory!(# $cc, $t = u32, $c, $a = { form::BASE } => $e),
            (8, form::BASE) => fused_memory!(# $cc, $t = u64, $c, $a = { form::BASE } => $e),
            (1, form::INDEX) => fused_memory!(# $cc, $t = u8, $c, $a = { form::INDEX } => $e),
            (4, form::INDEX) => fused_memory!(# $cc, $t = u32, $c, $a = { form::INDEX } => $e),
            (8, form::INDEX) => fused_memory!(# $cc, $t = u64, $c, $a = { form::INDEX } => $e),
            _ => None,
        }
    };
    (# $cc:expr, $t:ident = $ty:ty, $c:ident, $a:ident = $f:expr => $e:expr) => {{
        type $t = $ty;
        const $a: u8 = $f;
        fused_memory!(% $cc, $c, $e, 2 3 4 5 6 7)
    }};
    (% $cc:expr, $c:ident, $e:expr, $($n:literal)*) => {
        match $cc {
            $(Some($n) => {
                const $c: u8 = $n;
                Some($e as Handler)
            })*
            _ => None,
        }
    };
}

// After the macros, which it uses.
mod bitwise;

use bitwise::{bits, imul, shift};

/// Slot of a register operand that a hot op can name: any general register but AH, CH, DH, BH.
pub fn slot(register: Register) -> Option<u8> {
    Gpr::of(register).filter(|g| !g.high).map(|g| g.number)
}

/// Fill in the memory operand of `insn`; its address form, or `None` if it needs the general way.
pub fn memory(op: &mut Op, insn: &Instruction, mode: Mode) -> Option<u8> {
    if !mode.has(Mode::FLAT) {
        return None;
    }
    let segment = segment_of(insn.memory_segment())?;
    let based = matches!(segment, undervisor_core::SegReg::Fs | undervisor_core::SegReg::Gs);
    if !mode.is64() && (based || segment == undervisor_core::SegReg::Cs) {
        return None;
    }
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let disp = insn.memory_displacement64();
    let mut wide = mode.is64();
    op.b = match base {
        Register::None => regs::ZERO,
        Register::RIP => regs::RIP,
        r => {
            let g = Gpr::of(r)?;
            match g.size {
                8 => {}
                4 => wide = false,
                _ => return None,
            }
            g.number
        }
    };
    op.c = match index {
        Register::None => regs::ZERO,
        r => {
            let g = Gpr::of(r)?;
            match g.size {
                8 => {}
                4 => wide = false,
                _ => return None,
            }
            g.number
        }
    };
    if base == Register::None && index == Register::None {
        match insn.memory_displ_size() {
            8 => {}
            4 => wide = false,
            _ => return None,
        }
    }
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    op.disp = if wide { i32::try_from(disp as i64).ok()? } else { disp as u32 as i32 };
    op.seg = if based { regs::SEG_BASE + segment as u8 } else { regs::ZERO };
    Some(match (wide, based, index == Register::None) {
        (true, false, true) => form::BASE,
        (true, false, false) => form::INDEX,
        (true, true, _) => form::FULL,
        (false, ..) => form::OFFSET32,
    })
}

/// An operand of a hot op.
enum Shape {
    Reg(u8),
    Mem(u8),
    Imm(u64),
}

fn shape(op: &mut Op, insn: &Instruction, n: u32, mode: Mode) -> Option<Shape> {
    Some(match insn.op_kind(n) {
        OpKind::Register => Shape::Reg(slot(insn.op_register(n))?),
        OpKind::Memory => Shape::Mem(memory(op, insn, mode)?),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 | OpKind::FarBranch16 | OpKind::FarBranch32 => {
            return None;
        }
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Shape::Imm(insn.immediate(n)),
        _ => return None,
    })
}

/// Bytes of operand `n`.
fn size(insn: &Instruction, n: u32) -> usize {
    if insn.op_kind(n) == OpKind::Register { insn.op_register(n).size() } else { insn.memory_size().size() }
}

/// Append the hot op of `insn`, if it has one. Returns whether it ends its block.
pub fn translate(b: &mut Builder, insn: &Instruction, index: usize, cx: &Context) -> Option<bool> {
    if insn.is_invalid() {
        return None;
    }
    let mode = b.mode;
    if let Some(ends) = control(b, insn, index) {
        Lead::note(b, insn);
        return Some(ends);
    }
    match insn.mnemonic() {
        // No op at all: what follows carries the count.
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 | Mnemonic::Lfence | Mnemonic::Sfence | Mnemonic::Mfence
            if !insn.has_lock_prefix() =>
        {
            return Some(false);
        }
        _ => {}
    }
    if let Some(ends) = super::simd::translate(b, insn, index) {
        return Some(ends);
    }
    let mut op = Op::new(stale);
    if mode.is64()
        && let Some(both) = pinned::pinned(&mut op, insn, cx.live, Lead::moved(b))
    {
        op.handler.set(both.alone);
        if let Some(handler) = both.after_move {
            Lead::join(b, handler);
            b.push(op, insn, index);
        } else {
            b.push(op, insn, index);
            Lead::note(b, insn);
        }
        return Some(false);
    }
    let handler = plain(&mut op, insn, mode, cx)?;
    op.handler.set(handler);
    b.push(op, insn, index);
    Lead::note(b, insn);
    Some(false)
}

/// Near branches.
fn control(b: &mut Builder, insn: &Instruction, index: usize) -> Option<bool> {
    let mode = b.mode;
    let long = mode.is64();
    let mut op = Op::new(stale);
    let direct = match insn.op0_kind() {
        OpKind::NearBranch64 if long => Some(i32::try_from(insn.near_branch64() as i64).ok()?),
        OpKind::NearBranch32 if mode.bits() == 32 => Some(insn.near_branch32() as i32),
        OpKind::NearBranch16 if mode.bits() == 16 => Some(insn.near_branch16() as i16 as i32),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => return None,
        _ => None,
    };
    let stack = long || (mode.has(Mode::FLAT) && mode.has(Mode::STACK32) && mode.bits() == 32);
    op.disp = direct.unwrap_or(0);
    let (handler, ends): (Handler, bool) = match insn.mnemonic() {
        Mnemonic::Jmp if direct.is_some() => (if long { branch::jmp::<true> } else { branch::jmp::<false> }, true),
        Mnemonic::Call if direct.is_some() && stack => {
            (if long { branch::call::<u64, true> } else { branch::call::<u32, false> }, true)
        }
        Mnemonic::Jrcxz if direct.is_some() => (branch::jcxz::<u64, true>, false),
        Mnemonic::Jecxz if direct.is_some() => {
            (if long { branch::jcxz::<u32, true> } else { branch::jcxz::<u32, false> }, false)
        }
        Mnemonic::Ret if stack => {
            if insn.op_count() == 1 {
                op.imm.set(insn.immediate16() as u64);
            }
            match (insn.code(), long) {
                (iced_x86::Code::Retnq | iced_x86::Code::Retnq_imm16, true) => (indirect::<Ret<u64>>, true),
                (iced_x86::Code::Retnd | iced_x86::Code::Retnd_imm16, false) => (indirect::<Ret<u32>>, true),
                _ => return None,
            }
        }
        Mnemonic::Jmp | Mnemonic::Call if insn.is_jmp_near_indirect() || insn.is_call_near_indirect() => {
            let is_call = insn.is_call_near_indirect();
            if is_call && !stack || size(insn, 0) != if long { 8 } else { 4 } || (!long && mode.bits() != 32) {
                return None;
            }
            let handler: Handler = match shape(&mut op, insn, 0, mode)? {
                Shape::Reg(r) => {
                    op.a = r;
                    match (is_call, long) {
                        (true, true) => indirect::<CallIndirect<u64, RegA>>,
                        (true, false) => indirect::<CallIndirect<u32, RegA>>,
                        (false, true) => indirect::<JmpIndirect<u64, RegA>>,
                        (false, false) => indirect::<JmpIndirect<u32, RegA>>,
                    }
                }
                Shape::Mem(f) => by_form!(f, M => match (is_call, long) {
                    (true, true) => indirect::<CallIndirect<u64, M>>,
                    (true, false) => indirect::<CallIndirect<u32, M>>,
                    (false, true) => indirect::<JmpIndirect<u64, M>>,
                    (false, false) => indirect::<JmpIndirect<u32, M>>,
                }),
                Shape::Imm(_) => return None,
            };
            (handler, true)
        }
        _ if direct.is_some() && insn.is_jcc_short_or_near() => (
            by_condition!(insn.condition_code() as u8 - 1, CC => if long { branch::jcc::<CC, true> } else { branch::jcc::<CC, false> }),
            false,
        ),
        _ => return None,
    };
    op.handler.set(handler);
    b.push(op, insn, index);
    Some(ends)
}

/// The condition of a Jcc that may be fused with what precedes it.
fn fusible(cx: &Context, mode: Mode) -> Option<u8> {
    let next = cx.next?;
    let kind = if mode.is64() { OpKind::NearBranch64 } else { OpKind::NearBranch32 };
    if next.is_jcc_short_or_near()
        && next.op0_kind() == kind
        && mode.bits() != 16
        && (!mode.is64() || i32::try_from(next.near_branch64() as i64).is_ok())
    {
        Some(next.condition_code() as u8 - 1)
    } else {
        None
    }
}

fn plain(op: &mut Op, insn: &Instruction, mode: Mode, cx: &Context) -> Option<Handler> {
    use Mnemonic as M;
    let m = insn.mnemonic();
    if insn.has_lock_prefix() {
        let lockable = matches!(
            m,
            M::Add
                | M::Or
                | M::Adc
                | M::Sbb
                | M::And
                | M::Sub
                | M::Xor
                | M::Inc
                | M::Dec
                | M::Neg
                | M::Not
                | M::Xchg
                | M::Cmpxchg
                | M::Xadd
                | M::Bts
                | M::Btr
                | M::Btc
        );
        if !lockable || insn.op0_kind() != OpKind::Memory {
            return None;
        }
    }
    match m {
        M::Add => alu::<Add>(op, insn, mode, cx),
        M::Or => alu::<Or>(op, insn, mode, cx),
        M::Adc => alu::<Adc>(op, insn, mode, cx),
        M::Sbb => alu::<Sbb>(op, insn, mode, cx),
        M::And => alu::<And>(op, insn, mode, cx),
        M::Sub => alu::<Sub>(op, insn, mode, cx),
        M::Xor => alu::<Xor>(op, insn, mode, cx),
        M::Cmp => compare::<Cmp>(op, insn, mode, cx),
        M::Test => compare::<Test>(op, insn, mode, cx),
        M::Inc => inc_dec::<false>(op, insn, mode, cx),
        M::Dec => inc_dec::<true>(op, insn, mode, cx),
        M::Neg | M::Not => {
            let s = size(insn, 0);
            let neg = m == M::Neg;
            Some(match shape(op, insn, 0, mode)? {
                Shape::Reg(r) => {
                    op.a = r;
                    by_size!(s, T => if neg { hot::<Neg<T, RegA>> } else { hot::<Not<T, RegA>> })
                }
                Shape::Mem(f) => by_form!(f, P => by_size!(s, T => if neg { hot::<Neg<T, P>> } else { hot::<Not<T, P>> })),
                Shape::Imm(_) => return None,
            })
        }
        M::Mov => mov(op, insn, mode),
        M::Movzx | M::Movsx | M::Movsxd => extend(op, insn, mode),
        M::Lea => lea(op, insn, mode),
        M::Push => push(op, insn, mode),
        M::Pop => {
            if !stack_ok(mode) || insn.op0_kind() != OpKind::Register {
                return None;
            }
            op.a = slot(insn.op0_register())?;
            match (size(insn, 0), mode.is64()) {
                (8, true) => Some(hot::<Pop<u64>>),
                (4, false) => Some(hot::<Pop<u32>>),
                _ => None,
            }
        }
        M::Leave if stack_ok(mode) => match (insn.code(), mode.is64()) {
            (iced_x86::Code::Leaveq, true) => Some(hot::<Leave<u64>>),
            (iced_x86::Code::Leaved, false) => Some(hot::<Leave<u32>>),
            _ => None,
        },
        M::Xchg | M::Cmpxchg | M::Xadd => {
            // The register operand may come first or second in XCHG's encodings.
            let (place, register) =
                if insn.op0_kind() == OpKind::Memory || insn.op1_kind() == OpKind::Register { (0, 1) } else { (1, 0) };
            op.d = slot(insn.op_register(register))?;
            let s = size(insn, register);
            Some(match shape(op, insn, place, mode)? {
                Shape::Reg(r) => {
                    op.a = r;
                    by_size!(s, T => match m {
                        M::Xchg => hot::<Xchg<T, RegA>>,
                        M::Cmpxchg => hot::<Cmpxchg<T, RegA>>,
                        _ => hot::<Xadd<T, RegA>>,
                    })
                }
                Shape::Mem(f) => by_form!(f, P => by_size!(s, T => match m {
                    M::Xchg => hot::<Xchg<T, P>>,
                    M::Cmpxchg => hot::<Cmpxchg<T, P>>,
                    _ => hot::<Xadd<T, P>>,
                })),
                Shape::Imm(_) => return None,
            })
        }
        M::Shl | M::Sal => shift::<{ kind::SHL }>(op, insn, mode, cx),
        M::Shr => shift::<{ kind::SHR }>(op, insn, mode, cx),
        M::Sar => shift::<{ kind::SAR }>(op, insn, mode, cx),
        M::Rol => shift::<{ kind::ROL }>(op, insn, mode, cx),
        M::Ror => shift::<{ kind::ROR }>(op, insn, mode, cx),
        M::Shld | M::Shrd => {
            if insn.op0_kind() != OpKind::Register {
                return None;
            }
            op.a = slot(insn.op0_register())?;
            op.b = slot(insn.op1_register())?;
            op.extra = if cx.amd { undervisor_core::Rflags::AF.bits() as u16 } else { 0 };
            let right = m == M::Shrd;
            let s = size(insn, 0);
            if insn.op2_kind() == OpKind::Register {
                return Some(
                    by_wide_size!(s, T => if right { hot::<DoubleShift<T, Cl, true>> } else { hot::<DoubleShift<T, Cl, false>> }),
                );
            }
            op.imm.set(insn.immediate8() as u64);
            Some(
                by_wide_size!(s, T => if right { hot::<DoubleShift<T, Imm, true>> } else { hot::<DoubleShift<T, Imm, false>> }),
            )
        }
        M::Shlx | M::Shrx | M::Sarx => {
            op.a = slot(insn.op0_register())?;
            op.d = slot(insn.op2_register())?;
            let s = size(insn, 0);
            macro_rules! pick {
                ($src:ty) => {
                    by_wide_size!(s, T => match m {
                        M::Shlx => hot::<ShiftX<T, $src, { kind::SHL }>>,
                        M::Shrx => hot::<ShiftX<T, $src, { kind::SHR }>>,
                        _ => hot::<ShiftX<T, $src, { kind::SAR }>>,
                    })
                };
            }
            source!(op, insn, 1, mode, S => pick!(S))
        }
        M::Rorx => {
            op.a = slot(insn.op0_register())?;
            op.extra = insn.immediate8() as u16;
            let s = size(insn, 0);
            source!(op, insn, 1, mode, S => by_wide_size!(s, T => hot::<RorX<T, S>>))
        }
        M::Imul => imul(op, insn, mode, cx),
        M::Mul | M::Div | M::Idiv => {
            let s = size(insn, 0);
            source!(op, insn, 0, mode, S => by_wide_size!(s, T => match m {
                M::Mul => hot::<Mul<T, S, false>>,
                M::Div => hot::<Div<T, S, false>>,
                _ => hot::<Div<T, S, true>>,
            }))
        }
        M::Mulx => {
            op.a = slot(insn.op0_register())?;
            op.d = slot(insn.op1_register())?;
            let s = size(insn, 0);
            source!(op, insn, 2, mode, S => by_wide_size!(s, T => hot::<Mulx<T, S>>))
        }
        M::Bswap => {
            op.a = slot(insn.op0_register())?;
            Some(by_wide_size!(size(insn, 0), T => hot::<Bswap<T>>))
        }
        M::Bt | M::Bts | M::Btr | M::Btc => bits(op, insn, mode),
        M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt | M::Popcnt => {
            op.a = slot(insn.op0_register())?;
            let s = size(insn, 0);
            macro_rules! pick {
                ($src:ty) => {
                    by_wide_size!(s, T => match m {
                        M::Bsf => hot::<Count<T, $src, { count::BSF }>>,
                        M::Bsr => hot::<Count<T, $src, { count::BSR }>>,
                        M::Tzcnt => hot::<Count<T, $src, { count::TZCNT }>>,
                        M::Lzcnt => hot::<Count<T, $src, { count::LZCNT }>>,
                        _ => hot::<Count<T, $src, { count::POPCNT }>>,
                    })
                };
            }
            source!(op, insn, 1, mode, S => pick!(S))
        }
        M::Andn | M::Blsr | M::Blsi | M::Blsmsk | M::Bzhi => {
            op.a = slot(insn.op0_register())?;
            let s = size(insn, 0);
            let n = match m {
                M::Andn => {
                    op.d = slot(insn.op1_register())?;
                    2
                }
                M::Bzhi => {
                    op.d = slot(insn.op2_register())?;
                    1
                }
                _ => 1,
            };
            macro_rules! pick {
                ($src:ty) => {
                    by_wide_size!(s, T => match m {
                        M::Andn => hot::<Bmi<T, $src, { bmi::ANDN }>>,
                        M::Blsr => hot::<Bmi<T, $src, { bmi::BLSR }>>,
                        M::Blsi => hot::<Bmi<T, $src, { bmi::BLSI }>>,
                        M::Blsmsk => hot::<Bmi<T, $src, { bmi::BLSMSK }>>,
                        _ => hot::<Bmi<T, $src, { bmi::BZHI }>>,
                    })
                };
            }
            source!(op, insn, n, mode, S => pick!(S))
        }
        M::Stosb | M::Stosw | M::Stosd | M::Stosq | M::Movsb | M::Movsw | M::Movsd | M::Movsq => string::single(insn, mode),
        M::Cbw => Some(hot::<ExtendAccumulator<u8, u16>>),
        M::Cwde => Some(hot::<ExtendAccumulator<u16, u32>>),
        M::Cdqe => Some(hot::<ExtendAccumulator<u32, u64>>),
        M::Cwd => Some(hot::<SignToRdx<u16>>),
        M::Cdq => Some(hot::<SignToRdx<u32>>),
        M::Cqo => Some(hot::<SignToRdx<u64>>),
        _ if insn.condition_code() != iced_x86::ConditionCode::None => conditional(op, insn, mode),
        _ => None,
    }
}

fn stack_ok(mode: Mode) -> bool {
    mode.is64() || (mode.has(Mode::FLAT) && mode.has(Mode::STACK32) && mode.bits() == 32)
}

/// Fill in the operands of an operation on AH, CH, DH or BH and an immediate, if `insn` is one: how compilers look at and change
/// bits 8 to 15.
fn high_and_immediate(op: &mut Op, insn: &Instruction) -> bool {
    if insn.op0_kind() != OpKind::Register || insn.op1_kind() != OpKind::Immediate8 {
        return false;
    }
    let Some(Gpr { high: true, number, .. }) = Gpr::of(insn.op0_register()) else { return false };
    op.a = number;
    op.imm.set(insn.immediate(1));
    true
}

/// ADD, OR, ADC, SBB, AND, SUB, XOR.
fn alu<O: Alu>(op: &mut Op, insn: &Instruction, mode: Mode, cx: &Context) -> Option<Handler> {
    let s = size(insn, 0);
    let live = cx.live != 0;
    let fuse = if O::WITH_CARRY || !mode.is64() { None } else { fusible(cx, mode) };
    if high_and_immediate(op, insn) {
        return Some(by_flag!(live, F => hot::<AluOp<O, u8, HighA, Imm, F>>));
    }
    match shape(op, insn, 0, mode)? {
        Shape::Reg(a) => {
            op.a = a;
            macro_rules! pick {
                ($src:ty) => {
                    match (fuse, s) {
                        (Some(4), 8) => ComputeBranch::<AluOp<O, u64, RegA, $src, true>, u64>::run::<4, true>,
                        (Some(5), 8) => ComputeBranch::<AluOp<O, u64, RegA, $src, true>, u64>::run::<5, true>,
                        (Some(4), 4) => ComputeBranch::<AluOp<O, u32, RegA, $src, true>, u32>::run::<4, true>,
                        (Some(5), 4) => ComputeBranch::<AluOp<O, u32, RegA, $src, true>, u32>::run::<5, true>,
                        _ => by_size!(s, T => by_flag!(live, F => hot::<AluOp<O, T, RegA, $src, F>>)),
                    }
                };
            }
            Some(match shape(op, insn, 1, mode)? {
                Shape::Reg(r) => {
                    op.b = r;
                    pick!(RegB)
                }
                Shape::Imm(v) => {
                    op.imm.set(v);
                    pick!(Imm)
                }
                Shape::Mem(f) => by_form!(f, S => by_size!(s, T => by_flag!(live, F => hot::<AluOp<O, T, RegA, S, F>>))),
            })
        }
        // Stores keep their flags: the store may be the chain's last op.
        Shape::Mem(f) => Some(match shape(op, insn, 1, mode)? {
            Shape::Reg(r) => {
                op.a = r;
                by_form!(f, P => by_size!(s, T => hot::<AluOp<O, T, P, RegA, true>>))
            }
            Shape::Imm(v) => {
                op.imm.set(v);
                by_form!(f, P => by_size!(s, T => hot::<AluOp<O, T, P, Imm, true>>))
            }
            Shape::Mem(_) => return None,
        }),
        Shape::Imm(_) => None,
    }
}

/// CMP and TEST, fused with a Jcc that follows (in 64-bit mode).
fn compare<O: Alu>(op: &mut Op, insn: &Instruction, mode: Mode, cx: &Context) -> Option<Handler> {
    let s = size(insn, 0);
    let fuse = if mode.is64() { fusible(cx, mode) } else { None };
    let user = if mode.is64() { fuse::user(cx.next) } else { None };
    macro_rules! registers {
        ($src:ty) => {
            if let Some((purpose, cc)) = user
                && matches!(s, 4 | 8)
            {
                macro_rules! users {
                    ($u:expr) => {
                        by_wide_size!(s, T => by_condition!(cc, CC => fuse::compare_and_use::<O, T, $src, { $u as u8 }, CC>))
                    };
                }
                match purpose {
                    Use::Set => users!(Use::Set),
                    Use::Move32 => users!(Use::Move32),
                    Use::Move64 => users!(Use::Move64),
                }
            } else if let Some(cc) = fuse {
                by_size!(s, T => by_condition!(cc, CC => CompareBranch::<O, T, RegA, $src>::run::<CC, true>))
            } else {
                by_size!(s, T => hot::<AluOp<O, T, RegA, $src, true>>)
            }
        };
    }
    if high_and_immediate(op, insn) {
        return Some(match fuse {
            Some(cc) => by_condition!(cc, CC => CompareBranch::<O, u8, HighA, Imm>::run::<CC, true>),
            None => hot::<AluOp<O, u8, HighA, Imm, true>>,
        });
    }
    match shape(op, insn, 0, mode)? {
        Shape::Reg(a) => {
            op.a = a;
            Some(match shape(op, insn, 1, mode)? {
                Shape::Reg(r) => {
                    op.b = r;
                    registers!(RegB)
                }
                Shape::Imm(v) => {
                    op.imm.set(v);
                    registers!(Imm)
                }
                Shape::Mem(f) => match fused_memory!(O, RegA, Mem, fuse, s, f) {
                    Some(handler) => handler,
                    None => by_form!(f, S => by_size!(s, T => hot::<AluOp<O, T, RegA, S, true>>)),
                },
            })
        }
        Shape::Mem(f) => Some(match shape(op, insn, 1, mode)? {
            Shape::Reg(r) => {
                op.a = r;
                match fused_memory!(O, Mem, RegA, fuse, s, f) {
                    Some(handler) => handler,
                    None => by_form!(f, P => by_size!(s, T => hot::<AluOp<O, T, P, RegA, true>>)),
                }
            }
            Shape::Imm(v) => {
                op.imm.set(v);
                match fused_memory!(O, Mem, Imm, fuse, s, f) {
                    Some(handler) => handler,
                    None => by_form!(f, P => by_size!(s, T => hot::<AluOp<O, T, P, Imm, true>>)),
                }
            }
            Shape::Mem(_) => return None,
        }),
        Shape::Imm(_) => None,
    }
}

fn inc_dec<const DEC: bool>(op: &mut Op, insn: &Instruction, mode: Mode, cx: &Context) -> Option<Handler> {
    let s = size(insn, 0);
    Some(match shape(op, insn, 0, mode)? {
        Shape::Reg(a) => {
            op.a = a;
            match (fusible(cx, mode), s, mode.is64()) {
                (Some(4), 8, true) => ComputeBranch::<IncDec<u64, RegA, DEC, { keep::ALL }>, u64>::run::<4, true>,
                (Some(5), 8, true) => ComputeBranch::<IncDec<u64, RegA, DEC, { keep::ALL }>, u64>::run::<5, true>,
                (Some(4), 4, true) => ComputeBranch::<IncDec<u32, RegA, DEC, { keep::ALL }>, u32>::run::<4, true>,
                (Some(5), 4, true) => ComputeBranch::<IncDec<u32, RegA, DEC, { keep::ALL }>, u32>::run::<5, true>,
                _ if cx.live == 0 => by_size!(s, T => hot::<IncDec<T, RegA, DEC, { keep::NONE }>>),
                _ if cx.live & 1 == 0 => by_size!(s, T => hot::<IncDec<T, RegA, DEC, { keep::ALL_BUT_CARRY }>>),
                _ => by_size!(s, T => hot::<IncDec<T, RegA, DEC, { keep::ALL }>>),
            }
        }
        Shape::Mem(f) => by_form!(f, P => by_size!(s, T => hot::<IncDec<T, P, DEC, { keep::ALL }>>)),
        Shape::Imm(_) => return None,
    })
}

fn mov(op: &mut Op, insn: &Instruction, mode: Mode) -> Option<Handler> {
    // Segment and control registers have no slot and go the general way.
    let s = size(insn, 0);
    Some(match shape(op, insn, 0, mode)? {
        Shape::Reg(a) => {
            op.a = a;
            match shape(op, insn, 1, mode)? {
                Shape::Reg(r) => {
                    op.b = r;
                    by_size!(s, T => hot::<Mov<T, RegA, RegB>>)
                }
                Shape::Imm(v) => {
                    op.imm.set(v);
                    by_size!(s, T => hot::<Mov<T, RegA, Imm>>)
                }
                Shape::Mem(f) => by_form!(f, S => by_size!(s, T => hot::<Mov<T, RegA, S>>)),
            }
        }
        Shape::Mem(f) => match shape(op, insn, 1, mode)? {
            Shape::Reg(r) => {
                op.a = r;
                by_form!(f, P => by_size!(s, T => hot::<Mov<T, P, RegA>>))
            }
            Shape::Imm(v) => {
                op.imm.set(v);
                by_form!(f, P => by_size!(s, T => hot::<Mov<T, P, Imm>>))
            }
            Shape::Mem(_) => return None,
        },
        Shape::Imm(_) => return None,
    })
}

fn extend(op: &mut Op, insn: &Instruction, mode: Mode) -> Option<Handler> {
    op.a = slot(insn.op0_register())?;
    let to = size(insn, 0);
    let from = size(insn, 1);
    let sign = insn.mnemonic() != Mnemonic::Movzx;
    if let Some(Gpr { high: true, number, .. }) = Gpr::of(insn.op1_register())
        && insn.op1_kind() == OpKind::Register
    {
        op.b = number;
        return (!sign && to >= 4).then_some(hot::<ExtendHigh>);
    }
    macro_rules! pick {
        ($s:ty) => {
            by_size!(to, T => match (from, sign) {
                (1, false) => hot::<Extend<T, u8, $s, false>>,
                (1, true) => hot::<Extend<T, u8, $s, true>>,
                (2, false) => hot::<Extend<T, u16, $s, false>>,
                (2, true) => hot::<Extend<T, u16, $s, true>>,
                (4, true) => hot::<Extend<T, u32, $s, true>>,
                _ => return None,
            })
        };
    }
    source!(op, insn, 1, mode, S => pick!(S))
}

fn lea(op: &mut Op, insn: &Instruction, mode: Mode) -> Option<Handler> {
    op.a = slot(insn.op0_register())?;
    // LEA takes the offset only: the segment neither matters nor is checked.
    let f = memory(op, insn, mode)?;
    Some(match (size(insn, 0), f) {
        (8, form::BASE) => hot::<Lea<u64, { form::BASE }>>,
        (8, form::INDEX | form::FULL) => hot::<Lea<u64, { form::INDEX }>>,
        (8, _) => hot::<Lea<u64, { form::OFFSET32 }>>,
        (4, form::BASE) => hot::<Lea<u32, { form::BASE }>>,
        (4, form::INDEX | form::FULL) => hot::<Lea<u32, { form::INDEX }>>,
        (4, _) => hot::<Lea<u32, { form::OFFSET32 }>>,
        _ => return None,
    })
}

fn push(op: &mut Op, insn: &Instruction, mode: Mode) -> Option<Handler> {
    if !stack_ok(mode) {
        return None;
    }
    let wide = mode.is64();
    let s = insn.stack_pointer_increment().unsigned_abs() as usize;
    if s != if wide { 8 } else { 4 } {
        return None;
    }
    Some(match shape(op, insn, 0, mode)? {
        Shape::Reg(r) => {
            op.a = r;
            if wide { hot::<Push<u64, RegA>> } else { hot::<Push<u32, RegA>> }
        }
        Shape::Imm(v) => {
            op.imm.set(v);
            if wide { hot::<Push<u64, Imm>> } else { hot::<Push<u32, Imm>> }
        }
        Shape::Mem(f) => by_form!(f, S => if wide { hot::<Push<u64, S>> } else { hot::<Push<u32, S>> }),
    })
}

fn conditional(op: &mut Op, insn: &Instruction, mode: Mode) -> Option<Handler> {
    let cc = insn.condition_code() as u8 - 1;
    // Of what carries a condition and is no branch, SETcc has one operand and CMOVcc two.
    if insn.op_count() == 1 && size(insn, 0) == 1 {
        return Some(match shape(op, insn, 0, mode)? {
            Shape::Reg(r) => {
                op.a = r;
                by_condition!(cc, CC => hot::<Set<RegA, CC>>)
            }
            Shape::Mem(f) => by_form!(f, P => by_condition!(cc, CC => hot::<Set<P, CC>>)),
            Shape::Imm(_) => return None,
        });
    }
    if insn.op_count() == 2 && insn.op0_kind() == OpKind::Register {
        op.a = slot(insn.op0_register())?;
        let s = size(insn, 0);
        return source!(op, insn, 1, mode, S => by_wide_size!(s, T => by_condition!(cc, CC => hot::<Cmov<T, S, CC>>)));
    }
    None
}
