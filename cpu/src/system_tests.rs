//! Events, segments, tasks and debug traps through small programs that run in the run loop.

use std::rc::Rc;

use undervisor_core::{
    Activity, Cr0, Cr4, Efer, Event, EventKind, Exception, Model, Rflags, SegReg, Segment, TableReg, Vector, regs,
};
use undervisor_mmu::NullBus;

use crate::cpu::Cpu;
use crate::events;
use crate::run::RunExit;
use crate::testing::{make_amd, processor};

const CODE: u64 = 0x1000;
const GDT: u64 = 0x2000;
const IDT: u64 = 0x3000;
const TSS: u64 = 0x5000;
const TSS2: u64 = 0x5800;
/// Handler of vector n: HANDLERS + 16 n, a HLT each.
const HANDLERS: u64 = 0x6000;
const STACK: u64 = 0x8000;
const STACK0: u64 = 0x9000;

/// Selectors of the test GDT.
mod sel {
    pub const CODE0: u16 = 0x08;
    pub const DATA0: u16 = 0x10;
    pub const CODE3: u16 = 0x18 | 3;
    pub const DATA3: u16 = 0x20 | 3;
    pub const TSS: u16 = 0x28;
    pub const TSS2: u16 = 0x38;
    pub const GATE: u16 = 0x48;
    pub const ABSENT: u16 = 0x58;
}

fn poke(cpu: &Cpu, at: u64, bytes: &[u8]) {
    cpu.shared.write_bytes(at, bytes).unwrap();
}
fn poke64(cpu: &Cpu, at: u64, value: u64) {
    poke(cpu, at, &value.to_le_bytes());
}
fn peek64(cpu: &Cpu, at: u64) -> u64 {
    cpu.shared.memory.read::<u64>(at).unwrap()
}
fn peek32(cpu: &Cpu, at: u64) -> u64 {
    cpu.shared.memory.read::<u32>(at).unwrap() as u64
}

fn descriptor(base: u64, limit: u64, access: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access & 0xff) << 40
        | (limit >> 16 & 0xf) << 48
        | (access >> 8) << 52
        | (base >> 24 & 0xff) << 56
}

/// A processor with tables set up: GDT, IDT whose handlers are HLTs, a TSS with stacks.
fn system(bits: u32) -> Box<Cpu> {
    let mut cpu = processor(bits);
    let long = bits == 64;
    let code = if long { 0xa9b } else { 0xc9b };
    for (selector, d) in [
        (sel::CODE0, descriptor(0, 0xf_ffff, code)),
        (sel::DATA0, descriptor(0, 0xf_ffff, 0xc93)),
        (sel::CODE3, descriptor(0, 0xf_ffff, code | 0x60)),
        (sel::DATA3, descriptor(0, 0xf_ffff, 0xcf3)),
        (sel::TSS, descriptor(TSS, 0x67, 0x89)),
        (sel::TSS2, descriptor(TSS2, 0x67, 0x89)),
        (sel::ABSENT, descriptor(0, 0xf_ffff, 0xc13)),
    ] {
        poke64(&cpu, GDT + (selector & !7) as u64, d);
    }
    cpu.state.gdtr = TableReg { base: GDT, limit: 0x7f };
    for n in 0..256u64 {
        let handler = HANDLERS + 16 * (n & 0x3f);
        poke(&cpu, handler, &[0xf4]);
        let access = if matches!(n, 3 | 0x30) { 0xee } else { 0x8e };
        let gate = handler & 0xffff | (sel::CODE0 as u64) << 16 | access << 40;
        poke64(&cpu, IDT + n * if long { 16 } else { 8 }, gate);
    }
    cpu.state.idtr = TableReg { base: IDT, limit: 0xfff };
    if long {
        poke64(&cpu, TSS + 4, STACK0);
    } else {
        poke64(&cpu, TSS + 4, STACK0 | (sel::DATA0 as u64) << 32);
        poke64(&cpu, TSS2 + 4, STACK0 | (sel::DATA0 as u64) << 32);
    }
    cpu.state.tr = Segment { selector: sel::TSS, access: 0x8b, limit: 0x67, base: TSS };
    cpu.state.set_rflags(2);
    cpu
}

