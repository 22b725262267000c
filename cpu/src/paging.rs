//! From linear to guest-physical, and everything that follows from a change of mode.

use undervisor_core::{Cr0, Cr4, Efer, Exception, Feature, Rflags, SegReg, Vendor};
use undervisor_mmu::ept::{UnderEpt, right};
use undervisor_mmu::npt::UnderNpt;
use undervisor_mmu::tlb::BYPASS_BANK;
use undervisor_mmu::walk::{Never, pdpte_reserved};
use undervisor_mmu::{
    A20Masked, Bank, Ept, EptExit, EptRequest, Limits, Npt, NptExit, NptRequest, PAGE_MASK, Paging, PagingMode, Plain, Request,
    SpaceKey, Translation, WalkFault, walk,
};

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

/// Second-level translation in force.
#[derive(Clone, Copy, Debug, Default)]
pub enum Nested {
    /// Guest-physical addresses are level-0 physical addresses.
    #[default]
    None,
    Ept(Ept),
    Npt(Npt),
}

/// A second-level fault, with what its exit must report.
#[derive(Clone, Copy, Debug)]
pub struct NestedFault {
    pub cause: NestedCause,
    /// The linear address being translated, if there was one (a PDPTE load has none).
    pub linear: Option<u64>,
    /// The access that the instruction made.
    pub access: Access,
    /// What the guest's own tables said, once they had been walked: `None` if the fault was on the way.
    pub guest: Option<Translation>,
}

/// The second-level fault proper.
#[derive(Clone, Copy, Debug)]
pub enum NestedCause {
    Ept(EptExit),
    Npt(NptExit),
}

/// An entry of the instruction TLB.
#[derive(Clone, Copy, Default)]
struct FetchEntry {
    tag: u64,
    physical: u64,
}

const FETCH_ENTRIES: usize = 256;
const LARGE_REGIONS: usize = 512;

/// Which 4 KiB fragments of a 2 MiB region have been filled from a large page.
#[derive(Clone, Copy, Default)]
struct LargeRegion {
    /// Linear address / 2 MiB, plus 1; 0: an empty slot.
    region: u64,
    pages: [u64; 8],
}

impl LargeRegion {
    /// The linear addresses of the fragments.
    fn fragments(self) -> impl Iterator<Item = u64> {
        let first = self.region.wrapping_sub(1) << 21;
        let used = if self.region == 0 { 0 } else { 512u64 };
        (0..used).filter(move |i| self.pages[*i as usize / 64] >> (i % 64) & 1 != 0).map(move |i| first + (i << 12))
    }
}

/// Everything that the paging rules and the space id follow from, except for the PDPTE registers. Never equal to the default, whose
/// EFER no processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ModeInputs {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    nested: u64,
    tag: u32,
    pkru: u32,
    generation: u64,
}

impl Default for ModeInputs {
    fn default() -> ModeInputs {
        ModeInputs { cr0: 0, cr3: 0, cr4: 0, efer: u64::MAX, nested: 0, tag: 0, pkru: 0, generation: 0 }
    }
}

/// Paging at one level, worked out: a world switch changes which of two is in force, and copies nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Context {
    /// What it was worked out from; the default if that is not all it depends on.
    inputs: ModeInputs,
    paging: Paging,
    space: u64,
    /// What `paging` was prepared for.
    limits: Option<Limits>,
}

impl Nested {
    /// What of it selects translations; 0: none.
    fn key(&self) -> u64 {
        match self {
            Nested::None => 0,
            Nested::Ept(e) => {
                let flags =
                    1 | u64::from(e.accessed_dirty) << 1 | u64::from(e.mode_based_execute) << 2 | (e.levels as u64) << 3;
                e.root & PAGE_MASK | flags << 56 | u64::from(e.pml.is_some()) << 63
            }
            Nested::Npt(n) => {
                let flags = 1 | (n.paging.mode as u64) << 1 | u64::from(n.paging.nxe) << 4;
                n.paging.root | flags << 56 | u64::from(n.guest_mode_execute_trap) << 63
            }
        }
    }
}

