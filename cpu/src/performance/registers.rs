//! The MSRs of the counters and RDPMC.

use undervisor_core::performance::{CAPABILITIES, FIXED, GENERAL, Unit, VALUES, select, status};
use undervisor_core::{Feature, Vendor, msr::*};

use crate::cpu::Cpu;

/// What an MSR number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Counter(usize),
    /// A counter of which writes give 32 bits, to be sign-extended.
    NarrowCounter(usize),
    Select(usize),
    FixedControl,
    GlobalControl,
    GlobalStatus,
    StatusReset,
    StatusSet,
    InUse,
    Capabilities,
}

/// `Some(msr - first)` if that is below `count`.
fn index(msr: u32, first: u32, count: usize) -> Option<usize> {
    msr.checked_sub(first).map(|i| i as usize).filter(|&i| i < count)
}

impl Cpu {
    fn performance_register(&self, msr: u32) -> Option<Register> {
        let unit = self.model.performance();
        match self.model.vendor {
            Vendor::Intel if unit.general != 0 => self.intel_register(msr, unit),
            Vendor::Intel => None,
            Vendor::Amd => self.amd_register(msr, unit),
        }
    }

    fn intel_register(&self, msr: u32, unit: Unit) -> Option<Register> {
        if let Some(i) = index(msr, IA32_PMC0, unit.general) {
            return Some(Register::NarrowCounter(i));
        }
        if let Some(i) = index(msr, IA32_PERFEVTSEL0, unit.general) {
            return Some(Register::Select(i));
        }
        if let Some(i) = index(msr, IA32_FIXED_CTR0, unit.fixed) {
            return Some(Register::Counter(GENERAL + i));
        }
        let pdcm = self.model.has(Feature::PDCM);
        if let Some(i) = index(msr, IA32_A_PMC0, unit.general).filter(|_| pdcm) {
            return Some(Register::Counter(i));
        }
        Some(match msr {
            IA32_FIXED_CTR_CTRL => Register::FixedControl,
            IA32_PERF_GLOBAL_STATUS => Register::GlobalStatus,
            IA32_PERF_GLOBAL_CTRL => Register::GlobalControl,
            IA32_PERF_GLOBAL_STATUS_RESET => Register::StatusReset,
            IA32_PERF_GLOBAL_STATUS_SET => Register::StatusSet,
            IA32_PERF_GLOBAL_INUSE => Register::InUse,
            IA32_PERF_CAPABILITIES if pdcm => Register::Capabilities,
            _ => return None,
        })
    }

    fn amd_register(&self, msr: u32, unit: Unit) -> Option<Register> {
        if let Some(i) = index(msr, AMD_PERF_EVT_SEL0, 4) {
            return Some(Register::Select(i));
        }
        if let Some(i) = index(msr, AMD_PERF_CTR0, 4) {
            return Some(Register::Counter(i));
        }
        if unit.general > 4
            && let Some(i) = index(msr, AMD_CORE_PERF_EVT_SEL0, 2 * unit.general)
        {
            return Some(if i % 2 == 0 { Register::Select(i / 2) } else { Register::Counter(i / 2) });
        }
        Some(match msr {
            AMD_PERF_GLOBAL_STATUS if unit.global => Register::GlobalStatus,
            AMD_PERF_GLOBAL_CTL if unit.global => Register::GlobalControl,
            AMD_PERF_GLOBAL_STATUS_CLR if unit.global => Register::StatusReset,
            _ => return None,
        })
    }

    /// RDMSR; `None`: not a register of performance monitoring.
    pub(crate) fn performance_read(&mut self, msr: u32) -> Option<u64> {
        let register = self.performance_register(msr)?;
        self.count();
        let p = &self.state.msrs.performance;
        Some(match register {
            Register::Counter(i) | Register::NarrowCounter(i) => p.counters[i],
            Register::Select(i) => p.selects[i],
            Register::FixedControl => p.fixed_control,
            Register::GlobalControl => p.global_control,
            Register::GlobalStatus => p.global_status,
            Register::StatusReset | Register::StatusSet => 0,
            Register::InUse => self.counters_in_use(),
            Register::Capabilities => CAPABILITIES,
        })
    }

