//! CPUID feature bits: one row each.

/// A CPUID output register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    Eax = 0,
    Ebx = 1,
    Ecx = 2,
    Edx = 3,
}

/// Where a feature is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: Register,
    pub bit: u8,
}

macro_rules! features {
    ($($name:ident: $leaf:literal $subleaf:literal $register:ident $bit:literal $text:literal;)*) => {
        /// A feature that CPUID reports.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Feature { $($name),* }

        impl Feature {
            /// Every feature, where it is reported, and the name that options use.
            pub const TABLE: &'static [(Feature, Place, &'static str)] = &[$((
                Feature::$name,
                Place { leaf: $leaf, subleaf: $subleaf, register: Register::$register, bit: $bit },
                $text,
            )),*];
        }
    };
}

features! {
    FPU: 1 0 Edx 0 "fpu";
    VME: 1 0 Edx 1 "vme";
    DE: 1 0 Edx 2 "de";
    PSE: 1 0 Edx 3 "pse";
    TSC: 1 0 Edx 4 "tsc";
    MSR: 1 0 Edx 5 "msr";
    PAE: 1 0 Edx 6 "pae";
    MCE: 1 0 Edx 7 "mce";
    CX8: 1 0 Edx 8 "cx8";
    APIC: 1 0 Edx 9 "apic";
    SEP: 1 0 Edx 11 "sep";
    MTRR: 1 0 Edx 12 "mtrr";
    PGE: 1 0 Edx 13 "pge";
    MCA: 1 0 Edx 14 "mca";
    CMOV: 1 0 Edx 15 "cmov";
    PAT: 1 0 Edx 16 "pat";
    PSE36: 1 0 Edx 17 "pse36";
    CLFLUSH: 1 0 Edx 19 "clflush";
    MMX: 1 0 Edx 23 "mmx";
    FXSR: 1 0 Edx 24 "fxsr";
    SSE: 1 0 Edx 25 "sse";
    SSE2: 1 0 Edx 26 "sse2";
    SS: 1 0 Edx 27 "ss";
    SSE3: 1 0 Ecx 0 "pni";
    PCLMULQDQ: 1 0 Ecx 1 "pclmulqdq";
    MONITOR: 1 0 Ecx 3 "monitor";
    VMX: 1 0 Ecx 5 "vmx";
    SSSE3: 1 0 Ecx 9 "ssse3";
    FMA: 1 0 Ecx 12 "fma";
    CX16: 1 0 Ecx 13 "cx16";
    PDCM: 1 0 Ecx 15 "pdcm";
    PCID: 1 0 Ecx 17 "pcid";
    SSE4_1: 1 0 Ecx 19 "sse4_1";
    SSE4_2: 1 0 Ecx 20 "sse4_2";
    X2APIC: 1 0 Ecx 21 "x2apic";
    MOVBE: 1 0 Ecx 22 "movbe";
    POPCNT: 1 0 Ecx 23 "popcnt";
    TSC_DEADLINE: 1 0 Ecx 24 "tsc_deadline_timer";
    AES: 1 0 Ecx 25 "aes";
    XSAVE: 1 0 Ecx 26 "xsave";
    AVX: 1 0 Ecx 28 "avx";
    F16C: 1 0 Ecx 29 "f16c";
    RDRAND: 1 0 Ecx 30 "rdrand";
    ARAT: 6 0 Eax 2 "arat";
    APERFMPERF: 6 0 Ecx 0 "aperfmperf";
    FSGSBASE: 7 0 Ebx 0 "fsgsbase";
    TSC_ADJUST: 7 0 Ebx 1 "tsc_adjust";
    BMI1: 7 0 Ebx 3 "bmi1";
    AVX2: 7 0 Ebx 5 "avx2";
    SMEP: 7 0 Ebx 7 "smep";
    BMI2: 7 0 Ebx 8 "bmi2";
    ERMS: 7 0 Ebx 9 "erms";
    INVPCID: 7 0 Ebx 10 "invpcid";
    RDSEED: 7 0 Ebx 18 "rdseed";
    ADX: 7 0 Ebx 19 "adx";
    SMAP: 7 0 Ebx 20 "smap";
    CLFLUSHOPT: 7 0 Ebx 23 "clflushopt";
    CLWB: 7 0 Ebx 24 "clwb";
    SHA: 7 0 Ebx 29 "sha_ni";
    UMIP: 7 0 Ecx 2 "umip";
    PKU: 7 0 Ecx 3 "pku";
    WAITPKG: 7 0 Ecx 5 "waitpkg";
    GFNI: 7 0 Ecx 8 "gfni";
    VAES: 7 0 Ecx 9 "vaes";
    VPCLMULQDQ: 7 0 Ecx 10 "vpclmulqdq";
    LA57: 7 0 Ecx 16 "la57";
    RDPID: 7 0 Ecx 22 "rdpid";
    BUS_LOCK_DETECT: 7 0 Ecx 24 "bus_lock_detect";
    FSRM: 7 0 Edx 4 "fsrm";
    MD_CLEAR: 7 0 Edx 10 "md_clear";
    SERIALIZE: 7 0 Edx 14 "serialize";
    SPEC_CTRL: 7 0 Edx 26 "spec_ctrl";
    STIBP: 7 0 Edx 27 "stibp";
    L1D_FLUSH: 7 0 Edx 28 "flush_l1d";
    ARCH_CAPABILITIES: 7 0 Edx 29 "arch_capabilities";
    // IA32_CORE_CAPABILITIES, which says that split locks can be made to fault.
    CORE_CAPABILITIES: 7 0 Edx 30 "core_capabilities";
    SSBD: 7 0 Edx 31 "ssbd";
    // The bit that makes EAX[7:0] say version 4.
    ARCH_PERFMON: 0xa 0 Eax 2 "arch_perfmon";
    XSAVEOPT: 0xd 1 Eax 0 "xsaveopt";
    XSAVEC: 0xd 1 Eax 1 "xsavec";
    XGETBV1: 0xd 1 Eax 2 "xgetbv1";
    XSAVES: 0xd 1 Eax 3 "xsaves";
    HYPERVISOR: 1 0 Ecx 31 "hypervisor";
    KVM_PV_IPI: 0x4000_0001 0 Eax 11 "kvm_pv_ipi";
    LAHF: 0x8000_0001 0 Ecx 0 "lahf_lm";
    SVM: 0x8000_0001 0 Ecx 2 "svm";
    EXTAPIC: 0x8000_0001 0 Ecx 3 "extapic";
    CR8_LEGACY: 0x8000_0001 0 Ecx 4 "cr8_legacy";
    LZCNT: 0x8000_0001 0 Ecx 5 "abm";
    SSE4A: 0x8000_0001 0 Ecx 6 "sse4a";
    MISALIGNSSE: 0x8000_0001 0 Ecx 7 "misalignsse";
    PREFETCHW: 0x8000_0001 0 Ecx 8 "3dnowprefetch";
    TOPOEXT: 0x8000_0001 0 Ecx 22 "topoext";
    PERFCTR_CORE: 0x8000_0001 0 Ecx 23 "perfctr_core";
    SYSCALL: 0x8000_0001 0 Edx 11 "syscall";
    NX: 0x8000_0001 0 Edx 20 "nx";
    MMXEXT: 0x8000_0001 0 Edx 22 "mmxext";
    FXSR_OPT: 0x8000_0001 0 Edx 25 "fxsr_opt";
    PDPE1GB: 0x8000_0001 0 Edx 26 "pdpe1gb";
    RDTSCP: 0x8000_0001 0 Edx 27 "rdtscp";
    LM: 0x8000_0001 0 Edx 29 "lm";
    INVARIANT_TSC: 0x8000_0007 0 Edx 8 "constant_tsc";
    CLZERO: 0x8000_0008 0 Ebx 0 "clzero";
    XSAVEERPTR: 0x8000_0008 0 Ebx 2 "xsaveerptr";
    INVLPGB: 0x8000_0008 0 Ebx 3 "invlpgb";
    RDPRU: 0x8000_0008 0 Ebx 4 "rdpru";
    MCOMMIT: 0x8000_0008 0 Ebx 8 "mcommit";
    WBNOINVD: 0x8000_0008 0 Ebx 9 "wbnoinvd";
    AMD_IBPB: 0x8000_0008 0 Ebx 12 "ibpb";
    AMD_IBRS: 0x8000_0008 0 Ebx 14 "ibrs";
    AMD_STIBP: 0x8000_0008 0 Ebx 15 "amd_stibp";
    AMD_SSBD: 0x8000_0008 0 Ebx 24 "amd_ssbd";
    NO_NESTED_DATA_BREAKPOINTS: 0x8000_0021 0 Eax 0 "no_nested_data_bp";
    LFENCE_SERIALIZING: 0x8000_0021 0 Eax 2 "lfence_rdtsc";
    NULL_SELECTOR_CLEARS_BASE: 0x8000_0021 0 Eax 6 "null_sel_clr_base";
    AUTO_IBRS: 0x8000_0021 0 Eax 8 "autoibrs";
    NO_SMM_CTL_MSR: 0x8000_0021 0 Eax 9 "no_smm_ctl_msr";
    SBPB: 0x8000_0021 0 Eax 27 "sbpb";
    IBPB_BRTYPE: 0x8000_0021 0 Eax 28 "ibpb_brtype";
    SRSO_NO: 0x8000_0021 0 Eax 29 "srso_no";
    TSA_SQ_NO: 0x8000_0021 0 Ecx 1 "tsa_sq_no";
    TSA_L1_NO: 0x8000_0021 0 Ecx 2 "tsa_l1_no";
    PERFMON_V2: 0x8000_0022 0 Eax 0 "perfmon_v2";
}

