//! The local APIC (SDM vol. 3, Advanced Programmable Interrupt Controller; APM vol. 2, Advanced Programmable Interrupt
//! Controller). [`LocalApic`] is registers and rules only; [`link`] ties it to a processor.
//!
//! Every operation leaves what it asks of the surroundings in [`LocalApic::out`].

pub mod link;
pub mod message;
pub mod registers;
#[cfg(test)]
mod tests;
pub mod timer;
pub mod vectors;

pub use message::{DeliveryMode, Message, Shorthand};
pub use timer::{TIMER_HZ, Timer, TimerMode};
pub use vectors::Vectors;

/// IA32_APIC_BASE bits.
pub const BASE_BSP: u64 = 1 << 8;
pub const BASE_X2APIC: u64 = 1 << 10;
pub const BASE_ENABLE: u64 = 1 << 11;
/// Physical address of the register page after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;

/// What the version register's low byte says: an integrated APIC.
pub const VERSION: u8 = 0x14;

/// Mask bit of an LVT register.
pub const LVT_MASK: u32 = 1 << 16;
/// Indices of [`LocalApic::lvt`].
pub const LVT_TIMER: usize = 0;
pub const LVT_THERMAL: usize = 1;
pub const LVT_PERFORMANCE: usize = 2;
pub const LVT_LINT0: usize = 3;
pub const LVT_LINT1: usize = 4;
pub const LVT_ERROR: usize = 5;
pub const LVT_CMCI: usize = 6;

/// Error status register bits.
pub mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// What an operation asks of the processor and of the computer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// An interrupt may have become deliverable, or the next deadline moved.
    pub look: bool,
    pub nmi: bool,
    pub smi: bool,
    pub init: bool,
    /// INIT level de-assert is dropped; this is a start-up IPI's vector.
    pub sipi: Option<u8>,
    /// ExtINT through a message or LVT entry: ask the 8259 pair for the vector.
    pub extint: bool,
    /// A message for other processors, in ICR layout with a 32-bit destination.
    pub ipi: Option<u64>,
    /// EOI of a level-triggered vector, for the I/O APICs.
    pub eoi: Option<u8>,
}

/// A local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalApic {
    /// x2APIC id, and the initial one of xAPIC mode (its low byte).
    pub id: u32,
    /// The id register of xAPIC mode, which software can write (SDM vol. 3, Local APIC ID; the processor may permit it).
    pub xapic_id: u8,
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Version register.
    pub version: u32,
    pub tpr: u8,
    /// xAPIC logical destination register. In x2APIC mode it derives from the id.
    pub xapic_ldr: u32,
    pub dfr: u32,
    pub svr: u32,
    pub isr: Vectors,
    pub tmr: Vectors,
    pub irr: Vectors,
    /// Errors since the last write of the error status register, and those that it shows.
    pub errors: u32,
    pub esr: u32,
    /// ICR with the destination as the current mode keeps it (xAPIC: bits 63:56).
    pub icr: u64,
    pub lvt: [u32; 7],
    pub timer: Timer,
    /// Levels of the LINT0 and LINT1 pins.
    pub pins: [bool; 2],
    /// Whether the model has x2APIC mode, and the TSC-deadline mode.
    pub has_x2apic: bool,
    pub has_tsc_deadline: bool,
    /// Effects not yet taken.
    pub out: Effects,
}

impl LocalApic {
    /// After RESET. Number 0 is the boot processor.
    pub fn new(id: u32) -> LocalApic {
        let mut apic = LocalApic {
            id,
            xapic_id: id as u8,
            base: DEFAULT_BASE | BASE_ENABLE | if id == 0 { BASE_BSP } else { 0 },
            version: (LVT_CMCI as u32) << 16 | VERSION as u32,
            tpr: 0,
            xapic_ldr: 0,
            dfr: 0,
            svr: 0,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            errors: 0,
            esr: 0,
            icr: 0,
            lvt: [0; 7],
            timer: Timer::default(),
            pins: [false; 2],
            has_x2apic: true,
            has_tsc_deadline: true,
            out: Effects::default(),
        };
        apic.init();
        apic
    }