fn user(cpu: &mut Cpu) {
    let code = if cpu.state.long_mode() { 0xa0fb } else { 0xc0fb };
    let flat = |selector, access| Segment { selector, access, limit: u32::MAX, base: 0 };
    cpu.state.set_segment(SegReg::Cs, flat(sel::CODE3, code));
    cpu.state.set_segment(SegReg::Ss, flat(sel::DATA3, 0xc0f3));
    cpu.state.cpl = 3;
    cpu.mode_changed();
}

/// Run `code` until it halts or has retired `limit` instructions.
fn run(cpu: &mut Cpu, code: &[u8], limit: u64) -> RunExit {
    poke(cpu, CODE, code);
    cpu.state.set_rip(CODE);
    let end = cpu.now() + limit;
    cpu.run(&mut NullBus, end)
}

/// That the handler of `vector` halted the processor.
fn handled(cpu: &Cpu, vector: u8) {
    assert_eq!(cpu.state.activity, Activity::Hlt, "rip {:#x}", cpu.state.rip());
    assert_eq!(cpu.state.rip(), HANDLERS + 16 * vector as u64 + 1, "not the handler of {vector}");
}

#[test]
fn long_mode_interrupt_and_return() {
    let mut c = system(64);
    user(&mut c);
    // int3; the handler: iretq; then hlt faults at CPL 3 with #GP(0).
    poke(&c, HANDLERS + 16 * 3, &[0x48, 0xcf]);
    assert_eq!(run(&mut c, &[0xcc, 0xf4], 100), RunExit::Idle);
    handled(&c, Vector::GP);
    let frame = STACK0 - 48;
    assert_eq!(c.state.gpr(regs::RSP), frame);
    assert_eq!(peek64(&c, frame), 0);
    assert_eq!(peek64(&c, frame + 8), CODE + 1);
    assert_eq!(peek64(&c, frame + 16), sel::CODE3 as u64);
    assert_eq!(peek64(&c, frame + 24) & Rflags::RF.bits(), Rflags::RF.bits(), "a fault pushes RF");
    assert_eq!(peek64(&c, frame + 32), STACK);
    assert_eq!(peek64(&c, frame + 40), sel::DATA3 as u64);
    assert_eq!((c.state.cpl, c.state.segment(SegReg::Ss).selector), (0, 0));
}

#[test]
fn int_n_checks_the_gate() {
    let mut c = system(64);
    user(&mut c);
    run(&mut c, &[0xcd, 0x21], 100);
    handled(&c, Vector::GP);
    assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), 0x21 * 8 + 2);
    let mut c = system(64);
    user(&mut c);
    run(&mut c, &[0xcd, 0x30], 100);
    handled(&c, 0x30);
    assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), CODE + 2);
}

#[test]
fn ist_and_alignment() {
    let mut c = system(64);
    poke64(&c, TSS + 36, 0xa008);
    let gate = peek64(&c, IDT + 16 * 3);
    poke64(&c, IDT + 16 * 3, gate | 1 << 32);
    run(&mut c, &[0xcc], 100);
    handled(&c, 3);
    assert_eq!(c.state.gpr(regs::RSP), 0xa000 - 40);
}

#[test]
fn segment_faults_carry_the_selector() {
    for (selector, vector, code) in [
        (sel::ABSENT, Vector::NP, sel::ABSENT as u64),
        (0x1000, Vector::GP, 0x1000),
        (sel::TSS, Vector::GP, sel::TSS as u64),
        (sel::DATA3 & !3 | 7, Vector::GP, 0x24),
    ] {
        let mut c = system(64);
        c.state.set_gpr(regs::RAX, selector as u64);
        run(&mut c, &[0x8e, 0xd8], 100);
        handled(&c, vector);
        assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), code, "{selector:#x}");
    }
}

