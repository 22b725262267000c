//! The type of the memory behind a linear address: nothing here caches, but bus locks depend on it (SDM vol. 3, Memory Type Range
//! Registers (MTRRs); Page Attribute Table (PAT); EPT and Memory Typing).

use undervisor_core::Cr0;

use crate::cpu::Cpu;

const UNCACHEABLE: u8 = 0;
const WRITE_THROUGH: u8 = 4;
const WRITE_BACK: u8 = 6;

/// IA32_MTRR_DEF_TYPE.
const ENABLED: u64 = 1 << 11;
const FIXED_ENABLED: u64 = 1 << 10;
/// IA32_MTRR_PHYSMASKn.
const VALID: u64 = 1 << 11;

impl Cpu {
    /// Whether a locked access to `linear`, which has just been accessed, can be done in a cache: its memory is write-back.
    pub(crate) fn is_write_back(&self, linear: u64) -> bool {
        if self.state.cr0.contains(Cr0::CD) {
            return false;
        }
        let Some(found) = self.view().linear(&self.shared.memory, linear) else { return false };
        // Without paging the PAT is not looked at.
        let pat = found.pat.map_or(WRITE_BACK, |index| (self.state.msrs.pat >> (8 * index)) as u8 & 7);
        match found.ept {
            // "Ignore PAT".
            Some((kind, true)) => kind == WRITE_BACK,
            Some((kind, false)) => kind == WRITE_BACK && pat == WRITE_BACK,
            None => pat == WRITE_BACK && self.mtrr_type(found.physical) == WRITE_BACK,
        }
    }

    /// The memory type that the MTRRs give to a physical address (SDM vol. 3, MTRR Precedences).
    fn mtrr_type(&self, physical: u64) -> u8 {
        let m = &self.state.msrs;
        if m.mtrr_def_type & ENABLED == 0 {
            return UNCACHEABLE;
        }
        if physical < 1 << 20 && m.mtrr_def_type & FIXED_ENABLED != 0 {
            // Eight bytes a register: 64 KiB each to 512 KiB, 16 KiB to 768 KiB, 4 KiB to 1 MiB.
            let (register, shift) = match physical >> 16 {
                0..8 => (0, 16),
                8..12 => (1 + (physical as usize - 0x8_0000) / 0x2_0000, 14),
                _ => (3 + (physical as usize - 0xc_0000) / 0x8000, 12),
            };
            return (m.mtrr_fixed.get(register).unwrap_or(&0) >> (8 * (physical >> shift & 7))) as u8;
        }
        let hits = m.mtrr_variable.iter().filter(|[base, mask]| {
            let mask = mask & !0xfff & u64::MAX >> (64 - self.physical_bits());
            mask & physical == mask & base
        });
        let kinds: Vec<u8> = hits.filter(|[_, mask]| mask & VALID != 0).map(|[base, _]| *base as u8).collect();
        match kinds.as_slice() {
            [] => m.mtrr_def_type as u8,
            [first, rest @ ..] if rest.iter().all(|kind| kind == first) => *first,
            _ if kinds.iter().all(|kind| matches!(*kind, WRITE_THROUGH | WRITE_BACK)) => WRITE_THROUGH,
            // Uncacheable memory prevails; other overlaps are undefined.
            _ => UNCACHEABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::processor;

    #[test]
    fn ranges() {
        let mut c = processor(64);
        let kinds = |c: &crate::cpu::Cpu, at: &[u64]| at.iter().map(|&a| c.mtrr_type(a)).collect::<Vec<_>>();
        c.state.msrs.mtrr_def_type = 0;
        assert_eq!(kinds(&c, &[0, 1 << 30]), [0, 0]);
        c.state.msrs.mtrr_def_type = 0xc06;
        c.state.msrs.mtrr_fixed = [0x0606_0606_0606_0606; 11];
        // A000H–BFFFH uncacheable, and the last 4 KiB of the first MiB write-protected.
        c.state.msrs.mtrr_fixed[2] = 0;
        c.state.msrs.mtrr_fixed[10] = 0x0506_0606_0606_0606;
        assert_eq!(
            kinds(&c, &[0, 0x7_ffff, 0x9_ffff, 0xa_0000, 0xb_ffff, 0xc_0000, 0xf_ffff, 0x10_0000]),
            [6, 6, 6, 0, 0, 6, 5, 6]
        );
        // 3 to 4 GiB uncacheable; within it 16 MiB write-back, which does not prevail; 1 GiB twice.
        c.state.msrs.mtrr_variable[0] = [0xc000_0000, 0x3f_c000_0800];
        c.state.msrs.mtrr_variable[1] = [0xd000_0006, 0x3f_ff00_0800];
        c.state.msrs.mtrr_variable[2] = [0x4000_0004, 0x3f_c000_0800];
        c.state.msrs.mtrr_variable[3] = [0x4000_0006, 0x3f_c000_0800];
        assert_eq!(kinds(&c, &[0xbfff_ffff, 0xc000_0000, 0xd000_0000, 1 << 32, 0x4000_0000]), [6, 0, 0, 6, 4]);
    }
}
