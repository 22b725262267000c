//! A guest for every basic exit reason (SDM vol. 3, VMX Basic Exit Reasons), with what the manual says its exit reports (Information
//! for VM Exits: Basic VM-Exit Information; Due to Vectored Events; That Occur During Event Delivery; Due to Instruction Execution).

use iced_x86::code_asm::*;
use undervisor_vmx::Field as F;
use undervisor_vmx::controls::{entry, exit, pin, primary, secondary};
use undervisor_vmx::reason::{AFTER_BUS_LOCK, ENTRY_FAILURE, basic};

use super::super::case::Build;
use super::super::image::*;
use super::Case;

/// Reasons for which there is no guest here, and why.
pub const UNREACHABLE: &[(u32, &str)] = &[
    (basic::SIPI, "another processor must send it: a test of the processor does (`a_sipi_exits`)"),
    (basic::GETSEC, "no model has SMX: CR4.SMXE cannot be set, and GETSEC is #UD"),
    (basic::RSM, "outside of SMM, where no VMX guest is, RSM is #UD"),
    (basic::MACHINE_CHECK, "the machine has no machine checks"),
    (basic::XSAVES, "no model has a state component that IA32_XSS governs"),
    (basic::XRSTORS, "no model has a state component that IA32_XSS governs"),
];

const VALID: u64 = 1 << 31;
const WITH_CODE: u64 = 1 << 11;
const NMI: u64 = 2 << 8;
const HARDWARE: u64 = 3 << 8;
const SOFTWARE: u64 = 4 << 8;
const PRIVILEGED: u64 = 5 << 8;
const SOFTWARE_EXCEPTION: u64 = 6 << 8;

/// Every case.
pub fn all() -> Vec<Case> {
    let mut out = exceptions();
    out.extend(events());
    out.extend(plain_instructions());
    out.extend(operands());
    out.extend(registers());
    out.extend(ports());
    out.extend(apic());
    out.extend(waits());
    out.extend(locks());
    out.extend(timeouts());
    out.extend(ept());
    out.extend(delivery());
    out.extend(tasks());
    out.extend(super::checks::all());
    out.extend(last());
    out
}

fn exception(name: &str, vector: u64, info: u64, code: Code) -> Case {
    Case::new(name, basic::EXCEPTION_OR_NMI, code)
        .field(F::EXCEPTION_BITMAP, 1 << vector)
        .want("interruption", VALID | info | vector)
}

fn exceptions() -> Vec<Case> {
    vec![
        exception("exception-de", 0, HARDWARE, |g| {
            g.a.xor(ecx, ecx)?;
            g.here()?;
            g.a.div(ecx)
        }),
        exception("exception-ud", 6, HARDWARE, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.ud2()
        }),
        exception("exception-gp", 13, HARDWARE | WITH_CODE, |g| {
            g.a.mov(rax, 0x8000_0000_0000_0000u64)?;
            g.here()?;
            g.a.mov(al, byte_ptr(rax))
        })
        .want("error", 0),
        exception("exception-gp-selector", 13, HARDWARE | WITH_CODE, |g| {
            g.a.mov(eax, 0x1000)?;
            g.here()?;
            g.a.mov(ds, eax)
        })
        .want("error", 0x1000),
        // Page faults: the qualification is the linear address.
        exception("exception-pf", 14, HARDWARE | WITH_CODE, |g| {
            g.a.mov(edi, UNMAPPED as u32 + 0x1234)?;
            g.here()?;
            g.a.mov(dword_ptr(rdi), eax)
        })
        .want("error", 2)
        .qualification(UNMAPPED + 0x1234),
        // The bitmap's bit is clear, and the error code differs under the mask: it exits too.
        exception("exception-pf-mask", 14, HARDWARE | WITH_CODE, |g| {
            g.a.mov(edi, UNMAPPED as u32)?;
            g.here()?;
            g.a.mov(dword_ptr(rdi), eax)
        })
        .field(F::EXCEPTION_BITMAP, 0)
        .field(F::PAGE_FAULT_MASK, 2)
        .want("error", 2)
        .qualification(UNMAPPED),
        exception("exception-bp", 3, SOFTWARE_EXCEPTION, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        })
        .length(1),
        exception("exception-int1", 1, PRIVILEGED, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int1()
        })
        .length(1),
        // Bit 14 of the qualification: single step. The trap comes after the instruction that follows POPF.
        exception("exception-db-step", 1, HARDWARE, |g| {
            g.a.pushfq()?;
            g.a.or(dword_ptr(rsp), 0x100)?;
            g.a.popfq()?;
            g.a.nop()?;
            g.here()
        })
        .qualification(1 << 14),
        // Bits 3:0: the breakpoint condition that was met.
        exception("exception-db-data", 1, HARDWARE, |g| {
            g.a.mov(edi, SCRATCH as u32)?;
            g.a.mov(dr0, rdi)?;
            g.a.mov(eax, 0xd_0402)?;
            g.a.mov(dr7, rax)?;
            g.a.mov(dword_ptr(rdi), ecx)?;
            g.here()
        })
        .qualification(1),
        // Neither the first event nor the second is reported: Information for VM Exits During Event Delivery.
        exception("exception-df", 8, HARDWARE | WITH_CODE, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.ud2()
        })
        .field(F::GUEST_IDTR_LIMIT, 0)
        .want("error", 0),
        Case::new("triple-fault", basic::TRIPLE_FAULT, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.ud2()
        })
        .field(F::GUEST_IDTR_LIMIT, 0),
    ]
}

