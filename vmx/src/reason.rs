//! Basic exit reasons (SDM vol. 3, appendix "VMX Basic Exit Reasons") and what an exit records.

macro_rules! reasons {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// Basic exit reasons.
        #[allow(missing_docs)]
        pub mod basic {
            $(pub const $name: u32 = $number;)*
        }
        /// Name of a basic exit reason, for tables and traces.
        pub fn name(basic: u32) -> &'static str {
            match basic {
                $($number => $text,)*
                _ => "?",
            }
        }
    };
}

reasons! {
    EXCEPTION_OR_NMI = 0, "exception or NMI";
    EXTERNAL_INTERRUPT = 1, "external interrupt";
    TRIPLE_FAULT = 2, "triple fault";
    INIT = 3, "INIT signal";
    SIPI = 4, "start-up IPI";
    INTERRUPT_WINDOW = 7, "interrupt window";
    NMI_WINDOW = 8, "NMI window";
    TASK_SWITCH = 9, "task switch";
    CPUID = 10, "CPUID";
    GETSEC = 11, "GETSEC";
    HLT = 12, "HLT";
    INVD = 13, "INVD";
    INVLPG = 14, "INVLPG";
    RDPMC = 15, "RDPMC";
    RDTSC = 16, "RDTSC";
    RSM = 17, "RSM";
    VMCALL = 18, "VMCALL";
    VMCLEAR = 19, "VMCLEAR";
    VMLAUNCH = 20, "VMLAUNCH";
    VMPTRLD = 21, "VMPTRLD";
    VMPTRST = 22, "VMPTRST";
    VMREAD = 23, "VMREAD";
    VMRESUME = 24, "VMRESUME";
    VMWRITE = 25, "VMWRITE";
    VMXOFF = 26, "VMXOFF";
    VMXON = 27, "VMXON";
    CR_ACCESS = 28, "control-register access";
    MOV_DR = 29, "MOV DR";
    IO = 30, "I/O instruction";
    RDMSR = 31, "RDMSR";
    WRMSR = 32, "WRMSR";
    INVALID_GUEST_STATE = 33, "entry failure: guest state";
    MSR_LOAD = 34, "entry failure: MSR loading";
    MWAIT = 36, "MWAIT";
    MONITOR_TRAP_FLAG = 37, "monitor trap flag";
    MONITOR = 39, "MONITOR";
    PAUSE = 40, "PAUSE";
    MACHINE_CHECK = 41, "entry failure: machine check";
    TPR_BELOW_THRESHOLD = 43, "TPR below threshold";
    APIC_ACCESS = 44, "APIC access";
    VIRTUALIZED_EOI = 45, "virtualized EOI";
    GDTR_IDTR = 46, "GDTR or IDTR access";
    LDTR_TR = 47, "LDTR or TR access";
    EPT_VIOLATION = 48, "EPT violation";
    EPT_MISCONFIGURATION = 49, "EPT misconfiguration";
    INVEPT = 50, "INVEPT";
    RDTSCP = 51, "RDTSCP";
    PREEMPTION_TIMER = 52, "preemption timer";
    INVVPID = 53, "INVVPID";
    WBINVD = 54, "WBINVD";
    XSETBV = 55, "XSETBV";
    APIC_WRITE = 56, "APIC write";
    RDRAND = 57, "RDRAND";
    INVPCID = 58, "INVPCID";
    VMFUNC = 59, "VMFUNC";
    RDSEED = 61, "RDSEED";
    PML_FULL = 62, "page-modification log full";
    XSAVES = 63, "XSAVES";
    XRSTORS = 64, "XRSTORS";
    UMWAIT = 67, "UMWAIT";
    TPAUSE = 68, "TPAUSE";
    BUS_LOCK = 74, "bus lock";
    INSTRUCTION_TIMEOUT = 75, "instruction timeout";
}

/// Set in the exit reason of an exit that follows a bus lock while the VMM detects those.
pub const AFTER_BUS_LOCK: u32 = 1 << 26;
/// Set in the exit reason when VM entry failed.
pub const ENTRY_FAILURE: u32 = 1 << 31;

/// What a VM exit reports. Fields that an exit leaves undefined are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitInformation {
    pub reason: u32,
    pub qualification: u64,
    pub guest_linear_address: u64,
    pub guest_physical_address: u64,
    pub instruction_length: u32,
    pub instruction_information: u32,
    pub interruption_information: u32,
    pub interruption_error_code: u32,
    pub idt_vectoring_information: u32,
    pub idt_vectoring_error_code: u32,
}

impl ExitInformation {
    pub const fn new(reason: u32) -> ExitInformation {
        ExitInformation {
            reason,
            qualification: 0,
            guest_linear_address: 0,
            guest_physical_address: 0,
            instruction_length: 0,
            instruction_information: 0,
            interruption_information: 0,
            interruption_error_code: 0,
            idt_vectoring_information: 0,
            idt_vectoring_error_code: 0,
        }
    }
    pub const fn qualified(reason: u32, qualification: u64) -> ExitInformation {
        let mut i = ExitInformation::new(reason);
        i.qualification = qualification;
        i
    }
}

/// Numbers of VM-instruction errors (SDM vol. 3, VM-Instruction Error Numbers).
pub mod error {
    pub const VMCALL_IN_ROOT: u32 = 1;
    pub const VMCLEAR_ADDRESS: u32 = 2;
    pub const VMCLEAR_VMXON_POINTER: u32 = 3;
    pub const VMLAUNCH_NOT_CLEAR: u32 = 4;
    pub const VMRESUME_NOT_LAUNCHED: u32 = 5;
    pub const ENTRY_CONTROLS: u32 = 7;
    pub const ENTRY_HOST_STATE: u32 = 8;
    pub const VMPTRLD_ADDRESS: u32 = 9;
    pub const VMPTRLD_VMXON_POINTER: u32 = 10;
    pub const VMPTRLD_REVISION: u32 = 11;
    pub const UNSUPPORTED_FIELD: u32 = 12;
    pub const READ_ONLY_FIELD: u32 = 13;
    pub const VMXON_IN_ROOT: u32 = 15;
    pub const ENTRY_BLOCKED_BY_MOV_SS: u32 = 26;
    pub const INVALIDATION_OPERAND: u32 = 28;
}

/// VMX-abort indicators (SDM vol. 3, VMX Aborts).
pub mod abort {
    pub const SAVING_GUEST_MSRS: u32 = 1;
    pub const HOST_PDPTES: u32 = 2;
    pub const LOADING_HOST_MSRS: u32 = 4;
}
