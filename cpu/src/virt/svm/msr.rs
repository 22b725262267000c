//! SVM's MSRs (APM vol. 2, SVM Related MSRs), and the guest's TSC.

use undervisor_core::{Efer, SvmFeatures, msr};
use undervisor_svm::Field;
use undervisor_svm::capabilities::{TSC_RATIO_RESERVED, guest_tsc, write_vm_cr};
use undervisor_svm::controls::vm_cr;

use crate::cpu::{Cpu, Exec};

/// IGNNE.
const IGNNE: u32 = 0xc001_0115;
/// SVM_KEY.
const SVM_KEY: u32 = 0xc001_0118;
/// AVIC doorbell: an APIC number whose processor should look at its virtual interrupts.
const DOORBELL: u32 = 0xc001_011b;

impl Cpu {
    fn svm_exists(&self) -> bool {
        self.model.has(undervisor_core::Feature::SVM)
    }

    pub(in crate::virt) fn svm_read_msr(&mut self, number: u32) -> Exec<Option<u64>> {
        let m = &self.state.msrs;
        Ok(match number {
            msr::AMD_VM_CR if self.svm_exists() => Some(m.vm_cr),
            msr::AMD_VM_HSAVE_PA if self.svm_exists() => Some(m.vm_hsave_pa),
            msr::AMD_TSC_RATIO if self.svm_has(SvmFeatures::TSC_RATE_MSR) => Some(m.tsc_ratio),
            IGNNE if self.svm_exists() => Some(m.other.get(&IGNNE).copied().unwrap_or(0)),
            // "Reading the SVM_KEY MSR always returns zero."
            SVM_KEY if self.svm_exists() => Some(0),
            DOORBELL if self.svm_has(SvmFeatures::AVIC) => return Err(self.gp(0)),
            0x800..=0x8ff => return self.svm_x2avic_read(number),
            _ => None,
        })
    }

    pub(in crate::virt) fn svm_write_msr(&mut self, number: u32, value: u64) -> Exec<bool> {
        match number {
            msr::AMD_VM_CR if self.svm_exists() => {
                let svme = self.state.efer.contains(Efer::SVME);
                match write_vm_cr(self.state.msrs.vm_cr, value, svme, self.model.svm) {
                    Some(new) => {
                        self.state.msrs.vm_cr = new;
                        self.a20_changed();
                    }
                    None => return Err(self.gp(0)),
                }
            }
            msr::AMD_VM_HSAVE_PA if self.svm_exists() => {
                if !self.svm_limits().page(value) {
                    return Err(self.gp(0));
                }
                self.state.msrs.vm_hsave_pa = value;
            }
            msr::AMD_TSC_RATIO if self.svm_has(SvmFeatures::TSC_RATE_MSR) => {
                if value & TSC_RATIO_RESERVED != 0 {
                    return Err(self.gp(0));
                }
                self.state.msrs.tsc_ratio = value;
            }
            IGNNE if self.svm_exists() => {
                if value & !1 != 0 {
                    return Err(self.gp(0));
                }
                self.state.msrs.other.insert(IGNNE, value);
            }
            SVM_KEY if self.svm_has(SvmFeatures::SVM_LOCK) => self.svm_write_key(value),
            DOORBELL if self.svm_has(SvmFeatures::AVIC) => {
                if value >> 32 != 0 {
                    return Err(self.gp(0));
                }
                self.svm_doorbell(value as u32);
            }
            0x800..=0x8ff => return self.svm_x2avic_write(number, value),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// APM vol. 2, SVM_KEY MSR: unlocked, it sets the key; locked, the key unlocks, unless it is zero.
    fn svm_write_key(&mut self, value: u64) {
        let m = &mut self.state.msrs;
        if m.vm_cr & vm_cr::LOCK == 0 {
            m.other.insert(SVM_KEY, value);
        } else if value != 0 && m.other.get(&SVM_KEY) == Some(&value) {
            m.vm_cr &= !vm_cr::LOCK;
        }
    }

    /// Whether IGNNE is asserted: by its MSR, once HWCR says that this stands for the pin (APM vol. 2, IGNNE MSR).
    pub(crate) fn svm_ignores_numeric_errors(&self) -> bool {
        const EMULATION: u64 = 1 << 8;
        let m = &self.state.msrs;
        m.hwcr & EMULATION != 0 && m.other.get(&IGNNE) == Some(&1)
    }

    /// MPERF as a guest reads it: scaled as the TSC is, without its offset.
    pub(in crate::virt) fn svm_mperf(&self, clock: u64) -> u64 {
        if self.svm_has(SvmFeatures::TSC_RATE_MSR) { guest_tsc(clock, self.state.msrs.tsc_ratio, 0) } else { clock }
    }

    pub(in crate::virt) fn svm_tsc(&self, tsc: u64) -> u64 {
        let scaled = self.svm_has(SvmFeatures::TSC_RATE_MSR);
        let ratio = if scaled { self.state.msrs.tsc_ratio } else { undervisor_svm::capabilities::TSC_RATIO_ONE };
        guest_tsc(tsc, ratio, self.virt.svm.vmcb.get(Field::TSC_OFFSET))
    }
}
