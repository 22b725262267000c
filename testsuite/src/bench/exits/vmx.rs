//! The hypervisor and its guest under VMX.

use iced_x86::code_asm::*;
use undervisor_core::Cr4;
use undervisor_vmx::Field as F;
use undervisor_vmx::controls::{entry, exit, primary, secondary};
use undervisor_vmx::reason::basic;
use undervisor_vmx::sample::{Start, fields};

use super::super::guests::{Assembled, STACK, Say};
use super::{
    GENERAL, GUEST_CODE, GUEST_STACK, Kind, LEFT, MSR, NESTED, PAGES, PORT, Plan, fail, length, place_guest, saved,
    second_level, state,
};

const IA32_FEATURE_CONTROL: u32 = 0x3a;
const IA32_VMX_BASIC: u32 = 0x480;

const VMXON_REGION: u64 = PAGES;
const VMCS: u64 = PAGES + 0x1000;
const IO_BITMAP_A: u64 = PAGES + 0x2000;
const IO_BITMAP_B: u64 = PAGES + 0x3000;
const MSR_BITMAP: u64 = PAGES + 0x4000;

/// Where RDMSR's bits for the MSRs up to 1FFFH are: at the bitmap's start.
const MSR_READ_BYTE: u64 = MSR_BITMAP + MSR as u64 / 8;

fn encoding(f: F) -> u64 {
    f.row().map_or(0, |r| r.encoding as u64)
}

/// VMREAD to a register; changes RDX.
fn read(a: &mut CodeAssembler, to: AsmRegister64, f: F) -> Assembled {
    a.mov(edx, encoding(f) as u32)?;
    a.vmread(to, rdx)
}

/// VMWRITE from a register; changes RDX.
fn write(a: &mut CodeAssembler, f: F, from: AsmRegister64) -> Assembled {
    a.mov(edx, encoding(f) as u32)?;
    a.vmwrite(rdx, from)
}

fn controls(plan: &Plan<'_>) -> Vec<(F, u64)> {
    let mut two = secondary::VPID;
    let mut one = primary::TRUE_DEFAULT1 | primary::SECONDARY_CONTROLS;
    let mut extra = vec![(F::VPID, 1)];
    if plan.nested {
        two |= secondary::EPT;
        // Write-back tables of four levels.
        extra.push((F::EPT_POINTER, NESTED | 0x1e));
    }
    match plan.kind {
        Kind::Io => {
            one |= primary::IO_BITMAPS;
            extra.extend([(F::IO_BITMAP_A, IO_BITMAP_A), (F::IO_BITMAP_B, IO_BITMAP_B)]);
        }
        Kind::Kvm => {
            one |= primary::MSR_BITMAPS | primary::INTERRUPT_WINDOW_EXITING;
            let (efer, pat) = (state().efer.bits(), state().msrs.pat);
            extra.extend([
                (F::MSR_BITMAPS, MSR_BITMAP),
                (F::ENTRY_CONTROLS, KVM_ENTRY as u64),
                (F::EXIT_CONTROLS, KVM_EXIT as u64),
                (F::GUEST_EFER, efer),
                (F::HOST_EFER, efer),
                (F::GUEST_PAT, pat),
                (F::HOST_PAT, pat),
            ]);
        }
        _ => {}
    }
    extra.extend([(F::PRIMARY_CONTROLS, one as u64), (F::SECONDARY_CONTROLS, two as u64)]);
    extra
}

const KVM_ENTRY: u32 =
    entry::TRUE_DEFAULT1 | entry::LOAD_DEBUG_CONTROLS | entry::IA32E_MODE_GUEST | entry::LOAD_EFER | entry::LOAD_PAT;
const KVM_EXIT: u32 = exit::TRUE_DEFAULT1
    | exit::SAVE_DEBUG_CONTROLS
    | exit::HOST_ADDRESS_SPACE_SIZE
    | exit::SAVE_EFER
    | exit::LOAD_EFER
    | exit::SAVE_PAT
    | exit::LOAD_PAT
    | exit::ACKNOWLEDGE_INTERRUPT;

