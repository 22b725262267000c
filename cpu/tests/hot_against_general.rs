//! Law: hot blocks (specialised handlers, dead flags dropped, fusion) leave the state that the general forms leave, instruction by
//! instruction. Random straight-line code with a final branch; flags that the manual leaves undefined are made defined before
//! anyone can look.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use undervisor_core::{Efer, Model, Rflags, SegReg};
use undervisor_cpu::run::RunExit;
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::{GuestMemory, NullBus};

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;

/// xorshift64*: seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    /// A register value with edge cases.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.next() & 0xff,
            4 => (self.next() as i32) as i64 as u64,
            _ => self.next(),
        }
    }
}

fn machine(random: &mut Random, code: &[u8]) -> Box<Cpu> {
    let memory = GuestMemory::new(1 << 20, 3 << 30, &[]).expect("1 MiB");
    memory.write_bytes(CODE, code).expect("in RAM");
    let data: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
    memory.write_bytes(DATA, &data).expect("in RAM");
    // Either vendor: what manuals leave undefined differs.
    let model = if code.len().is_multiple_of(2) { Model::max_amd() } else { Model::max_intel() };
    let mut cpu = Cpu::new(0, Shared::new(memory), model.into());
    cpu.state.efer |= Efer::LMA | Efer::LME;
    let mut segment = *cpu.state.segment(SegReg::Cs);
    (segment.access, segment.base, segment.limit) = (0xa09b, 0, u32::MAX);
    cpu.state.set_segment(SegReg::Cs, segment);
    cpu.state.set_rip(CODE);
    for r in 0..16 {
        let v = random.value();
        cpu.state.set_gpr(r, v);
    }
    cpu.state.set_gpr(4, DATA + 0x800);
    cpu.state.set_gpr(7, DATA + 0x400);
    cpu.state.set_rflags(random.next() & Rflags::STATUS.bits());
    cpu.mode_changed();
    cpu
}

/// Whether an instruction is fit for the test: no control flow, no faults, memory only around RDI.
fn fit(insn: &Instruction) -> bool {
    use Mnemonic::*;
    if insn.is_invalid()
        || insn.flow_control() != FlowControl::Next
        || insn.is_privileged()
        || insn.has_rep_prefix()
        || insn.has_repne_prefix()
    {
        return false;
    }
    let known = matches!(
        insn.mnemonic(),
        Add | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Mov
            | Movzx
            | Movsx
            | Movsxd
            | Lea
            | Xchg
            | Cmpxchg
            | Xadd
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Imul
            | Mul
            | Bswap
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Tzcnt
            | Lzcnt
            | Popcnt
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Andn
            | Blsr
            | Blsi
            | Blsmsk
            | Bzhi
            | Shlx
            | Shrx
            | Sarx
            | Rorx
            | Mulx
            | Push
            | Pop
            | Stc
            | Clc
            | Cmc
            | Lahf
            | Sahf
            | Nop
            | Movbe
            | Adcx
            | Adox
            | Bextr
            | Pdep
            | Pext
    ) || (insn.condition_code() != iced_x86::ConditionCode::None);
    if !known {
        return false;
    }
    for n in 0..insn.op_count() {
        match insn.op_kind(n) {
            OpKind::Memory => {
                let near = insn.memory_base() == Register::RDI
                    && insn.memory_index() == Register::None
                    && (insn.memory_displacement64() as i64).unsigned_abs() < 0x200
                    && insn.segment_prefix() == Register::None;
                // A register bit offset reaches anywhere.
                if !near || (matches!(insn.mnemonic(), Bt | Bts | Btr | Btc) && insn.op1_kind() == OpKind::Register) {
                    return false;
                }
            }
            OpKind::Register => {
                let r = insn.op_register(n);
                if r.is_segment_register() || r.is_cr() || r.is_dr() {
                    return false;
                }
                // RDI and RSP must go on pointing at data.
                if n < 2 && r.is_gpr() && matches!(r.full_register(), Register::RDI | Register::RSP) {
                    return false;
                }
            }
            _ => {}
        }
    }
    // XCHG, XADD and MULX write their second operand too; that is covered above.
    true
}

