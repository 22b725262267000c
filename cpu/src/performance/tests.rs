//! Counters through programs that set them up themselves.

use std::rc::Rc;

use iced_x86::code_asm::*;
use undervisor_core::performance::{GENERAL, VALUES, select, status};
use undervisor_core::{Efer, Model, SegReg, Segment, msr, regs};
use undervisor_mmu::NullBus;

use crate::apic::{LVT_MASK, LVT_PERFORMANCE};
use crate::cpu::Cpu;
use crate::run::RunExit;
use crate::testing::processor;

const CODE: u64 = 0x1000;
const BOTH: u64 = select::USR | select::OS | select::ENABLE;
const INSTRUCTIONS: u64 = 0xc0;
const CYCLES: u64 = 0x3c;
const BRANCHES: u64 = 0xc4;

fn machine(model: Model) -> Box<Cpu> {
    let mut cpu = processor(64);
    cpu.model = Rc::new(model);
    cpu.reset_model_state();
    cpu.performance_reset();
    cpu
}

fn intel() -> Box<Cpu> {
    machine(Model::skylake_server())
}

fn write(cpu: &mut Cpu, msr: u32, value: u64) {
    assert_eq!(cpu.write_msr(msr, value), Ok(()), "{msr:#x} := {value:#x}");
}

fn read(cpu: &mut Cpu, msr: u32) -> u64 {
    cpu.read_msr(msr).unwrap_or_else(|_| panic!("{msr:#x}"))
}

/// Run `code`, which is followed by HLT, to its end.
fn run(cpu: &mut Cpu, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut a = CodeAssembler::new(64).expect("an assembler");
    code(&mut a).expect("code");
    a.hlt().expect("HLT");
    let bytes = a.assemble(CODE).expect("code");
    cpu.shared.write_bytes(CODE, &bytes).expect("RAM");
    cpu.state.set_rip(CODE);
    cpu.state.activity = Default::default();
    assert_eq!(cpu.run(&mut NullBus, cpu.now() + 1_000_000), RunExit::Idle);
}

/// RCX times a load, a NOP, and LOOP; 4 + 3 n instructions, n branches.
fn counted_loop(a: &mut CodeAssembler, n: u32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, n)?;
    a.set_label(&mut again)?;
    a.mov(rax, qword_ptr(0x8000))?;
    a.nop()?;
    a.dec(ecx)?;
    a.jne(again)
}

/// Enable and disable counters with WRMSR of a global control around `body`.
fn between(a: &mut CodeAssembler, bits: u64, body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let switch = |a: &mut CodeAssembler, value: u64| {
        a.mov(ecx, msr::IA32_PERF_GLOBAL_CTRL)?;
        a.mov(eax, value as u32)?;
        a.mov(edx, (value >> 32) as u32)?;
        a.wrmsr()
    };
    switch(a, bits).expect("code");
    body(a).expect("code");
    switch(a, 0).expect("code");
}

/// What `between` itself adds: the WRMSR that enables, and three instructions before the one that disables.
const AROUND: u64 = 4;

#[test]
fn exact_counts() {
    let mut c = intel();
    for (i, event) in [CYCLES, INSTRUCTIONS, BRANCHES, 0xc5, 0x13c].into_iter().enumerate() {
        write(&mut c, msr::IA32_PERFEVTSEL0 + i as u32, event | BOTH);
    }
    write(&mut c, msr::IA32_FIXED_CTR_CTRL, 0x333);
    write(&mut c, msr::IA32_PERF_GLOBAL_CTRL, 0);
    run(&mut c, |a| {
        between(a, 7 << 32 | 0x1f, |a| counted_loop(a, 1000));
        Ok(())
    });
    let instructions = 4 * 1000 + 1 + AROUND;
    let counters: Vec<_> = (0..5).map(|i| read(&mut c, msr::IA32_A_PMC0 + i)).collect();
    // The loop is missed when it is first taken, and when it ends.
    assert_eq!(counters, [2 * instructions, instructions, 1000, 2, 2 * instructions]);
    let fixed: Vec<_> = (0..3).map(|i| read(&mut c, msr::IA32_FIXED_CTR0 + i)).collect();
    assert_eq!(fixed, [instructions, 2 * instructions, 2 * instructions]);
    // What is off stands still, and code is no longer watched.
    run(&mut c, |a| counted_loop(a, 10));
    assert_eq!(read(&mut c, msr::IA32_A_PMC0 + 2), 1000);
    assert!(!c.mode.has(crate::decode::Mode::COUNTED));
}

