//! Operands of general-form instructions.

use iced_x86::{Instruction, OpKind, Register};
use undervisor_core::{SegReg, regs};

use crate::cpu::{Cpu, Exec};

/// A general register as an instruction names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpr {
    /// Number, 0–15.
    pub number: u8,
    /// Bytes.
    pub size: u8,
    /// AH, CH, DH or BH.
    pub high: bool,
}

impl Gpr {
    /// `None` if `register` is not a general register.
    pub fn of(register: Register) -> Option<Gpr> {
        if !register.is_gpr() {
            return None;
        }
        let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        let number = register.full_register().number() as u8;
        Some(Gpr { number, size: register.size() as u8, high })
    }
}

/// The segment register behind an iced name.
pub fn segment_of(register: Register) -> Option<SegReg> {
    Some(match register {
        Register::ES => SegReg::Es,
        Register::CS => SegReg::Cs,
        Register::SS => SegReg::Ss,
        Register::DS => SegReg::Ds,
        Register::FS => SegReg::Fs,
        Register::GS => SegReg::Gs,
        _ => return None,
    })
}

/// In 64-bit mode overrides of ES, CS, SS and DS are ignored: even which fault a non-canonical address raises follows from the base
/// register (SDM vol. 1, Segment Registers in 64-Bit Mode; APM vol. 3, Segment-Override Prefixes).
pub fn drop_ignored_override(insn: &mut Instruction) {
    if matches!(insn.segment_prefix(), Register::ES | Register::CS | Register::SS | Register::DS) {
        insn.set_segment_prefix(Register::None);
    }
}

/// Where the result of a read-modify-write instruction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Register(Register),
    /// Known to be writable: storing cannot fault any more.
    Memory {
        linear: u64,
        size: usize,
    },
    /// The result is not kept.
    Nowhere,
}

impl Cpu {
    /// Value of a general register, zero-extended.
    pub fn gpr(&self, register: Register) -> u64 {
        let Some(g) = Gpr::of(register) else { return 0 };
        let v = self.state.regs[g.number as usize];
        if g.high { v >> 8 & 0xff } else { v & (u64::MAX >> (64 - 8 * g.size as u32)) }
    }

