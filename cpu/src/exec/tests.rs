//! Tests of the integer groups through whole encodings.

use undervisor_core::{Cr4, Rflags, SegReg, Segment, regs};

use crate::cpu::{Cpu, Stop};
use crate::exec::int_math::{AF, CF, OF, SF, STATUS, ZF};
use crate::testing::{fault, make_amd, processor, step};

fn set(cpu: &mut Cpu, values: &[(u8, u64)]) {
    for &(r, v) in values {
        cpu.state.set_gpr(r, v);
    }
}

fn peek(cpu: &mut Cpu, at: u64) -> u64 {
    cpu.shared.memory.read::<u64>(at).expect("RAM")
}

fn poke(cpu: &mut Cpu, at: u64, value: u64) {
    cpu.shared.memory.write(at, value).expect("RAM");
}

const RAX: u8 = regs::RAX;
const RCX: u8 = regs::RCX;
const RDX: u8 = regs::RDX;
const RBX: u8 = regs::RBX;
const RSP: u8 = regs::RSP;
const RBP: u8 = regs::RBP;
const RSI: u8 = regs::RSI;
const RDI: u8 = regs::RDI;

#[test]
fn arithmetic_sizes_and_flags() {
    let mut c = processor(64);
    set(&mut c, &[(RAX, 0xffff_ffff_ffff_ffff), (RBX, 1)]);
    // add eax, ebx: zero-extends.
    step(&mut c, &[0x01, 0xd8]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0);
    assert_eq!(c.state.rflags() & STATUS, CF | ZF | AF | Rflags::PF.bits());
    // adc ax, 0xfffe: 0 + 0xfffe + 1.
    step(&mut c, &[0x66, 0x15, 0xfe, 0xff]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0xffff);
    // inc ah keeps CF.
    step(&mut c, &[0xf9]).unwrap();
    step(&mut c, &[0xfe, 0xc4]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0x00ff);
    assert_eq!(c.state.rflags() & (CF | ZF), CF | ZF);
    // sbb rax, rax with CF.
    step(&mut c, &[0x48, 0x19, 0xc0]).unwrap();
    assert_eq!(c.state.gpr(RAX), u64::MAX);
    assert_eq!(c.state.rflags() & (CF | SF), CF | SF);
    // neg of the most negative byte overflows.
    set(&mut c, &[(RAX, 0x80)]);
    step(&mut c, &[0xf6, 0xd8]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.rflags() & (CF | OF)), (0x80, CF | OF));
    // and qword [rsp], imm8 sign-extended.
    poke(&mut c, 0x8000, u64::MAX);
    step(&mut c, &[0x48, 0x83, 0x24, 0x24, 0xf0]).unwrap();
    assert_eq!(peek(&mut c, 0x8000), !15);
}

#[test]
fn divide_errors() {
    let mut c = processor(64);
    set(&mut c, &[(RAX, 0x1234), (RDX, 1), (RCX, 1)]);
    assert_eq!(fault(&mut c, &[0xf7, 0xf1]), (0, None));
    assert_eq!(c.state.gpr(RAX), 0x1234);
    set(&mut c, &[(RDX, 0), (RCX, 0x10)]);
    step(&mut c, &[0xf7, 0xf1]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.gpr(RDX)), (0x123, 4));
    assert_eq!(fault(&mut processor(32), &[0xd4, 0]), (0, None));
}

#[test]
fn compare_and_exchange() {
    let mut c = processor(64);
    poke(&mut c, 0x8000, 5);
    set(&mut c, &[(RAX, 5), (RCX, 9)]);
    // lock cmpxchg [rsp], rcx.
    step(&mut c, &[0xf0, 0x48, 0x0f, 0xb1, 0x0c, 0x24]).unwrap();
    assert_eq!((peek(&mut c, 0x8000), c.state.rflags() & ZF), (9, ZF));
    step(&mut c, &[0xf0, 0x48, 0x0f, 0xb1, 0x0c, 0x24]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.rflags() & ZF), (9, 0));
    // Register forms: a failure leaves all of the destination, a success all of RAX.
    set(&mut c, &[(RAX, 5), (RDX, 0xffff_ffff_0000_0006), (RCX, 9)]);
    step(&mut c, &[0x0f, 0xb1, 0xca]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.gpr(RDX)), (6, 0xffff_ffff_0000_0006));
    set(&mut c, &[(RAX, 0xffff_ffff_0000_0006)]);
    step(&mut c, &[0x0f, 0xb1, 0xca]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.gpr(RDX)), (0xffff_ffff_0000_0006, 9));
    set(&mut c, &[(RAX, 9), (RDX, 0)]);
    // cmpxchg16b: alignment.
    set(&mut c, &[(RSP, 0x8008)]);
    assert_eq!(fault(&mut c, &[0x48, 0x0f, 0xc7, 0x0c, 0x24]), (13, Some(0)));
    set(&mut c, &[(RSP, 0x8000), (RAX, 9), (RDX, 0), (RBX, 1), (RCX, 2)]);
    step(&mut c, &[0x48, 0x0f, 0xc7, 0x0c, 0x24]).unwrap();
    assert_eq!((peek(&mut c, 0x8000), peek(&mut c, 0x8008)), (1, 2));
}