#[test]
fn repetitions_are_one_instruction() {
    let mut c = intel();
    write(&mut c, msr::IA32_PERF_GLOBAL_CTRL, 0);
    write(&mut c, msr::IA32_PERFEVTSEL0, INSTRUCTIONS | BOTH);
    write(&mut c, msr::IA32_PERFEVTSEL0 + 1, CYCLES | BOTH);
    run(&mut c, |a| {
        between(a, 3, |a| {
            a.mov(ecx, 100)?;
            a.mov(rdi, 0x9000u64)?;
            a.rep().stosb()
        });
        Ok(())
    });
    assert_eq!(read(&mut c, msr::IA32_A_PMC0), 3 + AROUND);
    assert_eq!(read(&mut c, msr::IA32_A_PMC0 + 1), 2 * (2 + 100 + AROUND));
}

#[test]
fn branches_that_fault_do_not_retire() {
    let mut c = intel();
    write(&mut c, msr::IA32_PERFEVTSEL0, BRANCHES | BOTH);
    // #GP of a far return to a null selector: its handler, a HLT, is never reached for want of an IDT.
    c.state.set_gpr(regs::RSP, 0x8000);
    let mut a = CodeAssembler::new(64).expect("an assembler");
    let mut on = a.create_label();
    a.jmp(on).unwrap();
    a.set_label(&mut on).unwrap();
    a.retf().unwrap();
    let bytes = a.assemble(CODE).unwrap();
    c.shared.write_bytes(CODE, &bytes).unwrap();
    c.state.set_rip(CODE);
    assert_eq!(c.run(&mut NullBus, 100), RunExit::Shutdown);
    assert_eq!(read(&mut c, msr::IA32_A_PMC0), 1);
}

#[test]
fn overflow_interrupts_at_its_instruction() {
    for (event, each) in [(INSTRUCTIONS, 4), (BRANCHES, 1), (CYCLES, 8)] {
        let mut c = intel();
        c.apic.svr = 0x1ff;
        c.apic.lvt[LVT_PERFORMANCE] = 0x40;
        write(&mut c, msr::IA32_PERFEVTSEL0, event | BOTH | select::INT);
        // After 500 turns of the loop.
        write(&mut c, msr::IA32_A_PMC0, VALUES + 1 - 500 * each);
        let start = c.now();
        let mut a = CodeAssembler::new(64).unwrap();
        counted_loop(&mut a, 1000).unwrap();
        let bytes = a.assemble(CODE).unwrap();
        c.shared.write_bytes(CODE, &bytes).unwrap();
        c.state.set_rip(CODE);
        c.run(&mut NullBus, start + 1995);
        assert_eq!((read(&mut c, msr::IA32_PERF_GLOBAL_STATUS), c.apic.irr.highest()), (0, None), "{event:#x}");
        c.run(&mut NullBus, start + 2010);
        assert_eq!(read(&mut c, msr::IA32_PERF_GLOBAL_STATUS), 1, "{event:#x}");
        assert_eq!(c.apic.irr.highest(), Some(0x40), "{event:#x}");
        assert_ne!(c.apic.lvt[LVT_PERFORMANCE] & LVT_MASK, 0);
        write(&mut c, msr::IA32_PERF_GLOBAL_STATUS_RESET, 1);
        assert_eq!(read(&mut c, msr::IA32_PERF_GLOBAL_STATUS), 0);
    }
}

