//! The chipset's own functions: the host bridge 00:00.0 and the ISA bridge 00:1f.0 (Intel 3 Series Express Chipset Family
//! Datasheet, Host Bridge Registers; Intel I/O Controller Hub 9 Family Datasheet, LPC Interface Bridge Registers).

use undervisor_mmu::LowRouting;

use super::{Attachment, BarRange, ConfigSpace, ECAM_BASE, PciDevice};

/// A function without ranges of its own.
pub struct Fixed {
    name: &'static str,
    config: ConfigSpace,
    /// It has the SMRAM register, whose lock must be kept.
    smram: bool,
}

const INTEL: u16 = 0x8086;

/// Programmable attribute maps, PAM0 to PAM6.
pub const PAM: usize = 0x90;
const PAM_READ: u8 = 1;
const PAM_WRITE: u8 = 2;
/// System management RAM control: D_OPEN, D_CLS, D_LCK, G_SMRAME.
pub const SMRAM: usize = 0x9d;
const SMRAM_OPEN: u8 = 1 << 6;
const SMRAM_CLOSED: u8 = 1 << 5;
const SMRAM_LOCK: u8 = 1 << 4;
const SMRAM_ENABLE: u8 = 1 << 3;

/// The PAM registers with everything read from and written to RAM, as firmware leaves them.
pub const SHADOWED: [u8; 7] = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33];

/// Where the registers send accesses between 640 KiB and 1 MiB. There is no SMM, and no display behind the first 128 KiB.
pub fn low_routing(pam: [u8; 7], smram: u8) -> LowRouting {
    let mut routing = LowRouting { reads: 0, writes: 0 };
    let open = smram & (SMRAM_OPEN | SMRAM_ENABLE) == SMRAM_OPEN | SMRAM_ENABLE;
    routing.set(0xa_0000, 0x2_0000, open, open);
    let mut part = |start, bytes, attributes: u8| {
        routing.set(start, bytes, attributes & PAM_READ != 0, attributes & PAM_WRITE != 0);
    };
    part(0xf_0000, 0x1_0000, pam[0] >> 4);
    for (start, attributes) in (0xc_0000..).step_by(0x8000).zip(&pam[1..]) {
        part(start, 0x4000, *attributes);
        part(start + 0x4000, 0x4000, attributes >> 4);
    }
    routing
}

/// The memory controller hub.
pub fn host_bridge() -> Fixed {
    let mut config = ConfigSpace::new(INTEL, 0x29c0, 2, 0x06_0000);
    config.subsystem(INTEL, 0);
    // PCIEXBAR: 256 buses, enabled.
    config.set(0x60, &(ECAM_BASE | 1).to_le_bytes());
    config.allow(PAM, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
    // C_BASE_SEG is fixed.
    config.set(SMRAM, &[2]);
    config.allow(SMRAM, &[SMRAM_OPEN | SMRAM_CLOSED | SMRAM_LOCK | SMRAM_ENABLE]);
    config.finish();
    Fixed { name: "host bridge", config, smram: true }
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
    Fixed { name: "ISA bridge", config, smram: false }
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
        let locked = self.smram && self.config.byte(SMRAM) & SMRAM_LOCK != 0;
        let before = self.config.byte(SMRAM);
        self.config.write(offset, size, value);
        if locked {
            // D_LCK keeps itself and D_OPEN until the next reset.
            let kept = SMRAM_LOCK | SMRAM_OPEN;
            self.config.set(SMRAM, &[self.config.byte(SMRAM) & !kept | before & kept]);
        } else if self.smram && self.config.byte(SMRAM) & SMRAM_LOCK != 0 {
            self.config.set(SMRAM, &[self.config.byte(SMRAM) & !SMRAM_OPEN]);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_name_their_parts() {
        assert_eq!(low_routing([0; 7], 2), LowRouting { reads: 0, writes: 0 });
        let all = LowRouting::RAM.reads;
        // Without the 128 KiB behind which a display would be, unless SMRAM is open.
        assert_eq!(low_routing(SHADOWED, 2).reads, all & !0xff);
        assert_eq!(low_routing(SHADOWED, 0x4a), LowRouting::RAM);
        assert_eq!(low_routing(SHADOWED, 0x42).reads, all & !0xff, "G_SMRAME");
        // F0000H reads, CC000H writes.
        assert_eq!(low_routing([0x10, 0, 0x20, 0, 0, 0, 0], 2), LowRouting { reads: 0xf0_0000, writes: 1 << 11 });
    }

    #[test]
    fn smram_locks_until_reset() {
        let mut bridge = host_bridge();
        let at = SMRAM as u16;
        bridge.config_write(0, at, 1, 0xff);
        assert_eq!(bridge.config_read(at, 1), 0x3a, "the lock closes it");
        bridge.config_write(0, at & !3, 4, 0x4a00);
        assert_eq!(bridge.config_read(at, 1), 0x1a);
        bridge.reset();
        bridge.config_write(0, at, 1, 0x48);
        assert_eq!(bridge.config_read(at, 1), 0x4a);
    }
}
