//! The registers that a debugger sees, and the target description that names them.
//!
//! One table gives the numbers, the description and the access. The first features are gdb's own for x86-64
//! (gdb's features/i386/64bit-core.xml and its neighbours); `org.undervisor.system` holds everything else a hypervisor is made of.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use gdbstub::arch::{Arch, RegId, Registers};
use undervisor_core::bits::{Cr0, Cr4, Efer};
use undervisor_core::{CpuState, SegReg, Segment, regs};
use undervisor_cpu::Cpu;

/// What a register is, as the code that reads and writes it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gpr(u8),
    Rip,
    Flags,
    Selector(SegReg),
    Base(SegReg),
    Limit(SegReg),
    Access(SegReg),
    /// ST(i).
    St(u8),
    /// fctrl, fstat, ftag, fiseg, fioff, foseg, fooff, fop.
    X87(u8),
    Xmm(u8),
    Mxcsr,
    YmmHigh(u8),
    Cr(u8),
    Efer,
    Xcr0,
    /// DR0–DR3, DR6, DR7.
    Dr(u8),
    /// 0 selector, 1 base, 2 limit, 3 access rights.
    Ldtr(u8),
    Tr(u8),
    /// 1 base, 2 limit.
    Gdtr(u8),
    Idtr(u8),
    Cpl,
    Level,
    Msr(u32),
}

/// A row of the table.
pub struct Row {
    pub name: String,
    pub bits: u16,
    kind_name: &'static str,
    feature: &'static str,
    pub kind: Kind,
}

const CORE: &str = "org.gnu.gdb.i386.core";
const SSE: &str = "org.gnu.gdb.i386.sse";
const AVX: &str = "org.gnu.gdb.i386.avx";
const SEGMENTS: &str = "org.gnu.gdb.i386.segments";
const SYSTEM: &str = "org.undervisor.system";

const SELECTORS: [(&str, SegReg); 6] =
    [("cs", SegReg::Cs), ("ss", SegReg::Ss), ("ds", SegReg::Ds), ("es", SegReg::Es), ("fs", SegReg::Fs), ("gs", SegReg::Gs)];

/// MSRs by the names that Linux and the manuals use.
pub const MSRS: [(&str, u32); 29] = [
    ("tsc", 0x10),
    ("apic_base", 0x1b),
    ("memory_ctrl", 0x33),
    ("feature_control", 0x3a),
    ("tsc_adjust", 0x3b),
    ("spec_ctrl", 0x48),
    ("umwait_control", 0xe1),
    ("sysenter_cs", 0x174),
    ("sysenter_esp", 0x175),
    ("sysenter_eip", 0x176),
    ("misc_enable", 0x1a0),
    ("debugctl", 0x1d9),
    ("last_branch_from", 0x1db),
    ("last_branch_to", 0x1dc),
    ("pat", 0x277),
    ("mtrr_def_type", 0x2ff),
    ("vmx_basic", 0x480),
    ("xss", 0xda0),
    ("star", 0xc000_0081),
    ("lstar", 0xc000_0082),
    ("cstar", 0xc000_0083),
    ("fmask", 0xc000_0084),
    ("kernel_gs_base", 0xc000_0102),
    ("tsc_aux", 0xc000_0103),
    ("syscfg", 0xc001_0010),
    ("hwcr", 0xc001_0015),
    ("vm_cr", 0xc001_0114),
    ("ignne", 0xc001_0115),
    ("vm_hsave_pa", 0xc001_0117),
];

/// Every register, in the order of the debugger's numbers.
pub static TABLE: LazyLock<Vec<Row>> = LazyLock::new(table);

