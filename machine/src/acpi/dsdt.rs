//! The DSDT: processors, the PCI root, what hangs on the ISA bridge, S3 and S5.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Memory32Fixed, Method, Name, OpRegion, OpRegionSpace, Or,
    Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use undervisor_devices::{acpi_pm, hpet, pci};

use super::{OEM, OEM_TABLE, Tables};
use crate::memory::{PCI_WINDOW, intx_pin};

/// The table.
pub fn build(tables: &Tables) -> Sdt {
    let mut aml = Vec::new();
    let s3 = acpi_pm::SLEEP_TYPE_S3 as u8;
    Name::new("_S3_".into(), &Package::new(vec![&s3, &s3, &0u8, &0u8])).to_aml_bytes(&mut aml);
    let s5 = acpi_pm::SLEEP_TYPE_S5 as u8;
    Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &0u8, &0u8])).to_aml_bytes(&mut aml);
    // The operating system says which interrupt controllers it uses (ACPI Specification, _PIC): 0 the 8259s, 1 I/O APICs.
    Name::new("PICF".into(), &0u8).to_aml_bytes(&mut aml);
    Method::new("_PIC".into(), 1, false, vec![&Store::new(&Path::new("PICF"), &Arg(0))]).to_aml_bytes(&mut aml);
    let mut system = Vec::new();
    processors(tables, &mut system);
    pci_root(tables, &mut system);
    links(&mut system);
    platform(&mut system);
    aml.extend(Scope::raw("\\_SB_".into(), system));
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, 1);
    table.append_slice(&aml);
    table
}

fn processors(tables: &Tables, out: &mut Vec<u8>) {
    for i in 0..tables.cpus {
        let name = format!("C{i:03X}");
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &(i as u8));
        Device::new(name.as_str().into(), vec![&hid, &uid]).to_aml_bytes(out);
    }
}

fn pci_root(tables: &Tables, out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let bus = Name::new("_BBN".into(), &0u8);
    let uid = Name::new("_UID".into(), &0u8);
    // The operating system gets the control of PCI Express features that it asks for.
    let osc = Method::new("_OSC".into(), 4, false, vec![&Return::new(&Arg(3))]).bytes();
    let window_end = (PCI_WINDOW.end - 1) as u32;
    let resources = ResourceTemplate::new(vec![
        &AddressSpace::<u16>::new_bus_number(0, (pci::ECAM_BUSES - 1) as u16),
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::<u16>::new_io(0, 0xcf7, None),
        &AddressSpace::<u16>::new_io(0xd00, 0xffff, None),
        &AddressSpace::<u32>::new_memory(AddressSpaceCacheable::Cacheable, true, 0xa_0000, 0xb_ffff, None),
        &AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, true, PCI_WINDOW.start as u32, window_end, None),
    ])
    .bytes();
    let mut body = Vec::new();
    for part in [hid.bytes(), cid.bytes(), bus.bytes(), uid.bytes(), osc] {
        body.extend(part);
    }
    Name::new("_CRS".into(), &Raw(resources)).to_aml_bytes(&mut body);
    Name::new("PRTA".into(), &routing_to_io_apic()).to_aml_bytes(&mut body);
    Name::new("PRTP".into(), &routing_to_links()).to_aml_bytes(&mut body);
    let (io_apic, links) = (Return::new(&Path::new("PRTA")).bytes(), Return::new(&Path::new("PRTP")).bytes());
    let (io_apic, links) = (Raw(io_apic), Raw(links));
    let (picked, other) = (Path::new("PICF"), Else::new(vec![&links]));
    Method::new("_PRT".into(), 0, false, vec![&If::new(&picked, vec![&io_apic]), &other]).to_aml_bytes(&mut body);
    isa_bridge(tables, &mut body);
    Device::new("PCI0".into(), vec![&Raw(body)]).to_aml_bytes(out);
}

/// Every slot's four pins, with the target that `target` makes of the global system interrupt.
fn routing(mut target: impl FnMut(u8, &mut PackageBuilder)) -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 0..32u8 {
        for pin in 0..4u8 {
            let mut entry = PackageBuilder::new();
            entry.add_element(&((slot as u32) << 16 | 0xffff));
            entry.add_element(&pin);
            target(intx_pin(slot, pin), &mut entry);
            table.add_element(&entry);
        }
    }
    table
}

/// Straight to I/O APIC inputs.
fn routing_to_io_apic() -> PackageBuilder {
    routing(|gsi, entry| {
        entry.add_element(&0u8);
        entry.add_element(&gsi);
    })
}

/// To the links, which lead to the 8259s.
fn routing_to_links() -> PackageBuilder {
    routing(|gsi, entry| {
        entry.add_element(&Path::new(&format!("\\_SB_.{}", link_name(gsi - 16))));
        entry.add_element(&0u8);
    })
}

/// `pirq`: 0 for PIRQA.
fn link_name(pirq: u8) -> String {
    format!("LNK{}", (b'A' + pirq) as char)
}

