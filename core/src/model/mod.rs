//! Processor models: what CPUID, the capability MSRs and vendor rules say.

mod feature;
mod leaves;

pub use feature::{Feature, FeatureSet, Place, Register};
pub use leaves::{ASIDS, Cache, CpuidInputs, INVLPGB_COUNT_MAX, Topology};

use thiserror::Error;

use crate::bits::{Cr4, Efer};
use crate::state::Vendor;
use crate::svm_features::SvmFeatures;
use crate::vmx_features::VmxFeatures;
use crate::xsave;

/// Why a model description was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ModelError {
    #[error("no processor model {name:?}; there are: {}", Model::names().join(", "))]
    UnknownModel { name: String },
    #[error("no processor feature {name:?}; CPUID features: {}; VMX: {}; SVM: {}",
        join(Feature::TABLE.iter().map(|row| row.2)),
        join(VmxFeatures::NAMES.iter().map(|row| row.0)),
        join(SvmFeatures::NAMES.iter().map(|row| row.0)))]
    UnknownFeature { name: String },
    #[error("{0:?} must start with + or - (as in \"skylake-server,-ept,+la57\")")]
    NoSign(String),
    #[error("{feature:?} is a feature of {belongs}, which {model} does not have")]
    OtherVendor { feature: String, belongs: &'static str, model: &'static str },
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(" ")
}

/// A processor model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub name: &'static str,
    pub vendor: Vendor,
    /// CPUID leaf 1 EAX.
    pub signature: u32,
    pub brand: &'static str,
    pub features: FeatureSet,
    pub vmx: VmxFeatures,
    pub svm: SvmFeatures,
    /// MAXPHYADDR.
    pub physical_bits: u32,
    pub max_leaf: u32,
    pub max_extended_leaf: u32,
    /// Kilobytes of the L2 and L3 caches.
    pub l2_kib: u32,
    pub l3_kib: u32,
}

impl Default for Model {
    fn default() -> Model {
        Model::skylake_server()
    }
}

use Feature::*;

/// What every model has: x86-64-v3 and the system features around it.
const COMMON: FeatureSet = FeatureSet::of(&[
    FPU,
    VME,
    DE,
    PSE,
    TSC,
    MSR,
    PAE,
    MCE,
    CX8,
    APIC,
    SEP,
    MTRR,
    PGE,
    MCA,
    CMOV,
    PAT,
    PSE36,
    CLFLUSH,
    MMX,
    FXSR,
    SSE,
    SSE2,
    SSE3,
    PCLMULQDQ,
    MONITOR,
    SSSE3,
    FMA,
    CX16,
    SSE4_1,
    SSE4_2,
    MOVBE,
    POPCNT,
    AES,
    XSAVE,
    AVX,
    F16C,
    RDRAND,
    ARAT,
    FSGSBASE,
    BMI1,
    AVX2,
    SMEP,
    BMI2,
    ERMS,
    INVPCID,
    PCID,
    RDSEED,
    ADX,
    SMAP,
    CLFLUSHOPT,
    CLWB,
    UMIP,
    PKU,
    XSAVEOPT,
    XSAVEC,
    XGETBV1,
    XSAVES,
    LAHF,
    LZCNT,
    PREFETCHW,
    SYSCALL,
    NX,
    PDPE1GB,
    RDTSCP,
    LM,
    INVARIANT_TSC,
    X2APIC,
]);

const INTEL: FeatureSet = FeatureSet::of(&[
    SS,
    VMX,
    PDCM,
    ARCH_PERFMON,
    TSC_DEADLINE,
    TSC_ADJUST,
    MD_CLEAR,
    SPEC_CTRL,
    STIBP,
    L1D_FLUSH,
    ARCH_CAPABILITIES,
    SSBD,
]);

const AMD: FeatureSet = FeatureSet::of(&[
    SVM,
    CR8_LEGACY,
    SSE4A,
    MISALIGNSSE,
    TOPOEXT,
    PERFCTR_CORE,
    MMXEXT,
    FXSR_OPT,
    CLZERO,
    XSAVEERPTR,
    WBNOINVD,
    AMD_IBPB,
    AMD_IBRS,
    AMD_STIBP,
    AMD_SSBD,
    NO_NESTED_DATA_BREAKPOINTS,
    LFENCE_SERIALIZING,
    NO_SMM_CTL_MSR,
    NULL_SELECTOR_CLEARS_BASE,
    AUTO_IBRS,
    SBPB,
    IBPB_BRTYPE,
    SRSO_NO,
    TSA_SQ_NO,
    TSA_L1_NO,
    SHA,
    VAES,
    VPCLMULQDQ,
    RDPID,
    FSRM,
]);

