//! Long mode: exceptions, the 8259s and the 8254, the local APIC, then the hypervisor, then power off.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::image::*;

const APIC: u64 = 0xfee0_0000;
/// PM1a control register; SLP_EN with sleep type 0, which is S5 here.
const PM1_CONTROL: u32 = 0x604;
const SLEEP: u32 = 0x2000;

const TICKS: u32 = VARIABLES + 0x100;
const FAULT_ADDRESS: u32 = VARIABLES + 0x108;
const EXCEPTIONS: u32 = VARIABLES + 0x110;
const MISSING_PAGE: u64 = 0x80_0000;

/// Subroutines that long-mode code shares.
pub struct Routines {
    /// Print the text at RSI.
    pub print: CodeLabel,
    /// Print RAX in decimal, at least RCX wide.
    pub decimal: CodeLabel,
    /// Print RAX as 16 hexadecimal digits.
    pub hex: CodeLabel,
}

impl Routines {
    pub fn declare(a: &mut CodeAssembler) -> Routines {
        Routines { print: a.create_label(), decimal: a.create_label(), hex: a.create_label() }
    }

    /// Call `print` with a text.
    pub fn say(&self, a: &mut CodeAssembler, image: &mut Builder, text: &str) -> Result<(), IcedError> {
        a.mov(esi, image.text(text))?;
        a.call(self.print)
    }

    /// Their code. All keep every register but RSI and flags.
    pub fn define(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut next, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut self.print)?;
        a.push(rax)?;
        a.push(rdx)?;
        a.mov(edx, COM1)?;
        a.set_label(&mut next)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.jz(done)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.pop(rdx)?;
        a.pop(rax)?;
        a.ret()?;

        // Digits go to the stack, last first.
        let (mut divide, mut pad, mut padded, mut out) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut self.decimal)?;
        for r in [rax, rbx, rcx, rdx, rdi] {
            a.push(r)?;
        }
        a.mov(ebx, 10)?;
        a.xor(edi, edi)?;
        a.set_label(&mut divide)?;
        a.xor(edx, edx)?;
        a.div(rbx)?;
        a.add(edx, 0x30)?;
        a.push(rdx)?;
        a.inc(edi)?;
        a.test(rax, rax)?;
        a.jnz(divide)?;
        a.mov(edx, COM1)?;
        a.sub(ecx, edi)?;
        a.jle(padded)?;
        a.mov(eax, 0x20)?;
        a.set_label(&mut pad)?;
        a.out(dx, al)?;
        a.dec(ecx)?;
        a.jnz(pad)?;
        a.set_label(&mut padded)?;
        a.nop()?;
        a.set_label(&mut out)?;
        a.pop(rax)?;
        a.out(dx, al)?;
        a.dec(edi)?;
        a.jnz(out)?;
        for r in [rdi, rdx, rcx, rbx, rax] {
            a.pop(r)?;
        }
        a.ret()?;

        let (mut digit, mut small) = (a.create_label(), a.create_label());
        a.set_label(&mut self.hex)?;
        for r in [rax, rbx, rcx, rdx] {
            a.push(r)?;
        }
        a.mov(rbx, rax)?;
        a.mov(ecx, 16)?;
        a.mov(edx, COM1)?;
        a.set_label(&mut digit)?;
        a.rol(rbx, 4)?;
        a.mov(eax, ebx)?;
        a.and(eax, 15)?;
        a.add(eax, 0x30)?;
        a.cmp(eax, 0x3a)?;
        a.jb(small)?;
        a.add(eax, 0x27)?;
        a.set_label(&mut small)?;
        a.out(dx, al)?;
        a.dec(ecx)?;
        a.jnz(digit)?;
        for r in [rdx, rcx, rbx, rax] {
            a.pop(r)?;
        }
        a.ret()
    }
}

