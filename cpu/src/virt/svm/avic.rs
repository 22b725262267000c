//! AVIC as the processor meets it: the guest's APIC page, x2APIC registers, IPIs and doorbells.

use undervisor_core::{Event, EventKind, SvmFeatures, apic as register};
use undervisor_mmu::PAGE_MASK;
use undervisor_svm::apic::{BackingPage, Behaviour, Tables, read_behaviour, write_behaviour, x2_exists};
use undervisor_svm::controls::v_intr;
use undervisor_svm::exit::ExitInformation;
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Exec, Shared, Stop, attention};

/// No page.
pub(super) const NO_PAGE: u64 = u64::MAX;
const PAGE: u64 = 0x000f_ffff_ffff_f000;

impl Cpu {
    /// Note where the guest that is entered has its APIC.
    pub(super) fn svm_avic_enter(&mut self) {
        let on = self.svm_has(SvmFeatures::AVIC) && self.svm_control(v_intr::AVIC_ENABLE);
        let x2 = on && self.svm_has(SvmFeatures::X2AVIC) && self.svm_control(v_intr::X2AVIC_ENABLE);
        let v = &self.virt.svm.vmcb;
        let (bar, page) = (v.get(Field::AVIC_APIC_BAR) & PAGE, v.get(Field::AVIC_BACKING_PAGE) & PAGE);
        let seam = &mut self.virt.svm;
        seam.avic_page = if on { page } else { NO_PAGE };
        self.translations.apic_bar = if on && !x2 { bar } else { NO_PAGE };
        self.translations.apic_page = if on && !x2 { page } else { NO_PAGE };
    }

    pub(super) fn svm_avic_leave(&mut self) {
        self.virt.svm.avic_page = NO_PAGE;
        self.virt.svm.trap = None;
        self.translations.apic_bar = NO_PAGE;
        self.translations.apic_page = NO_PAGE;
    }

    #[inline]
    pub(super) fn svm_avic(&self) -> bool {
        self.virt.svm.avic_page != NO_PAGE
    }

