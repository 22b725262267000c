//! SMBIOS tables: the names that operating systems print (DMTF System Management BIOS Reference Specification 3.0).

use undervisor_devices::Dma;

use crate::memory::Ram;

/// The entry point; the structures follow.
const ENTRY: u64 = 0xf_0000;
const STRUCTURES: u64 = ENTRY + 0x20;

/// A structure: type, formatted area after the header, strings.
fn structure(out: &mut Vec<u8>, kind: u8, handle: u16, formatted: &[u8], strings: &[&str]) {
    out.extend([kind, 4 + formatted.len() as u8]);
    out.extend(handle.to_le_bytes());
    out.extend(formatted);
    for s in strings {
        out.extend(s.as_bytes());
        out.push(0);
    }
    if strings.is_empty() {
        out.push(0);
    }
    out.push(0);
}

/// Write the tables.
pub fn write(ram: &Ram, ram_size: u64, cpus: usize) {
    let mut s = Vec::new();
    // BIOS information: vendor, version, segment, date, ROM size; characteristics: PCI, not more; extension: ACPI, virtual machine.
    let mut bios = vec![1, 2, 0, 0xe0, 3, 0];
    bios.extend((1u64 << 7).to_le_bytes());
    bios.extend([1, 0x10, 0, 1, 0xff, 0xff]);
    let version = env!("CARGO_PKG_VERSION");
    structure(&mut s, 0, 0, &bios, &["undervisor", version, "01/01/2024"]);
    // System: manufacturer, product, version, serial number, UUID, wake-up type, SKU, family.
    let mut system = vec![1, 2, 3, 0];
    system.extend([0; 16]);
    system.extend([6, 0, 0]);
    structure(&mut s, 1, 0x100, &system, &["undervisor", "Software PC", version]);
    // Chassis: manufacturer, type other; safe states.
    let mut chassis = vec![1, 1, 0, 0, 0, 3, 3, 3, 2];
    chassis.extend([0, 0, 0, 0, 0, 1, 0, 0]);
    structure(&mut s, 3, 0x300, &chassis, &["undervisor"]);
    for i in 0..cpus as u16 {
        // Processor: socket, central processor, family other, manufacturer; populated and enabled; one core.
        let mut cpu = vec![1, 3, 1, 2];
        cpu.extend([0; 8]);
        cpu.extend([0, 0]);
        cpu.extend([0, 0, 0xd0, 7, 0xd0, 7, 0x41, 1]);
        cpu.extend([0xff; 6]);
        cpu.extend([0, 0, 0, 1, 1, 1, 4, 0]);
        structure(&mut s, 4, 0x400 + i, &cpu, &["CPU", "undervisor"]);
    }
    // Physical memory array: system memory, no error correction; capacity as 64 bits.
    let mut array = vec![3, 3, 3];
    array.extend(0x8000_0000u32.to_le_bytes());
    array.extend([0xfe, 0xff, 1, 0]);
    array.extend(ram_size.to_le_bytes());
    structure(&mut s, 16, 0x1000, &array, &[]);
    structure(&mut s, 32, 0x2000, &[0, 0, 0, 0, 0, 0, 0], &[]);
    structure(&mut s, 127, 0x7f00, &[], &[]);

    let mut entry = [0u8; 24];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = 24;
    (entry[7], entry[8], entry[10]) = (3, 0, 1);
    entry[12..16].copy_from_slice(&(s.len() as u32).to_le_bytes());
    entry[16..24].copy_from_slice(&STRUCTURES.to_le_bytes());
    entry[5] = entry.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    // The BIOS area is RAM on every machine.
    let _ = ram.write(ENTRY, &entry);
    let _ = ram.write(STRUCTURES, &s);
}

#[cfg(test)]
mod tests {
    use super::*;
    use undervisor_cpu::Shared;
    use undervisor_devices::DmaExt;
    use undervisor_mmu::GuestMemory;

    #[test]
    fn structures_form_a_chain_to_the_end_marker() {
        let ram = Ram::new(Shared::new(GuestMemory::new(1 << 20, 1 << 20, &[]).unwrap()));
        write(&ram, 512 << 20, 64);
        let mut entry = [0; 24];
        ram.read(ENTRY, &mut entry).unwrap();
        assert_eq!(entry.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        let size = ram.read_u32(ENTRY + 12).unwrap() as usize;
        let mut s = vec![0; size];
        ram.read(STRUCTURES, &mut s).unwrap();
        let (mut at, mut kinds) = (0, Vec::new());
        while at < size {
            kinds.push(s[at]);
            let strings = at + s[at + 1] as usize;
            at = strings + s[strings..].windows(2).position(|w| w == [0, 0]).unwrap() + 2;
        }
        assert_eq!(at, size);
        assert_eq!(kinds.first(), Some(&0));
        assert_eq!(kinds.last(), Some(&127));
        assert_eq!(kinds.iter().filter(|k| **k == 4).count(), 64);
    }
}
