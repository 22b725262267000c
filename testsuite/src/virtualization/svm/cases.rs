//! A guest for every exit code (APM vol. 2, SVM Intercept Exit Codes), with what the manual says its exit reports (Intercept
//! Operation; Decode Assists; Event Injection; Nested versus Guest Page Faults).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use undervisor_core::SvmFeatures;
use undervisor_svm::controls::{extensions, nested as nested_control, v_intr};
use undervisor_svm::{Field as F, reason};

use super::super::case::Build;
use super::super::image::*;
use super::Case;
use super::hypervisor::segment;

const NO_SUCH_REGISTER: &str = "no such register: #UD";
const NO_SUCH_VECTOR: &str = "no event of this machine has the vector";

/// Codes for which there is no guest here (from, to), and why.
pub const UNREACHABLE: &[(u64, u64, &str)] = &[
    (0x01, 0x01, NO_SUCH_REGISTER),
    (0x05, 0x07, NO_SUCH_REGISTER),
    (0x09, 0x0f, NO_SUCH_REGISTER),
    (0x11, 0x11, NO_SUCH_REGISTER),
    (0x15, 0x17, NO_SUCH_REGISTER),
    (0x19, 0x1f, NO_SUCH_REGISTER),
    (0x24, 0x25, "DR4 and DR5 are #UD with CR4.DE, and other names of DR6 and DR7 without"),
    (0x28, 0x2f, NO_SUCH_REGISTER),
    (0x34, 0x35, "DR4 and DR5 are #UD with CR4.DE, and other names of DR6 and DR7 without"),
    (0x38, 0x3f, NO_SUCH_REGISTER),
    (0x42, 0x42, "vector 2 is the NMI's, which has a code of its own"),
    (0x49, 0x49, NO_SUCH_VECTOR),
    (0x4f, 0x4f, NO_SUCH_VECTOR),
    (0x52, 0x52, "the machine has no machine checks"),
    (0x54, 0x5d, NO_SUCH_VECTOR),
    (0x5f, 0x5f, NO_SUCH_VECTOR),
    (reason::SKINIT, reason::SKINIT, "no model has SKINIT: #UD"),
    (reason::EFER_WRITE_TRAP, 0x9f, "write traps are for SEV-ES guests only, which no model has"),
];

const VALID: u64 = 1 << 31;
const WITH_CODE: u64 = 1 << 11;
const NMI: u64 = 2 << 8;
const EXCEPTION: u64 = 3 << 8;
const SOFTWARE: u64 = 4 << 8;

/// Every case.
pub fn all() -> Vec<Case> {
    let mut out = registers();
    out.extend(exceptions());
    out.extend(legacy_exceptions());
    out.extend(events());
    out.extend(tables());
    out.extend(instructions());
    out.extend(virtualized());
    out.extend(permission_maps());
    out.extend(nested());
    out.extend(delivery());
    out.extend(tasks());
    out.extend(avic());
    out.extend(x2avic());
    out.extend(super::checks::all().into_iter().map(|c| c.1));
    out.push(shutdown());
    out
}

/// EXITINFO1 of a MOV: bit 63 for control registers, 3:0 the general register.
const MOV: u64 = 1 << 63;

