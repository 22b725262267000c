//! APIC virtualization (SDM vol. 3, APIC Virtualization and Virtual Interrupts): the virtual-APIC page, and what reads and writes
//! of virtualized registers do. Requesting and guest interrupt status (RVI, SVI) live in the VMCS.

use undervisor_core::apic::*;

use crate::controls::{primary, secondary, tertiary};
use crate::fields::Field;
use crate::memory::Memory;
use crate::reason::{ExitInformation, basic};
use crate::vmcs::Vmcs;

/// What follows from a virtualized write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// A trap-like exit once the instruction is complete.
    Exit(ExitInformation),
    /// Send a posted-interrupt notification to a physical APIC.
    Notify {
        vector: u8,
        destination: u32,
    },
}

/// How an access to the APIC-access page goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageAccess {
    /// Use the virtual-APIC page instead, at this guest-physical address.
    Virtual(u64),
    /// APIC-access exit.
    Exit,
}

/// The virtual-APIC page of a guest.
pub struct VirtualApic<'a> {
    pub vmcs: &'a mut Vmcs,
    pub memory: &'a dyn Memory,
}

impl VirtualApic<'_> {
    fn page(&self) -> u64 {
        self.vmcs.get(Field::VIRTUAL_APIC_ADDRESS)
    }
    fn read(&self, offset: u32) -> u32 {
        self.memory.read_u32(self.page() + offset as u64)
    }
    fn write(&self, offset: u32, value: u32) {
        self.memory.write_u32(self.page() + offset as u64, value);
    }
    fn delivery(&self) -> bool {
        self.vmcs.secondary(secondary::VIRTUAL_INTERRUPT_DELIVERY)
    }

    /// Virtual task priority, bits 7:0.
    pub fn vtpr(&self) -> u8 {
        self.read(TPR) as u8
    }
    fn rvi(&self) -> u8 {
        self.vmcs.get(Field::GUEST_INTERRUPT_STATUS) as u8
    }
    fn svi(&self) -> u8 {
        (self.vmcs.get(Field::GUEST_INTERRUPT_STATUS) >> 8) as u8
    }
    fn set_rvi(&mut self, vector: u8) {
        let s = self.vmcs.get(Field::GUEST_INTERRUPT_STATUS);
        self.vmcs.put(Field::GUEST_INTERRUPT_STATUS, s & 0xff00 | vector as u64);
    }
    fn set_svi(&mut self, vector: u8) {
        let s = self.vmcs.get(Field::GUEST_INTERRUPT_STATUS);
        self.vmcs.put(Field::GUEST_INTERRUPT_STATUS, s & 0xff | (vector as u64) << 8);
    }

    /// Set or clear a vector's bit in the register that starts at `base`.
    fn set_bit(&self, base: u32, vector: u8, on: bool) {
        let at = base + (vector as u32 >> 5) * 0x10;
        let bit = 1 << (vector & 31);
        let old = self.read(at);
        self.write(at, if on { old | bit } else { old & !bit });
    }

    /// Highest vector set in the register that starts at `base`; 0 if none.
    fn highest(&self, base: u32) -> u8 {
        (0..8u8)
            .rev()
            .find_map(|i| {
                let word = self.read(base + i as u32 * 0x10);
                (word != 0).then(|| i * 32 + (31 - word.leading_zeros()) as u8)
            })
            .unwrap_or(0)
    }

    /// PPR virtualization.
    pub fn update_ppr(&mut self) {
        let (tpr, svi) = (self.vtpr(), self.svi());
        let ppr = if tpr >> 4 >= svi >> 4 { tpr } else { svi & 0xf0 };
        self.write(PPR, ppr as u32);
    }

    /// Whether a virtual interrupt is pending: RVI's class above VPPR's.
    pub fn interrupt_pending(&self) -> bool {
        self.delivery() && self.rvi() >> 4 > self.read(PPR) as u8 >> 4
    }

    /// VM entry with virtual-interrupt delivery: PPR virtualization (evaluation follows from [`Self::interrupt_pending`]).
    pub fn entered(&mut self) {
        if self.delivery() {
            self.update_ppr();
        }
    }

    /// Virtual-interrupt delivery: the vector to deliver through the IDT.
    pub fn deliver(&mut self) -> u8 {
        let vector = self.rvi();
        self.set_bit(ISR, vector, true);
        self.set_svi(vector);
        self.write(PPR, vector as u32 & 0xf0);
        self.set_bit(IRR, vector, false);
        let next = self.highest(IRR);
        self.set_rvi(next);
        vector
    }

    /// TPR virtualization: after a write of VTPR.
    fn tpr_written(&mut self) -> Effect {
        if self.delivery() {
            self.update_ppr();
            return Effect::None;
        }
        if self.below_threshold() { Effect::Exit(ExitInformation::new(basic::TPR_BELOW_THRESHOLD)) } else { Effect::None }
    }

    /// Whether VTPR is below the threshold (looked at after VTPR writes, and at VM entry).
    pub fn below_threshold(&self) -> bool {
        self.vtpr() >> 4 < self.vmcs.get(Field::TPR_THRESHOLD) as u8 & 0xf
    }

    /// MOV to CR8 and WRMSR of the TPR.
    pub fn write_tpr(&mut self, tpr: u8) -> Effect {
        self.write(TPR, tpr as u32);
        self.tpr_written()
    }

    /// EOI virtualization.
    pub fn end_of_interrupt(&mut self) -> Effect {
        let vector = self.svi();
        self.set_bit(ISR, vector, false);
        let next = self.highest(ISR);
        self.set_svi(next);
        self.update_ppr();
        let bitmap = self.vmcs.get(Field::EOI_EXIT_BITMAP_0.plus(vector >> 6));
        if bitmap >> (vector & 63) & 1 != 0 {
            return Effect::Exit(ExitInformation::qualified(basic::VIRTUALIZED_EOI, vector as u64));
        }
        Effect::None
    }

    /// Self-IPI virtualization.
    pub fn self_ipi(&mut self, vector: u8) {
        self.set_bit(IRR, vector, true);
        let rvi = self.rvi().max(vector);
        self.set_rvi(rvi);
    }

    /// Posted-interrupt processing: the notification vector arrived.
    pub fn posted(&mut self) {
        let descriptor = self.vmcs.get(Field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS);
        // Clear outstanding notification (bit 256).
        self.memory.write_u64(descriptor + 32, self.memory.read_u64(descriptor + 32) & !1);
        for i in 0..4u64 {
            let requests = self.memory.read_u64(descriptor + 8 * i);
            if requests == 0 {
                continue;
            }
            self.memory.write_u64(descriptor + 8 * i, 0);
            for half in 0..2u32 {
                let at = IRR + (2 * i as u32 + half) * 0x10;
                self.write(at, self.read(at) | (requests >> (32 * half)) as u32);
            }
            let highest = (64 * i) as u8 + (63 - requests.leading_zeros()) as u8;
            let rvi = self.rvi().max(highest);
            self.set_rvi(rvi);
        }
    }

    /// IPI virtualization: post `vector` to the virtual processor with this APIC ID. `None`: the table does not hold it.
    fn post_ipi(&mut self, vector: u8, destination: u32, physical_address_bits: u32, x2apic: bool) -> Option<Effect> {
        if destination as u64 > self.vmcs.get(Field::LAST_PID_POINTER_INDEX) {
            return None;
        }
        let entry = self.memory.read_u64(self.vmcs.get(Field::PID_POINTER_TABLE_ADDRESS) + 8 * destination as u64);
        // Bit 0 valid, 5:1 reserved.
        if entry & 0x3f != 1 || entry >> physical_address_bits != 0 {
            return None;
        }
        let descriptor = entry & !0x3f;
        let at = descriptor + 8 * (vector as u64 >> 6);
        self.memory.write_u64(at, self.memory.read_u64(at) | 1 << (vector & 63));
        // 0 outstanding, 1 suppressed, 23:16 vector, 63:32 destination.
        let control = self.memory.read_u64(descriptor + 32);
        if control & 3 != 0 {
            return Some(Effect::None);
        }
        self.memory.write_u64(descriptor + 32, control | 1);
        let destination = (control >> 32) as u32;
        let destination = if x2apic { destination } else { destination >> 8 & 0xff };
        Some(Effect::Notify { vector: (control >> 16) as u8, destination })
    }

    /// A write to the interrupt-command register. `None`: not virtualized.
    fn icr_written(&mut self, low: u32, destination: u32, physical_address_bits: u32, x2apic: bool) -> Option<Effect> {
        let vector = low as u8;
        // Reserved 31:20, 17:16, 13; delivery status 12; level-triggered 15; delivery mode 10:8.
        if low & 0xfff3_b700 != 0 || vector < 16 {
            return None;
        }
        match low >> 18 & 3 {
            1 if self.delivery() => {
                self.self_ipi(vector);
                Some(Effect::None)
            }
            // No shorthand, physical destination (bit 11 clear).
            0 if self.vmcs.tertiary(tertiary::IPI_VIRTUALIZATION) && low & 1 << 11 == 0 => {
                self.post_ipi(vector, destination, physical_address_bits, x2apic)
            }
            _ => None,
        }
    }

    // ---- the APIC-access page -------------------------------------------------------------------------------------------

    /// A read of `size` bytes at `offset` of the APIC-access page (Virtualizing Reads from the APIC-Access Page).
    pub fn page_read(&self, offset: u64, size: usize) -> PageAccess {
        let register = register(offset);
        let virtualized = self.virtualizable(offset, size)
            && if self.vmcs.secondary(secondary::APIC_REGISTER_VIRTUALIZATION) {
                matches!(register, ID | VERSION | TPR | EOI | LDR | DFR | SVR | ISR..=ESR | ICR..=INITIAL_COUNT | DIVIDE)
            } else {
                register == TPR
            };
        if virtualized { PageAccess::Virtual(self.page() + offset) } else { PageAccess::Exit }
    }

    /// A write likewise; when the instruction is complete, [`Self::page_written`] does what the register does.
    pub fn page_write(&self, offset: u64, size: usize) -> PageAccess {
        let register = register(offset);
        let virtualized = self.virtualizable(offset, size)
            && if self.vmcs.secondary(secondary::APIC_REGISTER_VIRTUALIZATION) {
                matches!(register, ID | TPR | EOI | LDR | DFR | SVR | ESR | ICR..=INITIAL_COUNT | DIVIDE)
            } else {
                register == TPR
                    || self.delivery() && (register == EOI || register == ICR)
                    || self.vmcs.tertiary(tertiary::IPI_VIRTUALIZATION) && register == ICR
            };
        if virtualized { PageAccess::Virtual(self.page() + offset) } else { PageAccess::Exit }
    }

    /// Within the low four bytes of a register, at most 32 bits, and the TPR shadow on.
    fn virtualizable(&self, offset: u64, size: usize) -> bool {
        self.vmcs.primary(primary::TPR_SHADOW) && size <= 4 && (offset & 0xf) + size as u64 <= 4
    }

    /// APIC-write emulation.
    pub fn page_written(&mut self, offset: u64, physical_address_bits: u32) -> Effect {
        match register(offset) {
            TPR => {
                self.write(TPR, self.vtpr() as u32);
                self.tpr_written()
            }
            EOI if self.delivery() => {
                self.write(EOI, 0);
                self.end_of_interrupt()
            }
            ICR => {
                let destination = self.read(ICR_HIGH) >> 24;
                let low = self.read(ICR);
                self.icr_written(low, destination, physical_address_bits, false).unwrap_or(Self::write_exit(ICR))
            }
            ICR_HIGH => {
                self.write(ICR_HIGH, self.read(ICR_HIGH) & 0xff00_0000);
                Effect::None
            }
            register => Self::write_exit(register),
        }
    }

    fn write_exit(register: u32) -> Effect {
        Effect::Exit(ExitInformation::qualified(basic::APIC_WRITE, register as u64))
    }

    // ---- x2APIC MSRs ----------------------------------------------------------------------------------------------------

    /// RDMSR of 0x800–0x8ff with "virtualize x2APIC mode". `None`: not virtualized.
    pub fn msr_read(&self, msr: u32) -> Option<u64> {
        let all = self.vmcs.secondary(secondary::APIC_REGISTER_VIRTUALIZATION);
        let register = (msr & 0xff) << 4;
        (all || register == TPR).then(|| self.memory.read_u64(self.page() + register as u64))
    }

    /// WRMSR likewise. `None`: not virtualized. `Some(Err(()))`: #GP(0).
    pub fn msr_write(&mut self, msr: u32, value: u64, physical_address_bits: u32) -> Option<Result<Effect, ()>> {
        match msr {
            0x808 => Some(if value >> 8 != 0 { Err(()) } else { Ok(self.write_tpr(value as u8)) }),
            0x80b if self.delivery() => Some(if value != 0 {
                Err(())
            } else {
                self.write(EOI, 0);
                Ok(self.end_of_interrupt())
            }),
            0x83f if self.delivery() => Some(if value >> 8 != 0 {
                Err(())
            } else {
                self.write(SELF_IPI, value as u32);
                if value < 16 {
                    Ok(Self::write_exit(SELF_IPI))
                } else {
                    self.self_ipi(value as u8);
                    Ok(Effect::None)
                }
            }),
            0x830 if self.vmcs.tertiary(tertiary::IPI_VIRTUALIZATION) => {
                self.memory.write_u64(self.page() + ICR as u64, value);
                let effect = self.icr_written(value as u32, (value >> 32) as u32, physical_address_bits, true);
                Some(Ok(effect.unwrap_or(Self::write_exit(ICR))))
            }
            _ => None,
        }
    }
}