/// Non-canonical addresses fault by the base register's segment, whatever override stands before; FS and GS count.
#[test]
fn ignored_overrides_do_not_choose_the_fault() {
    for (code, vector) in [
        (&[0x36u8, 0x48, 0x8b, 0x00][..], Vector::GP),
        (&[0x3e, 0x48, 0x8b, 0x45, 0x00], Vector::SS),
        (&[0x26, 0x48, 0x89, 0x45, 0x00], Vector::SS),
        (&[0x2e, 0x48, 0x8b, 0x45, 0x00], Vector::SS),
        (&[0x64, 0x48, 0x8b, 0x45, 0x00], Vector::GP),
        (&[0x64, 0x36, 0x48, 0x8b, 0x45, 0x00], Vector::GP),
        // LODSQ and PADDD, which take other ways.
        (&[0x36, 0x48, 0xad], Vector::GP),
        (&[0x3e, 0x66, 0x0f, 0xfe, 0x45, 0x00], Vector::SS),
    ] {
        let mut c = system(64);
        c.state.cr4 |= Cr4::OSFXSR;
        c.mode_changed();
        for r in [regs::RAX, regs::RBP, regs::RSI] {
            c.state.set_gpr(r, 1 << 63);
        }
        run(&mut c, code, 100);
        handled(&c, vector);
    }
}

#[test]
fn double_and_triple_fault() {
    // Without a #UD gate: #UD, then #NP or #GP on its gate, delivered as such (benign first).
    let mut c = system(64);
    poke64(&c, IDT + 16 * 6, 0);
    run(&mut c, &[0x0f, 0x0b], 100);
    handled(&c, Vector::GP);
    assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), 6 * 8 + 3, "EXT");
    // AMD: an exception is not external, an interrupt is.
    for (external, ext) in [(false, 0), (true, 1)] {
        let mut c = system(64);
        make_amd(&mut c);
        poke64(&c, IDT + 16 * 6, 0);
        let kind = if external { EventKind::External } else { EventKind::HardwareException };
        let event = Event { kind, ..Event::from(Exception::UD) };
        let _ = events::deliver(&mut c, event, events::Origin::Native);
        let end = c.now() + 10;
        c.run(&mut NullBus, end);
        handled(&c, Vector::GP);
        assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), 6 * 8 + 2 + ext);
    }
    // #GP without a #GP gate: #DF.
    let mut c = system(64);
    poke64(&c, IDT + 16 * 13, 0);
    c.state.set_gpr(regs::RAX, 0x1000);
    run(&mut c, &[0x8e, 0xd8], 100);
    handled(&c, Vector::DF);
    assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), 0);
    // And without a #DF gate: shutdown.
    let mut c = system(64);
    c.state.idtr.limit = 0;
    assert_eq!(run(&mut c, &[0x0f, 0x0b], 100), RunExit::Shutdown);
}

#[test]
fn single_step() {
    let mut c = system(64);
    // pushfq; or dword [rsp], 0x100; popfq; nop; nop
    run(&mut c, &[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90], 100);
    handled(&c, Vector::DB);
    let sp = c.state.gpr(regs::RSP);
    assert_eq!(peek64(&c, sp), CODE + 10, "traps after the instruction that follows POPF");
    assert_eq!(c.state.dr6 & 1 << 14, 1 << 14);
    assert_eq!(peek64(&c, sp + 16) & 0x10100, 0x100);
    // MOV SS delays the trap by one instruction.
    let mut c = system(64);
    c.state.set_flag(Rflags::TF, true);
    c.attend(crate::cpu::attention::DEBUG);
    c.state.set_gpr(regs::RAX, sel::DATA0 as u64);
    run(&mut c, &[0x8e, 0xd0, 0x90, 0x90], 100);
    handled(&c, Vector::DB);
    assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), CODE + 3);
}

