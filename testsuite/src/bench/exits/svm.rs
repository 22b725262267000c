//! The hypervisor and its guest under SVM.

use std::collections::BTreeMap;

use iced_x86::code_asm::*;
use undervisor_core::{Efer, SegReg};
use undervisor_svm::controls::{nested, v_intr};
use undervisor_svm::fields::clean;
use undervisor_svm::{Field as F, reason};

use super::super::guests::{Assembled, Say};
use super::{
    GENERAL, GUEST_CODE, GUEST_STACK, Kind, LEFT, MSR, NESTED, PAGES, PORT, Plan, fail, length, place_guest, saved,
    second_level, state,
};

const EFER: u32 = 0xc000_0080;
const VM_HSAVE_PA: u32 = 0xc001_0117;

const VMCB: u64 = PAGES;
const HOST_VMCB: u64 = PAGES + 0x1000;
const HOST_SAVE: u64 = PAGES + 0x2000;
/// Three pages.
const IO_MAP: u64 = PAGES + 0x3000;
/// Two pages.
const MSR_MAP: u64 = PAGES + 0x6000;
/// Bits of an MSR below 2000H: two for each, reads first.
const MSR_BIT: u64 = MSR as u64 * 2;

fn at(f: F) -> u64 {
    VMCB + f.offset as u64
}

/// Intercept bits by exit code, as the intercept vectors have them.
fn intercepts(codes: &[u64]) -> Vec<(F, u64)> {
    let vectors = [F::INTERCEPT_CR, F::INTERCEPT_DR, F::INTERCEPT_EXCEPTIONS, F::INTERCEPT_3, F::INTERCEPT_4, F::INTERCEPT_5];
    let bits = |n: usize| codes.iter().filter(|c| **c as usize / 32 == n).fold(0, |bits, c| bits | 1 << (c % 32));
    vectors.into_iter().enumerate().map(|(n, f)| (f, bits(n))).collect()
}

/// The VMCB, as quadwords by offset.
fn vmcb(plan: &Plan<'_>) -> BTreeMap<u16, u64> {
    let s = state();
    let mut codes = vec![reason::INTR, reason::SHUTDOWN, reason::VMRUN];
    let mut values = vec![
        (F::GUEST_ASID, 1),
        (F::EFER, (s.efer | Efer::SVME).bits()),
        (F::CR0, s.cr0.bits()),
        (F::CR3, s.cr3),
        (F::CR4, s.cr4.bits()),
        (F::DR6, 0xffff_0ff0),
        (F::DR7, 0x400),
        (F::RFLAGS, 2),
        (F::RIP, GUEST_CODE),
        (F::RSP, GUEST_STACK),
        (F::G_PAT, s.msrs.pat),
    ];
    let attributes = |access: u32| (access & 0xff | access >> 4 & 0xf00) as u64;
    let segments = [
        (SegReg::Es, F::ES_SELECTOR, F::ES_ATTRIBUTES, F::ES_LIMIT),
        (SegReg::Cs, F::CS_SELECTOR, F::CS_ATTRIBUTES, F::CS_LIMIT),
        (SegReg::Ss, F::SS_SELECTOR, F::SS_ATTRIBUTES, F::SS_LIMIT),
        (SegReg::Ds, F::DS_SELECTOR, F::DS_ATTRIBUTES, F::DS_LIMIT),
    ];
    for (r, selector, rights, limit) in segments {
        let segment = s.segment(r);
        values.extend([
            (selector, segment.selector as u64),
            (rights, attributes(segment.access)),
            (limit, segment.limit as u64),
        ]);
    }
    if plan.nested {
        values.extend([(F::NESTED_CONTROL, nested::NP_ENABLE), (F::N_CR3, NESTED)]);
    }
    match plan.kind {
        Kind::Cpuid | Kind::Loop => codes.push(reason::CPUID),
        Kind::Violation => {}
        Kind::Io => {
            codes.push(reason::IOIO);
            values.push((F::IOPM_BASE_PA, IO_MAP));
        }
        Kind::Kvm => {
            codes.extend([reason::MSR, reason::VINTR]);
            let window = v_intr::MASKING | v_intr::IRQ | v_intr::IGNORE_TPR | 0xf << v_intr::PRIORITY_SHIFT;
            values.extend([(F::MSRPM_BASE_PA, MSR_MAP), (F::V_INTR_CONTROL, window)]);
        }
    }
    values.extend(intercepts(&codes));
    let mut words = BTreeMap::new();
    for (f, value) in values.into_iter().filter(|v| v.1 != 0) {
        *words.entry(f.offset & !7).or_default() |= value << (8 * (f.offset % 8));
    }
    words
}

