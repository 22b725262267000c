//! The hypervisor for Intel: VMXON once; for each case a fresh VMCS, VMLAUNCH, and a line with what the exit says.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use undervisor_vmx::Field as F;
use undervisor_vmx::controls::{entry, exit, pin, primary};
use undervisor_vmx::fields::FieldType;

use super::super::common::*;
use super::super::image::*;

/// Control fields with their capability MSRs; all but the secondary controls also have a TRUE one, 0xc further on.
const CONTROL_FIELDS: [(F, u32); 5] = [
    (F::PIN_BASED_CONTROLS, 0x481),
    (F::PRIMARY_CONTROLS, 0x482),
    (F::EXIT_CONTROLS, 0x483),
    (F::ENTRY_CONTROLS, 0x484),
    (F::SECONDARY_CONTROLS, 0x48b),
];

/// What a line says of an exit, and the field that says it.
pub const REPORT: [(&str, F); 15] = [
    ("reason", F::EXIT_REASON),
    ("qualification", F::EXIT_QUALIFICATION),
    ("length", F::EXIT_INSTRUCTION_LENGTH),
    ("information", F::EXIT_INSTRUCTION_INFORMATION),
    ("interruption", F::EXIT_INTERRUPTION_INFORMATION),
    ("error", F::EXIT_INTERRUPTION_ERROR_CODE),
    ("vectoring", F::IDT_VECTORING_INFORMATION),
    ("vectoring-error", F::IDT_VECTORING_ERROR_CODE),
    ("linear", F::GUEST_LINEAR_ADDRESS),
    ("physical", F::GUEST_PHYSICAL_ADDRESS),
    ("rip", F::GUEST_RIP),
    ("rflags", F::GUEST_RFLAGS),
    ("interruptibility", F::GUEST_INTERRUPTIBILITY),
    ("activity", F::GUEST_ACTIVITY),
    ("pending", F::GUEST_PENDING_DEBUG),
];

fn encoding(f: F) -> u32 {
    f.row().map_or(0, |r| r.encoding as u32)
}

/// Pairs as the loops of the hypervisor read them.
pub fn pairs(b: &mut Builder, fields: impl IntoIterator<Item = (F, u64)>) -> u64 {
    let words: Vec<u64> = fields.into_iter().flat_map(|(f, v)| [encoding(f) as u64, v]).chain([u64::MAX]).collect();
    b.words(words)
}

/// The controls that every case has, in the order of [`super::Controls`].
pub const BASE_CONTROLS: [u32; 5] = [
    pin::DEFAULT1,
    primary::TRUE_DEFAULT1,
    0,
    exit::TRUE_DEFAULT1 | exit::HOST_ADDRESS_SPACE_SIZE,
    entry::TRUE_DEFAULT1 | entry::IA32E_MODE_GUEST,
];

/// Everything of a 64-bit guest that runs on the host's own tables, and of the host, but for what is known only later: the fields
/// below, and zero in all others, as VMCLEAR leaves the last case's values.
pub fn base() -> Vec<(F, u64)> {
    let own = own();
    let value = |f: F| own.iter().find(|o| o.0 == f).map_or(0, |o| o.1);
    let writable = F::all().filter(|f| f.row().is_some_and(|r| r.field_type() != FieldType::Information));
    writable.map(|f| (f, value(f))).collect()
}

fn own() -> Vec<(F, u64)> {
    let mut f = vec![
        (F::VMCS_LINK_POINTER, u64::MAX),
        (F::HOST_CR3, TABLES),
        (F::HOST_RSP, STACK),
        (F::HOST_TR_SELECTOR, TSS as u64),
        (F::HOST_TR_BASE, TSS_64),
        (F::HOST_GDTR_BASE, GDT),
        (F::HOST_PAT, PAT),
        (F::HOST_EFER, 0xd00),
        (F::GUEST_CR3, TABLES),
        (F::GUEST_RSP, GUEST_STACK),
        (F::GUEST_RFLAGS, 2),
        (F::GUEST_DR7, 0x400),
        (F::GUEST_PAT, PAT),
        (F::GUEST_EFER, 0xd00),
        (F::GUEST_GDTR_BASE, GDT),
        (F::GUEST_GDTR_LIMIT, GDT_LIMIT as u64),
        (F::GUEST_IDTR_BASE, GUEST_IDT),
        (F::GUEST_IDTR_LIMIT, 0xfff),
        // Unusable.
        (F::GUEST_LDTR_ACCESS, 0x1_0000),
        (F::GUEST_TR_SELECTOR, TSS as u64),
        (F::GUEST_TR_ACCESS, 0x8b),
        (F::GUEST_TR_LIMIT, 0x67),
        (F::GUEST_TR_BASE, TSS_64),
        // Where the controls that use these are on.
        (F::EPT_POINTER, NESTED | 0x1e),
        (F::MSR_BITMAPS, MSR_BITMAPS),
        (F::IO_BITMAP_A, IO_BITMAPS),
        (F::IO_BITMAP_B, IO_BITMAPS + 0x1000),
        (F::VIRTUAL_APIC_ADDRESS, VIRTUAL_APIC),
    ];
    for n in 0..6 {
        let (selector, access) = if n == 1 { (CODE_64, 0xa09b) } else { (DATA, 0xc093) };
        f.extend([
            (F::HOST_ES_SELECTOR.plus(n), selector as u64),
            (F::GUEST_ES_SELECTOR.plus(n), selector as u64),
            (F::GUEST_ES_ACCESS.plus(n), access),
            (F::GUEST_ES_LIMIT.plus(n), 0xffff_ffff),
        ]);
    }
    f
}

