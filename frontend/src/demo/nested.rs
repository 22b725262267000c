//! The demo as a hypervisor: L1 runs one L2 in real mode and one in long mode under VMX with EPT,
//! or under SVM with nested paging, handles their exits and prints
//! a table of them.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::image::*;
use super::long::Routines;
use super::{vmcb, vmcs};

/// L2's general registers while L1 runs, in encoding order.
const REGS: u64 = VARIABLES as u64 + 0x1000;
/// By exit reason: exits, TSC ticks in L2 before them, TSC ticks in L1 after them.
const COUNTS: u64 = VARIABLES as u64 + 0x1100;
const L2_TICKS: u64 = VARIABLES as u64 + 0x1300;
const L1_TICKS: u64 = VARIABLES as u64 + 0x1500;
const ENTERED: u64 = VARIABLES as u64 + 0x1700;
const LEFT: u64 = VARIABLES as u64 + 0x1708;
const SAVED_RSP: u64 = VARIABLES as u64 + 0x1710;
const REGION: u64 = VARIABLES as u64 + 0x1718;

/// Basic exit reasons (SDM vol. 3, VMX Basic Exit Reasons) that the demo causes.
const CPUID: u32 = 10;
const HLT: u32 = 12;
const VMCALL: u32 = 18;
const IO: u32 = 30;
const RDMSR: u32 = 31;
const WRMSR: u32 = 32;
const EPT_VIOLATION: u32 = 48;
const TIMER: u32 = 52;
const NAMES: [(u32, &str); 8] = [
    (CPUID, "CPUID"),
    (HLT, "HLT"),
    (VMCALL, "VMCALL"),
    (IO, "I/O instruction"),
    (RDMSR, "RDMSR"),
    (WRMSR, "WRMSR"),
    (EPT_VIOLATION, "EPT violation"),
    (TIMER, "preemption timer"),
];

/// The same under SVM, counted under the same numbers: (SVM exit code, number, name).
const SVM_NAMES: [(u32, u32, &str); 5] = [
    (0x72, CPUID, "CPUID"),
    (0x78, HLT, "HLT"),
    (0x81, VMCALL, "VMMCALL"),
    (0x7b, IO, "I/O instruction"),
    (0x400, EPT_VIOLATION, "nested page fault"),
];
const SVM_MSR: u32 = 0x7c;

/// An MSR that no processor has: it is L1's.
const L1_MSR: u32 = 0x4000_0010;
const L1_MSR_VALUE: u32 = 0x1234_5678;
/// Guest-physical pages that L1 maps only when they are touched.
const LAZY_PAGES: [u32; 2] = [0x20_0000, 0x40_0000];

