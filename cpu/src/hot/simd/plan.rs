//! What a vector instruction is made of: at most a load, a step before, the step itself, and a store.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::forms::{Form, SCRATCH};
use super::table;
use crate::op::{Handler, Op};

/// What must be switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// MMX: CR0.EM clear, CR0.TS clear, no pending x87 exception.
    Mmx,
    /// SSE: CR4.OSFXSR too.
    Sse,
    /// SSE that touches MMX registers: no pending x87 exception either.
    SseMmx,
    /// AVX: CR4.OSXSAVE, XCR0, protected mode.
    Avx,
}

/// Memory side of an instruction.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub bytes: u8,
    /// Misalignment is #GP(0).
    pub aligned: bool,
    /// A load clears the register's upper bits.
    pub vex: bool,
    /// Register loaded or stored.
    pub register: u8,
}

/// An op on registers.
#[derive(Clone, Copy)]
pub struct Step {
    pub handler: Handler,
    pub a: u8,
    pub b: u8,
    pub c: u8,
    pub d: u8,
    pub imm: u16,
}

impl Step {
    pub fn op(&self) -> Op {
        let mut op = Op::new(self.handler);
        (op.a, op.b, op.c, op.d, op.extra) = (self.a, self.b, self.c, self.d, self.imm);
        op
    }
}

#[derive(Clone, Copy)]
pub struct Plan {
    pub form: Form,
    pub need: Need,
    pub load: Option<Memory>,
    /// Brings a general register to the scratch register.
    pub before: Option<Step>,
    pub step: Option<Step>,
    pub store: Option<Memory>,
    /// The store must be known to work before the step is taken.
    pub probe: bool,
}

/// Number of a register operand, by class.
pub fn number(register: Register) -> u8 {
    if register.is_gpr() { register.full_register().number() as u8 } else { register.number() as u8 }
}

/// Operands of an instruction in the order that lane functions want them.
pub struct Operands {
    pub form: Form,
    pub vex: bool,
    /// Destination register (of a store: of no meaning).
    pub a: u8,
    /// First source.
    pub d: u8,
    /// Operand number of the second (or only) source.
    pub source: u32,
    /// Fourth register operand, or XMM0.
    pub c: u8,
    pub imm: u16,
    /// The destination is memory.
    pub stores: bool,
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(kind, OpKind::Immediate8 | OpKind::Immediate8_2nd)
}

pub fn operands(insn: &Instruction) -> Option<Operands> {
    let vex = match insn.code().op_code().encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return None,
    };
    let count = insn.op_count();
    let mut registers = 0;
    let (mut mm, mut ymm, mut imm) = (false, false, 0);
    for n in 0..count {
        match insn.op_kind(n) {
            OpKind::Register => {
                let r = insn.op_register(n);
                mm |= r.is_mm();
                ymm |= r.is_ymm();
                registers = n + 1;
            }
            OpKind::Memory => registers = n + 1,
            OpKind::Immediate8 => imm |= insn.immediate8() as u16,
            OpKind::Immediate8_2nd => imm |= (insn.immediate8_2nd() as u16) << 8,
            _ => {}
        }
    }
    debug_assert!((registers..count).all(|n| is_immediate(insn.op_kind(n))));
    let wide = ymm || (0..count).any(|n| insn.op_kind(n) == OpKind::Memory) && insn.memory_size().size() == 32;
    let form = match (vex, mm, wide) {
        (true, _, true) => Form::Vex256,
        (true, _, false) => Form::Vex128,
        (false, true, _) => Form::Mmx,
        (false, false, _) => Form::Sse,
    };
    let register = |n: u32| if insn.op_kind(n) == OpKind::Register { number(insn.op_register(n)) } else { SCRATCH };
    let a = if count > 0 { register(0) } else { 0 };
    let (d, source, c) = match (vex, registers) {
        (_, 0 | 1) => (a, 0, 0),
        (false, _) => (a, 1, 0),
        (true, 2) => (a, 1, 0),
        (true, 3) => (register(1), 2, 0),
        (true, _) => (register(1), 2, register(3)),
    };
    Some(Operands { form, vex, a, d, source, c, imm, stores: count > 0 && insn.op_kind(0) == OpKind::Memory })
}

/// Whether a misaligned memory operand is #GP(0) (SDM vol. 2, Exception Conditions: types 1, 2 and 4 in legacy encodings).
fn must_align(insn: &Instruction, vex: bool, bytes: usize) -> bool {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => false,
        M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 | M::Pcmpistri | M::Pcmpistrm => false,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdqa | M::Vmovntdq | M::Vmovntps | M::Vmovntpd => true,
        _ => !vex && bytes == 16,
    }
}

/// The plan of a vector instruction; `None` if it is no vector instruction, or one of those in `crate::exec::simd` that go their
/// own way.
pub fn plan(insn: &Instruction) -> Option<Plan> {
    // MOVSD and CMPSD name a string instruction each as well.
    if !table::maybe(insn.mnemonic()) || insn.is_string_instruction() {
        return None;
    }
    let o = operands(insn)?;
    let need = match o.form {
        Form::Mmx => Need::Mmx,
        Form::Sse => Need::Sse,
        _ => Need::Avx,
    };
    let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    let bytes = if memory { insn.memory_size().size() } else { 0 };
    let side = Memory { bytes: bytes as u8, aligned: memory && must_align(insn, o.vex, bytes), vex: o.vex, register: SCRATCH };
    let mut plan = Plan { form: o.form, need, load: None, before: None, step: None, store: None, probe: false };
    if memory {
        if o.stores {
            plan.store = Some(side);
        } else {
            plan.load = Some(Memory { vex: false, ..side });
        }
    }
    table::fill(insn, &o, &mut plan)?;
    Some(plan)
}
