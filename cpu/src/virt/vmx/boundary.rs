//! What VMX watches for between instructions, and events that exit.

use undervisor_core::{Activity, Event, EventKind, Rflags, Vector};
use undervisor_vmx::capabilities::PREEMPTION_TIMER_SHIFT;
use undervisor_vmx::controls::{exit, interruption, pin, primary, secondary};
use undervisor_vmx::reason::basic;
use undervisor_vmx::{ExitInformation, Field};

use super::leave::{SavedRf, information};
use crate::cpu::{Cpu, Exec, Stop, attention};
use crate::events::is_fault;
use crate::virt::{Point, TaskSwitch};

impl Cpu {
    pub(in crate::virt) fn vmx_boundary(&mut self, point: Point) -> Exec<Option<Event>> {
        if !self.virt.guest {
            self.attention &= !attention::VIRT;
            return Ok(None);
        }
        match point {
            Point::BeforeInit => self.vmx_bus_lock_exit()?,
            Point::BeforeTraps => self.vmx_trap_exits()?,
            Point::BeforeNmi => {
                if self.vmx_timer_expired() && self.state.activity != Activity::WaitForSipi {
                    return Err(self.vmx_exit_event(ExitInformation::new(basic::PREEMPTION_TIMER)));
                }
                let s = &self.state;
                let open = !s.shadow.nmi && !s.shadow.mov_ss && !s.shadow.sti;
                if self.vmx_primary(primary::NMI_WINDOW_EXITING) && open && s.activity != Activity::WaitForSipi {
                    return Err(self.vmx_exit_event(ExitInformation::new(basic::NMI_WINDOW)));
                }
            }
            Point::BeforeInterrupt => return self.vmx_interrupt_window(),
            Point::AfterInterrupt => {
                if !self.vmx_watching() {
                    self.attention &= !attention::VIRT;
                }
            }
        }
        Ok(None)
    }

    /// An instruction has asserted a bus lock (SDM vol. 3, Other Causes of VM Exits). What else its completion causes exits in
    /// its place, and says so in the exit reason.
    fn vmx_bus_lock_exit(&mut self) -> Exec {
        if !self.virt.vmx.bus_lock {
            return Ok(());
        }
        self.vmx_apic_exits()?;
        Err(self.vmx_exit_event(ExitInformation::new(basic::BUS_LOCK)))
    }

    /// An instruction boundary has not been reached for `elapsed` ticks of the crystal clock (SDM vol. 3, Instruction-Timeout
    /// Control), because the delivery of events causes events: an exit if that is too long. `delivering`: the one that is next.
    pub(in crate::virt) fn vmx_stalled(&mut self, elapsed: u64, delivering: Option<Event>) -> Exec {
        let v = &self.virt.vmx.vmcs;
        if !v.secondary(secondary::INSTRUCTION_TIMEOUT) || elapsed <= v.get(Field::INSTRUCTION_TIMEOUT_CONTROL) {
            return Ok(());
        }
        self.virt.delivering = delivering;
        Err(self.vmx_exit_event(ExitInformation::new(basic::INSTRUCTION_TIMEOUT)))
    }

    /// Exits that an instruction left behind when it completed.
    fn vmx_trap_exits(&mut self) -> Exec {
        self.vmx_apic_exits()?;
        if let Some((since, events)) = self.virt.vmx.mtf_since
            && (self.now() >= since || self.vmx_events_seen() != events)
        {
            return Err(self.vmx_exit_event(ExitInformation::new(basic::MONITOR_TRAP_FLAG)));
        }
        Ok(())
    }

    /// The emulation of an APIC write, and the exits of virtualized writes.
    fn vmx_apic_exits(&mut self) -> Exec {
        if let Some(offset) = self.virt.vmx.apic_written.take() {
            let shared = self.shared.clone();
            let bits = self.physical_bits();
            let effect = self.vmx_apic(&shared).page_written(offset, bits);
            self.vmx_apic_effect(effect);
        }
        if let Some(information) = self.virt.vmx.pending_exit {
            let stop = self.vmx_exit_event(information);
            return Err(stop);
        }
        Ok(())
    }

    /// Events delivered so far: the monitor trap flag counts a delivery as it does an instruction.
    pub(super) fn vmx_events_seen(&self) -> u64 {
        self.counters.exceptions + self.counters.interrupts
    }

    /// Whether the next instruction must be followed by a boundary.
    pub(in crate::virt) fn vmx_steps(&self) -> bool {
        self.virt.vmx.mtf_since.is_some()
    }

