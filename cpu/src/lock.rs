//! Locks that a cache cannot hold: locked accesses across lines, which can be made to fault, and bus locks, which can be made to trap or
//! to exit (SDM vol. 3, Bus Locking; OS Bus-Lock Detection; Features to Disable Bus Locks; Other Causes of VM Exits).
//!
//! Nothing asks as long as nobody wants to know. If somebody does, locked instructions are decoded in a mode of their own: in general
//! form, each the last of its block ([`Mode::LOCKS`]); or, while only splits matter, as Linux has it where it can, in hot form behind an
//! op that looks at the address ([`Mode::SPLITS`]).

use iced_x86::{Instruction, Mnemonic, OpKind};
use undervisor_core::bits::SPLIT_LOCK_DISABLE;
use undervisor_core::{DEBUGCTL_BUS_LOCK_DETECT, Dr6, Exception, Feature, Vector};

use crate::cpu::{Cpu, Exec};
use crate::decode::{Builder, Mode};
use crate::dispatch::next;
use crate::exec;
use crate::hot::operand::{address, form};
use crate::hot::translate::memory;
use crate::hot::{self};
use crate::op::{Flow, Op, OpRef};

/// Bytes that a lock can cover without a bus lock.
const LINE: u64 = 64;

/// Whether an instruction makes a locked access to memory: XCHG does without the prefix. (AMD's LOCK MOV CR0 is no access.)
pub fn is_locked(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::Memory && (insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg)
        || insn.mnemonic() == Mnemonic::Xchg && insn.op1_kind() == OpKind::Memory
}

/// Whether an access crosses lines.
pub fn is_split(linear: u64, size: usize) -> bool {
    linear % LINE + size as u64 > LINE
}

impl Cpu {
    /// How locked instructions are to be decoded.
    #[inline]
    pub(crate) fn lock_mode(&self) -> u16 {
        if self.traps_bus_locks() || self.vmx_detects_bus_locks() {
            Mode::LOCKS
        } else if self.state.msrs.memory_ctrl & SPLIT_LOCK_DISABLE != 0 {
            Mode::SPLITS
        } else {
            0
        }
    }

    /// OS bus-lock detection.
    fn traps_bus_locks(&self) -> bool {
        self.state.msrs.debugctl & DEBUGCTL_BUS_LOCK_DETECT != 0
            && self.state.cpl != 0
            && self.model.has(Feature::BUS_LOCK_DETECT)
    }

    /// `insn` is about to access its memory operand: #AC if that would split a lock and must not.
    #[inline]
    pub(crate) fn lock(&mut self, insn: &Instruction, linear: u64, size: usize) -> Exec {
        if !self.mode.has(Mode::LOCKS | Mode::SPLITS) || !is_locked(insn) {
            return Ok(());
        }
        if is_split(linear, size) && self.state.msrs.memory_ctrl & SPLIT_LOCK_DISABLE != 0 {
            return Err(self.raise(Exception::with_code(Vector::AC, 0)));
        }
        self.notes.locked = Some((linear, size));
        Ok(())
    }

    /// A locked access has taken place.
    fn locked(&mut self, linear: u64, size: usize) {
        let traps = self.traps_bus_locks();
        if !traps && !self.vmx_detects_bus_locks() || !is_split(linear, size) && self.is_write_back(linear) {
            return;
        }
        if traps {
            self.pend_debug(Dr6::BLD.bits());
        }
        self.vmx_bus_locked();
    }
}

/// Put what looks for a split before the hot form of a locked instruction. `false`: it needs the general form.
pub fn plan(b: &mut Builder, insn: &Instruction, index: usize) -> bool {
    // A bit string reaches beyond its operand.
    if matches!(insn.mnemonic(), Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc) && insn.op1_kind() == OpKind::Register {
        return false;
    }
    let mut op = Op::new(probe::<{ form::BASE }>);
    let form = memory(&mut op, insn, b.mode);
    op.handler.set(match form {
        Some(form::BASE) => probe::<{ form::BASE }>,
        Some(form::INDEX) => probe::<{ form::INDEX }>,
        Some(form::FULL) => probe::<{ form::FULL }>,
        Some(_) => probe::<{ form::OFFSET32 }>,
        None => return false,
    });
    op.extra = insn.memory_size().size() as u16;
    b.push(op, insn, index);
    true
}