#[test]
fn breakpoints() {
    // A data breakpoint traps after the store, wherever in a block that is.
    let mut c = system(64);
    c.state.dr[0] = 0x7004;
    c.write_dr7(0x000d_0001);
    c.state.set_gpr(regs::RBX, 0x7000);
    // mov [rbx], eax; mov [rbx+4], ax; nop
    run(&mut c, &[0x89, 0x03, 0x66, 0x89, 0x43, 0x04, 0x90, 0x90], 100);
    handled(&c, Vector::DB);
    assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), CODE + 6);
    assert_eq!(c.state.dr6 & 0xf, 1);
    // An instruction breakpoint faults before; IRET with RF set goes on.
    let mut c = system(64);
    c.state.dr[1] = CODE + 1;
    c.write_dr7(0x4);
    // The handler sets RF in the image and returns.
    poke(&c, HANDLERS + 16, &[0x81, 0x4c, 0x24, 0x10, 0, 0, 1, 0, 0xff, 0xc1, 0x48, 0xcf]);
    run(&mut c, &[0x90, 0x90, 0xf4], 100);
    assert_eq!((c.state.gpr(regs::RCX), c.state.rip()), (1, CODE + 3));
    assert!(!c.state.flag(Rflags::RF));
    // General detect.
    let mut c = system(64);
    c.write_dr7(1 << 13);
    run(&mut c, &[0x0f, 0x21, 0xc0], 100);
    handled(&c, Vector::DB);
    assert_eq!((c.state.dr6 & 1 << 13, c.state.dr7 & 1 << 13), (1 << 13, 0));
}

#[test]
fn instruction_breakpoints_after_mov_ss() {
    for amd in [false, true] {
        let mut c = system(64);
        if amd {
            make_amd(&mut c);
        }
        c.state.dr[0] = CODE + 2;
        c.write_dr7(2);
        c.state.set_gpr(regs::RAX, sel::DATA0 as u64);
        // mov ss, eax; nop; hlt
        run(&mut c, &[0x8e, 0xd0, 0x90, 0xf4], 100);
        if amd {
            handled(&c, Vector::DB);
            assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), CODE + 2);
        } else {
            assert_eq!(c.state.rip(), CODE + 4);
        }
    }
}

/// AMD: MOV SS from watched memory, before an instruction with a breakpoint. One #DB reports both.
#[test]
fn a_data_breakpoint_of_mov_ss_joins_an_instruction_breakpoint() {
    let mut c = system(64);
    make_amd(&mut c);
    poke64(&c, 0xc000, sel::DATA0 as u64);
    c.state.set_gpr(regs::RBX, 0xc000);
    c.state.dr[0] = 0xc000;
    c.state.dr[1] = CODE + 2;
    // DR0: reads and writes of two bytes; DR1: instructions.
    c.write_dr7(1 << 1 | 1 << 3 | 0b0111 << 16);
    // mov ss, [rbx]; nop; hlt
    run(&mut c, &[0x8e, 0x13, 0x90, 0xf4], 100);
    handled(&c, Vector::DB);
    assert_eq!((peek64(&c, c.state.gpr(regs::RSP)), c.state.dr6 & 0xf), (CODE + 2, 3));
    assert_eq!(c.state.pending_debug, 0);
}

#[test]
fn sysret_traps_by_the_flag_it_loads() {
    let mut c = system(64);
    c.state.efer |= Efer::SCE;
    c.state.msrs.star = 0x13 << 48;
    c.state.set_gpr(regs::RCX, CODE + 3);
    c.state.set_gpr(regs::R11, (Rflags::TF.bits()) | 2);
    // sysretq; nop; nop
    run(&mut c, &[0x48, 0x0f, 0x07, 0x90, 0x90], 100);
    handled(&c, Vector::DB);
    assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), CODE + 3);
    assert_eq!(c.state.dr6 >> 14 & 1, 1);
}

#[test]
fn far_jumps_take_64_bit_offsets() {
    for amd in [false, true] {
        let mut c = system(64);
        if amd {
            make_amd(&mut c);
        }
        poke64(&c, 0x7000, CODE + 5);
        poke64(&c, 0x7008, sel::CODE0 as u64);
        c.state.set_gpr(regs::RBX, 0x7000);
        // rex.w jmp far [rbx]; hlt; nop; hlt
        run(&mut c, &[0x48, 0xff, 0x2b, 0xf4, 0x90, 0xf4], 100);
        assert_eq!(c.state.rip(), CODE + 6);
    }
}

