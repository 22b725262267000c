//! Signals that reach a processor from outside, apart from fixed interrupts (which the local APIC holds).

use crate::cpu::{Cpu, attention};

/// Signals that wait for a boundary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signals {
    pub nmi: bool,
    pub init: bool,
    /// Vector of a start-up IPI. Dropped by a processor that does not wait for one.
    pub sipi: Option<u8>,
    pub smi: bool,
}

impl Cpu {
    /// An NMI arrives.
    pub fn signal_nmi(&mut self) {
        self.signals.nmi = true;
        self.attend(attention::INTERRUPT);
    }
    /// An INIT arrives.
    pub fn signal_init(&mut self) {
        self.signals.init = true;
        self.attend(attention::INTERRUPT);
    }
    /// A start-up IPI arrives.
    pub fn signal_sipi(&mut self, vector: u8) {
        self.signals.sipi = Some(vector);
        self.attend(attention::INTERRUPT);
    }
    /// Fixed interrupts may be pending: look at the APIC and the 8259 line.
    pub fn signal_interrupt(&mut self) {
        self.attend(attention::INTERRUPT);
    }
}
