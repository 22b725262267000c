//! What a VM exit costs, and what a guest's own instructions cost: a hypervisor of a few instructions and its guest, on either vendor.
//!
//! The hypervisor (L1) runs in 64-bit mode without interrupts. Its guest (L2) does one thing in a loop, [`EXITS`] times; L1 looks at the
//! exit the way a hypervisor of its kind does, moves RIP on and resumes. What each kind of exit does is [`Kind`]'s to say.

mod svm;
mod vmx;

use iced_x86::code_asm::*;
use undervisor_core::{CpuState, Cr0, Cr4, Efer, SegReg, Segment};

use super::guests::{Assembled, Bare, Processor, Say, TABLES, floppy, memory};

/// Round trips of each run.
pub const EXITS: u32 = 1_000_000;

/// Why the guest leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// CPUID. L1 reads the reason, RIP and the length.
    Cpuid,
    /// A load from a page that the second-level tables do not map: MMIO. L1 reads what faulted, and skips the load.
    Violation,
    /// OUT to a port whose bit is set in the I/O bitmap.
    Io,
    /// RDMSR of an MSR whose bit is set in the MSR bitmap, handled as KVM would: all general registers are saved and restored, the
    /// fields that KVM looks at in every exit are read and those that it sets in every entry are written (SVM: VMSAVE, VMLOAD, CLGI
    /// and STGI), while the guest, with interrupts off, is watched for its interrupt window.
    Kvm,
    /// One exit at the end of a loop of loads, stores and branches, which L1 has run before.
    Loop,
}

/// A port and an MSR whose accesses exit.
const PORT: u16 = 0x80;
const MSR: u32 = 0x1b;
/// A linear address whose page the second-level tables leave out.
const UNMAPPED: u64 = 0xe0_0000;
/// 2 MiB pages that they map.
const MAPPED: u64 = UNMAPPED >> 21;

/// Pages that L1 clears and uses: control structures, bitmaps, second-level tables, saved registers.
const PAGES: u64 = 0x5_0000;
const PAGES_END: u64 = 0x6_0000;
/// Where L2 runs: in a page of its own, for L1 and its guest are as good as never in one.
const GUEST_CODE: u64 = 0x5_b000;
const NESTED: u64 = 0x5_c000;
const SAVED: u64 = 0x5_f000;
/// Round trips left, where registers are the guest's.
const LEFT: u64 = SAVED + 0x100;
const GUEST_STACK: u64 = 0x6000;

/// The guests of this module.
pub fn all() -> Vec<Bare> {
    guests(EXITS)
}

fn guests(exits: u32) -> Vec<Bare> {
    let mut out = Vec::new();
    for (vendor, processor) in [("vmx", Processor::Vmx), ("svm", Processor::Svm)] {
        let nested_name = if processor == Processor::Vmx { "ept" } else { "npt" };
        let kinds = [
            ("exit-", String::new(), Kind::Cpuid, false),
            ("exit-", format!("-{nested_name}"), Kind::Cpuid, true),
            ("exit-", "-violation".into(), Kind::Violation, true),
            ("exit-", "-io".into(), Kind::Io, true),
            ("exit-", "-kvm".into(), Kind::Kvm, true),
            ("l2-", String::new(), Kind::Loop, true),
        ];
        for (before, after, kind, nested) in kinds {
            let name = format!("{before}{vendor}{after}");
            let plan = Plan { name: &name, kind, nested, exits: if kind == Kind::Loop { 1 } else { exits } };
            let image = floppy(|a, say| {
                clear_pages(a)?;
                if kind == Kind::Loop {
                    say.timed(a, &format!("l1-{vendor}"), memory)?;
                }
                if processor == Processor::Vmx { vmx::guest(a, say, &plan) } else { svm::guest(a, say, &plan) }
            });
            out.push(Bare { name, processor, image });
        }
    }
    out
}

/// One of the guests.
struct Plan<'a> {
    name: &'a str,
    kind: Kind,
    /// With EPT or NPT.
    nested: bool,
    exits: u32,
}

