//! How the first processor begins.

use undervisor_core::{Cr0, Cr4, Efer, SegReg, Segment, TableReg, regs};
use undervisor_cpu::Cpu;
use undervisor_devices::DmaExt;

use crate::memory::Ram;

/// A state in which a kernel is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The reset state.
    Reset,
    /// Real mode, interrupts off.
    Real { cs: u16, ip: u16, edx: u32 },
    /// Protected mode, flat 4 GiB segments, paging and interrupts off.
    Flat32 { eip: u32, eax: u32, ebx: u32, esi: u32, code: u16, data: u16 },
    /// 64-bit mode with the first 4 GiB mapped one to one.
    Long { rip: u64, rsi: u64, code: u16, data: u16 },
}

/// Where [`Entry::Long`] keeps its tables: a PML4, a PDPT, four page directories.
const PAGE_TABLES: u64 = 0x9000;
/// Descriptor table for the flat entries.
const GDT: u64 = 0x6000;
/// Stack for entries that have no rule about it.
const STACK: u64 = 0x7000;

/// Identity map of 4 GiB with 2 MiB pages.
fn write_page_tables(ram: &Ram) {
    let (pdpt, pd) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    // Below 1 MiB, which every machine has.
    let _ = ram.write_u64(PAGE_TABLES, pdpt | 3);
    for i in 0..4 {
        let _ = ram.write_u64(pdpt + 8 * i, (pd + 0x1000 * i) | 3);
    }
    for i in 0..2048 {
        let _ = ram.write_u64(pd + 8 * i, i << 21 | 0x83);
    }
}

/// A table with the descriptors that the segment registers hold.
fn write_gdt(ram: &Ram, code: u16, code_descriptor: u64, data: u16) -> TableReg {
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    for i in 0..8 {
        let _ = ram.write_u64(GDT + 8 * i, 0);
    }
    let _ = ram.write_u64(GDT + (code & 0x38) as u64, code_descriptor);
    let _ = ram.write_u64(GDT + (data & 0x38) as u64, DATA);
    TableReg { base: GDT, limit: 63 }
}

impl Entry {
    /// Write the tables it needs.
    pub fn prepare(&self, ram: &Ram) {
        match self {
            Entry::Reset | Entry::Real { .. } => {}
            Entry::Flat32 { code, data, .. } => {
                write_gdt(ram, *code, 0x00cf_9b00_0000_ffff, *data);
            }
            Entry::Long { code, data, .. } => {
                write_gdt(ram, *code, 0x00af_9b00_0000_ffff, *data);
                write_page_tables(ram);
            }
        }
    }

    /// At a firmware waking vector: real mode, with the address in CS and the low four bits in IP.
    pub fn resumed(vector: u32) -> Entry {
        Entry::Real { cs: (vector >> 4) as u16, ip: (vector & 0xf) as u16, edx: 0 }
    }

    /// Put a processor into the state.
    pub fn apply(&self, cpu: &mut Cpu) {
        let s = &mut cpu.state;
        let flat = |selector, access| Segment { selector, access, limit: u32::MAX, base: 0 };
        let mut protected = |code: Segment, data: u16| {
            for r in SegReg::ALL {
                s.set_segment(r, if r == SegReg::Cs { code } else { flat(data, 0xc093) });
            }
            s.gdtr = TableReg { base: GDT, limit: 63 };
            s.idtr = TableReg::default();
            s.cr0 = Cr0::PE | Cr0::ET;
        };
        match *self {
            Entry::Reset => return,
            Entry::Real { cs, ip, edx } => {
                for r in SegReg::ALL {
                    s.set_segment(r, Segment::real(0, 0x93, 0xffff));
                }
                s.set_segment(SegReg::Cs, Segment::real(cs, 0x9b, 0xffff));
                s.set_rip(ip as u64);
                s.set_gpr(regs::RSP, STACK);
                s.set_gpr(regs::RDX, edx as u64);
                s.idtr = TableReg { base: 0, limit: 0x3ff };
                s.cr0 = Cr0::ET;
            }
            Entry::Flat32 { eip, eax, ebx, esi, code, data } => {
                protected(flat(code, 0xc09b), data);
                s.set_rip(eip as u64);
                for (r, v) in [(regs::RAX, eax), (regs::RBX, ebx), (regs::RSI, esi), (regs::RDX, 0)] {
                    s.set_gpr(r, v as u64);
                }
                s.set_gpr(regs::RSP, STACK);
            }
            Entry::Long { rip, rsi, code, data } => {
                protected(flat(code, 0xa09b), data);
                s.cr0 |= Cr0::PG;
                s.cr4 = Cr4::PAE;
                s.efer = Efer::LME | Efer::LMA;
                s.cr3 = PAGE_TABLES;
                s.set_rip(rip);
                s.set_gpr(regs::RSI, rsi);
                s.set_gpr(regs::RDX, 0);
                s.set_gpr(regs::RSP, STACK);
            }
        }
        cpu.mode_changed();
    }
}