/// Before a locked instruction: one that splits a line is left to its general form.
fn probe<const A: u8>(cpu: &mut Cpu, op: OpRef) -> Flow {
    if !is_split(address::<A>(cpu, op), op.extra as usize) {
        return next(cpu, op);
    }
    cpu.general_once = true;
    hot::leave(cpu, op)
}

/// The general form of an instruction.
pub fn general(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    match exec::lookup(insn) {
        Some(row) => (row.function)(cpu, insn),
        None => exec::undefined(cpu, insn),
    }
}

/// A locked instruction in [`Mode::LOCKS`], and what its completion leads to.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.notes.locked = None;
    general(cpu, insn)?;
    if let Some((linear, size)) = cpu.notes.locked.take() {
        cpu.locked(linear, size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use undervisor_core::{Cr0, Model, regs};
    use undervisor_mmu::NullBus;

    use super::*;
    use crate::cpu::Stop;
    use crate::testing::processor;

    /// `lock inc dword [rdi]` at an address, then INC EAX and an empty loop: as far as so many chains go.
    fn increment(at: u64, chains: usize, set: impl FnOnce(&mut Cpu)) -> (Box<Cpu>, Exec) {
        let mut c = processor(64);
        c.model = Rc::new(Model::max_intel());
        c.shared.write_bytes(0x1000, &[0xf0, 0xff, 0x07, 0xff, 0xc0, 0xeb, 0xfe]).unwrap();
        c.state.set_gpr(regs::RDI, at);
        c.state.set_gpr(regs::RAX, 0);
        c.state.msrs.mtrr_def_type = 0x806;
        c.state.cr0 -= Cr0::CD;
        set(&mut c);
        c.mode_changed();
        let result = c.run_undelivered(&mut NullBus, chains);
        (c, result)
    }

    #[test]
    fn split_locks_fault_if_they_must_not_be() {
        let disable = |c: &mut Cpu| c.write_msr(0x33, SPLIT_LOCK_DISABLE).unwrap();
        for (at, set, faults) in [(0x803d, false, false), (0x803c, true, false), (0x803d, true, true), (0x7ffd, true, true)] {
            let (c, result) = increment(at, 3, |c| {
                if set {
                    disable(c)
                }
            });
            assert_eq!(result == Err(Stop::Exception), faults, "{at:#x} {set}");
            assert_eq!(c.state.gpr(regs::RAX), u64::from(!faults));
            if faults {
                assert_eq!((c.exception.vector, c.exception.error_code, c.state.rip()), (Vector::AC, Some(0), 0x1000));
            }
        }
        let mut c = processor(64);
        c.model = Rc::new(Model::max_intel());
        assert_eq!(c.read_msr(0xcf), Ok(1 << 5));
        assert!(c.write_msr(0x33, 1).is_err());
    }

    /// The debug exception of a bus lock is due before the next instruction.
    #[test]
    fn bus_locks_trap_outside_of_cpl_0() {
        let detect = |c: &mut Cpu, cpl| {
            c.write_msr(0x1d9, DEBUGCTL_BUS_LOCK_DETECT).unwrap();
            c.state.cpl = cpl;
        };
        for (at, cpl, pending) in [(0x803d, 3, 1 << 11), (0x803d, 0, 0), (0x8038, 3, 0)] {
            let (c, result) = increment(at, 1, |c| detect(c, cpl));
            assert_eq!((result, c.state.pending_debug), (Ok(()), pending), "{at:#x} {cpl}");
            assert!(pending == 0 || c.state.gpr(regs::RAX) == 0);
        }
        // In uncacheable memory each lock is one.
        for uncacheable in [|c: &mut Cpu| c.state.msrs.mtrr_def_type = 0x800, |c: &mut Cpu| c.state.cr0 |= Cr0::CD] {
            let (c, _) = increment(0x8000, 1, |c| {
                detect(c, 3);
                uncacheable(c);
            });
            assert_eq!(c.state.pending_debug, 1 << 11);
        }
    }

    #[test]
    fn dr6_says_so_with_a_zero() {
        use crate::events::dr6_after;
        assert_eq!(dr6_after(0xffff_0ff0, 1 << 11), 0xffff_07f0);
        assert_eq!(dr6_after(0xffff_07f1, 1 << 14), 0xffff_47f0);
    }
}
