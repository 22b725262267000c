//! VMCS fields of the demo (SDM vol. 3, Field Encoding in VMCS), as tables that L1 writes in a loop.

use super::image::*;

/// Controls that L1 adjusts by a capability MSR: (field, wanted bits, MSR).
pub const CONTROLS: [(u32, u32, u32); 5] = [
    // Pin-based: preemption timer.
    (0x4000, 1 << 6, 0x481),
    // Primary: HLT, I/O, secondary controls.
    (0x4002, 1 << 7 | 1 << 24 | 1 << 31, 0x482),
    // Secondary: EPT, unrestricted guest.
    (0x401e, 1 << 1 | 1 << 7, 0x48b),
    // Exit: 64-bit host.
    (0x400c, 1 << 9, 0x483),
    // Entry: the guest's mode decides; see `entry_control`.
    (0x4012, 0, 0x484),
];
/// VM-entry control "IA-32e mode guest".
pub const IA32E_GUEST: u32 = 1 << 9;

pub const EXIT_REASON: u32 = 0x4402;
pub const INSTRUCTION_ERROR: u32 = 0x4400;
pub const INSTRUCTION_LENGTH: u32 = 0x440c;
pub const GUEST_PHYSICAL_ADDRESS: u32 = 0x2400;
pub const GUEST_RIP: u32 = 0x681e;
pub const PREEMPTION_TIMER: u32 = 0x482e;
pub const HOST_CR0: u32 = 0x6c00;
pub const HOST_CR3: u32 = 0x6c02;
pub const HOST_CR4: u32 = 0x6c04;
pub const HOST_RIP: u32 = 0x6c16;

/// Timer value: in units of 32 TSC ticks.
pub const TIMER: u64 = 1000;

/// What both guests have in common, and L1's own state.
pub fn common() -> Vec<(u32, u64)> {
    let mut fields = vec![
        (0x4004, 0), // exception bitmap
        (0x4006, 0),
        (0x4008, 0),
        (0x400a, 0), // CR3 targets
        (0x400e, 0), // MSR areas
        (0x4010, 0),
        (0x4014, 0),
        (0x4016, 0), // event injection
        (0x2010, 0), // TSC offset
        (0x201a, EPT as u64 | 0x1e),
        (0x2800, u64::MAX), // VMCS link pointer
        (0x2802, 0),        // IA32_DEBUGCTL
        (0x4824, 0),        // interruptibility
        (0x4826, 0),        // activity
        (0x482a, 0),        // SYSENTER
        (0x6824, 0),
        (0x6826, 0),
        (0x6822, 0),     // pending debug exceptions
        (0x681a, 0x400), // DR7
        (0x6820, 2),     // RFLAGS
        (PREEMPTION_TIMER, TIMER),
        (0x6000, 0), // CR0 and CR4 masks and shadows
        (0x6002, 0),
        (0x6004, 0),
        (0x6006, 0),
        (0x4c00, 0),
        (0x6c06, 0),
        (0x6c08, 0),
        (0x6c0a, VARIABLES as u64),
        (0x6c0c, GDT as u64),
        (0x6c0e, IDT as u64),
        (0x6c10, 0),
        (0x6c12, 0),
        (0x6c14, HOST_STACK as u64),
        // LDTR: unusable.
        (0x080c, 0),
        (0x480c, 0),
        (0x4820, 0x1_0000),
        (0x6812, 0),
    ];
    // Host selectors: ES, CS, SS, DS, FS, GS, TR.
    let selectors = [DS, CS64, DS, DS, DS, DS, TSS];
    fields.extend(selectors.iter().enumerate().map(|(i, &s)| (0x0c00 + 2 * i as u32, s as u64)));
    fields
}

/// One segment register: index in encoding order (TR is 7).
fn segment(fields: &mut Vec<(u32, u64)>, index: u32, selector: u32, base: u32, limit: u32, access: u32) {
    let at = 2 * index;
    fields.extend([
        (0x0800 + at, selector as u64),
        (0x4800 + at, limit as u64),
        (0x4814 + at, access as u64),
        (0x6806 + at, base as u64),
    ]);
}

fn tables(fields: &mut Vec<(u32, u64)>, gdt: (u32, u32), idt: (u32, u32)) {
    fields.extend([(0x6816, gdt.0 as u64), (0x4810, gdt.1 as u64), (0x6818, idt.0 as u64), (0x4812, idt.1 as u64)]);
}

/// A guest in real mode at L2_REAL, which "unrestricted guest" allows.
pub fn real() -> Vec<(u32, u64)> {
    let mut f = vec![(0x6800, 0x30), (0x6802, 0), (0x6804, 0x2000), (0x681c, 0x1000), (GUEST_RIP, 0)];
    for index in 0..6 {
        let base = match index {
            1 => L2_REAL,
            3 => TEXTS,
            _ => 0x7_0000,
        };
        segment(&mut f, index, base >> 4, base, 0xffff, if index == 1 { 0x9b } else { 0x93 });
    }
    segment(&mut f, 7, 0, 0, 0xffff, 0x8b);
    tables(&mut f, (0, 0xffff), (0, 0x3ff));
    f
}

/// A guest in 64-bit mode at L2_LONG.
pub fn long() -> Vec<(u32, u64)> {
    let mut f = vec![
        (0x6800, 0x8000_0031),
        (0x6802, PAGE_TABLES as u64),
        (0x6804, 0x2220),
        (0x681c, L2_STACK as u64),
        (GUEST_RIP, L2_LONG as u64),
    ];
    for index in 0..6 {
        let (selector, access) = if index == 1 { (CS64, 0xa09b) } else { (DS, 0xc093) };
        segment(&mut f, index, selector, 0, u32::MAX, access);
    }
    segment(&mut f, 7, TSS, VARIABLES, 0x67, 0x8b);
    tables(&mut f, (GDT, 0x7f), (IDT, 0xfff));
    f
}

/// A table as L1 reads it: field and value, 16 bytes each, and a field of all ones at the end.
pub fn bytes(fields: &[(u32, u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for &(field, value) in fields {
        out.extend((field as u64).to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    out.extend(u64::MAX.to_le_bytes());
    out
}
