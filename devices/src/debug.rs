//! Ports that exist for guests under test: Bochs' debug console (0xe9), QEMU's isa-debug-exit and pc-testdev.

use crate::chardev::CharBackend;
use crate::wiring::{IrqLine, PINS, Wiring};

/// Port 0xe9, and 0x402 where firmware looks for it: what is written is printed; reading gives 0xe9, which says that the port is there.
pub struct DebugConsole {
    backend: Box<dyn CharBackend>,
}

impl DebugConsole {
    pub const PORT: u16 = 0xe9;
    pub const FIRMWARE_PORT: u16 = 0x402;

    pub fn new(backend: Box<dyn CharBackend>) -> DebugConsole {
        DebugConsole { backend }
    }
    pub fn read(&self) -> u8 {
        0xe9
    }
    pub fn write(&mut self, value: u8) {
        self.backend.write(value);
    }
    pub fn flush(&mut self) {
        self.backend.flush();
    }
}

/// QEMU's `pc-testdev`, as kvm-unit-tests use it:
/// - ports 0xe0–0xe3: a register that reads back what was written;
/// - port 0xe4: writing unmaps, then maps again the page of the MMIO window at that address (a no-op without shadow tables);
/// - ports 0x2000–0x2017: writing sets the level of that interrupt line;
/// - MMIO 0xff000000, 64 KiB: memory that is reached as MMIO.
pub struct TestDevice {
    io: u32,
    lines: Vec<IrqLine>,
    memory: Vec<u8>,
}

impl TestDevice {
    pub const MMIO_BASE: u64 = 0xff00_0000;
    pub const MMIO_SIZE: u64 = 0x1_0000;
    pub const LINE_PORTS: u16 = 0x2000;

    pub fn new(wiring: &Wiring) -> TestDevice {
        TestDevice {
            io: 0,
            lines: (0..PINS as u8).map(|pin| wiring.line(pin)).collect(),
            memory: vec![0; Self::MMIO_SIZE as usize],
        }
    }

    /// Read of 0xe0–0xe3.
    pub fn read(&self, port: u16, size: usize) -> u32 {
        (self.io >> (8 * (port & 3))) & (u32::MAX >> (32 - 8 * size.clamp(1, 4)))
    }

    pub fn write(&mut self, port: u16, size: usize, value: u32) {
        let shift = 8 * (port & 3) as u32;
        let mask = (u32::MAX >> (32 - 8 * size.clamp(1, 4) as u32)) << shift;
        self.io = (self.io & !mask) | (value << shift & mask);
    }

    /// Write of 0x2000–0x2017.
    pub fn write_line(&mut self, port: u16, value: u32) {
        if let Some(line) = self.lines.get_mut(port.wrapping_sub(Self::LINE_PORTS) as usize) {
            line.set(value != 0);
        }
    }

    pub fn mmio_read(&self, offset: u64, size: usize) -> u64 {
        (0..size).rev().fold(0, |v, i| v << 8 | self.memory.get(offset as usize + i).copied().unwrap_or(0xff) as u64)
    }

    pub fn mmio_write(&mut self, offset: u64, size: usize, value: u64) {
        for i in 0..size {
            if let Some(b) = self.memory.get_mut(offset as usize + i) {
                *b = (value >> (8 * i)) as u8;
            }
        }
    }

    pub fn reset(&mut self) {
        self.lines.iter_mut().for_each(|l| l.set(false));
        self.io = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::Signal;

    #[test]
    fn the_test_register_reads_back_by_size() {
        let mut t = TestDevice::new(&Wiring::new());
        t.write(0xe0, 4, 0x1234_5678);
        assert_eq!((t.read(0xe0, 1), t.read(0xe0, 2), t.read(0xe0, 4), t.read(0xe1, 1)), (0x78, 0x5678, 0x1234_5678, 0x56));
        t.write(0xe1, 1, 0xff);
        assert_eq!(t.read(0xe0, 4), 0x1234_ff78);
    }

    #[test]
    fn lines_and_mmio() {
        let w = Wiring::new();
        let mut t = TestDevice::new(&w);
        t.write_line(0x200e, 1);
        t.write_line(0x2018, 1);
        assert_eq!(w.take(), [Signal::Pin { pin: 14, level: true }]);
        t.mmio_write(4, 8, 0x0102_0304_0506_0708);
        assert_eq!(t.mmio_read(6, 2), 0x0506);
        t.mmio_write(0xffff, 8, 1);
        assert_eq!(t.mmio_read(0xffff, 1), 1);
    }
}
