//! Guest RAM.
//!
//! One anonymous mapping, laid out in guest-physical space as up to two RAM ranges (below the 32-bit PCI hole, and
//! from 4 GiB up) plus ROM ranges. Where accesses between 640 KiB and 1 MiB go is the chipset's choice ([`LowRouting`]). This module is one of the few with `unsafe`. Its invariants:
//! - `base .. base + size` is mapped readable and writable for the life of the value and never moves;
//! - a `HostPage` handed out points at one whole page inside it;
//! - guest RAM is accessed only through raw pointers and cells, never through other references, so that any number of vCPUs and devices
//!   on the machine's thread may hold addresses into it.
#![allow(unsafe_code)]

use std::cell::Cell;

use memmap2::{MmapMut, MmapOptions};
use thiserror::Error;

use crate::PAGE_SIZE;

/// Why guest memory could not be made or reached.
#[derive(Debug, Error)]
pub enum MemoryError {
    #[error("guest memory of {0} bytes: must be a non-zero multiple of 4096")]
    BadSize(u64),
    #[error("guest memory of {size} bytes cannot be reserved on this host: {source}; try a smaller --memory")]
    Reserve { size: u64, source: std::io::Error },
    #[error("guest-physical {address:#x}+{length:#x} is not RAM")]
    OutOfRange { address: u64, length: u64 },
}

/// Integer types that a guest access can move.
pub trait Word: Copy + Default + 'static {
    const SIZE: usize;
    fn to_u64(self) -> u64;
    fn from_u64(value: u64) -> Self;
}

macro_rules! word {
    ($($t:ty)*) => {$(
        impl Word for $t {
            const SIZE: usize = size_of::<$t>();
            #[inline(always)]
            fn to_u64(self) -> u64 { self as u64 }
            #[inline(always)]
            fn from_u64(value: u64) -> Self { value as $t }
        }
    )*};
}
word!(u8 u16 u32 u64);

/// A range of guest-physical space backed by the mapping.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    end: u64,
    /// Offset of `start` in the mapping.
    offset: u64,
    writable: bool,
}

/// First byte whose routing can be chosen.
const ROUTED_START: u64 = 0xa_0000;
const ROUTED_END: u64 = 0x10_0000;
/// log2 of the bytes that are routed together.
const ROUTED_BITS: u32 = 14;

/// Which of the 24 parts of 16 KiB each between 640 KiB and 1 MiB are RAM, a bit a part, for reads and for writes. What is not is answered by
/// the ROM that ends at 4 GiB, of which the last 128 KiB appear again below 1 MiB, and else by the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowRouting {
    pub reads: u32,
    pub writes: u32,
}

impl LowRouting {
    /// All of it is RAM.
    pub const RAM: LowRouting = LowRouting { reads: 0xff_ffff, writes: 0xff_ffff };

    fn part(address: u64) -> u32 {
        (address.wrapping_sub(ROUTED_START) >> ROUTED_BITS) as u32 & 31
    }

    /// Whether a read, and whether a write at `address` (within the 384 KiB) goes to RAM.
    fn at(self, address: u64) -> (bool, bool) {
        let part = Self::part(address);
        (self.reads >> part & 1 != 0, self.writes >> part & 1 != 0)
    }

    /// Route `bytes` from `start` on.
    pub fn set(&mut self, start: u64, bytes: u64, read: bool, write: bool) {
        for part in Self::part(start)..=Self::part(start + bytes - 1) {
            self.reads = self.reads & !(1 << part) | u32::from(read) << part;
            self.writes = self.writes & !(1 << part) | u32::from(write) << part;
        }
    }
}

/// Guest-physical RAM and ROM.
pub struct GuestMemory {
    map: MmapMut,
    base: *mut u8,
    ranges: Vec<Range>,
    ram_size: u64,
    low_size: u64,
    /// RAM from here to `low_size` has no ROM over it (nor has any above 4 GiB up to `high_end`): the quick part of `locate`.
    clear_from: Cell<u64>,
    high_end: u64,
    /// RAM from 0 to here has no ROM over it, whatever `low` says of what follows.
    conventional_end: u64,
    low: Cell<LowRouting>,
    /// Where `clear_from` is if `low` is all RAM.
    roms_end: u64,
}

