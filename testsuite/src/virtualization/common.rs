//! What both hypervisors share: output, handlers of their own, the walk through the table of cases.
//!
//! A case is a record of nine quadwords:
//!
//! | | |
//! |---|---|
//! | 0 | its name; 0 ends the table |
//! | 1 | RIP of its guest |
//! | 2–6 | VMX: controls to set beyond those that must be, and in bit 32 of the first whether to enter from 32-bit mode; SVM: the features it needs (CPUID Fn8000_000A_EDX, Fn8000_0008_EBX) |
//! | 7 | pairs of field and value, to an all-ones field |
//! | 8 | pairs of address and value, to an all-ones address: memory to change while the case runs |

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::image::*;

pub type R = Result<(), IcedError>;

/// Quadwords of a record.
pub const NAME: u64 = 0;
pub const RIP: u64 = 1;
pub const CONTROLS: u64 = 2;
pub const FIELDS: u64 = 7;
pub const POKES: u64 = 8;
pub const RECORD: u64 = 9;

/// The record of the case that runs.
pub const CASE: u64 = VARIABLES;
/// What pokes replaced: a count, then pairs of address and value.
const UNDO: u64 = VARIABLES + 0x1000;
/// Whether the controls have been adjusted by the TRUE capability MSRs (the difference in their numbers).
pub const TRUE_MSRS: u64 = VARIABLES + 0x10;

const COM1: u32 = 0x3f8;
/// isa-debug-exit.
const DEBUG_EXIT: u32 = 0xf4;

pub struct Common {
    pub print: CodeLabel,
    pub hex: CodeLabel,
    /// Take back the pokes and go to the next case.
    pub end_case: CodeLabel,
    next_case: CodeLabel,
    run_case: CodeLabel,
    /// The handler of each vector.
    pub stubs: Vec<CodeLabel>,
}

/// Field `n` of the record at RBX.
pub fn record(n: u64) -> AsmMemoryOperand {
    qword_ptr(rbx + 8 * n as i32)
}

impl Common {
    pub fn new(a: &mut CodeAssembler) -> Common {
        Common {
            print: a.create_label(),
            hex: a.create_label(),
            end_case: a.create_label(),
            next_case: a.create_label(),
            run_case: a.create_label(),
            stubs: Vec::new(),
        }
    }

    /// Print a text; RSI is lost.
    pub fn say(&self, a: &mut CodeAssembler, b: &mut Builder, text: &str) -> R {
        a.mov(esi, b.text(text) as u32)?;
        a.call(self.print)
    }

    /// The guests' IDT, serial port, local APIC, tables; then the vendor's own code goes on at the end of this.
    pub fn start(&self, a: &mut CodeAssembler, b: &Builder, idtr: u64) -> R {
        a.mov(esp, STACK as u32)?;
        a.mov(esi, b.guest_idt as u32)?;
        a.mov(edi, GUEST_IDT as u32)?;
        a.mov(ecx, 512)?;
        a.rep().movsq()?;
        a.lidt(ptr(idtr))?;
        a.mov(eax, TSS as u32)?;
        // As the entry has made it busy, it must be made available for LTR.
        a.mov(byte_ptr(GDT + TSS as u64 + 5), 0x89)?;
        a.ltr(ax)?;
        // 115200 baud, eight bits.
        for (port, value) in [(3u32, 0x80u32), (0, 1), (1, 0), (3, 3), (2, 0)] {
            a.mov(edx, COM1 + port)?;
            a.mov(eax, value)?;
            a.out(dx, al)?;
        }
        // Mask the 8259s; software-enable the local APIC.
        a.mov(al, 0xff)?;
        a.out(0x21, al)?;
        a.out(0xa1, al)?;
        a.mov(eax, APIC as u32)?;
        a.mov(dword_ptr(rax + 0xf0), 0x1ff)?;
        // OSXSAVE where there is XSAVE.
        let mut without = a.create_label();
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.bt(ecx, 26)?;
        a.jnc(without)?;
        a.mov(rax, cr4)?;
        a.or(eax, 0x4_0000)?;
        a.mov(cr4, rax)?;
        a.set_label(&mut without)?;
        a.nop()
    }

    /// The loop over the records at `cases`. The vendor's code follows: one case, with the record at RBX.
    pub fn walk(&mut self, a: &mut CodeAssembler, b: &mut Builder, cases: u64) -> R {
        a.mov(qword_ptr(CASE), cases as i32)?;
        a.set_label(&mut self.next_case)?;
        a.mov(esp, STACK as u32)?;
        a.mov(rbx, qword_ptr(CASE))?;
        a.cmp(record(NAME), 0)?;
        a.jne(self.run_case)?;
        self.say(a, b, "@DONE\n")?;
        a.mov(edx, DEBUG_EXIT)?;
        a.xor(eax, eax)?;
        a.out(dx, al)?;
        let mut stop = a.create_label();
        a.set_label(&mut stop)?;
        a.cli()?;
        a.hlt()?;
        a.jmp(stop)?;

        // The end of a case: unblock NMIs, let what is pending in, take pokes back.
        a.set_label(&mut self.end_case)?;
        a.mov(esp, STACK as u32)?;
        let mut unblocked = a.create_label();
        a.push(DATA as i32)?;
        a.push(STACK as i32)?;
        a.pushfq()?;
        a.push(CODE_64 as i32)?;
        a.lea(rax, ptr(unblocked))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut unblocked)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        a.mov(eax, APIC as u32)?;
        a.mov(dword_ptr(rax + 0xb0), 0)?;
        // The guest's timer, if it has set one.
        a.mov(dword_ptr(rax + 0x380), 0)?;
        let (mut undo, mut undone) = (a.create_label(), a.create_label());
        a.set_label(&mut undo)?;
        a.mov(rcx, qword_ptr(UNDO))?;
        a.test(rcx, rcx)?;
        a.jz(undone)?;
        a.dec(qword_ptr(UNDO))?;
        a.shl(rcx, 4)?;
        a.mov(rax, qword_ptr(rcx + (UNDO - 8) as i32))?;
        a.mov(rdx, qword_ptr(rcx + UNDO as i32))?;
        a.mov(qword_ptr(rax), rdx)?;
        a.jmp(undo)?;
        a.set_label(&mut undone)?;
        a.add(qword_ptr(CASE), 8 * RECORD as i32)?;
        a.jmp(self.next_case)?;

