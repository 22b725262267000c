//! AMD nested paging (APM vol. 2, Nested Paging).

use crate::memory::GuestMemory;
use crate::walk::{Paging, PhysicalSpace, Plain, Request, Translation, WalkFault, read_entry, update_entry, walk};

/// #NPF error code (EXITINFO1) bits beyond those of a page fault (APM vol. 2, Nested versus Guest Page Faults, Fault Ordering).
pub mod npf {
    /// The fault was in translating the guest's final physical address.
    pub const FINAL: u64 = 1 << 32;
    /// The fault was in translating a guest page-table access.
    pub const TABLE: u64 = 1 << 33;
    /// User-mode access as a nested-paging fault always reports it.
    pub const USER: u64 = 1 << 2;
}

/// What governs a translation through nested page tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Npt {
    /// The host's paging mode at VMRUN, with nCR3 as root; SMEP, SMAP and protection keys off.
    pub paging: Paging,
    /// Guest Mode Execute Trap: guest supervisor code must not be fetched from user pages of the nested tables.
    pub guest_mode_execute_trap: bool,
}

/// An access to a guest-physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NptRequest {
    pub address: u64,
    pub write: bool,
    pub fetch: bool,
    /// The guest was at CPL 3 (only looked at for fetches with GMET).
    pub user: bool,
}

/// A nested page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptExit {
    pub guest_physical: u64,
    /// EXITINFO1.
    pub error_code: u64,
}

impl Npt {
    /// Translate a guest-physical address; every access is a user access at this level.
    pub fn translate(
        &self,
        memory: &GuestMemory,
        wrote: &dyn Fn(u64),
        r: &NptRequest,
        table: bool,
    ) -> Result<Translation, NptExit> {
        let gmet = self.guest_mode_execute_trap;
        let request =
            Request { linear: r.address, write: r.write, fetch: r.fetch, user: !(gmet && r.fetch && !r.user), smap_off: true };
        // GMET: a supervisor fetch from a page that user mode may reach is what SMEP forbids.
        let paging = if gmet && r.fetch { &Paging { smep: !r.user || self.paging.smep, ..self.paging } } else { &self.paging };
        walk(&mut Plain { memory, wrote }, paging, &request).map_err(|fault| {
            let code = match fault {
                WalkFault::Page(code) => code as u64,
                WalkFault::Nested(never) => match never {},
            };
            NptExit { guest_physical: r.address, error_code: code | npf::USER | if table { npf::TABLE } else { npf::FINAL } }
        })
    }
}

/// A guest's physical memory under nested paging, for the guest's page walks.
pub struct UnderNpt<'a> {
    pub memory: &'a GuestMemory,
    pub wrote: &'a dyn Fn(u64),
    pub npt: &'a Npt,
}

impl PhysicalSpace for UnderNpt<'_> {
    type Fault = NptExit;
    /// "Table walks for guest page tables are always treated as user writes at the nested page table level."
    fn locate(&mut self, address: u64) -> Result<u64, NptExit> {
        let request = NptRequest { address, write: true, fetch: false, user: true };
        self.npt.translate(self.memory, self.wrote, &request, true).map(|t| t.physical)
    }
    fn read(&self, physical: u64, size: usize) -> u64 {
        read_entry(self.memory, physical, size)
    }
    fn update(&mut self, _: u64, physical: u64, size: usize, old: u64, new: u64) -> Result<bool, NptExit> {
        Ok(update_entry(self.memory, self.wrote, physical, size, old, new))
    }
}
