//! A function's configuration space (PCI Local Bus Specification 3.0, Configuration Space): bytes with write masks, base
//! address registers, the capability list.

use super::BarRange;

/// COMMAND bits.
pub const COMMAND_IO: u16 = 1 << 0;
pub const COMMAND_MEMORY: u16 = 1 << 1;
pub const COMMAND_MASTER: u16 = 1 << 2;
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CAPABILITY_POINTER: usize = 0x34;
const FIRST_BAR: usize = 0x10;
const SIZE: usize = 256;

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Power of two, at least 16.
    Memory32 { size: u32 },
    /// Takes two registers.
    Memory64 { size: u64, prefetchable: bool },
    /// Power of two, at least 4.
    Io { size: u32 },
}

/// Configuration space of a conventional function: 256 bytes.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// Bits that software can write.
    writable: [u8; SIZE],
    bars: [Option<Bar>; 6],
    power_on: Option<Box<[u8; SIZE]>>,
    next_capability: usize,
    link: usize,
}

impl ConfigSpace {
    /// `class`: base class, subclass, interface in bits 23:0.
    pub fn new(vendor: u16, device: u16, revision: u8, class: u32) -> ConfigSpace {
        let mut c = ConfigSpace {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: [None; 6],
            power_on: None,
            next_capability: 0x40,
            link: CAPABILITY_POINTER,
        };
        c.set(0x00, &vendor.to_le_bytes());
        c.set(0x02, &device.to_le_bytes());
        c.bytes[0x08] = revision;
        c.set(0x09, &class.to_le_bytes()[..3]);
        // I/O, memory, master, parity, SERR, INTx disable.
        c.writable[COMMAND..COMMAND + 2].copy_from_slice(&0x0547u16.to_le_bytes());
        // Cache line size, latency timer; interrupt line.
        (c.writable[0x0c], c.writable[0x0d], c.writable[0x3c]) = (0xff, 0xff, 0xff);
        c
    }