/// In the first of a record's controls: the entry is to be made from 32-bit mode.
pub const LEGACY_HOST: u64 = 1 << 32;

/// CR0 and CR4 of the hypervisor, as its entry sets them.
pub const CR0: u64 = 0x8001_0033;
pub const CR4: u64 = 0x4_2620;

/// The PAT after reset.
const PAT: u64 = 0x0007_0406_0007_0406;

/// The whole of the hypervisor's code.
pub fn write(a: &mut CodeAssembler, c: &mut Common, b: &mut Builder, cases: u64, idt: u64, idtr: u64) -> R {
    let (mut skip, mut failed, mut exited) = (a.create_label(), a.create_label(), a.create_label());
    c.start(a, b, idtr)?;
    // IA32_FEATURE_CONTROL, if nobody has locked it.
    let mut locked = a.create_label();
    a.mov(ecx, 0x3a)?;
    a.rdmsr()?;
    a.test(al, 1)?;
    a.jnz(locked)?;
    a.or(eax, 5)?;
    a.wrmsr()?;
    a.set_label(&mut locked)?;
    a.mov(rax, cr4)?;
    a.or(eax, 0x2000)?;
    a.mov(cr4, rax)?;
    a.mov(ecx, 0x480)?;
    a.rdmsr()?;
    a.and(eax, 0x7fff_ffff)?;
    for region in [VMXON_REGION, VMCS_REGION, OTHER_REGION] {
        a.mov(dword_ptr(region), eax)?;
    }
    // VMX_BASIC bit 55: the TRUE capability MSRs.
    a.shr(edx, 23)?;
    a.and(edx, 1)?;
    a.imul_3(edx, edx, 0xc)?;
    a.mov(qword_ptr(TRUE_MSRS), rdx)?;
    let pointers = b.words([VMXON_REGION, VMCS_REGION]);
    let excursion = legacy_entry(b, pointers)?;
    // A descriptor for INVEPT of everything.
    let everything = b.words([0, 0]);
    a.vmxon(qword_ptr(pointers))?;

    c.walk(a, b, cases)?;
    a.vmclear(qword_ptr(pointers + 8))?;
    a.vmptrld(qword_ptr(pointers + 8))?;
    a.mov(eax, 2)?;
    a.invept(rax, xmmword_ptr(everything))?;
    // The base, the registers of now, the controls, the case's own fields.
    let common = pairs(b, base());
    let (mut set, mut next, mut set_done) = (a.create_label(), a.create_label(), a.create_label());
    let (mut own, mut enter) = (a.create_label(), a.create_label());
    let (mut legacy, mut back, mut report) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(r8d, common as u32)?;
    a.xor(r9d, r9d)?;
    a.jmp(set)?;
    // R9: whether this is the second list.
    a.set_label(&mut set)?;
    a.mov(rcx, qword_ptr(r8))?;
    a.cmp(rcx, -1)?;
    a.je(set_done)?;
    a.mov(rax, qword_ptr(r8 + 8))?;
    a.vmwrite(rcx, rax)?;
    a.ja(next)?;
    // A field that does not exist matters only to the case that names it.
    a.test(r9d, r9d)?;
    a.jnz(skip)?;
    a.set_label(&mut next)?;
    a.add(r8, 16)?;
    a.jmp(set)?;
    a.set_label(&mut set_done)?;
    a.test(r9d, r9d)?;
    a.jz(own)?;
    a.jmp(enter)?;

    a.set_label(&mut own)?;
    for (register, fields) in [(cr0, [F::HOST_CR0, F::GUEST_CR0]), (cr4, [F::HOST_CR4, F::GUEST_CR4])] {
        a.mov(rax, register)?;
        for f in fields {
            a.mov(ecx, encoding(f))?;
            a.vmwrite(rcx, rax)?;
        }
    }
    for (f, value) in [(F::HOST_RIP, exited), (F::HOST_IDTR_BASE, exited)] {
        if f == F::HOST_RIP {
            a.lea(rax, ptr(value))?;
        } else {
            a.mov(eax, idt as u32)?;
        }
        a.mov(ecx, encoding(f))?;
        a.vmwrite(rcx, rax)?;
    }
    a.mov(rax, record(RIP))?;
    a.mov(ecx, encoding(F::GUEST_RIP))?;
    a.vmwrite(rcx, rax)?;
    for (n, (f, msr)) in CONTROL_FIELDS.into_iter().enumerate() {
        let mut without = a.create_label();
        a.mov(r10, record(CONTROLS + n as u64))?;
        a.mov(ecx, msr)?;
        if f == F::SECONDARY_CONTROLS {
            // Only a case that wants secondary controls reads the MSR, which may not exist.
            a.test(r10d, r10d)?;
            a.jz(without)?;
        } else {
            a.add(ecx, dword_ptr(TRUE_MSRS))?;
        }
        a.rdmsr()?;
        a.mov(r11d, r10d)?;
        a.or(r10d, eax)?;
        a.and(r10d, edx)?;
        a.and(edx, r11d)?;
        a.cmp(edx, r11d)?;
        a.jne(skip)?;
        a.mov(eax, r10d)?;
        a.mov(ecx, encoding(f))?;
        a.vmwrite(rcx, rax)?;
        a.set_label(&mut without)?;
        a.nop()?;
    }
    a.mov(r8, record(FIELDS))?;
    a.inc(r9d)?;
    a.jmp(set)?;

    a.set_label(&mut enter)?;
    a.mov(rax, record(CONTROLS))?;
    a.bt(rax, LEGACY_HOST.trailing_zeros())?;
    a.jc(legacy)?;
    c.clear_registers(a)?;
    a.xor(eax, eax)?;
    a.vmlaunch()?;
    a.jc(failed)?;
    a.mov(ecx, encoding(F::INSTRUCTION_ERROR))?;
    a.vmread(rdi, rcx)?;
    a.set_label(&mut report)?;
    c.say(a, b, " fail=")?;
    a.mov(eax, edi)?;
    a.call(c.hex)?;
    c.say(a, b, "\n")?;
    a.jmp(c.end_case)?;
    a.set_label(&mut failed)?;
    c.say(a, b, " fail=invalid\n")?;
    a.jmp(c.end_case)?;
    // PG is fixed to one in VMX operation: the VMCS goes to memory, and with it through another VMXON in 32-bit mode.
    a.set_label(&mut legacy)?;
    a.vmclear(qword_ptr(pointers + 8))?;
    a.vmxoff()?;
    a.lea(rbp, ptr(back))?;
    a.push(CODE_32 as i32)?;
    a.push(excursion as i32)?;
    // RETFQ.
    a.db(&[0x48, 0xcb])?;
    a.set_label(&mut back)?;
    a.mov(esp, STACK as u32)?;
    a.vmxon(qword_ptr(pointers))?;
    a.vmptrld(qword_ptr(pointers + 8))?;
    // Flags of the VMLAUNCH in EBX, the error number in EDI.
    a.bt(ebx, 0)?;
    a.jc(failed)?;
    a.jmp(report)?;
    a.set_label(&mut skip)?;
    c.say(a, b, " skipped\n")?;
    a.jmp(c.end_case)?;

    a.set_label(&mut exited)?;
    for (name, f) in REPORT {
        let mut none = a.create_label();
        c.say(a, b, &format!(" {name}="))?;
        a.mov(ecx, encoding(f))?;
        a.vmread(rax, rcx)?;
        a.jbe(none)?;
        a.call(c.hex)?;
        a.set_label(&mut none)?;
        a.nop()?;
    }
    c.say(a, b, "\n")?;
    a.jmp(c.end_case)?;
    c.finish(a, b)
}

