//! The environment in memory: FNSTENV, FLDENV, FNSAVE, FRSTOR in their four formats
//! (SDM vol. 1, Saving the x87 FPU's State with FSTENV/FNSTENV and FSAVE/FNSAVE).

use iced_x86::{Code, Instruction};
use undervisor_core::{F80, X87};

use super::status;
use crate::cpu::{Cpu, Exec};
use crate::float::{Class, F80Format, Format};

/// The full tag word: valid 0, zero 1, special 2, empty 3.
pub fn full_tags(x: &X87) -> u16 {
    (0..8).fold(0, |tags, i| {
        let tag = if x.tags >> i & 1 == 0 {
            3
        } else {
            let u = F80Format::unpack(x.st[i]);
            match u.class {
                Class::Zero => 1,
                Class::Finite if !u.denormal => 0,
                _ => 2,
            }
        };
        tags | tag << (2 * i)
    })
}

/// The abridged tags of a full tag word: only empty matters, the rest is worked out again.
pub fn set_full_tags(tags: u16) -> u8 {
    (0..8).fold(0, |abridged, i| abridged | u8::from(tags >> (2 * i) & 3 != 3) << i)
}

/// How an environment lies in memory.
#[derive(Clone, Copy)]
struct Layout {
    wide: bool,
    /// Real-address or virtual-8086 mode.
    real: bool,
}

impl Layout {
    fn of(cpu: &Cpu, insn: &Instruction) -> Layout {
        let wide =
            matches!(insn.code(), Code::Fnstenv_m28byte | Code::Fldenv_m28byte | Code::Fnsave_m108byte | Code::Frstor_m108byte);
        Layout { wide, real: !cpu.state.protected() || cpu.state.virtual_8086() }
    }
    fn size(self) -> usize {
        if self.wide { 28 } else { 14 }
    }
}

fn store(x: &X87, layout: Layout, no_selectors: bool) -> [u8; 28] {
    let ip = x.instruction_pointer as u32;
    let dp = x.data_pointer as u32;
    // Processors that say so in CPUID save no selectors.
    let (cs, ds) = if no_selectors { (0, 0) } else { (x.instruction_selector as u32, x.data_selector as u32) };
    let opcode = x.opcode as u32 & 0x7ff;
    let head = [x.control as u32, x.status as u32, full_tags(x) as u32];
    let pointers = match (layout.wide, layout.real) {
        (true, false) => [ip, cs | opcode << 16, dp, ds | 0xffff_0000],
        (true, true) => [ip & 0xffff | 0xffff_0000, opcode | (ip >> 16) << 12, dp & 0xffff | 0xffff_0000, (dp >> 16) << 12],
        (false, false) => [ip, cs, dp, ds],
        (false, true) => [ip, opcode | (ip >> 16 & 15) << 12, dp, (dp >> 16 & 15) << 12],
    };
    let mut out = [0; 28];
    for (i, v) in head.iter().chain(&pointers).enumerate() {
        if layout.wide {
            let v = if i < 3 { v | 0xffff_0000 } else { *v };
            out[4 * i..4 * i + 4].copy_from_slice(&v.to_le_bytes());
        } else {
            out[2 * i..2 * i + 2].copy_from_slice(&(*v as u16).to_le_bytes());
        }
    }
    out
}

fn load(cpu: &mut Cpu, layout: Layout, bytes: &[u8; 28]) {
    let word = |i: usize| {
        if layout.wide {
            u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        } else {
            u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]) as u32
        }
    };
    let x = &mut cpu.state.x87;
    x.status = word(1) as u16;
    x.tags = set_full_tags(word(2) as u16);
    let (a, b, c, d) = (word(3), word(4), word(5), word(6));
    match (layout.wide, layout.real) {
        (wide, false) => {
            x.instruction_pointer = a as u64;
            x.instruction_selector = b as u16;
            if wide {
                x.opcode = (b >> 16) as u16 & 0x7ff;
            }
            x.data_pointer = c as u64;
            x.data_selector = d as u16;
        }
        (_, true) => {
            let high = if layout.wide { 0xffff } else { 15 };
            x.instruction_pointer = (a & 0xffff | (b >> 12 & high) << 16) as u64;
            x.opcode = b as u16 & 0x7ff;
            x.data_pointer = (c & 0xffff | (d >> 12 & high) << 16) as u64;
            x.instruction_selector = 0;
            x.data_selector = 0;
        }
    }
    cpu.set_x87_control(word(0) as u16);
}

pub fn fnstenv(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_available()?;
    let layout = Layout::of(cpu, insn);
    let linear = cpu.effective_linear(insn, layout.size(), true)?;
    let bytes = store(&cpu.state.x87, layout, cpu.x87_no_selectors());
    cpu.write_bytes(linear, &bytes[..layout.size()])?;
    cpu.state.x87.control |= 0x3f;
    cpu.state.x87.status &= !(status::ES | status::B);
    Ok(())
}

pub fn fldenv(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let layout = Layout::of(cpu, insn);
    let linear = cpu.effective_linear(insn, layout.size(), false)?;
    let mut bytes = [0; 28];
    cpu.read_bytes(linear, &mut bytes[..layout.size()])?;
    load(cpu, layout, &bytes);
    Ok(())
}

pub fn fnsave(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_available()?;
    let layout = Layout::of(cpu, insn);
    let size = layout.size();
    let linear = cpu.effective_linear(insn, size + 80, true)?;
    let mut bytes = [0; 108];
    bytes[..size].copy_from_slice(&store(&cpu.state.x87, layout, cpu.x87_no_selectors())[..size]);
    for i in 0..8 {
        let v = cpu.st(i);
        bytes[size + 10 * i..size + 10 * i + 8].copy_from_slice(&v.mantissa.to_le_bytes());
        bytes[size + 10 * i + 8..size + 10 * i + 10].copy_from_slice(&v.sign_exponent.to_le_bytes());
    }
    cpu.write_bytes(linear, &bytes[..size + 80])?;
    cpu.x87_init();
    Ok(())
}

pub fn frstor(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    cpu.x87_enter()?;
    let layout = Layout::of(cpu, insn);
    let size = layout.size();
    let linear = cpu.effective_linear(insn, size + 80, false)?;
    let mut bytes = [0; 108];
    cpu.read_bytes(linear, &mut bytes[..size + 80])?;
    let mut environment = [0; 28];
    environment[..size].copy_from_slice(&bytes[..size]);
    load(cpu, layout, &environment);
    for (i, b) in bytes[size..size + 80].chunks_exact(10).enumerate() {
        let mut wide = [0; 16];
        wide[..10].copy_from_slice(b);
        let wide = u128::from_le_bytes(wide);
        let n = cpu.st_index(i);
        cpu.state.x87.st[n] = F80 { mantissa: wide as u64, sign_exponent: (wide >> 64) as u16 };
    }
    Ok(())
}