fn events() -> Vec<Case> {
    vec![
        Case::new("nmi", basic::EXCEPTION_OR_NMI, |g| g.send(SELF_NMI))
            .pin(pin::NMI_EXITING)
            .want("interruption", VALID | NMI | 2),
        Case::new("external-interrupt", basic::EXTERNAL_INTERRUPT, |g| g.send(SELF_INTERRUPT))
            .pin(pin::EXTERNAL_INTERRUPT_EXITING),
        Case::new("external-interrupt-acknowledged", basic::EXTERNAL_INTERRUPT, |g| g.send(SELF_INTERRUPT))
            .pin(pin::EXTERNAL_INTERRUPT_EXITING)
            .exit(exit::ACKNOWLEDGE_INTERRUPT)
            .want("interruption", VALID | 0x40),
        Case::new("interrupt-window", basic::INTERRUPT_WINDOW, |g| g.a.nop())
            .primary(primary::INTERRUPT_WINDOW_EXITING)
            .field(F::GUEST_RFLAGS, 0x202),
        // Blocking by STI lasts for one instruction.
        Case::new("interrupt-window-sti", basic::INTERRUPT_WINDOW, |g| {
            g.a.nop()?;
            g.a.sti()?;
            g.a.nop()?;
            g.here()
        })
        .primary(primary::INTERRUPT_WINDOW_EXITING)
        .want("interruptibility", 0),
        Case::new("nmi-window", basic::NMI_WINDOW, |g| g.a.nop())
            .pin(pin::NMI_EXITING | pin::VIRTUAL_NMIS)
            .primary(primary::NMI_WINDOW_EXITING),
        // Virtual-NMI blocking ends with IRET.
        Case::new("nmi-window-iret", basic::NMI_WINDOW, |g| {
            g.a.push(DATA as i32)?;
            g.a.push(GUEST_STACK as i32)?;
            g.a.push(2)?;
            g.a.push(CODE_64 as i32)?;
            let mut to = g.a.create_label();
            g.a.lea(rax, ptr(to))?;
            g.a.push(rax)?;
            g.a.iretq()?;
            g.here()?;
            g.a.set_label(&mut to)?;
            g.a.nop()
        })
        .pin(pin::NMI_EXITING | pin::VIRTUAL_NMIS)
        .primary(primary::NMI_WINDOW_EXITING)
        .field(F::GUEST_INTERRUPTIBILITY, 8)
        .want("interruptibility", 0),
        Case::new("monitor-trap-flag", basic::MONITOR_TRAP_FLAG, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.nop()
        })
        .primary(primary::MONITOR_TRAP_FLAG),
        // A pending MTF exit is injected: type 7, vector 0.
        Case::new("monitor-trap-flag-injected", basic::MONITOR_TRAP_FLAG, |g| g.a.nop())
            .field(F::ENTRY_INTERRUPTION_INFORMATION, VALID | 7 << 8),
        Case::new("preemption-timer", basic::PREEMPTION_TIMER, |g| g.a.nop())
            .pin(pin::PREEMPTION_TIMER)
            .field(F::PREEMPTION_TIMER_VALUE, 0),
        // MSR loading: the second entry of the area may not be loaded (FS_BASE); the qualification is its number.
        Case::new("msr-load", basic::MSR_LOAD | ENTRY_FAILURE, |g| g.a.nop())
            .field(F::ENTRY_MSR_LOAD_ADDRESS, MSR_AREA)
            .field(F::ENTRY_MSR_LOAD_COUNT, 2)
            .poke(MSR_AREA, 0xc000_0102)
            .poke(MSR_AREA + 16, 0xc000_0100)
            .qualification(2),
        // The timer wakes from HLT, and the activity state is saved as it was.
        Case::new("preemption-timer-hlt", basic::PREEMPTION_TIMER, |g| g.a.nop())
            .pin(pin::PREEMPTION_TIMER)
            .field(F::PREEMPTION_TIMER_VALUE, 100)
            .field(F::GUEST_ACTIVITY, 1)
            .want("activity", 1),
    ]
}

fn plain_instructions() -> Vec<Case> {
    let plain = |name, reason, length, code: Code| Case::new(name, reason, code).length(length);
    vec![
        plain("cpuid", basic::CPUID, 2, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.cpuid()
        }),
        plain("hlt", basic::HLT, 1, |g| g.a.hlt()).primary(primary::HLT_EXITING),
        plain("invd", basic::INVD, 2, |g| g.a.invd()),
        plain("wbinvd", basic::WBINVD, 2, |g| g.a.wbinvd()).secondary(secondary::WBINVD_EXITING),
        plain("invlpg", basic::INVLPG, 8, |g| g.a.invlpg(byte_ptr(0x1234_5678u64)))
            .primary(primary::INVLPG_EXITING)
            .qualification(0x1234_5678),
        plain("rdpmc", basic::RDPMC, 2, |g| g.a.rdpmc()).primary(primary::RDPMC_EXITING),
        plain("rdtsc", basic::RDTSC, 2, |g| g.a.rdtsc()).primary(primary::RDTSC_EXITING),
        plain("rdtscp", basic::RDTSCP, 3, |g| g.a.rdtscp()).primary(primary::RDTSC_EXITING).secondary(secondary::ENABLE_RDTSCP),
        plain("vmcall", basic::VMCALL, 3, |g| g.a.vmcall()),
        plain("vmlaunch", basic::VMLAUNCH, 3, |g| g.a.vmlaunch()),
        plain("vmresume", basic::VMRESUME, 3, |g| g.a.vmresume()),
        plain("vmxoff", basic::VMXOFF, 3, |g| g.a.vmxoff()),
        plain("rdmsr", basic::RDMSR, 2, |g| {
            g.a.mov(ecx, 0x10)?;
            g.here()?;
            g.a.rdmsr()
        }),
        plain("wrmsr", basic::WRMSR, 2, |g| {
            g.a.mov(ecx, 0xc000_0080u32)?;
            g.here()?;
            g.a.wrmsr()
        }),
        // Of the four bitmaps only that of high MSRs' writes has the bit of EFER.
        plain("wrmsr-bitmap", basic::WRMSR, 2, |g| {
            g.a.mov(ecx, 0xc000_0080u32)?;
            g.a.rdmsr()?;
            g.here()?;
            g.a.wrmsr()
        })
        .primary(primary::MSR_BITMAPS)
        .poke(MSR_BITMAPS + 0xc00 + 0x10, 1),
        // Outside both ranges an access exits whatever the bitmaps say.
        plain("rdmsr-range", basic::RDMSR, 2, |g| {
            g.a.mov(ecx, 0x4000_0000)?;
            g.here()?;
            g.a.rdmsr()
        })
        .primary(primary::MSR_BITMAPS),
        plain("monitor", basic::MONITOR, 3, |g| {
            g.a.mov(eax, SCRATCH as u32)?;
            g.here()?;
            g.a.monitor()
        })
        .primary(primary::MONITOR_EXITING),
        plain("mwait", basic::MWAIT, 3, |g| g.a.mwait()).primary(primary::MWAIT_EXITING),
        // The qualification says that the monitor is armed.
        plain("mwait-armed", basic::MWAIT, 3, |g| {
            g.a.mov(eax, SCRATCH as u32)?;
            g.a.monitor()?;
            g.here()?;
            g.a.mwait()
        })
        .primary(primary::MWAIT_EXITING)
        .qualification(1),
        plain("pause", basic::PAUSE, 2, |g| g.a.pause()).primary(primary::PAUSE_EXITING),
        plain("xsetbv", basic::XSETBV, 3, |g| g.a.xsetbv()),
        // VM function 0 is not enabled.
        plain("vmfunc", basic::VMFUNC, 3, |g| g.a.db(&[0x0f, 0x01, 0xd4])).secondary(secondary::EPT | secondary::VM_FUNCTIONS),
    ]
}

