//! SVM's side of the seam: the semantics of the svm crate where the processor meets them.

mod avic;
mod boundary;
pub(crate) mod bus_lock;
mod enter;
pub mod instructions;
mod intercept;
mod leave;
mod msr;
#[cfg(test)]
mod tests;

use undervisor_core::{SvmFeatures, bits::Cr4, bits::Efer};
use undervisor_mmu::Npt;
use undervisor_svm::controls::{nested, v_intr};
use undervisor_svm::entry::Host;
use undervisor_svm::{Field, Limits, Vmcb};

use crate::cpu::Cpu;

/// SVM state of a processor.
#[derive(Debug)]
pub struct SvmSeam {
    /// The global interrupt flag.
    pub gif: bool,
    /// The VMCB that ran last, as cached.
    pub vmcb: Vmcb,
    /// State to go back to.
    pub host: Host,
    /// PAUSEs left before the next one exits.
    pause_left: u16,
    /// When the last PAUSE was, in TSC ticks.
    pause_at: u64,
    /// Nested paging as it last was, prepared.
    npt: Npt,
    limits: Option<Limits>,
    /// Name of the check that the last refused VMRUN failed.
    pub refused: Option<&'static str>,
    /// The running guest's bus locks are counted.
    pub bus_locks: bool,
    /// Backing page of the running guest's AVIC, or all ones.
    avic_page: u64,
    /// An exit due when the instruction in flight is complete.
    trap: Option<undervisor_svm::exit::ExitInformation>,
    /// The instruction in flight has a block of its own: what it does to the APIC may exit right after it.
    alone: bool,
    /// Exits by code, up to 0FFh.
    pub exits: [u64; 256],
}

impl Default for SvmSeam {
    fn default() -> SvmSeam {
        SvmSeam {
            gif: true,
            vmcb: Vmcb::default(),
            host: Host::default(),
            pause_left: 0,
            pause_at: 0,
            npt: Npt::default(),
            limits: None,
            refused: None,
            bus_locks: false,
            avic_page: avic::NO_PAGE,
            trap: None,
            alone: false,
            exits: [0; 256],
        }
    }
}

impl Cpu {
    #[inline]
    pub(super) fn svm_has(&self, feature: SvmFeatures) -> bool {
        self.model.svm.contains(feature)
    }

    /// The model's limits, worked out once.
    pub(crate) fn svm_limits(&mut self) -> Limits {
        if let Some(limits) = self.virt.svm.limits {
            return limits;
        }
        let m = &self.model;
        let limits = Limits {
            features: m.svm,
            physical_bits: m.physical_bits as u8,
            long_mode: m.has(undervisor_core::Feature::LM),
            cr4: Cr4::from_bits_retain(m.cr4_bits()),
            efer: Efer::from_bits_retain(m.efer_bits()),
            la57: m.linear_bits() == 57,
        };
        self.virt.svm.limits = Some(limits);
        limits
    }

    /// Whether the running guest's V_INTR_CONTROL has a bit that the model knows of.
    #[inline]
    fn svm_control(&self, bit: u64) -> bool {
        self.virt.svm.vmcb.get(Field::V_INTR_CONTROL) & bit != 0
    }

    fn svm_set_control(&mut self, bit: u64, on: bool) {
        let v = &mut self.virt.svm.vmcb;
        let old = v.get(Field::V_INTR_CONTROL);
        v.set(Field::V_INTR_CONTROL, if on { old | bit } else { old & !bit });
    }

    /// Virtual NMIs are enabled in the running guest.
    fn svm_virtual_nmi(&self) -> bool {
        self.svm_control(v_intr::NMI_ENABLE) && self.svm_has(SvmFeatures::VIRTUAL_NMI)
    }

    /// A virtual interrupt or NMI waits for the running guest to take it.
    fn svm_virtually_interrupted(&mut self) -> bool {
        let nmi = self.svm_virtual_nmi() && self.svm_control(v_intr::NMI);
        nmi || if self.svm_avic() { self.svm_avic_waits() } else { self.svm_control(v_intr::IRQ) }
    }

    /// Whether INVLPGB and TLBSYNC exist here: a guest has them where its VMCB says so, or the processor cannot say otherwise.
    pub(crate) fn svm_invlpgb_enabled(&self) -> bool {
        !self.virt.guest
            || !self.svm_has(SvmFeatures::TLBI_CONTROL)
            || self.virt.svm.vmcb.get(Field::NESTED_CONTROL) & nested::INVLPGB_ENABLE != 0
    }

    /// The address space that INVLPGB of a guest is confined to.
    pub(crate) fn svm_guest_asid(&self) -> Option<u32> {
        self.virt.guest.then(|| self.virt.svm.vmcb.get(Field::GUEST_ASID) as u32)
    }

    /// A virtual GIF stands for the global interrupt flag in the running guest.
    fn svm_virtual_gif(&self) -> bool {
        self.svm_control(v_intr::GIF_ENABLE) && self.svm_has(SvmFeatures::VIRTUAL_GIF)
    }

    /// RIP of the instruction in flight, or of the boundary.
    fn svm_rip(&self) -> u64 {
        if self.current.is_null() { self.state.rip() } else { self.instruction_rip }
    }

    /// RIP of the instruction after the one in flight.
    #[allow(unsafe_code)]
    fn svm_next_rip(&self) -> u64 {
        if self.current.is_null() {
            return 0;
        }
        // SAFETY: `current` is set only while its block is alive (invariant of `OpRef`).
        let length = unsafe { (*self.current).length };
        crate::hot::wrap(self.mode, self.instruction_rip.wrapping_add(length as u64))
    }
}