impl Feature {
    /// A feature by the name that options use.
    pub fn by_name(name: &str) -> Option<Feature> {
        Self::TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    pub fn name(self) -> &'static str {
        Self::TABLE[self as usize].2
    }

    /// What this feature makes no sense without.
    pub fn needs(self) -> &'static [Feature] {
        use Feature::*;
        match self {
            SSE => &[FXSR],
            SSE2 => &[SSE],
            SSE3 => &[SSE2],
            SSSE3 => &[SSE3],
            SSE4_1 => &[SSSE3],
            SSE4_2 => &[SSE4_1],
            SSE4A => &[SSE3],
            AES | PCLMULQDQ | SHA | GFNI => &[SSE2],
            VAES => &[AVX, AES],
            VPCLMULQDQ => &[AVX, PCLMULQDQ],
            AVX => &[XSAVE, SSE4_2],
            AVX2 | FMA | F16C => &[AVX],
            XSAVEOPT | XSAVEC | XSAVES | XGETBV1 | XSAVEERPTR => &[XSAVE],
            PKU => &[XSAVE, LM],
            KVM_PV_IPI => &[HYPERVISOR, APIC],
            PCID | LA57 | PDPE1GB | FSGSBASE | LAHF | VMX | SVM => &[LM],
            LM => &[PAE, MSR, NX],
            INVPCID => &[PCID],
            PDCM => &[ARCH_PERFMON],
            PERFMON_V2 => &[PERFCTR_CORE],
            SBPB | IBPB_BRTYPE => &[AMD_IBPB],
            X2APIC | TSC_DEADLINE => &[APIC],
            WAITPKG => &[TSC],
            CMOV => &[FPU],
            _ => &[],
        }
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet([u64; 3]);

const _: () = assert!(Feature::TABLE.len() <= 192);

impl FeatureSet {
    pub const fn of(list: &[Feature]) -> FeatureSet {
        let mut set = FeatureSet([0; 3]);
        let mut i = 0;
        while i < list.len() {
            let n = list[i] as usize;
            set.0[n / 64] |= 1 << (n % 64);
            i += 1;
        }
        set
    }

