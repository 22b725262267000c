//! The VMCB as the processor caches it between a VMRUN and the next (APM vol. 2, VMCB Caching; VMCB Clean Bits).

use std::cell::Cell;

use undervisor_core::{Segment, TableReg};
use undervisor_mmu::GuestMemory;

use crate::fields::{FIELDS, Field, clean};

/// Quadwords of a VMCB that the processor knows of.
const WORDS: usize = 0x700 / 8;

/// Quadword offsets that each clean bit covers.
const LOADS: [(u32, &[u16]); 12] = [
    (clean::INTERCEPTS, &[0x00, 0x08, 0x10, 0x38, 0x50]),
    (clean::MAPS, &[0x40, 0x48]),
    (clean::TPR, &[0x60]),
    (clean::NP, &[0x90, 0xb0, 0x668]),
    (clean::CR, &[0x4d0, 0x548, 0x550, 0x558]),
    (clean::DR, &[0x560, 0x568]),
    (clean::DT, &[0x460, 0x468, 0x480, 0x488]),
    (clean::SEG, &[0x400, 0x408, 0x410, 0x418, 0x420, 0x428, 0x430, 0x438, 0x4c8]),
    (clean::CR2, &[0x640]),
    (clean::LBR, &LBR),
    (clean::AVIC, &[0x98, 0xe0, 0xf0, 0xf8]),
    // The ASID shares its quadword with TLB_CONTROL: see `load`.
    (clean::ASID, &[]),
];
const LBR: [u16; 5] = [0x670, 0x678, 0x680, 0x688, 0x690];

/// A list of quadword offsets, and a function that moves them without a loop.
macro_rules! moved {
    ($list:ident, $function:ident($from:ident: $from_type:ty, $to:ident: $to_type:ty) $move:tt, $($at:literal)*) => {
        const $list: &[u16] = &[$($at),*];
        #[inline(always)]
        fn $function($from: $from_type, $to: $to_type) {
            $(moved!($move $from $to $at);)*
        }
    };
    (in $from:ident $to:ident $at:literal) => { $to[$at / 8] = $from[$at / 8].get() };
    (out $from:ident $to:ident $at:literal) => { $to[$at / 8].set($from[$at / 8]) };
}

// Those read by every VMRUN, the clean bits themselves among them.
moved! {
    ALWAYS, load_always(page: &Page, words: &mut [u64; WORDS]) in,
    0x58 0x68 0xa8 0xb8 0xc0 0xc8 0x120 0x570 0x578 0x5d8 0x5f8 0x6e0
}

// Those that #VMEXIT writes whatever the exit and the features.
moved! {
    STORES, store_always(words: &[u64; WORDS], page: &Page) out,
    0x60 0x68 0x70 0x78 0x80 0x88 0xa8 0xc8 0xd0 0xd8 0x400 0x408 0x410 0x418 0x420 0x428 0x430 0x438 0x460
    0x468 0x480 0x488 0x4c8 0x4d0 0x548 0x550 0x558 0x560 0x568 0x570 0x578 0x5d8 0x5f8 0x640
}

/// Whether #VMEXIT always writes this field.
pub fn stored(f: Field) -> bool {
    STORES.contains(&(f.offset & !7))
}

/// A cached VMCB.
#[derive(Clone)]
pub struct Vmcb {
    words: [u64; WORDS],
    /// Physical address it was loaded from, if any.
    address: Option<u64>,
    /// Clean groups whose checks have passed since they were loaded.
    pub checked: u32,
}

impl Default for Vmcb {
    fn default() -> Vmcb {
        Vmcb { words: [0; WORDS], address: None, checked: 0 }
    }
}

impl std::fmt::Debug for Vmcb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_map();
        for row in FIELDS {
            map.entry(&row.name, &format_args!("{:#x}", self.get(row.field)));
        }
        map.finish()
    }
}

/// The quadwords of the page that a VMCB fills.
type Page = [Cell<u64>; 512];

/// Read quadwords into the cache. What is not memory reads as all ones.
#[inline(always)]
fn gather(page: Option<&Page>, offsets: &[u16], words: &mut [u64; WORDS]) {
    for at in offsets.iter().map(|o| *o as usize / 8) {
        if let Some(word) = words.get_mut(at) {
            *word = page.map_or(u64::MAX, |p| p[at % 512].get());
        }
    }
}

#[inline(always)]
fn scatter(page: &Page, offsets: &[u16], words: &[u64; WORDS]) {
    for at in offsets.iter().map(|o| *o as usize / 8) {
        if let Some(word) = words.get(at) {
            page[at % 512].set(*word);
        }
    }
}