#[test]
fn lock_rules() {
    let mut c = processor(64);
    // lock add eax, ebx (register), lock mov [rsp], eax, lock bt, lock cmp.
    for bytes in
        [&[0xf0, 0x01, 0xd8][..], &[0xf0, 0x89, 0x04, 0x24], &[0xf0, 0x0f, 0xa3, 0x04, 0x24], &[0xf0, 0x39, 0x04, 0x24]]
    {
        assert_eq!(fault(&mut c, bytes), (6, None), "{bytes:x?}");
    }
    for bytes in [&[0xf0, 0x01, 0x04, 0x24][..], &[0xf0, 0x0f, 0xab, 0x04, 0x24], &[0xf0, 0xff, 0x04, 0x24]] {
        step(&mut c, bytes).unwrap();
    }
}

#[test]
fn bases_are_checked_by_the_widest_addresses_of_the_model() {
    let mut c = processor(64);
    poke(&mut c, 0x7ff8, 0);
    // lgdt [rsp - 2]: a base of 57 significant bits.
    poke(&mut c, 0x8000, 0xff45_4545_4500_0000);
    let lgdt = [0x0f, 0x01, 0x54, 0x24, 0xfe];
    let wrfsbase = [0xf3, 0x48, 0x0f, 0xae, 0xd0];
    c.state.cr4 |= Cr4::FSGSBASE;
    set(&mut c, &[(RAX, 0xff45_4545_4500_0000)]);
    c.mode_changed();
    assert_eq!(fault(&mut c, &lgdt), (13, Some(0)));
    assert_eq!(fault(&mut c, &wrfsbase), (13, Some(0)));
    // With 5-level paging in the model, though CR4.LA57 is clear.
    c.model = std::rc::Rc::new(undervisor_core::Model::max_intel());
    step(&mut c, &lgdt).unwrap();
    step(&mut c, &wrfsbase).unwrap();
    assert_eq!(c.state.gdtr.base, 0xff45_4545_4500_0000);
}

#[test]
fn bit_strings() {
    let mut c = processor(64);
    poke(&mut c, 0x7ff8, 0);
    set(&mut c, &[(RAX, (-1i64) as u64)]);
    // bts [rsp], rax: bit −1 is the top bit of the quadword below.
    step(&mut c, &[0x48, 0x0f, 0xab, 0x04, 0x24]).unwrap();
    assert_eq!((peek(&mut c, 0x7ff8), c.carry()), (1 << 63, 0));
    // bt [rsp], eax with bit 70: dword 2, bit 6.
    poke(&mut c, 0x8008, 0x40);
    set(&mut c, &[(RAX, 70)]);
    step(&mut c, &[0x0f, 0xa3, 0x04, 0x24]).unwrap();
    assert_eq!(c.carry(), 1);
    // An immediate offset stays inside: bt dword [rsp], 70 is bit 6.
    poke(&mut c, 0x8000, 0x40);
    step(&mut c, &[0x0f, 0xba, 0x24, 0x24, 70]).unwrap();
    assert_eq!(c.carry(), 1);
}

#[test]
fn scans_and_counts() {
    let mut c = processor(64);
    set(&mut c, &[(RAX, 0), (RCX, 0xffff_ffff_1234_5678)]);
    // bsf ecx, eax with zero leaves rcx.
    step(&mut c, &[0x0f, 0xbc, 0xc8]).unwrap();
    assert_eq!((c.state.gpr(RCX), c.state.rflags() & ZF), (0xffff_ffff_1234_5678, ZF));
    // tzcnt cx, ax gives 16 and CF; lzcnt ecx, eax 32.
    step(&mut c, &[0x66, 0xf3, 0x0f, 0xbc, 0xc8]).unwrap();
    assert_eq!((c.state.gpr(RCX) & 0xffff, c.state.rflags() & (CF | ZF)), (16, CF));
    step(&mut c, &[0xf3, 0x0f, 0xbd, 0xc8]).unwrap();
    assert_eq!(c.state.gpr(RCX), 32);
    // bextr eax, ecx, edx.
    set(&mut c, &[(RCX, 0xabcd), (RDX, 0x0804)]);
    step(&mut c, &[0xc4, 0xe2, 0x68, 0xf7, 0xc1]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0xbc);
}

