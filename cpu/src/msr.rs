//! RDMSR and WRMSR (SDM vol. 4, Model-Specific Registers; APM vol. 2, MSR Cross-Reference).
//!
//! Registers with an effect have an arm of their own; those that system software only expects to hold a value stand in
//! [`plain`]. Everything else is #GP(0).

use undervisor_core::bits::{SPLIT_LOCK_DISABLE, SPLIT_LOCK_DISABLE_SUPPORTED};
use undervisor_core::{Cr0, Efer, Feature, SegReg, Segment, Vendor, msr::*};

use crate::cpu::{Cpu, Exec, attention};
use crate::cpuid::MISC_ENABLE_LIMIT_CPUID;

/// IA32_MISC_ENABLE after reset: fast strings, no BTS and PEBS, MONITOR.
pub const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 18;
/// Performance monitoring is available.
pub const MISC_ENABLE_PERFORMANCE: u64 = 1 << 7;
/// Bits that can be set and read back. Of their meanings only the CPUID limit is modelled: NX stays whatever bit 34 says.
const MISC_ENABLE_WRITABLE: u64 = 0x4_00c5_0009 | MISC_ENABLE_LIMIT_CPUID;

/// Machine-check banks.
pub const MC_BANKS: usize = 8;
/// Variable-range MTRRs.
const MTRR_VARIABLE: u32 = 8;
/// Nominal ratio of the 2 GHz clock to the 100 MHz bus.
const RATIO: u64 = 20;
/// SPEC_CTRL bits.
const IBRS: u64 = 1;
const STIBP: u64 = 1 << 1;
const SSBD: u64 = 1 << 2;
/// PRED_CMD bits.
const IBPB: u64 = 1;
const SBPB: u64 = 1 << 7;

/// Immune to what this kind of machine cannot suffer from: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO,
/// TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
const ARCH_CAPABILITIES: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// PATCH_LEVEL of a processor with the family, model and stepping of `signature` (CPUID Fn0000_0001_EAX). Its upper part repeats them
/// (extended family 31:24, extended model 23:20, model 15:12, stepping 11:8), and kernels compare the whole with the revisions that
/// closed a hole; the lower part is newer than any of these.
const fn patch_level(signature: u32) -> u64 {
    let s = signature as u64;
    (s >> 20 & 0xff) << 24 | (s >> 16 & 0xf) << 20 | (s >> 4 & 0xf) << 12 | (s & 0xf) << 8 | 0xde
}

/// A register that holds what is written to it.
struct Plain {
    reset: u64,
    /// Bits that a write changes; the others keep their reset value.
    writable: u64,
}

const fn rw(reset: u64) -> Option<Plain> {
    Some(Plain { reset, writable: u64::MAX })
}
/// Reads as a constant; a write is ignored.
const fn constant(reset: u64) -> Option<Plain> {
    Some(Plain { reset, writable: 0 })
}

/// Registers without effect.
fn plain(vendor: Vendor, msr: u32) -> Option<Plain> {
    match vendor {
        Vendor::Intel => plain_intel(msr),
        Vendor::Amd => plain_amd(msr),
    }
}

fn plain_intel(msr: u32) -> Option<Plain> {
    match msr {
        // EBL_CR_POWERON, SMI_COUNT, CORE_THREAD_COUNT.
        0x2a | 0x34 => constant(0),
        // PKG_CST_CONFIG_CONTROL (locked), PMG_IO_CAPTURE_BASE.
        0xe2 => constant(1 << 15),
        0xe4 => rw(0),
        // BBL_CR_CTL3.
        0x11e => constant(0xbe70_2111),
        // The last-branch stack: LBR_SELECT, LASTBRANCH_TOS, FROM, TO, INFO. Kernels that know the model clear it unasked, although
        // IA32_PERF_CAPABILITIES speaks of none.
        0x1c8 | 0x1c9 | 0x680..=0x69f | 0x6c0..=0x6df | 0xdc0..=0xddf => rw(0),
        // MISC_FEATURE_CONTROL, PERF_CTL, CLOCK_MODULATION, THERM_INTERRUPT.
        0x1a4 | 0x199 | 0x19a | 0x19b => rw(0),
        // OFFCORE_RSP_0 and 1, PEBS_FRONTEND: which of the events that do not happen here are to be counted.
        0x1a6 | 0x1a7 | 0x3f7 => rw(0),
        // THERM_STATUS, TEMPERATURE_TARGET (100 °C), MISC_PWR_MGMT, TURBO_RATIO_LIMIT.
        0x19c => rw(0x8800_0000),
        0x1a2 => constant(100 << 16),
        0x1aa => rw(0),
        0x1ad => constant(0x1414_1414_1414_1414),
        // ENERGY_PERF_BIAS, PACKAGE_THERM_STATUS and INTERRUPT, POWER_CTL.
        0x1b0 => rw(6),
        0x1b1 => rw(0x8800_0000),
        0x1b2 | 0x1fc => rw(0),
        // Bus numbers of the I/O units: not valid.
        0x300 => constant(0),
        // Uncore performance monitors (Intel Xeon Processor Scalable Family Uncore Performance Monitoring Reference Manual): global,
        // U-box, PCU, I/O and CHA blocks. What they would count does not happen here. Then the free-running I/O counters.
        0x700..=0x70a | 0x710..=0x71a | 0xa20..=0xaff | 0xe00..=0xfbf => rw(0),
        0xb00..=0xb5f => constant(0),
        // UNCORE_RATIO_LIMIT (1.2 to 2.4 GHz) and UNCORE_PERF_STATUS.
        0x620 => rw(0x0c18),
        0x621 => constant(0x18),
        _ => None,
    }
}