fn registers() -> Vec<Case> {
    let read = |cr: u64, length, register: u64, code: Code| {
        Case::new(format!("mov-from-cr{cr}"), reason::CR0_READ + cr, code).assist("info1", MOV | register).length(length)
    };
    let write = |cr: u64, length, register: u64, code: Code| {
        Case::new(format!("mov-to-cr{cr}"), reason::CR0_WRITE + cr, code).assist("info1", MOV | register).length(length)
    };
    let from = |dr: u64, length, register: u64, code: Code| {
        Case::new(format!("mov-from-dr{dr}"), reason::DR0_READ + dr, code).assist("info1", register).length(length)
    };
    let to = |dr: u64, length, register: u64, code: Code| {
        Case::new(format!("mov-to-dr{dr}"), reason::DR0_WRITE + dr, code).assist("info1", register).length(length)
    };
    vec![
        read(0, 3, 3, |g| g.a.mov(rbx, cr0)),
        read(2, 3, 1, |g| g.a.mov(rcx, cr2)),
        read(3, 4, 9, |g| g.a.mov(r9, cr3)),
        read(4, 3, 7, |g| g.a.mov(rdi, cr4)),
        read(8, 4, 15, |g| g.a.mov(r15, cr8)),
        write(0, 3, 2, |g| {
            g.a.mov(rdx, cr0)?;
            g.here()?;
            g.a.mov(cr0, rdx)
        }),
        write(2, 4, 11, |g| g.a.mov(cr2, r11)),
        write(3, 3, 6, |g| {
            g.a.mov(rsi, cr3)?;
            g.here()?;
            g.a.mov(cr3, rsi)
        }),
        write(4, 3, 5, |g| {
            g.a.mov(rbp, cr4)?;
            g.here()?;
            g.a.mov(cr4, rbp)
        }),
        write(8, 4, 1, |g| g.a.mov(cr8, rcx)),
        // Exceptions by what would be written, and DR7.GD, come before the intercepts.
        exception("mov-to-cr0-reserved", 13, |g| {
            g.a.mov(rdx, 1u64 << 32 | 0x8001_0033)?;
            g.here()?;
            g.a.mov(cr0, rdx)
        })
        .intercept(reason::CR0_WRITE)
        .info1(0),
        exception("mov-to-cr4-reserved", 13, |g| {
            g.a.mov(rdx, 1u64 << 40 | 0x620)?;
            g.here()?;
            g.a.mov(cr4, rdx)
        })
        .intercept(reason::CR0_WRITE + 4)
        .info1(0),
        exception("mov-to-dr7-general-detect", 1, |g| g.a.mov(dr7, rax))
            .intercept(reason::DR0_WRITE + 7)
            .field(F::DR7, 0x2400)
            .want_bits("dr6", 1 << 13, 0x600f),
        // These write and read CR0 too, but are no MOV.
        Case::new("clts", reason::CR0_WRITE, |g| g.a.clts()).info1_bits(0, MOV).length(2),
        Case::new("lmsw", reason::CR0_WRITE, |g| {
            g.a.mov(eax, 0x33)?;
            g.here()?;
            g.a.lmsw(eax)
        })
        .info1_bits(0, MOV)
        .length(3),
        Case::new("smsw", reason::CR0_READ, |g| g.a.smsw(edx)).info1_bits(0, MOV).length(3),
        // Selective: a bit other than TS and MP changes.
        Case::new("cr0-selective", reason::CR0_SEL_WRITE, |g| {
            g.a.mov(rdx, cr0)?;
            g.a.xor(edx, 2)?;
            g.a.mov(cr0, rdx)?;
            g.a.xor(edx, 0x1_0000)?;
            g.here()?;
            g.a.mov(cr0, rdx)
        })
        .length(3),
        from(0, 3, 6, |g| g.a.mov(rsi, dr0)),
        from(1, 4, 8, |g| g.a.mov(r8, dr1)),
        from(2, 3, 1, |g| g.a.mov(rcx, dr2)),
        from(3, 3, 2, |g| g.a.mov(rdx, dr3)),
        from(6, 3, 3, |g| g.a.mov(rbx, dr6)),
        from(7, 4, 14, |g| g.a.mov(r14, dr7)),
        to(0, 3, 6, |g| g.a.mov(dr0, rsi)),
        to(1, 4, 8, |g| g.a.mov(dr1, r8)),
        to(2, 3, 1, |g| g.a.mov(dr2, rcx)),
        to(3, 3, 2, |g| g.a.mov(dr3, rdx)),
        to(6, 3, 3, |g| g.a.mov(dr6, rbx)),
        to(7, 4, 14, |g| g.a.mov(dr7, r14)),
    ]
}

/// EXITINFO1 is the error code of an exception that has one.
fn exception(name: &str, vector: u64, code: Code) -> Case {
    Case::new(name, reason::EXCEPTION_0 + vector, code)
}

const GDT_NOT_PRESENT: u16 = 0x30;

fn exceptions() -> Vec<Case> {
    // 0 / 0 with the invalid-operation exception unmasked; the next instruction that waits sees it.
    fn invalid(g: &mut GuestCode) -> Result<(), IcedError> {
        g.a.mov(edi, SCRATCH as u32)?;
        g.a.mov(dword_ptr(rdi), 0x37e)?;
        g.a.fninit()?;
        g.a.fldcw(word_ptr(rdi))?;
        g.a.fldz()?;
        g.a.fldz()?;
        g.a.fdivp(st1, st0)?;
        g.here()?;
        g.a.wait()
    }
    vec![
        exception("exception-de", 0, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.div(ecx)
        }),
        exception("exception-db", 1, |g| {
            g.a.pushfq()?;
            g.a.or(dword_ptr(rsp), 0x100)?;
            g.a.popfq()?;
            g.a.nop()?;
            g.here()
        })
        .want_bits("dr6", 1 << 14, 0x600f),
        exception("exception-bp", 3, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        })
        .length(1),
        exception("exception-ud", 6, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.ud2()
        }),
        exception("exception-nm", 7, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.fnop()
        })
        .field(F::CR0, 0x8001_003b),
        // RIP is undefined, and what came before a double fault is not said to be reported.
        exception("exception-df", 8, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.ud2()
        })
        .field(F::IDTR_LIMIT, 0)
        .want_bits("rip", 0, 0)
        .want_bits("vectoring", 0, 0),
        exception("exception-np", 11, |g| {
            g.a.mov(eax, GDT_NOT_PRESENT as u32)?;
            g.here()?;
            g.a.mov(ds, eax)
        })
        .poke(GDT + GDT_NOT_PRESENT as u64, 0x00cf_1300_0000_ffff)
        .info1(GDT_NOT_PRESENT as u64),
        exception("exception-ss", 12, |g| {
            g.a.mov(rsp, 0x8000_0000_0000_0000u64)?;
            g.here()?;
            g.a.push(rax)
        })
        .info1(0),
        exception("exception-gp", 13, |g| {
            g.a.mov(eax, 0x1000)?;
            g.here()?;
            g.a.mov(ds, eax)
        })
        .info1(0x1000),
        // EXITINFO2 is the address; CR2 is not written.
        exception("exception-pf", 14, |g| {
            g.a.mov(edi, UNMAPPED as u32 + 0x1234)?;
            g.here()?;
            g.a.mov(qword_ptr(rdi), rax)
        })
        .field(F::CR2, 0x77)
        .info1(2)
        .info2(UNMAPPED + 0x1234)
        .want("cr2", 0x77)
        // 48 89 07.
        .assist_bits("instruction", 0x07_8948, 0xff_ffff)
        .assist("bytes", 15),
        exception("exception-pf-fetch", 14, |g| {
            g.a.mov(edi, UNMAPPED as u32 + 0x10)?;
            g.a.jmp(rdi)
        })
        .info1_bits(0, 0xf)
        .info2(UNMAPPED + 0x10)
        .want("rip", UNMAPPED + 0x10)
        .want("bytes", 0),
        exception("exception-mf", 16, invalid),
        exception("exception-ac", 17, |g| {
            g.a.mov(edi, SCRATCH as u32 + 1)?;
            g.here()?;
            g.a.mov(eax, dword_ptr(rdi))
        })
        .user()
        .field(F::CR0, 0x8005_0033)
        .field(F::RFLAGS, 0x4_0002)
        .want("cpl", 3)
        .info1(0),
        exception("exception-xf", 19, |g| {
            g.a.mov(edi, SCRATCH as u32)?;
            g.a.mov(dword_ptr(rdi), 0x1d80)?;
            g.a.ldmxcsr(dword_ptr(rdi))?;
            g.a.mov(eax, 0x3f80_0000)?;
            g.a.movd(xmm0, eax)?;
            g.a.xorps(xmm1, xmm1)?;
            g.here()?;
            g.a.divss(xmm0, xmm1)
        }),
        Case::new("ferr-freeze", reason::FERR_FREEZE, invalid).field(F::CR0, 0x8001_0013),
    ]
}

