//! The capability MSRs (SDM vol. 3, appendix "VMX Capability Reporting Facility"), generated from the model's features.

use undervisor_core::{Model, VmxFeatures};

use crate::controls::{entry, exit, pin, primary, secondary, tertiary};
use crate::fields::Lookup;

/// Revision of our VMCS layout: VMX_BASIC 30:0. Bit 30 is clear, as in the identifiers of all processors: there are hypervisors that mask
/// it off.
pub const REVISION: u32 = 0x1556_0001;
/// Bytes that software sets aside for a VMXON region or VMCS.
pub const REGION_SIZE: u64 = 4096;
/// CR3-target values that a VMCS holds.
pub const CR3_TARGETS: u64 = 4;
/// The preemption timer counts down each time this bit of the TSC changes.
/// KVM uses the timer only if it can run for ten seconds.
pub const PREEMPTION_TIMER_SHIFT: u32 = 3;
/// Most entries of an MSR area that are recommended: 512 × (0 + 1).
pub const MSR_AREA_LIMIT: u32 = 512;

/// What the model says outside its VMX features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bits that CR4 may have set (IA32_VMX_CR4_FIXED1).
    pub cr4_allowed: u64,
    pub physical_address_bits: u32,
    /// Bits of a linear address: 48, or 57 where the model has LA57.
    pub linear_address_bits: u32,
    /// Bits that may be set in EFER.
    pub efer_allowed: u64,
    pub debugctl_allowed: u64,
    pub perf_global_ctrl_allowed: u64,
}

impl Limits {
    pub fn of(model: &Model) -> Limits {
        Limits {
            cr4_allowed: model.cr4_bits(),
            physical_address_bits: model.physical_bits,
            linear_address_bits: model.linear_bits(),
            efer_allowed: model.efer_bits(),
            debugctl_allowed: model.debugctl_bits(),
            perf_global_ctrl_allowed: model.performance().global_bits(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            cr4_allowed: 0x0037_67ff | 1 << 22,
            physical_address_bits: 46,
            linear_address_bits: 48,
            efer_allowed: 0xd01,
            debugctl_allowed: 0x3,
            perf_global_ctrl_allowed: 0,
        }
    }
}

/// Which register of the capability MSRs a control lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Pin,
    Primary,
    Secondary,
    Exit,
    Entry,
}

