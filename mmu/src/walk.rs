//! Linear-address translation: 32-bit, PAE, 4-level and 5-level paging (SDM vol. 3, Paging; APM vol. 2, Page Translation
//! and Protection).
//!
//! The walker reaches paging-structure entries through a [`PhysicalSpace`], so that nested paging composes: under EPT or NPT
//! each such access is itself translated, and may fail there.

use undervisor_core::event::pf;

use crate::memory::GuestMemory;

/// Bits of a paging-structure entry.
pub mod entry {
    pub const P: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const U: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
}
use entry::{A, D, G, NX, P, PS, U, W};

/// Guest-physical memory as the walker sees it.
pub trait PhysicalSpace {
    /// Why an entry cannot be reached: nothing for real memory, an EPT or NPT fault under nested paging.
    type Fault;
    /// Where the entry at `address` lives (level-0 physical).
    fn locate(&mut self, address: u64) -> Result<u64, Self::Fault>;
    /// Read an entry of 4 or 8 bytes at a level-0 address. What is not RAM reads as all ones.
    fn read(&self, physical: u64, size: usize) -> u64;
    /// Compare-exchange an entry whose accessed or dirty flag must be set; `address` is its guest-physical address.
    /// `Ok(false)`: the entry has changed since it was read, the walk must start over.
    fn update(&mut self, address: u64, physical: u64, size: usize, old: u64, new: u64) -> Result<bool, Self::Fault>;
}

/// Memory without a nested translation. `wrote` hears of each entry that the walker changes.
pub struct Plain<'a> {
    pub memory: &'a GuestMemory,
    pub wrote: &'a dyn Fn(u64),
}

/// No fault at this level is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Never {}

impl PhysicalSpace for Plain<'_> {
    type Fault = Never;
    #[inline(always)]
    fn locate(&mut self, address: u64) -> Result<u64, Never> {
        Ok(address)
    }
    #[inline(always)]
    fn read(&self, physical: u64, size: usize) -> u64 {
        read_entry(self.memory, physical, size)
    }
    #[inline]
    fn update(&mut self, _: u64, physical: u64, size: usize, old: u64, new: u64) -> Result<bool, Never> {
        Ok(update_entry(self.memory, self.wrote, physical, size, old, new))
    }
}

/// The same while A20M# is asserted: bit 20 of every address is 0.
pub struct A20Masked<'a>(pub Plain<'a>);

/// The address bit that A20M# masks.
pub const A20: u64 = 1 << 20;

impl PhysicalSpace for A20Masked<'_> {
    type Fault = Never;
    fn locate(&mut self, address: u64) -> Result<u64, Never> {
        Ok(address & !A20)
    }
    fn read(&self, physical: u64, size: usize) -> u64 {
        self.0.read(physical, size)
    }
    fn update(&mut self, address: u64, physical: u64, size: usize, old: u64, new: u64) -> Result<bool, Never> {
        self.0.update(address, physical, size, old, new)
    }
}

#[inline(always)]
pub(crate) fn read_entry(memory: &GuestMemory, physical: u64, size: usize) -> u64 {
    if size == 8 {
        memory.read::<u64>(physical).unwrap_or(u64::MAX)
    } else {
        memory.read::<u32>(physical).unwrap_or(u32::MAX) as u64
    }
}

#[cold]
#[inline(never)]
pub(crate) fn update_entry(memory: &GuestMemory, wrote: &dyn Fn(u64), physical: u64, size: usize, old: u64, new: u64) -> bool {
    if read_entry(memory, physical, size) != old {
        return false;
    }
    let done = if size == 8 { memory.write::<u64>(physical, new) } else { memory.write::<u32>(physical, new as u32) };
    if done.is_some() {
        wrote(physical);
    }
    true
}

/// Which paging mode is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PagingMode {
    /// CR0.PG = 0: linear addresses are physical addresses.
    #[default]
    Off,
    /// 32-bit paging.
    Bits32,
    /// PAE paging.
    Pae,
    /// 4-level paging (AMD: long mode).
    Level4,
    /// 5-level paging.
    Level5,
}

