//! What a model's VMX can do, by name, so that each can be switched per run. The capability MSRs, the existence of
//! VMCS fields and the VM-entry checks all follow from one value of [`VmxFeatures`].

use bitflags::bitflags;

macro_rules! features {
    ($($(#[doc = $doc:literal])* $name:ident = $bit:literal, $text:literal;)*) => {
        bitflags! {
            /// Optional parts of VMX. What every VMX processor has is not listed.
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub struct VmxFeatures: u128 {
                $($(#[doc = $doc])* const $name = 1 << $bit;)*
            }
        }
        impl VmxFeatures {
            /// Every feature with the name that options use.
            pub const NAMES: &'static [(&'static str, VmxFeatures)] = &[$(($text, VmxFeatures::$name)),*];
        }
    };
}

features! {
    // Pin-based controls.
    VIRTUAL_NMIS = 0, "virtual-nmis";
    PREEMPTION_TIMER = 1, "preemption-timer";
    POSTED_INTERRUPTS = 2, "posted-interrupts";
    // Primary processor-based controls.
    TPR_SHADOW = 3, "tpr-shadow";
    MONITOR_TRAP_FLAG = 4, "monitor-trap-flag";
    MSR_BITMAPS = 5, "msr-bitmaps";
    SECONDARY = 6, "secondary-controls";
    TERTIARY = 7, "tertiary-controls";
    /// The IA32_VMX_TRUE_* MSRs exist.
    TRUE_CONTROLS = 8, "true-controls";
    // Secondary controls.
    VIRTUALIZE_APIC_ACCESSES = 10, "virtualize-apic-accesses";
    EPT = 11, "ept";
    DESCRIPTOR_TABLE_EXITING = 12, "descriptor-table-exiting";
    ENABLE_RDTSCP = 13, "enable-rdtscp";
    VIRTUALIZE_X2APIC = 14, "virtualize-x2apic";
    VPID = 15, "vpid";
    WBINVD_EXITING = 16, "wbinvd-exiting";
    UNRESTRICTED_GUEST = 17, "unrestricted-guest";
    APIC_REGISTER_VIRTUALIZATION = 18, "apic-register-virtualization";
    VIRTUAL_INTERRUPT_DELIVERY = 19, "virtual-interrupt-delivery";
    PAUSE_LOOP_EXITING = 20, "pause-loop-exiting";
    RDRAND_EXITING = 21, "rdrand-exiting";
    ENABLE_INVPCID = 22, "enable-invpcid";
    VM_FUNCTIONS = 23, "vm-functions";
    VMCS_SHADOWING = 24, "vmcs-shadowing";
    RDSEED_EXITING = 25, "rdseed-exiting";
    PML = 26, "pml";
    EPT_VIOLATION_VE = 27, "ept-violation-ve";
    ENABLE_XSAVES = 28, "enable-xsaves";
    MODE_BASED_EXECUTE = 29, "mode-based-execute-control";
    TSC_SCALING = 30, "vmx-tsc-scaling";
    USER_WAIT_PAUSE = 31, "user-wait-pause";
    // Tertiary controls.
    IPI_VIRTUALIZATION = 32, "ipi-virtualization";
    VIRTUALIZE_SPEC_CTRL = 33, "virtualize-spec-ctrl";
    // Secondary controls again.
    VMM_BUS_LOCK_DETECTION = 34, "vmm-bus-lock-detection";
    INSTRUCTION_TIMEOUT = 35, "instruction-timeout";
    // Entry and exit controls.
    LOAD_PERF_GLOBAL_CTRL = 40, "load-perf-global-ctrl";
    LOAD_PAT = 41, "load-pat";
    LOAD_EFER = 42, "load-efer";
    LOAD_BNDCFGS = 43, "load-bndcfgs";
    SAVE_PERF_GLOBAL_CTRL = 44, "save-perf-global-ctrl";
    // EPT and TLB control (IA32_VMX_EPT_VPID_CAP).
    EPT_EXECUTE_ONLY = 50, "ept-execute-only";
    EPT_5_LEVEL = 51, "ept-5-level";
    EPT_2M = 52, "ept-2m";
    EPT_1G = 53, "ept-1g";
    EPT_ACCESSED_DIRTY = 54, "ept-ad";
    EPT_ADVANCED_INFORMATION = 55, "ept-advanced-information";
    INVEPT_SINGLE = 56, "invept-single";
    INVEPT_ALL = 57, "invept-all";
    INVVPID_ADDRESS = 58, "invvpid-address";
    INVVPID_SINGLE = 59, "invvpid-single";
    INVVPID_ALL = 60, "invvpid-all";
    INVVPID_RETAIN_GLOBALS = 61, "invvpid-retain-globals";
    EPTP_SWITCHING = 62, "eptp-switching";
    // IA32_VMX_MISC and IA32_VMX_BASIC.
    STORE_LMA = 70, "store-lma";
    ACTIVITY_HLT = 71, "activity-hlt";
    ACTIVITY_SHUTDOWN = 72, "activity-shutdown";
    ACTIVITY_WAIT_FOR_SIPI = 73, "activity-wait-for-sipi";
    VMWRITE_ANY_FIELD = 74, "vmwrite-any-field";
    INJECT_ZERO_LENGTH = 75, "inject-zero-length";
    /// Hardware exceptions may be injected with or without an error code, whatever the vector.
    INJECT_ANY_ERROR_CODE = 76, "inject-any-error-code";
}

impl VmxFeatures {
    /// A Skylake server.
    pub fn skylake_server() -> VmxFeatures {
        VmxFeatures::all()
            - VmxFeatures::TERTIARY
            - VmxFeatures::IPI_VIRTUALIZATION
            - VmxFeatures::VIRTUALIZE_SPEC_CTRL
            - VmxFeatures::USER_WAIT_PAUSE
            - VmxFeatures::VMM_BUS_LOCK_DETECTION
            - VmxFeatures::INSTRUCTION_TIMEOUT
            - VmxFeatures::EPT_5_LEVEL
            - VmxFeatures::SAVE_PERF_GLOBAL_CTRL
            - VmxFeatures::INJECT_ANY_ERROR_CODE
    }

    /// Everything there is.
    pub fn everything() -> VmxFeatures {
        VmxFeatures::all()
    }

    /// A feature by the name that options use.
    pub fn by_name(name: &str) -> Option<VmxFeatures> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, f)| f)
    }

    /// Without the features whose prerequisites are missing, so that switching one off takes what hangs on it along.
    pub fn consistent(mut self) -> VmxFeatures {
        const F: fn(&[VmxFeatures]) -> VmxFeatures = |list| list.iter().fold(VmxFeatures::empty(), |a, &b| a | b);
        let secondary = F(&[
            VmxFeatures::VIRTUALIZE_APIC_ACCESSES,
            VmxFeatures::EPT,
            VmxFeatures::DESCRIPTOR_TABLE_EXITING,
            VmxFeatures::ENABLE_RDTSCP,
            VmxFeatures::VIRTUALIZE_X2APIC,
            VmxFeatures::VPID,
            VmxFeatures::WBINVD_EXITING,
            VmxFeatures::APIC_REGISTER_VIRTUALIZATION,
            VmxFeatures::VIRTUAL_INTERRUPT_DELIVERY,
            VmxFeatures::PAUSE_LOOP_EXITING,
            VmxFeatures::RDRAND_EXITING,
            VmxFeatures::ENABLE_INVPCID,
            VmxFeatures::VM_FUNCTIONS,
            VmxFeatures::VMCS_SHADOWING,
            VmxFeatures::RDSEED_EXITING,
            VmxFeatures::ENABLE_XSAVES,
            VmxFeatures::TSC_SCALING,
            VmxFeatures::USER_WAIT_PAUSE,
            VmxFeatures::VMM_BUS_LOCK_DETECTION,
            VmxFeatures::INSTRUCTION_TIMEOUT,
        ]);
        let needs: [(VmxFeatures, VmxFeatures); 9] = [
            (VmxFeatures::SECONDARY, secondary),
            (VmxFeatures::TERTIARY, VmxFeatures::IPI_VIRTUALIZATION | VmxFeatures::VIRTUALIZE_SPEC_CTRL),
            (
                VmxFeatures::EPT,
                F(&[
                    VmxFeatures::UNRESTRICTED_GUEST,
                    VmxFeatures::PML,
                    VmxFeatures::EPT_VIOLATION_VE,
                    VmxFeatures::MODE_BASED_EXECUTE,
                    VmxFeatures::EPTP_SWITCHING,
                    VmxFeatures::EPT_EXECUTE_ONLY,
                    VmxFeatures::EPT_5_LEVEL,
                    VmxFeatures::EPT_2M,
                    VmxFeatures::EPT_1G,
                    VmxFeatures::EPT_ACCESSED_DIRTY,
                    VmxFeatures::EPT_ADVANCED_INFORMATION,
                    VmxFeatures::INVEPT_SINGLE,
                    VmxFeatures::INVEPT_ALL,
                ]),
            ),
            (VmxFeatures::EPT_ACCESSED_DIRTY, VmxFeatures::PML),
            (
                VmxFeatures::VPID,
                VmxFeatures::INVVPID_ADDRESS
                    | VmxFeatures::INVVPID_SINGLE
                    | VmxFeatures::INVVPID_ALL
                    | VmxFeatures::INVVPID_RETAIN_GLOBALS,
            ),
            (VmxFeatures::VM_FUNCTIONS, VmxFeatures::EPTP_SWITCHING),
            (
                VmxFeatures::TPR_SHADOW,
                VmxFeatures::VIRTUALIZE_X2APIC
                    | VmxFeatures::APIC_REGISTER_VIRTUALIZATION
                    | VmxFeatures::VIRTUAL_INTERRUPT_DELIVERY
                    | VmxFeatures::IPI_VIRTUALIZATION,
            ),
            (VmxFeatures::VIRTUAL_INTERRUPT_DELIVERY, VmxFeatures::POSTED_INTERRUPTS),
            (VmxFeatures::LOAD_PERF_GLOBAL_CTRL, VmxFeatures::SAVE_PERF_GLOBAL_CTRL),
        ];
        // Twice: a chain is at most two long after the first pass over this order.
        for _ in 0..2 {
            for (prerequisite, dependents) in needs {
                if !self.contains(prerequisite) {
                    self -= dependents;
                }
            }
        }
        if !self.contains(VmxFeatures::EPTP_SWITCHING) {
            self -= VmxFeatures::VM_FUNCTIONS;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependents_follow() {
        let f = (VmxFeatures::everything() - VmxFeatures::SECONDARY).consistent();
        assert!(!f.intersects(VmxFeatures::EPT | VmxFeatures::UNRESTRICTED_GUEST | VmxFeatures::POSTED_INTERRUPTS));
        assert_eq!(VmxFeatures::everything().consistent(), VmxFeatures::everything());
        assert_eq!(VmxFeatures::by_name("ept"), Some(VmxFeatures::EPT));
    }
}