/// Optional controls: (feature, register, bits that it brings).
#[rustfmt::skip]
const OPTIONAL: &[(VmxFeatures, Register, u32)] = &[
    (VmxFeatures::VIRTUAL_NMIS, Register::Pin, pin::VIRTUAL_NMIS),
    (VmxFeatures::PREEMPTION_TIMER, Register::Pin, pin::PREEMPTION_TIMER),
    (VmxFeatures::POSTED_INTERRUPTS, Register::Pin, pin::POSTED_INTERRUPTS),
    (VmxFeatures::VIRTUAL_NMIS, Register::Primary, primary::NMI_WINDOW_EXITING),
    (VmxFeatures::TPR_SHADOW, Register::Primary, primary::TPR_SHADOW),
    (VmxFeatures::MONITOR_TRAP_FLAG, Register::Primary, primary::MONITOR_TRAP_FLAG),
    (VmxFeatures::MSR_BITMAPS, Register::Primary, primary::MSR_BITMAPS),
    (VmxFeatures::SECONDARY, Register::Primary, primary::SECONDARY_CONTROLS),
    (VmxFeatures::TERTIARY, Register::Primary, primary::TERTIARY_CONTROLS),
    (VmxFeatures::VIRTUALIZE_APIC_ACCESSES, Register::Secondary, secondary::VIRTUALIZE_APIC_ACCESSES),
    (VmxFeatures::EPT, Register::Secondary, secondary::EPT),
    (VmxFeatures::DESCRIPTOR_TABLE_EXITING, Register::Secondary, secondary::DESCRIPTOR_TABLE_EXITING),
    (VmxFeatures::ENABLE_RDTSCP, Register::Secondary, secondary::ENABLE_RDTSCP),
    (VmxFeatures::VIRTUALIZE_X2APIC, Register::Secondary, secondary::VIRTUALIZE_X2APIC),
    (VmxFeatures::VPID, Register::Secondary, secondary::VPID),
    (VmxFeatures::WBINVD_EXITING, Register::Secondary, secondary::WBINVD_EXITING),
    (VmxFeatures::UNRESTRICTED_GUEST, Register::Secondary, secondary::UNRESTRICTED_GUEST),
    (VmxFeatures::APIC_REGISTER_VIRTUALIZATION, Register::Secondary, secondary::APIC_REGISTER_VIRTUALIZATION),
    (VmxFeatures::VIRTUAL_INTERRUPT_DELIVERY, Register::Secondary, secondary::VIRTUAL_INTERRUPT_DELIVERY),
    (VmxFeatures::PAUSE_LOOP_EXITING, Register::Secondary, secondary::PAUSE_LOOP_EXITING),
    (VmxFeatures::RDRAND_EXITING, Register::Secondary, secondary::RDRAND_EXITING),
    (VmxFeatures::ENABLE_INVPCID, Register::Secondary, secondary::ENABLE_INVPCID),
    (VmxFeatures::VM_FUNCTIONS, Register::Secondary, secondary::VM_FUNCTIONS),
    (VmxFeatures::VMCS_SHADOWING, Register::Secondary, secondary::VMCS_SHADOWING),
    (VmxFeatures::RDSEED_EXITING, Register::Secondary, secondary::RDSEED_EXITING),
    (VmxFeatures::PML, Register::Secondary, secondary::PML),
    (VmxFeatures::EPT_VIOLATION_VE, Register::Secondary, secondary::EPT_VIOLATION_VE),
    (VmxFeatures::ENABLE_XSAVES, Register::Secondary, secondary::ENABLE_XSAVES),
    (VmxFeatures::MODE_BASED_EXECUTE, Register::Secondary, secondary::MODE_BASED_EXECUTE),
    (VmxFeatures::TSC_SCALING, Register::Secondary, secondary::TSC_SCALING),
    (VmxFeatures::USER_WAIT_PAUSE, Register::Secondary, secondary::USER_WAIT_PAUSE),
    (VmxFeatures::VMM_BUS_LOCK_DETECTION, Register::Secondary, secondary::VMM_BUS_LOCK_DETECTION),
    (VmxFeatures::INSTRUCTION_TIMEOUT, Register::Secondary, secondary::INSTRUCTION_TIMEOUT),
    (VmxFeatures::LOAD_PERF_GLOBAL_CTRL, Register::Exit, exit::LOAD_PERF_GLOBAL_CTRL),
    (VmxFeatures::LOAD_PAT, Register::Exit, exit::SAVE_PAT | exit::LOAD_PAT),
    (VmxFeatures::LOAD_EFER, Register::Exit, exit::SAVE_EFER | exit::LOAD_EFER),
    (VmxFeatures::PREEMPTION_TIMER, Register::Exit, exit::SAVE_PREEMPTION_TIMER),
    (VmxFeatures::LOAD_BNDCFGS, Register::Exit, exit::CLEAR_BNDCFGS),
    (VmxFeatures::SAVE_PERF_GLOBAL_CTRL, Register::Exit, exit::SAVE_PERF_GLOBAL_CTRL),
    (VmxFeatures::LOAD_PERF_GLOBAL_CTRL, Register::Entry, entry::LOAD_PERF_GLOBAL_CTRL),
    (VmxFeatures::LOAD_PAT, Register::Entry, entry::LOAD_PAT),
    (VmxFeatures::LOAD_EFER, Register::Entry, entry::LOAD_EFER),
    (VmxFeatures::LOAD_BNDCFGS, Register::Entry, entry::LOAD_BNDCFGS),
];

/// Primary controls that every VMX processor has.
const PRIMARY_ALWAYS: u32 = primary::INTERRUPT_WINDOW_EXITING
    | primary::TSC_OFFSETTING
    | primary::HLT_EXITING
    | primary::INVLPG_EXITING
    | primary::MWAIT_EXITING
    | primary::RDPMC_EXITING
    | primary::RDTSC_EXITING
    | primary::CR3_LOAD_EXITING
    | primary::CR3_STORE_EXITING
    | primary::CR8_LOAD_EXITING
    | primary::CR8_STORE_EXITING
    | primary::MOV_DR_EXITING
    | primary::UNCONDITIONAL_IO_EXITING
    | primary::IO_BITMAPS
    | primary::MONITOR_EXITING
    | primary::PAUSE_EXITING;

/// Bits of IA32_VMX_EPT_VPID_CAP.
#[rustfmt::skip]
const EPT_VPID: &[(VmxFeatures, u64)] = &[
    (VmxFeatures::EPT_EXECUTE_ONLY, 1 << 0),
    (VmxFeatures::EPT, 1 << 6 | 1 << 8 | 1 << 14 | 1 << 20),
    (VmxFeatures::EPT_5_LEVEL, 1 << 7),
    (VmxFeatures::EPT_2M, 1 << 16),
    (VmxFeatures::EPT_1G, 1 << 17),
    (VmxFeatures::EPT_ACCESSED_DIRTY, 1 << 21),
    (VmxFeatures::EPT_ADVANCED_INFORMATION, 1 << 22),
    (VmxFeatures::INVEPT_SINGLE, 1 << 25),
    (VmxFeatures::INVEPT_ALL, 1 << 26),
    (VmxFeatures::VPID, 1 << 32),
    (VmxFeatures::INVVPID_ADDRESS, 1 << 40),
    (VmxFeatures::INVVPID_SINGLE, 1 << 41),
    (VmxFeatures::INVVPID_ALL, 1 << 42),
    (VmxFeatures::INVVPID_RETAIN_GLOBALS, 1 << 43),
];

