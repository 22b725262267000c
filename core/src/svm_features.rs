//! What a model's SVM can do, by name, so that each can be switched per run. The values are the bits of CPUID Fn8000_000A_EDX
//! (APM vol. 3, Function 8000_000Ah—SVM Features).

use bitflags::bitflags;

macro_rules! features {
    ($($name:ident = $bit:literal, $text:literal;)*) => {
        bitflags! {
            /// Optional parts of SVM.
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub struct SvmFeatures: u32 {
                $(const $name = 1 << $bit;)*
            }
        }
        impl SvmFeatures {
            /// Every feature with the name that options use.
            pub const NAMES: &'static [(&'static str, SvmFeatures)] = &[$(($text, SvmFeatures::$name)),*];
        }
    };
}

features! {
    NPT = 0, "npt";
    LBR_VIRTUALIZATION = 1, "lbrv";
    SVM_LOCK = 2, "svm-lock";
    NRIP_SAVE = 3, "nrip-save";
    TSC_RATE_MSR = 4, "tsc-scale";
    VMCB_CLEAN = 5, "vmcb-clean";
    FLUSH_BY_ASID = 6, "flushbyasid";
    DECODE_ASSISTS = 7, "decode-assists";
    PAUSE_FILTER = 10, "pause-filter";
    PAUSE_FILTER_THRESHOLD = 12, "pfthreshold";
    AVIC = 13, "avic";
    VIRTUAL_VMLOAD_VMSAVE = 15, "v-vmsave-vmload";
    VIRTUAL_GIF = 16, "vgif";
    GUEST_MODE_EXECUTE_TRAP = 17, "gmet";
    X2AVIC = 18, "x2avic";
    SUPERVISOR_SHADOW_STACK = 19, "sss";
    VIRTUAL_SPEC_CTRL = 20, "v-spec-ctrl";
    // TlbiCtl: INVLPGB and TLBSYNC in guests only where the VMCB says so, and an intercept of TLBSYNC.
    TLBI_CONTROL = 24, "tlbi-ctl";
    VIRTUAL_NMI = 25, "vnmi";
    BUS_LOCK_THRESHOLD = 29, "buslock-threshold";
    IDLE_HLT = 30, "idle-hlt";
}

impl SvmFeatures {
    /// A Milan server.
    pub fn milan() -> SvmFeatures {
        SvmFeatures::all()
            - SvmFeatures::X2AVIC
            - SvmFeatures::SUPERVISOR_SHADOW_STACK
            - SvmFeatures::TLBI_CONTROL
            - SvmFeatures::VIRTUAL_NMI
            - SvmFeatures::BUS_LOCK_THRESHOLD
            - SvmFeatures::IDLE_HLT
    }

    /// A feature by the name that options use.
    pub fn by_name(name: &str) -> Option<SvmFeatures> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, f)| f)
    }

    /// Without the features whose prerequisites are missing.
    pub fn consistent(mut self) -> SvmFeatures {
        if !self.contains(Self::NPT) {
            self -= Self::AVIC
                | Self::X2AVIC
                | Self::GUEST_MODE_EXECUTE_TRAP
                | Self::SUPERVISOR_SHADOW_STACK
                | Self::VIRTUAL_VMLOAD_VMSAVE;
        }
        if !self.contains(Self::PAUSE_FILTER) {
            self -= Self::PAUSE_FILTER_THRESHOLD;
        }
        if !self.contains(Self::AVIC) {
            self -= Self::X2AVIC;
        }
        self
    }
}
