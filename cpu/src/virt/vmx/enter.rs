//! VM entry: VMLAUNCH and VMRESUME (SDM vol. 3, VM Entries).

use undervisor_core::{Activity, Event, EventKind, Rflags, Vector};
use undervisor_mmu::Ept;
use undervisor_vmx::capabilities::PREEMPTION_TIMER_SHIFT;
use undervisor_vmx::checks::state::NO_VMCS;
use undervisor_vmx::controls::{interruption, pin, primary, secondary};
use undervisor_vmx::entry::{Refusal, check, load_guest};
use undervisor_vmx::exit::record_failure;
use undervisor_vmx::fields::Groups;
use undervisor_vmx::reason::{ENTRY_FAILURE, basic, error};
use undervisor_vmx::{ExitInformation, Field, Memory, Vmcs, msr_area};

use crate::cpu::{Cpu, Exec, attention};
use crate::observe::{injected as injected_event, want};
use crate::paging::Nested;

/// What an entry takes from the controls, worked out once they have changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    made: bool,
    vpid: u16,
    /// The EPTP (which VMFUNC changes too) and what it stands for.
    eptp: u64,
    ept: Option<Ept>,
    /// Bus locks of the guest exit.
    pub(super) bus_locks: bool,
    /// Controls that are on ask for something to be watched or set up.
    watch: bool,
}

impl Plan {
    /// Whether it is still what the VMCS asks for. The page-modification log's index moves with every exit.
    fn stands(&self, v: &Vmcs) -> bool {
        self.made && self.ept.is_none_or(|e| e.pml.is_none() && self.eptp == v.get(Field::EPT_POINTER))
    }
}

