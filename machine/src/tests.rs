//! Small guests that make the parts work together.

use iced_x86::code_asm::*;
use undervisor_devices::Dma;

use crate::load::Entry;
use crate::{BufferBackend, Image, Kernel, Machine, MachineConfig, NoHost, StopReason};

mod chipset;

/// No guest here runs longer.
const LIMIT: u64 = 500_000;

/// Real-mode code at 0x7c00.
fn real_mode(cpus: usize, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> MachineConfig {
    let mut a = CodeAssembler::new(16).unwrap();
    build(&mut a).unwrap();
    let code = a.assemble(0x7c00).unwrap();
    MachineConfig::new().memory(4 << 20).cpus(cpus).instruction_limit(LIMIT).flat(Image::new("guest", code), 0x7c00)
}

/// Flat 32-bit code at 0x100000; stack below 0x7000.
fn flat32(config: MachineConfig, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let mut a = CodeAssembler::new(32).unwrap();
    build(&mut a).unwrap();
    let code = a.assemble(0x10_0000).unwrap();
    let mut machine = config.memory(4 << 20).instruction_limit(LIMIT).build().unwrap();
    machine.ram().write(0x10_0000, &code).unwrap();
    let entry = Entry::Flat32 { eip: 0x10_0000, eax: 0, ebx: 0, esi: 0, code: 8, data: 16 };
    entry.prepare(machine.ram());
    entry.apply(&mut machine.cpus_mut()[0]);
    machine
}

fn out(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(dx, port)?;
    a.mov(al, value)?;
    a.out(dx, al)
}

/// Count timer interrupts by way of the 8259s, halted in between; then leave with the count.
fn timer_guest(ticks: u32) -> impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        // The handler stands behind a short jump.
        let (mut again, mut over) = (a.create_label(), a.create_label());
        a.jmp(over)?;
        a.inc(word_ptr(0x600))?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iret()?;
        a.set_label(&mut over)?;
        a.cli()?;
        a.mov(word_ptr(0x600), 0)?;
        a.mov(word_ptr(0x80), 0x7c02)?;
        a.mov(word_ptr(0x82), 0)?;
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
            out(a, port, value)?;
        }
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            out(a, port, value)?;
        }
        a.sti()?;
        a.set_label(&mut again)?;
        a.hlt()?;
        a.cmp(word_ptr(0x600), ticks as i32)?;
        a.jb(again)?;
        a.mov(ax, word_ptr(0x600))?;
        a.mov(dx, 0xf4)?;
        a.out(dx, al)
    }
}

#[test]
fn timer_interrupts_wake_a_halted_processor() {
    let mut m = real_mode(1, timer_guest(20)).build().unwrap();
    assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(20));
    let p = m.progress();
    // 20 periods of 1193 clocks of 1.193182 MHz.
    assert!((19_990_000..20_010_000).contains(&p.time), "{p:?}");
    assert!(p.instructions < 1000 && p.idle > 19_000_000, "{p:?}");
}

#[test]
fn two_runs_are_the_same_run() {
    let hash = |quantum| {
        let mut m = real_mode(2, timer_guest(50)).quantum(quantum).build().unwrap();
        let mut hashes = Vec::new();
        for t in 1..10 {
            assert_eq!(m.run_until(t * 3_000_000, &mut NoHost), None);
            hashes.push(m.state_hash());
        }
        assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(50));
        hashes.push(m.state_hash());
        hashes
    };
    let first = hash(10_000);
    assert_eq!(first, hash(10_000));
    assert!(first.windows(2).all(|w| w[0] != w[1]));
}

#[test]
fn serial_output_and_acpi_power_off() {
    let com1 = BufferBackend::new();
    let config = real_mode(1, |a| {
        b"hi".iter().try_for_each(|c| out(a, 0x3f8, *c as u32))?;
        a.mov(dx, 0x604)?;
        a.mov(ax, 0x2000)?;
        a.out(dx, ax)?;
        a.hlt()
    });
    let mut m = config.serial(com1.clone()).build().unwrap();
    assert_eq!(m.run(&mut NoHost), StopReason::PowerOff);
    assert_eq!(com1.text(), "hi");
}

