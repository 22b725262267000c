//! The memory image of a hypervisor with its guests: what lies where, and the three ways in (multiboot, a disk's boot sector, both
//! to the same 32-bit entry).

use iced_x86::code_asm::{CodeAssembler, CodeAssemblerResult, CodeLabel};
use iced_x86::{BlockEncoderOptions, IcedError};

/// Where the image is loaded and linked.
pub const LOAD: u64 = 0x1_0000;
/// The image must end here.
const LIMIT: u64 = 0x8_0000;
/// Address of the 64-bit entry, for the 32-bit one.
pub const ENTRY_POINTER: u64 = LOAD + 0x40;
pub const GDTR: u64 = LOAD + 0x48;
pub const GDT: u64 = LOAD + 0x60;
pub const ENTRY_32: u64 = LOAD + 0xe0;

/// Selectors.
pub const CODE_32: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const CODE_64: u16 = 0x18;
pub const TSS: u16 = 0x20;
/// 32-bit task-state segments: the task that runs, and the one that is switched to.
pub const TASK: u16 = 0x40;
pub const OTHER_TASK: u16 = 0x48;
/// A task gate to [`OTHER_TASK`].
pub const TASK_GATE: u16 = 0x50;
pub const GDT_LIMIT: u16 = 0x57;

/// Zeroed at the start.
pub const BSS: u64 = 0x10_0000;
const BSS_END: u64 = 0x24_0000;

/// Identity map in 2 MiB pages of the first and, uncached, the fourth GiB: PML4, PDPT, two page directories.
pub const TABLES: u64 = 0x10_0000;
pub const PDPT: u64 = TABLES + 0x1000;
/// The same as EPT or nested tables; [`PAGES`] in 4 KiB pages of their own.
pub const NESTED: u64 = 0x10_8000;
const NESTED_PT: u64 = NESTED + 0x4000;
/// The first 4 GiB in 4 MiB pages, for guests without PAE.
pub const TABLES_32: u64 = 0x10_e000;
pub const VMXON_REGION: u64 = 0x11_0000;
pub const VMCS_REGION: u64 = 0x11_1000;
/// Another VMCS region.
pub const OTHER_REGION: u64 = 0x11_2000;
pub const MSR_BITMAPS: u64 = 0x11_3000;
/// Both I/O bitmaps, or AMD's map of three pages.
pub const IO_BITMAPS: u64 = 0x11_4000;
/// AMD's map of two pages.
pub const MSR_MAP: u64 = 0x11_8000;
pub const VIRTUAL_APIC: u64 = 0x11_a000;
pub const PML: u64 = 0x11_c000;
pub const EPTP_LIST: u64 = 0x11_d000;
pub const POSTED: u64 = 0x11_e000;
pub const MSR_AREA: u64 = 0x11_f000;
pub const HOST_SAVE: u64 = 0x12_0000;
pub const VMCB: u64 = 0x12_1000;
/// What VMSAVE keeps of the hypervisor.
pub const HOST_VMCB: u64 = 0x12_2000;
pub const VARIABLES: u64 = 0x12_8000;
pub const STACK: u64 = 0x13_0000;
pub const TSS_64: u64 = 0x13_1000;
pub const TASK_32: u64 = 0x13_2000;
pub const OTHER_TASK_32: u64 = 0x13_3000;

/// From here to 4 MiB every page has an entry of its own in the nested tables.
pub const PAGES: u64 = 0x20_0000;
/// Memory for the guest's operands.
pub const SCRATCH: u64 = 0x20_0000;
/// A page of the guest's, for whatever a case wants to be special.
pub const SPECIAL: u64 = 0x20_1000;
pub const GUEST_STACK: u64 = 0x21_0800;
pub const GUEST_IDT: u64 = 0x21_1000;
/// The APIC-access page, or AVIC's backing page.
pub const APIC_PAGE: u64 = 0x22_0000;
/// Linear addresses that are not mapped.
pub const UNMAPPED: u64 = 0x4000_0000;
pub const APIC: u64 = 0xfee0_0000;

/// Where the nested tables map one of [`PAGES`].
pub const fn nested_entry(page: u64) -> u64 {
    NESTED_PT + (page - PAGES) / 0x1000 * 8
}