/// Translation state of a processor, data TLB apart.
pub struct Translations {
    /// Second-level translation; set by the seam at world switches, followed by `mode_changed`.
    pub nested: Nested,
    /// In a guest of this processor: its translations live in TLB banks of their own.
    pub guest: bool,
    /// VPID or ASID; 0 for the host.
    pub tag: u32,
    fetches: Box<[[FetchEntry; FETCH_ENTRIES]; 2]>,
    /// What came from large pages, by 2 MiB region (hashed), so that INVLPG drops every fragment of one and no more. A region
    /// that must give way to another is dropped from the TLBs.
    large: Box<[LargeRegion]>,
    /// Which regions of 1 GiB (hashed) have been mapped by one page.
    huge: u64,
    limits: Limits,
    /// Outside guests and in them, as [`Cpu::mode_changed`] found it last.
    contexts: [Context; 2],
    /// AVIC: the guest-physical page of the guest's APIC, and the backing page behind it; all ones without AVIC.
    pub apic_bar: u64,
    pub apic_page: u64,
    pub(crate) a20: crate::a20::Gate,
}

impl Default for Translations {
    fn default() -> Translations {
        Translations {
            nested: Nested::None,
            guest: false,
            tag: 0,
            fetches: Box::new([[FetchEntry::default(); FETCH_ENTRIES]; 2]),
            large: vec![LargeRegion::default(); LARGE_REGIONS].into_boxed_slice(),
            huge: 0,
            limits: Limits::default(),
            contexts: [Context::default(); 2],
            apic_bar: u64::MAX,
            apic_page: u64::MAX,
            a20: Default::default(),
        }
    }
}

impl Translations {
    fn large_slot(region: u64) -> usize {
        (region ^ region >> 9 ^ region >> 18) as usize % LARGE_REGIONS
    }

    fn huge_bit(linear: u64) -> u64 {
        let region = linear >> 30;
        1 << ((region ^ region >> 6 ^ region >> 12) & 63)
    }

    /// What the model says about physical addresses.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Translations of fetches in `space`: the privilege (1: user), the linear page, and where it leads.
    pub fn fetches_in(&self, space: u64) -> impl Iterator<Item = (usize, u64, u64)> + '_ {
        let rows = self.fetches.iter().enumerate().flat_map(|(user, bank)| bank.iter().map(move |e| (user, e)));
        rows.filter(move |(_, e)| e.tag != 0 && e.tag & !PAGE_MASK == space)
            .map(|(user, e)| (user, e.tag & PAGE_MASK, e.physical))
    }

    /// Enter or drop the translation of fetches from a linear page in `space`.
    pub fn set_fetch(&mut self, user: usize, linear: u64, space: u64, physical: Option<u64>) {
        self.fetches[user][(linear >> 12) as usize % FETCH_ENTRIES] = match physical {
            Some(physical) => FetchEntry { tag: linear & PAGE_MASK | space, physical: physical & PAGE_MASK },
            None => FetchEntry::default(),
        };
    }

    /// Paging mode and rules, derived from the control registers.
    pub fn paging(&self) -> &Paging {
        &self.contexts[self.guest as usize].paging
    }

    /// The host's, in a guest too.
    pub fn host_paging(&self) -> &Paging {
        &self.contexts[0].paging
    }

    pub(crate) fn clear(&mut self) {
        for bank in self.fetches.iter_mut() {
            bank.fill(FetchEntry::default());
        }
        self.large.fill(LargeRegion::default());
        self.huge = 0;
    }
}

/// Why there is no translation.
enum Refusal {
    /// #PF with this error code.
    Page(u32),
    /// A second-level fault, and what the guest's tables said if they had been walked.
    Nested(NestedCause, Option<Translation>),
}

/// A complete translation.
struct Found {
    /// Level-0 physical address.
    physical: u64,
    readable: bool,
    /// Writable without anything left to set.
    writable: bool,
    /// The guest's page has 2 to this many bytes.
    page_bits: u8,
}