/// Host address of a guest page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    pub pointer: *mut u8,
    pub writable: bool,
}

impl GuestMemory {
    /// RAM of `ram_size` bytes: `low_limit` bytes at most from 0, the rest from 4 GiB. `roms`: (guest-physical start,
    /// contents), padded to whole pages; a ROM hides RAM below it.
    pub fn new(ram_size: u64, low_limit: u64, roms: &[(u64, &[u8])]) -> Result<GuestMemory, MemoryError> {
        if ram_size == 0 || !ram_size.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::BadSize(ram_size));
        }
        let rom_pages = |len: usize| (len as u64).div_ceil(PAGE_SIZE) * PAGE_SIZE;
        let total = roms.iter().map(|r| rom_pages(r.1.len())).sum::<u64>() + ram_size;
        let bytes = usize::try_from(total).map_err(|_| MemoryError::BadSize(ram_size))?;
        let mut map = MmapOptions::new()
            .len(bytes)
            .no_reserve_swap()
            .map_anon()
            .map_err(|source| MemoryError::Reserve { size: total, source })?;
        let base = map.as_mut_ptr();
        let low_size = ram_size.min(low_limit);
        let mut ranges = Vec::new();
        let mut offset = ram_size;
        for (start, data) in roms {
            let len = rom_pages(data.len());
            map[offset as usize..offset as usize + data.len()].copy_from_slice(data);
            ranges.push(Range { start: *start, end: start + len, offset, writable: false });
            offset += len;
        }
        ranges.push(Range { start: 0, end: low_size, offset: 0, writable: true });
        if ram_size > low_size {
            ranges.push(Range { start: 1 << 32, end: (1 << 32) + ram_size - low_size, offset: low_size, writable: true });
        }
        let roms_end =
            |from: u64, to: u64| ranges.iter().filter(|r| !r.writable && r.start < to && r.end > from).map(|r| r.end).max();
        let clear_from = roms_end(0, low_size).unwrap_or(0);
        let conventional_end = if roms_end(0, ROUTED_START).is_none() { low_size.min(ROUTED_START) } else { 0 };
        let high_end = (1 << 32) + (ram_size - low_size);
        let high_end = if roms_end(1 << 32, high_end).is_some() { 0 } else { high_end };
        Ok(GuestMemory {
            map,
            base,
            ranges,
            ram_size,
            low_size,
            clear_from: Cell::new(clear_from),
            high_end,
            conventional_end,
            low: Cell::new(LowRouting::RAM),
            roms_end: clear_from,
        })
    }

    /// Bytes of RAM, ROM not counted.
    pub fn ram_size(&self) -> u64 {
        self.ram_size
    }
    /// Bytes of RAM below the PCI hole.
    pub fn low_size(&self) -> u64 {
        self.low_size
    }
    /// Guest-physical RAM ranges as (start, length).
    pub fn ram_ranges(&self) -> Vec<(u64, u64)> {
        self.ranges.iter().filter(|r| r.writable).map(|r| (r.start, r.end - r.start)).collect()
    }
    /// Pages (of 4 KiB) that the mapping holds; page indices run below this.
    pub fn page_count(&self) -> usize {
        self.map.len() / PAGE_SIZE as usize
    }

    /// The bytes that follow `address` in its range (at least 1), its offset in the mapping, and whether it is RAM.
    #[inline(always)]
    fn locate(&self, address: u64) -> Option<(u64, u64, bool)> {
        if address >= self.clear_from.get() && address < self.low_size {
            return Some((self.low_size - address, address, true));
        }
        if address >= 1 << 32 && address < self.high_end {
            return Some((self.high_end - address, self.low_size + (address - (1 << 32)), true));
        }
        self.locate_slowly(address)
    }

    #[cold]
    #[inline(never)]
    fn locate_slowly(&self, address: u64) -> Option<(u64, u64, bool)> {
        if address < self.conventional_end {
            return Some((self.conventional_end - address, address, true));
        }
        if self.low.get() != LowRouting::RAM && address < ROUTED_END {
            return self.locate_routed(address);
        }
        self.locate_range(address)
    }

    fn locate_routed(&self, address: u64) -> Option<(u64, u64, bool)> {
        if address < ROUTED_START {
            let (room, offset, writable) = self.locate_range(address)?;
            return Some((room.min(ROUTED_START - address), offset, writable));
        }
        let room = (1 << ROUTED_BITS) - address % (1 << ROUTED_BITS);
        match self.low.get().at(address) {
            (true, writable) => self.locate_range(address).map(|(_, offset, _)| (room, offset, writable)),
            (false, false) => self.rom_below(address).map(|offset| (room, offset, false)),
            // Two different places: an affair of the bus.
            (false, true) => None,
        }
    }

    /// The offset in the mapping of the byte of ROM that appears at `address`, below 1 MiB.
    fn rom_below(&self, address: u64) -> Option<u64> {
        const SHOWN: u64 = 128 << 10;
        let rom = self.ranges.iter().find(|r| !r.writable && r.end == 1 << 32)?;
        let from_end = ROUTED_END.checked_sub(address)?;
        (from_end <= SHOWN.min(rom.end - rom.start)).then(|| rom.offset + (rom.end - rom.start) - from_end)
    }

    fn locate_range(&self, address: u64) -> Option<(u64, u64, bool)> {
        let i = self.ranges.iter().position(|r| address >= r.start && address < r.end)?;
        let r = &self.ranges[i];
        // A ROM ahead in the list hides what follows it.
        let end = self.ranges[..i].iter().map(|o| o.start).filter(|&s| s > address).fold(r.end, u64::min);
        Some((end - address, r.offset + (address - r.start), r.writable))
    }

    pub fn low_routing(&self) -> LowRouting {
        self.low.get()
    }

    /// Route what lies between 640 KiB and 1 MiB. Whoever keeps translations or code must forget them.
    pub fn set_low_routing(&self, routing: LowRouting) {
        self.low.set(routing);
        self.clear_from.set(if routing == LowRouting::RAM { self.roms_end } else { self.roms_end.max(ROUTED_END) });
    }

    /// What the bus answers for a part whose reads and writes go to different places: a byte of ROM.
    pub fn read_routed(&self, address: u64) -> Option<u8> {
        if !(ROUTED_START..ROUTED_END).contains(&address) || self.low.get().at(address) != (false, true) {
            return None;
        }
        let offset = self.rom_below(address)?;
        // SAFETY: `rom_below` names a byte of the mapping.
        Some(unsafe { self.base.add(offset as usize).read() })
    }

    /// Likewise a byte on its way to the RAM under a ROM, from which no code can be decoded now.
    pub fn write_routed(&self, address: u64, value: u8) {
        if !(ROUTED_START..ROUTED_END).contains(&address) || self.low.get().at(address) != (false, true) {
            return;
        }
        let Some((_, offset, _)) = self.locate_range(address) else { return };
        // SAFETY: `locate_range` names a byte of the mapping.
        unsafe { self.base.add(offset as usize).write(value) };
    }

    /// The host page behind guest-physical `address`, or `None` if it is not RAM or ROM.
    #[inline]
    pub fn page(&self, address: u64) -> Option<HostPage> {
        let (_, offset, writable) = self.locate(address & !0xfff)?;
        // SAFETY: `offset` is the page's start within the mapping, by `locate`.
        Some(HostPage { pointer: unsafe { self.base.add(offset as usize) }, writable })
    }

    /// Index of the page behind guest-physical `address` (dense, below `page_count`).
    #[inline]
    pub fn page_index(&self, address: u64) -> Option<usize> {
        self.locate(address & !0xfff).map(|(_, offset, _)| (offset / PAGE_SIZE) as usize)
    }

    /// Read a word that may cross pages; `None` if any byte of it is not RAM or ROM.
    #[inline]
    pub fn read<T: Word>(&self, address: u64) -> Option<T> {
        let (room, offset, _) = self.locate(address)?;
        if room >= T::SIZE as u64 {
            // SAFETY: offset .. offset + SIZE is within the range, hence the mapping; reads may be unaligned.
            return Some(unsafe { self.base.add(offset as usize).cast::<T>().read_unaligned() });
        }
        let mut value = 0;
        for i in 0..T::SIZE as u64 {
            value |= (self.read::<u8>(address.checked_add(i)?)? as u64) << (8 * i);
        }
        Some(T::from_u64(value))
    }

    /// Write a word; `None` if any byte of it is not RAM. ROM swallows the write. Does not look at translated code:
    /// whoever writes on a guest's or device's behalf uses the machine's or processor's store path.
    #[inline]
    pub fn write<T: Word>(&self, address: u64, value: T) -> Option<()> {
        let (room, offset, writable) = self.locate(address)?;
        if room >= T::SIZE as u64 {
            if writable {
                // SAFETY: as for `read`; the mapping is writable.
                unsafe { self.base.add(offset as usize).cast::<T>().write_unaligned(value) };
            }
            return Some(());
        }
        for i in 0..T::SIZE as u64 {
            self.write::<u8>(address.checked_add(i)?, (value.to_u64() >> (8 * i)) as u8)?;
        }
        Some(())
    }

    /// The quadwords of the page behind guest-physical `address`, and whether it is RAM; `None` if it is not ROM either. Of ROM only
    /// reads; of writes, same caution about translated code as [`GuestMemory::write`].
    #[inline(always)]
    pub fn words(&self, address: u64) -> Option<(&[Cell<u64>; PAGE_SIZE as usize / 8], bool)> {
        let page = self.page(address)?;
        // SAFETY: a whole page of the mapping, aligned as the mapping's own pages are, for as long as `self` lives; all access to it is
        // by raw pointers or cells, from the one thread that has this `GuestMemory` (which is not Sync).
        Some((unsafe { &*page.pointer.cast::<[Cell<u64>; PAGE_SIZE as usize / 8]>() }, page.writable))
    }

    /// Copy bytes out of RAM or ROM.
    pub fn read_bytes(&self, address: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.for_pages(address, out.len(), |host, done, n, _| {
            // SAFETY: `for_pages` hands out n valid bytes at `host`; `out` is host memory, so they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(host, out.as_mut_ptr().add(done), n) }
        })
    }

    /// Copy bytes into RAM (ROM swallows them). Same caution about translated code as [`GuestMemory::write`].
    pub fn write_bytes(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.for_pages(address, data.len(), |host, done, n, writable| {
            if writable {
                // SAFETY: as for `read_bytes`.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().add(done), host, n) }
            }
        })
    }

    fn for_pages(&self, address: u64, len: usize, mut f: impl FnMut(*mut u8, usize, usize, bool)) -> Result<(), MemoryError> {
        let err = || MemoryError::OutOfRange { address, length: len as u64 };
        // Look at every page first, so that a failing call changes nothing.
        for pass in 0..2 {
            let mut done = 0;
            while done < len {
                let at = address.checked_add(done as u64).ok_or_else(err)?;
                let n = (PAGE_SIZE - at % PAGE_SIZE).min((len - done) as u64) as usize;
                let page = self.page(at).ok_or_else(err)?;
                if pass == 1 {
                    // SAFETY: at % PAGE_SIZE + n <= PAGE_SIZE, within the page.
                    f(unsafe { page.pointer.add((at % PAGE_SIZE) as usize) }, done, n, page.writable);
                }
                done += n;
            }
        }
        Ok(())
    }
}

impl GuestMemory {
    /// Index of the page that a pointer from [`GuestMemory::page`] (plus an offset within the page) lies in.
    #[inline]
    pub fn index_of(&self, pointer: *const u8) -> usize {
        (pointer as usize - self.base as usize) / PAGE_SIZE as usize
    }
}