    fn svm_backing<'a>(&self, shared: &'a Shared) -> BackingPage<'a> {
        BackingPage { memory: &shared.memory, address: self.virt.svm.avic_page }
    }

    fn svm_x2avic(&self) -> bool {
        self.svm_avic() && self.svm_has(SvmFeatures::X2AVIC) && self.svm_control(v_intr::X2AVIC_ENABLE)
    }

    /// The virtual interrupt to deliver now.
    pub(super) fn svm_avic_take(&mut self) -> Option<Event> {
        let shared = self.shared.clone();
        let page = self.svm_backing(&shared);
        let vector = page.deliverable()?;
        page.accept(vector);
        Some(Event { kind: EventKind::External, vector, error_code: None, payload: 0, instruction_length: 0 })
    }

    /// An interrupt waits that its priority lets through.
    pub(super) fn svm_avic_waits(&self) -> bool {
        let shared = self.shared.clone();
        self.svm_backing(&shared).deliverable().is_some()
    }

    pub(super) fn svm_avic_tpr(&self) -> u8 {
        let shared = self.shared.clone();
        self.svm_backing(&shared).read(register::TPR) as u8
    }

    pub(super) fn svm_avic_set_tpr(&mut self, value: u8) {
        let shared = self.shared.clone();
        let page = self.svm_backing(&shared);
        page.write(register::TPR, value as u32);
        page.update_priority();
        self.attend(attention::VIRT);
    }

    /// WRMSR to the doorbell: the processor with that APIC ID looks at its virtual interrupts.
    pub(super) fn svm_doorbell(&mut self, apic_id: u32) {
        if apic_id == self.apic.id {
            self.attend(attention::VIRT);
            return;
        }
        // An IPI of the reserved kind stands for the doorbell; see `Cpu::receive`.
        let from = self.id;
        self.bus().send_ipi(from, (apic_id as u64) << 32 | 1 << 14 | 3 << 8);
        self.bus_accessed();
    }

    /// AVIC_NOACCEL. EXITINFO1: 11:4 the register, 32 a write; EXITINFO2: the vector of an EOI.
    fn svm_no_acceleration(&self, offset: u32, write: bool, vector: u8) -> ExitInformation {
        ExitInformation::with(reason::AVIC_NOACCEL, offset as u64 & 0xff0 | u64::from(write) << 32, vector as u64)
    }

    fn svm_avic_fault(&mut self, offset: u32, write: bool) -> Stop {
        let exit = self.svm_no_acceleration(offset, write, 0);
        let rip = self.svm_rip();
        self.svm_exit(&exit, rip)
    }

    /// Exit when the instruction in flight is complete.
    fn svm_avic_trap(&mut self, exit: ExitInformation) {
        self.virt.svm.trap = Some(exit);
        self.attend(attention::VIRT);
    }

    /// The exit that the last instruction left behind.
    pub(super) fn svm_take_trap(&mut self) -> Exec {
        match self.virt.svm.trap.take() {
            Some(exit) => {
                let rip = self.state.rip();
                Err(self.svm_exit(&exit, rip))
            }
            None => Ok(()),
        }
    }

    /// A read of the guest's APIC page.
    pub fn svm_apic_page_read(&mut self, physical: u64, size: usize) -> Exec<u64> {
        let offset = physical as u32 & 0xff0;
        if read_behaviour(offset) == Behaviour::Fault {
            return Err(self.svm_avic_fault(offset, false));
        }
        let shared = self.shared.clone();
        let word = self.svm_backing(&shared).read(physical as u32 & 0xffc) as u64;
        Ok(word >> (8 * (physical & 3)) & (u64::MAX >> (64 - 8 * size as u32)))
    }

    /// A write to the guest's APIC page.
    pub fn svm_apic_page_write(&mut self, physical: u64, value: u64) -> Exec {
        let offset = physical as u32 & 0xff0;
        let what = write_behaviour(offset);
        if what == Behaviour::Fault {
            return Err(self.svm_avic_fault(offset, true));
        }
        if what != Behaviour::Allowed && !std::mem::take(&mut self.virt.svm.alone) {
            // What follows from it follows this very instruction: run it once more, in a block of its own.
            self.virt.svm.alone = true;
            self.general_once = true;
            return Err(Stop::Again);
        }
        self.svm_apic_write(offset, value as u32, what)
    }

    fn svm_apic_write(&mut self, offset: u32, value: u32, what: Behaviour) -> Exec {
        let shared = self.shared.clone();
        let page = self.svm_backing(&shared);
        match (offset, what) {
            (register::TPR, _) => {
                self.svm_avic_set_tpr(value as u8);
                self.virt.svm.vmcb.set(
                    Field::V_INTR_CONTROL,
                    self.virt.svm.vmcb.get(Field::V_INTR_CONTROL) & !v_intr::TPR | value as u64 >> 4 & v_intr::TPR,
                );
            }
            (register::EOI, _) => match page.end_of_interrupt() {
                Ok(()) => self.attend(attention::VIRT),
                Err(vector) => {
                    let exit = self.svm_no_acceleration(offset, true, vector);
                    self.svm_avic_trap(exit);
                }
            },
            (register::ICR, _) => {
                page.write(offset, value & !(1 << 12));
                let icr = (page.read(register::ICR_HIGH) as u64) << 32 | value as u64;
                self.svm_avic_send(icr);
            }
            _ => {
                page.write(offset, value);
                if what == Behaviour::Trap {
                    let exit = self.svm_no_acceleration(offset, true, 0);
                    self.svm_avic_trap(exit);
                }
            }
        }
        Ok(())
    }

    fn svm_avic_send(&mut self, icr: u64) {
        let shared = self.shared.clone();
        let page = self.svm_backing(&shared);
        let v = &self.virt.svm.vmcb;
        let x2 = self.svm_x2avic();
        let tables = Tables { physical: v.get(Field::AVIC_PHYSICAL_TABLE), logical: v.get(Field::AVIC_LOGICAL_TABLE), x2 };
        let id = page.read(register::ID);
        let own = if x2 { id } else { id >> 24 };
        let flat = page.read(register::DFR) >> 28 == 0xf;
        match tables.send(&shared.memory, own, icr, flat) {
            Ok(hosts) => hosts.into_iter().for_each(|host| self.svm_doorbell(host)),
            Err(incomplete) => {
                self.attend(attention::VIRT);
                self.svm_avic_trap(ExitInformation::with(reason::AVIC_INCOMPLETE_IPI, icr, incomplete.info2));
            }
        }
    }

    /// RDMSR of an x2APIC register under x2AVIC.
    pub(super) fn svm_x2avic_read(&mut self, msr: u32) -> Exec<Option<u64>> {
        if !self.virt.guest || !self.svm_x2avic() {
            return Ok(None);
        }
        let offset = (msr - 0x800) << 4;
        if !x2_exists(offset) || matches!(offset, register::EOI | register::SELF_IPI) {
            return Err(self.gp(0));
        }
        if read_behaviour(offset) == Behaviour::Fault {
            return Err(self.svm_avic_fault(offset, false));
        }
        let shared = self.shared.clone();
        let page = self.svm_backing(&shared);
        let high = if offset == register::ICR { (page.read(register::ICR_HIGH) as u64) << 32 } else { 0 };
        Ok(Some(high | page.read(offset) as u64))
    }

    /// WRMSR likewise. (WRMSR ends its block, so that a trap follows it directly.)
    pub(super) fn svm_x2avic_write(&mut self, msr: u32, value: u64) -> Exec<bool> {
        if !self.virt.guest || !self.svm_x2avic() {
            return Ok(false);
        }
        let offset = (msr - 0x800) << 4;
        let legal = match offset {
            register::ICR => u64::MAX,
            register::TPR | register::SELF_IPI => 0xff,
            register::EOI | register::ESR => 0,
            _ => 0xffff_ffff,
        };
        if !x2_exists(offset) || value & !legal != 0 {
            return Err(self.gp(0));
        }
        let shared = self.shared.clone();
        match offset {
            register::ICR => self.svm_backing(&shared).write(register::ICR_HIGH, (value >> 32) as u32),
            register::SELF_IPI => {
                self.svm_backing(&shared).request(value as u8);
                self.attend(attention::VIRT);
                return Ok(true);
            }
            _ => {}
        }
        let what = write_behaviour(offset);
        if what == Behaviour::Fault {
            return Err(self.svm_avic_fault(offset, true));
        }
        self.svm_apic_write(offset, value as u32, what)?;
        Ok(true)
    }

    /// Whether `physical` is the backing page that the guest sees as its APIC.
    #[inline]
    pub fn svm_in_apic_page(&self, physical: u64) -> bool {
        physical & PAGE_MASK == self.translations.apic_page
    }
}