impl Cpu {
    /// What the processor model says about physical addresses.
    fn paging_limits(&self) -> Limits {
        Limits {
            physical_bits: self.model.physical_bits as u8,
            gigabyte_pages: self.model.has(Feature::PDPE1GB),
            amd: self.model.vendor == Vendor::Amd,
        }
    }

    /// Translate for an access; fills the TLB. Faults are #PF (or a VM exit).
    pub fn translate(&mut self, linear: u64, access: Access) -> Exec<u64> {
        if access.fetch {
            return self.translate_fetch(linear);
        }
        let bank = if access.system { self.supervisor_bank() } else { self.bank_index };
        let e = self.tlb.entry(bank, linear);
        if (if access.write { e.write } else { e.read }) == (linear & PAGE_MASK | self.space) {
            return Ok(e.physical | linear & 0xfff);
        }
        if self.mode.is64() && !self.canonical(linear) {
            if !self.current.is_null() && self.current_slow.is_null() && !access.system {
                // Hot forms leave it to the general one to name the fault: it knows the segment.
                self.general_once = true;
                return Err(crate::cpu::Stop::Again);
            }
            return Err(self.gp(0));
        }
        self.counters.tlb_misses += 1;
        if self.observing & crate::observe::want::LINT != 0
            && let Some(physical) = self.lint_stale_use(bank, linear, access)
        {
            return Ok(physical);
        }
        let found = self.walk(linear, access)?;
        self.fill(bank, linear, &found);
        Ok(found.physical)
    }

    /// The bank of implicit supervisor accesses: SMAP always applies to them.
    fn supervisor_bank(&self) -> usize {
        Bank::Supervisor as usize + if self.translations.guest { 3 } else { 0 }
    }

    /// Enter a translation in the TLB, unless the page must be reached through the slow path.
    #[inline]
    fn fill(&mut self, bank: usize, linear: u64, found: &Found) {
        if !found.readable || self.watched_physical(found.physical) || self.debugger.watches_page(linear, found.physical) {
            return;
        }
        let Some(page) = self.shared.memory.page(found.physical) else {
            return;
        };
        let index = self.shared.memory.index_of(page.pointer);
        if self.shared.code().hides_reads(index) {
            return;
        }
        let code = self.shared.code().is_code(index);
        let write = found.writable && page.writable && !code;
        self.tlb.fill(bank, linear, self.space, found.physical, page.pointer, write);
    }

    /// Translation of an instruction fetch, if it is known without a walk.
    pub(crate) fn known_fetch(&self, linear: u64) -> Option<u64> {
        let user = usize::from(self.state.cpl == 3);
        let e = &self.translations.fetches[user][(linear >> 12) as usize % FETCH_ENTRIES];
        (e.tag == linear & PAGE_MASK | self.space).then_some(e.physical | linear & 0xfff)
    }

    /// Translate an instruction fetch.
    pub fn translate_fetch(&mut self, linear: u64) -> Exec<u64> {
        let tag = linear & PAGE_MASK | self.space;
        let slot = (linear >> 12) as usize % FETCH_ENTRIES;
        let user = usize::from(self.state.cpl == 3);
        let e = &self.translations.fetches[user][slot];
        if e.tag == tag {
            return Ok(e.physical | linear & 0xfff);
        }
        if self.observing & crate::observe::want::LINT != 0
            && let Some(physical) = self.lint_stale_fetch(user, linear)
        {
            return Ok(physical);
        }
        let found = self.walk(linear, Access::FETCH)?;
        if self.vmx_in_apic_access_page(found.physical) {
            return Err(self.vmx_apic_page_fetch(found.physical));
        }
        self.translations.fetches[user][slot] = FetchEntry { tag, physical: found.physical & PAGE_MASK };
        Ok(found.physical)
    }