#[test]
fn freezing_on_an_interrupt() {
    let mut c = intel();
    write(&mut c, msr::IA32_DEBUGCTL, 1 << 12);
    write(&mut c, msr::IA32_FIXED_CTR_CTRL, 0x8 | 3);
    write(&mut c, msr::IA32_FIXED_CTR0, VALUES + 1 - 100);
    write(&mut c, msr::IA32_PERF_GLOBAL_CTRL, 1 << 32);
    run(&mut c, |a| counted_loop(a, 1000));
    assert_eq!(read(&mut c, msr::IA32_FIXED_CTR0), 0);
    assert_eq!(read(&mut c, msr::IA32_PERF_GLOBAL_STATUS), status::COUNTERS_FROZEN | 1 << 32);
    write(&mut c, msr::IA32_PERF_GLOBAL_STATUS_RESET, status::COUNTERS_FROZEN);
    run(&mut c, |a| a.nop());
    assert_eq!(read(&mut c, msr::IA32_FIXED_CTR0), 2, "NOP and HLT");
}

#[test]
fn privilege_levels() {
    const USER: u64 = 0x3000;
    const BACK: u64 = 0x4000;
    let mut c = intel();
    let flat = |selector, access| Segment { selector, access, limit: u32::MAX, base: 0 };
    c.state.set_segment(SegReg::Ss, flat(16, 0xc093));
    c.state.efer |= Efer::SCE;
    c.state.msrs.star = 0x18 << 48 | 8 << 32;
    c.state.msrs.lstar = BACK;
    let mut user = CodeAssembler::new(64).unwrap();
    (0..20).for_each(|_| user.nop().unwrap());
    user.syscall().unwrap();
    c.shared.write_bytes(USER, &user.assemble(USER).unwrap()).unwrap();
    c.shared.write_bytes(BACK, &[0x90, 0x90, 0xf4]).unwrap();
    write(&mut c, msr::IA32_PERFEVTSEL0, INSTRUCTIONS | select::USR | select::ENABLE);
    write(&mut c, msr::IA32_PERFEVTSEL0 + 1, INSTRUCTIONS | select::OS | select::ENABLE);
    run(&mut c, |a| {
        a.mov(rcx, USER)?;
        a.mov(r11, 2u64)?;
        a.sysretq()
    });
    assert_eq!(c.state.rip(), BACK + 3);
    // An instruction that changes the level counts at the new one: SYSRET and 20 NOPs; 2 MOVs, SYSCALL, 2 NOPs and HLT.
    assert_eq!((read(&mut c, msr::IA32_A_PMC0), read(&mut c, msr::IA32_A_PMC0 + 1)), (21, 6));
}

