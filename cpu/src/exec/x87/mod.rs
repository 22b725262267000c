//! The x87 FPU (SDM vol. 1, Programming with the x87 FPU).
//!
//! Order within an instruction: #NM (CR0.EM, CR0.TS); a pending unmasked exception (#MF, or FERR# with CR0.NE clear); the memory
//! operand, which may fault; then the operation, whose own exceptions only set the status word. An unmasked exception is
//! reported by the next waiting instruction.

mod arithmetic;
mod compare;
mod control;
mod environment;
mod transcendental;
mod transfer;

#[cfg(test)]
mod tests;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use undervisor_core::{Cr0, Exception, F80, Intercept, SegReg, Vector, Vendor};

use super::Row;
use crate::cpu::{Cpu, Exec};
use crate::float::{Env, F80Format, Format, Unpacked, flags};

pub use environment::{full_tags, set_full_tags};

/// Status-word bits above the exception flags.
pub mod status {
    /// Stack fault.
    pub const SF: u16 = 1 << 6;
    /// Exception summary.
    pub const ES: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const TOP: u16 = 7 << 11;
    pub const C3: u16 = 1 << 14;
    /// Busy: reads as ES.
    pub const B: u16 = 1 << 15;
    pub const CONDITION: u16 = C0 | C1 | C2 | C3;
}

/// The QNaN floating-point indefinite.
pub const INDEFINITE: F80 = F80 { mantissa: 3 << 62, sign_exponent: 0xffff };
pub const ONE: F80 = F80 { mantissa: 1 << 63, sign_exponent: 0x3fff };

/// Row of an x87 instruction.
pub fn lookup(insn: &Instruction) -> Option<Row> {
    use Mnemonic as M;
    Some(Row::new(match insn.mnemonic() {
        M::Fadd | M::Faddp | M::Fiadd => arithmetic::arithmetic::<0>,
        M::Fmul | M::Fmulp | M::Fimul => arithmetic::arithmetic::<1>,
        M::Fsub | M::Fsubp | M::Fisub => arithmetic::arithmetic::<4>,
        M::Fsubr | M::Fsubrp | M::Fisubr => arithmetic::arithmetic::<5>,
        M::Fdiv | M::Fdivp | M::Fidiv => arithmetic::arithmetic::<6>,
        M::Fdivr | M::Fdivrp | M::Fidivr => arithmetic::arithmetic::<7>,
        M::Fsqrt => arithmetic::fsqrt,
        M::Frndint => arithmetic::frndint,
        M::Fscale => arithmetic::fscale,
        M::Fxtract => arithmetic::fxtract,
        M::Fprem => arithmetic::fprem::<false>,
        M::Fprem1 => arithmetic::fprem::<true>,
        M::Fchs => arithmetic::fchs,
        M::Fabs => arithmetic::fabs,
        M::Fcom | M::Ficom => compare::fcom::<0, true>,
        M::Fcomp | M::Ficomp => compare::fcom::<1, true>,
        M::Fcompp => compare::fcom::<2, true>,
        M::Fucom => compare::fcom::<0, false>,
        M::Fucomp => compare::fcom::<1, false>,
        M::Fucompp => compare::fcom::<2, false>,
        M::Fcomi => compare::fcomi::<false, true>,
        M::Fcomip => compare::fcomi::<true, true>,
        M::Fucomi => compare::fcomi::<false, false>,
        M::Fucomip => compare::fcomi::<true, false>,
        M::Ftst => compare::ftst,
        M::Fxam => compare::fxam,
        M::Fcmovb | M::Fcmovbe | M::Fcmove | M::Fcmovu | M::Fcmovnb | M::Fcmovnbe | M::Fcmovne | M::Fcmovnu => compare::fcmov,
        M::Fld => transfer::fld,
        M::Fild => transfer::fild,
        M::Fbld => transfer::fbld,
        M::Fst => transfer::fst::<false>,
        M::Fstp => transfer::fst::<true>,
        M::Fstpnce => transfer::fstpnce,
        M::Fist => transfer::fist::<false, false>,
        M::Fistp => transfer::fist::<true, false>,
        M::Fisttp => transfer::fist::<true, true>,
        M::Fbstp => transfer::fbstp,
        M::Fxch => transfer::fxch,
        M::Fld1 | M::Fldl2t | M::Fldl2e | M::Fldpi | M::Fldlg2 | M::Fldln2 | M::Fldz => transfer::constant,
        M::F2xm1 => transcendental::f2xm1,
        M::Fyl2x => transcendental::fyl2x,
        M::Fyl2xp1 => transcendental::fyl2xp1,
        M::Fsin => transcendental::fsin,
        M::Fcos => transcendental::fcos,
        M::Fsincos => transcendental::fsincos,
        M::Fptan => transcendental::fptan,
        M::Fpatan => transcendental::fpatan,
        M::Fninit => control::fninit,
        M::Fnclex => control::fnclex,
        M::Fnop => control::fnop,
        M::Fneni | M::Fndisi | M::Fnsetpm | M::Frstpm => control::obsolete,
        M::Fincstp => control::fincstp,
        M::Fdecstp => control::fdecstp,
        M::Ffree => control::ffree::<false>,
        M::Ffreep => control::ffree::<true>,
        M::Fldcw => control::fldcw,
        M::Fnstcw => control::fnstcw,
        M::Fnstsw => control::fnstsw,
        M::Wait => control::wait,
        M::Fnstenv => environment::fnstenv,
        M::Fldenv => environment::fldenv,
        M::Fnsave => environment::fnsave,
        M::Frstor => environment::frstor,
        _ => return None,
    }))
}

