//! From iced's instruction table to tests: every instruction form that user code can run without branching out, with operands
//! that stay inside the data mapping.

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, FlowControl, Instruction, Mnemonic, OpCodeOperandKind as K, OpKind, Register,
    RflagsBits,
};

use super::state::{State, place};
use crate::random::Random;

/// Registers that point into the data mapping.
const POINTERS: [Register; 7] =
    [Register::RBX, Register::RSI, Register::RDI, Register::RBP, Register::RSP, Register::R12, Register::R13];
/// Registers with arbitrary contents.
const DATA: [Register; 8] =
    [Register::RAX, Register::RCX, Register::RDX, Register::R8, Register::R10, Register::R11, Register::R14, Register::R15];
/// Index register: small values.
const INDEX: Register = Register::R9;

/// A test: instructions, their bytes, and the state they start from.
#[derive(Clone)]
pub struct Test {
    pub instructions: Vec<Instruction>,
    /// Offset of each instruction's first byte; one more for the end.
    pub offsets: Vec<usize>,
    pub bytes: Vec<u8>,
    pub start: State,
    pub data: Vec<u8>,
}

/// Instructions that a process may not use, that leave the test, or whose results depend on more than the test's state.
fn excluded(code: Code) -> bool {
    use Mnemonic as M;
    let info = code.op_code();
    if !info.is_instruction()
        || !info.mode64()
        || !matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        || info.fwait()
        || code.is_privileged()
    {
        return true;
    }
    if code.flow_control() != FlowControl::Next && !code.is_jcc_short() {
        return true;
    }
    if code.is_jcc_short() && !matches!(info.op_kinds().first(), Some(K::br64_1)) {
        return true;
    }
    const FEATURES: &[CpuidFeature] = &[
        CpuidFeature::D3NOW,
        CpuidFeature::CYRIX_EMMI,
        CpuidFeature::CYRIX_FPU,
        CpuidFeature::CYRIX_D3NOW,
        CpuidFeature::MPX,
        CpuidFeature::PADLOCK_ACE,
        CpuidFeature::PADLOCK_PHE,
        CpuidFeature::PADLOCK_PMM,
        CpuidFeature::PADLOCK_RNG,
        CpuidFeature::RTM,
        CpuidFeature::CET_IBT,
        CpuidFeature::CET_SS,
        CpuidFeature::UINTR,
        CpuidFeature::KL,
        CpuidFeature::SGX1,
        CpuidFeature::XSAVE,
        CpuidFeature::XSAVEC,
        CpuidFeature::XSAVEOPT,
        CpuidFeature::XSAVES,
        CpuidFeature::FSGSBASE,
        CpuidFeature::PKU,
        CpuidFeature::CLZERO,
        CpuidFeature::MONITOR,
        CpuidFeature::MONITORX,
        CpuidFeature::WAITPKG,
        CpuidFeature::ENQCMD,
        CpuidFeature::AVX512F,
        CpuidFeature::FMA4,
        CpuidFeature::KNC,
        CpuidFeature::CYRIX_SMM,
        CpuidFeature::CYRIX_DDI,
    ];
    if code.cpuid_features().iter().any(|f| FEATURES.contains(f)) {
        return true;
    }
    matches!(
        code.mnemonic(),
        M::Cpuid
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpmc
            | M::Rdrand
            | M::Rdseed
            | M::Rdpid
            | M::Rdpru
            | M::Xgetbv
            | M::In
            | M::Out
            | M::Insb
            | M::Insw
            | M::Insd
            | M::Outsb
            | M::Outsw
            | M::Outsd
            | M::Cli
            | M::Sti
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Lfs
            | M::Lgs
            | M::Lss
            | M::Popf
            | M::Popfq
            | M::Fxrstor
            | M::Fxrstor64
            | M::Frstor
            | M::Fldenv
            | M::Mcommit
            | M::Invlpgb
            | M::Tlbsync
            | M::Storeall
            | M::Loadall
            | M::Rmpquery
            | M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Hreset
            | M::Ptwrite
            | M::Serialize
            | M::Getsec
            | M::Movdir64b
    )
}

