//! AVIC as the processor meets it.

use crate::cpu::Cpu;
use undervisor_core::Event;

impl Cpu {
    pub(super) fn svm_avic(&self) -> bool {
        false
    }
    pub(super) fn svm_avic_take(&mut self) -> Option<Event> {
        None
    }
    pub(super) fn svm_avic_tpr(&self) -> u8 {
        0
    }
    pub(super) fn svm_avic_set_tpr(&mut self, _: u8) {}
    pub(super) fn svm_doorbell(&mut self, _: u32) {}
}
