//! Multiboot kernels (Multiboot Specification version 0.6.96).

use crate::config::Kernel;
use crate::error::LoadError;
use crate::load::elf::{self, Elf};
use crate::load::{Entry, all_modules, append, append_string, place_modules, put, with_name, zero};
use crate::memory::{LOW_MEMORY_END, Ram};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies within this many bytes, 4-byte aligned.
const SEARCH: usize = 8192;
/// Flags of the header that a loader must understand: page alignment, memory information, video mode.
const KNOWN_FLAGS: u32 = 7;
const ADDRESS_FIELDS: u32 = 1 << 16;

/// What the information structure holds: memory, command line, modules, memory map, loader name.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;

/// A multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the header in the file.
    pub offset: usize,
    pub flags: u32,
    /// header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr.
    pub addresses: Option<[u32; 5]>,
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// Find the header: magic, flags and checksum add up to zero.
pub fn find_header(data: &[u8]) -> Option<Header> {
    (0..data.len().min(SEARCH)).step_by(4).find_map(|at| {
        let (magic, flags, checksum) = (word(data, at)?, word(data, at + 4)?, word(data, at + 8)?);
        if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
            return None;
        }
        let addresses = if flags & ADDRESS_FIELDS != 0 {
            let mut a = [0; 5];
            for (i, a) in a.iter_mut().enumerate() {
                *a = word(data, at + 12 + 4 * i)?;
            }
            Some(a)
        } else if elf::is_elf(data) {
            None
        } else {
            // Neither an ELF image nor addresses: the magic stands there by chance.
            return None;
        };
        Some(Header { offset: at, flags, addresses })
    })
}

/// Load by the header's address fields (the a.out kludge); (entry, end).
fn place_by_addresses(kernel: &Kernel, h: &Header, a: [u32; 5], ram: &Ram) -> Result<(u32, u64), LoadError> {
    let image = &kernel.image;
    let bad = |why: &str| LoadError::BadHeader { name: image.name.clone(), format: "multiboot", why: why.to_string() };
    let [header_address, load, load_end, bss_end, entry] = a;
    let before = header_address.checked_sub(load).ok_or_else(|| bad("load_addr is above header_addr"))? as usize;
    let from = h.offset.checked_sub(before).ok_or_else(|| bad("load_addr lies before the file's first byte"))?;
    let length = match load_end {
        0 => image.data.len() - from,
        _ => load_end.checked_sub(load).ok_or_else(|| bad("load_end_addr is below load_addr"))? as usize,
    };
    let data = image.data.get(from..from + length).ok_or_else(|| LoadError::Truncated {
        name: image.name.clone(),
        what: "the multiboot image",
        needed: (from + length) as u64,
        have: image.data.len() as u64,
    })?;
    put(ram, &image.name, load as u64, data)?;
    let end = load as u64 + length as u64;
    let bss_end = (bss_end as u64).max(end);
    zero(ram, &image.name, end, bss_end - end)?;
    Ok((entry, bss_end))
}

/// Load a multiboot kernel with its modules.
pub fn load(kernel: &Kernel, ram: &Ram, _rsdp: u64) -> Result<Entry, LoadError> {
    let image = &kernel.image;
    let bad = |why: String| LoadError::BadHeader { name: image.name.clone(), format: "multiboot", why };
    let h = find_header(&image.data).ok_or_else(|| bad("no header".into()))?;
    if h.flags & 0xffff & !KNOWN_FLAGS != 0 {
        return Err(bad(format!("flags {:#x} ask for what no loader knows", h.flags)));
    }
    let (entry, end) = match h.addresses {
        Some(a) => place_by_addresses(kernel, &h, a, ram)?,
        None => {
            let elf = Elf::parse(image)?;
            let end = elf.place(image, ram)?;
            (elf.physical_entry() as u32, end)
        }
    };
    let modules = all_modules(kernel);
    let placed = place_modules(ram, &modules, end.max(1 << 20))?;

    // What the kernel is told follows the modules: a kernel may be linked anywhere in low memory.
    let base = placed.last().map_or(end.max(1 << 20), |p| p.1).next_multiple_of(4096);
    let mut block = Vec::new();
    let command_line = append_string(&mut block, base, &with_name(&image.name, &kernel.command_line));
    let loader = append_string(&mut block, base, "undervisor");
    let mut list = Vec::new();
    for (m, (start, end)) in modules.iter().zip(&placed) {
        let text = append_string(&mut block, base, &with_name(&m.image.name, &m.arguments));
        for v in [*start as u32, *end as u32, text as u32, 0] {
            list.extend(v.to_le_bytes());
        }
    }
    let list_at = append(&mut block, base, &list);
    let mut map = Vec::new();
    for e in ram.map() {
        map.extend(20u32.to_le_bytes());
        map.extend(e.start.to_le_bytes());
        map.extend(e.size.to_le_bytes());
        map.extend(e.kind.to_le_bytes());
    }
    let map_at = append(&mut block, base, &map);
    let mut info = [0u8; 128];
    let mut set = |at: usize, v: u64| info[at..at + 4].copy_from_slice(&(v as u32).to_le_bytes());
    set(0, INFO_FLAGS as u64);
    set(4, LOW_MEMORY_END >> 10);
    set(8, ram.low_end().saturating_sub(1 << 20) >> 10);
    set(16, command_line);
    set(20, modules.len() as u64);
    set(24, list_at);
    set(44, map.len() as u64);
    set(48, map_at);
    set(64, loader);
    let info_at = append(&mut block, base, &info);
    if base + block.len() as u64 > ram.low_end() {
        let size = block.len() as u64;
        return Err(LoadError::NoRoom { what: "the multiboot information".into(), size, from: base, limit: ram.low_end() });
    }
    put(ram, "module list", base, &block)?;
    let entry = Entry::Flat32 { eip: entry, eax: LOADER_MAGIC, ebx: info_at as u32, esi: 0, code: 0x10, data: 0x18 };
    entry.prepare(ram);
    Ok(entry)
}