/// How the tables are filled: (first entry, entries, value, step).
fn fills(amd: bool) -> Vec<(u64, u32, u64, u64)> {
    let (table, leaf, cached, uncached) = if amd { (7, 0x67, 0xe7, 0xff) } else { (7, 0x37, 0xb7, 0x87) };
    let mut out = Vec::new();
    for (base, table, low, high) in [(TABLES, 7, 0xe7, 0xff), (NESTED, table, cached, uncached)] {
        out.extend([
            (base, 1, (base + 0x1000) | table, 0),
            (base + 0x1000, 1, (base + 0x2000) | table, 0),
            (base + 0x1018, 1, (base + 0x3000) | table, 0),
            (base + 0x2000, 512, low, 0x20_0000),
            (base + 0x3000, 512, 0xc000_0000 | high, 0x20_0000),
        ]);
    }
    out.extend([(NESTED + 0x2008, 1, NESTED_PT | table, 0), (NESTED_PT, 512, PAGES | leaf, 0x1000)]);
    out
}

/// Builds the image from front to back.
pub struct Builder {
    bytes: Vec<u8>,
    /// The guests' handlers, 16 bytes each; all do nothing but exit.
    handlers: u64,
    /// The guests' IDT, to be copied to its place.
    pub guest_idt: u64,
}

