//! The stack: PUSH, POP, PUSHA, POPA, ENTER, LEAVE, PUSHF, POPF (SDM vol. 1, Stacks; vol. 2).
//!
//! Two sizes play a part: the *stack size* (SP, ESP or RSP; from SS.B, or 8 in 64-bit mode) and the *operand size*.

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use undervisor_core::{Cr4, Intercept, Rflags, SegReg, regs};

use crate::cpu::{Cpu, Exec, attention};
use crate::exec::Row;
use crate::exec::int_math::ones;
use crate::operand::segment_of;

pub fn lookup(insn: &Instruction) -> Option<Row> {
    Some(match insn.mnemonic() {
        M::Push if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() => Row::new(push_segment),
        M::Push => Row::new(push),
        M::Pop if insn.op0_kind() == OpKind::Register && insn.op0_register().is_gpr() => Row::new(pop_register),
        M::Pop if insn.op0_kind() == OpKind::Memory => Row::new(pop_memory),
        M::Pusha | M::Pushad => Row::new(pusha),
        M::Popa | M::Popad => Row::new(popa),
        M::Enter => Row::new(enter),
        M::Leave => Row::new(leave),
        M::Pushf | M::Pushfd | M::Pushfq => Row::new(pushf),
        M::Popf | M::Popfd | M::Popfq => Row::ends(popf),
        _ => return None,
    })
}

impl Cpu {
    /// All ones below the stack size.
    fn stack_mask(&self) -> u64 {
        ones(8 * self.stack_size() as u32)
    }

    /// Read `size` bytes at offset `sp` of the stack segment.
    pub fn read_stack(&mut self, sp: u64, size: usize) -> Exec<u64> {
        let linear = self.linear(SegReg::Ss, sp, size, false)?;
        self.read_sized(linear, size)
    }

    /// Write `size` bytes at offset `sp` of the stack segment.
    pub fn write_stack(&mut self, sp: u64, size: usize, value: u64) -> Exec {
        let linear = self.linear(SegReg::Ss, sp, size, true)?;
        self.write_sized(linear, size, value)
    }

    /// Push the low `size` bytes of `value`.
    pub fn push(&mut self, size: usize, value: u64) -> Exec {
        let sp = self.stack_pointer().wrapping_sub(size as u64) & self.stack_mask();
        self.write_stack(sp, size, value)?;
        self.set_stack_pointer(sp);
        Ok(())
    }

    /// Pop `size` bytes.
    pub fn pop(&mut self, size: usize) -> Exec<u64> {
        let sp = self.stack_pointer();
        let value = self.read_stack(sp, size)?;
        self.set_stack_pointer(sp.wrapping_add(size as u64));
        Ok(value)
    }

    /// Replace RFLAGS by `value` as POPF and IRET do, and draw the consequences: the interrupt window, single stepping,
    /// alignment checks. (Callers that change VM, CS or SS too call `mode_changed` themselves.)
    pub fn write_rflags(&mut self, value: u64) {
        let old = self.state.rflags();
        self.state.set_rflags(value);
        let changed = old ^ value;
        if changed & (Rflags::AC | Rflags::VM).bits() != 0 {
            self.privilege_changed();
        }
        if value & Rflags::TF.bits() != 0 {
            self.attend(attention::DEBUG);
        }
        if changed & value & (Rflags::IF | Rflags::VIF).bits() != 0 {
            self.look_for_events();
        }
    }
}

/// Operand size of a push or pop: what it moves the stack pointer by.
fn size_of(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}

fn push(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let value = cpu.operand(insn, 0)?;
    cpu.push(size_of(insn), value)
}

/// A 32-bit push of a segment register writes two bytes and leaves the upper half of the slot alone on Intel processors
/// (SDM vol. 2, PUSH); AMD's write a zero-extended value.
fn push_segment(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = size_of(insn);
    let Some(segment) = segment_of(insn.op0_register()) else {
        return Err(cpu.ud());
    };
    let value = cpu.state.segment(segment).selector as u64;
    let sp = cpu.stack_pointer().wrapping_sub(size as u64) & cpu.stack_mask();
    let short = size == 4 && cpu.model.vendor == undervisor_core::Vendor::Intel;
    cpu.write_stack(sp, if short { 2 } else { size }, value)?;
    cpu.set_stack_pointer(sp);
    Ok(())
}

fn pop_register(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let value = cpu.pop(size_of(insn))?;
    // POP rSP: the value read wins over the increment.
    cpu.set_gpr(insn.op0_register(), value);
    Ok(())
}

/// The address of a destination based on rSP is worked out with the incremented rSP (SDM vol. 2, POP). The store may fault or exit, and
/// rSP must then be as before.
fn pop_memory(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = size_of(insn);
    let before = cpu.state.gpr(regs::RSP);
    let value = cpu.pop(size)?;
    let after = cpu.state.gpr(regs::RSP);
    let offset = cpu.effective_offset(insn);
    cpu.state.set_gpr(regs::RSP, before);
    let linear = cpu.linear(cpu.effective_segment(insn), offset, size, true)?;
    cpu.write_sized(linear, size, value)?;
    cpu.state.set_gpr(regs::RSP, after);
    Ok(())
}

const WORDS: [Register; 8] =
    [Register::AX, Register::CX, Register::DX, Register::BX, Register::SP, Register::BP, Register::SI, Register::DI];

/// The eight registers of PUSHA in push order, of the given size.
fn all_registers(size: usize) -> [Register; 8] {
    if size == 2 { WORDS } else { WORDS.map(Register::full_register32) }
}

