//! What SVM watches for between instructions: virtual interrupts and NMIs, the global interrupt flag.

use undervisor_core::{Event, EventKind, Rflags, Vector};
use undervisor_svm::controls::v_intr;
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Exec, attention};
use crate::virt::Point;

impl Cpu {
    pub(in crate::virt) fn svm_boundary(&mut self, point: Point) -> Exec<Option<Event>> {
        if !self.virt.guest {
            self.attention &= !attention::VIRT;
            return Ok(None);
        }
        match point {
            Point::BeforeTraps => self.svm_take_trap().map(|()| None),
            Point::BeforeNmi | Point::BeforeInit => Ok(None),
            // "Physical NMI takes priority over virtual NMI."
            Point::BeforeInterrupt => Ok(self.svm_take_virtual_nmi()),
            Point::AfterInterrupt => {
                let taken = self.svm_take_virtual_interrupt()?;
                if taken.is_none() && !self.svm_watching() && !self.svm_avic() {
                    self.attention &= !attention::VIRT;
                }
                Ok(taken)
            }
        }
    }

    /// The guest's own flags and shadow allow events; `Some` of what V_INTR virtualizes.
    fn svm_guest_shadow(&self) -> bool {
        self.state.shadow.sti || self.state.shadow.mov_ss
    }

    /// APM vol. 2, NMI Virtualization.
    fn svm_take_virtual_nmi(&mut self) -> Option<Event> {
        let open = self.svm_virtual_nmi()
            && self.virt.svm.gif
            && self.svm_control(v_intr::NMI)
            && !self.svm_control(v_intr::NMI_MASK)
            && (!self.svm_virtual_gif() || self.svm_control(v_intr::GIF))
            && !self.svm_guest_shadow();
        if !open {
            return None;
        }
        self.svm_set_control(v_intr::NMI, false);
        self.svm_set_control(v_intr::NMI_MASK, true);
        Some(Event { kind: EventKind::Nmi, vector: Vector::NMI, error_code: None, payload: 0, instruction_length: 0 })
    }

    /// APM vol. 2, Virtual Interrupts: Injecting Virtual (INTR) Interrupts.
    fn svm_take_virtual_interrupt(&mut self) -> Exec<Option<Event>> {
        let control = self.virt.svm.vmcb.get(Field::V_INTR_CONTROL);
        if !self.state.flag(Rflags::IF) || self.svm_guest_shadow() {
            return Ok(None);
        }
        if !self.virt.svm.gif || self.svm_virtual_gif() && control & v_intr::GIF == 0 {
            return Ok(None);
        }
        if self.svm_avic() {
            return Ok(self.svm_avic_take());
        }
        if control & v_intr::IRQ == 0 {
            return Ok(None);
        }
        let priority = control >> v_intr::PRIORITY_SHIFT & 0xf;
        if control & v_intr::IGNORE_TPR == 0 && priority <= control & v_intr::TPR {
            return Ok(None);
        }
        if self.svm_intercepts(reason::VINTR) {
            return Err(self.svm_exit_event(reason::VINTR, 0, 0));
        }
        self.svm_set_control(v_intr::IRQ, false);
        let vector = self.virt.svm.vmcb.get(Field::V_INTR_VECTOR) as u8;
        Ok(Some(Event { kind: EventKind::External, vector, error_code: None, payload: 0, instruction_length: 0 }))
    }

    /// Whether physical interrupts are open: GIF, and the host's IF if V_INTR_MASKING is on. An exit is not held up by the
    /// guest's interrupt shadow.
    pub(in crate::virt) fn svm_interrupt_open(&self, open: bool) -> bool {
        if !self.virt.svm.gif {
            return false;
        }
        if !self.virt.guest {
            return open;
        }
        let flag = if self.svm_control(v_intr::MASKING) {
            self.virt.svm.host.rflags & Rflags::IF.bits() != 0
        } else {
            self.state.flag(Rflags::IF)
        };
        flag && (self.svm_intercepts(reason::INTR) || !self.svm_guest_shadow())
    }

    pub(in crate::virt) fn svm_nmi_open(&self, open: bool) -> bool {
        if !self.virt.svm.gif {
            return false;
        }
        open || (self.virt.guest && self.svm_intercepts(reason::NMI))
    }

    pub(in crate::virt) fn svm_unblock_nmi(&mut self) {
        if self.svm_virtual_nmi() {
            self.svm_set_control(v_intr::NMI_MASK, false);
            self.state.shadow.nmi = false;
            self.attend(attention::VIRT);
            return;
        }
        if self.state.shadow.nmi {
            self.state.shadow.nmi = false;
            self.attend(attention::INTERRUPT);
        }
    }

    /// CR8 reads as V_TPR under V_INTR_MASKING, or as AVIC's TPR (APM vol. 2, Virtualizing APIC.TPR).
    pub(in crate::virt) fn svm_read_cr8(&mut self) -> Exec<Option<u64>> {
        let control = self.virt.svm.vmcb.get(Field::V_INTR_CONTROL);
        if self.svm_avic() {
            return Ok(Some(self.svm_avic_tpr() as u64 >> 4));
        }
        Ok((control & v_intr::MASKING != 0).then_some(control & v_intr::TPR))
    }

    pub(in crate::virt) fn svm_write_cr8(&mut self, value: u64) -> Exec<bool> {
        let control = self.virt.svm.vmcb.get(Field::V_INTR_CONTROL);
        let avic = self.svm_avic();
        if avic {
            self.svm_avic_set_tpr((value as u8) << 4);
        }
        // "Writes to CR8 affect both the APIC's TPR and V_TPR", or with V_INTR_MASKING only V_TPR.
        self.virt.svm.vmcb.set(Field::V_INTR_CONTROL, control & !v_intr::TPR | value & v_intr::TPR);
        self.attend(attention::VIRT);
        Ok(control & v_intr::MASKING != 0 || avic)
    }
}