fn legacy_exceptions() -> Vec<Case> {
    vec![
        // INTO.
        exception("exception-of", 4, |g| {
            g.a.mov(al, 0x7f)?;
            g.a.add(al, 1)?;
            g.here()?;
            g.a.db(&[0xce])
        })
        .legacy()
        .length(1),
        // BOUND EAX, [EDI] (62 07) with bounds of 0 and 0.
        exception("exception-br", 5, |g| {
            g.a.mov(edi, SCRATCH as u32 + 0x80)?;
            g.a.mov(eax, 5)?;
            g.here()?;
            g.a.db(&[0x62, 0x07])
        })
        .legacy()
        .length(2),
        // A task-state segment that is too small. EXITINFO1 is undefined.
        exception("exception-ts", 10, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.db(&[0xea, 0, 0, 0, 0, OTHER_TASK as u8, 0])
        })
        .legacy()
        .poke(GDT + OTHER_TASK as u64, 0x10 | (OTHER_TASK_32 & 0xff_ffff) << 16 | 0x89 << 40),
    ]
}

fn events() -> Vec<Case> {
    const REQUEST: u64 = v_intr::IRQ | 5 << v_intr::PRIORITY_SHIFT;
    vec![
        // Under V_INTR_MASKING the host's IF decides.
        Case::new("intr", reason::INTR, |g| g.send(SELF_INTERRUPT)).field(F::V_INTR_CONTROL, v_intr::MASKING),
        Case::new("intr-if", reason::INTR, |g| {
            g.a.sti()?;
            g.send(SELF_INTERRUPT)
        }),
        Case::new("nmi", reason::NMI, |g| g.send(SELF_NMI)),
        // Asserted from outside.
        Case::new("smi", reason::SMI, |g| g.send(SELF_SMI)).info1_bits(1, 1),
        Case::new("init", reason::INIT, |g| g.send(SELF_INIT)),
        // Redirected in the guest.
        exception("exception-sx", 30, |g| g.send(SELF_INIT)).info1(1),
        // Without V_INTR_MASKING CR8 is V_TPR as well as the APIC's.
        Case::new("cr8", reason::VMMCALL, |g| {
            g.a.mov(eax, 5)?;
            g.a.mov(cr8, rax)?;
            g.here()
        })
        .want_bits("v-intr", 5, v_intr::TPR),
        // The third PAUSE takes the count below zero.
        Case::new("pause-filter", reason::PAUSE, |g| {
            g.a.pause()?;
            g.a.pause()?;
            g.here()?;
            g.a.pause()
        })
        .needs(SvmFeatures::PAUSE_FILTER)
        .field(F::PAUSE_FILTER_COUNT, 2)
        .length(2),
        Case::new("vintr", reason::VINTR, |g| {
            g.a.nop()?;
            g.a.sti()?;
            g.a.nop()?;
            g.here()
        })
        .field(F::V_INTR_CONTROL, REQUEST)
        .field(F::V_INTR_VECTOR, 0x50)
        .want("shadow", 0),
        // Priority 5 is not above a V_TPR of 5; with 4 it is.
        Case::new("vintr-tpr", reason::VINTR, |g| {
            g.a.nop()?;
            g.a.mov(eax, 4)?;
            g.a.mov(cr8, rax)?;
            g.here()
        })
        .field(F::V_INTR_CONTROL, REQUEST | v_intr::MASKING | 5)
        .field(F::V_INTR_VECTOR, 0x50)
        .field(F::RFLAGS, 0x202),
        // A virtual GIF holds it back.
        Case::new("virtual-gif", reason::VINTR, |g| {
            g.a.nop()?;
            g.a.stgi()?;
            g.here()
        })
        .needs(SvmFeatures::VIRTUAL_GIF)
        .field(F::V_INTR_CONTROL, REQUEST | v_intr::GIF_ENABLE)
        .field(F::V_INTR_VECTOR, 0x50)
        .field(F::RFLAGS, 0x202)
        .want_bits("v-intr", v_intr::GIF | v_intr::IRQ, v_intr::GIF | v_intr::IRQ),
        // HLT with a virtual interrupt pending waits for it, here in STI's shadow.
        Case::new("idle-hlt-pending", reason::VINTR, |g| {
            g.a.sti()?;
            g.a.hlt()?;
            g.here()
        })
        .needs(SvmFeatures::IDLE_HLT)
        .intercept(reason::IDLE_HLT)
        .field(F::V_INTR_CONTROL, REQUEST)
        .field(F::V_INTR_VECTOR, 0x50),
        Case::new("invalid", reason::INVALID, |g| g.a.nop()).field(F::GUEST_ASID, 0),
        // 64-bit code has no BOUND.
        Case::new("invalid-injection", reason::INVALID, |g| g.a.nop()).field(F::EVENTINJ, VALID | EXCEPTION | 5),
    ]
}

