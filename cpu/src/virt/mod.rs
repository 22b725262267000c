//! The seam between a processor and its virtualization extensions.
//!
//! The rest of the crate calls the hooks below at the architecturally right points; outside guests they do nothing. [`vmx`] and
//! [`svm`] fill them. A hook that returns `Err(Stop::Exit)` has already switched the state to the host (or root): the caller does
//! nothing more for the instruction or event.

pub mod svm;
pub mod vmx;

use iced_x86::Instruction;
use undervisor_core::{Event, Exception, Intercept, Rflags, Vendor};

use crate::cpu::{Cpu, Exec, Stop};
use crate::observe::want;
use crate::op::Handler;
use crate::paging::{NestedCause, NestedFault};

/// A handler for the plain case of a virtualization instruction, which falls back to the instruction's general form, and the op
/// registers `a` and `b` that it wants.
pub fn hot_form(insn: &Instruction) -> Option<(Handler, u8, u8)> {
    vmx::instructions::hot_form(insn)
}

/// Virtualization state of a processor.
#[derive(Debug, Default)]
pub struct Virt {
    /// In VMX non-root operation or in an SVM guest. The only thing that hooks look at outside guests.
    pub guest: bool,
    /// The event whose delivery is under way: what IDT-vectoring information or EXITINTINFO must report if it exits. Set and
    /// cleared by the event code; an exit takes it.
    pub delivering: Option<Event>,
    /// The CPL of the interrupted program while `state.cpl` is already its handler's, for the pushes of an event or far call.
    /// An exit in between reports and saves this one (see [`Cpu::interrupted_cpl`]) and clears it.
    pub interrupted_cpl: Option<u8>,
    /// The IRET in flight has ended blocking by NMI: "NMI unblocking due to IRET" of exits that its faults cause.
    pub nmi_unblocked_by_iret: bool,
    pub vmx: vmx::VmxSeam,
    pub svm: svm::SvmSeam,
}

/// Where a task switch came from. The numbers are VMX's (SDM vol. 3, Exit Qualification for Task Switches).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskSource {
    Call = 0,
    Iret = 1,
    Jmp = 2,
    /// Task gate in the IDT.
    Gate = 3,
}

/// A task switch about to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    pub selector: u16,
    pub source: TaskSource,
    /// To be pushed in the new task.
    pub error_code: Option<u32>,
    /// RIP to be saved in the old task: past the instruction, or of the interrupted one.
    pub return_rip: u64,
}

/// Points of an instruction boundary, in falling priority (SDM vol. 3, Priority Among Concurrent Events; Monitor Trap Flag;
/// VMX-Preemption Timer; NMI-Window Exiting; Interrupt-Window Exiting; APM vol. 2, Virtual Interrupts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before INIT: bus locks.
    BeforeInit,
    /// Before debug traps: MTF, TPR below threshold, injected events that wait.
    BeforeTraps,
    /// After debug traps, before NMI: preemption timer, NMI window.
    BeforeNmi,
    /// After NMI, before external interrupts: interrupt window, virtual-interrupt delivery of VMX.
    BeforeInterrupt,
    /// After external interrupts: virtual interrupts of SVM.
    AfterInterrupt,
}

/// What an INIT signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitAction {
    Accept,
    /// Stays pending.
    Blocked,
    /// Becomes #SX (AMD, VM_CR.R_INIT).
    Redirect,
}

impl Cpu {
    /// An interceptable instruction is about to happen.
    #[inline]
    pub fn intercept(&mut self, what: Intercept) -> Exec {
        if !self.virt.guest { Ok(()) } else { self.intercept_in_guest(what) }
    }

    #[cold]
    fn intercept_in_guest(&mut self, what: Intercept) -> Exec {
        match self.model.vendor {
            Vendor::Intel => self.vmx_intercept(what),
            Vendor::Amd => self.svm_intercept(what),
        }
    }

    /// An exception (hardware, or by INT3, INTO, INT1; not INT n) is about to be delivered. `event.kind` tells them apart;
    /// `self.virt.delivering` is the event, if any, in whose delivery it occurred. CR2 and DR6 are not yet written.
    pub fn intercept_exception(&mut self, event: &Event) -> Exec {
        if !self.virt.guest {
            return Ok(());
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_intercept_exception(event),
            Vendor::Amd => self.svm_intercept_exception(event),
        }
    }

    /// A third fault is about to shut the processor down. `Ok`: it does.
    pub fn intercept_triple_fault(&mut self) -> Exec {
        if !self.virt.guest {
            return Ok(());
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_intercept_triple_fault(),
            Vendor::Amd => self.svm_intercept_triple_fault(),
        }
    }

    /// The second-level translation of an access failed. Always exits (or becomes #VE).
    #[cold]
    pub fn nested_fault(&mut self, fault: &NestedFault) -> Stop {
        if self.observing & want::EPT != 0 {
            self.observe_nested_fault(fault);
        }
        match &fault.cause {
            NestedCause::Ept(exit) => self.vmx_ept_exit(exit, fault),
            NestedCause::Npt(exit) => self.svm_nested_page_fault(exit, fault),
        }
    }