fn plain_amd(msr: u32) -> Option<Plain> {
    match msr {
        // IORRs, TOP_MEM, TOP_MEM2, NB_CFG, interrupt pending, MMIO configuration base.
        0xc001_0016..=0xc001_0019 | 0xc001_001a | 0xc001_001d | 0xc001_001f | 0xc001_0055 | 0xc001_0058 => rw(0),
        // Processor name, as the brand leaves; writing it is allowed.
        0xc001_0030..=0xc001_0035 => rw(0),
        // P-state limit, control, status, definitions: P0 is 2 GHz.
        0xc001_0061 | 0xc001_0063 => constant(0),
        0xc001_0062 => rw(0),
        0xc001_0064 => rw(1 << 63 | 8 << 8 | 0x50),
        0xc001_0065..=0xc001_006b => rw(0),
        // SMM: base, address, mask.
        0xc001_0111..=0xc001_0113 | 0xc001_0116 => rw(0),
        // CPUID overrides and unit configuration.
        0xc001_1002..=0xc001_1005 | 0xc001_1020..=0xc001_1023 | 0xc001_1028 | 0xc001_102a..=0xc001_102e => rw(0),
        // DE_CFG: LFENCE serializes.
        0xc001_1029 => rw(1 << 1),
        // Local machine-check redirection.
        0xc001_0022 | 0xc001_0044..=0xc001_004b => rw(0),
        _ => None,
    }
}

/// Whether `value` is a memory type that an MTRR may hold.
fn memory_type(value: u64) -> bool {
    matches!(value & 0xff, 0 | 1 | 4 | 5 | 6)
}

/// Index of a fixed-range MTRR.
fn fixed_mtrr(msr: u32) -> Option<usize> {
    Some(match msr {
        0x250 => 0,
        0x258 => 1,
        0x259 => 2,
        0x268..=0x26f => (msr - 0x268) as usize + 3,
        _ => return None,
    })
}

impl Cpu {
    fn has(&self, feature: Feature) -> bool {
        self.model.has(feature)
    }

    /// RDMSR at CPL 0, interception decided.
    pub fn read_msr(&mut self, msr: u32) -> Exec<u64> {
        if let Some(value) = self.virt_read_msr(msr)? {
            return Ok(value);
        }
        match self.msr_value(msr)? {
            Some(value) => Ok(value),
            None => Err(self.gp(0)),
        }
    }

