//! Flat binaries, and the file formats that are certainly none.

use crate::config::Kernel;
use crate::error::LoadError;
use crate::load::{Entry, put};
use crate::memory::{LOW_MEMORY_END, Ram};

/// Where a flat binary goes unless told otherwise: where a PC's firmware puts a boot sector.
pub const DEFAULT_ADDRESS: u32 = 0x7c00;

/// What a file is that cannot be a flat binary; `None`: it may be one.
pub fn foreign(data: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 18] = [
        (b"\x7fELF", "an ELF file with a bad header"),
        (b"\x1f\x8b", "gzip data"),
        (b"\xfd7zXZ\0", "xz data"),
        (b"\x28\xb5\x2f\xfd", "zstd data"),
        (b"BZh", "bzip2 data"),
        (b"\x04\x22\x4d\x18", "lz4 data"),
        (b"PK\x03\x04", "a zip archive"),
        (b"!<arch>", "an ar archive, such as a Debian package"),
        (b"MZ", "a DOS or EFI program, or a truncated bzImage"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"070701", "a cpio archive, such as an initramfs"),
        (b"070702", "a cpio archive, such as an initramfs"),
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"%PDF", "a PDF document"),
        (b"\xcf\xfa\xed\xfe", "a Mach-O program"),
        (b"\xd0\x0d\xfe\xed", "a device tree"),
        (b"hsqs", "a squashfs file system"),
    ];
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| data.starts_with(magic)) {
        return Some(what);
    }
    if data.iter().all(|b| *b == 0) {
        return Some("only zeros");
    }
    let text = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e);
    let head = &data[..data.len().min(4096)];
    if head.len() >= 4 && head.iter().all(text) {
        return Some("text");
    }
    None
}

/// Load at the address and enter in real mode.
pub fn load(kernel: &Kernel, ram: &Ram) -> Result<Entry, LoadError> {
    let address = kernel.flat_at.unwrap_or(DEFAULT_ADDRESS);
    let size = kernel.image.data.len() as u64;
    let end = address as u64 + size;
    // From below 640 KiB it must not run into what stands above.
    let limit = if (address as u64) < LOW_MEMORY_END { LOW_MEMORY_END } else { ram.low_end() };
    if end > limit {
        return Err(LoadError::DoesNotFit {
            what: format!("flat binary {}", kernel.image.name),
            address: address as u64,
            size,
            end: limit,
        });
    }
    put(ram, &kernel.image.name, address as u64, &kernel.image.data)?;
    let (cs, ip) = match address {
        0..0x1_0000 => (0, address as u16),
        _ if address < 0x10_0000 => ((address >> 4) as u16, (address & 15) as u16),
        _ => {
            return Err(LoadError::NotSupported(
                "a flat binary",
                "load address above 1 MiB",
                "it starts in real mode; use an ELF or multiboot image instead",
            ));
        }
    };
    Ok(Entry::Real { cs, ip, edx: 0x80 })
}