/// Instructions whose results Intel and AMD compute with different precision: compared with a tolerance, singly.
pub fn approximate(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Rcpss
            | M::Rcpps
            | M::Rsqrtss
            | M::Rsqrtps
            | M::Vrcpss
            | M::Vrcpps
            | M::Vrsqrtss
            | M::Vrsqrtps
            | M::F2xm1
            | M::Fyl2x
            | M::Fyl2xp1
            | M::Fsin
            | M::Fcos
            | M::Fsincos
            | M::Fptan
            | M::Fpatan
    )
}

/// Memory operands whose address depends on a data register, or repetition: not for sequences.
fn single_only(insn: &Instruction) -> bool {
    use Mnemonic as M;
    insn.has_rep_prefix()
        || insn.has_repne_prefix()
        || insn.is_vsib()
        || approximate(insn.mnemonic())
        || matches!(insn.mnemonic(), M::Enter | M::Leave | M::Xlatb | M::Bt | M::Bts | M::Btr | M::Btc)
        || matches!(insn.mnemonic(), M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu)
        // What these leave undefined may reach what follows.
        || matches!(insn.mnemonic(), M::Bsf | M::Bsr | M::Shld | M::Shrd | M::Bswap)
        || insn.mnemonic() == M::Std
}

/// All instruction forms to test.
pub fn codes() -> Vec<Code> {
    let r = &mut Random::new(1);
    Code::values().filter(|&c| !excluded(c) && (c.is_jcc_short() || (0..4).any(|_| build(c, r, false).is_some()))).collect()
}

/// Makes tests.
pub struct Generator {
    codes: Vec<Code>,
    encoder: Encoder,
}

impl Generator {
    /// Only forms whose mnemonic contains one of the comma-separated words of `filter`, if any.
    pub fn new(filter: &str) -> Generator {
        let words: Vec<String> = filter.split(',').filter(|w| !w.is_empty()).map(|w| w.trim().to_lowercase()).collect();
        let chosen = |c: &Code| {
            let name = format!("{:?}", c.mnemonic()).to_lowercase();
            words.is_empty() || words.iter().any(|w| name.contains(w.as_str()))
        };
        Generator { codes: codes().into_iter().filter(chosen).collect(), encoder: Encoder::new(64) }
    }

    pub fn codes(&self) -> &[Code] {
        &self.codes
    }

    /// The test of a seed.
    pub fn test(&mut self, seed: u64, single: bool) -> Option<Test> {
        if self.codes.is_empty() {
            return None;
        }
        let r = &mut Random::new(seed);
        let count = if single || r.percent(55) { 1 } else { 2 + r.below(7) };
        let mut items: Vec<(Instruction, Vec<u8>)> = Vec::new();
        let mut undefined = 0;
        let mut at = place::TEST;
        for _ in 0..count * 3 {
            if items.len() == count {
                break;
            }
            let code = self.codes[r.below(self.codes.len())];
            if code.is_jcc_short() {
                if count == 1 || code.op_code().rflags_read_of(code) & undefined != 0 {
                    continue;
                }
                let mut insn = Instruction::default();
                insn.set_code(code);
                insn.set_op_kind(0, OpKind::NearBranch64);
                items.push((insn, vec![code.op_code().op_code() as u8, 0]));
                at += 2;
                continue;
            }
            let Some(insn) = build(code, r, count > 1) else { continue };
            if count > 1 && single_only(&insn) {
                continue;
            }
            if self.encoder.encode(&insn, at).is_err() {
                _ = self.encoder.take_buffer();
                continue;
            }
            let bytes = self.encoder.take_buffer();
            // Decode again: this is what the processor sees, with its used registers and flags.
            let insn = decode(&bytes, at);
            if insn.is_invalid() || insn.rflags_read() & undefined != 0 {
                continue;
            }
            undefined |= insn.rflags_undefined();
            at += bytes.len() as u64;
            items.push((insn, bytes));
        }
        if items.is_empty() {
            return None;
        }
        let (start, data) = start(r, &items);
        Some(assemble(items.into_iter().map(|i| (i.0, i.1)).collect(), start, data))
    }
}

