//! Putting what is to be booted into memory. The format of a kernel is recognised by its content, in this order:
//!
//! 1. a flat address was given: flat binary;
//! 2. `HdrS` at 0x202: Linux bzImage;
//! 3. a multiboot-1 header in the first 8 KiB (with an ELF image, or the address fields of the header): multiboot;
//! 4. an ELF image with the note `XEN_ELFNOTE_PHYS32_ENTRY`: PVH;
//! 5. any other ELF executable: at its entry, in the mode of its class, with a Linux `boot_params` in RSI;
//! 6. no other known file format, and not text: flat binary at 0x7c00, real mode, DL = 0x80.

pub mod elf;
mod entry;
pub mod firmware;
pub mod flat;
pub mod linux;
pub mod multiboot;
pub mod pvh;

pub use entry::Entry;

use undervisor_core::Feature;
use undervisor_cpu::Cpu;
use undervisor_cpu::apic::{DeliveryMode, LVT_LINT0, LVT_LINT1};
use undervisor_devices::{Dma, DmaExt};
use undervisor_mmu::Bus;

use crate::config::{Boot, Kernel, Module};
use crate::error::LoadError;
use crate::memory::Ram;

/// What a kernel file was recognised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Linux,
    Multiboot,
    Pvh,
    Elf,
    Flat,
}

/// Find out what a kernel is.
pub fn recognise(kernel: &Kernel) -> Result<Format, LoadError> {
    let image = &kernel.image;
    let data = &image.data;
    if data.is_empty() {
        return Err(LoadError::Empty { name: image.name.clone() });
    }
    if kernel.flat_at.is_some() {
        return Ok(Format::Flat);
    }
    if linux::is_bzimage(data) {
        return Ok(Format::Linux);
    }
    if multiboot::find_header(data).is_some() {
        return Ok(Format::Multiboot);
    }
    if elf::is_elf(data) {
        let elf = elf::Elf::parse(image)?;
        return Ok(if elf.pvh_entry.is_some() { Format::Pvh } else { Format::Elf });
    }
    match flat::foreign(data) {
        Some(found) => Err(LoadError::UnknownFormat { name: image.name.clone(), found }),
        None => Ok(Format::Flat),
    }
}

/// Load what a machine boots; how its first processor begins. `rsdp`: address of the ACPI tables' root, or 0.
pub fn load(boot: &Boot, ram: &Ram, rsdp: u64) -> Result<Entry, LoadError> {
    let kernel = match boot {
        Boot::Nothing | Boot::Firmware(_) => return Ok(Entry::Reset),
        Boot::Kernel(kernel) => kernel,
    };
    let format = recognise(kernel)?;
    write_bios_data(ram);
    if follows_bios(boot) {
        write_vectors(ram);
    }
    match format {
        Format::Linux => linux::load(kernel, ram, rsdp),
        Format::Multiboot => multiboot::load(kernel, ram, rsdp),
        Format::Pvh => pvh::load(kernel, ram, rsdp),
        Format::Elf => elf::load(kernel, ram, rsdp),
        Format::Flat => flat::load(kernel, ram),
    }
}

/// Whether what is booted may expect that a PC BIOS ran before it.
pub fn follows_bios(boot: &Boot) -> bool {
    matches!(boot, Boot::Kernel(kernel) if matches!(recognise(kernel), Ok(Format::Multiboot | Format::Flat)))
}

/// Real-mode vectors as a PC BIOS leaves them, as far as they return (and acknowledge the 8259 pair where they are its).
fn write_vectors(ram: &Ram) {
    const RETURN: u16 = 0x500;
    const FIRST: u16 = 0x510;
    const SECOND: u16 = 0x520;
    // iret; push ax, mov al 20h, out 20h, pop ax, iret; the same with out A0h first.
    let _ = ram.write(RETURN as u64, &[0xcf]);
    let _ = ram.write(FIRST as u64, &[0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf]);
    let _ = ram.write(SECOND as u64, &[0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf]);
    for vector in 0..=0xff {
        let handler = match vector {
            0x08..0x10 => FIRST,
            0x70..0x78 => SECOND,
            _ => RETURN,
        };
        let _ = ram.write_u32(4 * vector, handler as u32);
    }
}

/// What a PC BIOS leaves of the interrupt system: the 8259 pair at vectors 08h and 70h with the timer's line open, and the timer
/// at 18.2 Hz.
pub fn bios_interrupts(bus: &mut dyn Bus, now: u64) {
    let pair = [(0x20, 0x11), (0xa0, 0x11), (0x21, 8), (0xa1, 0x70), (0x21, 4), (0xa1, 2), (0x21, 1), (0xa1, 1)];
    let masks_and_timer = [(0x21, 0xfa), (0xa1, 0xff), (0x43, 0x34), (0x40, 0), (0x40, 0)];
    for (port, value) in pair.into_iter().chain(masks_and_timer) {
        bus.port_write(now, port, 1, value);
    }
}