/// 32-bit code that leaves IA-32e mode, makes the entry, and comes back to 64-bit code at EBP. `pointers`: to the VMXON region and to
/// the VMCS. Where it lies.
fn legacy_entry(b: &mut Builder, pointers: u64) -> Result<u64, IcedError> {
    // PAE page-directory-pointer entries have neither R/W nor U/S.
    b.align(32);
    let tables = b.words([(TABLES + 0x2000) | 1, 0, 0, (TABLES + 0x3000) | 1]);
    let mut a = CodeAssembler::new(32)?;
    let paging = |a: &mut CodeAssembler, on: bool| -> R {
        a.mov(eax, cr0)?;
        if on {
            a.or(eax, i32::MIN)?
        } else {
            a.and(eax, i32::MAX)?
        }
        a.mov(cr0, eax)
    };
    let mode = |a: &mut CodeAssembler, tables: u64, long: bool| -> R {
        paging(a, false)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        if long {
            a.or(eax, 0x100)?
        } else {
            a.and(eax, !0x100)?
        }
        a.wrmsr()?;
        a.mov(eax, tables as u32)?;
        a.mov(cr3, eax)?;
        paging(a, true)
    };
    mode(&mut a, tables, false)?;
    a.vmxon(qword_ptr(pointers as u32))?;
    a.vmptrld(qword_ptr(pointers as u32 + 8))?;
    a.vmlaunch()?;
    a.pushfd()?;
    a.pop(ebx)?;
    a.mov(ecx, encoding(F::INSTRUCTION_ERROR))?;
    a.vmread(edi, ecx)?;
    a.vmclear(qword_ptr(pointers as u32 + 8))?;
    a.vmxoff()?;
    mode(&mut a, TABLES, true)?;
    a.push(CODE_64 as u32)?;
    a.push(ebp)?;
    a.retf()?;
    Ok(b.code(&mut a)?.inner.rip)
}
