//! What the processor model allows.

use iced_x86::Instruction;
use undervisor_core::Model;

use crate::cpu::Cpu;

impl Cpu {
    /// MAXPHYADDR.
    pub fn physical_bits(&self) -> u32 {
        46
    }

    pub fn model(&self) -> &Model {
        &self.model
    }
}

/// Questions that the decoder asks a model.
pub trait ModelExt {
    /// Whether the model has every feature that `insn` needs; if not, the instruction is #UD.
    fn allows(&self, insn: &Instruction) -> bool;
}

impl ModelExt for Model {
    fn allows(&self, _insn: &Instruction) -> bool {
        true
    }
}