    /// An external interrupt is pending and open (see [`Cpu::interrupt_open`]); it has not been acknowledged yet.
    pub fn intercept_interrupt(&mut self) -> Exec {
        if !self.virt.guest {
            return Ok(());
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_intercept_interrupt(),
            Vendor::Amd => self.svm_intercept_interrupt(),
        }
    }

    /// An NMI is pending and open; an exit consumes it (the caller has already taken it).
    pub fn intercept_nmi(&mut self) -> Exec {
        if !self.virt.guest {
            return Ok(());
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_intercept_nmi(),
            Vendor::Amd => self.svm_intercept_nmi(),
        }
    }

    /// An SMI is pending. `Ok(false)`: it stays so.
    pub fn intercept_smi(&mut self) -> Exec<bool> {
        match self.model.vendor {
            Vendor::Intel => Ok(true),
            Vendor::Amd => self.svm_intercept_smi(),
        }
    }

    /// An INIT is pending. On Intel's processors it has been taken if this exits; on AMD's it stays.
    pub fn intercept_init(&mut self) -> Exec<InitAction> {
        match self.model.vendor {
            Vendor::Intel => self.vmx_intercept_init(),
            Vendor::Amd => self.svm_intercept_init(),
        }
    }

    /// A SIPI reached a processor that waits for one.
    pub fn intercept_sipi(&mut self, vector: u8) -> Exec {
        if !self.virt.guest {
            return Ok(());
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_intercept_sipi(vector),
            Vendor::Amd => Ok(()),
        }
    }

    /// A task switch is about to happen; the selector and the TSS descriptor have been checked.
    pub fn intercept_task_switch(&mut self, switch: &TaskSwitch) -> Exec {
        if !self.virt.guest {
            return Ok(());
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_intercept_task_switch(switch),
            Vendor::Amd => self.svm_intercept_task_switch(switch),
        }
    }

    /// An instruction boundary with `attention::VIRT` set. May exit, or name an event to deliver now. The bit stays set until the
    /// seam clears it: a seam with nothing left to watch for clears `attention::VIRT` itself.
    pub fn virt_boundary(&mut self, point: Point) -> Exec<Option<Event>> {
        match self.model.vendor {
            Vendor::Intel => self.vmx_boundary(point),
            Vendor::Amd => self.svm_boundary(point),
        }
    }

    /// Whether a guest's RDTSCP and RDPID are not made undefined.
    pub fn virt_enables_rdtscp(&self) -> bool {
        !self.virt.guest
            || self.model.vendor != Vendor::Intel
            || self.virt.vmx.vmcs.secondary(undervisor_vmx::controls::secondary::ENABLE_RDTSCP)
    }

    /// Whether any interrupt or signal waits, whatever holds it back.
    pub(crate) fn events_wait(&mut self) -> bool {
        let s = &self.signals;
        s.nmi || s.smi || s.init || s.sipi.is_some() || self.apic.requested() || self.external_requested()
    }

    /// What can be taken at a boundary has changed: look, if anything waits.
    pub(crate) fn look_for_events(&mut self) {
        if self.events_wait() {
            self.attend(crate::cpu::attention::INTERRUPT);
        }
    }

    /// Whether the seam wants a boundary after the next instruction.
    pub fn virt_steps(&self) -> bool {
        self.virt.guest && self.model.vendor == Vendor::Intel && self.vmx_steps()
    }

    /// The first instruction count at which the seam wants a boundary (a VMX-preemption timer); `u64::MAX`: none.
    pub fn virt_deadline(&self) -> u64 {
        if !self.virt.guest {
            return u64::MAX;
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_deadline(),
            Vendor::Amd => u64::MAX,
        }
    }

    /// Ticks of the processor's TSC for a wait of `delay` ticks of the current level's.
    pub fn virt_physical_delay(&self, delay: u64) -> u64 {
        if self.virt.guest && self.model.vendor == Vendor::Intel { self.vmx_physical_delay(delay) } else { delay }
    }

    /// Whether an MWAIT that masked interrupts are to end does not wait at all.
    pub fn virt_masked_wait_is_over(&mut self) -> bool {
        self.virt.guest && self.model.vendor == Vendor::Intel && self.vmx_masked_wait_is_over()
    }

    /// Events have followed each other for `elapsed` units of time without an instruction boundary. `delivering`: the one that is to be
    /// delivered next, if it is not a debug trap.
    pub fn virt_stalled(&mut self, elapsed: u64, delivering: Option<Event>) -> Exec {
        if self.virt.guest && self.model.vendor == Vendor::Intel { self.vmx_stalled(elapsed, delivering) } else { Ok(()) }
    }