/// Flags read, by code.
trait FlagsRead {
    fn rflags_read_of(&self, code: Code) -> u32;
}
impl FlagsRead for iced_x86::OpCodeInfo {
    fn rflags_read_of(&self, code: Code) -> u32 {
        let mut insn = Instruction::default();
        insn.set_code(code);
        insn.rflags_read()
    }
}

fn decode(bytes: &[u8], ip: u64) -> Instruction {
    iced_x86::Decoder::with_ip(64, bytes, ip, iced_x86::DecoderOptions::NONE).decode()
}

/// Put instructions together; short conditional jumps go to the end.
pub fn assemble(items: Vec<(Instruction, Vec<u8>)>, start: State, data: Vec<u8>) -> Test {
    let mut bytes = Vec::new();
    let mut offsets = Vec::new();
    let mut instructions = Vec::new();
    let length: usize = items.iter().map(|i| i.1.len()).sum();
    for (insn, mut b) in items {
        offsets.push(bytes.len());
        if insn.is_jcc_short() {
            b[1] = (length - bytes.len() - 2) as u8;
        }
        let insn = if insn.is_jcc_short() { decode(&b, place::TEST + bytes.len() as u64) } else { insn };
        instructions.push(insn);
        bytes.extend(b);
    }
    offsets.push(bytes.len());
    Test { instructions, offsets, bytes, start, data }
}

impl Test {
    /// The same without instruction `n`, if what is left still means the same (RIP-relative operands would not).
    pub fn without(&self, n: usize) -> Option<Test> {
        if self.instructions.len() < 2 || self.instructions.iter().skip(n + 1).any(|i| i.is_ip_rel_memory_operand()) {
            return None;
        }
        let items = (0..self.instructions.len())
            .filter(|&i| i != n)
            .map(|i| (self.instructions[i], self.bytes[self.offsets[i]..self.offsets[i + 1]].to_vec()))
            .collect();
        Some(assemble(items, self.start.clone(), self.data.clone()))
    }

    /// Index of the instruction at an address.
    pub fn index_at(&self, rip: u64) -> Option<usize> {
        let offset = rip.wrapping_sub(place::TEST) as usize;
        self.offsets[..self.instructions.len()].iter().position(|&o| o == offset)
    }

    /// Flags that some instruction leaves undefined.
    pub fn undefined_flags(&self) -> u64 {
        let bits = self.instructions.iter().fold(0, |u, i| u | undefined_flags(i));
        const MAP: [(u32, u64); 6] = [
            (RflagsBits::OF, 0x800),
            (RflagsBits::SF, 0x80),
            (RflagsBits::ZF, 0x40),
            (RflagsBits::AF, 0x10),
            (RflagsBits::CF, 1),
            (RflagsBits::PF, 4),
        ];
        MAP.iter().filter(|m| bits & m.0 != 0).fold(0, |f, m| f | m.1)
    }
}

fn undefined_flags(insn: &Instruction) -> u32 {
    let all = RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::PF | RflagsBits::CF;
    match insn.mnemonic() {
        // A double shift by more than the operand's width defines nothing.
        Mnemonic::Shld | Mnemonic::Shrd if insn.op0_register().size() == 2 || insn.memory_size().size() == 2 => all,
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar if insn.op_count() == 2 => {
            // CF after a shift of 8 or 16 bits by more than that.
            insn.rflags_undefined() | if operand_size(insn) <= 2 { RflagsBits::CF } else { 0 } | RflagsBits::OF | RflagsBits::AF
        }
        _ => insn.rflags_undefined(),
    }
}

/// Bytes of the first operand.
pub fn operand_size(insn: &Instruction) -> usize {
    if insn.op0_kind() == OpKind::Memory { insn.memory_size().size() } else { insn.op0_register().size() }
}

