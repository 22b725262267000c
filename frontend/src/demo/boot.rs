//! From real mode to long mode.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::image::*;

const EFER: u32 = 0xc000_0080;

/// Print the text at ES/DS:SI (in 32-bit code: ESI).
fn print_routine(a: &mut CodeAssembler, print: &mut CodeLabel) -> Result<(), IcedError> {
    let mut done = a.create_label();
    a.set_label(print)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(done)?;
    a.out(dx, al)?;
    a.jmp(*print)?;
    a.set_label(&mut done)?;
    a.ret()
}

/// The 16- and 32-bit parts.
pub fn add(image: &mut Builder) -> Result<(), IcedError> {
    real(image)?;
    protected(image)
}

fn real(image: &mut Builder) -> Result<(), IcedError> {
    let hello = image.text("undervisor demo\nreal mode: COM1 works, CS:IP was 0000:7C00\n");
    let again = image.text("real mode: INT 40h came back through the interrupt vector table\n");
    let mut a = CodeAssembler::new(16)?;
    let (mut print, mut over) = (a.create_label(), a.create_label());
    // Texts lie above 64 KiB: DS is their segment.
    let segment = TEXTS >> 4;
    // JMP over the handler of INT 40h: MOV BX, 1234h; IRET.
    a.db(&[0xeb, 0x04, 0xbb, 0x34, 0x12, 0xcf])?;
    const HANDLER: u32 = CODE16 + 2;
    a.cli()?;
    a.cld()?;
    a.xor(ax, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, 0x7000)?;
    a.mov(es, ax)?;
    a.mov(ax, segment)?;
    a.mov(ds, ax)?;
    a.mov(dx, COM1)?;
    a.mov(si, hello - TEXTS)?;
    a.call(print)?;
    // Vector 40h.
    a.mov(ax, HANDLER)?;
    a.mov(word_ptr(0x100).es(), ax)?;
    a.mov(word_ptr(0x102).es(), 0)?;
    a.xor(bx, bx)?;
    a.int(0x40)?;
    a.cmp(bx, 0x1234)?;
    a.jne(over)?;
    a.mov(si, again - TEXTS)?;
    a.call(print)?;
    a.set_label(&mut over)?;
    // GDTR's image is above 64 KiB as well.
    a.mov(ax, GDT >> 4)?;
    a.mov(ds, ax)?;
    a.lgdt(ptr(GDTR - GDT))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    // Far jump to 32-bit code: 66 EA offset32 selector16.
    a.db(&[0x66, 0xea])?;
    a.dd(&[CODE32])?;
    a.dw(&[CS32 as u16])?;
    print_routine(&mut a, &mut print)?;
    image.code(&mut a, CODE16, CODE32)?;
    Ok(())
}

fn protected(image: &mut Builder) -> Result<(), IcedError> {
    let hello = image.text("protected mode: 32-bit segments, flat, no paging\n");
    let mut a = CodeAssembler::new(32)?;
    let mut print = a.create_label();
    a.mov(eax, DS)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.mov(esp, STACK)?;
    a.mov(edx, COM1)?;
    a.mov(esi, hello)?;
    a.call(print)?;
    // CR4.PAE, OSFXSR; the page tables; EFER.LME; CR0.PG.
    a.mov(eax, cr4)?;
    a.or(eax, 0x220)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PAGE_TABLES)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, EFER)?;
    a.rdmsr()?;
    a.or(eax, 0x100)?;
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8001_0020u32)?;
    a.mov(cr0, eax)?;
    // Far jump to 64-bit code: EA offset32 selector16.
    a.db(&[0xea])?;
    a.dd(&[CODE64])?;
    a.dw(&[CS64 as u16])?;
    print_routine(&mut a, &mut print)?;
    image.code(&mut a, CODE32, CODE64)?;
    Ok(())
}
