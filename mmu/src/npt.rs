//! AMD nested paging (APM vol. 2, Nested Paging).

use crate::memory::GuestMemory;
use crate::walk::{
    Paging, PagingMode, PhysicalSpace, Plain, Request, Translation, WalkFault, entry, read_entry, update_entry, walk,
};

/// #NPF error code (EXITINFO1) bits beyond those of a page fault (APM vol. 2, Nested versus Guest Page Faults, Fault Ordering).
pub mod npf {
    /// The fault was in translating the guest's final physical address.
    pub const FINAL: u64 = 1 << 32;
    /// The fault was in translating a guest page-table access.
    pub const TABLE: u64 = 1 << 33;
    /// The page is marked for supervisor shadow stacks.
    pub const SHADOW_STACK_PAGE: u64 = 1 << 37;
    /// User-mode access, which all are but, with GMET, the fetches of supervisor code.
    pub const USER: u64 = 1 << 2;
}

/// What governs a translation through nested page tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Npt {
    /// The host's paging mode at VMRUN, with nCR3 as root; SMEP, SMAP and protection keys off.
    pub paging: Paging,
    /// Guest Mode Execute Trap: guest supervisor code must not be fetched from user pages of the nested tables.
    pub guest_mode_execute_trap: bool,
    /// Supervisor shadow stacks may only be in pages that are marked for them; faults say whether the page is.
    pub shadow_stack_check: bool,
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
            let marked = self.shadow_stack_check && self.shadow_stack_page(memory, r.address);
            let error_code = code
                | if gmet && r.fetch && !r.user { 0 } else { npf::USER }
                | if table { npf::TABLE } else { npf::FINAL }
                | if marked { npf::SHADOW_STACK_PAGE } else { 0 };
            NptExit { guest_physical: r.address, error_code }
        })
    }
}

impl Npt {
    /// Whether the entry that maps an address marks its page for supervisor shadow stacks: NX set, U/S clear, and R/W set in every
    /// entry above (APM vol. 2, Supervisor Shadow Stacks).
    fn shadow_stack_page(&self, memory: &GuestMemory, address: u64) -> bool {
        let levels = match self.paging.mode {
            PagingMode::Level5 => 5,
            PagingMode::Level4 => 4,
            PagingMode::Pae => 3,
            _ => return false,
        };
        let mut table = self.paging.root;
        for level in (1..=levels).rev() {
            let index = address >> (12 + 9 * (level - 1)) & if level == 3 && levels == 3 { 3 } else { 0x1ff };
            let found = read_entry(memory, table + 8 * index, 8);
            if found & entry::P == 0 {
                return false;
            }
            if level == 1 || found & entry::PS != 0 && level <= 3 {
                return found & entry::NX != 0 && found & entry::U == 0;
            }
            // A PAE directory pointer has no rights.
            if found & entry::W == 0 && !(level == 3 && levels == 3) {
                return false;
            }
            table = found & self.paging.address_mask;
        }
        false
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