#[test]
fn the_ways_a_run_can_end() {
    let run = |build: fn(&mut CodeAssembler) -> Result<(), IcedError>| real_mode(1, build).build().unwrap().run(&mut NoHost);
    assert_eq!(run(|a| out(a, 0xcf9, 6)), StopReason::Reset);
    assert_eq!(run(|a| out(a, 0x64, 0xfe)), StopReason::Reset);
    assert_eq!(
        run(|a| {
            a.cli()?;
            a.hlt()
        }),
        StopReason::Halted
    );
    assert_eq!(
        run(|a| {
            let mut l = a.create_label();
            a.set_label(&mut l)?;
            a.jmp(l)
        }),
        StopReason::InstructionLimit(LIMIT)
    );
    // Faults without end: the handler of #UD starts with UD2, and no instruction ever retires again.
    assert_eq!(
        run(|a| {
            let (mut handler, mut over) = (a.create_label(), a.create_label());
            a.jmp(over)?;
            a.set_label(&mut handler)?;
            a.ud2()?;
            a.set_label(&mut over)?;
            a.mov(word_ptr(6 * 4), 0x7c02)?;
            a.mov(word_ptr(6 * 4 + 2), 0)?;
            a.jmp(handler)
        }),
        StopReason::InstructionLimit(LIMIT)
    );
    // Time that passes otherwise does not count: PAUSE takes more than its instruction.
    let mut pauses = real_mode(1, |a| {
        let mut l = a.create_label();
        a.set_label(&mut l)?;
        a.pause()?;
        a.jmp(l)
    })
    .build()
    .unwrap();
    assert_eq!(pauses.run(&mut NoHost), StopReason::InstructionLimit(LIMIT));
    assert_eq!(pauses.progress().instructions, LIMIT);
    let triple = run(|a| {
        a.mov(word_ptr(0x600), 0)?;
        a.lidt(fword_ptr(0x600))?;
        a.ud2()
    });
    assert!(matches!(triple, StopReason::TripleFault { cpu: 0, .. }), "{triple:?}");
    let statuses = [StopReason::PowerOff, triple, StopReason::InstructionLimit(1), StopReason::Halted, StopReason::Reset];
    let numbers: Vec<_> = statuses.iter().map(StopReason::exit_status).collect();
    assert_eq!(numbers, [0, 4, 6, 10, 12]);
    assert_eq!(StopReason::DebugExit(0x10).exit_status(), 0x21);
}

/// INIT and SIPI to everyone else; each processor that starts adds one to a counter; the first waits until all have.
#[test]
fn application_processors_start() {
    for cpus in [2, 5, 64] {
        // At 0x8000, real mode: lock inc word [0x600]; hlt.
        let trampoline = [0xf0, 0xff, 0x06, 0x00, 0x06, 0xf4];
        let mut m = flat32(MachineConfig::new().cpus(cpus), |a| {
            const ICR: u32 = 0xfee0_0300;
            let mut wait = a.create_label();
            a.mov(dword_ptr(0xfee0_00f0u32), 0x1ff)?;
            a.mov(dword_ptr(ICR), 0xc_4500)?;
            a.mov(dword_ptr(ICR), 0xc_4608)?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(word_ptr(0x600u32), cpus as i32 - 1)?;
            a.jb(wait)?;
            a.mov(al, word_ptr(0x600u32).into_byte())?;
            a.mov(dx, 0xf4)?;
            a.out(dx, al)
        });
        m.ram().write(0x8000, &trampoline).unwrap();
        assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(cpus as u32 - 1), "{cpus}");
    }
}

/// A memory operand of a byte at the same place.
trait IntoByte {
    fn into_byte(self) -> AsmMemoryOperand;
}
impl IntoByte for AsmMemoryOperand {
    fn into_byte(self) -> AsmMemoryOperand {
        byte_ptr(self)
    }
}

/// A level-triggered line by way of the I/O APIC: comes until its source lets go, and once per EOI.
#[test]
fn io_apic_level_interrupts_come_until_let_go() {
    let mut m = flat32(MachineConfig::new(), |a| {
        const IOAPIC: u32 = 0xfec0_0000;
        // The handler stands behind a short jump.
        let (mut over, mut wait, mut done) = (a.create_label(), a.create_label(), a.create_label());
        a.jmp(over)?;
        a.inc(dword_ptr(0x600u32))?;
        a.cmp(dword_ptr(0x600u32), 3)?;
        a.jb(done)?;
        // Let go of line 20 by way of the test device.
        a.mov(edx, 0x2014)?;
        a.xor(eax, eax)?;
        a.out(dx, eax)?;
        a.set_label(&mut done)?;
        a.mov(dword_ptr(0xfee0_00b0u32), 0)?;
        a.iretd()?;
        a.set_label(&mut over)?;
        a.mov(dword_ptr(0x600u32), 0)?;
        // IDT entry 0x40 at 0x2000 + 0x200.
        a.mov(word_ptr(0x2200u32), 2)?;
        a.mov(word_ptr(0x2202u32), 8)?;
        a.mov(word_ptr(0x2204u32), 0x8e00u32 as i32)?;
        a.mov(word_ptr(0x2206u32), 0x10)?;
        a.mov(word_ptr(0x700u32), 0x7ff)?;
        a.mov(dword_ptr(0x702u32), 0x2000)?;
        a.lidt(fword_ptr(0x700u32))?;
        a.mov(dword_ptr(0xfee0_00f0u32), 0x1ff)?;
        a.mov(dword_ptr(IOAPIC), 0x10 + 2 * 20 + 1)?;
        a.mov(dword_ptr(IOAPIC + 0x10), 0)?;
        a.mov(dword_ptr(IOAPIC), 0x10 + 2 * 20)?;
        a.mov(dword_ptr(IOAPIC + 0x10), 0x8040)?;
        a.mov(edx, 0x2014)?;
        a.mov(eax, 1)?;
        a.out(dx, eax)?;
        a.sti()?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut wait)?;
        a.dec(ecx)?;
        a.jnz(wait)?;
        a.mov(eax, dword_ptr(0x600u32))?;
        a.mov(edx, 0xf4)?;
        a.out(dx, eax)
    });
    assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(3));
}

