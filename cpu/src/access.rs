//! Memory access.
//!
//! Two ways, one semantics. [`Fast`] looks at the TLB only and reports a miss without side effects. [`Slow`] translates,
//! reaches MMIO, crosses pages, sees stores to code, and may fault. A hot handler is written once over [`Way`]: tried with
//! `Fast`, and on a miss run again from its start with `Slow`. Hence the rule: no state changes before the last access that can
//! miss.
#![allow(unsafe_code)]

use undervisor_core::{Exception, segment::Segment};
use undervisor_core::{SegReg, Vector};
use undervisor_mmu::{PAGE_SIZE, Tlb, Word, tlb::TlbEntry};

use crate::cpu::{Cpu, Exec, Stop};
use crate::paging::Access;

/// How a handler reaches memory.
pub trait Way {
    type Miss;
    /// Whether this way may give up at will (and the handler is then run again the other way).
    const FAST: bool;
    /// Give up in favour of the slow way; only where `FAST`.
    fn give_up() -> Self::Miss;
    /// Give up: the instruction is to be executed in its general form.
    fn general(cpu: &mut Cpu) -> Self::Miss;
    fn read<T: Word>(cpu: &mut Cpu, linear: u64) -> Result<T, Self::Miss>;
    fn write<T: Word>(cpu: &mut Cpu, linear: u64, value: T) -> Result<(), Self::Miss>;
    /// Read for a later [`Way::write`] to the same place: faults as a write.
    fn read_to_modify<T: Word>(cpu: &mut Cpu, linear: u64) -> Result<T, Self::Miss>;
    /// 16 and 32 bytes, as little-endian words.
    fn read_words<const N: usize>(cpu: &mut Cpu, linear: u64) -> Result<[u64; N], Self::Miss>;
    fn write_words<const N: usize>(cpu: &mut Cpu, linear: u64, value: [u64; N]) -> Result<(), Self::Miss>;
}

/// TLB hits only.
pub struct Fast;
/// Everything.
pub struct Slow;

impl Cpu {
    #[inline(always)]
    fn hot_entry(&self, linear: u64) -> &TlbEntry {
        // SAFETY: `bank` points at the BANK_ENTRIES entries of a bank of `self.tlb` (invariant of the field), and `slot` is
        // below BANK_ENTRIES.
        unsafe { &*self.bank.add(Tlb::slot(linear)) }
    }

    #[inline(always)]
    pub(crate) fn hot_read(&self, linear: u64, size: usize) -> Option<*const u8> {
        let e = self.hot_entry(linear);
        (e.read == Tlb::tag(linear, size, self.space)).then(|| linear.wrapping_add(e.addend) as usize as *const u8)
    }

    #[inline(always)]
    pub(crate) fn hot_write(&self, linear: u64, size: usize) -> Option<*mut u8> {
        let e = self.hot_entry(linear);
        (e.write == Tlb::tag(linear, size, self.space)).then(|| linear.wrapping_add(e.addend) as usize as *mut u8)
    }
}

impl Way for Fast {
    type Miss = ();
    const FAST: bool = true;
    #[inline(always)]
    fn give_up() {}
    #[inline(always)]
    fn general(_: &mut Cpu) {}
    #[inline(always)]
    fn read<T: Word>(cpu: &mut Cpu, linear: u64) -> Result<T, ()> {
        // SAFETY: a matching tag means `linear .. + SIZE` lies within one page of guest RAM mapped at `addend`.
        cpu.hot_read(linear, T::SIZE).map(|p| unsafe { p.cast::<T>().read_unaligned() }).ok_or(())
    }
    #[inline(always)]
    fn write<T: Word>(cpu: &mut Cpu, linear: u64, value: T) -> Result<(), ()> {
        // SAFETY: as for `read`; a write tag is only set for writable RAM.
        cpu.hot_write(linear, T::SIZE).map(|p| unsafe { p.cast::<T>().write_unaligned(value) }).ok_or(())
    }
    #[inline(always)]
    fn read_to_modify<T: Word>(cpu: &mut Cpu, linear: u64) -> Result<T, ()> {
        // SAFETY: as for `read`.
        cpu.hot_write(linear, T::SIZE).map(|p| unsafe { p.cast::<T>().read_unaligned() }).ok_or(())
    }
    #[inline(always)]
    fn read_words<const N: usize>(cpu: &mut Cpu, linear: u64) -> Result<[u64; N], ()> {
        // SAFETY: as for `read`.
        cpu.hot_read(linear, 8 * N).map(|p| unsafe { p.cast::<[u64; N]>().read_unaligned() }).ok_or(())
    }
    #[inline(always)]
    fn write_words<const N: usize>(cpu: &mut Cpu, linear: u64, value: [u64; N]) -> Result<(), ()> {
        // SAFETY: as for `write`.
        cpu.hot_write(linear, 8 * N).map(|p| unsafe { p.cast::<[u64; N]>().write_unaligned(value) }).ok_or(())
    }
}

