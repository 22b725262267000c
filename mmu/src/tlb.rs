//! The software TLB: direct-mapped, one compare and one add on the way to the host address.
//!
//! A tag is the linear page with a 12-bit *space id* in its low bits. The id stands for everything that selects a
//! translation apart from privilege (level, VPID or ASID, EPTP or nCR3, PCID or CR3, paging mode): an architectural flush
//! takes a new id, a world switch changes the current one, and neither sweeps. Privilege selects the *bank*.

use crate::PAGE_MASK;

/// Entries in one bank.
pub const BANK_ENTRIES: usize = 2048;
/// Space ids run from 1 to this; 0 never matches.
pub const MAX_SPACE: u16 = 4095;

/// Under which rights a translation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bank {
    User = 0,
    /// Supervisor, SMAP in force (or CR4.SMAP clear).
    Supervisor = 1,
    /// Supervisor with EFLAGS.AC set.
    SupervisorAc = 2,
}

/// Banks for the root/host level and again for a guest of it, so that neither evicts the other.
pub const BANKS: usize = 6;
/// A bank that stays empty: in use while every access must take the slow path (alignment checks, data breakpoints, counted accesses).
pub const BYPASS_BANK: usize = BANKS;
/// Slots of the filter in front of `forbid_writes`.
const WRITTEN_BITS: usize = 1 << 16;

/// One translation. A tag that may not be used for an access holds `NEVER`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct TlbEntry {
    pub read: u64,
    pub write: u64,
    /// Host address minus linear address (wrapping).
    pub addend: u64,
    /// Guest-physical page (level-0 physical address).
    pub physical: u64,
}

/// A tag that no access matches: its space id is 0.
pub const NEVER: u64 = 0;

impl TlbEntry {
    pub const EMPTY: TlbEntry = TlbEntry { read: NEVER, write: NEVER, addend: 0, physical: 0 };
}

/// All banks of one processor.
pub struct Tlb {
    entries: Box<[TlbEntry]>,
    /// Bit set: some entry may hold a write tag for a physical page with that hash.
    written: Box<[u64]>,
}

impl Default for Tlb {
    fn default() -> Tlb {
        Tlb {
            entries: vec![TlbEntry::EMPTY; (BANKS + 1) * BANK_ENTRIES].into_boxed_slice(),
            written: vec![0; WRITTEN_BITS / 64].into_boxed_slice(),
        }
    }
}

impl Tlb {
    /// Slot of a linear address in its bank.
    #[inline(always)]
    pub fn slot(linear: u64) -> usize {
        (linear >> 12) as usize & (BANK_ENTRIES - 1)
    }

    /// What an access of `size` bytes at `linear` in `space` must find: the page of its *last* byte, so that an access
    /// that crosses pages misses.
    #[inline(always)]
    pub fn tag(linear: u64, size: usize, space: u64) -> u64 {
        (linear.wrapping_add(size as u64 - 1) & PAGE_MASK) | space
    }

    /// Pointer to the first entry of a bank, for the processor's hot path.
    #[inline]
    pub fn bank_pointer(&mut self, bank: usize) -> *mut TlbEntry {
        self.entries[bank * BANK_ENTRIES..][..BANK_ENTRIES].as_mut_ptr()
    }

    /// The entry that `linear` maps to in `bank`.
    #[inline(always)]
    pub fn entry(&mut self, bank: usize, linear: u64) -> &mut TlbEntry {
        &mut self.entries[(bank * BANK_ENTRIES + Self::slot(linear)) % ((BANKS + 1) * BANK_ENTRIES)]
    }

    /// Enter a translation. `write`: the page may be written without a look at the slow path.
    #[inline]
    pub fn fill(&mut self, bank: usize, linear: u64, space: u64, physical: u64, host_page: *mut u8, write: bool) {
        let tag = Tlb::tag(linear, 1, space);
        if write {
            let bit = Self::filter(physical);
            self.written[bit / 64] |= 1 << (bit % 64);
        }
        *self.entry(bank, linear) = TlbEntry {
            read: tag,
            write: if write { tag } else { NEVER },
            addend: (host_page as usize as u64).wrapping_sub(linear & PAGE_MASK),
            physical: physical & PAGE_MASK,
        };
    }

    fn filter(physical: u64) -> usize {
        (physical >> 12 ^ physical >> 28) as usize & (WRITTEN_BITS - 1)
    }

