//! #VMEXIT (APM vol. 2, #VMEXIT).

use undervisor_core::{Activity, Dr6, Event, EventKind, Rflags, SvmFeatures};
use undervisor_mmu::NptExit;
use undervisor_svm::controls::{extensions, v_intr};
use undervisor_svm::exit::{ExitInformation, save_guest};
use undervisor_svm::{Field, reason};

use crate::cpu::{Cpu, Stop, attention};
use crate::paging::{Nested, NestedFault};

const PAGE_FAULT: u64 = reason::EXCEPTION_0 + 14;

impl Cpu {
    /// An exit of the instruction in flight, which has had no effect.
    #[cold]
    pub(super) fn svm_exit_instruction(&mut self, code: u64, info1: u64, info2: u64) -> Stop {
        let next_rip = if self.svm_has(SvmFeatures::NRIP_SAVE) { self.svm_next_rip() } else { 0 };
        let rip = self.svm_rip();
        self.svm_exit(&ExitInformation { code, info1, info2, next_rip }, rip)
    }

    /// An exit at an instruction boundary, or because of an access.
    #[cold]
    pub(super) fn svm_exit_event(&mut self, code: u64, info1: u64, info2: u64) -> Stop {
        let rip = self.svm_rip();
        self.svm_exit(&ExitInformation::with(code, info1, info2), rip)
    }

    /// The exit proper: record, save, switch.
    pub(super) fn svm_exit(&mut self, exit: &ExitInformation, rip: u64) -> Stop {
        self.count();
        let shared = self.shared.clone();
        let delivering: Option<Event> = self.virt.delivering.take();
        let cpl = self.interrupted_cpl();
        if self.observing != 0 {
            self.observe_svm_exit(exit, rip, delivering.as_ref());
        }
        self.virt.interrupted_cpl = None;
        self.virt.nmi_unblocked_by_iret = false;
        // "If a #VMEXIT occurs during the virtual NMI delivery, V_NMI_MASK is saved as 0" (APM vol. 2, NMI Virtualization).
        if delivering.is_some_and(|e| e.kind == EventKind::Nmi) && self.svm_virtual_nmi() {
            self.svm_set_control(v_intr::NMI_MASK, false);
        }
        let np = matches!(self.translations.nested, Nested::Npt(_));
        // The instruction bytes are those of a page fault, kept before; zero with any other exit.
        if !matches!(exit.code, reason::NPF | PAGE_FAULT) {
            self.virt.svm.vmcb.clear_instruction_bytes();
        }
        self.svm_leave_guest();
        let seam = &mut self.virt.svm;
        save_guest(&mut seam.vmcb, &self.state, exit, delivering.as_ref(), rip, cpl);
        let features = self.model.svm;
        let lbr = features.contains(SvmFeatures::LBR_VIRTUALIZATION)
            && seam.vmcb.get(Field::VIRTUAL_EXTENSIONS) & extensions::LBR != 0;
        let (spec_ctrl, bus_lock) = (SvmFeatures::VIRTUAL_SPEC_CTRL, SvmFeatures::BUS_LOCK_THRESHOLD);
        seam.vmcb.store(&shared.memory, lbr, np, features.contains(spec_ctrl), features.contains(bus_lock));
        if let Some(index) = seam.vmcb.address().and_then(|a| shared.memory.page_index(a))
            && shared.code().is_code(index)
        {
            shared.code().written(index, 0, 0x700);
        }
        if let Some(count) = seam.exits.get_mut(exit.code as usize) {
            *count += 1;
        }
        seam.gif = false;
        let blocked = seam.host.nmi_blocked;
        seam.host.load(&mut self.state);
        if self.svm_virtual_nmi() {
            self.state.shadow.nmi = blocked;
        }
        self.current = std::ptr::null();
        self.counters.vm_exits += 1;
        self.attention &= !(attention::VIRT | attention::SHADOW | attention::INACTIVE);
        if self.svm_host_pdptes().is_err() {
            // "If the host's PDPTEs are illegal, the processor shuts down."
            if self.observing != 0 {
                self.observe_abort(undervisor_vmx::reason::abort::HOST_PDPTES);
            }
            self.state.activity = Activity::Shutdown;
            self.attend(attention::INACTIVE);
        }
        // VMRUN with TF set traps once it is complete, which is now.
        if self.state.flag(Rflags::TF) {
            self.pend_debug(Dr6::BS.bits());
        }
        if self.state.msrs.debugctl & 1 != 0 {
            self.attend(attention::DEBUG);
        }
        self.suppress_trap();
        self.mode_changed();
        self.debug_exit(exit.code);
        Stop::Exit
    }

    /// A nested page fault.
    pub(in crate::virt) fn svm_nested_page_fault(&mut self, exit: &NptExit, fault: &NestedFault) -> Stop {
        if !fault.access.fetch {
            self.svm_keep_instruction_bytes();
        } else {
            self.virt.svm.vmcb.set_instruction_bytes(&[]);
        }
        self.svm_exit_event(reason::NPF, exit.error_code, exit.guest_physical)
    }

    /// Guest instruction bytes for #PF and #NPF (APM vol. 2, Nested and Intercepted Page Faults: Decode Assists).
    pub(super) fn svm_keep_instruction_bytes(&mut self) {
        if !self.svm_has(SvmFeatures::DECODE_ASSISTS) {
            return;
        }
        let mut bytes = [0; 15];
        let count = if self.virt.delivering.is_some() { 0 } else { self.peek_code(self.svm_rip(), &mut bytes) };
        self.virt.svm.vmcb.set_instruction_bytes(&bytes[..count]);
    }
}
