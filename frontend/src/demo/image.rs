//! The demo's memory image: what lies where, and texts.

use iced_x86::code_asm::CodeAssembler;
use iced_x86::{BlockEncoderOptions, IcedError};

/// Where the image begins: a boot sector's place.
pub const BASE: u32 = 0x7c00;
pub const CODE16: u32 = 0x7c00;
pub const CODE32: u32 = 0x8000;
pub const CODE64: u32 = 0x8400;
/// The hypervisor's code, and that of its guests.
pub const HYPERVISOR: u32 = 0x1_0000;
pub const L2_REAL: u32 = 0x1_8000;
pub const L2_LONG: u32 = 0x1_9000;
/// Offset of the AMD variant in each guest's page.
pub const AMD_CODE: u32 = 0x800;
/// Constant texts and tables.
pub const TEXTS: u32 = 0x1_a000;
/// GDT (8 descriptors), then GDTR and IDTR images.
pub const GDT: u32 = 0x1_f000;
pub const GDTR: u32 = GDT + 0x80;
pub const IDTR: u32 = GDT + 0x90;
pub const IDT: u32 = 0x2_0000;
pub const PAGE_TABLES: u32 = 0x2_1000;
/// EPT: PML4, PDPT, page directory.
pub const EPT: u32 = 0x2_8000;
const END: u32 = 0x2_c000;

/// Not part of the image: zero at the start.
pub const VARIABLES: u32 = 0x4_0000;
pub const VMXON_REGION: u32 = 0x5_0000;
pub const VMCS_REGION: u32 = 0x5_1000;
pub const STACK: u32 = 0x7_0000;
pub const HOST_STACK: u32 = 0x7_8000;
pub const L2_STACK: u32 = 0x7_c000;

pub const COM1: u32 = 0x3f8;

/// Selectors of the GDT.
pub const CS32: u32 = 0x08;
pub const DS: u32 = 0x10;
pub const CS64: u32 = 0x18;
pub const TSS: u32 = 0x20;

/// Collects the image.
pub struct Builder {
    bytes: Vec<u8>,
    texts: u32,
    /// Entry of the nested part, for the long-mode code to call.
    pub nested_entry: u64,
}

impl Builder {
    pub fn new() -> Builder {
        let mut b = Builder { bytes: vec![0; (END - BASE) as usize], texts: TEXTS, nested_entry: 0 };
        b.tables();
        b
    }

    pub fn put(&mut self, address: u32, bytes: &[u8]) {
        let at = (address - BASE) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&mut self, address: u32, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    /// A text that ends with a zero byte; its address.
    pub fn text(&mut self, text: &str) -> u32 {
        let bytes = text.replace('\n', "\r\n");
        let at = self.data(bytes.as_bytes());
        self.texts += 1;
        at
    }

    /// Constant bytes; their address.
    pub fn data(&mut self, bytes: &[u8]) -> u32 {
        let at = self.texts;
        self.put(at, bytes);
        self.texts += bytes.len() as u32;
        assert!(self.texts < GDT, "the demo's texts have outgrown their place");
        at
    }

    /// Assemble at an address with room up to `end`; where the labels came to lie is in the result.
    pub fn code(
        &mut self,
        assembler: &mut CodeAssembler,
        at: u32,
        end: u32,
    ) -> Result<iced_x86::code_asm::CodeAssemblerResult, IcedError> {
        let result = assembler.assemble_options(at as u64, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let code = &result.inner.code_buffer;
        assert!(at as usize + code.len() <= end as usize, "the demo's code at {at:#x} has outgrown its place");
        self.put(at, &code.clone());
        Ok(result)
    }

    /// A 64-bit interrupt gate.
    pub fn gate(&mut self, vector: u8, handler: u64) {
        let at = IDT + 16 * vector as u32;
        self.word(at, handler & 0xffff | (CS64 as u64) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48);
        self.word(at + 8, handler >> 32);
    }

    fn tables(&mut self) {
        let descriptors: [u64; 6] = [
            0,
            0x00cf_9b00_0000_ffff, // 32-bit code
            0x00cf_9300_0000_ffff, // data
            0x00af_9b00_0000_ffff, // 64-bit code
            0x0000_8b04_0000_0067, // 64-bit TSS at VARIABLES, in two halves
            0,
        ];
        for (i, d) in descriptors.iter().enumerate() {
            self.word(GDT + 8 * i as u32, *d);
        }
        for (register, base, limit) in [(GDTR, GDT, 0x7fu16), (IDTR, IDT, 0xfff)] {
            self.put(register, &limit.to_le_bytes());
            self.word(register + 2, base as u64);
        }
        // Identity: the first GiB and, uncached, the fourth, in 2 MiB pages; the page at 8 MiB is left out for #PF.
        let (pml4, pdpt, low, high) = (PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000, PAGE_TABLES + 0x3000);
        self.word(pml4, pdpt as u64 | 3);
        self.word(pdpt, low as u64 | 3);
        self.word(pdpt + 24, high as u64 | 3);
        for i in 0..512u32 {
            let address = (i as u64) << 21;
            if i != 4 {
                self.word(low + 8 * i, address | 0x83);
            }
            self.word(high + 8 * i, (3 << 30) + address | 0x9b);
        }
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
