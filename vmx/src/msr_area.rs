//! MSR areas (SDM vol. 3, Loading MSRs; Saving MSRs). The processor's own RDMSR and WRMSR do the work; here stand the
//! walk and the extra rules.

use undervisor_core::msr;

use crate::capabilities::MSR_AREA_LIMIT;
use crate::memory::Memory;

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: u32,
    pub reserved: u32,
    pub value: u64,
}

/// Entry `n` of an area.
pub fn entry(memory: &dyn Memory, area: u64, n: u32) -> Entry {
    let first = memory.read_u64(area + 16 * n as u64);
    Entry { index: first as u32, reserved: (first >> 32) as u32, value: memory.read_u64(area + 16 * n as u64 + 8) }
}

/// Whether an entry may be loaded, as far as areas have rules of their own.
pub fn loadable(e: &Entry) -> bool {
    e.reserved == 0
        && !matches!(e.index, msr::IA32_FS_BASE | msr::IA32_GS_BASE | msr::IA32_BIOS_UPDT_TRIG | 0x9b)
        && e.index >> 8 != 8
}

/// Whether an entry may be stored.
pub fn storable(e: &Entry) -> bool {
    e.reserved == 0 && e.index >> 8 != 8 && e.index != 0x9e
}

/// Load `count` entries. `Err(n)`: entry n (from 1) cannot be loaded. More entries than IA32_VMX_MISC recommends fail: behaviour is
/// undefined then, and the host must not loop for as long as a guest likes.
pub fn load(memory: &dyn Memory, area: u64, count: u32, mut write: impl FnMut(u32, u64) -> bool) -> Result<(), u32> {
    for n in 0..count {
        let e = entry(memory, area, n);
        if n >= MSR_AREA_LIMIT || !loadable(&e) || !write(e.index, e.value) {
            return Err(n + 1);
        }
    }
    Ok(())
}

/// Store `count` entries. `Err(n)`: entry n (from 1) cannot be stored.
pub fn store(memory: &dyn Memory, area: u64, count: u32, mut read: impl FnMut(u32) -> Option<u64>) -> Result<(), u32> {
    for n in 0..count {
        let e = entry(memory, area, n);
        match if n < MSR_AREA_LIMIT && storable(&e) { read(e.index) } else { None } {
            Some(value) => memory.write_u64(area + 16 * n as u64 + 8, value),
            None => return Err(n + 1),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Words;

    #[test]
    fn the_failing_entry_is_named() {
        let m = Words::new(4096);
        for n in 0..3u64 {
            m.write_u64(16 * n, 0x174 + n);
            m.write_u64(16 * n + 8, n);
        }
        assert_eq!(load(&m, 0, 3, |_, _| true), Ok(()));
        assert_eq!(load(&m, 0, 3, |i, _| i != 0x175), Err(2));
        m.write_u64(32, msr::IA32_FS_BASE as u64);
        assert_eq!(load(&m, 0, 3, |_, _| true), Err(3));
        assert_eq!(store(&m, 0, 3, |i| Some(i as u64 * 2)), Ok(()));
        assert_eq!(m.read_u64(8), 0x174 * 2);
    }
}
