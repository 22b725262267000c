//! I/O and MSR bitmaps (SDM vol. 3, I/O-Bitmap Addresses; MSR-Bitmap Address), and the VMREAD and VMWRITE bitmaps.

use crate::controls::primary;
use crate::fields::Field;
use crate::memory::Memory;
use crate::vmcs::Vmcs;

fn bit(memory: &dyn Memory, bitmap: u64, n: u64) -> bool {
    memory.read_u64(bitmap + (n / 64) * 8) >> (n % 64) & 1 != 0
}

/// Whether an access to `size` ports from `port` exits.
pub fn io_exits(v: &Vmcs, memory: &dyn Memory, port: u16, size: u8) -> bool {
    if !v.primary(primary::IO_BITMAPS) {
        return v.primary(primary::UNCONDITIONAL_IO_EXITING);
    }
    (0..size as u32).any(|i| {
        let p = port as u32 + i;
        // An access that wraps around exits.
        match p {
            0..=0x7fff => bit(memory, v.get(Field::IO_BITMAP_A), p as u64),
            0x8000..=0xffff => bit(memory, v.get(Field::IO_BITMAP_B), p as u64 - 0x8000),
            _ => true,
        }
    })
}

/// Whether RDMSR (or WRMSR) of an MSR exits.
pub fn msr_exits(v: &Vmcs, memory: &dyn Memory, msr: u32, write: bool) -> bool {
    if !v.primary(primary::MSR_BITMAPS) {
        return true;
    }
    let offset = match msr {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x400,
        _ => return true,
    };
    let quarter = offset + if write { 0x800 } else { 0 };
    bit(memory, v.get(Field::MSR_BITMAPS) + quarter, (msr & 0x1fff) as u64)
}

/// Whether VMREAD (or VMWRITE) of an encoding exits although VMCS shadowing is on.
pub fn shadow_exits(v: &Vmcs, memory: &dyn Memory, encoding: u64, write: bool) -> bool {
    encoding >> 15 != 0
        || bit(memory, v.get(if write { Field::VMWRITE_BITMAP } else { Field::VMREAD_BITMAP }), encoding & 0x7fff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Words;

    #[test]
    fn msr_quarters() {
        let m = Words::new(0x2000);
        let mut v = Vmcs::default();
        v.set(Field::PRIMARY_CONTROLS, primary::MSR_BITMAPS as u64);
        v.set(Field::MSR_BITMAPS, 0x1000);
        m.write_u64(0x1000 + 0xc00 + 16, 1); // write of 0xc0000080
        assert!(msr_exits(&v, &m, 0xc000_0080, true));
        assert!(!msr_exits(&v, &m, 0xc000_0080, false));
        assert!(msr_exits(&v, &m, 0x4000_0000, false));
    }

    #[test]
    fn ports_wrap() {
        let m = Words::new(0x3000);
        let mut v = Vmcs::default();
        v.set(Field::PRIMARY_CONTROLS, primary::IO_BITMAPS as u64);
        v.set(Field::IO_BITMAP_A, 0x1000);
        v.set(Field::IO_BITMAP_B, 0x2000);
        m.write_u64(0x1000, 1 << 3);
        assert!(io_exits(&v, &m, 0, 4));
        assert!(!io_exits(&v, &m, 0, 2));
        assert!(!io_exits(&v, &m, 0xffff, 1));
        assert!(io_exits(&v, &m, 0xffff, 2));
    }
}
