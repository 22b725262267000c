//! Copying and filling whole stretches of guest memory at host speed, for REP MOVS and REP STOS.
//!
//! Invariants are those of `access`: a pointer got from the TLB or from `reach` is good for the rest of its guest page, and
//! guest memory is touched through raw pointers only.
#![allow(unsafe_code)]

use crate::access::Reached;
use crate::cpu::{Cpu, Exec};
use crate::paging::Access;

/// A stretch of guest RAM within one page, as a store reaches it.
#[derive(Clone, Copy)]
struct Target {
    pointer: *mut u8,
    /// The TLB did not allow the store: translated code may be on the page.
    watch: bool,
}

impl Cpu {
    /// Host address of `len` bytes within one page to be read; `None`: MMIO.
    fn bulk_source(&mut self, linear: u64, len: usize) -> Exec<Option<*const u8>> {
        if let Some(p) = self.hot_read(linear, len) {
            return Ok(Some(p));
        }
        Ok(match self.reach(linear, Access::READ)? {
            Reached::Ram(p) => {
                self.ram_accessed(p, linear, len, false);
                Some(p)
            }
            Reached::Mmio(_) => None,
        })
    }

    /// Host address of `len` bytes within one page to be written; `None`: MMIO or ROM.
    fn bulk_target(&mut self, linear: u64, len: usize) -> Exec<Option<Target>> {
        if let Some(pointer) = self.hot_write(linear, len) {
            return Ok(Some(Target { pointer, watch: false }));
        }
        Ok(match self.reach(linear, Access::WRITE)? {
            Reached::Ram(pointer) => Some(Target { pointer, watch: true }),
            Reached::Mmio(_) => None,
        })
    }

    fn bulk_stored(&mut self, to: Target, linear: u64, len: usize) {
        if to.watch {
            self.ram_accessed(to.pointer, linear, len, true);
            let page = self.shared.memory.index_of(to.pointer);
            if self.shared.code().written(page, (linear & 0xfff) as usize, len) {
                self.counters.blocks_invalidated += 1;
            }
            if self.debugger.watching {
                self.debug_access(linear, len as u64, true);
                self.debug_stored(page, linear & 0xfff, len as u64);
            }
        }
    }

    /// Copy `count` elements of `size` bytes upwards, one after the other as REP MOVS does, so that an overlap repeats what was
    /// just written. Neither side may cross a page. `false`: nothing done, one side is not RAM.
    pub fn bulk_copy(&mut self, from: u64, to: u64, size: usize, count: usize) -> Exec<bool> {
        let len = size * count;
        debug_assert!((from & 0xfff) as usize + len <= 4096 && (to & 0xfff) as usize + len <= 4096);
        let Some(source) = self.bulk_source(from, len)? else {
            return Ok(false);
        };
        let Some(target) = self.bulk_target(to, len)? else {
            return Ok(false);
        };
        let destination = target.pointer;
        let ahead = (destination as usize).wrapping_sub(source as usize);
        if ahead == 0 || ahead >= len {
            // SAFETY: both stretches lie within a guest page. The destination does not begin inside the source, so that a
            // forward copy reads nothing it wrote, which is what `copy` (memmove) gives.
            unsafe { std::ptr::copy(source, destination, len) };
        } else {
            for i in 0..count {
                // SAFETY: element i lies within both stretches; `copy` allows an element to overlap its copy.
                unsafe { std::ptr::copy(source.add(i * size), destination.add(i * size), size) };
            }
        }
        if self.debugger.watching {
            self.debug_access(from, len as u64, false);
        }
        self.bulk_stored(target, to, len);
        Ok(true)
    }

    /// Store the low `size` bytes of `value` `count` times within one page. `false`: nothing done, it is not RAM.
    pub fn bulk_fill(&mut self, to: u64, size: usize, count: usize, value: u64) -> Exec<bool> {
        let len = size * count;
        debug_assert!((to & 0xfff) as usize + len <= 4096);
        let Some(target) = self.bulk_target(to, len)? else {
            return Ok(false);
        };
        let bytes = value.to_le_bytes();
        let bytes = &bytes[..size];
        if bytes.iter().all(|b| *b == bytes[0]) {
            // SAFETY: the stretch lies within a guest page.
            unsafe { std::ptr::write_bytes(target.pointer, bytes[0], len) };
        } else {
            for i in 0..count {
                // SAFETY: element i lies within the stretch; `bytes` is host memory.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target.pointer.add(i * size), size) };
            }
        }
        self.bulk_stored(target, to, len);
        Ok(true)
    }
}
