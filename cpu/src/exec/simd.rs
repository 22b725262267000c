//! Vector instructions in general form: the checks, the memory operand with all its rules, and then the very step that the fast
//! form takes. Gathers and masked moves, which fault in the middle, are in [`masked`].

mod masked;
#[cfg(test)]
mod tests;

use iced_x86::{Instruction, Mnemonic, OpKind};
use undervisor_core::{Cr0, Cr4, Exception, Vendor};

use super::Row;
use crate::cpu::{Cpu, Exec};
use crate::decode::Mode;
use crate::dispatch::enter;
use crate::hot::simd::forms::{CHECKED, SCRATCH, set_legacy, set_vex, vector};
use crate::hot::simd::plan::{Memory, Need, Step, plan};
use crate::op::{Flow, Op, OpRef};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    masked::lookup(insn).or_else(|| plan(insn).is_some().then_some(Row::new(general)))
}

/// MXCSR.MM: AMD's misaligned exception mask.
const MXCSR_MM: u32 = 1 << 17;

impl Cpu {
    /// #UD, #NM and pending x87 exceptions before a vector instruction (SDM vol. 2, Exception Conditions).
    pub(crate) fn vector_available(&mut self, need: Need) -> Exec {
        let s = &self.state;
        match need {
            Need::Mmx => return self.mmx_check(),
            Need::Sse | Need::SseMmx => {
                if s.cr0.contains(Cr0::EM) || !s.cr4.contains(Cr4::OSFXSR) {
                    return Err(self.ud());
                }
            }
            Need::Avx => {
                let protected = self.mode.is64() || self.mode.has(Mode::PROTECTED);
                if !protected || !s.cr4.contains(Cr4::OSXSAVE) || s.xcr0 & 6 != 6 {
                    return Err(self.ud());
                }
            }
        }
        if self.state.cr0.contains(Cr0::TS) {
            return Err(self.raise(Exception::NM));
        }
        if need == Need::SseMmx { self.x87_pending() } else { Ok(()) }
    }

    /// Linear address of the memory operand, aligned where it must be.
    fn vector_operand(&mut self, insn: &Instruction, m: &Memory, write: bool) -> Exec<u64> {
        let bytes = m.bytes as usize;
        let linear = self.effective_linear(insn, bytes, write)?;
        if m.aligned && linear & (bytes as u64 - 1) != 0 && !self.misaligned_sse(insn, m) {
            return Err(self.gp(0));
        }
        Ok(linear)
    }

    /// Whether AMD's MXCSR.MM lifts the alignment rule: for legacy instructions that load and compute, not for the explicitly aligned
    /// moves (APM vol. 1, Misaligned Exception Mask).
    fn misaligned_sse(&self, insn: &Instruction, m: &Memory) -> bool {
        use Mnemonic as M;
        // AMD processors do not check SHA's operands at all.
        let sha = matches!(
            insn.mnemonic(),
            M::Sha1msg1 | M::Sha1msg2 | M::Sha1nexte | M::Sha1rnds4 | M::Sha256msg1 | M::Sha256msg2 | M::Sha256rnds2
        );
        if sha && self.model().vendor == Vendor::Amd {
            return true;
        }
        let moves = m.register != SCRATCH || is_memory(insn, 0);
        !m.vex && !moves && self.model().vendor == Vendor::Amd && self.state.mxcsr & MXCSR_MM != 0
    }

    fn load_vector(&mut self, linear: u64, m: &Memory) -> Exec {
        let mut bytes = [0u8; 32];
        match m.bytes {
            size @ (1 | 2 | 4 | 8) => {
                let v = self.read_sized(linear, size as usize)?;
                bytes[..8].copy_from_slice(&v.to_le_bytes());
            }
            size => {
                let size = (size as usize).min(32);
                self.read_bytes(linear, &mut bytes[..size])?;
            }
        }
        let word = |i: usize| bytes.as_chunks::<8>().0.get(i).map_or(0, |b| u64::from_le_bytes(*b));
        if m.bytes == 32 {
            set_vex(self, m.register, [word(0), word(1), word(2), word(3)]);
        } else if m.vex {
            set_vex(self, m.register, [word(0), word(1)]);
        } else {
            set_legacy(self, m.register, [word(0), word(1)]);
        }
        Ok(())
    }

    fn store_vector(&mut self, linear: u64, m: &Memory) -> Exec {
        let words = vector::<4>(self, m.register);
        match m.bytes {
            size @ (1 | 2 | 4 | 8) => self.write_sized(linear, size as usize, words[0]),
            size => {
                let bytes = words.map(u64::to_le_bytes);
                self.write_bytes(linear, &bytes.as_flattened()[..(size as usize).min(32)])
            }
        }
    }

    /// Run the handler of a step as a chain of its own.
    fn take_step(&mut self, step: &Step) -> Exec {
        let mut ops = [step.op(), Op::new(end)];
        ops[0].scale = CHECKED;
        let current = self.current;
        let outcome = std::mem::replace(&mut self.outcome, Ok(()));
        enter(self, OpRef(std::ptr::NonNull::from(&ops[0])));
        self.current = current;
        std::mem::replace(&mut self.outcome, outcome)
    }
}

/// Ends the chain of [`Cpu::take_step`].
fn end(_: &mut Cpu, _: OpRef) -> Flow {
    None
}

fn general(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let Some(plan) = plan(insn) else { return Err(cpu.ud()) };
    // With a memory source, AMD's CVTPI2PS does not enter MMX state.
    let outside = insn.mnemonic() == Mnemonic::Cvtpi2ps && is_memory(insn, 1) && cpu.model().vendor == Vendor::Amd;
    let need = if outside { Need::Sse } else { plan.need };
    cpu.vector_available(need)?;
    let mut linear = 0;
    if let Some(m) = &plan.load {
        linear = cpu.vector_operand(insn, m, false)?;
        cpu.load_vector(linear, m)?;
    }
    if let Some(m) = &plan.store {
        linear = cpu.vector_operand(insn, m, true)?;
        if plan.probe {
            cpu.probe_write(linear, m.bytes as usize)?;
        }
    }
    for step in [&plan.before, &plan.step].into_iter().flatten() {
        cpu.take_step(step)?;
    }
    match &plan.store {
        Some(m) => cpu.store_vector(linear, m),
        None => Ok(()),
    }
}

/// Whether operand `n` is memory.
fn is_memory(insn: &Instruction, n: u32) -> bool {
    insn.op_count() > n && insn.op_kind(n) == OpKind::Memory
}