    /// Walk the page tables, both levels of them.
    fn walk(&mut self, linear: u64, access: Access) -> Exec<Found> {
        match self.try_walk(linear, access) {
            Ok(mut found) => {
                found.physical = self.translations.a20.pass(found.physical);
                match found.page_bits {
                    12 => {}
                    30 => self.translations.huge |= Translations::huge_bit(linear),
                    _ => self.note_large(linear),
                }
                Ok(found)
            }
            Err(Refusal::Page(code)) => Err(self.raise(Exception::page_fault(code, linear))),
            Err(Refusal::Nested(cause, guest)) => {
                Err(self.nested_fault(&NestedFault { cause, linear: Some(linear), access, guest }))
            }
        }
    }

    /// Copy up to 15 bytes of code at an offset in CS without faulting; returns how many can be reached.
    pub fn peek_code(&mut self, rip: u64, out: &mut [u8; 15]) -> usize {
        let room = self.code_room(rip).min(15) as usize;
        let mut done = 0;
        while done < room {
            let linear = self.linear_ip(rip.wrapping_add(done as u64));
            let walked = |cpu: &mut Cpu| {
                let found = cpu.try_walk(linear, Access::FETCH).ok()?;
                Some(cpu.translations.a20.pass(found.physical))
            };
            let Some(physical) = self.known_fetch(linear).or_else(|| walked(self)) else {
                break;
            };
            let n = (room - done).min(0x1000 - (linear & 0xfff) as usize);
            if self.shared.memory.read_bytes(physical, &mut out[done..done + n]).is_err() {
                break;
            }
            done += n;
        }
        done
    }

    fn try_walk(&mut self, linear: u64, access: Access) -> Result<Found, Refusal> {
        let shared = self.shared.clone();
        let memory = &shared.memory;
        let wrote = |physical: u64| {
            if let Some(index) = memory.page_index(physical) {
                shared.code().written(index, (physical & 0xfff) as usize, 8);
            }
        };
        let user = self.state.cpl == 3 && !access.system;
        let request = Request {
            linear,
            write: access.write,
            fetch: access.fetch,
            user,
            smap_off: !user && !access.system && self.state.flag(Rflags::AC),
        };
        let t = &mut self.translations;
        let paging = &t.contexts[t.guest as usize].paging;
        self.counters.nested_walks += u64::from(!matches!(t.nested, Nested::None));
        let (guest, cause) = match &mut t.nested {
            Nested::None => match plain_walk(Plain { memory, wrote: &wrote }, t.a20.masks, paging, &request) {
                Ok(found) => {
                    return Ok(Found {
                        physical: found.physical,
                        readable: true,
                        writable: found.write_ready,
                        page_bits: found.page_bits,
                    });
                }
                Err(WalkFault::Page(code)) => return Err(Refusal::Page(code)),
                Err(WalkFault::Nested(never)) => match never {},
            },
            Nested::Ept(ept) => match walk(&mut UnderEpt { memory, wrote: &wrote, ept }, paging, &request) {
                Ok(found) => {
                    let request = EptRequest {
                        address: found.physical,
                        read: !access.write && !access.fetch,
                        write: access.write,
                        fetch: access.fetch,
                        user: found.user,
                    };
                    match ept.translate(memory, &wrote, &request) {
                        Ok(nested) => {
                            return Ok(Found {
                                physical: nested.physical,
                                readable: nested.rights & right::READ != 0,
                                writable: found.write_ready && nested.rights & right::WRITE != 0 && nested.dirty,
                                page_bits: found.page_bits,
                            });
                        }
                        Err(fault) => (Some(found), NestedCause::Ept(EptExit { fault, request, table: false })),
                    }
                }
                Err(WalkFault::Page(code)) => return Err(Refusal::Page(code)),
                Err(WalkFault::Nested(exit)) => (None, NestedCause::Ept(exit)),
            },
            Nested::Npt(npt) => match walk(&mut UnderNpt { memory, wrote: &wrote, npt }, paging, &request) {
                Ok(found) => {
                    let request = NptRequest { address: found.physical, write: access.write, fetch: access.fetch, user };
                    match npt.translate(memory, &wrote, &request, false) {
                        Ok(nested) => {
                            if found.physical & PAGE_MASK == t.apic_bar {
                                // The access goes to the backing page, whatever the nested tables map.
                                let physical = t.apic_page | found.physical & 0xfff;
                                return Ok(Found { physical, readable: true, writable: false, page_bits: found.page_bits });
                            }
                            return Ok(Found {
                                physical: nested.physical,
                                readable: true,
                                writable: found.write_ready && nested.write_ready,
                                page_bits: found.page_bits,
                            });
                        }
                        Err(exit) => (Some(found), NestedCause::Npt(exit)),
                    }
                }
                Err(WalkFault::Page(code)) => return Err(Refusal::Page(code)),
                Err(WalkFault::Nested(exit)) => (None, NestedCause::Npt(exit)),
            },
        };
        Err(Refusal::Nested(cause, guest))
    }