fn tables() -> Vec<Case> {
    let plain = |name: &str, code, length, guest: Code| Case::new(name, code, guest).length(length);
    vec![
        plain("sidt", reason::IDTR_READ, 8, |g| g.a.sidt(ptr(SCRATCH))),
        plain("sgdt", reason::GDTR_READ, 8, |g| g.a.sgdt(ptr(SCRATCH))),
        plain("sldt", reason::LDTR_READ, 3, |g| g.a.sldt(eax)),
        plain("str", reason::TR_READ, 3, |g| g.a.str(eax)),
        plain("lidt", reason::IDTR_WRITE, 8, |g| g.a.lidt(ptr(SCRATCH))),
        plain("lgdt", reason::GDTR_WRITE, 8, |g| g.a.lgdt(ptr(SCRATCH))),
        plain("lldt", reason::LDTR_WRITE, 3, |g| g.a.lldt(eax)),
        plain("ltr", reason::TR_WRITE, 3, |g| g.a.ltr(eax)),
    ]
}

fn instructions() -> Vec<Case> {
    let plain = |name: &str, code, length, guest: Code| Case::new(name, code, guest).length(length);
    let vmcb = |name: &str, code, guest: Code| plain(name, code, 3, guest);
    vec![
        plain("rdtsc", reason::RDTSC, 2, |g| g.a.rdtsc()),
        plain("rdpmc", reason::RDPMC, 2, |g| g.a.rdpmc()),
        exception("rdpmc-absent", 13, |g| {
            g.a.mov(ecx, 0x1234)?;
            g.here()?;
            g.a.rdpmc()
        })
        .intercept(reason::RDPMC)
        .info1(0),
        plain("pushf", reason::PUSHF, 1, |g| g.a.pushfq()),
        plain("popf", reason::POPF, 1, |g| g.a.popfq()),
        plain("cpuid", reason::CPUID, 2, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.cpuid()
        }),
        plain("rsm", reason::RSM, 2, |g| g.a.rsm()),
        plain("iret", reason::IRET, 2, |g| g.a.iretq()),
        plain("swint", reason::SWINT, 2, |g| g.a.int(0x80)).assist("info1", 0x80),
        plain("invd", reason::INVD, 2, |g| g.a.invd()),
        plain("pause", reason::PAUSE, 2, |g| g.a.pause()),
        plain("hlt", reason::HLT, 1, |g| g.a.hlt()).intercept(reason::IDLE_HLT),
        plain("idle-hlt", reason::IDLE_HLT, 1, |g| g.a.hlt()).needs(SvmFeatures::IDLE_HLT),
        plain("invlpg", reason::INVLPG, 8, |g| g.a.invlpg(byte_ptr(0x1234_5678u64))).assist("info1", 0x1234_5678),
        plain("invlpga", reason::INVLPGA, 3, |g| g.a.invlpga()),
        vmcb("vmrun", reason::VMRUN, |g| {
            g.a.mov(eax, SPECIAL as u32)?;
            g.here()?;
            g.a.vmrun()
        }),
        plain("vmmcall", reason::VMMCALL, 3, |g| g.a.vmmcall()),
        vmcb("vmload", reason::VMLOAD, |g| {
            g.a.mov(eax, SPECIAL as u32)?;
            g.here()?;
            g.a.vmload()
        }),
        vmcb("vmsave", reason::VMSAVE, |g| {
            g.a.mov(eax, SPECIAL as u32)?;
            g.here()?;
            g.a.vmsave()
        }),
        plain("stgi", reason::STGI, 3, |g| g.a.stgi()),
        plain("clgi", reason::CLGI, 3, |g| g.a.clgi()),
        plain("rdtscp", reason::RDTSCP, 3, |g| g.a.rdtscp()),
        plain("icebp", reason::ICEBP, 1, |g| g.a.int1()),
        plain("wbinvd", reason::WBINVD, 2, |g| g.a.wbinvd()),
        plain("monitor", reason::MONITOR, 3, |g| {
            g.a.mov(eax, SCRATCH as u32)?;
            g.here()?;
            g.a.monitor()
        }),
        plain("mwait", reason::MWAIT, 3, |g| g.a.mwait()),
        // Where nothing exits, the timer ends the wait.
        plain("mwait-armed", reason::MWAIT_CONDITIONAL, 3, |g| {
            g.a.mov(edi, APIC as u32)?;
            g.a.mov(dword_ptr(rdi + 0x3e0), 0xb)?;
            g.a.mov(dword_ptr(rdi + 0x320), 0x40)?;
            g.a.mov(dword_ptr(rdi + 0x380), 0x10_0000)?;
            g.a.mov(eax, SCRATCH as u32)?;
            g.a.monitor()?;
            g.here()?;
            g.a.mwait()
        })
        .intercept(reason::INTR)
        .field(F::V_INTR_CONTROL, v_intr::MASKING),
        plain("xsetbv", reason::XSETBV, 3, |g| {
            g.a.mov(eax, 1)?;
            g.here()?;
            g.a.xsetbv()
        })
        .field(F::CR4, 0x4_0620),
        // EXITINFO1: the address of the descriptor; EXITINFO2: the type.
        plain("invpcid", reason::INVPCID, 6, |g| {
            g.a.mov(edi, SCRATCH as u32)?;
            g.a.mov(ecx, 2)?;
            g.here()?;
            g.a.invpcid(rcx, xmmword_ptr(rdi + 0x10))
        })
        .info1(SCRATCH + 0x10)
        .info2(2),
        plain("rdpru", reason::RDPRU, 3, |g| g.a.rdpru()).instruction(4),
        plain("mcommit", reason::MCOMMIT, 4, |g| g.a.mcommit()).instruction(8).field(F::EFER, 0x2_1d00),
        plain("invlpgb", reason::INVLPGB, 3, |g| g.a.invlpgb()).instruction(3),
        // More pages than there may be; then in a guest that may not use it.
        plain("invlpgb-illegal", reason::INVLPGB_ILLEGAL, 3, |g| {
            g.a.mov(ecx, 0xffff)?;
            g.here()?;
            g.a.invlpgb()
        })
        .instruction(3)
        .field(F::NESTED_CONTROL, nested_control::INVLPGB_ENABLE),
        plain("invlpgb-disabled", reason::INVLPGB_ILLEGAL, 3, |g| g.a.invlpgb())
            .instruction(3)
            .needs(SvmFeatures::TLBI_CONTROL),
        plain("tlbsync", reason::TLBSYNC, 3, |g| g.a.tlbsync())
            .instruction(3)
            .needs(SvmFeatures::TLBI_CONTROL)
            .field(F::NESTED_CONTROL, nested_control::INVLPGB_ENABLE),
    ]
}