/// Bits of IA32_VMX_MISC.
#[rustfmt::skip]
const MISC: &[(VmxFeatures, u64)] = &[
    (VmxFeatures::STORE_LMA, 1 << 5),
    (VmxFeatures::ACTIVITY_HLT, 1 << 6),
    (VmxFeatures::ACTIVITY_SHUTDOWN, 1 << 7),
    (VmxFeatures::ACTIVITY_WAIT_FOR_SIPI, 1 << 8),
    (VmxFeatures::VMWRITE_ANY_FIELD, 1 << 29),
    (VmxFeatures::INJECT_ZERO_LENGTH, 1 << 30),
];

/// Settings of a 32-bit control field: bits that must be one, bits that may be one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    pub must: u32,
    pub may: u32,
}

impl Allowed {
    pub const fn permits(self, value: u32) -> bool {
        value & self.must == self.must && value & !self.may == 0
    }
    /// The MSR: allowed 0-settings low, allowed 1-settings high.
    const fn msr(self) -> u64 {
        (self.may as u64) << 32 | self.must as u64
    }
}

/// Everything that VMX code asks about the model.
pub struct Capabilities {
    pub features: VmxFeatures,
    pub limits: Limits,
    /// What control fields may hold: the TRUE registers where they exist.
    pub pin: Allowed,
    pub primary: Allowed,
    pub secondary: Allowed,
    pub exit: Allowed,
    pub entry: Allowed,
    pub tertiary: u64,
    pub ept_vpid: u64,
    pub vm_functions: u64,
    pub fields: Lookup,
    basic: u64,
    misc: u64,
}

impl Capabilities {
    pub fn new(features: VmxFeatures, limits: Limits) -> Capabilities {
        let features = features.consistent();
        let has = |f: VmxFeatures| features.contains(f);
        let optional =
            |r: Register| OPTIONAL.iter().filter(|&&(f, at, _)| at == r && has(f)).fold(0, |all, &(_, _, bits)| all | bits);
        let collect = |table: &[(VmxFeatures, u64)]| table.iter().filter(|(f, _)| has(*f)).fold(0, |all, (_, b)| all | b);
        let true_controls = has(VmxFeatures::TRUE_CONTROLS);
        let allowed = |normal: u32, freed: u32, more: u32| Allowed {
            must: if true_controls { freed } else { normal },
            may: normal | more,
        };
        let basic_pin = pin::EXTERNAL_INTERRUPT_EXITING | pin::NMI_EXITING;
        let exit_always = exit::SAVE_DEBUG_CONTROLS | exit::HOST_ADDRESS_SPACE_SIZE | exit::ACKNOWLEDGE_INTERRUPT;
        let entry_always = entry::LOAD_DEBUG_CONTROLS | entry::IA32E_MODE_GUEST;
        let mut tertiary_allowed = 0;
        if has(VmxFeatures::IPI_VIRTUALIZATION) {
            tertiary_allowed |= tertiary::IPI_VIRTUALIZATION;
        }
        if has(VmxFeatures::VIRTUALIZE_SPEC_CTRL) {
            tertiary_allowed |= tertiary::VIRTUALIZE_SPEC_CTRL;
        }
        // 30:0 revision, 44:32 region size, 53:50 write-back, 54 INS/OUTS information, 55 TRUE registers,
        // 56 any error-code setting for injected exceptions.
        let basic = REVISION as u64
            | REGION_SIZE << 32
            | 6 << 50
            | 1 << 54
            | u64::from(true_controls) << 55
            | u64::from(has(VmxFeatures::INJECT_ANY_ERROR_CODE)) << 56;
        // 24:16 CR3 targets, 27:25 MSR-area recommendation.
        let misc = collect(MISC) | CR3_TARGETS << 16 | PREEMPTION_TIMER_SHIFT as u64;
        Capabilities {
            features,
            limits,
            pin: allowed(pin::DEFAULT1, pin::DEFAULT1, basic_pin | optional(Register::Pin)),
            primary: allowed(primary::DEFAULT1, primary::TRUE_DEFAULT1, PRIMARY_ALWAYS | optional(Register::Primary)),
            secondary: Allowed { must: 0, may: optional(Register::Secondary) },
            exit: allowed(exit::DEFAULT1, exit::TRUE_DEFAULT1, exit_always | optional(Register::Exit)),
            entry: allowed(entry::DEFAULT1, entry::TRUE_DEFAULT1, entry_always | optional(Register::Entry)),
            tertiary: tertiary_allowed,
            ept_vpid: collect(EPT_VPID),
            vm_functions: u64::from(has(VmxFeatures::EPTP_SWITCHING)),
            fields: Lookup::new(features),
            basic,
            misc,
        }
    }

