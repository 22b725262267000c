//! The MultiProcessor Specification's tables, for kernels that came before ACPI or do without it (Intel MultiProcessor Specification 1.4,
//! MP Configuration Table; Default Configurations are not used).

use undervisor_core::{Feature, Model};
use undervisor_cpu::apic::VERSION as APIC_VERSION;
use undervisor_devices::{Dma, acpi_pm, ioapic};

use crate::memory::{Ram, intx_pin};

/// The floating pointer structure, in the BIOS ROM's area; the configuration table follows.
const POINTER: u64 = 0xf_8000;
const TABLE: u64 = POINTER + 0x10;
const SPECIFICATION_1_4: u8 = 4;

/// Entry types.
mod entry {
    pub const PROCESSOR: u8 = 0;
    pub const BUS: u8 = 1;
    pub const IO_APIC: u8 = 2;
    pub const IO_INTERRUPT: u8 = 3;
    pub const LOCAL_INTERRUPT: u8 = 4;
}
/// Bus ids.
const PCI: u8 = 0;
const ISA: u8 = 1;
/// Interrupt types.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// Polarity and trigger mode: as the bus has it; or active high, level.
const CONFORMING: u16 = 0;
const LEVEL_HIGH: u16 = 0xd;
/// The I/O APIC's id, and every local APIC.
const IO_APIC_ID: u8 = 0;
const ALL: u8 = 0xff;

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_sub(*b))
}

struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.count += 1;
    }

    /// From (bus, interrupt) to (APIC, pin).
    fn interrupt(&mut self, entry: u8, kind: u8, flags: u16, (bus, source): (u8, u8), (apic, pin): (u8, u8)) {
        let [low, high] = flags.to_le_bytes();
        self.add(&[entry, kind, low, high, bus, source, apic, pin]);
    }
}

/// Write the tables for `cpus` processors of a model.
pub fn write(ram: &Ram, cpus: usize, model: &Model) {
    let mut e = Entries { bytes: Vec::new(), count: 0 };
    let features = [(Feature::FPU, 0), (Feature::MCE, 7), (Feature::CX8, 8), (Feature::APIC, 9)]
        .iter()
        .fold(0u32, |bits, &(f, bit)| bits | u32::from(model.has(f)) << bit);
    for id in 0..cpus as u8 {
        // Enabled; the first is the boot processor.
        let mut processor = vec![entry::PROCESSOR, id, APIC_VERSION, 1 | u8::from(id == 0) << 1];
        processor.extend((model.signature & 0xfff).to_le_bytes());
        processor.extend(features.to_le_bytes());
        processor.extend([0; 8]);
        e.add(&processor);
    }
    for (id, name) in [(PCI, b"PCI   "), (ISA, b"ISA   ")] {
        let mut bus = vec![entry::BUS, id];
        bus.extend(name);
        e.add(&bus);
    }
    let mut io_apic = vec![entry::IO_APIC, IO_APIC_ID, ioapic::VERSION as u8, 1];
    io_apic.extend((ioapic::BASE as u32).to_le_bytes());
    e.add(&io_apic);
    for irq in (0..16).filter(|&irq| irq != 2) {
        let pin = if irq == 0 { 2 } else { irq };
        let flags = if irq == acpi_pm::SCI { LEVEL_HIGH } else { CONFORMING };
        e.interrupt(entry::IO_INTERRUPT, INT, flags, (ISA, irq), (IO_APIC_ID, pin));
    }
    for slot in 0..32 {
        for pin in 0..4 {
            e.interrupt(entry::IO_INTERRUPT, INT, CONFORMING, (PCI, slot << 2 | pin), (IO_APIC_ID, intx_pin(slot, pin)));
        }
    }
    e.interrupt(entry::LOCAL_INTERRUPT, EXTINT, CONFORMING, (ISA, 0), (0, 0));
    e.interrupt(entry::LOCAL_INTERRUPT, NMI, CONFORMING, (ISA, 0), (ALL, 1));

    let mut table = b"PCMP".to_vec();
    table.extend((44 + e.bytes.len() as u16).to_le_bytes());
    table.extend([SPECIFICATION_1_4, 0]);
    table.extend(b"UNDERV  UNDERVPC    ");
    // No OEM table.
    table.extend([0; 6]);
    table.extend(e.count.to_le_bytes());
    table.extend(0xfee0_0000u32.to_le_bytes());
    // No extended entries.
    table.extend([0; 4]);
    table.extend(e.bytes);
    table[7] = checksum(&table);

    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(TABLE as u32).to_le_bytes());
    (pointer[8], pointer[9]) = (1, SPECIFICATION_1_4);
    pointer[10] = checksum(&pointer);
    // The BIOS area is RAM on every machine.
    let _ = ram.write(POINTER, &pointer);
    let _ = ram.write(TABLE, &table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use undervisor_cpu::Shared;
    use undervisor_devices::DmaExt;
    use undervisor_mmu::GuestMemory;

    #[test]
    fn entries_fill_the_table() {
        let ram = Ram::new(Shared::new(GuestMemory::new(1 << 20, 1 << 20, &[]).unwrap()));
        write(&ram, 64, &Model::default());
        let mut pointer = [0; 16];
        ram.read(POINTER, &mut pointer).unwrap();
        assert_eq!((&pointer[..4], checksum(&pointer)), (&b"_MP_"[..], 0));
        let length = ram.read_u16(TABLE + 4).unwrap() as usize;
        let mut table = vec![0; length];
        ram.read(TABLE, &mut table).unwrap();
        assert_eq!((&table[..4], checksum(&table)), (&b"PCMP"[..], 0));
        let (mut at, mut counts) = (44, [0u16; 5]);
        while at < length {
            counts[table[at] as usize] += 1;
            at += if table[at] == entry::PROCESSOR { 20 } else { 8 };
        }
        assert_eq!(at, length);
        assert_eq!(counts, [64, 2, 1, 15 + 128, 2]);
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), counts.iter().sum());
        // The boot processor, and only it.
        assert_eq!((table[44 + 3], table[64 + 3]), (3, 1));
    }
}