/// What goes on in the processor without an exit of its own: LBR and SPEC_CTRL virtualization, virtual VMLOAD, bus locks.
fn virtualized() -> Vec<Case> {
    // A doubleword across two cache lines.
    const SPLIT: u32 = SCRATCH as u32 + 0x3e;
    vec![
        Case::new("lbr", reason::VMMCALL, |g| {
            let mut target = g.a.create_label();
            g.a.nop()?;
            g.here()?;
            g.a.jmp(target)?;
            g.a.nop()?;
            g.a.set_label(&mut target)?;
            g.a.zero_bytes()
        })
        .needs(SvmFeatures::LBR_VIRTUALIZATION)
        .field(F::VIRTUAL_EXTENSIONS, extensions::LBR)
        .field(F::DBGCTL, 1)
        .want("debugctl", 1)
        .want_behind("from", 0)
        .want_behind("to", 3)
        .want_behind("rip", 3),
        Case::new("spec-ctrl", reason::VMMCALL, |g| {
            g.a.mov(ecx, 0x48)?;
            g.a.mov(eax, 1)?;
            g.a.xor(edx, edx)?;
            g.a.wrmsr()?;
            g.here()
        })
        .needs(SvmFeatures::VIRTUAL_SPEC_CTRL)
        .want("spec-ctrl", 1),
        // The address is the guest's; without nested paging, for which it would have to be translated, there is an exit.
        Case::new("virtual-vmload", reason::NPF, |g| {
            g.a.mov(eax, SPECIAL as u32)?;
            g.here()?;
            g.a.vmload()
        })
        .needs(SvmFeatures::VIRTUAL_VMLOAD_VMSAVE)
        .nested()
        .field(F::VIRTUAL_EXTENSIONS, extensions::VMLOAD_VMSAVE)
        .poke(nested_entry(SPECIAL), 0)
        .info1(FINAL | 4)
        .info2(SPECIAL),
        Case::new("virtual-vmload-alone", reason::VMLOAD, |g| {
            g.a.mov(eax, SPECIAL as u32)?;
            g.here()?;
            g.a.vmload()
        })
        .needs(SvmFeatures::VIRTUAL_VMLOAD_VMSAVE)
        .not_intercepted()
        .field(F::VIRTUAL_EXTENSIONS, extensions::VMLOAD_VMSAVE)
        .length(3),
        Case::new("bus-lock", reason::BUS_LOCK, |g| {
            g.a.mov(edi, SPLIT)?;
            g.a.lock().inc(dword_ptr(rdi))?;
            g.here()?;
            g.a.xchg(dword_ptr(rdi), eax)
        })
        .needs(SvmFeatures::BUS_LOCK_THRESHOLD)
        .field(F::BUS_LOCK_COUNTER, 1)
        .info1(0)
        .info2(0)
        .want("bus-locks", 0)
        .want("nrip", 0),
        // Neither a locked access within a line nor an unlocked one across two counts.
        Case::new("bus-lock-count", reason::VMMCALL, |g| {
            g.a.mov(edi, SPLIT)?;
            g.a.lock().add(dword_ptr(rdi), eax)?;
            g.a.inc(dword_ptr(rdi))?;
            g.a.lock().inc(dword_ptr(rdi + 2))?;
            g.here()
        })
        .needs(SvmFeatures::BUS_LOCK_THRESHOLD)
        .intercept(reason::BUS_LOCK)
        .field(F::BUS_LOCK_COUNTER, 3)
        .want("bus-locks", 2),
    ]
}