#[test]
fn cmov_always_zero_extends() {
    let mut c = processor(64);
    set(&mut c, &[(RAX, u64::MAX), (RCX, 1)]);
    c.state.set_status(ZF, 0);
    step(&mut c, &[0x0f, 0x44, 0xc1]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0xffff_ffff);
}

#[test]
fn shift_by_zero_keeps_flags() {
    let mut c = processor(64);
    set(&mut c, &[(RAX, u64::MAX), (RCX, 32)]);
    c.state.set_status(STATUS, STATUS);
    // shl eax, cl.
    step(&mut c, &[0xd3, 0xe0]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.rflags() & STATUS), (0xffff_ffff, STATUS));
}

#[test]
fn rip_relative_and_address_sizes() {
    let mut c = processor(64);
    poke(&mut c, 0x1107, 0x1122);
    // mov rax, [rip+0x100].
    step(&mut c, &[0x48, 0x8b, 0x05, 0, 1, 0, 0]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0x1122);
    // lea rax, [ecx-1] wraps at 32 bits.
    set(&mut c, &[(RCX, 0)]);
    step(&mut c, &[0x67, 0x48, 0x8d, 0x41, 0xff]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0xffff_ffff);
    // Non-canonical: #GP, or #SS through the stack pointer.
    set(&mut c, &[(RCX, 1 << 63), (RBP, 1 << 63)]);
    assert_eq!(fault(&mut c, &[0x8b, 0x01]), (13, Some(0)));
    assert_eq!(fault(&mut c, &[0x8b, 0x45, 0]), (12, Some(0)));
}

#[test]
fn pushes_and_pops() {
    let mut c = processor(64);
    // push −2 (imm8), push word imm16.
    step(&mut c, &[0x6a, 0xfe]).unwrap();
    assert_eq!((c.state.gpr(RSP), peek(&mut c, 0x7ff8)), (0x7ff8, (-2i64) as u64));
    step(&mut c, &[0x66, 0x68, 0x34, 0x12]).unwrap();
    assert_eq!(c.state.gpr(RSP), 0x7ff6);
    step(&mut c, &[0x66, 0x58]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0x1234);
    // pop [rsp]: the address uses the incremented RSP.
    step(&mut c, &[0x8f, 0x04, 0x24]).unwrap();
    assert_eq!((c.state.gpr(RSP), peek(&mut c, 0x8000)), (0x8000, (-2i64) as u64));
    // push rsp pushes the old value; pop rsp takes what it reads.
    step(&mut c, &[0x54]).unwrap();
    assert_eq!(peek(&mut c, 0x7ff8), 0x8000);
    step(&mut c, &[0x5c]).unwrap();
    assert_eq!(c.state.gpr(RSP), 0x8000);
    // A faulting POP to memory leaves RSP.
    set(&mut c, &[(RCX, 1 << 63)]);
    fault(&mut c, &[0x8f, 0x01]);
    assert_eq!(c.state.gpr(RSP), 0x8000);
}

#[test]
fn push_all() {
    let mut c = processor(16);
    for r in 0..8 {
        set(&mut c, &[(r, if r == RSP { 0x8000 } else { 0x1111 * (r as u64 + 1) })]);
    }
    step(&mut c, &[0x60]).unwrap();
    assert_eq!(c.state.gpr(RSP), 0x7ff0);
    assert_eq!(peek(&mut c, 0x7ff6) & 0xffff, 0x8000);
    set(&mut c, &[(RAX, 0), (RDI, 0)]);
    step(&mut c, &[0x61]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.gpr(RDI), c.state.gpr(RSP)), (0x1111, 0x8888, 0x8000));
}

