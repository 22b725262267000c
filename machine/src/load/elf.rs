//! ELF images (System V ABI, Object Files; Program Loading).

use object::Endianness;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::config::{Image, Kernel};
use crate::error::LoadError;
use crate::load::{Entry, linux, put, zero};
use crate::memory::Ram;

/// The Xen note that gives the 32-bit physical entry of a PVH kernel.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// A loadable segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub physical: u64,
    pub virtual_address: u64,
    pub offset: u64,
    pub file_size: u64,
    pub memory_size: u64,
}

/// What loaders need of an ELF file.
#[derive(Debug)]
pub struct Elf {
    pub is64: bool,
    pub entry: u64,
    pub segments: Vec<Segment>,
    pub pvh_entry: Option<u32>,
}

pub fn is_elf(data: &[u8]) -> bool {
    data.starts_with(b"\x7fELF")
}

impl Elf {
    /// Parse and check: x86, executable, every segment within the file.
    pub fn parse(image: &Image) -> Result<Elf, LoadError> {
        match image.data.get(4) {
            Some(1) => Self::parse_class::<elf::FileHeader32<Endianness>>(image, false),
            Some(2) => Self::parse_class::<elf::FileHeader64<Endianness>>(image, true),
            _ => Err(bad(image, "neither 32-bit nor 64-bit")),
        }
    }

    fn parse_class<H: FileHeader<Endian = Endianness>>(image: &Image, is64: bool) -> Result<Elf, LoadError> {
        let data = &image.data[..];
        let header = H::parse(data).map_err(|e| bad(image, e.to_string()))?;
        let endian = header.endian().map_err(|e| bad(image, e.to_string()))?;
        let machine = header.e_machine(endian);
        if !matches!(machine, elf::EM_386 | elf::EM_X86_64) {
            return Err(bad(image, format!("for machine {machine:?}, not x86")));
        }
        if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) {
            return Err(bad(image, "not an executable (an object file or a core dump?)"));
        }
        let headers = header.program_headers(endian, data).map_err(|e| bad(image, e.to_string()))?;
        let mut found = Elf { is64, entry: header.e_entry(endian).into(), segments: Vec::new(), pvh_entry: None };
        for p in headers {
            let (offset, file_size): (u64, u64) = (p.p_offset(endian).into(), p.p_filesz(endian).into());
            let end = offset.checked_add(file_size).ok_or_else(|| bad(image, "a segment's size overflows"))?;
            let kind = p.p_type(endian);
            if matches!(kind, elf::PT_LOAD | elf::PT_NOTE) && end > data.len() as u64 {
                let what = "a segment";
                return Err(LoadError::Truncated { name: image.name.clone(), what, needed: end, have: data.len() as u64 });
            }
            if kind == elf::PT_LOAD {
                let memory_size: u64 = p.p_memsz(endian).into();
                if memory_size < file_size {
                    return Err(bad(image, "a segment is larger in the file than in memory"));
                }
                if memory_size > 0 {
                    found.segments.push(Segment {
                        physical: p.p_paddr(endian).into(),
                        virtual_address: p.p_vaddr(endian).into(),
                        offset,
                        file_size,
                        memory_size,
                    });
                }
            } else if kind == elf::PT_NOTE
                && let Ok(Some(mut notes)) = p.notes(endian, data)
            {
                while let Ok(Some(note)) = notes.next() {
                    let xen = note.name() == b"Xen";
                    if xen && note.n_type(endian) == elf::NoteType(XEN_ELFNOTE_PHYS32_ENTRY) {
                        let bytes = note.desc().get(..4).and_then(|b| b.try_into().ok());
                        found.pvh_entry = bytes.map(u32::from_le_bytes);
                    }
                }
            }
        }
        if found.segments.is_empty() {
            return Err(bad(image, "nothing to load"));
        }
        // Files without physical addresses mean their virtual ones.
        if found.segments.iter().all(|s| s.physical == 0) {
            found.segments.iter_mut().for_each(|s| s.physical = s.virtual_address);
        }
        Ok(found)
    }

    /// Copy the segments to where they belong; the end of the highest.
    pub fn place(&self, image: &Image, ram: &Ram) -> Result<u64, LoadError> {
        let mut end = 0;
        for s in &self.segments {
            let what = format!("a segment of {}", image.name);
            let from = s.offset as usize;
            let bytes = image.data.get(from..from + s.file_size as usize).unwrap_or(&[]);
            // Look first whether all of it fits; only then write.
            zero(ram, &what, s.physical.saturating_add(s.file_size), s.memory_size - s.file_size)?;
            put(ram, &what, s.physical, bytes)?;
            end = end.max(s.physical + s.memory_size);
        }
        Ok(end)
    }

    /// The entry as a physical address.
    pub fn physical_entry(&self) -> u64 {
        let inside = |s: &&Segment| self.entry.wrapping_sub(s.virtual_address) < s.memory_size;
        let physical = |s: &Segment| self.entry.wrapping_sub(s.virtual_address).wrapping_add(s.physical);
        // An entry that already is a physical address of a segment stays as it is (a Linux vmlinux).
        let already = self.segments.iter().any(|s| self.entry.wrapping_sub(s.physical) < s.memory_size);
        match self.segments.iter().find(inside) {
            Some(s) if !already => physical(s),
            _ => self.entry,
        }
    }
}

fn bad(image: &Image, why: impl Into<String>) -> LoadError {
    LoadError::BadHeader { name: image.name.clone(), format: "ELF", why: why.into() }
}

/// Load an ELF executable that follows no boot protocol: ELF64 starts in 64-bit mode, ELF32 in flat protected mode.
/// RSI holds a Linux `boot_params`, which a bare 64-bit `vmlinux` wants.
pub fn load(kernel: &Kernel, ram: &Ram, rsdp: u64) -> Result<Entry, LoadError> {
    if !kernel.modules.is_empty() {
        return Err(LoadError::NotSupported("a plain ELF image", "modules", "build it with a multiboot or PVH header"));
    }
    let elf = Elf::parse(&kernel.image)?;
    let end = elf.place(&kernel.image, ram)?;
    let params = linux::write_bare_params(kernel, ram, rsdp, end)?;
    let entry = elf.physical_entry();
    let entry = if elf.is64 {
        Entry::Long { rip: entry, rsi: params, code: 0x10, data: 0x18 }
    } else {
        Entry::Flat32 { eip: entry as u32, eax: 0, ebx: 0, esi: params as u32, code: 0x10, data: 0x18 }
    };
    entry.prepare(ram);
    Ok(entry)
}