impl Cpu {
    // ---- before the operation ---------------------------------------------------------------------------------------------

    /// #NM if the x87 is not to be used (SDM vol. 3, Control Registers: EM, TS).
    pub(crate) fn x87_available(&mut self) -> Exec {
        if self.state.cr0.intersects(Cr0::EM | Cr0::TS) {
            return Err(self.raise(Exception::NM));
        }
        Ok(())
    }

    /// Report a pending unmasked exception: #MF, or FERR# for the interrupt controller where CR0.NE is clear.
    pub(crate) fn x87_pending(&mut self) -> Exec {
        if self.state.x87.status & status::ES == 0 {
            return Ok(());
        }
        if self.state.cr0.contains(Cr0::NE) {
            return Err(self.raise(Exception::new(Vector::MF)));
        }
        if self.is_amd() && self.svm_ignores_numeric_errors() {
            return Ok(());
        }
        self.intercept(Intercept::FerrFreeze)?;
        // A real processor freezes until the interrupt comes, which then follows at once; here the interrupt comes at the next
        // boundary.
        let now = self.now();
        self.bus().numeric_error(now);
        self.attend(crate::cpu::attention::INTERRUPT);
        Ok(())
    }

    /// Start of every waiting instruction that does not touch the instruction pointer.
    pub(crate) fn x87_enter(&mut self) -> Exec {
        self.x87_available()?;
        self.x87_pending()
    }

    /// For MMX instructions: #UD, #NM and #MF; then TOP = 0 and all registers valid
    /// (SDM vol. 1, Effect of MMX Instructions on the x87 FPU Tag Word). Call when nothing else can fault any more;
    /// [`Cpu::mmx_check`] does the first half.
    #[inline]
    pub fn mmx_enter(&mut self) -> Exec {
        self.mmx_check()?;
        self.mmx_touch();
        Ok(())
    }

    /// #UD, #NM or #MF before an MMX instruction.
    #[inline]
    pub fn mmx_check(&mut self) -> Exec {
        if self.state.cr0.contains(Cr0::EM) {
            return Err(self.ud());
        }
        self.x87_enter()
    }

    /// What an MMX instruction does to TOP and the tags.
    #[inline]
    pub fn mmx_touch(&mut self) {
        self.state.x87.status &= !status::TOP;
        self.state.x87.tags = 0xff;
    }