    fn msr_value(&mut self, msr: u32) -> Exec<Option<u64>> {
        let amd = self.is_amd();
        let m = &self.state.msrs;
        Ok(Some(match msr {
            IA32_TSC => self.virt_tsc(self.tsc()),
            IA32_APIC_BASE | IA32_TSC_DEADLINE | X2APIC_BASE..=0x8ff => return self.apic_msr_read(msr).map(Some),
            IA32_PLATFORM_ID if !amd => 0,
            IA32_FEATURE_CONTROL if self.has(Feature::VMX) => m.feature_control,
            IA32_TSC_ADJUST if self.has(Feature::TSC_ADJUST) => m.tsc_adjust,
            IA32_SPEC_CTRL if self.spec_ctrl_bits() != 0 => m.spec_ctrl,
            IA32_BIOS_SIGN_ID if amd => patch_level(self.model.signature),
            IA32_BIOS_SIGN_ID => 0x0200_0065 << 32,
            // PLATFORM_INFO, PERF_STATUS.
            0xce if !amd => RATIO << 8 | RATIO << 40,
            0x198 if !amd => RATIO << 8,
            // CORE_THREAD_COUNT.
            0x35 if !amd => (self.processors as u64) << 16 | self.processors as u64,
            IA32_UMWAIT_CONTROL if self.has(Feature::WAITPKG) => m.umwait_control,
            MEMORY_CTRL if self.has(Feature::CORE_CAPABILITIES) => m.memory_ctrl,
            IA32_CORE_CAPABILITIES if self.has(Feature::CORE_CAPABILITIES) => SPLIT_LOCK_DISABLE_SUPPORTED,
            IA32_MPERF | IA32_APERF if self.has(Feature::APERFMPERF) => self.performance_clock(msr),
            IA32_MTRRCAP => MTRR_VARIABLE as u64 | 1 << 8 | 1 << 10,
            IA32_ARCH_CAPABILITIES if self.has(Feature::ARCH_CAPABILITIES) => ARCH_CAPABILITIES,
            IA32_SYSENTER_CS => m.sysenter_cs,
            IA32_SYSENTER_ESP => m.sysenter_esp,
            IA32_SYSENTER_EIP => m.sysenter_eip,
            IA32_MCG_CAP => MC_BANKS as u64 | 1 << 8,
            IA32_MCG_STATUS => m.mcg_status,
            0x17b => m.mcg_ctl,
            IA32_MISC_ENABLE if !amd => m.misc_enable,
            IA32_DEBUGCTL => m.debugctl,
            // Last branch and last exception, from and to.
            0x1db..=0x1de => m.last_branch[(msr - 0x1db) as usize],
            IA32_MTRR_PHYSBASE0..=0x20f => m.mtrr_variable[(msr & 0xf) as usize / 2][(msr & 1) as usize],
            _ if fixed_mtrr(msr).is_some() => m.mtrr_fixed[fixed_mtrr(msr).unwrap_or(0)],
            IA32_PAT => m.pat,
            IA32_MTRR_DEF_TYPE => m.mtrr_def_type,
            0x400..=0x47f if ((msr - 0x400) / 4) < MC_BANKS as u32 => {
                m.mc_banks[(msr - 0x400) as usize / 4][(msr & 3) as usize]
            }
            IA32_XSS if self.has(Feature::XSAVES) => m.xss,
            IA32_EFER if self.has(Feature::NX) || self.has(Feature::SYSCALL) => self.state.efer.bits(),
            IA32_STAR => m.star,
            IA32_LSTAR => m.lstar,
            IA32_CSTAR => m.cstar,
            IA32_FMASK => m.fmask,
            IA32_FS_BASE => self.state.segment(SegReg::Fs).base,
            IA32_GS_BASE => self.state.segment(SegReg::Gs).base,
            IA32_KERNEL_GS_BASE => m.kernel_gs_base,
            IA32_TSC_AUX if self.has(Feature::RDTSCP) => m.tsc_aux,
            AMD_TSC_RATIO if amd && self.model.svm.contains(undervisor_core::SvmFeatures::TSC_RATE_MSR) => m.tsc_ratio,
            AMD_SYSCFG if amd => m.syscfg,
            // The TSC counts at the P0 frequency.
            AMD_HWCR if amd => m.hwcr | 1 << 24,
            AMD_VM_CR if amd => m.vm_cr,
            AMD_VM_HSAVE_PA if amd => m.vm_hsave_pa,
            _ => {
                if let Some(value) = self.performance_read(msr) {
                    return Ok(Some(value));
                }
                let Some(p) = plain(self.model.vendor, msr) else {
                    return Ok(None);
                };
                self.state.msrs.other.get(&msr).copied().unwrap_or(p.reset)
            }
        }))
    }

    /// WRMSR at CPL 0, interception decided.
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Exec {
        if self.virt_write_msr(msr, value)? {
            return Ok(());
        }
        match self.set_msr(msr, value)? {
            Some(()) => Ok(()),
            None => Err(self.gp(0)),
        }
    }

    fn spec_ctrl_bits(&self) -> u64 {
        let mut bits = 0;
        if self.has(Feature::SPEC_CTRL) || self.has(Feature::AMD_IBRS) {
            bits |= IBRS;
        }
        if self.has(Feature::STIBP) || self.has(Feature::AMD_STIBP) {
            bits |= STIBP;
        }
        if self.has(Feature::SSBD) || self.has(Feature::AMD_SSBD) {
            bits |= SSBD;
        }
        bits
    }

    /// WRMSR of IA32_SPEC_CTRL.
    pub(crate) fn set_spec_ctrl(&mut self, value: u64) -> Exec {
        let bits = self.spec_ctrl_bits();
        if bits == 0 || value & !bits != 0 {
            return Err(self.gp(0));
        }
        self.state.msrs.spec_ctrl = value;
        Ok(())
    }