const GPRS: [AsmRegister64; 15] = [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

fn slot(register: u32) -> u64 {
    REGS + 8 * register as u64
}

/// Where GPRS[i] is saved: RSP's slot (4) is left out, as the VMCS has it.
fn save_slot(i: usize) -> u64 {
    slot(if i < 4 { i as u32 } else { i as u32 + 1 })
}

/// Assemble L1 and both L2s; long-mode code calls `nested_entry`.
pub fn add(image: &mut Builder) -> Result<(), IcedError> {
    for amd in [false, true] {
        l2_real(image, amd)?;
        l2_long(image, amd)?;
    }
    ept(image);
    l1(image)
}

/// Identity in 2 MiB pages of write-back memory, but for the lazy ones.
fn ept(image: &mut Builder) {
    let word = |image: &mut Builder, at: u32, value: u64| image.put(at, &value.to_le_bytes());
    word(image, EPT, (EPT + 0x1000) as u64 | 7);
    word(image, EPT + 0x1000, (EPT + 0x2000) as u64 | 7);
    for i in 0..16u32 {
        if !LAZY_PAGES.contains(&(i << 21)) {
            word(image, EPT + 0x2000 + 8 * i, (i as u64) << 21 | 0xb7);
        }
    }
}

/// What both guests do: CPUID, an MSR, HLT, and a loop long enough for the timer.
fn common_work(a: &mut CodeAssembler, amd: bool) -> Result<(), IcedError> {
    for leaf in 0..4 {
        a.mov(eax, leaf)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
    }
    a.mov(ecx, L1_MSR)?;
    a.rdmsr()?;
    a.wrmsr()?;
    a.hlt()?;
    a.mov(ecx, 3_000_000)?;
    let mut spin = a.create_label();
    a.set_label(&mut spin)?;
    a.dec(ecx)?;
    a.jnz(spin)?;
    if amd { a.vmmcall() } else { a.vmcall() }
}

fn l2_real(image: &mut Builder, amd: bool) -> Result<(), IcedError> {
    let text = image.text("    L2 in real mode: hello, byte by byte through L1\n");
    let mut a = CodeAssembler::new(16)?;
    let (mut next, mut done) = (a.create_label(), a.create_label());
    a.mov(si, text - TEXTS)?;
    a.mov(dx, COM1)?;
    a.set_label(&mut next)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(done)?;
    a.out(dx, al)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    common_work(&mut a, amd)?;
    // CS is the code's segment, so offsets begin at 0.
    let at = if amd { AMD_CODE } else { 0 };
    let code = a.assemble(at as u64)?;
    image.put(L2_REAL + at, &code);
    Ok(())
}

fn l2_long(image: &mut Builder, amd: bool) -> Result<(), IcedError> {
    let text = image.text("    L2 in long mode: hello; touching memory that L1 has not mapped\n");
    let mut a = CodeAssembler::new(64)?;
    let (mut next, mut done) = (a.create_label(), a.create_label());
    a.mov(esi, text)?;
    a.mov(edx, COM1)?;
    a.set_label(&mut next)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(done)?;
    a.out(dx, al)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    for page in LAZY_PAGES {
        a.mov(ebx, page)?;
        a.mov(qword_ptr(rbx + 8), rbx)?;
        a.mov(rax, qword_ptr(rbx + 8))?;
    }
    common_work(&mut a, amd)?;
    let at = L2_LONG + if amd { AMD_CODE } else { 0 };
    image.code(&mut a, at, at + AMD_CODE)?;
    Ok(())
}

/// VMWRITE of a constant.
fn write(a: &mut CodeAssembler, field: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, field)?;
    a.mov(rax, value)?;
    a.vmwrite(rcx, rax)
}

/// VMREAD into a register.
fn read(a: &mut CodeAssembler, to: AsmRegister64, field: u32) -> Result<(), IcedError> {
    a.mov(ecx, field)?;
    a.vmread(to, rcx)
}

/// RAX = the time stamp counter; RDX is lost.
fn clock(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)
}

struct L1 {
    r: Routines,
    setup: CodeLabel,
    fill: CodeLabel,
    run: CodeLabel,
    exit: CodeLabel,
    failed: CodeLabel,
    table: CodeLabel,
    svm: CodeLabel,
}

fn l1(image: &mut Builder) -> Result<(), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut l = L1 {
        r: Routines::declare(&mut a),
        setup: a.create_label(),
        fill: a.create_label(),
        run: a.create_label(),
        exit: a.create_label(),
        failed: a.create_label(),
        table: a.create_label(),
        svm: a.create_label(),
    };
    let (mut without, mut locked) = (a.create_label(), a.create_label());
    a.mov(eax, 1)?;
    a.cpuid()?;
    a.bt(ecx, 5)?;
    a.jnc(without)?;
    // IA32_FEATURE_CONTROL, CR4.VMXE, VMXON.
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
    a.mov(dword_ptr(VMXON_REGION as u64), eax)?;
    a.mov(dword_ptr(VMCS_REGION as u64), eax)?;
    a.mov(qword_ptr(REGION), VMXON_REGION as i32)?;
    a.vmxon(qword_ptr(REGION))?;
    a.jbe(l.failed)?;
    a.mov(qword_ptr(REGION), VMCS_REGION as i32)?;
    l.r.say(&mut a, image, "L1: VMX is on; EPT, unrestricted guest, preemption timer\n")?;
    for (fields, entry) in [(vmcs::real(), 0), (vmcs::long(), vmcs::IA32E_GUEST)] {
        let table = image.data(&vmcs::bytes(&fields));
        a.mov(ebx, entry)?;
        a.mov(r8d, table)?;
        a.call(l.setup)?;
        a.call(l.run)?;
    }
    a.call(l.table)?;
    a.vmxoff()?;
    a.ret()?;
    a.set_label(&mut without)?;
    svm(&mut a, image, &mut l)?;
    l.r.define(&mut a)?;
    setup(&mut a, image, &mut l)?;
    run(&mut a, &mut l)?;
    exit(&mut a, image, &mut l)?;
    a.set_label(&mut l.table)?;
    table(&mut a, image, &l, &NAMES)?;
    svm_run(&mut a, image, &mut l)?;
    image.code(&mut a, HYPERVISOR, L2_REAL)?;
    image.nested_entry = HYPERVISOR as u64;
    Ok(())
}

