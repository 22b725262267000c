//! The instruction in flight, as exits describe it (SDM vol. 3, Information for VM Exits Due to Instruction Execution).

use iced_x86::{Instruction, OpKind, Register};
use undervisor_core::SegReg;

use crate::cpu::Cpu;
use crate::operand::{Gpr, address_mask};

fn gpr(r: Register) -> Option<u32> {
    Gpr::of(r).map(|g| g.number as u32)
}

/// Address-size code: 0, 1, 2 for 16, 32, 64 bits.
fn address_size(insn: &Instruction) -> u32 {
    match address_mask(insn) {
        0xffff => 0,
        0xffff_ffff => 1,
        _ => 2,
    }
}

/// Bits of an instruction-information field for the memory (or register) operand `n`:
///
/// | bits | what |
/// |---|---|
/// | 1:0 | scaling |
/// | 6:3 | Reg1, if the operand is a register |
/// | 9:7 | address size |
/// | 10 | operand is a register |
/// | 17:15 | segment |
/// | 21:18, 22 | index register, none |
/// | 26:23, 27 | base register, none |
pub fn operand_information(cpu: &Cpu, insn: &Instruction, n: u32) -> u32 {
    if insn.op_kind(n) == OpKind::Register {
        return 1 << 10 | gpr(insn.op_register(n)).unwrap_or(0) << 3;
    }
    let segment = cpu.effective_segment(insn) as u32;
    let mut info = address_size(insn) << 7 | segment << 15;
    match gpr(insn.memory_index()) {
        Some(index) => info |= index << 18 | insn.memory_index_scale().trailing_zeros(),
        None => info |= 1 << 22,
    }
    match gpr(insn.memory_base()) {
        Some(base) => info |= base << 23,
        None => info |= 1 << 27,
    }
    info
}

/// The displacement of a memory operand, sign-extended; of a RIP-relative one, the address.
pub fn displacement(cpu: &Cpu, insn: &Instruction) -> u64 {
    if insn.op_count() == 0 || !(0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory) {
        return 0;
    }
    if matches!(insn.memory_base(), Register::RIP | Register::EIP) {
        return cpu.effective_offset(insn);
    }
    let value = insn.memory_displacement64();
    match address_size(insn) {
        0 => value as i16 as u64,
        1 => value as i32 as u64,
        _ => value,
    }
}

/// Number of general register `n` of the instruction, for Reg2.
pub fn register(insn: &Instruction, n: u32) -> u32 {
    gpr(insn.op_register(n)).unwrap_or(0)
}

/// Instruction information of INS and OUTS: 9:7 address size, 17:15 segment (OUTS).
pub fn string_information(address_bytes: u8, segment: u8, input: bool) -> u32 {
    let size = match address_bytes {
        2 => 0,
        4 => 1,
        _ => 2,
    };
    size << 7 | if input { SegReg::Es as u32 } else { segment as u32 } << 15
}