    /// State after INIT (SDM vol. 3, Local APIC State After It Receives an INIT-Deassert IPI; Local APIC State After
    /// Power-Up or Reset): id, mode and base stay.
    pub fn init(&mut self) {
        self.tpr = 0;
        self.xapic_ldr = 0;
        self.dfr = u32::MAX;
        self.svr = 0xff;
        self.isr = Vectors::default();
        self.tmr = Vectors::default();
        self.irr = Vectors::default();
        self.errors = 0;
        self.esr = 0;
        self.icr = 0;
        self.lvt = [LVT_MASK; 7];
        self.timer = Timer::default();
    }

    /// Not switched off by IA32_APIC_BASE.
    pub fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }
    pub fn x2apic(&self) -> bool {
        self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE | BASE_X2APIC
    }
    /// Enabled, and not software-disabled by the spurious vector register either.
    pub fn software_enabled(&self) -> bool {
        self.enabled() && self.svr & 1 << 8 != 0
    }
    /// The page at which the registers appear in physical memory, in xAPIC mode only.
    pub fn page(&self) -> Option<u64> {
        (self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE).then_some(self.base & 0x000f_ffff_ffff_f000)
    }

    /// Write IA32_APIC_BASE; `None`: #GP (SDM vol. 3, x2APIC States; `physical_bits`: MAXPHYADDR).
    pub fn write_base(&mut self, value: u64, physical_bits: u32) -> Option<()> {
        let reserved = u64::MAX << physical_bits | 0x2ff;
        let mode = |v: u64| (v & BASE_ENABLE != 0, v & BASE_X2APIC != 0);
        let legal = match (mode(self.base), mode(value)) {
            (_, (false, true)) => false,
            (_, (_, true)) if !self.has_x2apic => false,
            // Out of x2APIC mode only by switching off; into it only from xAPIC mode.
            ((true, true), (true, false)) => false,
            ((false, _), (true, true)) => false,
            _ => true,
        };
        if value & reserved != 0 || !legal {
            return None;
        }
        let was = mode(self.base);
        self.base = value;
        if was.0 && !self.enabled() {
            // The state is lost; a later enable starts as after reset. Task priority is CR8's, and stays.
            let tpr = self.tpr;
            self.init();
            self.tpr = tpr;
            self.xapic_id = self.id as u8;
        }
        if !was.1 && self.x2apic() {
            self.icr = 0;
        }
        self.out.look = true;
        Some(())
    }

    /// Logical destination register.
    pub fn ldr(&self) -> u32 {
        if self.x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 15) } else { self.xapic_ldr }
    }

    /// Processor priority register.
    pub fn ppr(&self) -> u8 {
        vectors::processor_priority(self.tpr, self.isr.highest())
    }

    /// The vector that the processor would be given now: the highest requested one if it is above the processor priority.
    pub fn pending_vector(&self) -> Option<u8> {
        if !self.enabled() {
            return None;
        }
        vectors::deliverable(self.irr.highest(), self.ppr())
    }

    /// Whether any vector is requested, of whatever priority.
    pub fn requested(&self) -> bool {
        self.irr.highest().is_some()
    }

    /// The processor takes `vector`: requested becomes in service.
    pub fn acknowledge(&mut self, vector: u8) {
        self.irr.set(vector, false);
        self.isr.set(vector, true);
    }

    /// CR8 and the class of the task priority register are one.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }
    pub fn write_cr8(&mut self, class: u8) {
        self.write_tpr(class << 4);
    }

    pub(crate) fn write_tpr(&mut self, value: u8) {
        self.out.look |= value < self.tpr && self.irr.highest().is_some();
        self.tpr = value;
    }

    /// End of interrupt: the highest vector in service is done.
    pub fn end_of_interrupt(&mut self) {
        let Some(vector) = self.isr.highest() else { return };
        self.isr.set(vector, false);
        if self.tmr.contains(vector) {
            self.out.eoi = Some(vector);
        }
        self.out.look |= self.irr.highest().is_some();
    }

    /// A message that is for this APIC arrives.
    pub fn accept(&mut self, mode: DeliveryMode, vector: u8, level_triggered: bool) {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.software_enabled() {
                    return;
                }
                if vector < 16 {
                    self.error(esr::RECEIVE_ILLEGAL_VECTOR);
                    return;
                }
                self.request(vector, level_triggered);
            }
            DeliveryMode::Smi => self.out.smi = true,
            DeliveryMode::Nmi => self.out.nmi = true,
            DeliveryMode::Init => self.out.init = true,
            DeliveryMode::StartUp => self.out.sipi = Some(vector),
            DeliveryMode::ExtInt => self.out.extint = true,
            DeliveryMode::Reserved => {}
        }
        self.out.look = true;
    }

    /// Set a vector's request bit and trigger mode.
    fn request(&mut self, vector: u8, level_triggered: bool) {
        self.irr.set(vector, true);
        self.tmr.set(vector, level_triggered);
        self.out.look = true;
    }

    /// Record an error; a first one raises the error interrupt.
    pub(crate) fn error(&mut self, bit: u32) {
        let new = self.errors & bit == 0;
        self.errors |= bit;
        let lvt = self.lvt[LVT_ERROR];
        // An illegal vector in the error entry itself goes no further than its bit.
        if new && lvt & LVT_MASK == 0 {
            if lvt as u8 >= 16 {
                self.request(lvt as u8, false);
            } else {
                self.errors |= esr::RECEIVE_ILLEGAL_VECTOR;
            }
        }
    }

    /// The source of LVT entry `n` signals.
    pub fn fire(&mut self, n: usize) {
        let lvt = self.lvt[n];
        if lvt & LVT_MASK != 0 || !self.enabled() {
            return;
        }
        let mode = DeliveryMode::from_bits(lvt >> 8);
        match (n, mode) {
            // These two are always fixed.
            (LVT_TIMER | LVT_ERROR, _) => self.accept(DeliveryMode::Fixed, lvt as u8, false),
            (LVT_LINT0 | LVT_LINT1, DeliveryMode::Fixed) => self.accept(DeliveryMode::Fixed, lvt as u8, lvt & 1 << 15 != 0),
            (_, DeliveryMode::Fixed | DeliveryMode::Smi | DeliveryMode::Nmi) => self.accept(mode, lvt as u8, false),
            (LVT_LINT0 | LVT_LINT1, DeliveryMode::Init | DeliveryMode::ExtInt) => self.accept(mode, lvt as u8, false),
            _ => {}
        }
    }

    /// A performance counter overflowed: its entry fires. `masks`: and becomes masked, as on Intel's processors (SDM vol. 3, Local
    /// Vector Table); AMD's leave it open.
    pub fn performance_interrupt(&mut self, masks: bool) {
        self.fire(LVT_PERFORMANCE);
        if masks {
            self.lvt[LVT_PERFORMANCE] |= LVT_MASK;
        }
    }

    /// The level of a pin (0: LINT0, the 8259 pair's INTR; 1: LINT1, NMI) as the board drives it. ExtINT on LINT0 is a level
    /// that [`LocalApic::extint_open`] gates; everything else acts on the rising edge.
    pub fn set_pin(&mut self, n: usize, level: bool) {
        let Some(pin) = self.pins.get_mut(n) else { return };
        let rising = level && !*pin;
        *pin = level;
        if !rising {
            return;
        }
        if !self.enabled() {
            // Without the APIC the pins are INTR and NMI themselves.
            if n == 1 {
                self.out.nmi = true;
            }
            self.out.look = true;
            return;
        }
        let extint = DeliveryMode::from_bits(self.lvt[LVT_LINT0 + n] >> 8) == DeliveryMode::ExtInt;
        if extint && n == 0 {
            self.out.look = true;
        } else {
            self.fire(LVT_LINT0 + n);
        }
    }

    /// Whether the 8259 pair's INTR line reaches the core: through LINT0 as ExtINT, or directly with the APIC switched off.
    pub fn extint_open(&self) -> bool {
        if !self.enabled() {
            return true;
        }
        let lvt = self.lvt[LVT_LINT0];
        lvt & LVT_MASK == 0 && DeliveryMode::from_bits(lvt >> 8) == DeliveryMode::ExtInt
    }
}
