//! The A20 gate: while A20M# is asserted, bit 20 of the physical addresses that a processor puts out is 0, so that real-mode addresses
//! wrap at 1 MiB (SDM vol. 3, Protected-Mode and Real-Mode Addressing and A20M#: 8086 emulation).
//!
//! It is part of translation, so that an open gate costs nothing: closing or opening it forgets every translation.

use undervisor_mmu::walk::A20;
use undervisor_svm::controls::vm_cr;

use crate::cpu::Cpu;

/// The gate as a processor sees it.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Level of the pin: addresses pass whole.
    open: bool,
    /// Bit 20 is masked now.
    pub(crate) masks: bool,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { open: true, masks: false }
    }
}

impl Gate {
    /// A physical address as it leaves the processor.
    #[inline]
    pub(crate) fn pass(self, physical: u64) -> u64 {
        if self.masks { physical & !A20 } else { physical }
    }
}

impl Cpu {
    /// The gate opens or closes. Between runs.
    pub fn set_a20(&mut self, open: bool) {
        self.translations.a20.open = open;
        self.a20_changed();
    }

    /// What the pin depends on may have changed: VMX operation blocks it (SDM vol. 3, Restrictions on VMX Operation), and so does
    /// VM_CR.DIS_A20M (APM vol. 2, VM_CR MSR).
    pub(crate) fn a20_changed(&mut self) {
        let gate = &mut self.translations.a20;
        let blocked = self.virt.vmx.on || self.state.msrs.vm_cr & vm_cr::DIS_A20M != 0;
        let masks = !gate.open && !blocked;
        if gate.masks != masks {
            gate.masks = masks;
            self.forget_translations();
        }
    }

    /// Physical memory has been rearranged.
    pub fn forget_translations(&mut self) {
        self.tlb.clear();
        self.jumps.clear();
        self.translations.clear();
        self.mode_changed();
    }
}

#[cfg(test)]
mod tests {
    use undervisor_core::Cr0;
    use undervisor_mmu::{LowRouting, NullBus};

    use crate::cpu::Cpu;
    use crate::testing::processor;

    fn load(cpu: &mut Cpu, linear: u64) -> u8 {
        cpu.read_linear::<u8>(linear).expect("no fault")
    }

    /// A megabyte is all the RAM there is, so what lies above it is the bus's.
    #[test]
    fn addresses_wrap_while_it_is_closed() {
        let mut c = processor(32);
        c.shared.write_bytes(0x2345, &[0x5a]).expect("RAM");
        assert_eq!(load(&mut c, 0x10_2345), 0xff);
        c.set_a20(false);
        assert_eq!((load(&mut c, 0x10_2345), load(&mut c, 0x2345)), (0x5a, 0x5a));
        c.write_linear::<u8>(0x30_2346, 7).expect("no fault");
        assert_eq!(load(&mut c, 0x2346), 0, "bit 21 is not masked");
        // Code too: INC EAX at 1000H, met at 101000H.
        c.shared.write_bytes(0x1000, &[0x40, 0xf4]).expect("RAM");
        c.state.set_rip(0x10_1000);
        c.run(&mut NullBus, 100);
        assert_eq!((c.state.gpr(0), c.state.rip()), (1, 0x10_1002));
        c.set_a20(true);
        assert_eq!(load(&mut c, 0x10_2345), 0xff);
    }

    #[test]
    fn page_tables_wrap_too() {
        let mut c = processor(32);
        // A directory at 102000H, which is 2000H, maps 0 to a table at 103000H.
        c.shared.write_bytes(0x2000, &0x10_3003u32.to_le_bytes()).expect("RAM");
        c.shared.write_bytes(0x3010, &0x10_5003u32.to_le_bytes()).expect("RAM");
        c.shared.write_bytes(0x5000, &[0x77]).expect("RAM");
        c.state.cr3 = 0x10_2000;
        c.state.cr0 |= Cr0::PG;
        c.mode_changed();
        // Where there is nothing, a table is all ones.
        assert_eq!(load(&mut c, 0x4000), 0xff);
        c.set_a20(false);
        assert_eq!(load(&mut c, 0x4000), 0x77);
    }

    #[test]
    fn the_chipset_routes_low_memory() {
        let mut c = processor(32);
        let store = |c: &mut Cpu, value: u8| c.write_linear::<u8>(0xc_8000, value).expect("no fault");
        let route = |c: &mut Cpu, read, write| {
            let mut routing = LowRouting::RAM;
            routing.set(0xc_8000, 0x4000, read, write);
            c.shared.memory.set_low_routing(routing);
            c.forget_translations();
        };
        store(&mut c, 1);
        route(&mut c, true, false);
        store(&mut c, 2);
        assert_eq!((load(&mut c, 0xc_8000), load(&mut c, 0xc_7fff), load(&mut c, 0xc_c000)), (1, 0, 0));
        route(&mut c, false, false);
        assert_eq!((load(&mut c, 0xc_8000), load(&mut c, 0xc_7fff), load(&mut c, 0xc_c000)), (0xff, 0, 0));
        route(&mut c, true, true);
        assert_eq!(load(&mut c, 0xc_8000), 1);
    }
}
