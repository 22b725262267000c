//! Bus Lock Threshold (APM vol. 2). In a guest whose bus locks are counted, blocks are decoded in a mode of their own
//! ([`Mode::BUS_LOCKS`](crate::decode::Mode::BUS_LOCKS)) in which locked accesses come here first; other guests pay nothing.
//!
//! A bus lock is a locked access that crosses a cache line, or is not to write-back memory. Of the latter only what is not memory at all
//! counts here: the memory types of MTRRs and PAT are not followed.

use iced_x86::{Instruction, Mnemonic, OpKind};
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Exec};
use crate::paging::Access;

const LINE: u64 = 64;

/// Whether `insn` locks its memory operand.
pub fn locks(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::Memory && (insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg)
        || insn.mnemonic() == Mnemonic::Xchg && insn.op1_kind() == OpKind::Memory
}

/// Such an instruction where they are counted.
pub fn counted(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if takes_bus(cpu, insn)? {
        let seam = &mut cpu.virt.svm;
        match seam.vmcb.get(Field::BUS_LOCK_COUNTER) {
            0 => return Err(cpu.svm_exit_event(reason::BUS_LOCK, 0, 0)),
            left => seam.vmcb.set(Field::BUS_LOCK_COUNTER, left - 1),
        }
    }
    match crate::exec::lookup(insn) {
        Some(row) => (row.function)(cpu, insn),
        None => Err(cpu.ud()),
    }
}

/// What the access faults on comes before.
fn takes_bus(cpu: &mut Cpu, insn: &Instruction) -> Exec<bool> {
    let size = insn.memory_size().size();
    let linear = cpu.effective_linear(insn, size, true)?;
    let physical = cpu.translate(linear, Access::WRITE)?;
    let last = linear.wrapping_add(size as u64 - 1);
    if last / LINE != linear / LINE {
        cpu.translate(last, Access::WRITE)?;
        return Ok(true);
    }
    Ok(cpu.shared.memory.page_index(physical).is_none())
}
