//! Extended page tables (SDM vol. 3, VMX Support for Address Translation: The Extended Page Table Mechanism).

use crate::memory::GuestMemory;
use crate::walk::{PhysicalSpace, bits, read_entry, update_entry};

/// Permission bits of an EPT entry, in entry position.
pub mod right {
    pub const READ: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    /// Execute; with mode-based execute control: for supervisor-mode linear addresses.
    pub const EXECUTE: u64 = 1 << 2;
    /// With mode-based execute control: execute for user-mode linear addresses.
    pub const EXECUTE_USER: u64 = 1 << 10;
    pub const ALL: u64 = READ | WRITE | EXECUTE | EXECUTE_USER;
}

const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const SUPPRESS_VE: u64 = 1 << 63;

/// The page-modification log (SDM vol. 3, Page-Modification Logging).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pml {
    pub address: u64,
    pub index: u16,
}

/// What governs a translation through EPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ept {
    /// Physical address of the first table.
    pub root: u64,
    /// 4 or 5.
    pub levels: u8,
    /// EPTP bit 6: accessed and dirty flags for EPT.
    pub accessed_dirty: bool,
    /// The mode-based execute control for EPT is on.
    pub mode_based_execute: bool,
    /// The processor supports execute-only translations.
    pub execute_only: bool,
    pub gigabyte_pages: bool,
    pub physical_bits: u8,
    /// Page-modification logging, if on. The walker moves the index.
    pub pml: Option<Pml>,
}

/// An access to be translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EptRequest {
    pub address: u64,
    pub read: bool,
    pub write: bool,
    pub fetch: bool,
    /// The linear address is a user-mode one (only looked at for fetches under mode-based execute control).
    pub user: bool,
}

/// A translation by EPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptTranslation {
    pub physical: u64,
    /// AND of the entries' permissions; see [`right`].
    pub rights: u64,
    /// A write would not have to set a dirty flag.
    pub dirty: bool,
    pub page_bits: u8,
    /// Bits 5:3 of the leaf.
    pub memory_type: u8,
}

/// Why EPT did not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptFault {
    Misconfiguration,
    /// `rights`: AND of the permissions of the entries used (0 if one is not present). `convertible`: bit 63 of the entry that
    /// decided was 0, so that the violation may become a #VE.
    Violation {
        rights: u64,
        convertible: bool,
    },
    /// The page-modification log has no room; nothing was changed.
    LogFull,
}

impl Ept {
    /// Whether an entry is present but not allowed (SDM vol. 3, EPT Misconfigurations).
    fn misconfigured(&self, e: u64, level: u8, page: bool) -> bool {
        let execute = right::EXECUTE | if self.mode_based_execute { right::EXECUTE_USER } else { 0 };
        if e & right::READ == 0 && (e & right::WRITE != 0 || (e & execute != 0 && !self.execute_only)) {
            return true;
        }
        let mut reserved = bits(self.physical_bits as u32, 51);
        if page {
            reserved |= match level {
                3 if !self.gigabyte_pages => LARGE,
                3 => bits(12, 29),
                2 => bits(12, 20),
                _ => 0,
            };
            if matches!(e >> 3 & 7, 2 | 3 | 7) {
                return true;
            }
        } else {
            reserved |= if level >= 4 { bits(3, 7) } else { bits(3, 6) };
        }
        e & reserved != 0
    }