/// Everything that selects and governs a walk, worked out once per change of control registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paging {
    pub mode: PagingMode,
    /// Physical address of the first table (CR3 without PCID, PCD, PWT).
    pub root: u64,
    /// The PDPTE registers (PAE paging).
    pub pdpte: [u64; 4],
    /// PAE paging reads its PDPTEs from memory on each walk instead (AMD under nested paging).
    pub pdpte_in_memory: bool,
    pub nxe: bool,
    pub wp: bool,
    pub smep: bool,
    pub smap: bool,
    /// CR4.PSE: 4 MiB pages in 32-bit paging.
    pub pse: bool,
    /// Protection keys for user-mode pages are in force.
    pub pke: bool,
    pub pkru: u32,
    /// Reserved bits of entries that reference a table, by level (index 1–5).
    pub(crate) reserved_table: [u64; 6],
    /// Reserved bits of entries that map a page, by level.
    pub(crate) reserved_page: [u64; 6],
    /// Physical-address bits of an entry.
    pub(crate) address_mask: u64,
    pub(crate) physical_bits: u8,
}

/// What the model says about physical addresses and page sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// MAXPHYADDR.
    pub physical_bits: u8,
    /// 1 GiB pages exist (CPUID 8000_0001H EDX\[26\]).
    pub gigabyte_pages: bool,
    /// PML4E and PML5E bit 8 must be zero (AMD).
    pub amd: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { physical_bits: 46, gigabyte_pages: true, amd: false }
    }
}

/// Bits `from..=to`.
pub(crate) const fn bits(from: u32, to: u32) -> u64 {
    if from > to { 0 } else { (u64::MAX >> (63 - to)) & (u64::MAX << from) }
}

impl Paging {
    /// The paging of nested page tables: the host's mode, with user rights checked and nothing else.
    pub fn nested(host: &Paging, root: u64, limits: &Limits) -> Paging {
        let mut p = Paging {
            mode: host.mode,
            root,
            pdpte_in_memory: true,
            nxe: host.nxe,
            wp: true,
            pse: host.pse,
            // User accesses are all there are; but the error code of a fetch depends on it.
            smep: host.smep,
            ..Paging::default()
        };
        p.prepare(limits);
        p
    }

    /// Work out the reserved bits (SDM vol. 3, Page-Fault Exceptions; Tables of paging-structure entry formats; APM
    /// vol. 2, Long-Mode Page Translation). Call when the other fields are set.
    pub fn prepare(&mut self, limits: &Limits) {
        let width = limits.physical_bits.clamp(32, 52) as u32;
        self.physical_bits = width as u8;
        self.address_mask = bits(12, width - 1);
        let mut high = bits(width, 51);
        if self.mode == PagingMode::Pae {
            high |= bits(52, 62);
        }
        if !self.nxe {
            high |= NX;
        }
        let bit8 = if limits.amd { G } else { 0 };
        self.reserved_table = [high; 6];
        self.reserved_page = [high; 6];
        self.reserved_table[4] |= PS | bit8;
        self.reserved_table[5] |= PS | bit8;
        self.reserved_page[4] |= PS;
        self.reserved_page[5] |= PS;
        self.reserved_page[3] |= if limits.gigabyte_pages { bits(13, 29) } else { PS };
        self.reserved_page[2] |= bits(13, 20);
        if self.mode == PagingMode::Pae {
            // Legacy PDPTE: checked by `pdpte_reserved`.
            self.reserved_table[3] = pdpte_reserved(width as u8);
            self.reserved_page[3] = self.reserved_table[3];
        }
    }
}

/// Reserved bits of a PAE PDPTE (SDM vol. 3, PDPTE Registers).
pub fn pdpte_reserved(physical_bits: u8) -> u64 {
    bits(1, 2) | bits(5, 8) | bits(physical_bits as u32, 63)
}

/// An access to be translated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    pub linear: u64,
    pub write: bool,
    pub fetch: bool,
    /// User-mode access: CPL 3 and not an implicit supervisor access.
    pub user: bool,
    /// Explicit supervisor-mode data access with EFLAGS.AC set: SMAP does not apply.
    pub smap_off: bool,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub physical: u64,
    /// log2 of the page's size: 12, 21, 22 or 30.
    pub page_bits: u8,
    /// All entries allow user mode.
    pub user: bool,
    /// All entries allow writing.
    pub writable: bool,
    /// Some entry forbids execution.
    pub no_execute: bool,
    pub global: bool,
    /// A write by the same privilege would neither fault nor have to set the dirty flag.
    pub write_ready: bool,
}