    /// Remember where a non-control instruction is: FIP, FCS, FOP; and of its memory operand FDP, FDS.
    fn x87_note(&mut self, insn: &Instruction) {
        let operand = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory).then(|| {
            let seg = self.effective_segment(insn);
            (self.effective_offset(insn), self.state.segment(seg).selector)
        });
        let real = !self.state.protected() || self.state.virtual_8086();
        let cs = self.state.segment(SegReg::Cs).selector;
        let rip = self.instruction_rip;
        let linear = |selector: u16, offset: u64| if real { (selector as u64 * 16).wrapping_add(offset) } else { offset };
        let x = &mut self.state.x87;
        x.instruction_pointer = linear(cs, rip);
        x.instruction_selector = cs;
        x.opcode = opcode(insn);
        if let Some((offset, selector)) = operand {
            x.data_pointer = linear(selector, offset);
            x.data_selector = selector;
        }
    }

    /// Intel processors of today save no selectors (CPUID.7.0.EBX[13]: deprecated FCS and FDS).
    pub(crate) fn x87_no_selectors(&self) -> bool {
        self.model().vendor == Vendor::Intel
    }

    // ---- the register stack --------------------------------------------------------------------------------------------------

    /// Physical number of ST(i).
    #[inline]
    fn st_index(&self, i: usize) -> usize {
        ((self.state.x87.status >> 11) as usize + i) & 7
    }
    #[inline]
    pub(crate) fn st(&self, i: usize) -> F80 {
        self.state.x87.st[self.st_index(i)]
    }
    #[inline]
    fn st_unpacked(&self, i: usize) -> Unpacked {
        F80Format::unpack(self.st(i))
    }
    #[inline]
    fn st_empty(&self, i: usize) -> bool {
        self.state.x87.tags >> self.st_index(i) & 1 == 0
    }
    /// Set ST(i) and mark it full.
    #[inline]
    fn set_st(&mut self, i: usize, value: F80) {
        let n = self.st_index(i);
        self.state.x87.st[n] = value;
        self.state.x87.tags |= 1 << n;
    }
    fn st_free(&mut self, i: usize) {
        let n = self.st_index(i);
        self.state.x87.tags &= !(1 << n);
    }
    fn add_to_top(&mut self, n: u16) {
        let status = &mut self.state.x87.status;
        *status = *status & !status::TOP | (status.wrapping_add(n << 11)) & status::TOP;
    }
    #[inline]
    fn st_pop(&mut self) {
        self.st_free(0);
        self.add_to_top(1);
    }
    /// Push without looking at tags.
    #[inline]
    fn st_push(&mut self, value: F80) {
        self.add_to_top(7);
        self.set_st(0, value);
    }

    // ---- exceptions ------------------------------------------------------------------------------------------------------------

    fn set_condition(&mut self, mask: u16, value: u16) {
        let status = &mut self.state.x87.status;
        *status = *status & !mask | value & mask;
    }

    /// ES and B follow the flags and masks.
    pub(crate) fn x87_summary(&mut self) {
        let x = &mut self.state.x87;
        let pending = x.status & !x.control & flags::ALL as u16 != 0;
        x.status = x.status & !(status::ES | status::B) | if pending { status::ES | status::B } else { 0 };
    }

    /// Record the exceptions of an operation with a register result, and C1. Returns whether the result is to be written
    /// (and the stack popped): not after an unmasked invalid, denormal or divide-by-zero exception.
    fn x87_finish(&mut self, env: &Env) -> bool {
        let mut raised = env.flags;
        let stop = env.unmasked() & flags::BEFORE;
        if stop != 0 {
            raised &= if stop & (flags::IE | flags::ZE) != 0 { flags::IE | flags::ZE } else { flags::BEFORE };
        }
        self.state.x87.status |= raised as u16;
        let up = stop == 0 && env.rounded_up && env.flags & flags::PE != 0;
        self.set_condition(status::C1, if up { status::C1 } else { 0 });
        if env.unmasked() != 0 {
            self.x87_summary();
        }
        stop == 0
    }

    /// The same for a memory result: an unmasked overflow or underflow leaves memory and stack alone, too.
    fn x87_finish_store(&mut self, env: &Env) {
        let mut env = *env;
        if env.unmasked() & (flags::OE | flags::UE) != 0 {
            env.flags &= !flags::PE;
        }
        self.x87_finish(&env);
    }

    /// Stack overflow (`over`) or underflow. Returns whether the masked response is due.
    fn stack_fault(&mut self, over: bool) -> bool {
        self.state.x87.status |= flags::IE as u16 | status::SF;
        self.set_condition(status::C1, if over { status::C1 } else { 0 });
        let masked = self.state.x87.control & flags::IE as u16 != 0;
        if !masked {
            self.x87_summary();
        }
        masked
    }

    fn x87_env(&self) -> Env {
        Env::x87(self.state.x87.control)
    }
    /// With full precision, for operations that precision control does not affect.
    fn x87_env_full(&self) -> Env {
        self.x87_env().with_precision(64)
    }

    /// ST(i) of an operand.
    fn st_number(insn: &Instruction, n: u32) -> usize {
        let r = insn.op_register(n);
        if r.is_st() { r.number() } else { 0 }
    }
}

/// The 11-bit x87 opcode: low three bits of the first byte, then ModRM (SDM vol. 1, Last Instruction Opcode).
fn opcode(insn: &Instruction) -> u16 {
    let info = insn.op_code();
    let code = info.op_code() as u16;
    if code > 0xff {
        // D8 C0+i: the register is in an operand; or it is all of the opcode.
        let fixed = info.op_kinds().iter().all(|k| *k != iced_x86::OpCodeOperandKind::sti_opcode);
        let register = (0..insn.op_count())
            .find(|&n| info.op_kind(n) == iced_x86::OpCodeOperandKind::sti_opcode)
            .map_or(0, |n| insn.op_register(n).number() as u16);
        return if fixed { code & 0x7ff } else { code & 0x7f8 | register };
    }
    let group = info.group_index().max(0) as u16 & 7;
    (code & 7) << 8 | group << 3 | mod_rm_memory(insn)
}

/// mod and r/m of a memory operand (as assemblers choose them).
fn mod_rm_memory(insn: &Instruction) -> u16 {
    use Register::*;
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let displacement = insn.memory_displ_size();
    let md = if base == None || base.is_ip() {
        0
    } else {
        match displacement {
            0 => 0,
            1 => 1,
            _ => 2,
        }
    };
    let rm = match (base, index) {
        (BX, SI) => 0,
        (BX, DI) => 1,
        (BP, SI) => 2,
        (BP, DI) => 3,
        (SI, _) => 4,
        (DI, _) => 5,
        (BP, _) => 6,
        (BX, _) => 7,
        (None, None) if displacement == 2 => 6,
        (None, None) if insn.code_size() == iced_x86::CodeSize::Code64 => 4,
        (None, None) => 5,
        (RIP | EIP, _) => 5,
        (b, None) if b.number() & 7 != 4 => b.number() as u16 & 7,
        _ => 4,
    };
    md << 6 | rm
}
