use undervisor_core::F80;

use super::{INDEFINITE, status};
use crate::cpu::Cpu;
use crate::testing::{fault, processor, step};

fn fpu() -> Box<Cpu> {
    let mut cpu = processor(64);
    step(&mut cpu, &[0xdb, 0xe3]).unwrap();
    cpu.state.cr0 |= undervisor_core::Cr0::NE;
    cpu
}

fn run(cpu: &mut Cpu, code: &[&[u8]]) {
    for c in code {
        step(cpu, c).unwrap();
    }
}

const FLD1: &[u8] = &[0xd9, 0xe8];
const FLDZ: &[u8] = &[0xd9, 0xee];
const FLDPI: &[u8] = &[0xd9, 0xeb];

#[test]
fn one_plus_one() {
    let mut cpu = fpu();
    // fld1; fld1; faddp
    run(&mut cpu, &[FLD1, FLD1, &[0xde, 0xc1]]);
    assert_eq!(cpu.st(0), F80 { mantissa: 1 << 63, sign_exponent: 0x4000 });
    assert_eq!(cpu.state.x87.tags, 0x80);
    assert_eq!(cpu.state.x87.status & status::TOP, 7 << 11);
}

#[test]
fn unmasked_divide_by_zero_waits() {
    let mut cpu = fpu();
    cpu.set_x87_control(0x37b);
    // fld1; fldz; fdivp: the operands stay, the exception waits for the next waiting instruction.
    run(&mut cpu, &[FLD1, FLDZ, &[0xde, 0xf9]]);
    assert_eq!(cpu.state.x87.status & 0x80ff, 0x8084);
    assert!(!cpu.st_empty(1));
    assert_eq!(fault(&mut cpu, FLD1).0, 16);
    assert_eq!(fault(&mut cpu, &[0x9b]).0, 16);
    // fnstsw ax; fnclex do not wait.
    run(&mut cpu, &[&[0xdf, 0xe0], &[0xdb, 0xe2]]);
    assert_eq!(cpu.state.regs[0] as u16 & 0x80ff, 0x8084);
    run(&mut cpu, &[FLD1]);
}

#[test]
fn stack_faults() {
    let mut cpu = fpu();
    run(&mut cpu, &[&[0xde, 0xc1]]);
    assert_eq!(cpu.state.x87.status & 0x2ff, 0x41);
    let mut cpu = fpu();
    (0..9).for_each(|_| run(&mut cpu, &[FLD1]));
    assert_eq!(cpu.state.x87.status & 0x2ff, 0x241);
    assert_eq!(cpu.st(0), INDEFINITE);
}

#[test]
fn sine_of_pi_is_its_error() {
    let mut cpu = fpu();
    run(&mut cpu, &[FLDPI, &[0xd9, 0xfe]]);
    // π rounded to 64 bits lies 5.0165…e−20 below π.
    assert_eq!(cpu.st(0), F80 { mantissa: 0xece6_75d1_fc8f_8cbb, sign_exponent: 0xbfbe });
}

#[test]
fn task_switched() {
    let mut cpu = fpu();
    cpu.state.cr0 |= undervisor_core::Cr0::TS;
    assert_eq!(fault(&mut cpu, FLD1).0, 7);
    step(&mut cpu, &[0x9b]).unwrap();
    cpu.state.cr0 |= undervisor_core::Cr0::MP;
    assert_eq!(fault(&mut cpu, &[0x9b]).0, 7);
}

#[test]
fn remainder_and_environment() {
    let mut cpu = fpu();
    // 5 mod 3: fild of integers in memory.
    cpu.write_linear(0x2000, 3u32).unwrap();
    cpu.write_linear(0x2004, 5u32).unwrap();
    cpu.state.regs[3] = 0x2000;
    run(&mut cpu, &[&[0xdb, 0x03], &[0xdb, 0x43, 0x04], &[0xd9, 0xf8]]);
    assert_eq!(cpu.st(0), F80 { mantissa: 1 << 63, sign_exponent: 0x4000 });
    assert_eq!(cpu.state.x87.status & status::CONDITION, status::C1);
    // fnstenv [rbx+0x100]; fninit; fldenv
    let before = cpu.state.x87;
    run(&mut cpu, &[&[0xd9, 0xb3, 0, 1, 0, 0], &[0xdb, 0xe3], &[0xd9, 0xa3, 0, 1, 0, 0]]);
    assert_eq!((cpu.state.x87.status, cpu.state.x87.tags), (before.status, before.tags));
    assert_eq!(cpu.read_linear::<u32>(0x2108).unwrap(), 0xffff_0fff);
}
