//! RESET, INIT and start-up IPI (SDM vol. 3, Processor State After Reset; Multiple-Processor Initialization).

use undervisor_core::{Activity, CpuState, Cr0, SegReg, Segment, regs};

use crate::apic::BASE_BSP;
use crate::cpu::{Cpu, attention};
use crate::signal::Signals;

impl Cpu {
    /// Power-on or RESET: everything but the clock starts over. Application processors wait for their start-up IPI.
    pub fn reset(&mut self) {
        self.state = CpuState::new();
        self.reset_model_state();
        self.apic_reset(false);
        self.signals = Default::default();
        self.monitor = Default::default();
        self.notes = Default::default();
        self.virt = Default::default();
        self.translations.nested = Default::default();
        self.translations.guest = false;
        self.translations.tag = 0;
        self.attention = 0;
        self.start_or_wait();
        self.flush_all(true);
        self.performance_reset();
        self.mode_changed();
        self.a20_changed();
    }

    /// What a model says of the state after RESET.
    pub(crate) fn reset_model_state(&mut self) {
        self.state.set_gpr(regs::RDX, self.model.signature as u64);
        let unit = self.model.performance();
        let m = &mut self.state.msrs;
        m.misc_enable = crate::msr::MISC_ENABLE_RESET;
        if unit.general != 0 {
            m.misc_enable |= crate::msr::MISC_ENABLE_PERFORMANCE;
        }
        m.performance.global_control = unit.global_control_at_reset();
    }

    /// INIT: as RESET, but MSRs (EFER excepted), FPU and vector state, the TSC, and CR0's CD and NW stay.
    pub fn init(&mut self) {
        let old = &self.state;
        let mut new = CpuState::new();
        new.cr0 = new.cr0 & !(Cr0::CD | Cr0::NW) | old.cr0 & (Cr0::CD | Cr0::NW);
        new.vec = old.vec;
        new.x87 = old.x87;
        new.mxcsr = old.mxcsr;
        new.xcr0 = old.xcr0;
        new.pkru = old.pkru;
        new.msrs = old.msrs.clone();
        new.tsc_offset = old.tsc_offset;
        new.set_gpr(regs::RDX, self.model.signature as u64);
        self.state = new;
        self.apic_reset(true);
        // A start-up IPI that came after the INIT is still to be taken.
        self.signals = Signals { sipi: self.signals.sipi, ..Signals::default() };
        self.monitor = Default::default();
        self.start_or_wait();
        self.flush_all(true);
        self.mode_changed();
    }

    fn start_or_wait(&mut self) {
        if self.apic.base & BASE_BSP == 0 {
            self.state.activity = Activity::WaitForSipi;
            self.attend(attention::INACTIVE);
        }
    }

    /// A start-up IPI takes effect: real mode at `vector` × 4 KiB.
    pub fn start_up(&mut self, vector: u8) {
        let selector = (vector as u16) << 8;
        self.state.set_segment(SegReg::Cs, Segment::real(selector, 0x9b, 0xffff));
        self.state.set_rip(0);
        self.state.activity = Activity::Active;
        self.mode_changed();
    }
}
