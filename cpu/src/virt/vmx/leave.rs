//! VM exits.

use undervisor_core::{Activity, Event, EventKind, Rflags, Vector};
use undervisor_mmu::Ept;
use undervisor_vmx::checks::state::NO_VMCS;
use undervisor_vmx::controls::{exit, interruption, pin};
use undervisor_vmx::exit::{Leaving, activity_of, interruptibility_of, load_host, record, save_guest};
use undervisor_vmx::reason::{AFTER_BUS_LOCK, abort, basic};
use undervisor_vmx::{ExitInformation, Field, Memory, msr_area};

use crate::cpu::{Cpu, Stop, attention};
use crate::events::is_fault;
use crate::paging::Nested;

/// What RFLAGS.RF is in the saved image (SDM vol. 3, Saving RIP, RSP, RFLAGS, and SSP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SavedRf {
    /// The instruction itself exits.
    Clear,
    /// The instruction will be restarted.
    Set,
    /// What it is at the boundary.
    Keep,
}

/// Interruption (or IDT-vectoring) information for an event.
pub(super) fn information(event: &Event) -> u32 {
    let code = if event.error_code.is_some() { interruption::ERROR_CODE } else { 0 };
    interruption::VALID | code | (event.kind as u32) << 8 | event.vector as u32
}

impl Cpu {
    /// RIP of the instruction in flight, or of the boundary.
    #[allow(unsafe_code)]
    pub(super) fn vmx_rip(&self) -> u64 {
        if self.current.is_null() { self.state.rip() } else { self.instruction_rip }
    }

    /// Length of the instruction in flight; 0 at a boundary.
    #[allow(unsafe_code)]
    pub(super) fn vmx_instruction_length(&self) -> u32 {
        if self.current.is_null() {
            return 0;
        }
        // SAFETY: `current` is set only while its block is alive (invariant of `OpRef`).
        unsafe { (*self.current).length as u32 }
    }

    /// An exit of the instruction in flight, which has had no effect.
    #[cold]
    pub(super) fn vmx_exit_instruction(&mut self, mut information: ExitInformation) -> Stop {
        information.instruction_length = self.vmx_instruction_length();
        let rip = self.vmx_rip();
        self.vmx_exit(information, rip, SavedRf::Clear)
    }

    /// An exit of an access that the instruction in flight (or the delivery of an event) made.
    #[cold]
    pub(super) fn vmx_exit_access(&mut self, information: ExitInformation) -> Stop {
        let rip = self.vmx_rip();
        self.vmx_exit(information, rip, SavedRf::Set)
    }

    /// An exit at an instruction boundary.
    #[cold]
    pub(super) fn vmx_exit_event(&mut self, information: ExitInformation) -> Stop {
        let rip = self.vmx_rip();
        self.vmx_exit(information, rip, SavedRf::Keep)
    }

    /// A VM exit: record, save, switch.
    pub(super) fn vmx_exit(&mut self, mut information: ExitInformation, rip: u64, rf: SavedRf) -> Stop {
        self.count();
        if std::mem::take(&mut self.virt.vmx.bus_lock) {
            information.reason |= AFTER_BUS_LOCK;
        }
        let mut flags = self.state.rflags();
        match rf {
            SavedRf::Clear => flags &= !Rflags::RF.bits(),
            SavedRf::Set => flags |= Rflags::RF.bits(),
            SavedRf::Keep => {}
        }
        if let Some(event) = self.virt.delivering.take()
            && !vectoring_is_moot(&information)
        {
            information.idt_vectoring_information = self::information(&event);
            information.idt_vectoring_error_code = event.error_code.unwrap_or(0);
            if matches!(event.kind, EventKind::Software | EventKind::SoftwareException | EventKind::PrivilegedSoftwareException)
            {
                information.instruction_length = event.instruction_length as u32;
            }
            if is_fault(&event) {
                flags |= Rflags::RF.bits();
            } else if rf == SavedRf::Set {
                flags = flags & !Rflags::RF.bits() | self.state.rflags() & Rflags::RF.bits();
            }
        }
        if self.observing != 0 {
            self.observe_vmx_exit(&information, rip);
        }
        self.virt.interrupted_cpl = None;
        self.virt.nmi_unblocked_by_iret = false;
        let leaving = self.vmx_leaving(&information, rip, flags);
        let vmcs = &mut self.virt.vmx.vmcs;
        if let Nested::Ept(Ept { pml: Some(pml), .. }) = &self.translations.nested {
            vmcs.put(Field::PML_INDEX, pml.index as u64);
        }
        record(vmcs, &information);
        save_guest(vmcs, &self.state, &leaving);
        let count = vmcs.get32(Field::EXIT_MSR_STORE_COUNT);
        let area = vmcs.get(Field::EXIT_MSR_STORE_ADDRESS);
        let no_vpid = vmcs.vpid() == 0;
        let virtual_nmis = vmcs.pin(pin::VIRTUAL_NMIS);
        self.virt.guest = false;
        self.vmx_forget_guest();
        if count != 0 {
            let shared = self.shared.clone();
            let stored = msr_area::store(&*shared, area, count, |n| self.read_msr(n).ok());
            if stored.is_err() {
                return self.vmx_abort(abort::SAVING_GUEST_MSRS);
            }
        }
        // Clearing Address-Range Monitoring.
        self.monitor.armed = false;
        // An NMI exit blocks NMIs; with virtual NMIs nothing else does.
        let nmi_exit = information.reason == basic::EXCEPTION_OR_NMI
            && interruption::kind(information.interruption_information) == interruption::NMI;
        self.state.shadow.nmi = nmi_exit || (self.state.shadow.nmi && !virtual_nmis);
        self.vmx_load_host(no_vpid);
        self.counters.vm_exits += 1;
        self.debug_exit(information.reason as u64 & 0xffff);
        Stop::Exit
    }

