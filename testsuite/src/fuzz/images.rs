//! Files: kernels of every format, and disk images.

use undervisor_devices::disk::{self, Disk};
use undervisor_machine::{Image, Kernel, MachineConfig};

use super::machine::Impatient;

/// Load it as whatever kernel it looks like, and run what came of it a little.
pub fn kernel(data: &[u8]) {
    let kernel = Kernel {
        image: Image::new("fuzz", data.to_vec()),
        command_line: "console=ttyS0".into(),
        initrd: Some(Image::new("initrd", vec![7; 100])),
        ..Kernel::default()
    };
    if let Ok(mut machine) = MachineConfig::new().memory(16 << 20).kernel(kernel).instruction_limit(2_000).build() {
        machine.run_until(100_000, &mut Impatient(20));
    }
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) {
    data[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The boot protocol's header (Documentation/arch/x86/boot.rst) before some code.
pub fn bzimages() -> Vec<Vec<u8>> {
    let make = |version: u16, flags: u16| {
        let mut d = vec![0x90; 0x2000];
        d[0x1f1] = 4;
        put(&mut d, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
        put(&mut d, 0x202, b"HdrS");
        put(&mut d, 0x206, &version.to_le_bytes());
        d[0x211] = 1;
        put(&mut d, 0x214, &0x10_0000u32.to_le_bytes());
        put(&mut d, 0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(&mut d, 0x230, &0x20_0000u32.to_le_bytes());
        d[0x234] = 1;
        put(&mut d, 0x236, &flags.to_le_bytes());
        put(&mut d, 0x238, &2047u32.to_le_bytes());
        put(&mut d, 0x258, &0x10_0000u64.to_le_bytes());
        put(&mut d, 0x260, &0x10_0000u32.to_le_bytes());
        d
    };
    vec![make(0x20f, 3), make(0x20c, 1), make(0x206, 0)]
}

fn multiboot_header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, sum].iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Flat images with address fields.
pub fn multiboots() -> Vec<Vec<u8>> {
    let mut d = multiboot_header(1 << 16 | 3);
    for word in [0x10_0000u32, 0x10_0000, 0x10_0200, 0x10_1000, 0x10_0020] {
        d.extend(word.to_le_bytes());
    }
    d.resize(0x200, 0x90);
    vec![d]
}

/// 32- and 64-bit executables with one segment, a multiboot header or a PVH note in it.
pub fn elves() -> Vec<Vec<u8>> {
    let make = |wide: bool, pvh: bool| {
        let mut d = vec![0x90u8; 0x300];
        d[..0x200].fill(0);
        put(&mut d, 0, &[0x7f, b'E', b'L', b'F', 1 + u8::from(wide), 1, 1]);
        put(&mut d, 16, &[2, 0, if wide { 62 } else { 3 }, 0, 1, 0, 0, 0]);
        let count = 1 + u16::from(pvh);
        if wide {
            put(&mut d, 24, &0x10_0000u64.to_le_bytes());
            put(&mut d, 32, &64u64.to_le_bytes());
            put(&mut d, 52, &[64, 0, 56, 0]);
            put(&mut d, 56, &count.to_le_bytes());
            for (n, (kind, offset, at, size)) in
                [(1u32, 0x200u64, 0x10_0000u64, 0x100u64), (4, 0x1c0, 0, 24)].into_iter().enumerate()
            {
                let row = 64 + 56 * n;
                put(&mut d, row, &kind.to_le_bytes());
                put(&mut d, row + 4, &7u32.to_le_bytes());
                [(8, offset), (16, at), (24, at), (32, size), (40, size + 64)]
                    .iter()
                    .for_each(|(o, v)| put(&mut d, row + o, &v.to_le_bytes()));
            }
        } else {
            put(&mut d, 24, &0x10_0000u32.to_le_bytes());
            put(&mut d, 28, &52u32.to_le_bytes());
            put(&mut d, 40, &[52, 0, 32, 0]);
            put(&mut d, 44, &count.to_le_bytes());
            for (n, row) in
                [[1u32, 0x200, 0x10_0000, 0x10_0000, 0x100, 0x140, 7, 0], [4, 0x1c0, 0, 0, 24, 24, 4, 0]].iter().enumerate()
            {
                row.iter().enumerate().for_each(|(i, w)| put(&mut d, 52 + 32 * n + 4 * i, &w.to_le_bytes()));
            }
        }
        if pvh {
            // XEN_ELFNOTE_PHYS32_ENTRY.
            let words = [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000, 0];
            words.iter().enumerate().for_each(|(i, w)| put(&mut d, 0x1c0 + 4 * i, &w.to_le_bytes()));
        } else {
            put(&mut d, 0x200, &multiboot_header(3));
        }
        d
    };
    vec![make(false, false), make(true, false), make(true, true), make(false, true)]
}

/// Open it as a disk image, read and write here and there.
pub fn qcow2(data: &[u8]) {
    let name = format!("undervisor-fuzz-{}-{:?}.img", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name.replace(['(', ')'], ""));
    if std::fs::write(&path, data).is_err() {
        return;
    }
    if let Ok(mut disk) = disk::open(&path, false) {
        let size = disk.size();
        let mut sector = [0; 512];
        for at in [0, 512, 0x1_0000, size / 2 & !511, size.saturating_sub(512) & !511] {
            if at.checked_add(512).is_some_and(|end| end <= size) {
                let _ = disk.read(at, &mut sector);
                let _ = disk.write(at, &sector);
            }
        }
        let _ = disk.flush();
    }
    let _ = std::fs::remove_file(&path);
}

/// A small version-3 image with one cluster, and a version-2 one with none.
pub fn qcow2s() -> Vec<Vec<u8>> {
    let make = |version: u32, data: bool| {
        const CLUSTER: u64 = 0x1_0000;
        let mut d = vec![0; 6 * CLUSTER as usize];
        let words = |d: &mut [u8], at: usize, value: u64, size: usize| put(d, at, &value.to_be_bytes()[8 - size..]);
        put(&mut d, 0, b"QFI\xfb");
        for (at, value, size) in [
            (4, version as u64, 4),
            (20, 16, 4),
            (24, 1 << 20, 8),
            (36, 1, 4),
            (40, 3 * CLUSTER, 8),
            (48, CLUSTER, 8),
            (56, 1, 4),
            (96, 4, 4),
            (100, 104, 4),
        ] {
            words(&mut d, at, value, size);
        }
        // Refcount table, refcount block, L1, L2.
        words(&mut d, CLUSTER as usize, 2 * CLUSTER, 8);
        (0..6).for_each(|i| words(&mut d, 2 * CLUSTER as usize + 2 * i, 1, 2));
        if data {
            words(&mut d, 3 * CLUSTER as usize, 4 * CLUSTER | 1 << 63, 8);
            words(&mut d, 4 * CLUSTER as usize, 5 * CLUSTER | 1 << 63, 8);
        }
        d
    };
    vec![make(3, true), make(2, false)]
}