    /// Whether a boundary must be looked at again.
    fn vmx_watching(&self) -> bool {
        let x = &self.virt.vmx;
        x.pending_exit.is_some()
            || x.bus_lock
            || x.apic_written.is_some()
            || x.mtf_since.is_some()
            || x.vmcs.primary(primary::NMI_WINDOW_EXITING | primary::INTERRUPT_WINDOW_EXITING)
            || x.vmcs.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY)
    }

    /// Interrupt-window exits, and delivery of virtual interrupts.
    fn vmx_interrupt_window(&mut self) -> Exec<Option<Event>> {
        let s = &self.state;
        let open = s.flag(Rflags::IF) && !s.shadow.mov_ss && !s.shadow.sti;
        if !open || !matches!(s.activity, Activity::Active | Activity::Hlt | Activity::Mwait) {
            return Ok(None);
        }
        if self.vmx_primary(primary::INTERRUPT_WINDOW_EXITING) {
            return Err(self.vmx_exit_event(ExitInformation::new(basic::INTERRUPT_WINDOW)));
        }
        if self.vmx_secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY) {
            let shared = self.shared.clone();
            let mut apic = self.vmx_apic(&shared);
            if apic.interrupt_pending() {
                let vector = apic.deliver();
                return Ok(Some(Event {
                    kind: EventKind::External,
                    vector,
                    error_code: None,
                    payload: 0,
                    instruction_length: 0,
                }));
            }
        }
        Ok(None)
    }

    // ---- the preemption timer -----------------------------------------------------------------------------------------------

    fn vmx_timer_expired(&self) -> bool {
        self.virt.vmx.timer.is_some_and(|at| self.tsc().wrapping_sub(at) as i64 >= 0)
    }

    /// What the timer would read now.
    pub(super) fn vmx_timer_left(&self) -> u32 {
        let Some(at) = self.virt.vmx.timer else { return self.virt.vmx.vmcs.get32(Field::PREEMPTION_TIMER_VALUE) };
        let left = (at >> PREEMPTION_TIMER_SHIFT).wrapping_sub(self.tsc() >> PREEMPTION_TIMER_SHIFT);
        if left as i64 <= 0 { 0 } else { left as u32 }
    }

    pub(in crate::virt) fn vmx_deadline(&self) -> u64 {
        self.virt.vmx.timer.map_or(u64::MAX, |at| self.time_of_tsc(at))
    }

    // ---- events --------------------------------------------------------------------------------------------------------------

    pub(in crate::virt) fn vmx_intercept_exception(&mut self, event: &Event) -> Exec {
        let v = &self.virt.vmx.vmcs;
        let mut exits = v.get(Field::EXCEPTION_BITMAP) >> (event.vector & 31) & 1 != 0;
        if event.vector == Vector::PF {
            let code = event.error_code.unwrap_or(0);
            let matches = code & v.get32(Field::PAGE_FAULT_MASK) == v.get32(Field::PAGE_FAULT_MATCH);
            exits = exits == matches;
        }
        if !exits {
            return Ok(());
        }
        let hardware = event.kind == EventKind::HardwareException;
        let mut info = ExitInformation::new(basic::EXCEPTION_OR_NMI);
        info.interruption_information = information(event);
        info.interruption_error_code = event.error_code.unwrap_or(0);
        info.qualification = match event.vector {
            Vector::PF => event.payload,
            Vector::DB if hardware => event.payload & 0x680f,
            _ => 0,
        };
        if self.virt.nmi_unblocked_by_iret && event.vector != Vector::DF && self.virt.delivering.is_none() {
            info.interruption_information |= interruption::NMI_UNBLOCKING;
        }
        if !hardware {
            info.instruction_length = event.instruction_length as u32;
        }
        let rf = if is_fault(event) { SavedRf::Set } else { SavedRf::Keep };
        let rip = self.state.rip();
        let rip = if hardware { rip } else { self.vmx_rip() };
        Err(self.vmx_exit(info, rip, rf))
    }

    pub(in crate::virt) fn vmx_intercept_triple_fault(&mut self) -> Exec {
        Err(self.vmx_exit_event(ExitInformation::new(basic::TRIPLE_FAULT)))
    }

    pub(in crate::virt) fn vmx_intercept_nmi(&mut self) -> Exec {
        if !self.vmx_pin(pin::NMI_EXITING) {
            return Ok(());
        }
        let mut info = ExitInformation::new(basic::EXCEPTION_OR_NMI);
        info.interruption_information = interruption::VALID | interruption::NMI << 8 | Vector::NMI as u32;
        Err(self.vmx_exit_event(info))
    }

    /// An external interrupt can be taken. `Err(Stop::Again)`: it was a posted-interrupt notification, now processed.
    pub(in crate::virt) fn vmx_intercept_interrupt(&mut self) -> Exec {
        if !self.vmx_pin(pin::EXTERNAL_INTERRUPT_EXITING) {
            return Ok(());
        }
        let mut info = ExitInformation::new(basic::EXTERNAL_INTERRUPT);
        if self.virt.vmx.vmcs.exit_control(exit::ACKNOWLEDGE_INTERRUPT) {
            let Some(vector) = self.acknowledge_interrupt() else { return Err(Stop::Again) };
            if self.vmx_pin(pin::POSTED_INTERRUPTS)
                && vector as u64 == self.virt.vmx.vmcs.get(Field::POSTED_INTERRUPT_NOTIFICATION_VECTOR)
            {
                self.apic.end_of_interrupt();
                self.apic_settle();
                let shared = self.shared.clone();
                self.vmx_apic(&shared).posted();
                self.attend(attention::VIRT);
                return Err(Stop::Again);
            }
            info.interruption_information = interruption::VALID | interruption::EXTERNAL << 8 | vector as u32;
        }
        Err(self.vmx_exit_event(info))
    }

    pub(in crate::virt) fn vmx_intercept_task_switch(&mut self, switch: &TaskSwitch) -> Exec {
        let qualification = switch.selector as u64 | (switch.source as u64) << 30;
        let info = ExitInformation::qualified(basic::TASK_SWITCH, qualification);
        Err(self.vmx_exit_instruction(info))
    }
}