#[test]
fn interrupts_wait_for_the_sti_shadow() {
    let mut c = system(64);
    c.apic.svr = 0x1ff;
    c.apic.irr.set(0x31, true);
    c.signal_interrupt();
    // sti; inc ecx; inc ecx
    run(&mut c, &[0xfb, 0xff, 0xc1, 0xff, 0xc1, 0xf4], 100);
    handled(&c, 0x31);
    assert_eq!(c.state.gpr(regs::RCX), 1);
    assert_eq!(c.counters.interrupts, 1);
    // HLT wakes up for one.
    let mut c = system(64);
    c.apic.svr = 0x1ff;
    assert_eq!(run(&mut c, &[0xfb, 0xf4, 0xff, 0xc1], 100), RunExit::Idle);
    c.apic.irr.set(0x31, true);
    c.signal_interrupt();
    let end = c.now() + 100;
    c.run(&mut NullBus, end);
    handled(&c, 0x31);
    assert_eq!(peek64(&c, c.state.gpr(regs::RSP)), CODE + 2);
}

/// Nothing waits, and the instruction after STI is seen by no one: no boundary there, and none after CLI.
#[test]
fn a_block_goes_on_behind_sti() {
    let mut c = system(64);
    c.apic.svr = 0x1ff;
    // cli; sti; nop; cli; sti; inc ecx; mov [rsp], eax; hlt
    run(&mut c, &[0xfa, 0xfb, 0x90, 0xfa, 0xfb, 0xff, 0xc1, 0x89, 0x04, 0x24, 0xf4], 100);
    assert_eq!(c.state.rip(), CODE + 11);
    assert!(c.state.flag(Rflags::IF) && !c.state.shadow.sti);
    assert_eq!(c.counters.blocks_decoded, 1);
}

#[test]
fn nmi_is_blocked_until_iret() {
    let mut c = system(64);
    poke(&c, HANDLERS + 32, &[0xff, 0xc1, 0x48, 0xcf]);
    c.signal_nmi();
    run(&mut c, &[0x90, 0xf4], 1);
    assert!(c.state.shadow.nmi);
    c.signal_nmi();
    let end = c.now() + 100;
    c.run(&mut NullBus, end);
    assert_eq!(c.state.gpr(regs::RCX), 2);
    assert!(!c.state.shadow.nmi);
    assert_eq!(c.state.rip(), CODE + 2);
}

#[test]
fn system_calls() {
    let mut c = system(64);
    c.state.efer |= Efer::SCE;
    c.state.msrs.star = (sel::CODE0 as u64) << 32 | 0x13 << 48;
    c.state.msrs.lstar = HANDLERS;
    c.state.msrs.fmask = Rflags::IF.bits();
    user(&mut c);
    c.state.set_flag(Rflags::IF, true);
    poke(&c, HANDLERS, &[0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07]); // swapgs; sysretq
    run(&mut c, &[0x0f, 0x05, 0x90, 0x90], 3);
    assert_eq!(c.state.rip(), CODE + 2);
    assert_eq!((c.state.cpl, c.state.segment(SegReg::Cs).selector), (3, 0x23));
    assert_eq!(c.state.segment(SegReg::Ss).selector, 0x1b);
    assert!(c.state.flag(Rflags::IF) && c.state.mode64());
}

#[test]
fn outer_return_and_call_gate() {
    let mut c = system(32);
    user(&mut c);
    // Gate: to CODE0 at HANDLERS, two parameters, DPL 3.
    poke64(&c, GDT + sel::GATE as u64, HANDLERS | (sel::CODE0 as u64) << 16 | 0xec02 << 32);
    poke(&c, HANDLERS, &[0x8b, 0x44, 0x24, 0x08, 0xcb]); // mov eax, [esp+8]; retf
    poke(&c, HANDLERS + 4, &[0xca, 8, 0]); // retf 8
    // push 0x11; push 0x22; call far GATE:0; hlt
    run(&mut c, &[0x6a, 0x11, 0x6a, 0x22, 0x9a, 0, 0, 0, 0, sel::GATE as u8, 0, 0xf4], 5);
    assert_eq!(c.state.gpr(regs::RAX), 0x22);
    assert_eq!((c.state.cpl, c.state.rip()), (3, CODE + 11));
    assert_eq!(c.state.gpr(regs::RSP), STACK);
    assert_eq!(peek32(&c, STACK0 - 4), sel::DATA3 as u64);
    // DS held a DPL-0 segment: null now.
    assert!(c.state.segment(SegReg::Ds).unusable());
}