impl Way for Slow {
    type Miss = Stop;
    const FAST: bool = false;
    fn give_up() -> Stop {
        Stop::Again
    }
    #[cold]
    fn general(cpu: &mut Cpu) -> Stop {
        cpu.general_once = true;
        Stop::Again
    }
    fn read<T: Word>(cpu: &mut Cpu, linear: u64) -> Exec<T> {
        cpu.read_linear(linear)
    }
    fn write<T: Word>(cpu: &mut Cpu, linear: u64, value: T) -> Exec {
        cpu.write_linear(linear, value)
    }
    fn read_to_modify<T: Word>(cpu: &mut Cpu, linear: u64) -> Exec<T> {
        cpu.read_linear_to_modify(linear)
    }
    fn read_words<const N: usize>(cpu: &mut Cpu, linear: u64) -> Exec<[u64; N]> {
        let mut words = [0; N];
        let mut bytes = [[0u8; 8]; N];
        cpu.read_bytes(linear, bytes.as_flattened_mut())?;
        for (w, b) in words.iter_mut().zip(bytes) {
            *w = u64::from_le_bytes(b);
        }
        Ok(words)
    }
    fn write_words<const N: usize>(cpu: &mut Cpu, linear: u64, value: [u64; N]) -> Exec {
        let bytes = value.map(u64::to_le_bytes);
        cpu.write_bytes(linear, bytes.as_flattened())
    }
}

/// A page of the guest, as an access reached it.
pub(crate) enum Reached {
    /// Host address of the first byte.
    Ram(*mut u8),
    /// Guest-physical address of the first byte: MMIO or ROM being written.
    Mmio(u64),
}

impl Cpu {
    // ---- by linear address, at the current privilege -------------------------------------------------------------------

    /// Read at a linear address with the rights of the current privilege level.
    #[inline]
    pub fn read_linear<T: Word>(&mut self, linear: u64) -> Exec<T> {
        match Fast::read(self, linear) {
            Ok(v) => Ok(v),
            Err(()) => self.read_access(linear, Access::READ),
        }
    }

