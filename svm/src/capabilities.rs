//! What VMRUN's checks need to know of the processor model, and the rules of SVM's own MSRs.

use undervisor_core::{Cr4, Efer, SvmFeatures};

use crate::controls::vm_cr;

/// A model's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub features: SvmFeatures,
    pub physical_bits: u8,
    pub long_mode: bool,
    /// CR4 bits that may be set.
    pub cr4: Cr4,
    /// EFER bits that may be set.
    pub efer: Efer,
    /// Linear addresses have 57 bits.
    pub la57: bool,
}

impl Limits {
    /// Whether a 4 KiB-aligned physical address of the model.
    pub fn page(&self, address: u64) -> bool {
        address & 0xfff == 0 && address >> self.physical_bits == 0
    }

    /// An address made canonical, as VMRUN and VMLOAD do with segment bases.
    pub fn canonical(&self, address: u64) -> u64 {
        let shift = if self.la57 { 7 } else { 16 };
        ((address << shift) as i64 >> shift) as u64
    }
}

/// WRMSR VM_CR: the new value, or `None`: #GP(0) (APM vol. 2, VM_CR MSR; Enabling SVM).
pub fn write_vm_cr(old: u64, value: u64, svme: bool, features: SvmFeatures) -> Option<u64> {
    if value & !vm_cr::DEFINED != 0 || (value & vm_cr::SVMDIS != 0 && svme) {
        return None;
    }
    // LOCK makes itself and SVMDIS read-only, which they always are without SVM-Lock; only SVM_KEY or a reset clears it.
    let locked = old & vm_cr::LOCK != 0 || !features.contains(SvmFeatures::SVM_LOCK);
    let kept = if locked { vm_cr::LOCK | vm_cr::SVMDIS } else { 0 };
    Some(value & !kept | old & kept)
}

/// WRMSR TSC_RATIO: bits 63:40 are reserved (APM vol. 2, TSC Ratio MSR).
pub const TSC_RATIO_RESERVED: u64 = 0xffff_ff00_0000_0000;
/// A ratio of one.
pub const TSC_RATIO_ONE: u64 = 1 << 32;

/// A TSC as a guest sees it: scaled by the 8.32 ratio, then offset.
pub fn guest_tsc(tsc: u64, ratio: u64, offset: u64) -> u64 {
    let scaled = if ratio == TSC_RATIO_ONE { tsc } else { ((tsc as u128 * ratio as u128) >> 32) as u64 };
    scaled.wrapping_add(offset)
}