#[inline(always)]
fn read(memory: &GuestMemory, address: u64) -> u64 {
    memory.read::<u64>(address).unwrap_or(u64::MAX)
}

impl Vmcb {
    /// A field's value.
    #[inline(always)]
    pub fn get(&self, f: Field) -> u64 {
        let word = self.words[f.offset as usize / 8 % WORDS];
        word >> (8 * (f.offset as u32 % 8)) & (u64::MAX >> (64 - 8 * f.size as u32))
    }

    /// Change a field in the cache.
    #[inline(always)]
    pub fn set(&mut self, f: Field, value: u64) {
        let shift = 8 * (f.offset as u32 % 8);
        let mask = (u64::MAX >> (64 - 8 * f.size as u32)) << shift;
        let word = &mut self.words[f.offset as usize / 8 % WORDS];
        *word = *word & !mask | value << shift & mask;
    }

    /// Whether the intercept vectors name an exit code (codes without a bit of their own: no). The words are in the codes' order.
    #[inline(always)]
    pub fn intercepts(&self, code: u64) -> bool {
        let word = self.words[(code as usize / 64) % 3];
        code < 0xc0 && word >> (code % 64) & 1 != 0
    }

    /// Where the cached VMCB lives.
    pub fn address(&self) -> Option<u64> {
        self.address
    }

    /// Forget what is cached: the next VMRUN reads everything.
    pub fn forget(&mut self) {
        self.address = None;
        self.checked = 0;
    }

    /// What VMRUN reads. What the clean bits call unchanged stays as it is in the cache, if this is the VMCB that is cached.
    /// `honour`: the model has clean bits. Returns the groups that were read.
    pub fn load(&mut self, memory: &GuestMemory, address: u64, honour: bool) -> u32 {
        let asid = self.get(Field::GUEST_ASID);
        let page = memory.words(address).map(|(page, _)| page);
        match page {
            Some(page) => load_always(page, &mut self.words),
            None => gather(page, ALWAYS, &mut self.words),
        }
        let bits = if honour && self.address == Some(address) { self.get(Field::CLEAN_BITS) as u32 & clean::ALL } else { 0 };
        if bits != clean::ALL {
            for (group, words) in LOADS {
                if bits & group == 0 {
                    gather(page, words, &mut self.words);
                }
            }
        }
        if bits & clean::ASID != 0 {
            self.set(Field::GUEST_ASID, asid);
        }
        self.address = Some(address);
        self.checked &= bits;
        !bits
    }

    /// The groups that memory calls clean although they differ from the cache: a hypervisor's mistake.
    pub fn stale(&self, memory: &GuestMemory, address: u64) -> u32 {
        if self.address != Some(address) {
            return 0;
        }
        let bits = read(memory, address + 0xc0) as u32 & clean::ALL;
        let mut stale = 0;
        for (group, words) in LOADS {
            if bits & group != 0
                && words.iter().any(|&at| self.words[at as usize / 8 % WORDS] != read(memory, address + at as u64))
            {
                stale |= group;
            }
        }
        stale
    }

    /// Write back what #VMEXIT changes. `lbr`, `np`, `spec_ctrl` and `bus_lock`: those fields too.
    pub fn store(&self, memory: &GuestMemory, lbr: bool, np: bool, spec_ctrl: bool, bus_lock: bool) {
        let Some(page) = self.page(memory) else {
            return;
        };
        store_always(&self.words, page);
        if lbr {
            scatter(page, &LBR, &self.words);
        }
        if np {
            scatter(page, &[0x668], &self.words);
        }
        if spec_ctrl {
            scatter(page, &[0x6e0], &self.words);
        }
        if bus_lock {
            scatter(page, &[0x120], &self.words);
        }
    }

    /// Write back only the exit code and information: guest state was found invalid.
    pub fn store_exit(&self, memory: &GuestMemory) {
        if let Some(page) = self.page(memory) {
            scatter(page, &[0x70, 0x78, 0x80, 0x88], &self.words);
        }
    }