    /// Write at a linear address with the rights of the current privilege level.
    #[inline]
    pub fn write_linear<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        match Fast::write(self, linear, value) {
            Ok(()) => Ok(()),
            Err(()) => self.write_access(linear, value, Access::WRITE),
        }
    }

    /// Read what is about to be written: faults as a write does.
    pub fn read_linear_to_modify<T: Word>(&mut self, linear: u64) -> Exec<T> {
        match Fast::read_to_modify(self, linear) {
            Ok(v) => Ok(v),
            Err(()) => self.read_access(linear, Access::WRITE),
        }
    }

    /// Implicit supervisor accesses: descriptor tables, TSS.
    pub fn read_system<T: Word>(&mut self, linear: u64) -> Exec<T> {
        self.read_access(linear, Access::SYSTEM_READ)
    }
    /// Implicit supervisor write.
    pub fn write_system<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        self.write_access(linear, value, Access::SYSTEM_WRITE)
    }

    /// Read with explicit rights.
    #[cold]
    #[inline(never)]
    pub fn read_access<T: Word>(&mut self, linear: u64, access: Access) -> Exec<T> {
        self.counters.slow_loads += 1;
        let mut bytes = [0u8; 8];
        self.check_alignment(linear, T::SIZE, access)?;
        self.copy_in(linear, &mut bytes[..T::SIZE], access)?;
        Ok(T::from_u64(u64::from_le_bytes(bytes)))
    }

    /// Write with explicit rights. Nothing is written if any byte faults.
    #[cold]
    #[inline(never)]
    pub fn write_access<T: Word>(&mut self, linear: u64, value: T, access: Access) -> Exec {
        self.counters.slow_stores += 1;
        self.check_alignment(linear, T::SIZE, access)?;
        self.copy_out(linear, &value.to_u64().to_le_bytes()[..T::SIZE], access)
    }

    /// Read any number of bytes at the current privilege.
    pub fn read_bytes(&mut self, linear: u64, out: &mut [u8]) -> Exec {
        self.copy_in(linear, out, Access::READ)
    }
    /// Write up to a page of bytes at the current privilege; nothing is written if any byte faults.
    pub fn write_bytes(&mut self, linear: u64, data: &[u8]) -> Exec {
        self.copy_out(linear, data, Access::WRITE)
    }

    /// Check that a write of `size` bytes (at most a page) would not fault.
    pub fn probe_write(&mut self, linear: u64, size: usize) -> Exec {
        self.reach(linear, Access::WRITE)?;
        if (linear & 0xfff) + size as u64 > PAGE_SIZE {
            self.reach(self.next_page(linear), Access::WRITE)?;
        }
        Ok(())
    }

    /// #AC for a misaligned data access when CR0.AM, EFLAGS.AC and CPL 3 ask for it (SDM vol. 3, Alignment Check Exception).
    /// Such a processor state never fills the TLB bank in use, so every access comes here.
    #[inline]
    fn check_alignment(&mut self, linear: u64, size: usize, access: Access) -> Exec {
        if self.alignment_checked() && !access.system && linear & (size as u64 - 1) != 0 {
            return Err(self.raise(Exception::with_code(Vector::AC, 0)));
        }
        Ok(())
    }

    /// First byte of the page after that of `linear`, wrapping at 4 GiB outside 64-bit mode.
    fn next_page(&self, linear: u64) -> u64 {
        let next = (linear & !0xfff).wrapping_add(PAGE_SIZE);
        if self.mode.is64() || self.state.long_mode() { next } else { next & 0xffff_ffff }
    }

    pub(crate) fn reach(&mut self, linear: u64, access: Access) -> Exec<Reached> {
        let physical = self.translate(linear, access)?;
        Ok(match self.shared.memory.page(physical) {
            Some(page) if (page.writable || !access.write) && !self.watched_physical(physical) => {
                // SAFETY: the offset is below the page's size.
                Reached::Ram(unsafe { page.pointer.add((physical & 0xfff) as usize) })
            }
            _ => Reached::Mmio(physical),
        })
    }

    fn copy_in(&mut self, linear: u64, out: &mut [u8], access: Access) -> Exec {
        let mut at = linear;
        let mut done = 0;
        while done < out.len() {
            let n = ((PAGE_SIZE - (at & 0xfff)) as usize).min(out.len() - done);
            match self.reach(at, access)? {
                Reached::Ram(p) => {
                    // SAFETY: n bytes from here are within the guest page; `out` is host memory.
                    unsafe { std::ptr::copy_nonoverlapping(p, out[done..].as_mut_ptr(), n) };
                    if self.observing & crate::observe::want::LINT != 0 {
                        self.observe_load(self.shared.memory.index_of(p), (at & 0xfff) as usize);
                    }
                    self.ram_accessed(p, at, n, false);
                }
                Reached::Mmio(physical) => self.mmio_in(physical, &mut out[done..done + n])?,
            }
            self.data_accessed(at, n, access);
            done += n;
            at = self.next_page(at);
        }
        Ok(())
    }

    fn copy_out(&mut self, linear: u64, data: &[u8], access: Access) -> Exec {
        let n = ((PAGE_SIZE - (linear & 0xfff)) as usize).min(data.len());
        let first = self.reach(linear, access)?;
        if n < data.len() {
            let second = self.reach(self.next_page(linear), access)?;
            self.store(first, linear, &data[..n], access)?;
            return self.store(second, self.next_page(linear), &data[n..], access);
        }
        self.store(first, linear, data, access)
    }

    fn store(&mut self, to: Reached, linear: u64, data: &[u8], access: Access) -> Exec {
        match to {
            Reached::Ram(p) => {
                // SAFETY: the bytes are within one guest page (the caller splits at page ends).
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), p, data.len()) };
                self.ram_accessed(p, linear, data.len(), true);
                let page = self.shared.memory.index_of(p);
                if self.observing != 0 {
                    self.observe_store(page, (linear & 0xfff) as usize, data);
                }
                if self.shared.code().written(page, (linear & 0xfff) as usize, data.len()) {
                    self.counters.blocks_invalidated += 1;
                }
                if self.debugger.watching {
                    self.debug_stored(page, linear & 0xfff, data.len() as u64);
                }
            }
            Reached::Mmio(physical) => self.mmio_out(physical, data)?,
        }
        self.data_accessed(linear, data.len(), access);
        Ok(())
    }

    /// Bytes of RAM within a page were read or written, at `p` and `linear`.
    #[inline]
    pub(crate) fn ram_accessed(&mut self, p: *const u8, linear: u64, size: usize, write: bool) {
        if self.performance.counts_caches {
            let page = self.shared.memory.index_of(p) as u64;
            self.count_access(page << 12 | linear & 0xfff, size, write);
        }
    }

    fn mmio_in(&mut self, physical: u64, out: &mut [u8]) -> Exec {
        let mut at = 0;
        while at < out.len() {
            let n = chunk(physical + at as u64, out.len() - at);
            let value = self.physical_read(physical + at as u64, n)?;
            out[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
            at += n;
        }
        Ok(())
    }

    fn mmio_out(&mut self, physical: u64, data: &[u8]) -> Exec {
        let mut at = 0;
        while at < data.len() {
            let n = chunk(physical + at as u64, data.len() - at);
            let mut bytes = [0; 8];
            bytes[..n].copy_from_slice(&data[at..at + n]);
            self.physical_write(physical + at as u64, n, u64::from_le_bytes(bytes))?;
            at += n;
        }
        Ok(())
    }

    // ---- by segment and offset ------------------------------------------------------------------------------------------

    /// Linear address of `size` bytes at `offset` in `seg`, with the segment's checks
    /// (SDM vol. 3, Limit Checking; Type Checking; vol. 1, Canonical Addressing).
    pub fn linear(&mut self, seg: SegReg, offset: u64, size: usize, write: bool) -> Exec<u64> {
        let s = *self.state.segment(seg);
        if self.mode.is64() {
            let base = if matches!(seg, SegReg::Fs | SegReg::Gs) { s.base } else { 0 };
            let linear = base.wrapping_add(offset);
            let last = linear.wrapping_add(size as u64 - 1);
            if !self.canonical(linear) || !self.canonical(last) {
                return Err(self.segment_fault(seg));
            }
            return Ok(linear);
        }
        if !segment_allows(&s, offset, size, write, self.state.protected() && !self.state.virtual_8086()) {
            return Err(self.segment_fault(seg));
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Read through a segment.
    pub fn read<T: Word>(&mut self, seg: SegReg, offset: u64) -> Exec<T> {
        let linear = self.linear(seg, offset, T::SIZE, false)?;
        self.read_linear(linear)
    }
    /// Write through a segment.
    pub fn write<T: Word>(&mut self, seg: SegReg, offset: u64, value: T) -> Exec {
        let linear = self.linear(seg, offset, T::SIZE, true)?;
        self.write_linear(linear, value)
    }

    /// Whether an address is canonical for the current paging depth.
    #[inline]
    pub fn canonical(&self, address: u64) -> bool {
        sign_extends(address, self.state.cr4.contains(undervisor_core::Cr4::LA57))
    }

    /// Whether a base is canonical for the widest addresses of the model, whatever CR4.LA57 says: the rule for what registers
    /// keep (GDTR, IDTR, LDTR, TR, FS, GS and MSRs) as opposed to what is accessed (5-Level Paging and 5-Level EPT White
    /// Paper, Canonicality Checking).
    #[inline]
    pub fn canonical_base(&self, address: u64) -> bool {
        sign_extends(address, self.model.has(undervisor_core::model::Feature::LA57))
    }
}

/// Whether the bits above a linear address of 48 bits, or `wide` of 57, repeat its highest.
#[inline]
fn sign_extends(address: u64, wide: bool) -> bool {
    let shift = if wide { 7 } else { 16 };
    ((address << shift) as i64 >> shift) as u64 == address
}

/// Whether a legacy-mode segment allows an access; `protected`: types are checked too.
pub fn segment_allows(s: &Segment, offset: u64, size: usize, write: bool, protected: bool) -> bool {
    if protected && (s.unusable() || !s.present() || if write { !s.writable() } else { !s.readable() }) {
        return false;
    }
    let last = offset + size as u64 - 1;
    if s.expand_down() {
        let top = if s.big() { 0xffff_ffff } else { 0xffff };
        offset > s.limit as u64 && last <= top
    } else {
        last <= s.limit as u64
    }
}

/// Bytes of the next naturally aligned piece of an MMIO access.
fn chunk(address: u64, left: usize) -> usize {
    let align = 1 << address.trailing_zeros().min(3);
    let mut n = align.min(left);
    while !n.is_power_of_two() {
        n &= n - 1;
    }
    n
}