fn sized(full: Register, size: usize, r: &mut Random) -> Register {
    let n = full.number() as u32;
    let base = match size {
        1 => {
            // AH, CH, DH, BH now and then.
            if n < 4 && r.percent(20) {
                return [Register::AH, Register::CH, Register::DH, Register::BH][n as usize];
            }
            return [
                Register::AL,
                Register::CL,
                Register::DL,
                Register::BL,
                Register::SPL,
                Register::BPL,
                Register::SIL,
                Register::DIL,
                Register::R8L,
                Register::R9L,
                Register::R10L,
                Register::R11L,
                Register::R12L,
                Register::R13L,
                Register::R14L,
                Register::R15L,
            ][n as usize];
        }
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    base + n
}

fn gpr(size: usize, safe: bool, r: &mut Random) -> Register {
    let full = if safe || r.percent(70) { r.pick(&DATA) } else { Register::RAX + r.below(16) as u32 };
    sized(full, size, r)
}

fn memory(insn: &mut Instruction, n: u32, r: &mut Random) {
    insn.set_op_kind(n, OpKind::Memory);
    if r.percent(6) {
        insn.set_memory_base(Register::RIP);
        insn.set_memory_displ_size(8);
        insn.set_memory_displacement64(
            place::MIDDLE + 16 * r.below(32) as u64 + if r.percent(20) { r.below(16) as u64 } else { 0 },
        );
        return;
    }
    if r.percent(3) {
        insn.set_memory_displ_size(8);
        insn.set_memory_displacement64(place::MIDDLE + 16 * r.below(32) as u64);
        return;
    }
    let narrow = r.percent(4);
    let form = |reg: Register| if narrow { Register::EAX + reg.number() as u32 } else { reg };
    insn.set_memory_base(form(r.pick(&POINTERS)));
    if r.percent(25) {
        insn.set_memory_index(form(INDEX));
        insn.set_memory_index_scale(1 << r.below(4));
    }
    displacement(insn, narrow, r);
}

fn displacement(insn: &mut Instruction, narrow: bool, r: &mut Random) {
    let aligned = !r.percent(15);
    let (size, range) = match r.below(3) {
        0 => (0, 0),
        1 => (1, 112),
        _ => (if narrow { 4 } else { 8 }, 480),
    };
    let mut d = if range == 0 { 0 } else { r.below(2 * range) as i64 - range as i64 };
    if aligned {
        d &= !15;
    }
    insn.set_memory_displ_size(size);
    insn.set_memory_displacement64(if narrow { d as u32 as u64 } else { d as u64 });
}

/// An instruction of form `code` with random operands; `safe`: no pointer register as a destination.
fn build(code: Code, r: &mut Random, safe: bool) -> Option<Instruction> {
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    let mut immediates = 0;
    for (n, kind) in info.op_kinds().iter().enumerate() {
        let n = n as u32;
        let register = |insn: &mut Instruction, reg: Register| {
            insn.set_op_kind(n, OpKind::Register);
            insn.set_op_register(n, reg);
        };
        let vector = |r: &mut Random| r.below(16) as u32;
        let in_memory = r.percent(45);
        match kind {
            K::mem | K::mem_mib => memory(&mut insn, n, r),
            K::mem_offs => {
                insn.set_op_kind(n, OpKind::Memory);
                insn.set_memory_displ_size(8);
                insn.set_memory_displacement64(place::MIDDLE + r.below(512) as u64);
            }
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                let wide = matches!(kind, K::mem_vsib32y | K::mem_vsib64y);
                insn.set_op_kind(n, OpKind::Memory);
                insn.set_memory_base(r.pick(&POINTERS));
                insn.set_memory_index(if wide { Register::YMM0 } else { Register::XMM0 } + vector(r));
                insn.set_memory_index_scale(1 << r.below(4));
                displacement(&mut insn, false, r);
            }
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mm_or_mem | K::xmm_or_mem | K::ymm_or_mem
                if in_memory =>
            {
                memory(&mut insn, n, r)
            }
            K::r8_or_mem | K::r8_reg | K::r8_opcode => register(&mut insn, gpr(1, safe, r)),
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => register(&mut insn, gpr(2, safe, r)),
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => register(&mut insn, gpr(4, safe, r)),
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => register(&mut insn, gpr(8, safe, r)),
            K::mm_or_mem | K::mm_reg | K::mm_rm => register(&mut insn, Register::MM0 + r.below(8) as u32),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
                register(&mut insn, Register::XMM0 + vector(r))
            }
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
                register(&mut insn, Register::YMM0 + vector(r))
            }
            K::al => register(&mut insn, Register::AL),
            K::cl => register(&mut insn, Register::CL),
            K::ax => register(&mut insn, Register::AX),
            K::dx => register(&mut insn, Register::DX),
            K::eax => register(&mut insn, Register::EAX),
            K::rax => register(&mut insn, Register::RAX),
            K::st0 => register(&mut insn, Register::ST0),
            K::sti_opcode => register(&mut insn, Register::ST0 + r.below(8) as u32),
            K::imm8 => {
                let kind = if immediates == 0 { OpKind::Immediate8 } else { OpKind::Immediate8_2nd };
                insn.set_op_kind(n, kind);
                let v = match code.mnemonic() {
                    Mnemonic::Enter => r.below(3) as u64,
                    _ => r.integer() & 0xff,
                };
                if immediates == 0 {
                    insn.set_immediate8(v as u8)
                } else {
                    insn.set_immediate8_2nd(v as u8)
                }
                immediates += 1;
            }
            K::imm8_const_1 => {
                insn.set_op_kind(n, OpKind::Immediate8);
                insn.set_immediate8(1);
            }
            K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => {
                insn.set_op_kind(
                    n,
                    match kind {
                        K::imm8sex16 => OpKind::Immediate8to16,
                        K::imm8sex32 => OpKind::Immediate8to32,
                        _ => OpKind::Immediate8to64,
                    },
                );
                insn.set_immediate8(r.integer() as u8);
            }
            K::imm16 => {
                insn.set_op_kind(n, OpKind::Immediate16);
                insn.set_immediate16(if code.mnemonic() == Mnemonic::Enter { r.below(64) as u16 } else { r.integer() as u16 });
                immediates += 1;
            }
            K::imm32 => {
                insn.set_op_kind(n, OpKind::Immediate32);
                insn.set_immediate32(r.integer() as u32);
            }
            K::imm32sex64 => {
                insn.set_op_kind(n, OpKind::Immediate32to64);
                insn.set_immediate32to64(r.integer() as i32 as i64);
            }
            K::imm64 => {
                insn.set_op_kind(n, OpKind::Immediate64);
                insn.set_immediate64(r.integer());
            }
            K::seg_rSI => insn.set_op_kind(n, OpKind::MemorySegRSI),
            K::es_rDI => insn.set_op_kind(n, OpKind::MemoryESRDI),
            K::seg_rDI => insn.set_op_kind(n, OpKind::MemorySegRDI),
            K::seg_rBX_al => {
                insn.set_op_kind(n, OpKind::Memory);
                insn.set_memory_base(Register::RBX);
                insn.set_memory_index(Register::AL);
            }
            _ => return None,
        }
    }
    if insn.is_string_instruction() && r.percent(35) {
        if info.can_use_repne_prefix() && r.percent(50) {
            insn.set_has_repne_prefix(true);
        } else {
            insn.set_has_rep_prefix(true);
        }
    }
    if info.can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && r.percent(15) {
        insn.set_has_lock_prefix(true);
    }
    Some(insn)
}