#[test]
fn stack_frames() {
    let mut c = processor(32);
    set(&mut c, &[(RBP, 0x9000)]);
    poke(&mut c, 0x8ff8, 0xaaaa_0000_bbbb);
    // enter 16, 3.
    step(&mut c, &[0xc8, 16, 0, 3]).unwrap();
    assert_eq!(c.state.gpr(RBP), 0x7ffc);
    assert_eq!(c.state.gpr(RSP), 0x8000 - 4 - 8 - 4 - 16);
    assert_eq!(peek(&mut c, 0x7ff8), 0x9000_0000_aaaa);
    assert_eq!(peek(&mut c, 0x7ff4) as u32, 0xbbbb);
    assert_eq!(peek(&mut c, 0x7ff0) as u32, 0x7ffc);
    step(&mut c, &[0xc9]).unwrap();
    assert_eq!((c.state.gpr(RBP), c.state.gpr(RSP)), (0x9000, 0x8000));
}

#[test]
fn near_branches() {
    let mut c = processor(64);
    step(&mut c, &[0xe8, 0x10, 0, 0, 0]).unwrap();
    assert_eq!((c.state.rip(), peek(&mut c, 0x7ff8)), (0x1015, 0x1005));
    step(&mut c, &[0xc3]).unwrap();
    assert_eq!((c.state.rip(), c.state.gpr(RSP)), (0x1005, 0x8000));
    // Non-canonical targets fault before anything is pushed.
    set(&mut c, &[(RAX, 1 << 62)]);
    assert_eq!(fault(&mut c, &[0xff, 0xd0]), (13, Some(0)));
    assert_eq!(c.state.gpr(RSP), 0x8000);
    // 66h on a near jump: Intel ignores it, AMD truncates RIP.
    c.state.set_rip(0x1_1000);
    step(&mut c, &[0x66, 0xe9, 0x10, 0, 0, 0]).unwrap();
    assert_eq!(c.state.rip(), 0x1_1016);
    make_amd(&mut c);
    c.state.set_rip(0x1_1000);
    step(&mut c, &[0x66, 0xe9, 0x10, 0]).unwrap();
    assert_eq!(c.state.rip(), 0x1014);
    // loop with a 32-bit count.
    set(&mut c, &[(RCX, 1 << 32 | 2)]);
    step(&mut c, &[0x67, 0xe2, 0xfd]).unwrap();
    assert_eq!((c.state.gpr(RCX), c.state.rip()), (1, 0x1014));
}

#[test]
fn branch_beyond_limit() {
    let mut c = processor(16);
    c.state.set_rip(0xfff0);
    // jmp rel16 wraps at 64 KiB; a 32-bit displacement does not and faults.
    step(&mut c, &[0xe9, 0x20, 0]).unwrap();
    assert_eq!(c.state.rip(), 0x13);
    c.state.set_rip(0xfff0);
    assert_eq!(fault(&mut c, &[0x66, 0xe9, 0x20, 0, 0, 0]), (13, Some(0)));
}

#[test]
fn popf_privileges() {
    let mut c = processor(64);
    let everything = 0x3f_7fd7;
    poke(&mut c, 0x8000, everything);
    step(&mut c, &[0x9d]).unwrap();
    assert_eq!(c.state.rflags(), everything & !(Rflags::RF | Rflags::VM | Rflags::VIF | Rflags::VIP).bits());
    // At CPL 3 with IOPL 0: IF and IOPL stay.
    c.state.set_rflags(2 | Rflags::IF.bits());
    c.state.cpl = 3;
    c.state.set_gpr(RSP, 0x8000);
    poke(&mut c, 0x8000, Rflags::IOPL.bits() | CF);
    step(&mut c, &[0x9d]).unwrap();
    assert_eq!(c.state.rflags(), 2 | CF | Rflags::IF.bits());
}

#[test]
fn strings_move_and_wrap() {
    let mut c = processor(64);
    for i in 0..600 {
        poke(&mut c, 0x9000 + 8 * i, i * 3);
    }
    set(&mut c, &[(RSI, 0x9004), (RDI, 0xbff2), (RCX, 1000)]);
    c.set_limit(1 << 40);
    step(&mut c, &[0xf3, 0xa5]).unwrap();
    assert_eq!((c.state.gpr(RSI), c.state.gpr(RDI), c.state.gpr(RCX)), (0x9004 + 4000, 0xbff2 + 4000, 0));
    for i in 0..1000u64 {
        let want = c.shared.memory.read::<u32>(0x9004 + 4 * i);
        assert_eq!(c.shared.memory.read::<u32>(0xbff2 + 4 * i), want);
    }
    // An overlapping forward copy repeats its first element.
    poke(&mut c, 0xa000, 0x1122_3344_5566_7788);
    set(&mut c, &[(RSI, 0xa000), (RDI, 0xa002), (RCX, 7)]);
    step(&mut c, &[0x66, 0xf3, 0xa5]).unwrap();
    assert_eq!(peek(&mut c, 0xa008), 0x7788_7788_7788_7788);
    // 16-bit addresses wrap element by element.
    let mut c = processor(16);
    c.set_limit(1 << 40);
    set(&mut c, &[(RDI, 0xfffe), (RCX, 4), (RAX, 0xabcd)]);
    step(&mut c, &[0xf3, 0xab]).unwrap();
    assert_eq!(
        (c.state.gpr(RDI), peek(&mut c, 0) & 0xffff_ffff_ffff, peek(&mut c, 0xfffe) & 0xffff),
        (6, 0xabcd_abcd_abcd, 0xabcd)
    );
}

