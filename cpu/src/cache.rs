//! The op cache: blocks of decoded ops, keyed by physical address and decode mode, and the jump cache in front of it.
//!
//! Laws: a block lies within one guest page, except a block of the single instruction that crosses into the next page. Ops link only
//! to ops of the same page. A store to a line that holds code invalidates every block of its page: their handlers are
//! replaced by one that leaves the chain, so that the change is seen by the very next instruction.

use std::ptr::NonNull;

use iced_x86::Instruction;
use rustc_hash::FxHashMap;

use crate::cpu::{Cpu, Exec};
use crate::decode::Mode;
use crate::op::{Handler, Op, OpRef};

/// Most instructions in a block.
pub const MAX_BLOCK: usize = 64;

/// The general form of an instruction's semantics.
pub type SlowFn = fn(&mut Cpu, &Instruction) -> Exec;

/// What a slow op carries: its `imm` points at one of these, in the same block.
pub struct Slow {
    pub function: SlowFn,
    pub instruction: Instruction,
}

/// A run of decoded instructions.
pub struct Block {
    pub ops: Box<[Op]>,
    /// Kept alive for the ops that point at them.
    pub slow: Box<[Slow]>,
    /// Physical address of the first byte.
    pub physical: u64,
    /// Bytes covered.
    pub bytes: u32,
    /// Physical page of the bytes past the first page's end, for an instruction that crosses.
    pub second_page: Option<u64>,
    /// Instructions.
    pub count: u32,
}

impl Block {
    /// The first op.
    pub fn entry(&self) -> OpRef {
        OpRef(NonNull::from(&self.ops[0]))
    }
}

/// Blocks of one physical page.
#[derive(Default)]
struct PageCode {
    /// Keyed by offset in page and mode.
    blocks: FxHashMap<(u16, Mode), NonNull<Block>>,
    /// Bit i: the 64-byte line i holds decoded bytes.
    lines: u64,
    /// Pages whose crossing block ends in this one.
    crossed_from: Vec<usize>,
}

/// Every block of a machine.
pub struct CodeCache {
    pages: Vec<Option<Box<PageCode>>>,
    /// Invalidated blocks that a running chain may still be in.
    graveyard: Vec<NonNull<Block>>,
    /// Grows when blocks are freed: a jump cache of an older generation must be cleared before its next use.
    pub generation: u64,
    /// The latest physical pages that became code (`forbid_writes` in every TLB is owed); see `Cpu::sync_code`.
    new_code_pages: Vec<u64>,
    /// How many such pages came before those in `new_code_pages`.
    forgotten_code_pages: u64,
    live: usize,
    /// Pages that an observer watches: bit 0 stores, bit 1 loads, too. Empty while there are none.
    watched: Vec<u8>,
    /// A block that runs without being in the cache, and the pages it was decoded from.
    transient: Option<(NonNull<Block>, usize, usize)>,
}

/// Blocks kept before the cache is emptied.
const MAX_LIVE: usize = 1 << 18;
/// New code pages remembered for processors that have yet to hear of them.
const MAX_LOG: usize = 4096;
/// Dead blocks kept before they are freed.
const MAX_DEAD: usize = 256;

impl CodeCache {
    pub fn new(pages: usize) -> CodeCache {
        CodeCache {
            pages: (0..pages).map(|_| None).collect(),
            graveyard: Vec::new(),
            generation: 0,
            new_code_pages: Vec::new(),
            forgotten_code_pages: 0,
            live: 0,
            watched: Vec::new(),
            transient: None,
        }
    }

    /// The block at `offset` of page `index`, decoded in `mode`.
    #[inline]
    pub fn find(&self, index: usize, offset: u16, mode: Mode) -> Option<&Block> {
        let block = self.pages.get(index)?.as_ref()?.blocks.get(&(offset, mode))?;
        Some(Self::borrow(block))
    }

    #[allow(unsafe_code)]
    fn borrow(block: &NonNull<Block>) -> &Block {
        // SAFETY: blocks in `pages` are alive: `bury` takes them out before `collect` frees them.
        unsafe { block.as_ref() }
    }

    /// Whether page `index` holds code, so that stores to it must be seen.
    #[inline]
    pub fn is_code(&self, index: usize) -> bool {
        matches!(self.pages.get(index), Some(Some(p)) if p.lines != 0) || self.watched.get(index).is_some_and(|w| *w != 0)
    }

