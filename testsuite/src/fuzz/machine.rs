//! Any code on a whole machine, devices and all.

use undervisor_core::{Cr0, Cr4, Efer, SegReg, Segment, TableReg};
use undervisor_machine::{Host, Idle, Image, Machine, MachineConfig, Model};

use super::Bytes;

/// Instructions that an input may run.
const INSTRUCTIONS: u64 = 20_000;
pub const TABLES: u64 = 0x1_0000;
const IDT: u64 = 0x2_0000;
const CODE: u64 = 0x8000;

/// Ends machines that only wait.
pub struct Impatient(pub u32);

impl Host for Impatient {
    fn idle(&mut self, nanoseconds: Option<u64>) -> Idle {
        self.0 = self.0.saturating_sub(1);
        match nanoseconds {
            Some(n) if self.0 > 0 && n < 1 << 40 => Idle::Jump,
            _ => Idle::Stop,
        }
    }
}

pub fn model(byte: u8) -> Model {
    match byte & 3 {
        0 => Model::default(),
        1 => Model::max_amd(),
        2 => Model::max_intel(),
        _ => Model::epyc_milan(),
    }
}

fn build(model: Model) -> Option<Machine> {
    // The BIOS's work is done by loading something.
    let image = Image::new("fuzz", vec![0x90; 16]);
    MachineConfig::new().memory(2 << 20).model(model).flat(image, CODE as u32).instruction_limit(INSTRUCTIONS).build().ok()
}

/// Flat segments and identity paging for 32-bit or 64-bit code.
fn protected(machine: &mut Machine, long: bool, user: bool) {
    let shared = machine.cpus()[0].shared.clone();
    for (at, entry) in [(0, TABLES + 0x1007), (0x1000, TABLES + 0x2007), (0x2000, 0xe7)] {
        let _ = shared.write_bytes(TABLES + at, &entry.to_le_bytes());
    }
    let cpu = &mut machine.cpus_mut()[0];
    let s = &mut cpu.state;
    s.cr0 = Cr0::PE | Cr0::ET | Cr0::NE | Cr0::WP;
    if long {
        s.cr0 |= Cr0::PG;
        s.cr3 = TABLES;
        s.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXSAVE | Cr4::OSXMMEXCPT;
        s.efer = Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE;
    }
    let dpl = if user { 0x60 } else { 0 };
    for r in SegReg::ALL {
        let (selector, access) = match r {
            SegReg::Cs if long => (8, 0xa09b),
            SegReg::Cs => (8, 0xc09b),
            _ => (16, 0xc093),
        };
        s.set_segment(r, Segment { selector: selector | dpl as u16 >> 5, access: access | dpl, limit: u32::MAX, base: 0 });
    }
    s.cpl = if user { 3 } else { 0 };
    s.tr = Segment { selector: 24, access: 0x8b, limit: 0x67, base: 0x7000 };
    s.idtr = TableReg { base: IDT, limit: 0xfff };
    s.gdtr = TableReg { base: IDT + 0x1000, limit: 0xff };
    s.set_gpr(undervisor_core::regs::RSP, 0x6000);
    s.set_rip(CODE);
    cpu.mode_changed();
}

/// First byte: model; second: mode; then registers; the rest is code, and memory after it.
pub fn execute(data: &[u8]) {
    let mut input = Bytes(data);
    let (which, mode) = (input.byte(), input.byte());
    let Some(mut machine) = build(model(which)) else { return };
    match mode & 7 {
        0 | 1 => {}
        2 => protected(&mut machine, false, false),
        3 => protected(&mut machine, false, true),
        4..=6 => protected(&mut machine, true, false),
        _ => protected(&mut machine, true, true),
    }
    let shared = machine.cpus()[0].shared.clone();
    for register in 0..16 {
        if mode & 0x80 != 0 && register != 4 {
            machine.cpus_mut()[0].state.set_gpr(register, input.word());
        }
    }
    let code = input.0;
    let _ = shared.write_bytes(CODE, code);
    if mode & 0x40 != 0 {
        // Gates and descriptors made of the same bytes.
        let _ = shared.write_bytes(IDT, &code[..code.len().min(0x1100)]);
    }
    // Time, not only instructions: faults without end retire nothing.
    let mut host = Impatient(20);
    for _ in 0..2 {
        let until = machine.progress().time + 2 * INSTRUCTIONS;
        if machine.run_until(until, &mut host).is_some() {
            break;
        }
    }
}

/// Instructions of many kinds, in each mode.
pub fn seeds() -> Vec<Vec<u8>> {
    let code: [&[u8]; 8] = [
        &[0x0f, 0xa2, 0x0f, 0x31, 0x0f, 0x01, 0xd0, 0xf4],
        &[0xf3, 0xa4, 0xf3, 0xab, 0xf2, 0xae, 0x6c, 0x6e, 0xcf],
        &[0xe6, 0x20, 0xe4, 0x61, 0xb0, 0x34, 0xe6, 0x43, 0xee, 0xec, 0xef, 0xed],
        &[0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xe0, 0x0f, 0x30, 0x0f, 0x32, 0x0f, 0x01, 0xf8, 0x0f, 0x09],
        &[0x66, 0x0f, 0x58, 0xc1, 0x0f, 0x28, 0x07, 0xc5, 0xfc, 0x58, 0xc2, 0xd9, 0xfe, 0xdd, 0x07, 0x0f, 0xae, 0x07],
        &[0x48, 0x89, 0x07, 0x48, 0x8b, 0x07, 0xf0, 0x48, 0x0f, 0xb1, 0x0f, 0xff, 0xd0, 0xc3],
        &[0x9a, 0, 0, 0, 0, 8, 0, 0xcd, 0x80, 0xcc, 0xf1, 0xce, 0xea, 0, 0x80, 0, 0, 8, 0],
        &[0x0f, 0x00, 0xd8, 0x0f, 0x01, 0x17, 0x0f, 0x01, 0x1f, 0x8e, 0xd0, 0xfb, 0xf4, 0x9d, 0xeb, 0xee],
    ];
    let mut out = Vec::new();
    for (i, code) in code.iter().enumerate() {
        for mode in [0u8, 2, 4, 7, 0x84, 0xc4] {
            let mut seed = vec![i as u8, mode];
            if mode & 0x80 != 0 {
                (0..15u64).for_each(|n| seed.extend((0x9000 + 0x40 * n).to_le_bytes()));
            }
            seed.extend_from_slice(code);
            seed.extend_from_slice(code);
            out.push(seed);
        }
    }
    out
}