/// Make the VMCS: R8 = table of guest state, EBX = VM-entry controls.
fn setup(a: &mut CodeAssembler, image: &mut Builder, l: &mut L1) -> Result<(), IcedError> {
    a.set_label(&mut l.setup)?;
    a.vmclear(qword_ptr(REGION))?;
    a.vmptrld(qword_ptr(REGION))?;
    a.call(l.fill)?;
    let common = image.data(&vmcs::bytes(&vmcs::common()));
    a.mov(r8d, common)?;
    a.call(l.fill)?;
    for (field, want, msr) in vmcs::CONTROLS {
        a.mov(ecx, msr)?;
        a.rdmsr()?;
        a.or(eax, want)?;
        if field == 0x4012 {
            a.or(eax, ebx)?;
        }
        a.and(eax, edx)?;
        a.mov(ecx, field)?;
        a.vmwrite(rcx, rax)?;
    }
    for (field, register) in [(vmcs::HOST_CR0, cr0), (vmcs::HOST_CR3, cr3), (vmcs::HOST_CR4, cr4)] {
        a.mov(rax, register)?;
        a.mov(ecx, field)?;
        a.vmwrite(rcx, rax)?;
    }
    a.lea(rax, ptr(l.exit))?;
    a.mov(ecx, vmcs::HOST_RIP)?;
    a.vmwrite(rcx, rax)?;
    a.ret()?;
    // Write the table at R8.
    let mut done = a.create_label();
    a.set_label(&mut l.fill)?;
    a.mov(rcx, qword_ptr(r8))?;
    a.cmp(rcx, -1)?;
    a.je(done)?;
    a.mov(rax, qword_ptr(r8 + 8))?;
    a.vmwrite(rcx, rax)?;
    a.jbe(l.failed)?;
    a.add(r8, 16)?;
    a.jmp(l.fill)?;
    a.set_label(&mut done)?;
    a.ret()
}

/// Run the current VMCS until its guest calls; returns to the caller then.
fn run(a: &mut CodeAssembler, l: &mut L1) -> Result<(), IcedError> {
    a.set_label(&mut l.run)?;
    a.mov(qword_ptr(SAVED_RSP), rsp)?;
    clock(a)?;
    a.mov(qword_ptr(ENTERED), rax)?;
    load(a)?;
    a.vmlaunch()?;
    a.jmp(l.failed)
}

fn load(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // RAX last: its moves are what addresses above 2 GiB would need.
    for (i, &register) in GPRS.iter().enumerate().rev() {
        a.mov(register, qword_ptr(save_slot(i)))?;
    }
    Ok(())
}

