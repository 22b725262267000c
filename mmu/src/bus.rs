//! What a processor sees beyond RAM.

/// What a bus access asks of the processor that made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// An interrupt may have become deliverable: look before the next block.
    pub interrupt: bool,
    /// Leave the run loop after the running block: a device's deadline moved, another processor has a message, power is off.
    pub leave: bool,
}

/// Memory-mapped and port I/O of a computer. Sizes are 1, 2, 4 or 8 bytes (ports: 1, 2, 4); values are zero-extended.
/// `now` is the processor's virtual time at the access, in retired instructions (see the machine's clock).
pub trait Bus {
    /// A read of guest-physical memory that is not RAM. Nothing there: all ones.
    fn mmio_read(&mut self, now: u64, address: u64, size: usize) -> u64;
    /// A write of guest-physical memory that is not RAM. Nothing there, or ROM: dropped.
    fn mmio_write(&mut self, now: u64, address: u64, size: usize, value: u64);
    fn port_read(&mut self, now: u64, port: u16, size: usize) -> u32;
    fn port_write(&mut self, now: u64, port: u16, size: usize, value: u32);
    /// INTA cycle: the 8259 pair's vector. Called when the processor accepts an ExtINT.
    fn acknowledge_interrupt(&mut self, now: u64) -> u8;
    /// Whether the 8259 pair's INTR line is up.
    fn intr(&self) -> bool;
    /// A local APIC sends an interrupt message to the others (`icr`: ICR layout with the x2APIC 32-bit destination, all ones for
    /// everyone). The sender has already accepted its own share, except of a lowest-priority message, for which the sender is one
    /// candidate among the others. Every addressed processor is to `receive` it.
    fn send_ipi(&mut self, from: usize, icr: u64);
    /// EOI broadcast for a level-triggered vector.
    fn eoi(&mut self, vector: u8);
    /// FERR#: an unmasked x87 exception is pending with CR0.NE clear; a PC answers with IRQ 13.
    fn numeric_error(&mut self, _now: u64) {}
    /// What accesses since the last call ask of the processor; the processor asks after each access it makes.
    fn take_wish(&mut self) -> Wish;
}

/// Nothing attached; for tests.
#[derive(Debug, Default)]
pub struct NullBus;

impl Bus for NullBus {
    fn mmio_read(&mut self, _: u64, _: u64, size: usize) -> u64 {
        u64::MAX >> (64 - 8 * size)
    }
    fn mmio_write(&mut self, _: u64, _: u64, _: usize, _: u64) {}
    fn port_read(&mut self, _: u64, _: u16, size: usize) -> u32 {
        u32::MAX >> (32 - 8 * size)
    }
    fn port_write(&mut self, _: u64, _: u16, _: usize, _: u32) {}
    fn acknowledge_interrupt(&mut self, _: u64) -> u8 {
        0xff
    }
    fn intr(&self) -> bool {
        false
    }
    fn send_ipi(&mut self, _: usize, _: u64) {}
    fn eoi(&mut self, _: u8) {}
    fn take_wish(&mut self) -> Wish {
        Wish::default()
    }
}