/// EXITINFO1 of I/O: 31:16 port, 12:10 segment, 9:7 64-, 32-, 16-bit addresses, 6:4 32-, 16-, 8-bit operand, 3 REP, 2 string, 0 IN.
/// EXITINFO2: RIP of the next instruction.
const A64: u64 = 1 << 9;
const A32: u64 = 1 << 8;
const SEGMENT: u64 = 7 << 10;

fn permission_maps() -> Vec<Case> {
    let io = |name: &str, length, info1, guest: Code| {
        Case::new(name, reason::IOIO, guest).info1_bits(info1, !SEGMENT).want_behind("info2", length).length(length)
    };
    vec![
        // A doubleword at 7Dh touches 80h.
        io("in", 1, 0x7d << 16 | A64 | 1 << 6 | 1, |g| {
            g.a.mov(edx, 0x79)?;
            g.a.in_(eax, dx)?;
            g.a.mov(edx, 0x7d)?;
            g.here()?;
            g.a.in_(eax, dx)
        })
        .poke(IO_BITMAPS + 0x10, 1),
        io("out-immediate", 2, 0x80 << 16 | A64 | 1 << 4, |g| g.a.out(0x80, al)).poke(IO_BITMAPS + 0x10, 1),
        io("rep-outsw", 3, 0x80 << 16 | A64 | 1 << 5 | 1 << 3 | 1 << 2, |g| {
            g.a.mov(edx, 0x80)?;
            g.a.mov(ecx, 2)?;
            g.a.mov(esi, SCRATCH as u32)?;
            g.here()?;
            g.a.rep().outsw()
        })
        .poke(IO_BITMAPS + 0x10, 3),
        // 65 67 6E: OUTSB of GS:[ESI].
        io("outsb-gs-32", 3, 0x80 << 16 | A32 | 1 << 4 | 1 << 2, |g| {
            g.a.mov(edx, 0x80)?;
            g.a.mov(esi, SCRATCH as u32)?;
            g.here()?;
            g.a.db(&[0x65, 0x67, 0x6e])
        })
        .needs(SvmFeatures::DECODE_ASSISTS)
        .info1(0x80 << 16 | 5 << 10 | A32 | 1 << 4 | 1 << 2)
        .poke(IO_BITMAPS + 0x10, 1),
        io("insd", 1, 0x80 << 16 | A64 | 1 << 6 | 1 << 2 | 1, |g| {
            g.a.mov(edx, 0x80)?;
            g.a.mov(edi, SCRATCH as u32)?;
            g.here()?;
            g.a.insd()
        })
        .poke(IO_BITMAPS + 0x10, 1),
        // Of EFER only the write bit is set.
        Case::new("wrmsr", reason::MSR, |g| {
            g.a.mov(ecx, 0xc000_0080u32)?;
            g.a.rdmsr()?;
            g.here()?;
            g.a.wrmsr()
        })
        .poke(MSR_MAP + 0x820, 2)
        .info1(1)
        .length(2),
        Case::new("rdmsr", reason::MSR, |g| {
            g.a.mov(ecx, 0x4000_0000)?;
            g.here()?;
            g.a.rdmsr()
        })
        .info1(0)
        .length(2),
    ]
}

/// EXITINFO1 of a nested page fault: 0 present, 1 write, 2 user (always), 3 reserved bit, 4 fetch, 32 the final address, 33 the walk of
/// the guest's tables. EXITINFO2: the guest-physical address.
const FINAL: u64 = 1 << 32;
const WALK: u64 = 1 << 33;

fn nested() -> Vec<Case> {
    let fault = |name: &str, info1, info2, guest: Code| Case::new(name, reason::NPF, guest).nested().info1(info1).info2(info2);
    vec![
        fault("npf-read", FINAL | 4, SPECIAL + 8, |g| {
            g.a.mov(edi, SPECIAL as u32)?;
            g.here()?;
            g.a.mov(rax, qword_ptr(rdi + 8))
        })
        .poke(nested_entry(SPECIAL), 0)
        // 48 8B 47 08.
        .assist_bits("instruction", 0x0847_8b48, 0xffff_ffff)
        .assist("bytes", 15),
        fault("npf-write", FINAL | 7, SPECIAL, |g| {
            g.a.mov(edi, SPECIAL as u32)?;
            g.a.mov(rax, qword_ptr(rdi))?;
            g.here()?;
            g.a.mov(qword_ptr(rdi), rax)
        })
        .poke(nested_entry(SPECIAL), SPECIAL | 0x65),
        fault("npf-fetch", FINAL | 0x15, SPECIAL + 0x10, |g| {
            g.a.mov(edi, SPECIAL as u32 + 0x10)?;
            g.a.jmp(rdi)
        })
        .poke(nested_entry(SPECIAL), SPECIAL | 0x67 | 1 << 63)
        .want("rip", SPECIAL + 0x10)
        .want("bytes", 0),
        fault("npf-reserved", FINAL | 0xd, SPECIAL, |g| {
            g.a.mov(edi, SPECIAL as u32)?;
            g.here()?;
            g.a.mov(al, byte_ptr(rdi))
        })
        .poke(nested_entry(SPECIAL), SPECIAL | 0x67 | 1 << 51),
        // Walks of the guest's tables are user writes (APM vol. 2, Nested Table Walk).
        fault("npf-walk", WALK | 6, SPECIAL + 8, |g| {
            g.a.mov(edi, UNMAPPED as u32 + 0x20_0018)?;
            g.here()?;
            g.a.mov(al, byte_ptr(rdi))
        })
        .poke(PDPT + 8, SPECIAL | 7)
        .poke(nested_entry(SPECIAL), 0),
        // Supervisor code in a page that the nested tables give to user mode: the fetch is the supervisor's.
        Case::new("npf-gmet", reason::NPF, |g| g.a.nop())
            .nested()
            .needs(SvmFeatures::GUEST_MODE_EXECUTE_TRAP)
            .field(F::NESTED_CONTROL, nested_control::NP_ENABLE | nested_control::GMET_ENABLE)
            .info1(FINAL | 0x11)
            .want_behind("info2", 0),
        // A page for supervisor shadow stacks (NX, and neither user's nor writable) read as any other.
        fault("npf-shadow-stack", FINAL | 1 << 37 | 5, SPECIAL, |g| {
            g.a.mov(edi, SPECIAL as u32)?;
            g.here()?;
            g.a.mov(al, byte_ptr(rdi))
        })
        .needs(SvmFeatures::SUPERVISOR_SHADOW_STACK)
        .field(F::NESTED_CONTROL, nested_control::NP_ENABLE | nested_control::SSS_ENABLE)
        .poke(nested_entry(SPECIAL), 1 << 63 | SPECIAL | 1),
    ]
}