/// Why a walk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkFault<F> {
    /// #PF with this error code.
    Page(u32),
    /// The nested translation of a paging-structure entry failed.
    Nested(F),
}

#[derive(Clone, Copy, Default)]
struct Visited {
    address: u64,
    physical: u64,
    value: u64,
}

/// Rights gathered along a walk.
#[derive(Clone, Copy)]
struct Rights {
    /// AND of the entries: bits W and U.
    and: u64,
    /// OR of the entries: NX.
    or: u64,
    key: u8,
}

impl Paging {
    /// Error-code bits that say what the access was (SDM vol. 3, Page-Fault Exceptions).
    fn access_bits(&self, r: &Request) -> u32 {
        let mut code = 0;
        if r.write {
            code |= pf::W;
        }
        if r.user {
            code |= pf::U;
        }
        if r.fetch && ((self.nxe && self.mode != PagingMode::Bits32) || self.smep) {
            code |= pf::I;
        }
        code
    }

    /// SDM vol. 3, Determination of Access Rights; Protection Keys. Returns the error code of a violation.
    #[inline]
    fn violation(&self, rights: &Rights, r: &Request) -> Option<u32> {
        let user_page = rights.and & U != 0;
        let mut code = pf::P;
        let denied = if r.user && !user_page {
            true
        } else if r.fetch {
            rights.or & NX != 0 || (!r.user && user_page && self.smep)
        } else {
            let smap = !r.user && user_page && self.smap && !r.smap_off;
            smap || (r.write && rights.and & W == 0 && (r.user || self.wp))
        };
        if self.pke && user_page && !r.fetch {
            let key = self.pkru >> (2 * rights.key) & 3;
            if key & 1 != 0 || (key & 2 != 0 && r.write && (r.user || self.wp)) {
                code |= pf::PK;
            }
        }
        (denied || code & pf::PK != 0).then(|| code | self.access_bits(r))
    }
}

/// Translate. Sets accessed and dirty flags if the access is allowed, and changes nothing otherwise.
#[inline]
pub fn walk<S: PhysicalSpace>(space: &mut S, p: &Paging, r: &Request) -> Result<Translation, WalkFault<S::Fault>> {
    // An entry can only differ from what was just read if the walk itself maps through it; two rounds settle that.
    for _ in 0..4 {
        let found = match p.mode {
            PagingMode::Off => Some(Translation {
                physical: r.linear,
                page_bits: 12,
                user: false,
                writable: true,
                no_execute: false,
                global: false,
                write_ready: true,
            }),
            PagingMode::Bits32 => walk32(space, p, r)?,
            _ => walk64(space, p, r)?,
        };
        if let Some(t) = found {
            return Ok(t);
        }
    }
    Err(WalkFault::Page(p.access_bits(r)))
}

