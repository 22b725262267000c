//! The address range that MONITOR and UMONITOR arm, and the wait for it (SDM vol. 3, Detecting and Arming a Range with MONITOR).
//!
//! Processors take turns on one thread, so nothing can store to the line while its processor waits except another's turn or a
//! device: comparing the line's contents at the start of each turn finds every store that changes it.

use undervisor_core::Activity;

use crate::cpu::Cpu;

/// The armed range.
#[derive(Clone, Copy, Debug)]
pub struct Monitor {
    pub armed: bool,
    /// By UMONITOR: for UMWAIT and not for MWAIT.
    pub user: bool,
    /// Guest-physical address of the 64-byte line.
    pub physical: u64,
    pub contents: [u8; 64],
    /// What ends the wait under way, events apart.
    pub wait: Wait,
}

/// What ends a wait.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// A store to the line.
    pub line: bool,
    /// Interrupts even when masked.
    pub masked_interrupts: bool,
    /// A virtual time.
    pub deadline: u64,
    /// That time is the limit which the OS sets, and comes before the one that the instruction asks for.
    pub limited: bool,
}

impl Default for Wait {
    fn default() -> Wait {
        Wait { line: false, masked_interrupts: false, deadline: u64::MAX, limited: false }
    }
}

impl Default for Monitor {
    fn default() -> Monitor {
        Monitor { armed: false, user: false, physical: 0, contents: [0; 64], wait: Wait::default() }
    }
}

impl Cpu {
    /// Watch the line at `physical` (aligned).
    pub fn arm_monitor(&mut self, physical: u64, user: bool) {
        let mut contents = [0; 64];
        // Not RAM: never fires by itself; MWAIT then waits for interrupts.
        let armed = self.shared.memory.read_bytes(physical, &mut contents).is_ok();
        self.monitor = Monitor { armed, user, physical, contents, wait: Wait::default() };
    }

    /// Whether the armed line has changed.
    pub fn monitor_fired(&self) -> bool {
        let mut contents = [0; 64];
        self.shared.memory.read_bytes(self.monitor.physical, &mut contents).is_err() || contents != self.monitor.contents
    }

    /// Whether the processor waits for a line that has been stored to.
    pub fn stored_to(&self) -> bool {
        self.state.activity == Activity::Mwait && self.monitor.wait.line && self.monitor_fired()
    }

    /// The virtual time at which the wait under way ends by itself; `u64::MAX`: never.
    pub(crate) fn wait_deadline(&self) -> u64 {
        if self.state.activity == Activity::Mwait { self.monitor.wait.deadline } else { u64::MAX }
    }

    /// A processor whose wait is over goes on. To be called before deciding that it has nothing to do.
    pub fn poll_monitor(&mut self) {
        let late = self.wait_deadline() <= self.now();
        if late || self.stored_to() {
            self.monitor.armed = false;
            self.state.activity = Activity::Active;
            if late && self.monitor.wait.limited {
                self.state.set_carry(1);
            }
        }
    }
}
