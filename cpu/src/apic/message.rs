//! Interrupt messages: what IPIs, I/O APICs and MSIs send to local APICs (SDM vol. 3, Issuing Interprocessor Interrupts;
//! Determining IPI Destination; Message Signalled Interrupts).

use super::LocalApic;
use super::vectors::processor_priority;

/// How an interrupt reaches the processor core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    Fixed = 0,
    LowestPriority = 1,
    Smi = 2,
    Reserved = 3,
    Nmi = 4,
    Init = 5,
    StartUp = 6,
    ExtInt = 7,
}

impl DeliveryMode {
    /// From bits 10:8 of an ICR, LVT entry or redirection entry, already shifted down.
    pub fn from_bits(bits: u32) -> DeliveryMode {
        [
            DeliveryMode::Fixed,
            DeliveryMode::LowestPriority,
            DeliveryMode::Smi,
            DeliveryMode::Reserved,
            DeliveryMode::Nmi,
            DeliveryMode::Init,
            DeliveryMode::StartUp,
            DeliveryMode::ExtInt,
        ][bits as usize & 7]
    }
}

/// Whom a message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    None,
    Oneself,
    All,
    Others,
}

/// A destination that means everyone, in 32 bits.
pub const BROADCAST: u32 = u32::MAX;

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub mode: DeliveryMode,
    pub vector: u8,
    pub level_triggered: bool,
    /// Level bit: false is de-assertion, which only INIT knows.
    pub assert: bool,
    pub logical: bool,
    /// x2APIC format; an 8-bit broadcast (FFh) must come widened to [`BROADCAST`].
    pub destination: u32,
    pub shorthand: Shorthand,
}

impl Message {
    /// From ICR bits with a 32-bit destination in the high half.
    pub fn from_icr(icr: u64) -> Message {
        let low = icr as u32;
        Message {
            mode: DeliveryMode::from_bits(low >> 8),
            vector: low as u8,
            level_triggered: low & 1 << 15 != 0,
            assert: low & 1 << 14 != 0,
            logical: low & 1 << 11 != 0,
            destination: (icr >> 32) as u32,
            shorthand: [Shorthand::None, Shorthand::Oneself, Shorthand::All, Shorthand::Others][(low >> 18) as usize & 3],
        }
    }

    /// From an MSI write (address in FEExxxxxh), or what an I/O APIC sends, which has the same fields.
    pub fn from_msi(address: u64, data: u32) -> Message {
        let destination = (address >> 12) as u32 & 0xff;
        Message {
            mode: DeliveryMode::from_bits(data >> 8),
            vector: data as u8,
            level_triggered: data & 1 << 15 != 0,
            assert: true,
            logical: address & 4 != 0,
            destination: widen(destination as u8),
            shorthand: Shorthand::None,
        }
    }
}

/// An 8-bit destination in 32 bits.
pub fn widen(destination: u8) -> u32 {
    if destination == 0xff { BROADCAST } else { destination as u32 }
}

impl LocalApic {
    /// Whether a message without shorthand is (also) for this APIC.
    pub fn matches(&self, message: &Message) -> bool {
        if !self.enabled() {
            return false;
        }
        let d = message.destination;
        if d == BROADCAST {
            return true;
        }
        if !message.logical {
            return d == if self.x2apic() { self.id } else { self.xapic_id as u32 };
        }
        let ldr = self.ldr();
        if self.x2apic() {
            return ldr >> 16 == d >> 16 && ldr & d & 0xffff != 0;
        }
        let (mine, d) = (ldr >> 24, d & 0xff);
        if self.dfr >> 28 == 0 { mine >> 4 == d >> 4 && mine & d & 0xf != 0 } else { mine & d != 0 }
    }

    /// Whether a message from processor `from` is (also) for this APIC, shorthands considered.
    pub fn addressed(&self, message: &Message, from: usize) -> bool {
        let own = from == self.id as usize;
        if message.mode == DeliveryMode::Reserved && message.shorthand == Shorthand::Others {
            // INVLPGB, which is no interrupt: whether the APIC is on does not matter.
            return !own;
        }
        match message.shorthand {
            Shorthand::None => self.matches(message),
            Shorthand::Oneself => own && self.enabled(),
            Shorthand::All => self.enabled(),
            Shorthand::Others => !own && self.enabled(),
        }
    }

    /// What lowest-priority delivery compares: the lowest wins (SDM vol. 3, Lowest Priority Delivery Mode).
    pub fn arbitration_priority(&self) -> u8 {
        let busy = self.isr.highest().max(self.irr.highest());
        processor_priority(self.tpr, busy)
    }
}

/// Which of several addressed APICs a lowest-priority message goes to: the least busy, the first among equals. Those that
/// are software-disabled take no part.
pub fn lowest_priority<'a>(candidates: impl Iterator<Item = (usize, &'a LocalApic)>) -> Option<usize> {
    candidates.filter(|(_, a)| a.software_enabled()).min_by_key(|(i, a)| (a.arbitration_priority(), *i)).map(|(i, _)| i)
}
