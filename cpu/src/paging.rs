//! From linear to guest-physical, and everything that follows from a change of mode.

use undervisor_core::{Cr0, Cr4, Rflags, SegReg};
use undervisor_mmu::{Bank, SpaceKey, Tlb};

use crate::cpu::{Cpu, Exec};
use crate::decode::Mode;

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub write: bool,
    pub fetch: bool,
    /// Implicit supervisor access (descriptor tables, TSS): CPL does not matter.
    pub system: bool,
}

impl Access {
    pub const READ: Access = Access { write: false, fetch: false, system: false };
    pub const WRITE: Access = Access { write: true, fetch: false, system: false };
    pub const FETCH: Access = Access { write: false, fetch: true, system: false };
    pub const SYSTEM_READ: Access = Access { write: false, fetch: false, system: true };
    pub const SYSTEM_WRITE: Access = Access { write: true, fetch: false, system: true };
}

impl Cpu {
    /// Translate for an access; fills the TLB. Faults are #PF (or a VM exit).
    pub fn translate(&mut self, linear: u64, access: Access) -> Exec<u64> {
        self.counters.tlb_misses += 1;
        let physical = linear;
        self.fill(linear, physical, access.write, access);
        Ok(physical)
    }

    /// Enter a translation in the TLB of the current bank, unless the page must be reached through the slow path.
    fn fill(&mut self, linear: u64, physical: u64, writable: bool, access: Access) {
        if access.fetch || access.system || self.tlb_bypassed() || self.watched_physical(physical) {
            return;
        }
        let Some(page) = self.shared.memory.page(physical) else {
            return;
        };
        let code = self.shared.memory.page_index(physical).is_some_and(|i| self.shared.code().is_code(i));
        let tag = Tlb::tag(linear, 1, self.space);
        let e = self.tlb.entry(self.bank_index, linear);
        e.read = tag;
        e.write = if writable && page.writable && !code { tag } else { undervisor_mmu::tlb::NEVER };
        e.addend = (page.pointer as usize as u64).wrapping_sub(linear & !0xfff);
        e.physical = physical & !0xfff;
    }

    /// Translate an instruction fetch.
    pub fn translate_fetch(&mut self, linear: u64) -> Exec<u64> {
        self.translate(linear, Access::FETCH)
    }

    /// Linear address of an offset in CS.
    #[inline]
    pub fn linear_ip(&self, rip: u64) -> u64 {
        if self.mode.is64() { rip } else { self.state.segment(SegReg::Cs).base.wrapping_add(rip) & 0xffff_ffff }
    }

    /// Bytes that may be fetched from `rip` on before the code segment's limit (0: none).
    pub fn code_room(&self, rip: u64) -> u64 {
        if self.mode.is64() {
            return u64::MAX;
        }
        (self.state.segment(SegReg::Cs).limit as u64 + 1).saturating_sub(rip)
    }

    /// Bytes of code at a guest-physical address, up to the end of its page. What is not RAM reads through the bus.
    pub fn fetch_bytes(&mut self, physical: u64, out: &mut [u8]) {
        if self.shared.memory.read_bytes(physical, out).is_err() {
            let now = self.now();
            for (i, byte) in out.iter_mut().enumerate() {
                *byte = self.bus().mmio_read(now, physical + i as u64, 1) as u8;
            }
        }
    }

    /// Whether accesses must not be answered from the TLB now: alignment checks or data breakpoints are on.
    pub fn tlb_bypassed(&self) -> bool {
        self.alignment_checked()
    }

    /// EFLAGS.AC, CR0.AM and CPL 3.
    #[inline]
    pub fn alignment_checked(&self) -> bool {
        self.state.cpl == 3 && self.state.cr0.contains(Cr0::AM) && self.state.flag(Rflags::AC)
    }

    /// Whether a guest-physical page, though RAM, must be reached as MMIO (the local APIC's page).
    #[inline]
    pub fn watched_physical(&self, physical: u64) -> bool {
        self.in_apic_page(physical)
    }

    /// A data access took place on the slow path: data breakpoints.
    #[inline]
    pub fn data_accessed(&mut self, _linear: u64, _size: usize, _access: Access) {}

    /// Read guest-physical memory that is not RAM, 1, 2, 4 or 8 bytes, naturally aligned.
    pub fn physical_read(&mut self, physical: u64, size: usize) -> Exec<u64> {
        if self.in_apic_page(physical) {
            return Ok(self.apic_mmio_read(physical, size));
        }
        let now = self.now();
        let value = self.bus().mmio_read(now, physical, size);
        self.bus_accessed();
        Ok(value)
    }
    /// Write guest-physical memory that is not RAM.
    pub fn physical_write(&mut self, physical: u64, size: usize, value: u64) -> Exec {
        if self.in_apic_page(physical) {
            self.apic_mmio_write(physical, size, value);
            return Ok(());
        }
        let now = self.now();
        self.bus().mmio_write(now, physical, size, value);
        self.bus_accessed();
        Ok(())
    }

    /// Bring everything that is derived from the architectural state up to date: decode mode, TLB bank, space id, fetch tag.
    /// Call after any change of CR0, CR3, CR4, EFER, XCR0, CS, SS, DS, ES, CPL, EFLAGS.VM/AC, or of the level.
    pub fn mode_changed(&mut self) {
        self.mode = Mode::of(self);
        let key = self.space_key();
        let (id, wrapped) = self.spaces.id(&key);
        if wrapped {
            self.tlb.clear();
            self.jumps.clear();
            self.counters.space_flushes += 1;
        }
        self.space = id as u64;
        self.privilege_changed();
    }

    /// The cheaper half of [`Cpu::mode_changed`]: CPL, EFLAGS.AC or segments changed, but not the paging mode.
    pub fn privilege_changed(&mut self) {
        self.mode = Mode::of(self);
        let bank = if self.state.cpl == 3 {
            Bank::User
        } else if self.state.cr4.contains(Cr4::SMAP) && self.state.flag(Rflags::AC) {
            Bank::SupervisorAc
        } else {
            Bank::Supervisor
        };
        self.bank_index = bank as usize;
        self.bank = self.tlb.bank_pointer(self.bank_index);
        self.fetch_tag = self.space | (self.mode.0 as u64) << 16 | (self.state.cpl as u64) << 12 | 1 << 62;
    }

    /// What selects the current translations.
    fn space_key(&self) -> SpaceKey {
        SpaceKey::default()
    }
}