/// Instruction information of a memory operand (SDM vol. 3, Format of the VM-Exit Instruction-Information Field): 1:0 scaling, 9:7
/// address size, 10 register, 17:15 segment, 21:18 index and 22 none, 26:23 base and 27 none.
const MEMORY: u64 = 7 << 7 | 1 << 10 | 7 << 15 | 1 << 22 | 1 << 27;
const INDEX: u64 = 3 | 0xf << 18;
const BASE: u64 = 0xf << 23;
const REGISTER_2: u64 = 0xf << 28;
const BITS_64: u64 = 2 << 7;
const SS: u64 = 2 << 15;
const DS: u64 = 3 << 15;
const FS: u64 = 4 << 15;
const NO_INDEX: u64 = 1 << 22;
const NO_BASE: u64 = 1 << 27;
/// A register operand: 6:3 its number.
const REGISTER: u64 = 0xf << 3 | 1 << 10;

fn operands() -> Vec<Case> {
    let with = |name, reason, length, (value, mask): (u64, u64), code: Code| {
        Case::new(name, reason, code).length(length).want_bits("information", value, mask)
    };
    let table = |name, reason, length, information, code: Code| {
        with(name, reason, length, information, code).secondary(secondary::DESCRIPTOR_TABLE_EXITING)
    };
    vec![
        with("vmptrld", basic::VMPTRLD, 5, (2 | BITS_64 | DS | 1 << 18 | 0 << 23, MEMORY | INDEX | BASE), |g| {
            g.a.vmptrld(qword_ptr(rax + rcx * 4 + 0x10))
        })
        .qualification(0x10),
        with("vmclear", basic::VMCLEAR, 5, (BITS_64 | SS | NO_INDEX | 5 << 23, MEMORY | BASE), |g| {
            g.a.vmclear(qword_ptr(rbp - 8))
        })
        .qualification(-8i64 as u64),
        // 64 F3 0F C7 34 25 and four bytes.
        with("vmxon", basic::VMXON, 10, (BITS_64 | FS | NO_INDEX | NO_BASE, MEMORY), |g| g.a.vmxon(qword_ptr(SCRATCH).fs()))
            .qualification(SCRATCH),
        with("vmptrst", basic::VMPTRST, 4, (BITS_64 | DS | NO_INDEX | 10 << 23, MEMORY | BASE), |g| {
            g.a.vmptrst(qword_ptr(r10))
        }),
        // Address size 32 bits: bits 63:32 of the qualification are undefined.
        with("vmptrst-32", basic::VMPTRST, 8, (1 << 7 | DS | NO_INDEX | 3 << 23, MEMORY | BASE), |g| {
            g.a.vmptrst(qword_ptr(ebx + 0x12345))
        })
        .want_bits("qualification", 0x12345, 0xffff_ffff),
        with("vmread", basic::VMREAD, 4, (3 << 3 | 1 << 10 | 9 << 28, REGISTER | REGISTER_2), |g| g.a.vmread(rbx, r9)),
        with(
            "vmread-memory",
            basic::VMREAD,
            5,
            (2 | BITS_64 | DS | 6 << 18 | 7 << 23 | 2 << 28, MEMORY | INDEX | BASE | REGISTER_2),
            |g| g.a.vmread(qword_ptr(rdi + rsi * 4 + 0x20), rdx),
        )
        .qualification(0x20),
        with("vmwrite", basic::VMWRITE, 4, (14 << 3 | 1 << 10 | 2 << 28, REGISTER | REGISTER_2), |g| g.a.vmwrite(rdx, r14)),
        // VMWRITE RDX, [RIP + 10h]: the qualification is the address.
        with("vmwrite-rip", basic::VMWRITE, 7, (BITS_64 | DS | NO_INDEX | NO_BASE | 2 << 28, MEMORY | REGISTER_2), |g| {
            g.a.db(&[0x0f, 0x79, 0x15, 0x10, 0, 0, 0])
        })
        .want_behind("qualification", 7 + 0x10),
        with("invept", basic::INVEPT, 5, (BITS_64 | DS | NO_INDEX | 7 << 23 | 0 << 28, MEMORY | BASE | REGISTER_2), |g| {
            g.a.invept(rax, xmmword_ptr(rdi))
        }),
        with("invvpid", basic::INVVPID, 6, (BITS_64 | DS | NO_INDEX | 6 << 23 | 8 << 28, MEMORY | BASE | REGISTER_2), |g| {
            g.a.invvpid(r8, xmmword_ptr(rsi))
        }),
        with("invpcid", basic::INVPCID, 6, (BITS_64 | DS | NO_INDEX | 7 << 23 | 1 << 28, MEMORY | BASE | REGISTER_2), |g| {
            g.a.invpcid(rcx, xmmword_ptr(rdi + 8))
        })
        .primary(primary::INVLPG_EXITING)
        .secondary(secondary::ENABLE_INVPCID)
        .qualification(8),
        // 29:28 of these: SGDT, SIDT, LGDT, LIDT. Bit 11 is undefined in 64-bit mode, bit 10 always.
        table("sgdt", basic::GDTR_IDTR, 4, (BITS_64 | SS | NO_INDEX | 4 << 23, (MEMORY | BASE | 3 << 28) & !(1 << 10)), |g| {
            g.a.sgdt(ptr(rsp))
        }),
        table("sidt", basic::GDTR_IDTR, 4, (BITS_64 | DS | NO_INDEX | 1 << 28, (MEMORY | BASE | 3 << 28) & !(1 << 10)), |g| {
            g.a.sidt(ptr(rax + 4))
        })
        .qualification(4),
        table("lgdt", basic::GDTR_IDTR, 3, (BITS_64 | DS | NO_INDEX | 2 << 28, (MEMORY | BASE | 3 << 28) & !(1 << 10)), |g| {
            g.a.lgdt(ptr(rax))
        }),
        table(
            "lidt",
            basic::GDTR_IDTR,
            8,
            (BITS_64 | DS | NO_INDEX | NO_BASE | 3 << 28, (MEMORY | 3 << 28) & !(1 << 10)),
            |g| g.a.lidt(ptr(SCRATCH)),
        )
        .qualification(SCRATCH),
        // 29:28: SLDT, STR, LLDT, LTR.
        table("sldt", basic::LDTR_TR, 3, (1 << 10 | 3 << 3, REGISTER | 3 << 28), |g| g.a.sldt(ebx)),
        table("str", basic::LDTR_TR, 4, (BITS_64 | DS | NO_INDEX | 1 << 28, MEMORY | BASE | 3 << 28), |g| {
            g.a.str(word_ptr(rax + 2))
        })
        .qualification(2),
        table("lldt", basic::LDTR_TR, 3, (1 << 10 | 0 << 3 | 2 << 28, REGISTER | 3 << 28), |g| g.a.lldt(eax)),
        table("ltr", basic::LDTR_TR, 3, (1 << 10 | 1 << 3 | 3 << 28, REGISTER | 3 << 28), |g| g.a.ltr(ecx)),
        // RDRAND and RDSEED: 6:3 the destination, 12:11 its size (16, 32, 64).
        with("rdrand", basic::RDRAND, 4, (9 << 3 | 1 << 11, 0xf << 3 | 3 << 11), |g| g.a.rdrand(r9d))
            .secondary(secondary::RDRAND_EXITING),
        with("rdrand-64", basic::RDRAND, 4, (3 << 3 | 2 << 11, 0xf << 3 | 3 << 11), |g| g.a.rdrand(rbx))
            .secondary(secondary::RDRAND_EXITING),
        with("rdseed", basic::RDSEED, 4, (0, 0xf << 3 | 3 << 11), |g| g.a.rdseed(ax)).secondary(secondary::RDSEED_EXITING),
    ]
}

