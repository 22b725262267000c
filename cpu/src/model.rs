//! What the processor model allows.

use iced_x86::{CpuidFeature as F, Instruction};
use undervisor_core::{Feature, Model};

use crate::cpu::Cpu;

impl Cpu {
    /// MAXPHYADDR.
    pub fn physical_bits(&self) -> u32 {
        self.model.physical_bits
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
    fn allows(&self, insn: &Instruction) -> bool {
        insn.cpuid_features().iter().all(|&f| available(self, f))
    }
}

/// Whether the model has what iced calls `feature`. (What an encoding means without its feature, if it is not #UD, is
/// `exec::misc::without_feature`'s to say.)
fn available(model: &Model, feature: F) -> bool {
    let needed = match feature {
        F::INTEL8086
        | F::INTEL8086_ONLY
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::CPUID
        | F::MULTIBYTENOP
        | F::PAUSE
        | F::RDPMC
        | F::SMM => return true,
        F::BMI1 => Feature::BMI1,
        F::LZCNT => Feature::LZCNT,
        F::WBNOINVD => Feature::WBNOINVD,
        F::X64 => Feature::LM,
        F::FPU | F::FPU287 | F::FPU387 => Feature::FPU,
        F::MSR => Feature::MSR,
        F::TSC => Feature::TSC,
        F::CX8 => Feature::CX8,
        F::CMOV => Feature::CMOV,
        F::SEP => Feature::SEP,
        F::CLFSH => Feature::CLFLUSH,
        F::MMX => Feature::MMX,
        F::FXSR => Feature::FXSR,
        F::SSE => Feature::SSE,
        F::SSE2 => Feature::SSE2,
        F::SSE3 => Feature::SSE3,
        F::SSSE3 => Feature::SSSE3,
        F::SSE4_1 => Feature::SSE4_1,
        F::SSE4_2 => Feature::SSE4_2,
        F::SSE4A => Feature::SSE4A,
        F::AES => Feature::AES,
        F::PCLMULQDQ => Feature::PCLMULQDQ,
        F::SHA => Feature::SHA,
        F::VAES => Feature::VAES,
        F::VPCLMULQDQ => Feature::VPCLMULQDQ,
        F::GFNI => Feature::GFNI,
        F::AVX => Feature::AVX,
        F::AVX2 => Feature::AVX2,
        F::FMA => Feature::FMA,
        F::F16C => Feature::F16C,
        F::BMI2 => Feature::BMI2,
        F::ADX => Feature::ADX,
        F::MOVBE => Feature::MOVBE,
        F::POPCNT => Feature::POPCNT,
        F::CMPXCHG16B => Feature::CX16,
        F::RDRAND => Feature::RDRAND,
        F::RDSEED => Feature::RDSEED,
        F::RDTSCP => Feature::RDTSCP,
        F::RDPID => Feature::RDPID,
        F::FSGSBASE => Feature::FSGSBASE,
        F::XSAVE => Feature::XSAVE,
        F::XSAVEOPT => Feature::XSAVEOPT,
        F::XSAVEC => Feature::XSAVEC,
        F::XSAVES => Feature::XSAVES,
        F::INVPCID => Feature::INVPCID,
        F::PKU => Feature::PKU,
        F::SMAP => Feature::SMAP,
        F::MONITOR => Feature::MONITOR,
        F::WAITPKG => Feature::WAITPKG,
        F::CLFLUSHOPT => Feature::CLFLUSHOPT,
        F::CLWB => Feature::CLWB,
        F::CLZERO => Feature::CLZERO,
        F::RDPRU => Feature::RDPRU,
        F::MCOMMIT => Feature::MCOMMIT,
        F::INVLPGB => Feature::INVLPGB,
        F::SERIALIZE => Feature::SERIALIZE,
        F::SYSCALL => Feature::SYSCALL,
        F::VMX | F::INVEPT | F::INVVPID => Feature::VMX,
        F::SVM | F::SKINIT_or_SVM => Feature::SVM,
        _ => return false,
    };
    model.has(needed)
}
