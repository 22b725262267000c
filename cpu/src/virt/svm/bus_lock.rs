//! Bus Lock Threshold (APM vol. 2). In a guest whose bus locks are counted, blocks are decoded in a mode of their own
//! ([`Mode::BUS_LOCKS`](crate::decode::Mode::BUS_LOCKS)) in which locked accesses come here first; other guests pay nothing.
//!
//! A bus lock is a locked access that crosses a cache line, or is not to write-back memory. Of the latter only what is not memory at all
//! counts here: the memory types of MTRRs and PAT are not followed.

use iced_x86::Instruction;
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Exec};
use crate::lock::{general, is_split};
use crate::paging::Access;

/// A locked instruction where bus locks are counted.
pub fn counted(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    if takes_bus(cpu, insn)? {
        let seam = &mut cpu.virt.svm;
        match seam.vmcb.get(Field::BUS_LOCK_COUNTER) {
            0 => return Err(cpu.svm_exit_event(reason::BUS_LOCK, 0, 0)),
            left => seam.vmcb.set(Field::BUS_LOCK_COUNTER, left - 1),
        }
    }
    general(cpu, insn)
}

/// What the access faults on comes before.
fn takes_bus(cpu: &mut Cpu, insn: &Instruction) -> Exec<bool> {
    let size = insn.memory_size().size();
    let linear = cpu.effective_linear(insn, size, true)?;
    let physical = cpu.translate(linear, Access::WRITE)?;
    if is_split(linear, size) {
        cpu.translate(linear.wrapping_add(size as u64 - 1), Access::WRITE)?;
        return Ok(true);
    }
    Ok(cpu.shared.memory.page_index(physical).is_none())
}
