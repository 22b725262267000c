//! Laws of the op cache and of dispatch: self-modifying code is seen by the very next instruction, an instruction may cross pages, slices of
//! any size give the run that one slice gives, and chains need no host stack.

use iced_x86::code_asm::*;
use undervisor_core::{Efer, Model, SegReg};
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::{GuestMemory, NullBus};

const CODE: u64 = 0x1_0000;

/// A processor in 64-bit mode without paging, about to run `code` at `at`.
fn processor(at: u64, code: &[u8]) -> Box<Cpu> {
    let memory = GuestMemory::new(1 << 20, 3 << 30, &[]).expect("1 MiB");
    memory.write_bytes(at, code).expect("in RAM");
    let mut cpu = Cpu::new(0, Shared::new(memory), Model::default().into());
    cpu.state.efer |= Efer::LMA | Efer::LME;
    let mut segment = *cpu.state.segment(SegReg::Cs);
    (segment.access, segment.base, segment.limit) = (0xa09b, 0, u32::MAX);
    cpu.state.set_segment(SegReg::Cs, segment);
    cpu.state.set_rip(at);
    cpu.state.set_gpr(4, 0x8_0000);
    cpu.mode_changed();
    cpu
}

fn assemble(f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit assembler");
    f(&mut a).expect("encodable");
    a.assemble(CODE).expect("assembles")
}

#[test]
fn a_store_to_the_running_block_is_seen_by_the_next_instruction() {
    // inc eax is rewritten to dec eax (ff c0 -> ff c8) just before it is reached, on every second pass back again.
    let code = assemble(|a| {
        let mut top = a.create_label();
        let mut target = a.create_label();
        a.mov(ecx, 10)?;
        a.set_label(&mut top)?;
        a.lea(rdx, ptr(target))?;
        a.xor(byte_ptr(rdx + 1), 8)?;
        a.set_label(&mut target)?;
        a.inc(eax)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.nop()
    });
    let mut cpu = processor(CODE, &code);
    cpu.state.set_gpr(0, 100);
    cpu.run(&mut NullBus, 1 + 5 * 10);
    // Five times dec, five times inc.
    assert_eq!(cpu.state.gpr(0), 100);
    assert_eq!(cpu.state.gpr(1), 0);
    let mut odd = processor(CODE, &code);
    odd.state.set_gpr(0, 100);
    odd.run(&mut NullBus, 1 + 5 * 9);
    assert_eq!(odd.state.gpr(0), 99);
}

#[test]
fn an_instruction_that_kills_its_own_block_is_counted() {
    // xor byte [rdx], 0 stores to its own first byte; a limit of one instruction makes it the last of its block.
    let code = [0x80, 0x32, 0x00, 0x90, 0x90];
    let mut cpu = processor(CODE, &code);
    cpu.state.set_gpr(2, CODE);
    cpu.run(&mut NullBus, 1);
    assert_eq!((cpu.now(), cpu.state.rip()), (1, CODE + 3));
}

#[test]
fn what_a_device_writes_replaces_code() {
    let mut cpu = processor(CODE, &[0xb8, 1, 0, 0, 0, 0xeb, 0xf9]);
    // Whole blocks, and the one-instruction blocks in front of a limit.
    for (limit, value) in [(100, 2u8), (101, 3), (300, 4)] {
        cpu.run(&mut NullBus, limit);
        cpu.shared.write_bytes(CODE + 1, &[value]).expect("in RAM");
        cpu.run(&mut NullBus, limit + 2);
        assert_eq!(cpu.state.gpr(0), value as u64);
    }
}

#[test]
fn an_instruction_may_cross_pages_and_either_half_may_change() {
    // mov eax, imm32 with its immediate on the next page, then jmp to itself.
    let at = CODE + 0xffe;
    let mut cpu = processor(at, &[0xb8, 0x11, 0x22, 0x33, 0x44, 0xeb, 0xf9]);
    cpu.run(&mut NullBus, 100);
    assert_eq!(cpu.state.gpr(0), 0x4433_2211);
    // The second half changes through the processor's own store path.
    cpu.write_linear::<u8>(CODE + 0x1000, 0x99).expect("RAM");
    cpu.run(&mut NullBus, 200);
    assert_eq!(cpu.state.gpr(0), 0x4433_9911);
    cpu.write_linear::<u8>(CODE + 0xfff, 0x77).expect("RAM");
    cpu.run(&mut NullBus, 300);
    assert_eq!(cpu.state.gpr(0), 0x4433_9977);
}

#[test]
fn slices_of_any_size_give_the_same_run() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        let mut skip = a.create_label();
        let mut f = a.create_label();
        a.set_label(&mut top)?;
        a.add(rax, 3)?;
        a.adc(rbx, rax)?;
        a.call(f)?;
        a.test(al, 4)?;
        a.je(skip)?;
        a.xor(rbx, rcx)?;
        a.set_label(&mut skip)?;
        a.inc(rcx)?;
        a.jmp(top)?;
        a.set_label(&mut f)?;
        a.push(rax)?;
        a.rol(rbx, 5)?;
        a.pop(rdx)?;
        a.ret()
    });
    let mut whole = processor(CODE, &code);
    whole.run(&mut NullBus, 100_000);
    let mut sliced = processor(CODE, &code);
    let mut at = 0u64;
    let mut step = 1u64;
    while at < 100_000 {
        step = (step * 7 + 3) % 191 + 1;
        at = (at + step).min(100_000);
        sliced.run(&mut NullBus, at);
        assert_eq!(sliced.now(), at);
    }
    assert_eq!(whole.now(), sliced.now());
    assert_eq!(whole.state.regs[..17], sliced.state.regs[..17]);
    assert_eq!(whole.state.rflags(), sliced.state.rflags());
}

#[test]
fn ten_million_ops_need_no_host_stack() {
    let run = || {
        let code = assemble(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(rax, qword_ptr(rsp))?;
            a.add(qword_ptr(rsp), 1)?;
            a.push(rax)?;
            a.pop(rbx)?;
            a.imul_2(rbx, rax)?;
            a.cmp(rbx, 7)?;
            a.sete(cl)?;
            a.jmp(top)
        });
        let mut cpu = processor(CODE, &code);
        cpu.run(&mut NullBus, 10_000_000);
        assert_eq!(cpu.now(), 10_000_000);
    };
    std::thread::Builder::new().stack_size(64 << 10).spawn(run).expect("a thread").join().expect("no overflow");
}