#[test]
fn repetition_is_exact_in_time() {
    let run = |slice: u64| {
        let mut c = processor(64);
        set(&mut c, &[(RDI, 0x9ff0), (RCX, 5000), (RAX, 0x55)]);
        let start = c.now();
        let mut rounds = 0;
        loop {
            c.set_limit(c.now() + slice);
            rounds += 1;
            match step(&mut c, &[0xf3, 0xaa]) {
                Ok(()) => break,
                Err(stop) => assert_eq!(stop, Stop::Again),
            }
            assert_eq!(c.now() - start, rounds * slice);
            assert_eq!(c.state.gpr(RDI) - 0x9ff0, rounds * slice);
        }
        // The dispatcher counts the last iteration.
        (c.now() - start + 1, c.state.gpr(RDI))
    };
    assert_eq!(run(1 << 40), (5000, 0x9ff0 + 5000));
    assert_eq!(run(7), (5000, 0x9ff0 + 5000));
    assert_eq!(run(1), (5000, 0x9ff0 + 5000));
}

#[test]
fn compare_strings() {
    let mut c = processor(64);
    c.set_limit(1 << 40);
    poke(&mut c, 0x9000, 0x0000_0000_0403_0201);
    poke(&mut c, 0xa000, 0x0000_0000_0503_0201);
    set(&mut c, &[(RSI, 0x9000), (RDI, 0xa000), (RCX, 8)]);
    step(&mut c, &[0xf3, 0xa6]).unwrap();
    assert_eq!((c.state.gpr(RCX), c.state.gpr(RSI), c.state.rflags() & (CF | ZF)), (4, 0x9004, CF));
    // repne scasb for the terminator; a count of zero changes nothing.
    set(&mut c, &[(RDI, 0xa000), (RCX, u64::MAX), (RAX, 0)]);
    step(&mut c, &[0xf2, 0xae]).unwrap();
    assert_eq!((c.state.gpr(RDI), !c.state.gpr(RCX)), (0xa005, 5));
    set(&mut c, &[(RCX, 0)]);
    c.state.set_status(STATUS, STATUS);
    step(&mut c, &[0xf3, 0xa6]).unwrap();
    assert_eq!(c.state.rflags() & STATUS, STATUS);
    // std; lodsw goes down.
    step(&mut c, &[0xfd]).unwrap();
    set(&mut c, &[(RSI, 0xa002)]);
    step(&mut c, &[0x66, 0xad]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.gpr(RSI)), (0x503, 0xa000));
}

#[test]
fn string_fault_is_restartable() {
    let mut c = processor(32);
    c.set_limit(1 << 40);
    c.state.seg[SegReg::Es as usize].limit = 0xa00f;
    c.mode_changed();
    set(&mut c, &[(RDI, 0xa000), (RCX, 100), (RAX, 7)]);
    assert_eq!(fault(&mut c, &[0xf3, 0xab]), (13, Some(0)));
    assert_eq!((c.state.gpr(RDI), c.state.gpr(RCX), c.state.rip()), (0xa010, 96, 0x1000));
}

#[test]
fn port_permissions() {
    let mut c = processor(32);
    step(&mut c, &[0xe4, 0x60]).unwrap();
    assert_eq!(c.state.gpr(RAX) & 0xff, 0xff);
    c.state.cpl = 3;
    c.state.tr.limit = 0x50;
    c.mode_changed();
    assert_eq!(fault(&mut c, &[0xe4, 0x60]), (13, Some(0)));
    // A TSS whose bitmap opens port 0x60 only.
    c.state.tr = Segment { selector: 0x28, access: 0x8b, limit: 0x68 + 0x20, base: 0xc000 };
    poke(&mut c, 0xc066, 0x68);
    poke(&mut c, 0xc068 + 8, 0);
    poke(&mut c, 0xc068 + 12, 0x00fe);
    step(&mut c, &[0xe4, 0x60]).unwrap();
    // A word access needs two bits; ports beyond the segment have none.
    assert_eq!(fault(&mut c, &[0x66, 0xe5, 0x60]), (13, Some(0)));
    set(&mut c, &[(RDX, 0x100)]);
    assert_eq!(fault(&mut c, &[0xec]), (13, Some(0)));
}

