//! VM entry: VMLAUNCH and VMRESUME (SDM vol. 3, VM Entries).

use undervisor_core::{Activity, Event, EventKind, Rflags, Vector};
use undervisor_vmx::capabilities::PREEMPTION_TIMER_SHIFT;
use undervisor_vmx::checks::state::NO_VMCS;
use undervisor_vmx::controls::{interruption, pin, primary, secondary};
use undervisor_vmx::entry::{Refusal, check, load_guest};
use undervisor_vmx::exit::record_failure;
use undervisor_vmx::reason::{ENTRY_FAILURE, basic, error};
use undervisor_vmx::{ExitInformation, Field, Memory, msr_area};

use crate::cpu::{Cpu, Exec, attention};
use crate::observe::{injected as injected_event, want};
use crate::paging::Nested;

impl Cpu {
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
        let shared = self.shared.clone();
        let memory: &dyn Memory = &*shared;
        let capabilities = self.vmx_capabilities();
        let x = &mut self.virt.vmx;
        match check(&mut x.vmcs, &capabilities, &self.state, memory, x.current) {
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
        let (now, tsc) = (self.now(), self.tsc());
        self.count();
        let counting = self.state.msrs.performance.global_control;
        load_guest(&self.virt.vmx.vmcs, &mut self.state, memory);
        if self.state.msrs.performance.global_control != counting {
            self.performance_changed();
        }
        self.current = std::ptr::null();
        let count = self.virt.vmx.vmcs.get32(Field::ENTRY_MSR_LOAD_COUNT);
        if count != 0 {
            let area = self.virt.vmx.vmcs.get(Field::ENTRY_MSR_LOAD_ADDRESS);
            if let Err(n) = msr_area::load(memory, area, count, |msr, value| self.write_msr(msr, value).is_ok()) {
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
        self.vmx_entered(&*shared, now, tsc);
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
    fn vmx_entered(&mut self, memory: &dyn Memory, now: u64, tsc: u64) {
        let v = &self.virt.vmx.vmcs;
        let vpid = v.vpid();
        let eptp = v.ept().then(|| v.get(Field::EPT_POINTER));
        let mut watch = v.primary(primary::INTERRUPT_WINDOW_EXITING | primary::NMI_WINDOW_EXITING)
            || v.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY);
        let timer = v.pin(pin::PREEMPTION_TIMER).then(|| v.get(Field::PREEMPTION_TIMER_VALUE));
        let mtf = v.primary(primary::MONITOR_TRAP_FLAG);
        let info = v.get32(Field::ENTRY_INTERRUPTION_INFORMATION);
        let apic_access =
            if v.secondary(secondary::VIRTUALIZE_APIC_ACCESSES) { v.get(Field::APIC_ACCESS_ADDRESS) } else { NO_VMCS };
        let threshold = v.primary(primary::TPR_SHADOW)
            && v.secondary(secondary::VIRTUALIZE_APIC_ACCESSES)
            && !v.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY);
        let delivery = v.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY);
        self.virt.guest = true;
        self.translations.guest = true;
        self.translations.tag = vpid as u32;
        self.translations.nested = match eptp {
            None => Nested::None,
            Some(eptp) => Nested::Ept(self.vmx_ept(eptp)),
        };
        if vpid == 0 {
            self.spaces.forget(|k| k.tag == 0);
        }
        self.virt.vmx.apic_access_page = apic_access;
        self.virt.vmx.pause_last = 0;
        if let Some(ticks) = timer {
            let start = tsc >> PREEMPTION_TIMER_SHIFT;
            self.virt.vmx.timer = Some(start.wrapping_add(ticks) << PREEMPTION_TIMER_SHIFT);
            // The chain must not run past it.
            watch = true;
        }
        if delivery || threshold {
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