/// Control registers: 3:0 the number, 5:4 to, from, CLTS, LMSW, 6 LMSW of memory, 11:8 the general register, 31:16 LMSW's source.
/// Debug registers: 2:0 the number, 4 from, 11:8 the general register.
fn registers() -> Vec<Case> {
    let cr = |name, length, qualification, code: Code| {
        Case::new(name, basic::CR_ACCESS, code).length(length).qualification(qualification)
    };
    let dr = |name, length, qualification, code: Code| {
        Case::new(name, basic::MOV_DR, code).primary(primary::MOV_DR_EXITING).length(length).qualification(qualification)
    };
    const TS: u64 = 8;
    vec![
        cr("mov-to-cr0", 3, 2 << 8, |g| {
            g.a.mov(rdx, cr0)?;
            g.a.or(edx, TS as i32)?;
            g.here()?;
            g.a.mov(cr0, rdx)
        })
        .field(F::CR0_MASK, TS),
        cr("mov-to-cr3", 3, 3 | 1 << 8, |g| g.a.mov(cr3, rcx)).primary(primary::CR3_LOAD_EXITING),
        cr("mov-from-cr3", 4, 3 | 1 << 4 | 10 << 8, |g| g.a.mov(r10, cr3)).primary(primary::CR3_STORE_EXITING),
        cr("mov-to-cr4", 3, 4 | 6 << 8, |g| {
            g.a.mov(rsi, cr4)?;
            g.a.or(esi, 0x2000)?;
            g.here()?;
            g.a.mov(cr4, rsi)
        })
        .field(F::CR4_MASK, 0x2000),
        cr("mov-to-cr8", 4, 8 | 9 << 8, |g| g.a.mov(cr8, r9)).primary(primary::CR8_LOAD_EXITING),
        cr("mov-from-cr8", 4, 8 | 1 << 4 | 15 << 8, |g| g.a.mov(r15, cr8)).primary(primary::CR8_STORE_EXITING),
        cr("clts", 2, 2 << 4, |g| g.a.clts()).field(F::CR0_MASK, TS).field(F::CR0_READ_SHADOW, TS),
        cr("lmsw", 3, 3 << 4 | 0x1239 << 16, |g| {
            g.a.mov(eax, 0x1239)?;
            g.here()?;
            g.a.lmsw(eax)
        })
        .field(F::CR0_MASK, TS),
        cr("lmsw-memory", 3, 3 << 4 | 1 << 6 | 0x5679 << 16, |g| {
            g.a.mov(edi, SCRATCH as u32 + 0x40)?;
            g.a.mov(dword_ptr(rdi), 0x5679)?;
            g.here()?;
            g.a.lmsw(word_ptr(rdi))
        })
        .field(F::CR0_MASK, TS)
        .want("linear", SCRATCH + 0x40),
        // A CR3-target value: no exit but that of the VMCALL at the end.
        Case::new("mov-to-cr3-target", basic::VMCALL, |g| {
            g.a.mov(ecx, TABLES as u32)?;
            g.a.mov(cr3, rcx)?;
            g.here()
        })
        .primary(primary::CR3_LOAD_EXITING)
        .field(F::CR3_TARGET_COUNT, 1)
        .field(F::CR3_TARGET_0, TABLES)
        .length(3),
        // The shadow already has what is written.
        Case::new("mov-to-cr0-as-shadow", basic::VMCALL, |g| {
            g.a.mov(rdx, cr0)?;
            g.a.mov(cr0, rdx)?;
            g.here()
        })
        .field(F::CR0_MASK, TS)
        .field(F::CR0_READ_SHADOW, TS)
        .length(3),
        dr("mov-to-dr7", 3, 7 | 3 << 8, |g| g.a.mov(dr7, rbx)),
        dr("mov-from-dr6", 4, 6 | 1 << 4 | 8 << 8, |g| g.a.mov(r8, dr6)),
    ]
}

