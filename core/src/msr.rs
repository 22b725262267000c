//! MSR numbers (SDM vol. 4; APM vol. 2, MSR cross-reference).

pub const IA32_TSC: u32 = 0x10;
pub const IA32_PLATFORM_ID: u32 = 0x17;
/// IA32_PMC0, as Pentium Pro had it: 32 bits written, sign-extended.
pub const IA32_PMC0: u32 = 0xc1;
pub const IA32_PERFEVTSEL0: u32 = 0x186;
pub const IA32_FIXED_CTR0: u32 = 0x309;
pub const IA32_PERF_CAPABILITIES: u32 = 0x345;
pub const IA32_FIXED_CTR_CTRL: u32 = 0x38d;
pub const IA32_PERF_GLOBAL_STATUS: u32 = 0x38e;
pub const IA32_PERF_GLOBAL_STATUS_RESET: u32 = 0x390;
pub const IA32_PERF_GLOBAL_STATUS_SET: u32 = 0x391;
pub const IA32_PERF_GLOBAL_INUSE: u32 = 0x392;
/// IA32_A_PMC0: the same counter in full width.
pub const IA32_A_PMC0: u32 = 0x4c1;
pub const IA32_APIC_BASE: u32 = 0x1b;
/// MEMORY_CTRL, once TEST_CTRL.
pub const MEMORY_CTRL: u32 = 0x33;
pub const IA32_FEATURE_CONTROL: u32 = 0x3a;
pub const IA32_TSC_ADJUST: u32 = 0x3b;
pub const IA32_SPEC_CTRL: u32 = 0x48;
pub const IA32_PRED_CMD: u32 = 0x49;
pub const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
pub const IA32_BIOS_SIGN_ID: u32 = 0x8b;
pub const IA32_CORE_CAPABILITIES: u32 = 0xcf;
pub const IA32_UMWAIT_CONTROL: u32 = 0xe1;
pub const IA32_MPERF: u32 = 0xe7;
pub const IA32_APERF: u32 = 0xe8;
pub const IA32_MTRRCAP: u32 = 0xfe;
pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
pub const IA32_FLUSH_CMD: u32 = 0x10b;
pub const IA32_SYSENTER_CS: u32 = 0x174;
pub const IA32_SYSENTER_ESP: u32 = 0x175;
pub const IA32_SYSENTER_EIP: u32 = 0x176;
pub const IA32_MCG_CAP: u32 = 0x179;
pub const IA32_MCG_STATUS: u32 = 0x17a;
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
pub const IA32_DEBUGCTL: u32 = 0x1d9;
pub const IA32_MTRR_PHYSBASE0: u32 = 0x200;
pub const IA32_MTRR_FIX64K: u32 = 0x250;
pub const IA32_PAT: u32 = 0x277;
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
pub const IA32_PERF_GLOBAL_CTRL: u32 = 0x38f;
pub const IA32_VMX_BASIC: u32 = 0x480;
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// First x2APIC register; the last is 0x8ff.
pub const X2APIC_BASE: u32 = 0x800;
pub const IA32_BNDCFGS: u32 = 0xd90;
pub const IA32_XSS: u32 = 0xda0;
pub const IA32_EFER: u32 = 0xc000_0080;
pub const IA32_STAR: u32 = 0xc000_0081;
pub const IA32_LSTAR: u32 = 0xc000_0082;
pub const IA32_CSTAR: u32 = 0xc000_0083;
pub const IA32_FMASK: u32 = 0xc000_0084;
pub const IA32_FS_BASE: u32 = 0xc000_0100;
pub const IA32_GS_BASE: u32 = 0xc000_0101;
pub const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const IA32_TSC_AUX: u32 = 0xc000_0103;
/// AMD TSC ratio.
pub const AMD_TSC_RATIO: u32 = 0xc000_0104;
pub const AMD_SYSCFG: u32 = 0xc001_0010;
pub const AMD_HWCR: u32 = 0xc001_0015;
pub const AMD_VM_CR: u32 = 0xc001_0114;
pub const AMD_VM_HSAVE_PA: u32 = 0xc001_0117;
/// AMD's four legacy counters, and their six extended ones in turn with the selects.
pub const AMD_PERF_EVT_SEL0: u32 = 0xc001_0000;
pub const AMD_PERF_CTR0: u32 = 0xc001_0004;
pub const AMD_CORE_PERF_EVT_SEL0: u32 = 0xc001_0200;
pub const AMD_PERF_GLOBAL_STATUS: u32 = 0xc000_0300;
pub const AMD_PERF_GLOBAL_CTL: u32 = 0xc000_0301;
pub const AMD_PERF_GLOBAL_STATUS_CLR: u32 = 0xc000_0302;
