//! The general form's rules, and that the fast form agrees with it.

use iced_x86::code_asm::*;
use undervisor_core::{Cr0, Cr4, FlagKind, Rflags};

use crate::cpu::Cpu;
use crate::testing::{fault, processor, step};

fn machine() -> Box<Cpu> {
    let mut cpu = processor(64);
    cpu.state.cr4 |= Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
    cpu.state.xcr0 = 7;
    cpu.mode_changed();
    cpu
}

fn bytes(f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a).unwrap();
    a.assemble(0).unwrap()
}

fn run(cpu: &mut Cpu, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
    let code = bytes(f);
    assert_eq!(step(cpu, &code), Ok(()), "{code:x?}");
}

#[test]
fn upper_halves() {
    let mut cpu = machine();
    for i in 0..4 {
        cpu.state.vec[i] = [0x1111 * (i as u64 + 1); 8];
    }
    run(&mut cpu, |a| a.paddq(xmm0, xmm1));
    assert_eq!(cpu.state.vec[0][..4], [0x3333, 0x3333, 0x1111, 0x1111]);
    run(&mut cpu, |a| a.vpaddq(xmm0, xmm1, xmm2));
    assert_eq!(cpu.state.vec[0][..4], [0x5555, 0x5555, 0, 0]);
    run(&mut cpu, |a| a.vpaddq(ymm0, ymm1, ymm2));
    assert_eq!(cpu.state.vec[0][..4], [0x5555; 4]);
    cpu.state.regs[0] = 0xffff_ffff_0000_0007;
    run(&mut cpu, |a| a.vmovd(xmm3, eax));
    assert_eq!(cpu.state.vec[3][..4], [7, 0, 0, 0]);
    run(&mut cpu, |a| a.vzeroupper());
    assert_eq!(cpu.state.vec[1][..4], [0x2222, 0x2222, 0, 0]);
}

#[test]
fn availability_and_alignment() {
    let mut cpu = machine();
    cpu.state.regs[0] = 0x2008;
    let load = bytes(|a| a.paddd(xmm0, xmmword_ptr(rax)));
    assert_eq!(fault(&mut cpu, &load), (13, Some(0)));
    run(&mut cpu, |a| a.movups(xmm0, xmmword_ptr(rax)));
    run(&mut cpu, |a| a.vpaddd(xmm0, xmm0, xmmword_ptr(rax)));
    let load = bytes(|a| a.vmovaps(ymm0, ymmword_ptr(rax)));
    assert_eq!(fault(&mut cpu, &load), (13, Some(0)));
    let (sse, avx, mmx) = (bytes(|a| a.pxor(xmm0, xmm1)), bytes(|a| a.vpxor(xmm0, xmm1, xmm2)), bytes(|a| a.pxor(mm0, mm1)));
    cpu.state.cr0 |= Cr0::TS;
    for code in [&sse, &avx, &mmx] {
        assert_eq!(fault(&mut cpu, code).0, 7);
    }
    cpu.state.cr0 |= Cr0::EM;
    assert_eq!(fault(&mut cpu, &sse).0, 6);
    assert_eq!(fault(&mut cpu, &mmx).0, 6);
    assert_eq!(fault(&mut cpu, &avx).0, 7);
    cpu.state.cr0 -= Cr0::EM | Cr0::TS;
    cpu.state.xcr0 = 3;
    assert_eq!(fault(&mut cpu, &avx).0, 6);
    cpu.state.cr4 -= Cr4::OSFXSR;
    assert_eq!(fault(&mut cpu, &sse).0, 6);
    run(&mut cpu, |a| a.pxor(mm0, mm1));
}

#[test]
fn mmx_state() {
    let mut cpu = machine();
    cpu.state.x87.status = 0x3800;
    cpu.state.x87.tags = 0;
    cpu.state.regs[0] = 5;
    run(&mut cpu, |a| a.movd(mm1, eax));
    assert_eq!((cpu.state.x87.st[1].mantissa, cpu.state.x87.st[1].sign_exponent), (5, 0xffff));
    assert_eq!((cpu.state.x87.status, cpu.state.x87.tags), (0, 0xff));
    run(&mut cpu, |a| a.paddb(mm1, mm1));
    assert_eq!(cpu.state.x87.st[1].mantissa, 10);
    cpu.state.x87.status = 0x80;
    cpu.state.cr0 |= Cr0::NE;
    let code = bytes(|a| a.paddb(mm1, mm1));
    assert_eq!(fault(&mut cpu, &code).0, 16);
    cpu.state.x87.status = 0;
    run(&mut cpu, |a| a.emms());
    assert_eq!(cpu.state.x87.tags, 0);
}

