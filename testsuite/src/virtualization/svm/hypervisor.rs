//! The hypervisor for AMD: for each case a fresh VMCB, VMRUN, and a line with what the exit says.

use iced_x86::code_asm::*;
use undervisor_svm::Field as F;

use super::super::common::*;
use super::super::image::*;

const EFER: u32 = 0xc000_0080;
const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// What a line says of an exit, and the field that says it.
pub const REPORT: [(&str, F); 20] = [
    ("code", F::EXITCODE),
    ("info1", F::EXITINFO1),
    ("info2", F::EXITINFO2),
    ("vectoring", F::EXITINTINFO),
    ("vectoring-error", F::EXITINTINFO_ERROR),
    ("nrip", F::NRIP),
    ("rip", F::RIP),
    ("bytes", F::INSTRUCTION_COUNT),
    ("rflags", F::RFLAGS),
    ("shadow", F::INTERRUPT_SHADOW),
    ("injected", F::EVENTINJ),
    ("cr2", F::CR2),
    ("dr6", F::DR6),
    ("cpl", F::CPL),
    ("v-intr", F::V_INTR_CONTROL),
    ("bus-locks", F::BUS_LOCK_COUNTER),
    ("debugctl", F::DBGCTL),
    ("from", F::BR_FROM),
    ("to", F::BR_TO),
    ("spec-ctrl", F::SPEC_CTRL),
];

/// A field as the hypervisor's list has it: offset, and its size in bits 63:32.
pub fn pairs(b: &mut Builder, fields: impl IntoIterator<Item = (F, u64)>) -> u64 {
    let word = |f: F| f.offset as u64 | (f.size as u64) << 32;
    let words: Vec<u64> = fields.into_iter().flat_map(|(f, v)| [word(f), v]).chain([u64::MAX]).collect();
    b.words(words)
}

/// A 64-bit guest that runs on the host's own tables; every map intercepts nothing.
pub fn base() -> Vec<(F, u64)> {
    let mut f = vec![
        (F::EFER, 0x1d00),
        (F::CR0, 0x8001_0033),
        (F::CR3, TABLES),
        (F::CR4, 0x620),
        (F::DR7, 0x400),
        (F::DR6, 0xffff_0ff0),
        (F::RFLAGS, 2),
        (F::RSP, GUEST_STACK),
        (F::GDTR_BASE, GDT),
        (F::GDTR_LIMIT, GDT_LIMIT as u64),
        (F::IDTR_BASE, GUEST_IDT),
        (F::IDTR_LIMIT, 0xfff),
        (F::G_PAT, 0x0007_0406_0007_0406),
        (F::N_CR3, NESTED),
        (F::IOPM_BASE_PA, IO_BITMAPS),
        (F::MSRPM_BASE_PA, MSR_MAP),
        (F::GUEST_ASID, 1),
        // Flush all.
        (F::TLB_CONTROL, 1),
    ];
    for selector in [F::ES_SELECTOR, F::SS_SELECTOR, F::DS_SELECTOR] {
        f.extend(segment(selector, DATA, 0xc93));
    }
    f.extend(segment(F::CS_SELECTOR, CODE_64, 0xa9b));
    f
}

/// A flat segment register.
pub fn segment(at: F, selector: u16, attributes: u64) -> [(F, u64); 3] {
    let part = |offset, size| F { offset: at.offset + offset, size, ..at };
    [(at, selector as u64), (part(2, 2), attributes), (part(4, 4), 0xffff_ffff)]
}

