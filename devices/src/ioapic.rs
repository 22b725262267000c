//! I/O APIC, 82093AA with the EOI register of version 0x20 (Intel 82093AA data sheet; ICH9, Advanced Programmable
//! Interrupt Controller).

/// Redirection entries.
pub const ENTRIES: usize = 24;
/// Default address of the registers.
pub const BASE: u64 = 0xfec0_0000;
/// Bytes of register space.
pub const SIZE: u64 = 0x1000;

pub const VERSION: u32 = 0x20;

const DELIVERY_STATUS: u64 = 1 << 12;
const ACTIVE_LOW: u64 = 1 << 13;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
const WRITABLE: u64 = 0xff00_0000_0001_ffff & !READ_ONLY;

/// The I/O APIC. Interrupts leave as messages in ICR layout: bits 15:0 as in the redirection entry, destination in 63:32.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u8,
    select: u8,
    entries: [u64; ENTRIES],
    /// Asserted state of each input.
    lines: u32,
    /// Edges seen while masked are lost, as on the chip; level inputs are looked at again.
    messages: Vec<u64>,
}

impl Default for IoApic {
    fn default() -> IoApic {
        IoApic { id: 0, select: 0, entries: [MASKED; ENTRIES], lines: 0, messages: Vec::new() }
    }
}

impl IoApic {
    pub fn new() -> IoApic {
        IoApic::default()
    }

    /// Platform reset: input levels persist.
    pub fn reset(&mut self) {
        *self = IoApic { lines: self.lines, ..IoApic::default() };
    }