/// Exits in the delivery of an event: the IDT is in a page that the nested tables do not map, or that the guest's do not.
fn delivery() -> Vec<Case> {
    let gate = |name: &str, vector: u64, vectoring, guest: Code| {
        Case::new(name, reason::NPF, guest)
            .nested()
            .poke(nested_entry(GUEST_IDT), 0)
            .info1(FINAL | 4)
            .want_bits("info2", GUEST_IDT + 16 * vector, !0xf)
            .want("vectoring", VALID | vectoring | vector)
    };
    vec![
        gate("delivery-int3", 3, EXCEPTION, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        }),
        gate("delivery-int-n", 0x80, SOFTWARE, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int(0x80)
        }),
        gate("delivery-ud", 6, EXCEPTION, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.ud2()
        }),
        gate("delivery-gp", 13, EXCEPTION | WITH_CODE, |g| {
            g.a.mov(eax, 0x1000)?;
            g.here()?;
            g.a.mov(ds, eax)
        })
        .want("vectoring-error", 0x1000),
        gate("delivery-virtual-interrupt", 0x50, 0, |g| g.a.nop())
            .field(F::V_INTR_CONTROL, v_intr::IRQ | v_intr::IGNORE_TPR)
            .field(F::V_INTR_VECTOR, 0x50)
            .field(F::RFLAGS, 0x202),
        // The mask is saved clear: it is to be injected again.
        gate("delivery-virtual-nmi", 2, NMI, |g| g.a.nop())
            .needs(SvmFeatures::VIRTUAL_NMI)
            .intercept(reason::NMI)
            .field(F::V_INTR_CONTROL, v_intr::NMI_ENABLE | v_intr::NMI)
            .want_bits("v-intr", v_intr::NMI_ENABLE, v_intr::NMI_ENABLE | v_intr::NMI | v_intr::NMI_MASK),
        gate("delivery-injected-nmi", 2, NMI, |g| g.a.nop()).field(F::EVENTINJ, VALID | NMI | 2),
        gate("delivery-injected-interrupt", 0x51, 0, |g| g.a.nop()).field(F::EVENTINJ, VALID | 0x51),
        gate("delivery-injected-exception", 13, EXCEPTION | WITH_CODE, |g| g.a.nop())
            .field(F::EVENTINJ, VALID | EXCEPTION | WITH_CODE | 13)
            .field(F::EVENTINJ_ERROR, 0x58)
            .want("vectoring-error", 0x58),
        exception("delivery-pf", 14, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        })
        .field(F::IDTR_BASE, UNMAPPED)
        .info1(0)
        .want_bits("info2", UNMAPPED + 0x30, !0xf)
        .want("vectoring", VALID | EXCEPTION | 3),
    ]
}

/// EXITINFO1: the selector; EXITINFO2: 36 IRET, 38 far jump, 44 an error code in 31:0.
fn tasks() -> Vec<Case> {
    let task = |name: &str, info2, guest: Code| {
        // No intercept that saves nRIP.
        Case::new(name, reason::TASK_SWITCH, guest).legacy().want("nrip", 0).info1(OTHER_TASK as u64).want_bits(
            "info2",
            info2,
            1 << 36 | 1 << 38 | 1 << 44,
        )
    };
    const GATE: u64 = 0x8500_0000_0000 | (OTHER_TASK as u64) << 16;
    vec![
        task("task-call", 0, |g| g.a.db(&[0x9a, 0, 0, 0, 0, OTHER_TASK as u8, 0])),
        task("task-jmp", 1 << 38, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.db(&[0xea, 0, 0, 0, 0, OTHER_TASK as u8, 0])
        }),
        task("task-iret", 1 << 36, |g| g.a.iretd())
            .field(F::RFLAGS, 0x4002)
            .poke(TSS_64, OTHER_TASK as u64)
            .poke(GDT + OTHER_TASK as u64, 0x67 | (OTHER_TASK_32 & 0xff_ffff) << 16 | 0x8b << 40),
        task("task-int3", 0, |g| {
            g.a.nop()?;
            g.here()?;
            g.a.int3()
        })
        .field(F::IDTR_BASE, SCRATCH)
        .poke(SCRATCH + 8 * 3, GATE)
        .want("vectoring", VALID | EXCEPTION | 3),
        task("task-exception", 1 << 44, |g| {
            g.a.mov(eax, 0x1000)?;
            g.here()?;
            g.a.mov(ds, eax)
        })
        .field(F::IDTR_BASE, SCRATCH)
        .poke(SCRATCH + 8 * 13, GATE)
        .want("vectoring", VALID | EXCEPTION | WITH_CODE | 13)
        .want("vectoring-error", 0x1000)
        .want_bits("info2", 1 << 44 | 0x1000, 1 << 36 | 1 << 38 | 1 << 44 | 0xffff_ffff),
    ]
}