/// The whole of the hypervisor's code.
pub fn write(a: &mut CodeAssembler, c: &mut Common, b: &mut Builder, cases: u64, idtr: u64) -> R {
    let mut skip = a.create_label();
    c.start(a, b, idtr)?;
    a.mov(ecx, EFER)?;
    a.rdmsr()?;
    a.or(eax, 0x1000)?;
    a.wrmsr()?;
    a.mov(ecx, VM_HSAVE_PA)?;
    a.mov(eax, HOST_SAVE as u32)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    // R_INIT: an INIT that stays pending becomes #SX instead of a reset.
    a.mov(ecx, VM_CR)?;
    a.mov(eax, 2)?;
    a.wrmsr()?;
    // The host's FS, GS, TR and LDTR for VMLOAD.
    a.mov(eax, HOST_VMCB as u32)?;
    a.vmsave()?;

    c.walk(a, b, cases)?;
    // Features that the case needs: CPUID Fn8000_000A_EDX and Fn8000_0008_EBX.
    a.mov(r10, record(CONTROLS))?;
    a.mov(r11, record(CONTROLS + 1))?;
    a.mov(r12, rbx)?;
    a.mov(eax, 0x8000_000au32)?;
    a.cpuid()?;
    a.mov(r13d, edx)?;
    a.mov(eax, 0x8000_0008u32)?;
    a.cpuid()?;
    a.and(ebx, r11d)?;
    a.cmp(ebx, r11d)?;
    a.mov(rbx, r12)?;
    a.jne(skip)?;
    a.and(r13d, r10d)?;
    a.cmp(r13d, r10d)?;
    a.jne(skip)?;
    a.mov(edi, VMCB as u32)?;
    a.mov(ecx, 0x1000 / 8)?;
    a.xor(eax, eax)?;
    a.rep().stosq()?;
    let common = pairs(b, base());
    let (mut next, mut done) = (a.create_label(), a.create_label());
    let mut sizes: Vec<_> = [1u32, 2, 4].map(|n| (n, a.create_label())).into();
    let mut put = a.create_label();
    // R8: the list; R9: whether it is the second.
    a.mov(r8d, common as u32)?;
    a.xor(r9d, r9d)?;
    a.set_label(&mut next)?;
    a.mov(rcx, qword_ptr(r8))?;
    a.cmp(rcx, -1)?;
    a.je(done)?;
    a.mov(rax, qword_ptr(r8 + 8))?;
    a.mov(rdx, rcx)?;
    a.shr(rdx, 32)?;
    a.mov(ecx, ecx)?;
    for (size, label) in &sizes {
        a.cmp(edx, *size)?;
        a.je(*label)?;
    }
    a.mov(qword_ptr(rcx + VMCB as i32), rax)?;
    a.jmp(put)?;
    for (size, label) in &mut sizes {
        a.set_label(label)?;
        match size {
            1 => a.mov(byte_ptr(rcx + VMCB as i32), al)?,
            2 => a.mov(word_ptr(rcx + VMCB as i32), ax)?,
            _ => a.mov(dword_ptr(rcx + VMCB as i32), eax)?,
        }
        a.jmp(put)?;
    }
    a.set_label(&mut put)?;
    a.add(r8, 16)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    let mut enter = a.create_label();
    a.test(r9d, r9d)?;
    a.jnz(enter)?;
    a.inc(r9d)?;
    a.mov(rax, record(RIP))?;
    a.mov(qword_ptr(VMCB + F::RIP.offset as u64), rax)?;
    a.mov(r8, record(FIELDS))?;
    a.jmp(next)?;

    a.set_label(&mut enter)?;
    // The host takes interrupts, but GIF holds them back until VMRUN.
    a.clgi()?;
    a.sti()?;
    c.clear_registers(a)?;
    a.mov(eax, VMCB as u32)?;
    a.vmrun()?;
    a.cli()?;
    // FS, GS, TR and LDTR are the guest's after a task switch that went wrong.
    a.mov(eax, HOST_VMCB as u32)?;
    a.vmload()?;
    a.stgi()?;
    for (name, f) in REPORT {
        c.say(a, b, &format!(" {name}="))?;
        let at = VMCB + f.offset as u64;
        match f.size {
            1 => a.movzx(eax, byte_ptr(at))?,
            2 => a.movzx(eax, word_ptr(at))?,
            4 => a.mov(eax, dword_ptr(at))?,
            _ => a.mov(rax, qword_ptr(at))?,
        }
        a.call(c.hex)?;
    }
    // The first seven instruction bytes.
    c.say(a, b, " instruction=")?;
    a.mov(rax, qword_ptr(VMCB + 0xd0))?;
    a.shr(rax, 8)?;
    a.call(c.hex)?;
    c.say(a, b, "\n")?;
    a.jmp(c.end_case)?;
    a.set_label(&mut skip)?;
    c.say(a, b, " skipped\n")?;
    a.jmp(c.end_case)?;
    c.finish(a, b)
}
