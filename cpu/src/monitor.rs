//! The address range that MONITOR arms and MWAIT waits for (SDM vol. 3, Detecting and Arming a Range with MONITOR).
//!
//! Processors take turns on one thread, so nothing can store to the line while its processor waits except another's turn or a
//! device: comparing the line's contents at the start of each turn finds every store that changes it.

use undervisor_core::Activity;

use crate::cpu::Cpu;

/// The armed range.
#[derive(Clone, Copy, Debug)]
pub struct Monitor {
    pub armed: bool,
    /// Guest-physical address of the 64-byte line.
    pub physical: u64,
    pub contents: [u8; 64],
    /// MWAIT's ECX bit 0: interrupts end the wait even when masked.
    pub masked_interrupts: bool,
}

impl Default for Monitor {
    fn default() -> Monitor {
        Monitor { armed: false, physical: 0, contents: [0; 64], masked_interrupts: false }
    }
}

impl Cpu {
    /// MONITOR: watch the line at `physical` (aligned).
    pub fn arm_monitor(&mut self, physical: u64) {
        let mut contents = [0; 64];
        // Not RAM: never fires by itself; MWAIT then waits for interrupts.
        let armed = self.shared.memory.read_bytes(physical, &mut contents).is_ok();
        self.monitor = Monitor { armed, physical, contents, masked_interrupts: false };
    }

    /// Whether the armed line has changed.
    pub fn monitor_fired(&self) -> bool {
        let mut contents = [0; 64];
        self.shared.memory.read_bytes(self.monitor.physical, &mut contents).is_err() || contents != self.monitor.contents
    }

    /// A processor in MWAIT whose line was stored to goes on. To be called before deciding that it has nothing to do.
    pub fn poll_monitor(&mut self) {
        if self.state.activity == Activity::Mwait && self.monitor_fired() {
            self.monitor.armed = false;
            self.state.activity = Activity::Active;
        }
    }
}