#[inline]
fn walk64<S: PhysicalSpace>(space: &mut S, p: &Paging, r: &Request) -> Result<Option<Translation>, WalkFault<S::Fault>> {
    let mut visited = [Visited::default(); 6];
    let mut rights = Rights { and: W | U, or: 0, key: 0 };
    let (mut level, mut table) = match p.mode {
        PagingMode::Level5 => (5usize, p.root & p.address_mask),
        PagingMode::Level4 => (4, p.root & p.address_mask),
        _ => {
            let index = (r.linear >> 30 & 3) as usize;
            let pdpte = if p.pdpte_in_memory {
                let address = (p.root & 0xffff_ffe0) + 8 * index as u64;
                let physical = space.locate(address).map_err(WalkFault::Nested)?;
                space.read(physical, 8)
            } else {
                p.pdpte[index]
            };
            if pdpte & P == 0 {
                return Err(WalkFault::Page(p.access_bits(r)));
            }
            if p.pdpte_in_memory && pdpte & p.reserved_table[3] != 0 {
                return Err(WalkFault::Page(pf::P | pf::RSVD | p.access_bits(r)));
            }
            (2, pdpte & p.address_mask)
        }
    };
    let top = level;
    let leaf = loop {
        let index = r.linear >> (3 + 9 * level) & 511;
        let address = table + index * 8;
        let physical = space.locate(address).map_err(WalkFault::Nested)?;
        let e = space.read(physical, 8);
        if e & P == 0 {
            return Err(WalkFault::Page(p.access_bits(r)));
        }
        let page = level == 1 || (level <= 3 && e & PS != 0);
        let reserved = if page { p.reserved_page[level] } else { p.reserved_table[level] };
        if e & reserved != 0 {
            return Err(WalkFault::Page(pf::P | pf::RSVD | p.access_bits(r)));
        }
        rights.and &= e;
        rights.or |= e;
        visited[level] = Visited { address, physical, value: e };
        if page {
            break e;
        }
        table = e & p.address_mask;
        level -= 1;
    };
    rights.key = (leaf >> 59 & 15) as u8;
    if let Some(code) = p.violation(&rights, r) {
        return Err(WalkFault::Page(code));
    }
    let mut dirty = leaf & D != 0;
    for l in (level..=top).rev() {
        let v = visited[l];
        let want = if l == level && r.write { A | D } else { A };
        if v.value & want != want {
            if !space.update(v.address, v.physical, 8, v.value, v.value | want).map_err(WalkFault::Nested)? {
                return Ok(None);
            }
            dirty |= want & D != 0;
        }
    }
    let page_bits = 3 + 9 * level as u32;
    let offset = (1u64 << page_bits) - 1;
    Ok(Some(Translation {
        physical: leaf & p.address_mask & !offset | r.linear & offset,
        page_bits: page_bits as u8,
        user: rights.and & U != 0,
        writable: rights.and & W != 0,
        no_execute: rights.or & NX != 0,
        global: leaf & G != 0,
        write_ready: dirty && (r.write || p.violation(&rights, &Request { write: true, fetch: false, ..*r }).is_none()),
    }))
}

/// SDM vol. 3, 32-Bit Paging, with PSE-36.
fn walk32<S: PhysicalSpace>(space: &mut S, p: &Paging, r: &Request) -> Result<Option<Translation>, WalkFault<S::Fault>> {
    let not_present = Err(WalkFault::Page(p.access_bits(r)));
    let mut visited = [Visited::default(); 2];
    let mut rights = Rights { and: W | U, or: 0, key: 0 };
    let address = (p.root & 0xffff_f000) + (r.linear >> 22 & 1023) * 4;
    let physical = space.locate(address).map_err(WalkFault::Nested)?;
    let pde = space.read(physical, 4);
    if pde & P == 0 {
        return not_present;
    }
    rights.and &= pde;
    visited[0] = Visited { address, physical, value: pde };
    let (count, page_bits, base) = if pde & PS != 0 && p.pse {
        // Bits 20:13 are address bits 39:32; those beyond MAXPHYADDR, and bit 21, are reserved.
        let high_bits = (p.physical_bits as u32).min(40) - 32;
        if pde & (bits(13 + high_bits, 20) | 1 << 21) != 0 {
            return Err(WalkFault::Page(pf::P | pf::RSVD | p.access_bits(r)));
        }
        (1, 22, (pde & 0xffc0_0000) | (pde >> 13 & 0xff) << 32)
    } else {
        let address = (pde & 0xffff_f000) + (r.linear >> 12 & 1023) * 4;
        let physical = space.locate(address).map_err(WalkFault::Nested)?;
        let pte = space.read(physical, 4);
        if pte & P == 0 {
            return not_present;
        }
        rights.and &= pte;
        visited[1] = Visited { address, physical, value: pte };
        (2, 12, pte & 0xffff_f000)
    };
    if let Some(code) = p.violation(&rights, r) {
        return Err(WalkFault::Page(code));
    }
    let leaf = visited[count - 1].value;
    let mut dirty = leaf & D != 0;
    for (i, v) in visited.iter().enumerate().take(count) {
        let want = if i + 1 == count && r.write { A | D } else { A };
        if v.value & want != want {
            if !space.update(v.address, v.physical, 4, v.value, v.value | want).map_err(WalkFault::Nested)? {
                return Ok(None);
            }
            dirty |= want & D != 0;
        }
    }
    let offset = (1u64 << page_bits) - 1;
    Ok(Some(Translation {
        physical: base | r.linear & offset,
        page_bits: page_bits as u8,
        user: rights.and & U != 0,
        writable: rights.and & W != 0,
        no_execute: false,
        global: leaf & G != 0,
        write_ready: dirty && (r.write || p.violation(&rights, &Request { write: true, fetch: false, ..*r }).is_none()),
    }))
}

#[cfg(test)]
mod tests;
