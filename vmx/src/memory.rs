//! Guest-physical memory as VMX structures see it.

/// Guest-physical memory. What is not RAM reads as ones and swallows writes; accesses are naturally aligned.
pub trait Memory {
    fn read_u64(&self, address: u64) -> u64;
    fn write_u64(&self, address: u64, value: u64);
    fn read_u32(&self, address: u64) -> u32 {
        (self.read_u64(address & !7) >> (8 * (address & 4))) as u32
    }
    fn write_u32(&self, address: u64, value: u32) {
        let shift = 8 * (address & 4);
        let old = self.read_u64(address & !7) & !(0xffff_ffff << shift);
        self.write_u64(address & !7, old | (value as u64) << shift);
    }
    fn read_u8(&self, address: u64) -> u8 {
        (self.read_u64(address & !7) >> (8 * (address & 7))) as u8
    }
    fn read_u16(&self, address: u64) -> u16 {
        (self.read_u64(address & !7) >> (8 * (address & 6))) as u16
    }
    fn write_u16(&self, address: u64, value: u16) {
        let shift = 8 * (address & 6);
        let old = self.read_u64(address & !7) & !(0xffff << shift);
        self.write_u64(address & !7, old | (value as u64) << shift);
    }
}

/// A small memory for tests and fuzzing: `N` words from address 0.
pub struct Words(pub Vec<std::cell::Cell<u64>>);

impl Words {
    pub fn new(bytes: usize) -> Words {
        Words(vec![std::cell::Cell::new(0); bytes / 8])
    }
}

impl Memory for Words {
    fn read_u64(&self, address: u64) -> u64 {
        usize::try_from(address / 8).ok().and_then(|i| self.0.get(i)).map_or(u64::MAX, |c| c.get())
    }
    fn write_u64(&self, address: u64, value: u64) {
        if let Some(c) = usize::try_from(address / 8).ok().and_then(|i| self.0.get(i)) {
            c.set(value);
        }
    }
}
