//! Looking at a guest's memory without leaving a trace in it: page walks that set no accessed or dirty bits and raise nothing.

use undervisor_core::{Cr0, Cr4, Efer};
use undervisor_mmu::{GuestMemory, Paging, PagingMode};

use crate::a20::Gate;
use crate::cpu::Cpu;
use crate::paging::Nested;

/// Physical-address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Level-0 physical address.
    pub physical: u64,
    pub writable: bool,
    pub executable: bool,
    pub user: bool,
    /// Which entry of the PAT the page selects; `None`: there is no paging.
    pub pat: Option<u8>,
    /// The memory type of EPT, and whether it makes the PAT ignored.
    pub ept: Option<(u8, bool)>,
}

/// The PAT entry that a page selects: PWT, PCD and, at this bit, PAT.
fn pat_index(entry: u64, at: u32) -> Option<u8> {
    Some((entry >> 3 & 3 | (entry >> at & 1) << 2) as u8)
}

impl Mapping {
    /// What no table has a say in.
    fn direct(physical: u64) -> Mapping {
        Mapping { physical, writable: true, executable: true, user: true, pat: None, ept: None }
    }
}

/// What selects a translation.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    pub mode: PagingMode,
    pub root: u64,
    pub pdpte: [u64; 4],
    pub pse: bool,
    pub nested: Nested,
    /// The A20 gate behind it.
    pub a20: Gate,
}

impl View {
    /// What control registers select, without second-level translation. `pdpte`: read from memory in PAE mode if `None`.
    pub fn of(cr0: u64, cr3: u64, cr4: u64, efer: u64, memory: &GuestMemory) -> View {
        let (cr0, cr4) = (Cr0::from_bits_retain(cr0), Cr4::from_bits_retain(cr4));
        let long = Efer::from_bits_retain(efer).contains(Efer::LMA);
        let mode = match () {
            () if !cr0.contains(Cr0::PG) => PagingMode::Off,
            () if long && cr4.contains(Cr4::LA57) => PagingMode::Level5,
            () if long => PagingMode::Level4,
            () if cr4.contains(Cr4::PAE) => PagingMode::Pae,
            () => PagingMode::Bits32,
        };
        let pdpte = std::array::from_fn(|i| memory.read::<u64>((cr3 & 0xffff_ffe0) + 8 * i as u64).unwrap_or(0));
        let root = if long { cr3 & ADDRESS } else { cr3 & 0xffff_f000 };
        View { mode, root, pdpte, pse: cr4.contains(Cr4::PSE), nested: Nested::None, a20: Gate::default() }
    }

    fn of_paging(p: &Paging, nested: Nested) -> View {
        View { mode: p.mode, root: p.root, pdpte: p.pdpte, pse: p.pse, nested, a20: Gate::default() }
    }

    /// Where a linear address leads; `None`: nowhere.
    pub fn linear(&self, memory: &GuestMemory, linear: u64) -> Option<Mapping> {
        let mut found = self.tables(memory, linear)?;
        let second = self.second(memory, found.physical)?;
        found.physical = second.physical;
        found.writable &= second.writable;
        found.executable &= second.executable;
        found.ept = second.ept;
        Some(found)
    }

    /// Through the second level, if there is one.
    pub fn second(&self, memory: &GuestMemory, physical: u64) -> Option<Mapping> {
        match &self.nested {
            Nested::None => Some(Mapping::direct(self.a20.pass(physical))),
            Nested::Ept(ept) => {
                let mut table = ept.root;
                let mut rights = 7;
                for level in (1..=ept.levels.clamp(1, 5)).rev() {
                    let shift = 12 + 9 * (level as u32 - 1);
                    let e = memory.read::<u64>(table + (physical >> shift & 0x1ff) * 8)?;
                    if e & 7 == 0 && e >> 10 & 1 == 0 {
                        return None;
                    }
                    rights &= e | (e >> 10 & 1) << 2;
                    if level == 1 || (level <= 3 && e >> 7 & 1 != 0) {
                        let low = (1u64 << shift) - 1;
                        return Some(Mapping {
                            physical: e & ADDRESS & !low | physical & low,
                            writable: rights & 2 != 0,
                            executable: rights & 4 != 0,
                            user: true,
                            pat: None,
                            ept: Some(((e >> 3 & 7) as u8, e >> 6 & 1 != 0)),
                        });
                    }
                    table = e & ADDRESS;
                }
                None
            }
            Nested::Npt(npt) => View::of_paging(&npt.paging, Nested::None).tables(memory, physical),
        }
    }

    fn tables(&self, memory: &GuestMemory, linear: u64) -> Option<Mapping> {
        let read = |at: u64| memory.read::<u64>(self.second(memory, at)?.physical);
        let mut out = Mapping::direct(linear);
        let (mut table, levels) = match self.mode {
            PagingMode::Off => return Some(out),
            PagingMode::Bits32 => return self.tables32(memory, linear),
            PagingMode::Pae => {
                let e = self.pdpte[(linear >> 30 & 3) as usize];
                if e & 1 == 0 {
                    return None;
                }
                (e & ADDRESS, 2)
            }
            PagingMode::Level4 => (self.root, 4),
            PagingMode::Level5 => (self.root, 5),
        };
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let e = read(table + (linear >> shift & 0x1ff) * 8)?;
            if e & 1 == 0 {
                return None;
            }
            out.writable &= e & 2 != 0;
            out.user &= e & 4 != 0;
            out.executable &= e >> 63 == 0;
            if level == 1 || (level <= 3 && e >> 7 & 1 != 0) {
                let low = (1u64 << shift) - 1;
                out.physical = e & ADDRESS & !low | linear & low;
                out.pat = pat_index(e, if level == 1 { 7 } else { 12 });
                return Some(out);
            }
            table = e & ADDRESS;
        }
        None
    }

    fn tables32(&self, memory: &GuestMemory, linear: u64) -> Option<Mapping> {
        let read = |at: u64| memory.read::<u32>(self.second(memory, at)?.physical).map(u64::from);
        let upper = read(self.root + (linear >> 22 & 0x3ff) * 4)?;
        if upper & 1 == 0 {
            return None;
        }
        if upper >> 7 & 1 != 0 && self.pse {
            let physical = upper & 0xffc0_0000 | (upper >> 13 & 0xff) << 32 | linear & 0x3f_ffff;
            let pat = pat_index(upper, 12);
            return Some(Mapping { writable: upper & 2 != 0, user: upper & 4 != 0, pat, ..Mapping::direct(physical) });
        }
        let e = read((upper & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4)?;
        let both = upper & e;
        (e & 1 != 0).then_some(Mapping {
            writable: both & 2 != 0,
            user: both & 4 != 0,
            pat: pat_index(e, 7),
            ..Mapping::direct(e & 0xffff_f000 | linear & 0xfff)
        })
    }

    /// Copy bytes at a linear address, as far as they are mapped RAM; returns how many.
    pub fn bytes(&self, memory: &GuestMemory, linear: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        while done < out.len() {
            let at = linear.wrapping_add(done as u64);
            let n = (out.len() - done).min(0x1000 - (at & 0xfff) as usize);
            let Some(found) = self.linear(memory, at) else { break };
            if memory.read_bytes(found.physical, &mut out[done..done + n]).is_err() {
                break;
            }
            done += n;
        }
        done
    }
}

impl Cpu {
    /// What translates the addresses of the level that runs.
    pub fn view(&self) -> View {
        let view = View::of_paging(self.translations.paging(), self.translations.nested);
        View { a20: self.translations.a20, ..view }
    }
}
