//! Guest RAM.
//!
//! One anonymous mapping, laid out in guest-physical space as up to two RAM ranges (below the 32-bit PCI hole, and
//! from 4 GiB up) plus ROM ranges. This module is one of the few with `unsafe`. Its invariants:
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

/// Guest-physical RAM and ROM.
pub struct GuestMemory {
    map: MmapMut,
    base: *mut u8,
    ranges: Vec<Range>,
    ram_size: u64,
    low_size: u64,
    /// RAM from here to `low_size` has no ROM over it (nor has any above 4 GiB up to `high_end`): the quick part of `locate`.
    clear_from: u64,
    high_end: u64,
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
        let high_end = (1 << 32) + (ram_size - low_size);
        let high_end = if roms_end(1 << 32, high_end).is_some() { 0 } else { high_end };
        Ok(GuestMemory { map, base, ranges, ram_size, low_size, clear_from, high_end })
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
        if address >= self.clear_from && address < self.low_size {
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
        let i = self.ranges.iter().position(|r| address >= r.start && address < r.end)?;
        let r = &self.ranges[i];
        // A ROM ahead in the list hides what follows it.
        let end = self.ranges[..i].iter().map(|o| o.start).filter(|&s| s > address).fold(r.end, u64::min);
        Some((end - address, r.offset + (address - r.start), r.writable))
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
