//! #VMEXIT codes (APM vol. 2, Appendix C: SVM Intercept Exit Codes).

pub const CR0_READ: u64 = 0x00;
pub const CR0_WRITE: u64 = 0x10;
pub const DR0_READ: u64 = 0x20;
pub const DR0_WRITE: u64 = 0x30;
pub const EXCEPTION_0: u64 = 0x40;
/// Codes from here on have a bit in the third intercept word: bit 0 is INTR.
pub const INTR: u64 = 0x60;
pub const NMI: u64 = 0x61;
pub const SMI: u64 = 0x62;
pub const INIT: u64 = 0x63;
pub const VINTR: u64 = 0x64;
pub const CR0_SEL_WRITE: u64 = 0x65;
pub const IDTR_READ: u64 = 0x66;
pub const GDTR_READ: u64 = 0x67;
pub const LDTR_READ: u64 = 0x68;
pub const TR_READ: u64 = 0x69;
pub const IDTR_WRITE: u64 = 0x6a;
pub const GDTR_WRITE: u64 = 0x6b;
pub const LDTR_WRITE: u64 = 0x6c;
pub const TR_WRITE: u64 = 0x6d;
pub const RDTSC: u64 = 0x6e;
pub const RDPMC: u64 = 0x6f;
pub const PUSHF: u64 = 0x70;
pub const POPF: u64 = 0x71;
pub const CPUID: u64 = 0x72;
pub const RSM: u64 = 0x73;
pub const IRET: u64 = 0x74;
pub const SWINT: u64 = 0x75;
pub const INVD: u64 = 0x76;
pub const PAUSE: u64 = 0x77;
pub const HLT: u64 = 0x78;
pub const INVLPG: u64 = 0x79;
pub const INVLPGA: u64 = 0x7a;
pub const IOIO: u64 = 0x7b;
pub const MSR: u64 = 0x7c;
pub const TASK_SWITCH: u64 = 0x7d;
pub const FERR_FREEZE: u64 = 0x7e;
pub const SHUTDOWN: u64 = 0x7f;
/// Codes from here on have a bit in the fourth intercept word.
pub const VMRUN: u64 = 0x80;
pub const VMMCALL: u64 = 0x81;
pub const VMLOAD: u64 = 0x82;
pub const VMSAVE: u64 = 0x83;
pub const STGI: u64 = 0x84;
pub const CLGI: u64 = 0x85;
pub const SKINIT: u64 = 0x86;
pub const RDTSCP: u64 = 0x87;
pub const ICEBP: u64 = 0x88;
pub const WBINVD: u64 = 0x89;
pub const MONITOR: u64 = 0x8a;
pub const MWAIT: u64 = 0x8b;
pub const MWAIT_CONDITIONAL: u64 = 0x8c;
pub const XSETBV: u64 = 0x8d;
pub const RDPRU: u64 = 0x8e;
pub const EFER_WRITE_TRAP: u64 = 0x8f;
pub const CR0_WRITE_TRAP: u64 = 0x90;
/// Codes from here on have a bit in the fifth intercept word.
pub const INVLPGB: u64 = 0xa0;
pub const INVLPGB_ILLEGAL: u64 = 0xa1;
pub const INVPCID: u64 = 0xa2;
pub const MCOMMIT: u64 = 0xa3;
pub const TLBSYNC: u64 = 0xa4;
pub const BUS_LOCK: u64 = 0xa5;
pub const IDLE_HLT: u64 = 0xa6;
pub const NPF: u64 = 0x400;
pub const AVIC_INCOMPLETE_IPI: u64 = 0x401;
pub const AVIC_NOACCEL: u64 = 0x402;
pub const INVALID: u64 = u64::MAX;

/// Name of an exit code, for messages and statistics.
pub fn name(code: u64) -> &'static str {
    match code {
        0x00..=0x0f => "CR read",
        0x10..=0x1f => "CR write",
        0x20..=0x2f => "DR read",
        0x30..=0x3f => "DR write",
        0x40..=0x5f => "exception",
        INTR => "INTR",
        NMI => "NMI",
        SMI => "SMI",
        INIT => "INIT",
        VINTR => "VINTR",
        CR0_SEL_WRITE => "selective CR0 write",
        IDTR_READ..=TR_WRITE => "descriptor table",
        RDTSC => "RDTSC",
        RDPMC => "RDPMC",
        PUSHF => "PUSHF",
        POPF => "POPF",
        CPUID => "CPUID",
        RSM => "RSM",
        IRET => "IRET",
        SWINT => "INT n",
        INVD => "INVD",
        PAUSE => "PAUSE",
        HLT => "HLT",
        INVLPG => "INVLPG",
        INVLPGA => "INVLPGA",
        IOIO => "I/O",
        MSR => "MSR",
        TASK_SWITCH => "task switch",
        FERR_FREEZE => "FERR freeze",
        SHUTDOWN => "shutdown",
        VMRUN => "VMRUN",
        VMMCALL => "VMMCALL",
        VMLOAD => "VMLOAD",
        VMSAVE => "VMSAVE",
        STGI => "STGI",
        CLGI => "CLGI",
        SKINIT => "SKINIT",
        RDTSCP => "RDTSCP",
        ICEBP => "INT1",
        WBINVD => "WBINVD",
        MONITOR => "MONITOR",
        MWAIT | MWAIT_CONDITIONAL => "MWAIT",
        XSETBV => "XSETBV",
        RDPRU => "RDPRU",
        EFER_WRITE_TRAP => "EFER write trap",
        0x90..=0x9f => "CR write trap",
        INVLPGB | INVLPGB_ILLEGAL => "INVLPGB",
        INVPCID => "INVPCID",
        MCOMMIT => "MCOMMIT",
        TLBSYNC => "TLBSYNC",
        BUS_LOCK => "bus lock",
        IDLE_HLT => "idle HLT",
        NPF => "nested page fault",
        AVIC_INCOMPLETE_IPI => "AVIC incomplete IPI",
        AVIC_NOACCEL => "AVIC no acceleration",
        INVALID => "invalid guest state",
        _ => "unknown",
    }
}