/// The words of the BIOS data area that kernels look at: where the extended area is, and how much memory lies below it.
fn write_bios_data(ram: &Ram) {
    use crate::memory::LOW_MEMORY_END;
    // All of it lies in the first MiB, which every machine has.
    let _ = ram.write_u16(0x400, 0x3f8);
    let _ = ram.write_u16(0x40e, (LOW_MEMORY_END >> 4) as u16);
    let _ = ram.write_u16(0x413, (LOW_MEMORY_END >> 10) as u16);
    let _ = ram.write_u16(LOW_MEMORY_END, 1);
}

/// IA32_FEATURE_CONTROL as firmware leaves it: locked, with VMXON allowed outside of SMX operation.
pub const FEATURE_CONTROL: u64 = 1 | 1 << 2;

/// What firmware would have left in a processor's registers: memory types, VMX switched on and that locked, and the local APIC in
/// virtual-wire mode (MultiProcessor Specification, Virtual Wire Mode; SDM vol. 3, MTRR Considerations in MP Systems; Enabling and
/// Entering VMX Operation).
pub fn firmware_state(cpu: &mut Cpu) {
    const WRITE_BACK: u64 = 6;
    const ENABLED: u64 = 3 << 10;
    const VALID: u64 = 1 << 11;
    let hole = crate::memory::PCI_WINDOW.start;
    let width = (1u64 << cpu.physical_bits()) - 1;
    let vmx = cpu.model().has(Feature::VMX);
    let m = &mut cpu.state.msrs;
    m.mtrr_def_type = ENABLED | WRITE_BACK;
    m.mtrr_fixed = [0x0606_0606_0606_0606; 11];
    // The VGA window is uncacheable; so is everything from the PCI window to 4 GiB.
    m.mtrr_fixed[2] = 0;
    m.mtrr_variable[0] = [hole, (width & !((1 << 32) - hole - 1)) | VALID];
    if vmx {
        m.feature_control = FEATURE_CONTROL;
    }
    // FNINIT: after RESET every register counts as in use, and every exception is unmasked.
    cpu.state.x87 = undervisor_core::X87::default();
    cpu.apic.svr = 0x1ff;
    if cpu.id == 0 {
        cpu.apic.lvt[LVT_LINT0] = (DeliveryMode::ExtInt as u32) << 8;
    }
    cpu.apic.lvt[LVT_LINT1] = (DeliveryMode::Nmi as u32) << 8;
}

/// Write, or say what does not fit.
fn put(ram: &Ram, what: &str, address: u64, data: &[u8]) -> Result<(), LoadError> {
    ram.write(address, data).map_err(|_| LoadError::DoesNotFit {
        what: what.to_string(),
        address,
        size: data.len() as u64,
        end: ram.low_end(),
    })
}

/// Fill with zeros.
fn zero(ram: &Ram, what: &str, address: u64, size: u64) -> Result<(), LoadError> {
    let fail = || LoadError::DoesNotFit { what: what.to_string(), address, size, end: ram.low_end() };
    let end = address.checked_add(size).ok_or_else(fail)?;
    if size > 0 && end > ram.low_end() && address < 1 << 32 {
        return Err(fail());
    }
    let zeros = [0; 4096];
    let mut at = address;
    while at < end {
        let n = (end - at).min(zeros.len() as u64);
        ram.write(at, &zeros[..n as usize]).map_err(|_| fail())?;
        at += n;
    }
    Ok(())
}

/// The modules of a kernel that takes modules: the initrd first.
fn all_modules(kernel: &Kernel) -> Vec<Module> {
    let initrd = kernel.initrd.iter().map(|image| Module { image: image.clone(), arguments: String::new() });
    initrd.chain(kernel.modules.iter().cloned()).collect()
}

/// A module's or kernel's command line as boot loaders give it: the file's name, then the arguments.
fn with_name(name: &str, arguments: &str) -> String {
    if arguments.is_empty() { name.to_string() } else { format!("{name} {arguments}") }
}

/// Place modules one after the other, each on a page of its own, from `from` on; their (start, end).
fn place_modules(ram: &Ram, modules: &[Module], from: u64) -> Result<Vec<(u64, u64)>, LoadError> {
    let mut at = from.next_multiple_of(4096);
    let mut placed = Vec::new();
    for m in modules {
        let size = m.image.data.len() as u64;
        if at + size > ram.low_end() {
            return Err(LoadError::NoRoom { what: format!("module {}", m.image.name), size, from: at, limit: ram.low_end() });
        }
        put(ram, &m.image.name, at, &m.image.data)?;
        placed.push((at, at + size));
        at = (at + size).next_multiple_of(4096);
    }
    Ok(placed)
}

/// Append bytes to a block that will stand at `base`; where they will be.
fn append(block: &mut Vec<u8>, base: u64, data: &[u8]) -> u64 {
    while !block.len().is_multiple_of(8) {
        block.push(0);
    }
    let at = base + block.len() as u64;
    block.extend_from_slice(data);
    at
}

/// Append a string with its terminating zero.
fn append_string(block: &mut Vec<u8>, base: u64, text: &str) -> u64 {
    let at = append(block, base, text.as_bytes());
    block.push(0);
    at
}

#[cfg(test)]
mod tests;