    /// Store bytes as they will read; out of range is ignored.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        if let Some(at) = self.bytes.get_mut(offset..offset + data.len()) {
            at.copy_from_slice(data);
        }
    }

    /// Let software write the set bits of `mask`.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        if let Some(at) = self.writable.get_mut(offset..offset + mask.len()) {
            at.copy_from_slice(mask);
        }
    }

    pub fn subsystem(&mut self, vendor: u16, device: u16) {
        self.set(0x2c, &vendor.to_le_bytes());
        self.set(0x2e, &device.to_le_bytes());
    }

    /// The function has an INTx pin: 1 = INTA.
    pub fn interrupt_pin(&mut self, pin: u8) {
        self.bytes[0x3d] = pin;
    }

    /// Give the function a base address register.
    pub fn bar(&mut self, index: usize, bar: Bar) {
        let at = FIRST_BAR + 4 * index;
        let (low, mask) = match bar {
            Bar::Memory32 { size } => (0, !(size as u64 - 1) & 0xffff_fff0),
            Bar::Memory64 { size, prefetchable } => (4 | (prefetchable as u32) << 3, !(size - 1) & !0xf),
            Bar::Io { size } => (1, !(size as u64 - 1) & 0xffff_fffc),
        };
        let Some(slot) = self.bars.get_mut(index) else { return };
        *slot = Some(bar);
        self.set(at, &low.to_le_bytes());
        let width = if matches!(bar, Bar::Memory64 { .. }) { 8 } else { 4 };
        self.allow(at, &mask.to_le_bytes()[..width]);
    }

    /// Append a capability; `body` is what follows its id and link. Where it begins, or 0 if there is no room left.
    pub fn capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next_capability;
        let end = (at + 2 + body.len()).next_multiple_of(4);
        if end > SIZE {
            return 0;
        }
        self.bytes[self.link] = at as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.bytes[at] = id;
        self.set(at + 2, body);
        self.link = at + 1;
        self.next_capability = end;
        at
    }

    /// The space is complete: what it holds now is its state after reset.
    pub fn finish(&mut self) {
        self.power_on = Some(Box::new(self.bytes));
    }

    pub fn reset(&mut self) {
        if let Some(bytes) = &self.power_on {
            self.bytes = **bytes;
        }
    }

    pub fn read(&self, offset: u16, size: usize) -> u32 {
        let mut value = 0;
        for i in 0..size.min(4) {
            let byte = self.bytes.get(offset as usize + i).copied().unwrap_or(0xff);
            value |= (byte as u32) << (8 * i);
        }
        value
    }

    pub fn write(&mut self, offset: u16, size: usize, value: u32) {
        for i in 0..size.min(4) {
            let at = offset as usize + i;
            let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) else { return };
            *byte = (*byte & !mask) | ((value >> (8 * i)) as u8 & mask);
        }
    }

    /// A byte as it reads.
    pub fn byte(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0xff)
    }

    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// Whether it may write to memory of its own accord, to send a message for example.
    pub fn masters(&self) -> bool {
        self.command() & COMMAND_MASTER != 0
    }

    /// Show the INTx state in STATUS.
    pub fn set_interrupt_status(&mut self, level: bool) {
        self.bytes[STATUS] = (self.bytes[STATUS] & !STATUS_INTERRUPT) | if level { STATUS_INTERRUPT } else { 0 };
    }

    /// What decodes now.
    pub fn ranges(&self) -> Vec<BarRange> {
        let command = self.command();
        let mut out = Vec::new();
        for (i, bar) in self.bars.iter().enumerate() {
            let at = (FIRST_BAR + 4 * i) as u16;
            let low = self.read(at, 4) as u64;
            let (base, size, io) = match bar {
                None => continue,
                Some(Bar::Io { size }) => (low & !3 & 0xffff, *size as u64, true),
                Some(Bar::Memory32 { size }) => (low & !0xf, *size as u64, false),
                Some(Bar::Memory64 { size, .. }) => (low & !0xf | (self.read(at + 4, 4) as u64) << 32, *size, false),
            };
            let enabled = command & if io { COMMAND_IO } else { COMMAND_MEMORY } != 0;
            if enabled && base != 0 && base.checked_add(size).is_some() {
                out.push(BarRange { bar: i as u8, base, size, io });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_size_and_move() {
        let mut c = ConfigSpace::new(0x1af4, 0x1042, 1, 0x01_0000);
        c.bar(1, Bar::Memory32 { size: 0x1000 });
        c.bar(4, Bar::Memory64 { size: 0x4000, prefetchable: true });
        c.write(0x14, 4, u32::MAX);
        assert_eq!(c.read(0x14, 4), 0xffff_f000);
        c.write(0x20, 4, u32::MAX);
        c.write(0x24, 4, u32::MAX);
        assert_eq!((c.read(0x20, 4), c.read(0x24, 4)), (0xffff_c00c, u32::MAX));
        c.write(0x14, 4, 0xc000_0123);
        assert!(c.ranges().is_empty());
        c.write(4, 2, 2);
        let range = |bar, base, size| BarRange { bar, base, size, io: false };
        // A base address of all ones ends at the top of the address space and does not decode.
        assert_eq!(c.ranges(), [range(1, 0xc000_0000, 0x1000)]);
        c.write(0x24, 4, 1);
        c.write(0x20, 4, 0x8000_0000);
        assert_eq!(c.ranges()[1], range(4, 0x1_8000_0000, 0x4000));
    }

    #[test]
    fn capabilities_link_up() {
        let mut c = ConfigSpace::new(1, 2, 0, 0);
        let (a, b) = (c.capability(9, &[1, 2, 3]), c.capability(0x11, &[0; 10]));
        assert_eq!((c.byte(0x34) as usize, c.byte(a + 1) as usize, c.byte(b + 1)), (a, b, 0));
        assert_eq!(c.byte(b), 0x11);
        while c.capability(9, &[0; 14]) != 0 {}
        c.write(0xfe, 4, 0);
        assert_eq!(c.read(0xfe, 4) >> 16, 0xffff);
    }
}
