//! The computer's address map, and memory as loaders and bus masters see it.

use std::rc::Rc;

use undervisor_cpu::Shared;
use undervisor_devices::{Dma, DmaError};

/// RAM below the PCI hole ends here at most.
pub const LOW_RAM_LIMIT: u64 = undervisor_devices::pci::ECAM_BASE;
/// 32-bit window for PCI memory ranges.
pub const PCI_WINDOW: std::ops::Range<u64> = 0xc000_0000..0xfe00_0000;
/// Conventional memory ends here; the extended BIOS data area follows.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The BIOS area, where tables lie.
pub const BIOS_AREA: std::ops::Range<u64> = 0xe_0000..0x10_0000;

/// E820 types.
pub const E820_RAM: u32 = 1;
pub const E820_RESERVED: u32 = 2;

/// A range of the memory map that guests are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    pub start: u64,
    pub size: u64,
    /// E820 type.
    pub kind: u32,
}

/// Guest memory for loaders and devices. Writes are seen by translated code.
#[derive(Clone)]
pub struct Ram(Rc<Shared>);

impl Ram {
    pub fn new(shared: Rc<Shared>) -> Ram {
        Ram(shared)
    }

    /// Where RAM that begins at 0 ends.
    pub fn low_end(&self) -> u64 {
        self.0.memory.low_size()
    }

    /// RAM as (start, length), whole pages.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        self.0.memory.ram_ranges()
    }

    /// A read of low memory that goes elsewhere than writes do, or nowhere: see `undervisor_mmu::LowRouting`.
    pub(crate) fn read_routed(&self, address: u64, size: usize) -> u64 {
        let byte = |i| self.0.memory.read_routed(address + i as u64).unwrap_or(0xff);
        (0..size.min(8)).fold(0, |value, i| value | (byte(i) as u64) << (8 * i))
    }

    /// Likewise a write.
    pub(crate) fn write_routed(&self, address: u64, size: usize, value: u64) {
        for (i, byte) in value.to_le_bytes().into_iter().enumerate().take(size) {
            self.0.memory.write_routed(address + i as u64, byte);
        }
    }

    /// The E820 map, sorted by address.
    pub fn map(&self) -> Vec<MapEntry> {
        let entry = |start: u64, end: u64, kind| MapEntry { start, size: end.saturating_sub(start), kind };
        let mut map = vec![
            entry(0, LOW_MEMORY_END, E820_RAM),
            entry(LOW_MEMORY_END, 0xa_0000, E820_RESERVED),
            entry(BIOS_AREA.start, BIOS_AREA.end, E820_RESERVED),
            entry(0x10_0000, self.low_end(), E820_RAM),
            entry(undervisor_devices::pci::ECAM_BASE, PCI_WINDOW.start, E820_RESERVED),
            entry(0xfec0_0000, 0xfec0_1000, E820_RESERVED),
            entry(0xfed0_0000, 0xfed0_1000, E820_RESERVED),
            entry(0xfee0_0000, 0xfee0_1000, E820_RESERVED),
            entry(0xff00_0000, 1 << 32, E820_RESERVED),
        ];
        for (start, size) in self.0.memory.ram_ranges() {
            if start >= 1 << 32 {
                map.push(MapEntry { start, size, kind: E820_RAM });
            }
        }
        map.retain(|e| e.size > 0);
        map
    }
}

impl Dma for Ram {
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DmaError> {
        self.0.memory.read_bytes(address, out).map_err(|_| DmaError { address, length: out.len() as u64 })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), DmaError> {
        self.0.write_bytes(address, data).map_err(|_| DmaError { address, length: data.len() as u64 })
    }
}

/// Interrupt pin (global system interrupt) of INTx pin `pin` (0 = INTA) of a function in `slot`; the DSDT's `_PRT` says the same.
/// Pin 16 is PIRQA, which the ISA bridge can also route to an input of the 8259s.
pub fn intx_pin(slot: u8, pin: u8) -> u8 {
    16 + (slot.wrapping_add(pin) & 3)
}
