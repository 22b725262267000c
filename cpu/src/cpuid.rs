//! CPUID: the model's leaves with this processor's present state.

use undervisor_core::model::{CpuidInputs, Topology};

use crate::apic::TIMER_HZ;
use crate::cpu::Cpu;
use crate::time::TSC_MULTIPLE;

/// IA32_MISC_ENABLE: leaves above 3 are hidden.
pub const MISC_ENABLE_LIMIT_CPUID: u64 = 1 << 22;

impl Cpu {
    /// EAX, EBX, ECX and EDX of a leaf and sub-leaf.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let inputs = CpuidInputs {
            topology: Topology { cores: self.processors, apic_id: self.apic.id },
            cr4: self.state.cr4,
            xcr0: self.state.xcr0,
            xss: self.state.msrs.xss,
            apic_enabled: self.apic_visible(),
            limit_leaves: self.state.msrs.misc_enable & MISC_ENABLE_LIMIT_CPUID != 0,
            tsc_hz: TIMER_HZ * TSC_MULTIPLE,
            timer_hz: TIMER_HZ,
        };
        self.model.cpuid(leaf, subleaf, &inputs)
    }
}