pub(super) fn guest(a: &mut CodeAssembler, say: &Say, plan: &Plan<'_>) -> Assembled {
    second_level(a, 7, 0xb7)?;
    a.mov(byte_ptr(IO_BITMAP_A + PORT as u64 / 8), 1 << (PORT % 8))?;
    a.mov(byte_ptr(MSR_READ_BYTE), 1 << (MSR % 8))?;
    // Firmware may have left the feature control to us.
    let mut locked = a.create_label();
    a.mov(ecx, IA32_FEATURE_CONTROL)?;
    a.rdmsr()?;
    a.test(al, 1)?;
    a.jnz(locked)?;
    a.or(eax, 5)?;
    a.wrmsr()?;
    a.set_label(&mut locked)?;
    let mut s = state();
    s.cr4 |= Cr4::VMXE;
    a.mov(rax, s.cr4.bits())?;
    a.mov(cr4, rax)?;
    a.mov(rax, s.cr0.bits())?;
    a.mov(cr0, rax)?;
    a.mov(ecx, IA32_VMX_BASIC)?;
    a.rdmsr()?;
    a.and(eax, 0x7fff_ffff)?;
    a.mov(dword_ptr(VMXON_REGION), eax)?;
    a.mov(dword_ptr(VMCS), eax)?;
    let (mut regions, mut table, mut from) = (a.create_label(), a.create_label(), a.create_label());
    let mut fill = a.create_label();
    a.lea(rsi, ptr(regions))?;
    a.vmxon(qword_ptr(rsi))?;
    a.vmclear(qword_ptr(rsi + 8))?;
    a.vmptrld(qword_ptr(rsi + 8))?;
    let (host, start) = (Start { rip: 0, rsp: STACK }, Start { rip: GUEST_CODE, rsp: GUEST_STACK });
    let values: Vec<(F, u64)> = fields(&s, host, start).into_iter().chain(controls(plan)).collect();
    a.lea(rsi, ptr(table))?;
    a.mov(ecx, values.len() as u32)?;
    a.set_label(&mut fill)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.mov(rbx, qword_ptr(rsi + 8))?;
    a.vmwrite(rax, rbx)?;
    a.add(rsi, 16)?;
    a.dec(ecx)?;
    a.jnz(fill)?;
    a.jmp(from)?;
    a.set_label(&mut regions)?;
    a.dq(&[VMXON_REGION, VMCS])?;
    a.set_label(&mut table)?;
    for (f, value) in values {
        a.dq(&[encoding(f), value])?;
    }
    a.set_label(&mut from)?;
    let mut exit = a.create_label();
    a.lea(rax, ptr(exit))?;
    write(a, F::HOST_RIP, rax)?;
    place_guest(a, plan.kind)?;
    say.timed(a, plan.name, |a| {
        let (mut failed, mut done) = (a.create_label(), a.create_label());
        a.mov(r12d, plan.exits)?;
        a.mov(dword_ptr(LEFT), plan.exits as i32)?;
        a.vmlaunch()?;
        a.jmp(failed)?;
        a.set_label(&mut exit)?;
        if plan.kind == Kind::Kvm {
            kvm_exit(a, failed, done)?;
        } else {
            plain_exit(a, plan.kind, failed)?;
            a.dec(r12d)?;
            a.jz(done)?;
            a.vmresume()?;
        }
        a.set_label(&mut failed)?;
        fail(a, say, plan)?;
        a.set_label(&mut done)?;
        a.nop()
    })
}

/// Read what a small hypervisor needs to know of such an exit, and move RIP on.
fn plain_exit(a: &mut CodeAssembler, kind: Kind, failed: CodeLabel) -> Assembled {
    let reason = match kind {
        Kind::Violation => basic::EPT_VIOLATION,
        Kind::Io => basic::IO,
        _ => basic::CPUID,
    };
    read(a, rax, F::EXIT_REASON)?;
    a.cmp(eax, reason as i32)?;
    a.jne(failed)?;
    if kind != Kind::Cpuid {
        read(a, r8, F::EXIT_QUALIFICATION)?;
    }
    if kind == Kind::Violation {
        read(a, r9, F::GUEST_PHYSICAL_ADDRESS)?;
    }
    read(a, rcx, F::GUEST_RIP)?;
    if kind == Kind::Violation {
        // The length of an instruction that violates EPT is not always told.
        a.add(rcx, length(kind))?;
    } else {
        read(a, rbx, F::EXIT_INSTRUCTION_LENGTH)?;
        a.add(rcx, rbx)?;
    }
    write(a, F::GUEST_RIP, rcx)?;
    if kind == Kind::Io {
        a.mov(edx, PORT as u32)?;
    }
    Ok(())
}

/// The exit as KVM would handle it.
fn kvm_exit(a: &mut CodeAssembler, failed: CodeLabel, done: CodeLabel) -> Assembled {
    for (n, r) in GENERAL.into_iter().enumerate() {
        a.mov(saved(n), r)?;
    }
    read(a, rax, F::EXIT_REASON)?;
    a.cmp(eax, basic::RDMSR as i32)?;
    a.jne(failed)?;
    read(a, rbx, F::IDT_VECTORING_INFORMATION)?;
    read(a, rcx, F::EXIT_INTERRUPTION_INFORMATION)?;
    read(a, rsi, F::EXIT_QUALIFICATION)?;
    read(a, rdi, F::GUEST_RSP)?;
    read(a, r8, F::GUEST_RFLAGS)?;
    read(a, r9, F::GUEST_CS_ACCESS)?;
    read(a, r10, F::GUEST_RIP)?;
    read(a, r11, F::EXIT_INSTRUCTION_LENGTH)?;
    a.add(r10, r11)?;
    write(a, F::GUEST_RIP, r10)?;
    read(a, r11, F::GUEST_INTERRUPTIBILITY)?;
    a.and(r11, !3)?;
    write(a, F::GUEST_INTERRUPTIBILITY, r11)?;
    // What RDMSR returns.
    a.mov(dword_ptr(super::SAVED), 0xfee0_0900u32 as i32)?;
    a.mov(dword_ptr(super::SAVED + 16), 0)?;
    a.dec(dword_ptr(LEFT))?;
    a.jz(done)?;
    // The entry: nothing to inject, the window still asked for, the host's state as it is now.
    a.xor(eax, eax)?;
    write(a, F::ENTRY_INTERRUPTION_INFORMATION, rax)?;
    read(a, rax, F::PRIMARY_CONTROLS)?;
    a.or(eax, primary::INTERRUPT_WINDOW_EXITING as i32)?;
    write(a, F::PRIMARY_CONTROLS, rax)?;
    a.mov(rax, cr3)?;
    write(a, F::HOST_CR3, rax)?;
    a.mov(rax, cr4)?;
    write(a, F::HOST_CR4, rax)?;
    write(a, F::HOST_RSP, rsp)?;
    for (n, r) in GENERAL.into_iter().enumerate() {
        a.mov(r, saved(n))?;
    }
    a.vmresume()
}