/// A straight line of `count` fit instructions and a jump to its own end.
fn program(random: &mut Random, count: usize) -> (Vec<u8>, usize) {
    let mut code = Vec::new();
    let mut n = 0;
    while n < count {
        let mut bytes = [0u8; 15];
        for b in &mut bytes {
            *b = random.next() as u8;
        }
        match random.below(4) {
            0 => bytes[0] = 0x48 | bytes[0] & 7,
            1 => {
                bytes[0] = 0x0f;
                bytes[1] = 0x40 + (bytes[1] & 0xbf);
            }
            2 => bytes[0] &= 0x3b,
            _ => {}
        }
        let insn = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        if !fit(&insn) {
            continue;
        }
        code.extend_from_slice(&bytes[..insn.len()]);
        n += 1;
        // Of these the undefined flags are the same either way, too.
        let settled = matches!(insn.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr | Mnemonic::Shld | Mnemonic::Shrd);
        if insn.rflags_undefined() != 0 && !settled {
            // TEST EAX, EAX and BT leave every flag defined but AF, which STC; ADC … would show: use ADD EAX, 1.
            code.extend_from_slice(&[0x83, 0xc0, 0x01]);
            n += 1;
        }
    }
    (code, n)
}

/// Straight-line code of the kind that is fused: moves and what follows them, compares and their users, runs of pushes and pops; at its
/// end a call's frame is built and left.
fn neighbours(random: &mut Random, count: usize) -> (Vec<u8>, usize) {
    let mut code = Vec::new();
    // Anything but RSP.
    let register = |random: &mut Random| [0, 1, 2, 3, 5, 6, 8, 9, 11, 13, 15][random.below(11) as usize];
    let mut n = 0;
    while n < count {
        let (reg, rm) = (register(random), register(random));
        let wide = random.below(2) as u8;
        let rex = 0x40 | wide << 3 | (reg >> 3) << 2 | rm >> 3;
        let modrm = 0xc0 | (reg & 7) << 3 | rm & 7;
        match random.below(9) {
            0 | 1 => code.extend([rex, 0x89, modrm]),
            2 => code.extend([rex, [0x01, 0x29, 0x31, 0x21, 0x09][random.below(5) as usize], modrm]),
            3 => code.extend([rex, 0x83, modrm, random.next() as u8]),
            4 => {
                code.extend([rex, 0xc1, 0xc0 | [0u8, 1, 4, 5, 7][random.below(5) as usize] << 3 | rm & 7, random.next() as u8]);
                // AF is undefined, and OF too: make them defined.
                code.extend([rex, 0x85, modrm]);
                n += 1;
            }
            5 => {
                code.extend([rex, [0x39, 0x85][random.below(2) as usize], modrm]);
                let cc = random.below(16) as u8;
                if random.below(2) == 0 {
                    code.extend([0x40 | rm >> 3, 0x0f, 0x90 | cc, 0xc0 | rm & 7]);
                } else {
                    code.extend([rex, 0x0f, 0x40 | cc, modrm]);
                }
                n += 1;
            }
            6 => {
                for _ in 0..random.below(9) {
                    code.extend([0x40 | rm >> 3, 0x50 | rm & 7]);
                    n += 1;
                }
                n -= 1;
            }
            7 => {
                for _ in 0..random.below(9) {
                    let rm = register(random);
                    code.extend([0x40 | rm >> 3, 0x58 | rm & 7]);
                    n += 1;
                }
                n -= 1;
            }
            // MOV r, imm32
            _ => code.extend([0x40 | rm >> 3, 0xb8 | rm & 7, random.next() as u8, random.next() as u8, 0, 0]),
        }
        n += 1;
    }
    // LEA RAX, [after the RET]; PUSH RAX; k × PUSH RBX; k × POP; RET.
    let pops = random.below(9) as u8;
    code.extend([0x48, 0x8d, 0x05, 2 + 2 * pops, 0, 0, 0, 0x50]);
    code.extend((0..pops).map(|_| 0x53));
    code.extend((0..pops).map(|i| 0x58 | [0, 1, 2, 3, 5, 6, 7, 0, 1][i as usize]));
    code.push(0xc3);
    (code, n + 3 + 2 * pops as usize)
}

fn observe(cpu: &Cpu) -> (Vec<u64>, u64, Vec<u8>) {
    let mut data = vec![0; 8192];
    cpu.shared.memory.read_bytes(DATA - 4096, &mut data).expect("in RAM");
    (cpu.state.regs[..17].to_vec(), cpu.state.rflags() & Rflags::STATUS.bits(), data)
}