/// UMWAIT and TPAUSE: 6:3 the operand, 12:11 its size, which is 32 bits.
fn waits() -> Vec<Case> {
    let wait = |name, reason, length, register: u64, code: Code| {
        Case::new(name, reason, code)
            .secondary(secondary::USER_WAIT_PAUSE)
            .primary(primary::RDTSC_EXITING)
            .length(length)
            .want_bits("information", register << 3 | 1 << 11, 0xf << 3 | 3 << 11)
    };
    let undefined = |name, code: Code| exception(name, 6, HARDWARE, code);
    vec![
        wait("tpause", basic::TPAUSE, 4, 3, |g| {
            // What the operand says is not looked at before the exit.
            g.a.mov(ebx, -1)?;
            g.here()?;
            g.a.tpause(ebx)
        }),
        wait("umwait", basic::UMWAIT, 5, 9, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.umwait(r9d)
        }),
        undefined("tpause-undefined", |g| g.a.tpause(ecx)),
        undefined("umwait-undefined", |g| g.a.umwait(ecx)),
        undefined("umonitor-undefined", |g| g.a.umonitor(rcx)),
        // CR4.TSD comes before the exit.
        exception("tpause-tsd", 13, HARDWARE | WITH_CODE, |g| g.a.tpause(ecx))
            .secondary(secondary::USER_WAIT_PAUSE)
            .primary(primary::RDTSC_EXITING)
            .field(F::GUEST_CR4, super::hypervisor::CR4 | 4)
            .at_user_level()
            .want("error", 0),
        exception("umwait-reserved", 13, HARDWARE | WITH_CODE, |g| {
            g.a.mov(ecx, 2)?;
            g.here()?;
            g.a.umwait(ecx)
        })
        .secondary(secondary::USER_WAIT_PAUSE)
        .want("error", 0),
        // A wait that the timer ends is over: the next instruction is next.
        Case::new("preemption-timer-tpause", basic::PREEMPTION_TIMER, |g| {
            g.a.mov(eax, -1)?;
            g.a.mov(edx, 0x7fff_ffff)?;
            g.a.tpause(ecx)?;
            g.here()
        })
        .secondary(secondary::USER_WAIT_PAUSE)
        .pin(pin::PREEMPTION_TIMER)
        .field(F::PREEMPTION_TIMER_VALUE, 100)
        .want("activity", 0),
    ]
}

/// Bus locks: exits after the instruction, and other exits after one, whose reason has bit 26 set.
fn locks() -> Vec<Case> {
    let lock =
        |name, code: Code| Case::new(name, basic::BUS_LOCK | AFTER_BUS_LOCK, code).secondary(secondary::VMM_BUS_LOCK_DETECTION);
    let uncacheable = |case: Case, page| case.secondary(secondary::EPT).poke(nested_entry(page), page | 7);
    vec![
        // The first does not cross a line.
        lock("bus-lock-split", |g| {
            g.a.mov(edi, SCRATCH as u32 + 0x3c)?;
            g.a.lock().inc(dword_ptr(rdi))?;
            g.a.lock().add(qword_ptr(rdi), 1)?;
            g.here()
        }),
        lock("bus-lock-exchange", |g| {
            g.a.mov(edi, SCRATCH as u32 + 0x7f)?;
            g.a.xchg(word_ptr(rdi), ax)?;
            g.here()
        }),
        uncacheable(
            lock("bus-lock-uncacheable", |g| {
                g.a.mov(edi, SPECIAL as u32)?;
                g.a.mov(dword_ptr(rdi), eax)?;
                g.a.lock().cmpxchg(dword_ptr(rdi), ecx)?;
                g.here()
            }),
            SPECIAL,
        ),
        // With OS bus-lock detection (IA32_DEBUGCTL bit 2) a #DB is pending: bit 11.
        lock("bus-lock-pending-debug", |g| {
            g.a.mov(edi, SCRATCH as u32 + 0x3f)?;
            g.a.lock().bts(word_ptr(rdi), 3)?;
            g.here()
        })
        .entry(entry::LOAD_DEBUG_CONTROLS)
        .field(F::GUEST_DEBUGCTL, 4)
        .at_user_level()
        .want("pending", 1 << 11),
        exception("exception-db-bus-lock", 1, HARDWARE, |g| {
            g.a.mov(edi, SCRATCH as u32 + 0x3f)?;
            g.a.lock().not(word_ptr(rdi))?;
            g.here()
        })
        .entry(entry::LOAD_DEBUG_CONTROLS)
        .field(F::GUEST_DEBUGCTL, 4)
        .at_user_level()
        .qualification(1 << 11),
        // One that is pending at the entry.
        exception("exception-db-bus-lock-pending", 1, HARDWARE, |g| g.a.nop())
            .field(F::GUEST_PENDING_DEBUG, 1 << 11)
            .qualification(1 << 11),
        // The delivery of the interrupt window's exit is below it, and so is INIT.
        lock("bus-lock-first", |g| {
            g.a.mov(edi, SCRATCH as u32 + 0x3f)?;
            g.a.sti()?;
            g.a.lock().neg(word_ptr(rdi))?;
            g.here()
        })
        .primary(primary::INTERRUPT_WINDOW_EXITING),
        uncacheable(
            with_registers(Case::new("apic-write-bus-lock", basic::APIC_WRITE | AFTER_BUS_LOCK, |g| {
                g.a.mov(edi, APIC_PAGE as u32 + 0x320)?;
                g.a.mov(eax, 0x1_0040)?;
                g.a.xchg(dword_ptr(rdi), eax)?;
                g.here()
            }))
            .secondary(secondary::VMM_BUS_LOCK_DETECTION)
            .qualification(0x320),
            APIC_PAGE,
        ),
    ]
}