    /// Drop whatever any bank holds for the page of `linear`, in any space.
    pub fn drop_page(&mut self, linear: u64) {
        for bank in 0..BANKS {
            *self.entry(bank, linear) = TlbEntry::EMPTY;
        }
    }

    /// Take away the right to write without a look at the slow path, for every mapping of a physical page.
    pub fn forbid_writes(&mut self, physical: u64) {
        let bit = Self::filter(physical);
        if self.written[bit / 64] >> (bit % 64) & 1 == 0 {
            return;
        }
        let page = physical & PAGE_MASK;
        for e in self.entries.iter_mut().filter(|e| e.physical == page) {
            e.write = NEVER;
        }
    }

    /// Every translation of a guest's space: its bank, linear page, and entry.
    pub fn in_guest_space(&self, space: u64) -> impl Iterator<Item = (usize, u64, TlbEntry)> + '_ {
        let first = BANKS / 2 * BANK_ENTRIES;
        let guest = self.entries.get(first..BANKS * BANK_ENTRIES).unwrap_or(&[]);
        guest
            .iter()
            .enumerate()
            .map(move |(i, e)| (first + i, e))
            .filter(move |(_, e)| e.read != NEVER && e.read & !PAGE_MASK == space)
            .map(|(i, e)| (i / BANK_ENTRIES, e.read & PAGE_MASK, *e))
    }

    /// Drop everything.
    pub fn clear(&mut self) {
        self.entries.fill(TlbEntry::EMPTY);
        self.written.fill(0);
    }
}

/// Everything but privilege that selects a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SpaceKey {
    /// 0: no nested translation. Else EPTP or nCR3 (with bit 0 set to keep it non-zero).
    pub nested: u64,
    /// VPID or ASID; 0 for the host.
    pub tag: u32,
    /// CR3 without PCID, or 0 with paging off.
    pub root: u64,
    /// PCID, or 0.
    pub pcid: u16,
    /// PKRU where protection keys are in force.
    pub pkru: u32,
    /// Paging-mode bits (PG, PAE, LA57, PSE, NXE, WP, SMEP, SMAP, PKE …), packed by the processor.
    pub mode: u32,
}

/// Hands out space ids. A key keeps its id until a flush names it.
#[derive(Debug)]
pub struct AddressSpaces {
    known: Vec<(SpaceKey, u16)>,
    next: u16,
    replace: usize,
    /// Changes whenever a key loses its id.
    generation: u64,
    /// Where in `known` a key with this hash was last seen.
    hints: [u8; 64],
}

impl Default for AddressSpaces {
    fn default() -> AddressSpaces {
        AddressSpaces { known: Vec::with_capacity(Self::KEYS), next: 1, replace: 0, generation: 0, hints: [0; 64] }
    }
}

impl AddressSpaces {
    /// Keys remembered at once.
    pub const KEYS: usize = 64;

    /// The id for `key`, and whether the TLB must be cleared because ids ran out.
    pub fn id(&mut self, key: &SpaceKey) -> (u16, bool) {
        let mix = key.root >> 12 ^ key.nested >> 12 ^ (key.tag as u64) << 1 ^ (key.pcid as u64) << 2 ^ key.mode as u64;
        let hint = ((mix ^ mix >> 6 ^ mix >> 12) & 63) as usize;
        if let Some((k, id)) = self.known.get(self.hints[hint] as usize)
            && k == key
        {
            return (*id, false);
        }
        if let Some(at) = self.known.iter().position(|(k, _)| k == key) {
            self.hints[hint] = at as u8;
            return (self.known[at].1, false);
        }
        let wrapped = self.next > MAX_SPACE;
        if wrapped || self.known.len() == Self::KEYS {
            self.generation += 1;
        }
        if wrapped {
            self.known.clear();
            self.replace = 0;
            self.next = 1;
        }
        let id = self.next;
        self.next += 1;
        if self.known.len() < Self::KEYS {
            self.known.push((*key, id));
        } else {
            self.known[self.replace] = (*key, id);
            self.replace = (self.replace + 1) % Self::KEYS;
        }
        (id, wrapped)
    }

    /// Forget the keys that `stale` names: their next use gets a fresh id.
    pub fn forget(&mut self, mut stale: impl FnMut(&SpaceKey) -> bool) {
        let before = self.known.len();
        self.known.retain(|(k, _)| !stale(k));
        self.replace = 0;
        self.generation += u64::from(self.known.len() != before);
    }

    /// Changes whenever a key loses its id: until then [`AddressSpaces::id`] answers the same for the same key.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}