#[test]
fn the_clock_wakes_it_from_s3() {
    let mut m = real_mode(1, |a| {
        let (mut woken, mut spin) = (a.create_label(), a.create_label());
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.cmp(word_ptr(0x700), 0x1234)?;
        a.je(woken)?;
        a.mov(word_ptr(0x700), 0x1234)?;
        // The waking vector is this code again.
        a.mov(ax, 0xe000)?;
        a.mov(es, ax)?;
        a.mov(dword_ptr(0x4c).es(), 0x7c00)?;
        a.mov(dx, 0x602)?;
        a.mov(ax, 0x400)?;
        a.out(dx, ax)?;
        for (register, value) in [(1, 0xc0), (3, 0xc0), (5, 0xc0), (11, 0x22)] {
            out(a, 0x70, register)?;
            out(a, 0x71, value)?;
        }
        a.mov(dx, 0x604)?;
        a.mov(ax, 0x2400)?;
        a.out(dx, ax)?;
        // Not executed.
        a.mov(word_ptr(0x700), 0)?;
        a.set_label(&mut spin)?;
        a.jmp(spin)?;
        a.set_label(&mut woken)?;
        a.mov(dx, 0x600)?;
        a.in_(ax, dx)?;
        a.mov(al, ah)?;
        a.mov(dx, 0xf4)?;
        a.out(dx, al)
    })
    .build()
    .unwrap();
    // WAK_STS and RTC_STS.
    assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(0x84));
    let p = m.progress();
    assert!(p.time >= 1_000_000_000 && p.time < 1_001_000_000 && p.instructions < 100, "{p:?}");
}

#[test]
fn reboot_starts_over() {
    // The first time the CMOS byte 0x40 is 0: set it and reset. The second time leave.
    let config = real_mode(1, |a| {
        let mut second = a.create_label();
        out(a, 0x70, 0x40)?;
        a.in_(al, 0x71)?;
        a.test(al, al)?;
        a.jnz(second)?;
        out(a, 0x71, 0x77)?;
        out(a, 0xcf9, 6)?;
        a.hlt()?;
        a.set_label(&mut second)?;
        a.mov(dx, 0xf4)?;
        a.out(dx, al)
    });
    assert_eq!(config.reboot(true).build().unwrap().run(&mut NoHost), StopReason::DebugExit(0x77));
}

#[test]
fn kernels_get_what_firmware_leaves() {
    let kernel = Kernel { image: Image::new("k", vec![0xf4]), flat_at: Some(0x7c00), ..Kernel::default() };
    let m = MachineConfig::new().memory(8 << 20).cpus(2).kernel(kernel).build().unwrap();
    for cpu in m.cpus() {
        assert_eq!(cpu.state.msrs.mtrr_def_type, 0xc06);
        assert_eq!(cpu.state.msrs.feature_control, 5);
        assert_eq!(cpu.apic.lvt[4], 0x400);
    }
    assert_eq!(m.cpus()[0].apic.lvt[3], 0x700);
}

#[test]
fn a_limit_set_during_an_interruption_holds() {
    let mut m = real_mode(1, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.jmp(here)
    })
    .build()
    .unwrap();
    assert_eq!(m.run_until(1000, &mut NoHost), None);
    let so_far = m.progress().instructions;
    m.set_instruction_limit(Some(so_far + 100));
    assert_eq!(m.run(&mut NoHost), StopReason::InstructionLimit(so_far + 100));
    assert_eq!(m.progress().instructions, so_far + 100);
}