/// AVIC_NOACCEL: EXITINFO1 11:4 the register, 32 a write; EXITINFO2 7:0 the vector of an EOI. AVIC_INCOMPLETE_IPI: EXITINFO1 the ICR,
/// EXITINFO2 63:32 why.
fn avic() -> Vec<Case> {
    let avic = |name: &str, code, guest: Code| {
        Case::new(name, code, guest)
            .nested()
            .needs(SvmFeatures::AVIC)
            .field(F::V_INTR_CONTROL, v_intr::AVIC_ENABLE)
            .field(F::AVIC_APIC_BAR, APIC)
            .field(F::AVIC_BACKING_PAGE, APIC_PAGE)
            .field(F::AVIC_PHYSICAL_TABLE, EPTP_LIST)
            .field(F::AVIC_LOGICAL_TABLE, POSTED)
    };
    vec![
        // A fault: RIP is the instruction's.
        avic("avic-read", reason::AVIC_NOACCEL, |g| {
            g.a.mov(edi, APIC as u32)?;
            g.here()?;
            g.a.mov(eax, dword_ptr(rdi + 0x390))
        })
        .info1(0x390),
        // Traps: the write has been done.
        avic("avic-write", reason::AVIC_NOACCEL, |g| {
            g.a.mov(edi, APIC as u32)?;
            g.a.mov(dword_ptr(rdi + 0x380), 100)?;
            g.here()
        })
        .info1(0x380 | 1 << 32),
        avic("avic-eoi", reason::AVIC_NOACCEL, |g| {
            g.a.mov(edi, APIC as u32)?;
            g.a.mov(dword_ptr(rdi + 0xb0), 0)?;
            g.here()
        })
        // Vector 61h is in service and level-triggered.
        .poke(APIC_PAGE + 0x130, 2)
        .poke(APIC_PAGE + 0x1b0, 2)
        .info1(0xb0 | 1 << 32)
        .want_bits("info2", 0x61, 0xff),
        // Physical destination 33h is beyond the table.
        avic("avic-ipi", reason::AVIC_INCOMPLETE_IPI, |g| {
            g.a.mov(edi, APIC as u32)?;
            g.a.mov(dword_ptr(rdi + 0x310), 0x3300_0000)?;
            g.a.mov(dword_ptr(rdi + 0x300), 0x4040)?;
            g.here()
        })
        .info1(0x3300_0000_0000_4040)
        .want_bits("info2", 2 << 32, 0xffff_ffff_0000_0000),
    ]
}

/// Registers of x2AVIC are MSRs: 800h and their offset by 16.
fn x2avic() -> Vec<Case> {
    let x2avic = |name: &str, code, guest: Code| {
        Case::new(name, code, guest)
            .nested()
            .needs(SvmFeatures::AVIC | SvmFeatures::X2AVIC)
            .field(F::V_INTR_CONTROL, v_intr::AVIC_ENABLE | v_intr::X2AVIC_ENABLE)
            .field(F::AVIC_BACKING_PAGE, APIC_PAGE)
            .field(F::AVIC_PHYSICAL_TABLE, EPTP_LIST)
    };
    vec![
        x2avic("x2avic-read", reason::AVIC_NOACCEL, |g| {
            g.a.mov(ecx, 0x839)?;
            g.here()?;
            g.a.rdmsr()
        })
        .info1(0x390),
        x2avic("x2avic-write", reason::AVIC_NOACCEL, |g| {
            g.a.mov(ecx, 0x838)?;
            g.a.mov(eax, 100)?;
            g.a.wrmsr()?;
            g.here()
        })
        .info1(0x380 | 1 << 32),
        x2avic("x2avic-ipi", reason::AVIC_INCOMPLETE_IPI, |g| {
            g.a.mov(ecx, 0x830)?;
            g.a.mov(eax, 0x4040)?;
            g.a.mov(edx, 0x33)?;
            g.a.wrmsr()?;
            g.here()
        })
        .info1(0x33_0000_4040)
        .want_bits("info2", 2 << 32 | 0x33, 0xffff_ffff_0000_0fff),
        // No such register in this mode: no affair of AVIC's.
        x2avic("x2avic-absent", reason::EXCEPTION_0 + 13, |g| {
            g.a.mov(ecx, 0x80e)?;
            g.here()?;
            g.a.rdmsr()
        })
        .info1(0),
    ]
}

/// Last: Bochs resets the machine instead.
fn shutdown() -> Case {
    Case::new("shutdown", reason::SHUTDOWN, |g| {
        g.a.nop()?;
        g.a.ud2()
    })
    .field(F::IDTR_LIMIT, 0)
    // "The guest's state in the VMCB is undefined."
    .want_bits("rip", 0, 0)
    .want_bits("vectoring", 0, 0)
}

impl Case {
    /// At CPL 3.
    fn user(mut self) -> Case {
        self.guest.fields.extend(segment(F::CS_SELECTOR, CODE_64 | 3, 0xafb));
        self.guest.fields.extend(segment(F::SS_SELECTOR, DATA | 3, 0xcf3));
        self.field(F::CPL, 3)
    }
}