    /// Whether external interrupts can be taken (or exit) at this boundary.
    pub fn interrupt_open(&self) -> bool {
        let open = self.state.flag(Rflags::IF) && !self.state.shadow.sti && !self.state.shadow.mov_ss;
        match self.model.vendor {
            Vendor::Intel => self.vmx_interrupt_open(open),
            Vendor::Amd => self.svm_interrupt_open(open),
        }
    }

    /// Whether NMIs can be taken (or exit) at this boundary.
    pub fn nmi_open(&self) -> bool {
        let open = !self.state.shadow.nmi && !self.state.shadow.sti && !self.state.shadow.mov_ss;
        match self.model.vendor {
            Vendor::Intel => self.vmx_nmi_open(open),
            Vendor::Amd => self.svm_nmi_open(open),
        }
    }

    /// IRET ends blocking by NMI (or by virtual NMI).
    pub fn unblock_nmi(&mut self) {
        if !self.virt.guest {
            if self.state.shadow.nmi {
                self.state.shadow.nmi = false;
                self.virt.nmi_unblocked_by_iret = true;
                self.attend(crate::cpu::attention::INTERRUPT);
            }
            return;
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_unblock_nmi(),
            Vendor::Amd => self.svm_unblock_nmi(),
        }
    }

    /// What MOV from CR0, CR3 or CR4 (and SMSW) reads, `real` being the register.
    pub fn virt_read_cr(&self, cr: u8, real: u64) -> u64 {
        match self.model.vendor {
            Vendor::Intel if self.virt.guest => self.vmx_read_cr(cr, real),
            _ => real,
        }
    }

    /// What MOV to CR0 or CR4 (LMSW, CLTS) really loads when the guest writes `value`: host-owned bits stay.
    pub fn virt_write_cr(&self, cr: u8, value: u64) -> u64 {
        match self.model.vendor {
            Vendor::Intel if self.virt.guest => self.vmx_write_cr(cr, value),
            _ => value,
        }
    }

    /// Whether CR0 or CR4 may hold `value` (fixed bits in VMX operation); if not, #GP(0).
    pub fn virt_cr_allowed(&self, cr: u8, value: u64) -> bool {
        match self.model.vendor {
            Vendor::Intel => self.vmx_cr_allowed(cr, value),
            Vendor::Amd => true,
        }
    }

    /// MOV from CR8: a virtualized task priority (bits 3:0), or `None`: the local APIC's.
    pub fn virt_read_cr8(&mut self) -> Exec<Option<u64>> {
        if !self.virt.guest {
            return Ok(None);
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_read_cr8(),
            Vendor::Amd => self.svm_read_cr8(),
        }
    }

    /// MOV to CR8: whether a virtualized task priority took it.
    pub fn virt_write_cr8(&mut self, value: u64) -> Exec<bool> {
        if !self.virt.guest {
            return Ok(false);
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_write_cr8(value),
            Vendor::Amd => self.svm_write_cr8(value),
        }
    }

    /// RDMSR of an MSR that belongs to the seam (capability MSRs, VM_CR, virtualized x2APIC): its value, or `None`: not the
    /// seam's. Interception by bitmap has already been decided ([`Intercept::Rdmsr`]). May raise #GP.
    pub fn virt_read_msr(&mut self, msr: u32) -> Exec<Option<u64>> {
        match self.model.vendor {
            Vendor::Intel => self.vmx_read_msr(msr),
            Vendor::Amd => self.svm_read_msr(msr),
        }
    }

    /// WRMSR likewise: whether the seam took it.
    pub fn virt_write_msr(&mut self, msr: u32, value: u64) -> Exec<bool> {
        match self.model.vendor {
            Vendor::Intel => self.vmx_write_msr(msr, value),
            Vendor::Amd => self.svm_write_msr(msr, value),
        }
    }

    /// The TSC as the current level sees it, from the processor's own.
    pub fn virt_tsc(&self, tsc: u64) -> u64 {
        if !self.virt.guest {
            return tsc;
        }
        match self.model.vendor {
            Vendor::Intel => self.vmx_tsc(tsc),
            Vendor::Amd => self.svm_tsc(tsc),
        }
    }

    /// Deliver an event that VM entry or VMRUN injects. Call as the last step of the entry; what goes wrong in the delivery is
    /// handled as for any event (faults of the guest, exits). No single-step trap follows the instruction that entered.
    pub fn inject(&mut self, event: Event) -> Exec {
        crate::events::deliver(self, event, crate::events::Origin::Injected)
    }

    /// The CPL that an exit saves.
    pub fn interrupted_cpl(&self) -> u8 {
        self.virt.interrupted_cpl.unwrap_or(self.state.cpl)
    }

    /// MPERF as the current level sees it.
    pub fn virt_mperf(&self, clock: u64) -> u64 {
        if self.virt.guest && self.model.vendor == Vendor::Amd { self.svm_mperf(clock) } else { clock }
    }

    /// An exception made by the seam itself.
    pub fn raise_exception(&mut self, vector: u8) -> crate::cpu::Stop {
        self.raise(Exception::new(vector))
    }
}