/// The VM-exit handler.
fn exit(a: &mut CodeAssembler, image: &mut Builder, l: &mut L1) -> Result<(), IcedError> {
    let mut handlers: Vec<(u32, CodeLabel)> = NAMES.iter().map(|n| (n.0, a.create_label())).collect();
    let (mut skip, mut resume) = (a.create_label(), a.create_label());
    a.set_label(&mut l.exit)?;
    for (i, &register) in GPRS.iter().enumerate() {
        a.mov(qword_ptr(save_slot(i)), register)?;
    }
    clock(a)?;
    a.mov(qword_ptr(LEFT), rax)?;
    a.sub(rax, qword_ptr(ENTERED))?;
    read(a, rbx, vmcs::EXIT_REASON)?;
    a.mov(r12, rbx)?;
    a.and(ebx, 63)?;
    a.inc(qword_ptr(rbx * 8 + COUNTS as i32))?;
    a.add(qword_ptr(rbx * 8 + L2_TICKS as i32), rax)?;
    for (reason, label) in &handlers {
        a.cmp(r12d, *reason as i32)?;
        a.je(*label)?;
    }
    l.r.say(a, image, "\nL1: unexpected exit, reason 0x")?;
    a.mov(rax, r12)?;
    a.call(l.r.hex)?;
    l.r.say(a, image, " at 0x")?;
    read(a, rax, vmcs::GUEST_RIP)?;
    a.call(l.r.hex)?;
    l.r.say(a, image, "\n")?;
    a.mov(rsp, qword_ptr(SAVED_RSP))?;
    a.ret()?;
    for (reason, label) in &mut handlers {
        a.set_label(label)?;
        match *reason {
            CPUID => {
                a.mov(rax, qword_ptr(slot(0)))?;
                a.mov(rcx, qword_ptr(slot(1)))?;
                // RBX holds the exit reason.
                a.mov(r13, rbx)?;
                a.cpuid()?;
                for (i, register) in [(0, rax), (1, rcx), (2, rdx), (3, rbx)] {
                    a.mov(qword_ptr(slot(i)), register)?;
                }
                a.mov(rbx, r13)?;
                a.jmp(skip)?;
            }
            IO => {
                a.mov(rax, qword_ptr(slot(0)))?;
                a.mov(rdx, qword_ptr(slot(2)))?;
                a.out(dx, al)?;
                a.jmp(skip)?;
            }
            RDMSR => {
                a.mov(qword_ptr(slot(0)), L1_MSR_VALUE as i32)?;
                a.mov(qword_ptr(slot(2)), 0)?;
                a.jmp(skip)?;
            }
            WRMSR | HLT => a.jmp(skip)?,
            EPT_VIOLATION => {
                read(a, rax, vmcs::GUEST_PHYSICAL_ADDRESS)?;
                a.shr(rax, 21)?;
                a.mov(rdx, rax)?;
                a.shl(rdx, 21)?;
                a.or(rdx, 0xb7)?;
                a.mov(qword_ptr(rax * 8 + (EPT + 0x2000) as i32), rdx)?;
                a.jmp(resume)?;
            }
            TIMER => {
                write(a, vmcs::PREEMPTION_TIMER, vmcs::TIMER)?;
                a.jmp(resume)?;
            }
            // VMCALL: the guest is done.
            _ => {
                a.mov(rsp, qword_ptr(SAVED_RSP))?;
                a.ret()?;
            }
        }
    }
    a.set_label(&mut skip)?;
    read(a, rax, vmcs::GUEST_RIP)?;
    read(a, rdx, vmcs::INSTRUCTION_LENGTH)?;
    a.add(rax, rdx)?;
    a.mov(ecx, vmcs::GUEST_RIP)?;
    a.vmwrite(rcx, rax)?;
    a.set_label(&mut resume)?;
    clock(a)?;
    a.mov(qword_ptr(ENTERED), rax)?;
    a.sub(rax, qword_ptr(LEFT))?;
    a.add(qword_ptr(rbx * 8 + L1_TICKS as i32), rax)?;
    load(a)?;
    a.vmresume()?;
    a.set_label(&mut l.failed)?;
    l.r.say(a, image, "L1: a VMX instruction failed, error ")?;
    read(a, rax, vmcs::INSTRUCTION_ERROR)?;
    a.mov(ecx, 1)?;
    a.call(l.r.decimal)?;
    l.r.say(a, image, "\n")?;
    // 0xf4: isa-debug-exit.
    a.mov(eax, 0x12)?;
    a.out(0xf4, al)?;
    a.hlt()
}

