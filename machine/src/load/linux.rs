//! Linux/x86 boot protocol (Documentation/arch/x86/boot.rst; zero-page.rst).

use crate::config::Kernel;
use crate::error::LoadError;
use crate::load::{Entry, put, zero};
use crate::memory::Ram;

/// Where `boot_params` and the command line go.
const ZERO_PAGE: u64 = 0x1_0000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Segments of the boot protocol.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// Offsets of the setup header's fields, in the file and in `boot_params` alike.
mod header {
    pub const START: usize = 0x1f1;
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const VID_MODE: usize = 0x1fa;
    pub const JUMP_LENGTH: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const RELOCATABLE: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

const LOADED_HIGH: u8 = 1;
const CAN_USE_HEAP: u8 = 0x80;
const XLF_KERNEL_64: u16 = 1;
/// Most entries of the E820 table in `boot_params`.
const E820_MAX: usize = 128;

/// Whether a file has the header of a bzImage.
pub fn is_bzimage(data: &[u8]) -> bool {
    data.get(header::MAGIC..header::MAGIC + 4) == Some(b"HdrS")
}

struct Header<'a> {
    name: &'a str,
    data: &'a [u8],
}

impl Header<'_> {
    fn bytes(&self, at: usize, n: usize) -> u64 {
        (0..n).rev().fold(0, |v, i| v << 8 | self.data.get(at + i).copied().unwrap_or(0) as u64)
    }
    fn version(&self) -> u64 {
        self.bytes(header::VERSION, 2)
    }
    fn bad(&self, why: impl Into<String>) -> LoadError {
        LoadError::BadHeader { name: self.name.to_string(), format: "bzImage", why: why.into() }
    }
}

/// `boot_params` for a kernel: memory map, command line, initrd, ACPI root.
pub struct BootParams(Vec<u8>);