impl Builder {
    pub fn new(amd: bool) -> Result<Builder, IcedError> {
        let mut b = Builder { bytes: Vec::new(), handlers: 0, guest_idt: 0 };
        let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
        // header_addr, load_addr, load_end_addr (0: the whole file), bss_end_addr, entry_addr.
        let header = [magic, flags, 0u32.wrapping_sub(magic + flags), LOAD as u32, LOAD as u32, 0, 0, ENTRY_32 as u32];
        header.iter().for_each(|w| b.bytes.extend(w.to_le_bytes()));
        b.bytes.resize((GDTR - LOAD) as usize, 0);
        b.bytes.extend(GDT_LIMIT.to_le_bytes());
        b.bytes.extend(GDT.to_le_bytes());
        b.bytes.resize((GDT - LOAD) as usize, 0);
        let tss = |base: u64, kind: u64| 0x67 | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24) << 56;
        let gdt = [
            0,
            0x00cf_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00af_9b00_0000_ffff,
            tss(TSS_64, 0x8b),
            0,
            0,
            0,
            tss(TASK_32, 0x8b),
            tss(OTHER_TASK_32, 0x89),
            0x0000_8500_0000_0000 | (OTHER_TASK as u64) << 16,
        ];
        gdt.iter().for_each(|w: &u64| b.bytes.extend(w.to_le_bytes()));
        assert_eq!(b.here(), GDT + GDT_LIMIT as u64 + 1);
        b.bytes.resize((ENTRY_32 - LOAD) as usize, 0);
        let mut a = CodeAssembler::new(32)?;
        entry_32(&mut a, amd)?;
        b.code(&mut a)?;
        b.align(16);
        b.handlers = b.data(&[&guest_exit(amd)[..], &[0xf4; 13]].concat().repeat(256));
        b.guest_idt = b.data(&[0; 4096]);
        for vector in 0..256 {
            b.gate(b.guest_idt, vector, b.handler(vector));
        }
        Ok(b)
    }

    /// The guests' handler for a vector.
    pub fn handler(&self, vector: u64) -> u64 {
        self.handlers + 16 * vector
    }

    fn here(&self) -> u64 {
        LOAD + self.bytes.len() as u64
    }

    pub fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// Constant bytes; their address.
    pub fn data(&mut self, bytes: &[u8]) -> u64 {
        self.align(8);
        let at = self.here();
        self.bytes.extend(bytes);
        at
    }

    pub fn words(&mut self, words: impl IntoIterator<Item = u64>) -> u64 {
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        self.data(&bytes)
    }

    /// A text that ends with a zero byte.
    pub fn text(&mut self, text: &str) -> u64 {
        let at = self.here();
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
        at
    }

    /// Assemble here.
    pub fn code(&mut self, a: &mut CodeAssembler) -> Result<CodeAssemblerResult, IcedError> {
        self.align(16);
        let result = a.assemble_options(self.here(), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        self.bytes.extend(&result.inner.code_buffer);
        Ok(result)
    }

    /// Overwrite.
    pub fn patch(&mut self, at: u64, bytes: &[u8]) {
        let at = (at - LOAD) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A 64-bit interrupt gate.
    pub fn gate(&mut self, table: u64, vector: u64, handler: u64) {
        let low = handler & 0xffff | (CODE_64 as u64) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        self.patch(table + 16 * vector, &[low.to_le_bytes(), (handler >> 32).to_le_bytes()].concat());
    }

    /// The finished image.
    pub fn finish(mut self, entry: u64) -> Vec<u8> {
        self.patch(ENTRY_POINTER, &entry.to_le_bytes());
        self.align(512);
        assert!(self.here() <= LIMIT, "the image has outgrown its place: it ends at {:#x}", self.here());
        self.bytes
    }
}

/// The instruction with which a guest gives up: VMCALL or VMMCALL.
pub const fn guest_exit(amd: bool) -> [u8; 3] {
    [0x0f, 0x01, if amd { 0xd9 } else { 0xc1 }]
}

/// Flat protected mode to 64-bit mode.
fn entry_32(a: &mut CodeAssembler, amd: bool) -> Result<(), IcedError> {
    use iced_x86::code_asm::*;
    a.cli()?;
    a.cld()?;
    a.lgdt(ptr(GDTR as u32))?;
    a.mov(eax, DATA as u32)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(fs, eax)?;
    a.mov(gs, eax)?;
    a.mov(ss, eax)?;
    a.mov(esp, STACK as u32)?;
    a.mov(edi, BSS as u32)?;
    a.mov(ecx, (BSS_END - BSS) as u32 / 4)?;
    a.xor(eax, eax)?;
    a.rep().stosd()?;
    for (at, count, value, step) in fills(amd) {
        let mut next = a.create_label();
        a.mov(edi, at as u32)?;
        a.mov(ecx, count)?;
        a.mov(eax, value as u32)?;
        a.set_label(&mut next)?;
        a.mov(dword_ptr(edi), eax)?;
        a.add(eax, step as u32)?;
        a.add(edi, 8)?;
        a.dec(ecx)?;
        a.jnz(next)?;
    }
    let mut next = a.create_label();
    a.mov(edi, TABLES_32 as u32)?;
    a.mov(eax, 0xe7)?;
    a.set_label(&mut next)?;
    a.stosd()?;
    a.add(eax, 0x40_0000)?;
    a.jnc(next)?;
    // PAE, OSFXSR, OSXMMEXCPT; the tables; LME and NXE; PE, MP, NE, WP, PG.
    a.mov(eax, 0x620)?;
    a.mov(cr4, eax)?;
    a.mov(eax, TABLES as u32)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xc000_0080u32)?;
    a.rdmsr()?;
    a.or(eax, 0x900)?;
    a.wrmsr()?;
    a.mov(eax, 0x8001_0033u32)?;
    a.mov(cr0, eax)?;
    let mut long = a.create_label();
    a.push(CODE_64 as u32)?;
    a.call(long)?;
    a.set_label(&mut long)?;
    // Past these seven bytes: ADD dword [ESP], 7 (83 04 24 ib); RETF; and two more for the round sum.
    a.add(dword_ptr(esp), 7)?;
    a.retf()?;
    a.nop()?;
    a.nop()?;
    // 64-bit: MOV EAX, [ENTRY_POINTER] (8B 04 25 disp32); JMP RAX.
    a.db(&[0x8b, 0x04, 0x25])?;
    a.dd(&[ENTRY_POINTER as u32])?;
    a.db(&[0xff, 0xe0])
}

/// Sectors of the disk: two cylinders of 16 heads and 63 sectors.
pub const DISK_CYLINDERS: usize = 2;
/// Sectors that the boot sector reads at once.
const CHUNK: u32 = 64;

/// A disk that a BIOS boots: a boot sector, then the image.
pub fn disk(image: &[u8]) -> Result<Vec<u8>, IcedError> {
    let mut disk = boot_sector(image.len().div_ceil(512) as u32)?;
    disk.extend(image);
    disk.resize(DISK_CYLINDERS * 16 * 63 * 512, 0);
    Ok(disk)
}

