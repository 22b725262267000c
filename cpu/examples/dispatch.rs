//! Speed of the interpreter's core on loops without paging or devices: instructions per microsecond (MIPS) of each.
//!
//!     cargo run --release -p undervisor-cpu --example dispatch

use std::time::Instant;

use iced_x86::code_asm::*;
use undervisor_core::{Efer, Model, SegReg};
use undervisor_cpu::{Cpu, Shared};
use undervisor_mmu::{GuestMemory, NullBus};

fn run(name: &str, code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut a = CodeAssembler::new(64).expect("64-bit assembler");
    code(&mut a).expect("encodable");
    let bytes = a.assemble(0x1_0000).expect("assembles");
    let memory = GuestMemory::new(16 << 20, 3 << 30, &[]).expect("16 MiB");
    memory.write_bytes(0x1_0000, &bytes).expect("in RAM");
    let mut cpu = Cpu::new(0, Shared::new(memory), Model::default().into());
    let s = &mut cpu.state;
    s.efer |= Efer::LMA | Efer::LME;
    let mut code_segment = *s.segment(SegReg::Cs);
    (code_segment.access, code_segment.base, code_segment.limit) = (0xa09b, 0, u32::MAX);
    s.set_segment(SegReg::Cs, code_segment);
    s.set_rip(0x1_0000);
    s.set_gpr(4, 0x8_0000);
    s.set_gpr(7, 0x10_0000);
    s.set_gpr(6, 0x20_0000);
    cpu.mode_changed();
    let mut bus = NullBus;
    cpu.run(&mut bus, 20_000_000);
    let mut best = f64::MAX;
    for _ in 0..3 {
        let from = cpu.now();
        let t = Instant::now();
        cpu.run(&mut bus, from + 200_000_000);
        best = best.min(t.elapsed().as_secs_f64());
    }
    println!("{name:24} {:8.0} MIPS", 200.0 / best);
}

fn main() {
    run("alu", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(rax, rbx)?;
        a.xor(rcx, rax)?;
        a.lea(rdx, rax + rcx * 4 + 7)?;
        a.shl(rdx, 3)?;
        a.sub(rbx, rdx)?;
        a.and(rcx, 0xffff)?;
        a.or(rax, rcx)?;
        a.add(r8, 1)?;
        a.cmp(r8, rdx)?;
        a.jmp(top)
    });
    run("load/store/branch", |a| {
        let mut top = a.create_label();
        let mut skip = a.create_label();
        a.set_label(&mut top)?;
        a.mov(eax, dword_ptr(rdi + rcx * 4))?;
        a.add(eax, ecx)?;
        a.mov(dword_ptr(rsi + rcx * 4), eax)?;
        a.test(eax, 1)?;
        a.je(skip)?;
        a.add(r8, rax)?;
        a.set_label(&mut skip)?;
        a.inc(rcx)?;
        a.and(ecx, 0xfff)?;
        a.cmp(ecx, 0x1000)?;
        a.jne(top)?;
        a.jmp(top)
    });
    run("call/return", |a| {
        let mut top = a.create_label();
        let mut f = a.create_label();
        a.set_label(&mut top)?;
        a.call(f)?;
        a.inc(rax)?;
        a.jmp(top)?;
        a.set_label(&mut f)?;
        a.push(rbx)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.add(rbx, 3)?;
        a.pop(rbp)?;
        a.pop(rbx)?;
        a.ret()
    });
}