fn table() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |feature, name: &str, bits, kind_name, kind| {
        rows.push(Row { name: name.to_owned(), bits, kind_name, feature, kind });
    };
    let general = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"];
    let order = [regs::RAX, regs::RBX, regs::RCX, regs::RDX, regs::RSI, regs::RDI, regs::RBP, regs::RSP];
    for (name, number) in general.iter().zip(order) {
        let kind_name = if matches!(*name, "rbp" | "rsp") { "data_ptr" } else { "int64" };
        row(CORE, name, 64, kind_name, Kind::Gpr(number));
    }
    (8..16).for_each(|n| row(CORE, &format!("r{n}"), 64, "int64", Kind::Gpr(n)));
    row(CORE, "rip", 64, "code_ptr", Kind::Rip);
    row(CORE, "eflags", 32, "i386_eflags", Kind::Flags);
    SELECTORS.iter().for_each(|&(name, s)| row(CORE, name, 32, "int32", Kind::Selector(s)));
    (0..8).for_each(|n| row(CORE, &format!("st{n}"), 80, "i387_ext", Kind::St(n)));
    let x87 = ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"];
    x87.iter().zip(0..).for_each(|(name, n)| row(CORE, name, 32, "int", Kind::X87(n)));
    (0..16).for_each(|n| row(SSE, &format!("xmm{n}"), 128, "vec128", Kind::Xmm(n)));
    row(SSE, "mxcsr", 32, "i386_mxcsr", Kind::Mxcsr);
    (0..16).for_each(|n| row(AVX, &format!("ymm{n}h"), 128, "uint128", Kind::YmmHigh(n)));
    row(SEGMENTS, "fs_base", 64, "int", Kind::Base(SegReg::Fs));
    row(SEGMENTS, "gs_base", 64, "int", Kind::Base(SegReg::Gs));
    [0, 2, 3, 4, 8].iter().for_each(|&n| row(SYSTEM, &format!("cr{n}"), 64, "int64", Kind::Cr(n)));
    row(SYSTEM, "efer", 64, "int64", Kind::Efer);
    row(SYSTEM, "xcr0", 64, "int64", Kind::Xcr0);
    [0, 1, 2, 3, 6, 7].iter().for_each(|&n| row(SYSTEM, &format!("dr{n}"), 64, "int64", Kind::Dr(n)));
    for (name, s) in SELECTORS {
        if !matches!(s, SegReg::Fs | SegReg::Gs) {
            row(SYSTEM, &format!("{name}_base"), 64, "int64", Kind::Base(s));
        }
        row(SYSTEM, &format!("{name}_limit"), 32, "int32", Kind::Limit(s));
        row(SYSTEM, &format!("{name}_access"), 32, "int32", Kind::Access(s));
    }
    for (i, (part, bits)) in [("", 32), ("_base", 64), ("_limit", 32), ("_access", 32)].into_iter().enumerate() {
        let kind_name = if bits == 64 { "int64" } else { "int32" };
        row(SYSTEM, &format!("ldtr{part}"), bits, kind_name, Kind::Ldtr(i as u8));
        row(SYSTEM, &format!("tr{part}"), bits, kind_name, Kind::Tr(i as u8));
        if matches!(i, 1 | 2) {
            row(SYSTEM, &format!("gdtr{part}"), bits, kind_name, Kind::Gdtr(i as u8));
            row(SYSTEM, &format!("idtr{part}"), bits, kind_name, Kind::Idtr(i as u8));
        }
    }
    row(SYSTEM, "cpl", 32, "int32", Kind::Cpl);
    row(SYSTEM, "level", 32, "int32", Kind::Level);
    MSRS.iter().for_each(|&(name, number)| row(SYSTEM, &format!("msr_{name}"), 64, "int64", Kind::Msr(number)));
    rows
}