    /// Translate a guest-physical address. Sets accessed and dirty flags only if the access is allowed.
    pub fn translate(&mut self, memory: &GuestMemory, wrote: &dyn Fn(u64), r: &EptRequest) -> Result<EptTranslation, EptFault> {
        let present =
            right::READ | right::WRITE | right::EXECUTE | if self.mode_based_execute { right::EXECUTE_USER } else { 0 };
        let mut visited = [(0u64, 0u64); 6];
        let mut rights = right::ALL;
        let mut table = self.root;
        let mut level = self.levels.clamp(4, 5);
        let top = level as usize;
        // Guest-physical addresses beyond what the tables can name (SDM vol. 3, EPT Overview).
        let address = r.address & bits(0, if level == 5 { 56 } else { 47 });
        if address != r.address {
            return Err(EptFault::Violation { rights: 0, convertible: true });
        }
        let leaf = loop {
            let at = table + (address >> (3 + 9 * level as u32) & 511) * 8;
            let e = read_entry(memory, at, 8);
            if e & present == 0 {
                return Err(EptFault::Violation { rights: 0, convertible: e & SUPPRESS_VE == 0 });
            }
            let page = level == 1 || (level <= 3 && e & LARGE != 0);
            if self.misconfigured(e, level, page) {
                return Err(EptFault::Misconfiguration);
            }
            rights &= e;
            visited[level as usize] = (at, e);
            if page {
                break e;
            }
            table = e & bits(12, 51);
            level -= 1;
        };
        let mut need = 0;
        if r.read {
            need |= right::READ;
        }
        if r.write {
            need |= right::WRITE;
        }
        if r.fetch {
            need |= if self.mode_based_execute && r.user { right::EXECUTE_USER } else { right::EXECUTE };
        }
        if rights & need != need {
            return Err(EptFault::Violation { rights, convertible: leaf & SUPPRESS_VE == 0 });
        }
        let mut dirty = !self.accessed_dirty || leaf & DIRTY != 0;
        if self.accessed_dirty {
            let used = &visited[level as usize..=top];
            if let Some(pml) = &self.pml
                && pml.index > 511
                && (used.iter().any(|(_, e)| e & ACCESSED == 0) || r.write && leaf & DIRTY == 0)
            {
                // SDM vol. 3, Page-Modification Logging: it is enough that an accessed flag would have to be set.
                return Err(EptFault::LogFull);
            }
            if r.write && leaf & DIRTY == 0 {
                if let Some(pml) = &mut self.pml {
                    let at = (pml.address & !0xfff) + pml.index as u64 * 8;
                    if memory.write::<u64>(at, address & !0xfff).is_some() {
                        wrote(at);
                    }
                    pml.index = pml.index.wrapping_sub(1);
                }
                dirty = true;
            }
            for l in (level as usize..=top).rev() {
                let (at, e) = visited[l];
                let want = if l == level as usize && r.write { ACCESSED | DIRTY } else { ACCESSED };
                if e & want != want {
                    update_entry(memory, wrote, at, 8, e, e | want);
                }
            }
        }
        let page_bits = 3 + 9 * level as u32;
        let offset = (1u64 << page_bits) - 1;
        Ok(EptTranslation {
            physical: leaf & bits(12, 51) & !offset | address & offset,
            rights,
            dirty,
            page_bits: page_bits as u8,
            memory_type: (leaf >> 3 & 7) as u8,
        })
    }
}

/// An EPT fault with what the exit must report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptExit {
    pub fault: EptFault,
    pub request: EptRequest,
    /// The access was to a guest paging-structure entry, not to the page behind the linear address.
    pub table: bool,
}

/// A guest's physical memory under EPT, for the guest's page walks.
pub struct UnderEpt<'a> {
    pub memory: &'a GuestMemory,
    pub wrote: &'a dyn Fn(u64),
    pub ept: &'a mut Ept,
}

impl UnderEpt<'_> {
    fn reach(&mut self, address: u64, write: bool) -> Result<u64, EptExit> {
        // With accessed and dirty flags for EPT on, accesses to guest paging-structure entries are treated as writes
        // (SDM vol. 3, Accessed and Dirty Flags for EPT).
        let request = EptRequest { address, read: true, write: write || self.ept.accessed_dirty, fetch: false, user: false };
        match self.ept.translate(self.memory, self.wrote, &request) {
            Ok(t) => Ok(t.physical),
            Err(fault) => Err(EptExit { fault, request, table: true }),
        }
    }
}