/// PCI interrupt links (ACPI Specification, PCI Interrupt Link Device): the ISA bridge's registers that route PIRQA–D to the 8259s.
fn links(out: &mut Vec<u8>) {
    /// Where the interrupt's number stands in its descriptor.
    const NUMBER: u8 = 5;
    for pirq in 0..4u8 {
        let route = Path::new(&format!("\\_SB_.PCI0.ISA_.PRQ{}", (b'A' + pirq) as char));
        let interrupt = |n: u32| ResourceTemplate::new(vec![&Interrupt::new(true, false, false, true, n)]).bytes();
        let number = CreateDWordField::new(&Path::new("IRQN"), &Path::new("BUFF"), &NUMBER).bytes();
        let argument = CreateDWordField::new(&Path::new("IRQN"), &Arg(0), &NUMBER).bytes();
        let (number, argument) = (Raw(number), Raw(argument));
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0F"));
        let uid = Name::new("_UID".into(), &(pirq + 1));
        let possible = Name::new("_PRS".into(), &Raw(interrupt(if pirq < 2 { 10 } else { 11 })));
        // Present; bit 1 says that it is enabled.
        let off = Raw(And::new(&ZERO, &route, &0x80u8).bytes());
        let (disabled, enabled) = (Raw(Return::new(&9u8).bytes()), Raw(Return::new(&0xbu8).bytes()));
        let status = Method::new("_STA".into(), 0, false, vec![&If::new(&off, vec![&disabled]), &enabled]).bytes();
        let disable = Method::new("_DIS".into(), 0, false, vec![&Or::new(&route, &route, &0x80u8)]).bytes();
        let buffer = Name::new("BUFF".into(), &Raw(interrupt(0)));
        let masked = Raw(And::new(&Path::new("IRQN"), &route, &0xfu8).bytes());
        let result = Raw(Return::new(&Path::new("BUFF")).bytes());
        let current = Method::new("_CRS".into(), 0, true, vec![&buffer, &number, &masked, &result]).bytes();
        let store = Raw(Store::new(&route, &Path::new("IRQN")).bytes());
        let set = Method::new("_SRS".into(), 1, true, vec![&argument, &store]).bytes();
        let methods = Raw([status, disable, current, set].concat());
        Device::new(link_name(pirq).as_str().into(), vec![&hid, &uid, &possible, &methods]).to_aml_bytes(out);
    }
}

fn isa_bridge(tables: &Tables, out: &mut Vec<u8>) {
    let irq = |n: u32| Interrupt::new(true, true, false, false, n);
    let mut body = Name::new("_ADR".into(), &0x001f_0000u32).bytes();
    // PIRQA–D_ROUT.
    OpRegion::new("PIRQ".into(), OpRegionSpace::PCIConfig, &0x60u8, &4u8).to_aml_bytes(&mut body);
    let routes = (b'A'..=b'D').map(|c| FieldEntry::Named([b'P', b'R', b'Q', c], 8)).collect();
    Field::new("PIRQ".into(), FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::Preserve, routes)
        .to_aml_bytes(&mut body);
    let mut device = |name: &str, id: &str, resources: Vec<&dyn Aml>| {
        let hid = Name::new("_HID".into(), &EISAName::new(id));
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
        let uid = Name::new("_UID".into(), &1u8);
        Device::new(name.into(), vec![&hid, &uid, &crs]).to_aml_bytes(&mut body);
    };
    device("RTC_", "PNP0B00", vec![&IO::new(0x70, 0x70, 1, 8), &irq(8)]);
    device("KBD_", "PNP0303", vec![&IO::new(0x60, 0x60, 1, 1), &IO::new(0x64, 0x64, 1, 1), &irq(1)]);
    device("MOU_", "PNP0F13", vec![&irq(12)]);
    device("TIMR", "PNP0100", vec![&IO::new(0x40, 0x40, 1, 4)]);
    device("SPKR", "PNP0800", vec![&IO::new(0x61, 0x61, 1, 1)]);
    device("PIC_", "PNP0000", vec![&IO::new(0x20, 0x20, 1, 2), &IO::new(0xa0, 0xa0, 1, 2), &IO::new(0x4d0, 0x4d0, 1, 2)]);
    if tables.serial {
        device("COM1", "PNP0501", vec![&IO::new(0x3f8, 0x3f8, 1, 8), &irq(4)]);
    }
    Device::new("ISA_".into(), vec![&Raw(body)]).to_aml_bytes(out);
}

/// Address ranges that are taken.
fn platform(out: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let uid = Name::new("_UID".into(), &0u8);
    let ecam = Memory32Fixed::new(true, pci::ECAM_BASE as u32, (pci::ECAM_BUSES << 20) as u32);
    let pm = IO::new(acpi_pm::BASE, acpi_pm::BASE, 1, acpi_pm::PORTS as u8);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam, &pm]));
    Device::new("MBRD".into(), vec![&hid, &uid, &crs]).to_aml_bytes(out);

    let hid = Name::new("_HID".into(), &EISAName::new("PNP0103"));
    let registers = Memory32Fixed::new(false, hpet::BASE as u32, hpet::SIZE as u32);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers]));
    Device::new("HPET".into(), vec![&hid, &uid, &crs]).to_aml_bytes(out);
}

/// Bytes that are AML already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// AML as bytes.
trait Bytes {
    fn bytes(&self) -> Vec<u8>;
}

impl<T: Aml> Bytes for T {
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.to_aml_bytes(&mut out);
        out
    }
}
