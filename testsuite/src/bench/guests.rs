//! Loops that need no operating system: boot sectors that go to long mode, mark, loop and mark again.

use iced_x86::code_asm::*;

/// Where the BIOS loads a boot sector.
const ORIGIN: u64 = 0x7c00;

/// The descriptor table and, after it, the register image that LGDT loads: the last 30 bytes before the signature.
const GDT: u64 = ORIGIN + 480;
const GDTR: u64 = GDT + 24;

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Name and boot sector of every loop.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    let guests: [(&'static str, Body); 3] = [("loop-alu", alu), ("loop-memory", memory), ("loop-call", call)];
    guests.map(|(name, body)| (name, boot_sector(name, body))).into()
}

/// Ten register operations; 300 million instructions.
fn alu(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(ebp, 30_000_000)?;
    a.set_label(&mut top)?;
    a.add(rax, rbx)?;
    a.xor(rcx, rax)?;
    a.lea(rdx, rax + rcx * 4 + 7)?;
    a.shl(rdx, 3)?;
    a.sub(rbx, rdx)?;
    a.and(rcx, 0x7fff)?;
    a.or(rsi, rcx)?;
    a.add(r8, 1)?;
    a.dec(ebp)?;
    a.jnz(top)
}

/// Loads, stores and branches; about 300 million instructions.
fn memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    let mut skip = a.create_label();
    a.mov(ebp, 30_000_000)?;
    a.mov(edi, 0x10_0000)?;
    a.mov(esi, 0x20_0000)?;
    a.set_label(&mut top)?;
    a.mov(eax, dword_ptr(rdi + rcx * 4))?;
    a.add(eax, ecx)?;
    a.mov(dword_ptr(rsi + rcx * 4), eax)?;
    a.test(al, 1)?;
    a.je(skip)?;
    a.add(r8, rax)?;
    a.set_label(&mut skip)?;
    a.inc(ecx)?;
    a.and(ecx, 0xfff)?;
    a.dec(ebp)?;
    a.jnz(top)
}

/// Calls, returns, pushes and pops; 300 million instructions.
fn call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    let mut f = a.create_label();
    let mut end = a.create_label();
    a.mov(r9d, 30_000_000)?;
    a.set_label(&mut top)?;
    a.call(f)?;
    a.dec(r9d)?;
    a.jnz(top)?;
    a.jmp(end)?;
    a.set_label(&mut f)?;
    a.push(rbx)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.add(rbx, 3)?;
    a.pop(rbp)?;
    a.pop(rbx)?;
    a.ret()?;
    a.set_label(&mut end)?;
    a.nop()
}

/// A boot sector: real mode to long mode with 16 MiB mapped by 2 MiB pages, then `body` between its markers.
fn boot_sector(name: &str, body: Body) -> Vec<u8> {
    build(name, body).expect("the loop guests are constant and assemble")
}

fn build(name: &str, body: Body) -> Result<Vec<u8>, IcedError> {
    // 64-bit part first, to know its size; it is placed right after the 16-bit part.
    let long = |origin: u64| -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.mov(ax, 0x10)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(rsp, 0x7000u64)?;
        let mut say = a.create_label();
        let mut start = a.create_label();
        let mut finish = a.create_label();
        // Eight bits a character: after reset a 16550 sends five.
        a.mov(dx, 0x3fb)?;
        a.mov(al, 3)?;
        a.out(dx, al)?;
        a.lea(rsi, ptr(start))?;
        a.call(say)?;
        a.xor(eax, eax)?;
        a.xor(ebx, ebx)?;
        a.xor(ecx, ecx)?;
        body(&mut a)?;
        a.lea(rsi, ptr(finish))?;
        a.call(say)?;
        let mut halt = a.create_label();
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)?;
        // Print the string at RSI on COM1, waiting for the transmitter.
        a.set_label(&mut say)?;
        a.cld()?;
        let mut next = a.create_label();
        let mut wait = a.create_label();
        let mut done = a.create_label();
        a.set_label(&mut next)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.jz(done)?;
        a.mov(bl, al)?;
        a.mov(dx, 0x3fd)?;
        a.set_label(&mut wait)?;
        a.in_(al, dx)?;
        a.test(al, 0x20)?;
        a.jz(wait)?;
        a.mov(al, bl)?;
        a.mov(dx, 0x3f8)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.ret()?;
        a.set_label(&mut start)?;
        a.db(format!("\n@S {name}\n\0").as_bytes())?;
        a.set_label(&mut finish)?;
        a.db(format!("@E {name}\n@DONE\n\0").as_bytes())?;
        a.assemble(origin)
    };
    let real = |long_entry: u64| -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(16)?;
        a.cli()?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(sp, 0x7000)?;
        // Page tables at 0x1000: clear three pages, then PML4, PDPT and eight large pages.
        a.mov(di, 0x1000)?;
        a.mov(cx, 0x1800)?;
        a.rep().stosw()?;
        a.mov(di, 0x1000)?;
        a.mov(word_ptr(di), 0x2003)?;
        a.mov(di, 0x2000)?;
        a.mov(word_ptr(di), 0x3003)?;
        a.mov(di, 0x3000)?;
        a.mov(eax, 0x83)?;
        a.mov(cx, 8)?;
        let mut fill = a.create_label();
        a.set_label(&mut fill)?;
        a.mov(dword_ptr(di), eax)?;
        a.add(eax, 0x20_0000)?;
        a.add(di, 8)?;
        a.loop_(fill)?;
        a.mov(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, 0x1000)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(ah, 1)?;
        a.wrmsr()?;
        // LGDT with a 16-bit absolute address.
        a.db(&[0x0f, 0x01, 0x16, GDTR as u8, (GDTR >> 8) as u8])?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0001u32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea, long_entry as u8, (long_entry >> 8) as u8, 0x08, 0])?;
        a.assemble(ORIGIN)
    };
    let size = real(ORIGIN)?.len() as u64;
    let entry = ORIGIN + size;
    let mut sector = real(entry)?;
    sector.extend(long(entry)?);
    let tables = (GDT - ORIGIN) as usize;
    assert!(sector.len() <= tables, "{name}: {} bytes do not fit a boot sector", sector.len());
    sector.resize(tables, 0);
    for descriptor in [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff] {
        sector.extend(descriptor.to_le_bytes());
    }
    sector.extend(23u16.to_le_bytes());
    sector.extend((GDT as u32).to_le_bytes());
    sector.extend([0x55, 0xaa]);
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_fits_a_boot_sector() {
        for (name, sector) in all() {
            assert_eq!((sector.len(), &sector[510..]), (512, &[0x55, 0xaa][..]), "{name}");
        }
    }
}