fn clear_pages(a: &mut CodeAssembler) -> Assembled {
    a.mov(edi, PAGES as u32)?;
    a.mov(ecx, (PAGES_END - PAGES) as u32 / 8)?;
    a.xor(eax, eax)?;
    a.cld()?;
    a.rep().stosq()
}

/// Second-level tables: the first [`MAPPED`] pages of 2 MiB, guest-physical addresses being physical. `table` and `page`: the low bits of
/// an entry.
fn second_level(a: &mut CodeAssembler, table: u32, page: u32) -> Assembled {
    a.mov(qword_ptr(NESTED), (NESTED + 0x1000) as i32 | table as i32)?;
    a.mov(qword_ptr(NESTED + 0x1000), (NESTED + 0x2000) as i32 | table as i32)?;
    for n in 0..MAPPED {
        a.mov(qword_ptr(NESTED + 0x2000 + 8 * n), (n << 21) as i32 | page as i32)?;
    }
    Ok(())
}

/// Put what L2 executes where it runs.
fn place_guest(a: &mut CodeAssembler, kind: Kind) -> Assembled {
    let (mut code, mut end) = (a.create_label(), a.create_label());
    let mut over = a.create_label();
    a.jmp(over)?;
    a.set_label(&mut code)?;
    guest_code(a, kind)?;
    a.set_label(&mut end)?;
    a.nop()?;
    a.set_label(&mut over)?;
    a.lea(rsi, ptr(code))?;
    a.lea(rcx, ptr(end))?;
    a.sub(rcx, rsi)?;
    a.mov(edi, GUEST_CODE as u32)?;
    a.cld()?;
    a.rep().movsb()
}

/// What L2 executes.
fn guest_code(a: &mut CodeAssembler, kind: Kind) -> Assembled {
    let mut top = a.create_label();
    match kind {
        // One label an instruction.
        Kind::Cpuid => a.nop()?,
        Kind::Violation => a.mov(rdi, UNMAPPED)?,
        Kind::Io => a.mov(edx, PORT as u32)?,
        Kind::Kvm => a.mov(ecx, MSR)?,
        Kind::Loop => memory(a)?,
    }
    a.set_label(&mut top)?;
    match kind {
        Kind::Cpuid | Kind::Loop => a.cpuid()?,
        Kind::Violation => a.mov(eax, dword_ptr(rdi))?,
        Kind::Io => a.out(dx, al)?,
        Kind::Kvm => a.rdmsr()?,
    }
    a.jmp(top)
}

/// Bytes of the instruction that exits, where the processor does not say.
fn length(kind: Kind) -> i32 {
    match kind {
        Kind::Io => 1,
        _ => 2,
    }
}

/// The general registers but RSP, in the order in which they are saved.
const GENERAL: [AsmRegister64; 15] = [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

fn saved(n: usize) -> AsmMemoryOperand {
    qword_ptr(SAVED + 8 * n as u64)
}

/// Something is not as it should be: say so and stop.
fn fail(a: &mut CodeAssembler, say: &Say, plan: &Plan<'_>) -> Assembled {
    say.line(a, &format!("@FAIL {}", plan.name))?;
    let mut halt = a.create_label();
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)
}

/// L1's registers, which L2 starts with too.
fn state() -> CpuState {
    let mut s = CpuState::new();
    s.cr0 = Cr0::PE | Cr0::PG | Cr0::NE | Cr0::ET;
    s.cr3 = TABLES as u64;
    s.cr4 = Cr4::PAE;
    s.efer = Efer::LME | Efer::LMA;
    for r in SegReg::ALL {
        let (selector, access) = if r == SegReg::Cs { (8, 0xa09b) } else { (16, 0xc093) };
        s.set_segment(r, Segment { selector, access, limit: u32::MAX, base: 0 });
    }
    s.tr = Segment { selector: 24, access: 0x8b, limit: 0x67, base: 0x8000 };
    s
}

#[cfg(test)]
mod tests;