    /// Make stores to page `index` take the slow path as those to code do, and with `reads` loads as well.
    pub fn watch(&mut self, index: usize, physical: u64, reads: bool) {
        if self.watched.is_empty() {
            self.watched = vec![0; self.pages.len()];
        }
        let Some(w) = self.watched.get_mut(index) else { return };
        let wanted = 1 | u8::from(reads) << 1;
        if *w & wanted == wanted {
            return;
        }
        *w |= wanted;
        self.log_code_page(physical);
    }

    /// Whether loads from page `index` must be seen, too.
    #[inline]
    pub fn hides_reads(&self, index: usize) -> bool {
        self.watched.get(index).is_some_and(|w| w & 2 != 0)
    }

    fn log_code_page(&mut self, physical: u64) {
        if self.new_code_pages.len() == MAX_LOG {
            self.forgotten_code_pages += MAX_LOG as u64;
            self.new_code_pages.clear();
        }
        self.new_code_pages.push(physical);
    }

    /// New code pages so far, for [`CodeCache::code_pages_since`].
    pub fn code_pages_logged(&self) -> u64 {
        self.forgotten_code_pages + self.new_code_pages.len() as u64
    }

    /// The pages that became code after the first `seen` of them; `None`: some of those are forgotten, suspect every page.
    pub fn code_pages_since(&self, seen: u64) -> Option<&[u64]> {
        let known = seen.checked_sub(self.forgotten_code_pages)?;
        self.new_code_pages.get(usize::try_from(known).ok()?..)
    }

    /// Add a block; returns it in place. `index`: page of its first byte, `second`: of its last if that differs.
    pub fn insert(&mut self, index: usize, second: Option<usize>, mode: Mode, block: Block) -> &Block {
        let offset = (block.physical & 0xfff) as u16;
        let (bytes, physical) = (block.bytes, block.physical);
        if self.live >= MAX_LIVE {
            self.clear();
        }
        let first_bytes = bytes.min(0x1000 - offset as u32);
        self.mark(index, physical & !0xfff, offset as u32, first_bytes);
        if let (Some(second), Some(page)) = (second, block.second_page) {
            self.mark(second, page, 0, bytes - first_bytes);
            if let Some(p) = &mut self.pages[second]
                && !p.crossed_from.contains(&index)
            {
                p.crossed_from.push(index);
            }
        }
        let pointer = NonNull::from(Box::leak(Box::new(block)));
        self.live += 1;
        let page = self.pages[index].get_or_insert_default();
        if let Some(old) = page.blocks.insert((offset, mode), pointer) {
            self.bury(old);
        }
        #[allow(unsafe_code)]
        // SAFETY: just leaked from a Box; freed only by `collect` after being buried.
        unsafe {
            &*pointer.as_ptr()
        }
    }

    /// `block` is about to run without being inserted: stores to its bytes must stop it all the same.
    /// The caller keeps it alive until [`CodeCache::end_transient`].
    pub fn begin_transient(&mut self, index: usize, second: Option<usize>, block: &Block) {
        let offset = (block.physical & 0xfff) as u32;
        let first_bytes = block.bytes.min(0x1000 - offset);
        self.mark(index, block.physical & !0xfff, offset, first_bytes);
        if let (Some(second), Some(page)) = (second, block.second_page) {
            self.mark(second, page, 0, block.bytes - first_bytes);
        }
        self.transient = Some((NonNull::from(block), index, second.unwrap_or(index)));
    }

    pub fn end_transient(&mut self) {
        self.transient = None;
    }

    fn mark(&mut self, index: usize, physical: u64, offset: u32, bytes: u32) {
        let page = self.pages[index].get_or_insert_default();
        let new = page.lines == 0;
        for line in offset / 64..=(offset + bytes.max(1) - 1) / 64 {
            page.lines |= 1 << line;
        }
        if new {
            self.log_code_page(physical);
        }
    }

    /// A store of `size` bytes at `offset` of page `index` (not crossing it). Returns whether blocks died.
    #[inline]
    pub fn written(&mut self, index: usize, offset: usize, size: usize) -> bool {
        let Some(Some(page)) = self.pages.get(index) else {
            return false;
        };
        if page.lines == 0 {
            return false;
        }
        let last = (offset + size.max(1) - 1).min(0xfff);
        let mask = (u64::MAX << (offset / 64)) & (u64::MAX >> (63 - last / 64));
        page.lines & mask != 0 && self.invalidate(index)
    }