const EFLAGS: &str = "<flags id=\"i386_eflags\" size=\"4\"><field name=\"CF\" start=\"0\" end=\"0\"/>\
<field name=\"\" start=\"1\" end=\"1\"/><field name=\"PF\" start=\"2\" end=\"2\"/><field name=\"AF\" start=\"4\" end=\"4\"/>\
<field name=\"ZF\" start=\"6\" end=\"6\"/><field name=\"SF\" start=\"7\" end=\"7\"/><field name=\"TF\" start=\"8\" end=\"8\"/>\
<field name=\"IF\" start=\"9\" end=\"9\"/><field name=\"DF\" start=\"10\" end=\"10\"/><field name=\"OF\" start=\"11\" end=\"11\"/>\
<field name=\"NT\" start=\"14\" end=\"14\"/><field name=\"RF\" start=\"16\" end=\"16\"/><field name=\"VM\" start=\"17\" end=\"17\"/>\
<field name=\"AC\" start=\"18\" end=\"18\"/><field name=\"VIF\" start=\"19\" end=\"19\"/><field name=\"VIP\" start=\"20\" end=\"20\"/>\
<field name=\"ID\" start=\"21\" end=\"21\"/></flags>";
const VECTORS: &str = "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/><vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>\
<vector id=\"v16i8\" type=\"int8\" count=\"16\"/><vector id=\"v8i16\" type=\"int16\" count=\"8\"/>\
<vector id=\"v4i32\" type=\"int32\" count=\"4\"/><vector id=\"v2i64\" type=\"int64\" count=\"2\"/>\
<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>\
<field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/><field name=\"v4_int32\" type=\"v4i32\"/>\
<field name=\"v2_int64\" type=\"v2i64\"/><field name=\"uint128\" type=\"uint128\"/></union>\
<flags id=\"i386_mxcsr\" size=\"4\"><field name=\"IE\" start=\"0\" end=\"0\"/><field name=\"DE\" start=\"1\" end=\"1\"/>\
<field name=\"ZE\" start=\"2\" end=\"2\"/><field name=\"OE\" start=\"3\" end=\"3\"/><field name=\"UE\" start=\"4\" end=\"4\"/>\
<field name=\"PE\" start=\"5\" end=\"5\"/><field name=\"DAZ\" start=\"6\" end=\"6\"/><field name=\"IM\" start=\"7\" end=\"7\"/>\
<field name=\"DM\" start=\"8\" end=\"8\"/><field name=\"ZM\" start=\"9\" end=\"9\"/><field name=\"OM\" start=\"10\" end=\"10\"/>\
<field name=\"UM\" start=\"11\" end=\"11\"/><field name=\"PM\" start=\"12\" end=\"12\"/><field name=\"FZ\" start=\"15\" end=\"15\"/></flags>";

/// The target description.
static DESCRIPTION: LazyLock<String> = LazyLock::new(|| {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">\
         <architecture>i386:x86-64</architecture>",
    );
    let mut open = "";
    for (number, row) in TABLE.iter().enumerate() {
        if row.feature != open {
            if !open.is_empty() {
                xml.push_str("</feature>");
            }
            open = row.feature;
            let _ = write!(xml, "<feature name=\"{open}\">");
            match open {
                CORE => xml.push_str(EFLAGS),
                SSE => xml.push_str(VECTORS),
                _ => {}
            }
        }
        let group = match row.kind {
            Kind::St(_) | Kind::X87(_) => " group=\"float\"",
            Kind::Xmm(_) | Kind::Mxcsr | Kind::YmmHigh(_) => " group=\"vector\"",
            _ if open == SYSTEM => " group=\"system\"",
            _ => "",
        };
        let _ = write!(
            xml,
            "<reg name=\"{}\" bitsize=\"{}\" type=\"{}\" regnum=\"{number}\"{group}/>",
            row.name, row.bits, row.kind_name
        );
    }
    xml.push_str("</feature></target>");
    xml
});

/// x86-64 with every register of [`TABLE`].
pub enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = All;
    type BreakpointKind = usize;
    type RegId = Id;

    fn target_description_xml() -> Option<&'static str> {
        Some(&DESCRIPTION)
    }
}

/// A register's number.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub usize);

impl RegId for Id {
    fn from_raw_id(id: usize) -> Option<(Id, Option<NonZeroUsize>)> {
        let row = TABLE.get(id)?;
        Some((Id(id), NonZeroUsize::new(row.bits as usize / 8)))
    }
    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// The registers of gdb's own features, as the `g` packet has them; the others are asked for one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct All {
    pub bytes: Vec<u8>,
    pub pc: u64,
}

impl All {
    fn rows() -> impl Iterator<Item = &'static Row> {
        TABLE.iter().take_while(|row| row.feature != SYSTEM)
    }

    /// Those of a processor.
    pub fn read(&mut self, cpu: &mut Cpu) {
        self.pc = cpu.state.rip();
        self.bytes.clear();
        for row in All::rows() {
            let value = read(cpu, row.kind).unwrap_or(0);
            self.bytes.extend_from_slice(&value.to_le_bytes()[..row.bits as usize / 8]);
        }
    }

    /// Put into a processor those that differ from what it has.
    pub fn write(&self, cpu: &mut Cpu) -> Result<(), ()> {
        let mut at = 0;
        for row in All::rows() {
            let size = row.bits as usize / 8;
            let Some(bytes) = self.bytes.get(at..at + size) else { return Err(()) };
            at += size;
            let value = number(bytes);
            if read(cpu, row.kind) != Some(value) {
                write(cpu, row.kind, value)?;
            }
        }
        Ok(())
    }
}