#[test]
fn scalars_and_flags() {
    let mut cpu = machine();
    let f = |x: f64| x.to_bits();
    cpu.state.vec[0] = [f(2.0), f(9.0), 3, 4, 0, 0, 0, 0];
    cpu.state.vec[1] = [f(0.5), f(1.0), 5, 6, 0, 0, 0, 0];
    run(&mut cpu, |a| a.addsd(xmm0, xmm1));
    assert_eq!(cpu.state.vec[0][..4], [f(2.5), f(9.0), 3, 4]);
    run(&mut cpu, |a| a.ucomisd(xmm0, xmm1));
    assert_eq!(cpu.state.rflags() & Rflags::STATUS.bits(), 0);
    run(&mut cpu, |a| a.comisd(xmm1, xmm0));
    assert_eq!(cpu.state.rflags() & Rflags::STATUS.bits(), 1);
    run(&mut cpu, |a| a.cvttsd2si(rax, xmm0));
    assert_eq!((cpu.state.regs[0], cpu.state.mxcsr), (2, 0x1fa0));
    cpu.state.lazy.kind = FlagKind::EXPLICIT;
    run(&mut cpu, |a| a.vdivsd(xmm2, xmm0, xmm1));
    assert_eq!(cpu.state.vec[2][..4], [f(5.0), f(9.0), 0, 0]);
    // An unmasked exception: #XM, flags set, destination untouched.
    cpu.state.mxcsr = 0x1f80 & !0x200;
    cpu.state.vec[1][0] = 0;
    let code = bytes(|a| a.divsd(xmm0, xmm1));
    assert_eq!(fault(&mut cpu, &code).0, 19);
    assert_eq!((cpu.state.vec[0][0], cpu.state.mxcsr & 0x3f), (f(2.5), 4));
    cpu.state.cr4 -= Cr4::OSXMMEXCPT;
    assert_eq!(fault(&mut cpu, &code).0, 6);
}

/// A gather that faults at its third element keeps the first two and their cleared masks.
#[test]
fn gather_resumes() {
    let mut cpu = machine();
    for i in 0..4u64 {
        cpu.write_linear(0x3000 + 4 * i, 0x100 + i as u32).unwrap();
    }
    cpu.state.regs[0] = 0x3000;
    cpu.state.vec[0] = [0; 8];
    // The third index is not canonical.
    cpu.state.vec[1] = [0, 1, 1 << 60, 3, 0, 0, 0, 0];
    cpu.state.vec[2] = [u64::MAX; 8];
    // vpgatherqd xmm0, [rax + ymm1 * 4], xmm2
    let code = [0xc4, 0xe2, 0x6d, 0x93, 0x04, 0x88];
    assert_eq!(fault(&mut cpu, &code).0, 13);
    assert_eq!((cpu.state.vec[0][0], cpu.state.vec[2][..2].to_vec()), (0x101_0000_0100, vec![0, u64::MAX]));
    cpu.state.vec[1][2] = 2;
    assert_eq!(step(&mut cpu, &code), Ok(()));
    assert_eq!(cpu.state.vec[0][..4], [0x101_0000_0100, 0x103_0000_0102, 0, 0]);
    assert_eq!(cpu.state.vec[2][..4], [0; 4]);
}

#[test]
fn masked_moves() {
    let mut cpu = machine();
    cpu.state.regs[0] = 0x3000;
    cpu.state.regs[7] = 0x3100;
    cpu.state.vec[0] = [0x1111_1111_2222_2222, 0x3333_3333_4444_4444, 0, 0, 0, 0, 0, 0];
    cpu.state.vec[1] = [1 << 63, 1 << 31, 0, 0, 0, 0, 0, 0];
    run(&mut cpu, |a| a.vmaskmovps(xmmword_ptr(rax), xmm1, xmm0));
    assert_eq!(cpu.read_linear::<u64>(0x3000), Ok(0x1111_1111_0000_0000));
    assert_eq!(cpu.read_linear::<u64>(0x3008), Ok(0x4444_4444));
    run(&mut cpu, |a| a.vmaskmovps(xmm3, xmm1, xmmword_ptr(rax)));
    assert_eq!(cpu.state.vec[3][..2], [0x1111_1111_0000_0000, 0x4444_4444]);
    run(&mut cpu, |a| a.maskmovdqu(xmm0, xmm1));
    assert_eq!(cpu.read_linear::<u64>(0x3100), Ok(0x11 << 56));
    assert_eq!(cpu.read_linear::<u64>(0x3108), Ok(0x44 << 24));
}

#[test]
fn extracts_and_inserts() {
    let mut cpu = machine();
    cpu.state.regs[0] = 0xaaaa_bbbb_cccc_dddd;
    cpu.state.regs[3] = 0x3000;
    cpu.state.vec[0] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 7, 7, 0, 0, 0, 0];
    run(&mut cpu, |a| a.pinsrw(xmm0, eax, 9));
    assert_eq!(cpu.state.vec[0][..3], [0x0706_0504_dddd_0100, 0x0f0e_0d0c_0b0a_0908, 7]);
    run(&mut cpu, |a| a.pextrb(byte_ptr(rbx), xmm0, 15));
    assert_eq!(cpu.read_linear::<u16>(0x3000), Ok(0x0f));
    run(&mut cpu, |a| a.pextrq(rcx, xmm0, 1));
    assert_eq!(cpu.state.regs[1], 0x0f0e_0d0c_0b0a_0908);
    run(&mut cpu, |a| a.movhps(qword_ptr(rbx), xmm0));
    assert_eq!(cpu.read_linear::<u64>(0x3000), Ok(0x0f0e_0d0c_0b0a_0908));
    run(&mut cpu, |a| a.movss(xmm0, dword_ptr(rbx)));
    assert_eq!(cpu.state.vec[0][..3], [0x0b0a_0908, 0, 7]);
    run(&mut cpu, |a| a.movlhps(xmm0, xmm0));
    run(&mut cpu, |a| a.movhlps(xmm1, xmm0));
    assert_eq!((cpu.state.vec[0][1], cpu.state.vec[1][0]), (0x0b0a_0908, 0x0b0a_0908));
}