fn second_task(c: &Cpu) {
    for (offset, value) in [
        (0x20u64, HANDLERS + 0x300),
        (0x24, 2),
        (0x38, STACK - 0x100),
        (0x48, sel::DATA0 as u64),
        (0x4c, sel::CODE0 as u64),
        (0x50, sel::DATA0 as u64),
        (0x54, sel::DATA0 as u64),
    ] {
        poke(c, TSS2 + offset, &(value as u32).to_le_bytes());
    }
    poke64(c, GDT + sel::TSS as u64, descriptor(TSS, 0x67, 0x8b));
}

#[test]
fn task_call_and_return() {
    let mut c = system(32);
    second_task(&c);
    poke(&c, HANDLERS + 0x300, &[0x9c, 0x58, 0xcf]); // pushf; pop eax; iret
    c.state.set_gpr(regs::RBX, 0x1234);
    // call far TSS2:0; hlt
    assert_eq!(run(&mut c, &[0x9a, 0, 0, 0, 0, sel::TSS2 as u8, 0, 0xf4], 100), RunExit::Idle);
    assert_eq!(c.state.rip(), CODE + 8);
    assert_eq!((c.state.tr.selector, c.state.gpr(regs::RBX)), (sel::TSS, 0x1234));
    assert!(c.state.cr0.contains(Cr0::TS));
    // The second task ran with NT and the back link, and is available again.
    assert_eq!(peek32(&c, TSS2 + 0x28) & Rflags::NT.bits(), Rflags::NT.bits());
    assert_eq!(peek32(&c, TSS2) & 0xffff, sel::TSS as u64);
    assert_eq!(peek64(&c, GDT + sel::TSS2 as u64) >> 40 & 0xf, 9);
    assert_eq!(peek64(&c, GDT + sel::TSS as u64) >> 40 & 0xf, 11);
    // Busy now: #GP.
    let mut c = system(32);
    run(&mut c, &[0xea, 0, 0, 0, 0, sel::TSS2 as u8, 0], 1);
    assert_eq!(c.state.tr.selector, sel::TSS2);
}

#[test]
fn a_bad_segment_faults_in_the_new_task() {
    let mut c = system(32);
    second_task(&c);
    poke(&c, TSS2 + 0x54, &(sel::ABSENT as u32).to_le_bytes());
    run(&mut c, &[0xea, 0, 0, 0, 0, sel::TSS2 as u8, 0], 100);
    handled(&c, Vector::NP);
    assert_eq!(c.state.tr.selector, sel::TSS2);
    let sp = c.state.gpr(regs::RSP);
    assert_eq!((peek32(&c, sp), peek32(&c, sp + 4)), (sel::ABSENT as u64, HANDLERS + 0x300));
}

#[test]
fn virtual_8086() {
    let mut c = system(32);
    let sp = STACK - 36;
    let frame =
        [0x10, 0x100, (Rflags::VM | Rflags::IOPL).bits() | 2, 0x700, 0x123, 0x111, 0x222, 0x333, 0x444].map(|v: u64| v as u32);
    for (i, v) in frame.iter().enumerate() {
        poke(&c, sp + 4 * i as u64, &v.to_le_bytes());
    }
    c.state.set_gpr(regs::RSP, sp);
    poke(&c, 0x1010, &[0xcd, 0x30]);
    poke(&c, 0x800, &[0xcf]);
    c.state.set_rip(0x800);
    // iret to V86, int 0x30 with IOPL 3: through the IDT to ring 0.
    assert_eq!(c.run(&mut NullBus, 100), RunExit::Idle);
    handled(&c, 0x30);
    let sp = c.state.gpr(regs::RSP);
    assert_eq!(sp, STACK0 - 36);
    let pushed: Vec<u64> = (0..9).map(|i| peek32(&c, sp + 4 * i)).collect();
    assert_eq!(pushed, [0x12, 0x100, frame[2] as u64, 0x700, 0x123, 0x111, 0x222, 0x333, 0x444]);
    assert!(c.state.segment(SegReg::Ds).unusable() && !c.state.virtual_8086());
}