    fn vmx_leaving(&mut self, information: &ExitInformation, rip: u64, rflags: u64) -> Leaving {
        let s = &self.state;
        let mut pending = s.pending_debug & 0x480f;
        if pending & 0xf != 0 {
            pending |= 1 << 12;
        }
        let mut interruptibility = interruptibility_of(&s.shadow);
        if self.virt.vmx.pending_exit.is_some() {
            interruptibility &= 8;
        }
        let activity = activity_of(s.activity);
        let blocked = interruptibility & 3 != 0 || activity == 1;
        // What an exit delivers as a debug exception is the hypervisor's and no longer pending: after STI with RFLAGS.TF set, too
        // (SDM vol. 3, Saving Non-Register State).
        if information.reason & 0xffff == basic::EXCEPTION_OR_NMI
            && interruption::vector(information.interruption_information) == Vector::DB
        {
            pending = 0;
        } else if blocked && rflags & Rflags::TF.bits() != 0 && s.msrs.debugctl & 2 == 0 {
            pending |= 1 << 14;
        } else if blocked {
            pending &= !(1 << 14);
        }
        let timer = self.virt.vmx.vmcs.exit_control(exit::SAVE_PREEMPTION_TIMER).then(|| self.vmx_timer_left());
        Leaving { interruptibility, pending_debug: pending, preemption_timer: timer, rflags, rip, activity }
    }

    /// Everything that only matters inside the guest.
    fn vmx_forget_guest(&mut self) {
        let x = &mut self.virt.vmx;
        x.pending_exit = None;
        x.apic_written = None;
        x.mtf_since = None;
        x.timer = None;
        x.apic_access_page = NO_VMCS;
        self.attention &= !attention::VIRT;
        self.translations.nested = Nested::None;
        self.translations.guest = false;
        self.translations.tag = 0;
    }

    /// Load host state and MSRs; the end of every exit, of failed entries too.
    pub(super) fn vmx_load_host(&mut self, no_vpid: bool) {
        let bits = self.physical_bits();
        let counting = self.state.msrs.performance.global_control;
        if let Err(why) = load_host(&self.virt.vmx.vmcs, &mut self.state, &*self.shared, bits) {
            self.vmx_abort(why);
            return;
        }
        if self.state.msrs.performance.global_control != counting {
            self.performance_changed();
        }
        if no_vpid {
            self.spaces.forget(|k| k.tag == 0);
        }
        self.mode_changed();
        let count = self.virt.vmx.vmcs.get32(Field::EXIT_MSR_LOAD_COUNT);
        if count != 0 {
            let area = self.virt.vmx.vmcs.get(Field::EXIT_MSR_LOAD_ADDRESS);
            let shared = self.shared.clone();
            if msr_area::load(&*shared, area, count, |n, value| self.write_msr(n, value).is_ok()).is_err() {
                self.vmx_abort(abort::LOADING_HOST_MSRS);
                return;
            }
            self.mode_changed();
        }
        self.attention &= !(attention::SHADOW | attention::INACTIVE);
        self.suppress_trap();
        self.look_for_events();
    }

    /// VMX abort (SDM vol. 3, VMX Aborts): the processor shuts down, and says why in the VMCS region.
    pub(super) fn vmx_abort(&mut self, indicator: u32) -> Stop {
        if self.observing != 0 {
            self.observe_abort(indicator);
        }
        let shared = self.shared.clone();
        let current = self.virt.vmx.current;
        if current != NO_VMCS {
            shared.write_u32(current + undervisor_vmx::vmcs::ABORT_INDICATOR, indicator);
        }
        self.virt.guest = false;
        self.vmx_forget_guest();
        self.state.activity = Activity::Shutdown;
        self.mode_changed();
        self.attend(attention::INACTIVE);
        Stop::Exit
    }
}

/// Exits that are not "during event delivery" although an event's delivery led to them (SDM vol. 3, Information for VM Exits
/// During Event Delivery): double faults and triple faults.
fn vectoring_is_moot(i: &ExitInformation) -> bool {
    i.reason == basic::TRIPLE_FAULT
        || i.reason == basic::EXCEPTION_OR_NMI
            && i.interruption_information & 0x7ff == interruption::HARDWARE_EXCEPTION << 8 | Vector::DF as u32
}
