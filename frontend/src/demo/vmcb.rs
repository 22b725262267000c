//! VMCB fields of the demo (APM vol. 2, Layout of VMCB), as tables that L1 writes in a loop.

use super::image::*;

pub const EXIT_CODE: u32 = 0x70;
pub const EXIT_INFO_1: u32 = 0x78;
pub const EXIT_INFO_2: u32 = 0x80;
pub const NEXT_RIP: u32 = 0xc8;
pub const RIP: u32 = 0x578;
pub const RAX: u32 = 0x5f8;

/// The I/O and MSR permission maps: all ones, everything is intercepted.
pub const IO_MAP: u32 = 0x6_0000;
pub const MSR_MAP: u32 = 0x6_4000;
pub const MAP_BYTES: u32 = 0x6000;

const SVME: u64 = 1 << 12;

/// Controls, and state that both guests have in common.
pub fn common() -> Vec<(u32, u64)> {
    // Vector 3: CPUID, HLT, I/O, MSRs, shutdown. Vector 4: VMRUN, VMMCALL.
    let intercepts = 1 << 18 | 1 << 24 | 1 << 27 | 1 << 28 | 1u64 << 31;
    vec![
        (0x08, intercepts << 32),
        (0x10, 3),
        (0x40, IO_MAP as u64),
        (0x48, MSR_MAP as u64),
        (0x50, 0),
        // ASID 1, flush.
        (0x58, 1 | 1 << 32),
        (0x60, 0),
        (0x90, 1),
        (0xa8, 0),
        (0xb0, EPT as u64),
        (0x560, 0x400),
        (0x568, 0xffff_0ff0),
        (0x570, 2),
        (0x668, 0x0007_0406_0007_0406),
    ]
}

/// A segment register in VMCB order; `access` in the VMX layout.
fn segment(fields: &mut Vec<(u32, u64)>, index: u32, selector: u32, base: u32, limit: u32, access: u32) {
    let attributes = access & 0xff | access >> 4 & 0xf00;
    let at = 0x400 + 16 * index;
    fields.push((at, selector as u64 | (attributes as u64) << 16 | (limit as u64) << 32));
    fields.push((at + 8, base as u64));
}

const GDTR_INDEX: u32 = 6;
const IDTR_INDEX: u32 = 8;

/// A guest in real mode.
pub fn real() -> Vec<(u32, u64)> {
    let mut f = vec![(0x4d0, SVME), (0x548, 0), (0x550, 0), (0x558, 0x10), (RIP, AMD_CODE as u64), (0x5d8, 0x1000)];
    for index in 0..6 {
        let base = match index {
            1 => L2_REAL,
            3 => TEXTS,
            _ => 0x7_0000,
        };
        segment(&mut f, index, base >> 4, base, 0xffff, if index == 1 { 0x9b } else { 0x93 });
    }
    segment(&mut f, GDTR_INDEX, 0, 0, 0xffff, 0);
    segment(&mut f, IDTR_INDEX, 0, 0, 0x3ff, 0);
    f
}

/// A guest in 64-bit mode.
pub fn long() -> Vec<(u32, u64)> {
    let mut f = vec![
        (0x4d0, SVME | 0x500),
        (0x548, 0x220),
        (0x550, PAGE_TABLES as u64),
        (0x558, 0x8000_0031),
        (RIP, (L2_LONG + AMD_CODE) as u64),
        (0x5d8, L2_STACK as u64),
    ];
    for index in 0..6 {
        let (selector, access) = if index == 1 { (CS64, 0xa09b) } else { (DS, 0xc093) };
        segment(&mut f, index, selector, 0, u32::MAX, access);
    }
    segment(&mut f, GDTR_INDEX, 0, GDT, 0x7f, 0);
    segment(&mut f, IDTR_INDEX, 0, IDT, 0xfff, 0);
    f
}