impl Registers for All {
    type ProgramCounter = u64;
    fn pc(&self) -> u64 {
        self.pc
    }
    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.bytes.iter().for_each(|&b| write_byte(Some(b)));
    }
    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.bytes = bytes.to_vec();
        Ok(())
    }
}

/// A little-endian number of up to 16 bytes.
pub fn number(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).rev().fold(0, |n, &b| n << 8 | b as u128)
}

/// Two-bit tags from the abridged ones: 0 valid, 1 zero, 2 special, 3 empty.
fn full_tags(cpu: &Cpu) -> u16 {
    let x = &cpu.state.x87;
    (0..8).fold(0, |word, i| {
        let v = x.st[i];
        let tag = match v.sign_exponent & 0x7fff {
            _ if x.tags >> i & 1 == 0 => 3,
            0 if v.mantissa == 0 => 1,
            0 | 0x7fff => 2,
            _ if v.mantissa >> 63 == 0 => 2,
            _ => 0,
        };
        word | tag << (2 * i)
    })
}

fn change(s: &mut CpuState, r: SegReg, how: impl FnOnce(&mut Segment)) {
    let mut segment = *s.segment(r);
    how(&mut segment);
    s.set_segment(r, segment);
}

fn st_index(cpu: &Cpu, i: u8) -> usize {
    (cpu.state.x87.status >> 11 & 7) as usize + i as usize & 7
}

/// A register's value; `None` if this processor does not have it.
pub fn read(cpu: &mut Cpu, kind: Kind) -> Option<u128> {
    let s = &cpu.state;
    let system = |seg: &Segment, part: u8| match part {
        0 => seg.selector as u64,
        1 => seg.base,
        2 => seg.limit as u64,
        _ => seg.access as u64,
    };
    let value = match kind {
        Kind::Gpr(n) => s.gpr(n),
        Kind::Rip => s.rip(),
        Kind::Flags => s.rflags(),
        Kind::Selector(r) => s.segment(r).selector as u64,
        Kind::Base(r) => s.segment(r).base,
        Kind::Limit(r) => s.segment(r).limit as u64,
        Kind::Access(r) => s.segment(r).access as u64,
        Kind::St(i) => {
            let v = s.x87.st[st_index(cpu, i)];
            return Some(v.mantissa as u128 | (v.sign_exponent as u128) << 64);
        }
        Kind::X87(n) => match n {
            0 => s.x87.control as u64,
            1 => s.x87.status as u64,
            2 => full_tags(cpu) as u64,
            3 => s.x87.instruction_selector as u64,
            4 => s.x87.instruction_pointer & 0xffff_ffff,
            5 => s.x87.data_selector as u64,
            6 => s.x87.data_pointer & 0xffff_ffff,
            _ => s.x87.opcode as u64,
        },
        Kind::Xmm(n) => {
            let v = s.vec[n as usize & 31];
            return Some(v[0] as u128 | (v[1] as u128) << 64);
        }
        Kind::YmmHigh(n) => {
            let v = s.vec[n as usize & 31];
            return Some(v[2] as u128 | (v[3] as u128) << 64);
        }
        Kind::Mxcsr => s.mxcsr as u64,
        Kind::Cr(0) => s.cr0.bits(),
        Kind::Cr(2) => s.cr2,
        Kind::Cr(3) => s.cr3,
        Kind::Cr(4) => s.cr4.bits(),
        Kind::Cr(_) => cpu.apic.cr8() as u64,
        Kind::Efer => s.efer.bits(),
        Kind::Xcr0 => s.xcr0,
        Kind::Dr(6) => s.dr6,
        Kind::Dr(7) => s.dr7,
        Kind::Dr(n) => s.dr[n as usize & 3],
        Kind::Ldtr(part) => system(&s.ldtr, part),
        Kind::Tr(part) => system(&s.tr, part),
        Kind::Gdtr(1) => s.gdtr.base,
        Kind::Gdtr(_) => s.gdtr.limit as u64,
        Kind::Idtr(1) => s.idtr.base,
        Kind::Idtr(_) => s.idtr.limit as u64,
        Kind::Cpl => s.cpl as u64,
        Kind::Level => cpu.level() as u64,
        Kind::Msr(n) => cpu.read_msr(n).ok()?,
    };
    Some(value as u128)
}