    /// Level-0 address of a guest-physical one that the processor itself accesses (PDPTE loads); exits if there is none.
    pub fn translate_physical(&mut self, physical: u64, access: Access) -> Exec<u64> {
        let shared = self.shared.clone();
        let memory = &shared.memory;
        let wrote = |physical: u64| {
            if let Some(index) = memory.page_index(physical) {
                shared.code().written(index, (physical & 0xfff) as usize, 8);
            }
        };
        let cause = match &mut self.translations.nested {
            Nested::None => return Ok(self.translations.a20.pass(physical)),
            Nested::Ept(ept) => {
                let request =
                    EptRequest { address: physical, read: !access.write, write: access.write, fetch: false, user: false };
                match ept.translate(memory, &wrote, &request) {
                    Ok(t) => return Ok(t.physical),
                    Err(fault) => NestedCause::Ept(EptExit { fault, request, table: false }),
                }
            }
            Nested::Npt(npt) => {
                let request = NptRequest { address: physical, write: access.write, fetch: false, user: true };
                match npt.translate(memory, &wrote, &request, false) {
                    Ok(t) => return Ok(t.physical),
                    Err(exit) => NestedCause::Npt(exit),
                }
            }
        };
        Err(self.nested_fault(&NestedFault { cause, linear: None, access, guest: None }))
    }

    /// Load the PDPTE registers from the table at CR3 (SDM vol. 3, PDPTE Registers): #GP(0) if one is present with reserved bits
    /// set, and then nothing has changed. Does nothing but with `cr0`, `cr4` and EFER in PAE paging, the values that are about
    /// to be in force.
    pub fn load_pdptes(&mut self, cr3: u64, cr0: Cr0, cr4: Cr4) -> Exec {
        if !cr0.contains(Cr0::PG) || !cr4.contains(Cr4::PAE) || self.state.efer.contains(Efer::LMA) {
            return Ok(());
        }
        if matches!(self.translations.nested, Nested::Npt(_)) {
            // Under nested paging the PDPTEs are read by each walk (APM vol. 2, Nested Paging, Legacy PAE).
            return Ok(());
        }
        let at = self.translate_physical(cr3 & 0xffff_ffe0, Access::SYSTEM_READ)?;
        let mut entries = [0; 4];
        let reserved = pdpte_reserved(self.paging_limits().physical_bits);
        for (i, e) in entries.iter_mut().enumerate() {
            *e = self.shared.memory.read::<u64>(at + 8 * i as u64).unwrap_or(u64::MAX);
            if *e & 1 != 0 && *e & reserved != 0 {
                return Err(self.gp(0));
            }
        }
        self.state.pdpte = entries;
        Ok(())
    }

    // ---- invalidation ------------------------------------------------------------------------------------------------

    /// CR3 has been loaded (`state.cr3` is the new value without bit 63). `keep`: bit 63 was set with CR4.PCIDE on, so
    /// translations of the new PCID stay.
    pub fn cr3_written(&mut self, keep: bool) {
        if !keep {
            let tag = self.translations.tag;
            let pcid = if self.state.cr4.contains(Cr4::PCIDE) { (self.state.cr3 & 0xfff) as u16 } else { 0 };
            self.spaces.forget(|k| k.tag == tag && k.pcid == pcid);
        }
        self.mode_changed();
    }