#[test]
fn intel_registers() {
    let mut c = intel();
    // 32 bits, sign-extended, through the old name; all, and no more, through the new one.
    write(&mut c, msr::IA32_PMC0 + 7, 0xff_8000_0001);
    assert_eq!(read(&mut c, msr::IA32_A_PMC0 + 7), 0xffff_8000_0001);
    assert!(c.write_msr(msr::IA32_A_PMC0, 1 << 48).is_err());
    assert!(c.write_msr(msr::IA32_A_PMC0 + 8, 0).is_err() && c.read_msr(msr::IA32_PMC0 + 8).is_err());
    assert!(c.write_msr(msr::IA32_PERFEVTSEL0, 1 << 32).is_err());
    assert!(c.write_msr(msr::IA32_FIXED_CTR_CTRL, 1 << 12).is_err());
    assert!(c.write_msr(msr::IA32_PERF_GLOBAL_CTRL, 1 << 8).is_err());
    assert!(c.write_msr(msr::IA32_PERF_GLOBAL_STATUS, 0).is_err());
    assert_eq!(read(&mut c, msr::IA32_PERF_GLOBAL_CTRL), 0xff);
    assert_eq!(read(&mut c, msr::IA32_MISC_ENABLE) & 0x1880, 0x1880);
    write(&mut c, msr::IA32_PERF_GLOBAL_STATUS_SET, 1 << 33);
    assert_eq!(read(&mut c, msr::IA32_PERF_GLOBAL_STATUS), 1 << 33);
    write(&mut c, msr::IA32_PERFEVTSEL0 + 2, CYCLES | select::INT);
    assert_eq!(read(&mut c, msr::IA32_PERF_GLOBAL_INUSE), 1 << 2 | 1 << 63);
    // RDPMC.
    c.state.msrs.performance.counters[GENERAL + 1] = 77;
    assert_eq!(c.performance_counter(0x4000_0001), Some(77));
    assert_eq!(
        (c.performance_counter(8), c.performance_counter(0x4000_0003), c.performance_counter(1 << 31)),
        (None, None, None)
    );
    let mut none = machine(Model::parse("skylake-server,-arch_perfmon").unwrap());
    assert!(none.read_msr(msr::IA32_PERF_GLOBAL_CTRL).is_err() && none.read_msr(msr::IA32_PMC0).is_err());
    assert!(none.write_msr(msr::IA32_DEBUGCTL, 1 << 12).is_err());
    assert_eq!(none.performance_counter(0), None);
}

#[test]
fn amd_registers() {
    let mut c = machine(Model::epyc_milan());
    write(&mut c, msr::AMD_CORE_PERF_EVT_SEL0 + 2, u64::MAX);
    // One counter, two names.
    assert_eq!(read(&mut c, msr::AMD_PERF_EVT_SEL0 + 1), select::AMD);
    write(&mut c, msr::AMD_PERF_CTR0 + 3, u64::MAX);
    assert_eq!(read(&mut c, msr::AMD_CORE_PERF_EVT_SEL0 + 7), VALUES);
    assert!(c.read_msr(msr::AMD_CORE_PERF_EVT_SEL0 + 12).is_err() && c.read_msr(msr::AMD_PERF_GLOBAL_CTL).is_err());
    assert_eq!((c.performance_counter(3), c.performance_counter(5), c.performance_counter(6)), (Some(VALUES), Some(0), None));
    let mut c = machine(Model::max_amd());
    assert_eq!(read(&mut c, msr::AMD_PERF_GLOBAL_CTL), 0x3f);
    c.apic.svr = 0x1ff;
    c.apic.lvt[LVT_PERFORMANCE] = 0x40;
    write(&mut c, msr::AMD_PERF_EVT_SEL0, INSTRUCTIONS | BOTH | select::INT);
    write(&mut c, msr::AMD_PERF_CTR0, VALUES);
    run(&mut c, |a| a.nop());
    assert_eq!(read(&mut c, msr::AMD_PERF_GLOBAL_STATUS), 1);
    assert!(c.write_msr(msr::AMD_PERF_GLOBAL_STATUS, 0).is_err());
    write(&mut c, msr::AMD_PERF_GLOBAL_STATUS_CLR, 1);
    assert_eq!(read(&mut c, msr::AMD_PERF_GLOBAL_STATUS), 0);
    // The entry of the local vector table stays open.
    assert_eq!((c.apic.irr.highest(), c.apic.lvt[LVT_PERFORMANCE] & LVT_MASK), (Some(0x40), 0));
}

/// 2048 lines are loaded, twice what the first level holds, and less than the second does; from `LINES` on.
fn sweep(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, 2048)?;
    a.mov(rax, LINES)?;
    a.set_label(&mut again)?;
    a.mov(rdx, qword_ptr(rax))?;
    a.add(rax, 64)?;
    a.dec(ecx)?;
    a.jne(again)
}

const LINES: u64 = 0x1_0000;