/// The long-mode part.
pub fn add(image: &mut Builder) -> Result<(), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut r = Routines::declare(&mut a);
    a.mov(esp, STACK)?;
    a.lidt(ptr(IDTR as u64))?;
    r.say(&mut a, image, "long mode: 64-bit code, four-level paging; the processor is \"")?;
    brand(&mut a, &r)?;
    r.say(&mut a, image, "\"\n")?;

    // #UD and #PF.
    a.ud2()?;
    r.say(&mut a, image, "exceptions: #UD taken and stepped over")?;
    a.mov(rbx, MISSING_PAGE + 0x123)?;
    a.mov(al, byte_ptr(rbx))?;
    r.say(&mut a, image, "; #PF with CR2 = 0x")?;
    a.mov(rax, qword_ptr(FAULT_ADDRESS as u64))?;
    a.call(r.hex)?;
    r.say(&mut a, image, "\n")?;

    // 8259s at vectors 20h and 28h, only IRQ 0 open; 8254 at 1 kHz.
    for (port, value) in [
        (0x20u32, 0x11u32),
        (0xa0, 0x11),
        (0x21, 0x20),
        (0xa1, 0x28),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xfe),
        (0xa1, 0xff),
        (0x43, 0x34),
        (0x40, 0xa9),
        (0x40, 0x04),
    ] {
        a.mov(eax, value)?;
        a.out(port, al)?;
    }
    let mut wait = a.create_label();
    a.sti()?;
    a.set_label(&mut wait)?;
    a.hlt()?;
    a.cmp(qword_ptr(TICKS as u64), 5)?;
    a.jb(wait)?;
    a.cli()?;
    a.mov(al, 0xff)?;
    a.out(0x21, al)?;
    r.say(&mut a, image, "interrupts: 5 ticks of the 8254 through the 8259, processor halted in between\n")?;

    // Local APIC timer: one shot, vector 40h.
    let mut wait = a.create_label();
    a.mov(qword_ptr(TICKS as u64), 0)?;
    a.mov(rbx, APIC)?;
    a.mov(dword_ptr(rbx + 0xf0), 0x1ff)?;
    a.mov(dword_ptr(rbx + 0x3e0), 0xb)?;
    a.mov(dword_ptr(rbx + 0x320), 0x40)?;
    a.mov(dword_ptr(rbx + 0x380), 100_000)?;
    a.sti()?;
    a.set_label(&mut wait)?;
    a.hlt()?;
    a.cmp(qword_ptr(TICKS as u64), 1)?;
    a.jb(wait)?;
    a.cli()?;
    r.say(&mut a, image, "interrupts: the local APIC timer fired once\n")?;

    a.mov(eax, image.nested_entry as u32)?;
    a.call(rax)?;

    r.say(&mut a, image, "power off\n")?;
    a.mov(edx, PM1_CONTROL)?;
    a.mov(eax, SLEEP)?;
    a.out(dx, ax)?;
    let mut stop = a.create_label();
    a.set_label(&mut stop)?;
    a.hlt()?;
    a.jmp(stop)?;
    r.define(&mut a)?;

    // Handlers.
    let (mut ud, mut pf, mut pit, mut apic, mut other) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut ud)?;
    a.inc(qword_ptr(EXCEPTIONS as u64))?;
    a.add(qword_ptr(rsp), 2)?;
    a.iretq()?;
    a.set_label(&mut pf)?;
    a.push(rax)?;
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(FAULT_ADDRESS as u64), rax)?;
    a.pop(rax)?;
    // The error code; then past the two bytes of MOV AL, [RBX].
    a.add(rsp, 8)?;
    a.add(qword_ptr(rsp), 2)?;
    a.iretq()?;
    a.set_label(&mut pit)?;
    a.inc(qword_ptr(TICKS as u64))?;
    a.push(rax)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.pop(rax)?;
    a.iretq()?;
    a.set_label(&mut apic)?;
    a.inc(qword_ptr(TICKS as u64))?;
    a.push(rax)?;
    a.mov(rax, APIC)?;
    a.mov(dword_ptr(rax + 0xb0), 0)?;
    a.pop(rax)?;
    a.iretq()?;
    // Anything else: stop, visibly.
    a.set_label(&mut other)?;
    a.mov(edx, 0xf4)?;
    a.mov(eax, 0x11)?;
    a.out(dx, al)?;
    a.hlt()?;

    let result = image.code(&mut a, CODE64, HYPERVISOR)?;
    let other = result.label_ip(&other)?;
    for vector in 0..=255 {
        image.gate(vector, other);
    }
    for (vector, label) in [(6, &ud), (14, &pf), (0x20, &pit), (0x40, &apic)] {
        image.gate(vector, result.label_ip(label)?);
    }
    Ok(())
}

/// Print the brand string of CPUID.
fn brand(a: &mut CodeAssembler, r: &Routines) -> Result<(), IcedError> {
    let buffer = VARIABLES as u64 + 0x200;
    for leaf in 0..3u32 {
        a.mov(eax, 0x8000_0002u32 + leaf)?;
        a.cpuid()?;
        for (i, register) in [eax, ebx, ecx, edx].into_iter().enumerate() {
            a.mov(dword_ptr(buffer + 16 * leaf as u64 + 4 * i as u64), register)?;
        }
    }
    a.mov(byte_ptr(buffer + 48), 0)?;
    a.mov(esi, buffer as u32)?;
    a.call(r.print)
}
