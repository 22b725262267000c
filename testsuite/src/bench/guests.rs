//! Loops that need no operating system: floppy images that go to long mode, mark, loop and mark again.

use iced_x86::code_asm::*;

use super::exits;

/// Where the BIOS loads a boot sector.
const ORIGIN: u64 = 0x7c00;
/// The descriptor table and, after it, the register image that LGDT loads: the last 30 bytes before the signature.
const GDT: u64 = ORIGIN + 480;
const GDTR: u64 = GDT + 24;
/// The 64-bit part: the sectors after the first. It begins with a word that tells whether it is in memory already, for a machine
/// without a BIOS is given the whole image.
const LONG: u64 = ORIGIN + 512;
const HERE: u32 = 0x5645_4421;
/// What one request to the BIOS may read: the rest of the first track.
const MAX_SECTORS: usize = 17;

/// Page tables: 16 MiB, linear addresses being physical, by 2 MiB pages.
pub const TABLES: u32 = 0x1000;
pub const STACK: u64 = 0x7000;

/// What a guest needs of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    Any,
    Vmx,
    Svm,
}

/// A guest of its own.
pub struct Bare {
    pub name: String,
    pub processor: Processor,
    /// A floppy's first sectors.
    pub image: Vec<u8>,
}

/// What the assembling functions return.
pub type Assembled = Result<(), IcedError>;

type Body = fn(&mut CodeAssembler) -> Assembled;

/// Every guest that needs no operating system.
pub fn all() -> Vec<Bare> {
    let loops: [(&str, Body); 3] = [("loop-alu", alu), ("loop-memory", memory), ("loop-call", call)];
    let loops = loops.map(|(name, body)| {
        let image = floppy(|a, say| say.timed(a, name, body));
        Bare { name: name.into(), processor: Processor::Any, image }
    });
    loops.into_iter().chain(exits::all()).collect()
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

/// Instructions of each turn of [`memory`]'s loop, and turns: half of the turns skip an addition.
pub const MEMORY_INSTRUCTIONS: f64 = 9.5 * 30e6;

/// Loads, stores and branches; about 300 million instructions.
pub fn memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
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

/// Prints on COM1.
pub struct Say {
    print: CodeLabel,
}

impl Say {
    /// Print a line. Changes RAX, RBX, RDX and RSI.
    pub fn line(&self, a: &mut CodeAssembler, line: &str) -> Assembled {
        let (mut text, mut over) = (a.create_label(), a.create_label());
        a.lea(rsi, ptr(text))?;
        a.call(self.print)?;
        a.jmp(over)?;
        a.set_label(&mut text)?;
        a.db(format!("\n{line}\n\0").as_bytes())?;
        a.set_label(&mut over)?;
        a.nop()
    }

    /// Run `body` between its marks.
    pub fn timed(&self, a: &mut CodeAssembler, name: &str, body: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Assembled {
        self.line(a, &format!("@S {name}"))?;
        a.xor(eax, eax)?;
        a.xor(ebx, ebx)?;
        a.xor(ecx, ecx)?;
        body(a)?;
        self.line(a, &format!("@E {name}"))
    }

    /// The routine that prints the string at RSI, waiting for the transmitter.
    fn routine(&mut self, a: &mut CodeAssembler) -> Assembled {
        let (mut next, mut wait, mut done) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut self.print)?;
        a.cld()?;
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
        a.ret()
    }
}

/// A bootable floppy: real mode to long mode, then `body`, then the mark that ends the run.
pub fn floppy(body: impl FnOnce(&mut CodeAssembler, &Say) -> Assembled) -> Vec<u8> {
    build(body).expect("the bare guests are constant and assemble")
}

fn build(body: impl FnOnce(&mut CodeAssembler, &Say) -> Assembled) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut say = Say { print: a.create_label() };
    a.mov(ax, 0x10)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(rsp, STACK)?;
    // Eight bits a character: after reset a 16550 sends five.
    a.mov(dx, 0x3fb)?;
    a.mov(al, 3)?;
    a.out(dx, al)?;
    body(&mut a, &say)?;
    say.line(&mut a, "@DONE")?;
    let mut halt = a.create_label();
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)?;
    say.routine(&mut a)?;
    let mut long = HERE.to_le_bytes().to_vec();
    long.extend(a.assemble(LONG + 4)?);
    let sectors = long.len().div_ceil(512);
    assert!(sectors <= MAX_SECTORS, "{} bytes are more than a track holds", long.len());
    let mut image = real_mode(sectors)?;
    let tables = (GDT - ORIGIN) as usize;
    assert!(image.len() <= tables, "{} bytes do not fit a boot sector", image.len());
    image.resize(tables, 0);
    for descriptor in [0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff] {
        image.extend(descriptor.to_le_bytes());
    }
    image.extend(23u16.to_le_bytes());
    image.extend((GDT as u32).to_le_bytes());
    image.extend([0x55, 0xaa]);
    image.extend(long);
    image.resize(512 * (1 + sectors), 0);
    Ok(image)
}

/// From the boot sector's start to the 64-bit part.
fn real_mode(sectors: usize) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.cli()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, STACK as i32)?;
    let mut loaded = a.create_label();
    a.cmp(dword_ptr(LONG), HERE as i32)?;
    a.je(loaded)?;
    // Read sectors: cylinder and head 0, from the second sector on, of the drive in DL.
    a.sti()?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(ax, 0x200 | sectors as i32)?;
    a.mov(bx, LONG as i32)?;
    a.mov(cx, 2)?;
    a.mov(dh, 0)?;
    a.int(0x13)?;
    a.jc(again)?;
    a.cli()?;
    a.set_label(&mut loaded)?;
    // Clear three pages, then PML4, PDPT and eight large pages.
    a.mov(di, TABLES as i32)?;
    a.mov(cx, 0x1800)?;
    a.xor(ax, ax)?;
    a.cld()?;
    a.rep().stosw()?;
    a.mov(di, TABLES as i32)?;
    a.mov(word_ptr(di), TABLES + 0x1003)?;
    a.mov(di, TABLES as i32 + 0x1000)?;
    a.mov(word_ptr(di), TABLES + 0x2003)?;
    a.mov(di, TABLES as i32 + 0x2000)?;
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
    a.mov(eax, TABLES)?;
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
    let entry = LONG + 4;
    a.db(&[0xea, entry as u8, (entry >> 8) as u8, 0x08, 0])?;
    a.assemble(ORIGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_boots_from_a_floppy() {
        for guest in all() {
            assert_eq!(guest.image.len() % 512, 0, "{}", guest.name);
            assert_eq!(&guest.image[510..516], &[0x55, 0xaa, 0x21, 0x44, 0x45, 0x56], "{}", guest.name);
        }
    }
}