fn pusha(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = size_of(insn) / 8;
    let mut sp = cpu.stack_pointer();
    for register in all_registers(size) {
        sp = sp.wrapping_sub(size as u64) & cpu.stack_mask();
        let value = cpu.gpr(register);
        cpu.write_stack(sp, size, value)?;
    }
    cpu.set_stack_pointer(sp);
    Ok(())
}

fn popa(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = size_of(insn) / 8;
    let mut sp = cpu.stack_pointer();
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        *value = cpu.read_stack(sp, size)?;
        sp = sp.wrapping_add(size as u64) & cpu.stack_mask();
    }
    for (register, value) in all_registers(size).into_iter().zip(values) {
        if register.full_register() != Register::RSP {
            cpu.set_gpr(register, value);
        }
    }
    cpu.set_stack_pointer(sp);
    Ok(())
}

/// ENTER (SDM vol. 2, ENTER; vol. 1, Procedure Calls for Block-Structured Languages).
fn enter(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = match insn.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let step = size as u64;
    let mask = cpu.stack_mask();
    let level = insn.immediate8_2nd() & 31;
    let mut sp = cpu.stack_pointer().wrapping_sub(step) & mask;
    let mut bp = cpu.state.gpr(regs::RBP) & mask;
    cpu.write_stack(sp, size, cpu.state.gpr(regs::RBP))?;
    let frame = sp;
    if level > 0 {
        for _ in 1..level {
            bp = bp.wrapping_sub(step) & mask;
            let display = cpu.read_stack(bp, size)?;
            sp = sp.wrapping_sub(step) & mask;
            cpu.write_stack(sp, size, display)?;
        }
        sp = sp.wrapping_sub(step) & mask;
        cpu.write_stack(sp, size, frame)?;
    }
    sp = sp.wrapping_sub(insn.immediate16() as u64) & mask;
    // A write at the final stack pointer must be possible.
    let linear = cpu.linear(SegReg::Ss, sp, size, true)?;
    cpu.probe_write(linear, size)?;
    let register = register_of(Register::BP, size);
    cpu.set_gpr(register, frame);
    cpu.set_stack_pointer(sp);
    Ok(())
}

/// BP, EBP or RBP and the like.
fn register_of(word: Register, size: usize) -> Register {
    match size {
        2 => word,
        4 => word.full_register32(),
        _ => word.full_register(),
    }
}

fn leave(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let size = match insn.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    };
    let sp = cpu.state.gpr(regs::RBP) & cpu.stack_mask();
    let value = cpu.read_stack(sp, size)?;
    cpu.set_stack_pointer(sp.wrapping_add(size as u64));
    cpu.set_gpr(register_of(Register::BP, size), value);
    Ok(())
}

/// PUSHF. In virtual-8086 mode with IOPL below 3 it needs CR4.VME and a 16-bit operand: VIF then stands in for IF and IOPL
/// reads as 3 (SDM vol. 3, Virtual-8086 Mode Extensions: Method 5).
fn pushf(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    // SVM's intercepts of PUSHF and POPF take priority over any exception.
    cpu.intercept(Intercept::Pushf)?;
    let size = size_of(insn);
    let mut flags = cpu.state.rflags();
    if cpu.state.virtual_8086() && cpu.state.iopl() < 3 {
        if size != 2 || !cpu.state.cr4.contains(Cr4::VME) {
            return Err(cpu.gp(0));
        }
        let vif = flags & Rflags::VIF.bits() != 0;
        flags |= Rflags::IOPL.bits();
        flags = if vif { flags | Rflags::IF.bits() } else { flags & !Rflags::IF.bits() };
    }
    // VM and RF read as zero in the image.
    cpu.push(size, flags & !(Rflags::VM | Rflags::RF).bits())
}

/// POPF (SDM vol. 2, POPF/POPFD/POPFQ: Effect on the EFLAGS Register).
fn popf(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.intercept(Intercept::Popf)?;
    let size = size_of(insn);
    let v8086 = cpu.state.virtual_8086();
    let extended = v8086 && cpu.state.iopl() < 3;
    if extended && (size != 2 || !cpu.state.cr4.contains(Cr4::VME)) {
        return Err(cpu.gp(0));
    }
    let sp = cpu.stack_pointer();
    let image = cpu.read_stack(sp, size)?;
    let old = cpu.state.rflags();
    let bits = |f: Rflags| f.bits();
    let mut mask = bits(Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT);
    if size != 2 {
        mask |= bits(Rflags::AC | Rflags::ID);
    }
    let mut image = image;
    if extended {
        // #GP if the task wants interrupts on while one is pending, or wants TF (Method 5).
        let wants_if = image & bits(Rflags::IF) != 0;
        if image & bits(Rflags::TF) != 0 || (wants_if && old & bits(Rflags::VIP) != 0) {
            return Err(cpu.gp(0));
        }
        mask |= bits(Rflags::VIF);
        image = if wants_if { image | bits(Rflags::VIF) } else { image & !bits(Rflags::VIF) };
    } else {
        // IOPL changes only at CPL 0 (real mode included), IF only if CPL is at or below IOPL.
        if cpu.state.cpl == 0 && !v8086 {
            mask |= bits(Rflags::IOPL);
        }
        if cpu.state.cpl <= cpu.state.iopl() || v8086 {
            mask |= bits(Rflags::IF);
        }
    }
    cpu.set_stack_pointer(sp.wrapping_add(size as u64));
    cpu.write_rflags((old & !mask & !bits(Rflags::RF)) | (image & mask));
    Ok(())
}
