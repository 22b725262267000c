//! Permission maps (APM vol. 2, IOIO Intercept; MSR Intercepts).

use undervisor_mmu::GuestMemory;

/// Whether the I/O permission map intercepts an access of `size` bytes. The map covers one bit a port; an access
/// looks at the bits of all its bytes, which may run past port FFFFh into the third page.
pub fn io_intercepted(memory: &GuestMemory, map: u64, port: u16, size: u8) -> bool {
    let at = (map & !0xfff) + port as u64 / 8;
    let two = memory.read::<u8>(at).unwrap_or(0xff) as u16 | (memory.read::<u8>(at + 1).unwrap_or(0xff) as u16) << 8;
    let mask = (1u16 << size.min(4)) - 1;
    two >> (port % 8) & mask != 0
}

/// Bit of an MSR's read permission in the MSR permission map; the write permission is the next one. `None`: an MSR outside the
/// map, which always exits.
pub fn msr_bit(msr: u32) -> Option<u64> {
    let (base, first) = match msr {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, 0xc001_0000),
        _ => return None,
    };
    Some(base * 8 + 2 * (msr - first) as u64)
}

/// Whether the MSR permission map intercepts an access.
pub fn msr_intercepted(memory: &GuestMemory, map: u64, msr: u32, write: bool) -> bool {
    let Some(bit) = msr_bit(msr) else {
        return true;
    };
    let bit = bit + u64::from(write);
    memory.read::<u8>((map & !0xfff) + bit / 8).unwrap_or(0xff) >> (bit % 8) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let m = GuestMemory::new(1 << 16, 1 << 16, &[]).expect("a small guest memory");
        m.write::<u8>(0x1000 + 0x64 / 8, 1 << 4).expect("RAM");
        assert!(io_intercepted(&m, 0x1000, 0x64, 1));
        assert!(io_intercepted(&m, 0x1fff, 0x61, 4));
        assert!(!io_intercepted(&m, 0x1000, 0x60, 4));
        m.write::<u8>(0x3000, 1).expect("RAM");
        assert!(io_intercepted(&m, 0x1000, 0xffff, 2) && !io_intercepted(&m, 0x1000, 0xffff, 1));
        for (msr, byte, bit) in [(0x10u32, 4u64, 0u8), (0xc000_0080, 0x820, 0), (0xc001_0117, 0x1045, 6)] {
            m.write::<u8>(0x5000 + byte, 2 << bit).expect("RAM");
            assert!(msr_intercepted(&m, 0x5000, msr, true) && !msr_intercepted(&m, 0x5000, msr, false));
        }
        assert!(msr_intercepted(&m, 0x5000, 0x4000_0000, false));
    }
}