#[test]
fn undefined_and_hints() {
    let mut c = processor(64);
    assert_eq!(fault(&mut c, &[0x0f, 0x0b]), (6, None));
    assert_eq!(fault(&mut c, &[0x0f, 0xff, 0xc0]), (6, None));
    for bytes in
        [&[0x90][..], &[0xf3, 0x0f, 0x1e, 0xfa], &[0x0f, 0x1f, 0x40, 0], &[0x0f, 0xae, 0xe8], &[0x0f, 0x18, 0x0c, 0x24]]
    {
        step(&mut c, bytes).unwrap();
    }
    // rdsspq rax keeps rax without shadow stacks.
    set(&mut c, &[(RAX, 7)]);
    step(&mut c, &[0xf3, 0x48, 0x0f, 0x1e, 0xc8]).unwrap();
    assert_eq!(c.state.gpr(RAX), 7);
    // rdrand rax twice: different, repeatable.
    step(&mut c, &[0x48, 0x0f, 0xc7, 0xf0]).unwrap();
    let first = c.state.gpr(RAX);
    assert_eq!(c.state.rflags() & STATUS, CF);
    step(&mut c, &[0x48, 0x0f, 0xc7, 0xf0]).unwrap();
    assert_ne!(c.state.gpr(RAX), first);
    let mut d = processor(64);
    step(&mut d, &[0x48, 0x0f, 0xc7, 0xf0]).unwrap();
    assert_eq!(d.state.gpr(RAX), first);
}

#[test]
fn bounds() {
    let mut c = processor(32);
    poke(&mut c, 0x9000, 10 << 32 | 0xffff_fffe);
    for (index, ok) in [(0xffff_fffeu64, true), (10, true), (11, false), (0xffff_fffd, false)] {
        set(&mut c, &[(RAX, index), (RCX, 0x9000)]);
        let result = step(&mut c, &[0x62, 0x01]);
        assert_eq!(result.is_ok(), ok);
        assert!(ok || c.exception.vector == 5);
    }
}

#[test]
fn exchange_and_byte_order() {
    let mut c = processor(64);
    set(&mut c, &[(RAX, 0x1122_3344_5566_7788), (RCX, 1)]);
    step(&mut c, &[0x48, 0x87, 0xc8]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.gpr(RCX)), (1, 0x1122_3344_5566_7788));
    step(&mut c, &[0x48, 0x0f, 0xc9]).unwrap();
    assert_eq!(c.state.gpr(RCX), 0x8877_6655_4433_2211);
    // movbe [rsp], cx.
    step(&mut c, &[0x66, 0x0f, 0x38, 0xf1, 0x0c, 0x24]).unwrap();
    assert_eq!(peek(&mut c, 0x8000) & 0xffff, 0x1122);
    // xadd rax, rcx.
    set(&mut c, &[(RAX, 2), (RCX, 3)]);
    step(&mut c, &[0x48, 0x0f, 0xc1, 0xc8]).unwrap();
    assert_eq!((c.state.gpr(RAX), c.state.gpr(RCX)), (5, 2));
    // xlat.
    set(&mut c, &[(RBX, 0x9000), (RAX, 0x05)]);
    poke(&mut c, 0x9005, 0x77);
    step(&mut c, &[0xd7]).unwrap();
    assert_eq!(c.state.gpr(RAX), 0x77);
}

#[test]
fn spinning_gives_up_the_turn() {
    let mut c = processor(64);
    for _ in 0..40 {
        step(&mut c, &[0xf3, 0x90]).unwrap();
    }
    assert_eq!(c.attention, 0, "alone on its thread");
    // Each took its time, without counting as more than an instruction (which the dispatcher counts).
    assert_eq!((c.now(), c.retired()), (40 * 40, 0));
    c.crowded = true;
    let mut pauses = 0;
    while c.attention == 0 {
        step(&mut c, &[0xf3, 0x90]).unwrap();
        pauses += 1;
    }
    assert_eq!((pauses, c.attention), (16, crate::cpu::attention::STOP));
}