/// Print the table of exits and return.
fn table(a: &mut CodeAssembler, image: &mut Builder, l: &L1, names: &[(u32, &str)]) -> Result<(), IcedError> {
    let multiple = undervisor_cpu::time::TSC_MULTIPLE as u32;
    l.r.say(a, image, "\n    exit               count    nanoseconds in L2 before it   in L1 to handle it\n")?;
    for &(reason, name) in names {
        let mut none = a.create_label();
        let at = |base: u64| qword_ptr(base + 8 * reason as u64);
        a.cmp(at(COUNTS), 0)?;
        a.je(none)?;
        l.r.say(a, image, &format!("    {name:<17}"))?;
        a.mov(rax, at(COUNTS))?;
        a.mov(ecx, 7)?;
        a.call(l.r.decimal)?;
        for (base, width) in [(L2_TICKS, 31), (L1_TICKS, 21)] {
            a.mov(rax, at(base))?;
            a.xor(edx, edx)?;
            a.mov(ecx, multiple)?;
            a.div(rcx)?;
            a.xor(edx, edx)?;
            a.div(at(COUNTS))?;
            a.mov(ecx, width)?;
            a.call(l.r.decimal)?;
        }
        l.r.say(a, image, "\n")?;
        a.set_label(&mut none)?;
        a.nop()?;
    }
    a.ret()
}

/// L1 under SVM, from "is there SVM" to the table.
fn svm(a: &mut CodeAssembler, image: &mut Builder, l: &mut L1) -> Result<(), IcedError> {
    const EFER: u32 = 0xc000_0080;
    const VM_HSAVE_PA: u32 = 0xc001_0117;
    let mut without = a.create_label();
    a.mov(eax, 0x8000_0001u32)?;
    a.cpuid()?;
    a.bt(ecx, 2)?;
    a.jnc(without)?;
    a.mov(ecx, EFER)?;
    a.rdmsr()?;
    a.or(eax, 0x1000)?;
    a.wrmsr()?;
    a.mov(ecx, VM_HSAVE_PA)?;
    a.mov(eax, VMXON_REGION)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.mov(edi, vmcb::IO_MAP)?;
    a.mov(ecx, vmcb::MAP_BYTES)?;
    a.mov(al, 0xff)?;
    a.rep().stosb()?;
    l.r.say(a, image, "L1: SVM is on; nested paging\n")?;
    for fields in [vmcb::real(), vmcb::long()] {
        let all: Vec<_> = vmcb::common().into_iter().chain(fields).collect();
        let table = image.data(&vmcs::bytes(&all));
        let (mut next, mut done) = (a.create_label(), a.create_label());
        a.mov(r8d, table)?;
        a.set_label(&mut next)?;
        a.mov(rcx, qword_ptr(r8))?;
        a.cmp(rcx, -1)?;
        a.je(done)?;
        a.mov(rax, qword_ptr(r8 + 8))?;
        a.mov(qword_ptr(rcx + VMCS_REGION as i32), rax)?;
        a.add(r8, 16)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.call(l.svm)?;
    }
    a.stgi()?;
    let mut names: Vec<_> = SVM_NAMES.iter().map(|n| (n.1, n.2)).collect();
    names.extend([(RDMSR, "RDMSR"), (WRMSR, "WRMSR")]);
    table(a, image, l, &names)?;
    a.set_label(&mut without)?;
    l.r.say(a, image, "L1: this processor has neither VMX nor SVM; no guests of our own\n")?;
    a.ret()
}