impl Cpu {
    #[inline(never)]
    fn vmx_plan(&mut self) {
        let v = &self.virt.vmx.vmcs;
        let (vpid, eptp) = (v.vpid(), v.get(Field::EPT_POINTER));
        let windows = primary::INTERRUPT_WINDOW_EXITING | primary::NMI_WINDOW_EXITING | primary::MONITOR_TRAP_FLAG;
        let watch = v.primary(windows)
            || v.pin(pin::PREEMPTION_TIMER)
            || v.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY | secondary::VIRTUALIZE_APIC_ACCESSES);
        let ept = if v.ept() { Some(self.vmx_ept(eptp)) } else { None };
        let bus_locks = self.vmx_secondary(secondary::VMM_BUS_LOCK_DETECTION);
        self.virt.vmx.plan = Plan { made: true, vpid, eptp, ept, bus_locks, watch };
    }

    /// VMLAUNCH or VMRESUME, privilege already checked.
    pub(super) fn vmx_enter(&mut self, launch: bool) -> Exec {
        let x = &self.virt.vmx;
        if x.current == NO_VMCS || x.current_is_shadow {
            self.vmx_fail_invalid();
            self.debug_entry_failed(|_| "VMfailInvalid: no current VMCS, or a shadow VMCS".into());
            return Ok(());
        }
        if self.state.shadow.mov_ss {
            self.vmx_fail(error::ENTRY_BLOCKED_BY_MOV_SS);
            self.debug_entry_failed(|_| "VMfail: events are blocked by MOV SS".into());
            return Ok(());
        }
        if launch == x.vmcs.launched {
            self.vmx_fail(if launch { error::VMLAUNCH_NOT_CLEAR } else { error::VMRESUME_NOT_LAUNCHED });
            self.debug_entry_failed(|_| {
                let why = if launch { "VMLAUNCH of a launched VMCS" } else { "VMRESUME of a VMCS that is not launched" };
                format!("VMfail: {why}")
            });
            return Ok(());
        }
        if self.virt.vmx.capabilities.is_none() {
            self.vmx_capabilities();
        }
        let x = &mut self.virt.vmx;
        if x.vmcs.dirty & Groups::CONTROLS != 0 {
            x.plan.made = false;
        }
        let Some(capabilities) = &x.capabilities else { return Ok(()) };
        match check(&mut x.vmcs, capabilities, &self.state, &*self.shared, x.current) {
            Ok(()) => {}
            Err(Refusal::Fail(number, failure)) => {
                x.refusal = Some(failure);
                if self.observing != 0 {
                    self.observe_vmx_refused(&failure, number as u64);
                }
                self.vmx_fail_checked(number);
                self.debug_entry_failed(|cpu| format!("VMfail {number}: {}", cpu.vmx_refusal()));
                return Ok(());
            }
            Err(Refusal::Exit(information, failure)) => {
                x.refusal = Some(failure);
                if self.observing != 0 {
                    self.observe_vmx_refused(&failure, information.reason as u64);
                }
                self.vmx_entry_failed(&information);
                self.debug_entry_failed(|cpu| format!("exit reason {:#x}: {}", information.reason, cpu.vmx_refusal()));
                return Ok(());
            }
        }
        let now = self.now();
        // The preemption timer counts from here, whatever the guest's MSRs make of the TSC.
        let tsc = if self.vmx_pin(pin::PREEMPTION_TIMER) { self.tsc() } else { 0 };
        self.count();
        let counting = self.state.msrs.performance.global_control;
        load_guest(&self.virt.vmx.vmcs, &mut self.state, &*self.shared);
        if self.state.msrs.performance.global_control != counting {
            self.performance_changed();
        }
        self.current = std::ptr::null();
        let count = self.virt.vmx.vmcs.get32(Field::ENTRY_MSR_LOAD_COUNT);
        if count != 0 {
            let area = self.virt.vmx.vmcs.get(Field::ENTRY_MSR_LOAD_ADDRESS);
            let shared = self.shared.clone();
            if let Err(n) = msr_area::load(&*shared, area, count, |msr, value| self.write_msr(msr, value).is_ok()) {
                if self.observing != 0 {
                    let from = self.instruction_rip;
                    self.observe_msr_load_failed(n as u64, area, from);
                }
                self.vmx_entry_failed(&ExitInformation::qualified(basic::MSR_LOAD | ENTRY_FAILURE, n as u64));
                self.debug_entry_failed(|_| format!("entry {n} of the VM-entry MSR-load area cannot be loaded"));
                return Ok(());
            }
        }
        self.counters.vm_entries += 1;
        self.virt.vmx.vmcs.launched = true;
        self.vmx_entered(now, tsc);
        let info = self.virt.vmx.vmcs.get32(Field::ENTRY_INTERRUPTION_INFORMATION);
        if self.observing & (want::ENTRIES | want::STATISTICS | want::LINT) != 0 {
            let from = self.instruction_rip;
            self.observe_entry(now, u64::from(!launch), from, injected_event(info));
            if self.observing & want::LINT != 0 {
                self.lint_vmx_entry(from);
            }
        }
        if info & interruption::VALID != 0 && interruption::kind(info) != interruption::OTHER {
            return self.vmx_inject(info);
        }
        Ok(())
    }

    /// What the check said that refused the last entry.
    fn vmx_refusal(&self) -> String {
        self.virt.vmx.refusal.map_or_else(String::new, |failure| failure.to_string())
    }

    /// The guest's state is loaded: what surrounds it.
    fn vmx_entered(&mut self, now: u64, tsc: u64) {
        if !self.virt.vmx.plan.stands(&self.virt.vmx.vmcs) {
            self.vmx_plan();
        }
        let plan = &self.virt.vmx.plan;
        self.virt.guest = true;
        self.translations.guest = true;
        self.translations.tag = plan.vpid as u32;
        self.translations.nested = plan.ept.map_or(Nested::None, Nested::Ept);
        if plan.vpid == 0 {
            self.spaces.forget(|k| k.tag == 0);
        }
        let injecting = self.virt.vmx.vmcs.get32(Field::ENTRY_INTERRUPTION_INFORMATION) & interruption::VALID != 0;
        let watch = (plan.watch || injecting) && self.vmx_watch_from(now, tsc);
        self.virt.vmx.pause_last = 0;
        self.monitor.armed = false;
        self.mode_changed();
        let mut bits = if watch { attention::VIRT } else { 0 };
        if self.state.activity != Activity::Active {
            bits |= attention::INACTIVE;
        }
        // What stands between the host and its next instruction is not the guest's.
        self.attention &= !(attention::SHADOW | attention::INACTIVE);
        self.suppress_trap();
        self.notes.rf_loaded = true;
        self.notes.shadow_set = self.state.shadow.sti || self.state.shadow.mov_ss;
        let s = &self.state;
        if s.shadow.sti || s.shadow.mov_ss {
            bits |= attention::SHADOW;
        }
        if s.pending_debug != 0 || s.flag(Rflags::TF) || s.flag(Rflags::RF) || s.dr7 & 0xff != 0 {
            bits |= attention::DEBUG;
        }
        if bits != 0 {
            self.attend(bits);
        }
        self.look_for_events();
    }

    /// Set up what the guest is to be watched for, or set up with, that not every guest is. Whether its boundaries must be looked at.
    fn vmx_watch_from(&mut self, now: u64, tsc: u64) -> bool {
        let v = &self.virt.vmx.vmcs;
        let delivery = v.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY);
        let mut watch = v.primary(primary::INTERRUPT_WINDOW_EXITING | primary::NMI_WINDOW_EXITING) || delivery;
        let timer = v.pin(pin::PREEMPTION_TIMER).then(|| v.get(Field::PREEMPTION_TIMER_VALUE));
        let mtf = v.primary(primary::MONITOR_TRAP_FLAG);
        let info = v.get32(Field::ENTRY_INTERRUPTION_INFORMATION);
        let apic_access = v.secondary(secondary::VIRTUALIZE_APIC_ACCESSES);
        let threshold = apic_access && v.primary(primary::TPR_SHADOW) && !delivery;
        if apic_access {
            self.virt.vmx.apic_access_page = v.get(Field::APIC_ACCESS_ADDRESS);
        }
        if let Some(ticks) = timer {
            let start = tsc >> PREEMPTION_TIMER_SHIFT;
            self.virt.vmx.timer = Some(start.wrapping_add(ticks) << PREEMPTION_TIMER_SHIFT);
            // The chain must not run past it.
            watch = true;
        }
        if delivery || threshold {
            let memory: &dyn Memory = &*self.shared;
            let mut apic = undervisor_vmx::apic::VirtualApic { vmcs: &mut self.virt.vmx.vmcs, memory };
            apic.entered();
            if threshold && apic.below_threshold() {
                self.virt.vmx.pending_exit = Some(ExitInformation::new(basic::TPR_BELOW_THRESHOLD));
                watch = true;
            }
        }
        let injected = info & interruption::VALID != 0;
        if injected && interruption::kind(info) == interruption::OTHER {
            self.virt.vmx.pending_exit = Some(ExitInformation::new(basic::MONITOR_TRAP_FLAG));
            watch = true;
        }
        if mtf {
            // With an injected event the exit comes before the handler's first instruction.
            if injected && interruption::kind(info) != interruption::OTHER {
                self.virt.vmx.pending_exit = Some(ExitInformation::new(basic::MONITOR_TRAP_FLAG));
            } else {
                // After VMLAUNCH itself and one instruction of the guest.
                self.virt.vmx.mtf_since = Some((now + 2, self.vmx_events_seen()));
            }
            watch = true;
        }
        watch
    }

    /// Event injection (SDM vol. 3, Event Injection).
    fn vmx_inject(&mut self, info: u32) -> Exec {
        let v = &self.virt.vmx.vmcs;
        let vector = interruption::vector(info);
        let kind = match interruption::kind(info) {
            interruption::EXTERNAL => EventKind::External,
            interruption::NMI => EventKind::Nmi,
            interruption::SOFTWARE => EventKind::Software,
            interruption::PRIVILEGED_SOFTWARE_EXCEPTION => EventKind::PrivilegedSoftwareException,
            interruption::SOFTWARE_EXCEPTION => EventKind::SoftwareException,
            _ => EventKind::HardwareException,
        };
        let software = interruption::kind(info) >= interruption::SOFTWARE;
        let event = Event {
            kind,
            vector,
            error_code: (info & interruption::ERROR_CODE != 0).then(|| v.get32(Field::ENTRY_EXCEPTION_ERROR_CODE)),
            payload: if vector == Vector::PF { self.state.cr2 } else { 0 },
            instruction_length: if software { v.get(Field::ENTRY_INSTRUCTION_LENGTH) as u8 } else { 0 },
        };
        if kind == EventKind::Nmi {
            self.state.shadow.nmi = true;
        }
        match self.inject(event) {
            // The exit of its delivery has already happened; VMLAUNCH itself is complete.
            Err(crate::cpu::Stop::Exit) => Ok(()),
            other => other,
        }
    }

    /// A failure during or after the loading of guest state (SDM vol. 3, VM-Entry Failures During or After Loading Guest State).
    fn vmx_entry_failed(&mut self, information: &ExitInformation) {
        self.counters.vm_exits += 1;
        let v = &mut self.virt.vmx.vmcs;
        record_failure(v, information);
        let no_vpid = v.vpid() == 0;
        self.vmx_load_host(no_vpid);
    }
}