    /// Forget every translation of the current VPID or ASID; global ones are only ever dropped with the rest, so `globals` may
    /// as well be true.
    pub fn flush_all(&mut self, _globals: bool) {
        let tag = self.translations.tag;
        self.flush_spaces(|k| k.tag == tag);
    }

    /// Forget the spaces that `stale` names (INVEPT, INVVPID, TLB_CONTROL).
    pub fn flush_spaces(&mut self, stale: impl FnMut(&SpaceKey) -> bool) {
        self.spaces.forget(stale);
        self.mode_changed();
    }

    /// INVLPG: forget the page of `linear`, of whatever size, in every space.
    pub fn flush_page(&mut self, linear: u64) {
        if self.observing & crate::observe::want::LINT != 0 {
            self.lint_page_flushed(linear);
        }
        if self.translations.huge & Translations::huge_bit(linear) != 0 {
            // In a 1 GiB page, perhaps: its fragments may be anywhere.
            self.flush_all(true);
            self.tlb.drop_page(linear);
            return;
        }
        // 4 MiB pages cover two regions.
        let region = linear >> 21 & !1;
        for region in [region, region + 1] {
            let slot = Translations::large_slot(region);
            if self.translations.large[slot].region == region + 1 {
                self.drop_large(slot);
            }
        }
        self.drop_fragment(linear);
    }

    /// A fragment of a large page is about to enter a TLB.
    fn note_large(&mut self, linear: u64) {
        let region = linear >> 21;
        let slot = Translations::large_slot(region);
        if self.translations.large[slot].region != region + 1 {
            self.drop_large(slot);
            self.translations.large[slot].region = region + 1;
        }
        let page = (linear >> 12) as usize & 511;
        self.translations.large[slot].pages[page / 64] |= 1 << (page % 64);
    }

    /// Drop what came from the large page of a slot.
    fn drop_large(&mut self, slot: usize) {
        for linear in std::mem::take(&mut self.translations.large[slot]).fragments() {
            self.drop_fragment(linear);
        }
    }

    /// Drop the 4 KiB around `linear` from every TLB, in any space.
    fn drop_fragment(&mut self, linear: u64) {
        self.tlb.drop_page(linear);
        for bank in self.translations.fetches.iter_mut() {
            bank[(linear >> 12) as usize % FETCH_ENTRIES] = FetchEntry::default();
        }
        self.jumps.drop_page(linear);
    }

    /// INVLPGA: as INVLPG, for an ASID.
    pub fn flush_page_of(&mut self, asid: u32, linear: u64) {
        if self.translations.huge & Translations::huge_bit(linear) != 0 {
            self.spaces.forget(|k| k.tag == asid);
        }
        self.flush_page(linear);
    }

    /// INVPCID, once checked (SDM vol. 2, INVPCID).
    pub fn invpcid(&mut self, kind: u64, pcid: u16, linear: u64) {
        let tag = self.translations.tag;
        match kind {
            0 => self.flush_page(linear),
            1 => self.flush_spaces(|k| k.tag == tag && k.pcid == pcid),
            _ => self.flush_all(kind == 2),
        }
    }