#[test]
fn real_mode_interrupt() {
    let mut c = processor(16);
    poke(&c, 4 * 0x21, &[0x00, 0x20, 0x00, 0x00]);
    poke(&c, 0x2000, &[0xcf]);
    c.state.set_flag(Rflags::IF, true);
    assert_eq!(run(&mut c, &[0xcd, 0x21, 0xf4], 100), RunExit::Idle);
    assert_eq!((c.state.rip(), c.state.gpr(regs::RSP)), (CODE + 3, STACK));
    assert!(c.state.flag(Rflags::IF));
}

#[test]
fn big_limits_survive_real_mode_loads() {
    let mut c = processor(16);
    let mut ds = *c.state.segment(SegReg::Ds);
    ds.limit = u32::MAX;
    c.state.set_segment(SegReg::Ds, ds);
    c.state.set_gpr(regs::RAX, 0x100);
    run(&mut c, &[0x8e, 0xd8], 1);
    assert_eq!((c.state.segment(SegReg::Ds).limit, c.state.segment(SegReg::Ds).base), (u32::MAX, 0x1000));
}

#[test]
fn control_registers() {
    let bad = |cr: u8, value: u64, prepare: fn(&mut Cpu)| {
        let mut c = system(64);
        prepare(&mut c);
        c.state.set_gpr(regs::RAX, value);
        run(&mut c, &[0x0f, 0x22, 0xc0 | cr << 3], 100);
        handled(&c, Vector::GP);
    };
    bad(0, 1 << 32 | 0x11, |_| ());
    bad(0, 0x8000_0010, |_| ());
    bad(0, 0x2000_0011, |_| ());
    bad(4, 1 << 31 | 0x20, |_| ());
    bad(4, 0, |_| ());
    bad(3, 1 << 60, |_| ());
    // LA57 is not in this model.
    bad(4, Cr4::LA57.bits() | Cr4::PAE.bits(), |_| ());
}

#[test]
fn msrs() {
    let mut c = system(64);
    for (msr, value) in [(0xc000_0082u32, 1u64 << 50), (0x277, 2), (0x12345, 0), (0x48, 0x100), (0x10a, 0)] {
        c.state.activity = Activity::Active;
        c.state.set_gpr(regs::RCX, msr as u64);
        c.state.set_gpr(regs::RAX, value & 0xffff_ffff);
        c.state.set_gpr(regs::RDX, value >> 32);
        run(&mut c, &[0x0f, 0x30], 100);
        handled(&c, Vector::GP);
    }
    assert_eq!(c.read_msr(0xfe), Ok(0x508));
    c.write_msr(0x10, 1000).unwrap();
    let adjust = c.read_msr(0x3b).unwrap();
    assert_eq!(c.tsc(), 1000);
    c.write_msr(0x3b, adjust.wrapping_add(5)).unwrap();
    assert_eq!(c.tsc(), 1005);
    make_amd(&mut c);
    assert!(c.read_msr(0xc001_0015).unwrap() & 1 << 24 != 0);
    assert!(c.read_msr(0xce).is_err());
    // BP_CFG, which kernels write for errata; and the patch level says which processor it is for.
    assert_eq!((c.write_msr(0xc001_102e, 1 << 5), c.read_msr(0xc001_102e)), (Ok(()), Ok(1 << 5)));
    for (model, patch) in [(Model::epyc_milan(), 0x0a00_11de), (Model::max_amd(), 0x0a10_11de)] {
        c.model = Rc::new(model);
        assert_eq!(c.read_msr(0x8b), Ok(patch));
        // Both barriers of PRED_CMD, and no other bit.
        assert_eq!((c.write_msr(0x49, 1), c.write_msr(0x49, 1 << 7)), (Ok(()), Ok(())));
        assert!(c.write_msr(0x49, 1 << 1).is_err());
    }
}