/// Run `code` of `count` instructions, a jump and a HLT that are appended, both ways from the state that `set` makes, and compare. Both ends.
fn compare(seed: u64, random: &mut Random, mut code: Vec<u8>, count: usize, set: impl Fn(&mut Cpu)) -> (Box<Cpu>, Box<Cpu>) {
    let text = code.clone();
    // JMP to the next; HLT. (A limit on instructions close by would make blocks of one instruction each.)
    code.extend_from_slice(&[0xeb, 0x00, 0xf4]);
    let state = random.0;
    let mut hot = machine(&mut Random(state), &code);
    let mut general = machine(&mut Random(state), &code);
    set(&mut hot);
    set(&mut general);
    let mut bus = NullBus;
    assert_eq!(hot.run(&mut bus, 100_000), RunExit::Idle, "seed {seed}: {}", listing(&text));
    for _ in 0..count + 2 {
        general.step_general(&mut bus);
    }
    assert_eq!(hot.now(), general.now(), "seed {seed}: {}", listing(&text));
    assert_eq!(hot.counters.repeated, general.counters.repeated, "seed {seed}: {}", listing(&text));
    let (a, b) = (observe(&hot), observe(&general));
    assert_eq!(a.0, b.0, "registers, seed {seed}:\n{}", listing(&text));
    assert_eq!(a.1, b.1, "flags, seed {seed}:\n{}", listing(&text));
    assert!(a.2 == b.2, "memory, seed {seed}:\n{}", listing(&text));
    (hot, general)
}

