//! Looking at translations from outside: walks that set no flag, fault nowhere and fill no TLB.

use undervisor_mmu::{GuestMemory, Paging, PagingMode};

use crate::cpu::Cpu;
use crate::paging::Nested;

/// An entry on the way of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: &'static str,
    /// Where it was read: in the space of addresses that the tables lie in.
    pub address: u64,
    pub value: u64,
}

/// A walk and where it ended.
#[derive(Clone, Debug)]
pub struct Walk {
    pub entries: Vec<Entry>,
    /// The translated address and the page's size in bits, or why there is none.
    pub end: Result<(u64, u8), String>,
}

/// One level of a table tree: name of its entries, lowest address bit that selects one, and how many bits do.
type LevelShape = (&'static str, u8, u8);

const LONG: [LevelShape; 5] = [("PML5E", 48, 9), ("PML4E", 39, 9), ("PDPTE", 30, 9), ("PDE", 21, 9), ("PTE", 12, 9)];
const PAE: [LevelShape; 3] = [("PDPTE", 30, 2), ("PDE", 21, 9), ("PTE", 12, 9)];
const SHORT: [LevelShape; 2] = [("PDE", 22, 10), ("PTE", 12, 10)];
const EPT: [LevelShape; 5] =
    [("EPT PML5E", 48, 9), ("EPT PML4E", 39, 9), ("EPT PDPTE", 30, 9), ("EPT PDE", 21, 9), ("EPT PTE", 12, 9)];
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const LARGE: u64 = 1 << 7;

/// A tree of tables.
struct Tree<'a> {
    levels: &'a [LevelShape],
    /// Bytes of an entry.
    size: u64,
    /// Any of these: present.
    present: u64,
    root: u64,
    /// PAE: the four first entries, if they are in registers.
    pdpte: Option<[u64; 4]>,
    /// Large pages may be used by entries below this address bit.
    large_below: u8,
}

impl Tree<'_> {
    fn walk(&self, address: u64, read: &dyn Fn(u64) -> Option<u64>) -> Walk {
        let mut entries = Vec::new();
        let mut table = self.root;
        for &(name, shift, bits) in self.levels {
            let index = address >> shift & ((1 << bits) - 1);
            let at = table.wrapping_add(index * self.size);
            let value = match (&self.pdpte, shift) {
                (Some(registers), 30) => Some(registers[index as usize & 3]),
                _ => read(at),
            };
            let Some(value) = value else {
                return Walk { entries, end: Err(format!("{name} at {at:#x} is not in RAM")) };
            };
            let value = if self.size == 4 { value & 0xffff_ffff } else { value };
            entries.push(Entry { name, address: at, value });
            if value & self.present == 0 {
                return Walk { entries, end: Err(format!("{name} is not present")) };
            }
            if shift == 12 || (shift < self.large_below && value & LARGE != 0) {
                let mut frame = (value & FRAME) >> shift << shift;
                if shift == 22 {
                    frame = value & 0xffc0_0000 | (value >> 13 & 0xff) << 32;
                }
                return Walk { entries, end: Ok((frame | address & ((1 << shift) - 1), shift)) };
            }
            table = value & FRAME;
        }
        Walk { entries, end: Err("the tables do not end".into()) }
    }
}

fn of_paging(p: &Paging) -> Option<Tree<'static>> {
    let tree = |levels, size, pdpte, large_below| Tree { levels, size, present: 1, root: p.root, pdpte, large_below };
    Some(match p.mode {
        PagingMode::Off => return None,
        PagingMode::Bits32 => tree(&SHORT[..], 4, None, if p.pse { 32 } else { 0 }),
        PagingMode::Pae => tree(&PAE[..], 8, (!p.pdpte_in_memory).then_some(p.pdpte), 30),
        PagingMode::Level4 => tree(&LONG[1..], 8, None, 39),
        PagingMode::Level5 => tree(&LONG[..], 8, None, 39),
    })
}

/// Walk extended page tables from an EPTP.
pub fn walk_ept(memory: &GuestMemory, eptp: u64, address: u64) -> Walk {
    let levels = if eptp >> 3 & 7 == 4 { &EPT[..] } else { &EPT[1..] };
    let tree = Tree { levels, size: 8, present: 0x407, root: eptp & FRAME, pdpte: None, large_below: 39 };
    tree.walk(address, &|at| memory.read::<u64>(at))
}

/// Walk nested page tables: `paging` says their form and root.
pub fn walk_npt(memory: &GuestMemory, paging: &Paging, address: u64) -> Walk {
    match of_paging(paging) {
        Some(tree) => tree.walk(address, &|at| read_entry(memory, at, tree.size)),
        None => Walk { entries: Vec::new(), end: Ok((address, 64)) },
    }
}

fn read_entry(memory: &GuestMemory, at: u64, size: u64) -> Option<u64> {
    if size == 4 { memory.read::<u32>(at).map(u64::from) } else { memory.read::<u64>(at) }
}

impl Cpu {
    /// Walk the page tables of the current level: to a guest-physical address.
    pub fn inspect_linear(&self, linear: u64) -> Walk {
        let Some(tree) = of_paging(self.translations.paging()) else {
            return Walk { entries: Vec::new(), end: Ok((linear & 0xffff_ffff, 32)) };
        };
        let memory = &self.shared.memory;
        tree.walk(linear, &|at| self.inspect_nested(at).ok().and_then(|physical| read_entry(memory, physical, tree.size)))
    }

    /// The level-0 physical address of a guest-physical one under the translation in force.
    pub fn inspect_nested(&self, address: u64) -> Result<u64, String> {
        let memory = &self.shared.memory;
        let walk = match &self.translations.nested {
            Nested::None => return Ok(address),
            Nested::Ept(ept) => walk_ept(memory, ept.root | (ept.levels as u64).saturating_sub(1) << 3, address),
            Nested::Npt(npt) => walk_npt(memory, &npt.paging, address),
        };
        walk.end.map(|(physical, _)| physical)
    }

    /// The level-0 physical address of a linear one, or why there is none.
    pub fn inspect(&self, linear: u64) -> Result<u64, String> {
        let (address, _) = self.inspect_linear(linear).end?;
        self.inspect_nested(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_pages() {
        // A four-level tree: a 2 MiB page under index 0, a 4 KiB page and an absent one under index 1.
        let cells = [(0x1000, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x0060_0083), (0x3008, 0x4003), (0x4000, 0x9003)];
        let read = |at: u64| Some(cells.iter().find(|c| c.0 == at).map_or(0, |c| c.1));
        let mut p = Paging::default();
        (p.mode, p.root) = (PagingMode::Level4, 0x1000);
        let tree = of_paging(&p).unwrap();
        assert_eq!(tree.walk(0x1234, &read).end, Ok((0x60_1234, 21)));
        assert_eq!(tree.walk(0x20_0234, &read).end, Ok((0x9234, 12)));
        let absent = tree.walk(0x20_1000, &read);
        assert_eq!((absent.entries.len(), absent.end), (4, Err("PTE is not present".into())));
        (p.mode, p.pse) = (PagingMode::Bits32, true);
        let read = |at: u64| Some(if at == 0x1004 { 0x0080_0083 | 1 << 13 } else { 0 });
        assert_eq!(of_paging(&p).unwrap().walk(0x40_1234, &read).end, Ok((0x1_0080_1234, 22)));
    }
}