    /// Set a general register: 32-bit writes clear the high half, 8- and 16-bit writes keep the rest.
    pub fn set_gpr(&mut self, register: Register, value: u64) {
        let Some(g) = Gpr::of(register) else { return };
        let r = &mut self.state.regs[g.number as usize];
        *r = match (g.size, g.high) {
            (1, false) => *r & !0xff | value & 0xff,
            (1, true) => *r & !0xff00 | (value & 0xff) << 8,
            (2, _) => *r & !0xffff | value & 0xffff,
            (4, _) => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// Offset of a memory operand in its segment, wrapped to the address size.
    pub fn effective_offset(&self, insn: &Instruction) -> u64 {
        let base = insn.memory_base();
        let disp = insn.memory_displacement64();
        if base == Register::RIP || base == Register::EIP {
            // The decoder added the instruction's distance from the block's start; see `decode`.
            let target = self.instruction_rip.wrapping_sub(insn.ip()).wrapping_add(disp);
            return if base == Register::EIP { target & 0xffff_ffff } else { target };
        }
        let mut offset = disp;
        if base != Register::None {
            offset = offset.wrapping_add(self.gpr(base));
        }
        let index = insn.memory_index();
        if index.is_gpr() {
            offset = offset.wrapping_add(self.gpr(index) << insn.memory_index_scale().trailing_zeros());
        }
        offset & address_mask(insn)
    }

    /// Segment of a memory operand.
    pub fn effective_segment(&self, insn: &Instruction) -> SegReg {
        segment_of(insn.memory_segment()).unwrap_or(SegReg::Ds)
    }

    /// Linear address of a memory operand of `size` bytes, with segment checks.
    pub fn effective_linear(&mut self, insn: &Instruction, size: usize, write: bool) -> Exec<u64> {
        self.linear(self.effective_segment(insn), self.effective_offset(insn), size, write)
    }

    /// Target offset of a near branch, relative forms; not yet truncated to the operand size.
    pub fn branch_target(&self, insn: &Instruction) -> u64 {
        self.instruction_rip.wrapping_sub(insn.ip()).wrapping_add(insn.near_branch_target())
    }

    /// Read `size` bytes (1, 2, 4, 8) at a linear address, zero-extended.
    pub fn read_sized(&mut self, linear: u64, size: usize) -> Exec<u64> {
        Ok(match size {
            1 => self.read_linear::<u8>(linear)? as u64,
            2 => self.read_linear::<u16>(linear)? as u64,
            4 => self.read_linear::<u32>(linear)? as u64,
            _ => self.read_linear::<u64>(linear)?,
        })
    }

    /// Write the low `size` bytes (1, 2, 4, 8) of `value`.
    pub fn write_sized(&mut self, linear: u64, size: usize, value: u64) -> Exec {
        match size {
            1 => self.write_linear(linear, value as u8),
            2 => self.write_linear(linear, value as u16),
            4 => self.write_linear(linear, value as u32),
            _ => self.write_linear(linear, value),
        }
    }

    /// Operand `n` as an integer: register, memory or immediate (immediates sign-extended to 64 bits as encoded).
    pub fn operand(&mut self, insn: &Instruction, n: u32) -> Exec<u64> {
        match insn.op_kind(n) {
            OpKind::Register => Ok(self.gpr(insn.op_register(n))),
            OpKind::Memory => {
                let size = insn.memory_size().size();
                let linear = self.effective_linear(insn, size, false)?;
                self.read_sized(linear, size)
            }
            _ => Ok(insn.immediate(n)),
        }
    }

    /// Store to operand `n`, a general register or memory.
    pub fn set_operand(&mut self, insn: &Instruction, n: u32, value: u64) -> Exec {
        if insn.op_kind(n) == OpKind::Register {
            self.set_gpr(insn.op_register(n), value);
            return Ok(());
        }
        let size = insn.memory_size().size();
        let linear = self.effective_linear(insn, size, true)?;
        self.write_sized(linear, size, value)
    }

    /// Read `size` bytes that are about to be written: faults as a write does.
    pub fn read_sized_to_modify(&mut self, linear: u64, size: usize) -> Exec<u64> {
        Ok(match size {
            1 => self.read_linear_to_modify::<u8>(linear)? as u64,
            2 => self.read_linear_to_modify::<u16>(linear)? as u64,
            4 => self.read_linear_to_modify::<u32>(linear)? as u64,
            _ => self.read_linear_to_modify::<u64>(linear)?,
        })
    }

    /// Operand `n`, a general register or memory, to be replaced with [`Cpu::put`].
    pub fn modify(&mut self, insn: &Instruction, n: u32) -> Exec<(Place, u64)> {
        if insn.op_kind(n) == OpKind::Register {
            let register = insn.op_register(n);
            return Ok((Place::Register(register), self.gpr(register)));
        }
        let size = insn.memory_size().size();
        let linear = self.effective_linear(insn, size, true)?;
        let value = self.read_locked(insn, linear, size)?;
        Ok((Place::Memory { linear, size }, value))
    }

    /// Read the memory operand of a read-modify-write instruction, locked if it is.
    pub fn read_locked(&mut self, insn: &Instruction, linear: u64, size: usize) -> Exec<u64> {
        self.lock(insn, linear, size)?;
        self.read_sized_to_modify(linear, size)
    }

    /// Store the result of a read-modify-write instruction.
    pub fn put(&mut self, place: Place, value: u64) -> Exec {
        match place {
            Place::Register(register) => self.set_gpr(register, value),
            Place::Memory { linear, size } => self.write_sized(linear, size, value)?,
            Place::Nowhere => {}
        }
        Ok(())
    }

    /// Bytes of the stack pointer: 2, 4 or 8.
    pub fn stack_size(&self) -> usize {
        if self.mode.is64() {
            8
        } else if self.mode.has(crate::decode::Mode::STACK32) {
            4
        } else {
            2
        }
    }

    /// RSP, ESP or SP.
    pub fn stack_pointer(&self) -> u64 {
        self.state.regs[regs::RSP as usize] & (u64::MAX >> (64 - 8 * self.stack_size()))
    }

    /// Set RSP, ESP or SP, keeping what lies above the stack size (ESP writes clear the high half as in any 32-bit write).
    pub fn set_stack_pointer(&mut self, value: u64) {
        let register = [Register::SP, Register::ESP, Register::RSP][self.stack_size().trailing_zeros() as usize - 1];
        self.set_gpr(register, value);
    }
}

/// All ones below the address size.
pub fn address_mask(insn: &Instruction) -> u64 {
    let register = if insn.memory_base() != Register::None { insn.memory_base() } else { insn.memory_index() };
    if register.is_gpr() {
        return u64::MAX >> (64 - 8 * register.size() as u32);
    }
    match insn.memory_displ_size() {
        2 => 0xffff,
        4 if insn.code_size() != iced_x86::CodeSize::Code64 => 0xffff_ffff,
        // 64-bit code with a sign-extended disp32 (size 8), or an addr32 prefix (size 4).
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}
