//! Law: what the op cache runs is what a fresh decoding of memory at each instruction would run, whoever changes the code and by whichever
//! mapping: the code itself, just ahead in the running block too, or something outside.

use proptest::prelude::*;
use undervisor_core::{Activity, Cr0, Cr4, Efer, Model, SegReg};
use undervisor_cpu::run::RunExit;
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::{GuestMemory, NullBus};

const MAIN: u64 = 0x1_0000;
/// Routines of eight bytes; the third and the seventh run over the end of a page.
const ROUTINES: [u64; 8] = [0x2_0000, 0x2_0008, 0x2_0ffd, 0x2_0100, 0x2_1020, 0x2_1028, 0x2_1ffa, MAIN + 0x800];
/// The same memory once more, by another PML4 entry.
const ALIAS: u64 = 1 << 39;

/// Bodies of routines.
const BODIES: [[u8; 8]; 6] = [
    // inc rax; ret
    [0x48, 0xff, 0xc0, 0xc3, 0x90, 0x90, 0x90, 0x90],
    // add rax, rbx; inc rbx; ret
    [0x48, 0x01, 0xd8, 0x48, 0xff, 0xc3, 0xc3, 0x90],
    // not rax; ror rax, 1; ret
    [0x48, 0xf7, 0xd0, 0x48, 0xd1, 0xc8, 0xc3, 0x90],
    // add rax, 0x35; xor rbx, rax; ret
    [0x48, 0x83, 0xc0, 0x35, 0x48, 0x31, 0xc3, 0xc3],
    // jmp to the next; dec rax; ret
    [0xeb, 0x00, 0x48, 0xff, 0xc8, 0xc3, 0x90, 0x90],
    // lea rax, [rax + rbx + 5]; mov rbx, rax: no end; the routine goes on with what lies behind it, or these bytes are run in place
    [0x48, 0x8d, 0x44, 0x18, 0x05, 0x48, 0x89, 0xc3],
];
/// Bodies with an end.
const ENDED: usize = 5;

#[derive(Clone, Debug)]
enum Action {
    Call(usize),
    /// Store a body over a routine, through the alias or not.
    Patch {
        routine: usize,
        body: usize,
        alias: bool,
    },
    /// Store eight bytes over the eight that come next.
    Ahead {
        alias: bool,
        inc: bool,
    },
    /// Some steps that belong to the same block.
    Steps(u8),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => (0..ROUTINES.len()).prop_map(Action::Call),
        3 => (0..ROUTINES.len(), 0..ENDED, any::<bool>()).prop_map(|(routine, body, alias)| Action::Patch { routine, body, alias }),
        2 => any::<(bool, bool)>().prop_map(|(alias, inc)| Action::Ahead { alias, inc }),
        1 => (1..6u8).prop_map(Action::Steps),
    ];
    proptest::collection::vec(action, 1..40)
}

/// What something outside writes before each pass: a body over a routine.
fn writes() -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::collection::vec((0..ROUTINES.len(), 0..ENDED), 4)
}

/// MOV RCX, `value`; MOV RDX, `address`; MOV [RDX], RCX.
fn store(code: &mut Vec<u8>, address: u64, value: [u8; 8]) {
    code.extend([0x48, 0xb9]);
    code.extend(value);
    code.extend([0x48, 0xba]);
    code.extend(address.to_le_bytes());
    code.extend([0x48, 0x89, 0x0a]);
}

fn program(actions: &[Action]) -> Vec<u8> {
    let mut code = Vec::new();
    for action in actions {
        match *action {
            Action::Call(routine) => {
                let next = MAIN + code.len() as u64 + 5;
                code.push(0xe8);
                code.extend((ROUTINES[routine].wrapping_sub(next) as u32).to_le_bytes());
            }
            Action::Patch { routine, body, alias } => {
                store(&mut code, ROUTINES[routine] + if alias { ALIAS } else { 0 }, BODIES[body]);
            }
            Action::Ahead { alias, inc } => {
                let at = MAIN + code.len() as u64 + 23 + if alias { ALIAS } else { 0 };
                // INC or DEC RAX and a NOP of five bytes over LEA, MOV.
                store(&mut code, at, [0x48, 0xff, if inc { 0xc0 } else { 0xc8 }, 0x0f, 0x1f, 0x44, 0x00, 0x00]);
                code.extend(BODIES[ENDED]);
            }
            Action::Steps(count) => (0..count).for_each(|_| code.extend([0x48, 0x01, 0xc3])),
        }
    }
    code.push(0xf4);
    assert!(code.len() < 0x800);
    code
}

/// A processor in 64-bit mode, the first 2 MiB mapped twice.
fn processor(code: &[u8]) -> Box<Cpu> {
    let memory = GuestMemory::new(1 << 20, 3 << 30, &[]).expect("1 MiB");
    for (address, entry) in [(0x1000, 0x2003u64), (0x1008, 0x2003), (0x2000, 0x3003), (0x3000, 0x83)] {
        memory.write_bytes(address, &entry.to_le_bytes()).expect("in RAM");
    }
    memory.write_bytes(MAIN, code).expect("in RAM");
    for routine in ROUTINES {
        memory.write_bytes(routine, &BODIES[0]).expect("in RAM");
    }
    let mut cpu = Cpu::new(0, Shared::new(memory), Model::default().into());
    cpu.state.efer |= Efer::LMA | Efer::LME;
    cpu.state.cr4 |= Cr4::PAE;
    cpu.state.cr3 = 0x1000;
    cpu.state.cr0 |= Cr0::PE | Cr0::PG;
    let mut segment = *cpu.state.segment(SegReg::Cs);
    (segment.access, segment.base, segment.limit) = (0xa09b, 0, u32::MAX);
    cpu.state.set_segment(SegReg::Cs, segment);
    cpu.mode_changed();
    cpu
}

/// One pass from the start to HLT; `run` brings it there.
fn pass(cpu: &mut Cpu, write: (usize, usize), run: impl FnOnce(&mut Cpu)) -> (Vec<u64>, u64, Vec<u8>) {
    cpu.shared.write_bytes(ROUTINES[write.0], &BODIES[write.1]).expect("in RAM");
    cpu.state.activity = Activity::Active;
    cpu.state.set_rip(MAIN);
    cpu.state.set_gpr(4, 0x8_0000);
    run(cpu);
    let mut memory = vec![0; 0x1_3000];
    cpu.shared.memory.read_bytes(MAIN, &mut memory).expect("in RAM");
    (cpu.state.regs[..17].to_vec(), cpu.now(), memory)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn cached_code_is_fresh_code(actions in actions(), writes in writes()) {
        let code = program(&actions);
        let (mut cached, mut fresh) = (processor(&code), processor(&code));
        for write in writes {
            let a = pass(&mut cached, write, |cpu| assert_eq!(cpu.run(&mut NullBus, 1_000_000), RunExit::Idle));
            let b = pass(&mut fresh, write, |cpu| {
                while cpu.state.activity == Activity::Active {
                    cpu.step_general(&mut NullBus);
                }
            });
            prop_assert_eq!(&a.0, &b.0);
            prop_assert_eq!(a.1, b.1);
            prop_assert!(a.2 == b.2);
        }
    }
}
