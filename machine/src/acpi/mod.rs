//! ACPI tables: what the machine is made of, told to its operating system (ACPI Specification 6.3, ACPI Software Programming
//! Model).

mod dsdt;

use acpi_tables::sdt::Sdt;
use undervisor_devices::{Dma, acpi_pm, hpet, ioapic, pci, rtc};

use crate::memory::{BIOS_AREA, Ram};

const OEM: [u8; 6] = *b"UNDERV";
const OEM_TABLE: [u8; 8] = *b"UNDERVPC";

/// The Firmware ACPI Control Structure, the first table.
const FACS: u64 = BIOS_AREA.start + 0x40;
/// Space for the tables; the second half of the BIOS area belongs to SMBIOS.
const END: u64 = 0xf_0000;
/// Generic address structure: space, bit width, bit offset, access size.
const PORT_SPACE: u8 = 1;

/// What the tables depend on.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    pub cpus: usize,
    /// COM1 exists.
    pub serial: bool,
}

/// A table under construction: little-endian fields one after the other, behind the standard header.
struct Table(Sdt);

impl Table {
    fn new(signature: &[u8; 4], revision: u8) -> Table {
        Table(Sdt::new(*signature, 36, revision, OEM, OEM_TABLE, 1))
    }
    fn bytes(&mut self, data: &[u8]) -> &mut Self {
        self.0.append_slice(data);
        self
    }
    fn u8(&mut self, v: u8) -> &mut Self {
        self.bytes(&[v])
    }
    fn u16(&mut self, v: u16) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    /// Generic address structure.
    fn address(&mut self, space: u8, bits: u8, access: u8, address: u64) -> &mut Self {
        self.bytes(&[space, bits, 0, access]).u64(address)
    }
}

/// Places tables in memory.
struct Placer<'a> {
    ram: &'a Ram,
    at: u64,
}

impl Placer<'_> {
    fn place(&mut self, data: &[u8], align: u64) -> u64 {
        let at = self.at.next_multiple_of(align);
        debug_assert!(at + data.len() as u64 <= END);
        // The BIOS area is RAM on every machine.
        let _ = self.ram.write(at, data);
        self.at = at + data.len() as u64;
        at
    }
}

/// Write all tables; the address of the root pointer.
pub fn write(ram: &Ram, tables: &Tables) -> u64 {
    let mut placer = Placer { ram, at: FACS };
    let facs = placer.place(&facs(), 64);
    let dsdt = placer.place(dsdt::build(tables).as_slice(), 16);
    let mut list = vec![
        placer.place(fadt(facs, dsdt).0.as_slice(), 16),
        placer.place(madt(tables).0.as_slice(), 16),
        placer.place(hpet_table().0.as_slice(), 16),
        placer.place(mcfg().0.as_slice(), 16),
    ];
    if tables.serial {
        list.push(placer.place(spcr().0.as_slice(), 16));
    }
    let (mut xsdt, mut rsdt) = (Table::new(b"XSDT", 1), Table::new(b"RSDT", 1));
    for t in &list {
        xsdt.u64(*t);
        rsdt.u32(*t as u32);
    }
    let xsdt = placer.place(xsdt.0.as_slice(), 16);
    let rsdt = placer.place(rsdt.0.as_slice(), 16);
    let rsdp = BIOS_AREA.start;
    let _ = ram.write(rsdp, &root_pointer(rsdt, xsdt));
    rsdp
}

/// Root System Description Pointer.
fn root_pointer(rsdt: u64, xsdt: u64) -> [u8; 36] {
    let mut p = [0; 36];
    p[..8].copy_from_slice(b"RSD PTR ");
    p[9..15].copy_from_slice(&OEM);
    p[15] = 2;
    p[16..20].copy_from_slice(&(rsdt as u32).to_le_bytes());
    p[20..24].copy_from_slice(&36u32.to_le_bytes());
    p[24..32].copy_from_slice(&xsdt.to_le_bytes());
    let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
    p[8] = sum(&p[..20]);
    p[32] = sum(&p);
    p
}

/// Where the operating system wants to be resumed after S3: its firmware waking vector, a real-mode address.
pub fn waking_vector(ram: &Ram) -> u32 {
    let mut vector = [0; 4];
    // The BIOS area is RAM on every machine.
    let _ = ram.read(FACS + 12, &mut vector);
    u32::from_le_bytes(vector)
}

/// Firmware ACPI Control Structure.
fn facs() -> [u8; 64] {
    let mut f = [0; 64];
    f[..4].copy_from_slice(b"FACS");
    f[4..8].copy_from_slice(&64u32.to_le_bytes());
    f[32] = 2;
    f
}

