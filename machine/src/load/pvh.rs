//! PVH kernels (Xen, x86/HVM direct boot ABI).

use crate::config::Kernel;
use crate::error::LoadError;
use crate::load::elf::Elf;
use crate::load::{Entry, all_modules, append, append_string, place_modules, put};
use crate::memory::Ram;

const START_MAGIC: u32 = 0x336e_c578;
/// Where `hvm_start_info` goes.
const INFO: u64 = 0x9000;

/// Load a PVH kernel with its modules (the initrd is the first).
pub fn load(kernel: &Kernel, ram: &Ram, rsdp: u64) -> Result<Entry, LoadError> {
    let image = &kernel.image;
    let elf = Elf::parse(image)?;
    let entry = elf.pvh_entry.ok_or_else(|| LoadError::BadHeader {
        name: image.name.clone(),
        format: "PVH",
        why: "no XEN_ELFNOTE_PHYS32_ENTRY".into(),
    })?;
    let end = elf.place(image, ram)?.max(1 << 20);
    let modules = all_modules(kernel);
    let placed = place_modules(ram, &modules, end)?;

    let base = placed.last().map_or(end, |p| p.1).next_multiple_of(4096);
    let mut block = Vec::new();
    let command_line = append_string(&mut block, base, &kernel.command_line);
    let mut list = Vec::new();
    for (m, (start, end)) in modules.iter().zip(&placed) {
        let text = append_string(&mut block, base, &m.arguments);
        for v in [*start, end - start, text, 0] {
            list.extend(v.to_le_bytes());
        }
    }
    let list_at = append(&mut block, base, &list);
    let map = ram.map();
    let mut table = Vec::new();
    for e in &map {
        table.extend(e.start.to_le_bytes());
        table.extend(e.size.to_le_bytes());
        table.extend(e.kind.to_le_bytes());
        table.extend([0; 4]);
    }
    let map_at = append(&mut block, base, &table);
    if base + block.len() as u64 > ram.low_end() {
        let size = block.len() as u64;
        return Err(LoadError::NoRoom { what: "the start information".into(), size, from: base, limit: ram.low_end() });
    }
    put(ram, "start information", base, &block)?;

    let mut info = Vec::new();
    for v in [START_MAGIC, 1, 0, modules.len() as u32] {
        info.extend(v.to_le_bytes());
    }
    for v in [if modules.is_empty() { 0 } else { list_at }, command_line, rsdp, map_at] {
        info.extend(v.to_le_bytes());
    }
    info.extend((map.len() as u32).to_le_bytes());
    info.extend([0; 4]);
    put(ram, "start information", INFO, &info)?;
    let entry = Entry::Flat32 { eip: entry, eax: 0, ebx: INFO as u32, esi: 0, code: 0x10, data: 0x18 };
    entry.prepare(ram);
    Ok(entry)
}
