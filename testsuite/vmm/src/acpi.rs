//! The few ACPI tables that tell the guest of its processors: RSDP, XSDT, FADT, MADT and an empty DSDT
//! (ACPI Specification 6.3, ACPI Software Programming Model).

use acpi_tables::sdt::Sdt;

use super::monitor::checksum;

/// Where the tables lie: the RSDP is found by the search of the BIOS area.
pub const ADDRESS: usize = 0xe_0000;
/// PM1 event block, and after it the control block: all that the fixed hardware has.
pub const PM1: u16 = 0x600;

fn table(signature: &[u8; 4], length: u32, revision: u8) -> Sdt {
    Sdt::new(*signature, length, revision, *b"UNDERV", *b"UNDERVL2", 1)
}

/// All tables, to be placed at [`ADDRESS`].
pub fn tables(vcpus: u64) -> Vec<u8> {
    let mut madt = table(b"APIC", 36, 4);
    madt.append(0xfee0_0000u32);
    madt.append(1u32);
    for id in 0..vcpus as u8 {
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    madt.append_slice(&[1, 12, vcpus as u8, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    // ISA interrupts have the pins of their numbers, the timer too; the SCI is level-triggered, active high.
    madt.append_slice(&[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    let dsdt = table(b"DSDT", 36, 2);

    let mut out = vec![0u8; 64];
    let mut place = |bytes: &[u8]| {
        out.resize(out.len().next_multiple_of(16), 0);
        let at = ADDRESS + out.len();
        out.extend_from_slice(bytes);
        at as u64
    };
    let madt = place(madt.as_slice());
    let dsdt = place(dsdt.as_slice());
    let mut fadt = table(b"FACP", 244, 3);
    fadt.write(40, dsdt as u32);
    fadt.write(46, 9u16);
    fadt.write(56, PM1 as u32);
    fadt.write(64, PM1 as u32 + 4);
    fadt.write(88, 4u8);
    fadt.write(89, 2u8);
    // No C2 and C3.
    fadt.write(96, 0xfffu16);
    fadt.write(98, 0xfffu16);
    // No VGA and no CMOS clock to trust; WBINVD and C1 work, no buttons.
    fadt.write(109, 1u16 << 2 | 1 << 5);
    fadt.write(112, 1u32 | 1 << 2 | 1 << 4 | 1 << 5);
    fadt.write(140, dsdt);
    fadt.update_checksum();
    let fadt = place(fadt.as_slice());
    let mut xsdt = table(b"XSDT", 36, 1);
    xsdt.append(fadt);
    xsdt.append(madt);
    let xsdt = place(xsdt.as_slice());

    let rsdp = &mut out[..36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"UNDERV");
    rsdp[15] = 2;
    rsdp[20] = 36;
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp[..36]);
    out
}