    #[inline]
    pub const fn has(&self, feature: Feature) -> bool {
        self.0[feature as usize / 64] >> (feature as usize % 64) & 1 != 0
    }

    /// Set or clear one.
    pub fn set(&mut self, feature: Feature, on: bool) {
        let bit = 1 << (feature as usize % 64);
        let word = &mut self.0[feature as usize / 64];
        *word = if on { *word | bit } else { *word & !bit };
    }

    /// Add a feature and what it needs.
    pub fn add(&mut self, feature: Feature) {
        self.set(feature, true);
        for &needed in feature.needs() {
            self.add(needed);
        }
    }

    /// Remove a feature and what needs it.
    pub fn remove(&mut self, feature: Feature) {
        self.set(feature, false);
        for &(other, ..) in Feature::TABLE {
            if self.has(other) && other.needs().contains(&feature) {
                self.remove(other);
            }
        }
    }

    pub const fn union(self, other: FeatureSet) -> FeatureSet {
        FeatureSet([self.0[0] | other.0[0], self.0[1] | other.0[1], self.0[2] | other.0[2]])
    }

    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::TABLE.iter().map(|row| row.0).filter(move |&f| self.has(f))
    }

    /// The bits of a CPUID output register.
    pub fn bits(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        Feature::TABLE
            .iter()
            .filter(|(f, p, _)| p.leaf == leaf && p.subleaf == subleaf && p.register == register && self.has(*f))
            .fold(0, |bits, (_, p, _)| bits | 1 << p.bit)
    }
}