/// Reads `sectors` to [`LOAD`] and enters in flat protected mode.
fn boot_sector(sectors: u32) -> Result<Vec<u8>, IcedError> {
    use iced_x86::code_asm::*;
    const ORIGIN: u64 = 0x7c00;
    // Disk address packet, GDT of three descriptors and its register image, at the end of the sector.
    const PACKET: u64 = ORIGIN + 448;
    const TABLE: u64 = PACKET + 16;
    const REGISTER: u64 = TABLE + 24;
    let mut a = CodeAssembler::new(16)?;
    a.cli()?;
    a.cld()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, 0x7000)?;
    let mut next = a.create_label();
    a.mov(bp, sectors.div_ceil(CHUNK))?;
    a.set_label(&mut next)?;
    a.mov(si, PACKET as u32)?;
    a.mov(ah, 0x42)?;
    a.push(dx)?;
    a.int(0x13)?;
    a.pop(dx)?;
    a.add(word_ptr(PACKET + 6), CHUNK * 512 / 16)?;
    a.add(word_ptr(PACKET + 8), CHUNK)?;
    a.dec(bp)?;
    a.jnz(next)?;
    a.in_(al, 0x92)?;
    a.or(al, 2)?;
    a.and(al, 0xfe)?;
    a.out(0x92, al)?;
    a.cli()?;
    a.db(&[0x0f, 0x01, 0x16, REGISTER as u8, (REGISTER >> 8) as u8])?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    // The entry reads memory beyond 64 KiB.
    a.mov(ax, DATA as u32)?;
    a.mov(ds, ax)?;
    // Far jump with a 32-bit offset.
    a.db(&[0x66, 0xea])?;
    a.dd(&[ENTRY_32 as u32])?;
    a.dw(&[CODE_32])?;
    let mut sector = a.assemble(ORIGIN)?;
    assert!(sector.len() <= (PACKET - ORIGIN) as usize);
    sector.resize((PACKET - ORIGIN) as usize, 0);
    sector.extend([16, 0, CHUNK as u8, 0, 0, 0, (LOAD >> 4) as u8, (LOAD >> 12) as u8]);
    sector.extend(1u64.to_le_bytes());
    for descriptor in [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff] {
        sector.extend(descriptor.to_le_bytes());
    }
    sector.extend(23u16.to_le_bytes());
    sector.extend((TABLE as u32).to_le_bytes());
    assert!(sector.len() <= 510);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    Ok(sector)
}

/// A guest's code under construction.
pub struct GuestCode {
    pub a: CodeAssembler,
    at: Option<CodeLabel>,
}

impl GuestCode {
    fn new(bits: u32) -> Result<GuestCode, IcedError> {
        Ok(GuestCode { a: CodeAssembler::new(bits)?, at: None })
    }

    /// RIP will be that of the next instruction when the guest exits.
    pub fn here(&mut self) -> Result<(), IcedError> {
        // A data directive of no bytes: the next instruction may want a label of its own.
        let mut label = self.a.create_label();
        self.a.set_label(&mut label)?;
        self.a.zero_bytes()?;
        self.at = Some(label);
        Ok(())
    }

    /// Give the local APIC a command and wait a while, always at the same RIP.
    pub fn send(&mut self, icr: u32) -> Result<(), IcedError> {
        use iced_x86::code_asm::*;
        let mut wait = self.a.create_label();
        self.a.mov(ecx, 0x1_0000)?;
        self.a.mov(eax, APIC as u32)?;
        self.a.mov(dword_ptr(rax + 0x310), 0)?;
        self.a.mov(dword_ptr(rax + 0x300), icr)?;
        self.here()?;
        self.a.set_label(&mut wait)?;
        self.a.loop_(wait)
    }
}

/// Interrupt commands to oneself: vector 40h, SMI, NMI, INIT.
pub const SELF_INTERRUPT: u32 = 0x4_4040;
pub const SELF_SMI: u32 = 0x4200;
pub const SELF_NMI: u32 = 0x4400;
pub const SELF_INIT: u32 = 0x4500;

/// What writes a guest.
pub type Code = fn(&mut GuestCode) -> Result<(), IcedError>;

/// Place a guest, followed by `end`; its entry and where it should exit.
pub fn place_guest(b: &mut Builder, bits: u32, code: Code, end: &[u8]) -> Result<(u64, u64), IcedError> {
    let mut g = GuestCode::new(bits)?;
    code(&mut g)?;
    g.a.db(end)?;
    b.align(16);
    let entry = b.here();
    let result = b.code(&mut g.a)?;
    let at = match &g.at {
        Some(label) => result.label_ip(label)?,
        None => entry,
    };
    Ok((entry, at))
}