#[test]
fn requests_to_the_last_level_cache() {
    let mut c = intel();
    write(&mut c, msr::IA32_PERF_GLOBAL_CTRL, 0);
    write(&mut c, msr::IA32_PERFEVTSEL0, 0x4f2e | BOTH);
    write(&mut c, msr::IA32_PERFEVTSEL0 + 1, 0x412e | BOTH);
    let mut counts = |code: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let before = (read(&mut c, msr::IA32_A_PMC0), read(&mut c, msr::IA32_A_PMC0 + 1));
        run(&mut c, |a| {
            between(a, 3, code);
            Ok(())
        });
        assert!(!c.tlb_bypassed() && !c.bypassing(), "what is not counted is not watched");
        (read(&mut c, msr::IA32_A_PMC0) - before.0, read(&mut c, msr::IA32_A_PMC0 + 1) - before.1)
    };
    // Every other line comes along with its neighbour; afterwards the second level has them all.
    assert_eq!(counts(&sweep), (2048, 1024));
    assert_eq!(counts(&sweep), (0, 0));
    let load = |a: &mut CodeAssembler| a.mov(rdx, qword_ptr(LINES));
    let flushed = |a: &mut CodeAssembler| {
        a.clflush(byte_ptr(LINES))?;
        load(a)
    };
    assert_eq!(counts(&flushed), (1, 1));
    assert_eq!(counts(&load), (0, 0));
    let written_back = |a: &mut CodeAssembler| {
        a.wbinvd()?;
        // Across two lines, which are a pair.
        a.mov(qword_ptr(LINES + 60), rdx)
    };
    assert_eq!(counts(&written_back), (2, 1));
    // 4 KiB, which no bulk copy hides.
    let copied = |a: &mut CodeAssembler| {
        a.wbinvd()?;
        a.mov(ecx, 512)?;
        a.mov(rsi, LINES)?;
        a.mov(rdi, LINES + 0x1000)?;
        a.rep().movsq()
    };
    assert_eq!(counts(&copied), (128, 64));
}

#[test]
fn requests_to_the_second_level_cache() {
    let mut c = machine(Model::max_amd());
    for (i, event) in [0xff60, 0x4060, 0x4064, 0x0864].into_iter().enumerate() {
        write(&mut c, msr::AMD_CORE_PERF_EVT_SEL0 + 2 * i as u32, event | BOTH);
    }
    let counts = |c: &mut Cpu| {
        run(c, sweep);
        c.count();
        (0..4).map(|i| std::mem::take(&mut c.state.msrs.performance.counters[i])).collect::<Vec<_>>()
    };
    assert_eq!(counts(&mut c), [2048, 0, 0, 2048]);
    assert_eq!(counts(&mut c), [2048, 0, 2048, 0]);
}

#[test]
fn an_overflow_of_requests_interrupts_where_it_happens() {
    for (event, each) in [(0x4f2e, 1), (0x412e, 2)] {
        let mut c = intel();
        c.apic.svr = 0x1ff;
        c.apic.lvt[LVT_PERFORMANCE] = 0x40;
        write(&mut c, msr::IA32_PERFEVTSEL0, event | BOTH | select::INT);
        // At the 1001st line.
        write(&mut c, msr::IA32_A_PMC0, VALUES + 1 - 1000 / each - 1);
        let start = c.now();
        let mut a = CodeAssembler::new(64).unwrap();
        sweep(&mut a).unwrap();
        let bytes = a.assemble(CODE).unwrap();
        c.shared.write_bytes(CODE, &bytes).unwrap();
        c.state.set_rip(CODE);
        c.run(&mut NullBus, start + 2 + 4 * 1000);
        assert_eq!((read(&mut c, msr::IA32_PERF_GLOBAL_STATUS), c.apic.irr.highest()), (0, None), "{event:#x}");
        c.run(&mut NullBus, start + 2 + 4 * 1001 + 1);
        assert_eq!((read(&mut c, msr::IA32_PERF_GLOBAL_STATUS), c.apic.irr.highest()), (1, Some(0x40)), "{event:#x}");
    }
}