pub(super) fn guest(a: &mut CodeAssembler, say: &Say, plan: &Plan<'_>) -> Assembled {
    second_level(a, 7, 0xe7)?;
    a.mov(byte_ptr(IO_MAP + PORT as u64 / 8), 1 << (PORT % 8))?;
    a.mov(byte_ptr(MSR_MAP + MSR_BIT / 8), 1 << (MSR_BIT % 8))?;
    a.mov(ecx, EFER)?;
    a.rdmsr()?;
    a.or(eax, Efer::SVME.bits() as i32)?;
    a.wrmsr()?;
    a.mov(ecx, VM_HSAVE_PA)?;
    a.mov(eax, HOST_SAVE as u32)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    for (offset, value) in vmcb(plan) {
        a.mov(rax, value)?;
        a.mov(qword_ptr(VMCB + offset as u64), rax)?;
    }
    // What VMLOAD and VMSAVE move is the same for both.
    a.mov(rax, VMCB)?;
    a.vmsave()?;
    a.mov(rax, HOST_VMCB)?;
    a.vmsave()?;
    place_guest(a, plan.kind)?;
    say.timed(a, plan.name, |a| {
        let (mut failed, mut done, mut top) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(dword_ptr(LEFT), plan.exits as i32)?;
        a.mov(r12d, plan.exits)?;
        a.mov(rax, VMCB)?;
        a.set_label(&mut top)?;
        if plan.kind == Kind::Kvm {
            kvm_run(a, failed)?;
            a.dec(dword_ptr(LEFT))?;
        } else {
            plain_run(a, plan.kind, failed)?;
            a.dec(r12d)?;
        }
        a.jnz(top)?;
        a.jmp(done)?;
        a.set_label(&mut failed)?;
        fail(a, say, plan)?;
        a.set_label(&mut done)?;
        a.nop()
    })
}

/// Run the guest, whose VMCB is at RAX; read what a small hypervisor needs to know of such an exit, and move RIP on.
fn plain_run(a: &mut CodeAssembler, kind: Kind, failed: CodeLabel) -> Assembled {
    let field = |f: F| rax + f.offset as i32;
    let code = match kind {
        Kind::Violation => reason::NPF,
        Kind::Io => reason::IOIO,
        _ => reason::CPUID,
    };
    a.vmrun()?;
    a.cmp(qword_ptr(field(F::EXITCODE)), code as i32)?;
    a.jne(failed)?;
    match kind {
        Kind::Violation => {
            a.mov(r8, qword_ptr(field(F::EXITINFO1)))?;
            a.mov(r9, qword_ptr(field(F::EXITINFO2)))?;
            a.add(qword_ptr(field(F::RIP)), length(kind))?;
        }
        Kind::Io => {
            a.mov(r8, qword_ptr(field(F::EXITINFO1)))?;
            // EXITINFO2 is the next RIP.
            a.mov(r9, qword_ptr(field(F::EXITINFO2)))?;
            a.mov(qword_ptr(field(F::RIP)), r9)?;
        }
        // Not every model tells nRIP.
        _ => a.add(qword_ptr(field(F::RIP)), length(kind))?,
    }
    a.mov(dword_ptr(field(F::CLEAN_BITS)), clean::ALL)
}

/// Run the guest and handle its exit as KVM would.
fn kvm_run(a: &mut CodeAssembler, failed: CodeLabel) -> Assembled {
    a.clgi()?;
    for (n, r) in GENERAL.into_iter().enumerate().skip(1) {
        a.mov(r, saved(n))?;
    }
    a.mov(rax, VMCB)?;
    a.vmload()?;
    a.vmrun()?;
    a.vmsave()?;
    for (n, r) in GENERAL.into_iter().enumerate().skip(1) {
        a.mov(saved(n), r)?;
    }
    a.mov(rax, HOST_VMCB)?;
    a.vmload()?;
    a.stgi()?;
    a.cmp(qword_ptr(at(F::EXITCODE)), reason::MSR as i32)?;
    a.jne(failed)?;
    a.mov(rbx, qword_ptr(at(F::EXITINFO1)))?;
    a.mov(rcx, qword_ptr(at(F::EXITINFO2)))?;
    a.mov(rdx, qword_ptr(at(F::EXITINTINFO)))?;
    a.mov(rsi, qword_ptr(at(F::INTERRUPT_SHADOW)))?;
    a.mov(rdi, qword_ptr(at(F::RFLAGS)))?;
    a.mov(r8, qword_ptr(at(F::CR0)))?;
    a.mov(r9, qword_ptr(at(F::CR3)))?;
    a.mov(r10, qword_ptr(at(F::RSP)))?;
    a.mov(r11, qword_ptr(at(F::RIP)))?;
    // What RDMSR returns.
    a.mov(qword_ptr(at(F::RAX)), 0x900)?;
    a.mov(dword_ptr(super::SAVED + 16), 0)?;
    a.add(r11, length(Kind::Kvm))?;
    a.mov(qword_ptr(at(F::RIP)), r11)?;
    a.mov(qword_ptr(at(F::RSP)), r10)?;
    a.mov(dword_ptr(at(F::EVENTINJ)), 0)?;
    a.mov(dword_ptr(at(F::CLEAN_BITS)), clean::ALL)
}