/// The delivery of events that never ends. What of it the exit finds, the manual leaves open: it is not compared.
fn timeouts() -> Vec<Case> {
    let timeout = |name, ticks, code: Code| {
        Case::new(name, basic::INSTRUCTION_TIMEOUT, code)
            .secondary(secondary::INSTRUCTION_TIMEOUT)
            .field(F::INSTRUCTION_TIMEOUT_CONTROL, ticks)
            .want_bits("qualification", 0, 1)
            .want_bits("vectoring", 0, 0)
    };
    vec![
        // #DB: the frame of each hits the data breakpoint that causes the next.
        timeout("instruction-timeout-db", 1000, |g| {
            g.a.mov(rax, qword_ptr(GUEST_IDT + 16))?;
            g.a.bts(rax, 32)?;
            g.a.mov(qword_ptr(SCRATCH + 16), rax)?;
            g.a.mov(rax, qword_ptr(GUEST_IDT + 24))?;
            g.a.mov(qword_ptr(SCRATCH + 24), rax)?;
            g.a.mov(edi, SPECIAL as u32 + 0x7f8)?;
            g.a.mov(dr0, rdi)?;
            g.a.mov(eax, 0x9_0402)?;
            g.a.mov(dr7, rax)?;
            g.a.int1()
        })
        .field(F::GUEST_IDTR_BASE, SCRATCH)
        .poke(TSS_64 + 0x24, SPECIAL + 0x800)
        .want_bits("rip", 0, 0),
        // #AC: the handler, at CPL 3 too, has the stack whose misalignment it is about.
        timeout("instruction-timeout-ac", 0, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.mov(eax, dword_ptr(esp))
        })
        .legacy()
        .at_user_level()
        .field(F::GUEST_CS_ACCESS, 0xc0fb)
        .field(F::GUEST_CS_SELECTOR, CODE_32 as u64 | 3)
        .field(F::GUEST_CR0, super::hypervisor::CR0 | 1 << 18)
        .field(F::GUEST_RFLAGS, 0x4_0002)
        .field(F::GUEST_RSP, GUEST_STACK + 1)
        .field(F::GUEST_GDTR_BASE, SPECIAL)
        .poke(SPECIAL + 8, 0x00cf_9f00_0000_ffff)
        .field(F::GUEST_IDTR_BASE, SCRATCH)
        .poke(SCRATCH + 8 * 17, 0x8e00 << 32 | 8 << 16),
    ]
}

/// I/O: 2:0 size − 1, 3 IN, 4 string, 5 REP, 6 immediate, 31:16 the port. Instruction information of INS and OUTS: 9:7 the address
/// size, 17:15 the segment (undefined for INS).
fn ports() -> Vec<Case> {
    let io = |name, length, qualification, code: Code| {
        Case::new(name, basic::IO, code).primary(primary::UNCONDITIONAL_IO_EXITING).length(length).qualification(qualification)
    };
    vec![
        io("in-immediate", 2, 1 << 3 | 1 << 6 | 0x70 << 16, |g| g.a.in_(al, 0x70)),
        io("out-dx", 1, 3 | 0x1234 << 16, |g| {
            g.a.mov(edx, 0x1234)?;
            g.here()?;
            g.a.out(dx, eax)
        }),
        io("rep-outsb", 2, 1 << 4 | 1 << 5 | 0x3f8 << 16, |g| {
            g.a.mov(esi, SCRATCH as u32 + 5)?;
            g.a.mov(ecx, 3)?;
            g.a.mov(edx, 0x3f8)?;
            g.here()?;
            g.a.rep().outsb()
        })
        .want("linear", SCRATCH + 5)
        .want_bits("information", BITS_64 | DS, 7 << 7 | 7 << 15),
        io("insw", 2, 1 | 1 << 3 | 1 << 4 | 0x60 << 16, |g| {
            g.a.mov(edi, SCRATCH as u32 + 8)?;
            g.a.mov(edx, 0x60)?;
            g.here()?;
            g.a.insw()
        })
        .want("linear", SCRATCH + 8)
        .want_bits("information", BITS_64, 7 << 7),
        // 64 67 6F: OUTSD of FS:[ESI].
        io("outsd-fs-32", 3, 3 | 1 << 4 | 0x60 << 16, |g| {
            g.a.mov(esi, SCRATCH as u32 + 8)?;
            g.a.mov(edx, 0x60)?;
            g.here()?;
            g.a.db(&[0x64, 0x67, 0x6f])
        })
        .field(F::GUEST_FS_BASE, 0x100)
        .want("linear", SCRATCH + 0x108)
        .want_bits("information", 1 << 7 | FS, 7 << 7 | 7 << 15),
        // Bitmaps: a doubleword at 7Dh touches 80h.
        Case::new("in-bitmap", basic::IO, |g| {
            g.a.mov(edx, 0x79)?;
            g.a.in_(eax, dx)?;
            g.a.mov(edx, 0x7d)?;
            g.here()?;
            g.a.in_(eax, dx)
        })
        .primary(primary::IO_BITMAPS)
        .poke(IO_BITMAPS + 0x10, 1)
        .length(1)
        .qualification(3 | 1 << 3 | 0x7d << 16),
        Case::new("out-bitmap-b", basic::IO, |g| {
            g.a.mov(edx, 0x8001)?;
            g.here()?;
            g.a.out(dx, al)
        })
        .primary(primary::IO_BITMAPS)
        .poke(IO_BITMAPS + 0x1000, 2)
        .length(1)
        .qualification(0x8001 << 16),
    ]
}

/// An access to the APIC-access page. Qualification: 11:0 the offset, 15:12 the kind of access.
fn page(name: &str, qualification: u64, code: Code) -> Case {
    Case::new(name, basic::APIC_ACCESS, code)
        .secondary(secondary::VIRTUALIZE_APIC_ACCESSES)
        .field(F::APIC_ACCESS_ADDRESS, APIC_PAGE)
        .qualification(qualification)
}

