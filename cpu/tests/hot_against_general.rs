//! Law: hot blocks (specialised handlers, dead flags dropped, fusion) leave the state that the general forms leave, instruction by
//! instruction. Random straight-line code with a final branch; flags that the manual leaves undefined are made defined before
//! anyone can look.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use undervisor_core::{Efer, Model, Rflags, SegReg};
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
    let mut cpu = Cpu::new(0, Shared::new(memory), Model::default().into());
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
        if insn.rflags_undefined() != 0 {
            // TEST EAX, EAX and BT leave every flag defined but AF, which STC; ADC … would show: use ADD EAX, 1.
            code.extend_from_slice(&[0x83, 0xc0, 0x01]);
            n += 1;
        }
    }
    (code, n)
}

fn observe(cpu: &Cpu) -> (Vec<u64>, u64, Vec<u8>) {
    let mut data = vec![0; 4096];
    cpu.shared.memory.read_bytes(DATA, &mut data).expect("in RAM");
    (cpu.state.regs[..17].to_vec(), cpu.state.rflags() & Rflags::STATUS.bits(), data)
}

#[test]
fn hot_blocks_equal_general_steps() {
    for seed in 1..4000u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let length = 1 + random.below(12) as usize;
        let (mut code, count) = program(&mut random, length);
        let text = code.clone();
        code.extend_from_slice(&[0xeb, 0x00]);
        let state = random.0;
        let mut hot = machine(&mut Random(state), &code);
        let mut general = machine(&mut Random(state), &code);
        let mut bus = NullBus;
        hot.run(&mut bus, count as u64 + 1);
        for _ in 0..count + 1 {
            general.step_general(&mut bus);
        }
        assert_eq!(hot.now(), general.now(), "seed {seed}: {}", listing(&text));
        let (a, b) = (observe(&hot), observe(&general));
        assert_eq!(a.0, b.0, "registers, seed {seed}:\n{}", listing(&text));
        assert_eq!(a.1, b.1, "flags, seed {seed}:\n{}", listing(&text));
        assert!(a.2 == b.2, "memory, seed {seed}:\n{}", listing(&text));
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