    /// Messages to be sent to local APICs, oldest first.
    pub fn take_messages(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.messages)
    }

    /// Drive an input. `asserted` is what the device means; the polarity bit stands for wiring that the board has already
    /// undone, so it changes nothing.
    pub fn set_pin(&mut self, pin: u8, asserted: bool) {
        let Some(&entry) = self.entries.get(pin as usize) else { return };
        let bit = 1 << pin;
        let rose = asserted && self.lines & bit == 0;
        self.lines = if asserted { self.lines | bit } else { self.lines & !bit };
        if entry & LEVEL != 0 {
            self.service(pin as usize);
        } else if rose && entry & MASKED == 0 {
            self.send(pin as usize);
        }
    }

    /// A level input that is up and not yet accepted sends.
    fn service(&mut self, pin: usize) {
        let entry = self.entries[pin];
        if entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL && self.lines & 1 << pin != 0 {
            // Remote IRR is for the modes that a local APIC answers with an EOI.
            if matches!(entry >> 8 & 7, 0 | 1) {
                self.entries[pin] |= REMOTE_IRR;
            }
            self.send(pin);
        }
    }

    fn send(&mut self, pin: usize) {
        let entry = self.entries[pin];
        let destination = match entry >> 56 {
            0xff => u32::MAX as u64,
            d => d,
        };
        // ICR layout: the level bit (14) is set, there is no shorthand.
        self.messages.push(destination << 32 | 1 << 14 | (entry & 0x8fff));
    }

    /// EOI broadcast, or a write of the EOI register.
    pub fn eoi(&mut self, vector: u8) {
        for pin in 0..ENTRIES {
            let e = self.entries[pin];
            if e & REMOTE_IRR != 0 && e & LEVEL != 0 && e as u8 == vector {
                self.entries[pin] &= !REMOTE_IRR;
                self.service(pin);
            }
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            0 | 2 => (self.id as u32) << 24,
            1 => VERSION | (ENTRIES as u32 - 1) << 16,
            n @ 0x10.. => match self.entries.get((n as usize - 0x10) / 2) {
                Some(e) => (e >> (32 * (n & 1))) as u32,
                None => u32::MAX,
            },
            _ => 0,
        }
    }

    fn write_register(&mut self, value: u32) {
        match self.select {
            0 => self.id = (value >> 24) as u8 & 0xf,
            n @ 0x10.. => {
                let pin = (n as usize - 0x10) / 2;
                let Some(entry) = self.entries.get_mut(pin) else { return };
                let shift = 32 * (n & 1);
                let mask = WRITABLE & (0xffff_ffff << shift);
                *entry = (*entry & !mask) | ((value as u64) << shift & mask);
                if *entry & LEVEL == 0 {
                    *entry &= !REMOTE_IRR;
                }
                self.service(pin);
            }
            _ => {}
        }
    }

    /// Read at an offset from the base.
    pub fn read(&mut self, offset: u64, size: usize) -> u64 {
        let value = match offset & 0xff & !3 {
            0 => self.select as u32,
            0x10 => self.read_register(),
            _ => 0,
        };
        (value as u64) >> (8 * (offset & 3)) & (u64::MAX >> (64 - 8 * size.clamp(1, 8)))
    }

    /// Write at an offset from the base.
    pub fn write(&mut self, offset: u64, _size: usize, value: u64) {
        match offset & 0xff {
            0 => self.select = value as u8,
            0x10 => self.write_register(value as u32),
            0x40 => self.eoi(value as u8),
            _ => {}
        }
    }

    /// Polarity bit of an entry, for dumps.
    pub fn active_low(&self, pin: usize) -> bool {
        self.entries.get(pin).is_some_and(|e| e & ACTIVE_LOW != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(io: &mut IoApic, pin: u64, entry: u64) {
        io.write(0, 4, 0x11 + 2 * pin);
        io.write(0x10, 4, entry >> 32);
        io.write(0, 4, 0x10 + 2 * pin);
        io.write(0x10, 4, entry & 0xffff_ffff);
    }
    fn get(io: &mut IoApic, pin: u64) -> u64 {
        io.write(0, 4, 0x10 + 2 * pin);
        io.read(0x10, 4)
    }

    #[test]
    fn version_says_24_entries() {
        let mut io = IoApic::new();
        io.write(0, 4, 1);
        assert_eq!(io.read(0x10, 4), 0x0017_0020);
        assert_eq!(get(&mut io, 23), 0x1_0000);
    }

    #[test]
    fn edge_sends_once_an_edge() {
        let mut io = IoApic::new();
        set(&mut io, 4, 3 << 56 | 0x31);
        io.set_pin(4, true);
        io.set_pin(4, true);
        assert_eq!(io.take_messages(), [3 << 32 | 0x4031]);
        io.set_pin(4, false);
        io.set_pin(4, true);
        assert_eq!(io.take_messages().len(), 1);
    }

    #[test]
    fn level_waits_for_eoi_and_comes_again() {
        let mut io = IoApic::new();
        set(&mut io, 16, LEVEL | 0x55);
        io.set_pin(16, true);
        assert_eq!(io.take_messages().len(), 1);
        assert_eq!(get(&mut io, 16) & REMOTE_IRR, REMOTE_IRR);
        io.set_pin(16, false);
        io.set_pin(16, true);
        assert!(io.take_messages().is_empty());
        io.eoi(0x54);
        assert!(io.take_messages().is_empty());
        io.write(0x40, 4, 0x55);
        assert_eq!(io.take_messages().len(), 1);
        io.set_pin(16, false);
        io.eoi(0x55);
        assert!(io.take_messages().is_empty());
        assert_eq!(get(&mut io, 16) & REMOTE_IRR, 0);
    }

    #[test]
    fn masked_level_is_sent_when_unmasked_masked_edge_is_lost() {
        let mut io = IoApic::new();
        set(&mut io, 5, MASKED | LEVEL | 0x41);
        set(&mut io, 6, MASKED | 0x42);
        io.set_pin(5, true);
        io.set_pin(6, true);
        assert!(io.take_messages().is_empty());
        set(&mut io, 5, LEVEL | 0x41);
        set(&mut io, 6, 0x42);
        assert_eq!(io.take_messages(), [0xc041]);
    }

    #[test]
    fn broadcast_is_widened_and_read_only_bits_stay() {
        let mut io = IoApic::new();
        set(&mut io, 1, 0xff << 56 | READ_ONLY | 0x21);
        assert_eq!(get(&mut io, 1), 0x21);
        io.set_pin(1, true);
        assert_eq!(io.take_messages(), [0xffff_ffff << 32 | 0x4021]);
    }

    #[test]
    fn switching_to_edge_clears_remote_irr() {
        let mut io = IoApic::new();
        set(&mut io, 7, LEVEL | 0x60);
        io.set_pin(7, true);
        set(&mut io, 7, MASKED | 0x60);
        set(&mut io, 7, MASKED | LEVEL | 0x60);
        assert_eq!(get(&mut io, 7) & REMOTE_IRR, 0);
    }
}
