//! APIC virtualization as the processor meets it: the APIC-access page, CR8, virtualized IPIs.

use undervisor_mmu::PAGE_MASK;
use undervisor_vmx::apic::{Effect, PageAccess, VirtualApic};
use undervisor_vmx::controls::primary;
use undervisor_vmx::reason::basic;
use undervisor_vmx::{ExitInformation, Memory};

use crate::cpu::{Cpu, Exec, Shared, Stop, attention};

impl Cpu {
    /// The guest's virtual-APIC page.
    pub(super) fn vmx_apic<'a>(&'a mut self, shared: &'a Shared) -> VirtualApic<'a> {
        VirtualApic { vmcs: &mut self.virt.vmx.vmcs, memory: shared }
    }

    /// Carry out what a virtualized write asks for.
    pub(super) fn vmx_apic_effect(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Exit(information) => self.virt.vmx.pending_exit = Some(information),
            Effect::Notify { vector, destination } => {
                // Fixed, edge, physical: an ICR with the x2APIC destination.
                let icr = (destination as u64) << 32 | vector as u64 | 1 << 14;
                let from = self.id;
                self.bus().send_ipi(from, icr);
                self.bus_accessed();
            }
        }
        self.attend(attention::VIRT);
    }

    /// Whether `physical` is the APIC-access page of the guest that runs.
    #[inline]
    pub fn vmx_in_apic_access_page(&self, physical: u64) -> bool {
        physical & PAGE_MASK == self.virt.vmx.apic_access_page
    }

    /// An APIC-access exit: 11:0 offset; 15:12: 0 read, 1 write, 2 instruction fetch, 3 during event delivery.
    fn vmx_apic_access_exit(&mut self, physical: u64, kind: u64) -> Stop {
        let kind = if self.virt.delivering.is_some() { 3 } else { kind };
        let mut info = ExitInformation::qualified(basic::APIC_ACCESS, physical & 0xfff | kind << 12);
        info.instruction_length = self.vmx_instruction_length();
        self.vmx_exit_access(info)
    }

    /// An instruction fetch from the APIC-access page.
    #[cold]
    pub fn vmx_apic_page_fetch(&mut self, physical: u64) -> Stop {
        self.vmx_apic_access_exit(physical, 2)
    }

    /// A read of the APIC-access page.
    pub fn vmx_apic_page_read(&mut self, physical: u64, size: usize) -> Exec<u64> {
        let shared = self.shared.clone();
        match self.vmx_apic(&shared).page_read(physical & 0xfff, size) {
            PageAccess::Virtual(at) => {
                let word = shared.read_u32(at & !3) >> (8 * (at & 3));
                Ok(word as u64 & (u64::MAX >> (64 - 8 * size)))
            }
            PageAccess::Exit => Err(self.vmx_apic_access_exit(physical, 0)),
        }
    }

    /// A write to the APIC-access page.
    pub fn vmx_apic_page_write(&mut self, physical: u64, size: usize, value: u64) -> Exec {
        let shared = self.shared.clone();
        match self.vmx_apic(&shared).page_write(physical & 0xfff, size) {
            PageAccess::Virtual(_) if !std::mem::take(&mut self.virt.vmx.alone) => {
                // Emulation follows this very instruction: run it once more, in a block of its own.
                self.virt.vmx.alone = true;
                self.general_once = true;
                Err(Stop::Again)
            }
            PageAccess::Virtual(at) => {
                let shift = 8 * (at & 3);
                let mask = ((u64::MAX >> (64 - 8 * size)) as u32) << shift;
                let old = shared.read_u32(at & !3);
                shared.write_u32(at & !3, old & !mask | (value as u32) << shift & mask);
                self.virt.vmx.apic_written = Some(physical & 0xff0);
                self.attend(attention::VIRT);
                Ok(())
            }
            PageAccess::Exit => Err(self.vmx_apic_access_exit(physical, 1)),
        }
    }

    pub(in crate::virt) fn vmx_read_cr8(&mut self) -> Exec<Option<u64>> {
        if !self.vmx_primary(primary::TPR_SHADOW) {
            return Ok(None);
        }
        let shared = self.shared.clone();
        Ok(Some((self.vmx_apic(&shared).vtpr() >> 4) as u64))
    }

    pub(in crate::virt) fn vmx_write_cr8(&mut self, value: u64) -> Exec<bool> {
        if !self.vmx_primary(primary::TPR_SHADOW) {
            return Ok(false);
        }
        let shared = self.shared.clone();
        let effect = self.vmx_apic(&shared).write_tpr((value as u8) << 4);
        self.vmx_apic_effect(effect);
        Ok(true)
    }
}