/// Fixed ACPI Description Table, revision 6, full length.
fn fadt(facs: u64, dsdt: u64) -> Table {
    use acpi_pm::{BASE, GPE0, GPE0_LENGTH, PM_TIMER, PM1_CONTROL, PM1_STATUS};
    let port = |offset: u16| (BASE + offset) as u64;
    let (event, control) = (port(PM1_STATUS), port(PM1_CONTROL));
    let (timer, gpe) = (port(PM_TIMER), port(GPE0));
    // WBINVD works, C1 works, no sleep button, reset register; the RTC's wake event is a fixed feature.
    const FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 10;
    // Legacy devices, 8042, no VGA.
    const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 1 | 1 << 2;
    let mut t = Table::new(b"FACP", 6);
    t.u32(facs as u32).u32(dsdt as u32).u8(0).u8(0);
    t.u16(acpi_pm::SCI as u16).u32(acpi_pm::SMI_COMMAND as u32);
    t.u8(acpi_pm::ACPI_ENABLE).u8(acpi_pm::ACPI_DISABLE).u8(0).u8(0);
    t.u32(event as u32).u32(0).u32(control as u32).u32(0).u32(0).u32(timer as u32).u32(gpe as u32).u32(0);
    t.u8(4).u8(2).u8(0).u8(4).u8(GPE0_LENGTH as u8).u8(0).u8(0).u8(0);
    // C2 and C3 are not supported; no flush ranges, no duty cycle.
    t.u16(0xfff).u16(0xfff).u16(0).u16(0).u8(0).u8(0);
    t.u8(0).u8(0).u8(rtc::CENTURY).u16(BOOT_ARCHITECTURE).u8(0).u32(FLAGS);
    t.address(PORT_SPACE, 8, 1, 0xcf9).u8(0xe).u16(0).u8(3);
    t.u64(0).u64(dsdt);
    t.address(PORT_SPACE, 32, 2, event).address(0, 0, 0, 0);
    t.address(PORT_SPACE, 16, 2, control).address(0, 0, 0, 0);
    t.address(0, 0, 0, 0);
    t.address(PORT_SPACE, 32, 3, timer);
    t.address(PORT_SPACE, (GPE0_LENGTH * 8) as u8, 1, gpe).address(0, 0, 0, 0);
    t.address(0, 0, 0, 0).address(0, 0, 0, 0);
    t.u64(0);
    t
}

/// Multiple APIC Description Table.
fn madt(tables: &Tables) -> Table {
    /// Level-triggered, active high.
    const LEVEL_HIGH: u16 = 0xd;
    let mut t = Table::new(b"APIC", 4);
    // The dual 8259s are there too.
    t.u32(0xfee0_0000).u32(1);
    for i in 0..tables.cpus as u8 {
        t.u8(0).u8(8).u8(i).u8(i).u32(1);
    }
    t.u8(1).u8(12).u8(0).u8(0).u32(ioapic::BASE as u32).u32(0);
    t.u8(2).u8(10).u8(0).u8(0).u32(2).u16(0);
    t.u8(2).u8(10).u8(0).u8(acpi_pm::SCI).u32(acpi_pm::SCI as u32).u16(LEVEL_HIGH);
    // NMI on LINT1 of every processor.
    t.u8(4).u8(6).u8(0xff).u16(0).u8(1);
    t
}

fn hpet_table() -> Table {
    let mut t = Table::new(b"HPET", 1);
    t.u32(hpet::BLOCK_ID).address(0, 64, 0, hpet::BASE).u8(0).u16(100).u8(0);
    t
}

/// PCI Express memory-mapped configuration space.
fn mcfg() -> Table {
    let mut t = Table::new(b"MCFG", 1);
    t.u64(0).u64(pci::ECAM_BASE).u16(0).u8(0).u8((pci::ECAM_BUSES - 1) as u8).u32(0);
    t
}

/// Serial Port Console Redirection.
fn spcr() -> Table {
    let mut t = Table::new(b"SPCR", 2);
    // 16550; interrupt by 8259 and I/O APIC; 115200 8n1; ANSI terminal; not a PCI device.
    t.u8(0).bytes(&[0; 3]).address(PORT_SPACE, 8, 1, 0x3f8);
    t.u8(3).u8(4).u32(4).u8(7).u8(0).u8(1).u8(0).u8(3).u8(0);
    t.u16(0xffff).u16(0xffff).u8(0).u8(0).u8(0).u32(0).u8(0).u32(0);
    t
}

#[cfg(test)]
mod tests {
    use super::*;
    use undervisor_cpu::Shared;
    use undervisor_devices::DmaExt;
    use undervisor_mmu::GuestMemory;

    fn ram() -> Ram {
        Ram::new(Shared::new(GuestMemory::new(1 << 20, 1 << 20, &[]).unwrap()))
    }

    fn table(ram: &Ram, at: u64) -> Vec<u8> {
        let mut t = vec![0; ram.read_u32(at + 4).unwrap() as usize];
        ram.read(at, &mut t).unwrap();
        t
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        for cpus in [1, 64] {
            let ram = ram();
            let rsdp = write(&ram, &Tables { cpus, serial: true });
            let mut root = [0; 36];
            ram.read(rsdp, &mut root).unwrap();
            let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
            assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
            let xsdt = table(&ram, ram.read_u64(rsdp + 24).unwrap());
            let mut seen = Vec::new();
            for at in xsdt[36..].chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())) {
                let t = table(&ram, at);
                assert_eq!(sum(&t), 0);
                if &t[..4] == b"FACP" {
                    assert_eq!(t.len(), 276);
                    let dsdt = table(&ram, u32::from_le_bytes(t[40..44].try_into().unwrap()) as u64);
                    assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
                    let facs = u32::from_le_bytes(t[36..40].try_into().unwrap());
                    assert_eq!(facs % 64, 0);
                    // Reset register and 64-bit blocks stand where the specification says.
                    assert_eq!(t[116..120], [1, 8, 0, 1]);
                    assert_eq!(t[148], 1);
                    assert_eq!(t[208..212], [1, 32, 0, 3]);
                }
                seen.push(String::from_utf8_lossy(&t[..4]).into_owned());
            }
            assert_eq!(seen, ["FACP", "APIC", "HPET", "MCFG", "SPCR"]);
        }
    }

    #[test]
    fn table_lengths_are_the_specifications() {
        assert_eq!(hpet_table().0.len(), 56);
        assert_eq!(mcfg().0.len(), 60);
        assert_eq!(spcr().0.len(), 80);
        assert_eq!(madt(&Tables { cpus: 4, serial: false }).0.len(), 44 + 4 * 8 + 12 + 2 * 10 + 6);
    }
}