fn seeds(count: u64) -> impl Iterator<Item = (u64, Random)> {
    (1..count).map(|seed| (seed, Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
}

#[test]
fn hot_blocks_equal_general_steps() {
    for (seed, mut random) in seeds(4000) {
        let length = 1 + random.below(12) as usize;
        let (code, count) = program(&mut random, length);
        let (hot, _) = compare(seed, &mut random, code, count, |_| {});
        // The code, and HLT behind the jump.
        assert_eq!(hot.counters.blocks_decoded, 2, "seed {seed}");
    }
}

#[test]
fn fused_neighbours_equal_general_steps() {
    for (seed, mut random) in seeds(6000) {
        let length = 1 + random.below(20) as usize;
        let (code, count) = neighbours(&mut random, length);
        // Sometimes the stack reaches into the page before.
        let stack = if random.below(2) == 0 { DATA + 0x800 } else { DATA + 8 * random.below(6) };
        compare(seed, &mut random, code, count, |cpu| {
            cpu.state.set_gpr(4, stack);
            // So that the TLB knows the pages.
            for page in [DATA - 4096, DATA] {
                let word: u64 = cpu.read_linear(page).expect("RAM");
                cpu.write_linear(page, word).expect("RAM");
            }
        });
    }
}

/// Single and repeated STOS and MOVS, overlapping ones, ones across pages and downwards too.
#[test]
fn strings_equal_general_steps() {
    for (seed, mut random) in seeds(4000) {
        let count = random.below(80);
        let (si, di) = (DATA + random.below(0x800), DATA - 0x100 + random.below(0x800));
        let down = random.below(4) == 0;
        let opcode = [0xaa, 0xab, 0xa4, 0xa5][random.below(4) as usize];
        let (mut code, mut steps) = (Vec::new(), 1);
        if random.below(2) == 0 {
            code.push(0xf3);
            steps = count.max(1) as usize;
        }
        match random.below(3) {
            0 => code.push(0x66),
            1 => code.push(0x48),
            _ => {}
        }
        code.push(opcode);
        compare(seed, &mut random, code, steps, |cpu| {
            cpu.state.set_gpr(1, count);
            cpu.state.set_gpr(6, si);
            cpu.state.set_gpr(7, di);
            cpu.state.set_flag(Rflags::DF, down);
            for page in [DATA - 4096, DATA] {
                let word: u64 = cpu.read_linear(page).expect("RAM");
                cpu.write_linear(page, word).expect("RAM");
            }
        });
    }
}

/// A register bit offset reaches past the operand, either way.
#[test]
fn bit_strings_equal_general_steps() {
    for (seed, mut random) in seeds(2000) {
        let rex = 0x40 | (random.below(2) as u8) << 3;
        // BT, BTS, BTR, BTC [RDI + RBX], RCX
        let opcode = [0xa3, 0xab, 0xb3, 0xbb][random.below(4) as usize];
        let indexed = random.below(2) == 0;
        let mut code = vec![rex, 0x0f, opcode];
        code.extend(if indexed { [0x0c, 0x1f] } else { [0x4f, 0x10] });
        let offset = random.next() as i64 >> 51;
        compare(seed, &mut random, code, 1, |cpu| {
            cpu.state.set_gpr(1, offset as u64);
            cpu.state.set_gpr(3, 0x88);
            cpu.state.set_gpr(7, DATA + 0x400);
        });
    }
}

/// Moves and arithmetic in few registers, so that most depend on the one before; their flags are made dead by a TEST at the end.
#[test]
fn dependent_steps_equal_general_steps() {
    for (seed, mut random) in seeds(4000) {
        let mut code = Vec::new();
        let count = 12;
        let few = [0, 3, 4, 6, 9, 13];
        for _ in 0..count {
            let wide = random.below(2) as u8 * 8;
            let (r, m) = (few[random.below(6) as usize], few[random.below(6) as usize]);
            let index = [0, 3, 6][random.below(3) as usize];
            let rex = 0x40 | wide | r >> 3 << 2 | m >> 3;
            let registers = 0xc0 | (r & 7) << 3 | m & 7;
            match random.below(14) {
                0 | 1 => code.extend([rex, 0x89, registers]),
                2 | 3 => code.extend([rex, [0x01, 0x29, 0x31, 0x21, 0x09][random.below(5) as usize], registers]),
                4 => code.extend([rex, 0x0f, 0xaf, registers]),
                // ADD, OR, AND, SUB, XOR; ROL, ROR, SHL, SHR, SAR; MOV with an immediate.
                5 => {
                    let which = [0, 1, 4, 5, 6][random.below(5) as usize] << 3;
                    code.extend([rex, 0x83, 0xc0 | which | m & 7, random.next() as u8]);
                }
                6 => {
                    let which = [0, 1, 4, 5, 7][random.below(5) as usize] << 3;
                    code.extend([rex, 0xc1, 0xc0 | which | m & 7, random.next() as u8]);
                }
                7 => code.extend([rex, 0xc7, 0xc0 | m & 7, 1, 2, 3, random.next() as u8]),
                8 => code.extend([rex, 0xf7, 0xd0 | m & 7]),
                9 => code.extend([rex, 0xff, 0xc0 | random.below(2) as u8 * 8 | m & 7]),
                // LEA r, [m + 4 * index + 0x12] and [RIP + 0x40].
                10 => code.extend([rex, 0x8d, 0x44 | (r & 7) << 3, 0x80 | index << 3 | m & 7, 0x12]),
                11 => code.extend([rex, 0x8d, 0x05 | (r & 7) << 3, 0x40, 0, 0, 0]),
                12 if wide != 0 => code.extend([rex, 0x63, registers]),
                _ => code.extend([rex, 0x0f, 0xb6 | random.below(2) as u8, registers]),
            }
        }
        code.extend([0x85, 0xc0]);
        let (hot, _) = compare(seed, &mut random, code, count + 1, |_| {});
        assert_eq!(hot.counters.blocks_decoded, 2, "seed {seed}");
    }
}

/// CLI, STI, SWAPGS, CLAC and STAC, with loads by GS and what may follow STI without a boundary or may not: at CPL 0 all of them go on.
#[test]
fn what_kernels_enter_and_leave_with() {
    let pieces: [&[u8]; 9] = [
        &[0xfa],
        // STI, and a NOP, an INC, a load, a PUSH behind it.
        &[0xfb, 0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0xfb, 0xff, 0xc0],
        &[0xfb, 0x8b, 0x07],
        &[0xfb, 0x53],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x01, 0xca],
        &[0x0f, 0x01, 0xcb],
        // MOV RDX, GS:[0x10]
        &[0x65, 0x48, 0x8b, 0x14, 0x25, 0x10, 0, 0, 0],
    ];
    for seed in 1..500 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut code = Vec::new();
        for _ in 0..10 {
            code.extend(pieces[random.below(9) as usize]);
        }
        let count = Decoder::new(64, &code, DecoderOptions::NONE).iter().count();
        let set = |cpu: &mut Cpu| {
            cpu.state.set_flag(Rflags::IF, seed % 2 == 0);
            cpu.state.msrs.kernel_gs_base = DATA + 0x80;
            let mut gs = *cpu.state.segment(SegReg::Gs);
            gs.base = DATA + 0x40;
            cpu.state.set_segment(SegReg::Gs, gs);
        };
        let (hot, general) = compare(seed, &mut random, code, count, set);
        assert_eq!(hot.state.rflags(), general.state.rflags(), "seed {seed}");
        assert_eq!(hot.state.segment(SegReg::Gs).base, general.state.segment(SegReg::Gs).base, "seed {seed}");
        assert_eq!(hot.state.msrs.kernel_gs_base, general.state.msrs.kernel_gs_base, "seed {seed}");
        assert!(!hot.state.shadow.sti, "seed {seed}");
    }
}

fn listing(code: &[u8]) -> String {
    use iced_x86::{FastFormatter, Instruction};
    let mut out = String::new();
    let mut f = FastFormatter::new();
    let mut decoder = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE);
    let mut insn = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut insn);
        f.format(&insn, &mut out);
        out.push('\n');
    }
    out
}