impl Model {
    /// Names of all models.
    pub fn names() -> &'static [&'static str] {
        &["skylake-server", "max-intel", "epyc-milan", "max-amd"]
    }

    /// A Skylake-SP without AVX-512 and TSX, and without the holes that microcode had to plug.
    pub fn skylake_server() -> Model {
        Model {
            name: "skylake-server",
            vendor: Vendor::Intel,
            signature: 0x0005_0654,
            brand: "Intel(R) Xeon(R) Processor (Skylake)",
            features: COMMON.union(INTEL),
            vmx: VmxFeatures::skylake_server(),
            svm: SvmFeatures::empty(),
            physical_bits: 46,
            max_leaf: 0x16,
            max_extended_leaf: 0x8000_0008,
            l2_kib: 1024,
            l3_kib: 16 << 10,
        }
    }

    /// The richest Intel: a Sapphire Rapids without AVX-512, AMX, CET and TSX.
    pub fn max_intel() -> Model {
        Model {
            name: "max-intel",
            signature: 0x0008_06f8,
            brand: "Intel(R) Xeon(R) Processor (maximal)",
            features: COMMON.union(INTEL).union(FeatureSet::of(&[
                SHA,
                VAES,
                VPCLMULQDQ,
                GFNI,
                LA57,
                RDPID,
                FSRM,
                SERIALIZE,
                WBNOINVD,
                WAITPKG,
                BUS_LOCK_DETECT,
                CORE_CAPABILITIES,
            ])),
            vmx: VmxFeatures::everything(),
            physical_bits: 52,
            max_leaf: 0x1f,
            l2_kib: 2048,
            ..Model::skylake_server()
        }
    }

    /// An EPYC of the third generation.
    pub fn epyc_milan() -> Model {
        Model {
            name: "epyc-milan",
            vendor: Vendor::Amd,
            signature: 0x00a0_0f11,
            brand: "AMD EPYC Processor (Milan)",
            features: COMMON.union(AMD),
            vmx: VmxFeatures::empty(),
            svm: SvmFeatures::milan(),
            physical_bits: 48,
            max_leaf: 0x10,
            max_extended_leaf: 0x8000_0021,
            l2_kib: 512,
            l3_kib: 32 << 10,
        }
    }

    /// The richest AMD.
    pub fn max_amd() -> Model {
        Model {
            name: "max-amd",
            signature: 0x00a1_0f11,
            brand: "AMD EPYC Processor (maximal)",
            features: COMMON.union(AMD).union(FeatureSet::of(&[LA57, GFNI, PERFMON_V2, RDPRU, MCOMMIT, INVLPGB])),
            svm: SvmFeatures::all(),
            physical_bits: 52,
            max_extended_leaf: 0x8000_0022,
            l2_kib: 1024,
            ..Model::epyc_milan()
        }
    }

    /// A model by name.
    pub fn by_name(name: &str) -> Option<Model> {
        Some(match name {
            "skylake-server" => Model::skylake_server(),
            "max-intel" => Model::max_intel(),
            "epyc-milan" => Model::epyc_milan(),
            "max-amd" => Model::max_amd(),
            _ => return None,
        })
    }

    /// A model and changes to it: `skylake-server,-ept,+la57`. Switching a feature off takes along what needs it, switching
    /// one on what it needs.
    pub fn parse(text: &str) -> Result<Model, ModelError> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let mut model = Model::by_name(name).ok_or_else(|| ModelError::UnknownModel { name: name.to_owned() })?;
        for part in parts.filter(|p| !p.is_empty()) {
            let (on, feature) = match part.split_at_checked(1) {
                Some(("+", f)) => (true, f),
                Some(("-", f)) => (false, f),
                _ => return Err(ModelError::NoSign(part.to_owned())),
            };
            model.switch(feature, on)?;
        }
        if !model.has(ARCH_PERFMON) {
            model.vmx -= VmxFeatures::LOAD_PERF_GLOBAL_CTRL;
        }
        if !model.has(WAITPKG) {
            model.vmx -= VmxFeatures::USER_WAIT_PAUSE;
        }
        model.vmx = if model.has(VMX) { model.vmx.consistent() } else { VmxFeatures::empty() };
        model.svm = if model.has(SVM) { model.svm.consistent() } else { SvmFeatures::empty() };
        Ok(model)
    }

    fn switch(&mut self, name: &str, on: bool) -> Result<(), ModelError> {
        let other = |belongs| Err(ModelError::OtherVendor { feature: name.to_owned(), belongs, model: self.name });
        let intel = self.vendor == Vendor::Intel;
        if let Some(feature) = Feature::by_name(name) {
            match feature {
                VMX if on && !intel => return other("Intel"),
                SVM if on && intel => return other("AMD"),
                _ if on => self.features.add(feature),
                _ => self.features.remove(feature),
            }
        } else if let Some(feature) = VmxFeatures::by_name(name) {
            if !intel {
                return if on { other("Intel's VMX") } else { Ok(()) };
            }
            self.vmx.set(feature, on);
        } else if let Some(feature) = SvmFeatures::by_name(name) {
            if intel {
                return if on { other("AMD's SVM") } else { Ok(()) };
            }
            self.svm.set(feature, on);
        } else {
            return Err(ModelError::UnknownFeature { name: name.to_owned() });
        }
        Ok(())
    }

    #[inline]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// Bits of linear addresses that are looked at.
    pub fn linear_bits(&self) -> u32 {
        if self.has(LA57) { 57 } else { 48 }
    }

    /// The CR4 bits that exist.
    pub fn cr4_bits(&self) -> u64 {
        let table = [
            (VME, Cr4::VME | Cr4::PVI),
            (TSC, Cr4::TSD),
            (DE, Cr4::DE),
            (PSE, Cr4::PSE),
            (PAE, Cr4::PAE),
            (MCE, Cr4::MCE),
            (PGE, Cr4::PGE),
            (FXSR, Cr4::OSFXSR),
            (SSE, Cr4::OSXMMEXCPT),
            (UMIP, Cr4::UMIP),
            (LA57, Cr4::LA57),
            (VMX, Cr4::VMXE),
            (FSGSBASE, Cr4::FSGSBASE),
            (PCID, Cr4::PCIDE),
            (XSAVE, Cr4::OSXSAVE),
            (SMEP, Cr4::SMEP),
            (SMAP, Cr4::SMAP),
            (PKU, Cr4::PKE),
        ];
        table.iter().fold(Cr4::PCE.bits(), |bits, &(f, b)| if self.has(f) { bits | b.bits() } else { bits })
    }

    /// The EFER bits that may be written.
    pub fn efer_bits(&self) -> u64 {
        let mut bits = Efer::empty();
        if self.has(SYSCALL) {
            bits |= Efer::SCE;
        }
        if self.has(LM) {
            bits |= Efer::LME | Efer::LMA;
        }
        if self.has(NX) {
            bits |= Efer::NXE;
        }
        if self.has(SVM) {
            bits |= Efer::SVME;
        }
        if self.has(FXSR_OPT) {
            bits |= Efer::FFXSR;
        }
        if self.has(MCOMMIT) {
            bits |= Efer::MCOMMIT;
        }
        if self.has(AUTO_IBRS) {
            bits |= Efer::AUTOIBRS;
        }
        bits.bits()
    }

    /// The XCR0 bits that exist.
    pub fn xcr0_bits(&self) -> u64 {
        let mut bits = xsave::bit::X87 | xsave::bit::SSE;
        if self.has(AVX) {
            bits |= xsave::bit::AVX;
        }
        if self.has(PKU) {
            bits |= xsave::bit::PKRU;
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_order_is_the_enum_order() {
        for (i, row) in Feature::TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
        }
    }

    #[test]
    fn names_are_unique_over_all_sets() {
        let mut names: Vec<_> = Feature::TABLE.iter().map(|r| r.2).collect();
        names.extend(VmxFeatures::NAMES.iter().map(|r| r.0));
        names.extend(SvmFeatures::NAMES.iter().map(|r| r.0));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn parse_switches_with_dependencies() {
        let m = Model::parse("skylake-server,-avx,-ept").unwrap();
        assert!(!m.has(AVX) && !m.has(AVX2) && !m.has(FMA) && m.has(SSE4_2));
        assert!(!m.vmx.contains(VmxFeatures::EPT) && !m.vmx.contains(VmxFeatures::UNRESTRICTED_GUEST));
        assert_eq!(m.xcr0_bits() & xsave::bit::AVX, 0);
        assert!(Model::parse("epyc-milan,+la57").unwrap().has(LA57));
        assert!(matches!(Model::parse("pentium"), Err(ModelError::UnknownModel { .. })));
        assert!(matches!(Model::parse("max-amd,-nonsense"), Err(ModelError::UnknownFeature { .. })));
        assert!(matches!(Model::parse("max-amd,avx"), Err(ModelError::NoSign(_))));
        assert!(matches!(Model::parse("max-amd,+ept"), Err(ModelError::OtherVendor { .. })));
    }

    #[test]
    fn every_model_is_consistent() {
        for name in Model::names() {
            let m = Model::by_name(name).unwrap();
            for f in m.features.iter() {
                assert!(f.needs().iter().all(|&n| m.has(n)), "{name}: {} lacks what it needs", f.name());
            }
            assert_eq!(Model::parse(name).unwrap(), m, "{name}");
        }
    }
}