    /// IA32_PERF_GLOBAL_INUSE (SDM vol. 3, IA32_PERF_GLOBAL_INUSE MSR): counters with an event, and whether PMIs are asked for.
    fn counters_in_use(&self) -> u64 {
        let p = &self.state.msrs.performance;
        let mut bits = 0;
        for (i, s) in p.selects.iter().enumerate() {
            bits |= u64::from(s & 0xff != 0) << i | u64::from(s & select::INT != 0) << 63;
        }
        for i in 0..FIXED {
            let control = p.fixed_control >> (4 * i);
            bits |= u64::from(control & 3 != 0) << (32 + i) | u64::from(control & 8 != 0) << 63;
        }
        bits
    }

    /// WRMSR; `None`: not a register of performance monitoring, `Some(false)`: #GP(0).
    pub(crate) fn performance_write(&mut self, msr: u32, value: u64) -> Option<bool> {
        let register = self.performance_register(msr)?;
        self.count();
        let unit = self.model.performance();
        let amd = self.is_amd();
        let all = unit.global_bits();
        let p = &mut self.state.msrs.performance;
        // Reserved bits are ignored by AMD's processors and faults on Intel's.
        let reserved = |value: u64, mask: u64| !amd && value & !mask != 0;
        let events = status::LBR_FROZEN | status::COUNTERS_FROZEN | status::UNCORE_OVERFLOW | status::BUFFER_OVERFLOW;
        match register {
            Register::Counter(i) => {
                if reserved(value, VALUES) {
                    return Some(false);
                }
                p.counters[i] = value & VALUES;
            }
            Register::NarrowCounter(i) => p.counters[i] = value as i32 as u64 & VALUES,
            Register::Select(i) => {
                let mask = if amd { select::AMD } else { select::INTEL };
                if reserved(value, mask) {
                    return Some(false);
                }
                p.selects[i] = value & mask;
            }
            Register::FixedControl => {
                if reserved(value, (1 << (4 * unit.fixed)) - 1) {
                    return Some(false);
                }
                p.fixed_control = value;
            }
            Register::GlobalControl => {
                if reserved(value, all) {
                    return Some(false);
                }
                p.global_control = value & all;
            }
            Register::StatusReset => {
                if reserved(value, all | events | status::CONDITION_CHANGED) {
                    return Some(false);
                }
                p.global_status &= !value;
            }
            Register::StatusSet => {
                if reserved(value, all | events) {
                    return Some(false);
                }
                p.global_status |= value;
            }
            Register::GlobalStatus | Register::InUse | Register::Capabilities => return Some(false),
        }
        self.performance_changed();
        self.watching_changed();
        Some(true)
    }

    /// Whether branches or data accesses are watched may have changed, and with it the decode mode or the TLB bank.
    pub(crate) fn watching_changed(&mut self) {
        let branches = self.mode.has(crate::decode::Mode::COUNTED) != self.performance.counts_branches;
        if branches || self.bypassing() != self.tlb_bypassed() {
            self.privilege_changed();
        }
    }

    /// RDPMC, privilege checked: the counter that ECX names (SDM vol. 2, RDPMC; APM vol. 3, RDPMC). With architectural performance
    /// monitoring ECX[31:16] is the type: 0 general, 4000H fixed-function.
    pub(crate) fn performance_counter(&mut self, ecx: u32) -> Option<u64> {
        let unit = self.model.performance();
        let index = match (self.is_amd(), ecx >> 16) {
            (_, 0) => Some(ecx as usize).filter(|&i| i < unit.general),
            (false, 0x4000) => Some(ecx as usize & 0xffff).filter(|&i| i < unit.fixed).map(|i| GENERAL + i),
            _ => None,
        }?;
        self.count();
        Some(self.state.msrs.performance.counters[index])
    }
}