        a.set_label(&mut self.run_case)?;
        a.xor(eax, eax)?;
        a.mov(dr0, rax)?;
        a.mov(cr8, rax)?;
        a.mov(eax, 0xffff_0ff0u32)?;
        a.mov(dr6, rax)?;
        // The console line, then the pokes.
        self.say(a, b, "@C ")?;
        a.mov(rsi, record(NAME))?;
        a.call(self.print)?;
        let (mut poke, mut poked) = (a.create_label(), a.create_label());
        a.mov(r8, record(POKES))?;
        a.set_label(&mut poke)?;
        a.mov(rax, qword_ptr(r8))?;
        a.cmp(rax, -1)?;
        a.je(poked)?;
        a.inc(qword_ptr(UNDO))?;
        a.mov(rcx, qword_ptr(UNDO))?;
        a.shl(rcx, 4)?;
        a.mov(qword_ptr(rcx + (UNDO - 8) as i32), rax)?;
        a.mov(rdx, qword_ptr(rax))?;
        a.mov(qword_ptr(rcx + UNDO as i32), rdx)?;
        a.mov(rdx, qword_ptr(r8 + 8))?;
        a.mov(qword_ptr(rax), rdx)?;
        a.add(r8, 16)?;
        a.jmp(poke)?;
        a.set_label(&mut poked)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)
    }

    /// Zero in every general register but RAX and RSP.
    pub fn clear_registers(&self, a: &mut CodeAssembler) -> R {
        for r in [ebx, ecx, edx, esi, edi, ebp, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d] {
            a.xor(r, r)?;
        }
        Ok(())
    }

    /// Subroutines and handlers.
    pub fn finish(&mut self, a: &mut CodeAssembler, b: &mut Builder) -> R {
        let (mut next, mut wait, mut done) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut self.print)?;
        a.push(rax)?;
        a.push(rdx)?;
        a.set_label(&mut next)?;
        a.mov(edx, COM1 + 5)?;
        a.set_label(&mut wait)?;
        a.in_(al, dx)?;
        a.test(al, 0x20)?;
        a.jz(wait)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.jz(done)?;
        a.mov(edx, COM1)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.pop(rdx)?;
        a.pop(rax)?;
        a.ret()?;

        // RAX in hexadecimal without leading zeros: digits are laid down backwards, then printed.
        const DIGITS: u64 = VARIABLES + 0x40;
        let (mut digit, mut small) = (a.create_label(), a.create_label());
        a.set_label(&mut self.hex)?;
        a.push(rdx)?;
        a.push(rsi)?;
        a.mov(esi, (DIGITS + 16) as u32)?;
        a.mov(byte_ptr(rsi), 0)?;
        a.set_label(&mut digit)?;
        a.mov(edx, eax)?;
        a.and(edx, 15)?;
        a.add(edx, 0x30)?;
        a.cmp(edx, 0x3a)?;
        a.jb(small)?;
        a.add(edx, 0x27)?;
        a.set_label(&mut small)?;
        a.dec(rsi)?;
        a.mov(byte_ptr(rsi), dl)?;
        a.shr(rax, 4)?;
        a.jnz(digit)?;
        a.call(self.print)?;
        a.pop(rsi)?;
        a.pop(rdx)?;
        a.ret()?;

        // One stub of 16 bytes a vector: NMI and interrupts come back, exceptions end the case.
        let (mut exception, mut interrupt) = (a.create_label(), a.create_label());
        a.set_label(&mut exception)?;
        self.say(a, b, " exception=")?;
        a.mov(eax, dword_ptr(rsp))?;
        a.call(self.hex)?;
        self.say(a, b, "\n")?;
        a.jmp(self.end_case)?;
        a.set_label(&mut interrupt)?;
        a.push(rax)?;
        a.mov(eax, APIC as u32)?;
        a.mov(dword_ptr(rax + 0xb0), 0)?;
        a.pop(rax)?;
        a.iretq()?;
        for vector in 0..256 {
            let mut stub = a.create_label();
            a.set_label(&mut stub)?;
            match vector {
                2 => a.iretq()?,
                // #SX: an INIT that was redirected.
                30 => {
                    a.add(rsp, 8)?;
                    a.iretq()?;
                }
                0..=31 => {
                    a.push(vector)?;
                    a.jmp(exception)?;
                }
                _ => a.jmp(interrupt)?,
            }
            self.stubs.push(stub);
        }
        Ok(())
    }
}