/// The register that an offset in its page lies in.
fn register(offset: u64) -> u32 {
    (offset & 0xff0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Words;

    fn with(test: impl FnOnce(&mut VirtualApic<'_>)) {
        let memory = Words::new(0x4000);
        let mut v = Vmcs::default();
        v.set(Field::PRIMARY_CONTROLS, (primary::SECONDARY_CONTROLS | primary::TPR_SHADOW) as u64);
        v.set(Field::SECONDARY_CONTROLS, secondary::VIRTUAL_INTERRUPT_DELIVERY as u64);
        v.set(Field::VIRTUAL_APIC_ADDRESS, 0x1000);
        v.set(Field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, 0x2000);
        test(&mut VirtualApic { vmcs: &mut v, memory: &memory });
    }

    #[test]
    fn an_interrupt_from_self_ipi_to_eoi() {
        with(|a| {
            a.self_ipi(0x51);
            a.self_ipi(0x41);
            assert!(a.interrupt_pending());
            assert_eq!(a.deliver(), 0x51);
            assert!(!a.interrupt_pending(), "0x41 is below the one in service");
            a.vmcs.set(Field::EOI_EXIT_BITMAP_1, 1 << 0x11);
            assert_eq!(a.end_of_interrupt(), Effect::Exit(ExitInformation::qualified(basic::VIRTUALIZED_EOI, 0x51)));
            assert!(a.interrupt_pending());
            assert_eq!(a.deliver(), 0x41);
            assert_eq!(a.end_of_interrupt(), Effect::None);
        });
    }

    #[test]
    fn tpr_holds_back() {
        with(|a| {
            a.self_ipi(0x51);
            a.write_tpr(0x50);
            assert!(!a.interrupt_pending());
            a.write_tpr(0x4f);
            assert!(a.interrupt_pending());
        });
    }

    #[test]
    fn posted_requests_move() {
        with(|a| {
            a.memory.write_u64(0x2000 + 24, 1 << 5); // vector 197
            a.memory.write_u64(0x2000 + 32, 1);
            a.posted();
            assert_eq!(a.memory.read_u64(0x2000 + 32), 0);
            assert_eq!(a.deliver(), 197);
        });
    }

    #[test]
    fn threshold() {
        with(|a| {
            a.vmcs.set(Field::SECONDARY_CONTROLS, 0);
            a.vmcs.set(Field::TPR_THRESHOLD, 5);
            assert_eq!(a.write_tpr(0x50), Effect::None);
            assert_eq!(a.write_tpr(0x4f), Effect::Exit(ExitInformation::new(basic::TPR_BELOW_THRESHOLD)));
        });
    }
}