/// With the registers of the APIC-access page virtualized.
fn with_registers(case: Case) -> Case {
    case.primary(primary::TPR_SHADOW)
        .pin(pin::EXTERNAL_INTERRUPT_EXITING)
        .secondary(
            secondary::VIRTUALIZE_APIC_ACCESSES
                | secondary::APIC_REGISTER_VIRTUALIZATION
                | secondary::VIRTUAL_INTERRUPT_DELIVERY,
        )
        .field(F::APIC_ACCESS_ADDRESS, APIC_PAGE)
}

/// APIC virtualization.
fn apic() -> Vec<Case> {
    vec![
        page("apic-read", 0x80, |g| {
            g.a.mov(edi, APIC_PAGE as u32 + 0x80)?;
            g.here()?;
            g.a.mov(eax, dword_ptr(rdi))
        }),
        page("apic-write", 0x300 | 1 << 12, |g| {
            g.a.mov(edi, APIC_PAGE as u32 + 0x300)?;
            g.here()?;
            g.a.mov(dword_ptr(rdi), eax)
        }),
        // The breakpoint's frame goes to the page: an access during event delivery.
        page("apic-delivery", 3 << 12 | 0x1f8, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        })
        .field(F::GUEST_RSP, APIC_PAGE + 0x200)
        .want_bits("qualification", 3 << 12 | 0x1f8, 0xf000)
        .want("vectoring", VALID | SOFTWARE_EXCEPTION | 3)
        .length(1),
        Case::new("tpr-below-threshold", basic::TPR_BELOW_THRESHOLD, |g| {
            g.a.mov(eax, 3)?;
            g.a.mov(cr8, rax)?;
            g.here()
        })
        .primary(primary::TPR_SHADOW)
        .field(F::TPR_THRESHOLD, 4)
        .poke(VIRTUAL_APIC + 0x80, 0x50),
        with_registers(Case::new("virtualized-eoi", basic::VIRTUALIZED_EOI, |g| {
            g.a.mov(edi, APIC_PAGE as u32 + 0xb0)?;
            g.a.mov(dword_ptr(rdi), eax)?;
            g.here()
        }))
        .field(F::GUEST_INTERRUPT_STATUS, 0x5100)
        .field(F::EOI_EXIT_BITMAP_1, 1 << 0x11)
        .poke(VIRTUAL_APIC + 0x120, 1 << 0x11)
        .qualification(0x51),
        with_registers(Case::new("apic-write-emulated", basic::APIC_WRITE, |g| {
            g.a.mov(edi, APIC_PAGE as u32 + 0x320)?;
            g.a.mov(dword_ptr(rdi), 0x1_0040)?;
            g.here()
        }))
        .qualification(0x320),
    ]
}

/// EPT violations: 2:0 read, write, fetch; 5:3 what the entries allow; 7 there is a linear address; 8 it is the access's own. Bits 6
/// and 11:9 need further features.
const VIOLATION: u64 = 0x1bf;

/// With page-modification logging, and no room in the log.
fn log_full(case: Case) -> Case {
    case.secondary(secondary::PML).field(F::EPT_POINTER, NESTED | 0x5e).field(F::PML_ADDRESS, PML).field(F::PML_INDEX, 0xffff)
}

fn ept() -> Vec<Case> {
    let ept = |case: Case| case.secondary(secondary::EPT);
    let violation = |name, qualification, address, code: Code| {
        ept(Case::new(name, basic::EPT_VIOLATION, code))
            .want_bits("qualification", qualification, VIOLATION)
            .want("linear", address)
            .want("physical", address)
    };
    vec![
        violation("ept-read", 0x181, SPECIAL + 8, |g| {
            g.a.mov(edi, SPECIAL as u32)?;
            g.here()?;
            g.a.mov(rax, qword_ptr(rdi + 8))
        })
        .poke(nested_entry(SPECIAL), 0),
        violation("ept-write", 0x1aa, SPECIAL, |g| {
            g.a.mov(edi, SPECIAL as u32)?;
            g.a.mov(rax, qword_ptr(rdi))?;
            g.here()?;
            g.a.mov(qword_ptr(rdi), rax)
        })
        .poke(nested_entry(SPECIAL), SPECIAL | 0x35),
        violation("ept-fetch", 0x19c, SPECIAL + 0x10, |g| {
            g.a.mov(edi, SPECIAL as u32 + 0x10)?;
            g.a.jmp(rdi)
        })
        .poke(nested_entry(SPECIAL), SPECIAL | 0x33)
        .want("rip", SPECIAL + 0x10),
        // The page directory of the address lies in a page that is not there: bit 8 is clear.
        ept(Case::new("ept-walk", basic::EPT_VIOLATION, |g| {
            g.a.mov(edi, UNMAPPED as u32 + 0x20_0018)?;
            g.here()?;
            g.a.mov(al, byte_ptr(rdi))
        }))
        .poke(PDPT + 8, SPECIAL | 7)
        .poke(nested_entry(SPECIAL), 0)
        .want_bits("qualification", 0x81, VIOLATION)
        .want("linear", UNMAPPED + 0x20_0018)
        .want("physical", SPECIAL + 8),
        // Writable but not readable.
        ept(Case::new("ept-misconfiguration", basic::EPT_MISCONFIGURATION, |g| {
            g.a.mov(edi, SPECIAL as u32)?;
            g.here()?;
            g.a.mov(rax, qword_ptr(rdi + 0x18))
        }))
        .poke(nested_entry(SPECIAL), SPECIAL | 0x32)
        .want("physical", SPECIAL + 0x18),
        log_full(ept(Case::new("pml-full", basic::PML_FULL, |g| {
            g.a.mov(edi, SCRATCH as u32)?;
            g.here()?;
            g.a.mov(dword_ptr(rdi), eax)
        })))
        // Accessed flags are set everywhere, and dirty flags where the guest's tables and code lie, so that the store is the first
        // access that has a flag to set.
        .poke(NESTED, (NESTED + 0x1000) | 0x107)
        .poke(NESTED + 0x1000, (NESTED + 0x2000) | 0x107)
        .poke(NESTED + 0x2000, 0x3b7)
        .poke(NESTED + 0x2008, (NESTED + 0x4000) | 0x107)
        .poke(nested_entry(SCRATCH), SCRATCH | 0x137),
        // The first access of all has an accessed flag to set, which is enough (SDM vol. 3, Page-Modification Logging).
        log_full(ept(Case::new("pml-full-accessed", basic::PML_FULL, |g| g.a.nop()))),
    ]
}

