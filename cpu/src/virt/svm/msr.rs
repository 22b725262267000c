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
            IGNNE | SVM_KEY if self.svm_exists() => Some(0),
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
            IGNNE if self.svm_exists() => {}
            // No key has been set, so any key unlocks.
            SVM_KEY if self.svm_has(SvmFeatures::SVM_LOCK) => self.state.msrs.vm_cr &= !vm_cr::LOCK,
            DOORBELL if self.svm_has(SvmFeatures::AVIC) => self.svm_doorbell(value as u32),
            0x800..=0x8ff => return self.svm_x2avic_write(number, value),
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(in crate::virt) fn svm_tsc(&self, tsc: u64) -> u64 {
        let scaled = self.svm_has(SvmFeatures::TSC_RATE_MSR);
        let ratio = if scaled { self.state.msrs.tsc_ratio } else { undervisor_svm::capabilities::TSC_RATIO_ONE };
        guest_tsc(tsc, ratio, self.virt.svm.vmcb.get(Field::TSC_OFFSET))
    }
}
