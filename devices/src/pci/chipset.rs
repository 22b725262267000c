//! The chipset's own functions: the host bridge 00:00.0 and the ISA bridge 00:1f.0 (Intel 3 Series Express Chipset Family
//! Datasheet, Host Bridge Registers; Intel I/O Controller Hub 9 Family Datasheet, LPC Interface Bridge Registers).

use super::{Attachment, BarRange, ConfigSpace, ECAM_BASE, PciDevice};

/// A function without ranges of its own.
pub struct Fixed {
    name: &'static str,
    config: ConfigSpace,
}

const INTEL: u16 = 0x8086;

/// The memory controller hub.
pub fn host_bridge() -> Fixed {
    let mut config = ConfigSpace::new(INTEL, 0x29c0, 2, 0x06_0000);
    config.subsystem(INTEL, 0);
    // PCIEXBAR: 256 buses, enabled.
    config.set(0x60, &(ECAM_BASE | 1).to_le_bytes());
    // PAM registers, shadow control.
    config.allow(0x90, &[0x33; 7]);
    // SMRAM control.
    config.set(0x9d, &[2]);
    config.allow(0x9d, &[0x78]);
    config.finish();
    Fixed { name: "host bridge", config }
}

/// PIRQn_ROUT: not routed to an 8259.
pub const PIRQ_OFF: u8 = 0x80;

/// The LPC bridge: ACPI base, interrupt routing, decode ranges.
pub fn isa_bridge() -> Fixed {
    let mut config = ConfigSpace::new(INTEL, 0x2918, 2, 0x06_0100);
    config.subsystem(INTEL, 0);
    // A function of a multi-function device.
    config.set(0x0e, &[0x80]);
    config.set(0x04, &7u16.to_le_bytes());
    // PMBASE, ACPI_CNTL: enabled, SCI on IRQ 9.
    config.set(0x40, &(crate::acpi_pm::BASE as u32 | 1).to_le_bytes());
    config.allow(0x40, &[0x80, 0xff]);
    config.set(0x44, &[0x80]);
    config.allow(0x44, &[0x87]);
    // PIRQA–H: not routed to the 8259s.
    config.set(0x60, &[PIRQ_OFF; 4]);
    config.allow(0x60, &[0x8f; 4]);
    config.set(0x68, &[PIRQ_OFF; 4]);
    config.allow(0x68, &[0x8f; 4]);
    // LPC decode ranges and enables.
    config.allow(0x80, &[0xff; 16]);
    config.set(0x82, &[0x0f, 0x3f]);
    config.finish();
    Fixed { name: "ISA bridge", config }
}

impl PciDevice for Fixed {
    fn name(&self) -> &str {
        self.name
    }
    fn attach(&mut self, _: Attachment) {}
    fn config_read(&mut self, offset: u16, size: usize) -> u32 {
        self.config.read(offset, size)
    }
    fn config_write(&mut self, _: u64, offset: u16, size: usize, value: u32) {
        self.config.write(offset, size, value);
    }
    fn ranges(&self) -> Vec<BarRange> {
        Vec::new()
    }
    fn bar_read(&mut self, _: u64, _: u8, _: u64, size: usize) -> u64 {
        u64::MAX >> (64 - 8 * size.clamp(1, 8))
    }
    fn bar_write(&mut self, _: u64, _: u8, _: u64, _: usize, _: u64) {}
    fn reset(&mut self) {
        self.config.reset();
    }
}