/// Exits in the delivery of an event: the IDT is in a page that EPT does not map, or that the guest does not.
fn delivery() -> Vec<Case> {
    let gate = |name: &str, vector: u64, code: Code| {
        Case::new(name, basic::EPT_VIOLATION, code)
            .secondary(secondary::EPT)
            .poke(nested_entry(GUEST_IDT), 0)
            .want_bits("qualification", 0x181, VIOLATION)
            .want_bits("linear", GUEST_IDT + 16 * vector, !0xf)
            .want_bits("physical", GUEST_IDT + 16 * vector, !0xf)
    };
    vec![
        gate("delivery-int3", 3, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        })
        .want("vectoring", VALID | SOFTWARE_EXCEPTION | 3)
        .length(1),
        gate("delivery-int-n", 0x80, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int(0x80)
        })
        .want("vectoring", VALID | SOFTWARE | 0x80)
        .length(2),
        gate("delivery-ud", 6, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.ud2()
        })
        .want("vectoring", VALID | HARDWARE | 6),
        gate("delivery-gp", 13, |g| {
            g.a.mov(eax, 0x1000)?;
            g.here()?;
            g.a.mov(ds, eax)
        })
        .want("vectoring", VALID | HARDWARE | WITH_CODE | 13)
        .want("vectoring-error", 0x1000),
        gate("delivery-interrupt", 0x40, |g| {
            g.a.sti()?;
            g.send(SELF_INTERRUPT)
        })
        .want("vectoring", VALID | 0x40),
        gate("delivery-nmi", 2, |g| g.send(SELF_NMI)).want("vectoring", VALID | NMI | 2),
        gate("delivery-injected", 0x50, |g| g.a.nop())
            .field(F::ENTRY_INTERRUPTION_INFORMATION, VALID | 0x50)
            .field(F::GUEST_RFLAGS, 0x202)
            .want("vectoring", VALID | 0x50),
        gate("delivery-injected-int-n", 0x80, |g| g.a.nop())
            .field(F::ENTRY_INTERRUPTION_INFORMATION, VALID | SOFTWARE | 0x80)
            .field(F::ENTRY_INSTRUCTION_LENGTH, 2)
            .want("vectoring", VALID | SOFTWARE | 0x80)
            .length(2),
        gate("delivery-injected-exception", 13, |g| g.a.nop())
            .field(F::ENTRY_INTERRUPTION_INFORMATION, VALID | HARDWARE | WITH_CODE | 13)
            .field(F::ENTRY_EXCEPTION_ERROR_CODE, 0x58)
            .want("vectoring", VALID | HARDWARE | WITH_CODE | 13)
            .want("vectoring-error", 0x58),
        // A page fault on the IDT, intercepted.
        exception("delivery-pf", 14, HARDWARE | WITH_CODE, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        })
        .field(F::GUEST_IDTR_BASE, UNMAPPED)
        .want("error", 0)
        .want_bits("qualification", UNMAPPED + 0x30, !0xf)
        .want("vectoring", VALID | SOFTWARE_EXCEPTION | 3)
        .length(1),
    ]
}

/// Task switches, which 64-bit mode does not have: 15:0 the selector, 31:30 CALL, IRET, JMP, task gate in the IDT.
fn tasks() -> Vec<Case> {
    let task = |name, source: u64, code: Code| {
        Case::new(name, basic::TASK_SWITCH, code).legacy().qualification(OTHER_TASK as u64 | source << 30)
    };
    const TASK_SEGMENT_BUSY: u64 = 0x67 | (OTHER_TASK_32 & 0xff_ffff) << 16 | 0x8b << 40;
    vec![
        // Far CALL and JMP with a pointer: opcode, offset, selector.
        task("task-call", 0, |g| g.a.db(&[0x9a, 0, 0, 0, 0, OTHER_TASK as u8, 0])).length(7),
        task("task-jmp", 2, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.db(&[0xea, 0, 0, 0, 0, OTHER_TASK as u8, 0])
        })
        .length(7),
        task("task-jmp-gate", 2, |g| g.a.db(&[0xea, 0, 0, 0, 0, TASK_GATE as u8, 0])).length(7),
        // IRET with NT: to the back link, whose task is busy.
        task("task-iret", 1, |g| g.a.iretd())
            .field(F::GUEST_RFLAGS, 0x4002)
            .poke(TASK_32, OTHER_TASK as u64)
            .poke(GDT + OTHER_TASK as u64, TASK_SEGMENT_BUSY)
            .length(1),
        task("task-int3", 3, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        })
        .field(F::GUEST_IDTR_BASE, SCRATCH)
        .poke(SCRATCH + 8 * 3, 0x8500_0000_0000 | (OTHER_TASK as u64) << 16)
        .want("vectoring", VALID | SOFTWARE_EXCEPTION | 3)
        .length(1),
        task("task-exception", 3, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.ud2()
        })
        .field(F::GUEST_IDTR_BASE, SCRATCH)
        .poke(SCRATCH + 8 * 6, 0x8500_0000_0000 | (OTHER_TASK as u64) << 16)
        .want("vectoring", VALID | HARDWARE | 6),
    ]
}

/// Cases after which an emulator may not go on: Bochs keeps the INIT pending and exits with it from then on, and a fetch from the
/// APIC-access page ends it.
fn last() -> Vec<Case> {
    vec![
        Case::new("init", basic::INIT, |g| g.send(SELF_INIT)),
        page("apic-fetch", 0x100 | 2 << 12, |g| {
            g.a.mov(edi, APIC_PAGE as u32 + 0x100)?;
            g.a.jmp(rdi)
        })
        .want("rip", APIC_PAGE + 0x100),
    ]
}