/// Change a register. What would need descriptors loaded or the level switched is refused.
pub fn write(cpu: &mut Cpu, kind: Kind, value: u128) -> Result<(), ()> {
    let word = value as u64;
    let s = &mut cpu.state;
    match kind {
        Kind::Gpr(n) => s.set_gpr(n, word),
        Kind::Rip => s.set_rip(word),
        Kind::Flags => s.set_rflags(word),
        Kind::Selector(r) if !s.protected() || s.virtual_8086() => change(s, r, |seg| {
            seg.selector = word as u16;
            seg.base = (word & 0xffff) << 4;
        }),
        Kind::Selector(r) => change(s, r, |seg| seg.selector = word as u16),
        Kind::Base(r) => change(s, r, |seg| seg.base = word),
        Kind::Limit(r) => change(s, r, |seg| seg.limit = word as u32),
        Kind::Access(r) => change(s, r, |seg| seg.access = word as u32),
        Kind::St(i) => {
            let at = st_index(cpu, i);
            cpu.state.x87.st[at] = undervisor_core::F80 { mantissa: word, sign_exponent: (value >> 64) as u16 };
            return Ok(());
        }
        Kind::X87(0) => s.x87.control = word as u16,
        Kind::X87(1) => s.x87.status = word as u16,
        Kind::X87(2) => s.x87.tags = (0..8).fold(0, |tags, i| tags | u8::from(word >> (2 * i) & 3 != 3) << i),
        Kind::X87(_) => {}
        Kind::Xmm(n) => s.vec[n as usize & 31][..2].copy_from_slice(&[word, (value >> 64) as u64]),
        Kind::YmmHigh(n) => s.vec[n as usize & 31][2..4].copy_from_slice(&[word, (value >> 64) as u64]),
        Kind::Mxcsr => s.mxcsr = word as u32 & 0xffff,
        Kind::Cr(0) => s.cr0 = Cr0::from_bits_retain(word),
        Kind::Cr(2) => s.cr2 = word,
        Kind::Cr(3) => {
            s.cr3 = word;
            cpu.cr3_written(false);
        }
        Kind::Cr(4) => s.cr4 = Cr4::from_bits_retain(word),
        Kind::Efer => s.efer = Efer::from_bits_retain(word),
        Kind::Dr(6) => s.dr6 = word,
        Kind::Dr(7) => cpu.write_dr7(word),
        Kind::Dr(n) => s.dr[n as usize & 3] = word,
        Kind::Gdtr(1) => s.gdtr.base = word,
        Kind::Gdtr(_) => s.gdtr.limit = word as u16,
        Kind::Idtr(1) => s.idtr.base = word,
        Kind::Idtr(_) => s.idtr.limit = word as u16,
        Kind::Msr(n) => {
            cpu.write_msr(n, word).map_err(|_| ())?;
        }
        Kind::Cr(_) | Kind::Xcr0 | Kind::Ldtr(_) | Kind::Tr(_) | Kind::Cpl | Kind::Level => return Err(()),
    }
    cpu.mode_changed();
    cpu.attend(undervisor_cpu::cpu::attention::INTERRUPT | undervisor_cpu::cpu::attention::DEBUG);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes_as_gdb_has_them() {
        let number = |name: &str| TABLE.iter().position(|r| r.name == name).unwrap();
        // gdb's amd64 numbering: registers from rax, then segments, x87, SSE.
        assert_eq!((number("rax"), number("rip"), number("eflags"), number("gs")), (0, 16, 17, 23));
        assert_eq!((number("st0"), number("fop"), number("xmm0"), number("mxcsr")), (24, 39, 40, 56));
        let mut names: Vec<&str> = TABLE.iter().map(|r| r.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]));
        assert!(DESCRIPTION.contains("<reg name=\"fs_base\" bitsize=\"64\" type=\"int\" regnum=\"73\"/>"));
    }
}