    /// Kill every block of page `index`.
    #[cold]
    pub fn invalidate(&mut self, index: usize) -> bool {
        let Some(page) = self.pages.get_mut(index).and_then(Option::take) else {
            return false;
        };
        for &from in &page.crossed_from {
            if from != index {
                self.invalidate(from);
            }
        }
        let mut any = !page.blocks.is_empty() || !page.crossed_from.is_empty();
        if let Some((block, first, second)) = self.transient
            && (first == index || second == index)
        {
            any = true;
            Self::kill(Self::borrow(&block));
        }
        for &block in page.blocks.values() {
            self.bury(block);
        }
        any
    }

    /// Make every op of a block leave the chain.
    fn kill(block: &Block) {
        for op in &block.ops {
            op.handler.set(crate::hot::stale as Handler);
        }
    }

    fn bury(&mut self, block: NonNull<Block>) {
        Self::kill(Self::borrow(&block));
        self.live -= 1;
        self.graveyard.push(block);
    }

    /// Kill everything.
    pub fn clear(&mut self) {
        for index in 0..self.pages.len() {
            if self.pages[index].is_some() {
                self.invalidate(index);
            }
        }
    }

    /// Free dead blocks. Only between chains; jump caches of an older `generation` must then be cleared.
    #[allow(unsafe_code)]
    pub fn collect(&mut self) {
        if self.graveyard.len() < MAX_DEAD {
            return;
        }
        for block in self.graveyard.drain(..) {
            // SAFETY: leaked from a Box by `insert`, buried once, and no chain is running.
            drop(unsafe { Box::from_raw(block.as_ptr()) });
        }
        self.generation += 1;
    }
}

impl Drop for CodeCache {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        self.clear();
        for block in self.graveyard.drain(..) {
            // SAFETY: as in `collect`.
            drop(unsafe { Box::from_raw(block.as_ptr()) });
        }
    }
}

/// An entry of the jump cache.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Jump {
    /// Offset in CS of the block's first byte.
    pub rip: u64,
    /// `Cpu::fetch_tag` under which the entry is right; 0 never is.
    pub tag: u64,
    pub op: Option<OpRef>,
}

/// From RIP to ops. Each has a place, and a second one beside it for what another has pushed out of its own; the entries of one page
/// lie together so that INVLPG can drop them.
pub struct JumpCache {
    entries: Box<[Jump; JumpCache::ENTRIES]>,
    pub generation: u64,
}

impl Default for JumpCache {
    fn default() -> JumpCache {
        let entries = vec![Jump { rip: 0, tag: 0, op: None }; Self::ENTRIES].into_boxed_slice();
        JumpCache { entries: entries.try_into().ok().expect("length is ENTRIES"), generation: 0 }
    }
}

impl JumpCache {
    /// Blocks are some 20 bytes long: with fewer places, those of one loop get in each other's way.
    const PER_PAGE: usize = 256;
    const PAGES: usize = 256;
    const ENTRIES: usize = Self::PAGES * Self::PER_PAGE;

    fn page_start(rip: u64) -> usize {
        let page = rip >> 12;
        ((page ^ page >> 8) as usize % Self::PAGES) * Self::PER_PAGE
    }

    #[inline(always)]
    fn slot(rip: u64) -> usize {
        Self::page_start(rip) + ((rip ^ rip >> 8) as usize % Self::PER_PAGE)
    }

    #[inline(always)]
    pub fn find(&self, rip: u64, tag: u64) -> Option<OpRef> {
        let e = &self.entries[Self::slot(rip) % Self::ENTRIES];
        if e.rip == rip && e.tag == tag { e.op } else { None }
    }

    /// What [`JumpCache::find`] did not find, if it is in its second place.
    #[inline]
    pub fn find_aside(&self, rip: u64, tag: u64) -> Option<OpRef> {
        let e = &self.entries[(Self::slot(rip) ^ 1) % Self::ENTRIES];
        if e.rip == rip && e.tag == tag { e.op } else { None }
    }

    pub fn insert(&mut self, rip: u64, tag: u64, op: OpRef) {
        let slot = Self::slot(rip) % Self::ENTRIES;
        let old = self.entries[slot];
        if old.tag == tag && old.rip != rip {
            self.entries[slot ^ 1] = old;
        }
        self.entries[slot] = Jump { rip, tag, op: Some(op) };
    }

    /// Drop the entries of the page of `rip`.
    pub fn drop_page(&mut self, rip: u64) {
        for e in &mut self.entries[Self::page_start(rip)..][..Self::PER_PAGE] {
            e.tag = 0;
        }
    }

    pub fn clear(&mut self) {
        for e in self.entries.iter_mut() {
            e.tag = 0;
        }
    }
}