    /// Where #VMEXIT writes, if it can be written.
    #[inline(always)]
    fn page<'a>(&self, memory: &'a GuestMemory) -> Option<&'a Page> {
        memory.words(self.address?).filter(|(_, writable)| *writable).map(|(page, _)| page)
    }

    /// No instruction bytes: the exit has none.
    #[inline(always)]
    pub fn clear_instruction_bytes(&mut self) {
        self.words[0xd0 / 8] = 0;
        self.words[0xd8 / 8] = 0;
    }

    /// The instruction bytes that decode assists report.
    pub fn set_instruction_bytes(&mut self, bytes: &[u8]) {
        let mut image = [0u8; 16];
        let count = bytes.len().min(15);
        image[0] = count as u8;
        image[1..=count].copy_from_slice(&bytes[..count]);
        self.words[0xd0 / 8] = u64::from_le_bytes(std::array::from_fn(|i| image[i]));
        self.words[0xd8 / 8] = u64::from_le_bytes(std::array::from_fn(|i| image[8 + i]));
    }

    /// A segment register, by its selector field.
    #[inline(always)]
    pub fn segment(&self, selector: Field) -> Segment {
        let at = selector.offset as usize / 8;
        segment_from(self.words[at % WORDS], self.words[(at + 1) % WORDS])
    }

    #[inline(always)]
    pub fn set_segment(&mut self, selector: Field, s: &Segment) {
        let at = selector.offset as usize / 8;
        self.words[at % WORDS] = segment_word(s);
        self.words[(at + 1) % WORDS] = s.base;
    }

    #[inline(always)]
    pub fn table(&self, limit: Field) -> TableReg {
        let at = limit.offset as usize / 8;
        TableReg { limit: (self.words[at % WORDS] >> 32) as u16, base: self.words[(at + 1) % WORDS] }
    }

    #[inline(always)]
    pub fn set_table(&mut self, limit: Field, t: &TableReg) {
        self.set(limit, t.limit as u64);
        self.words[(limit.offset as usize / 8 + 1) % WORDS] = t.base;
    }
}

/// A segment register from its two quadwords. Attributes are the descriptor's bits 55:52 and 47:40, packed; a register whose
/// P bit is clear cannot be used (APM vol. 2, Segment State in the VMCB).
#[inline(always)]
pub fn segment_from(word: u64, base: u64) -> Segment {
    let attributes = (word >> 16) as u32 & 0xfff;
    let mut access = attributes & 0xff | (attributes & 0xf00) << 4;
    if attributes & 0x80 == 0 {
        access |= Segment::UNUSABLE;
    }
    Segment { selector: word as u16, access, limit: (word >> 32) as u32, base }
}

/// The first quadword of a segment register.
#[inline(always)]
pub fn segment_word(s: &Segment) -> u64 {
    let mut attributes = s.access & 0xff | s.access >> 4 & 0xf00;
    if s.unusable() {
        attributes &= !0x80;
    }
    s.selector as u64 | (attributes as u64) << 16 | (s.limit as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_lists_follow_the_table() {
        for row in FIELDS {
            let f = row.field;
            if f.group == clean::NONE || f.group == clean::ASID || f == Field::TLB_CONTROL {
                continue;
            }
            let words = LOADS.iter().find(|l| l.0 == f.group).map_or(ALWAYS, |l| l.1);
            assert!(words.contains(&(f.offset & !7)), "{} is not loaded by its group", row.name);
        }
    }

    #[test]
    fn clean_bits_keep_stale_values() {
        let m = GuestMemory::new(1 << 16, 1 << 16, &[]).expect("a small guest memory");
        let mut v = Vmcb::default();
        m.write::<u64>(0x1000 + 0x558, 0x11).expect("RAM");
        m.write::<u32>(0x1000 + 0xc0, clean::CR).expect("RAM");
        v.load(&m, 0x1000, true);
        assert_eq!(v.get(Field::CR0), 0x11);
        m.write::<u64>(0x1000 + 0x558, 0x22).expect("RAM");
        assert_eq!(v.stale(&m, 0x1000), clean::CR);
        v.load(&m, 0x1000, true);
        assert_eq!(v.get(Field::CR0), 0x11);
        m.write::<u32>(0x1000 + 0xc0, 0).expect("RAM");
        v.load(&m, 0x1000, true);
        assert_eq!(v.get(Field::CR0), 0x22);
        v.load(&m, 0x1000, false);
        assert_eq!(v.get(Field::CR0), 0x22);
    }

    #[test]
    fn fields_are_apart() {
        let mut v = Vmcb::default();
        for (i, row) in FIELDS.iter().enumerate() {
            v.set(row.field, i as u64);
        }
        for (i, row) in FIELDS.iter().enumerate() {
            assert_eq!(v.get(row.field), i as u64, "{}", row.name);
        }
    }

    #[test]
    fn segments_round_trip() {
        let s = Segment { selector: 0x10, access: 0xc093, limit: u32::MAX, base: 5 };
        assert_eq!(segment_from(segment_word(&s), 5), s);
        let null = Segment { access: Segment::UNUSABLE, ..Segment::default() };
        assert_eq!(segment_from(segment_word(&null), 0), null);
    }
}