/// Run the VMCB until its guest calls; returns to the caller then.
fn svm_run(a: &mut CodeAssembler, image: &mut Builder, l: &mut L1) -> Result<(), IcedError> {
    let field = |offset: u32| qword_ptr((VMCS_REGION + offset) as u64);
    let mut numbers: Vec<_> = SVM_NAMES.iter().map(|&(code, number, _)| (code, number, a.create_label())).collect();
    let (mut enter, mut known, mut unknown) = (a.create_label(), a.create_label(), a.create_label());
    let (mut skip, mut resume) = (a.create_label(), a.create_label());
    a.set_label(&mut l.svm)?;
    a.mov(qword_ptr(SAVED_RSP), rsp)?;
    clock(a)?;
    a.mov(qword_ptr(ENTERED), rax)?;
    a.set_label(&mut enter)?;
    load(a)?;
    // RAX travels in the VMCB.
    a.mov(field(vmcb::RAX), rax)?;
    a.mov(eax, VMCS_REGION)?;
    a.db(&[0x0f, 0x01, 0xd8])?; // VMRUN
    for (i, &register) in GPRS.iter().enumerate().skip(1) {
        a.mov(qword_ptr(save_slot(i)), register)?;
    }
    a.mov(rax, field(vmcb::RAX))?;
    a.mov(qword_ptr(slot(0)), rax)?;
    clock(a)?;
    a.mov(qword_ptr(LEFT), rax)?;
    a.sub(rax, qword_ptr(ENTERED))?;
    a.mov(r12, field(vmcb::EXIT_CODE))?;
    for (code, _, label) in &numbers {
        a.cmp(r12, *code as i32)?;
        a.je(*label)?;
    }
    a.cmp(r12, SVM_MSR as i32)?;
    a.jne(unknown)?;
    // EXITINFO1: 0 read, 1 write.
    a.mov(ebx, RDMSR)?;
    a.add(rbx, field(vmcb::EXIT_INFO_1))?;
    a.jmp(known)?;
    for (_, number, label) in &mut numbers {
        a.set_label(label)?;
        a.mov(ebx, *number)?;
        a.jmp(known)?;
    }
    a.set_label(&mut known)?;
    a.inc(qword_ptr(rbx * 8 + COUNTS as i32))?;
    a.add(qword_ptr(rbx * 8 + L2_TICKS as i32), rax)?;
    let mut handlers: Vec<_> = [CPUID, IO, RDMSR, EPT_VIOLATION, VMCALL].map(|n| (n, a.create_label())).into();
    for (number, label) in &handlers {
        a.cmp(ebx, *number as i32)?;
        a.je(*label)?;
    }
    // WRMSR and HLT.
    a.jmp(skip)?;
    for (number, label) in &mut handlers {
        a.set_label(label)?;
        match *number {
            CPUID => {
                a.mov(rax, qword_ptr(slot(0)))?;
                a.mov(rcx, qword_ptr(slot(1)))?;
                a.mov(r13, rbx)?;
                a.cpuid()?;
                for (i, register) in [(0, rax), (1, rcx), (2, rdx), (3, rbx)] {
                    a.mov(qword_ptr(slot(i)), register)?;
                }
                a.mov(rbx, r13)?;
            }
            IO => {
                a.mov(rax, qword_ptr(slot(0)))?;
                a.mov(rdx, qword_ptr(slot(2)))?;
                a.out(dx, al)?;
            }
            RDMSR => {
                a.mov(qword_ptr(slot(0)), L1_MSR_VALUE as i32)?;
                a.mov(qword_ptr(slot(2)), 0)?;
            }
            EPT_VIOLATION => {
                a.mov(rax, field(vmcb::EXIT_INFO_2))?;
                a.shr(rax, 21)?;
                a.mov(rdx, rax)?;
                a.shl(rdx, 21)?;
                a.or(rdx, 0xb7)?;
                a.mov(qword_ptr(rax * 8 + (EPT + 0x2000) as i32), rdx)?;
                a.jmp(resume)?;
                continue;
            }
            // VMMCALL: the guest is done.
            _ => {
                a.ret()?;
                continue;
            }
        }
        a.jmp(skip)?;
    }
    a.set_label(&mut skip)?;
    a.mov(rax, field(vmcb::NEXT_RIP))?;
    a.mov(field(vmcb::RIP), rax)?;
    a.set_label(&mut resume)?;
    clock(a)?;
    a.mov(qword_ptr(ENTERED), rax)?;
    a.sub(rax, qword_ptr(LEFT))?;
    a.add(qword_ptr(rbx * 8 + L1_TICKS as i32), rax)?;
    a.jmp(enter)?;
    a.set_label(&mut unknown)?;
    l.r.say(a, image, "\nL1: unexpected exit, code 0x")?;
    a.mov(rax, r12)?;
    a.call(l.r.hex)?;
    l.r.say(a, image, " at 0x")?;
    a.mov(rax, field(vmcb::RIP))?;
    a.call(l.r.hex)?;
    l.r.say(a, image, "\n")?;
    a.mov(eax, 0x12)?;
    a.out(0xf4, al)?;
    a.hlt()
}
