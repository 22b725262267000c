//! Debug registers: breakpoints on code, data and I/O (SDM vol. 3, Debug Registers; Debug Exceptions).

use undervisor_core::{Cr4, Dr7};

use crate::cpu::{Cpu, attention};
use crate::paging::Access;

/// Which kinds of breakpoint are enabled, kept so that accesses need not look at DR7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breakpoints {
    pub code: bool,
    pub data: bool,
    pub io: bool,
}

/// DR7's R/W field of a breakpoint.
mod kind {
    pub const EXECUTE: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const IO: u64 = 2;
}

/// A breakpoint as DR7 describes it.
#[derive(Clone, Copy)]
struct Breakpoint {
    number: usize,
    kind: u64,
    address: u64,
    /// Bytes: 1, 2, 4 or 8.
    length: u64,
}

impl Breakpoint {
    /// Whether `size` bytes from `address` on touch the breakpoint's own, which are naturally aligned.
    fn covers(&self, address: u64, size: u64) -> bool {
        let start = self.address & !(self.length - 1);
        let last = start.wrapping_add(self.length - 1);
        address <= last && address.wrapping_add(size - 1) >= start
    }
}

impl Cpu {
    fn breakpoints_of(&self) -> impl Iterator<Item = Breakpoint> + use<> {
        let (dr7, dr) = (self.state.dr7, self.state.dr);
        (0..4).filter(move |n| dr7 >> (2 * n) & 3 != 0).map(move |number| {
            let field = dr7 >> (16 + 4 * number);
            let length = [1, 2, 8, 4][(field >> 2 & 3) as usize];
            Breakpoint { number, kind: field & 3, address: dr[number], length }
        })
    }

    /// DR0–DR3, DR7 or CR4.DE has changed. (Called by `mode_changed` too, so that VM entries and exits need not.)
    #[inline]
    pub fn debug_changed(&mut self) {
        let off = self.state.dr7 & Dr7::ENABLES.bits() == 0 && self.state.msrs.debugctl & 1 == 0;
        if !off || self.breakpoints != Breakpoints::default() {
            self.debug_changed_slowly();
        }
    }

    #[inline(never)]
    fn debug_changed_slowly(&mut self) {
        let mut now = Breakpoints::default();
        if self.state.dr7 & Dr7::ENABLES.bits() != 0 {
            let de = self.state.cr4.contains(Cr4::DE);
            for b in self.breakpoints_of() {
                match b.kind {
                    kind::EXECUTE => now.code = true,
                    kind::IO => now.io |= de,
                    _ => now.data = true,
                }
            }
        }
        if now != self.breakpoints {
            self.breakpoints = now;
            self.privilege_changed();
        }
        if now.code || now.data || now.io || self.state.msrs.debugctl & 1 != 0 {
            self.attend(attention::DEBUG);
        }
    }

    /// MOV to DR7.
    pub fn write_dr7(&mut self, value: u64) {
        self.state.dr7 = value & 0xffff_23ff | Dr7::FIXED.bits();
        self.debug_changed();
    }

    /// A data access took place on the slow path: data breakpoints. All of them trap after the instruction.
    #[inline]
    pub fn data_accessed(&mut self, linear: u64, size: usize, access: Access) {
        if self.breakpoints.data && !access.fetch {
            self.check_data_breakpoints(linear, size as u64, access.write);
        }
        if self.debugger.watching && !access.fetch {
            self.debug_access(linear, size as u64, access.write);
        }
    }

    #[cold]
    fn check_data_breakpoints(&mut self, linear: u64, size: u64, write: bool) {
        let hit = self
            .breakpoints_of()
            .filter(|b| (b.kind == 3 || (b.kind == kind::WRITE && write)) && b.covers(linear, size))
            .fold(0, |bits, b| bits | 1 << b.number);
        if hit != 0 {
            self.pend_debug(hit);
        }
    }

    /// A port was accessed: I/O breakpoints.
    #[inline]
    pub fn io_accessed(&mut self, port: u16, size: usize) {
        if self.breakpoints.io {
            let hit = self
                .breakpoints_of()
                .filter(|b| b.kind == kind::IO && b.covers(port as u64, size as u64))
                .fold(0, |bits, b| bits | 1 << b.number);
            if hit != 0 {
                self.pend_debug(hit);
            }
        }
    }

    /// A debug trap is due at the next boundary (a later one if MOV SS blocks it). `bits`: DR6 format.
    pub fn pend_debug(&mut self, bits: u64) {
        self.state.pending_debug |= bits;
        self.attend(attention::DEBUG);
    }

    /// The instruction breakpoints that match at linear address `linear`, in DR6 format.
    pub fn code_breakpoints_at(&self, linear: u64) -> u64 {
        self.breakpoints_of().filter(|b| b.kind == kind::EXECUTE && b.address == linear).fold(0, |bits, b| bits | 1 << b.number)
    }

    /// Whether any instruction breakpoint lies in the page of `linear`.
    pub fn code_breakpoint_near(&self, linear: u64) -> bool {
        self.breakpoints_of().any(|b| b.kind == kind::EXECUTE && b.address >> 12 == linear >> 12)
    }
}