impl BootParams {
    fn new() -> BootParams {
        BootParams(vec![0; 4096])
    }
    fn set(&mut self, at: usize, n: usize, value: u64) {
        self.0[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
    }

    fn fill_common(&mut self, ram: &Ram, rsdp: u64) {
        self.set(0x70, 8, rsdp);
        let map = ram.map();
        let map = &map[..map.len().min(E820_MAX)];
        self.set(0x1e8, 1, map.len() as u64);
        for (i, e) in map.iter().enumerate() {
            let at = 0x2d0 + 20 * i;
            self.set(at, 8, e.start);
            self.set(at + 8, 8, e.size);
            self.set(at + 16, 4, e.kind as u64);
        }
        self.set(0x1e0, 4, ram.low_end().saturating_sub(1 << 20) >> 10);
    }
}

/// Write `boot_params` for a kernel without a setup header of its own (a bare `vmlinux`); its address.
pub fn write_bare_params(kernel: &Kernel, ram: &Ram, rsdp: u64, kernel_end: u64) -> Result<u64, LoadError> {
    let mut p = BootParams::new();
    p.fill_common(ram, rsdp);
    p.set(0x1fe, 2, 0xaa55);
    p.0[header::MAGIC..header::MAGIC + 4].copy_from_slice(b"HdrS");
    p.set(header::VERSION, 2, 0x20f);
    p.set(header::TYPE_OF_LOADER, 1, 0xff);
    p.set(header::LOADFLAGS, 1, LOADED_HIGH as u64);
    write_command_line(kernel, ram, 2047)?;
    p.set(header::CMD_LINE_PTR, 4, COMMAND_LINE);
    place_initrd(kernel, ram, &mut p, kernel_end, 0x7fff_ffff)?;
    put(ram, "boot_params", ZERO_PAGE, &p.0)?;
    Ok(ZERO_PAGE)
}

fn write_command_line(kernel: &Kernel, ram: &Ram, most: usize) -> Result<(), LoadError> {
    let text = kernel.command_line.as_bytes();
    if text.len() > most {
        return Err(LoadError::CommandLineTooLong { length: text.len(), most });
    }
    let mut line = text.to_vec();
    line.push(0);
    put(ram, "command line", COMMAND_LINE, &line)
}

/// The initrd goes as high as the kernel allows.
fn place_initrd(kernel: &Kernel, ram: &Ram, p: &mut BootParams, kernel_end: u64, address_max: u64) -> Result<(), LoadError> {
    let Some(initrd) = &kernel.initrd else { return Ok(()) };
    if initrd.data.is_empty() {
        return Err(LoadError::Empty { name: initrd.name.clone() });
    }
    let size = initrd.data.len() as u64;
    let limit = ram.low_end().min(address_max.saturating_add(1));
    let at = limit.saturating_sub(size) & !0xfff;
    if at < kernel_end || size > limit {
        return Err(LoadError::NoRoom { what: format!("initrd {}", initrd.name), size, from: kernel_end, limit });
    }
    put(ram, "initrd", at, &initrd.data)?;
    p.set(header::RAMDISK_IMAGE, 4, at);
    p.set(header::RAMDISK_SIZE, 4, size);
    p.set(0xc4, 4, size >> 32);
    Ok(())
}

/// Load a bzImage.
pub fn load(kernel: &Kernel, ram: &Ram, rsdp: u64) -> Result<Entry, LoadError> {
    let data = &kernel.image.data[..];
    let h = Header { name: &kernel.image.name, data };
    if !kernel.modules.is_empty() {
        return Err(LoadError::NotSupported("a Linux bzImage", "modules", "give an initramfs with --initrd"));
    }
    let header_end = header::MAGIC + h.bytes(header::JUMP_LENGTH, 1) as usize;
    let have = data.len() as u64;
    if have < header_end as u64 {
        return Err(LoadError::Truncated {
            name: kernel.image.name.clone(),
            what: "the setup header",
            needed: header_end as u64,
            have,
        });
    }
    if h.version() < 0x200 {
        return Err(h.bad(format!("boot protocol {:#x} is too old", h.version())));
    }
    if h.bytes(header::LOADFLAGS, 1) as u8 & LOADED_HIGH == 0 {
        return Err(h.bad("a zImage, which loads low; build a bzImage"));
    }
    let setup_sects = match h.bytes(header::SETUP_SECTS, 1) {
        0 => 4,
        n => n,
    };
    let payload_start = (setup_sects + 1) * 512;
    // The size is in paragraphs; before protocol 2.04 it had 16 bits. The file may end within the last paragraph.
    let paragraphs = h.bytes(header::SYSSIZE, if h.version() >= 0x204 { 4 } else { 2 });
    let needed = payload_start + (paragraphs * 16).saturating_sub(15);
    if have < needed || have <= payload_start {
        return Err(LoadError::Truncated { name: kernel.image.name.clone(), what: "the kernel", needed, have });
    }
    let payload = &data[payload_start as usize..];
    let relocatable = h.version() >= 0x205 && h.bytes(header::RELOCATABLE, 1) != 0;
    let preferred = if h.version() >= 0x20a { h.bytes(header::PREF_ADDRESS, 8) } else { 1 << 20 };
    let size = if h.version() >= 0x20a { h.bytes(header::INIT_SIZE, 4) } else { 0 }.max(payload.len() as u64);
    let fits = |at: u64| at >= 1 << 20 && at.checked_add(size).is_some_and(|end| end <= ram.low_end());
    let at = if fits(preferred) || !relocatable { preferred } else { 1 << 20 };
    if !fits(at) {
        return Err(LoadError::DoesNotFit {
            what: format!("kernel {}", kernel.image.name),
            address: at,
            size,
            end: ram.low_end(),
        });
    }
    put(ram, "kernel", at, payload)?;

    let mut p = BootParams::new();
    p.0[header::START..header_end].copy_from_slice(&data[header::START..header_end]);
    p.fill_common(ram, rsdp);
    p.set(header::VID_MODE, 2, 0xffff);
    p.set(header::TYPE_OF_LOADER, 1, 0xff);
    let flags = h.bytes(header::LOADFLAGS, 1) as u8 & !CAN_USE_HEAP | LOADED_HIGH;
    p.set(header::LOADFLAGS, 1, flags as u64);
    p.set(header::CODE32_START, 4, at);
    let most = if h.version() >= 0x206 { h.bytes(header::CMDLINE_SIZE, 4) as usize } else { 255 };
    write_command_line(kernel, ram, most.min(0xffff))?;
    p.set(header::CMD_LINE_PTR, 4, COMMAND_LINE);
    let address_max = if h.version() >= 0x203 { h.bytes(header::INITRD_ADDR_MAX, 4) } else { 0x37ff_ffff };
    place_initrd(kernel, ram, &mut p, at + size, address_max)?;
    zero(ram, "boot_params", ZERO_PAGE, 4096)?;
    put(ram, "boot_params", ZERO_PAGE, &p.0)?;

    let long = h.version() >= 0x20c && h.bytes(header::XLOADFLAGS, 2) as u16 & XLF_KERNEL_64 != 0;
    let entry = if long {
        Entry::Long { rip: at + 0x200, rsi: ZERO_PAGE, code: BOOT_CS, data: BOOT_DS }
    } else {
        Entry::Flat32 { eip: at as u32, eax: 0, ebx: 0, esi: ZERO_PAGE as u32, code: BOOT_CS, data: BOOT_DS }
    };
    entry.prepare(ram);
    Ok(entry)
}