    /// `None`: #GP(0).
    fn set_msr(&mut self, msr: u32, value: u64) -> Exec<Option<()>> {
        let amd = self.is_amd();
        let model = self.model.clone();
        let canonical = self.canonical_base(value);
        let physical = !0 << self.physical_bits();
        let m = &mut self.state.msrs;
        let ok = match msr {
            IA32_TSC => {
                let before = self.tsc();
                if model.has(Feature::TSC_ADJUST) {
                    let adjust = self.state.msrs.tsc_adjust.wrapping_add(value.wrapping_sub(before));
                    self.state.msrs.tsc_adjust = adjust;
                }
                self.set_tsc(value);
                true
            }
            IA32_APIC_BASE | IA32_TSC_DEADLINE | X2APIC_BASE..=0x8ff => {
                self.apic_msr_write(msr, value)?;
                true
            }
            IA32_FEATURE_CONTROL if model.has(Feature::VMX) => {
                let m = &mut self.state.msrs;
                let ok = m.feature_control & 1 == 0 && value & !5 == 0;
                if ok {
                    m.feature_control = value;
                }
                ok
            }
            IA32_TSC_ADJUST if model.has(Feature::TSC_ADJUST) => {
                let delta = value.wrapping_sub(self.state.msrs.tsc_adjust);
                self.state.msrs.tsc_adjust = value;
                self.state.tsc_offset = self.state.tsc_offset.wrapping_add(delta);
                self.tsc_moved();
                true
            }
            IA32_UMWAIT_CONTROL if model.has(Feature::WAITPKG) => {
                let ok = value >> 32 == 0 && value & 2 == 0;
                if ok {
                    m.umwait_control = value;
                }
                ok
            }
            MEMORY_CTRL if model.has(Feature::CORE_CAPABILITIES) => {
                let ok = value & !SPLIT_LOCK_DISABLE == 0;
                if ok {
                    m.memory_ctrl = value;
                    self.privilege_changed();
                }
                ok
            }
            IA32_SPEC_CTRL => {
                self.set_spec_ctrl(value)?;
                true
            }
            IA32_PRED_CMD => {
                let mut barriers = 0;
                if model.has(Feature::SPEC_CTRL) || model.has(Feature::AMD_IBPB) {
                    barriers |= IBPB;
                }
                if model.has(Feature::SBPB) {
                    barriers |= SBPB;
                }
                let ok = barriers != 0 && value & !barriers == 0;
                if ok && value != 0 {
                    self.forget_branches();
                }
                ok
            }
            IA32_FLUSH_CMD => model.has(Feature::L1D_FLUSH) && value & !1 == 0,
            // Microcode updates are accepted and change nothing.
            IA32_BIOS_UPDT_TRIG | IA32_BIOS_SIGN_ID => true,
            0xc001_0020 if amd => true,
            IA32_SYSENTER_CS => {
                m.sysenter_cs = value & 0xffff_ffff;
                true
            }
            IA32_SYSENTER_ESP | IA32_SYSENTER_EIP => {
                // AMD keeps 32 bits and checks nothing.
                let value = if amd { value & 0xffff_ffff } else { value };
                if msr == IA32_SYSENTER_ESP {
                    m.sysenter_esp = value
                } else {
                    m.sysenter_eip = value
                }
                canonical || amd
            }
            IA32_MCG_STATUS => {
                m.mcg_status = value & 7;
                value & !7 == 0
            }
            0x17b => {
                m.mcg_ctl = value;
                true
            }
            IA32_MISC_ENABLE if !amd => {
                m.misc_enable = m.misc_enable & !MISC_ENABLE_WRITABLE | value & MISC_ENABLE_WRITABLE;
                true
            }
            IA32_DEBUGCTL => {
                let ok = value & !model.debugctl_bits() == 0;
                if ok {
                    m.debugctl = value;
                    self.privilege_changed();
                    if value & 1 != 0 {
                        // Branches are recorded by stepping.
                        self.attend(attention::DEBUG);
                    }
                }
                ok
            }
            0x1db..=0x1de => {
                m.last_branch[(msr - 0x1db) as usize] = value;
                true
            }
            IA32_MTRR_PHYSBASE0..=0x20f => {
                let mask = msr & 1 != 0;
                let ok =
                    value & physical == 0 && if mask { value & 0x7ff == 0 } else { value & 0xf00 == 0 && memory_type(value) };
                if ok {
                    m.mtrr_variable[(msr & 0xf) as usize / 2][usize::from(mask)] = value;
                }
                ok
            }
            _ if fixed_mtrr(msr).is_some() => {
                let ok = (0..8).all(|i| memory_type(value >> (8 * i) & 0xff));
                if ok {
                    m.mtrr_fixed[fixed_mtrr(msr).unwrap_or(0)] = value;
                }
                ok
            }
            IA32_PAT => {
                let ok = value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7));
                if ok {
                    m.pat = value;
                }
                ok
            }
            IA32_MTRR_DEF_TYPE => {
                let ok = value & !0xcff == 0 && memory_type(value);
                if ok {
                    m.mtrr_def_type = value;
                }
                ok
            }
            0x400..=0x47f if ((msr - 0x400) / 4) < MC_BANKS as u32 => {
                let free = match msr & 3 {
                    // Control: all errors or none; Linux leaves out bit 10 of one bank.
                    0 => value == 0 || value | 1 << 10 == u64::MAX,
                    // Status may only be cleared, unless AMD's McStatusWrEn says otherwise.
                    1 => value == 0 || (amd && m.hwcr & 1 << 18 != 0),
                    _ => true,
                };
                if free {
                    m.mc_banks[(msr - 0x400) as usize / 4][(msr & 3) as usize] = value;
                }
                free
            }
            IA32_MPERF | IA32_APERF if model.has(Feature::APERFMPERF) => {
                self.set_performance_clock(msr, value);
                true
            }
            IA32_XSS if model.has(Feature::XSAVES) => value == 0,
            IA32_EFER if model.has(Feature::NX) || model.has(Feature::SYSCALL) => self.write_efer(value),
            IA32_STAR => {
                m.star = value;
                true
            }
            IA32_LSTAR => {
                if canonical {
                    m.lstar = value;
                }
                canonical
            }
            IA32_CSTAR => {
                if canonical {
                    m.cstar = value;
                }
                canonical
            }
            IA32_FMASK => {
                m.fmask = value & 0xffff_ffff;
                true
            }
            IA32_FS_BASE | IA32_GS_BASE => {
                if canonical {
                    let r = if msr == IA32_FS_BASE { SegReg::Fs } else { SegReg::Gs };
                    let segment = Segment { base: value, ..*self.state.segment(r) };
                    self.state.set_segment(r, segment);
                    self.privilege_changed();
                }
                canonical
            }
            IA32_KERNEL_GS_BASE => {
                if canonical {
                    m.kernel_gs_base = value;
                }
                canonical
            }
            IA32_TSC_AUX if model.has(Feature::RDTSCP) => {
                let ok = amd || value >> 32 == 0;
                if ok {
                    self.state.msrs.tsc_aux = value & 0xffff_ffff;
                }
                ok
            }
            AMD_TSC_RATIO if amd && model.svm.contains(undervisor_core::SvmFeatures::TSC_RATE_MSR) => {
                let ok = value >> 40 == 0;
                if ok {
                    self.state.msrs.tsc_ratio = value;
                }
                ok
            }
            AMD_SYSCFG if amd => {
                m.syscfg = value;
                true
            }
            AMD_HWCR if amd => {
                m.hwcr = value;
                true
            }
            AMD_VM_CR if amd => {
                m.vm_cr = value;
                true
            }
            AMD_VM_HSAVE_PA if amd => {
                m.vm_hsave_pa = value;
                true
            }
            _ => {
                if let Some(ok) = self.performance_write(msr, value) {
                    return Ok(ok.then_some(()));
                }
                let Some(p) = plain(model.vendor, msr) else {
                    return Ok(None);
                };
                if p.writable != 0 {
                    self.state.msrs.other.insert(msr, p.reset & !p.writable | value & p.writable);
                }
                true
            }
        };
        Ok(ok.then_some(()))
    }

    /// Whether EFER may take `value` (SDM vol. 4, IA32_EFER; APM vol. 2, Extended Feature Enable Register).
    fn write_efer(&mut self, value: u64) -> bool {
        let old = self.state.efer;
        let mut allowed = self.model.efer_bits();
        // VM_CR.SVMDIS.
        if self.state.msrs.vm_cr & 1 << 4 != 0 {
            allowed &= !Efer::SVME.bits();
        }
        if value & !allowed != 0 {
            return false;
        }
        // LMA is the processor's to set.
        let new = Efer::from_bits_retain(value & !Efer::LMA.bits()) | old & Efer::LMA;
        if self.state.cr0.contains(Cr0::PG) && (new ^ old).contains(Efer::LME) {
            return false;
        }
        self.state.efer = new;
        self.performance_changed();
        self.mode_changed();
        true
    }
}
