//! QEMU's firmware configuration device: what firmware and test kernels ask about the machine (QEMU documentation,
//! Firmware Configuration Device). Selector port 0x510, data port 0x511, DMA ports 0x514 and 0x518.

use crate::wiring::{DmaExt, DmaMemory};

/// Well-known selectors.
pub mod key {
    pub const SIGNATURE: u16 = 0;
    pub const ID: u16 = 1;
    pub const UUID: u16 = 2;
    pub const RAM_SIZE: u16 = 3;
    pub const NOGRAPHIC: u16 = 4;
    pub const NB_CPUS: u16 = 5;
    pub const KERNEL_ADDR: u16 = 7;
    pub const KERNEL_SIZE: u16 = 8;
    pub const INITRD_ADDR: u16 = 0xa;
    pub const INITRD_SIZE: u16 = 0xb;
    pub const BOOT_DEVICE: u16 = 0xc;
    pub const NUMA: u16 = 0xd;
    pub const BOOT_MENU: u16 = 0xe;
    pub const MAX_CPUS: u16 = 0xf;
    pub const KERNEL_ENTRY: u16 = 0x10;
    pub const KERNEL_DATA: u16 = 0x11;
    pub const INITRD_DATA: u16 = 0x12;
    pub const CMDLINE_ADDR: u16 = 0x13;
    pub const CMDLINE_SIZE: u16 = 0x14;
    pub const CMDLINE_DATA: u16 = 0x15;
    pub const SETUP_ADDR: u16 = 0x16;
    pub const SETUP_SIZE: u16 = 0x17;
    pub const SETUP_DATA: u16 = 0x18;
    pub const FILE_DIR: u16 = 0x19;
    /// First file.
    pub const FILES: u16 = 0x20;
    pub const ACPI_TABLES: u16 = 0x8000;
    pub const SMBIOS: u16 = 0x8001;
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
    pub const E820: u16 = 0x8003;
}

/// First port.
pub const PORT: u16 = 0x510;

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;
/// What the DMA address register reads.
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;

/// The device.
pub struct FwCfg {
    memory: DmaMemory,
    /// Sorted by key.
    items: Vec<(u16, Vec<u8>)>,
    files: Vec<(String, u16, u32)>,
    selected: u16,
    offset: usize,
    dma_high: u32,
}

impl FwCfg {
    /// With the entries that every guest may ask for.
    pub fn new(memory: DmaMemory, ram_size: u64, cpus: u16) -> FwCfg {
        let mut f = FwCfg { memory, items: Vec::new(), files: Vec::new(), selected: 0, offset: 0, dma_high: 0 };
        f.set(key::SIGNATURE, b"QEMU".to_vec());
        f.set(key::ID, 3u32.to_le_bytes().to_vec());
        f.set(key::UUID, vec![0; 16]);
        f.set(key::RAM_SIZE, ram_size.to_le_bytes().to_vec());
        f.set(key::NOGRAPHIC, 1u16.to_le_bytes().to_vec());
        f.set(key::NB_CPUS, cpus.to_le_bytes().to_vec());
        f.set(key::MAX_CPUS, cpus.to_le_bytes().to_vec());
        f.set(key::BOOT_DEVICE, b"c\0".to_vec());
        f.set(key::BOOT_MENU, vec![0; 2]);
        // No NUMA nodes; then one word a processor.
        f.set(key::NUMA, vec![0; 8 + 8 * cpus as usize]);
        f.set(key::IRQ0_OVERRIDE, 1u32.to_le_bytes().to_vec());
        f.update_directory();
        f
    }

    /// Set what a selector reads.
    pub fn set(&mut self, key: u16, data: Vec<u8>) {
        match self.items.binary_search_by_key(&key, |i| i.0) {
            Ok(i) => self.items[i].1 = data,
            Err(i) => self.items.insert(i, (key, data)),
        }
    }

    /// Add or replace a file (names longer than 55 bytes are cut).
    pub fn add_file(&mut self, name: &str, data: Vec<u8>) {
        let size = data.len() as u32;
        let name: String = name.chars().take(55).collect();
        let select = match self.files.iter_mut().find(|f| f.0 == name) {
            Some(f) => {
                f.2 = size;
                f.1
            }
            None => {
                let select = key::FILES + self.files.len() as u16;
                self.files.push((name, select, size));
                select
            }
        };
        self.set(select, data);
        self.update_directory();
    }

    fn update_directory(&mut self) {
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort();
        let mut d = (files.len() as u32).to_be_bytes().to_vec();
        for (name, select, size) in files {
            d.extend(size.to_be_bytes());
            d.extend(select.to_be_bytes());
            d.extend([0; 2]);
            let mut field = [0; 56];
            field[..name.len().min(55)].copy_from_slice(&name.as_bytes()[..name.len().min(55)]);
            d.extend(field);
        }
        self.set(key::FILE_DIR, d);
    }

    fn item(&self) -> &[u8] {
        match self.items.binary_search_by_key(&self.selected, |i| i.0) {
            Ok(i) => &self.items[i].1,
            Err(_) => &[],
        }
    }

    pub fn reset(&mut self) {
        (self.selected, self.offset, self.dma_high) = (0, 0, 0);
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.item().get(self.offset).copied().unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }

    /// Read a port of 0x510–0x51b.
    pub fn read(&mut self, port: u16, size: usize) -> u32 {
        match port - PORT {
            // A wider read of the data port is a string of bytes, the first one lowest.
            1 => (0..size).fold(0, |v, i| v | (self.next_byte() as u32) << (8 * i)),
            0 => self.selected as u32,
            n @ 4..12 => {
                let bytes = DMA_SIGNATURE.to_be_bytes();
                (0..size).fold(0, |v, i| v | (bytes.get(n as usize - 4 + i).copied().unwrap_or(0) as u32) << (8 * i))
            }
            _ => 0,
        }
    }

    pub fn write(&mut self, port: u16, size: usize, value: u32) {
        match (port - PORT, size) {
            (0, 2) => {
                self.selected = value as u16;
                self.offset = 0;
            }
            (4, 4) => self.dma_high = value.swap_bytes(),
            (8, 4) => {
                let address = (std::mem::take(&mut self.dma_high) as u64) << 32 | value.swap_bytes() as u64;
                self.dma(address);
            }
            _ => {}
        }
    }

    /// Carry out the DMA command at `address`; its control word becomes 0, or the error bit.
    fn dma(&mut self, address: u64) {
        let mut command = [0; 16];
        if self.memory.read(address, &mut command).is_err() {
            return;
        }
        let word = |at: usize| u32::from_be_bytes([command[at], command[at + 1], command[at + 2], command[at + 3]]);
        let (control, length) = (word(0), word(4));
        let target = (word(8) as u64) << 32 | word(12) as u64;
        if control & DMA_SELECT != 0 {
            self.selected = (control >> 16) as u16;
            self.offset = 0;
        }
        let done = if control & DMA_READ != 0 {
            self.dma_read(target, length as u64)
        } else {
            // Nothing here may be written.
            control & DMA_WRITE == 0
        };
        if control & (DMA_READ | DMA_SKIP) != 0 {
            self.offset = self.offset.saturating_add(length as usize);
        }
        let result = if done { 0 } else { DMA_ERROR };
        let _ = self.memory.write_u32(address, result.swap_bytes());
    }

    /// Copy the selected item from the current offset; past its end, zeros.
    fn dma_read(&self, target: u64, length: u64) -> bool {
        let item = self.item().get(self.offset..).unwrap_or(&[]);
        let have = (item.len() as u64).min(length);
        if self.memory.write(target, &item[..have as usize]).is_err() {
            return false;
        }
        let zeros = [0; 4096];
        let mut at = have;
        while at < length {
            let n = (length - at).min(zeros.len() as u64);
            if self.memory.write(target.wrapping_add(at), &zeros[..n as usize]).is_err() {
                return false;
            }
            at += n;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::{Dma, TestMemory};

    fn by_port(f: &mut FwCfg, key: u16, n: usize) -> Vec<u8> {
        f.write(0x510, 2, key as u32);
        (0..n).map(|_| f.read(0x511, 1) as u8).collect()
    }

    #[test]
    fn signature_sizes_and_past_the_end() {
        let mut f = FwCfg::new(TestMemory::new(0), 1 << 30, 3);
        assert_eq!(by_port(&mut f, key::SIGNATURE, 6), b"QEMU\0\0");
        assert_eq!(by_port(&mut f, key::NB_CPUS, 2), [3, 0]);
        assert_eq!(by_port(&mut f, key::RAM_SIZE, 8), (1u64 << 30).to_le_bytes());
        assert_eq!(by_port(&mut f, 0x7777, 2), [0, 0]);
    }

    #[test]
    fn files_are_listed_and_read() {
        let mut f = FwCfg::new(TestMemory::new(0), 1 << 20, 1);
        f.add_file("etc/b", b"hello".to_vec());
        f.add_file("etc/a", b"x".to_vec());
        let d = by_port(&mut f, key::FILE_DIR, 4 + 2 * 64);
        assert_eq!(d[..4], [0, 0, 0, 2]);
        assert_eq!(&d[12..17], b"etc/a");
        assert_eq!(d[68..72], [0, 0, 0, 5]);
        let select = u16::from_be_bytes([d[72], d[73]]);
        assert_eq!(by_port(&mut f, select, 5), b"hello");
    }

    #[test]
    fn dma_reads_with_select() {
        let m = TestMemory::new(4096);
        let mut f = FwCfg::new(m.clone(), 1 << 20, 1);
        assert_eq!(f.read(0x514, 4), u32::from_le_bytes(*b"QEMU"));
        let control = (key::SIGNATURE as u32) << 16 | DMA_SELECT | DMA_READ;
        let mut command = control.to_be_bytes().to_vec();
        command.extend(6u32.to_be_bytes());
        command.extend(0x200u64.to_be_bytes());
        m.write(0x100, &command).unwrap();
        m.write(0x200, &[9; 8]).unwrap();
        f.write(0x514, 4, 0);
        f.write(0x518, 4, 0x100u32.swap_bytes());
        let mut out = [0; 8];
        m.read(0x200, &mut out).unwrap();
        assert_eq!(&out, b"QEMU\0\0\x09\x09");
        assert_eq!(m.read_u32(0x100), Ok(0));
    }

    #[test]
    fn dma_outside_memory_reports_an_error_and_ends() {
        let m = TestMemory::new(4096);
        let mut f = FwCfg::new(m.clone(), 1 << 20, 1);
        let mut command = (DMA_SELECT | DMA_READ).to_be_bytes().to_vec();
        command.extend(u32::MAX.to_be_bytes());
        command.extend(0x200u64.to_be_bytes());
        m.write(0x100, &command).unwrap();
        f.write(0x518, 4, 0x100u32.swap_bytes());
        assert_eq!(m.read_u32(0x100), Ok(DMA_ERROR.swap_bytes()));
    }
}