    /// PKRU has changed.
    #[inline]
    pub fn pkru_changed(&mut self) {
        if self.state.cr4.contains(Cr4::PKE) {
            self.mode_changed();
        }
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

    /// Whether accesses must not be answered from the TLB now: alignment checks or data breakpoints are on, or a counter wants to know.
    pub fn tlb_bypassed(&self) -> bool {
        self.alignment_checked() || self.breakpoints.data || self.performance.counts_caches
    }

    /// Whether the bank in use is the one that stays empty.
    pub(crate) fn bypassing(&mut self) -> bool {
        self.bank == self.tlb.bank_pointer(BYPASS_BANK)
    }

    /// EFLAGS.AC, CR0.AM and CPL 3.
    #[inline]
    pub fn alignment_checked(&self) -> bool {
        self.state.cpl == 3 && self.state.cr0.contains(Cr0::AM) && self.state.flag(Rflags::AC)
    }

    /// Whether a guest-physical page, though RAM, must be reached as MMIO (the local APIC's page).
    #[inline]
    pub fn watched_physical(&self, physical: u64) -> bool {
        self.in_apic_page(physical) || self.vmx_in_apic_access_page(physical) || self.svm_in_apic_page(physical)
    }

    /// Read guest-physical memory that is not RAM, 1, 2, 4 or 8 bytes, naturally aligned.
    pub fn physical_read(&mut self, physical: u64, size: usize) -> Exec<u64> {
        if self.vmx_in_apic_access_page(physical) {
            return self.vmx_apic_page_read(physical, size);
        }
        if self.svm_in_apic_page(physical) {
            return self.svm_apic_page_read(physical, size);
        }
        if self.in_apic_hole(physical) {
            return Ok(self.apic_mmio_read(physical, size));
        }
        let now = self.now();
        let value = self.bus().mmio_read(now, physical, size);
        self.bus_accessed();
        Ok(value)
    }
    /// Write guest-physical memory that is not RAM.
    pub fn physical_write(&mut self, physical: u64, size: usize, value: u64) -> Exec {
        if self.vmx_in_apic_access_page(physical) {
            return self.vmx_apic_page_write(physical, size, value);
        }
        if self.svm_in_apic_page(physical) {
            return self.svm_apic_page_write(physical, value);
        }
        if self.in_apic_hole(physical) {
            self.apic_mmio_write(physical, size, value);
            return Ok(());
        }
        let now = self.now();
        self.bus().mmio_write(now, physical, size, value);
        self.bus_accessed();
        Ok(())
    }

    /// Bring everything that is derived from the architectural state up to date: decode mode, TLB bank, space id, fetch tag.
    /// Call after any change of CR0, CR3, CR4, EFER, XCR0, PKRU, CS, SS, DS, ES, CPL, EFLAGS.VM/AC, or of the level.
    pub fn mode_changed(&mut self) {
        let inputs = self.mode_inputs();
        let context = &self.translations.contexts[self.translations.guest as usize];
        if context.inputs == inputs {
            // The usual case of a world switch: back to what was there before.
            self.space = context.space;
        } else {
            self.work_out_context(inputs);
        }
        self.privilege_changed();
        self.debug_changed();
    }

    #[inline(never)]
    fn work_out_context(&mut self, inputs: ModeInputs) {
        self.update_paging();
        let key = self.space_key(inputs.nested);
        let (id, wrapped) = self.spaces.id(&key);
        if wrapped {
            self.tlb.clear();
            self.jumps.clear();
            self.translations.clear();
            self.counters.space_flushes += 1;
        }
        self.space = id as u64;
        let generation = self.spaces.generation();
        let t = &mut self.translations;
        let context = &mut t.contexts[t.guest as usize];
        context.space = self.space;
        // The PDPTE registers are no part of the inputs.
        context.inputs =
            if context.paging.mode == PagingMode::Pae { ModeInputs::default() } else { ModeInputs { generation, ..inputs } };
    }

    #[inline(always)]
    fn mode_inputs(&self) -> ModeInputs {
        let s = &self.state;
        ModeInputs {
            cr0: s.cr0.bits(),
            cr3: s.cr3,
            cr4: s.cr4.bits(),
            efer: s.efer.bits(),
            nested: self.translations.nested.key(),
            tag: self.translations.tag,
            pkru: s.pkru,
            generation: self.spaces.generation(),
        }
    }

    /// The cheaper half of [`Cpu::mode_changed`]: CPL, EFLAGS.AC or segments changed, but not the paging mode.
    pub fn privilege_changed(&mut self) {
        if self.performance.filters {
            self.performance_changed();
        }
        self.mode = Mode::of(self);
        self.select_bank();
        self.fetch_tag = self.space | (self.mode.0 as u64) << 16 | (self.state.cpl as u64) << 12 | 1 << 62;
    }

    /// Which translations accesses go by: CPL or EFLAGS.AC changed.
    #[inline]
    pub fn select_bank(&mut self) {
        let bank = if self.state.cpl == 3 {
            Bank::User
        } else if self.state.cr4.contains(Cr4::SMAP) && self.state.flag(Rflags::AC) {
            Bank::SupervisorAc
        } else {
            Bank::Supervisor
        };
        self.bank_index = bank as usize + if self.translations.guest { 3 } else { 0 };
        let bank = if self.tlb_bypassed() { BYPASS_BANK } else { self.bank_index };
        self.bank = self.tlb.bank_pointer(bank);
    }

    /// Work out the paging mode and its rules from the control registers.
    fn update_paging(&mut self) {
        let limits = self.paging_limits();
        let s = &self.state;
        let (cr0, cr4, efer) = (s.cr0, s.cr4, s.efer);
        let long = efer.contains(Efer::LMA);
        let mode = if !cr0.contains(Cr0::PG) {
            PagingMode::Off
        } else if !cr4.contains(Cr4::PAE) {
            PagingMode::Bits32
        } else if !long {
            PagingMode::Pae
        } else if cr4.contains(Cr4::LA57) {
            PagingMode::Level5
        } else {
            PagingMode::Level4
        };
        let t = &mut self.translations;
        t.limits = limits;
        let context = &mut t.contexts[t.guest as usize];
        let nxe = efer.contains(Efer::NXE);
        let p = &mut context.paging;
        let stale = p.mode != mode || p.nxe != nxe || context.limits != Some(limits);
        p.mode = mode;
        p.nxe = nxe;
        p.root = match mode {
            PagingMode::Level4 | PagingMode::Level5 => s.cr3 & 0x000f_ffff_ffff_f000,
            PagingMode::Pae => s.cr3 & 0xffff_ffe0,
            _ => s.cr3 & 0xffff_f000,
        };
        p.pdpte = s.pdpte;
        p.pdpte_in_memory = matches!(t.nested, Nested::Npt(_));
        p.wp = cr0.contains(Cr0::WP);
        p.smep = cr4.contains(Cr4::SMEP);
        p.smap = cr4.contains(Cr4::SMAP);
        p.pse = cr4.contains(Cr4::PSE);
        p.pke = long && cr4.contains(Cr4::PKE);
        p.pkru = if p.pke { s.pkru } else { 0 };
        if stale {
            p.prepare(&limits);
            context.limits = Some(limits);
        }
    }

    /// What selects the current translations.
    fn space_key(&self, nested: u64) -> SpaceKey {
        let t = &self.translations;
        let p = t.paging();
        let (mut root, mut pcid) = (p.root, 0);
        match p.mode {
            PagingMode::Off => root = 0,
            PagingMode::Level4 | PagingMode::Level5 if self.state.cr4.contains(Cr4::PCIDE) => {
                pcid = (self.state.cr3 & 0xfff) as u16;
            }
            // The PDPTE registers select translations too, and a VM entry may change them alone.
            PagingMode::Pae => {
                let mix = p.pdpte.iter().fold(0u64, |h, e| (h ^ e).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
                root |= mix & !0xffff_ffff;
            }
            _ => {}
        }
        let mode = p.mode as u32
            | u32::from(p.nxe) << 4
            | u32::from(p.wp) << 5
            | u32::from(p.smep) << 6
            | u32::from(p.smap) << 7
            | u32::from(p.pse) << 8
            | u32::from(p.pke) << 9
            | u32::from(t.guest) << 10;
        SpaceKey { nested, tag: t.tag, root, pcid, pkru: p.pkru, mode }
    }
}

#[inline(always)]
fn plain_walk(mut space: Plain, masks: bool, paging: &Paging, request: &Request) -> Result<Translation, WalkFault<Never>> {
    if masks { masked_walk(space, paging, request) } else { walk(&mut space, paging, request) }
}

#[cold]
#[inline(never)]
fn masked_walk(space: Plain, paging: &Paging, request: &Request) -> Result<Translation, WalkFault<Never>> {
    walk(&mut A20Masked(space), paging, request)
}

#[cfg(test)]
mod tests;