/// A state to start from that keeps the instructions' memory operands inside the data.
fn start(r: &mut Random, items: &[(Instruction, Vec<u8>)]) -> (State, Vec<u8>) {
    let mut data = vec![0; place::DATA_SIZE];
    // Only the middle varies; the margins show stray writes.
    let middle = (place::MIDDLE - place::DATA) as usize;
    for chunk in data[middle - 1024..middle + 2048].chunks_exact_mut(16) {
        let v = r.vector();
        chunk[..8].copy_from_slice(&v[0].to_le_bytes());
        chunk[8..].copy_from_slice(&v[1].to_le_bytes());
    }
    let mut regs = [0; 16];
    let pool = [r.integer(), r.integer(), r.integer()];
    for v in &mut regs {
        *v = if r.percent(30) { r.pick(&pool) } else { r.integer() };
    }
    for p in POINTERS {
        let offset = if r.percent(75) { 64 * r.below(8) } else { r.below(512) };
        regs[p.number()] = place::MIDDLE + offset as u64;
    }
    regs[INDEX.number()] = 16 * r.below(5) as u64;
    let mut ymm = [[0; 4]; 16];
    for y in &mut ymm {
        let (a, b) = (r.vector(), r.vector());
        *y = [a[0], a[1], b[0], b[1]];
    }
    for (insn, _) in items {
        if insn.is_vsib() {
            let y = &mut ymm[insn.memory_index().number()];
            // Elements of 32 or 64 bits: small either way.
            let narrow = insn.is_vsib32();
            for w in y.iter_mut() {
                *w = if narrow {
                    (r.below(128) as i32 - 64) as u32 as u64 | (r.below(128) as u64) << 32
                } else {
                    (r.below(128) as i64 - 64) as u64
                };
            }
        }
        if insn.has_rep_prefix() || insn.has_repne_prefix() {
            regs[1] = r.below(24) as u64;
        }
        if matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
            && insn.op0_kind() == OpKind::Memory
            && insn.op1_kind() == OpKind::Register
        {
            let n = insn.op1_register().full_register().number();
            // A pointer register as bit offset: a fault natively, and nothing learnt.
            if DATA.iter().any(|d| d.number() == n) {
                regs[n] = (r.below(4096) as i64 - 2048) as u64;
            }
        }
        if matches!(insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) && r.percent(60) {
            regs[2] = r.pick(&[0, 0, u64::MAX, 1]);
        }
    }
    // IF; the status flags; sometimes DF.
    let rflags = 0x202 | r.word() & 0x8d5 | if r.percent(10) { 0x400 } else { 0 };
    let mxcsr = match r.below(10) {
        0..4 => 0x1fa0,
        4..6 => 0x1f80,
        6..8 => 0x1f80 | r.word() as u32 & 0xe07f,
        _ => r.word() as u32 & 0xffff,
    };
    let mut x87 = undervisor_core::X87::default();
    for st in &mut x87.st {
        *st = r.extended();
    }
    x87.control = match r.below(10) {
        0..5 => 0x37f,
        5..8 => 0x37f & !0xf00 | r.pick(&[0, 0x200, 0x300, 0x300]) | (r.word() as u16 & 0xc00),
        _ => r.word() as u16 & 0xc3f | 0x40 | r.pick(&[0, 0x200, 0x300]),
    };
    x87.status = r.word() as u16 & 0x7f00 & !if r.percent(60) { 0x3800 } else { 0 };
    if r.percent(30) {
        x87.status |= r.word() as u16 & 0x7f & if r.percent(90) { x87.control | 0x40 } else { 0x7f };
    }
    if x87.status & !x87.control & 0x3f != 0 {
        x87.status |= 0x8080;
    }
    x87.tags = match r.below(10) {
        0..5 => 0xff,
        5..8 => {
            // A stack of some depth from TOP.
            let top = (x87.status >> 11 & 7) as u32;
            let depth = r.below(9) as u32;
            ((0..depth).fold(0, |t, i| t | 1 << ((top + i) & 7))) as u8
        }
        _ => r.word() as u8,
    };
    (State { regs, rip: place::TEST, rflags, ymm, mxcsr, x87 }, data)
}