impl PhysicalSpace for UnderEpt<'_> {
    type Fault = EptExit;
    fn locate(&mut self, address: u64) -> Result<u64, EptExit> {
        self.reach(address, false)
    }
    fn read(&self, physical: u64, size: usize) -> u64 {
        read_entry(self.memory, physical, size)
    }
    fn update(&mut self, address: u64, physical: u64, size: usize, old: u64, new: u64) -> Result<bool, EptExit> {
        self.reach(address, true)?;
        Ok(update_entry(self.memory, self.wrote, physical, size, old, new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        let m = GuestMemory::new(1 << 20, 1 << 20, &[]).expect("a small guest memory");
        for (at, e) in [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4028, 0x9037)] {
            m.write::<u64>(at, e).expect("RAM");
        }
        m
    }

    const EPT: Ept = Ept {
        root: 0x1000,
        levels: 4,
        accessed_dirty: false,
        mode_based_execute: false,
        execute_only: true,
        gigabyte_pages: true,
        physical_bits: 40,
        pml: None,
    };
    const READ: EptRequest = EptRequest { address: 0x5123, read: true, write: false, fetch: false, user: false };
    const WRITE: EptRequest = EptRequest { read: false, write: true, ..READ };
    const FETCH: EptRequest = EptRequest { read: false, fetch: true, ..READ };

    fn go(m: &GuestMemory, e: Ept, r: &EptRequest) -> Result<u64, EptFault> {
        let mut e = e;
        e.translate(m, &|_| {}, r).map(|t| t.physical)
    }

    #[test]
    fn rights_and_misconfigurations() {
        let m = memory();
        assert_eq!(go(&m, EPT, &WRITE), Ok(0x9123));
        let leaf = |e: u64| m.write::<u64>(0x4028, e).expect("RAM");
        let violation = |rights, convertible| Err(EptFault::Violation { rights, convertible });
        leaf(0x9031);
        assert_eq!(go(&m, EPT, &WRITE), violation(1, true));
        assert_eq!(go(&m, EPT, &FETCH), violation(1, true));
        leaf(0x9031 | SUPPRESS_VE);
        assert_eq!(go(&m, EPT, &WRITE), violation(1, false));
        leaf(0x9034);
        assert_eq!(go(&m, EPT, &FETCH), Ok(0x9123));
        assert_eq!(go(&m, EPT, &READ), violation(4, true));
        assert_eq!(go(&m, Ept { execute_only: false, ..EPT }, &FETCH), Err(EptFault::Misconfiguration));
        leaf(0);
        assert_eq!(go(&m, EPT, &READ), violation(0, true));
        leaf(SUPPRESS_VE);
        assert_eq!(go(&m, EPT, &READ), violation(0, false));
        for e in [0x9032, 0x9036, 0x9017, 0x901f, 0x903f, 0x9037 | 1 << 40] {
            leaf(e);
            assert_eq!(go(&m, EPT, &READ), Err(EptFault::Misconfiguration), "{e:#x}");
        }
        leaf(0x9037);
        for (at, e) in [(0x1000, 0x200f), (0x1000, 0x2087), (0x3000, 0x4047), (0x3000, 0x60_1087), (0x2000, 0x4000_10b7)] {
            let old = m.read::<u64>(at).expect("RAM");
            m.write::<u64>(at, e).expect("RAM");
            assert_eq!(go(&m, EPT, &READ), Err(EptFault::Misconfiguration), "{e:#x}");
            m.write::<u64>(at, old).expect("RAM");
        }
        let user = EptRequest { user: true, ..FETCH };
        let mbe = Ept { mode_based_execute: true, ..EPT };
        assert_eq!(go(&m, mbe, &FETCH), Ok(0x9123));
        assert_eq!(go(&m, mbe, &user), violation(7, true));
    }

    #[test]
    fn accessed_dirty_and_log() {
        let m = memory();
        let mut e = Ept { accessed_dirty: true, pml: Some(Pml { address: 0x8000, index: 1 }), ..EPT };
        assert!(e.translate(&m, &|_| {}, &READ).is_ok());
        assert_eq!(m.read::<u64>(0x4028), Some(0x9137));
        assert_eq!(m.read::<u64>(0x1000), Some(0x2107));
        assert!(e.translate(&m, &|_| {}, &WRITE).is_ok());
        assert_eq!(m.read::<u64>(0x4028), Some(0x9337));
        assert_eq!((m.read::<u64>(0x8008), e.pml.map(|p| p.index)), (Some(0x5000), Some(0)));
        m.write::<u64>(0x4028, 0x9037).expect("RAM");
        e.pml = Some(Pml { address: 0x8000, index: 0xffff });
        assert_eq!(e.translate(&m, &|_| {}, &WRITE), Err(EptFault::LogFull));
        // A read that would set an accessed flag finds the log full too; one that need not does not.
        assert_eq!(e.translate(&m, &|_| {}, &READ), Err(EptFault::LogFull));
        assert_eq!(m.read::<u64>(0x4028), Some(0x9037));
        m.write::<u64>(0x4028, 0x9137).expect("RAM");
        assert!(e.translate(&m, &|_| {}, &READ).is_ok());
    }
}