    pub fn has(&self, f: VmxFeatures) -> bool {
        self.features.contains(f)
    }

    /// Bits of CR0 that must be one in VMX operation, PE and PG apart in an unrestricted guest.
    pub const CR0_FIXED0: u64 = 0x8000_0021;
    pub const CR0_FIXED1: u64 = 0xffff_ffff;
    pub const CR4_FIXED0: u64 = 0x2000;

    /// Whether `value` may be in CR0 in VMX operation.
    pub const fn cr0_allowed(value: u64, unrestricted: bool) -> bool {
        let must = if unrestricted { Self::CR0_FIXED0 & !0x8000_0001 } else { Self::CR0_FIXED0 };
        value & must == must && value & !Self::CR0_FIXED1 == 0
    }

    /// Whether `value` may be in CR4 in VMX operation.
    pub const fn cr4_allowed(&self, value: u64) -> bool {
        value & Self::CR4_FIXED0 == Self::CR4_FIXED0 && value & !self.limits.cr4_allowed == 0
    }

    /// Whether `address` lies within the processor's physical-address width.
    pub const fn physical(&self, address: u64) -> bool {
        address >> self.limits.physical_address_bits == 0
    }

    /// Whether a linear address is canonical for this processor.
    pub const fn canonical(&self, address: u64) -> bool {
        let shift = 64 - self.limits.linear_address_bits;
        ((address << shift) as i64 >> shift) as u64 == address
    }

    /// The value of a capability MSR (0x480–0x493); `None`: it does not exist here.
    pub fn msr(&self, number: u32) -> Option<u64> {
        let control = |normal: u32, a: Allowed| Allowed { must: normal, ..a }.msr();
        let true_controls = self.has(VmxFeatures::TRUE_CONTROLS);
        Some(match number {
            0x480 => self.basic,
            0x481 => control(pin::DEFAULT1, self.pin),
            0x482 => control(primary::DEFAULT1, self.primary),
            0x483 => control(exit::DEFAULT1, self.exit),
            0x484 => control(entry::DEFAULT1, self.entry),
            0x485 => self.misc,
            0x486 => Self::CR0_FIXED0,
            0x487 => Self::CR0_FIXED1,
            0x488 => Self::CR4_FIXED0,
            0x489 => self.limits.cr4_allowed,
            0x48a => self.fields.highest_index() << 1,
            0x48b if self.has(VmxFeatures::SECONDARY) => self.secondary.msr(),
            0x48c if self.features.intersects(VmxFeatures::EPT | VmxFeatures::VPID) => self.ept_vpid,
            0x48d if true_controls => self.pin.msr(),
            0x48e if true_controls => self.primary.msr(),
            0x48f if true_controls => self.exit.msr(),
            0x490 if true_controls => self.entry.msr(),
            0x491 if self.has(VmxFeatures::VM_FUNCTIONS) => self.vm_functions,
            0x492 if self.has(VmxFeatures::TERTIARY) => self.tertiary,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_manual() {
        let c = Capabilities::new(VmxFeatures::skylake_server(), Limits::default());
        assert_eq!(c.msr(0x480).unwrap() as u32 >> 30, 0);
        assert_eq!(c.msr(0x481).unwrap() as u32, 0x16);
        assert_eq!(c.msr(0x482).unwrap() as u32, 0x0401_e172);
        assert_eq!(c.msr(0x48e).unwrap() as u32, 0x0400_6172);
        assert_eq!(c.msr(0x483).unwrap() as u32, 0x0003_6dff);
        assert_eq!(c.msr(0x484).unwrap() as u32, 0x0000_11ff);
        assert_eq!(c.msr(0x48c).unwrap(), 0x0f01_0673_4141);
        assert_eq!(c.msr(0x493), None);
        for n in [0x481, 0x482, 0x483, 0x484, 0x48d, 0x48e, 0x48f, 0x490] {
            let v = c.msr(n).unwrap();
            assert_eq!(v as u32 & !((v >> 32) as u32), 0, "{n:#x}: a bit both fixed to 1 and to 0");
        }
    }

    #[test]
    fn features_switch_off() {
        let c = Capabilities::new(VmxFeatures::everything() - VmxFeatures::EPT, Limits::default());
        assert_eq!(c.secondary.may & (secondary::EPT | secondary::UNRESTRICTED_GUEST | secondary::PML), 0);
        let c = Capabilities::new(VmxFeatures::everything() - VmxFeatures::TRUE_CONTROLS, Limits::default());
        assert_eq!(c.msr(0x48d), None);
        assert_eq!(c.primary.must, primary::DEFAULT1);
    }
}
