//! Performance monitoring: registers and their layouts (SDM vol. 3, Architectural Performance Monitoring; APM vol. 2, Performance
//! Monitoring Counters). What counts when is the processor's affair.

use crate::bits::DEBUGCTL_BUS_LOCK_DETECT;
use crate::model::{Feature, Model};
use crate::state::Vendor;

/// Most general counters of any model.
pub const GENERAL: usize = 8;
/// Most fixed-function counters.
pub const FIXED: usize = 3;
/// All counters: the general ones, then the fixed-function ones.
pub const COUNTERS: usize = GENERAL + FIXED;
/// Bits of a counter.
pub const WIDTH: u32 = 48;
/// Values of a counter.
pub const VALUES: u64 = (1 << WIDTH) - 1;

/// IA32_PERFEVTSELx and PerfEvtSeln. Bits 7:0 event, 15:8 unit mask, 31:24 counter mask; AMD: 35:32 event, upper part.
pub mod select {
    pub const USR: u64 = 1 << 16;
    pub const OS: u64 = 1 << 17;
    pub const EDGE: u64 = 1 << 18;
    pub const PIN_CONTROL: u64 = 1 << 19;
    pub const INT: u64 = 1 << 20;
    pub const ANY_THREAD: u64 = 1 << 21;
    pub const ENABLE: u64 = 1 << 22;
    pub const INVERT: u64 = 1 << 23;
    /// AMD: count only in a guest, only outside.
    pub const GUEST_ONLY: u64 = 1 << 40;
    pub const HOST_ONLY: u64 = 1 << 41;
    /// What Intel's processors keep without TSX; the rest is reserved.
    pub const INTEL: u64 = 0xffff_ffff;
    /// What AMD's processors keep.
    pub const AMD: u64 = 0x30f_ffd7_ffff;

    pub const fn event(value: u64) -> u32 {
        (value & 0xff | value >> 24 & 0xf00) as u32
    }
    pub const fn unit_mask(value: u64) -> u32 {
        (value >> 8 & 0xff) as u32
    }
    pub const fn counter_mask(value: u64) -> u32 {
        (value >> 24 & 0xff) as u32
    }
}

/// The four bits of IA32_FIXED_CTR_CTRL that belong to a counter.
pub mod fixed {
    pub const OS: u64 = 1 << 0;
    pub const USR: u64 = 1 << 1;
    pub const ANY_THREAD: u64 = 1 << 2;
    pub const PMI: u64 = 1 << 3;
}

/// IA32_PERF_GLOBAL_STATUS beyond the overflow bits of the counters.
pub mod status {
    pub const LBR_FROZEN: u64 = 1 << 58;
    pub const COUNTERS_FROZEN: u64 = 1 << 59;
    pub const UNCORE_OVERFLOW: u64 = 1 << 61;
    pub const BUFFER_OVERFLOW: u64 = 1 << 62;
    pub const CONDITION_CHANGED: u64 = 1 << 63;
}

/// IA32_PERF_CAPABILITIES: counters can be frozen in SMM, and written in full width. No last-branch stack, no PEBS.
pub const CAPABILITIES: u64 = 1 << 12 | 1 << 13;

/// The registers of one processor. Counters that count are as of the moment they were last brought up to date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Performance {
    pub counters: [u64; COUNTERS],
    pub selects: [u64; GENERAL],
    /// IA32_FIXED_CTR_CTRL.
    pub fixed_control: u64,
    /// IA32_PERF_GLOBAL_CTRL; PerfCntrGlobalCtl.
    pub global_control: u64,
    /// IA32_PERF_GLOBAL_STATUS; PerfCntrGlobalStatus.
    pub global_status: u64,
}

/// What a model has of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    pub general: usize,
    pub fixed: usize,
    /// The global control and status registers exist.
    pub global: bool,
}

impl Unit {
    /// One bit for each counter, where the global registers have it.
    pub const fn global_bits(self) -> u64 {
        (1 << self.general) - 1 | ((1 << self.fixed) - 1) << 32
    }

    /// The global registers' bit for a counter.
    pub const fn global_bit(index: usize) -> u64 {
        if index < GENERAL { 1 << index } else { 1 << (32 + index - GENERAL) }
    }

    /// The global control register after RESET: every general counter on, so that software that does not know it finds its
    /// counters counting (SDM vol. 3, IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT).
    pub const fn global_control_at_reset(self) -> u64 {
        if self.global { (1 << self.general) - 1 } else { 0 }
    }
}

impl Model {
    /// Its performance monitoring. (All AMD processors have the four legacy counters.)
    pub fn performance(&self) -> Unit {
        match self.vendor {
            Vendor::Intel if self.has(Feature::ARCH_PERFMON) => Unit { general: 8, fixed: 3, global: true },
            Vendor::Intel => Unit::default(),
            Vendor::Amd => Unit {
                general: if self.has(Feature::PERFCTR_CORE) { 6 } else { 4 },
                fixed: 0,
                global: self.has(Feature::PERFMON_V2),
            },
        }
    }

    /// Bits of IA32_DEBUGCTL (AMD: DebugCtl) that can be set.
    pub fn debugctl_bits(&self) -> u64 {
        // LBR and BTF. No model has a branch-trace store (IA32_MISC_ENABLE says so) or TSX.
        let mut bits = match self.vendor {
            Vendor::Amd => return 0x3f,
            Vendor::Intel => 3,
        };
        if self.has(Feature::BUS_LOCK_DETECT) {
            bits |= DEBUGCTL_BUS_LOCK_DETECT;
        }
        if self.has(Feature::ARCH_PERFMON) {
            // FREEZE_LBRS_ON_PMI, FREEZE_PERFMON_ON_PMI.
            bits |= 1 << 11 | 1 << 12;
        }
        if self.has(Feature::PDCM) {
            // FREEZE_WHILE_SMM, which IA32_PERF_CAPABILITIES announces.
            bits |= 1 << 14;
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_counters() {
        let intel = Model::skylake_server().performance();
        assert_eq!(intel.global_bits(), 7 << 32 | 0xff);
        assert_eq!(Unit::global_bit(GENERAL + 2), 1 << 34);
        assert_eq!(intel.global_control_at_reset(), 0xff);
        assert_eq!(Model::epyc_milan().performance().global_control_at_reset(), 0);
        assert_eq!(Model::parse("max-amd,-perfctr_core").unwrap().performance(), Unit { general: 4, fixed: 0, global: false });
        assert_eq!(Model::parse("max-intel,-arch_perfmon").unwrap().performance(), Unit::default());
    }

    #[test]
    fn events_of_twelve_bits() {
        assert_eq!(select::event(0x1_0000_00c0), 0x1c0);
        assert_eq!(select::event(u64::MAX), 0xfff);
    }
}
